// The CUDA runtime: its errors, and whether the driver is new enough for it.

#include <stdexcept>
#include <string>

#include "grid.h"

namespace densitrace::cuda {

#ifdef __CUDACC__

void check(cudaError_t status) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(status));
}

std::string driver_error() {
  int devices = 0;
  const cudaError_t status = cudaGetDeviceCount(&devices);
  cudaGetLastError();  // forgets it
  return status == cudaSuccess ? "" : cudaGetErrorString(status);
}

#else

std::string driver_error() { return ""; }

#endif

}  // namespace densitrace::cuda
