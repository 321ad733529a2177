// densitrace._cuda: the ops on a GPU. Tensors come as the integers of their addresses, checked by
// kernels/cuda.py; nothing here knows torch, and importing it needs no driver.
//
// With DENSITRACE_HOST the same sources, compiled for the host, run on addresses of main memory:
// densitrace._cuda_host, which the tests build.

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

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

// `most` is read by the boolean way alone.
void bind_bottleneck(Address reach, Address levels, Address most, Address result, unsigned batch,
                     unsigned length, const std::string& method, int device, Address stream) {
  const auto *from = at<const std::uint8_t>(reach), *by = at<const std::uint8_t>(levels);
  auto* to = at<std::uint8_t>(result);
  const Where where{device, stream};
  if (method == "packed")
    bottleneck(from, by, to, batch, length, where);
  else if (method == "boolean")
    bottleneck_boolean(from, by, at<const std::uint8_t>(most), to, batch, length, where);
  else
    throw std::invalid_argument("method='" + method + "' is neither packed nor boolean");
}

void bind_trace_sizes(Address reach, Address degrees, Address result, unsigned strata,
                      unsigned batch, unsigned length, int device, Address stream) {
  trace_sizes(at<const std::uint8_t>(reach), at<const std::int32_t>(degrees),
              at<std::int64_t>(result), strata, batch, length, {device, stream});
}

}  // namespace

PYBIND11_MODULE(MODULE, module) {
  module.doc() = "Ops of densitrace on a GPU; see densitrace.kernels for their contracts.";
  const auto device = py::arg("device");
  const auto stream = py::arg("stream");
#ifdef DENSITRACE_HOST
  module.attr("DEVICE") = "cpu";
  module.def(
      "go_backwards", [](bool backwards) { densitrace::cuda::backwards = backwards; },
      py::arg("backwards"), "Whether threads and blocks take their turns backwards.");
#else
  module.attr("DEVICE") = "cuda";
#endif
  module.def("bottleneck", &bind_bottleneck, py::arg("reach"), py::arg("levels"), py::arg("most"),
             py::arg("result"), py::arg("batch"), py::arg("length"), py::arg("method"), device,
             stream, "Writes the (max, min) product into `result`.");
  module.def("trace_sizes", &bind_trace_sizes, py::arg("reach"), py::arg("degrees"),
             py::arg("result"), py::arg("strata"), py::arg("batch"), py::arg("length"), device,
             stream, "Writes the edges of every trace that enter one node layer into `result`.");
}
