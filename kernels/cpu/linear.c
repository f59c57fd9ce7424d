// SPDX-License-Identifier: Apache-2.0
// y = x w^T on the CPU.
//
// Rows of x lie in the lanes of vectors (8 or 16 rows), columns of y are taken 6
// at a time, and k runs in blocks of 256 whose sums are added in order. So every
// element of y has one fixed order of additions, whatever the other rows, the
// number of rows, the column slices or the threads. (A BLAS promises none of
// that: OpenBLAS 0.3.21 changes a row's bits with the number of rows.)
//
// x is transposed panel by panel into the scratch of thread 0; w is read in place,
// once per panel. An item is a slice of 48 columns: 48 x 256 weights stay in the L2
// cache while all row tiles pass. Sums of a slice live in the thread's own scratch.
#include "kernels/kern_int.h"

#include <stdbool.h>

typedef float lanes __attribute__((vector_size(32), may_alias));

enum {
    LANES = 8,
    TILE_COLS = 6, // 6 columns x 2 vectors fill the 16 registers of AVX2
    SLICE_COLS = 48,
    BLOCK_K = 256,
    PANEL_ROWS = 512,
    SUM_FLOATS = PANEL_ROWS * SLICE_COLS,
    PACK_FLOATS = KERN_CPU_SCRATCH - SUM_FLOATS,
};

typedef struct linear_job {
    kern_dev *dev;
    const kern_linear_args *args;
    float *packed; // [row tiles, k, tile_rows]
    int tile_rows; // 8 or 16
    int row0, rows;
} linear_job;

static int min_int(int a, int b)
{
    return a < b ? a : b;
}

static inline void add_sums(const lanes *sums, int count, bool first, lanes *out)
{
    for (int i = 0; i < count; i++) {
        if (first)
            out[i] = sums[i];
        else
            out[i] += sums[i];
    }
}

// out[c] (+)= sum over k of x[k] w[c][k], for 16 rows. One variable per
// accumulator: gcc keeps an array of them in memory.
static void tile16(const lanes *x, const float *const w[TILE_COLS], int k, lanes *out, bool first)
{
    const float *w0 = w[0], *w1 = w[1], *w2 = w[2], *w3 = w[3], *w4 = w[4], *w5 = w[5];
    const lanes zero = {0};
    lanes a0 = zero, a1 = zero, b0 = zero, b1 = zero, c0 = zero, c1 = zero;
    lanes d0 = zero, d1 = zero, e0 = zero, e1 = zero, f0 = zero, f1 = zero;
    for (int i = 0; i < k; i++) {
        const lanes u = x[2 * i], v = x[2 * i + 1];
        a0 += u * w0[i], a1 += v * w0[i];
        b0 += u * w1[i], b1 += v * w1[i];
        c0 += u * w2[i], c1 += v * w2[i];
        d0 += u * w3[i], d1 += v * w3[i];
        e0 += u * w4[i], e1 += v * w4[i];
        f0 += u * w5[i], f1 += v * w5[i];
    }
    const lanes sums[2 * TILE_COLS] = {a0, a1, b0, b1, c0, c1, d0, d1, e0, e1, f0, f1};
    add_sums(sums, 2 * TILE_COLS, first, out);
}

static void tile8(const lanes *x, const float *const w[TILE_COLS], int k, lanes *out, bool first)
{
    const float *w0 = w[0], *w1 = w[1], *w2 = w[2], *w3 = w[3], *w4 = w[4], *w5 = w[5];
    const lanes zero = {0};
    lanes a = zero, b = zero, c = zero, d = zero, e = zero, f = zero;
    for (int i = 0; i < k; i++) {
        const lanes u = x[i];
        a += u * w0[i];
        b += u * w1[i];
        c += u * w2[i];
        d += u * w3[i];
        e += u * w4[i];
        f += u * w5[i];
    }
    const lanes sums[TILE_COLS] = {a, b, c, d, e, f};
    add_sums(sums, TILE_COLS, first, out);
}

