// The buffers behind Workspace (decoder.h).
#pragma once

#include "model/decoder.h"

namespace at_moe {

struct Workspace::Buffers {
  Buffers(const Model& model, int64_t rows, int64_t sequences, int64_t pages_per_sequence, int64_t chunk);
  // Grows the parts that depend on the mixtures of a pass.
  void fit(int64_t columns, int64_t width, int64_t scores);
  size_t bytes() const;

  Backend& backend;
  int64_t rows, sequences, pages_per_sequence, chunk;
  DType type;
  Buffer hidden;                           // [rows, d] f32
  Buffer z, q, k, v, attention, gate, up;  // [chunk, ·]
  Buffer q_in, k_in;                       // [chunk, ·] f32; empty where q and k are
  Buffer gated;                            // [chunk, columns] f32
  Buffer records;                          // [chunk, width] f32
  Buffer scores;                           // [rows, router scores] f32
  Buffer ids, position, sequence, pages;   // of the rows
  Buffer last, last_rows, normed, logits;  // [sequences, ·]; last: rows of hidden
  Buffer score_labels, score_losses;       // [chunk]
  int64_t columns = 0, width = 0, score_columns = 0;
};

}  // namespace at_moe
