// Whole products of 64 bits: vpmullq, eight to an instruction.
#include "paths.hpp"

#ifdef CONFIDE_MPC_X86
namespace confide::mpc {
namespace {

constexpr std::size_t lanes = 8, tile_rows = 6, tile_vectors = 4;
using Vector = Word __attribute__((vector_size(64)));

}  // namespace
}  // namespace confide::mpc

#include "product_whole.hpp"
#include "product_loops.hpp"

namespace confide::mpc {

const ProductLoops avx512_products = {"avx512", tile_rows, tile_columns, row_words, pack,
                                    tile, dots, 0, nullptr, nullptr};

}  // namespace confide::mpc
#endif
