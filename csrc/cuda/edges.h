// What the ops on attention edges are told: kernels/edges.py for a GPU, and the part they work on.
// Everything is contiguous, and float32 but for the factors of products with as many numbers as
// pairs of tokens: these are bfloat16, in pieces laid out along their inner dimension d_k or d_v
// where the model's are not, a multiple of 8 long, and begin at multiples of 16 bytes.
// B sequences, H heads, G groups, T tokens, K strata.
#pragma once

#include <cstdint>

namespace densitrace::cuda {

using BFloat = std::uint16_t;

// Of all attention edges of a block of the model.
struct Pattern {
  const BFloat *q, *k;           // [B, H, T, d_k], [B, G, T, d_k]
  const float* lse;              // [B, H, T]
  const std::int32_t* segments;  // [B, T] or null
  unsigned batch, heads, groups, length, d_k;
  unsigned window;       // 0: none
  float scale, softcap;  // softcap 0: none
};

enum class Importance { kScores, kNorm, kProximity, kGiven };

// Which fields are read depends on `importance`: see weigh.cu.
struct Weights {
  Importance importance;
  const float* source = nullptr;  // norm: [B, H, T]
  const float* target = nullptr;  // norm, proximity: [B, T] or null
  const BFloat* along = nullptr;  // proximity: [B, H, T, d_v]
  const BFloat* v = nullptr;      // proximity: [B, G, T, d_v]
  unsigned d_v = 0;
  const float* given = nullptr;  // given: [B, H, T, T]
};

// A table of edges, a column an array.
struct Table {
  std::int32_t* sequence;
  std::int16_t* head;
  std::int32_t *source, *target;
  float* weight;
  std::uint8_t* stratum;
};

// Targets [first, first + rows) of the heads [head, head + heads) of all sequences, and their
// sources before first + rows: so much of the weights is held at once.
struct Tile {
  unsigned batch, head, heads, first, rows, length;

  unsigned sources() const { return first + rows; }
};

// The entries of each node [B, T, D] in ascending magnitude, and which dimension each is.
struct Ranked {
  const float* entry;
  const std::uint32_t* dimension;
};

// What settle says of a row [B, H, T]: its weights' sum, where there are no cuts; its edges, and
// those of them whose weight was summed.
struct Settled {
  float* sums;
  std::int32_t *edges, *summed;
};

}  // namespace densitrace::cuda
