// Threads that the system does not give, that fail and that a fork leaves behind, under the sanitizers
// (tests/native/test_threads.py compiles and runs it):
//   threads_test            prints "the threads hold"
//   threads_test control    starts threads without care where none is to be had: the process must end by that
#include "threads.hpp"

#include <atomic>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <memory>
#include <new>
#include <string>

#include <dlfcn.h>
#include <sys/wait.h>
#include <unistd.h>

#include "pool.hpp"

using namespace confide::ckks;

namespace {

std::atomic<int> allowed{INT_MAX};  // threads that the system still gives

void expect(bool holds, const char *what) {
    if (holds) return;
    std::printf("%s\n", what);
    std::fflush(stdout);
    _exit(1);
}

// Before the one of the C library, as a bound on processes would have it.
using Create = int (*)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);

}  // namespace

extern "C" int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *),
                              void *argument) noexcept {
    static const auto next = reinterpret_cast<Create>(dlsym(RTLD_NEXT, "pthread_create"));
    if (allowed.fetch_sub(1) <= 0) return EAGAIN;
    return next(thread, attributes, start, argument);
}

namespace {

// Every task once, by workers that there are.
void check_phase(Pool &pool, std::size_t count) {
    std::vector<std::atomic<int>> done(count);
    pool.each(count, [&](std::size_t task, std::size_t worker) {
        expect(worker < pool.threads(), "a worker that is not there");
        ++done[task];
    });
    for (const auto &times : done) expect(times == 1, "a task of a phase not once");
}

void pools_of_fewer_threads() {
    for (int given = 0; given < 6; ++given) {
        allowed = given;
        Pool pool(5);
        expect(pool.threads() == 1 + static_cast<std::size_t>(std::min(given, 4)), "another number of threads");
        expect(pool.here(), "a pool of another process");
        for (const std::size_t count : {0u, 1u, 2u, 7u, 3000u}) check_phase(pool, count);
        allowed = INT_MAX;
        pool.fill();
        expect(pool.threads() == 5, "threads that are to be had again are not taken");
        check_phase(pool, 3000);
    }
}

void shares_of_fewer_threads() {
    for (int given = 0; given < 6; ++given)
        for (const std::size_t count : {0u, 1u, 3u, 1000u}) {
            allowed = given;
            std::vector<std::atomic<int>> done(count);
            std::atomic<int> at_once{0};
            share(count, 4, [&](Tasks &tasks) {
                ++at_once;
                for (std::size_t task; tasks.take(task);) ++done[task];
            });
            expect(at_once <= 1 + std::min(given, 3), "more threads than there are");
            for (const auto &times : done) expect(times == 1, "a task not once");
        }
    allowed = INT_MAX;
    std::atomic<std::size_t> most{0};
    share(1000, 1000, [&](Tasks &) { ++most; });
    expect(most == most_threads, "more threads than one piece of work may have");
}

// What a thread throws, the caller's own or another, reaches the caller, and nobody goes on.
template <typename Error>
void failures_reach_the_caller(bool by_caller) {
    const auto caller = std::this_thread::get_id();
    try {
        share(std::size_t{1} << 40, 4, [&](Tasks &tasks) {
            const bool here = std::this_thread::get_id() == caller;
            if (here == by_caller) throw Error();
            for (std::size_t task; tasks.take(task);) std::this_thread::yield();
        });
    } catch (const Error &) {
        return;
    }
    expect(false, "a failure is lost");
}

struct Failure {};

// A child has the pool and none of its threads, which slept at that moment.
void forks() {
    auto pool = std::make_unique<Pool>(4);
    check_phase(*pool, 1000);
    usleep(50000);
    std::fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        alarm(30);
        expect(!pool->here(), "a child takes its parent's threads for its own");
        pool.reset();
        Pool own(3);
        expect(own.threads() == 3 && own.here(), "a child has no threads of its own");
        check_phase(own, 1000);
        _exit(0);
    }
    int status = -1;
    expect(child > 0 && waitpid(child, &status, 0) == child && status == 0, "a child does not end");
    expect(pool->here(), "a parent has lost its threads");
    check_phase(*pool, 1000);
}

void carelessly() {
    allowed = 2;
    std::vector<std::thread> others;
    for (int i = 0; i < 3; ++i) others.emplace_back([] {});
}

}  // namespace

int main(int count, char **arguments) {
    if (count > 1 && std::string(arguments[1]) == "control") {
        carelessly();
        return 0;
    }
    pools_of_fewer_threads();
    shares_of_fewer_threads();
    for (const bool by_caller : {false, true}) {
        failures_reach_the_caller<Failure>(by_caller);
        failures_reach_the_caller<std::bad_alloc>(by_caller);
    }
    forks();
    std::puts("the threads hold");
    return 0;
}
