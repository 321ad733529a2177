// Arguments of the ops as plain structures: kernels/edges.py in C++. Names of dimensions are those
// of kernels/__init__.py: B sequences, H heads, G groups, T tokens, K strata, D hidden.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "buffer.h"

namespace densitrace::cpu {

// A [n, m, rows, columns] array of float32 or bfloat16 whose columns are contiguous.
struct Floats {
  const void* data = nullptr;
  bool bfloat16 = false;
  std::array<std::size_t, 3> stride{};  // in elements, of the first three dimensions
};

struct Pattern {
  Floats q, k;  // [B, H, T, d_k], [B, G, T, d_k]; with lanes [K * B, ...]
  std::size_t batch, heads, groups, length, d_k;
  float scale;
  std::size_t window;                      // 0: none
  float softcap;                           // 0: none
  const float* sinks = nullptr;            // [H] or null
  const std::int32_t* segments = nullptr;  // [B, T] or null
  const float* lse = nullptr;              // [B, H, T] or null
};

enum class Importance { kNorm, kCosine, kProximity, kRandom, kGiven };

// `importance` decides which fields are read; kernels/edges.py defines them.
struct EdgeWeight {
  Importance importance;
  const float* source = nullptr;     // norm, cosine: [B, H, T]
  const float* target = nullptr;     // norm, proximity: [B, T] or null
  const float* direction = nullptr;  // cosine: [B, H, T, d_v]
  const float* node = nullptr;       // proximity: [B, T, D]
  const float* w_o = nullptr;        // proximity: [H, D, d_v]
  Floats v;                          // cosine, proximity: [B, G, T, d_v]
  std::size_t d_v = 0, hidden = 0;
  std::uint32_t seed = 0, stream = 0;       // random
  const std::int32_t* positions = nullptr;  // random: [B, T]
  const float* given = nullptr;             // given: [B, H, T, T]
};

struct Edges {
  Pattern pattern;
  EdgeWeight weight;
};

// All in-edges of nodes: attention edges (null: none) and side edges [E, B, T].
struct InEdges {
  const Edges* attention;
  const float* side;
  std::size_t sides, batch, length;
};

// How much of the proximity was computed exactly: see proximity.h.
struct Work {
  std::size_t edges = 0, summed = 0;  // edges seen, and those with any term summed
};

// The lanes of lane_attention.
struct Lanes {
  std::size_t count;
  const Pattern* pattern;  // their own queries and keys, [K * B, ...]; null: frozen
  Floats v;                // [K * B, G, T, d_v]
  std::size_t d_v;
  const float* cuts;                  // [K, B, T]
  bool invert;                        // keep the entries that do not clear the cut instead
  float* output;                      // [K, B, H, T, d_v]
  std::array<std::size_t, 4> stride;  // of its first four dimensions
};

// A table of edges: one array per column.
struct EdgeRows {
  explicit EdgeRows(std::size_t rows)
      : count(rows),
        sequence(rows),
        source(rows),
        target(rows),
        head(rows),
        stratum(rows),
        weight(rows) {}

  std::size_t count;
  Buffer<std::int32_t> sequence, source, target;
  Buffer<std::int16_t> head;
  Buffer<std::uint8_t> stratum;
  Buffer<float> weight;
};

// Logits of a few tokens in all lanes, the clean one first.
struct Predictions {
  float* logits;  // [1 + K, n, stride]: overwritten
  std::size_t lanes, tokens, vocabulary, stride;
  const float* bias;         // [V] or null
  float scale, softcap;      // softcap 0: none
  const std::int64_t* next;  // [n], -1 where no token follows
};

// Results [K, M] and [M], written from column `first` on; `columns` is M.
struct Errors {
  float *tv, *kl, *top1, *nucleus, *loss, *entropy, *clean_loss, *clean_entropy;
  std::size_t columns, first;
};

}  // namespace densitrace::cpu
