// The transforms by AVX-512-IFMA: passes of two to four stages, each block finished as far as it fits the cache, and
// the last six stages on 64 words in registers, half of them after a transposition of 8 x 8 words.
//
// Words are lazy (see kernels_ifma.hpp) and grow: a stage forward adds 2q to the bound of its words, a stage back
// doubles the bound of the sums. `Room` q is the most that fits 52 bits; the bounds are followed at compile time,
// and only words that could pass it are reduced. A prime below 2^47 is never reduced going forward (N < 2^16).
#include "kernels_paths.hpp"

#ifdef CONFIDE_CKKS_X86

#include "kernels_ifma.hpp"

namespace confide::ckks {

using namespace ifma;

namespace {

// u in [0, 4q) where Room is 4, any lazy u otherwise; to [0, 2q).
template <unsigned Room>
CONFIDE_INLINE Vector lower(Vector u, const Prime &prime) {
    if constexpr (Room == 4) return once(clean(u), prime.twice);
    return reduce(u, prime);
}

// (x, y) to (x + w y, x - w y + 2q).
template <unsigned Room, bool Lower>
CONFIDE_INLINE void butterfly(Vector &x, Vector &y, Vector w, Vector constant, const Prime &prime) {
    const Vector u = Lower ? lower<Room>(x, prime) : x;
    const Vector doubled = plus(plus(u, u), prime.twice);
    x = times(u, y, w, constant, prime.negative);
    y = minus(doubled, x);
}

// Whether the words on top are lowered before this stage: every stage where 4q is the room, every third where 8q is.
template <unsigned Room, bool Lower>
constexpr bool lowers(unsigned stage) {
    return stage == 0 ? Lower : Room == 4 || (Room == 8 && stage % 3 == 0);
}

// `Columns` independent transforms side by side, place by place: one alone would wait for its own products.
template <unsigned Log, unsigned Room, bool Lower, unsigned Columns, unsigned Stage = 0, typename Factor>
CONFIDE_INLINE void stages(Vector *r, const Factor &factor, const Prime &prime) {
    if constexpr (Stage < Log) {
        constexpr unsigned groups = 1u << Stage, half = 1u << (Log - 1 - Stage);
#pragma GCC unroll 16
        for (unsigned group = 0; group < groups; ++group)
#pragma GCC unroll 16
            for (unsigned i = 0; i < half; ++i)
#pragma GCC unroll 4
                for (unsigned column = 0; column < Columns; ++column) {
                    const unsigned place = Columns * (2 * group * half + i) + column;
                    butterfly<Room, lowers<Room, Lower>(Stage)>(r[place], r[place + Columns * half],
                                                                factor.value(groups + group, column),
                                                                factor.constant(groups + group, column), prime);
                }
        stages<Log, Room, Lower, Columns, Stage + 1>(r, factor, prime);
    }
}

// The bound of a place before a stage back, in multiples of q, if a pass starts from `in`; at `Log`, of its result.
template <unsigned Room>
constexpr unsigned bound(unsigned in, unsigned stage, unsigned place) {
    if (stage == 0) return in;
    const unsigned bit = 1u << (stage - 1);
    if (place & bit) return 2;
    const unsigned before = bound<Room>(in, stage - 1, place), other = bound<Room>(in, stage - 1, place | bit);
    return before + other <= Room ? before + other : 4;
}

template <unsigned Room>
constexpr bool fits(unsigned in, unsigned stage, unsigned place, unsigned other) {
    return bound<Room>(in, stage, place) + bound<Room>(in, stage, other) <= Room;
}

// (x, y) to (x + y, (x - y) w), the difference made positive by the bound of y.
template <unsigned Room, unsigned In, unsigned Stage, unsigned Place, bool Last>
CONFIDE_INLINE void butterfly_back(Vector &x, Vector &y, Vector w, Vector constant, const Prime &prime,
                                   const Ifma52 &tables) {
    constexpr unsigned other = Place | 1u << Stage;
    constexpr bool lowered = !fits<Room>(In, Stage, Place, other);
    constexpr unsigned most = lowered ? 2 : bound<Room>(In, Stage, other);
    const Vector u = lowered && bound<Room>(In, Stage, Place) > 2 ? lower<Room>(x, prime) : x;
    const Vector v = lowered && bound<Room>(In, Stage, other) > 2 ? lower<Room>(y, prime) : y;
    const Vector none = _mm512_setzero_si512();
    const Vector difference = plus(minus(u, v), most == 2 ? prime.twice : all(tables.multiple[most]));
    x = plus(u, v);
    y = times(none, difference, w, constant, prime.negative);
    if constexpr (Last) {
        x = once(clean(times(none, x, all(tables.degree), all(tables.degree_shoup), prime.negative)), prime.q);
        y = once(clean(y), prime.q);
    }
}

template <unsigned Log, unsigned Room, unsigned In, bool Last, unsigned Columns, unsigned Stage, unsigned Pair = 0,
          typename Factor>
CONFIDE_INLINE void pairs_back(Vector *r, const Factor &factor, const Prime &prime, const Ifma52 &tables) {
    if constexpr (Pair < 1u << (Log - 1)) {
        constexpr unsigned half = 1u << Stage, group = Pair / half, groups = 1u << (Log - 1 - Stage);
        constexpr unsigned place = 2 * group * half + Pair % half;
#pragma GCC unroll 4
        for (unsigned column = 0; column < Columns; ++column)
            butterfly_back<Room, In, Stage, place, Last && Stage + 1 == Log>(
                r[Columns * place + column], r[Columns * (place + half) + column],
                factor.value(groups + group, column), factor.constant(groups + group, column), prime, tables);
        pairs_back<Log, Room, In, Last, Columns, Stage, Pair + 1>(r, factor, prime, tables);
    }
}

template <unsigned Log, unsigned Room, unsigned In, unsigned Out, unsigned Columns, unsigned Place = 0>
CONFIDE_INLINE void settle(Vector *r, const Prime &prime) {
    if constexpr (Place < 1u << Log) {
        if constexpr (bound<Room>(In, Log, Place) > Out)
#pragma GCC unroll 4
            for (unsigned column = 0; column < Columns; ++column)
                r[Columns * Place + column] = lower<Room>(r[Columns * Place + column], prime);
        settle<Log, Room, In, Out, Columns, Place + 1>(r, prime);
    }
}

// Stages back from words below In q to words below Out q, or to the end: scaled and in [0, q).
template <unsigned Log, unsigned Room, unsigned In, unsigned Out, bool Last, unsigned Columns, unsigned Stage = 0,
          typename Factor>
CONFIDE_INLINE void stages_back(Vector *r, const Factor &factor, const Prime &prime, const Ifma52 &tables) {
    if constexpr (Stage < Log) {
        pairs_back<Log, Room, In, Last, Columns, Stage>(r, factor, prime, tables);
        stages_back<Log, Room, In, Out, Last, Columns, Stage + 1>(r, factor, prime, tables);
    } else if constexpr (!Last) {
        settle<Log, Room, In, Out, Columns>(r, prime);
    }
}

// The factors of a pass: the same for all columns.
template <unsigned Log>
struct Uniform {
    const Word *heap;
    Vector value(unsigned place, unsigned) const { return all(heap[place]); }
    Vector constant(unsigned place, unsigned) const { return all(heap[(1u << Log) + place]); }
};

// Those of tails side by side: a heap for the blocks, then vectors within them.
struct Blocks {
    const Word *factors;
    Vector value(unsigned place, unsigned column) const { return all(factors[128 * column + place]); }
    Vector constant(unsigned place, unsigned column) const { return all(factors[128 * column + 8 + place]); }
};

struct Lanes {
    const Word *factors;
    Vector value(unsigned place, unsigned column) const { return load(factors + 128 * column + 8 + 8 * place); }
    Vector constant(unsigned place, unsigned column) const { return load(factors + 128 * column + 64 + 8 * place); }
};

CONFIDE_INLINE void transpose(Vector *r, unsigned step) {
    Vector pairs[8], fours[8];
#pragma GCC unroll 4
    for (unsigned i = 0; i < 8; i += 2) {
        pairs[i] = _mm512_unpacklo_epi64(r[step * i], r[step * (i + 1)]);
        pairs[i + 1] = _mm512_unpackhi_epi64(r[step * i], r[step * (i + 1)]);
    }
    // Pieces of 128 bits: 0 2 of one and 0 2 of the other, or 1 3 and 1 3.
#pragma GCC unroll 2
    for (unsigned i = 0; i < 8; i += 4)
#pragma GCC unroll 2
        for (unsigned j = 0; j < 2; ++j) {
            fours[i + j] = _mm512_shuffle_i64x2(pairs[i + j], pairs[i + 2 + j], 0x88);
            fours[i + 2 + j] = _mm512_shuffle_i64x2(pairs[i + j], pairs[i + 2 + j], 0xDD);
        }
#pragma GCC unroll 4
    for (unsigned i = 0; i < 4; ++i) {
        r[step * i] = _mm512_shuffle_i64x2(fours[i], fours[i + 4], 0x88);
        r[step * (i + 4)] = _mm512_shuffle_i64x2(fours[i], fours[i + 4], 0xDD);
    }
}

// Sixteen registers of words at a time.
template <unsigned Log>
constexpr unsigned columns = 16u >> Log;

template <unsigned Log>
CONFIDE_INLINE void load_columns(Vector *r, const Word *block, std::size_t stride) {
#pragma GCC unroll 16
    for (unsigned i = 0; i < 16; ++i) r[i] = load(block + i / columns<Log> * stride + i % columns<Log> * 8);
}

template <unsigned Log>
CONFIDE_INLINE void store_columns(const Vector *r, Word *block, std::size_t stride) {
#pragma GCC unroll 16
    for (unsigned i = 0; i < 16; ++i) store(block + i / columns<Log> * stride + i % columns<Log> * 8, r[i]);
}

template <unsigned Log, unsigned Room, bool Lower>
void pass(const Ifma52 &tables, const Word *heap, Word *block, std::size_t stride) {
    const Prime prime(tables);
    for (std::size_t i = 0; i < stride; i += 8 * columns<Log>) {
        Vector r[16];
        load_columns<Log>(r, block + i, stride);
        stages<Log, Room, Lower, columns<Log>>(r, Uniform<Log>{heap}, prime);
        store_columns<Log>(r, block + i, stride);
    }
}

template <unsigned Log, unsigned Room, bool Last>
void pass_back(const Ifma52 &tables, const Word *heap, Word *block, std::size_t stride) {
    constexpr unsigned in = Room == 32 ? 4 : 2;
    const Prime prime(tables);
    for (std::size_t i = 0; i < stride; i += 8 * columns<Log>) {
        Vector r[16];
        load_columns<Log>(r, block + i, stride);
        stages_back<Log, Room, in, in, Last, columns<Log>>(r, Uniform<Log>{heap}, prime, tables);
        store_columns<Log>(r, block + i, stride);
    }
}

// Two tails side by side: place 2 i + j is word 8 i of block j.
template <unsigned Room, bool Lower>
void tails(const Ifma52 &tables, const Word *factors, Word *block, std::size_t count) {
    const Prime prime(tables);
    for (std::size_t tail = 0; tail < count; tail += 2, block += 128, factors += 256) {
        Vector r[16];
#pragma GCC unroll 16
        for (unsigned i = 0; i < 16; ++i) r[i] = load(block + i % 2 * 64 + i / 2 * 8);
        stages<3, Room, Lower, 2>(r, Blocks{factors}, prime);
        transpose(r, 2);
        transpose(r + 1, 2);
        stages<3, Room, Room <= 8, 2>(r, Lanes{factors}, prime);
        transpose(r, 2);
        transpose(r + 1, 2);
#pragma GCC unroll 16
        for (unsigned i = 0; i < 16; ++i) store(block + i % 2 * 64 + i / 2 * 8, exact(r[i], prime));
    }
}

template <unsigned Room>
void tails_back(const Ifma52 &tables, const Word *factors, const Word *in, Word *block, std::size_t count) {
    constexpr unsigned out = Room == 32 ? 4 : 2;
    const Prime prime(tables);
    for (std::size_t tail = 0; tail < count; tail += 2, in += 128, block += 128, factors += 256) {
        Vector r[16];
#pragma GCC unroll 16
        for (unsigned i = 0; i < 16; ++i) r[i] = load(in + i % 2 * 64 + i / 2 * 8);
        transpose(r, 2);
        transpose(r + 1, 2);
        stages_back<3, Room, 1, out, false, 2>(r, Lanes{factors}, prime, tables);
        transpose(r, 2);
        transpose(r + 1, 2);
        stages_back<3, Room, out, out, false, 2>(r, Blocks{factors}, prime, tables);
#pragma GCC unroll 16
        for (unsigned i = 0; i < 16; ++i) store(block + i % 2 * 64 + i / 2 * 8, r[i]);
    }
}

template <unsigned Room, bool Lower>
void pass_of(unsigned log, const Ifma52 &tables, const Word *heap, Word *block, std::size_t stride) {
    if (log == 2) pass<2, Room, Lower>(tables, heap, block, stride);
    if (log == 3) pass<3, Room, Lower>(tables, heap, block, stride);
    if (log == 4) pass<4, Room, Lower>(tables, heap, block, stride);
}

template <unsigned Room, bool Last>
void pass_back_of(unsigned log, const Ifma52 &tables, const Word *heap, Word *block, std::size_t stride) {
    if (log == 2) pass_back<2, Room, Last>(tables, heap, block, stride);
    if (log == 3) pass_back<3, Room, Last>(tables, heap, block, stride);
    if (log == 4) pass_back<4, Room, Last>(tables, heap, block, stride);
}

// One block of a pass, then all that follows within it. `grown` q bounds its words.
template <unsigned Room, unsigned Level>
void descend(const Ifma52 &tables, std::size_t group, Word *block, std::size_t size, unsigned grown) {
    const unsigned log = tables.passes.log[Level], parts = 1u << log;
    const Word *heap = tables.forward[Level] + 2 * parts * group;
    const bool lower = grown > 1 && (Room <= 8 || grown + 2 * log > Room);
    (lower ? pass_of<Room, true> : pass_of<Room, false>)(log, tables, heap, block, size / parts);
    const unsigned after = (lower ? 2 : grown) + 2 * log;
    if (Level + 1 == tables.passes.count) {
        const Word *factors = tables.forward[Level + 1] + 2 * group * size;
        const bool lowered = Room <= 8 || after + 12 > Room;  // six stages follow
        return (lowered ? tails<Room, true> : tails<Room, false>)(tables, factors, block, size / 64);
    }
    if constexpr (Level + 1 < most_passes)
        for (std::size_t part = 0; part < parts; ++part)
            descend<Room, Level + 1>(tables, group * parts + part, block + part * (size / parts), size / parts, after);
}

// Reads `in`, which may be the block itself.
template <unsigned Room, unsigned Level>
void ascend(const Ifma52 &tables, std::size_t group, const Word *in, Word *block, std::size_t size) {
    const unsigned log = tables.passes.log[Level], parts = 1u << log;
    const std::size_t step = size / parts;
    if (Level + 1 == tables.passes.count)
        tails_back<Room>(tables, tables.inverse[Level + 1] + 2 * group * size, in, block, size / 64);
    else if constexpr (Level + 1 < most_passes)
        for (std::size_t part = 0; part < parts; ++part)
            ascend<Room, Level + 1>(tables, group * parts + part, in + part * step, block + part * step, step);
    const Word *heap = tables.inverse[Level] + 2 * parts * group;
    (Level == 0 ? pass_back_of<Room, true> : pass_back_of<Room, false>)(log, tables, heap, block, step);
}

// The first pass, out of place: words of `in` that are shifted, and reduced from below 2^62 to lazy ones below 3q where
// `Reduced`, by a quotient that is at most two too small.
template <unsigned Log, unsigned Room, bool Reduced>
void first_pass(const Ifma52 &tables, const Word *in, Word shift, Word *out, std::size_t stride) {
    const Prime prime(tables);
    const Vector moved = all(shift), wide = all(tables.wide), none = _mm512_setzero_si512();
    for (std::size_t i = 0; i < stride; i += 8 * columns<Log>) {
        Vector r[16];
        load_columns<Log>(r, in + i, stride);
#pragma GCC unroll 16
        for (unsigned j = 0; j < 16; ++j) {
            r[j] = plus(r[j], moved);
            if constexpr (Reduced) r[j] = low(r[j], high(none, _mm512_srli_epi64(r[j], 10), wide), prime.negative);
        }
        stages<Log, Room, true, columns<Log>>(r, Uniform<Log>{tables.forward[0]}, prime);
        store_columns<Log>(r, out + i, stride);
    }
}

template <unsigned Room, bool Reduced>
void forward_of(const Ring &ring, const Word *in, Word shift, Word *out) {
    const auto &tables = *static_cast<const Ifma52 *>(ring.own.get());
    const std::size_t size = ring.degree / 8;
    first_pass<3, Room, Reduced>(tables, in, shift, out, size);
    for (std::size_t part = 0; part < 8; ++part) descend<Room, 1>(tables, part, out + part * size, size, 8);
}

template <unsigned Room>
void forward_from_of(const Ring &ring, const Word *in, Word most, Word shift, Word *out) {
    // Words below `most` and a shift below q need no reduction if they fit the room: the first pass lowers them anyway.
    if ((most - 1) / ring.q.value + 2 <= Room)
        forward_of<Room, false>(ring, in, shift, out);
    else
        forward_of<Room, true>(ring, in, shift, out);
}

}  // namespace

void ifma_forward(const Ring &ring, Word *row) {
    const auto &tables = *static_cast<const Ifma52 *>(ring.own.get());
    if (tables.room == 4) descend<4, 0>(tables, 0, row, ring.degree, 1);
    if (tables.room == 8) descend<8, 0>(tables, 0, row, ring.degree, 1);
    if (tables.room == 16) descend<16, 0>(tables, 0, row, ring.degree, 1);
    if (tables.room == 32) descend<32, 0>(tables, 0, row, ring.degree, 1);
}

void ifma_forward_from(const Ring &ring, const Word *in, Word most, Word shift, Word *out) {
    const auto &tables = *static_cast<const Ifma52 *>(ring.own.get());
    const unsigned room = tables.room;
    if (tables.passes.count == 1 || tables.passes.log[0] != 3) {  // rings smaller than any that encrypts
        ring.kernels->reduce(ring, in, shift, out);
        return ifma_forward(ring, out);
    }
    if (room == 4) forward_from_of<4>(ring, in, most, shift, out);
    if (room == 8) forward_from_of<8>(ring, in, most, shift, out);
    if (room == 16) forward_from_of<16>(ring, in, most, shift, out);
    if (room == 32) forward_from_of<32>(ring, in, most, shift, out);
}

void ifma_inverse_from(const Ring &ring, const Word *in, Word *out) {
    const auto &tables = *static_cast<const Ifma52 *>(ring.own.get());
    if (tables.room == 4) ascend<4, 0>(tables, 0, in, out, ring.degree);
    if (tables.room == 8) ascend<8, 0>(tables, 0, in, out, ring.degree);
    if (tables.room == 16) ascend<16, 0>(tables, 0, in, out, ring.degree);
    if (tables.room == 32) ascend<32, 0>(tables, 0, in, out, ring.degree);
}

void ifma_inverse(const Ring &ring, Word *row) { ifma_inverse_from(ring, row, row); }

}  // namespace confide::ckks

#endif
