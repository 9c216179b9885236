// The loops other than the transforms by AVX-512-IFMA.
#include "kernels_paths.hpp"

#ifdef CONFIDE_CKKS_X86

#include "kernels_ifma.hpp"

namespace confide::ckks {

using namespace ifma;

namespace {

const Ifma52 &tables_of(const Ring &ring) { return *static_cast<const Ifma52 *>(ring.own.get()); }

void add(const Ring &ring, const Word *a, const Word *b, Word *out) {
    const Vector q = all(ring.q.value);
    for (std::size_t i = 0; i < ring.degree; i += 8) store(out + i, once(plus(load(a + i), load(b + i)), q));
}

void subtract(const Ring &ring, const Word *a, const Word *b, Word *out) {
    const Vector q = all(ring.q.value);
    for (std::size_t i = 0; i < ring.degree; i += 8) {
        const Vector difference = minus(load(a + i), load(b + i));
        store(out + i, _mm512_min_epu64(difference, plus(difference, q)));
    }
}

// Sums of products to [0, q): 2^52 top + bottom, with top < 2^58 and bottom < 2^63.
struct Fold {
    Prime prime;
    Vector carry, constant, wide;
    bool deep;  // top may pass 2^52
    Fold(const Ifma52 &tables, bool many)
        : prime(tables), carry(all(tables.carry)), constant(all(tables.carry_shoup)), wide(all(tables.wide)),
          deep(many) {}

    Vector operator()(Vector top, Vector bottom) const {
        const Vector none = _mm512_setzero_si512();
        top = plus(top, _mm512_srli_epi64(bottom, 52));
        if (deep) top = clean(low(top, high(none, _mm512_srli_epi64(top, 10), wide), prime.negative));
        // Both quotients in one sum: 2^52 top by Shoup, and the low word of bottom; below 4q.
        const Vector quotient = high(high(none, top, constant), bottom, prime.quotient);
        const Vector rest = low(low(clean(bottom), top, carry), quotient, prime.negative);
        return once(once(clean(rest), prime.twice), prime.q);
    }
};

void multiply_rows(const Ring &ring, const Word *a, const Word *b, Word *out) {
    const Fold fold(tables_of(ring), false);
    const Vector none = _mm512_setzero_si512();
    for (std::size_t i = 0; i < ring.degree; i += 8) {
        const Vector x = load(a + i), y = load(b + i);
        store(out + i, fold(high(none, x, y), low(none, x, y)));
    }
}

// Whether the high words of so many products may pass 2^52.
bool deep(Word q, std::size_t terms) {
    const Word most = (q >> 26) + 1;  // most^2 is above the high word of one product
    return terms * (most * most + 1) >> 52;
}

void dot(const Ring &ring, const Word *const *a, const Word *const *b, std::size_t terms, Word *out, bool add) {
    const Fold fold(tables_of(ring), deep(ring.q.value, terms));
    constexpr unsigned width = 8;  // vectors at a time: one stretch of 512 bytes from each row
    for (std::size_t i = 0; i < ring.degree; i += 8 * width) {
        Vector top[width], bottom[width];
#pragma GCC unroll 8
        for (unsigned j = 0; j < width; ++j) {
            top[j] = _mm512_setzero_si512();
            bottom[j] = add ? load(out + i + 8 * j) : _mm512_setzero_si512();
        }
        for (std::size_t term = 0; term < terms; ++term) {
            const Word *x = a[term] + i, *y = b[term] + i;
#pragma GCC unroll 8
            for (unsigned j = 0; j < width; ++j) {
                const Vector left = load(x + 8 * j), right = load(y + 8 * j);
                top[j] = high(top[j], left, right);
                bottom[j] = low(bottom[j], left, right);
            }
        }
#pragma GCC unroll 8
        for (unsigned j = 0; j < width; ++j) store(out + i + 8 * j, fold(top[j], bottom[j]));
    }
}

void scale(const Ring &ring, const Word *a, Word w, Word *out) {
    const Prime prime(tables_of(ring));
    const Vector factor = all(w), constant = all(shoup52(w, ring.q)), none = _mm512_setzero_si512();
    for (std::size_t i = 0; i < ring.degree; i += 8)
        store(out + i, once(clean(times(none, load(a + i), factor, constant, prime.negative)), prime.q));
}

void subtract_scale(const Ring &ring, const Word *a, const Word *b, Word w, Word *out) {
    const Prime prime(tables_of(ring));
    const Vector factor = all(w), constant = all(shoup52(w, ring.q)), none = _mm512_setzero_si512();
    for (std::size_t i = 0; i < ring.degree; i += 8) {
        const Vector difference = plus(minus(load(a + i), load(b + i)), prime.q);
        store(out + i, once(clean(times(none, difference, factor, constant, prime.negative)), prime.q));
    }
}

void reduce(const Ring &ring, const Word *in, Word shift, Word *out) {
    const Ifma52 &tables = tables_of(ring);
    const Prime prime(tables);
    const Vector moved = all(shift), wide = all(tables.wide), none = _mm512_setzero_si512();
    for (std::size_t i = 0; i < ring.degree; i += 8) {
        const Vector word = plus(load(in + i), moved);
        const Vector quotient = high(none, _mm512_srli_epi64(word, 10), wide);  // at most two too small
        const Vector rest = clean(low(word, quotient, prime.negative));
        store(out + i, once(once(rest, prime.twice), prime.q));
    }
}

void permute(const Ring &ring, const Permutation &permutation, const Word *in, Word *out) {
    const std::uint32_t *block = permutation.block.data();
    const std::uint64_t *within = permutation.within.data();
    for (std::size_t i = 0; i < ring.degree / 8; ++i) {
        const Vector places = _mm512_cvtepu8_epi64(_mm_cvtsi64_si128(static_cast<long long>(within[i])));
        store(out + 8 * i, _mm512_permutexvar_epi64(places, load(in + 8 * static_cast<std::size_t>(block[i]))));
    }
}

bool below(const Ring &ring, const Word *row) {
    const Vector q = all(ring.q.value);
    unsigned wrong = 0;
    for (std::size_t i = 0; i < ring.degree; i += 8) wrong |= _mm512_cmpge_epu64_mask(load(row + i), q);
    return wrong == 0;
}

}  // namespace

const Kernels ifma_kernels = {
    "ifma", ifma_forward,   ifma_inverse, add,     subtract, multiply_rows,     dot,
    scale,  subtract_scale, reduce,       permute, below,    ifma_forward_from, ifma_inverse_from,
};

}  // namespace confide::ckks

#endif
