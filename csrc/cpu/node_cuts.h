// Cuts that depend on all in-edges of a node: METHOD, section 3. No include guard: see all_ops.h.
//
// Nothing is sorted in full. A histogram over the leading bits of the weights (sign, exponent,
// three bits of mantissa) holds the number and the sum of every bin. Walking it from the heaviest
// bin down finds the bin that holds each stratum's last edge; one more pass over the weights
// gathers these bins and the next lighter ones, and only the gathered weights are sorted.

class Node {
 public:
  std::vector<float> weights;  // of all in-edges, in any order

  // The cuts above which the heaviest edges sum to each wanted mass. Ties with the last one are
  // kept, edges of weight 0 left out.
  void nucleus(const std::vector<double>& wanted, std::vector<float>& cuts) {
    count();
    places_.clear();
    for (const double mass : wanted)
      places_.push_back(
          descend([&](const Place& at, const Bin& bin) { return at.sum + bin.sum >= mass; }));
    gather();
    cuts.clear();
    for (std::size_t k = 0; k < wanted.size(); ++k) {
      const auto [first, end] = members(places_[k].bin);
      double running = places_[k].sum;
      std::size_t i = first;
      while (i < end && (running += std::max(0.0f, gathered_[i])) < wanted[k]) ++i;
      i = std::min(i, end - 1);  // the bin was summed in another order, so `running` can fall short
      const float last = gathered_[i];
      while (i < end && gathered_[i] == last) ++i;
      cuts.push_back(last > 0 ? std::max(0.0f, between(last, i)) : 0.0f);
    }
  }

  // The cuts that keep the given numbers of heaviest edges; ties with the next one are left out.
  void heaviest(const std::vector<std::size_t>& kept, std::vector<float>& cuts) {
    count();
    places_.clear();
    for (const std::size_t number : kept)
      places_.push_back(
          descend([&](const Place& at, const Bin& bin) { return at.count + bin.count >= number; }));
    gather();
    cuts.clear();
    for (std::size_t k = 0; k < kept.size(); ++k) {
      const std::size_t after = members(places_[k].bin).first + kept[k] - places_[k].count;
      cuts.push_back(between(gathered_[after - 1], after));
    }
  }

 private:
  static constexpr std::size_t kBits = 12, kBins = std::size_t{1} << kBits;
  struct Bin {
    double sum = 0;
    std::size_t count = 0;
  };
  struct Place {
    std::size_t bin = 0, count = 0;  // the bin; the number of edges in heavier bins
    double sum = 0;                  // and the sum of their weights
  };

  // Bins ascend with the weight: the bits of negative numbers are inverted.
  static std::size_t bin_of(float weight) {
    std::uint32_t bits;
    weight += 0.0f;  // turns -0, which compares as 0 does, into 0
    std::memcpy(&bits, &weight, sizeof bits);
    bits = (bits >> 31) != 0 ? ~bits : bits | 0x80000000U;
    return bits >> (32 - kBits);
  }

  void count() {
    bins_.assign(kBins, Bin{});
    lowest_ = kBins - 1;
    highest_ = 0;
    for (const float weight : weights) {
      const std::size_t at = bin_of(weight);
      bins_[at].sum += std::max(0.0f, weight);
      ++bins_[at].count;
      lowest_ = std::min(lowest_, at);
      highest_ = std::max(highest_, at);
    }
  }

  // The heaviest bin for which found(place, bin) holds, or the lightest non-empty one.
  template <typename Holds>
  Place descend(const Holds& holds) const {
    Place at;
    for (at.bin = highest_; at.bin > lowest_ && !holds(at, bins_[at.bin]); --at.bin) {
      at.sum += bins_[at.bin].sum;
      at.count += bins_[at.bin].count;
    }
    return at;
  }

  // Fills gathered_ with the members of the bins of all places and of the next lighter bins, in
  // descending order.
  void gather() {
    wanted_.assign(kBins, 0);
    for (const Place& at : places_) {
      wanted_[at.bin] = 1;
      std::size_t next = at.bin;
      while (next > lowest_ && bins_[--next].count == 0) continue;
      wanted_[next] = 1;
    }
    gathered_.clear();
    for (const float weight : weights)
      if (wanted_[bin_of(weight)] != 0) gathered_.push_back(weight);
    std::sort(gathered_.begin(), gathered_.end(), std::greater<float>());
  }

