// Parallel execution of tasks. Tasks write disjoint parts of a result, so the result does not
// depend on the number of threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>
#include <vector>

#ifndef _OPENMP
#include <thread>
#endif

namespace densitrace::cpu {

// Multiply-adds that are worth waking a thread for.
constexpr std::size_t kWorthAThread = std::size_t{1} << 18;

// Calls task(scratch, 0) .. task(scratch, tasks - 1) from at most `threads` threads, including this
// one; each thread has its own scratch, from make_scratch(). `operations` is the total over all
// tasks: a small total runs on one thread. Threads take tasks from a counter, because tasks differ
// in length (the triangle of causal attention): put the long ones first.
//
// Uses OpenMP if available. Its threads are then those of torch's own operations, which would
// otherwise compete with ours by spinning for a while after each operation.
template <typename MakeScratch, typename Task>
void run(std::size_t tasks, int threads, std::size_t operations, const MakeScratch& make_scratch,
         const Task& task) {
  if (tasks == 0) return;
  std::atomic<std::size_t> next{0};
  std::exception_ptr failed;
  std::atomic<bool> failing{false};
  const auto work = [&] {
    try {
      auto scratch = make_scratch();
      for (std::size_t i = next++; i < tasks; i = next++) task(scratch, i);
    } catch (...) {  // e.g. out of memory; an exception must not leave a thread
      if (!failing.exchange(true)) failed = std::current_exception();
    }
  };
  const std::size_t useful = std::min(tasks, operations / kWorthAThread + 1);
  const int count = std::max(1, static_cast<int>(std::min<std::size_t>(threads, useful)));
  if (count == 1) {
    work();
  } else {
#ifdef _OPENMP
#pragma omp parallel num_threads(count)
    work();
#else
    std::vector<std::thread> others;
    for (int i = 1; i < count; ++i) others.emplace_back(work);
    work();
    for (std::thread& other : others) other.join();
#endif
  }
  if (failed) std::rethrow_exception(failed);
}

struct NoScratch {};

template <typename Task>
void run(std::size_t tasks, int threads, std::size_t operations, const Task& task) {
  run(
      tasks, threads, operations, [] { return NoScratch{}; },
      [&](NoScratch&, std::size_t i) { task(i); });
}

}  // namespace densitrace::cpu
