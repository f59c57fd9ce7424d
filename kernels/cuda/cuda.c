// SPDX-License-Identifier: Apache-2.0
// The CUDA device: stream, workspace, staging, buffers, and the table.
//
// Calls enqueue on one stream; kern_read and kern_sync wait for it. Host memory goes
// through pinned staging: kern_write has consumed its source when it returns, and
// waits only when both halves of the staging memory are in flight. A pointer of
// kern_buf_ptr is device memory. The calling thread's current CUDA device is set at
// open; one thread drives a device.
#include "kernels/cuda/cuda_int.h"
#include "runtime/base/mem.h"

#include <cublas_v2.h>
#include <cuda_runtime_api.h>
#include <string.h>

rt_status kern_cuda_status(const kern_dev *dev, int error, const char *call)
{
    if (error == cudaSuccess)
        return RT_OK;
    if (error == KERN_CUDA_NO_ROOM)
        return RT_FAIL(RT_ERR_LIMIT, "CUDA device %d: %s: needs more than %zu bytes of workspace",
                       dev->index, call, kern_cuda_of(dev)->ctx.workspace_bytes);
    if (error == KERN_CUDA_TOO_LARGE)
        return RT_FAIL(RT_ERR_LIMIT, "CUDA device %d: %s: more than its kernels take", dev->index,
                       call);
    const rt_status code = error == cudaErrorMemoryAllocation ? RT_ERR_NOMEM : RT_ERR_DEVICE;
    return RT_FAIL(code, "CUDA device %d: %s: %s", dev->index, call,
                   cudaGetErrorString((cudaError_t)error));
}

rt_status kern_cuda_blas_status(const kern_dev *dev, int error, const char *call)
{
    if (error == CUBLAS_STATUS_SUCCESS)
        return RT_OK;
    return RT_FAIL(RT_ERR_DEVICE, "CUDA device %d: %s: %s", dev->index, call,
                   cublasGetStatusString((cublasStatus_t)error));
}

int kern_cuda_device_count(void)
{
    int count = 0;
    if (cudaGetDeviceCount(&count) == cudaSuccess)
        return count;
    (void)cudaGetLastError(); // no driver, no device: not an error here
    return 0;
}

rt_status kern_cuda_device_id(int index, unsigned char id[KERN_ID_BYTES])
{
    struct cudaDeviceProp properties;
    const cudaError_t error = cudaGetDeviceProperties(&properties, index);
    if (error != cudaSuccess)
        return RT_FAIL(RT_ERR_DEVICE, "CUDA device %d: cudaGetDeviceProperties: %s", index,
                       cudaGetErrorString(error));
    memcpy(id, properties.uuid.bytes, KERN_ID_BYTES);
    return RT_OK;
}

// ---- staging ---------------------------------------------------------------------

rt_status kern_cuda_stage(kern_dev *dev, size_t bytes, void **out)
{
    kern_cuda_staging *s = &kern_cuda_of(dev)->staging;
    bytes = (bytes + 255) / 256 * 256;
    if (s->used + bytes > KERN_CUDA_STAGE) {
        CUDA_TRY(dev, cudaEventRecord(s->done[s->half], kern_cuda_of(dev)->ctx.stream));
        s->pending[s->half] = true;
        s->half ^= 1;
        s->used = 0;
        if (s->pending[s->half])
            CUDA_TRY(dev, cudaEventSynchronize(s->done[s->half]));
        s->pending[s->half] = false;
    }
    *out = s->memory + (size_t)s->half * KERN_CUDA_STAGE + s->used;
    s->used += bytes;
    return RT_OK;
}

rt_status kern_cuda_stage_copy(kern_dev *dev, void *dst, const void *staged, size_t bytes)
{
    CUDA_TRY(dev, cudaMemcpyAsync(dst, staged, bytes, cudaMemcpyHostToDevice,
                                  kern_cuda_of(dev)->ctx.stream));
    return RT_OK;
}

static rt_status open_staging(kern_dev *dev)
{
    kern_cuda_staging *s = &kern_cuda_of(dev)->staging;
    CUDA_TRY(dev, cudaMallocHost((void **)&s->memory, 2 * (size_t)KERN_CUDA_STAGE));
    for (int i = 0; i < 2; i++)
        CUDA_TRY(dev, cudaEventCreateWithFlags(&s->done[i], cudaEventDisableTiming));
    return RT_OK;
}

// ---- the table --------------------------------------------------------------------

