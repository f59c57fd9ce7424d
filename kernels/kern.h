// SPDX-License-Identifier: Apache-2.0
// The device API: buffers and one function per operation.
//
// Every operation takes an argument struct with named fields. kern.c checks the
// arguments once, the same way for every backend, and then calls the device's
// function table. Calls enqueue on the device's stream; results are visible to
// the host after kern_sync or kern_read (the CPU backend is synchronous). No
// operation allocates. Arithmetic accumulates in f32 in a fixed order: the same call
// gives the same bits, whatever the number of threads. On the CPU a row's result does
// not depend on the other rows of the call either; on a GPU they decide how the work is
// cut, and so how it is rounded.
//
// Matrices are row-major; [rows, cols] names the shape. A buffer holds at least
// what the shape says; the rest is not touched. Where a shape is of an `activation`, its
// buffer is f32 or of a type in which the device keeps weights: so a value that only linears
// read is rounded once, where it is made.
#ifndef KERNELS_KERN_H
#define KERNELS_KERN_H

#include "runtime/base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum kern_dtype { KERN_F32, KERN_BF16, KERN_F16, KERN_I32, KERN_I64, KERN_U8 } kern_dtype;
size_t kern_dtype_size(kern_dtype dtype);
const char *kern_dtype_name(kern_dtype dtype);

typedef enum kern_kind { KERN_CPU, KERN_CUDA } kern_kind;

// A device with its stream, workspace and library handles.
typedef struct kern_dev kern_dev;

// In what type a CUDA device keeps weights and KV pages. The CPU is always f32.
typedef enum kern_precision {
    KERN_PRECISION_AUTO, // weights as stored, KV in bf16
    KERN_PRECISION_F32,  // both in f32 and no tensor cores, to compare with the CPU
} kern_precision;

typedef struct kern_dev_options {
    kern_kind kind;
    int index;   // CUDA device number; 0 on the CPU
    int threads; // CPU worker threads, >= 1
    kern_precision precision;
    // Stands in for such a device, whether there is one or not: buffers are counted and have
    // no memory, calls do nothing. It tells what memory a program takes before it takes it.
    bool dry;
} kern_dev_options;

// Devices of a kind that this build can open here; 0: none.
int kern_device_count(kern_kind kind);

// What names device `index` of a kind in the whole world: a GPU's UUID. The host's CPU has none
// (zeros). Opens nothing.
enum { KERN_ID_BYTES = 16 };
rt_status kern_device_id(kern_kind kind, int index, unsigned char id[KERN_ID_BYTES]);

rt_status kern_dev_open(const kern_dev_options *options, kern_dev **out);
void kern_dev_close(kern_dev *dev); // buffers must be freed before
kern_kind kern_dev_kind(const kern_dev *dev);
bool kern_dev_is_dry(const kern_dev *dev);
// The type in which this device keeps weights that are stored as `stored`: the
// CPU computes in f32 and keeps f32, whatever the file holds.
kern_dtype kern_dev_weight_dtype(const kern_dev *dev, kern_dtype stored);
// The stream on which calls are enqueued: a cudaStream_t, for communication backends.
// NULL on the CPU.
void *kern_dev_stream(const kern_dev *dev);
// The type of K and V in this device's pages: f32 or bf16.
kern_dtype kern_dev_kv_dtype(const kern_dev *dev);
// The type of the bounds of this device's pages: f32 or u8 (KV pages, below).
kern_dtype kern_dev_bound_dtype(const kern_dev *dev, int head_dim);

// ---- memory --------------------------------------------------------------------------

// What buffers are for. A device keeps count of the bytes of each.
typedef enum kern_use {
    KERN_USE_WEIGHTS,
    KERN_USE_KV,          // keys and values
    KERN_USE_METADATA,    // bounds of the pages' keys
    KERN_USE_CACHE,       // what a block keeps from step to step: prefix cache, queries, page lists
    KERN_USE_ACTIVATIONS, // of a forward
    KERN_USE_TABLES,      // rotary tables
    KERN_USE_BATCH,       // batch, page plans and scores, sampling
    KERN_USE_ROUNDING,    // what a GPU's driver adds to buffers
    KERN_USE_WORKSPACE,   // the device's own
    KERN_USE_HOST,        // host memory that a GPU reaches
    KERN_USES
} kern_use;
const char *kern_use_name(kern_use use);

// Buffers made from now on are for this (KERN_USE_BATCH until the first call).
void kern_use_for(kern_dev *dev, kern_use use);
// Bytes in use now.
size_t kern_used(const kern_dev *dev, kern_use use);
// Bytes that can still be had: a GPU's free memory; on the CPU what the machine, or the
// control group of this process, has in all. SIZE_MAX: not known.
rt_status kern_dev_room(const kern_dev *dev, size_t *out);

