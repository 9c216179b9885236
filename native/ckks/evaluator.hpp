// CKKS on SEAL's numbers: operations on ciphertexts, encoded weights and public keys; no secret comes here.
//
// A ciphertext at the level with l limbs is [polynomial][limb][N] words without gaps, in NTT form, aligned to 64 bytes,
// every word below its prime. A plaintext is [limb][N]. "Extended" forms have one limb more, the special prime p,
// behind the others: [polynomial][l + 1][N]; they hold p times a ciphertext, modulo q_0 .. q_(l-1) p.
//
// Functions allocate nothing, throw nothing and keep nothing; they write `out` and `scratch` alone, so threads may
// work at the same time on different ones. Arguments do not overlap unless it is said. Who calls has checked levels
// and sizes. `scratch` has `scratch_words` words, aligned to 64 bytes, and holds nothing between calls.
//
// Whatever SEAL has (add .. rotate) returns SEAL's bits. What SEAL lacks ("hoisted", "extended") decrypts alike; see
// the bound below.
//
// Noise. Let B bound the coefficients of a key's errors and N those of s by 1. A key switch of c at l limbs takes
// digits d_i = c mod q_i and yields, divided by p, an error E = sum_i d_i e_i / p + r_0 + r_1 s, |r| <= 1/2.
//   * SEAL permutes c by the automorphism g and then takes digits in [0, q_i), so |E| <= sum_i N q_i B / p + (N+1) / 2
//     =: K.  (Every product of two polynomials sums N terms; a division by p rounds by at most 1/2.)
//   * Hoisting takes the digits of c and permutes those: g(d_i) has coefficients in (-q_i, q_i), and g(d_i) = g(c)
//     modulo q_i, which is all that the key asks of a digit, for its message is 0 modulo the other primes. So the same
//     key serves, the digit differs from SEAL's by 0 or q_i in each coefficient, and the bound is K again.
//   * A sum of products of T rotations with plaintexts w_t in extended form divides once: |E| <= sum_t N |w_t| (K -
//     (N + 1) / 2) + (N + 1) / 2, where SEAL's rotations, multiplied and summed, have sum_t N |w_t| K. The extended
//     form p c_0 adds no error: p c_0 / p is exact.
//   * A giant step (`rotate_extended_sum`) divides its second polynomial alone before it decomposes it: |E| <= K - 1/2
//     without the last division, which is one for all giant steps: 1/2 of it is the division's of the second
//     polynomial, times s. So G giant steps have at most G (K - 1/2) + (N + 1) / 2, against SEAL's G K.
// Paper: Bossuat, Mouchet, Troncoso-Pastoriza, Hubaux, EUROCRYPT 2021 (double hoisting); Halevi and Shoup, CRYPTO 2018.
#pragma once

#include "keys.hpp"
#include "pool.hpp"

