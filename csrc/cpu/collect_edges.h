// The kept attention edges as tables. No include guard: see all_ops.h.
//
// Two sweeps: the first counts the kept edges of each row (a target of a head); the second writes
// the edges of consecutive rows, each row at its offset.

// Calls visit(row, strip, h, r, weight, lowest) for rows [first, last) of [B, H, T]: target r of a
// strip under head h, its weights, and its last cut. Weights up to that cut may be inexact.
template <typename Visit>
static void visit_rows(const EdgeStrips& weighed, const Pattern& pattern, const float* floor,
                       std::size_t first, std::size_t last, int threads, const Visit& visit) {
  weighed.for_strips(
      threads, 0, [&] { return weighed.make_scratch(); },
      [&](EdgeScratch& scratch, const Strip& strip) {
        const float* lowest = floor + strip.sequence * pattern.length + strip.first;
        for (std::size_t h = 0; h < pattern.heads; ++h) {
          const std::size_t row =
              (strip.sequence * pattern.heads + h) * pattern.length + strip.first;
          if (row + strip.rows <= first || row >= last) continue;
          weighed.weigh(strip, h, scratch, lowest);
          for (std::size_t r = 0; r < strip.rows; ++r)
            if (first <= row + r && row + r < last)
              visit(row + r, strip, h, r, scratch.weight.get() + r * weighed.geometry.stride(),
                    lowest[r]);
        }
      });
}

// The edges of some rows of [B, H, T] that clear the last of cuts [K, B, T], ordered by (sequence,
// head, target, source), each with the first stratum that keeps it. Takes rows from `row` on while
// they keep at most `limit` edges together, but at least one row, and advances `row` past them. The
// call for row 0 writes counts [B, H, T]; later calls read them.
static EdgeRows collect_edges(const Edges& edges, const float* cuts, std::size_t strata,
                              std::int64_t* counts, std::size_t limit, std::size_t& row,
                              int threads) {
  const Pattern& pattern = edges.pattern;
  const std::size_t batch = pattern.batch, length = pattern.length;
  const std::size_t rows = batch * pattern.heads * length;
  const EdgeStrips weighed(edges, threads);
  const float* floor = cuts + (strata - 1) * batch * length;
  const auto count = [&](std::size_t i, const Strip& strip, std::size_t, std::size_t,
                         const float* weight, float lowest) {
    Mask kept{};
    for (std::size_t column = 0; column < strip.width(); column += kWidth)
      kept -= load(weight + column) > lowest;
    counts[i] = sum(kept);
  };
  if (row == 0) visit_rows(weighed, pattern, floor, 0, rows, threads, count);

  while (row < rows && counts[row] == 0) ++row;
  const std::size_t first = row;
  std::vector<std::size_t> places{0};
  for (; row < rows; ++row) {
    const std::size_t end = places.back() + static_cast<std::size_t>(counts[row]);
    if (row > first && end > limit) break;
    places.push_back(end);
  }
  EdgeRows table(places.back());
  const auto write = [&](std::size_t i, const Strip& strip, std::size_t h, std::size_t r,
                         const float* weight, float lowest) {
    const float* cut = cuts + strip.sequence * length + strip.first + r;
    std::size_t at = places[i - first];
    const std::size_t end = places[i - first + 1];
    for (std::size_t column = 0; column < strip.width(); column += kWidth) {
      if (!any(load(weight + column) > lowest)) continue;
      for (std::size_t s = column; s < column + kWidth; ++s) {
        // Never write past the row's end, even if weights have changed since they were counted.
        if (!(weight[s] > lowest) || at == end) continue;
        std::size_t level = 0;  // cuts descend, so the last is the first to be cleared
        while (level < strata && weight[s] > cut[(strata - 1 - level) * batch * length]) ++level;
        table.sequence[at] = static_cast<std::int32_t>(strip.sequence);
        table.head[at] = static_cast<std::int16_t>(h);
        table.source[at] = static_cast<std::int32_t>(strip.column() + s);
        table.target[at] = static_cast<std::int32_t>(strip.first + r);
        table.stratum[at] = static_cast<std::uint8_t>(strata - level);
        table.weight[at++] = weight[s];
      }
    }
  };
  if (table.count != 0) visit_rows(weighed, pattern, floor, first, row, threads, write);
  return table;
}
