// SPDX-License-Identifier: Apache-2.0
// The operations that make a page plan, each against its definition written out
// the long way: double sums, full sorts, sets of tokens.
#include "tests/kern/attn_case.h"

#include <stdlib.h>

static ac_shape random_shape(kt_rng *rng)
{
    static const int groups[] = {1, 2, 3, 4, 8}, dims[] = {64, 80, 16, 20};
    const int kv_heads = kt_int(rng, 1, 4);
    return (ac_shape){.block = 4 << kt_int(rng, 0, 4),
                      .page = 4 << kt_int(rng, 0, 4),
                      .heads = kv_heads * groups[kt_int(rng, 0, 4)],
                      .kv_heads = kv_heads,
                      .dim = dims[kt_int(rng, 0, 3)],
                      .lists = kt_int(rng, 0, 1) ? kv_heads : 1};
}

// Three sparse segments (one may have no prefix), then dense ones.
static ac_case *random_case(kt_rng *rng, ac_shape shape)
{
    const int block = shape.block;
    const ac_seg segs[] = {
        {KERN_SEG_STEP, kt_int(rng, 0, 600 / block) * block, 1},
        {KERN_SEG_STEP, kt_int(rng, 0, 2) * block, 1},
        {KERN_SEG_FIRST, kt_int(rng, 0, 200 / block) * block, 1},
        {KERN_SEG_COMMIT, kt_int(rng, 0, 100 / block) * block, 1},
        {KERN_SEG_PREFILL, kt_int(rng, 0, 3) * block, kt_int(rng, 1, 4)},
    };
    return ac_new(rng, shape, segs, (int)KT_COUNT(segs), 3);
}

static void random_active(ac_case *c, kt_rng *rng)
{
    for (int s = 0; s < c->sparse_segs; s++) {
        int count = 0;
        const int keep = kt_int(rng, 0, 4);
        for (int row = c->seg_row0[s]; row < c->seg_row0[s + 1]; row++)
            if (kt_int(rng, 0, 3) < keep)
                c->act_rows[c->seg_row0[s] + count++] = row;
        c->act_count[s] = count;
    }
}

static int prefix_pages(const ac_case *c, int seg)
{
    return (ac_prefix(c, c->seg_row0[seg]) + c->shape.page - 1) / c->shape.page;
}

// ---- locality ------------------------------------------------------------------------

static void check_locality(const ac_case *c, kt_rng *rng, int cols, int stride, float scale)
{
    kern_dev *dev = kt_open(2);
    ac_dev d = ac_upload(c, dev);
    const size_t rows = (size_t)c->rows, kept = (size_t)(c->slots * cols);
    float *x = kt_random(rng, rows * (size_t)stride, 2.0f), *prev = kt_random(rng, kept, 2.0f);
    kern_buf *prev_buf = NULL, *delta_buf = kt_out_f32(dev, rows);
    for (int row = 0; row < c->rows; row++) // of every three rows one by rounding, one by 1 %
        for (int i = 0; row % 3 != 0 && c->cache_slot[row] >= 0 && i < cols; i++)
            x[row * stride + i] =
                prev[c->cache_slot[row] * cols + i] * (row % 3 == 1 ? 1.00001f : 1.01f);
    kern_buf *x_buf = kt_in_f32(dev, x, rows * (size_t)stride);
    KT_OK(kern_buf_new(dev, KERN_F32, kept, "prev", &prev_buf));
    KT_OK(kern_write(prev_buf, 0, prev, kept));
    const kern_locality_args args = {x_buf, prev_buf, delta_buf, &d.batch, cols, stride, scale};
    KT_OK(kern_locality(dev, &args));
    float *delta = kt_take(delta_buf, rows), *after = kt_floats(kept);
    KT_OK(kern_read(prev_buf, 0, after, kept));
    for (int row = 0; row < c->rows; row++) {
        const int slot = c->cache_slot[row];
        double want = 0.0;
        for (int i = 0; slot >= 0 && i < cols; i++) {
            const double diff = (double)x[row * stride + i] - (double)prev[slot * cols + i];
            want += diff * diff / cols * (double)scale;
            prev[slot * cols + i] = x[row * stride + i]; // slots are not shared
        }
        if (row % 3 == 1 || c->seg_kind[c->row_seg[row]] != KERN_SEG_STEP)
            want = 0.0;
        KT_NEAR(delta + row, &want, 1, 1e-3, 1e-5); // a sum of positive terms
    }
    KT_SAME(after, prev, kept, "kept rows");
    float *arrays[] = {x, prev, delta, after};
    kern_buf *bufs[] = {x_buf, prev_buf, delta_buf};
    for (size_t i = 0; i < KT_COUNT(arrays); i++)
        rt_free(arrays[i]);
    for (size_t i = 0; i < KT_COUNT(bufs); i++)
        kern_buf_free(bufs[i]);
    ac_release(&d);
    kern_dev_close(dev);
}

