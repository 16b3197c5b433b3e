#include "engine/residency.h"

#include <algorithm>
#include <limits>
#include <set>

#include "core/status.h"

namespace at_moe {

// Made when it is first needed: a base alone has none.
Loader& Residency::loader() {
  if (!loader_) loader_ = std::make_unique<Loader>(device_.beside(), wake_);
  return *loader_;
}

Pass Residency::add(Shared mixture, Shared replaced) {
  std::erase_if(entries_, [](const auto& of) { return of.second.mixture.expired(); });
  Entry& made = entries_[mixture.get()];
  made = {};
  made.mixture = mixture;
  made.line = replaced ? entry(*replaced).line : ++lines_;
  if (limited()) {
    const size_t bytes = mixture->weights_bytes();
    if (bytes > *budget_) fail(Code::kOutOfMemory, "the mixture needs ", bytes, " bytes, adapterBytes is ", *budget_);
    if (replaced) check_room(*mixture);
    const auto ticket = take_ticket(mixture, false);
    loader().post([of = mixture.get()](Backend&, const std::atomic<bool>&) { of->copy_to_memory(); },
                  [ticket](const Failure* failure) {
                    ticket->done = true;
                    if (failure) ticket->failure = *failure;
                  });
    Pass copied = wait(ticket);
    co_await copied;
    if (overdue_ || bytes > free_bytes()) co_return;
  }
  const auto ticket = take_ticket(mixture, true);
  load(mixture);
  Pass done = wait(ticket);
  co_await done;
}

Pass Residency::acquire(Shared mixture, Hold& hold) {
  if (entry(*mixture).state != State::kResident) {
    check_room(*mixture);
    const auto ticket = take_ticket(mixture, true);
    Pass done = wait(ticket);
    co_await done;
  }
  hold = give(mixture);
}

Pass Residency::pin(Shared mixture, Hold& pin) {
  check_room(*mixture);
  ++entry(*mixture).pins;
  const Hold pinned(mixture.get(), [this, mixture](const Mixture*) {
    --entry(*mixture).pins;
    changed_ = true;
  });
  Hold hold;
  Pass held = acquire(mixture, hold);
  co_await held;
  pin = pinned;
}

std::shared_ptr<Residency::Ticket> Residency::take_ticket(const Shared& mixture, bool loads) {
  auto ticket = std::make_shared<Ticket>(Ticket{mixture, loads, false, {}, {}});
  tickets_.push_back(ticket);
  changed_ = true;
  return ticket;
}

Pass Residency::wait(std::shared_ptr<Ticket> ticket) {
  while (!ticket->done) co_await unit_end();
  if (ticket->failure) fail(ticket->failure->code, ticket->failure->message);
}

// A job finds what it waited for: the ticket holds it until then.
void Residency::end_tickets(const Shared& mixture, const Failure* failure) {
  for (const std::weak_ptr<Ticket>& one : tickets_) {
    const auto ticket = one.lock();
    if (!ticket || !ticket->loads || ticket->done || ticket->mixture != mixture) continue;
    ticket->done = true;
    if (failure) ticket->failure = *failure;
    else ticket->hold = give(mixture);
  }
}

size_t Residency::waiting_jobs() const {
  return static_cast<size_t>(std::count_if(tickets_.begin(), tickets_.end(), [](const std::weak_ptr<Ticket>& one) {
    const auto ticket = one.lock();
    return ticket && !ticket->done;
  }));
}

Residency::Hold Residency::give(const Shared& mixture) {
  Entry& of = entry(*mixture);
  ++of.holds;
  return Hold(mixture.get(), [this, mixture](const Mixture*) {
    Entry& held = entry(*mixture);
    --held.holds;
    held.used = ++clock_;
    changed_ = true;
  });
}

bool Residency::ready(const Mixture& mixture) const {
  const Entry& of = entry(mixture);
  return of.state == State::kResident && (!overdue_ || overdue_ == &mixture || stays(of, overdue_line_));
}

Residency::Hold Residency::hold(const Shared& mixture) {
  if (!ready(*mixture)) return nullptr;
  ++given_;
  return give(mixture);
}

// The place of a line is that of its largest version.
size_t Residency::pinned_bytes_beside(int64_t line) const {
  std::map<int64_t, size_t> places;
  for (const auto& [mixture, of] : entries_) {
    if (stays(of, line)) places[of.line] = std::max(places[of.line], mixture->weights_bytes());
  }
  size_t bytes = 0;
  for (const auto& [other, place] : places) bytes += place;
  return bytes;
}

// Whether the mixture has a place beside those that are pinned.
void Residency::check_room(const Mixture& mixture) const {
  if (!limited()) return;
  const size_t bytes = mixture.weights_bytes(), pinned = pinned_bytes_beside(entry(mixture).line);
  if (bytes <= *budget_ - pinned) return;
  fail(Code::kOutOfMemory, "the mixture needs ", bytes, " bytes, adapterBytes is ", *budget_, ", of which ", pinned,
       " are pinned");
}

void Residency::load(const Shared& mixture) {
  Entry& of = entry(*mixture);
  of.state = State::kLoading;
  of.wanted_since.reset();
  held_ += mixture->weights_bytes();
  const auto made = std::make_shared<std::unique_ptr<MixtureWeights>>();
  loader().post([of = mixture.get(), made](Backend& backend,
                                           const std::atomic<bool>& stop) { *made = of->make_weights(backend, stop); },
                [this, mixture, made](const Failure* failure) { loaded(mixture, std::move(*made), failure); });
}

void Residency::loaded(const Shared& mixture, std::unique_ptr<MixtureWeights> weights, const Failure* failure) {
  Entry& of = entry(*mixture);
  std::shared_ptr<MixtureWeights> shared = counted(std::move(weights), mixture->weights_bytes());
  if (failure) {
    of.state = State::kHost;
    of.failure = *failure;
    waiting_ = true;
  } else {
    of.state = State::kResident;
    of.used = ++clock_;
    ++loads_;
    mixture->attach(std::move(shared));
  }
  end_tickets(mixture, failure);
}

// Weights go when nothing that was enqueued reads them any more, on the thread that made them.
std::shared_ptr<MixtureWeights> Residency::counted(std::unique_ptr<MixtureWeights> weights, size_t bytes) {
  return {weights.release(), [this, bytes](MixtureWeights* gone) {
            held_ -= bytes;
            changed_ = true;
            try {
              device_.synchronize();
            } catch (const Error&) {
              // The device is lost, and its memory with it.
            }
            const std::shared_ptr<MixtureWeights> last(gone);
            loader_->post([last](Backend&, const std::atomic<bool>&) {});
          }};
}

void Residency::evict(const Shared& mixture) {
  mixture->detach();
  entry(*mixture).state = State::kHost;
  ++evictions_;
}

std::vector<Residency::Refused> Residency::bring(std::vector<Shared> wanted) {
  std::erase_if(tickets_, [](const std::weak_ptr<Ticket>& one) { return one.expired(); });
  const bool changed = std::exchange(changed_, false);
  if (!limited()) return {};
  for (const std::weak_ptr<Ticket>& one : tickets_) {
    const auto ticket = one.lock();
    if (ticket->loads && !ticket->done) wanted.push_back(ticket->mixture);
  }
  if (wanted.empty() && !waiting_ && !changed) return {};
  std::erase_if(entries_, [](const auto& of) { return of.second.mixture.expired(); });
  want_pinned(wanted);
  waiting_ = !wanted.empty();
  std::vector<Refused> refused = refuse(wanted);
  find_overdue(wanted);
  Order order;
  for (size_t i = 0; i < wanted.size(); ++i) order.emplace(wanted[i].get(), i);
  for (const Shared& one : wanted) {
    if (entry(*one).state != State::kHost) continue;
    if (make_room(*one, order)) {
      load(one);
      if (overdue_ == one.get()) overdue_ = nullptr;
    } else if (overdue_) {
      break;
    }
  }
  return refused;
}

// A pinned mixture that gave way to an earlier version comes back.
void Residency::want_pinned(std::vector<Shared>& wanted) const {
  std::set<int64_t> there;
  for (const auto& [mixture, of] : entries_) {
    if (of.pins > 0 && of.state != State::kHost) there.insert(of.line);
  }
  for (const auto& [mixture, of] : entries_) {
    if (of.pins > 0 && of.state == State::kHost && !there.contains(of.line)) wanted.push_back(of.mixture.lock());
  }
}

// Takes those off the list whose load has failed, and those that have no place beside the pinned ones.
std::vector<Residency::Refused> Residency::refuse(std::vector<Shared>& wanted) {
  std::vector<Refused> refused;
  std::erase_if(wanted, [&](const Shared& one) {
    const Entry& of = entry(*one);
    std::optional<Failure> failure = of.failure;
    if (of.state == State::kHost && !failure) {
      try {
        check_room(*one);
      } catch (const Error& error) {
        failure = Failure{error.code(), error.what()};
      }
    }
    if (!failure) return false;
    end_tickets(one, &*failure);
    refused.push_back({one, std::move(*failure)});
    return true;
  });
  for (auto& [mixture, of] : entries_) of.failure.reset();
  return refused;
}

// The one that has waited for too long comes first.
void Residency::find_overdue(std::vector<Shared>& wanted) {
  Order order;
  for (size_t i = 0; i < wanted.size(); ++i) order.emplace(wanted[i].get(), i);
  overdue_ = nullptr;
  int64_t earliest = given_ - kPatience + 1;
  for (auto& [mixture, of] : entries_) {
    if (of.state != State::kHost || !order.contains(mixture)) {
      of.wanted_since.reset();
      continue;
    }
    if (!of.wanted_since) of.wanted_since = given_;
    if (*of.wanted_since >= earliest) continue;
    earliest = *of.wanted_since;
    overdue_ = mixture;
    overdue_line_ = of.line;
  }
  if (!overdue_) return;
  const auto at = wanted.begin() + static_cast<std::ptrdiff_t>(order.at(overdue_));
  std::rotate(wanted.begin(), at, at + 1);
}

// Evicts what is in nobody's use: first what nobody waits for, unused for longest, then what is wanted last, but nothing
// that is wanted before the mixture; pinned ones of its line at the end. False, and nothing evicted, when that is not
// enough.
bool Residency::make_room(const Mixture& mixture, const Order& order) {
  constexpr size_t kUnwanted = std::numeric_limits<size_t>::max();
  const auto place = [&](const Mixture* one) { return order.contains(one) ? order.at(one) : kUnwanted; };
  const size_t own = place(&mixture), bytes = mixture.weights_bytes();
  const int64_t line = entry(mixture).line;
  std::vector<const Mixture*> victims;
  for (const auto& [one, of] : entries_) {
    if (of.state == State::kResident && of.holds == 0 && !stays(of, line) && place(one) > own) victims.push_back(one);
  }
  const auto pinned = [&](const Mixture* one) { return entry(*one).pins > 0; };
  std::sort(victims.begin(), victims.end(), [&](const Mixture* a, const Mixture* b) {
    if (pinned(a) != pinned(b)) return pinned(b);
    return place(a) != place(b) ? place(a) > place(b) : entry(*a).used < entry(*b).used;
  });
  size_t room = free_bytes(), count = 0;
  while (room < bytes && count < victims.size()) room += victims[count++]->weights_bytes();
  if (room < bytes) return false;
  for (size_t i = 0; i < count; ++i) evict(entry(*victims[i]).mixture.lock());
  return true;
}

void Residency::collect() {
  if (loader_) loader_->collect();
}

void Residency::add_to(EngineStats& stats) const {
  stats.adapter_budget = budget_.value_or(0);
  const MemoryUse use = loader_ ? loader_->memory() : MemoryUse{};
  stats.adapter_bytes = use.held;
  stats.adapter_peak_bytes = use.peak;
  for (const auto& [mixture, of] : entries_) {
    if (of.mixture.expired()) continue;
    stats.adapters_resident += of.state == State::kResident;
    stats.adapters_pinned += of.pins > 0;
  }
  stats.adapter_loads = loads_;
  stats.adapter_evictions = evictions_;
}

}  // namespace at_moe
