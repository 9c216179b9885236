// The same source as for AVX-512, two words to a vector.
#include "paths.hpp"

namespace confide::mpc {
namespace {

constexpr std::size_t lanes = 2, tile_rows = 2, tile_vectors = 2;
using Vector = Word __attribute__((vector_size(16)));

}  // namespace
}  // namespace confide::mpc

#include "product_whole.hpp"
#include "product_loops.hpp"

namespace confide::mpc {

const ProductLoops portable_products = {"portable", tile_rows, tile_columns, row_words, pack,
                                    tile, dots, 0, nullptr, nullptr};

}  // namespace confide::mpc
