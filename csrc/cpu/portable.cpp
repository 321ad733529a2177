// The ops on 16 bytes: what SSE2 and NEON have, and what a compiler can take apart elsewhere.
#include "standard.h"

namespace densitrace::cpu::portable {
constexpr std::size_t kVectorBytes = 16;
constexpr std::size_t kRows = 6, kVectors = 2;
constexpr std::size_t kLevelRows = 2, kLevelVectors = 4;
#include "all_ops.h"
}  // namespace densitrace::cpu::portable
