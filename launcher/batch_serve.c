// SPDX-License-Identifier: Apache-2.0
// A rank while its engine is open. The first of a group is its leader; rank 0 takes turns between
// that and the desk. What fails of the two ends alone, and says why: the groups close when it
// is the desk; when it is a leader its group is lost, and the desk hands its lines out again.
#include "launcher/batch.h"

#include "runtime/base/clock.h"

#include <stdio.h>

static const double NAP_SECONDS = 1e-3; // of a leader that has nothing to do

typedef struct service {
    app_batch_rank at;
    app_leader *leader; // NULL: rank 0 lost its group
    bool over;          // the leaders were told to close
    rt_status failed;   // of the desk, with its message
    char cause[1024];
} service;

typedef enum part { DESK, LEADER } part;

// ---- failures ------------------------------------------------------------------------------

// A failure that the others of the group do not know of ends the group. Returns on rank 0
// alone, or where there is one rank.
static rt_status abandon(const app_batch_rank *at, rt_status status)
{
    if (at->group == at->world)
        return app_abandon(at->world, status);
    if (!comm_is_lost(at->world, 0)) // else the heart said so
        fprintf(stderr, "losa: rank %d: %s\n", comm_rank(at->world), rt_last_error());
    comm_abort(at->group);
    return status;
}

static rt_status end_leader(service *s, rt_status status)
{
    status = abandon(&s->at, status);
    if (s->at.group == s->at.world)
        return status;
    app_leader_close(s->leader);
    s->leader = NULL;
    return RT_OK;
}

static rt_status end_desk(service *s, rt_status status)
{
    snprintf(s->cause, sizeof s->cause, "%s", rt_last_error());
    s->failed = status;
    s->over = true;
    status = app_desk_order_close(s->at.desk);
    return status == RT_OK ? RT_OK : app_abandon(s->at.world, status);
}

// Takes what a part returned. An error comes back only where nothing is left to go on.
static rt_status settle(service *s, part who, rt_status status)
{
    if (status == RT_OK)
        return RT_OK;
    return who == DESK ? end_desk(s, status) : end_leader(s, status);
}

// ---- letters -------------------------------------------------------------------------------

// What has ended takes no more.
static rt_status take_letter(service *s, int from, const rt_str *bytes, part *who)
{
    Pb__BatchLetter *letter;
    rt_status status = RT_OK;
    RT_TRY(pb_letter_unpack(bytes->data, bytes->len, &letter));
    *who = letter->work || letter->has_order ? LEADER : DESK;
    if (*who == LEADER && s->leader)
        status = app_leader_take(s->leader, letter);
    else if (*who == DESK && s->at.desk && s->failed == RT_OK)
        status = app_desk_take(s->at.desk, from, letter);
    pb_letter_free(letter);
    return status;
}

// *who: what failed. Without mail a leader is no use.
static rt_status take_letters(service *s, bool *some, part *who)
{
    rt_str bytes = {0};
    int from;
    rt_status status;
    *some = false;
    for (;;) {
        *who = s->leader ? LEADER : DESK;
        RT_TRY_GOTO(status, comm_fetch(s->at.world, &from, &bytes), free_bytes);
        if (from < 0)
            break;
        *some = true;
        RT_TRY_GOTO(status, take_letter(s, from, &bytes, who), free_bytes);
    }
free_bytes:
    rt_str_free(&bytes);
    return status;
}

// ---- turns ---------------------------------------------------------------------------------

static bool is_over(const service *s)
{
    return s->leader ? app_leader_is_closed(s->leader) : s->over;
}

static rt_status take_turns(service *s)
{
    while (!is_over(s)) {
        part who;
        bool some, idle = true;
        const rt_status status = take_letters(s, &some, &who);
        RT_TRY(settle(s, who, status));
        if (s->at.desk && !s->over)
            RT_TRY(settle(s, DESK, app_desk_turn(s->at.desk, &s->over)));
        if (s->leader)
            RT_TRY(settle(s, LEADER, app_leader_turn(s->leader, &idle)));
        if (idle && !some)
            rt_clock_sleep(NAP_SECONDS);
    }
    return RT_OK;
}

rt_status app_batch_serve(const app_batch_rank *at, rt_engine *e, const app_batch_args *args,
                          const app_batch_job *job)
{
    service s = {.at = *at};
    if (comm_rank(at->group) != 0) {
        const rt_status status = rt_engine_worker(e);
        return status == RT_OK ? RT_OK : abandon(at, status);
    }
    RT_TRY(settle(&s, LEADER, app_leader_open(at->world, e, args, job, &s.leader)));
    if (at->desk)
        app_desk_begin(at->desk);
    const rt_status status = take_turns(&s);
    app_leader_close(s.leader);
    RT_TRY(status);
    return s.failed == RT_OK ? RT_OK : RT_FAIL(s.failed, "%s", s.cause);
}
