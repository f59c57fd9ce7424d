// SPDX-License-Identifier: Apache-2.0
#include "runtime/base/host.h"

#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

// Memory and swap, in KiB in the file.
static size_t machine_bytes(const char *path)
{
    FILE *f = fopen(path, "re");
    if (!f)
        return SIZE_MAX;
    char line[128];
    unsigned long long sum = 0, kib;
    while (fgets(line, sizeof line, f))
        if (sscanf(line, "MemTotal: %llu kB", &kib) == 1 ||
            sscanf(line, "SwapTotal: %llu kB", &kib) == 1)
            sum += kib;
    fclose(f);
    return sum ? (size_t)sum * 1024 : SIZE_MAX;
}

// The number in a file; SIZE_MAX without one ("max").
static size_t limit_in(const char *path)
{
    FILE *f = fopen(path, "re");
    if (!f)
        return SIZE_MAX;
    unsigned long long bytes;
    const int got = fscanf(f, "%llu", &bytes);
    fclose(f);
    return got == 1 ? (size_t)bytes : SIZE_MAX;
}

// The lowest limit of a group and those around it.
static size_t group_limit(const char *mount, const char *group, const char *name)
{
    char path[PATH_MAX], at[PATH_MAX];
    size_t least = SIZE_MAX;
    snprintf(at, sizeof at, "%s", group);
    for (;;) {
        const int n = snprintf(path, sizeof path, "%s%s/%s", mount, at, name);
        if (n > 0 && (size_t)n < sizeof path)
            least = smaller(least, limit_in(path));
        char *slash = strrchr(at, '/');
        if (!slash)
            return least;
        *slash = '\0';
    }
}

// A line is "0::/group" of version 2, or "4:memory:/group" of version 1.
static size_t group_bytes(const char *cgroup, const char *mount)
{
    FILE *f = fopen(cgroup, "re");
    if (!f)
        return SIZE_MAX;
    char line[PATH_MAX], v1[PATH_MAX];
    snprintf(v1, sizeof v1, "%s/memory", mount);
    size_t least = SIZE_MAX;
    while (fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = '\0';
        const char *memory = strstr(line, ":memory:");
        if (strncmp(line, "0::", 3) == 0)
            least = smaller(least, group_limit(mount, line + 3, "memory.max"));
        else if (memory)
            least = smaller(least, group_limit(v1, memory + 8, "memory.limit_in_bytes"));
    }
    fclose(f);
    return least;
}

size_t rt_host_memory_at(const char *meminfo, const char *cgroup, const char *mount)
{
    return smaller(machine_bytes(meminfo), group_bytes(cgroup, mount));
}

size_t rt_host_memory(void)
{
    return rt_host_memory_at("/proc/meminfo", "/proc/self/cgroup", "/sys/fs/cgroup");
}
