// The unnormalised weights of attention edges: METHOD, section 2.
//
// weight [B, heads of the tile, rows, sources], float32, -inf where there is no edge; blocks that
// lie wholly above the diagonal are not written. With alpha = exp(score - lse), and scores <q, k>
// scaled and capped:
//
//   scores     the score itself
//   norm       alpha source[h, s] target[t]
//   proximity  max(0, a c), an upper bound; a = alpha target[t] is written to `share` [as weight],
//              and c = <W_O^T sign(n_t), v_s> = <along[h, t], v[g, s]>; NaN stays NaN
//   given      the entry of an array [B, H, T, T]
//
// A block of threads owns 64 targets and 64 sources of a head, each of its warps 32 of either. It
// multiplies on the matrix units, 32 dimensions at a time through shared memory, with the next ones
// loaded ahead: 2 d operations per edge, product and pair of pieces; 4 (8) bytes an edge written.

#include <cmath>

#include "cells.h"
#include "grid.h"

namespace densitrace::cuda {
namespace {

constexpr unsigned kSide = 64;   // targets, and sources, of a block
constexpr unsigned kQuads = 4;   // of a row in shared memory
constexpr unsigned kInQuad = 8;  // dimensions
constexpr unsigned kDepth = kQuads * kInQuad;

// kDepth dimensions of 64 rows. Eight neighbouring threads read two rows, which cover all 32 banks.
struct Strip {
  Quad rows[kSide][kQuads];
};

struct Sums : Cells<float> {
#ifdef __CUDACC__
  // Adds products of rows of `left` from `row` on with rows of `right` from `column` on. A thread
  // holds one quad of each of its rows: the sum does not depend on which dimensions an mma pairs.
  DEVICE void multiply_add(const Strip& left, unsigned row, const Strip& right, unsigned column) {
    const unsigned eighth = threadIdx.x % kWarp / 4, quad = threadIdx.x % 4;
    const Quad upper = left.rows[row + eighth][quad], lower = left.rows[row + eighth + 8][quad];
    const Quad other = right.rows[column + eighth][quad];
#pragma unroll
    for (unsigned i = 0; i < 4; i += 2)
      asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
          "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
          : "+f"(held[0]), "+f"(held[1]), "+f"(held[2]), "+f"(held[3])
          : "r"(upper.x[i]), "r"(lower.x[i]), "r"(upper.x[i + 1]), "r"(lower.x[i + 1]),
            "r"(other.x[i]), "r"(other.x[i + 1]));
  }
#else
  void multiply_add(const Strip& left, unsigned first, const Strip& right, unsigned second) {
    for (unsigned i = 0; i < kHeld; ++i)
      for (unsigned word = 0; word < kDepth / 2; ++word) {
        const std::uint32_t a = left.rows[first + row(i)][word / 4].x[word % 4];
        const std::uint32_t b = right.rows[second + column(i)][word / 4].x[word % 4];
        held[i] += float_of(a << 16) * float_of(b << 16);
        held[i] += float_of(a & 0xFFFF0000) * float_of(b & 0xFFFF0000);
      }
  }
#endif
};

template <Importance kImportance>
struct Weigh {
  Pattern pattern;
  Weights weights;
  Tile tile;
  float *weight, *share;

  static constexpr bool kShared = kImportance == Importance::kProximity;  // `share` is written
  // Whether attention weights are needed.
  static constexpr bool kAlpha =
      kImportance == Importance::kNorm || kImportance == Importance::kProximity;
  static constexpr unsigned kThreads = 2 * kSide;  // warps own 32 targets and 32 sources
  static constexpr unsigned kResident = 3;
  static constexpr unsigned kDown = 32 / Sums::kRows, kAcross = 32 / Sums::kColumns;
  static constexpr unsigned kTurns = kSide * kQuads / kThreads;

  struct Shared {
    Strip left, right;
    std::int32_t parted;  // not 0 if some tokens belong to another segment
  };
  // A thread's quads of 64 rows, for the next dimensions to be multiplied.
  struct Strips {
    const BFloat* from[kTurns];  // null for a row beyond the end
    Quad quads[kTurns];
  };
  struct Own {
    Strips left, right;
    Sums score[kDown][kAcross], along[kDown][kAcross];
  };

