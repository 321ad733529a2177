// Cuts that depend on all in-edges of a node: METHOD, section 3.
//
// Computes cuts [K, B, T] for the nodes of a tile of weights with all heads: they keep the heaviest
// of a node's attention edges and side edges [E, B, T] that together make up a share of a total, or
// a share of the number of edges. Nothing is sorted. Three sweeps over the weights of a node
//
//   1. find the heaviest and the lightest weight, and the sum of all,
//   2. make a histogram between the two, in which each stratum finds the bin of its last edge,
//   3. move the weights of these bins, and of the next lighter ones, to the front.
//
// Those few are swept again, with one histogram per stratum, until its last edge is known to the
// bit, and once more to find the next lighter weight. The cut lies between the two.
//
// An edge's depth is the number of floats between it and the heaviest. A bin holds a number of
// edges, or the sum of their weights in fixed point: integers, so that the unknown order of the
// additions changes nothing. In a nucleus, edges so light that all of them together are less than
// any stratum leaves out get no bin.
//
// A block of threads owns a node and keeps its histograms in shared memory. A warp takes 128
// sources of a head at a time, a thread every 32nd of them. A thread moves weights only within its
// own slots, so that no thread waits. About 65 instructions a weight, 12 bytes read, and about
// 3,000 cycles a node for bins and barriers, however few its edges.

#include <cmath>
#include <cstring>
#include <type_traits>

#include "cells.h"

namespace densitrace::cuda {
namespace {

constexpr unsigned kDigit = 4;   // bits of a digit: bins are summed in groups of sixteen
constexpr unsigned kDigits = 3;  // of a bin's number
constexpr unsigned kRun = 1u << kDigit;
constexpr unsigned kBins = 1u << kDigit * kDigits;
constexpr unsigned kMostStrata = 255;
constexpr unsigned kNone = ~0u;  // no depth

// Bins of 64 bits, in two halves, and the sums of 16 and of 256 of them.
struct Histogram {
  alignas(16) std::uint32_t low[kBins], high[kBins];
  std::uint64_t sums_of_16[kBins >> kDigit], sums_of_256[kBins >> 2 * kDigit];

  struct Place {
    unsigned bin;
    std::uint64_t before;  // sum of all bins before it
  };

  DEVICE void add(unsigned bin, std::uint64_t share) {
    const auto part = static_cast<std::uint32_t>(share);
    const bool carries = cuda::add(low[bin], part) > ~part;
    const std::uint32_t rest = static_cast<std::uint32_t>(share >> 32) + carries;
    if (rest != 0) cuda::add(high[bin], rest);
  }

  DEVICE std::uint64_t held(unsigned bin) const {
    return std::uint64_t{high[bin]} << 32 | low[bin];
  }

  // Neighbouring threads start at different quads, so that their reads cover all banks.
  DEVICE std::uint64_t sum_of_bins(unsigned run) const {
    std::uint64_t sum = 0;
    std::uint32_t upper = 0;
#pragma unroll
    for (unsigned i = 0; i < kRun / 4; ++i) {
      const unsigned quad = run * kRun + (i + run / 2) * 4 % kRun;
      const Quad parts = *reinterpret_cast<const Quad*>(low + quad);
      const Quad rests = *reinterpret_cast<const Quad*>(high + quad);
#pragma unroll
      for (unsigned j = 0; j < 4; ++j) {
        sum += parts.x[j];
        upper += rests.x[j];
      }
    }
    return (std::uint64_t{upper} << 32) + sum;
  }
  DEVICE std::uint64_t sum_of_sixteens(unsigned run) const {
    std::uint64_t sum = 0;
#pragma unroll
    for (unsigned i = 0; i < kRun; ++i) sum += sums_of_16[run * kRun + i];
    return sum;
  }
  DEVICE std::uint64_t sum() const {
    std::uint64_t sum = 0;
#pragma unroll
    for (unsigned i = 0; i < kRun; ++i) sum += sums_of_256[i];
    return sum;
  }

