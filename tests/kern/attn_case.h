// SPDX-License-Identifier: Apache-2.0
// A batch for the attention and plan tests: random queries, keys and values over
// scrambled pages. Whatever an operation must not read is poisoned: K, V and
// metadata that no prefix covers are NaN, unused page numbers are wild.
#ifndef TESTS_KERN_ATTN_CASE_H
#define TESTS_KERN_ATTN_CASE_H

#include "tests/kern/bounds.h"

typedef struct ac_shape {
    int block, page, heads, kv_heads, dim, lists;
} ac_shape;

// `blocks` blocks of a request from position `first`, a multiple of the block.
typedef struct ac_seg {
    int kind, first, blocks;
} ac_seg;

// Host side. Segments of kind FIRST and STEP have cache slots.
typedef struct ac_case {
    ac_shape shape;
    int segs, sparse_segs, rows, max_pages, pages, slots;
    float scale;
    int32_t *pos, *row_state, *row_seg, *seg_row0, *seg_kind, *page_table, *cache_slot;
    int32_t *act_rows, *act_count, *list, *list_count; // a plan: dense until a test changes it
    float *qkv;                                        // [rows, width]
    float *k, *v, *kmin, *kmax;
} ac_case;

// The same on a device.
typedef struct ac_dev {
    kern_dev *dev;
    kern_batch batch;
    kern_plan plan;
    kern_kv kv;
    kern_buf *qkv;
} ac_dev;

static inline int ac_width(const ac_case *c)
{
    return (c->shape.heads + 2 * c->shape.kv_heads) * c->shape.dim;
}

static inline int ac_prefix(const ac_case *c, int row)
{
    return c->pos[row] / c->shape.block * c->shape.block;
}

// Offset in k and v of a token of a segment.
static inline size_t ac_token(const ac_case *c, int seg, int token, int kv_head)
{
    const int page = c->page_table[seg * c->max_pages + token / c->shape.page];
    return (((size_t)page * (size_t)c->shape.kv_heads + (size_t)kv_head) * (size_t)c->shape.page +
            (size_t)(token % c->shape.page)) *
           (size_t)c->shape.dim;
}

static inline size_t ac_page(const ac_case *c, int seg, int page, int kv_head)
{
    const int physical = c->page_table[seg * c->max_pages + page];
    return ((size_t)physical * (size_t)c->shape.kv_heads + (size_t)kv_head) * (size_t)c->shape.dim;
}

static inline int32_t *ac_permutation(kt_rng *rng, int count)
{
    int32_t *out = kt_ints((size_t)count + 1);
    for (int i = 0; i < count; i++) {
        const int j = kt_int(rng, 0, i);
        out[i] = out[j];
        out[j] = i;
    }
    return out;
}

static inline float *ac_poisoned(size_t count)
{
    float *out = kt_floats(count);
    for (size_t i = 0; i < count; i++)
        out[i] = NAN;
    return out;
}

// Keys, values and metadata of the tokens [0, tokens) of a segment.
static inline void ac_fill(ac_case *c, kt_rng *rng, int seg, int tokens)
{
    for (int token = 0; token < tokens; token++)
        for (int h = 0; h < c->shape.kv_heads; h++) {
            const size_t at = ac_token(c, seg, token, h);
            const size_t meta = ac_page(c, seg, token / c->shape.page, h);
            for (size_t i = 0; i < (size_t)c->shape.dim; i++) {
                c->k[at + i] = kt_normal(rng, 1.0f);
                c->v[at + i] = kt_normal(rng, 1.0f);
                const bool fresh = token % c->shape.page == 0;
                c->kmin[meta + i] = fresh ? c->k[at + i] : fminf(c->kmin[meta + i], c->k[at + i]);
                c->kmax[meta + i] = fresh ? c->k[at + i] : fmaxf(c->kmax[meta + i], c->k[at + i]);
            }
        }
}

