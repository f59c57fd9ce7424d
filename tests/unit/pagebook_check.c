// SPDX-License-Identifier: Apache-2.0
#include "tests/unit/pagebook_check.h"

#include "tests/unit/testing.h"

// Who has a page.
enum { NOBODY = -1, FREE = -2, PRIVATE = -3 }; // or a unit

// The pages are one to one with the free list, the private parts and the units in use.
static void own(int32_t *owner, int pages, int32_t page, int32_t who)
{
    assert_true(page >= 0 && page < pages);
    assert_int_equal(owner[page], NOBODY);
    owner[page] = who;
}

static int own_pages(const rt_pagebook *b, const pagebook_holder *holders, int n, int32_t *owner)
{
    for (int i = 0; i < b->pages; i++)
        owner[i] = NOBODY;
    for (int i = 0; i < b->free_count; i++)
        own(owner, b->pages, b->free_pages[i], FREE);
    for (int i = 0; i < n; i++) {
        const rt_holding *h = holders[i].holding;
        for (int p = h->unit_count * b->unit_pages; p < h->page_count; p++)
            own(owner, b->pages, h->pages[p], PRIVATE);
    }
    int units = 0;
    for (int bucket = 0; bucket <= b->bucket_mask; bucket++)
        for (int32_t u = b->buckets[bucket]; u >= 0; u = b->units[u].next, units++)
            for (int p = 0; p < b->unit_pages; p++)
                own(owner, b->pages, b->of[u * b->unit_pages + p], u);
    for (int i = 0; i < b->pages; i++)
        assert_int_not_equal(owner[i], NOBODY);
    return units;
}

static bool holds(const rt_holding *h, int32_t unit)
{
    for (int i = 0; i < h->unit_count; i++)
        if (h->units[i] == unit)
            return true;
    return false;
}

// A unit by its holders: their number, and the oldest of them.
static void check_unit(const rt_pagebook *b, const pagebook_holder *holders, int n, int32_t unit)
{
    const rt_unit *u = &b->units[unit];
    int held = 0;
    uint32_t oldest = 0;
    for (int i = 0; i < n; i++) {
        const rt_holding *h = holders[i].holding;
        if (!holds(h, unit))
            continue;
        held++;
        oldest = !oldest || h->holder < oldest ? h->holder : oldest;
    }
    assert_int_equal(u->holders, held);
    assert_true(held > 0 || u->written);
    assert_true(u->written || u->writer == 0 || u->writer == oldest);
    assert_true(!u->written || u->parent < 0 || b->units[u->parent].written);
}

// A request's pages and units tell its prompt, from the first unit on.
static void check_holding(const rt_pagebook *b, const pagebook_holder *holder, const int32_t *owner)
{
    const rt_holding *h = holder->holding;
    assert_true(h->found <= h->unit_count && h->written <= h->unit_count);
    for (int i = 0; i < h->unit_count; i++) {
        const int32_t unit = h->units[i];
        assert_int_equal(b->units[unit].parent, i ? h->units[i - 1] : -1);
        assert_memory_equal(b->ids + unit * b->unit, holder->prompt + i * b->unit,
                            (size_t)b->unit * sizeof(int32_t));
        for (int p = 0; p < b->unit_pages; p++)
            assert_int_equal(owner[h->pages[i * b->unit_pages + p]], unit);
        assert_true(i >= h->written || b->units[unit].written);
    }
}

// Every idle unit once, and none before those that follow it in a prompt.
static int check_idle(const rt_pagebook *b)
{
    int count = 0;
    int32_t older = -1;
    for (int32_t u = b->oldest; u >= 0; older = u, u = b->units[u].newer, count++) {
        assert_true(count <= b->idle);
        assert_int_equal(b->units[u].older, older);
        assert_int_equal(b->units[u].holders, 0);
        for (int32_t before = b->oldest; before != u; before = b->units[before].newer)
            assert_int_not_equal(b->units[u].parent, before);
    }
    assert_int_equal(b->newest, older);
    assert_int_equal(count, b->idle);
    return count;
}

void pagebook_check(const rt_pagebook *b, const pagebook_holder *holders, int n)
{
    int32_t *owner = calloc((size_t)b->pages, sizeof *owner);
    assert_non_null(owner);
    const int units = own_pages(b, holders, n, owner);
    int idle = 0, unused = 0;
    for (int bucket = 0; bucket <= b->bucket_mask; bucket++)
        for (int32_t u = b->buckets[bucket]; u >= 0; u = b->units[u].next) {
            check_unit(b, holders, n, u);
            idle += b->units[u].holders == 0;
        }
    for (int32_t u = b->unused_unit; u >= 0; u = b->units[u].next)
        unused++;
    assert_int_equal(check_idle(b), idle);
    assert_int_equal(unused + units, b->sharing ? b->pages / b->unit_pages : 0);
    for (int i = 0; i < n; i++)
        check_holding(b, &holders[i], owner);
    free(owner);
}
