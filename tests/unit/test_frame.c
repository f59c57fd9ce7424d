// SPDX-License-Identifier: Apache-2.0
// Frames: what goes in comes out, what is not whole or not sane is refused, and
// no bytes make the reader misbehave (run with address,undefined).
#include "kernels/kern.h"
#include "proto/frame.h"
#include "runtime/base/mem.h"
#include "runtime/base/rng.h"
#include "runtime/engine/engine.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

// proto/ must not include the layers whose enums travel as numbers.
_Static_assert((int)PB_SEGMENT_KINDS == (int)KERN_SEG_KINDS, "segment kinds");
_Static_assert(PB_STRATEGIES == RT_STRATEGY_ENTROPY + 1, "strategies");

typedef struct sample {
    Pb__Step step;
    Pb__Request request[2], *admit[2];
    Pb__Segment segment[3], *segments[3];
    int32_t prompt[5];
    uint32_t pages[3], release[2];
} sample;

static void sample_init(sample *s)
{
    *s = (sample){
        .prompt = {0, 151935, 7, 300, 2147483647}, .pages = {9, 0, 70000}, .release = {3, 65535}};
    for (int i = 0; i < 2; i++) {
        Pb__Request *r = s->admit[i] = &s->request[i];
        pb__request__init(r);
        r->session = 17 + (uint32_t)i;
        r->slot = (uint32_t)i;
        r->n_prompt = i == 0 ? 5 : 0;
        r->prompt = i == 0 ? s->prompt : NULL;
        r->n_pages = 3;
        r->pages = s->pages;
        r->max_tokens = 512;
        r->strategy = 3;
        r->steps = 16;
        r->threshold = 0.9;
        r->sub_block = 8;
        r->temperature = 0.7;
        r->top_k = 50;
        r->top_p = 0.95;
        r->seed = UINT64_MAX;
        r->has_shared = i == 0;
        r->shared = i == 0 ? 4 : 0;
    }
    for (int i = 0; i < 3; i++) {
        Pb__Segment *g = s->segments[i] = &s->segment[i];
        pb__segment__init(g);
        g->slot = (uint32_t)i;
        g->kind = (uint32_t)i + 1;
        g->first = 32 * (uint32_t)i;
        g->count = 32;
    }
    pb__step__init(&s->step);
    s->step.sequence = 1ULL << 40;
    s->step.n_admit = 2;
    s->step.admit = s->admit;
    s->step.n_segments = 3;
    s->step.segments = s->segments;
    s->step.n_release = 2;
    s->step.release = s->release;
    s->step.has_logits = 1;
    s->step.logits = 1;
}

static Pb__Result sample_result(void)
{
    Pb__Result r = PB__RESULT__INIT;
    r.session = UINT32_MAX;
    r.rank = PB_RANKS_MAX - 1;
    r.ids_hash = UINT64_MAX;
    r.read_later = r.prefix_later = r.read_total = r.prefix_total = UINT64_MAX;
    r.read_steps = r.prefix_steps = UINT64_MAX;
    r.active_later = r.rows_later = r.scanned = r.union_pages = UINT64_MAX;
    r.budget_pages = r.exchange_bytes = UINT64_MAX;
    return r;
}

