// Which mixtures are on the device. With a budget, those beyond it stay in host memory: what is asked for is loaded beside
// the steps (engine/loader.h), into the place of what has been unused for longest. A mixture that is held by a sequence in
// the batch, by a job or by a pin stays. One that waits for room is overtaken kPatience times at most: then nothing that
// could give way to it is held anew until its load has begun. A mixture and those made to replace it are one line: a pin
// stands against other lines only, so that requests in flight go on with what was replaced.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "core/pass.h"
#include "engine/event.h"
#include "engine/loader.h"
#include "mixture/mixture.h"

namespace at_moe {

class Residency {
 public:
  using Shared = std::shared_ptr<Mixture>;
  // Keeps a mixture where it is while any copy of the handle lives.
  using Hold = std::shared_ptr<const Mixture>;
  struct Refused {
    Shared mixture;
    Failure failure;
  };

  static constexpr int64_t kPatience = 15;

  // Without a budget all mixtures stay. All handles and mixtures must be gone before this is.
  Residency(Backend& device, std::optional<size_t> budget, std::function<void()> wake)
      : device_(device), budget_(budget), wake_(std::move(wake)) {}

  // Bodies of jobs, which fail with kOutOfMemory when the mixture has no place beside what is pinned. `add` loads a new
  // mixture if there is room for it, else checks its values; it asks for a place only for one that replaces another.
  // The others wait until it is on the device.
  Pass add(Shared mixture, Shared replaced);
  Pass acquire(Shared mixture, Hold& hold);
  Pass pin(Shared mixture, Hold& pin);
  // Those that can do nothing before a load has ended.
  size_t waiting_jobs() const;
  // Since the last `bring`: something was asked for or let go.
  bool changed() const { return limited() && changed_; }

  bool limited() const { return budget_.has_value(); }
  bool ready(const Mixture& mixture) const;  // can be held now
  Hold hold(const Shared& mixture);          // null when it is not ready
  // Loads what there is room for, the first ones first. Returns those that cannot be loaded.
  std::vector<Refused> bring(std::vector<Shared> wanted);
  // Takes over what the loader has done.
  void collect();

  void add_to(EngineStats& stats) const;

 private:
  enum class State { kHost, kLoading, kResident };
  struct Entry {
    std::weak_ptr<Mixture> mixture;
    State state = State::kHost;
    int64_t line = 0;
    int64_t holds = 0, pins = 0;
    uint64_t used = 0;                    // time of the last use
    std::optional<int64_t> wanted_since;  // `given_` then
    std::optional<Failure> failure;       // of the last load, until it is told
  };
  struct Ticket {  // of a job that waits
    Shared mixture;
    bool loads = true;
    bool done = false;
    Hold hold;
    std::optional<Failure> failure;
  };
  using Order = std::map<const Mixture*, size_t>;  // places in the list of what is wanted

  Entry& entry(const Mixture& mixture) { return entries_.at(&mixture); }
  const Entry& entry(const Mixture& mixture) const { return entries_.at(&mixture); }
  Loader& loader();
  std::shared_ptr<Ticket> take_ticket(const Shared& mixture, bool loads);
  static Pass wait(std::shared_ptr<Ticket> ticket);
  void end_tickets(const Shared& mixture, const Failure* failure);
  Hold give(const Shared& mixture);
  // Whatever the line wants.
  static bool stays(const Entry& of, int64_t line) { return of.pins > 0 && of.line != line; }
  size_t pinned_bytes_beside(int64_t line) const;
  void check_room(const Mixture& mixture) const;
  size_t free_bytes() const { return *budget_ - held_; }

  void load(const Shared& mixture);
  void loaded(const Shared& mixture, std::unique_ptr<MixtureWeights> weights, const Failure* failure);
  std::shared_ptr<MixtureWeights> counted(std::unique_ptr<MixtureWeights> weights, size_t bytes);
  void evict(const Shared& mixture);
  void want_pinned(std::vector<Shared>& wanted) const;
  std::vector<Refused> refuse(std::vector<Shared>& wanted);
  void find_overdue(std::vector<Shared>& wanted);
  bool make_room(const Mixture& mixture, const Order& order);

  Backend& device_;
  std::optional<size_t> budget_;
  std::function<void()> wake_;
  std::unique_ptr<Loader> loader_;
  std::map<const Mixture*, Entry> entries_;
  std::vector<std::weak_ptr<Ticket>> tickets_;
  bool waiting_ = false;  // somebody wanted something at the last look, or a load has failed since
  bool changed_ = false;
  const Mixture* overdue_ = nullptr;
  int64_t overdue_line_ = 0;
  int64_t lines_ = 0;
  size_t held_ = 0;  // bytes on the device, or on their way to it
  uint64_t clock_ = 0;
  int64_t given_ = 0;  // handles, to sequences
  int64_t loads_ = 0, evictions_ = 0;
};

}  // namespace at_moe
