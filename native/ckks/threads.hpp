// Threads that never outlive who started them, and are as many as the system gives: it may give fewer than wanted (a
// bound on processes, no memory for a stack), and work goes on with those.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

namespace confide::ckks {

// Most threads of one piece of work.
constexpr std::size_t most_threads = 64;

class Threads {
  public:
    Threads() = default;
    ~Threads() {
        for (std::thread &one : all_) one.join();
    }
    Threads(const Threads &) = delete;
    Threads &operator=(const Threads &) = delete;

    std::size_t size() const noexcept { return all_.size(); }

    // Starts work(), which does not throw. Returns false where no thread is to be had.
    template <typename Work>
    bool start(const Work &work) noexcept {
        try {
            all_.emplace_back(work);
            return true;
        } catch (const std::system_error &) {
            return false;
        } catch (const std::bad_alloc &) {
            return false;
        }
    }

  private:
    std::vector<std::thread> all_;
};

// The tasks from 0 to `count`, for threads that take one after the other.
class Tasks {
  public:
    explicit Tasks(std::size_t count) noexcept : count_(count) {}
    // Whether there is one more; task is its number then.
    bool take(std::size_t &task) noexcept { return (task = next_.fetch_add(1)) < count_; }
    void stop() noexcept { next_ = count_; }

  private:
    const std::size_t count_;
    std::atomic<std::size_t> next_{0};
};

// work(tasks) on as many as `threads` threads at once, the caller's included. Returns when all of them have: throws what
// one of them threw first, after which no task is taken any more.
template <typename Work>
void share(std::size_t count, std::size_t threads, const Work &work) {
    Tasks tasks(count);
    std::mutex failing;
    std::exception_ptr failure;
    const auto guarded = [&]() noexcept {
        try {
            work(tasks);
        } catch (...) {
            tasks.stop();
            const std::lock_guard<std::mutex> lock(failing);
            if (!failure) failure = std::current_exception();
        }
    };
    {
        Threads others;
        const std::size_t most = std::min({threads, most_threads, count});
        while (others.size() + 1 < most && others.start(guarded)) {
        }
        guarded();
    }
    if (failure) std::rethrow_exception(failure);
}

}  // namespace confide::ckks
