// SPDX-License-Identifier: Apache-2.0
// Devices and buffers: checks, then the backend's table.
#include "kernels/kern_int.h"
#include "runtime/base/mem.h"

#include <string.h>

size_t kern_dtype_size(kern_dtype dtype)
{
    switch (dtype) {
    case KERN_F32:
    case KERN_I32:
        return 4;
    case KERN_BF16:
    case KERN_F16:
        return 2;
    case KERN_I64:
        return 8;
    case KERN_U8:
        return 1;
    }
    return 0;
}

const char *kern_dtype_name(kern_dtype dtype)
{
    switch (dtype) {
    case KERN_F32:
        return "f32";
    case KERN_BF16:
        return "bf16";
    case KERN_F16:
        return "f16";
    case KERN_I32:
        return "i32";
    case KERN_I64:
        return "i64";
    case KERN_U8:
        return "u8";
    }
    return "unknown type";
}

static rt_status attach(kern_dev *dev, const kern_dev_options *options)
{
    if (options->dry)
        return kern_dry_attach(dev, options);
    if (options->kind == KERN_CPU)
        return kern_cpu_attach(dev, options);
#ifdef LOSA_CUDA
    if (options->kind == KERN_CUDA)
        return kern_cuda_attach(dev, options);
#endif
    return RT_FAIL(RT_ERR_UNSUPPORTED, "kern_dev_open: this build has no device of kind %d",
                   (int)options->kind);
}

// Data of two calls in turn, flags, and the count of calls; cuda/peers.c lays them out.
size_t kern_peers_bytes(int ranks)
{
    const size_t data = 2 * (size_t)ranks * KERN_PEER_FLOATS * sizeof(float);
    return KERN_PEER_BLOCKS * (data + ((size_t)ranks + 1) * sizeof(unsigned));
}

#ifndef LOSA_CUDA
rt_status kern_peers_new(kern_dev *dev, int rank, int ranks, double deadline, void *handle,
                         kern_peers **out)
{
    RT_CHECK_ARG(dev && handle && out && rank >= 0 && rank < ranks && deadline > 0);
    return RT_FAIL(RT_ERR_UNSUPPORTED, "kern_peers_new: this build has no GPUs");
}
#endif

void *kern_dev_stream(const kern_dev *dev)
{
#ifdef LOSA_CUDA
    if (dev->kind == KERN_CUDA)
        return kern_cuda_stream(dev);
#endif
    (void)dev;
    return NULL;
}

int kern_device_count(kern_kind kind)
{
    if (kind == KERN_CPU)
        return 1;
#ifdef LOSA_CUDA
    if (kind == KERN_CUDA)
        return kern_cuda_device_count();
#endif
    return 0;
}

rt_status kern_device_id(kern_kind kind, int index, unsigned char id[KERN_ID_BYTES])
{
    const int count = kern_device_count(kind);
    if (index < 0 || index >= count)
        return RT_FAIL(RT_ERR_INVALID, "kern_device_id: device %d of %d", index, count);
    memset(id, 0, KERN_ID_BYTES);
#ifdef LOSA_CUDA
    if (kind == KERN_CUDA)
        return kern_cuda_device_id(index, id);
#endif
    return RT_OK;
}

rt_status kern_dev_open(const kern_dev_options *options, kern_dev **out)
{
    RT_CHECK_ARG(options && out);
    RT_CHECK_ARG(options->threads >= 1);
    RT_CHECK_ARG(options->index >= 0);
    kern_dev *dev;
    RT_TRY(RT_ALLOC(dev, 1, "device"));
    dev->kind = options->kind;
    dev->index = options->index;
    dev->threads = options->threads;
    dev->dry = options->dry;
    dev->use = KERN_USE_BATCH;
    rt_status status;
    RT_TRY_GOTO(status, attach(dev, options), free_dev);
    *out = dev;
    return RT_OK;
free_dev:
    rt_free(dev);
    return status;
}

void kern_dev_close(kern_dev *dev)
{
    if (!dev)
        return;
    dev->ops->close(dev);
    rt_free(dev);
}

kern_kind kern_dev_kind(const kern_dev *dev)
{
    return dev->kind;
}

