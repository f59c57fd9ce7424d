// SPDX-License-Identifier: Apache-2.0
// Rank 0's book of KV pages: which are free, and which hold the beginning of a prompt,
// so that requests whose prompts begin alike share them.
//
// A unit is the least run of tokens that is whole blocks and whole pages. Its K,V depend on
// its own tokens and on those before it, because a block sees itself and what precedes it;
// its pages, and so their metadata, hold nothing else. Two prompts that begin with the same
// units hold the same pages for them. What follows the last whole unit is private.
//
// A unit is known by the unit before it and by its tokens, which are compared; the hash only
// finds candidates. It has
//   holders   the running requests whose prompts begin with it. A request that holds a unit
//             holds the ones before it.
//   a writer  the one holder that computes it, until it is written; 0 after that holder left.
// A unit without holders stays while nobody needs its pages, if it is written: it is idle.
// The one that was given back first goes first, and of a prompt's units the last one, so
// that a unit never outlives the one before it.
#ifndef RUNTIME_ENGINE_PAGEBOOK_H
#define RUNTIME_ENGINE_PAGEBOOK_H

#include "runtime/base/status.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct rt_unit {
    int32_t parent;       // the unit before it; -1: none
    int32_t next;         // in its bucket; among the unused entries
    int32_t older, newer; // among the idle ones
    int32_t holders;
    uint32_t writer; // 0: nobody
    bool written;
} rt_unit;

typedef struct rt_pagebook {
    int pages, page;
    int unit, unit_pages; // tokens and pages of a unit
    bool sharing;         // false: every page is private

    int32_t *free_pages; // stack
    int free_count;

    rt_unit *units; // [pages / unit_pages]
    int32_t *ids;   // [units, unit]
    int32_t *of;    // [units, unit_pages]: their pages
    int32_t *buckets;
    int bucket_mask;
    int32_t unused_unit; // list of unused entries
    int32_t oldest, newest;
    int idle;       // units
    uint64_t given; // counts what was given back: while it is the same, no room was made
} rt_pagebook;

typedef struct rt_pagebook_shape {
    int pages, page, block;
    bool sharing;
} rt_pagebook_shape;

// What a request holds, from rt_pagebook_take to rt_pagebook_give.
typedef struct rt_holding {
    uint32_t holder; // not 0 where it has units; later requests have greater ones
    int32_t *pages;  // [page_count], in logical order
    int page_count;
    int32_t *units; // [unit_count]: of the first pages
    int unit_count;
    int found;   // of the units: these were others' when the request came
    int written; // of the units: so many are known to be written
} rt_holding;

rt_status rt_pagebook_open(const rt_pagebook_shape *shape, rt_pagebook *out);
void rt_pagebook_close(rt_pagebook *b); // safe on a zero struct

// Room for what a request will hold: `pages` in all, and of its prompt the first `prefill`
// tokens, which are computed as whole blocks.
rt_status rt_holding_open(const rt_pagebook *b, int pages, int prefill, rt_holding *out);
void rt_holding_close(rt_holding *h); // safe on a zero struct

// Pages that no running request holds.
int rt_pagebook_unused(const rt_pagebook *b);
// Of the pages of a holding not yet taken: those that running requests hold already.
int rt_pagebook_shared(const rt_pagebook *b, const int32_t *prompt, const rt_holding *h);

// Takes all pages of a holding: the units of the prompt that are in the book, and others,
// for which idle units may have to go. False, with nothing taken, if there are too few.
bool rt_pagebook_take(rt_pagebook *b, const int32_t *prompt, rt_holding *h);
void rt_pagebook_give(rt_pagebook *b, rt_holding *h);

// Tokens at the start of the prompt that are in the pages.
int rt_pagebook_written(const rt_pagebook *b, rt_holding *h);
// Whether the holder is to compute what follows the written part; false: another one does.
// Units that lost their writer become the caller's.
bool rt_pagebook_claim(rt_pagebook *b, rt_holding *h);
// The holder has computed the first `tokens` of its prompt.
void rt_pagebook_wrote(rt_pagebook *b, rt_holding *h, int tokens);

#endif
