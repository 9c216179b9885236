// One run of a program; see program.hpp and executor.cpp.
#pragma once

#include "program.hpp"

namespace confide::ckks {

// Words of scratch that an instruction takes.
std::size_t scratch_words(const Program &program, const Instruction &instruction);

class Executor {
  public:
    // registers: as the program planned them; scratch: of the largest instruction; temporary: [threads][2][N].
    Executor(const Program &program, const ProgramKeys &keys, Pool &pool, Word *registers, Word *scratch,
             Word *temporary);
    void run(const Instruction &instruction);
    // The row of a register at a place; `limbs` stands for the special prime.
    Word *row(std::size_t at, std::size_t polynomial, std::size_t limbs, std::size_t place) const;

  private:
    // Rows of one polynomial of a baby, or of a source times p: [places][N]; a source has no row at the special prime.
    struct Extended {
        Word *rows[2];
        bool special;
    };

    void transform(const Instruction &instruction);
    void fold(const Instruction &instruction, bool keep);
    void product(const Instruction &instruction);
    void divide(const Instruction &instruction);
    void add(const Instruction &instruction);
    void combine(const Instruction &instruction);
    void add_plain(const Instruction &instruction);

    Word *take(std::size_t rows);
    Word *take_apart(std::size_t rows);
    Word *spare(std::size_t worker, std::size_t which) const { return temporary_ + (2 * worker + which) * degree_; }
    const Ring &ring(std::size_t limbs, std::size_t place) const { return context_.ring_at(limbs, place); }
    Extended times_special(std::size_t limbs, std::size_t source);
    void coefficients_of(std::size_t limbs, const Word *polynomial);
    void quotient_of(std::size_t limbs, const Word *polynomial);
    void digits_of(std::size_t limbs, const Word *polynomial);
    void sums_at(std::size_t limbs, std::size_t place, const SwitchKey &key, const Permutation *moves, Word *first,
                 Word *second, bool add) const;
    void make_babies(const Instruction &instruction);
    void make_children(const Instruction &instruction, const std::vector<long> &origins, long origin);
    void weighted_sums(const Instruction &instruction);

    const Program &program_;
    const Context &context_;
    const ProgramKeys &keys_;
    Pool &pool_;
    Word *registers_, *scratch_, *temporary_;
    std::size_t degree_, used_ = 0;
    Word *coefficients_ = nullptr, *digits_ = nullptr;     // [limbs + 1][N], [place][digit][N]
    std::vector<const Word *> digit_at_;                   // [place][digit]
    std::vector<Extended> sources_, babies_;
    std::vector<Word *> sums_;                             // of each giant step: [2][places][N]
    std::vector<std::vector<const Word *>> left_, right_;  // by worker
    std::vector<std::vector<Word *>> outs_;
};

}  // namespace confide::ckks
