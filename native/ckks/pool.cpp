// See pool.hpp.
#include "pool.hpp"

#include <condition_variable>
#include <mutex>

#include <unistd.h>

#include "threads.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace confide::ckks {

namespace {

constexpr unsigned count_bits = 20;
constexpr std::uint64_t count_mask = (std::uint64_t{1} << count_bits) - 1;
constexpr int spins = 4000;  // about 50 microseconds

void pause() noexcept {
#if defined(__x86_64__)
    _mm_pause();
#endif
}

std::uint64_t taken(std::uint64_t state) noexcept { return state & count_mask; }
std::uint64_t phase_of(std::uint64_t state) noexcept { return state >> 2 * count_bits; }
std::uint64_t tasks(std::uint64_t state) noexcept { return state >> count_bits & count_mask; }

}  // namespace

// The threads but the caller's, and what they sleep on. Apart from the pool, because a process that forked can neither
// join the threads nor destroy what they slept on at that moment: both would wait for them.
struct Pool::Others {
    const pid_t process = getpid();
    std::mutex mutex;
    std::condition_variable awake;
    Threads threads;
};

Pool::Pool(std::size_t threads) : wanted_(threads) {
    if (wanted_ < 2) return;
    others_ = std::make_unique<Others>();
    fill();
}

Pool::~Pool() {
    if (!here()) {
        static_cast<void>(others_.release());
        return;
    }
    if (!others_) return;
    {
        const std::lock_guard<std::mutex> lock(others_->mutex);
        ending_ = true;
    }
    others_->awake.notify_all();
}

void Pool::fill() {
    while (threads_ < wanted_) {
        const auto begin = [this, worker = threads_, others = others_.get()] { work(worker, *others); };
        if (!others_->threads.start(begin)) return;
        ++threads_;
    }
}

bool Pool::here() const noexcept { return !others_ || others_->process == getpid(); }

bool Pool::take(std::size_t worker) {
    std::uint64_t state = state_.load(std::memory_order_acquire);
    while (taken(state) < tasks(state)) {
        if (!state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel)) continue;
        // The phase lasts until this task is done, so its fields stand.
        call_(task_, static_cast<std::size_t>(taken(state)), worker);
        done_.fetch_add(1, std::memory_order_release);
        return true;
    }
    return false;
}

void Pool::share(std::size_t count, Call call, const void *task) {
    while (count > count_mask) {  // more than a word holds: in parts
        for (std::size_t i = count_mask; i < count; ++i) call(task, i, 0);
        count = count_mask;
    }
    call_ = call;
    task_ = task;
    done_.store(0, std::memory_order_relaxed);
    const std::uint64_t phase = phase_of(state_.load(std::memory_order_relaxed)) + 1;
    state_.store(phase << 2 * count_bits | static_cast<std::uint64_t>(count) << count_bits);
    if (sleeping_.load() > 0) {
        const std::lock_guard<std::mutex> lock(others_->mutex);
        others_->awake.notify_all();
    }
    while (take(0)) {
    }
    for (int spin = 0; done_.load(std::memory_order_acquire) < count; ++spin) {
        pause();
        if (spin > spins) std::this_thread::yield();
    }
}

void Pool::work(std::size_t worker, Others &others) {
    while (true) {
        for (int spin = 0; spin < spins; ++spin) {
            if (take(worker)) spin = 0;
            pause();
        }
        std::unique_lock<std::mutex> lock(others.mutex);
        sleeping_.fetch_add(1);
        // Any later phase is a reason to wake up, even if its tasks are gone by then: others follow within microseconds.
        const std::uint64_t seen = state_.load();
        if (taken(seen) >= tasks(seen))
            others.awake.wait(lock, [&] { return ending_ || phase_of(state_.load()) != phase_of(seen); });
        sleeping_.fetch_sub(1);
        if (ending_) return;
    }
}

}  // namespace confide::ckks
