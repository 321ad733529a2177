// Proximity of attention edges, bound first: METHOD, section 2. No include guard: see all_ops.h.
//
// The edge of source s and head h adds e = a u to its target, with u = W_O v and a = alpha / rho_t:
//
//   proximity = a c - 2 sum over d of max(0, a sign(n_d) u_d - |n_d|),   c = <sign(n), u>.
//
// a c is a product of d_v numbers and an upper bound. The sum has terms only where |n_d| is less
// than a |u_d|. With the dimensions of each target sorted by |n_d|, it stops at the first that
// exceeds a max |u|: for most edges, whose a is small, at once. So every weight that matters is
// exact at a few terms an edge, and an edge whose bound clears no cut costs none.

class Proximity {
 public:
  Proximity(const Edges& edges, int threads)
      : weight_(edges.weight),
        batch_(edges.pattern.batch),
        heads_(edges.pattern.heads),
        groups_(edges.pattern.groups),
        length_(edges.pattern.length),
        values_(pack_transposed(weight_.v, batch_, groups_, length_, weight_.d_v, threads)) {
    send(threads);
    sort(threads);
    const std::size_t d_v = weight_.d_v, hidden = weight_.hidden;
    const Floats w_o{weight_.w_o, false, {0, hidden * d_v, d_v}};
    projection_ = pack(w_o, 1, heads_, hidden, d_v, threads);
  }

  std::size_t scratch() const {  // floats
    return kRows * (weight_.hidden + panels_of(weight_.d_v) * kPanel);
  }

  // Writes weights [kRows, width] from alpha; -inf where there is no edge. An edge whose bound does
  // not exceed `floor[r]` gets that bound as its weight.
  Work weigh(const Strip& strip, const Geometry& geometry, std::size_t h, const float* alpha,
             std::size_t stride, const float* floor, float* scratch, float* weights) const {
    const std::size_t d_v = weight_.d_v, hidden = weight_.hidden, b = strip.sequence;
    float* signs = scratch;                  // [kRows, D]
    float* back = scratch + kRows * hidden;  // [kRows, panels of d_v]: W_O^T sign(n)
    const std::size_t back_stride = panels_of(d_v) * kPanel;
    for (std::size_t r = 0; r < kRows; ++r)
      for (std::size_t d = 0; d < hidden; ++d)
        signs[r * hidden + d] = r < strip.rows ? sign(node(b, strip.first + r)[d]) : 0.0f;
    const std::size_t rows = panels_of(hidden) * kPanel;
    for (std::size_t p = 0; p < panels_of(d_v); ++p) {
      Block block{};
      multiply_add(block, signs, hidden,
                   projection_.get() + (h * panels_of(d_v) + p) * rows * kPanel, hidden);
      store(block, back + p * kPanel, back_stride);
    }
    const std::size_t group = b * groups_ + h * groups_ / heads_;
    multiply(back, back_stride,
             values_.get() + (group * panels_of(length_) + strip.panel) * d_v * kPanel, d_v,
             strip.panels, weights, stride);
    Work work;
    for (std::size_t r = 0; r < strip.rows; ++r)
      weigh_row(strip, geometry.row(strip, r), h, strip.first + r, alpha + r * stride,
                floor == nullptr ? 0.0f : std::max(0.0f, floor[r]), weights + r * stride, work);
    return work;
  }

 private:
  static float sign(float value) { return value < 0 ? -1.0f : 1.0f; }
  const float* node(std::size_t b, std::size_t t) const {
    return weight_.node + (b * length_ + t) * weight_.hidden;
  }

