// SPDX-License-Identifier: Apache-2.0
// Prefix attention with its page sums, and the merge with the block.
#include "tests/gpu/parity.h"

static const ac_shape shapes[] = {
    // block, page, heads, kv_heads, dim, lists
    {16, 16, 32, 8, 128, 1}, {16, 16, 32, 8, 128, 8}, {32, 16, 16, 8, 128, 1},
    {16, 16, 6, 2, 64, 2},   {8, 4, 6, 2, 64, 1},     {4, 32, 3, 3, 24, 3},
    {32, 64, 14, 2, 256, 1}, {16, 16, 40, 1, 64, 1},  {4, 128, 4, 4, 7, 1},
    {64, 16, 28, 4, 128, 1}, {16, 1, 8, 4, 128, 1},   {16, 16, 64, 8, 128, 1},
};

typedef struct prefix_out {
    float *o, *lse, *page_lse;
    size_t heads, values, sums;
} prefix_out;

// Segments 0, 2, ... measure pages, rows 0, 5, ... are being committed.
static prefix_out run_prefix(kern_dev *dev, const ac_case *c, bool measure)
{
    ac_dev d = ac_upload(c, dev);
    const size_t rows = (size_t)c->rows, segs = (size_t)c->segs;
    prefix_out out = {.heads = rows * (size_t)c->shape.heads};
    out.values = out.heads * (size_t)c->shape.dim;
    int32_t *number = kt_ints(segs), *kv = kt_ints(rows);
    for (int s = 0; s < c->segs; s++)
        number[s] = s % 2 || c->seg_row0[s + 1] - c->seg_row0[s] > c->shape.block
                        ? -1
                        : d.batch.mass_segs++;
    for (int r = 0; r < c->rows; r++)
        kv[r] = r % 5 == 0 ? 7 : -1;
    out.sums = (size_t)(d.batch.mass_segs * c->shape.block) * (size_t)c->shape.heads *
               (size_t)c->max_pages;
    kern_buf *o = kt_out_f32(dev, out.values), *lse = kt_out_f32(dev, out.heads);
    kern_buf *sums = kt_out_f32(dev, out.sums), *bn = kt_in_i32(dev, number, segs);
    kern_buf *bk = kt_in_i32(dev, kv, rows);
    d.batch.seg_mass = bn;
    d.batch.kv_slot = bk;
    KT_OK(kern_attn_prefix(dev, &(kern_attn_prefix_args){.q = d.qkv,
                                                         .stride = ac_width(c),
                                                         .kv = d.kv,
                                                         .batch = &d.batch,
                                                         .plan = &d.plan,
                                                         .heads = c->shape.heads,
                                                         .scale = c->scale,
                                                         .o = o,
                                                         .lse = lse,
                                                         .page_lse = measure ? sums : NULL}));
    out.o = kt_take(o, out.values);
    out.lse = kt_take(lse, out.heads);
    out.page_lse = kt_take(sums, out.sums);
    kern_buf *const bufs[] = {o, lse, sums, bn, bk};
    for (size_t i = 0; i < KT_COUNT(bufs); i++)
        kern_buf_free(bufs[i]);
    rt_free(number);
    rt_free(kv);
    ac_release(&d);
    return out;
}

static void free_prefix(prefix_out *out)
{
    rt_free(out->o);
    rt_free(out->lse);
    rt_free(out->page_lse);
}

static void round_case(ac_case *c)
{
    const size_t kv =
        (size_t)(c->pages * c->shape.kv_heads) * (size_t)(c->shape.dim * c->shape.page);
    pt_round(c->k, kv);
    pt_round(c->v, kv);
}

static void compare_prefix(const char *what, const prefix_out *cpu, const prefix_out *gpu, int mode)
{
    char name[120];
    const double tolerance = mode == PT_F32 ? pt_tolerance : pt_narrow;
    snprintf(name, sizeof name, "o: %s, %s", what, pt_mode_name[mode]);
    // Averages of values of size 1: relative to 1.
    pt_near(name, cpu->o, gpu->o, cpu->values, 1.0, tolerance);
    snprintf(name, sizeof name, "lse: %s, %s", what, pt_mode_name[mode]);
    pt_near(name, cpu->lse, gpu->lse, cpu->heads, 1.0, tolerance);
    snprintf(name, sizeof name, "page_lse: %s, %s", what, pt_mode_name[mode]);
    pt_near(name, cpu->page_lse, gpu->page_lse, cpu->sums, 1.0, 2 * tolerance);
}

