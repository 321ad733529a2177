// densitrace._cuda: the ops on a GPU. Tensors are passed as integer addresses, which
// kernels/cuda has checked. Nothing here depends on torch, and importing the module needs no
// driver.
//
// With DENSITRACE_HOST the same sources are compiled for the host and run on main memory:
// densitrace._cuda_host, which the tests build.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>

#include "cuda/ops.h"

#ifdef DENSITRACE_HOST
#include "cuda/grid.h"
#define MODULE _cuda_host
#else
#define MODULE _cuda
#endif

namespace py = pybind11;
using namespace densitrace::cuda;

namespace {

using Address = std::uintptr_t;

template <typename T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

void check_strata(unsigned strata) {
  if (strata > 255) throw std::invalid_argument("cuts has more than 255 strata");
}

void bind_bottleneck(Address reach, Address levels, Address result, unsigned batch, unsigned length,
                     int device, Address stream) {
  bottleneck(at<const std::uint8_t>(reach), at<const std::uint8_t>(levels),
             at<std::uint8_t>(result), batch, length, {device, stream});
}

void bind_bottleneck_boolean(Address reach, Address levels, Address highest, Address planes,
                             unsigned capacity, Address result, unsigned batch, unsigned length,
                             int device, Address stream) {
  if (capacity == 0)
    throw std::invalid_argument("capacity is 0: planes of at least one level are needed");
  bottleneck_boolean(at<const std::uint8_t>(reach), at<const std::uint8_t>(levels),
                     at<const std::uint8_t>(highest), at<std::uint32_t>(planes), capacity,
                     at<std::uint8_t>(result), batch, length, {device, stream});
}

void bind_trace_sizes(Address reach, Address degrees, Address result, unsigned strata,
                      unsigned batch, unsigned length, int device, Address stream) {
  trace_sizes(at<const std::uint8_t>(reach), at<const std::int32_t>(degrees),
              at<std::int64_t>(result), strata, batch, length, {device, stream});
}

Pattern make_pattern(Address q, Address k, Address lse, Address segments, unsigned batch,
                     unsigned heads, unsigned groups, unsigned length, unsigned d_k,
                     unsigned window, float scale, float softcap) {
  return {at<const BFloat>(q),
          at<const BFloat>(k),
          at<const float>(lse),
          at<const std::int32_t>(segments),
          batch,
          heads,
          groups,
          length,
          d_k,
          window,
          scale,
          softcap};
}

Weights scores() { return {Importance::kScores}; }

Weights norm(Address source, Address target) {
  Weights weights{Importance::kNorm};
  weights.source = at<const float>(source);
  weights.target = at<const float>(target);
  return weights;
}

Weights proximity(Address along, Address v, Address target, unsigned d_v) {
  Weights weights{Importance::kProximity};
  weights.along = at<const BFloat>(along);
  weights.v = at<const BFloat>(v);
  weights.target = at<const float>(target);
  weights.d_v = d_v;
  return weights;
}

Weights given(Address weight) {
  Weights weights{Importance::kGiven};
  weights.given = at<const float>(weight);
  return weights;
}

void bind_weigh(const Pattern& pattern, const Weights& weights, const Tile& tile, Address weight,
                Address share, int device, Address stream) {
  weigh(pattern, weights, tile, at<float>(weight), at<float>(share), {device, stream});
}

void bind_count_edges(Address weight, Address floor, const Tile& tile, unsigned heads, Address kept,
                      int device, Address stream) {
  count_edges(at<const float>(weight), at<const float>(floor), tile, heads, at<std::int64_t>(kept),
              {device, stream});
}

// `columns`: sequence, head, source, target, weight, stratum.
void bind_write_edges(Address weight, Address cuts, unsigned strata, const Tile& tile,
                      unsigned heads, Address starts, const std::array<Address, 6>& columns,
                      int device, Address stream) {
  const Table table{at<std::int32_t>(columns[0]), at<std::int16_t>(columns[1]),
                    at<std::int32_t>(columns[2]), at<std::int32_t>(columns[3]),
                    at<float>(columns[4]),        at<std::uint8_t>(columns[5])};
  write_edges(at<const float>(weight), at<const float>(cuts), strata, tile, heads,
              at<const std::int64_t>(starts), table, {device, stream});
}

void bind_node_cuts(Address weight, const Tile& tile, unsigned window, Address side, unsigned sides,
                    Address wanted, unsigned strata, Address total, Address cuts, int device,
                    Address stream) {
  check_strata(strata);
  node_cuts(at<float>(weight), tile, window, at<const float>(side), sides, at<const double>(wanted),
            strata, at<const float>(total), at<float>(cuts), {device, stream});
}

// `ranked`: entry, dimension; `totals`: sums, edges, summed.
void bind_refine_bounds(const std::array<Address, 2>& ranked, Address sent, Address largest,
                        Address share, Address cuts, unsigned strata, Address weight,
                        const Tile& tile, unsigned heads, unsigned hidden,
                        const std::array<Address, 3>& totals, int device, Address stream) {
  check_strata(strata);
  refine_bounds({at<const float>(ranked[0]), at<const std::uint32_t>(ranked[1])},
                at<const float>(sent), at<const float>(largest), at<const float>(share),
                at<const float>(cuts), strata, at<float>(weight), tile, heads, hidden,
                {at<float>(totals[0]), at<std::int32_t>(totals[1]), at<std::int32_t>(totals[2])},
                {device, stream});
}

void bind_update_levels(Address weight, Address cuts, unsigned strata, const Tile& tile,
                        Address levels, Address degrees, int device, Address stream) {
  check_strata(strata);
  update_levels(at<const float>(weight), at<const float>(cuts), strata, tile,
                at<std::uint8_t>(levels), at<std::int32_t>(degrees), {device, stream});
}

#ifdef DENSITRACE_HOST
void launch_with(const py::object& run) {
  elsewhere = nullptr;
  if (run.is_none()) return;
  elsewhere = [run](const Launch& launch) {
    const Blocks& blocks = launch.blocks;
    run(launch.kernel, py::bytes(launch.arguments, launch.bytes),
        py::make_tuple(blocks.x, blocks.y, blocks.z), launch.threads);
  };
}
#endif

}  // namespace

