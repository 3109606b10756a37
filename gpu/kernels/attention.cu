// Attention over packed sequences, in tiles of queries and keys with the softmax taken as they come (Dao et al. 2022,
// arXiv 2205.14135; 2023, arXiv 2307.08691): scores and probabilities are never in memory as a whole, and the way back
// computes them anew.
//
// A block has a head and R rows of a sequence (of queries; of keys for their gradients), 16 to a warp, and goes over
// the other side C rows at a time. What a warp computes of scores is its own: it waits for the others only for the
// tiles. W is the widest head. Products of f32 are sums in registers; those of bf16 go through tensor cores.
// Sums have one order, so results do not depend on that of threads.
#include "common.cuh"

namespace attention {

// What all kernels are told. The queries, keys and values are windows of matrices with rows this far apart.
template <typename T> struct Problem {
    const T *q, *k, *v;
    unsigned q_row, kv_row;
    const unsigned *sequences;            // [sequences, 6], see Sequence
    const float *bias;                    // [buckets, heads], or null
    const unsigned *buckets;              // the bucket of key - query, at key - query + origin
    unsigned distances, origin;           // how many there are
    unsigned rows, heads, width;          // queries of all sequences, heads and their width
    float scale;                          // of scores
    unsigned causal, threshold;           // dropout: 0 is none
    float kept;                           // what a kept probability is multiplied by
};

struct Sequence {
    unsigned q_start, k_start, queries, keys, low, high;

    // How many keys a query sees.
    __device__ unsigned seen(unsigned query, bool causal) const { return causal ? keys - queries + query + 1 : keys; }
};

template <typename T> __device__ inline Sequence sequence(const Problem<T> &of, unsigned s) {
    const unsigned *x = of.sequences + 6 * size_t(s);
    return {x[0], x[1], x[2], x[3], x[4], x[5]};
}

// Whether the probability of a query and a key is kept: the CPU's mask, whose rows are padded to 16.
struct Mask {
    unsigned low, high, threshold, first, row;

    template <typename T>
    __device__ Mask(const Problem<T> &of, const Sequence &s, unsigned head)
        : low(s.low), high(s.high), threshold(of.threshold), first(head * s.queries), row((s.keys + 15) / 16 * 16) {}
    __device__ bool keeps(unsigned query, unsigned key) const {
        return threshold == 0 || bits32(low, high, (first + query) * row + key) >= threshold;
    }
};

__device__ inline unsigned whole(unsigned n) { return (n + 15) / 16 * 16; }

// Numbers from one row of a tile to the next, so that eight rows start in different banks: of inputs, of f32 scores,
// and of what became of scores as a factor.
template <typename T> __device__ constexpr unsigned apart(unsigned columns) { return columns + 16 / sizeof(T); }

// Rows of a matrix to a tile of W columns, zeros beside them and below up to a multiple of 16 rows.
template <int W, typename T>
__device__ void load(T *to, const T *from, size_t distance, unsigned rows, unsigned width) {
    constexpr unsigned EACH = 16 / sizeof(T), STRIDE = apart<T>(W);
    if (width % EACH == 0 && distance % EACH == 0 && reinterpret_cast<size_t>(from) % 16 == 0) {
        for (unsigned i = threadIdx.x; i < whole(rows) * (W / EACH); i += blockDim.x) {
            unsigned row = i / (W / EACH), column = i % (W / EACH) * EACH;
            uint4 x = {0, 0, 0, 0};
            if (row < rows && column < width) x = *reinterpret_cast<const uint4 *>(from + row * distance + column);
            *reinterpret_cast<uint4 *>(to + row * STRIDE + column) = x;
        }
    } else {
        for (unsigned i = threadIdx.x; i < whole(rows) * W; i += blockDim.x) {
            unsigned row = i / W, column = i % W;
            bool inside = row < rows && column < width;
            to[row * STRIDE + column] = inside ? from[row * distance + column] : narrow<T>(0.0f);
        }
    }
}

// The bias of every distance between R rows and C columns: row r and column c find theirs at c - r + R - 1 where keys
// are columns, at r - c + C - 1 where they are rows. `first` is the distance at 0.
template <typename T>
__device__ void load_bias(float *line, unsigned *buckets, const Problem<T> &of, unsigned head, int first, unsigned n) {
    for (unsigned i = threadIdx.x; i < n; i += blockDim.x) {
        int at = first + int(i) + int(of.origin);
        bool inside = at >= 0 && at < int(of.distances);
        unsigned bucket = inside ? of.buckets[at] : 0;
        line[i] = inside ? of.bias[size_t(bucket) * of.heads + head] : 0.0f;
        if (buckets) buckets[i] = bucket;
    }
}

struct Lane {
    unsigned own; // the warp's first row
    unsigned row; // one of its 16 rows to every two lanes,
    unsigned half; // who take turns with its columns

