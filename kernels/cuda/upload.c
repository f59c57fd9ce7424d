// SPDX-License-Identifier: Apache-2.0
// Upload of weights to a CUDA device: rows are gathered and converted by the host's threads,
// into pinned memory, while earlier pieces are on their way.
#include "kernels/convert.h"
#include "kernels/cuda/cuda_int.h"

#include <stdatomic.h>

enum { PART = 128 << 10 }; // bytes that a thread takes at a time

// A piece of an upload, which fits into the staging memory.
typedef struct piece {
    const kern_upload_args *args;
    size_t first, count; // elements of the dense [rows, cols] matrix
    char *staged;
    atomic_bool nonfinite;
} piece;

static size_t part_elements(const kern_upload_args *args)
{
    return PART / kern_dtype_size(args->dst->dtype);
}

static void gather_part(void *ctx, size_t part, int thread)
{
    (void)thread;
    piece *p = ctx;
    const kern_upload_args *args = p->args;
    const size_t read = kern_dtype_size(args->dtype), write = kern_dtype_size(args->dst->dtype);
    const size_t most = part_elements(args), skip = part * most;
    size_t first = p->first + skip, left = p->count - skip < most ? p->count - skip : most;
    char *dst = p->staged + skip * write;
    while (left > 0) {
        const size_t row = first / args->cols, col = first % args->cols;
        const size_t n = args->cols - col < left ? args->cols - col : left;
        const char *src = (const char *)args->src + (row * args->stride + col) * read;
        if (!kern_convert(src, args->dtype, n, dst, args->dst->dtype))
            atomic_store_explicit(&p->nonfinite, true, memory_order_relaxed);
        dst += n * write;
        first += n;
        left -= n;
    }
}

rt_status kern_cuda_upload(kern_dev *dev, const kern_upload_args *args)
{
    const kern_dtype dtype = args->dst->dtype;
    if (dtype != KERN_F32 && dtype != KERN_BF16 && dtype != KERN_F16)
        return RT_FAIL(RT_ERR_UNSUPPORTED, "kern_upload: dst is %s, want f32, bf16 or f16",
                       kern_dtype_name(dtype));
    const size_t size = kern_dtype_size(dtype), most = KERN_CUDA_STAGE / size;
    const size_t total = args->rows * args->cols, part = part_elements(args);
    piece p = {.args = args};
    for (; p.first < total; p.first += p.count) {
        p.count = total - p.first < most ? total - p.first : most;
        void *staged;
        RT_TRY(kern_cuda_stage(dev, p.count * size, &staged));
        p.staged = staged;
        rt_pool_run(dev->pool, (p.count + part - 1) / part, gather_part, &p);
        char *dst = (char *)args->dst->ptr + (args->first + p.first) * size;
        RT_TRY(kern_cuda_stage_copy(dev, dst, staged, p.count * size));
    }
    if (args->nonfinite)
        *args->nonfinite |= p.nonfinite;
    return RT_OK;
}