static void cuda_close(kern_dev *dev)
{
    kern_cuda *cuda = kern_cuda_of(dev);
    if (cuda->ctx.stream)
        cudaStreamSynchronize(cuda->ctx.stream);
    if (cuda->blas)
        cublasDestroy(cuda->blas);
    for (int i = 0; i < 2; i++)
        if (cuda->staging.done[i])
            cudaEventDestroy(cuda->staging.done[i]);
    cudaFreeHost(cuda->staging.memory);
    cudaFree(cuda->blas_workspace);
    cudaFree(cuda->ctx.workspace);
    cudaFree(cuda->ctx.arrivals);
    if (cuda->ctx.stream)
        cudaStreamDestroy(cuda->ctx.stream);
    rt_pool_close(dev->pool);
    rt_free(cuda);
}

static kern_dtype cuda_weight_dtype(const kern_dev *dev, kern_dtype stored)
{
    return kern_cuda_of(dev)->precision == KERN_PRECISION_F32 ? KERN_F32 : stored;
}

static kern_dtype cuda_kv_dtype(const kern_dev *dev)
{
    return kern_cuda_of(dev)->precision == KERN_PRECISION_F32 ? KERN_F32 : KERN_BF16;
}

static kern_dtype cuda_bound_dtype(const kern_dev *dev, int head_dim)
{
    return kern_cuda_bound_dtype(kern_cuda_of(dev)->precision, head_dim);
}

static rt_status cuda_alloc(kern_dev *dev, size_t bytes, const char *what, void **out)
{
    void *memory = NULL;
    const cudaError_t error = cudaMalloc(&memory, bytes ? bytes : 1);
    if (error != cudaSuccess) {
        (void)cudaGetLastError();
        size_t left = 0, total = 0;
        cudaMemGetInfo(&left, &total);
        return RT_FAIL(error == cudaErrorMemoryAllocation ? RT_ERR_NOMEM : RT_ERR_DEVICE,
                       "CUDA device %d: %s: %zu bytes, of which %zu are free: %s", dev->index, what,
                       bytes, left, cudaGetErrorString(error));
    }
    const rt_status status = kern_cuda_status(
        dev, cudaMemsetAsync(memory, 0, bytes, kern_cuda_of(dev)->ctx.stream), "cudaMemsetAsync");
    if (status != RT_OK) {
        cudaFree(memory);
        return status;
    }
    *out = memory;
    return RT_OK;
}

static void cuda_release(kern_dev *dev, void *ptr)
{
    (void)dev;
    cudaFree(ptr); // waits for the device
}

static rt_status cuda_alloc_shared(kern_dev *dev, size_t bytes, const char *what, void **out)
{
    bytes = bytes ? bytes : 1;
    if (cudaHostAlloc(out, bytes, cudaHostAllocMapped) != cudaSuccess) {
        (void)cudaGetLastError();
        return RT_FAIL(RT_ERR_NOMEM, "CUDA device %d: %s: no %zu bytes of pinned memory",
                       dev->index, what, bytes);
    }
    memset(*out, 0, bytes);
    return RT_OK;
}

static void cuda_release_shared(kern_dev *dev, void *ptr)
{
    (void)dev;
    cudaFreeHost(ptr); // waits for the device
}

static rt_status cuda_write(kern_buf *dst, size_t offset, const void *src, size_t bytes)
{
    for (size_t done = 0; done < bytes;) {
        const size_t n = bytes - done < KERN_CUDA_STAGE ? bytes - done : KERN_CUDA_STAGE;
        void *staged;
        RT_TRY(kern_cuda_stage(dst->dev, n, &staged));
        memcpy(staged, (const char *)src + done, n);
        RT_TRY(kern_cuda_stage_copy(dst->dev, (char *)dst->ptr + offset + done, staged, n));
        done += n;
    }
    return RT_OK;
}

static rt_status cuda_read(const kern_buf *src, size_t offset, void *dst, size_t bytes)
{
    struct CUstream_st *stream = kern_cuda_of(src->dev)->ctx.stream;
    for (size_t done = 0; done < bytes;) {
        const size_t n = bytes - done < KERN_CUDA_STAGE ? bytes - done : KERN_CUDA_STAGE;
        void *staged;
        RT_TRY(kern_cuda_stage(src->dev, n, &staged));
        CUDA_TRY(src->dev, cudaMemcpyAsync(staged, (const char *)src->ptr + offset + done, n,
                                           cudaMemcpyDeviceToHost, stream));
        CUDA_TRY(src->dev, cudaStreamSynchronize(stream));
        memcpy((char *)dst + done, staged, n);
        done += n;
    }
    return RT_OK;
}

static rt_status cuda_copy(kern_buf *dst, size_t offset, const kern_buf *src, size_t offset_src,
                           size_t bytes)
{
    CUDA_TRY(dst->dev,
             cudaMemcpyAsync((char *)dst->ptr + offset, (const char *)src->ptr + offset_src, bytes,
                             cudaMemcpyDefault, kern_cuda_of(dst->dev)->ctx.stream));
    return RT_OK;
}

