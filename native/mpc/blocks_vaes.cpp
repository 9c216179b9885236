// VAES: two blocks to an instruction.
#include "paths.hpp"

#ifdef CONFIDE_MPC_X86
#include <immintrin.h>

namespace confide::mpc {
namespace {

constexpr std::size_t width = 2, group = 8;
using Vector = Word __attribute__((vector_size(32)));
using Register = __m256i;

inline Register repeated(__m128i key) { return _mm256_broadcastsi128_si256(key); }
inline Register one_round(Register state, Register key) { return _mm256_aesenc_epi128(state, key); }
inline Register last_round(Register state, Register key) { return _mm256_aesenclast_epi128(state, key); }
inline Vector spread(Vector v) { return (Vector)_mm256_unpacklo_epi64((Register)v, (Register)v); }

}  // namespace
}  // namespace confide::mpc

#include "aes_x86.hpp"
#include "block_loops.hpp"

namespace confide::mpc {

const BlockLoops vaes_blocks = {"vaes", expand, stream, generate, evaluate};

}  // namespace confide::mpc
#endif
