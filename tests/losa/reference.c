// SPDX-License-Identifier: Apache-2.0
#include "tests/losa/reference.h"

#include <math.h>
#include <stdlib.h>

enum { MAX_TOKENS = 640, MAX_PAGES = MAX_TOKENS / 4, MAX_DIM = 32, MAX_BLOCK = 64, MAX_HEADS = 8 };

// f32 shares and changes hold about 1e-5.
static const double gap = 1e-4;
// Of outputs of size 1: f32 sums over hundreds of keys, and a softmax of scores up to 20.
static const double tolerance = 3e-5;

typedef enum verdict { OUT, EITHER, IN } verdict;

// What a layer remembers of a request. Lists by global number.
typedef struct memory {
    int written;
    double k[MAX_TOKENS][MAX_HEADS][MAX_DIM], v[MAX_TOKENS][MAX_HEADS][MAX_DIM];
    double query[MAX_BLOCK][MAX_HEADS * MAX_DIM]; // or the layer's input
    double o[MAX_BLOCK][MAX_HEADS][MAX_DIM], lse[MAX_BLOCK][MAX_HEADS];
    verdict kept[MAX_HEADS][MAX_PAGES];
    int unread; // tokens unmasked since the block's rows last read
    bool rests; // no row reads now
} memory;

struct reference {
    memory *memory[ST_LAYERS][ST_REQUESTS];
    long choices, unclear;
};

// A segment of a layer, and all that is known about it.
typedef struct scene {
    reference *r;
    const st_story *story;
    const st_setup *setup;
    const st_forward *forward;
    const st_layer *got;
    const st_seg *seg;
    memory *m;
    int index, layer, denoised; // denoised: rows at the end
} scene;

// ---- the table of policies ------------------------------------------------------------------

static bool named(const st_setup *setup, const char *name)
{
    return strcmp(setup->config.policy->name, name) == 0;
}

static bool lists_by_mass(const st_setup *setup)
{
    return named(setup, "losa-mass") || named(setup, "losa-mix") || named(setup, "mage") ||
           named(setup, "sparsed");
}

static bool keeps_lists(const st_setup *setup)
{
    return lists_by_mass(setup) || named(setup, "sparse-dllm");
}

static bool opens(int kind)
{
    return kind == KERN_SEG_OPEN || kind == KERN_SEG_FIRST;
}

// A later step that is dense by the schedule of the policy.
static bool is_early(const scene *s)
{
    const int steps = s->setup->steps + 1, step = s->seg->step;
    if (named(s->setup, "sparsed"))
        return step > 0 && step < (int)(steps * s->setup->config.skip) + 1;
    return named(s->setup, "sparse-dllm") && step == 1;
}

static bool reads_everything(const scene *s)
{
    const losa_config *c = &s->setup->config;
    if (s->layer < c->dense_layers || named(s->setup, "dense"))
        return true;
    if (named(s->setup, "flashblock"))
        return !s->m->rests;
    if (s->seg->kind == KERN_SEG_PREFILL || is_early(s))
        return true;
    if (s->seg->step > 0)
        return false;
    if (named(s->setup, "quest") || c->first == LOSA_FIRST_ALL)
        return false;
    // A commit reads what the next first step reads.
    return s->seg->kind == KERN_SEG_OPEN || c->first == LOSA_FIRST_DENSE;
}

// Tokens that a row may choose by its own scan; 0: it does not scan.
static int scan_budget(const scene *s)
{
    const losa_config *c = &s->setup->config;
    if (opens(s->seg->kind) && c->first_budget > 0)
        return c->first_budget;
    if (!keeps_lists(s->setup) || opens(s->seg->kind))
        return c->budget;
    if (s->seg->kind == KERN_SEG_COMMIT)
        return c->commit_scan ? c->scan_budget : 0;
    return named(s->setup, "losa-mix") ? c->scan_budget : 0;
}

static bool reuses(const st_setup *setup)
{
    return named(setup, "losa") || named(setup, "losa-mass") || named(setup, "losa-mix");
}

// ---- choosing ----------------------------------------------------------------------------

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

// The `take` largest, ties to the lower index; those too close to the cut are EITHER.
static void take_largest(candidate *list, int count, int take, verdict *out)
{
    qsort(list, (size_t)count, sizeof *list, by_value);
    for (int i = 0; i < count && i < take; i++)
        out[list[i].index] = IN;
    if (take <= 0 || take >= count)
        return;
    const double last = list[take - 1].value, next = list[take].value;
    if (!isfinite(last) || last == 0.0 || last - next > gap * last)
        return;
    for (int i = 0; i < count; i++)
        if (fabs(list[i].value - last) <= 2 * gap * last)
            out[list[i].index] = EITHER;
}

