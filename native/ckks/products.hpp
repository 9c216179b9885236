// Products of one plaintext with ciphertexts under BFV, for linear models: what the server does with a query between
// its bytes and those of the reply. No key is needed, and no secret comes here; see confide.he.linear.
#pragma once

#include "kernels.hpp"

namespace confide::ckks {

class Products {
  public:
    Products(const std::vector<Word> &primes, std::size_t degree, Path path);

    std::size_t primes() const noexcept { return rings_.size(); }
    std::size_t degree() const noexcept { return degree_; }
    std::size_t words() const noexcept { return rings_.size() * degree_; }  // of one polynomial, [prime][N]

    // A polynomial into NTT form and back, in place; aligned to 64 bytes.
    void forward(Word *polynomial) const;
    void inverse(Word *polynomial) const;

    // out [2][prime][N] = query times weights, in coefficient form, plus `zero` if there is one; all are aligned to 64
    // bytes, query and weights in NTT form, zero in coefficient form. Returns false, without `zero` added, if the second
    // polynomial of the product is 0: such a query is no encryption.
    bool multiply(const Word *query, const Word *weights, const Word *zero, Word *out) const;

  private:
    std::size_t degree_;
    std::vector<Ring> rings_;
};

}  // namespace confide::ckks
