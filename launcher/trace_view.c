// SPDX-License-Identifier: Apache-2.0
#include "launcher/trace_view.h"

#include "runtime/base/file.h"

rt_status app_trace_visit(const char *path, app_trace_visitor *visit, void *ctx)
{
    rt_map map;
    pb_trace trace;
    Pb__TraceEntry *entry = NULL;
    RT_TRY(rt_map_open(path, &map));
    rt_status status = pb_trace_open(map.data, map.len, &trace);
    if (status == RT_OK) {
        visit(ctx, &trace, NULL);
        while ((status = pb_trace_next(&trace, &entry)) == RT_OK && entry) {
            visit(ctx, &trace, entry->plan);
            pb_trace_free(entry);
        }
        pb_trace_close(&trace);
    }
    rt_map_close(&map);
    return status == RT_OK ? RT_OK : RT_FAIL(status, "%s: %s", path, rt_last_error());
}
