// SPDX-License-Identifier: Apache-2.0
// Tile of attention on the CPU: up to ATTN_LANES query vectors ("lanes": a row
// and a query head of one KV group) against keys given by pointers to their K
// and V vectors, with an online softmax (Milakov & Gimelshein 2018).
//
// Scores are kept transposed, keys down and lanes across: a K vector is read in
// place with broadcasts, so nothing is transposed or copied, and the softmax of
// a lane runs down its column, one operation per key in key order. A lane's
// result therefore depends neither on the other lanes nor on the tile it is in;
// it depends on the keys, their order, and the calls that deliver them.
#ifndef KERNELS_CPU_ATTN_TILE_H
#define KERNELS_CPU_ATTN_TILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Lanes of a vector register; keys that share a load of lanes.
#if defined(__AVX512F__)
enum { ATTN_WIDTH = 16, ATTN_BLOCK = 8 };
#elif defined(__AVX__)
enum { ATTN_WIDTH = 8, ATTN_BLOCK = 6 };
#else
enum { ATTN_WIDTH = 4, ATTN_BLOCK = 6 };
#endif

enum {
    ATTN_PANEL = 2 * ATTN_WIDTH, // lanes that go through the softmax together
    ATTN_LANES = 128,            // most lanes of a tile
    ATTN_KEYS = 48,              // most keys of one attn_tile_keys call; with these K and V, at 64
                                 // dimensions, share a 32 KiB cache with a panel of lanes
};

// s[i, lane] = k[i] . q[lane] (added to what is there if `add`) for keys i < count
// and the lanes of one panel: q is [dim, ATTN_PANEL], s [count, ATTN_PANEL] and has
// room for ATTN_BLOCK - 1 keys more, which get surplus results.
void attn_panel_scores(const float *q, int dim, const float *const *k, int count, bool add,
                       float *s);

typedef struct attn_tile {
    int dim, lanes;
    float *q;   // scaled, in panels of lanes
    float *p;   // scores, then weights, of one panel
    int *limit; // [ATTN_LANES]: a lane sees the keys whose index is below
    // Set by the caller to measure pages, after init: page_keys > 0 keys make a page,
    // `pages` names them (NULL: in order), page_lse[lane] (NULL: not wanted) gets the
    // log-sum-exp of the lane's scores of each page, added to what is there.
    int page_keys;
    const int32_t *pages;
    float *page_lse[ATTN_LANES];
} attn_tile;

// What lanes have seen: the largest score m, l = sum e^(s - m), o = sum e^(s - m) v.
// l = 0: no key yet.
typedef struct attn_state {
    float *m, *l; // [lanes]
    float *o;     // [lanes, dim]
} attn_state;

// Floats of scratch that the init functions carve up; the scratch stays the caller's.
size_t attn_tile_floats(int dim);
size_t attn_state_floats(int dim, int lanes);
void attn_tile_init(attn_tile *tile, int dim, float *scratch);
void attn_state_init(attn_state *state, int lanes, float *scratch);

// Sets lane `lane` < ATTN_LANES to q * scale (NULL: zeros) with its key limit.
void attn_tile_set(attn_tile *tile, int lane, const float *q, float scale, int limit);
// The tile has `lanes` lanes, all of them set.
void attn_tile_close(attn_tile *tile, int lanes);

void attn_state_clear(attn_state *state, int dim, int lanes);
// All lanes attend to keys [first, first + count), count <= ATTN_KEYS, below their limit.
void attn_tile_keys(const attn_tile *tile, int first, int count, const float *const *k,
                    const float *const *v, attn_state *state);
// Folds `part`, of keys that come after those of `sum`, into `sum`.
void attn_state_add(attn_state *sum, const attn_state *part, int dim, int lanes);
// o / l and m + log l of a lane; zeros and -infinity when it has seen no key.
float attn_state_finish(const attn_state *state, int dim, int lane, float *o);

#endif
