// SPDX-License-Identifier: Apache-2.0
// The table is complete; bad arguments are refused with a message that names the
// operation and the field; zero rows are fine; devices and buffers behave.
#include "kernels/kern_int.h"
#include "tests/kern/kern_testing.h"

#include <limits.h>

typedef struct fixture {
    kern_dev *dev, *other_dev;
    kern_buf *f32, *i32, *i64, *bf16;        // large enough for every valid shape below
    kern_buf *small, *small_i32, *small_i64; // 1 element: too small for each of them
    kern_buf *foreign;                       // f32 of another device
    kern_batch batch;
    kern_plan plan;
    kern_kv kv;
} fixture;

enum { BIG = 4096 };

static kern_buf *make(kern_dev *dev, kern_dtype dtype, size_t count)
{
    kern_buf *buf = NULL;
    KT_OK(kern_buf_new(dev, dtype, count, "check", &buf));
    return buf;
}

static int open_fixture(void **state)
{
    fixture *f = kt_alloc(1, sizeof *f);
    f->dev = kt_open(1);
    f->other_dev = kt_open(1);
    f->f32 = make(f->dev, KERN_F32, BIG);
    f->i32 = make(f->dev, KERN_I32, BIG);
    f->i64 = make(f->dev, KERN_I64, BIG);
    f->bf16 = make(f->dev, KERN_BF16, BIG);
    f->small = make(f->dev, KERN_F32, 1);
    f->small_i32 = make(f->dev, KERN_I32, 1);
    f->small_i64 = make(f->dev, KERN_I64, 1);
    f->foreign = make(f->other_dev, KERN_F32, BIG);
    f->batch = (kern_batch){.rows = 4,
                            .segs = 2,
                            .sparse_rows = 2,
                            .sparse_segs = 1,
                            .scan_segs = 1,
                            .block = 2,
                            .page = 2,
                            .max_pages = 2,
                            .ids = f->i32,
                            .pos = f->i32,
                            .row_state = f->i32,
                            .row_seg = f->i32,
                            .seg_row0 = f->i32,
                            .seg_kind = f->i32,
                            .page_table = f->i32,
                            .kv_slot = f->i32,
                            .cache_slot = f->i32};
    f->plan = (kern_plan){.lists = 1,
                          .act_cap = 2,
                          .act_rows = f->i32,
                          .act_count = f->i32,
                          .pages = f->i32,
                          .page_count = f->i32};
    f->kv = (kern_kv){.k = f->f32,
                      .v = f->f32,
                      .kmin = f->f32,
                      .kmax = f->f32,
                      .pages = 2,
                      .kv_heads = 2,
                      .head_dim = 4};
    *state = f;
    return 0;
}

static int close_fixture(void **state)
{
    fixture *f = *state;
    kern_buf *const owned[] = {f->f32,   f->i32,       f->i64,       f->bf16,
                               f->small, f->small_i32, f->small_i64, f->foreign};
    for (size_t i = 0; i < KT_COUNT(owned); i++)
        kern_buf_free(owned[i]);
    kern_dev_close(f->dev);
    kern_dev_close(f->other_dev);
    rt_free(f);
    return 0;
}

