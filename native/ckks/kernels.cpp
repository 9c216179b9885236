// Tables, arithmetic of single words, and the portable loops; see kernels.hpp.
#include "kernels_paths.hpp"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <utility>

namespace confide::ckks {

namespace {

__extension__ typedef unsigned __int128 Wide;

Word high(Word a, Word b) noexcept { return static_cast<Word>(static_cast<Wide>(a) * b >> 64); }

std::size_t reversed(std::size_t value, unsigned bits) noexcept {
    std::size_t found = 0;
    for (unsigned place = 0; place < bits; ++place) found |= (value >> place & 1) << (bits - 1 - place);
    return found;
}

Word reduced(Wide value, const Modulus &q) noexcept {
    // Barrett: the quotient by floor(2^128 / q) is at most one too small.
    const Word low = static_cast<Word>(value), top = static_cast<Word>(value >> 64);
    const Wide middle = static_cast<Wide>(low) * q.ratio[1] + high(low, q.ratio[0]);
    const Wide other = static_cast<Wide>(top) * q.ratio[0] + static_cast<Word>(middle);
    const Word quotient = top * q.ratio[1] + static_cast<Word>(middle >> 64) + static_cast<Word>(other >> 64);
    const Word rest = low - quotient * q.value;
    return rest >= q.value ? rest - q.value : rest;
}

// a w mod q in [0, 2q), for any a.
Word lazily(Word a, Word w, Word constant, Word q) noexcept { return a * w - high(a, constant) * q; }

Word once(Word a, Word q) noexcept { return a >= q ? a - q : a; }

// Harvey's butterflies: words stay below 4q going forward and below 2q going back.
void forward(const Ring &ring, Word *row) {
    const Word q = ring.q.value, twice = 2 * q;
    for (std::size_t groups = 1, half = ring.degree / 2; half > 0; groups *= 2, half /= 2)
        for (std::size_t group = 0; group < groups; ++group) {
            const Word w = ring.roots[groups + group], constant = ring.roots_shoup[groups + group];
            Word *x = row + 2 * group * half, *y = x + half;
            for (std::size_t i = 0; i < half; ++i) {
                const Word u = once(x[i], twice), v = lazily(y[i], w, constant, q);
                x[i] = u + v;
                y[i] = u + twice - v;
            }
        }
    for (std::size_t i = 0; i < ring.degree; ++i) row[i] = once(once(row[i], twice), q);
}

void inverse(const Ring &ring, Word *row) {
    const Word q = ring.q.value, twice = 2 * q;
    for (std::size_t groups = ring.degree / 2, half = 1; groups > 0; groups /= 2, half *= 2)
        for (std::size_t group = 0; group < groups; ++group) {
            const Word w = ring.inverse_roots[groups + group], constant = ring.inverse_roots_shoup[groups + group];
            Word *x = row + 2 * group * half, *y = x + half;
            for (std::size_t i = 0; i < half; ++i) {
                const Word u = x[i], v = y[i];
                x[i] = once(u + v, twice);
                y[i] = lazily(u + twice - v, w, constant, q);
            }
        }
    const Word w = ring.inverse_degree, constant = shoup(w, ring.q);
    for (std::size_t i = 0; i < ring.degree; ++i) row[i] = once(lazily(row[i], w, constant, q), q);
}

void add(const Ring &ring, const Word *a, const Word *b, Word *out) {
    for (std::size_t i = 0; i < ring.degree; ++i) out[i] = once(a[i] + b[i], ring.q.value);
}

void subtract(const Ring &ring, const Word *a, const Word *b, Word *out) {
    for (std::size_t i = 0; i < ring.degree; ++i) out[i] = once(a[i] + ring.q.value - b[i], ring.q.value);
}

void multiply_rows(const Ring &ring, const Word *a, const Word *b, Word *out) {
    for (std::size_t i = 0; i < ring.degree; ++i) out[i] = multiply(a[i], b[i], ring.q);
}

void dot(const Ring &ring, const Word *const *a, const Word *const *b, std::size_t terms, Word *out, bool add) {
    constexpr std::size_t most = 32;  // products below 2^122 that a wide word holds, with room to spare
    for (std::size_t i = 0; i < ring.degree; ++i) {
        Wide total = add ? out[i] : 0;
        for (std::size_t term = 0; term < terms; ++term) {
            total += static_cast<Wide>(a[term][i]) * b[term][i];
            if (term % most == most - 1) total = reduced(total, ring.q);
        }
        out[i] = reduced(total, ring.q);
    }
}

void scale(const Ring &ring, const Word *a, Word w, Word *out) {
    const Word constant = shoup(w, ring.q), q = ring.q.value;
    for (std::size_t i = 0; i < ring.degree; ++i) out[i] = once(lazily(a[i], w, constant, q), q);
}

void subtract_scale(const Ring &ring, const Word *a, const Word *b, Word w, Word *out) {
    const Word constant = shoup(w, ring.q), q = ring.q.value;
    for (std::size_t i = 0; i < ring.degree; ++i) out[i] = once(lazily(a[i] + q - b[i], w, constant, q), q);
}

void reduce(const Ring &ring, const Word *in, Word shift, Word *out) {
    const Word q = ring.q.value;
    for (std::size_t i = 0; i < ring.degree; ++i) {
        const Word word = in[i] + shift;
        const Word rest = word - high(word, ring.q.ratio[1]) * q;
        out[i] = once(once(rest, 2 * q), q);
    }
}

void permute(const Ring &ring, const Permutation &permutation, const Word *in, Word *out) {
    for (std::size_t block = 0; block < ring.degree / 8; ++block) {
        const Word *from = in + 8 * static_cast<std::size_t>(permutation.block[block]);
        const std::uint64_t places = permutation.within[block];
        for (unsigned i = 0; i < 8; ++i) out[8 * block + i] = from[places >> (8 * i) & 7];
    }
}

bool below(const Ring &ring, const Word *row) {
    Word wrong = 0;
    for (std::size_t i = 0; i < ring.degree; ++i) wrong |= row[i] >= ring.q.value;
    return wrong == 0;
}

// The smallest primitive 2N-th root of 1: SEAL's choice.
Word smallest_root(const Modulus &q, std::size_t degree) {
    const Word exponent = (q.value - 1) / (2 * degree);
    // Half of all numbers below a prime do; a modulus that is none may have no such root at all.
    for (Word candidate = 2; candidate < 256; ++candidate) {
        const Word root = power(candidate, exponent, q);
        if (power(root, degree, q) != q.value - 1) continue;
        const Word square = multiply(root, root, q);
        Word least = root, other = root;
        for (std::size_t i = 1; i < degree; ++i) {  // all odd powers
            other = multiply(other, square, q);
            if (other < least) least = other;
        }
        return least;
    }
    throw std::invalid_argument("Expected a prime that is 1 modulo 2N");
}

}  // namespace

const Kernels portable_kernels = {"portable", forward,        inverse, add,     subtract, multiply_rows, dot,
                                  scale,      subtract_scale, reduce,  permute, below, nullptr, nullptr};

Modulus::Modulus(Word prime) : value(prime), bits(0), ratio{0, 0} {
    if (prime < 3 || prime >> 61) throw std::invalid_argument("Expected a prime below 2^61");
    while (bits < 64 && prime >> bits) ++bits;
    const Wide all = ~static_cast<Wide>(0);  // 2^128 - 1, and an odd prime does not divide 2^128
    ratio[0] = static_cast<Word>(all / prime);
    ratio[1] = static_cast<Word>(all / prime >> 64);
}

Word multiply(Word a, Word b, const Modulus &q) noexcept { return reduced(static_cast<Wide>(a) * b, q); }

Word power(Word base, Word exponent, const Modulus &q) noexcept {
    Word found = 1;
    for (base = multiply(base, 1, q); exponent; exponent >>= 1, base = multiply(base, base, q))
        if (exponent & 1) found = multiply(found, base, q);
    return found;
}

Word inverse(Word a, const Modulus &q) noexcept { return power(a, q.value - 2, q); }

Word shoup(Word w, const Modulus &q) noexcept { return static_cast<Word>((static_cast<Wide>(w) << 64) / q.value); }

Word shoup52(Word w, const Modulus &q) noexcept { return shoup(w, q) >> 12; }

Permutation::Permutation(std::size_t degree, std::size_t element) : block(degree / 8), within(degree / 8) {
    unsigned bits = 0;
    while (std::size_t{1} << bits < degree) ++bits;
    for (std::size_t i = 0; i < degree; ++i) {
        const std::size_t exponent = (2 * reversed(i, bits) + 1) * element & (2 * degree - 1);
        const std::size_t from = reversed((exponent - 1) / 2, bits);
        block[i / 8] = static_cast<std::uint32_t>(from / 8);
        within[i / 8] |= static_cast<std::uint64_t>(from % 8) << (8 * (i % 8));
    }
}

void forward_from(const Ring &ring, const Word *in, Word most, Word shift, Word *out) {
    if (ring.kernels->forward_from) return ring.kernels->forward_from(ring, in, most, shift, out);
    ring.kernels->reduce(ring, in, shift, out);
    ring.kernels->forward(ring, out);
}

void inverse_from(const Ring &ring, const Word *in, Word *out) {
    if (ring.kernels->inverse_from) return ring.kernels->inverse_from(ring, in, out);
    std::memcpy(out, in, ring.degree * sizeof(Word));
    ring.kernels->inverse(ring, out);
}

bool runs_here(Path path) {
#ifdef CONFIDE_CKKS_X86
    __builtin_cpu_init();
    if (path == Path::avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (path == Path::ifma)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512ifma");
#endif
    return path == Path::portable;
}

Path best_path() {
    const char *named = std::getenv("CONFIDE_NATIVE_PATH");
    for (const auto &[name, path] : {std::pair{"portable", Path::portable}, {"avx2", Path::avx2}, {"ifma", Path::ifma}})
        if (named && std::strcmp(named, name) == 0) {
            if (!runs_here(path)) throw std::invalid_argument("Expected an instruction set that this machine has");
            return path;
        }
    if (named && *named) throw std::invalid_argument("Expected CONFIDE_NATIVE_PATH to be portable, avx2 or ifma");
    for (const Path path : {Path::ifma, Path::avx2})
        if (runs_here(path)) return path;
    return Path::portable;
}

Ring::Ring(Word prime, std::size_t size, Path path)
    : q(prime), degree(size), log_degree(0), kernels(&portable_kernels), roots(size), roots_shoup(size),
      inverse_roots(size), inverse_roots_shoup(size) {
    while (std::size_t{1} << log_degree < degree) ++log_degree;
    if (log_degree < 10 || log_degree > 16 || std::size_t{1} << log_degree != degree)
        throw std::invalid_argument("Expected a ring degree that is a power of two from 2^10 to 2^16");
    if ((prime - 1) % (2 * degree)) throw std::invalid_argument("Expected a prime that is 1 modulo 2N");
    if (!runs_here(path)) throw std::invalid_argument("Expected an instruction set that this machine has");
    const Word root = smallest_root(q, degree), back = confide::ckks::inverse(root, q);
    Word forth = 1, behind = 1;
    for (std::size_t i = 0; i < degree; ++i) {
        const std::size_t place = reversed(i, log_degree);
        roots[place] = forth;
        inverse_roots[place] = behind;
        forth = multiply(forth, root, q);
        behind = multiply(behind, back, q);
    }
    for (std::size_t i = 0; i < degree; ++i) {
        roots_shoup[i] = shoup(roots[i], q);
        inverse_roots_shoup[i] = shoup(inverse_roots[i], q);
    }
    inverse_degree = confide::ckks::inverse(degree, q);
#ifdef CONFIDE_CKKS_X86
    if (path == Path::ifma) own = ifma_tables(*this);
    if (path == Path::avx2) own = avx2_tables(*this);
    if (own) kernels = path == Path::ifma ? &ifma_kernels : &avx2_kernels;
#endif
}

}  // namespace confide::ckks
