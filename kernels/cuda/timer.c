// SPDX-License-Identifier: Apache-2.0
// Marks of time on a CUDA stream: events, external ones where a graph is recorded.
#include "kernels/cuda/cuda_int.h"
#include "runtime/base/mem.h"

#include <cuda_runtime_api.h>

rt_status kern_cuda_timer_open(kern_dev *dev, int marks, void **state)
{
    cudaEvent_t *events;
    RT_TRY(RT_ALLOC(events, (size_t)marks, "timer"));
    for (int i = 0; i < marks; i++) {
        const rt_status status =
            kern_cuda_status(dev, cudaEventCreate(&events[i]), "cudaEventCreate");
        if (status != RT_OK) {
            kern_cuda_timer_close(events, i);
            return status;
        }
    }
    *state = events;
    return RT_OK;
}

void kern_cuda_timer_close(void *state, int marks)
{
    cudaEvent_t *events = state;
    for (int i = 0; i < marks; i++)
        cudaEventDestroy(events[i]);
    rt_free(events);
}

rt_status kern_cuda_timer_mark(kern_dev *dev, void *state, int mark)
{
    const cudaEvent_t *events = state;
    const unsigned how = dev->recording ? cudaEventRecordExternal : cudaEventRecordDefault;
    CUDA_TRY(dev, cudaEventRecordWithFlags(events[mark], kern_cuda_of(dev)->ctx.stream, how));
    return RT_OK;
}

rt_status kern_cuda_timer_read(kern_dev *dev, void *state, int from, int to, double *ms)
{
    const cudaEvent_t *events = state;
    float elapsed;
    CUDA_TRY(dev, cudaEventSynchronize(events[to]));
    CUDA_TRY(dev, cudaEventElapsedTime(&elapsed, events[from], events[to]));
    *ms = (double)elapsed;
    return RT_OK;
}
