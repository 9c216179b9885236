// AES without instructions for it and without tables, which a cache would tell of: eight blocks at a time, bit by bit.
//
// Plane p holds bit p of 128 bytes: bit 16 b + i of a word is that of byte i of block b. The S-box is the inverse in
// GF(2^8) as the power 254, then the affine map of FIPS 197.
#include "paths.hpp"

namespace confide::mpc {
namespace {

constexpr std::size_t width = 1, group = 8;
using Vector = Word __attribute__((vector_size(16)));

inline Vector spread(Vector v) { return Vector{v[0], v[0]}; }

struct Planes {
    Vector bit[8];
};

inline Vector every(Word pattern) { return Vector{pattern, pattern}; }

// Exchanges rows and columns of eight bytes as a matrix of 8 x 8 bits.
inline Word transposed(Word x) {
    Word t = (x ^ x >> 7) & 0x00AA00AA00AA00AA;
    x ^= t ^ t << 7;
    t = (x ^ x >> 14) & 0x0000CCCC0000CCCC;
    x ^= t ^ t << 14;
    t = (x ^ x >> 28) & 0x00000000F0F0F0F0;
    return x ^ t ^ t << 28;
}

inline Planes sliced(const Vector (&y)[group]) {
    Planes planes{};
    for (std::size_t half = 0; half < 2; ++half)
        for (std::size_t i = 0; i < 8; ++i) {
            const Word bits = transposed(y[4 * half + i / 2][i % 2]);
            for (std::size_t p = 0; p < 8; ++p) planes.bit[p][half] |= (bits >> (8 * p) & 255) << (8 * i);
        }
    return planes;
}

inline void unsliced(const Planes &planes, Vector (&y)[group]) {
    for (std::size_t half = 0; half < 2; ++half)
        for (std::size_t i = 0; i < 8; ++i) {
            Word bits = 0;
            for (std::size_t p = 0; p < 8; ++p) bits |= (planes.bit[p][half] >> (8 * i) & 255) << (8 * p);
            y[4 * half + i / 2][i % 2] = transposed(bits);
        }
}

// Modulo x^8 + x^4 + x^3 + x + 1.
inline Planes reduced(Vector (&product)[15]) {
    constexpr std::size_t lowers[] = {8, 7, 5, 4};
    for (std::size_t i = 14; i >= 8; --i)
        for (const std::size_t lower : lowers) product[i - lower] ^= product[i];
    Planes found;
    for (std::size_t i = 0; i < 8; ++i) found.bit[i] = product[i];
    return found;
}

Planes times(const Planes &a, const Planes &b) {
    Vector product[15] = {};
    for (std::size_t i = 0; i < 8; ++i)
        for (std::size_t j = 0; j < 8; ++j) product[i + j] ^= a.bit[i] & b.bit[j];
    return reduced(product);
}

Planes squared(const Planes &a, int often) {
    Planes found = a;
    for (; often > 0; --often) {
        Vector product[15] = {};
        for (std::size_t i = 0; i < 8; ++i) product[2 * i] = found.bit[i];
        found = reduced(product);
    }
    return found;
}

void substitute(Planes &x) {
    const Planes x2 = squared(x, 1), x3 = times(x, x2), x12 = squared(x3, 2), x15 = times(x3, x12);
    const Planes inverse = times(times(squared(x15, 4), x12), x2);  // 240 + 12 + 2
    for (std::size_t i = 0; i < 8; ++i) {
        x.bit[i] = inverse.bit[i] ^ every(0 - Word{0x63u >> i & 1u});
        for (std::size_t turn = 4; turn < 8; ++turn) x.bit[i] ^= inverse.bit[(i + turn) % 8];
    }
}

// Byte r + 4 c of a block comes from byte r + 4 (c + r).
inline Vector rows_shifted(Vector x) {
    Vector found = x & every(0x1111111111111111);
    found |= (x >> 4 & every(0x0222022202220222)) | (x << 12 & every(0x2000200020002000));
    found |= (x >> 8 & every(0x0044004400440044)) | (x << 8 & every(0x4400440044004400));
    found |= (x >> 12 & every(0x0008000800080008)) | (x << 4 & every(0x8880888088808880));
    return found;
}

// Byte r + 4 c comes from byte (r + 1) + 4 c, or (r + 2) + 4 c.
inline Vector next_row(Vector x) { return (x >> 1 & every(0x7777777777777777)) | (x << 3 & every(0x8888888888888888)); }
inline Vector second_row(Vector x) { return (x >> 2 & every(0x3333333333333333)) | (x << 2 & every(0xCCCCCCCCCCCCCCCC)); }

void mix(Planes &x) {
    Planes next, both;
    for (std::size_t i = 0; i < 8; ++i) {
        next.bit[i] = next_row(x.bit[i]);
        both.bit[i] = x.bit[i] ^ next.bit[i];
    }
    for (std::size_t i = 0; i < 8; ++i) {
        x.bit[i] = next.bit[i] ^ second_row(both.bit[i]);
        if (i) x.bit[i] ^= both.bit[i - 1];  // twice `both`
        if (i == 0 || i == 1 || i == 3 || i == 4) x.bit[i] ^= both.bit[7];
    }
}

class Cipher {
  public:
    explicit Cipher(const Schedule &schedule) {
        for (std::size_t round = 0; round < 11; ++round) {
            Vector key[group];
            for (Vector &one : key) __builtin_memcpy(&one, schedule.keys[round], sizeof one);
            key_[round] = sliced(key);
        }
    }

    void encrypt(Vector (&y)[group]) const {
        Planes state = sliced(y);
        add(state, 0);
        for (std::size_t round = 1; round < 11; ++round) {
            substitute(state);
            for (Vector &plane : state.bit) plane = rows_shifted(plane);
            if (round < 10) mix(state);
            add(state, round);
        }
        unsliced(state, y);
    }

  private:
    void add(Planes &state, std::size_t round) const {
        for (std::size_t i = 0; i < 8; ++i) state.bit[i] ^= key_[round].bit[i];
    }

    Planes key_[11];
};

// FIPS 197, 5.2.
void expand(const Byte *key, Schedule &schedule) {
    __builtin_memcpy(schedule.keys[0], key, block_bytes);
    unsigned constant = 1;
    for (std::size_t round = 1; round < 11; ++round) {
        Vector y[group] = {};
        __builtin_memcpy(&y[0], schedule.keys[round - 1], block_bytes);
        Planes planes = sliced(y);
        substitute(planes);
        unsliced(planes, y);
        Byte from[block_bytes], *now = schedule.keys[round];
        __builtin_memcpy(from, &y[0], block_bytes);
        for (std::size_t i = 0; i < 4; ++i) now[i] = schedule.keys[round - 1][i] ^ from[12 + (i + 1) % 4];
        now[0] = static_cast<Byte>(now[0] ^ constant);
        for (std::size_t i = 4; i < block_bytes; ++i) now[i] = now[i - 4] ^ schedule.keys[round - 1][i];
        constant = constant << 1 ^ (constant >> 7) * 0x11b;
    }
}

}  // namespace
}  // namespace confide::mpc

#include "block_loops.hpp"

namespace confide::mpc {

const BlockLoops portable_blocks = {"portable", expand, stream, generate, evaluate};

}  // namespace confide::mpc
