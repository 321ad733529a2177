// What the matrix units are given and what they leave.
#pragma once

#include "grid.h"

namespace densitrace::cuda {

// Four words, read and written at once.
struct alignas(16) Quad {
  std::uint32_t x[4];
};

// Numbers [16, 8] that a warp holds together, laid out as a product leaves them.
template <typename Number>
struct Cells {
  static constexpr unsigned kRows = 16, kColumns = 8;
#ifdef __CUDACC__
  static constexpr unsigned kHeld = 4;       // by a thread
  static constexpr unsigned kHeldOfRow = 2;  // one after another

  static DEVICE unsigned row(unsigned i) { return threadIdx.x % kWarp / 4 + i / 2 * 8; }
  static DEVICE unsigned column(unsigned i) { return threadIdx.x % 4 * 2 + i % 2; }
#else
  static constexpr unsigned kHeld = kRows * kColumns, kHeldOfRow = kColumns;

  static unsigned row(unsigned i) { return i / kColumns; }
  static unsigned column(unsigned i) { return i % kColumns; }
#endif

  Number held[kHeld];
};

}  // namespace densitrace::cuda
