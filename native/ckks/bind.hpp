// What `module.cpp` calls to offer confide::ckks to Python, and what the parts of that share.
#pragma once

#include <nanobind/nanobind.h>

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

void bind_evaluator(nanobind::module_ &module);
void bind_program(nanobind::module_ &module);

}  // namespace confide::ckks
