// SPDX-License-Identifier: Apache-2.0
// One list of the statistics (fields) drives the JSON object and the tables, so that
// the two cannot drift apart.
#include "launcher/report.h"
#include "launcher/grid.h"

#include <errno.h>
#include <math.h>
#include <string.h>

enum { DIGITS = 9 };

typedef enum field_kind { FIELD_INT, FIELD_COUNT, FIELD_REAL } field_kind;

// A number of rt_stats: its JSON name, and its row in a table (NULL: in none).
typedef struct field {
    const char *key;
    field_kind kind;
    size_t offset;
    const char *label;
    double unit; // what a table divides by
    int decimals;
} field;

#define FIELD(kind, member, ...)                                                                   \
    {                                                                                              \
#member, kind, offsetof(rt_stats, member), __VA_ARGS__                                     \
    }

static const field fields[] = {
    FIELD(FIELD_INT, ranks, "ranks", 1, 0),
    FIELD(FIELD_REAL, prefill_seconds, "prefill, s", 1, 2),
    FIELD(FIELD_REAL, decode_seconds, "decode, s", 1, 2),
    FIELD(FIELD_INT, shared_tokens, "shared tokens", 1, 0),
    FIELD(FIELD_INT, blocks, "blocks", 1, 0),
    FIELD(FIELD_INT, forwards, "forwards", 1, 0),
    FIELD(FIELD_REAL, tokens_per_forward, "tokens per forward", 1, 2),
    FIELD(FIELD_REAL, steps_per_block, "steps per block", 1, 2),
    FIELD(FIELD_INT, steps, NULL, 1, 0),
    FIELD(FIELD_INT, prefill_forwards, NULL, 1, 0),
    FIELD(FIELD_REAL, density_later, "density, later steps", 1, 3),
    FIELD(FIELD_REAL, density_steps, "density, all steps", 1, 3),
    FIELD(FIELD_REAL, density_total, "density, all forwards", 1, 3),
    FIELD(FIELD_REAL, union_inflation, "union inflation", 1, 2),
    FIELD(FIELD_REAL, active_share, "active share", 1, 2),
    FIELD(FIELD_COUNT, prefix_tokens_read, NULL, 1, 0),
    FIELD(FIELD_COUNT, prefix_bytes_read, "prefix read, MB", 1e6, 1),
    FIELD(FIELD_COUNT, exchange_bytes, "exchanged, KB", 1e3, 1),
};
enum { FIELDS = sizeof fields / sizeof fields[0] };

static json_t *field_value(const field *f, const rt_stats *stats)
{
    const char *at = (const char *)stats + f->offset;
    switch (f->kind) {
    case FIELD_INT:
        return json_integer(*(const int *)(const void *)at);
    case FIELD_COUNT:
        return json_integer((json_int_t) * (const uint64_t *)(const void *)at);
    case FIELD_REAL:
        break;
    }
    const double value = *(const double *)(const void *)at;
    return isfinite(value) ? json_real(value) : json_null();
}

static json_t *stats_object(const rt_stats *stats)
{
    json_t *object = json_object();
    for (size_t i = 0; object && i < FIELDS; i++) {
        if (json_object_set_new(object, fields[i].key, field_value(&fields[i], stats)) != 0) {
            json_decref(object);
            return NULL;
        }
    }
    return object;
}

static json_t *ids_array(const int32_t *ids, size_t n)
{
    json_t *array = json_array();
    for (size_t i = 0; array && i < n; i++) {
        if (json_array_append_new(array, json_integer(ids[i])) != 0) {
            json_decref(array);
            return NULL;
        }
    }
    return array;
}

