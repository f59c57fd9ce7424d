// SPDX-License-Identifier: Apache-2.0
// KV pages and the page plan: pages and bounds, locality, active sets, scores, lists,
// attention mass, counters and checksums. Decisions are compared from the same
// numbers, ties among them, and must be equal.
#include "tests/gpu/parity.h"

// Sequences of page, block and head shapes, odd ones among them.
static const ac_shape shapes[] = {
    // block, page, heads, kv_heads, dim, lists
    {16, 16, 32, 8, 128, 1}, {16, 16, 32, 8, 128, 8}, {8, 4, 6, 2, 64, 1},
    {4, 32, 3, 3, 24, 3},    {32, 64, 14, 2, 256, 1}, {16, 16, 40, 1, 64, 1},
};

ac_case *pt_case(kt_rng *rng, ac_shape shape, int steps, bool dense_segment)
{
    ac_seg segs[8];
    int n = 0;
    for (int i = 0; i < steps; i++)
        segs[n++] = (ac_seg){
            i % 3 == 2 ? KERN_SEG_FIRST : KERN_SEG_STEP,
            kt_int(rng, 0, i == 0 && !pt_quick ? 3000 / shape.block : 40) * shape.block, 1};
    if (dense_segment) {
        segs[n++] = (ac_seg){KERN_SEG_PREFILL, 3 * shape.block, 5};
        segs[n++] = (ac_seg){KERN_SEG_COMMIT, 17 * shape.block, 1};
        segs[n++] = (ac_seg){KERN_SEG_FIRST, 9 * shape.block, 2};
    }
    ac_case *c = ac_new(rng, shape, segs, n, steps);
    for (int r = 0; r < c->rows; r++)
        c->row_state[r] = kt_int(rng, 0, 3);
    return c;
}

// A prefix of so many pages that a row is cut into pieces of several runs, and their lists are
// merged twice where a list has more than 16 heads.
static ac_case *wide_case(kt_rng *rng, int heads)
{
    enum { PAGE = 4, PAGES = 13000 };
    const ac_shape shape = {PAGE, PAGE, heads, 1, 64, 1};
    const ac_seg segs[] = {{KERN_SEG_STEP, PAGES * PAGE, 1}, {KERN_SEG_STEP, 700 * PAGE, 1}};
    return ac_new(rng, shape, segs, 2, 2);
}

// Some rows active, ascending lists that hold the last page.
void pt_random_plan(kt_rng *rng, ac_case *c)
{
    for (int s = 0; s < c->sparse_segs; s++) {
        const int first = c->seg_row0[s], end = c->seg_row0[s + 1];
        int count = 0;
        for (int r = first; r < end; r++)
            if (kt_int(rng, 0, 2) == 0)
                c->act_rows[first + count++] = r;
        c->act_count[s] = count;
        const int pages = (ac_prefix(c, first) + c->shape.page - 1) / c->shape.page;
        for (int l = 0; l < c->shape.lists; l++) {
            const int entry = s * c->shape.lists + l;
            int n = 0;
            for (int g = 0; g < pages; g++)
                if (g == pages - 1 || kt_int(rng, 0, 3) == 0)
                    c->list[entry * c->max_pages + n++] = g;
            c->list_count[entry] = n;
        }
    }
}

// ---- pages -----------------------------------------------------------------------

typedef struct kv_out {
    float *k, *v, *kmin, *kmax;
} kv_out;

// Bounds of any type as f32.
static void take_bounds(const kern_kv *kv, size_t count, kv_out *out)
{
    if (!kv->kstep) {
        out->kmin = kt_take(kv->kmin, count);
        out->kmax = kt_take(kv->kmax, count);
        return;
    }
    uint8_t *low = kt_take(kv->kmin, count), *high = kt_take(kv->kmax, count);
    uint8_t *step = kt_take(kv->kstep, count / KERN_BOUND_GROUP);
    out->kmin = kt_floats(count);
    out->kmax = kt_floats(count);
    for (size_t i = 0; i < count; i++) {
        out->kmin[i] = bd_wide(low[i], step[i / KERN_BOUND_GROUP]);
        out->kmax[i] = bd_wide(high[i], step[i / KERN_BOUND_GROUP]);
    }
    rt_free(low);
    rt_free(high);
    rt_free(step);
}

