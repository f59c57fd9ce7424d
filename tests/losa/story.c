// SPDX-License-Identifier: Apache-2.0
// The ranks are threads for the length of a forward; everything that can fail a test is
// done by the main thread before or after.
#include "tests/losa/story.h"

#include <pthread.h>
#include <stdlib.h>

typedef struct request_state {
    kt_rng rng;
    int tokens; // prompt and two blocks
    int step;   // of its own timetable
    int unread; // tokens unmasked since the block last read
    float *qkv[ST_LAYERS], *hidden[ST_LAYERS];
    int32_t *state, *pages;
} request_state;

// Copies of what the observer saw.
typedef struct rank_view {
    int32_t *act_rows, *act_count, *pages, *page_count;
} rank_view;

typedef struct rank_state {
    comm *comm;
    kern_dev *dev;
    par_plan plan;
    losa_state *losa;
    kern_kv kv[ST_LAYERS];
    kern_batch batch;
    kern_buf *qkv, *hidden, *out;
    float *qkv_host[ST_LAYERS], *hidden_host[ST_LAYERS], *out_host[ST_LAYERS];
    rank_view view[ST_LAYERS];
    rt_status status;
    char error[256];
} rank_state;

struct st_story {
    st_setup setup;
    int forwards, max_rows, max_pages, page_count;
    request_state request[ST_REQUESTS];
    rank_state rank[ST_RANKS];
    st_forward forward;
};

static int width(const st_shape *s)
{
    return (s->heads + 2 * s->kv_heads) * s->dim;
}

const st_setup *st_setup_of(const st_story *s)
{
    return &s->setup;
}

const float *st_qkv(const st_story *s, int layer, int request, int token)
{
    return s->request[request].qkv[layer] + token * width(&s->setup.shape);
}

const float *st_hidden(const st_story *s, int layer, int request, int token)
{
    return s->request[request].hidden[layer] + token * ST_HIDDEN;
}

int st_state(const st_story *s, int request, int token)
{
    return s->request[request].state[token];
}

int st_denoised(const st_setup *setup, const st_seg *seg)
{
    return seg->kind == KERN_SEG_PREFILL || seg->kind == KERN_SEG_COMMIT ? 0 : setup->shape.block;
}

// ---- opening ---------------------------------------------------------------------------

static void open_request(st_story *s, int index, const int32_t *pages)
{
    const st_shape *shape = &s->setup.shape;
    request_state *r = &s->request[index];
    r->rng.state = s->setup.request[index].seed;
    r->tokens = s->setup.request[index].prompt + 2 * shape->block;
    const size_t tokens = (size_t)r->tokens;
    for (int l = 0; l < ST_LAYERS; l++) {
        r->qkv[l] = kt_random(&r->rng, tokens * (size_t)width(shape), 1.5f);
        r->hidden[l] = kt_random(&r->rng, tokens * ST_HIDDEN, 1.0f);
    }
    r->state = kt_ints(tokens);
    for (int i = s->setup.request[index].prompt; i < r->tokens; i++)
        r->state[i] = KERN_ROW_MASKED;
    r->pages = kt_ints((size_t)s->max_pages);
    memcpy(r->pages, pages + index * s->max_pages, (size_t)s->max_pages * sizeof *pages);
}

static void open_requests(st_story *s)
{
    kt_rng rng = {s->setup.request[0].seed + 99};
    int32_t *pages = kt_ints((size_t)s->page_count);
    for (int i = 0; i < s->page_count; i++) {
        const int j = kt_int(&rng, 0, i);
        pages[i] = pages[j];
        pages[j] = i;
    }
    for (int i = 0; i < s->setup.requests; i++)
        open_request(s, i, pages);
    rt_free(pages);
}

static rt_status watch(void *ctx, const losa_view *view)
{
    rank_view *copy = (rank_view *)ctx + view->layer;
    const kern_batch *b = view->batch;
    const size_t lists = (size_t)(b->segs * view->lists);
    memcpy(copy->act_rows, view->act_rows, (size_t)b->rows * sizeof(int32_t));
    memcpy(copy->act_count, view->act_count, (size_t)b->segs * sizeof(int32_t));
    memcpy(copy->page_count, view->page_count, lists * sizeof(int32_t));
    memcpy(copy->pages, view->pages,
           (size_t)(b->sparse_segs * view->lists * b->max_pages) * sizeof(int32_t));
    return RT_OK;
}

