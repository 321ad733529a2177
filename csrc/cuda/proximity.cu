// Proximity of attention edges, bound first: METHOD, section 2.
//
// The edge of source s and head h adds a u to its target, u = W_O v_s [D], a = alpha / rho_t:
//
//   proximity = max(0, sum over d of |n_d| - |n_d - a u_d|)  <=  max(0, a c).
//
// weigh.cu writes the bounds and the a of one head's tile, collect_edges.cu lists the edges whose
// bound clears a floor, and here these get their exact sum in the bound's place: what it labels
// then is what all sums would. A warp sums an edge, entry by entry in a fixed order: 5 operations
// and 8 bytes an entry, from the caches for the most part, as the list goes along the sources of a
// target. The length of the list is read on the device, so that the host need not wait for it.
//
// Then a block of threads labels a target: the level of each source, raised where this head's is
// higher than those before, and how many edges clear each cut: 4 bytes an edge.

#include <cmath>

#include "grid.h"

namespace densitrace::cuda {
namespace {

struct SumListed {
  const std::uint32_t* list;  // indices in the tile
  const std::int64_t* count;  // [1]
  const float *node, *sent;   // n and u: [B, T, D]
  const float* share;         // a: as the tile
  float* weight;
  Tile tile;  // of one head
  unsigned hidden, blocks;

  static constexpr unsigned kThreads = 128;
  static constexpr unsigned kEdges = kThreads / kWarp;  // at a time
  struct Shared {
    float sums[kEdges][kWarp];
  };
  struct Own {};

  template <typename Block>
  DEVICE void operator()(Block& block) const {
    const std::int64_t edges = *count;
    const unsigned sources = tile.first + tile.rows;
    for (std::int64_t first = std::int64_t{block.x} * kEdges; first < edges;
         first += std::int64_t{blocks} * kEdges) {
      block.each([&](unsigned thread, Own&) {
        const unsigned edge = thread / kWarp, lane = thread % kWarp;
        if (first + edge >= edges) return;
        const std::uint32_t at = list[first + edge], row = at / sources;
        const std::uint64_t sequence = std::uint64_t{row / tile.rows} * tile.length;
        const float* n = node + (sequence + tile.first + row % tile.rows) * hidden;
        const float* u = sent + (sequence + at % sources) * hidden;
        const float a = share[at];
        float sum = 0;
        for (unsigned d = lane; d < hidden; d += kWarp) {
          // |n| - |n - a u|, without the rounding of n - a u, which may be all of a small edge.
          const float size = fabsf(n[d]), toward = copysignf(a, n[d]) * u[d];
          sum += toward <= size ? toward : 2 * size - toward;
        }
        block.shared.sums[edge][lane] = sum;
      });
      block.each([&](unsigned thread, Own&) {
        if (thread >= kEdges || first + thread >= edges) return;
        float sum = 0;
        for (unsigned lane = 0; lane < kWarp; ++lane) sum += block.shared.sums[thread][lane];
        weight[list[first + thread]] = fmaxf(0.0f, sum);
      });
    }
  }
};

struct Label {
  const float *weight, *cuts;  // cuts [K, B, T]
  Tile tile;                   // of one head
  unsigned strata;
  std::uint8_t* levels;   // [B, T, T], of the heads so far
  std::int32_t* degrees;  // [K, B, T], of the heads so far

  static constexpr unsigned kThreads = 128;
  static constexpr unsigned kMost = 256;  // levels, 0 among them
  struct Shared {
    float cuts[kMost];
    std::int32_t counts[kMost];  // edges of each level
  };
  struct Own {};

  template <typename Block>
  DEVICE void operator()(Block& block) const {
    const unsigned b = block.y, t = tile.first + block.x, length = tile.length;
    const std::uint64_t target = std::uint64_t{b} * length + t;
    const std::uint64_t stride = std::uint64_t{tile.batch} * length;
    const float* row = weight + (std::uint64_t{b} * tile.rows + block.x) * (tile.first + tile.rows);
    Shared& shared = block.shared;
    block.each([&](unsigned thread, Own&) {
      for (unsigned k = thread; k <= strata; k += kThreads) {
        shared.counts[k] = 0;
        if (k < strata) shared.cuts[k] = cuts[k * stride + target];
      }
    });
    block.each([&](unsigned thread, Own&) {
      for (unsigned s = thread; s <= t; s += kThreads) {
        unsigned level = 0;  // cuts descend: the first to be cleared is the lowest
        while (level < strata && row[s] > shared.cuts[strata - 1 - level]) ++level;
        if (level == 0) continue;
        add(shared.counts[level], 1);
        std::uint8_t& highest = levels[target * length + s];
        if (level > highest) highest = static_cast<std::uint8_t>(level);
      }
    });
    block.each([&](unsigned thread, Own&) {
      for (unsigned k = thread; k < strata; k += kThreads) {
        std::int32_t degree = 0;
        for (unsigned level = strata - k; level <= strata; ++level) degree += shared.counts[level];
        degrees[k * stride + target] += degree;
      }
    });
  }
};

}  // namespace

void sum_listed(const std::uint32_t* list, const std::int64_t* count, const float* node,
                const float* sent, const float* share, float* weight, const Tile& tile,
                unsigned hidden, Where where) {
  // Enough to fill any GPU; each goes on through the list from where it begins.
  const std::uint64_t most = std::uint64_t{tile.batch} * tile.rows * tile.sources();
  const unsigned blocks = most / SumListed::kEdges < 4096 ? most / SumListed::kEdges + 1 : 4096;
  launch(SumListed{list, count, node, sent, share, weight, tile, hidden, blocks}, {blocks}, where);
}

void label(const float* weight, const float* cuts, unsigned strata, const Tile& tile,
           std::uint8_t* levels, std::int32_t* degrees, Where where) {
  launch(Label{weight, cuts, tile, strata, levels, degrees}, {tile.rows, tile.batch}, where);
}

}  // namespace densitrace::cuda
