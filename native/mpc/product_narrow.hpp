// Tiles of a product mod 2^64 whose left words are signed numbers of 32 bits: three multiplications for two vectors of
// words, where whole words take four. Included behind product_loops.hpp by a file whose vectors have four words.
//
//     b = l + 2^32 h    l the low half as a signed number, h the high half plus the sign of l
//     a b = a l + 2^32 (a h mod 2^32)
//
// a l is a whole product of two signed halves; of a h 32 bits count, and two of them share a lane: h of column j stands
// in the low half of lane j of the third vector of a packed term, h of column j + 4 in the high half.

namespace confide::mpc {
namespace {

constexpr std::size_t narrow_rows = 4, narrow_words = 3 * lanes;
static_assert(tile_columns == 2 * lanes, "one vector holds h of a whole tile");

void narrow_pack(const Word *data, const std::ptrdiff_t *row, std::size_t terms, const std::ptrdiff_t *column,
                 std::size_t live, Word *out) {
    const Vector sign = Word{1} << 31 ^ Vector{}, high = ~(~Word{0} >> 32) ^ Vector{};
    bool near = live == tile_columns;
    for (std::size_t j = 1; j < live; ++j) near &= column[j] == column[j - 1] + 1;
    for (std::size_t k = 0; k < terms; ++k, out += narrow_words) {
        const Word *from = data + row[k];
        if (near)
            __builtin_memcpy(out, from + column[0], tile_columns * sizeof(Word));
        else
            for (std::size_t j = 0; j < tile_columns; ++j) out[j] = j < live ? from[column[j]] : 0;
        const Vector first = load(out) + sign, second = load(out + lanes) + sign;
        store(out + 2 * lanes, first >> 32 | (second & high));
    }
}

void narrow_tile(std::size_t terms, const Word *rows, const Word *columns, Word *out, std::size_t stride, bool add) {
    Vector low[narrow_rows][2]{};
    Halves crossed[narrow_rows]{};
    for (std::size_t k = 0; k < terms; ++k, rows += narrow_rows / 2, columns += narrow_words) {
        const Vector first = load(columns), second = load(columns + lanes);
        const Halves third = (Halves)load(columns + 2 * lanes);
#pragma GCC unroll 8
        for (std::size_t i = 0; i < narrow_rows; ++i) {
            std::int32_t half;
            __builtin_memcpy(&half, reinterpret_cast<const Byte *>(rows) + i * sizeof half, sizeof half);
            const __m256i left = _mm256_set1_epi32(half);
            low[i][0] += (Vector)_mm256_mul_epi32(left, (__m256i)first);
            low[i][1] += (Vector)_mm256_mul_epi32(left, (__m256i)second);
            crossed[i] += (Halves)left * third;
        }
    }
#pragma GCC unroll 8
    for (std::size_t i = 0; i < narrow_rows; ++i) {
        const Vector both = (Vector)crossed[i];
        Word *to = out + i * stride;
        const Vector sums[2] = {low[i][0] + (both << 32), low[i][1] + (both >> 32 << 32)};
        for (std::size_t j = 0; j < 2; ++j) store(to + j * lanes, add ? load(to + j * lanes) + sums[j] : sums[j]);
    }
}

}  // namespace
}  // namespace confide::mpc