PYBIND11_MODULE(MODULE, module) {
  module.doc() = "Ops of densitrace on a GPU; see densitrace.kernels for their contracts.";
  const auto device = py::arg("device");
  const auto stream = py::arg("stream");
#ifdef DENSITRACE_HOST
  module.attr("DEVICE") = "cpu";
  module.def(
      "go_backwards", [](bool backwards) { densitrace::cuda::backwards = backwards; },
      py::arg("backwards"), "Run threads and blocks in descending order, or not.");
  module.def("launch_with", &launch_with, py::arg("run"),
             "Pass launches to run(kernel, arguments, (x, y, z), threads); None: run them here.");
#else
  module.attr("DEVICE") = "cuda";
#endif
  module.def("driver_error", &driver_error,
             "Why the driver cannot run these ops, or an empty text.");
  module.def("bottleneck", &bind_bottleneck, py::arg("reach"), py::arg("levels"), py::arg("result"),
             py::arg("batch"), py::arg("length"), device, stream,
             "Write the (max, min) product to `result`.");
  module.def("bottleneck_boolean", &bind_bottleneck_boolean, py::arg("reach"), py::arg("levels"),
             py::arg("highest"), py::arg("planes"), py::arg("capacity"), py::arg("result"),
             py::arg("batch"), py::arg("length"), device, stream,
             "The same, by a product of bit matrices for each level up to `highest`.");
  module.def("plane_words", &plane_words, py::arg("batch"), py::arg("length"),
             "Number of words of the planes of one level.");
  module.def("trace_sizes", &bind_trace_sizes, py::arg("reach"), py::arg("degrees"),
             py::arg("result"), py::arg("strata"), py::arg("batch"), py::arg("length"), device,
             stream, "Write the number of edges of every trace that enter one node layer.");

  py::class_<Pattern>(module, "Pattern", py::module_local(),
                      "densitrace.kernels.Pattern for these ops.")
      .def(py::init(&make_pattern), py::arg("q"), py::arg("k"), py::arg("lse"), py::arg("segments"),
           py::arg("batch"), py::arg("heads"), py::arg("groups"), py::arg("length"), py::arg("d_k"),
           py::arg("window"), py::arg("scale"), py::arg("softcap"));
  py::class_<Weights>(module, "Weights", py::module_local(),
                      "A densitrace.kernels.EdgeWeight for these ops.")
      .def_static("scores", &scores)
      .def_static("norm", &norm, py::arg("source"), py::arg("target"))
      .def_static("proximity", &proximity, py::arg("along"), py::arg("v"), py::arg("target"),
                  py::arg("d_v"))
      .def_static("given", &given, py::arg("weight"));
  py::class_<Tile>(module, "Tile", py::module_local(),
                   "A range of targets and heads, whose weights are in memory at a time.")
      .def(py::init([](unsigned batch, unsigned head, unsigned heads, unsigned first, unsigned rows,
                       unsigned length) { return Tile{batch, head, heads, first, rows, length}; }),
           py::arg("batch"), py::arg("head"), py::arg("heads"), py::arg("first"), py::arg("rows"),
           py::arg("length"));

  const auto tile = py::arg("tile"), heads = py::arg("heads"), weight = py::arg("weight");
  module.def("weigh", &bind_weigh, py::arg("pattern"), py::arg("weights"), tile, weight,
             py::arg("share"), device, stream, "Write the weights of a tile.");
  module.def("count_edges", &bind_count_edges, weight, py::arg("floor"), tile, heads,
             py::arg("kept"), device, stream, "Write how many edges of each row clear a floor.");
  module.def("write_edges", &bind_write_edges, weight, py::arg("cuts"), py::arg("strata"), tile,
             heads, py::arg("starts"), py::arg("columns"), device, stream,
             "Write the edges that clear the last cut to the columns of a table.");
  module.def("node_cuts", &bind_node_cuts, weight, tile, py::arg("window"), py::arg("side"),
             py::arg("sides"), py::arg("wanted"), py::arg("strata"), py::arg("total"),
             py::arg("cuts"), device, stream,
             "Write the cuts of a tile's nodes by shares of a total, or of the number of edges.");
  module.def("refine_bounds", &bind_refine_bounds, py::arg("ranked"), py::arg("sent"),
             py::arg("largest"), py::arg("share"), py::arg("cuts"), py::arg("strata"), weight, tile,
             heads, py::arg("hidden"), py::arg("totals"), device, stream,
             "Replace bounds by exact proximities where they leave a level in doubt.");
  module.def("update_levels", &bind_update_levels, weight, py::arg("cuts"), py::arg("strata"), tile,
             py::arg("levels"), py::arg("degrees"), device, stream,
             "Raise levels to those of the tile's heads, and add their in-degrees.");
}
