// SPDX-License-Identifier: Apache-2.0
// Tensor-parallel linears: a kernel on the local shard, then one sum.
#include "parallel/linear.h"

rt_status par_linear_row(const par_group *g, const kern_linear_args *args,
                         const kern_rmsnorm_args *norm)
{
    RT_CHECK_ARG(g && args && norm && norm->add == args->y);
    RT_CHECK_ARG(!args->bias); // every rank would add it
    RT_TRY(kern_linear(g->dev, args));
    return comm_sum_norm(g->comm, g->dev, norm);
}

rt_status par_embed(const par_group *g, const kern_embed_args *args)
{
    RT_CHECK_ARG(g && args);
    // Exact: all ranks but the owner of the row contribute zeros.
    RT_TRY(kern_embed(g->dev, args));
    return comm_allreduce(g->comm, COMM_HIDDEN, args->out, (size_t)args->rows * (size_t)args->cols,
                          COMM_SUM);
}
