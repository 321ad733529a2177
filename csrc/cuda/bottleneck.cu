// The (max, min) product over levels: METHOD, section 4.
//
// result[b, t, i] = max over i <= j <= t of min(reach[b, t, j], levels[b, j, i]), 0 where i > t;
// all uint8 [batch, length, length]; entries above the diagonal are not read. T^3 / 6 pairs of a
// minimum and a maximum a sequence, T^2 bytes read twice and written once.
//
// Two ways, and which is faster on which GPU is to be measured:
//
// Blocks with the longest way between outputs and sources come first, so that none is left over at
// the end; those with sources after outputs are not there, and the others write their zeros.
//
// Packed. A matrix product in another algebra, blocked like one: a block of threads owns 64 outputs
// t and 64 sources i, walks over the nodes j between them 32 at a time, and each thread keeps 8 x 8
// results in registers. Two levels share a register, as the last bits of two numbers in half
// precision between 1 and 1.25: these compare as levels do, as whole numbers too. GPUs since sm_90
// have a minimum of pairs of 16 bits and a maximum of three operands, so that two nodes cost two
// minima and one maximum of pairs; older ones have minimum and maximum of pairs in half precision.
// For 2 nodes a thread loads 96 bytes from shared memory and does 96 (128) such operations. Levels
// are read as words of four, a tile ahead, and a permutation of bytes makes a pair; byte by byte
// where the diagonal or an edge runs through the tile, or rows begin anywhere.
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

// Pairs of a side of the outputs with one of the sources, those with the longest way between them
// first; sources come after no output, so that half of all pairs are left out.
struct Place {
  unsigned first, column;  // the first output, the first source

  DEVICE Place(unsigned block, unsigned length) {
    unsigned pairs = 1;  // with as long a way as the block's
    for (; block >= pairs; ++pairs) block -= pairs;
    column = block * kSide;
    first = column + ((length + kSide - 1) / kSide - pairs) * kSide;
  }
  // One past the nodes between them.
  DEVICE unsigned end(unsigned length) const {
    return first + kSide < length ? first + kSide : length;
  }
};

Blocks blocks_of(unsigned batch, unsigned length) {
  const unsigned sides = (length + kSide - 1) / kSide;
  return {batch, sides * (sides + 1) / 2};
}

// A thread's share of the zeros above the diagonal: where outputs are the block's sources.
template <unsigned kThreads>
DEVICE void clear_above(Byte* result, unsigned length, const Place& place, unsigned thread) {
  if (place.first == place.column) return;  // the diagonal: its block writes all of it
  for (unsigned i = thread; i < kSide * kSide; i += kThreads) {
    const unsigned t = place.column + i / kSide, s = place.first + i % kSide;
    if (s < length) result[std::uint64_t{t} * length + s] = 0;
  }
}

// ---- packed ------------------------------------------------------------------------------------

using Word = std::uint32_t;  // four levels

struct alignas(16) Quad {
  Pair pair[4];
};

#ifdef __CUDACC__

// Two of the bytes of a word as a pair; the other bytes of the pair are those of kNone.
DEVICE Pair pair_of(Word four, unsigned low, unsigned high) {
  return __byte_perm(four, kNone >> 24, 0x4040 | low | high << 8);
}
// The levels of two pairs.
DEVICE Word bytes_of(Pair low, Pair high) { return __byte_perm(low, high, 0x6420); }

#else

inline Pair pair_of(Word four, unsigned low, unsigned high) {
  return kNone | (four >> 8 * low & 0xFF) | (four >> 8 * high & 0xFF) << 16;
}
inline Word bytes_of(Pair low, Pair high) {
  const auto two = [](Pair pair) { return (pair & 0xFF) | (pair >> 8 & 0xFF00); };
  return two(low) | two(high) << 16;
}

#endif

// A tile of a matrix, of whose words, `across` a row, each thread takes some.
struct Operand {
  const Byte* matrix;
  unsigned length, row, column, across;
  bool whole;  // below the diagonal and inside, and its words may be read as such

