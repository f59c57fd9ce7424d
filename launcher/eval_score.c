// SPDX-License-Identifier: Apache-2.0
#include "launcher/eval_score.h"

#include "runtime/base/mem.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

// ---- the form of a rule -----------------------------------------------------------

static bool is_texts(const json_t *list)
{
    size_t i;
    const json_t *text;
    json_array_foreach(list, i, text)
    {
        if (!json_is_string(text) || strlen(json_string_value(text)) != json_string_length(text))
            return false;
    }
    return json_array_size(list) > 0;
}

static bool is_lists(const json_t *lists)
{
    size_t i;
    const json_t *list;
    json_array_foreach(lists, i, list)
    {
        if (!is_texts(list))
            return false;
    }
    return json_array_size(lists) > 0;
}

rt_status app_accept_check(const json_t *accept, const char *name)
{
    const json_t *any = json_object_get(accept, "any"), *all = json_object_get(accept, "all"),
                 *contains = json_object_get(accept, "contains"),
                 *prefix = json_object_get(accept, "prefix"),
                 *values = json_object_get(accept, "values");
    const bool list = prefix && values;
    const int rules = (any != NULL) + (all != NULL) + (contains != NULL) + list;
    if (rules != 1 || json_object_size(accept) != (list ? 2u : 1u))
        return RT_FAIL(RT_ERR_FORMAT,
                       "%s: 'accept' is not one of any, all, contains, or prefix and values", name);
    if (list  ? json_is_string(prefix) && is_texts(values)
        : all ? is_lists(all)
              : is_texts(any ? any : contains))
        return RT_OK;
    return RT_FAIL(RT_ERR_FORMAT, "%s: 'accept' does not hold the texts that its rule needs", name);
}

// ---- exact answers ------------------------------------------------------------------

static bool equals_any(const json_t *texts, const char *answer)
{
    size_t i;
    const json_t *text;
    json_array_foreach(texts, i, text)
    {
        if (strcmp(answer, json_string_value(text)) == 0)
            return true;
    }
    return false;
}

static bool holds_any(const json_t *texts, const char *answer)
{
    size_t i;
    const json_t *text;
    json_array_foreach(texts, i, text)
    {
        if (strcasestr(answer, json_string_value(text)))
            return true;
    }
    return false;
}

static bool holds_all(const json_t *lists, const char *answer)
{
    size_t i;
    const json_t *texts;
    json_array_foreach(lists, i, texts)
    {
        if (!holds_any(texts, answer))
            return false;
    }
    return true;
}

// The first ", " or " and " of a list; its end where there is none.
static const char *find_separator(const char *at, const char *end, size_t *len)
{
    const char *comma = strstr(at, ", "), *and = strstr(at, " and ");
    const bool first = comma && (!and || comma < and);
    const char *found = first ? comma : and;
    if (!found || found >= end) {
        *len = 0;
        return end;
    }
    *len = first ? 2 : 5;
    return found;
}

// Takes a value off the list of those still open.
static bool take_value(json_t *open, const char *word, size_t len)
{
    size_t i;
    const json_t *value;
    json_array_foreach(open, i, value)
    {
        if (json_string_length(value) == len && memcmp(json_string_value(value), word, len) == 0)
            return json_array_remove(open, i) == 0;
    }
    return false;
}

static rt_status lists_values(const json_t *accept, const char *answer, bool *right)
{
    const char *prefix = json_string_value(json_object_get(accept, "prefix"));
    const size_t len = strlen(answer), skip = strlen(prefix);
    *right = false;
    if (strncmp(answer, prefix, skip) != 0 || len <= skip || answer[len - 1] != '.')
        return RT_OK;
    json_t *open = json_copy(json_object_get(accept, "values"));
    if (!open)
        return RT_FAIL(RT_ERR_NOMEM, "accepted values: no memory");
    const char *at = answer + skip, *end = answer + len - 1;
    bool known = true, more = true;
    while (known && more) {
        size_t separator;
        const char *stop = find_separator(at, end, &separator);
        known = take_value(open, at, (size_t)(stop - at));
        more = separator > 0;
        at = stop + separator;
    }
    *right = known && json_array_size(open) == 0;
    json_decref(open);
    return RT_OK;
}

