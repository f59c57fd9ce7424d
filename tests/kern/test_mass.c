// SPDX-License-Identifier: Apache-2.0
// Lists from attention mass, and from keys: what prefix attention measures of each page, the mass of
// pages over rows and heads, the lists kept of it, and plans that read kept lists. Each
// against its definition in double precision; what must not be read is poisoned.
#include "tests/kern/attn_case.h"

#include <stdlib.h>

enum { SEGS = 5, SLOTS = 9, MOST_PAGES = 1024 };

// What a batch of attn_case.h lacks: rows that are committed, slots, measuring segments.
typedef struct extra {
    int32_t *kv_slot;
    int32_t slot[SEGS], number[SEGS];
    int measuring;
    kern_buf *kv_slot_buf, *slot_buf, *number_buf;
} extra;

static ac_shape random_shape(kt_rng *rng)
{
    const int kv_heads = kt_int(rng, 1, 3);
    static const int groups[] = {1, 2, 3, 8}, dims[] = {64, 20, 16};
    return (ac_shape){.block = 4 << kt_int(rng, 0, 4),
                      .page = 4 << kt_int(rng, 0, 6),
                      .heads = kv_heads * groups[kt_int(rng, 0, 3)],
                      .kv_heads = kv_heads,
                      .dim = dims[kt_int(rng, 0, 2)],
                      .lists = kt_int(rng, 0, 1) ? kv_heads : 1};
}

// Two sparse first steps, then dense ones: of two blocks, of one without a prefix, and a
// segment that measures nothing.
static ac_case *random_case(kt_rng *rng)
{
    const ac_shape shape = random_shape(rng);
    const int block = shape.block;
    const ac_seg segs[SEGS] = {
        {KERN_SEG_FIRST, kt_int(rng, 0, 600 / block) * block, 1},
        {KERN_SEG_STEP, kt_int(rng, 0, 100 / block) * block, 1},
        {KERN_SEG_FIRST, kt_int(rng, 0, 500 / block) * block, 2},
        {KERN_SEG_OPEN, 0, 1},
        {KERN_SEG_PREFILL, kt_int(rng, 0, 2) * block, 2},
    };
    return ac_new(rng, shape, segs, SEGS, 2);
}

static int pages_of(const ac_case *c, int seg)
{
    return (ac_prefix(c, c->seg_row0[seg + 1] - 1) + c->shape.page - 1) / c->shape.page;
}

// Segments 0, 2, 3 measure, in an order of their own; of segment 2 the first block is
// committed, of segment 4 everything.
static extra new_extra(const ac_case *c, kt_rng *rng, ac_dev *d)
{
    static const int32_t number[SEGS] = {2, -1, 0, 1, -1};
    extra x = {.kv_slot = kt_ints((size_t)c->rows), .measuring = 3};
    int32_t *slots = ac_permutation(rng, SLOTS);
    for (int s = 0; s < SEGS; s++) {
        x.slot[s] = slots[s];
        x.number[s] = number[s];
    }
    rt_free(slots);
    for (int row = 0; row < c->rows; row++) {
        const int s = c->row_seg[row], open = c->seg_row0[s + 1] - c->shape.block;
        x.kv_slot[row] = s == 4 || row < open ? row : -1;
    }
    x.kv_slot_buf = kt_in_i32(d->dev, x.kv_slot, (size_t)c->rows);
    x.slot_buf = kt_in_i32(d->dev, x.slot, SEGS);
    x.number_buf = kt_in_i32(d->dev, x.number, SEGS);
    d->batch.kv_slot = x.kv_slot_buf;
    d->batch.seg_slot = x.slot_buf;
    d->batch.seg_mass = x.number_buf;
    d->batch.mass_segs = x.measuring;
    return x;
}

static void free_extra(extra *x)
{
    rt_free(x->kv_slot);
    kern_buf_free(x->kv_slot_buf);
    kern_buf_free(x->slot_buf);
    kern_buf_free(x->number_buf);
}

