// The instructions of a program, each as phases of independent tasks; see program.hpp.
//
// A key switch at l limbs is l inverse transforms of the switched polynomial, l (l + 1) forward ones of its digits, and
// for each place sums of products of digits and key. Phases split that by digit, by place and by polynomial.
#include "executor.hpp"

#include <algorithm>
#include <cstring>

namespace confide::ckks {

namespace {

constexpr std::size_t parts = 8;  // of a row, as tasks
// Words between polynomials that are read at one time: rows that lie a power of two apart would share a set of the
// caches.
constexpr std::size_t skew = 8;

}  // namespace

std::size_t scratch_words(const Program &program, const Instruction &instruction) {
    const std::size_t l = instruction.limbs, switching = (l + 1) + (l + 1) * l, degree = program.context().degree();
    switch (instruction.kind) {
        case Kind::transform: {
            const auto &babies = instruction.transform.babies;
            const auto moved = static_cast<std::size_t>(
                std::count_if(babies.begin(), babies.end(), [](const Baby &baby) { return baby.element != 1; }));
            const std::size_t apart = moved + instruction.transform.weights.giants();
            return (switching + 2 * l * instruction.read.size() + 1) * degree + apart * 2 * ((l + 1) * degree + skew);
        }
        case Kind::fold:
        case Kind::rotate:
            return (switching + 2 * l) * degree;
        case Kind::product:
            return (switching + l) * degree;
        case Kind::divide:
            return 2 * (instruction.drops + program.registers()[instruction.read[0]].extended) * degree;
        default:
            return 0;
    }
}

Executor::Executor(const Program &program, const ProgramKeys &keys, Pool &pool, Word *registers, Word *scratch,
                   Word *temporary)
    : program_(program),
      context_(program.context()),
      keys_(keys),
      pool_(pool),
      registers_(registers),
      scratch_(scratch),
      temporary_(temporary),
      degree_(program.context().degree()),
      left_(pool.threads()),
      right_(pool.threads()),
      outs_(pool.threads()) {}

void Executor::run(const Instruction &instruction) {
    used_ = 0;
    switch (instruction.kind) {
        case Kind::transform: return transform(instruction);
        case Kind::fold: return fold(instruction, true);
        case Kind::rotate: return fold(instruction, false);
        case Kind::product: return product(instruction);
        case Kind::divide: return divide(instruction);
        case Kind::add: return add(instruction);
        case Kind::combine: return combine(instruction);
        case Kind::add_plain: return add_plain(instruction);
    }
}

Word *Executor::row(std::size_t at, std::size_t polynomial, std::size_t limbs, std::size_t place) const {
    const Register &held = program_.registers()[at];
    const std::size_t rows = held.limbs + held.extended;
    return registers_ + held.offset + (polynomial * rows + (place == limbs ? held.limbs : place)) * degree_;
}

Word *Executor::take(std::size_t rows) {
    Word *found = scratch_ + used_;
    used_ += rows * degree_;
    return found;
}

// Two polynomials of `rows` rows, the second one `skew` words further.
Word *Executor::take_apart(std::size_t rows) {
    Word *found = scratch_ + used_;
    used_ += 2 * (rows * degree_ + skew);
    return found;
}

// --- key switching ---------------------------------------------------------------------------------------------------

Executor::Extended Executor::times_special(std::size_t limbs, std::size_t source) {
    Word *out = take(2 * limbs);
    const Division &by = context_.by_special();
    pool_.each(2 * limbs, [&](std::size_t task, std::size_t) {
        const std::size_t polynomial = task / limbs, place = task % limbs;
        const Ring &at = context_.ring(place);
        at.kernels->scale(at, row(source, polynomial, limbs, place), by.itself[place], out + task * degree_);
    });
    return {{out, out + limbs * degree_}, false};
}

// Writes the coefficients of a polynomial [limbs][N].
void Executor::coefficients_of(std::size_t limbs, const Word *polynomial) {
    pool_.each(limbs, [&](std::size_t place, std::size_t) {
        Word *out = coefficients_ + place * degree_;
        std::memcpy(out, polynomial + place * degree_, degree_ * sizeof(Word));
        const Ring &at = context_.ring(place);
        at.kernels->inverse(at, out);
    });
}

// Writes the coefficients of an extended polynomial [limbs + 1][N] divided by p, rounded.
void Executor::quotient_of(std::size_t limbs, const Word *polynomial) {
    const Division &by = context_.by_special();
    pool_.each(limbs + 1, [&](std::size_t place, std::size_t) {
        Word *out = coefficients_ + place * degree_;
        std::memcpy(out, polynomial + place * degree_, degree_ * sizeof(Word));
        const Ring &at = ring(limbs, place);
        at.kernels->inverse(at, out);
        if (place == limbs) at.kernels->reduce(at, out, by.half, out);
    });
    const Word *rest = coefficients_ + limbs * degree_;
    pool_.each(limbs, [&](std::size_t place, std::size_t worker) {
        const Ring &at = context_.ring(place);
        Word *own = spare(worker, 0), *out = coefficients_ + place * degree_;
        at.kernels->reduce(at, rest, by.minus_half[place], own);
        at.kernels->subtract_scale(at, out, own, by.inverse[place], out);
    });
}

// Writes every digit at every place in NTT form; polynomial: what the coefficients came from, [limbs][N], or null.
void Executor::digits_of(std::size_t limbs, const Word *polynomial) {
    digit_at_.resize((limbs + 1) * limbs);
    pool_.each((limbs + 1) * limbs, [&](std::size_t task, std::size_t) {
        const std::size_t place = task / limbs, digit = task % limbs;
        const Ring &at = ring(limbs, place);
        if (place == digit && polynomial) {
            digit_at_[task] = polynomial + place * degree_;
            return;
        }
        Word *out = digits_ + task * degree_;
        forward_from(at, coefficients_ + digit * degree_, context_.ring(digit).q.value, 0, out);
        digit_at_[task] = out;
    });
}

// The rows at `place` of the switched ciphertext, its digits permuted unless moves is null.
void Executor::sums_at(std::size_t limbs, std::size_t place, const SwitchKey &key, const Permutation *moves,
                       Word *first, Word *second, bool add) const {
    key.sums(context_, limbs, place, moves, digit_at_.data() + place * limbs, first, second, add);
}

// --- linear maps -----------------------------------------------------------------------------------------------------

void Executor::transform(const Instruction &instruction) {
    const std::size_t l = instruction.limbs, out = instruction.written;
    const Transform &made = instruction.transform;
    coefficients_ = take(l + 1);
    digits_ = take((l + 1) * l);
    make_babies(instruction);
    weighted_sums(instruction);
    std::size_t giant = made.giants.size() - 1, filled = sums_.size() - 1;
    while (made.giants[giant].empty()) --giant;
    while (giant-- > 0) {
        quotient_of(l, row(out, 1, l, 0));
        digits_of(l, nullptr);
        const SwitchKey &key = keys_.keys.at(made.giant_element);
        const Permutation &moves = context_.permutation(made.giant_element);
        const Word *sums = made.giants[giant].empty() ? nullptr : sums_[--filled];
        pool_.each(l + 1, [&](std::size_t place, std::size_t worker) {
            const Ring &at = ring(l, place);
            Word *moved = spare(worker, 0), *first = row(out, 0, l, place), *second = row(out, 1, l, place);
            at.kernels->permute(at, moves, first, moved);
            if (sums) {
                at.kernels->add(at, moved, sums + place * degree_, first);
                std::memcpy(second, sums + (l + 1 + place) * degree_ + skew, degree_ * sizeof(Word));
                sums_at(l, place, key, &moves, first, second, true);
            } else {
                sums_at(l, place, key, &moves, first, second, false);
                at.kernels->add(at, first, moved, first);
            }
        });
    }
}

// The sums of all giant steps that are not empty; those of the last one go where the result will be.
void Executor::weighted_sums(const Instruction &instruction) {
    const std::size_t l = instruction.limbs, giants = instruction.transform.weights.giants();
    sums_.clear();
    for (std::size_t giant = 0; giant < giants; ++giant)
        sums_.push_back(giant + 1 < giants ? take_apart(l + 1) : nullptr);
    Word *zeros = take(1);
    std::memset(zeros, 0, degree_ * sizeof(Word));
    pool_.each((l + 1) * parts, [&](std::size_t task, std::size_t worker) {
        const std::size_t place = task / parts, part = task % parts, blocks = degree_ / 8;
        auto &read = left_[worker];
        read.clear();
        for (const Extended &baby : babies_)
            for (const Word *rows : baby.rows)
                read.push_back(place < l || baby.special ? rows + place * degree_ : zeros);
        std::vector<Word *> &outs = outs_[worker];
        outs.clear();
        for (std::size_t giant = 0; giant < giants; ++giant)
            for (std::size_t polynomial = 0; polynomial < 2; ++polynomial)
                outs.push_back(sums_[giant]
                                   ? sums_[giant] + (polynomial * (l + 1) + place) * degree_ + polynomial * skew
                                   : row(instruction.written, polynomial, l, place));
        instruction.transform.weights.sums(context_, place, read.data(), part * blocks / parts,
                                           (part + 1) * blocks / parts, outs.data());
    });
}

void Executor::make_babies(const Instruction &instruction) {
    const std::size_t l = instruction.limbs;
    const auto &babies = instruction.transform.babies;
    sources_.clear();
    for (const std::size_t source : instruction.read) sources_.push_back(times_special(l, source));
    babies_.clear();
    for (const Baby &baby : babies) {
        if (baby.element == 1) {
            const auto from = static_cast<std::size_t>(baby.parent < 0 ? -1 - baby.parent : baby.parent);
            babies_.push_back(baby.parent < 0 ? sources_[from] : babies_[from]);
        } else {
            Word *rows = take_apart(l + 1);
            babies_.push_back({{rows, rows + (l + 1) * degree_ + skew}, true});
        }
    }
    // A baby that moves nothing is its parent, whose rotations have the same digits.
    std::vector<long> origins;
    for (const Baby &baby : babies) {
        const bool moves = baby.parent >= 0 && babies[static_cast<std::size_t>(baby.parent)].element != 1;
        origins.push_back(baby.parent < 0 || moves ? baby.parent : origins[static_cast<std::size_t>(baby.parent)]);
    }
    for (std::size_t place = 0; place < babies.size(); ++place) {
        bool first = babies[place].element != 1;
        for (std::size_t before = 0; before < place; ++before)
            first &= babies[before].element == 1 || origins[before] != origins[place];
        if (first) make_children(instruction, origins, origins[place]);
    }
}

// All rotations of one origin, a source or a baby that moves something, which is decomposed once.
void Executor::make_children(const Instruction &instruction, const std::vector<long> &origins, long parent) {
    const std::size_t l = instruction.limbs;
    const auto &babies = instruction.transform.babies;
    const auto from = static_cast<std::size_t>(parent < 0 ? -1 - parent : parent);
    const Extended origin = parent < 0 ? sources_[from] : babies_[from];
    if (origin.special) {
        quotient_of(l, origin.rows[1]);
        digits_of(l, nullptr);
    } else {
        const Word *polynomial = row(instruction.read[from], 1, l, 0);
        coefficients_of(l, polynomial);
        digits_of(l, polynomial);
    }
    std::vector<std::size_t> children;
    for (std::size_t place = 0; place < babies.size(); ++place)
        if (babies[place].element != 1 && origins[place] == parent) children.push_back(place);
    pool_.each(children.size() * (l + 1), [&](std::size_t task, std::size_t worker) {
        // By place first: the digits of one place stay in the cache for all children.
        const std::size_t place = task / children.size(), child = children[task % children.size()];
        const std::size_t element = babies[child].element;
        const Permutation &moves = context_.permutation(element);
        const Ring &at = ring(l, place);
        Word *first = babies_[child].rows[0] + place * degree_, *second = babies_[child].rows[1] + place * degree_;
        Word *moved = spare(worker, 0);
        sums_at(l, place, keys_.keys.at(element), &moves, first, second, false);
        if (place == l && !origin.special) return;
        at.kernels->permute(at, moves, origin.rows[0] + place * degree_, moved);
        at.kernels->add(at, first, moved, first);
    });
}

void Executor::fold(const Instruction &instruction, bool keep) {
    const std::size_t l = instruction.limbs, from = instruction.read[0], out = instruction.written;
    coefficients_ = take(l + 1);
    digits_ = take((l + 1) * l);
    bool extended = program_.registers()[from].extended;
    Extended before = extended ? Extended{{row(from, 0, l, 0), row(from, 1, l, 0)}, true} : times_special(l, from);
    const std::vector<std::size_t> one_of_one{1};
    auto element = instruction.elements.begin();
    for (const std::size_t size : keep ? instruction.sizes : one_of_one) {
        if (before.special)
            quotient_of(l, before.rows[1]);
        else
            coefficients_of(l, row(from, 1, l, 0));
        digits_of(l, before.special ? nullptr : row(from, 1, l, 0));
        pool_.each(l + 1, [&](std::size_t place, std::size_t worker) {
            const Ring &at = ring(l, place);
            const bool held = place < l || before.special;
            Word *moved = spare(worker, 0), *next = spare(worker, 1);
            Word *first = row(out, 0, l, place), *second = row(out, 1, l, place);
            const Word *one = before.rows[0] + place * degree_, *other = before.rows[1] + place * degree_;
            for (std::size_t at_once = 0; held && at_once < size; ++at_once) {
                at.kernels->permute(at, context_.permutation(element[at_once]), one, at_once ? next : moved);
                if (at_once) at.kernels->add(at, moved, next, moved);
            }
            if (keep && held && one != first) {
                std::memcpy(first, one, degree_ * sizeof(Word));
                std::memcpy(second, other, degree_ * sizeof(Word));
            }
            for (std::size_t at_once = 0; at_once < size; ++at_once)
                sums_at(l, place, keys_.keys.at(element[at_once]), &context_.permutation(element[at_once]), first,
                        second, (keep && held) || at_once);
            if (held) at.kernels->add(at, first, moved, first);
        });
        before = {{row(out, 0, l, 0), row(out, 1, l, 0)}, true};
        element += static_cast<std::ptrdiff_t>(size);
    }
}

// --- products and divisions ------------------------------------------------------------------------------------------

void Executor::product(const Instruction &instruction) {
    const std::size_t l = instruction.limbs, a = instruction.read[0], b = instruction.read[1];
    const std::size_t out = instruction.written;
    coefficients_ = take(l + 1);
    digits_ = take((l + 1) * l);
    Word *last = take(l);
    const Division &by = context_.by_special();
    pool_.each(l, [&](std::size_t place, std::size_t) {
        const Ring &at = context_.ring(place);
        const Word *ones[2] = {row(a, 0, l, place), row(a, 1, l, place)};
        const Word *others[2] = {row(b, 1, l, place), row(b, 0, l, place)};
        Word *first = row(out, 0, l, place), *second = row(out, 1, l, place);
        at.kernels->multiply(at, ones[0], others[1], first);
        at.kernels->dot(at, ones, others, 2, second, false);
        at.kernels->multiply(at, ones[1], others[0], last + place * degree_);
        at.kernels->scale(at, first, by.itself[place], first);
        at.kernels->scale(at, second, by.itself[place], second);
    });
    coefficients_of(l, last);
    digits_of(l, last);
    const SwitchKey &key = keys_.keys.at(0);
    pool_.each(l + 1, [&](std::size_t place, std::size_t) {
        sums_at(l, place, key, nullptr, row(out, 0, l, place), row(out, 1, l, place), place < l);
    });
}

// (((x - v_0) / d_0 - v_1) / d_1 ...) with v_k what the division by d_k leaves: x times one constant, minus one
// polynomial times another, which is put together from coefficients and transformed once.
void Executor::divide(const Instruction &instruction) {
    const std::size_t l = instruction.limbs, from = instruction.read[0], kept = l - instruction.drops;
    const bool extended = program_.registers()[from].extended;
    const std::size_t count = instruction.drops + extended;
    const auto place_of = [&](std::size_t divisor) { return extended ? l - divisor : l - 1 - divisor; };
    const auto by = [&](std::size_t divisor) -> const Division & {
        return place_of(divisor) == l ? context_.by_special() : context_.by_limb(place_of(divisor));
    };
    Word *rests = take(2 * count);
    pool_.each(2 * count, [&](std::size_t task, std::size_t) {
        const std::size_t place = place_of(task % count);
        Word *rest = rests + task * degree_;
        std::memcpy(rest, row(from, task / count, l, place), degree_ * sizeof(Word));
        const Ring &at = ring(l, place);
        at.kernels->inverse(at, rest);
    });
    pool_.each(2, [&](std::size_t polynomial, std::size_t worker) {
        for (std::size_t divisor = 0; divisor < count; ++divisor) {
            Word *rest = rests + (polynomial * count + divisor) * degree_;
            const Ring &at = ring(l, place_of(divisor));
            at.kernels->reduce(at, rest, by(divisor).half, rest);
            for (std::size_t later = divisor + 1; later < count; ++later) {
                const std::size_t place = place_of(later);
                const Ring &there = context_.ring(place);
                Word *left = spare(worker, 0), *other = rests + (polynomial * count + later) * degree_;
                there.kernels->reduce(there, rest, by(divisor).minus_half[place], left);
                there.kernels->subtract_scale(there, other, left, by(divisor).inverse[place], other);
            }
        }
    });
    pool_.each(2 * kept, [&](std::size_t task, std::size_t worker) {
        const std::size_t place = task / 2, polynomial = task % 2;  // the tables of a place serve both
        const Ring &at = context_.ring(place);
        Word *whole = spare(worker, 0), *part = spare(worker, 1), inverses = 1, divisors = 1;
        if (count == 1)
            forward_from(at, rests + polynomial * degree_, ring(l, place_of(0)).q.value, by(0).minus_half[place],
                         whole);
        for (std::size_t divisor = 0; divisor < count; ++divisor) {
            const Division &division = by(divisor);
            const Word *rest = rests + (polynomial * count + divisor) * degree_;
            if (count > 1) at.kernels->reduce(at, rest, division.minus_half[place], divisor ? part : whole);
            if (divisor) {
                at.kernels->scale(at, part, divisors, part);
                at.kernels->add(at, whole, part, whole);
            }
            inverses = multiply(inverses, division.inverse[place], at.q);
            divisors = multiply(divisors, division.itself[place], at.q);
        }
        if (count > 1) at.kernels->forward(at, whole);
        at.kernels->subtract_scale(at, row(from, polynomial, l, place), whole, inverses,
                                   row(instruction.written, polynomial, kept, place));
    });
}

// --- without keys ----------------------------------------------------------------------------------------------------

void Executor::add(const Instruction &instruction) {
    const std::size_t l = instruction.limbs;
    pool_.each(2 * l, [&](std::size_t task, std::size_t) {
        const std::size_t polynomial = task / l, place = task % l;
        const Ring &at = context_.ring(place);
        at.kernels->add(at, row(instruction.read[0], polynomial, l, place),
                        row(instruction.read[1], polynomial, l, place),
                        row(instruction.written, polynomial, l, place));
    });
}

void Executor::combine(const Instruction &instruction) {
    const std::size_t l = instruction.limbs;
    pool_.each(2 * l, [&](std::size_t task, std::size_t worker) {
        const std::size_t polynomial = task / l, place = task % l;
        const Ring &at = context_.ring(place);
        auto &ciphers = left_[worker], &plains = right_[worker];
        ciphers.clear();
        plains.clear();
        for (std::size_t term = 0; term < instruction.read.size(); ++term) {
            ciphers.push_back(row(instruction.read[term], polynomial, l, place));
            plains.push_back(program_.plain_at(instruction.plains[term]).rows.data() + place * degree_);
        }
        at.kernels->dot(at, ciphers.data(), plains.data(), ciphers.size(),
                        row(instruction.written, polynomial, l, place), false);
    });
}

void Executor::add_plain(const Instruction &instruction) {
    const std::size_t l = instruction.limbs;
    const Plain &plain = program_.plain_at(instruction.plains[0]);
    pool_.each(2 * l, [&](std::size_t task, std::size_t) {
        const std::size_t polynomial = task / l, place = task % l;
        const Ring &at = context_.ring(place);
        const Word *held = row(instruction.read[0], polynomial, l, place);
        Word *out = row(instruction.written, polynomial, l, place);
        if (polynomial == 0)
            at.kernels->add(at, held, plain.rows.data() + place * degree_, out);
        else
            std::memcpy(out, held, degree_ * sizeof(Word));
    });
}

}  // namespace confide::ckks
