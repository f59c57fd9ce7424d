// SPDX-License-Identifier: Apache-2.0
// The engine with dense attention against a decoder written here from the definitions
// (SDAR's block_diffusion_generate, Fast-dLLM v2's shifted prediction) that keeps
// nothing from step to step: every step asks for the logits of the whole sequence,
// masks in place. In a block-causal model the rows of the last block are then exactly
// what a denoising step computes, and the rows before it what a commit computed.
//
// Greedy. Compared are all token ids, and how many steps and blocks they took.
#include "tests/unit/engine_case.h"

#include "runtime/base/log.h"

enum { CONTEXT = 128, BLOCK_MAX = 32 };

// ---- the decoder -----------------------------------------------------------------------

typedef struct naive {
    rt_engine *engine;
    const rt_model_config *model;
    const rt_request *request;
    int32_t ids[CONTEXT];
    bool masked[CONTEXT];
    int end;                  // of prompt and answer, whole blocks
    int known, steps, blocks; // positions known; steps and blocks taken
    bool finished;
    rt_finish finish;
    float *logits;            // [CONTEXT, vocab]
    int rows;                 // filled
    int32_t token[BLOCK_MAX]; // what each position of the block would take
    double confidence[BLOCK_MAX], entropy[BLOCK_MAX];
} naive;

static rt_status keep_rows(void *ctx, const float *rows, size_t n, int vocab)
{
    naive *d = ctx;
    memcpy(d->logits + (size_t)d->rows * (size_t)vocab, rows, n * (size_t)vocab * sizeof *rows);
    d->rows += (int)n;
    return RT_OK;
}

// Logits of positions [0, n).
static void ask(naive *d, int n)
{
    d->rows = 0;
    assert_ok(rt_engine_logits(d->engine, d->ids, (size_t)n, keep_rows, d));
    assert_int_equal(d->rows, n);
}

// The best token of a row (never the mask), its probability, the row's entropy.
static int32_t judge(const naive *d, int row, double *confidence, double *entropy)
{
    const int vocab = d->model->vocab;
    const float *x = d->logits + (size_t)row * (size_t)vocab;
    int best = -1;
    double sum = 0, most = -INFINITY;
    for (int i = 0; i < vocab; i++) {
        most = fmax(most, x[i]);
        if (i != d->model->mask_id && (best < 0 || x[i] > x[best]))
            best = i;
    }
    for (int i = 0; i < vocab; i++)
        sum += exp(x[i] - most);
    *entropy = 0;
    for (int i = 0; i < vocab; i++)
        *entropy -= exp(x[i] - most) / sum * (x[i] - most - log(sum));
    *confidence = exp(x[best] - most) / sum;
    return best;
}

static void judge_block(naive *d, int start)
{
    const int block = d->model->block_length;
    ask(d, start + block);
    for (int j = 0; j < block; j++) {
        const int row = d->model->shifted && j > 0 ? start + j - 1 : start + j;
        d->token[j] = judge(d, row, &d->confidence[j], &d->entropy[j]);
    }
}

// The masked position of [from, to) with the largest `sign * value`; -1: none.
static int most(const naive *d, int start, int from, int to, const double *value, double sign)
{
    int best = -1;
    for (int j = from; j < to; j++)
        if (d->masked[start + j] && (best < 0 || sign * value[j] > sign * value[best]))
            best = j;
    return best;
}

static void keep(naive *d, int start, int j)
{
    d->ids[start + j] = d->token[j];
    d->masked[start + j] = false;
}

static void keep_confident(naive *d, int start, int from, int to, int count)
{
    for (int j; count > 0 && (j = most(d, start, from, to, d->confidence, 1)) >= 0; count--)
        keep(d, start, j);
}

static void keep_dynamic(naive *d, int start, int from, int to, int count)
{
    int sure = 0;
    for (int j = from; j < to; j++)
        sure += d->masked[start + j] && d->confidence[j] > d->request->threshold;
    keep_confident(d, start, from, to, sure > count ? sure : count);
}

static void keep_low_entropy(naive *d, int start, int from, int to)
{
    double sum = 0;
    for (int taken = 0;; taken++) {
        const int j = most(d, start, from, to, d->entropy, -1);
        if (j < 0 || (taken > 0 && sum + d->entropy[j] >= d->request->threshold))
            return;
        sum += d->entropy[j];
        keep(d, start, j);
    }
}

static void keep_first(naive *d, int start, int from, int to, int count)
{
    for (int j = from; j < to && count > 0; j++)
        if (d->masked[start + j]) {
            keep(d, start, j);
            count--;
        }
}

static void keep_some(naive *d, int start, int step)
{
    const int block = d->model->block_length, group = d->request->sub_block;
    const int steps = d->request->steps ? d->request->steps : block;
    int count = block / steps + (step < block % steps);
    count = count ? count : 1;
    int from = 0, to = block;
    if (group > 0) {
        while (!d->masked[start + from])
            from++;
        from -= from % group;
        to = from + group < block ? from + group : block;
    }
    switch (d->request->strategy) {
    case RT_STRATEGY_SEQUENTIAL:
        keep_first(d, start, from, to, count);
        break;
    case RT_STRATEGY_STATIC:
        keep_confident(d, start, from, to, count);
        break;
    case RT_STRATEGY_DYNAMIC:
        keep_dynamic(d, start, from, to, count);
        break;
    case RT_STRATEGY_ENTROPY:
        keep_low_entropy(d, start, from, to);
        break;
    }
}

static bool is_stop(const naive *d, int32_t id)
{
    for (int i = 0; i < d->model->stop_count && !d->request->ignore_stop_ids; i++)
        if (d->model->stop_ids[i] == id)
            return true;
    return false;
}

