// SPDX-License-Identifier: Apache-2.0
// The run of losa batch on every rank; no rank waits for another group.
#include "launcher/batch.h"
#include "launcher/loading.h"
#include "launcher/model_options.h"

#include "runtime/base/mem.h"
#include "runtime/io/model_hash.h"

#include <stdio.h>

// An engine whose group is lost cannot be closed: its ranks would have to take part.
static rt_status run_group(const app_batch_rank *at, const app_batch_args *args,
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
    const bool quiet = args->common.quiet || comm_rank(at->world) != 0; // one group draws
    RT_TRY(comm_agree(at->world, app_engine_open(&options, at->group, quiet, &e)));
    const rt_status status = app_batch_serve(at, e, args, job);
    if (!comm_is_lost(at->world, 0)) // else its buffers are still MPI's, or the GPU's
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

// Groups that answer by other weights would never be noticed: no token of theirs is compared.
static rt_status check_checkpoint(const app_batch_rank *at, const app_batch_args *args,
                                  const app_batch_job *job)
{
    uint64_t hash = job->model_hash;
    if (args->model)
        RT_TRY(rt_model_hash(args->model, &hash));
    if (hash == job->model_hash)
        return RT_OK;
    return RT_FAIL(RT_ERR_INVALID,
                   "rank %d has another checkpoint than rank 0: compare the files of their folders",
                   comm_rank(at->world));
}

static rt_status form_groups(app_batch_rank *at, const app_batch_args *args)
{
    int size;
    RT_TRY(rt_engine_check_devices(&args->engine, at->world));
    RT_TRY(group_size(at->world, args, &size));
    at->group = at->world;
    if (size < comm_ranks(at->world))
        RT_TRY(comm_split(at->world, size, &at->group));
    rt_status status = RT_OK;
    if (at->desk)
        status = app_desk_set_groups(at->desk, comm_ranks(at->world) / size, size);
    return comm_agree(at->world, status);
}

// ---- the run -----------------------------------------------------------------------------

// Of a rank that ends the job of several.
static void say_last_words(void *ctx)
{
    const app_batch_args *args = ctx;
    fprintf(stderr, "losa: what was finished is kept in %s.journal", args->output);
    app_batch_say_how_to_resume(stderr, false);
}

static rt_status run_all(app_batch_rank *at, app_batch_args *args, app_batch_job *job)
{
    static const double CLOSING_SECONDS = 5; // after the grace
    app_catch_signals();
    comm_watch_signal(at->world, app_signal, args->grace + CLOSING_SECONDS);
    comm_watch_end(at->world, say_last_words, args);
    RT_TRY(comm_ctl_bcast(at->world, 0, job, sizeof *job));
    rt_status status = comm_agree(at->world, check_checkpoint(at, args, job));
    if (status == RT_OK)
        status = form_groups(at, args);
    if (status == RT_OK)
        status = run_group(at, args, job);
    if (status == RT_OK && at->desk)
        status = app_desk_finish(at->desk);
    if (status != RT_OK && at->desk)
        app_desk_leave(at->desk, status != RT_ERR_CANCELLED);
    comm_watch_end(at->world, NULL, NULL);
    // Those that are lost agree to nothing: rank 0 ends them with the job.
    return comm_has_lost(at->world) ? status : comm_agree(at->world, status);
}

rt_status app_batch_run(comm *c, void *target)
{
    app_batch_rank at = {.world = c};
    app_batch_args *args = target;
    app_batch_job job;
    rt_status status = RT_OK;
    if (comm_rank(c) == 0)
        status = app_desk_open(c, args, &job, &at.desk);
    status = comm_agree(c, status);
    if (status == RT_OK)
        status = run_all(&at, args, &job);
    if (at.group != c && !comm_has_lost(c))
        comm_close(at.group);
    app_desk_close(at.desk);
    return status;
}
