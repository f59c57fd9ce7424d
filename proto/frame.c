// SPDX-License-Identifier: Apache-2.0
// Packing, unpacking and the checks of both.
#include "proto/frame_int.h"

#include "runtime/base/mem.h"

#include <float.h>
#include <stdbool.h>
#include <stdint.h>

static void *allocate(void *exhausted, size_t size)
{
    void *p = rt_mem_alloc(size, 1, "message");
    if (!p)
        *(bool *)exhausted = true;
    return p;
}

static void release(void *exhausted, void *p)
{
    (void)exhausted;
    rt_free(p);
}

// `exhausted` is set when memory, not the bytes, made an unpack fail.
static ProtobufCAllocator allocator(bool *exhausted)
{
    return (ProtobufCAllocator){.alloc = allocate, .free = release, .allocator_data = exhausted};
}

rt_status pb_check_int(const char *field, uint64_t value, uint64_t min, uint64_t max)
{
    if (value >= min && value <= max)
        return RT_OK;
    return RT_FAIL(RT_ERR_FORMAT, "%s is %llu, allowed are %llu to %llu", field,
                   (unsigned long long)value, (unsigned long long)min, (unsigned long long)max);
}

static rt_status check_real(const char *field, double value, double min, double max)
{
    if (value >= min && value <= max) // does not hold for a NaN
        return RT_OK;
    return RT_FAIL(RT_ERR_FORMAT, "%s is %g, allowed are %g to %g", field, value, min, max);
}

rt_status pb_check_known(const char *message, const ProtobufCMessage *base)
{
    if (base->n_unknown_fields == 0)
        return RT_OK;
    return RT_FAIL(RT_ERR_FORMAT, "%s has %u unknown fields", message, base->n_unknown_fields);
}

static rt_status check_lists(const Pb__Request *r)
{
    RT_TRY(pb_check_int("request.prompt length", r->n_prompt, 0, PB_TOKENS_MAX));
    for (size_t i = 0; i < r->n_prompt; i++)
        if (r->prompt[i] < 0)
            return RT_FAIL(RT_ERR_FORMAT, "request.prompt[%zu] is %d", i, r->prompt[i]);
    RT_TRY(pb_check_int("request.pages length", r->n_pages, 0, PB_PAGES_MAX));
    for (size_t i = 0; i < r->n_pages; i++)
        RT_TRY(pb_check_int("request.pages", r->pages[i], 0, INT32_MAX));
    return RT_OK;
}

static rt_status check_decoding(const Pb__Request *r)
{
    RT_TRY(pb_check_int("request.max_tokens", r->max_tokens, 0, PB_TOKENS_MAX));
    RT_TRY(pb_check_int("request.strategy", r->strategy, 0, PB_STRATEGIES - 1));
    RT_TRY(pb_check_int("request.steps", r->steps, 1, PB_TOKENS_MAX));
    RT_TRY(check_real("request.threshold", r->threshold, 0, DBL_MAX));
    RT_TRY(pb_check_int("request.sub_block", r->sub_block, 0, PB_TOKENS_MAX));
    RT_TRY(check_real("request.temperature", r->temperature, 0, DBL_MAX));
    RT_TRY(pb_check_int("request.top_k", r->top_k, 0, INT32_MAX));
    return check_real("request.top_p", r->top_p, 0, 1);
}

static rt_status check_request(const Pb__Request *r)
{
    RT_TRY(pb_check_known("request", &r->base));
    RT_TRY(pb_check_int("request.session", r->session, 1, UINT32_MAX));
    RT_TRY(pb_check_int("request.slot", r->slot, 0, PB_SLOTS_MAX - 1));
    RT_TRY(check_lists(r));
    RT_TRY(pb_check_int("request.shared", r->shared, 0, r->n_prompt));
    return check_decoding(r);
}

static rt_status check_segment(const Pb__Segment *s)
{
    RT_TRY(pb_check_known("segment", &s->base));
    RT_TRY(pb_check_int("segment.slot", s->slot, 0, PB_SLOTS_MAX - 1));
    RT_TRY(pb_check_int("segment.kind", s->kind, 0, PB_SEGMENT_KINDS - 1));
    RT_TRY(pb_check_int("segment.first", s->first, 0, PB_POSITION_MAX));
    return pb_check_int("segment.count", s->count, 1, PB_TOKENS_MAX);
}

static rt_status check_step(const Pb__Step *s)
{
    RT_TRY(pb_check_known("step", &s->base));
    RT_TRY(pb_check_int("step.admit length", s->n_admit, 0, PB_SLOTS_MAX));
    for (size_t i = 0; i < s->n_admit; i++)
        RT_TRY(check_request(s->admit[i]));
    RT_TRY(pb_check_int("step.segments length", s->n_segments, 0, PB_SEGMENTS_MAX));
    for (size_t i = 0; i < s->n_segments; i++)
        RT_TRY(check_segment(s->segments[i]));
    RT_TRY(pb_check_int("step.release length", s->n_release, 0, PB_SLOTS_MAX));
    for (size_t i = 0; i < s->n_release; i++)
        RT_TRY(pb_check_int("step.release", s->release[i], 0, PB_SLOTS_MAX - 1));
    return RT_OK;
}

