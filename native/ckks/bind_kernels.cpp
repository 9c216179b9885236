// The innermost loops as Python calls them: for tests against big integers, and for bench/native.py.
#include "bind_kernels.hpp"

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <stdexcept>
#include <vector>

#include "bind.hpp"

namespace nb = nanobind;

namespace confide::ckks {

namespace {

template <typename Number>
using Rows = nb::ndarray<Number, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

template <typename Number>
void expect_rows(const Ring &ring, const Rows<Number> &rows) {
    if (rows.shape(1) != ring.degree) throw std::invalid_argument("Expected rows of N words");
}

// All rows in place. Words that are no residues give wrong words, nothing worse, and checking them would be timed.
template <bool Inverse>
void transform(const Ring &ring, Rows<Word> rows) {
    expect_rows(ring, rows);
    nb::gil_scoped_release unlocked;
    for (std::size_t row = 0; row < rows.shape(0); ++row)
        (Inverse ? ring.kernels->inverse : ring.kernels->forward)(ring, rows.data() + row * ring.degree);
}

// out[0] = or += the sum of the products of the rows of a and b.
void dot(const Ring &ring, Rows<const Word> a, Rows<const Word> b, Rows<Word> out, bool add) {
    expect_rows(ring, a);
    expect_rows(ring, b);
    expect_rows(ring, out);
    const std::size_t terms = a.shape(0);
    if (terms != b.shape(0) || terms < 1 || terms > 1024 || out.shape(0) != 1)
        throw std::invalid_argument("Expected from 1 to 1024 pairs of rows and one row for their sum");
    nb::gil_scoped_release unlocked;
    std::vector<const Word *> left, right;
    for (std::size_t term = 0; term < terms; ++term) {
        left.push_back(a.data() + term * ring.degree);
        right.push_back(b.data() + term * ring.degree);
    }
    ring.kernels->dot(ring, left.data(), right.data(), terms, out.data(), add);
}

}  // namespace

void bind_kernels(nb::module_ &module) {
    using nb::arg;
    nb::class_<Ring>(module, "Ring")
        .def(
            "__init__",
            [](Ring *self, Word prime, std::size_t degree, const std::string &path) {
                new (self) Ring(prime, degree, path_of(path));
            },
            arg("prime"), arg("degree"), arg("path") = "")
        .def_prop_ro("kernels", [](const Ring &ring) { return ring.kernels->name; })
        .def("forward", &transform<false>, arg("rows").noconvert())
        .def("inverse", &transform<true>, arg("rows").noconvert())
        .def("dot", &dot, arg("a").noconvert(), arg("b").noconvert(), arg("out").noconvert(), arg("add") = false);
}

}  // namespace confide::ckks
