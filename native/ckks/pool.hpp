// A small fork-join pool: one thread that runs a program, and others that take tasks of its phases.
//
// Between phases the others spin for some microseconds, then sleep. A phase is over when its tasks are done; nobody
// waits for a thread that the system has not woken, since each task is taken by whoever comes first. For the same reason
// a pool that the system gave fewer threads than it wanted, or none, does the same work.
//
// A process that forks has none of the pool's threads: `here` is false there. It may destroy the pool, which leaves some
// memory behind, and does not use it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace confide::ckks {

class Pool {
  public:
    // `threads` in all, the caller's included; at least 1. Fewer where the system gives no more.
    explicit Pool(std::size_t threads);
    ~Pool();
    Pool(const Pool &) = delete;
    Pool &operator=(const Pool &) = delete;

    std::size_t threads() const noexcept { return threads_; }
    // Tries again for threads that the system did not give; not during a phase.
    void fill();
    // Whether this process has the threads: the one that made the pool.
    bool here() const noexcept;

    // task(i, worker) for each i < count, in any order, by several threads; worker < threads(). Tasks do not throw.
    template <typename Task>
    void each(std::size_t count, const Task &task) {
        if (threads_ < 2 || count < 2) {
            for (std::size_t i = 0; i < count; ++i) task(i, std::size_t{0});
            return;
        }
        share(count, [](const void *whole, std::size_t i, std::size_t worker) {
            (*static_cast<const Task *>(whole))(i, worker);
        }, &task);
    }

  private:
    using Call = void (*)(const void *, std::size_t, std::size_t);
    void share(std::size_t count, Call call, const void *task);
    bool take(std::size_t worker);
    struct Others;
    void work(std::size_t worker, Others &others);

    // Phase number, tasks of the phase and tasks taken, in one word, so that no task is taken of a phase that is over.
    std::atomic<std::uint64_t> state_{0};
    std::atomic<std::size_t> done_{0};
    std::atomic<bool> ending_{false};
    std::atomic<int> sleeping_{0};
    Call call_ = nullptr;
    const void *task_ = nullptr;
    const std::size_t wanted_;
    std::size_t threads_ = 1;
    std::unique_ptr<Others> others_;  // none where one thread is wanted
};

}  // namespace confide::ckks
