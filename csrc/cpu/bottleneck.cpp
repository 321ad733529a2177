// The (max, min) product over levels, and trace sizes: METHOD, section 4.
//
// bottleneck: reach R = beta_t(j) [T, T], levels S [T, T], result max over j of min(R[t, j], S[j, i]),
// all uint8 and lower triangular. T^3 / 6 pairs of a byte min and a byte max.
//
// Idea. It is a matrix product in another algebra, so it is blocked like one. A task owns kBlock
// outputs t and a strip of sources i. It walks over the nodes j, kNodes at a time: the strip's
// levels of these nodes are copied into a dense tile (16 KiB at most, L1), in which entries above
// the diagonal and beyond the row's end are 0, so that the inner loop knows neither. The inner loop
// (bottleneck_sweep.h) keeps a few outputs' strips in registers and spends one broadcast per output
// and node, one min and one max per register. Nodes that none of its outputs reaches are skipped.
//
// Bytes: the task reads 1 / kBlock of what it computes on, so the op is bound by arithmetic: at
// 64 bytes an instruction, T = 2048 is 22 million min/max pairs for all strata and outputs.
//
// Tasks write disjoint parts of the result and share nothing, so it is the same whatever the number
// of threads. They differ in length (the triangle), so threads draw them from a counter, long first.

#include "bottleneck.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <stdexcept>
#include <thread>

namespace densitrace::cpu {
namespace {

constexpr std::size_t kNodes = 64;   // nodes j of a tile: a mask of them is one machine word
constexpr std::size_t kBlock = 128;  // outputs t of a task: a multiple of every kRows
constexpr std::size_t kWidest = 256;  // sources i of the widest strip

// Operations that pay for starting a thread: some 0.3 ms of byte operations, or of additions.
constexpr std::size_t kByteOperations = std::size_t{1} << 26;
constexpr std::size_t kAdditions = std::size_t{1} << 21;

#if defined(__x86_64__) && defined(__clang__)
#define BEGIN_TARGET_AVX512 \
  _Pragma("clang attribute push(__attribute__((target(\"avx512f,avx512bw\"))), apply_to = function)")
#define BEGIN_TARGET_AVX2 \
  _Pragma("clang attribute push(__attribute__((target(\"avx2\"))), apply_to = function)")
#define END_TARGET _Pragma("clang attribute pop")
#elif defined(__x86_64__)
#define BEGIN_TARGET_AVX512 _Pragma("GCC push_options") _Pragma("GCC target(\"avx512f,avx512bw\")")
#define BEGIN_TARGET_AVX2 _Pragma("GCC push_options") _Pragma("GCC target(\"avx2\")")
#define END_TARGET _Pragma("GCC pop_options")
#endif

#if defined(__x86_64__)
BEGIN_TARGET_AVX512
namespace avx512 {
constexpr std::size_t kVectorBytes = 64, kRows = 4, kVectors = 4;
#include "bottleneck_sweep.h"
}  // namespace avx512
END_TARGET

BEGIN_TARGET_AVX2
namespace avx2 {
constexpr std::size_t kVectorBytes = 32, kRows = 2, kVectors = 4;
#include "bottleneck_sweep.h"
}  // namespace avx2
END_TARGET
#endif

namespace portable {  // 16 bytes: what SSE2 and NEON have, and what a compiler can take apart
constexpr std::size_t kVectorBytes = 16, kRows = 2, kVectors = 4;
#include "bottleneck_sweep.h"
}  // namespace portable

struct InstructionSet {
  const char* name;
  bool available;
  std::size_t strip;
  decltype(&portable::sweep) sweep;
};

const std::vector<InstructionSet>& all_instruction_sets() {
  static const std::vector<InstructionSet> all = {
#if defined(__x86_64__)
      {"avx512", __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw"),
       avx512::kStrip, avx512::sweep},
      {"avx2", __builtin_cpu_supports("avx2") != 0, avx2::kStrip, avx2::sweep},
#endif
      {"portable", true, portable::kStrip, portable::sweep},
  };
  return all;
}

const InstructionSet& find_instruction_set(const std::string& isa) {
  for (const InstructionSet& set : all_instruction_sets())
    if (set.available && (isa == "auto" || isa == set.name)) return set;
  throw std::invalid_argument("isa='" + isa + "' is not available; choose auto or one of those "
                              "that instruction_sets() lists");
}

// Calls task(0) .. task(tasks - 1) from at most `threads` threads, this one included, and from no
// more than `useful` besides it.
template <typename Task>
void run(std::size_t tasks, int threads, std::size_t useful, const Task& task) {
  std::atomic<std::size_t> next{0};
  const auto work = [&] {
    for (std::size_t i = next++; i < tasks; i = next++) task(i);
  };
  const std::size_t most = std::min(static_cast<std::size_t>(std::max(threads, 1)), tasks);
  std::vector<std::thread> others;
  for (std::size_t i = 1; i < most && i <= useful; ++i) others.emplace_back(work);
  work();
  for (std::thread& other : others) other.join();
}

struct alignas(64) Scratch {
  std::uint8_t reach[kBlock * kNodes];
  std::uint8_t levels[kNodes * kWidest];
  std::uint8_t best[kBlock * kWidest];
};

// Rows [first, first + rows) and columns [column, column + width) of a lower triangular matrix,
// densely; 0 above the diagonal and outside the matrix.
void copy_tile(const std::uint8_t* matrix, std::size_t length, std::size_t first, std::size_t rows,
               std::size_t column, std::size_t width, std::uint8_t* tile) {
  for (std::size_t r = 0; r < rows; ++r, tile += width) {
    const std::size_t row = first + r;
    const std::size_t end = row < length ? row + 1 : 0;  // columns of this row that count
    const std::size_t filled = end > column ? std::min(width, end - column) : 0;
    if (filled != 0) std::memcpy(tile, matrix + row * length + column, filled);
    std::memset(tile + filled, 0, width - filled);
  }
}

// Outputs [first, first + kBlock) and sources [column, column + strip) of one sequence.
void bottleneck_tile(const InstructionSet& set, const std::uint8_t* reach,
                     const std::uint8_t* levels, std::uint8_t* result, std::size_t length,
                     std::size_t first, std::size_t column) {
  const std::size_t last = std::min(length, first + kBlock);
  const std::size_t width = std::min(set.strip, length - column);
  Scratch scratch;
  std::memset(scratch.best, 0, kBlock * set.strip);
  for (std::size_t node = column; node < last; node += kNodes) {
    // Outputs before this node don't reach it: begin at a multiple of every kRows.
    const std::size_t skip = node > first ? node - first : 0;
    const std::size_t columns = std::min(set.strip, node + kNodes - column);
    copy_tile(reach, length, first + skip, kBlock - skip, node, kNodes, scratch.reach);
    copy_tile(levels, length, node, kNodes, column, set.strip, scratch.levels);
    set.sweep(kBlock - skip, columns, scratch.reach, scratch.levels,
              scratch.best + skip * set.strip);
  }
  for (std::size_t t = first; t < last; ++t)
    std::memcpy(result + t * length + column, scratch.best + (t - first) * set.strip, width);
}

}  // namespace

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const InstructionSet& set : all_instruction_sets())
    if (set.available) names.emplace_back(set.name);
  return names;
}