static void locality_is_the_mean_square_change(void **state)
{
    (void)state;
    kt_rng rng = {1};
    for (int round = 0; round < 20; round++) {
        ac_case *c = random_case(&rng, random_shape(&rng));
        const int cols = kt_int(&rng, 1, 300);
        check_locality(c, &rng, cols, cols + kt_int(&rng, 0, 40), round % 2 ? 1.0f : 0.25f);
        ac_free(c);
    }
}

// ---- active set ------------------------------------------------------------------------

typedef struct ranked {
    double value;
    int index;
} ranked;

// Largest value first, ties by the lower index.
static int by_rank(const void *a, const void *b)
{
    const ranked *x = a, *y = b;
    if (x->value != y->value)
        return x->value > y->value ? -1 : 1;
    return (x->index > y->index) - (x->index < y->index);
}

// Which rows of a segment the rule names: 1 or 0 per row. Changes are whole eighths, so
// that sums of them are exact.
static void active_reference(const ac_case *c, const float *delta, kern_active_rule rule, int k,
                             float share, int seg, int *want)
{
    const int row0 = c->seg_row0[seg], count = c->seg_row0[seg + 1] - row0;
    ranked order[512];
    int n = 0;
    double total = 0.0;
    const bool all =
        seg >= c->sparse_segs || c->seg_kind[seg] != KERN_SEG_STEP || rule == KERN_ACTIVE_ALL;
    for (int i = 0; i < count; i++) {
        const int state = c->row_state[row0 + i];
        const bool new = state &KERN_ROW_NEW, masked = state &KERN_ROW_MASKED;
        want[i] = all || (rule == KERN_ACTIVE_NEW_TOPK && new) ||
                  (rule == KERN_ACTIVE_UNSETTLED && (new || masked));
        if (rule == KERN_ACTIVE_TOPK || (rule == KERN_ACTIVE_NEW_TOPK && !new) ||
            rule == KERN_ACTIVE_SHARE)
            order[n++] = (ranked){(double)delta[row0 + i], i};
        total += (double)delta[row0 + i];
    }
    qsort(order, (size_t)n, sizeof *order, by_rank);
    double held = 0.0;
    for (int i = 0; i < n; i++) {
        if (rule == KERN_ACTIVE_SHARE ? held < (double)share * total : i < k)
            want[order[i].index] = 1;
        held += order[i].value;
    }
    for (int i = 0; c->seg_kind[seg] == KERN_SEG_REST && seg < c->sparse_segs && i < count; i++)
        want[i] = 0;
}

