// A sequence that is worked on, and the context that a session keeps between its requests.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "engine/event.h"
#include "engine/requests.h"
#include "grammar/matcher.h"
#include "model/routing.h"

namespace at_moe {

// Rows from `begin` up to the next span share a routing. A replay of the rows uses the same routing again.
struct RoutingSpan {
  int64_t begin = 0;
  std::shared_ptr<SequenceRouting> routing;
  bool traced = false;  // the one record of the span has been sent
};

struct Context {
  std::vector<int32_t> ids;  // prompt and generated tokens
  int64_t computed = 0;      // ids whose keys are in the pool
  std::vector<int32_t> pages;
  std::vector<RoutingSpan> spans;

  int64_t size() const { return static_cast<int64_t>(ids.size()); }
  size_t span_at(int64_t position) const;  // index
  int64_t span_end(int64_t position) const;
  void truncate(int64_t tokens);
};

struct Sequence {
  enum class Kind { kGenerate, kScore } kind = Kind::kGenerate;
  int64_t id = 0;  // of the sequence, or of the scoring job
  int64_t session = -1;
  Context context;
  Usage usage;
  int64_t order = 0;  // of admission; the latest gives way
  bool admitted = false;
  bool solo = false;       // a shared pass failed: try it alone
  bool cancelled = false;  // while in a pass that others share
  bool done = false;       // told to the caller

  // kGenerate
  int64_t limit = 0;  // tokens of the context at most
  int64_t max_tokens = 0;
  int64_t traced = 0;  // rows before this one have been traced
  bool trace = false, log_probs = false;
  std::vector<int32_t> stop_tokens, banned_tokens;
  SamplingRequest sampling;
  std::unique_ptr<Matcher> matcher;  // holds the text to a grammar

  // kScore
  int64_t first = 0;
  std::vector<float> scores;

  // The rows of the next pass: [computed, end).
  struct Next {
    int64_t end = 0;
    bool whole = false;  // must not be cut
  };
  Next next_rows() const;
  // Rows that need keys: all ids to go on generating, all but the last to score.
  int64_t rows_wanted() const { return context.size() - (kind == Kind::kScore ? 1 : 0); }
  std::vector<int32_t> labels(int64_t begin, int64_t end) const;
  bool stops_at(int32_t token) const;
};

}  // namespace at_moe
