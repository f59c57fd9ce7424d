// SPDX-License-Identifier: Apache-2.0
// Prefix attention and the merge with the block, against the equations in double
// precision, and the promise that a row's bits depend on nothing but its own list.
// `--bench` prints the speed of the shapes that matter instead.
#include "tests/kern/attn_case.h"

#include "runtime/base/clock.h"
#include "runtime/base/pool.h"

// f32 dot products of up to 256 terms and sums of weights over up to 5000 keys:
// a few hundred roundings of 6e-8, on outputs of size 1.
static const double tolerance = 1e-5;

// What a call leaves, and the cache that it found.
typedef struct outputs {
    size_t heads, dim, slots; // row heads, head dim, slot heads
    float *o, *lse, *out, *cache_o, *cache_lse;
    float *before_o, *before_lse;
} outputs;

// A cache of random parts, some of them of an empty prefix.
static void fill_cache(outputs *out)
{
    kt_rng rng = {out->slots};
    out->before_o = kt_random(&rng, out->slots * out->dim, 1.0f);
    out->before_lse = kt_random(&rng, out->slots, 8.0f);
    for (size_t i = 0; i < out->slots; i += 7) {
        out->before_lse[i] = -INFINITY;
        out->before_o[i * out->dim] = NAN;
    }
}

static outputs run_attn(const ac_case *c, int threads)
{
    kern_dev *dev = kt_open(threads);
    ac_dev d = ac_upload(c, dev);
    outputs out = {.heads = (size_t)(c->rows * c->shape.heads),
                   .dim = (size_t)c->shape.dim,
                   .slots = (size_t)(c->slots * c->shape.heads)};
    fill_cache(&out);
    const size_t values = out.heads * out.dim, cached = out.slots * out.dim;
    kern_buf *o = kt_out_f32(dev, values), *lse = kt_out_f32(dev, out.heads);
    kern_buf *merged = kt_out_f32(dev, values);
    kern_buf *cache_o = kt_in_f32(dev, out.before_o, cached);
    kern_buf *cache_lse = kt_in_f32(dev, out.before_lse, out.slots);
    KT_OK(kern_attn(dev, &(kern_attn_args){.qkv = d.qkv,
                                           .kv = d.kv,
                                           .batch = &d.batch,
                                           .plan = &d.plan,
                                           .heads = c->shape.heads,
                                           .scale = c->scale,
                                           .o = o,
                                           .lse = lse,
                                           .cache_o = cache_o,
                                           .cache_lse = cache_lse,
                                           .out = merged}));
    out.o = kt_take(o, values);
    out.lse = kt_take(lse, out.heads);
    out.out = kt_take(merged, values);
    out.cache_o = kt_take(cache_o, cached);
    out.cache_lse = kt_take(cache_lse, out.slots);
    kern_buf *const bufs[] = {o, lse, merged, cache_o, cache_lse};
    for (size_t i = 0; i < KT_COUNT(bufs); i++)
        kern_buf_free(bufs[i]);
    ac_release(&d);
    kern_dev_close(dev);
    return out;
}

static void free_outputs(outputs *out)
{
    void *const all[] = {out->o,         out->lse,      out->out,       out->cache_o,
                         out->cache_lse, out->before_o, out->before_lse};
    for (size_t i = 0; i < KT_COUNT(all); i++)
        rt_free(all[i]);
}

// The same bits in `rows` rows, from row0 of `whole`.
static void check_same(const outputs *part, const outputs *whole, int row0, int rows, int heads,
                       const char *what)
{
    const size_t at = (size_t)(row0 * heads), count = (size_t)(rows * heads), dim = whole->dim;
    KT_SAME(part->lse, whole->lse + at, count, what);
    KT_SAME(part->o, whole->o + at * dim, count * dim, what);
    KT_SAME(part->out, whole->out + at * dim, count * dim, what);
}

// ---- the equations ---------------------------------------------------------------

static bool listed(const ac_case *c, int seg, int list, int page)
{
    const int entry = seg * c->shape.lists + list;
    if (c->list_count[entry] < 0)
        return true;
    for (int i = 0; i < c->list_count[entry]; i++)
        if (c->list[entry * c->max_pages + i] == page)
            return true;
    return false;
}