bool kern_dev_is_dry(const kern_dev *dev)
{
    return dev->dry;
}

kern_dtype kern_dev_weight_dtype(const kern_dev *dev, kern_dtype stored)
{
    return dev->ops->weight_dtype(dev, stored);
}

kern_dtype kern_dev_kv_dtype(const kern_dev *dev)
{
    return dev->ops->kv_dtype(dev);
}

kern_dtype kern_dev_bound_dtype(const kern_dev *dev, int head_dim)
{
    return dev->ops->bound_dtype(dev, head_dim);
}

// ---- memory ------------------------------------------------------------------------------

const char *kern_use_name(kern_use use)
{
    static const char *const names[KERN_USES] = {
        [KERN_USE_WEIGHTS] = "weights",
        [KERN_USE_KV] = "KV pages",
        [KERN_USE_METADATA] = "page metadata",
        [KERN_USE_CACHE] = "prefix cache",
        [KERN_USE_ACTIVATIONS] = "activations",
        [KERN_USE_TABLES] = "tables",
        [KERN_USE_BATCH] = "batch",
        [KERN_USE_ROUNDING] = "rounding",
        [KERN_USE_WORKSPACE] = "workspace",
        [KERN_USE_HOST] = "host",
    };
    return names[use];
}

void kern_use_for(kern_dev *dev, kern_use use)
{
    dev->use = use;
}

size_t kern_used(const kern_dev *dev, kern_use use)
{
    return dev->used[use];
}

rt_status kern_dev_room(const kern_dev *dev, size_t *out)
{
    RT_CHECK_ARG(dev && out);
    return dev->ops->room(dev, out);
}

// CUDA maps memory in pieces of 2 MB; small buffers share them.
static size_t rounding(const kern_buf *buf)
{
    const size_t bytes = buf->count * kern_dtype_size(buf->dtype);
    const size_t unit = bytes < 1 << 20 ? 512 : 2 << 20;
    if (buf->dev->kind != KERN_CUDA || buf->memory != KERN_MEMORY_DEVICE)
        return 0;
    return (unit - bytes % unit) % unit;
}

static rt_status new_buf(kern_dev *dev, kern_dtype dtype, size_t count, const char *what,
                         kern_memory memory, kern_buf **out)
{
    RT_CHECK_ARG(dev && what && out);
    const size_t size = kern_dtype_size(dtype);
    if (size == 0)
        return RT_FAIL(RT_ERR_INVALID, "kern_buf_new: %s: dtype %d", what, (int)dtype);
    if (count > SIZE_MAX / size)
        return RT_FAIL(RT_ERR_NOMEM, "out of memory: %s: %zu elements of %zu bytes", what, count,
                       size);
    kern_buf *buf;
    RT_TRY(RT_ALLOC(buf, 1, what));
    *buf = (kern_buf){.dev = dev, .dtype = dtype, .count = count, .memory = memory};
    buf->use = memory == KERN_MEMORY_SHARED ? KERN_USE_HOST : dev->use;
    rt_status status;
    RT_TRY_GOTO(status,
                (memory == KERN_MEMORY_SHARED ? dev->ops->alloc_shared : dev->ops->alloc)(
                    dev, count * size, what, &buf->ptr),
                free_buf);
    dev->used[buf->use] += count * size;
    dev->used[KERN_USE_ROUNDING] += rounding(buf);
    *out = buf;
    return RT_OK;
free_buf:
    rt_free(buf);
    return status;
}

rt_status kern_buf_new(kern_dev *dev, kern_dtype dtype, size_t count, const char *what,
                       kern_buf **out)
{
    return new_buf(dev, dtype, count, what, KERN_MEMORY_DEVICE, out);
}

rt_status kern_buf_new_shared(kern_dev *dev, kern_dtype dtype, size_t count, const char *what,
                              kern_buf **out)
{
    return new_buf(dev, dtype, count, what, KERN_MEMORY_SHARED, out);
}

