// SPDX-License-Identifier: Apache-2.0
// Plain tables of text.
#ifndef LAUNCHER_GRID_H
#define LAUNCHER_GRID_H

#include "runtime/base/status.h"

#include <stddef.h>
#include <stdio.h>

enum { APP_GRID_CELL = 256 }; // bytes; longer texts are cut

typedef struct app_grid {
    size_t rows, columns;
    char (*cells)[APP_GRID_CELL]; // [rows, columns]
} app_grid;

// Empty cells. Close it whatever this returns.
rt_status app_grid_open(size_t rows, size_t columns, app_grid *out);
void app_grid_set(app_grid *t, size_t row, size_t column, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
// The first column is aligned left, the others right.
rt_status app_grid_print(const app_grid *t, FILE *to);
void app_grid_close(app_grid *t);

#endif
