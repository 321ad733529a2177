// Kernels are written once and compiled both for a GPU by nvcc and for the host by a plain C++
// compiler, so that they can be tested without a GPU.
//
// A kernel is a structure of its arguments, with
//
// clang-format off
//   kThreads                              threads of a block
//   kResident                             blocks that a multiprocessor has registers for
//   struct Shared                         shared memory of a block
//   struct Own                            what a thread keeps from one part of the body to the next
//   void operator()(Block& block) const   the body, a template over Block
//   kLanes                                threads of a group, if it has parts for groups
// clang-format on
//
// The body consists of parts: block.each(part) runs part(thread, own) for all threads of the block
// and ends with a barrier. Code between parts must do the same in all threads. A part may read what
// other threads wrote in earlier parts, but not what they write in the same part. Shared memory
// that is read between parts must not be written in the next part, in which another thread may
// already be.
//
// block.each_group(part) does the same for groups of kLanes threads: part(group, lanes) runs in all
// threads of a group together, and lanes.sum(term) adds up a number of each. block.each_warp(part)
// runs part(warp, own) in all threads of a warp together; the host calls it once a warp, with the
// `own` of the first thread.
#pragma once

#include <cstdint>
#include <cstring>

#include "ops.h"

#ifdef __CUDACC__
#include <cuda_runtime.h>
#define DEVICE __device__ __forceinline__
#else
#include <cmath>
#include <functional>
#include <memory>
#include <typeinfo>
#define DEVICE inline
#endif

namespace densitrace::cuda {

constexpr unsigned kWarp = 32;

// Blocks of a launch, at most 2^31 - 1; x varies fastest.
struct Blocks {
  unsigned x, y = 1, z = 1;

  std::uint64_t count() const { return std::uint64_t{x} * y * z; }
};

#ifdef __CUDACC__

// The threads of a group, seen from one of them.
template <unsigned kLanes>
struct Lanes {
  static_assert(kLanes < kWarp && kWarp % kLanes == 0);
  unsigned lane;

  // True in one thread of the group, which writes what all of them computed.
  DEVICE bool leads() const { return lane == 0; }

  // The sum of term(lane) over the group, always in the same order: a tree.
  template <typename Term>
  DEVICE float sum(const Term& term) const {
    const unsigned those = ((1u << kLanes) - 1) << threadIdx.x % kWarp / kLanes * kLanes;
    float sum = term(lane);
    for (unsigned step = kLanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(those, sum, step);
    return sum;
  }
};

template <typename Kernel>
struct Block {
  unsigned x, y, z;
  typename Kernel::Shared& shared;
  typename Kernel::Own own;

  template <typename Part>
  DEVICE void each(const Part& part) {
    part(threadIdx.x, own);
    __syncthreads();
  }

  template <typename Part>
  DEVICE void each_warp(const Part& part) {
    part(threadIdx.x / kWarp, own);
    __syncthreads();
  }

