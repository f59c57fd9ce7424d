// SPDX-License-Identifier: Apache-2.0
// Timing of operations on the GPU: a number of calls, over buffers larger together than
// the L2, is recorded once and replayed; medians.
#ifndef TESTS_GPU_BENCH_H
#define TESTS_GPU_BENCH_H

#include "tests/gpu/parity.h"

enum { BENCH_L2_BYTES = 200 << 20, BENCH_SETS = 16 };

// How many sets of buffers of so many bytes are to be rotated over.
int bench_sets(size_t bytes);

// bf16 or f32 random values, u8 in [least, most], integers; on the bf16 device.
kern_buf *bench_random(kern_dtype dtype, size_t count);
kern_buf *bench_bytes(size_t count, int least, int most);
kern_buf *bench_ints(const int32_t *values, size_t count);

// Microseconds of a call; call(ctx, i) enqueues the i-th.
typedef void bench_fn(void *ctx, int i);
double bench_time(bench_fn *call, void *ctx);
// The same, as a table line with the bytes that a call must move.
double bench_line(const char *name, double bytes, bench_fn *call, void *ctx);

// Bytes per second that the card reads from its memory.
double bench_read_ceiling(void);

// Tables: all of them, or those whose name is given.
int bench_run(const char *only);
void bench_attention(void);
void bench_sparse(void);
void bench_dense(void);

#endif
