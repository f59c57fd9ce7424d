// SPDX-License-Identifier: Apache-2.0
// Page scores on the CPU: QUEST bounds as a product.
//
// max(q min, q max) is max(q, 0) max + min(q, 0) min, so the bounds of a panel of
// lanes (rows and query heads of a KV group) are two products with the pages' max
// and min in place of keys. An item is a group of active-row places of a segment,
// for all lists; it clears its part of the array first.
#include "kernels/cpu/attn_tile.h"
#include "kernels/cpu/plan.h"
#include "kernels/cpu/vexp.h"

#include <math.h>
#include <string.h>

typedef struct score_run {
    kern_dev *dev;
    const kern_page_score_args *args;
    int group;       // query heads of a KV head
    int panel_heads; // query heads of a panel
    int panel_rows;  // rows of a panel
} score_run;

// The lanes of a panel: lane i is row `row[i / heads]`, head `head0 + i % heads`.
typedef struct score_panel {
    int seg, kv_head, head0, heads;
    int place0, rows; // places among the active rows
    const int32_t *row;
    int pages;
} score_panel;

static size_t panel_floats(int dim)
{
    return (size_t)dim * ATTN_PANEL;
}

size_t kern_cpu_score_floats(int head_dim, int max_pages)
{
    const size_t bounds = ((size_t)max_pages + ATTN_BLOCK - 1) * ATTN_PANEL;
    return (2 * panel_floats(head_dim) + bounds + 15) / 16 * 16;
}

static void load_panel(const score_run *run, const score_panel *panel, float *above, float *below)
{
    const kern_page_score_args *args = run->args;
    const int dim = args->kv.head_dim;
    memset(above, 0, panel_floats(dim) * sizeof *above);
    memset(below, 0, panel_floats(dim) * sizeof *below);
    for (int i = 0; i < panel->rows * panel->heads; i++) {
        const int row = panel->row[i / panel->heads], head = panel->head0 + i % panel->heads;
        const float *q =
            kern_cf32(args->q) + (size_t)row * (size_t)args->stride + (size_t)head * (size_t)dim;
        for (int c = 0; c < dim; c++) {
            const float x = q[c] * args->scale;
            above[c * ATTN_PANEL + i] = x > 0.0f ? x : 0.0f;
            below[c * ATTN_PANEL + i] = x > 0.0f ? 0.0f : x;
        }
    }
}

// bound[page, lane] over the pages of the prefix.
static void bound_pages(const score_run *run, const score_panel *panel, const float *above,
                        const float *below, float *bound)
{
    const kern_kv *kv = &run->args->kv;
    const kern_batch *batch = run->args->batch;
    const int32_t *table =
        kern_ci32(batch->page_table) + (size_t)panel->seg * (size_t)batch->max_pages;
    const float *least[ATTN_KEYS], *most[ATTN_KEYS];
    for (int first = 0; first < panel->pages; first += ATTN_KEYS) {
        const int left = panel->pages - first;
        const int count = left < ATTN_KEYS ? left : ATTN_KEYS;
        for (int i = 0; i < count; i++) {
            const size_t at =
                ((size_t)table[first + i] * (size_t)kv->kv_heads + (size_t)panel->kv_head) *
                (size_t)kv->head_dim;
            least[i] = kern_cf32(kv->kmin) + at;
            most[i] = kern_cf32(kv->kmax) + at;
        }
        attn_panel_scores(above, kv->head_dim, most, count, false, bound + first * ATTN_PANEL);
        attn_panel_scores(below, kv->head_dim, least, count, true, bound + first * ATTN_PANEL);
    }
}

// Bounds of every lane become shares: a softmax over the pages.
static void softmax_pages(float *bound, int pages)
{
    float top[ATTN_PANEL], sum[ATTN_PANEL] = {0};
    for (int j = 0; j < ATTN_PANEL; j++)
        top[j] = bound[j];
    for (int g = 1; g < pages; g++)
        for (int j = 0; j < ATTN_PANEL; j++)
            top[j] = bound[g * ATTN_PANEL + j] > top[j] ? bound[g * ATTN_PANEL + j] : top[j];
    for (int g = 0; g < pages; g++)
        for (int j = 0; j < ATTN_PANEL; j++)
            bound[g * ATTN_PANEL + j] -= top[j];
    for (int i = 0; i < pages * ATTN_PANEL; i++)
        bound[i] = kern_vexpf(bound[i]);
    for (int g = 0; g < pages; g++)
        for (int j = 0; j < ATTN_PANEL; j++)
            sum[j] += bound[g * ATTN_PANEL + j];
    for (int g = 0; g < pages; g++)
        for (int j = 0; j < ATTN_PANEL; j++)
            bound[g * ATTN_PANEL + j] /= sum[j];
}

