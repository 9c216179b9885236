// The kernels against a bit-at-a-time oracle, on buffers of exactly the right size, under the sanitizers:
//   g++ -std=c++17 -g -O1 -fsanitize=address,undefined -fno-sanitize-recover=all -DCONFIDE_SANITIZE
//       native/projection.cpp native/ring.cpp native/ring_test.cpp -o ring_test && ./ring_test [repeats]

#include "projection.hpp"
#include "ring.hpp"

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>

namespace {

template <typename Word>
bool matches(std::mt19937_64 &random, unsigned bits, std::size_t count) {
    // Heap arrays, not vectors: the byte behind the last one is out of bounds.
    const std::size_t size = confide::packed_size(count, bits);
    std::unique_ptr<Word[]> words(new Word[count]), back(new Word[count]), sum(new Word[count]);
    std::unique_ptr<std::uint8_t[]> packed(new std::uint8_t[size]);
    for (std::size_t i = 0; i < count; ++i) words[i] = static_cast<Word>(random());

    confide::pack(words.get(), count, bits, packed.get());
    confide::unpack(packed.get(), count, bits, back.get());
    for (std::size_t place = 0; place < 8 * size; ++place) {
        const std::size_t word = place / bits;
        const bool expected = word < count && (words[word] >> (place % bits) & 1);
        if ((packed[place / 8] >> (place % 8) & 1) != expected) return false;
        if (word < count && (back[word] >> (place % bits) & 1) != expected) return false;
    }
    for (std::size_t i = 0; i < count; ++i)
        if (bits < 8 * sizeof(Word) && back[i] >> bits) return false;

    for (const bool negate : {false, true}) {
        for (std::size_t i = 0; i < count; ++i) sum[i] = back[i];
        confide::add_words(sum.get(), words.get(), count, negate);
        for (std::size_t i = 0; i < count; ++i)
            if (sum[i] != static_cast<Word>(negate ? back[i] - words[i] : back[i] + words[i])) return false;
    }
    return true;
}

template <typename Word>
bool projects(std::mt19937_64 &random, std::size_t rows, std::size_t groups) {
    std::unique_ptr<Word[]> acc(new Word[rows]), expected(new Word[rows]), words(new Word[8 * groups]);
    std::unique_ptr<std::uint8_t[]> choices(new std::uint8_t[2 * rows * groups]);
    for (std::size_t i = 0; i < 8 * groups; ++i) words[i] = static_cast<Word>(random());
    for (std::size_t i = 0; i < 2 * rows * groups; ++i) choices[i] = static_cast<std::uint8_t>(random());
    for (std::size_t row = 0; row < rows; ++row) {
        acc[row] = expected[row] = static_cast<Word>(random());
        for (std::size_t i = 0; i < 8 * groups; ++i)
            for (const std::size_t half : {2 * (i / 8), 2 * (i / 8) + 1})
                expected[row] = static_cast<Word>(
                    expected[row] + (choices[half * rows + row] >> (i % 8) & 1 ? words[i] : Word{0}));
        for (std::size_t i = 0; i < 8 * groups; ++i) expected[row] = static_cast<Word>(expected[row] - words[i]);
    }
    confide::project(acc.get(), rows, words.get(), choices.get(), groups);
    for (std::size_t row = 0; row < rows; ++row)
        if (acc[row] != expected[row]) return false;
    return true;
}

}  // namespace

int main(int argc, char **argv) {
    const int repeats = argc > 1 ? std::atoi(argv[1]) : 1;
    std::mt19937_64 random(1);
    for (int repeat = 0; repeat < repeats; ++repeat) {
        for (std::size_t rows = 0; rows <= 48; rows += 16)
            for (std::size_t groups = 0; groups < 5; ++groups)
                if (!projects<std::uint32_t>(random, rows, groups) || !projects<std::uint64_t>(random, rows, groups)) {
                    std::printf("differs at rows=%zu groups=%zu\n", rows, groups);
                    return 1;
                }
        for (unsigned bits = 1; bits <= 64; ++bits)
            for (std::size_t count = 0; count < 70; ++count)
                if ((bits <= 32 && !matches<std::uint32_t>(random, bits, count)) ||
                    !matches<std::uint64_t>(random, bits, count)) {
                    std::printf("differs at bits=%u count=%zu\n", bits, count);
                    return 1;
                }
    }
    std::puts("the kernels match");
    return 0;
}