// o = sum of e^(s - top) v / sum of e^(s - top), lse = top + log of that sum.
static double softmax_values(const double *s, const float *const *v, int count, int dim, double *o)
{
    double top = -INFINITY, sum = 0.0;
    for (int i = 0; i < count; i++)
        top = fmax(top, s[i]);
    for (int j = 0; j < dim; j++)
        o[j] = 0.0;
    for (int i = 0; i < count; i++) {
        const double p = exp(s[i] - top);
        sum += p;
        for (int j = 0; j < dim; j++)
            o[j] += p * (double)v[i][j];
    }
    for (int j = 0; count > 0 && j < dim; j++)
        o[j] /= sum;
    return count > 0 ? top + log(sum) : -(double)INFINITY;
}

static double dot(const float *a, const float *b, int dim)
{
    double sum = 0.0;
    for (int j = 0; j < dim; j++)
        sum += (double)a[j] * (double)b[j];
    return sum;
}

static const float *qkv_head(const ac_case *c, int row, int head)
{
    return c->qkv + (size_t)row * (size_t)ac_width(c) + (size_t)(head * c->shape.dim);
}

static double prefix_reference(const ac_case *c, int row, int head, double *o)
{
    const int seg = c->row_seg[row], prefix = ac_prefix(c, row);
    const int kv_head = head / (c->shape.heads / c->shape.kv_heads);
    double *s = kt_alloc((size_t)prefix + 1, sizeof *s);
    const float **v = kt_alloc((size_t)prefix + 1, sizeof *v);
    int count = 0;
    for (int t = 0; t < prefix; t++) {
        if (!listed(c, seg, c->shape.lists == 1 ? 0 : kv_head, t / c->shape.page))
            continue;
        const size_t at = ac_token(c, seg, t, kv_head);
        s[count] = (double)c->scale * dot(qkv_head(c, row, head), c->k + at, c->shape.dim);
        v[count++] = c->v + at;
    }
    const double lse = softmax_values(s, v, count, c->shape.dim, o);
    rt_free(s);
    rt_free(v);
    return lse;
}

static double block_reference(const ac_case *c, int row, int head, double *o)
{
    const int block = c->shape.block, first = row - c->pos[row] % block;
    const int kv_head = head / (c->shape.heads / c->shape.kv_heads);
    double s[256];
    const float *v[256];
    for (int i = 0; i < block; i++) {
        s[i] =
            (double)c->scale * dot(qkv_head(c, row, head),
                                   qkv_head(c, first + i, c->shape.heads + kv_head), c->shape.dim);
        v[i] = qkv_head(c, first + i, c->shape.heads + c->shape.kv_heads + kv_head);
    }
    return softmax_values(s, v, block, c->shape.dim, o);
}

static bool active(const ac_case *c, int row)
{
    const int seg = c->row_seg[row];
    for (int i = 0; i < c->act_count[seg]; i++)
        if (c->act_rows[c->seg_row0[seg] + i] == row)
            return true;
    return false;
}

static bool poisoned(const float *values, int count)
{
    for (int i = 0; i < count; i++)
        if (memcmp(&values[i], &kt_poison, sizeof kt_poison) != 0)
            return false;
    return true;
}

static void check_prefix(const ac_case *c, const outputs *out)
{
    double want[256];
    const int heads = c->shape.heads, dim = c->shape.dim;
    for (int row = 0; row < c->rows; row++)
        for (int h = 0; h < heads; h++) {
            const float *o = out->o + (row * heads + h) * dim, *lse = out->lse + row * heads + h;
            if (!active(c, row)) {
                assert_true(poisoned(o, dim) && poisoned(lse, 1));
                continue;
            }
            const double want_lse = prefix_reference(c, row, h, want);
            KT_NEAR(o, want, (size_t)dim, 1.0, tolerance);
            KT_NEAR(lse, &want_lse, 1, 1.0, tolerance);
        }
}

// ---- random plans ------------------------------------------------------------------

