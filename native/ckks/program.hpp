// A plan compiled once into instructions over registers, and executed whole: no interpreter, no allocation on the way.
//
// A register holds one ciphertext of two polynomials in NTT form, [2][limbs][N]; or, "extended", p times one modulo the
// special prime p as well, [2][limbs + 1][N], the special prime last: what a key switch gives before its division. An
// instruction reads the first limbs of a register that has more, so dropping primes costs nothing. Which instruction
// comes when follows from the plan alone: no weight and no ciphertext changes it.
//
//   transform   Horner over giant steps of sums of rotations times plaintexts; all divisions but one per giant step are
//               saved (`evaluator.hpp` bounds the error)
//   fold        x += rotations of x, for one group of rotations after the other; those of a group share the digits
//   rotate      one rotation
//   product     of two ciphertexts, relinearised
//   divide      by p where the register is extended, then by some of its last primes
//   add, combine (sums of products with plaintexts), add_plain
//
// transform, fold, rotate and product write extended registers; `divide` brings them back, and takes the rescaling with
// it: one transform of each row that stays, instead of one for each division.
//
// Secrets: none. Registers are ciphertexts; plaintexts are the server's weights; keys are a client's public ones.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "keys.hpp"
#include "pool.hpp"
#include "weights.hpp"

namespace confide::ckks {

// The public keys of one client, for executing programs: filled, then only read, by any number of runs at once.
struct ProgramKeys {
    explicit ProgramKeys(std::shared_ptr<const Context> parameters) : context(std::move(parameters)) {}
    ProgramKeys(const ProgramKeys &) = delete;
    ProgramKeys &operator=(const ProgramKeys &) = delete;
    // From SEAL's order [digit][2][prime, special last][N]; kept for levels up to `limbs`. element 0: relinearisation.
    // Returns false where a residue is not below its prime. Throws std::invalid_argument once a run has used the keys.
    bool load(std::size_t element, std::size_t limbs, const Word *residues);
    // From here on nothing is loaded: a run calls it before it reads.
    void seal() const;
    std::size_t bytes() const;
    std::shared_ptr<const Context> context;
    std::map<std::size_t, SwitchKey> keys;  // by Galois element; 0 is the relinearisation key

  private:
    mutable std::mutex changing_;
    mutable bool sealed_ = false;
};

// One rotation of an input: of a source (parent = -1 - source) or of another baby; element 1 moves nothing.
struct Baby {
    long parent;
    std::size_t element;
};

struct Weight {
    std::size_t baby, plain;
};

struct Transform {
    std::vector<Baby> babies;                  // parents come first
    std::vector<std::vector<Weight>> giants;   // by giant step; not all of them empty
    std::size_t giant_element = 1;
    WeightStream weights = {};                 // made of the giant steps that are not empty
};

enum class Kind { transform, fold, rotate, product, divide, add, combine, add_plain };
const char *name_of(Kind kind) noexcept;

struct Instruction {
    Kind kind;
    std::size_t limbs;                  // that are read
    std::vector<std::size_t> read;      // registers
    std::size_t written;
    std::vector<std::size_t> plains;    // combine: one for each register; add_plain: one
    std::vector<std::size_t> elements;  // fold, rotate
    std::size_t drops = 0;              // divide
    Transform transform;
    std::vector<std::size_t> sizes = {};  // fold: elements of each group
};

struct Register {
    std::size_t limbs;
    bool extended;
    std::size_t offset = 0;    // in the arena, words
    std::size_t last_use = 0;  // number of the instruction
};

struct Plain {
    Memory coefficients;  // int64, as they came; let go of once a map has them
    unsigned shift;
    std::size_t limbs;
    bool extended;
    Memory rows = {};  // [limbs][N], where it is added or multiplied by alone
};

class Program {
  public:
    explicit Program(std::shared_ptr<const Context> context);
    ~Program();
    Program(const Program &) = delete;
    Program &operator=(const Program &) = delete;

    // --- making; each throws std::invalid_argument for what does not fit --------------------------------------------

