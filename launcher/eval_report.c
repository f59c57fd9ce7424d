// SPDX-License-Identifier: Apache-2.0
#include "launcher/eval_report.h"

#include "launcher/grid.h"
#include "launcher/report.h"

#include <errno.h>
#include <math.h>
#include <string.h>

// ---- tables ------------------------------------------------------------------------

static void set_number(app_grid *t, size_t row, size_t column, app_column what,
                       const app_cell *cell)
{
    const app_column_info *info = &app_columns[what];
    if (isfinite(cell->value[what]))
        app_grid_set(t, row, column, "%.*f", info->decimals, cell->value[what] / info->unit);
    else
        app_grid_set(t, row, column, "-");
}

static rt_status end_table(app_grid *t, FILE *to)
{
    const rt_status status = app_grid_print(t, to);
    fputc('\n', to);
    return status;
}

static rt_status print_columns(FILE *to, const app_cell *cells, const app_policies *policies,
                               const app_column *columns, size_t count)
{
    app_grid t;
    rt_status status = app_grid_open(policies->count + 1, count + 1, &t);
    if (status == RT_OK) {
        app_grid_set(&t, 0, 0, "policy");
        for (size_t c = 0; c < count; c++)
            app_grid_set(&t, 0, c + 1, "%s", app_columns[columns[c]].title);
        for (size_t p = 0; p < policies->count; p++) {
            app_grid_set(&t, p + 1, 0, "%s", policies->items[p].text);
            for (size_t c = 0; c < count; c++)
                set_number(&t, p + 1, c + 1, columns[c], &cells[p]);
        }
        status = end_table(&t, to);
    }
    app_grid_close(&t);
    return status;
}

// Exact answers of the tasks side by side; `groups` of policies->count cells each.
static rt_status print_tasks(FILE *to, const app_cell *cells, size_t groups,
                             const app_policies *policies)
{
    app_grid t;
    rt_status status = app_grid_open(policies->count + 2, groups + 1, &t);
    if (status == RT_OK) {
        app_grid_set(&t, 0, 0, "exact");
        app_grid_set(&t, 1, 0, "documents");
        for (size_t g = 0; g < groups; g++) {
            const app_cell *cell = &cells[g * policies->count];
            app_grid_set(&t, 0, g + 1, "%s", cell->task ? cell->task : "all tasks");
            set_number(&t, 1, g + 1, APP_DOCUMENTS, cell);
            for (size_t p = 0; p < policies->count; p++)
                set_number(&t, p + 2, g + 1, APP_EXACT, &cell[p]);
        }
        for (size_t p = 0; p < policies->count; p++)
            app_grid_set(&t, p + 2, 0, "%s", policies->items[p].text);
        status = end_table(&t, to);
    }
    app_grid_close(&t);
    return status;
}

// Cells of one length from `at` on.
static size_t same_length(const app_summary *summary, size_t at)
{
    size_t n = 0;
    while (at + n < summary->count && summary->cells[at + n].length == summary->cells[at].length)
        n++;
    return n;
}

static rt_status print_length(FILE *to, const app_cell *cells, size_t n,
                              const app_policies *policies)
{
    static const app_column answers[] = {
        APP_RIGHT,     APP_EXACT,       APP_EXACT_LOW,   APP_EXACT_HIGH,     APP_F1,
        APP_WON,       APP_LOST,        APP_DIFFERENCE,  APP_DIFFERENCE_LOW, APP_DIFFERENCE_HIGH,
        APP_SAME_TEXT, APP_SAME_TOKENS, APP_SAME_CHOICE, APP_DIVERGENCE};
    static const app_column costs[] = {APP_DENSITY_LATER,     APP_DENSITY_STEPS,
                                       APP_DENSITY_TOTAL,     APP_READS,
                                       APP_INFLATION,         APP_ACTIVE,
                                       APP_STEPS_PER_BLOCK,   APP_FORWARDS,
                                       APP_FORWARDS_TO_DENSE, APP_TOKENS_PER_FORWARD,
                                       APP_PREFIX_BYTES,      APP_EXCHANGE_BYTES,
                                       APP_PREFILL_SECONDS,   APP_DECODE_SECONDS};
    const double documents = cells->value[APP_DOCUMENTS];
    if (cells->length)
        fprintf(to, "%.0f documents of up to %d tokens\n\n", documents, cells->length);
    else
        fprintf(to, "%.0f documents of all lengths\n\n", documents);
    RT_TRY(print_columns(to, cells, policies, answers, sizeof answers / sizeof answers[0]));
    RT_TRY(print_columns(to, cells, policies, costs, sizeof costs / sizeof costs[0]));
    return print_tasks(to, cells, n / policies->count, policies);
}

