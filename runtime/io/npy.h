// SPDX-License-Identifier: Apache-2.0
// NumPy .npy files (format 1.0, little endian, C order): matrices of logits on
// their way out, fixtures of the tests on their way in.
#ifndef RUNTIME_IO_NPY_H
#define RUNTIME_IO_NPY_H

#include "runtime/base/status.h"

#include <stddef.h>
#include <stdint.h>

enum { RT_NPY_MAX_DIMS = 4 };

// Writes a float32 matrix [rows, cols] row by row. Every write error is reported,
// a full disk at the latest by rt_npy_finish. Until then the rows are in "PATH.tmp", and
// what PATH was stays; its header says 0 rows, so that a reader refuses what an interrupted
// run left. What is no regular file is written in its place.
typedef struct rt_npy_writer rt_npy_writer;

rt_status rt_npy_create(const char *path, size_t cols, rt_npy_writer **out);
rt_status rt_npy_append(rt_npy_writer *writer, const float *rows, size_t count);
// Completes the header and closes. `writer` is gone, also on failure.
rt_status rt_npy_finish(rt_npy_writer *writer);
// Closes without completing and removes what was written; for error paths. NULL is allowed.
void rt_npy_abandon(rt_npy_writer *writer);

typedef enum rt_npy_type { RT_NPY_F32, RT_NPY_I32 } rt_npy_type;

typedef struct rt_npy {
    rt_npy_type type;
    int dims;
    size_t shape[RT_NPY_MAX_DIMS];
    size_t count; // product of the shape
    union {
        float *f32;
        int32_t *i32;
    };
} rt_npy;

// Reads a whole file as numpy.save writes it: '<f4' or '<i4', C order, at most
// RT_NPY_MAX_DIMS dimensions, neither shorter nor longer than the header says.
// Free with rt_npy_free (safe on a zero struct).
rt_status rt_npy_read(const char *path, rt_npy *out);
void rt_npy_free(rt_npy *array);

#endif