rt_status app_report_result(const rt_result *result, const char *finish, json_t **out)
{
    // json_pack takes the references over, and fails when one of them is NULL.
    json_t *object =
        json_pack("{s:s%, s:o, s:s, s:{s:i, s:i}, s:o}", "text", result->text, result->text_len,
                  "token_ids", ids_array(result->ids, result->ids_len), "finish_reason", finish,
                  "usage", "prompt_tokens", result->prompt_tokens, "completion_tokens",
                  result->completion_tokens, "stats", stats_object(&result->stats));
    if (!object)
        return RT_FAIL(RT_ERR_INTERNAL, "result: no memory, or text that is not UTF-8");
    *out = object;
    return RT_OK;
}

static rt_status write_failed(const char *path)
{
    return RT_FAIL(RT_ERR_IO, "%s: cannot write: %s",
                   strcmp(path, "-") == 0 ? "standard output" : path, strerror(errno));
}

static bool write_line(const json_t *value, FILE *file)
{
    const size_t flags = JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(DIGITS);
    return json_dumpf(value, file, flags) == 0 && fputc('\n', file) != EOF;
}

static FILE *open_output(const char *path)
{
    errno = 0;
    return strcmp(path, "-") == 0 ? stdout : fopen(path, "w");
}

static bool close_output(FILE *file)
{
    return (file == stdout ? fflush(file) : fclose(file)) == 0;
}

rt_status app_report_write(const json_t *value, const char *path)
{
    FILE *file = open_output(path);
    const bool written = file && write_line(value, file);
    const bool closed = file && close_output(file);
    return written && closed ? RT_OK : write_failed(path);
}

rt_status app_report_write_lines(json_t *const *values, size_t count, const char *path)
{
    FILE *file = open_output(path);
    bool written = file != NULL;
    for (size_t i = 0; i < count && written; i++)
        written = write_line(values[i], file);
    const bool closed = file && close_output(file);
    return written && closed ? RT_OK : write_failed(path);
}

static void set_cell(app_grid *t, size_t row, size_t column, const field *f, const json_t *result)
{
    const json_t *value = json_object_get(json_object_get(result, "stats"), f->key);
    if (json_is_number(value))
        app_grid_set(t, row, column, "%.*f", f->decimals, json_number_value(value) / f->unit);
    else
        app_grid_set(t, row, column, "-");
}

// The first result of the prompt that result `index` is of; runs of a single prompt
// do not say which it was.
static size_t first_of_prompt(json_t *const *results, size_t index)
{
    const json_t *prompt = json_object_get(results[index], "prompt");
    size_t i = 0;
    while (i < index) {
        const json_t *other = json_object_get(results[i], "prompt");
        if (prompt ? json_equal(prompt, other) : !other)
            return i;
        i++;
    }
    return index;
}

// Heading, the fields that have a label, whether the answer is that of the first result.
static void fill_column(app_grid *t, size_t column, json_t *const *results, const char *title)
{
    const json_t *result = results[column - 1];
    size_t row = 0;
    app_grid_set(t, row++, column, "%s", title);
    for (size_t i = 0; i < FIELDS; i++) {
        if (!fields[i].label)
            continue;
        app_grid_set(t, row, 0, "%s", fields[i].label);
        set_cell(t, row++, column, &fields[i], result);
    }
    if (row == t->rows) // a single result has nothing to be compared with
        return;
    const size_t first = first_of_prompt(results, column - 1);
    const bool same =
        json_equal(json_object_get(results[first], "text"), json_object_get(result, "text"));
    app_grid_set(t, row, 0, "same answer");
    if (first != column - 1)
        app_grid_set(t, row, column, same ? "yes" : "no");
}

rt_status app_report_compare(FILE *to, json_t *const *results, const char *const *titles,
                             size_t count)
{
    size_t rows = count > 1 ? 2 : 1;
    for (size_t i = 0; i < FIELDS; i++)
        rows += fields[i].label != NULL;
    app_grid t;
    rt_status status = app_grid_open(rows, count + 1, &t);
    for (size_t column = 1; column <= count && status == RT_OK; column++)
        fill_column(&t, column, results, titles[column - 1]);
    if (status == RT_OK)
        status = app_grid_print(&t, to);
    app_grid_close(&t);
    return status;
}