// A device allocation of `count` elements. Owned by the caller; must not outlive
// its device. New buffers are zeroed.
typedef struct kern_buf kern_buf;

rt_status kern_buf_new(kern_dev *dev, kern_dtype dtype, size_t count, const char *what,
                       kern_buf **out);
// The same in host memory that the device reaches: the host may read it at kern_buf_ptr
// once the device is idle. For the few words that a step tells the host.
rt_status kern_buf_new_shared(kern_dev *dev, kern_dtype dtype, size_t count, const char *what,
                              kern_buf **out);
// A part of another buffer, as a buffer of its own; ends before its owner does.
rt_status kern_buf_view(kern_buf *owner, size_t first, size_t count, kern_buf **out);
void kern_buf_free(kern_buf *buf); // NULL is allowed
size_t kern_buf_count(const kern_buf *buf);
kern_dtype kern_buf_dtype(const kern_buf *buf);
// Device address, for communication backends. Host-readable only if kind is CPU.
void *kern_buf_ptr(const kern_buf *buf);

// Host copies of `count` elements of the buffer's own type, from element `first`.
// kern_write may return before the copy is done only if `src` was consumed.
rt_status kern_write(kern_buf *dst, size_t first, const void *src, size_t count);
rt_status kern_read(const kern_buf *src, size_t first, void *dst, size_t count);
// Copies `count` elements between buffers of one device and type that do not overlap,
// in the order of the stream.
rt_status kern_copy(kern_buf *dst, size_t first, const kern_buf *src, size_t first_src,
                    size_t count);
// Sets the first `count` elements to zero.
rt_status kern_fill_zero(kern_buf *buf, size_t count);
rt_status kern_sync(kern_dev *dev);
// Whether everything that was enqueued is done; does not wait.
rt_status kern_poll(kern_dev *dev, bool *idle);

// ---- recorded sequences -------------------------------------------------------------
//
// A sequence of calls can be recorded and then replayed as one, which saves the time of
// enqueueing each (a CUDA graph). While a device records, its calls and the collectives on
// its buffers are noted and not run; those that exchange data with the host (write, read,
// upload, sync) are refused. A replay runs the calls with the arguments they had, on what
// the buffers then hold.

typedef struct kern_graph kern_graph;

bool kern_can_record(const kern_dev *dev); // CUDA devices
rt_status kern_record_begin(kern_dev *dev);
// Ends the recording. `out` NULL drops it: after a call that failed.
rt_status kern_record_end(kern_dev *dev, kern_graph **out);
rt_status kern_graph_launch(kern_graph *graph);
void kern_graph_free(kern_graph *graph); // NULL is allowed

// ---- timing ---------------------------------------------------------------------------
//
// Marks are passed in the order of the stream; recorded ones whenever the graph is
// replayed. A mark between two kernels of a graph costs about a microsecond.

typedef struct kern_timer kern_timer;

rt_status kern_timer_new(kern_dev *dev, int marks, kern_timer **out);
void kern_timer_free(kern_timer *timer); // NULL is allowed
rt_status kern_timer_mark(kern_timer *timer, int mark);
// Milliseconds between two marks that were passed; waits for the later one.
rt_status kern_timer_read(kern_timer *timer, int from, int to, double *ms);

// ---- memory that ranks share -----------------------------------------------------------
//
// GPUs of one host that reach each other's memory add up small buffers by themselves, with
// less latency than a communication library: the basis of comm's all-reduce there. Calls are
// made on all ranks in the same order and with the same shapes. A call that waits for the
// others gives up by its deadline or when kern_peers_abort says so; what it leaves is then
// worthless, and kern_peers_failed tells.

typedef struct kern_peers kern_peers;
enum { KERN_PEER_HANDLE = 64, KERN_PEER_RANKS = 8 }; // bytes; most ranks
// Blocks of the longest call, and floats of one: a row of hidden values must fit.
enum { KERN_PEER_BLOCKS = 128, KERN_PEER_FLOATS = 8192 };

// Bytes of a GPU's memory that each of so many ranks shares with the others.
size_t kern_peers_bytes(int ranks);

// This rank's part of the memory and its handle, for the others; RT_ERR_UNSUPPORTED where
// devices cannot share, RT_ERR_DEVICE where this one does not. `deadline` is in seconds.
rt_status kern_peers_new(kern_dev *dev, int rank, int ranks, double deadline, void *handle,
                         kern_peers **out);
// All ranks' handles, [ranks, KERN_PEER_HANDLE]. Every rank has connected before the first call.
rt_status kern_peers_connect(kern_peers *peers, const void *handles);
void kern_peers_free(kern_peers *peers); // NULL is allowed; no rank still calls
void kern_peers_abort(kern_peers *peers);
bool kern_peers_failed(const kern_peers *peers);
// Whether a sum of so many f32 in rows of `cols` fits; `cols` 0: in no rows.
bool kern_peers_fit(const kern_peers *peers, size_t count, int cols);
// The first `count` elements, f32, are summed over the ranks in rank order, in place.
rt_status kern_peers_sum(kern_peers *peers, kern_buf *buf, size_t count);

