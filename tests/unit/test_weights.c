// SPDX-License-Identifier: Apache-2.0
// Matrices that are loaded in several windows: every number arrives in its place, whole rows
// and parts of rows, what is not finite is named, and the file does not stay in memory.
#include "tests/unit/testing.h"

#include "runtime/model/weights.h"

#include <unistd.h>

// Rows of gate and up, and columns of down: 37 MB each, in bf16.
enum { HIDDEN = 512, FFN = 36000, HEADS = 2, DIM = 4, VOCAB = 8 };

static const rt_model_config config = {
    .hidden = HIDDEN,
    .ffn = FFN,
    .layers = 1,
    .heads = HEADS,
    .kv_heads = HEADS,
    .head_dim = DIM,
    .vocab = VOCAB,
    .tied_head = true,
};

typedef struct stored {
    const char *name;
    size_t rows, cols; // cols 0: a vector
} stored;

static const stored tensors[] = {
    {"model.embed_tokens.weight", VOCAB, HIDDEN},
    {"model.norm.weight", HIDDEN, 0},
    {"model.layers.0.input_layernorm.weight", HIDDEN, 0},
    {"model.layers.0.post_attention_layernorm.weight", HIDDEN, 0},
    {"model.layers.0.self_attn.q_proj.weight", (size_t)HEADS *DIM, HIDDEN},
    {"model.layers.0.self_attn.k_proj.weight", (size_t)HEADS *DIM, HIDDEN},
    {"model.layers.0.self_attn.v_proj.weight", (size_t)HEADS *DIM, HIDDEN},
    {"model.layers.0.self_attn.o_proj.weight", HIDDEN, (size_t)HEADS *DIM},
    {"model.layers.0.mlp.gate_proj.weight", FFN, HIDDEN},
    {"model.layers.0.mlp.up_proj.weight", FFN, HIDDEN},
    {"model.layers.0.mlp.down_proj.weight", HIDDEN, FFN},
};
enum { TENSORS = sizeof tensors / sizeof tensors[0] };

static test_dir dir;

static size_t count_of(const stored *t)
{
    return t->rows * (t->cols ? t->cols : 1);
}

// The bf16 at a place of a tensor: normal numbers that do not repeat within a row.
static uint16_t number_at(size_t tensor, size_t i)
{
    const uint32_t mixed = (uint32_t)(i + 7919 * tensor) * 2654435761u;
    return (uint16_t)(0x3c00u | (mixed >> 16 & 0x83ffu));
}

