// Vectors of the current instruction set. No include guard: see all_ops.h.

constexpr std::size_t kWidth = kVectorBytes / sizeof(float);  // floats of a vector
constexpr std::size_t kPanel = kVectors * kWidth;             // columns of a block of a product

typedef float Vector __attribute__((vector_size(kVectorBytes), may_alias));
typedef std::int32_t Mask __attribute__((vector_size(kVectorBytes), may_alias));  // 0 or -1
typedef std::uint32_t Bits __attribute__((vector_size(kVectorBytes), may_alias));

constexpr float kInfinity = std::numeric_limits<float>::infinity();

INLINE Vector splat(float value) { return Vector{} + value; }
INLINE Mask splat(std::int32_t value) { return Mask{} + value; }
INLINE Bits splat(std::uint32_t value) { return Bits{} + value; }

template <typename V, typename T>
INLINE V load_as(const T* from) {
  V vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}
INLINE Vector load(const float* from) { return load_as<Vector>(from); }
INLINE Mask load(const std::int32_t* from) { return load_as<Mask>(from); }
template <typename V, typename T>
INLINE void store(T* to, V vector) {
  std::memcpy(to, &vector, sizeof vector);
}

INLINE Vector larger(Vector a, Vector b) { return a > b ? a : b; }
INLINE Vector smaller(Vector a, Vector b) { return a < b ? a : b; }
INLINE Vector absolute(Vector a) { return (Vector)((Bits)a & 0x7fffffffU); }

INLINE Mask iota() {
  Mask index{};
  for (std::size_t i = 0; i < kWidth; ++i) index[i] = static_cast<std::int32_t>(i);
  return index;
}

template <typename M>
INLINE bool any(M mask) {
#if defined(__x86_64__)
  if constexpr (sizeof mask == 64) return _mm512_movepi32_mask((__m512i)mask) != 0;
  if constexpr (sizeof mask == 32) return _mm256_movemask_ps((__m256)mask) != 0;
#endif
  std::uint64_t words[sizeof mask / 8], bits = 0;
  std::memcpy(words, &mask, sizeof mask);
  for (const std::uint64_t word : words) bits |= word;
  return bits != 0;
}

// A tree of halves: the order is fixed, and the error grows with the logarithm of the width.
template <typename V>
INLINE auto sum(V vector) {
  for (std::size_t half = kWidth / 2; half > 0; half /= 2)
    for (std::size_t i = 0; i < half; ++i) vector[i] += vector[i + half];
  return vector[0];
}

INLINE float largest(Vector vector) {
  float result = vector[0];
  for (std::size_t i = 1; i < kWidth; ++i) result = std::max(result, static_cast<float>(vector[i]));
  return result;
}

// e^x for x <= 88; 0 below -87, where float32 ends. x = n ln 2 + r with |r| <= ln(2) / 2; the
// Taylor series of e^r errs by less than r^8 / 8! = 6e-9.
INLINE Vector exponential(Vector x) {
  const Mask vanishes = x < -87.0f;
  x = vanishes ? splat(-87.0f) : x;
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds, and leaves n in the low bits
  const Vector shifted = x * 1.442695041f + magic;
  const Vector n = shifted - magic;
  Vector r = x - n * 0.693359375f;  // ln 2 in two parts, the first exact in n times it
  r = r + n * 2.12194440e-4f;
  Vector series = splat(1.0f / 5040);
  series = series * r + 1.0f / 720;
  series = series * r + 1.0f / 120;
  series = series * r + 1.0f / 24;
  series = series * r + 1.0f / 6;
  series = series * r + 0.5f;
  series = series * r + 1.0f;
  series = series * r + 1.0f;
  const Vector scaled = (Vector)((Bits)series + ((Bits)shifted << 23));
  return vanishes ? Vector{} : scaled;
}

// Near 0 a Taylor series, since 1 - e^-2x would cancel there; below 1/4 its next term is 1e-8 x.
INLINE Vector hyperbolic_tangent(Vector x) {
  const Vector size = absolute(x);
  const Vector square = x * x;
  Vector series = splat(62.0f / 2835);
  series = series * square - 17.0f / 315;
  series = series * square + 2.0f / 15;
  series = series * square - 1.0f / 3;
  series = series * square * x + x;
  const Vector e = exponential(-2.0f * size);
  const Vector far = (1.0f - e) / (1.0f + e);
  return size < 0.25f ? series : (x < 0.0f ? -far : far);
}