// Some rows, some pages, ascending; a list may be empty or everything.
static void random_plan(ac_case *c, kt_rng *rng)
{
    for (int s = 0; s < c->sparse_segs; s++) {
        const int keep = kt_int(rng, 1, 4);
        c->act_count[s] = 0;
        for (int row = c->seg_row0[s]; row < c->seg_row0[s + 1]; row++)
            if (kt_int(rng, 0, 3) < keep)
                c->act_rows[c->seg_row0[s] + c->act_count[s]++] = row;
        for (int l = 0; l < c->shape.lists; l++) {
            const int entry = s * c->shape.lists + l;
            const bool all = kt_int(rng, 0, 4) == 0;
            c->list_count[entry] = all ? -1 : 0;
            for (int g = 0; !all && g < pages_of(c, s); g++)
                if (kt_int(rng, 0, 2))
                    c->list[entry * c->max_pages + c->list_count[entry]++] = g;
        }
    }
}

// ---- page sums of the prefix attention -------------------------------------------------------

static bool is_active(const ac_case *c, int row)
{
    const int s = c->row_seg[row];
    for (int i = 0; i < c->act_count[s]; i++)
        if (c->act_rows[c->seg_row0[s] + i] == row)
            return true;
    return false;
}

static bool is_listed(const ac_case *c, int seg, int list, int page)
{
    const int entry = seg * c->shape.lists + list;
    bool listed = c->list_count[entry] < 0;
    for (int i = 0; i < c->list_count[entry]; i++)
        listed |= c->list[entry * c->max_pages + i] == page;
    return listed;
}

// log sum e^(scale q.k) over the keys of a page that lie in the row's prefix.
static double page_sum(const ac_case *c, int row, int head, int page)
{
    const int kv = head / (c->shape.heads / c->shape.kv_heads), size = c->shape.page;
    const float *q = c->qkv + row * ac_width(c) + head * c->shape.dim;
    double sum = 0.0;
    for (int t = page * size; t < (page + 1) * size && t < ac_prefix(c, row); t++) {
        double dot = 0.0;
        const float *k = c->k + ac_token(c, c->row_seg[row], t, kv);
        for (int i = 0; i < c->shape.dim; i++)
            dot += (double)q[i] * (double)k[i];
        sum += exp(dot * (double)c->scale);
    }
    return log(sum);
}

static double *page_sums(const ac_case *c, const extra *x, size_t total)
{
    double *want = kt_alloc(total, sizeof *want);
    for (size_t i = 0; i < total; i++)
        want[i] = -INFINITY;
    for (int row = 0; row < c->rows; row++) {
        const int s = c->row_seg[row], place = c->pos[row] % c->shape.block;
        if (x->number[s] < 0 || x->kv_slot[row] >= 0 || !is_active(c, row))
            continue;
        for (int h = 0; h < c->shape.heads; h++) {
            const int at = (x->number[s] * c->shape.block + place) * c->shape.heads + h;
            const int list = c->shape.lists == 1 ? 0 : h / (c->shape.heads / c->shape.kv_heads);
            for (int g = 0; g < pages_of(c, s); g++)
                if (is_listed(c, s, list, g))
                    want[at * c->max_pages + g] = page_sum(c, row, h, g);
        }
    }
    return want;
}

// What the attention of one call leaves; page_lse NULL when it was not asked for.
typedef struct attended {
    float *o, *lse, *page_lse;
} attended;

static size_t page_lse_size(const ac_case *c)
{
    return (size_t)(3 * c->shape.block * c->shape.heads * c->max_pages);
}

static attended attend(const ac_case *c, const ac_dev *d, bool measure)
{
    const size_t heads = (size_t)(c->rows * c->shape.heads), dim = (size_t)c->shape.dim;
    const size_t slots = (size_t)(c->slots * c->shape.heads);
    kern_buf *o = kt_out_f32(d->dev, heads * dim), *lse = kt_out_f32(d->dev, heads);
    kern_buf *page_lse = kt_out_f32(d->dev, page_lse_size(c)),
             *out = kt_out_f32(d->dev, heads * dim);
    kern_buf *cache_o = kt_out_f32(d->dev, slots * dim), *cache_lse = kt_out_f32(d->dev, slots);
    KT_OK(kern_attn(d->dev, &(kern_attn_args){.qkv = d->qkv,
                                              .kv = d->kv,
                                              .batch = &d->batch,
                                              .plan = &d->plan,
                                              .heads = c->shape.heads,
                                              .scale = c->scale,
                                              .o = o,
                                              .lse = lse,
                                              .page_lse = measure ? page_lse : NULL,
                                              .cache_o = cache_o,
                                              .cache_lse = cache_lse,
                                              .out = out}));
    const attended a = {kt_take(o, heads * dim), kt_take(lse, heads),
                        measure ? kt_take(page_lse, page_lse_size(c)) : NULL};
    kern_buf *const bufs[] = {o, lse, page_lse, out, cache_o, cache_lse};
    for (size_t i = 0; i < KT_COUNT(bufs); i++)
        kern_buf_free(bufs[i]);
    return a;
}