// K or V of any type as f32.
static float *take_kv(const kern_buf *buf, size_t count)
{
    if (kern_buf_dtype(buf) == KERN_F32)
        return kt_take(buf, count);
    uint16_t *narrow = kt_take(buf, count);
    float *out = kt_floats(count);
    for (size_t i = 0; i < count; i++) {
        const uint32_t bits = (uint32_t)narrow[i] << 16;
        memcpy(&out[i], &bits, sizeof bits);
    }
    rt_free(narrow);
    return out;
}

static kv_out run_kv_write(kern_dev *dev, const ac_case *c, const int32_t *slots)
{
    ac_dev d = ac_upload(c, dev);
    const size_t rows = (size_t)c->rows;
    const size_t meta = (size_t)(c->pages * c->shape.kv_heads) * (size_t)c->shape.dim;
    kern_buf *slot = kt_in_i32(dev, slots, rows);
    d.batch.kv_slot = slot;
    KT_OK(kern_kv_write(dev, &(kern_kv_write_args){d.qkv, d.kv, &d.batch, c->shape.heads}));
    kv_out out = {take_kv(d.kv.k, meta * (size_t)c->shape.page),
                  take_kv(d.kv.v, meta * (size_t)c->shape.page), NULL, NULL};
    take_bounds(&d.kv, meta, &out);
    kern_buf_free(slot);
    ac_release(&d);
    return out;
}

static void free_kv(kv_out *out)
{
    rt_free(out->k);
    rt_free(out->v);
    rt_free(out->kmin);
    rt_free(out->kmax);
}

// Bounds in 8 bits, which are of all keys of a page: those of this batch, and those that
// the page held before its first row of the batch.
static void expect_narrow(const ac_case *c, const int32_t *slots, float *low, float *high)
{
    const int page = c->shape.page, dim = c->shape.dim, kv_heads = c->shape.kv_heads;
    const int heads = c->shape.heads;
    bool *seen = kt_alloc((size_t)c->pages, sizeof *seen);
    for (int r = 0; r < c->rows; r++) {
        if (slots[r] < 0)
            continue;
        const int mine = slots[r] / page, offset = slots[r] % page;
        for (int h = 0; h < kv_heads; h++)
            for (int i = 0; i < dim; i++) {
                const int meta = (mine * kv_heads + h) * dim + i;
                if (!seen[mine] || offset == 0) {
                    low[meta] = INFINITY;
                    high[meta] = -INFINITY;
                }
                for (int o = 0; !seen[mine] && o < offset; o++) {
                    const float old = c->k[((mine * kv_heads + h) * page + o) * dim + i];
                    low[meta] = fminf(low[meta], old);
                    high[meta] = fmaxf(high[meta], old);
                }
                const float key = c->qkv[r * ac_width(c) + (heads + h) * dim + i];
                low[meta] = fminf(low[meta], key);
                high[meta] = fmaxf(high[meta], key);
            }
        seen[mine] = true;
    }
    bd_round(low, high, (size_t)(c->pages * kv_heads * dim));
    rt_free(seen);
}

