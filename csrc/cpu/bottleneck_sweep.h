// The inner loop of the bottleneck op. No include guard: bottleneck.cpp includes this file once per
// instruction set, in a namespace and under compiler options of its own, with these constants:
//
//   kVectorBytes  bytes of a register
//   kRows         outputs t whose results stay in registers at once
//   kVectors      registers side by side, so that a strip is kVectorBytes * kVectors sources wide
//
// kRows * kVectors accumulators, kVectors level registers and two temporaries have to fit the
// register file: 32 registers under AVX-512, 16 otherwise.

typedef std::uint8_t Vector __attribute__((vector_size(kVectorBytes), may_alias));

constexpr std::size_t kStrip = kVectorBytes * kVectors;

// GCC and Clang turn these into one instruction each, vpminub and vpmaxub on x86.
static inline __attribute__((always_inline)) Vector smaller(Vector a, Vector b) {
  return a < b ? a : b;
}
static inline __attribute__((always_inline)) Vector larger(Vector a, Vector b) {
  return a > b ? a : b;
}

// Bit j is set where any of the kRows outputs reaches node j at all. (Little-endian.)
static inline std::uint64_t nodes_in_reach(const std::uint8_t* reach) {
  std::uint64_t nodes = 0;
  for (std::size_t first = 0; first < kNodes; first += 8) {
    std::uint64_t any = 0;
    for (std::size_t r = 0; r < kRows; ++r) {
      std::uint64_t eight;
      std::memcpy(&eight, reach + r * kNodes + first, sizeof eight);
      any |= eight;
    }
    // The high bit of each byte that is not 0, gathered into 8 neighbouring bits.
    const std::uint64_t low = 0x7f7f7f7f7f7f7f7fULL;
    const std::uint64_t flags = ((((any & low) + low) | any) & ~low) >> 7;
    nodes |= ((flags * 0x0102040810204080ULL) >> 56) << first;
  }
  return nodes;
}

// best [kRows, kStrip] <- max(best, min(reach [kRows, kNodes] at node j, levels [kNodes, kStrip])),
// over the nodes j of the mask and the first kActive vectors of the strip.
template <std::size_t kActive>
static inline __attribute__((always_inline)) void sweep_active(
    std::uint64_t nodes, const std::uint8_t* reach, const std::uint8_t* levels, std::uint8_t* best) {
  Vector* stored = reinterpret_cast<Vector*>(best);
  Vector kept[kRows][kActive];
  for (std::size_t r = 0; r < kRows; ++r)
    for (std::size_t c = 0; c < kActive; ++c) kept[r][c] = stored[r * kVectors + c];
  for (; nodes != 0; nodes &= nodes - 1) {
    const std::size_t j = static_cast<std::size_t>(__builtin_ctzll(nodes));
    const Vector* row = reinterpret_cast<const Vector*>(levels) + j * kVectors;
    for (std::size_t r = 0; r < kRows; ++r) {
      const Vector reached = Vector{} + reach[r * kNodes + j];
      for (std::size_t c = 0; c < kActive; ++c)
        kept[r][c] = larger(kept[r][c], smaller(reached, row[c]));
    }
  }
  for (std::size_t r = 0; r < kRows; ++r)
    for (std::size_t c = 0; c < kActive; ++c) stored[r * kVectors + c] = kept[r][c];
}

// The rows of a block, kRows at a time. `columns` of the strip may hold anything but 0.
static void sweep(std::size_t rows, std::size_t columns, const std::uint8_t* reach,
                  const std::uint8_t* levels, std::uint8_t* best) {
  for (std::size_t r = 0; r < rows; r += kRows, reach += kRows * kNodes, best += kRows * kStrip) {
    const std::uint64_t nodes = nodes_in_reach(reach);
    if (nodes == 0) continue;
    switch ((columns + kVectorBytes - 1) / kVectorBytes) {
      case 1: sweep_active<1>(nodes, reach, levels, best); break;
      case 2: sweep_active<2>(nodes, reach, levels, best); break;
      case 3: sweep_active<3>(nodes, reach, levels, best); break;
      default: sweep_active<4>(nodes, reach, levels, best); break;
    }
  }
}
