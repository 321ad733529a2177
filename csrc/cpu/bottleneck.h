// The (max, min) product over levels and the trace sizes that follow from it: METHOD, section 4.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace densitrace::cpu {

// Instruction sets that this build and this processor have, the fastest first:
// of "avx512" (F and BW), "avx2" and "portable".
std::vector<std::string> instruction_sets();

// result[b, t, i] = max over i <= j <= t of min(reach[b, t, j], levels[b, j, i]), 0 where i > t.
// All uint8 [batch, length, length], row-major; entries above the diagonal are not read.
// Every entry of `result` is written; the result does not depend on `threads` or `isa`.
// Throws std::invalid_argument for an instruction set that is not there.
void bottleneck(const std::uint8_t* reach, const std::uint8_t* levels, std::uint8_t* result,
                std::size_t batch, std::size_t length, int threads, const std::string& isa);

// result[k, b, t] = sum over j <= t of degrees[k, b, j] where reach[b, t, j] >= strata - k.
// reach uint8 [batch, length, length], degrees int32 >= 0 and result int64 [strata, batch, length].
void trace_sizes(const std::uint8_t* reach, const std::int32_t* degrees, std::int64_t* result,
                 std::size_t strata, std::size_t batch, std::size_t length, int threads);

}  // namespace densitrace::cpu