// A random part of the rows of the sparse segments is active and reads a random
// part of the pages; one in four segments reads all, one in eight nothing.
static void random_plan(ac_case *c, kt_rng *rng)
{
    for (int s = 0; s < c->sparse_segs; s++) {
        int count = 0;
        const int keep = kt_int(rng, 0, 4);
        for (int row = c->seg_row0[s]; row < c->seg_row0[s + 1]; row++)
            if (kt_int(rng, 0, 3) < keep)
                c->act_rows[c->seg_row0[s] + count++] = row;
        c->act_count[s] = count;
        const int pages = (ac_prefix(c, c->seg_row0[s]) + c->shape.page - 1) / c->shape.page;
        const int odds = kt_int(rng, 0, 7);
        for (int l = 0; l < c->shape.lists; l++) {
            const int entry = s * c->shape.lists + l;
            c->list_count[entry] = odds < 2 ? -1 : 0;
            for (int g = 0; odds > 2 && g < pages; g++)
                if (g == pages - 1 || kt_int(rng, 0, 2) == 0)
                    c->list[entry * c->max_pages + c->list_count[entry]++] = g;
        }
    }
}

// Sparse segments first, then a first step, a commit and a prefill chunk.
static ac_case *random_case(kt_rng *rng, ac_shape shape, int longest)
{
    const int block = shape.block, blocks = longest / block;
    const ac_seg segs[] = {
        {KERN_SEG_STEP, kt_int(rng, 0, blocks) * block, 1},
        {KERN_SEG_STEP, kt_int(rng, 0, 2) * block, 1},
        {KERN_SEG_FIRST, kt_int(rng, 0, blocks) * block, 1},
        {KERN_SEG_COMMIT, kt_int(rng, 0, blocks) * block, 1},
        {KERN_SEG_PREFILL, kt_int(rng, 0, blocks) * block, kt_int(rng, 1, 5)},
        {KERN_SEG_PREFILL, 0, kt_int(rng, 1, 3)},
    };
    return ac_new(rng, shape, segs, (int)KT_COUNT(segs), kt_int(rng, 0, 2));
}

static ac_shape random_shape(kt_rng *rng)
{
    static const int dims[] = {64, 96, 128, 80, 8, 20}, groups[] = {1, 2, 3, 4, 8};
    const int kv_heads = kt_int(rng, 1, 3);
    return (ac_shape){.block = 4 << kt_int(rng, 0, 4),
                      .page = 4 << kt_int(rng, 0, kt_int(rng, 0, 1) ? 4 : 6),
                      .heads = kv_heads * groups[kt_int(rng, 0, 4)],
                      .kv_heads = kv_heads,
                      .dim = dims[kt_int(rng, 0, 5)],
                      .lists = kt_int(rng, 0, 1) ? kv_heads : 1};
}

static void prefix_matches_the_equation(void **state)
{
    (void)state;
    kt_rng rng = {1};
    for (int round = 0; round < 40; round++) {
        ac_case *c = random_case(&rng, random_shape(&rng), 300);
        random_plan(c, &rng);
        outputs out = run_attn(c, 1 + round % 2);
        check_prefix(c, &out);
        free_outputs(&out);
        ac_free(c);
    }
}

static void long_prefixes_match_the_equation(void **state)
{
    (void)state;
    kt_rng rng = {2};
    for (int round = 0; round < 4; round++) {
        const ac_shape shape = {
            .block = 4, .page = 16, .heads = 2, .kv_heads = 1, .dim = 16, .lists = 1};
        const ac_seg segs[] = {{KERN_SEG_STEP, 4 * kt_int(&rng, 900, 1400), 1},
                               {KERN_SEG_PREFILL, 4 * kt_int(&rng, 478, 482), 3}};
        ac_case *c = ac_new(&rng, shape, segs, 2, 1);
        if (round % 2)
            random_plan(c, &rng);
        outputs out = run_attn(c, 1 + round);
        check_prefix(c, &out);
        free_outputs(&out);
        ac_free(c);
    }
}

// ---- bits ----------------------------------------------------------------------------

