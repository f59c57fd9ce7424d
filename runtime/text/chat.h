// SPDX-License-Identifier: Apache-2.0
// ChatML, the chat format of Qwen, SDAR, TraDo and Fast-dLLM v2:
//   <|im_start|>ROLE\nTEXT<|im_end|>\n ... <|im_start|>assistant\n
#ifndef RUNTIME_TEXT_CHAT_H
#define RUNTIME_TEXT_CHAT_H

#include "runtime/text/tokenizer.h"

typedef struct rt_turn {
    const char *role; // "system", "user", "assistant"
    const char *text; // borrowed
    size_t len;
} rt_turn;

// Appends the ids of the turns and of the opening of the assistant's. The role markers are
// special tokens; a literal marker inside the texts stays text unless `content` is
// RT_SPECIAL_PARSE. RT_ERR_UNSUPPORTED when the tokenizer has no <|im_start|> or <|im_end|>.
rt_status rt_chat_encode_turns(const rt_tokenizer *tok, const rt_turn *turns, size_t n,
                               rt_special content, rt_ids *out);
// The token that ends a turn, <|im_end|>; -1: the tokenizer has none.
int rt_chat_end(const rt_tokenizer *tok);
// One user turn, after a system turn unless `system` is NULL.
rt_status rt_chat_encode(const rt_tokenizer *tok, const char *system, const char *user,
                         size_t user_len, rt_special content, rt_ids *out);

#endif
