// SPDX-License-Identifier: Apache-2.0
// Whole steps of the policies quest-init and losa, chained from the operations as
// the program chains them, against the policies' description written out naively
// in double precision: LoSA (arXiv 2604.12056) steps 1 to 6 over QUEST pages.
//
// Three requests denoise a block each for a few steps; the third starts its block
// anew in the second step, so that dense and sparse segments meet in a batch.
// Choices are compared exactly. A draw in which two candidates at a cut lie within
// `least_gap` of each other is thrown away: f32 may order them either way.
#include "tests/kern/attn_case.h"

#include <stdlib.h>

enum { REQUESTS = 3, STEPS = 4, MAX_PAGES = 256, MAX_ROWS = 64, MAX_DIM = 128, MAX_HEADS = 16 };

static const double least_gap = 1e-4; // relative; f32 scores and deltas hold about 1e-5
static const double tolerance = 1e-5;

typedef struct policy {
    kern_active_rule rule;
    int k, top;
} policy;

// What a step decided and gave.
typedef struct result {
    int32_t *rows, *count, *pages, *page_count;
    float *out;
} result;

static void free_result(result *r)
{
    rt_free(r->rows);
    rt_free(r->count);
    rt_free(r->pages);
    rt_free(r->page_count);
    rt_free(r->out);
}

// ---- the program's way ------------------------------------------------------------------

// What lives between steps.
typedef struct memory {
    kern_dev *dev;
    kern_buf *prev, *cache_o, *cache_lse;
} memory;

static memory memory_new(kern_dev *dev, const ac_case *c)
{
    const size_t heads = (size_t)(c->slots * c->shape.heads);
    memory m = {.dev = dev};
    m.prev = kt_out_f32(dev, heads * (size_t)c->shape.dim);
    m.cache_o = kt_out_f32(dev, heads * (size_t)c->shape.dim);
    m.cache_lse = kt_out_f32(dev, heads);
    return m;
}

static void memory_free(memory *m)
{
    kern_buf_free(m->prev);
    kern_buf_free(m->cache_o);
    kern_buf_free(m->cache_lse);
}

// Scores of the active rows into a new buffer.
static kern_buf *score_pages(const ac_case *c, ac_dev *d, int score_lists, int list0, size_t *total)
{
    *total = (size_t)(c->sparse_segs * score_lists * d->plan.act_cap * c->max_pages);
    kern_buf *score = kt_out_f32(d->dev, *total);
    KT_OK(kern_page_score(d->dev, &(kern_page_score_args){.q = d->qkv,
                                                          .stride = ac_width(c),
                                                          .kv = d->kv,
                                                          .batch = &d->batch,
                                                          .plan = &d->plan,
                                                          .heads = c->shape.heads,
                                                          .scale = c->scale,
                                                          .score_lists = score_lists,
                                                          .list0 = list0,
                                                          .score = score}));
    return score;
}

static void find_active(const ac_case *c, ac_dev *d, const memory *m, policy p)
{
    kern_buf *delta = kt_out_f32(d->dev, (size_t)c->rows);
    const int cols = c->shape.heads * c->shape.dim;
    KT_OK(kern_locality(
        d->dev, &(kern_locality_args){d->qkv, m->prev, delta, &d->batch, cols, ac_width(c), 1.0f}));
    KT_OK(kern_active(d->dev, &(kern_active_args){&d->batch, delta, p.rule, p.k, 0.0f, &d->plan}));
    kern_buf_free(delta);
}