static int prefix_of(const scene *s, int token)
{
    return token / s->setup->shape.block * s->setup->shape.block;
}

static int pages_in(const scene *s, int tokens)
{
    return (tokens + s->setup->shape.page - 1) / s->setup->shape.page;
}

// The `take` best pages of a prefix, first and last among them.
static void take_pages(const double *value, int pages, int take, verdict *out)
{
    candidate list[MAX_PAGES];
    for (int g = 0; g < pages; g++)
        list[g] = (candidate){g == 0 || g == pages - 1 ? (double)INFINITY : value[g], g};
    const int least = pages < 2 ? pages : 2;
    take_largest(list, pages, take < least ? least : take, out);
}

// ---- who reads -----------------------------------------------------------------------------

static int group_of(const scene *s)
{
    return s->setup->shape.heads / s->setup->shape.kv_heads;
}

static const float *measured(const scene *s, int token, int *cols)
{
    const bool query = s->setup->config.locality == LOSA_LOCALITY_QUERY;
    *cols = query ? s->setup->shape.heads * s->setup->shape.dim : ST_HIDDEN;
    return query ? st_qkv(s->story, s->layer, s->seg->request, token)
                 : st_hidden(s->story, s->layer, s->seg->request, token);
}

// delta_i = MSE(q_i(t), q_i(t - 1)), and 0 below 1e-4 of q_i's length.
static double take_change(const scene *s, int token)
{
    int cols;
    const float *now = measured(s, token, &cols);
    double *before = s->m->query[token % s->setup->shape.block], sum = 0.0, squares = 0.0;
    for (int i = 0; i < cols; i++) {
        sum += ((double)now[i] - before[i]) * ((double)now[i] - before[i]);
        squares += (double)now[i] * (double)now[i];
        before[i] = (double)now[i];
    }
    return sqrt(sum) < 1e-4 * sqrt(squares) ? 0.0 : sum / cols;
}

// The fewest whose changes add up to a share of all.
static int count_share(const scene *s, candidate *list, int count, verdict *out)
{
    double all = 0.0, held = 0.0;
    int take = 0;
    for (int i = 0; i < count; i++)
        all += list[i].value;
    qsort(list, (size_t)count, sizeof *list, by_value);
    for (int i = 0; i < count; i++) {
        const double off = held - s->setup->config.active_share * all;
        if (fabs(off) <= gap * all)
            out[list[i].index] = EITHER;
        take += off < 0.0;
        held += list[i].value;
    }
    return take;
}

static void choose_readers(const scene *s, verdict *out)
{
    const losa_config *c = &s->setup->config;
    candidate list[MAX_BLOCK];
    int count = 0;
    const bool chosen =
        s->seg->step > 0 && reuses(s->setup) && !reads_everything(s) && c->rule != KERN_ACTIVE_ALL;
    const bool none = s->m->rests && !reads_everything(s);
    for (int i = 0; i < s->seg->count; i++) {
        const int token = s->seg->first + i, state = st_state(s->story, s->seg->request, token);
        const bool denoised = i >= s->seg->count - s->denoised;
        const double change = denoised ? take_change(s, token) : 0.0;
        const bool new = state &KERN_ROW_NEW, masked = state &KERN_ROW_MASKED;
        const bool by_state =
            (new && (c->rule == KERN_ACTIVE_NEW_TOPK || c->rule == KERN_ACTIVE_UNSETTLED)) ||
            (masked && c->rule == KERN_ACTIVE_UNSETTLED);
        out[i] = !none && (!chosen || by_state) ? IN : OUT;
        if (chosen && out[i] == OUT && c->rule != KERN_ACTIVE_UNSETTLED)
            list[count++] = (candidate){change, i};
    }
    verdict unsure[MAX_BLOCK] = {OUT};
    const bool share = chosen && c->rule == KERN_ACTIVE_SHARE;
    take_largest(list, count, share ? count_share(s, list, count, unsure) : c->active_k, out);
    for (int i = 0; share && i < s->seg->count; i++)
        out[i] = unsure[i] == EITHER ? EITHER : out[i];
}

// ---- what they read ------------------------------------------------------------------------

static double dot(const float *q, const double *k, int dim)
{
    double sum = 0.0;
    for (int i = 0; i < dim; i++)
        sum += (double)q[i] * k[i];
    return sum / sqrt((double)dim);
}

