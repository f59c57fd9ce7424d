// SPDX-License-Identifier: Apache-2.0
// NCCL data plane: device buffers, in the order of the device's stream. The control
// plane stays with the backend that started the job.
//
// The communicator is non-blocking: every call returns at once and is polled, so that
// a rank that never joins ends in the deadline. Collectives run on the stream after
// their call returned, or when the sequence they were recorded in is launched; a failure
// there shows at the next call or in comm_settle, and a rank that died is found by the heart.
//
// Small sums go past NCCL where all GPUs are of one host and reach each other's memory
// (kern_peers): a forward of 36 layers has 73 of them, each of which waits for the last.
// LOSA_PEERS=0 in the environment leaves them to NCCL.
#include "comm/comm_int.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"

#include <nccl.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

typedef struct nccl_state {
    ncclComm_t comm;
    cudaStream_t stream; // of the device, borrowed
    kern_peers *peers;   // NULL: the GPUs share no memory
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
        RT_TRY(comm_check_whole(c));
        if (rt_clock_now() - start > c->deadline)
            return comm_timeout(c, c->deadline);
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
    if (s->peers && op == COMM_SUM && kern_peers_fit(s->peers, count, 0))
        return kern_peers_sum(s->peers, buf, count);
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

static rt_status data_sum_norm(comm *c, const kern_rmsnorm_args *args, bool *done)
{
    const nccl_state *s = c->data_state;
    *done =
        s->peers && kern_peers_fit(s->peers, (size_t)args->rows * (size_t)args->cols, args->cols);
    return *done ? kern_peers_rmsnorm(s->peers, args) : RT_OK;
}

static rt_status data_check(comm *c)
{
    const nccl_state *s = c->data_state;
    if (s->peers && kern_peers_failed(s->peers))
        return comm_timeout(c, c->deadline);
    ncclResult_t result = ncclSuccess;
    RT_TRY(check(c, s, ncclCommGetAsyncError(s->comm, &result), "ncclCommGetAsyncError"));
    return check(c, s, result, "NCCL");
}

// The ranks meet first: afterwards nobody writes to the memory that they share.
static rt_status finalize(comm *c, const nccl_state *s)
{
    if (c->broken != RT_OK)
        return c->broken;
    RT_TRY(c->ops.ctl->barrier(c));
    RT_TRY(check(c, s, ncclCommFinalize(s->comm), "ncclCommFinalize"));
    return settle(c, s, "ncclCommFinalize");
}

// A broken communicator is aborted: finalising it would wait for ranks that are gone. Memory
// is freed last, since that waits for what is still on the device.
static void data_close(comm *c)
{
    nccl_state *s = c->data_state;
    if (finalize(c, s) == RT_OK) {
        ncclCommDestroy(s->comm);
    } else {
        if (s->peers)
            kern_peers_abort(s->peers);
        ncclCommAbort(s->comm);
    }
    kern_peers_free(s->peers);
    rt_free(s);
}

static const comm_data_ops nccl_data = {
    .allreduce = data_allreduce,
    .allgather = data_allgather,
    .sum_norm = data_sum_norm,
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

static rt_status make_peers(comm *c, kern_dev *dev, char *handle, kern_peers **out)
{
    const char *wanted = getenv("LOSA_PEERS");
    if (wanted && strcmp(wanted, "0") == 0)
        return RT_FAIL(RT_ERR_UNSUPPORTED, "LOSA_PEERS is 0");
    if (!c->one_host)
        return RT_FAIL(RT_ERR_UNSUPPORTED, "the ranks are not on one host");
    return kern_peers_new(dev, c->rank, c->ranks, c->deadline, handle, out);
}

// All ranks share memory or none does, which is no error.
static rt_status open_peers(comm *c, kern_dev *dev, nccl_state *s)
{
    char handle[KERN_PEER_HANDLE] = {0}, all[KERN_PEER_RANKS * KERN_PEER_HANDLE];
    kern_peers *peers = NULL;
    rt_status status = comm_agree(c, make_peers(c, dev, handle, &peers));
    if (status == RT_OK)
        status = comm_ctl_allgather(c, handle, sizeof handle, all);
    if (status == RT_OK)
        status = comm_agree(c, kern_peers_connect(peers, all));
    if (status == RT_OK) {
        s->peers = peers;
        return RT_OK;
    }
    rt_log(RT_LOG_DEBUG, "all sums go to NCCL: %s", rt_last_error());
    if (peers)
        kern_peers_free(peers);
    return c->broken;
}

rt_status comm_nccl_open(comm *c, kern_dev *dev)
{
    nccl_state *s;
    ncclUniqueId id;
    rt_status status;
    RT_TRY_GOTO(status, comm_agree(c, RT_ALLOC(s, 1, "NCCL state")), free_state);
    s->stream = kern_dev_stream(dev);
    RT_TRY_GOTO(status, share_id(c, s, &id), free_state);
    comm_enter(c, "start of NCCL");
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    status = check(c, s, ncclCommInitRankConfig(&s->comm, c->ranks, id, c->rank, &config),
                   "ncclCommInitRankConfig");
    if (status == RT_OK)
        status = settle(c, s, "ncclCommInitRankConfig");
    RT_TRY_GOTO(status, comm_agree(c, status), abort_comm);
    RT_TRY_GOTO(status, open_peers(c, dev, s), abort_comm);
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
