// SPDX-License-Identifier: Apache-2.0
// losa bench: one table per benchmark, one row per size.
#include "launcher/bench.h"
#include "launcher/model_options.h"
#include "launcher/report.h"

#include "runtime/base/mem.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const bench *const benches[] = {&bench_attention, &bench_decode, &bench_prefill,
                                       &bench_scheduler, &bench_comm};
enum { BENCHES = sizeof benches / sizeof benches[0] };

#define AT(member) offsetof(bench_args, member)

static const app_option options[] = {
    APP_OPTION_MODEL(bench_args),
    APP_OPTION_DUMMY(bench_args),
    {"block", 0, APP_INT, AT(block), 0, RT_CONFIG_MAX_BLOCK, "N", NULL,
     "tokens in a block; 0: the model's, 16 for attention", NULL, NULL, NULL},
    {"repeats", 'r', APP_INT, AT(repeats), 1, 10000, "N", NULL,
     "measurements; the median is reported", "Benchmark", NULL, NULL},
    {"batch", 0, APP_INT, AT(batch), 1, 4096, "R", NULL,
     "attention, decode: requests, all of the same length and in step", NULL, NULL, NULL},
    {"blocks", 0, APP_INT, AT(blocks), 1, 1024, "N", NULL,
     "decode: blocks to measure, after 3 that warm up", NULL, NULL, NULL},
    {"steps", 0, APP_INT, AT(steps), 0, 1024, "N", NULL,
     "decode: denoising steps of a block; 0: one a token", NULL, NULL, NULL},
    {"heads", 0, APP_INT, AT(heads), 1, 1024, "N", NULL, "attention: query heads", NULL, NULL,
     NULL},
    {"kv-heads", 0, APP_INT, AT(kv_heads), 1, 1024, "N", NULL, "attention: KV heads", NULL, NULL,
     NULL},
    {"head-dim", 0, APP_INT, AT(head_dim), 2, 1024, "N", NULL, "attention: head dimension", NULL,
     NULL, NULL},
    {"masked", 0, APP_INT, AT(active), 0, 1024, "N", NULL,
     "attention: tokens of the block that are unsettled", NULL, NULL, NULL},
    {"policies", 'p', APP_TEXT, AT(policies), 0, 0, "POLICY,...", NULL,
     "attention, decode: measured one after the other; a POLICY is NAME[:BUDGET[+SCAN]][:WORD]..., "
     "as in losa eval",
     NULL, NULL, NULL},
    APP_OPTION_DEVICE(bench_args),
    APP_OPTION_PRECISION(bench_args),
    {"threads", 0, APP_INT, AT(engine.threads), 0, 1024, "N", NULL,
     "per rank; 0: cores / ranks of the host", NULL, NULL, NULL},
    {"prefill-chunk", 0, APP_INT, AT(engine.prefill_chunk), 1, 1 << 20, "N", NULL,
     "prompt tokens in one forward", NULL, NULL, NULL},
    APP_OPTION_KV_MEMORY(bench_args,
                         "decode, prefill: most memory of KV pages on each rank, such as 8G"),
    APP_OPTION_TIMEOUT(bench_args),
    APP_OPTION_JSON(bench_args, "print a JSON array of the rows instead of a table"),
    {"csv", 0, APP_FLAG, AT(csv), 0, 0, NULL, NULL, "print the rows as CSV", NULL, NULL, NULL},
};

static void defaults(void *target)
{
    bench_args *args = target;
    args->engine = rt_engine_options_default();
    args->dummy = APP_NO_DUMMY;
    args->repeats = 5;
    args->blocks = 2;
    args->batch = 1;
    args->heads = 32; // a layer of SDAR-8B
    args->kv_heads = 8;
    args->head_dim = 128;
    args->active = 5;
    args->policies = "dense,losa,losa-mix";
}

static const bench *find_bench(const char *name)
{
    for (size_t i = 0; i < BENCHES; i++)
        if (strcmp(benches[i]->name, name) == 0)
            return benches[i];
    return NULL;
}

static rt_status check_size(const bench *b, const char *text)
{
    uint64_t size;
    if (app_parse_bytes(text, &size) != RT_OK || size < b->least || size > b->most)
        return RT_FAIL(RT_ERR_INVALID, "'%s': not a number of %s from %llu to %llu", text, b->unit,
                       (unsigned long long)b->least, (unsigned long long)b->most);
    return RT_OK;
}