  // The range of a bin's members in gathered_.
  std::pair<std::size_t, std::size_t> members(std::size_t bin) const {
    const auto first = std::partition_point(gathered_.begin(), gathered_.end(),
                                            [&](float weight) { return bin_of(weight) > bin; });
    const auto start = static_cast<std::size_t>(first - gathered_.begin());
    return {start, start + bins_[bin].count};
  }

  // The midpoint of `last` and the next lighter weight, gathered_[i], so that recomputing a weight
  // in another order of summation can't move it across; -1 if there is no lighter weight.
  float between(float last, std::size_t i) const {
    if (i == gathered_.size()) return -1;
    const float next = gathered_[i], cut = (last + next) / 2;
    return cut >= last && last > next ? next : cut;  // the midpoint can round up to `last`
  }

  std::vector<Bin> bins_;
  std::vector<std::uint8_t> wanted_;
  std::vector<Place> places_;
  std::vector<float> gathered_;
  std::size_t lowest_ = 0, highest_ = 0;
};

// cuts [K, B, T]: find(node, b, t, found) writes the K cuts of a node to `found`.
template <typename Find>
static void cut_nodes(const InEdges& in, float* cuts, int threads, const Find& find) {
  struct Scratch {
    std::optional<EdgeScratch> edges;
    std::vector<Node> nodes;
    std::vector<float> result;
  };
  const auto cut = [&](Scratch& scratch, Node& node, std::size_t b, std::size_t t) {
    for (std::size_t e = 0; e < in.sides; ++e)
      node.weights.push_back(in.side[(e * in.batch + b) * in.length + t]);
    find(node, b, t, scratch.result);
    for (std::size_t k = 0; k < scratch.result.size(); ++k)
      cuts[(k * in.batch + b) * in.length + t] = scratch.result[k];
  };
  if (in.attention == nullptr) {
    run(
        in.batch * in.length, threads, in.batch * in.length * 4096,
        [] { return Scratch{{}, std::vector<Node>(1), {}}; },
        [&](Scratch& scratch, std::size_t index) {
          scratch.nodes[0].weights.clear();
          cut(scratch, scratch.nodes[0], index / in.length, index % in.length);
        });
    return;
  }
  const EdgeStrips weighed(*in.attention, threads);
  const std::size_t stride = weighed.geometry.stride();
  weighed.for_strips(
      threads, 0, [&] { return Scratch{weighed.make_scratch(), std::vector<Node>(kRows), {}}; },
      [&](Scratch& scratch, const Strip& strip) {
        for (Node& node : scratch.nodes) node.weights.clear();
        weighed.weigh_heads(strip, *scratch.edges, nullptr, [&](std::size_t) {
          for (std::size_t r = 0; r < strip.rows; ++r) {
            const float* row = scratch.edges->weight.get() + r * stride;
            const Row sources = weighed.geometry.row(strip, r);
            std::vector<float>& weights = scratch.nodes[r].weights;
            if (sources.segments == nullptr)
              weights.insert(weights.end(), row + sources.first, row + sources.last + 1);
            else
              std::copy_if(row + sources.first, row + sources.last + 1, std::back_inserter(weights),
                           [](float w) { return w != -kInfinity; });
          }
        });
        for (std::size_t r = 0; r < strip.rows; ++r)
          cut(scratch, scratch.nodes[r], strip.sequence, strip.first + r);
      });
}

// cuts [K, B, T] that keep each of the masses [K], as shares of totals [B, T].
static void nucleus_cuts(const InEdges& in, const double* masses, std::size_t strata,
                         const float* total, float* cuts, int threads) {
  cut_nodes(in, cuts, threads,
            [&](Node& node, std::size_t b, std::size_t t, std::vector<float>& result) {
              std::vector<double> wanted(masses, masses + strata);
              for (double& mass : wanted) mass *= static_cast<double>(total[b * in.length + t]);
              node.nucleus(wanted, result);
            });
}

// cuts [K, B, T] that keep ceil(fraction * n) of n in-edges.
static void fraction_cuts(const InEdges& in, const double* fractions, std::size_t strata,
                          float* cuts, int threads) {
  cut_nodes(in, cuts, threads,
            [&](Node& node, std::size_t, std::size_t, std::vector<float>& result) {
              const double degree = static_cast<double>(node.weights.size());
              std::vector<std::size_t> kept;
              for (std::size_t k = 0; k < strata; ++k) {
                const double wanted = std::ceil(fractions[k] * degree - 1e-9);
                kept.push_back(static_cast<std::size_t>(std::min(std::max(wanted, 1.0), degree)));
              }
              node.heaviest(kept, result);
            });
}