  // The first bin whose running sum reaches `wanted`, else the last, in the histogram of 16^digits
  // bins that starts at bin `first`.
  DEVICE Place find(unsigned first, unsigned digits, std::uint64_t wanted) const {
    Place place{first, 0};
    while (digits-- > 0) {
      std::uint64_t sum = place.before;
      unsigned passed = 0;
#pragma unroll
      for (unsigned i = 0; i + 1 < kRun; ++i) {
        const unsigned at = (place.bin >> kDigit * digits) + i;
        sum += digits == 2 ? sums_of_256[at] : digits == 1 ? sums_of_16[at] : held(at);
        if (sum >= wanted) continue;
        place.before = sum;
        passed = i + 1;
      }
      place.bin += passed << kDigit * digits;
    }
    place.bin -= first;
    return place;
  }
};

// A node's attention edges in the tile: `count` sources per head.
struct Row {
  float* weights;
  std::uint64_t stride;  // from one head to the next
  unsigned heads, count;
};

// Iterates over a thread's weights of a row, a stretch of sources at a time.
template <unsigned kThreads>
class Walk {
 public:
  static constexpr unsigned kTurns = 4;  // weights of a thread in a stretch

  DEVICE Walk(const Row& row, unsigned thread)
      : row_(row), span_((row.count + kStretch - 1) / kStretch * kStretch) {
    const unsigned stretch = thread / kWarp * kStretch;
    head_ = stretch / span_;
    at_ = stretch % span_ + thread % kWarp;
  }

  DEVICE bool ends() const { return head_ >= row_.heads; }
  DEVICE bool has(unsigned turn) const { return at_ + turn * kWarp < row_.count; }
  DEVICE float& weight(unsigned turn) const {
    return row_.weights[head_ * row_.stride + at_ + turn * kWarp];
  }
  // Advances to the next stretch of the thread's warp.
  DEVICE void advance() {
    constexpr unsigned kAll = kThreads / kWarp * kStretch;
    head_ += kAll / span_;
    at_ += kAll % span_;
    if (at_ < span_) return;
    at_ -= span_;
    ++head_;
  }

 private:
  static constexpr unsigned kStretch = kWarp * kTurns;
  const Row& row_;
  unsigned span_, head_, at_;
};

// Iterates over the same weights one at a time.
template <typename Walk>
class Slot {
 public:
  DEVICE explicit Slot(const Walk& walk) : walk_(walk) { skip(); }
  DEVICE float& weight() const { return walk_.weight(turn_); }
  DEVICE void advance() {
    if (++turn_ < Walk::kTurns && walk_.has(turn_)) return;
    turn_ = 0;
    walk_.advance();
    skip();
  }

 private:
  // Advances past stretches without a weight of the thread.
  DEVICE void skip() {
    while (!walk_.ends() && !walk_.has(0)) walk_.advance();
  }
  Walk walk_;
  unsigned turn_ = 0;
};

// Range and sum of the edges that can be kept.
template <typename Sum>
struct Extent {
  unsigned heaviest, lightest;  // keys; `lightest` is one less than the key
  Sum sum;                      // of the weights, or the number of edges

  DEVICE void take(const Extent& other) {
    heaviest = heaviest < other.heaviest ? other.heaviest : heaviest;
    lightest = other.lightest < lightest ? other.lightest : lightest;
    sum += other.sum;
  }
};

// Heads of a bin's linked lists of strata: 1 + the first stratum that ends in the bin, and 1 + the
// first whose next lighter weight is in it; 0 for an empty list.
struct alignas(2) Lists {
  std::uint8_t ending, going_on;

  DEVICE bool any() const {
    std::uint16_t both;
    std::memcpy(&both, this, sizeof both);
    return both != 0;
  }
};

// How depths of a node's edges map to bins.
struct Depths {
  unsigned top;    // the key of depth 0
  unsigned last;   // the last depth that has a bin
  unsigned shift;  // low bits of a depth that its bin does not resolve
  unsigned point;  // of fixed point: see `share_of`
};

struct Largest {
  float weight;

  DEVICE void take(const Largest& other) { weight = weight < other.weight ? other.weight : weight; }
};

template <bool kCounted>
struct NodeCuts {
  float* weight;  // of the tile; moved weights overwrite others
  Tile tile;
  unsigned window;
  const float* side;     // [E, B, T]
  const double* wanted;  // [K], shares
  const float* total;    // [B, T], not read if kCounted
  float* cuts;           // [K, B, T]
  unsigned sides, strata;