    __device__ Lane() : own(threadIdx.x / 32 * 16), row(threadIdx.x / 2), half(threadIdx.x % 2) {}
    // The lane's i-th column of so many: eight rows begin a step later, for the banks.
    __device__ unsigned column(unsigned i, unsigned columns) const {
        unsigned at = i + row / 8 % 2;
        return 2 * (2 * at < columns ? at : 0) + half;
    }
};

// out[16, columns] = a[16, depth] · b[columns, depth]ᵀ, by a warp; tiles of C columns at most.
template <int W, int C>
__device__ void scores(const float *a, const float *b, unsigned depth, unsigned columns, float *out) {
    constexpr unsigned STRIDE = apart<float>(W), LONG = apart<float>(C);
    const unsigned r = threadIdx.x % 32 / 8 * 4, c = threadIdx.x % 8;
    float x[4][C / 8];
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (unsigned j = 0; j < C / 8; j++) x[i][j] = 0.0f;
    for (unsigned d = 0; d < depth; d += 4) {
        float4 left[4];
#pragma unroll
        for (int i = 0; i < 4; i++) left[i] = *reinterpret_cast<const float4 *>(a + (r + i) * STRIDE + d);
#pragma unroll
        for (unsigned j = 0; j < C / 8; j++) {
            if (j * 8 >= columns) break;
            float4 right = *reinterpret_cast<const float4 *>(b + (c + 8 * j) * STRIDE + d);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                x[i][j] = fmaf(left[i].x, right.x, x[i][j]);
                x[i][j] = fmaf(left[i].y, right.y, x[i][j]);
                x[i][j] = fmaf(left[i].z, right.z, x[i][j]);
                x[i][j] = fmaf(left[i].w, right.w, x[i][j]);
            }
        }
    }
#pragma unroll
    for (unsigned j = 0; j < C / 8; j++) {
        if (j * 8 >= columns) break;
#pragma unroll
        for (int i = 0; i < 4; i++) out[(r + i) * LONG + c + 8 * j] = x[i][j];
    }
}

namespace wmma = nvcuda::wmma;
using Total = wmma::fragment<wmma::accumulator, 16, 16, 16, float>;

template <int W, int C>
__device__ void scores(const bf16 *a, const bf16 *b, unsigned depth, unsigned columns, float *out) {
    constexpr unsigned STRIDE = apart<bf16>(W), LONG = apart<float>(C);
    Total x[C / 16];
#pragma unroll
    for (unsigned j = 0; j < C / 16; j++) wmma::fill_fragment(x[j], 0.0f);
    for (unsigned d = 0; d < depth; d += 16) {
        wmma::fragment<wmma::matrix_a, 16, 16, 16, bf16, wmma::row_major> left;
        wmma::load_matrix_sync(left, a + d, STRIDE);
#pragma unroll
        for (unsigned j = 0; j < C / 16; j++) {
            if (j * 16 >= columns) break;
            wmma::fragment<wmma::matrix_b, 16, 16, 16, bf16, wmma::col_major> right;
            wmma::load_matrix_sync(right, b + j * 16 * STRIDE + d, STRIDE);
            wmma::mma_sync(x[j], left, right, x[j]);
        }
    }
#pragma unroll
    for (unsigned j = 0; j < C / 16; j++) {
        if (j * 16 >= columns) break;
        wmma::store_matrix_sync(out + j * 16, x[j], LONG, wmma::mem_row_major);
    }
}