static void free_attended(attended *a)
{
    rt_free(a->o);
    rt_free(a->lse);
    rt_free(a->page_lse);
}

// Measuring changes no result, and threads change no bit.
static void check_measuring(const ac_case *c, kt_rng *rng)
{
    attended first = {0};
    for (int threads = 1; threads <= 4; threads += 3) {
        kern_dev *dev = kt_open(threads);
        ac_dev d = ac_upload(c, dev);
        extra x = new_extra(c, rng, &d);
        attended a = attend(c, &d, true), plain = attend(c, &d, false);
        const size_t heads = (size_t)(c->rows * c->shape.heads);
        KT_SAME(a.o, plain.o, heads * (size_t)c->shape.dim, "o with and without page sums");
        KT_SAME(a.lse, plain.lse, heads, "lse with and without page sums");
        free_attended(&plain);
        if (threads == 1) {
            double *sums = page_sums(c, &x, page_lse_size(c));
            // Scores are f32 dots of up to 64 terms; a sum of positive terms adds little.
            for (size_t i = 0; i < page_lse_size(c); i++) // what is not read is not specified
                sums[i] = sums[i] == -(double)INFINITY ? (double)a.page_lse[i] : sums[i];
            KT_NEAR(a.page_lse, sums, page_lse_size(c), 1.0, 1e-5);
            rt_free(sums);
            first = a;
        } else {
            KT_SAME(a.page_lse, first.page_lse, page_lse_size(c), "page sums of threads");
            KT_SAME(a.lse, first.lse, heads, "lse of threads");
            free_attended(&a);
        }
        free_extra(&x);
        ac_release(&d);
        kern_dev_close(dev);
    }
    free_attended(&first);
}

static void page_sums_are_those_of_the_keys_read(void **state)
{
    (void)state;
    kt_rng rng = {1};
    for (int round = 0; round < 24; round++) {
        ac_case *c = random_case(&rng);
        if (round % 3)
            random_plan(c, &rng);
        check_measuring(c, &rng);
        ac_free(c);
    }
}

// A prefix of several spans and few lanes: threads share it, or one walks it alone.
static void page_sums_do_not_depend_on_the_split(void **state)
{
    (void)state;
    kt_rng rng = {2};
    for (int round = 0; round < 2; round++) {
        const ac_shape shape = {
            .block = 4, .page = round ? 256 : 16, .heads = 2, .kv_heads = 1, .dim = 16, .lists = 1};
        const ac_seg segs[SEGS] = {{KERN_SEG_FIRST, 8000, 1},
                                   {KERN_SEG_STEP, 40, 1},
                                   {KERN_SEG_FIRST, 7000, 2},
                                   {KERN_SEG_OPEN, 0, 1},
                                   {KERN_SEG_PREFILL, 0, 1}};
        ac_case *c = ac_new(&rng, shape, segs, SEGS, 2);
        random_plan(c, &rng);
        check_measuring(c, &rng);
        ac_free(c);
    }
}

// ---- mass ---------------------------------------------------------------------------------

// Page sums and log-sum-exps with holes; what no prefix covers is NaN.
static void random_sums(const ac_case *c, const extra *x, kt_rng *rng, float *page_lse, float *lse)
{
    for (size_t i = 0; i < page_lse_size(c); i++)
        page_lse[i] = NAN;
    for (int row = 0; row < c->rows; row++) {
        const int s = c->row_seg[row], place = c->pos[row] % c->shape.block;
        const bool measured = x->number[s] >= 0 && x->kv_slot[row] < 0;
        for (int h = 0; h < c->shape.heads; h++) {
            const bool empty = pages_of(c, s) == 0 || kt_int(rng, 0, 9) == 0;
            float *out = &lse[row * c->shape.heads + h];
            *out = !measured ? NAN : empty ? -INFINITY : kt_normal(rng, 4.0f);
            if (!measured)
                continue;
            const int at = (x->number[s] * c->shape.block + place) * c->shape.heads + h;
            for (int g = 0; g < pages_of(c, s); g++)
                page_lse[at * c->max_pages + g] = empty || kt_int(rng, 0, 3) == 0
                                                      ? -INFINITY
                                                      : *out - kt_uniform(rng, 0.0f, 12.0f);
        }
    }
}

