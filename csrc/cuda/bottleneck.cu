// The (max, min) product over levels: METHOD, section 4.
//
// result[b, t, i] = max over i <= j <= t of min(reach[b, t, j], levels[b, j, i]), 0 where i > t;
// all uint8 [batch, length, length]; entries above the diagonal are not read. T^3 / 6 pairs of a
// minimum and a maximum a sequence, T^2 bytes read twice and written once.
//
// Two ways, and which is faster on which GPU is to be measured:
//
// Packed. A matrix product in another algebra, blocked like one: a block of threads owns 64 outputs
// t and 64 sources i, walks over the nodes j between them 32 at a time, and each thread keeps 8 x 8
// results in registers. Two levels share a register, as the last bits of two numbers in half
// precision between 1 and 1.25: these compare as levels do, as whole numbers too. GPUs since sm_90
// have a minimum of pairs of 16 bits and a maximum of three operands, so that two nodes cost two
// minima and one maximum of pairs; older ones have minimum and maximum of pairs in half precision.
// For 2 nodes a thread loads 96 bytes from shared memory and does 96 (128) such operations. Threads
// of a warp read a row of it in runs of 16 bytes; the rows of `reach` are padded so that storing
// them transposed has no bank conflicts.
//
// Boolean. The result is the number of levels k >= 1 for which some j has reach >= k and levels >=
// k: a product of 0 / 1 matrices on the tensor cores for each k up to the highest, T^3 / 3
// multiplications with additions of int8 a level. Sums are at most 32 x 2^26, far from overflow.

#include "grid.h"

#ifdef __CUDACC__
#include <mma.h>
#endif

namespace densitrace::cuda {
namespace {

using Byte = std::uint8_t;
using Pair = std::uint32_t;  // two levels: see above

constexpr unsigned kSide = 64;   // outputs, and sources, of a block
constexpr unsigned kNodes = 32;  // nodes of a tile

constexpr Pair kNone = 0x3C003C00;  // two levels 0: 1.0 in half precision

#ifdef __CUDACC__

#if __CUDA_ARCH__ >= 900
DEVICE Pair smaller(Pair a, Pair b) { return __vminu2(a, b); }
DEVICE Pair largest(Pair a, Pair b, Pair c) { return __vimax3_u16x2(a, b, c); }
#else
DEVICE Pair smaller(Pair a, Pair b) {
  Pair found;
  asm("min.f16x2 %0, %1, %2;" : "=r"(found) : "r"(a), "r"(b));
  return found;
}
DEVICE Pair larger(Pair a, Pair b) {
  Pair found;
  asm("max.f16x2 %0, %1, %2;" : "=r"(found) : "r"(a), "r"(b));
  return found;
}
DEVICE Pair largest(Pair a, Pair b, Pair c) { return larger(a, larger(b, c)); }
#endif

#else

inline Pair smaller(Pair a, Pair b) {
  const Pair low = (a & 0xFFFF) < (b & 0xFFFF) ? a : b, high = a >> 16 < b >> 16 ? a : b;
  return (high & 0xFFFF0000) | (low & 0xFFFF);
}
inline Pair larger(Pair a, Pair b) { return a ^ b ^ smaller(a, b); }
inline Pair largest(Pair a, Pair b, Pair c) { return larger(a, larger(b, c)); }

#endif

// An entry of a lower triangular matrix, 0 above the diagonal and outside.
DEVICE Byte entry(const Byte* matrix, unsigned length, unsigned row, unsigned column) {
  return row < length && column <= row ? matrix[std::uint64_t{row} * length + column] : Byte{0};
}

// The outputs and sources of a block; the blocks with the longest way between them come first.
struct Place {
  unsigned first, column;

  DEVICE Place(unsigned block, unsigned length) {
    const unsigned sides = (length + kSide - 1) / kSide;
    first = (sides - 1 - block / sides) * kSide;
    column = block % sides * kSide;
  }
  // One past the nodes between them; `column` where there are none.
  DEVICE unsigned end(unsigned length) const {
    const unsigned last = first + kSide < length ? first + kSide : length;
    return last > column ? last : column;
  }
};

Blocks blocks_of(unsigned batch, unsigned length) {
  const unsigned sides = (length + kSide - 1) / kSide;
  return {sides * sides, batch};
}

// ---- packed ------------------------------------------------------------------------------------

struct alignas(16) Quad {
  Pair pair[4];
};

struct Packed {
  const Byte *reach, *levels;
  Byte* result;
  unsigned length;

  static constexpr unsigned kEach = 8;    // outputs, and sources, of a thread
  static constexpr unsigned kAcross = 8;  // threads along the sources
  static constexpr unsigned kThreads = 64;
  static constexpr unsigned kStride = (kSide + 4) / 4;  // quads

  struct Shared {
    Quad reach[kNodes][kStride];     // [j, t], each level twice
    Quad levels[kNodes][kSide / 8];  // [j, i], two levels a pair
  };
  struct Own {
    Quad best[kEach];  // of each output, 8 sources
  };

