// SPDX-License-Identifier: Apache-2.0
#include "launcher/batch_window.h"

// A request that begins like others may go before one that is up to twice as long.
static const double SIMILAR = 0.5;

static bool has_prefix(const app_holding *group, uint64_t prefix)
{
    for (size_t i = 0; i < group->count; i++)
        if (group->items[i].prefix == prefix)
            return true;
    return group->last == prefix;
}

// 2: its prefix is here; 1: nowhere; 0: in another group only.
static int rank_of(const app_item *item, const app_holding *groups, size_t count, size_t mine)
{
    if (item->prefix == 0)
        return 1;
    if (has_prefix(&groups[mine], item->prefix))
        return 2;
    for (size_t g = 0; g < count; g++)
        if (has_prefix(&groups[g], item->prefix))
            return 0;
    return 1;
}

static bool is_longer(const app_item *a, const app_item *b)
{
    return a->need > b->need || (a->need == b->need && a->line < b->line);
}

app_item app_window_take(app_window *w, const app_holding *groups, size_t count, size_t mine)
{
    size_t best = 0;
    for (size_t i = 1; i < w->count; i++)
        if (is_longer(&w->items[i], &w->items[best]))
            best = i;
    const double enough = SIMILAR * w->items[best].need;
    int rank = rank_of(&w->items[best], groups, count, mine);
    for (size_t i = 0; i < w->count; i++) {
        if (w->items[i].need < enough)
            continue;
        const int other = rank_of(&w->items[i], groups, count, mine);
        if (other > rank || (other == rank && is_longer(&w->items[i], &w->items[best]))) {
            best = i;
            rank = other;
        }
    }
    const app_item item = w->items[best];
    w->items[best] = w->items[--w->count];
    return item;
}
