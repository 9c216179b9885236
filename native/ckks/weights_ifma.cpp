// Sums of weights times babies by AVX-512-IFMA, for primes below 2^50; see weights.hpp.
#include "weights.hpp"

#include "kernels_paths.hpp"

#ifdef CONFIDE_CKKS_X86

#include "unpacking_ifma.hpp"

namespace confide::ckks {

using namespace ifma;

namespace {

constexpr std::size_t most_terms = 14;  // with a residue carried on, upper halves stay below 2^52 - 2^12

void sums(const Ring &ring, const Pairing &pairing, const Word *const *babies, const std::uint8_t *weights,
          std::size_t from, std::size_t to, Word *const *outs) {
    const Unpacking unpacked;
    const Fold fold(*static_cast<const Ifma52 *>(ring.own.get()));
    const Vector none = _mm512_setzero_si512();
    const std::uint32_t *baby = pairing.baby.data(), *end = pairing.end.data();
    const std::size_t terms = pairing.baby.size(), giants = pairing.end.size(), stride = terms * packed_bytes;
    const std::size_t rows = 2 * (1 + pairing.most);
    for (std::size_t block = from; block < to; block += 2) {  // two blocks at a time: eight sums hide their latency
        const std::size_t at = 8 * block;
        for (std::size_t row = 0; row < rows; ++row) {  // more streams than the hardware follows
            _mm_prefetch(reinterpret_cast<const char *>(babies[row] + at + 16), _MM_HINT_T0);
            _mm_prefetch(reinterpret_cast<const char *>(babies[row] + at + 24), _MM_HINT_T0);
        }
        const std::uint8_t *one = weights + block * stride, *other = one + stride;
        for (std::size_t giant = 0, term = 0; giant < giants; ++giant) {
            Vector bottom[4] = {none, none, none, none};
            while (term < end[giant]) {
                const std::size_t stop = term + most_terms < end[giant] ? term + most_terms : end[giant];
                Vector top[4] = {none, none, none, none};
                for (; term < stop; ++term, one += packed_bytes, other += packed_bytes) {
                    _mm_prefetch(reinterpret_cast<const char *>(one + 1536), _MM_HINT_T0);
                    _mm_prefetch(reinterpret_cast<const char *>(other + 1536), _MM_HINT_T0);
                    const Word *first = babies[2 * std::size_t{baby[term]}] + at;
                    const Word *second = babies[2 * std::size_t{baby[term]} + 1] + at;
                    const Vector left = unpacked(one), right = unpacked(other);
                    const Vector a = load(first), b = load(first + 8), c = load(second), d = load(second + 8);
                    top[0] = high(top[0], a, left);
                    bottom[0] = low(bottom[0], a, left);
                    top[1] = high(top[1], b, right);
                    bottom[1] = low(bottom[1], b, right);
                    top[2] = high(top[2], c, left);
                    bottom[2] = low(bottom[2], c, left);
                    top[3] = high(top[3], d, right);
                    bottom[3] = low(bottom[3], d, right);
                }
                for (unsigned i = 0; i < 4; ++i) bottom[i] = fold(top[i], bottom[i]);
            }
            store(outs[2 * giant] + at, bottom[0]);
            store(outs[2 * giant] + at + 8, bottom[1]);
            store(outs[2 * giant + 1] + at, bottom[2]);
            store(outs[2 * giant + 1] + at + 8, bottom[3]);
        }
    }
}

}  // namespace

const WeightLoops ifma_weight_loops = {packed_bytes, sums};

}  // namespace confide::ckks

#endif
