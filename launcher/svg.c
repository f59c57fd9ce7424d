// SPDX-License-Identifier: Apache-2.0
#include "launcher/svg.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

enum { WIDTH = 760, HEIGHT = 440, LEFT = 70, RIGHT = 260, TOP = 40, BOTTOM = 60, MARK = 4 };

static const char *const colours[] = {"#1f77b4", "#d62728", "#2ca02c", "#ff7f0e", "#9467bd",
                                      "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf"};
enum { COLOURS = sizeof colours / sizeof colours[0] };

// ---- elements ----------------------------------------------------------------------

static rt_status put_escaped(rt_str *out, const char *text)
{
    for (; *text; text++) {
        const char *name = *text == '<'   ? "&lt;"
                           : *text == '>' ? "&gt;"
                           : *text == '&' ? "&amp;"
                           : *text == '"' ? "&quot;"
                                          : NULL;
        RT_TRY(name ? rt_str_puts(out, name) : rt_str_append(out, text, 1));
    }
    return RT_OK;
}

static rt_status put_text(rt_str *out, double x, double y, const char *how, const char *text)
{
    RT_TRY(rt_str_printf(out, "<text x=\"%.1f\" y=\"%.1f\" %s>", x, y, how));
    RT_TRY(put_escaped(out, text));
    return rt_str_puts(out, "</text>\n");
}

static rt_status put_line(rt_str *out, double x1, double y1, double x2, double y2,
                          const char *colour)
{
    return rt_str_printf(out,
                         "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\"/>\n",
                         x1, y1, x2, y2, colour);
}

static rt_status open_svg(rt_str *out, int width, int height, const char *title)
{
    RT_TRY(rt_str_printf(out,
                         "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
                         "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" "
                         "viewBox=\"0 0 %d %d\" font-family=\"sans-serif\" font-size=\"12\">\n"
                         "<rect width=\"%d\" height=\"%d\" fill=\"white\"/>\n",
                         width, height, width, height, width, height));
    return put_text(out, LEFT, TOP / 2.0 + 4, "font-size=\"14\"", title);
}

static rt_status put_titles(rt_str *out, double right, double bottom, const char *x, const char *y)
{
    char turned[80];
    const double middle = (TOP + bottom) / 2;
    RT_TRY(put_text(out, (LEFT + right) / 2, bottom + 42, "text-anchor=\"middle\"", x));
    snprintf(turned, sizeof turned, "text-anchor=\"middle\" transform=\"rotate(-90 18 %.1f)\"",
             middle);
    return put_text(out, 18, middle, turned, y);
}

// ---- axes ----------------------------------------------------------------------------

typedef struct axis {
    double low, high; // of the values
    double from, to;  // where they lie
} axis;

static double place(const axis *a, double value)
{
    return a->from + (value - a->low) / (a->high - a->low) * (a->to - a->from);
}

static void widen(axis *a, double value)
{
    if (isfinite(value)) {
        a->low = fmin(a->low, value);
        a->high = fmax(a->high, value);
    }
}

// 1, 2 or 5 times a power of ten, for about five steps.
static double tick_step(const axis *a)
{
    const double rough = (a->high - a->low) / 5, power = pow(10, floor(log10(rough)));
    const double part = rough / power;
    return power * (part <= 1 ? 1 : part <= 2 ? 2 : part <= 5 ? 5 : 10);
}

// Ends the axis on ticks.
static void round_axis(axis *a)
{
    if (!(a->low <= a->high)) { // no value
        a->low = 0;
        a->high = 1;
    }
    if (a->high - a->low < 1e-9 * fmax(fabs(a->high), 1)) {
        const double half = fmax(fabs(a->high) * 0.1, 0.1);
        a->low -= half;
        a->high += half;
    }
    const double step = tick_step(a);
    a->low = floor(a->low / step + 1e-9) * step;
    a->high = ceil(a->high / step - 1e-9) * step;
}

static rt_status put_ticks(rt_str *out, const axis *x, const axis *y)
{
    char text[32];
    const double dx = tick_step(x), dy = tick_step(y);
    for (double v = x->low; v < x->high + dx / 2; v += dx) {
        snprintf(text, sizeof text, "%.4g", fabs(v) < dx / 2 ? 0 : v);
        RT_TRY(put_line(out, place(x, v), y->from, place(x, v), y->to, "#dddddd"));
        RT_TRY(put_text(out, place(x, v), y->from + 18, "text-anchor=\"middle\"", text));
    }
    for (double v = y->low; v < y->high + dy / 2; v += dy) {
        snprintf(text, sizeof text, "%.4g", fabs(v) < dy / 2 ? 0 : v);
        RT_TRY(put_line(out, x->from, place(y, v), x->to, place(y, v), "#dddddd"));
        RT_TRY(put_text(out, x->from - 8, place(y, v) + 4, "text-anchor=\"end\"", text));
    }
    return RT_OK;
}

// ---- plots -----------------------------------------------------------------------------

static bool is_shown(const app_point *p)
{
    return isfinite(p->x) && isfinite(p->y);
}

static void measure(const app_plot *plot, axis *x, axis *y)
{
    *x = (axis){INFINITY, -INFINITY, LEFT, WIDTH - RIGHT};
    *y = (axis){INFINITY, -INFINITY, HEIGHT - BOTTOM, TOP};
    for (size_t s = 0; s < plot->count; s++) {
        for (size_t i = 0; i < plot->series[s].count; i++) {
            const app_point *p = &plot->series[s].points[i];
            if (!is_shown(p))
                continue;
            widen(x, p->x);
            widen(y, p->y);
            widen(y, p->low);
            widen(y, p->high);
        }
    }
    round_axis(x);
    round_axis(y);
}