// ---- filling and uploading --------------------------------------------------------------

// Uploads a [rows, cols] host matrix of type `dtype` whose rows start every
// `stride` elements, converting to the buffer's type; lands densely at element
// `first`. This is how a rank loads its slice of a weight.
typedef struct kern_upload_args {
    kern_buf *dst;
    size_t first;
    const void *src;  // host memory; no alignment needed
    kern_dtype dtype; // F32, BF16 or F16
    size_t rows, cols, stride;
    bool *nonfinite; // set when a number is NaN or infinite; NULL: nobody wants to know
} kern_upload_args;
rt_status kern_upload(const kern_upload_args *args);

// The first `count` elements get scale times a standard normal, rounded to the buffer's
// type: weights and pages without a checkpoint. Elements 4i .. 4i + 3 come from the four
// words of Philox4x32-10 with key `seed` and counter i, two by two by Box and Muller's
// method: the same on every device, but for the last bits of its logarithm, sine and cosine.
typedef struct kern_fill_normal_args {
    kern_buf *dst; // f32, bf16 or f16
    size_t count;
    uint64_t seed;
    float scale;
} kern_fill_normal_args;
rt_status kern_fill_normal(kern_dev *dev, const kern_fill_normal_args *args);

// out[0] = the exclusive or of the first `words` 32-bit words of src. It reads every byte
// once and does nothing else: how fast memory can be read at all.
typedef struct kern_xor_words_args {
    const kern_buf *src; // any type
    size_t words;
    kern_buf *out; // i32 [1]
} kern_xor_words_args;
rt_status kern_xor_words(kern_dev *dev, const kern_xor_words_args *args);

// ---- the batch of one forward ----------------------------------------------
//
// A forward runs `rows` tokens of `segs` segments. A segment is a run of
// consecutive rows of one request: a prefill chunk, a finished block to commit,
// or the block being denoised, the last maybe with the finished block before it;
// its rows are whole blocks, except that the batch may end in a part of one. A
// token at position p attends to its prefix, the tokens before its block
// [0, p / block * block), through the KV pages, and to its own block through the
// rows of this batch. Rows to be committed are written to the pages before
// attention, so that later blocks of the same forward have them in their prefix.
//
// The first `sparse_segs` segments (the first `sparse_rows` rows) are the ones
// whose prefix attention follows a page plan; each is one block. The first
// `scan_segs` of them look for pages by the metadata. The others read all of it.

enum { // kern_batch.seg_kind
    KERN_SEG_PREFILL = 0,
    KERN_SEG_COMMIT = 1, // a finished block: its K,V are written
    KERN_SEG_OPEN = 2,   // first step of a request's first block
    KERN_SEG_FIRST = 3,  // first step of a later block
    KERN_SEG_STEP = 4,   // a later step of a block
    KERN_SEG_EARLY = 5,  // a later step that still reads as a first step does
    KERN_SEG_REST = 6,   // a later step in which no row reads the prefix
    KERN_SEG_KINDS
};

enum { KERN_PAGE_MAX = 256 }; // tokens

enum {                   // kern_batch.row_state, bits
    KERN_ROW_MASKED = 1, // the token is still the mask
    KERN_ROW_NEW = 2,    // the token was committed in the step before this one
};

typedef struct kern_batch {
    int rows, segs;
    int sparse_rows, sparse_segs;
    int scan_segs;              // <= sparse_segs
    int mass_segs;              // segments with a seg_mass
    int write_rows;             // rows with a kv_slot; with 0 metadata may be read while the
                                // operation before is still running
    int block;                  // tokens in a block
    int page;                   // tokens in a page, a power of two up to KERN_PAGE_MAX
    int max_pages;              // row length of page_table
    const kern_buf *ids;        // i32 [rows]
    const kern_buf *pos;        // i32 [rows], absolute position
    const kern_buf *row_state;  // i32 [rows]
    const kern_buf *row_seg;    // i32 [rows], segment of a row
    const kern_buf *seg_row0;   // i32 [segs + 1], first row of a segment; none is empty
    const kern_buf *seg_kind;   // i32 [segs]
    const kern_buf *seg_slot;   // i32 [segs], the request's slot: row of its kept page lists
    const kern_buf *seg_mass;   // i32 [segs], number of the segment among those that measure
                                // the attention mass of pages [0, mass_segs), or -1
    const kern_buf *page_table; // i32 [segs, max_pages], logical -> physical page
    const kern_buf *kv_slot;    // i32 [rows], physical page * page + offset to write, or -1
    const kern_buf *cache_slot; // i32 [rows], row of the prefix cache, or -1
} kern_batch;