static void add_mass(const ac_case *c, const extra *x, const float *page_lse, const float *lse,
                     int score_lists, int list0, double *want)
{
    for (int row = 0; row < c->rows; row++) {
        const int s = c->row_seg[row], place = c->pos[row] % c->shape.block;
        if (x->number[s] < 0 || x->kv_slot[row] >= 0)
            continue;
        for (int h = 0; h < c->shape.heads; h++) {
            const int kv = h / (c->shape.heads / c->shape.kv_heads);
            const int list = score_lists == 1 ? 0 : list0 + kv;
            const int at = (x->number[s] * c->shape.block + place) * c->shape.heads + h;
            const double all = (double)lse[row * c->shape.heads + h];
            for (int g = 0; g < pages_of(c, s) && isfinite(all); g++) {
                if (!is_listed(c, s, c->shape.lists == 1 ? 0 : kv, g))
                    continue;
                want[(x->number[s] * score_lists + list) * c->max_pages + g] +=
                    exp((double)page_lse[at * c->max_pages + g] - all);
            }
        }
    }
}

static void check_mass(const ac_case *c, kt_rng *rng, int score_lists, int list0, int threads)
{
    kern_dev *dev = kt_open(threads);
    ac_dev d = ac_upload(c, dev);
    extra x = new_extra(c, rng, &d);
    const size_t heads = (size_t)(c->rows * c->shape.heads);
    const size_t total = (size_t)(x.measuring * score_lists * c->max_pages);
    float *page_lse = kt_floats(page_lse_size(c)), *lse = kt_floats(heads);
    random_sums(c, &x, rng, page_lse, lse);
    kern_buf *page_buf = kt_in_f32(dev, page_lse, page_lse_size(c));
    kern_buf *lse_buf = kt_in_f32(dev, lse, heads), *out = kt_out_f32(dev, total);
    KT_OK(kern_page_mass(dev, &(kern_page_mass_args){.page_lse = page_buf,
                                                     .lse = lse_buf,
                                                     .batch = &d.batch,
                                                     .plan = &d.plan,
                                                     .heads = c->shape.heads,
                                                     .kv_heads = c->shape.kv_heads,
                                                     .score_lists = score_lists,
                                                     .list0 = list0,
                                                     .mass = out}));
    float *mass = kt_take(out, total);
    double *want = kt_alloc(total, sizeof *want);
    add_mass(c, &x, page_lse, lse, score_lists, list0, want);
    KT_NEAR(mass, want, total, 1e-3, 1e-5); // sums of up to 1500 positive terms
    for (size_t i = 0; i < total; i++)
        if (want[i] == 0.0)
            assert_true(mass[i] == 0.0f);
    void *const memory[] = {page_lse, lse, mass, want};
    kern_buf *const bufs[] = {page_buf, lse_buf, out};
    for (size_t i = 0; i < KT_COUNT(memory); i++)
        rt_free(memory[i]);
    for (size_t i = 0; i < KT_COUNT(bufs); i++)
        kern_buf_free(bufs[i]);
    free_extra(&x);
    ac_release(&d);
    kern_dev_close(dev);
}

static void mass_is_the_sum_of_shares(void **state)
{
    (void)state;
    kt_rng rng = {3};
    for (int round = 0; round < 20; round++) {
        ac_case *c = random_case(&rng);
        if (round % 2)
            random_plan(c, &rng);
        if (c->shape.lists == 1)
            check_mass(c, &rng, 1, 0, 1);
        check_mass(c, &rng, c->shape.kv_heads, 0, 2);
        check_mass(c, &rng, c->shape.kv_heads + 3, 2, 3);
        ac_free(c);
    }
}

// ---- keys ----------------------------------------------------------------------------------