// A warp's sum of products, [16, W], in its registers.
template <typename T, int W> struct Sum;

template <int W> struct Sum<float, W> {
    float x[4][W / 8]; // rows r + i, columns c + 32 (j / 4) + j % 4

    __device__ static unsigned r() { return threadIdx.x % 32 / 8 * 4; }
    __device__ static unsigned c() { return threadIdx.x % 8 * 4; }
    __device__ Sum() {
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (unsigned j = 0; j < W / 8; j++) x[i][j] = 0.0f;
    }
    // += a[16, depth] · b[depth, width], the rows of `a` as for tiles of C columns.
    template <int C> __device__ void add(const float *a, const float *b, unsigned depth, unsigned width) {
        constexpr unsigned STRIDE = apart<float>(W), LONG = apart<float>(C);
        for (unsigned d = 0; d < depth; d += 4) {
            float left[4][4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float4 four = *reinterpret_cast<const float4 *>(a + (r() + i) * LONG + d);
                left[i][0] = four.x, left[i][1] = four.y, left[i][2] = four.z, left[i][3] = four.w;
            }
#pragma unroll
            for (int e = 0; e < 4; e++) {
#pragma unroll
                for (unsigned j = 0; j < W / 32; j++) {
                    if (j * 32 >= width) break;
                    float4 right = *reinterpret_cast<const float4 *>(b + (d + e) * STRIDE + c() + 32 * j);
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        x[i][4 * j] = fmaf(left[i][e], right.x, x[i][4 * j]);
                        x[i][4 * j + 1] = fmaf(left[i][e], right.y, x[i][4 * j + 1]);
                        x[i][4 * j + 2] = fmaf(left[i][e], right.z, x[i][4 * j + 2]);
                        x[i][4 * j + 3] = fmaf(left[i][e], right.w, x[i][4 * j + 3]);
                    }
                }
            }
        }
    }
    // Multiplies row i by the factor of lanes 2 i and 2 i + 1.
    __device__ void scale(float factor, float *) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float by = __shfl_sync(0xffffffffu, factor, 2 * (r() + i));
#pragma unroll
            for (unsigned j = 0; j < W / 8; j++) x[i][j] *= by;
        }
    }
    // Columns 32 part .. 32 part + 32 to memory.
    __device__ void put(unsigned part, float *out, unsigned stride) const {
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (unsigned j = 0; j < 4; j++) out[(r() + i) * stride + c() + j] = x[i][4 * part + j];
    }
};

