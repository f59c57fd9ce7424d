// SPDX-License-Identifier: Apache-2.0
// What this machine has.
#ifndef RT_BASE_HOST_H
#define RT_BASE_HOST_H

#include <stddef.h>

// Bytes that this process can ever have: the machine's memory and swap, or less where its
// control group, or one around it, has a limit. What others use is not taken off: that
// changes, and the page cache gives way. SIZE_MAX: not known.
size_t rt_host_memory(void);

// The same from files at other places, for tests: /proc/meminfo, /proc/self/cgroup, and the
// folder where control groups are mounted.
size_t rt_host_memory_at(const char *meminfo, const char *cgroup, const char *mount);

#endif
