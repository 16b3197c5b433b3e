#pragma once

#include <vector>

#include "backend/backend.h"
#include "engine/requests.h"
#include "mixture/mixture.h"

namespace at_moe {

// W + Σ gate_e s_e B_e A_e of one module under explicit weights, row-major [d_out, d_in]. The backend computes in f32.
std::vector<float> merge(Backend& backend, const Mixture& mixture, const MergeRequest& request);

}  // namespace at_moe
