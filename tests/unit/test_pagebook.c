// SPDX-License-Identifier: Apache-2.0
// The page book without an engine: what is shared, who writes, what is kept, what goes.
// pagebook_check looks over the whole book after every change.
#include "tests/unit/pagebook_check.h"
#include "tests/unit/testing.h"

#include "runtime/base/rng.h"

enum { LIVE_MAX = 12, PROMPT_MAX = 64 };

// A book and what is taken from it.
typedef struct library {
    rt_pagebook book;
    rt_holding holdings[LIVE_MAX];
    int32_t prompts[LIVE_MAX][PROMPT_MAX];
    int lens[LIVE_MAX];
    int written[LIVE_MAX]; // tokens that the holder has computed
    bool live[LIVE_MAX];
    uint32_t last;
} library;

static void open_library(library *l, int pages, int page, int block, bool sharing)
{
    *l = (library){0};
    const rt_pagebook_shape shape = {pages, page, block, sharing};
    assert_ok(rt_pagebook_open(&shape, &l->book));
}

static void check(const library *l)
{
    pagebook_holder holders[LIVE_MAX];
    int n = 0;
    for (int i = 0; i < LIVE_MAX; i++)
        if (l->live[i])
            holders[n++] = (pagebook_holder){l->prompts[i], &l->holdings[i]};
    pagebook_check(&l->book, holders, n);
}

static bool take(library *l, int i, int len, int pages)
{
    assert_false(l->live[i]);
    rt_holding *h = &l->holdings[i];
    assert_ok(rt_holding_open(&l->book, pages, len, h));
    h->holder = ++l->last;
    l->lens[i] = len;
    l->written[i] = 0;
    l->live[i] = rt_pagebook_take(&l->book, l->prompts[i], h);
    if (!l->live[i])
        rt_holding_close(h);
    check(l);
    return l->live[i];
}

static void give(library *l, int i)
{
    rt_pagebook_give(&l->book, &l->holdings[i]);
    rt_holding_close(&l->holdings[i]);
    l->live[i] = false;
    check(l);
}

static void write_all(library *l, int i)
{
    assert_true(rt_pagebook_claim(&l->book, &l->holdings[i]));
    rt_pagebook_wrote(&l->book, &l->holdings[i], l->lens[i]);
    check(l);
}

static void close_library(library *l)
{
    for (int i = 0; i < LIVE_MAX; i++)
        if (l->live[i])
            give(l, i);
    assert_int_equal(rt_pagebook_unused(&l->book), l->book.pages);
    rt_pagebook_close(&l->book);
}

// Tokens `first` to the end of a prompt; the ones before are `seed`'s.
static void prompt(library *l, int i, int32_t seed, int same)
{
    for (int k = 0; k < PROMPT_MAX; k++)
        l->prompts[i][k] = k < same ? 1000 * seed + k : 100000 * (i + 1) + k;
}

// ---- what is shared ---------------------------------------------------------------------

// Whole units of the common beginning, for every relation of blocks and pages.
static void test_units(void **state)
{
    (void)state;
    static const struct {
        int page, block, unit;
    } cases[] = {{4, 4, 4}, {4, 16, 16}, {16, 4, 16}, {8, 12, 24}, {16, 16, 16}};
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        for (int same = 0; same <= 48; same++) {
            library l;
            open_library(&l, 100, cases[c].page, cases[c].block, true);
            assert_int_equal(l.book.unit, cases[c].unit);
            const int pages = PROMPT_MAX / cases[c].page + 3;
            prompt(&l, 0, 7, same);
            prompt(&l, 1, 7, same);
            assert_true(take(&l, 0, 48, pages));
            const int shared = same / cases[c].unit * cases[c].unit / cases[c].page;
            rt_holding next;
            assert_ok(rt_holding_open(&l.book, pages, 48, &next));
            assert_int_equal(rt_pagebook_shared(&l.book, l.prompts[1], &next), shared);
            rt_holding_close(&next);
            assert_true(take(&l, 1, 48, pages));
            assert_int_equal(rt_pagebook_unused(&l.book), 100 - 2 * pages + shared);
            for (int p = 0; p < pages; p++)
                assert_int_equal(l.holdings[0].pages[p] == l.holdings[1].pages[p], p < shared);
            close_library(&l);
        }
    }
}

// The same tokens elsewhere in a prompt are another unit.
static void test_place_counts(void **state)
{
    (void)state;
    library l;
    open_library(&l, 64, 4, 4, true);
    for (int k = 0; k < PROMPT_MAX; k++) {
        l.prompts[0][k] = k % 4;       // one unit over and over
        l.prompts[1][k] = (k + 1) % 4; // a shifted one
    }
    assert_true(take(&l, 0, 16, 4));
    assert_true(take(&l, 1, 16, 4));
    assert_int_equal(rt_pagebook_unused(&l.book), 64 - 8);
    close_library(&l);
}