static void check_active(const ac_case *c, const float *delta, kern_active_rule rule, int k,
                         float share)
{
    kern_dev *dev = kt_open(1);
    ac_dev d = ac_upload(c, dev);
    const size_t lists = (size_t)(c->segs * c->shape.lists);
    kern_buf_free(d.plan.page_count);
    d.plan.page_count = kt_out_i32(dev, lists);
    kern_buf *delta_buf = kt_in_f32(dev, delta, (size_t)c->rows);
    const bool reads = rule != KERN_ACTIVE_ALL && rule != KERN_ACTIVE_UNSETTLED;
    const kern_active_args args = {&d.batch, reads ? delta_buf : NULL, rule, k, share, &d.plan};
    KT_OK(kern_active(dev, &args));
    int32_t *rows = kt_take(d.plan.act_rows, (size_t)c->rows);
    int32_t *count = kt_take(d.plan.act_count, (size_t)c->segs);
    int32_t *pages = kt_take(d.plan.page_count, lists);
    for (int s = 0; s < c->segs; s++) {
        int want[512], n = 0;
        active_reference(c, delta, rule, k, share, s, want);
        for (int i = 0; i < c->seg_row0[s + 1] - c->seg_row0[s]; i++)
            if (want[i])
                assert_int_equal(rows[c->seg_row0[s] + n++], c->seg_row0[s] + i);
        assert_int_equal(count[s], n);
        for (int l = 0; l < c->shape.lists; l++)
            assert_int_equal(pages[s * c->shape.lists + l],
                             s < c->sparse_segs ? (int32_t)kt_poison : -1);
    }
    rt_free(rows);
    rt_free(count);
    rt_free(pages);
    kern_buf_free(delta_buf);
    ac_release(&d);
    kern_dev_close(dev);
}

static void active_rows_follow_the_rule(void **state)
{
    (void)state;
    kt_rng rng = {2};
    for (int round = 0; round < 60; round++) {
        ac_case *c = random_case(&rng, random_shape(&rng));
        float *delta = kt_floats((size_t)c->rows);
        const int odds = kt_int(&rng, 0, 3);
        for (int row = 0; row < c->rows; row++) {
            delta[row] = (float)kt_int(&rng, 0, 9) * 0.125f; // many ties
            c->row_state[row] = kt_int(&rng, 0, 3) < odds ? kt_int(&rng, 0, 2) : 0;
        }
        c->seg_kind[1] = round % 3 ? KERN_SEG_STEP : KERN_SEG_REST;
        static const float shares[] = {0.0f, 0.25f, 0.5f, 0.875f, 1.0f};
        for (int rule = KERN_ACTIVE_ALL; rule <= KERN_ACTIVE_SHARE; rule++)
            check_active(c, delta, (kern_active_rule)rule, kt_int(&rng, 0, c->shape.block + 2),
                         shares[round % 5]);
        rt_free(delta);
        ac_free(c);
    }
}

// ---- page scores -------------------------------------------------------------------------

// Adds the shares of query head `head` of `row` to want[pages].
static void add_shares(const ac_case *c, int seg, int row, int head, double *want)
{
    const int pages = prefix_pages(c, seg), kv_head = head / (c->shape.heads / c->shape.kv_heads);
    const float *q = c->qkv + row * ac_width(c) + head * c->shape.dim;
    double *bound = kt_alloc((size_t)pages, sizeof *bound), top = -INFINITY, sum = 0.0;
    for (int g = 0; g < pages; g++) {
        const size_t meta = ac_page(c, seg, g, kv_head);
        bound[g] = 0.0;
        for (int i = 0; i < c->shape.dim; i++) {
            const double x = (double)q[i];
            const double low = x * (double)c->kmin[meta + (size_t)i];
            const double high = x * (double)c->kmax[meta + (size_t)i];
            bound[g] += (double)c->scale * fmax(low, high);
        }
        top = fmax(top, bound[g]);
    }
    for (int g = 0; g < pages; g++)
        sum += exp(bound[g] - top);
    for (int g = 0; g < pages; g++)
        want[g] += exp(bound[g] - top) / sum;
    rt_free(bound);
}

