// SPDX-License-Identifier: Apache-2.0
// ChatML. As in HF, the text between two markers is encoded as one piece: a merge may
// join the line end after the role with the content.
#include "runtime/text/chat.h"

#include <string.h>

typedef struct markers {
    int32_t start, end;
} markers;

int rt_chat_end(const rt_tokenizer *tok)
{
    return rt_tokenizer_id(tok, "<|im_end|>");
}

static rt_status find_markers(const rt_tokenizer *tok, markers *out)
{
    markers m = {.start = rt_tokenizer_id(tok, "<|im_start|>"), .end = rt_chat_end(tok)};
    if (m.start < 0 || m.end < 0)
        return RT_FAIL(RT_ERR_UNSUPPORTED, "chat: the tokenizer has no token %s",
                       m.start < 0 ? "<|im_start|>" : "<|im_end|>");
    *out = m;
    return RT_OK;
}

// <|im_start|>ROLE\nTEXT<|im_end|>\n
static rt_status append_turn(const rt_tokenizer *tok, const markers *m, const rt_turn *turn,
                             rt_special content, rt_ids *out)
{
    rt_str piece = {0};
    rt_status status;
    RT_TRY(rt_ids_append(out, &m->start, 1));
    RT_TRY_GOTO(status, rt_str_printf(&piece, "%s\n", turn->role), free_piece);
    RT_TRY_GOTO(status, rt_str_append(&piece, turn->text, turn->len), free_piece);
    RT_TRY_GOTO(status, rt_tokenizer_encode(tok, piece.data, piece.len, content, out), free_piece);
    RT_TRY_GOTO(status, rt_ids_append(out, &m->end, 1), free_piece);
    status = rt_tokenizer_encode(tok, "\n", 1, RT_SPECIAL_TEXT, out);
free_piece:
    rt_str_free(&piece);
    return status;
}

// What the template itself says may hold special tokens.
static rt_status append_system(const rt_tokenizer *tok, const markers *m, const char *text,
                               rt_ids *out)
{
    const rt_turn turn = {"system", text, strlen(text)};
    return append_turn(tok, m, &turn, RT_SPECIAL_PARSE, out);
}

static rt_status append_all(const rt_tokenizer *tok, const rt_chat_template *t,
                            const rt_turn *turns, size_t n, rt_special content, rt_ids *out)
{
    static const char opening[] = "assistant\n";
    markers m;
    if (t && t->refusal)
        return RT_FAIL(RT_ERR_UNSUPPORTED, "%s: give the prompt as text, not as a chat",
                       t->refusal);
    RT_TRY(find_markers(tok, &m));
    if (t && t->system && (n == 0 || strcmp(turns[0].role, "system") != 0))
        RT_TRY(append_system(tok, &m, t->system, out));
    for (size_t i = 0; i < n; i++)
        RT_TRY(append_turn(tok, &m, &turns[i], content, out));
    RT_TRY(rt_ids_append(out, &m.start, 1));
    return rt_tokenizer_encode(tok, opening, sizeof opening - 1, RT_SPECIAL_TEXT, out);
}

rt_status rt_chat_encode_turns(const rt_tokenizer *tok, const rt_chat_template *t,
                               const rt_turn *turns, size_t n, rt_special content, rt_ids *out)
{
    RT_CHECK_ARG(tok && (turns || n == 0) && out);
    size_t before = out->len;
    rt_status status = append_all(tok, t, turns, n, content, out);
    if (status != RT_OK)
        out->len = before;
    return status;
}

rt_status rt_chat_encode(const rt_tokenizer *tok, const rt_chat_template *t, const char *system,
                         const char *user, size_t user_len, rt_special content, rt_ids *out)
{
    RT_CHECK_ARG(user || user_len == 0);
    const rt_turn turns[] = {{"system", system, system ? strlen(system) : 0},
                             {"user", user ? user : "", user_len}};
    return rt_chat_encode_turns(tok, t, system ? turns : turns + 1, system ? 2 : 1, content, out);
}
