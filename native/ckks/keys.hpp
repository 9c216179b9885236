// A client's public key-switching keys in memory: as much of them as a plan uses, in the order in which they are read.
//
// SEAL's form: for each data prime i ("digit") one encryption, modulo all data primes and the special prime p, of
// p s' (1 modulo q_i, 0 modulo the others), s' the secret that is switched from. At the level with l limbs only
// l digits and the places q_0 .. q_(l-1), p of each are read, so a key that is used below the top is kept smaller.
#pragma once

#include <map>

#include "context.hpp"
#include "switch_loops.hpp"

namespace confide::ckks {

class SwitchKey {
  public:
    // Room for a key that is used at `limbs` and fewer; it holds anything until all its rows are stored.
    SwitchKey(const Context &context, std::size_t limbs);

    // From SEAL's order [digit][2][prime, special last][N] with all data primes, in any alignment. Returns false, and
    // the key is not to be used, where a residue is not below its prime.
    bool load(const Context &context, const Word *residues);
    // One row of N words, aligned; place < limbs(), or limbs() for the special prime. Returns whether it is below.
    bool store(const Context &context, std::size_t place, std::size_t digit, std::size_t polynomial, const Word *row);

    // first, second [N] = or += the two rows at a place of the level with `limbs` (limbs: the special prime): sums over
    // the digits, each permuted unless permutation is null, times the key.
    void sums(const Context &context, std::size_t limbs, std::size_t place, const Permutation *permutation,
              const Word *const *digits, Word *first, Word *second, bool add) const noexcept;

    std::size_t limbs() const noexcept { return limbs_; }
    std::size_t bytes() const noexcept { return blocks_.size() * sizeof(Word); }

  private:
    std::size_t stride(const Ring &ring) const noexcept { return 2 * limbs_ * switch_loops(ring).block_bytes; }

    std::size_t limbs_;
    std::vector<std::size_t> start_;  // of each place, in bytes
    Memory blocks_;
};

// The keys of one client. Filled once, then only read, by any number of threads.
struct KeySet {
    std::optional<SwitchKey> relinearisation;
    std::map<std::size_t, SwitchKey> galois;  // by Galois element

    std::size_t bytes() const noexcept;
};

}  // namespace confide::ckks