// Who reads which pages in one layer of one step. Lists: 1 (scope shared) or one
// per local KV head (scope head).
typedef struct kern_plan {
    int lists;
    int act_cap;          // most active rows a sparse segment can have
    kern_buf *act_rows;   // i32 [rows]: from seg_row0[s], the batch rows of segment s that
                          // read the prefix, ascending
    kern_buf *act_count;  // i32 [segs]
    kern_buf *pages;      // i32 [segs, lists, max_pages], logical pages, ascending
    kern_buf *page_count; // i32 [segs, lists]; -1 = every page of the prefix
} kern_plan;

// ---- dense layers ------------------------------------------------------------

// out[r] = table[ids[r] - first_id], or zeros when the id is not in this shard
// [first_id, first_id + shard_rows): vocab-parallel embedding.
typedef struct kern_embed_args {
    const kern_buf *table; // [shard_rows, cols] weight type
    const kern_buf *ids;   // i32 [rows]
    kern_buf *out;         // f32 [rows, cols]
    int rows, cols, first_id, shard_rows;
} kern_embed_args;
rt_status kern_embed(kern_dev *dev, const kern_embed_args *args);

// y = x w^T + bias.
typedef struct kern_linear_args {
    const kern_buf *x;    // [rows, k], f32 or the type of w
    const kern_buf *w;    // [n, k] weight type
    const kern_buf *bias; // f32 [n], or NULL
    kern_buf *y;          // [rows, n], f32 or, without bias, the type of w
    int rows, n, k;
} kern_linear_args;
rt_status kern_linear(kern_dev *dev, const kern_linear_args *args);

// x += add (skipped when add is NULL), then out = x / rms(x) * weight.
// out may be NULL: only the addition. RMSNorm: Zhang & Sennrich 2019, eq. 4.
typedef struct kern_rmsnorm_args {
    kern_buf *x;            // f32 [rows, cols], updated in place
    const kern_buf *add;    // f32 [rows, cols] or NULL
    const kern_buf *weight; // f32 [cols]
    kern_buf *out;          // activation [rows, cols] or NULL
    int rows, cols;
    float eps;
} kern_rmsnorm_args;
rt_status kern_rmsnorm(kern_dev *dev, const kern_rmsnorm_args *args);
// The same where `add` is the sum of all ranks' `add`, which is left as it was.
rt_status kern_peers_rmsnorm(kern_peers *peers, const kern_rmsnorm_args *args);

// In place on qkv [rows, (heads + 2 kv_heads) head_dim] (q heads, k heads, v
// heads): RMSNorm of every q and k head when the weights are given, then rotary
// embedding in the half layout (Su et al. 2021; channel c pairs with c + d/2).
typedef struct kern_qk_rope_args {
    kern_buf *qkv;          // f32
    const kern_buf *q_norm; // f32 [head_dim] or NULL
    const kern_buf *k_norm; // f32 [head_dim] or NULL
    const kern_buf *pos;    // i32 [rows]
    const kern_buf *cos;    // f32 [max_pos, head_dim / 2]
    const kern_buf *sin;    // f32 [max_pos, head_dim / 2]
    int rows, heads, kv_heads, head_dim, max_pos;
    float eps;
} kern_qk_rope_args;
rt_status kern_qk_rope(kern_dev *dev, const kern_qk_rope_args *args);

// out = silu(gate) * up. SwiGLU: Shazeer 2020.
typedef struct kern_swiglu_args {
    const kern_buf *gate_up; // activation [rows, 2 cols]: gate, then up
    kern_buf *out;           // activation [rows, cols]
    int rows, cols;
} kern_swiglu_args;
rt_status kern_swiglu(kern_dev *dev, const kern_swiglu_args *args);

// out[i] = x[index[i]].
typedef struct kern_gather_rows_args {
    const kern_buf *x;     // activation [*, cols]
    const kern_buf *index; // i32 [rows]
    kern_buf *out;         // [rows, cols], the type of x
    int rows, cols;
} kern_gather_rows_args;
rt_status kern_gather_rows(kern_dev *dev, const kern_gather_rows_args *args);

// ---- KV pages ------------------------------------------------------------------
// K and V of one layer: [pages, kv_heads, page, head_dim] each, of the device's KV
// type. Metadata: the smallest and largest key, as stored, per page, head and channel,
// after RoPE (QUEST, arXiv 2406.10774): [pages, kv_heads, head_dim] each, of the device's
// bound type. In 8 bits, runs of KERN_BOUND_GROUP channels share a step of 2^(kstep -
// KERN_BOUND_BIAS), the least of [1, 20] that spans them; kmin is rounded down and kmax up to
// (u8 - 128) steps. They bound keys below 127 x 2^7; larger ones saturate.

enum { KERN_BOUND_GROUP = 16, KERN_BOUND_BIAS = 13 };

