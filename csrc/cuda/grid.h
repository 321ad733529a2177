// How the kernels here are written: once, for a GPU by nvcc, and for the host by a plain C++
// compiler, which is how they are tested where there is no GPU.
//
// A kernel is a structure of its arguments, with
//
//   kThreads                                threads of a block
//   kResident                               blocks that a multiprocessor has registers for
//   struct Shared                           what the threads of a block share
//   struct Own                              what a thread keeps from one part of the body to the
//   next void operator()(Block& block) const     the body, a template over Block
//   kLanes                                  threads of a group, where it has parts for groups
//
// The body is made of parts: block.each(part) runs part(thread, own) for all threads of the block
// and ends with a barrier. What stands between parts is the same for all threads of the block. So a
// part may read what others wrote in the parts before it, never what they write in its own. What is
// read between parts may not be written in the next one: a thread that is ahead would change it.
//
// block.each_group(part) is the same for groups of kLanes threads, which walk through their part
// together and may add up what each of them has: lanes.sum(term).
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

// Blocks of a launch, at most 2^31 - 1 of them; x runs fastest.
struct Blocks {
  unsigned x, y = 1, z = 1;

  std::uint64_t count() const { return std::uint64_t{x} * y * z; }
};

#ifdef __CUDACC__

// The threads of a group, of which this is one.
template <unsigned kLanes>
struct Lanes {
  static_assert(kLanes < kWarp && kWarp % kLanes == 0);
  unsigned lane;

  // One of them, to write what all of them know.
  DEVICE bool leads() const { return lane == 0; }

  // The sum of term(lane) over them, always in the same order: a tree.
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

  // part(warp, own): all threads of a warp together.
  template <typename Part>
  DEVICE void each_warp(const Part& part) {
    part(threadIdx.x / kWarp, own);
    __syncthreads();
  }

  // part(group, lanes).
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
  // In one dimension, as a device takes few blocks along the others.
  const unsigned rest = blockIdx.x / blocks.x;
  Block<Kernel> block{blockIdx.x % blocks.x, rest % blocks.y, rest / blocks.y, shared, {}};
  kernel(block);
}

void check(cudaError_t status);  // throws what went wrong

// Sets the device where it is not the current one already: setting it makes a context on it.
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
  // The status of this launch, and not what others left behind.
  check(cudaLaunchKernel(run<Kernel>, dim3(static_cast<unsigned>(blocks.count())),
                         dim3(Kernel::kThreads), arguments, 0,
                         reinterpret_cast<cudaStream_t>(where.stream)));
}

// To an integer in shared memory; returns what it was. The order of the additions is not known.
DEVICE std::int32_t add(std::int32_t& to, std::int32_t value) { return atomicAdd(&to, value); }
DEVICE std::uint32_t add(std::uint32_t& to, std::uint32_t value) { return atomicAdd(&to, value); }

// Lowers an integer in shared memory to another.
DEVICE void least(std::uint32_t& of, std::uint32_t value) { atomicMin(&of, value); }

// e to a power of 0 or less: to 2^-22 of it and 2^-23.5 of the power.
DEVICE float exponential(float power) { return __expf(power); }

// How many bits of a word are set.
DEVICE unsigned bits(std::uint32_t word) { return static_cast<unsigned>(__popc(word)); }

#else

// The order in which a part goes through the threads. A result that depends on it has a race.
inline bool backwards = false;

// What a driver is told of a launch.
struct Launch {
  const char* kernel;     // the mangled name of its structure
  const char* arguments;  // the structure
  std::size_t bytes;
  Blocks blocks;
  unsigned threads;
};

// Runs launches in place of the threads here, where it is set.
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
    // Garbage, as on a device: what nobody wrote is seen.
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

// The bits of a float, and the other way round.
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