// Copies `good`, changes it, and expects a refusal that names `field`.
#define BAD(op, good, field, change)                                                               \
    do {                                                                                           \
        __typeof__(good) a = (good);                                                               \
        change;                                                                                    \
        KT_REFUSED(op(f->dev, &a), RT_ERR_INVALID, #op, field);                                    \
    } while (0)

// A buffer field: missing, of another type, of another device or too small.
#define BAD_BUF(op, good, name)                                                                    \
    do {                                                                                           \
        const bool is_f32 = (good).name == f->f32, is_i64 = (good).name == f->i64;                 \
        kern_buf *const short_buf = is_f32 ? f->small : is_i64 ? f->small_i64 : f->small_i32;      \
        BAD(op, good, #name, a.name = NULL);                                                       \
        BAD(op, good, #name, a.name = is_f32 ? f->i32 : f->f32);                                   \
        BAD(op, good, #name, a.name = short_buf);                                                  \
        if (is_f32)                                                                                \
            BAD(op, good, #name, a.name = f->foreign);                                             \
    } while (0)

// A buffer whose extent only its contents say: no shape to be too small for.
#define BAD_OPEN_BUF(op, good, name)                                                               \
    do {                                                                                           \
        BAD(op, good, #name, a.name = NULL);                                                       \
        BAD(op, good, #name, a.name = (good).name == f->f32 ? f->i32 : f->f32);                    \
    } while (0)

#define BAD_INT(op, good, name, value) BAD(op, good, #name, a.name = (value))

// The same inside the batch, the plan or the pages.
#define BAD_BATCH(op, good, name, value)                                                           \
    do {                                                                                           \
        kern_batch batch = f->batch;                                                               \
        batch.name = (value);                                                                      \
        BAD(op, good, "batch." #name, a.batch = &batch);                                           \
    } while (0)

static void test_table_has_no_holes(void **state)
{
    (void)state;
    const kern_ops *ops = kern_cpu_ops();
    void *entries[sizeof *ops / sizeof(void *)];
    assert_int_equal(sizeof *ops % sizeof(void *), 0);
    memcpy(entries, ops, sizeof entries);
    for (size_t i = 0; i < KT_COUNT(entries); i++)
        assert_non_null(entries[i]);
}

static void test_device_options(void **state)
{
    (void)state;
    kern_dev *dev = (kern_dev *)0x1;
    const kern_dev_options none = {.kind = KERN_CPU, .threads = 0};
    KT_REFUSED(kern_dev_open(&none, &dev), RT_ERR_INVALID, "kern_dev_open", "threads");
    KT_REFUSED(kern_dev_open(NULL, &dev), RT_ERR_INVALID, "kern_dev_open", "options");
    const kern_dev_options odd = {.kind = (kern_kind)7, .threads = 1};
    KT_REFUSED(kern_dev_open(&odd, &dev), RT_ERR_UNSUPPORTED, "kern_dev_open", "kind 7");
    assert_true(dev == (kern_dev *)0x1); // outputs are set only on success
    kern_dev_close(NULL);
}

static void test_device_survives_failing_memory(void **state)
{
    (void)state;
    const kern_dev_options options = {.kind = KERN_CPU, .threads = 2};
    int failures = 0;
    for (long n = 1; n < 50; n++) {
        kern_dev *dev = NULL;
        kern_buf *buf = NULL;
        rt_mem_fail_at(n);
        rt_status status = kern_dev_open(&options, &dev);
        if (status == RT_OK)
            status = kern_buf_new(dev, KERN_F32, 8, "probe", &buf);
        rt_mem_fail_at(0);
        kern_buf_free(buf);
        kern_dev_close(dev);
        if (status == RT_OK)
            break;
        assert_int_equal(status, RT_ERR_NOMEM);
        failures++;
    }
    assert_in_range(failures, 3, 20);
}

static void test_buffers(void **state)
{
    fixture *f = *state;
    kern_buf *buf = NULL;
    KT_OK(kern_buf_new(f->dev, KERN_I64, 3, "three", &buf));
    assert_int_equal(kern_buf_count(buf), 3);
    assert_int_equal(kern_buf_dtype(buf), KERN_I64);
    int64_t got[3] = {1, 1, 1};
    KT_OK(kern_read(buf, 0, got, 3));
    assert_true(got[0] == 0 && got[1] == 0 && got[2] == 0); // new buffers are zeroed
    const int64_t values[2] = {-5, 1LL << 40};
    KT_OK(kern_write(buf, 1, values, 2));
    KT_OK(kern_sync(f->dev));
    KT_OK(kern_read(buf, 2, got, 1));
    assert_true(got[0] == values[1]);
    KT_OK(kern_fill_zero(buf, 2));
    KT_OK(kern_read(buf, 0, got, 3));
    assert_true(got[0] == 0 && got[1] == 0 && got[2] == values[1]);
    KT_REFUSED(kern_write(buf, 2, values, 2), RT_ERR_INVALID, "kern_write", "[2, +2)");
    KT_REFUSED(kern_read(buf, 4, got, 0), RT_ERR_INVALID, "kern_read", "[4, +0)");
    KT_REFUSED(kern_read(buf, 1, got, SIZE_MAX), RT_ERR_INVALID, "kern_read", "of a buffer of 3");
    KT_REFUSED(kern_fill_zero(buf, 4), RT_ERR_INVALID, "kern_fill_zero", "+4");
    KT_OK(kern_write(buf, 3, NULL, 0));
    kern_buf_free(buf);
    kern_buf_free(NULL);
    KT_REFUSED(kern_buf_new(f->dev, KERN_I64, SIZE_MAX / 4, "too much", &buf), RT_ERR_NOMEM,
               "out of memory", "too much");
    KT_REFUSED(kern_buf_new(f->dev, (kern_dtype)9, 1, "odd", &buf), RT_ERR_INVALID, "kern_buf_new",
               "dtype");
    assert_int_equal(kern_dev_weight_dtype(f->dev, KERN_BF16), KERN_F32);
}

// The CPU runs calls at once: it is always idle and records nothing.
static void test_recording(void **state)
{
    fixture *f = *state;
    bool idle = false;
    KT_OK(kern_poll(f->dev, &idle));
    assert_true(idle);
    assert_false(kern_can_record(f->dev));
    KT_REFUSED(kern_record_begin(f->dev), RT_ERR_UNSUPPORTED, "kern_record_begin", "record");
    KT_REFUSED(kern_record_end(f->dev, NULL), RT_ERR_INVALID, "kern_record_end", "recording");
    kern_graph_free(NULL);
    kern_buf *shared;
    KT_OK(kern_buf_new_shared(f->dev, KERN_I32, 2, "shared", &shared));
    KT_OK(kern_fill_zero(f->i32, 2));
    KT_OK(kern_write(shared, 0, (const int32_t[]){7, 8}, 2));
    KT_OK(kern_copy(shared, 0, f->i32, 0, 1));
    const int32_t *words = kern_buf_ptr(shared);
    assert_int_equal(words[0], 0);
    assert_int_equal(words[1], 8);
    kern_buf_free(shared);
}

static void test_upload(void **state)
{
    fixture *f = *state;
    const float src[4] = {0};
    const kern_upload_args good = {
        .dst = f->f32, .src = src, .dtype = KERN_F32, .rows = 2, .cols = 2, .stride = 2};
#define BAD_UPLOAD(code, field, change)                                                            \
    do {                                                                                           \
        kern_upload_args a = good;                                                                 \
        change;                                                                                    \
        KT_REFUSED(kern_upload(&a), code, "kern_upload", field);                                   \
    } while (0)
    KT_OK(kern_upload(&good));
    BAD_UPLOAD(RT_ERR_INVALID, "dst", a.dst = NULL);
    BAD_UPLOAD(RT_ERR_INVALID, "src", a.src = NULL);
    BAD_UPLOAD(RT_ERR_INVALID, "dtype", a.dtype = KERN_I32);
    BAD_UPLOAD(RT_ERR_INVALID, "stride", a.stride = 1);
    BAD_UPLOAD(RT_ERR_INVALID, "elements", a.first = BIG - 3);
    BAD_UPLOAD(RT_ERR_INVALID, "rows", a.cols = SIZE_MAX / 2; a.stride = a.cols; a.rows = 3);
    BAD_UPLOAD(RT_ERR_UNSUPPORTED, "bf16", a.dst = f->bf16);
#undef BAD_UPLOAD
}

static void test_fill_arguments(void **state)
{
    fixture *f = *state;
    kern_fill_normal_args fill = {.dst = f->f32, .count = 8, .scale = 1.0f};
    KT_OK(kern_fill_normal(f->dev, &fill));
    BAD_OPEN_BUF(kern_fill_normal, fill, dst);
    BAD(kern_fill_normal, fill, "dst", a.dst = f->bf16); // the CPU keeps f32
    BAD(kern_fill_normal, fill, "dst", a.count = BIG + 1);
    KT_OK(kern_fill_zero(f->f32, 8));
}

static void test_sharing(void **state)
{
    const fixture *f = *state;
    char handle[KERN_PEER_HANDLE];
    kern_peers *peers = NULL;
    assert_int_equal(kern_peers_new(f->dev, 0, 2, 1.0, handle, &peers), RT_ERR_UNSUPPORTED);
    assert_int_equal(kern_peers_new(f->dev, 2, 2, 1.0, handle, &peers), RT_ERR_INVALID);
    assert_int_equal(kern_peers_new(f->dev, 0, 2, 0.0, handle, &peers), RT_ERR_INVALID);
    assert_null(peers);
}

static void test_dense_arguments(void **state)
{
    fixture *f = *state;
    kern_embed_args embed = {
        .table = f->f32, .ids = f->i32, .out = f->f32, .rows = 2, .cols = 4, .shard_rows = 3};
    KT_OK(kern_embed(f->dev, &embed));
    BAD_BUF(kern_embed, embed, table);
    BAD_BUF(kern_embed, embed, ids);
    BAD_BUF(kern_embed, embed, out);
    BAD_INT(kern_embed, embed, rows, -1);
    BAD_INT(kern_embed, embed, cols, 0);
    BAD_INT(kern_embed, embed, first_id, -1);
    BAD_INT(kern_embed, embed, shard_rows, -1);
    BAD(kern_embed, embed, "shard_rows", a.first_id = INT_MAX);
    BAD(kern_embed, embed, "table", a.table = f->bf16); // the CPU keeps f32
    BAD(kern_embed, embed, "out", a.shard_rows = 0; a.cols = INT_MAX);

    kern_linear_args linear = {
        .x = f->f32, .w = f->f32, .bias = f->f32, .y = f->f32, .rows = 2, .n = 3, .k = 4};
    kern_buf *y = make(f->dev, KERN_F32, 6);
    kern_linear_args works = linear;
    works.y = y;
    KT_OK(kern_linear(f->dev, &works));
    kern_buf_free(y);
    BAD_BUF(kern_linear, linear, x);
    BAD_BUF(kern_linear, linear, w);
    BAD_BUF(kern_linear, linear, y);
    BAD(kern_linear, linear, "bias", a.bias = f->small);
    BAD(kern_linear, linear, "w", a.w = f->bf16);
    BAD(kern_linear, linear, "w", a.w = f->i64);
    BAD(kern_linear, linear, "x", a.x = f->bf16); // not the type of w
    BAD(kern_linear, linear, "y", a.y = f->bf16);
    BAD_INT(kern_linear, linear, rows, -1);
    BAD_INT(kern_linear, linear, n, -1);
    BAD_INT(kern_linear, linear, k, 0);
    BAD(kern_linear, linear, "x", a.rows = INT_MAX; a.k = INT_MAX; a.n = INT_MAX);

    kern_rmsnorm_args norm = {
        .x = f->f32, .add = f->f32, .weight = f->f32, .out = f->f32, .rows = 2, .cols = 4};
    BAD_BUF(kern_rmsnorm, norm, x);
    BAD_BUF(kern_rmsnorm, norm, weight);
    BAD(kern_rmsnorm, norm, "add", a.add = f->small);
    BAD(kern_rmsnorm, norm, "out", a.out = f->small);
    BAD(kern_rmsnorm, norm, "out", a.out = f->bf16); // the CPU keeps f32
    BAD_INT(kern_rmsnorm, norm, rows, -1);
    BAD_INT(kern_rmsnorm, norm, cols, 0);

    kern_swiglu_args swiglu = {.gate_up = f->f32, .out = f->f32, .rows = 2, .cols = 4};
    BAD_BUF(kern_swiglu, swiglu, gate_up);
    BAD_BUF(kern_swiglu, swiglu, out);
    BAD(kern_swiglu, swiglu, "gate_up", a.gate_up = f->bf16);
    BAD_INT(kern_swiglu, swiglu, rows, -1);
    BAD_INT(kern_swiglu, swiglu, cols, INT_MAX);

    kern_gather_rows_args gather = {
        .x = f->f32, .index = f->i32, .out = f->f32, .rows = 2, .cols = 4};
    BAD_BUF(kern_gather_rows, gather, x);
    BAD_BUF(kern_gather_rows, gather, index);
    BAD_BUF(kern_gather_rows, gather, out);
    BAD(kern_gather_rows, gather, "x", a.x = f->bf16);
    BAD_INT(kern_gather_rows, gather, rows, -1);
    BAD_INT(kern_gather_rows, gather, cols, 0);
}

static void test_rope_arguments(void **state)
{
    fixture *f = *state;
    kern_qk_rope_args rope = {.qkv = f->f32,
                              .q_norm = f->f32,
                              .k_norm = f->f32,
                              .pos = f->i32,
                              .cos = f->f32,
                              .sin = f->f32,
                              .rows = 2,
                              .heads = 4,
                              .kv_heads = 2,
                              .head_dim = 4,
                              .max_pos = 8};
    BAD_BUF(kern_qk_rope, rope, qkv);
    BAD_BUF(kern_qk_rope, rope, pos);
    BAD_BUF(kern_qk_rope, rope, cos);
    BAD_BUF(kern_qk_rope, rope, sin);
    BAD(kern_qk_rope, rope, "q_norm", a.q_norm = f->small);
    BAD(kern_qk_rope, rope, "k_norm", a.k_norm = f->small);
    BAD_INT(kern_qk_rope, rope, rows, -1);
    BAD_INT(kern_qk_rope, rope, heads, 3);
    BAD_INT(kern_qk_rope, rope, heads, 0);
    BAD_INT(kern_qk_rope, rope, kv_heads, 0);
    BAD_INT(kern_qk_rope, rope, head_dim, 3);
    BAD_INT(kern_qk_rope, rope, max_pos, 0);
    // Positions are checked where a bad one would read outside the tables.
    const int32_t wild = 8;
    KT_OK(kern_write(f->i32, 1, &wild, 1));
    KT_REFUSED(kern_qk_rope(f->dev, &rope), RT_ERR_INVALID, "kern_qk_rope", "pos[1] is 8");
    KT_OK(kern_fill_zero(f->i32, 2));
}

static void test_kv_and_locality_arguments(void **state)
{
    fixture *f = *state;
    kern_kv_write_args write = {.qkv = f->f32, .kv = f->kv, .batch = &f->batch, .heads = 4};
    BAD_BUF(kern_kv_write, write, qkv);
    BAD_BUF(kern_kv_write, write, kv.k);
    BAD_BUF(kern_kv_write, write, kv.v);
    BAD_BUF(kern_kv_write, write, kv.kmin);
    BAD_BUF(kern_kv_write, write, kv.kmax);
    BAD_INT(kern_kv_write, write, kv.pages, -1);
    BAD_INT(kern_kv_write, write, kv.kv_heads, 0);
    BAD_INT(kern_kv_write, write, kv.head_dim, 0);
    BAD_INT(kern_kv_write, write, heads, 5);
    BAD_INT(kern_kv_write, write, batch, NULL);
    BAD_BATCH(kern_kv_write, write, rows, -1);
    BAD_BATCH(kern_kv_write, write, segs, -1);
    BAD_BATCH(kern_kv_write, write, sparse_rows, 5);
    BAD_BATCH(kern_kv_write, write, sparse_segs, 3);
    BAD_BATCH(kern_kv_write, write, block, 0);
    BAD_BATCH(kern_kv_write, write, page, 0);
    BAD_BATCH(kern_kv_write, write, page, 3);
    BAD_BATCH(kern_kv_write, write, max_pages, -1);
    BAD_BATCH(kern_kv_write, write, kv_slot, NULL);
    BAD_BATCH(kern_kv_write, write, kv_slot, f->small_i32);

    kern_locality_args locality = {.x = f->f32,
                                   .prev = f->f32,
                                   .delta = f->f32,
                                   .batch = &f->batch,
                                   .cols = 4,
                                   .stride = 8,
                                   .scale = 1.0f};
    BAD_BUF(kern_locality, locality, x);
    BAD_OPEN_BUF(kern_locality, locality, prev);
    BAD_BUF(kern_locality, locality, delta);
    BAD_INT(kern_locality, locality, cols, 0);
    BAD_INT(kern_locality, locality, stride, 3);
    BAD_BATCH(kern_locality, locality, row_seg, NULL);
    BAD_BATCH(kern_locality, locality, seg_kind, f->f32);
    BAD_BATCH(kern_locality, locality, cache_slot, f->small_i32);
}

#define BAD_PLAN(op, good, name, value)                                                            \
    do {                                                                                           \
        kern_plan plan = f->plan;                                                                  \
        plan.name = (value);                                                                       \
        BAD(op, good, "plan." #name, a.plan = &plan);                                              \
    } while (0)

static void test_plan_arguments(void **state)
{
    fixture *f = *state;
    kern_active_args active = {
        .batch = &f->batch, .delta = f->f32, .rule = KERN_ACTIVE_TOPK, .k = 1, .plan = &f->plan};
    BAD_BUF(kern_active, active, delta);
    BAD_INT(kern_active, active, k, -1);
    BAD_INT(kern_active, active, rule, (kern_active_rule)5);
    BAD(kern_active, active, "share", (a.rule = KERN_ACTIVE_SHARE, a.share = 1.5f));
    BAD_INT(kern_active, active, plan, NULL);
    BAD_PLAN(kern_active, active, lists, 0);
    BAD_PLAN(kern_active, active, act_cap, -1);
    BAD_PLAN(kern_active, active, act_rows, f->small_i32);
    BAD_PLAN(kern_active, active, act_count, f->small_i32);
    BAD_PLAN(kern_active, active, pages, f->small_i32);
    BAD_PLAN(kern_active, active, page_count, NULL);
    BAD_BATCH(kern_active, active, row_state, NULL);
    BAD_BATCH(kern_active, active, seg_row0, f->small_i32);

    kern_page_score_args score = {.q = f->f32,
                                  .stride = 32,
                                  .kv = f->kv,
                                  .batch = &f->batch,
                                  .plan = &f->plan,
                                  .heads = 4,
                                  .score_lists = 2,
                                  .score = f->f32};
    BAD_BUF(kern_page_score, score, q);
    BAD_BUF(kern_page_score, score, score);
    BAD_BUF(kern_page_score, score, kv.kmin);
    BAD_INT(kern_page_score, score, stride, 15);
    BAD_INT(kern_page_score, score, heads, 3);
    BAD_INT(kern_page_score, score, score_lists, 0);
    BAD_INT(kern_page_score, score, list0, 1);
    BAD_BATCH(kern_page_score, score, page_table, f->small_i32);

    kern_page_select_args select = {
        .score = f->f32, .batch = &f->batch, .score_lists = 1, .plan = &f->plan};
    for (int kind = 0; kind < KERN_SEG_KINDS; kind++)
        select.choice[kind].top = 2;
    BAD_BUF(kern_page_select, select, score);
    BAD_INT(kern_page_select, select, score_lists, 0);
    BAD_INT(kern_page_select, select, list0, 1);
    BAD(kern_page_select, select, "choice[kind].top", a.choice[KERN_SEG_STEP].top = -1);

    BAD(kern_page_select, select, "counts", a.counts = f->small_i64);

    kern_page_plan_args plan = {score, select};
    plan.score.score_lists = 1;
    BAD(kern_page_plan, plan, "two plans", a.score.score = f->small);
    BAD(kern_page_plan, plan, "two plans", a.score.list0 = 1);
    BAD(kern_page_plan, plan, "two plans", a.score.batch = NULL);
    BAD(kern_page_plan, plan, "kv.kmin", a.score.kv.kmin = NULL);
    BAD(kern_page_plan, plan, "score_lists", a.select.score_lists = 0);

    kern_plan_count_args count = {.batch = &f->batch, .lists = 1, .layers = 1, .counts = f->i64};
    BAD_BUF(kern_plan_count, count, counts);
    BAD_INT(kern_plan_count, count, lists, 0);
    BAD_INT(kern_plan_count, count, layers, -1);
    kern_plan_checksum_args sum = {.batch = &f->batch, .plan = &f->plan, .out = f->i32};
    BAD_BUF(kern_plan_checksum, sum, out);
    BAD_INT(kern_plan_checksum, sum, batch, NULL);
}

// Segment 0 measures and has the slot and number 0 there is; i32 holds zeros.
static void test_mass_arguments(void **state)
{
    fixture *f = *state;
    const kern_batch before = f->batch;
    f->batch.mass_segs = 1;
    f->batch.seg_slot = f->batch.seg_mass = f->i32;
    kern_page_mass_args mass = {.page_lse = f->f32,
                                .lse = f->f32,
                                .batch = &f->batch,
                                .plan = &f->plan,
                                .heads = 4,
                                .kv_heads = 2,
                                .score_lists = 3,
                                .mass = f->f32};
    BAD_BUF(kern_page_mass, mass, page_lse);
    BAD_BUF(kern_page_mass, mass, lse);
    BAD_BUF(kern_page_mass, mass, mass);
    BAD_INT(kern_page_mass, mass, heads, 3);
    BAD_INT(kern_page_mass, mass, kv_heads, 0);
    BAD_INT(kern_page_mass, mass, score_lists, 0);
    BAD_INT(kern_page_mass, mass, list0, 2);
    BAD_PLAN(kern_page_mass, mass, page_count, NULL);
    BAD_PLAN(kern_page_mass, mass, lists, 3);
    BAD_INT(kern_page_mass, mass, batch, NULL);
    BAD_BATCH(kern_page_mass, mass, mass_segs, 3);
    BAD_BATCH(kern_page_mass, mass, kv_slot, NULL);
    BAD_BATCH(kern_page_mass, mass, seg_mass, f->small_i32);

    kern_key_score_args keys = {.q = f->f32,
                                .stride = 32,
                                .kv = f->kv,
                                .batch = &f->batch,
                                .heads = 4,
                                .score_lists = 3,
                                .score = f->f32};
    BAD_BUF(kern_key_score, keys, q);
    BAD_BUF(kern_key_score, keys, score);
    BAD_BUF(kern_key_score, keys, kv.k);
    BAD_INT(kern_key_score, keys, heads, 3);
    BAD_INT(kern_key_score, keys, score_lists, 0);
    BAD_INT(kern_key_score, keys, list0, 2);
    BAD_BATCH(kern_key_score, keys, page_table, f->small_i32);
    kern_key_peaks_args peaks = {f->f32, &f->batch, 1, f->f32};
    BAD_BUF(kern_key_peaks, peaks, score);
    BAD_BUF(kern_key_peaks, peaks, mass);
    BAD_INT(kern_key_peaks, peaks, lists, 0);

    const kern_kept_lists kept = {f->i32, f->i32, 1, 2};
    kern_mass_select_args select = {
        .mass = f->f32, .batch = &f->batch, .score_lists = 2, .top = 2, .kept = &kept};
    BAD_BUF(kern_mass_select, select, mass);
    BAD_INT(kern_mass_select, select, top, 0);
    BAD(kern_mass_select, select, "share", a.share = -0.5f);
    BAD_INT(kern_mass_select, select, score_lists, 0);
    BAD_INT(kern_mass_select, select, list0, 2);
    BAD_INT(kern_mass_select, select, kept, NULL);
    BAD_BATCH(kern_mass_select, select, seg_slot, NULL);
    BAD_BATCH(kern_mass_select, select, seg_mass, NULL);
    f->batch = before;
}

static void test_kept_lists(void **state)
{
    fixture *f = *state;
    const kern_batch before = f->batch;
    f->batch.mass_segs = 1;
    f->batch.seg_slot = f->batch.seg_mass = f->i32;
    const kern_kept_lists good = {f->i32, f->i32, 1, 2};
    const struct {
        const char *field;
        kern_kept_lists lists;
    } table[] = {
        {"kept.pages", {NULL, f->i32, 1, 2}},   {"kept.pages", {f->small_i32, f->i32, 1, 2}},
        {"kept.count", {f->i32, f->f32, 1, 2}}, {"kept.lists", {f->i32, f->i32, 0, 2}},
        {"kept.cap", {f->i32, f->i32, 1, 0}},
    };
    kern_mass_select_args mass = {
        .mass = f->f32, .batch = &f->batch, .score_lists = 1, .top = 2, .kept = &good};
    kern_page_select_args select = {
        .score = f->f32, .batch = &f->batch, .score_lists = 1, .kept = &good, .plan = &f->plan};
    for (int kind = 0; kind < KERN_SEG_KINDS; kind++)
        select.choice[kind] = (kern_page_choice){2, true, 0};
    KT_OK(kern_page_select(f->dev, &select));
    for (size_t i = 0; i < KT_COUNT(table); i++) {
        BAD(kern_mass_select, mass, table[i].field, a.kept = &table[i].lists);
        BAD(kern_page_select, select, table[i].field, a.kept = &table[i].lists);
    }
    // A list holds what it may take, one for every list of the plan.
    const kern_kept_lists narrow = {f->i32, f->i32, 1, 1}, two = {f->i32, f->i32, 2, 2};
    BAD(kern_mass_select, mass, "kept.cap", a.kept = &narrow);
    BAD(kern_page_select, select, "kept.lists", a.kept = &two);
    BAD(kern_page_select, select, "kept", a.kept = NULL);
    // Who scans leads, and has pages to take.
    BAD(kern_page_select, select, "choice", a.choice[0].top = 0);
    f->batch.scan_segs = 0;
    BAD(kern_page_select, select, "choice", a.score = NULL);
    f->batch = before;
}

// Numbers in device arrays are looked at where a bad one would lead outside a buffer.
static void test_wild_segments(void **state)
{
    fixture *f = *state;
    const kern_batch before = f->batch;
    const int32_t wild[] = {1, -1}, negative[] = {-2, -1}, far[] = {2048, 0};
    kern_buf *number = make(f->dev, KERN_I32, 2), *slot = make(f->dev, KERN_I32, 2);
    f->batch.mass_segs = 1;
    f->batch.seg_mass = number;
    f->batch.seg_slot = slot;
    const kern_kept_lists kept = {f->i32, f->i32, 1, 2};
    kern_mass_select_args mass = {
        .mass = f->f32, .batch = &f->batch, .score_lists = 1, .top = 2, .kept = &kept};
    kern_page_mass_args sum = {.page_lse = f->f32,
                               .lse = f->f32,
                               .batch = &f->batch,
                               .plan = &f->plan,
                               .heads = 4,
                               .kv_heads = 2,
                               .score_lists = 1,
                               .mass = f->f32};
    kern_page_select_args select = {
        .score = f->f32, .batch = &f->batch, .score_lists = 1, .kept = &kept, .plan = &f->plan};
    for (int kind = 0; kind < KERN_SEG_KINDS; kind++)
        select.choice[kind] = (kern_page_choice){2, true, 0};
    KT_OK(kern_write(number, 0, wild, 2));
    BAD(kern_page_mass, sum, "seg_mass", (void)a);
    BAD(kern_mass_select, mass, "seg_mass", (void)a);
    KT_OK(kern_write(number, 0, negative, 2));
    BAD(kern_page_mass, sum, "seg_mass", (void)a);
    KT_OK(kern_write(number, 0, (const int32_t[]){0, -1}, 2));
    KT_OK(kern_write(slot, 0, far, 2));
    BAD(kern_mass_select, mass, "seg_slot", (void)a);
    BAD(kern_page_select, select, "seg_slot", (void)a);
    kern_buf_free(number);
    kern_buf_free(slot);
    f->batch = before;
}

static void test_attention_arguments(void **state)
{
    fixture *f = *state;
    kern_attn_args attn = {.qkv = f->f32,
                           .kv = f->kv,
                           .batch = &f->batch,
                           .plan = &f->plan,
                           .heads = 4,
                           .o = f->f32,
                           .lse = f->f32,
                           .cache_o = f->f32,
                           .cache_lse = f->f32,
                           .out = f->f32};
    BAD_BUF(kern_attn, attn, qkv);
    BAD_BUF(kern_attn, attn, kv.k);
    BAD_BUF(kern_attn, attn, kv.v);
    BAD_BUF(kern_attn, attn, o);
    BAD_BUF(kern_attn, attn, lse);
    BAD_OPEN_BUF(kern_attn, attn, cache_o);
    BAD_OPEN_BUF(kern_attn, attn, cache_lse);
    BAD_BUF(kern_attn, attn, out);
    BAD_INT(kern_attn, attn, heads, 3);
    BAD_PLAN(kern_attn, attn, act_rows, NULL);
    BAD_BATCH(kern_attn, attn, pos, NULL);
    BAD_BATCH(kern_attn, attn, cache_slot, NULL);
    BAD_PLAN(kern_attn, attn, lists, 3);
    BAD_BATCH(kern_attn, attn, page, 2 * KERN_PAGE_MAX);
    attn.page_lse = f->f32; // may be NULL; then nothing more is asked for
    const kern_batch before = f->batch;
    f->batch.mass_segs = 1;
    f->batch.seg_mass = f->i32;
    BAD(kern_attn, attn, "page_lse", a.page_lse = f->small);
    BAD(kern_attn, attn, "page_lse", a.page_lse = f->i32);
    BAD_BATCH(kern_attn, attn, seg_mass, NULL);
    BAD_BATCH(kern_attn, attn, kv_slot, NULL);
    f->batch = before;
}

static void test_vocab_arguments(void **state)
{
    fixture *f = *state;
    kern_vocab_norm_args norm = {
        .logits = f->f32, .sample = f->i32, .norm = f->f32, .rows = 2, .shard = 5};
    BAD_BUF(kern_vocab_norm, norm, logits);
    BAD_BUF(kern_vocab_norm, norm, sample);
    BAD_BUF(kern_vocab_norm, norm, norm);
    BAD_INT(kern_vocab_norm, norm, rows, -1);
    BAD_INT(kern_vocab_norm, norm, shard, -1);

    kern_vocab_filter_args filter = {.logits = f->f32,
                                     .sample = f->i32,
                                     .norm = f->f32,
                                     .state = f->i32,
                                     .hist = f->f32,
                                     .rows = 2,
                                     .shard = 5};
    BAD_BUF(kern_vocab_hist, filter, logits);
    BAD_BUF(kern_vocab_hist, filter, sample);
    BAD_BUF(kern_vocab_hist, filter, norm);
    BAD_BUF(kern_vocab_hist, filter, state);
    BAD_BUF(kern_vocab_hist, filter, hist);
    BAD_INT(kern_vocab_hist, filter, rows, -1);
    BAD_INT(kern_vocab_hist, filter, first_id, INT_MAX);
    BAD_INT(kern_vocab_hist, filter, filter, (kern_filter)2);
    BAD_INT(kern_vocab_hist, filter, round, 4);
    BAD_BUF(kern_vocab_narrow, filter, state);
    BAD_BUF(kern_vocab_narrow, filter, hist);
    BAD_INT(kern_vocab_narrow, filter, round, -1);

    kern_vocab_pick_args pick = {
        .logits = f->f32, .sample = f->i32, .state = f->i32, .pick = f->f32, .rows = 2, .shard = 5};
    BAD_BUF(kern_vocab_pick, pick, logits);
    BAD_BUF(kern_vocab_pick, pick, sample);
    BAD_BUF(kern_vocab_pick, pick, pick);
    BAD(kern_vocab_pick, pick, "state", a.state = f->small_i32);
    BAD_INT(kern_vocab_pick, pick, shard, -1);
    BAD_INT(kern_vocab_pick, pick, first_id, -1);

    kern_vocab_norm_merge_args merge = {.norms = f->f32, .norm = f->f32, .ranks = 2, .rows = 2};
    BAD_BUF(kern_vocab_norm_merge, merge, norms);
    BAD_BUF(kern_vocab_norm_merge, merge, norm);
    BAD_INT(kern_vocab_norm_merge, merge, ranks, 0);
    BAD_INT(kern_vocab_norm_merge, merge, rows, -1);

    kern_vocab_choose_args choose = {.picks = f->f32,
                                     .norm = f->f32,
                                     .token = f->i32,
                                     .confidence = f->f32,
                                     .entropy = f->f32,
                                     .ranks = 2,
                                     .rows = 2};
    BAD_BUF(kern_vocab_choose, choose, picks);
    BAD_BUF(kern_vocab_choose, choose, norm);
    BAD_BUF(kern_vocab_choose, choose, token);
    BAD_BUF(kern_vocab_choose, choose, confidence);
    BAD_BUF(kern_vocab_choose, choose, entropy);
    BAD_INT(kern_vocab_choose, choose, ranks, 0);

    kern_unmask_args unmask = {.windows = f->i32,
                               .token = f->i32,
                               .confidence = f->f32,
                               .entropy = f->f32,
                               .ids = f->i32,
                               .state = f->i32,
                               .n = 2};
    BAD_BUF(kern_unmask, unmask, windows);
    BAD_OPEN_BUF(kern_unmask, unmask, token);
    BAD_OPEN_BUF(kern_unmask, unmask, confidence);
    BAD_OPEN_BUF(kern_unmask, unmask, entropy);
    BAD_OPEN_BUF(kern_unmask, unmask, ids);
    BAD_OPEN_BUF(kern_unmask, unmask, state);
    BAD_INT(kern_unmask, unmask, n, -1);
}

// Without rows there is nothing to look at: not even buffers are asked for.
static void test_no_rows_is_fine(void **state)
{
    fixture *f = *state;
    const kern_batch batch = {.block = 4, .page = 16};
    KT_OK(kern_embed(f->dev, &(kern_embed_args){.cols = 1}));
    KT_OK(kern_linear(f->dev, &(kern_linear_args){.n = 1, .k = 1}));
    KT_OK(kern_linear(f->dev, &(kern_linear_args){.rows = 1, .k = 1}));
    KT_OK(kern_rmsnorm(f->dev, &(kern_rmsnorm_args){.cols = 1}));
    KT_OK(kern_qk_rope(f->dev, &(kern_qk_rope_args){.rows = 0}));
    KT_OK(kern_swiglu(f->dev, &(kern_swiglu_args){.cols = 1}));
    KT_OK(kern_gather_rows(f->dev, &(kern_gather_rows_args){.cols = 1}));
    KT_OK(kern_vocab_norm(f->dev, &(kern_vocab_norm_args){.rows = 0}));
    KT_OK(kern_vocab_hist(f->dev, &(kern_vocab_filter_args){.rows = 0}));
    KT_OK(kern_vocab_narrow(f->dev, &(kern_vocab_filter_args){.rows = 0}));
    KT_OK(kern_vocab_pick(f->dev, &(kern_vocab_pick_args){.rows = 0}));
    KT_OK(kern_vocab_norm_merge(f->dev, &(kern_vocab_norm_merge_args){.ranks = 1}));
    KT_OK(kern_vocab_choose(f->dev, &(kern_vocab_choose_args){.ranks = 1}));
    KT_OK(kern_unmask(f->dev, &(kern_unmask_args){.n = 0}));
    KT_OK(kern_kv_write(f->dev, &(kern_kv_write_args){.batch = &batch}));
    KT_OK(kern_locality(f->dev, &(kern_locality_args){.batch = &batch}));
    KT_OK(kern_active(f->dev, &(kern_active_args){.batch = &batch}));
    KT_OK(kern_page_score(f->dev, &(kern_page_score_args){.batch = &batch}));
    KT_OK(kern_page_select(f->dev, &(kern_page_select_args){.batch = &batch}));
    KT_OK(kern_page_plan(f->dev, &(kern_page_plan_args){.select.batch = &batch}));
    KT_OK(kern_page_mass(f->dev, &(kern_page_mass_args){.batch = &batch}));
    KT_OK(kern_mass_select(f->dev, &(kern_mass_select_args){.batch = &batch}));
    KT_OK(kern_key_score(f->dev, &(kern_key_score_args){.batch = &batch}));
    KT_OK(kern_key_peaks(f->dev, &(kern_key_peaks_args){.batch = &batch}));
    KT_OK(kern_plan_count(f->dev, &(kern_plan_count_args){.batch = &batch}));
    KT_OK(kern_attn(f->dev, &(kern_attn_args){.batch = &batch}));
    const kern_linear_args args = {.n = 1, .k = 1};
    KT_REFUSED(kern_linear(NULL, &args), RT_ERR_INVALID, "kern_linear", "dev");
    KT_REFUSED(kern_linear(f->dev, NULL), RT_ERR_INVALID, "kern_linear", "args");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table_has_no_holes),
        cmocka_unit_test(test_device_options),
        cmocka_unit_test(test_device_survives_failing_memory),
        cmocka_unit_test(test_buffers),
        cmocka_unit_test(test_recording),
        cmocka_unit_test(test_upload),
        cmocka_unit_test(test_fill_arguments),
        cmocka_unit_test(test_sharing),
        cmocka_unit_test(test_dense_arguments),
        cmocka_unit_test(test_rope_arguments),
        cmocka_unit_test(test_kv_and_locality_arguments),
        cmocka_unit_test(test_plan_arguments),
        cmocka_unit_test(test_mass_arguments),
        cmocka_unit_test(test_kept_lists),
        cmocka_unit_test(test_wild_segments),
        cmocka_unit_test(test_attention_arguments),
        cmocka_unit_test(test_vocab_arguments),
        cmocka_unit_test(test_no_rows_is_fine),
    };
    return cmocka_run_group_tests(tests, open_fixture, close_fixture);
}