// Over the keys of a page that are written, the largest q.k a key of such channels can have.
static double quest_bound(const scene *s, const float *q, int kv_head, int page)
{
    const st_shape *shape = &s->setup->shape;
    const int end = (page + 1) * shape->page, stop = end < s->m->written ? end : s->m->written;
    double sum = 0.0;
    for (int i = 0; i < shape->dim; i++) {
        double low = INFINITY, high = -INFINITY;
        for (int t = page * shape->page; t < stop; t++) {
            low = fmin(low, s->m->k[t][kv_head][i]);
            high = fmax(high, s->m->k[t][kv_head][i]);
        }
        sum += fmax((double)q[i] * low, (double)q[i] * high);
    }
    return sum / sqrt((double)shape->dim);
}

static bool in_list(const scene *s, int head, int list)
{
    return s->forward->lists == 1 || head / group_of(s) == list;
}

// Shares of the pages by their bounds, summed over the heads of the list.
static void scan_row(const scene *s, int token, int list, int pages, double *value)
{
    const st_shape *shape = &s->setup->shape;
    for (int g = 0; g < pages; g++)
        value[g] = 0.0;
    for (int h = 0; h < shape->heads; h++) {
        double bound[MAX_PAGES], sum = 0.0;
        if (!in_list(s, h, list))
            continue;
        const float *q = st_qkv(s->story, s->layer, s->seg->request, token) + h * shape->dim;
        for (int g = 0; g < pages; g++) {
            bound[g] = exp(quest_bound(s, q, h / group_of(s), g));
            sum += bound[g];
        }
        for (int g = 0; g < pages; g++)
            value[g] += bound[g] / sum;
    }
}

static void join(verdict *all, const verdict *one, int pages)
{
    for (int g = 0; g < pages; g++)
        all[g] = one[g] > all[g] ? one[g] : all[g];
}

// The union over the readers; a list that no row reads is empty.
static void choose_pages(const scene *s, int list, verdict *out)
{
    const int pages = pages_in(s, prefix_of(s, s->seg->first)), budget = scan_budget(s);
    const bool kept = keeps_lists(s->setup) && !opens(s->seg->kind);
    bool anybody = false;
    for (int i = 0; i < s->seg->count; i++) {
        if (!s->got->active[s->forward->row0[s->index] + i])
            continue;
        anybody = true;
        double value[MAX_PAGES];
        verdict mine[MAX_PAGES] = {OUT};
        if (budget == 0)
            break;
        scan_row(s, s->seg->first + i, list, pages, value);
        take_pages(value, pages, pages_in(s, budget), mine);
        join(out, mine, pages);
    }
    if (anybody && kept)
        join(out, s->m->kept[list], pages);
}

// ---- comparing choices -----------------------------------------------------------------------

static void compare(const scene *s, const char *what, int list, const verdict *want,
                    const unsigned char *got, int count)
{
    for (int i = 0; i < count; i++) {
        s->r->choices++;
        s->r->unclear += want[i] == EITHER;
        if (want[i] != EITHER && (want[i] == IN) != (got[i] != 0))
            fail_msg("%s: layer %d, request %d, kind %d at %d, list %d: %s %d is %s",
                     s->setup->config.policy->name, s->layer, s->seg->request, s->seg->kind,
                     s->seg->first, list, what, i, got[i] ? "read" : "not read");
    }
}

static const unsigned char *pages_got(const scene *s, int list)
{
    return s->got->read + (s->index * s->forward->lists + list) * s->forward->max_pages;
}

static void follow_choices(const scene *s)
{
    verdict readers[2 * MAX_BLOCK + MAX_TOKENS];
    choose_readers(s, readers);
    compare(s, "row", -1, readers, s->got->active + s->forward->row0[s->index], s->seg->count);
    for (int l = 0; l < s->forward->lists; l++) {
        verdict pages[MAX_PAGES] = {OUT};
        const bool all = s->got->all[s->index * s->forward->lists + l];
        assert_int_equal(all, reads_everything(s));
        if (all)
            continue;
        choose_pages(s, l, pages);
        compare(s, "page", l, pages, pages_got(s, l), s->forward->max_pages);
    }
}

// ---- attention -----------------------------------------------------------------------------

// A softmax over keys: o and its log-sum-exp.
typedef struct gathered {
    int count;
    double score[MAX_TOKENS];
    const double *value[MAX_TOKENS];
    int page[MAX_TOKENS];
} gathered;

