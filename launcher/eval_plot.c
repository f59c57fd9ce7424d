// SPDX-License-Identifier: Apache-2.0
#include "launcher/eval_report.h"

#include "launcher/svg.h"
#include "runtime/base/file.h"
#include "runtime/base/mem.h"

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

// What a plot shows against the density of all forwards.
typedef struct subject {
    const char *file, *title, *label;
    app_column y, low, high; // low = high: no error bars
} subject;

static const subject subjects[] = {
    {"accuracy", "Exact answers and density", "exact answers, 95 % interval", APP_EXACT,
     APP_EXACT_LOW, APP_EXACT_HIGH},
    {"forwards", "Forwards and density", "forwards per document", APP_FORWARDS, APP_FORWARDS,
     APP_FORWARDS},
};

static int by_x(const void *a, const void *b)
{
    const double x = ((const app_point *)a)->x, y = ((const app_point *)b)->x;
    return (x > y) - (x < y);
}

static app_point point_of(const subject *what, const app_cell *cell)
{
    const bool bars = what->low != what->high;
    return (app_point){.x = cell->value[APP_DENSITY_TOTAL],
                       .y = cell->value[what->y],
                       .low = bars ? cell->value[what->low] : NAN,
                       .high = bars ? cell->value[what->high] : NAN};
}

// Gathers the policies of `first`'s family that no earlier series has; `points` has room.
static size_t gather(const subject *what, const app_cell *cells, const app_policies *policies,
                     size_t first, app_point *points)
{
    const char *family = policies->items[first].family;
    size_t n = 0;
    for (size_t p = 0; p < policies->count; p++) {
        if (strcmp(policies->items[p].family, family) != 0)
            continue;
        if (p < first)
            return 0;
        points[n++] = point_of(what, &cells[p]);
    }
    qsort(points, n, sizeof *points, by_x);
    return n;
}

static rt_status write_plot(const char *path, const subject *what, const app_cell *cells,
                            const app_policies *policies, const char *title)
{
    app_series *series = NULL;
    app_point *points = NULL;
    rt_str svg = {0};
    rt_status status;
    RT_TRY_GOTO(status, RT_ALLOC(series, policies->count, "plot"), free_all);
    RT_TRY_GOTO(status, RT_ALLOC(points, policies->count, "plot"), free_all);
    app_plot plot = {title, "density of all forwards", what->label, series, 0};
    app_point *at = points;
    for (size_t p = 0; p < policies->count; p++) {
        const size_t n = gather(what, cells, policies, p, at);
        if (n > 0)
            series[plot.count++] = (app_series){policies->items[p].text, at, n};
        at += n;
    }
    RT_TRY_GOTO(status, app_svg_plot(&plot, &svg), free_all);
    status = app_svg_write(path, &svg);
free_all:
    rt_str_free(&svg);
    rt_free(series);
    rt_free(points);
    return status;
}

static rt_status write_length(const char *folder, const app_cell *cells,
                              const app_policies *policies)
{
    for (size_t i = 0; i < sizeof subjects / sizeof subjects[0]; i++) {
        char name[64], path[PATH_MAX], title[128];
        const double n = cells->value[APP_DOCUMENTS];
        if (cells->length) {
            snprintf(name, sizeof name, "%s-%d.svg", subjects[i].file, cells->length);
            snprintf(title, sizeof title, "%s: %.0f documents of up to %d tokens",
                     subjects[i].title, n, cells->length);
        } else {
            snprintf(name, sizeof name, "%s-all.svg", subjects[i].file);
            snprintf(title, sizeof title, "%s: %.0f documents", subjects[i].title, n);
        }
        RT_TRY(rt_path_join(folder, name, path, sizeof path));
        RT_TRY(write_plot(path, &subjects[i], cells, policies, title));
    }
    return RT_OK;
}

rt_status app_eval_write_plots(const char *folder, const app_summary *summary,
                               const app_policies *policies)
{
    if (mkdir(folder, 0777) != 0 && errno != EEXIST)
        return RT_FAIL(RT_ERR_IO, "%s: cannot make the folder: %s", folder, strerror(errno));
    for (size_t c = 0; c < summary->count; c += policies->count) {
        const bool all_tasks = !summary->cells[c].task;
        if (all_tasks)
            RT_TRY(write_length(folder, &summary->cells[c], policies));
    }
    return RT_OK;
}