template <int W> struct Sum<bf16, W> {
    Total x[W / 16];

    __device__ Sum() {
#pragma unroll
        for (unsigned j = 0; j < W / 16; j++) wmma::fill_fragment(x[j], 0.0f);
    }
    template <int C> __device__ void add(const bf16 *a, const bf16 *b, unsigned depth, unsigned width) {
        constexpr unsigned STRIDE = apart<bf16>(W), SHORT = apart<bf16>(C);
        for (unsigned d = 0; d < depth; d += 16) {
            wmma::fragment<wmma::matrix_a, 16, 16, 16, bf16, wmma::row_major> left;
            wmma::load_matrix_sync(left, a + d, SHORT);
#pragma unroll
            for (unsigned j = 0; j < W / 16; j++) {
                if (j * 16 >= width) break;
                wmma::fragment<wmma::matrix_b, 16, 16, 16, bf16, wmma::row_major> right;
                wmma::load_matrix_sync(right, b + d * STRIDE + j * 16, STRIDE);
                wmma::mma_sync(x[j], left, right, x[j]);
            }
        }
    }
    // Where a fragment has which element is not said, but it is the same in all of one type. `room` has 256 numbers.
    __device__ void scale(float factor, float *room) {
#pragma unroll
        for (int i = 0; i < 8; i++) room[threadIdx.x % 32 * 8 + i] = factor;
        __syncwarp();
        Total by;
        wmma::load_matrix_sync(by, room, 16, wmma::mem_row_major);
#pragma unroll
        for (unsigned j = 0; j < W / 16; j++)
#pragma unroll
            for (int i = 0; i < Total::num_elements; i++) x[j].x[i] *= by.x[i];
        __syncwarp();
    }
    __device__ void put(unsigned part, float *out, unsigned stride) const {
        wmma::store_matrix_sync(out, x[2 * part], stride, wmma::mem_row_major);
        wmma::store_matrix_sync(out + 16, x[2 * part + 1], stride, wmma::mem_row_major);
    }
};

// The rows of a sum, times the factors of their lanes, to memory; `room` is for tiles of C columns.
template <int C, typename T, int W>
__device__ void store(const Sum<T, W> &sum, float factor, float *room, T *to, size_t distance, unsigned rows,
                      unsigned width) {
    const unsigned lane = threadIdx.x % 32;
#pragma unroll
    for (unsigned part = 0; part < W / 32; part++) {
        if (part * 32 >= width) break;
        sum.put(part, room, apart<float>(C));
        __syncwarp();
        for (unsigned row = 0; row < min(rows, 16u); row++) {
            float x = room[row * apart<float>(C) + lane] * __shfl_sync(0xffffffffu, factor, 2 * row);
            if (part * 32 + lane < width) to[row * distance + part * 32 + lane] = narrow<T>(x);
        }
        __syncwarp();
    }
}

// Memory of a block, handed out in parts.
struct Room {
    unsigned char *next;

    template <typename U> __device__ U *take(unsigned n) {
        U *part = reinterpret_cast<U *>(next);
        next += n * sizeof(U);
        return part;
    }
    // Room for factors made of scores, which take the place of those where their type is the same.
    template <typename T, int R, int C> __device__ T *factors(float *scores) {
        if constexpr (sizeof(T) == sizeof(float)) return scores;
        else return take<T>(R * apart<T>(C));
    }
};

