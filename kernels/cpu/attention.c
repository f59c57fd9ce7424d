// SPDX-License-Identifier: Apache-2.0
// Prefix attention on the CPU.
//
// The lanes of a (segment, KV head) are its active rows times the query heads of
// that KV head; they are cut into tiles of ATTN_LANES, which share what they load.
// The tokens that a list names are cut into spans of fixed length, counted from
// the start of the list; each span is attended to from scratch and the spans are
// added in order. So a row's arithmetic is fixed by its list alone. With many
// tiles a thread takes a tile and walks its spans; with few, as for one request
// with a long prefix, the spans are items of their own, whose states wait in the
// threads' scratch until a second pass adds them.
#include "kernels/cpu/attention.h"
#include "kernels/cpu/attn_tile.h"
#include "kernels/cpu/plan.h"

#include <math.h>

// A multiple of every page length, so that no page is in two spans.
enum { SPAN = 48 * ATTN_KEYS };
_Static_assert(SPAN % KERN_PAGE_MAX == 0, "spans hold whole pages");

typedef struct prefix_run {
    kern_dev *dev;
    const kern_attn_args *args;
    int group;           // query heads of a KV head
    int spans;           // most spans of a tile
    int lanes;           // most lanes of a tile
    size_t slot0, slots; // scratch offset of a thread's first waiting state; how many fit
} prefix_run;

typedef struct prefix_tile {
    int seg, kv_head, lane0, lanes;
    plan_rows rows;
    plan_list list;
} prefix_tile;

static int min_int(int a, int b)
{
    return a < b ? a : b;
}

static size_t tiles_of(const prefix_run *run, int seg)
{
    const int lanes = kern_ci32(run->args->plan->act_count)[seg] * run->group;
    return (size_t)((lanes + ATTN_LANES - 1) / ATTN_LANES) * (size_t)run->args->kv.kv_heads;
}

static size_t tiles_of_batch(const prefix_run *run)
{
    size_t tiles = 0;
    for (int seg = 0; seg < run->args->batch->segs; seg++)
        tiles += tiles_of(run, seg);
    return tiles;
}

// Tile number `index` of the batch. Tiles of a KV head follow one another, so
// that threads share its pages; the later rows, with the longer prefix, lead.
static prefix_tile tile_at(const prefix_run *run, size_t index)
{
    const kern_attn_args *args = run->args;
    prefix_tile tile = {0};
    while (index >= tiles_of(run, tile.seg))
        index -= tiles_of(run, tile.seg++);
    const size_t per_head = tiles_of(run, tile.seg) / (size_t)args->kv.kv_heads;
    tile.kv_head = (int)(index / per_head);
    tile.rows = plan_active(args->batch, args->plan, tile.seg);
    tile.lane0 = (int)(per_head - 1 - index % per_head) * ATTN_LANES;
    tile.lanes = min_int(tile.rows.count * run->group - tile.lane0, ATTN_LANES);
    tile.list =
        plan_pages_of(args->batch, args->plan, tile.seg, args->plan->lists == 1 ? 0 : tile.kv_head);
    return tile;
}

static int tile_row(const prefix_run *run, const prefix_tile *tile, int lane)
{
    return tile->rows.row[(tile->lane0 + lane) / run->group];
}

static int tile_head(const prefix_run *run, const prefix_tile *tile, int lane)
{
    return tile->kv_head * run->group + (tile->lane0 + lane) % run->group;
}

// Where the lane's page sums go; NULL for a row that is being committed.
static float *page_lse_of(const prefix_run *run, const prefix_tile *tile, int lane)
{
    const kern_attn_args *args = run->args;
    const kern_batch *batch = args->batch;
    const int row = tile_row(run, tile, lane);
    if (kern_ci32(batch->kv_slot)[row] >= 0)
        return NULL;
    const size_t number = (size_t)kern_ci32(batch->seg_mass)[tile->seg];
    const size_t place = (size_t)(kern_ci32(batch->pos)[row] % batch->block);
    const size_t at = (number * (size_t)batch->block + place) * (size_t)args->heads +
                      (size_t)tile_head(run, tile, lane);
    return kern_f32(args->page_lse) + at * (size_t)batch->max_pages;
}