static void open_layer(const st_story *s, rank_state *r, int layer)
{
    const st_shape *shape = &s->setup.shape;
    const int kv_heads = r->plan.kv_heads.count, lists = shape->kv_heads;
    const size_t meta = (size_t)(s->page_count * kv_heads * shape->dim);
    const size_t keys = meta * (size_t)shape->page, rows = (size_t)s->max_rows;
    const size_t heads = (size_t)(r->plan.heads.count * shape->dim);
    r->kv[layer] = (kern_kv){.k = kt_out_f32(r->dev, keys),
                             .v = kt_out_f32(r->dev, keys),
                             .kmin = kt_out_f32(r->dev, meta),
                             .kmax = kt_out_f32(r->dev, meta),
                             .pages = s->page_count,
                             .kv_heads = kv_heads,
                             .head_dim = shape->dim};
    r->qkv_host[layer] = kt_floats(rows * (heads + 2 * (size_t)(kv_heads * shape->dim)));
    r->hidden_host[layer] = kt_floats(rows * ST_HIDDEN);
    r->out_host[layer] = kt_floats(rows * heads);
    r->view[layer] = (rank_view){.act_rows = kt_ints(rows),
                                 .act_count = kt_ints(ST_SEGS),
                                 .pages = kt_ints((size_t)(ST_SEGS * lists * s->max_pages)),
                                 .page_count = kt_ints((size_t)(ST_SEGS * lists))};
}

static void open_rank(st_story *s, int index)
{
    const st_shape *shape = &s->setup.shape;
    rank_state *r = &s->rank[index];
    r->dev = kt_open(s->setup.threads);
    const par_shape whole = {shape->heads, shape->kv_heads, s->setup.ranks, s->setup.ranks};
    KT_OK(par_plan_make(&whole, index, s->setup.ranks, &r->plan));
    const losa_limits limits = {.layers = ST_LAYERS,
                                .head_dim = shape->dim,
                                .hidden = ST_HIDDEN,
                                .block = shape->block,
                                .rows = s->max_rows,
                                .segs = ST_SEGS,
                                .max_pages = s->max_pages,
                                .sessions = s->setup.requests};
    const par_group group = {r->dev, r->comm};
    KT_OK(losa_open(&group, &r->plan, &s->setup.config, &limits, &r->losa));
    KT_OK(losa_observe(r->losa, watch, r->view));
    for (int l = 0; l < ST_LAYERS; l++)
        open_layer(s, r, l);
    const size_t rows = (size_t)s->max_rows, heads = (size_t)(r->plan.heads.count * shape->dim);
    const size_t kv = (size_t)(2 * r->plan.kv_heads.count * shape->dim);
    r->qkv = kt_out_f32(r->dev, rows * (heads + kv));
    r->hidden = kt_out_f32(r->dev, rows * ST_HIDDEN);
    r->out = kt_out_f32(r->dev, rows * heads);
}

static void open_forward(st_story *s)
{
    const st_shape *shape = &s->setup.shape;
    st_forward *f = &s->forward;
    f->lists = s->setup.config.scope == LOSA_SCOPE_SHARED ? 1 : shape->kv_heads;
    const size_t lists = (size_t)(ST_SEGS * f->lists), rows = (size_t)s->max_rows;
    for (int l = 0; l < ST_LAYERS; l++)
        f->layer[l] = (st_layer){.out = kt_floats(rows * (size_t)(shape->heads * shape->dim)),
                                 .active = kt_alloc(rows, 1),
                                 .read = kt_alloc(lists * (size_t)s->max_pages, 1),
                                 .all = kt_alloc(lists, 1)};
}

st_story *st_begin(const st_setup *setup)
{
    st_story *s = kt_alloc(1, sizeof *s);
    s->setup = *setup;
    const st_shape *shape = &s->setup.shape;
    int longest = 0;
    for (int i = 0; i < setup->requests; i++) {
        const int prompt = setup->request[i].prompt;
        longest = prompt > longest ? prompt : longest;
        s->max_rows += prompt + 2 * shape->block;
    }
    s->max_pages = (longest + 2 * shape->block + shape->page - 1) / shape->page;
    s->page_count = s->max_pages * setup->requests;
    open_requests(s);
    comm *ranks[ST_RANKS];
    KT_OK(setup->ranks == 1 ? comm_open_self(ranks) : comm_open_threads(setup->ranks, 20, ranks));
    for (int i = 0; i < setup->ranks; i++) {
        s->rank[i].comm = ranks[i];
        open_rank(s, i);
    }
    open_forward(s);
    return s;
}

