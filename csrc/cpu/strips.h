// Attention a strip at a time. No include guard: see all_ops.h.
//
// A strip is kRows targets of one sequence with all sources that any of them attends to. Its scores
// for one head stay in the nearest caches; every op that needs them recomputes them. Sources are
// grouped in panels of kPanel.

struct Strip {
  std::size_t sequence, first, rows;  // targets [first, first + rows)
  std::size_t panel, panels;          // of sources: the first, and how many
  std::size_t column() const { return panel * kPanel; }
  std::size_t width() const { return panels * kPanel; }
};

// The sources of one target, in columns of its strip.
struct Row {
  std::size_t first, last;
  const std::int32_t* segments;  // null where [first, last] are all in the target's segment
  std::int32_t segment;

  bool whole(std::size_t column) const {
    return column >= first && column + kWidth <= last + 1 && segments == nullptr;
  }
  Mask inside(std::size_t column) const {
    const Mask index = iota() + static_cast<std::int32_t>(column);
    Mask mask =
        (index >= static_cast<std::int32_t>(first)) & (index <= static_cast<std::int32_t>(last));
    if (segments != nullptr) mask &= load(segments + column) == segment;
    return mask;
  }
};

// Calls body(column, whole) for every vector of a strip's row. `whole` is std::true_type if all its
// columns are sources of the target; otherwise body must mask with row.inside(column).
template <typename Body>
INLINE void sweep(const Row& row, std::size_t width, const Body& body) {
  for (std::size_t column = 0; column < width; column += kWidth) {
    if (row.whole(column))
      body(column, std::true_type{});
    else
      body(column, std::false_type{});
  }
}

// Which sources each target attends to.
class Geometry {
 public:
  explicit Geometry(const Pattern& pattern)
      : batch_(pattern.batch), length_(pattern.length), first_(batch_ * length_) {
    if (pattern.segments != nullptr) segments_ = pad(pattern.segments, batch_, length_);
    for (std::size_t b = 0; b < batch_; ++b) {
      std::unordered_map<std::int32_t, std::size_t> starts;
      for (std::size_t t = 0; t < length_; ++t) {
        std::size_t first = 0;
        if (pattern.segments != nullptr) {
          const std::int32_t* segments = pattern.segments + b * length_;
          const auto [start, is_new] = starts.try_emplace(segments[t], t);
          scattered_ |= !is_new && segments[t - 1] != segments[t];
          first = start->second;
        }
        if (pattern.window != 0 && t + 1 > pattern.window)
          first = std::max(first, t + 1 - pattern.window);
        first_[b * length_ + t] = first;
      }
    }
  }

  std::size_t strips() const { return (length_ + kRows - 1) / kRows; }

  // The longest strip has index 0.
  Strip strip(std::size_t sequence, std::size_t index) const {
    Strip strip{};
    strip.sequence = sequence;
    strip.first = (strips() - 1 - index) * kRows;
    strip.rows = std::min(kRows, length_ - strip.first);
    std::size_t source = strip.first;
    for (std::size_t r = 0; r < strip.rows; ++r) source = std::min(source, first(strip, r));
    strip.panel = source / kPanel;
    strip.panels = panels_of(strip.first + strip.rows) - strip.panel;
    return strip;
  }

  Row row(const Strip& strip, std::size_t r) const {
    Row row{first(strip, r) - strip.column(), strip.first + r - strip.column(), nullptr, 0};
    if (scattered_) {
      const std::int32_t* segments = segments_.get() + strip.sequence * panels_of(length_) * kPanel;
      row.segments = segments + strip.column();
      row.segment = segments[strip.first + r];
    }
    return row;
  }

  // Row stride of a strip's matrix, in floats: an odd number of cache lines, so that the rows of a
  // column fall into different sets of the cache.
  std::size_t stride() const {
    const std::size_t line = kAlignment / sizeof(float);
    return (round_up(panels_of(length_) * kPanel, line) / line | 1) * line;
  }
  std::size_t operations() const { return batch_ * length_ * length_ / 2; }  // pairs

 private:
  std::size_t first(const Strip& strip, std::size_t r) const {
    return first_[strip.sequence * length_ + strip.first + r];
  }

  std::size_t batch_, length_;
  Buffer<std::size_t> first_;  // [B, T] the first source
  Buffer<std::int32_t> segments_;
  bool scattered_ = false;  // whether a segment resumes after another one
};

// Scores of queries against packed keys, and their softmax.
class Scores {
 public:
  // `sequences`: B, or K * B for lanes.
  Scores(const Pattern& pattern, std::size_t sequences, int threads)
      : pattern_(pattern),
        keys_(pack_transposed(pattern.k, sequences, pattern.groups, pattern.length, pattern.d_k,
                              threads)) {}

