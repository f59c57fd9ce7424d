// SPDX-License-Identifier: Apache-2.0
// Buffers, uploads and the dense layers.
#include "tests/gpu/parity.h"

// Larger than the staging memory, so that its halves take turns.
static void check_copies(kern_dev *dev, kt_rng *rng)
{
    enum { COUNT = 5 * 1000 * 1000 + 3 };
    int32_t *data = kt_ints(COUNT), *back = kt_ints(COUNT);
    for (size_t i = 0; i < COUNT; i++)
        data[i] = (int32_t)kt_next(rng);
    kern_buf *a = kt_in_i32(dev, data, COUNT), *b = kt_out_i32(dev, COUNT);
    KT_OK(kern_copy(b, 7, a, 3, COUNT - 7));
    KT_OK(kern_read(b, 7, back, COUNT - 7));
    KT_SAME(back, data + 3, COUNT - 7, "copy");
    KT_OK(kern_fill_zero(b, 100));
    KT_OK(kern_read(b, 99, back, 2));
    assert_int_equal(back[0], 0);
    assert_int_equal(back[1], data[100 - 4]);
    kern_buf *fresh;
    KT_OK(kern_buf_new(dev, KERN_F32, 1000, "fresh", &fresh));
    KT_OK(kern_read(fresh, 0, back, 1000));
    for (int i = 0; i < 1000; i++)
        assert_int_equal(back[i], 0);
    kern_buf_free(fresh);
    kern_buf_free(a);
    kern_buf_free(b);
    rt_free(data);
    rt_free(back);
}

// A strided slice from each type to each: what comes back is the value or its rounding.
static void check_upload(kern_dev *dev, kt_rng *rng, kern_dtype from, kern_dtype to)
{
    const size_t rows = 37, cols = 53, stride = 61;
    float *values = kt_random(rng, rows * stride, 3.0f);
    uint16_t *narrow = kt_alloc(rows * stride, sizeof *narrow);
    for (size_t i = 0; i < rows * stride; i++) {
        values[i] = i % 97 == 0 ? 0x1p-20f * (float)(i % 7) : pt_bf16(values[i]);
        const _Float16 half = (_Float16)values[i];
        uint32_t bits;
        memcpy(&bits, &values[i], sizeof bits);
        narrow[i] = (uint16_t)(bits >> 16);
        if (from == KERN_F16) {
            memcpy(&narrow[i], &half, sizeof half);
            values[i] = (float)half;
        }
    }
    kern_buf *buf = kt_out(dev, to, rows * cols + 5);
    KT_OK(kern_upload(&(kern_upload_args){.dst = buf,
                                          .first = 5,
                                          .src = from == KERN_F32 ? (const void *)values : narrow,
                                          .dtype = from,
                                          .rows = rows,
                                          .cols = cols,
                                          .stride = stride}));
    char *back = kt_alloc(rows * cols, 4);
    KT_OK(kern_read(buf, 5, back, rows * cols));
    for (size_t i = 0; i < rows * cols; i++) {
        const float want = values[i / cols * stride + i % cols];
        float got;
        uint16_t bits = 0;
        if (to == KERN_F32) {
            memcpy(&got, back + 4 * i, sizeof got);
        } else {
            memcpy(&bits, back + 2 * i, sizeof bits);
            const uint32_t wide = (uint32_t)bits << 16;
            _Float16 half;
            memcpy(&half, &bits, sizeof half);
            memcpy(&got, &wide, sizeof got);
            got = to == KERN_F16 ? (float)half : got;
        }
        const float rounded = to == KERN_F16    ? (float)(_Float16)want
                              : to == KERN_BF16 ? pt_bf16(want)
                                                : want;
        if (got != rounded)
            fail_msg("upload %s to %s: element %zu is %g, want %g", kern_dtype_name(from),
                     kern_dtype_name(to), i, (double)got, (double)rounded);
    }
    kern_buf_free(buf);
    rt_free(back);
    rt_free(narrow);
    rt_free(values);
}

