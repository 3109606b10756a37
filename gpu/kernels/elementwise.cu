// Operations element by element: the end of a residual block, bias with relu and dropout, SwiGLU, scaling.
#include "common.cuh"

// A mask of dropout: see dropout.cu. Nothing is dropped where the threshold is 0.
struct Mask {
    unsigned low, high, threshold;
    float scale;
    __device__ float operator()(size_t i, float x) const {
        if (threshold == 0) return x * scale;
        return bits32(low, high, unsigned(i)) >= threshold ? x * scale : 0.0f;
    }
};

__device__ inline size_t first_element() { return size_t(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ inline size_t stride() { return size_t(gridDim.x) * blockDim.x; }

// out = x + mask · y
template <typename X, typename Y>
__device__ void residual(const X *__restrict__ x, const Y *__restrict__ y, float *__restrict__ out, size_t n,
                         Mask mask) {
#pragma unroll 4
    for (size_t i = first_element(); i < n; i += stride()) out[i] = widen(x[i]) + mask(i, widen(y[i]));
}

// dy = mask · g
template <typename T>
__device__ void residual_back(const float *__restrict__ g, T *__restrict__ dy, size_t n, Mask mask) {
#pragma unroll 4
    for (size_t i = first_element(); i < n; i += stride()) dy[i] = narrow<T>(mask(i, g[i]));
}

#define RESIDUAL(name, X, Y)                                                                                           \
    KERNEL(residual_##name, const X *x, const Y *y, float *out, unsigned rows, unsigned columns, unsigned low,         \
           unsigned high, unsigned threshold, float scale) {                                                           \
        residual(x, y, out, size_t(rows) * columns, Mask{low, high, threshold, scale});                                \
    }
RESIDUAL(f32_f32, float, float)
RESIDUAL(f32_bf16, float, bf16)
RESIDUAL(bf16_f32, bf16, float)
RESIDUAL(bf16_bf16, bf16, bf16)
#undef RESIDUAL

#define RESIDUAL_BACK(name, T)                                                                                         \
    KERNEL(residual_back_##name, const float *g, T *dy, unsigned rows, unsigned columns, unsigned low, unsigned high,  \
           unsigned threshold, float scale) {                                                                          \
        residual_back(g, dy, size_t(rows) * columns, Mask{low, high, threshold, scale});                               \
    }
RESIDUAL_BACK(f32, float)
RESIDUAL_BACK(bf16, bf16)
#undef RESIDUAL_BACK

// out = mask · relu(x + bias); bias may be null.
template <typename T>
__device__ void linear_end(const T *__restrict__ x, const float *__restrict__ bias, T *__restrict__ out, unsigned rows,
                           unsigned columns, unsigned relu, Mask mask) {
    size_t n = size_t(rows) * columns, i = first_element();
    unsigned column = unsigned(i % columns), step = unsigned(stride() % columns);
#pragma unroll 4
    for (; i < n; i += stride()) {
        float value = widen(x[i]);
        if (bias) value += bias[column];
        if (relu) value = value > 0.0f ? value : 0.0f;
        out[i] = narrow<T>(mask(i, value));
        column = column >= columns - step ? column - (columns - step) : column + step;
    }
}

// dx = g · mask; with relu the mask is where the result is above 0.
template <typename T>
__device__ void linear_end_back(const T *__restrict__ result, const T *__restrict__ g, T *__restrict__ dx, size_t n,
                                unsigned relu, Mask mask) {
#pragma unroll 4
    for (size_t i = first_element(); i < n; i += stride()) {
        float value = widen(g[i]);
        value = relu ? (widen(result[i]) > 0.0f ? value * mask.scale : 0.0f) : mask(i, value);
        dx[i] = narrow<T>(value);
    }
}

#define LINEAR_END(name, T)                                                                                            \
    KERNEL(linear_end_##name, const T *x, const float *bias, T *out, unsigned rows, unsigned columns, unsigned relu,   \
           unsigned low, unsigned high, unsigned threshold, float scale) {                                             \
        linear_end(x, bias, out, rows, columns, relu, Mask{low, high, threshold, scale});                              \
    }                                                                                                                  \
    KERNEL(linear_end_back_##name, const T *result, const T *g, T *dx, unsigned rows, unsigned columns, unsigned relu, \
           unsigned low, unsigned high, unsigned threshold, float scale) {                                             \
        linear_end_back(result, g, dx, size_t(rows) * columns, relu, Mask{low, high, threshold, scale});               \
    }
LINEAR_END(f32, float)
LINEAR_END(bf16, bf16)
#undef LINEAR_END

// out = gate / (1 + exp(-gate)) · up
template <typename T, typename O>
__device__ void swiglu(const T *__restrict__ gate, const T *__restrict__ up, O *__restrict__ out, size_t n) {
#pragma unroll 4
    for (size_t i = first_element(); i < n; i += stride()) {
        float g = widen(gate[i]);
        out[i] = narrow<O>(g / (1.0f + expf(-g)) * widen(up[i]));
    }
}

template <typename T, typename O>
__device__ void swiglu_back(const T *__restrict__ gate, const T *__restrict__ up, const O *__restrict__ grad,
                            T *__restrict__ dgate, T *__restrict__ dup, size_t n) {
#pragma unroll 4
    for (size_t i = first_element(); i < n; i += stride()) {
        float g = widen(gate[i]), d = widen(grad[i]);
        float s = 1.0f / (1.0f + expf(-g)), silu = g * s;
        dup[i] = narrow<T>(d * silu);
        dgate[i] = narrow<T>(d * widen(up[i]) * (s + silu * (1.0f - s)));
    }
}

#define SWIGLU(name, T, O)                                                                                             \
    KERNEL(swiglu_##name, const T *gate, const T *up, O *out, unsigned rows, unsigned columns) {                       \
        swiglu(gate, up, out, size_t(rows) * columns);                                                                 \
    }                                                                                                                  \
    KERNEL(swiglu_back_##name, const T *gate, const T *up, const O *grad, T *dgate, T *dup, unsigned rows,             \
           unsigned columns) {                                                                                         \
        swiglu_back(gate, up, grad, dgate, dup, size_t(rows) * columns);                                               \
    }
SWIGLU(f32_f32, float, float)
SWIGLU(f32_bf16, float, bf16)
SWIGLU(bf16_f32, bf16, float)
SWIGLU(bf16_bf16, bf16, bf16)
#undef SWIGLU

// out = x · factor[0]
template <typename T, typename O>
__device__ void scaled(const T *__restrict__ x, const float *__restrict__ factor, O *__restrict__ out, size_t n) {
    float by = factor[0];
#pragma unroll 4
    for (size_t i = first_element(); i < n; i += stride()) out[i] = narrow<O>(widen(x[i]) * by);
}

#define SCALED(name, T, O)                                                                                             \
    KERNEL(scaled_##name, const T *x, const float *factor, O *out, unsigned rows, unsigned columns) {                  \
        scaled(x, factor, out, size_t(rows) * columns);                                                                \
    }
SCALED(f32_f32, float, float)
SCALED(f32_bf16, float, bf16)
SCALED(bf16_f32, bf16, float)
SCALED(bf16_bf16, bf16, bf16)
#undef SCALED

// sum += x, or sum = x where it is the first.
template <typename T>
__device__ void add_onto(const T *__restrict__ x, float *__restrict__ sum, size_t n, unsigned first) {
#pragma unroll 4
    for (size_t i = first_element(); i < n; i += stride()) sum[i] = (first ? 0.0f : sum[i]) + widen(x[i]);
}

#define ADD_ONTO(name, T)                                                                                              \
    KERNEL(add_onto_##name, const T *x, float *sum, unsigned rows, unsigned columns, unsigned first) {                 \
        add_onto(x, sum, size_t(rows) * columns, first);                                                               \
    }
ADD_ONTO(f32, float)
ADD_ONTO(bf16, bf16)
#undef ADD_ONTO