    std::size_t input(std::size_t limbs);
    // Signed coefficients times 2^shift.
    std::size_t plain(const std::int64_t *coefficients, unsigned shift, std::size_t limbs, bool extended);
    std::size_t transform(std::vector<std::size_t> sources, std::size_t limbs, Transform transform);
    std::size_t fold(std::size_t source, std::size_t limbs, const std::vector<std::vector<std::size_t>> &groups);
    std::size_t rotate(std::size_t source, std::size_t limbs, std::size_t element);
    std::size_t product(std::size_t one, std::size_t other, std::size_t limbs);
    std::size_t divide(std::size_t source, std::size_t limbs, std::size_t drops);
    std::size_t add(std::size_t one, std::size_t other, std::size_t limbs);
    std::size_t combine(std::vector<std::size_t> sources, std::size_t limbs, std::vector<std::size_t> plains);
    std::size_t add_plain(std::size_t source, std::size_t limbs, std::size_t plain);
    // No more instructions; the registers that are read at the end, and the limbs of each.
    void finish(std::vector<std::size_t> outputs, std::vector<std::size_t> limbs);

    // --- running ----------------------------------------------------------------------------------------------------

    // inputs and outputs: [2][limbs][N] each, any alignment. Any number of callers at once. Seals the keys. `threads`
    // beyond 64 are 64; fewer are taken where the system gives no more.
    // Throws std::invalid_argument if a key is missing, or an input is not below its primes.
    void run(const ProgramKeys &keys, const std::vector<const Word *> &inputs, const std::vector<Word *> &outputs,
             std::size_t threads);

    // The same for each of `count` questions, which lie behind each other; threads take whole runs.
    void run_each(const ProgramKeys &keys, const std::vector<const Word *> &inputs, const std::vector<Word *> &outputs,
                  std::size_t count, std::size_t threads);

    // --- what there is ----------------------------------------------------------------------------------------------

    const Context &context() const noexcept { return *context_; }
    const std::vector<Instruction> &instructions() const noexcept { return instructions_; }
    const std::vector<Register> &registers() const noexcept { return registers_; }
    const std::vector<std::size_t> &inputs() const noexcept { return inputs_; }
    const std::vector<std::size_t> &outputs() const noexcept { return outputs_; }
    const std::vector<std::size_t> &output_limbs() const noexcept { return output_limbs_; }
    std::size_t plains() const noexcept { return plains_.size(); }
    const Plain &plain_at(std::size_t plain) const noexcept { return plains_[plain]; }
    // The most limbs at which each key is used.
    const std::map<std::size_t, std::size_t> &key_limbs() const noexcept { return key_limbs_; }
    std::size_t arena_words() const noexcept { return arena_words_ + scratch_words_; }
    std::size_t plain_bytes() const noexcept { return plain_bytes_; }
    // Of each instruction: kind and level, how often, seconds in all, and in the fastest run.
    struct Spent {
        std::string kind;
        std::size_t count;
        double seconds, least;
    };
    std::vector<Spent> profile() const;

  private:
    struct Slot;
    std::size_t write(Instruction instruction, std::size_t limbs, bool extended);
    const Register &readable(std::size_t place, std::size_t limbs) const;
    void need(std::size_t element, std::size_t limbs);
    void need_rotation(std::size_t element, std::size_t limbs);
    void check_plain(std::size_t plain, std::size_t limbs, bool extended) const;
    void expand(const Plain &plain, const Ring &ring, Word *row) const;
    void expand(std::size_t plain);
    WeightStream stream_of(const Transform &made, std::size_t limbs);
    void plan();
    std::unique_ptr<Slot> slot(std::size_t threads);

    std::shared_ptr<const Context> context_;
    std::vector<Instruction> instructions_;
    std::vector<Register> registers_;
    std::vector<std::size_t> inputs_, outputs_, output_limbs_;
    std::vector<Plain> plains_;
    std::size_t plain_bytes_ = 0, arena_words_ = 0, scratch_words_ = 0;
    std::map<std::size_t, std::size_t> key_limbs_;
    bool finished_ = false;
    mutable std::mutex mutex_;
    std::vector<std::unique_ptr<Slot>> idle_;
    std::vector<double> seconds_, least_;
    std::size_t runs_ = 0;
};

// CONFIDE_THREADS, or 0 where it says nothing. Throws std::invalid_argument where it is no number from 1 to 64.
std::size_t wanted_threads();
// Whether CONFIDE_NATIVE is 0.
bool switched_off();

}  // namespace confide::ckks
