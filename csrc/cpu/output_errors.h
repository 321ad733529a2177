// Errors of the lanes' next-token distributions: METHOD, section 6. No include guard: see
// all_ops.h.
//
// A task is a token: its clean logits, then those of each lane, one row of the vocabulary at a
// time. Three passes over a row: the logits and their maximum, the exponentials and their sum, the
// sums of the errors. The caller computes the logits, as one matrix product for all lanes of a few
// tokens.
//
// The shared nucleus needs no ranking of a lane's tokens. The clean tokens are ranked once, the
// first kCandidates of them unless more are needed; a lane agrees with the first r of them if they
// descend in its own logits too and no other token outranks the r-th.

// NUCLEUS_PERCENT of kernels/results.py.
constexpr float kPercents[] = {1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 99};

class Distribution {
 public:
  explicit Distribution(const Predictions& all)
      : all_(all), padded_(round_up(all.vocabulary, kWidth)), p_(padded_) {}

  const float* p() const { return p_.get(); }  // probabilities
  const float* logits() const { return logits_; }
  float log_p(std::size_t token) const { return logits_[token] - lse_; }
  float lse() const { return lse_; }
  float top() const { return top_; }
  std::size_t padded() const { return padded_; }

  // Scales, shifts and caps a row of logits in place. Padding gets a logit so low that its
  // probability is 0, but finite, so that 0 times it is 0.
  void read(float* row) {
    logits_ = row;
    std::fill(row + all_.vocabulary, row + padded_, -1e30f);
    Vector top = splat(-kInfinity);
    for (std::size_t v = 0; v < padded_; v += kWidth) {
      Vector z = load(row + v);
      if (v + kWidth <= all_.vocabulary) {
        z = prepared(z, v);
        store(row + v, z);
      } else {
        for (std::size_t i = v; i < all_.vocabulary; ++i) row[i] = prepared(row[i], i);
        z = load(row + v);
      }
      top = larger(top, z);
    }
    top_ = largest(top);
    const double total = over_blocks([&](std::size_t v) {
      const Vector e = exponential(load(row + v) - top_);
      store(p_.get() + v, e);
      return e;
    });
    lse_ = top_ + static_cast<float>(std::log(total));
    const float share = static_cast<float>(1 / total);
    for (std::size_t v = 0; v < padded_; v += kWidth)
      store(p_.get() + v, load(p_.get() + v) * share);
  }

  float entropy() const {
    return static_cast<float>(-over_blocks(
        [&](std::size_t v) { return load(p_.get() + v) * (load(logits_ + v) - lse_); }));
  }

  // The sum of term(v) over all vectors v: in float32 over kBlock numbers, then in float64.
  template <typename Term>
  double over_blocks(const Term& term) const {
    constexpr std::size_t kBlock = 4096;
    double total = 0;
    for (std::size_t first = 0; first < padded_; first += kBlock) {
      Vector part{};
      for (std::size_t v = first; v < std::min(padded_, first + kBlock); v += kWidth)
        part += term(v);
      total += sum(part);
    }
    return total;
  }

  std::size_t first_top() const {
    return static_cast<std::size_t>(std::find(logits_, logits_ + all_.vocabulary, top_) - logits_);
  }

  bool outranks(std::size_t a, std::size_t b) const {
    return logits_[a] > logits_[b] || (logits_[a] == logits_[b] && a < b);
  }

 private:
  __attribute__((always_inline)) Vector prepared(Vector z, std::size_t v) const {
    z = z * all_.scale;
    if (all_.bias != nullptr) z += load(all_.bias + v);
    return all_.softcap == 0 ? z : all_.softcap * hyperbolic_tangent(z / all_.softcap);
  }
  float prepared(float z, std::size_t v) const {
    z = z * all_.scale;
    if (all_.bias != nullptr) z += all_.bias[v];
    return all_.softcap == 0 ? z : all_.softcap * std::tanh(z / all_.softcap);
  }

  const Predictions& all_;
  std::size_t padded_;
  Buffer<float> p_;
  float* logits_ = nullptr;
  float lse_ = 0, top_ = 0;
};

// The likeliest tokens of the clean distribution in order, and how many of them hold each mass.
class Ranking {
 public:
  explicit Ranking(std::size_t vocabulary) : rank_(vocabulary, kNowhere) {}

  void read(const Distribution& clean) {
    clean_ = &clean;
    rank(std::min(kCandidates, rank_.size()));
  }

  // Largest mass in percent whose tokens a lane ranks in the same order; 0 if there is none.
  float shared_nucleus(const Distribution& lane) {
    std::size_t agreeing = agreement(lane);
    if (agreeing == tokens_.size() && tokens_.size() < rank_.size() &&
        held_.back() > tokens_.size()) {
      rank(rank_.size());
      agreeing = agreement(lane);
    }
    float shared = 0;
    double running = 0, before = 0;  // the lane's mass of `taken` tokens, and of one fewer
    std::size_t taken = 0;
    for (std::size_t i = 0; i < held_.size() && held_[i] <= agreeing; ++i) {
      const double wanted = static_cast<double>(kPercents[i]) / 100;
      for (; taken < held_[i]; ++taken) {
        before = running;
        running += lane.p()[tokens_[taken]];
      }
      if (running >= wanted && before < wanted) shared = kPercents[i];
    }
    return shared;
  }

