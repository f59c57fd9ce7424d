// SPDX-License-Identifier: Apache-2.0
#include "launcher/info_memory.h"
#include "launcher/report.h"

#include "runtime/base/mem.h"

#include <stdio.h>

enum { CELL = 24, RESERVE = KERN_USES, TOTAL, COLUMNS }; // after the columns of kern_use

static const char *const keys[KERN_USES] = {
    [KERN_USE_WEIGHTS] = "weights",
    [KERN_USE_KV] = "kv_pages",
    [KERN_USE_METADATA] = "page_metadata",
    [KERN_USE_CACHE] = "prefix_cache",
    [KERN_USE_ACTIVATIONS] = "activations",
    [KERN_USE_TABLES] = "tables",
    [KERN_USE_BATCH] = "batch",
    [KERN_USE_ROUNDING] = "rounding",
    [KERN_USE_WORKSPACE] = "workspace",
    [KERN_USE_HOST] = "host",
};

// Ranks that never meet: a plan asks them for no more than their numbers.
rt_status app_memory_plan(const rt_engine_options *options, int ranks, rt_memory *out)
{
    comm **group;
    RT_TRY(RT_ALLOC(group, (size_t)ranks, "ranks"));
    rt_status status = comm_open_threads(ranks, 0, group);
    if (status == RT_OK) {
        for (int r = 0; r < ranks && status == RT_OK; r++)
            status = rt_engine_plan(options, group[r], &out[r]);
        for (int r = 0; r < ranks; r++)
            comm_close(group[r]);
    }
    rt_free(group);
    return status;
}

static size_t page_bytes(const rt_memory *m)
{
    return (m->bytes[KERN_USE_KV] + m->bytes[KERN_USE_METADATA]) / (size_t)m->pages;
}

json_t *app_memory_json(const rt_memory *m, uint64_t kv_memory)
{
    json_t *bytes = json_object();
    for (int use = 0; use < KERN_USES; use++)
        json_object_set_new(bytes, keys[use], json_integer((json_int_t)m->bytes[use]));
    json_object_set_new(bytes, "reserve", json_integer((json_int_t)m->reserve));
    json_object_set_new(bytes, "total", json_integer((json_int_t)m->total));
    const json_int_t page = (json_int_t)page_bytes(m);
    json_t *kv = json_pack("{s:i, s:i, s:I, s:i}", "pages", m->pages, "page", m->page, "page_bytes",
                           page, "session_pages", m->session_pages);
    if (kv_memory) {
        const json_int_t pages = (json_int_t)kv_memory / page;
        json_object_set_new(kv, "fit_tokens", json_integer(pages * m->page));
        json_object_set_new(kv, "fit_sessions", json_integer(pages / m->session_pages));
    }
    return json_pack("{s:o, s:o}", "memory", bytes, "kv", kv);
}

// ---- text ------------------------------------------------------------------------

static size_t column_bytes(const rt_memory *m, int column)
{
    return column == TOTAL ? m->total : column == RESERVE ? m->reserve : m->bytes[column];
}

static rt_status print_table(const rt_memory *plans, int ranks)
{
    const size_t columns = COLUMNS + 1, rows = (size_t)ranks + 1;
    char(*text)[CELL] = NULL;
    const char **cells = NULL;
    rt_status status;
    RT_TRY_GOTO(status, RT_ALLOC(text, rows * columns, "table"), done);
    RT_TRY_GOTO(status, RT_ALLOC(cells, rows * columns, "table"), done);
    cells[0] = "MB, rank";
    for (int use = 0; use < KERN_USES; use++)
        cells[1 + use] = kern_use_name((kern_use)use);
    cells[1 + RESERVE] = "reserve";
    cells[1 + TOTAL] = "sum";
    for (size_t r = 1; r < rows; r++) {
        char(*row)[CELL] = &text[r * columns];
        snprintf(row[0], CELL, "%zu", r - 1);
        for (int i = 0; i < COLUMNS; i++)
            snprintf(row[1 + i], CELL, "%.1f", (double)column_bytes(&plans[r - 1], i) / 1e6);
        for (size_t i = 0; i < columns; i++)
            cells[r * columns + i] = row[i];
    }
    status = app_report_table(stdout, cells, rows, columns);
done:
    rt_free(cells);
    rt_free(text);
    return status;
}

rt_status app_memory_print(const rt_memory *plans, int ranks, kern_kind device, int context,
                           uint64_t kv_memory)
{
    const rt_memory *m = &plans[0];
    const size_t page = page_bytes(m);
    RT_TRY(print_table(plans, ranks));
    if (device == KERN_CUDA)
        printf("The sum leaves out the host's memory; graphs and code of the driver take the "
               "reserve.\n");
    printf("\nKV pages: %d of %d tokens, %.0f bytes a token on each rank, metadata included\n",
           m->pages, m->page, (double)page / m->page);
    if (kv_memory) {
        const uint64_t pages = kv_memory / page;
        printf("%.2f GB hold %llu tokens: %llu sessions of %d\n", (double)kv_memory / 1e9,
               (unsigned long long)pages * (unsigned)m->page,
               (unsigned long long)pages / (unsigned)m->session_pages, context);
    }
    return RT_OK;
}
