// densitrace._cpu: the C++ ops on NumPy arrays. Only this file checks shapes.
//
// bfloat16 arrays are passed as the uint16 of their bits. Queries, keys and values may be strided,
// as long as their last dimension is contiguous.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/ops.h"

namespace py = pybind11;
using namespace densitrace::cpu;

namespace {

using Shape = std::vector<py::ssize_t>;

// C-contiguous and never converted: another dtype or layout is a TypeError.
template <typename T>
using Array = py::array_t<T, py::array::c_style>;
template <typename T>
using Maybe = std::optional<Array<T>>;

Shape shape_of(const py::array& array) {
  return Shape(array.shape(), array.shape() + array.ndim());
}

std::string text(const Shape& shape) {
  std::string result = "[";
  for (std::size_t i = 0; i < shape.size(); ++i)
    result += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return result + "]";
}

void check_shape(const py::array& array, const char* name, const Shape& wanted) {
  if (shape_of(array) != wanted)
    throw std::invalid_argument(std::string(name) + " has the wrong shape; wanted " + text(wanted));
}

void check_dimensions(const py::array& array, const char* name, py::ssize_t wanted) {
  if (array.ndim() != wanted)
    throw std::invalid_argument(std::string(name) + " has the wrong shape; wanted " +
                                std::to_string(wanted) + " dimensions");
}

template <typename T>
const T* data(const Maybe<T>& array, const char* name, const Shape& wanted) {
  if (!array) return nullptr;
  check_shape(*array, name, wanted);
  return array->data();
}

std::size_t size(py::ssize_t value) { return static_cast<std::size_t>(value); }

// A [n, m, rows, columns] array of float32, or of bfloat16 as uint16.
Floats floats(const py::array& array, const char* name) {
  const bool bfloat16 = py::isinstance<py::array_t<std::uint16_t>>(array);
  if (!bfloat16 && !py::isinstance<py::array_t<float>>(array))
    throw py::type_error(std::string(name) + " is neither float32 nor bfloat16");
  check_dimensions(array, name, 4);
  if (array.shape(3) > 1 && array.strides(3) != array.itemsize())
    throw py::type_error(std::string(name) + " has a last dimension that is not contiguous");
  Floats view{array.data(), bfloat16, {}};
  for (py::ssize_t i = 0; i < 3; ++i) {
    if (array.strides(i) < 0 || array.strides(i) % array.itemsize() != 0)
      throw py::type_error(std::string(name) + " has a negative or odd stride");
    view.stride[size(i)] = size(array.strides(i) / array.itemsize());
  }
  return view;
}

// ---- arguments ----------------------------------------------------------------------------------

// A pattern, and references to the arrays that it points into.
struct HeldPattern {
  Pattern plain;
  std::vector<py::object> held;
};

HeldPattern make_pattern(const py::array& q, const py::array& k, float scale, std::size_t window,
                         float softcap, const Maybe<float>& sinks,
                         const Maybe<std::int32_t>& segments, const Maybe<float>& lse) {
  HeldPattern result{{}, {q, k}};
  Pattern& plain = result.plain;
  plain.q = floats(q, "q");
  plain.k = floats(k, "k");
  check_shape(k, "k", {q.shape(0), k.shape(1), q.shape(2), q.shape(3)});
  plain.batch = size(q.shape(0));
  plain.heads = size(q.shape(1));
  plain.groups = size(k.shape(1));
  plain.length = size(q.shape(2));
  plain.d_k = size(q.shape(3));
  if (plain.groups == 0 || plain.heads % plain.groups != 0)
    throw std::invalid_argument("q has " + std::to_string(plain.heads) +
                                " heads, not a multiple of k's " + std::to_string(plain.groups));
  plain.scale = scale;
  plain.window = window;
  plain.softcap = softcap;
  plain.sinks = data(sinks, "sinks", {q.shape(1)});
  plain.segments = data(segments, "segments", {q.shape(0), q.shape(2)});
  plain.lse = data(lse, "lse", {q.shape(0), q.shape(1), q.shape(2)});
  for (const py::object& array : {py::cast(sinks), py::cast(segments), py::cast(lse)})
    result.held.push_back(array);
  return result;
}

// Edges, and references to the arrays that they point into.
struct HeldEdges {
  Edges plain;
  std::vector<py::object> held;
  Shape heads, targets;  // [B, H, T] and [B, T]
};

HeldEdges hold(const HeldPattern& pattern, Importance importance) {
  const Pattern& plain = pattern.plain;
  const auto batch = static_cast<py::ssize_t>(plain.batch);
  const auto length = static_cast<py::ssize_t>(plain.length);
  HeldEdges result{{plain, {}},
                   pattern.held,
                   {batch, static_cast<py::ssize_t>(plain.heads), length},
                   {batch, length}};
  result.plain.weight.importance = importance;
  const bool needs_lse = importance != Importance::kRandom && importance != Importance::kGiven;
  if (needs_lse && plain.lse == nullptr)
    throw std::invalid_argument("lse is missing: this importance needs attention weights");
  return result;
}

void hold_values(HeldEdges& edges, const py::array& v, py::ssize_t d_v) {
  edges.plain.weight.v = floats(v, "v");
  check_shape(v, "v",
              {edges.targets[0], static_cast<py::ssize_t>(edges.plain.pattern.groups),
               edges.targets[1], d_v});
  edges.plain.weight.d_v = size(d_v);
  edges.held.push_back(v);
}

HeldEdges norm_edges(const HeldPattern& pattern, const Array<float>& source,
                     const Maybe<float>& target) {
  HeldEdges edges = hold(pattern, Importance::kNorm);
  check_shape(source, "source", edges.heads);
  edges.plain.weight.source = source.data();
  edges.plain.weight.target = data(target, "target", edges.targets);
  edges.held.insert(edges.held.end(), {source, py::cast(target)});
  return edges;
}

HeldEdges cosine_edges(const HeldPattern& pattern, const Array<float>& direction,
                       const Array<float>& source, const py::array& v) {
  HeldEdges edges = hold(pattern, Importance::kCosine);
  check_dimensions(v, "v", 4);
  hold_values(edges, v, v.shape(3));
  Shape wanted = edges.heads;
  wanted.push_back(v.shape(3));
  check_shape(direction, "direction", wanted);
  check_shape(source, "source", edges.heads);
  edges.plain.weight.direction = direction.data();
  edges.plain.weight.source = source.data();
  edges.held.insert(edges.held.end(), {direction, source});
  return edges;
}

HeldEdges proximity_edges(const HeldPattern& pattern, const Array<float>& node, const py::array& v,
                          const Array<float>& w_o, const Maybe<float>& target) {
  HeldEdges edges = hold(pattern, Importance::kProximity);
  check_dimensions(w_o, "w_o", 3);
  hold_values(edges, v, w_o.shape(2));
  check_shape(w_o, "w_o", {edges.heads[1], w_o.shape(1), w_o.shape(2)});
  check_shape(node, "node", {edges.targets[0], edges.targets[1], w_o.shape(1)});
  edges.plain.weight.node = node.data();
  edges.plain.weight.w_o = w_o.data();
  edges.plain.weight.hidden = size(w_o.shape(1));
  edges.plain.weight.target = data(target, "target", edges.targets);
  edges.held.insert(edges.held.end(), {node, w_o, py::cast(target)});
  return edges;
}

HeldEdges random_edges(const HeldPattern& pattern, std::uint32_t seed, std::uint32_t stream,
                       const Array<std::int32_t>& positions) {
  HeldEdges edges = hold(pattern, Importance::kRandom);
  check_shape(positions, "positions", edges.targets);
  edges.plain.weight.seed = seed;
  edges.plain.weight.stream = stream;
  edges.plain.weight.positions = positions.data();
  edges.held.push_back(positions);
  return edges;
}

HeldEdges given_edges(const HeldPattern& pattern, const Array<float>& weight) {
  HeldEdges edges = hold(pattern, Importance::kGiven);
  check_shape(weight, "weight", {edges.heads[0], edges.heads[1], edges.heads[2], edges.heads[2]});
  edges.plain.weight.given = weight.data();
  edges.held.push_back(weight);
  return edges;
}

// K of cuts [K, B, T], at least 1.
std::size_t strata_of(const py::array& cuts, const Shape& targets) {
  if (cuts.ndim() != 3 || cuts.shape(0) == 0)
    throw std::invalid_argument("cuts has the wrong shape; wanted [K, B, T] with K > 0");
  check_shape(cuts, "cuts", {cuts.shape(0), targets[0], targets[1]});
  return size(cuts.shape(0));
}

// ---- ops ----------------------------------------------------------------------------------------

void source_norms(const py::array& v, const Array<float>& w_o, int p, Array<float>& norms,
                  int threads, const std::string& isa) {
  const Ops& chosen = ops(isa);
  const Floats values = floats(v, "v");
  check_shape(w_o, "w_o", {w_o.shape(0), w_o.ndim() == 3 ? w_o.shape(1) : 0, v.shape(3)});
  check_shape(norms, "norms", {v.shape(0), w_o.shape(0), v.shape(2)});
  if (v.shape(1) == 0 || w_o.shape(0) % v.shape(1) != 0)
    throw std::invalid_argument("w_o has a number of heads that is not a multiple of v's");
  const float* projection = w_o.data();
  float* to = norms.mutable_data();
  const Shape shape = shape_of(v);
  const std::size_t heads = size(w_o.shape(0)), hidden = size(w_o.shape(1));
  py::gil_scoped_release unlocked;
  chosen.source_norms(values, size(shape[0]), size(shape[1]), size(shape[2]), size(shape[3]),
                      projection, heads, hidden, p, to, threads);
}

void attention_stats(const HeldPattern& pattern, const py::array& v, const Maybe<float>& source,
                     Array<float>& output, Array<float>& lse, Array<float>& mass, int threads,
                     const std::string& isa) {
  const Ops& chosen = ops(isa);
  const HeldEdges edges = hold(pattern, Importance::kGiven);
  const Floats values = floats(v, "v");
  check_shape(
      v, "v",
      {edges.heads[0], static_cast<py::ssize_t>(pattern.plain.groups), edges.heads[2], v.shape(3)});
  const float* norms = data(source, "source", edges.heads);
  check_shape(output, "output", {edges.heads[0], edges.heads[1], edges.heads[2], v.shape(3)});
  check_shape(lse, "lse", edges.heads);
  check_shape(mass, "mass", edges.targets);
  float *to = output.mutable_data(), *to_lse = lse.mutable_data(), *to_mass = mass.mutable_data();
  const std::size_t d_v = size(v.shape(3));
  py::gil_scoped_release unlocked;
  chosen.attention_stats(pattern.plain, values, d_v, norms, to, to_lse, to_mass, threads);
}

void edge_mass(const HeldEdges& edges, Array<float>& mass, int threads, const std::string& isa) {
  const Ops& chosen = ops(isa);
  check_shape(mass, "mass", edges.targets);
  float* to = mass.mutable_data();
  py::gil_scoped_release unlocked;
  chosen.edge_mass(edges.plain, to, threads);
}

void edge_weights(const HeldEdges& edges, Array<float>& weights, int threads,
                  const std::string& isa) {
  const Ops& chosen = ops(isa);
  check_shape(weights, "weights", {edges.heads[0], edges.heads[1], edges.heads[2], edges.heads[2]});
  float* to = weights.mutable_data();
  py::gil_scoped_release unlocked;
  chosen.edge_weights(edges.plain, to, threads);
}

// The in-edges of the nodes that get cuts, checked; `values` [K].
InEdges in_edges(const HeldEdges* edges, const Array<float>& side, const Array<double>& values,
                 const Array<float>& cuts) {
  check_dimensions(side, "side", 3);
  check_dimensions(values, "values", 1);
  if (edges != nullptr)
    check_shape(side, "side", {side.shape(0), edges->targets[0], edges->targets[1]});
  else if (side.shape(0) == 0)
    throw std::invalid_argument("side has no edges");
  check_shape(cuts, "cuts", {values.shape(0), side.shape(1), side.shape(2)});
  return {edges == nullptr ? nullptr : &edges->plain, side.data(), size(side.shape(0)),
          size(side.shape(1)), size(side.shape(2))};
}

void nucleus_cuts(const HeldEdges* edges, const Array<float>& side, const Array<double>& masses,
                  const Array<float>& total, Array<float>& cuts, int threads,
                  const std::string& isa) {
  const Ops& chosen = ops(isa);
  const InEdges in = in_edges(edges, side, masses, cuts);
  check_shape(total, "total", {side.shape(1), side.shape(2)});
  const double* wanted = masses.data();
  const float* of = total.data();
  float* to = cuts.mutable_data();
  const std::size_t strata = size(masses.shape(0));
  py::gil_scoped_release unlocked;
  chosen.nucleus_cuts(in, wanted, strata, of, to, threads);
}

void fraction_cuts(const HeldEdges* edges, const Array<float>& side, const Array<double>& fractions,
                   Array<float>& cuts, int threads, const std::string& isa) {
  const Ops& chosen = ops(isa);
  const InEdges in = in_edges(edges, side, fractions, cuts);
  const double* wanted = fractions.data();
  float* to = cuts.mutable_data();
  const std::size_t strata = size(fractions.shape(0));
  py::gil_scoped_release unlocked;
  chosen.fraction_cuts(in, wanted, strata, to, threads);
}

void random_cuts(const HeldEdges& edges, const Array<std::uint8_t>& eligible,
                 const Array<std::int64_t>& counts, Array<float>& cuts, int threads,
                 const std::string& isa) {
  const Ops& chosen = ops(isa);
  if (edges.plain.weight.importance != Importance::kRandom)
    throw std::invalid_argument("edges has to have a random weight");
  check_shape(eligible, "eligible", edges.targets);
  check_dimensions(counts, "counts", 2);
  check_shape(counts, "counts", {counts.shape(0), edges.targets[0]});
  check_shape(cuts, "cuts", shape_of(counts));
  const std::uint8_t* among = eligible.data();
  const std::int64_t* wanted = counts.data();
  float* to = cuts.mutable_data();
  const std::size_t strata = size(counts.shape(0));
  py::gil_scoped_release unlocked;
  chosen.random_cuts(edges.plain, among, wanted, strata, to, threads);
}

std::pair<std::size_t, std::size_t> edge_levels(const HeldEdges& edges, const Array<float>& cuts,
                                                Array<std::uint8_t>& levels,
                                                Array<std::int32_t>& degrees, int threads,
                                                const std::string& isa) {
  const Ops& chosen = ops(isa);
  const std::size_t strata = strata_of(cuts, edges.targets);
  if (strata > 255) throw std::invalid_argument("cuts has more than 255 strata");
  check_shape(levels, "levels", {edges.heads[0], edges.heads[2], edges.heads[2]});
  check_shape(degrees, "degrees", shape_of(cuts));
  const float* from = cuts.data();
  std::uint8_t* to = levels.mutable_data();
  std::int32_t* counted = degrees.mutable_data();
  py::gil_scoped_release unlocked;
  const Work work = chosen.edge_levels(edges.plain, from, strata, to, counted, threads);
  return {work.edges, work.summed};
}

void lane_attention(const HeldEdges& edges, const Array<float>& cuts, const py::array& v,
                    const HeldPattern* lanes, bool invert, py::array_t<float>& output, int threads,
                    const std::string& isa) {
  const Ops& chosen = ops(isa);
  Lanes plain{};
  plain.count = strata_of(cuts, edges.targets);
  plain.cuts = cuts.data();
  plain.v = floats(v, "v");
  const auto strata = static_cast<py::ssize_t>(plain.count);
  const py::ssize_t sequences = strata * edges.targets[0];
  check_shape(v, "v",
              {sequences, static_cast<py::ssize_t>(edges.plain.pattern.groups), edges.targets[1],
               v.shape(3)});
  plain.d_v = size(v.shape(3));
  plain.invert = invert;
  if (edges.plain.pattern.lse == nullptr) throw std::invalid_argument("lse is missing");
  Pattern own;
  if (lanes != nullptr) {
    own = lanes->plain;
    const Pattern& clean = edges.plain.pattern;
    if (own.batch != plain.count * clean.batch || own.heads != clean.heads ||
        own.groups != clean.groups || own.length != clean.length)
      throw std::invalid_argument("lanes has the wrong shape; wanted K times the clean one's");
    plain.pattern = &own;
  }
  check_shape(output, "output",
              {strata, edges.heads[0], edges.heads[1], edges.heads[2], v.shape(3)});
  if (v.shape(3) > 1 && output.strides(4) != output.itemsize())
    throw py::type_error("output has a last dimension that is not contiguous");
  for (py::ssize_t i = 0; i < 4; ++i)
    plain.stride[size(i)] = size(output.strides(i) / output.itemsize());
  plain.output = output.mutable_data();
  py::gil_scoped_release unlocked;
  chosen.lane_attention(edges.plain, plain, threads);
}

// Moves a buffer's memory into an array.
template <typename T>
py::array_t<T> column(Buffer<T>& values, std::size_t count) {
  T* data = values.release();
  return py::array_t<T>(static_cast<py::ssize_t>(count), data, py::capsule(data, &Buffer<T>::free));
}

std::pair<py::tuple, std::size_t> collect_edges(const HeldEdges& edges, const Array<float>& cuts,
                                                Array<std::int64_t>& counts, std::size_t limit,
                                                std::size_t row, int threads,
                                                const std::string& isa) {
  const Ops& chosen = ops(isa);
  const std::size_t strata = strata_of(cuts, edges.targets);
  check_shape(counts, "counts", edges.heads);
  const float* from = cuts.data();
  std::int64_t* counted = counts.mutable_data();
  EdgeRows rows(0);
  {
    py::gil_scoped_release unlocked;
    rows = chosen.collect_edges(edges.plain, from, strata, counted, limit, row, threads);
  }
  return {py::make_tuple(column(rows.sequence, rows.count), column(rows.head, rows.count),
                         column(rows.source, rows.count), column(rows.target, rows.count),
                         column(rows.weight, rows.count), column(rows.stratum, rows.count)),
          row};
}

void bottleneck(const Array<std::uint8_t>& reach, const Array<std::uint8_t>& levels,
                Array<std::uint8_t>& result, int threads, const std::string& isa) {
  const Ops& chosen = ops(isa);
  if (reach.ndim() != 3 || reach.shape(1) != reach.shape(2))
    throw std::invalid_argument("reach has the wrong shape; wanted [B, T, T]");
  const Shape shape = shape_of(reach);
  check_shape(levels, "levels", shape);
  check_shape(result, "result", shape);
  const std::uint8_t *from = reach.data(), *by = levels.data();
  std::uint8_t* to = result.mutable_data();
  py::gil_scoped_release unlocked;
  chosen.bottleneck(from, by, to, size(shape[0]), size(shape[1]), threads);
}

void trace_sizes(const Array<std::uint8_t>& reach, const Array<std::int32_t>& degrees,
                 Array<std::int64_t>& result, int threads, const std::string& isa) {
  const Ops& chosen = ops(isa);
  if (reach.ndim() != 3 || reach.shape(1) != reach.shape(2))
    throw std::invalid_argument("reach has the wrong shape; wanted [B, T, T]");
  const py::ssize_t strata = degrees.ndim() == 3 ? degrees.shape(0) : 0;
  const Shape shape = {strata, reach.shape(0), reach.shape(1)};
  check_shape(degrees, "degrees", shape);
  check_shape(result, "result", shape);
  const std::uint8_t* from = reach.data();
  const std::int32_t* counted = degrees.data();
  std::int64_t* to = result.mutable_data();
  py::gil_scoped_release unlocked;
  chosen.trace_sizes(from, counted, to, size(strata), size(shape[1]), size(shape[2]), threads);
}

// `errors`: tv, kl, top1, nucleus, loss, entropy [K, M], clean loss and entropy [M].
void output_errors(Array<float>& logits, const Maybe<float>& bias, float scale, float softcap,
                   const Array<std::int64_t>& next_ids, std::size_t vocabulary,
                   std::vector<Array<float>>& errors, std::size_t first, int threads,
                   const std::string& isa) {
  const Ops& chosen = ops(isa);
  check_dimensions(logits, "logits", 3);
  check_shape(next_ids, "next_ids", {logits.shape(1)});
  const py::ssize_t lanes = logits.shape(0) - 1;
  if (errors.size() != 8) throw std::invalid_argument("errors has to hold eight arrays");
  const py::ssize_t tokens = errors[7].ndim() == 1 ? errors[7].shape(0) : 0;
  for (std::size_t i = 0; i < 8; ++i)
    check_shape(errors[i], "errors", i < 6 ? Shape{lanes, tokens} : Shape{tokens});
  const std::size_t stride = size(logits.shape(2));
  if (stride % 16 != 0 || vocabulary > stride || vocabulary == 0)
    throw std::invalid_argument(
        "logits has to have rows of a multiple of 16, the vocabulary first");
  if (first + size(logits.shape(1)) > size(tokens))
    throw std::invalid_argument("errors has too few tokens");
  const Predictions all{logits.mutable_data(),
                        size(lanes),
                        size(logits.shape(1)),
                        vocabulary,
                        stride,
                        data(bias, "bias", {static_cast<py::ssize_t>(vocabulary)}),
                        scale,
                        softcap,
                        next_ids.data()};
  for (std::size_t i = 0; i < all.tokens; ++i)
    if (all.next[i] >= static_cast<std::int64_t>(vocabulary))
      throw std::invalid_argument("next_ids has an id beyond the vocabulary");
  float* to[8];
  for (std::size_t i = 0; i < 8; ++i) to[i] = errors[i].mutable_data();
  const Errors results{to[0], to[1], to[2], to[3], to[4], to[5], to[6], to[7], size(tokens), first};
  py::gil_scoped_release unlocked;
  chosen.output_errors(all, results, threads);
}

}  // namespace

