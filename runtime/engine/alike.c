// SPDX-License-Identifier: Apache-2.0
// Whether all ranks are about to run the same model in the same way. Ranks that do not run out
// of step, or add up parts of two models to an answer that nobody sees is wrong.
//
// What rank 0 alone decides or reads (stops, the tokenizer), or each rank for itself (threads,
// memory), may differ.
#include "runtime/engine/engine_int.h"

#include "runtime/base/hash.h"
#include "runtime/base/mem.h"
#include "runtime/io/model_hash.h"

#include <string.h>

typedef enum part { OPTIONS, MODEL, CHECKPOINT, PARTS } part;

// What a rank has, and what to look at.
static const char *const FINDING[PARTS][2] = {
    [OPTIONS] = {"other options", "their command lines"},
    [MODEL] = {"another model", "config.json, block length and mask id"},
    [CHECKPOINT] = {"other weights", "the files of their folders"},
};

// What changes the sequence of collectives, or the arithmetic.
static uint64_t hash_options(const rt_engine_options *o)
{
    const losa_config *a = &o->attention;
    const char *policy = a->policy->name;
    const double values[] = {
        o->precision,   o->skip_prefill, o->max_sessions, o->prefill_chunk, o->trace_plans != NULL,
        o->probe_every, a->budget,       a->first_budget, a->scan_budget,   a->keep,
        a->page,        a->rule,         a->active_k,     a->active_share,  a->first,
        a->commit_scan, a->dense_layers, a->skip,         a->refresh,       a->scope,
        a->locality,    a->check_plans,
    };
    return rt_hash(rt_hash(RT_HASH_START, values, sizeof values), policy, strlen(policy));
}

static uint64_t hash_model(const rt_model_config *m)
{
    const rt_rope_config *r = &m->rope;
    const double values[] = {
        m->hidden,
        m->ffn,
        m->layers,
        m->heads,
        m->kv_heads,
        m->head_dim,
        m->vocab,
        m->rms_eps,
        m->max_positions,
        m->qkv_bias,
        m->qk_norm,
        m->tied_head,
        m->shifted,
        m->block_length,
        m->mask_id,
        r->kind,
        r->theta,
        r->factor,
        r->original_positions,
        r->attention_factor,
        r->beta_fast,
        r->beta_slow,
        r->truncate,
    };
    return rt_hash(RT_HASH_START, values, sizeof values);
}

static rt_status measure(const rt_engine *e, uint64_t out[PARTS])
{
    out[OPTIONS] = hash_options(&e->options);
    out[MODEL] = hash_model(&e->config);
    out[CHECKPOINT] = 0;
    return e->options.dummy ? RT_OK : rt_weights_hash(e->options.model_dir, &out[CHECKPOINT]);
}

static rt_status compare(const uint64_t (*all)[PARTS], int ranks)
{
    for (int p = 0; p < PARTS; p++)
        for (int r = 1; r < ranks; r++)
            if (all[r][p] != all[0][p])
                return RT_FAIL(RT_ERR_INVALID, "rank %d has %s than rank 0: compare %s", r,
                               FINDING[p][0], FINDING[p][1]);
    return RT_OK;
}

rt_status rt_engine_compare(const rt_engine *e)
{
    comm *c = e->group.comm;
    const int ranks = comm_ranks(c);
    uint64_t mine[PARTS], (*all)[PARTS] = NULL;
    if (ranks == 1)
        return RT_OK;
    rt_status status = measure(e, mine);
    if (status == RT_OK)
        status = RT_ALLOC(all, (size_t)ranks, "hashes of the ranks");
    RT_TRY_GOTO(status, comm_agree(c, status), free_all);
    RT_TRY_GOTO(status, comm_ctl_allgather(c, mine, sizeof mine, all), free_all);
    status = compare(all, ranks);
free_all:
    rt_free(all);
    return status;
}
