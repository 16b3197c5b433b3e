// Inference passes of the decoder. A pass takes the rows of all its sequences as one ragged matrix and runs layer by layer,
// in runs of `chunk` rows; each run of a layer is a unit (pass.h). How rows are cut never changes bits.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "core/pass.h"
#include "model/model.h"
#include "model/routing.h"

namespace at_moe {

// The new rows of one sequence in a pass.
struct SequenceRows {
  std::vector<int32_t> ids;    // new tokens, at least one
  int64_t position = 0;        // of the first one: number of keys already in the pool
  std::vector<int32_t> pages;  // of the pool, enough for position + ids.size() tokens
  SequenceRouting* routing = nullptr;
  std::vector<int32_t>
      labels;                 // scoring: one per new row, the id whose log-probability is wanted, -100 = none; or empty
  std::vector<float> scores;  // out: [ids.size()] log-probabilities of the labels, 0 where there is none
  std::vector<float>* logits = nullptr;  // filled with [ids.size(), V], or null
  RoutingTrace* trace = nullptr;         // filled with the records of the new rows (kFixed and kPool: one row), or null
};

// Activations of passes of at most `rows` rows; one pass at a time.
class Workspace {
 public:
  Workspace(const Model& model, int64_t rows, int64_t sequences, int64_t pages_per_sequence, int64_t chunk);
  ~Workspace();
  struct Buffers;
  Buffers& buffers() const { return *buffers_; }
  int64_t rows() const { return rows_; }
  int64_t chunk() const { return chunk_; }
  size_t bytes() const;
  static size_t bytes(const ModelConfig& config, int64_t rows, int64_t sequences, int64_t chunk);

 private:
  int64_t rows_, chunk_;
  std::unique_ptr<Buffers> buffers_;
};

struct ForwardResult {
  Matrix logits;  // [sequences, V] f32 of each sequence's last row; device, valid until the workspace's next pass
};

// Runs the sequences' new rows; keys and values go to `kv`. `sequences` and `result` must outlive the pass.
Pass forward(const Model& model, Workspace& workspace, KvPool& kv, std::span<SequenceRows> sequences,
             ForwardResult& result);

}  // namespace at_moe
