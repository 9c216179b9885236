#include "histogram.hpp"

#include <algorithm>
#include <limits>
#include <new>
#include <thread>
#include <vector>

namespace confide {

namespace {

// Two sums side by side, so that a compiler adds both at once.
struct Pair {
    std::int64_t first, second;
};

// Enough additions to pay for a second thread.
constexpr std::size_t WORTH_A_THREAD = 1u << 20;

// Columns whose sums stay in the fastest memory: 8 columns of 256 codes take 32 KiB.
constexpr std::size_t COLUMNS_AT_ONCE = 8;

// The records of one histogram, for columns from `first` to below `last`.
void add(const std::uint8_t *codes, const std::int32_t *gradients, const std::uint32_t *rows, std::size_t count,
         std::size_t columns, std::size_t first, std::size_t last, const std::int64_t *starts, Pair *found) noexcept {
    for (std::size_t block = first; block < last; block += COLUMNS_AT_ONCE) {
        const std::size_t end = std::min(last, block + COLUMNS_AT_ONCE);
        for (std::size_t i = 0; i < count; ++i) {
            const std::size_t row = rows[i];
            const std::int64_t g = gradients[2 * row], h = gradients[2 * row + 1];
            const std::uint8_t *own = codes + row * columns;
            for (std::size_t column = block; column < end; ++column) {
                Pair &at = found[static_cast<std::size_t>(starts[column]) + own[column]];
                at.first += g;
                at.second += h;
            }
        }
    }
}

}  // namespace

bool histograms(const std::uint8_t *codes, const std::int32_t *gradients, const std::int32_t *slots, std::size_t n,
                std::size_t columns, const std::int32_t *wanted, std::size_t slot_count, const std::int64_t *starts,
                std::int64_t *found, std::size_t histograms, std::size_t size) noexcept {
    (void)slot_count;
    try {
        // Records by histogram, in their order.
        std::vector<std::size_t> begin(histograms + 1, 0);
        for (std::size_t i = 0; i < n; ++i)
            if (const std::int32_t to = wanted[slots[i]]; to >= 0) ++begin[static_cast<std::size_t>(to) + 1];
        for (std::size_t k = 0; k < histograms; ++k) begin[k + 1] += begin[k];
        std::vector<std::uint32_t> rows(begin[histograms]);
        std::vector<std::size_t> next(begin.begin(), begin.end() - 1);
        for (std::size_t i = 0; i < n; ++i)
            if (const std::int32_t to = wanted[slots[i]]; to >= 0)
                rows[next[static_cast<std::size_t>(to)]++] = static_cast<std::uint32_t>(i);
        auto *sums = reinterpret_cast<Pair *>(found);
        const auto work = [&](std::size_t first, std::size_t last) {
            for (std::size_t k = 0; k < histograms; ++k)
                add(codes, gradients, rows.data() + begin[k], begin[k + 1] - begin[k], columns, first, last, starts,
                    sums + k * size);
        };
        if (rows.size() * columns < WORTH_A_THREAD || columns < 2 || std::thread::hardware_concurrency() < 2) {
            work(0, columns);
            return true;
        }
        std::thread other;
        try {
            other = std::thread(work, columns / 2, columns);
        } catch (...) {  // no thread is to be had
            work(0, columns);
            return true;
        }
        work(0, columns / 2);
        other.join();
        return true;
    } catch (const std::bad_alloc &) {
        return false;
    }
}

void route(const std::uint8_t *codes, const std::int32_t *slots, std::size_t n, std::size_t columns,
           const std::int32_t *column, const std::uint8_t *goes_left, std::int32_t *next) noexcept {
    for (std::size_t i = 0; i < n; ++i) {
        const std::int32_t slot = slots[i], looked = column[slot];
        std::int32_t right = 0;
        if (looked >= 0) {
            const std::uint8_t code = codes[i * columns + static_cast<std::size_t>(looked)];
            right = goes_left[static_cast<std::size_t>(slot) * 256 + code] == 0;
        }
        next[i] = 2 * slot + right;
    }
}

bool best_splits(const double *sums, const double *whole, std::size_t nodes, std::size_t codes, const std::int64_t *low,
                 const std::int64_t *high, std::size_t count, double ridge, double least, std::int64_t *best,
                 double *gain) noexcept {
    try {
        std::vector<double> before_g(codes + 1), before_h(codes + 1), found(count);
        for (std::size_t node = 0; node < nodes; ++node) {
            const double *own = sums + 2 * node * codes;
            const double all_g = whole[2 * node], all_h = whole[2 * node + 1];
            for (std::size_t code = 0; code < codes; ++code) {
                before_g[code + 1] = before_g[code] + own[2 * code];
                before_h[code + 1] = before_h[code] + own[2 * code + 1];
            }
            for (std::size_t k = 0; k < count; ++k) {
                const auto from = static_cast<std::size_t>(low[k]), to = static_cast<std::size_t>(high[k]);
                const double g = before_g[to] - before_g[from], h = before_h[to] - before_h[from];
                const double other_g = all_g - g, other_h = all_h - h;
                const double value = (g * g / (h + ridge) + other_g * other_g / (other_h + ridge)) / 2;
                found[k] = h >= least && other_h >= least ? value : -std::numeric_limits<double>::infinity();
            }
            best[node] = -1;
            gain[node] = -std::numeric_limits<double>::infinity();
            for (std::size_t k = 0; k < count; ++k)
                if (found[k] > gain[node]) {
                    gain[node] = found[k];
                    best[node] = static_cast<std::int64_t>(k);
                }
        }
        return true;
    } catch (const std::bad_alloc &) {
        return false;
    }
}

}  // namespace confide
