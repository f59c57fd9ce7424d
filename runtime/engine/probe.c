// SPDX-License-Identifier: Apache-2.0
#include "runtime/engine/probe.h"

#include "runtime/base/mem.h"
#include "runtime/engine/engine_int.h"

#include <math.h>
#include <string.h>

struct rt_probe {
    rt_batch batch;
    Pb__Segment *segments; // [sessions]
    const Pb__Segment **pointers;
    int count; // segments of this step
    int rows;  // masked positions of theirs
    // Per row: where its logits are, with the policy and in the batch of the probe.
    int32_t *sparse_row, *dense_row; // [sessions * block]
    int32_t *slot;
    float *sparse, *dense; // rank 0, [rows, vocab]
};

bool rt_probe_samples(const rt_engine *e, int prompt_len, int steps, int kind)
{
    const int every = e->options.probe_every;
    return every > 0 && (prompt_len + steps) % every == 0 &&
           losa_reading_of(&e->options.attention, kind).sparse;
}

static rt_status open_parts(rt_engine *e, int max_pages, rt_probe *p)
{
    const size_t sessions = (size_t)e->options.max_sessions;
    const size_t rows = sessions * (size_t)e->config.block_length;
    RT_TRY(RT_ALLOC(p->segments, sessions, "probes"));
    RT_TRY(RT_ALLOC(p->pointers, sessions, "probes"));
    RT_TRY(RT_ALLOC(p->sparse_row, rows, "probes"));
    RT_TRY(RT_ALLOC(p->dense_row, rows, "probes"));
    RT_TRY(RT_ALLOC(p->slot, rows, "probes"));
    RT_TRY(rt_logits_open(e));
    return rt_batch_open(e->dev, (int)rows, (int)sessions, max_pages, &p->batch);
}

rt_status rt_probe_open(rt_engine *e, int max_pages, rt_probe **out)
{
    rt_probe *p;
    RT_TRY(RT_ALLOC(p, 1, "probes"));
    const rt_status status = open_parts(e, max_pages, p);
    if (status != RT_OK) {
        rt_probe_close(p);
        return status;
    }
    *out = p;
    return RT_OK;
}

void rt_probe_close(rt_probe *p)
{
    if (!p)
        return;
    rt_batch_close(&p->batch);
    rt_free(p->segments);
    rt_free(p->pointers);
    rt_free(p->sparse_row);
    rt_free(p->dense_row);
    rt_free(p->slot);
    rt_free(p);
}

// ---- what is compared ------------------------------------------------------------------

// The block that a segment denoises, as a later step.
static void add_block(const rt_engine *e, rt_probe *p, const Pb__Segment *s, int end_row)
{
    const rt_slot *slot = &e->slots[s->slot];
    const int block = e->config.block_length, first = (int)(s->first + s->count) - block;
    Pb__Segment *copy = &p->segments[p->count];
    *copy = *s;
    copy->kind = KERN_SEG_STEP;
    copy->first = (uint32_t)first;
    copy->count = (uint32_t)block;
    for (int j = 0; j < block; j++) {
        if (!(slot->state[first + j] & KERN_ROW_MASKED))
            continue;
        const int source = e->config.shifted && j > 0 ? j - 1 : j;
        p->sparse_row[p->rows] = end_row - block + source;
        p->dense_row[p->rows] = p->count * block + source;
        p->slot[p->rows++] = (int32_t)s->slot;
    }
    p->pointers[p->count++] = copy;
}

static void collect(const rt_engine *e, rt_probe *p, const rt_batch_args *args)
{
    p->count = p->rows = 0;
    for (int i = 0; i < args->count; i++)
        if (args->segments[i]->probe)
            add_block(e, p, args->segments[i], e->batch.host[RT_BATCH_SEG_ROW0][i + 1]);
}

// ---- the second forward ------------------------------------------------------------------

static rt_status run_dense(rt_engine *e, rt_probe *p, const rt_batch_args *args)
{
    rt_batch_args dense = *args;
    dense.segments = p->pointers;
    dense.count = p->count;
    dense.scan = dense.sparse = 0;
    dense.use_cache = dense.recorded = false;
    if (e->trace)
        rt_trace_forward(e->trace, 0, NULL);
    RT_TRY(rt_batch_build(&p->batch, &dense));
    RT_TRY(losa_begin(e->attention, p->count));
    return rt_model_forward(e->model, &p->batch.kern, e->attention, e->kv.kv);
}

typedef struct sink {
    float *to;
} sink;

static rt_status take_rows(void *ctx, const float *rows, size_t n, int vocab)
{
    sink *s = ctx;
    memcpy(s->to, rows, n * (size_t)vocab * sizeof *rows);
    s->to += n * (size_t)vocab;
    return RT_OK;
}

// ---- comparing ---------------------------------------------------------------------------

static double log_sum(const float *logits, int vocab)
{
    double most = -INFINITY, sum = 0;
    for (int i = 0; i < vocab; i++)
        most = fmax(most, (double)logits[i]);
    for (int i = 0; i < vocab; i++)
        sum += exp((double)logits[i] - most);
    return most + log(sum);
}

// KL(dense || sparse), nats.
static double divergence(const float *dense, const float *sparse, int vocab)
{
    const double d = log_sum(dense, vocab), s = log_sum(sparse, vocab);
    double sum = 0;
    for (int i = 0; i < vocab; i++) {
        const double log_p = (double)dense[i] - d;
        sum += exp(log_p) * (log_p - ((double)sparse[i] - s));
    }
    return sum;
}

// The most likely token but the mask; ties: the lower id.
static int best(const float *logits, int vocab, int mask_id)
{
    int found = -1;
    for (int i = 0; i < vocab; i++)
        if (i != mask_id && (found < 0 || logits[i] > logits[found]))
            found = i;
    return found;
}

static void compare(const rt_engine *e, const rt_probe *p)
{
    const int vocab = e->config.vocab, mask = e->config.mask_id;
    for (int r = 0; r < p->rows; r++) {
        const float *dense = p->dense + (size_t)r * (size_t)vocab;
        const float *sparse = p->sparse + (size_t)r * (size_t)vocab;
        rt_probed *out = &e->running[p->slot[r]]->probed;
        out->positions++;
        out->divergence += divergence(dense, sparse, vocab);
        out->same += best(dense, vocab, mask) == best(sparse, vocab, mask);
    }
}

static rt_status compare_rows(rt_engine *e, rt_probe *p, const rt_batch_args *args)
{
    sink sparse = {p->sparse}, dense = {p->dense};
    RT_TRY(rt_logits_rows(e, p->sparse_row, p->rows, take_rows, &sparse));
    RT_TRY(run_dense(e, p, args));
    RT_TRY(rt_logits_rows(e, p->dense_row, p->rows, take_rows, &dense));
    if (rt_engine_is_root(e))
        compare(e, p);
    return RT_OK;
}

rt_status rt_probe_run(rt_engine *e, const rt_batch_args *args)
{
    rt_probe *p = e->probe;
    collect(e, p, args);
    if (p->rows == 0)
        return RT_OK;
    const size_t values = rt_engine_is_root(e) ? (size_t)p->rows * (size_t)e->config.vocab : 0;
    rt_status status;
    RT_TRY_GOTO(status, RT_ALLOC(p->sparse, values, "logits"), free_logits);
    RT_TRY_GOTO(status, RT_ALLOC(p->dense, values, "logits"), free_logits);
    status = compare_rows(e, p, args);
free_logits:
    rt_free(p->sparse);
    rt_free(p->dense);
    p->sparse = p->dense = NULL;
    return status;
}
