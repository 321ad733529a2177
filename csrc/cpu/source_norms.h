// Source norms |W_O v|: METHOD, section 2. No include guard: see all_ops.h.
//
// L1: a product of the size of the output projection, with blocks reduced over D in registers.
// L2: v^T G v with the d x d Gram matrices G = W_O^T W_O.

// G of every head, [H, d, d].
static Buffer<float> gram_matrices(const float* w_o, std::size_t heads, std::size_t hidden,
                                   std::size_t d_v, int threads) {
  Buffer<float> gram(heads * d_v * d_v);
  run(
      heads * d_v, threads, heads * d_v * d_v * hidden, [&] { return std::vector<double>(d_v); },
      [&](std::vector<double>& row, std::size_t task) {
        const std::size_t h = task / d_v, i = task % d_v;
        std::fill(row.begin(), row.end(), 0.0);
        for (std::size_t d = 0; d < hidden; ++d) {
          const float* w = w_o + (h * hidden + d) * d_v;
          for (std::size_t j = 0; j < d_v; ++j) row[j] += double{w[i]} * double{w[j]};
        }
        for (std::size_t j = 0; j < d_v; ++j) gram[task * d_v + j] = static_cast<float>(row[j]);
      });
  return gram;
}

// norms [B, H, T] from v [B, G, T, d_v] and w_o [H, D, d_v]; p is 1 or 2.
static void source_norms(const Floats& v, std::size_t batch, std::size_t groups, std::size_t length,
                         std::size_t d_v, const float* w_o, std::size_t heads, std::size_t hidden,
                         int p, float* norms, int threads) {
  Buffer<float> gram;
  if (p == 2) gram = gram_matrices(w_o, heads, hidden, d_v, threads);
  const std::size_t rows = p == 2 ? d_v : hidden;  // of the left factor of v
  const Floats factor{p == 2 ? gram.get() : w_o, false, {0, rows * d_v, d_v}};
  const Buffer<float> packed = pack_transposed(factor, 1, heads, rows, d_v, threads);
  const std::size_t panels = panels_of(rows), padded = panels * kPanel;
  const std::size_t strips = (length + kRows - 1) / kRows;

  const auto task = [&](Buffer<float>& values, std::size_t index) {
    const std::size_t b = index / strips, first = index % strips * kRows;
    const std::size_t count = std::min(kRows, length - first);
    const std::size_t stride = std::max(padded, d_v);  // rows are padded with 0 to whole panels
    for (std::size_t h = 0; h < heads; ++h) {
      const std::size_t group = h * groups / heads;
      if (h == 0 || group != (h - 1) * groups / heads) {
        std::memset(values.get(), 0, kRows * stride * sizeof(float));
        for (std::size_t r = 0; r < count; ++r)
          copy_row(v, b, group, first + r, d_v, values.get() + r * stride);
      }
      Vector total[kRows] = {};
      for (std::size_t panel = 0; panel < panels; ++panel) {
        Block block{};
        multiply_add(block, values.get(), stride,
                     packed.get() + (h * panels + panel) * d_v * kPanel, d_v);
        for (std::size_t r = 0; r < kRows; ++r)
          for (std::size_t i = 0; i < kVectors; ++i) {
            const float* own = values.get() + r * stride + panel * kPanel + i * kWidth;
            total[r] += p == 1 ? absolute(block.at[r][i]) : block.at[r][i] * load(own);
          }
      }
      float* to = norms + (b * heads + h) * length + first;
      for (std::size_t r = 0; r < count; ++r) {
        const float found = sum(total[r]);
        to[r] = p == 1 ? found : std::sqrt(std::max(0.0f, found));
      }
    }
  };
  run(
      batch * strips, threads, batch * length * heads * d_v * rows,
      [&] { return Buffer<float>(kRows * std::max(padded, d_v)); }, task);
}