void pt_test_kv_write(void **state)
{
    (void)state;
    kt_rng rng = {5};
    for (size_t i = 0; i < KT_COUNT(shapes); i++) {
        ac_case *c = pt_case(&rng, shapes[i], 2, true);
        const int page = c->shape.page;
        const size_t meta = (size_t)(c->pages * c->shape.kv_heads) * (size_t)c->shape.dim;
        const size_t values = meta * (size_t)page;
        // Every sum in bf16 is exact, so that both sides hold the same values.
        pt_round(c->qkv, (size_t)(c->rows * ac_width(c)));
        pt_round(c->k, values);
        pt_round(c->v, values);
        if (c->shape.dim % KERN_BOUND_GROUP == 0) // so that pages not written are equal
            bd_round(c->kmin, c->kmax, meta);
        int32_t *slots = kt_ints((size_t)c->rows), *order = ac_permutation(&rng, c->pages);
        for (int r = 0; r < c->rows; r++) // runs of rows, begun inside a page
            slots[r] = r % 11 == 10 ? -1 : order[(r + 3) / page % c->pages] * page + (r + 3) % page;
        kv_out cpu = run_kv_write(pt_cpu, c, slots);
        for (int mode = 0; mode < PT_MODES; mode++) {
            kv_out gpu = run_kv_write(pt_gpu[mode], c, slots);
            if (kern_dev_bound_dtype(pt_gpu[mode], c->shape.dim) == KERN_U8)
                expect_narrow(c, slots, cpu.kmin, cpu.kmax);
            pt_near("k", cpu.k, gpu.k, values, 1, 0);
            pt_near("v", cpu.v, gpu.v, values, 1, 0);
            pt_near("kmin", cpu.kmin, gpu.kmin, meta, 1, 0);
            pt_near("kmax", cpu.kmax, gpu.kmax, meta, 1, 0);
            free_kv(&gpu);
        }
        free_kv(&cpu);
        rt_free(slots);
        rt_free(order);
        ac_free(c);
    }
}

// ---- locality and active sets -----------------------------------------------------

void pt_test_locality(void **state)
{
    (void)state;
    kt_rng rng = {6};
    for (size_t i = 0; i < KT_COUNT(shapes); i++) {
        ac_case *c = pt_case(&rng, shapes[i], 3, true);
        const size_t rows = (size_t)c->rows, stride = (size_t)ac_width(c);
        const size_t cols = (size_t)(c->shape.heads * c->shape.dim);
        float *before = kt_random(&rng, (size_t)c->slots * cols, 1.0f);
        for (size_t row = 0; row < rows; row += 2) // every other row is the same but for rounding
            for (size_t col = 0; c->cache_slot[row] >= 0 && col < cols; col++)
                before[(size_t)c->cache_slot[row] * cols + col] =
                    c->qkv[row * stride + col] * 1.00001f;
        float *delta[2], *prev[2];
        for (int side = 0; side < 2; side++) {
            kern_dev *dev = side ? pt_gpu[PT_BF16] : pt_cpu;
            ac_dev d = ac_upload(c, dev);
            kern_buf *p = kt_in_f32(dev, before, (size_t)c->slots * cols);
            kern_buf *out = kt_out_f32(dev, rows);
            KT_OK(kern_locality(
                dev, &(kern_locality_args){d.qkv, p, out, &d.batch, (int)cols, (int)stride, 0.5f}));
            delta[side] = kt_take(out, rows);
            prev[side] = kt_take(p, (size_t)c->slots * cols);
            kern_buf_free(p);
            kern_buf_free(out);
            ac_release(&d);
        }
        for (size_t row = 0; row < rows; row += 2)
            assert_true(delta[0][row] == 0.0f && delta[1][row] == 0.0f);
        pt_near("delta", delta[0], delta[1], rows, 1e-3, pt_tolerance);
        pt_near("prev", prev[0], prev[1], (size_t)c->slots * cols, 1, 0);
        for (int side = 0; side < 2; side++) {
            rt_free(delta[side]);
            rt_free(prev[side]);
        }
        rt_free(before);
        ac_free(c);
    }
}

typedef struct plan_out {
    int32_t *act_rows, *act_count, *pages, *page_count;
} plan_out;

static plan_out take_plan(const ac_case *c, const ac_dev *d)
{
    const size_t lists = (size_t)(c->segs * c->shape.lists);
    return (plan_out){
        kt_take(d->plan.act_rows, (size_t)c->rows), kt_take(d->plan.act_count, (size_t)c->segs),
        kt_take(d->plan.pages, lists * (size_t)c->max_pages), kt_take(d->plan.page_count, lists)};
}

static void same_plans(plan_out *cpu, plan_out *gpu, const ac_case *c)
{
    const size_t lists = (size_t)(c->segs * c->shape.lists);
    pt_same("act_count", cpu->act_count, gpu->act_count, (size_t)c->segs);
    pt_same("act_rows", cpu->act_rows, gpu->act_rows, (size_t)c->rows);
    pt_same("page_count", cpu->page_count, gpu->page_count, lists);
    pt_same("pages", cpu->pages, gpu->pages, lists * (size_t)c->max_pages);
    plan_out *const both[] = {cpu, gpu};
    for (int i = 0; i < 2; i++) {
        rt_free(both[i]->act_count);
        rt_free(both[i]->act_rows);
        rt_free(both[i]->page_count);
        rt_free(both[i]->pages);
    }
}

