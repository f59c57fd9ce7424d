// SPDX-License-Identifier: Apache-2.0
#include "runtime/engine/slot.h"

#include "runtime/base/mem.h"

#include <string.h>

int rt_slot_span(int prompt_len, int max_tokens, int block)
{
    const int end = prompt_len + max_tokens;
    return (end + block - 1) / block * block;
}

int rt_slot_prefill_len(const rt_slot *slot, int block)
{
    return slot->prompt_len / block * block;
}

static void copy_parameters(rt_slot *slot, const Pb__Request *r)
{
    slot->session = r->session;
    slot->prompt_len = (int)r->n_prompt;
    slot->max_tokens = (int)r->max_tokens;
    slot->strategy = (int)r->strategy;
    slot->steps = (int)r->steps;
    slot->threshold = r->threshold;
    slot->sub_block = (int)r->sub_block;
    slot->temperature = r->temperature;
    slot->top_k = (int)r->top_k;
    slot->top_p = r->top_p;
    slot->seed = r->seed;
    slot->shared = r->has_shared ? (int)r->shared : 0;
}

static rt_status copy_arrays(rt_slot *slot, const Pb__Request *r, const rt_slot_shape *shape)
{
    slot->capacity = rt_slot_span(slot->prompt_len, slot->max_tokens, shape->block);
    slot->page_count = (int)r->n_pages;
    if ((long long)slot->page_count * shape->page < slot->capacity)
        return RT_FAIL(RT_ERR_INTERNAL, "session %u: %d pages of %d for %d positions",
                       slot->session, slot->page_count, shape->page, slot->capacity);
    if (slot->shared > rt_slot_prefill_len(slot, shape->block))
        return RT_FAIL(RT_ERR_INTERNAL, "session %u: %d tokens shared of a prompt of %d",
                       slot->session, slot->shared, slot->prompt_len);
    RT_TRY(RT_ALLOC(slot->ids, (size_t)slot->capacity, "tokens of a request"));
    RT_TRY(RT_ALLOC(slot->state, (size_t)slot->capacity, "tokens of a request"));
    RT_TRY(RT_ALLOC(slot->pages, r->n_pages, "pages of a request"));
    memcpy(slot->ids, r->prompt, r->n_prompt * sizeof *slot->ids);
    for (size_t i = 0; i < r->n_pages; i++)
        slot->pages[i] = (int32_t)r->pages[i];
    for (int i = slot->prompt_len; i < slot->capacity; i++) {
        slot->ids[i] = shape->mask_id;
        slot->state[i] = KERN_ROW_MASKED;
    }
    return RT_OK;
}

rt_status rt_slot_admit(rt_slot *slot, const Pb__Request *request, const rt_slot_shape *shape)
{
    if (slot->used)
        return RT_FAIL(RT_ERR_INTERNAL, "session %u: slot %u is in use", request->session,
                       request->slot);
    *slot = (rt_slot){.used = true};
    copy_parameters(slot, request);
    const rt_status status = copy_arrays(slot, request, shape);
    if (status != RT_OK) {
        rt_slot_release(slot);
        return status;
    }
    slot->block_start = rt_slot_prefill_len(slot, shape->block);
    return RT_OK;
}

void rt_slot_release(rt_slot *slot)
{
    rt_free(slot->ids);
    rt_free(slot->state);
    rt_free(slot->pages);
    *slot = (rt_slot){0};
}

uint64_t rt_slot_hash(const rt_slot *slot)
{
    uint64_t h = 14695981039346656037u;
    for (int i = 0; i < slot->capacity; i++)
        h = (h ^ (uint32_t)slot->ids[i]) * 1099511628211u;
    return h;
}
