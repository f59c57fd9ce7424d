// SPDX-License-Identifier: Apache-2.0
// A story: a few requests that prefill, denoise two blocks and commit them, through
// the real losa_layer on one or several ranks (threads), with random queries, keys and
// values in place of a model. A request's numbers depend on its seed alone.
#ifndef TESTS_LOSA_STORY_H
#define TESTS_LOSA_STORY_H

#include "losa/attention.h"
#include "tests/kern/kern_testing.h"

enum { ST_REQUESTS = 3, ST_LAYERS = 2, ST_HIDDEN = 12, ST_SEGS = 2 * ST_REQUESTS, ST_RANKS = 8 };

typedef struct st_shape {
    int block, page, heads, kv_heads, dim;
} st_shape;

typedef struct st_request {
    int prompt; // tokens, whole blocks
    int delay;  // forwards before it starts
    uint64_t seed;
} st_request;

typedef struct st_setup {
    st_shape shape;
    st_request request[ST_REQUESTS];
    int requests, ranks, threads;
    int steps;    // later steps of a block
    bool merged;  // commit in the forward of the next block's first step
    bool settled; // only masked and just committed tokens move
    losa_config config;
} st_setup;

typedef struct st_seg {
    int request, kind, first, count;
    int step; // that the block has had, in a later step
} st_seg;

// What a layer did, over all ranks. Lists: 1, or one per KV head of the model.
typedef struct st_layer {
    float *out;            // [rows, heads dim]
    unsigned char *active; // [rows]
    unsigned char *read;   // [segs, lists, max_pages]
    unsigned char *all;    // [segs, lists]
} st_layer;

typedef struct st_forward {
    int segs, rows, scan, sparse, max_pages, lists;
    st_seg seg[ST_SEGS]; // as they stand in the batch
    int row0[ST_SEGS + 1];
    st_layer layer[ST_LAYERS];
} st_forward;

typedef struct st_story st_story;

st_story *st_begin(const st_setup *setup);
// Runs the next forward and describes it, or returns false at the end. The
// description is the story's, until the next call.
bool st_next(st_story *s, const st_forward **out);
void st_end(st_story *s);

const st_setup *st_setup_of(const st_story *s);
// [heads dim | kv_heads dim | kv_heads dim] of a token in the last forward.
const float *st_qkv(const st_story *s, int layer, int request, int token);
const float *st_hidden(const st_story *s, int layer, int request, int token);
int st_state(const st_story *s, int request, int token); // KERN_ROW_*
// Rows at the end of a segment that are being denoised.
int st_denoised(const st_setup *setup, const st_seg *seg);

#endif