  template <typename Block>
  DEVICE void operator()(Block& block) const {
    const unsigned sources = tile.first + tile.rows, columns = (sources + kSide - 1) / kSide;
    const unsigned t = tile.first + block.x / columns * kSide, s = block.x % columns * kSide;
    if (s > t + kSide - 1) return;  // wholly above the diagonal
    const unsigned b = block.y / tile.heads, h = tile.head + block.y % tile.heads;
    const unsigned g = h * pattern.groups / pattern.heads, length = tile.length;
    const std::uint64_t row = (std::uint64_t{b} * pattern.heads + h) * length + t;
    const std::uint64_t group = std::uint64_t{b} * pattern.groups + g;
    block.each([&](unsigned thread, Own&) {
      if (thread == 0) block.shared.parted = 0;
    });
    if (pattern.segments != nullptr)
      part(block, pattern.segments + std::uint64_t{b} * length, t, s);
    if constexpr (kImportance != Importance::kGiven)
      multiply(block, &Own::score, pattern.q + row * pattern.d_k,
               pattern.k + (group * length + s) * pattern.d_k, sources - t, sources - s,
               pattern.d_k);
    if constexpr (kImportance == Importance::kProximity)
      multiply(block, &Own::along, weights.along + row * weights.d_v,
               weights.v + (group * length + s) * weights.d_v, sources - t, sources - s,
               weights.d_v);
    block.each_warp([&](unsigned warp, Own& own) {
      const unsigned down = t + warp / 2 * 32, across = s + warp % 2 * 32;
      // Whether all pairs of the block's targets and sources are edges.
      const bool whole = s + kSide <= t + 1 && t + kSide <= sources && block.shared.parted == 0 &&
                         (pattern.window == 0 || t + kSide - s <= pattern.window);
      if (whole)
        write<true>(own, block.y, b, h, down, across);
      else
        write<false>(own, block.y, b, h, down, across);
    });
  }

 private:
  template <typename Block>
  DEVICE void part(Block& block, const std::int32_t* segments, unsigned t, unsigned s) const {
    block.each([&](unsigned thread, Own&) {
      const unsigned at = (thread < kSide ? t : s - kSide) + thread;
      if (at < tile.first + tile.rows && segments[at] != segments[t]) add(block.shared.parted, 1);
    });
  }

  // own.*into <- left [rows, depth] times right [columns, depth] transposed.
  template <typename Block>
  DEVICE void multiply(Block& block, Sums (Own::*into)[kDown][kAcross], const BFloat* left,
                       const BFloat* right, unsigned rows, unsigned columns, unsigned depth) const {
    block.each_warp([&](unsigned, Own& own) {
#pragma unroll
      for (unsigned r = 0; r < kDown; ++r)
#pragma unroll
        for (unsigned c = 0; c < kAcross; ++c) (own.*into)[r][c] = Sums{};
    });
    block.each([&](unsigned thread, Own& own) {
      begin(own.left, left, rows, depth, thread);
      begin(own.right, right, columns, depth, thread);
    });
    for (unsigned d = 0; d < depth; d += kDepth) {
      block.each([&](unsigned thread, Own& own) {
#pragma unroll
        for (unsigned turn = 0; turn < kTurns; ++turn) {
          const unsigned at = turn * kThreads + thread;
          block.shared.left.rows[at / kQuads][at % kQuads] = own.left.quads[turn];
          block.shared.right.rows[at / kQuads][at % kQuads] = own.right.quads[turn];
        }
        if (d + kDepth >= depth) return;
        const bool inside = d + kDepth + thread % kQuads * kInQuad < depth;
        fetch(own.left, d + kDepth, inside);
        fetch(own.right, d + kDepth, inside);
      });
      block.each_warp([&](unsigned warp, Own& own) {
#pragma unroll
        for (unsigned r = 0; r < kDown; ++r)
#pragma unroll
          for (unsigned c = 0; c < kAcross; ++c)
            (own.*into)[r][c].multiply_add(block.shared.left, warp / 2 * 32 + r * Sums::kRows,
                                           block.shared.right, warp % 2 * 32 + c * Sums::kColumns);
      });
    }
  }

  DEVICE void begin(Strips& strips, const BFloat* from, unsigned rows, unsigned depth,
                    unsigned thread) const {
    const unsigned first = thread % kQuads * kInQuad;
#pragma unroll
    for (unsigned turn = 0; turn < kTurns; ++turn) {
      const unsigned row = (turn * kThreads + thread) / kQuads;
      strips.from[turn] = row < rows ? from + std::uint64_t{row} * depth + first : nullptr;
    }
    fetch(strips, 0, first < depth);
  }
  // Loads the quads from dimension d on; 0 beyond the last row or dimension.
  DEVICE void fetch(Strips& strips, unsigned d, bool inside) const {
#pragma unroll
    for (unsigned turn = 0; turn < kTurns; ++turn)
      strips.quads[turn] = inside && strips.from[turn] != nullptr
                               ? *reinterpret_cast<const Quad*>(strips.from[turn] + d)
                               : Quad{{0, 0, 0, 0}};
  }

  // Data that all edges into a target of a head share.
  struct Target {
    unsigned t;
    std::uint64_t to;    // offset of its row in the tile
    std::uint64_t head;  // offset of the head's first row in [B, H, T]
    float lse = 0, scale = 1;
    const std::int32_t* segments = nullptr;  // of its sequence
    std::int32_t segment = 0;

