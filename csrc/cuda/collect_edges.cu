// The edges of a tile of weights that clear a floor: counted, then written in order.
//
// A row is a target of a head: [B, heads of the tile, rows]; its columns are the sources up to the
// target. Two passes: the first counts the kept edges of each row; the caller's running sum of the
// counts gives the row's offset in the table, where the second writes the edges. The result does
// not depend on the order in which blocks run.
//
// A block of threads owns a row; neighbouring threads read neighbouring columns. The second pass
// covers 4,096 columns at a time: a bit per column in shared memory marks the kept ones; the bits
// of each word are counted, and a prefix sum over words, in runs of 16, gives each edge its offset.
// 4 bytes an edge are read twice, and those of kept edges once more from the caches; a kept edge
// writes 19 bytes to the table: sequence, head, source, target, weight, stratum.

#include <cmath>

#include "grid.h"

namespace densitrace::cuda {
namespace {

constexpr unsigned kRowThreads = 128;

// A block's row.
struct Row {
  unsigned b, h, t, sources;
  std::uint64_t index;  // in [B, H, T]
  std::uint64_t first;  // offset of its weights in the tile

  DEVICE Row(const Tile& tile, unsigned heads, unsigned x, unsigned slice)
      : b(slice / tile.heads),
        h(tile.head + slice % tile.heads),
        t(tile.first + x),
        sources(t + 1),
        index((std::uint64_t{b} * heads + h) * tile.length + t),
        first((std::uint64_t{slice} * tile.rows + x) * (tile.first + tile.rows)) {}
};

struct CountEdges {
  const float *weight, *floor;
  Tile tile;
  unsigned heads;
  std::int64_t* kept;

  static constexpr unsigned kThreads = kRowThreads;
  static constexpr unsigned kResident = 16;
  struct Shared {
    std::int32_t kept;
  };
  struct Own {};

  template <typename Block>
  DEVICE void operator()(Block& block) const {
    const Row row(tile, heads, block.x, block.y);
    const float lowest = floor[std::uint64_t{row.b} * tile.length + row.t];
    block.each([&](unsigned thread, Own&) {
      if (thread == 0) block.shared.kept = 0;
    });
    block.each([&](unsigned thread, Own&) {
      std::int32_t count = 0;
      for (unsigned s = thread; s < row.sources; s += kThreads)
        count += weight[row.first + s] > lowest;
      if (count != 0) add(block.shared.kept, count);
    });
    block.each([&](unsigned thread, Own&) {
      if (thread == 0) kept[row.index] = block.shared.kept;
    });
  }
};

struct WriteEdges {
  const float *weight, *cuts;  // cuts [K, B, T]
  unsigned strata;
  Tile tile;
  unsigned heads;
  const std::int64_t* starts;  // [B, H, T], offset of each row in the table
  Table table;

  static constexpr unsigned kThreads = kRowThreads;
  static constexpr unsigned kResident = 8;
  static constexpr unsigned kBits = 32;
  static constexpr unsigned kColumns = kThreads * kBits;  // at a time: one word per thread
  static constexpr unsigned kRun = 16;                    // words summed by one thread
  static constexpr unsigned kRuns = kThreads / kRun;

  struct Shared {
    std::int32_t words[kThreads];   // one bit per column: whether its edge is kept
    unsigned counts[kThreads];      // bits set in each word
    unsigned runs[kRuns];           // bits set in each run of words
    unsigned before[kThreads + 1];  // bits set in earlier words
  };
  struct Own {
    std::int64_t offset;  // offset in the table of the next kept edge
  };

  template <typename Block>
  DEVICE void operator()(Block& block) const {
    const Row row(tile, heads, block.x, block.y);
    const float lowest = cut(row, strata - 1);
    Shared& shared = block.shared;
    block.each([&](unsigned, Own& own) { own.offset = starts[row.index]; });
    for (unsigned start = 0; start < row.sources; start += kColumns) {
      const unsigned end = row.sources - start < kColumns ? row.sources : start + kColumns;
      block.each([&](unsigned thread, Own&) { shared.words[thread] = 0; });
      block.each([&](unsigned thread, Own&) {
        for (unsigned s = start + thread; s < end; s += kThreads)
          if (weight[row.first + s] > lowest)
            add(shared.words[(s - start) / kBits], static_cast<std::int32_t>(1u << s % kBits));
      });
      block.each([&](unsigned thread, Own&) {
        shared.counts[thread] = bits(static_cast<unsigned>(shared.words[thread]));
      });
      block.each([&](unsigned thread, Own&) {
        if (thread >= kRuns) return;
        unsigned sum = 0;
        for (unsigned i = 0; i < kRun; ++i) sum += shared.counts[thread * kRun + i];
        shared.runs[thread] = sum;
      });
      block.each([&](unsigned thread, Own&) {
        unsigned sum = 0;
        for (unsigned run = 0; run < thread / kRun; ++run) sum += shared.runs[run];
        for (unsigned i = thread / kRun * kRun; i < thread; ++i) sum += shared.counts[i];
        shared.before[thread] = sum;
        if (thread == kThreads - 1) shared.before[kThreads] = sum + shared.counts[thread];
      });
      block.each([&](unsigned thread, Own& own) {
        for (unsigned s = start + thread; s < end; s += kThreads) {
          const unsigned at = (s - start) / kBits, bit = 1u << s % kBits;
          const unsigned word = static_cast<unsigned>(shared.words[at]);
          if ((word & bit) == 0) continue;
          const unsigned earlier = shared.before[at] + bits(word & (bit - 1));
          write(own.offset + earlier, row, s, weight[row.first + s]);
        }
        own.offset += shared.before[kThreads];
      });
    }
  }

 private:
  DEVICE float cut(const Row& row, unsigned k) const {
    return cuts[(std::uint64_t{k} * tile.batch + row.b) * tile.length + row.t];
  }

  DEVICE void write(std::int64_t offset, const Row& row, unsigned s, float value) const {
    unsigned stratum = 0;  // the first whose cut the weight clears
    for (unsigned k = 0; k < strata; ++k) stratum += value <= cut(row, k);
    table.sequence[offset] = static_cast<std::int32_t>(row.b);
    table.head[offset] = static_cast<std::int16_t>(row.h);
    table.source[offset] = static_cast<std::int32_t>(s);
    table.target[offset] = static_cast<std::int32_t>(row.t);
    table.weight[offset] = value;
    table.stratum[offset] = static_cast<std::uint8_t>(stratum);
  }
};

Blocks rows_of(const Tile& tile) { return {tile.rows, tile.batch * tile.heads}; }

}  // namespace

void count_edges(const float* weight, const float* floor, const Tile& tile, unsigned heads,
                 std::int64_t* kept, Where where) {
  launch(CountEdges{weight, floor, tile, heads, kept}, rows_of(tile), where);
}

void write_edges(const float* weight, const float* cuts, unsigned strata, const Tile& tile,
                 unsigned heads, const std::int64_t* starts, const Table& table, Where where) {
  launch(WriteEdges{weight, cuts, strata, tile, heads, starts, table}, rows_of(tile), where);
}

}  // namespace densitrace::cuda
