// SPDX-License-Identifier: Apache-2.0
// Letters of a batch job: what is packed comes back, what is out of bounds does not pass.
#include "tests/unit/testing.h"

#include "proto/batch.h"

#include <math.h>

static uint8_t text[] = "{\"a\": 1}";

static void test_round_trip(void **state)
{
    (void)state;
    Pb__BatchWork work = PB__BATCH_WORK__INIT;
    Pb__BatchLetter letter = PB__BATCH_LETTER__INIT, *got;
    rt_str frame = {0};
    work.line = UINT64_MAX;
    work.text.data = text;
    work.text.len = sizeof text - 1;
    letter.work = &work;
    assert_ok(pb_letter_pack(&letter, &frame));
    assert_ok(pb_letter_unpack(frame.data, frame.len, &got));
    assert_true(got->work->line == UINT64_MAX);
    assert_int_equal(got->work->text.len, sizeof text - 1);
    assert_memory_equal(got->work->text.data, text, sizeof text - 1);
    assert_null(got->record);
    pb_letter_free(got);
    rt_str_free(&frame);
}

static void assert_refused(const Pb__BatchLetter *letter, const char *field)
{
    rt_str frame = {0};
    assert_fails(pb_letter_pack(letter, &frame), RT_ERR_FORMAT, field, "");
    assert_int_equal(frame.len, 0);
}

static void test_bounds(void **state)
{
    (void)state;
    Pb__BatchLetter letter = PB__BATCH_LETTER__INIT;
    assert_refused(&letter, "letter: has 0 parts");
    Pb__BatchPulse pulse = PB__BATCH_PULSE__INIT;
    letter.pulse = &pulse;
    letter.has_order = true;
    assert_refused(&letter, "letter: has 2 parts");
    letter.has_order = false;
    pulse.pages_used = 1;
    assert_refused(&letter, "pulse.pages_used");

    Pb__BatchRecord record = PB__BATCH_RECORD__INIT;
    letter = (Pb__BatchLetter)PB__BATCH_LETTER__INIT;
    letter.record = &record;
    assert_refused(&letter, "record.text length");
    record.text.data = text;
    record.text.len = sizeof text - 1;
    record.prefix_read = NAN;
    assert_refused(&letter, "record.prefix_read");
    record.prefix_read = 0;
    rt_str frame = {0};
    Pb__BatchLetter *got;
    assert_ok(pb_letter_pack(&letter, &frame));
    for (size_t n = 0; n < frame.len; n++)
        assert_fails(pb_letter_unpack(frame.data, n, &got), RT_ERR_FORMAT, "frame", "");
    rt_str_free(&frame);

    Pb__BatchWork work = PB__BATCH_WORK__INIT;
    letter = (Pb__BatchLetter)PB__BATCH_LETTER__INIT;
    letter.work = &work;
    work.text.data = text;
    work.text.len = PB_LINE_MAX + 1;
    assert_refused(&letter, "work.text length");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_bounds),
    };
    return cmocka_run_group_tests_name("batch_letters", tests, NULL, NULL);
}
