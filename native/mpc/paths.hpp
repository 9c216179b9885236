// The instruction sets of the kernels on shares: one table of loops for each, all with the same bits.
//
// The files of one instruction set are compiled with its options, so they use nothing of the standard library that a
// linker could pick for the rest of the program. Loops are written once, over a vector type of the file that includes
// them: no machine is needed that has the widest one to know what it computes.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define CONFIDE_MPC_X86 1
#endif
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "streams and keys are little-endian words in memory");

namespace confide::mpc {

using Word = std::uint64_t;
using Byte = std::uint8_t;

enum class Path { portable, avx2, vaes, avx512 };  // avx2 has AES for one block at a time

bool runs_here(Path path);
// The best path of this machine (CPUID), or the one that the environment variable CONFIDE_NATIVE_PATH names: portable,
// avx2, or ifma for all there is.
Path best_path();

constexpr std::size_t block_bytes = 16;

// The round keys of AES-128.
struct Schedule {
    alignas(16) Byte keys[11][block_bytes];
};

// AES-128 and what is made of it. Byte arrays may start anywhere; nothing branches on them or looks up by them.
struct BlockLoops {
    const char *name;
    void (*expand)(const Byte *key, Schedule &schedule);
    // The first words of a stream: block i is AES(nonce, i), both little-endian.
    void (*stream)(const Schedule &schedule, Word nonce, Word *out, std::size_t words);
    // The corrections of a batch of comparison keys: (levels + 1, count) blocks.
    void (*generate)(const Schedule &schedule, const Byte *roots0, const Byte *roots1, const Word *alpha,
                     std::size_t count, unsigned bits, Byte *out);
    // The shares of a party, a byte of 0 or 1 for each key, at x without its lowest `drop` bits; with `top` they are
    // of [x < alpha] xor the bit of x above.
    void (*evaluate)(const Schedule &schedule, unsigned party, const Byte *roots, const Byte *corrections,
                     const Word *x, std::size_t count, unsigned bits, unsigned drop, bool top, Byte *out);
};

// Blocks of a product of matrices mod 2^64. Packed rows have `row_words` words for each word: itself, and where there
// are two, itself with its halves exchanged.
struct ProductLoops {
    const char *name;
    std::size_t rows, columns, row_words;  // of a tile
    // Packs words data[row[k] + column[j]] for k < terms, j < live <= columns; zeros behind them.
    void (*pack)(const Word *data, const std::ptrdiff_t *row, std::size_t terms, const std::ptrdiff_t *column,
                 std::size_t live, Word *out);
    // out (rows of `stride` words) = or += a packed block of rows times a packed block of columns.
    void (*tile)(std::size_t terms, const Word *rows, const Word *columns, Word *out, std::size_t stride, bool add);
    // The sum of a[k] b[k], k < terms, for four b that lie `stride` words apart.
    void (*dots)(std::size_t terms, const Word *a, const Word *b, std::ptrdiff_t stride, Word *out);
    // The same where every word of a is a signed number of 32 bits, or null where that is not faster. A packed term
    // has `narrow_rows` halves of words, and `columns` words and half as many besides.
    std::size_t narrow_rows;
    void (*narrow_pack)(const Word *data, const std::ptrdiff_t *row, std::size_t terms, const std::ptrdiff_t *column,
                        std::size_t live, Word *out);
    void (*narrow_tile)(std::size_t terms, const Word *rows, const Word *columns, Word *out, std::size_t stride,
                        bool add);
};

const BlockLoops &block_loops(Path path);
const ProductLoops &product_loops(Path path);

extern const BlockLoops portable_blocks;
extern const ProductLoops portable_products;
#ifdef CONFIDE_MPC_X86
extern const BlockLoops avx2_blocks, vaes_blocks, avx512_blocks;
extern const ProductLoops avx2_products, avx512_products;
#endif

}  // namespace confide::mpc
