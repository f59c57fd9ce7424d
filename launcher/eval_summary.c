// SPDX-License-Identifier: Apache-2.0
#include "launcher/eval_summary.h"

#include "launcher/interval.h"
#include "runtime/base/mem.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const app_column_info app_columns[APP_COLUMNS] = {
    [APP_DOCUMENTS] = {"documents", "documents", 1, 0},
    [APP_RIGHT] = {"right", "right", 1, 0},
    [APP_EXACT] = {"exact", "exact", 1, 3},
    [APP_EXACT_LOW] = {"exact_low", "from", 1, 3},
    [APP_EXACT_HIGH] = {"exact_high", "to", 1, 3},
    [APP_F1] = {"f1", "F1", 1, 3},
    [APP_WON] = {"won", "won", 1, 0},
    [APP_LOST] = {"lost", "lost", 1, 0},
    [APP_DIFFERENCE] = {"difference", "difference", 1, 3},
    [APP_DIFFERENCE_LOW] = {"difference_low", "from", 1, 3},
    [APP_DIFFERENCE_HIGH] = {"difference_high", "to", 1, 3},
    [APP_SAME_TEXT] = {"same_text", "same text", 1, 3},
    [APP_SAME_TOKENS] = {"same_tokens", "same tokens", 1, 3},
    [APP_PROBED] = {"probed_positions", "probed", 1, 0},
    [APP_DIVERGENCE] = {"divergence", "KL, nats", 1, 4},
    [APP_SAME_CHOICE] = {"same_choice", "same choice", 1, 4},
    [APP_DENSITY_LATER] = {"density_later", "later", 1, 3},
    [APP_DENSITY_STEPS] = {"density_steps", "steps", 1, 3},
    [APP_DENSITY_TOTAL] = {"density_total", "total", 1, 3},
    [APP_READS] = {"reads", "reads", 1, 3},
    [APP_INFLATION] = {"union_inflation", "inflation", 1, 2},
    [APP_ACTIVE] = {"active_share", "active", 1, 2},
    [APP_STEPS_PER_BLOCK] = {"steps_per_block", "steps/block", 1, 2},
    [APP_FORWARDS] = {"forwards", "forwards", 1, 1},
    [APP_FORWARDS_TO_DENSE] = {"forwards_to_dense", "/ dense", 1, 3},
    [APP_TOKENS_PER_FORWARD] = {"tokens_per_forward", "tokens/forward", 1, 2},
    [APP_PREFIX_BYTES] = {"prefix_bytes", "MB read", 1e6, 2},
    [APP_EXCHANGE_BYTES] = {"exchange_bytes", "KB exchanged", 1e3, 1},
    [APP_PREFILL_SECONDS] = {"prefill_seconds", "prefill, s", 1, 2},
    [APP_DECODE_SECONDS] = {"decode_seconds", "decode, s", 1, 2},
};

typedef struct source {
    const app_documents *documents;
    const app_policies *policies;
    const app_store *store;
    size_t dense; // index; policies->count: none
} source;

// ---- one cell ------------------------------------------------------------------------

// A mean in the making.
typedef struct mean {
    double sum;
    size_t n;
} mean;

typedef struct tally {
    size_t n, right, won, lost, same_text;
    mean of[APP_COLUMNS]; // the columns that are means
    double tokens, forwards, steps, blocks, bytes;
    double dense_forwards, dense_bytes;
    double probed, divergence, same_choice; // sums over probed positions
} tally;

static void add(mean *m, double value)
{
    if (isfinite(value)) {
        m->sum += value;
        m->n++;
    }
}

static double ratio(double part, double whole)
{
    return whole > 0 ? part / whole : NAN;
}

static double number(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    return json_is_number(value) ? json_number_value(value) : NAN;
}

static bool is_right(const json_t *result)
{
    return json_is_true(json_object_get(result, "right"));
}

// Positions with the same token, of all that either answer has.
static double same_tokens(const json_t *a, const json_t *b)
{
    const json_t *x = json_object_get(a, "token_ids"), *y = json_object_get(b, "token_ids");
    const size_t nx = json_array_size(x), ny = json_array_size(y);
    size_t same = 0;
    for (size_t i = 0; i < nx && i < ny; i++)
        same += json_equal(json_array_get(x, i), json_array_get(y, i)) != 0;
    const size_t most = nx > ny ? nx : ny;
    return most ? (double)same / (double)most : 1;
}