  // Writes to [kRows, strip.width()] the scaled scores of the queries of sequence n and head h.
  void scores(const Strip& strip, std::size_t n, std::size_t h, float* q, float* to,
              std::size_t stride) const {
    const std::size_t depth = pattern_.d_k;
    for (std::size_t r = 0; r < kRows; ++r) {
      float* row = q + r * depth;
      if (r < strip.rows)
        copy_row(pattern_.q, n, h, strip.first + r, depth, row);
      else
        std::memset(row, 0, depth * sizeof(float));
      for (std::size_t i = 0; i < depth; ++i) row[i] *= pattern_.scale;
    }
    const std::size_t group = n * pattern_.groups + h * pattern_.groups / pattern_.heads;
    const std::size_t panel = group * panels_of(pattern_.length) + strip.panel;
    multiply(q, depth, keys_.get() + panel * depth * kPanel, depth, strip.panels, to, stride);
  }

  struct Softmax {
    float top, sum;  // the maximum, and the sum of exp(score - top), both including the sink
  };

  // Turns a row of scores into exp(score - top), 0 where there is no edge.
  Softmax exponentiate(const Row& row, std::size_t h, std::size_t width, float* scores) const {
    Vector top = splat(-kInfinity);
    sweep(row, width, [&](std::size_t column, auto whole) {
      Vector score = capped(load(scores + column));
      if (pattern_.softcap != 0) store(scores + column, score);
      if constexpr (!whole) score = row.inside(column) ? score : splat(-kInfinity);
      top = larger(top, score);
    });
    Softmax result{largest(top), 0};
    if (pattern_.sinks != nullptr) result.top = std::max(result.top, pattern_.sinks[h]);
    const Vector shift = splat(result.top);
    Vector total{};
    sweep(row, width, [&](std::size_t column, auto whole) {
      Vector e = exponential(load(scores + column) - shift);
      if constexpr (!whole) e = row.inside(column) ? e : Vector{};
      store(scores + column, e);
      total += e;
    });
    result.sum = sum(total);
    if (pattern_.sinks != nullptr) result.sum += std::exp(pattern_.sinks[h] - result.top);
    return result;
  }

  // Turns a row of scores into attention weights by their known log-sum-exp, applies
  // finish(column, alpha) in place, and sets `absent` where there is no edge.
  template <typename Finish>
  void normalise(const Row& row, float lse, std::size_t width, float absent, float* scores,
                 const Finish& finish) const {
    const Vector shift = splat(lse);
    sweep(row, width, [&](std::size_t column, auto whole) {
      Vector value = exponential(capped(load(scores + column)) - shift);
      finish(column, value);
      if constexpr (!whole) value = row.inside(column) ? value : splat(absent);
      store(scores + column, value);
    });
  }

 private:
  __attribute__((always_inline)) Vector capped(Vector score) const {
    if (pattern_.softcap == 0) return score;
    return pattern_.softcap * hyperbolic_tangent(score / pattern_.softcap);
  }

  Pattern pattern_;
  Buffer<float> keys_;
};

// Values packed in panels, and their product with a strip of attention weights.
class Values {
 public:
  Values(const Floats& v, std::size_t sequences, std::size_t groups, std::size_t length,
         std::size_t width, int threads)
      : groups_(groups),
        length_(length),
        width_(width),
        packed_(pack(v, sequences, groups, length, width, threads)) {}

  std::size_t stride() const { return panels_of(width_) * kPanel; }

  // Writes to [kRows, stride()] weights [kRows, strip.width()] times the values of sequence n and
  // group g, over the panels of the strip in `list`, which may omit panels of zero weights.
  void apply(const Strip& strip, std::size_t n, std::size_t g, const float* weights,
             std::size_t weights_stride, const std::uint32_t* list, std::size_t count,
             float* to) const {
    const std::size_t padded = panels_of(length_) * kPanel;
    for (std::size_t p = 0; p < panels_of(width_); ++p) {
      const float* panel = packed_.get() +
                           ((n * groups_ + g) * panels_of(width_) + p) * padded * kPanel +
                           strip.column() * kPanel;
      Block block{};
      for (std::size_t i = 0; i < count; ++i) {
        const std::size_t column = list[i] * kPanel;
        multiply_add(block, weights + column, weights_stride, panel + column * kPanel, kPanel);
      }
      store(block, to + p * kPanel, stride());
    }
  }

 private:
  std::size_t groups_, length_, width_;
  Buffer<float> packed_;
};
