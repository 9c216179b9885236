// Filling and checking of key-switching keys; see keys.hpp.
#include "keys.hpp"

#include <cstring>
#include <stdexcept>

namespace confide::ckks {

SwitchKey::SwitchKey(const Context &context, std::size_t limbs) : degree_(context.degree()), limbs_(limbs) {
    if (!context.switches() || limbs < 1 || limbs > context.limbs())
        throw std::invalid_argument("Expected a level of parameters with a special prime");
    rows_ = Memory((limbs + 1) * limbs * 2 * degree_);
}

bool SwitchKey::load(const Context &context, const Word *residues) {
    const std::size_t primes = context.limbs() + 1;
    bool below = true;
    for (std::size_t digit = 0; digit < context.limbs(); ++digit)
        for (std::size_t polynomial = 0; polynomial < 2; ++polynomial)
            for (std::size_t prime = 0; prime < primes; ++prime, residues += degree_) {
                const bool special = prime + 1 == primes;
                if (digit >= limbs_ || (prime >= limbs_ && !special)) continue;
                const std::size_t place = special ? limbs_ : prime;
                Word *kept = row(limbs_, place, digit, polynomial);
                std::memcpy(kept, residues, degree_ * sizeof(Word));
                const Ring &ring = context.ring_at(limbs_, place);
                below &= ring.kernels->below(ring, kept);
            }
    return below;
}

std::size_t KeySet::bytes() const noexcept {
    std::size_t words = relinearisation ? relinearisation->words() : 0;
    for (const auto &[element, key] : galois) words += key.words();
    return words * sizeof(Word);
}

}  // namespace confide::ckks
