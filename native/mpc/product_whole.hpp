// Products of whole words, for instruction sets that have them (or for none): see product_loops.hpp.

namespace confide::mpc {
namespace {

constexpr std::size_t row_words = 1;

struct Factor {
    Vector words;
    explicit Factor(Word word, Word) : words(word - Vector{}) {}
    explicit Factor(Vector v) : words(v) {}
};

struct Sum {
    Vector sum{};
    void add(const Factor &left, Vector right) { sum += left.words * right; }
    Vector total() const { return sum; }
};

}  // namespace
}  // namespace confide::mpc
