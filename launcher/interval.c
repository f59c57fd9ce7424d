// SPDX-License-Identifier: Apache-2.0
#include "launcher/interval.h"

#include <math.h>

static const double z = 1.959963984540054; // normal quantile of 0.975

app_interval app_interval_share(size_t right, size_t n)
{
    if (n == 0)
        return (app_interval){NAN, NAN};
    const double count = (double)n, p = (double)right / count;
    const double whole = 1 + z * z / count;
    const double middle = (p + z * z / (2 * count)) / whole;
    const double half = z / whole * sqrt(p * (1 - p) / count + z * z / (4 * count * count));
    return (app_interval){fmax(middle - half, 0), fmin(middle + half, 1)};
}

// How far the counts are from a true difference d, in standard deviations; falls as d
// grows. `q` is the likeliest share of losses under d (Tango's equation 16).
static double distance(double won, double lost, double n, double d)
{
    const double b = (2 * n - won + lost) * d - won - lost;
    const double c = -lost * d * (1 - d);
    const double q = (sqrt(fmax(b * b - 8 * n * c, 0)) - b) / (4 * n);
    const double variance = n * (2 * q + d * (1 - d));
    const double off = won - lost - n * d;
    return variance > 0 ? off / sqrt(variance) : off == 0 ? 0 : copysign(INFINITY, off);
}

// The d between `near` and `far` at which the distance is z.
static double limit(double won, double lost, double n, double near, double far)
{
    enum { HALVINGS = 60 };
    for (int i = 0; i < HALVINGS; i++) {
        const double d = (near + far) / 2;
        if (fabs(distance(won, lost, n, d)) < z)
            near = d;
        else
            far = d;
    }
    return near;
}

app_interval app_interval_paired(size_t won, size_t lost, size_t n)
{
    if (n == 0)
        return (app_interval){NAN, NAN};
    const double w = (double)won, l = (double)lost, count = (double)n;
    const double d = (w - l) / count;
    return (app_interval){limit(w, l, count, d, -1), limit(w, l, count, d, 1)};
}