static double attend(const gathered *keys, int dim, double *o)
{
    double top = -INFINITY, sum = 0.0;
    for (int i = 0; i < keys->count; i++)
        top = fmax(top, keys->score[i]);
    for (int i = 0; i < dim; i++)
        o[i] = 0.0;
    for (int i = 0; i < keys->count; i++)
        sum += exp(keys->score[i] - top);
    for (int i = 0; i < keys->count; i++)
        for (int j = 0; j < dim; j++)
            o[j] += exp(keys->score[i] - top) / sum * keys->value[i][j];
    return keys->count ? top + log(sum) : -INFINITY;
}

static void gather_prefix(const scene *s, int token, int head, gathered *keys)
{
    const st_shape *shape = &s->setup->shape;
    const float *q = st_qkv(s->story, s->layer, s->seg->request, token) + head * shape->dim;
    const int kv = head / group_of(s), list = s->forward->lists == 1 ? 0 : kv;
    const bool all = s->got->all[s->index * s->forward->lists + list];
    keys->count = 0;
    for (int t = 0; t < prefix_of(s, token); t++) {
        if (!all && !pages_got(s, list)[t / shape->page])
            continue;
        keys->score[keys->count] = dot(q, s->m->k[t][kv], shape->dim);
        keys->value[keys->count] = s->m->v[t][kv];
        keys->page[keys->count++] = t / shape->page;
    }
}

static double attend_block(const scene *s, int token, int head, double *o)
{
    const st_shape *shape = &s->setup->shape;
    const float *q = st_qkv(s->story, s->layer, s->seg->request, token) + head * shape->dim;
    const int kv = shape->heads + head / group_of(s);
    double k[MAX_DIM], v[MAX_BLOCK][MAX_DIM];
    gathered keys = {.count = shape->block};
    for (int t = 0; t < shape->block; t++) {
        const float *from =
            st_qkv(s->story, s->layer, s->seg->request, prefix_of(s, token) + t) + kv * shape->dim;
        for (int i = 0; i < shape->dim; i++) {
            k[i] = (double)from[i];
            v[t][i] = (double)from[shape->kv_heads * shape->dim + i];
        }
        keys.score[t] = dot(q, k, shape->dim);
        keys.value[t] = v[t];
    }
    return attend(&keys, shape->dim, o);
}

static void follow_head(const scene *s, int i, int head, double mass[MAX_HEADS][MAX_PAGES])
{
    const int token = s->seg->first + i, dim = s->setup->shape.dim;
    const int row = s->forward->row0[s->index] + i, place = token % s->setup->shape.block;
    const bool denoised = i >= s->seg->count - s->denoised;
    double fresh[MAX_DIM], inside[MAX_DIM], want[MAX_DIM];
    double *o = denoised ? s->m->o[place][head] : fresh, lse = s->m->lse[place][head];
    if (s->got->active[row]) {
        gathered keys;
        gather_prefix(s, token, head, &keys);
        lse = attend(&keys, dim, o);
        for (int k = 0; denoised && k < keys.count; k++)
            for (int l = 0; l < s->forward->lists; l++)
                mass[l][keys.page[k]] += in_list(s, head, l) ? exp(keys.score[k] - lse) : 0.0;
    }
    if (denoised)
        s->m->lse[place][head] = lse;
    const double lse_b = attend_block(s, token, head, inside);
    const double top = fmax(lse, lse_b), wp = exp(lse - top), wb = exp(lse_b - top);
    for (int c = 0; c < dim; c++)
        want[c] = (wp * o[c] + wb * inside[c]) / (wp + wb);
    KT_NEAR(s->got->out + (row * s->setup->shape.heads + head) * dim, want, (size_t)dim, 1.0,
            tolerance);
}

// Sparse-dLLM: the mean over the heads of (the mean over the block's queries) . key, the
// largest of three neighbours, and of a page's tokens.
static void rate_keys(const scene *s, int list, int pages, double *value)
{
    const st_shape *shape = &s->setup->shape;
    const int end = s->seg->first + s->seg->count, block = shape->block;
    const int prefix = prefix_of(s, end - 1);
    static double rate[MAX_TOKENS];
    double mean[MAX_HEADS * MAX_DIM] = {0};
    for (int i = end - block; i < end; i++)
        for (int c = 0; c < shape->heads * shape->dim; c++)
            mean[c] += (double)st_qkv(s->story, s->layer, s->seg->request, i)[c] / block;
    for (int t = 0; t < prefix; t++) {
        rate[t] = 0.0;
        for (int h = 0; h < shape->heads; h++)
            for (int c = 0; in_list(s, h, list) && c < shape->dim; c++)
                rate[t] += mean[h * shape->dim + c] * s->m->k[t][h / group_of(s)][c];
    }
    for (int g = 0; g < pages; g++)
        value[g] = -INFINITY;
    for (int t = 0; t < prefix; t++)
        for (int n = t - 1; n <= t + 1; n++)
            if (n >= 0 && n < prefix)
                value[t / shape->page] = fmax(value[t / shape->page], rate[n]);
}

