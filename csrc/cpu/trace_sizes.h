// Trace sizes from bottlenecks and in-degrees: METHOD, section 4. No include guard: see all_ops.h.
//
// Two methods. Degrees of at most 1, as all edges but attention have, are counted as bytes: a
// vector of nodes at a time, with one comparison against the level that a stratum needs. Others are
// added as vectors over the strata, under a mask that the node's bottleneck selects.

namespace sizes {

constexpr std::size_t kBlock = 128;  // outputs of a task

// Calls one_output(b, t) for every output, the long ones first.
template <typename OneOutput>
static void for_outputs(std::size_t batch, std::size_t length, int threads, std::size_t operations,
                        const OneOutput& one_output) {
  const std::size_t blocks = (length + kBlock - 1) / kBlock;
  run(batch * blocks, threads, operations, [&](std::size_t task) {
    const std::size_t first = (blocks - 1 - task / batch) * kBlock;
    for (std::size_t t = first; t < std::min(length, first + kBlock); ++t)
      one_output(task % batch, t);
  });
}

INLINE std::int64_t sum_bytes(max_min::Bytes bytes) {
  typedef std::uint64_t Words __attribute__((vector_size(kVectorBytes), may_alias));
  Words words = (Words)bytes;
  words = (words & 0x00ff00ff00ff00ffULL) + (words >> 8 & 0x00ff00ff00ff00ffULL);
  words = (words & 0x0000ffff0000ffffULL) + (words >> 16 & 0x0000ffff0000ffffULL);
  words = (words & 0x00000000ffffffffULL) + (words >> 32);
  std::uint64_t total = 0;
  for (std::size_t i = 0; i < kVectorBytes / 8; ++i) total += words[i];
  return static_cast<std::int64_t>(total);
}

// Degrees of 0 and 1.
static void count_nodes(const std::uint8_t* reach, const std::int32_t* degrees,
                        std::int64_t* result, std::size_t strata, std::size_t batch,
                        std::size_t length, int threads) {
  using max_min::Bytes;
  const std::size_t padded = round_up(length, kVectorBytes);
  Buffer<std::uint8_t> kept(strata * batch * padded);  // 1 or 0
  for (std::size_t i = 0; i < strata * batch * padded; ++i) {
    const std::size_t j = i % padded;
    kept[i] = j < length ? static_cast<std::uint8_t>(degrees[i / padded * length + j]) : 0;
  }
  const auto one_output = [&](std::size_t b, std::size_t t) {
    Buffer<std::uint8_t> row(padded);  // 0 beyond t
    std::memcpy(row.get(), reach + (b * length + t) * length, t + 1);
    std::memset(row.get() + t + 1, 0, padded - t - 1);
    for (std::size_t k = 0; k < strata; ++k) {
      const Bytes needed = Bytes{} + static_cast<std::uint8_t>(strata - k);
      const std::uint8_t* counted = kept.get() + (k * batch + b) * padded;
      std::int64_t total = 0;
      for (std::size_t first = 0; first <= t;) {
        Bytes part{};  // a byte can count 255 nodes
        const std::size_t end = std::min(t + 1, first + 255 * kVectorBytes);
        for (; first < end; first += kVectorBytes) {
          const Bytes reached = (Bytes)(load_as<Bytes>(row.get() + first) >= needed);
          part += reached & load_as<Bytes>(counted + first);
        }
        total += sum_bytes(part);
      }
      result[(k * batch + b) * length + t] = total;
    }
  };
  for_outputs(batch, length, threads, strata * batch * length * length / 64, one_output);
}

// Any degrees. A node j of bottleneck r adds degrees[k, j] to the strata k >= strata - r. Strata
// are processed kGroup at a time, summed in 32 bits as long as these can't overflow.
static void add_degrees(const std::uint8_t* reach, const std::int32_t* degrees,
                        std::int64_t* result, std::size_t strata, std::size_t batch,
                        std::size_t length, std::uint32_t highest, int threads) {
  constexpr std::size_t kGroup = 16;
  const std::size_t groups = (strata + kGroup - 1) / kGroup, run_length = UINT32_MAX / highest;
  std::vector<std::uint32_t> by_node(groups * batch * length * kGroup, 0);  // [group, b, j, k]
  for (std::size_t k = 0; k < strata; ++k)
    for (std::size_t j = 0; j < batch * length; ++j)
      by_node[(k / kGroup * batch * length + j) * kGroup + k % kGroup] =
          static_cast<std::uint32_t>(degrees[k * batch * length + j]);
  std::vector<std::uint32_t> masks(groups * 256 * kGroup, 0);  // [group, bottleneck, k]
  for (std::size_t r = 0; r < 256; ++r)
    for (std::size_t k = strata - std::min(r, strata); k < strata; ++k)
      masks[(k / kGroup * 256 + r) * kGroup + k % kGroup] = UINT32_MAX;

  const auto one_output = [&](std::size_t b, std::size_t t) {
    const std::uint8_t* row = reach + (b * length + t) * length;
    for (std::size_t group = 0; group < groups; ++group) {
      const std::uint32_t* degree = by_node.data() + (group * batch + b) * length * kGroup;
      const std::uint32_t* mask = masks.data() + group * 256 * kGroup;
      std::int64_t total[kGroup] = {};
      for (std::size_t first = 0; first <= t; first += run_length) {
        std::uint32_t part[kGroup] = {};
        const std::size_t end = std::min(t + 1, first + run_length);
        for (std::size_t j = first; j < end; ++j)
          for (std::size_t k = 0; k < kGroup; ++k)
            part[k] += degree[j * kGroup + k] & mask[row[j] * kGroup + k];
        for (std::size_t k = 0; k < kGroup; ++k) total[k] += part[k];
      }
      for (std::size_t k = group * kGroup; k < std::min(strata, (group + 1) * kGroup); ++k)
        result[(k * batch + b) * length + t] = total[k % kGroup];
    }
  };
  for_outputs(batch, length, threads, groups * batch * length * length / 2 * kGroup, one_output);
}

}  // namespace sizes

// result[k, b, t] = sum over j <= t of degrees[k, b, j] where reach[b, t, j] >= strata - k.
// reach uint8 [batch, length, length], degrees int32 >= 0 and result int64 [strata, batch, length].
static void trace_sizes(const std::uint8_t* reach, const std::int32_t* degrees,
                        std::int64_t* result, std::size_t strata, std::size_t batch,
                        std::size_t length, int threads) {
  std::uint32_t highest = 1;
  for (std::size_t i = 0; i < strata * batch * length; ++i)
    highest = std::max(highest, static_cast<std::uint32_t>(degrees[i]));
  if (highest == 1)
    sizes::count_nodes(reach, degrees, result, strata, batch, length, threads);
  else
    sizes::add_degrees(reach, degrees, result, strata, batch, length, highest, threads);
}