void kern_buf_free(kern_buf *buf)
{
    if (!buf)
        return;
    const kern_ops *ops = buf->dev->ops;
    if (buf->memory != KERN_MEMORY_VIEW)
        buf->dev->used[buf->use] -= buf->count * kern_dtype_size(buf->dtype);
    buf->dev->used[KERN_USE_ROUNDING] -= rounding(buf);
    if (buf->memory == KERN_MEMORY_DEVICE)
        ops->release(buf->dev, buf->ptr);
    if (buf->memory == KERN_MEMORY_SHARED)
        ops->release_shared(buf->dev, buf->ptr);
    rt_free(buf);
}

size_t kern_buf_count(const kern_buf *buf)
{
    return buf->count;
}

kern_dtype kern_buf_dtype(const kern_buf *buf)
{
    return buf->dtype;
}

void *kern_buf_ptr(const kern_buf *buf)
{
    return buf->ptr;
}

static rt_status check_span(const char *op, const kern_buf *buf, size_t first, size_t count)
{
    if (first > buf->count || count > buf->count - first)
        return RT_FAIL(RT_ERR_INVALID, "%s: elements [%zu, +%zu) of a buffer of %zu", op, first,
                       count, buf->count);
    return RT_OK;
}

rt_status kern_buf_view(kern_buf *owner, size_t first, size_t count, kern_buf **out)
{
    RT_CHECK_ARG(owner && out);
    RT_TRY(check_span("kern_buf_view", owner, first, count));
    kern_buf *view;
    RT_TRY(RT_ALLOC(view, 1, "buffer view"));
    *view = *owner;
    view->ptr = (char *)owner->ptr + first * kern_dtype_size(owner->dtype);
    view->count = count;
    view->memory = KERN_MEMORY_VIEW;
    *out = view;
    return RT_OK;
}

// Calls between host and device have no place in a recording.
static rt_status check_not_recording(const char *op, const kern_dev *dev)
{
    if (dev->recording)
        return RT_FAIL(RT_ERR_INVALID, "%s: the device is recording", op);
    return RT_OK;
}

rt_status kern_write(kern_buf *dst, size_t first, const void *src, size_t count)
{
    RT_CHECK_ARG(dst);
    RT_CHECK_ARG(src || count == 0);
    RT_TRY(check_span("kern_write", dst, first, count));
    RT_TRY(check_not_recording("kern_write", dst->dev));
    const size_t size = kern_dtype_size(dst->dtype);
    return count ? dst->dev->ops->write(dst, first * size, src, count * size) : RT_OK;
}

rt_status kern_read(const kern_buf *src, size_t first, void *dst, size_t count)
{
    RT_CHECK_ARG(src);
    RT_CHECK_ARG(dst || count == 0);
    RT_TRY(check_span("kern_read", src, first, count));
    RT_TRY(check_not_recording("kern_read", src->dev));
    const size_t size = kern_dtype_size(src->dtype);
    return count ? src->dev->ops->read(src, first * size, dst, count * size) : RT_OK;
}

rt_status kern_copy(kern_buf *dst, size_t first, const kern_buf *src, size_t first_src,
                    size_t count)
{
    RT_CHECK_ARG(dst && src);
    RT_CHECK_ARG(dst->dev == src->dev);
    RT_CHECK_ARG(dst->dtype == src->dtype);
    RT_TRY(check_span("kern_copy: dst", dst, first, count));
    RT_TRY(check_span("kern_copy: src", src, first_src, count));
    const size_t size = kern_dtype_size(dst->dtype);
    if (count == 0)
        return RT_OK;
    return dst->dev->ops->copy(dst, first * size, src, first_src * size, count * size);
}

rt_status kern_fill_zero(kern_buf *buf, size_t count)
{
    RT_CHECK_ARG(buf);
    RT_TRY(check_span("kern_fill_zero", buf, 0, count));
    return count ? buf->dev->ops->zero(buf, count * kern_dtype_size(buf->dtype)) : RT_OK;
}

rt_status kern_sync(kern_dev *dev)
{
    RT_CHECK_ARG(dev);
    RT_TRY(check_not_recording("kern_sync", dev));
    return dev->ops->sync(dev);
}

rt_status kern_poll(kern_dev *dev, bool *idle)
{
    RT_CHECK_ARG(dev && idle);
    RT_TRY(check_not_recording("kern_poll", dev));
    return dev->ops->poll(dev, idle);
}

