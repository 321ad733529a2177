// Trace sizes from bottlenecks and in-degrees: METHOD, section 4.
//
// result[k, b, t] = sum over j <= t of degrees[k, b, j] where reach[b, t, j] >= strata - k; reach
// uint8 [batch, length, length], degrees int32 and result int64 [strata, batch, length].
//
// A block owns one stratum and 8 outputs, so that a degree is loaded once for 8 of them: K T^2 / 2
// comparisons with additions. `reach` is read once a stratum, from the second on out of the
// caches; degrees T / 8 times. Sums are whole numbers, so no order of them matters.

#include "grid.h"

namespace densitrace::cuda {
namespace {

struct TraceSizes {
  const std::uint8_t* reach;
  const std::int32_t* degrees;
  std::int64_t* result;
  unsigned strata, batch, length;

  static constexpr unsigned kThreads = 128;
  static constexpr unsigned kOutputs = 8;

  struct Shared {
    std::int64_t sums[kOutputs][kThreads];
  };
  struct Own {};

  template <typename Block>
  DEVICE void operator()(Block& block) const {
    const unsigned b = block.y, k = block.z;
    const unsigned blocks = (length + kOutputs - 1) / kOutputs;
    const unsigned first = (blocks - 1 - block.x) * kOutputs;  // the long ones come first
    const std::uint64_t row = (std::uint64_t{k} * batch + b) * length;
    block.each([&](unsigned thread, Own&) {
      std::int64_t sums[kOutputs] = {};
      const unsigned end = first + kOutputs < length ? first + kOutputs : length;
      for (unsigned j = thread; j < end; j += kThreads) {
        const std::int32_t degree = degrees[row + j];
#pragma unroll
        for (unsigned i = 0; i < kOutputs; ++i) {
          const unsigned t = first + i;
          if (t < end && j <= t &&
              reach[(std::uint64_t{b} * length + t) * length + j] >= strata - k)
            sums[i] += degree;
        }
      }
#pragma unroll
      for (unsigned i = 0; i < kOutputs; ++i) block.shared.sums[i][thread] = sums[i];
    });
    for (unsigned half = kThreads / 2; half > 0; half /= 2)
      block.each([&](unsigned thread, Own&) {
        for (unsigned i = thread; i < kOutputs * half; i += kThreads)
          block.shared.sums[i / half][i % half] += block.shared.sums[i / half][i % half + half];
      });
    block.each([&](unsigned thread, Own&) {
      if (thread < kOutputs && first + thread < length)
        result[row + first + thread] = block.shared.sums[thread][0];
    });
  }
};

}  // namespace

void trace_sizes(const std::uint8_t* reach, const std::int32_t* degrees, std::int64_t* result,
                 unsigned strata, unsigned batch, unsigned length, Where where) {
  const unsigned blocks = (length + TraceSizes::kOutputs - 1) / TraceSizes::kOutputs;
  launch(TraceSizes{reach, degrees, result, strata, batch, length}, {blocks, batch, strata}, where);
}

}  // namespace densitrace::cuda
