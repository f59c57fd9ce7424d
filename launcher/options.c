// SPDX-License-Identifier: Apache-2.0
// The option parser. It knows nothing of the commands; every message it writes is
// complete, and main() adds the command's name in front.
#include "launcher/options.h"

#include "runtime/base/mem.h"

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    NAME_MAX_LEN = 40, // of an option, for the edit distance
    HELP_COLUMN = 30,  // where the help text of an option starts
    HELP_WIDTH = 96,   // of a line of --help
    VALUE_MAX = 80,    // bytes of a bad value that a message quotes
    TABLE_MAX = 64,    // options of one command
};

// ---- nearest name ------------------------------------------------------------

static size_t smallest(size_t a, size_t b, size_t c)
{
    const size_t ab = a < b ? a : b;
    return ab < c ? ab : c;
}

// Optimal string alignment distance of two names of at most NAME_MAX_LEN bytes.
static size_t edit_distance(const char *a, const char *b)
{
    size_t d[NAME_MAX_LEN + 1][NAME_MAX_LEN + 1];
    const size_t n = strlen(a), m = strlen(b);
    for (size_t i = 0; i <= n; i++)
        d[i][0] = i;
    for (size_t j = 0; j <= m; j++)
        d[0][j] = j;
    for (size_t i = 1; i <= n; i++) {
        for (size_t j = 1; j <= m; j++) {
            const size_t change = a[i - 1] != b[j - 1];
            d[i][j] = smallest(d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + change);
            const bool swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
            if (swapped && d[i - 2][j - 2] + 1 < d[i][j])
                d[i][j] = d[i - 2][j - 2] + 1;
        }
    }
    return d[n][m];
}

void app_first_difference(const char *was, const char *now, char *out, size_t size)
{
    int len = (int)strcspn(was, " "), other = (int)strcspn(now, " ");
    while (len == other && memcmp(was, now, (size_t)len) == 0 && was[len] && now[len]) {
        was += len + 1;
        now += other + 1;
        len = (int)strcspn(was, " ");
        other = (int)strcspn(now, " ");
    }
    snprintf(out, size, "'%.*s', now '%.*s'", len, was, other, now);
}

const char *app_nearest(const char *text, const char *const *names, size_t n)
{
    const size_t len = strlen(text);
    if (len == 0 || len > NAME_MAX_LEN)
        return NULL;
    for (size_t i = 0; i < n; i++)
        if (len >= 3 && strncmp(names[i], text, len) == 0)
            return names[i];
    const char *best = NULL;
    size_t best_distance = len / 3 + 2; // as far away or further is no help
    for (size_t i = 0; i < n; i++) {
        if (strlen(names[i]) > NAME_MAX_LEN)
            continue;
        const size_t distance = edit_distance(text, names[i]);
        if (distance < best_distance) {
            best = names[i];
            best_distance = distance;
        }
    }
    return best;
}

static rt_status unknown_option(const app_table *table, const char *word, const char *name)
{
    const char *names[TABLE_MAX];
    size_t count = 0;
    for (; count < table->count && count < TABLE_MAX - 1; count++)
        names[count] = table->options[count].name;
    names[count++] = "help";
    const char *near = app_nearest(name, names, count);
    if (near)
        return RT_FAIL(RT_ERR_INVALID, "unknown option '%.*s'; did you mean '--%s'?", VALUE_MAX,
                       word, near);
    return RT_FAIL(RT_ERR_INVALID, "unknown option '%.*s'", VALUE_MAX, word);
}

// ---- values --------------------------------------------------------------------

static rt_status bad_number(const app_option *o, const char *text)
{
    const char *kind = o->type == APP_REAL ? "a number" : "a whole number";
    if (o->type == APP_INT && o->max >= INT_MAX)
        return RT_FAIL(RT_ERR_INVALID, "--%s: '%.*s' is not %s of at least %.0f", o->name,
                       VALUE_MAX, text, kind, o->min);
    return RT_FAIL(RT_ERR_INVALID, "--%s: '%.*s' is not %s from %.10g to %.10g", o->name, VALUE_MAX,
                   text, kind, o->min, o->max);
}

