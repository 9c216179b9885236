// AES-128 by instructions, over `Register` (what the intrinsics take) and `Vector` (two words of 64 bits a block), both
// of the file that includes this; it has round(v, key), last_round(v, key) and repeated(key).

namespace confide::mpc {
namespace {

class Cipher {
  public:
    explicit Cipher(const Schedule &schedule) {
        for (int round = 0; round < 11; ++round)
            key_[round] = repeated(_mm_load_si128(reinterpret_cast<const __m128i *>(schedule.keys[round])));
    }

    inline void encrypt(Vector (&y)[group]) const {
        Register state[group];
#pragma GCC unroll 8
        for (std::size_t i = 0; i < group; ++i) state[i] = (Register)(y[i] ^ (Vector)key_[0]);
#pragma GCC unroll 9
        for (int round = 1; round < 10; ++round)
#pragma GCC unroll 8
            for (std::size_t i = 0; i < group; ++i) state[i] = one_round(state[i], key_[round]);
#pragma GCC unroll 8
        for (std::size_t i = 0; i < group; ++i) y[i] = (Vector)last_round(state[i], key_[10]);
    }

  private:
    Register key_[11];
};

// FIPS 197, 5.2; the instruction gives RotWord(SubWord(.)) of the last word in its last place.
void expand(const Byte *key, Schedule &schedule) {
    __builtin_memcpy(schedule.keys[0], key, block_bytes);
    std::uint32_t constant = 1;
    for (int round = 1; round < 11; ++round) {
        std::uint32_t words[4], from[4];
        __builtin_memcpy(words, schedule.keys[round - 1], block_bytes);
        const __m128i last = _mm_loadu_si128(reinterpret_cast<const __m128i *>(words));
        _mm_storeu_si128(reinterpret_cast<__m128i *>(from), _mm_aeskeygenassist_si128(last, 0));
        words[0] ^= from[3] ^ constant;
        for (int i = 1; i < 4; ++i) words[i] ^= words[i - 1];
        __builtin_memcpy(schedule.keys[round], words, block_bytes);
        constant = constant << 1 ^ (constant >> 7) * 0x11b;
    }
}

}  // namespace
}  // namespace confide::mpc
