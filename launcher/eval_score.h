// SPDX-License-Identifier: Apache-2.0
// Whether an answer is right, by the rule in its document:
//
//   {"any": [TEXT...]}                      the answer is one of these
//   {"all": [[TEXT...]...]}                 of every list one occurs in it, whatever the case
//   {"prefix": TEXT, "values": [TEXT...]}   starts with the prefix, then the values in any
//                                           order, between ", " and " and ", then "."
//   {"contains": [TEXT...]}                 one of these occurs in it, whatever the case
#ifndef LAUNCHER_EVAL_SCORE_H
#define LAUNCHER_EVAL_SCORE_H

#include "runtime/base/json.h"

typedef struct app_score {
    bool right;
    double f1; // best token F1 against a text of `any` or `contains`; NaN by the other rules
} app_score;

// RT_ERR_FORMAT unless the object is one of the rules; `name` is for messages.
rt_status app_accept_check(const json_t *accept, const char *name);
// `accept` has been checked. White space around the answer does not count.
rt_status app_score_answer(const json_t *accept, const char *answer, app_score *out);

// F1 of the words two texts share, as SQuAD and LongBench count: lower case, without ASCII
// punctuation and the articles a, an, the. 0 when either has no word.
rt_status app_token_f1(const char *answer, const char *truth, double *out);

#endif