// out and the logarithm of every row's sum, [heads, rows].
template <typename T, int W, int R, int C>
__device__ void forward(const Problem<T> &of, const unsigned *tiles, T *out, float *lse) {
    constexpr unsigned STRIDE = apart<T>(W), LONG = apart<float>(C), SHORT = apart<T>(C);
    SHARED(bytes);
    Room room{bytes};
    T *q = room.take<T>(R * STRIDE), *k = room.take<T>(C * STRIDE), *v = room.take<T>(C * STRIDE);
    float *s = room.take<float>(R * LONG);
    T *p = room.factors<T, R, C>(s);
    float *factors = room.take<float>(R * 16), *line = room.take<float>(R + C);

    const unsigned head = blockIdx.y, first = tiles[2 * blockIdx.x + 1];
    const Sequence seq = sequence(of, tiles[2 * blockIdx.x]);
    const unsigned rows = min(seq.queries - first, unsigned(R)), depth = whole(of.width);
    const Mask mask(of, seq, head);
    const Lane at;
    const unsigned query = first + at.row;
    const unsigned seen = at.row < rows ? seq.seen(query, of.causal) : 0;
    const unsigned end = seq.seen(first + rows - 1, of.causal);
    const size_t column = size_t(head) * of.width;

    load<W>(q, of.q + size_t(seq.q_start + first) * of.q_row + column, of.q_row, rows, of.width);
    float most = -INFINITY, total = 0.0f;
    Sum<T, W> sum;
    for (unsigned key = 0; key < end; key += C) {
        const unsigned columns = min(end - key, unsigned(C));
        const size_t row = size_t(seq.k_start + key) * of.kv_row + column;
        __syncthreads();
        load<W>(k, of.k + row, of.kv_row, columns, of.width);
        load<W>(v, of.v + row, of.kv_row, columns, of.width);
        if (of.bias) load_bias(line, nullptr, of, head, int(key) - int(first) - (R - 1), R + C - 1);
        __syncthreads();
        if (at.own >= rows) continue;
        scores<W, C>(q + at.own * STRIDE, k, depth, columns, s + at.own * LONG);
        __syncwarp();
        float *s_row = s + at.row * LONG;
        T *p_row = p + at.row * SHORT;
        const unsigned whole_columns = whole(columns);
        float now = most;
        for (unsigned i = 0; 2 * i < whole_columns; i++) {
            const unsigned c = at.column(i, whole_columns);
            if (key + c >= seen) continue;
            float x = s_row[c] * of.scale;
            if (of.bias) x += line[c + R - 1 - at.row];
            s_row[c] = x;
            now = fmaxf(now, x);
        }
        now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 1));
        const float factor = most == -INFINITY ? 0.0f : expf(most - now);
        most = now;
        total *= factor;
        for (unsigned i = 0; 2 * i < whole_columns; i++) {
            const unsigned c = at.column(i, whole_columns);
            float x = key + c < seen ? expf(s_row[c] - now) : 0.0f;
            total += x;
            p_row[c] = narrow<T>(mask.keeps(query, key + c) ? x : 0.0f);
        }
        __syncwarp();
        sum.scale(factor, factors + at.own * 16);
        sum.template add<C>(p + at.own * SHORT, v, whole_columns, of.width);
    }
    if (at.own >= rows) return;
    total += __shfl_xor_sync(0xffffffffu, total, 1);
    const float factor = total > 0.0f ? of.kept / total : 0.0f;
    if (at.row < rows && at.half == 0)
        lse[size_t(head) * of.rows + seq.q_start + query] = total > 0.0f ? most + logf(total) : 0.0f;
    __syncwarp();
    const size_t distance = size_t(of.heads) * of.width;
    T *to = out + size_t(seq.q_start + first + at.own) * distance + column;
    store<C>(sum, factor, s + at.own * LONG, to, distance, rows - at.own, of.width);
}

