// Trace sizes from bottlenecks and in-degrees: METHOD, section 4.
//
// result[k, b, t] = sum over j <= t of degrees[k, b, j] where reach[b, t, j] >= strata - k; reach
// uint8 [batch, length, length], degrees int32 and result int64 [strata, batch, length].
//
// A block owns 8 outputs and 4 strata: K T^2 / 2 comparisons and additions. A loaded byte of
// `reach` serves 4 strata, and a degree 8 outputs: T^2 / 2 bytes are read K / 4 times, after the
// first time from the caches, and degrees T / 8 times. A thread sums nodes 128 apart, then the sums
// of 32 threads at a time are added. Sums are 64-bit integers, so their order does not matter.

#include "grid.h"

namespace densitrace::cuda {
namespace {

struct TraceSizes {
  const std::uint8_t* reach;
  const std::int32_t* degrees;
  std::int64_t* result;
  unsigned strata, batch, length;

  static constexpr unsigned kThreads = 128;
  static constexpr unsigned kResident = 4;
  static constexpr unsigned kOutputs = 8;
  static constexpr unsigned kStrata = 4;
  static constexpr unsigned kSums = kOutputs * kStrata;
  static constexpr unsigned kParts = kThreads / kSums;  // threads that share a sum

  struct Shared {
    std::int64_t sums[kSums][kThreads + 1];  // padded: threads read down a column
    std::int64_t parts[kParts][kSums];
  };
  struct Own {};

  template <typename Block>
  DEVICE void operator()(Block& block) const {
    const unsigned b = block.y, first_stratum = block.z * kStrata;
    const unsigned blocks = (length + kOutputs - 1) / kOutputs;
    const unsigned first = (blocks - 1 - block.x) * kOutputs;  // long rows come first
    Shared& shared = block.shared;
    block.each([&](unsigned thread, Own&) {
      std::int64_t sums[kOutputs][kStrata] = {};
      const unsigned end = first + kOutputs < length ? first + kOutputs : length;
      for (unsigned j = thread; j < end; j += kThreads) {
        std::int32_t degree[kStrata];
#pragma unroll
        for (unsigned k = 0; k < kStrata; ++k)
          degree[k] = first_stratum + k < strata ? degrees[row(first_stratum + k, b) + j] : 0;
        std::uint8_t level[kOutputs];
#pragma unroll
        for (unsigned i = 0; i < kOutputs; ++i) {
          const unsigned t = first + i;
          const bool within = t < end && j <= t;
          level[i] = within ? reach[(std::uint64_t{b} * length + t) * length + j] : 0;
        }
        // Level 0 reaches no stratum: thresholds are at least 1, or the degree is 0.
#pragma unroll
        for (unsigned i = 0; i < kOutputs; ++i)
#pragma unroll
          for (unsigned k = 0; k < kStrata; ++k)
            sums[i][k] += level[i] >= strata - first_stratum - k ? degree[k] : 0;
      }
#pragma unroll
      for (unsigned i = 0; i < kSums; ++i) shared.sums[i][thread] = sums[i / kStrata][i % kStrata];
    });
    block.each([&](unsigned thread, Own&) {
      const unsigned which = thread % kSums, part = thread / kSums;
      std::int64_t sum = 0;
#pragma unroll 8
      for (unsigned i = part * kSums; i < (part + 1) * kSums; ++i) sum += shared.sums[which][i];
      shared.parts[part][which] = sum;
    });
    block.each([&](unsigned thread, Own&) {
      const unsigned t = first + thread / kStrata, k = first_stratum + thread % kStrata;
      if (thread >= kSums || t >= length || k >= strata) return;
      std::int64_t sum = 0;
#pragma unroll
      for (unsigned part = 0; part < kParts; ++part) sum += shared.parts[part][thread];
      result[row(k, b) + t] = sum;
    });
  }

 private:
  DEVICE std::uint64_t row(unsigned stratum, unsigned b) const {
    return (std::uint64_t{stratum} * batch + b) * length;
  }
};

}  // namespace

void trace_sizes(const std::uint8_t* reach, const std::int32_t* degrees, std::int64_t* result,
                 unsigned strata, unsigned batch, unsigned length, Where where) {
  using Kernel = TraceSizes;
  const unsigned outputs = (length + Kernel::kOutputs - 1) / Kernel::kOutputs;
  const unsigned groups = (strata + Kernel::kStrata - 1) / Kernel::kStrata;
  launch(Kernel{reach, degrees, result, strata, batch, length}, {outputs, batch, groups}, where);
}

}  // namespace densitrace::cuda