static void test_step_round_trip(void **state)
{
    (void)state;
    sample s;
    sample_init(&s);
    rt_str frame = {0}, again = {0};
    assert_int_equal(pb_step_pack(&s.step, &frame), RT_OK);
    Pb__Step *got = NULL;
    assert_int_equal(pb_step_unpack(frame.data, frame.len, &got), RT_OK);
    assert_true(got->sequence == 1ULL << 40);
    assert_int_equal(got->n_admit, 2);
    const Pb__Request *r = got->admit[0];
    assert_int_equal(r->session, 17);
    assert_int_equal(r->n_prompt, 5);
    assert_memory_equal(r->prompt, s.prompt, sizeof s.prompt);
    assert_int_equal(r->n_pages, 3);
    assert_memory_equal(r->pages, s.pages, sizeof s.pages);
    assert_true(r->threshold == 0.9 && r->temperature == 0.7 && r->top_p == 0.95);
    assert_true(r->seed == UINT64_MAX);
    assert_true(r->has_shared && r->shared == 4 && !got->admit[1]->has_shared);
    assert_int_equal(got->admit[1]->n_prompt, 0);
    assert_int_equal(got->n_segments, 3);
    assert_int_equal(got->segments[2]->first, 64);
    assert_int_equal(got->segments[2]->kind, 3);
    assert_int_equal(got->n_release, 2);
    assert_int_equal(got->release[1], 65535);
    assert_true(got->has_logits && got->logits && !got->has_close);
    assert_int_equal(pb_step_pack(got, &again), RT_OK);
    assert_int_equal(again.len, frame.len);
    assert_memory_equal(again.data, frame.data, frame.len);
    pb_step_free(got);
    pb_step_free(NULL);
    rt_str_free(&frame);
    rt_str_free(&again);
}

static void test_result_round_trip(void **state)
{
    (void)state;
    Pb__Result r = sample_result();
    rt_str frame = {0};
    assert_int_equal(pb_result_pack(&r, &frame), RT_OK);
    assert_true(frame.len <= PB_RESULT_FRAME_MAX); // all fields at their largest
    size_t size = 0;
    unsigned char slot[PB_RESULT_FRAME_MAX] = {0};
    memcpy(slot, frame.data, frame.len);
    assert_int_equal(pb_frame_size(slot, sizeof slot, &size), RT_OK);
    assert_int_equal(size, frame.len);
    Pb__Result *got = NULL;
    assert_int_equal(pb_result_unpack(slot, sizeof slot, &got), RT_ERR_FORMAT);
    assert_int_equal(pb_result_unpack(slot, size, &got), RT_OK);
    assert_true(got->ids_hash == UINT64_MAX && got->exchange_bytes == UINT64_MAX);
    assert_int_equal(got->rank, PB_RANKS_MAX - 1);
    pb_result_free(got);
    pb_result_free(NULL);
    rt_str_free(&frame);
}

// Copies of exactly `len` bytes on the heap: a sanitizer sees a read beyond.
static rt_status unpack_copy(const char *bytes, size_t len)
{
    char *copy = rt_mem_alloc(len, 1, "test");
    if (len > 0)
        memcpy(copy, bytes, len);
    Pb__Step *step = NULL;
    rt_status status = pb_step_unpack(copy, len, &step);
    if (status != RT_OK)
        assert_null(step);
    pb_step_free(step);
    Pb__Result *result = NULL;
    if (pb_result_unpack(copy, len, &result) == RT_OK)
        pb_result_free(result);
    rt_free(copy);
    return status;
}

static void set_length(char *frame, size_t n)
{
    for (int i = 0; i < PB_FRAME_HEAD; i++)
        frame[i] = (char)(n >> (8 * i));
}

static void test_truncation(void **state)
{
    (void)state;
    sample s;
    sample_init(&s);
    rt_str frame = {0};
    assert_int_equal(pb_step_pack(&s.step, &frame), RT_OK);
    for (size_t len = 0; len < frame.len; len++)
        assert_int_equal(unpack_copy(frame.data, len), RT_ERR_FORMAT);
    // With a head that agrees the reader proper is reached; a cut between two
    // fields can be a smaller message, but never a crash.
    for (size_t len = PB_FRAME_HEAD; len < frame.len; len++) {
        set_length(frame.data, len - PB_FRAME_HEAD);
        (void)unpack_copy(frame.data, len);
    }
    rt_str_free(&frame);
}

static void test_lengths(void **state)
{
    (void)state;
    sample s;
    sample_init(&s);
    rt_str frame = {0};
    assert_int_equal(pb_step_pack(&s.step, &frame), RT_OK);
    size_t n = frame.len - PB_FRAME_HEAD;
    static const size_t bad[] = {0, 1, PB_FRAME_MAX, PB_FRAME_MAX + 1, 0x7fffffff, 0xffffffff};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        set_length(frame.data, bad[i]);
        assert_int_equal(unpack_copy(frame.data, frame.len), RT_ERR_FORMAT);
    }
    set_length(frame.data, n + 1);
    assert_int_equal(unpack_copy(frame.data, frame.len), RT_ERR_FORMAT);
    set_length(frame.data, n);
    assert_int_equal(rt_str_append(&frame, "", 1), RT_OK); // a byte after the end
    assert_int_equal(unpack_copy(frame.data, frame.len), RT_ERR_FORMAT);
    assert_string_equal(rt_last_error(), "frame: 1 bytes follow its end");
    rt_str_free(&frame);
}

