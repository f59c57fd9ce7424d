// SPDX-License-Identifier: Apache-2.0
#include "runtime/engine/session.h"

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/engine/engine_int.h"
#include "runtime/text/chat.h"

#include <math.h>
#include <string.h>

_Static_assert((int)RT_CONFIG_MAX_CONTEXT <= (int)PB_TOKENS_MAX, "a request fits its message");

// ---- a new request ------------------------------------------------------------------

// A text that cannot fit, whatever its tokens are, is not worth reading.
static rt_status check_bytes(const rt_engine *e, size_t bytes)
{
    const size_t fewest = bytes / rt_tokenizer_token_bytes(e->tokenizer);
    if (fewest >= (size_t)e->config.max_positions)
        return RT_FAIL(
            RT_ERR_LIMIT,
            "prompt: %zu bytes are at least %zu tokens, beyond the model's context of %d", bytes,
            fewest, e->config.max_positions);
    return RT_OK;
}

static rt_status encode(const rt_engine *e, const rt_request *r, rt_ids *out)
{
    if (r->prompt_ids)
        return rt_ids_append(out, r->prompt_ids, r->prompt_ids_len);
    if (e->options.dummy)
        return RT_FAIL(RT_ERR_INVALID, "prompt: random weights have no tokenizer, give ids");
    if (!e->tokenizer)
        return RT_FAIL(RT_ERR_IO, "%s/tokenizer.json: not found; it is needed to read text",
                       e->options.model_dir);
    size_t bytes = r->turns ? 0 : r->prompt_len;
    for (size_t i = 0; r->turns && i < r->turns_len; i++)
        bytes += r->turns[i].len;
    RT_TRY(check_bytes(e, bytes));
    const rt_special special = r->parse_special ? RT_SPECIAL_PARSE : RT_SPECIAL_TEXT;
    if (r->turns)
        return rt_chat_encode_turns(e->tokenizer, &e->chat, r->turns, r->turns_len, special, out);
    if (r->chat)
        return rt_chat_encode(e->tokenizer, &e->chat, r->system, r->prompt, r->prompt_len, special,
                              out);
    return rt_tokenizer_encode(e->tokenizer, r->prompt, r->prompt_len, special, out);
}

static rt_status check_prompt(const rt_engine *e, const rt_request *r, const rt_ids *prompt)
{
    const size_t context = (size_t)e->config.max_positions;
    if (prompt->len == 0)
        return RT_FAIL(RT_ERR_INVALID, "prompt: empty");
    if (prompt->len > context)
        return RT_FAIL(RT_ERR_LIMIT, "prompt: %zu tokens are beyond the model's context of %d",
                       prompt->len, e->config.max_positions);
    if (prompt->len == context && r->max_tokens > 0)
        return RT_FAIL(RT_ERR_LIMIT,
                       "prompt: %zu tokens leave no room to answer in the model's context of %d",
                       prompt->len, e->config.max_positions);
    for (size_t i = 0; i < prompt->len; i++)
        if (prompt->data[i] < 0 || prompt->data[i] >= e->config.vocab)
            return RT_FAIL(RT_ERR_INVALID, "prompt: token %zu is %d, the vocabulary has %d", i,
                           prompt->data[i], e->config.vocab);
    return RT_OK;
}

rt_status rt_session_prompt(const rt_engine *e, const rt_request *r, rt_ids *out)
{
    RT_TRY(encode(e, r, out));
    return check_prompt(e, r, out);
}

// Logits around 16 that differ at all differ by 2e-6: below this temperature the larger one wins
// anyhow, and 1 / temperature times a logit is far from what an f32 can hold.
static const double COLD = 1e-6;

static void fill_defaults(const rt_engine *e, rt_request *r)
{
    if (r->steps == 0)
        r->steps = e->config.block_length;
    if (r->sub_block < 0)
        r->sub_block = e->config.default_sub_block;
    if (r->temperature < 0)
        r->temperature = e->config.temperature;
    if (r->top_k < 0)
        r->top_k = e->config.top_k;
    if (r->top_p < 0)
        r->top_p = e->config.top_p;
    if (r->temperature < COLD)
        r->temperature = 0;
    if (r->top_p == 0)
        r->top_k = 1;
}

static rt_status check_count(const char *name, int value, int min)
{
    if (value >= min && value <= PB_TOKENS_MAX)
        return RT_OK;
    return RT_FAIL(RT_ERR_INVALID, "%s %d: must be %d to %d", name, value, min, PB_TOKENS_MAX);
}

