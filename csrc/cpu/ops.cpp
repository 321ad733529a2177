// Choice of an instruction set at run time.
#include "ops.h"

#include <stdexcept>

#include "instructions.h"

namespace densitrace::cpu {

#if defined(BEGIN_AVX512)
namespace avx512 {
extern const Ops kOps;
}
namespace avx2 {
extern const Ops kOps;
}
#endif
namespace portable {
extern const Ops kOps;
}

namespace {

struct InstructionSet {
  const char* name;
  bool available;
  const Ops& ops;
};

const std::vector<InstructionSet>& all_instruction_sets() {
  static const std::vector<InstructionSet> all = {
#if defined(BEGIN_AVX512)
      {"avx512",
       __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("fma"),
       avx512::kOps},
      {"avx2", __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"), avx2::kOps},
#endif
      {"portable", true, portable::kOps},
  };
  return all;
}

}  // namespace

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const InstructionSet& set : all_instruction_sets())
    if (set.available) names.emplace_back(set.name);
  return names;
}

const Ops& ops(const std::string& isa) {
  for (const InstructionSet& set : all_instruction_sets())
    if (set.available && (isa == "auto" || isa == set.name)) return set.ops;
  throw std::invalid_argument("isa='" + isa +
                              "' is not available; choose auto or one of those "
                              "that instruction_sets() lists");
}

}  // namespace densitrace::cpu
