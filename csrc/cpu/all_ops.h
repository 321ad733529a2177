// All ops for one instruction set. No include guard: avx512.cpp, avx2.cpp and portable.cpp each
// include this file, and through it the files of the ops, within their own namespace and target
// instructions, after defining these constants:
//
//   kVectorBytes               bytes of a register
//   kRows, kVectors            rows, and registers per row, of a block of a product (product.h)
//   kLevelRows, kLevelVectors  the same for the (max, min) product (bottleneck.h)

#include "simd.h"
#include "product.h"
#include "strips.h"
#include "proximity.h"
#include "edges.h"

#include "attention_stats.h"
#include "bottleneck.h"
#include "collect_edges.h"
#include "edge_levels.h"
#include "edge_weights.h"
#include "lane_attention.h"
#include "node_cuts.h"
#include "output_errors.h"
#include "random_cuts.h"
#include "source_norms.h"
#include "trace_sizes.h"

extern const Ops kOps;
const Ops kOps = {attention_stats, bottleneck,    collect_edges,  edge_levels,  edge_mass,
                  edge_weights,    fraction_cuts, lane_attention, nucleus_cuts, output_errors,
                  random_cuts,     source_norms,  trace_sizes};
