// SPDX-License-Identifier: Apache-2.0
#include "runtime/engine/graphs.h"

#include "runtime/base/mem.h"

#include <string.h>

typedef struct entry {
    rt_forward_shape shape;
    kern_graph *graph;                  // NULL until the shape came twice
    comm_counter counted[COMM_CLASSES]; // by one run of it
    uint64_t last_used;                 // 0: the entry is free
} entry;

struct rt_graphs {
    kern_dev *dev;
    comm *comm;
    uint64_t now; // counts runs
    entry entries[RT_GRAPHS_MAX];
};

rt_status rt_graphs_open(kern_dev *dev, comm *c, rt_graphs **out)
{
    rt_graphs *g;
    RT_TRY(RT_ALLOC(g, 1, "recorded forwards"));
    g->dev = dev;
    g->comm = c;
    *out = g;
    return RT_OK;
}

void rt_graphs_close(rt_graphs *g)
{
    for (int i = 0; g && i < RT_GRAPHS_MAX; i++)
        kern_graph_free(g->entries[i].graph);
    rt_free(g);
}

// The entry of a shape; a new one takes the place of the oldest. Shapes are all ints:
// bytes that agree are shapes that agree.
static entry *find(rt_graphs *g, const rt_forward_shape *shape, bool *known)
{
    entry *oldest = &g->entries[0];
    for (int i = 0; i < RT_GRAPHS_MAX; i++) {
        entry *e = &g->entries[i];
        *known = e->last_used > 0 && memcmp(&e->shape, shape, sizeof *shape) == 0;
        if (*known)
            return e;
        if (e->last_used < oldest->last_used)
            oldest = e;
    }
    kern_graph_free(oldest->graph);
    *oldest = (entry){.shape = *shape};
    return oldest;
}

static void count_run(const rt_graphs *g, const comm_counter before[COMM_CLASSES],
                      comm_counter counted[COMM_CLASSES])
{
    for (int i = 0; i < COMM_CLASSES; i++) {
        const comm_counter after = comm_count(g->comm, (comm_class)i);
        counted[i].calls = after.calls - before[i].calls;
        counted[i].bytes = after.bytes - before[i].bytes;
    }
}

// Recording counts the collectives once, for the launch that follows it.
static rt_status record(rt_graphs *g, entry *e, rt_forward_fn *run, void *ctx)
{
    comm_counter before[COMM_CLASSES];
    for (int i = 0; i < COMM_CLASSES; i++)
        before[i] = comm_count(g->comm, (comm_class)i);
    RT_TRY(kern_record_begin(g->dev));
    const rt_status status = run(ctx);
    if (status != RT_OK) {
        (void)kern_record_end(g->dev, NULL); // the first failure is the one to report
        return status;
    }
    count_run(g, before, e->counted);
    return kern_record_end(g->dev, &e->graph);
}

rt_status rt_graphs_run(rt_graphs *g, const rt_forward_shape *shape, rt_forward_fn *run, void *ctx)
{
    bool known;
    entry *e = find(g, shape, &known);
    e->last_used = ++g->now;
    if (!known)
        return run(ctx);
    if (e->graph)
        comm_count_again(g->comm, e->counted);
    else
        RT_TRY(record(g, e, run, ctx));
    return kern_graph_launch(e->graph);
}
