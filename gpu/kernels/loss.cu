// Cross-entropy by rows, and the binary one. A team of threads has a row: a warp, or a block for long rows.
#include "common.cuh"

// The largest of a row and the sum of exp(x - largest), in one pass.
template <bool WARP, typename T>
__device__ void row_exp(const T *x, unsigned columns, unsigned lane, unsigned lanes, float *room, float &most,
                        float &sum) {
    float own = -3e38f, part = 0.0f;
    for (size_t first = lane; first < columns; first += 4 * size_t(lanes)) {
        float four[4], here = own;
        for (unsigned j = 0; j < 4; j++) {
            size_t i = first + size_t(j) * lanes;
            four[j] = i < columns ? widen(x[i]) : -INFINITY;
            here = fmaxf(here, four[j]);
        }
        if (here > own) part *= expf(own - here);
        own = here;
        for (unsigned j = 0; j < 4; j++) part += expf(four[j] - own);
    }
    most = WARP ? warp_max(own) : block_max(own, room);
    part *= expf(own - most);
    sum = WARP ? warp_sum(part) : block_sum(part, room);
}

// losses[row] = log Σ exp(x) - x[code], totals[row] = log Σ exp(x)
template <bool WARP, typename T>
__device__ void cross_entropy(const T *x, const unsigned *codes, float *losses, float *totals, unsigned rows,
                              unsigned columns) {
    SHARED(shared);
    unsigned lanes = WARP ? 32 : blockDim.x, lane = threadIdx.x % lanes;
    unsigned row = blockIdx.x * (blockDim.x / lanes) + threadIdx.x / lanes;
    if (row >= rows) return;
    x += size_t(row) * columns;
    float most, sum;
    row_exp<WARP>(x, columns, lane, lanes, reinterpret_cast<float *>(shared), most, sum);
    if (lane == 0) {
        losses[row] = most - widen(x[codes[row]]) + logf(sum);
        totals[row] = most + logf(sum);
    }
}

// dx = (softmax - onehot) · gradient[0] · scale
template <bool WARP, typename T>
__device__ void cross_entropy_back(const T *__restrict__ x, const unsigned *__restrict__ codes,
                                   const float *__restrict__ totals, const float *__restrict__ gradient,
                                   T *__restrict__ dx, unsigned rows, unsigned columns, float scale) {
    unsigned lanes = WARP ? 32 : blockDim.x, lane = threadIdx.x % lanes;
    unsigned row = blockIdx.x * (blockDim.x / lanes) + threadIdx.x / lanes;
    if (row >= rows) return;
    x += size_t(row) * columns;
    dx += size_t(row) * columns;
    float total = totals[row], by = gradient[0] * scale;
    unsigned code = codes[row];
#pragma unroll 4
    for (unsigned i = lane; i < columns; i += lanes)
        dx[i] = narrow<T>((expf(widen(x[i]) - total) - (i == code ? 1.0f : 0.0f)) * by);
}

// x becomes (softmax - onehot) · scale; losses[row] as above.
template <bool WARP, typename T>
__device__ void cross_entropy_in_place(T *x, const unsigned *codes, float *losses, unsigned rows, unsigned columns,
                                       float scale) {
    SHARED(shared);
    unsigned lanes = WARP ? 32 : blockDim.x, lane = threadIdx.x % lanes;
    unsigned row = blockIdx.x * (blockDim.x / lanes) + threadIdx.x / lanes;
    if (row >= rows) return;
    x += size_t(row) * columns;
    float most, sum;
    row_exp<WARP>(x, columns, lane, lanes, reinterpret_cast<float *>(shared), most, sum);
    unsigned code = codes[row];
    if (lane == 0) losses[row] = most - widen(x[code]) + logf(sum);
    if (WARP) __syncwarp();
    else __syncthreads();
    float inverse = 1.0f / sum;
#pragma unroll 4
    for (unsigned i = lane; i < columns; i += lanes)
        x[i] = narrow<T>((expf(widen(x[i]) - most) * inverse - (i == code ? 1.0f : 0.0f)) * scale);
}

#define CROSS_ENTROPY(name, WARP, T)                                                                                   \
    KERNEL(cross_entropy_##name, const T *x, const unsigned *codes, float *losses, float *totals, unsigned rows,       \
           unsigned columns) {                                                                                         \
        cross_entropy<WARP>(x, codes, losses, totals, rows, columns);                                                  \
    }                                                                                                                  \
    KERNEL(cross_entropy_back_##name, const T *x, const unsigned *codes, const float *totals, const float *gradient,   \
           T *dx, unsigned rows, unsigned columns, float scale) {                                                      \
        cross_entropy_back<WARP>(x, codes, totals, gradient, dx, rows, columns, scale);                                \
    }                                                                                                                  \
    KERNEL(cross_entropy_in_place_##name, T *x, const unsigned *codes, float *losses, unsigned rows, unsigned columns, \
           float scale) {                                                                                              \
        cross_entropy_in_place<WARP>(x, codes, losses, rows, columns, scale);                                          \
    }
CROSS_ENTROPY(warp_f32, true, float)
CROSS_ENTROPY(warp_bf16, true, bf16)
CROSS_ENTROPY(block_f32, false, float)
CROSS_ENTROPY(block_bf16, false, bf16)
#undef CROSS_ENTROPY

// joint [rows, 1 + columns] gets -1e30 at the elements (row, column) of `hidden`, whose column 0 is joint's column 1.
KERNEL(hide, float *joint, const unsigned *hidden, unsigned count, unsigned columns) {
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += size_t(gridDim.x) * blockDim.x)
        joint[size_t(hidden[2 * i]) * (columns + 1) + 1 + hidden[2 * i + 1]] = -1e30f;
}

// parts[block] = the block's share of the sum of log(1 + exp(sign · x)).
template <typename T> __device__ void binary(const T *x, float *parts, unsigned n, float sign) {
    SHARED(shared);
    float sum = 0.0f;
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += size_t(gridDim.x) * blockDim.x) {
        float against = sign * widen(x[i]);
        sum += fmaxf(against, 0.0f) + log1pf(expf(-fabsf(against)));
    }
    sum = block_sum(sum, reinterpret_cast<float *>(shared));
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

// dx = sign / (1 + exp(-sign · x)) · gradient[0] · scale
template <typename T>
__device__ void binary_back(const T *x, const float *gradient, T *dx, unsigned n, float sign, float scale) {
    float by = gradient[0] * scale * sign;
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += size_t(gridDim.x) * blockDim.x)
        dx[i] = narrow<T>(by / (1.0f + expf(-sign * widen(x[i]))));
}

#define BINARY(name, T)                                                                                                \
    KERNEL(binary_##name, const T *x, float *parts, unsigned n, float sign) { binary(x, parts, n, sign); }             \
    KERNEL(binary_back_##name, const T *x, const float *gradient, T *dx, unsigned n, float sign, float scale) {        \
        binary_back(x, gradient, dx, n, sign, scale);                                                                  \
    }
BINARY(f32, float)
BINARY(bf16, bf16)
#undef BINARY
