// Filling, checking and reading of key-switching keys; see keys.hpp.
#include "keys.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace confide::ckks {

SwitchKey::SwitchKey(const Context &context, std::size_t limbs) : limbs_(limbs) {
    if (!context.switches() || limbs < 1 || limbs > context.limbs())
        throw std::invalid_argument("Expected a level of parameters with a special prime");
    std::size_t bytes = 0;
    for (std::size_t place = 0; place <= limbs; ++place) {
        start_.push_back(bytes);
        const std::size_t whole = stride(context.ring_at(limbs, place)) * (context.degree() / 8);
        bytes += (whole + 63) / 64 * 64;
    }
    blocks_ = Memory((bytes + key_margin) / sizeof(Word));
}

bool SwitchKey::store(const Context &context, std::size_t place, std::size_t digit, std::size_t polynomial,
                      const Word *row) {
    const Ring &ring = context.ring_at(limbs_, place);
    const SwitchLoops &loops = switch_loops(ring);
    auto *blocks = reinterpret_cast<std::uint8_t *>(blocks_.data()) + start_[place];
    loops.store(ring, row, stride(ring), blocks + (2 * digit + polynomial) * loops.block_bytes);
    return ring.kernels->below(ring, row);
}

bool SwitchKey::load(const Context &context, const Word *residues) {
    const std::size_t n = context.degree(), primes = context.limbs() + 1;
    const Memory row(n);
    bool below = true;
    for (std::size_t digit = 0; digit < limbs_; ++digit)
        for (std::size_t polynomial = 0; polynomial < 2; ++polynomial)
            for (std::size_t place = 0; place <= limbs_; ++place) {
                const std::size_t prime = place == limbs_ ? primes - 1 : place;
                std::memcpy(row.data(), residues + ((2 * digit + polynomial) * primes + prime) * n, n * sizeof(Word));
                below &= store(context, place, digit, polynomial, row.data());
            }
    return below;
}

void SwitchKey::sums(const Context &context, std::size_t limbs, std::size_t place, const Permutation *permutation,
                     const Word *const *digits, Word *first, Word *second, bool add) const noexcept {
    const std::size_t kept = place == limbs ? limbs_ : place;
    const Ring &ring = context.ring_at(limbs_, kept);
    const SwitchLoops &loops = switch_loops(ring);
    const auto *key = reinterpret_cast<const std::uint8_t *>(blocks_.data()) + start_[kept];
    for (std::size_t start = 0; start < limbs; start += loops.most_terms)
        loops.sums(ring, permutation, digits + start, std::min(limbs - start, loops.most_terms),
                   key + 2 * start * loops.block_bytes, stride(ring), first, second, add || start);
}

std::size_t KeySet::bytes() const noexcept {
    std::size_t bytes = relinearisation ? relinearisation->bytes() : 0;
    for (const auto &[element, key] : galois) bytes += key.bytes();
    return bytes;
}

}  // namespace confide::ckks