  DEVICE Word word(unsigned at) const {
    const std::uint64_t from = std::uint64_t{row + at / across} * length;
    return *reinterpret_cast<const Word*>(matrix + from + column + at % across * 4);
  }
  DEVICE Word gathered(unsigned at) const {
    Word found = 0;
#pragma unroll
    for (unsigned i = 0; i < 4; ++i)
      found |= Word{entry(matrix, length, row + at / across, column + at % across * 4 + i)}
               << 8 * i;
    return found;
  }
};

struct Packed {
  const Byte *reach, *levels;
  Byte* result;
  unsigned length;
  bool words;  // rows begin at multiples of 4 bytes

  static constexpr unsigned kEach = 8;    // outputs, and sources, of a thread
  static constexpr unsigned kAcross = 8;  // threads along the sources
  static constexpr unsigned kThreads = 64;
  static constexpr unsigned kResident = 8;
  static constexpr unsigned kTurns = kSide * kNodes / 4 / kThreads;  // words of a thread

  struct Shared {
    Quad reach[kNodes][kSide / 4];   // [j, t], each level twice; see `swizzled`
    Quad levels[kNodes][kSide / 8];  // [j, i], two levels a pair
  };
  struct Own {
    Quad best[kEach];  // of each output, 8 sources
    Word reach[kTurns], levels[kTurns];
  };

  template <typename Block>
  DEVICE void operator()(Block& block) const {
    const std::uint64_t sequence = std::uint64_t{block.x} * length * length;
    const Place place(block.y, length);
    const unsigned end = place.end(length);
    block.each([&](unsigned thread, Own& own) {
#pragma unroll
      for (unsigned r = 0; r < kEach; ++r) own.best[r] = {kNone, kNone, kNone, kNone};
      fetch(reach_of(sequence, place, place.column), levels_of(sequence, place, place.column),
            thread, own);
      clear_above<kThreads>(result + sequence, length, place, thread);
    });
    for (unsigned node = place.column; node < end; node += kNodes) {
      const Operand left = reach_of(sequence, place, node);
      const Operand right = levels_of(sequence, place, node);
      block.each(
          [&](unsigned thread, Own& own) { spread(left, right, thread, own, block.shared); });
      block.each([&](unsigned thread, Own& own) {
        const unsigned next = node + kNodes;
        if (next < end)
          fetch(reach_of(sequence, place, next), levels_of(sequence, place, next), thread, own);
#pragma unroll 1
        for (unsigned j = 0; j < kNodes; j += 4) {
          add_nodes(block.shared, j, thread, own);
          add_nodes(block.shared, j + 2, thread, own);
        }
      });
    }
    block.each([&](unsigned thread, Own& own) {
      const unsigned t = place.first + thread / kAcross * kEach;
      const unsigned i = place.column + thread % kAcross * kEach;
#pragma unroll
      for (unsigned r = 0; r < kEach; ++r)
#pragma unroll
        for (unsigned c = 0; c < kEach; c += 4)
          if (t + r < length && i + c < length)
            write(result + sequence + std::uint64_t{t + r} * length, i + c,
                  bytes_of(own.best[r].pair[c / 2], own.best[r].pair[c / 2 + 1]));
    });
  }

 private:
  // Where the quad of outputs 4 q .. 4 q + 3 lies in the row of node j: a warp stores 8 quads of
  // nodes of 4 outputs at once, in 32 banks, and reads whole quads.
  static DEVICE unsigned swizzled(unsigned q, unsigned j) { return q ^ (j / 4); }

