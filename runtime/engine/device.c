// SPDX-License-Identifier: Apache-2.0
// Which device of its host a rank drives.
#include "runtime/engine/engine_int.h"

#include "runtime/base/pool.h"

int rt_engine_threads(const rt_engine_options *o, const comm *c)
{
    const int share = rt_pool_cores() / comm_local_ranks(c);
    return o->threads ? o->threads : share > 1 ? share : 1;
}

rt_status rt_engine_device(const rt_engine_options *options, const comm *c, kern_dev **out)
{
    const int local = comm_local_ranks(c), there = kern_device_count(options->device);
    if (options->device == KERN_CUDA && local > there)
        return RT_FAIL(RT_ERR_UNSUPPORTED,
                       "device cuda: %d ranks on this host, %d GPUs: every "
                       "rank needs one of its own",
                       local, there);
    const kern_dev_options dev = {
        .kind = options->device,
        .index = options->device == KERN_CUDA ? comm_local_rank(c) : 0,
        .threads = rt_engine_threads(options, c),
        .precision = options->precision,
    };
    return kern_dev_open(&dev, out);
}
