// SPDX-License-Identifier: Apache-2.0
// The public operations on the vocabulary: checks, then the device's table.
#include "kernels/kern_check.h"

#include <limits.h>

enum { STATE_WORDS = 4, HIST_BINS = 256 };

static rt_status check_logits(const kern_check *check, const kern_buf *logits,
                              const kern_buf *sample, int rows, int shard)
{
    RT_TRY(kern_check_buf(check, "logits", logits, KERN_F32, 2,
                          (const size_t[]){(size_t)rows, (size_t)shard}));
    return kern_check_buf(check, "sample", sample, KERN_I32, 2,
                          (const size_t[]){(size_t)rows, KERN_SAMPLE_WORDS});
}

rt_status kern_vocab_norm(kern_dev *dev, const kern_vocab_norm_args *args)
{
    KERN_TRY_ENTRY(dev, args);
    const kern_check check = {"kern_vocab_norm", dev};
    KERN_TRY_INT(&check, args, rows, 0, INT_MAX);
    KERN_TRY_INT(&check, args, shard, 0, INT_MAX);
    if (args->rows == 0)
        return RT_OK;
    RT_TRY(check_logits(&check, args->logits, args->sample, args->rows, args->shard));
    KERN_TRY_BUF(&check, args, norm, KERN_F32, (size_t)args->rows, KERN_NORM_WORDS);
    return dev->ops->vocab_norm(dev, args);
}

static rt_status check_filter(const kern_check *check, const kern_vocab_filter_args *args)
{
    const size_t rows = (size_t)args->rows;
    KERN_TRY_INT(check, args, shard, 0, INT_MAX);
    KERN_TRY_INT(check, args, first_id, 0, INT_MAX - args->shard);
    RT_TRY(
        kern_check_int(check, "filter", (int)args->filter, KERN_FILTER_TOP_K, KERN_FILTER_TOP_P));
    KERN_TRY_INT(check, args, round, 0, 3);
    RT_TRY(check_logits(check, args->logits, args->sample, args->rows, args->shard));
    KERN_TRY_BUF(check, args, norm, KERN_F32, rows, KERN_NORM_WORDS);
    KERN_TRY_BUF(check, args, state, KERN_I32, rows, STATE_WORDS);
    KERN_TRY_BUF(check, args, hist, KERN_F32, rows, HIST_BINS);
    return RT_OK;
}

rt_status kern_vocab_hist(kern_dev *dev, const kern_vocab_filter_args *args)
{
    KERN_TRY_ENTRY(dev, args);
    const kern_check check = {"kern_vocab_hist", dev};
    KERN_TRY_INT(&check, args, rows, 0, INT_MAX);
    if (args->rows == 0)
        return RT_OK;
    RT_TRY(check_filter(&check, args));
    return dev->ops->vocab_hist(dev, args);
}

rt_status kern_vocab_narrow(kern_dev *dev, const kern_vocab_filter_args *args)
{
    KERN_TRY_ENTRY(dev, args);
    const kern_check check = {"kern_vocab_narrow", dev};
    KERN_TRY_INT(&check, args, rows, 0, INT_MAX);
    if (args->rows == 0)
        return RT_OK;
    RT_TRY(check_filter(&check, args));
    return dev->ops->vocab_narrow(dev, args);
}

rt_status kern_vocab_pick(kern_dev *dev, const kern_vocab_pick_args *args)
{
    KERN_TRY_ENTRY(dev, args);
    const kern_check check = {"kern_vocab_pick", dev};
    KERN_TRY_INT(&check, args, rows, 0, INT_MAX);
    KERN_TRY_INT(&check, args, shard, 0, INT_MAX);
    KERN_TRY_INT(&check, args, first_id, 0, INT_MAX - args->shard);
    if (args->rows == 0)
        return RT_OK;
    const size_t rows = (size_t)args->rows;
    RT_TRY(check_logits(&check, args->logits, args->sample, args->rows, args->shard));
    if (args->state)
        KERN_TRY_BUF(&check, args, state, KERN_I32, rows, STATE_WORDS);
    KERN_TRY_BUF(&check, args, pick, KERN_F32, rows, KERN_PICK_WORDS);
    return dev->ops->vocab_pick(dev, args);
}

rt_status kern_vocab_norm_merge(kern_dev *dev, const kern_vocab_norm_merge_args *args)
{
    KERN_TRY_ENTRY(dev, args);
    const kern_check check = {"kern_vocab_norm_merge", dev};
    KERN_TRY_INT(&check, args, rows, 0, INT_MAX);
    KERN_TRY_INT(&check, args, ranks, 1, INT_MAX);
    if (args->rows == 0)
        return RT_OK;
    const size_t rows = (size_t)args->rows;
    KERN_TRY_BUF(&check, args, norms, KERN_F32, (size_t)args->ranks, rows, KERN_NORM_WORDS);
    KERN_TRY_BUF(&check, args, norm, KERN_F32, rows, KERN_NORM_WORDS);
    return dev->ops->vocab_norm_merge(dev, args);
}

rt_status kern_vocab_choose(kern_dev *dev, const kern_vocab_choose_args *args)
{
    KERN_TRY_ENTRY(dev, args);
    const kern_check check = {"kern_vocab_choose", dev};
    KERN_TRY_INT(&check, args, rows, 0, INT_MAX);
    KERN_TRY_INT(&check, args, ranks, 1, INT_MAX);
    if (args->rows == 0)
        return RT_OK;
    const size_t rows = (size_t)args->rows;
    KERN_TRY_BUF(&check, args, picks, KERN_F32, (size_t)args->ranks, rows, KERN_PICK_WORDS);
    KERN_TRY_BUF(&check, args, norm, KERN_F32, rows, KERN_NORM_WORDS);
    KERN_TRY_BUF(&check, args, token, KERN_I32, rows);
    KERN_TRY_BUF(&check, args, confidence, KERN_F32, rows);
    KERN_TRY_BUF(&check, args, entropy, KERN_F32, rows);
    return dev->ops->vocab_choose(dev, args);
}

rt_status kern_unmask(kern_dev *dev, const kern_unmask_args *args)
{
    KERN_TRY_ENTRY(dev, args);
    const kern_check check = {"kern_unmask", dev};
    KERN_TRY_INT(&check, args, n, 0, INT_MAX);
    if (args->n == 0)
        return RT_OK;
    KERN_TRY_BUF(&check, args, windows, KERN_I32, (size_t)args->n, KERN_UNMASK_WORDS);
    // How long these are, the windows say.
    KERN_TRY_BUF(&check, args, token, KERN_I32, 0);
    KERN_TRY_BUF(&check, args, confidence, KERN_F32, 0);
    KERN_TRY_BUF(&check, args, entropy, KERN_F32, 0);
    KERN_TRY_BUF(&check, args, ids, KERN_I32, 0);
    KERN_TRY_BUF(&check, args, state, KERN_I32, 0);
    return dev->ops->unmask(dev, args);
}