// Normals differ by an ulp or two of log, sine and cosine; then by the rounding of the type.
static void check_fill(kern_dev *dev, kern_dtype dtype, size_t count)
{
    const kern_fill_normal_args fill = {.count = count, .seed = 0x123456789abcdefu, .scale = 3.0f};
    kern_fill_normal_args on_cpu = fill, on_gpu = fill;
    on_cpu.dst = kt_out_f32(pt_cpu, count);
    on_gpu.dst = kt_out(dev, dtype, count);
    KT_OK(kern_fill_normal(pt_cpu, &on_cpu));
    KT_OK(kern_fill_normal(dev, &on_gpu));
    float *want = kt_take(on_cpu.dst, count);
    float *wide = pt_take(on_gpu.dst, count);
    const double rounding = dtype == KERN_F32 ? 0 : dtype == KERN_BF16 ? 0x1p-8 : 0x1p-11;
    pt_near("fill", want, wide, count, 1.0, 5e-6 + rounding);
    kern_buf_free(on_cpu.dst);
    kern_buf_free(on_gpu.dst);
    rt_free(want);
    rt_free(wide);
}

static void check_xor(kern_dev *dev, kt_rng *rng, size_t count)
{
    int32_t *words = kt_ints(count), want, got;
    for (size_t i = 0; i < count; i++)
        words[i] = (int32_t)kt_next(rng);
    kern_dev *const devs[] = {pt_cpu, dev};
    for (int i = 0; i < 2; i++) {
        kern_buf *src = kt_in_i32(devs[i], words, count), *out = kt_out_i32(devs[i], 1);
        KT_OK(kern_xor_words(devs[i], &(kern_xor_words_args){src, count, out}));
        KT_OK(kern_read(out, 0, i ? &got : &want, 1));
        kern_buf_free(src);
        kern_buf_free(out);
    }
    pt_same("xor", &want, &got, 1);
    rt_free(words);
}

void pt_test_buffers(void **state)
{
    (void)state;
    const kern_dtype types[] = {KERN_F32, KERN_BF16, KERN_F16};
    kt_rng rng = {1};
    check_copies(pt_gpu[PT_BF16], &rng);
    for (size_t i = 0; i < KT_COUNT(types); i++)
        for (size_t j = 0; j < KT_COUNT(types); j++)
            check_upload(pt_gpu[PT_BF16], &rng, types[i], types[j]);
    const size_t counts[] = {1, 7, 4096, 100001};
    for (size_t i = 0; i < KT_COUNT(types); i++)
        for (size_t j = 0; j < KT_COUNT(counts); j++)
            check_fill(pt_gpu[PT_BF16], types[i], counts[j]);
    for (size_t j = 0; j < KT_COUNT(counts); j++)
        check_xor(pt_gpu[PT_BF16], &rng, counts[j]);
    check_xor(pt_gpu[PT_BF16], &rng, 10 * 1000 * 1000 + 3);
}

typedef struct dense_case {
    int rows, cols, heads, kv_heads, dim, shard;
} dense_case;