static rt_status check_result(const Pb__Result *r)
{
    RT_TRY(pb_check_known("result", &r->base));
    RT_TRY(pb_check_int("result.session", r->session, 1, UINT32_MAX));
    return pb_check_int("result.rank", r->rank, 0, PB_RANKS_MAX - 1);
}

rt_status pb_pack(const ProtobufCMessage *message, rt_str *out)
{
    size_t n = protobuf_c_message_get_packed_size(message);
    RT_TRY(pb_check_int("frame length", n, 0, PB_FRAME_MAX - PB_FRAME_HEAD));
    unsigned char *frame = NULL;
    RT_TRY(RT_ALLOC(frame, PB_FRAME_HEAD + n, "frame"));
    for (int i = 0; i < PB_FRAME_HEAD; i++)
        frame[i] = (unsigned char)(n >> (8 * i));
    protobuf_c_message_pack(message, frame + PB_FRAME_HEAD);
    rt_status status = rt_str_append(out, (const char *)frame, PB_FRAME_HEAD + n);
    rt_free(frame);
    return status;
}

rt_status pb_unpack(const ProtobufCMessageDescriptor *type, const void *bytes, size_t len,
                    ProtobufCMessage **out)
{
    size_t size = 0;
    RT_TRY(pb_frame_size(bytes, len, &size));
    if (size != len)
        return RT_FAIL(RT_ERR_FORMAT, "frame: %zu bytes follow its end", len - size);
    bool exhausted = false;
    ProtobufCAllocator memory = allocator(&exhausted);
    ProtobufCMessage *message = protobuf_c_message_unpack(type, &memory, len - PB_FRAME_HEAD,
                                                          (const uint8_t *)bytes + PB_FRAME_HEAD);
    if (!message && exhausted)
        return RT_ERR_NOMEM; // rt_mem_alloc wrote the message
    if (!message)
        return RT_FAIL(RT_ERR_FORMAT, "frame: %zu bytes are not a message of type %s",
                       len - PB_FRAME_HEAD, type->name);
    *out = message;
    return RT_OK;
}

void pb_free_message(ProtobufCMessage *message)
{
    bool exhausted = false;
    ProtobufCAllocator memory = allocator(&exhausted);
    if (message)
        protobuf_c_message_free_unpacked(message, &memory);
}

rt_status pb_step_pack(const Pb__Step *step, rt_str *out)
{
    RT_CHECK_ARG(step && out);
    RT_TRY(check_step(step));
    return pb_pack(&step->base, out);
}

rt_status pb_result_pack(const Pb__Result *result, rt_str *out)
{
    RT_CHECK_ARG(result && out);
    RT_TRY(check_result(result));
    return pb_pack(&result->base, out);
}

rt_status pb_frame_size(const void *bytes, size_t len, size_t *out)
{
    RT_CHECK_ARG((bytes || len == 0) && out);
    if (len < PB_FRAME_HEAD)
        return RT_FAIL(RT_ERR_FORMAT, "frame: %zu bytes, its head has %d", len, PB_FRAME_HEAD);
    const unsigned char *head = bytes;
    size_t n = 0;
    for (int i = 0; i < PB_FRAME_HEAD; i++)
        n |= (size_t)head[i] << (8 * i);
    RT_TRY(pb_check_int("frame length", n, 0, PB_FRAME_MAX - PB_FRAME_HEAD));
    if (n > len - PB_FRAME_HEAD)
        return RT_FAIL(RT_ERR_FORMAT, "frame: announces %zu bytes, %zu are there", n,
                       len - PB_FRAME_HEAD);
    *out = PB_FRAME_HEAD + n;
    return RT_OK;
}

rt_status pb_step_unpack(const void *bytes, size_t len, Pb__Step **out)
{
    RT_CHECK_ARG(out);
    ProtobufCMessage *message = NULL;
    RT_TRY(pb_unpack(&pb__step__descriptor, bytes, len, &message));
    rt_status status = check_step((const Pb__Step *)message);
    if (status != RT_OK) {
        pb_free_message(message);
        return status;
    }
    *out = (Pb__Step *)message;
    return RT_OK;
}

rt_status pb_result_unpack(const void *bytes, size_t len, Pb__Result **out)
{
    RT_CHECK_ARG(out);
    ProtobufCMessage *message = NULL;
    RT_TRY(pb_unpack(&pb__result__descriptor, bytes, len, &message));
    rt_status status = check_result((const Pb__Result *)message);
    if (status != RT_OK) {
        pb_free_message(message);
        return status;
    }
    *out = (Pb__Result *)message;
    return RT_OK;
}

void pb_step_free(Pb__Step *step)
{
    pb_free_message(step ? &step->base : NULL);
}

void pb_result_free(Pb__Result *result)
{
    pb_free_message(result ? &result->base : NULL);
}
