// Programs of confide::ckks made from any bytes: refused, or executed with the same bits on every instruction set of
// this machine and with any number of threads. Under the sanitizers, with libFuzzer or with random bytes:
//
//   clang++ -std=c++17 -g -O1 -fsanitize=fuzzer,address,undefined -Inative native/fuzz/ckks_fuzz.cpp SOURCES
//   g++ -std=c++17 -g -O1 -pthread -fsanitize=address,undefined -fno-sanitize-recover=all -DCONFIDE_DRIVER ...
//
// SOURCES are native/ckks/*.cpp but for bind*.cpp. tests/test_native.py builds and runs both.
#include "ckks/program.hpp"

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>

#include "draw.hpp"

namespace {

using namespace confide::ckks;
using confide::fuzz::Draw;
using confide::fuzz::expect;

constexpr std::size_t degree = 1024;
constexpr std::size_t most_instructions = 12;
constexpr Path paths[] = {Path::portable, Path::avx2, Path::ifma};

// Primes that are 1 modulo 2N: two that every instruction set takes, and one that is too long for IFMA.
const std::vector<Word> data_primes = {1125899906826241, 1099511592961, 1152921504606830593};
constexpr Word special_prime = 1125899906820097;

// Arrays of exactly the right size, so that the word behind the last one is out of bounds.
using Words = std::unique_ptr<Word[]>;

Words random_rows(std::mt19937_64 &random, std::size_t polynomials, const std::vector<Word> &primes) {
    Words rows(new Word[polynomials * primes.size() * degree]);
    for (std::size_t row = 0; row < polynomials * primes.size(); ++row)
        for (std::size_t i = 0; i < degree; ++i) rows[row * degree + i] = random() % primes[row % primes.size()];
    return rows;
}

// Parameters on one instruction set, with a key that any element is taken to have.
struct Side {
    std::shared_ptr<const Context> context;
    Path path;
};

struct Setting {
    std::vector<Word> primes;  // of a ciphertext at the top
    bool switches;
    std::vector<Side> sides;
    Words key;  // [digits][2][primes + special][N]
};

const std::vector<Setting> &settings() {
    static const std::vector<Setting> all = [] {
        std::mt19937_64 random(1);
        std::vector<Setting> made;
        for (const std::size_t limbs : {1u, 2u, 3u})
            for (const bool switches : {false, true}) {
                Setting &one = made.emplace_back();
                one.primes.assign(data_primes.begin(), data_primes.begin() + static_cast<std::ptrdiff_t>(limbs));
                one.switches = switches;
                const Word special = switches ? special_prime : 0;
                for (const Path path : paths)
                    if (runs_here(path))
                        one.sides.push_back({std::make_shared<Context>(degree, one.primes, special, path), path});
                std::vector<Word> places = one.primes;
                places.push_back(special_prime);
                one.key = random_rows(random, 2 * limbs, places);
            }
        return made;
    }();
    return all;
}

// What a call of `Program` gave: a number, or that it was refused.
struct Result {
    bool refused;
    std::size_t number;
    bool operator==(const Result &other) const { return refused == other.refused && number == other.number; }
};

Result tried(const std::function<std::size_t()> &call) {
    try {
        return {false, call()};
    } catch (const std::invalid_argument &) {
        return {true, 0};
    }
}

std::size_t element(Draw &draw) {
    static const std::size_t some[] = {0, 1, 3, 9, 27, 1025, 2047, 4};  // relinearisation, nothing, ..., none at all
    const std::size_t which = draw.near(8);
    return which < 8 ? some[which] : which;
}

using Call = std::function<std::size_t(Program &)>;

// A linear map that can be copied: each side makes its own `Transform` of it, which holds its weights.
struct Map {
    std::vector<Baby> babies;
    std::vector<std::vector<Weight>> giants;
    std::size_t giant_element;
};

Map map_of(Draw &draw, std::size_t sources, std::size_t plains) {
    Map made;
    const std::size_t babies = draw.byte() % 6, giants = draw.byte() % 4;
    for (std::size_t i = 0; i < babies; ++i)
        made.babies.push_back({static_cast<long>(draw.near(sources + i)) - static_cast<long>(sources), element(draw)});
    for (std::size_t i = 0; i < giants; ++i) {
        auto &weights = made.giants.emplace_back();
        for (std::size_t count = draw.byte() % 4; count-- > 0;) weights.push_back({draw.near(babies), draw.near(plains)});
    }
    made.giant_element = element(draw);
    return made;
}

std::vector<std::size_t> several(Draw &draw, std::size_t most, const std::function<std::size_t()> &one) {
    std::vector<std::size_t> found(draw.byte() % (most + 1));
    for (std::size_t &place : found) place = one();
    return found;
}

// The next call of a program that has so many registers and plaintexts.
Call next(Draw &draw, std::size_t registers, std::size_t plains, std::size_t most_limbs, const std::int64_t *numbers) {
    const auto held = [&] { return draw.near(registers); };
    const std::size_t limbs = draw.near(most_limbs) + 1, one = held(), other = held(), place = draw.near(plains);
    switch (draw.byte() % 10) {
        case 0: return [=](Program &program) { return program.input(limbs); };
        case 1: {
            const auto shift = static_cast<unsigned>(draw.near(80));
            const bool extended = draw.byte() % 2;
            return [=](Program &program) { return program.plain(numbers, shift, limbs, extended); };
        }
        case 2: {
            const auto sources = several(draw, 3, held);
            const Map made = map_of(draw, sources.size(), plains);
            return [=](Program &program) {
                return program.transform(sources, limbs, {made.babies, made.giants, made.giant_element});
            };
        }
        case 3: {
            std::vector<std::vector<std::size_t>> groups(draw.byte() % 3);
            for (auto &group : groups) group = several(draw, 3, [&] { return element(draw); });
            return [=](Program &program) { return program.fold(one, limbs, groups); };
        }
        case 4: {
            const std::size_t by = element(draw);
            return [=](Program &program) { return program.rotate(one, limbs, by); };
        }
        case 5: return [=](Program &program) { return program.product(one, other, limbs); };
        case 6: {
            const std::size_t drops = draw.near(most_limbs);
            return [=](Program &program) { return program.divide(one, limbs, drops); };
        }
        case 7: return [=](Program &program) { return program.add(one, other, limbs); };
        case 8: {
            const auto sources = several(draw, 3, held);
            std::vector<std::size_t> factors;
            for (std::size_t i = draw.rarely(); i < sources.size(); ++i) factors.push_back(draw.near(plains));
            return [=](Program &program) { return program.combine(sources, limbs, factors); };
        }
        default: return [=](Program &program) { return program.add_plain(one, limbs, place); };
    }
}

struct Made {
    std::vector<std::unique_ptr<Program>> programs;  // one for each side
    std::vector<std::size_t> inputs;                 // limbs of each
};

// Makes the same program on every side; what one refuses all refuse.
Made make(Draw &draw, const Setting &setting, const std::int64_t *numbers) {
    Made made;
    for (const Side &side : setting.sides) made.programs.push_back(std::make_unique<Program>(side.context));
    const auto all = [&](const Call &call) {
        const Result first = tried([&] { return call(*made.programs[0]); });
        for (std::size_t i = 1; i < made.programs.size(); ++i)
            expect(tried([&] { return call(*made.programs[i]); }) == first, "one instruction set refuses, another not");
        return first;
    };
    const std::size_t inputs = 1 + draw.byte() % 2, constants = draw.byte() % 3;
    for (std::size_t i = 0; i < inputs; ++i) all([&](Program &program) { return program.input(setting.primes.size()); });
    for (std::size_t i = 0; i < constants; ++i)
        all([&](Program &program) { return program.plain(numbers, 3, setting.primes.size(), setting.switches); });
    for (std::size_t i = 0; i < most_instructions && !draw.empty(); ++i) {
        const std::size_t registers = made.programs[0]->registers().size();
        all(next(draw, registers, made.programs[0]->plains(), setting.primes.size(), numbers));
    }
    const std::size_t registers = made.programs[0]->registers().size();
    const auto outputs = several(draw, 3, [&] { return draw.near(registers); });
    std::vector<std::size_t> limbs;
    for (std::size_t i = draw.rarely(); i < outputs.size(); ++i) {
        const bool there = outputs[i] < registers && !draw.rarely();
        limbs.push_back(there ? made.programs[0]->registers()[outputs[i]].limbs : draw.near(4));
    }
    const auto finish = [&](Program &program) {
        program.finish(outputs, limbs);
        return std::size_t{0};
    };
    if (all(finish).refused) made.programs.clear();
    if (!made.programs.empty()) {
        expect(all(finish).refused, "finished twice");
        for (const std::size_t input : made.programs[0]->inputs())
            made.inputs.push_back(made.programs[0]->registers()[input].limbs);
    }
    return made;
}

// Loads the keys that a program needs. Returns whether all of them are there, in full.
bool load(Draw draw, const Program &program, const Setting &setting, ProgramKeys &keys) {
    bool complete = true;
    for (const auto &[which, limbs] : program.key_limbs()) {
        const bool absent = draw.rarely(), small = draw.rarely() && limbs > 1, wrong = draw.rarely();
        complete &= !absent && !small && !wrong;
        if (absent) continue;
        if (!wrong) {
            expect(keys.load(which, small ? limbs - 1 : limbs, setting.key.get()), "a right key is refused");
            continue;
        }
        const std::size_t rows = 2 * setting.primes.size() * (setting.primes.size() + 1);
        Words spoilt(new Word[rows * degree]);
        std::memcpy(spoilt.get(), setting.key.get(), rows * degree * sizeof(Word));
        spoilt[draw.word() % degree] = data_primes[0] + draw.byte();  // digit 0, polynomial 0, the first prime
        expect(!keys.load(which, limbs, spoilt.get()), "a key beyond its primes is taken");
    }
    return complete;
}

// Two questions behind each other, by threads that take one each: two equal replies.
void run_twice(Program &program, const ProgramKeys &keys, const Setting &setting, const std::vector<std::size_t> &limbs,
               const std::vector<const Word *> &inputs, const std::vector<std::vector<Word>> &expected) {
    std::vector<Words> twice;
    std::vector<const Word *> in;
    for (std::size_t i = 0; i < inputs.size(); ++i) {
        const std::size_t words = 2 * limbs[i] * degree;
        twice.emplace_back(new Word[2 * words]);
        for (std::size_t copy = 0; copy < 2; ++copy)
            std::memcpy(twice.back().get() + copy * words, inputs[i], words * sizeof(Word));
        in.push_back(twice.back().get());
    }
    std::vector<Words> replies;
    std::vector<Word *> out;
    for (const auto &one : expected) {
        replies.emplace_back(new Word[2 * one.size()]);
        out.push_back(replies.back().get());
    }
    program.run_each(keys, in, out, 2, 2);
    for (std::size_t i = 0; i < expected.size(); ++i)
        for (std::size_t copy = 0; copy < 2; ++copy)
            expect(std::equal(expected[i].begin(), expected[i].end(), out[i] + copy * expected[i].size()),
                   "two questions at once give something else");
    if (twice.empty()) return;
    twice.back()[2 * limbs.back() * degree] = setting.primes[0];  // the second question's first word
    expect(tried([&] {
               program.run_each(keys, in, out, 2, 2);
               return std::size_t{0};
           }).refused, "a second question beyond its primes is taken");
}

std::size_t executed = 0;               // programs to the end
Word digest = 14695981039346656037u;    // of what they returned: the same on every machine (FNV-1a, by words)

void run(Draw &draw, const Setting &setting, const Made &made) {
    std::mt19937_64 random(2);
    std::vector<Words> inputs;
    std::vector<const Word *> in;
    const bool wrong = draw.rarely() && !made.inputs.empty();
    for (const std::size_t limbs : made.inputs) {
        const std::vector<Word> primes(setting.primes.begin(), setting.primes.begin() + static_cast<std::ptrdiff_t>(limbs));
        inputs.push_back(random_rows(random, 2, primes));
        in.push_back(inputs.back().get());
    }
    if (wrong) inputs[0][draw.word() % degree] = setting.primes[0] + draw.byte();
    std::vector<std::vector<Word>> first;
    for (std::size_t side = 0; side < made.programs.size(); ++side) {
        Program &program = *made.programs[side];
        ProgramKeys keys(setting.sides[side].context);
        const bool complete = load(draw, program, setting, keys);
        for (const std::size_t threads : {std::size_t{1}, std::size_t{3}}) {
            std::vector<std::vector<Word>> results;
            std::vector<Word *> out;
            for (const std::size_t limbs : program.output_limbs()) results.emplace_back(2 * limbs * degree, ~Word{0});
            for (auto &result : results) out.push_back(result.data());
            const Result done = tried([&] {
                program.run(keys, in, out, threads);
                return std::size_t{0};
            });
            expect(done.refused == (wrong || !complete), "what is wrong is not refused, or what is right is");
            if (done.refused) continue;
            for (std::size_t i = 0; i < results.size(); ++i)
                for (std::size_t at = 0; at < results[i].size(); ++at)
                    expect(results[i][at] < setting.primes[at / degree % program.output_limbs()[i]], "not reduced");
            if (first.empty()) {
                first = results;
                ++executed;
                for (const auto &result : results)
                    for (const Word word : result) digest = (digest ^ word) * 1099511628211u;
            }
            expect(results == first, "instruction sets or threads differ");
            if (threads > 1) run_twice(program, keys, setting, made.inputs, in, first);
        }
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *bytes, std::size_t size) {
    static const std::vector<std::int64_t> numbers = [] {
        std::mt19937_64 random(3);
        std::vector<std::int64_t> made(degree);
        for (std::int64_t &one : made) one = static_cast<std::int64_t>(random());
        made[0] = INT64_MIN;
        made[1] = INT64_MAX;
        return made;
    }();
    Draw draw(bytes, size);
    const Setting &setting = settings()[draw.byte() % settings().size()];
    const Made made = make(draw, setting, numbers.data());
    if (!made.programs.empty()) run(draw, setting, made);
    return 0;
}

#ifdef CONFIDE_DRIVER
// Random bytes instead of a fuzzer's: `ckks_fuzz [repeats] [seed]`.
int main(int count, char **arguments) {
    const std::size_t repeats = confide::fuzz::drive(count, arguments, 160, LLVMFuzzerTestOneInput);
    expect(executed * 20 >= repeats, "too few programs were executed to have seen anything");
    std::printf("the programs agree: %zu executed, digest %016llx\n", executed, static_cast<unsigned long long>(digest));
    return 0;
}
#endif
