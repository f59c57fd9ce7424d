// SPDX-License-Identifier: Apache-2.0
#include "proto/batch.h"

#include "proto/frame_int.h"

#include <math.h>

static rt_status check_work(const Pb__BatchWork *w)
{
    RT_TRY(pb_check_known("work", &w->base));
    return pb_check_int("work.text length", w->text.len, 0, PB_LINE_MAX);
}

static rt_status check_real(const char *field, double value)
{
    if (isfinite(value) && value >= 0)
        return RT_OK;
    return RT_FAIL(RT_ERR_FORMAT, "%s is %g", field, value);
}

static rt_status check_record(const Pb__BatchRecord *r)
{
    RT_TRY(pb_check_known("record", &r->base));
    RT_TRY(pb_check_int("record.text length", r->text.len, 1, PB_LINE_MAX));
    RT_TRY(pb_check_int("record.prompt_tokens", r->prompt_tokens, 0, PB_TOKENS_MAX));
    RT_TRY(pb_check_int("record.completion_tokens", r->completion_tokens, 0, PB_TOKENS_MAX));
    RT_TRY(pb_check_int("record.shared_tokens", r->shared_tokens, 0, r->prompt_tokens));
    RT_TRY(check_real("record.prefix_read", r->prefix_read));
    return check_real("record.prefix_total", r->prefix_total);
}

static rt_status check_pulse(const Pb__BatchPulse *p)
{
    RT_TRY(pb_check_known("pulse", &p->base));
    RT_TRY(pb_check_int("pulse.running", p->running, 0, PB_SLOTS_MAX));
    return pb_check_int("pulse.pages_used", p->pages_used, 0, p->pages);
}

static rt_status check_letter(const Pb__BatchLetter *l)
{
    RT_TRY(pb_check_known("letter", &l->base));
    const int parts = (l->work != NULL) + (l->record != NULL) + (l->pulse != NULL) + l->has_order;
    if (parts != 1)
        return RT_FAIL(RT_ERR_FORMAT, "letter: has %d parts, must be one", parts);
    if (l->work)
        return check_work(l->work);
    if (l->record)
        return check_record(l->record);
    if (l->pulse)
        return check_pulse(l->pulse);
    return pb_check_int("order", (uint64_t)l->order, PB__BATCH_ORDER__DRAIN,
                        PB__BATCH_ORDER__CLOSE);
}

rt_status pb_letter_pack(const Pb__BatchLetter *letter, rt_str *out)
{
    RT_CHECK_ARG(letter && out);
    RT_TRY(check_letter(letter));
    return pb_pack(&letter->base, out);
}

rt_status pb_letter_unpack(const void *bytes, size_t len, Pb__BatchLetter **out)
{
    RT_CHECK_ARG(out);
    ProtobufCMessage *message = NULL;
    RT_TRY(pb_unpack(&pb__batch_letter__descriptor, bytes, len, &message));
    const rt_status status = check_letter((const Pb__BatchLetter *)message);
    if (status != RT_OK) {
        pb_free_message(message);
        return status;
    }
    *out = (Pb__BatchLetter *)message;
    return RT_OK;
}

void pb_letter_free(Pb__BatchLetter *letter)
{
    pb_free_message(letter ? &letter->base : NULL);
}