static void test_without_sharing(void **state)
{
    (void)state;
    library l;
    open_library(&l, 64, 4, 4, false);
    for (int i = 0; i < 2; i++) {
        prompt(&l, i, 1, PROMPT_MAX);
        assert_true(take(&l, i, 32, 10));
        assert_true(rt_pagebook_claim(&l.book, &l.holdings[i]));
        assert_int_equal(rt_pagebook_written(&l.book, &l.holdings[i]), 0);
    }
    assert_int_equal(rt_pagebook_unused(&l.book), 64 - 20);
    close_library(&l);
}

// ---- who writes -------------------------------------------------------------------------

static void test_followers(void **state)
{
    (void)state;
    library l;
    open_library(&l, 200, 4, 4, true);
    rt_holding *h = l.holdings;
    for (int i = 0; i < 4; i++) // A; B shares 8 tokens, C and D 24 with it
        prompt(&l, i, 1, i == 1 ? 8 : 24);
    for (int i = 0; i < 4; i++)
        assert_true(take(&l, i, 32, 9));
    for (int i = 0; i < 4; i++)
        assert_int_equal(rt_pagebook_claim(&l.book, &h[i]), i == 0);
    rt_pagebook_wrote(&l.book, &h[0], 7); // a whole unit, and a part
    check(&l);
    for (int i = 0; i < 4; i++)
        assert_int_equal(rt_pagebook_written(&l.book, &h[i]), 4);
    give(&l, 0); // cancelled: B goes on, to the end of what it shares
    for (int i = 1; i < 4; i++)
        assert_int_equal(rt_pagebook_claim(&l.book, &h[i]), i == 1);
    rt_pagebook_wrote(&l.book, &h[1], 32);
    check(&l);
    assert_int_equal(rt_pagebook_written(&l.book, &h[1]), 32);
    for (int i = 2; i < 4; i++) {
        assert_int_equal(rt_pagebook_written(&l.book, &h[i]), 8);
        assert_int_equal(rt_pagebook_claim(&l.book, &h[i]), i == 2);
    }
    rt_pagebook_wrote(&l.book, &h[2], 32);
    check(&l);
    assert_int_equal(rt_pagebook_written(&l.book, &h[3]), 24);
    assert_true(rt_pagebook_claim(&l.book, &h[3]));
    close_library(&l);
}

// ---- what is kept -------------------------------------------------------------------------

static void test_kept_and_evicted(void **state)
{
    (void)state;
    library l;
    open_library(&l, 16, 4, 4, true);
    for (int i = 0; i < 3; i++)
        prompt(&l, i, i, PROMPT_MAX);
    for (int i = 0; i < 2; i++) {
        assert_true(take(&l, i, 16, 5));
        write_all(&l, i);
        give(&l, i);
    }
    assert_int_equal(l.book.idle, 8);
    assert_int_equal(l.book.free_count, 8);
    assert_true(take(&l, 0, 16, 5)); // again, the older one: it is found, and now the newer
    assert_int_equal(rt_pagebook_written(&l.book, &l.holdings[0]), 16);
    give(&l, 0);
    assert_true(take(&l, 2, 0, 10)); // two pages more than are free: 1's last units go
    assert_int_equal(l.book.idle, 6);
    assert_false(take(&l, 3, 0, 7));
    assert_true(take(&l, 3, 0, 3)); // the rest of 1's, and the last of 0's
    assert_int_equal(l.book.idle, 3);
    give(&l, 3);
    assert_true(take(&l, 0, 16, 4));
    assert_int_equal(rt_pagebook_written(&l.book, &l.holdings[0]), 12);
    close_library(&l);
}

// What a request finds counts for it, held or idle; only what it adds has to be there.
static void test_admission_counts_once(void **state)
{
    (void)state;
    library l;
    open_library(&l, 16, 4, 4, true);
    for (int i = 0; i < 4; i++)
        prompt(&l, i, 1, 32);
    assert_true(take(&l, 0, 32, 10));
    write_all(&l, 0);
    assert_true(take(&l, 1, 32, 10));
    assert_true(take(&l, 2, 32, 12));
    assert_int_equal(rt_pagebook_unused(&l.book), 0);
    assert_false(take(&l, 3, 32, 9));
    give(&l, 1);
    assert_false(take(&l, 3, 32, 11));
    assert_true(take(&l, 3, 32, 10));
    give(&l, 0), give(&l, 2), give(&l, 3);
    // Idle units do not count twice: as found ones and as room.
    assert_int_equal(l.book.idle, 8);
    assert_false(take(&l, 0, 32, 17));
    assert_true(take(&l, 0, 32, 16));
    assert_int_equal(l.holdings[0].found, 8);
    close_library(&l);
}