static inline void ac_rows(ac_case *c, const ac_seg *segs, int32_t *slots)
{
    int row = 0, slot = 0;
    for (int s = 0; s < c->segs; s++) {
        const bool cached = segs[s].kind == KERN_SEG_FIRST || segs[s].kind == KERN_SEG_STEP;
        c->seg_row0[s] = row;
        c->seg_kind[s] = segs[s].kind;
        c->act_count[s] = segs[s].blocks * c->shape.block;
        for (int i = 0; i < segs[s].blocks * c->shape.block; i++, row++) {
            c->pos[row] = segs[s].first + i;
            c->row_seg[row] = s;
            c->act_rows[row] = row;
            c->cache_slot[row] = cached ? slots[slot++] : -1;
        }
        for (int l = 0; l < c->shape.lists; l++)
            c->list_count[s * c->shape.lists + l] = -1;
    }
    c->seg_row0[c->segs] = row;
}

static inline ac_case *ac_new(kt_rng *rng, ac_shape shape, const ac_seg *segs, int count,
                              int sparse_segs)
{
    ac_case *c = kt_alloc(1, sizeof *c);
    c->shape = shape;
    c->segs = count;
    c->sparse_segs = sparse_segs;
    c->scale = 1.0f / sqrtf((float)shape.dim);
    int used = 0;
    for (int s = 0; s < count; s++) {
        const int prefix = segs[s].first + (segs[s].blocks - 1) * shape.block;
        const int pages = (prefix + shape.page - 1) / shape.page;
        used += pages;
        c->rows += segs[s].blocks * shape.block;
        c->max_pages = pages > c->max_pages ? pages : c->max_pages;
    }
    c->max_pages += 2;
    c->pages = used + 3;
    c->slots = c->rows + 2;
    const size_t rows = (size_t)c->rows, n = (size_t)count;
    const size_t kv = (size_t)(c->pages * shape.kv_heads) * (size_t)shape.dim;
    c->pos = kt_ints(rows);
    c->row_state = kt_ints(rows);
    c->row_seg = kt_ints(rows);
    c->seg_row0 = kt_ints(n + 1);
    c->seg_kind = kt_ints(n);
    c->page_table = kt_ints(n * (size_t)c->max_pages);
    c->cache_slot = kt_ints(rows);
    c->act_rows = kt_ints(rows);
    c->act_count = kt_ints(n);
    c->list = kt_ints(n * (size_t)(shape.lists * c->max_pages));
    c->list_count = kt_ints(n * (size_t)shape.lists);
    c->qkv = kt_random(rng, rows * (size_t)ac_width(c), 1.0f);
    c->k = ac_poisoned(kv * (size_t)shape.page);
    c->v = ac_poisoned(kv * (size_t)shape.page);
    c->kmin = ac_poisoned(kv);
    c->kmax = ac_poisoned(kv);
    int32_t *slots = ac_permutation(rng, c->slots), *pages = ac_permutation(rng, c->pages);
    ac_rows(c, segs, slots);
    for (int s = 0, next = 0; s < count; s++) {
        const int prefix = ac_prefix(c, c->seg_row0[s + 1] - 1);
        for (int g = 0; g < c->max_pages; g++) {
            const bool in = g * shape.page < prefix;
            c->page_table[s * c->max_pages + g] = in ? pages[next++] : (int32_t)0x7fc0dead;
        }
        ac_fill(c, rng, s, prefix);
    }
    for (size_t i = 0; i < n * (size_t)(shape.lists * c->max_pages); i++)
        c->list[i] = 0x7fc0dead;
    rt_free(slots);
    rt_free(pages);
    return c;
}

static inline void ac_free(ac_case *c)
{
    void *all[] = {c->pos,
                   c->row_state,
                   c->row_seg,
                   c->seg_row0,
                   c->seg_kind,
                   c->page_table,
                   c->cache_slot,
                   c->act_rows,
                   c->act_count,
                   c->list,
                   c->list_count,
                   c->qkv,
                   c->k,
                   c->v,
                   c->kmin,
                   c->kmax,
                   c};
    for (size_t i = 0; i < KT_COUNT(all); i++)
        rt_free(all[i]);
}

// Keys or values in the type of the device's pages; NaN stays NaN.
static inline kern_buf *ac_upload_kv(kern_dev *dev, const float *data, size_t count)
{
    kern_buf *buf = kt_out(dev, kern_dev_kv_dtype(dev), count);
    KT_OK(kern_upload(&(kern_upload_args){
        .dst = buf, .src = data, .dtype = KERN_F32, .rows = 1, .cols = count, .stride = count}));
    return buf;
}

