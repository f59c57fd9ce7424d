// SPDX-License-Identifier: Apache-2.0
#include "launcher/model_options.h"

const char *app_dummy_choice(size_t i)
{
    return rt_config_published_name(i);
}

rt_status app_model_check(const char *dir, int dummy)
{
    if (!dir && dummy < 0)
        return RT_FAIL(RT_ERR_INVALID, "--model DIR is missing (or --dummy NAME)");
    if (dir && dummy >= 0)
        return RT_FAIL(RT_ERR_INVALID, "--model and --dummy exclude each other");
    return RT_OK;
}

rt_status app_model_config(const char *dir, int dummy, const rt_config_overrides *overrides,
                           rt_model_config *out)
{
    if (dummy >= 0)
        return rt_config_published((size_t)dummy, overrides, out);
    return rt_config_load(dir, overrides, out);
}
