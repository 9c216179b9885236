// The tables of each instruction set in its own layout; see kernels_paths.hpp. Compiled for every machine.
#include "kernels_paths.hpp"

namespace confide::ckks {

namespace {

constexpr Word range = Word{1} << 52;

// Tables and the numbers that they point into.
template <typename Tables, typename Number>
struct Held {
    Tables tables;
    std::vector<Number> numbers;
};

// Zeros from an address that is a multiple of 64.
template <typename Number>
Number *aligned(std::vector<Number> &numbers, std::size_t count) {
    numbers.assign(count + 8, Number{0});
    const auto address = reinterpret_cast<std::uintptr_t>(numbers.data());
    return numbers.data() + (64 - address % 64) % 64 / sizeof(Number);
}

std::size_t size_of_pass(unsigned log, std::size_t groups) { return groups * (std::size_t{2} << log); }

// The factors of each group of a pass as heaps: out[place] = w, out[2^log + place] = second(w).
template <typename Number, typename Second>
void fill_heaps(const std::vector<Word> &roots, unsigned log, std::size_t groups, std::size_t step, Number *out,
                const Second &second) {
    const std::size_t size = std::size_t{1} << log;
    for (std::size_t group = 0; group < groups; ++group, out += step)
        for (unsigned depth = 0; depth < log; ++depth)
            for (std::size_t i = std::size_t{1} << depth; i < std::size_t{2} << depth; ++i) {
                const Word w = roots[(groups << depth) + (group << depth) + i - (std::size_t{1} << depth)];
                out[i] = static_cast<Number>(w);
                out[size + i] = second(w);
            }
}

// The factors within the blocks of `lanes` words of each tail, after its heap: vectors, then their seconds.
template <typename Number, typename Second>
void fill_lanes(const std::vector<Word> &roots, std::size_t degree, std::size_t lanes, Number *out,
                const Second &second) {
    const std::size_t half = lanes * (lanes - 1);
    for (std::size_t tail = 0; tail < degree / lanes / lanes; ++tail, out += 2 * lanes * lanes)
        for (std::size_t place = 1; place < lanes; ++place) {
            std::size_t first = 1;
            while (2 * first <= place) first *= 2;
            for (std::size_t lane = 0; lane < lanes; ++lane) {
                const Word w = roots[(degree / lanes + lanes * tail + lane) * first + place - first];
                Number *at = out + 2 * lanes + lanes * (place - 1) + lane;
                at[0] = static_cast<Number>(w);
                at[half] = second(w);
            }
        }
}

// The factors of all passes and tails both ways, into held->numbers.
template <typename Tables, typename Number, typename Second>
void fill(const Ring &ring, unsigned lanes_log, Held<Tables, Number> &held, const Second &second) {
    Tables &tables = held.tables;
    const std::size_t n = ring.degree, lanes = std::size_t{1} << lanes_log;
    std::size_t count = 4 * n, groups = 1;
    for (unsigned i = 0; i < tables.passes.count; groups <<= tables.passes.log[i++])
        count += 2 * size_of_pass(tables.passes.log[i], groups);
    Number *out = aligned(held.numbers, count);
    // The last stage back, of one group, also divides by N.
    std::vector<Word> back = ring.inverse_roots;
    back[1] = multiply(back[1], ring.inverse_degree, ring.q);
    for (const bool inverse : {false, true}) {
        const std::vector<Word> &roots = inverse ? back : ring.roots;
        const Number **places = inverse ? tables.inverse : tables.forward;
        groups = 1;
        for (unsigned i = 0; i < tables.passes.count; ++i) {
            const unsigned log = tables.passes.log[i];
            fill_heaps(roots, log, groups, std::size_t{2} << log, out, second);
            places[i] = out;
            out += size_of_pass(log, groups);
            groups <<= log;
        }
        fill_heaps(roots, lanes_log, n / lanes / lanes, 2 * lanes * lanes, out, second);
        fill_lanes(roots, n, lanes, out, second);
        places[tables.passes.count] = out;
        out += 2 * n;
    }
}

// By log N - 10. The tail of IFMA has six stages, that of AVX2 four.
constexpr Passes ifma_passes[] = {{1, {4}},       {2, {3, 2}},    {2, {3, 3}},   {2, {3, 4}},
                                  {3, {3, 3, 2}}, {3, {3, 3, 3}}, {3, {3, 3, 4}}};
constexpr Passes avx2_passes[] = {{2, {3, 3}},       {3, {3, 2, 2}},    {3, {3, 3, 2}},   {3, {3, 3, 3}},
                                  {4, {3, 3, 2, 2}}, {4, {3, 3, 3, 2}}, {4, {3, 3, 3, 3}}};

}  // namespace

std::shared_ptr<const void> ifma_tables(const Ring &ring) {
    const Word q = ring.q.value;
    if (q >> 50) return nullptr;
    auto held = std::make_shared<Held<Ifma52, Word>>();
    Ifma52 &tables = held->tables;
    tables.q = q;
    tables.twice = 2 * q;
    tables.minus = range - q;
    for (Word i = 0; i < 33; ++i) tables.multiple[i] = i * q;
    tables.quotient = range / q;
    tables.wide = (Word{1} << 62) / q;
    tables.carry = range % q;
    tables.carry_shoup = shoup52(tables.carry, ring.q);
    tables.degree = ring.inverse_degree;
    tables.degree_shoup = shoup52(tables.degree, ring.q);
    tables.room = 4;
    while (tables.room < 32 && 2 * tables.room <= range / q) tables.room *= 2;
    tables.passes = ifma_passes[ring.log_degree - 10];
    tables.offset = 2 * ring.log_degree;
    if (2 * tables.offset + 3 <= range / q && tables.passes.log[0] == 3) tables.room = 64;
    fill(ring, 3, *held, [&ring](Word w) { return shoup52(w, ring.q); });
    return {held, &tables};
}

std::shared_ptr<const void> avx2_tables(const Ring &ring) {
    const Word q = ring.q.value;
    if (q >> 50) return nullptr;
    auto held = std::make_shared<Held<Avx2, double>>();
    Avx2 &tables = held->tables;
    tables.q = static_cast<double>(q);
    tables.degree = static_cast<double>(ring.inverse_degree);
    tables.degree_quotient = tables.degree / tables.q;
    tables.power30 = static_cast<double>(power(2, 30, ring.q));
    tables.power50 = static_cast<double>(power(2, 50, ring.q));
    tables.power76 = static_cast<double>(power(2, 76, ring.q));
    tables.passes = avx2_passes[ring.log_degree - 10];
    fill(ring, 2, *held, [q](Word w) { return static_cast<double>(w) / static_cast<double>(q); });
    return {held, &tables};
}

}  // namespace confide::ckks
