// The transforms by AVX2 and fused multiply-adds: passes of two or three stages, each block finished as far as it
// fits the cache, and the last four stages on 16 words in registers. Between the passes a row holds doubles.
//
// Bounds are in multiples of q, with q below 2^50, so that 8q is the most that stays exact. Forward, a stage takes
// (u, y) to u +- w y, below A_u + 1/2 + 3/16 A_y. A pass whose words are below 4q lowers its upper half to 0.51q:
// then its words are below 1.8q, 2.6q, 3.6q and, in the tail of four stages, 4.8q. Back, a stage takes (u, v) to u +
// v and (u - v) w: a pass lowers all its words to 0.51q; sums double, and the tail's four stages start from q and
// are lowered half way.
#include "kernels_paths.hpp"

#ifdef CONFIDE_CKKS_X86

#include "kernels_avx2.hpp"

namespace confide::ckks {

using namespace avx2;

namespace {

template <unsigned Log, unsigned Stage, bool Lower, typename Factor>
inline void stages(Vector *r, const Factor &factor, const Prime &prime) {
    if constexpr (Stage < Log) {
        constexpr unsigned groups = 1u << Stage, half = 1u << (Log - 1 - Stage);
#pragma GCC unroll 8
        for (unsigned group = 0; group < groups; ++group) {
            const Vector w = factor.value(groups + group), quotient = factor.quotient(groups + group);
#pragma GCC unroll 8
            for (unsigned i = 0; i < half; ++i) {
                Vector &x = r[2 * group * half + i], &y = r[2 * group * half + half + i];
                const Vector u = Lower && Stage == 0 ? reduce(x, prime) : x, v = times(y, w, quotient, prime);
                x = _mm256_add_pd(u, v);
                y = _mm256_sub_pd(u, v);
            }
        }
        stages<Log, Stage + 1, Lower>(r, factor, prime);
    }
}

template <unsigned Log, unsigned Stage, typename Factor>
inline void stages_back(Vector *r, const Factor &factor, const Prime &prime) {
    if constexpr (Stage < Log) {
        constexpr unsigned groups = 1u << (Log - 1 - Stage), half = 1u << Stage;
#pragma GCC unroll 8
        for (unsigned group = 0; group < groups; ++group) {
            const Vector w = factor.value(groups + group), quotient = factor.quotient(groups + group);
#pragma GCC unroll 8
            for (unsigned i = 0; i < half; ++i) {
                Vector &x = r[2 * group * half + i], &y = r[2 * group * half + half + i];
                const Vector u = x, v = y;
                x = _mm256_add_pd(u, v);
                y = times(_mm256_sub_pd(u, v), w, quotient, prime);
            }
        }
        stages_back<Log, Stage + 1>(r, factor, prime);
    }
}

template <unsigned Log>
struct Uniform {
    const double *heap;
    Vector value(unsigned place) const { return all(heap[place]); }
    Vector quotient(unsigned place) const { return all(heap[(1u << Log) + place]); }
};

struct Lanes {
    const double *vectors;  // three factors, then their quotients
    Vector value(unsigned place) const { return _mm256_loadu_pd(vectors + 4 * (place - 1)); }
    Vector quotient(unsigned place) const { return _mm256_loadu_pd(vectors + 4 * (place + 2)); }
};

inline void transpose(Vector *r) {
    const Vector a = _mm256_unpacklo_pd(r[0], r[1]), b = _mm256_unpackhi_pd(r[0], r[1]);
    const Vector c = _mm256_unpacklo_pd(r[2], r[3]), d = _mm256_unpackhi_pd(r[2], r[3]);
    r[0] = _mm256_permute2f128_pd(a, c, 0x20);
    r[1] = _mm256_permute2f128_pd(b, d, 0x20);
    r[2] = _mm256_permute2f128_pd(a, c, 0x31);
    r[3] = _mm256_permute2f128_pd(b, d, 0x31);
}

inline Vector load(const Word *from) { return _mm256_castsi256_pd(load_words(from)); }
inline void store(Word *to, Vector numbers) { store_words(to, _mm256_castpd_si256(numbers)); }

template <unsigned Log, bool First>
void pass(const Avx2 &tables, const double *heap, Word *block, std::size_t stride) {
    const Prime prime(tables.q);
    for (std::size_t i = 0; i < stride; i += 4) {
        Vector r[1u << Log];
#pragma GCC unroll 8
        for (unsigned j = 0; j < 1u << Log; ++j)
            r[j] = First ? to_doubles(load_words(block + j * stride + i)) : load(block + j * stride + i);
        stages<Log, 0, !First>(r, Uniform<Log>{heap}, prime);
#pragma GCC unroll 8
        for (unsigned j = 0; j < 1u << Log; ++j) store(block + j * stride + i, r[j]);
    }
}

template <unsigned Log, bool Last>
void pass_back(const Avx2 &tables, const double *heap, Word *block, std::size_t stride) {
    const Prime prime(tables.q);
    const Vector degree = all(tables.degree), quotient = all(tables.degree_quotient);
    for (std::size_t i = 0; i < stride; i += 4) {
        Vector r[1u << Log];
#pragma GCC unroll 8
        for (unsigned j = 0; j < 1u << Log; ++j) r[j] = reduce(load(block + j * stride + i), prime);
        stages_back<Log, 0>(r, Uniform<Log>{heap}, prime);
#pragma GCC unroll 8
        for (unsigned j = 0; j < 1u << Log; ++j) {
            if constexpr (Last) {
                // The factors of the last stage hold 1 / N already; the sums do not.
                const Vector whole = reduce(r[j], prime);
                const Vector scaled = j < 1u << (Log - 1) ? times(whole, degree, quotient, prime) : whole;
                store_words(block + j * stride + i, to_words(positive(scaled, prime)));
            } else {
                store(block + j * stride + i, r[j]);
            }
        }
    }
}

void tails(const Avx2 &tables, const double *factors, Word *block, std::size_t count) {
    const Prime prime(tables.q);
    for (std::size_t tail = 0; tail < count; ++tail, block += 16, factors += 32) {
        Vector r[4];
#pragma GCC unroll 4
        for (unsigned j = 0; j < 4; ++j) r[j] = load(block + 4 * j);
        stages<2, 0, true>(r, Uniform<2>{factors}, prime);
        transpose(r);
        stages<2, 0, false>(r, Lanes{factors + 8}, prime);
        transpose(r);
#pragma GCC unroll 4
        for (unsigned j = 0; j < 4; ++j) store_words(block + 4 * j, to_words(positive(reduce(r[j], prime), prime)));
    }
}

void tails_back(const Avx2 &tables, const double *factors, Word *block, std::size_t count) {
    const Prime prime(tables.q);
    for (std::size_t tail = 0; tail < count; ++tail, block += 16, factors += 32) {
        Vector r[4];
#pragma GCC unroll 4
        for (unsigned j = 0; j < 4; ++j) r[j] = to_doubles(load_words(block + 4 * j));
        transpose(r);
        stages_back<2, 0>(r, Lanes{factors + 8}, prime);
        transpose(r);
#pragma GCC unroll 4
        for (unsigned j = 0; j < 4; ++j) r[j] = reduce(r[j], prime);
        stages_back<2, 0>(r, Uniform<2>{factors}, prime);
#pragma GCC unroll 4
        for (unsigned j = 0; j < 4; ++j) store(block + 4 * j, r[j]);
    }
}

// One block of a pass, then all that follows within it.
template <unsigned Level>
void descend(const Avx2 &tables, std::size_t group, Word *block, std::size_t size) {
    const unsigned log = tables.passes.log[Level], parts = 1u << log;
    const double *heap = tables.forward[Level] + 2 * parts * group;
    if (Level == 0)
        pass<3, true>(tables, heap, block, size / parts);
    else
        (log == 3 ? pass<3, false> : pass<2, false>)(tables, heap, block, size / parts);
    if (Level + 1 == tables.passes.count)
        return tails(tables, tables.forward[Level + 1] + 2 * group * size, block, size / 16);
    if constexpr (Level + 1 < most_passes)
        for (std::size_t part = 0; part < parts; ++part)
            descend<Level + 1>(tables, group * parts + part, block + part * (size / parts), size / parts);
}

template <unsigned Level>
void ascend(const Avx2 &tables, std::size_t group, Word *block, std::size_t size) {
    const unsigned log = tables.passes.log[Level], parts = 1u << log;
    if (Level + 1 == tables.passes.count)
        tails_back(tables, tables.inverse[Level + 1] + 2 * group * size, block, size / 16);
    else if constexpr (Level + 1 < most_passes)
        for (std::size_t part = 0; part < parts; ++part)
            ascend<Level + 1>(tables, group * parts + part, block + part * (size / parts), size / parts);
    const double *heap = tables.inverse[Level] + 2 * parts * group;
    if (Level == 0)
        pass_back<3, true>(tables, heap, block, size / parts);
    else
        (log == 3 ? pass_back<3, false> : pass_back<2, false>)(tables, heap, block, size / parts);
}

}  // namespace

void avx2_forward(const Ring &ring, Word *row) {
    descend<0>(*static_cast<const Avx2 *>(ring.own.get()), 0, row, ring.degree);
}

void avx2_inverse(const Ring &ring, Word *row) {
    ascend<0>(*static_cast<const Avx2 *>(ring.own.get()), 0, row, ring.degree);
}

}  // namespace confide::ckks

#endif
