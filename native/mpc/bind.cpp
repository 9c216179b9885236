// Products, streams and comparison keys for Python: shapes are checked here before memory is touched, the interpreter
// lock is released while they run.
#include "bind.hpp"

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <stdexcept>
#include <string>
#include <tuple>

#include "paths.hpp"
#include "products.hpp"
#include "selections.hpp"

namespace nb = nanobind;

namespace confide::mpc {

namespace {

template <typename T, std::size_t Dimensions>
using Strided = nb::ndarray<const T, nb::ndim<Dimensions>, nb::device::cpu>;
template <typename T, std::size_t Dimensions>
using In = nb::ndarray<const T, nb::ndim<Dimensions>, nb::c_contig, nb::device::cpu>;
template <typename T, std::size_t Dimensions>
using Out = nb::ndarray<T, nb::ndim<Dimensions>, nb::c_contig, nb::device::cpu>;

struct Name {
    const char *text;
    Path path;
};
constexpr Name names[] = {
    {"portable", Path::portable}, {"avx2", Path::avx2}, {"vaes", Path::vaes}, {"avx512", Path::avx512}};

Path named(const std::string &name) {
    for (const auto &[text, path] : names)
        if (name == text) return path;
    throw std::invalid_argument("Expected a path of portable, avx2, vaes or avx512");
}

// The path of that name, or the best of this machine.
Path path_of(const std::string &name) {
    const Path path = name.empty() ? best_path() : named(name);
    if (!runs_here(path)) throw std::invalid_argument("Expected an instruction set that this machine has");
    return path;
}

template <typename Array>
void expect_aligned(const Array &words) {
    if (reinterpret_cast<std::uintptr_t>(words.data()) % sizeof(Word))
        throw std::invalid_argument("Expected words at addresses that are multiples of eight");
}

std::size_t product_of(std::initializer_list<std::size_t> factors) {
    std::size_t product = 1;
    for (const std::size_t factor : factors)
        if (__builtin_mul_overflow(product, factor, &product)) throw std::invalid_argument("Expected smaller sizes");
    return product;
}

void multiply_all(Strided<Word, 3> a, Strided<Word, 3> b, Out<Word, 3> out, bool add, const std::string &path) {
    const std::size_t count = out.shape(0), m = out.shape(1), n = out.shape(2), k = a.shape(2);
    if (a.shape(0) != count || b.shape(0) != count || a.shape(1) != m || b.shape(1) != k || b.shape(2) != n)
        throw std::invalid_argument("Expected a (count, m, k), b (count, k, n) and out (count, m, n)");
    expect_aligned(a);
    expect_aligned(b);
    expect_aligned(out);
    const ProductLoops &loops = product_loops(path_of(path));
    nb::gil_scoped_release unlocked;
    for (std::size_t i = 0; i < count; ++i) {
        const auto place = static_cast<std::ptrdiff_t>(i);
        multiply(loops, m, k, n, {a.data() + place * a.stride(0), a.stride(1), a.stride(2)},
                 {b.data() + place * b.stride(0), b.stride(1), b.stride(2)}, out.data() + i * m * n, add);
    }
}

void convolve_all(Strided<Word, 4> x, In<Word, 4> w, std::tuple<std::size_t, std::size_t> stride,
                  std::tuple<std::size_t, std::size_t, std::size_t, std::size_t> padding, Out<Word, 4> out, bool add,
                  const std::string &path) {
    constexpr std::size_t most = std::size_t{1} << 40;
    Pictures pictures{x.data(), x.shape(0), x.shape(1), x.shape(2), x.shape(3), {}};
    for (std::size_t i = 0; i < 4; ++i) pictures.strides[i] = x.stride(i);
    const auto [down, across] = stride;
    const auto [top, left, bottom, right] = padding;
    const Convolution shape{w.shape(0), w.shape(2), w.shape(3), down,         across,      top,
                            left,       bottom,     right,      out.shape(2), out.shape(3)};
    if (w.shape(1) != pictures.channels || out.shape(0) != pictures.count || out.shape(1) != shape.outputs)
        throw std::invalid_argument("Expected x (n, c, h, w), w (o, c, kh, kw) and out (n, o, oh, ow)");
    for (const std::size_t size : {down, across, top, left, bottom, right, pictures.height, pictures.width})
        if (size > most) throw std::invalid_argument("Expected smaller sizes");
    const std::size_t tall = pictures.height + top + bottom, wide = pictures.width + left + right;
    if (!down || !across || !shape.kernel_height || !shape.kernel_width || tall < shape.kernel_height ||
        wide < shape.kernel_width || shape.result_height != (tall - shape.kernel_height) / down + 1 ||
        shape.result_width != (wide - shape.kernel_width) / across + 1)
        throw std::invalid_argument("Expected kernels and steps that fit the pictures and the result");
    if (product_of({tall, wide, pictures.channels, pictures.count}) > most ||
        product_of({pictures.channels, shape.kernel_height, shape.kernel_width}) > most)
        throw std::invalid_argument("Expected smaller sizes");
    expect_aligned(x);
    expect_aligned(w);
    expect_aligned(out);
    const ProductLoops &loops = product_loops(path_of(path));
    nb::gil_scoped_release unlocked;
    convolve(loops, pictures, w.data(), shape, out.data(), add);
}

Schedule schedule_of(const BlockLoops &loops, const nb::bytes &key) {
    if (key.size() != block_bytes) throw std::invalid_argument("Expected a key of 16 bytes");
    Schedule schedule;
    loops.expand(static_cast<const Byte *>(key.data()), schedule);
    return schedule;
}

void stream(const nb::bytes &key, Word nonce, Out<Word, 1> out, const std::string &path) {
    expect_aligned(out);
    const BlockLoops &loops = block_loops(path_of(path));
    const Schedule schedule = schedule_of(loops, key);
    nb::gil_scoped_release unlocked;
    loops.stream(schedule, nonce, out.data(), out.shape(0));
}

void expect_batch(const In<Byte, 2> &roots, std::size_t count, unsigned bits, std::size_t corrections) {
    if (bits < 1 || bits > 63) throw std::invalid_argument("Expected bits from 1 to 63");
    if (roots.shape(0) != count || roots.shape(1) != block_bytes)
        throw std::invalid_argument("Expected a root of 16 bytes for each key");
    const std::size_t levels = bits > 7 ? bits - 7 : 0;
    if (corrections != product_of({levels + 1, count, block_bytes}))
        throw std::invalid_argument("Expected a block of corrections for each key and level, and for each leaf");
}

void generate(In<Byte, 2> roots0, In<Byte, 2> roots1, In<Word, 1> alpha, unsigned bits, const nb::bytes &key,
              Out<Byte, 1> out, const std::string &path) {
    const std::size_t count = alpha.shape(0);
    expect_batch(roots0, count, bits, out.shape(0));
    expect_batch(roots1, count, bits, out.shape(0));
    expect_aligned(alpha);
    const BlockLoops &loops = block_loops(path_of(path));
    const Schedule schedule = schedule_of(loops, key);
    nb::gil_scoped_release unlocked;
    loops.generate(schedule, roots0.data(), roots1.data(), alpha.data(), count, bits, out.data());
}

void evaluate(unsigned party, In<Byte, 2> roots, In<Byte, 1> corrections, In<Word, 1> x, unsigned bits,
              const nb::bytes &key, Out<Byte, 1> out, unsigned drop, bool top, const std::string &path) {
    const std::size_t count = x.shape(0);
    if (party > 1) throw std::invalid_argument("Expected party 0 or 1");
    if (drop > 63) throw std::invalid_argument("Expected to drop at most 63 bits");
    expect_batch(roots, count, bits, corrections.shape(0));
    if (out.shape(0) != count) throw std::invalid_argument("Expected room for a share of each key");
    expect_aligned(x);
    const BlockLoops &loops = block_loops(path_of(path));
    const Schedule schedule = schedule_of(loops, key);
    nb::gil_scoped_release unlocked;
    loops.evaluate(schedule, party, roots.data(), corrections.data(), x.data(), count, bits, drop, top,
                   out.data());
}

// Shares of u and of a number of `bits` bits as they were dealt, one of each for every value; bits = 0: of u alone.
Tops tops_of(const In<Byte, 1> &shifted, const In<Byte, 1> &top, std::size_t count, unsigned bits) {
    const std::size_t size = bits == 0 ? 0 : bits <= 8 ? 1 : bits <= 16 ? 2 : bits <= 32 ? 4 : 8;
    if (shifted.shape(0) != product_of({count, sizeof(Word)}) || top.shape(0) != product_of({count, size}))
        throw std::invalid_argument("Expected a share of u and of m for each value");
    return {shifted.data(), top.data(), size};
}

void truncate_words(unsigned party, In<Word, 1> opened, unsigned bits, In<Byte, 1> shifted, In<Byte, 1> top,
                    Out<Word, 1> out) {
    const std::size_t count = out.shape(0);
    if (party > 1 || bits < 1 || bits > 62) throw std::invalid_argument("Expected party 0 or 1 and bits from 1 to 62");
    if (opened.shape(0) != count) throw std::invalid_argument("Expected room for a word for each value");
    expect_aligned(opened);
    expect_aligned(out);
    const Tops tops = tops_of(shifted, top, count, bits);
    nb::gil_scoped_release unlocked;
    truncate(party, opened.data(), count, bits, tops, out.data());
}

void select_words(unsigned party, In<Byte, 1> g, In<Byte, 1> beta, In<Word, 1> opened, unsigned bits,
                  In<Byte, 1> shifted, In<Byte, 1> top, In<Byte, 1> chosen_shifted, In<Byte, 1> chosen_top,
                  Out<Word, 1> out) {
    const std::size_t count = out.shape(0);
    if (party > 1 || bits > 62) throw std::invalid_argument("Expected party 0 or 1 and bits from 0 to 62");
    if (opened.shape(0) != count || g.shape(0) != count || beta.shape(0) != product_of({count, sizeof(Word)}))
        throw std::invalid_argument("Expected a bit, a share of beta and room for a word for each value");
    expect_aligned(opened);
    expect_aligned(out);
    const Tops tops = tops_of(shifted, top, count, bits), chosen = tops_of(chosen_shifted, chosen_top, count, bits);
    nb::gil_scoped_release unlocked;
    select(party, g.data(), beta.data(), opened.data(), count, bits, tops, chosen, out.data());
}

}  // namespace

void bind(nb::module_ &module) {
    using nb::arg;
    module.def("runs_here", [](const std::string &name) { return runs_here(named(name)); }, arg("path"));
    module.def("best_path", [] {
        const Path best = best_path();
        for (const auto &[text, path] : names)
            if (path == best) return std::string(text);
        return std::string();
    });
    module.def("matmul", &multiply_all, arg("a").noconvert(), arg("b").noconvert(), arg("out").noconvert(), arg("add"),
               arg("path") = "");
    module.def("convolve", &convolve_all, arg("x").noconvert(), arg("w").noconvert(), arg("stride"), arg("padding"),
               arg("out").noconvert(), arg("add"), arg("path") = "");
    module.def("stream", &stream, arg("key"), arg("nonce"), arg("out").noconvert(), arg("path") = "");
    module.def("dcf_generate", &generate, arg("roots0").noconvert(), arg("roots1").noconvert(),
               arg("alpha").noconvert(), arg("bits"), arg("key"), arg("out").noconvert(), arg("path") = "");
    module.def("dcf_evaluate", &evaluate, arg("party"), arg("roots").noconvert(), arg("corrections").noconvert(),
               arg("x").noconvert(), arg("bits"), arg("key"), arg("out").noconvert(), arg("drop") = 0, arg("top") = false,
               arg("path") = "");
    module.def("truncate", &truncate_words, arg("party"), arg("opened").noconvert(), arg("bits"),
               arg("shifted").noconvert(), arg("top").noconvert(), arg("out").noconvert());
    module.def("select", &select_words, arg("party"), arg("g").noconvert(), arg("beta").noconvert(),
               arg("opened").noconvert(), arg("bits"), arg("shifted").noconvert(), arg("top").noconvert(),
               arg("chosen_shifted").noconvert(), arg("chosen_top").noconvert(), arg("out").noconvert());
}

}  // namespace confide::mpc
