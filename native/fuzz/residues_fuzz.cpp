// Packed residues, sums of ciphertexts times integers, and parameters, made from any bytes: refused, or right on every
// instruction set of this machine. Built as ckks_fuzz.cpp is; oracles go bit by bit and by 128-bit integers.
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>
#include <vector>

#include "ckks/context.hpp"
#include "ckks/packing.hpp"
#include "ckks/sums.hpp"
#include "draw.hpp"

namespace {

using namespace confide::ckks;
using confide::fuzz::Draw;
using confide::fuzz::expect;
using Wide = unsigned __int128;

constexpr Path paths[] = {Path::portable, Path::avx2, Path::ifma};

// --- packed residues -------------------------------------------------------------------------------------------------

void packing(Draw &draw) {
    const unsigned bits = 1 + draw.byte() % 61;
    const std::size_t count = draw.byte() % 90, size = packed_bytes(count, bits);
    const Word largest = Word{1} << bits, bound = draw.byte() % 2 ? largest : 1 + draw.word() % largest;
    // Arrays of exactly the right size, so that the byte behind the last one is out of bounds.
    const std::unique_ptr<std::uint8_t[]> body(new std::uint8_t[size]), again(new std::uint8_t[size]);
    for (std::size_t i = 0; i < size; ++i) body[i] = draw.byte();
    const std::unique_ptr<Word[]> expected(new Word[count]), words(new Word[count]);
    bool right = true;
    for (std::size_t i = 0; i < count; ++i) {
        expected[i] = 0;
        for (std::size_t bit = 0; bit < bits; ++bit) {
            const std::size_t at = i * bits + bit;
            expected[i] |= Word{body[at / 8] >> (at % 8) & 1u} << bit;
        }
        right &= expected[i] < bound;
    }
    for (std::size_t at = count * bits; at < 8 * size; ++at) right &= !(body[at / 8] >> (at % 8) & 1);
    for (const Path path : paths) {
        if (!runs_here(path)) continue;
        const Packing &loops = packing_of(path);
        expect(loops.unpack(body.get(), count, bits, bound, words.get()) == right, "unpacking takes what is wrong");
        expect(std::equal(words.get(), words.get() + count, expected.get()), "unpacked otherwise");
        loops.pack(words.get(), count, bits, again.get());
        expect(!right || std::equal(body.get(), body.get() + size, again.get()), "packed otherwise");
    }
}

// --- sums ------------------------------------------------------------------------------------------------------------

double weight(Draw &draw) {
    static const double odd[] = {NAN, INFINITY, -INFINITY, 0.5, 8589934592.0, -8589934592.0, 1e300, 8589934591.0};
    if (draw.rarely()) return odd[draw.byte() % 8];
    return static_cast<double>(static_cast<std::int32_t>(draw.word() >> (draw.byte() % 40 + 24)));
}

// Whether a map is as sums.hpp wants it, found out anew.
bool fits(std::size_t inputs, std::size_t outputs, const std::vector<Group> &groups) {
    std::vector<int> seen(outputs);
    for (const Group &group : groups) {
        if (group.inputs.empty() || group.weights.size() != group.results.size() * group.inputs.size()) return false;
        for (const auto place : group.inputs)
            if (place >= inputs) return false;
        for (std::size_t row = 0; row < group.results.size(); ++row) {
            if (group.results[row] >= outputs || seen[group.results[row]]++) return false;
            double sum = 0;
            for (std::size_t i = 0; i < group.inputs.size(); ++i) {
                const double one = group.weights[row * group.inputs.size() + i];
                if (!(std::fabs(one) < 8589934592.0) || one != std::floor(one)) return false;
                sum += std::fabs(one);
            }
            if (!(sum < 8589934592.0)) return false;
        }
    }
    for (const int count : seen)
        if (count != 1) return false;
    return true;
}

void sums(Draw &draw) {
    const std::size_t inputs = 1 + draw.byte() % 5, outputs = 1 + draw.byte() % 7;
    std::vector<Group> groups(1 + draw.byte() % 2);
    std::uint32_t next = 0;
    for (std::size_t g = 0; g < groups.size(); ++g) {
        const bool last = g + 1 == groups.size();
        for (std::size_t count = last ? outputs - next : draw.byte() % (outputs - next + 1); count-- > 0; ++next)
            groups[g].results.push_back(draw.rarely() ? draw.byte() % 9 : next);
        for (std::size_t count = draw.rarely() ? 0 : 1 + draw.byte() % 5; count-- > 0;)
            groups[g].inputs.push_back(static_cast<std::uint32_t>(draw.rarely() ? draw.word() : draw.byte() % inputs));
        groups[g].weights.resize(groups[g].results.size() * groups[g].inputs.size() + draw.rarely());
        for (double &one : groups[g].weights) one = weight(draw);
    }
    std::unique_ptr<IntegerMap> map;
    const bool right = fits(inputs, outputs, groups);
    try {
        map = std::make_unique<IntegerMap>(inputs, outputs, groups);
    } catch (const std::invalid_argument &) {
    }
    expect((map != nullptr) == right, "a map that is wrong is taken, or one that is right is not");
    if (!map) return;
    const std::vector<Modulus> primes = {Modulus(1125899906826241), Modulus(1152921504606830593)};
    const std::size_t degree = 16 * (1 + draw.byte() % 3), each = 2 * primes.size() * degree;
    std::mt19937_64 random(draw.word());
    const std::unique_ptr<Word[]> in(new Word[inputs * each]), biases(new Word[outputs * primes.size()]);
    for (std::size_t i = 0; i < inputs * each; ++i) in[i] = random() % primes[i / degree % primes.size()].value;
    for (std::size_t i = 0; i < outputs * primes.size(); ++i) biases[i] = random() % primes[i % primes.size()].value;
    std::vector<Word> expected(outputs * each);
    for (const Group &group : groups)
        for (std::size_t row = 0; row < group.results.size(); ++row)
            for (std::size_t at = 0; at < each; ++at) {
                const std::size_t prime = at / degree % primes.size(), result = group.results[row];
                const Word q = primes[prime].value;
                Wide total = at < each / 2 ? biases[result * primes.size() + prime] : 0;
                for (std::size_t i = 0; i < group.inputs.size(); ++i) {
                    const auto whole = static_cast<std::int64_t>(group.weights[row * group.inputs.size() + i]);
                    const Word residue = whole < 0 ? q - static_cast<Word>(-whole) % q : static_cast<Word>(whole) % q;
                    total = (total + Wide{residue} * in[group.inputs[i] * each + at]) % q;
                }
                expected[result * each + at] = static_cast<Word>(total);
            }
    for (const Path path : paths)
        for (const unsigned threads : {1u, 3u}) {
            if (!runs_here(path)) continue;
            const std::unique_ptr<Word[]> out(new Word[outputs * each]);
            weighted_sums(*map, primes, degree, in.get(), biases.get(), out.get(), threads, path);
            expect(std::equal(expected.begin(), expected.end(), out.get()), "sums are wrong");
        }
}

// --- parameters ------------------------------------------------------------------------------------------------------

bool is_prime(Word number) {
    for (Word by = 2; by < 64; ++by)
        if (number % by == 0) return number == by;
    const auto times = [number](Word a, Word b) { return static_cast<Word>(Wide{a} * b % number); };
    unsigned halvings = 0;
    Word odd = number - 1;
    for (; odd % 2 == 0; odd /= 2) ++halvings;
    for (const Word base : {2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37}) {
        Word value = 1;
        for (Word left = odd, square = base; left; left /= 2, square = times(square, square))
            if (left % 2) value = times(value, square);
        bool passes = value == 1 || value == number - 1;
        for (unsigned i = 1; i < halvings && !passes; ++i) {
            value = times(value, value);
            passes = value == number - 1;
        }
        if (!passes) return false;
    }
    return true;
}

Word modulus(Draw &draw) {
    static const Word some[] = {1125899906826241, 1125899906820097, 1099511592961, 1152921504606830593, 12289, 18433};
    switch (draw.byte() % 4) {
        case 0: return draw.word() >> draw.byte() % 64;
        case 1: return ((draw.word() >> (draw.byte() % 52 + 11)) << 11) + 1;  // 1 modulo 2N, mostly composite
        default: return some[draw.byte() % 6];
    }
}

void parameters(Draw &draw) {
    const std::size_t degree = draw.rarely() ? draw.near(70000) : 1024;
    std::vector<Word> primes(draw.byte() % 4);
    for (Word &prime : primes) prime = modulus(draw);
    const Word special = draw.byte() % 2 ? modulus(draw) : 0;
    if (degree > 1 << 20) return;  // tables are made before the degree is checked
    for (const Path path : paths) {
        try {
            const Context context(degree, primes, special, path);
            expect(runs_here(path), "an instruction set that is not there");
            expect(context.limbs() == primes.size() && !primes.empty(), "primes were lost");
            for (std::size_t i = 0; i < primes.size(); ++i)
                expect(is_prime(primes[i]) && primes[i] % (2 * degree) == 1, "a modulus that is no prime is taken");
            expect(!special || is_prime(special), "a special modulus that is no prime is taken");
        } catch (const std::invalid_argument &) {
        }
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *bytes, std::size_t size) {
    Draw draw(bytes, size);
    switch (draw.byte() % 8) {
        case 0: parameters(draw); break;
        case 1:
        case 2: sums(draw); break;
        default: packing(draw);
    }
    return 0;
}

#ifdef CONFIDE_DRIVER
// Random bytes instead of a fuzzer's: `residues_fuzz [repeats] [seed]`.
int main(int count, char **arguments) {
    confide::fuzz::drive(count, arguments, 800, LLVMFuzzerTestOneInput);
    std::puts("the residues agree");
    return 0;
}
#endif