// dq, as a window like q, and the gradient of the bias by this block, shares[tile, heads, buckets].
template <typename T, int W, int R, int C>
__device__ void queries(const Problem<T> &of, const unsigned *tiles, const T *gradient, const float *lse,
                        const float *dots, T *dq, float *shares, unsigned buckets) {
    constexpr unsigned STRIDE = apart<T>(W), LONG = apart<float>(C), SHORT = apart<T>(C);
    SHARED(bytes);
    Room room{bytes};
    T *q = room.take<T>(R * STRIDE), *g = room.take<T>(R * STRIDE);
    T *k = room.take<T>(C * STRIDE), *v = room.take<T>(C * STRIDE);
    float *s = room.take<float>(R * LONG), *e = room.take<float>(R * LONG);
    T *d = room.factors<T, R, C>(s);
    float *line = room.take<float>(R + C), *sums = room.take<float>(R + C);
    unsigned *bucket_of = room.take<unsigned>(R + C);
    float *share = room.take<float>(buckets);

    const unsigned head = blockIdx.y, first = tiles[2 * blockIdx.x + 1];
    const Sequence seq = sequence(of, tiles[2 * blockIdx.x]);
    const unsigned rows = min(seq.queries - first, unsigned(R)), depth = whole(of.width);
    const Mask mask(of, seq, head);
    const Lane at;
    const unsigned query = first + at.row;
    const unsigned seen = at.row < rows ? seq.seen(query, of.causal) : 0;
    const unsigned end = seq.seen(first + rows - 1, of.causal);
    const size_t column = size_t(head) * of.width, distance = size_t(of.heads) * of.width;

    load<W>(q, of.q + size_t(seq.q_start + first) * of.q_row + column, of.q_row, rows, of.width);
    load<W>(g, gradient + size_t(seq.q_start + first) * distance + column, distance, rows, of.width);
    for (unsigned b = threadIdx.x; b < buckets; b += blockDim.x) share[b] = 0.0f;
    const size_t place = size_t(head) * of.rows + seq.q_start + query;
    const float log_sum = at.row < rows ? lse[place] : 0.0f, dot = at.row < rows ? dots[place] : 0.0f;
    Sum<T, W> sum;
    for (unsigned key = 0; key < end; key += C) {
        const unsigned columns = min(end - key, unsigned(C)), whole_columns = whole(columns);
        const size_t row = size_t(seq.k_start + key) * of.kv_row + column;
        __syncthreads();
        load<W>(k, of.k + row, of.kv_row, columns, of.width);
        load<W>(v, of.v + row, of.kv_row, columns, of.width);
        if (of.bias) load_bias(line, bucket_of, of, head, int(key) - int(first) - (R - 1), R + C - 1);
        __syncthreads();
        if (at.own < rows) {
            scores<W, C>(q + at.own * STRIDE, k, depth, columns, s + at.own * LONG);
            scores<W, C>(g + at.own * STRIDE, v, depth, columns, e + at.own * LONG);
            __syncwarp();
            for (unsigned i = 0; 2 * i < whole_columns; i++) {
                const unsigned c = at.column(i, whole_columns);
                float x = 0.0f;
                if (key + c < seen) {
                    float score = s[at.row * LONG + c] * of.scale;
                    if (of.bias) score += line[c + R - 1 - at.row];
                    float back = mask.keeps(query, key + c) ? e[at.row * LONG + c] * of.kept : 0.0f;
                    x = expf(score - log_sum) * (back - dot);
                }
                e[at.row * LONG + c] = x;
                d[at.row * SHORT + c] = narrow<T>(x);
            }
            __syncwarp();
            sum.template add<C>(d + at.own * SHORT, k, whole_columns, of.width);
        }
        if (!of.bias) continue;
        // All pairs of one distance share a bucket.
        __syncthreads();
        for (unsigned i = threadIdx.x; i < R + C - 1; i += blockDim.x) {
            float x = 0.0f;
            for (unsigned r = 0; r < rows; r++) {
                unsigned c = i + r - (R - 1); // wraps where it is below 0
                if (c < columns) x += e[r * LONG + c];
            }
            sums[i] = x;
        }
        __syncthreads();
        for (unsigned b = threadIdx.x; b < buckets; b += blockDim.x) {
            float x = 0.0f;
            for (unsigned i = 0; i < R + C - 1; i++) x += bucket_of[i] == b ? sums[i] : 0.0f;
            share[b] += x;
        }
    }
    if (of.bias)
        for (unsigned b = threadIdx.x; b < buckets; b += blockDim.x)
            shares[(size_t(blockIdx.x) * of.heads + head) * buckets + b] = share[b];
    if (at.own >= rows) return;
    __syncwarp();
    T *to = dq + size_t(seq.q_start + first + at.own) * of.q_row + column;
    store<C>(sum, of.scale, s + at.own * LONG, to, of.q_row, rows - at.own, of.width);
}

