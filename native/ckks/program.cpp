// Making and planning of programs, and the arenas in which they run; see program.hpp.
#include "program.hpp"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "executor.hpp"
#include "threads.hpp"

namespace confide::ckks {

namespace {

void expect(bool holds, const char *what) {
    if (!holds) throw std::invalid_argument(what);
}

}  // namespace

const char *name_of(Kind kind) noexcept {
    constexpr const char *names[] = {"transform", "fold", "rotate", "product", "divide", "add", "combine", "add_plain"};
    return names[static_cast<std::size_t>(kind)];
}

std::size_t wanted_threads() {
    const char *said = std::getenv("CONFIDE_THREADS");
    if (!said || !*said) return 0;
    char *end = nullptr;
    const long count = std::strtol(said, &end, 10);
    expect(!*end && count >= 1 && count <= static_cast<long>(most_threads),
           "Expected CONFIDE_THREADS to be a number from 1 to 64; unset it to take what the server says");
    return static_cast<std::size_t>(count);
}

bool switched_off() {
    const char *said = std::getenv("CONFIDE_NATIVE");
    return said && std::strcmp(said, "0") == 0;
}

// --- keys ------------------------------------------------------------------------------------------------------------

bool ProgramKeys::load(std::size_t element, std::size_t limbs, const Word *residues) {
    SwitchKey key(*context, limbs);
    if (!key.load(*context, residues)) return false;
    const std::lock_guard<std::mutex> lock(changing_);
    expect(!sealed_, "Expected all keys before the first run with them");
    keys.erase(element);
    keys.emplace(element, std::move(key));
    return true;
}

void ProgramKeys::seal() const {
    const std::lock_guard<std::mutex> lock(changing_);
    sealed_ = true;
}

std::size_t ProgramKeys::bytes() const {
    const std::lock_guard<std::mutex> lock(changing_);
    std::size_t whole = 0;
    for (const auto &[element, key] : keys) whole += key.bytes();
    return whole;
}

// --- making ----------------------------------------------------------------------------------------------------------

struct Program::Slot {
    std::size_t threads;  // that were wanted
    Memory arena, temporary;
    Pool pool;
    Slot(std::size_t words, std::size_t degree, std::size_t wanted)
        : threads(wanted), arena(words), temporary(2 * wanted * degree), pool(wanted) {}
};

Program::Program(std::shared_ptr<const Context> context) : context_(std::move(context)) {}
Program::~Program() = default;

std::size_t Program::input(std::size_t limbs) {
    expect(!finished_ && instructions_.empty(), "Expected inputs before instructions");
    expect(limbs >= 1 && limbs <= context_->limbs(), "Expected a level of the parameters");
    inputs_.push_back(registers_.size());
    registers_.push_back({limbs, false});
    return inputs_.back();
}

std::size_t Program::plain(const std::int64_t *coefficients, unsigned shift, std::size_t limbs, bool extended) {
    expect(!finished_, "Expected plaintexts before the program is finished");
    expect(limbs >= 1 && limbs <= context_->limbs() && shift < 1024, "Expected a level of the parameters");
    expect(!extended || context_->switches(), "Expected parameters with a special prime");
    Memory kept(context_->degree());
    std::memcpy(kept.data(), coefficients, context_->degree() * sizeof(Word));
    plains_.push_back({std::move(kept), shift, limbs, extended});
    return plains_.size() - 1;
}

// The row of a plaintext modulo one prime, in NTT form.
void Program::expand(const Plain &plain, const Ring &ring, Word *row) const {
    const auto q = static_cast<std::int64_t>(ring.q.value);
    const auto *coefficients = reinterpret_cast<const std::int64_t *>(plain.coefficients.data());
    for (std::size_t i = 0; i < context_->degree(); ++i) {
        const std::int64_t rest = coefficients[i] % q;
        row[i] = static_cast<Word>(rest + (q & -static_cast<std::int64_t>(rest < 0)));
    }
    if (plain.shift) ring.kernels->scale(ring, row, power(2, plain.shift, ring.q), row);
    ring.kernels->forward(ring, row);
}

// All rows of a plaintext that is added or multiplied by alone.
void Program::expand(std::size_t plain) {
    Plain &one = plains_[plain];
    if (one.rows.size()) return;
    one.rows = Memory(one.limbs * context_->degree());
    plain_bytes_ += one.rows.size() * sizeof(Word);
    for (std::size_t limb = 0; limb < one.limbs; ++limb)
        expand(one, context_->ring(limb), one.rows.data() + limb * context_->degree());
}

// The weights of a map as they are read; their coefficients are not needed any more.
WeightStream Program::stream_of(const Transform &made, std::size_t limbs) {
    Pairing pairing{};
    for (const auto &giant : made.giants) {
        for (const Weight &weight : giant) {
            pairing.baby.push_back(static_cast<std::uint32_t>(weight.baby));
            pairing.most = std::max(pairing.most, weight.baby);
        }
        if (!giant.empty()) pairing.end.push_back(static_cast<std::uint32_t>(pairing.baby.size()));
    }
    WeightStream stream(*context_, limbs, std::move(pairing));
    const Memory row(context_->degree());
    std::size_t term = 0;
    for (const auto &giant : made.giants)
        for (const Weight &weight : giant) {
            for (std::size_t place = 0; place <= limbs; ++place) {
                expand(plains_[weight.plain], context_->ring_at(limbs, place), row.data());
                stream.store(*context_, term, place, row.data());
            }
            ++term;
        }
    for (const auto &giant : made.giants)
        for (const Weight &weight : giant)
            if (!plains_[weight.plain].rows.size()) plains_[weight.plain].coefficients = Memory();
    plain_bytes_ += stream.bytes();
    return stream;
}

const Register &Program::readable(std::size_t place, std::size_t limbs) const {
    expect(!finished_ && place < registers_.size(), "Expected a register that was written");
    const Register &held = registers_[place];
    expect(limbs >= 1 && limbs <= held.limbs, "Expected a register with so many primes");
    return held;
}

void Program::check_plain(std::size_t plain, std::size_t limbs, bool extended) const {
    expect(plain < plains_.size() && plains_[plain].limbs >= limbs && plains_[plain].extended >= extended,
           "Expected a plaintext of this level");
    expect(plains_[plain].coefficients.size(), "Expected a plaintext that no map has taken yet");
}

void Program::need_rotation(std::size_t element, std::size_t limbs) {
    expect(element != 0, "Expected a Galois element");
    need(element, limbs);
}

void Program::need(std::size_t element, std::size_t limbs) {
    expect(context_->switches() && element < 2 * context_->degree() && (element % 2 || !element) && element != 1,
           "Expected a Galois element");
    std::size_t &most = key_limbs_[element];
    most = std::max(most, limbs);
}

std::size_t Program::write(Instruction instruction, std::size_t limbs, bool extended) {
    instruction.written = registers_.size();
    registers_.push_back({limbs, extended});
    instructions_.push_back(std::move(instruction));
    return registers_.size() - 1;
}

std::size_t Program::transform(std::vector<std::size_t> sources, std::size_t limbs, Transform made) {
    for (const std::size_t source : sources)
        expect(!readable(source, limbs).extended, "Expected sources that are divided");
    bool filled = false;
    const long count = static_cast<long>(sources.size());
    for (std::size_t place = 0; place < made.babies.size(); ++place) {
        const Baby &baby = made.babies[place];
        expect(baby.parent >= -count && baby.parent < static_cast<long>(place), "Expected parents before their babies");
        if (baby.element != 1) need_rotation(baby.element, limbs);
    }
    for (const auto &giant : made.giants) {
        filled |= !giant.empty();
        for (const Weight &weight : giant) {
            expect(weight.baby < made.babies.size(), "Expected weights of babies");
            check_plain(weight.plain, limbs, true);
        }
    }
    expect(filled && count > 0, "Expected a map with weights");
    if (made.giants.size() > 1) need_rotation(made.giant_element, limbs);
    made.weights = stream_of(made, limbs);
    Instruction instruction{Kind::transform, limbs, std::move(sources), 0, {}, {}, 0, std::move(made)};
    return write(std::move(instruction), limbs, true);
}

std::size_t Program::fold(std::size_t source, std::size_t limbs,
                          const std::vector<std::vector<std::size_t>> &groups) {
    const Register &held = readable(source, limbs);
    expect(!groups.empty() && (!held.extended || held.limbs == limbs), "Expected rotations, at the register's level");
    Instruction instruction{Kind::fold, limbs, {source}, 0, {}, {}, 0, {}};
    for (const auto &group : groups) {
        expect(!group.empty(), "Expected rotations in each group");
        for (const std::size_t element : group) {
            need_rotation(element, limbs);
            instruction.elements.push_back(element);
        }
        instruction.sizes.push_back(group.size());
    }
    return write(std::move(instruction), limbs, true);
}

std::size_t Program::rotate(std::size_t source, std::size_t limbs, std::size_t element) {
    const Register &held = readable(source, limbs);
    expect(!held.extended || held.limbs == limbs, "Expected a rotation, at the register's level");
    need_rotation(element, limbs);
    return write({Kind::rotate, limbs, {source}, 0, {}, {element}, 0, {}}, limbs, true);
}

std::size_t Program::product(std::size_t one, std::size_t other, std::size_t limbs) {
    expect(!readable(one, limbs).extended && !readable(other, limbs).extended, "Expected factors that are divided");
    need(0, limbs);
    return write({Kind::product, limbs, {one, other}, 0, {}, {}, 0, {}}, limbs, true);
}

std::size_t Program::divide(std::size_t source, std::size_t limbs, std::size_t drops) {
    const Register &held = readable(source, limbs);
    expect(drops < limbs && (drops || held.extended), "Expected a division that leaves a prime");
    expect(!held.extended || held.limbs == limbs, "Expected an extended register at its own level");
    return write({Kind::divide, limbs, {source}, 0, {}, {}, drops, {}}, limbs - drops, false);
}

std::size_t Program::add(std::size_t one, std::size_t other, std::size_t limbs) {
    expect(!readable(one, limbs).extended && !readable(other, limbs).extended, "Expected terms that are divided");
    return write({Kind::add, limbs, {one, other}, 0, {}, {}, 0, {}}, limbs, false);
}

std::size_t Program::combine(std::vector<std::size_t> sources, std::size_t limbs, std::vector<std::size_t> plains) {
    expect(!sources.empty() && sources.size() == plains.size() && sources.size() <= 1024,
           "Expected a plaintext for each");
    for (const std::size_t source : sources)
        expect(!readable(source, limbs).extended, "Expected terms that are divided");
    for (const std::size_t plain : plains) {
        check_plain(plain, limbs, false);
        expand(plain);
    }
    return write({Kind::combine, limbs, std::move(sources), 0, std::move(plains), {}, 0, {}}, limbs, false);
}

std::size_t Program::add_plain(std::size_t source, std::size_t limbs, std::size_t plain) {
    expect(!readable(source, limbs).extended, "Expected a term that is divided");
    check_plain(plain, limbs, false);
    expand(plain);
    return write({Kind::add_plain, limbs, {source}, 0, {plain}, {}, 0, {}}, limbs, false);
}

void Program::finish(std::vector<std::size_t> outputs, std::vector<std::size_t> limbs) {
    expect(!finished_ && !outputs.empty() && outputs.size() == limbs.size(), "Expected a level for each output, once");
    for (std::size_t place = 0; place < outputs.size(); ++place)
        expect(!readable(outputs[place], limbs[place]).extended, "Expected outputs that are divided");
    outputs_ = std::move(outputs);
    output_limbs_ = std::move(limbs);
    finished_ = true;
    plan();
}

// Places in the arena: first fit among the registers that live at the same time.
void Program::plan() {
    const std::size_t end = instructions_.size();
    for (std::size_t number = 0; number < end; ++number) {
        for (const std::size_t read : instructions_[number].read) registers_[read].last_use = number;
        registers_[instructions_[number].written].last_use = number;
    }
    for (const std::size_t output : outputs_) registers_[output].last_use = end;
    std::map<std::size_t, std::size_t> taken;  // offset to end
    const auto place = [&](Register &held) {
        const std::size_t words = 2 * (held.limbs + held.extended) * context_->degree();
        std::size_t at = 0;
        for (const auto &[offset, until] : taken) {
            if (at + words <= offset) break;
            at = until;
        }
        held.offset = at;
        taken[at] = at + words;
        arena_words_ = std::max(arena_words_, at + words);
    };
    for (const std::size_t input : inputs_) place(registers_[input]);
    for (std::size_t number = 0; number < end; ++number) {
        const Instruction &one = instructions_[number];
        place(registers_[one.written]);
        std::vector<std::size_t> over = one.read;
        over.push_back(one.written);
        for (const std::size_t read : over)
            if (registers_[read].last_use == number) taken.erase(registers_[read].offset);
        scratch_words_ = std::max(scratch_words_, scratch_words(*this, one));
    }
    seconds_.assign(end, 0.0);
    least_.assign(end, 1e9);
}

// --- running ---------------------------------------------------------------------------------------------------------

std::unique_ptr<Program::Slot> Program::slot(std::size_t threads) {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        const auto left_behind = [](const std::unique_ptr<Slot> &one) { return !one->pool.here(); };
        idle_.erase(std::remove_if(idle_.begin(), idle_.end(), left_behind), idle_.end());  // by who forked
        for (auto &one : idle_)
            if (one->threads == threads) {
                std::swap(one, idle_.back());
                auto found = std::move(idle_.back());
                idle_.pop_back();
                found->pool.fill();
                return found;
            }
    }
    return std::make_unique<Slot>(arena_words(), context_->degree(), threads);
}

