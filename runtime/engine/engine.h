// SPDX-License-Identifier: Apache-2.0
// The engine: the one public header of losa as a library.
//
// engine  = a loaded model on all ranks of a job, its KV pages and its step loop.
// session = one request on its way through: prefill, blocks, done.
//
// Every rank opens and closes the engine. Rank 0 then submits requests and calls
// rt_engine_step until it is idle; the other ranks call rt_engine_worker, which
// returns when rank 0 closes. Not thread-safe: one thread drives a rank.
#ifndef RUNTIME_ENGINE_ENGINE_H
#define RUNTIME_ENGINE_ENGINE_H

#include "comm/comm.h"
#include "losa/policy.h"
#include "runtime/io/config.h"
#include "runtime/text/chat.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct rt_engine rt_engine;
typedef struct rt_request rt_request;
typedef uint32_t rt_session_id; // never 0

typedef struct rt_engine_options {
    const char *model_dir; // NULL with `dummy`
    // Random weights of these shapes instead of a checkpoint, and no tokenizer: requests
    // come as ids. Borrowed by rt_engine_open; NULL: none. block_length and mask_id are not
    // read then.
    const rt_model_config *dummy;
    bool skip_prefill; // with `dummy`: pages hold random keys and values, prompts count as read
    kern_kind device;  // default: CUDA where there is a GPU
    kern_precision precision;
    int threads;      // per rank; 0 = cores / local ranks
    int block_length; // 0 = from the checkpoint
    int mask_id;      // -1 = from the checkpoint
    int context; // tokens of KV pages, over all sessions; 0 = the model's length, of each session
                 // where kv_memory limits them
    // Most bytes of KV pages on a rank, metadata included. 0: no limit; what `context` asks for
    // is there, or the engine is refused. RT_KV_LEFT: as much as all else leaves, the default of
    // a GPU without `context`.
    uint64_t kv_memory;
    int max_sessions;     // that run at the same time
    int prefill_chunk;    // prompt tokens in one forward; rounded to whole blocks
    bool separate_commit; // a forward of its own for each finished block's K,V
    bool no_sharing;      // every request computes its whole prompt
    bool no_graph;        // enqueue every call of a step, where the device could replay them
    bool allow_nonfinite; // load weights that hold NaN or infinity
    losa_config attention;
    // Compares the logits of every so many-th step that does not read everything with dense
    // attention's, in a second forward; 0: never.
    int probe_every;
    // Called on rank 0 while it reads the checkpoint: bytes of its own share. NULL: not.
    void (*on_load)(void *ctx, uint64_t done, uint64_t total);
    void *load_ctx;
    const char *trace_plans; // file for every mask and page list of all ranks; NULL: none
} rt_engine_options;
rt_engine_options rt_engine_options_default(void);

#define RT_KV_LEFT UINT64_MAX

// What an engine takes of a rank's device.
typedef struct rt_memory {
    size_t bytes[KERN_USES];
    size_t reserve;    // kept free on a GPU, for what its driver takes while the engine runs
    size_t total;      // of the device's own memory: all of these, but a GPU's KERN_USE_HOST
    uint64_t stored;   // bytes of the checkpoint that the rank reads
    int pages, page;   // KV pages; tokens in one
    int session_pages; // that a session of `context` / max_sessions tokens may need
} rt_memory;

// The least options.context with which any max_sessions of these requests run together: of
// each, the tokens of its prompt, for which text is tokenised, and max_tokens. A prompt that
// an engine could never take is refused here, as by rt_engine_submit: *refused is its index,
// or n when the failure is not of one. Not collective.
rt_status rt_engine_context_for(const rt_engine_options *options, const rt_request *requests,
                                size_t n, int *context, size_t *refused);

// What this rank would take: the plan by which rt_engine_open reserves memory. Reads the headers of
// the checkpoint, takes no memory and needs no device; limits of the machine are not looked at.
// Not collective: of `c` only rank and ranks matter.
rt_status rt_engine_plan(const rt_engine_options *options, comm *c, rt_memory *out);

// Collective: this rank's device, as an engine with these options opens it; for benchmarks
// without an engine. Devices of two kinds, and GPUs that two ranks would share, are refused
// on every rank.
rt_status rt_engine_device(const rt_engine_options *options, comm *c, kern_dev **out);
// That check alone, which opens nothing: for jobs whose engines have a part of the ranks each.
rt_status rt_engine_check_devices(const rt_engine_options *options, comm *c);

