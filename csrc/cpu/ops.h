// The table of ops of an instruction set. Each op is described in the file of its name.
#pragma once

#include <string>
#include <vector>

#include "arguments.h"

namespace densitrace::cpu {

// Results do not depend on `threads`. Tensors are row-major; every entry of a result is written.
struct Ops {
  void (*attention_stats)(const Pattern&, const Floats& v, std::size_t d_v, const float* source,
                          float* output, float* lse, float* mass, int threads);
  void (*bottleneck)(const std::uint8_t* reach, const std::uint8_t* levels, std::uint8_t* result,
                     std::size_t batch, std::size_t length, int threads);
  EdgeRows (*collect_edges)(const Edges&, const float* cuts, std::size_t strata,
                            std::int64_t* counts, std::size_t limit, std::size_t& row, int threads);
  Work (*edge_levels)(const Edges&, const float* cuts, std::size_t strata, std::uint8_t* levels,
                      std::int32_t* degrees, int threads);
  void (*edge_mass)(const Edges&, float* mass, int threads);
  void (*edge_weights)(const Edges&, float* weights, int threads);
  void (*fraction_cuts)(const InEdges&, const double* fractions, std::size_t strata, float* cuts,
                        int threads);
  void (*lane_attention)(const Edges&, const Lanes&, int threads);
  void (*nucleus_cuts)(const InEdges&, const double* masses, std::size_t strata, const float* total,
                       float* cuts, int threads);
  void (*output_errors)(const Predictions&, const Errors&, int threads);
  void (*random_cuts)(const Edges&, const std::uint8_t* eligible, const std::int64_t* counts,
                      std::size_t strata, float* cuts, int threads);
  void (*source_norms)(const Floats& v, std::size_t batch, std::size_t groups, std::size_t length,
                       std::size_t d_v, const float* w_o, std::size_t heads, std::size_t hidden,
                       int p, float* norms, int threads);
  void (*trace_sizes)(const std::uint8_t* reach, const std::int32_t* degrees, std::int64_t* result,
                      std::size_t strata, std::size_t batch, std::size_t length, int threads);
};

// Instruction sets supported by this build and this processor, the fastest first: "avx512" (F, BW,
// DQ and VL), "avx2" (with FMA), "portable".
std::vector<std::string> instruction_sets();

// The ops of the instruction set of that name; "auto": of the fastest.
// Throws std::invalid_argument if it is not available.
const Ops& ops(const std::string& isa);

}  // namespace densitrace::cpu
