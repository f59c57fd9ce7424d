// SPDX-License-Identifier: Apache-2.0
#include "launcher/attention_options.h"

const char *app_policy_choice(size_t i)
{
    return i < losa_policy_count() ? losa_policy_at(i)->name : NULL;
}

const char *app_first_choice(size_t i) // in the order of losa_first
{
    static const char *const names[] = {"dense", "sparse", "all-sparse"};
    return i < 3 ? names[i] : NULL;
}

const char *app_scope_choice(size_t i) // in the order of losa_scope
{
    static const char *const names[] = {"shared", "head"};
    return i < 2 ? names[i] : NULL;
}

const char *app_locality_choice(size_t i) // in the order of losa_locality
{
    static const char *const names[] = {"query", "hidden"};
    return i < 2 ? names[i] : NULL;
}

rt_status app_parse_rule(const char *text, void *config)
{
    return losa_config_parse_rule(text, config);
}

void app_attention_defaults(app_attention *args)
{
    args->config = losa_config_default();
    args->no_commit_scan = !args->config.commit_scan;
    for (size_t i = 0; i < losa_policy_count(); i++)
        if (losa_policy_at(i) == args->config.policy)
            args->policy = (int)i;
}

rt_status app_attention_check(app_attention *args)
{
    args->config.policy = losa_policy_at((size_t)args->policy);
    args->config.commit_scan = !args->no_commit_scan;
    return losa_config_check(&args->config);
}