static rt_status check(void *target)
{
    bench_args *args = target;
    const app_list *words = &args->common.operands;
    const bench *b = words->len ? find_bench(words->items[0]) : NULL;
    if (!words->len)
        return RT_FAIL(RT_ERR_INVALID, "no benchmark named; there are attention, decode, prefill, "
                                       "scheduler and comm");
    if (!b)
        return RT_FAIL(RT_ERR_INVALID, "%s: not one of attention, decode, prefill, scheduler, comm",
                       words->items[0]);
    if (b->needs_model)
        RT_TRY(app_model_check(args->model, args->dummy));
    if (!b->sizes && words->len < 2)
        return RT_FAIL(RT_ERR_INVALID, "bench %s: no number of %s given", b->name, b->unit);
    for (size_t i = 1; i < words->len; i++)
        RT_TRY(check_size(b, words->items[i]));
    if (args->json && args->csv)
        return RT_FAIL(RT_ERR_INVALID, "--json and --csv exclude each other");
    app_policies policies = {0}; // the run makes its own
    const rt_status status = app_policies_parse(args->policies, &policies);
    app_policies_free(&policies);
    return status;
}

// ---- running ---------------------------------------------------------------------------

// One size, with every policy that is asked for.
static rt_status run_size(comm *c, const bench_args *args, const bench *b,
                          const app_policies *policies, int64_t size, json_t *rows)
{
    bench_args one = *args;
    for (size_t i = 0; i < (b->compares ? policies->count : 1); i++) {
        one.policy = &policies->items[i];
        RT_TRY(b->run(c, &one, size, rows));
    }
    return RT_OK;
}

static rt_status run_sizes(comm *c, const bench_args *args, const bench *b,
                           const app_policies *policies, json_t *rows)
{
    const app_list *words = &args->common.operands;
    for (const int64_t *size = b->sizes; size && *size && words->len < 2; size++)
        RT_TRY(run_size(c, args, b, policies, *size, rows));
    for (size_t i = 1; i < words->len; i++) {
        uint64_t size;
        RT_TRY(app_parse_bytes(words->items[i], &size));
        RT_TRY(run_size(c, args, b, policies, (int64_t)size, rows));
    }
    return RT_OK;
}

static rt_status run_all(comm *c, bench_args *args, const bench *b, json_t *rows)
{
    if (b->compares)
        RT_TRY(bench_ceiling(c, args, &args->ceiling));
    app_policies policies = {0};
    rt_status status = app_policies_parse(args->policies, &policies);
    if (status == RT_OK)
        status = run_sizes(c, args, b, &policies, rows);
    app_policies_free(&policies);
    return status;
}

static rt_status run(comm *c, void *target)
{
    bench_args *args = target;
    const bool root = comm_rank(c) == 0;
    json_t *rows = root ? json_array() : NULL;
    RT_TRY(comm_agree(c, root && !rows ? RT_FAIL(RT_ERR_NOMEM, "out of memory: benchmark rows")
                                       : RT_OK));
    rt_status status = run_all(c, args, find_bench(args->common.operands.items[0]), rows);
    if (status == RT_OK && root)
        status = bench_print(args, rows);
    json_decref(rows);
    return comm_agree(c, status);
}

const app_command app_cmd_bench = {
    .name = "bench",
    .summary = "measure attention, denoising forwards, prefill, scheduling or communication",
    .usage = "attention|decode|prefill TOKENS... | scheduler [REQUESTS...] | comm [BYTES...] "
             "[OPTION...]",
    .notes =
        "Times are medians, seen by rank 0; sizes may end in K, M or G. What must be read is "
        "compared\n"
        "with what a pass that only reads reaches on this machine: floor, of_floor = floor / "
        "time.\n"
        "attention: a layer of a block's step (open: of the first block; first: of a later one, "
        "with\n"
        "the commit before it; later), the pages of as many layers in turn as no cache holds; "
        "the\n"
        "stages are measured one by one and add up to more. decode: after a prompt that is read, "
        "or\n"
        "with --dummy after random pages; host: what the host does between two later steps. "
        "scheduler:\n"
        "the same, with so many requests running and a model of next to nothing.\n",
    .table = {options, sizeof options / sizeof options[0]},
    .args_size = sizeof(bench_args),
    .operands = true,
    .defaults = defaults,
    .check = check,
    .run = run,
};
