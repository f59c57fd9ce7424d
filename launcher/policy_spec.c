// SPDX-License-Identifier: Apache-2.0
// The words become command-line words, and the table of attention options reads them: a
// policy means here what the same options mean to `losa generate`.
#include "launcher/policy_spec.h"

#include "launcher/attention_options.h"
#include "runtime/base/mem.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

enum { WORDS_MAX = 16, WORD_MAX = 64 };

typedef struct spec_args {
    app_attention attention;
} spec_args;

static const app_option rows[] = {APP_OPTIONS_ATTENTION(spec_args, attention)};
static const app_table table = {rows, sizeof rows / sizeof rows[0]};

typedef struct spec_words {
    char word[WORDS_MAX][WORD_MAX];
    int count;
} spec_words;

static rt_status add_word(spec_words *w, const char *option, const char *value, size_t len)
{
    if (w->count == WORDS_MAX)
        return RT_FAIL(RT_ERR_INVALID, "more than %d words", WORDS_MAX);
    const int n = snprintf(w->word[w->count], WORD_MAX, "--%s%.*s", option, (int)len, value);
    if (n >= WORD_MAX)
        return RT_FAIL(RT_ERR_INVALID, "the word '%.*s' is too long", (int)len, value);
    w->count++;
    return RT_OK;
}

// BUDGET or BUDGET+SCAN.
static rt_status add_budget(spec_words *w, const char *text, size_t len)
{
    const char *plus = memchr(text, '+', len);
    const size_t first = plus ? (size_t)(plus - text) : len;
    RT_TRY(add_word(w, "budget=", text, first));
    return plus ? add_word(w, "scan-budget=", plus + 1, len - first - 1) : RT_OK;
}

static bool is_option(const char *text, size_t len)
{
    if (memchr(text, '=', len))
        return true;
    for (size_t i = 0; i < table.count; i++)
        if (rows[i].type == APP_FLAG && strlen(rows[i].name) == len &&
            strncmp(rows[i].name, text, len) == 0)
            return true;
    return false;
}

// Length of the word that begins at `text`.
static size_t word_len(const char *text)
{
    size_t len = strcspn(text, ":");
    while (text[len] == ':' && isdigit((unsigned char)text[len + 1]))
        len += 1 + strcspn(text + len + 1, ":");
    return len;
}

static rt_status split(const char *text, spec_words *w)
{
    const size_t name = strcspn(text, ":");
    RT_TRY(add_word(w, "attention=", text, name));
    const char *at = text + name;
    if (*at == ':' && isdigit((unsigned char)at[1])) {
        const size_t len = strcspn(at + 1, ":");
        RT_TRY(add_budget(w, at + 1, len));
        at += 1 + len;
    }
    while (*at) {
        const size_t len = word_len(++at);
        RT_TRY(add_word(w, is_option(at, len) ? "" : "active=", at, len));
        at += len;
    }
    return RT_OK;
}

static rt_status parse(const char *text, spec_args *args)
{
    spec_words words = {0};
    RT_TRY(split(text, &words));
    char *argv[WORDS_MAX];
    for (int i = 0; i < words.count; i++)
        argv[i] = words.word[i];
    bool help;
    app_attention_defaults(&args->attention);
    RT_TRY(app_parse(&table, words.count, argv, args, NULL, &help));
    return app_attention_check(&args->attention);
}

rt_status app_policy_parse(const char *text, losa_config *out)
{
    spec_args args;
    const rt_status status = parse(text, &args);
    if (status != RT_OK)
        return RT_FAIL(status, "policy '%s': %s", text, rt_last_error());
    *out = args.attention.config;
    return RT_OK;
}

// ---- lists -----------------------------------------------------------------------

static rt_status describe(const losa_config *c, bool budget, rt_str *out)
{
    char rule[WORD_MAX];
    losa_config_rule_text(c, rule, sizeof rule);
    RT_TRY(rt_str_puts(out, c->policy->name));
    if (budget)
        RT_TRY(rt_str_printf(out, " budget=%d", c->budget));
    return rt_str_printf(out,
                         " scan-budget=%d active=%s first=%s first-budget=%d commit-scan=%s "
                         "page-size=%d plan-scope=%s locality=%s dense-layers=%d "
                         "keep=%g skip=%g refresh=%d",
                         c->scan_budget, rule, app_first_choice(c->first), c->first_budget,
                         c->commit_scan ? "yes" : "no", c->page, app_scope_choice(c->scope),
                         app_locality_choice(c->locality), c->dense_layers, c->keep, c->skip,
                         c->refresh);
}

rt_status app_policy_describe(const losa_config *config, rt_str *out)
{
    return describe(config, true, out);
}

static rt_status fill(const char *text, app_policy *out)
{
    rt_str key = {0}, family = {0};
    out->text = rt_mem_strdup(text, "policies");
    if (!out->text)
        return RT_ERR_NOMEM;
    RT_TRY(app_policy_parse(text, &out->config));
    rt_status status = describe(&out->config, true, &key);
    if (status == RT_OK)
        status = describe(&out->config, false, &family);
    out->key = key.data;
    out->family = family.data;
    return status;
}

static rt_status add_policy(app_policies *all, const char *text)
{
    app_policy *p = &all->items[all->count++];
    RT_TRY(fill(text, p));
    for (size_t i = 0; i + 1 < all->count; i++)
        if (strcmp(all->items[i].key, p->key) == 0)
            return RT_FAIL(RT_ERR_INVALID, "policies '%s' and '%s' are the same",
                           all->items[i].text, text);
    return RT_OK;
}

rt_status app_policies_parse(const char *list, app_policies *out)
{
    size_t most = 1;
    for (const char *at = list; *at; at++)
        most += *at == ',';
    RT_TRY(RT_ALLOC(out->items, most, "policies"));
    char *copy = rt_mem_strdup(list, "policies");
    if (!copy)
        return RT_ERR_NOMEM;
    rt_status status = RT_OK;
    char *rest = copy;
    for (char *text; status == RT_OK && (text = strsep(&rest, ","));)
        status = add_policy(out, text);
    rt_free(copy);
    return status;
}

void app_policies_free(app_policies *policies)
{
    for (size_t i = 0; i < policies->count; i++) {
        rt_free(policies->items[i].text);
        rt_free(policies->items[i].key);
        rt_free(policies->items[i].family);
    }
    rt_free(policies->items);
    *policies = (app_policies){0};
}