// Collective. Loads the model and reserves all memory; what does not fit is refused before
// anything is loaded, with the numbers, on every rank. Ranks with other options, another model
// or other weights (sizes and samples of the files are compared) than rank 0 are refused,
// too. `c` is borrowed.
rt_status rt_engine_open(const rt_engine_options *options, comm *c, rt_engine **out);
// Collective: rank 0's call lets the workers return; they then close too.
void rt_engine_close(rt_engine *e);
const rt_model_config *rt_engine_model(const rt_engine *e);

// Denoising strategies: SDAR's evaluation code (JetAstra/SDAR, block_diffusion_generate),
// never touching a position that is not masked; confidence is the probability
// before top-k and top-p.
typedef enum rt_strategy {
    RT_STRATEGY_SEQUENTIAL,
    RT_STRATEGY_STATIC,
    RT_STRATEGY_DYNAMIC,
    RT_STRATEGY_ENTROPY,
} rt_strategy;

struct rt_result;

// What a forward after prefill did for a request.
typedef enum rt_step_kind {
    RT_STEP_OPEN,   // the first step of its first block
    RT_STEP_COMMIT, // wrote a finished block, in a forward of its own
    RT_STEP_FIRST,  // the first step of a later block, mostly with the commit before it
    RT_STEP_LATER,  // another step of a block
} rt_step_kind;

struct rt_request {
    // The prompt: text, or ids when `prompt_ids` is not NULL, or the turns of a chat (ChatML)
    // when `turns` is not NULL. Borrowed by submit.
    const char *prompt;
    size_t prompt_len;
    const int32_t *prompt_ids;
    size_t prompt_ids_len;
    const rt_turn *turns;
    size_t turns_len;
    bool chat;          // wrap the text as a ChatML user turn; ids are the turns of a chat already
    const char *system; // system turn of `chat`, or NULL
    bool parse_special; // special tokens written in the text count as such

    int max_tokens;
    rt_strategy strategy;
    int steps;          // denoising steps per block; 0 = block length
    double threshold;   // DYNAMIC: confidence; ENTROPY: sum of entropies (nats)
    int sub_block;      // -1 = the model's default
    double temperature; // below 1e-6 = greedy; < 0 = the model's default
    int top_k;          // 0 = off; -1 = the model's default
    double top_p;       // 1 = off; 0 = greedy; < 0 = the model's default
    uint64_t seed;
    const char *const *stops; // stop strings, besides the model's stop ids
    size_t stops_len;
    // Without it an answer ends at the model's stop ids and, in a chat, at <|im_end|> too:
    // checkpoints that name <|endoftext|> alone end their turns with it all the same.
    bool ignore_stop_ids;

    // Called on rank 0 from rt_engine_step; any may be NULL. They may submit and cancel.
    // on_prefill is not called for a prompt that is found whole in shared pages.
    // What on_text was given, put together, is the result's text: whole characters, a
    // block at a time, never a part of a stop string. on_done comes last, once, unless the
    // engine is closed before.
    void (*on_prefill)(void *ctx, rt_session_id id, int done, int total);
    void (*on_step)(void *ctx, rt_session_id id, rt_step_kind kind);
    void (*on_text)(void *ctx, rt_session_id id, const char *text, size_t len);
    void (*on_done)(void *ctx, rt_session_id id, const struct rt_result *result);
    void *ctx;
};
rt_request rt_request_default(void);

typedef enum rt_finish { RT_FINISH_STOP, RT_FINISH_LENGTH, RT_FINISH_CANCELLED } rt_finish;
const char *rt_finish_name(rt_finish finish); // "stop", "length", "cancelled"

