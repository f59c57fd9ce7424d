// SPDX-License-Identifier: Apache-2.0
// CUDA against CPU, operation by operation. `--bench [TABLE]` prints speeds instead, `--only
// PATTERN` runs the tests whose name matches (with * and ?), with fewer cases.
#include "tests/gpu/bench.h"

#include <stdlib.h>

kern_dev *pt_cpu;
kern_dev *pt_gpu[PT_MODES];
bool pt_quick;
const char *const pt_mode_name[PT_MODES] = {"f32", "bf16"};

float pt_bf16(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (!isnan(x))
        bits = (bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u;
    memcpy(&x, &bits, sizeof x);
    return x;
}

void pt_round(float *x, size_t count)
{
    for (size_t i = 0; i < count; i++)
        x[i] = pt_bf16(x[i]);
}

void pt_near(const char *what, const float *cpu, const float *gpu, size_t count, double floor,
             double tolerance)
{
    double worst = 0.0;
    size_t at = 0;
    for (size_t i = 0; i < count; i++) {
        if (gpu[i] == cpu[i] || memcmp(&gpu[i], &cpu[i], sizeof *gpu) == 0)
            continue;
        const double want = (double)cpu[i], got = (double)gpu[i];
        double error = fabs(got - want) / fmax(floor, fabs(want));
        error = isnan(error) ? (double)INFINITY : error;
        if (error > worst) {
            worst = error;
            at = i;
        }
    }
    if (!(worst <= tolerance))
        fail_msg("%s: error %g at %zu of %zu, allowed %g: CPU %.9g, CUDA %.9g", what, worst, at,
                 count, tolerance, (double)cpu[at], (double)gpu[at]);
}

void pt_same(const char *what, const int32_t *cpu, const int32_t *gpu, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (cpu[i] != gpu[i])
            fail_msg("%s: entry %zu of %zu: CPU %d, CUDA %d", what, i, count, cpu[i], gpu[i]);
}

static uint16_t half_of(float x)
{
    _Float16 half = (_Float16)x;
    uint16_t bits;
    memcpy(&bits, &half, sizeof bits);
    return bits;
}

kern_buf *pt_weight(kern_dev *dev, kern_dtype stored, const float *values, size_t rows, size_t cols)
{
    const size_t count = rows * cols;
    uint16_t *narrow = kt_alloc(count, sizeof *narrow);
    for (size_t i = 0; stored != KERN_F32 && i < count; i++) {
        uint32_t bits;
        memcpy(&bits, &values[i], sizeof bits);
        narrow[i] = stored == KERN_BF16 ? (uint16_t)(bits >> 16) : half_of(values[i]);
    }
    kern_buf *buf = kt_out(dev, kern_dev_weight_dtype(dev, stored), count);
    const void *src = stored == KERN_F32 ? (const void *)values : narrow;
    KT_OK(kern_upload(&(kern_upload_args){
        .dst = buf, .src = src, .dtype = stored, .rows = rows, .cols = cols, .stride = cols}));
    KT_OK(kern_sync(dev));
    rt_free(narrow);
    return buf;
}

static float wide_of(kern_dtype dtype, uint16_t bits)
{
    const uint32_t word = (uint32_t)bits << 16;
    _Float16 half;
    float x;
    memcpy(&half, &bits, sizeof half);
    memcpy(&x, &word, sizeof x);
    return dtype == KERN_F16 ? (float)half : x;
}

float *pt_take(const kern_buf *buf, size_t count)
{
    const kern_dtype dtype = kern_buf_dtype(buf);
    void *raw = kt_take(buf, count);
    if (dtype == KERN_F32)
        return raw;
    float *wide = kt_floats(count);
    for (size_t i = 0; i < count; i++)
        wide[i] = wide_of(dtype, ((const uint16_t *)raw)[i]);
    rt_free(raw);
    return wide;
}

static void open_devices(void)
{
    pt_cpu = kt_open(4);
    for (int mode = 0; mode < PT_MODES; mode++) {
        const kern_dev_options options = {.kind = KERN_CUDA,
                                          .threads = 1,
                                          .precision = mode == PT_F32 ? KERN_PRECISION_F32
                                                                      : KERN_PRECISION_AUTO};
        const rt_status status = kern_dev_open(&options, &pt_gpu[mode]);
        if (status != RT_OK) {
            fprintf(stderr, "%s\n", rt_last_error());
            exit(1);
        }
    }
}

int main(int argc, char **argv)
{
    if (kern_device_count(KERN_CUDA) == 0) {
        printf("skipped: no CUDA device\n");
        return 77;
    }
    open_devices();
    int failed;
    if (argc > 1 && strcmp(argv[1], "--bench") == 0) {
        failed = bench_run(argc > 2 ? argv[2] : NULL);
    } else {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(pt_test_buffers),    cmocka_unit_test(pt_test_dense),
            cmocka_unit_test(pt_test_linear),     cmocka_unit_test(pt_test_kv_write),
            cmocka_unit_test(pt_test_locality),   cmocka_unit_test(pt_test_active),
            cmocka_unit_test(pt_test_page_score), cmocka_unit_test(pt_test_page_select),
            cmocka_unit_test(pt_test_page_plan),  cmocka_unit_test(pt_test_keys),
            cmocka_unit_test(pt_test_page_mass),  cmocka_unit_test(pt_test_plan_count),
            cmocka_unit_test(pt_test_attn),       cmocka_unit_test(pt_test_page_lse),
            cmocka_unit_test(pt_test_attn_sides), cmocka_unit_test(pt_test_attn_shares),
            cmocka_unit_test(pt_test_vocab),      cmocka_unit_test(pt_test_unmask),
            cmocka_unit_test(pt_test_graph),      cmocka_unit_test(pt_test_timer),
            cmocka_unit_test(pt_test_peers),
        };
        pt_quick = argc > 2 && strcmp(argv[1], "--only") == 0;
        if (pt_quick)
            cmocka_set_test_filter(argv[2]);
        failed = cmocka_run_group_tests(tests, NULL, NULL);
    }
    for (int mode = 0; mode < PT_MODES; mode++)
        kern_dev_close(pt_gpu[mode]);
    kern_dev_close(pt_cpu);
    return failed;
}
