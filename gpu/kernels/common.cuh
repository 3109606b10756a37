// What all kernels share. A kernel is compiled by nvcc for GPUs and, with SLUICE_SIMULATOR, by any C++ compiler for the
// simulator of the tests (simulator.h), which runs the threads of a block one after the other.
//
// Matrices are row-major. A kernel named x_f32 or x_bf16 reads and writes numbers of that type and adds in f32.
#pragma once

#ifdef SLUICE_SIMULATOR
#include "simulator.h"
#else
#include <cuda_bf16.h>
#include <mma.h>
// Declares a kernel: its name, then its parameters.
#define KERNEL(name, ...) extern "C" __global__ void name(__VA_ARGS__)
// The memory that a block shares, as bytes; a launch says how much there is.
#define SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#endif

using bf16 = __nv_bfloat16;

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(bf16 x) { return __bfloat162float(x); }

template <typename T> __device__ inline T narrow(float x);
template <> __device__ inline float narrow<float>(float x) { return x; }
template <> __device__ inline bf16 narrow<bf16>(float x) { return __float2bfloat16(x); }

// Random bits at a position: `bits32` of random.rs, to the bit.
__device__ inline unsigned mix32(unsigned x) {
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
}
__device__ inline unsigned bits32(unsigned low, unsigned high, unsigned counter) {
    return mix32(mix32(counter ^ low) + high);
}

// Sum and maximum over a warp; every lane gets the result.
__device__ inline float warp_sum(float x) {
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}
__device__ inline float warp_max(float x) {
    for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
}

// Sum and maximum over a block of whole warps, at most 1024 threads; every thread gets the result. `room` has 33 numbers.
__device__ inline float block_sum(float x, float *room) {
    x = warp_sum(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = x;
    __syncthreads();
    if (threadIdx.x < 32) {
        float sum = warp_sum(threadIdx.x < blockDim.x / 32 ? room[threadIdx.x] : 0.0f);
        if (threadIdx.x == 0) room[32] = sum;
    }
    __syncthreads();
    return room[32];
}
__device__ inline float block_max(float x, float *room) {
    x = warp_max(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = x;
    __syncthreads();
    if (threadIdx.x < 32) {
        float most = warp_max(threadIdx.x < blockDim.x / 32 ? room[threadIdx.x] : -INFINITY);
        if (threadIdx.x == 0) room[32] = most;
    }
    __syncthreads();
    return room[32];
}
