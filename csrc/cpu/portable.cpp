// The ops on vectors of 16 bytes: native in SSE2 and NEON, split by the compiler elsewhere.
#include "standard.h"

namespace densitrace::cpu::portable {
constexpr std::size_t kVectorBytes = 16;
constexpr std::size_t kRows = 6, kVectors = 2;
constexpr std::size_t kLevelRows = 2, kLevelVectors = 4;
#include "all_ops.h"
}  // namespace densitrace::cpu::portable
