// Products mod 2^64, convolutions, streams and comparison keys, made from any bytes: right on every instruction set of
// this machine. Built as ckks_fuzz.cpp is; oracles go word by word, and key by key.
#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "draw.hpp"
#include "mpc/paths.hpp"
#include "mpc/products.hpp"

namespace {

using namespace confide::mpc;
using confide::fuzz::Draw;
using confide::fuzz::expect;

constexpr Path paths[] = {Path::portable, Path::avx2, Path::vaes, Path::avx512};

// Words in an array of exactly that size: the one behind the last is out of bounds.
std::unique_ptr<Word[]> words(std::mt19937_64 &random, std::size_t count) {
    std::unique_ptr<Word[]> found(new Word[count]);
    for (std::size_t i = 0; i < count; ++i) {
        const Word word = random();
        found[i] = word & 3 ? word : word & 4 ? ~Word{0} : Word{1} << 63;
    }
    return found;
}

std::size_t size(Draw &draw) { return draw.rarely() ? 200 + std::size_t{draw.byte()} * 2 : draw.byte() % 41; }

// Signed numbers of 32 bits.
void narrowed(Word *words, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) words[i] = static_cast<Word>(static_cast<std::int64_t>(words[i]) >> 32);
}

// --- products --------------------------------------------------------------------------------------------------------

void matrices(Draw &draw) {
    std::size_t m = size(draw), k = size(draw), n = size(draw);
    if (m * k * n > 2000000) n = n % 8;
    if (m * k * n > 2000000) m = m % 8;
    std::mt19937_64 random(draw.word());
    const bool turned_a = draw.byte() % 2, turned_b = draw.byte() % 2, add = draw.byte() % 2;
    const auto a = words(random, m * k), b = words(random, k * n), start = words(random, m * n);
    if (draw.byte() % 2) narrowed(a.get(), m * k);
    const auto row = [](std::size_t count) { return static_cast<std::ptrdiff_t>(count); };
    const Matrix left = turned_a ? Matrix{a.get(), 1, row(m)} : Matrix{a.get(), row(k), 1};
    const Matrix right = turned_b ? Matrix{b.get(), 1, row(k)} : Matrix{b.get(), row(n), 1};
    const std::unique_ptr<Word[]> expected(new Word[m * n]), out(new Word[m * n]);
    for (std::size_t i = 0; i < m; ++i)
        for (std::size_t j = 0; j < n; ++j) {
            Word total = add ? start[i * n + j] : 0;
            for (std::size_t t = 0; t < k; ++t)
                total += (turned_a ? a[t * m + i] : a[i * k + t]) * (turned_b ? b[j * k + t] : b[t * n + j]);
            expected[i * n + j] = total;
        }
    for (const Path path : paths) {
        if (!runs_here(path)) continue;
        std::copy(start.get(), start.get() + m * n, out.get());
        multiply(product_loops(path), m, k, n, left, right, out.get(), add);
        expect(std::equal(expected.get(), expected.get() + m * n, out.get()), "a product is wrong");
    }
}

void convolutions(Draw &draw) {
    Pictures x{nullptr, std::size_t{draw.byte()} % 4u, std::size_t{draw.byte()} % 4u, 0, 0, {}};
    Convolution shape{};
    x.height = draw.byte() % 12;
    x.width = draw.byte() % 12;
    shape.outputs = draw.byte() % 9;
    shape.kernel_height = 1 + draw.byte() % 4;
    shape.kernel_width = 1 + draw.byte() % 4;
    shape.down = 1 + draw.byte() % 3;
    shape.across = 1 + draw.byte() % 3;
    for (std::size_t *pad : {&shape.top, &shape.left, &shape.bottom, &shape.right}) *pad = draw.byte() % 3;
    const std::size_t tall = x.height + shape.top + shape.bottom, wide = x.width + shape.left + shape.right;
    if (tall < shape.kernel_height || wide < shape.kernel_width) return;
    shape.result_height = (tall - shape.kernel_height) / shape.down + 1;
    shape.result_width = (wide - shape.kernel_width) / shape.across + 1;
    std::mt19937_64 random(draw.word());
    const bool add = draw.byte() % 2;
    const std::size_t plane = x.height * x.width, kernel = shape.kernel_height * shape.kernel_width;
    const auto pictures = words(random, x.count * x.channels * plane), w = words(random, shape.outputs * x.channels * kernel);
    if (draw.byte() % 2) narrowed(w.get(), shape.outputs * x.channels * kernel);
    x.data = pictures.get();
    const std::size_t strides[4] = {x.channels * plane, plane, x.width, 1};
    std::copy(strides, strides + 4, x.strides);
    const std::size_t results = x.count * shape.outputs * shape.result_height * shape.result_width;
    const auto start = words(random, results);
    const std::unique_ptr<Word[]> expected(new Word[results]), out(new Word[results]);
    for (std::size_t at = 0; at < results; ++at) {
        const std::size_t column = at % shape.result_width, row = at / shape.result_width % shape.result_height;
        const std::size_t line = at / shape.result_width / shape.result_height;
        const std::size_t output = line % shape.outputs, picture = line / shape.outputs;
        Word total = add ? start[at] : 0;
        for (std::size_t c = 0; c < x.channels; ++c)
            for (std::size_t i = 0; i < shape.kernel_height; ++i)
                for (std::size_t j = 0; j < shape.kernel_width; ++j) {
                    const std::size_t y = row * shape.down + i, z = column * shape.across + j;
                    if (y < shape.top || z < shape.left || y - shape.top >= x.height || z - shape.left >= x.width) continue;
                    total += pictures[(picture * x.channels + c) * plane + (y - shape.top) * x.width + z - shape.left] *
                             w[(output * x.channels + c) * kernel + i * shape.kernel_width + j];
                }
        expected[at] = total;
    }
    for (const Path path : paths) {
        if (!runs_here(path)) continue;
        std::copy(start.get(), start.get() + results, out.get());
        convolve(product_loops(path), x, w.get(), shape, out.get(), add);
        expect(std::equal(expected.get(), expected.get() + results, out.get()), "a convolution is wrong");
    }
}