// Bounds in the type of the device's.
static inline void ac_upload_bounds(kern_dev *dev, const ac_case *c, size_t count, kern_kv *kv)
{
    if (kern_dev_bound_dtype(dev, c->shape.dim) == KERN_F32) {
        kv->kmin = kt_in_f32(dev, c->kmin, count);
        kv->kmax = kt_in_f32(dev, c->kmax, count);
        return;
    }
    uint8_t *low = kt_alloc(count, 1), *high = kt_alloc(count, 1);
    uint8_t *step = kt_alloc(count / KERN_BOUND_GROUP, 1);
    bd_narrow(c->kmin, c->kmax, count, low, high, step);
    kv->kmin = kt_in(dev, KERN_U8, low, count);
    kv->kmax = kt_in(dev, KERN_U8, high, count);
    kv->kstep = kt_in(dev, KERN_U8, step, count / KERN_BOUND_GROUP);
    rt_free(low);
    rt_free(high);
    rt_free(step);
}

// Selection in which segments of every kind scan for `top` pages.
static inline kern_page_select_args ac_select(kern_buf *score, ac_dev *d, int score_lists,
                                              int list0, int top)
{
    kern_page_select_args args = {.score = score,
                                  .batch = &d->batch,
                                  .score_lists = score_lists,
                                  .list0 = list0,
                                  .plan = &d->plan};
    for (int kind = 0; kind < KERN_SEG_KINDS; kind++)
        args.choice[kind].top = top;
    return args;
}

static inline ac_dev ac_upload(const ac_case *c, kern_dev *dev)
{
    const size_t rows = (size_t)c->rows, segs = (size_t)c->segs, width = (size_t)c->max_pages;
    const size_t lists = segs * (size_t)c->shape.lists;
    const size_t meta = (size_t)(c->pages * c->shape.kv_heads) * (size_t)c->shape.dim;
    ac_dev d = {.dev = dev};
    d.batch = (kern_batch){.rows = c->rows,
                           .segs = c->segs,
                           .sparse_rows = c->seg_row0[c->sparse_segs],
                           .sparse_segs = c->sparse_segs,
                           .scan_segs = c->sparse_segs,
                           .block = c->shape.block,
                           .page = c->shape.page,
                           .max_pages = c->max_pages,
                           .pos = kt_in_i32(dev, c->pos, rows),
                           .row_state = kt_in_i32(dev, c->row_state, rows),
                           .row_seg = kt_in_i32(dev, c->row_seg, rows),
                           .seg_row0 = kt_in_i32(dev, c->seg_row0, segs + 1),
                           .seg_kind = kt_in_i32(dev, c->seg_kind, segs),
                           .page_table = kt_in_i32(dev, c->page_table, segs * width),
                           .cache_slot = kt_in_i32(dev, c->cache_slot, rows)};
    d.plan = (kern_plan){.lists = c->shape.lists,
                         .act_cap = c->shape.block,
                         .act_rows = kt_in_i32(dev, c->act_rows, rows),
                         .act_count = kt_in_i32(dev, c->act_count, segs),
                         .pages = kt_in_i32(dev, c->list, lists * width),
                         .page_count = kt_in_i32(dev, c->list_count, lists)};
    d.kv = (kern_kv){.k = ac_upload_kv(dev, c->k, meta * (size_t)c->shape.page),
                     .v = ac_upload_kv(dev, c->v, meta * (size_t)c->shape.page),
                     .pages = c->pages,
                     .kv_heads = c->shape.kv_heads,
                     .head_dim = c->shape.dim};
    ac_upload_bounds(dev, c, meta, &d.kv);
    d.qkv = kt_in_f32(dev, c->qkv, rows * (size_t)ac_width(c));
    return d;
}

static inline void ac_release(ac_dev *d)
{
    const kern_buf *all[] = {d->batch.pos,
                             d->batch.row_state,
                             d->batch.row_seg,
                             d->batch.seg_row0,
                             d->batch.seg_kind,
                             d->batch.page_table,
                             d->batch.cache_slot,
                             d->plan.act_rows,
                             d->plan.act_count,
                             d->plan.pages,
                             d->plan.page_count,
                             d->kv.k,
                             d->kv.v,
                             d->kv.kmin,
                             d->kv.kmax,
                             d->kv.kstep,
                             d->qkv};
    for (size_t i = 0; i < KT_COUNT(all); i++)
        kern_buf_free((kern_buf *)(uintptr_t)all[i]);
}

#endif
