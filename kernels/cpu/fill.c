// SPDX-License-Identifier: Apache-2.0
// Random contents of buffers, and a pass that only reads.
#include "kernels/kern_int.h"
#include "runtime/base/rng.h"

#include <math.h>

enum { CHUNK = 1 << 14 }; // elements of a work item, a multiple of four

// Two normals from two uniform words (Box and Muller).
static void normals(uint32_t a, uint32_t b, float scale, float out[2])
{
    const float radius = scale * sqrtf(-2.0f * logf(rt_uniform_open(a)));
    const float angle = 6.2831853f * rt_uniform_open(b);
    out[0] = radius * cosf(angle);
    out[1] = radius * sinf(angle);
}

static void fill_chunk(void *ctx, size_t chunk, int thread)
{
    (void)thread;
    const kern_fill_normal_args *a = ctx;
    const size_t end = (chunk + 1) * CHUNK < a->count ? (chunk + 1) * CHUNK : a->count;
    float *out = kern_f32(a->dst);
    for (size_t first = chunk * CHUNK; first < end; first += 4) {
        const size_t i = first / 4;
        const uint32_t counter[4] = {(uint32_t)i, (uint32_t)(i >> 32)};
        const rt_philox word = rt_philox4x32(a->seed, counter);
        float four[4];
        normals(word.v[0], word.v[1], a->scale, four);
        normals(word.v[2], word.v[3], a->scale, four + 2);
        for (size_t j = 0; j < 4 && first + j < end; j++)
            out[first + j] = four[j];
    }
}

rt_status kern_cpu_fill_normal(kern_dev *dev, const kern_fill_normal_args *args)
{
    kern_fill_normal_args copy = *args;
    kern_cpu_run(dev, (args->count + CHUNK - 1) / CHUNK, args->count, fill_chunk, &copy);
    return RT_OK;
}

typedef struct xor_job {
    const uint32_t *src;
    size_t words;
    uint32_t all;
} xor_job;

static void xor_chunk(void *ctx, size_t chunk, int thread)
{
    (void)thread;
    xor_job *job = ctx;
    const size_t end = (chunk + 1) * CHUNK < job->words ? (chunk + 1) * CHUNK : job->words;
    uint32_t part = 0;
    for (size_t i = chunk * CHUNK; i < end; i++)
        part ^= job->src[i];
    __atomic_fetch_xor(&job->all, part, __ATOMIC_RELAXED);
}

rt_status kern_cpu_xor_words(kern_dev *dev, const kern_xor_words_args *args)
{
    xor_job job = {.src = args->src->ptr, .words = args->words};
    kern_cpu_run(dev, (args->words + CHUNK - 1) / CHUNK, args->words, xor_chunk, &job);
    kern_i32(args->out)[0] = (int32_t)job.all;
    return RT_OK;
}
