// SPDX-License-Identifier: Apache-2.0
// What an engine takes of a rank's memory, and how many KV pages that leaves.
//
// There is no second list of sizes: the code that opens an engine runs on a device that only
// counts (kern_dev_options.dry), so a plan is what opening will take.
#include "runtime/engine/engine_int.h"

#include "runtime/base/mem.h"

#include <limits.h>
#include <stdio.h>

// What a GPU's driver takes while an engine runs, beyond its buffers: code that is loaded when
// it is first called, and recorded forwards. Estimates, which tests/gpu/test_memory.c checks.
enum { RESERVE_CODE = 256 << 20, RESERVE_GRAPH_LAYER = 64 << 10 };

// Tokens that a session may leave unused of a block and of a page.
static int slack(const rt_engine *e)
{
    return e->config.block_length + e->options.attention.page;
}

static rt_status wanted_pages(const rt_engine *e, int *out)
{
    const long long tokens = e->options.context + (long long)e->options.max_sessions * slack(e);
    if (tokens > INT_MAX)
        return RT_FAIL(RT_ERR_LIMIT, "context %d: too many tokens", e->options.context);
    *out = rt_engine_pages(e, (int)tokens);
    return RT_OK;
}

// ---- measuring ---------------------------------------------------------------------------

static size_t reserve(const rt_engine *e)
{
    if (e->options.device == KERN_CPU)
        return 0;
    const size_t graphs = e->options.no_graph ? 0 : RT_GRAPHS_MAX;
    return RESERVE_CODE + graphs * (size_t)e->config.layers * RESERVE_GRAPH_LAYER;
}

// What GPUs share to add up; where they cannot, as between hosts, it is left over.
static size_t peers(const rt_engine *e)
{
    const int ranks = comm_ranks(e->group.comm);
    const bool share = e->options.device == KERN_CUDA && ranks > 1 && ranks <= KERN_PEER_RANKS;
    return share ? kern_peers_bytes(ranks) : 0;
}

static void sum_up(const rt_engine *e, const kern_dev *dev, rt_memory *out)
{
    *out = (rt_memory){.reserve = reserve(e), .page = e->options.attention.page};
    out->total = out->reserve;
    for (int use = 0; use < KERN_USES; use++) {
        out->bytes[use] = kern_used(dev, (kern_use)use);
        out->bytes[use] += use == KERN_USE_WORKSPACE ? peers(e) : 0;
        if (use != KERN_USE_HOST || e->options.device == KERN_CPU)
            out->total += out->bytes[use];
    }
    out->session_pages =
        rt_engine_pages(e, e->options.context / e->options.max_sessions + slack(e));
}

// Opens everything with `pages` KV pages on a device that only counts.
static rt_status fill_dry(const rt_engine *e, rt_engine *dry, int pages)
{
    const kern_dev_options device = {
        .kind = e->options.device,
        .threads = rt_engine_threads(&e->options, e->group.comm),
        .precision = e->options.precision,
        .dry = true,
    };
    dry->options = e->options;
    dry->config = e->config;
    dry->plan = e->plan;
    dry->prefill_chunk = e->prefill_chunk;
    dry->ckpt = e->ckpt;
    dry->pages = pages;
    RT_TRY(kern_dev_open(&device, &dry->dev));
    dry->group = (par_group){.comm = e->group.comm, .dev = dry->dev};
    return rt_engine_fill(dry);
}

static rt_status measure(const rt_engine *e, int pages, rt_memory *out)
{
    rt_engine *dry;
    RT_TRY(RT_ALLOC(dry, 1, "memory plan"));
    const rt_status status = fill_dry(e, dry, pages);
    if (status == RT_OK) {
        sum_up(e, dry->dev, out);
        out->stored = dry->loading.done;
        out->pages = pages;
    }
    dry->ckpt = NULL; // the other engine's
    rt_engine_empty(dry);
    kern_dev_close(dry->dev);
    rt_free(dry);
    return status;
}

// ---- choosing ------------------------------------------------------------------------------

static size_t kv_bytes(const rt_memory *m)
{
    return m->bytes[KERN_USE_KV] + m->bytes[KERN_USE_METADATA];
}

// Whether pages may be fewer than asked for, and these are few enough.
static bool is_enough(const rt_engine *e, const rt_memory *m, size_t room)
{
    const uint64_t limit = e->options.kv_memory;
    if (limit == RT_KV_LEFT)
        return m->total <= room;
    return limit == 0 || kv_bytes(m) <= limit;
}