static void check_score(const ac_case *c, int score_lists, int list0, int threads)
{
    kern_dev *dev = kt_open(threads);
    ac_dev d = ac_upload(c, dev);
    const size_t width = (size_t)c->max_pages, cap = (size_t)d.plan.act_cap;
    const size_t total = (size_t)(c->sparse_segs * score_lists) * cap * width;
    kern_buf *buf = kt_out_f32(dev, total);
    KT_OK(kern_reserve_plans(dev, &(kern_plan_limits){.act_cap = d.plan.act_cap,
                                                      .heads = c->shape.heads,
                                                      .lists = score_lists,
                                                      .head_dim = c->shape.dim,
                                                      .max_pages = c->max_pages}));
    KT_OK(kern_page_score(dev, &(kern_page_score_args){.q = d.qkv,
                                                       .stride = ac_width(c),
                                                       .kv = d.kv,
                                                       .batch = &d.batch,
                                                       .plan = &d.plan,
                                                       .heads = c->shape.heads,
                                                       .scale = c->scale,
                                                       .score_lists = score_lists,
                                                       .list0 = list0,
                                                       .score = buf}));
    float *score = kt_take(buf, total);
    double *want = kt_alloc(total + 1, sizeof *want);
    for (int s = 0; s < c->sparse_segs; s++)
        for (int a = 0; a < c->act_count[s]; a++)
            for (int h = 0; h < c->shape.heads; h++) {
                const int kv_head = h / (c->shape.heads / c->shape.kv_heads);
                const int list = score_lists == 1 ? 0 : list0 + kv_head;
                const size_t entry = (size_t)(s * score_lists + list) * cap + (size_t)a;
                add_shares(c, s, c->act_rows[c->seg_row0[s] + a], h, want + entry * width);
            }
    // Bounds are f32 sums of up to 80 terms of size 1, their error passes through exp.
    KT_NEAR(score, want, total, 1e-2, 2e-5);
    for (size_t i = 0; i < total; i++)
        if (want[i] == 0.0)
            assert_true(score[i] == 0.0f);
    rt_free(score);
    rt_free(want);
    kern_buf_free(buf);
    ac_release(&d);
    kern_dev_close(dev);
}

static void scores_are_shares_of_the_quest_bounds(void **state)
{
    (void)state;
    kt_rng rng = {3};
    for (int round = 0; round < 30; round++) {
        ac_case *c = random_case(&rng, random_shape(&rng));
        random_active(c, &rng);
        check_score(c, 1, 0, 1);
        check_score(c, c->shape.kv_heads, 0, 2);
        check_score(c, c->shape.kv_heads + 3, 2, 1);
        ac_free(c);
    }
}

// More pages than the scratch holds that a thread has from the start.
static void long_prefixes_are_scored(void **state)
{
    (void)state;
    kt_rng rng = {9};
    const ac_shape shape = {.block = 4, .page = 4, .heads = 2, .kv_heads = 1, .dim = 4, .lists = 1};
    ac_case *c = ac_new(&rng, shape, &(ac_seg){KERN_SEG_STEP, 4 * ((1 << 17) + 1), 1}, 1, 1);
    check_score(c, 1, 0, 2);
    ac_free(c);
}

// ---- selection -----------------------------------------------------------------------------

static void select_reference(const float *score, int pages, int top, int *taken)
{
    ranked order[1024];
    for (int g = 0; g < pages; g++) {
        const bool forced = g == 0 || g == pages - 1;
        order[g] = (ranked){forced ? (double)INFINITY : (double)score[g], g};
    }
    qsort(order, (size_t)pages, sizeof *order, by_rank);
    for (int i = 0; i < pages && i < (top < 2 && pages > 1 ? 2 : top); i++)
        taken[order[i].index] = 1;
}

static void check_select(const ac_case *c, const float *score, int score_lists, int list0, int top)
{
    kern_dev *dev = kt_open(2);
    ac_dev d = ac_upload(c, dev);
    const int width = c->max_pages, cap = d.plan.act_cap, lists = c->shape.lists;
    kern_buf *buf = kt_in_f32(dev, score, (size_t)(c->sparse_segs * score_lists * cap * width));
    const kern_page_select_args args = ac_select(buf, &d, score_lists, list0, top);
    KT_OK(kern_page_select(dev, &args));
    int32_t *pages = kt_take(d.plan.pages, (size_t)(c->segs * lists * width));
    int32_t *count = kt_take(d.plan.page_count, (size_t)(c->segs * lists));
    for (int entry = 0; entry < c->segs * lists; entry++) {
        const int s = entry / lists;
        int taken[1024] = {0}, n = 0;
        if (s >= c->sparse_segs) {
            assert_int_equal(count[entry], -1);
            continue;
        }
        for (int a = 0; a < c->act_count[s]; a++)
            select_reference(score + ((s * score_lists + list0 + entry % lists) * cap + a) * width,
                             prefix_pages(c, s), top, taken);
        for (int g = 0; g < prefix_pages(c, s); g++)
            if (taken[g])
                assert_int_equal(pages[entry * width + n++], g);
        assert_int_equal(count[entry], n);
    }
    rt_free(pages);
    rt_free(count);
    kern_buf_free(buf);
    ac_release(&d);
    kern_dev_close(dev);
}