// The bits of a row must not depend on the threads: few tiles with a long prefix
// take another path than one thread does.
static void threads_do_not_change_bits(void **state)
{
    (void)state;
    kt_rng rng = {3};
    for (int round = 0; round < 6; round++) {
        ac_shape shape = random_shape(&rng);
        shape.block = 4 << kt_int(&rng, 0, 2);
        ac_case *c = random_case(&rng, shape, round < 3 ? 4200 : 200);
        random_plan(c, &rng);
        outputs one = run_attn(c, 1);
        for (int threads = 2; threads <= 7; threads += 5) {
            outputs many = run_attn(c, threads);
            check_same(&many, &one, 0, c->rows, shape.heads, "threads");
            KT_SAME(one.cache_o, many.cache_o, one.slots * one.dim, "threads");
            KT_SAME(one.cache_lse, many.cache_lse, one.slots, "threads");
            free_outputs(&many);
        }
        free_outputs(&one);
        ac_free(c);
    }
}

// A case with some rows of segment `seg` of `from`, from row `row0` of it.
static ac_case *cut_rows(const ac_case *from, int seg, int row0, int rows)
{
    kt_rng rng = {0};
    const ac_seg spec = {from->seg_kind[seg], from->pos[from->seg_row0[seg] + row0],
                         rows / from->shape.block};
    ac_case *c = ac_new(&rng, from->shape, &spec, 1, 0);
    const int width = ac_width(c);
    memcpy(c->qkv, from->qkv + (from->seg_row0[seg] + row0) * width,
           (size_t)(rows * width) * sizeof *c->qkv);
    for (int g = 0; g < c->max_pages; g++) {
        if (g * c->shape.page >= ac_prefix(c, c->rows - 1))
            break;
        for (int h = 0; h < c->shape.kv_heads; h++) {
            const size_t bytes = (size_t)(c->shape.page * c->shape.dim) * sizeof *c->k;
            const size_t to = ac_token(c, 0, g * c->shape.page, h);
            const size_t at = ac_token(from, seg, g * c->shape.page, h);
            memcpy(c->k + to, from->k + at, bytes);
            memcpy(c->v + to, from->v + at, bytes);
        }
    }
    return c;
}

// Nor on the chunk of the prompt it arrives in, nor on the rest of the batch; what
// the page holds beyond the row's prefix (here the later blocks) does not count.
static void chunks_do_not_change_bits(void **state)
{
    (void)state;
    kt_rng rng = {4};
    for (int round = 0; round < 12; round++) {
        const ac_shape shape = random_shape(&rng);
        const int blocks = kt_int(&rng, 3, 40 / (shape.block / 4 + 1) + 3);
        const int start = round % 4 == 0 ? 1880 / shape.block : kt_int(&rng, 0, 5);
        const ac_seg segs[] = {{KERN_SEG_STEP, 2 * shape.block, 1},
                               {KERN_SEG_PREFILL, start * shape.block, blocks}};
        ac_case *c = ac_new(&rng, shape, segs, 2, 1);
        outputs whole = run_attn(c, 2);
        for (int b = 0; b < blocks;) {
            const int n = kt_int(&rng, 1, 3) < blocks - b ? kt_int(&rng, 1, 2) : 1;
            ac_case *part = cut_rows(c, 1, b * shape.block, n * shape.block);
            outputs out = run_attn(part, 1);
            check_same(&out, &whole, (b + 1) * shape.block, part->rows, shape.heads, "chunk");
            free_outputs(&out);
            ac_free(part);
            b += n;
        }
        free_outputs(&whole);
        ac_free(c);
    }
}

// Nor on which other rows of its block are active.
static void active_rows_do_not_change_bits(void **state)
{
    (void)state;
    kt_rng rng = {5};
    for (int round = 0; round < 8; round++) {
        const ac_shape shape = random_shape(&rng);
        ac_case *c = ac_new(
            &rng, shape, &(ac_seg){KERN_SEG_STEP, (200 / shape.block + 1) * shape.block, 1}, 1, 1);
        outputs all = run_attn(c, 1);
        const int heads = shape.heads;
        for (int row = 0; row < c->rows; row += 3) {
            c->act_rows[0] = row;
            c->act_count[0] = 1;
            outputs one = run_attn(c, 1);
            KT_SAME(one.lse + row * heads, all.lse + row * heads, (size_t)heads, "row");
            KT_SAME(one.o + row * heads * shape.dim, all.o + row * heads * shape.dim,
                    (size_t)(heads * shape.dim), "row");
            free_outputs(&one);
        }
        free_outputs(&all);
        ac_free(c);
    }
}

