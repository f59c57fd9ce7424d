// SPDX-License-Identifier: Apache-2.0
// Committing tokens of a block on the CPU.
//
// Selection is by repeated search: a position that is committed loses its MASKED
// bit and so leaves the candidates. Blocks are short.
#include "kernels/kern_int.h"

#include <math.h>
#include <stdbool.h>

typedef struct window {
    const kern_unmask_window *spec;
    int32_t *ids, *state; // of the window's positions
    const int32_t *token;
    const float *confidence, *entropy;
    int first, end; // candidates lie in [first, end)
} window;

static bool is_masked(const window *w, int i)
{
    return (w->state[i] & KERN_ROW_MASKED) != 0;
}

static void commit(const window *w, int i)
{
    w->ids[i] = w->token[i];
    w->state[i] = (w->state[i] & ~KERN_ROW_MASKED) | KERN_ROW_NEW;
}

// The first candidate with the largest sign * value; NaN is worst. -1: no candidate.
static int best_masked(const window *w, const float *value, float sign)
{
    int best = -1;
    float best_value = 0.0f;
    for (int i = w->first; i < w->end; i++) {
        if (!is_masked(w, i))
            continue;
        const float v = isnan(value[i]) ? -INFINITY : sign * value[i];
        if (best < 0 || v > best_value) {
            best = i;
            best_value = v;
        }
    }
    return best;
}

static void commit_leftmost(const window *w)
{
    int left = w->spec->quota;
    for (int i = w->first; i < w->end && left > 0; i++) {
        if (is_masked(w, i)) {
            commit(w, i);
            left--;
        }
    }
}

static void commit_confident(const window *w)
{
    for (int n = 0; n < w->spec->quota; n++) {
        const int i = best_masked(w, w->confidence, 1.0f);
        if (i < 0)
            return;
        commit(w, i);
    }
}

static void commit_dynamic(const window *w)
{
    int sure = 0;
    for (int i = w->first; i < w->end; i++)
        sure += is_masked(w, i) && w->confidence[i] > w->spec->threshold;
    if (sure < w->spec->quota) {
        commit_confident(w);
        return;
    }
    for (int i = w->first; i < w->end; i++) {
        if (is_masked(w, i) && w->confidence[i] > w->spec->threshold)
            commit(w, i);
    }
}

static void commit_entropy(const window *w)
{
    float sum = 0.0f;
    for (bool first = true;; first = false) {
        const int i = best_masked(w, w->entropy, -1.0f);
        if (i < 0 || (!first && !(sum + w->entropy[i] < w->spec->threshold)))
            return;
        sum += w->entropy[i];
        commit(w, i);
    }
}

// The leftmost sub-block that still has a mask.
static void find_candidates(window *w)
{
    const int sub = w->spec->sub_block;
    w->first = 0;
    w->end = w->spec->count;
    if (sub <= 0)
        return;
    int masked = 0;
    while (masked < w->spec->count && !is_masked(w, masked))
        masked++;
    w->first = masked / sub * sub;
    if (w->spec->count - w->first > sub)
        w->end = w->first + sub;
}

static void unmask_window(const kern_unmask_args *a, const kern_unmask_window *spec)
{
    window w = {
        .spec = spec,
        .ids = kern_i32(a->ids) + spec->first,
        .state = kern_i32(a->state) + spec->first,
        .token = kern_ci32(a->token) + spec->row0,
        .confidence = kern_cf32(a->confidence) + spec->row0,
        .entropy = kern_cf32(a->entropy) + spec->row0,
    };
    for (int i = 0; i < spec->count; i++)
        w.state[i] &= ~KERN_ROW_NEW;
    find_candidates(&w);
    switch ((kern_unmask_rule)spec->rule) {
    case KERN_UNMASK_SEQUENTIAL:
        commit_leftmost(&w);
        break;
    case KERN_UNMASK_STATIC:
        commit_confident(&w);
        break;
    case KERN_UNMASK_DYNAMIC:
        commit_dynamic(&w);
        break;
    case KERN_UNMASK_ENTROPY:
        commit_entropy(&w);
        break;
    }
}

static bool span_fits(const kern_buf *buf, int first, int count)
{
    return first >= 0 && count >= 0 && (size_t)first + (size_t)count <= buf->count;
}

static rt_status check_window(const kern_unmask_args *a, int index, const kern_unmask_window *w)
{
    if (w->rule < KERN_UNMASK_SEQUENTIAL || w->rule > KERN_UNMASK_ENTROPY)
        return RT_FAIL(RT_ERR_INVALID, "kern_unmask: windows[%d].rule is %d", index, w->rule);
    if (w->quota < 1)
        return RT_FAIL(RT_ERR_INVALID, "kern_unmask: windows[%d].quota is %d, want at least 1",
                       index, w->quota);
    if (!span_fits(a->ids, w->first, w->count) || !span_fits(a->state, w->first, w->count))
        return RT_FAIL(RT_ERR_INVALID,
                       "kern_unmask: windows[%d]: first %d, count %d, but ids has %zu, state %zu",
                       index, w->first, w->count, a->ids->count, a->state->count);
    if (!span_fits(a->token, w->row0, w->count) || !span_fits(a->confidence, w->row0, w->count) ||
        !span_fits(a->entropy, w->row0, w->count))
        return RT_FAIL(RT_ERR_INVALID,
                       "kern_unmask: windows[%d]: row0 %d, count %d, but token has %zu rows", index,
                       w->row0, w->count, a->token->count);
    return RT_OK;
}

rt_status kern_cpu_unmask(kern_dev *dev, const kern_unmask_args *args)
{
    (void)dev;
    const kern_unmask_window *windows = args->windows->ptr;
    for (int i = 0; i < args->n; i++)
        RT_TRY(check_window(args, i, &windows[i]));
    for (int i = 0; i < args->n; i++)
        unmask_window(args, &windows[i]);
    return RT_OK;
}