// ---- the timetable of a request ------------------------------------------------------------

// Segments of a request in its step `step`: prefill in two chunks, the first block and
// its later steps, the commit with the second block's first step or before it, the
// later steps of that, and its commit. Returns how many; -1: it is done.
static int timetable(const st_setup *setup, int request, int step, st_seg *out)
{
    const int block = setup->shape.block, prompt = setup->request[request].prompt;
    const int half = prompt / block / 2 * block, next = prompt + block;
    const bool sparse = losa_reading_of(&setup->config, KERN_SEG_FIRST).sparse;
    const int commit = 3 + setup->steps, first = commit + (setup->merged ? 0 : 1);
    if (step < 2) {
        *out = (st_seg){request, KERN_SEG_PREFILL, step ? half : 0, step ? prompt - half : half, 0};
        return out->count > 0;
    }
    if (step == 2 || step < commit) {
        *out =
            (st_seg){request, step == 2 ? KERN_SEG_OPEN : KERN_SEG_STEP, prompt, block, step - 2};
        return 1;
    }
    if (step == commit && setup->merged && !sparse) {
        *out = (st_seg){request, KERN_SEG_FIRST, prompt, 2 * block, 0};
        return 1;
    }
    int count = 0;
    if (step == commit)
        out[count++] = (st_seg){request, KERN_SEG_COMMIT, prompt, block, 0};
    if (step == first)
        out[count++] = (st_seg){request, KERN_SEG_FIRST, next, block, 0};
    if (step > first && step <= first + setup->steps)
        out[count++] = (st_seg){request, KERN_SEG_STEP, next, block, step - first};
    if (step == first + setup->steps + 1)
        out[count++] = (st_seg){request, KERN_SEG_COMMIT, next, block, 0};
    return count > 0 ? count : -1;
}

// What the model would have done since the last forward: tokens of the block move, each
// by an amount of its own, and some are committed.
static void move_tokens(st_story *s, const st_seg *seg)
{
    request_state *r = &s->request[seg->request];
    const int cols = width(&s->setup.shape);
    for (int t = seg->first; t < seg->first + seg->count; t++) {
        if (seg->kind == KERN_SEG_STEP && !(r->state[t] & KERN_ROW_MASKED))
            r->state[t] = 0;
        else if (seg->kind == KERN_SEG_STEP)
            r->state[t] = kt_int(&r->rng, 0, 2) ? KERN_ROW_MASKED : KERN_ROW_NEW;
        const float move = kt_uniform(&r->rng, 0.01f, 1.0f);
        const bool still = seg->kind == KERN_SEG_PREFILL || seg->kind == KERN_SEG_OPEN ||
                           (s->setup.settled && r->state[t] == 0);
        for (int l = 0; l < ST_LAYERS; l++) {
            for (int i = 0; i < cols; i++)
                r->qkv[l][t * cols + i] += still ? 0.0f : kt_normal(&r->rng, move);
            for (int i = 0; i < ST_HIDDEN; i++)
                r->hidden[l][t * ST_HIDDEN + i] += still ? 0.0f : kt_normal(&r->rng, move);
        }
    }
}

// The kind of a later step, after its tokens moved.
static int step_kind(st_story *s, const st_seg *seg)
{
    request_state *r = &s->request[seg->request];
    for (int t = seg->first; t < seg->first + seg->count; t++)
        r->unread += (r->state[t] & KERN_ROW_NEW) != 0;
    const losa_block block = {seg->step, s->setup.steps + 1, r->unread};
    return losa_step_kind(&s->setup.config, &block);
}

static void move(st_story *s, st_seg *seg)
{
    move_tokens(s, seg);
    if (seg->kind == KERN_SEG_STEP)
        seg->kind = step_kind(s, seg);
    if (seg->kind != KERN_SEG_REST)
        s->request[seg->request].unread = 0;
}