static rt_status cuda_zero(kern_buf *buf, size_t bytes)
{
    CUDA_TRY(buf->dev, cudaMemsetAsync(buf->ptr, 0, bytes, kern_cuda_of(buf->dev)->ctx.stream));
    return RT_OK;
}

void *kern_cuda_stream(const kern_dev *dev)
{
    return kern_cuda_of(dev)->ctx.stream;
}

static rt_status cuda_room(const kern_dev *dev, size_t *out)
{
    size_t total;
    CUDA_TRY(dev, cudaMemGetInfo(out, &total));
    return RT_OK;
}

static rt_status cuda_reserve(kern_dev *dev, size_t bytes)
{
    kern_cuda_ctx *ctx = &kern_cuda_of(dev)->ctx;
    if (bytes <= ctx->workspace_bytes)
        return RT_OK;
    CUDA_TRY(dev, cudaStreamSynchronize(ctx->stream));
    CUDA_TRY(dev, cudaFree(ctx->workspace));
    ctx->workspace = NULL;
    dev->used[KERN_USE_WORKSPACE] -= ctx->workspace_bytes;
    ctx->workspace_bytes = 0;
    RT_TRY(cuda_alloc(dev, bytes, "workspace", &ctx->workspace));
    ctx->workspace_bytes = bytes;
    dev->used[KERN_USE_WORKSPACE] += bytes;
    return RT_OK;
}

static rt_status cuda_sync(kern_dev *dev)
{
    CUDA_TRY(dev, cudaStreamSynchronize(kern_cuda_of(dev)->ctx.stream));
    return RT_OK;
}

static rt_status cuda_poll(kern_dev *dev, bool *idle)
{
    const cudaError_t state = cudaStreamQuery(kern_cuda_of(dev)->ctx.stream);
    *idle = state == cudaSuccess;
    return state == cudaErrorNotReady ? RT_OK : kern_cuda_status(dev, state, "cudaStreamQuery");
}

// ---- graphs -----------------------------------------------------------------------

// Relaxed: NCCL captures from threads of its own.
static rt_status cuda_record_begin(kern_dev *dev)
{
    CUDA_TRY(dev,
             cudaStreamBeginCapture(kern_cuda_of(dev)->ctx.stream, cudaStreamCaptureModeRelaxed));
    return RT_OK;
}

static rt_status cuda_record_end(kern_dev *dev, void **out)
{
    cudaGraph_t graph = NULL;
    CUDA_TRY(dev, cudaStreamEndCapture(kern_cuda_of(dev)->ctx.stream, &graph));
    cudaGraphExec_t ready = NULL;
    const cudaError_t error = out ? cudaGraphInstantiate(&ready, graph, 0) : cudaSuccess;
    cudaGraphDestroy(graph);
    CUDA_TRY(dev, error);
    if (out)
        *out = ready;
    return RT_OK;
}

static rt_status cuda_graph_launch(kern_dev *dev, void *graph)
{
    CUDA_TRY(dev, cudaGraphLaunch(graph, kern_cuda_of(dev)->ctx.stream));
    return RT_OK;
}

static void cuda_graph_free(void *graph)
{
    cudaGraphExecDestroy(graph);
}

static const kern_record_ops cuda_recorder = {
    .begin = cuda_record_begin,
    .end = cuda_record_end,
    .launch = cuda_graph_launch,
    .free = cuda_graph_free,
};

// ---- what the kernels take -------------------------------------------------------------

static rt_status check_dim(const char *op, int head_dim)
{
    if (head_dim > KERN_CUDA_MAX_DIM)
        return RT_FAIL(RT_ERR_UNSUPPORTED, "%s: head_dim is %d, the CUDA kernels take up to %d", op,
                       head_dim, KERN_CUDA_MAX_DIM);
    return RT_OK;
}

// What an operation's kernels cannot do, beyond kern.c's checks.
static rt_status check_nothing(const void *args)
{
    (void)args;
    return RT_OK;
}

static rt_status check_attn(const kern_attn_args *args)
{
    return check_dim("kern_attn", args->kv.head_dim);
}

static rt_status check_query(const char *op, const kern_page_score_args *args)
{
    RT_TRY(check_dim(op, args->kv.head_dim));
    if (args->kv.kstep && args->stride % 4)
        return RT_FAIL(RT_ERR_UNSUPPORTED,
                       "%s: stride is %d, with bounds of 8 bits it must be a multiple of 4", op,
                       args->stride);
    return RT_OK;
}

static rt_status check_page_score(const kern_page_score_args *args)
{
    return check_query("kern_page_score", args);
}

static rt_status check_page_plan(const kern_page_plan_args *args)
{
    return check_query("kern_page_plan", &args->score);
}

#define CHECK_OF(args, a)                                                                          \
    _Generic((a), const kern_attn_args *                                                           \
             : check_attn, const kern_page_score_args *                                            \
             : check_page_score, const kern_page_plan_args *                                       \
             : check_page_plan, default                                                            \
             : check_nothing)(a)

