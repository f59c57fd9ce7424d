// SPDX-License-Identifier: Apache-2.0
// Memory that the GPUs of a host share: opened by CUDA's handles between processes.
#include "kernels/cuda/cuda_int.h"
#include "kernels/kern_check.h"
#include "runtime/base/mem.h"

#include <cuda_runtime_api.h>
#include <string.h>

struct kern_peers {
    kern_dev *dev;
    kern_cuda_peers view;
    void *memory; // this rank's: data, flags, calls
    void *opened[KERN_PEER_RANKS];
    int *words; // host memory: aborted, failed
};

static size_t data_bytes(int ranks)
{
    return sizeof(float) * KERN_PEER_BLOCKS * 2 * (size_t)ranks * KERN_PEER_FLOATS;
}

static size_t flag_bytes(int ranks)
{
    return sizeof(unsigned) * KERN_PEER_BLOCKS * (size_t)ranks;
}

static void place(kern_peers *p, int rank, void *memory)
{
    p->view.data[rank] = memory;
    p->view.flags[rank] = (unsigned *)((char *)memory + data_bytes(p->view.ranks));
}

static rt_status open_memory(kern_peers *p, void *handle)
{
    const int ranks = p->view.ranks;
    const size_t bytes = kern_peers_bytes(ranks);
    cudaIpcMemHandle_t own;
    CUDA_TRY(p->dev, cudaMalloc(&p->memory, bytes));
    p->dev->used[KERN_USE_WORKSPACE] += bytes;
    CUDA_TRY(p->dev, cudaMemset(p->memory, 0, bytes));
    CUDA_TRY(p->dev, cudaHostAlloc((void **)&p->words, 2 * sizeof(int), cudaHostAllocMapped));
    CUDA_TRY(p->dev, cudaIpcGetMemHandle(&own, p->memory));
    CUDA_TRY(p->dev, cudaDeviceSynchronize()); // the flags are down before the others know
    _Static_assert(sizeof own == KERN_PEER_HANDLE, "CUDA's handle");
    memcpy(handle, &own, sizeof own);
    p->words[0] = p->words[1] = 0;
    place(p, p->view.rank, p->memory);
    p->view.calls = (unsigned *)((char *)p->view.flags[p->view.rank] + flag_bytes(ranks));
    p->view.aborted = &p->words[0];
    p->view.failed = &p->words[1];
    return RT_OK;
}

rt_status kern_peers_new(kern_dev *dev, int rank, int ranks, double deadline, void *handle,
                         kern_peers **out)
{
    RT_CHECK_ARG(dev && handle && out && rank >= 0 && rank < ranks && deadline > 0);
    if (dev->kind != KERN_CUDA || ranks > KERN_PEER_RANKS)
        return RT_FAIL(RT_ERR_UNSUPPORTED, "kern_peers_new: memory is shared by up to %d GPUs",
                       KERN_PEER_RANKS);
    kern_peers *p;
    RT_TRY(RT_ALLOC(p, 1, "shared memory of GPUs"));
    p->dev = dev;
    p->view = (kern_cuda_peers){
        .rank = rank, .ranks = ranks, .deadline_ns = (unsigned long long)(deadline * 1e9)};
    const rt_status status = open_memory(p, handle);
    if (status != RT_OK) {
        (void)cudaGetLastError(); // not sticky: the device goes on without
        kern_peers_free(p);
        return status;
    }
    *out = p;
    return RT_OK;
}

rt_status kern_peers_connect(kern_peers *p, const void *handles)
{
    RT_CHECK_ARG(p && handles);
    for (int r = 0; r < p->view.ranks; r++) {
        cudaIpcMemHandle_t handle;
        if (r == p->view.rank)
            continue;
        memcpy(&handle, (const char *)handles + (size_t)r * sizeof handle, sizeof handle);
        const cudaError_t error =
            cudaIpcOpenMemHandle(&p->opened[r], handle, cudaIpcMemLazyEnablePeerAccess);
        if (error != cudaSuccess)
            (void)cudaGetLastError(); // not sticky: the device goes on without
        CUDA_TRY(p->dev, error);
        place(p, r, p->opened[r]);
    }
    return RT_OK;
}

void kern_peers_free(kern_peers *p)
{
    if (!p)
        return;
    for (int r = 0; r < KERN_PEER_RANKS; r++)
        if (p->opened[r])
            cudaIpcCloseMemHandle(p->opened[r]);
    if (p->memory)
        p->dev->used[KERN_USE_WORKSPACE] -= kern_peers_bytes(p->view.ranks);
    cudaFree(p->memory);
    cudaFreeHost(p->words);
    rt_free(p);
}

void kern_peers_abort(kern_peers *p)
{
    *(volatile int *)p->view.aborted = 1;
}

bool kern_peers_failed(const kern_peers *p)
{
    return *(volatile const int *)p->view.failed != 0;
}

bool kern_peers_fit(const kern_peers *p, size_t count, int cols)
{
    (void)p;
    const size_t most = (size_t)KERN_PEER_BLOCKS * KERN_PEER_FLOATS;
    if (count == 0 || count % 4 != 0 || count > most)
        return false;
    return cols == 0 ||
           (cols % 4 == 0 && cols <= KERN_PEER_FLOATS && count / (size_t)cols <= KERN_PEER_BLOCKS);
}

rt_status kern_peers_sum(kern_peers *p, kern_buf *buf, size_t count)
{
    RT_CHECK_ARG(p && kern_peers_fit(p, count, 0));
    const kern_check check = {"kern_peers_sum", p->dev};
    RT_TRY(kern_check_buf(&check, "buf", buf, KERN_F32, 1, &count));
    CUDA_TRY(p->dev,
             kern_cuda_launch_peer_sum(&kern_cuda_of(p->dev)->ctx, &p->view, kern_f32(buf), count));
    return RT_OK;
}

rt_status kern_peers_rmsnorm(kern_peers *p, const kern_rmsnorm_args *args)
{
    RT_CHECK_ARG(p && args && args->add && args->rows >= 1 && args->cols >= 1);
    RT_CHECK_ARG(kern_peers_fit(p, (size_t)args->rows * (size_t)args->cols, args->cols));
    const kern_check check = {"kern_peers_rmsnorm", p->dev};
    RT_TRY(kern_check_rmsnorm(&check, args));
    CUDA_TRY(p->dev, kern_cuda_launch_peer_rmsnorm(&kern_cuda_of(p->dev)->ctx, &p->view, args));
    return RT_OK;
}
