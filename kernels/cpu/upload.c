// SPDX-License-Identifier: Apache-2.0
// Upload of weights to the CPU device: bf16 and f16 become f32, exactly.
#include "kernels/convert.h"
#include "kernels/kern_int.h"

#include <stdatomic.h>

typedef struct upload {
    const kern_upload_args *args;
    atomic_bool nonfinite;
} upload;

static void upload_row(void *ctx, size_t row, int thread)
{
    (void)thread;
    upload *u = ctx;
    const kern_upload_args *a = u->args;
    const char *src = (const char *)a->src + row * a->stride * kern_dtype_size(a->dtype);
    if (!kern_convert(src, a->dtype, a->cols, kern_f32(a->dst) + a->first + row * a->cols,
                      KERN_F32))
        atomic_store_explicit(&u->nonfinite, true, memory_order_relaxed);
}

rt_status kern_cpu_upload(kern_dev *dev, const kern_upload_args *args)
{
    if (args->dst->dtype != KERN_F32)
        return RT_FAIL(RT_ERR_UNSUPPORTED, "kern_upload: dst is %s, the CPU keeps weights in f32",
                       kern_dtype_name(args->dst->dtype));
    upload u = {.args = args};
    kern_cpu_run(dev, args->rows, args->rows * args->cols, upload_row, &u);
    if (args->nonfinite)
        *args->nonfinite |= u.nonfinite;
    return RT_OK;
}