static void pack_tile(void *ctx, size_t tile, int thread)
{
    (void)thread;
    const linear_job *job = ctx;
    const size_t k = (size_t)job->args->k, height = (size_t)job->tile_rows;
    float *out = job->packed + tile * height * k;
    const size_t row = tile * height, rows = (size_t)job->rows;
    const float *x = kern_cf32(job->args->x) + ((size_t)job->row0 + row) * k;
    const size_t used = rows - row < height ? rows - row : height;
    for (size_t i = 0; i < k; i++) {
        for (size_t r = 0; r < used; r++)
            out[i * height + r] = x[r * k + i];
        for (size_t r = used; r < height; r++)
            out[i * height + r] = 0.0f;
    }
}

// All row tiles against columns [col, col + TILE_COLS) of one block of k. Columns
// from `end` on repeat the last one; nobody reads their sums.
static void multiply_tiles(const linear_job *job, int col, int end, int k0, float *sums)
{
    const size_t k = (size_t)job->args->k;
    const float *w[TILE_COLS];
    for (int c = 0; c < TILE_COLS; c++)
        w[c] = kern_cf32(job->args->w) + (size_t)min_int(col + c, end - 1) * k + (size_t)k0;
    const int depth = min_int(BLOCK_K, job->args->k - k0), height = job->tile_rows;
    for (int row = 0; row < job->rows; row += height) {
        const float *x = job->packed + (size_t)row * k + (size_t)k0 * (size_t)height;
        lanes *out = (lanes *)(sums + row * SLICE_COLS);
        if (height == LANES)
            tile8((const lanes *)x, w, depth, out, k0 == 0);
        else
            tile16((const lanes *)x, w, depth, out, k0 == 0);
    }
}

static void multiply_slice(void *ctx, size_t item, int thread)
{
    const linear_job *job = ctx;
    const kern_linear_args *a = job->args;
    const int col0 = (int)item * SLICE_COLS, end = min_int(col0 + SLICE_COLS, a->n);
    const int height = job->tile_rows;
    float *sums = kern_cpu_scratch(job->dev, thread, KERN_CPU_SCRATCH) + PACK_FLOATS;
    for (int k0 = 0; k0 < a->k; k0 += BLOCK_K) {
        for (int col = col0; col < end; col += TILE_COLS)
            multiply_tiles(job, col, end, k0, sums + (col - col0) * height);
    }
    const float *bias = a->bias ? kern_cf32(a->bias) : NULL;
    for (int r = 0; r < job->rows; r++) {
        float *y = kern_f32(a->y) + (size_t)(job->row0 + r) * (size_t)a->n;
        const float *from = sums + r / height * height * SLICE_COLS + r % height;
        for (int c = col0; c < end; c++)
            y[c] = from[(c - col0) * height] + (bias ? bias[c] : 0.0f);
    }
}

rt_status kern_cpu_linear(kern_dev *dev, const kern_linear_args *args)
{
    const int tile_rows = args->rows <= LANES ? LANES : 2 * LANES;
    const size_t k = (size_t)args->k;
    RT_TRY(kern_cpu_scratch_check(dev, "kern_linear", SUM_FLOATS + k * (size_t)tile_rows));
    const int fit = (int)(PACK_FLOATS / (k * (size_t)tile_rows)) * tile_rows;
    const int panel = min_int(fit, PANEL_ROWS);
    linear_job job = {.dev = dev, .args = args, .tile_rows = tile_rows};
    job.packed = kern_cpu_scratch(dev, 0, PACK_FLOATS);
    const size_t slices = ((size_t)args->n + SLICE_COLS - 1) / SLICE_COLS;
    for (job.row0 = 0; job.row0 < args->rows; job.row0 += job.rows) {
        job.rows = min_int(panel, args->rows - job.row0);
        const size_t tiles = (size_t)(job.rows + tile_rows - 1) / (size_t)tile_rows;
        kern_cpu_run(dev, tiles, (size_t)job.rows * k, pack_tile, &job);
        kern_cpu_run(dev, slices, (size_t)job.rows * k / LANES * (size_t)args->n / LANES,
                     multiply_slice, &job);
    }
    return RT_OK;
}
