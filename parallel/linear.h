// SPDX-License-Identifier: Apache-2.0
// Tensor-parallel linears (Megatron-LM, arXiv 1909.08053, section 3).
#ifndef PARALLEL_LINEAR_H
#define PARALLEL_LINEAR_H

#include "comm/comm.h"
#include "kernels/kern.h"

// The device and communicator of one tensor-parallel group; borrowed.
typedef struct par_group {
    kern_dev *dev;
    comm *comm;
} par_group;

// Column-parallel linears are kern_linear on a rank's own output columns.
// Row-parallel: each rank multiplies its slice of k; the results are summed over the ranks
// and, as norm->add, added to the residual stream norm->x, which is then complete and the
// same everywhere. args->y is norm->add and worthless afterwards. No bias.
rt_status par_linear_row(const par_group *g, const kern_linear_args *args,
                         const kern_rmsnorm_args *norm);
// Vocab-parallel embedding: every token's row comes from the rank that owns it.
rt_status par_embed(const par_group *g, const kern_embed_args *args);

#endif
