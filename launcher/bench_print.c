// SPDX-License-Identifier: Apache-2.0
// The rows of a benchmark as a table, as CSV or as JSON.
#include "launcher/bench.h"
#include "launcher/grid.h"
#include "launcher/report.h"

#include <stdio.h>

rt_status bench_add(json_t *rows, json_t *row)
{
    if (!row || json_array_append_new(rows, row) != 0)
        return RT_FAIL(RT_ERR_NOMEM, "out of memory: benchmark rows");
    return RT_OK;
}

static void format_cell(const json_t *value, const char *null, const char *real,
                        char cell[APP_GRID_CELL])
{
    if (json_is_string(value))
        snprintf(cell, APP_GRID_CELL, "%s", json_string_value(value));
    else if (json_is_integer(value))
        snprintf(cell, APP_GRID_CELL, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
    else if (json_is_real(value))
        snprintf(cell, APP_GRID_CELL, real, json_real_value(value));
    else
        snprintf(cell, APP_GRID_CELL, "%s", null);
}

// Column names from the first row's keys, then the rows.
static rt_status print_table(const json_t *rows)
{
    const size_t count = json_array_size(rows);
    const json_t *first = json_array_get(rows, 0);
    app_grid t;
    rt_status status = app_grid_open(count + 1, json_object_size(first), &t);
    for (size_t row = 0; row <= count && status == RT_OK; row++) {
        size_t column = 0;
        const char *key;
        json_t *value;
        json_object_foreach(json_array_get(rows, row ? row - 1 : 0), key, value)
        {
            char cell[APP_GRID_CELL];
            format_cell(value, "-", "%.4g", cell);
            app_grid_set(&t, row, column++, "%s", row ? cell : key);
        }
    }
    if (status == RT_OK)
        status = app_grid_print(&t, stdout);
    app_grid_close(&t);
    return status;
}

// Names and numbers need no quotes.
static rt_status print_csv(const json_t *rows)
{
    const char *key;
    json_t *value;
    const char *comma = "";
    json_object_foreach(json_array_get(rows, 0), key, value)
    {
        printf("%s%s", comma, key);
        comma = ",";
    }
    for (size_t i = 0; i < json_array_size(rows); i++) {
        comma = "\n";
        json_object_foreach(json_array_get(rows, i), key, value)
        {
            char cell[APP_GRID_CELL];
            format_cell(value, "", "%.9g", cell);
            printf("%s%s", comma, cell);
            comma = ",";
        }
    }
    putchar('\n');
    return ferror(stdout) ? RT_FAIL(RT_ERR_IO, "csv: cannot write") : RT_OK;
}

rt_status bench_print(const bench_args *args, const json_t *rows)
{
    if (args->json)
        return app_report_write(rows, "-");
    return args->csv ? print_csv(rows) : print_table(rows);
}
