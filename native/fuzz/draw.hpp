// A stream of bytes as numbers: what a fuzzer, or a generator of random numbers, decides with.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace confide::fuzz {

class Draw {
  public:
    Draw(const std::uint8_t *bytes, std::size_t size) : at_(bytes), left_(size) {}

    bool empty() const noexcept { return left_ == 0; }
    std::size_t left() const noexcept { return left_; }

    // 0 behind the last byte.
    std::uint8_t byte() noexcept {
        if (!left_) return 0;
        --left_;
        return *at_++;
    }
    std::uint64_t word() noexcept {
        std::uint64_t value = 0;
        for (unsigned i = 0; i < 8; ++i) value |= std::uint64_t{byte()} << (8 * i);
        return value;
    }
    // Below `count` mostly, or anything at all.
    std::size_t near(std::size_t count) noexcept {
        const std::uint8_t first = byte();
        if (first == 255) return static_cast<std::size_t>(word());
        if (first == 254) return count + byte() % 2;
        return count ? first % count : first % 2;
    }
    bool rarely() noexcept { return byte() >= 250; }

  private:
    const std::uint8_t *at_;
    std::size_t left_;
};

// The checks stay on whatever the compiler's flags are.
[[noreturn]] inline void fail(const char *what);

}  // namespace confide::fuzz

#include <cstdio>
#include <cstdlib>

namespace confide::fuzz {

inline void fail(const char *what) {
    std::fprintf(stderr, "failed: %s\n", what);
    std::abort();
}

inline void expect(bool holds, const char *what) {
    if (!holds) fail(what);
}

}  // namespace confide::fuzz
