// SPDX-License-Identifier: Apache-2.0
// The inside of the engine, shared by its files:
//   engine.c     opens and closes everything, on all ranks
//   device.c     which device a rank drives
//   alike.c      whether all ranks run the same
//   memory.c     what that takes, and how many KV pages there are
//   step.c       executes one step command, the same on every rank
//   graphs.c     forwards that were recorded
//   command.c    rank 0: decides the next step command
//   pagebook.c   rank 0: who holds which KV pages
//   needs.c      how many KV pages given requests need, before an engine is open
//   scheduler.c  rank 0: the queue, one step, what follows from it
//   session.c    rank 0: text, stops, results of one request
//   logits.c     rank 0: the logits of a prefill
//   probe.c      the logits of steps against dense attention's
//   trace.c      rank 0: the file of page plans
#ifndef RUNTIME_ENGINE_ENGINE_INT_H
#define RUNTIME_ENGINE_ENGINE_INT_H

#include "runtime/engine/batch.h"
#include "runtime/engine/command.h"
#include "runtime/engine/denoise.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/graphs.h"
#include "runtime/engine/kvcache.h"
#include "runtime/engine/pagebook.h"
#include "runtime/engine/probe.h"
#include "runtime/engine/session.h"
#include "runtime/engine/slot.h"
#include "runtime/engine/trace.h"
#include "runtime/model/model.h"
#include "runtime/text/tokenizer.h"

struct rt_engine {
    rt_engine_options options; // as in force: defaults filled in
    rt_model_config config;
    par_group group;
    par_plan plan;
    int prefill_chunk;
    int pages; // KV pages
    rt_load_progress loading;
    uint64_t stored;     // bytes of the checkpoint that `loading` will count
    rt_checkpoint *ckpt; // while it is loaded; NULL: random weights

    kern_dev *dev;
    rt_model *model;
    losa_state *attention;
    rt_kvcache kv;
    rt_batch batch;
    rt_denoise *denoise;
    rt_slot *slots;    // [max_sessions]
    rt_graphs *graphs; // NULL: forwards are not recorded
    rt_probe *probe;   // NULL: steps are not probed
    kern_buf *counts;  // shared: the plan counters of the last forward, i64 [segs, KERN_COUNT_N]

    // The last step's released sessions: results of all ranks, [released, ranks].
    Pb__Result **results;
    int results_released;

    // Rank 0 only.
    rt_pagebook book;   // of the pages of `kv`
    rt_command command; // the one being executed
    rt_tokenizer *tokenizer;
    rt_chat_template chat;
    rt_trace *trace;           // NULL: none
    rt_session *sessions;      // list in order of submission
    rt_session **sessions_end; // where the next one goes
    rt_session **running;      // [max_sessions], by slot; NULL: the slot is free
    int leaving;               // sessions that this step delivers
    uint32_t next_session;
    uint64_t sequence;
    double step_began; // the command that is executed; everybody in it was admitted before
    double forward_seconds;

    // Where rank 0 receives the rows of a logits step.
    rt_logits_fn *emit;
    void *emit_ctx;
    kern_buf *gathered;     // f32 [ranks, RT_LOGITS_ROWS, widest shard]; see rt_logits_open
    kern_buf *logits_index; // i32 [RT_LOGITS_ROWS], likewise
};

enum { RT_LOGITS_ROWS = 64 }; // rows of logits gathered at a time

bool rt_engine_is_root(const rt_engine *e);
// Threads of this rank.
int rt_engine_threads(const rt_engine_options *options, const comm *c);

// The device that a rank would take.
typedef struct rt_seat {
    kern_kind kind;
    unsigned char id[KERN_ID_BYTES]; // of a GPU
    int index, seen;                 // its number, of so many that the rank sees
} rt_seat;
// Whether all of them are of one kind, and all GPUs are different.
rt_status rt_seats_check(const rt_seat *seats, int ranks, int local_ranks);

rt_status rt_engine_read_config(const rt_engine_options *options, rt_model_config *out);
rt_status rt_engine_open_tokenizer(rt_engine *e);

// The parts of opening: checks the options and reads headers; then, on e->dev and with
// e->pages, makes every buffer and loads the weights. rt_engine_empty frees what there is, but
// for the device and the engine itself.
rt_status rt_engine_configure(rt_engine *e, const rt_engine_options *options);
rt_status rt_engine_fill(rt_engine *e);
void rt_engine_empty(rt_engine *e);
// Collective, between the two: refuses ranks that are not configured alike.
rt_status rt_engine_compare(const rt_engine *e);
// Collective, between the two: sets e->pages, or refuses for want of memory.
rt_status rt_engine_size(rt_engine *e);

// Rank 0: checks, broadcasts and executes a command; the others receive theirs.
rt_status rt_step_send(rt_engine *e, const Pb__Step *step);
rt_status rt_step_receive(rt_engine *e, Pb__Step **out);
rt_status rt_step_execute(rt_engine *e, const Pb__Step *step);
void rt_step_drop_results(rt_engine *e);

// The buffers of the next two, once: with an engine that probes, whose memory plan counts them,
// or by the first logits step.
rt_status rt_logits_open(rt_engine *e);
// All ranks: the logits of rows of the last forward, handed to `emit` on rank 0.
rt_status rt_logits_rows(rt_engine *e, const int32_t *index, int rows, rt_logits_fn *emit,
                         void *ctx);
// Those of its first `rows` rows, handed to e->emit.
rt_status rt_logits_gather(rt_engine *e, int rows);

// Pages a request of this span needs.
int rt_engine_pages(const rt_engine *e, int span);

#endif