    DEVICE Target(const Weigh& weigh, unsigned slice, unsigned b, unsigned h, unsigned at)
        : t(at),
          to((std::uint64_t{slice} * weigh.tile.rows + t - weigh.tile.first) *
             (weigh.tile.first + weigh.tile.rows)),
          head((std::uint64_t{b} * weigh.pattern.heads + h) * weigh.tile.length) {
      const Pattern& pattern = weigh.pattern;
      const std::uint64_t sequence = std::uint64_t{b} * weigh.tile.length;
      if constexpr (kAlpha) {
        lse = pattern.lse[head + t];
        if (weigh.weights.target != nullptr) scale = weigh.weights.target[sequence + t];
      }
      if (pattern.segments == nullptr) return;
      segments = pattern.segments + sequence;
      segment = segments[t];
    }
  };

  struct Weighed {
    float weight, share;
  };
  struct alignas(8) Two {
    float one, other;
  };

  // Writes a warp's weights, from target `down` and source `across` on.
  template <bool kWhole>
  DEVICE void write(Own& own, unsigned slice, unsigned b, unsigned h, unsigned down,
                    unsigned across) const {
    const unsigned sources = tile.first + tile.rows;
#pragma unroll
    for (unsigned r = 0; r < kDown; ++r)
#pragma unroll
      for (unsigned first = 0; first < Sums::kHeld; first += Sums::kHeldOfRow) {
        const unsigned t = down + r * Sums::kRows + Sums::row(first);
        if (!kWhole && t >= sources) continue;
        const Target target(*this, slice, b, h, t);
#pragma unroll
        for (unsigned c = 0; c < kAcross; ++c) {
          const unsigned s = across + c * Sums::kColumns + Sums::column(first);
          Weighed weighed[Sums::kHeldOfRow];
#pragma unroll
          for (unsigned i = 0; i < Sums::kHeldOfRow; ++i)
            weighed[i] = kWhole || is_edge(target, s + i)
                             ? weigh_edge(target, s + i, own.score[r][c].held[first + i],
                                          own.along[r][c].held[first + i])
                             : Weighed{-INFINITY, 0};
          write<kWhole>(weighed, target.to, s);
        }
      }
  }

  // Writes neighbouring weights from source s on into a row of the tile, two at once if possible.
  template <bool kWhole>
  DEVICE void write(const Weighed (&weighed)[Sums::kHeldOfRow], std::uint64_t row,
                    unsigned s) const {
    const unsigned sources = tile.first + tile.rows;
    const bool twos = kWhole && sources % 2 == 0;
#pragma unroll
    for (unsigned i = 0; i < Sums::kHeldOfRow; ++i) {
      const std::uint64_t to = row + s + i;
      if (twos) {
        if (i % 2 != 0) continue;  // written with the one before
        const Weighed &one = weighed[i], &other = weighed[i + 1];
        *reinterpret_cast<Two*>(weight + to) = {one.weight, other.weight};
        if (kShared) *reinterpret_cast<Two*>(share + to) = {one.share, other.share};
      } else if (kWhole || s + i < sources) {
        weight[to] = weighed[i].weight;
        if (kShared) share[to] = weighed[i].share;
      }
    }
  }

  DEVICE bool is_edge(const Target& target, unsigned s) const {
    return s <= target.t && (pattern.window == 0 || target.t - s < pattern.window) &&
           (target.segments == nullptr || target.segments[s] == target.segment);
  }

  DEVICE Weighed weigh_edge(const Target& target, unsigned s, float product, float along) const {
    if constexpr (kImportance == Importance::kGiven)
      return {weights.given[(target.head + target.t) * tile.length + s], 0};
    float score = product * pattern.scale;
    if (pattern.softcap != 0) score = pattern.softcap * tanhf(score / pattern.softcap);
    if constexpr (kImportance == Importance::kScores) return {score, 0};
    const float alpha = exponential(score - target.lse);
    if constexpr (kImportance == Importance::kNorm)
      return {alpha * weights.source[target.head + s] * target.scale, 0};
    const float part = alpha * target.scale, bound = part * along;
    return {bound < 0 ? 0.0f : bound, part};
  }
};

template <Importance kImportance>
void weigh_as(const Pattern& pattern, const Weights& weights, const Tile& tile, float* weight,
              float* share, Where where) {
  using Kernel = Weigh<kImportance>;
  const unsigned rows = (tile.rows + kSide - 1) / kSide;
  const unsigned columns = (tile.sources() + kSide - 1) / kSide;
  launch(Kernel{pattern, weights, tile, weight, share}, {rows * columns, tile.batch * tile.heads},
         where);
}

}  // namespace

void weigh(const Pattern& pattern, const Weights& weights, const Tile& tile, float* weight,
           float* share, Where where) {
  switch (weights.importance) {
    case Importance::kScores:
      return weigh_as<Importance::kScores>(pattern, weights, tile, weight, share, where);
    case Importance::kNorm:
      return weigh_as<Importance::kNorm>(pattern, weights, tile, weight, share, where);
    case Importance::kProximity:
      return weigh_as<Importance::kProximity>(pattern, weights, tile, weight, share, where);
    case Importance::kGiven:
      return weigh_as<Importance::kGiven>(pattern, weights, tile, weight, share, where);
  }
}

}  // namespace densitrace::cuda
