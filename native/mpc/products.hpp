// Products of matrices and convolutions mod 2^64, in packed blocks. Any strides, in words; nothing overlaps `out`.
#pragma once

#include "paths.hpp"

namespace confide::mpc {

// Word (i, j) lies at data[i * row + j * column].
struct Matrix {
    const Word *data;
    std::ptrdiff_t row, column;
};

// out (m, n), contiguous, = or += a (m, k) b (k, n).
void multiply(const ProductLoops &loops, std::size_t m, std::size_t k, std::size_t n, Matrix a, Matrix b, Word *out,
              bool add);

struct Pictures {
    const Word *data;
    std::size_t count, channels, height, width;
    std::ptrdiff_t strides[4];
};

struct Convolution {
    std::size_t outputs, kernel_height, kernel_width, down, across;  // steps
    std::size_t top, left, bottom, right;                            // zeros around a picture
    std::size_t result_height, result_width;
};

// out (count, outputs, result height, result width), contiguous, = or += the correlation of x with
// w (outputs, channels, kernel height, kernel width), contiguous.
void convolve(const ProductLoops &loops, const Pictures &x, const Word *w, const Convolution &shape, Word *out, bool add);

}  // namespace confide::mpc
