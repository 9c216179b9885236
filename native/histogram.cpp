#include "histogram.hpp"

#include "clones.hpp"

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <new>
#include <thread>
#include <type_traits>
#include <vector>

namespace confide {

namespace {

// Two sums side by side, so that a compiler adds both at once.
struct Pair {
    std::int64_t first, second;
};

// Enough additions to pay for a second thread.
constexpr std::size_t WORTH_A_THREAD = 1u << 20;

// Columns whose sums stay in the fastest memory: 8 columns of 256 codes take 16 KiB.
constexpr std::size_t COLUMNS_AT_ONCE = 8;

// Records that pay for going through all codes once more.
constexpr std::size_t WORTH_PACKING = 256;

// How far two sums may go that share one word.
constexpr std::int64_t LARGEST_HALF = std::numeric_limits<std::int32_t>::max();

using Sums = std::uint64_t[COLUMNS_AT_ONCE][256];

// Both numbers of a record in one word, the second in its lower half: sums of such words hold both sums.
std::uint64_t packed(const std::int32_t *gradients, std::size_t row) noexcept {
    return (static_cast<std::uint64_t>(static_cast<std::int64_t>(gradients[2 * row])) << 32) +
           static_cast<std::uint64_t>(static_cast<std::int64_t>(gradients[2 * row + 1]));
}

// From `rows` on, how many records' sums fit the halves of a word whatever their signs are; at most `count`.
std::size_t fitting(const std::int32_t *gradients, const std::uint32_t *rows, std::size_t count) noexcept {
    std::int64_t first = 0, second = 0;
    for (std::size_t i = 0; i < count; ++i) {
        const std::size_t row = rows[i];
        first += std::abs(static_cast<std::int64_t>(gradients[2 * row]));
        second += std::abs(static_cast<std::int64_t>(gradients[2 * row + 1]));
        if (first > LARGEST_HALF || second > LARGEST_HALF) return i;
    }
    return count;
}

// Records whose sums fit the halves of a word, for `width` columns from the one that `codes` begins with.
template <typename Width>
void add_packed(const std::uint8_t *codes, const std::int32_t *gradients, const std::uint32_t *rows, std::size_t count,
                std::size_t columns, Width width, Sums &sums) noexcept {
    for (std::size_t i = 0; i < count; ++i) {
        const std::uint64_t both = packed(gradients, rows[i]);
        const std::uint8_t *own = codes + rows[i] * columns;
        for (std::size_t column = 0; column < width; ++column) sums[column][own[column]] += both;
    }
}

// Takes the halves of packed sums apart and leaves zeros.
void unpack(Sums &sums, std::size_t width, const std::int64_t *starts, Pair *found) noexcept {
    for (std::size_t column = 0; column < width; ++column) {
        const auto levels = static_cast<std::size_t>(starts[column + 1] - starts[column]);
        Pair *own = found + starts[column];
        for (std::size_t code = 0; code < levels; ++code) {
            const std::uint64_t both = sums[column][code];
            const auto second = static_cast<std::int64_t>(static_cast<std::int32_t>(static_cast<std::uint32_t>(both)));
            own[code].first += static_cast<std::int64_t>(both - static_cast<std::uint64_t>(second)) >> 32;
            own[code].second += second;
            sums[column][code] = 0;
        }
    }
}

// Records one by one, whatever their numbers are.
void add_each(const std::uint8_t *codes, const std::int32_t *gradients, const std::uint32_t *rows, std::size_t count,
              std::size_t columns, std::size_t first, std::size_t last, const std::int64_t *starts,
              Pair *found) noexcept {
    for (std::size_t i = 0; i < count; ++i) {
        const std::size_t row = rows[i];
        const std::int64_t g = gradients[2 * row], h = gradients[2 * row + 1];
        const std::uint8_t *own = codes + row * columns;
        for (std::size_t column = first; column < last; ++column) {
            Pair &at = found[static_cast<std::size_t>(starts[column]) + own[column]];
            at.first += g;
            at.second += h;
        }
    }
}

// The records of one histogram, for columns from `first` to below `last`: as many at once as one word can hold, so that
// one addition does for both numbers.
void add(const std::uint8_t *codes, const std::int32_t *gradients, const std::uint32_t *rows, std::size_t count,
         std::size_t columns, std::size_t first, std::size_t last, const std::int64_t *starts, Pair *found) noexcept {
    Sums sums = {};
    while (count) {
        const std::size_t some = fitting(gradients, rows, count);
        if (some < WORTH_PACKING) {
            const std::size_t few = std::min(count, WORTH_PACKING);
            add_each(codes, gradients, rows, few, columns, first, last, starts, found);
            rows += few, count -= few;
            continue;
        }
        for (std::size_t block = first; block < last; block += COLUMNS_AT_ONCE) {
            const std::size_t width = std::min(last - block, COLUMNS_AT_ONCE);
            if (width == COLUMNS_AT_ONCE)  // a width that the compiler knows
                add_packed(codes + block, gradients, rows, some, columns,
                           std::integral_constant<std::size_t, COLUMNS_AT_ONCE>{}, sums);
            else
                add_packed(codes + block, gradients, rows, some, columns, width, sums);
            unpack(sums, width, starts + block, found);
        }
        rows += some, count -= some;
    }
}

// What each split gains; minus infinity where it is not allowed. Every lane rounds as the others do.
CONFIDE_CLONES void gains(const double *__restrict before_g, const double *__restrict before_h, double all_g,
                          double all_h, const std::int64_t *__restrict low, const std::int64_t *__restrict high,
                          std::size_t count, double ridge, double least, double *__restrict found) noexcept {
    for (std::size_t k = 0; k < count; ++k) {
        const auto from = static_cast<std::size_t>(low[k]), to = static_cast<std::size_t>(high[k]);
        const double g = before_g[to] - before_g[from], h = before_h[to] - before_h[from];
        const double other_g = all_g - g, other_h = all_h - h;
        const double value = (g * g / (h + ridge) + other_g * other_g / (other_h + ridge)) / 2;
        found[k] = h >= least && other_h >= least ? value : -std::numeric_limits<double>::infinity();
    }
}

}  // namespace

bool histograms(const std::uint8_t *codes, const std::int32_t *gradients, const std::int32_t *slots, std::size_t n,
                std::size_t columns, const std::int32_t *wanted, std::size_t slot_count, const std::int64_t *starts,
                std::int64_t *found, std::size_t histograms, std::size_t size) noexcept {
    try {
        // Records by histogram, in their order; first those of none, so that no branch depends on a record.
        std::vector<std::size_t> place(slot_count), begin(histograms + 2, 0);
        for (std::size_t slot = 0; slot < slot_count; ++slot)
            place[slot] = wanted[slot] < 0 ? 0 : static_cast<std::size_t>(wanted[slot]) + 1;
        for (std::size_t i = 0; i < n; ++i) ++begin[place[static_cast<std::size_t>(slots[i])] + 1];
        for (std::size_t k = 0; k <= histograms; ++k) begin[k + 1] += begin[k];
        std::vector<std::uint32_t> rows(n);
        std::vector<std::size_t> next(begin.begin(), begin.end() - 1);
        for (std::size_t i = 0; i < n; ++i)
            rows[next[place[static_cast<std::size_t>(slots[i])]]++] = static_cast<std::uint32_t>(i);
        auto *sums = reinterpret_cast<Pair *>(found);
        const auto work = [&](std::size_t first, std::size_t last) {
            for (std::size_t k = 0; k < histograms; ++k)
                add(codes, gradients, rows.data() + begin[k + 1], begin[k + 2] - begin[k + 1], columns, first, last,
                    starts, sums + k * size);
        };
        if ((n - begin[1]) * columns < WORTH_A_THREAD || columns < 2 || std::thread::hardware_concurrency() < 2) {
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
            for (std::size_t code = 0; code < codes; ++code) {
                before_g[code + 1] = before_g[code] + own[2 * code];
                before_h[code + 1] = before_h[code] + own[2 * code + 1];
            }
            gains(before_g.data(), before_h.data(), whole[2 * node], whole[2 * node + 1], low, high, count, ridge,
                  least, found.data());
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