  template <typename Block>
  DEVICE void operator()(Block& block) const {
    const std::uint64_t sequence = std::uint64_t{block.y} * length * length;
    const Place place(block.x, length);
    block.each([&](unsigned, Own& own) {
#pragma unroll
      for (unsigned r = 0; r < kEach; ++r) own.best[r] = {kNone, kNone, kNone, kNone};
    });
    for (unsigned node = place.column; node < place.end(length); node += kNodes) {
      block.each([&](unsigned thread, Own&) {
        load_reach(reach + sequence, place.first, node, thread, block.shared);
        load_levels(levels + sequence, node, place.column, thread, block.shared);
      });
      block.each([&](unsigned thread, Own& own) {
        const unsigned row = thread / kAcross * (kEach / 4), column = thread % kAcross;
#pragma unroll 2
        for (unsigned j = 0; j < kNodes; j += 2) add_nodes(block.shared, j, row, column, own);
      });
    }
    block.each([&](unsigned thread, Own& own) {
      const unsigned t = place.first + thread / kAcross * kEach;
      const unsigned i = place.column + thread % kAcross * kEach;
#pragma unroll
      for (unsigned r = 0; r < kEach; ++r)
#pragma unroll
        for (unsigned c = 0; c < kEach; ++c)
          if (t + r < length && i + c < length)
            result[sequence + std::uint64_t{t + r} * length + i + c] =
                static_cast<Byte>(own.best[r].pair[c / 2] >> c % 2 * 16);
    });
  }

 private:
  // best <- max(best, min(reach, levels) of node j, the same of node j + 1).
  DEVICE void add_nodes(const Shared& shared, unsigned j, unsigned row, unsigned column,
                        Own& own) const {
    const Quad one = shared.levels[j][column], other = shared.levels[j + 1][column];
#pragma unroll
    for (unsigned four = 0; four < kEach / 4; ++four) {
      const Quad at = shared.reach[j][row + four], next = shared.reach[j + 1][row + four];
#pragma unroll
      for (unsigned r = 0; r < 4; ++r)
#pragma unroll
        for (unsigned c = 0; c < 4; ++c) {
          Pair& best = own.best[four * 4 + r].pair[c];
          best =
              largest(best, smaller(at.pair[r], one.pair[c]), smaller(next.pair[r], other.pair[c]));
        }
    }
  }

  // A warp stores 8 nodes of 4 outputs: in 32 banks.
  DEVICE void load_reach(const Byte* matrix, unsigned first, unsigned node, unsigned thread,
                         Shared& shared) const {
#pragma unroll 4
    for (unsigned i = thread; i < kSide * kNodes; i += kThreads) {
      const unsigned lane = i % kWarp, run = i / kWarp;
      const unsigned j = lane / 4 + run % (kNodes / 8) * 8, t = lane % 4 + run / (kNodes / 8) * 4;
      shared.reach[j][t / 4].pair[t % 4] =
          kNone + 0x10001u * entry(matrix, length, first + t, node + j);
    }
  }

  DEVICE void load_levels(const Byte* matrix, unsigned node, unsigned first, unsigned thread,
                          Shared& shared) const {
#pragma unroll 4
    for (unsigned i = thread; i < kNodes * kSide / 2; i += kThreads) {
      const unsigned j = i / (kSide / 2), pair = i % (kSide / 2), column = first + 2 * pair;
      const Pair low = entry(matrix, length, node + j, column);
      const Pair high = entry(matrix, length, node + j, column + 1);
      shared.levels[j][pair / 4].pair[pair % 4] = kNone + (low | high << 16);
    }
  }
};

// ---- boolean -----------------------------------------------------------------------------------

constexpr unsigned kCell = 16;  // outputs, nodes and sources of one product on the tensor cores

// Integers [16, 16], held by a warp together.
struct Cells {
#ifdef __CUDACC__
  template <typename Use, typename... Layout>
  using Fragment =
      nvcuda::wmma::fragment<Use, kCell, kCell, kCell,
                             std::conditional_t<sizeof...(Layout) == 0, int, signed char>,
                             Layout...>;
  Fragment<nvcuda::wmma::accumulator> held;
  static constexpr unsigned kHeld = 8;  // by a thread

  // + a [16, 16] b [16, 16], each with rows of 16 bytes.
  DEVICE void multiply_add(const signed char* a, const signed char* b) {
    Fragment<nvcuda::wmma::matrix_a, nvcuda::wmma::row_major> left;
    Fragment<nvcuda::wmma::matrix_b, nvcuda::wmma::row_major> right;
    nvcuda::wmma::load_matrix_sync(left, a, kCell);
    nvcuda::wmma::load_matrix_sync(right, b, kCell);
    nvcuda::wmma::mma_sync(held, left, right, held);
  }
  DEVICE int& operator[](unsigned i) { return held.x[i]; }
  DEVICE void store(int* to, unsigned stride) const {
    nvcuda::wmma::store_matrix_sync(to, held, stride, nvcuda::wmma::mem_row_major);
  }
#else
  int held[kCell * kCell];
  static constexpr unsigned kHeld = kCell * kCell;

