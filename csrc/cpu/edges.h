// The weights of attention edges, a strip at a time. No include guard: see all_ops.h.

// Memory of a thread that computes the weights of strips.
struct EdgeScratch {
  Buffer<float> q, alpha, weight, extra;
};

class EdgeStrips {
 public:
  EdgeStrips(const Edges& edges, int threads)
      : geometry(edges.pattern), pattern_(edges.pattern), weight_(edges.weight) {
    const std::size_t rows = pattern_.batch * pattern_.heads;
    if (weight_.source != nullptr) source_ = pad(weight_.source, rows, pattern_.length);
    if (weight_.positions != nullptr)
      positions_ = pad(weight_.positions, pattern_.batch, pattern_.length);
    if (pattern_.lse != nullptr) scores_.emplace(pattern_, pattern_.batch, threads);
    if (weight_.importance == Importance::kCosine)
      values_ = pack_transposed(weight_.v, pattern_.batch, pattern_.groups, pattern_.length,
                                weight_.d_v, threads);
    if (weight_.importance == Importance::kProximity) proximity_.emplace(edges, threads);
  }

  const Geometry geometry;

  EdgeScratch make_scratch() const {
    const std::size_t matrix = kRows * geometry.stride();
    const std::size_t extra = proximity_ ? proximity_->scratch() : kRows * weight_.d_v;
    return {Buffer<float>(kRows * pattern_.d_k), Buffer<float>(matrix), Buffer<float>(matrix),
            Buffer<float>(extra)};
  }

  // Operations to compute all weights of a head once, for `run`.
  std::size_t operations() const {
    return geometry.operations() * (pattern_.d_k + 16 + (values_.get() ? weight_.d_v : 0));
  }

  // Writes the clean attention weights of a head to scratch.alpha.
  void attend(const Strip& strip, std::size_t h, EdgeScratch& scratch) const {
    scores_->scores(strip, strip.sequence, h, scratch.q.get(), scratch.alpha.get(),
                    geometry.stride());
    for (std::size_t r = 0; r < strip.rows; ++r)
      scores_->normalise(geometry.row(strip, r), lse(strip, h, r), strip.width(), 0.0f,
                         scratch.alpha.get() + r * geometry.stride(), [](std::size_t, Vector&) {});
  }

  // Writes the weights of a head to scratch.weight, -inf where there is no edge. A weight up to
  // `floor[r]` may be replaced by any other up to it.
  Work weigh(const Strip& strip, std::size_t h, EdgeScratch& scratch, const float* floor) const {
    if (weight_.importance == Importance::kNorm) {
      weigh_norm(strip, h, scratch);
      return {};
    }
    if (leaves_alpha()) attend(strip, h, scratch);
    if (proximity_)
      return proximity_->weigh(strip, geometry, h, scratch.alpha.get(), geometry.stride(), floor,
                               scratch.extra.get(), scratch.weight.get());
    if (weight_.importance == Importance::kCosine) inner_products(strip, h, scratch);
    for (std::size_t r = 0; r < strip.rows; ++r) {
      const Row row = geometry.row(strip, r);
      const float* alpha = scratch.alpha.get() + r * geometry.stride();
      float* weight = scratch.weight.get() + r * geometry.stride();
      switch (weight_.importance) {
        case Importance::kCosine:
          cosine(strip, row, h, alpha, weight);
          break;
        case Importance::kRandom:
          random(strip, row, h, r, weight);
          break;
        default:
          given(strip, row, h, r, weight);
          break;
      }
    }
    return {};
  }

  // Whether `weigh` leaves the head's attention weights in scratch.alpha.
  bool leaves_alpha() const {
    return weight_.importance == Importance::kCosine ||
           weight_.importance == Importance::kProximity;
  }

  // Computes the weights of each head in turn, and calls use(head) after each.
  template <typename Use>
  Work weigh_heads(const Strip& strip, EdgeScratch& scratch, const float* floor,
                   const Use& use) const {
    Work work;
    for (std::size_t h = 0; h < pattern_.heads; ++h) {
      const Work part = weigh(strip, h, scratch, floor);
      work.edges += part.edges;
      work.summed += part.summed;
      use(h);
    }
    return work;
  }

  // Calls task(scratch, strip) for every strip of every sequence, the long ones first. `more`:
  // operations per edge of a head in addition to its weight.
  template <typename MakeScratch, typename Task>
  void for_strips(int threads, std::size_t more, const MakeScratch& make_scratch,
                  const Task& task) const {
    run(geometry.strips() * pattern_.batch, threads,
        pattern_.heads * (operations() + geometry.operations() * more), make_scratch,
        [&](auto& scratch, std::size_t index) {
          task(scratch, geometry.strip(index % pattern_.batch, index / pattern_.batch));
        });
  }