// --- streams and keys ------------------------------------------------------------------------------------------------

void streams(Draw &draw) {
    Byte key[block_bytes];
    for (Byte &one : key) one = draw.byte();
    const Word nonce = draw.word();
    const std::size_t count = size(draw);
    const std::unique_ptr<Word[]> expected(new Word[count]), out(new Word[count]);
    bool first = true;
    for (const Path path : paths) {
        if (!runs_here(path)) continue;
        const BlockLoops &loops = block_loops(path);
        Schedule schedule;
        loops.expand(key, schedule);
        loops.stream(schedule, nonce, first ? expected.get() : out.get(), count);
        expect(first || std::equal(expected.get(), expected.get() + count, out.get()), "streams differ");
        first = false;
        // FIPS 197's key; the block of zeros is the first step of RFC 4493's example.
        static const Byte standard[block_bytes] = {0x2b, 0x7e, 0x15, 0x16, 0x28, 0xae, 0xd2, 0xa6,
                                                   0xab, 0xf7, 0x15, 0x88, 0x09, 0xcf, 0x4f, 0x3c};
        Word block[2];
        loops.expand(standard, schedule);
        loops.stream(schedule, 0, block, 2);
        expect(block[0] == 0xb399b81a0c6bf77d && block[1] == 0x6f541bb947f0423e, "this is not AES");
    }
}

void keys(Draw &draw) {
    const unsigned bits = 1 + draw.byte() % 63;
    const std::size_t count = size(draw), levels = bits > 7 ? bits - 7 : 0, body = (levels + 1) * count * block_bytes;
    Byte key[block_bytes];
    for (Byte &one : key) one = draw.byte();
    std::mt19937_64 random(draw.word());
    const std::size_t askew = draw.byte() % 8;
    const Word mask = ~Word{0} >> (64 - bits);
    const unsigned drop = draw.byte() % (65 - bits);
    const bool top = draw.byte() % 2 && drop + bits < 64;
    const auto alpha = words(random, count), x = words(random, count);
    for (std::size_t i = 0; i < count; ++i)
        if (i % 3) x[i] = (alpha[i] + i % 5 - 2) << drop | (drop ? x[i] >> (64 - drop) : 0);
    // Bytes that start anywhere and end with their array.
    const std::unique_ptr<Byte[]> roots(new Byte[askew + 2 * count * block_bytes]), made(new Byte[askew + body]),
        expected(new Byte[body]), shares(new Byte[2 * count]);
    for (std::size_t i = 0; i < askew + 2 * count * block_bytes; ++i) roots[i] = static_cast<Byte>(random() >> 20);
    const Byte *const seeds[2] = {roots.get() + askew, roots.get() + askew + count * block_bytes};
    bool first = true;
    for (const Path path : paths) {
        if (!runs_here(path)) continue;
        const BlockLoops &loops = block_loops(path);
        Schedule schedule;
        loops.expand(key, schedule);
        loops.generate(schedule, seeds[0], seeds[1], alpha.get(), count, bits, made.get() + askew);
        expect(first || std::equal(expected.get(), expected.get() + body, made.get() + askew), "corrections differ");
        std::copy(made.get() + askew, made.get() + askew + body, expected.get());
        first = false;
        for (unsigned party = 0; party < 2; ++party)
            loops.evaluate(schedule, party, seeds[party], made.get() + askew, x.get(), count, bits, drop,
                           top && party == 0, shares.get() + party * count);
        for (std::size_t i = 0; i < count; ++i) {
            const Word point = x[i] >> drop;
            const bool truth = ((point & mask) < (alpha[i] & mask)) != (top && (point >> bits & 1));
            expect((shares[i] ^ shares[count + i]) == truth, "shares of a lie");
        }
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *bytes, std::size_t length) {
    Draw draw(bytes, length);
    switch (draw.byte() % 4) {
        case 0: matrices(draw); break;
        case 1: convolutions(draw); break;
        case 2: streams(draw); break;
        default: keys(draw);
    }
    return 0;
}

#ifdef CONFIDE_DRIVER
// Random bytes instead of a fuzzer's: `shares_fuzz [repeats] [seed]`.
int main(int count, char **arguments) {
    confide::fuzz::drive(count, arguments, 100, LLVMFuzzerTestOneInput);
    std::puts("the shares agree");
    return 0;
}
#endif
