// SPDX-License-Identifier: Apache-2.0
#include "runtime/engine/pagebook.h"

#include "runtime/base/mem.h"

#include <string.h>

enum { NONE = -1 };

static int least_common_multiple(int a, int b)
{
    int x = a, y = b;
    while (y) {
        const int rest = x % y;
        x = y;
        y = rest;
    }
    return a / x * b;
}

static int capacity(const rt_pagebook *b)
{
    return b->sharing ? b->pages / b->unit_pages : 0;
}

static rt_status open_units(rt_pagebook *b)
{
    const size_t count = (size_t)capacity(b);
    size_t buckets = 1;
    while (buckets < count)
        buckets *= 2;
    RT_TRY(RT_ALLOC(b->units, count, "page book"));
    RT_TRY(RT_ALLOC(b->ids, count * (size_t)b->unit, "page book"));
    RT_TRY(RT_ALLOC(b->of, count * (size_t)b->unit_pages, "page book"));
    RT_TRY(RT_ALLOC(b->buckets, buckets, "page book"));
    for (size_t i = 0; i < buckets; i++)
        b->buckets[i] = NONE;
    b->bucket_mask = (int)buckets - 1;
    b->unused_unit = b->oldest = b->newest = NONE;
    for (int i = (int)count - 1; i >= 0; i--) {
        b->units[i].next = b->unused_unit;
        b->unused_unit = i;
    }
    return RT_OK;
}

static rt_status open_all(rt_pagebook *b)
{
    RT_TRY(RT_ALLOC(b->free_pages, (size_t)b->pages, "page book"));
    for (int i = 0; i < b->pages; i++)
        b->free_pages[i] = b->pages - 1 - i;
    b->free_count = b->pages;
    return open_units(b);
}

rt_status rt_pagebook_open(const rt_pagebook_shape *shape, rt_pagebook *out)
{
    const int unit = least_common_multiple(shape->block, shape->page);
    *out = (rt_pagebook){
        .pages = shape->pages,
        .page = shape->page,
        .unit = unit,
        .unit_pages = unit / shape->page,
        .sharing = shape->sharing,
    };
    const rt_status status = open_all(out);
    if (status != RT_OK)
        rt_pagebook_close(out);
    return status;
}

void rt_pagebook_close(rt_pagebook *b)
{
    rt_free(b->free_pages);
    rt_free(b->units);
    rt_free(b->ids);
    rt_free(b->of);
    rt_free(b->buckets);
    *b = (rt_pagebook){0};
}

rt_status rt_holding_open(const rt_pagebook *b, int pages, int prefill, rt_holding *out)
{
    *out = (rt_holding){.page_count = pages, .unit_count = b->sharing ? prefill / b->unit : 0};
    rt_status status;
    RT_TRY_GOTO(status, RT_ALLOC(out->pages, (size_t)pages, "pages of a request"), close);
    RT_TRY_GOTO(status, RT_ALLOC(out->units, (size_t)out->unit_count, "pages of a request"), close);
    return RT_OK;
close:
    rt_holding_close(out);
    return status;
}

void rt_holding_close(rt_holding *h)
{
    rt_free(h->pages);
    rt_free(h->units);
    *h = (rt_holding){0};
}

// ---- finding units --------------------------------------------------------------------

static int32_t *ids_of(const rt_pagebook *b, int32_t unit)
{
    return b->ids + (ptrdiff_t)unit * b->unit;
}

static int32_t *pages_of(const rt_pagebook *b, int32_t unit)
{
    return b->of + (ptrdiff_t)unit * b->unit_pages;
}

static int32_t *bucket_of(const rt_pagebook *b, int32_t parent, const int32_t *ids)
{
    uint64_t h = (uint64_t)(parent + 1) * 0x9e3779b97f4a7c15u; // 2^64 / golden ratio
    for (int i = 0; i < b->unit; i++)
        h = (h ^ (uint32_t)ids[i]) * 1099511628211u; // FNV-1a, a token at a time
    return &b->buckets[(h ^ h >> 32) & (uint64_t)b->bucket_mask];
}

static int32_t find_unit(const rt_pagebook *b, int32_t parent, const int32_t *ids)
{
    const size_t bytes = (size_t)b->unit * sizeof *ids;
    int32_t unit = *bucket_of(b, parent, ids);
    while (unit != NONE &&
           (b->units[unit].parent != parent || memcmp(ids_of(b, unit), ids, bytes) != 0))
        unit = b->units[unit].next;
    return unit;
}

// Finds what is in the book of a prompt's units; how many.
static int find_units(const rt_pagebook *b, const int32_t *prompt, const rt_holding *h)
{
    int found = 0;
    for (int32_t unit = NONE; found < h->unit_count; found++) {
        unit = find_unit(b, unit, prompt + (ptrdiff_t)found * b->unit);
        if (unit == NONE)
            break;
        h->units[found] = unit;
    }
    return found;
}

// How many of the first `found` units are held; they come first.
static int count_held(const rt_pagebook *b, const rt_holding *h, int found)
{
    int held = 0;
    while (held < found && b->units[h->units[held]].holders > 0)
        held++;
    return held;
}

int rt_pagebook_unused(const rt_pagebook *b)
{
    return b->free_count + b->idle * b->unit_pages;
}

