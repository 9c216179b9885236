// The kernels of trees against the plainest loops, on buffers of exactly the right size, under the sanitizers:
//   g++ -std=c++17 -g -O1 -pthread -fsanitize=address,undefined -fno-sanitize-recover=all -DCONFIDE_SANITIZE
//       native/histogram.cpp native/histogram_test.cpp -o histogram_test && ./histogram_test [repeats]

#include "histogram.hpp"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>

namespace {

template <typename Number>
std::unique_ptr<Number[]> array(std::size_t count) {
    return std::unique_ptr<Number[]>(new Number[count]());  // not a vector: the byte behind the last is out of bounds
}

// Gradients are drawn from `smallest` to below `largest`; columns have up to `levels` codes.
bool sums(std::mt19937_64 &random, std::size_t n, std::size_t columns, std::size_t slots, std::int64_t smallest,
          std::int64_t largest, std::uint64_t levels = 256) {
    auto starts = array<std::int64_t>(columns + 1);
    for (std::size_t c = 0; c < columns; ++c) starts[c + 1] = starts[c] + 1 + static_cast<std::int64_t>(random() % levels);
    auto codes = array<std::uint8_t>(n * columns);
    for (std::size_t i = 0; i < n * columns; ++i) {
        const std::size_t column = i % columns;
        codes[i] = static_cast<std::uint8_t>(random() % static_cast<std::uint64_t>(starts[column + 1] - starts[column]));
    }
    auto gradients = array<std::int32_t>(2 * n), at = array<std::int32_t>(n), wanted = array<std::int32_t>(slots);
    for (std::size_t i = 0; i < 2 * n; ++i) 
        gradients[i] = static_cast<std::int32_t>(
            static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(largest - smallest)) + smallest);
    for (std::size_t i = 0; i < n; ++i) at[i] = static_cast<std::int32_t>(random() % slots);
    for (std::size_t s = 0; s < slots; ++s) wanted[s] = static_cast<std::int32_t>(s) - 1;
    const std::size_t size = static_cast<std::size_t>(starts[columns]), histograms = slots - 1;
    auto found = array<std::int64_t>(2 * histograms * size), expected = array<std::int64_t>(2 * histograms * size);
    for (std::size_t i = 0; i < n; ++i)
        for (std::size_t c = 0; c < columns; ++c)
            if (const std::int32_t to = wanted[at[i]]; to >= 0)
                for (const std::size_t part : {0u, 1u})
                    expected[2 * (static_cast<std::size_t>(to) * size + static_cast<std::size_t>(starts[c]) +
                                  codes[i * columns + c]) + part] += gradients[2 * i + part];
    if (!confide::histograms(codes.get(), gradients.get(), at.get(), n, columns, wanted.get(), slots, starts.get(),
                             found.get(), histograms, size))
        return false;
    return std::memcmp(found.get(), expected.get(), 2 * histograms * size * sizeof(std::int64_t)) == 0;
}

bool routes(std::mt19937_64 &random, std::size_t n, std::size_t columns, std::size_t slots) {
    auto codes = array<std::uint8_t>(n * columns), left = array<std::uint8_t>(256 * slots);
    auto at = array<std::int32_t>(n), column = array<std::int32_t>(slots), next = array<std::int32_t>(n);
    for (std::size_t i = 0; i < n * columns; ++i) codes[i] = static_cast<std::uint8_t>(random());
    for (std::size_t i = 0; i < 256 * slots; ++i) left[i] = random() & 1;
    for (std::size_t i = 0; i < n; ++i) at[i] = static_cast<std::int32_t>(random() % slots);
    for (std::size_t s = 0; s < slots; ++s) column[s] = static_cast<std::int32_t>(random() % (columns + 1)) - 1;
    confide::route(codes.get(), at.get(), n, columns, column.get(), left.get(), next.get());
    for (std::size_t i = 0; i < n; ++i) {
        const auto slot = static_cast<std::size_t>(at[i]);
        const std::int32_t looked = column[slot];
        const bool right = looked >= 0 && !left[256 * slot + codes[i * columns + static_cast<std::size_t>(looked)]];
        if (next[i] != 2 * at[i] + right) return false;
    }
    return true;
}

bool splits(std::mt19937_64 &random, std::size_t nodes, std::size_t codes, std::size_t count) {
    auto sums = array<double>(2 * nodes * codes), whole = array<double>(2 * nodes), gain = array<double>(nodes);
    auto low = array<std::int64_t>(count), high = array<std::int64_t>(count), best = array<std::int64_t>(nodes);
    for (std::size_t i = 0; i < nodes * codes; ++i) {
        sums[2 * i] = static_cast<double>(random() % 2001) - 1000;
        sums[2 * i + 1] = static_cast<double>(random() % 100);
        whole[2 * (i / codes)] += sums[2 * i];
        whole[2 * (i / codes) + 1] += sums[2 * i + 1];
    }
    for (std::size_t k = 0; k < count; ++k) {
        low[k] = static_cast<std::int64_t>(random() % codes);
        high[k] = low[k] + 1 + static_cast<std::int64_t>(random() % (codes - static_cast<std::size_t>(low[k])));
    }
    if (!confide::best_splits(sums.get(), whole.get(), nodes, codes, low.get(), high.get(), count, 1.0, 2.0, best.get(),
                              gain.get()))
        return false;
    for (std::size_t node = 0; node < nodes; ++node) {
        double most = -std::numeric_limits<double>::infinity();
        std::int64_t first = -1;
        for (std::size_t k = 0; k < count; ++k) {
            double g = 0, h = 0;
            for (auto code = static_cast<std::size_t>(low[k]); code < static_cast<std::size_t>(high[k]); ++code) {
                g += sums[2 * (node * codes + code)];
                h += sums[2 * (node * codes + code) + 1];
            }
            const double other_g = whole[2 * node] - g, other_h = whole[2 * node + 1] - h;
            if (h < 2.0 || other_h < 2.0) continue;
            const double value = (g * g / (h + 1.0) + other_g * other_g / (other_h + 1.0)) / 2;
            if (value > most) most = value, first = static_cast<std::int64_t>(k);
        }
        if (best[node] != first || (first >= 0 && std::abs(gain[node] - most) > 1e-9 * most)) return false;
    }
    return true;
}

}  // namespace

int main(int argc, char **argv) {
    const int repeats = argc > 1 ? std::atoi(argv[1]) : 20;
    std::mt19937_64 random(20261126);
    for (int i = 0; i < repeats; ++i) {
        const std::size_t n = random() % 3000, columns = 1 + random() % 20, slots = 1 + random() % 6;
        const std::int64_t most = std::int64_t{1} << (i % 32);
        if (!sums(random, n, columns, slots + 1, -most, most) || !sums(random, n, columns, 2, 0, most, 2) ||
            !sums(random, n, columns, 2, -most, 0, 2) || !routes(random, n, columns, slots) ||
            !splits(random, slots, 1 + random() % 300, random() % 50)) {
            std::printf("differs in repeat %d\n", i);
            return 1;
        }
    }
    const std::int64_t most = std::int64_t{1} << 20;
    if (!sums(random, 80000, 16, 3, -most, most) || !sums(random, 80000, 15, 3, 0, most)) {
        std::printf("differs on two threads\n");
        return 1;
    }
    std::printf("the kernels match\n");
    return 0;
}
