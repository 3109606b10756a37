// Dropout with the masks of the CPU's kernels: an element's mask is a function of the key and its place.
#include "common.cuh"

template <typename T>
__device__ void dropout(const T *x, T *out, unsigned n, unsigned low, unsigned high, unsigned threshold, float scale) {
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += size_t(gridDim.x) * blockDim.x)
        out[i] = bits32(low, high, unsigned(i)) >= threshold ? narrow<T>(widen(x[i]) * scale) : narrow<T>(0.0f);
}

// out[n] = x[n] · mask · scale
KERNEL(dropout_f32, const float *x, float *out, unsigned n, unsigned low, unsigned high, unsigned threshold,
       float scale) {
    dropout(x, out, n, low, high, threshold, scale);
}
KERNEL(dropout_bf16, const bf16 *x, bf16 *out, unsigned n, unsigned low, unsigned high, unsigned threshold,
       float scale) {
    dropout(x, out, n, low, high, threshold, scale);
}