void pt_test_active(void **state)
{
    (void)state;
    kt_rng rng = {7};
    for (int trial = 0; trial < 60; trial++) {
        ac_case *c = pt_case(&rng, shapes[trial % 6], 3, trial % 2);
        float *delta = kt_floats((size_t)c->rows);
        for (int r = 0; r < c->rows; r++) // many ties
            delta[r] = (float)kt_int(&rng, 0, 5);
        const kern_active_rule rule = (kern_active_rule)(trial / 6 % 5);
        const float share = (float)kt_int(&rng, 0, 8) * 0.125f;
        c->seg_kind[1] = trial % 4 ? KERN_SEG_STEP : KERN_SEG_REST;
        const int k = kt_int(&rng, 0, 6);
        plan_out out[2];
        for (int side = 0; side < 2; side++) {
            kern_dev *dev = side ? pt_gpu[PT_BF16] : pt_cpu;
            ac_dev d = ac_upload(c, dev);
            kern_buf *change = kt_in_f32(dev, delta, (size_t)c->rows);
            KT_OK(kern_active(dev, &(kern_active_args){&d.batch, change, rule, k, share, &d.plan}));
            out[side] = take_plan(c, &d);
            kern_buf_free(change);
            ac_release(&d);
        }
        same_plans(&out[0], &out[1], c);
        rt_free(delta);
        ac_free(c);
    }
}

// ---- scores and lists ----------------------------------------------------------------

static float *run_score(kern_dev *dev, const ac_case *c, int score_lists, int list0, size_t *count)
{
    ac_dev d = ac_upload(c, dev);
    *count = (size_t)(c->sparse_segs * score_lists) * (size_t)(c->shape.block * c->max_pages);
    kern_buf *score = kt_out_f32(dev, *count);
    KT_OK(kern_page_score(dev, &(kern_page_score_args){.q = d.qkv,
                                                       .stride = ac_width(c),
                                                       .kv = d.kv,
                                                       .batch = &d.batch,
                                                       .plan = &d.plan,
                                                       .heads = c->shape.heads,
                                                       .scale = c->scale,
                                                       .score_lists = score_lists,
                                                       .list0 = list0,
                                                       .score = score}));
    float *out = kt_take(score, *count);
    kern_buf_free(score);
    ac_release(&d);
    return out;
}

void pt_test_page_score(void **state)
{
    (void)state;
    kt_rng rng = {8};
    for (size_t i = 0; i < KT_COUNT(shapes); i++) {
        ac_case *c = pt_case(&rng, shapes[i], 4, i % 2);
        pt_random_plan(&rng, c);
        if (c->shape.dim % KERN_BOUND_GROUP == 0)
            bd_round(c->kmin, c->kmax, (size_t)(c->pages * c->shape.kv_heads * c->shape.dim));
        const int lists[] = {1, c->shape.kv_heads, c->shape.kv_heads + 3};
        for (size_t l = 0; l < KT_COUNT(lists); l++) {
            size_t count;
            const int list0 = lists[l] > c->shape.kv_heads ? 2 : 0;
            float *cpu = run_score(pt_cpu, c, lists[l], list0, &count);
            for (int mode = 0; mode < PT_MODES; mode++) {
                // Bounds of size 10 and more, so e^b has their rounding; on tensor cores
                // queries are rounded to f16, 128 of them at 2^-12 each.
                const bool narrow = kern_dev_bound_dtype(pt_gpu[mode], c->shape.dim) == KERN_U8;
                float *gpu = run_score(pt_gpu[mode], c, lists[l], list0, &count);
                pt_near("score", cpu, gpu, count, 1e-6, narrow ? 5e-3 : 1e-4);
                rt_free(gpu);
            }
            rt_free(cpu);
        }
        ac_free(c);
    }
}