// Everything a dense case produces, in one array. What linears read is of the type of the
// weights.
static float *run_dense(kern_dev *dev, const dense_case *c, uint64_t seed, kern_dtype stored,
                        size_t *count)
{
    kt_rng rng = {seed};
    const size_t rows = (size_t)c->rows, cols = (size_t)c->cols, dim = (size_t)c->dim;
    const size_t shard = (size_t)c->shard, half = dim / 2;
    const size_t width = (size_t)(c->heads + 2 * c->kv_heads) * dim;
    enum { POSITIONS = 300 };
    float *table = kt_random(&rng, shard * cols, 1.0f), *x = kt_random(&rng, rows * cols, 1.0f);
    float *wide = kt_random(&rng, rows * 2 * cols, 4.0f);
    float *weight = kt_random(&rng, cols > dim ? cols : dim, 1.0f);
    float *qkv_in = kt_random(&rng, rows * width, 2.0f);
    float *angles = kt_random(&rng, POSITIONS * half, 1.0f);
    int32_t *ids = kt_ints(rows), *pos = kt_ints(rows), *index = kt_ints(rows);
    pt_round(table, shard * cols);
    pt_round(wide, rows * 2 * cols);
    for (size_t i = 0; stored == KERN_F16 && i < shard * cols; i++)
        table[i] = (float)(_Float16)table[i];
    for (size_t r = 0; r < rows; r++) {
        ids[r] = kt_int(&rng, 0, 2 * c->shard);
        pos[r] = kt_int(&rng, 0, POSITIONS - 1);
        index[r] = kt_int(&rng, 0, c->rows - 1);
    }
    kern_buf *w = pt_weight(dev, stored, table, shard, cols), *id = kt_in_i32(dev, ids, rows);
    const kern_dtype kept = kern_dev_weight_dtype(dev, stored);
    kern_buf *embedded = kt_out_f32(dev, rows * cols), *normed = kt_out(dev, kept, rows * cols);
    kern_buf *stream = kt_in_f32(dev, x, rows * cols), *norm = kt_in_f32(dev, weight, cols);
    kern_buf *head_norm = kt_in_f32(dev, weight, dim), *at = kt_in_i32(dev, pos, rows);
    kern_buf *gate_up = pt_weight(dev, stored, wide, rows, 2 * cols);
    kern_buf *act = kt_out(dev, kept, rows * cols), *picked = kt_out(dev, kept, rows * cols);
    kern_buf *idx = kt_in_i32(dev, index, rows);
    kern_buf *qkv = kt_in_f32(dev, qkv_in, rows * width);
    kern_buf *cosine = kt_in_f32(dev, angles, POSITIONS * half);
    KT_OK(kern_embed(dev, &(kern_embed_args){w, id, embedded, c->rows, c->cols, 11, c->shard}));
    KT_OK(kern_rmsnorm(
        dev, &(kern_rmsnorm_args){stream, embedded, norm, normed, c->rows, c->cols, 1e-6f}));
    KT_OK(
        kern_rmsnorm(dev, &(kern_rmsnorm_args){stream, embedded, NULL, NULL, c->rows, c->cols, 0}));
    KT_OK(kern_swiglu(dev, &(kern_swiglu_args){gate_up, act, c->rows, c->cols}));
    KT_OK(kern_gather_rows(dev, &(kern_gather_rows_args){normed, idx, picked, c->rows, c->cols}));
    KT_OK(kern_qk_rope(dev, &(kern_qk_rope_args){.qkv = qkv,
                                                 .q_norm = c->rows % 2 ? head_norm : NULL,
                                                 .k_norm = head_norm,
                                                 .pos = at,
                                                 .cos = cosine,
                                                 .sin = cosine,
                                                 .rows = c->rows,
                                                 .heads = c->heads,
                                                 .kv_heads = c->kv_heads,
                                                 .head_dim = c->dim,
                                                 .max_pos = POSITIONS,
                                                 .eps = 1e-6f}));
    kern_buf *const outs[] = {embedded, stream, normed, act, picked, qkv};
    float *all = kt_floats(5 * rows * cols + rows * width);
    *count = 0;
    for (size_t i = 0; i < KT_COUNT(outs); i++) {
        const size_t n = outs[i] == qkv ? rows * width : rows * cols;
        float *part = pt_take(outs[i], n);
        memcpy(all + *count, part, n * sizeof *all);
        *count += n;
        rt_free(part);
    }
    kern_buf *const bufs[] = {w,  id,  embedded, normed, stream, norm, head_norm,
                              at, act, gate_up,  picked, idx,    qkv,  cosine};
    for (size_t i = 0; i < KT_COUNT(bufs); i++)
        kern_buf_free(bufs[i]);
    void *const arrays[] = {table, x, wide, weight, qkv_in, angles, ids, pos, index};
    for (size_t i = 0; i < KT_COUNT(arrays); i++)
        rt_free(arrays[i]);
    return all;
}

