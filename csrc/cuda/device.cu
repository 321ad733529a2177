// Errors of the CUDA runtime.

#include <stdexcept>
#include <string>

#include "grid.h"

#ifdef __CUDACC__
namespace densitrace::cuda {

void check(cudaError_t status) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(status));
}

}  // namespace densitrace::cuda
#endif
