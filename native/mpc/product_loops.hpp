// Tiles of a product of matrices mod 2^64 over a vector of words. The file that includes this has, in an unnamed
// namespace:
//
//     Vector                   `lanes` words
//     Factor(word, twin)       a word of a in every lane, and that word with its halves exchanged
//     Factor(vector)           the words of a vector
//     Sum                      += a factor times a vector, lane by lane; total() is the vector of sums
//     tile_rows, tile_vectors  a tile is so many rows of so many vectors: its sums stay in registers
//     row_words                words of a packed a: 1, or 2 with the twin

namespace confide::mpc {
namespace {

constexpr std::size_t tile_columns = tile_vectors * lanes;

inline Vector load(const Word *from) {
    Vector v;
    __builtin_memcpy(&v, from, sizeof v);
    return v;
}

inline void store(Word *to, Vector v) { __builtin_memcpy(to, &v, sizeof v); }

void tile(std::size_t terms, const Word *rows, const Word *columns, Word *out, std::size_t stride, bool add) {
    Sum sums[tile_rows][tile_vectors];
    for (std::size_t k = 0; k < terms; ++k, rows += tile_rows * row_words, columns += tile_columns) {
        Vector right[tile_vectors];
#pragma GCC unroll 8
        for (std::size_t j = 0; j < tile_vectors; ++j) right[j] = load(columns + j * lanes);
#pragma GCC unroll 8
        for (std::size_t i = 0; i < tile_rows; ++i) {
            const Factor left(rows[i * row_words], rows[i * row_words + row_words - 1]);
#pragma GCC unroll 8
            for (std::size_t j = 0; j < tile_vectors; ++j) sums[i][j].add(left, right[j]);
        }
    }
#pragma GCC unroll 8
    for (std::size_t i = 0; i < tile_rows; ++i)
#pragma GCC unroll 8
        for (std::size_t j = 0; j < tile_vectors; ++j) {
            Word *to = out + i * stride + j * lanes;
            store(to, add ? load(to) + sums[i][j].total() : sums[i][j].total());
        }
}

void pack(const Word *data, const std::ptrdiff_t *row, std::size_t terms, const std::ptrdiff_t *column, std::size_t live,
          Word *out) {
    bool near = live == tile_columns;
    for (std::size_t j = 1; j < live; ++j) near &= column[j] == column[j - 1] + 1;
    if (near) {
        for (std::size_t k = 0; k < terms; ++k, out += tile_columns)
            __builtin_memcpy(out, data + row[k] + column[0], tile_columns * sizeof(Word));
        return;
    }
    for (std::size_t k = 0; k < terms; ++k, out += tile_columns) {
        const Word *from = data + row[k];
        if (live == tile_columns) {
#pragma GCC unroll 8
            for (std::size_t j = 0; j < tile_columns; ++j) out[j] = from[column[j]];
        } else {
            for (std::size_t j = 0; j < tile_columns; ++j) out[j] = j < live ? from[column[j]] : 0;
        }
    }
}

void dots(std::size_t terms, const Word *a, const Word *b, std::ptrdiff_t stride, Word *out) {
    Sum sums[4];
    std::size_t k = 0;
    for (; k + lanes <= terms; k += lanes) {
        const Factor left(load(a + k));
#pragma GCC unroll 4
        for (std::ptrdiff_t j = 0; j < 4; ++j) sums[j].add(left, load(b + j * stride + k));
    }
    for (std::ptrdiff_t j = 0; j < 4; ++j) {
        const Vector sum = sums[j].total();
        Word total = 0;
        for (std::size_t lane = 0; lane < lanes; ++lane) total += sum[lane];
        for (std::size_t rest = k; rest < terms; ++rest) total += a[rest] * b[j * stride + static_cast<std::ptrdiff_t>(rest)];
        out[j] = total;
    }
}

}  // namespace
}  // namespace confide::mpc
