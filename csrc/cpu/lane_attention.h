// Attention output of the masked lanes: METHOD, section 5. No include guard: see all_ops.h.
//
// A task is a strip of targets under one head. The clean weights of the strip are computed once for
// all lanes. Then, lane by lane:
//
//   live: the lane's own scores and softmax; attention weights are zeroed unless their clean edge
//   clears the lane's cut, and multiplied with the lane's values. 2 (d_k + d_v) operations a pair.
//
//   frozen: the clean attention weights, masked in the same way, times the lane's values. 2 d_v a
//   pair.
//
// Panels of sources without a kept edge are skipped in the last product, and strips without one are
// skipped altogether. No mask is stored.

class LaneAttention {
 public:
  LaneAttention(const Edges& edges, const Lanes& lanes, int threads)
      : pattern_(edges.pattern),
        lanes_(lanes),
        edges_(edges, threads),
        values_(lanes.v, lanes.count * pattern_.batch, pattern_.groups, pattern_.length, lanes.d_v,
                threads) {
    if (lanes.pattern != nullptr)
      scores_.emplace(*lanes.pattern, lanes.count * pattern_.batch, threads);
  }

  struct Scratch {
    EdgeScratch edges;
    Buffer<float> weights, output;
    std::vector<std::uint32_t> kept;  // panels
  };
  Scratch make_scratch() const {
    return {edges_.make_scratch(),
            Buffer<float>(kRows * edges_.geometry.stride()),
            Buffer<float>(kRows * values_.stride()),
            {}};
  }

  void run_all(int threads) const {
    const Geometry& geometry = edges_.geometry;
    const std::size_t depth = pattern_.d_k + lanes_.d_v + 16;
    run(
        geometry.strips() * pattern_.batch * pattern_.heads, threads,
        geometry.operations() * pattern_.heads * lanes_.count * depth,
        [&] { return make_scratch(); },
        [&](Scratch& scratch, std::size_t task) {
          const std::size_t h = task % pattern_.heads, rest = task / pattern_.heads;
          one_strip(geometry.strip(rest % pattern_.batch, rest / pattern_.batch), h, scratch);
        });
  }

 private:
  void one_strip(const Strip& strip, std::size_t h, Scratch& scratch) const {
    float floor[kRows];
    row_cuts(strip, lanes_.count - 1, floor);
    edges_.weigh(strip, h, scratch.edges, floor);
    if (lanes_.pattern == nullptr && !edges_.leaves_alpha()) edges_.attend(strip, h, scratch.edges);
    for (std::size_t k = 0; k < lanes_.count; ++k) {
      float cuts[kRows];
      row_cuts(strip, k, cuts);
      kept_panels(strip, cuts, scratch);
      if (!scratch.kept.empty()) {
        float share[kRows];
        if (lanes_.pattern != nullptr)
          live_weights(strip, k, h, cuts, scratch, share);
        else
          frozen_weights(strip, cuts, scratch, share);
        values_.apply(strip, k * pattern_.batch + strip.sequence,
                      h * pattern_.groups / pattern_.heads, scratch.weights.get(),
                      edges_.geometry.stride(), scratch.kept.data(), scratch.kept.size(),
                      scratch.output.get());
        write(strip, k, h, scratch.output.get(), share);
      } else {
        write(strip, k, h, nullptr, nullptr);
      }
    }
  }

  void row_cuts(const Strip& strip, std::size_t k, float* cuts) const {
    const float* from =
        lanes_.cuts + (k * pattern_.batch + strip.sequence) * pattern_.length + strip.first;
    for (std::size_t r = 0; r < strip.rows; ++r) cuts[r] = from[r];
  }

  INLINE Mask clears(const float* weight, float cut, bool invert) {
    const Mask above = load(weight) > cut;
    return invert ? ~above : above;
  }

  void kept_panels(const Strip& strip, const float* cuts, Scratch& scratch) const {
    const std::size_t stride = edges_.geometry.stride();
    const float* weight = scratch.edges.weight.get();
    scratch.kept.clear();
    for (std::size_t p = 0; p < strip.panels; ++p) {
      Mask any_kept{};
      for (std::size_t r = 0; r < strip.rows; ++r)
        for (std::size_t v = 0; v < kVectors; ++v)
          any_kept |= clears(weight + r * stride + p * kPanel + v * kWidth, cuts[r], lanes_.invert);
      if (any(any_kept)) scratch.kept.push_back(static_cast<std::uint32_t>(p));
    }
  }

  // Writes unnormalised attention weights of kept edges to scratch.weights. The caller multiplies a
  // row's output by its share.
  void live_weights(const Strip& strip, std::size_t k, std::size_t h, const float* cuts,
                    Scratch& scratch, float* share) const {
    const std::size_t stride = edges_.geometry.stride();
    scores_->scores(strip, k * pattern_.batch + strip.sequence, h, scratch.edges.q.get(),
                    scratch.weights.get(), stride);
    for (std::size_t r = 0; r < strip.rows; ++r) {
      float* row = scratch.weights.get() + r * stride;
      share[r] =
          1.0f / scores_->exponentiate(edges_.geometry.row(strip, r), h, strip.width(), row).sum;
    }
    mask(strip, cuts, scratch, scratch.weights.get());
  }

  void frozen_weights(const Strip& strip, const float* cuts, Scratch& scratch, float* share) const {
    std::fill_n(share, strip.rows, 1.0f);
    mask(strip, cuts, scratch, scratch.edges.alpha.get());
  }

  // Sets scratch.weights to `from` where the edge is kept, else to 0, in the kept panels.
  void mask(const Strip& strip, const float* cuts, Scratch& scratch, const float* from) const {
    const std::size_t stride = edges_.geometry.stride();
    const float* weight = scratch.edges.weight.get();
    for (const std::uint32_t panel : scratch.kept)
      for (std::size_t r = 0; r < kRows; ++r)
        for (std::size_t v = 0; v < kVectors; ++v) {
          const std::size_t offset = r * stride + panel * kPanel + v * kWidth;
          Vector value{};
          if (r < strip.rows)
            value = clears(weight + offset, cuts[r], lanes_.invert) ? load(from + offset) : value;
          store(scratch.weights.get() + offset, value);
        }
  }

  void write(const Strip& strip, std::size_t k, std::size_t h, const float* rows,
             const float* share) const {
    for (std::size_t r = 0; r < strip.rows; ++r) {
      float* to = lanes_.output + k * lanes_.stride[0] + strip.sequence * lanes_.stride[1] +
                  h * lanes_.stride[2] + (strip.first + r) * lanes_.stride[3];
      for (std::size_t i = 0; i < lanes_.d_v; ++i)
        to[i] = rows == nullptr ? 0.0f : rows[r * values_.stride() + i] * share[r];
    }
  }

  Pattern pattern_;
  Lanes lanes_;
  EdgeStrips edges_;
  std::optional<Scores> scores_;
  Values values_;
};

static void lane_attention(const Edges& edges, const Lanes& lanes, int threads) {
  LaneAttention(edges, lanes, threads).run_all(threads);
}