#define CUDA_OP(name, args)                                                                        \
    static rt_status cuda_##name(kern_dev *dev, const args *a)                                     \
    {                                                                                              \
        RT_TRY(CHECK_OF(args, a));                                                                 \
        const int error = kern_cuda_launch_##name(&kern_cuda_of(dev)->ctx, a);                     \
        return kern_cuda_status(dev, error, "kern_" #name);                                        \
    }
KERN_KERNELS_MAP(CUDA_OP)
#undef CUDA_OP

static const kern_ops cuda_ops = {.close = cuda_close,
                                  .weight_dtype = cuda_weight_dtype,
                                  .kv_dtype = cuda_kv_dtype,
                                  .bound_dtype = cuda_bound_dtype,
                                  .alloc = cuda_alloc,
                                  .release = cuda_release,
                                  .alloc_shared = cuda_alloc_shared,
                                  .release_shared = cuda_release_shared,
                                  .write = cuda_write,
                                  .read = cuda_read,
                                  .copy = cuda_copy,
                                  .zero = cuda_zero,
                                  .upload = kern_cuda_upload,
                                  .room = cuda_room,
                                  .reserve = cuda_reserve,
                                  .sync = cuda_sync,
                                  .poll = cuda_poll,
                                  .timer_open = kern_cuda_timer_open,
                                  .timer_close = kern_cuda_timer_close,
                                  .timer_mark = kern_cuda_timer_mark,
                                  .timer_read = kern_cuda_timer_read,
                                  .linear = kern_cuda_linear,
#define CUDA_ENTRY(name, args) .name = cuda_##name,
                                  KERN_KERNELS_MAP(CUDA_ENTRY)
#undef CUDA_ENTRY
};

// ---- opening ------------------------------------------------------------------------

static rt_status open_blas(kern_dev *dev)
{
    kern_cuda *cuda = kern_cuda_of(dev);
    CUDA_TRY(dev, cudaMalloc(&cuda->blas_workspace, KERN_CUDA_BLAS_WORKSPACE));
    CUBLAS_TRY(dev, cublasCreate(&cuda->blas));
    CUBLAS_TRY(dev, cublasSetStream(cuda->blas, cuda->ctx.stream));
    CUBLAS_TRY(dev, cublasSetWorkspace(cuda->blas, cuda->blas_workspace, KERN_CUDA_BLAS_WORKSPACE));
    return RT_OK;
}

static rt_status open_all(kern_dev *dev)
{
    const int count = kern_cuda_device_count();
    if (dev->index >= count)
        return RT_FAIL(RT_ERR_DEVICE, "CUDA device %d: this machine has %d", dev->index, count);
    kern_cuda_ctx *ctx = &kern_cuda_of(dev)->ctx;
    CUDA_TRY(dev, cudaSetDevice(dev->index));
    CUDA_TRY(dev, cudaDeviceGetAttribute(&ctx->sms, cudaDevAttrMultiProcessorCount, dev->index));
    int shared;
    CUDA_TRY(dev, cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerMultiprocessor,
                                         dev->index));
    ctx->shared = (size_t)shared;
    CUDA_TRY(dev, cudaStreamCreateWithFlags(&ctx->stream, cudaStreamNonBlocking));
    CUDA_TRY(dev, cudaMalloc(&ctx->workspace, KERN_CUDA_WORKSPACE));
    ctx->workspace_bytes = KERN_CUDA_WORKSPACE;
    const size_t arrivals = KERN_CUDA_ARRIVALS * sizeof *ctx->arrivals;
    CUDA_TRY(dev, cudaMalloc((void **)&ctx->arrivals, arrivals));
    CUDA_TRY(dev, cudaMemsetAsync(ctx->arrivals, 0, arrivals, ctx->stream));
    CUDA_TRY(dev, kern_cuda_launch_probe(ctx));
    RT_TRY(open_staging(dev));
    RT_TRY(open_blas(dev));
    dev->used[KERN_USE_WORKSPACE] = (size_t)KERN_CUDA_WORKSPACE + KERN_CUDA_BLAS_WORKSPACE;
    dev->used[KERN_USE_HOST] = 2 * (size_t)KERN_CUDA_STAGE;
    return RT_OK;
}

rt_status kern_cuda_attach(kern_dev *dev, const kern_dev_options *options)
{
    kern_cuda *cuda;
    RT_TRY(RT_ALLOC(cuda, 1, "CUDA device"));
    cuda->precision = options->precision;
    dev->state = cuda;
    dev->ops = &cuda_ops;
    dev->recorder = &cuda_recorder;
    rt_status status = rt_pool_open(options->threads, &dev->pool);
    if (status == RT_OK)
        status = open_all(dev);
    if (status != RT_OK)
        cuda_close(dev);
    return status;
}
