// SPDX-License-Identifier: Apache-2.0
// NaN and infinity in stored weights: one such number makes every answer NaN.
#ifndef RUNTIME_MODEL_FINITE_H
#define RUNTIME_MODEL_FINITE_H

#include "parallel/plan.h"
#include "runtime/io/safetensors.h"

// Looks at a part of a stored matrix, or of a vector (`col` is then [0, 1)). A number
// that is not finite is RT_ERR_FORMAT, naming file, tensor and place.
rt_status rt_finite_check(const rt_tensor *t, par_range row, par_range col);

#endif