static void selection_matches_a_full_sort(void **state)
{
    (void)state;
    kt_rng rng = {4};
    for (int round = 0; round < 60; round++) {
        ac_case *c = random_case(&rng, random_shape(&rng));
        random_active(c, &rng);
        const int list0 = c->shape.lists == 1 ? 0 : round % 3;
        const int score_lists = list0 + c->shape.lists;
        const size_t total = (size_t)(c->sparse_segs * score_lists * c->shape.block * c->max_pages);
        float *score = kt_floats(total);
        const bool coarse = round % 2; // many ties, many zeros
        for (size_t i = 0; i < total; i++)
            score[i] = coarse ? (float)kt_int(&rng, 0, 3) : expf(kt_normal(&rng, 10.0f));
        const int tops[] = {1, 2, 3, 8, 20, c->max_pages, 1 << 30};
        for (size_t i = 0; i < KT_COUNT(tops); i++)
            check_select(c, score, score_lists, list0, tops[i]);
        rt_free(score);
        ac_free(c);
    }
}

// ---- counters and checksum --------------------------------------------------------------------

static void random_lists(ac_case *c, kt_rng *rng)
{
    random_active(c, rng);
    for (int entry = 0; entry < c->sparse_segs * c->shape.lists; entry++) {
        const int s = entry / c->shape.lists;
        const bool all = kt_int(rng, 0, 4) == 0;
        c->list_count[entry] = all ? -1 : 0;
        for (int g = 0; !all && c->act_count[s] > 0 && g < prefix_pages(c, s); g++)
            if (kt_int(rng, 0, 1))
                c->list[entry * c->max_pages + c->list_count[entry]++] = g;
    }
}

// What a layer adds: all of the prefix in segments without a plan, else what the lists say.
static void count_reference(const ac_case *c, const int32_t *pages, const int32_t *count, int top,
                            bool scanned, int64_t *want)
{
    for (int s = 0; s < c->segs; s++) {
        int64_t *n = want + s * KERN_COUNT_N;
        const bool sparse = s < c->sparse_segs;
        const int prefix = ac_prefix(c, c->seg_row0[s + 1] - 1);
        const int all = (prefix + c->shape.page - 1) / c->shape.page;
        n[KERN_COUNT_ACTIVE] += c->act_count[s];
        for (int l = 0; l < c->shape.lists; l++) {
            const int entry = s * c->shape.lists + l;
            n[KERN_COUNT_PREFIX] += prefix;
            n[KERN_COUNT_READ] += sparse ? 0 : prefix;
            if (!sparse || c->act_count[s] == 0)
                continue;
            for (int token = 0; token < prefix; token++)
                for (int i = 0; i < count[entry]; i++)
                    n[KERN_COUNT_READ] += pages[entry * c->max_pages + i] == token / c->shape.page;
            const int least = all < 2 ? all : 2, most = top < all ? top : all;
            n[KERN_COUNT_SCANNED] += scanned ? all : 0;
            n[KERN_COUNT_UNION] += count[entry];
            n[KERN_COUNT_BUDGET] += most > least ? most : least;
        }
    }
}