void pt_test_dense(void **state)
{
    (void)state;
    const dense_case cases[] = {
        {1, 1, 1, 1, 2, 3},        {7, 33, 3, 1, 6, 50},       {16, 4096, 32, 8, 128, 400},
        {33, 1000, 5, 5, 64, 100}, {512, 384, 6, 2, 32, 1000}, {4, 12289, 14, 2, 256, 20},
    };
    const kern_dtype types[] = {KERN_F32, KERN_BF16, KERN_F16};
    for (size_t i = 0; i < KT_COUNT(cases); i++)
        for (size_t t = 0; t < KT_COUNT(types); t++)
            for (int mode = 0; mode < PT_MODES; mode++) {
                size_t count;
                float *cpu = run_dense(pt_cpu, &cases[i], 7 * i + t, types[t], &count);
                float *gpu = run_dense(pt_gpu[mode], &cases[i], 7 * i + t, types[t], &count);
                char what[80];
                snprintf(what, sizeof what, "dense case %zu, %s weights, %s", i,
                         kern_dtype_name(types[t]), pt_mode_name[mode]);
                const bool rounds = mode == PT_BF16 && types[t] != KERN_F32;
                pt_near(what, cpu, gpu, count, 0.1, rounds ? pt_narrow : pt_tolerance);
                rt_free(cpu);
                rt_free(gpu);
            }
}

typedef struct linear_case {
    int rows, n, k;
    bool bias, exact; // x exact in bf16 and f16
    bool narrow;      // x and y of the weight's type
} linear_case;

static float *run_linear(kern_dev *dev, const linear_case *c, uint64_t seed, kern_dtype stored)
{
    kt_rng rng = {seed};
    const size_t rows = (size_t)c->rows, n = (size_t)c->n, k = (size_t)c->k;
    float *w = kt_random(&rng, n * k, 1.0f), *bias = kt_random(&rng, n, 1.0f);
    float *x = kt_random(&rng, rows * k, 1.0f);
    for (size_t i = 0; i < n * k; i++)
        w[i] = stored == KERN_F16 ? (float)(_Float16)w[i] : pt_bf16(w[i]);
    if (c->exact)
        for (size_t i = 0; i < rows * k; i++)
            x[i] = (float)(_Float16)pt_bf16(x[i]);
    const kern_dtype of_w = kern_dev_weight_dtype(dev, stored);
    kern_buf *xb = c->narrow ? pt_weight(dev, stored, x, rows, k) : kt_in_f32(dev, x, rows * k);
    kern_buf *wb = pt_weight(dev, stored, w, n, k);
    kern_buf *bb = c->bias ? kt_in_f32(dev, bias, n) : NULL;
    kern_buf *y = kt_out(dev, c->narrow && !c->bias ? of_w : KERN_F32, rows * n);
    KT_OK(kern_linear(dev, &(kern_linear_args){xb, wb, bb, y, c->rows, c->n, c->k}));
    float *out = pt_take(y, rows * n);
    kern_buf_free(xb);
    kern_buf_free(wb);
    kern_buf_free(bb);
    kern_buf_free(y);
    rt_free(x);
    rt_free(w);
    rt_free(bias);
    return out;
}

static void compare_linear(const linear_case *c, uint64_t seed, kern_dtype stored, int mode)
{
    float *cpu = run_linear(pt_cpu, c, seed, stored);
    float *gpu = run_linear(pt_gpu[mode], c, seed, stored);
    char what[120];
    snprintf(what, sizeof what, "linear of %d x %d x %d%s%s, %s weights, %s", c->rows, c->n, c->k,
             c->bias ? " and bias" : "", c->narrow ? ", narrow" : "", kern_dtype_name(stored),
             pt_mode_name[mode]);
    // A sum of k products of size 1 is of size sqrt(k); rounding x or y to the weight's
    // type costs 2^-9 of that.
    const bool rounds = mode == PT_BF16 && stored != KERN_F32 && (!c->exact || c->narrow);
    pt_near(what, cpu, gpu, (size_t)c->rows * (size_t)c->n, sqrt((double)c->k),
            rounds ? pt_narrow : pt_tolerance);
    rt_free(cpu);
    rt_free(gpu);
}