static float *attend(const ac_case *c, const ac_dev *d, const memory *m)
{
    const size_t heads = (size_t)(c->rows * c->shape.heads), dim = (size_t)c->shape.dim;
    kern_buf *o = kt_out_f32(d->dev, heads * dim), *lse = kt_out_f32(d->dev, heads);
    kern_buf *out = kt_out_f32(d->dev, heads * dim);
    KT_OK(kern_attn(d->dev, &(kern_attn_args){.qkv = d->qkv,
                                              .kv = d->kv,
                                              .batch = &d->batch,
                                              .plan = &d->plan,
                                              .heads = c->shape.heads,
                                              .scale = c->scale,
                                              .o = o,
                                              .lse = lse,
                                              .cache_o = m->cache_o,
                                              .cache_lse = m->cache_lse,
                                              .out = out}));
    float *merged = kt_take(out, heads * dim);
    kern_buf_free(o);
    kern_buf_free(lse);
    kern_buf_free(out);
    return merged;
}

static result take_result(const ac_case *c, const ac_dev *d, float *out)
{
    const size_t lists = (size_t)(c->segs * c->shape.lists);
    return (result){.rows = kt_take(d->plan.act_rows, (size_t)c->rows),
                    .count = kt_take(d->plan.act_count, (size_t)c->segs),
                    .pages = kt_take(d->plan.pages, lists * (size_t)c->max_pages),
                    .page_count = kt_take(d->plan.page_count, lists),
                    .out = out};
}

static result run_step(const ac_case *c, const memory *m, policy p)
{
    ac_dev d = ac_upload(c, m->dev);
    find_active(c, &d, m, p);
    if (c->sparse_segs > 0) {
        size_t total;
        kern_buf *score = score_pages(c, &d, c->shape.lists, 0, &total);
        const kern_page_select_args args = ac_select(score, &d, c->shape.lists, 0, p.top);
        KT_OK(kern_page_select(m->dev, &args));
        kern_buf_free(score);
    }
    const result r = take_result(c, &d, attend(c, &d, m));
    ac_release(&d);
    return r;
}

// ---- the description, naively ---------------------------------------------------------------

// Of every row: the last query, and (o_p, L_p) of every head.
typedef struct naive {
    double query[MAX_ROWS][MAX_HEADS * MAX_DIM];
    double o[MAX_ROWS][MAX_HEADS][MAX_DIM], lse[MAX_ROWS][MAX_HEADS];
    bool is_active[MAX_ROWS];
    bool read[REQUESTS][MAX_HEADS][MAX_PAGES]; // [request][list][page]
    double out[MAX_ROWS][MAX_HEADS][MAX_DIM];
    double gap; // smallest relative distance at a cut
} naive;

typedef struct candidate {
    double value;
    int index;
} candidate;

static int by_value(const void *a, const void *b)
{
    const candidate *x = a, *y = b;
    if (x->value != y->value)
        return x->value > y->value ? -1 : 1;
    return x->index - y->index;
}

// Orders the candidates; notes how clear the cut after `take` of them is.
static void rank(naive *n, candidate *list, int count, int take)
{
    qsort(list, (size_t)count, sizeof *list, by_value);
    if (take > 0 && take < count) {
        const double gap = (list[take - 1].value - list[take].value) / list[take - 1].value;
        n->gap = fmin(n->gap, gap);
    }
}

static const float *head_of(const ac_case *c, int row, int head)
{
    return c->qkv + row * ac_width(c) + head * c->shape.dim;
}

static double dot(const float *a, const float *b, int dim)
{
    double sum = 0.0;
    for (int i = 0; i < dim; i++)
        sum += (double)a[i] * (double)b[i];
    return sum;
}

