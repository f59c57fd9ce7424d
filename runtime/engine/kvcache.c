// SPDX-License-Identifier: Apache-2.0
#include "runtime/engine/kvcache.h"

#include "runtime/base/mem.h"

static rt_status open_layer(kern_dev *dev, const rt_kvcache_shape *s, kern_kv *kv)
{
    const size_t meta = (size_t)s->pages * (size_t)s->kv_heads * (size_t)s->head_dim;
    const size_t tokens = meta * (size_t)s->page;
    kv->pages = s->pages;
    kv->kv_heads = s->kv_heads;
    kv->head_dim = s->head_dim;
    const kern_dtype dtype = kern_dev_kv_dtype(dev);
    kern_use_for(dev, KERN_USE_KV);
    RT_TRY(kern_buf_new(dev, dtype, tokens, "KV pages", &kv->k));
    RT_TRY(kern_buf_new(dev, dtype, tokens, "KV pages", &kv->v));
    kern_use_for(dev, KERN_USE_METADATA);
    const kern_dtype bound = kern_dev_bound_dtype(dev, s->head_dim);
    if (bound == KERN_U8)
        RT_TRY(kern_buf_new(dev, bound, meta / KERN_BOUND_GROUP, "page metadata", &kv->kstep));
    RT_TRY(kern_buf_new(dev, bound, meta, "page metadata", &kv->kmin));
    return kern_buf_new(dev, bound, meta, "page metadata", &kv->kmax);
}

static rt_status open_all(kern_dev *dev, const rt_kvcache_shape *s, rt_kvcache *c)
{
    c->layers = s->layers;
    c->pages = s->pages;
    c->page = s->page;
    RT_TRY(RT_ALLOC(c->kv, (size_t)s->layers, "KV layers"));
    for (int l = 0; l < s->layers; l++)
        RT_TRY(open_layer(dev, s, &c->kv[l]));
    return RT_OK;
}

rt_status rt_kvcache_open(kern_dev *dev, const rt_kvcache_shape *shape, rt_kvcache *out)
{
    *out = (rt_kvcache){0};
    const rt_status status = open_all(dev, shape, out);
    if (status != RT_OK)
        rt_kvcache_close(out);
    return status;
}

void rt_kvcache_close(rt_kvcache *c)
{
    for (int l = 0; c->kv && l < c->layers; l++) {
        kern_buf_free(c->kv[l].k);
        kern_buf_free(c->kv[l].v);
        kern_buf_free(c->kv[l].kmin);
        kern_buf_free(c->kv[l].kmax);
        kern_buf_free(c->kv[l].kstep);
    }
    rt_free(c->kv);
    *c = (rt_kvcache){0};
}

// ---- random contents -------------------------------------------------------------------

enum { FILL_ROWS = 1024 }; // tokens written at a time

typedef struct filler {
    kern_dev *dev;
    kern_batch batch; // rows to be committed
    kern_buf *qkv, *pos, *slots;
    uint64_t seed;
} filler;

static rt_status open_filler(filler *f, const rt_kvcache *c)
{
    const size_t cols = 3 * (size_t)c->kv[0].kv_heads * (size_t)c->kv[0].head_dim;
    RT_TRY(kern_buf_new(f->dev, KERN_F32, FILL_ROWS * cols, "random keys", &f->qkv));
    RT_TRY(kern_buf_new(f->dev, KERN_I32, FILL_ROWS, "random keys", &f->pos));
    RT_TRY(kern_buf_new(f->dev, KERN_I32, FILL_ROWS, "random keys", &f->slots));
    f->batch = (kern_batch){
        .block = 1,
        .page = c->page,
        .max_pages = 1,
        .pos = f->pos,
        .kv_slot = f->slots,
    };
    return RT_OK;
}

// `rows` places from `first` on, in every layer.
static rt_status fill_rows(filler *f, const rt_kvcache *c, int first, int rows)
{
    int32_t places[FILL_ROWS];
    for (int i = 0; i < rows; i++)
        places[i] = first + i;
    RT_TRY(kern_write(f->slots, 0, places, (size_t)rows));
    RT_TRY(kern_write(f->pos, 0, places, (size_t)rows));
    f->batch.rows = rows;
    for (int l = 0; l < c->layers; l++) {
        const kern_fill_normal_args fill = {
            .dst = f->qkv, .count = kern_buf_count(f->qkv), .seed = ++f->seed, .scale = 1.0f};
        RT_TRY(kern_fill_normal(f->dev, &fill));
        const kern_kv_write_args write = {
            .qkv = f->qkv, .kv = c->kv[l], .batch = &f->batch, .heads = c->kv[l].kv_heads};
        RT_TRY(kern_kv_write(f->dev, &write));
    }
    return RT_OK;
}

rt_status rt_kvcache_randomize(kern_dev *dev, rt_kvcache *c)
{
    filler f = {.dev = dev};
    const int all = c->pages * c->page;
    rt_status status = open_filler(&f, c);
    for (int first = 0; first < all && status == RT_OK; first += FILL_ROWS)
        status = fill_rows(&f, c, first, all - first < FILL_ROWS ? all - first : FILL_ROWS);
    kern_buf_free(f.qkv);
    kern_buf_free(f.pos);
    kern_buf_free(f.slots);
    return status;
}
