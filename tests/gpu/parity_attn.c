// SPDX-License-Identifier: Apache-2.0
// Attention with its page sums.
#include "tests/gpu/parity.h"

static const ac_shape shapes[] = {
    // block, page, heads, kv_heads, dim, lists
    {16, 16, 32, 8, 128, 1}, {16, 16, 32, 8, 128, 8}, {32, 16, 16, 8, 128, 1},
    {16, 16, 6, 2, 64, 2},   {8, 4, 6, 2, 64, 1},     {4, 32, 3, 3, 24, 3},
    {32, 64, 14, 2, 256, 1}, {16, 16, 40, 1, 64, 1},  {4, 128, 4, 4, 7, 1},
    {64, 16, 28, 4, 128, 1}, {16, 1, 8, 4, 128, 1},   {16, 16, 64, 8, 128, 1},
    {128, 16, 8, 2, 128, 1}, {16, 16, 4, 4, 128, 4},  {16, 8, 32, 8, 128, 8},
};

typedef struct attn_out {
    float *o, *lse, *page_lse, *out, *cache_o, *cache_lse;
    size_t heads, values, sums, slots, cached;
} attn_out;

// A cache of random parts; the first slot is of an empty prefix.
static void upload_cache(kern_dev *dev, const attn_out *out, size_t heads, kern_buf **o,
                         kern_buf **lse)
{
    kt_rng rng = {out->cached};
    float *values = kt_random(&rng, out->cached, 1.0f), *sums = kt_random(&rng, out->slots, 2.0f);
    for (size_t h = 0; h < heads; h++) {
        values[h] = NAN;
        sums[h] = -INFINITY;
    }
    *o = kt_in_f32(dev, values, out->cached);
    *lse = kt_in_f32(dev, sums, out->slots);
    rt_free(values);
    rt_free(sums);
}

// Segments 0, 2, ... measure pages, rows 0, 5, ... are being committed.
static attn_out run_attn(kern_dev *dev, const ac_case *c, bool measure)
{
    ac_dev d = ac_upload(c, dev);
    const size_t rows = (size_t)c->rows, segs = (size_t)c->segs, heads = (size_t)c->shape.heads;
    attn_out out = {.heads = rows * heads, .slots = (size_t)c->slots * heads};
    out.values = out.heads * (size_t)c->shape.dim;
    out.cached = out.slots * (size_t)c->shape.dim;
    int32_t *number = kt_ints(segs), *kv = kt_ints(rows);
    for (int s = 0; s < c->segs; s++)
        number[s] = s % 2 || c->seg_row0[s + 1] - c->seg_row0[s] > c->shape.block
                        ? -1
                        : d.batch.mass_segs++;
    for (int r = 0; r < c->rows; r++)
        kv[r] = r % 5 == 0 ? 7 : -1;
    out.sums = (size_t)(d.batch.mass_segs * c->shape.block) * heads * (size_t)c->max_pages;
    kern_buf *o = kt_out_f32(dev, out.values), *lse = kt_out_f32(dev, out.heads);
    kern_buf *sums = kt_out_f32(dev, out.sums), *bn = kt_in_i32(dev, number, segs);
    kern_buf *bk = kt_in_i32(dev, kv, rows);
    kern_buf *merged = kt_out(dev, kern_dev_weight_dtype(dev, KERN_BF16), out.values);
    kern_buf *cache_o, *cache_lse;
    upload_cache(dev, &out, heads, &cache_o, &cache_lse);
    d.batch.seg_mass = bn;
    d.batch.kv_slot = bk;
    KT_OK(kern_attn(dev, &(kern_attn_args){.qkv = d.qkv,
                                           .kv = d.kv,
                                           .batch = &d.batch,
                                           .plan = &d.plan,
                                           .heads = c->shape.heads,
                                           .scale = c->scale,
                                           .o = o,
                                           .lse = lse,
                                           .page_lse = measure ? sums : NULL,
                                           .cache_o = cache_o,
                                           .cache_lse = cache_lse,
                                           .out = merged}));
    out.o = kt_take(o, out.values);
    out.lse = kt_take(lse, out.heads);
    out.page_lse = kt_take(sums, out.sums);
    out.out = pt_take(merged, out.values);
    out.cache_o = kt_take(cache_o, out.cached);
    out.cache_lse = kt_take(cache_lse, out.slots);
    kern_buf *const bufs[] = {o, lse, sums, bn, bk, merged, cache_o, cache_lse};
    for (size_t i = 0; i < KT_COUNT(bufs); i++)
        kern_buf_free(bufs[i]);
    rt_free(number);
    rt_free(kv);
    ac_release(&d);
    return out;
}

