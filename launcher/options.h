// SPDX-License-Identifier: Apache-2.0
// Command-line options from one table per command: parsing, range checks, --help.
//
// A row names an option and where its value lands in the command's argument struct.
// The struct is filled with the defaults first; --help prints them from there, so
// that what it says is what happens.
#ifndef LAUNCHER_OPTIONS_H
#define LAUNCHER_OPTIONS_H

#include "runtime/base/status.h"
#include "runtime/base/str.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Repeatable options and operands; the strings are borrowed from argv.
typedef struct app_list {
    const char **items;
    size_t len;
} app_list;

typedef enum app_type {
    APP_FLAG,   // bool: set to true; takes no value
    APP_INT,    // int; 64K says 65536
    APP_U64,    // uint64_t, any value
    APP_REAL,   // double
    APP_TEXT,   // const char *, borrowed from argv
    APP_LIST,   // app_list; may be given many times
    APP_CHOICE, // int or enum: index of the value among `choices`
    APP_PARSE,  // whatever `parse` fills
} app_type;

// The i-th value of an enumerated option; NULL after the last.
typedef const char *app_choices(size_t i);
// Fills the target or fails with a message that names the value and what is allowed.
typedef rt_status app_parser(const char *text, void *target);

// "1234", "4G", "512M", "64K" (powers of 1024; "GiB" and "GB" say the same) -> uint64_t.
rt_status app_parse_bytes(const char *text, void *bytes);

typedef struct app_option {
    const char *name; // without the dashes
    char letter;      // short form, or 0
    app_type type;
    size_t offset;        // of the target in the argument struct
    double min, max;      // INT and REAL, both allowed
    const char *metavar;  // of the value, in --help; NULL for flags
    const char *standard; // the default in words; NULL: printed from the struct
    const char *help;     // one sentence
    const char *group;    // heading above this row; NULL: same group as the row before
    app_choices *choices; // CHOICE
    app_parser *parse;    // PARSE
} app_option;

typedef struct app_table {
    const app_option *options;
    size_t count;
} app_table;

// Parses argv[0 .. argc), the words after the command's name. `--name value`,
// `--name=value`, `-n value` and `-nvalue`; `--` ends the options. Operands go to
// `rest`, or are refused when it is NULL. *help is set when -h or --help was met;
// parsing ends there. RT_ERR_INVALID names the option, the value and its range.
rt_status app_parse(const app_table *table, int argc, char *const *argv, void *args, app_list *rest,
                    bool *help);
// Frees the lists that parsing filled.
void app_free_args(const app_table *table, void *args);
void app_free_list(app_list *list);

// Appends the option lines of --help; `args` holds the defaults.
rt_status app_describe(const app_table *table, const void *args, rt_str *out);

// The first word that differs in two texts of NAME=VALUE words, as "'a=1', now 'a=2'".
void app_first_difference(const char *was, const char *now, char *out, size_t size);

// Of `names[0 .. n)`, the one most like `text`: it begins with it, or has the
// smallest edit distance (Damerau, adjacent swaps). NULL when nothing is near.
const char *app_nearest(const char *text, const char *const *names, size_t n);

#endif
