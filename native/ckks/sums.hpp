// Sums of ciphertexts times integers, exactly: out[o] = sum_i w[o][i] in[i] + bias[o] modulo every prime of a level.
//
// A linear map of a batch, where every number has a ciphertext of its own, needs nothing else: no key, no transform.
// What is done, and in which order, depends on shapes alone, never on weights; a zero is multiplied as any number is.
#pragma once

#include "kernels.hpp"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace confide::ckks {

// Outputs that depend on the same inputs.
struct Group {
    std::vector<std::uint32_t> results, inputs;  // places
    std::vector<double> weights;                 // integers, [results][inputs]; |w| of a result add up to below 2^33
};

// A linear map in integers: its groups hold every output once.
struct IntegerMap {
    std::size_t inputs, outputs;
    std::vector<Group> groups;
    // Throws std::invalid_argument where places, shapes or weights are not as said above.
    IntegerMap(std::size_t inputs, std::size_t outputs, std::vector<Group> groups);
};

// Returns the sums; every path and every number of threads gives the same bits.
//   in      [inputs][2][primes][N], NTT form, every word below its prime
//   biases  [outputs][primes], each below its prime; added to the first polynomial: a constant is the same in every
//           word of a row in NTT form
//   out     [outputs][2][primes][N]; does not overlap `in`
// N is a multiple of 16, and the path runs here, or std::invalid_argument is thrown. IFMA takes the primes below 2^50; others go by the portable loops.
void weighted_sums(const IntegerMap &map, const std::vector<Modulus> &primes, std::size_t degree, const Word *in,
                   const Word *biases, Word *out, unsigned threads, Path path);

}  // namespace confide::ckks
