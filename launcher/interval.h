// SPDX-License-Identifier: Apache-2.0
// 95 % intervals of shares and of differences between them, for small counts.
#ifndef LAUNCHER_INTERVAL_H
#define LAUNCHER_INTERVAL_H

#include <stddef.h>

typedef struct app_interval {
    double low, high; // both NaN where nothing was counted
} app_interval;

// Of the share right / n: the score interval (Wilson 1927).
app_interval app_interval_share(size_t right, size_t n);
// Of the difference (won - lost) / n between two shares of the same n things: the score
// interval for paired shares (Tango, Statistics in Medicine 17, 1998). With won = lost = 0
// it is +- z^2 / (n + z^2), not a point.
app_interval app_interval_paired(size_t won, size_t lost, size_t n);

#endif
