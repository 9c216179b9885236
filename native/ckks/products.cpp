// See products.hpp.
#include "products.hpp"

namespace confide::ckks {

Products::Products(const std::vector<Word> &primes, std::size_t degree, Path path) : degree_(degree) {
    rings_.reserve(primes.size());
    for (const Word prime : primes) rings_.emplace_back(prime, degree, path);
}

void Products::forward(Word *polynomial) const {
    for (const Ring &ring : rings_) {
        ring.kernels->forward(ring, polynomial);
        polynomial += degree_;
    }
}

void Products::inverse(Word *polynomial) const {
    for (const Ring &ring : rings_) {
        ring.kernels->inverse(ring, polynomial);
        polynomial += degree_;
    }
}

bool Products::multiply(const Word *query, const Word *weights, const Word *zero, Word *out) const {
    Word any = 0;
    for (std::size_t polynomial = 0; polynomial < 2; ++polynomial)
        for (std::size_t i = 0; i < rings_.size(); ++i) {
            Word *row = out + polynomial * words() + i * degree_;
            rings_[i].kernels->multiply(rings_[i], query + (row - out), weights + i * degree_, row);
            if (polynomial == 1)
                for (std::size_t place = 0; place < degree_; ++place) any |= row[place];
        }
    if (!any) return false;
    for (std::size_t polynomial = 0; polynomial < 2; ++polynomial) inverse(out + polynomial * words());
    for (std::size_t row = 0; zero && row < 2 * rings_.size(); ++row) {
        const Ring &ring = rings_[row % rings_.size()];
        Word *to = out + row * degree_;
        ring.kernels->add(ring, to, zero + row * degree_, to);
    }
    return true;
}

}  // namespace confide::ckks