static void fill_kept(kt_rng *rng, const ac_case *c, int cap, int32_t *pages, int32_t *count)
{
    for (int e = 0; e < c->segs * c->shape.lists; e++) {
        int n = 0;
        for (int g = 0; g < c->max_pages && n < cap; g++)
            if (kt_int(rng, 0, 9) == 0)
                pages[e * cap + n++] = g;
        count[e] = n;
    }
}

// Selection from given scores, with ties, kept lists and kinds that do not scan.
void pt_test_page_select(void **state)
{
    (void)state;
    kt_rng rng = {9};
    enum { CAP = 40 };
    for (int trial = 0; trial < 46; trial++) { // the last with more equal scores than are compared
        ac_case *c =
            trial < 40 ? pt_case(&rng, shapes[trial % 6], 4, trial % 2) : wide_case(&rng, 4);
        pt_random_plan(&rng, c);
        const size_t segs = (size_t)c->segs, lists = segs * (size_t)c->shape.lists;
        const size_t count =
            (size_t)(c->sparse_segs * c->shape.lists) * (size_t)(c->shape.block * c->max_pages);
        float *score = kt_floats(count);
        for (size_t j = 0; j < count; j++)
            score[j] = trial % 3 ? kt_uniform(&rng, 0, 1)
                                 : (float)kt_int(&rng, 0, trial < 40 ? 4 : 1) * 0.25f;
        int32_t *slot = ac_permutation(&rng, c->segs);
        int32_t *pages = kt_ints(lists * CAP), *held = kt_ints(lists);
        fill_kept(&rng, c, CAP, pages, held);
        const int top = trial % 8 == 7 ? kt_int(&rng, 500, 700) : kt_int(&rng, 1, 30);
        plan_out out[2];
        for (int side = 0; side < 2; side++) {
            kern_dev *dev = side ? pt_gpu[PT_BF16] : pt_cpu;
            ac_dev d = ac_upload(c, dev);
            kern_kept_lists kept = {kt_in_i32(dev, pages, lists * CAP), kt_in_i32(dev, held, lists),
                                    c->shape.lists, CAP};
            kern_buf *s = kt_in_f32(dev, score, count), *request = kt_in_i32(dev, slot, segs);
            d.batch.seg_slot = request;
            kern_page_select_args args = ac_select(s, &d, c->shape.lists, 0, top);
            args.kept = trial % 4 ? &kept : NULL;
            for (int kind = 0; kind < KERN_SEG_KINDS; kind++)
                args.choice[kind].kept = trial % 4 == 1;
            if (trial % 4 == 2) { // nobody scans
                d.batch.scan_segs = 0;
                for (int kind = 0; kind < KERN_SEG_KINDS; kind++)
                    args.choice[kind] = (kern_page_choice){0, true, 0};
            }
            KT_OK(kern_page_select(dev, &args));
            out[side] = take_plan(c, &d);
            kern_buf_free(kept.pages);
            kern_buf_free(kept.count);
            kern_buf_free(s);
            kern_buf_free(request);
            ac_release(&d);
        }
        same_plans(&out[0], &out[1], c);
        rt_free(score);
        rt_free(slot);
        rt_free(pages);
        rt_free(held);
        ac_free(c);
    }
}

// The lists and counters of page_plan, or of page_score and page_select.
static plan_out plan_pages(kern_dev *dev, const ac_case *c, const kern_page_choice *choice,
                           bool at_once, int write_rows, int64_t *counts)
{
    ac_dev d = ac_upload(c, dev);
    const size_t words = (size_t)c->segs * KERN_COUNT_N;
    kern_buf *score = kt_out_f32(dev, (size_t)(c->segs * c->shape.lists) *
                                          (size_t)(c->shape.block * c->max_pages));
    kern_buf *out;
    KT_OK(kern_buf_new(dev, KERN_I64, words, "counts", &out));
    d.batch.scan_segs = 2;
    d.batch.write_rows = write_rows;
    kern_page_plan_args args = {
        {d.qkv, ac_width(c), d.kv, &d.batch, &d.plan, c->shape.heads, c->scale, c->shape.lists, 0,
         score},
        ac_select(score, &d, c->shape.lists, 0, 0),
    };
    args.select.counts = out;
    memcpy(args.select.choice, choice, sizeof args.select.choice);
    for (int layer = 0; layer < 2; layer++) { // what a layer leaves must not matter to the next
        if (at_once) {
            KT_OK(kern_page_plan(dev, &args));
            continue;
        }
        KT_OK(kern_page_score(dev, &args.score));
        KT_OK(kern_page_select(dev, &args.select));
    }
    const plan_out lists = take_plan(c, &d);
    KT_OK(kern_read(out, 0, counts, words));
    kern_buf_free(out);
    kern_buf_free(score);
    ac_release(&d);
    return lists;
}

