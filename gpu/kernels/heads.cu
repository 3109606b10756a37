// Heads normed, rotated to their positions and repeated, forward and backward. A warp has a head of a row.
#include "common.cuh"

// How the heads of one source lie: x is [rows, heads·k], the joint result [rows, wide], where they start at `skipped`.
struct Layout {
    unsigned rows, heads, k, repeat, wide, skipped;
};

// Pairs of a head that stands at `position`, in place: (i, i + k/2) by its angle, or back by it where sign is -1.
__device__ inline void turn(float *head, const float *cosines, const float *sines, unsigned position, unsigned k,
                            float sign, unsigned lane) {
    unsigned pairs = k / 2;
    for (unsigned i = lane; i < pairs; i += 32) {
        float c = cosines[size_t(position) * pairs + i], s = sign * sines[size_t(position) * pairs + i];
        float a = head[i], b = head[i + pairs];
        head[i] = a * c - b * s;
        head[i + pairs] = b * c + a * s;
    }
}

// `gain` [k] is null without a norm, `cosines` [positions, k/2] without a rotation. A block shares k numbers per warp.
template <typename T>
__device__ void heads(const T *x, const float *gain, const float *cosines, const float *sines,
                      const unsigned *positions, float *out, Layout at, float eps) {
    SHARED(shared);
    unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float *head = reinterpret_cast<float *>(shared) + warp * at.k;
    size_t index = size_t(blockIdx.x) * (blockDim.x / 32) + warp;
    if (index >= size_t(at.rows) * at.heads) return;
    unsigned row = unsigned(index / at.heads), which = unsigned(index % at.heads);
    const T *from = x + index * at.k;
    float r = 1.0f;
    if (gain) {
        float sum = 0.0f;
        for (unsigned i = lane; i < at.k; i += 32) sum += widen(from[i]) * widen(from[i]);
        r = 1.0f / sqrtf(warp_sum(sum) / at.k + eps);
    }
    for (unsigned i = lane; i < at.k; i += 32) head[i] = gain ? widen(from[i]) * r * gain[i] : widen(from[i]);
    __syncwarp();
    if (cosines) turn(head, cosines, sines, positions[row], at.k, 1.0f, lane);
    __syncwarp();
    float *to = out + size_t(row) * at.wide + at.skipped + size_t(which) * at.repeat * at.k;
    for (unsigned copy = 0; copy < at.repeat; copy++)
        for (unsigned i = lane; i < at.k; i += 32) to[copy * at.k + i] = head[i];
}

// Gradients from that of the joint result, g. dgain gets a row of shares of every block; where it is null it is not
// wanted. A block shares 2 k numbers per warp.
template <typename T>
__device__ void heads_back(const T *x, const float *gain, const float *cosines, const float *sines,
                           const unsigned *positions, const float *g, T *dx, float *dgain, Layout at, float eps) {
    SHARED(shared);
    unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    float *head = reinterpret_cast<float *>(shared) + warp * at.k;
    float *shares = reinterpret_cast<float *>(shared) + warps * at.k, *share = shares + warp * at.k;
    for (unsigned i = lane; i < at.k; i += 32) share[i] = 0.0f;
    size_t count = size_t(at.rows) * at.heads;
    for (size_t index = size_t(blockIdx.x) * warps + warp; index < count; index += size_t(gridDim.x) * warps) {
        unsigned row = unsigned(index / at.heads), which = unsigned(index % at.heads);
        const float *grad = g + size_t(row) * at.wide + at.skipped + size_t(which) * at.repeat * at.k;
        __syncwarp();
        for (unsigned i = lane; i < at.k; i += 32) {
            float sum = grad[i];
            for (unsigned copy = 1; copy < at.repeat; copy++) sum += grad[copy * at.k + i];
            head[i] = sum;
        }
        __syncwarp();
        if (cosines) turn(head, cosines, sines, positions[row], at.k, -1.0f, lane);
        __syncwarp();
        const T *from = x + index * at.k;
        float r = 1.0f, along = 0.0f;
        if (gain) {
            float square = 0.0f, dot = 0.0f;
            for (unsigned i = lane; i < at.k; i += 32) {
                float value = widen(from[i]);
                square += value * value;
                dot += head[i] * gain[i] * value;
            }
            r = 1.0f / sqrtf(warp_sum(square) / at.k + eps);
            along = warp_sum(dot) * r * r / at.k;
        }
        for (unsigned i = lane; i < at.k; i += 32) {
            float value = widen(from[i]), grad = head[i];
            share[i] += grad * value * r;
            if (dx) dx[index * at.k + i] = narrow<T>(gain ? r * (grad * gain[i] - value * along) : grad);
        }
    }
    if (!dgain) return;
    __syncthreads();
    for (unsigned i = threadIdx.x; i < at.k; i += blockDim.x) {
        float sum = 0.0f;
        for (unsigned w = 0; w < warps; w++) sum += shares[w * at.k + i];
        dgain[size_t(blockIdx.x) * at.k + i] = sum;
    }
}

#define HEADS(name, T)                                                                                                 \
    KERNEL(heads_##name, const T *x, const float *gain, const float *cosines, const float *sines,                      \
           const unsigned *positions, float *out, unsigned rows, unsigned count, unsigned k, unsigned repeat,          \
           unsigned wide, unsigned skipped, float eps) {                                                               \
        heads(x, gain, cosines, sines, positions, out, Layout{rows, count, k, repeat, wide, skipped}, eps);            \
    }                                                                                                                  \
    KERNEL(heads_back_##name, const T *x, const float *gain, const float *cosines, const float *sines,                 \
           const unsigned *positions, const float *g, T *dx, float *dgain, unsigned rows, unsigned count, unsigned k,  \
           unsigned repeat, unsigned wide, unsigned skipped, float eps) {                                              \
        Layout at{rows, count, k, repeat, wide, skipped};                                                              \
        heads_back(x, gain, cosines, sines, positions, g, dx, dgain, at, eps);                                         \
    }
HEADS(f32, float)
HEADS(bf16, bf16)
#undef HEADS
