// Sums of weights times babies on every path, against arithmetic by the compiler's own division of 128-bit numbers, on
// rows of exactly the right size, under the sanitizers (tests/native/test_weights.py compiles and runs it):
//   weights_test            prints "the sums match"
//   weights_test control    spoils one weight: prints where it differs, and fails
#include "weights.hpp"

#include <cstdio>
#include <cstring>
#include <random>
#include <string>

using namespace confide::ckks;

namespace {

__extension__ typedef unsigned __int128 Wide;

bool is_prime(Word value) {
    const Modulus q(value);
    unsigned twos = 0;
    Word odd = value - 1;
    for (; odd % 2 == 0; odd /= 2) ++twos;
    for (const Word base : {2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37}) {
        Word found = power(base, odd, q);
        bool passes = found == 1 || found == value - 1;
        for (unsigned i = 1; !passes && i < twos; ++i) passes = (found = multiply(found, found, q)) == value - 1;
        if (!passes) return false;
    }
    return true;
}

// The largest prime below 2^bits that is 1 modulo 2N, after those that are larger than `below`.
Word prime_of(unsigned bits, std::size_t degree, Word below) {
    Word value = ((Word{1} << bits) - 1) / (2 * degree) * (2 * degree) + 1;
    while (value >= below || !is_prime(value)) value -= 2 * degree;
    return value;
}

struct Shape {
    std::size_t babies;
    std::vector<std::size_t> terms;  // of each giant step
};

bool matches(Path path, unsigned bits, const Shape &shape, bool ends, bool spoiled) {
    constexpr std::size_t degree = 1024;
    const Word q = prime_of(bits, degree, ~Word{0}), p = prime_of(bits, degree, q);
    const Context context(degree, {q}, p, path);
    std::mt19937_64 stream(bits + shape.babies);
    Pairing pairing{};
    for (const std::size_t count : shape.terms) {
        for (std::size_t term = 0; term < count; ++term)
            pairing.baby.push_back(static_cast<std::uint32_t>(stream() % shape.babies));
        pairing.end.push_back(static_cast<std::uint32_t>(pairing.baby.size()));
    }
    pairing.most = shape.babies - 1;
    WeightStream weights(context, 1, pairing);
    const std::size_t terms = pairing.baby.size(), giants = shape.terms.size();
    for (std::size_t place = 0; place < 2; ++place) {
        const Word prime = place ? p : q;
        const auto word = [&] { return ends ? prime - 1 - stream() % 2 * (prime - 1) : stream() % prime; };
        std::vector<std::vector<Word>> rows(terms, std::vector<Word>(degree)), babies(2 * shape.babies);
        for (auto &row : rows)
            for (Word &one : row) one = word();
        for (auto &row : babies)
            for (std::size_t i = 0; i < degree; ++i) row.push_back(word());
        for (std::size_t term = 0; term < terms; ++term) weights.store(context, term, place, rows[term].data());
        if (spoiled) rows[terms / 2][degree / 3] ^= 1;
        std::vector<std::vector<Word>> sums(2 * giants, std::vector<Word>(degree));
        std::vector<const Word *> in;
        std::vector<Word *> out;
        for (const auto &row : babies) in.push_back(row.data());
        for (auto &row : sums) out.push_back(row.data());
        for (std::size_t part = 0; part < 4; ++part)
            weights.sums(context, place, in.data(), part * degree / 32, (part + 1) * degree / 32, out.data());
        for (std::size_t giant = 0, term = 0; giant < giants; term = pairing.end[giant++])
            for (std::size_t polynomial = 0; polynomial < 2; ++polynomial)
                for (std::size_t i = 0; i < degree; ++i) {
                    Word expected = 0;
                    for (std::size_t one = term; one < pairing.end[giant]; ++one) {
                        const Word baby = babies[2 * pairing.baby[one] + polynomial][i];
                        const Wide product = static_cast<Wide>(baby) * rows[one][i];
                        expected = static_cast<Word>((expected + product % prime) % prime);
                    }
                    if (sums[2 * giant + polynomial][i] != expected) return false;
                }
    }
    return true;
}

}  // namespace

int main(int count, char **arguments) {
    const bool spoiled = count > 1 && std::string(arguments[1]) == "control";
    const std::vector<Shape> shapes = {{1, {1}}, {3, {2, 1, 3}}, {16, {14, 15, 29, 1}}, {40, {100, 33}}};
    for (const Path path : {Path::portable, Path::avx2, Path::ifma})
        for (const unsigned bits : {30U, 44U, 49U, 50U, 51U, 60U})
            for (const Shape &shape : shapes)
                for (const bool ends : {false, true})
                    if (runs_here(path) && !matches(path, bits, shape, ends, spoiled)) {
                        std::printf("differs at %u bits, %zu babies\n", bits, shape.babies);
                        return 1;
                    }
    std::puts("the sums match");
    return 0;
}