// Steps 1 and 2: delta_i = MSE(q_i(t), q_i(t - 1)); A by the rule.
static void naive_active(naive *n, const ac_case *c, policy p, int request)
{
    const int row0 = c->seg_row0[request], cols = c->shape.heads * c->shape.dim;
    candidate list[MAX_ROWS];
    int count = 0;
    for (int row = row0; row < c->seg_row0[request + 1]; row++) {
        double delta = 0.0;
        for (int i = 0; i < cols; i++) {
            const double q = (double)c->qkv[row * ac_width(c) + i];
            delta += (q - n->query[row][i]) * (q - n->query[row][i]) / cols;
            n->query[row][i] = q;
        }
        const bool new = c->row_state[row] & KERN_ROW_NEW;
        const bool masked = c->row_state[row] & KERN_ROW_MASKED;
        const bool all = request >= c->sparse_segs || p.rule == KERN_ACTIVE_ALL;
        n->is_active[row] = all || (p.rule == KERN_ACTIVE_NEW_TOPK && new) ||
                            (p.rule == KERN_ACTIVE_UNSETTLED && (new || masked));
        if (!n->is_active[row] && p.rule != KERN_ACTIVE_UNSETTLED)
            list[count++] = (candidate){delta, row};
    }
    rank(n, list, count, p.k);
    for (int i = 0; i < count && i < p.k; i++)
        n->is_active[list[i].index] = true;
}

static int pages_of(const ac_case *c, int request)
{
    return (ac_prefix(c, c->seg_row0[request]) + c->shape.page - 1) / c->shape.page;
}

// QUEST: score(page) = sum over c of max(q_c m_c, q_c M_c); as shares over the pages,
// so that heads may be added.
static void add_quest_shares(const ac_case *c, int request, int row, int head, candidate *pages)
{
    double score[MAX_PAGES], sum = 0.0;
    const int count = pages_of(c, request);
    for (int g = 0; g < count; g++) {
        const size_t meta = ac_page(c, request, g, head / (c->shape.heads / c->shape.kv_heads));
        score[g] = 0.0;
        for (int i = 0; i < c->shape.dim; i++) {
            const double q = (double)head_of(c, row, head)[i] * (double)c->scale;
            score[g] +=
                fmax(q * (double)c->kmin[meta + (size_t)i], q * (double)c->kmax[meta + (size_t)i]);
        }
        sum += exp(score[g]);
    }
    for (int g = 0; g < count; g++)
        pages[g].value += exp(score[g]) / sum;
}

// J_i for the heads of one list, added to the union J.
static void take_pages(naive *n, const ac_case *c, policy p, int request, int row, int list)
{
    candidate pages[MAX_PAGES];
    const int count = pages_of(c, request);
    for (int g = 0; g < count; g++)
        pages[g] = (candidate){0.0, g};
    for (int h = 0; h < c->shape.heads; h++)
        if (c->shape.lists == 1 || h / (c->shape.heads / c->shape.kv_heads) == list)
            add_quest_shares(c, request, row, h, pages);
    const int ends = count < 2 ? count : 2;
    if (count > 0)
        n->read[request][list][0] = n->read[request][list][count - 1] = true;
    if (count > 2)
        rank(n, pages + 1, count - 2, p.top - ends);
    for (int i = 0; i < count - 2 && i < p.top - ends; i++)
        n->read[request][list][pages[1 + i].index] = true;
}

static double softmax(const double *s, const float *const *v, int count, int dim, double *o)
{
    double sum = 0.0;
    for (int j = 0; j < dim; j++)
        o[j] = 0.0;
    for (int i = 0; i < count; i++) {
        sum += exp(s[i]);
        for (int j = 0; j < dim; j++)
            o[j] += exp(s[i]) * (double)v[i][j];
    }
    for (int j = 0; count > 0 && j < dim; j++)
        o[j] /= sum;
    return log(sum);
}

// Scores and values of the prefix tokens in J, behind `count` that are there.
static int gather_prefix(const naive *n, const ac_case *c, int row, int head, double *s,
                         const float **v, int count)
{
    const int request = c->row_seg[row], kv_head = head / (c->shape.heads / c->shape.kv_heads);
    for (int t = 0; t < ac_prefix(c, row); t++) {
        if (!n->read[request][c->shape.lists == 1 ? 0 : kv_head][t / c->shape.page])
            continue;
        const size_t at = ac_token(c, request, t, kv_head);
        s[count] = (double)c->scale * dot(head_of(c, row, head), c->k + at, c->shape.dim);
        v[count++] = c->v + at;
    }
    return count;
}

