// The (max, min) product over levels: METHOD, section 4.
//
// result[b, t, i] = max over i <= j <= t of min(reach[b, t, j], levels[b, j, i]), 0 where i > t;
// all uint8 [batch, length, length]; entries above the diagonal are not read. T^3 / 6 pairs of a
// minimum and a maximum a sequence, T^2 bytes read twice and written once.
//
// Blocks of threads with the most nodes between outputs and sources come first, so that no long one
// runs alone at the end. Blocks whose sources all come after their outputs are not launched; the
// others write their zeros.
//
// There are two methods; which one is faster depends on the GPU and must be measured.
//
// Packed. A matrix product in another algebra, blocked like one: a block of threads owns 64 outputs
// t and 64 sources i and loops over the nodes j between them, 32 at a time; each thread keeps 4 x 8
// results in registers. Its four warps take all four schedulers of a multiprocessor: of a single
// sequence the longest blocks decide, and often run alone. Two levels share a register, as the low
// bits of two half-precision numbers between 1 and 1.25, which compare like the levels, also as
// integers. GPUs from sm_90 on have a minimum of 16-bit pairs and a maximum of three operands, so
// that two nodes cost two minima and one maximum of pairs; older GPUs use the minimum and maximum
// of half-precision pairs. For two nodes a thread loads 64 bytes from shared memory and does 48
// (64) such operations. Levels are read as words of four, one tile ahead, and a byte permutation
// makes pairs of them; they are read byte by byte where the diagonal or the matrix's edge crosses
// the tile, or rows are not aligned to words.
//
// Boolean. The result is the number of levels k >= 1 for which some j has reach >= k and levels >=
// k: for each k up to the highest a product of bit matrices, in which one operation of the tensor
// cores, AND with popcount, covers 256 nodes. First both maps are split into bit planes, one per
// level, in which a word holds 32 nodes and words of consecutive rows are adjacent: T^2 / 4 bytes a
// level are written. Then a block of threads loops over the planes and the nodes of each, 256 at a
// time, loading one step ahead: T^3 / 6 ANDs of bits a level. Only the device knows the number of
// levels, so planes are made for a few levels at a time, as many as the caller has memory for, and
// launches beyond the highest level return at once.

#include "cells.h"
#include "grid.h"

