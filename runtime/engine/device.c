// SPDX-License-Identifier: Apache-2.0
// Which device of its host a rank drives.
#include "runtime/engine/engine_int.h"

#include "runtime/base/mem.h"
#include "runtime/base/pool.h"

#include <string.h>

static const char *const KIND_NAME[] = {[KERN_CPU] = "the CPU", [KERN_CUDA] = "a GPU"};

int rt_engine_threads(const rt_engine_options *o, const comm *c)
{
    const int share = rt_pool_cores() / comm_local_ranks(c);
    return o->threads ? o->threads : share > 1 ? share : 1;
}

// A rank takes the GPU of its number on the host. One that sees fewer, as where every rank is
// given its own and sees it as number 0, counts round; rt_seats_check finds those that meet.
static rt_status choose_seat(const rt_engine_options *options, const comm *c, rt_seat *out)
{
    *out = (rt_seat){.kind = options->device};
    if (options->device == KERN_CPU)
        return RT_OK;
    const int seen = kern_device_count(options->device);
    if (seen == 0)
        return RT_FAIL(RT_ERR_UNSUPPORTED, "device cuda: no GPU on this host, or no driver");
    out->index = comm_local_rank(c) % seen;
    out->seen = seen;
    return kern_device_id(options->device, out->index, out->id);
}

// By default a rank takes a GPU where it sees one.
static rt_status check_kinds(const rt_seat *seats, int ranks)
{
    for (int r = 1; r < ranks; r++)
        if (seats[r].kind != seats[0].kind)
            return RT_FAIL(RT_ERR_INVALID,
                           "device: rank %d would take %s, rank 0 %s: all ranks need one of a kind",
                           r, KIND_NAME[seats[r].kind], KIND_NAME[seats[0].kind]);
    return RT_OK;
}

rt_status rt_seats_check(const rt_seat *seats, int ranks, int local_ranks)
{
    RT_TRY(check_kinds(seats, ranks));
    if (seats[0].kind == KERN_CPU)
        return RT_OK;
    for (int a = 0; a < ranks; a++)
        for (int b = a + 1; b < ranks; b++)
            if (memcmp(seats[a].id, seats[b].id, sizeof seats[a].id) == 0)
                return RT_FAIL(
                    RT_ERR_UNSUPPORTED,
                    "device cuda: ranks %d and %d would share a GPU (number %d of the %d "
                    "that rank %d sees), and every rank needs one of its own; there are "
                    "%d ranks on this host",
                    a, b, seats[a].index, seats[a].seen, a, local_ranks);
    return RT_OK;
}

rt_status rt_engine_check_devices(const rt_engine_options *options, comm *c)
{
    rt_seat mine, *all = NULL;
    rt_status status = choose_seat(options, c, &mine);
    if (status == RT_OK)
        status = RT_ALLOC(all, (size_t)comm_ranks(c), "devices of the ranks");
    status = comm_agree(c, status);
    if (status == RT_OK)
        status = comm_ctl_allgather(c, &mine, sizeof mine, all);
    if (status == RT_OK)
        status = rt_seats_check(all, comm_ranks(c), comm_local_ranks(c));
    rt_free(all);
    return status;
}

rt_status rt_engine_device(const rt_engine_options *options, comm *c, kern_dev **out)
{
    RT_TRY(rt_engine_check_devices(options, c));
    rt_seat seat;
    rt_status status = choose_seat(options, c, &seat);
    const kern_dev_options dev = {
        .kind = options->device,
        .index = seat.index,
        .threads = rt_engine_threads(options, c),
        .precision = options->precision,
    };
    if (status == RT_OK)
        status = kern_dev_open(&dev, out);
    return comm_agree(c, status);
}