  void multiply_add(const signed char* a, const signed char* b) {
    for (unsigned i = 0; i < kHeld; ++i)
      for (unsigned j = 0; j < kCell; ++j)
        held[i] += a[i / kCell * kCell + j] * b[j * kCell + i % kCell];
  }
  int& operator[](unsigned i) { return held[i]; }
  void store(int* to, unsigned stride) const {
    for (unsigned i = 0; i < kHeld; ++i) to[i / kCell * stride + i % kCell] = held[i];
  }
#endif
};

struct Boolean {
  const Byte *reach, *levels, *most;  // most [1]: the highest level
  Byte* result;
  unsigned length;

  static constexpr unsigned kThreads = 128;  // warps own 32 outputs and 32 sources
  static constexpr unsigned kTiles = 2;

  struct Shared {  // in panels 16 wide: a product reads whole rows of them
    alignas(32) signed char reach[kNodes / kCell][kSide][kCell];   // [.., t, j]
    alignas(32) signed char levels[kSide / kCell][kNodes][kCell];  // [.., j, i]
    alignas(32) int counts[kSide][kSide];
  };
  struct Own {
    Cells sum[kTiles][kTiles], count[kTiles][kTiles];
  };

  template <typename Block>
  DEVICE void operator()(Block& block) const {
    const std::uint64_t sequence = std::uint64_t{block.y} * length * length;
    const Place place(block.x, length);
    const unsigned end = place.end(length), highest = *most;
    Shared& shared = block.shared;
    block.each_warp([&](unsigned, Own& own) {
      for_cells([&](unsigned r, unsigned c, unsigned i) { own.count[r][c][i] = 0; });
    });
    for (unsigned k = 1; k <= highest; ++k) {
      block.each_warp([&](unsigned, Own& own) {
        for_cells([&](unsigned r, unsigned c, unsigned i) { own.sum[r][c][i] = 0; });
      });
      for (unsigned node = place.column; node < end; node += kNodes) {
        block.each([&](unsigned thread, Own&) {
          for (unsigned i = thread; i < kSide * kNodes; i += kThreads) {
            const unsigned t = i / kNodes, j = i % kNodes;
            shared.reach[j / kCell][t][j % kCell] =
                entry(reach + sequence, length, place.first + t, node + j) >= k;
          }
          for (unsigned i = thread; i < kNodes * kSide; i += kThreads) {
            const unsigned j = i / kSide, s = i % kSide;
            shared.levels[s / kCell][j][s % kCell] =
                entry(levels + sequence, length, node + j, place.column + s) >= k;
          }
        });
        block.each_warp([&](unsigned warp, Own& own) {
          const unsigned row = warp / 2 * kTiles, column = warp % 2 * kTiles;
#pragma unroll
          for (unsigned j = 0; j < kNodes / kCell; ++j)
#pragma unroll
            for (unsigned r = 0; r < kTiles; ++r)
#pragma unroll
              for (unsigned c = 0; c < kTiles; ++c)
                own.sum[r][c].multiply_add(shared.reach[j][(row + r) * kCell],
                                           shared.levels[column + c][j * kCell]);
        });
      }
      block.each_warp([&](unsigned, Own& own) {
        for_cells([&](unsigned r, unsigned c, unsigned i) {
          own.count[r][c][i] += own.sum[r][c][i] > 0;
        });
      });
    }
    block.each_warp([&](unsigned warp, Own& own) {
      const unsigned row = warp / 2 * kTiles, column = warp % 2 * kTiles;
#pragma unroll
      for (unsigned r = 0; r < kTiles; ++r)
#pragma unroll
        for (unsigned c = 0; c < kTiles; ++c)
          own.count[r][c].store(&shared.counts[(row + r) * kCell][(column + c) * kCell], kSide);
    });
    block.each([&](unsigned thread, Own&) {
      for (unsigned i = thread; i < kSide * kSide; i += kThreads) {
        const unsigned t = place.first + i / kSide, s = place.column + i % kSide;
        if (t < length && s < length)
          result[sequence + std::uint64_t{t} * length + s] =
              static_cast<Byte>(shared.counts[i / kSide][i % kSide]);
      }
    });
  }

 private:
  template <typename Cell>
  DEVICE void for_cells(const Cell& cell) const {
#pragma unroll
    for (unsigned r = 0; r < kTiles; ++r)
#pragma unroll
      for (unsigned c = 0; c < kTiles; ++c)
#pragma unroll
        for (unsigned i = 0; i < Cells::kHeld; ++i) cell(r, c, i);
  }
};

}  // namespace

void bottleneck(const std::uint8_t* reach, const std::uint8_t* levels, std::uint8_t* result,
                unsigned batch, unsigned length, Where where) {
  launch(Packed{reach, levels, result, length}, blocks_of(batch, length), where);
}

void bottleneck_boolean(const std::uint8_t* reach, const std::uint8_t* levels,
                        const std::uint8_t* most, std::uint8_t* result, unsigned batch,
                        unsigned length, Where where) {
  launch(Boolean{reach, levels, most, result, length}, blocks_of(batch, length), where);
}

}  // namespace densitrace::cuda
