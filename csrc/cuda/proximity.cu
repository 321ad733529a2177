// Proximity of attention edges, bound first: METHOD, section 2.
//
// The edge of source s and head h adds a u to its target, u = W_O v_s [D], a = alpha / rho_t, and
//
//   proximity = max(0, a c - 2 excess),   c = <sign(n), u>, n = 0 counting as positive,
//   excess    = sum over d of max(0, a sign(n_d) u_d - |n_d|).
//
// weigh.cu writes the upper bounds max(0, a c) and the a of a tile. An entry adds to the excess
// only if |n_d| is below far = a max |u|, so the entries of a target are sorted by |n_d|: those
// below far are the first j, and
//
//   0 <= excess <= j (far - |n_d| of the first).
//
// RefineBounds replaces a bound by the weight wherever the level is in doubt: if the upper bound
// clears a cut that the lower bound, a c - 2 j (far - ..), does not. Elsewhere the bound stays,
// since it has the level of the weight. (The code has 2.002 instead of 2: the rounding error of an
// excess of j terms, j / 8 + 3 additions of 6e-8 each, is below a thousandth for any hidden size up
// to 100,000. Rounding is monotone, so nothing else needs a margin.) Without cuts the weights
// themselves are needed: every positive bound that may exceed its weight is in doubt, and rows are
// summed.
//
// A block of threads owns a row: a target of a head. It covers 1,024 sources at a time, lists those
// in doubt in shared memory, in any order, and then sums 16 edges at once with 8 lanes each. The
// sum of an edge has a fixed order, so the order of the list changes nothing.
//
// Reads per edge: 4 bytes of the bound; if it clears a cut, 8 for a and max |u| and about 2 log2 j
// sizes. Per term: 8 bytes of n, which the edges of a row share in the L1 cache, and 4 bytes of u
// at an address of its own, a sector of 32 bytes from the L2 cache, whose bandwidth is the limit
// rather than the 5 operations a term.
//
// In UpdateLevels a block owns a target, for all heads of the tile: it raises the level of each
// source to the highest of these heads, and counts the edges that clear each cut; 4 bytes an edge,
// and 2 a pair of target and source.

#include <cmath>

#include "grid.h"

namespace densitrace::cuda {
namespace {

constexpr unsigned kRowThreads = 128;
constexpr unsigned kMostLevels = 256;  // including 0

// The cuts of a target in shared memory.
struct Cuts {
  float cut[kMostLevels];  // [strata], descending

  DEVICE void load(const float* cuts, unsigned strata, std::uint64_t stride, std::uint64_t target,
                   unsigned thread) {
    for (unsigned k = thread; k < strata; k += kRowThreads) cut[k] = cuts[k * stride + target];
  }
  // Number of cuts that a weight clears; they descend, so the last is the first to be cleared.
  DEVICE unsigned level(float weight, unsigned strata) const {
    unsigned level = 0;
    while (level < strata && weight > cut[strata - 1 - level]) ++level;
    return level;
  }
};

DEVICE float clamped(float weight) { return weight < 0 ? 0.0f : weight; }  // keeps NaN

struct RefineBounds {
  Ranked ranked;
  const float *sent, *largest;  // u and max |u|: [heads of the tile, B, T, D], [.., B, T]
  const float *share, *cuts;    // a, shaped as the tile; cuts [K, B, T]
  float* weight;                // as input: the bounds
  Tile tile;
  unsigned heads, hidden, strata;  // strata 0: all weights are needed
  RowTotals totals;

  static constexpr unsigned kThreads = kRowThreads;
  static constexpr unsigned kResident = 8;
  static constexpr unsigned kLanes = 8;
  static constexpr unsigned kSources = 1024;  // at a time

  struct Shared {
    Cuts cuts;
    std::int32_t listed, summed, edges;
    unsigned source[kSources];  // of the listed edges
    unsigned terms[kSources];   // their j
    float sums[kThreads];
  };
  struct Own {
    float sum;
    std::int32_t edges;
  };

