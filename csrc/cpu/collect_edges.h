// The kept attention edges as a table. No include guard: see all_ops.h.
//
// Two sweeps: how many edges each strip of each head keeps, then the edges, each strip at its
// place.

// The edges that clear the last of cuts [K, B, T], ordered by (sequence, head, target, source),
// each with the first stratum that holds it.
static EdgeRows collect_edges(const Edges& edges, const float* cuts, std::size_t strata,
                              int threads) {
  const Pattern& pattern = edges.pattern;
  const std::size_t batch = pattern.batch, length = pattern.length, heads = pattern.heads;
  const EdgeStrips weighed(edges, threads);
  const std::size_t stride = weighed.geometry.stride();
  // Calls keep(strip, h, r, column, weight) for every kept edge of a strip in order, head by head.
  const auto visit = [&](const auto& keep) {
    weighed.for_strips(
        threads, 0, [&] { return weighed.make_scratch(); },
        [&](EdgeScratch& scratch, const Strip& strip) {
          const float* lowest =
              cuts + ((strata - 1) * batch + strip.sequence) * length + strip.first;
          weighed.weigh_heads(strip, scratch, nullptr, [&](std::size_t h) {
            for (std::size_t r = 0; r < strip.rows; ++r) {
              const float* row = scratch.weight.get() + r * stride;
              for (std::size_t column = 0; column < strip.width(); column += kWidth) {
                if (!any(load(row + column) > lowest[r])) continue;
                for (std::size_t s = column; s < column + kWidth; ++s)
                  if (row[s] > lowest[r]) keep(strip, h, r, s, row[s]);
              }
            }
          });
        });
  };
  // Rows (b, h, t) of the table: first their numbers of edges, then where they go on.
  std::vector<std::size_t> place(batch * heads * length + 1, 0);
  const auto row_of = [&](const Strip& strip, std::size_t h, std::size_t r) {
    return (strip.sequence * heads + h) * length + strip.first + r;
  };
  visit([&](const Strip& strip, std::size_t h, std::size_t r, std::size_t, float) {
    ++place[row_of(strip, h, r) + 1];
  });
  std::partial_sum(place.begin(), place.end(), place.begin());
  EdgeRows rows(place.back());
  visit([&](const Strip& strip, std::size_t h, std::size_t r, std::size_t s, float weight) {
    const std::size_t i = place[row_of(strip, h, r)]++;
    const float* cut = cuts + strip.sequence * length + strip.first + r;
    std::size_t level = 0;  // cuts descend: the first to be cleared is the lowest
    while (level < strata && weight > cut[(strata - 1 - level) * batch * length]) ++level;
    rows.sequence[i] = static_cast<std::int32_t>(strip.sequence);
    rows.head[i] = static_cast<std::int16_t>(h);
    rows.source[i] = static_cast<std::int32_t>(strip.column() + s);
    rows.target[i] = static_cast<std::int32_t>(strip.first + r);
    rows.stratum[i] = static_cast<std::uint8_t>(strata - level);
    rows.weight[i] = weight;
  });
  return rows;
}
