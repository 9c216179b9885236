// Every loop of every path against arithmetic by the compiler's own division of 128-bit numbers, on rows of exactly the
// right size, under the sanitizers (tests/native/test_kernels.py compiles and runs it):
//   kernels_test [repeats]        prints "the kernels match"
//   kernels_test control          spoils one word of each result: prints where it differs, and fails
//   kernels_test path             prints the best path, which CONFIDE_NATIVE_PATH may name
#include "kernels.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <stdexcept>
#include <string>

using namespace confide::ckks;

namespace {

__extension__ typedef unsigned __int128 Wide;

bool spoiled = false;  // the negative control

Word mul(Word a, Word b, Word q) { return static_cast<Word>(static_cast<Wide>(a) * b % q); }

Word raise(Word base, Word exponent, Word q) {
    Word found = 1;
    for (; exponent; exponent >>= 1, base = mul(base, base, q))
        if (exponent & 1) found = mul(found, base, q);
    return found;
}

bool is_prime(Word n) {  // Miller and Rabin; these bases decide every number below 2^64
    if (n % 2 == 0) return false;
    Word odd = n - 1;
    unsigned twos = 0;
    for (; odd % 2 == 0; odd /= 2) ++twos;
    for (const Word base : {2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37}) {
        Word power = raise(base, odd, n);
        bool passes = power == 1;
        for (unsigned i = 0; i < twos && !passes; ++i, power = mul(power, power, n)) passes = power == n - 1;
        if (!passes) return false;
    }
    return true;
}

// The largest prime below 2^bits that is 1 modulo 2N.
Word prime_below(unsigned bits, std::size_t degree) {
    Word q = (Word{1} << bits) + 1 - 2 * degree;
    while (!is_prime(q)) q -= 2 * degree;
    return q;
}

class Row {  // not a vector: the byte behind the last one is out of bounds
public:
    explicit Row(std::size_t size) : size_(size), words_(static_cast<Word *>(std::aligned_alloc(64, 8 * size))) {}
    Row(const Row &other) : Row(other.size_) { std::memcpy(words_, other.words_, 8 * size_); }
    Row &operator=(const Row &) = delete;
    ~Row() { std::free(words_); }
    Word &operator[](std::size_t i) { return words_[i]; }
    Word operator[](std::size_t i) const { return words_[i]; }
    Word *data() { return words_; }
    const Word *data() const { return words_; }
    std::size_t size() const { return size_; }

private:
    std::size_t size_;
    Word *words_;
};

using Random = std::mt19937_64;

// Words below `limit`: uniform, or the two ends only, or all the upper end.
Row random_row(Random &random, std::size_t size, Word limit) {
    Row row(size);
    const Word kind = random() % 4;
    for (std::size_t i = 0; i < size; ++i) {
        const Word word = random();
        row[i] = kind == 0 ? limit - 1 : kind == 1 ? (word & 1) * (limit - 1) : word % limit;
    }
    return row;
}

[[noreturn]] void differs(const Ring &ring, const char *what) {
    throw std::runtime_error(std::string(ring.kernels->name) + " " + what + " differs at N = 2^" +
                             std::to_string(ring.log_degree) + ", " + std::to_string(ring.q.bits) + " bits");
}

void expect(const Ring &ring, const char *what, Row &found, const std::function<Word(std::size_t)> &word) {
    if (spoiled) found[found.size() / 3] ^= 1;
    for (std::size_t i = 0; i < found.size(); ++i)
        if (found[i] != word(i)) differs(ring, what);
}

std::size_t reversed(std::size_t value, unsigned bits) {
    std::size_t found = 0;
    for (unsigned i = 0; i < bits; ++i) found |= (value >> i & 1) << (bits - 1 - i);
    return found;
}

// psi: the least of all numbers of order 2N, found among the odd powers of one.
Word least_root(const Ring &ring) {
    const Word q = ring.q.value;
    Word root = 2;
    while (raise(raise(root, (q - 1) / 2 / ring.degree, q), ring.degree, q) != q - 1) ++root;
    root = raise(root, (q - 1) / 2 / ring.degree, q);
    Word least = q, power = root;
    for (std::size_t i = 0; i < ring.degree; ++i, power = mul(power, mul(root, root, q), q))
        least = std::min(least, power);
    return least;
}

// Sampled values of the polynomial by Horner's rule, then the way back, which must be exact for all words.
void transforms(const Ring &ring, Random &random, Word psi) {
    const Word q = ring.q.value;
    const Row coefficients = random_row(random, ring.degree, q);
    Row values = coefficients;
    ring.kernels->forward(ring, values.data());
    for (unsigned sample = 0; sample < 6; ++sample) {
        const std::size_t i = sample == 0 ? 0 : sample == 1 ? ring.degree - 1 : random() % ring.degree;
        const Word point = raise(psi, 2 * reversed(i, ring.log_degree) + 1, q);
        Word value = 0;
        for (std::size_t j = ring.degree; j-- > 0;) value = (mul(value, point, q) + coefficients[j]) % q;
        if (values[i] != value + spoiled) differs(ring, "forward");
    }
    if (!ring.kernels->below(ring, values.data())) differs(ring, "range of forward");
    Row back = values;
    ring.kernels->inverse(ring, back.data());
    expect(ring, "inverse", back, [&](std::size_t i) { return coefficients[i]; });
    ring.kernels->inverse(ring, values.data());  // any row is the transform of some polynomial
    Row again = coefficients;
    ring.kernels->inverse(ring, again.data());
    ring.kernels->forward(ring, again.data());
    expect(ring, "inverse, then forward", again, [&](std::size_t i) { return coefficients[i]; });
}

void elementwise(const Ring &ring, Random &random) {
    const Word q = ring.q.value, w = random() % 4 ? random() % q : q - 1;
    const Kernels &kernels = *ring.kernels;
    const Row a = random_row(random, ring.degree, q), b = random_row(random, ring.degree, q);
    Row out(ring.degree);
    kernels.add(ring, a.data(), b.data(), out.data());
    expect(ring, "add", out, [&](std::size_t i) { return (a[i] + b[i]) % q; });
    kernels.subtract(ring, a.data(), b.data(), out.data());
    expect(ring, "subtract", out, [&](std::size_t i) { return (a[i] + q - b[i]) % q; });
    kernels.multiply(ring, a.data(), b.data(), out.data());
    expect(ring, "multiply", out, [&](std::size_t i) { return mul(a[i], b[i], q); });
    kernels.scale(ring, a.data(), w, out.data());
    expect(ring, "scale", out, [&](std::size_t i) { return mul(a[i], w, q); });
    Row place = a;
    kernels.subtract_scale(ring, place.data(), b.data(), w, place.data());
    expect(ring, "subtract_scale", place, [&](std::size_t i) { return mul(a[i] + q - b[i], w, q); });
    const Row wide = random_row(random, ring.degree, Word{1} << 61);
    for (const Word shift : {Word{0}, q - 1}) {
        kernels.reduce(ring, wide.data(), shift, out.data());
        expect(ring, "reduce", out, [&](std::size_t i) { return (wide[i] + shift) % q; });
    }
    for (const Word word : {q - 1, q, ~Word{0}}) {
        Row row = a;
        row[random() % ring.degree] = word;
        if (kernels.below(ring, row.data()) != (word < q)) differs(ring, "below");
    }
}

void sums(const Ring &ring, Random &random, std::size_t terms, bool add) {
    const Word q = ring.q.value;
    const Row rows[4] = {random_row(random, ring.degree, q), random_row(random, ring.degree, q),
                         random_row(random, ring.degree, q), random_row(random, ring.degree, q)};
    const Row start = random_row(random, ring.degree, q);
    Row out = start;
    std::vector<const Word *> a, b;
    std::vector<std::size_t> pairs(16, 0);  // how often a pair of rows is multiplied
    for (std::size_t i = 0; i < terms; ++i) {
        const std::size_t left = random() % 4, right = random() % 4;
        a.push_back(rows[left].data());
        b.push_back(rows[right].data());
        ++pairs[4 * left + right];
    }
    ring.kernels->dot(ring, a.data(), b.data(), terms, out.data(), add);
    expect(ring, "dot", out, [&](std::size_t i) {
        Word total = add ? start[i] : 0;
        for (std::size_t pair = 0; pair < 16; ++pair)
            total = (total + mul(pairs[pair], mul(rows[pair / 4][i], rows[pair % 4][i], q), q)) % q;
        return total;
    });
}

// Out of place, from residues of another prime.
void transforms_from(const Ring &ring, Random &random) {
    const Word q = ring.q.value;
    for (const Word most : {q, (Word{1} << 50) - 1, Word{1} << 61})
        for (const Word shift : {Word{0}, random() % q, q - 1}) {
            const Row in = random_row(random, ring.degree, most);
            Row expected(ring.degree), out(ring.degree);
            ring.kernels->reduce(ring, in.data(), shift, expected.data());
            ring.kernels->forward(ring, expected.data());
            forward_from(ring, in.data(), most, shift, out.data());
            expect(ring, "forward_from", out, [&](std::size_t i) { return expected[i]; });
        }
    Row in = random_row(random, ring.degree, q), out(ring.degree);
    inverse_from(ring, in.data(), out.data());
    ring.kernels->inverse(ring, in.data());
    expect(ring, "inverse_from", out, [&](std::size_t i) { return in[i]; });
}

// The permuted transform is the transform of a(X^element), reduced by X^N = -1.
void permutes(const Ring &ring, Random &random) {
    const std::size_t n = ring.degree, element = random() % (2 * n) | 1;
    const Word q = ring.q.value;
    Row a = random_row(random, n, q), moved(n), out(n);
    for (std::size_t i = 0; i < n; ++i) {
        const std::size_t exponent = i * element % (2 * n);
        moved[exponent % n] = exponent < n ? a[i] : (q - a[i]) % q;
    }
    ring.kernels->forward(ring, a.data());
    ring.kernels->forward(ring, moved.data());
    ring.kernels->permute(ring, Permutation(n, element), a.data(), out.data());
    expect(ring, "permute", out, [&](std::size_t i) { return moved[i]; });
}

void check(Word prime, std::size_t degree, Path path, const char *name, Random &random) {
    const Ring ring(prime, degree, path);
    if (std::strcmp(ring.kernels->name, ring.q.bits <= 50 ? name : "portable")) differs(ring, "choice");
    const Word psi = least_root(ring);
    for (unsigned repeat = 0; repeat < 3; ++repeat) transforms(ring, random, psi);
    transforms_from(ring, random);
    elementwise(ring, random);
    permutes(ring, random);
    for (const std::size_t terms : {1, 2, 5, 16, 17, 33, 1024})
        if (degree <= 4096 || terms <= 17) sums(ring, random, terms, terms % 2 == 1);
}

void check_all(Path path, const char *name, Random &random) {
    for (unsigned bits = 20; bits <= 61; ++bits) check(prime_below(bits, 1024), 1024, path, name, random);
    for (unsigned log = 11; log <= 16; ++log)
        for (const unsigned bits : {25u, 40u, 47u, 48u, 49u, 50u, 60u})
            check(prime_below(bits, std::size_t{1} << log), std::size_t{1} << log, path, name, random);
}

}  // namespace

int main(int argc, char **argv) {
    const std::string mode = argc > 1 ? argv[1] : "1";
    Random random(7);
    try {
        if (mode == "path") {
            std::puts(Ring(prime_below(40, 1024), 1024, best_path()).kernels->name);
            return 0;
        }
        spoiled = mode == "control";
        for (int repeat = 0; repeat < (spoiled ? 1 : std::atoi(mode.c_str())); ++repeat) {
            check_all(Path::portable, "portable", random);
            if (runs_here(Path::avx2)) check_all(Path::avx2, "avx2", random);
            if (runs_here(Path::ifma)) check_all(Path::ifma, "ifma", random);
        }
    } catch (const std::exception &error) {
        std::puts(error.what());
        return 1;
    }
    std::puts("the kernels match");
    return 0;
}
