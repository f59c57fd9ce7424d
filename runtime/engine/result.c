// SPDX-License-Identifier: Apache-2.0
// What a finished request is told: its text, and statistics summed over the ranks.
#include "runtime/engine/engine_int.h"

const char *rt_finish_name(rt_finish finish)
{
    switch (finish) {
    case RT_FINISH_STOP:
        return "stop";
    case RT_FINISH_LENGTH:
        return "length";
    case RT_FINISH_CANCELLED:
        return "cancelled";
    }
    return "unknown";
}

static double ratio(uint64_t part, uint64_t whole, double otherwise)
{
    return whole ? (double)part / (double)whole : otherwise;
}

// KV heads of a rank that read what one list says. Ranks count by lists.
static uint64_t heads_per_list(const rt_engine *e)
{
    const bool shared = e->options.attention.scope == LOSA_SCOPE_SHARED;
    return shared ? (uint64_t)e->plan.kv_heads.count : 1;
}

static void sum_results(const rt_engine *e, Pb__Result *const *results, rt_stats *st)
{
    Pb__Result sum = {0};
    for (int r = 0; r < st->ranks; r++) {
        sum.read_later += results[r]->read_later;
        sum.prefix_later += results[r]->prefix_later;
        sum.read_steps += results[r]->read_steps;
        sum.prefix_steps += results[r]->prefix_steps;
        sum.read_total += results[r]->read_total;
        sum.prefix_total += results[r]->prefix_total;
        sum.active_later += results[r]->active_later;
        sum.rows_later += results[r]->rows_later;
        sum.scanned += results[r]->scanned;
        sum.union_pages += results[r]->union_pages;
        sum.budget_pages += results[r]->budget_pages;
        sum.exchange_bytes += results[r]->exchange_bytes;
    }
    st->density_later = ratio(sum.read_later, sum.prefix_later, 1);
    st->density_steps = ratio(sum.read_steps, sum.prefix_steps, 1);
    st->density_total = ratio(sum.read_total, sum.prefix_total, 1);
    st->active_share = ratio(sum.active_later, sum.rows_later, 1);
    st->union_inflation = ratio(sum.union_pages, sum.budget_pages, 1);
    const uint64_t heads = heads_per_list(e), values = 2 * (uint64_t)e->config.head_dim;
    const kern_dtype kv = kern_dev_kv_dtype(e->dev);
    const kern_dtype bound = kern_dev_bound_dtype(e->dev, e->config.head_dim);
    st->prefix_tokens_read = heads * sum.read_total;
    st->prefix_bytes_read =
        heads * values *
        (sum.read_total * kern_dtype_size(kv) + sum.scanned * kern_dtype_size(bound));
    st->exchange_bytes = sum.exchange_bytes;
}

static rt_stats collect_stats(const rt_engine *e, const rt_session *s, Pb__Result *const *results)
{
    rt_stats st = {.ranks = comm_ranks(e->group.comm),
                   .blocks = s->blocks,
                   .forwards = s->forwards,
                   .prefill_forwards = s->prefill_forwards,
                   .shared_tokens = s->shared_tokens,
                   .steps = s->steps,
                   .density_later = 1,
                   .density_steps = 1,
                   .density_total = 1,
                   .union_inflation = 1,
                   .active_share = 1};
    st.tokens_per_forward = ratio((uint64_t)s->output.len, (uint64_t)s->forwards, 0);
    st.steps_per_block = ratio((uint64_t)s->steps, (uint64_t)s->blocks, 0);
    if (results)
        sum_results(e, results, &st);
    if (s->prefilled_at > 0)
        st.prefill_seconds = s->prefilled_at - s->admitted_at;
    if (s->prefilled_at > 0 && s->finished_at > 0)
        st.decode_seconds = s->finished_at - s->prefilled_at;
    return st;
}

void rt_session_deliver(const rt_engine *e, rt_session *s, Pb__Result *const *results)
{
    rt_session_emit(s); // a request that was cancelled may have some left
    if (!s->request.on_done)
        return;
    const rt_result result = {
        .text = s->text.data ? s->text.data : "",
        .text_len = s->text.len,
        .ids = s->output.data,
        .ids_len = s->output.len,
        .finish = s->finish,
        .prompt_tokens = (int)s->prompt.len,
        .completion_tokens = (int)s->output.len,
        .stats = collect_stats(e, s, results),
        .probed = s->probed,
    };
    s->request.on_done(s->request.ctx, s->id, &result);
}
