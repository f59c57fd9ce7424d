// SPDX-License-Identifier: Apache-2.0
// Strict reader of safetensors checkpoints: `model.safetensors`, or the shards
// that `model.safetensors.index.json` names. Files are memory-mapped; a rank that
// reads a slice touches only the pages of that slice.
#ifndef RUNTIME_IO_SAFETENSORS_H
#define RUNTIME_IO_SAFETENSORS_H

#include "kernels/kern.h"
#include "runtime/base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { RT_TENSOR_MAX_DIMS = 4 };

typedef struct rt_tensor {
    const char *name; // borrowed from the checkpoint
    const char *file; // path, for messages
    kern_dtype dtype; // F32, BF16 or F16; of others rt_checkpoint_at tells the name
    size_t dims;
    int64_t shape[RT_TENSOR_MAX_DIMS]; // the first ones, if there are more
    size_t elements;
    const void *data; // mapped, little endian, dense row-major; at any address
    size_t bytes;
} rt_tensor;

typedef struct rt_checkpoint rt_checkpoint;

// Opens a folder. Checked: header length against file size (and 100 MB), JSON, shape,
// offsets (in order, no overlap, no gap, inside the file, and as long as dtype and shape
// say), duplicate names, and that the
// index and the shards agree; a tensor that several shards hold is the one of the shard that the
// index names. Shard names that leave the folder are refused. Tensors of
// other dtypes than F32, BF16 and F16, the format's or not, and of any number of dimensions
// are allowed in the file and refused when asked for.
rt_status rt_checkpoint_open(const char *model_dir, rt_checkpoint **out);
void rt_checkpoint_close(rt_checkpoint *ckpt);

size_t rt_checkpoint_count(const rt_checkpoint *ckpt);
size_t rt_checkpoint_bytes(const rt_checkpoint *ckpt);
bool rt_checkpoint_has(const rt_checkpoint *ckpt, const char *name);
// The i-th tensor, in name order (for listing). `dtype_name` gets the file's spelling.
void rt_checkpoint_at(const rt_checkpoint *ckpt, size_t i, rt_tensor *out, const char **dtype_name);

// Finds a tensor and checks its shape: `cols` 0 asks for a vector [rows]. A missing
// tensor or another shape is RT_ERR_FORMAT, naming tensor, file and both shapes.
rt_status rt_checkpoint_find(const rt_checkpoint *ckpt, const char *name, int64_t rows,
                             int64_t cols, rt_tensor *out);

#endif
