// The contexts that sessions keep between their requests.
#pragma once

#include <map>

#include "engine/kv_pages.h"
#include "engine/sequence.h"

namespace at_moe {

class Contexts {
 public:
  explicit Contexts(KvPages& pages) : pages_(pages) {}

  // The context a request of the session would go on from; fails with kBusy while another request has it.
  const Context* find(int64_t session) const;
  Context take(int64_t session);
  void put_back(int64_t session, Context context);
  void release(int64_t session);
  // Of those that hold pages and have no request, the one unused for longest; null when there is none.
  Context* oldest_idle();

 private:
  struct Entry {
    Context context;
    bool busy = false, released = false;
    int64_t used = 0;
  };
  KvPages& pages_;
  std::map<int64_t, Entry> entries_;
  int64_t clock_ = 0;
};

}  // namespace at_moe