static int gather_block(const ac_case *c, int row, int head, double *s, const float **v, int count)
{
    const int first = c->seg_row0[c->row_seg[row]];
    const int key = c->shape.heads + head / (c->shape.heads / c->shape.kv_heads);
    for (int i = 0; i < c->shape.block; i++, count++) {
        s[count] =
            (double)c->scale * dot(head_of(c, row, head), head_of(c, first + i, key), c->shape.dim);
        v[count] = head_of(c, first + i, key + c->shape.kv_heads);
    }
    return count;
}

// Steps 3 to 6 of one row and head.
static void naive_attend(naive *n, const ac_case *c, int row, int head)
{
    double s[MAX_PAGES * 16 + MAX_ROWS], o_b[MAX_DIM];
    const float *v[MAX_PAGES * 16 + MAX_ROWS];
    if (n->is_active[row]) {
        const int count = gather_prefix(n, c, row, head, s, v, 0);
        n->lse[row][head] = softmax(s, v, count, c->shape.dim, n->o[row][head]);
    }
    const int count = gather_block(c, row, head, s, v, 0);
    const double wb = exp(softmax(s, v, count, c->shape.dim, o_b)), wp = exp(n->lse[row][head]);
    for (int j = 0; j < c->shape.dim; j++)
        n->out[row][head][j] = (wp * n->o[row][head][j] + wb * o_b[j]) / (wp + wb);
}

static void naive_step(naive *n, const ac_case *c, policy p)
{
    memset(n->read, 0, sizeof n->read);
    for (int r = 0; r < c->segs; r++) {
        naive_active(n, c, p, r);
        for (int l = 0; l < c->shape.lists; l++) {
            for (int g = 0; r >= c->sparse_segs && g < pages_of(c, r); g++)
                n->read[r][l][g] = true;
            for (int row = c->seg_row0[r]; r < c->sparse_segs && row < c->seg_row0[r + 1]; row++)
                if (n->is_active[row])
                    take_pages(n, c, p, r, row, l);
        }
    }
    for (int row = 0; row < c->rows; row++)
        for (int h = 0; h < c->shape.heads; h++)
            naive_attend(n, c, row, h);
}

// ---- comparison -----------------------------------------------------------------------------

static void compare_choices(const naive *n, const ac_case *c, const result *r)
{
    for (int s = 0; s < c->segs; s++) {
        int count = 0;
        for (int row = c->seg_row0[s]; row < c->seg_row0[s + 1]; row++)
            if (n->is_active[row])
                assert_int_equal(r->rows[c->seg_row0[s] + count++], row);
        assert_int_equal(r->count[s], count);
        for (int l = 0; l < c->shape.lists; l++) {
            const int entry = s * c->shape.lists + l;
            int pages = 0;
            for (int g = 0; s < c->sparse_segs && g < pages_of(c, s); g++)
                if (n->read[s][l][g])
                    assert_int_equal(r->pages[entry * c->max_pages + pages++], g);
            assert_int_equal(r->page_count[entry], s < c->sparse_segs ? pages : -1);
        }
    }
}

static void compare_outputs(const naive *n, const ac_case *c, const float *out)
{
    const int dim = c->shape.dim;
    for (int row = 0; row < c->rows; row++)
        for (int h = 0; h < c->shape.heads; h++)
            KT_NEAR(out + (row * c->shape.heads + h) * dim, n->out[row][h], (size_t)dim, 1.0,
                    tolerance);
}

// ---- the story of three requests --------------------------------------------------------------

static ac_case *new_story(kt_rng *rng, ac_shape shape)
{
    const int block = shape.block;
    const ac_seg segs[REQUESTS] = {
        {KERN_SEG_FIRST, kt_int(rng, 120, 300) / block * block, 1},
        {KERN_SEG_FIRST, kt_int(rng, 0, 60) / block * block, 1},
        {KERN_SEG_FIRST, kt_int(rng, 60, 200) / block * block, 1},
    };
    return ac_new(rng, shape, segs, REQUESTS, 0);
}