typedef struct kern_kv {
    kern_buf *k, *v;
    kern_buf *kmin, *kmax;
    kern_buf *kstep; // u8 [pages, kv_heads, head_dim / KERN_BOUND_GROUP]; NULL with f32 bounds
    int pages, kv_heads, head_dim;
} kern_kv;

// Writes K,V of the rows whose kv_slot is not -1 and folds the keys into the
// page's min and max; the row at offset 0 of a page starts them anew.
typedef struct kern_kv_write_args {
    const kern_buf *qkv; // f32 [rows, (heads + 2 kv_heads) head_dim]
    kern_kv kv;
    const kern_batch *batch;
    int heads;
} kern_kv_write_args;
rt_status kern_kv_write(kern_dev *dev, const kern_kv_write_args *args);

// ---- LoSA: locality, active set, page plan ---------------------------------------

// Locality (LoSA, arXiv 2604.12056, step 1). For every row with a cache_slot:
// delta[row] = mean over cols of (x - prev[slot])^2 * scale in a KERN_SEG_STEP
// segment and 0 otherwise; then prev[slot] = x. Rows without one: delta 0. A change of
// less than KERN_NO_CHANGE of x's length is rounding and counts as 0, so that rows that
// did not change tie even where a product's rounding depends on the rows beside it.
#define KERN_NO_CHANGE 1e-4f
typedef struct kern_locality_args {
    const kern_buf *x; // f32 [rows, stride], columns [0, cols) are compared
    kern_buf *prev;    // f32 [slots, cols]
    kern_buf *delta;   // f32 [rows]
    const kern_batch *batch;
    int cols, stride;
    float scale; // 1 / ranks where the columns are spread over ranks, else 1
} kern_locality_args;
rt_status kern_locality(kern_dev *dev, const kern_locality_args *args);

typedef enum kern_active_rule {
    KERN_ACTIVE_ALL,       // every token
    KERN_ACTIVE_TOPK,      // the k tokens that changed most (LoSA)
    KERN_ACTIVE_NEW_TOPK,  // just committed, and the k most changed of the others
    KERN_ACTIVE_UNSETTLED, // masked or just committed
    KERN_ACTIVE_SHARE,     // the fewest tokens that hold a share of the total change
} kern_active_rule;

// Fills act_rows and act_count. In dense segments, and in sparse segments whose
// kind is not KERN_SEG_STEP, every row is active; in KERN_SEG_REST none. Ties: the lower
// row. page_count of dense segments becomes -1 in every list.
typedef struct kern_active_args {
    const kern_batch *batch;
    const kern_buf *delta; // f32 [rows]; not read by ALL and UNSETTLED
    kern_active_rule rule;
    int k;       // of TOPK and NEW_TOPK
    float share; // of SHARE, 0 .. 1
    kern_plan *plan;
} kern_active_args;
rt_status kern_active(kern_dev *dev, const kern_active_args *args);

// Page scores of the active rows of the scanning segments. For query head h of row i,
// the QUEST bound of page g is b = scale * sum_c max(q_c min_c, q_c max_c); its
// share is softmax over the prefix pages of b. score[s, l, a, g] = the sum of the
// shares of the heads of list l. A list is a KV head (heads h with h / (heads /
// kv_heads) == l) or, when score_lists is 1, all local heads. Entries of absent
// rows and pages become 0, so that the array can be summed over ranks.
typedef struct kern_page_score_args {
    const kern_buf *q; // f32 [rows, stride], heads * head_dim columns
    int stride;
    kern_kv kv;
    const kern_batch *batch;
    const kern_plan *plan;
    int heads;
    float scale;
    int score_lists; // lists in `score`; >= list0 + local lists
    int list0;       // list of the first local KV head
    kern_buf *score; // f32 [scan_segs, score_lists, act_cap, max_pages]
} kern_page_score_args;
rt_status kern_page_score(kern_dev *dev, const kern_page_score_args *args);

// Page lists that outlive a step: per request slot and list, up to `cap` logical
// pages, ascending. Made from attention mass (MAGE, arXiv 2602.14209; losa-mass).
typedef struct kern_kept_lists {
    kern_buf *pages; // i32 [slots, lists, cap]
    kern_buf *count; // i32 [slots, lists]
    int lists, cap;
} kern_kept_lists;

// Makes room for attention and plans of batches with at most so many rows that take pages by
// score, query heads, lists and pages of a segment; to be called before anything is recorded. The
// device's workspace grows to hold a segment's bounds. What a GPU's kernels cannot take is refused.
enum { KERN_GPU_PAGES_MAX = 1 << 18 };
typedef struct kern_plan_limits {
    int act_cap; // 0: nothing is scored
    int heads, lists, head_dim, max_pages;
} kern_plan_limits;
rt_status kern_reserve_plans(kern_dev *dev, const kern_plan_limits *limits);

