// SPDX-License-Identifier: Apache-2.0
// State of a CUDA device and the macros that turn CUDA's errors into ours.
#ifndef KERNELS_CUDA_CUDA_INT_H
#define KERNELS_CUDA_CUDA_INT_H

#include "kernels/cuda/launch.h"
#include "kernels/kern_int.h"

struct cublasContext;
struct CUevent_st;

// Pinned host memory through which copies go: two halves, so that the host fills
// one while the other is in flight.
typedef struct kern_cuda_staging {
    char *memory; // [2, KERN_CUDA_STAGE]
    int half;     // being filled
    size_t used;  // bytes of it
    struct CUevent_st *done[2];
    bool pending[2]; // done[i] guards copies out of half i
} kern_cuda_staging;

typedef struct kern_cuda {
    kern_cuda_ctx ctx;
    kern_precision precision;
    struct cublasContext *blas;
    void *blas_workspace;
    kern_cuda_staging staging;
} kern_cuda;

static inline kern_cuda *kern_cuda_of(const kern_dev *dev)
{
    return dev->state;
}

// Status of a CUDA runtime call; the message names it and the device.
rt_status kern_cuda_status(const kern_dev *dev, int error, const char *call);
rt_status kern_cuda_blas_status(const kern_dev *dev, int error, const char *call);

#define CUDA_TRY(dev, call) RT_TRY(kern_cuda_status((dev), (int)(call), #call))
#define CUBLAS_TRY(dev, call) RT_TRY(kern_cuda_blas_status((dev), (int)(call), #call))

rt_status kern_cuda_linear(kern_dev *dev, const kern_linear_args *args);
rt_status kern_cuda_upload(kern_dev *dev, const kern_upload_args *args);
rt_status kern_cuda_timer_open(kern_dev *dev, int marks, void **state);
void kern_cuda_timer_close(void *state, int marks);
rt_status kern_cuda_timer_mark(kern_dev *dev, void *state, int mark);
rt_status kern_cuda_timer_read(kern_dev *dev, void *state, int from, int to, double *ms);

// Room for `bytes` <= KERN_CUDA_STAGE in the staging memory, free to be filled now.
rt_status kern_cuda_stage(kern_dev *dev, size_t bytes, void **out);
// Enqueues the copy of staged bytes to device memory.
rt_status kern_cuda_stage_copy(kern_dev *dev, void *dst, const void *staged, size_t bytes);

#endif
