// SPDX-License-Identifier: Apache-2.0
// Small SVG 1.1 pictures: points with error bars joined to lines, and heat maps.
#ifndef LAUNCHER_SVG_H
#define LAUNCHER_SVG_H

#include "runtime/base/str.h"

typedef struct app_point {
    double x, y;
    double low, high; // of the error bar; NaN: none
} app_point;

typedef struct app_series {
    const char *name;
    const app_point *points; // joined in this order
    size_t count;
} app_series;

typedef struct app_plot {
    const char *title, *x, *y;
    const app_series *series;
    size_t count;
} app_plot;

// Points that are not finite are left out. The axes hold all of the others.
rt_status app_svg_plot(const app_plot *plot, rt_str *out);

typedef struct app_heat {
    const char *title, *x, *y;
    size_t rows, columns;
    const double *value; // [rows, columns], 0 to 1; NaN: an empty cell
} app_heat;
rt_status app_svg_heat(const app_heat *heat, rt_str *out);

// Writes a file; every error names it.
rt_status app_svg_write(const char *path, const rt_str *svg);

#endif