// Two layers by one choice of pages: the segments without a plan are counted once for both.
static void counters_count_tokens_and_pages(void **state)
{
    (void)state;
    kt_rng rng = {5};
    kern_dev *dev = kt_open(1);
    for (int round = 0; round < 30; round++) {
        ac_case *c = random_case(&rng, random_shape(&rng));
        random_active(c, &rng);
        ac_dev d = ac_upload(c, dev);
        const size_t total = (size_t)c->segs * KERN_COUNT_N, lists = (size_t)c->shape.lists;
        int64_t *want = kt_alloc(total, sizeof *want);
        for (size_t i = 0; i < total; i++)
            want[i] = kt_int(&rng, 0, 1000) + ((int64_t)1 << 40);
        kern_buf *counts = kt_in(dev, KERN_I64, want, total);
        const size_t scores = (size_t)(c->sparse_segs * c->shape.block * c->max_pages) * lists;
        float *random = kt_random(&rng, scores, 1.0f);
        kern_buf *score = kt_in_f32(dev, random, scores);
        const int top = kt_int(&rng, 1, 12), budget = kt_int(&rng, 0, 12), scans = round % 2;
        kern_page_select_args select = ac_select(score, &d, c->shape.lists, 0, scans ? top : 0);
        select.counts = counts;
        d.batch.scan_segs = scans ? c->sparse_segs : 0;
        for (int kind = 0; kind < KERN_SEG_KINDS; kind++)
            select.choice[kind].budget = budget;
        KT_OK(kern_page_select(dev, &select));
        KT_OK(kern_page_select(dev, &select));
        KT_OK(kern_plan_count(dev, &(kern_plan_count_args){&d.batch, c->shape.lists, 2, counts}));
        int32_t *pages = kt_take(d.plan.pages, (size_t)(c->segs * c->max_pages) * lists);
        int32_t *count = kt_take(d.plan.page_count, (size_t)c->segs * lists);
        for (int layer = 0; layer < 2; layer++)
            count_reference(c, pages, count, budget, scans, want);
        int64_t *got = kt_take(counts, total);
        for (size_t i = 0; i < total; i++)
            assert_true(got[i] == want[i]);
        void *const memory[] = {got, want, random, pages, count};
        for (size_t i = 0; i < KT_COUNT(memory); i++)
            rt_free(memory[i]);
        kern_buf_free(counts);
        kern_buf_free(score);
        ac_release(&d);
        ac_free(c);
    }
    kern_dev_close(dev);
}

static int32_t checksum(kern_dev *dev, const ac_case *c)
{
    ac_dev d = ac_upload(c, dev);
    kern_buf *buf = kt_out_i32(dev, 2);
    KT_OK(kern_plan_checksum(dev, &(kern_plan_checksum_args){&d.batch, &d.plan, true, buf}));
    int32_t *out = kt_take(buf, 2);
    const int32_t hash = out[0];
    assert_true(hash >= 0 && out[1] == -hash);
    rt_free(out);
    kern_buf_free(buf);
    ac_release(&d);
    return hash;
}

// Every used entry changes the checksum; unused entries and dense segments do not.
static void the_checksum_covers_what_is_used(void **state)
{
    (void)state;
    kt_rng rng = {6};
    kern_dev *dev = kt_open(1);
    for (int round = 0; round < 20; round++) {
        ac_case *c = random_case(&rng, random_shape(&rng));
        random_lists(c, &rng);
        const int32_t before = checksum(dev, c);
        assert_int_equal(checksum(dev, c), before);
        for (int entry = 0; entry < c->segs * c->shape.lists; entry++) {
            const bool sparse = entry / c->shape.lists < c->sparse_segs;
            for (int i = 0; i < c->max_pages; i++) {
                c->list[entry * c->max_pages + i] ^= 1;
                const bool used = sparse && i < c->list_count[entry];
                assert_int_equal(checksum(dev, c) != before, used);
                c->list[entry * c->max_pages + i] ^= 1;
            }
        }
        for (int row = 0; row < c->rows; row++) {
            const int s = c->row_seg[row];
            c->act_rows[row] ^= 1;
            const bool used = s < c->sparse_segs && row - c->seg_row0[s] < c->act_count[s];
            assert_int_equal(checksum(dev, c) != before, used);
            c->act_rows[row] ^= 1;
        }
        ac_free(c);
    }
    kern_dev_close(dev);
}

