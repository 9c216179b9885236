// What all operations on one set of CKKS parameters share: tables per prime, constants of divisions, permutations.
//
// Nothing here is secret. A `Context` does not change after it was built, except that it remembers permutations, so
// threads share one.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "kernels.hpp"

namespace confide::ckks {

// Words aligned for every instruction set, in large pages where the system gives them; they start as anything.
class Memory {
  public:
    Memory() = default;
    explicit Memory(std::size_t words);
    Word *data() const noexcept { return words_.get(); }
    std::size_t size() const noexcept { return size_; }

  private:
    struct Free {
        void operator()(Word *words) const noexcept;
    };
    std::unique_ptr<Word, Free> words_;
    std::size_t size_ = 0;
};

// Division by one prime d, rounded to the nearest: (x - ((x + h) mod d - h)) / d with h = floor(d / 2).
struct Division {
    Word half;                      // h
    std::vector<Word> inverse;      // 1 / d modulo each data prime
    std::vector<Word> minus_half;   // -h modulo each data prime
    std::vector<Word> itself;       // d modulo each data prime
};

constexpr std::size_t most_limbs = 64;

// SEAL's numbers: N, data primes q_0 .. q_(L-1), and behind them the special prime p, in which keys also live.
// At the level with l limbs a ciphertext lives modulo q_0 .. q_(l-1); "place" l of that level is the special prime.
class Context {
  public:
    // special 0: there is none, and no key can be switched. Throws std::invalid_argument for numbers that do not fit.
    Context(std::size_t degree, const std::vector<Word> &data_primes, Word special, Path path);

    std::size_t degree() const noexcept { return degree_; }
    std::size_t limbs() const noexcept { return rings_.size(); }
    bool switches() const noexcept { return special_.has_value(); }
    const Ring &ring(std::size_t limb) const noexcept { return rings_[limb]; }
    const Ring &special() const noexcept { return *special_; }
    const Ring &ring_at(std::size_t limbs, std::size_t place) const noexcept {
        return place == limbs ? *special_ : rings_[place];
    }
    const Division &by_limb(std::size_t limb) const noexcept { return by_limb_[limb]; }
    const Division &by_special() const noexcept { return by_special_; }

    // The automorphism X -> X^element, element odd and below 2N. Made at the first call; valid as long as the context.
    const Permutation &permutation(std::size_t element) const;
    // 3^step mod 2N: slot i + step comes to slot i; step is taken modulo N / 2. The conjugation is 2N - 1.
    std::size_t element(long step) const noexcept;
    std::size_t conjugation() const noexcept { return 2 * degree_ - 1; }

  private:
    std::size_t degree_;
    std::vector<Ring> rings_;
    std::optional<Ring> special_;
    std::vector<Division> by_limb_;
    Division by_special_;
    mutable std::mutex making_;
    mutable std::map<std::size_t, std::unique_ptr<const Permutation>> permutations_;
};

}  // namespace confide::ckks
