// SPDX-License-Identifier: Apache-2.0
// NaN and infinity in weights: found in every type and place, and nothing else is.
#include "tests/unit/testing.h"

#include "runtime/model/finite.h"

enum { ROWS = 3, COLS = 37 };

typedef struct pattern {
    kern_dtype dtype;
    uint32_t bits;
    const char *name; // NULL: finite
} pattern;

static const pattern patterns[] = {
    {KERN_F32, 0x7f800000u, "infinity"}, {KERN_F32, 0xff800000u, "infinity"},
    {KERN_F32, 0x7fc00000u, "NaN"},      {KERN_F32, 0x7f800001u, "NaN"},
    {KERN_F32, 0x7f7fffffu, NULL},       {KERN_F32, 0x80000001u, NULL},
    {KERN_BF16, 0x7f80u, "infinity"},    {KERN_BF16, 0xff80u, "infinity"},
    {KERN_BF16, 0x7fc0u, "NaN"},         {KERN_BF16, 0xff81u, "NaN"},
    {KERN_BF16, 0x7f7fu, NULL},          {KERN_BF16, 0x8000u, NULL},
    {KERN_F16, 0x7c00u, "infinity"},     {KERN_F16, 0xfc00u, "infinity"},
    {KERN_F16, 0x7e00u, "NaN"},          {KERN_F16, 0xfc01u, "NaN"},
    {KERN_F16, 0x7bffu, NULL},           {KERN_F16, 0x83ffu, NULL},
};

// A matrix of zeros with one number in it, at an address without alignment.
static rt_tensor matrix(unsigned char *bytes, const pattern *p, int row, int col)
{
    const size_t size = kern_dtype_size(p->dtype);
    memset(bytes, 0, ROWS * COLS * sizeof(float) + 1);
    memcpy(bytes + 1 + (size_t)(row * COLS + col) * size, &p->bits, size); // little endian
    return (rt_tensor){.name = "w",
                       .file = "f",
                       .dtype = p->dtype,
                       .dims = 2,
                       .shape = {ROWS, COLS},
                       .data = bytes + 1};
}

static void test_places(void **state)
{
    (void)state;
    unsigned char bytes[ROWS * COLS * sizeof(float) + 1];
    char place[32];
    for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++) {
        const pattern *p = &patterns[i];
        for (int at = 0; at < ROWS * COLS; at++) {
            const int row = at / COLS, col = at % COLS;
            const rt_tensor t = matrix(bytes, p, row, col);
            const rt_status status =
                rt_finite_check(&t, (par_range){0, ROWS}, (par_range){0, COLS});
            snprintf(place, sizeof place, "%s at [%d, %d]", p->name ? p->name : "", row, col);
            if (p->name)
                assert_fails(status, RT_ERR_FORMAT, "f: tensor 'w' holds", place);
            else
                assert_ok(status);
        }
    }
}

// A rank looks at its own slice only.
static void test_slices(void **state)
{
    (void)state;
    unsigned char bytes[ROWS * COLS * sizeof(float) + 1];
    const pattern nan = {KERN_BF16, 0x7fc0u, "NaN"};
    const rt_tensor t = matrix(bytes, &nan, 1, 20);
    assert_ok(rt_finite_check(&t, (par_range){0, 1}, (par_range){0, COLS}));
    assert_ok(rt_finite_check(&t, (par_range){2, 1}, (par_range){0, COLS}));
    assert_ok(rt_finite_check(&t, (par_range){0, ROWS}, (par_range){0, 20}));
    assert_ok(rt_finite_check(&t, (par_range){0, ROWS}, (par_range){21, COLS - 21}));
    assert_fails(rt_finite_check(&t, (par_range){1, 1}, (par_range){20, 1}), RT_ERR_FORMAT, "NaN",
                 "[1, 20]");
}

static void test_vector(void **state)
{
    (void)state;
    const float values[] = {1, 2, -INFINITY, 4};
    const rt_tensor t = {
        .name = "norm", .file = "f", .dtype = KERN_F32, .dims = 1, .shape = {4}, .data = values};
    assert_ok(rt_finite_check(&t, (par_range){0, 2}, (par_range){0, 1}));
    assert_fails(rt_finite_check(&t, (par_range){0, 4}, (par_range){0, 1}), RT_ERR_FORMAT,
                 "f: tensor 'norm' holds infinity at [2]", "--allow-nonfinite");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_places),
        cmocka_unit_test(test_slices),
        cmocka_unit_test(test_vector),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
