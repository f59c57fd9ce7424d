// SPDX-License-Identifier: Apache-2.0
// The public operations of the page plan: checks, then the device's table.
#include "kernels/cuda/launch.h"
#include "kernels/kern_check.h"

#include <limits.h>

// What a GPU keeps of a segment: of every active row and head a bound of every page, and the
// maximum and sum of every run of pages; of every row and list the best pages of its pieces.
static size_t cuda_plan_bytes(const kern_plan_limits *limits)
{
    enum { FOURS = 4, PAIR = 2 * sizeof(float) };
    const size_t pages = (size_t)limits->max_pages, runs = pages / KERN_CUDA_PLAN_RUN + 1;
    const size_t head_bytes =
        (size_t)limits->heads * ((pages + FOURS) * sizeof(float) + runs * PAIR);
    const size_t best = (size_t)KERN_CUDA_PLAN_PIECES * KERN_CUDA_PLAN_BEST;
    const size_t list_bytes = (size_t)limits->lists * best * PAIR;
    return (size_t)limits->act_cap * (head_bytes + list_bytes) + PAIR;
}

// A thread of the CPU scores the pages of a prefix in its scratch.
static size_t cpu_plan_bytes(const kern_dev *dev, const kern_plan_limits *limits)
{
    if (limits->act_cap == 0)
        return 0;
    const size_t floats = kern_cpu_score_floats(limits->head_dim, limits->max_pages);
    return (size_t)dev->threads * floats * sizeof(float);
}

static rt_status check_cuda_limits(const kern_plan_limits *limits)
{
    if (limits->head_dim > KERN_CUDA_MAX_DIM)
        return RT_FAIL(RT_ERR_UNSUPPORTED, "head_dim is %d, a GPU takes up to %d", limits->head_dim,
                       KERN_CUDA_MAX_DIM);
    if (limits->max_pages > KERN_GPU_PAGES_MAX)
        return RT_FAIL(RT_ERR_LIMIT,
                       "page plan: %d pages of a request, a GPU chooses among %d at most: take "
                       "larger pages or a shorter context",
                       limits->max_pages, KERN_GPU_PAGES_MAX);
    if (cuda_plan_bytes(limits) > KERN_CUDA_PLAN_BYTES)
        return RT_FAIL(RT_ERR_LIMIT,
                       "page plan: %.1f GB of bounds of a request's block, a GPU keeps %.1f at "
                       "most: take larger pages or a shorter context",
                       (double)cuda_plan_bytes(limits) * 1e-9, KERN_CUDA_PLAN_BYTES * 1e-9);
    return RT_OK;
}

rt_status kern_reserve_plans(kern_dev *dev, const kern_plan_limits *limits)
{
    KERN_TRY_ENTRY(dev, limits);
    const kern_check check = {"kern_reserve_plans", dev};
    KERN_TRY_INT(&check, limits, act_cap, 0, INT_MAX);
    KERN_TRY_INT(&check, limits, heads, 1, INT_MAX);
    KERN_TRY_INT(&check, limits, lists, 1, INT_MAX);
    KERN_TRY_INT(&check, limits, head_dim, 1, INT_MAX);
    KERN_TRY_INT(&check, limits, max_pages, 0, INT_MAX);
    if (dev->recording)
        return RT_FAIL(RT_ERR_INVALID, "kern_reserve_plans: the device is recording");
    if (dev->kind == KERN_CUDA)
        RT_TRY(check_cuda_limits(limits));
    return dev->ops->reserve(dev, dev->kind == KERN_CUDA ? cuda_plan_bytes(limits)
                                                         : cpu_plan_bytes(dev, limits));
}

rt_status kern_locality(kern_dev *dev, const kern_locality_args *args)
{
    KERN_TRY_ENTRY(dev, args);
    const kern_check check = {"kern_locality", dev};
    RT_TRY(kern_check_batch(&check, args->batch,
                            KERN_NEED_ROW_SEG | KERN_NEED_SEG_KIND | KERN_NEED_CACHE_SLOT));
    const size_t rows = (size_t)args->batch->rows;
    if (rows == 0)
        return RT_OK;
    KERN_TRY_INT(&check, args, cols, 1, INT_MAX);
    KERN_TRY_INT(&check, args, stride, args->cols, INT_MAX);
    KERN_TRY_BUF(&check, args, x, KERN_F32, rows, (size_t)args->stride);
    KERN_TRY_BUF(&check, args, prev, KERN_F32, 0); // how many slots, cache_slot says
    KERN_TRY_BUF(&check, args, delta, KERN_F32, rows);
    return dev->ops->locality(dev, args);
}

