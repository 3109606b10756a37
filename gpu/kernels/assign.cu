// The nearest of some centroids. Distances are sums of squared differences in f32, which nothing common to all rows can
// spoil; where rounding could have changed the nearest, it is decided in f64.
#include "common.cuh"

namespace assign {

constexpr unsigned TILE = 64;    // rows, and centroids at a time
constexpr unsigned DEPTH = 32;   // columns at a time
constexpr unsigned APART = 36;   // numbers from row to row: eight rows start in different banks
constexpr unsigned THREADS = 256;

// What is nearest, and how far the second is at least.
template <typename T> struct Nearest {
    T best = INFINITY, second = INFINITY;
    unsigned index = 0xffffffffu;

    __device__ void add(T distance, unsigned centroid) {
        if (distance < best || (distance == best && centroid < index)) {
            second = best;
            best = distance;
            index = centroid;
        } else if (distance < second) {
            second = distance;
        }
    }
    __device__ void join(const Nearest &other) {
        T further = fmin(second, other.second);
        add(other.best, other.index);
        second = fmin(second, further);
    }
};

__device__ inline void load(float *to, const float *from, unsigned first, unsigned rows, unsigned column, unsigned d) {
    for (unsigned i = threadIdx.x; i < TILE * DEPTH; i += THREADS) {
        unsigned row = i / DEPTH, at = i % DEPTH;
        bool inside = first + row < rows && column + at < d;
        to[row * APART + at] = inside ? from[size_t(first + row) * d + column + at] : 0.0f;
    }
}

__device__ inline float square(float x, float y, float sum) { return fmaf(x - y, x - y, sum); }

// The nearest of all centroids in f64, by the block; every thread gets it.
__device__ inline Nearest<double> decide(const float *x, const float *centroids, unsigned count, unsigned d,
                                         Nearest<double> *room) {
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    Nearest<double> found;
    for (unsigned centroid = warp; centroid < count; centroid += THREADS / 32) {
        double sum = 0.0;
        for (unsigned i = lane; i < d; i += 32) {
            double gap = double(x[i]) - double(centroids[size_t(centroid) * d + i]);
            sum += gap * gap;
        }
        for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
        found.add(sum, centroid);
    }
    __syncthreads();
    if (lane == 0) room[warp] = found;
    __syncthreads();
    found = room[0];
    for (unsigned i = 1; i < THREADS / 32; i++) found.join(room[i]);
    return found;
}

} // namespace assign

// index[n]: the nearest of centroids[count, d] to x[n, d], of equals the first. `slack` is how much larger a distance may
// be, relatively, that rounding took for one no larger.
KERNEL(assign_f32, const float *x, const float *centroids, unsigned *index, unsigned n, unsigned count, unsigned d,
       float slack) {
    using namespace assign;
    SHARED(bytes);
    float *rows = reinterpret_cast<float *>(bytes), *tile = rows + TILE * APART;
    auto *merged = reinterpret_cast<Nearest<float> *>(tile + TILE * APART); // [TILE, 16]
    auto *room = reinterpret_cast<Nearest<double> *>(bytes);                // once the tiles are done
    const unsigned first = blockIdx.x * TILE, r = threadIdx.x / 16 * 4, c = threadIdx.x % 16;

    Nearest<float> nearest[4];
    for (unsigned start = 0; start < count; start += TILE) {
        float sum[4][4] = {};
        for (unsigned column = 0; column < d; column += DEPTH) {
            __syncthreads();
            load(rows, x, first, n, column, d);
            load(tile, centroids, start, count, column, d);
            __syncthreads();
#pragma unroll
            for (unsigned k = 0; k < DEPTH; k += 4) {
                float4 left[4];
#pragma unroll
                for (int i = 0; i < 4; i++) left[i] = *reinterpret_cast<const float4 *>(rows + (r + i) * APART + k);
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    float4 right = *reinterpret_cast<const float4 *>(tile + (c + 16 * j) * APART + k);
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        sum[i][j] = square(left[i].x, right.x, sum[i][j]);
                        sum[i][j] = square(left[i].y, right.y, sum[i][j]);
                        sum[i][j] = square(left[i].z, right.z, sum[i][j]);
                        sum[i][j] = square(left[i].w, right.w, sum[i][j]);
                    }
                }
            }
        }
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                if (start + c + 16 * j < count) nearest[i].add(sum[i][j], start + c + 16 * j);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) merged[(r + i) * 16 + c] = nearest[i];
    __syncthreads();
    for (unsigned row = threadIdx.x; row < TILE; row += THREADS)
        for (unsigned i = 1; i < 16; i++) merged[row * 16].join(merged[row * 16 + i]);
    __syncthreads();
    for (unsigned row = 0; row < TILE && first + row < n; row++) {
        const Nearest<float> &found = merged[row * 16];
        unsigned best = found.index;
        // What is added is for squares too small for f32.
        if (count > 1 && !(found.second > found.best + found.best * slack + 1e-37f))
            best = decide(x + size_t(first + row) * d, centroids, count, d, room).index;
        if (threadIdx.x == 0) index[first + row] = best < count ? best : 0;
    }
}
