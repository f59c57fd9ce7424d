// SPDX-License-Identifier: Apache-2.0
// What the backends share behind kern.h: the device, the buffer and the table of
// operations. Only kernels/ includes this.
//
// kern.c has checked every argument before a table entry is called: shapes,
// types, counts and ranges of host values hold. The contents of device buffers
// (ids, positions, page numbers) are the caller's promise; the CPU backend checks
// those that would make it write outside a buffer.
#ifndef KERNELS_KERN_INT_H
#define KERNELS_KERN_INT_H

#include "kernels/kern.h"
#include "kernels/kern_map.h"
#include "runtime/base/pool.h"

#include <stdint.h>

typedef enum kern_memory {
    KERN_MEMORY_DEVICE,
    KERN_MEMORY_SHARED, // host memory, whatever the device
    KERN_MEMORY_VIEW,   // another buffer's
} kern_memory;

struct kern_buf {
    kern_dev *dev;
    kern_dtype dtype;
    size_t count; // elements
    void *ptr;    // device address; host memory on the CPU
    kern_memory memory;
    kern_use use;
};

struct kern_graph {
    kern_dev *dev;
    void *state; // the backend's
};

struct kern_timer {
    kern_dev *dev;
    int marks;
    void *state; // the backend's
};

typedef struct kern_ops {
    // Device and buffers. `alloc` gives zeroed memory; `write`, `read`, `copy` and
    // `zero` take byte offsets and counts that lie within the buffer.
    void (*close)(kern_dev *dev); // frees what the backend attached to the device
    kern_dtype (*weight_dtype)(const kern_dev *dev, kern_dtype stored);
    kern_dtype (*kv_dtype)(const kern_dev *dev);
    kern_dtype (*bound_dtype)(const kern_dev *dev, int head_dim);
    rt_status (*alloc)(kern_dev *dev, size_t bytes, const char *what, void **out);
    void (*release)(kern_dev *dev, void *ptr);
    rt_status (*alloc_shared)(kern_dev *dev, size_t bytes, const char *what, void **out);
    void (*release_shared)(kern_dev *dev, void *ptr);
    rt_status (*write)(kern_buf *dst, size_t offset, const void *src, size_t bytes);
    rt_status (*read)(const kern_buf *src, size_t offset, void *dst, size_t bytes);
    rt_status (*copy)(kern_buf *dst, size_t offset, const kern_buf *src, size_t offset_src,
                      size_t bytes);
    rt_status (*zero)(kern_buf *buf, size_t bytes);
    rt_status (*upload)(kern_dev *dev, const kern_upload_args *args);
    rt_status (*room)(const kern_dev *dev, size_t *out);
    rt_status (*reserve)(kern_dev *dev, size_t bytes); // of workspace, at least
    rt_status (*sync)(kern_dev *dev);
    rt_status (*poll)(kern_dev *dev, bool *idle);
    // `marks` of a timer, unpassed; `read` waits for both.
    rt_status (*timer_open)(kern_dev *dev, int marks, void **state);
    void (*timer_close)(void *state, int marks);
    rt_status (*timer_mark)(kern_dev *dev, void *state, int mark);
    rt_status (*timer_read)(kern_dev *dev, void *state, int from, int to, double *ms);
#define KERN_OPS_MEMBER(name, args) rt_status (*name)(kern_dev * dev, const args *);
    KERN_OPS_MAP(KERN_OPS_MEMBER)
#undef KERN_OPS_MEMBER
} kern_ops;

// Recording of sequences. `end` with NULL drops the recording.
typedef struct kern_record_ops {
    rt_status (*begin)(kern_dev *dev);
    rt_status (*end)(kern_dev *dev, void **graph);
    rt_status (*launch)(kern_dev *dev, void *graph);
    void (*free)(void *graph);
} kern_record_ops;