static void add_stats(tally *t, const json_t *stats)
{
    static const struct {
        app_column column;
        const char *key;
    } means[] = {{APP_DENSITY_STEPS, "density_steps"},
                 {APP_DENSITY_TOTAL, "density_total"},
                 {APP_FORWARDS, "forwards"},
                 {APP_PREFIX_BYTES, "prefix_bytes_read"},
                 {APP_EXCHANGE_BYTES, "exchange_bytes"},
                 {APP_PREFILL_SECONDS, "prefill_seconds"},
                 {APP_DECODE_SECONDS, "decode_seconds"},
                 {APP_DENSITY_LATER, "density_later"},
                 {APP_ACTIVE, "active_share"},
                 {APP_INFLATION, "union_inflation"}};
    const bool later = number(stats, "steps") > number(stats, "blocks");
    for (size_t i = 0; i < sizeof means / sizeof means[0]; i++) {
        const app_column column = means[i].column;
        if (later || (column != APP_DENSITY_LATER && column != APP_ACTIVE))
            add(&t->of[column], number(stats, means[i].key));
    }
    t->forwards += number(stats, "forwards");
    t->steps += number(stats, "steps");
    t->blocks += number(stats, "blocks");
    t->bytes += number(stats, "prefix_bytes_read");
}

static void add_probe(tally *t, const json_t *probe)
{
    t->probed += number(probe, "positions");
    t->divergence += number(probe, "divergence");
    t->same_choice += number(probe, "same");
}

static void add_pair(tally *t, const json_t *result, const json_t *dense)
{
    const json_t *stats = json_object_get(dense, "stats");
    t->won += is_right(result) && !is_right(dense);
    t->lost += !is_right(result) && is_right(dense);
    t->same_text +=
        json_equal(json_object_get(result, "text"), json_object_get(dense, "text")) != 0;
    add(&t->of[APP_SAME_TOKENS], same_tokens(result, dense));
    t->dense_forwards += number(stats, "forwards");
    t->dense_bytes += number(stats, "prefix_bytes_read");
}

static bool belongs(const app_document *d, int length, const char *task)
{
    return (length == 0 || d->length == length) && (!task || strcmp(d->task, task) == 0);
}

static rt_status take_documents(const source *s, const app_cell *cell, tally *t)
{
    const app_policy *policies = s->policies->items;
    for (size_t i = 0; i < s->documents->count; i++) {
        const app_document *d = &s->documents->items[i];
        if (!belongs(d, cell->length, cell->task))
            continue;
        const json_t *result = app_store_find(s->store, policies[cell->policy].key, d->id);
        if (!result)
            return RT_FAIL(RT_ERR_INTERNAL, "%s: no result with %s", d->id,
                           policies[cell->policy].text);
        t->n++;
        t->right += is_right(result);
        t->tokens += number(json_object_get(result, "usage"), "completion_tokens");
        add(&t->of[APP_F1], number(result, "f1"));
        add_stats(t, json_object_get(result, "stats"));
        add_probe(t, json_object_get(result, "probe"));
        if (s->dense < s->policies->count)
            add_pair(t, result, app_store_find(s->store, policies[s->dense].key, d->id));
    }
    return RT_OK;
}

static void compare(const tally *t, bool itself, double *value)
{
    const double n = (double)t->n;
    value[APP_SAME_TEXT] = (double)t->same_text / n;
    value[APP_READS] = ratio(t->bytes, t->dense_bytes);
    value[APP_FORWARDS_TO_DENSE] = ratio(t->forwards, t->dense_forwards);
    if (itself)
        return;
    const app_interval paired = app_interval_paired(t->won, t->lost, t->n);
    value[APP_WON] = (double)t->won;
    value[APP_LOST] = (double)t->lost;
    value[APP_DIFFERENCE] = ((double)t->won - (double)t->lost) / n;
    value[APP_DIFFERENCE_LOW] = paired.low;
    value[APP_DIFFERENCE_HIGH] = paired.high;
}

