// Arguments of the ops on attention edges: kernels/edges.py for a GPU, and tiles of edges.
// Everything is contiguous and float32, except the factors of T x T products (q, k, along, v):
// these are bfloat16. If the model's are not, they are split into bfloat16 pieces, concatenated
// along the inner dimension d_k or d_v, which is a multiple of 8; rows start at multiples of 16
// bytes. B sequences, H heads, G groups, T tokens, K strata.
#pragma once

#include <cstdint>

namespace densitrace::cuda {

using BFloat = std::uint16_t;

// The attention pattern of a block of the model.
struct Pattern {
  const BFloat *q, *k;           // [B, H, T, d_k], [B, G, T, d_k]
  const float* lse;              // [B, H, T]
  const std::int32_t* segments;  // [B, T] or null
  unsigned batch, heads, groups, length, d_k;
  unsigned window;       // 0: none
  float scale, softcap;  // softcap 0: none
};

enum class Importance { kScores, kNorm, kProximity, kGiven };

// `importance` decides which fields are read: see weigh.cu.
struct Weights {
  Importance importance;
  const float* source = nullptr;  // norm: [B, H, T]
  const float* target = nullptr;  // norm, proximity: [B, T] or null
  const BFloat* along = nullptr;  // proximity: [B, H, T, d_v]
  const BFloat* v = nullptr;      // proximity: [B, G, T, d_v]
  unsigned d_v = 0;
  const float* given = nullptr;  // given: [B, H, T, T]
};

// A table of edges: one array per column.
struct Table {
  std::int32_t* sequence;
  std::int16_t* head;
  std::int32_t *source, *target;
  float* weight;
  std::uint8_t* stratum;
};

// Targets [first, first + rows) of heads [head, head + heads) of all sequences, with sources before
// first + rows: the part of the weights that is in memory at a time.
struct Tile {
  unsigned batch, head, heads, first, rows, length;

  unsigned sources() const { return first + rows; }
};

// The entries of each node [B, T, D] in ascending magnitude, and their dimensions.
struct Ranked {
  const float* entry;
  const std::uint32_t* dimension;
};

// Results of refine_bounds per row [B, H, T]: the sum of its weights (0 under cuts); the number of
// its edges, and of those whose excess was summed.
struct RowTotals {
  float* sums;
  std::int32_t *edges, *summed;
};

}  // namespace densitrace::cuda
