// SPDX-License-Identifier: Apache-2.0
// A slot holds the state of one running request, the same on every rank: its
// tokens, its pages and how far it got. Ranks change it only through step commands
// and through what a step computes identically everywhere.
#ifndef RUNTIME_ENGINE_SLOT_H
#define RUNTIME_ENGINE_SLOT_H

#include "kernels/kern.h"
#include "proto/frame.h"

#include <stdbool.h>

// What a request read, summed over its forwards; this rank's lists.
typedef struct rt_reading {
    uint64_t read_later, prefix_later; // later steps of blocks
    uint64_t read_steps, prefix_steps; // all steps: first ones too
    uint64_t read_total, prefix_total; // every denoising and commit forward
    uint64_t active_later, rows_later;
    uint64_t scanned; // pages, times lists
    uint64_t union_pages, budget_pages;
    uint64_t exchange_bytes;
} rt_reading;

typedef struct rt_slot {
    bool used;
    uint32_t session;
    int prompt_len, max_tokens;
    int strategy, steps, sub_block, top_k; // strategy: rt_strategy
    double threshold, temperature, top_p;
    uint64_t seed;

    int32_t *ids;   // [capacity]: prompt, generated tokens, then masks
    int32_t *state; // [capacity]: KERN_ROW_*
    int capacity;   // whole blocks
    int32_t *pages; // physical page numbers, in logical order
    int page_count;

    int shared;      // tokens that may be in the pages already: its first segment may start there
    int committed;   // positions whose K,V are in the pages
    int block_start; // of the block being denoised
    int block_step;  // steps it has had
    int steps_done;  // denoising steps of the whole request
    int unread;      // tokens unmasked since the block's rows last read the prefix
    unsigned kinds;  // 1 << KERN_SEG_*, of its segments in the step that is executed
    rt_reading reading;
} rt_slot;

typedef struct rt_slot_shape {
    int block, page, mask_id;
} rt_slot_shape;

// Fills a free slot from an admission message.
rt_status rt_slot_admit(rt_slot *slot, const Pb__Request *request, const rt_slot_shape *shape);
void rt_slot_release(rt_slot *slot); // back to unused

// Positions a request occupies: prompt and output, to the end of the last block.
int rt_slot_span(int prompt_len, int max_tokens, int block);
// Tokens of the prompt that prefill covers: whole blocks; the rest opens block 0.
int rt_slot_prefill_len(const rt_slot *slot, int block);
// FNV-1a over the tokens: ranks that diverged have different ones.
uint64_t rt_slot_hash(const rt_slot *slot);

#endif