static void test_mutations(void **state)
{
    (void)state;
    sample s;
    sample_init(&s);
    rt_str frame = {0};
    assert_int_equal(pb_step_pack(&s.step, &frame), RT_OK);
    for (uint32_t round = 0; round < 100000; round++) {
        char bytes[512];
        assert_true(frame.len <= sizeof bytes);
        memcpy(bytes, frame.data, frame.len);
        for (uint32_t k = 0; k <= round % 4; k++) {
            const uint32_t counter[4] = {round, k, 0, 0};
            rt_philox random = rt_philox4x32(11, counter);
            // Mostly beyond the head, which is checked on its own above.
            size_t from = random.v[0] % 16 ? PB_FRAME_HEAD : 0;
            bytes[from + random.v[1] % (frame.len - from)] = (char)random.v[2];
        }
        (void)unpack_copy(bytes, frame.len);
    }
    rt_str_free(&frame);
}

// The step is refused when packed, with `message`.
static void refused(const sample *s, const char *message)
{
    rt_str frame = {0};
    assert_int_equal(rt_str_puts(&frame, "kept"), RT_OK);
    assert_int_equal(pb_step_pack(&s->step, &frame), RT_ERR_FORMAT);
    assert_string_equal(rt_last_error(), message);
    assert_string_equal(frame.data, "kept");
    rt_str_free(&frame);
    // The same bytes from elsewhere are refused when unpacked, for the same reason.
    size_t n = pb__step__get_packed_size(&s->step);
    char *bytes = rt_mem_alloc(PB_FRAME_HEAD + n, 1, "test");
    set_length(bytes, n);
    pb__step__pack(&s->step, (uint8_t *)bytes + PB_FRAME_HEAD);
    (void)RT_FAIL(RT_ERR_INTERNAL, "none");
    Pb__Step *step = NULL;
    assert_int_equal(pb_step_unpack(bytes, PB_FRAME_HEAD + n, &step), RT_ERR_FORMAT);
    assert_string_equal(rt_last_error(), message);
    assert_null(step);
    rt_free(bytes);
}

#define REFUSED(change, message)                                                                   \
    do {                                                                                           \
        sample s;                                                                                  \
        sample_init(&s);                                                                           \
        s.change;                                                                                  \
        refused(&s, message);                                                                      \
    } while (0)