// A circle, a square, a diamond or a triangle.
static rt_status put_mark(rt_str *out, size_t series, double x, double y)
{
    const char *colour = colours[series % COLOURS];
    switch (series % 4) {
    case 0:
        return rt_str_printf(out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"%d\" fill=\"%s\"/>\n", x, y,
                             MARK, colour);
    case 1:
        return rt_str_printf(
            out, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%d\" height=\"%d\" fill=\"%s\"/>\n", x - MARK,
            y - MARK, 2 * MARK, 2 * MARK, colour);
    case 2:
        return rt_str_printf(out, "<path d=\"M%.1f %.1f l5 5 l-5 5 l-5 -5 z\" fill=\"%s\"/>\n", x,
                             y - 5, colour);
    default:
        return rt_str_printf(out, "<path d=\"M%.1f %.1f l5 9 l-10 0 z\" fill=\"%s\"/>\n", x, y - 5,
                             colour);
    }
}

static rt_status put_points(rt_str *out, const app_plot *plot, size_t series, const axis *x,
                            const axis *y)
{
    const char *colour = colours[series % COLOURS];
    const app_series *s = &plot->series[series];
    const app_point *before = NULL;
    for (size_t i = 0; i < s->count; i++) {
        const app_point *p = &s->points[i];
        if (!is_shown(p))
            continue;
        const double px = place(x, p->x), py = place(y, p->y);
        if (before)
            RT_TRY(put_line(out, place(x, before->x), place(y, before->y), px, py, colour));
        if (isfinite(p->low) && isfinite(p->high))
            RT_TRY(put_line(out, px, place(y, p->low), px, place(y, p->high), colour));
        RT_TRY(put_mark(out, series, px, py));
        before = p;
    }
    return RT_OK;
}

// Wide enough for the longest name beside the axes.
static int plot_width(const app_plot *plot)
{
    enum { LETTER = 7, KEY = 40 };
    size_t letters = 0;
    for (size_t s = 0; s < plot->count; s++) {
        const size_t len = strlen(plot->series[s].name);
        letters = len > letters ? len : letters;
    }
    const int need = WIDTH - RIGHT + KEY + LETTER * (int)letters;
    return need > WIDTH ? need : WIDTH;
}

rt_status app_svg_plot(const app_plot *plot, rt_str *out)
{
    axis x, y;
    measure(plot, &x, &y);
    RT_TRY(open_svg(out, plot_width(plot), HEIGHT, plot->title));
    RT_TRY(put_ticks(out, &x, &y));
    RT_TRY(put_titles(out, x.to, y.from, plot->x, plot->y));
    for (size_t s = 0; s < plot->count; s++) {
        const double row = TOP + 10 + 18.0 * (double)s;
        RT_TRY(put_points(out, plot, s, &x, &y));
        RT_TRY(put_mark(out, s, x.to + 20, row));
        RT_TRY(put_text(out, x.to + 32, row + 4, "", plot->series[s].name));
    }
    return rt_str_puts(out, "</svg>\n");
}

// ---- heat maps -------------------------------------------------------------------------

static rt_status put_cell(rt_str *out, double x, double y, int size, double value)
{
    // From white to dark blue.
    const double v = fmin(fmax(value, 0), 1);
    const int red = (int)lround(255 - 247 * v), green = (int)lround(255 - 207 * v);
    const int blue = (int)lround(255 - 148 * v);
    RT_TRY(rt_str_printf(out,
                         "<rect x=\"%.1f\" y=\"%.1f\" width=\"%d\" height=\"%d\" "
                         "fill=\"#%02x%02x%02x\" stroke=\"white\"/>\n",
                         x, y, size, size, (unsigned)red, (unsigned)green, (unsigned)blue));
    char text[16];
    snprintf(text, sizeof text, "%.2f", value);
    return put_text(out, x + size / 2.0, y + size / 2.0 + 4,
                    v > 0.5 ? "text-anchor=\"middle\" font-size=\"10\" fill=\"white\""
                            : "text-anchor=\"middle\" font-size=\"10\"",
                    text);
}

rt_status app_svg_heat(const app_heat *heat, rt_str *out)
{
    enum { SIZE = 32 };
    const double right = LEFT + SIZE * (double)heat->columns;
    const double bottom = TOP + SIZE * (double)heat->rows;
    char text[24];
    RT_TRY(open_svg(out, (int)fmax(right + 20, 320), (int)bottom + BOTTOM, heat->title));
    RT_TRY(put_titles(out, right, bottom, heat->x, heat->y));
    for (size_t r = 0; r < heat->rows; r++) {
        const double y = TOP + SIZE * (double)r;
        snprintf(text, sizeof text, "%zu", r);
        RT_TRY(put_text(out, LEFT - 8, y + SIZE / 2.0 + 4, "text-anchor=\"end\"", text));
        for (size_t c = 0; c < heat->columns; c++) {
            const double value = heat->value[r * heat->columns + c];
            if (isfinite(value))
                RT_TRY(put_cell(out, LEFT + SIZE * (double)c, y, SIZE, value));
        }
    }
    for (size_t c = 0; c < heat->columns; c++) {
        snprintf(text, sizeof text, "%zu", c);
        RT_TRY(put_text(out, LEFT + SIZE * ((double)c + 0.5), bottom + 18, "text-anchor=\"middle\"",
                        text));
    }
    return rt_str_puts(out, "</svg>\n");
}

rt_status app_svg_write(const char *path, const rt_str *svg)
{
    FILE *file = fopen(path, "we");
    const bool written = file && fwrite(svg->data, 1, svg->len, file) == svg->len;
    const bool closed = file && fclose(file) == 0;
    return written && closed ? RT_OK
                             : RT_FAIL(RT_ERR_IO, "%s: cannot write: %s", path, strerror(errno));
}
