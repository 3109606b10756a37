// Adam: weights and both moments in one pass.
#include "common.cuh"

// w = keep · w - rate · m / (root · sqrt(v) + eps), in place; g is null for a gradient of zeros.
KERNEL(adam, float *__restrict__ w, const float *__restrict__ g, float *__restrict__ m, float *__restrict__ v,
       unsigned rows, unsigned columns, float beta1, float beta2, float eps, float scale, float coupled, float keep,
       float rate, float root) {
    size_t n = size_t(rows) * columns;
#pragma unroll 4
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += size_t(gridDim.x) * blockDim.x) {
        float gradient = (g ? g[i] * scale : 0.0f) + coupled * w[i];
        float mean = beta1 * m[i] + (1.0f - beta1) * gradient;
        float square = beta2 * v[i] + (1.0f - beta2) * gradient * gradient;
        m[i] = mean;
        v[i] = square;
        w[i] = keep * w[i] - rate * mean / (root * sqrtf(square) + eps);
    }
}