typedef struct rt_stats {
    int ranks;
    int blocks;   // denoised, whole or in part
    int forwards; // forwards after prefill that this request took part in
    int prefill_forwards;
    int shared_tokens;         // of the prompt: others computed their K,V
    int steps;                 // denoising steps
    double tokens_per_forward; // completion tokens / forwards
    double steps_per_block;
    double density_later;        // prefix tokens read / prefix, over later steps of blocks
    double density_steps;        // the same over all steps: the first ones of blocks too
    double density_total;        // the same over all denoising and commit forwards
    double union_inflation;      // pages in a list / pages one row may take; 1 when dense
    double active_share;         // rows that read the prefix / rows, over later steps
    uint64_t prefix_tokens_read; // per KV head and layer summed; all ranks
    uint64_t prefix_bytes_read;  // K, V and page metadata, all ranks
    uint64_t exchange_bytes;     // masks and page scores, all ranks; shared equally in a forward
    // From admission until the prompt is read, by this request or others; from there to the end.
    double prefill_seconds, decode_seconds;
} rt_stats;

// Sums over the masked positions of probed steps.
typedef struct rt_probed {
    int positions;
    double divergence; // KL(dense || policy) of the next token, nats
    int same;          // with the same most likely token
} rt_probed;

// Valid only during on_done.
typedef struct rt_result {
    const char *text; // cut at the stop; NUL-terminated
    size_t text_len;
    // The tokens of `text`, without a stop id; a stop string's are among them, up to
    // the one that completed it.
    const int32_t *ids;
    size_t ids_len;
    rt_finish finish;
    int prompt_tokens, completion_tokens;
    rt_stats stats;
    rt_probed probed;
} rt_result;

// Rank 0. Tokenises, checks and queues. A prompt that can never fit, or a bad
// parameter, is refused with the numbers. max_tokens beyond the model's length is
// cut to what is left. Requests are admitted in the order of submission, when a slot
// and all the KV pages they can ever need are free, and end in any order. What else
// runs changes nothing in a request's tokens.
rt_status rt_engine_submit(rt_engine *e, const rt_request *request, rt_session_id *id);

// What a request takes, once it is admitted.
typedef struct rt_needs {
    int prompt_tokens;
    int max_tokens; // cut to what the model's length leaves
    int pages;      // KV pages that it holds, one slot besides
    int shared;     // of these: held by running requests now, whose prompts begin alike
} rt_needs;
// Rank 0. All the checks of rt_engine_submit, with the same messages, but nothing is queued.
// A text is tokenised for this, and again when it is submitted: whoever asks for many
// requests tokenises once and gives ids.
rt_status rt_engine_needs(const rt_engine *e, const rt_request *request, rt_needs *out);

// How much runs and waits, in requests and in KV pages. Whoever hands out requests by need
// submits what fits into what is neither used nor queued:
// needs.pages - needs.shared <= pages - pages_used - pages_queued, and a slot. Pages that
// only keep what finished prompts computed count as not used.
typedef struct rt_room {
    int page;                       // tokens in a KV page
    int slots, pages;               // that there are
    int slots_used, pages_used;     // by running requests; a shared page counts once
    int slots_queued, pages_queued; // by requests that were submitted and wait; none shared
} rt_room;
rt_room rt_engine_room(const rt_engine *e); // rank 0

// Rank 0: ends a session at the next step, with finish CANCELLED.
void rt_engine_cancel(rt_engine *e, rt_session_id id);
// Rank 0: admits what fits, runs one forward, delivers what it finished.
// *busy: sessions are left.
rt_status rt_engine_step(rt_engine *e, bool *busy);
// Rank 0: seconds spent in forwards so far, from the first call that was enqueued until the
// device had done the last one. What a step takes beyond is the host's.
double rt_engine_forward_seconds(const rt_engine *e);
// Rank 0, at the end: completes the file of trace_plans. The first failure of writing it;
// RT_OK without a trace.
rt_status rt_engine_end_trace(rt_engine *e);
// Ranks above 0: takes part in rank 0's steps until rank 0 closes the engine.
rt_status rt_engine_worker(rt_engine *e);

// Rank 0, with no session running: logits of a block-causal prefill, f32 [n, vocab]
// handed to `emit` a run of rows at a time, in order. Row i is the model's output
// at position i (not shifted). A failure of `emit` ends it between two forwards: the engine can
// then be closed in order, and nothing else.
typedef rt_status rt_logits_fn(void *ctx, const float *rows, size_t n, int vocab);
rt_status rt_engine_logits(rt_engine *e, const int32_t *ids, size_t n, rt_logits_fn *emit,
                           void *ctx);

#endif