// Scores and choice in one are the same lists as one after the other, bit for bit.
void pt_test_page_plan(void **state)
{
    (void)state;
    kt_rng rng = {12};
    for (int trial = 0; trial < 28; trial++) {
        ac_case *c = trial < 24 ? pt_case(&rng, shapes[trial % 6], 2, trial % 2)
                                : wide_case(&rng, trial % 2 ? 20 : 4);
        c->seg_kind[1] = KERN_SEG_STEP;
        pt_random_plan(&rng, c);
        kern_page_choice choice[KERN_SEG_KINDS] = {{0}};
        choice[KERN_SEG_STEP] = (kern_page_choice){kt_int(&rng, 1, 40), false, 7};
        kern_dev *dev = pt_gpu[trial < 24 ? trial / 6 % 2 : trial / 26];
        int64_t *counts[2];
        plan_out out[2];
        for (int at_once = 0; at_once < 2; at_once++) {
            counts[at_once] = kt_alloc((size_t)c->segs * KERN_COUNT_N, sizeof **counts);
            out[at_once] = plan_pages(dev, c, choice, at_once, trial / 12 % 2, counts[at_once]);
        }
        KT_SAME(counts[0], counts[1], (size_t)c->segs * KERN_COUNT_N, "counts");
        same_plans(&out[0], &out[1], c);
        rt_free(counts[0]);
        rt_free(counts[1]);
        ac_free(c);
    }
}

// ---- attention mass ------------------------------------------------------------------

typedef struct mass_out {
    float *mass;
    int32_t *pages, *count;
} mass_out;

static mass_out run_mass(kern_dev *dev, const ac_case *c, const float *page_lse, const float *lse,
                         const float *mass_in, int lists, int top, float share)
{
    enum { CAP = 400 };
    ac_dev d = ac_upload(c, dev);
    const size_t rows = (size_t)c->rows, heads = (size_t)c->shape.heads, segs = (size_t)c->segs;
    const size_t width = (size_t)c->max_pages, kept_n = segs * (size_t)lists;
    int32_t *mass_of = kt_ints(segs), *slot = kt_ints(segs), *kv = kt_ints(rows);
    int n = 0;
    for (int s = 0; s < c->segs; s++) {
        mass_of[s] = s % 2 ? -1 : n++;
        slot[s] = c->segs - 1 - s;
    }
    for (size_t r = 0; r < rows; r++)
        kv[r] = r % 5 == 0 ? 3 : -1;
    const size_t sums = (size_t)n * (size_t)c->shape.block * heads * width;
    const size_t count = (size_t)n * (size_t)lists * width;
    kern_buf *p = kt_in_f32(dev, page_lse, sums), *l = kt_in_f32(dev, lse, rows * heads);
    kern_buf *m = kt_out_f32(dev, count), *from = kt_in_f32(dev, mass_in, count);
    kern_buf *bm = kt_in_i32(dev, mass_of, segs), *bs = kt_in_i32(dev, slot, segs);
    kern_buf *bk = kt_in_i32(dev, kv, rows);
    d.batch.seg_mass = bm;
    d.batch.seg_slot = bs;
    d.batch.kv_slot = bk;
    d.batch.mass_segs = n;
    KT_OK(kern_page_mass(dev, &(kern_page_mass_args){p, l, &d.batch, &d.plan, c->shape.heads,
                                                     c->shape.kv_heads, lists, 0, m}));
    kern_kept_lists kept = {kt_out_i32(dev, kept_n * CAP), kt_out_i32(dev, kept_n), lists, CAP};
    KT_OK(kern_mass_select(dev,
                           &(kern_mass_select_args){from, &d.batch, lists, 0, top, share, &kept}));
    const mass_out out = {kt_take(m, count), kt_take(kept.pages, kept_n * CAP),
                          kt_take(kept.count, kept_n)};
    kern_buf *const bufs[] = {p, l, m, from, bm, bs, bk, kept.pages, kept.count};
    for (size_t i = 0; i < KT_COUNT(bufs); i++)
        kern_buf_free(bufs[i]);
    rt_free(mass_of);
    rt_free(slot);
    rt_free(kv);
    ac_release(&d);
    return out;
}