// dk and dv, as windows like k and v. Rows are keys here, columns are queries.
template <typename T, int W, int R, int C>
__device__ void keys(const Problem<T> &of, const unsigned *tiles, const T *gradient, const float *lse,
                     const float *dots, T *dk, T *dv) {
    constexpr unsigned STRIDE = apart<T>(W), LONG = apart<float>(C), SHORT = apart<T>(C);
    SHARED(bytes);
    Room room{bytes};
    T *k = room.take<T>(R * STRIDE), *v = room.take<T>(R * STRIDE);
    T *q = room.take<T>(C * STRIDE), *g = room.take<T>(C * STRIDE);
    float *s = room.take<float>(R * LONG), *e = room.take<float>(R * LONG);
    T *p = room.factors<T, R, C>(s), *d = room.factors<T, R, C>(e);
    float *line = room.take<float>(R + C), *log_sums = room.take<float>(C), *all_dots = room.take<float>(C);

    const unsigned head = blockIdx.y, first = tiles[2 * blockIdx.x + 1];
    const Sequence seq = sequence(of, tiles[2 * blockIdx.x]);
    const unsigned rows = min(seq.keys - first, unsigned(R)), depth = whole(of.width);
    const Mask mask(of, seq, head);
    const Lane at;
    const unsigned key = first + at.row;
    const size_t column = size_t(head) * of.width, distance = size_t(of.heads) * of.width;
    const size_t row = size_t(seq.k_start + first) * of.kv_row + column;

    load<W>(k, of.k + row, of.kv_row, rows, of.width);
    load<W>(v, of.v + row, of.kv_row, rows, of.width);
    Sum<T, W> sum_k, sum_v;
    // The first query that sees a key of these.
    const unsigned before = of.causal ? seq.keys - seq.queries : 0;
    const unsigned start = of.causal && first > before ? (first - before) / C * C : 0;
    for (unsigned query = start; query < seq.queries; query += C) {
        const unsigned columns = min(seq.queries - query, unsigned(C)), whole_columns = whole(columns);
        const size_t from = seq.q_start + query;
        __syncthreads();
        load<W>(q, of.q + from * of.q_row + column, of.q_row, columns, of.width);
        load<W>(g, gradient + from * distance + column, distance, columns, of.width);
        for (unsigned i = threadIdx.x; i < columns; i += blockDim.x) {
            log_sums[i] = lse[size_t(head) * of.rows + from + i];
            all_dots[i] = dots[size_t(head) * of.rows + from + i];
        }
        if (of.bias) load_bias(line, nullptr, of, head, int(first) - int(query) - (C - 1), R + C - 1);
        __syncthreads();
        if (at.own >= rows) continue;
        scores<W, C>(k + at.own * STRIDE, q, depth, columns, s + at.own * LONG);
        scores<W, C>(v + at.own * STRIDE, g, depth, columns, e + at.own * LONG);
        __syncwarp();
        for (unsigned i = 0; 2 * i < whole_columns; i++) {
            const unsigned c = at.column(i, whole_columns);
            float x = 0.0f, back = 0.0f;
            if (c < columns && at.row < rows && key < seq.seen(query + c, of.causal)) {
                float score = s[at.row * LONG + c] * of.scale;
                if (of.bias) score += line[at.row + C - 1 - c];
                const bool kept = mask.keeps(query + c, key);
                const float probability = expf(score - log_sums[c]);
                x = kept ? probability * of.kept : 0.0f;
                back = probability * ((kept ? e[at.row * LONG + c] * of.kept : 0.0f) - all_dots[c]);
            }
            p[at.row * SHORT + c] = narrow<T>(x);
            d[at.row * SHORT + c] = narrow<T>(back);
        }
        __syncwarp();
        sum_v.template add<C>(p + at.own * SHORT, g, whole_columns, of.width);
        sum_k.template add<C>(d + at.own * SHORT, q, whole_columns, of.width);
    }
    if (at.own >= rows) return;
    __syncwarp();
    const size_t to = row + size_t(at.own) * of.kv_row;
    store<C>(sum_k, of.scale, s + at.own * LONG, dk + to, of.kv_row, rows - at.own, of.width);
    store<C>(sum_v, 1.0f, s + at.own * LONG, dv + to, of.kv_row, rows - at.own, of.width);
}

