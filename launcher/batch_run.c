// SPDX-License-Identifier: Apache-2.0
// The run of losa batch on every rank. Rank 0 takes turns between the desk and, as the leader
// of the first group, its engine; no rank waits for another group.
#include "launcher/batch.h"
#include "launcher/model_options.h"

#include "runtime/base/clock.h"

#include <stdio.h>

static const double NAP_SECONDS = 1e-3; // of a leader that has nothing to do

// What leads a group, and the job on rank 0.
typedef struct lead {
    comm *world;
    app_desk *desk; // rank 0
    app_leader *leader;
    bool over;        // the leaders were told to close
    rt_status failed; // of the desk, with its message
    char cause[1024];
} lead;

static rt_status take_letter(lead *l, int from, const rt_str *bytes)
{
    Pb__BatchLetter *letter;
    RT_TRY(pb_letter_unpack(bytes->data, bytes->len, &letter));
    rt_status status;
    if (letter->work || letter->has_order)
        status = app_leader_take(l->leader, letter);
    else if (l->desk)
        status = app_desk_take(l->desk, from, letter);
    else
        status = RT_FAIL(RT_ERR_INTERNAL, "rank %d wrote to the wrong rank", from);
    pb_letter_free(letter);
    return status;
}

static rt_status take_letters(lead *l, bool *some)
{
    rt_str bytes = {0};
    int from;
    rt_status status;
    *some = false;
    for (;;) {
        RT_TRY_GOTO(status, comm_fetch(l->world, &from, &bytes), free_bytes);
        if (from < 0)
            break;
        *some = true;
        RT_TRY_GOTO(status, take_letter(l, from, &bytes), free_bytes);
    }
free_bytes:
    rt_str_free(&bytes);
    return status;
}

// The job ends in order: what the journal has stays, the groups close.
static rt_status give_up(lead *l, rt_status status)
{
    snprintf(l->cause, sizeof l->cause, "%s", rt_last_error());
    l->failed = status;
    return app_desk_order_close(l->desk);
}

static rt_status desk_turn(lead *l)
{
    const rt_status status = app_desk_turn(l->desk, &l->over);
    if (status == RT_OK)
        return RT_OK;
    l->over = true;
    return give_up(l, status);
}

static rt_status lead_group(lead *l)
{
    while (!app_leader_is_closed(l->leader)) {
        bool some, idle;
        RT_TRY(take_letters(l, &some));
        if (l->desk && !l->over)
            RT_TRY(desk_turn(l));
        RT_TRY(app_leader_turn(l->leader, &idle));
        if (idle && !some)
            rt_clock_sleep(NAP_SECONDS);
    }
    return RT_OK;
}

// A failure that the others of the group do not know of ends the group.
static rt_status work(lead *l, comm *group, rt_engine *e, const app_batch_args *args,
                      const app_batch_job *job)
{
    if (comm_rank(group) != 0) {
        const rt_status status = rt_engine_worker(e);
        return status == RT_OK ? RT_OK : app_abandon(group, status);
    }
    RT_TRY(app_leader_open(l->world, e, args, job, &l->leader));
    const rt_status status = lead_group(l);
    app_leader_close(l->leader);
    return status == RT_OK ? RT_OK : app_abandon(group, status);
}

static rt_status finish(const lead *l)
{
    if (!l->desk)
        return RT_OK;
    if (l->failed != RT_OK)
        return RT_FAIL(l->failed, "%s", l->cause);
    return app_desk_finish(l->desk);
}

static rt_status run_group(lead *l, comm *group, const app_batch_args *args,
                           const app_batch_job *job)
{
    rt_engine *e;
    rt_model_config random;
    rt_engine_options options = args->engine;
    const rt_config_overrides given = {options.block_length, options.mask_id};
    if (args->dummy >= 0) {
        RT_TRY(app_model_config(NULL, args->dummy, &given, &random));
        options.dummy = &random;
    }
    RT_TRY(comm_agree(l->world, rt_engine_open(&options, group, &e)));
    const rt_status status = work(l, group, e, args, job);
    rt_engine_close(e);
    return status;
}

static rt_status run(lead *l, const app_batch_args *args, app_batch_job *job)
{
    rt_status status = RT_OK;
    if (comm_rank(l->world) == 0)
        status = app_desk_open(l->world, args, job, &l->desk);
    RT_TRY(comm_agree(l->world, status));
    RT_TRY(comm_ctl_bcast(l->world, 0, job, sizeof *job));
    if (l->desk)
        status = app_desk_set_groups(l->desk, 1, comm_ranks(l->world));
    RT_TRY(comm_agree(l->world, status));
    app_catch_signals();
    status = run_group(l, l->world, args, job);
    if (status == RT_OK)
        status = finish(l);
    if (status != RT_OK && l->desk)
        app_desk_say_how_to_resume(l->desk);
    return comm_agree(l->world, status);
}

rt_status app_batch_run(comm *c, void *target)
{
    lead l = {.world = c};
    app_batch_job job;
    const rt_status status = run(&l, target, &job);
    app_desk_close(l.desk);
    return status;
}