static void check_prefix(bool measure)
{
    kt_rng rng = {measure ? 21u : 20u};
    for (size_t i = 0; i < KT_COUNT(shapes); i++)
        for (int trial = pt_quick ? 1 : 0; trial < (pt_quick ? 2 : 3); trial++) {
            ac_case *c = pt_case(&rng, shapes[i], pt_quick ? 1 : 3, trial > 0);
            round_case(c);
            if (trial < 2)
                pt_random_plan(&rng, c);
            char what[80];
            snprintf(what, sizeof what, "shape %zu, trial %d", i, trial);
            prefix_out cpu = run_prefix(pt_cpu, c, measure);
            for (int mode = pt_quick ? PT_BF16 : 0; mode < PT_MODES; mode++) {
                prefix_out gpu = run_prefix(pt_gpu[mode], c, measure);
                prefix_out again = run_prefix(pt_gpu[mode], c, measure);
                compare_prefix(what, &cpu, &gpu, mode);
                KT_SAME(gpu.o, again.o, gpu.values, what);
                KT_SAME(gpu.lse, again.lse, gpu.heads, what);
                free_prefix(&gpu);
                free_prefix(&again);
            }
            free_prefix(&cpu);
            ac_free(c);
        }
}

void pt_test_attn_prefix(void **state)
{
    (void)state;
    check_prefix(false);
}

void pt_test_page_lse(void **state)
{
    (void)state;
    check_prefix(true);
}

typedef struct merge_in {
    float *o, *lse, *cache_o, *cache_lse;
} merge_in;

typedef struct merge_out {
    float *out, *cache_o, *cache_lse;
} merge_out;

static merge_out run_merge(kern_dev *dev, const ac_case *c, const merge_in *in)
{
    ac_dev d = ac_upload(c, dev);
    const size_t heads = (size_t)c->rows * (size_t)c->shape.heads, dim = (size_t)c->shape.dim;
    const size_t slots = (size_t)c->slots * (size_t)c->shape.heads;
    kern_buf *o = kt_in_f32(dev, in->o, heads * dim), *lse = kt_in_f32(dev, in->lse, heads);
    kern_buf *co = kt_in_f32(dev, in->cache_o, slots * dim);
    kern_buf *cl = kt_in_f32(dev, in->cache_lse, slots), *out = kt_out_f32(dev, heads * dim);
    KT_OK(kern_attn_merge(dev, &(kern_attn_merge_args){.qkv = d.qkv,
                                                       .batch = &d.batch,
                                                       .plan = &d.plan,
                                                       .heads = c->shape.heads,
                                                       .kv_heads = c->shape.kv_heads,
                                                       .head_dim = c->shape.dim,
                                                       .scale = c->scale,
                                                       .o = o,
                                                       .lse = lse,
                                                       .cache_o = co,
                                                       .cache_lse = cl,
                                                       .out = out}));
    const merge_out result = {kt_take(out, heads * dim), kt_take(co, slots * dim),
                              kt_take(cl, slots)};
    kern_buf *const bufs[] = {o, lse, co, cl, out};
    for (size_t i = 0; i < KT_COUNT(bufs); i++)
        kern_buf_free(bufs[i]);
    ac_release(&d);
    return result;
}

// A row without a prefix: its o is never read.
static void empty_rows(const ac_case *c, merge_in *in)
{
    for (int row = 0; row < c->rows; row += 7)
        for (int h = 0; h < c->shape.heads; h++) {
            const size_t at = (size_t)(row * c->shape.heads + h);
            in->lse[at] = -INFINITY;
            for (int j = 0; j < c->shape.dim; j++)
                in->o[at * (size_t)c->shape.dim + (size_t)j] = NAN;
        }
}

void pt_test_attn_merge(void **state)
{
    (void)state;
    kt_rng rng = {22};
    for (size_t i = 0; i < KT_COUNT(shapes); i++) {
        ac_case *c = pt_case(&rng, shapes[i], 3, i % 2);
        pt_random_plan(&rng, c);
        if (i % 3 == 0 && c->shape.block > 4) { // the last block is cut short
            const int cut = 3;
            c->rows -= cut;
            c->seg_row0[c->segs] -= cut;
            int *count = &c->act_count[c->segs - 1];
            const int32_t *rows = c->act_rows + c->seg_row0[c->segs - 1];
            while (*count > 0 && rows[*count - 1] >= c->rows)
                --*count;
        }
        const size_t heads = (size_t)c->rows * (size_t)c->shape.heads, dim = (size_t)c->shape.dim;
        const size_t slots = (size_t)c->slots * (size_t)c->shape.heads;
        merge_in in = {kt_random(&rng, heads * dim, 1.0f), kt_random(&rng, heads, 2.0f),
                       kt_random(&rng, slots * dim, 1.0f), kt_random(&rng, slots, 2.0f)};
        empty_rows(c, &in);
        merge_out cpu = run_merge(pt_cpu, c, &in), gpu = run_merge(pt_gpu[PT_BF16], c, &in);
        pt_near("merged", cpu.out, gpu.out, heads * dim, 1.0, pt_tolerance);
        pt_near("cache o", cpu.cache_o, gpu.cache_o, slots * dim, 1.0, 0);
        pt_near("cache lse", cpu.cache_lse, gpu.cache_lse, slots, 1.0, 0);
        void *const arrays[] = {in.o,    in.lse,      in.cache_o,    in.cache_lse, cpu.out,
                                gpu.out, cpu.cache_o, cpu.cache_lse, gpu.cache_o,  gpu.cache_lse};
        for (size_t j = 0; j < KT_COUNT(arrays); j++)
            rt_free(arrays[j]);
        ac_free(c);
    }
}