int rt_pagebook_shared(const rt_pagebook *b, const int32_t *prompt, const rt_holding *h)
{
    return count_held(b, h, find_units(b, prompt, h)) * b->unit_pages;
}

// ---- the idle list, oldest to newest -----------------------------------------------------

static void link_idle(rt_pagebook *b, int32_t unit)
{
    b->units[unit].older = b->newest;
    b->units[unit].newer = NONE;
    *(b->newest == NONE ? &b->oldest : &b->units[b->newest].newer) = unit;
    b->newest = unit;
    b->idle++;
}

static void unlink_idle(rt_pagebook *b, int32_t unit)
{
    const rt_unit *u = &b->units[unit];
    *(u->older == NONE ? &b->oldest : &b->units[u->older].newer) = u->newer;
    *(u->newer == NONE ? &b->newest : &b->units[u->newer].older) = u->older;
    b->idle--;
}

// ---- pages and units come and go ---------------------------------------------------------

static void give_pages(rt_pagebook *b, const int32_t *pages, int count)
{
    for (int i = count - 1; i >= 0; i--)
        b->free_pages[b->free_count++] = pages[i];
}

// Takes a unit that nobody holds out of the book; its pages are free.
static void drop_unit(rt_pagebook *b, int32_t unit)
{
    int32_t *link = bucket_of(b, b->units[unit].parent, ids_of(b, unit));
    while (*link != unit)
        link = &b->units[*link].next;
    *link = b->units[unit].next;
    give_pages(b, pages_of(b, unit), b->unit_pages);
    b->units[unit].next = b->unused_unit;
    b->unused_unit = unit;
}

// Enters unit `i` of a prompt, with the pages that the holding has for it. There is an
// entry: each has pages of its own.
static void enter_unit(rt_pagebook *b, const int32_t *prompt, rt_holding *h, int i)
{
    const int32_t unit = b->unused_unit, parent = i ? h->units[i - 1] : NONE;
    const int32_t *ids = prompt + (ptrdiff_t)i * b->unit;
    int32_t *bucket = bucket_of(b, parent, ids);
    b->unused_unit = b->units[unit].next;
    b->units[unit] =
        (rt_unit){.parent = parent, .next = *bucket, .holders = 1, .writer = h->holder};
    *bucket = unit;
    memcpy(ids_of(b, unit), ids, (size_t)b->unit * sizeof *ids);
    memcpy(pages_of(b, unit), h->pages + (ptrdiff_t)i * b->unit_pages,
           (size_t)b->unit_pages * sizeof *h->pages);
    h->units[i] = unit;
}

static void hold_unit(rt_pagebook *b, const rt_holding *h, int i)
{
    const int32_t unit = h->units[i];
    if (b->units[unit].holders++ == 0)
        unlink_idle(b, unit);
    memcpy(h->pages + (ptrdiff_t)i * b->unit_pages, pages_of(b, unit),
           (size_t)b->unit_pages * sizeof *h->pages);
}

static void leave_unit(rt_pagebook *b, const rt_holding *h, int32_t unit)
{
    rt_unit *u = &b->units[unit];
    if (u->writer == h->holder)
        u->writer = 0;
    if (--u->holders > 0)
        return;
    if (u->written)
        link_idle(b, unit);
    else
        drop_unit(b, unit);
}

bool rt_pagebook_take(rt_pagebook *b, const int32_t *prompt, rt_holding *h)
{
    const int found = find_units(b, prompt, h);
    const int held = count_held(b, h, found) * b->unit_pages;
    if (h->page_count - held > rt_pagebook_unused(b))
        return false;
    for (int i = 0; i < found; i++)
        hold_unit(b, h, i);
    const int first = found * b->unit_pages;
    while (b->free_count < h->page_count - first) {
        const int32_t unit = b->oldest;
        unlink_idle(b, unit);
        drop_unit(b, unit);
    }
    for (int i = first; i < h->page_count; i++)
        h->pages[i] = b->free_pages[--b->free_count];
    for (int i = found; i < h->unit_count; i++)
        enter_unit(b, prompt, h, i);
    h->found = found;
    h->written = 0;
    return true;
}

void rt_pagebook_give(rt_pagebook *b, rt_holding *h)
{
    const int first = h->unit_count * b->unit_pages;
    give_pages(b, h->pages + first, h->page_count - first);
    for (int i = h->unit_count - 1; i >= 0; i--)
        leave_unit(b, h, h->units[i]);
    b->given++;
}

// ---- writing ------------------------------------------------------------------------------

int rt_pagebook_written(const rt_pagebook *b, rt_holding *h)
{
    while (h->written < h->unit_count && b->units[h->units[h->written]].written)
        h->written++;
    return h->written * b->unit;
}

bool rt_pagebook_claim(rt_pagebook *b, rt_holding *h)
{
    const int first = rt_pagebook_written(b, h) / b->unit;
    for (int i = first; i < h->unit_count && b->units[h->units[i]].writer == 0; i++)
        b->units[h->units[i]].writer = h->holder;
    return first == h->unit_count || b->units[h->units[first]].writer == h->holder;
}

void rt_pagebook_wrote(rt_pagebook *b, rt_holding *h, int tokens)
{
    for (int i = h->written; i < h->unit_count && (i + 1) * b->unit <= tokens; i++)
        b->units[h->units[i]].written = true;
}