// Bits that a unit shifts by; -1: no unit.
static int unit_shift(const char *unit)
{
    static const char letters[] = "KMGT";
    if (!*unit)
        return 0;
    const char *letter = strchr(letters, *unit);
    const bool ends = !unit[1] || strcmp(unit + 1, "B") == 0 || strcmp(unit + 1, "iB") == 0;
    return letter && ends ? 10 * (int)(letter - letters + 1) : -1;
}

static rt_status set_int(const app_option *o, const char *text, int *target)
{
    char *end;
    errno = 0;
    const long long number = strtoll(text, &end, 10);
    const int shift = unit_shift(end);
    if (end == text || errno || shift < 0 || number < INT_MIN || number > INT_MAX)
        return bad_number(o, text);
    const double value = ldexp((double)number, shift);
    if (value < o->min || value > o->max || value < INT_MIN || value > INT_MAX)
        return bad_number(o, text);
    *target = (int)value;
    return RT_OK;
}

static rt_status set_u64(const app_option *o, const char *text, uint64_t *target)
{
    char *end;
    errno = 0;
    const unsigned long long value = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end || errno)
        return RT_FAIL(RT_ERR_INVALID, "--%s: '%.*s' is not a whole number from 0 to %llu", o->name,
                       VALUE_MAX, text, (unsigned long long)UINT64_MAX);
    *target = value;
    return RT_OK;
}

static rt_status set_real(const app_option *o, const char *text, double *target)
{
    char *end;
    const double value = strtod(text, &end);
    if (end == text || *end || !isfinite(value) || value < o->min || value > o->max)
        return bad_number(o, text);
    *target = value;
    return RT_OK;
}

rt_status app_parse_bytes(const char *text, void *bytes)
{
    char *end;
    errno = 0;
    const unsigned long long value = strtoull(text, &end, 10);
    const int shift = unit_shift(end);
    if (text[0] < '0' || text[0] > '9' || errno || shift < 0 || value > UINT64_MAX >> shift)
        return RT_FAIL(RT_ERR_INVALID, "'%.*s' is not a number of bytes such as 4G or 512M",
                       VALUE_MAX, text);
    *(uint64_t *)bytes = value << shift;
    return RT_OK;
}

static void list_choices(const app_option *o, const char *separator, char *out, size_t size)
{
    size_t used = 0;
    out[0] = '\0';
    for (size_t i = 0; o->choices(i); i++) {
        const int n = snprintf(out + used, size - used, "%s%s", i ? separator : "", o->choices(i));
        if (n < 0 || (size_t)n >= size - used)
            return;
        used += (size_t)n;
    }
}

static rt_status set_choice(const app_option *o, const char *text, void *target)
{
    for (size_t i = 0; o->choices(i); i++) {
        if (strcmp(o->choices(i), text) != 0)
            continue;
        const int index = (int)i; // enums of the table have the size of an int
        memcpy(target, &index, sizeof index);
        return RT_OK;
    }
    char all[256];
    list_choices(o, ", ", all, sizeof all);
    return RT_FAIL(RT_ERR_INVALID, "--%s: '%.*s' is not one of: %s", o->name, VALUE_MAX, text, all);
}

static rt_status list_add(app_list *list, const char *text)
{
    const char **items =
        rt_mem_grow(list->items, list->len, list->len + 1, sizeof *items, "list of arguments");
    if (!items)
        return RT_ERR_NOMEM;
    items[list->len] = text;
    list->items = items;
    list->len++;
    return RT_OK;
}

