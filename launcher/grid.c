// SPDX-License-Identifier: Apache-2.0
#include "launcher/grid.h"

#include "runtime/base/mem.h"

#include <stdarg.h>
#include <string.h>

rt_status app_grid_open(size_t rows, size_t columns, app_grid *out)
{
    *out = (app_grid){.rows = rows, .columns = columns};
    return RT_ALLOC(out->cells, rows * columns, "table");
}

void app_grid_set(app_grid *t, size_t row, size_t column, const char *fmt, ...)
{
    va_list list;
    va_start(list, fmt);
    vsnprintf(t->cells[row * t->columns + column], APP_GRID_CELL, fmt, list);
    va_end(list);
}

static int width_of(const app_grid *t, size_t column)
{
    size_t width = 0;
    for (size_t row = 0; row < t->rows; row++) {
        const size_t len = strlen(t->cells[row * t->columns + column]);
        width = len > width ? len : width;
    }
    return (int)width;
}

static void print_row(const app_grid *t, size_t row, const int *widths, FILE *to)
{
    const char(*cells)[APP_GRID_CELL] = (const char(*)[APP_GRID_CELL])t->cells + row * t->columns;
    fprintf(to, "%-*s", widths[0], cells[0]);
    for (size_t column = 1; column < t->columns; column++)
        fprintf(to, "  %*s", widths[column], cells[column]);
    fputc('\n', to);
}

rt_status app_grid_print(const app_grid *t, FILE *to)
{
    RT_CHECK_ARG(t->columns > 0);
    int *widths;
    RT_TRY(RT_ALLOC(widths, t->columns, "table"));
    for (size_t column = 0; column < t->columns; column++)
        widths[column] = width_of(t, column);
    for (size_t row = 0; row < t->rows; row++)
        print_row(t, row, widths, to);
    rt_free(widths);
    return ferror(to) ? RT_FAIL(RT_ERR_IO, "table: cannot write") : RT_OK;
}

void app_grid_close(app_grid *t)
{
    rt_free(t->cells);
    *t = (app_grid){0};
}
