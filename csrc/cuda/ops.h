// The ops on a GPU. Pointers refer to device memory; arrays are contiguous and row-major. A call
// queues its kernels on a stream and does not wait.
#pragma once

#include <cstdint>
#include <string>

#include "edges.h"

namespace densitrace::cuda {

// Where a call runs: the index of a device, and a cudaStream_t as an integer.
struct Where {
  int device;
  std::uintptr_t stream;
};

// device.cu: why the driver cannot run these ops, or ""
std::string driver_error();

// bottleneck.cu
void bottleneck(const std::uint8_t* reach, const std::uint8_t* levels, std::uint8_t* result,
                unsigned batch, unsigned length, Where where);
// `planes` has room for `capacity` levels at a time, of plane_words words each. `highest` [1] is
// the highest level.
void bottleneck_boolean(const std::uint8_t* reach, const std::uint8_t* levels,
                        const std::uint8_t* highest, std::uint32_t* planes, unsigned capacity,
                        std::uint8_t* result, unsigned batch, unsigned length, Where where);
std::uint64_t plane_words(unsigned batch, unsigned length);

// trace_sizes.cu
void trace_sizes(const std::uint8_t* reach, const std::int32_t* degrees, std::int64_t* result,
                 unsigned strata, unsigned batch, unsigned length, Where where);

// weigh.cu
void weigh(const Pattern& pattern, const Weights& weights, const Tile& tile, float* weight,
           float* share, Where where);

// collect_edges.cu: `heads` is H
void count_edges(const float* weight, const float* floor, const Tile& tile, unsigned heads,
                 std::int64_t* kept, Where where);
void write_edges(const float* weight, const float* cuts, unsigned strata, const Tile& tile,
                 unsigned heads, const std::int64_t* starts, const Table& table, Where where);

// node_cuts.cu: the tile has all heads, or none; its weights are overwritten. `wanted` [K] are
// shares of `total` [B, T], or of the number of edges if that is null
void node_cuts(float* weight, const Tile& tile, unsigned window, const float* side, unsigned sides,
               const double* wanted, unsigned strata, const float* total, float* cuts, Where where);

// proximity.cu: `heads` is H
void refine_bounds(const Ranked& ranked, const float* sent, const float* largest,
                   const float* share, const float* cuts, unsigned strata, float* weight,
                   const Tile& tile, unsigned heads, unsigned hidden, const RowTotals& totals,
                   Where where);
void update_levels(const float* weight, const float* cuts, unsigned strata, const Tile& tile,
                   std::uint8_t* levels, std::int32_t* degrees, Where where);

}  // namespace densitrace::cuda