namespace confide::ckks {

// Words of scratch that any function here needs at the level with `limbs`, if its pool has so many threads.
std::size_t scratch_words(const Context &context, std::size_t limbs, std::size_t threads = 1) noexcept;

// --- without keys ----------------------------------------------------------------------------------------------------

// out may be a, b or both.
void add(const Context &, std::size_t limbs, std::size_t polynomials, const Word *a, const Word *b, Word *out);
void subtract(const Context &, std::size_t limbs, std::size_t polynomials, const Word *a, const Word *b,
              Word *out);
// out = a + plain; out may be a.
void add_plain(const Context &, std::size_t limbs, std::size_t polynomials, const Word *a, const Word *plain,
               Word *out);
// out = a * plain; out may be a.
void multiply_plain(const Context &, std::size_t limbs, std::size_t polynomials, const Word *a, const Word *plain,
                    Word *out);
// out [3] = a [2] * b [2]; b may be a.
void multiply(const Context &, std::size_t limbs, const Word *a, const Word *b, Word *out);
// out = sum of ciphers[t] * plains[t] over t < terms, or out += that; each sum is reduced once. All are extended forms,
// plaintexts too, where `extended`.
void inner(const Context &, std::size_t limbs, bool extended, std::size_t polynomials, const Word *const *ciphers,
           const Word *const *plains, std::size_t terms, Word *out, bool add);
// Keeps the first `to` limbs.
void drop(const Context &, std::size_t limbs, std::size_t to, std::size_t polynomials, const Word *in, Word *out);
// Divides by the last prime, rounded, and drops it: out has limbs - 1.
void rescale(const Context &, std::size_t limbs, std::size_t polynomials, const Word *in, Word *out, Word *scratch);
// Residues in NTT form of signed coefficients, N of them: a plaintext of `limbs`, and of p behind it where `extended`.
void encode(const Context &, std::size_t limbs, bool extended, const std::int64_t *coefficients, Word *out);

// Whether every word is below its prime; takes the same time whatever the words are.
bool below(const Context &, std::size_t limbs, bool extended, std::size_t polynomials, const Word *in);

// --- with keys -------------------------------------------------------------------------------------------------------

// The threads of a pool share one key switch; `Pool(1)` is the caller alone, and costs nothing.
// Three polynomials to two; out may be `in`.
void relinearise(const Context &, std::size_t limbs, const SwitchKey &key, const Word *in, Word *out, Pool &pool,
                 Word *scratch);
// The automorphism of `permutation`, whose key `key` is; conjugation is one.
void rotate(const Context &, std::size_t limbs, const SwitchKey &key, const Permutation &permutation, const Word *in,
            Word *out, Pool &pool, Word *scratch);

// --- hoisted: one decomposition for many rotations -------------------------------------------------------------------

// Words of the digits of one polynomial: [place][digit][N], limbs + 1 places of `limbs` digits. The digit of a place's
// own prime is the polynomial's row, and is left out.
std::size_t digits_words(const Context &context, std::size_t limbs) noexcept;
// polynomial [limbs][N]: the second of a ciphertext.
void decompose(const Context &, std::size_t limbs, const Word *polynomial, Word *digits, Word *scratch);
// As `rotate`, from a ciphertext and the digits of its second polynomial.
void rotate_hoisted(const Context &, std::size_t limbs, const SwitchKey &key, const Permutation &permutation,
                    const Word *in, const Word *digits, Word *out, Pool &pool, Word *scratch);

// --- doubly hoisted: sums of products in extended form, divided once -------------------------------------------------

// p times a ciphertext, in extended form: what is not rotated. Exact.
void extend(const Context &, std::size_t limbs, const Word *in, Word *out);
// A rotation in extended form.
void rotate_extended(const Context &, std::size_t limbs, const SwitchKey &key, const Permutation &permutation,
                     const Word *in, const Word *digits, Word *out, Word *scratch);
// Rotates the ciphertext of which `sum` is the extended form, and adds the result in extended form to `out`, or writes
// it there. Destroys sum. (A giant step.)
void rotate_extended_sum(const Context &, std::size_t limbs, const SwitchKey &key, const Permutation &permutation,
                         Word *sum, Word *out, bool add, Word *scratch);
// Divides an extended form by p, rounded: out [polynomials][limbs][N]. Destroys the last limb of its polynomials.
void divide(const Context &, std::size_t limbs, std::size_t polynomials, Word *sum, Word *out);
void add_extended(const Context &, std::size_t limbs, std::size_t polynomials, const Word *a, const Word *b, Word *out);

// --- the parts of a key switch, for threads that share one -----------------------------------------------------------
//
// In order: `digit_coefficients` for each digit < limbs; `digits_at` and `sums_at` for each place <= limbs;
// `divide_special` for each polynomial; `divide_at` for each polynomial and limb. Calls of one step do not meet.

// coefficients [limbs][N]: writes the row of `digit`.
void digit_coefficients(const Context &, const Word *polynomial, std::size_t digit, Word *coefficients);
// digits [limbs][N]: all digits at one place, in NTT form, but for the row of the place's own prime: it is the
// polynomial's, and `sums_at` reads it there.
void digits_at(const Context &, std::size_t limbs, const Word *coefficients, std::size_t place, Word *digits);
// sums [2][limbs + 1][N]: writes, or adds to, the two rows of `place`. permutation may be null: none.
void sums_at(const Context &, std::size_t limbs, const SwitchKey &key, const Permutation *permutation,
             std::size_t place, const Word *polynomial, const Word *digits, Word *sums, bool add);
// sum [limbs + 1][N], one polynomial: its last row becomes what `divide_at` subtracts.
void divide_special(const Context &, std::size_t limbs, Word *sum);
// out row `limb` = the quotient's, plus that of `addend` if it is not null, permuted unless permutation is null
// (without one, addend may be out). scratch: one row, which may be that of out if there is no addend.
void divide_at(const Context &, std::size_t limbs, const Word *sum, std::size_t limb, const Word *addend,
               const Permutation *permutation, Word *out, Word *scratch);

}  // namespace confide::ckks
