// The tables of AVX-512-IFMA's own layout; see kernels_paths.hpp. Compiled for every machine.
#include "kernels_paths.hpp"

#include <initializer_list>

namespace confide::ckks {

namespace {

__extension__ typedef unsigned __int128 Wide;

constexpr Word range = Word{1} << 52;

Word shoup52(Word w, Word q) { return static_cast<Word>((static_cast<Wide>(w) << 52) / q); }

// Tables and the words that they point into.
struct Held {
    Ifma52 tables;
    std::vector<Word> words;
};

Word *aligned(std::vector<Word> &words, std::size_t count) {
    words.assign(count + 8, 0);
    const auto address = reinterpret_cast<std::uintptr_t>(words.data());
    return words.data() + (64 - address % 64) % 64 / sizeof(Word);
}

std::size_t words_of_pass(unsigned log, std::size_t groups) { return groups * (std::size_t{2} << log); }

// The factors of each group of a pass, as heaps.
void fill_pass(const std::vector<Word> &roots, Word q, unsigned log, std::size_t groups, Word *out) {
    for (std::size_t group = 0; group < groups; ++group, out += std::size_t{2} << log)
        for (unsigned depth = 0; depth < log; ++depth)
            for (std::size_t i = 0; i < std::size_t{1} << depth; ++i) {
                const Word w = roots[((groups + group) << depth) + i];
                out[(std::size_t{1} << depth) + i] = w;
                out[(std::size_t{1} << log) + (std::size_t{1} << depth) + i] = shoup52(w, q);
            }
}

void fill_tail(const std::vector<Word> &roots, Word q, std::size_t degree, Word *out) {
    for (std::size_t tail = 0; tail < degree / 64; ++tail, out += 128) {
        for (unsigned depth = 0; depth < 3; ++depth)
            for (std::size_t i = 0; i < std::size_t{1} << depth; ++i) {
                const Word w = roots[((degree / 64 + tail) << depth) + i];
                out[(std::size_t{1} << depth) + i] = w;
                out[8 + (std::size_t{1} << depth) + i] = shoup52(w, q);
            }
        for (unsigned depth = 0; depth < 3; ++depth)
            for (std::size_t i = 0; i < std::size_t{1} << depth; ++i)
                for (std::size_t lane = 0; lane < 8; ++lane) {
                    const Word w = roots[((degree / 8 + 8 * tail + lane) << depth) + i];
                    const std::size_t vector = (std::size_t{1} << depth) + i - 1;
                    out[16 + 8 * vector + lane] = w;
                    out[72 + 8 * vector + lane] = shoup52(w, q);
                }
    }
}

void fill_constants(const Ring &ring, Ifma52 &tables) {
    const Word q = ring.q.value;
    tables.q = q;
    tables.twice = 2 * q;
    tables.minus = range - q;
    for (Word i = 0; i < 33; ++i) tables.multiple[i] = i * q;
    tables.quotient = range / q;
    tables.wide = (Word{1} << 62) / q;
    tables.carry = range % q;
    tables.carry_shoup = shoup52(tables.carry, q);
    tables.degree = ring.inverse_degree;
    tables.degree_shoup = shoup52(tables.degree, q);
    for (const unsigned room : {4u, 8u, 16u, 32u})
        if (room <= range / q) tables.room = room;
    tables.passes = passes_of(ring.log_degree);
}

}  // namespace

Passes passes_of(unsigned log_degree) {
    switch (log_degree - tail_log) {
        case 4: return {1, {4}};
        case 5: return {2, {3, 2}};
        case 6: return {2, {3, 3}};
        case 7: return {2, {3, 4}};
        case 8: return {3, {3, 3, 2}};
        case 9: return {3, {3, 3, 3}};
        default: return {3, {3, 3, 4}};
    }
}

std::shared_ptr<const void> ifma_tables(const Ring &ring) {
    const Word q = ring.q.value;
    if (q >> 50) return nullptr;
    auto held = std::make_shared<Held>();
    Ifma52 &tables = held->tables;
    fill_constants(ring, tables);
    std::size_t count = 4 * ring.degree, groups = 1;
    for (unsigned i = 0; i < tables.passes.count; ++i, groups <<= tables.passes.log[i - 1])
        count += 2 * words_of_pass(tables.passes.log[i], groups);
    Word *out = aligned(held->words, count);
    // The last stage back, of one group, also divides by N.
    std::vector<Word> back = ring.inverse_roots;
    back[1] = multiply(back[1], ring.inverse_degree, ring.q);
    for (const bool inverse : {false, true}) {
        const std::vector<Word> &roots = inverse ? back : ring.roots;
        const Word **places = inverse ? tables.inverse : tables.forward;
        groups = 1;
        for (unsigned i = 0; i < tables.passes.count; ++i) {
            const unsigned log = tables.passes.log[i];
            fill_pass(roots, q, log, groups, out);
            places[i] = out;
            out += words_of_pass(log, groups);
            groups <<= log;
        }
        fill_tail(roots, q, ring.degree, out);
        places[tables.passes.count] = out;
        out += 2 * ring.degree;
    }
    return {held, &held->tables};
}

}  // namespace confide::ckks
