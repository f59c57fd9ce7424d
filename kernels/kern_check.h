// SPDX-License-Identifier: Apache-2.0
// Argument checks of the operations. Every message names the operation and the
// field. Shapes multiply without overflow: a product too large for memory is
// larger than any buffer.
#ifndef KERNELS_KERN_CHECK_H
#define KERNELS_KERN_CHECK_H

#include "kernels/kern_int.h"

// Operation and device against which fields are checked.
typedef struct kern_check {
    const char *op;
    const kern_dev *dev;
} kern_check;

// low <= value <= high.
rt_status kern_check_int(const kern_check *check, const char *field, int value, int low, int high);

// `buf` exists on this device, has this type and holds a [dims...] array.
rt_status kern_check_buf(const kern_check *check, const char *field, const kern_buf *buf,
                         kern_dtype dtype, int rank, const size_t dims[]);

// The same for a weight: any type that the device keeps.
rt_status kern_check_weight(const kern_check *check, const char *field, const kern_buf *buf,
                            size_t rows, size_t cols);

// Which buffers of a batch an operation reads; the others may be NULL, and all of
// them where the batch is empty.
enum {
    KERN_NEED_POS = 1,
    KERN_NEED_ROW_STATE = 2,
    KERN_NEED_ROW_SEG = 4,
    KERN_NEED_SEG_ROW0 = 8,
    KERN_NEED_SEG_KIND = 16,
    KERN_NEED_PAGE_TABLE = 32,
    KERN_NEED_KV_SLOT = 64,
    KERN_NEED_CACHE_SLOT = 128,
    KERN_NEED_SEG_SLOT = 256,
    KERN_NEED_SEG_MASS = 512,
};
rt_status kern_check_batch(const kern_check *check, const kern_batch *batch, unsigned need);
rt_status kern_check_plan(const kern_check *check, const kern_batch *batch, const kern_plan *plan);

// The plan has one list, or one for each KV head.
rt_status kern_check_lists(const kern_check *check, const kern_plan *plan, int kv_heads);

// K and V, or the metadata, of one layer; the batch was checked before.
rt_status kern_check_kv(const kern_check *check, const kern_kv *kv, const kern_batch *batch);
rt_status kern_check_kv_meta(const kern_check *check, const kern_kv *kv);

// Head counts that fit each other; queries [rows, stride] of `heads` heads.
rt_status kern_check_heads(const kern_check *check, int heads, int kv_heads, int head_dim);
rt_status kern_check_query(const kern_check *check, const kern_buf *q, int rows, int stride,
                           int heads, const kern_kv *kv);

// The arguments of a norm with at least a row.
rt_status kern_check_rmsnorm(const kern_check *check, const kern_rmsnorm_args *args);

#define KERN_TRY_ENTRY(dev, args)                                                                  \
    do {                                                                                           \
        RT_CHECK_ARG(dev);                                                                         \
        RT_CHECK_ARG(args);                                                                        \
    } while (0)

// Shapes are written in place: KERN_TRY_BUF(&check, args, x, KERN_F32, rows, cols).
#define KERN_TRY_BUF(check, args, field, dtype, ...)                                               \
    RT_TRY(kern_check_buf((check), #field, (args)->field, (dtype),                                 \
                          (int)(sizeof((size_t[]){__VA_ARGS__}) / sizeof(size_t)),                 \
                          (const size_t[]){__VA_ARGS__}))
#define KERN_TRY_INT(check, args, field, low, high)                                                \
    RT_TRY(kern_check_int((check), #field, (args)->field, (low), (high)))

#endif
