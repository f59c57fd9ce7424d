// SPDX-License-Identifier: Apache-2.0
// The run of losa batch on every rank. Rank 0 takes turns between the desk and, as the leader
// of the first group, its engine; no rank waits for another group.
#include "launcher/batch.h"
#include "launcher/loading.h"
#include "launcher/model_options.h"

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"

#include <stdio.h>

static const double NAP_SECONDS = 1e-3; // of a leader that has nothing to do

// What leads a group, and the job on rank 0.
typedef struct lead {
    comm *world, *group; // the same when there is one group
    app_desk *desk;      // rank 0
    app_leader *leader;
    bool over;        // the leaders were told to close
    rt_status failed; // of the desk, with its message
    char cause[1024];
} lead;

// Rank 0 whose own group is lost leads no more.
static rt_status take_letter(lead *l, int from, const rt_str *bytes)
{
    Pb__BatchLetter *letter;
    RT_TRY(pb_letter_unpack(bytes->data, bytes->len, &letter));
    const bool for_leader = letter->work || letter->has_order;
    rt_status status = RT_OK;
    if (for_leader && l->leader)
        status = app_leader_take(l->leader, letter);
    else if (!for_leader && l->desk)
        status = app_desk_take(l->desk, from, letter);
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

// A failure that the others of the group do not know of ends the group. Returns on rank 0
// alone, or where there is one rank.
static rt_status abandon(const lead *l, rt_status status)
{
    if (l->group == l->world)
        return app_abandon(l->world, status);
    if (!comm_is_lost(l->world, 0)) // else the heart said so
        fprintf(stderr, "losa: rank %d: %s\n", comm_rank(l->world), rt_last_error());
    comm_abort(l->group);
    return status;
}

static rt_status leader_turn(lead *l, bool *idle)
{
    rt_status status = app_leader_turn(l->leader, idle);
    if (status == RT_OK)
        return RT_OK;
    status = abandon(l, status);
    if (l->group == l->world)
        return status;
    app_leader_close(l->leader); // rank 0 keeps the desk
    l->leader = NULL;
    return RT_OK;
}

static bool is_over(const lead *l)
{
    return l->leader ? app_leader_is_closed(l->leader) : l->over;
}

static rt_status lead_group(lead *l)
{
    if (l->desk)
        app_desk_begin(l->desk);
    while (!is_over(l)) {
        bool some, idle = true;
        RT_TRY(take_letters(l, &some));
        if (l->desk && !l->over)
            RT_TRY(desk_turn(l));
        if (l->leader)
            RT_TRY(leader_turn(l, &idle));
        if (idle && !some)
            rt_clock_sleep(NAP_SECONDS);
    }
    return RT_OK;
}

static rt_status work(lead *l, rt_engine *e, const app_batch_args *args, const app_batch_job *job)
{
    if (comm_rank(l->group) != 0) {
        const rt_status status = rt_engine_worker(e);
        return status == RT_OK ? RT_OK : abandon(l, status);
    }
    RT_TRY(app_leader_open(l->world, e, args, job, &l->leader));
    const rt_status status = lead_group(l);
    app_leader_close(l->leader);
    return status;
}

static rt_status finish(const lead *l)
{
    if (!l->desk)
        return RT_OK;
    if (l->failed != RT_OK)
        return RT_FAIL(l->failed, "%s", l->cause);
    return app_desk_finish(l->desk);
}

// An engine whose group is lost cannot be closed: its ranks would have to take part.
static rt_status run_group(lead *l, const app_batch_args *args, const app_batch_job *job)
{
    rt_engine *e;
    rt_model_config random;
    rt_engine_options options = args->engine;
    const rt_config_overrides given = {options.block_length, options.mask_id};
    if (args->dummy >= 0) {
        RT_TRY(app_model_config(NULL, args->dummy, &given, &random));
        options.dummy = &random;
    }
    const bool quiet = args->common.quiet || comm_rank(l->world) != 0; // one group draws
    RT_TRY(comm_agree(l->world, app_engine_open(&options, l->group, quiet, &e)));
    const rt_status status = work(l, e, args, job);
    if (!comm_is_lost(l->world, 0))
        rt_engine_close(e);
    return status;
}

// ---- groups ------------------------------------------------------------------------------

// Ranks of a group: those of a host, unless they are given.
static rt_status group_size(comm *c, const app_batch_args *args, int *out)
{
    const int ranks = comm_ranks(c), local = comm_local_ranks(c);
    int *all;
    RT_TRY(RT_ALLOC(all, (size_t)ranks, "hosts"));
    rt_status status = comm_ctl_allgather(c, &local, sizeof local, all);
    for (int r = 1; status == RT_OK && args->tp == 0 && r < ranks; r++)
        if (all[r] != all[0])
            status = RT_FAIL(RT_ERR_INVALID,
                             "hosts have %d and %d ranks: say by --tp how many "
                             "make a group",
                             all[0], all[r]);
    *out = args->tp ? args->tp : all[0];
    rt_free(all);
    RT_TRY(status);
    if (ranks % *out != 0)
        return RT_FAIL(RT_ERR_INVALID, "--tp %d: %d ranks do not make groups of %d", *out, ranks,
                       *out);
    return RT_OK;
}

static rt_status form_groups(lead *l, const app_batch_args *args)
{
    int size;
    RT_TRY(rt_engine_check_devices(&args->engine, l->world));
    RT_TRY(group_size(l->world, args, &size));
    l->group = l->world;
    if (size < comm_ranks(l->world))
        RT_TRY(comm_split(l->world, size, &l->group));
    rt_status status = RT_OK;
    if (l->desk)
        status = app_desk_set_groups(l->desk, comm_ranks(l->world) / size, size);
    return comm_agree(l->world, status);
}

// ---- the run -----------------------------------------------------------------------------

static void say_last_words(void *ctx)
{
    const app_batch_args *args = ctx;
    fprintf(stderr, "losa: what was finished is kept in %s.journal; to go on:", args->output);
    app_batch_print_command(stderr);
}

static rt_status run_all(lead *l, app_batch_args *args, app_batch_job *job)
{
    static const double CLOSING_SECONDS = 5; // after the grace
    app_catch_signals();
    comm_watch_signal(l->world, app_signal, args->grace + CLOSING_SECONDS);
    comm_watch_end(l->world, say_last_words, args);
    RT_TRY(comm_ctl_bcast(l->world, 0, job, sizeof *job));
    RT_TRY(form_groups(l, args));
    rt_status status = run_group(l, args, job);
    if (status == RT_OK)
        status = finish(l);
    if (status != RT_OK && l->desk)
        app_desk_say_how_to_resume(l->desk);
    comm_watch_end(l->world, NULL, NULL);
    // Those that are lost agree to nothing: rank 0 ends them with the job.
    return comm_has_lost(l->world) ? status : comm_agree(l->world, status);
}

rt_status app_batch_run(comm *c, void *target)
{
    lead l = {.world = c};
    app_batch_args *args = target;
    app_batch_job job;
    rt_status status = RT_OK;
    if (comm_rank(c) == 0)
        status = app_desk_open(c, args, &job, &l.desk);
    status = comm_agree(c, status);
    if (status == RT_OK)
        status = run_all(&l, args, &job);
    if (l.group != c && !comm_has_lost(c))
        comm_close(l.group);
    app_desk_close(l.desk);
    return status;
}
