// Operations without keys; see evaluator.hpp.
#include <cstring>

#include "evaluator.hpp"

namespace confide::ckks {

namespace {

using Binary = void (*Kernels::*)(const Ring &, const Word *, const Word *, Word *);

// b is of one polynomial where `shared`, and serves them all.
void each_row(const Context &context, std::size_t limbs, std::size_t places, std::size_t polynomials, Binary loop,
              const Word *a, const Word *b, bool shared, Word *out) {
    const std::size_t n = context.degree();
    for (std::size_t row = 0; row < polynomials * places; ++row) {
        const Ring &ring = context.ring_at(limbs, row % places);
        (ring.kernels->*loop)(ring, a + row * n, b + (shared ? row % places : row) * n, out + row * n);
    }
}

// x mod q for a signed x, in time that does not depend on it.
Word residue(std::int64_t x, const Modulus &q) noexcept {
    const Word negative = static_cast<Word>(x) >> 63, mask = 0 - negative;
    const Word magnitude = (static_cast<Word>(x) ^ mask) + negative;
    const Word rest = multiply(magnitude, 1, q);
    const Word nonzero = 0 - ((rest | (0 - rest)) >> 63);
    return (rest & ~mask) | ((q.value - rest) & mask & nonzero);
}

}  // namespace

void add(const Context &context, std::size_t limbs, std::size_t polynomials, const Word *a, const Word *b, Word *out) {
    each_row(context, limbs, limbs, polynomials, &Kernels::add, a, b, false, out);
}

void subtract(const Context &context, std::size_t limbs, std::size_t polynomials, const Word *a, const Word *b,
              Word *out) {
    each_row(context, limbs, limbs, polynomials, &Kernels::subtract, a, b, false, out);
}

void add_extended(const Context &context, std::size_t limbs, std::size_t polynomials, const Word *a, const Word *b,
                  Word *out) {
    each_row(context, limbs, limbs + 1, polynomials, &Kernels::add, a, b, false, out);
}

void add_plain(const Context &context, std::size_t limbs, std::size_t polynomials, const Word *a, const Word *plain,
               Word *out) {
    each_row(context, limbs, limbs, 1, &Kernels::add, a, plain, true, out);
    const std::size_t size = limbs * context.degree();
    if (out != a) std::memcpy(out + size, a + size, (polynomials - 1) * size * sizeof(Word));
}

void multiply_plain(const Context &context, std::size_t limbs, std::size_t polynomials, const Word *a,
                    const Word *plain, Word *out) {
    each_row(context, limbs, limbs, polynomials, &Kernels::multiply, a, plain, true, out);
}

void multiply(const Context &context, std::size_t limbs, const Word *a, const Word *b, Word *out) {
    const std::size_t n = context.degree(), size = limbs * n;
    for (std::size_t limb = 0; limb < limbs; ++limb) {
        const Ring &ring = context.ring(limb);
        const Word *const left[] = {a + limb * n, a + size + limb * n};
        const Word *const right[] = {b + limb * n, b + size + limb * n};
        const Word *const crossed[] = {right[1], right[0]};
        ring.kernels->multiply(ring, left[0], right[0], out + limb * n);
        ring.kernels->dot(ring, left, crossed, 2, out + size + limb * n, false);
        ring.kernels->multiply(ring, left[1], right[1], out + 2 * size + limb * n);
    }
}

void inner(const Context &context, std::size_t limbs, bool extended, std::size_t polynomials,
           const Word *const *ciphers, const Word *const *plains, std::size_t terms, Word *out, bool add) {
    constexpr std::size_t most = 128;  // terms for which the pointers are gathered at once
    const Word *a[most], *b[most];
    const std::size_t n = context.degree(), places = limbs + extended;
    for (std::size_t row = 0; row < polynomials * places; ++row) {
        const Ring &ring = context.ring_at(limbs, row % places);
        for (std::size_t first = 0; first < terms; first += most) {
            const std::size_t count = terms - first < most ? terms - first : most;
            for (std::size_t term = 0; term < count; ++term) {
                a[term] = ciphers[first + term] + row * n;
                b[term] = plains[first + term] + row % places * n;
            }
            ring.kernels->dot(ring, a, b, count, out + row * n, add || first);
        }
    }
}

void drop(const Context &context, std::size_t limbs, std::size_t to, std::size_t polynomials, const Word *in,
          Word *out) {
    const std::size_t n = context.degree();
    for (std::size_t polynomial = 0; polynomial < polynomials; ++polynomial)
        std::memcpy(out + polynomial * to * n, in + polynomial * limbs * n, to * n * sizeof(Word));
}

void rescale(const Context &context, std::size_t limbs, std::size_t polynomials, const Word *in, Word *out,
             Word *scratch) {
    const std::size_t n = context.degree(), left = limbs - 1;
    const Ring &last = context.ring(left);
    const Division &division = context.by_limb(left);
    for (std::size_t polynomial = 0; polynomial < polynomials; ++polynomial, in += limbs * n, out += left * n) {
        inverse_from(last, in + left * n, scratch);
        last.kernels->reduce(last, scratch, division.half, scratch);
        for (std::size_t limb = 0; limb < left; ++limb) {
            const Ring &ring = context.ring(limb);
            Word *row = out + limb * n;
            forward_from(ring, scratch, last.q.value, division.minus_half[limb], row);
            ring.kernels->subtract_scale(ring, in + limb * n, row, division.inverse[limb], row);
        }
    }
}

void encode(const Context &context, std::size_t limbs, bool extended, const std::int64_t *coefficients, Word *out) {
    const std::size_t n = context.degree();
    for (std::size_t place = 0; place < limbs + extended; ++place) {
        const Ring &ring = context.ring_at(limbs, place);
        for (std::size_t i = 0; i < n; ++i) out[place * n + i] = residue(coefficients[i], ring.q);
        ring.kernels->forward(ring, out + place * n);
    }
}

bool below(const Context &context, std::size_t limbs, bool extended, std::size_t polynomials, const Word *in) {
    const std::size_t places = limbs + extended;
    bool all = true;
    for (std::size_t row = 0; row < polynomials * places; ++row) {
        const Ring &ring = context.ring_at(limbs, row % places);
        all &= ring.kernels->below(ring, in + row * context.degree());
    }
    return all;
}

void extend(const Context &context, std::size_t limbs, const Word *in, Word *out) {
    const std::size_t n = context.degree();
    for (std::size_t polynomial = 0; polynomial < 2; ++polynomial, in += limbs * n, out += (limbs + 1) * n) {
        for (std::size_t limb = 0; limb < limbs; ++limb) {
            const Ring &ring = context.ring(limb);
            ring.kernels->scale(ring, in + limb * n, context.by_special().itself[limb], out + limb * n);
        }
        std::memset(out + limbs * n, 0, n * sizeof(Word));
    }
}

}  // namespace confide::ckks
