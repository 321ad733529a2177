// Level map and in-degrees of attention edges: METHOD, section 4. No include guard: see all_ops.h.
//
// A task is a strip of targets with all heads. The heaviest head decides the level of a pair, so a
// running maximum over heads is kept in cache; in-degrees take one comparison an edge and cut.

// levels uint8 [B, T, T], degrees int32 [K, B, T] from cuts [K, B, T]. Returns, for proximity, the
// number of edges and how many of them were summed exactly.
static Work edge_levels(const Edges& edges, const float* cuts, std::size_t strata,
                        std::uint8_t* levels, std::int32_t* degrees, int threads) {
  constexpr std::size_t kGroup = 6;  // cuts whose counters stay in registers
  typedef std::uint8_t Bytes __attribute__((vector_size(kWidth)));
  const Pattern& pattern = edges.pattern;
  const std::size_t batch = pattern.batch, length = pattern.length;
  const EdgeStrips weighed(edges, threads);
  const std::size_t stride = weighed.geometry.stride();
  std::atomic<std::size_t> seen{0}, summed{0};

  struct Scratch {
    EdgeScratch edges;
    Buffer<float> highest;
    std::vector<float> cuts;            // [K, kRows]
    std::vector<std::int32_t> degrees;  // [K, kRows]
  };
  const auto make_scratch = [&] {
    return Scratch{weighed.make_scratch(), Buffer<float>(kRows * stride),
                   std::vector<float>(strata * kRows), std::vector<std::int32_t>(strata * kRows)};
  };
  const auto count = [&](const Strip& strip, Scratch& scratch) {
    for (std::size_t r = 0; r < strip.rows; ++r) {
      const float* weight = scratch.edges.weight.get() + r * stride;
      float* highest = scratch.highest.get() + r * stride;
      for (std::size_t column = 0; column < strip.width(); column += kWidth)
        store(highest + column, larger(load(highest + column), load(weight + column)));
      for (std::size_t first = 0; first < strata; first += kGroup) {
        const std::size_t cuts_here = std::min(kGroup, strata - first);
        Mask counts[kGroup] = {};
        float cut[kGroup];
        for (std::size_t k = 0; k < kGroup; ++k)
          cut[k] = k < cuts_here ? scratch.cuts[(first + k) * kRows + r] : kInfinity;
        for (std::size_t column = 0; column < strip.width(); column += kWidth) {
          const Vector w = load(weight + column);
          if (!any(w > cut[cuts_here - 1])) continue;  // cuts descend: none is cleared
          for (std::size_t k = 0; k < kGroup; ++k)
            counts[k] = w > cut[k] ? counts[k] + 1 : counts[k];
        }
        for (std::size_t k = 0; k < cuts_here; ++k)
          scratch.degrees[(first + k) * kRows + r] += sum(counts[k]);
      }
    }
  };
  const auto write = [&](const Strip& strip, Scratch& scratch) {
    for (std::size_t r = 0; r < strip.rows; ++r) {
      const std::size_t target = strip.sequence * length + strip.first + r;
      std::uint8_t* row = levels + target * length;
      std::memset(row, 0, length);
      for (std::size_t column = 0; column < strip.width(); column += kWidth) {
        const Vector highest = load(scratch.highest.get() + r * stride + column);
        if (!any(highest > scratch.cuts[(strata - 1) * kRows + r])) continue;
        Mask level{};
        for (std::size_t k = 0; k < strata; ++k) level -= highest > scratch.cuts[k * kRows + r];
        const Bytes bytes = __builtin_convertvector(level, Bytes);
        const std::size_t source = strip.column() + column;
        if (source < length) std::memcpy(row + source, &bytes, std::min(kWidth, length - source));
      }
      for (std::size_t k = 0; k < strata; ++k)
        degrees[k * batch * length + target] = scratch.degrees[k * kRows + r];
    }
  };
  const auto task = [&](Scratch& scratch, const Strip& strip) {
    std::fill_n(scratch.highest.get(), kRows * stride, -kInfinity);
    std::fill(scratch.degrees.begin(), scratch.degrees.end(), 0);
    for (std::size_t k = 0; k < strata; ++k)
      for (std::size_t r = 0; r < strip.rows; ++r)
        scratch.cuts[k * kRows + r] = cuts[(k * batch + strip.sequence) * length + strip.first + r];
    const float* floor = scratch.cuts.data() + (strata - 1) * kRows;
    const Work work = weighed.weigh_heads(strip, scratch.edges, floor,
                                          [&](std::size_t) { count(strip, scratch); });
    write(strip, scratch);
    seen += work.edges;
    summed += work.summed;
  };
  weighed.for_strips(threads, strata, make_scratch, task);
  Work work;
  work.edges = seen;
  work.summed = summed;
  return work;
}
