// Weights of attention edges, summed or written out. No include guard: see all_ops.h.

// mass [B, T]: the sum of the positive weights into each target.
static void edge_mass(const Edges& edges, float* mass, int threads) {
  const Pattern& pattern = edges.pattern;
  const EdgeStrips weighed(edges, threads);
  const std::size_t stride = weighed.geometry.stride();
  weighed.for_strips(
      threads, 0, [&] { return weighed.make_scratch(); },
      [&](EdgeScratch& scratch, const Strip& strip) {
        float* into = mass + strip.sequence * pattern.length + strip.first;
        std::fill_n(into, strip.rows, 0.0f);
        weighed.weigh_heads(strip, scratch, nullptr, [&](std::size_t) {
          for (std::size_t r = 0; r < strip.rows; ++r) {
            Vector total{};
            for (std::size_t column = 0; column < strip.width(); column += kWidth)
              total += larger(Vector{}, load(scratch.weight.get() + r * stride + column));
            into[r] += sum(total);
          }
        });
      });
}

// weights [B, H, T target, T source], NaN where there is no edge.
static void edge_weights(const Edges& edges, float* weights, int threads) {
  const Pattern& pattern = edges.pattern;
  const std::size_t length = pattern.length;
  const EdgeStrips weighed(edges, threads);
  const std::size_t stride = weighed.geometry.stride();
  weighed.for_strips(
      threads, 0, [&] { return weighed.make_scratch(); },
      [&](EdgeScratch& scratch, const Strip& strip) {
        weighed.weigh_heads(strip, scratch, nullptr, [&](std::size_t h) {
          for (std::size_t r = 0; r < strip.rows; ++r) {
            const std::size_t target = strip.first + r;
            float* to = weights + ((strip.sequence * pattern.heads + h) * length + target) * length;
            std::fill_n(to, length, std::numeric_limits<float>::quiet_NaN());
            for (std::size_t s = strip.column(); s <= target; ++s) {
              const float weight = scratch.weight[r * stride + s - strip.column()];
              if (weight != -kInfinity) to[s] = weight;
            }
          }
        });
      });
}