// The plan with the most pages, up to `most`, that the limits allow; at least one.
static rt_status plan_pages(const rt_engine *e, int most, size_t room, rt_memory *out)
{
    RT_TRY(measure(e, most, out));
    if (is_enough(e, out, room))
        return RT_OK;
    int fits = 0, too_many = most;
    while (too_many - fits > 1) {
        const int half = fits + (too_many - fits) / 2;
        RT_TRY(measure(e, half, out));
        *(is_enough(e, out, room) ? &fits : &too_many) = half;
    }
    RT_TRY(measure(e, fits ? fits : 1, out));
    if (fits == 0 && e->options.kv_memory != RT_KV_LEFT)
        return RT_FAIL(RT_ERR_LIMIT, "KV memory of %llu bytes: a page of %d tokens takes %zu",
                       (unsigned long long)e->options.kv_memory, out->page, kv_bytes(out));
    return RT_OK;
}

// What this rank's engine can have in all: buffers that its device already made included.
static rt_status find_room(const rt_engine *e, size_t *out)
{
    RT_TRY(kern_dev_room(e->dev, out));
    if (e->options.device == KERN_CUDA)
        *out += kern_used(e->dev, KERN_USE_WORKSPACE);
    else if (*out != SIZE_MAX)
        *out /= (size_t)comm_local_ranks(e->group.comm);
    return RT_OK;
}

static rt_status refuse(const rt_engine *e, const rt_memory *m, size_t room)
{
    const double giga = 1e9;
    const size_t weights = m->bytes[KERN_USE_WEIGHTS];
    const bool cuda = e->options.device == KERN_CUDA;
    char reserved[64] = "";
    if (m->reserve)
        snprintf(reserved, sizeof reserved, ", reserve %.2f GB", (double)m->reserve / giga);
    return RT_FAIL(
        RT_ERR_LIMIT,
        "memory: %.2f GB needed on this rank, %s %.2f GB (weights %.2f GB, %d KV pages "
        "of %d tokens %.2f GB, working memory %.2f GB%s)",
        (double)m->total / giga, cuda ? "its GPU has free" : "the host has for each of its ranks",
        (double)room / giga, (double)weights / giga, m->pages, m->page, (double)kv_bytes(m) / giga,
        (double)(m->total - weights - kv_bytes(m) - m->reserve) / giga, reserved);
}

static rt_status choose_pages(rt_engine *e, int *pages)
{
    size_t room;
    int most = 0;
    rt_memory m;
    RT_TRY(find_room(e, &room));
    RT_TRY(wanted_pages(e, &most));
    RT_TRY(plan_pages(e, most, room, &m));
    if (m.total > room)
        return refuse(e, &m, room);
    e->stored = m.stored;
    *pages = m.pages;
    return RT_OK;
}

// A page has the same number on every rank: there are as many as the fullest one holds.
rt_status rt_engine_size(rt_engine *e)
{
    comm *c = e->group.comm;
    const size_t ranks = (size_t)comm_ranks(c);
    int mine = 0, *all = NULL;
    rt_status status = choose_pages(e, &mine);
    if (status == RT_OK)
        status = RT_ALLOC(all, ranks, "KV pages of the ranks");
    RT_TRY_GOTO(status, comm_agree(c, status), free_all);
    RT_TRY_GOTO(status, comm_ctl_allgather(c, &mine, sizeof mine, all), free_all);
    e->pages = mine;
    for (size_t r = 0; r < ranks; r++)
        e->pages = all[r] < e->pages ? all[r] : e->pages;
free_all:
    rt_free(all);
    return status;
}

rt_status rt_engine_plan(const rt_engine_options *options, comm *c, rt_memory *out)
{
    rt_engine *e;
    RT_TRY(RT_ALLOC(e, 1, "memory plan"));
    e->group.comm = c;
    int most = 0;
    rt_status status;
    RT_TRY_GOTO(status, rt_engine_configure(e, options), close);
    RT_TRY_GOTO(status, wanted_pages(e, &most), close);
    RT_TRY_GOTO(status, plan_pages(e, most, SIZE_MAX, out), close);
close:
    rt_engine_empty(e);
    rt_free(e);
    return status;
}
