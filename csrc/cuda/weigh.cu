// The unnormalised weights of attention edges: METHOD, section 2.
//
// weight [B, heads of the tile, rows, sources], float32, -inf where there is no edge; what lies
// more than a block above the diagonal is not written. From alpha = exp(score - lse), with scores
// <q, k> scaled and capped:
//
//   scores     the score itself
//   norm       alpha source[h, s] target[t]
//   proximity  max(0, a c), an upper bound, with a = alpha target[t], kept in `share` [as weight],
//              and c = <W_O^T sign(n_t), v_s> = <along[h, t], v[g, s]>; a NaN stays one
//   given      what is written in an array [B, H, T, T]
//
// A block of threads owns 64 targets and 64 sources of a head and multiplies in float32, 16
// dimensions at a time through shared memory, 4 x 4 results a thread: d operations an edge and
// product; 4 (8) bytes an edge are written.

#include <cmath>

#include "grid.h"

namespace densitrace::cuda {
namespace {

struct alignas(16) Four {
  float x[4];
};

template <Importance kImportance>
struct Weigh {
  Pattern pattern;
  Weights weights;
  Tile tile;
  float *weight, *share;

  static constexpr unsigned kSide = 64;
  static constexpr unsigned kDepth = 16;
  static constexpr unsigned kAcross = kSide / 4;  // threads along either side
  static constexpr unsigned kThreads = kAcross * kAcross;
  static constexpr unsigned kResident = 2;

  struct Shared {
    Four left[kDepth][kAcross + 1], right[kDepth][kAcross + 1];  // [d, t], [d, s]
  };
  struct Own {
    Four score[4], along[4];  // of 4 targets and 4 sources
  };

  template <typename Block>
  DEVICE void operator()(Block& block) const {
    const unsigned sources = tile.first + tile.rows, columns = (sources + kSide - 1) / kSide;
    const unsigned t = tile.first + block.x / columns * kSide, s = block.x % columns * kSide;
    if (s > t + kSide - 1) return;  // above the diagonal, all of it
    const unsigned b = block.y / tile.heads, h = tile.head + block.y % tile.heads;
    const unsigned g = h * pattern.groups / pattern.heads, length = tile.length;
    const std::uint64_t row = (std::uint64_t{b} * pattern.heads + h) * length + t;
    const std::uint64_t group = std::uint64_t{b} * pattern.groups + g;
    if constexpr (kImportance != Importance::kGiven)
      multiply(block, &Own::score, pattern.q + row * pattern.d_k,
               pattern.k + (group * length + s) * pattern.d_k, sources - t, sources - s,
               pattern.d_k);
    if constexpr (kImportance == Importance::kProximity)
      multiply(block, &Own::along, weights.along + row * weights.d_v,
               weights.v + (group * length + s) * weights.d_v, sources - t, sources - s,
               weights.d_v);
    block.each([&](unsigned thread, Own& own) {
#pragma unroll
      for (unsigned i = 0; i < 4; ++i)
#pragma unroll
        for (unsigned j = 0; j < 4; ++j)
          write(block.y, b, h, t + thread / kAcross * 4 + i, s + thread % kAcross * 4 + j,
                own.score[i].x[j], own.along[i].x[j]);
    });
  }

 private:
  // own.*into <- left [rows, depth] times right [columns, depth], transposed.
  template <typename Block>
  DEVICE void multiply(Block& block, Four (Own::*into)[4], const float* left, const float* right,
                       unsigned rows, unsigned columns, unsigned depth) const {
    block.each([&](unsigned, Own& own) {
#pragma unroll
      for (unsigned i = 0; i < 4; ++i) (own.*into)[i] = Four{{0, 0, 0, 0}};
    });
    for (unsigned d = 0; d < depth; d += kDepth) {
      block.each([&](unsigned thread, Own&) {
#pragma unroll
        for (unsigned i = thread; i < kSide * kDepth; i += kThreads) {
          const unsigned row = i / kDepth, at = i % kDepth;
          const bool within = d + at < depth;
          const std::uint64_t from = std::uint64_t{row} * depth + d + at;
          block.shared.left[at][row / 4].x[row % 4] = within && row < rows ? left[from] : 0.0f;
          block.shared.right[at][row / 4].x[row % 4] = within && row < columns ? right[from] : 0.0f;
        }
      });
      block.each([&](unsigned thread, Own& own) {
#pragma unroll
        for (unsigned at = 0; at < kDepth; ++at) {
          const Four a = block.shared.left[at][thread / kAcross];
          const Four b = block.shared.right[at][thread % kAcross];
#pragma unroll
          for (unsigned i = 0; i < 4; ++i)
#pragma unroll
            for (unsigned j = 0; j < 4; ++j)
              (own.*into)[i].x[j] = fmaf(a.x[i], b.x[j], (own.*into)[i].x[j]);
        }
      });
    }
  }

  DEVICE void write(unsigned slice, unsigned b, unsigned h, unsigned t, unsigned s, float product,
                    float along) const {
    const unsigned sources = tile.first + tile.rows, length = tile.length;
    if (t >= sources || s >= sources) return;
    const std::uint64_t to = (std::uint64_t{slice} * tile.rows + t - tile.first) * sources + s;
    if (!is_edge(b, t, s)) {
      weight[to] = -INFINITY;
      if constexpr (kImportance == Importance::kProximity) share[to] = 0;
      return;
    }
    const std::uint64_t head = std::uint64_t{b} * pattern.heads + h;
    if constexpr (kImportance == Importance::kGiven) {
      weight[to] = weights.given[(head * length + t) * length + s];
      return;
    }
    float score = product * pattern.scale;
    if (pattern.softcap != 0) score = pattern.softcap * tanhf(score / pattern.softcap);
    if constexpr (kImportance == Importance::kScores) {
      weight[to] = score;
      return;
    }
    const float alpha = expf(score - pattern.lse[head * length + t]);
    const float target =
        weights.target == nullptr ? 1.0f : weights.target[std::uint64_t{b} * length + t];
    if constexpr (kImportance == Importance::kNorm)
      weight[to] = alpha * weights.source[head * length + s] * target;
    if constexpr (kImportance == Importance::kProximity) {
      share[to] = alpha * target;
      const float bound = share[to] * along;
      weight[to] = bound < 0 ? 0.0f : bound;
    }
  }

  DEVICE bool is_edge(unsigned b, unsigned t, unsigned s) const {
    if (s > t || (pattern.window != 0 && t - s >= pattern.window)) return false;
    const std::int32_t* segments = pattern.segments;
    if (segments == nullptr) return true;
    const std::uint64_t row = std::uint64_t{b} * tile.length;
    return segments[row + t] == segments[row + s];
  }
};

template <Importance kImportance>
void weigh_as(const Pattern& pattern, const Weights& weights, const Tile& tile, float* weight,
              float* share, Where where) {
  using Kernel = Weigh<kImportance>;
  const unsigned rows = (tile.rows + Kernel::kSide - 1) / Kernel::kSide;
  const unsigned columns = (tile.sources() + Kernel::kSide - 1) / Kernel::kSide;
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
