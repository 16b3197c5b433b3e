#include "engine/queue.h"

namespace at_moe {

void Queue::add(const Shared& sequence) {
  ranked_.insert(sequence);
  arrived_.insert(sequence);
  count(*sequence, 1);
}

void Queue::count(const Sequence& sequence, int64_t sign) {
  if (sequence.started) {
    returning_ += sign;
  } else {
    waiting_ += sign * sequence.texts;
  }
}

void Queue::remove(const Shared& sequence) {
  if (ranked_.erase(sequence) == 0) return;
  arrived_.erase(sequence);
  count(*sequence, -1);
}

void Queue::age() {
  if (arrived_.empty() || passed_over_ < kPatience) return;
  const Shared first = *arrived_.begin();
  if (first->aged) return;
  remove(first);
  first->aged = true;
  add(first);
}

void Queue::take(const Shared& sequence) {
  passed_over_ = sequence == *arrived_.begin() ? 0 : passed_over_ + 1;
  remove(sequence);
}

}  // namespace at_moe
