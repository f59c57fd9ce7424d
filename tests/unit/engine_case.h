// SPDX-License-Identifier: Apache-2.0
// An engine whose ranks are threads, and requests whose answers are kept, for the
// tests of runtime/engine. A helper that cannot do its work fails the cmocka test.
#ifndef TESTS_UNIT_ENGINE_CASE_H
#define TESTS_UNIT_ENGINE_CASE_H

#include "runtime/engine/engine.h"
#include "tests/unit/testing.h"

#include <pthread.h>

enum { ENGINE_RANKS_MAX = 4 };

typedef struct engine_worker {
    const rt_engine_options *options;
    comm *comm;
    pthread_t thread;
    rt_status status; // once it is joined
} engine_worker;

// Rank 0 belongs to the test; the others work in threads. Must not move while open.
typedef struct engine_case {
    rt_engine *root;
    int ranks;
    engine_worker worker[ENGINE_RANKS_MAX]; // of rank 0: only its communicator
    rt_engine_options options;
    char dir[PATH_MAX];
} engine_case;

// Options for a model of the source folder, "models/needle-11m"; one thread per rank.
rt_engine_options engine_options(const char *model);
void engine_open(engine_case *c, const rt_engine_options *options, int ranks);
void engine_close(engine_case *c); // fails the test if a worker failed

// What an opening that must fail said on a rank.
typedef struct engine_refusal {
    const rt_engine_options *options;
    comm *comm;
    rt_status status;
    char message[1024];
} engine_refusal;
// Opens an engine on two ranks, each with options of its own.
void engine_refuse(const rt_engine_options *first, const rt_engine_options *second,
                   engine_refusal got[2]);

// What became of a request.
typedef struct engine_answer {
    rt_session_id id;
    int32_t *ids;
    size_t ids_len;
    char *text;     // of the result
    char *streamed; // what on_text gave, put together
    rt_finish finish;
    int prompt_tokens;
    rt_stats stats;
    rt_probed probed;
    int prefilled;  // calls of on_prefill
    int done;       // calls of on_done
    int place;      // in the order of on_done, from 0
    int *finishers; // counts them; shared by the answers of a case
} engine_answer;

void engine_submit(engine_case *c, const rt_request *request, engine_answer *answer);
// Steps until the engine is idle; the number of steps.
int engine_drain(engine_case *c);
// All requests in an engine of their own, from submit to the last answer.
void engine_run(const rt_engine_options *options, int ranks, const rt_request *requests, int n,
                engine_answer *answers);
void engine_free(engine_answer *answers, int n);

// Same tokens, text and finish; `what` names the difference in the message.
void engine_same(const char *what, const engine_answer *got, const engine_answer *want, int n);
// The same statistics, but for times, for prefill forwards, which share their rows,
// and for the bytes of an exchange, which a forward's requests share.
void engine_same_stats(const char *what, const engine_answer *got, const engine_answer *want,
                       int n);

// Prompt ids without meaning: the same for the same seed. Not freed before the end
// of the program.
const int32_t *engine_prompt(uint32_t seed, int n, int vocab);

// Sixteen requests that differ in everything: prompts of 1 to 90 tokens (one token,
// shorter than a block, whole blocks), strategies, steps, thresholds, lengths.
// For models of 128 positions. `sampled`: half of them with temperature.
enum { ENGINE_MIX = 16 };
void engine_mix(rt_request requests[ENGINE_MIX], int vocab, bool sampled);

#endif
