// SPDX-License-Identifier: Apache-2.0
// The CPU device: pool, scratch, buffers in host memory, and the table.
//
// Everything computes and is stored in f32. Operations are done when they return.
// Work is split into items whose results do not depend on each other nor on the
// thread that runs them.
#include "kernels/kern_int.h"
#include "runtime/base/host.h"
#include "runtime/base/mem.h"

#include <string.h>

static void cpu_close(kern_dev *dev)
{
    rt_pool_close(dev->pool);
    rt_free(dev->scratch);
}

static kern_dtype cpu_weight_dtype(const kern_dev *dev, kern_dtype stored)
{
    (void)dev;
    (void)stored;
    return KERN_F32;
}

static kern_dtype cpu_kv_dtype(const kern_dev *dev)
{
    (void)dev;
    return KERN_F32;
}

static kern_dtype cpu_bound_dtype(const kern_dev *dev, int head_dim)
{
    (void)dev;
    (void)head_dim;
    return KERN_F32;
}

static rt_status cpu_alloc(kern_dev *dev, size_t bytes, const char *what, void **out)
{
    (void)dev;
    void *memory = rt_mem_alloc(bytes, 1, what);
    if (!memory)
        return RT_ERR_NOMEM;
    *out = memory;
    return RT_OK;
}

static void cpu_release(kern_dev *dev, void *ptr)
{
    (void)dev;
    rt_free(ptr);
}

static rt_status cpu_write(kern_buf *dst, size_t offset, const void *src, size_t bytes)
{
    memcpy((char *)dst->ptr + offset, src, bytes);
    return RT_OK;
}

static rt_status cpu_read(const kern_buf *src, size_t offset, void *dst, size_t bytes)
{
    memcpy(dst, (const char *)src->ptr + offset, bytes);
    return RT_OK;
}

static rt_status cpu_copy(kern_buf *dst, size_t offset, const kern_buf *src, size_t offset_src,
                          size_t bytes)
{
    memcpy((char *)dst->ptr + offset, (const char *)src->ptr + offset_src, bytes);
    return RT_OK;
}

static rt_status cpu_zero(kern_buf *buf, size_t bytes)
{
    memset(buf->ptr, 0, bytes);
    return RT_OK;
}

static rt_status cpu_room(const kern_dev *dev, size_t *out)
{
    (void)dev;
    *out = rt_host_memory();
    return RT_OK;
}

static rt_status cpu_reserve(kern_dev *dev, size_t bytes)
{
    if (bytes <= dev->used[KERN_USE_WORKSPACE])
        return RT_OK;
    float *scratch = rt_mem_alloc(bytes, 1, "scratch of the CPU device");
    if (!scratch)
        return RT_ERR_NOMEM;
    rt_free(dev->scratch);
    dev->scratch = scratch;
    dev->scratch_floats = bytes / sizeof *scratch / (size_t)dev->threads;
    dev->used[KERN_USE_WORKSPACE] = bytes;
    return RT_OK;
}

static rt_status cpu_sync(kern_dev *dev)
{
    (void)dev;
    return RT_OK;
}

static rt_status cpu_poll(kern_dev *dev, bool *idle)
{
    (void)dev;
    *idle = true;
    return RT_OK;
}

static const kern_ops cpu_ops = {.close = cpu_close,
                                 .weight_dtype = cpu_weight_dtype,
                                 .kv_dtype = cpu_kv_dtype,
                                 .bound_dtype = cpu_bound_dtype,
                                 .alloc = cpu_alloc,
                                 .release = cpu_release,
                                 .alloc_shared = cpu_alloc,
                                 .release_shared = cpu_release,
                                 .write = cpu_write,
                                 .read = cpu_read,
                                 .copy = cpu_copy,
                                 .zero = cpu_zero,
                                 .upload = kern_cpu_upload,
                                 .room = cpu_room,
                                 .reserve = cpu_reserve,
                                 .sync = cpu_sync,
                                 .poll = cpu_poll,
                                 .timer_open = kern_cpu_timer_open,
                                 .timer_close = kern_cpu_timer_close,
                                 .timer_mark = kern_cpu_timer_mark,
                                 .timer_read = kern_cpu_timer_read,
#define CPU_ENTRY(name, args) .name = kern_cpu_##name,
                                 KERN_OPS_MAP(CPU_ENTRY)
#undef CPU_ENTRY
};

const kern_ops *kern_cpu_ops(void)
{
    return &cpu_ops;
}

rt_status kern_cpu_attach(kern_dev *dev, const kern_dev_options *options)
{
    RT_TRY(rt_pool_open(options->threads, &dev->pool));
    const size_t floats = (size_t)options->threads * KERN_CPU_SCRATCH;
    const rt_status status = cpu_reserve(dev, floats * sizeof *dev->scratch);
    if (status != RT_OK)
        rt_pool_close(dev->pool);
    dev->ops = &cpu_ops;
    return status;
}

float *kern_cpu_scratch(kern_dev *dev, int thread, size_t floats)
{
    return floats <= dev->scratch_floats ? dev->scratch + (size_t)thread * dev->scratch_floats
                                         : NULL;
}

rt_status kern_cpu_scratch_check(const kern_dev *dev, const char *op, size_t floats)
{
    if (floats > dev->scratch_floats)
        return RT_FAIL(RT_ERR_LIMIT, "%s: needs %zu floats of scratch, the CPU device has %zu", op,
                       floats, dev->scratch_floats);
    return RT_OK;
}

void kern_cpu_run(kern_dev *dev, size_t items, size_t work, rt_pool_fn *fn, void *ctx)
{
    enum { WORTH_WAKING = 16384 }; // about the 5 us that a sleeping thread takes to join
    if (work >= WORTH_WAKING) {
        rt_pool_run(dev->pool, items, fn, ctx);
        return;
    }
    for (size_t i = 0; i < items; i++)
        fn(ctx, i, 0);
}
