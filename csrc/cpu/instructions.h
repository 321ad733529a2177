// Macros that compile a region of source for an instruction set. x86-64 with GCC or Clang;
// elsewhere only the portable set is built. Include standard headers before such a region: their
// inline functions, shared with other files, must not use instructions that the processor may lack.
#pragma once

#if defined(__x86_64__) && defined(__clang__)
// clang-format off: _Pragma takes one string
#define BEGIN_AVX512 \
  _Pragma("clang attribute push(__attribute__((target(\"avx512f,avx512bw,avx512dq,avx512vl,fma\"))), apply_to = function)")
#define BEGIN_AVX2 \
  _Pragma("clang attribute push(__attribute__((target(\"avx2,fma\"))), apply_to = function)")
// clang-format on
#define END_INSTRUCTIONS _Pragma("clang attribute pop")
#elif defined(__x86_64__)
#define BEGIN_AVX512          \
  _Pragma("GCC push_options") \
      _Pragma("GCC target(\"avx512f,avx512bw,avx512dq,avx512vl,fma,prefer-vector-width=512\")")
#define BEGIN_AVX2 _Pragma("GCC push_options") _Pragma("GCC target(\"avx2,fma\")")
#define END_INSTRUCTIONS _Pragma("GCC pop_options")
#endif

#define INLINE static inline __attribute__((always_inline))