PYBIND11_MODULE(_cpu, module) {
  const auto isa = py::arg("isa") = "auto";
  const auto exact = [](const char* name) { return py::arg(name).noconvert(); };
  module.doc() = "The ops of densitrace in C++; see densitrace.kernels for their contracts.";
  module.def("instruction_sets", &instruction_sets,
             "The available values of `isa` besides \"auto\", the fastest first.");

  py::class_<HeldPattern>(module, "Pattern", "densitrace.kernels.Pattern for these ops.")
      .def(py::init(&make_pattern), exact("q"), exact("k"), py::arg("scale"), py::arg("window"),
           py::arg("softcap"), exact("sinks"), exact("segments"), exact("lse"));
  py::class_<HeldEdges>(module, "Edges", "densitrace.kernels.AttentionEdges for these ops.")
      .def_static("norm", &norm_edges, py::arg("pattern"), exact("source"), exact("target"))
      .def_static("cosine", &cosine_edges, py::arg("pattern"), exact("direction"), exact("source"),
                  exact("v"))
      .def_static("proximity", &proximity_edges, py::arg("pattern"), exact("node"), exact("v"),
                  exact("w_o"), exact("target"))
      .def_static("random", &random_edges, py::arg("pattern"), py::arg("seed"), py::arg("stream"),
                  exact("positions"))
      .def_static("given", &given_edges, py::arg("pattern"), exact("weight"));

  module.def("source_norms", &source_norms, exact("v"), exact("w_o"), py::arg("p"), exact("norms"),
             py::arg("threads"), isa, "Write source norms to `norms`.");
  module.def("attention_stats", &attention_stats, py::arg("pattern"), exact("v"), exact("source"),
             exact("output"), exact("lse"), exact("mass"), py::arg("threads"), isa,
             "Write attention output, log-sum-exp and edge mass.");
  module.def("edge_mass", &edge_mass, py::arg("edges"), exact("mass"), py::arg("threads"), isa,
             "Write the sum of the weights into each target.");
  module.def("edge_weights", &edge_weights, py::arg("edges"), exact("weights"), py::arg("threads"),
             isa, "Write all weights, NaN where there is no edge.");
  module.def("nucleus_cuts", &nucleus_cuts, py::arg("edges"), exact("side"), exact("masses"),
             exact("total"), exact("cuts"), py::arg("threads"), isa,
             "Write the cuts that keep each mass.");
  module.def("fraction_cuts", &fraction_cuts, py::arg("edges"), exact("side"), exact("fractions"),
             exact("cuts"), py::arg("threads"), isa, "Write the cuts that keep each fraction.");
  module.def("random_cuts", &random_cuts, py::arg("edges"), exact("eligible"), exact("counts"),
             exact("cuts"), py::arg("threads"), isa,
             "Write the cuts above which `counts` edges lie.");
  module.def("edge_levels", &edge_levels, py::arg("edges"), exact("cuts"), exact("levels"),
             exact("degrees"), py::arg("threads"), isa,
             "Write level map and in-degrees; returns the edges seen and those summed exactly.");
  module.def("lane_attention", &lane_attention, py::arg("edges"), exact("cuts"), exact("v"),
             py::arg("lanes"), py::arg("invert"), exact("output"), py::arg("threads"), isa,
             "Write the attention output of the masked lanes.");
  module.def("collect_edges", &collect_edges, py::arg("edges"), exact("cuts"), exact("counts"),
             py::arg("limit"), py::arg("row"), py::arg("threads"), isa,
             "The kept edges of consecutive rows, as columns, and the first row after them.");
  module.def("bottleneck", &bottleneck, exact("reach"), exact("levels"), exact("result"),
             py::arg("threads"), isa, "Write the (max, min) product to `result`.");
  module.def("trace_sizes", &trace_sizes, exact("reach"), exact("degrees"), exact("result"),
             py::arg("threads"), isa,
             "Write the number of edges of every trace that enter one node layer to `result`.");
  module.def("output_errors", &output_errors, exact("logits"), exact("bias"), py::arg("scale"),
             py::arg("softcap"), exact("next_ids"), py::arg("vocabulary"), py::arg("errors"),
             py::arg("first"), py::arg("threads"), isa,
             "Write the errors of n tokens, overwriting their logits [1 + K, n, V].");
}
