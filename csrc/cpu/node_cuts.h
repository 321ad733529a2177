// Cuts that depend on all in-edges of a node: METHOD, section 3. No include guard: see all_ops.h.
//
// Nothing is sorted in full. A histogram over the leading bits of the weights (sign, exponent, three
// bits of mantissa) holds count, sum and largest weight of every bin; the edge at which a cut lies is
// found by walking down the bins, and only its own bin is sorted.

class Node {
 public:
  std::vector<float> weights;  // of all in-edges, in any order

  void count() {
    bins_.assign(kBins, Bin{});
    sorted_ = kBins;
    for (const float weight : weights) {
      Bin& bin = bins_[place(weight)];
      ++bin.count;
      bin.sum += std::max(0.0f, weight);
      bin.most = std::max(bin.most, weight);
    }
  }

  // The cut under which the heaviest edges sum to `wanted`; ties with the last are kept.
  float nucleus(double wanted) {
    double running = 0;
    std::size_t above = 0;  // edges in heavier bins
    for (std::size_t bin = kBins; bin-- > kZero;) {
      if (bins_[bin].count == 0) continue;
      if (running + bins_[bin].sum < wanted) {
        running += bins_[bin].sum;
        above += bins_[bin].count;
        continue;
      }
      sort(bin);
      std::size_t i = 0;
      for (; i + 1 < members_.size(); ++i) {
        running += std::max(0.0f, members_[i]);
        if (running >= wanted) break;
      }
      const float last = members_[i];
      if (last <= 0) break;  // rounding: the edges that weigh anything don't quite reach it
      while (i < members_.size() && members_[i] == last) ++i;
      return std::max(0.0f, between(last, i, bin));
    }
    return 0;
  }

  // The cut under which the `kept` heaviest edges are kept; ties with the next are left out.
  float heaviest(std::size_t kept) {
    std::size_t above = 0;
    for (std::size_t bin = kBins; bin-- > 0;) {
      if (above + bins_[bin].count < kept) {
        above += bins_[bin].count;
        continue;
      }
      sort(bin);
      return between(members_[kept - above - 1], kept - above, bin);
    }
    return -1;
  }

 private:
  static constexpr std::size_t kBits = 12, kBins = std::size_t{1} << kBits, kZero = kBins / 2;
  struct Bin {
    std::size_t count = 0;
    double sum = 0;
    float most = -kInfinity;
  };

  // Bins ascend with the weight: negative numbers have their bits turned round.
  static std::size_t place(float weight) {
    std::uint32_t bits;
    std::memcpy(&bits, &weight, sizeof bits);
    bits = (bits >> 31) != 0 ? ~bits : bits | 0x80000000U;
    return bits >> (32 - kBits);
  }

  void sort(std::size_t bin) {
    if (sorted_ == bin) return;
    members_.clear();
    for (const float weight : weights)
      if (place(weight) == bin) members_.push_back(weight);
    std::sort(members_.begin(), members_.end(), std::greater<float>());
    sorted_ = bin;
  }

  // Half-way from `last` to the next lighter weight, which is member i of the sorted bin or the
  // heaviest below it. Half-way, so that recomputing a weight in another order of summation can't
  // move it across; -1 where nothing is lighter.
  float between(float last, std::size_t i, std::size_t bin) const {
    float next = -kInfinity;
    if (i < members_.size()) {
      next = members_[i];
    } else {
      while (bin > 0 && next == -kInfinity) next = bins_[--bin].most;
    }
    if (next == -kInfinity) return -1;
    const float cut = (last + next) / 2;
    return cut >= last && last > next ? next : cut;  // half-way can round up to `last`
  }

  std::vector<Bin> bins_;
  std::vector<float> members_;  // of bin `sorted_`, descending
  std::size_t sorted_ = kBins;
};

// Calls use(node, b, t) with all in-edges of every node: attention edges, where there are any, and
// side edges [E, B, T].
template <typename Use>
static void for_nodes(const Edges* edges, const float* side, std::size_t sides, std::size_t batch,
                      std::size_t length, int threads, const Use& use) {
  const auto add_sides = [&](Node& node, std::size_t b, std::size_t t) {
    for (std::size_t e = 0; e < sides; ++e)
      node.weights.push_back(side[(e * batch + b) * length + t]);
    node.count();
    use(node, b, t);
  };
  if (edges == nullptr) {
    run(batch, threads, batch * length * 4096, [] { return Node{}; },
        [&](Node& node, std::size_t b) {
          for (std::size_t t = 0; t < length; ++t) {
            node.weights.clear();
            add_sides(node, b, t);
          }
        });
    return;
  }
  const std::size_t heads = edges->pattern.heads;
  const EdgeStrips weighed(*edges, threads);
  const std::size_t stride = weighed.geometry.stride();
  struct Scratch {
    EdgeScratch edges;
    std::vector<Node> nodes;
  };
  run(weighed.geometry.strips() * batch, threads, heads * weighed.operations(),
      [&] { return Scratch{weighed.make_scratch(), std::vector<Node>(kRows)}; },
      [&](Scratch& scratch, std::size_t index) {
        const Strip strip = weighed.geometry.strip(index % batch, index / batch);
        for (Node& node : scratch.nodes) node.weights.clear();
        weigh_heads(weighed, strip, heads, scratch.edges, nullptr, [&](std::size_t) {
          for (std::size_t r = 0; r < strip.rows; ++r) {
            const float* row = scratch.edges.weight.get() + r * stride;
            const Row sources = weighed.geometry.row(strip, r);
            for (std::size_t s = sources.first; s <= sources.last; ++s)
              if (row[s] != -kInfinity) scratch.nodes[r].weights.push_back(row[s]);
          }
        });
        for (std::size_t r = 0; r < strip.rows; ++r)
          add_sides(scratch.nodes[r], strip.sequence, strip.first + r);
      });
}

// cuts [K, B, T] from ascending masses [K] and totals [B, T].
static void nucleus_cuts(const Edges* edges, const float* side, std::size_t sides,
                         const double* masses, std::size_t strata, const float* total,
                         std::size_t batch, std::size_t length, float* cuts, int threads) {
  for_nodes(edges, side, sides, batch, length, threads,
            [&](Node& node, std::size_t b, std::size_t t) {
              for (std::size_t k = 0; k < strata; ++k)
                cuts[(k * batch + b) * length + t] =
                    node.nucleus(masses[k] * static_cast<double>(total[b * length + t]));
            });
}

// cuts [K, B, T] that keep ceil(fraction * n) of n in-edges.
static void fraction_cuts(const Edges* edges, const float* side, std::size_t sides,
                          const double* fractions, std::size_t strata, std::size_t batch,
                          std::size_t length, float* cuts, int threads) {
  for_nodes(edges, side, sides, batch, length, threads,
            [&](Node& node, std::size_t b, std::size_t t) {
              const double degree = static_cast<double>(node.weights.size());
              for (std::size_t k = 0; k < strata; ++k) {
                const double wanted = std::ceil(fractions[k] * degree - 1e-9);
                const double kept = std::min(std::max(wanted, 1.0), degree);
                cuts[(k * batch + b) * length + t] = node.heaviest(static_cast<std::size_t>(kept));
              }
            });
}