// The segments of all requests, in losa_kind_order. False when all are done.
static bool plan_forward(st_story *s)
{
    st_forward *f = &s->forward;
    st_seg all[ST_SEGS];
    int count = 0, done = 0;
    for (int i = 0; i < s->setup.requests; i++) {
        if (s->forwards < s->setup.request[i].delay)
            continue;
        const int n = timetable(&s->setup, i, s->request[i].step++, all + count);
        done += n < 0;
        for (int end = count + n; count < end; count++)
            move(s, &all[count]);
    }
    if (done == s->setup.requests)
        return false;
    f->segs = f->rows = f->scan = f->sparse = 0;
    f->max_pages = 1;
    for (int order = 0; order <= 2; order++)
        for (int i = 0; i < count; i++) {
            const int end = all[i].first + all[i].count;
            const int pages = (end + s->setup.shape.page - 1) / s->setup.shape.page;
            if (losa_kind_order(&s->setup.config, all[i].kind) != order)
                continue;
            f->row0[f->segs] = f->rows;
            f->seg[f->segs++] = all[i];
            f->rows += all[i].count;
            f->scan += order == 0;
            f->sparse += order < 2;
            f->max_pages = pages > f->max_pages ? pages : f->max_pages;
        }
    f->row0[f->segs] = f->rows;
    return true;
}

// ---- one forward on the ranks ---------------------------------------------------------------

static void fill_rows(const st_story *s, int seg, int32_t **rows)
{
    const st_forward *f = &s->forward;
    const st_seg *g = &f->seg[seg];
    const int page = s->setup.shape.page, block = s->setup.shape.block;
    const int open = g->first + g->count - st_denoised(&s->setup, g);
    for (int i = 0; i < g->count; i++) {
        const int row = f->row0[seg] + i, t = g->first + i;
        rows[0][row] = t;
        rows[1][row] = s->request[g->request].state[t];
        rows[2][row] = seg;
        rows[3][row] = t >= open ? -1 : s->request[g->request].pages[t / page] * page + t % page;
        rows[4][row] =
            t >= open && losa_uses_cache(&s->setup.config) ? g->request * block + t % block : -1;
    }
}

static void fill_segs(const st_story *s, int seg, int32_t **segs, int *mass)
{
    const st_forward *f = &s->forward;
    const st_seg *g = &f->seg[seg];
    const int pages = (g->first + g->count + s->setup.shape.page - 1) / s->setup.shape.page;
    segs[0][seg] = g->kind;
    segs[1][seg] = g->request;
    segs[2][seg] = losa_reading_of(&s->setup.config, g->kind).measures ? (*mass)++ : -1;
    for (int i = 0; i < f->max_pages; i++)
        segs[3][seg * f->max_pages + i] =
            i < pages ? s->request[g->request].pages[i] : (int32_t)kt_poison;
}

static void upload_batch(const st_story *s, rank_state *r, int32_t **rows, int32_t **segs, int mass)
{
    const st_forward *f = &s->forward;
    const size_t n = (size_t)f->rows, m = (size_t)f->segs;
    int writes = 0;
    for (size_t i = 0; i < n; i++)
        writes += rows[3][i] >= 0;
    r->batch = (kern_batch){.rows = f->rows,
                            .segs = f->segs,
                            .sparse_rows = f->row0[f->sparse],
                            .sparse_segs = f->sparse,
                            .scan_segs = f->scan,
                            .mass_segs = mass,
                            .write_rows = writes,
                            .block = s->setup.shape.block,
                            .page = s->setup.shape.page,
                            .max_pages = f->max_pages,
                            .pos = kt_in_i32(r->dev, rows[0], n),
                            .row_state = kt_in_i32(r->dev, rows[1], n),
                            .row_seg = kt_in_i32(r->dev, rows[2], n),
                            .kv_slot = kt_in_i32(r->dev, rows[3], n),
                            .cache_slot = kt_in_i32(r->dev, rows[4], n),
                            .seg_row0 = kt_in_i32(r->dev, f->row0, m + 1),
                            .seg_kind = kt_in_i32(r->dev, segs[0], m),
                            .seg_slot = kt_in_i32(r->dev, segs[1], m),
                            .seg_mass = kt_in_i32(r->dev, segs[2], m),
                            .page_table = kt_in_i32(r->dev, segs[3], m * (size_t)f->max_pages)};
}

