// Programs for Python: made instruction by instruction when a model is loaded, then executed whole, without the
// interpreter lock. Levels, sizes and registers are checked by `Program`, arrays here.
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "bind.hpp"
#include "program.hpp"

namespace nb = nanobind;

namespace confide::ckks {

namespace {

template <std::size_t Dimensions>
using In = nb::ndarray<const Word, nb::ndim<Dimensions>, nb::c_contig, nb::device::cpu>;
using Out = nb::ndarray<Word, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Signed = nb::ndarray<const std::int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Pairs = std::vector<std::pair<std::size_t, std::size_t>>;

void expect(bool fits, const char *what) {
    if (!fits) throw std::invalid_argument(what);
}

std::shared_ptr<const Context> context_of(const std::shared_ptr<Handle> &handle) {
    return std::shared_ptr<const Context>(handle, &handle->context);
}

bool load(ProgramKeys &keys, std::size_t element, std::size_t limbs, In<4> residues) {
    const Context &context = *keys.context;
    expect(residues.shape(0) == context.limbs() && residues.shape(1) == 2 &&
               residues.shape(2) == context.limbs() + 1 && residues.shape(3) == context.degree(),
           "Expected a key of these parameters: (digits, 2, primes, N)");
    nb::gil_scoped_release unlocked;
    return keys.load(element, limbs, residues.data());
}

std::size_t plain(Program &program, Signed coefficients, unsigned shift, std::size_t limbs, bool extended) {
    expect(coefficients.shape(0) == program.context().degree(), "Expected N coefficients");
    nb::gil_scoped_release unlocked;
    return program.plain(coefficients.data(), shift, limbs, extended);
}

std::size_t transform(Program &program, std::vector<std::size_t> sources, std::size_t limbs,
                      const std::vector<std::pair<long, std::size_t>> &babies, const std::vector<Pairs> &giants,
                      std::size_t giant_element) {
    Transform made;
    for (const auto &[parent, element] : babies) made.babies.push_back({parent, element});
    for (const Pairs &giant : giants) {
        auto &weights = made.giants.emplace_back();
        for (const auto &[baby, plain] : giant) weights.push_back({baby, plain});
    }
    made.giant_element = giant_element;
    return program.transform(std::move(sources), limbs, std::move(made));
}

void run(Program &program, const ProgramKeys &keys, const std::vector<In<3>> &inputs, const std::vector<Out> &outputs,
         std::size_t threads) {
    const std::size_t degree = program.context().degree();
    expect(inputs.size() == program.inputs().size() && outputs.size() == program.outputs().size(),
           "Expected as many inputs and outputs as the program has");
    std::vector<const Word *> in;
    std::vector<Word *> out;
    for (std::size_t place = 0; place < inputs.size(); ++place) {
        const std::size_t limbs = program.registers()[program.inputs()[place]].limbs;
        expect(inputs[place].shape(0) == 2 && inputs[place].shape(1) == limbs && inputs[place].shape(2) == degree,
               "Expected inputs of shape (2, limbs, N)");
        in.push_back(inputs[place].data());
    }
    for (std::size_t place = 0; place < outputs.size(); ++place) {
        expect(outputs[place].shape(0) == 2 && outputs[place].shape(1) == program.output_limbs()[place] &&
                   outputs[place].shape(2) == degree,
               "Expected outputs of shape (2, limbs, N)");
        out.push_back(outputs[place].data());
    }
    nb::gil_scoped_release unlocked;
    program.run(keys, in, out, threads);
}

using Questions = nb::ndarray<const Word, nb::ndim<4>, nb::c_contig, nb::device::cpu>;
using Replies = nb::ndarray<Word, nb::ndim<4>, nb::c_contig, nb::device::cpu>;

void run_each(Program &program, const ProgramKeys &keys, const std::vector<Questions> &inputs,
              const std::vector<Replies> &outputs, std::size_t threads) {
    const std::size_t degree = program.context().degree();
    expect(!inputs.empty() && inputs.size() == program.inputs().size() && outputs.size() == program.outputs().size(),
           "Expected as many inputs and outputs as the program has");
    const std::size_t count = inputs[0].shape(0);
    const auto fits = [&](const auto &array, std::size_t limbs) {
        return array.shape(0) == count && array.shape(1) == 2 && array.shape(2) == limbs && array.shape(3) == degree;
    };
    std::vector<const Word *> in;
    std::vector<Word *> out;
    for (std::size_t place = 0; place < inputs.size(); ++place) {
        expect(fits(inputs[place], program.registers()[program.inputs()[place]].limbs),
               "Expected inputs of shape (count, 2, limbs, N)");
        in.push_back(inputs[place].data());
    }
    for (std::size_t place = 0; place < outputs.size(); ++place) {
        expect(fits(outputs[place], program.output_limbs()[place]), "Expected outputs of shape (count, 2, limbs, N)");
        out.push_back(outputs[place].data());
    }
    nb::gil_scoped_release unlocked;
    program.run_each(keys, in, out, count, threads);
}

// What a program does, one line for each instruction: for tests and for people.
std::vector<std::string> listing(const Program &program) {
    std::vector<std::string> found;
    for (const Instruction &one : program.instructions()) {
        std::string line = std::to_string(one.written) + " = " + name_of(one.kind);
        line += " at " + std::to_string(one.limbs) + " of";
        for (const std::size_t read : one.read) line += " " + std::to_string(read);
        for (const std::size_t place : one.plains) line += " p" + std::to_string(place);
        for (const std::size_t element : one.elements) line += " g" + std::to_string(element);
        if (one.drops) line += " drops " + std::to_string(one.drops);
        for (const Baby &baby : one.transform.babies)
            line += " b" + std::to_string(baby.parent) + ":" + std::to_string(baby.element);
        for (const auto &giant : one.transform.giants) {
            line += " |";
            for (const Weight &weight : giant)
                line += " " + std::to_string(weight.baby) + "*p" + std::to_string(weight.plain);
        }
        found.push_back(line);
    }
    return found;
}

std::vector<std::tuple<std::string, std::size_t, double, double>> profile(const Program &program) {
    std::vector<std::tuple<std::string, std::size_t, double, double>> found;
    for (const Program::Spent &one : program.profile())
        found.emplace_back(one.kind, one.count, one.seconds, one.least);
    return found;
}

}  // namespace

void bind_program(nb::module_ &module) {
    using nb::arg;
    module.def("wanted_threads", &wanted_threads);
    module.def("switched_off", &switched_off);
    nb::class_<ProgramKeys>(module, "ProgramKeys")
        .def("__init__",
             [](ProgramKeys *self, const std::shared_ptr<Handle> &handle) {
                 new (self) ProgramKeys(context_of(handle));
             })
        .def("load", &load, arg("element"), arg("limbs"), arg("residues").noconvert())
        .def_prop_ro("bytes", &ProgramKeys::bytes);
    nb::class_<Program>(module, "Program")
        .def("__init__",
             [](Program *self, const std::shared_ptr<Handle> &handle) { new (self) Program(context_of(handle)); })
        .def("input", &Program::input, arg("limbs"))
        .def("plain", &plain, arg("coefficients").noconvert(), arg("shift"), arg("limbs"), arg("extended"))
        .def("transform", &transform, arg("sources"), arg("limbs"), arg("babies"), arg("giants"), arg("giant_element"))
        .def("fold", &Program::fold, arg("source"), arg("limbs"), arg("groups"))
        .def("rotate", &Program::rotate, arg("source"), arg("limbs"), arg("element"))
        .def("product", &Program::product, arg("one"), arg("other"), arg("limbs"))
        .def("divide", &Program::divide, arg("source"), arg("limbs"), arg("drops"))
        .def("add", &Program::add, arg("one"), arg("other"), arg("limbs"))
        .def("combine", &Program::combine, arg("sources"), arg("limbs"), arg("plains"))
        .def("add_plain", &Program::add_plain, arg("source"), arg("limbs"), arg("plain"))
        .def("finish", &Program::finish, arg("outputs"), arg("limbs"))
        .def("run", &run, arg("keys"), arg("inputs").noconvert(), arg("outputs").noconvert(), arg("threads"))
        .def("run_each", &run_each, arg("keys"), arg("inputs").noconvert(), arg("outputs").noconvert(), arg("threads"))
        .def("key_limbs",
             [](const Program &program) {
                 return Pairs(program.key_limbs().begin(), program.key_limbs().end());
             })
        .def("listing", &listing)
        .def("profile", &profile)
        .def_prop_ro("arena_bytes", [](const Program &program) { return program.arena_words() * sizeof(Word); })
        .def_prop_ro("plain_bytes", &Program::plain_bytes);
}

}  // namespace confide::ckks
