// Blocks of matrix products, in registers. No include guard: see all_ops.h.
//
// The right factor is packed in panels of kPanel columns, so that a block reads it sequentially;
// the left one is read a number at a time. Every entry is summed over `depth` in the same order
// in any block, so a score has the same bits in every op, and levels agree.

// kRows x kPanel entries of a product. Its kRows * kVectors registers, kVectors for the right
// factor and one for the left must fit the register file: 32 under AVX-512, 16 otherwise.
struct Block {
  Vector at[kRows][kVectors];
};

// block += a [kRows, depth] times b [depth, kPanel].
INLINE void multiply_add(Block& block, const float* a, std::size_t a_stride, const float* b,
                         std::size_t depth) {
  for (std::size_t k = 0; k < depth; ++k) {
    Vector right[kVectors];
#pragma GCC unroll 16
    for (std::size_t v = 0; v < kVectors; ++v) right[v] = load(b + k * kPanel + v * kWidth);
#pragma GCC unroll 16
    for (std::size_t r = 0; r < kRows; ++r) {
      const Vector left = splat(a[r * a_stride + k]);
#pragma GCC unroll 16
      for (std::size_t v = 0; v < kVectors; ++v) block.at[r][v] += left * right[v];
    }
  }
}

INLINE void store(const Block& block, float* to, std::size_t stride) {
#pragma GCC unroll 16
  for (std::size_t r = 0; r < kRows; ++r)
#pragma GCC unroll 16
    for (std::size_t v = 0; v < kVectors; ++v) store(to + r * stride + v * kWidth, block.at[r][v]);
}

// to [kRows, panels * kPanel] = a [kRows, depth] times panels [panels, depth, kPanel].
static void multiply(const float* a, std::size_t a_stride, const float* panels, std::size_t depth,
                     std::size_t count, float* to, std::size_t stride) {
  for (std::size_t p = 0; p < count; ++p) {
    Block block{};
    multiply_add(block, a, a_stride, panels + p * depth * kPanel, depth);
    store(block, to + p * kPanel, stride);
  }
}

// ---- packing ------------------------------------------------------------------------------------

constexpr std::size_t panels_of(std::size_t count) { return (count + kPanel - 1) / kPanel; }

// Copies row (n, m, row) of an array as float32.
INLINE void copy_row(const Floats& from, std::size_t n, std::size_t m, std::size_t row,
                     std::size_t count, float* to) {
  const std::size_t offset = n * from.stride[0] + m * from.stride[1] + row * from.stride[2];
  if (!from.bfloat16) {
    std::memcpy(to, static_cast<const float*>(from.data) + offset, count * sizeof(float));
    return;
  }
  const std::uint16_t* half = static_cast<const std::uint16_t*>(from.data) + offset;
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint32_t bits = std::uint32_t{half[i]} << 16;
    std::memcpy(to + i, &bits, sizeof bits);
  }
}

// Packs [n, m, rows, depth] into panels of rows, [n, m, panels, depth, kPanel]: the right factor of
// a product with the transpose. 0 beyond the rows.
static Buffer<float> pack_transposed(const Floats& from, std::size_t n, std::size_t m,
                                     std::size_t rows, std::size_t depth, int threads) {
  const std::size_t panels = panels_of(rows);
  Buffer<float> packed(n * m * panels * depth * kPanel);
  run(
      n * m * panels, threads, n * m * rows * depth, [&] { return Buffer<float>(depth); },
      [&](Buffer<float>& row, std::size_t task) {
        float* panel = packed.get() + task * depth * kPanel;
        const std::size_t first = task % panels * kPanel;
        for (std::size_t r = 0; r < kPanel; ++r) {
          if (first + r < rows)
            copy_row(from, task / panels / m, task / panels % m, first + r, depth, row.get());
          else
            std::memset(row.get(), 0, depth * sizeof(float));
          for (std::size_t k = 0; k < depth; ++k) panel[k * kPanel + r] = row[k];
        }
      });
  return packed;
}

// Packs [n, m, rows, columns] into panels of columns, [n, m, panels, padded rows, kPanel]: the
// right factor of a product. Rows are padded to a multiple of kPanel; 0 beyond rows and columns.
static Buffer<float> pack(const Floats& from, std::size_t n, std::size_t m, std::size_t rows,
                          std::size_t columns, int threads) {
  const std::size_t panels = panels_of(columns), padded = panels_of(rows) * kPanel;
  Buffer<float> packed(n * m * panels * padded * kPanel);
  run(
      n * m * panels_of(rows), threads, n * m * rows * columns,
      [&] { return Buffer<float>(panels * kPanel); },
      [&](Buffer<float>& row, std::size_t task) {
        const std::size_t matrix = task / panels_of(rows), first = task % panels_of(rows) * kPanel;
        std::memset(row.get(), 0, panels * kPanel * sizeof(float));
        for (std::size_t r = first; r < first + kPanel; ++r) {
          if (r < rows)
            copy_row(from, matrix / m, matrix % m, r, columns, row.get());
          else
            std::memset(row.get(), 0, columns * sizeof(float));
          for (std::size_t p = 0; p < panels; ++p)
            std::memcpy(packed.get() + ((matrix * panels + p) * padded + r) * kPanel,
                        row.get() + p * kPanel, kPanel * sizeof(float));
        }
      });
  return packed;
}

// Copies [rows, length] with rows padded to a multiple of kPanel by 0.
template <typename T>
static Buffer<T> pad(const T* from, std::size_t rows, std::size_t length) {
  const std::size_t padded = panels_of(length) * kPanel;
  Buffer<T> to(rows * padded);
  for (std::size_t r = 0; r < rows; ++r) {
    std::memcpy(to.get() + r * padded, from + r * length, length * sizeof(T));
    std::memset(to.get() + r * padded + length, 0, (padded - length) * sizeof(T));
  }
  return to;
}
