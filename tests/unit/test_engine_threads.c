// SPDX-License-Identifier: Apache-2.0
// The engine on ranks that are threads of one process: 1, 2 and 4 of them give the
// reference answer, and a sanitizer sees all ranks at once. Nothing in the engine or
// below may be shared between ranks.
#include "runtime/engine/engine.h"

#include <jansson.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { RANKS_MAX = 4, SKIP = 77 };

static const char *source;
static json_t *documents, *records;

typedef struct rank {
    comm *comm;
    rt_engine_options options;
    rt_request request; // of rank 0
    rt_status status;
    char message[512];
    json_t *ids; // on rank 0, once done
} rank;

static void keep_ids(void *ctx, rt_session_id id, const rt_result *result)
{
    (void)id;
    rank *r = ctx;
    for (size_t i = 0; i < result->ids_len; i++)
        json_array_append_new(r->ids, json_integer(result->ids[i]));
}

static rt_status lead(rt_engine *e, const rt_request *request)
{
    rt_session_id id;
    RT_TRY(rt_engine_submit(e, request, &id));
    for (bool busy = true; busy;)
        RT_TRY(rt_engine_step(e, &busy));
    return RT_OK;
}

static rt_status drive(rank *r)
{
    rt_engine *e;
    RT_TRY(rt_engine_open(&r->options, r->comm, &e));
    const bool first = comm_rank(r->comm) == 0;
    const rt_status status = first ? lead(e, &r->request) : rt_engine_worker(e);
    if (status != RT_OK)
        comm_abort(r->comm);
    else
        rt_engine_close(e);
    return status;
}

static void *rank_main(void *arg)
{
    rank *r = arg;
    r->status = drive(r);
    if (r->status != RT_OK)
        snprintf(r->message, sizeof r->message, "%s", rt_last_error());
    comm_close(r->comm);
    return NULL;
}

static const json_t *find(const json_t *list, const char *key, const char *value)
{
    size_t i;
    json_t *item;
    json_array_foreach(list, i, item)
    {
        if (strcmp(json_string_value(json_object_get(item, key)), value) == 0)
            return item;
    }
    fail_msg("no %s %s", key, value);
    return NULL;
}

static double number(const json_t *record, const char *key, double otherwise)
{
    const json_t *value = json_object_get(record, key);
    return value ? json_number_value(value) : otherwise;
}

// The record's request; its document is 512 tokens long.
static void fill(rank *r, const json_t *record, const char *model)
{
    const json_t *document =
        find(documents, "id", json_string_value(json_object_get(record, "document")));
    const json_t *user = json_object_get(document, "user");
    r->options = rt_engine_options_default();
    r->options.model_dir = model;
    r->options.threads = 1;
    r->options.context = 1024;
    r->options.attention.check_plans = true;
    r->options.attention.policy =
        losa_policy_find(json_string_value(json_object_get(record, "attention")));
    r->options.attention.budget = (int)number(record, "budget", r->options.attention.budget);
    r->options.attention.scope = LOSA_SCOPE_SHARED;
    r->options.attention.page = (int)number(record, "page_size", r->options.attention.page);
    r->request = rt_request_default();
    r->request.prompt = json_string_value(user);
    r->request.prompt_len = json_string_length(user);
    r->request.chat = true;
    r->request.temperature = 0;
    r->request.max_tokens = (int)number(record, "max_tokens", r->request.max_tokens);
    r->request.threshold = number(record, "threshold", r->request.threshold);
    r->request.steps = (int)number(record, "steps", r->request.steps);
    r->request.on_done = keep_ids;
    r->request.ctx = r;
}

static void check_on(int ranks, const json_t *record)
{
    char model[4096];
    snprintf(model, sizeof model, "%s/models/needle-11m", source);
    comm *c[RANKS_MAX];
    rank all[RANKS_MAX] = {0};
    pthread_t threads[RANKS_MAX];
    assert_int_equal(comm_open_threads(ranks, 120.0, c), RT_OK);
    for (int i = 0; i < ranks; i++) {
        all[i].comm = c[i];
        all[i].ids = json_array();
        fill(&all[i], record, model);
    }
    for (int i = 0; i < ranks; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, rank_main, &all[i]), 0);
    for (int i = 0; i < ranks; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < ranks; i++)
        if (all[i].status != RT_OK)
            fail_msg("rank %d of %d: %s", i, ranks, all[i].message);
    // That the other ranks hold the same tokens is checked by the engine (Result.ids_hash).
    const json_t *want = json_object_get(record, "token_ids");
    if (!json_equal(all[0].ids, want)) {
        char *got = json_dumps(all[0].ids, JSON_COMPACT), *golden = json_dumps(want, JSON_COMPACT);
        fail_msg("on %d ranks: %s, not %s", ranks, got, golden);
    }
    for (int i = 0; i < ranks; i++)
        json_decref(all[i].ids);
}

static bool has(const json_t *record, const char *key, const char *value)
{
    const char *text = json_string_value(json_object_get(record, key));
    return text && strcmp(text, value) == 0;
}

static bool is_default(const json_t *record, const char *key, const char *value)
{
    return !json_object_get(record, key) || has(record, key, value);
}

static bool is_wanted(const json_t *record, const char *attention)
{
    return has(record, "source", "policy") && has(record, "document", "mq-512-0") &&
           has(record, "attention", attention) &&
           has(record, "strategy", "low_confidence_dynamic") &&
           is_default(record, "active", "unsettled") &&
           is_default(record, "plan_scope", "shared") && is_default(record, "locality", "query");
}

static void test_policy(void **state)
{
    const char *attention = *state;
    size_t i;
    json_t *record;
    json_array_foreach(records, i, record)
    {
        if (!is_wanted(record, attention))
            continue;
        for (int ranks = 1; ranks <= RANKS_MAX; ranks *= 2)
            check_on(ranks, record);
        return;
    }
    fail_msg("no record of %s", attention);
}

static json_t *load_lines(const char *name)
{
    char path[4096], *line = NULL;
    size_t room = 0;
    snprintf(path, sizeof path, "%s/tests/golden/decode/%s", source, name);
    FILE *file = fopen(path, "r");
    json_t *all = json_array();
    while (file && getline(&line, &room, file) > 0)
        json_array_append_new(all, json_loads(line, 0, NULL));
    free(line);
    if (file)
        fclose(file);
    return all;
}

int main(void)
{
    source = getenv("LOSA_SOURCE");
    if (!source) {
        fprintf(stderr, "skipped: LOSA_SOURCE is not set\n");
        return SKIP;
    }
    documents = load_lines("documents.jsonl");
    records = load_lines("needle.jsonl");
    const struct CMUnitTest tests[] = {
        {"dense", test_policy, NULL, NULL, (void *)"dense"},
        {"losa", test_policy, NULL, NULL, (void *)"losa"},
    };
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    json_decref(records);
    json_decref(documents);
    return failed;
}