static rt_status check_share(const kern_check *check, const char *field, float share)
{
    if (share >= 0.0f && share <= 1.0f)
        return RT_OK;
    return RT_FAIL(RT_ERR_INVALID, "%s: %s is %g, must be 0 to 1", check->op, field, (double)share);
}

rt_status kern_active(kern_dev *dev, const kern_active_args *args)
{
    KERN_TRY_ENTRY(dev, args);
    const kern_check check = {"kern_active", dev};
    RT_TRY(kern_check_batch(&check, args->batch,
                            KERN_NEED_SEG_ROW0 | KERN_NEED_SEG_KIND | KERN_NEED_ROW_STATE));
    if (args->batch->rows == 0)
        return RT_OK;
    RT_TRY(kern_check_int(&check, "rule", (int)args->rule, KERN_ACTIVE_ALL, KERN_ACTIVE_SHARE));
    RT_TRY(kern_check_plan(&check, args->batch, args->plan));
    KERN_TRY_INT(&check, args, k, 0, INT_MAX);
    RT_TRY(check_share(&check, "share", args->share));
    if (args->rule != KERN_ACTIVE_ALL && args->rule != KERN_ACTIVE_UNSETTLED)
        KERN_TRY_BUF(&check, args, delta, KERN_F32, (size_t)args->batch->rows);
    return dev->ops->active(dev, args);
}

static rt_status check_score(const kern_check *check, const kern_buf *score,
                             const kern_batch *batch, const kern_plan *plan, int score_lists)
{
    return kern_check_buf(check, "score", score, KERN_F32, 4,
                          (const size_t[]){(size_t)batch->scan_segs, (size_t)score_lists,
                                           (size_t)plan->act_cap, (size_t)batch->max_pages});
}

static rt_status check_page_score(const kern_check *check, const kern_page_score_args *args)
{
    const kern_batch *batch = args->batch;
    RT_TRY(
        kern_check_batch(check, batch, KERN_NEED_POS | KERN_NEED_SEG_ROW0 | KERN_NEED_PAGE_TABLE));
    RT_TRY(kern_check_plan(check, batch, args->plan));
    RT_TRY(kern_check_kv_meta(check, &args->kv));
    RT_TRY(kern_check_query(check, args->q, batch->rows, args->stride, args->heads, &args->kv));
    KERN_TRY_INT(check, args, score_lists, 1, INT_MAX);
    const int local = args->score_lists == 1 ? 1 : args->kv.kv_heads;
    KERN_TRY_INT(check, args, list0, 0, args->score_lists - local);
    return check_score(check, args->score, batch, args->plan, args->score_lists);
}

rt_status kern_page_score(kern_dev *dev, const kern_page_score_args *args)
{
    KERN_TRY_ENTRY(dev, args);
    const kern_check check = {"kern_page_score", dev};
    RT_TRY(kern_check_batch(&check, args->batch, 0));
    if (args->batch->rows == 0 || args->batch->scan_segs == 0)
        return RT_OK;
    RT_TRY(check_page_score(&check, args));
    return dev->ops->page_score(dev, args);
}

static rt_status check_kept(const kern_check *check, const kern_kept_lists *kept)
{
    RT_TRY(kern_check_int(check, "kept.lists", kept->lists, 1, INT_MAX));
    RT_TRY(kern_check_int(check, "kept.cap", kept->cap, 1, INT_MAX));
    // How many slots there are, seg_slot says.
    RT_TRY(kern_check_buf(check, "kept.pages", kept->pages, KERN_I32, 2,
                          (const size_t[]){(size_t)kept->lists, (size_t)kept->cap}));
    const size_t lists = (size_t)kept->lists;
    return kern_check_buf(check, "kept.count", kept->count, KERN_I32, 1, &lists);
}

