// A sequence that is worked on, and the context that a session keeps between its requests.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <vector>

#include "engine/event.h"
#include "engine/host_pages.h"
#include "engine/requests.h"
#include "engine/residency.h"
#include "grammar/matcher.h"
#include "model/routing.h"

namespace at_moe {

// Rows from `begin` up to the next span share a routing. A replay of the rows uses the same routing again.
struct RoutingSpan {
  int64_t begin = 0;
  std::shared_ptr<SequenceRouting> routing;
  bool traced = false;  // the one record of the span has been sent
  int64_t number = 0;   // of the routing in the prefix cache, 0 = its rows are not shared
  uint64_t stamp = 0;   // version of all weights then
};

struct Context {
  std::vector<int32_t> ids;  // prompt and generated tokens
  int64_t computed = 0;      // ids whose keys are in the pool
  std::vector<int32_t> pages;
  std::vector<RoutingSpan> spans;
  std::shared_ptr<HostPages::Saved> saved;  // keys that gave way to others

  int64_t size() const { return static_cast<int64_t>(ids.size()); }
  size_t span_at(int64_t position) const;  // index
  int64_t span_end(int64_t position) const;
  void truncate(int64_t tokens);
};

struct Sequence {
  enum class Kind { kGenerate, kScore } kind = Kind::kGenerate;
  enum class Place { kNone, kQueue, kBatch, kStalled } place = Place::kNone;
  int64_t id = 0;           // of the sequence, or of the scoring job
  int64_t arrival = 0;      // unlike any other's
  Residency::Hold mixture;  // of the next rows, while it is in the batch
  bool missed = false;      // has waited for its mixture
  int64_t session = -1;
  Scheduling scheduling;
  Context context;
  Usage usage;
  bool started = false;  // has been in the batch
  bool aged = false;     // has waited long enough to go first
  bool in_pass = false;  // a whole prompt is being read
  bool solo = false;     // a shared pass failed: try it alone
  bool done = false;     // told to the caller
  struct End {
    DoneEvent::Reason reason;
    Failure failure;
  };
  std::optional<End> end;  // of a session's sequence that is to end with the pass it is in

  // kGenerate
  int64_t limit = 0;  // tokens of the context at most
  int64_t max_tokens = 0;
  int64_t traced = 0;  // rows before this one have been traced
  bool trace = false, log_probs = false;
  std::vector<int32_t> stop_tokens, banned_tokens;
  SamplingRequest sampling;
  std::optional<Matcher> matcher;                   // holds the text to a grammar
  int64_t texts = 1;                                // of its request: itself and its siblings
  std::vector<std::shared_ptr<Sequence>> siblings;  // go on from the same prompt once it has been read
  std::weak_ptr<Sequence> carrier;                  // whose sibling it is up to then
  std::optional<int64_t> max_unread;
  int64_t unread = 0;

  // kScore
  int64_t first = 0;
  std::vector<float> scores;

  int64_t priority() const { return aged ? std::numeric_limits<int64_t>::max() : scheduling.priority; }
  bool ranks_before(const Sequence& other) const;
  // By somebody, itself or a sibling.
  bool wanted() const;
  bool must_wait() const { return max_unread && unread >= *max_unread; }

  // Of the next rows; null: the base alone.
  const std::shared_ptr<Mixture>& next_mixture() const;
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
