// SPDX-License-Identifier: Apache-2.0
// KV pages of all layers on this rank, and the allocator of page numbers. A page
// number names the same page in every layer and on every rank; rank 0 allocates,
// and the admission message carries the numbers.
#ifndef RUNTIME_ENGINE_KVCACHE_H
#define RUNTIME_ENGINE_KVCACHE_H

#include "kernels/kern.h"

typedef struct rt_kvcache {
    int layers, pages, page; // `page` tokens in a page
    kern_kv *kv;             // one per layer
    int32_t *free_pages;     // stack
    int free_count;
} rt_kvcache;

typedef struct rt_kvcache_shape {
    int layers, kv_heads, head_dim; // of this rank
    int pages, page;
} rt_kvcache_shape;

rt_status rt_kvcache_open(kern_dev *dev, const rt_kvcache_shape *shape, rt_kvcache *out);
void rt_kvcache_close(rt_kvcache *c); // safe on a zero struct

// Writes random keys and values to every place of every page, as a forward would: for
// measuring without a prefill.
rt_status rt_kvcache_randomize(kern_dev *dev, rt_kvcache *c);

// Takes `count` pages, lowest number first on a fresh cache; the caller has checked
// that there are as many.
void rt_kvcache_take(rt_kvcache *c, int32_t *pages, int count);
void rt_kvcache_give(rt_kvcache *c, const int32_t *pages, int count);

#endif