void pt_test_linear(void **state)
{
    (void)state;
    const linear_case cases[] = {
        {1, 1, 1, true, true, false},        {3, 5, 7, false, true, false},
        {16, 640, 512, true, true, false},   {33, 129, 1000, true, true, false},
        {512, 256, 384, false, true, false}, {16, 640, 512, false, false, false},
        {100, 77, 4096, true, false, false}, {100, 77, 4096, false, true, true},
        {16, 640, 512, false, true, true},   {17, 3001, 520, true, true, true},
    };
    const kern_dtype types[] = {KERN_F32, KERN_BF16, KERN_F16};
    for (size_t i = 0; i < KT_COUNT(cases); i++)
        for (size_t t = 0; t < KT_COUNT(types); t++)
            for (int mode = 0; mode < PT_MODES; mode++)
                compare_linear(&cases[i], 31 * i + t, types[t], mode);
}

// A rank alone takes the same way as several, but for the others' parts: sums change nothing,
// and the norm is kern_rmsnorm's.
static void check_lone_peer(kern_dev *dev, kt_rng *rng, int rows, int cols, kern_dtype stored)
{
    char handle[KERN_PEER_HANDLE];
    kern_peers *peers;
    KT_OK(kern_peers_new(dev, 0, 1, 10.0, handle, &peers));
    KT_OK(kern_peers_connect(peers, handle));
    const size_t count = (size_t)rows * (size_t)cols;
    float *x = kt_random(rng, count, 1.0f), *add = kt_random(rng, count, 1.0f);
    float *weight = kt_random(rng, (size_t)cols, 1.0f);
    kern_buf *w = kt_in_f32(dev, weight, (size_t)cols), *sum = kt_in_f32(dev, add, count);
    float *got[2], *normed[2];
    for (int shared = 0; shared < 2; shared++) {
        kern_buf *stream = kt_in_f32(dev, x, count);
        kern_buf *out = kt_out(dev, kern_dev_weight_dtype(dev, stored), count);
        const kern_rmsnorm_args args = {stream, sum, w, out, rows, cols, 1e-6f};
        KT_OK(shared ? kern_peers_rmsnorm(peers, &args) : kern_rmsnorm(dev, &args));
        got[shared] = kt_take(stream, count);
        normed[shared] = pt_take(out, count);
        kern_buf_free(stream);
        kern_buf_free(out);
    }
    KT_SAME(got[0], got[1], count, "stream");
    pt_near("normed", normed[0], normed[1], count, 0.1,
            stored == KERN_F32 ? pt_tolerance : pt_narrow);
    KT_OK(kern_peers_sum(peers, sum, count));
    float *same = kt_take(sum, count);
    KT_SAME(same, add, count, "sum of one");
    assert_false(kern_peers_failed(peers));
    kern_peers_free(peers);
    kern_buf_free(w);
    kern_buf_free(sum);
    void *const arrays[] = {x, add, weight, same, got[0], got[1], normed[0], normed[1]};
    for (size_t i = 0; i < KT_COUNT(arrays); i++)
        rt_free(arrays[i]);
}

void pt_test_peers(void **state)
{
    (void)state;
    kt_rng rng = {8};
    check_lone_peer(pt_gpu[PT_F32], &rng, 3, 12, KERN_F32);
    check_lone_peer(pt_gpu[PT_BF16], &rng, 16, 4096, KERN_BF16);
    check_lone_peer(pt_gpu[PT_BF16], &rng, 128, 8192, KERN_F16);
}
