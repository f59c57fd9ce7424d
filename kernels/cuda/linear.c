// SPDX-License-Identifier: Apache-2.0
// Linear layers through cuBLAS. Weights are used as stored: for bf16 and f16 the
// activations have that type or are rounded to it first, products accumulate in f32 on
// the tensor cores, and y is f32 or of that type. With f32 weights everything is f32,
// without TF32.
#include "kernels/cuda/cuda_int.h"

#include <cublas_v2.h>

static cudaDataType blas_type(kern_dtype dtype)
{
    return dtype == KERN_BF16 ? CUDA_R_16BF : dtype == KERN_F16 ? CUDA_R_16F : CUDA_R_32F;
}

// Rows [row, row + rows) of y = x w^T (+ y); x begins with these rows. Row-major matrices
// are cuBLAS's transposed.
static rt_status gemm(kern_dev *dev, const kern_linear_args *args, const void *x, size_t row,
                      size_t rows)
{
    const float one = 1.0f, add = args->bias ? 1.0f : 0.0f;
    const cudaDataType type = blas_type(args->w->dtype), type_y = blas_type(args->y->dtype);
    char *y = (char *)args->y->ptr + row * (size_t)args->n * kern_dtype_size(args->y->dtype);
    CUBLAS_TRY(dev,
               cublasGemmEx(kern_cuda_of(dev)->blas, CUBLAS_OP_T, CUBLAS_OP_N, args->n, (int)rows,
                            args->k, &one, args->w->ptr, type, args->k, x, type, args->k, &add, y,
                            type_y, args->n, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
    return RT_OK;
}

rt_status kern_cuda_linear(kern_dev *dev, const kern_linear_args *args)
{
    const kern_cuda_ctx *ctx = &kern_cuda_of(dev)->ctx;
    const kern_dtype dtype = args->w->dtype;
    const size_t all = (size_t)args->rows, k = (size_t)args->k;
    if (args->bias)
        CUDA_TRY(dev, kern_cuda_launch_bias(ctx, kern_cf32(args->bias), args->rows, args->n,
                                            kern_f32(args->y)));
    if (args->x->dtype == dtype)
        return gemm(dev, args, args->x->ptr, 0, all);
    // As many rows at a time as the workspace holds.
    const size_t fit = ctx->workspace_bytes / (k * kern_dtype_size(dtype));
    if (fit == 0)
        return RT_FAIL(RT_ERR_LIMIT, "kern_linear: k is %d, a row exceeds the workspace", args->k);
    for (size_t row = 0; row < all; row += fit) {
        const size_t rows = all - row < fit ? all - row : fit;
        const float *x = kern_cf32(args->x) + row * k;
        CUDA_TRY(dev, kern_cuda_launch_narrow(ctx, x, rows * k, dtype, ctx->workspace));
        RT_TRY(gemm(dev, args, ctx->workspace, row, rows));
    }
    return RT_OK;
}