void pt_test_page_mass(void **state)
{
    (void)state;
    kt_rng rng = {10};
    for (size_t i = 0; i < KT_COUNT(shapes); i++) {
        ac_case *c = pt_case(&rng, shapes[i], 4, true);
        const int lists = i % 2 || c->shape.lists > 1 ? c->shape.kv_heads : 1;
        if (i % 3 == 0)
            pt_random_plan(&rng, c);
        const size_t heads = (size_t)c->shape.heads, width = (size_t)c->max_pages;
        const size_t n = (size_t)(c->segs + 1) / 2;
        const size_t count = n * (size_t)lists * width;
        float *page_lse = kt_random(&rng, n * (size_t)c->shape.block * heads * width, 3.0f);
        float *lse = kt_random(&rng, (size_t)c->rows * heads, 3.0f);
        lse[5] = -INFINITY;
        float *mass_in = kt_floats(count);
        for (size_t j = 0; j < count; j++)
            mass_in[j] = (float)kt_int(&rng, 0, 50);
        const int top = kt_int(&rng, 1, 20);
        const float share = i % 3 ? 0.0f : 0.3f;
        mass_out cpu = run_mass(pt_cpu, c, page_lse, lse, mass_in, lists, top, share);
        mass_out gpu = run_mass(pt_gpu[PT_F32], c, page_lse, lse, mass_in, lists, top, share);
        pt_near("mass", cpu.mass, gpu.mass, count, 1e-3, pt_tolerance);
        pt_same("kept count", cpu.count, gpu.count, (size_t)(c->segs * lists));
        pt_same("kept pages", cpu.pages, gpu.pages, (size_t)(c->segs * lists) * 400);
        void *const arrays[] = {page_lse,  lse,      mass_in,   cpu.mass, cpu.pages,
                                cpu.count, gpu.mass, gpu.pages, gpu.count};
        for (size_t j = 0; j < KT_COUNT(arrays); j++)
            rt_free(arrays[j]);
        ac_free(c);
    }
}

static void run_keys(kern_dev *dev, const ac_case *c, int lists, float **score, float **mass)
{
    ac_dev d = ac_upload(c, dev);
    const size_t segs = (size_t)c->segs, rows = (size_t)c->rows, pages = (size_t)c->max_pages;
    const size_t count = segs * (size_t)lists * pages;
    int32_t *number = kt_ints(segs), *slot = kt_ints(rows);
    for (int s = 0; s < c->segs; s++)
        number[s] = s;
    for (int r = 0; r < c->rows; r++)
        slot[r] = r < c->seg_row0[c->row_seg[r] + 1] - c->shape.block ? r : -1;
    kern_buf *n = kt_in_i32(dev, number, segs), *kv = kt_in_i32(dev, slot, rows);
    kern_buf *s = kt_out_f32(dev, count * (size_t)c->shape.page), *m = kt_out_f32(dev, count);
    d.batch.seg_mass = n;
    d.batch.kv_slot = kv;
    d.batch.mass_segs = c->segs;
    KT_OK(kern_key_score(dev, &(kern_key_score_args){d.qkv, ac_width(c), d.kv, &d.batch,
                                                     c->shape.heads, lists, 0, s}));
    KT_OK(kern_key_peaks(dev, &(kern_key_peaks_args){s, &d.batch, lists, m}));
    *score = kt_take(s, count * (size_t)c->shape.page);
    *mass = kt_take(m, count);
    kern_buf *const bufs[] = {n, kv, s, m};
    for (size_t i = 0; i < KT_COUNT(bufs); i++)
        kern_buf_free(bufs[i]);
    rt_free(number);
    rt_free(slot);
    ac_release(&d);
}

