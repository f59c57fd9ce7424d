// SPDX-License-Identifier: Apache-2.0
// The two register-blocked products of the attention tile (scores and values)
// and the softmax between them, written with GCC's vector extension, so that the
// same text serves AVX2, AVX-512 and other targets.
#include "kernels/cpu/attn_tile.h"

#include "kernels/cpu/vexp.h"

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

// BLOCK keys (scores) or lanes (values) times two vectors are the accumulators:
// they fill the register file but for the operands.
enum {
    WIDTH = ATTN_WIDTH,
    BLOCK = ATTN_BLOCK,
    PANEL = ATTN_PANEL,
    KEYS_PADDED = ATTN_KEYS + BLOCK - 1,
};

typedef float vec __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))

static int whole_panels(int lanes)
{
    return (lanes + PANEL - 1) / PANEL * PANEL;
}

INLINE vec load(const float *p)
{
    return *(const vec *)p;
}

INLINE void store(float *p, vec x)
{
    *(vec *)p = x;
}

INLINE vec pick(ivec mask, vec yes, vec no)
{
    return (vec)((mask & (ivec)yes) | (~mask & (ivec)no));
}

INLINE vec larger(vec a, vec b)
{
    return pick(a > b, a, b);
}

// s[i, lane] = (add ? s[i, lane] : 0) + k[i] . q[lane] for BLOCK keys and a panel.
INLINE void score_block(const float *q, int dim, const float *const k[BLOCK], float *s,
                        const bool add)
{
    vec acc[BLOCK][2] = {{{0}}};
    if (add) {
#pragma GCC unroll 8
        for (int i = 0; i < BLOCK; i++) {
            acc[i][0] = load(s + i * PANEL);
            acc[i][1] = load(s + i * PANEL + WIDTH);
        }
    }
    for (int c = 0; c < dim; c++) {
        const vec q0 = load(q + c * PANEL);
        const vec q1 = load(q + c * PANEL + WIDTH);
#pragma GCC unroll 8
        for (int i = 0; i < BLOCK; i++) {
            acc[i][0] += q0 * k[i][c];
            acc[i][1] += q1 * k[i][c];
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < BLOCK; i++) {
        store(s + i * PANEL, acc[i][0]);
        store(s + i * PANEL + WIDTH, acc[i][1]);
    }
}

// Scores of keys at or past a lane's limit become -infinity.
static void mask_panel(float *s, int first, int count, const int *limit)
{
    for (int i = 0; i < count; i++)
        for (int j = 0; j < PANEL; j++)
            s[i * PANEL + j] = first + i < limit[j] ? s[i * PANEL + j] : -INFINITY;
}

// Scores become e^(s - m) with the new maximum m; l and alpha = e^(m_old - m)
// follow. m starts finite, so no difference is NaN.
static void softmax_panel(float *s, int count, float *m, float *l, float *alpha)
{
    for (int j = 0; j < PANEL; j += WIDTH) {
        const vec old = load(m + j);
        vec top = old;
        for (int i = 0; i < count; i++)
            top = larger(load(s + i * PANEL + j), top);
        store(m + j, top);
        store(alpha + j, old - top);
        for (int i = 0; i < count; i++)
            store(s + i * PANEL + j, load(s + i * PANEL + j) - top);
    }
    for (int i = 0; i < PANEL; i++)
        alpha[i] = kern_vexpf(alpha[i]);
    for (int i = 0; i < count * PANEL; i++)
        s[i] = kern_vexpf(s[i]);
    for (int j = 0; j < PANEL; j += WIDTH) {
        vec sum = load(l + j) * load(alpha + j);
        for (int i = 0; i < count; i++)
            sum += load(s + i * PANEL + j);
        store(l + j, sum);
    }
}

static float log_add(float a, float b)
{
    const float top = a > b ? a : b, low = a > b ? b : a;
    return low == -INFINITY ? top : top + log1pf(expf(low - top));
}

// Adds the weights of `count` keys, relative to the maxima m, to the pages they lie in.
static void measure_pages(const attn_tile *tile, int lane0, int lanes, int first, int count,
                          const float *m)
{
    for (int i = 0; i < count;) {
        const int entry = (first + i) / tile->page_keys;
        const int page_end = (entry + 1) * tile->page_keys - first;
        const int end = page_end < count ? page_end : count;
        const int page = tile->pages ? tile->pages[entry] : entry;
        float sum[PANEL] = {0};
        for (; i < end; i++)
            for (int j = 0; j < PANEL; j++)
                sum[j] += tile->p[i * PANEL + j];
        for (int j = 0; j < lanes; j++) {
            float *lse = tile->page_lse[lane0 + j];
            if (lse && sum[j] > 0.0f)
                lse[page] = log_add(lse[page], m[j] + logf(sum[j]));
        }
    }
}

// o[i] = alpha[i] o[i] + sum over keys of p[key, i] v[key], on `vecs` vectors of
// columns from `column`.
INLINE void value_block(const float *p, int count, const float *const *v, int column, int dim,
                        const float *alpha, float *o, const int lanes, const int vecs)
{
    vec acc[BLOCK][2];
#pragma GCC unroll 8
    for (int i = 0; i < lanes; i++)
#pragma GCC unroll 2
        for (int j = 0; j < vecs; j++)
            acc[i][j] = load(o + i * dim + column + j * WIDTH) * alpha[i];
    for (int key = 0; key < count; key++) {
        const float *row = v[key] + column;
#pragma GCC unroll 8
        for (int i = 0; i < lanes; i++)
#pragma GCC unroll 2
            for (int j = 0; j < vecs; j++)
                acc[i][j] += load(row + j * WIDTH) * p[key * PANEL + i];
    }
#pragma GCC unroll 8
    for (int i = 0; i < lanes; i++)
#pragma GCC unroll 2
        for (int j = 0; j < vecs; j++)
            store(o + i * dim + column + j * WIDTH, acc[i][j]);
}

// The same for all columns; what is left of dim is done one by one.
INLINE void value_columns(const float *p, int count, const float *const *v, int dim,
                          const float *alpha, float *o, const int lanes)
{
    int column = 0;
    for (; column + 2 * WIDTH <= dim; column += 2 * WIDTH)
        value_block(p, count, v, column, dim, alpha, o, lanes, 2);
    for (; column + WIDTH <= dim; column += WIDTH)
        value_block(p, count, v, column, dim, alpha, o, lanes, 1);
    for (; column < dim; column++)
        for (int i = 0; i < lanes; i++) {
            float acc = o[i * dim + column] * alpha[i];
            for (int key = 0; key < count; key++)
                acc += p[key * PANEL + i] * v[key][column];
            o[i * dim + column] = acc;
        }
}

static void value_lanes(const float *p, int count, const float *const *v, int dim,
                        const float *alpha, float *o, int lanes)
{
    int i = 0;
    for (; i + BLOCK <= lanes; i += BLOCK)
        value_columns(p + i, count, v, dim, alpha + i, o + i * dim, BLOCK);
    for (; i + 4 <= lanes; i += 4)
        value_columns(p + i, count, v, dim, alpha + i, o + i * dim, 4);
    for (; i + 2 <= lanes; i += 2)
        value_columns(p + i, count, v, dim, alpha + i, o + i * dim, 2);
    if (i < lanes)
        value_columns(p + i, count, v, dim, alpha + i, o + i * dim, 1);
}

// Values for `lanes` lanes of a panel, by runs of lanes that see the same number
// of keys: a lane must not even multiply by zero what it does not see.
static void value_panel(const attn_tile *tile, int lane0, int lanes, int first, int count,
                        const float *const *v, const float *alpha, float *o)
{
    for (int i = 0; i < lanes;) {
        const int limit = tile->limit[lane0 + i];
        int run = 1;
        while (i + run < lanes && tile->limit[lane0 + i + run] == limit)
            run++;
        const int seen = limit - first < count ? limit - first : count;
        if (seen > 0)
            value_lanes(tile->p + i, seen, v, tile->dim, alpha + i,
                        o + (size_t)(lane0 + i) * (size_t)tile->dim, run);
        i += run;
    }
}

void attn_panel_scores(const float *q, int dim, const float *const *k, int count, bool add,
                       float *s)
{
    for (int i = 0; i < count; i += BLOCK) {
        const float *block[BLOCK];
        for (int j = 0; j < BLOCK; j++) // the last block repeats the last key
            block[j] = k[i + j < count ? i + j : count - 1];
        if (add)
            score_block(q, dim, block, s + i * PANEL, true);
        else
            score_block(q, dim, block, s + i * PANEL, false);
    }
}

size_t attn_state_floats(int dim, int lanes)
{
    return (size_t)whole_panels(lanes) * ((size_t)dim + 2);
}

size_t attn_tile_floats(int dim)
{
    return (size_t)ATTN_LANES * ((size_t)dim + 1) + (size_t)KEYS_PADDED * PANEL;
}

void attn_state_init(attn_state *state, int lanes, float *scratch)
{
    const int padded = whole_panels(lanes);
    state->m = scratch;
    state->l = scratch + padded;
    state->o = scratch + 2 * padded;
}

void attn_tile_init(attn_tile *tile, int dim, float *scratch)
{
    tile->dim = dim;
    tile->lanes = 0;
    tile->page_keys = 0;
    tile->pages = NULL;
    tile->limit = (int *)scratch;
    tile->p = scratch + ATTN_LANES;
    tile->q = tile->p + KEYS_PADDED * PANEL;
}

void attn_tile_set(attn_tile *tile, int lane, const float *q, float scale, int limit)
{
    float *column = tile->q + (size_t)(lane / PANEL * PANEL) * (size_t)tile->dim + lane % PANEL;
    for (int c = 0; c < tile->dim; c++)
        column[c * PANEL] = q ? q[c] * scale : 0.0f;
    tile->limit[lane] = limit;
}

void attn_state_clear(attn_state *state, int dim, int lanes)
{
    const int padded = whole_panels(lanes);
    for (int i = 0; i < padded; i++) {
        state->m[i] = -FLT_MAX;
        state->l[i] = 0.0f;
    }
    memset(state->o, 0, (size_t)padded * (size_t)dim * sizeof *state->o);
}

void attn_tile_close(attn_tile *tile, int lanes)
{
    tile->lanes = lanes;
    for (int lane = lanes; lane % PANEL != 0; lane++)
        attn_tile_set(tile, lane, NULL, 0.0f, 0);
}

void attn_tile_keys(const attn_tile *tile, int first, int count, const float *const *k,
                    const float *const *v, attn_state *state)
{
    for (int lane0 = 0; lane0 < tile->lanes; lane0 += PANEL) {
        const int *limit = tile->limit + lane0;
        const int lanes = tile->lanes - lane0 < PANEL ? tile->lanes - lane0 : PANEL;
        int least = limit[0], most = limit[0];
        for (int i = 1; i < lanes; i++) {
            least = limit[i] < least ? limit[i] : least;
            most = limit[i] > most ? limit[i] : most;
        }
        const int seen = most - first < count ? most - first : count;
        if (seen <= 0)
            continue;
        float alpha[PANEL];
        attn_panel_scores(tile->q + (size_t)lane0 * (size_t)tile->dim, tile->dim, k, seen, false,
                          tile->p);
        if (least < first + seen)
            mask_panel(tile->p, first, seen, limit);
        softmax_panel(tile->p, seen, state->m + lane0, state->l + lane0, alpha);
        if (tile->page_keys > 0)
            measure_pages(tile, lane0, lanes, first, seen, state->m + lane0);
        value_panel(tile, lane0, lanes, first, seen, v, alpha, state->o);
    }
}

void attn_state_add(attn_state *sum, const attn_state *part, int dim, int lanes)
{
    for (int i = 0; i < lanes; i++) {
        if (part->l[i] == 0.0f)
            continue;
        const float top = sum->m[i] > part->m[i] ? sum->m[i] : part->m[i];
        const float old = kern_vexpf(sum->m[i] - top);
        const float new = kern_vexpf(part->m[i] - top);
        sum->m[i] = top;
        sum->l[i] = sum->l[i] * old + part->l[i] * new;
        float *o = sum->o + (size_t)i * (size_t)dim;
        const float *o_part = part->o + (size_t)i * (size_t)dim;
        for (int c = 0; c < dim; c++)
            o[c] = o[c] * old + o_part[c] * new;
    }
}

float attn_state_finish(const attn_state *state, int dim, int lane, float *o)
{
    const float *sum = state->o + (size_t)lane * (size_t)dim;
    const float l = state->l[lane];
    const bool empty = l == 0.0f; // the largest score alone adds 1 to l
    const float inverse = empty ? 0.0f : 1.0f / l;
    for (int c = 0; c < dim; c++)
        o[c] = sum[c] * inverse;
    return empty ? -INFINITY : state->m[lane] + logf(l);
}