// Which segments are sparse in a step, and what moved since the step before: every
// row a little, each by an amount of its own.
static void set_step(ac_case *c, kt_rng *rng, int step)
{
    c->sparse_segs = step == 0 ? 0 : step == 1 ? 2 : 3;
    for (int s = 0; s < REQUESTS; s++)
        c->seg_kind[s] = s < c->sparse_segs ? KERN_SEG_STEP : KERN_SEG_FIRST;
    for (int row = 0; step > 0 && row < c->rows; row++) {
        const float move = kt_uniform(rng, 0.01f, 1.0f);
        for (int i = 0; i < ac_width(c); i++)
            c->qkv[row * ac_width(c) + i] += kt_normal(rng, move);
        c->row_state[row] = kt_int(rng, 0, 2);
    }
}

static ac_shape story_shape(int round)
{
    static const ac_shape shapes[] = {
        {.block = 8, .page = 8, .heads = 4, .kv_heads = 2, .dim = 32, .lists = 1},
        {.block = 16, .page = 16, .heads = 4, .kv_heads = 4, .dim = 64, .lists = 1},
        {.block = 4, .page = 16, .heads = 8, .kv_heads = 2, .dim = 20, .lists = 2},
        {.block = 16, .page = 8, .heads = 6, .kv_heads = 2, .dim = 32, .lists = 2},
    };
    return shapes[round % (int)KT_COUNT(shapes)];
}

// Runs the steps both ways. False if the draw had a near tie; nothing was judged from
// that step on.
static bool tell_story(uint64_t seed, ac_shape shape, policy p)
{
    kt_rng rng = {seed};
    ac_case *c = new_story(&rng, shape);
    naive *n = kt_alloc(1, sizeof *n);
    kern_dev *dev = kt_open(2);
    memory m = memory_new(dev, c);
    n->gap = INFINITY;
    for (int step = 0; step < STEPS && n->gap > least_gap; step++) {
        set_step(c, &rng, step);
        naive_step(n, c, p);
        result r = run_step(c, &m, p);
        if (n->gap > least_gap) {
            compare_choices(n, c, &r);
            compare_outputs(n, c, r.out);
        }
        free_result(&r);
    }
    const bool clear = n->gap > least_gap;
    memory_free(&m);
    kern_dev_close(dev);
    rt_free(n);
    ac_free(c);
    return clear;
}

static void compare_policy(policy p)
{
    int told = 0;
    for (uint64_t seed = 1; seed <= 32; seed++)
        told += tell_story(seed, story_shape((int)seed), p);
    if (told < 8)
        fail_msg("only %d of 32 draws had no near tie", told);
}

static void quest_init_follows_its_description(void **state)
{
    (void)state;
    compare_policy((policy){KERN_ACTIVE_ALL, 0, 5});
}

static void losa_follows_its_description(void **state)
{
    (void)state;
    compare_policy((policy){KERN_ACTIVE_TOPK, 3, 4});
    compare_policy((policy){KERN_ACTIVE_NEW_TOPK, 2, 6});
    compare_policy((policy){KERN_ACTIVE_UNSETTLED, 0, 5});
}

// ---- identities -------------------------------------------------------------------------------

// Two policies over the same story give the same bits.
static void same_outputs(policy a, policy b, int dense_b)
{
    for (int round = 0; round < 4; round++) {
        kt_rng rng = {(uint64_t)(100 + round)};
        ac_case *c = new_story(&rng, story_shape(round));
        kern_dev *dev = kt_open(1);
        memory ma = memory_new(dev, c), mb = memory_new(dev, c);
        for (int step = 0; step < STEPS; step++) {
            set_step(c, &rng, step);
            result ra = run_step(c, &ma, a);
            c->sparse_segs = dense_b ? 0 : c->sparse_segs;
            result rb = run_step(c, &mb, b);
            KT_SAME(ra.out, rb.out, (size_t)(c->rows * c->shape.heads * c->shape.dim), "outputs");
            free_result(&ra);
            free_result(&rb);
        }
        memory_free(&ma);
        memory_free(&mb);
        kern_dev_close(dev);
        ac_free(c);
    }
}