  template <typename Block>
  DEVICE void operator()(Block& block) const {
    const unsigned b = block.y / tile.heads, h = block.y % tile.heads;
    const unsigned row = tile.rows - 1 - block.x, t = tile.first + row;  // long rows come first
    const std::uint64_t target = std::uint64_t{b} * tile.length + t;
    const std::uint64_t first =
        (std::uint64_t{block.y} * tile.rows + row) * (tile.first + tile.rows);
    const std::uint64_t sender = (std::uint64_t{h} * tile.batch + b) * tile.length;
    const float* entries = ranked.entry + target * hidden;
    const std::uint64_t stride = std::uint64_t{tile.batch} * tile.length;
    Shared& shared = block.shared;
    block.each([&](unsigned thread, Own& own) {
      own = {0, 0};
      shared.cuts.load(cuts, strata, stride, target, thread);
      if (thread == 0) shared.listed = shared.summed = shared.edges = 0;
    });
    for (unsigned start = 0; start <= t; start += kSources) {
      const unsigned end = t - start < kSources ? t + 1 : start + kSources;
      block.each([&](unsigned thread, Own& own) {
        for (unsigned s = start + thread; s < end; s += kThreads) {
          const float bound = weight[first + s];
          own.edges += bound != -INFINITY;
          const unsigned terms = in_doubt(shared.cuts, bound, first + s, sender + s, entries);
          if (terms == 0) continue;
          const std::int32_t slot = add(shared.listed, 1);
          shared.source[slot] = s;
          shared.terms[slot] = terms;
        }
      });
      block.each_group([&](unsigned group, const auto& lanes) {
        for (unsigned edge = group; edge < static_cast<unsigned>(shared.listed);
             edge += kThreads / kLanes) {
          const unsigned s = shared.source[edge], terms = shared.terms[edge];
          const float a = share[first + s];
          const float* u = sent + (sender + s) * hidden;
          const float excess = lanes.sum([&](unsigned lane) {
            return excess_of(lane, terms, a, u, entries, ranked.dimension + target * hidden);
          });
          if (lanes.leads()) weight[first + s] = clamped(weight[first + s] - 2 * excess);
        }
      });
      block.each([&](unsigned thread, Own& own) {
        if (thread == 0) {
          shared.summed += shared.listed;
          shared.listed = 0;
        }
        if (strata != 0) return;
        for (unsigned s = start + thread; s < end; s += kThreads) {
          const float value = weight[first + s];
          own.sum += value == -INFINITY ? 0.0f : value;
        }
      });
    }
    block.each([&](unsigned thread, Own& own) {
      shared.sums[thread] = own.sum;
      add(shared.edges, own.edges);
    });
    const std::uint64_t index = (std::uint64_t{b} * heads + tile.head + h) * tile.length + t;
    block.each_group([&](unsigned group, const auto& lanes) {
      if (group != 0) return;
      const float sum = lanes.sum([&](unsigned lane) {
        float sum = 0;
#pragma unroll 4
        for (unsigned i = lane; i < kThreads; i += kLanes) sum += shared.sums[i];
        return sum;
      });
      if (!lanes.leads()) return;
      totals.sums[index] = sum;
      totals.edges[index] = shared.edges;
      totals.summed[index] = shared.summed;
    });
  }

 private:
  // Number of terms of the excess if the edge's level is in doubt, else 0. `at`: offset in the
  // tile; `sender`: offset of its source.
  DEVICE unsigned in_doubt(const Cuts& cuts_of_target, float bound, std::uint64_t at,
                           std::uint64_t sender, const float* entries) const {
    const unsigned level = strata == 0 ? bound > 0 : cuts_of_target.level(bound, strata);
    if (level == 0) return 0;
    const float far = share[at] * largest[sender], near = fabsf(entries[0]);
    if (!(far > near)) return 0;
    const unsigned terms = below(far, entries);
    if (strata == 0) return terms;
    const float lowest = clamped(bound - 2.002f * static_cast<float>(terms) * (far - near));
    return lowest > cuts_of_target.cut[strata - level] ? 0 : terms;
  }