static float value_at(size_t tensor, size_t row, size_t col)
{
    const size_t cols = tensors[tensor].cols ? tensors[tensor].cols : 1;
    const uint32_t bits = (uint32_t)number_at(tensor, row * cols + col) << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static void write_file(void)
{
    char header[4096];
    size_t len = 0, at = 0;
    for (size_t t = 0; t < TENSORS; t++) {
        const stored *s = &tensors[t];
        char shape[48];
        snprintf(shape, sizeof shape, s->cols ? "%zu,%zu" : "%zu", s->rows, s->cols);
        len += (size_t)snprintf(header + len, sizeof header - len,
                                "%s\"%s\":{\"dtype\":\"BF16\",\"shape\":[%s],\"data_offsets\":"
                                "[%zu,%zu]}",
                                t ? "," : "{", s->name, shape, at, at + 2 * count_of(s));
        at += 2 * count_of(s);
    }
    header[len++] = '}';
    const uint64_t prefix = len;
    FILE *file = fopen(test_path(&dir, "model.safetensors"), "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(&prefix, sizeof prefix, 1, file), 1);
    assert_int_equal(fwrite(header, len, 1, file), 1);
    for (size_t t = 0; t < TENSORS; t++) {
        uint16_t *row = malloc(2 * count_of(&tensors[t]));
        assert_non_null(row);
        for (size_t i = 0; i < count_of(&tensors[t]); i++)
            row[i] = number_at(t, i);
        assert_int_equal(fwrite(row, 2 * count_of(&tensors[t]), 1, file), 1);
        free(row);
    }
    assert_int_equal(fclose(file), 0);
}

typedef struct watcher {
    uint64_t last;
    int calls;
    long most_kb; // of the file in memory
} watcher;

// Kilobytes of the mapped file that this process holds.
static long resident_kb(void)
{
    char line[512];
    bool ours = false;
    long kb = 0, sum = 0;
    FILE *file = fopen("/proc/self/smaps", "r");
    assert_non_null(file);
    while (fgets(line, sizeof line, file)) {
        if (strchr(line, '-') && strchr(line, '/'))
            ours = strstr(line, "model.safetensors") != NULL;
        else if (strchr(line, '-') && !strstr(line, "kB"))
            ours = false;
        if (ours && sscanf(line, "Rss: %ld kB", &kb) == 1)
            sum += kb;
    }
    fclose(file);
    return sum;
}

static void on_load(void *ctx, uint64_t done)
{
    watcher *w = ctx;
    const long kb = resident_kb();
    assert_true(done > w->last);
    w->last = done;
    w->calls++;
    w->most_kb = kb > w->most_kb ? kb : w->most_kb;
}

static rt_status load(int rank, int ranks, bool dry, rt_load_progress *progress, kern_dev **dev,
                      rt_weights *w, par_plan *plan)
{
    const kern_dev_options options = {.kind = KERN_CPU, .threads = 2, .dry = dry};
    const par_shape shape = {HEADS, HEADS, FFN, VOCAB};
    rt_checkpoint *ckpt;
    assert_ok(par_plan_make(&shape, rank, ranks, plan));
    assert_ok(kern_dev_open(&options, dev));
    assert_ok(rt_checkpoint_open(dir.path, &ckpt));
    const rt_weights_source source = {.ckpt = ckpt, .progress = progress};
    const rt_status status = rt_weights_load(*dev, plan, &config, &source, w);
    rt_checkpoint_close(ckpt);
    return status;
}

static void check_matrix(const kern_buf *buf, size_t first, size_t tensor, par_range row,
                         par_range col)
{
    const float *got = (const float *)kern_buf_ptr(buf) + first;
    for (int r = 0; r < row.count; r++)
        for (int c = 0; c < col.count; c++) {
            const float want = value_at(tensor, (size_t)(row.first + r), (size_t)(col.first + c));
            if (got[(size_t)r * (size_t)col.count + (size_t)c] != want)
                fail_msg("%s: wrong at [%d, %d]", tensors[tensor].name, row.first + r,
                         col.first + c);
        }
}

static void test_places(void **state)
{
    (void)state;
    uint64_t sum = 0, all = 0;
    for (size_t t = 0; t < TENSORS; t++)
        all += 2 * count_of(&tensors[t]);
    for (int ranks = 1; ranks <= 2; ranks++) {
        const int rank = ranks - 1;
        kern_dev *dev;
        rt_weights w;
        par_plan plan;
        watcher watch = {0};
        rt_load_progress counted = {0}, progress = {.fn = on_load, .ctx = &watch};
        assert_ok(load(rank, ranks, true, &counted, &dev, &w, &plan));
        rt_weights_free(&w);
        kern_dev_close(dev);
        assert_ok(load(rank, ranks, false, &progress, &dev, &w, &plan));
        const rt_layer_weights *l = &w.layers[0];
        const par_range hidden = {0, HIDDEN};
        check_matrix(w.embed, 0, 0, plan.vocab, hidden);
        check_matrix(w.final_norm, 0, 1, hidden, (par_range){0, 1});
        check_matrix(l->gate_up, 0, 8, plan.ffn, hidden);
        check_matrix(l->gate_up, (size_t)plan.ffn.count * HIDDEN, 9, plan.ffn, hidden);
        check_matrix(l->down, 0, 10, hidden, plan.ffn);
        rt_weights_free(&w);
        kern_dev_close(dev);
        assert_int_equal(watch.last, counted.done); // a dry device counts the same
        assert_true(watch.calls >= TENSORS + 1);
        sum = counted.done;
        if (ranks == 1)
            assert_int_equal(sum, all);
        // Two windows of 32 MB and what the kernel maps around a touched page.
        assert_in_range(watch.most_kb, 0, 66 << 10);
    }
    assert_true(sum < all * 6 / 10);
}

// In the second window of a matrix, in a column that the first of two ranks has.
static void test_nonfinite(void **state)
{
    (void)state;
    const size_t row = HIDDEN - 3, col = 5;
    size_t at = 0;
    for (size_t t = 0; t < TENSORS - 1; t++)
        at += 2 * count_of(&tensors[t]);
    FILE *file = fopen(test_path(&dir, "model.safetensors"), "r+b");
    assert_non_null(file);
    uint64_t header;
    const uint16_t nan = 0x7fc0, good = number_at(TENSORS - 1, row * FFN + col);
    assert_int_equal(fread(&header, sizeof header, 1, file), 1);
    const long place = (long)(sizeof header + header + at + 2 * (row * FFN + col));
    assert_int_equal(fseek(file, place, SEEK_SET), 0);
    assert_int_equal(fwrite(&nan, sizeof nan, 1, file), 1);
    fflush(file);
    kern_dev *dev;
    rt_weights w;
    par_plan plan;
    assert_fails(load(0, 2, false, NULL, &dev, &w, &plan), RT_ERR_FORMAT,
                 "tensor 'model.layers.0.mlp.down_proj.weight' holds NaN at [509, 5]",
                 "model.safetensors");
    kern_dev_close(dev);
    assert_ok(load(1, 2, false, NULL, &dev, &w, &plan)); // has other columns
    rt_weights_free(&w);
    kern_dev_close(dev);
    assert_int_equal(fseek(file, place, SEEK_SET), 0);
    assert_int_equal(fwrite(&good, sizeof good, 1, file), 1);
    fclose(file);
}

int main(void)
{
    dir = test_dir_new();
    write_file();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_places),
        cmocka_unit_test(test_nonfinite),
    };
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    test_dir_remove(&dir);
    return failed;
}
