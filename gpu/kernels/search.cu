// The best continuations of the beams of a search whose tokens a trie allows.
#include "common.cuh"

namespace search {

// Logarithm of the sum of exponentials of logits[n], or of those at columns[n], by the block; every thread gets it.
template <typename T> __device__ float log_sum(const T *logits, const unsigned *columns, unsigned n, float *room) {
    float most = -INFINITY, sum = 0.0f;
    for (unsigned i = threadIdx.x; i < n; i += blockDim.x) {
        float x = widen(logits[columns ? columns[i] : i]);
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

// Larger for a higher score, then for an earlier candidate; no two are equal. What is no number comes first.
__device__ inline unsigned long long order(float score, unsigned candidate) {
    unsigned bits = __float_as_uint(score);
    bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    if (score != score) bits = 0xffffffffu;
    return (static_cast<unsigned long long>(bits) << 32) | static_cast<unsigned>(~candidate);
}

} // namespace search

// Of every candidate of a row, at starts[row] up to the next start, the logarithm of its probability, and its score: that
// of the row's beam besides. Its logit is in the column columns[candidate] of `width`.
KERNEL(search_scores, const float *logits, const float *beams, const unsigned *starts, const unsigned *columns,
       float *log_probabilities, float *scores, unsigned width, unsigned among_candidates) {
    SHARED(bytes);
    const unsigned row = blockIdx.x, first = starts[row], n = starts[row + 1] - first;
    if (n == 0) return;
    const float *from = logits + size_t(row) * width;
    const unsigned *own = among_candidates ? columns + first : nullptr;
    const float total = search::log_sum(from, own, among_candidates ? n : width, reinterpret_cast<float *>(bytes));
    for (unsigned i = first + threadIdx.x; i < first + n; i += blockDim.x) {
        float of = from[columns[i]] - total;
        log_probabilities[i] = of;
        scores[i] = beams[row] + of;
    }
}

// The best candidates of a user, at starts[user] up to the next start, in no order: found is [users, places, 2], the
// candidate, 0xffffffff where there are no more, and the bits of its log-probability. The score that just so many reach
// is found digit by digit.
KERNEL(search_best, const float *scores, const float *log_probabilities, const unsigned *starts, unsigned *found,
       unsigned places) {
    SHARED(bytes);
    auto *counts = reinterpret_cast<unsigned *>(bytes); // [256], then how many, digit, how many are before it
    const unsigned user = blockIdx.x, first = starts[user], n = starts[user + 1] - first;
    unsigned long long limit = 0;
    unsigned missing = places;
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
    __syncthreads();
    unsigned *to = found + size_t(user) * places * 2;
    for (unsigned i = first + threadIdx.x; i < first + n; i += blockDim.x) {
        if (search::order(scores[i], i) < limit) continue;
        unsigned place = atomicAdd(&counts[0], 1u);
        to[2 * place] = i;
        to[2 * place + 1] = __float_as_uint(log_probabilities[i]);
    }
    for (unsigned i = n + threadIdx.x; i < places; i += blockDim.x) to[2 * i] = 0xffffffffu;
}