// Loads the queries; returns the largest number of tokens that a lane reads.
static int load_queries(const prefix_run *run, const prefix_tile *tile, attn_tile *work)
{
    const kern_attn_args *args = run->args;
    const bool measured = args->page_lse && kern_ci32(args->batch->seg_mass)[tile->seg] >= 0;
    int most = 0;
    for (int lane = 0; lane < tile->lanes; lane++) {
        const int row = tile_row(run, tile, lane);
        const int tokens = plan_list_tokens(args->batch, tile->list, plan_prefix(args->batch, row));
        const float *q = attn_qkv_head(args, row, tile_head(run, tile, lane));
        attn_tile_set(work, lane, q, args->scale, tokens);
        most = tokens > most ? tokens : most;
        if (measured)
            work->page_lse[lane] = page_lse_of(run, tile, lane);
    }
    if (measured) {
        work->page_keys = args->batch->page;
        work->pages = tile->list.count < 0 ? NULL : tile->list.page;
    }
    attn_tile_close(work, tile->lanes);
    return most;
}

// Addresses of K and V of `count` tokens of the list, from its token `first`.
static void locate_keys(const prefix_run *run, const prefix_tile *tile, int first, int count,
                        const float **k, const float **v)
{
    const kern_kv *kv = &run->args->kv;
    const kern_batch *batch = run->args->batch;
    const int32_t *table =
        kern_ci32(batch->page_table) + (size_t)tile->seg * (size_t)batch->max_pages;
    for (int i = 0; i < count; i++) {
        const int entry = (first + i) / batch->page;
        const int page = table[tile->list.count < 0 ? entry : tile->list.page[entry]];
        const size_t token =
            ((size_t)page * (size_t)kv->kv_heads + (size_t)tile->kv_head) * (size_t)batch->page +
            (size_t)((first + i) % batch->page);
        k[i] = kern_cf32(kv->k) + token * (size_t)kv->head_dim;
        v[i] = kern_cf32(kv->v) + token * (size_t)kv->head_dim;
    }
}

static void attend_span(const prefix_run *run, const prefix_tile *tile, const attn_tile *work,
                        int span, int tokens, attn_state *state)
{
    const float *k[ATTN_KEYS], *v[ATTN_KEYS];
    attn_state_clear(state, work->dim, tile->lanes);
    const int end = min_int((span + 1) * SPAN, tokens);
    for (int first = span * SPAN; first < end; first += ATTN_KEYS) {
        const int count = min_int(end - first, ATTN_KEYS);
        locate_keys(run, tile, first, count, k, v);
        attn_tile_keys(work, first, count, k, v, state);
    }
}

static void finish_tile(const prefix_run *run, const prefix_tile *tile, const attn_state *sum)
{
    const kern_attn_args *args = run->args;
    for (int lane = 0; lane < tile->lanes; lane++) {
        const size_t at = (size_t)tile_row(run, tile, lane) * (size_t)args->heads +
                          (size_t)tile_head(run, tile, lane);
        float *o = kern_f32(args->o) + at * (size_t)args->kv.head_dim;
        kern_f32(args->lse)[at] = attn_state_finish(sum, args->kv.head_dim, lane, o);
    }
}

// A thread's scratch: the tile, a state for the sum, one for a span, slots.
static size_t scratch_floats(int dim)
{
    return attn_tile_floats(dim) + 2 * attn_state_floats(dim, ATTN_LANES);
}

static void run_tile(void *ctx, size_t item, int thread)
{
    const prefix_run *run = ctx;
    const int dim = run->args->kv.head_dim;
    float *scratch = kern_cpu_scratch(run->dev, thread, scratch_floats(dim));
    const prefix_tile tile = tile_at(run, item);
    attn_tile work;
    attn_state sum, part;
    attn_tile_init(&work, dim, scratch);
    scratch += attn_tile_floats(dim);
    attn_state_init(&sum, ATTN_LANES, scratch);
    attn_state_init(&part, ATTN_LANES, scratch + attn_state_floats(dim, ATTN_LANES));
    const int tokens = load_queries(run, &tile, &work);
    attn_state_clear(&sum, dim, tile.lanes);
    for (int span = 0; span * SPAN < tokens; span++) {
        attend_span(run, &tile, &work, span, tokens, &part);
        attn_state_add(&sum, &part, dim, tile.lanes);
    }
    finish_tile(run, &tile, &sum);
}

// State of a span while it waits for the others of its tile.
static attn_state slot_state(const prefix_run *run, size_t index)
{
    attn_state state;
    const int dim = run->args->kv.head_dim;
    float *scratch = kern_cpu_scratch(run->dev, (int)(index / run->slots), KERN_CPU_SCRATCH);
    scratch += run->slot0 + index % run->slots * attn_state_floats(dim, run->lanes);
    attn_state_init(&state, run->lanes, scratch);
    return state;
}

