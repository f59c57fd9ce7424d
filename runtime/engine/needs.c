// SPDX-License-Identifier: Apache-2.0
// KV pages for requests that are known before an engine is open.
#include "runtime/engine/engine_int.h"

#include "runtime/base/mem.h"

#include <limits.h>
#include <stdlib.h>

static int larger_first(const void *a, const void *b)
{
    const int x = *(const int *)a, y = *(const int *)b;
    return (x < y) - (x > y);
}

static rt_status tokens_of(const rt_engine *e, const rt_request *r, int *out)
{
    rt_ids prompt = {0};
    const rt_status status = rt_session_prompt(e, r, &prompt);
    const size_t longest = (size_t)e->config.max_positions;
    const size_t tokens = prompt.len + (size_t)(r->max_tokens > 0 ? r->max_tokens : 0);
    *out = (int)(tokens < longest ? tokens : longest);
    rt_ids_free(&prompt);
    return status;
}

static rt_status sum_largest(const rt_engine *e, const rt_request *requests, size_t n, int *out,
                             size_t *refused)
{
    int *tokens;
    RT_TRY(RT_ALLOC(tokens, n, "requests"));
    rt_status status = RT_OK;
    for (size_t i = 0; i < n && status == RT_OK; i++) {
        status = tokens_of(e, &requests[i], &tokens[i]);
        *refused = status == RT_OK ? n : i;
    }
    if (status == RT_OK) {
        enum { CONTEXT_MAX = 1 << 30 };
        long long sum = 0;
        qsort(tokens, n, sizeof *tokens, larger_first);
        for (size_t i = 0; i < n && i < (size_t)e->options.max_sessions; i++)
            sum += tokens[i];
        *out = sum < CONTEXT_MAX ? (int)sum : CONTEXT_MAX;
    }
    rt_free(tokens);
    return status;
}

static bool any_text(const rt_request *requests, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!requests[i].prompt_ids)
            return true;
    return false;
}

rt_status rt_engine_context_for(const rt_engine_options *options, const rt_request *requests,
                                size_t n, int *context, size_t *refused)
{
    rt_engine *e;
    *refused = n;
    RT_TRY(RT_ALLOC(e, 1, "requests"));
    rt_status status;
    RT_TRY_GOTO(status, rt_engine_read_config(options, &e->config), close);
    e->options = *options;
    if (any_text(requests, n))
        RT_TRY_GOTO(status, rt_engine_open_tokenizer(e), close);
    status = sum_largest(e, requests, n, context, refused);
close:
    rt_tokenizer_close(e->tokenizer);
    rt_chat_template_free(&e->chat);
    rt_free(e);
    return status;
}
