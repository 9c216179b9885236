// Memory, constants and permutations; see context.hpp.
#include "context.hpp"

#include <cstdlib>
#include <new>
#include <stdexcept>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace confide::ckks {

namespace {

constexpr std::size_t large_page = std::size_t{1} << 21;

Division division(const Modulus &divisor, const std::vector<Ring> &rings, std::size_t count) {
    Division made;
    made.half = divisor.value >> 1;
    for (std::size_t limb = 0; limb < count; ++limb) {
        const Modulus &q = rings[limb].q;
        const Word half = made.half % q.value;
        made.itself.push_back(divisor.value % q.value);
        made.inverse.push_back(inverse(made.itself.back(), q));
        made.minus_half.push_back(half ? q.value - half : 0);
    }
    return made;
}

}  // namespace

Memory::Memory(std::size_t words) : size_(words) {
    const std::size_t bytes = words * sizeof(Word);
    const std::size_t alignment = bytes >= large_page ? large_page : 64;
    const std::size_t rounded = (bytes + alignment - 1) / alignment * alignment;
    if (!words) return;
    words_.reset(static_cast<Word *>(std::aligned_alloc(alignment, rounded)));
    if (!words_) throw std::bad_alloc();
#ifdef __linux__
    // Keys are read in hundreds of streams: with pages of 4 KiB each would need its own entry of the TLB.
    if (bytes >= large_page) madvise(words_.get(), rounded, MADV_HUGEPAGE);
#endif
}

void Memory::Free::operator()(Word *words) const noexcept { std::free(words); }

Context::Context(std::size_t degree, const std::vector<Word> &data_primes, Word special, Path path) : degree_(degree) {
    if (data_primes.empty() || data_primes.size() > most_limbs)
        throw std::invalid_argument("Expected from 1 to 64 data primes");
    std::vector<Word> all = data_primes;
    if (special) all.push_back(special);
    for (std::size_t i = 0; i < all.size(); ++i)
        for (std::size_t j = 0; j < i; ++j)
            if (all[i] == all[j]) throw std::invalid_argument("Expected primes that are all different");
    for (const Word prime : data_primes) rings_.emplace_back(prime, degree, path);
    for (std::size_t limb = 0; limb < rings_.size(); ++limb)
        by_limb_.push_back(division(rings_[limb].q, rings_, limb));
    if (special) {
        special_.emplace(special, degree, path);
        by_special_ = division(special_->q, rings_, rings_.size());
    }
}

const Permutation &Context::permutation(std::size_t element) const {
    if (element % 2 == 0 || element >= 2 * degree_) throw std::invalid_argument("Expected an odd element below 2N");
    const std::lock_guard<std::mutex> locked(making_);
    auto &made = permutations_[element];
    if (!made) made = std::make_unique<const Permutation>(degree_, element);
    return *made;
}

std::size_t Context::element(long step) const noexcept {
    const long slots = static_cast<long>(degree_ / 2);
    std::size_t found = 1, power = 3;
    for (auto left = static_cast<std::size_t>((step % slots + slots) % slots); left; left >>= 1) {
        if (left & 1) found = found * power & (2 * degree_ - 1);
        power = power * power & (2 * degree_ - 1);
    }
    return found;
}

}  // namespace confide::ckks
