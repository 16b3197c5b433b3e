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

const Queue::Shared& Queue::next() {
  if (const Shared first = *arrived_.begin(); passed_over_ >= kPatience && !first->aged) {
    remove(first);
    first->aged = true;
    add(first);
  }
  return *ranked_.begin();
}

void Queue::take(const Shared& sequence) {
  passed_over_ = sequence == *arrived_.begin() ? 0 : passed_over_ + 1;
  remove(sequence);
}

}  // namespace at_moe
