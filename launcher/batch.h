// SPDX-License-Identifier: Apache-2.0
// The parts of `losa batch`.
//
// The ranks form groups (comm_split), each of which has an engine. Rank 0 keeps the desk: it
// reads the input, hands out its lines to the leaders of the groups, the first rank of each,
// and takes their records into the journal. Desk and leaders exchange letters
// (proto/batch.h); on rank 0, which leads the first group too, the two take turns.
//
//   batch_desk.c    rank 0: who gets what, what came back
//   batch_leader.c  a leader: lines -> requests of its engine -> records
//   batch_job.c     what the job is
//   batch_run.c     every rank: from the options to the end
//   batch_serve.c   every rank: while its engine is open
//   batch_status.c  rank 0: progress and metrics
#ifndef LAUNCHER_BATCH_H
#define LAUNCHER_BATCH_H

#include "launcher/app.h"
#include "launcher/attention_options.h"
#include "launcher/batch_journal.h"
#include "launcher/progress.h"
#include "proto/batch.h"
#include "runtime/engine/engine.h"

#include <stdio.h>

typedef struct app_batch_args {
    app_common common;
    const char *model, *model_name; // name NULL: the folder's
    int dummy;                      // index of --dummy, or APP_NO_DUMMY
    const char *input, *output, *metrics_file;
    bool resume, keep_order;
    double grace; // seconds
    int tp;       // ranks of a group; 0: those of a host
    rt_engine_options engine;
    rt_request request; // where a line does not say
    app_attention attention;
    int commit; // index in the choices of --commit
} app_batch_args;

rt_status app_batch_run(comm *c, void *args);

// What all ranks know of the job.
typedef struct app_batch_job {
    uint64_t hash;       // of input and model: makes the ids of records
    uint64_t model_hash; // of the checkpoint
    char model[256];     // its name
} app_batch_job;

// Rank 0.
rt_status app_batch_job_make(const app_batch_args *args, uint64_t input, app_batch_job *out);
// Every option that changes answers; `model` is the name.
rt_status app_batch_describe(const app_batch_args *args, const char *model, rt_str *out);
// Ends a line: "; to go on:" and the words of this process, with --resume. `alone`: the job has
// one rank.
void app_batch_say_how_to_resume(FILE *to, bool alone);

// ---- rank 0: status

typedef struct app_batch_counts {
    uint64_t lines;              // requests of the input
    uint64_t done, kept, failed; // all that are done; by earlier runs; with an error
    uint64_t prompt_tokens, shared_tokens, completion_tokens, forwards; // of this run
    double prefix_read, prefix_total;
    uint64_t running, pages, pages_used; // now, over all groups
    int groups, groups_lost;
} app_batch_counts;

typedef struct app_batch_status {
    const char *metrics_file; // NULL: none
    bool quiet;
    app_progress bar;
    double begun, told, measured; // seconds: the start, the last line, the last file
} app_batch_status;

void app_batch_status_begin(const app_batch_args *args, app_batch_status *out);
// A line on a terminal, else one a minute; the file every few seconds. `last`: both, now.
rt_status app_batch_status_tell(app_batch_status *status, const app_batch_counts *counts,
                                bool last);

// ---- rank 0: the desk

typedef struct app_desk app_desk;

// Opens the input and the journal, and fills `job`, which is borrowed. Not collective.
rt_status app_desk_open(comm *c, const app_batch_args *args, app_batch_job *job, app_desk **out);
void app_desk_close(app_desk *desk);
// Leaders' ranks, of groups of `size` ranks each.
rt_status app_desk_set_groups(app_desk *desk, int groups, int size);
// All engines are open: from now on time counts.
void app_desk_begin(app_desk *desk);
// Takes a record or a pulse.
rt_status app_desk_take(app_desk *desk, int from, const Pb__BatchLetter *letter);
// Hands out what the groups have room for. *over: the leaders were told to close.
rt_status app_desk_turn(app_desk *desk, bool *over);
// Tells the leaders to close, whatever they have.
rt_status app_desk_order_close(app_desk *desk);
// At the end: the output, when everything is done.
rt_status app_desk_finish(app_desk *desk);
// At an early end: one line for the user, what is kept and how to go on. A job that `failed`
// before it had a result leaves nothing.
void app_desk_leave(const app_desk *desk, bool failed);

// ---- leaders

typedef struct app_leader app_leader;

// `world`: where the letters go; the engine is borrowed.
rt_status app_leader_open(comm *world, rt_engine *e, const app_batch_args *args,
                          const app_batch_job *job, app_leader **out);
void app_leader_close(app_leader *leader);
// Takes work or an order.
rt_status app_leader_take(app_leader *leader, const Pb__BatchLetter *letter);
// One forward, if there is anything to do, and the pulse. *idle: there was not.
rt_status app_leader_turn(app_leader *leader, bool *idle);
bool app_leader_is_closed(const app_leader *leader); // by the order

// ---- every rank

typedef struct app_batch_rank {
    comm *world, *group; // the same when there is one group
    app_desk *desk;      // of rank 0
} app_batch_rank;

// Until the leaders are told to close.
rt_status app_batch_serve(const app_batch_rank *at, rt_engine *e, const app_batch_args *args,
                          const app_batch_job *job);

// Packs a letter and posts it.
rt_status app_batch_post(comm *c, int to, const Pb__BatchLetter *letter);

#endif
