// SPDX-License-Identifier: Apache-2.0
// losa info --trace: a trace of page plans, one line a plan.
#ifndef LAUNCHER_TRACE_PRINT_H
#define LAUNCHER_TRACE_PRINT_H

#include "runtime/base/status.h"

// Prints to standard output; RT_ERR_FORMAT for what is no whole trace, after the plans
// that were there.
rt_status app_trace_print(const char *path);

#endif