// How the segments of one kind choose their pages.
typedef struct kern_page_choice {
    int top;    // pages each row takes by score, >= 1; 0: the kind does not scan
    bool kept;  // the request's kept list is read too
    int budget; // pages one row may take in all, for the counters
} kern_page_choice;

// For every sparse segment and list: each active row takes its `top` best pages by
// score (ties: the lower page); the list is the union over the rows and, where asked
// for, the kept list, ascending. The first and the last page of the prefix are always
// in it, and count among the pages that a row takes. Segments of kinds that scan are
// among the first scan_segs, the others are not. What these segments read is added to
// `counts` (KERN_COUNT_*, below).
typedef struct kern_page_select_args {
    const kern_buf *score; // as kern_page_score left it, summed over ranks; NULL: none scans
    const kern_batch *batch;
    int score_lists, list0;
    kern_page_choice choice[KERN_SEG_KINDS];
    const kern_kept_lists *kept; // NULL: none
    kern_plan *plan;
    kern_buf *counts; // i64 [segs, KERN_COUNT_N], or NULL
} kern_page_select_args;
rt_status kern_page_select(kern_dev *dev, const kern_page_select_args *args);

// Both, of one batch, plan and array of scores, where nothing is added to the scores in
// between. What the array holds afterwards is not said.
typedef struct kern_page_plan_args {
    kern_page_score_args score;
    kern_page_select_args select;
} kern_page_plan_args;
rt_status kern_page_plan(kern_dev *dev, const kern_page_plan_args *args);

// Attention mass of the pages, from what kern_attn left: for every segment with a seg_mass,
// the sum over its denoised rows (kv_slot -1), all of them active, and the heads of a list of
// e^(page_lse - lse), the share of a row's and head's prefix attention that fell on the
// page. Lists as in kern_page_score; entries of absent lists and of pages that the plan
// does not name become 0.
typedef struct kern_page_mass_args {
    const kern_buf *page_lse; // f32 [mass_segs, block, heads, max_pages]
    const kern_buf *lse;      // f32 [rows, heads]
    const kern_batch *batch;
    const kern_plan *plan; // by which kern_attn read
    int heads, kv_heads;
    int score_lists, list0;
    kern_buf *mass; // f32 [mass_segs, score_lists, max_pages]
} kern_page_mass_args;
rt_status kern_page_mass(kern_dev *dev, const kern_page_mass_args *args);

// Importance of the keys of the prefix to a block as a whole (Sparse-dLLM, arXiv
// 2508.02558): for every segment with a seg_mass, the product of a key with the mean query
// of the denoised rows (kv_slot -1), summed over the heads of a list. Lists as in
// kern_page_score; entries of absent lists and tokens become 0, so that the array can be
// summed over ranks.
typedef struct kern_key_score_args {
    const kern_buf *q; // f32 [rows, stride], heads * head_dim columns
    int stride;
    kern_kv kv;
    const kern_batch *batch;
    int heads;
    int score_lists, list0;
    kern_buf *score; // f32 [mass_segs, score_lists, max_pages * page]
} kern_key_score_args;
rt_status kern_key_score(kern_dev *dev, const kern_key_score_args *args);

// mass[n, l, g] = the largest score of the prefix's tokens from the one before page g to the
// one after it: Sparse-dLLM's max-pooling over three tokens, and over the page. Pages beyond
// the prefix get 0.
typedef struct kern_key_peaks_args {
    const kern_buf *score; // as kern_key_score left it, summed over ranks
    const kern_batch *batch;
    int lists;
    kern_buf *mass; // f32 [mass_segs, lists, max_pages]
} kern_key_peaks_args;
rt_status kern_key_peaks(kern_dev *dev, const kern_key_peaks_args *args);

// Keeps, for every segment with a seg_mass, the pages of largest mass of its last block's
// prefix, the first and the last page among them; ties: the lower page. How many: `top`, or
// of n pages int(share * n) + 1 where there is a share.
typedef struct kern_mass_select_args {
    const kern_buf *mass; // summed over ranks
    const kern_batch *batch;
    int score_lists, list0;
    int top;
    float share;                 // 0 .. 1; 0: none
    const kern_kept_lists *kept; // cap >= max(top, 2), or max_pages with a share
} kern_mass_select_args;
rt_status kern_mass_select(kern_dev *dev, const kern_mass_select_args *args);

// What a layer reads, per segment.
enum {
    KERN_COUNT_READ,    // prefix tokens read, summed over lists
    KERN_COUNT_PREFIX,  // prefix tokens there are, times lists
    KERN_COUNT_ACTIVE,  // rows that read the prefix
    KERN_COUNT_SCANNED, // pages whose metadata was read, times lists
    KERN_COUNT_UNION,   // pages in the lists of sparse segments
    KERN_COUNT_BUDGET,  // pages one row may take there, times lists
    KERN_COUNT_N
};

