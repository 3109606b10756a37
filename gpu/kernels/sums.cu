// Sums in a fixed order: over the rows of a matrix, of a vector, of squares.
#include "common.cuh"

// out[group][column] = sum of a column over a group of `each` rows. A block has 32 columns of the group blockIdx.y, and
// shares as many numbers as it has threads.
template <typename T>
__device__ void column_sums(const T *x, float *out, unsigned rows, unsigned columns, unsigned each) {
    SHARED(shared);
    float *parts = reinterpret_cast<float *>(shared);
    unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    unsigned column = blockIdx.x * 32 + lane, first = blockIdx.y * each, end = min(rows, first + each);
    float sum = 0.0f;
    if (column < columns)
        for (unsigned row = first + warp; row < end; row += warps) sum += widen(x[size_t(row) * columns + column]);
    parts[threadIdx.x] = sum;
    __syncthreads();
    if (warp == 0 && column < columns) {
        for (unsigned i = 1; i < warps; i++) sum += parts[i * 32 + lane];
        out[size_t(blockIdx.y) * columns + column] = sum;
    }
}

KERNEL(column_sums_f32, const float *x, float *out, unsigned rows, unsigned columns, unsigned each) {
    column_sums(x, out, rows, columns, each);
}
KERNEL(column_sums_bf16, const bf16 *x, float *out, unsigned rows, unsigned columns, unsigned each) {
    column_sums(x, out, rows, columns, each);
}

// out[0] = scale · sum of x[n], by one block.
__device__ inline void total_of(const float *x, float *out, unsigned n, float scale) {
    SHARED(shared);
    float sum = 0.0f;
    for (unsigned i = threadIdx.x; i < n; i += blockDim.x) sum += x[i];
    sum = block_sum(sum, reinterpret_cast<float *>(shared));
    if (threadIdx.x == 0) out[0] = scale * sum;
}
KERNEL(total, const float *x, float *out, unsigned n, float scale) { total_of(x, out, n, scale); }

// out[first + block] = the block's share of the sum of squares of x [rows, columns].
__device__ inline void squares_of(const float *x, float *out, size_t n, unsigned first) {
    SHARED(shared);
    float sum = 0.0f;
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += size_t(gridDim.x) * blockDim.x)
        sum += x[i] * x[i];
    sum = block_sum(sum, reinterpret_cast<float *>(shared));
    if (threadIdx.x == 0) out[first + blockIdx.x] = sum;
}
KERNEL(squares, const float *x, float *out, unsigned rows, unsigned columns, unsigned first) {
    squares_of(x, out, size_t(rows) * columns, first);
}
