// The evaluator for Python, operation by operation: for tests and measurements. Numbers are uint64 arrays without
// gaps, shape (polynomials, limbs, N), a plaintext's (limbs, N); levels and sizes are checked here, and the
// interpreter lock is released while the loops run. Residues are checked by `KeySet` and by `below`, not here: larger
// words give garbage, and nothing worse.
#include "bind.hpp"

#include <nanobind/ndarray.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <stdexcept>

namespace nb = nanobind;

namespace confide::ckks {

namespace {

template <std::size_t Dimensions>
using In = nb::ndarray<const Word, nb::ndim<Dimensions>, nb::c_contig, nb::device::cpu>;
using Signed = nb::ndarray<const std::int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// A key that is there may be read by calls without the interpreter lock, so it is not replaced.
constexpr const char *once = "Expected each key once";

void expect(bool fits, const char *what) {
    if (!fits) throw std::invalid_argument(what);
}

// Returns the array of this shape that `fill(out, scratch)` writes without the interpreter lock.
template <std::size_t Dimensions, typename Fill>
nb::object made(const Handle &handle, std::size_t limbs, const std::size_t (&shape)[Dimensions], const Fill &fill) {
    std::size_t words = 1;
    for (const std::size_t size : shape) words *= size;
    auto out = std::make_unique<Lent>(handle.store, words);
    Word *data = out->data();
    {
        nb::gil_scoped_release unlocked;
        const Lent scratch(handle.store, scratch_words(handle.context, limbs));
        fill(data, scratch.data());
    }
    nb::capsule owner(out.release(), [](void *lent) noexcept { delete static_cast<Lent *>(lent); });
    return nb::cast(nb::ndarray<nb::numpy, Word, nb::ndim<Dimensions>>(data, Dimensions, shape, owner));
}

// The level of a ciphertext, or of an extended form, that was checked.
std::size_t level(const Handle &handle, const In<3> &a, bool extended = false) {
    const std::size_t places = a.shape(1);
    expect(a.shape(2) == handle.context.degree() && a.shape(0) && places > (extended ? 1 : 0) &&
               places - extended <= handle.context.limbs() && (!extended || handle.context.switches()),
           "Expected a ciphertext of these parameters");
    return places - extended;
}

bool same_shape(const In<3> &a, const In<3> &b) {
    return a.shape(0) == b.shape(0) && a.shape(1) == b.shape(1) && a.shape(2) == b.shape(2);
}

SwitchKey loaded(const Handle &handle, const In<4> &residues, std::size_t limbs) {
    const Context &context = handle.context;
    expect(residues.shape(0) == context.limbs() && residues.shape(1) == 2 &&
               residues.shape(2) == context.limbs() + 1 && residues.shape(3) == context.degree(),
           "Expected a key of these parameters: (digits, 2, primes, N)");
    SwitchKey key(context, limbs);
    nb::gil_scoped_release unlocked;
    expect(key.load(context, residues.data()), "Expected numbers below their primes");
    return key;
}

const SwitchKey &galois_key(const Handle &handle, const Keys &keys, std::size_t element, std::size_t limbs) {
    const auto found = keys.set.galois.find(element);
    expect(keys.handle.get() == &handle && found != keys.set.galois.end() && found->second.limbs() >= limbs,
           "Expected a key of this rotation, level and context");
    return found->second;
}

using Operation = void (*)(const Context &, std::size_t, std::size_t, const Word *, const Word *, Word *);

template <Operation operation>
nb::object two_ciphertexts(const Handle &handle, In<3> a, In<3> b) {
    const std::size_t limbs = level(handle, a);
    expect(same_shape(a, b), "Expected two ciphertexts of one level");
    const Aligned left(a, handle.store), right(b, handle.store);
    return made<3>(handle, limbs, {a.shape(0), limbs, a.shape(2)}, [&](Word *out, Word *) {
        operation(handle.context, limbs, a.shape(0), left, right, out);
    });
}

template <Operation operation>
nb::object with_plaintext(const Handle &handle, In<3> a, In<2> plain) {
    const std::size_t limbs = level(handle, a);
    expect(plain.shape(0) == limbs && plain.shape(1) == a.shape(2), "Expected a plaintext of the ciphertext's level");
    const Aligned left(a, handle.store), right(plain, handle.store);
    return made<3>(handle, limbs, {a.shape(0), limbs, a.shape(2)}, [&](Word *out, Word *) {
        operation(handle.context, limbs, a.shape(0), left, right, out);
    });
}

nb::object product(const Handle &handle, In<3> a, In<3> b) {
    const std::size_t limbs = level(handle, a);
    expect(same_shape(a, b) && a.shape(0) == 2, "Expected two ciphertexts of two polynomials and of one level");
    const Aligned left(a, handle.store), right(b, handle.store);
    return made<3>(handle, limbs, {3, limbs, a.shape(2)},
                   [&](Word *out, Word *) { multiply(handle.context, limbs, left, right, out); });
}

nb::object inner_product(const Handle &handle, std::vector<In<3>> ciphers, std::vector<In<2>> plains, bool extended) {
    expect(!ciphers.empty() && ciphers.size() == plains.size(), "Expected as many plaintexts as ciphertexts");
    const std::size_t limbs = level(handle, ciphers[0], extended), count = ciphers[0].shape(0);
    std::vector<Aligned> kept;
    std::vector<const Word *> a, b;
    for (std::size_t term = 0; term < ciphers.size(); ++term) {
        expect(same_shape(ciphers[term], ciphers[0]) && plains[term].shape(0) == limbs + extended &&
                   plains[term].shape(1) == handle.context.degree(),
               "Expected ciphertexts and plaintexts of one level");
        a.push_back(kept.emplace_back(ciphers[term], handle.store));
        b.push_back(kept.emplace_back(plains[term], handle.store));
    }
    return made<3>(handle, limbs, {count, limbs + extended, handle.context.degree()}, [&](Word *out, Word *) {
        inner(handle.context, limbs, extended, count, a.data(), b.data(), a.size(), out, false);
    });
}

nb::object dropped(const Handle &handle, In<3> a, std::size_t to) {
    const std::size_t limbs = level(handle, a);
    expect(to >= 1 && to <= limbs, "Expected a level below the ciphertext's");
    const Aligned in(a, handle.store);
    return made<3>(handle, limbs, {a.shape(0), to, a.shape(2)},
                   [&](Word *out, Word *) { drop(handle.context, limbs, to, a.shape(0), in, out); });
}

nb::object rescaled(const Handle &handle, In<3> a) {
    const std::size_t limbs = level(handle, a);
    expect(limbs > 1, "Expected a ciphertext of two primes or more");
    const Aligned in(a, handle.store);
    return made<3>(handle, limbs, {a.shape(0), limbs - 1, a.shape(2)}, [&](Word *out, Word *scratch) {
        rescale(handle.context, limbs, a.shape(0), in, out, scratch);
    });
}

nb::object encoded(const Handle &handle, Signed coefficients, std::size_t limbs, bool extended) {
    expect(coefficients.shape(0) == handle.context.degree() && limbs >= 1 && limbs <= handle.context.limbs() &&
               (!extended || handle.context.switches()),
           "Expected N coefficients and a level of these parameters");
    return made<2>(handle, limbs, {limbs + extended, handle.context.degree()}, [&](Word *out, Word *) {
        encode(handle.context, limbs, extended, coefficients.data(), out);
    });
}

bool is_below(const Handle &handle, In<3> a, bool extended) {
    const std::size_t limbs = level(handle, a, extended);
    const Aligned in(a, handle.store);
    nb::gil_scoped_release unlocked;
    return below(handle.context, limbs, extended, a.shape(0), in);
}

// Threads that one caller at a time uses.
struct Team {
    Pool pool;
    std::mutex busy;
    explicit Team(std::size_t threads) : pool(threads) {}
};

// As `made`, by the threads of `team`, or alone if it is null: fill(out, pool, scratch).
template <typename Fill>
nb::object switched(const Handle &handle, std::size_t limbs, Team *team, const Fill &fill) {
    return made<3>(handle, limbs, {2, limbs, handle.context.degree()}, [&](Word *out, Word *scratch) {
        if (!team || !team->pool.here()) {
            Pool alone(1);
            return fill(out, alone, scratch);
        }
        const std::lock_guard<std::mutex> turn(team->busy);
        const Lent own(handle.store, scratch_words(handle.context, limbs, team->pool.threads()));
        fill(out, team->pool, own.data());
    });
}

nb::object relinearised(const Handle &handle, const Keys &keys, In<3> a, Team *team) {
    const std::size_t limbs = level(handle, a);
    expect(keys.handle.get() == &handle && a.shape(0) == 3 && keys.set.relinearisation &&
               keys.set.relinearisation->limbs() >= limbs,
           "Expected three polynomials and a relinearisation key of their level");
    const Aligned in(a, handle.store);
    return switched(handle, limbs, team, [&](Word *out, Pool &pool, Word *scratch) {
        relinearise(handle.context, limbs, *keys.set.relinearisation, in, out, pool, scratch);
    });
}

nb::object rotated(const Handle &handle, const Keys &keys, In<3> a, std::size_t element, Team *team) {
    const std::size_t limbs = level(handle, a);
    expect(a.shape(0) == 2, "Expected two polynomials");
    const SwitchKey &key = galois_key(handle, keys, element, limbs);
    const Permutation &permutation = handle.context.permutation(element);
    const Aligned in(a, handle.store);
    return switched(handle, limbs, team, [&](Word *out, Pool &pool, Word *scratch) {
        rotate(handle.context, limbs, key, permutation, in, out, pool, scratch);
    });
}

void check_digits(const In<3> &a, const In<3> &digits, std::size_t limbs) {
    expect(a.shape(0) == 2 && digits.shape(0) == limbs + 1 && digits.shape(1) == limbs && digits.shape(2) == a.shape(2),
           "Expected two polynomials and their digits");
}

nb::object hoisted(const Handle &handle, const Keys &keys, In<3> a, In<3> digits, std::size_t element, Team *team) {
    const std::size_t limbs = level(handle, a);
    check_digits(a, digits, limbs);
    const SwitchKey &key = galois_key(handle, keys, element, limbs);
    const Permutation &permutation = handle.context.permutation(element);
    const Aligned in(a, handle.store), from(digits, handle.store);
    return switched(handle, limbs, team, [&](Word *out, Pool &pool, Word *scratch) {
        rotate_hoisted(handle.context, limbs, key, permutation, in, from, out, pool, scratch);
    });
}

nb::object decomposed(const Handle &handle, In<3> a) {
    const std::size_t limbs = level(handle, a), n = a.shape(2);
    expect(a.shape(0) == 2 && handle.context.switches(), "Expected two polynomials, and a special prime");
    const Aligned in(a, handle.store);
    return made<3>(handle, limbs, {limbs + 1, limbs, n}, [&](Word *digits, Word *scratch) {
        decompose(handle.context, limbs, in + limbs * n, digits, scratch);
    });
}

nb::object rotated_extended(const Handle &handle, const Keys &keys, In<3> a, In<3> digits, std::size_t element) {
    const std::size_t limbs = level(handle, a);
    check_digits(a, digits, limbs);
    const SwitchKey &key = galois_key(handle, keys, element, limbs);
    const Permutation &permutation = handle.context.permutation(element);
    const Aligned in(a, handle.store), from(digits, handle.store);
    return made<3>(handle, limbs, {2, limbs + 1, a.shape(2)}, [&](Word *out, Word *scratch) {
        rotate_extended(handle.context, limbs, key, permutation, in, from, out, scratch);
    });
}

nb::object extended_form(const Handle &handle, In<3> a) {
    const std::size_t limbs = level(handle, a);
    expect(a.shape(0) == 2 && handle.context.switches(), "Expected two polynomials, and a special prime");
    const Aligned in(a, handle.store);
    return made<3>(handle, limbs, {2, limbs + 1, a.shape(2)},
                   [&](Word *out, Word *) { extend(handle.context, limbs, in, out); });
}

nb::object divided(const Handle &handle, In<3> sum) {
    const std::size_t limbs = level(handle, sum, true);
    const Aligned in(sum, handle.store);
    return made<3>(handle, limbs, {sum.shape(0), limbs, sum.shape(2)}, [&](Word *out, Word *) {
        const Lent copy(handle.store, sum.size());
        std::memcpy(copy.data(), in, sum.size() * sizeof(Word));
        divide(handle.context, limbs, sum.shape(0), copy.data(), out);
    });
}

nb::object rotated_sum(const Handle &handle, const Keys &keys, In<3> sum, std::size_t element) {
    const std::size_t limbs = level(handle, sum, true);
    expect(sum.shape(0) == 2, "Expected two polynomials");
    const SwitchKey &key = galois_key(handle, keys, element, limbs);
    const Permutation &permutation = handle.context.permutation(element);
    const Aligned in(sum, handle.store);
    return made<3>(handle, limbs, {2, limbs + 1, sum.shape(2)}, [&](Word *out, Word *scratch) {
        const Lent copy(handle.store, sum.size());
        std::memcpy(copy.data(), in, sum.size() * sizeof(Word));
        rotate_extended_sum(handle.context, limbs, key, permutation, copy.data(), out, false, scratch);
    });
}

nb::object sum_extended(const Handle &handle, In<3> a, In<3> b) {
    const std::size_t limbs = level(handle, a, true);
    expect(same_shape(a, b), "Expected two extended forms of one level");
    const Aligned left(a, handle.store), right(b, handle.store);
    return made<3>(handle, limbs, {a.shape(0), limbs + 1, a.shape(2)}, [&](Word *out, Word *) {
        add_extended(handle.context, limbs, a.shape(0), left, right, out);
    });
}

}  // namespace

Path path_of(const std::string &name) {
    if (name.empty()) return best_path();
    if (name == "portable") return Path::portable;
    if (name == "avx2") return Path::avx2;
    expect(name == "ifma", "Expected a path: portable, avx2 or ifma");
    return Path::ifma;
}

void bind_evaluator(nb::module_ &module) {
    using nb::arg;
    module.def("runs_here", [](const std::string &path) { return runs_here(path_of(path)); }, arg("path"));
    nb::class_<Team>(module, "Pool").def("__init__", [](Team *self, std::size_t threads) {
        expect(threads >= 1 && threads <= 64, "Expected from 1 to 64 threads");
        new (self) Team(threads);
    });
    nb::class_<Keys>(module, "KeySet")
        .def("__init__", [](Keys *self, std::shared_ptr<Handle> context) { new (self) Keys{std::move(context), {}}; })
        .def("add_relinearisation",
             [](Keys &keys, In<4> residues, std::size_t limbs) {
                 SwitchKey key = loaded(*keys.handle, residues, limbs);
                 expect(!keys.set.relinearisation, once);
                 keys.set.relinearisation.emplace(std::move(key));
             })
        .def("add_galois",
             [](Keys &keys, std::size_t element, In<4> residues, std::size_t limbs) {
                 SwitchKey key = loaded(*keys.handle, residues, limbs);
                 expect(keys.set.galois.emplace(element, std::move(key)).second, once);
             })
        .def_prop_ro("bytes", [](const Keys &keys) { return keys.set.bytes(); });
    nb::class_<Handle>(module, "Context")
        .def(
            "__init__",
            [](Handle *self, std::size_t degree, const std::vector<Word> &primes, Word special,
               const std::string &path) { new (self) Handle(degree, primes, special, path_of(path)); },
            arg("degree"), arg("primes"), arg("special"), arg("path") = "")
        .def_prop_ro("kernels", [](const Handle &handle) { return handle.context.ring(0).kernels->name; })
        .def("element", [](const Handle &handle, long step) { return handle.context.element(step); })
        .def("add", &two_ciphertexts<&add>)
        .def("subtract", &two_ciphertexts<&subtract>)
        .def("add_plain", &with_plaintext<&add_plain>)
        .def("multiply_plain", &with_plaintext<&multiply_plain>)
        .def("multiply", &product)
        .def("inner", &inner_product, arg("ciphers"), arg("plains"), arg("extended") = false)
        .def("drop", &dropped)
        .def("rescale", &rescaled)
        .def("encode", &encoded, arg("coefficients"), arg("limbs"), arg("extended") = false)
        .def("below", &is_below, arg("rows"), arg("extended") = false)
        .def("relinearise", &relinearised, arg("keys"), arg("a"), arg("pool") = nb::none())
        .def("rotate", &rotated, arg("keys"), arg("a"), arg("element"), arg("pool") = nb::none())
        .def("decompose", &decomposed)
        .def("rotate_hoisted", &hoisted, arg("keys"), arg("a"), arg("digits"), arg("element"), arg("pool") = nb::none())
        .def("rotate_extended", &rotated_extended)
        .def("rotate_extended_sum", &rotated_sum)
        .def("extend", &extended_form)
        .def("add_extended", &sum_extended)
        .def("divide", &divided);
}

}  // namespace confide::ckks
