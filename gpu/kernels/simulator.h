// CUDA's execution model on a CPU, for tests where there is no GPU: blocks run one after the other, the threads of a
// block as fibres that yield at barriers and shuffles. The order in which threads run can be turned round and shuffled, so
// that a missing barrier shows. Memory that a block shares starts as NaN. What it cannot show: timing, and what only the
// hardware's memory model does.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <ucontext.h>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)

struct Dim3 {
    unsigned x = 1, y = 1, z = 1;
};

namespace simulator {

inline Dim3 thread, block, block_size, grid_size;
inline unsigned char *shared = nullptr;

enum class State { Ready, AtBlock, AtWarp, Done };

struct Fibre {
    ucontext_t context;
    State state = State::Done;
    std::vector<unsigned char> stack;
};

constexpr size_t STACK = 256 << 10;

inline std::vector<Fibre> fibres;
inline std::vector<uint64_t> slots;
inline ucontext_t scheduler;
inline unsigned current = 0;
inline std::function<void()> body;

inline void yield(State state) {
    unsigned self = current;
    fibres[self].state = state;
    swapcontext(&fibres[self].context, &scheduler);
}

inline void enter() {
    body();
    fibres[current].state = State::Done;
    swapcontext(&fibres[current].context, &scheduler);
}

// Runs a block; false if some threads wait for others that never come.
inline bool run_block(unsigned threads, unsigned order) {
    if (fibres.size() < threads) fibres.resize(threads);
    slots.assign(threads, 0);
    for (unsigned i = 0; i < threads; i++) {
        Fibre &fibre = fibres[i];
        fibre.stack.resize(STACK);
        getcontext(&fibre.context);
        fibre.context.uc_stack.ss_sp = fibre.stack.data();
        fibre.context.uc_stack.ss_size = STACK;
        fibre.context.uc_link = nullptr;
        makecontext(&fibre.context, enter, 0);
        fibre.state = State::Ready;
    }
    for (unsigned round = 0;; round++) {
        bool ran = false;
        for (unsigned i = 0; i < threads; i++) {
            unsigned at = i;
            if (order == 1) at = threads - 1 - i;
            if (order == 2) at = (i * 7919u + round * 31u) % threads;
            if (order == 2 && threads % 7919u == 0) at = i;
            if (fibres[at].state != State::Ready) continue;
            ran = true;
            current = at;
            thread = {at % block_size.x, at / block_size.x % block_size.y, at / block_size.x / block_size.y};
            swapcontext(&scheduler, &fibres[at].context);
        }
        bool released = false;
        for (unsigned first = 0; first < threads; first += 32) {
            bool all = true, any = false;
            for (unsigned i = first; i < threads && i < first + 32; i++) {
                all &= fibres[i].state == State::AtWarp || fibres[i].state == State::Done;
                any |= fibres[i].state == State::AtWarp;
            }
            for (unsigned i = first; all && any && i < threads && i < first + 32; i++)
                if (fibres[i].state == State::AtWarp) fibres[i].state = State::Ready, released = true;
        }
        bool all = true, any = false;
        for (unsigned i = 0; i < threads; i++) {
            all &= fibres[i].state == State::AtBlock || fibres[i].state == State::Done;
            any |= fibres[i].state == State::AtBlock;
        }
        for (unsigned i = 0; all && any && i < threads; i++)
            if (fibres[i].state == State::AtBlock) fibres[i].state = State::Ready, released = true;
        if (!ran && !released) break;
    }
    for (unsigned i = 0; i < threads; i++)
        if (fibres[i].state != State::Done) return false;
    return true;
}

using Call = std::function<void(void **)>;

inline std::map<std::string, Call> &kernels() {
    static std::map<std::string, Call> all;
    return all;
}

struct Registered {
    template <typename... A> Registered(const char *name, void (*kernel)(A...)) {
        kernels()[name] = [kernel](void **arguments) { call(kernel, arguments, std::index_sequence_for<A...>{}); };
    }
    template <typename... A, size_t... I>
    static void call(void (*kernel)(A...), void **arguments, std::index_sequence<I...>) {
        kernel(*static_cast<std::remove_const_t<A> *>(arguments[I])...);
    }
};

// What a lane has, from another lane of its warp.
template <typename T> T shuffle(T value, unsigned from) {
    static_assert(sizeof(T) <= 8);
    unsigned first = current / 32 * 32;
    slots[current] = 0;
    std::memcpy(&slots[current], &value, sizeof(T));
    yield(State::AtWarp);
    T other = value;
    if (first + from < slots.size()) std::memcpy(&other, &slots[first + from], sizeof(T));
    yield(State::AtWarp);
    return other;
}

} // namespace simulator

#define threadIdx simulator::thread
#define blockIdx simulator::block
#define blockDim simulator::block_size
#define gridDim simulator::grid_size

