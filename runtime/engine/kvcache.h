// SPDX-License-Identifier: Apache-2.0
// KV pages of all layers on this rank. A page number names the same page in every layer
// and on every rank; rank 0 gives the numbers out (pagebook.h), and the admission message
// carries them.
#ifndef RUNTIME_ENGINE_KVCACHE_H
#define RUNTIME_ENGINE_KVCACHE_H

#include "kernels/kern.h"

typedef struct rt_kvcache {
    int layers, pages, page; // `page` tokens in a page
    kern_kv *kv;             // one per layer
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

#endif