// FNV-1a of the words of one segment, as published (Fowler, Noll, Vo), folded.
static void the_checksum_is_fnv1a(void **state)
{
    (void)state;
    kt_rng rng = {7};
    kern_dev *dev = kt_open(1);
    const ac_shape shape = {.block = 4, .page = 4, .heads = 1, .kv_heads = 1, .dim = 4, .lists = 1};
    ac_case *c = ac_new(&rng, shape, &(ac_seg){KERN_SEG_STEP, 400 * 4, 1}, 1, 1);
    c->act_count[0] = 2;
    c->act_rows[1] = 3;
    c->list_count[0] = 2;
    c->list[0] = 0;
    c->list[1] = 0x18f;
    const unsigned char bytes[] = {2, 0, 0, 0, 0, 0, 0, 0, 3,    0, 0, 0,
                                   2, 0, 0, 0, 0, 0, 0, 0, 0x8f, 1, 0, 0};
    uint32_t hash = 0x811c9dc5u;
    for (size_t i = 0; i < sizeof bytes; i++)
        hash = (hash ^ bytes[i]) * 0x01000193u;
    assert_int_equal(checksum(dev, c), (int32_t)((hash ^ hash >> 31) & 0x7fffffffu));
    ac_free(c);
    kern_dev_close(dev);
}

// ---- refusals ---------------------------------------------------------------------------------

static void plans_that_do_not_fit_are_refused(void **state)
{
    (void)state;
    kt_rng rng = {8};
    kern_dev *dev = kt_open(1);
    const ac_shape shape = {.block = 8, .page = 8, .heads = 1, .kv_heads = 1, .dim = 8, .lists = 1};
    ac_case *c = ac_new(&rng, shape, &(ac_seg){KERN_SEG_STEP, 64, 1}, 1, 1);
    ac_dev d = ac_upload(c, dev);
    kern_buf *buf = kt_out_f32(dev, 4096);
    d.plan.act_cap = 7;
    KT_REFUSED(
        kern_active(dev, &(kern_active_args){&d.batch, NULL, KERN_ACTIVE_ALL, 0, 0.0f, &d.plan}),
        RT_ERR_LIMIT, "kern_active", "capacity 7");
    const kern_page_score_args score = {d.qkv, ac_width(c), d.kv, &d.batch, &d.plan,
                                        1,     1.0f,        1,    0,        buf};
    KT_REFUSED(kern_page_score(dev, &score), RT_ERR_LIMIT, "kern_page_score", "capacity 7");
    d.plan.act_cap = 8;
    d.batch.max_pages = 7;
    const kern_page_select_args select = ac_select(buf, &d, 1, 0, 4);
    KT_REFUSED(kern_page_select(dev, &select), RT_ERR_LIMIT, "kern_page_select", "7 pages");
    const kern_locality_args locality = {d.qkv, buf, buf, &d.batch, 24, 24, 1.0f};
    const kern_buf *slots = d.batch.cache_slot;
    d.batch.cache_slot = d.plan.act_rows;
    KT_OK(kern_locality(dev, &locality));
    kern_buf *small = kt_out_f32(dev, 24);
    const kern_locality_args outside = {d.qkv, small, buf, &d.batch, 24, 24, 1.0f};
    KT_REFUSED(kern_locality(dev, &outside), RT_ERR_INVALID, "kern_locality", "cache_slot");
    kern_buf_free(small);
    kern_buf_free(buf);
    d.batch.cache_slot = slots;
    ac_release(&d);
    ac_free(c);
    kern_dev_close(dev);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(locality_is_the_mean_square_change),
        cmocka_unit_test(active_rows_follow_the_rule),
        cmocka_unit_test(scores_are_shares_of_the_quest_bounds),
        cmocka_unit_test(long_prefixes_are_scored),
        cmocka_unit_test(selection_matches_a_full_sort),
        cmocka_unit_test(counters_count_tokens_and_pages),
        cmocka_unit_test(the_checksum_covers_what_is_used),
        cmocka_unit_test(the_checksum_is_fnv1a),
        cmocka_unit_test(plans_that_do_not_fit_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