  // best <- max(best, min(reach, levels) of node j, the same of node j + 1).
  DEVICE void add_nodes(const Shared& shared, unsigned j, unsigned thread, Own& own) const {
    const unsigned row = thread / kAcross * (kEach / 4), column = thread % kAcross;
    const Quad one = shared.levels[j][column], other = shared.levels[j + 1][column];
#pragma unroll
    for (unsigned four = 0; four < kEach / 4; ++four) {
      const unsigned q = swizzled(row + four, j);
      const Quad at = shared.reach[j][q], next = shared.reach[j + 1][q];
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

  DEVICE Operand reach_of(std::uint64_t sequence, const Place& place, unsigned node) const {
    const bool below = place.first + kSide <= length && node + kNodes <= place.first + 1;
    return {reach + sequence, length, place.first, node, kNodes / 4, words && below};
  }
  DEVICE Operand levels_of(std::uint64_t sequence, const Place& place, unsigned node) const {
    const bool below = node + kNodes <= length && place.column + kSide <= node + 1;
    return {levels + sequence, length, node, place.column, kSide / 4, words && below};
  }
  // Which of an operand's words a thread takes: words of a row are next to one another.
  static DEVICE unsigned reach_word(unsigned thread, unsigned turn) {
    return thread + turn * kThreads;
  }
  static DEVICE unsigned levels_word(unsigned thread, unsigned turn) {
    return (thread + turn / 2 * kThreads) * 2 + turn % 2;
  }

  // A tile's words, on their way while the one before is worked on.
  DEVICE void fetch(const Operand& left, const Operand& right, unsigned thread, Own& own) const {
    if (left.whole)
#pragma unroll
      for (unsigned turn = 0; turn < kTurns; ++turn)
        own.reach[turn] = left.word(reach_word(thread, turn));
    if (right.whole)
#pragma unroll
      for (unsigned turn = 0; turn < kTurns; ++turn)
        own.levels[turn] = right.word(levels_word(thread, turn));
  }

  DEVICE void spread(const Operand& left, const Operand& right, unsigned thread, const Own& own,
                     Shared& shared) const {
    if (left.whole) {
#pragma unroll
      for (unsigned turn = 0; turn < kTurns; ++turn)
        put_reach(own.reach[turn], reach_word(thread, turn), shared);
    } else {
#pragma unroll 1
      for (unsigned turn = 0; turn < kTurns; ++turn) {
        const unsigned at = reach_word(thread, turn);
        put_reach(left.gathered(at), at, shared);
      }
    }
    if (right.whole) {
#pragma unroll
      for (unsigned turn = 0; turn < kTurns; ++turn)
        put_levels(own.levels[turn], levels_word(thread, turn), shared);
    } else {
#pragma unroll 1
      for (unsigned turn = 0; turn < kTurns; ++turn) {
        const unsigned at = levels_word(thread, turn);
        put_levels(right.gathered(at), at, shared);
      }
    }
  }

  static DEVICE void put_reach(Word four, unsigned at, Shared& shared) {
    const unsigned t = at / (kNodes / 4), j = at % (kNodes / 4) * 4;
#pragma unroll
    for (unsigned i = 0; i < 4; ++i)
      shared.reach[j + i][swizzled(t / 4, j)].pair[t % 4] = pair_of(four, i, i);
  }
  static DEVICE void put_levels(Word four, unsigned at, Shared& shared) {
    Quad& quad = shared.levels[at / (kSide / 4)][at % (kSide / 4) / 2];
    quad.pair[at % 2 * 2] = pair_of(four, 0, 1);
    quad.pair[at % 2 * 2 + 1] = pair_of(four, 2, 3);
  }

  DEVICE void write(Byte* row, unsigned i, Word found) const {
    if (words) {
      *reinterpret_cast<Word*>(row + i) = found;
      return;
    }
#pragma unroll
    for (unsigned c = 0; c < 4; ++c)
      if (i + c < length) row[i + c] = static_cast<Byte>(found >> 8 * c);
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
  static constexpr unsigned kResident = 3;
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
    const std::uint64_t sequence = std::uint64_t{block.x} * length * length;
    const Place place(block.y, length);
    const unsigned end = place.end(length), highest = *most;
    Shared& shared = block.shared;
    block.each([&](unsigned thread, Own&) {
      clear_above<kThreads>(result + sequence, length, place, thread);
    });
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
  const auto address = [](const void* of) { return reinterpret_cast<std::uintptr_t>(of); };
  const bool words = (length | address(reach) | address(levels) | address(result)) % 4 == 0;
  launch(Packed{reach, levels, result, length, words}, blocks_of(batch, length), where);
}

void bottleneck_boolean(const std::uint8_t* reach, const std::uint8_t* levels,
                        const std::uint8_t* most, std::uint8_t* result, unsigned batch,
                        unsigned length, Where where) {
  launch(Boolean{reach, levels, most, result, length}, blocks_of(batch, length), where);
}

}  // namespace densitrace::cuda