// A NaN key must show in every row that sees it, and in no other.
static void a_nan_key_is_not_hidden(void **state)
{
    (void)state;
    kt_rng rng = {6};
    const ac_shape shape = {
        .block = 8, .page = 16, .heads = 2, .kv_heads = 1, .dim = 16, .lists = 1};
    ac_case *c = ac_new(&rng, shape, &(ac_seg){KERN_SEG_PREFILL, 0, 6}, 1, 0);
    c->k[ac_token(c, 0, 19, 0) + 3] = NAN;
    outputs out = run_attn(c, 1);
    for (int row = 0; row < c->rows; row++)
        assert_int_equal(!!isnan(out.lse[2 * row]), row >= 24);
    free_outputs(&out);
    ac_free(c);
}

// ---- merge ---------------------------------------------------------------------------

static void check_merge(const ac_case *c, const outputs *a)
{
    const int heads = c->shape.heads;
    double o_b[256], want[256];
    bool *refreshed = kt_alloc(a->slots + 1, sizeof *refreshed);
    for (int row = 0; row < c->rows; row++)
        for (int h = 0; h < heads; h++) {
            const size_t here = (size_t)(row * heads + h);
            const size_t cached =
                (size_t)((c->cache_slot[row] < 0 ? 0 : c->cache_slot[row]) * heads + h);
            const bool fresh = active(c, row);
            const float *o_p = fresh ? a->o + here * a->dim : a->before_o + cached * a->dim;
            const double lp = (double)(fresh ? a->lse[here] : a->before_lse[cached]);
            const double lb = block_reference(c, row, h, o_b), top = fmax(lp, lb);
            const double wp = exp(lp - top), wb = exp(lb - top);
            for (size_t j = 0; j < a->dim; j++)
                want[j] = wp > 0.0 ? (wp * (double)o_p[j] + wb * o_b[j]) / (wp + wb) : o_b[j];
            KT_NEAR(a->out + here * a->dim, want, a->dim, 1.0, tolerance);
            if (!fresh || c->cache_slot[row] < 0)
                continue;
            refreshed[cached] = true;
            KT_SAME(a->cache_o + cached * a->dim, a->o + here * a->dim, a->dim, "cache");
            assert_true(a->cache_lse[cached] == a->lse[here]);
        }
    for (size_t i = 0; i < a->slots; i++)
        if (!refreshed[i]) {
            KT_SAME(a->cache_o + i * a->dim, a->before_o + i * a->dim, a->dim, "kept cache");
            assert_true(a->cache_lse[i] == a->before_lse[i]);
        }
    rt_free(refreshed);
}

static void merge_matches_the_equation(void **state)
{
    (void)state;
    kt_rng rng = {7};
    for (int round = 0; round < 30; round++) {
        ac_case *c = random_case(&rng, random_shape(&rng), 100);
        random_plan(c, &rng);
        outputs out = run_attn(c, 1 + round % 3);
        check_merge(c, &out);
        free_outputs(&out);
        ac_free(c);
    }
}

static void unusable_batches_are_refused(void **state)
{
    (void)state;
    kt_rng rng = {8};
    kern_dev *dev = kt_open(1);
    const ac_shape shape = {.block = 4, .page = 8, .heads = 2, .kv_heads = 1, .dim = 8, .lists = 1};
    ac_case *c = ac_new(&rng, shape, &(ac_seg){KERN_SEG_STEP, 8, 1}, 1, 1);
    kern_buf *o = kt_out_f32(dev, 64), *lse = kt_out_f32(dev, 8), *out = kt_out_f32(dev, 64);
    kern_buf *cache_o = kt_out_f32(dev, 96), *cache_lse = kt_out_f32(dev, 12);
    const int32_t slot = c->cache_slot[0];
    for (int fault = 0; fault < 5; fault++) {
        c->cache_slot[0] = fault == 0 ? -1 : fault == 1 ? 1000 : slot;
        c->act_rows[0] = fault == 2 ? 4 : 1;
        c->act_count[0] = 1;
        c->pos[3] = fault == 3 ? 12 : 11;
        ac_dev d = ac_upload(c, dev);
        d.batch.max_pages = fault == 4 ? 0 : d.batch.max_pages;
        const kern_attn_args args = {.qkv = d.qkv,
                                     .kv = d.kv,
                                     .batch = &d.batch,
                                     .plan = &d.plan,
                                     .heads = 2,
                                     .scale = 0.3f,
                                     .o = o,
                                     .lse = lse,
                                     .cache_o = cache_o,
                                     .cache_lse = cache_lse,
                                     .out = out};
        static const char *const words[] = {"slot", "slot", "row", "block", "pages"};
        KT_REFUSED(kern_attn(dev, &args), fault == 4 ? RT_ERR_LIMIT : RT_ERR_INVALID, "kern_attn",
                   words[fault]);
        ac_release(&d);
    }
    kern_buf *all[] = {o, lse, out, cache_o, cache_lse};
    for (size_t i = 0; i < KT_COUNT(all); i++)
        kern_buf_free(all[i]);
    ac_free(c);
    kern_dev_close(dev);
}