static rt_status set_value(const app_option *o, const char *text, void *args)
{
    void *target = (char *)args + o->offset;
    switch (o->type) {
    case APP_FLAG:
        *(bool *)target = true;
        return RT_OK;
    case APP_INT:
        return set_int(o, text, target);
    case APP_U64:
        return set_u64(o, text, target);
    case APP_REAL:
        return set_real(o, text, target);
    case APP_TEXT:
        *(const char **)target = text;
        return RT_OK;
    case APP_LIST:
        return list_add(target, text);
    case APP_CHOICE:
        return set_choice(o, text, target);
    case APP_PARSE:
        if (o->parse(text, target) == RT_OK)
            return RT_OK;
        return RT_FAIL(RT_ERR_INVALID, "--%s: %s", o->name, rt_last_error());
    }
    return RT_FAIL(RT_ERR_INTERNAL, "--%s: unknown type %d", o->name, (int)o->type);
}

// ---- words ---------------------------------------------------------------------

static const app_option *find_long(const app_table *table, const char *name, size_t len)
{
    for (size_t i = 0; i < table->count; i++)
        if (strlen(table->options[i].name) == len &&
            strncmp(table->options[i].name, name, len) == 0)
            return &table->options[i];
    return NULL;
}

static const app_option *find_short(const app_table *table, char letter)
{
    for (size_t i = 0; i < table->count; i++)
        if (table->options[i].letter == letter)
            return &table->options[i];
    return NULL;
}

// `value` is what was joined to the option, or NULL; takes the next word if needed.
static rt_status apply(const app_option *o, const char *value, int argc, char *const *argv, int *at,
                       void *args)
{
    if (o->type == APP_FLAG && value)
        return RT_FAIL(RT_ERR_INVALID, "--%s takes no value, got '%.*s'", o->name, VALUE_MAX,
                       value);
    if (o->type != APP_FLAG && !value) {
        if (*at + 1 >= argc)
            return RT_FAIL(RT_ERR_INVALID, "--%s needs a value: %s", o->name, o->metavar);
        value = argv[++*at];
    }
    return set_value(o, value, args);
}

static rt_status parse_long(const app_table *table, int argc, char *const *argv, int *at,
                            void *args)
{
    const char *name = argv[*at] + 2;
    const char *equals = strchr(name, '=');
    const size_t len = equals ? (size_t)(equals - name) : strlen(name);
    const app_option *o = find_long(table, name, len);
    if (o)
        return apply(o, equals ? equals + 1 : NULL, argc, argv, at, args);
    char shown[NAME_MAX_LEN + 1];
    snprintf(shown, sizeof shown, "%.*s", len < NAME_MAX_LEN ? (int)len : NAME_MAX_LEN, name);
    return unknown_option(table, argv[*at], shown);
}

static rt_status parse_short(const app_table *table, int argc, char *const *argv, int *at,
                             void *args)
{
    const char *word = argv[*at];
    const app_option *o = find_short(table, word[1]);
    if (!o) // "-model" is more likely a slip than five letters
        return unknown_option(table, word, word + 1);
    return apply(o, word[2] ? word + 2 : NULL, argc, argv, at, args);
}

static rt_status add_operand(app_list *rest, const char *word)
{
    if (!rest)
        return RT_FAIL(RT_ERR_INVALID, "unexpected argument '%.*s'", VALUE_MAX, word);
    return list_add(rest, word);
}

static bool is_help(const char *word)
{
    return strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0;
}

// Handles argv[*at] and, if it takes one, the value behind it.
static rt_status parse_word(const app_table *table, int argc, char *const *argv, int *at,
                            void *args, app_list *rest)
{
    const char *word = argv[*at];
    if (word[0] != '-' || !word[1])
        return add_operand(rest, word);
    return (word[1] == '-' ? parse_long : parse_short)(table, argc, argv, at, args);
}

