// The ops under AVX2 with FMA: 16 registers of 32 bytes.
#include "standard.h"

#if defined(BEGIN_AVX2)
BEGIN_AVX2
namespace densitrace::cpu::avx2 {
constexpr std::size_t kVectorBytes = 32;
constexpr std::size_t kRows = 6, kVectors = 2;
constexpr std::size_t kLevelRows = 2, kLevelVectors = 4;
#include "all_ops.h"
}  // namespace densitrace::cpu::avx2
END_INSTRUCTIONS
#endif
