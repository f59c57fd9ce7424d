// SPDX-License-Identifier: Apache-2.0
#include "launcher/info_memory.h"
#include "launcher/grid.h"

#include "runtime/base/mem.h"

#include <stdio.h>

enum { RESERVE = KERN_USES, TOTAL, COLUMNS }; // after the columns of kern_use

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

static size_t column_bytes(const rt_memory *m, size_t column)
{
    return column == TOTAL ? m->total : column == RESERVE ? m->reserve : m->bytes[column];
}

static rt_status print_table(const rt_memory *plans, size_t ranks)
{
    app_grid t;
    rt_status status = app_grid_open(ranks + 1, COLUMNS + 1, &t);
    for (size_t i = 0; i < COLUMNS && status == RT_OK; i++) {
        const char *sum = i == RESERVE ? "reserve" : "sum";
        app_grid_set(&t, 0, i + 1, "%s", i < KERN_USES ? kern_use_name((kern_use)i) : sum);
    }
    for (size_t r = 0; r < ranks && status == RT_OK; r++) {
        app_grid_set(&t, r + 1, 0, "%zu", r);
        for (size_t i = 0; i < COLUMNS; i++)
            app_grid_set(&t, r + 1, i + 1, "%.1f", (double)column_bytes(&plans[r], i) / 1e6);
    }
    if (status == RT_OK) {
        app_grid_set(&t, 0, 0, "MB, rank");
        status = app_grid_print(&t, stdout);
    }
    app_grid_close(&t);
    return status;
}

rt_status app_memory_print(const rt_memory *plans, int ranks, kern_kind device, int context,
                           uint64_t kv_memory)
{
    const rt_memory *m = &plans[0];
    const size_t page = page_bytes(m);
    RT_TRY(print_table(plans, (size_t)ranks));
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
