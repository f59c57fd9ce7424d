// SPDX-License-Identifier: Apache-2.0
#include "launcher/loading.h"
#include "launcher/progress.h"

enum { MEGA = 1000000 };

static void on_load(void *ctx, uint64_t done, uint64_t total)
{
    app_progress_update(ctx, "loading", "MB", (int)(done / MEGA), (int)(total / MEGA));
}

rt_status app_engine_open(const rt_engine_options *options, comm *c, bool quiet, rt_engine **out)
{
    app_progress bar = app_progress_begin(!quiet);
    rt_engine_options mine = *options;
    mine.on_load = on_load;
    mine.load_ctx = &bar;
    const rt_status status = rt_engine_open(&mine, c, out);
    app_progress_end(&bar);
    return status;
}
