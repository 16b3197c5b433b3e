#include <algorithm>

#include "addon/ops_call.h"
#include "addon/read_grammar.h"
#include "core/rng.h"
#include "core/status.h"
#include "grammar/matcher.h"

namespace at_moe {

namespace {

std::shared_ptr<Constraint> constraint_of(OpCall& call) {
  const std::shared_ptr<Vocabulary> vocabulary = read_vocabulary(Fields(call.args().Get("vocabulary"), "vocabulary"));
  vocabulary->prepare().run();
  return std::make_shared<Constraint>(read_grammar(Fields(call.args().Get("grammar"), "grammar")),
                                      std::make_shared<SetTokensCache>(vocabulary));
}

bool has(const uint32_t* set, size_t token) { return (set[token / 32] >> (token % 32) & 1) != 0; }

// vocabulary, grammar, tokens -> complete, finished; sets: the allowed tokens before each token and after the last, as
// words one after the other (none when finished)
void grammar_sets(OpCall& call) {
  const std::shared_ptr<Constraint> constraint = constraint_of(call);
  Matcher matcher(constraint);
  const size_t words = (constraint->masks.vocabulary().size() + 31) / 32;
  std::vector<uint32_t> sets;
  auto append = [&] {
    if (matcher.finished()) return;
    const uint32_t* set = matcher.allowed({});
    sets.insert(sets.end(), set, set + words);
  };
  for (int32_t token : OpCall::values<int32_t>(call.args(), "tokens")) {
    append();
    matcher.accept(token);
  }
  append();
  Napi::Uint32Array result = Napi::Uint32Array::New(call.env(), sets.size());
  std::ranges::copy(sets, result.Data());
  call.result().Set("sets", result);
  call.result().Set("complete", matcher.complete());
  call.result().Set("finished", matcher.finished());
}

// One walk behind `before`: tokens drawn with `weights` among those allowed until the text is finished, or until it is complete and
// `weights` of the stop token, the last one, draws it.
std::vector<int32_t> walk(const std::shared_ptr<Constraint>& constraint, const std::vector<int32_t>& before,
                          const std::vector<float>& weights, uint64_t seed, size_t most, bool& ended) {
  Matcher matcher(constraint);
  for (int32_t token : before) matcher.accept(token);
  const auto stop = static_cast<int32_t>(weights.size() - 1);
  std::vector<int32_t> tokens;
  ended = matcher.finished();
  while (!ended && tokens.size() < most) {
    const uint32_t* set = matcher.allowed({stop});
    double total = 0;
    for (size_t i = 0; i < weights.size(); ++i) total += has(set, i) ? weights[i] : 0;
    double left = uniform(philox(seed, 0, tokens.size())[0]) * total;
    int32_t drawn = -1;
    for (size_t i = 0; i < weights.size() && left >= 0; ++i) {
      if (!has(set, i)) continue;
      drawn = static_cast<int32_t>(i);
      left -= weights[i];
    }
    if (drawn == stop) {
      ended = true;
    } else {
      matcher.accept(drawn);
      tokens.push_back(drawn);
      ended = matcher.finished();
    }
  }
  return tokens;
}

// vocabulary, grammar, tokens, weights [vocabulary], seed, walks, maxTokens -> what follows `tokens` in all walks, lengths,
// ended
void grammar_walks(OpCall& call) {
  const std::shared_ptr<Constraint> constraint = constraint_of(call);
  const std::vector<float> weights = OpCall::values<float>(call.args(), "weights");
  require(weights.size() == constraint->masks.vocabulary().size(), "grammarWalks: a weight for each token");
  const std::vector<int32_t> before = OpCall::values<int32_t>(call.args(), "tokens");
  std::vector<int32_t> all, lengths;
  std::vector<uint8_t> ends;
  for (int64_t i = 0; i < call.integer("walks"); ++i) {
    bool ended = false;
    const auto seed = static_cast<uint64_t>(call.integer("seed") + i);
    const auto tokens = walk(constraint, before, weights, seed, static_cast<size_t>(call.integer("maxTokens")), ended);
    all.insert(all.end(), tokens.begin(), tokens.end());
    lengths.push_back(static_cast<int32_t>(tokens.size()));
    ends.push_back(ended);
  }
  auto give = [&](const char* name, const auto& values, auto array) {
    std::ranges::copy(values, array.Data());
    call.result().Set(name, array);
  };
  give("tokens", all, Napi::Int32Array::New(call.env(), all.size()));
  give("lengths", lengths, Napi::Int32Array::New(call.env(), lengths.size()));
  give("ended", ends, Napi::Uint8Array::New(call.env(), ends.size()));
}

}  // namespace

std::vector<OpEntry> grammar_ops() { return {{"grammarSets", grammar_sets}, {"grammarWalks", grammar_walks}}; }

}  // namespace at_moe
