// SPDX-License-Identifier: Apache-2.0
// The requests that rank 0 looks ahead to, and which of them a group gets next.
//
// The longest first, so that none is left over when the others are done. Of those of a
// similar length, one whose prompt begins like one that the group has: it shares the pages.
#ifndef LAUNCHER_BATCH_WINDOW_H
#define LAUNCHER_BATCH_WINDOW_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct app_item {
    uint64_t line, offset; // in the input
    size_t len;            // bytes
    double need;           // app_batch_line_need
    uint64_t prefix;       // app_batch_line_prefix
    int losses;            // of groups that had it
} app_item;

enum { APP_WINDOW = 256 };

typedef struct app_window { // zero-initialise
    app_item items[APP_WINDOW];
    size_t count;
} app_window;

// What a group has.
typedef struct app_holding {
    const app_item *items;
    size_t count;
    uint64_t last; // prefix of the request that it was given last; 0: none
} app_holding;

// Takes an item out for group `mine` of all `groups`; the window is not empty.
app_item app_window_take(app_window *window, const app_holding *groups, size_t count, size_t mine);

#endif