static void test_ranges(void **state)
{
    (void)state;
    REFUSED(request[1].session = 0, "request.session is 0, allowed are 1 to 4294967295");
    REFUSED(request[0].slot = 65536, "request.slot is 65536, allowed are 0 to 65535");
    REFUSED(prompt[2] = -1, "request.prompt[2] is -1");
    REFUSED(pages[0] = 1U << 31, "request.pages is 2147483648, allowed are 0 to 2147483647");
    REFUSED(request[0].shared = 6, "request.shared is 6, allowed are 0 to 5");
    REFUSED(request[0].max_tokens = UINT32_MAX,
            "request.max_tokens is 4294967295, allowed are 0 to 1048576");
    REFUSED(request[0].strategy = 4, "request.strategy is 4, allowed are 0 to 3");
    REFUSED(request[0].steps = 1 << 21, "request.steps is 2097152, allowed are 1 to 1048576");
    REFUSED(request[0].steps = 0, "request.steps is 0, allowed are 1 to 1048576");
    REFUSED(request[0].top_k = 1U << 31,
            "request.top_k is 2147483648, allowed are 0 to 2147483647");
    REFUSED(request[0].top_p = 1.5, "request.top_p is 1.5, allowed are 0 to 1");
    REFUSED(request[0].top_p = (double)NAN, "request.top_p is nan, allowed are 0 to 1");
    REFUSED(request[0].temperature = HUGE_VAL,
            "request.temperature is inf, allowed are 0 to 1.79769e+308");
    REFUSED(request[0].temperature = -0.5,
            "request.temperature is -0.5, allowed are 0 to 1.79769e+308");
    REFUSED(request[1].threshold = (double)NAN,
            "request.threshold is nan, allowed are 0 to 1.79769e+308");
    REFUSED(request[1].threshold = -HUGE_VAL,
            "request.threshold is -inf, allowed are 0 to 1.79769e+308");
    REFUSED(segment[0].kind = 7, "segment.kind is 7, allowed are 0 to 6");
    REFUSED(segment[0].slot = 1 << 16, "segment.slot is 65536, allowed are 0 to 65535");
    REFUSED(segment[2].count = 0, "segment.count is 0, allowed are 1 to 1048576");
    REFUSED(segment[2].first = UINT32_MAX, "segment.first is 4294967295, allowed are 0 to 2097152");
    REFUSED(release[0] = 65536, "step.release is 65536, allowed are 0 to 65535");

    Pb__Result r = sample_result();
    rt_str frame = {0};
    r.rank = PB_RANKS_MAX;
    assert_int_equal(pb_result_pack(&r, &frame), RT_ERR_FORMAT);
    assert_string_equal(rt_last_error(), "result.rank is 65536, allowed are 0 to 65535");
}

static void test_long_prompt(void **state)
{
    (void)state;
    sample s;
    sample_init(&s);
    size_t n = (size_t)PB_TOKENS_MAX + 1;
    int32_t *prompt = calloc(n, sizeof *prompt);
    assert_non_null(prompt);
    for (size_t i = 0; i < n; i++)
        prompt[i] = 151935;
    s.request[0].prompt = prompt;
    s.request[0].n_prompt = n;
    refused(&s, "request.prompt length is 1048577, allowed are 0 to 1048576");

    rt_str frame = {0};
    s.request[0].n_prompt = n - 1;
    assert_int_equal(pb_step_pack(&s.step, &frame), RT_OK);
    assert_int_equal(unpack_copy(frame.data, frame.len), RT_OK);
    rt_str_free(&frame);
    free(prompt);
}

static void test_unknown_field(void **state)
{
    (void)state;
    // sequence = 1, then field 15 = 0.
    static const char bytes[] = {4, 0, 0, 0, 0x08, 1, 0x78, 0};
    assert_int_equal(unpack_copy(bytes, sizeof bytes), RT_ERR_FORMAT);
    Pb__Step *step = NULL;
    assert_int_equal(pb_step_unpack(bytes, sizeof bytes, &step), RT_ERR_FORMAT);
    assert_string_equal(rt_last_error(), "step has 1 unknown fields");
}

static void test_out_of_memory(void **state)
{
    (void)state;
    sample s;
    sample_init(&s);
    rt_str frame = {0};
    assert_int_equal(pb_step_pack(&s.step, &frame), RT_OK);
    rt_status status = RT_ERR_NOMEM;
    int failures = 0;
    for (long at = 1; status != RT_OK; at++) {
        Pb__Step *step = NULL;
        rt_mem_fail_at(at);
        status = pb_step_unpack(frame.data, frame.len, &step);
        rt_mem_fail_at(0);
        if (status != RT_OK) {
            assert_int_equal(status, RT_ERR_NOMEM);
            assert_null(step);
            failures++;
        }
        pb_step_free(step);
    }
    assert_true(failures >= 10); // every allocation of the message had its turn
    rt_mem_fail_at(1);
    assert_int_equal(pb_step_pack(&s.step, &frame), RT_ERR_NOMEM);
    rt_str_free(&frame);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_step_round_trip), cmocka_unit_test(test_result_round_trip),
        cmocka_unit_test(test_truncation),      cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_mutations),       cmocka_unit_test(test_ranges),
        cmocka_unit_test(test_long_prompt),     cmocka_unit_test(test_unknown_field),
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