static rt_status check_page_select(const kern_check *check, const kern_page_select_args *args)
{
    const kern_batch *batch = args->batch;
    RT_TRY(kern_check_batch(check, batch, KERN_NEED_POS | KERN_NEED_SEG_ROW0 | KERN_NEED_SEG_KIND));
    RT_TRY(kern_check_plan(check, batch, args->plan));
    KERN_TRY_INT(check, args, score_lists, 1, INT_MAX);
    KERN_TRY_INT(check, args, list0, 0, args->score_lists - args->plan->lists);
    for (int kind = 0; kind < KERN_SEG_KINDS; kind++)
        KERN_TRY_INT(check, args, choice[kind].top, 0, INT_MAX);
    if (batch->scan_segs > 0)
        RT_TRY(check_score(check, args->score, batch, args->plan, args->score_lists));
    if (args->counts)
        KERN_TRY_BUF(check, args, counts, KERN_I64, (size_t)batch->segs, KERN_COUNT_N);
    if (!args->kept)
        return RT_OK;
    RT_TRY(kern_check_batch(check, batch, KERN_NEED_SEG_SLOT));
    RT_TRY(check_kept(check, args->kept));
    return kern_check_int(check, "kept.lists", args->kept->lists, args->plan->lists,
                          args->plan->lists);
}

rt_status kern_page_select(kern_dev *dev, const kern_page_select_args *args)
{
    KERN_TRY_ENTRY(dev, args);
    const kern_check check = {"kern_page_select", dev};
    RT_TRY(kern_check_batch(&check, args->batch, 0));
    if (args->batch->rows == 0 || args->batch->sparse_segs == 0)
        return RT_OK;
    RT_TRY(check_page_select(&check, args));
    return dev->ops->page_select(dev, args);
}

rt_status kern_page_plan(kern_dev *dev, const kern_page_plan_args *args)
{
    KERN_TRY_ENTRY(dev, args);
    const kern_check check = {"kern_page_plan", dev};
    const kern_page_score_args *score = &args->score;
    const kern_page_select_args *select = &args->select;
    RT_TRY(kern_check_batch(&check, select->batch, 0));
    if (select->batch->rows == 0 || select->batch->sparse_segs == 0)
        return RT_OK;
    RT_TRY(check_page_select(&check, select));
    if (select->batch->scan_segs == 0)
        return dev->ops->page_select(dev, select);
    if (score->batch != select->batch || score->plan != select->plan ||
        score->score != select->score || score->score_lists != select->score_lists ||
        score->list0 != select->list0)
        return RT_FAIL(RT_ERR_INVALID, "kern_page_plan: score and select are of two plans");
    RT_TRY(check_page_score(&check, score));
    return dev->ops->page_plan(dev, args);
}

rt_status kern_page_mass(kern_dev *dev, const kern_page_mass_args *args)
{
    KERN_TRY_ENTRY(dev, args);
    const kern_check check = {"kern_page_mass", dev};
    const kern_batch *batch = args->batch;
    RT_TRY(kern_check_batch(&check, batch,
                            KERN_NEED_POS | KERN_NEED_SEG_ROW0 | KERN_NEED_KV_SLOT |
                                KERN_NEED_SEG_MASS));
    if (batch->rows == 0 || batch->mass_segs == 0 || batch->max_pages == 0)
        return RT_OK;
    RT_TRY(kern_check_heads(&check, args->heads, args->kv_heads, 2));
    KERN_TRY_INT(&check, args, score_lists, 1, INT_MAX);
    const int local = args->score_lists == 1 ? 1 : args->kv_heads;
    KERN_TRY_INT(&check, args, list0, 0, args->score_lists - local);
    RT_TRY(kern_check_plan(&check, batch, args->plan));
    RT_TRY(kern_check_lists(&check, args->plan, args->score_lists == 1 ? 1 : args->kv_heads));
    const size_t segs = (size_t)batch->mass_segs, pages = (size_t)batch->max_pages;
    KERN_TRY_BUF(&check, args, page_lse, KERN_F32, segs, (size_t)batch->block, (size_t)args->heads,
                 pages);
    KERN_TRY_BUF(&check, args, lse, KERN_F32, (size_t)batch->rows, (size_t)args->heads);
    KERN_TRY_BUF(&check, args, mass, KERN_F32, segs, (size_t)args->score_lists, pages);
    return dev->ops->page_mass(dev, args);
}

rt_status kern_key_score(kern_dev *dev, const kern_key_score_args *args)
{
    KERN_TRY_ENTRY(dev, args);
    const kern_check check = {"kern_key_score", dev};
    const kern_batch *batch = args->batch;
    RT_TRY(kern_check_batch(&check, batch,
                            KERN_NEED_POS | KERN_NEED_SEG_ROW0 | KERN_NEED_KV_SLOT |
                                KERN_NEED_SEG_MASS | KERN_NEED_PAGE_TABLE));
    if (batch->rows == 0 || batch->mass_segs == 0 || batch->max_pages == 0)
        return RT_OK;
    RT_TRY(kern_check_kv(&check, &args->kv, batch));
    RT_TRY(kern_check_query(&check, args->q, batch->rows, args->stride, args->heads, &args->kv));
    KERN_TRY_INT(&check, args, score_lists, 1, INT_MAX);
    const int local = args->score_lists == 1 ? 1 : args->kv.kv_heads;
    KERN_TRY_INT(&check, args, list0, 0, args->score_lists - local);
    KERN_TRY_BUF(&check, args, score, KERN_F32, (size_t)batch->mass_segs, (size_t)args->score_lists,
                 (size_t)batch->max_pages, (size_t)batch->page);
    return dev->ops->key_score(dev, args);
}