// ---- speed ---------------------------------------------------------------------------

static void bench(const char *what, ac_shape shape, ac_seg seg, int threads)
{
    kt_rng rng = {9};
    ac_case *c = ac_new(&rng, shape, &seg, 1, seg.kind == KERN_SEG_STEP);
    kern_dev *dev = kt_open(threads);
    ac_dev d = ac_upload(c, dev);
    const size_t heads = (size_t)(c->rows * shape.heads);
    const size_t values = heads * (size_t)shape.dim;
    const size_t slots = (size_t)(c->slots * shape.heads);
    kern_buf *const bufs[] = {kt_out_f32(dev, values), kt_out_f32(dev, heads),
                              kt_out_f32(dev, values), kt_out_f32(dev, slots * (size_t)shape.dim),
                              kt_out_f32(dev, slots)};
    const kern_attn_args args = {.qkv = d.qkv,
                                 .kv = d.kv,
                                 .batch = &d.batch,
                                 .plan = &d.plan,
                                 .heads = shape.heads,
                                 .scale = c->scale,
                                 .o = bufs[0],
                                 .lse = bufs[1],
                                 .cache_o = bufs[3],
                                 .cache_lse = bufs[4],
                                 .out = bufs[2]};
    double flops = 0.0, best = 1e9;
    for (int row = 0; row < c->rows; row++)
        flops += 4.0 * shape.heads * shape.dim * ac_prefix(c, row);
    for (int i = 0; i < 10; i++) {
        const double start = rt_clock_now();
        KT_OK(kern_attn(dev, &args));
        best = fmin(best, rt_clock_now() - start);
    }
    printf("%s: rows %d, prefix %d, heads %d/%d, dim %d, threads %d: %.3f ms, %.1f GFLOP/s\n", what,
           c->rows, ac_prefix(c, 0), shape.heads, shape.kv_heads, shape.dim, threads, best * 1e3,
           flops / best * 1e-9);
    for (size_t i = 0; i < KT_COUNT(bufs); i++)
        kern_buf_free(bufs[i]);
    ac_release(&d);
    kern_dev_close(dev);
    ac_free(c);
}

static void bench_all(void)
{
    const int cores = rt_pool_cores();
    for (int threads = 1; threads <= cores; threads *= 2)
        for (int dim = 64; dim <= 128; dim *= 2) {
            const ac_shape shape = {
                .block = 16, .page = 16, .heads = 8, .kv_heads = 4, .dim = dim, .lists = 1};
            bench("prefill", shape, (ac_seg){KERN_SEG_PREFILL, 8192, 32}, threads);
            bench("decode", shape, (ac_seg){KERN_SEG_STEP, 8192, 1}, threads);
        }
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "--bench") == 0) {
        bench_all();
        return 0;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(prefix_matches_the_equation),
        cmocka_unit_test(long_prefixes_match_the_equation),
        cmocka_unit_test(threads_do_not_change_bits),
        cmocka_unit_test(chunks_do_not_change_bits),
        cmocka_unit_test(active_rows_do_not_change_bits),
        cmocka_unit_test(a_nan_key_is_not_hidden),
        cmocka_unit_test(merge_matches_the_equation),
        cmocka_unit_test(unusable_batches_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
