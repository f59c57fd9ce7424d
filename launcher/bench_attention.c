// SPDX-License-Identifier: Apache-2.0
// losa bench attention: a layer of LoSA attention over random prefixes, with its
// locality, exchange, plan, attention, beside what it must read.
#include "launcher/bench_layer.h"

#include <stdio.h>
#include <string.h>

// ---- a row -----------------------------------------------------------------------------

typedef struct measured {
    double ms, stages[LOSA_STAGES]; // of a layer
    bench_read read;
} measured;

static rt_status measure(bench_layer *l, const bench_args *args, bench_step step, measured *out)
{
    const bool recorded = kern_can_record(l->group.dev) && !l->config.check_plans;
    RT_TRY(bench_layer_prepare(l, step));
    RT_TRY(bench_time(l->group.comm, l->group.dev, recorded, args->repeats, bench_layer_pass, l,
                      &out->ms));
    out->ms /= l->layers;
    RT_TRY(bench_layer_read(l, &out->read));
    return bench_layer_stages(l, recorded, args->repeats, out->stages);
}

// The time of the dense policy's same step, if that is a row of the same size.
static const json_t *find_dense(const json_t *rows, int prefix, bench_step step)
{
    size_t i;
    json_t *row;
    json_array_foreach(rows, i, row)
    {
        const char *policy = json_string_value(json_object_get(row, "policy"));
        const char *name = json_string_value(json_object_get(row, "step"));
        if (json_integer_value(json_object_get(row, "prefix")) == prefix &&
            strcmp(policy, "dense") == 0 && strcmp(name, bench_step_name(step)) == 0)
            return json_object_get(row, "us");
    }
    return NULL;
}

static rt_status add_row(const bench_layer *l, const bench_args *args, bench_step step,
                         const measured *m, json_t *rows)
{
    const double us = 1e3 * m->ms, floor = 1e6 * m->read.bytes / args->ceiling;
    const int64_t *counts = m->read.counts;
    const json_t *dense = find_dense(rows, l->prefix, step);
    json_t *row =
        json_pack("{s:i, s:i, s:i, s:s, s:s, s:I, s:f, s:f, s:f, s:f, s:f, s:o}", "prefix",
                  l->prefix, "batch", l->requests, "block", l->block, "policy", args->policy->text,
                  "step", bench_step_name(step), "active", (json_int_t)counts[KERN_COUNT_ACTIVE],
                  "density", (double)counts[KERN_COUNT_READ] / (double)counts[KERN_COUNT_PREFIX],
                  "MB", m->read.bytes / 1e6, "floor_us", floor, "us", us, "of_floor", floor / us,
                  "speedup", dense ? json_real(json_real_value(dense) / us) : json_null());
    for (int s = 0; s < LOSA_STAGES; s++) {
        char name[32];
        snprintf(name, sizeof name, "%s_us", losa_stage_name((losa_stage)s));
        json_object_set_new(row, name, json_real(1e3 * m->stages[s]));
    }
    return bench_add(rows, row);
}

// ---- a policy --------------------------------------------------------------------------

static rt_status run_steps(const par_group *group, const bench_args *args, int prefix, json_t *rows)
{
    bench_layer l;
    rt_status status = comm_agree(group->comm, bench_layer_open(&l, group, args, prefix));
    for (int step = 0; step < BENCH_STEPS && status == RT_OK; step++) {
        measured m;
        status = measure(&l, args, (bench_step)step, &m);
        if (status == RT_OK && rows)
            status = add_row(&l, args, (bench_step)step, &m, rows);
        if (status != RT_OK)
            status = app_abandon(group->comm, status);
    }
    bench_layer_close(&l);
    return status;
}

static rt_status run(comm *c, const bench_args *args, int64_t prefix, json_t *rows)
{
    par_group group = {.comm = c};
    rt_status status = rt_engine_device(&args->engine, c, &group.dev);
    if (status == RT_OK)
        status = comm_attach(c, group.dev);
    if (status == RT_OK)
        status = run_steps(&group, args, (int)prefix, rows);
    comm_detach(c);
    kern_dev_close(group.dev);
    return comm_agree(c, status);
}

const bench bench_attention = {
    .name = "attention",
    .summary = "a layer over a random prefix of N tokens, step by step",
    .compares = true,
    .unit = "tokens",
    .least = 1,
    .most = 1 << 28,
    .run = run,
};
