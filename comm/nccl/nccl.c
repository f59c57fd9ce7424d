// SPDX-License-Identifier: Apache-2.0
// NCCL data plane: device buffers, in the order of the device's stream. The control
// plane stays with the backend that started the job.
//
// The communicator is non-blocking: every call returns at once and is polled, so that
// a rank that never joins ends in the deadline. Collectives run on the stream after
// their call returned, or when the sequence they were recorded in is launched; a failure
// there shows at the next call or in comm_settle, and a rank that died is found by the heart.
#include "comm/comm_int.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"

#include <nccl.h>
#include <sched.h>
#include <string.h>

typedef struct nccl_state {
    ncclComm_t comm;
    cudaStream_t stream; // of the device, borrowed
} nccl_state;

static rt_status check(const comm *c, const nccl_state *s, ncclResult_t result, const char *call)
{
    if (result == ncclSuccess || result == ncclInProgress)
        return RT_OK;
    return RT_FAIL(RT_ERR_COMM, "rank %d: %s number %llu: %s: %s: %s", c->rank, c->operation,
                   (unsigned long long)c->number, call, ncclGetErrorString(result),
                   s->comm ? ncclGetLastError(s->comm) : "no communicator");
}

// Until the call that was made is enqueued on all ranks' behalf, or failed.
static rt_status settle(const comm *c, const nccl_state *s, const char *call)
{
    const double start = rt_clock_now();
    for (;;) {
        ncclResult_t result = ncclSuccess;
        RT_TRY(check(c, s, ncclCommGetAsyncError(s->comm, &result), "ncclCommGetAsyncError"));
        if (result != ncclInProgress)
            return check(c, s, result, call);
        if (rt_clock_now() - start > c->limit)
            return comm_timeout(c);
        sched_yield();
    }
}

static ncclDataType_t nccl_type(const kern_buf *buf)
{
    return kern_buf_dtype(buf) == KERN_I32 ? ncclInt32 : ncclFloat32;
}

static rt_status data_allreduce(comm *c, kern_buf *buf, size_t count, comm_op op)
{
    const nccl_state *s = c->data_state;
    void *data = kern_buf_ptr(buf);
    const ncclRedOp_t how = op == COMM_MAX ? ncclMax : ncclSum;
    RT_TRY(check(c, s, ncclAllReduce(data, data, count, nccl_type(buf), how, s->comm, s->stream),
                 "ncclAllReduce"));
    return settle(c, s, "ncclAllReduce");
}

static rt_status data_allgather(comm *c, const kern_buf *src, size_t count, kern_buf *dst)
{
    const nccl_state *s = c->data_state;
    const size_t bytes = count * kern_dtype_size(kern_buf_dtype(src));
    RT_TRY(check(
        c, s,
        ncclAllGather(kern_buf_ptr(src), kern_buf_ptr(dst), bytes, ncclInt8, s->comm, s->stream),
        "ncclAllGather"));
    return settle(c, s, "ncclAllGather");
}

static rt_status data_check(comm *c)
{
    const nccl_state *s = c->data_state;
    ncclResult_t result = ncclSuccess;
    RT_TRY(check(c, s, ncclCommGetAsyncError(s->comm, &result), "ncclCommGetAsyncError"));
    return check(c, s, result, "NCCL");
}

// A broken communicator is aborted: finalising it would wait for ranks that are gone.
static void data_close(comm *c)
{
    nccl_state *s = c->data_state;
    if (c->broken == RT_OK && check(c, s, ncclCommFinalize(s->comm), "ncclCommFinalize") == RT_OK &&
        settle(c, s, "ncclCommFinalize") == RT_OK)
        ncclCommDestroy(s->comm);
    else
        ncclCommAbort(s->comm);
    rt_free(s);
}

static const comm_data_ops nccl_data = {
    .allreduce = data_allreduce,
    .allgather = data_allgather,
    .check = data_check,
    .close = data_close,
};

// Rank 0's identifier to everyone, over the control plane.
static rt_status share_id(comm *c, const nccl_state *s, ncclUniqueId *id)
{
    memset(id, 0, sizeof *id);
    rt_status status = RT_OK;
    if (c->rank == 0)
        status = check(c, s, ncclGetUniqueId(id), "ncclGetUniqueId");
    RT_TRY(comm_agree(c, status));
    return comm_ctl_bcast(c, 0, id, sizeof *id);
}

rt_status comm_nccl_open(comm *c, void *stream)
{
    nccl_state *s;
    RT_TRY(comm_agree(c, RT_ALLOC(s, 1, "NCCL state")));
    s->stream = stream;
    ncclUniqueId id;
    rt_status status;
    RT_TRY_GOTO(status, share_id(c, s, &id), free_state);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    status = check(c, s, ncclCommInitRankConfig(&s->comm, c->ranks, id, c->rank, &config),
                   "ncclCommInitRankConfig");
    if (status == RT_OK)
        status = settle(c, s, "ncclCommInitRankConfig");
    RT_TRY_GOTO(status, comm_agree(c, status), abort_comm);
    c->ops.data = &nccl_data;
    c->data_state = s;
    return RT_OK;
abort_comm:
    if (s->comm)
        ncclCommAbort(s->comm);
free_state:
    rt_free(s);
    return status;
}
