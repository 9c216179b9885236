// confide._native: packed residues, and products for linear models. Checks what Python hands over, copies what is not
// aligned, releases the interpreter lock.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <memory>
#include <optional>
#include <stdexcept>

#include "bind.hpp"
#include "bind_linear.hpp"
#include "packing.hpp"
#include "products.hpp"

namespace nb = nanobind;

namespace confide::ckks {

namespace {

using In = nb::ndarray<const Word, nb::c_contig, nb::device::cpu>;
using Table = nb::ndarray<const Word, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// Never none at all: an array without words has an address too.
Memory room(std::size_t words) { return Memory(words ? words : 1); }

// An array of numpy's that owns `words`.
nb::object array(Memory words, std::initializer_list<std::size_t> shape) {
    auto kept = std::make_unique<Memory>(std::move(words));
    Word *data = kept->data();
    nb::capsule owner(kept.get(), [](void *memory) noexcept { delete static_cast<Memory *>(memory); });
    kept.release();
    return nb::cast(nb::ndarray<nb::numpy, Word>(data, shape, owner));
}

unsigned bits_of(Word prime) {
    if (prime < 2 || prime > Word{1} << 61) throw std::invalid_argument("Expected moduli from 2 to 2^61");
    unsigned bits = 0;
    while ((prime - 1) >> bits) ++bits;
    return bits;
}

// Bytes of `rows` rows for each prime. A residue takes a bit at least, so its words are bounded too.
std::size_t packed_size(const std::vector<Word> &primes, std::size_t rows, std::size_t count) {
    constexpr std::size_t most = std::size_t{1} << 40;
    std::size_t each = 0;
    if (count >= std::size_t{1} << 32 || primes.size() >= 256) throw std::invalid_argument("Expected fewer residues");
    for (const Word prime : primes) each += packed_bytes(count, bits_of(prime));
    if (rows > most / (each + 1)) throw std::invalid_argument("Expected fewer residues");
    return rows * each;
}

nb::bytes pack_residues(Table residues, const std::vector<Word> &primes) {
    const std::size_t limbs = primes.size(), count = residues.shape(1);
    if (!limbs || residues.shape(0) % limbs) throw std::invalid_argument("Expected a row for each prime");
    const std::size_t rows = residues.shape(0) / limbs, size = packed_size(primes, rows, count);
    auto packed = nb::steal<nb::bytes>(PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(size)));
    if (!packed.is_valid()) throw nb::python_error();
    // Written in place: nobody else has seen the object yet.
    auto *out = reinterpret_cast<std::uint8_t *>(PyBytes_AS_STRING(packed.ptr()));
    const Packing &packing = packing_of(best_path());
    nb::gil_scoped_release unlocked;
    for (std::size_t row = 0; row < rows * limbs; ++row) {
        const unsigned bits = bits_of(primes[row % limbs]);
        packing.pack(residues.data() + row * count, count, bits, out);
        out += packed_bytes(count, bits);
    }
    return packed;
}

// The residues, shape (rows * primes, count), or None if one of them is not below its prime or a filling bit is set.
nb::object unpack_residues(nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu> body,
                           const std::vector<Word> &primes, std::size_t rows, std::size_t count) {
    const std::size_t limbs = primes.size();
    if (!limbs || body.shape(0) != packed_size(primes, rows, count))
        throw std::invalid_argument("Expected exactly the bytes of the packed residues");
    Memory words = room(rows * limbs * count);
    const Packing &packing = packing_of(best_path());
    bool right = true;
    {
        nb::gil_scoped_release unlocked;
        const std::uint8_t *in = body.data();
        for (std::size_t row = 0; row < rows * limbs; ++row) {
            const Word prime = primes[row % limbs];
            const unsigned bits = bits_of(prime);
            right &= packing.unpack(in, count, bits, prime, words.data() + row * count);
            in += packed_bytes(count, bits);
        }
    }
    return right ? array(std::move(words), {rows * limbs, count}) : nb::none();
}

void check(const Products &products, const In &words, std::size_t polynomials) {
    if (words.size() != polynomials * products.words())
        throw std::invalid_argument("Expected residues of the products' primes and degree");
}

nb::object forward(const Products &products, In polynomial) {
    check(products, polynomial, 1);
    Memory words = room(products.words());
    {
        nb::gil_scoped_release unlocked;
        std::memcpy(words.data(), polynomial.data(), products.words() * sizeof(Word));
        products.forward(words.data());
    }
    return array(std::move(words), {products.primes(), products.degree()});
}

nb::object product(const Products &products, In query, In weights, std::optional<In> zero) {
    check(products, query, 2);
    check(products, weights, 1);
    if (zero) check(products, *zero, 2);
    Memory words = room(2 * products.words());
    bool encrypted;
    {
        nb::gil_scoped_release unlocked;
        const auto store = std::make_shared<Store>();
        const Aligned left(query, store), right(weights, store);
        const std::optional<Aligned> added = zero ? std::make_optional<Aligned>(*zero, store) : std::nullopt;
        encrypted = products.multiply(left, right, added ? static_cast<const Word *>(*added) : nullptr, words.data());
    }
    if (!encrypted) return nb::none();
    return array(std::move(words), {2, products.primes(), products.degree()});
}

}  // namespace

void bind_linear(nb::module_ &module) {
    using nb::arg;
    module.def("pack_residues", &pack_residues, arg("residues").noconvert(), arg("primes"));
    module.def("unpack_residues", &unpack_residues, arg("body").noconvert(), arg("primes"), arg("rows"), arg("count"));
    nb::class_<Products>(module, "Products")
        .def("__init__",
             [](Products *self, const std::vector<Word> &primes, std::size_t degree) {
                 new (self) Products(primes, degree, best_path());
             },
             arg("primes"), arg("degree"))
        .def("forward", &forward, arg("polynomial").noconvert())
        .def("multiply", &product, arg("query").noconvert(), arg("weights").noconvert(),
             arg("zero").noconvert().none() = nb::none());
}

}  // namespace confide::ckks
