// SPDX-License-Identifier: Apache-2.0
// Recorded sequences: a replay runs on what the buffers hold by then, and talks to the
// host only through shared buffers.
#include "tests/gpu/parity.h"

enum { ROWS = 5, COLS = 96, COUNT = ROWS * COLS };

// out = rmsnorm(x + add), copied to shared memory.
static rt_status run(kern_dev *dev, kern_buf *const buf[5])
{
    const kern_rmsnorm_args args = {.x = buf[0],
                                    .add = buf[1],
                                    .weight = buf[2],
                                    .out = buf[3],
                                    .rows = ROWS,
                                    .cols = COLS,
                                    .eps = 1e-6f};
    RT_TRY(kern_rmsnorm(dev, &args));
    return kern_copy(buf[4], 0, buf[3], 0, COUNT);
}

static void open_buffers(kern_dev *dev, kern_buf *buf[5])
{
    const size_t counts[] = {COUNT, COUNT, COLS, COUNT, COUNT};
    for (int i = 0; i < 4; i++)
        KT_OK(kern_buf_new(dev, KERN_F32, counts[i], "test", &buf[i]));
    KT_OK(kern_buf_new_shared(dev, KERN_F32, counts[4], "test", &buf[4]));
}

static void fill(kern_buf *const buf[5], uint64_t seed)
{
    kt_rng rng = {seed};
    for (int i = 0; i < 3; i++) {
        float *values = kt_random(&rng, kern_buf_count(buf[i]), 1.0f);
        KT_OK(kern_write(buf[i], 0, values, kern_buf_count(buf[i])));
        rt_free(values);
    }
}

static void wait_idle(kern_dev *dev)
{
    for (bool idle = false; !idle;)
        KT_OK(kern_poll(dev, &idle));
}

void pt_test_graph(void **state)
{
    (void)state;
    for (int mode = 0; mode < PT_MODES; mode++) {
        kern_dev *dev = pt_gpu[mode];
        kern_buf *buf[5];
        kern_graph *graph;
        open_buffers(dev, buf);
        fill(buf, 1);
        assert_true(kern_can_record(dev));
        KT_OK(kern_record_begin(dev));
        KT_OK(run(dev, buf));
        float word = 0.0f;
        KT_REFUSED(kern_write(buf[0], 0, &word, 1), RT_ERR_INVALID, "kern_write", "recording");
        KT_REFUSED(kern_read(buf[0], 0, &word, 1), RT_ERR_INVALID, "kern_read", "recording");
        KT_REFUSED(kern_sync(dev), RT_ERR_INVALID, "kern_sync", "recording");
        KT_REFUSED(kern_record_begin(dev), RT_ERR_INVALID, "kern_record_begin", "recording");
        KT_OK(kern_record_end(dev, &graph));
        for (uint64_t seed = 10; seed < 40; seed += 10) {
            float want[COUNT];
            fill(buf, seed);
            KT_OK(run(dev, buf));
            KT_OK(kern_read(buf[3], 0, want, COUNT));
            KT_OK(kern_fill_zero(buf[3], COUNT));
            fill(buf, seed);
            KT_OK(kern_graph_launch(graph));
            wait_idle(dev);
            assert_memory_equal(kern_buf_ptr(buf[4]), want, sizeof want);
        }
        kern_graph_free(graph);
        // A recording that was dropped leaves the device as it was.
        KT_OK(kern_record_begin(dev));
        KT_OK(run(dev, buf));
        KT_OK(kern_record_end(dev, NULL));
        KT_OK(run(dev, buf));
        KT_OK(kern_sync(dev));
        for (int i = 0; i < 5; i++)
            kern_buf_free(buf[i]);
    }
}

// Marks are passed at every replay: a longer sequence takes longer.
void pt_test_timer(void **state)
{
    (void)state;
    enum { WORDS = 64 << 20, LONG = 8 };
    kern_dev *dev = pt_gpu[PT_BF16];
    kern_buf *src, *out;
    kern_timer *timer;
    kern_graph *graph;
    KT_OK(kern_buf_new(dev, KERN_I32, WORDS, "test", &src));
    KT_OK(kern_buf_new(dev, KERN_I32, 1, "test", &out));
    KT_OK(kern_timer_new(dev, 3, &timer));
    const kern_xor_words_args pass = {src, WORDS, out};
    KT_OK(kern_record_begin(dev));
    KT_OK(kern_timer_mark(timer, 0));
    KT_OK(kern_xor_words(dev, &pass));
    KT_OK(kern_timer_mark(timer, 1));
    for (int i = 0; i < LONG; i++)
        KT_OK(kern_xor_words(dev, &pass));
    KT_OK(kern_timer_mark(timer, 2));
    KT_OK(kern_record_end(dev, &graph));
    for (int i = 0; i < 3; i++) {
        double one, many;
        KT_OK(kern_graph_launch(graph));
        KT_OK(kern_timer_read(timer, 0, 1, &one));
        KT_OK(kern_timer_read(timer, 1, 2, &many));
        assert_true(one > 0 && one < 1000);
        assert_true(many > one * LONG / 4);
    }
    kern_graph_free(graph);
    kern_timer_free(timer);
    kern_buf_free(src);
    kern_buf_free(out);
}
