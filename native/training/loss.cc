// The loss of a micro-batch: rows with a label or a divergence are gathered, normed and scored in runs, so that the logits
// of all rows never exist at once; their gradient is scattered into d_hidden.
#include <algorithm>
#include <cmath>

#include "training/step.h"

namespace at_moe {

namespace {

constexpr int64_t kLogitBytes = 32 << 20;  // of one run of logits

}  // namespace

void TrainingStep::select_rows() {
  const double kl_rows = batch_.step_kl_rows;
  for (int64_t row = 0; row < rows_; ++row) {
    const size_t at = static_cast<size_t>(row);
    const bool labelled = batch_.labels[at] >= 0;
    const float weight = labelled ? (batch_.loss_weights.empty() ? 1.0f : batch_.loss_weights[at]) : 0.0f;
    const bool divergence = state_.options.base_kl > 0 && !batch_.kl_mask.empty() && batch_.kl_mask[at];
    if (weight == 0 && !divergence) continue;
    loss_rows_.push_back(static_cast<int32_t>(row));
    labels_.push_back(weight != 0 ? batch_.labels[at] : -100);
    loss_weight_.push_back(static_cast<float>(weight / std::max(batch_.step_loss_weight, 1e-30)));
    kl_weight_.push_back(divergence ? static_cast<float>(1.0 / std::max(kl_rows, 1.0)) : 0.0f);
  }
  const int64_t count = std::max<int64_t>(static_cast<int64_t>(loss_rows_.size()), 1);
  const int64_t fit = kLogitBytes / (config_.vocab_size * static_cast<int64_t>(sizeof(float)));
  head_run_ = std::min(std::clamp<int64_t>(fit, 16, kTrainingRun), count);
  auto floats = [&](int64_t values) { return backend_.allocate(static_cast<size_t>(values) * sizeof(float)); };
  loss_index_ = floats(count);
  loss_labels_ = floats(count);
  loss_weights_ = floats(count);
  kl_weights_ = floats(count);
  loss_values_ = floats(count);
  kl_values_ = floats(count);
  selected_ = floats(count * config_.hidden_size);
  normed_ =
      backend_.allocate(static_cast<size_t>(head_run_ * config_.hidden_size) * size_of(backend_.activation_type()));
  logits_ = floats(head_run_ * config_.vocab_size);
  std::vector<float> factors = loss_weight_, kl_factors;
  for (float weight : kl_weight_) kl_factors.push_back(weight * state_.options.base_kl);
  if (backward_) {
    double largest = 0;
    for (const auto* list : {&factors, &kl_factors}) {
      for (const float factor : *list) largest = std::max<double>(largest, std::fabs(factor));
    }
    loss_scale_ = state_.scale_losses(largest > 0 ? largest : 1.0 / std::max(batch_.step_tokens, 1.0));
    for (auto* list : {&factors, &kl_factors}) {
      for (float& factor : *list) factor *= loss_scale_;
    }
  }
  backend_.upload(loss_index_.as<void>(), loss_rows_.data(), loss_rows_.size() * sizeof(int32_t));
  backend_.upload(loss_labels_.as<void>(), labels_.data(), labels_.size() * sizeof(int32_t));
  backend_.upload(loss_weights_.as<void>(), factors.data(), factors.size() * sizeof(float));
  backend_.upload(kl_weights_.as<void>(), kl_factors.data(), kl_factors.size() * sizeof(float));
  if (state_.options.base_kl > 0) {
    base_selected_ = floats(count * config_.hidden_size);
    base_logits_ = floats(head_run_ * config_.vocab_size);
  }
}

// Keeps the base's last hidden states of the selected rows: its logits are made beside the model's, run by run.
Pass TrainingStep::base_reference() {
  const int64_t count = static_cast<int64_t>(loss_rows_.size());
  const Matrix hidden = matrix(base_selected_.as<void>(), count, config_.hidden_size);
  const Matrix last = tape_.input(config_.num_layers, 0, rows_);
  backend_.forward(EmbeddingForward{last.data, last.dtype, loss_index_.as<int32_t>(), hidden});
  co_await unit_end();
}

Matrix TrainingStep::head_rows(const Matrix& hidden, const Matrix& normed, const Matrix& logits) const {
  backend_.forward(RmsNormForward{hidden, normed, model_.final_norm(), config_.hidden_size, config_.rms_norm_eps});
  const LinearModule head{&model_.head(), nullptr, logits};
  LinearForward product;
  product.x = normed;
  product.modules = std::span(&head, 1);
  backend_.forward(product);
  return logits;
}

Pass TrainingStep::losses() {
  const int64_t count = static_cast<int64_t>(loss_rows_.size());
  const Matrix last = tape_.input(config_.num_layers, 0, rows_);
  const Matrix selected = matrix(selected_.as<void>(), count, config_.hidden_size);
  backend_.forward(EmbeddingForward{last.data, last.dtype, loss_index_.as<int32_t>(), selected});
  for (int64_t first = 0; first < count; first += head_run_) {
    loss_run(static_cast<size_t>(first), static_cast<size_t>(std::min(head_run_, count - first)));
    co_await unit_end();
  }
  std::vector<float> loss(loss_rows_.size()), divergence(loss_rows_.size());
  backend_.download(loss.data(), loss_values_.as<void>(), loss.size() * sizeof(float));
  if (base_logits_) backend_.download(divergence.data(), kl_values_.as<void>(), divergence.size() * sizeof(float));
  for (size_t i = 0; i < loss.size(); ++i) {
    if (!std::isfinite(loss[i]) || !std::isfinite(divergence[i])) note_bad_row(loss_rows_[i]);
    result_.loss += static_cast<double>(loss_weight_[i]) * loss[i];
    result_.kl += static_cast<double>(kl_weight_[i]) * divergence[i];
  }
  result_.auxiliary += state_.options.base_kl * result_.kl;
  if (!backward_) co_return;
  // selected_ now holds the gradient of the selected rows.
  backend_.zero(tape_.d_hidden.data, static_cast<size_t>(rows_ * config_.hidden_size) * sizeof(float));
  backend_.backward(EmbeddingBackward{loss_index_.as<int32_t>(), selected, tape_.d_hidden});
}

void TrainingStep::loss_run(size_t first, size_t count) {
  const int64_t begin = static_cast<int64_t>(first), rows = static_cast<int64_t>(count);
  const Matrix hidden = matrix(selected_.as<void>(), begin + rows, config_.hidden_size).row_range(begin, rows);
  const Matrix normed = matrix(normed_.as<void>(), rows, config_.hidden_size, backend_.activation_type());
  CrossEntropy loss;
  if (base_logits_) {
    const Matrix base = matrix(base_selected_.as<void>(), begin + rows, config_.hidden_size).row_range(begin, rows);
    loss.base_logits = head_rows(base, normed, matrix(base_logits_.as<void>(), rows, config_.vocab_size));
    loss.kl_weight = kl_weights_.as<float>() + first;
    loss.kl = kl_values_.as<float>() + first;
  }
  loss.logits = head_rows(hidden, normed, matrix(logits_.as<void>(), rows, config_.vocab_size));
  loss.labels = loss_labels_.as<int32_t>() + first;
  loss.weight = backward_ ? loss_weights_.as<float>() + first : nullptr;
  loss.loss = loss_values_.as<float>() + first;
  backend_.forward(loss);
  if (!backward_) return;
  const LinearModule head{&model_.head(), nullptr, loss.logits};
  const LinearGradients gradient{state_.offsets ? state_.base_gradient(state_.offsets->head) : nullptr, nullptr};
  LinearBackward product;
  product.x = normed;
  product.modules = std::span(&head, 1);
  product.gradients = std::span(&gradient, 1);
  const Matrix d_normed = tape_.d_z.row_range(0, rows);
  product.dx = d_normed;
  backend_.backward(product);
  RmsNormBackward norm;
  norm.x = hidden;
  norm.dy = d_normed;
  norm.dx = hidden;
  norm.gamma = model_.final_norm();
  norm.dgamma = state_.offsets ? state_.base_gradient(state_.offsets->final_norm) : nullptr;
  norm.dim = config_.hidden_size;
  norm.eps = config_.rms_norm_eps;
  backend_.backward(norm);
}

void TrainingStep::note_bad_row(int32_t row) {
  if (result_.bad_sequence >= 0) return;
  for (size_t i = 0; i < sequences_.size(); ++i) {
    if (row >= sequences_[i].begin && row < sequences_[i].end) result_.bad_sequence = static_cast<int64_t>(i);
  }
}

}  // namespace at_moe
