// AES-NI: one block to an instruction.
#include "paths.hpp"

#ifdef CONFIDE_MPC_X86
#include <immintrin.h>

namespace confide::mpc {
namespace {

constexpr std::size_t width = 1, group = 8;
using Vector = Word __attribute__((vector_size(16)));
using Register = __m128i;

inline Register repeated(__m128i key) { return key; }
inline Register one_round(Register state, Register key) { return _mm_aesenc_si128(state, key); }
inline Register last_round(Register state, Register key) { return _mm_aesenclast_si128(state, key); }
inline Vector spread(Vector v) { return (Vector)_mm_unpacklo_epi64((Register)v, (Register)v); }

}  // namespace
}  // namespace confide::mpc

#include "aes_x86.hpp"
#include "block_loops.hpp"

namespace confide::mpc {

const BlockLoops avx2_blocks = {"avx2", expand, stream, generate, evaluate};

}  // namespace confide::mpc
#endif
