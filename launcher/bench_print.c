// SPDX-License-Identifier: Apache-2.0
// The rows of a benchmark as a table, as CSV or as JSON.
#include "launcher/bench.h"
#include "launcher/report.h"

#include "runtime/base/mem.h"

#include <stdio.h>

enum { CELL = 256 }; // a policy with all its words

rt_status bench_add(json_t *rows, json_t *row)
{
    if (!row || json_array_append_new(rows, row) != 0)
        return RT_FAIL(RT_ERR_NOMEM, "out of memory: benchmark rows");
    return RT_OK;
}

static void format_cell(const json_t *value, const char *null, const char *real, char cell[CELL])
{
    if (json_is_string(value))
        snprintf(cell, CELL, "%s", json_string_value(value));
    else if (json_is_integer(value))
        snprintf(cell, CELL, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
    else if (json_is_real(value))
        snprintf(cell, CELL, real, json_real_value(value));
    else
        snprintf(cell, CELL, "%s", null);
}

// Column names from the first row's keys, then the rows.
static rt_status print_table(const json_t *rows)
{
    const size_t count = json_array_size(rows);
    const size_t columns = json_object_size(json_array_get(rows, 0));
    char(*text)[CELL];
    const char **cells;
    RT_TRY(RT_ALLOC(text, (count + 1) * columns, "table"));
    rt_status status;
    RT_TRY_GOTO(status, RT_ALLOC(cells, (count + 1) * columns, "table"), free_text);
    size_t at = 0;
    const char *key;
    json_t *value;
    json_object_foreach(json_array_get(rows, 0), key, value) snprintf(text[at++], CELL, "%s", key);
    for (size_t i = 0; i < count; i++) {
        json_object_foreach(json_array_get(rows, i), key, value)
            format_cell(value, "-", "%.4g", text[at++]);
    }
    for (size_t i = 0; i < at; i++)
        cells[i] = text[i];
    status = app_report_table(stdout, cells, count + 1, columns);
    rt_free(cells);
free_text:
    rt_free(text);
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
            char cell[CELL];
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