rt_status kern_key_peaks(kern_dev *dev, const kern_key_peaks_args *args)
{
    KERN_TRY_ENTRY(dev, args);
    const kern_check check = {"kern_key_peaks", dev};
    const kern_batch *batch = args->batch;
    RT_TRY(
        kern_check_batch(&check, batch, KERN_NEED_POS | KERN_NEED_SEG_ROW0 | KERN_NEED_SEG_MASS));
    if (batch->rows == 0 || batch->mass_segs == 0 || batch->max_pages == 0)
        return RT_OK;
    KERN_TRY_INT(&check, args, lists, 1, INT_MAX);
    const size_t segs = (size_t)batch->mass_segs, pages = (size_t)batch->max_pages;
    KERN_TRY_BUF(&check, args, score, KERN_F32, segs, (size_t)args->lists, pages,
                 (size_t)batch->page);
    KERN_TRY_BUF(&check, args, mass, KERN_F32, segs, (size_t)args->lists, pages);
    return dev->ops->key_peaks(dev, args);
}

rt_status kern_mass_select(kern_dev *dev, const kern_mass_select_args *args)
{
    KERN_TRY_ENTRY(dev, args);
    const kern_check check = {"kern_mass_select", dev};
    const kern_batch *batch = args->batch;
    RT_TRY(kern_check_batch(&check, batch,
                            KERN_NEED_POS | KERN_NEED_SEG_ROW0 | KERN_NEED_SEG_SLOT |
                                KERN_NEED_SEG_MASS));
    if (batch->rows == 0 || batch->mass_segs == 0)
        return RT_OK;
    if (!args->kept)
        return RT_FAIL(RT_ERR_INVALID, "kern_mass_select: kept is NULL");
    RT_TRY(check_kept(&check, args->kept));
    KERN_TRY_INT(&check, args, top, 1, INT_MAX);
    RT_TRY(check_share(&check, "share", args->share));
    // Lists hold what a row may take, or all the pages there are.
    const bool all = args->share > 0.0f || args->top > batch->max_pages;
    const int most = all ? batch->max_pages : args->top;
    RT_TRY(kern_check_int(&check, "kept.cap", args->kept->cap, most > 2 ? most : 2, INT_MAX));
    KERN_TRY_INT(&check, args, score_lists, 1, INT_MAX);
    KERN_TRY_INT(&check, args, list0, 0, args->score_lists - args->kept->lists);
    KERN_TRY_BUF(&check, args, mass, KERN_F32, (size_t)batch->mass_segs, (size_t)args->score_lists,
                 (size_t)batch->max_pages);
    return dev->ops->mass_select(dev, args);
}

rt_status kern_plan_count(kern_dev *dev, const kern_plan_count_args *args)
{
    KERN_TRY_ENTRY(dev, args);
    const kern_check check = {"kern_plan_count", dev};
    RT_TRY(kern_check_batch(&check, args->batch, KERN_NEED_POS | KERN_NEED_SEG_ROW0));
    if (args->batch->rows == 0)
        return RT_OK;
    KERN_TRY_INT(&check, args, lists, 1, INT_MAX);
    KERN_TRY_INT(&check, args, layers, 0, INT_MAX);
    KERN_TRY_BUF(&check, args, counts, KERN_I64, (size_t)args->batch->segs, KERN_COUNT_N);
    return dev->ops->plan_count(dev, args);
}

rt_status kern_plan_checksum(kern_dev *dev, const kern_plan_checksum_args *args)
{
    KERN_TRY_ENTRY(dev, args);
    const kern_check check = {"kern_plan_checksum", dev};
    RT_TRY(kern_check_batch(&check, args->batch, KERN_NEED_SEG_ROW0));
    RT_TRY(kern_check_plan(&check, args->batch, args->plan));
    KERN_TRY_BUF(&check, args, out, KERN_I32, 2);
    return dev->ops->plan_checksum(dev, args);
}
