// SPDX-License-Identifier: Apache-2.0
// Status codes and the per-thread error message.
//
// Every fallible function returns rt_status. The first function that decides
// that something is an error writes the message with RT_FAIL; callers pass the
// code up unchanged with RT_TRY. The message is one line that names the file or
// parameter and the cause. main() prints it once.
#ifndef RT_BASE_STATUS_H
#define RT_BASE_STATUS_H

#define RT_STATUS_MAP(X)                                                                           \
    X(NOMEM, -1, "out of memory")                                                                  \
    X(IO, -2, "input/output error")                                                                \
    X(FORMAT, -3, "malformed input")                                                               \
    X(INVALID, -4, "invalid argument")                                                             \
    X(UNSUPPORTED, -5, "not supported")                                                            \
    X(LIMIT, -6, "limit exceeded")                                                                 \
    X(TIMEOUT, -7, "timed out")                                                                    \
    X(CANCELLED, -8, "cancelled")                                                                  \
    X(DEVICE, -9, "device error")                                                                  \
    X(COMM, -10, "communication error")                                                            \
    X(INTERNAL, -11, "internal error")

typedef enum rt_status {
    RT_OK = 0,
#define RT_STATUS_ENUM(name, value, text) RT_ERR_##name = value,
    RT_STATUS_MAP(RT_STATUS_ENUM)
#undef RT_STATUS_ENUM
} rt_status;

// Short English name of a code ("out of memory"). Never NULL.
const char *rt_status_text(rt_status code);

// Stores the message of an error in this thread and returns `code`.
rt_status rt_fail(rt_status code, const char *file, int line, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

// Message of this thread's last RT_FAIL; "" if there was none. Valid until the
// thread's next RT_FAIL.
const char *rt_last_error(void);

// Source position ("file:line") of this thread's last RT_FAIL, for debug logs.
const char *rt_last_error_where(void);

#define RT_FAIL(code, ...) rt_fail((code), __FILE__, __LINE__, __VA_ARGS__)

#define RT_TRY(expr)                                                                               \
    do {                                                                                           \
        rt_status rt_try_status_ = (expr);                                                         \
        if (rt_try_status_ != RT_OK)                                                               \
            return rt_try_status_;                                                                 \
    } while (0)

// For functions with a cleanup label: stores the code in `status`, then jumps.
#define RT_TRY_GOTO(status, expr, label)                                                           \
    do {                                                                                           \
        (status) = (expr);                                                                         \
        if ((status) != RT_OK)                                                                     \
            goto label;                                                                            \
    } while (0)

// Entry checks of public functions: names the condition that does not hold.
#define RT_CHECK_ARG(cond)                                                                         \
    do {                                                                                           \
        if (!(cond))                                                                               \
            return RT_FAIL(RT_ERR_INVALID, "%s: requires %s", __func__, #cond);                    \
    } while (0)

#endif
