// SPDX-License-Identifier: Apache-2.0
#include "launcher/decoding_options.h"

const char *app_commit_choice(size_t i)
{
    static const char *const names[] = {"merged", "separate"};
    return i < 2 ? names[i] : NULL;
}

const char *app_strategy_choice(size_t i) // in the order of rt_strategy
{
    static const char *const names[] = {"sequential", "low_confidence_static",
                                        "low_confidence_dynamic", "entropy_bounded"};
    return i < 4 ? names[i] : NULL;
}

rt_status app_decoding_check(const rt_request *request)
{
    if (request->strategy == RT_STRATEGY_DYNAMIC && request->threshold > 1)
        return RT_FAIL(RT_ERR_INVALID, "--threshold %g: a confidence is at most 1",
                       request->threshold);
    return RT_OK;
}
