// densitrace._cpu: the C++ ops on NumPy arrays. Shapes are checked here, once; sources do the rest.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/bottleneck.h"

namespace py = pybind11;

namespace {

// C-contiguous, and never converted: an argument of another type is a TypeError.
template <typename T>
using Array = py::array_t<T, py::array::c_style>;

template <typename T>
void check_shape(const Array<T>& array, const char* name, const std::vector<py::ssize_t>& wanted) {
  if (std::vector<py::ssize_t>(array.shape(), array.shape() + array.ndim()) == wanted) return;
  std::string message = std::string(name) + " has the wrong shape; wanted [";
  for (std::size_t i = 0; i < wanted.size(); ++i)
    message += (i == 0 ? "" : ", ") + std::to_string(wanted[i]);
  throw std::invalid_argument(message + "]");
}

// [batch, length, length], or std::invalid_argument.
std::vector<py::ssize_t> square_shape(const Array<std::uint8_t>& reach) {
  if (reach.ndim() != 3 || reach.shape(1) != reach.shape(2))
    throw std::invalid_argument("reach has the wrong shape; wanted [B, T, T]");
  return {reach.shape(0), reach.shape(1), reach.shape(2)};
}

void bottleneck(const Array<std::uint8_t>& reach, const Array<std::uint8_t>& levels,
                Array<std::uint8_t>& result, int threads, const std::string& isa) {
  const auto shape = square_shape(reach);
  check_shape(levels, "levels", shape);
  check_shape(result, "result", shape);
  const std::uint8_t* from = reach.data();
  const std::uint8_t* by = levels.data();
  std::uint8_t* to = result.mutable_data();
  py::gil_scoped_release unlocked;
  densitrace::cpu::bottleneck(from, by, to, static_cast<std::size_t>(shape[0]),
                              static_cast<std::size_t>(shape[1]), threads, isa);
}

void trace_sizes(const Array<std::uint8_t>& reach, const Array<std::int32_t>& degrees,
                 Array<std::int64_t>& result, int threads) {
  const auto shape = square_shape(reach);
  const py::ssize_t strata = degrees.ndim() == 3 ? degrees.shape(0) : 0;
  check_shape(degrees, "degrees", {strata, shape[0], shape[1]});
  check_shape(result, "result", {strata, shape[0], shape[1]});
  const std::uint8_t* from = reach.data();
  const std::int32_t* counted = degrees.data();
  std::int64_t* to = result.mutable_data();
  py::gil_scoped_release unlocked;
  densitrace::cpu::trace_sizes(from, counted, to, static_cast<std::size_t>(strata),
                               static_cast<std::size_t>(shape[0]),
                               static_cast<std::size_t>(shape[1]), threads);
}

}  // namespace

PYBIND11_MODULE(_cpu, module) {
  module.doc() = "The ops of densitrace in C++; see densitrace.kernels for their contracts.";
  module.def("instruction_sets", &densitrace::cpu::instruction_sets,
             "Instruction sets that `isa` may name here, the fastest first.");
  module.def("bottleneck", &bottleneck, py::arg("reach").noconvert(),
             py::arg("levels").noconvert(), py::arg("result").noconvert(), py::arg("threads"),
             py::arg("isa") = "auto", "Writes the (max, min) product into `result`.");
  module.def("trace_sizes", &trace_sizes, py::arg("reach").noconvert(),
             py::arg("degrees").noconvert(), py::arg("result").noconvert(), py::arg("threads"),
             "Writes the edges of every trace that enter one node layer into `result`.");
}
