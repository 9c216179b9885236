// Sums of ciphertexts times integers for Python: shapes and primes are checked here, the interpreter lock is released
// while they run. Residues that are not below their prime give garbage, and nothing worse.
#include "bind_sums.hpp"

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>
#include <tuple>

#include "bind.hpp"
#include "sums.hpp"

namespace nb = nanobind;

namespace confide::ckks {

namespace {

template <typename T, std::size_t Dimensions>
using In = nb::ndarray<const T, nb::ndim<Dimensions>, nb::c_contig, nb::device::cpu>;
using Ciphertexts = nb::ndarray<Word, nb::ndim<4>, nb::c_contig, nb::device::cpu>;
using Part = std::tuple<In<std::uint32_t, 1>, In<std::uint32_t, 1>, In<double, 2>>;

void make(IntegerMap *self, std::size_t inputs, std::size_t outputs, const std::vector<Part> &parts) {
    std::vector<Group> groups;
    for (const auto &[results, places, weights] : parts) {
        if (weights.shape(0) != results.shape(0) || weights.shape(1) != places.shape(0))
            throw std::invalid_argument("Expected a weight for every result and input of a group");
        groups.push_back({{results.data(), results.data() + results.size()},
                          {places.data(), places.data() + places.size()},
                          {weights.data(), weights.data() + weights.size()}});
    }
    new (self) IntegerMap(inputs, outputs, std::move(groups));
}

void sums(const IntegerMap &map, In<Word, 4> in, In<Word, 2> biases, const std::vector<Word> &primes, Ciphertexts out,
          unsigned threads, const std::string &path) {
    const std::size_t limbs = primes.size(), degree = in.shape(3);
    if (in.shape(0) != map.inputs || in.shape(1) != 2 || in.shape(2) != limbs || limbs == 0)
        throw std::invalid_argument("Expected the ciphertexts that the map reads");
    if (out.shape(0) != map.outputs || out.shape(1) != 2 || out.shape(2) != limbs || out.shape(3) != degree)
        throw std::invalid_argument("Expected room for a ciphertext of every output");
    if (biases.shape(0) != map.outputs || biases.shape(1) != limbs)
        throw std::invalid_argument("Expected a number to add for every output and prime");
    std::vector<Modulus> moduli;
    for (const Word prime : primes) moduli.emplace_back(prime);
    const Path chosen = path_of(path);
    nb::gil_scoped_release unlocked;
    weighted_sums(map, moduli, degree, in.data(), biases.data(), out.data(), threads, chosen);
}

}  // namespace

void bind_sums(nb::module_ &module) {
    using nb::arg;
    nb::class_<IntegerMap>(module, "IntegerMap")
        .def("__init__", &make, arg("inputs"), arg("outputs"), arg("groups"))
        .def("sums", &sums, arg("residues").noconvert(), arg("biases").noconvert(), arg("primes"),
             arg("out").noconvert(), arg("threads"), arg("path") = "");
}

}  // namespace confide::ckks
