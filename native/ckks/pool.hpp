// A small fork-join pool: one thread that runs a program, and others that take tasks of its phases.
//
// Between phases the others spin for some microseconds, then sleep. A phase is over when its tasks are done; nobody
// waits for a thread that the system has not woken, since each task is taken by whoever comes first.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace confide::ckks {

class Pool {
  public:
    // `threads` in all, the caller's included; at least 1.
    explicit Pool(std::size_t threads);
    ~Pool();
    Pool(const Pool &) = delete;
    Pool &operator=(const Pool &) = delete;

    std::size_t threads() const noexcept { return others_.size() + 1; }

    // task(i, worker) for each i < count, in any order, by several threads; worker < threads(). Tasks do not throw.
    template <typename Task>
    void each(std::size_t count, const Task &task) {
        if (others_.empty() || count < 2) {
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
    void work(std::size_t worker);

    // Phase number, tasks of the phase and tasks taken, in one word, so that no task is taken of a phase that is over.
    std::atomic<std::uint64_t> state_{0};
    std::atomic<std::size_t> done_{0};
    std::atomic<bool> ending_{false};
    std::atomic<int> sleeping_{0};
    Call call_ = nullptr;
    const void *task_ = nullptr;
    std::mutex mutex_;
    std::condition_variable awake_;
    std::vector<std::thread> others_;
};

}  // namespace confide::ckks
