// What the paths of kernels.hpp share among themselves: their tables of functions, and the tables of IFMA's own layout.
//
// The files of one instruction set are compiled with its options, so they use nothing of the standard library that a
// linker could pick for the rest of the program; tables are made in kernels.cpp and kernels_tables.cpp.
#pragma once

#include "kernels.hpp"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define CONFIDE_CKKS_X86 1
#endif

namespace confide::ckks {

constexpr unsigned most_passes = 4;  // before the tail: the last stages of a transform, on one block in registers

// Passes of two to four stages: one radix for each pass, from the widest stride to the narrowest.
struct Passes {
    unsigned count;
    unsigned log[most_passes];
};

// Factors of 52 bits with Shoup's constants floor(2^52 w / q).
//
// A pass of `log` stages over m groups has 2 * 2^log words for each group: the factors in the order of a heap (place 1
// for the widest stage, 2 and 3 for the next, ...; place 0 is unused), then their constants.
// The tail has 128 words for each 64 of the row: a heap of 8, its constants, then seven vectors of 8 for the stages
// within a block of 8 (lane l for block l; distance 4, then 2 for the even and the odd groups, then 1 for four), then
// their constants.
struct Ifma52 {
    Word q, twice, minus;  // q, 2q, 2^52 - q
    Word multiple[33];     // i q
    Word quotient;         // floor(2^52 / q)
    Word wide;             // floor(2^62 / q)
    Word carry, carry_shoup;      // 2^52 mod q
    Word degree, degree_shoup;    // 1 / N
    unsigned room;                // words may grow to room * q <= 2^52: 4, 8, 16 or 32
    Passes passes;
    const Word *forward[most_passes + 1], *inverse[most_passes + 1];  // of each pass, then of the tail
};

// Factors as doubles, each with the double next to w / q: heaps as above; the tail has 32 numbers for each 16 words, a
// heap of 4, its quotients, three vectors of 4 and their quotients.
struct Avx2 {
    double q, degree, degree_quotient;   // degree: 1 / N modulo q
    double power30, power50, power76;    // powers of two modulo q
    Passes passes;
    const double *forward[most_passes + 1], *inverse[most_passes + 1];
};

// The tables of one ring for a path; nullptr where the prime does not fit it (2^50 or more).
std::shared_ptr<const void> ifma_tables(const Ring &ring);
std::shared_ptr<const void> avx2_tables(const Ring &ring);

#ifdef CONFIDE_CKKS_X86
extern const Kernels ifma_kernels;
extern const Kernels avx2_kernels;
void ifma_forward(const Ring &ring, Word *row);
void ifma_inverse(const Ring &ring, Word *row);
void ifma_inverse_from(const Ring &ring, const Word *in, Word *out);
void ifma_forward_from(const Ring &ring, const Word *in, Word most, Word shift, Word *out);
void avx2_forward(const Ring &ring, Word *row);
void avx2_inverse(const Ring &ring, Word *row);
#endif

}  // namespace confide::ckks
