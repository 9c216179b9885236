// The loops other than the transforms by AVX2 and fused multiply-adds.
#include "kernels_paths.hpp"

#ifdef CONFIDE_CKKS_X86

#include "kernels_avx2.hpp"

namespace confide::ckks {

using namespace avx2;

namespace {

const Avx2 &tables_of(const Ring &ring) { return *static_cast<const Avx2 *>(ring.own.get()); }

// (-q, q) to [0, q).
Words positive(Words a, Words q) {
    return _mm256_add_epi64(a, _mm256_and_si256(_mm256_cmpgt_epi64(_mm256_setzero_si256(), a), q));
}

Words exact(Vector a, const Prime &prime) { return to_words(avx2::positive(avx2::reduce(a, prime), prime)); }

void add(const Ring &ring, const Word *a, const Word *b, Word *out) {
    const Words q = all_words(ring.q.value);
    for (std::size_t i = 0; i < ring.degree; i += 4) {
        const Words sum = _mm256_add_epi64(load_words(a + i), load_words(b + i));
        store_words(out + i, positive(_mm256_sub_epi64(sum, q), q));
    }
}

void subtract(const Ring &ring, const Word *a, const Word *b, Word *out) {
    const Words q = all_words(ring.q.value);
    for (std::size_t i = 0; i < ring.degree; i += 4)
        store_words(out + i, positive(_mm256_sub_epi64(load_words(a + i), load_words(b + i)), q));
}

void multiply_rows(const Ring &ring, const Word *a, const Word *b, Word *out) {
    const Prime prime(tables_of(ring).q);
    for (std::size_t i = 0; i < ring.degree; i += 4) {
        const Vector whole = product(to_doubles(load_words(a + i)), to_doubles(load_words(b + i)), prime);
        store_words(out + i, to_words(avx2::positive(whole, prime)));
    }
}

// Sums of products of halves of 25 bits, each sum below 2^62, to [0, q).
Words folded(Words bottom, Words middle, Words top, const Prime &prime, const Avx2 &tables) {
    const Words half = all_words((Word{1} << 25) - 1), low = all_words((Word{1} << 26) - 1);
    middle = _mm256_add_epi64(middle, _mm256_srli_epi64(bottom, 25));
    top = _mm256_add_epi64(top, _mm256_srli_epi64(middle, 25));
    const Words rest = _mm256_or_si256(_mm256_slli_epi64(_mm256_and_si256(middle, half), 25),
                                       _mm256_and_si256(bottom, half));
    const Vector first = product(to_doubles(_mm256_and_si256(top, low)), all(tables.power50), prime);
    const Vector second = product(to_doubles(_mm256_srli_epi64(top, 26)), all(tables.power76), prime);
    return exact(_mm256_add_pd(_mm256_add_pd(first, second), avx2::reduce(to_doubles(rest), prime)), prime);
}

void dot(const Ring &ring, const Word *const *a, const Word *const *b, std::size_t terms, Word *out, bool add) {
    const Avx2 &tables = tables_of(ring);
    const Prime prime(tables.q);
    const Words half = all_words((Word{1} << 25) - 1), none = _mm256_setzero_si256();
    constexpr unsigned width = 2;
    for (std::size_t i = 0; i < ring.degree; i += 4 * width) {
        Words bottom[width], middle[width], top[width];
#pragma GCC unroll 2
        for (unsigned j = 0; j < width; ++j) {
            bottom[j] = add ? load_words(out + i + 4 * j) : none;
            middle[j] = top[j] = none;
        }
        for (std::size_t term = 0; term < terms; ++term) {
#pragma GCC unroll 2
            for (unsigned j = 0; j < width; ++j) {
                const Words x = load_words(a[term] + i + 4 * j), y = load_words(b[term] + i + 4 * j);
                const Words x0 = _mm256_and_si256(x, half), x1 = _mm256_srli_epi64(x, 25);
                const Words y0 = _mm256_and_si256(y, half), y1 = _mm256_srli_epi64(y, 25);
                bottom[j] = _mm256_add_epi64(bottom[j], _mm256_mul_epu32(x0, y0));
                middle[j] = _mm256_add_epi64(
                    middle[j], _mm256_add_epi64(_mm256_mul_epu32(x0, y1), _mm256_mul_epu32(x1, y0)));
                top[j] = _mm256_add_epi64(top[j], _mm256_mul_epu32(x1, y1));
            }
        }
#pragma GCC unroll 2
        for (unsigned j = 0; j < width; ++j)
            store_words(out + i + 4 * j, folded(bottom[j], middle[j], top[j], prime, tables));
    }
}

void scale(const Ring &ring, const Word *a, Word w, Word *out) {
    const Prime prime(tables_of(ring).q);
    const Vector factor = all(static_cast<double>(w));
    for (std::size_t i = 0; i < ring.degree; i += 4) {
        const Vector whole = product(to_doubles(load_words(a + i)), factor, prime);
        store_words(out + i, to_words(avx2::positive(whole, prime)));
    }
}

void subtract_scale(const Ring &ring, const Word *a, const Word *b, Word w, Word *out) {
    const Prime prime(tables_of(ring).q);
    const Vector factor = all(static_cast<double>(w));
    for (std::size_t i = 0; i < ring.degree; i += 4) {
        const Vector difference = _mm256_sub_pd(to_doubles(load_words(a + i)), to_doubles(load_words(b + i)));
        store_words(out + i, to_words(avx2::positive(product(difference, factor, prime), prime)));
    }
}

void reduce_rows(const Ring &ring, const Word *in, Word shift, Word *out) {
    const Avx2 &tables = tables_of(ring);
    const Prime prime(tables.q);
    const Words moved = all_words(shift), low = all_words((Word{1} << 30) - 1);
    const Vector power = all(tables.power30);
    for (std::size_t i = 0; i < ring.degree; i += 4) {
        const Words word = _mm256_add_epi64(load_words(in + i), moved);
        const Vector top = to_doubles(_mm256_srli_epi64(word, 30));
        const Vector rest = to_doubles(_mm256_and_si256(word, low));
        store_words(out + i, exact(_mm256_add_pd(product(top, power, prime), rest), prime));
    }
}

void permute(const Ring &ring, const Permutation &permutation, const Word *in, Word *out) {
    portable_kernels.permute(ring, permutation, in, out);
}

bool below(const Ring &ring, const Word *row) { return portable_kernels.below(ring, row); }

}  // namespace

const Kernels avx2_kernels = {"avx2", avx2_forward,   avx2_inverse, add,     subtract, multiply_rows, dot,
                              scale,  subtract_scale, reduce_rows,  permute, below,    nullptr, nullptr};

}  // namespace confide::ckks

#endif
