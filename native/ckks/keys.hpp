// A client's public key-switching keys in memory: as much of them as a plan uses, where the loops read it in order.
//
// SEAL's form: for each data prime i ("digit") one encryption, modulo all data primes and the special prime p, of
// p s' (1 modulo q_i, 0 modulo the others), s' the secret that is switched from. At the level with l limbs only
// l digits and the places q_0 .. q_(l-1), p of each are read, so a key that is used below the top is kept smaller.
#pragma once

#include <map>

#include "context.hpp"

namespace confide::ckks {

class SwitchKey {
  public:
    // Room for a key that is used at `limbs` and fewer; its rows start as anything.
    SwitchKey(const Context &context, std::size_t limbs);

    // From SEAL's order [digit][2][prime, special last][N] with all data primes, `residues` unaligned or aligned.
    // Returns false, and the key is not to be used, where a residue is not below its prime.
    bool load(const Context &context, const Word *residues);

    // The row of N words of one digit and polynomial at a place of the level with `limbs` (limbs: the special prime).
    Word *row(std::size_t limbs, std::size_t place, std::size_t digit, std::size_t polynomial) noexcept {
        return rows_.data() + offset(limbs, place, digit, polynomial);
    }
    const Word *row(std::size_t limbs, std::size_t place, std::size_t digit, std::size_t polynomial) const noexcept {
        return rows_.data() + offset(limbs, place, digit, polynomial);
    }
    std::size_t limbs() const noexcept { return limbs_; }
    std::size_t words() const noexcept { return rows_.size(); }

  private:
    // By place, then digit, then polynomial: a key switch goes through the places one after the other.
    std::size_t offset(std::size_t limbs, std::size_t place, std::size_t digit, std::size_t polynomial) const noexcept {
        return (((place == limbs ? limbs_ : place) * limbs_ + digit) * 2 + polynomial) * degree_;
    }
    std::size_t degree_, limbs_;
    Memory rows_;
};

// The keys of one client. Filled once, then only read, by any number of threads.
struct KeySet {
    std::optional<SwitchKey> relinearisation;
    std::map<std::size_t, SwitchKey> galois;  // by Galois element

    std::size_t bytes() const noexcept;
};

}  // namespace confide::ckks