static void build_batch(st_story *s)
{
    int32_t *rows[5], *segs[4];
    int mass = 0;
    for (int i = 0; i < 5; i++)
        rows[i] = kt_ints((size_t)s->max_rows);
    for (int i = 0; i < 4; i++)
        segs[i] = kt_ints((size_t)(ST_SEGS * s->max_pages));
    for (int g = 0; g < s->forward.segs; g++) {
        fill_rows(s, g, rows);
        fill_segs(s, g, segs, &mass);
    }
    for (int r = 0; r < s->setup.ranks; r++)
        upload_batch(s, &s->rank[r], rows, segs, mass);
    for (int i = 0; i < 5; i++)
        rt_free(rows[i]);
    for (int i = 0; i < 4; i++)
        rt_free(segs[i]);
}

static void drop_batch(rank_state *r)
{
    const kern_batch *b = &r->batch;
    const kern_buf *all[] = {b->pos,      b->row_state, b->row_seg,  b->kv_slot,  b->cache_slot,
                             b->seg_row0, b->seg_kind,  b->seg_slot, b->seg_mass, b->page_table};
    for (size_t i = 0; i < KT_COUNT(all); i++)
        kern_buf_free((kern_buf *)(uintptr_t)all[i]);
}

// The rank's columns of q, k and v of every row.
static void load_rows(const st_story *s, rank_state *r)
{
    const st_forward *f = &s->forward;
    const st_shape *shape = &s->setup.shape;
    const size_t dim = (size_t)shape->dim;
    const par_range q = r->plan.heads, kv = r->plan.kv_heads;
    const size_t qn = (size_t)q.count * dim, kn = (size_t)kv.count * dim;
    for (int l = 0; l < ST_LAYERS; l++)
        for (int g = 0, row = 0; g < f->segs; g++)
            for (int i = 0; i < f->seg[g].count; i++, row++) {
                const int request = f->seg[g].request, token = f->seg[g].first + i;
                const float *from = st_qkv(s, l, request, token);
                const float *k = from + shape->heads * shape->dim + kv.first * shape->dim;
                float *to = r->qkv_host[l] + (size_t)row * (qn + 2 * kn);
                memcpy(to, from + (size_t)q.first * dim, qn * sizeof *to);
                memcpy(to + qn, k, kn * sizeof *to);
                memcpy(to + qn + kn, k + shape->kv_heads * shape->dim, kn * sizeof *to);
                memcpy(r->hidden_host[l] + row * ST_HIDDEN, st_hidden(s, l, request, token),
                       ST_HIDDEN * sizeof *to);
            }
}

static rt_status run_layers(rank_state *r)
{
    const size_t rows = (size_t)r->batch.rows, dim = (size_t)r->kv[0].head_dim;
    const size_t heads = (size_t)r->plan.heads.count * dim;
    const size_t kv = (size_t)r->plan.kv_heads.count * dim;
    RT_TRY(losa_begin(r->losa, r->batch.segs));
    for (int l = 0; l < ST_LAYERS; l++) {
        RT_TRY(kern_write(r->qkv, 0, r->qkv_host[l], rows * (heads + 2 * kv)));
        RT_TRY(kern_write(r->hidden, 0, r->hidden_host[l], rows * ST_HIDDEN));
        const losa_layer_args args = {l, &r->batch, r->qkv, r->hidden, r->kv[l], r->out};
        RT_TRY(losa_layer(r->losa, &args));
        RT_TRY(kern_read(r->out, 0, r->out_host[l], rows * heads));
    }
    return RT_OK;
}

static void *run_rank(void *arg)
{
    rank_state *r = arg;
    r->status = run_layers(r);
    if (r->status != RT_OK)
        snprintf(r->error, sizeof r->error, "%s", rt_last_error());
    return NULL;
}

static void run_ranks(st_story *s)
{
    pthread_t thread[ST_RANKS];
    for (int i = 0; i < s->setup.ranks; i++)
        assert_int_equal(pthread_create(&thread[i], NULL, run_rank, &s->rank[i]), 0);
    for (int i = 0; i < s->setup.ranks; i++)
        pthread_join(thread[i], NULL);
    for (int i = 0; i < s->setup.ranks; i++)
        if (s->rank[i].status != RT_OK)
            fail_msg("rank %d: %s", i, s->rank[i].error);
}

// ---- what the ranks did -----------------------------------------------------------------

