// SPDX-License-Identifier: Apache-2.0
// ChatML, the chat format of Qwen, SDAR, TraDo and Fast-dLLM v2:
//   <|im_start|>ROLE\nTEXT<|im_end|>\n ... <|im_start|>assistant\n
// Of a checkpoint's chat template no more is followed than whether it is ChatML, and the
// system turn that it writes in front of a chat without one.
#ifndef RUNTIME_TEXT_CHAT_H
#define RUNTIME_TEXT_CHAT_H

#include "runtime/text/tokenizer.h"

typedef struct rt_turn {
    const char *role; // "system", "user", "assistant"
    const char *text; // borrowed
    size_t len;
} rt_turn;

typedef struct rt_chat_template {
    char *refusal; // the file, and why no chat is made by it; NULL: ChatML
    char *system;  // the text of the turn in front of a chat without a system turn; NULL: none
} rt_chat_template;

// Reads the template of a checkpoint's folder: chat_template.jinja, else chat_template of
// tokenizer_config.json, a text or a list of {name, template}. Without any it is plain ChatML.
// One that is not followed is no error before a chat is encoded.
rt_status rt_chat_template_load(const char *model_dir, rt_chat_template *out);
void rt_chat_template_free(rt_chat_template *t); // safe on a zero struct

// Appends the ids of the turns and of the opening of the assistant's. The role markers are
// special tokens; a literal marker inside the texts stays text unless `content` is
// RT_SPECIAL_PARSE. RT_ERR_UNSUPPORTED when the template is another than ChatML (`t`; NULL:
// plain ChatML), or the tokenizer has no <|im_start|> or <|im_end|>.
rt_status rt_chat_encode_turns(const rt_tokenizer *tok, const rt_chat_template *t,
                               const rt_turn *turns, size_t n, rt_special content, rt_ids *out);
// The token that ends a turn, <|im_end|>; -1: the tokenizer has none.
int rt_chat_end(const rt_tokenizer *tok);
// One user turn, after a system turn unless `system` is NULL.
rt_status rt_chat_encode(const rt_tokenizer *tok, const rt_chat_template *t, const char *system,
                         const char *user, size_t user_len, rt_special content, rt_ids *out);

#endif
