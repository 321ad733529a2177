// Trace sizes from bottlenecks and in-degrees: METHOD, section 4. No include guard: see all_ops.h.

// result[k, b, t] = sum over j <= t of degrees[k, b, j] where reach[b, t, j] >= strata - k.
// reach uint8 [batch, length, length], degrees int32 >= 0 and result int64 [strata, batch, length].
static void trace_sizes(const std::uint8_t* reach, const std::int32_t* degrees,
                        std::int64_t* result, std::size_t strata, std::size_t batch,
                        std::size_t length, int threads) {
  // A node j of bottleneck r adds degrees[k, j] to the strata k >= strata - r: one masked addition
  // of a vector over the strata. They go kGroup at a time, in 32 bits for as long as these can't
  // overflow.
  constexpr std::size_t kGroup = 16, kBlock = 128;  // strata, and outputs of a task
  const std::size_t groups = (strata + kGroup - 1) / kGroup;
  std::vector<std::uint32_t> by_node(groups * batch * length * kGroup, 0);  // [group, b, j, k]
  std::uint32_t largest = 1;
  for (std::size_t k = 0; k < strata; ++k)
    for (std::size_t j = 0; j < batch * length; ++j) {
      const std::uint32_t degree = static_cast<std::uint32_t>(degrees[k * batch * length + j]);
      by_node[(k / kGroup * batch * length + j) * kGroup + k % kGroup] = degree;
      largest = std::max(largest, degree);
    }
  const std::size_t run_length = UINT32_MAX / largest;

  std::vector<std::uint32_t> masks(groups * 256 * kGroup, 0);  // [group, bottleneck, k]
  for (std::size_t r = 0; r < 256; ++r)
    for (std::size_t k = strata - std::min(r, strata); k < strata; ++k)
      masks[(k / kGroup * 256 + r) * kGroup + k % kGroup] = UINT32_MAX;

  const auto one_output = [&](std::size_t group, std::size_t b, std::size_t t) {
    const std::uint8_t* row = reach + (b * length + t) * length;
    const std::uint32_t* degree = by_node.data() + (group * batch + b) * length * kGroup;
    const std::uint32_t* mask = masks.data() + group * 256 * kGroup;
    std::int64_t total[kGroup] = {};
    for (std::size_t first = 0; first <= t; first += run_length) {
      std::uint32_t sum[kGroup] = {};
      const std::size_t end = std::min(t + 1, first + run_length);
      for (std::size_t j = first; j < end; ++j)
        for (std::size_t k = 0; k < kGroup; ++k)
          sum[k] += degree[j * kGroup + k] & mask[row[j] * kGroup + k];
      for (std::size_t k = 0; k < kGroup; ++k) total[k] += sum[k];
    }
    for (std::size_t k = group * kGroup; k < std::min(strata, (group + 1) * kGroup); ++k)
      result[(k * batch + b) * length + t] = total[k % kGroup];
  };
  const std::size_t blocks = (length + kBlock - 1) / kBlock;
  const std::size_t additions = groups * batch * length * length / 2 * kGroup;
  run(groups * batch * blocks, threads, additions, [&](std::size_t task) {
    const std::size_t first = (blocks - 1 - task / (groups * batch)) * kBlock;
    for (std::size_t t = first; t < std::min(length, first + kBlock); ++t)
      one_output(task / batch % groups, task % batch, t);
  });
}