// The mean over the denoised rows of q.k, summed over the heads of a list.
static double key_score(const ac_case *c, const extra *x, int seg, int list, int lists, int token)
{
    const int group = c->shape.heads / c->shape.kv_heads;
    double sum = 0.0;
    int rows = 0;
    for (int row = c->seg_row0[seg]; row < c->seg_row0[seg + 1]; row++) {
        if (x->kv_slot[row] >= 0)
            continue;
        rows++;
        for (int h = 0; h < c->shape.heads; h++)
            for (int i = 0; (lists == 1 || h / group == list) && i < c->shape.dim; i++)
                sum += (double)c->qkv[row * ac_width(c) + h * c->shape.dim + i] *
                       (double)c->k[ac_token(c, seg, token, h / group) + (size_t)i];
    }
    return sum / rows;
}

static void check_peaks(const ac_case *c, const float *score, int prefix, const float *got)
{
    const int page = c->shape.page;
    for (int g = 0; g < c->max_pages; g++) {
        double want = g * page < prefix ? -INFINITY : 0.0;
        for (int t = 0; g * page < prefix && t < prefix; t++)
            if (t >= g * page - 1 && t <= (g + 1) * page)
                want = fmax(want, (double)score[t]);
        assert_true((double)got[g] == want);
    }
}

static void check_keys(const ac_case *c, kt_rng *rng, int score_lists, int list0, int threads)
{
    kern_dev *dev = kt_open(threads);
    ac_dev d = ac_upload(c, dev);
    extra x = new_extra(c, rng, &d);
    const int tokens = c->max_pages * c->shape.page;
    const int local = score_lists == 1 ? 1 : c->shape.kv_heads;
    const size_t lists = (size_t)(x.measuring * score_lists);
    kern_buf *score_buf = kt_out_f32(dev, lists * (size_t)tokens);
    kern_buf *mass_buf = kt_out_f32(dev, lists * (size_t)c->max_pages);
    KT_OK(kern_key_score(dev, &(kern_key_score_args){.q = d.qkv,
                                                     .stride = ac_width(c),
                                                     .kv = d.kv,
                                                     .batch = &d.batch,
                                                     .heads = c->shape.heads,
                                                     .score_lists = score_lists,
                                                     .list0 = list0,
                                                     .score = score_buf}));
    KT_OK(kern_key_peaks(dev, &(kern_key_peaks_args){score_buf, &d.batch, score_lists, mass_buf}));
    float *score = kt_take(score_buf, lists * (size_t)tokens);
    float *mass = kt_take(mass_buf, lists * (size_t)c->max_pages);
    for (int s = 0; s < SEGS; s++)
        for (int l = 0; x.number[s] >= 0 && l < score_lists; l++) {
            const int at = x.number[s] * score_lists + l;
            const int prefix = ac_prefix(c, c->seg_row0[s + 1] - 1);
            for (int t = 0; t < tokens; t++) {
                const bool in = l >= list0 && l < list0 + local && t < prefix;
                const double want = in ? key_score(c, &x, s, l - list0, local, t) : 0.0;
                // Sums of up to 64 x 24 products of size 1.
                KT_NEAR(score + at * tokens + t, &want, 1, 1.0, 1e-4);
            }
            check_peaks(c, score + at * tokens, prefix, mass + at * c->max_pages);
        }
    rt_free(score);
    rt_free(mass);
    kern_buf_free(score_buf);
    kern_buf_free(mass_buf);
    free_extra(&x);
    ac_release(&d);
    kern_dev_close(dev);
}

static void keys_are_rated_by_the_mean_query(void **state)
{
    (void)state;
    kt_rng rng = {8};
    for (int round = 0; round < 12; round++) {
        ac_case *c = random_case(&rng);
        check_keys(c, &rng, 1, 0, 1);
        check_keys(c, &rng, c->shape.kv_heads, 0, 2);
        check_keys(c, &rng, c->shape.kv_heads + 3, 2, 3);
        ac_free(c);
    }
}

// ---- kept lists ------------------------------------------------------------------------------

typedef struct ranked {
    double value;
    int index;
} ranked;

static int by_rank(const void *a, const void *b)
{
    const ranked *x = a, *y = b;
    if (x->value != y->value)
        return x->value > y->value ? -1 : 1;
    return x->index - y->index;
}

