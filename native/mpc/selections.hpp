// What a party computes of a truncated value and of its product with a bit, in one pass: docs/protocols/mpc.md.
#pragma once

#include "paths.hpp"

namespace confide::mpc {

// Shares of u = r >> bits and of msb(r), modulo 2^bits, as dealt: `size` bytes each, a power of two. Of any alignment.
struct Tops {
    const Byte *shifted, *top;
    std::size_t size;
};

// out = party T - [u] + c [m], with T and c of the opened values.
void truncate(unsigned party, const Word *opened, std::size_t count, unsigned bits, const Tops &tops, Word *out);

// out = [g xor beta] T - [that bit times u] + c [that bit times m]; with bits = 0, T is what is opened and m = 0. `beta`
// and `chosen` are shares of beta, and of beta u and beta msb(r). The bytes g are 0 or 1.
void select(unsigned party, const Byte *g, const Byte *beta, const Word *opened, std::size_t count, unsigned bits,
            const Tops &tops, const Tops &chosen, Word *out);

}  // namespace confide::mpc