// Goes on to the first mask: the answer ends at a stop id or at its length.
static void look(naive *d)
{
    const int prompt = (int)d->request->prompt_ids_len;
    const int room = CONTEXT - prompt;
    const int longest = d->request->max_tokens < room ? d->request->max_tokens : room;
    while (!d->finished) {
        if (d->known == longest || !d->masked[prompt + d->known]) {
            d->finished = d->known == longest || is_stop(d, d->ids[prompt + d->known]);
            d->finish = d->known == longest ? RT_FINISH_LENGTH : RT_FINISH_STOP;
            d->known += !d->finished;
        } else {
            return;
        }
    }
}

static bool has_mask(const naive *d, int start)
{
    for (int j = 0; j < d->model->block_length; j++)
        if (d->masked[start + j])
            return true;
    return false;
}

// A shifted model's committed row predicts the first token of the next block.
static void predict_first(naive *d, int start)
{
    double unused;
    if (!d->model->shifted || start == 0 || !d->masked[start])
        return;
    ask(d, start);
    d->ids[start] = judge(d, start - 1, &unused, &unused);
    d->masked[start] = false;
}

static void decode(naive *d)
{
    const int block = d->model->block_length, prompt = (int)d->request->prompt_ids_len;
    for (int i = 0; i < CONTEXT; i++) {
        d->ids[i] = i < prompt ? d->request->prompt_ids[i] : d->model->mask_id;
        d->masked[i] = i >= prompt;
    }
    for (int start = prompt / block * block; !d->finished; start += block) {
        predict_first(d, start);
        d->blocks++;
        for (int step = 0; !d->finished && (step == 0 || has_mask(d, start)); step++) {
            judge_block(d, start);
            if (has_mask(d, start))
                keep_some(d, start, step);
            d->steps++;
            look(d);
        }
    }
}

// ---- comparing ---------------------------------------------------------------------------

typedef struct model_case {
    const char *dir;
    int sub_block; // of every request
} model_case;

// Requests that end before the last block: logits are of a prompt, which must leave
// room for an answer.
static void choose_requests(const rt_model_config *model, int sub_block, rt_request *requests)
{
    engine_mix(requests, model->vocab, false);
    for (int i = 0; i < ENGINE_MIX; i++) {
        rt_request *r = &requests[i];
        const int room = CONTEXT - model->block_length - (int)r->prompt_ids_len;
        r->max_tokens = r->max_tokens < room ? r->max_tokens : room;
        r->sub_block = i % 4 == 3 ? 0 : sub_block;
    }
}

static void compare(const naive *d, const engine_answer *a, const char *dir, int i)
{
    const int prompt = (int)d->request->prompt_ids_len;
    for (int j = 0; j < d->known && j < (int)a->ids_len; j++)
        if (a->ids[j] != d->ids[prompt + j])
            fail_msg("%s, request %d: token %d is %d, expected %d", dir, i, j, a->ids[j],
                     d->ids[prompt + j]);
    if ((int)a->ids_len != d->known || a->finish != d->finish)
        fail_msg("%s, request %d: %zu tokens, %s; expected %d, %s", dir, i, a->ids_len,
                 rt_finish_name(a->finish), d->known, rt_finish_name(d->finish));
    if (a->stats.steps != d->steps || a->stats.blocks != d->blocks)
        fail_msg("%s, request %d: %d steps, %d blocks; expected %d, %d", dir, i, a->stats.steps,
                 a->stats.blocks, d->steps, d->blocks);
    const int commits = d->model->shifted ? d->blocks - 1 : 0; // of their own
    assert_int_equal(a->stats.forwards, d->steps + commits);
}

static void check_model(const model_case *m)
{
    rt_engine_options o = engine_options(m->dir);
    o.attention.policy = losa_policy_find("dense");
    o.max_sessions = ENGINE_MIX;
    o.context = ENGINE_MIX * CONTEXT;
    engine_case c;
    engine_open(&c, &o, 1);
    const rt_model_config *model = rt_engine_model(c.root);
    assert_int_equal(model->max_positions, CONTEXT);
    rt_request requests[ENGINE_MIX];
    choose_requests(model, m->sub_block, requests);
    engine_answer answers[ENGINE_MIX] = {0};
    for (int i = 0; i < ENGINE_MIX; i++)
        engine_submit(&c, &requests[i], &answers[i]);
    engine_drain(&c);
    for (int i = 0; i < ENGINE_MIX; i++) {
        naive d = {.engine = c.root, .model = model, .request = &requests[i]};
        d.logits = calloc((size_t)CONTEXT * (size_t)model->vocab, sizeof *d.logits);
        assert_non_null(d.logits);
        decode(&d);
        compare(&d, &answers[i], m->dir, i);
        free(d.logits);
    }
    engine_free(answers, ENGINE_MIX);
    engine_close(&c);
}

static void test_model(void **state)
{
    check_model(*state);
}

#define CASE(name, sub_block)                                                                      \
    {                                                                                              \
        name, test_model, NULL, NULL, &(model_case)                                                \
        {                                                                                          \
            "tests/golden/logits/" name, sub_block                                                 \
        }                                                                                          \
    }

int main(void)
{
    rt_log_setup(RT_LOG_ERROR, 0, 1);
    const struct CMUnitTest tests[] = {
        CASE("gqa_b4_tied", 0),    CASE("gqa_b4_tied", 2),    CASE("gqa_b16_untied", 0),
        CASE("one_kv_head", 8),    CASE("kv2_b32_v5", 0),     CASE("qwen2_tied_b32", 8),
        CASE("qwen2_tied_b32", 0), CASE("qwen2_kv2_bf16", 5), CASE("vocab_odd", 0),
    };
    return cmocka_run_group_tests_name("engine oracle", tests, NULL, NULL);
}
