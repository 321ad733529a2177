// Attention output, log-sum-exp and edge mass in one sweep: METHOD, section 2.
// No include guard: see all_ops.h.
//
// A task is a strip of targets. For each head it computes scores (2 d_k operations a pair), their
// softmax, the output (2 d_v), and the edge mass as one more column. No T x T array is written.

static void attention_stats(const Pattern& pattern, const Floats& v, std::size_t d_v,
                            const float* source, float* output, float* lse, float* mass,
                            int threads) {
  const std::size_t heads = pattern.heads, length = pattern.length;
  const Geometry geometry(pattern);
  const Scores scores(pattern, pattern.batch, threads);
  const Values values(v, pattern.batch, pattern.groups, length, d_v, threads);
  Buffer<float> norms;
  if (source != nullptr) norms = pad(source, pattern.batch * heads, length);
  const std::size_t stride = geometry.stride(), padded = panels_of(length) * kPanel;
  std::vector<std::uint32_t> every(panels_of(length));
  std::iota(every.begin(), every.end(), 0U);

  struct Scratch {
    Buffer<float> q, weights, output;
  };
  const auto make_scratch = [&] {
    return Scratch{Buffer<float>(kRows * pattern.d_k), Buffer<float>(kRows * stride),
                   Buffer<float>(kRows * values.stride())};
  };
  const auto task = [&](Scratch& scratch, std::size_t index) {
    const std::size_t b = index % pattern.batch;
    const Strip strip = geometry.strip(b, index / pattern.batch);
    float* into = mass + b * length + strip.first;
    std::fill_n(into, strip.rows, 0.0f);
    for (std::size_t h = 0; h < heads; ++h) {
      const std::size_t first_row = (b * heads + h) * length + strip.first;
      scores.scores(strip, b, h, scratch.q.get(), scratch.weights.get(), stride);
      float share[kRows];
      for (std::size_t r = 0; r < strip.rows; ++r) {
        float* row = scratch.weights.get() + r * stride;
        const Scores::Softmax softmax =
            scores.exponentiate(geometry.row(strip, r), h, strip.width(), row);
        lse[first_row + r] = softmax.top + std::log(softmax.sum);
        share[r] = 1.0f / softmax.sum;
        if (source == nullptr) continue;
        const float* norm = norms.get() + (b * heads + h) * padded + strip.column();
        Vector total{};
        for (std::size_t column = 0; column < strip.width(); column += kWidth)
          total += load(row + column) * load(norm + column);
        into[r] += sum(total) * share[r];
      }
      values.apply(strip, b, h * pattern.groups / heads, scratch.weights.get(), stride,
                   every.data(), strip.panels, scratch.output.get());
      for (std::size_t r = 0; r < strip.rows; ++r)
        for (std::size_t i = 0; i < d_v; ++i)
          output[(first_row + r) * d_v + i] = scratch.output[r * values.stride() + i] * share[r];
    }
  };
  run(geometry.strips() * pattern.batch, threads,
      geometry.operations() * heads * (pattern.d_k + d_v + 16), make_scratch, task);
}
