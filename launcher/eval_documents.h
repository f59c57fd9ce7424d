// SPDX-License-Identifier: Apache-2.0
// The documents of losa eval: a JSON object a line, with a question and what is right.
//
//   id      its name in results; else _id, else "line N"
//   task    what it is an example of; else dataset, else "all"
//   user    document and question, as they are sent
//   accept  the rule, launcher/eval_score.h
//
// LongBench's lines do too: context and input make the prompt, answers the rule `contains`.
#ifndef LAUNCHER_EVAL_DOCUMENTS_H
#define LAUNCHER_EVAL_DOCUMENTS_H

#include "runtime/base/json.h"
#include "runtime/text/chat.h"
#include "runtime/text/tokenizer.h"

enum { APP_LENGTHS_MAX = 16 };

// Upper bounds in tokens, ascending; none: the powers of two.
typedef struct app_lengths {
    int bound[APP_LENGTHS_MAX];
    size_t count;
} app_lengths;
rt_status app_lengths_parse(const char *text, void *lengths); // "512,2048"; an app_parser
// The smallest bound that holds so many tokens; 0: none does.
int app_lengths_class(const app_lengths *lengths, size_t tokens);

typedef struct app_document {
    char *id, *task;
    rt_ids prompt;
    int length; // its class
    json_t *accept;
} app_document;

typedef struct app_documents {
    app_document *items;
    size_t count, cap;
    uint64_t hash;   // of the whole file
    size_t left_out; // by their length
} app_documents;

// How prompts become ids.
typedef struct app_encoding {
    const rt_tokenizer *tokenizer;
    bool chat;                      // as the user's turn of a chat
    const rt_chat_template *format; // of that chat; NULL: ChatML
} app_encoding;

// Reads line by line. Every bad line is logged, with the file and its number, and makes
// the call fail after the last line. `out` may hold some on failure too.
rt_status app_documents_read(const char *path, const app_encoding *encoding,
                             const app_lengths *lengths, app_documents *out);
void app_documents_free(app_documents *documents);

#endif
