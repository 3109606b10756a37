// The best continuations of the beams of a search whose tokens a trie allows.
#include "common.cuh"

namespace search {

// Logarithm of the sum of exponentials of logits[n], or of those at tokens[n], by the block; every thread gets it.
template <typename T> __device__ float log_sum(const T *logits, const unsigned *tokens, unsigned n, float *room) {
    float most = -INFINITY, sum = 0.0f;
    for (unsigned i = threadIdx.x; i < n; i += blockDim.x) {
        float x = widen(logits[tokens ? tokens[i] : i]);
        if (x > most) {
            sum = sum * expf(most - x) + 1.0f;
            most = x;
        } else if (x != -INFINITY) {
            sum += expf(x - most);
        }
    }
    float all = block_max(most, room);
    sum = block_sum(most == -INFINITY ? sum : sum * expf(most - all), room);
    return all + logf(sum);
}

// scores[i] of row's candidate i: the score of its prefix and the logarithm of its probability.
template <typename T>
__device__ void scores(const T *logits, const float *prefix, const unsigned *children, const unsigned *tokens,
                       float *out, unsigned columns, unsigned among_children) {
    SHARED(bytes);
    const unsigned row = blockIdx.x, first = children[row], n = children[row + 1] - first;
    if (n == 0) return;
    const T *from = logits + size_t(row) * columns;
    const unsigned *own = among_children ? tokens + first : nullptr;
    const float total = log_sum(from, own, among_children ? n : columns, reinterpret_cast<float *>(bytes));
    for (unsigned i = threadIdx.x; i < n; i += blockDim.x)
        out[first + i] = prefix[row] + (widen(from[tokens[first + i]]) - total);
}

// Larger for a higher score, then for an earlier candidate; no two are equal. What is no number comes first.
__device__ inline unsigned long long order(float score, unsigned candidate) {
    unsigned bits = __float_as_uint(score);
    bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    if (score != score) bits = 0xffffffffu;
    return (static_cast<unsigned long long>(bits) << 32) | static_cast<unsigned>(~candidate);
}

} // namespace search

KERNEL(search_scores_f32, const float *logits, const float *prefix, const unsigned *children, const unsigned *tokens,
       float *out, unsigned columns, unsigned among_children) {
    search::scores(logits, prefix, children, tokens, out, columns, among_children);
}
KERNEL(search_scores_bf16, const bf16 *logits, const float *prefix, const unsigned *children, const unsigned *tokens,
       float *out, unsigned columns, unsigned among_children) {
    search::scores(logits, prefix, children, tokens, out, columns, among_children);
}

// A user's best candidates in order, [users, places]: score, row and candidate. The limit that just so many reach is
// found digit by digit; what reaches it is sorted. `room` is the least power of 2 that is no less than `places`.
KERNEL(search_best, const float *scores, const unsigned *children, const unsigned *users, float *best, unsigned *rows,
       unsigned *candidates, unsigned places, unsigned room) {
    SHARED(bytes);
    auto *keys = reinterpret_cast<unsigned long long *>(bytes);
    auto *counts = reinterpret_cast<unsigned *>(keys + room); // [256], then how many, digit, how many are before it
    const unsigned user = blockIdx.x, first_row = users[user], end_row = users[user + 1];
    const unsigned first = children[first_row], n = children[end_row] - first;
    const unsigned wanted = min(n, places);

    unsigned long long limit = 0;
    unsigned missing = wanted;
    for (int shift = 56; shift >= 0 && n > places; shift -= 8) {
        for (unsigned i = threadIdx.x; i < 256; i += blockDim.x) counts[i] = 0;
        __syncthreads();
        for (unsigned i = threadIdx.x; i < n; i += blockDim.x) {
            unsigned long long key = search::order(scores[first + i], first + i);
            if (shift == 56 || (key >> (shift + 8)) == (limit >> (shift + 8)))
                atomicAdd(&counts[(key >> shift) & 255], 1u);
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            unsigned digit = 255, before = 0;
            while (before + counts[digit] < missing) before += counts[digit--];
            counts[256] = counts[digit];
            counts[257] = digit;
            counts[258] = before;
        }
        __syncthreads();
        limit |= static_cast<unsigned long long>(counts[257]) << shift;
        missing -= counts[258];
        const bool all = counts[256] == missing;
        __syncthreads();
        if (all) break;
    }

    if (threadIdx.x == 0) counts[0] = 0;
    for (unsigned i = threadIdx.x; i < room; i += blockDim.x) keys[i] = 0;
    __syncthreads();
    for (unsigned i = threadIdx.x; i < n; i += blockDim.x) {
        unsigned long long key = search::order(scores[first + i], first + i);
        if (key >= limit) keys[atomicAdd(&counts[0], 1u)] = key;
    }
    __syncthreads();
    for (unsigned size = 2; size <= room; size *= 2) {
        for (unsigned step = size / 2; step > 0; step /= 2) {
            for (unsigned i = threadIdx.x; i < room; i += blockDim.x) {
                const unsigned other = i ^ step;
                if (other < i) continue;
                const unsigned long long x = keys[i], y = keys[other];
                if ((x < y) == ((i & size) == 0)) keys[i] = y, keys[other] = x;
            }
            __syncthreads();
        }
    }
    for (unsigned i = threadIdx.x; i < places; i += blockDim.x) {
        const size_t at = size_t(user) * places + i;
        const unsigned candidate = ~static_cast<unsigned>(keys[i]);
        // The last row whose candidates start no later.
        unsigned low = first_row, high = end_row;
        while (i < wanted && high - low > 1) {
            unsigned middle = low + (high - low) / 2;
            if (children[middle] <= candidate) low = middle;
            else high = middle;
        }
        best[at] = i < wanted ? scores[candidate] : -INFINITY;
        rows[at] = i < wanted ? low : 0xffffffffu;
        candidates[at] = i < wanted ? candidate : 0xffffffffu;
    }
}