  // Computes U^T, what each head sends from each source, in panels of sources
  // [B, H, panels, D, kPanel], and the largest |u_d| of each source.
  void send(int threads) {
    const std::size_t d_v = weight_.d_v, hidden = weight_.hidden, panels = panels_of(length_);
    sent_ = Buffer<float>(batch_ * heads_ * panels * hidden * kPanel);
    largest_ = Buffer<float>(batch_ * heads_ * panels * kPanel);
    const auto make_scratch = [&] { return Buffer<float>(kRows * (d_v + kPanel)); };
    run(batch_ * heads_ * panels, threads, batch_ * heads_ * length_ * hidden * d_v, make_scratch,
        [&](Buffer<float>& scratch, std::size_t task) {
          const std::size_t h = task / panels % heads_, b = task / panels / heads_;
          const std::size_t group = b * groups_ + h * groups_ / heads_;
          const float* values = values_.get() + (group * panels + task % panels) * d_v * kPanel;
          float* sent = sent_.get() + task * hidden * kPanel;
          Vector top[kVectors] = {};
          for (std::size_t first = 0; first < hidden; first += kRows) {
            const std::size_t rows = std::min(kRows, hidden - first);
            std::memset(scratch.get(), 0, kRows * d_v * sizeof(float));
            std::memcpy(scratch.get(), weight_.w_o + (h * hidden + first) * d_v,
                        rows * d_v * sizeof(float));
            float* product = scratch.get() + kRows * d_v;
            multiply(scratch.get(), d_v, values, d_v, 1, product, kPanel);
            std::memcpy(sent + first * kPanel, product, rows * kPanel * sizeof(float));
            for (std::size_t r = 0; r < rows; ++r)
              for (std::size_t v = 0; v < kVectors; ++v)
                top[v] = larger(top[v], absolute(load(product + r * kPanel + v * kWidth)));
          }
          for (std::size_t v = 0; v < kVectors; ++v)
            store(largest_.get() + task * kPanel + v * kWidth, top[v]);
        });
  }

  // Sorts the dimensions of each target by ascending |n_d|.
  void sort(int threads) {
    const std::size_t hidden = weight_.hidden;
    order_ = Buffer<std::uint32_t>(batch_ * length_ * hidden);
    size_ = Buffer<float>(batch_ * length_ * hidden);
    run(batch_ * length_, threads, batch_ * length_ * hidden * 16, [&](std::size_t target) {
      const float* n = weight_.node + target * hidden;
      std::uint32_t* order = order_.get() + target * hidden;
      for (std::size_t d = 0; d < hidden; ++d) order[d] = static_cast<std::uint32_t>(d);
      std::sort(order, order + hidden, [n](std::uint32_t a, std::uint32_t b) {
        const float x = std::fabs(n[a]), y = std::fabs(n[b]);
        return x < y || (x == y && a < b);
      });
      for (std::size_t d = 0; d < hidden; ++d) size_[target * hidden + d] = std::fabs(n[order[d]]);
    });
  }

  // Overwrites `row`, which holds c, with the weights.
  void weigh_row(const Strip& strip, const Row& sources, std::size_t h, std::size_t t,
                 const float* alpha, float floor, float* row, Work& work) const {
    const std::size_t hidden = weight_.hidden, b = strip.sequence, target = b * length_ + t;
    const std::size_t panel = (b * heads_ + h) * panels_of(length_) + strip.panel;
    const float* n = node(b, t);
    const float* size = size_.get() + target * hidden;
    const std::uint32_t* order = order_.get() + target * hidden;
    const float scale = weight_.target == nullptr ? 1.0f : weight_.target[target];
    sweep(sources, strip.width(), [&](std::size_t column, auto whole) {
      const Vector a = scale * load(alpha + column);
      Vector weight = larger(Vector{}, a * load(row + column));
      const Vector far = a * load(largest_.get() + panel * kPanel + column);
      const Mask summed = (weight > floor) & (far > size[0]);
      if (any(summed)) {
        const float* sent =
            sent_.get() + (panel + column / kPanel) * hidden * kPanel + column % kPanel;
        const float end = largest(summed ? far : Vector{});
        Vector excess{};
        for (std::size_t d = 0; d < hidden && size[d] < end; ++d) {
          const Vector toward = (sign(n[order[d]]) * a) * load(sent + order[d] * kPanel);
          excess += larger(Vector{}, toward - size[d]);
        }
        weight = larger(Vector{}, weight - 2.0f * excess);
      }
      Mask inside = splat(-1);
      if constexpr (!whole) inside = sources.inside(column);
      work.edges += static_cast<std::size_t>(-sum(inside));
      work.summed += static_cast<std::size_t>(-sum(inside & summed));
      store(row + column, inside ? weight : splat(-kInfinity));
    });
  }

  EdgeWeight weight_;
  std::size_t batch_, heads_, groups_, length_;
  Buffer<float> values_, sent_, largest_, size_, projection_;
  Buffer<std::uint32_t> order_;
};
