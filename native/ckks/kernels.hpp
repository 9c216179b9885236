// The innermost loops of CKKS over one prime: rows of N residues, one table of functions per instruction set.
//
// A row is N words of 64 bits, aligned to 64 bytes, every word in [0, q) on entry and on exit unless said otherwise.
// N is a power of two from 2^10 to 2^16. Every instruction set returns the same bits. Nothing here depends on Python
// or on any secret: rows are parts of ciphertexts, encoded weights and public keys.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace confide::ckks {

using Word = std::uint64_t;

// A prime below 2^61 that is 1 modulo 2N.
struct Modulus {
    Word value;
    unsigned bits;       // of value
    Word ratio[2];       // floor(2^128 / value), low word first
    explicit Modulus(Word value);
};

Word multiply(Word a, Word b, const Modulus &q) noexcept;  // a, b < 2^64; a b mod q
Word power(Word base, Word exponent, const Modulus &q) noexcept;
Word inverse(Word a, const Modulus &q) noexcept;  // a is not 0 modulo q

// floor(2^64 w / q) for w < q: Shoup's constant of a factor; and floor(2^52 w / q), for products of 52 bits.
Word shoup(Word w, const Modulus &q) noexcept;
Word shoup52(Word w, const Modulus &q) noexcept;

// An automorphism X -> X^element on rows in NTT form. Words of one aligned block of 8 come from one aligned block of 8.
struct Permutation {
    std::vector<std::uint32_t> block;   // N / 8: which block
    std::vector<std::uint64_t> within;  // N / 8: eight places of 8 bits, the first result in the lowest
    Permutation(std::size_t degree, std::size_t element);  // element odd, below 2N
};

struct Ring;

// The loops. Rows of different names do not overlap, unless they are the same row.
struct Kernels {
    const char *name;
    // NTT in SEAL's order: word i is the value at psi^(2 bitrev(i) + 1), psi the smallest primitive 2N-th root of 1.
    void (*forward)(const Ring &, Word *row);
    void (*inverse)(const Ring &, Word *row);
    void (*add)(const Ring &, const Word *a, const Word *b, Word *out);
    void (*subtract)(const Ring &, const Word *a, const Word *b, Word *out);
    void (*multiply)(const Ring &, const Word *a, const Word *b, Word *out);
    // out = sum a[i] b[i] over i < terms, or out += that; 1 <= terms <= 1024. Reduced once, at the end.
    void (*dot)(const Ring &, const Word *const *a, const Word *const *b, std::size_t terms, Word *out, bool add);
    // out = a times one number w < q; out may be a.
    void (*scale)(const Ring &, const Word *a, Word w, Word *out);
    // out = (a - b) w, for the division by a prime; out may be a.
    void (*subtract_scale)(const Ring &, const Word *a, const Word *b, Word w, Word *out);
    // out = (in + shift) mod q for words in below 2^61 (residues of another prime), shift < q.
    void (*reduce)(const Ring &, const Word *in, Word shift, Word *out);
    void (*permute)(const Ring &, const Permutation &, const Word *in, Word *out);
    // Whether every word is below q; takes the same time whatever the words are.
    bool (*below)(const Ring &, const Word *row);
    // The functions of the same names below, in fewer passes over the rows; may be null.
    void (*forward_from)(const Ring &, const Word *in, Word most, Word shift, Word *out);
    void (*inverse_from)(const Ring &, const Word *in, Word *out);
};

enum class Path { portable, avx2, ifma };

// The best path of this machine (CPUID), or the one that the environment variable CONFIDE_NATIVE_PATH names.
Path best_path();
bool runs_here(Path path);

// Tables for one prime and one N.
struct Ring {
    Modulus q;
    std::size_t degree;
    unsigned log_degree;
    const Kernels *kernels;  // those of `path` where the prime fits them (IFMA: below 2^50), else the portable ones
    // Roots in bit-reversed order, roots[i] = psi^bitrev(i), and of their inverses; each with its Shoup constant.
    std::vector<Word> roots, roots_shoup, inverse_roots, inverse_roots_shoup;
    Word inverse_degree;
    std::shared_ptr<const void> own;  // tables of a path in its own layout
    Ring(Word prime, std::size_t degree, Path path);
};

// out = the NTT of (in + shift) mod q, for words of in below `most` (the prime whose residues they are), shift < q;
// in and out are different rows.
void forward_from(const Ring &ring, const Word *in, Word most, Word shift, Word *out);
// out = the inverse NTT of in; different rows.
void inverse_from(const Ring &ring, const Word *in, Word *out);

extern const Kernels portable_kernels;

}  // namespace confide::ckks