  // Sums a lane's terms, kAhead at a time so that their reads overlap.
  DEVICE float excess_of(unsigned lane, unsigned terms, float a, const float* u,
                         const float* entries, const std::uint32_t* dimensions) const {
    constexpr unsigned kAhead = 4;
    float sum = 0;
    for (unsigned first = lane; first < terms; first += kAhead * kLanes) {
      float n[kAhead], toward[kAhead];
#pragma unroll
      for (unsigned i = 0; i < kAhead; ++i) {
        const unsigned at = first + i * kLanes;
        n[i] = at < terms ? entries[at] : 0.0f;
        toward[i] = at < terms ? u[dimensions[at]] : 0.0f;
      }
#pragma unroll
      for (unsigned i = 0; i < kAhead; ++i)
        sum += clamped((n[i] < 0 ? -a : a) * toward[i] - fabsf(n[i]));
    }
    return sum;
  }

  // Number of sizes below `far`; the first one is. It is usually small, so the search doubles its
  // step first and then bisects the last one.
  DEVICE unsigned below(float far, const float* entries) const {
    unsigned high = 1;
    while (high < hidden && fabsf(entries[high]) < far) high *= 2;
    unsigned low = high / 2 + 1;
    if (high > hidden) high = hidden;
    while (low < high) {
      const unsigned middle = (low + high) / 2;
      if (fabsf(entries[middle]) < far)
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  }
};

struct UpdateLevels {
  const float *weight, *cuts;  // cuts [K, B, T]
  Tile tile;
  unsigned strata;
  std::uint8_t* levels;   // [B, T, T], over the heads so far
  std::int32_t* degrees;  // [K, B, T], over the heads so far

  static constexpr unsigned kThreads = kRowThreads;
  static constexpr unsigned kResident = 16;
  struct Shared {
    Cuts cuts;
    std::int32_t counts[kMostLevels];  // edges of each level
  };
  struct Own {};

  template <typename Block>
  DEVICE void operator()(Block& block) const {
    const unsigned b = block.y, t = tile.first + block.x, length = tile.length;
    const std::uint64_t target = std::uint64_t{b} * length + t;
    const std::uint64_t stride = std::uint64_t{tile.batch} * length;
    const unsigned sources = tile.first + tile.rows;
    const std::uint64_t slice = std::uint64_t{tile.rows} * sources;  // of a head
    const float* row = weight + b * tile.heads * slice + std::uint64_t{block.x} * sources;
    Shared& shared = block.shared;
    block.each([&](unsigned thread, Own&) {
      shared.cuts.load(cuts, strata, stride, target, thread);
      for (unsigned level = thread; level <= strata; level += kThreads) shared.counts[level] = 0;
    });
    block.each([&](unsigned thread, Own&) {
      for (unsigned s = thread; s <= t; s += kThreads) {
        unsigned highest = 0;
        for (unsigned h = 0; h < tile.heads; ++h) {
          const unsigned level = shared.cuts.level(row[h * slice + s], strata);
          if (level != 0) add(shared.counts[level], 1);
          highest = level > highest ? level : highest;
        }
        std::uint8_t& so_far = levels[target * length + s];
        if (highest > so_far) so_far = static_cast<std::uint8_t>(highest);
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

void refine_bounds(const Ranked& ranked, const float* sent, const float* largest,
                   const float* share, const float* cuts, unsigned strata, float* weight,
                   const Tile& tile, unsigned heads, unsigned hidden, const RowTotals& totals,
                   Where where) {
  launch(
      RefineBounds{ranked, sent, largest, share, cuts, weight, tile, heads, hidden, strata, totals},
      {tile.rows, tile.batch * tile.heads}, where);
}

void update_levels(const float* weight, const float* cuts, unsigned strata, const Tile& tile,
                   std::uint8_t* levels, std::int32_t* degrees, Where where) {
  launch(UpdateLevels{weight, cuts, tile, strata, levels, degrees}, {tile.rows, tile.batch}, where);
}

}  // namespace densitrace::cuda