  static constexpr unsigned kThreads = 512;
  static constexpr unsigned kResident = 2;
  using Sum = std::conditional_t<kCounted, unsigned, float>;
  using Edges = Walk<kThreads>;

  struct Shared {
    union {
      Extent<Sum> extents[kThreads];
      Histogram bins;
      Largest lighter_ones[kThreads];  // weights without a bin
    };
    alignas(16) Lists lists[kBins];  // of the histogram shared by all strata
    // Per stratum: `left`, what is still wanted within its last bin; `known`, the leading bits of
    // the depth of its last edge, at first that bin; `next`, the bin of the next lighter weight,
    // later its depth; `more`, whether the bin holds more than is wanted; `following`, the links of
    // its lists.
    std::uint64_t left[kMostStrata];
    std::uint32_t known[kMostStrata], next[kMostStrata];
    bool more[kMostStrata];
    Lists following[kMostStrata];
    Sum all;
    Depths depths;
    float lighter;  // the heaviest weight without a bin
  };
  struct Own {
    unsigned moved;
  };
  struct Node {
    std::uint64_t index;
    Row row;
  };

  template <typename Block>
  DEVICE void operator()(Block& block) const {
    const unsigned t = tile.first + tile.rows - 1 - block.x;  // long rows come first
    const Node node{std::uint64_t{block.y} * tile.length + t, row_of(block.y, t)};
    measure(block, node);
    const Depths depths = block.shared.depths;
    find_bins(block, node, depths);
    move(block, node, depths);
    find_last_edges(block, node, depths);
    write(block, node, depths);
  }

 private:
  template <typename Block>
  DEVICE void measure(Block& block, const Node& node) const {
    Shared& shared = block.shared;
    block.each([&](unsigned thread, Own&) {
      Extent<Sum> extent{0, kNone, 0};
      each_edge(node, thread, [&](float w) {
        const unsigned key = key_of(w);
        extent.take({key, key - 1, term(key)});
      });
      shared.extents[thread] = extent;
    });
    fold(block, shared.extents);
    block.each([&](unsigned thread, Own&) {
      if (thread != 0) return;
      shared.all = shared.extents[0].sum;
      shared.depths = depths_of(shared.extents[0], node);
    });
  }

  // Finds the bin of each stratum's last edge and the bin of the next lighter weight.
  template <typename Block>
  DEVICE void find_bins(Block& block, const Node& node, const Depths& depths) const {
    Shared& shared = block.shared;
    block.each([&](unsigned thread, Own&) {
      clear(shared.bins.low, thread);
      clear(shared.bins.high, thread);
      clear(shared.lists, thread);
    });
    block.each([&](unsigned thread, Own&) {
      each_edge(node, thread, [&](float w) {
        const unsigned key = key_of(w), depth = depths.top - key;
        if (depth <= depths.last) shared.bins.add(depth >> depths.shift, share_of(key, depths));
      });
    });
    add_up(block);
    each_stratum(block, [&](unsigned k) {
      const std::uint64_t all = units(wanted[k], node, shared.all, depths);
      const std::uint64_t held = shared.bins.sum();
      shared.left[k] = held < all ? held : all;
      const std::uint64_t reached = end_in(shared, k, 0, kDigits);
      shared.next[k] = shared.bins.find(0, kDigits, reached + 1).bin;
    });
    each_stratum(block, [&](unsigned k) {
      enlist(shared, k, shared.known, &Lists::ending);
      enlist(shared, k, shared.next, &Lists::going_on);
    });
  }

  // Moves the weights of listed bins to the front; the histogram is not needed any more.
  template <typename Block>
  DEVICE void move(Block& block, const Node& node, const Depths& depths) const {
    Shared& shared = block.shared;
    block.each([&](unsigned thread, Own& own) {
      Largest lighter{-INFINITY};
      own.moved = 0;
      Slot<Edges> to(Edges(node.row, thread));
      each_attention_edge(node, thread, [&](float w) {
        const unsigned depth = depths.top - key_of(w);
        if (depth > depths.last) return lighter.take({w});
        if (!shared.lists[depth >> depths.shift].any()) return;
        to.weight() = w;
        to.advance();
        ++own.moved;
      });
      each_side_edge(node, thread, [&](float w) {
        if (depths.top - key_of(w) > depths.last) lighter.take({w});
      });
      shared.lighter_ones[thread] = lighter;
    });
    fold(block, shared.lighter_ones);
    block.each([&](unsigned thread, Own&) {
      if (thread == 0) shared.lighter = shared.lighter_ones[0].weight;
    });
  }

