// SPDX-License-Identifier: Apache-2.0
// Reads memory and does nothing else: the ceiling of what a kernel can read.
#include <cuda_runtime.h>

enum { THREADS = 512, AHEAD = 8 };

// Writes only a sum that does not occur, so that the reads stay.
__global__ void __launch_bounds__(THREADS) read_kernel(const int4 *from, size_t count, float *out)
{
    int sum = 0;
    const size_t step = (size_t)gridDim.x * THREADS;
    for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < count; i += AHEAD * step) {
        int4 x[AHEAD];
#pragma unroll
        for (int j = 0; j < AHEAD; j++)
            x[j] = i + j * step < count ? from[i + j * step] : make_int4(0, 0, 0, 0);
#pragma unroll
        for (int j = 0; j < AHEAD; j++)
            sum ^= x[j].x ^ x[j].y ^ x[j].z ^ x[j].w;
    }
    if (sum == 0x7fc01234)
        *out = 1.0f;
}

extern "C" int bench_launch_read(cudaStream_t stream, const void *from, size_t bytes, float *out)
{
    int device, sms;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
    read_kernel<<<4 * sms, THREADS, 0, stream>>>((const int4 *)from, bytes / sizeof(int4), out);
    return cudaGetLastError();
}