void bottleneck(const std::uint8_t* reach, const std::uint8_t* levels, std::uint8_t* result,
                std::size_t batch, std::size_t length, int threads, const std::string& isa) {
  const InstructionSet& set = find_instruction_set(isa);
  const std::size_t blocks = (length + kBlock - 1) / kBlock;
  const std::size_t strips = (length + set.strip - 1) / set.strip;
  const std::size_t operations = batch * length * length / 3 * length;
  run(batch * blocks * strips, threads, operations / kByteOperations, [&](std::size_t task) {
    const std::size_t sequence = task % batch * length * length;
    const std::size_t first = (blocks - 1 - task / batch / strips) * kBlock;
    const std::size_t column = task / batch % strips * set.strip;
    bottleneck_tile(set, reach + sequence, levels + sequence, result + sequence, length, first,
                    column);
  });
}

void trace_sizes(const std::uint8_t* reach, const std::int32_t* degrees, std::int64_t* result,
                 std::size_t strata, std::size_t batch, std::size_t length, int threads) {
  // A node j of bottleneck r adds degrees[k, j] to the strata k >= strata - r: one masked addition
  // of a vector over the strata. They go kGroup at a time, in 32 bits for as long as these can't
  // overflow.
  constexpr std::size_t kGroup = 16;
  const std::size_t groups = (strata + kGroup - 1) / kGroup;
  std::vector<std::uint32_t> by_node(groups * batch * length * kGroup, 0);  // [group, b, j, k]
  std::uint32_t largest = 1;
  for (std::size_t k = 0; k < strata; ++k)
    for (std::size_t j = 0; j < batch * length; ++j) {
      const std::uint32_t degree = static_cast<std::uint32_t>(degrees[k * batch * length + j]);
      by_node[(k / kGroup * batch * length + j) * kGroup + k % kGroup] = degree;
      largest = std::max(largest, degree);
    }
  const std::size_t run_length = UINT32_MAX / largest;

  std::vector<std::uint32_t> masks(groups * 256 * kGroup, 0);  // [group, bottleneck, k]
  for (std::size_t r = 0; r < 256; ++r)
    for (std::size_t k = strata - std::min(r, strata); k < strata; ++k)
      masks[(k / kGroup * 256 + r) * kGroup + k % kGroup] = UINT32_MAX;

  const auto one_output = [&](std::size_t group, std::size_t b, std::size_t t) {
    const std::uint8_t* row = reach + (b * length + t) * length;
    const std::uint32_t* degree = by_node.data() + (group * batch + b) * length * kGroup;
    const std::uint32_t* mask = masks.data() + group * 256 * kGroup;
    std::int64_t total[kGroup] = {};
    for (std::size_t first = 0; first <= t; first += run_length) {
      std::uint32_t sum[kGroup] = {};
      const std::size_t end = std::min(t + 1, first + run_length);
      for (std::size_t j = first; j < end; ++j)
        for (std::size_t k = 0; k < kGroup; ++k)
          sum[k] += degree[j * kGroup + k] & mask[row[j] * kGroup + k];
      for (std::size_t k = 0; k < kGroup; ++k) total[k] += sum[k];
    }
    for (std::size_t k = group * kGroup; k < std::min(strata, (group + 1) * kGroup); ++k)
      result[(k * batch + b) * length + t] = total[k % kGroup];
  };
  const std::size_t blocks = (length + kBlock - 1) / kBlock;
  const std::size_t additions = groups * batch * length * length / 2 * kGroup;
  run(groups * batch * blocks, threads, additions / kAdditions, [&](std::size_t task) {
    const std::size_t first = (blocks - 1 - task / (groups * batch)) * kBlock;
    for (std::size_t t = first; t < std::min(length, first + kBlock); ++t)
      one_output(task / batch % groups, task % batch, t);
  });
}

}  // namespace densitrace::cpu