// score[seg, list, place].
static float *score_row(const kern_page_score_args *args, int seg, int list, int place)
{
    const size_t entry =
        ((size_t)seg * (size_t)args->score_lists + (size_t)list) * (size_t)args->plan->act_cap +
        (size_t)place;
    return kern_f32(args->score) + entry * (size_t)args->batch->max_pages;
}

static void score_heads(const score_run *run, const score_panel *panel, float *scratch)
{
    const kern_page_score_args *args = run->args;
    float *above = scratch, *below = above + panel_floats(args->kv.head_dim);
    float *bound = below + panel_floats(args->kv.head_dim);
    load_panel(run, panel, above, below);
    bound_pages(run, panel, above, below, bound);
    softmax_pages(bound, panel->pages);
    const int list = args->score_lists == 1 ? 0 : args->list0 + panel->kv_head;
    for (int i = 0; i < panel->rows * panel->heads; i++) {
        float *score = score_row(args, panel->seg, list, panel->place0 + i / panel->heads);
        for (int g = 0; g < panel->pages; g++)
            score[g] += bound[g * ATTN_PANEL + i];
    }
}

static void score_places(void *ctx, size_t item, int thread)
{
    const score_run *run = ctx;
    const kern_page_score_args *args = run->args;
    const kern_batch *batch = args->batch;
    const int act_cap = args->plan->act_cap;
    const int per_seg = (act_cap + run->panel_rows - 1) / run->panel_rows;
    score_panel panel = {.seg = (int)(item / (size_t)per_seg),
                         .place0 = (int)(item % (size_t)per_seg) * run->panel_rows};
    const int places =
        act_cap - panel.place0 < run->panel_rows ? act_cap - panel.place0 : run->panel_rows;
    for (int list = 0; list < args->score_lists; list++)
        memset(score_row(args, panel.seg, list, panel.place0), 0,
               (size_t)places * (size_t)batch->max_pages * sizeof(float));

    const plan_rows active = plan_active(batch, args->plan, panel.seg);
    panel.rows = active.count - panel.place0 < places ? active.count - panel.place0 : places;
    if (panel.rows <= 0)
        return;
    panel.row = active.row + panel.place0;
    panel.pages = plan_pages(batch, plan_prefix(batch, panel.row[0]));
    if (panel.pages == 0)
        return;
    const size_t floats = kern_cpu_score_floats(args->kv.head_dim, batch->max_pages);
    float *scratch = kern_cpu_scratch(run->dev, thread, floats);
    for (int head = 0; head < args->heads; head += panel.heads) {
        const int rest = run->group - head % run->group;
        panel.kv_head = head / run->group;
        panel.head0 = head;
        panel.heads = rest < run->panel_heads ? rest : run->panel_heads;
        score_heads(run, &panel, scratch);
    }
}

rt_status kern_cpu_page_score(kern_dev *dev, const kern_page_score_args *args)
{
    score_run run = {.dev = dev, .args = args, .group = args->heads / args->kv.kv_heads};
    const size_t floats = kern_cpu_score_floats(args->kv.head_dim, args->batch->max_pages);
    RT_TRY(kern_cpu_scratch_check(dev, "kern_page_score", floats));
    RT_TRY(plan_check_sparse("kern_page_score", args->batch, args->plan));
    run.panel_heads = run.group < ATTN_PANEL ? run.group : ATTN_PANEL;
    run.panel_rows = ATTN_PANEL / run.panel_heads;
    const int per_seg = (args->plan->act_cap + run.panel_rows - 1) / run.panel_rows;
    rt_pool_run(dev->pool, (size_t)(args->batch->scan_segs * per_seg), score_places, &run);
    return RT_OK;
}
