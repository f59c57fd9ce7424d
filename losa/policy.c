// SPDX-License-Identifier: Apache-2.0
#include "losa/policy.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const losa_policy policies[] = {
    {"dense", "every token reads the whole prefix", LOSA_READ_ALL, LOSA_PAGES_ALL, LOSA_STEPS_PLAIN,
     false},
    {"quest", "every token reads the union of the QUEST lists, first steps too", LOSA_READ_ALL,
     LOSA_PAGES_SCAN, LOSA_STEPS_PLAIN, true},
    {"quest-init", "dense first step, then every token reads the union of the QUEST lists",
     LOSA_READ_ALL, LOSA_PAGES_SCAN, LOSA_STEPS_PLAIN, false},
    {"losa", "dense first step, then active tokens read their QUEST lists, the others reuse",
     LOSA_READ_ACTIVE, LOSA_PAGES_SCAN, LOSA_STEPS_PLAIN, false},
    {"losa-mass", "dense first step, then active tokens read the pages it looked at most",
     LOSA_READ_ACTIVE, LOSA_PAGES_MASS, LOSA_STEPS_PLAIN, false},
    {"losa-mix", "as losa-mass, and a small QUEST scan by the active tokens", LOSA_READ_ACTIVE,
     LOSA_PAGES_MIX, LOSA_STEPS_PLAIN, false},
    {"mage", "dense first step, then every token reads the pages it looked at most", LOSA_READ_ALL,
     LOSA_PAGES_MASS, LOSA_STEPS_PLAIN, false},
    {"sparsed", "dense first steps, then every token reads the pages the last looked at most",
     LOSA_READ_ALL, LOSA_PAGES_MASS, LOSA_STEPS_SKIP, false},
    {"sparse-dllm", "two dense steps, then every token reads the pages nearest to its mean query",
     LOSA_READ_ALL, LOSA_PAGES_KEYS, LOSA_STEPS_DELAY, false},
    {"flashblock", "every token reads the whole prefix, or all reuse where few were unmasked",
     LOSA_READ_ALL, LOSA_PAGES_ALL, LOSA_STEPS_REFRESH, false},
};

size_t losa_policy_count(void)
{
    return sizeof policies / sizeof policies[0];
}

const losa_policy *losa_policy_at(size_t i)
{
    return &policies[i];
}

const losa_policy *losa_policy_find(const char *name)
{
    for (size_t i = 0; i < losa_policy_count(); i++)
        if (strcmp(policies[i].name, name) == 0)
            return &policies[i];
    return NULL;
}

losa_config losa_config_default(void)
{
    return (losa_config){
        .policy = losa_policy_find("losa"),
        .budget = 256,
        .scan_budget = 64,
        .page = 8,
        .rule = KERN_ACTIVE_UNSETTLED,
        .first = LOSA_FIRST_DENSE,
        .commit_scan = true,
        .skip = 0.2,
        .refresh = 2,
        .scope = LOSA_SCOPE_HEAD,
        .locality = LOSA_LOCALITY_QUERY,
        .check_plans = false,
    };
}

int losa_pages_of(const losa_config *config, int tokens)
{
    return (tokens + config->page - 1) / config->page;
}

static bool is_sparse(const losa_config *config, int seg_kind)
{
    const losa_policy *policy = config->policy;
    if (seg_kind == KERN_SEG_REST)
        return policy->schedule == LOSA_STEPS_REFRESH;
    if (policy->pages == LOSA_PAGES_ALL)
        return false;
    switch (seg_kind) {
    case KERN_SEG_OPEN:
        return policy->sparse_open || config->first == LOSA_FIRST_ALL;
    case KERN_SEG_FIRST:
    case KERN_SEG_COMMIT: // a committed row reads what the next block's first step reads
        return policy->sparse_open || config->first != LOSA_FIRST_DENSE;
    default:
        return seg_kind == KERN_SEG_STEP;
    }
}

static bool keeps_lists(const losa_config *config)
{
    return config->policy->pages >= LOSA_PAGES_MASS;
}

losa_reading losa_reading_of(const losa_config *config, int seg_kind)
{
    const bool first = seg_kind == KERN_SEG_OPEN || seg_kind == KERN_SEG_FIRST;
    losa_reading r = {.sparse = is_sparse(config, seg_kind)};
    r.measures = keeps_lists(config) && (first || seg_kind == KERN_SEG_EARLY);
    if (!r.sparse || seg_kind == KERN_SEG_REST)
        return r;
    // A first step has no list yet: it scans with the whole budget.
    r.choice.kept = keeps_lists(config) && !first;
    const bool small_scan =
        seg_kind == KERN_SEG_COMMIT ? config->commit_scan : config->policy->pages == LOSA_PAGES_MIX;
    if (first && config->first_budget > 0)
        r.choice.top = losa_pages_of(config, config->first_budget);
    else if (!r.choice.kept)
        r.choice.top = losa_pages_of(config, config->budget);
    else if (small_scan)
        r.choice.top = losa_pages_of(config, config->scan_budget);
    r.choice.budget = r.choice.top;
    if (r.choice.kept)
        r.choice.budget =
            config->keep > 0 ? INT_MAX : r.choice.top + losa_pages_of(config, config->budget);
    return r;
}

