// SPDX-License-Identifier: Apache-2.0
#include "runtime/base/json.h"

#include "runtime/base/file.h"
#include "runtime/base/mem.h"

#include <ctype.h>
#include <math.h>
#include <string.h>

// 2^53: every integer below is a double of its own.
static const double exact = 9007199254740992.0;

static const char *type_name(const json_t *value)
{
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a real number";
    case JSON_TRUE:
    case JSON_FALSE:
        return "a boolean";
    case JSON_NULL:
        return "null";
    }
    return "of unknown type";
}

// The parser quotes the text it stumbled on: keep the message to one line.
static void flatten(char *text)
{
    for (; *text; text++) {
        if (iscntrl((unsigned char)*text))
            *text = ' ';
    }
}

// *out is NULL when the key is absent (or null) and may be.
static rt_status member(const json_t *obj, const char *key, const char *name, bool required,
                        const json_t **out)
{
    if (!json_is_object(obj))
        return RT_FAIL(RT_ERR_FORMAT, "%s: expected an object that holds '%s'", name, key);
    const json_t *value = json_object_get(obj, key);
    if (json_is_null(value))
        value = NULL;
    if (!value && required)
        return RT_FAIL(RT_ERR_FORMAT, "%s: '%s' is missing", name, key);
    *out = value;
    return RT_OK;
}

static rt_status wrong_type(const json_t *value, const char *key, const char *name,
                            const char *wanted)
{
    return RT_FAIL(RT_ERR_FORMAT, "%s: '%s' is %s, expected %s", name, key, type_name(value),
                   wanted);
}

static bool was_integer(const json_t *value)
{
    const double number = json_real_value(value); // 0 if it is none
    return json_is_real(value) && fabs(number) < exact && number == floor(number);
}

// Takes back JSON_DECODE_INT_AS_REAL where nothing was lost; not 0: out of memory.
static int restore_integers(json_t *value)
{
    const char *key;
    json_t *item;
    size_t i;
    int failed = 0;
    json_object_foreach(value, key, item)
    {
        failed |= was_integer(item)
                      ? json_object_iter_set_new(value, json_object_key_to_iter(key),
                                                 json_integer((json_int_t)json_real_value(item)))
                      : restore_integers(item);
    }
    json_array_foreach(value, i, item)
    {
        failed |=
            was_integer(item)
                ? json_array_set_new(value, i, json_integer((json_int_t)json_real_value(item)))
                : restore_integers(item);
    }
    return failed;
}

// jansson ends at an integer that its type does not hold. Python writes such ones:
// transformers' model_max_length of 1e30 stands in most tokenizer_config.json.
rt_status rt_json_parse(const char *text, size_t len, const char *name, json_t **out)
{
    const size_t flags = JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL;
    json_error_t error;
    json_t *root = json_loadb(text, len, flags, &error);
    if (!root && json_error_code(&error) == json_error_numeric_overflow) {
        root = json_loadb(text, len, flags | JSON_DECODE_INT_AS_REAL, &error);
        if (root && restore_integers(root) != 0) {
            json_decref(root);
            return RT_FAIL(RT_ERR_NOMEM, "%s: out of memory", name);
        }
    }
    if (root) {
        *out = root;
        return RT_OK;
    }
    flatten(error.text);
    rt_status code =
        json_error_code(&error) == json_error_out_of_memory ? RT_ERR_NOMEM : RT_ERR_FORMAT;
    return RT_FAIL(code, "%s: line %d column %d: %s", name, error.line, error.column, error.text);
}

rt_status rt_json_load(const char *path, size_t max_bytes, json_t **out)
{
    char *text;
    size_t len;
    RT_TRY(rt_file_read(path, max_bytes, &text, &len));
    rt_status status = rt_json_parse(text, len, path, out);
    rt_free(text);
    return status;
}

rt_status rt_json_int(const json_t *obj, const char *key, const char *name, bool required,
                      int64_t min, int64_t max, int64_t *out)
{
    const json_t *value = NULL;
    RT_TRY(member(obj, key, name, required, &value));
    if (!value)
        return RT_OK;
    if (fabs(json_real_value(value)) >= exact)
        return RT_FAIL(RT_ERR_FORMAT, "%s: '%s' is %g, outside [%lld, %lld]", name, key,
                       json_real_value(value), (long long)min, (long long)max);
    if (!json_is_integer(value))
        return wrong_type(value, key, name, "an integer");
    int64_t number = json_integer_value(value);
    if (number < min || number > max)
        return RT_FAIL(RT_ERR_FORMAT, "%s: '%s' is %lld, outside [%lld, %lld]", name, key,
                       (long long)number, (long long)min, (long long)max);
    *out = number;
    return RT_OK;
}

rt_status rt_json_real(const json_t *obj, const char *key, const char *name, bool required,
                       double min, double max, double *out)
{
    const json_t *value = NULL;
    RT_TRY(member(obj, key, name, required, &value));
    if (!value)
        return RT_OK;
    if (!json_is_number(value))
        return wrong_type(value, key, name, "a number");
    double number = json_number_value(value);
    if (!(number >= min && number <= max))
        return RT_FAIL(RT_ERR_FORMAT, "%s: '%s' is %g, outside [%g, %g]", name, key, number, min,
                       max);
    *out = number;
    return RT_OK;
}

rt_status rt_json_bool(const json_t *obj, const char *key, const char *name, bool *out)
{
    const json_t *value = NULL;
    RT_TRY(member(obj, key, name, false, &value));
    if (!value)
        return RT_OK;
    if (!json_is_boolean(value))
        return wrong_type(value, key, name, "true or false");
    *out = json_is_true(value);
    return RT_OK;
}

rt_status rt_json_str(const json_t *obj, const char *key, const char *name, bool required,
                      const char **out)
{
    const json_t *value = NULL;
    RT_TRY(member(obj, key, name, required, &value));
    if (!value)
        return RT_OK;
    if (!json_is_string(value))
        return wrong_type(value, key, name, "a string");
    if (strlen(json_string_value(value)) != json_string_length(value))
        return RT_FAIL(RT_ERR_FORMAT, "%s: '%s' holds a NUL character", name, key);
    *out = json_string_value(value);
    return RT_OK;
}