void Program::run(const ProgramKeys &keys, const std::vector<const Word *> &inputs, const std::vector<Word *> &outputs,
                  std::size_t threads) {
    expect(finished_ && inputs.size() == inputs_.size() && outputs.size() == outputs_.size(),
           "Expected as many inputs and outputs as the program has");
    expect(keys.context == context_, "Expected keys of the program's parameters");
    keys.seal();
    for (const auto &[element, limbs] : key_limbs_) {
        const auto found = keys.keys.find(element);
        expect(found != keys.keys.end() && found->second.limbs() >= limbs, "Expected the keys that the program needs");
    }
    auto used = slot(std::min(std::max(threads, std::size_t{1}), most_threads));
    Executor executor(*this, keys, used->pool, used->arena.data(), used->arena.data() + arena_words_,
                      used->temporary.data());
    const std::size_t degree = context_->degree();
    bool below = true;
    for (std::size_t place = 0; place < inputs.size(); ++place) {
        const Register &held = registers_[inputs_[place]];
        for (std::size_t row = 0; row < 2 * held.limbs; ++row) {
            Word *own = used->arena.data() + held.offset + row * degree;
            std::memcpy(own, inputs[place] + row * degree, degree * sizeof(Word));
            const Ring &ring = context_->ring(row % held.limbs);
            below &= ring.kernels->below(ring, own);
        }
    }
    std::vector<double> seconds(instructions_.size());
    for (std::size_t number = 0; below && number < instructions_.size(); ++number) {
        const auto begin = std::chrono::steady_clock::now();
        executor.run(instructions_[number]);
        seconds[number] = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    }
    for (std::size_t place = 0; below && place < outputs.size(); ++place)
        for (std::size_t row = 0; row < 2 * output_limbs_[place]; ++row)
            std::memcpy(outputs[place] + row * degree,
                        executor.row(outputs_[place], row / output_limbs_[place], output_limbs_[place],
                                     row % output_limbs_[place]),
                        degree * sizeof(Word));
    const std::lock_guard<std::mutex> lock(mutex_);
    idle_.push_back(std::move(used));
    expect(below, "Expected numbers below their primes");
    for (std::size_t number = 0; number < seconds.size(); ++number) {
        seconds_[number] += seconds[number];
        least_[number] = std::min(least_[number], seconds[number]);
    }
    ++runs_;
}

void Program::run_each(const ProgramKeys &keys, const std::vector<const Word *> &inputs,
                       const std::vector<Word *> &outputs, std::size_t count, std::size_t threads) {
    expect(finished_ && inputs.size() == inputs_.size() && outputs.size() == outputs_.size(),
           "Expected as many inputs and outputs as the program has");
    share(count, threads, [&](Tasks &tasks) {
        std::vector<const Word *> in(inputs.size());
        std::vector<Word *> out(outputs.size());
        for (std::size_t one; tasks.take(one);) {
            for (std::size_t place = 0; place < in.size(); ++place)
                in[place] = inputs[place] + one * 2 * registers_[inputs_[place]].limbs * context_->degree();
            for (std::size_t place = 0; place < out.size(); ++place)
                out[place] = outputs[place] + one * 2 * output_limbs_[place] * context_->degree();
            run(keys, in, out, 1);
        }
    });
}

std::vector<Program::Spent> Program::profile() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<Spent> found;
    for (std::size_t number = 0; number < instructions_.size(); ++number)
        found.push_back({std::string(name_of(instructions_[number].kind)) + " at " +
                             std::to_string(instructions_[number].limbs),
                         runs_, seconds_[number], least_[number]});
    return found;
}

}  // namespace confide::ckks