rt_status app_eval_print(FILE *to, const app_summary *summary, const app_policies *policies)
{
    for (size_t at = 0; at < summary->count;) {
        const size_t n = same_length(summary, at);
        RT_TRY(print_length(to, &summary->cells[at], n, policies));
        at += n;
    }
    return fflush(to) == 0 && !ferror(to)
               ? RT_OK
               : RT_FAIL(RT_ERR_IO, "standard output: cannot write: %s", strerror(errno));
}

// ---- JSON ----------------------------------------------------------------------------

static json_t *cell_object(const app_cell *cell, const app_policies *policies)
{
    json_t *object = json_pack("{s:s, s:i, s:s?}", "policy", policies->items[cell->policy].text,
                               "length", cell->length, "task", cell->task);
    for (int i = 0; object && i < APP_COLUMNS; i++) {
        const double value = cell->value[i];
        json_t *number = isfinite(value) ? json_real(value) : json_null();
        if (json_object_set_new(object, app_columns[i].key, number) != 0) {
            json_decref(object);
            return NULL;
        }
    }
    return object;
}

static bool fill_lists(json_t *policy_list, json_t *cell_list, const app_summary *summary,
                       const app_policies *policies)
{
    for (size_t i = 0; i < policies->count; i++) {
        json_t *policy = json_pack("{s:s, s:s}", "policy", policies->items[i].text, "options",
                                   policies->items[i].key);
        if (json_array_append_new(policy_list, policy) != 0)
            return false;
    }
    for (size_t i = 0; i < summary->count; i++)
        if (json_array_append_new(cell_list, cell_object(&summary->cells[i], policies)) != 0)
            return false;
    return true;
}

rt_status app_eval_write_json(const char *path, const app_summary *summary,
                              const app_policies *policies, const app_setting *setting)
{
    json_t *policy_list = json_array(), *cell_list = json_array();
    const bool filled = fill_lists(policy_list, cell_list, summary, policies);
    json_t *root = json_pack("{s:s, s:o, s:o}", "options", setting->options, "policies",
                             policy_list, "cells", cell_list);
    const rt_status status =
        root && filled ? app_report_write(root, path)
                       : RT_FAIL(RT_ERR_NOMEM, "%s: no memory, or a name that is not UTF-8", path);
    json_decref(root);
    return status;
}

// ---- CSV -----------------------------------------------------------------------------

static void put_field(FILE *to, const char *text)
{
    if (!strpbrk(text, ",\"\r\n")) {
        fputs(text, to);
        return;
    }
    fputc('"', to);
    for (; *text; text++) {
        if (*text == '"')
            fputc('"', to);
        fputc(*text, to);
    }
    fputc('"', to);
}

static void put_rows(FILE *to, const app_summary *summary, const app_policies *policies)
{
    fputs("policy,length,task", to);
    for (int i = 0; i < APP_COLUMNS; i++)
        fprintf(to, ",%s", app_columns[i].key);
    for (size_t c = 0; c < summary->count; c++) {
        const app_cell *cell = &summary->cells[c];
        fputc('\n', to);
        put_field(to, policies->items[cell->policy].text);
        fprintf(to, ",%d,", cell->length);
        put_field(to, cell->task ? cell->task : "");
        for (int i = 0; i < APP_COLUMNS; i++) {
            fputc(',', to);
            if (isfinite(cell->value[i]))
                fprintf(to, "%.9g", cell->value[i]);
        }
    }
    fputc('\n', to);
}

rt_status app_eval_write_csv(const char *path, const app_summary *summary,
                             const app_policies *policies)
{
    FILE *file = fopen(path, "we");
    if (file)
        put_rows(file, summary, policies);
    const bool written = file && !ferror(file);
    const bool closed = file && fclose(file) == 0;
    return written && closed ? RT_OK
                             : RT_FAIL(RT_ERR_IO, "%s: cannot write: %s", path, strerror(errno));
}