  // Calls visit(depth) for the weights a thread has moved, and for its side edges that have a bin.
  template <typename Visit>
  DEVICE void each_moved(const Node& node, const Depths& depths, unsigned thread, unsigned moved,
                         const Visit& visit) const {
    Slot<Edges> from(Edges(node.row, thread));
    for (; moved > 0; --moved, from.advance()) visit(depths.top - key_of(from.weight()));
    each_side_edge(node, thread, [&](float w) {
      const unsigned depth = depths.top - key_of(w);
      if (depth <= depths.last) visit(depth);
    });
  }

  // Finds all bits of the depth of each stratum's last edge.
  template <typename Block>
  DEVICE void find_last_edges(Block& block, const Node& node, const Depths& depths) const {
    Shared& shared = block.shared;
    const unsigned step = (strata == 1 ? 3 : strata <= 16 ? 2 : 1) * kDigit;  // of a bin's number
    for (unsigned bits = depths.shift; bits > 0;) {                           // still unknown
      const unsigned resolved = bits < step ? bits : step, rest = bits - resolved;
      block.each([&](unsigned thread, Own&) {
        clear(shared.bins.low, thread);
        clear(shared.bins.high, thread);
      });
      block.each([&](unsigned thread, Own& own) {
        each_moved(node, depths, thread, own.moved, [&](unsigned depth) {
          const unsigned part = depth >> rest & ((1u << resolved) - 1);
          for (unsigned k = shared.lists[depth >> depths.shift].ending; k != 0;
               k = shared.following[k - 1].ending)
            if (depth >> bits == shared.known[k - 1])
              shared.bins.add(((k - 1) << step) + part, share_of(depths.top - depth, depths));
        });
      });
      add_up(block);
      each_stratum(block, [&](unsigned k) {
        const unsigned known = shared.known[k];
        end_in(shared, k, k << step, step / kDigit);
        shared.known[k] |= known << resolved;
      });
      bits = rest;
    }
  }

  template <typename Block>
  DEVICE void write(Block& block, const Node& node, const Depths& depths) const {
    Shared& shared = block.shared;
    each_stratum(block, [&](unsigned k) { shared.next[k] = kNone; });
    block.each([&](unsigned thread, Own& own) {
      each_moved(node, depths, thread, own.moved, [&](unsigned depth) {
        const Lists lists = shared.lists[depth >> depths.shift];
        for (unsigned k = lists.ending; k != 0; k = shared.following[k - 1].ending)
          if (depth > shared.known[k - 1]) least(shared.next[k - 1], depth);
        // The last edge itself is in this bin if no lighter one has a bin.
        for (unsigned k = lists.going_on; k != 0; k = shared.following[k - 1].going_on)
          if (depth > shared.known[k - 1]) least(shared.next[k - 1], depth);
      });
    });
    each_stratum(block, [&](unsigned k) {
      const float last = weight_of(depths.top - shared.known[k]);
      float next =
          shared.next[k] == kNone ? shared.lighter : weight_of(depths.top - shared.next[k]);
      if (kCounted && shared.more[k]) next = last;  // `last` ties with an edge left out
      const bool none_left = next == -INFINITY || shared.all == 0;
      const float cut = none_left ? -1.0f : between(last, next);
      cuts[k * std::uint64_t{tile.batch} * tile.length + node.index] =
          !kCounted && cut < 0 ? 0.0f : cut;
    });
  }

  DEVICE Row row_of(unsigned b, unsigned t) const {
    if (tile.heads == 0) return {nullptr, 0, 0, 1};
    const unsigned first = window != 0 && t >= window ? t - window + 1 : 0;
    const std::uint64_t sources = tile.first + tile.rows, stride = sources * tile.rows;
    return {weight + b * tile.heads * stride + (t - tile.first) * sources + first, stride,
            tile.heads, t + 1 - first};
  }

