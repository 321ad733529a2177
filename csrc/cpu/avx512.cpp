// The ops under AVX-512: 32 registers of 64 bytes.
#include "standard.h"

#if defined(BEGIN_AVX512)
BEGIN_AVX512
namespace densitrace::cpu::avx512 {
constexpr std::size_t kVectorBytes = 64;
constexpr std::size_t kRows = 12, kVectors = 2;
constexpr std::size_t kLevelRows = 4, kLevelVectors = 4;
#include "all_ops.h"
}  // namespace densitrace::cpu::avx512
END_INSTRUCTIONS
#endif