// dots[heads, rows]: the products of the rows of a result and its gradient, head by head.
template <typename T>
__device__ void dots(const T *x, const T *y, float *out, unsigned rows, unsigned heads, unsigned width) {
    const size_t place = size_t(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
    if (place >= size_t(rows) * heads) return;
    float sum = 0.0f;
    for (unsigned i = threadIdx.x % 32; i < width; i += 32)
        sum = fmaf(widen(x[place * width + i]), widen(y[place * width + i]), sum);
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) out[place % heads * rows + place / heads] = sum;
}

} // namespace attention

#define ATTENTION_PROBLEM(T)                                                                                           \
    const T *q, const T *k, const T *v, unsigned q_row, unsigned kv_row, const unsigned *sequences, const float *bias, \
        const unsigned *buckets, unsigned distances, unsigned origin, unsigned rows, unsigned heads, unsigned width,   \
        float scale, unsigned causal, unsigned threshold, float kept, const unsigned *tiles
#define ATTENTION_GIVEN(T)                                                                                             \
    attention::Problem<T>{q,      k,    v,     q_row, kv_row, sequences, bias,      buckets, distances,                \
                          origin, rows, heads, width, scale,  causal,    threshold, kept}

// The tiles are those of `Tiles` in attention.rs: forward R x C, backward R x C.
#define ATTENTION(W, name, T, R, C, BACK_R, BACK_C)                                                                    \
    KERNEL(attention_forward_##W##_##name, ATTENTION_PROBLEM(T), T *out, float *lse) {                                 \
        attention::forward<T, W, R, C>(ATTENTION_GIVEN(T), tiles, out, lse);                                           \
    }                                                                                                                  \
    KERNEL(attention_queries_##W##_##name, ATTENTION_PROBLEM(T), const T *gradient, const float *lse,                  \
           const float *dots, T *dq, float *shares, unsigned count) {                                                  \
        attention::queries<T, W, BACK_R, BACK_C>(ATTENTION_GIVEN(T), tiles, gradient, lse, dots, dq, shares, count);   \
    }                                                                                                                  \
    KERNEL(attention_keys_##W##_##name, ATTENTION_PROBLEM(T), const T *gradient, const float *lse, const float *dots,  \
           T *dk, T *dv) {                                                                                             \
        attention::keys<T, W, BACK_R, BACK_C>(ATTENTION_GIVEN(T), tiles, gradient, lse, dots, dk, dv);                 \
    }

ATTENTION(32, f32, float, 64, 64, 64, 32)
ATTENTION(64, f32, float, 64, 64, 64, 32)
ATTENTION(128, f32, float, 64, 32, 32, 32)
ATTENTION(32, bf16, bf16, 64, 64, 64, 32)
ATTENTION(64, bf16, bf16, 64, 64, 64, 32)
ATTENTION(128, bf16, bf16, 64, 64, 64, 32)

KERNEL(attention_dots_f32, const float *x, const float *y, float *out, unsigned rows, unsigned heads, unsigned width) {
    attention::dots(x, y, out, rows, heads, width);
}
KERNEL(attention_dots_bf16, const bf16 *x, const bf16 *y, float *out, unsigned rows, unsigned heads, unsigned width) {
    attention::dots(x, y, out, rows, heads, width);
}

// dbias[buckets, heads] from shares[tiles, heads, buckets]; a block for each.
KERNEL(attention_bias, const float *shares, float *dbias, unsigned tiles, unsigned heads, unsigned buckets) {
    SHARED(bytes);
    const unsigned bucket = blockIdx.x, head = blockIdx.y;
    float sum = 0.0f;
    for (unsigned i = threadIdx.x; i < tiles; i += blockDim.x)
        sum += shares[(size_t(i) * heads + head) * buckets + bucket];
    sum = block_sum(sum, reinterpret_cast<float *>(bytes));
    if (threadIdx.x == 0) dbias[size_t(bucket) * heads + head] = sum;
}
