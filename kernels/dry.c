// SPDX-License-Identifier: Apache-2.0
// The device that only counts. Its buffers have an address and no memory behind it; their
// bytes are booked by kern.c like any other's. It takes the types and the workspace of the
// kind it stands for.
#include "kernels/kern_int.h"

#include <string.h>

enum { NOWHERE = 64 }; // the address of every buffer; never read

static void dry_close(kern_dev *dev)
{
    (void)dev;
}

static kern_dtype cpu_dtype(const kern_dev *dev, kern_dtype stored)
{
    (void)dev;
    (void)stored;
    return KERN_F32;
}

static kern_dtype cuda_dtype(const kern_dev *dev, kern_dtype stored)
{
    (void)dev;
    return stored;
}

static kern_dtype dry_f32(const kern_dev *dev)
{
    (void)dev;
    return KERN_F32;
}

static kern_dtype dry_bf16(const kern_dev *dev)
{
    (void)dev;
    return KERN_BF16;
}

static kern_dtype cpu_bounds(const kern_dev *dev, int head_dim)
{
    (void)dev;
    (void)head_dim;
    return KERN_F32;
}

static kern_dtype cuda_bounds(const kern_dev *dev, int head_dim)
{
    (void)dev;
    return kern_cuda_bound_dtype(KERN_PRECISION_AUTO, head_dim);
}

static rt_status dry_alloc(kern_dev *dev, size_t bytes, const char *what, void **out)
{
    (void)dev;
    (void)bytes;
    (void)what;
    *out = (void *)(uintptr_t)NOWHERE;
    return RT_OK;
}

static void dry_release(kern_dev *dev, void *ptr)
{
    (void)dev;
    (void)ptr;
}

static rt_status dry_write(kern_buf *dst, size_t offset, const void *src, size_t bytes)
{
    (void)dst;
    (void)offset;
    (void)src;
    (void)bytes;
    return RT_OK;
}

static rt_status dry_read(const kern_buf *src, size_t offset, void *dst, size_t bytes)
{
    (void)src;
    (void)offset;
    memset(dst, 0, bytes);
    return RT_OK;
}

static rt_status dry_copy(kern_buf *dst, size_t offset, const kern_buf *src, size_t offset_src,
                          size_t bytes)
{
    (void)dst;
    (void)offset;
    (void)src;
    (void)offset_src;
    (void)bytes;
    return RT_OK;
}

static rt_status dry_zero(kern_buf *buf, size_t bytes)
{
    (void)buf;
    (void)bytes;
    return RT_OK;
}

static rt_status dry_upload(kern_dev *dev, const kern_upload_args *args)
{
    (void)dev;
    (void)args;
    return RT_OK;
}

static rt_status dry_room(const kern_dev *dev, size_t *out)
{
    (void)dev;
    *out = SIZE_MAX;
    return RT_OK;
}

static rt_status dry_reserve(kern_dev *dev, size_t bytes)
{
    const size_t all = bytes + (dev->kind == KERN_CUDA ? KERN_CUDA_BLAS_WORKSPACE : 0);
    if (dev->used[KERN_USE_WORKSPACE] < all)
        dev->used[KERN_USE_WORKSPACE] = all;
    return RT_OK;
}

static rt_status dry_sync(kern_dev *dev)
{
    (void)dev;
    return RT_OK;
}

static rt_status dry_poll(kern_dev *dev, bool *idle)
{
    (void)dev;
    *idle = true;
    return RT_OK;
}

#define DRY_OP(name, args)                                                                         \
    static rt_status dry_##name(kern_dev *dev, const args *a)                                      \
    {                                                                                              \
        (void)dev;                                                                                 \
        (void)a;                                                                                   \
        return RT_OK;                                                                              \
    }
KERN_OPS_MAP(DRY_OP)
#undef DRY_OP

#define DRY_ENTRY(name, args) .name = dry_##name,
#define DRY_OPS(weights, pages, bounds)                                                            \
    {                                                                                              \
        .close = dry_close, .weight_dtype = weights, .kv_dtype = pages, .bound_dtype = bounds,     \
        .alloc = dry_alloc, .release = dry_release, .alloc_shared = dry_alloc,                     \
        .release_shared = dry_release, .write = dry_write, .read = dry_read, .copy = dry_copy,     \
        .zero = dry_zero, .upload = dry_upload, .room = dry_room, .reserve = dry_reserve,          \
        .sync = dry_sync, .poll = dry_poll, .timer_open = kern_cpu_timer_open,                     \
        .timer_close = kern_cpu_timer_close, .timer_mark = kern_cpu_timer_mark,                    \
        .timer_read = kern_cpu_timer_read, KERN_OPS_MAP(DRY_ENTRY)                                 \
    }

static const kern_ops in_f32 = DRY_OPS(cpu_dtype, dry_f32, cpu_bounds);
static const kern_ops as_stored = DRY_OPS(cuda_dtype, dry_bf16, cuda_bounds);

rt_status kern_dry_attach(kern_dev *dev, const kern_dev_options *options)
{
    const bool cuda = options->kind == KERN_CUDA;
    const bool f32 = !cuda || options->precision == KERN_PRECISION_F32;
    dev->ops = f32 ? &in_f32 : &as_stored;
    const size_t scratch = (size_t)options->threads * KERN_CPU_SCRATCH * sizeof(float);
    const size_t cuda_own = (size_t)KERN_CUDA_WORKSPACE + KERN_CUDA_BLAS_WORKSPACE;
    dev->used[KERN_USE_WORKSPACE] = cuda ? cuda_own : scratch;
    dev->used[KERN_USE_HOST] = cuda ? 2 * (size_t)KERN_CUDA_STAGE : 0;
    return RT_OK;
}