static void a_full_budget_is_dense(void **state)
{
    (void)state;
    const policy all = {KERN_ACTIVE_ALL, 0, 1 << 20};
    same_outputs(all, all, 1);
}

static void losa_with_every_token_active_is_quest_init(void **state)
{
    (void)state;
    same_outputs((policy){KERN_ACTIVE_TOPK, 64, 5}, (policy){KERN_ACTIVE_ALL, 0, 5}, 0);
}

static void the_merge_is_one_softmax_over_prefix_and_block(void **state)
{
    (void)state;
    for (int round = 0; round < 4; round++) {
        kt_rng rng = {(uint64_t)(200 + round)};
        ac_case *c = new_story(&rng, story_shape(round));
        kern_dev *dev = kt_open(1);
        memory m = memory_new(dev, c);
        result r = run_step(c, &m, (policy){KERN_ACTIVE_ALL, 0, 1});
        naive *n = kt_alloc(1, sizeof *n);
        memset(n->read, 1, sizeof n->read);
        for (int row = 0; row < c->rows; row++)
            for (int h = 0; h < c->shape.heads; h++) {
                double s[MAX_PAGES * 16 + MAX_ROWS];
                const float *v[MAX_PAGES * 16 + MAX_ROWS];
                int count = gather_prefix(n, c, row, h, s, v, 0);
                count = gather_block(c, row, h, s, v, count);
                softmax(s, v, count, c->shape.dim, n->out[row][h]);
            }
        compare_outputs(n, c, r.out);
        rt_free(n);
        free_result(&r);
        memory_free(&m);
        kern_dev_close(dev);
        ac_free(c);
    }
}

// ---- shards -----------------------------------------------------------------------------------

// The rank's heads of a case: columns of qkv, KV heads of every page.
static ac_case *shard_of(const ac_case *full, int rank, int ranks)
{
    kt_rng rng = {0};
    ac_shape shape = full->shape;
    shape.heads /= ranks;
    shape.kv_heads /= ranks;
    shape.lists = full->shape.lists == 1 ? 1 : shape.kv_heads;
    ac_seg segs[REQUESTS];
    for (int s = 0; s < REQUESTS; s++)
        segs[s] = (ac_seg){full->seg_kind[s], full->pos[full->seg_row0[s]], 1};
    ac_case *c = ac_new(&rng, shape, segs, REQUESTS, full->sparse_segs);
    const size_t rows = (size_t)c->rows, entries = (size_t)(c->segs * c->max_pages);
    memcpy(c->page_table, full->page_table, entries * sizeof *c->page_table);
    memcpy(c->cache_slot, full->cache_slot, rows * sizeof *c->cache_slot);
    memcpy(c->row_state, full->row_state, rows * sizeof *c->row_state);
    const int dim = shape.dim, head0 = rank * shape.heads, kv0 = rank * shape.kv_heads;
    for (int row = 0; row < c->rows; row++)
        for (int h = 0; h < shape.heads + 2 * shape.kv_heads; h++) {
            const int kv = h - shape.heads; // k heads, then v heads
            const int from = kv < 0                ? head0 + h
                             : kv < shape.kv_heads ? full->shape.heads + kv0 + kv
                                                   : full->shape.heads + full->shape.kv_heads +
                                                         kv0 + kv - shape.kv_heads;
            memcpy(c->qkv + row * ac_width(c) + h * dim, head_of(full, row, from),
                   (size_t)dim * sizeof *c->qkv);
        }
    for (int g = 0; g < c->pages; g++) {
        const size_t n = (size_t)(shape.kv_heads * dim), kept = n * (size_t)shape.page;
        const size_t to = (size_t)g * n;
        const size_t at = ((size_t)(g * full->shape.kv_heads + kv0)) * (size_t)dim;
        const size_t page = (size_t)shape.page;
        memcpy(c->k + to * page, full->k + at * page, kept * sizeof *c->k);
        memcpy(c->v + to * page, full->v + at * page, kept * sizeof *c->v);
        memcpy(c->kmin + to, full->kmin + at, n * sizeof *c->kmin);
        memcpy(c->kmax + to, full->kmax + at, n * sizeof *c->kmax);
    }
    return c;
}