namespace densitrace::cuda {
namespace {

using Byte = std::uint8_t;
using Pair = std::uint32_t;  // two levels: see above
using Word = std::uint32_t;  // four levels, or 32 bits

constexpr unsigned kSide = 64;   // outputs, and sources, of a block
constexpr unsigned kNodes = 32;  // nodes of a tile

constexpr Pair kNone = 0x3C003C00;  // two levels 0, each 1.0 in half precision

#ifdef __CUDACC__

#if __CUDA_ARCH__ >= 900
DEVICE Pair smaller(Pair a, Pair b) { return __vminu2(a, b); }
DEVICE Pair largest(Pair a, Pair b, Pair c) { return __vimax3_u16x2(a, b, c); }
#else
DEVICE Pair smaller(Pair a, Pair b) {
  Pair result;
  asm("min.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
}
DEVICE Pair larger(Pair a, Pair b) {
  Pair result;
  asm("max.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
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

// An entry of a lower triangular matrix; 0 above the diagonal and outside.
DEVICE Byte entry(const Byte* matrix, unsigned length, unsigned row, unsigned column) {
  return row < length && column <= row ? matrix[std::uint64_t{row} * length + column] : Byte{0};
}

// The outputs and sources of a block, kSide of each. Those farthest apart come first; pairs whose
// sources come after the outputs, half of all, are left out.
struct Place {
  unsigned first, column;  // the first output, the first source

  DEVICE Place(unsigned block, unsigned length) {
    unsigned pairs = 1;  // number of pairs with the same distance
    for (; block >= pairs; ++pairs) block -= pairs;
    column = block * kSide;
    first = column + ((length + kSide - 1) / kSide - pairs) * kSide;
  }
  // One past the last node between them.
  DEVICE unsigned end(unsigned length) const {
    return first + kSide < length ? first + kSide : length;
  }
};

Blocks blocks_of(unsigned batch, unsigned length) {
  const unsigned sides = (length + kSide - 1) / kSide;
  return {batch, sides * (sides + 1) / 2};
}

// Writes a thread's share of the zeros above the diagonal: the block's mirror image.
template <unsigned kThreads>
DEVICE void clear_above(Byte* result, unsigned length, const Place& place, unsigned thread) {
  if (place.first == place.column) return;  // blocks on the diagonal write their own zeros
  for (unsigned i = thread; i < kSide * kSide; i += kThreads) {
    const unsigned t = place.column + i / kSide, s = place.first + i % kSide;
    if (s < length) result[std::uint64_t{t} * length + s] = 0;
  }
}

// ---- packed ------------------------------------------------------------------------------------

#ifdef __CUDACC__

// Two bytes of a word as a pair, whose other bytes are those of kNone.
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

// A tile of a matrix as words, `across` per row, which the threads divide among themselves.
struct Operand {
  const Byte* matrix;
  unsigned length, row, column, across;
  bool whole;  // all below the diagonal and inside, with words aligned

  DEVICE Word word(unsigned at) const {
    const std::uint64_t from = std::uint64_t{row + at / across} * length;
    return *reinterpret_cast<const Word*>(matrix + from + column + at % across * 4);
  }
  DEVICE Word gathered(unsigned at) const {
    Word word = 0;
#pragma unroll
    for (unsigned i = 0; i < 4; ++i)
      word |= Word{entry(matrix, length, row + at / across, column + at % across * 4 + i)} << 8 * i;
    return word;
  }
};

struct Packed {
  const Byte *reach, *levels;
  Byte* result;
  unsigned length;
  bool words;  // whether rows are aligned to words

  static constexpr unsigned kOutputs = 4, kSources = 8;  // of a thread
  static constexpr unsigned kAcross = kSide / kSources;  // threads along the sources
  static constexpr unsigned kThreads = kSide / kOutputs * kAcross;
  static constexpr unsigned kResident = 6;
  static constexpr unsigned kTurns = kSide * kNodes / 4 / kThreads;  // words of a thread

  struct Shared {
    Quad reach[kNodes][kSide / 4];   // [j, t], each level twice; see `swizzled`
    Quad levels[kNodes][kSide / 8];  // [j, i], two levels a pair
  };
  struct Own {
    Quad best[kOutputs];  // of each output, 8 sources
    Word reach[kTurns], levels[kTurns];
  };

  template <typename Block>
  DEVICE void operator()(Block& block) const {
    const std::uint64_t sequence = std::uint64_t{block.x} * length * length;
    const Place place(block.y, length);
    const unsigned end = place.end(length);
    block.each([&](unsigned thread, Own& own) {
#pragma unroll
      for (unsigned r = 0; r < kOutputs; ++r) own.best[r] = {kNone, kNone, kNone, kNone};
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
      const unsigned t = place.first + thread / kAcross * kOutputs;
      const unsigned i = place.column + thread % kAcross * kSources;
#pragma unroll
      for (unsigned r = 0; r < kOutputs; ++r)
#pragma unroll
        for (unsigned c = 0; c < kSources; c += 4)
          if (t + r < length && i + c < length)
            write(result + sequence + std::uint64_t{t + r} * length, i + c,
                  bytes_of(own.best[r].x[c / 2], own.best[r].x[c / 2 + 1]));
    });
  }

 private:
  // Index of the quad of outputs 4 q .. 4 q + 3 in the row of node j. When a warp stores the levels
  // of 4 outputs at 8 groups of 4 nodes, they fall into 32 different banks; reads are whole quads.
  static DEVICE unsigned swizzled(unsigned q, unsigned j) { return q ^ (j / 4); }

  // best <- max(best, min(reach, levels) at node j, min(reach, levels) at node j + 1).
  DEVICE void add_nodes(const Shared& shared, unsigned j, unsigned thread, Own& own) const {
    const unsigned q = swizzled(thread / kAcross, j), column = thread % kAcross;
    const Quad at = shared.reach[j][q], next = shared.reach[j + 1][q];
    const Quad one = shared.levels[j][column], other = shared.levels[j + 1][column];
#pragma unroll
    for (unsigned r = 0; r < kOutputs; ++r)
#pragma unroll
      for (unsigned c = 0; c < kSources / 2; ++c) {
        Pair& best = own.best[r].x[c];
        best = largest(best, smaller(at.x[r], one.x[c]), smaller(next.x[r], other.x[c]));
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
  // Index of the word of an operand that a thread takes in a turn; a row's words are adjacent.
  static DEVICE unsigned reach_word(unsigned thread, unsigned turn) {
    return thread + turn * kThreads;
  }
  static DEVICE unsigned levels_word(unsigned thread, unsigned turn) {
    return (thread + turn / 2 * kThreads) * 2 + turn % 2;
  }

  // Loads a tile's words into registers while the previous tile is computed on.
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
      shared.reach[j + i][swizzled(t / 4, j)].x[t % 4] = pair_of(four, i, i);
  }
  static DEVICE void put_levels(Word four, unsigned at, Shared& shared) {
    Quad& quad = shared.levels[at / (kSide / 4)][at % (kSide / 4) / 2];
    quad.x[at % 2 * 2] = pair_of(four, 0, 1);
    quad.x[at % 2 * 2 + 1] = pair_of(four, 2, 3);
  }

  DEVICE void write(Byte* row, unsigned i, Word word) const {
    if (words) {
      *reinterpret_cast<Word*>(row + i) = word;
      return;
    }
#pragma unroll
    for (unsigned c = 0; c < 4; ++c)
      if (i + c < length) row[i + c] = static_cast<Byte>(word >> 8 * c);
  }
};

// ---- boolean -----------------------------------------------------------------------------------

constexpr unsigned kBits = 32;                 // of a word
constexpr unsigned kStepBits = 256;            // of an operation of the tensor cores
constexpr unsigned kStep = kStepBits / kBits;  // words of a step
constexpr unsigned kMostLevels = 255;

// Layout of the planes: [level, reach or levels, sequence, word, row]. Words are padded to whole
// steps and rows to whole sides, with zeros.
struct Layout {
  unsigned batch, words, rows;

  DEVICE std::uint64_t map() const { return std::uint64_t{words} * rows; }
  DEVICE std::uint64_t level() const { return 2 * batch * map(); }
  // Offset of a sequence's map at a level, counted from 0.
  DEVICE std::uint64_t at(unsigned level_index, unsigned which, unsigned b) const {
    return level_index * level() + (std::uint64_t{which} * batch + b) * map();
  }
};

// Levels first + 1 .. first + count, as far as they exist.
struct Range {
  const Byte* highest;
  unsigned first, count;

  DEVICE unsigned here() const {
    const unsigned last = *highest;
    if (last <= first) return 0;
    return last - first < count ? last - first : count;
  }
};

// A thread makes one word of every plane.
struct Planes {
  const Byte *reach, *levels;
  Word* planes;
  Layout layout;
  Range range;
  unsigned length;
  bool words;  // whether rows of `reach` are aligned to words

  static constexpr unsigned kThreads = kSide;
  static constexpr unsigned kResident = 8;
  struct Shared {};
  struct Own {};

  template <typename Block>
  DEVICE void operator()(Block& block) const {
    const unsigned which = block.z / layout.batch, b = block.z % layout.batch;
    const unsigned here = range.here();
    if (here == 0) return;
    const std::uint64_t sequence = std::uint64_t{b} * length * length;
    block.each([&](unsigned thread, Own&) {
      const unsigned row = block.x * kThreads + thread, node = block.y * kBits;
      Byte level[kBits];
#pragma unroll
      for (unsigned i = 0; i < kBits; i += 4) {
        Word word = 0;
        if (which == 0)
          word = four(reach + sequence, row, node + i);
        else
#pragma unroll
          for (unsigned j = 0; j < 4; ++j)
            word |= Word{entry(levels + sequence, length, node + i + j, row)} << 8 * j;
#pragma unroll
        for (unsigned j = 0; j < 4; ++j) level[i + j] = static_cast<Byte>(word >> 8 * j);
      }
      const std::uint64_t to = std::uint64_t{block.y} * layout.rows + row;
      for (unsigned k = 0; k < here; ++k) {
        Word bits = 0;
#pragma unroll
        for (unsigned i = 0; i < kBits; ++i) bits |= Word{level[i] > range.first + k} << i;
        planes[layout.at(k, which, b) + to] = bits;
      }
    });
  }

 private:
  DEVICE Word four(const Byte* matrix, unsigned row, unsigned column) const {
    const bool whole = words && row < length && column + 3 <= row;
    const Operand one{matrix, length, row, column, 1, whole};
    return whole ? one.word(0) : one.gathered(0);
  }
};

// Words of 64 rows, padded so that the tensor cores' reads, 4 words of 8 rows, fall into 32 banks.
struct Bits {
  Quad quads[kStep][(kSide + 8) / 4];

  DEVICE Word at(unsigned word, unsigned row) const { return quads[word][row / 4].x[row % 4]; }
};

struct Counts : Cells<int> {
#ifdef __CUDACC__
  // Adds the numbers of bits that rows of `left` from `row` on share with rows of `right` from
  // `column` on.
  DEVICE void multiply_add(const Bits& left, unsigned row, const Bits& right, unsigned column) {
    const unsigned eighth = threadIdx.x % kWarp / 4, word = threadIdx.x % 4;
    const Word a[4] = {left.at(word, row + eighth), left.at(word, row + eighth + 8),
                       left.at(word + 4, row + eighth), left.at(word + 4, row + eighth + 8)};
    const Word b[2] = {right.at(word, column + eighth), right.at(word + 4, column + eighth)};
    asm("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(held[0]), "+r"(held[1]), "+r"(held[2]), "+r"(held[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#else
  void multiply_add(const Bits& left, unsigned first, const Bits& right, unsigned second) {
    for (unsigned i = 0; i < kHeld; ++i)
      for (unsigned word = 0; word < kStep; ++word)
        held[i] +=
            __builtin_popcount(left.at(word, first + row(i)) & right.at(word, second + column(i)));
  }
#endif
};

struct Boolean {
  const Word* planes;
  Byte* result;
  Layout layout;
  Range range;
  unsigned length;

  static constexpr unsigned kThreads = 128;  // warps own 32 outputs and 32 sources
  static constexpr unsigned kResident = 4;
  static constexpr unsigned kDown = 32 / Counts::kRows, kAcross = 32 / Counts::kColumns;

  struct Shared {
    Bits reach, levels;
  };
  struct Own {
    Quad reach, levels;  // of the next step
    Counts sum[kDown][kAcross];
    int count[kDown][kAcross][Counts::kHeld];
  };

  template <typename Block>
  DEVICE void operator()(Block& block) const {
    const unsigned b = block.x, here = range.here();
    if (here == 0 && range.first != 0) return;
    const std::uint64_t sequence = std::uint64_t{b} * length * length;
    const Place place(block.y, length);
    const unsigned begin = place.column / kStepBits;
    const unsigned steps = (place.end(length) + kStepBits - 1) / kStepBits - begin;
    Shared& shared = block.shared;
    block.each([&](unsigned thread, Own& own) {
      if (here != 0) fetch(0, begin, b, place, thread, own);
      if (range.first == 0) clear_above<kThreads>(result + sequence, length, place, thread);
    });
    block.each_warp([&](unsigned, Own& own) {
      for_cells([&](unsigned r, unsigned c, unsigned i) {
        own.sum[r][c].held[i] = own.count[r][c][i] = 0;
      });
    });
    for (unsigned turn = 0; turn < here * steps; ++turn) {
      const unsigned next = turn + 1;
      block.each([&](unsigned thread, Own& own) {
        const unsigned word = thread / (kSide / 4), quad = thread % (kSide / 4);
        shared.reach.quads[word][quad] = own.reach;
        shared.levels.quads[word][quad] = own.levels;
        if (next < here * steps) fetch(next / steps, begin + next % steps, b, place, thread, own);
      });
      block.each_warp([&](unsigned warp, Own& own) {
        const unsigned row = warp / 2 * 32, column = warp % 2 * 32;
#pragma unroll
        for (unsigned r = 0; r < kDown; ++r)
#pragma unroll
          for (unsigned c = 0; c < kAcross; ++c)
            own.sum[r][c].multiply_add(shared.reach, row + r * Counts::kRows, shared.levels,
                                       column + c * Counts::kColumns);
        if (next % steps != 0) return;  // more steps of this level follow
        for_cells([&](unsigned r, unsigned c, unsigned i) {
          own.count[r][c][i] += own.sum[r][c].held[i] > 0;
          own.sum[r][c].held[i] = 0;
        });
      });
    }
    block.each_warp([&](unsigned warp, Own& own) {
      for_cells([&](unsigned r, unsigned c, unsigned i) {
        const unsigned t = place.first + warp / 2 * 32 + r * Counts::kRows + Counts::row(i);
        const unsigned s = place.column + warp % 2 * 32 + c * Counts::kColumns + Counts::column(i);
        if (t >= length || s >= length) return;
        Byte& to = result[sequence + std::uint64_t{t} * length + s];
        to = static_cast<Byte>(own.count[r][c][i] + (range.first == 0 ? 0 : to));
      });
    });
  }

 private:
  // Loads a thread's quad of a step from each map: 16 quads of rows per word.
  DEVICE void fetch(unsigned level, unsigned step, unsigned b, const Place& place, unsigned thread,
                    Own& own) const {
    static_assert(kThreads == kStep * kSide / 4);
    const std::uint64_t word = step * kStep + thread / (kSide / 4);
    const unsigned row = thread % (kSide / 4) * 4;
    const Word* from = planes + word * layout.rows + row;
    own.reach = *reinterpret_cast<const Quad*>(from + layout.at(level, 0, b) + place.first);
    own.levels = *reinterpret_cast<const Quad*>(from + layout.at(level, 1, b) + place.column);
  }

  template <typename Cell>
  DEVICE void for_cells(const Cell& cell) const {
#pragma unroll
    for (unsigned r = 0; r < kDown; ++r)
#pragma unroll
      for (unsigned c = 0; c < kAcross; ++c)
#pragma unroll
        for (unsigned i = 0; i < Counts::kHeld; ++i) cell(r, c, i);
  }
};

// Whether all rows of an array are aligned to words.
bool in_words(const void* array, unsigned length) {
  return (length | reinterpret_cast<std::uintptr_t>(array)) % 4 == 0;
}

Layout layout_of(unsigned batch, unsigned length) {
  return {batch, (length + kStepBits - 1) / kStepBits * kStep,
          (length + kSide - 1) / kSide * kSide};
}

}  // namespace

void bottleneck(const std::uint8_t* reach, const std::uint8_t* levels, std::uint8_t* result,
                unsigned batch, unsigned length, Where where) {
  const bool words =
      in_words(reach, length) && in_words(levels, length) && in_words(result, length);
  launch(Packed{reach, levels, result, length, words}, blocks_of(batch, length), where);
}

std::uint64_t plane_words(unsigned batch, unsigned length) {
  const Layout layout = layout_of(batch, length);
  return std::uint64_t{2} * batch * layout.words * layout.rows;
}

void bottleneck_boolean(const std::uint8_t* reach, const std::uint8_t* levels,
                        const std::uint8_t* highest, std::uint32_t* planes, unsigned capacity,
                        std::uint8_t* result, unsigned batch, unsigned length, Where where) {
  const Layout layout = layout_of(batch, length);
  for (unsigned first = 0; first < kMostLevels; first += capacity) {
    const Range range{highest, first, capacity};
    launch(Planes{reach, levels, planes, layout, range, length, in_words(reach, length)},
           {layout.rows / kSide, layout.words, 2 * batch}, where);
    launch(Boolean{planes, result, layout, range, length}, blocks_of(batch, length), where);
  }
}

}  // namespace densitrace::cuda