// Of a prompt that was not written whole, the written part is kept.
static void test_half_written(void **state)
{
    (void)state;
    library l;
    open_library(&l, 32, 8, 4, true);
    prompt(&l, 0, 1, PROMPT_MAX);
    assert_true(take(&l, 0, 40, 6));
    rt_pagebook_wrote(&l.book, &l.holdings[0], 20);
    give(&l, 0);
    assert_int_equal(l.book.idle, 2);
    assert_true(take(&l, 0, 40, 6));
    assert_int_equal(l.holdings[0].found, 2);
    assert_int_equal(rt_pagebook_written(&l.book, &l.holdings[0]), 16);
    close_library(&l);
}

// ---- random traffic ---------------------------------------------------------------------

typedef struct dice {
    uint32_t n;
} dice;

static int roll(dice *d, int sides)
{
    const uint32_t counter[4] = {d->n++};
    return (int)(rt_philox4x32(20, counter).v[0] % (uint32_t)sides);
}

static int common(const library *l, int i, int k)
{
    int n = 0;
    while (n < l->lens[i] && n < l->lens[k] && l->prompts[i][n] == l->prompts[k][n])
        n++;
    return n / l->book.unit;
}

// Two requests that hold pages share those of their common units, and no others.
static void check_pairs(const library *l)
{
    for (int i = 0; i < LIVE_MAX; i++)
        for (int k = i + 1; k < LIVE_MAX; k++) {
            if (!l->live[i] || !l->live[k])
                continue;
            const rt_holding *a = &l->holdings[i], *b = &l->holdings[k];
            const int shared = common(l, i, k) * l->book.unit_pages;
            for (int p = 0; p < a->page_count && p < b->page_count; p++)
                assert_int_equal(a->pages[p] == b->pages[p], p < shared);
        }
}

// One of a few beginnings, cut anywhere, with an end of its own.
static void draw_prompt(library *l, dice *d, int i)
{
    prompt(l, i, roll(d, 3), roll(d, PROMPT_MAX + 1));
    if (roll(d, 2))
        l->prompts[i][PROMPT_MAX / 2] = roll(d, 2);
}

// Everyone who may compute does so for a while; somebody always may.
static void advance(library *l, dice *d)
{
    int waiting = 0, writing = 0;
    for (uint32_t age = 1; age <= l->last; age++)
        for (int i = 0; i < LIVE_MAX; i++) {
            rt_holding *h = &l->holdings[i];
            if (!l->live[i] || h->holder != age || l->written[i] == l->lens[i])
                continue;
            const int done = rt_pagebook_written(&l->book, h);
            l->written[i] = l->written[i] > done ? l->written[i] : done;
            if (!rt_pagebook_claim(&l->book, h)) {
                waiting++;
                continue;
            }
            writing++;
            const int left = l->lens[i] - l->written[i];
            l->written[i] += left < 8 ? left : roll(d, 9);
            rt_pagebook_wrote(&l->book, h, l->written[i]);
        }
    assert_true(waiting == 0 || writing > 0);
}

static void test_traffic(void **state)
{
    (void)state;
    enum { ROUNDS = 4000 };
    int taken = 0, refused = 0, found = 0;
    dice d = {0};
    library l;
    open_library(&l, 60, 4, 8, true);
    for (int round = 0; round < ROUNDS; round++) {
        const int i = roll(&d, LIVE_MAX);
        if (l.live[i]) {
            give(&l, i);
        } else {
            draw_prompt(&l, &d, i);
            const int len = roll(&d, PROMPT_MAX / 8 + 1) * 8, unused = rt_pagebook_unused(&l.book);
            const bool got = take(&l, i, len, len / 4 + roll(&d, 6));
            taken += got;
            refused += !got;
            found += got ? l.holdings[i].found : 0;
            assert_true(got || rt_pagebook_unused(&l.book) == unused);
        }
        check_pairs(&l);
        advance(&l, &d);
        check(&l);
    }
    assert_true(taken > ROUNDS / 4 && refused > ROUNDS / 50 && found > taken);
    close_library(&l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_units),
        cmocka_unit_test(test_place_counts),
        cmocka_unit_test(test_without_sharing),
        cmocka_unit_test(test_followers),
        cmocka_unit_test(test_kept_and_evicted),
        cmocka_unit_test(test_admission_counts_once),
        cmocka_unit_test(test_half_written),
        cmocka_unit_test(test_traffic),
    };
    return cmocka_run_group_tests_name("page book", tests, NULL, NULL);
}
