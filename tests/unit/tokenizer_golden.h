// SPDX-License-Identifier: Apache-2.0
// What the tokenizer's tests share: the shipped tokenizer.json, changed or not, and
// the lines of golden files.
#ifndef TESTS_UNIT_TOKENIZER_GOLDEN_H
#define TESTS_UNIT_TOKENIZER_GOLDEN_H

#include "tests/unit/testing.h"

#include "runtime/base/file.h"
#include "runtime/base/json.h"
#include "runtime/base/mem.h"
#include "runtime/text/tokenizer.h"

// "$LOSA_SOURCE/path"; valid until the thread's next call.
static inline const char *golden_path(const char *path)
{
    static _Thread_local char full[PATH_MAX];
    const char *root = getenv("LOSA_SOURCE");
    assert_non_null(root);
    snprintf(full, sizeof full, "%s/%s", root, path);
    return full;
}

// tokenizer.json of the shipped model. Owned by the caller.
static inline json_t *golden_needle_json(void)
{
    json_t *root;
    assert_ok(rt_json_load(golden_path("models/needle-11m/tokenizer.json"), 1 << 24, &root));
    return root;
}

static inline rt_status golden_parse(const json_t *root, const char *name, rt_tokenizer **out)
{
    char *text = json_dumps(root, JSON_COMPACT);
    assert_non_null(text);
    rt_status status = rt_tokenizer_parse(text, strlen(text), name, out);
    free(text);
    return status;
}

// The lines of a .jsonl file, as an array. Owned by the caller.
static inline json_t *golden_lines(const char *path)
{
    char *text;
    size_t len;
    assert_ok(rt_file_read(golden_path(path), 1 << 26, &text, &len));
    json_t *lines = json_array();
    for (char *line = text, *end; (end = strchr(line, '\n')); line = end + 1) {
        json_t *value;
        assert_ok(rt_json_parse(line, (size_t)(end - line), path, &value));
        assert_int_equal(json_array_append_new(lines, value), 0);
    }
    rt_free(text);
    assert_true(json_array_size(lines) > 0);
    return lines;
}

#endif
