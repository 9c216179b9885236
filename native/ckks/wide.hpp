// Sums of products in 128 bits, for the portable loops that read keys and weights.
//
// Not for the files of one instruction set: an inline function there could be the linker's choice for all.
#pragma once

#include "kernels.hpp"

namespace confide::ckks {

__extension__ typedef unsigned __int128 Wide;

// 2^64 a + b modulo q, for `wide` = 2^64 mod q.
inline Word whole(Wide total, Word wide, const Modulus &q) noexcept {
    const Word found = multiply(static_cast<Word>(total >> 64), wide, q) + multiply(static_cast<Word>(total), 1, q);
    return found >= q.value ? found - q.value : found;
}

}  // namespace confide::ckks
