// The ops on a GPU: pointers are to device memory, arrays contiguous, row-major. A call queues its
// kernels on a stream and waits for nothing.
#pragma once

#include <cstdint>

namespace densitrace::cuda {

// Where a call runs: a device's index and a cudaStream_t as an integer.
struct Where {
  int device;
  std::uintptr_t stream;
};

// bottleneck.cu
void bottleneck(const std::uint8_t* reach, const std::uint8_t* levels, std::uint8_t* result,
                unsigned batch, unsigned length, Where where);
void bottleneck_boolean(const std::uint8_t* reach, const std::uint8_t* levels,
                        const std::uint8_t* most, std::uint8_t* result, unsigned batch,
                        unsigned length, Where where);

// trace_sizes.cu
void trace_sizes(const std::uint8_t* reach, const std::int32_t* degrees, std::int64_t* result,
                 unsigned strata, unsigned batch, unsigned length, Where where);

}  // namespace densitrace::cuda
