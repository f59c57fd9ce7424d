// SPDX-License-Identifier: Apache-2.0
// Which GPUs ranks may drive: one each, however the scheduler hands them out.
#include "tests/unit/testing.h"

#include "runtime/engine/engine_int.h"

// `id`: a byte for each rank, the first of its GPU's; `index` and `seen` as the ranks see them.
static rt_status check(int ranks, const char *id, const int *index, const int *seen)
{
    rt_seat seats[8];
    assert_in_range(ranks, 1, 8);
    for (int r = 0; r < ranks; r++) {
        seats[r] = (rt_seat){.kind = KERN_CUDA, .index = index[r], .seen = seen[r]};
        memset(seats[r].id, 7, sizeof seats[r].id);
        seats[r].id[KERN_ID_BYTES - 1] = (unsigned char)id[r];
    }
    return rt_seats_check(seats, ranks, ranks);
}

static void test_seats(void **state)
{
    (void)state;
    // Every rank sees all GPUs of its host.
    assert_ok(check(4, "abcd", (int[]){0, 1, 2, 3}, (int[]){4, 4, 4, 4}));
    // Every rank was given one, which it sees as number 0.
    assert_ok(check(4, "abcd", (int[]){0, 0, 0, 0}, (int[]){1, 1, 1, 1}));
    assert_ok(check(1, "a", (int[]){0}, (int[]){1}));
    // More ranks than GPUs: the third counts round.
    assert_fails(check(3, "aba", (int[]){0, 1, 0}, (int[]){2, 2, 2}), RT_ERR_UNSUPPORTED,
                 "ranks 0 and 2 would share a GPU (number 0 of the 2 that rank 0 sees)",
                 "3 ranks on this host");
    // All were given the same one.
    assert_fails(check(2, "aa", (int[]){0, 0}, (int[]){1, 1}), RT_ERR_UNSUPPORTED,
                 "ranks 0 and 1 would share a GPU (number 0 of the 1", "one of its own");
    // Masks that overlap.
    assert_fails(check(3, "abb", (int[]){0, 1, 2}, (int[]){4, 2, 3}), RT_ERR_UNSUPPORTED,
                 "ranks 1 and 2 would share a GPU (number 1 of the 2 that rank 1 sees)", "");
}

static void test_kinds(void **state)
{
    (void)state;
    rt_seat seats[3] = {{.kind = KERN_CPU}, {.kind = KERN_CPU}, {.kind = KERN_CPU}};
    assert_ok(rt_seats_check(seats, 3, 3));
    seats[2] = (rt_seat){.kind = KERN_CUDA, .seen = 1};
    assert_fails(rt_seats_check(seats, 3, 3), RT_ERR_INVALID,
                 "device: rank 2 would take a GPU, rank 0 the CPU", "one of a kind");
    seats[0] = (rt_seat){.kind = KERN_CUDA, .id = {1}, .seen = 1};
    assert_fails(rt_seats_check(seats, 3, 3), RT_ERR_INVALID,
                 "device: rank 1 would take the CPU, rank 0 a GPU", "one of a kind");
}

static void test_none(void **state)
{
    (void)state;
    unsigned char id[KERN_ID_BYTES] = {9};
    assert_ok(kern_device_id(KERN_CPU, 0, id));
    assert_int_equal(id[0], 0);
    assert_fails(kern_device_id(KERN_CPU, 1, id), RT_ERR_INVALID, "device 1 of 1", "");
    if (kern_device_count(KERN_CUDA) > 0)
        skip();
    rt_engine_options o = rt_engine_options_default();
    comm *c;
    kern_dev *dev;
    assert_int_equal(o.device, KERN_CPU);
    o.device = KERN_CUDA;
    assert_ok(comm_open_self(&c));
    assert_fails(rt_engine_device(&o, c, &dev), RT_ERR_UNSUPPORTED, "device cuda", "no GPU");
    comm_close(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_seats),
        cmocka_unit_test(test_kinds),
        cmocka_unit_test(test_none),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