// data += what the buffer holds.
static void add_to(float *sum, const kern_buf *buf, size_t count)
{
    float *part = kt_take(buf, count);
    for (size_t i = 0; i < count; i++)
        sum[i] += part[i];
    rt_free(part);
}

enum { MOST_RANKS = 4 };

typedef struct shards {
    int ranks;
    bool shared; // one list for all heads of all ranks
    ac_case *part[MOST_RANKS];
    ac_dev d[MOST_RANKS];
    memory *m; // [ranks]
} shards;

// Locality and active set with the deltas summed over the ranks.
static void shard_active(shards *s, policy p)
{
    const size_t rows = (size_t)s->part[0]->rows;
    float *sum = kt_floats(rows);
    kern_buf *delta = kt_out_f32(s->m->dev, rows);
    for (int r = 0; r < s->ranks; r++) {
        const ac_case *c = s->part[r];
        const kern_locality_args args = {s->d[r].qkv,
                                         s->m[r].prev,
                                         delta,
                                         &s->d[r].batch,
                                         c->shape.heads * c->shape.dim,
                                         ac_width(c),
                                         1.0f / (float)s->ranks};
        KT_OK(kern_locality(s->m->dev, &args));
        add_to(sum, delta, rows);
    }
    KT_OK(kern_write(delta, 0, sum, rows));
    for (int r = 0; r < s->ranks; r++)
        KT_OK(kern_active(s->m->dev, &(kern_active_args){&s->d[r].batch, delta, p.rule, p.k, 0.0f,
                                                         &s->d[r].plan}));
    kern_buf_free(delta);
    rt_free(sum);
}

// Page lists with the scores summed over the ranks. Scope head is exchanged too here,
// to see that a rank's lists land in their own place.
static void shard_select(shards *s, policy p)
{
    const ac_case *first = s->part[0];
    const bool shared = s->shared;
    const int score_lists = shared ? 1 : first->shape.kv_heads * s->ranks;
    float *sum = NULL;
    kern_buf *score = NULL;
    size_t total = 0;
    for (int r = 0; r < s->ranks; r++) {
        kern_buf_free(score);
        const int list0 = shared ? 0 : r * first->shape.kv_heads;
        score = score_pages(s->part[r], &s->d[r], score_lists, list0, &total);
        sum = sum ? sum : kt_floats(total);
        add_to(sum, score, total);
    }
    KT_OK(kern_write(score, 0, sum, total));
    for (int r = 0; r < s->ranks; r++) {
        const int list0 = shared ? 0 : r * first->shape.kv_heads;
        const kern_page_select_args args = ac_select(score, &s->d[r], score_lists, list0, p.top);
        KT_OK(kern_page_select(s->m->dev, &args));
    }
    kern_buf_free(score);
    rt_free(sum);
}

static int32_t checksum(const ac_dev *d)
{
    kern_buf *buf = kt_out_i32(d->dev, 2);
    KT_OK(kern_plan_checksum(d->dev, &(kern_plan_checksum_args){&d->batch, &d->plan, true, buf}));
    int32_t *out = kt_take(buf, 2);
    const int32_t hash = out[0];
    rt_free(out);
    kern_buf_free(buf);
    return hash;
}