// Marks the `top` best pages, the first and the last among them.
static void take_best(const float *value, int pages, int top, bool *taken)
{
    ranked order[MOST_PAGES];
    for (int g = 0; g < pages; g++)
        order[g] = (ranked){g == 0 || g == pages - 1 ? (double)INFINITY : (double)value[g], g};
    qsort(order, (size_t)pages, sizeof *order, by_rank);
    for (int i = 0; i < pages && i < (top < 2 ? 2 : top); i++)
        taken[order[i].index] = true;
}

static void expect_list(const bool *taken, int pages, const int32_t *list, int count)
{
    int n = 0;
    for (int g = 0; g < pages; g++)
        if (taken[g]) {
            assert_true(n < count);
            assert_int_equal(list[n++], g);
        }
    assert_int_equal(count, n);
}

static void check_kept(const ac_case *c, kt_rng *rng, int list0, int top, float share, bool coarse)
{
    kern_dev *dev = kt_open(2);
    ac_dev d = ac_upload(c, dev);
    extra x = new_extra(c, rng, &d);
    const int lists = c->shape.lists, score_lists = list0 + lists, width = c->max_pages;
    const int most = top < width && share == 0.0f ? top : width;
    const int cap = (most < 2 ? 2 : most) + kt_int(rng, 0, 2);
    const size_t total = (size_t)(x.measuring * score_lists * width);
    float *mass = kt_floats(total);
    for (size_t i = 0; i < total; i++)
        mass[i] = coarse ? (float)kt_int(rng, 0, 2) : expf(kt_normal(rng, 5.0f));
    kern_buf *mass_buf = kt_in_f32(dev, mass, total);
    const kern_kept_lists kept = {kt_out_i32(dev, (size_t)(SLOTS * lists * cap)),
                                  kt_out_i32(dev, (size_t)(SLOTS * lists)), lists, cap};
    KT_OK(kern_mass_select(dev, &(kern_mass_select_args){.mass = mass_buf,
                                                         .batch = &d.batch,
                                                         .score_lists = score_lists,
                                                         .list0 = list0,
                                                         .top = top,
                                                         .share = share,
                                                         .kept = &kept}));
    int32_t *pages = kt_take(kept.pages, (size_t)(SLOTS * lists * cap));
    int32_t *count = kt_take(kept.count, (size_t)(SLOTS * lists));
    bool written[SLOTS] = {0};
    for (int s = 0; s < SEGS; s++)
        for (int l = 0; x.number[s] >= 0 && l < lists; l++) {
            bool taken[MOST_PAGES] = {0};
            const int entry = x.slot[s] * lists + l;
            const int n = pages_of(c, s), take = share > 0.0f ? (int)(share * (float)n) + 1 : top;
            take_best(mass + (x.number[s] * score_lists + list0 + l) * width, n, take, taken);
            expect_list(taken, pages_of(c, s), pages + entry * cap, count[entry]);
            written[x.slot[s]] = true;
        }
    for (int i = 0; i < SLOTS * lists; i++)
        assert_true(written[i / lists] || count[i] == (int32_t)kt_poison);
    rt_free(mass);
    rt_free(pages);
    rt_free(count);
    kern_buf_free(mass_buf);
    kern_buf_free(kept.pages);
    kern_buf_free(kept.count);
    free_extra(&x);
    ac_release(&d);
    kern_dev_close(dev);
}

// Prefixes of no page, of one or two, and longer ones; ties go to the lower page.
static void kept_lists_are_the_heaviest_pages(void **state)
{
    (void)state;
    kt_rng rng = {4};
    for (int round = 0; round < 30; round++) {
        ac_case *c = random_case(&rng);
        const int tops[] = {1, 2, 3, 8, c->max_pages, 1 << 30};
        const float shares[] = {0.0f, 0.0f, 0.25f, 0.0f, 0.3f, 1.0f};
        for (size_t i = 0; i < KT_COUNT(tops); i++)
            check_kept(c, &rng, c->shape.lists == 1 ? 0 : round % 3, tops[i], shares[i], round % 2);
        ac_free(c);
    }
}

// ---- plans that read kept lists ------------------------------------------------------------

static const kern_page_choice choices[KERN_SEG_KINDS] = {[KERN_SEG_FIRST] = {5, false, 0},
                                                         [KERN_SEG_STEP] = {3, true, 0},
                                                         [KERN_SEG_COMMIT] = {0, true, 0}};

