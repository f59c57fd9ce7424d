// SPDX-License-Identifier: Apache-2.0
#include "runtime/base/status.h"

#include <stdarg.h>
#include <stdio.h>

enum { MESSAGE_MAX = 1024, WHERE_MAX = 256 };

static _Thread_local char last_message[MESSAGE_MAX];
static _Thread_local char last_where[WHERE_MAX];

const char *rt_status_text(rt_status code)
{
    switch (code) {
    case RT_OK:
        return "ok";
#define RT_STATUS_CASE(name, value, text)                                                          \
    case RT_ERR_##name:                                                                            \
        return text;
        RT_STATUS_MAP(RT_STATUS_CASE)
#undef RT_STATUS_CASE
    }
    return "unknown status";
}

rt_status rt_fail(rt_status code, const char *file, int line, const char *fmt, ...)
{
    // The new message may quote the old one: format aside, then copy.
    char text[MESSAGE_MAX];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    snprintf(last_message, sizeof last_message, "%s", text);
    snprintf(last_where, sizeof last_where, "%s:%d", file, line);
    return code;
}

const char *rt_last_error(void)
{
    return last_message;
}

const char *rt_last_error_where(void)
{
    return last_where;
}