 private:
  const float* source(const Strip& strip, std::size_t h) const {
    return source_.get() + (strip.sequence * pattern_.heads + h) * padded() + strip.column();
  }
  float lse(const Strip& strip, std::size_t h, std::size_t r) const {
    const std::size_t row = (strip.sequence * pattern_.heads + h) * pattern_.length + strip.first;
    return pattern_.lse[row + r];
  }
  std::size_t padded() const { return panels_of(pattern_.length) * kPanel; }

  // Stores weigh(column) for every vector of a row, and -inf where there is no edge.
  template <typename Weigh>
  INLINE void fill(const Strip& strip, const Row& row, float* to, const Weigh& weigh) {
    sweep(row, strip.width(), [&](std::size_t column, auto whole) {
      Vector weight = weigh(column);
      if constexpr (!whole) weight = row.inside(column) ? weight : splat(-kInfinity);
      store(to + column, weight);
    });
  }

  // Turns scores into weights in one sweep, without storing alpha.
  void weigh_norm(const Strip& strip, std::size_t h, EdgeScratch& scratch) const {
    scores_->scores(strip, strip.sequence, h, scratch.q.get(), scratch.weight.get(),
                    geometry.stride());
    const float* norms = source(strip, h);
    for (std::size_t r = 0; r < strip.rows; ++r) {
      const float scale = weight_.target == nullptr
                              ? 1.0f
                              : weight_.target[strip.sequence * pattern_.length + strip.first + r];
      scores_->normalise(geometry.row(strip, r), lse(strip, h, r), strip.width(), -kInfinity,
                         scratch.weight.get() + r * geometry.stride(),
                         [&](std::size_t column, Vector& weight) {
                           weight = weight * load(norms + column) * scale;
                         });
    }
  }

  // Writes <direction, v> to scratch.weight.
  void inner_products(const Strip& strip, std::size_t h, EdgeScratch& scratch) const {
    const std::size_t d_v = weight_.d_v, b = strip.sequence;
    const float* rows =
        weight_.direction + ((b * pattern_.heads + h) * pattern_.length + strip.first) * d_v;
    std::memset(scratch.extra.get(), 0, kRows * d_v * sizeof(float));
    std::memcpy(scratch.extra.get(), rows, strip.rows * d_v * sizeof(float));
    const std::size_t group = b * pattern_.groups + h * pattern_.groups / pattern_.heads;
    const std::size_t panel = group * panels_of(pattern_.length) + strip.panel;
    multiply(scratch.extra.get(), d_v, values_.get() + panel * d_v * kPanel, d_v, strip.panels,
             scratch.weight.get(), geometry.stride());
  }

  void cosine(const Strip& strip, const Row& row, std::size_t h, const float* alpha,
              float* to) const {
    const float* inverse = source(strip, h);
    fill(strip, row, to, [&](std::size_t column) {
      Vector cosine = load(to + column) * load(inverse + column);
      cosine = larger(splat(-1.0f), smaller(splat(1.0f), cosine));
      return load(alpha + column) > 0.0f ? (1.0f + cosine) * 0.5f : splat(0.5f);
    });
  }

  // As kernels/hashing.py, a vector at a time.
  void random(const Strip& strip, const Row& row, std::size_t h, std::size_t r, float* to) const {
    const std::int32_t* positions = positions_.get() + strip.sequence * padded();
    Bits value = splat(weight_.seed);
    value = mix(value, splat(weight_.stream));
    value = mix(value, splat(static_cast<std::uint32_t>(h + 1)));
    value = mix(value, splat(static_cast<std::uint32_t>(positions[strip.first + r])));
    fill(strip, row, to, [&](std::size_t column) {
      const Bits hashed = mix(value, (Bits)load(positions + strip.column() + column));
      return __builtin_convertvector((Mask)(hashed >> 8), Vector) * 0x1p-24f;
    });
  }

  INLINE Bits mix(Bits value, Bits item) {
    value = (value ^ item) + 0x9E3779B9U;
    value = (value ^ (value >> 16)) * 0x7FEB352DU;
    value = (value ^ (value >> 15)) * 0x846CA68BU;
    return value ^ (value >> 16);
  }

  void given(const Strip& strip, const Row& row, std::size_t h, std::size_t r, float* to) const {
    const std::size_t length = pattern_.length;
    const std::size_t target = (strip.sequence * pattern_.heads + h) * length + strip.first + r;
    const float* from = weight_.given + target * length + strip.column();
    const std::size_t last = row.last;
    fill(strip, row, to, [&](std::size_t column) {
      if (column + kWidth <= last + 1) return load(from + column);
      Vector part{};  // do not read past the end of the array
      if (column <= last) std::memcpy(&part, from + column, (last + 1 - column) * sizeof(float));
      return part;
    });
  }

  Pattern pattern_;
  EdgeWeight weight_;
  Buffer<float> source_, values_;
  Buffer<std::int32_t> positions_;
  std::optional<Scores> scores_;
  std::optional<Proximity> proximity_;
};