static ac_case *sparse_case(kt_rng *rng)
{
    const ac_shape shape = random_shape(rng);
    const int block = shape.block;
    const ac_seg segs[SEGS] = {
        {KERN_SEG_STEP, kt_int(rng, 0, 600 / block) * block, 1},
        {KERN_SEG_FIRST, kt_int(rng, 0, 400 / block) * block, 1},
        {KERN_SEG_STEP, kt_int(rng, 0, 2) * block, 1},
        {KERN_SEG_COMMIT, kt_int(rng, 0, 300 / block) * block, 1},
        {KERN_SEG_PREFILL, 0, 1},
    };
    ac_case *c = ac_new(rng, shape, segs, SEGS, 4);
    random_plan(c, rng);
    return c;
}

// Kept lists of every slot, ascending; some name pages that a prefix does not have.
static void random_kept(kt_rng *rng, int lists, int cap, int32_t *pages, int32_t *count)
{
    for (int i = 0; i < SLOTS * lists; i++)
        for (int page = kt_int(rng, 0, 4); count[i] < cap && kt_int(rng, 0, 9); page++)
            if (kt_int(rng, 0, 2) == 0)
                pages[i * cap + count[i]++] = page;
}

static void check_plan(const ac_case *c, kt_rng *rng)
{
    enum { CAP = 12 };
    kern_dev *dev = kt_open(2);
    ac_dev d = ac_upload(c, dev);
    extra x = new_extra(c, rng, &d);
    d.batch.scan_segs = 3;
    const int lists = c->shape.lists, width = c->max_pages, block = c->shape.block;
    float *score = kt_random(rng, (size_t)(3 * lists * block * width), 3.0f);
    int32_t *kept_pages = kt_ints((size_t)(SLOTS * lists * CAP));
    int32_t *kept_count = kt_ints((size_t)(SLOTS * lists));
    random_kept(rng, lists, CAP, kept_pages, kept_count);
    kern_buf *score_buf = kt_in_f32(dev, score, (size_t)(3 * lists * block * width));
    const kern_kept_lists kept = {kt_in_i32(dev, kept_pages, (size_t)(SLOTS * lists * CAP)),
                                  kt_in_i32(dev, kept_count, (size_t)(SLOTS * lists)), lists, CAP};
    kern_page_select_args args = {.score = score_buf,
                                  .batch = &d.batch,
                                  .score_lists = lists,
                                  .kept = &kept,
                                  .plan = &d.plan};
    memcpy(args.choice, choices, sizeof choices);
    KT_OK(kern_page_select(dev, &args));
    int32_t *pages = kt_take(d.plan.pages, (size_t)(SEGS * lists * width));
    int32_t *count = kt_take(d.plan.page_count, (size_t)(SEGS * lists));
    for (int entry = 0; entry < c->sparse_segs * lists; entry++) {
        const int s = entry / lists, n = c->act_count[s] > 0 ? pages_of(c, s) : 0;
        const kern_page_choice choice = choices[c->seg_kind[s]];
        bool taken[MOST_PAGES] = {0};
        for (int a = 0; choice.top > 0 && a < c->act_count[s]; a++)
            take_best(score + (entry * block + a) * width, n, choice.top, taken);
        const int mine = x.slot[s] * lists + entry % lists;
        for (int i = 0; choice.kept && i < kept_count[mine]; i++)
            taken[kept_pages[mine * CAP + i]] = true;
        taken[0] = taken[n > 0 ? n - 1 : 0] = true;
        expect_list(taken, n, pages + entry * width, count[entry]);
    }
    void *const memory[] = {score, kept_pages, kept_count, pages, count};
    kern_buf *const bufs[] = {score_buf, kept.pages, kept.count};
    for (size_t i = 0; i < KT_COUNT(memory); i++)
        rt_free(memory[i]);
    for (size_t i = 0; i < KT_COUNT(bufs); i++)
        kern_buf_free(bufs[i]);
    free_extra(&x);
    ac_release(&d);
    kern_dev_close(dev);
}

static void plans_unite_scans_and_kept_lists(void **state)
{
    (void)state;
    kt_rng rng = {5};
    for (int round = 0; round < 40; round++) {
        ac_case *c = sparse_case(&rng);
        check_plan(c, &rng);
        ac_free(c);
    }
}