  template <typename Part>
  DEVICE void each_group(const Part& part) {
    constexpr unsigned kLanes = Kernel::kLanes;
    part(threadIdx.x / kLanes, Lanes<kLanes>{threadIdx.x % kLanes});
    __syncthreads();
  }
};

template <typename Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kResident)
    run(const Kernel kernel, const Blocks blocks) {
  __shared__ typename Kernel::Shared shared;
  // One dimension, since devices allow few blocks along the others.
  const unsigned rest = blockIdx.x / blocks.x;
  Block<Kernel> block{blockIdx.x % blocks.x, rest % blocks.y, rest / blocks.y, shared, {}};
  kernel(block);
}

void check(cudaError_t status);  // throws unless the status is success

// Sets the current device, unless it is current already: cudaSetDevice creates a context.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    check(cudaGetDevice(&before_));
    if (device == before_) return;
    check(cudaSetDevice(device));
    changed_ = true;
  }
  ~OnDevice() {
    if (changed_) cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

template <typename Kernel>
void launch(Kernel kernel, Blocks blocks, Where where) {
  if (blocks.count() == 0) return;
  if (blocks.count() > 0x7FFFFFFF) check(cudaErrorInvalidConfiguration);
  const OnDevice on_device(where.device);
  void* arguments[] = {&kernel, &blocks};
  // The status of this launch: cudaGetLastError could return that of an earlier call.
  check(cudaLaunchKernel(run<Kernel>, dim3(static_cast<unsigned>(blocks.count())),
                         dim3(Kernel::kThreads), arguments, 0,
                         reinterpret_cast<cudaStream_t>(where.stream)));
}

// Adds to an integer in shared memory, in any order; returns the previous value.
DEVICE std::int32_t add(std::int32_t& to, std::int32_t value) { return atomicAdd(&to, value); }
DEVICE std::uint32_t add(std::uint32_t& to, std::uint32_t value) { return atomicAdd(&to, value); }

// Lowers an integer in shared memory to `value` if that is less.
DEVICE void least(std::uint32_t& of, std::uint32_t value) { atomicMin(&of, value); }

// e^power for power <= 0: relative error up to 2^-22 plus 2^-23.5 of the power.
DEVICE float exponential(float power) { return __expf(power); }

// Number of bits set in a word.
DEVICE unsigned bits(std::uint32_t word) { return static_cast<unsigned>(__popc(word)); }

#else

// Whether blocks and threads run in descending order. A result that depends on it has a race.
inline bool backwards = false;

// A launch as the CUDA driver's interface takes it.
struct Launch {
  const char* kernel;     // the mangled name of its structure
  const char* arguments;  // the structure
  std::size_t bytes;
  Blocks blocks;
  unsigned threads;
};

// If set, receives every launch instead of running it here.
inline std::function<void(const Launch&)> elsewhere;

template <unsigned kLanes>
struct Lanes {
  bool leads() const { return true; }

  template <typename Term>
  float sum(const Term& term) const {
    float sums[kLanes];
    for (unsigned lane = 0; lane < kLanes; ++lane) sums[lane] = term(lane);
    for (unsigned step = kLanes / 2; step > 0; step /= 2)
      for (unsigned lane = 0; lane < step; ++lane) sums[lane] += sums[lane + step];
    return sums[0];
  }
};

template <typename Kernel>
struct Block {
  unsigned x, y, z;
  typename Kernel::Shared& shared;
  typename Kernel::Own* owns;

  template <typename Part>
  void each(const Part& part) {
    each_of(Kernel::kThreads, 1, part);
  }
  template <typename Part>
  void each_warp(const Part& part) {
    each_of(Kernel::kThreads / kWarp, kWarp, part);
  }
  template <typename Part>
  void each_group(const Part& part) {
    constexpr unsigned kLanes = Kernel::kLanes;
    each_of(Kernel::kThreads / kLanes, kLanes,
            [&](unsigned group, auto&) { part(group, Lanes<kLanes>{}); });
  }

 private:
  template <typename Part>
  void each_of(unsigned count, unsigned stride, const Part& part) {
    for (unsigned i = 0; i < count; ++i) {
      const unsigned turn = backwards ? count - 1 - i : i;
      part(turn, owns[turn * stride]);
    }
  }
};

template <typename Kernel>
void launch(const Kernel& kernel, Blocks blocks, Where) {
  using Shared = typename Kernel::Shared;
  using Own = typename Kernel::Own;
  if (elsewhere && blocks.count() > 0) {
    const auto* arguments = reinterpret_cast<const char*>(&kernel);
    elsewhere({typeid(Kernel).name(), arguments, sizeof(Kernel), blocks, Kernel::kThreads});
    return;
  }
  const auto shared = std::make_unique<Shared>();
  const auto owns = std::make_unique<Own[]>(Kernel::kThreads);
  for (std::uint64_t i = 0; i < blocks.count(); ++i) {
    // Fill with garbage, as on a device, so that reads of unwritten memory show.
    std::memset(static_cast<void*>(shared.get()), 0xA5, sizeof(Shared));
    std::memset(static_cast<void*>(owns.get()), 0xA5, Kernel::kThreads * sizeof(Own));
    const std::uint64_t turn = backwards ? blocks.count() - 1 - i : i;
    Block<Kernel> block{static_cast<unsigned>(turn % blocks.x),
                        static_cast<unsigned>(turn / blocks.x % blocks.y),
                        static_cast<unsigned>(turn / blocks.x / blocks.y), *shared, owns.get()};
    kernel(block);
  }
}

inline std::uint32_t add(std::uint32_t& to, std::uint32_t value) {
  const std::uint32_t before = to;
  to += value;
  return before;
}
inline std::int32_t add(std::int32_t& to, std::int32_t value) {
  auto& bits = reinterpret_cast<std::uint32_t&>(to);
  return static_cast<std::int32_t>(add(bits, static_cast<std::uint32_t>(value)));
}
inline void least(std::uint32_t& of, std::uint32_t value) {
  if (value < of) of = value;
}
inline float exponential(float power) { return std::exp(power); }
inline unsigned bits(std::uint32_t word) { return static_cast<unsigned>(__builtin_popcount(word)); }

#endif

// Conversions between a float and its bits.
DEVICE std::uint32_t bits_of(float number) {
  std::uint32_t bits;
  std::memcpy(&bits, &number, sizeof bits);
  return bits;
}
DEVICE float float_of(std::uint32_t bits) {
  float number;
  std::memcpy(&number, &bits, sizeof number);
  return number;
}

}  // namespace densitrace::cuda
