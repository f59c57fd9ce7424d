// SPDX-License-Identifier: Apache-2.0
#include "launcher/trace_view.h"

#include "kernels/kern.h"
#include "launcher/svg.h"
#include "runtime/base/mem.h"

#include <math.h>
#include <stdio.h>

enum { STEPS_MAX = 64 }; // of a block; later ones are left out

typedef struct sums {
    double *read, *prefix; // [layers, STEPS_MAX], tokens times lists
    size_t layers, steps;
    char title[160];
    rt_status status;
} sums;

static void start(sums *s, const Pb__TraceHead *head)
{
    snprintf(s->title, sizeof s->title, "Share of the prefix read: %s, scope %s", head->policy,
             head->scope);
    s->layers = head->layers;
    s->status = RT_ALLOC(s->read, s->layers * STEPS_MAX, "plot");
    if (s->status == RT_OK)
        s->status = RT_ALLOC(s->prefix, s->layers * STEPS_MAX, "plot");
}

static void add_plan(void *ctx, const pb_trace *t, const Pb__TracePlan *p)
{
    sums *s = ctx;
    if (!p) {
        start(s, t->head->head);
        return;
    }
    if (s->status != RT_OK || p->kind == KERN_SEG_COMMIT || p->step >= STEPS_MAX)
        return;
    const size_t at = p->layer * (size_t)STEPS_MAX + p->step;
    for (size_t l = 0; l < p->n_lists; l++) {
        s->read[at] += pb_trace_tokens(t, p, l);
        s->prefix[at] += pb_trace_prefix(t, p);
    }
    if (p->step >= s->steps)
        s->steps = p->step + 1;
}

static rt_status draw(const sums *s, const char *path)
{
    double *value;
    rt_str svg = {0};
    RT_TRY(RT_ALLOC(value, s->layers * s->steps, "plot"));
    for (size_t l = 0; l < s->layers; l++)
        for (size_t c = 0; c < s->steps; c++) {
            const size_t at = l * STEPS_MAX + c;
            value[l * s->steps + c] = s->prefix[at] > 0 ? s->read[at] / s->prefix[at] : NAN;
        }
    const app_heat heat = {s->title, "step of a block", "layer", s->layers, s->steps, value};
    rt_status status = app_svg_heat(&heat, &svg);
    if (status == RT_OK)
        status = app_svg_write(path, &svg);
    rt_str_free(&svg);
    rt_free(value);
    return status;
}

rt_status app_trace_plot(const char *path, const char *svg)
{
    sums s = {0};
    rt_status status = app_trace_visit(path, add_plan, &s);
    if (status == RT_OK)
        status = s.status;
    if (status == RT_OK)
        status = draw(&s, svg);
    rt_free(s.read);
    rt_free(s.prefix);
    return status;
}
