// The edges of a tile of weights that clear a floor, counted and then written in order.
//
// A row is a target of a head: [B, heads of the tile, rows], its columns the sources up to it. Two
// passes: how many edges each row keeps; then, from where the caller's running sum of these puts
// the row, the edges themselves. Nothing depends on the order in which blocks run.
//
// A block of threads owns a row, a thread a run of its columns, and a running sum over the threads
// gives each its place. 4 bytes an edge are read, twice; a kept edge writes 44 bytes to the table:
// sequence, head, source, target, weight, stratum.

#include <cmath>

#include "grid.h"

namespace densitrace::cuda {
namespace {

constexpr unsigned kRowThreads = 128;

// A block's row, and a thread's share of it.
struct Row {
  unsigned b, h, t, sources;
  std::uint64_t index;  // [B, H, T]
  std::uint64_t first;  // of its weights in the tile

  DEVICE Row(const Tile& tile, unsigned heads, unsigned x, unsigned slice)
      : b(slice / tile.heads),
        h(tile.head + slice % tile.heads),
        t(tile.first + x),
        sources(t + 1),
        index((std::uint64_t{b} * heads + h) * tile.length + t),
        first((std::uint64_t{slice} * tile.rows + x) * (tile.first + tile.rows)) {}

  DEVICE unsigned begin(unsigned thread) const {
    const unsigned run = (sources + kRowThreads - 1) / kRowThreads;
    return thread * run < sources ? thread * run : sources;
  }
};

struct CountRows {
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
      std::int32_t found = 0;
      for (unsigned s = thread; s < row.sources; s += kThreads)
        found += weight[row.first + s] > lowest;
      if (found != 0) add(block.shared.kept, found);
    });
    block.each([&](unsigned thread, Own&) {
      if (thread == 0) kept[row.index] = block.shared.kept;
    });
  }
};

struct WriteRows {
  const float *weight, *cuts;  // cuts [K, B, T]
  unsigned strata;
  Tile tile;
  unsigned heads;
  const std::int64_t* starts;  // [B, H, T], of each row in the order
  Table table;

  static constexpr unsigned kThreads = kRowThreads;
  static constexpr unsigned kResident = 16;
  struct Shared {
    unsigned sums[kThreads];
  };
  struct Own {
    unsigned count, before;
  };

  template <typename Block>
  DEVICE void operator()(Block& block) const {
    const Row row(tile, heads, block.x, block.y);
    const float lowest = cut(row, strata - 1);
    unsigned* sums = block.shared.sums;
    block.each([&](unsigned thread, Own& own) {
      own.count = 0;
      for (unsigned s = row.begin(thread); s < row.begin(thread + 1); ++s)
        own.count += weight[row.first + s] > lowest;
      sums[thread] = own.count;
    });
    for (unsigned step = 1; step < kThreads; step *= 2) {
      block.each([&](unsigned thread, Own& own) {
        own.before = thread >= step ? sums[thread - step] : 0;
      });
      block.each([&](unsigned thread, Own& own) { sums[thread] += own.before; });
    }
    block.each([&](unsigned thread, Own& own) {
      std::int64_t place = starts[row.index] + sums[thread] - own.count;
      for (unsigned s = row.begin(thread); s < row.begin(thread + 1); ++s) {
        const float value = weight[row.first + s];
        if (value > lowest) write(place++, row, s, value);
      }
    });
  }

 private:
  DEVICE float cut(const Row& row, unsigned k) const {
    return cuts[(std::uint64_t{k} * tile.batch + row.b) * tile.length + row.t];
  }

  DEVICE void write(std::int64_t place, const Row& row, unsigned s, float value) const {
    unsigned stratum = 0;  // the first whose cut it clears
    for (unsigned k = 0; k < strata; ++k) stratum += value <= cut(row, k);
    table.sequence[place] = row.b;
    table.head[place] = row.h;
    table.source[place] = s;
    table.target[place] = row.t;
    table.weight[place] = value;
    table.stratum[place] = stratum;
  }
};

Blocks rows_of(const Tile& tile) { return {tile.rows, tile.batch * tile.heads}; }

}  // namespace

void count_rows(const float* weight, const float* floor, const Tile& tile, unsigned heads,
                std::int64_t* kept, Where where) {
  launch(CountRows{weight, floor, tile, heads, kept}, rows_of(tile), where);
}

void table_rows(const float* weight, const float* cuts, unsigned strata, const Tile& tile,
                unsigned heads, const std::int64_t* starts, const Table& table, Where where) {
  launch(WriteRows{weight, cuts, strata, tile, heads, starts, table}, rows_of(tile), where);
}

}  // namespace densitrace::cuda
