// Blocks of a size that the caches hold: a block of b is packed once and multiplied by all rows of a. A convolution is
// a product whose b is not there: packing reads it from the padded pictures.
#include "products.hpp"

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

namespace confide::mpc {
namespace {

constexpr std::size_t depth = 256;      // terms of a block: a strip of columns stays in the nearest cache
constexpr std::size_t breadth = 512;    // columns of a packed block
constexpr std::size_t height = 96;      // rows of a packed block; a multiple of every tile
constexpr std::size_t few = 4;          // rows, or columns, that are not worth packing
constexpr std::size_t line_words = 8;   // packed words start on a cache line

// Word (k, j) lies at data[row[k] + column[j]].
struct Source {
    const Word *data;
    const std::ptrdiff_t *row, *column;
};

// Word (i, j) lies at data[i * row + column[j]].
struct Target {
    Word *data;
    std::size_t row;
    const std::ptrdiff_t *column;
};

class Room {
  public:
    explicit Room(std::size_t words) : room_(new Word[words + line_words]) {
        const auto past = reinterpret_cast<std::uintptr_t>(room_.get()) / sizeof(Word) % line_words;
        words_ = room_.get() + (line_words - past) % line_words;
    }
    Word *words() { return words_; }

  private:
    std::unique_ptr<Word[]> room_;
    Word *words_;
};

std::size_t rounded(std::size_t count, std::size_t step) { return (count + step - 1) / step * step; }

std::vector<std::ptrdiff_t> steps(std::size_t count, std::ptrdiff_t step) {
    std::vector<std::ptrdiff_t> places(count);
    for (std::size_t i = 0; i < count; ++i) places[i] = static_cast<std::ptrdiff_t>(i) * step;
    return places;
}

// Strips of tile rows, k by k; zeros where there is no row.
void pack_rows(const ProductLoops &loops, const Matrix &a, std::size_t first, std::size_t rows, std::size_t start,
               std::size_t terms, Word *out) {
    for (std::size_t strip = 0; strip < rows; strip += loops.rows, out += terms * loops.rows * loops.row_words)
        for (std::size_t i = 0; i < loops.rows; ++i) {
            const bool there = strip + i < rows;
            const Word *from = a.data + (there ? static_cast<std::ptrdiff_t>(first + strip + i) * a.row +
                                                     static_cast<std::ptrdiff_t>(start) * a.column
                                               : 0);
            Word *to = out + i * loops.row_words;
            for (std::size_t k = 0; k < terms; ++k, to += loops.rows * loops.row_words) {
                const Word word = there ? from[static_cast<std::ptrdiff_t>(k) * a.column] : 0;
                to[0] = word;
                if (loops.row_words == 2) to[1] = word >> 32 | word << 32;
            }
        }
}

// Whether every word of a is a signed number of 32 bits, as the weights of a model are and a share is not.
bool is_narrow(const Matrix &a, std::size_t m, std::size_t k) {
    for (std::size_t i = 0; i < m; ++i) {
        const Word *from = a.data + static_cast<std::ptrdiff_t>(i) * a.row;
        Word over = 0;
        for (std::size_t j = 0; j < k; ++j)
            over |= from[static_cast<std::ptrdiff_t>(j) * a.column] + (Word{1} << 31);
        if (over >> 32) return false;
    }
    return true;
}

// As pack_rows, the low halves alone.
void pack_halves(const ProductLoops &loops, const Matrix &a, std::size_t first, std::size_t rows, std::size_t start,
                 std::size_t terms, Word *out) {
    const std::size_t tall = loops.narrow_rows;
    for (std::size_t strip = 0; strip < rows; strip += tall, out += terms * tall / 2)
        for (std::size_t i = 0; i < tall; ++i) {
            const bool there = strip + i < rows;
            const Word *from = a.data + (there ? static_cast<std::ptrdiff_t>(first + strip + i) * a.row +
                                                     static_cast<std::ptrdiff_t>(start) * a.column
                                               : 0);
            Byte *to = reinterpret_cast<Byte *>(out) + i * sizeof(std::uint32_t);
            for (std::size_t k = 0; k < terms; ++k, to += tall * sizeof(std::uint32_t)) {
                const auto half = static_cast<std::uint32_t>(there ? from[static_cast<std::ptrdiff_t>(k) * a.column] : 0);
                std::memcpy(to, &half, sizeof half);
            }
        }
}

// How a product is cut and packed: words, or halves of words on the left.
struct Kind {
    std::size_t rows, left, right;  // rows of a tile; words of a packed term of a row, in halves; of a tile of columns
    decltype(ProductLoops::pack) pack;
    decltype(ProductLoops::tile) tile;
    decltype(&pack_rows) pack_left;
};

Kind kind_of(const ProductLoops &loops, const Matrix &a, std::size_t m, std::size_t k) {
    if (loops.narrow_tile && is_narrow(a, m, k))
        return {loops.narrow_rows, 1, loops.columns * 3 / 2, loops.narrow_pack, loops.narrow_tile, pack_halves};
    return {loops.rows, 2 * loops.row_words, loops.columns, loops.pack, loops.tile, pack_rows};
}

// A tile that hangs over an edge, or whose columns do not lie side by side.
void put(const Word *tile, std::size_t columns, const Target &out, std::size_t i, std::size_t rows, std::size_t j,
         std::size_t live, bool add) {
    for (std::size_t row = 0; row < rows; ++row)
        for (std::size_t column = 0; column < live; ++column) {
            Word &to = out.data[static_cast<std::ptrdiff_t>((i + row) * out.row) + out.column[j + column]];
            to = (add ? to : 0) + tile[row * columns + column];
        }
}

void multiply_packed(const ProductLoops &loops, std::size_t m, std::size_t k, std::size_t n, const Matrix &a,
                     const Source &b, const Target &out, bool add) {
    const std::size_t columns = loops.columns;
    const Kind kind = kind_of(loops, a, m, k);
    Room packed_b(std::min(depth, k) * std::min(breadth, rounded(n, columns)) / columns * kind.right);
    Room packed_a(std::min(depth, k) * std::min(height, rounded(m, kind.rows)) * kind.left / 2);
    Room edge(kind.rows * columns);
    for (std::size_t j0 = 0; j0 < n; j0 += breadth)
        for (std::size_t k0 = 0; k0 < k; k0 += depth) {
            const std::size_t wide = std::min(breadth, n - j0), terms = std::min(depth, k - k0);
            const bool sum = add || k0 > 0;
            for (std::size_t j = 0; j < wide; j += columns)
                kind.pack(b.data, b.row + k0, terms, b.column + j0 + j, std::min(columns, wide - j),
                          packed_b.words() + j / columns * terms * kind.right);
            for (std::size_t i0 = 0; i0 < m; i0 += height) {
                const std::size_t tall = std::min(height, m - i0);
                kind.pack_left(loops, a, i0, tall, k0, terms, packed_a.words());
                for (std::size_t j = 0; j < wide; j += columns) {
                    const std::size_t live = std::min(columns, wide - j);
                    const std::ptrdiff_t *places = out.column + j0 + j;
                    const bool side = live == columns &&
                                      places[columns - 1] - places[0] == static_cast<std::ptrdiff_t>(columns - 1);
                    for (std::size_t i = 0; i < tall; i += kind.rows) {
                        const std::size_t rows = std::min(kind.rows, tall - i);
                        const Word *left = packed_a.words() + i * terms * kind.left / 2;
                        const Word *right = packed_b.words() + j / columns * terms * kind.right;
                        if (side && rows == kind.rows) {
                            Word *to = out.data + static_cast<std::ptrdiff_t>((i0 + i) * out.row) + places[0];
                            kind.tile(terms, left, right, to, out.row, sum);
                        } else {
                            kind.tile(terms, left, right, edge.words(), columns, false);
                            put(edge.words(), columns, out, i0 + i, rows, j0 + j, live, sum);
                        }
                    }
                }
            }
        }
}

// out (i, j) at out[i * row + j * column] for few rows i of a, and rows j of b whose words lie side by side.
void multiply_few(const ProductLoops &loops, std::size_t m, std::size_t k, std::size_t n, const Matrix &a,
                  const Word *b, std::ptrdiff_t stride, Word *out, std::size_t row, std::size_t column, bool add) {
    Room line(k);
    for (std::size_t i = 0; i < m; ++i) {
        for (std::size_t place = 0; place < k; ++place)
            line.words()[place] =
                a.data[static_cast<std::ptrdiff_t>(i) * a.row + static_cast<std::ptrdiff_t>(place) * a.column];
        for (std::size_t j = 0; j < n; j += 4) {
            Word four[4];
            const std::size_t live = std::min<std::size_t>(4, n - j);
            const Word *rows = b + static_cast<std::ptrdiff_t>(j) * stride;
            if (live == 4) {
                loops.dots(k, line.words(), rows, stride, four);
            } else {
                for (std::size_t one = 0; one < live; ++one) {
                    Word same[4];
                    loops.dots(k, line.words(), rows + static_cast<std::ptrdiff_t>(one) * stride, 0, same);
                    four[one] = same[0];
                }
            }
            for (std::size_t one = 0; one < live; ++one) {
                Word &to = out[i * row + (j + one) * column];
                to = (add ? to : 0) + four[one];
            }
        }
    }
}

}  // namespace

void multiply(const ProductLoops &loops, std::size_t m, std::size_t k, std::size_t n, Matrix a, Matrix b, Word *out,
              bool add) {
    if (m == 0 || n == 0) return;
    if (k == 0) {
        if (!add) std::memset(out, 0, m * n * sizeof(Word));
        return;
    }
    if (m <= few && b.row == 1) return multiply_few(loops, m, k, n, a, b.data, b.column, out, n, 1, add);
    if (n <= few && a.column == 1)
        return multiply_few(loops, n, k, m, {b.data, b.column, b.row}, a.data, a.row, out, 1, n, add);
    const auto rows = steps(k, b.row), columns = steps(n, b.column), places = steps(n, 1);
    multiply_packed(loops, m, k, n, a, {b.data, rows.data(), columns.data()}, {out, n, places.data()}, add);
}

void convolve(const ProductLoops &loops, const Pictures &x, const Word *w, const Convolution &shape, Word *out, bool add) {
    const std::size_t positions = shape.result_height * shape.result_width;
    const std::size_t terms = x.channels * shape.kernel_height * shape.kernel_width;
    if (!x.count || !shape.outputs || !positions) return;
    if (!terms) {
        if (!add) std::memset(out, 0, x.count * shape.outputs * positions * sizeof(Word));
        return;
    }
    const bool padded = shape.top || shape.left || shape.bottom || shape.right;
    const std::size_t tall = x.height + shape.top + shape.bottom, wide = x.width + shape.left + shape.right;
    // Pictures together, where one has too few positions for a block.
    const std::size_t most = std::min(x.count, (breadth + positions - 1) / positions);
    std::ptrdiff_t strides[4];
    std::copy(x.strides, x.strides + 4, strides);
    std::vector<Word> room;
    if (padded) {
        room.resize(most * x.channels * tall * wide);
        strides[3] = 1;
        strides[2] = static_cast<std::ptrdiff_t>(wide);
        strides[1] = static_cast<std::ptrdiff_t>(tall * wide);
        strides[0] = static_cast<std::ptrdiff_t>(x.channels * tall * wide);
    }
    std::vector<std::ptrdiff_t> rows(terms), columns(most * positions), places(most * positions);
    const auto at = [&strides](std::size_t picture, std::size_t channel, std::size_t row, std::size_t column) {
        return static_cast<std::ptrdiff_t>(picture) * strides[0] + static_cast<std::ptrdiff_t>(channel) * strides[1] +
               static_cast<std::ptrdiff_t>(row) * strides[2] + static_cast<std::ptrdiff_t>(column) * strides[3];
    };
    for (std::size_t k = 0; k < terms; ++k) {
        const std::size_t across = k % shape.kernel_width, line = k / shape.kernel_width;
        rows[k] = at(0, line / shape.kernel_height, line % shape.kernel_height, across);
    }
    for (std::size_t j = 0; j < most * positions; ++j) {
        const std::size_t picture = j / positions, place = j % positions;
        columns[j] = at(picture, 0, place / shape.result_width * shape.down, place % shape.result_width * shape.across);
        places[j] = static_cast<std::ptrdiff_t>(picture * shape.outputs * positions + place);
    }
    for (std::size_t first = 0; first < x.count; first += most) {
        const std::size_t count = std::min(most, x.count - first);
        const Word *data = x.data + static_cast<std::ptrdiff_t>(first) * x.strides[0];
        if (padded) {
            for (std::size_t line = 0; line < count * x.channels * x.height; ++line) {
                const std::size_t row = line % x.height, plane = line / x.height;
                const Word *from = data + static_cast<std::ptrdiff_t>(plane / x.channels) * x.strides[0] +
                                   static_cast<std::ptrdiff_t>(plane % x.channels) * x.strides[1] +
                                   static_cast<std::ptrdiff_t>(row) * x.strides[2];
                Word *to = room.data() + (plane * tall + shape.top + row) * wide + shape.left;
                for (std::size_t i = 0; i < x.width; ++i) to[i] = from[static_cast<std::ptrdiff_t>(i) * x.strides[3]];
            }
            data = room.data();
        }
        multiply_packed(loops, shape.outputs, terms, count * positions,
                        {w, static_cast<std::ptrdiff_t>(terms), 1}, {data, rows.data(), columns.data()},
                        {out + first * shape.outputs * positions, positions, places.data()}, add);
    }
}

}  // namespace confide::mpc