// A batch whose page table has no column: there is nothing to write, and no grid to launch.
static void check_no_pages(kt_rng *rng)
{
    const ac_seg first = {KERN_SEG_FIRST, 0, 1};
    ac_case *c = ac_new(rng, shapes[0], &first, 1, 1);
    c->max_pages = 0;
    for (int mode = 0; mode < PT_MODES; mode++) {
        float *score, *mass;
        run_keys(pt_gpu[mode], c, 1, &score, &mass);
        rt_free(score);
        rt_free(mass);
    }
    ac_free(c);
}

void pt_test_keys(void **state)
{
    (void)state;
    kt_rng rng = {12};
    for (size_t i = 0; i < KT_COUNT(shapes); i++) {
        ac_case *c = pt_case(&rng, shapes[i], 3, true);
        const int lists = i % 2 ? c->shape.kv_heads : 1;
        const size_t count = (size_t)(c->segs * lists * c->max_pages);
        pt_round(c->k, (size_t)(c->pages * c->shape.kv_heads * c->shape.page * c->shape.dim));
        float *score[2], *mass[2];
        run_keys(pt_cpu, c, lists, &score[0], &mass[0]);
        for (int mode = 0; mode < PT_MODES; mode++) {
            run_keys(pt_gpu[mode], c, lists, &score[1], &mass[1]);
            // Sums of heads x dim products, of size sqrt(dim).
            pt_near("key scores", score[0], score[1], count * (size_t)c->shape.page, 10,
                    pt_tolerance);
            pt_near("key peaks", mass[0], mass[1], count, 10, pt_tolerance);
            rt_free(score[1]);
            rt_free(mass[1]);
        }
        rt_free(score[0]);
        rt_free(mass[0]);
        ac_free(c);
    }
    check_no_pages(&rng);
}

// ---- counters and checksums -------------------------------------------------------------

void pt_test_plan_count(void **state)
{
    (void)state;
    kt_rng rng = {11};
    for (size_t i = 0; i < KT_COUNT(shapes); i++) {
        ac_case *c = pt_case(&rng, shapes[i], 4, i % 2);
        pt_random_plan(&rng, c);
        const size_t words = (size_t)c->segs * KERN_COUNT_N;
        const size_t scores =
            (size_t)(c->sparse_segs * c->shape.lists) * (size_t)(c->shape.block * c->max_pages);
        float *random = kt_random(&rng, scores, 1.0f);
        int64_t *counts[2];
        int32_t sums[2][2];
        for (int side = 0; side < 2; side++) {
            kern_dev *dev = side ? pt_gpu[PT_BF16] : pt_cpu;
            ac_dev d = ac_upload(c, dev);
            kern_buf *out, *sum = kt_out_i32(dev, 2), *score = kt_in_f32(dev, random, scores);
            KT_OK(kern_buf_new(dev, KERN_I64, words, "counts", &out));
            kern_page_select_args select = ac_select(score, &d, c->shape.lists, 0, 5);
            for (int kind = 0; kind < KERN_SEG_KINDS; kind++)
                select.choice[kind].budget = 3 + kind;
            select.counts = out;
            KT_OK(kern_page_select(dev, &select));
            KT_OK(kern_page_select(dev, &select));
            KT_OK(kern_plan_count(dev, &(kern_plan_count_args){&d.batch, c->shape.lists, 3, out}));
            KT_OK(kern_plan_checksum(
                dev, &(kern_plan_checksum_args){&d.batch, &d.plan, i % 3 != 0, sum}));
            counts[side] = kt_alloc(words, sizeof **counts);
            KT_OK(kern_read(out, 0, counts[side], words));
            KT_OK(kern_read(sum, 0, sums[side], 2));
            kern_buf_free(out);
            kern_buf_free(sum);
            kern_buf_free(score);
            ac_release(&d);
        }
        KT_SAME(counts[0], counts[1], words, "counts");
        pt_same("checksum", sums[0], sums[1], 2);
        rt_free(counts[0]);
        rt_free(counts[1]);
        rt_free(random);
        ac_free(c);
    }
}
