// Key switching, alone, hoisted and doubly hoisted; see evaluator.hpp.
#include "evaluator.hpp"

namespace confide::ckks {

namespace {

// How scratch memory is divided; digits and row are those of one thread.
struct Scratch {
    std::size_t rows, degree;
    Word *target, *coefficients, *sums, *all_digits, *all_rows;
    Scratch(const Context &context, std::size_t limbs, Word *words, std::size_t threads = 1)
        : rows(limbs * context.degree()), degree(context.degree()) {
        target = words;
        coefficients = target + rows;
        sums = coefficients + rows;
        all_digits = sums + 2 * (rows + degree);
        all_rows = all_digits + threads * rows;
    }
    Word *digits(std::size_t worker = 0) const { return all_digits + worker * rows; }
    Word *row(std::size_t worker = 0) const { return all_rows + worker * degree; }
};

// sums [2][limbs + 1][N] = or += the key's products with the digits of target [limbs][N], place by place.
void switch_into(const Context &context, std::size_t limbs, const SwitchKey &key, const Word *target, Word *sums,
                 bool add, const Scratch &scratch) {
    for (std::size_t digit = 0; digit < limbs; ++digit)
        digit_coefficients(context, target, digit, scratch.coefficients);
    for (std::size_t place = 0; place <= limbs; ++place) {
        digits_at(context, limbs, scratch.coefficients, place, scratch.digits());
        sums_at(context, limbs, key, nullptr, place, target, scratch.digits(), sums, add);
    }
}

void permute_rows(const Context &context, const Permutation &permutation, std::size_t rows, const Word *in, Word *out) {
    const Ring &ring = context.ring(0);
    for (std::size_t row = 0; row < rows; ++row, in += context.degree(), out += context.degree())
        ring.kernels->permute(ring, permutation, in, out);
}

// A key switch whose sums are divided: what is switched, its digits if they are there already and else coefficients,
// what permutes the digits, and what is added to each polynomial, permuted unless that is null.
struct Switch {
    const SwitchKey &key;
    const Word *target, *digits;
    const Permutation *permutes;
    const Word *addends[2];
    const Permutation *permutes_addends;
};

// The special prime comes first, so that each other place is finished while its tables and sums are in the cache.
void switch_divided(const Context &context, std::size_t limbs, const Switch &what, Word *out, Pool &pool,
                    const Scratch &scratch) {
    const std::size_t n = context.degree(), size = limbs * n, extended = size + n;
    const Word *special_digits = what.digits ? what.digits + limbs * size : scratch.digits();
    if (!what.digits)
        pool.each(limbs, [&](std::size_t digit, std::size_t) {
            forward_from(context.special(), scratch.coefficients + digit * n, context.ring(digit).q.value, 0,
                         scratch.digits() + digit * n);
        });
    sums_at(context, limbs, what.key, what.permutes, limbs, what.target, special_digits, scratch.sums, false);
    pool.each(2, [&](std::size_t polynomial, std::size_t) {
        divide_special(context, limbs, scratch.sums + polynomial * extended);
    });
    pool.each(limbs, [&](std::size_t limb, std::size_t worker) {
        const Word *digits = what.digits ? what.digits + limb * size : scratch.digits(worker);
        if (!what.digits) digits_at(context, limbs, scratch.coefficients, limb, scratch.digits(worker));
        sums_at(context, limbs, what.key, what.permutes, limb, what.target, digits, scratch.sums, false);
        for (std::size_t polynomial = 0; polynomial < 2; ++polynomial)
            divide_at(context, limbs, scratch.sums + polynomial * extended, limb, what.addends[polynomial],
                      what.permutes_addends, out + polynomial * size, scratch.row(worker));
    });
}

}  // namespace

std::size_t scratch_words(const Context &context, std::size_t limbs, std::size_t threads) noexcept {
    return (2 * limbs + 2 * (limbs + 1) + threads * (limbs + 1)) * context.degree();
}

std::size_t digits_words(const Context &context, std::size_t limbs) noexcept {
    return (limbs + 1) * limbs * context.degree();
}

// --- the parts -------------------------------------------------------------------------------------------------------

void digit_coefficients(const Context &context, const Word *polynomial, std::size_t digit, Word *coefficients) {
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

void relinearise(const Context &context, std::size_t limbs, const SwitchKey &key, const Word *in, Word *out, Pool &pool,
                 Word *words) {
    const Scratch scratch(context, limbs, words, pool.threads());
    const std::size_t size = limbs * context.degree();
    pool.each(limbs, [&](std::size_t digit, std::size_t) {
        digit_coefficients(context, in + 2 * size, digit, scratch.coefficients);
    });
    switch_divided(context, limbs, {key, in + 2 * size, nullptr, nullptr, {in, in + size}, nullptr}, out, pool,
                   scratch);
}

void rotate(const Context &context, std::size_t limbs, const SwitchKey &key, const Permutation &permutation,
            const Word *in, Word *out, Pool &pool, Word *words) {
    const Scratch scratch(context, limbs, words, pool.threads());
    const std::size_t n = context.degree(), size = limbs * n;
    pool.each(limbs, [&](std::size_t digit, std::size_t) {
        permute_rows(context, permutation, 1, in + size + digit * n, scratch.target + digit * n);
        digit_coefficients(context, scratch.target, digit, scratch.coefficients);
    });
    switch_divided(context, limbs, {key, scratch.target, nullptr, nullptr, {in, nullptr}, &permutation}, out, pool,
                   scratch);
}

void decompose(const Context &context, std::size_t limbs, const Word *polynomial, Word *digits, Word *words) {
    const Scratch scratch(context, limbs, words);
    for (std::size_t digit = 0; digit < limbs; ++digit)
        digit_coefficients(context, polynomial, digit, scratch.coefficients);
    for (std::size_t place = 0; place <= limbs; ++place)
        digits_at(context, limbs, scratch.coefficients, place, digits + place * limbs * context.degree());
}

void rotate_hoisted(const Context &context, std::size_t limbs, const SwitchKey &key, const Permutation &permutation,
                    const Word *in, const Word *digits, Word *out, Pool &pool, Word *words) {
    const Scratch scratch(context, limbs, words, pool.threads());
    const Word *second = in + limbs * context.degree();
    switch_divided(context, limbs, {key, second, digits, &permutation, {in, nullptr}, &permutation}, out, pool,
                   scratch);
}

// --- doubly hoisted --------------------------------------------------------------------------------------------------

void rotate_extended(const Context &context, std::size_t limbs, const SwitchKey &key, const Permutation &permutation,
                     const Word *in, const Word *digits, Word *out, Word *words) {
    const Scratch scratch(context, limbs, words);
    const std::size_t n = context.degree(), size = limbs * n;
    for (std::size_t place = 0; place <= limbs; ++place)
        sums_at(context, limbs, key, &permutation, place, in + size, digits + place * size, out, false);
    for (std::size_t limb = 0; limb < limbs; ++limb) {
        const Ring &ring = context.ring(limb);
        ring.kernels->permute(ring, permutation, in + limb * n, scratch.row());
        ring.kernels->scale(ring, scratch.row(), context.by_special().itself[limb], scratch.row());
        ring.kernels->add(ring, out + limb * n, scratch.row(), out + limb * n);
    }
}

void rotate_extended_sum(const Context &context, std::size_t limbs, const SwitchKey &key,
                         const Permutation &permutation, Word *sum, Word *out, bool add, Word *words) {
    const Scratch scratch(context, limbs, words);
    const std::size_t n = context.degree(), size = (limbs + 1) * n;
    divide(context, limbs, 1, sum + size, scratch.digits());
    permute_rows(context, permutation, limbs, scratch.digits(), scratch.target);
    switch_into(context, limbs, key, scratch.target, out, add, scratch);
    for (std::size_t place = 0; place <= limbs; ++place) {
        const Ring &ring = context.ring_at(limbs, place);
        ring.kernels->permute(ring, permutation, sum + place * n, scratch.row());
        ring.kernels->add(ring, out + place * n, scratch.row(), out + place * n);
    }
}

void divide(const Context &context, std::size_t limbs, std::size_t polynomials, Word *sum, Word *out) {
    const std::size_t n = context.degree(), extended = (limbs + 1) * n;
    for (std::size_t polynomial = 0; polynomial < polynomials; ++polynomial)
        divide_special(context, limbs, sum + polynomial * extended);
    for (std::size_t limb = 0; limb < limbs; ++limb)  // the tables of a prime serve all polynomials
        for (std::size_t polynomial = 0; polynomial < polynomials; ++polynomial) {
            Word *quotient = out + polynomial * limbs * n;
            divide_at(context, limbs, sum + polynomial * extended, limb, nullptr, nullptr, quotient,
                      quotient + limb * n);
        }
}

}  // namespace confide::ckks