static rt_status fill_cell(const source *s, app_cell *cell)
{
    tally t = {0};
    RT_TRY(take_documents(s, cell, &t));
    double *value = cell->value;
    for (int i = 0; i < APP_COLUMNS; i++)
        value[i] = ratio(t.of[i].sum, (double)t.of[i].n);
    const app_interval exact = app_interval_share(t.right, t.n);
    value[APP_DOCUMENTS] = (double)t.n;
    value[APP_RIGHT] = (double)t.right;
    value[APP_EXACT] = ratio((double)t.right, (double)t.n);
    value[APP_EXACT_LOW] = exact.low;
    value[APP_EXACT_HIGH] = exact.high;
    value[APP_STEPS_PER_BLOCK] = ratio(t.steps, t.blocks);
    value[APP_TOKENS_PER_FORWARD] = ratio(t.tokens, t.forwards);
    value[APP_PROBED] = t.probed;
    value[APP_DIVERGENCE] = ratio(t.divergence, t.probed);
    value[APP_SAME_CHOICE] = ratio(t.same_choice, t.probed);
    if (s->dense < s->policies->count)
        compare(&t, cell->policy == s->dense, value);
    return RT_OK;
}

// ---- all cells -------------------------------------------------------------------------

static int by_size(const void *a, const void *b)
{
    const int x = *(const int *)a, y = *(const int *)b;
    return (x > y) - (x < y);
}

// The lengths of the documents, ascending, behind 0 for all where there are several.
static size_t list_lengths(const app_documents *documents, int *out)
{
    size_t n = 1;
    out[0] = 0;
    for (size_t i = 0; i < documents->count; i++)
        out[n++] = documents->items[i].length;
    qsort(out + 1, n - 1, sizeof *out, by_size);
    size_t kept = 1;
    for (size_t i = 1; i < n; i++)
        if (out[i] != out[kept - 1])
            out[kept++] = out[i];
    if (kept == 2) { // one length is all
        out[0] = out[1];
        kept = 1;
    }
    return kept;
}

// The tasks, as they first occur, behind NULL for all.
static size_t list_tasks(const app_documents *documents, const char **out)
{
    size_t n = 1;
    out[0] = NULL;
    for (size_t i = 0; i < documents->count; i++) {
        size_t k = 1;
        while (k < n && strcmp(out[k], documents->items[i].task) != 0)
            k++;
        if (k == n)
            out[n++] = documents->items[i].task;
    }
    return n;
}

static bool is_empty(const app_documents *documents, int length, const char *task)
{
    for (size_t i = 0; i < documents->count; i++)
        if (belongs(&documents->items[i], length, task))
            return false;
    return true;
}

static rt_status fill_cells(const source *s, const int *lengths, size_t n_lengths,
                            const char **tasks, size_t n_tasks, app_summary *out)
{
    RT_TRY(RT_ALLOC(out->cells, n_lengths * n_tasks * s->policies->count, "summary"));
    for (size_t l = 0; l < n_lengths; l++) {
        for (size_t t = 0; t < n_tasks; t++) {
            if (is_empty(s->documents, lengths[l], tasks[t]))
                continue;
            for (size_t p = 0; p < s->policies->count; p++) {
                app_cell *cell = &out->cells[out->count++];
                *cell = (app_cell){.length = lengths[l], .task = tasks[t], .policy = p};
                RT_TRY(fill_cell(s, cell));
            }
        }
    }
    return RT_OK;
}

rt_status app_summary_make(const app_documents *documents, const app_policies *policies,
                           const app_store *store, app_summary *out)
{
    source s = {documents, policies, store, 0};
    while (s.dense < policies->count &&
           strcmp(policies->items[s.dense].config.policy->name, "dense") != 0)
        s.dense++;
    int *lengths = NULL;
    const char **tasks = NULL;
    rt_status status;
    *out = (app_summary){0};
    RT_TRY_GOTO(status, RT_ALLOC(lengths, documents->count + 1, "summary"), free_lists);
    RT_TRY_GOTO(status, RT_ALLOC(tasks, documents->count + 1, "summary"), free_lists);
    const size_t n_lengths = list_lengths(documents, lengths);
    const size_t n_tasks = list_tasks(documents, tasks);
    status = fill_cells(&s, lengths, n_lengths, tasks, n_tasks, out);
free_lists:
    rt_free(lengths);
    rt_free(tasks);
    if (status != RT_OK)
        app_summary_free(out);
    return status;
}

void app_summary_free(app_summary *summary)
{
    rt_free(summary->cells);
    *summary = (app_summary){0};
}
