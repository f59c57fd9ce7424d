// SPDX-License-Identifier: Apache-2.0
// losa info --trace: a trace of page plans, as text or as a picture.
#ifndef LAUNCHER_TRACE_VIEW_H
#define LAUNCHER_TRACE_VIEW_H

#include "proto/trace.h"

// Called with NULL for the head, then with every plan.
typedef void app_trace_visitor(void *ctx, const pb_trace *trace, const Pb__TracePlan *plan);
// RT_ERR_FORMAT for what is no whole trace, after the plans that were there.
rt_status app_trace_visit(const char *path, app_trace_visitor *visit, void *ctx);

// One line a plan, on standard output.
rt_status app_trace_print(const char *path);
// An SVG heat map: the share of the prefix read, by layer and by step of a block, over all
// blocks of all requests; commits left out.
rt_status app_trace_plot(const char *path, const char *svg);

#endif
