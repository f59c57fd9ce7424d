// SPDX-License-Identifier: Apache-2.0
// losa bench: one table per benchmark, one row per number of tokens.
#include "launcher/bench.h"
#include "launcher/model_options.h"
#include "launcher/report.h"

#include "runtime/base/mem.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const bench *const benches[] = {&bench_attention, &bench_prefill, &bench_decode};
enum { BENCHES = sizeof benches / sizeof benches[0], COLUMNS_MAX = 16, CELL = 32 };

#define AT(member) offsetof(bench_args, member)

static const app_option options[] = {
    APP_OPTION_MODEL(bench_args),
    APP_OPTION_DUMMY(bench_args),
    {"block", 0, APP_INT, AT(block), 0, 1024, "N", NULL,
     "tokens in a block; 0: the model's, 16 for attention", NULL, NULL, NULL},
    {"repeats", 'r', APP_INT, AT(repeats), 1, 10000, "N", NULL,
     "measurements; the median is reported", "Benchmark", NULL, NULL},
    {"blocks", 0, APP_INT, AT(blocks), 1, 1024, "N", NULL, "decode: blocks to denoise", NULL, NULL,
     NULL},
    {"heads", 0, APP_INT, AT(heads), 1, 1024, "N", NULL, "attention: query heads", NULL, NULL,
     NULL},
    {"kv-heads", 0, APP_INT, AT(kv_heads), 1, 1024, "N", NULL, "attention: KV heads", NULL, NULL,
     NULL},
    {"head-dim", 0, APP_INT, AT(head_dim), 2, 1024, "N", NULL, "attention: head dimension", NULL,
     NULL, NULL},
    {"masked", 0, APP_INT, AT(active), 0, 1024, "N", NULL,
     "attention: tokens of the block that are unsettled", NULL, NULL, NULL},
    APP_OPTIONS_ATTENTION(bench_args, attention),
    APP_OPTION_DEVICE(bench_args),
    APP_OPTION_PRECISION(bench_args),
    {"threads", 0, APP_INT, AT(engine.threads), 0, 1024, "N", NULL,
     "per rank; 0: cores / ranks of the host", NULL, NULL, NULL},
    {"prefill-chunk", 0, APP_INT, AT(engine.prefill_chunk), 1, 1 << 20, "N", NULL,
     "prompt tokens in one forward", NULL, NULL, NULL},
    APP_OPTION_TIMEOUT(bench_args),
    APP_OPTION_JSON(bench_args, "print a JSON array of the rows instead of a table"),
};

static void defaults(void *target)
{
    bench_args *args = target;
    args->engine = rt_engine_options_default();
    args->dummy = APP_NO_DUMMY;
    args->repeats = 5;
    args->blocks = 2;
    args->heads = 32; // a layer of SDAR-8B
    args->kv_heads = 8;
    args->head_dim = 128;
    args->active = 5;
    app_attention_defaults(&args->attention);
}

double bench_median(double *values, size_t n)
{
    for (size_t i = 1; i < n; i++) // few values: insertion sort
        for (size_t j = i; j > 0 && values[j] < values[j - 1]; j--) {
            const double swap = values[j];
            values[j] = values[j - 1];
            values[j - 1] = swap;
        }
    return n % 2 ? values[n / 2] : 0.5 * (values[n / 2 - 1] + values[n / 2]);
}

static const bench *find_bench(const char *name)
{
    for (size_t i = 0; i < BENCHES; i++)
        if (strcmp(benches[i]->name, name) == 0)
            return benches[i];
    return NULL;
}

static rt_status parse_tokens(const char *text, int *out)
{
    char *end;
    const long value = strtol(text, &end, 10);
    if (end == text || *end || value < 1 || value > 1 << 28)
        return RT_FAIL(RT_ERR_INVALID, "'%s': not a number of tokens", text);
    *out = (int)value;
    return RT_OK;
}

static rt_status check(void *target)
{
    bench_args *args = target;
    const app_list *words = &args->common.operands;
    const bench *b = words->len ? find_bench(words->items[0]) : NULL;
    if (!b)
        return RT_FAIL(RT_ERR_INVALID, "%s: not one of attention, prefill, decode",
                       words->len ? words->items[0] : "no benchmark named");
    if (b->needs_model)
        RT_TRY(app_model_check(args->model, args->dummy));
    if (words->len < 2)
        return RT_FAIL(RT_ERR_INVALID, "bench %s: no number of tokens given", b->name);
    for (size_t i = 1; i < words->len; i++) {
        int tokens;
        RT_TRY(parse_tokens(words->items[i], &tokens));
    }
    return app_attention_check(&args->attention);
}

// ---- output ----------------------------------------------------------------------------

static void format_cell(const json_t *value, char cell[CELL])
{
    if (json_is_string(value))
        snprintf(cell, CELL, "%s", json_string_value(value));
    else if (json_is_integer(value))
        snprintf(cell, CELL, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
    else
        snprintf(cell, CELL, "%.4g", json_real_value(value));
}

// Column names from the first row's keys, then the rows.
static rt_status print_table(const json_t *rows)
{
    const size_t count = json_array_size(rows);
    const size_t columns = json_object_size(json_array_get(rows, 0));
    char(*text)[CELL];
    const char **cells;
    RT_TRY(RT_ALLOC(text, (count + 1) * columns, "table"));
    rt_status status;
    RT_TRY_GOTO(status, RT_ALLOC(cells, (count + 1) * columns, "table"), free_text);
    size_t at = 0;
    const char *key;
    json_t *value;
    json_object_foreach(json_array_get(rows, 0), key, value) snprintf(text[at++], CELL, "%s", key);
    for (size_t i = 0; i < count; i++) {
        json_object_foreach(json_array_get(rows, i), key, value) format_cell(value, text[at++]);
    }
    for (size_t i = 0; i < at; i++)
        cells[i] = text[i];
    status = app_report_table(stdout, cells, count + 1, columns);
    rt_free(cells);
free_text:
    rt_free(text);
    return status;
}

static rt_status run_all(comm *c, const bench_args *args, const bench *b, json_t *rows)
{
    for (size_t i = 1; i < args->common.operands.len; i++) {
        int tokens = 0;
        json_t *row = NULL;
        RT_TRY(parse_tokens(args->common.operands.items[i], &tokens));
        RT_TRY(b->run(c, args, tokens, &row));
        if (comm_rank(c) == 0 && json_array_append_new(rows, row) != 0)
            return RT_FAIL(RT_ERR_NOMEM, "out of memory: benchmark rows");
    }
    return RT_OK;
}

static rt_status run(comm *c, void *target)
{
    const bench_args *args = target;
    json_t *rows = json_array();
    if (!rows)
        return RT_FAIL(RT_ERR_NOMEM, "out of memory: benchmark rows");
    rt_status status = run_all(c, args, find_bench(args->common.operands.items[0]), rows);
    if (status == RT_OK && comm_rank(c) == 0)
        status = args->json ? app_report_write(rows, "-") : print_table(rows);
    json_decref(rows);
    return comm_agree(c, status);
}

const app_command app_cmd_bench = {
    .name = "bench",
    .summary = "measure attention, prefill or denoising forwards",
    .usage = "attention|prefill|decode TOKENS... [OPTION...]",
    .notes = "Times are medians in milliseconds, seen by rank 0. attention: one layer with its\n"
             "whole plan and exchange, a dense first step beside a later one.\n",
    .table = {options, sizeof options / sizeof options[0]},
    .args_size = sizeof(bench_args),
    .operands = true,
    .defaults = defaults,
    .check = check,
    .run = run,
};