static void collect_rows(st_story *s, int rank, int layer)
{
    const st_forward *f = &s->forward;
    const rank_state *r = &s->rank[rank];
    const st_layer *to = &f->layer[layer];
    const size_t dim = (size_t)s->setup.shape.dim, n = (size_t)r->plan.heads.count * dim;
    unsigned char *active = kt_alloc((size_t)f->rows, 1);
    for (int g = 0; g < f->segs; g++)
        for (int i = 0; i < r->view[layer].act_count[g]; i++)
            active[r->view[layer].act_rows[f->row0[g] + i]] = 1;
    if (rank == 0)
        memcpy(to->active, active, (size_t)f->rows);
    KT_SAME(to->active, active, (size_t)f->rows, "active rows of the ranks");
    rt_free(active);
    for (int row = 0; row < f->rows; row++)
        memcpy(to->out + ((size_t)(row * s->setup.shape.heads + r->plan.heads.first)) * dim,
               r->out_host[layer] + (size_t)row * n, n * sizeof *to->out);
}

// One list, entry [seg, list]: rank 0 tells, the others must have seen the same.
static void collect_list(st_story *s, int rank, int layer, int at)
{
    const st_forward *f = &s->forward;
    const rank_state *r = &s->rank[rank];
    const int count = r->view[layer].page_count[at];
    unsigned char *read = kt_alloc((size_t)f->max_pages, 1);
    for (int i = 0; i < count; i++)
        read[r->view[layer].pages[at * f->max_pages + i]] = 1;
    unsigned char *to = f->layer[layer].read + at * f->max_pages;
    if (rank == 0) {
        memcpy(to, read, (size_t)f->max_pages);
        f->layer[layer].all[at] = count < 0;
    }
    KT_SAME(to, read, (size_t)f->max_pages, "page lists of the ranks");
    assert_int_equal(f->layer[layer].all[at], count < 0);
    rt_free(read);
}

static void collect(st_story *s)
{
    const st_forward *f = &s->forward;
    for (int l = 0; l < ST_LAYERS; l++)
        for (int r = 0; r < s->setup.ranks; r++) {
            collect_rows(s, r, l);
            for (int i = 0; i < f->segs * f->lists; i++)
                collect_list(s, r, l, i);
        }
}

bool st_next(st_story *s, const st_forward **out)
{
    if (!plan_forward(s))
        return false;
    s->forwards++;
    *out = &s->forward;
    if (s->forward.segs == 0)
        return true;
    build_batch(s);
    for (int r = 0; r < s->setup.ranks; r++)
        load_rows(s, &s->rank[r]);
    run_ranks(s);
    collect(s);
    for (int r = 0; r < s->setup.ranks; r++)
        drop_batch(&s->rank[r]);
    return true;
}

// ---- closing ------------------------------------------------------------------------------

static void close_rank(rank_state *r)
{
    losa_close(r->losa);
    for (int l = 0; l < ST_LAYERS; l++) {
        kern_buf *const owned[] = {r->kv[l].k, r->kv[l].v, r->kv[l].kmin, r->kv[l].kmax};
        for (size_t i = 0; i < KT_COUNT(owned); i++)
            kern_buf_free(owned[i]);
        void *const memory[] = {r->qkv_host[l],       r->hidden_host[l],    r->out_host[l],
                                r->view[l].act_rows,  r->view[l].act_count, r->view[l].pages,
                                r->view[l].page_count};
        for (size_t i = 0; i < KT_COUNT(memory); i++)
            rt_free(memory[i]);
    }
    kern_buf_free(r->qkv);
    kern_buf_free(r->hidden);
    kern_buf_free(r->out);
    kern_dev_close(r->dev);
    comm_close(r->comm);
}

void st_end(st_story *s)
{
    for (int i = 0; i < s->setup.ranks; i++)
        close_rank(&s->rank[i]);
    for (int i = 0; i < s->setup.requests; i++) {
        for (int l = 0; l < ST_LAYERS; l++) {
            rt_free(s->request[i].qkv[l]);
            rt_free(s->request[i].hidden[l]);
        }
        rt_free(s->request[i].state);
        rt_free(s->request[i].pages);
    }
    for (int l = 0; l < ST_LAYERS; l++) {
        rt_free(s->forward.layer[l].out);
        rt_free(s->forward.layer[l].active);
        rt_free(s->forward.layer[l].read);
        rt_free(s->forward.layer[l].all);
    }
    rt_free(s);
}