// The rank's choices and outputs are its share of the whole's.
static void compare_shard(const shards *s, int rank, const ac_case *full, const result *want)
{
    const ac_case *c = s->part[rank];
    const int heads = c->shape.heads, dim = c->shape.dim;
    result got = take_result(c, &s->d[rank], attend(c, &s->d[rank], &s->m[rank]));
    KT_SAME(got.rows, want->rows, (size_t)c->rows, "active rows");
    KT_SAME(got.count, want->count, (size_t)c->segs, "active counts");
    for (int seg = 0; seg < c->segs; seg++)
        for (int l = 0; l < c->shape.lists; l++) {
            const int mine = seg * c->shape.lists + l;
            const int whole =
                full->shape.lists == 1 ? seg : seg * full->shape.lists + rank * c->shape.lists + l;
            assert_int_equal(got.page_count[mine], want->page_count[whole]);
            for (int i = 0; i < got.page_count[mine]; i++)
                assert_int_equal(got.pages[mine * c->max_pages + i],
                                 want->pages[whole * c->max_pages + i]);
        }
    for (int row = 0; row < c->rows; row++)
        KT_SAME(got.out + row * heads * dim,
                want->out + (row * full->shape.heads + rank * heads) * dim, (size_t)(heads * dim),
                "outputs");
    free_result(&got);
}

static void shard_step(const ac_case *full, memory *m, int ranks, policy p, const result *want)
{
    shards s = {.ranks = ranks, .shared = full->shape.lists == 1, .m = m};
    for (int r = 0; r < ranks; r++) {
        s.part[r] = shard_of(full, r, ranks);
        s.d[r] = ac_upload(s.part[r], m->dev);
    }
    shard_active(&s, p);
    if (full->sparse_segs > 0)
        shard_select(&s, p);
    for (int r = 0; r < ranks; r++) {
        compare_shard(&s, r, full, want);
        if (s.shared)
            assert_int_equal(checksum(&s.d[r]), checksum(&s.d[0]));
    }
    for (int r = 0; r < ranks; r++) {
        ac_release(&s.d[r]);
        ac_free(s.part[r]);
    }
}

// Heads over 2 and 4 ranks, deltas and scores summed: the plan of the whole, and each
// head's bits. Sums over heads are in another order, so near ties are thrown away.
static void shards_agree_on_the_plan_of_the_whole(void **state)
{
    (void)state;
    const policy p = {KERN_ACTIVE_TOPK, 5, 6};
    int told = 0;
    for (uint64_t seed = 300; seed < 324; seed++) {
        kt_rng rng = {seed};
        ac_shape shape = {.block = 16, .page = 16, .heads = 8, .kv_heads = 4, .dim = 32};
        const int ranks = seed % 2 ? 2 : 4;
        shape.lists = seed % 3 ? 1 : shape.kv_heads;
        ac_case *c = new_story(&rng, shape);
        kern_dev *dev = kt_open(1);
        memory whole = memory_new(dev, c), m[MOST_RANKS];
        for (int r = 0; r < ranks; r++)
            m[r] = memory_new(dev, c);
        naive *n = kt_alloc(1, sizeof *n);
        n->gap = INFINITY;
        for (int step = 0; step < STEPS; step++) {
            set_step(c, &rng, step);
            naive_step(n, c, p);
            if (n->gap <= least_gap)
                break;
            result want = run_step(c, &whole, p);
            shard_step(c, m, ranks, p, &want);
            free_result(&want);
            told += step > 0;
        }
        rt_free(n);
        for (int r = 0; r < ranks; r++)
            memory_free(&m[r]);
        memory_free(&whole);
        kern_dev_close(dev);
        ac_free(c);
    }
    if (told < 12)
        fail_msg("only %d sparse steps had no near tie", told);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(quest_init_follows_its_description),
        cmocka_unit_test(losa_follows_its_description),
        cmocka_unit_test(a_full_budget_is_dense),
        cmocka_unit_test(losa_with_every_token_active_is_quest_init),
        cmocka_unit_test(the_merge_is_one_softmax_over_prefix_and_block),
        cmocka_unit_test(shards_agree_on_the_plan_of_the_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
