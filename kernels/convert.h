// SPDX-License-Identifier: Apache-2.0
// Numbers of a checkpoint on their way to a device.
#ifndef KERNELS_CONVERT_H
#define KERNELS_CONVERT_H

#include "kernels/kern.h"

// Converts `n` numbers between f32, bf16 and f16 at any addresses, rounding to nearest, ties
// to even. false: one of them was NaN or infinite; all are converted all the same.
bool kern_convert(const void *src, kern_dtype from, size_t n, void *dst, kern_dtype to);

#endif
