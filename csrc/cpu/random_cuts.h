// The cut of a random weight above which a given number of edges lie. No include guard: see
// all_ops.h.
//
// Random weights have 24 bits. One sweep makes a histogram of their upper halves; another, of the
// lower halves of edges in the bin that holds the wanted one.

struct Histograms {
  static constexpr std::size_t kHalf = std::size_t{1} << 12;

  explicit Histograms(std::size_t rows) : counts(rows * kHalf) {}
  void add(std::size_t row, const std::int64_t* part) {
    for (std::size_t i = 0; i < kHalf; ++i)
      if (part[i] != 0) counts[row * kHalf + i] += part[i];
  }

  // The bin of the wanted-th largest value, and the number of values above that bin.
  std::pair<std::size_t, std::int64_t> descend(std::size_t row, std::int64_t wanted) const {
    std::int64_t above = 0;
    std::size_t bin = kHalf - 1;
    for (; bin > 0; --bin) {
      const std::int64_t here = counts[row * kHalf + bin];
      if (above + here >= wanted) break;
      above += here;
    }
    return {bin, above};
  }

  std::vector<std::atomic<std::int64_t>> counts;  // integers: the order of threads is irrelevant
};

// cuts [K, B] from counts [K, B]; only edges into targets that are eligible [B, T] count.
static void random_cuts(const Edges& edges, const std::uint8_t* eligible,
                        const std::int64_t* counts, std::size_t strata, float* cuts, int threads) {
  const Pattern& pattern = edges.pattern;
  const std::size_t batch = pattern.batch, kHalf = Histograms::kHalf;
  const EdgeStrips weighed(edges, threads);
  const std::size_t stride = weighed.geometry.stride();
  struct Scratch {
    EdgeScratch edges;
    std::vector<std::int64_t> part;
  };
  // Calls use(scratch, b, bits) for every eligible edge and done(scratch, b) after every strip.
  const auto visit = [&](std::size_t rows, const auto& use, const auto& done) {
    weighed.for_strips(
        threads, 0,
        [&] { return Scratch{weighed.make_scratch(), std::vector<std::int64_t>(rows * kHalf)}; },
        [&](Scratch& scratch, const Strip& strip) {
          std::fill(scratch.part.begin(), scratch.part.end(), 0);
          weighed.weigh_heads(strip, scratch.edges, nullptr, [&](std::size_t) {
            for (std::size_t r = 0; r < strip.rows; ++r) {
              if (!eligible[strip.sequence * pattern.length + strip.first + r]) continue;
              const Row row = weighed.geometry.row(strip, r);
              for (std::size_t s = row.first; s <= row.last; ++s) {
                const float weight = scratch.edges.weight[r * stride + s];
                if (weight >= 0)
                  use(scratch, strip.sequence, static_cast<std::size_t>(weight * 0x1p24f));
              }
            }
          });
          done(scratch, strip.sequence);
        });
  };

  Histograms upper(batch);
  visit(
      1, [](Scratch& scratch, std::size_t, std::size_t bits) { ++scratch.part[bits >> 12]; },
      [&](Scratch& scratch, std::size_t b) { upper.add(b, scratch.part.data()); });

  std::vector<std::size_t> prefix(strata * batch);
  std::vector<std::int64_t> above(strata * batch);
  std::vector<bool> wanted(batch * kHalf, false);  // bins that some stratum descends into
  for (std::size_t i = 0; i < strata * batch; ++i) {
    std::tie(prefix[i], above[i]) = upper.descend(i % batch, counts[i]);
    wanted[i % batch * kHalf + prefix[i]] = true;
  }
  Histograms lower(strata * batch);
  visit(
      strata,
      [&](Scratch& scratch, std::size_t b, std::size_t bits) {
        if (!wanted[b * kHalf + (bits >> 12)]) return;
        for (std::size_t k = 0; k < strata; ++k)
          if (prefix[k * batch + b] == bits >> 12) ++scratch.part[k * kHalf + bits % kHalf];
      },
      [&](Scratch& scratch, std::size_t b) {
        for (std::size_t k = 0; k < strata; ++k)
          lower.add(k * batch + b, scratch.part.data() + k * kHalf);
      });
  for (std::size_t i = 0; i < strata * batch; ++i) {
    const std::size_t bits = prefix[i] << 12 | lower.descend(i, counts[i] - above[i]).first;
    // One step of 2^-24 below the wanted-th largest weight, which is thus kept.
    cuts[i] = counts[i] > 0 ? (static_cast<float>(bits) - 1) * 0x1p-24f : kInfinity;
  }
}
