// SPDX-License-Identifier: Apache-2.0
// All logits of a prefill, for comparing with other programs: a request of its own
// whose steps carry the `logits` flag. The shards of the vocabulary are gathered a
// few rows at a time and put together on rank 0.
#include "runtime/engine/engine_int.h"

#include "runtime/base/mem.h"

#include <string.h>

// Rows of all ranks, each [rows, its shard] -> [rows, vocab].
static void join_shards(const rt_engine *e, const float *shards, size_t rows, float *out)
{
    const size_t vocab = (size_t)e->config.vocab, width = (size_t)e->plan.vocab_rows;
    for (size_t first = 0; first < vocab; first += width, shards += rows * width) {
        const size_t count = vocab - first < width ? vocab - first : width;
        for (size_t i = 0; i < rows; i++)
            memcpy(out + i * vocab + first, shards + i * count, count * sizeof *out);
    }
}

static rt_status emit_rows(rt_engine *e, size_t rows, size_t width, rt_logits_fn *emit, void *ctx)
{
    const size_t ranks = (size_t)comm_ranks(e->group.comm);
    float *shards = NULL, *joined = NULL;
    rt_status status;
    RT_TRY_GOTO(status, RT_ALLOC(shards, ranks * rows * width, "gathered logits"), free_rows);
    RT_TRY_GOTO(status, RT_ALLOC(joined, rows * (size_t)e->config.vocab, "logits"), free_rows);
    RT_TRY_GOTO(status, kern_read(e->gathered, 0, shards, ranks * rows * width), free_rows);
    join_shards(e, shards, rows, joined);
    RT_TRY_GOTO(status, emit(ctx, joined, rows, e->config.vocab), free_rows);
free_rows:
    rt_free(shards);
    rt_free(joined);
    return status;
}

rt_status rt_logits_open(rt_engine *e)
{
    const size_t ranks = (size_t)comm_ranks(e->group.comm), width = (size_t)e->plan.vocab_rows;
    if (e->gathered)
        return RT_OK;
    kern_use_for(e->dev, KERN_USE_BATCH);
    RT_TRY(kern_buf_new(e->dev, KERN_I32, RT_LOGITS_ROWS, "rows of logits", &e->logits_index));
    return kern_buf_new(e->dev, KERN_F32, ranks * RT_LOGITS_ROWS * width, "gathered logits",
                        &e->gathered);
}

rt_status rt_logits_rows(rt_engine *e, const int32_t *index, int rows, rt_logits_fn *emit,
                         void *ctx)
{
    // The last rank's shard may be narrower; it sends as much as the others.
    const size_t width = (size_t)e->plan.vocab_rows;
    RT_TRY(rt_logits_open(e));
    // The other ranks go through all rows: what fails on rank 0 alone waits for the end.
    rt_status emitted = RT_OK;
    for (int first = 0; first < rows; first += RT_LOGITS_ROWS) {
        const int left = rows - first, n = left < RT_LOGITS_ROWS ? left : RT_LOGITS_ROWS;
        const kern_buf *logits;
        RT_TRY(kern_write(e->logits_index, 0, index + first, (size_t)n));
        RT_TRY(rt_model_head(e->model, e->logits_index, n, &logits));
        RT_TRY(comm_allgather(e->group.comm, COMM_VOCAB, logits, (size_t)n * width, e->gathered));
        RT_TRY(comm_settle(e->group.comm, e->dev)); // a read would wait without a deadline
        if (rt_engine_is_root(e) && emitted == RT_OK)
            emitted = emit_rows(e, (size_t)n, width, emit, ctx);
    }
    return emitted;
}

rt_status rt_logits_gather(rt_engine *e, int rows)
{
    int32_t *index;
    RT_TRY(RT_ALLOC(index, (size_t)rows, "rows of logits"));
    for (int i = 0; i < rows; i++)
        index[i] = i;
    const rt_status status = rt_logits_rows(e, index, rows, e->emit, e->emit_ctx);
    rt_free(index);
    return status;
}

static rt_status send_and_run(rt_engine *e, Pb__Step *step)
{
    step->sequence = ++e->sequence;
    RT_TRY(rt_step_send(e, step));
    return rt_step_execute(e, step);
}

static rt_status run_chunks(rt_engine *e, const rt_session *s)
{
    const int n = (int)s->prompt.len;
    for (int first = 0; first < n; first += e->prefill_chunk) {
        const int left = n - first;
        Pb__Segment segment = PB__SEGMENT__INIT, *segments[] = {&segment};
        segment.slot = (uint32_t)s->slot;
        segment.kind = KERN_SEG_PREFILL;
        segment.first = (uint32_t)first;
        segment.count = (uint32_t)(left < e->prefill_chunk ? left : e->prefill_chunk);
        Pb__Step step = PB__STEP__INIT;
        step.has_logits = step.logits = true;
        step.n_segments = 1;
        step.segments = segments;
        RT_TRY(send_and_run(e, &step));
    }
    return RT_OK;
}

static rt_status run_session(rt_engine *e, rt_session *s)
{
    Pb__Request request, *admit[] = {&request};
    RT_TRY(rt_session_message(e, s, &request));
    Pb__Step step = PB__STEP__INIT;
    step.n_admit = 1;
    step.admit = admit;
    rt_status status = send_and_run(e, &step);
    rt_free(request.pages);
    RT_TRY(status);
    RT_TRY(run_chunks(e, s));
    uint32_t slot = (uint32_t)s->slot;
    Pb__Step release = PB__STEP__INIT;
    release.n_release = 1;
    release.release = &slot;
    return send_and_run(e, &release);
}

rt_status rt_engine_logits(rt_engine *e, const int32_t *ids, size_t n, rt_logits_fn *emit,
                           void *ctx)
{
    RT_CHECK_ARG(rt_engine_is_root(e) && !e->sessions);
    rt_request request = rt_request_default();
    request.prompt_ids = ids;
    request.prompt_ids_len = n;
    request.max_tokens = 0;
    rt_session *s;
    RT_TRY(rt_session_new(e, &request, &s));
    s->id = ++e->next_session;
    s->slot = 0;
    e->emit = emit;
    e->emit_ctx = ctx;
    s->holding.unit_count = 0; // all of its logits are wanted: nothing is shared
    rt_status status;
    if (rt_pagebook_take(&e->book, s->prompt.data, &s->holding)) {
        status = run_session(e, s);
        rt_pagebook_give(&e->book, &s->holding);
    } else {
        status = RT_FAIL(RT_ERR_INTERNAL, "logits: no pages, though no session is running");
    }
    rt_session_free(s);
    return status;
}