static rt_status check_numbers(const rt_request *r)
{
    RT_TRY(check_count("steps", r->steps, 1));
    RT_TRY(check_count("sub-block", r->sub_block, 0));
    if ((int)r->strategy < 0 || r->strategy > RT_STRATEGY_ENTROPY)
        return RT_FAIL(RT_ERR_INVALID, "strategy %d: there is none", (int)r->strategy);
    if (!isfinite(r->threshold) || r->threshold < 0)
        return RT_FAIL(RT_ERR_INVALID, "threshold %g: must not be negative", r->threshold);
    if (r->strategy == RT_STRATEGY_DYNAMIC && r->threshold > 1)
        return RT_FAIL(RT_ERR_INVALID, "threshold %g: a confidence is at most 1", r->threshold);
    if (!isfinite(r->temperature))
        return RT_FAIL(RT_ERR_INVALID, "temperature: must be a finite number");
    if (!(r->top_p >= 0 && r->top_p <= 1))
        return RT_FAIL(RT_ERR_INVALID, "top-p %g: must be 0 to 1", r->top_p);
    return RT_OK;
}

// Cuts max_tokens to the context, and refuses what the pages can never hold.
static rt_status check_room(const rt_engine *e, rt_session *s)
{
    const int prompt = (int)s->prompt.len;
    const int room = e->config.max_positions - prompt;
    if (s->request.max_tokens > room)
        s->request.max_tokens = room;
    const int need =
        rt_engine_pages(e, rt_slot_span(prompt, s->request.max_tokens, e->config.block_length));
    if (need > e->kv.pages)
        return RT_FAIL(
            RT_ERR_LIMIT,
            "prompt of %d tokens and %d new ones: %d KV pages of %d needed, there are %d "
            "(--context or --kv-memory for more, --max-tokens for fewer)",
            prompt, s->request.max_tokens, need, e->options.attention.page, e->kv.pages);
    // The last row of a shifted model's prompt decides the first token after it: that row is
    // computed for every request, with its block.
    const int block = e->config.block_length, decides = e->config.shifted ? 1 : 0;
    return rt_holding_open(&e->book, need, (prompt - decides) / block * block, &s->holding);
}

static rt_status copy_stops(const rt_request *r, rt_session *s)
{
    s->request.stops = NULL;
    s->request.stops_len = 0;
    RT_TRY(RT_ALLOC(s->stops, r->stops_len, "stop strings"));
    for (size_t i = 0; i < r->stops_len; i++) {
        if (!r->stops[i][0])
            return RT_FAIL(RT_ERR_INVALID, "stop string: empty");
        s->stops[i] = rt_mem_strdup(r->stops[i], "stop strings");
        if (!s->stops[i])
            return RT_ERR_NOMEM;
        s->request.stops_len++;
    }
    return RT_OK;
}

static rt_status fill_session(const rt_engine *e, const rt_request *request, rt_session *s)
{
    s->slot = -1;
    s->request = *request;
    s->turn_end =
        e->tokenizer && (request->chat || request->turns) ? rt_chat_end(e->tokenizer) : -1;
    fill_defaults(e, &s->request);
    RT_TRY(check_numbers(&s->request));
    RT_TRY(copy_stops(request, s));
    RT_TRY(rt_session_prompt(e, request, &s->prompt));
    s->request.prompt = s->request.system = NULL; // borrowed only during submit
    s->request.prompt_ids = NULL;
    s->request.turns = NULL;
    RT_TRY(check_room(e, s));
    return e->tokenizer ? rt_detok_open(e->tokenizer, false, &s->detok) : RT_OK;
}

rt_status rt_session_new(const rt_engine *e, const rt_request *request, rt_session **out)
{
    rt_session *s;
    RT_TRY(RT_ALLOC(s, 1, "session"));
    const rt_status status = fill_session(e, request, s);
    if (status != RT_OK) {
        rt_session_free(s);
        return status;
    }
    *out = s;
    return RT_OK;
}

void rt_session_free(rt_session *s)
{
    if (!s)
        return;
    for (size_t i = 0; s->stops && i < s->request.stops_len; i++)
        rt_free(s->stops[i]);
    rt_free(s->stops);
    rt_ids_free(&s->prompt);
    rt_ids_free(&s->output);
    rt_holding_close(&s->holding);
    rt_detok_close(s->detok);
    rt_str_free(&s->text);
    rt_free(s);
}