 private:
  static constexpr std::size_t kCandidates = 64;
  static constexpr std::uint32_t kNowhere = 0xffffffffU;

  void rank(std::size_t wanted) {
    for (const std::uint32_t token : tokens_) rank_[token] = kNowhere;
    tokens_.clear();
    const float* logits = clean_->logits();
    const auto order = [&](std::uint32_t a, std::uint32_t b) { return clean_->outranks(a, b); };
    const auto cut = [&] {  // keep the likeliest `wanted`
      if (tokens_.size() <= wanted) return;
      std::nth_element(tokens_.begin(), tokens_.begin() + static_cast<std::ptrdiff_t>(wanted) - 1,
                       tokens_.end(), order);
      tokens_.resize(wanted);
    };
    float least = -kInfinity;  // later tokens must exceed it, since they lose ties
    for (std::size_t v = 0; v < rank_.size(); v += kWidth) {
      if (!any(load(logits + v) > least)) continue;
      for (std::size_t token = v; token < std::min(v + kWidth, rank_.size()); ++token)
        if (logits[token] > least) tokens_.push_back(static_cast<std::uint32_t>(token));
      if (tokens_.size() < 4 * wanted) continue;
      cut();
      least = logits[tokens_[wanted - 1]];
    }
    cut();
    std::sort(tokens_.begin(), tokens_.end(), order);
    for (std::size_t i = 0; i < tokens_.size(); ++i)
      rank_[tokens_[i]] = static_cast<std::uint32_t>(i);
    held_.clear();
    double running = 0;
    std::size_t taken = 0;
    for (const float percent : kPercents) {
      while (taken < tokens_.size() && running < static_cast<double>(percent) / 100)
        running += clean_->p()[tokens_[taken++]];
      held_.push_back(running >= static_cast<double>(percent) / 100 ? taken : tokens_.size() + 1);
    }
  }

  // How many of the ranked tokens come first for the lane, in the same order.
  std::size_t agreement(const Distribution& lane) const {
    std::size_t agreeing = 1;
    while (agreeing < tokens_.size() && lane.outranks(tokens_[agreeing - 1], tokens_[agreeing]))
      ++agreeing;
    const float* logits = lane.logits();
    for (std::size_t v = 0; v < rank_.size(); v += kWidth) {
      if (!any(load(logits + v) >= logits[tokens_[agreeing - 1]])) continue;
      for (std::size_t token = v; token < std::min(v + kWidth, rank_.size()); ++token) {
        if (rank_[token] < agreeing) continue;
        while (lane.outranks(token, tokens_[agreeing - 1]))
          if (--agreeing == 0) return 0;
      }
    }
    return agreeing;
  }

  std::vector<std::uint32_t> rank_;    // of each token; kNowhere beyond the candidates
  std::vector<std::uint32_t> tokens_;  // by descending probability
  std::vector<std::size_t> held_;      // for each percent, how many tokens hold it
  const Distribution* clean_ = nullptr;
};

static void output_errors(const Predictions& all, const Errors& errors, int threads) {
  struct Scratch {
    Distribution clean, lane;
    Ranking ranking;
  };
  const auto loss = [&](const Distribution& distribution, std::size_t i) {
    return all.next[i] < 0 ? std::numeric_limits<float>::quiet_NaN()
                           : -distribution.log_p(static_cast<std::size_t>(all.next[i]));
  };
  run(
      all.tokens, threads, all.tokens * (1 + all.lanes) * all.vocabulary * 32,
      [&] { return Scratch{Distribution(all), Distribution(all), Ranking(all.vocabulary)}; },
      [&](Scratch& scratch, std::size_t i) {
        Distribution &clean = scratch.clean, &lane = scratch.lane;
        clean.read(all.logits + i * all.stride);
        scratch.ranking.read(clean);
        const std::size_t top = clean.first_top();
        errors.clean_loss[errors.first + i] = loss(clean, i);
        errors.clean_entropy[errors.first + i] = clean.entropy();
        for (std::size_t k = 0; k < all.lanes; ++k) {
          lane.read(all.logits + ((k + 1) * all.tokens + i) * all.stride);
          const std::size_t at = k * errors.columns + errors.first + i;
          const float *p = clean.p(), *q = lane.p(), *x = clean.logits(), *y = lane.logits();
          const float shift = clean.lse() - lane.lse();
          errors.tv[at] = static_cast<float>(lane.over_blocks([&](std::size_t v) {
            return absolute(load(p + v) - load(q + v));
          }) / 2);
          errors.kl[at] = static_cast<float>(std::max(0.0, lane.over_blocks([&](std::size_t v) {
            return load(p + v) * (load(x + v) - load(y + v) - shift);
          })));
          errors.entropy[at] = lane.entropy();
          errors.loss[at] = loss(lane, i);
          const bool same = lane.first_top() == top;
          errors.top1[at] = same ? 1.0f : 0.0f;
          errors.nucleus[at] = same ? scratch.ranking.shared_nucleus(lane) : 0.0f;
        }
      });
}
