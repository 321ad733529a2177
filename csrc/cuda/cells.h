// Operands and results of the matrix units.
#pragma once

#include "grid.h"

namespace densitrace::cuda {

// Four words, read and written by one instruction.
struct alignas(16) Quad {
  std::uint32_t x[4];
};

// Numbers [16, 8] held by a warp, in the layout of an mma result. On the host one thread holds all.
template <typename Number>
struct Cells {
  static constexpr unsigned kRows = 16, kColumns = 8;
#ifdef __CUDACC__
  static constexpr unsigned kHeld = 4;       // per thread
  static constexpr unsigned kHeldOfRow = 2;  // neighbours in a row

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