  // Calls visit(weight) for a thread's edges; the weight is -inf where there is no edge.
  template <typename Visit>
  DEVICE void each_edge(const Node& node, unsigned thread, const Visit& visit) const {
    each_attention_edge(node, thread, visit);
    each_side_edge(node, thread, visit);
  }
  template <typename Visit>
  DEVICE void each_attention_edge(const Node& node, unsigned thread, const Visit& visit) const {
    for (Edges walk(node.row, thread); !walk.ends(); walk.advance()) {
      float weights[Edges::kTurns];  // read before any is written
      if (walk.has(Edges::kTurns - 1)) {
#pragma unroll
        for (unsigned turn = 0; turn < Edges::kTurns; ++turn) weights[turn] = walk.weight(turn);
      } else {
#pragma unroll
        for (unsigned turn = 0; turn < Edges::kTurns; ++turn)
          weights[turn] = walk.has(turn) ? walk.weight(turn) : -INFINITY;
      }
#pragma unroll
      for (unsigned turn = 0; turn < Edges::kTurns; ++turn) visit(weights[turn]);
    }
  }
  template <typename Visit>
  DEVICE void each_side_edge(const Node& node, unsigned thread, const Visit& visit) const {
    const std::uint64_t nodes = std::uint64_t{tile.batch} * tile.length;
    for (unsigned e = thread; e < sides; e += kThreads) visit(side[e * nodes + node.index]);
  }

  template <typename Block, typename Stratum>
  DEVICE void each_stratum(Block& block, const Stratum& stratum) const {
    block.each([&](unsigned thread, Own&) {
      for (unsigned k = thread; k < strata; k += kThreads) stratum(k);
    });
  }

  // Reduces the items of all threads into the first one.
  template <typename Block, typename Item>
  DEVICE static void fold(Block& block, Item (&items)[kThreads]) {
    block.each([&](unsigned thread, Own&) {
      if (thread >= kWarp) return;
      for (unsigned i = kWarp; i < kThreads; i += kWarp) items[thread].take(items[thread + i]);
    });
    block.each([&](unsigned thread, Own&) {
      if (thread != 0) return;
      for (unsigned i = 1; i < kWarp; ++i) items[0].take(items[i]);
    });
  }

  template <typename Block>
  DEVICE static void add_up(Block& block) {
    Histogram& bins = block.shared.bins;
    block.each([&](unsigned thread, Own&) {
      if (thread < kBins >> kDigit) bins.sums_of_16[thread] = bins.sum_of_bins(thread);
    });
    block.each([&](unsigned thread, Own&) {
      if (thread < kBins >> 2 * kDigit) bins.sums_of_256[thread] = bins.sum_of_sixteens(thread);
    });
  }

  // Finds the bin of a stratum's last edge; returns the running sum including that bin.
  DEVICE static std::uint64_t end_in(Shared& shared, unsigned k, unsigned first, unsigned digits) {
    const auto [bin, before] = shared.bins.find(first, digits, shared.left[k]);
    const std::uint64_t reached = before + shared.bins.held(first + bin);
    shared.more[k] = reached > shared.left[k];
    shared.left[k] -= before;
    shared.known[k] = bin;
    return reached;
  }

  // Puts stratum k on a list of its bin, bins[k]; other strata of the same bin are linked to it.
  DEVICE void enlist(Shared& shared, unsigned k, const std::uint32_t* bins,
                     std::uint8_t Lists::* list) const {
    unsigned other = 0;
    while (bins[other] != bins[k]) ++other;
    if (other == k) shared.lists[bins[k]].*list = static_cast<std::uint8_t>(k + 1);
    for (other = k + 1; other < strata && bins[other] != bins[k];) ++other;
    shared.following[k].*list = static_cast<std::uint8_t>(other < strata ? other + 1 : 0);
  }

  template <typename Item>
  DEVICE static void clear(Item (&items)[kBins], unsigned thread) {
    constexpr unsigned kInQuad = sizeof(Quad) / sizeof(Item);
    for (unsigned i = thread * kInQuad; i < kBins; i += kThreads * kInQuad)
      *reinterpret_cast<Quad*>(items + i) = {{0, 0, 0, 0}};
  }

