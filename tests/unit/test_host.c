// SPDX-License-Identifier: Apache-2.0
// The memory a process can have: of the machine, or less where a control group says so.
#include "tests/unit/testing.h"

#include "runtime/base/host.h"

#include <sys/stat.h>

static test_dir dir;

static size_t ask(const char *meminfo, const char *cgroup)
{
    const char *mem = test_write_text(&dir, "meminfo", meminfo);
    const char *groups = test_write_text(&dir, "cgroup", cgroup);
    return rt_host_memory_at(mem, groups, test_path(&dir, "mount"));
}

static void make(const char *folder)
{
    assert_int_equal(mkdir(test_path(&dir, folder), 0755), 0);
}

static const char machine[] = "MemTotal:       1000 kB\nMemFree:  7 kB\nSwapTotal:  24 kB\n";

static void test_machine(void **state)
{
    (void)state;
    assert_int_equal(ask(machine, ""), 1024 * 1024);
    assert_int_equal(ask(machine, "0::/none/such\n"), 1024 * 1024);
    assert_true(ask("nothing\n", "") == SIZE_MAX);
    assert_true(rt_host_memory_at("/no/file", "/no/file", "/no/mount") == SIZE_MAX);
    assert_true(rt_host_memory() > 1 << 20);
}

// The group's own limit is "max"; one around it has a number.
static void test_version_2(void **state)
{
    (void)state;
    make("mount/job");
    make("mount/job/step");
    test_write_text(&dir, "mount/job/step/memory.max", "max\n");
    assert_int_equal(ask(machine, "0::/job/step\n"), 1024 * 1024);
    test_write_text(&dir, "mount/job/memory.max", "500000\n");
    assert_int_equal(ask(machine, "0::/job/step\n"), 500000);
    test_write_text(&dir, "mount/memory.max", "400000\n"); // as a container sees its own
    assert_int_equal(ask(machine, "0::/\n"), 400000);
    assert_int_equal(ask(machine, "0::/job/step\n"), 400000);
}

static void test_version_1(void **state)
{
    (void)state;
    make("mount/memory");
    make("mount/memory/job");
    test_write_text(&dir, "mount/memory/memory.limit_in_bytes", "9223372036854771712\n");
    test_write_text(&dir, "mount/memory/job/memory.limit_in_bytes", "300000\n");
    assert_int_equal(ask(machine, "5:cpu:/job\n4:memory:/job\n"), 300000);
    assert_int_equal(ask(machine, "4:memory:/\n"), 1024 * 1024);
}

int main(void)
{
    dir = test_dir_new();
    make("mount");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_machine),
        cmocka_unit_test(test_version_2),
        cmocka_unit_test(test_version_1),
    };
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    test_dir_remove(&dir);
    return failed;
}