// Adds to counters what the segments without a page plan read in `layers` layers: their
// whole prefix, that of their last row (the rows of a prefill chunk share one reading).
typedef struct kern_plan_count_args {
    const kern_batch *batch;
    int lists, layers;
    kern_buf *counts; // i64 [segs, KERN_COUNT_N]
} kern_plan_count_args;
rt_status kern_plan_count(kern_dev *dev, const kern_plan_count_args *args);

// A checksum of act_rows, act_count, pages and page_count of the sparse segments
// (FNV-1a over the used entries): out[0] = h, out[1] = -h, with h >= 0, so that a
// maximum over ranks shows whether all agree.
typedef struct kern_plan_checksum_args {
    const kern_batch *batch;
    const kern_plan *plan;
    bool pages;    // the page lists too, not only the active rows
    kern_buf *out; // i32 [2]
} kern_plan_checksum_args;
rt_status kern_plan_checksum(kern_dev *dev, const kern_plan_checksum_args *args);

// ---- attention -----------------------------------------------------------------

// Attention of every row to its prefix and to its own block.
// The prefix part: active rows attend to their listed pages (FlashAttention's online
// softmax; Dao 2023), o_p = softmax(scale q K^T) V, L_p its log-sum-exp; an empty prefix gives
// o_p = 0 and L_p = -inf. It goes to `o`, `lse`, and to the prefix cache where the row has a
// cache_slot. The other rows take theirs from the cache, so they must have a cache_slot;
// their `o`, `lse` stay as they are. With (o_b, L_b) of the block (LoSA, steps 5 and 6)
//   out = (e^Lp o_p + e^Lb o_b) / (e^Lp + e^Lb), the larger exponent subtracted.
typedef struct kern_attn_args {
    const kern_buf *qkv; // f32 [rows, (heads + 2 kv_heads) head_dim]
    kern_kv kv;
    const kern_batch *batch;
    const kern_plan *plan;
    int heads;
    float scale;
    kern_buf *o;   // f32 [rows, heads, head_dim]
    kern_buf *lse; // f32 [rows, heads]
    // If not NULL: f32 [mass_segs, block, heads, max_pages], log-sum-exp of the scores of
    // each page that is read, for the denoised rows (kv_slot -1) of segments with a
    // seg_mass. What stands at other pages is not specified.
    kern_buf *page_lse;
    kern_buf *cache_o, *cache_lse; // f32 [slots, heads, head_dim], [slots, heads]
    kern_buf *out;                 // activation [rows, heads * head_dim]
} kern_attn_args;
rt_status kern_attn(kern_dev *dev, const kern_attn_args *args);

// ---- vocabulary: confidence, sampling, unmasking -----------------------------------
//
// The head is vocab-parallel: a rank holds logits [rows, shard] of the tokens
// [first_id, first_id + shard). Decisions come from small per-row statistics
// that the ranks exchange; full logits are never gathered.

// Per-row sampling parameters, kept as 8 x i32 in a device buffer.
typedef struct kern_sample_row {
    float inv_temperature;     // 1 for greedy
    int32_t greedy;            // take the best token, draw nothing
    int32_t top_k;             // 0 = off
    float top_p;               // 1 = off
    uint32_t seed_lo, seed_hi; // seed of the request
    uint32_t position;         // of the token being sampled
    uint32_t step;             // denoising steps of this request so far
} kern_sample_row;
enum { KERN_SAMPLE_WORDS = 8 };

// Statistics of l = logit * inv_temperature over this shard, per row:
// m = max l, z = sum e^(l - m), w = sum (l - m) e^(l - m).
enum { KERN_NORM_M, KERN_NORM_Z, KERN_NORM_W, KERN_NORM_WORDS };
typedef struct kern_vocab_norm_args {
    const kern_buf *logits; // f32 [rows, shard]
    const kern_buf *sample; // i32 [rows, KERN_SAMPLE_WORDS]
    kern_buf *norm;         // f32 [rows, KERN_NORM_WORDS]
    int rows, shard;
} kern_vocab_norm_args;
rt_status kern_vocab_norm(kern_dev *dev, const kern_vocab_norm_args *args);

// Top-k and top-p as a threshold on logits, found exactly by radix selection over
// the ranks in 4 rounds of 8 bits; each round is hist -> all-reduce -> narrow.
// Floats are compared through order-preserving u32 keys. A token passes when its
// key >= the row's threshold: ties with the last token in all pass. Top-p is
// taken among the tokens that pass top-k, as Hugging Face's warpers do it.
typedef enum kern_filter { KERN_FILTER_TOP_K, KERN_FILTER_TOP_P } kern_filter;