#define KERNEL(name, ...)                                                                                              \
    void name(__VA_ARGS__);                                                                                            \
    static const simulator::Registered registered_##name(#name, name);                                                 \
    void name(__VA_ARGS__)
#define SHARED(name) unsigned char *name = simulator::shared

inline void __syncthreads() { simulator::yield(simulator::State::AtBlock); }
inline void __syncwarp(unsigned = 0xffffffffu) { simulator::yield(simulator::State::AtWarp); }
template <typename T> T __shfl_xor_sync(unsigned, T value, int lanes) {
    return simulator::shuffle(value, (simulator::current % 32) ^ lanes);
}
template <typename T> T __shfl_sync(unsigned, T value, int lane) { return simulator::shuffle(value, lane % 32); }
template <typename T> T __shfl_down_sync(unsigned, T value, int lanes) {
    unsigned from = simulator::current % 32 + lanes;
    return simulator::shuffle(value, from < 32 ? from : simulator::current % 32);
}
inline int atomicAdd(int *at, int by) { return std::exchange(*at, *at + by); }
inline unsigned atomicAdd(unsigned *at, unsigned by) { return std::exchange(*at, *at + by); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline unsigned __float_as_uint(float x) {
    unsigned bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}
inline float __uint_as_float(unsigned bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}
using std::max;
using std::min;

struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

struct __nv_bfloat16 {
    uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 x) { return __uint_as_float(unsigned(x.bits) << 16); }
inline __nv_bfloat16 __float2bfloat16(float x) {
    unsigned bits = __float_as_uint(x);
    if (std::isnan(x)) return {uint16_t((bits >> 16) | 64)};
    return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

// Products of tiles of 16 x 16 x 16 by tensor cores. Here every lane holds the whole tile, and all of them write it.
namespace nvcuda::wmma {

struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
struct col_major;
enum layout_t { mem_row_major, mem_col_major };

template <typename Use, int M, int N, int K, typename T, typename Layout = void> struct fragment {
    static constexpr int num_elements = 256;
    T x[256]; // element (row, column) at row * 16 + column
};

template <typename Use, typename T, typename Layout>
void load_matrix_sync(fragment<Use, 16, 16, 16, T, Layout> &f, const T *from, unsigned stride) {
    constexpr bool rows = std::is_same_v<Layout, row_major>;
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++) f.x[i * 16 + j] = rows ? from[i * stride + j] : from[j * stride + i];
}
template <typename T>
void load_matrix_sync(fragment<accumulator, 16, 16, 16, T> &f, const T *from, unsigned stride, layout_t layout) {
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++)
            f.x[i * 16 + j] = layout == mem_row_major ? from[i * stride + j] : from[j * stride + i];
}
template <typename T>
void store_matrix_sync(T *to, const fragment<accumulator, 16, 16, 16, T> &f, unsigned stride, layout_t layout) {
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++)
            (layout == mem_row_major ? to[i * stride + j] : to[j * stride + i]) = f.x[i * 16 + j];
}
template <typename F, typename T> void fill_fragment(F &f, T value) {
    for (auto &x : f.x) x = value;
}
template <typename A, typename B, typename C>
void mma_sync(C &d, const A &a, const B &b, const C &c) {
    C sum = c;
    float left[256], right[256];
    for (int i = 0; i < 256; i++) left[i] = __bfloat162float(a.x[i]), right[i] = __bfloat162float(b.x[i]);
    for (int i = 0; i < 16; i++)
        for (int k = 0; k < 16; k++)
            for (int j = 0; j < 16; j++) sum.x[i * 16 + j] += left[i * 16 + k] * right[k * 16 + j];
    d = sum;
}

} // namespace nvcuda::wmma

// Runs a kernel. 0 is success, 1 an unknown kernel, 2 threads that wait for others that never come.
extern "C" int simulate(const char *name, const unsigned *grid, unsigned threads, unsigned bytes, void **arguments,
                        unsigned order) {
    auto found = simulator::kernels().find(name);
    if (found == simulator::kernels().end()) return 1;
    std::vector<unsigned char> shared(bytes + 128);
    simulator::shared = shared.data() + (128 - reinterpret_cast<uintptr_t>(shared.data()) % 128) % 128;
    simulator::block_size = {threads, 1, 1};
    simulator::grid_size = {grid[0], grid[1], grid[2]};
    simulator::body = [&] { found->second(arguments); };
    for (unsigned z = 0; z < grid[2]; z++)
        for (unsigned y = 0; y < grid[1]; y++)
            for (unsigned x = 0; x < grid[0]; x++) {
                simulator::block = {x, y, z};
                std::memset(simulator::shared, 0xff, bytes);
                if (!simulator::run_block(threads, order)) return 2;
            }
    return 0;
}
