// SPDX-License-Identifier: Apache-2.0
// The options of denoising and sampling, for every command that generates.
#ifndef LAUNCHER_DECODING_OPTIONS_H
#define LAUNCHER_DECODING_OPTIONS_H

#include "launcher/options.h"
#include "runtime/engine/engine.h"

#include <limits.h>

app_choices app_strategy_choice, app_commit_choice;

// What depends on two options.
rt_status app_decoding_check(const rt_request *request);

// Rows of the option table; A is the argument struct, with an rt_request `request` and an
// int `commit` (1: separate).
// clang-format off
#define APP_OPTIONS_DENOISING(A)                                                                   \
    {"max-tokens", 'n', APP_INT, offsetof(A, request.max_tokens), 1, INT_MAX, "N", NULL,           \
     "end after so many tokens", "Denoising", NULL, NULL},                                         \
    {"strategy", 's', APP_CHOICE, offsetof(A, request.strategy), 0, 0, "NAME", NULL,               \
     "which positions a step keeps", NULL, app_strategy_choice, NULL},                             \
    {"steps", 0, APP_INT, offsetof(A, request.steps), 0, 4096, "N", NULL,                          \
     "denoising steps per block; 0: the block length", NULL, NULL, NULL},                          \
    {"threshold", 0, APP_REAL, offsetof(A, request.threshold), 0, 1000, "X", NULL,                 \
     "keep tokens above this confidence (dynamic), or up to this sum of entropies in nats "        \
     "(entropy_bounded)",                                                                          \
     NULL, NULL, NULL},                                                                            \
    {"sub-block", 0, APP_INT, offsetof(A, request.sub_block), 0, 4096, "N", "from the checkpoint", \
     "denoise a block in groups of N positions from the left; 0: the whole block", NULL, NULL,     \
     NULL},                                                                                        \
    {"commit", 0, APP_CHOICE, offsetof(A, commit), 0, 0, "WHEN", NULL,                             \
     "write a finished block with the next block's first step, or in a forward of its own", NULL,  \
     app_commit_choice, NULL}

#define APP_OPTIONS_SAMPLING(A)                                                                    \
    {"temperature", 't', APP_REAL, offsetof(A, request.temperature), 0, 100, "X",                  \
     "from the checkpoint", "below 1e-6: the most likely token", "Sampling", NULL, NULL},          \
    {"top-k", 0, APP_INT, offsetof(A, request.top_k), 0, INT_MAX, "N", "from the checkpoint",      \
     "0: off", NULL, NULL, NULL},                                                                  \
    {"top-p", 0, APP_REAL, offsetof(A, request.top_p), 1e-6, 1, "X", "from the checkpoint",        \
     "1: off", NULL, NULL, NULL},                                                                  \
    {"seed", 0, APP_U64, offsetof(A, request.seed), 0, 0, "N", NULL, "of the random numbers",      \
     NULL, NULL, NULL}
// clang-format on

#endif
