// confide._native: checks what Python hands over, releases the interpreter lock, calls the kernels.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <memory>
#include <stdexcept>

#include "ckks/bind.hpp"
#include "ckks/bind_kernels.hpp"
#include "ckks/bind_linear.hpp"
#include "ckks/bind_sums.hpp"
#include "histogram.hpp"
#include "mpc/bind.hpp"
#include "projection.hpp"
#include "ring.hpp"

namespace nb = nanobind;

namespace {

template <typename Word>
using In = nb::ndarray<const Word, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <typename Word>
using InOut = nb::ndarray<Word, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

template <typename Word>
void add_words(InOut<Word> acc, In<Word> words, bool negate) {
    if (acc.shape(0) != words.shape(0)) throw std::invalid_argument("Expected two vectors of one length");
    nb::gil_scoped_release unlocked;
    confide::add_words(acc.data(), words.data(), acc.shape(0), negate);
}

template <typename Word>
nb::bytes pack(In<Word> words, unsigned bits) {
    if (bits < 1 || bits > 8 * sizeof(Word)) throw std::invalid_argument("Expected bits from 1 to the width of a word");
    const std::size_t count = words.shape(0);
    auto packed = nb::steal<nb::bytes>(
        PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(confide::packed_size(count, bits))));
    if (!packed.is_valid()) throw nb::python_error();
    // Written in place: nobody else has seen the object yet.
    auto *out = reinterpret_cast<std::uint8_t *>(PyBytes_AS_STRING(packed.ptr()));
    {
        nb::gil_scoped_release unlocked;
        confide::pack(words.data(), count, bits, out);
    }
    return packed;
}

template <typename Word>
nb::object unpack_as(const std::uint8_t *in, std::size_t count, unsigned bits) {
    std::unique_ptr<Word[]> words(new Word[count]);
    {
        nb::gil_scoped_release unlocked;
        confide::unpack(in, count, bits, words.get());
    }
    nb::capsule owner(words.get(), [](void *data) noexcept { delete[] static_cast<Word *>(data); });
    return nb::cast(nb::ndarray<nb::numpy, Word, nb::ndim<1>>(words.release(), {count}, owner));
}

nb::object unpack(nb::bytes data, unsigned bits, std::size_t count) {
    if (bits < 1 || bits > 64) throw std::invalid_argument("Expected bits from 1 to 64");
    // The first test keeps packed_size from overflowing.
    if (count / 8 > data.size() / bits || data.size() != confide::packed_size(count, bits))
        throw std::invalid_argument("Expected exactly the bytes of `count` packed words");
    const auto *in = static_cast<const std::uint8_t *>(data.data());
    return bits <= 32 ? unpack_as<std::uint32_t>(in, count, bits) : unpack_as<std::uint64_t>(in, count, bits);
}

template <typename Word>
void project(InOut<Word> acc, In<Word> words, In<std::uint8_t> choices) {
    const std::size_t rows = acc.shape(0), groups = words.shape(0) / 8;
    // The third test keeps the product from overflowing.
    if (rows % 16 || words.shape(0) % 8 || (rows && choices.shape(0) / rows / 2 != groups) ||
        choices.shape(0) != 2 * rows * groups)
        throw std::invalid_argument("Expected rows by sixteens, words by eights and 2 * rows choices for eight words");
    nb::gil_scoped_release unlocked;
    confide::project(acc.data(), rows, words.data(), choices.data(), groups);
}

template <typename Number>
using Table = nb::ndarray<Number, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void histograms(Table<const std::uint8_t> codes, Table<const std::int32_t> gradients, In<std::int32_t> slots,
                In<std::int32_t> wanted, In<std::int64_t> starts,
                nb::ndarray<std::int64_t, nb::ndim<3>, nb::c_contig, nb::device::cpu> found) {
    const std::size_t n = codes.shape(0), columns = codes.shape(1), count = found.shape(0), size = found.shape(1);
    if (gradients.shape(0) != n || gradients.shape(1) != 2 || slots.shape(0) != n || starts.shape(0) != columns + 1 ||
        found.shape(2) != 2 || n > UINT32_MAX)
        throw std::invalid_argument("Expected a pair of gradients and a slot for each record");
    bool done;
    {
        nb::gil_scoped_release unlocked;
        done = confide::histograms(codes.data(), gradients.data(), slots.data(), n, columns, wanted.data(),
                                   wanted.shape(0), starts.data(), found.data(), count, size);
    }
    if (!done) throw std::bad_alloc();
}