static void free_out(attn_out *out)
{
    void *const all[] = {out->o, out->lse, out->page_lse, out->out, out->cache_o, out->cache_lse};
    for (size_t i = 0; i < KT_COUNT(all); i++)
        rt_free(all[i]);
}

// To what pages hold, of blocks too: a GPU rounds their keys and values as it reads them.
static void round_case(ac_case *c)
{
    const size_t width = (size_t)ac_width(c), queries = (size_t)(c->shape.heads * c->shape.dim);
    for (int r = 0; r < c->rows; r++)
        pt_round(c->qkv + (size_t)r * width + queries, width - queries);

    const size_t kv =
        (size_t)(c->pages * c->shape.kv_heads) * (size_t)(c->shape.dim * c->shape.page);
    pt_round(c->k, kv);
    pt_round(c->v, kv);
}

static void compare(const char *what, const attn_out *cpu, attn_out *gpu, int mode)
{
    char name[120];
    // Averages of values of size 1, and log-sum-exps of a few units: relative to 1.
    const double tolerance = mode == PT_F32 ? pt_tolerance : pt_narrow;
    const double merged = mode == PT_F32 ? pt_tolerance : 3 * 0x1p-8; // weights, block, result
    for (size_t i = 0; i < cpu->sums; i++) // the CPU leaves -inf where nothing was read
        if (cpu->page_lse[i] == -INFINITY)
            gpu->page_lse[i] = -INFINITY;
    const struct {
        const char *name;
        const float *cpu, *gpu;
        size_t count;
        double tolerance;
    } parts[] = {{"o", cpu->o, gpu->o, cpu->values, tolerance},
                 {"lse", cpu->lse, gpu->lse, cpu->heads, tolerance},
                 {"page_lse", cpu->page_lse, gpu->page_lse, cpu->sums, 2 * tolerance},
                 {"out", cpu->out, gpu->out, cpu->values, merged},
                 {"cache o", cpu->cache_o, gpu->cache_o, cpu->cached, tolerance},
                 {"cache lse", cpu->cache_lse, gpu->cache_lse, cpu->slots, tolerance}};
    for (size_t i = 0; i < KT_COUNT(parts); i++) {
        snprintf(name, sizeof name, "%s: %s, %s", parts[i].name, what, pt_mode_name[mode]);
        pt_near(name, parts[i].cpu, parts[i].gpu, parts[i].count, 1.0, parts[i].tolerance);
    }
}

// The last block of the batch loses its last rows.
static void cut_short(ac_case *c)
{
    const int cut = 3;
    c->rows -= cut;
    c->seg_row0[c->segs] -= cut;
    int *count = &c->act_count[c->segs - 1];
    const int32_t *rows = c->act_rows + c->seg_row0[c->segs - 1];
    while (*count > 0 && rows[*count - 1] >= c->rows)
        --*count;
}

static void check_case(const char *what, const ac_case *c, bool measure)
{
    attn_out cpu = run_attn(pt_cpu, c, measure);
    for (int mode = pt_quick ? PT_BF16 : 0; mode < PT_MODES; mode++) {
        attn_out gpu = run_attn(pt_gpu[mode], c, measure);
        attn_out again = run_attn(pt_gpu[mode], c, measure);
        KT_SAME(gpu.o, again.o, gpu.values, what);
        KT_SAME(gpu.lse, again.lse, gpu.heads, what);
        KT_SAME(gpu.out, again.out, gpu.values, what);
        compare(what, &cpu, &gpu, mode);
        free_out(&gpu);
        free_out(&again);
    }
    free_out(&cpu);
}