// ---- token F1 -----------------------------------------------------------------------

typedef struct words {
    char *text; // the words, each with a NUL behind it
    const char **item;
    size_t count;
} words;

static bool is_article(const char *word)
{
    return strcmp(word, "a") == 0 || strcmp(word, "an") == 0 || strcmp(word, "the") == 0;
}

static rt_status split_words(const char *text, words *out)
{
    const size_t len = strlen(text);
    RT_TRY(RT_ALLOC(out->text, len + 1, "words"));
    RT_TRY(RT_ALLOC(out->item, len / 2 + 1, "words"));
    char *to = out->text;
    for (const char *at = text; *at;) {
        char *word = to;
        for (; *at && !isspace((unsigned char)*at); at++)
            if (!ispunct((unsigned char)*at))
                *to++ = (char)tolower((unsigned char)*at);
        *to++ = '\0';
        if (*word && !is_article(word))
            out->item[out->count++] = word;
        else
            to = word;
        while (isspace((unsigned char)*at))
            at++;
    }
    return RT_OK;
}

static void free_words(words *w)
{
    rt_free(w->text);
    rt_free(w->item);
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

// Words in both, each as often as in the one that has it less often.
static size_t count_common(words *a, words *b)
{
    qsort(a->item, a->count, sizeof *a->item, by_text);
    qsort(b->item, b->count, sizeof *b->item, by_text);
    size_t common = 0;
    for (size_t i = 0, k = 0; i < a->count && k < b->count;) {
        const int order = strcmp(a->item[i], b->item[k]);
        common += order == 0;
        i += order <= 0;
        k += order >= 0;
    }
    return common;
}

rt_status app_token_f1(const char *answer, const char *truth, double *out)
{
    words a = {0}, t = {0};
    rt_status status;
    RT_TRY_GOTO(status, split_words(answer, &a), free_both);
    RT_TRY_GOTO(status, split_words(truth, &t), free_both);
    const double common = (double)count_common(&a, &t);
    *out = common > 0 ? 2 * common / (double)(a.count + t.count) : 0;
free_both:
    free_words(&a);
    free_words(&t);
    return status;
}

static rt_status best_f1(const json_t *texts, const char *answer, double *out)
{
    size_t i;
    const json_t *text;
    *out = 0;
    json_array_foreach(texts, i, text)
    {
        double f1;
        RT_TRY(app_token_f1(answer, json_string_value(text), &f1));
        *out = fmax(*out, f1);
    }
    return RT_OK;
}

// ---- the rules ------------------------------------------------------------------------

static rt_status score(const json_t *accept, const char *answer, app_score *out)
{
    const json_t *any = json_object_get(accept, "any"), *all = json_object_get(accept, "all"),
                 *contains = json_object_get(accept, "contains");
    out->f1 = NAN;
    if (any || contains) {
        out->right = any ? equals_any(any, answer) : holds_any(contains, answer);
        return best_f1(any ? any : contains, answer, &out->f1);
    }
    if (!all)
        return lists_values(accept, answer, &out->right);
    out->right = holds_all(all, answer);
    return RT_OK;
}

rt_status app_score_answer(const json_t *accept, const char *answer, app_score *out)
{
    while (isspace((unsigned char)*answer))
        answer++;
    size_t len = strlen(answer);
    while (len > 0 && isspace((unsigned char)answer[len - 1]))
        len--;
    char *trimmed = rt_mem_alloc(len + 1, 1, "answer");
    if (!trimmed)
        return RT_ERR_NOMEM;
    memcpy(trimmed, answer, len);
    const rt_status status = score(accept, trimmed, out);
    rt_free(trimmed);
    return status;
}