static void run_span(void *ctx, size_t item, int thread)
{
    const prefix_run *run = ctx;
    const int dim = run->args->kv.head_dim;
    const prefix_tile tile = tile_at(run, item / (size_t)run->spans);
    attn_tile work;
    attn_tile_init(&work, dim, kern_cpu_scratch(run->dev, thread, scratch_floats(dim)));
    attn_state state = slot_state(run, item);
    const int tokens = load_queries(run, &tile, &work);
    attend_span(run, &tile, &work, (int)(item % (size_t)run->spans), tokens, &state);
}

static void add_spans(void *ctx, size_t item, int thread)
{
    const prefix_run *run = ctx;
    const int dim = run->args->kv.head_dim;
    const prefix_tile tile = tile_at(run, item);
    attn_state sum;
    attn_state_init(&sum, ATTN_LANES, kern_cpu_scratch(run->dev, thread, scratch_floats(dim)));
    attn_state_clear(&sum, dim, tile.lanes);
    for (int span = 0; span < run->spans; span++) {
        const attn_state part = slot_state(run, item * (size_t)run->spans + (size_t)span);
        attn_state_add(&sum, &part, dim, tile.lanes);
    }
    finish_tile(run, &tile, &sum);
}

// Most lanes and most spans that a tile of this batch has.
static void measure_tiles(prefix_run *run)
{
    const kern_attn_args *args = run->args;
    const kern_batch *batch = args->batch;
    int tokens = 0;
    for (int seg = 0; seg < batch->segs; seg++) {
        const plan_rows rows = plan_active(batch, args->plan, seg);
        run->lanes = rows.count * run->group > run->lanes ? rows.count * run->group : run->lanes;
        for (int list = 0; rows.count > 0 && list < args->plan->lists; list++) {
            const int prefix = plan_prefix(batch, rows.row[rows.count - 1]);
            const int n =
                plan_list_tokens(batch, plan_pages_of(batch, args->plan, seg, list), prefix);
            tokens = n > tokens ? n : tokens;
        }
    }
    run->lanes = min_int(run->lanes, ATTN_LANES);
    run->spans = (tokens + SPAN - 1) / SPAN;
}

static void clear_page_lse(const kern_attn_args *args)
{
    const kern_batch *batch = args->batch;
    const size_t count = (size_t)batch->mass_segs * (size_t)batch->block * (size_t)args->heads *
                         (size_t)batch->max_pages;
    for (size_t i = 0; args->page_lse && i < count; i++)
        kern_f32(args->page_lse)[i] = -INFINITY;
}

static void attend_prefix(kern_dev *dev, const kern_attn_args *args)
{
    prefix_run run = {.dev = dev, .args = args, .group = args->heads / args->kv.kv_heads};
    const int dim = args->kv.head_dim;
    clear_page_lse(args);
    const size_t tiles = tiles_of_batch(&run);
    if (tiles == 0)
        return;
    measure_tiles(&run);
    const size_t threads = (size_t)rt_pool_threads(dev->pool);
    run.slot0 = scratch_floats(dim);
    run.slots = ((size_t)KERN_CPU_SCRATCH - run.slot0) / attn_state_floats(dim, run.lanes);
    const size_t items = tiles * (size_t)run.spans;
    const bool split = threads > 1 && run.spans > 1 && tiles < 4 * threads;
    if (split && items <= run.slots * threads) {
        rt_pool_run(dev->pool, items, run_span, &run);
        rt_pool_run(dev->pool, tiles, add_spans, &run);
    } else {
        rt_pool_run(dev->pool, tiles, run_tile, &run);
    }
}

rt_status kern_cpu_attn(kern_dev *dev, const kern_attn_args *args)
{
    RT_TRY(kern_cpu_scratch_check(dev, "kern_attn", scratch_floats(args->kv.head_dim)));
    RT_TRY(plan_check_rows("kern_attn", args->batch, args->plan));
    RT_TRY(plan_check_prefixes("kern_attn", args->batch, args->plan, args->batch->segs));
    if (args->page_lse)
        RT_TRY(plan_check_mass("kern_attn", args->batch));
    RT_TRY(attn_check_blocks(dev, args));
    attend_prefix(dev, args);
    attn_merge_blocks(dev, args);
    return RT_OK;
}
