// Blocks of a matrix product over residues, each block within the cache; see sums.hpp.
//
// A block is a few dozen words of every input, gathered side by side: rows of ciphertexts lie a power of two apart,
// which a cache cannot hold at once. Per block one of two kernels runs:
//   IFMA      weights modulo the prime; the low and the high 52 bits of products add up in 64-bit words, 1024 at a time
//   pieces    as in the numpy twin (confide.he.integer_sums): residues in pieces of 20 bits as doubles, whose sums stay
//             below 2^53 and are exact, fused or not; compiled for AVX2 with FMA, and for every machine
#include "sums.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "context.hpp"
#include "threads.hpp"

#if defined(__x86_64__) && defined(__GNUC__)
#define CONFIDE_X86
#include <immintrin.h>
#endif

namespace confide::ckks {

namespace {

constexpr unsigned piece_bits = 20;
constexpr double largest_sum = 8589934592.0;  // 2^33: 20-bit pieces times weights stay below 2^53
constexpr std::size_t block_bytes = std::size_t{1} << 18;
constexpr std::size_t lanes = 8;  // words that a kernel takes at one time

// What the work on one block of words needs.
struct Block {
    const IntegerMap &map;
    const Modulus &q;
    std::size_t words;      // of each input in the block
    const Word *in;         // first word of input 0
    std::size_t stride;     // from one input or output to the next
    const Word *biases;     // of output 0, or null in the second polynomial
    std::size_t bias_stride;
    Word *out;              // first word of output 0
};

Word biased(const Block &block, Word sum, std::uint32_t result) {
    if (block.biases == nullptr) return sum;
    const Word total = sum + block.biases[result * block.bias_stride];
    return total >= block.q.value ? total - block.q.value : total;
}

// --- pieces ----------------------------------------------------------------------------------------------------------

// sum_j 2^(20 j) s_j modulo q; |s_j| < 2^53, whole.
Word joined(const double *sums, std::size_t count, std::size_t apart, const Modulus &q) {
    Word total = 0;
    for (std::size_t piece = count; piece-- > 0;) {
        const auto value = static_cast<std::int64_t>(sums[piece * apart]);
        const Word size = multiply(static_cast<Word>(value < 0 ? -value : value), 1, q);
        total = multiply(total, Word{1} << piece_bits, q) + (value < 0 && size ? q.value - size : size);
        total = total >= q.value ? total - q.value : total;
    }
    return total;
}

// sums[r][piece][lane] = sum_i weights[r][i] pieces[inputs[i]][piece][lane] for `Rows` results.
template <std::size_t Rows, std::size_t Pieces, typename Lanes>
inline __attribute__((always_inline)) void rows_of(const Group &group, std::size_t first, const double *pieces,
                                                   std::size_t apart, std::size_t words, double *sums) {
    constexpr std::size_t wide = sizeof(Lanes) / sizeof(double);
    const std::size_t terms = group.inputs.size();
    const double *weights = group.weights.data() + first * terms;
    for (std::size_t part = 0; part < lanes; part += wide) {
        Lanes total[Rows][Pieces] = {};
        for (std::size_t i = 0; i < terms; ++i) {
            const double *from = pieces + group.inputs[i] * apart + part;
#pragma GCC unroll 4
            for (std::size_t piece = 0; piece < Pieces; ++piece) {
                const Lanes read = *reinterpret_cast<const Lanes *>(from + piece * words);
#pragma GCC unroll 4
                for (std::size_t row = 0; row < Rows; ++row) total[row][piece] += read * weights[row * terms + i];
            }
        }
        for (std::size_t row = 0; row < Rows; ++row)
            for (std::size_t piece = 0; piece < Pieces; ++piece)
                std::memcpy(sums + (row * Pieces + piece) * lanes + part, &total[row][piece], sizeof(Lanes));
    }
}

template <std::size_t Pieces, typename Lanes>
inline __attribute__((always_inline)) void by_pieces(const Block &block, void *memory) {
    auto *pieces = static_cast<double *>(memory);
    const std::size_t words = block.words, apart = Pieces * words;
    for (std::size_t i = 0; i < block.map.inputs; ++i)
        for (std::size_t word = 0; word < words; ++word)
            for (std::size_t piece = 0; piece < Pieces; ++piece) {
                const Word part = block.in[i * block.stride + word] >> (piece_bits * piece) & ((1u << piece_bits) - 1);
                pieces[i * apart + piece * words + word] = static_cast<double>(static_cast<std::int64_t>(part));
            }
    alignas(64) double sums[4 * Pieces * lanes];
    for (const Group &group : block.map.groups)
        for (std::size_t word = 0; word < words; word += lanes)
            for (std::size_t first = 0; first < group.results.size();) {
                const std::size_t rows = group.results.size() - first >= 4 ? 4 : 1;
                if (rows == 4)
                    rows_of<4, Pieces, Lanes>(group, first, pieces + word, apart, words, sums);
                else
                    rows_of<1, Pieces, Lanes>(group, first, pieces + word, apart, words, sums);
                for (std::size_t row = 0; row < rows; ++row) {
                    const std::uint32_t result = group.results[first + row];
                    Word *to = block.out + result * block.stride + word;
                    for (std::size_t lane = 0; lane < lanes; ++lane)
                        to[lane] = biased(block, joined(sums + row * Pieces * lanes + lane, Pieces, lanes, block.q),
                                          result);
                }
                first += rows;
            }
}

template <typename Lanes>
inline __attribute__((always_inline)) void pieces_of(const Block &block, void *memory) {
    if (block.q.bits <= 2 * piece_bits)
        by_pieces<2, Lanes>(block, memory);
    else if (block.q.bits <= 3 * piece_bits)
        by_pieces<3, Lanes>(block, memory);
    else
        by_pieces<4, Lanes>(block, memory);
}

typedef double Two __attribute__((vector_size(16), may_alias));
typedef double Four __attribute__((vector_size(32), may_alias));

void portable(const Block &block, void *memory) { pieces_of<Two>(block, memory); }

#ifdef CONFIDE_X86

__attribute__((target("avx2,fma"))) void avx2(const Block &block, void *memory) { pieces_of<Four>(block, memory); }

// --- IFMA ------------------------------------------------------------------------------------------------------------

#define CONFIDE_IFMA __attribute__((target("avx512f,avx512ifma")))

constexpr std::size_t most_terms = 1024;  // low halves below 2^52 add up to below 2^62

// Constants to bring hi 2^52 + lo below q, hi < 2^59 and lo < 2^63.
struct Fold {
    __m512i q, one_shoup, middle, middle_shoup, top, top_shoup;
};

CONFIDE_IFMA inline Fold fold_of(const Modulus &q) {
    const Word middle = multiply(Word{1} << 52, 1, q), top = multiply(middle, middle, q);
    const auto all = [](Word w) { return static_cast<long long>(w); };
    return {_mm512_set1_epi64(all(q.value)),          _mm512_set1_epi64(all(shoup52(1, q))),
            _mm512_set1_epi64(all(middle)),           _mm512_set1_epi64(all(shoup52(middle, q))),
            _mm512_set1_epi64(all(top)),              _mm512_set1_epi64(all(shoup52(top, q)))};
}

// a w in [0, 2q) for a < 2^52.
CONFIDE_IFMA inline __m512i lazily(__m512i a, __m512i w, __m512i constant, __m512i q, __m512i mask) {
    const __m512i zero = _mm512_setzero_si512(), quotient = _mm512_madd52hi_epu64(zero, a, constant);
    const __m512i low = _mm512_madd52lo_epu64(zero, a, w), taken = _mm512_madd52lo_epu64(zero, quotient, q);
    return _mm512_and_si512(_mm512_sub_epi64(low, taken), mask);
}

CONFIDE_IFMA inline __m512i once(__m512i a, __m512i q) { return _mm512_min_epu64(a, _mm512_sub_epi64(a, q)); }

CONFIDE_IFMA inline __m512i folded(__m512i low, __m512i high, const Fold &with) {
    const __m512i mask = _mm512_set1_epi64((1LL << 52) - 1), twice = _mm512_add_epi64(with.q, with.q);
    high = _mm512_add_epi64(high, _mm512_srli_epi64(low, 52));
    const __m512i least = lazily(_mm512_and_si512(low, mask), _mm512_set1_epi64(1), with.one_shoup, with.q, mask);
    const __m512i middle = lazily(_mm512_and_si512(high, mask), with.middle, with.middle_shoup, with.q, mask);
    const __m512i top = lazily(_mm512_srli_epi64(high, 52), with.top, with.top_shoup, with.q, mask);
    const __m512i pair = once(_mm512_add_epi64(least, middle), twice);
    return once(once(_mm512_add_epi64(pair, top), twice), with.q);
}

// Results `first` to `first + Rows` at 16 words.
template <std::size_t Rows>
CONFIDE_IFMA inline void ifma_rows(const Block &block, const Group &group, const Word *weights, const Word *gathered,
                                   std::size_t first, std::size_t word, const Fold &with) {
    const std::size_t terms = group.inputs.size();
    __m512i low[Rows][2], high[Rows][2];
    for (std::size_t row = 0; row < Rows; ++row)
        for (std::size_t half = 0; half < 2; ++half) low[row][half] = high[row][half] = _mm512_setzero_si512();
    for (std::size_t start = 0; start < terms; start += most_terms) {
        const std::size_t stop = std::min(start + most_terms, terms);
        for (std::size_t i = start; i < stop; ++i) {
            const Word *from = gathered + group.inputs[i] * block.words + word;
            const __m512i one = _mm512_load_si512(from), other = _mm512_load_si512(from + lanes);
#pragma GCC unroll 4
            for (std::size_t row = 0; row < Rows; ++row) {
                const __m512i w = _mm512_set1_epi64(static_cast<long long>(weights[row * terms + i]));
                low[row][0] = _mm512_madd52lo_epu64(low[row][0], one, w);
                high[row][0] = _mm512_madd52hi_epu64(high[row][0], one, w);
                low[row][1] = _mm512_madd52lo_epu64(low[row][1], other, w);
                high[row][1] = _mm512_madd52hi_epu64(high[row][1], other, w);
            }
        }
#pragma GCC unroll 4
        for (std::size_t row = 0; row < Rows; ++row)
            for (std::size_t half = 0; half < 2; ++half) {
                low[row][half] = folded(low[row][half], high[row][half], with);
                high[row][half] = _mm512_setzero_si512();
            }
    }
    for (std::size_t row = 0; row < Rows; ++row) {
        const std::uint32_t result = group.results[first + row];
        const Word bias = block.biases ? block.biases[result * block.bias_stride] : 0;
        Word *to = block.out + result * block.stride + word;
        for (std::size_t half = 0; half < 2; ++half) {
            const __m512i sum = _mm512_add_epi64(low[row][half], _mm512_set1_epi64(static_cast<long long>(bias)));
            _mm512_storeu_si512(to + half * lanes, once(sum, with.q));
        }
    }
}

// `residues` holds the weights of every group modulo the prime.
CONFIDE_IFMA void ifma(const Block &block, const Word *residues, void *memory) {
    auto *gathered = static_cast<Word *>(memory);
    for (std::size_t i = 0; i < block.map.inputs; ++i)
        std::memcpy(gathered + i * block.words, block.in + i * block.stride, block.words * sizeof(Word));
    const Fold with = fold_of(block.q);
    for (const Group &group : block.map.groups) {
        const std::size_t results = group.results.size(), terms = group.inputs.size();
        for (std::size_t word = 0; word < block.words; word += 2 * lanes) {
            std::size_t first = 0;
            for (; first + 4 <= results; first += 4)
                ifma_rows<4>(block, group, residues + first * terms, gathered, first, word, with);
            for (; first < results; ++first)
                ifma_rows<1>(block, group, residues + first * terms, gathered, first, word, with);
        }
        residues += results * terms;
    }
}

#endif

// Every weight of a map modulo q, in the order of its groups.
Memory residues_of(const IntegerMap &map, const Modulus &q) {
    std::size_t count = 0;
    for (const Group &group : map.groups) count += group.weights.size();
    Memory found(count);
    Word *next = found.data();
    for (const Group &group : map.groups)
        for (const double weight : group.weights) {
            const Word size = multiply(static_cast<Word>(std::fabs(weight)), 1, q);
            *next++ = weight < 0 && size ? q.value - size : size;
        }
    return found;
}

// How many words of every input a block holds: 16, 32 or 64, of which a row is a multiple.
std::size_t words_of(std::size_t degree, std::size_t inputs, std::size_t each) {
    std::size_t words = 64;
    while (words > 16 && (degree % words || inputs * words * each > block_bytes)) words /= 2;
    return words;
}

}  // namespace

IntegerMap::IntegerMap(std::size_t in, std::size_t out, std::vector<Group> all)
    : inputs(in), outputs(out), groups(std::move(all)) {
    std::vector<bool> held(outputs);
    std::size_t results = 0;
    for (const Group &group : groups) {
        if (group.inputs.empty() || group.weights.size() != group.results.size() * group.inputs.size())
            throw std::invalid_argument("Expected a weight for every result and input of a group");
        for (const std::uint32_t place : group.inputs)
            if (place >= inputs) throw std::invalid_argument("Expected places of inputs");
        for (std::size_t row = 0; row < group.results.size(); ++row, ++results) {
            if (group.results[row] >= outputs || held[group.results[row]])
                throw std::invalid_argument("Expected every output once");
            held[group.results[row]] = true;
            double sum = 0;
            for (std::size_t i = 0; i < group.inputs.size(); ++i) {
                const double weight = group.weights[row * group.inputs.size() + i];
                if (!(std::fabs(weight) < largest_sum) || weight != std::rint(weight))
                    throw std::invalid_argument("Expected whole weights below 2^33");
                sum += std::fabs(weight);
            }
            if (!(sum < largest_sum)) throw std::invalid_argument("Expected weights that add up to below 2^33");
        }
    }
    if (results != outputs) throw std::invalid_argument("Expected every output once");
}

void weighted_sums(const IntegerMap &map, const std::vector<Modulus> &primes, std::size_t degree, const Word *in,
                   const Word *biases, Word *out, unsigned threads, Path path) {
    if (!runs_here(path)) throw std::invalid_argument("Expected an instruction set that this machine has");
    if (degree % (2 * lanes)) throw std::invalid_argument("Expected a multiple of 16 words");
    const std::size_t words = words_of(degree, map.inputs, 3 * sizeof(double));
    std::vector<Memory> residues(primes.size());
    for (std::size_t place = 0; place < primes.size(); ++place)
        if (path == Path::ifma && primes[place].bits <= 50) residues[place] = residues_of(map, primes[place]);
    const std::size_t blocks = degree / words, count = 2 * primes.size() * blocks;
    share(count, threads, [&](Tasks &tasks) {
        const Memory memory(4 * words * map.inputs);  // of words, or of pieces as doubles
        for (std::size_t job; tasks.take(job);) {
            const std::size_t row = job / blocks, prime = row % primes.size(), at = row * degree + job % blocks * words;
            const Block block{map,      primes[prime],
                              words,    in + at,
                              2 * primes.size() * degree,
                              row < primes.size() ? biases + prime : nullptr,
                              primes.size(),
                              out + at};
#ifdef CONFIDE_X86
            if (residues[prime].data()) {
                ifma(block, residues[prime].data(), memory.data());
                continue;
            }
            if (path != Path::portable) {
                avx2(block, memory.data());
                continue;
            }
#endif
            portable(block, memory.data());
        }
    });
}

}  // namespace confide::ckks
