// RMS norm and layer norm by rows, forward and backward. A team of threads has a row: a warp, or a block for long rows.
#include "common.cuh"

template <bool WARP> __device__ float team_sum(float x, float *room) { return WARP ? warp_sum(x) : block_sum(x, room); }

// The mean of a row where it is `centred`, else 0.
template <bool WARP, typename T>
__device__ float row_mean(const T *x, unsigned columns, bool centred, unsigned lane, unsigned lanes, float *room) {
    if (!centred) return 0.0f;
    float sum = 0.0f;
#pragma unroll 4
    for (unsigned i = lane; i < columns; i += lanes) sum += widen(x[i]);
    return team_sum<WARP>(sum, room) / columns;
}

// out = (x - mean) / sqrt(mean square + eps) · w
template <bool WARP, typename T>
__device__ void norm(const T *__restrict__ x, const float *__restrict__ w, float *__restrict__ out, unsigned rows,
                     unsigned columns, float eps, unsigned centred) {
    SHARED(shared);
    float *room = reinterpret_cast<float *>(shared);
    unsigned lanes = WARP ? 32 : blockDim.x, lane = threadIdx.x % lanes;
    unsigned row = blockIdx.x * (blockDim.x / lanes) + threadIdx.x / lanes;
    if (row >= rows) return;
    x += size_t(row) * columns;
    out += size_t(row) * columns;
    float mean = row_mean<WARP>(x, columns, centred, lane, lanes, room);
    float sum = 0.0f;
#pragma unroll 4
    for (unsigned i = lane; i < columns; i += lanes) {
        float value = widen(x[i]) - mean;
        sum += value * value;
    }
    float r = 1.0f / sqrtf(team_sum<WARP>(sum, room) / columns + eps);
#pragma unroll 4
    for (unsigned i = lane; i < columns; i += lanes) out[i] = (widen(x[i]) - mean) * r * w[i];
}

// Gradients from that of the result, g. A team goes over many rows and adds up its share of dw in shared memory; dw
// gets a row of shares of every block. Where dx or dw is null it is not wanted.
template <bool WARP, typename T>
__device__ void norm_back(const T *__restrict__ x, const float *__restrict__ w, const float *__restrict__ g,
                          T *__restrict__ dx, float *__restrict__ dw, unsigned rows, unsigned columns, float eps,
                          unsigned centred) {
    SHARED(shared);
    float *room = reinterpret_cast<float *>(shared), *shares = room + 64;
    unsigned lanes = WARP ? 32 : blockDim.x, lane = threadIdx.x % lanes;
    unsigned teams = blockDim.x / lanes, team = threadIdx.x / lanes;
    float *share = shares + team * columns;
#pragma unroll 4
    for (unsigned i = lane; i < columns; i += lanes) share[i] = 0.0f;
    for (size_t row = size_t(blockIdx.x) * teams + team; row < rows; row += size_t(gridDim.x) * teams) {
        const T *from = x + row * columns;
        const float *grad = g + row * columns;
        float mean = row_mean<WARP>(from, columns, centred, lane, lanes, room);
        float square = 0.0f, dot = 0.0f, sum = 0.0f;
#pragma unroll 4
        for (unsigned i = lane; i < columns; i += lanes) {
            float value = widen(from[i]) - mean, gw = grad[i] * w[i];
            square += value * value;
            dot += gw * value;
            sum += gw;
        }
        float r = 1.0f / sqrtf(team_sum<WARP>(square, room) / columns + eps);
        float along = team_sum<WARP>(dot, room) * r * r / columns;
        float shift = centred ? team_sum<WARP>(sum, room) / columns : 0.0f;
#pragma unroll 4
        for (unsigned i = lane; i < columns; i += lanes) {
            float value = widen(from[i]) - mean;
            share[i] += grad[i] * value * r;
            if (dx) dx[row * columns + i] = narrow<T>(r * (grad[i] * w[i] - shift - value * along));
        }
    }
    if (!dw) return;
    __syncthreads();
    for (unsigned i = threadIdx.x; i < columns; i += blockDim.x) {
        float sum = 0.0f;
        for (unsigned k = 0; k < teams; k++) sum += shares[k * columns + i];
        dw[size_t(blockIdx.x) * columns + i] = sum;
    }
}

#define NORM(name, WARP, T)                                                                                            \
    KERNEL(norm_##name, const T *x, const float *w, float *out, unsigned rows, unsigned columns, float eps,            \
           unsigned centred) {                                                                                         \
        norm<WARP>(x, w, out, rows, columns, eps, centred);                                                            \
    }                                                                                                                  \
    KERNEL(norm_back_##name, const T *x, const float *w, const float *g, T *dx, float *dw, unsigned rows,              \
           unsigned columns, float eps, unsigned centred) {                                                            \
        norm_back<WARP>(x, w, g, dx, dw, rows, columns, eps, centred);                                                 \
    }
NORM(warp_f32, true, float)
NORM(warp_bf16, true, bf16)
NORM(block_f32, false, float)
NORM(block_bf16, false, bf16)
#undef NORM
