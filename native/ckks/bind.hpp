// What `module.cpp` calls to offer confide::ckks to Python, and what the parts of that share.
#pragma once

#include <nanobind/nanobind.h>

#include <cstring>
#include <memory>
#include <string>

#include "evaluator.hpp"

namespace confide::ckks {

// Blocks that were used before: fresh ones cost a page fault for every page.
class Store {
  public:
    Memory take(std::size_t words) {
        const std::lock_guard<std::mutex> locked(using_);
        for (auto block = kept_.begin(); block != kept_.end(); ++block)
            if (block->size() >= words && block->size() <= 2 * words) {
                Memory found = std::move(*block);
                kept_.erase(block);
                return found;
            }
        return Memory(words);
    }
    void give(Memory block) {
        constexpr std::size_t most = 16;
        const std::lock_guard<std::mutex> locked(using_);
        if (kept_.size() == most) kept_.erase(kept_.begin());
        kept_.push_back(std::move(block));
    }

  private:
    std::mutex using_;
    std::vector<Memory> kept_;
};

// A block that goes back into its store.
struct Lent {
    std::shared_ptr<Store> store;
    Memory block;

    Lent(std::shared_ptr<Store> from, std::size_t words) : store(std::move(from)), block(store->take(words)) {}
    ~Lent() { store->give(std::move(block)); }
    Lent(const Lent &) = delete;
    Lent &operator=(const Lent &) = delete;
    Word *data() const noexcept { return block.data(); }
};

// An array as the loops want it: aligned, so copied where it is not, into a block of a store.
class Aligned {
  public:
    template <typename Array>
    Aligned(const Array &array, const std::shared_ptr<Store> &store) : words_(array.data()) {
        if (reinterpret_cast<std::uintptr_t>(words_) % 64 == 0) return;
        copy_ = std::make_unique<Lent>(store, array.size());
        std::memcpy(copy_->data(), words_, array.size() * sizeof(Word));
        words_ = copy_->data();
    }
    operator const Word *() const noexcept { return words_; }

  private:
    const Word *words_;
    std::unique_ptr<Lent> copy_;
};

// A context as Python holds it.
struct Handle {
    Context context;
    std::shared_ptr<Store> store = std::make_shared<Store>();

    Handle(std::size_t degree, const std::vector<Word> &primes, Word special, Path path)
        : context(degree, primes, special, path) {}
};

// A client's keys as Python holds them.
struct Keys {
    std::shared_ptr<Handle> handle;
    KeySet set;
};

// The path of a name, "" for the best of this machine. Throws std::invalid_argument for a name of none.
Path path_of(const std::string &name);

void bind_evaluator(nanobind::module_ &module);
void bind_program(nanobind::module_ &module);

}  // namespace confide::ckks