struct kern_dev {
    const kern_ops *ops;
    const kern_record_ops *recorder; // NULL: the device does not record
    kern_kind kind;
    int index, threads;
    bool recording;
    bool dry;
    kern_use use;           // of the buffers to come
    size_t used[KERN_USES]; // bytes
    rt_pool *pool;          // CPU threads: they compute, or fill a GPU's staging memory
    float *scratch;         // [threads, scratch_floats] of a CPU device
    size_t scratch_floats;  // KERN_CPU_SCRATCH, or more (kern_reserve_plans)
    void *state;            // of another backend
};

static inline float *kern_f32(kern_buf *buf)
{
    return buf->ptr;
}

static inline const float *kern_cf32(const kern_buf *buf)
{
    return buf->ptr;
}

static inline int32_t *kern_i32(kern_buf *buf)
{
    return buf->ptr;
}

static inline const int32_t *kern_ci32(const kern_buf *buf)
{
    return buf->ptr;
}

// Fills dev->ops of a device that only counts.
rt_status kern_dry_attach(kern_dev *dev, const kern_dev_options *options);

// ---- CPU backend ---------------------------------------------------------------

// Floats of scratch that each thread of a CPU device has at least. An operation that needs
// more than there is refuses with RT_ERR_LIMIT before it writes anything.
enum { KERN_CPU_SCRATCH = 1 << 20 };

// Fills dev->ops, pool and scratch.
rt_status kern_cpu_attach(kern_dev *dev, const kern_dev_options *options);

// The whole table; no entry is NULL.
const kern_ops *kern_cpu_ops(void);

// Scratch of a pool thread, 64-byte aligned; `floats` as checked. Holds whatever its last user
// left.
float *kern_cpu_scratch(kern_dev *dev, int thread, size_t floats);

// RT_ERR_LIMIT, naming the operation, if a thread of `op` needs more than there is.
rt_status kern_cpu_scratch_check(const kern_dev *dev, const char *op, size_t floats);

// Floats of scratch in which a thread scores the pages of a prefix, a multiple of 16.
size_t kern_cpu_score_floats(int head_dim, int max_pages);

// Runs fn(ctx, item, thread) for every item, over the pool if `work` (floats
// touched, all items together) is worth waking it.
void kern_cpu_run(kern_dev *dev, size_t items, size_t work, rt_pool_fn *fn, void *ctx);

#define KERN_CPU_PROTOTYPE(name, args) rt_status kern_cpu_##name(kern_dev *dev, const args *);
KERN_OPS_MAP(KERN_CPU_PROTOTYPE)
#undef KERN_CPU_PROTOTYPE

rt_status kern_cpu_upload(kern_dev *dev, const kern_upload_args *args);
rt_status kern_cpu_timer_open(kern_dev *dev, int marks, void **state);
void kern_cpu_timer_close(void *state, int marks);
rt_status kern_cpu_timer_mark(kern_dev *dev, void *state, int mark);
rt_status kern_cpu_timer_read(kern_dev *dev, void *state, int from, int to, double *ms);

// ---- CUDA backend, in builds with LOSA_CUDA --------------------------------------

// Bytes of a CUDA device's own. The workspace holds partial results of split attention (two a
// worker, of up to 128 lanes), the activations a GEMM reads or the bounds of a page plan, whichever
// runs; for long plans it grows (kern_reserve_plans).
enum {
    KERN_CUDA_WORKSPACE = 192 << 20,
    KERN_CUDA_BLAS_WORKSPACE = 32 << 20,
    KERN_CUDA_STAGE = 4 << 20, // half of the pinned memory through which copies go
};

// Bounds of 8 bits where plan_scan.cu can multiply them.
static inline kern_dtype kern_cuda_bound_dtype(kern_precision precision, int head_dim)
{
    const bool fits = head_dim == 64 || head_dim == 128 || head_dim == 256;
    return fits && precision != KERN_PRECISION_F32 ? KERN_U8 : KERN_F32;
}

rt_status kern_cuda_attach(kern_dev *dev, const kern_dev_options *options);
int kern_cuda_device_count(void);
rt_status kern_cuda_device_id(int index, unsigned char id[KERN_ID_BYTES]);
void *kern_cuda_stream(const kern_dev *dev);

#endif