  // Keys are ordered as the weights; 0 for an edge that cannot be kept.
  static constexpr std::uint32_t kSign = 0x80000000, kLowest = 0x007FFFFF;  // kLowest: of -inf
  DEVICE static unsigned key_of(float w) {
    const std::uint32_t bits = bits_of(w), turned = bits >> 31 != 0 ? ~bits : bits | kSign;
    if (kCounted) return turned - kLowest;
    return bits >> 31 != 0 ? 0 : bits;
  }
  DEVICE static float weight_of(unsigned key) {
    if (!kCounted) return float_of(key);
    const std::uint32_t turned = key + kLowest;
    return float_of(turned >> 31 != 0 ? turned ^ kSign : ~turned);
  }

  DEVICE static Sum term(unsigned key) { return kCounted ? key != 0 : weight_of(key); }

  // What an edge adds to its bin: at least 2^(23 + point) for the heaviest, at least 1 for any.
  DEVICE static std::uint64_t share_of(unsigned key, const Depths& depths) {
    if (kCounted) return 1;
    const unsigned digits = key - ((exponent(key) - 1) << 23);  // below 2^24
    const unsigned below = exponent(depths.top) - exponent(key);
    const std::uint64_t share = std::uint64_t{digits} << depths.point >> (below < 40 ? below : 40);
    return share | (share == 0);
  }
  DEVICE static unsigned exponent(unsigned key) { return key >> 23 < 1 ? 1 : key >> 23; }

  // Keeps the sum of all shares below 2^62.
  DEVICE static unsigned point_of(unsigned edges) {
    unsigned point = 17;
    while (edges >> (38 - point) != 0) --point;
    return point;
  }

  // A share of the total in the units of `share_of`, at least 1.
  DEVICE std::uint64_t units(double share, const Node& node, Sum all, const Depths& depths) const {
    double value = share * all - 1e-9;
    if (!kCounted) {
      const int shift = 150 + static_cast<int>(depths.point - exponent(depths.top));
      value = share * ldexp(static_cast<double>(total[node.index]), shift);
    }
    return value > 1 ? value < 9e18 ? static_cast<std::uint64_t>(ceil(value)) : kMost : 1;
  }
  static constexpr std::uint64_t kMost = 9'000'000'000'000'000'000;

  DEVICE Depths depths_of(const Extent<Sum>& extent, const Node& node) const {
    const unsigned edges = node.row.heads * node.row.count + sides;
    Depths depths{1, 0, 0, point_of(edges)};  // if no edge can be kept, none gets a bin
    if (extent.heaviest == 0) return depths;
    depths.top = extent.heaviest;
    unsigned lightest = extent.lightest + 1;
    if (!kCounted) {
      double largest = 0;
      for (unsigned k = 0; k < strata; ++k) largest = wanted[k] < largest ? largest : wanted[k];
      // The factor covers the rounding of the sum.
      const double spare = extent.sum * (1 - 0x1p-10) - largest * total[node.index];
      const unsigned light = key_of(static_cast<float>(spare / edges));
      lightest = lightest < light ? light : lightest;
    }
    depths.last = lightest < depths.top ? depths.top - lightest : 0;
    while (depths.last >> depths.shift >= kBins) ++depths.shift;
    return depths;
  }

  // The midpoint, so that recomputing a weight in another order of summation can't move it across.
  DEVICE static float between(float last, float next) {
    const float cut = (last + next) / 2;
    return cut >= last && last > next ? next : cut;  // the midpoint can round up to `last`
  }
};

template <bool kCounted>
void cut(NodeCuts<kCounted> kernel, Where where) {
  launch(kernel, {kernel.tile.rows, kernel.tile.batch}, where);
}

}  // namespace

void node_cuts(float* weight, const Tile& tile, unsigned window, const float* side, unsigned sides,
               const double* wanted, unsigned strata, const float* total, float* cuts,
               Where where) {
  if (total == nullptr)
    cut<true>({weight, tile, window, side, wanted, total, cuts, sides, strata}, where);
  else
    cut<false>({weight, tile, window, side, wanted, total, cuts, sides, strata}, where);
}

}  // namespace densitrace::cuda
