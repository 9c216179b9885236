// A stream of bytes as numbers: what a fuzzer, or a generator of random numbers, decides with.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>

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

[[noreturn]] inline void fail(const char *what) {
    std::fprintf(stderr, "failed: %s\n", what);
    std::abort();
}

// Stays on whatever the compiler's flags are.
inline void expect(bool holds, const char *what) {
    if (!holds) fail(what);
}

// Calls `once` with random bytes, by the arguments [repeats] [seed] of a program. Returns how often.
inline std::size_t drive(int count, char **arguments, std::size_t most, int (*once)(const std::uint8_t *, std::size_t)) {
    const std::size_t repeats = count > 1 ? std::strtoull(arguments[1], nullptr, 10) : 1000;
    std::mt19937_64 random(count > 2 ? std::strtoull(arguments[2], nullptr, 10) : 0);
    for (std::size_t i = 0; i < repeats; ++i) {
        const std::size_t size = random() % most;
        const std::unique_ptr<std::uint8_t[]> bytes(new std::uint8_t[size]);
        for (std::size_t at = 0; at < size; ++at) bytes[at] = static_cast<std::uint8_t>(random() >> 20);
        once(bytes.get(), size);
    }
    return repeats;
}

}  // namespace confide::fuzz