// What a row may take, by the kind of its segment; only the first segments scan.
static void budgets_go_by_the_kind(void **state)
{
    (void)state;
    kt_rng rng = {6};
    kern_dev *dev = kt_open(1);
    static const int budget[KERN_SEG_KINDS] = {0, 7, 1, 4, 11};
    for (int round = 0; round < 20; round++) {
        ac_case *c = sparse_case(&rng);
        ac_dev d = ac_upload(c, dev);
        d.batch.scan_segs = 3;
        int64_t zero[SEGS * KERN_COUNT_N] = {0};
        kern_buf *counts = kt_in(dev, KERN_I64, zero, KT_COUNT(zero));
        const size_t scores = (size_t)(3 * c->shape.lists * c->shape.block * c->max_pages);
        float *random = kt_random(&rng, scores, 1.0f);
        kern_buf *score = kt_in_f32(dev, random, scores);
        kern_page_select_args args = ac_select(score, &d, c->shape.lists, 0, 1);
        args.counts = counts;
        args.choice[c->seg_kind[3]].top = 0;
        for (int kind = 0; kind < KERN_SEG_KINDS; kind++)
            args.choice[kind].budget = budget[kind];
        KT_OK(kern_page_select(dev, &args));
        int64_t *got = kt_take(counts, KT_COUNT(zero));
        for (int s = 0; s < SEGS; s++) {
            const int pages = pages_of(c, s), least = pages < 2 ? pages : 2;
            const int may = budget[c->seg_kind[s]] < pages ? budget[c->seg_kind[s]] : pages;
            const bool sparse = s < 4 && c->act_count[s] > 0;
            const int64_t most = sparse ? (may > least ? may : least) * c->shape.lists : 0;
            const int64_t scanned = sparse && s < 3 ? pages * c->shape.lists : 0;
            assert_true(got[s * KERN_COUNT_N + KERN_COUNT_BUDGET] == most);
            assert_true(got[s * KERN_COUNT_N + KERN_COUNT_SCANNED] == scanned);
        }
        rt_free(random);
        rt_free(got);
        kern_buf_free(counts);
        kern_buf_free(score);
        ac_release(&d);
        ac_free(c);
    }
    kern_dev_close(dev);
}

static int32_t checksum(const ac_case *c, kern_dev *dev)
{
    ac_dev d = ac_upload(c, dev);
    kern_buf *buf = kt_out_i32(dev, 2);
    KT_OK(kern_plan_checksum(dev, &(kern_plan_checksum_args){&d.batch, &d.plan, false, buf}));
    int32_t *out = kt_take(buf, 2);
    const int32_t hash = out[0];
    assert_true(hash >= 0 && out[1] == -hash);
    rt_free(out);
    kern_buf_free(buf);
    ac_release(&d);
    return hash;
}

static void a_checksum_without_pages_covers_the_rows(void **state)
{
    (void)state;
    kt_rng rng = {7};
    kern_dev *dev = kt_open(1);
    for (int round = 0; round < 10; round++) {
        ac_case *c = sparse_case(&rng);
        const int32_t before = checksum(c, dev);
        for (int entry = 0; entry < c->sparse_segs * c->shape.lists; entry++) {
            c->list[entry * c->max_pages] ^= 1;
            c->list_count[entry] = -1;
        }
        assert_int_equal(checksum(c, dev), before);
        for (int s = 0; s < c->sparse_segs; s++) {
            if (c->act_count[s] == 0)
                continue;
            c->act_rows[c->seg_row0[s]] ^= 1;
            assert_int_not_equal(checksum(c, dev), before);
            c->act_rows[c->seg_row0[s]] ^= 1;
            c->act_count[s]--;
            assert_int_not_equal(checksum(c, dev), before);
            c->act_count[s]++;
        }
        ac_free(c);
    }
    kern_dev_close(dev);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(page_sums_are_those_of_the_keys_read),
        cmocka_unit_test(page_sums_do_not_depend_on_the_split),
        cmocka_unit_test(mass_is_the_sum_of_shares),
        cmocka_unit_test(keys_are_rated_by_the_mean_query),
        cmocka_unit_test(kept_lists_are_the_heaviest_pages),
        cmocka_unit_test(plans_unite_scans_and_kept_lists),
        cmocka_unit_test(budgets_go_by_the_kind),
        cmocka_unit_test(a_checksum_without_pages_covers_the_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
