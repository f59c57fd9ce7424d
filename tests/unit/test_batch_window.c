// SPDX-License-Identifier: Apache-2.0
// Who gets which request next.
#include "tests/unit/testing.h"

#include "launcher/batch_window.h"

static app_window window_of(const app_item *items, size_t n)
{
    app_window w = {0};
    memcpy(w.items, items, n * sizeof *items);
    w.count = n;
    return w;
}

static void test_longest_first(void **state)
{
    (void)state;
    static const app_item items[] = {{.line = 0, .need = 5},
                                     {.line = 1, .need = 9},
                                     {.line = 2, .need = 7},
                                     {.line = 3, .need = 9}};
    static const uint64_t order[] = {1, 3, 2, 0};
    const app_holding groups[] = {{0}, {0}};
    app_window w = window_of(items, 4);
    for (int i = 0; i < 4; i++)
        assert_int_equal(app_window_take(&w, groups, 2, (size_t)i % 2).line, order[i]);
    assert_int_equal(w.count, 0);
}

// Requests about the same document go where its pages are, unless a far longer one waits.
static void test_prefixes(void **state)
{
    (void)state;
    static const app_item items[] = {{.line = 0, .need = 10, .prefix = 77},
                                     {.line = 1, .need = 12},
                                     {.line = 2, .need = 11, .prefix = 88},
                                     {.line = 3, .need = 4, .prefix = 77}};
    static const app_item held[] = {{.line = 9, .need = 1, .prefix = 77}};
    const app_holding groups[] = {{held, 1, 0}, {NULL, 0, 88}, {NULL, 0, 0}};
    app_window w = window_of(items, 4);
    assert_int_equal(app_window_take(&w, groups, 3, 0).line, 0); // 77 is held here
    w = window_of(items, 4);
    assert_int_equal(app_window_take(&w, groups, 3, 1).line, 2); // 88 came last here
    w = window_of(items, 4);
    assert_int_equal(app_window_take(&w, groups, 3, 2).line, 1);
    assert_int_equal(app_window_take(&w, groups, 3, 2).line, 2); // elsewhere, but the longest
    static const app_item far[] = {{.line = 0, .need = 10, .prefix = 77}, {.line = 1, .need = 21}};
    w = window_of(far, 2);
    assert_int_equal(app_window_take(&w, groups, 3, 0).line, 1);
}

// Every request is handed out once, whatever the groups hold.
static void test_all(void **state)
{
    (void)state;
    bool seen[APP_WINDOW] = {false};
    app_window w = {.count = APP_WINDOW};
    app_holding groups[] = {{NULL, 0, 1}, {NULL, 0, 2}};
    for (size_t i = 0; i < APP_WINDOW; i++)
        w.items[i] = (app_item){.line = i, .need = (double)(i * 37 % 64), .prefix = i % 5};
    for (size_t i = 0; i < APP_WINDOW; i++) {
        const app_item item = app_window_take(&w, groups, 2, i % 2);
        assert_false(seen[item.line]);
        seen[item.line] = true;
        groups[i % 2].last = item.prefix;
    }
    assert_int_equal(w.count, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_longest_first),
        cmocka_unit_test(test_prefixes),
        cmocka_unit_test(test_all),
    };
    return cmocka_run_group_tests_name("batch_window", tests, NULL, NULL);
}
