// Key switching, alone, hoisted and doubly hoisted; see evaluator.hpp.
#include "evaluator.hpp"

namespace confide::ckks {

namespace {

// How scratch memory is divided.
struct Scratch {
    Word *target, *coefficients, *digits, *sums, *row;
    Scratch(const Context &context, std::size_t limbs, Word *words) {
        const std::size_t rows = limbs * context.degree();
        target = words;
        coefficients = target + rows;
        digits = coefficients + rows;
        sums = digits + rows;
        row = sums + 2 * (rows + context.degree());
    }
};

// sums [2][limbs + 1][N] = or += the key's products with the digits of target [limbs][N], place by place.
void switch_into(const Context &context, std::size_t limbs, const SwitchKey &key, const Word *target, Word *sums,
                 bool add, const Scratch &scratch) {
    for (std::size_t digit = 0; digit < limbs; ++digit)
        digit_coefficients(context, limbs, target, digit, scratch.coefficients);
    for (std::size_t place = 0; place <= limbs; ++place) {
        digits_at(context, limbs, scratch.coefficients, place, scratch.digits);
        sums_at(context, limbs, key, nullptr, place, target, scratch.digits, sums, add);
    }
}

// out = sum / p, plus addend if there is one, permuted if that is asked for: one polynomial.
void quotient(const Context &context, std::size_t limbs, Word *sum, const Word *addend, const Permutation *permutation,
              Word *out, Word *row) {
    divide_special(context, limbs, sum);
    for (std::size_t limb = 0; limb < limbs; ++limb)
        divide_at(context, limbs, sum, limb, addend, permutation, out, row);
}

void permute_rows(const Context &context, const Permutation &permutation, std::size_t rows, const Word *in, Word *out) {
    const Ring &ring = context.ring(0);
    for (std::size_t row = 0; row < rows; ++row, in += context.degree(), out += context.degree())
        ring.kernels->permute(ring, permutation, in, out);
}

}  // namespace

std::size_t scratch_words(const Context &context, std::size_t limbs) noexcept {
    return (3 * limbs + 2 * (limbs + 1) + 1) * context.degree();
}

std::size_t digits_words(const Context &context, std::size_t limbs) noexcept {
    return (limbs + 1) * limbs * context.degree();
}

// --- the parts -------------------------------------------------------------------------------------------------------

void digit_coefficients(const Context &context, std::size_t, const Word *polynomial, std::size_t digit,
                        Word *coefficients) {
    const std::size_t n = context.degree();
    inverse_from(context.ring(digit), polynomial + digit * n, coefficients + digit * n);
}

void digits_at(const Context &context, std::size_t limbs, const Word *coefficients, std::size_t place, Word *digits) {
    const std::size_t n = context.degree();
    const Ring &ring = context.ring_at(limbs, place);
    for (std::size_t digit = 0; digit < limbs; ++digit, digits += n) {
        if (digit != place) forward_from(ring, coefficients + digit * n, context.ring(digit).q.value, 0, digits);
    }
}

void sums_at(const Context &context, std::size_t limbs, const SwitchKey &key, const Permutation *permutation,
             std::size_t place, const Word *polynomial, const Word *digits, Word *sums, bool add) {
    const Word *rows[most_limbs];
    const std::size_t n = context.degree();
    for (std::size_t digit = 0; digit < limbs; ++digit)
        rows[digit] = (digit == place ? polynomial : digits) + digit * n;
    Word *first = sums + place * n;
    key.sums(context, limbs, place, permutation, rows, first, first + (limbs + 1) * n, add);
}

void divide_special(const Context &context, std::size_t limbs, Word *sum) {
    const Ring &special = context.special();
    Word *row = sum + limbs * context.degree();
    special.kernels->inverse(special, row);
    special.kernels->reduce(special, row, context.by_special().half, row);
}

void divide_at(const Context &context, std::size_t limbs, const Word *sum, std::size_t limb, const Word *addend,
               const Permutation *permutation, Word *out, Word *scratch) {
    const std::size_t n = context.degree();
    const Ring &ring = context.ring(limb);
    const Division &division = context.by_special();
    forward_from(ring, sum + limbs * n, context.special().q.value, division.minus_half[limb], scratch);
    const Word *row = sum + limb * n;
    const Word inverse = division.inverse[limb];
    if (addend)
        switch_loops(ring).quotient(ring, row, scratch, inverse, addend + limb * n, permutation, out + limb * n);
    else
        ring.kernels->subtract_scale(ring, row, scratch, inverse, out + limb * n);
}

// --- whole -----------------------------------------------------------------------------------------------------------

void relinearise(const Context &context, std::size_t limbs, const SwitchKey &key, const Word *in, Word *out,
                 Word *words) {
    const Scratch scratch(context, limbs, words);
    const std::size_t size = limbs * context.degree();
    switch_into(context, limbs, key, in + 2 * size, scratch.sums, false, scratch);
    for (std::size_t polynomial = 0; polynomial < 2; ++polynomial)
        quotient(context, limbs, scratch.sums + polynomial * (size + context.degree()), in + polynomial * size, nullptr,
                 out + polynomial * size, scratch.row);
}

void rotate(const Context &context, std::size_t limbs, const SwitchKey &key, const Permutation &permutation,
            const Word *in, Word *out, Word *words) {
    const Scratch scratch(context, limbs, words);
    const std::size_t size = limbs * context.degree();
    permute_rows(context, permutation, limbs, in + size, scratch.target);
    switch_into(context, limbs, key, scratch.target, scratch.sums, false, scratch);
    quotient(context, limbs, scratch.sums, in, &permutation, out, scratch.row);
    quotient(context, limbs, scratch.sums + size + context.degree(), nullptr, nullptr, out + size, scratch.row);
}

void decompose(const Context &context, std::size_t limbs, const Word *polynomial, Word *digits, Word *words) {
    const Scratch scratch(context, limbs, words);
    for (std::size_t digit = 0; digit < limbs; ++digit)
        digit_coefficients(context, limbs, polynomial, digit, scratch.coefficients);
    for (std::size_t place = 0; place <= limbs; ++place)
        digits_at(context, limbs, scratch.coefficients, place, digits + place * limbs * context.degree());
}

void rotate_hoisted(const Context &context, std::size_t limbs, const SwitchKey &key, const Permutation &permutation,
                    const Word *in, const Word *digits, Word *out, Word *words) {
    const Scratch scratch(context, limbs, words);
    const std::size_t size = limbs * context.degree();
    for (std::size_t place = 0; place <= limbs; ++place)
        sums_at(context, limbs, key, &permutation, place, in + size, digits + place * size, scratch.sums, false);
    quotient(context, limbs, scratch.sums, in, &permutation, out, scratch.row);
    quotient(context, limbs, scratch.sums + size + context.degree(), nullptr, nullptr, out + size, scratch.row);
}

void rotate_extended(const Context &context, std::size_t limbs, const SwitchKey &key, const Permutation &permutation,
                     const Word *in, const Word *digits, Word *out, Word *words) {
    const Scratch scratch(context, limbs, words);
    const std::size_t n = context.degree(), size = limbs * n;
    for (std::size_t place = 0; place <= limbs; ++place)
        sums_at(context, limbs, key, &permutation, place, in + size, digits + place * size, out, false);
    for (std::size_t limb = 0; limb < limbs; ++limb) {
        const Ring &ring = context.ring(limb);
        ring.kernels->permute(ring, permutation, in + limb * n, scratch.row);
        ring.kernels->scale(ring, scratch.row, context.by_special().itself[limb], scratch.row);
        ring.kernels->add(ring, out + limb * n, scratch.row, out + limb * n);
    }
}

void rotate_extended_sum(const Context &context, std::size_t limbs, const SwitchKey &key,
                         const Permutation &permutation, Word *sum, Word *out, bool add, Word *words) {
    const Scratch scratch(context, limbs, words);
    const std::size_t n = context.degree(), size = (limbs + 1) * n;
    quotient(context, limbs, sum + size, nullptr, nullptr, scratch.digits, scratch.row);
    permute_rows(context, permutation, limbs, scratch.digits, scratch.target);
    switch_into(context, limbs, key, scratch.target, out, add, scratch);
    for (std::size_t place = 0; place <= limbs; ++place) {
        const Ring &ring = context.ring_at(limbs, place);
        ring.kernels->permute(ring, permutation, sum + place * n, scratch.row);
        ring.kernels->add(ring, out + place * n, scratch.row, out + place * n);
    }
}

void divide(const Context &context, std::size_t limbs, std::size_t polynomials, Word *sum, Word *out) {
    const std::size_t n = context.degree();
    const Division &division = context.by_special();
    for (std::size_t polynomial = 0; polynomial < polynomials; ++polynomial, sum += (limbs + 1) * n, out += limbs * n) {
        divide_special(context, limbs, sum);
        for (std::size_t limb = 0; limb < limbs; ++limb) {
            const Ring &ring = context.ring(limb);
            Word *row = out + limb * n;
            forward_from(ring, sum + limbs * n, context.special().q.value, division.minus_half[limb], row);
            ring.kernels->subtract_scale(ring, sum + limb * n, row, division.inverse[limb], row);
        }
    }
}

}  // namespace confide::ckks
