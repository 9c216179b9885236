// Streams and comparison keys over a vector of blocks. The file that includes this has, in an unnamed namespace:
//
//     Vector            `width` blocks, two words of 64 bits each
//     Cipher(Schedule)  encrypts `Vector y[group]` in place: encrypt(y)
//     spread(v)         the low word of every block in both of its places
//
// A state is a block: the 125 bits of a seed above three others. Bit c of the state of child c is its t, bit 2 its v.
// The AES input of a seed has its domain there: 0 and 1 for the children, 2 for the leaf.

namespace confide::mpc {
namespace {

constexpr std::size_t keys = width * group;  // encrypted at a time
constexpr std::size_t chunk = 64;            // keys whose states stay in the nearest cache on all levels
constexpr unsigned leaf_bits = 7;
static_assert(chunk % keys == 0, "chunks are made of groups");

inline Vector load(const void *from) {
    Vector v;
    __builtin_memcpy(&v, from, sizeof v);
    return v;
}

inline void store(void *to, Vector v) { __builtin_memcpy(to, &v, sizeof v); }

// A value in the low word of every block, 0 above it.
inline Vector low(Word value) {
    Vector v{};
    for (std::size_t i = 0; i < 2 * width; i += 2) v[i] = value;
    return v;
}

// All ones in blocks whose low word has the bits `wanted` (low words).
inline Vector has(Vector v, Vector wanted) { return spread((Vector)((v & wanted) == wanted)); }

// y = AES(y) xor y.
inline void hash(const Cipher &cipher, Vector (&y)[group]) {
    Vector in[group];
#pragma GCC unroll 8
    for (std::size_t i = 0; i < group; ++i) in[i] = y[i];
    cipher.encrypt(y);
#pragma GCC unroll 8
    for (std::size_t i = 0; i < group; ++i) y[i] ^= in[i];
}

// A row of corrections as seen from a group of keys: where it lies if the group is whole, else a copy with zeros.
struct Tail {
    alignas(64) Byte bytes[keys * block_bytes];
};

inline const Byte *whole(const Byte *row, std::size_t left, Tail &tail) {
    if (left >= keys) return row;
    __builtin_memset(tail.bytes, 0, sizeof tail.bytes);
    __builtin_memcpy(tail.bytes, row, left * block_bytes);
    return tail.bytes;
}

// --- streams ---------------------------------------------------------------------------------------------------------

inline void counters(Word nonce, Word first, Vector (&y)[group]) {
    for (std::size_t i = 0; i < group; ++i)
        for (std::size_t block = 0; block < width; ++block) {
            y[i][2 * block] = nonce;
            y[i][2 * block + 1] = first + i * width + block;
        }
}

void stream(const Schedule &schedule, Word nonce, Word *out, std::size_t words) {
    const Cipher cipher(schedule);
    Vector next[group], step{};
    counters(nonce, 0, next);
    for (std::size_t i = 1; i < 2 * width; i += 2) step[i] = keys;
    std::size_t done = 0;
    for (; done + 2 * keys <= words; done += 2 * keys) {
        Vector y[group];
#pragma GCC unroll 8
        for (std::size_t i = 0; i < group; ++i) {
            y[i] = next[i];
            next[i] += step;
        }
        cipher.encrypt(y);
#pragma GCC unroll 8
        for (std::size_t i = 0; i < group; ++i) store(out + done + 2 * width * i, y[i]);
    }
    if (done == words) return;
    Word rest[2 * keys];
    cipher.encrypt(next);
    for (std::size_t i = 0; i < group; ++i) store(rest + 2 * width * i, next[i]);
    __builtin_memcpy(out + done, rest, (words - done) * sizeof(Word));
}

// --- comparison keys ---------------------------------------------------------------------------------------------------

// The states of a chunk of keys: blocks, two words each.
struct Walk {
    alignas(64) Word number[2 * chunk];  // alpha or x, in both words
    alignas(64) Word seed[2][2 * chunk];
    alignas(64) Word t[2 * chunk];  // all ones or zeros
    alignas(64) Word v[2 * chunk];  // gathered in bit 2
};

inline unsigned levels_of(unsigned bits) { return bits > leaf_bits ? bits - leaf_bits : 0; }

inline Word place_of(Word number, unsigned bits) {
    return number & ((Word{1} << (bits < leaf_bits ? bits : leaf_bits)) - 1);
}

// Both words of every block that stands behind the keys become 0.
void begin(Walk &walk, const Word *numbers, unsigned drop, const Byte *roots, std::size_t count, Word t) {
    __builtin_memset(walk.number, 0, sizeof walk.number);
    __builtin_memset(walk.seed, 0, sizeof walk.seed);
    __builtin_memset(walk.v, 0, sizeof walk.v);
    __builtin_memcpy(walk.seed[0], roots, count * block_bytes);
    for (std::size_t i = 0; i < count; ++i) walk.number[2 * i] = walk.number[2 * i + 1] = numbers[i] >> drop;
    for (std::size_t i = 0; i < 2 * chunk; ++i) walk.t[i] = t;
}

// One level of a chunk. `ahead` is what is read a few levels later: on its way from memory while this one is computed.
// Bit 2 of a state stays out of the cipher, but is in what is added to its output: there v gathers.
void evaluate_level(const Cipher &cipher, Walk &walk, const Byte *row, const Byte *ahead, std::size_t count,
                    Word shift) {
    const Vector one = low(1), three = low(3), four = low(4);
    Tail tail;
    for (std::size_t start = 0; start < count; start += keys) {
        const Byte *words = whole(row + start * block_bytes, count - start, tail);
        const std::size_t live = count - start < keys ? count - start : keys;
        for (std::size_t byte = 0; byte < live * block_bytes; byte += 64)
            __builtin_prefetch(ahead + start * block_bytes + byte);
        Vector y[group], in[group];
#pragma GCC unroll 8
        for (std::size_t i = 0; i < group; ++i) {
            const std::size_t at = 2 * (start + i * width);
            in[i] = (load(walk.seed[0] + at) & ~three) | (load(walk.number + at) >> shift & one);
            y[i] = in[i] & ~four;
        }
        cipher.encrypt(y);
#pragma GCC unroll 8
        for (std::size_t i = 0; i < group; ++i) {
            const std::size_t at = 2 * (start + i * width);
            const Vector state = y[i] ^ in[i] ^ (load(words + i * sizeof(Vector)) & load(walk.t + at));
            store(walk.seed[0] + at, state);
            store(walk.t + at, has(state, (in[i] & one) + one));  // c + 1 is bit c
        }
    }
}

void evaluate_leaf(const Cipher &cipher, Walk &walk, const Byte *row, std::size_t count, unsigned bits,
                   Word top, Byte *out) {
    const Vector two = low(2), seed = ~low(7);
    Tail tail;
    for (std::size_t i = 0; i < count; ++i) walk.v[2 * i] = walk.seed[0][2 * i] >> 2;
    for (std::size_t start = 0; start < count; start += keys) {
        const Byte *words = whole(row + start * block_bytes, count - start, tail);
        Vector y[group];
#pragma GCC unroll 8
        for (std::size_t i = 0; i < group; ++i)
            y[i] = (load(walk.seed[0] + 2 * (start + i * width)) & seed) | two;
        hash(cipher, y);
#pragma GCC unroll 8
        for (std::size_t i = 0; i < group; ++i) {
            const std::size_t at = 2 * (start + i * width);
            store(walk.seed[0] + at, y[i] ^ (load(words + i * sizeof(Vector)) & load(walk.t + at)));
        }
    }
    for (std::size_t i = 0; i < count; ++i) {
        const Word number = walk.number[2 * i], place = place_of(number, bits), half = 0 - (place >> 6);
        const Word picked = (walk.seed[0][2 * i] & ~half) | (walk.seed[0][2 * i + 1] & half);
        out[i] = static_cast<Byte>((picked >> (place & 63) ^ walk.v[2 * i] ^ (number >> bits & top)) & 1);
    }
}

void evaluate(const Schedule &schedule, unsigned party, const Byte *roots, const Byte *corrections, const Word *x,
              std::size_t count, unsigned bits, unsigned drop, bool top, Byte *out) {
    constexpr unsigned distance = 3;  // levels that memory takes to answer
    const Cipher cipher(schedule);
    const unsigned levels = levels_of(bits);
    const Vector four = low(4);
    Walk walk;
    for (std::size_t start = 0; start < count; start += chunk) {
        const std::size_t live = count - start < chunk ? count - start : chunk;
        begin(walk, x + start, drop, roots + start * block_bytes, live, Word{0} - party);
        for (std::size_t at = 0; at < 2 * chunk; at += 2 * width)
            store(walk.seed[0] + at, load(walk.seed[0] + at) & ~four);  // v = 0
        const std::size_t next = start + chunk < count ? start + chunk : start;
        const std::size_t after = count - next < live ? 0 : next;  // the last chunk may be shorter than what is fetched
        for (unsigned level = 0; level < levels; ++level) {
            const unsigned then = level + distance;
            const std::size_t place = then <= levels ? then * count + start
                                      : then - levels - 1 <= levels ? (then - levels - 1) * count + after
                                                                    : start;
            evaluate_level(cipher, walk, corrections + (level * count + start) * block_bytes,
                           corrections + place * block_bytes, live, bits - 1 - level);
        }
        evaluate_leaf(cipher, walk, corrections + (levels * count + start) * block_bytes, live, bits, Word{top},
                      out + start);
    }
}

// One level of a group of keys: its corrections, and both parties' states behind it.
void generate_level(const Cipher &cipher, Walk &walk, Byte *row, std::size_t count, Word shift) {
    const Vector one = low(1), two = low(2), four = low(4), seven = low(7);
    Tail tail;
    for (std::size_t start = 0; start < count; start += keys) {
        Vector child[2][2][group];  // of party, left or right
        for (std::size_t party = 0; party < 2; ++party) {
            for (std::size_t i = 0; i < group; ++i) {
                const Vector seed = load(walk.seed[party] + 2 * (start + i * width)) & ~seven;
                child[party][0][i] = seed;
                child[party][1][i] = seed | one;
            }
            hash(cipher, child[party][0]);
            hash(cipher, child[party][1]);
        }
        for (std::size_t i = 0; i < group; ++i) {
            const std::size_t at = 2 * (start + i * width);
            const Vector bit = load(walk.number + at) >> shift & one, a = has(bit, one);
            const Vector left = child[0][0][i] ^ child[1][0][i], right = child[0][1][i] ^ child[1][1][i];
            const Vector lost = right ^ ((left ^ right) & a), v = load(walk.v + at), t = load(walk.t + at);
            const Vector word = (lost & ~seven) ^ (left & one) ^ (right & two) ^ ((lost ^ v) & four) ^ (a & seven) ^ one;
            store(tail.bytes + i * sizeof(Vector), word);
            const Vector state0 = child[0][0][i] ^ ((child[0][0][i] ^ child[0][1][i]) & a) ^ (word & t);
            const Vector state1 = child[1][0][i] ^ ((child[1][0][i] ^ child[1][1][i]) & a) ^ (word & ~t);
            store(walk.seed[0] + at, state0);
            store(walk.seed[1] + at, state1);
            store(walk.t + at, has(state0, bit + one));
            store(walk.v + at, v ^ state0 ^ state1);
        }
        const std::size_t live = count - start < keys ? count - start : keys;
        __builtin_memcpy(row + start * block_bytes, tail.bytes, live * block_bytes);
    }
}

void generate_leaf(const Cipher &cipher, Walk &walk, Byte *row, std::size_t count, unsigned bits) {
    const Vector two = low(2), four = low(4), seven = low(7);
    for (std::size_t i = 0; i < chunk; ++i) {  // the bits below alpha, in place of alpha
        const Word place = place_of(walk.number[2 * i], bits), high = 0 - (place >> 6);
        const Word some = (Word{1} << (place & 63)) - 1;
        walk.number[2 * i] = some | high;
        walk.number[2 * i + 1] = some & high;
    }
    Tail tail;
    for (std::size_t start = 0; start < count; start += keys) {
        Vector y[2][group];
        for (std::size_t party = 0; party < 2; ++party) {
            for (std::size_t i = 0; i < group; ++i)
                y[party][i] = (load(walk.seed[party] + 2 * (start + i * width)) & ~seven) | two;
            hash(cipher, y[party]);
        }
        for (std::size_t i = 0; i < group; ++i) {
            const std::size_t at = 2 * (start + i * width);
            const Vector word = y[0][i] ^ y[1][i] ^ load(walk.number + at) ^ has(load(walk.v + at), four);
            store(tail.bytes + i * sizeof(Vector), word);
        }
        const std::size_t live = count - start < keys ? count - start : keys;
        __builtin_memcpy(row + start * block_bytes, tail.bytes, live * block_bytes);
    }
}

void generate(const Schedule &schedule, const Byte *roots0, const Byte *roots1, const Word *alpha, std::size_t count,
              unsigned bits, Byte *out) {
    const Cipher cipher(schedule);
    const unsigned levels = levels_of(bits);
    Walk walk;
    for (std::size_t start = 0; start < count; start += chunk) {
        const std::size_t live = count - start < chunk ? count - start : chunk;
        begin(walk, alpha + start, 0, roots0 + start * block_bytes, live, 0);
        __builtin_memcpy(walk.seed[1], roots1 + start * block_bytes, live * block_bytes);
        for (unsigned level = 0; level < levels; ++level)
            generate_level(cipher, walk, out + (level * count + start) * block_bytes, live, bits - 1 - level);
        generate_leaf(cipher, walk, out + (levels * count + start) * block_bytes, live, bits);
    }
}

}  // namespace
}  // namespace confide::mpc