rt_status rt_session_message(const rt_engine *e, const rt_session *s, Pb__Request *out)
{
    const rt_request *r = &s->request;
    const rt_holding *h = &s->holding;
    pb__request__init(out);
    out->session = s->id;
    out->slot = (uint32_t)s->slot;
    out->n_prompt = s->prompt.len;
    out->prompt = s->prompt.data;
    out->max_tokens = (uint32_t)r->max_tokens;
    out->strategy = (uint32_t)r->strategy;
    out->steps = (uint32_t)r->steps;
    out->threshold = r->threshold;
    out->sub_block = (uint32_t)r->sub_block;
    out->temperature = r->temperature;
    out->top_k = (uint32_t)r->top_k;
    out->top_p = r->top_p;
    out->seed = r->seed;
    out->has_shared = true;
    out->shared = (uint32_t)(h->found * e->book.unit);
    out->n_pages = (size_t)h->page_count;
    RT_TRY(RT_ALLOC(out->pages, out->n_pages, "admission message"));
    for (size_t i = 0; i < out->n_pages; i++)
        out->pages[i] = (uint32_t)h->pages[i];
    return RT_OK;
}

// ---- tokens, text, stops --------------------------------------------------------------

static void finish(rt_session *s, rt_finish how)
{
    s->finished = true;
    s->finish = how;
    s->finished_at = rt_clock_now();
}

static bool is_stop_id(const rt_engine *e, const rt_session *s, int32_t id)
{
    if (s->request.ignore_stop_ids)
        return false;
    for (int i = 0; i < e->config.stop_count; i++)
        if (e->config.stop_ids[i] == id)
            return true;
    return id == s->turn_end;
}

// Offset of the earliest stop string that ends after byte `from`, or SIZE_MAX.
static size_t find_stop(const rt_session *s, size_t from)
{
    size_t best = SIZE_MAX;
    for (size_t i = 0; i < s->request.stops_len; i++) {
        const size_t len = strlen(s->stops[i]);
        const size_t start = from >= len ? from - len + 1 : 0;
        if (s->text.len < start + len)
            continue;
        const char *hit = memmem(s->text.data + start, s->text.len - start, s->stops[i], len);
        if (hit && (size_t)(hit - s->text.data) < best)
            best = (size_t)(hit - s->text.data);
    }
    return best;
}

// Adds one token to the output and its text; cuts the text at a stop string.
static rt_status take_token(rt_session *s, int32_t id)
{
    const size_t before = s->text.len;
    RT_TRY(rt_ids_append(&s->output, &id, 1));
    if (!s->detok)
        return RT_OK;
    RT_TRY(rt_detok_push(s->detok, &id, 1, &s->text));
    const size_t cut = find_stop(s, before);
    if (cut == SIZE_MAX)
        return RT_OK;
    s->text.len = cut;
    s->text.data[cut] = '\0';
    finish(s, RT_FINISH_STOP);
    return RT_OK;
}

// The next generated token, if it is known: a stop id ends the request, the length
// limit too.
static rt_status take_next(const rt_engine *e, rt_session *s, const rt_slot *slot, bool *more)
{
    const int position = slot->prompt_len + s->known;
    const bool full = s->known == s->request.max_tokens;
    *more = false;
    if (!full && (slot->state[position] & KERN_ROW_MASKED))
        return RT_OK;
    if (full || is_stop_id(e, s, slot->ids[position])) {
        finish(s, full ? RT_FINISH_LENGTH : RT_FINISH_STOP);
        s->known += full ? 0 : 1;
        return s->detok ? rt_detok_flush(s->detok, &s->text) : RT_OK;
    }
    s->known++;
    RT_TRY(take_token(s, slot->ids[position]));
    *more = !s->finished;
    return RT_OK;
}

// Bytes at the end of the text that may become a stop string with what follows.
static size_t held_back(const rt_session *s)
{
    size_t most = 0;
    for (size_t i = 0; i < s->request.stops_len; i++) {
        const size_t len = strlen(s->stops[i]);
        size_t n = len - 1 < s->text.len ? len - 1 : s->text.len;
        while (n > most && memcmp(s->stops[i], s->text.data + s->text.len - n, n) != 0)
            n--;
        most = n > most ? n : most;
    }
    return most;
}

void rt_session_emit(rt_session *s)
{
    const size_t start = s->emitted, end = s->text.len - (s->finished ? 0 : held_back(s));
    if (end <= start)
        return;
    s->emitted = end;
    if (s->request.on_text)
        s->request.on_text(s->request.ctx, s->id, s->text.data + start, end - start);
}

rt_status rt_session_progress(const rt_engine *e, rt_session *s, const rt_slot *slot)
{
    for (bool more = true; more;)
        RT_TRY(take_next(e, s, slot, &more));
    const int block_end = slot->block_start + e->config.block_length;
    if (s->finished || slot->prompt_len + s->known >= block_end)
        rt_session_emit(s);
    return RT_OK;
}
