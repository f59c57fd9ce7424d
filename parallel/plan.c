// SPDX-License-Identifier: Apache-2.0
// Shards of a tensor-parallel rank.
#include "parallel/plan.h"

static rt_status check_shape(const par_shape *shape, int ranks)
{
    int heads = shape->heads, kv = shape->kv_heads;
    if (heads % kv != 0)
        return RT_FAIL(RT_ERR_UNSUPPORTED, "%d query heads do not divide over %d KV heads", heads,
                       kv);
    if (heads % ranks != 0)
        return RT_FAIL(RT_ERR_UNSUPPORTED, "%d query heads do not divide over %d ranks", heads,
                       ranks);
    if (ranks <= kv && kv % ranks != 0)
        return RT_FAIL(RT_ERR_UNSUPPORTED, "%d KV heads do not divide over %d ranks", kv, ranks);
    if (ranks > kv && ranks % kv != 0)
        return RT_FAIL(RT_ERR_UNSUPPORTED, "%d ranks do not divide over %d KV heads", ranks, kv);
    if (shape->ffn % ranks != 0)
        return RT_FAIL(RT_ERR_UNSUPPORTED, "%d MLP columns do not divide over %d ranks", shape->ffn,
                       ranks);
    return RT_OK;
}

static par_range share(int rank, int count)
{
    return (par_range){.first = rank * count, .count = count};
}

// Equal shares but the last, so that the owner of a token is a division.
static rt_status share_vocab(int vocab, int rank, int ranks, par_plan *out)
{
    const int rows = vocab / ranks + (vocab % ranks != 0);
    int64_t before_last = (int64_t)rows * (ranks - 1);
    if (before_last >= vocab)
        return RT_FAIL(RT_ERR_UNSUPPORTED,
                       "%d vocabulary rows leave none for the last of %d ranks (%d each)", vocab,
                       ranks, rows);
    out->vocab_rows = rows;
    out->vocab = share(rank, rows);
    if (rank == ranks - 1)
        out->vocab.count = vocab - out->vocab.first;
    return RT_OK;
}

rt_status par_plan_make(const par_shape *shape, int rank, int ranks, par_plan *out)
{
    RT_CHECK_ARG(shape && out && ranks >= 1 && rank >= 0 && rank < ranks);
    RT_CHECK_ARG(shape->heads >= 1 && shape->kv_heads >= 1 && shape->ffn >= 1 && shape->vocab >= 1);
    RT_TRY(check_shape(shape, ranks));

    // A rank's query heads lie within one group when the KV head is replicated:
    // group / (heads per rank) = replicas, a whole number by the checks above.
    int kv = shape->kv_heads;
    int replicas = ranks > kv ? ranks / kv : 1;
    par_plan plan = {
        .rank = rank,
        .ranks = ranks,
        .heads = share(rank, shape->heads / ranks),
        .kv_heads = replicas > 1 ? share(rank / replicas, 1) : share(rank, kv / ranks),
        .kv_replicas = replicas,
        .ffn = share(rank, shape->ffn / ranks),
    };
    RT_TRY(share_vocab(shape->vocab, rank, ranks, &plan));
    *out = plan;
    return RT_OK;
}
