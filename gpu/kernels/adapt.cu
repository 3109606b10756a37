// The end of a linear map with a low-rank adapter: its product is read once and written once.
#include "common.cuh"

// A block has ROWS x COLUMNS of the result, a warp HEIGHT rows of it, a lane WIDTH columns, 32 apart. Of the rank, DEEP
// numbers at a time are in shared memory.
constexpr unsigned ADAPT_ROWS = 64, ADAPT_COLUMNS = 128, ADAPT_DEEP = 32, ADAPT_HEIGHT = 8, ADAPT_WIDTH = 4;

// out = y + bias + scale · low [rows, rank] · upᵀ [rank, columns]; bias may be null.
template <typename T>
__device__ void adapt(const T *y, const float *bias, const T *low, const T *up, T *out, unsigned rows, unsigned columns,
                      unsigned rank, float scale) {
    SHARED(shared);
    constexpr unsigned PAD = ADAPT_COLUMNS + 1;
    float *lows = reinterpret_cast<float *>(shared);  // [ROWS][DEEP]
    float *ups = lows + ADAPT_ROWS * ADAPT_DEEP;      // [DEEP][PAD]
    unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    unsigned first_row = blockIdx.y * ADAPT_ROWS, first_column = blockIdx.x * ADAPT_COLUMNS;
    float sums[ADAPT_HEIGHT][ADAPT_WIDTH] = {};
    for (unsigned from = 0; from < rank; from += ADAPT_DEEP) {
        unsigned k = from + lane;
        __syncthreads();
        for (unsigned i = warp; i < ADAPT_ROWS; i += blockDim.x / 32) {
            bool inside = first_row + i < rows && k < rank;
            lows[i * ADAPT_DEEP + lane] = inside ? widen(low[size_t(first_row + i) * rank + k]) : 0.0f;
        }
        for (unsigned i = warp; i < ADAPT_COLUMNS; i += blockDim.x / 32) {
            bool inside = first_column + i < columns && k < rank;
            ups[lane * PAD + i] = inside ? widen(up[size_t(first_column + i) * rank + k]) : 0.0f;
        }
        __syncthreads();
        unsigned deep = min(ADAPT_DEEP, rank - from);
        for (unsigned k = 0; k < deep; k++) {
            float right[ADAPT_WIDTH];
            for (unsigned j = 0; j < ADAPT_WIDTH; j++) right[j] = ups[k * PAD + lane + 32 * j];
            for (unsigned i = 0; i < ADAPT_HEIGHT; i++) {
                float left = lows[(warp * ADAPT_HEIGHT + i) * ADAPT_DEEP + k];
                for (unsigned j = 0; j < ADAPT_WIDTH; j++) sums[i][j] += left * right[j];
            }
        }
    }
    for (unsigned i = 0; i < ADAPT_HEIGHT; i++) {
        unsigned row = first_row + warp * ADAPT_HEIGHT + i;
        for (unsigned j = 0; j < ADAPT_WIDTH; j++) {
            unsigned column = first_column + lane + 32 * j;
            if (row >= rows || column >= columns) continue;
            size_t at = size_t(row) * columns + column;
            float value = widen(y[at]) + scale * sums[i][j];
            out[at] = narrow<T>(bias ? value + bias[column] : value);
        }
    }
}

KERNEL(adapt_f32, const float *y, const float *bias, const float *low, const float *up, float *out, unsigned rows,
       unsigned columns, unsigned rank, float scale) {
    adapt(y, bias, low, up, out, rows, columns, rank, scale);
}
KERNEL(adapt_bf16, const bf16 *y, const float *bias, const bf16 *low, const bf16 *up, bf16 *out, unsigned rows,
       unsigned columns, unsigned rank, float scale) {
    adapt(y, bias, low, up, out, rows, columns, rank, scale);
}