void best_splits(nb::ndarray<const double, nb::ndim<3>, nb::c_contig, nb::device::cpu> sums, Table<const double> whole,
                 In<std::int64_t> low, In<std::int64_t> high, double ridge, double least, InOut<std::int64_t> best,
                 InOut<double> gain) {
    const std::size_t nodes = sums.shape(0);
    if (sums.shape(2) != 2 || whole.shape(0) != nodes || whole.shape(1) != 2 || low.shape(0) != high.shape(0) ||
        best.shape(0) != nodes || gain.shape(0) != nodes)
        throw std::invalid_argument("Expected two sums for each code of each node, and two ends for each split");
    bool done;
    {
        nb::gil_scoped_release unlocked;
        done = confide::best_splits(sums.data(), whole.data(), nodes, sums.shape(1), low.data(), high.data(),
                                    low.shape(0), ridge, least, best.data(), gain.data());
    }
    if (!done) throw std::bad_alloc();
}

void route(Table<const std::uint8_t> codes, In<std::int32_t> slots, In<std::int32_t> column,
           Table<const std::uint8_t> goes_left, InOut<std::int32_t> next) {
    const std::size_t n = codes.shape(0);
    if (slots.shape(0) != n || next.shape(0) != n || goes_left.shape(0) != column.shape(0) || goes_left.shape(1) != 256)
        throw std::invalid_argument("Expected a slot for each record, and 256 codes for each slot");
    nb::gil_scoped_release unlocked;
    confide::route(codes.data(), slots.data(), n, codes.shape(1), column.data(), goes_left.data(), next.data());
}

}  // namespace

NB_MODULE(_native, module) {
    using nb::arg;
    nb::set_leak_warnings(false);  // what lives as long as the interpreter is no leak
    module.doc() = "The compiled kernels of confide; the rooms call them.";
    module.def("add_words", &add_words<std::uint32_t>, arg("acc").noconvert(), arg("words").noconvert(), arg("negate"));
    module.def("add_words", &add_words<std::uint64_t>, arg("acc").noconvert(), arg("words").noconvert(), arg("negate"));
    module.def("project", &project<std::uint32_t>, arg("acc").noconvert(), arg("words").noconvert(),
               arg("choices").noconvert());
    module.def("project", &project<std::uint64_t>, arg("acc").noconvert(), arg("words").noconvert(),
               arg("choices").noconvert());
    module.def("pack", &pack<std::uint32_t>, arg("words").noconvert(), arg("bits"));
    module.def("pack", &pack<std::uint64_t>, arg("words").noconvert(), arg("bits"));
    module.def("histograms", &histograms, arg("codes").noconvert(), arg("gradients").noconvert(),
               arg("slots").noconvert(), arg("wanted").noconvert(), arg("starts").noconvert(), arg("found").noconvert());
    module.def("best_splits", &best_splits, arg("sums").noconvert(), arg("whole").noconvert(), arg("low").noconvert(),
               arg("high").noconvert(), arg("ridge"), arg("least"), arg("best").noconvert(), arg("gain").noconvert());
    module.def("route", &route, arg("codes").noconvert(), arg("slots").noconvert(), arg("column").noconvert(),
               arg("goes_left").noconvert(), arg("next").noconvert());
    module.def("unpack", &unpack, arg("data"), arg("bits"), arg("count"));
    auto ckks = module.def_submodule("ckks", "CKKS on ciphertexts, encoded weights and public keys.");
    confide::ckks::bind_evaluator(ckks);
    confide::ckks::bind_kernels(ckks);
    confide::ckks::bind_program(ckks);
    confide::ckks::bind_linear(ckks);
    confide::ckks::bind_sums(ckks);
    auto mpc = module.def_submodule("mpc", "Products mod 2^64, streams by AES and comparison keys.");
    confide::mpc::bind(mpc);
}