// hist[r, b] = over this shard's tokens (the mask id left out) whose key agrees
// with the row's threshold in the bits above round `round`, and which pass the
// floor of the earlier filter: the count (TOP_K) or the mass e^(l - m) (TOP_P) of
// those whose next 8 bits are b.
typedef struct kern_vocab_filter_args {
    const kern_buf *logits; // f32 [rows, shard]
    const kern_buf *sample; // i32 [rows, KERN_SAMPLE_WORDS]
    const kern_buf *norm;   // f32 [rows, KERN_NORM_WORDS], over all ranks
    kern_buf *state;        // i32 [rows, 4]: threshold key, floor key, need (f32 bits), spare
    kern_buf *hist;         // f32 [rows, 256]
    int rows, shard, first_id, mask_id;
    kern_filter filter;
    int round; // 0 .. 3
} kern_vocab_filter_args;
// Round 0 of TOP_K starts the state (floor 0); round 0 of TOP_P takes the top-k
// threshold as floor.
rt_status kern_vocab_hist(kern_dev *dev, const kern_vocab_filter_args *args);
// After the histogram was summed over ranks: fixes 8 more bits of the threshold.
rt_status kern_vocab_narrow(kern_dev *dev, const kern_vocab_filter_args *args);

// The shard's best candidate per row: the largest l, plus Gumbel noise keyed by
// (seed, position, step, token id) unless greedy, among the tokens that pass
// `state` (NULL: all), the mask id never. Ties: the lower id.
// pick[r] = {score, l of the token, token id (i32 bits)}; an empty shard: -inf.
enum { KERN_PICK_SCORE, KERN_PICK_LOGIT, KERN_PICK_ID, KERN_PICK_WORDS };
typedef struct kern_vocab_pick_args {
    const kern_buf *logits, *sample;
    const kern_buf *state; // i32 [rows, 4] or NULL
    kern_buf *pick;        // f32 [rows, KERN_PICK_WORDS]
    int rows, shard, first_id, mask_id;
} kern_vocab_pick_args;
rt_status kern_vocab_pick(kern_dev *dev, const kern_vocab_pick_args *args);

// Combines gathered statistics of all ranks, in rank order.
// norms [ranks, rows, KERN_NORM_WORDS] -> norm [rows, KERN_NORM_WORDS].
typedef struct kern_vocab_norm_merge_args {
    const kern_buf *norms;
    kern_buf *norm;
    int ranks, rows;
} kern_vocab_norm_merge_args;
rt_status kern_vocab_norm_merge(kern_dev *dev, const kern_vocab_norm_merge_args *args);

// picks [ranks, rows, KERN_PICK_WORDS] and norm -> token, its probability under
// the unfiltered softmax (confidence), and the entropy of that softmax (nats).
typedef struct kern_vocab_choose_args {
    const kern_buf *picks, *norm;
    kern_buf *token;      // i32 [rows]
    kern_buf *confidence; // f32 [rows]
    kern_buf *entropy;    // f32 [rows]
    int ranks, rows;
} kern_vocab_choose_args;
rt_status kern_vocab_choose(kern_dev *dev, const kern_vocab_choose_args *args);

typedef enum kern_unmask_rule {
    KERN_UNMASK_SEQUENTIAL,
    KERN_UNMASK_STATIC,
    KERN_UNMASK_DYNAMIC,
    KERN_UNMASK_ENTROPY,
} kern_unmask_rule;

// Which masked positions of a block take their token in this step. Never touches
// a position that is not masked. Window: `count` consecutive positions of the
// block; candidates are its masked ones, from the leftmost sub-block of
// `sub_block` positions that still has a mask (0: the whole block).
//   SEQUENTIAL  the first `quota` from the left
//   STATIC      the `quota` most confident
//   DYNAMIC     all with confidence > threshold if they number >= quota, else the
//               `quota` most confident
//   ENTROPY     by ascending entropy, the longest prefix whose sum stays below
//               threshold, at least one
// Ties: the lower position. Kept as 8 x i32 in a device buffer, one per window.
typedef struct kern_unmask_window {
    int32_t first; // index of the window's first entry in ids and state
    int32_t row0;  // row of token/confidence/entropy of that entry
    int32_t count;
    int32_t rule;  // kern_unmask_rule
    int32_t quota; // >= 1
    int32_t sub_block;
    float threshold;
    int32_t spare;
} kern_unmask_window;
enum { KERN_UNMASK_WORDS = 8 };
typedef struct kern_unmask_args {
    const kern_buf *windows; // i32 [n, KERN_UNMASK_WORDS]
    const kern_buf *token, *confidence, *entropy;
    kern_buf *ids;   // i32, updated
    kern_buf *state; // i32 KERN_ROW_*, updated: chosen -> NEW, others lose NEW
    int n;
} kern_unmask_args;
rt_status kern_unmask(kern_dev *dev, const kern_unmask_args *args);

#endif
