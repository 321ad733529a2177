// Standard headers and shared code of the ops. Included before a region of an instruction set, so
// that nothing shared is compiled for it (instructions.h).
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <iterator>
#include <limits>
#include <numeric>
#include <optional>
#include <tuple>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "arguments.h"
#include "buffer.h"
#include "instructions.h"
#include "ops.h"
#include "threads.h"
