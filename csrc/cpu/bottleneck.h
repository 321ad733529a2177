// The (max, min) product over levels: METHOD, section 4.
// No include guard: see all_ops.h.
//
// bottleneck: reach R = beta_t(j) [T, T], levels S [T, T]; the result is the max over j of
// min(R[t, j], S[j, i]), all uint8 and lower triangular. T^3 / 6 pairs of a byte min and max.
//
// This is a matrix product in another algebra, so it is blocked like one. A task owns kBlock
// outputs t and a strip of sources i, and loops over the nodes j, kNodes at a time: the strip's
// levels of these nodes are copied into a dense tile (at most 16 KiB, in L1) that holds 0 above the
// diagonal and beyond the row's end, so that the inner loop needs no bounds. The inner loop keeps
// the strips of a few outputs in registers and costs one broadcast per output and node, and one min
// and one max per register. Nodes that none of its outputs reaches are skipped.
//
// The task reads 1 / kBlock of the bytes it computes on, so the op is bound by arithmetic: at
// 64 bytes an instruction, T = 2048 takes 22 million min/max pairs for all strata and outputs.

namespace max_min {

constexpr std::size_t kNodes = 64;   // nodes j of a tile: a mask of them is one machine word
constexpr std::size_t kBlock = 128;  // outputs t of a task: a multiple of every kLevelRows

typedef std::uint8_t Bytes __attribute__((vector_size(kVectorBytes), may_alias));

constexpr std::size_t kStrip = kVectorBytes * kLevelVectors;

// GCC and Clang compile each to one instruction: vpminub and vpmaxub on x86.
INLINE Bytes smaller(Bytes a, Bytes b) { return a < b ? a : b; }
INLINE Bytes larger(Bytes a, Bytes b) { return a > b ? a : b; }

// Bit j is set if any of the kLevelRows outputs reaches node j. (Little-endian.)
static inline std::uint64_t nodes_in_reach(const std::uint8_t* reach) {
  std::uint64_t nodes = 0;
  for (std::size_t first = 0; first < kNodes; first += 8) {
    std::uint64_t any = 0;
    for (std::size_t r = 0; r < kLevelRows; ++r) {
      std::uint64_t eight;
      std::memcpy(&eight, reach + r * kNodes + first, sizeof eight);
      any |= eight;
    }
    // Set the high bit of each non-zero byte, then gather these into 8 neighbouring bits.
    const std::uint64_t low = 0x7f7f7f7f7f7f7f7fULL;
    const std::uint64_t flags = ((((any & low) + low) | any) & ~low) >> 7;
    nodes |= ((flags * 0x0102040810204080ULL) >> 56) << first;
  }
  return nodes;
}

// best [kLevelRows, kStrip] <- max(best, min(reach [kLevelRows, kNodes] at j, levels [kNodes,
// kStrip])) over the nodes j of the mask and the first kActive vectors of the strip.
template <std::size_t kActive>
INLINE void sweep_active(std::uint64_t nodes, const std::uint8_t* reach, const std::uint8_t* levels,
                         std::uint8_t* best) {
  Bytes* stored = reinterpret_cast<Bytes*>(best);
  Bytes kept[kLevelRows][kActive];
  for (std::size_t r = 0; r < kLevelRows; ++r)
    for (std::size_t c = 0; c < kActive; ++c) kept[r][c] = stored[r * kLevelVectors + c];
  for (; nodes != 0; nodes &= nodes - 1) {
    const std::size_t j = static_cast<std::size_t>(__builtin_ctzll(nodes));
    const Bytes* row = reinterpret_cast<const Bytes*>(levels) + j * kLevelVectors;
    for (std::size_t r = 0; r < kLevelRows; ++r) {
      const Bytes reached = Bytes{} + reach[r * kNodes + j];
      for (std::size_t c = 0; c < kActive; ++c)
        kept[r][c] = larger(kept[r][c], smaller(reached, row[c]));
    }
  }
  for (std::size_t r = 0; r < kLevelRows; ++r)
    for (std::size_t c = 0; c < kActive; ++c) stored[r * kLevelVectors + c] = kept[r][c];
}

// The rows of a block, kLevelRows at a time. Only the first `columns` of the strip can be non-zero.
static void sweep(std::size_t rows, std::size_t columns, const std::uint8_t* reach,
                  const std::uint8_t* levels, std::uint8_t* best) {
  for (std::size_t r = 0; r < rows; r += kLevelRows) {
    const std::uint8_t* from = reach + r * kNodes;
    std::uint8_t* to = best + r * kStrip;
    const std::uint64_t nodes = nodes_in_reach(from);
    if (nodes == 0) continue;
    switch ((columns + kVectorBytes - 1) / kVectorBytes) {
      case 1:
        sweep_active<1>(nodes, from, levels, to);
        break;
      case 2:
        sweep_active<2>(nodes, from, levels, to);
        break;
      case 3:
        sweep_active<3>(nodes, from, levels, to);
        break;
      default:
        sweep_active<4>(nodes, from, levels, to);
        break;
    }
  }
}

struct alignas(64) Scratch {
  std::uint8_t reach[kBlock * kNodes];
  std::uint8_t levels[kNodes * kStrip];
  std::uint8_t best[kBlock * kStrip];
};

// Copies rows [first, first + rows) and columns [column, column + width) of a lower triangular
// matrix into a dense tile, with 0 above the diagonal and outside the matrix.
static void copy_tile(const std::uint8_t* matrix, std::size_t length, std::size_t first,
                      std::size_t rows, std::size_t column, std::size_t width, std::uint8_t* tile) {
  for (std::size_t r = 0; r < rows; ++r, tile += width) {
    const std::size_t row = first + r;
    const std::size_t end = row < length ? row + 1 : 0;  // up to the diagonal
    const std::size_t filled = end > column ? std::min(width, end - column) : 0;
    if (filled != 0) std::memcpy(tile, matrix + row * length + column, filled);
    std::memset(tile + filled, 0, width - filled);
  }
}

// Outputs [first, first + kBlock) and sources [column, column + strip) of one sequence.
static void bottleneck_tile(const std::uint8_t* reach, const std::uint8_t* levels,
                            std::uint8_t* result, std::size_t length, std::size_t first,
                            std::size_t column) {
  const std::size_t last = std::min(length, first + kBlock);
  const std::size_t width = std::min(kStrip, length - column);
  Scratch scratch;
  std::memset(scratch.best, 0, kBlock * kStrip);
  for (std::size_t node = column; node < last; node += kNodes) {
    // Outputs before this node don't reach it. `skip` is a multiple of every kLevelRows.
    const std::size_t skip = node > first ? node - first : 0;
    const std::size_t columns = std::min(kStrip, node + kNodes - column);
    copy_tile(reach, length, first + skip, kBlock - skip, node, kNodes, scratch.reach);
    copy_tile(levels, length, node, kNodes, column, kStrip, scratch.levels);
    sweep(kBlock - skip, columns, scratch.reach, scratch.levels, scratch.best + skip * kStrip);
  }
  for (std::size_t t = first; t < last; ++t)
    std::memcpy(result + t * length + column, scratch.best + (t - first) * kStrip, width);
}

}  // namespace max_min

// result[b, t, i] = max over i <= j <= t of min(reach[b, t, j], levels[b, j, i]), 0 where i > t.
// All uint8 [batch, length, length], row-major; entries above the diagonal are not read.
static void bottleneck(const std::uint8_t* reach, const std::uint8_t* levels, std::uint8_t* result,
                       std::size_t batch, std::size_t length, int threads) {
  using namespace max_min;
  const std::size_t blocks = (length + kBlock - 1) / kBlock;
  const std::size_t strips = (length + kStrip - 1) / kStrip;
  const std::size_t operations = batch * length * length / 3 * length;
  run(batch * blocks * strips, threads, operations / 64, [&](std::size_t task) {
    const std::size_t sequence = task % batch * length * length;
    const std::size_t first = (blocks - 1 - task / batch / strips) * kBlock;
    const std::size_t column = task / batch % strips * kStrip;
    bottleneck_tile(reach + sequence, levels + sequence, result + sequence, length, first, column);
  });
}