rt_status kern_upload(const kern_upload_args *args)
{
    RT_CHECK_ARG(args && args->dst);
    if (args->dtype != KERN_F32 && args->dtype != KERN_BF16 && args->dtype != KERN_F16)
        return RT_FAIL(RT_ERR_INVALID, "kern_upload: dtype is %s, want f32, bf16 or f16",
                       kern_dtype_name(args->dtype));
    if (args->rows == 0 || args->cols == 0)
        return RT_OK;
    RT_CHECK_ARG(args->src);
    RT_CHECK_ARG(args->rows == 1 || args->stride >= args->cols);
    RT_CHECK_ARG(args->rows <= SIZE_MAX / args->cols);
    RT_TRY(check_not_recording("kern_upload", args->dst->dev));
    RT_TRY(check_span("kern_upload", args->dst, args->first, args->rows * args->cols));
    return args->dst->dev->ops->upload(args->dst->dev, args);
}

// ---- recording -------------------------------------------------------------------------

bool kern_can_record(const kern_dev *dev)
{
    return dev->recorder != NULL;
}

rt_status kern_record_begin(kern_dev *dev)
{
    RT_CHECK_ARG(dev);
    RT_TRY(check_not_recording("kern_record_begin", dev));
    if (!kern_can_record(dev))
        return RT_FAIL(RT_ERR_UNSUPPORTED, "kern_record_begin: this device does not record");
    RT_TRY(dev->recorder->begin(dev));
    dev->recording = true;
    return RT_OK;
}

rt_status kern_record_end(kern_dev *dev, kern_graph **out)
{
    RT_CHECK_ARG(dev && dev->recording);
    dev->recording = false;
    if (!out)
        return dev->recorder->end(dev, NULL);
    kern_graph *graph;
    rt_status status = RT_ALLOC(graph, 1, "recorded calls");
    if (status != RT_OK) {
        (void)dev->recorder->end(dev, NULL);
        return status;
    }
    graph->dev = dev;
    status = dev->recorder->end(dev, &graph->state);
    if (status != RT_OK) {
        rt_free(graph);
        return status;
    }
    *out = graph;
    return RT_OK;
}

rt_status kern_graph_launch(kern_graph *graph)
{
    RT_CHECK_ARG(graph);
    RT_TRY(check_not_recording("kern_graph_launch", graph->dev));
    return graph->dev->recorder->launch(graph->dev, graph->state);
}

void kern_graph_free(kern_graph *graph)
{
    if (!graph)
        return;
    graph->dev->recorder->free(graph->state);
    rt_free(graph);
}

// ---- timing ------------------------------------------------------------------------------

rt_status kern_timer_new(kern_dev *dev, int marks, kern_timer **out)
{
    RT_CHECK_ARG(dev && out && marks >= 1);
    kern_timer *timer;
    RT_TRY(RT_ALLOC(timer, 1, "timer"));
    *timer = (kern_timer){.dev = dev, .marks = marks};
    const rt_status status = dev->ops->timer_open(dev, marks, &timer->state);
    if (status != RT_OK) {
        rt_free(timer);
        return status;
    }
    *out = timer;
    return RT_OK;
}

void kern_timer_free(kern_timer *timer)
{
    if (!timer)
        return;
    timer->dev->ops->timer_close(timer->state, timer->marks);
    rt_free(timer);
}

rt_status kern_timer_mark(kern_timer *timer, int mark)
{
    RT_CHECK_ARG(timer && mark >= 0 && mark < timer->marks);
    return timer->dev->ops->timer_mark(timer->dev, timer->state, mark);
}

rt_status kern_timer_read(kern_timer *timer, int from, int to, double *ms)
{
    RT_CHECK_ARG(timer && ms);
    RT_CHECK_ARG(from >= 0 && from < timer->marks);
    RT_CHECK_ARG(to >= 0 && to < timer->marks);
    RT_TRY(check_not_recording("kern_timer_read", timer->dev));
    return timer->dev->ops->timer_read(timer->dev, timer->state, from, to, ms);
}