rt_status app_parse(const app_table *table, int argc, char *const *argv, void *args, app_list *rest,
                    bool *help)
{
    int at = 0;
    *help = false;
    for (; at < argc && strcmp(argv[at], "--") != 0; at++) {
        *help = is_help(argv[at]);
        if (*help)
            return RT_OK;
        RT_TRY(parse_word(table, argc, argv, &at, args, rest));
    }
    while (++at < argc) // behind "--"
        RT_TRY(add_operand(rest, argv[at]));
    return RT_OK;
}

void app_free_list(app_list *list)
{
    rt_free(list->items);
    *list = (app_list){0};
}

void app_free_args(const app_table *table, void *args)
{
    for (size_t i = 0; i < table->count; i++)
        if (table->options[i].type == APP_LIST)
            app_free_list((app_list *)((char *)args + table->options[i].offset));
}

// ---- help ----------------------------------------------------------------------

// The default as text; "" when there is none to speak of.
static void default_text(const app_option *o, const void *args, char *out, size_t size)
{
    const void *target = (const char *)args + o->offset;
    out[0] = '\0';
    if (o->standard) {
        snprintf(out, size, "%s", o->standard);
    } else if (o->type == APP_INT) {
        snprintf(out, size, "%d", *(const int *)target);
    } else if (o->type == APP_U64) {
        snprintf(out, size, "%llu", (unsigned long long)*(const uint64_t *)target);
    } else if (o->type == APP_REAL) {
        snprintf(out, size, "%g", *(const double *)target);
    } else if (o->type == APP_TEXT && *(const char *const *)target) {
        snprintf(out, size, "%s", *(const char *const *)target);
    } else if (o->type == APP_CHOICE) {
        int index;
        memcpy(&index, target, sizeof index);
        snprintf(out, size, "%s", o->choices((size_t)index));
    }
}

// Appends words from column HELP_COLUMN on, broken at HELP_WIDTH.
static rt_status wrap(const char *text, rt_str *out)
{
    size_t column = HELP_COLUMN;
    while (*text) {
        const size_t word = strcspn(text, " ");
        const bool first = column == HELP_COLUMN;
        if (!first && column + 1 + word > HELP_WIDTH) {
            RT_TRY(rt_str_printf(out, "\n%*s", HELP_COLUMN, ""));
            column = HELP_COLUMN;
        } else if (!first) {
            RT_TRY(rt_str_puts(out, " "));
            column++;
        }
        RT_TRY(rt_str_append(out, text, word));
        column += word;
        text += word + strspn(text + word, " ");
    }
    return rt_str_puts(out, "\n");
}

static rt_status describe_option(const app_option *o, const void *args, rt_str *out)
{
    char choices[256] = "", left[128], normal[128], text[768];
    if (o->type == APP_CHOICE)
        list_choices(o, ", ", choices, sizeof choices);
    const char *metavar = o->type == APP_FLAG ? "" : o->metavar;
    const char letter[] = {'-', o->letter ? o->letter : ' ', ',', ' ', '\0'};
    snprintf(left, sizeof left, "  %s--%s%s%s", o->letter ? letter : "    ", o->name,
             *metavar ? " " : "", metavar);
    default_text(o, args, normal, sizeof normal);
    snprintf(text, sizeof text, "%s%s%s%s%s%s", o->help, *choices ? ": " : "", choices,
             *normal ? " [" : "", normal, *normal ? "]" : "");
    if (strlen(left) + 2 > HELP_COLUMN)
        RT_TRY(rt_str_printf(out, "%s\n%*s", left, HELP_COLUMN, ""));
    else
        RT_TRY(rt_str_printf(out, "%-*s", HELP_COLUMN, left));
    return wrap(text, out);
}

rt_status app_describe(const app_table *table, const void *args, rt_str *out)
{
    for (size_t i = 0; i < table->count; i++) {
        const app_option *o = &table->options[i];
        if (o->group)
            RT_TRY(rt_str_printf(out, "%s%s:\n", i ? "\n" : "", o->group));
        RT_TRY(describe_option(o, args, out));
    }
    return RT_OK;
}