int losa_step_kind(const losa_config *config, const losa_block *block)
{
    switch (config->policy->schedule) {
    case LOSA_STEPS_PLAIN:
        break;
    case LOSA_STEPS_SKIP:
        return block->step <= (int)(block->steps * config->skip) ? KERN_SEG_EARLY : KERN_SEG_STEP;
    case LOSA_STEPS_DELAY:
        return block->step < 2 ? KERN_SEG_EARLY : KERN_SEG_STEP;
    case LOSA_STEPS_REFRESH:
        return block->unread < config->refresh ? KERN_SEG_REST : KERN_SEG_STEP;
    }
    return KERN_SEG_STEP;
}

static rt_status check_share(const char *name, double value)
{
    if (value >= 0 && value <= 1)
        return RT_OK;
    return RT_FAIL(RT_ERR_INVALID, "%s %g: must be 0 to 1", name, value);
}

enum { PAGE_MIN = 4, PAGE_MAX = 256 };

static rt_status check_budget(const char *name, int tokens, int min)
{
    const int max = INT_MAX - PAGE_MAX; // rounded up to pages it is still an int
    if (tokens >= min && tokens <= max)
        return RT_OK;
    return RT_FAIL(RT_ERR_INVALID, "%s %d: must be %d to %d tokens", name, tokens, min, max);
}

rt_status losa_config_check(const losa_config *config)
{
    if (!config->policy)
        return RT_FAIL(RT_ERR_INVALID, "attention policy: none given");
    if (config->page < PAGE_MIN || config->page > PAGE_MAX || (config->page & (config->page - 1)))
        return RT_FAIL(RT_ERR_INVALID, "page size %d: must be a power of two, %d to %d",
                       config->page, PAGE_MIN, PAGE_MAX);
    RT_TRY(check_budget("budget", config->budget, 1));
    RT_TRY(check_budget("first budget", config->first_budget, 0));
    RT_TRY(check_budget("scan budget", config->scan_budget, 1));
    const bool counted = config->rule == KERN_ACTIVE_TOPK || config->rule == KERN_ACTIVE_NEW_TOPK;
    if (counted && config->active_k < (config->rule == KERN_ACTIVE_TOPK ? 1 : 0))
        return RT_FAIL(RT_ERR_INVALID, "active rule: %d tokens are too few", config->active_k);
    if (config->rule == KERN_ACTIVE_SHARE)
        RT_TRY(check_share("active share", config->active_share));
    RT_TRY(check_share("keep", config->keep));
    RT_TRY(check_share("skip", config->skip));
    if (config->dense_layers < 0)
        return RT_FAIL(RT_ERR_INVALID, "dense layers %d: must not be negative",
                       config->dense_layers);
    if (config->refresh < 0)
        return RT_FAIL(RT_ERR_INVALID, "refresh %d: must not be negative", config->refresh);
    return RT_OK;
}

// Parses a whole decimal count of at least `min`; false when it is none.
static bool parse_count(const char *text, int min, int *out)
{
    char *end;
    const long value = strtol(text, &end, 10);
    if (end == text || *end || value < min || value > INT_MAX)
        return false;
    *out = (int)value;
    return true;
}

static bool parse_share(const char *text, double *out)
{
    char *end;
    *out = strtod(text, &end);
    return end != text && !*end && *out > 0 && *out <= 1;
}

rt_status losa_config_parse_rule(const char *text, losa_config *config)
{
    int k = 0;
    double share = 0;
    kern_active_rule rule;
    if (strcmp(text, "all") == 0)
        rule = KERN_ACTIVE_ALL;
    else if (strcmp(text, "unsettled") == 0)
        rule = KERN_ACTIVE_UNSETTLED;
    else if (strncmp(text, "topk:", 5) == 0 && parse_count(text + 5, 1, &k))
        rule = KERN_ACTIVE_TOPK;
    else if (strncmp(text, "new+", 4) == 0 && parse_count(text + 4, 0, &k))
        rule = KERN_ACTIVE_NEW_TOPK;
    else if (strncmp(text, "mass:", 5) == 0 && parse_share(text + 5, &share))
        rule = KERN_ACTIVE_SHARE;
    else
        return RT_FAIL(RT_ERR_INVALID,
                       "active rule '%s': not one of all, topk:K, new+K, unsettled, mass:P", text);
    config->rule = rule;
    config->active_k = k;
    config->active_share = share;
    return RT_OK;
}

void losa_config_rule_text(const losa_config *config, char *out, size_t size)
{
    switch (config->rule) {
    case KERN_ACTIVE_ALL:
        snprintf(out, size, "all");
        break;
    case KERN_ACTIVE_UNSETTLED:
        snprintf(out, size, "unsettled");
        break;
    case KERN_ACTIVE_TOPK:
        snprintf(out, size, "topk:%d", config->active_k);
        break;
    case KERN_ACTIVE_NEW_TOPK:
        snprintf(out, size, "new+%d", config->active_k);
        break;
    case KERN_ACTIVE_SHARE:
        snprintf(out, size, "mass:%g", config->active_share);
        break;
    }
}
