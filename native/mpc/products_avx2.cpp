// Products of 64 bits from halves: low times low by vpmuludq; the two crossed products, of which only the low 32 bits
// count, by one vpmulld on a with its halves exchanged. Both have sums of their own; the crossed ones, two of 32 bits
// in a lane, are added up and moved to their place once, at the end.
#include "paths.hpp"

#ifdef CONFIDE_MPC_X86
#include <immintrin.h>

namespace confide::mpc {
namespace {

constexpr std::size_t lanes = 4, tile_rows = 3, tile_vectors = 2, row_words = 2;
using Vector = Word __attribute__((vector_size(32)));
using Halves = std::uint32_t __attribute__((vector_size(32)));

struct Factor {
    Vector words;
    Halves twins;
    explicit Factor(Word word, Word twin) : words(word - Vector{}), twins((Halves)(twin - Vector{})) {}
    explicit Factor(Vector v) : words(v), twins((Halves)(v >> 32 | v << 32)) {}
};

struct Sum {
    Vector low{};
    Halves crossed{};
    void add(const Factor &left, Vector right) {
        low += (Vector)_mm256_mul_epu32((__m256i)left.words, (__m256i)right);
        crossed += left.twins * (Halves)right;
    }
    Vector total() const {
        const Vector both = (Vector)crossed;
        return low + (both << 32) + (both >> 32 << 32);
    }
};

}  // namespace
}  // namespace confide::mpc

#include "product_loops.hpp"
#include "product_narrow.hpp"

namespace confide::mpc {

const ProductLoops avx2_products = {"avx2",      tile_rows,   tile_columns, row_words, pack, tile, dots,
                                    narrow_rows, narrow_pack, narrow_tile};

}  // namespace confide::mpc
#endif
