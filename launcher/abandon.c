// SPDX-License-Identifier: Apache-2.0
#include "launcher/app.h"

#include "runtime/base/clock.h"

#include <stdio.h>

static const double GRACE_SECONDS = 0.5; // for rank 0 to report a common cause first

rt_status app_abandon(comm *c, rt_status status)
{
    if (comm_ranks(c) == 1)
        return status;
    // A cause that all ranks share is reported by rank 0, which then ends the others.
    if (comm_rank(c) != 0)
        rt_clock_sleep(GRACE_SECONDS);
    if (comm_rank(c) == 0 || !app_signal())
        fprintf(stderr, "losa: rank %d: %s\n", comm_rank(c), rt_last_error());
    comm_abort(c);
    return status;
}