static void follow_attention(const scene *s)
{
    static double mass[MAX_HEADS][MAX_PAGES];
    const losa_config *c = &s->setup->config;
    memset(mass, 0, sizeof mass);
    for (int i = 0; i < s->seg->count; i++)
        for (int h = 0; h < s->setup->shape.heads; h++)
            follow_head(s, i, h, mass);
    if (!keeps_lists(s->setup) || !(opens(s->seg->kind) || is_early(s)) ||
        s->layer < c->dense_layers)
        return;
    const int pages = pages_in(s, prefix_of(s, s->seg->first + s->seg->count - 1));
    memset(s->m->kept, 0, sizeof s->m->kept);
    const int take = c->keep > 0 ? (int)(c->keep * pages) + 1 : pages_in(s, c->budget);
    for (int l = 0; l < s->forward->lists; l++) {
        if (!lists_by_mass(s->setup))
            rate_keys(s, l, pages, mass[l]);
        take_pages(mass[l], pages, take, s->m->kept[l]);
    }
}

// ----------------------------------------------------------------------------------------------

static void write_keys(const scene *s)
{
    const st_shape *shape = &s->setup->shape;
    for (int i = 0; i < s->seg->count - s->denoised; i++) {
        const int token = s->seg->first + i;
        const float *k = st_qkv(s->story, s->layer, s->seg->request, token);
        k += shape->heads * shape->dim;
        for (int h = 0; h < shape->kv_heads; h++)
            for (int c = 0; c < shape->dim; c++) {
                s->m->k[token][h][c] = (double)k[h * shape->dim + c];
                s->m->v[token][h][c] = (double)k[(shape->kv_heads + h) * shape->dim + c];
            }
        s->m->written = token + 1;
    }
}

// FlashBlock: rows rest while fewer than `refresh` tokens were unmasked since they read.
static void note_step(const scene *s)
{
    memory *m = s->m;
    for (int i = 0; s->seg->step > 0 && i < s->seg->count; i++)
        m->unread += (st_state(s->story, s->seg->request, s->seg->first + i) & KERN_ROW_NEW) != 0;
    m->rests =
        named(s->setup, "flashblock") && s->seg->step > 0 && m->unread < s->setup->config.refresh;
    if (!m->rests)
        m->unread = 0;
}

static void enter(const scene *s)
{
    write_keys(s);
    note_step(s);
}

reference *reference_new(const st_story *story)
{
    const st_setup *setup = st_setup_of(story);
    assert_true(setup->shape.dim <= MAX_DIM && setup->shape.heads <= MAX_HEADS);
    assert_true(setup->shape.block <= MAX_BLOCK);
    reference *r = kt_alloc(1, sizeof *r);
    for (int l = 0; l < ST_LAYERS; l++)
        for (int i = 0; i < setup->requests; i++) {
            assert_true(setup->request[i].prompt + 2 * setup->shape.block <= MAX_TOKENS);
            r->memory[l][i] = kt_alloc(1, sizeof(memory));
        }
    return r;
}

// Keys of a layer are written before anybody chooses, and all choose before any reads.
void reference_follow(reference *r, const st_story *story, const st_forward *forward)
{
    for (int l = 0; l < ST_LAYERS; l++)
        for (int pass = 0; pass < 3; pass++)
            for (int g = 0; g < forward->segs; g++) {
                const st_seg *seg = &forward->seg[g];
                const st_setup *setup = st_setup_of(story);
                const scene s = {.r = r,
                                 .story = story,
                                 .setup = setup,
                                 .forward = forward,
                                 .got = &forward->layer[l],
                                 .seg = seg,
                                 .m = r->memory[l][seg->request],
                                 .index = g,
                                 .layer = l,
                                 .denoised = st_denoised(setup, seg)};
                void (*const passes[])(const scene *) = {enter, follow_choices, follow_attention};
                passes[pass](&s);
            }
}

long reference_choices(const reference *r)
{
    return r->choices;
}

long reference_unclear(const reference *r)
{
    return r->unclear;
}

void reference_free(reference *r)
{
    for (int l = 0; l < ST_LAYERS; l++)
        for (int i = 0; i < ST_REQUESTS; i++)
            rt_free(r->memory[l][i]);
    rt_free(r);
}