static void check_shapes(bool measure)
{
    kt_rng rng = {measure ? 21u : 20u};
    for (size_t i = 0; i < KT_COUNT(shapes); i++)
        for (int trial = pt_quick ? 1 : 0; trial < (pt_quick ? 2 : 3); trial++) {
            ac_case *c = pt_case(&rng, shapes[i], pt_quick ? 1 : 3, trial > 0);
            round_case(c);
            if (trial < 2)
                pt_random_plan(&rng, c);
            if (i % 3 == 0 && trial == 1 && c->shape.block > 4)
                cut_short(c);
            char what[80];
            snprintf(what, sizeof what, "shape %zu, trial %d", i, trial);
            check_case(what, c, measure);
            ac_free(c);
        }
}

void pt_test_attn(void **state)
{
    (void)state;
    check_shapes(false);
}

void pt_test_page_lse(void **state)
{
    (void)state;
    check_shapes(true);
}

// Prompts, whose many tiles of a KV head are worked on side by side, beside single blocks, empty
// prefixes and segments whose tiles no bundle divides.
void pt_test_attn_sides(void **state)
{
    (void)state;
    static const ac_shape wide[] = {{16, 16, 16, 4, 128, 1},
                                    {32, 8, 7, 1, 128, 1},
                                    {32, 16, 21, 3, 64, 3},
                                    {16, 16, 32, 2, 64, 1}};
    kt_rng rng = {23};
    for (size_t i = 0; i < (pt_quick ? 2 : KT_COUNT(wide)); i++) {
        const int block = wide[i].block;
        const ac_seg segs[] = {{KERN_SEG_STEP, 21 * block, 1},  {KERN_SEG_PREFILL, 75 * block, 21},
                               {KERN_SEG_FIRST, 30 * block, 2}, {KERN_SEG_PREFILL, 0, 17},
                               {KERN_SEG_COMMIT, 5 * block, 1}, {KERN_SEG_PREFILL, 13 * block, 9}};
        ac_case *c = ac_new(&rng, wide[i], segs, (int)KT_COUNT(segs), 1);
        round_case(c);
        pt_random_plan(&rng, c);
        char what[40];
        snprintf(what, sizeof what, "sides, shape %zu", i);
        check_case(what, c, i == 0);
        cut_short(c);
        check_case(what, c, false);
        ac_free(c);
    }
}

// Long prefixes beside short and empty ones: tiles that many workers share, and workers
// that take many tiles.
void pt_test_attn_shares(void **state)
{
    (void)state;
    kt_rng rng = {22};
    for (int round = 0; round < (pt_quick ? 1 : 4); round++) {
        const ac_shape shape = {.block = round % 2 ? 32 : 16,
                                .page = 16,
                                .heads = 16,
                                .kv_heads = 4,
                                .dim = round < 2 ? 128 : 64,
                                .lists = round == 1 ? 4 : 1};
        ac_seg segs[40];
        for (int s = 0; s < (int)KT_COUNT(segs); s++)
            segs[s] = (ac_seg){s < 20 ? KERN_SEG_STEP : KERN_SEG_FIRST,
                               s % 13 == 0 ? 6400 : kt_int(&rng, 0, 3) * shape.block,
                               s < 20 ? 1 : 1 + s % 2};
        ac_case *c = ac_new(&rng, shape, segs, (int)KT_COUNT(segs), 20);
        round_case(c);
        pt_random_plan(&rng, c);
        char what[40];
        snprintf(what, sizeof what, "shares, round %d", round);
        check_case(what, c, round == 0);
        ac_free(c);
    }
}
