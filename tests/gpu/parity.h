// SPDX-License-Identifier: Apache-2.0
// Parity of the CUDA backend with the CPU's, operation by operation, in one process:
// the same inputs on both, outputs poisoned, lists and tokens equal, floats near.
//
// Tolerances. f32: both sides round every operation once and differ in the order of
// additions and by an ulp or two of exp and log, so a few hundred roundings of 6e-8.
// bf16: inputs are exact in bf16 wherever the device stores them so, and then only
// what a kernel rounds on its way (queries, softmax weights) counts: 2^-9 each.
#ifndef TESTS_GPU_PARITY_H
#define TESTS_GPU_PARITY_H

#include "tests/kern/attn_case.h"

enum { PT_F32, PT_BF16, PT_MODES };

extern kern_dev *pt_cpu;
extern kern_dev *pt_gpu[PT_MODES]; // by precision
extern const char *const pt_mode_name[PT_MODES];
extern bool pt_quick; // fewer cases, for compute-sanitizer
static const double pt_tolerance = 2e-5;
static const double pt_narrow = 1e-2;

// The nearest bf16; NaN stays.
float pt_bf16(float x);
void pt_round(float *x, size_t count); // to bf16, in place

// Fails with `what` unless |gpu - cpu| <= tolerance * max(floor, |cpu|) everywhere.
void pt_near(const char *what, const float *cpu, const float *gpu, size_t count, double floor,
             double tolerance);
void pt_same(const char *what, const int32_t *cpu, const int32_t *gpu, size_t count);

// A weight [rows, cols] of values exact in `stored`, as the device keeps it.
kern_buf *pt_weight(kern_dev *dev, kern_dtype stored, const float *values, size_t rows,
                    size_t cols);

// What a buffer of floats of any type holds, as f32.
float *pt_take(const kern_buf *buf, size_t count);

// Tests of a file, run by the one program.
void pt_test_buffers(void **state);
void pt_test_dense(void **state);
void pt_test_linear(void **state);
void pt_test_peers(void **state);
void pt_test_kv_write(void **state);
void pt_test_locality(void **state);
void pt_test_active(void **state);
void pt_test_page_score(void **state);
void pt_test_page_select(void **state);
void pt_test_page_plan(void **state);
void pt_test_page_mass(void **state);
void pt_test_keys(void **state);
void pt_test_plan_count(void **state);
void pt_test_attn(void **state);
void pt_test_attn_sides(void **state);
void pt_test_attn_shares(void **state);
void pt_test_page_lse(void **state);
void pt_test_vocab(void **state);
void pt_test_unmask(void **state);
void pt_test_graph(void **state);
void pt_test_timer(void **state);

// Random cases for plans and attention, with active rows and page lists.
ac_case *pt_case(kt_rng *rng, ac_shape shape, int steps, bool dense_segment);
void pt_random_plan(kt_rng *rng, ac_case *c);

#endif
