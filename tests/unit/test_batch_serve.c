// SPDX-License-Identifier: Apache-2.0
// Rank 0 of two groups of one rank: when desk or leader fails while a letter is taken, the
// other one goes on, and the other group is told.
#include "tests/unit/testing.h"

#include "comm/comm_int.h"
#include "launcher/batch.h"
#include "runtime/base/mem.h"

enum { RANKS = 2 };

static test_dir dir;
static atomic_bool lost[RANKS];

// What rank 1 has been told, and the letter that comes next.
static uint64_t given; // lines
static bool closed;
static rt_str sent;
static long fail_at; // the allocation for it that fails, or 0

// ---- ranks ---------------------------------------------------------------------------------

static void send(const Pb__BatchLetter *letter)
{
    sent.len = 0;
    assert_ok(pb_letter_pack(letter, &sent));
}

static void send_work(void)
{
    Pb__BatchWork work = PB__BATCH_WORK__INIT;
    Pb__BatchLetter letter = PB__BATCH_LETTER__INIT;
    work.text.data = (uint8_t *)"{}";
    work.text.len = 2;
    letter.work = &work;
    send(&letter);
}

static void answer(uint64_t line)
{
    Pb__BatchRecord record = PB__BATCH_RECORD__INIT;
    Pb__BatchLetter letter = PB__BATCH_LETTER__INIT;
    record.line = line;
    record.text.data = (uint8_t *)"{\"from\":1}";
    record.text.len = strlen("{\"from\":1}");
    letter.record = &record;
    send(&letter);
}

static rt_status post(comm *c, int to, const void *bytes, size_t n)
{
    Pb__BatchLetter *letter;
    (void)c, (void)to;
    assert_ok(pb_letter_unpack(bytes, n, &letter));
    if (letter->work) {
        given++;
        answer(letter->work->line);
    }
    closed |= letter->has_order && letter->order == PB__BATCH_ORDER__CLOSE;
    pb_letter_free(letter);
    return RT_OK;
}

static rt_status fetch(comm *c, int *from, rt_str *bytes)
{
    (void)c;
    if (sent.len == 0)
        return RT_OK;
    *from = 1;
    const rt_status status = rt_str_append(bytes, sent.data, sent.len);
    sent.len = 0;
    rt_mem_fail_at(fail_at);
    fail_at = 0;
    return status;
}

// The group of rank 0 is given up: rank 1 says that it has room.
static void abort_group(comm *c)
{
    Pb__BatchPulse pulse = PB__BATCH_PULSE__INIT;
    Pb__BatchLetter letter = PB__BATCH_LETTER__INIT;
    (void)c;
    lost[0] = true;
    pulse.wanted = 1;
    letter.pulse = &pulse;
    send(&letter);
}

static comm *open_world(void)
{
    static const comm_ctl_ops ops = {.post = post, .fetch = fetch};
    comm *c;
    assert_ok(comm_new(1, &c));
    c->ranks = RANKS;
    c->ops.ctl = &ops;
    c->lost_ranks = lost;
    return c;
}

static comm *open_group(void)
{
    static const comm_ctl_ops ops = {.abort = abort_group};
    comm *c;
    assert_ok(comm_new(1, &c));
    c->ranks = 1;
    c->ops.ctl = &ops;
    return c;
}

// ---- a job ---------------------------------------------------------------------------------

typedef struct job {
    app_batch_args args;
    app_batch_job of;
    app_batch_rank rank;
    comm *self;
    rt_engine *engine;
    char model[PATH_MAX];
} job;

static int make_job(void **state)
{
    static job j;
    static const char text[] = "{\"custom_id\": \"a\", \"method\": \"POST\", \"url\": "
                               "\"/v1/completions\", \"body\": {}}\n";
    dir = test_dir_new();
    given = closed = lost[0] = lost[1] = false;
    j = (job){.rank = {open_world(), open_group(), NULL}};
    j.args = (app_batch_args){.request = rt_request_default(), .dummy = 0};
    j.args.engine = rt_engine_options_default();
    j.args.common.quiet = true;
    j.args.output = strdup(test_path(&dir, "out"));
    j.args.input = strdup(test_write_text(&dir, "in", text));
    assert_ok(app_desk_open(j.rank.world, &j.args, &j.of, &j.rank.desk));
    assert_ok(app_desk_set_groups(j.rank.desk, RANKS, 1));
    snprintf(j.model, sizeof j.model, "%s/tests/golden/logits/mha_b4", getenv("LOSA_SOURCE"));
    j.args.engine.model_dir = j.model;
    j.args.engine.threads = 1;
    j.args.engine.context = 64;
    assert_ok(comm_open_self(&j.self));
    assert_ok(rt_engine_open(&j.args.engine, j.self, &j.engine));
    *state = &j;
    return 0;
}

static int drop_job(void **state)
{
    job *j = *state;
    rt_engine_close(j->engine);
    comm_close(j->self);
    app_desk_close(j->rank.desk);
    comm_drop_letters(j->rank.world);
    rt_free(j->rank.world);
    rt_free(j->rank.group);
    rt_str_free(&sent);
    free((char *)(uintptr_t)j->args.output);
    free((char *)(uintptr_t)j->args.input);
    test_dir_remove(&dir);
    return 0;
}

static rt_status serve(job *j)
{
    return app_batch_serve(&j->rank, j->engine, &j->args, &j->of);
}

// ---- tests ---------------------------------------------------------------------------------

// An answer that nobody asked for: the groups close, and the cause comes back.
static void test_desk_fails(void **state)
{
    answer(0);
    assert_fails(serve(*state), RT_ERR_INTERNAL, "rank 1 answers line 1", "was not given");
    assert_true(closed);
    assert_false(lost[0]);
}

// Memory runs out for the letter (3 allocations) or the request: the group is given up, and the
// line goes to the other one.
static void test_leader_fails(void **state)
{
    (void)state;
    for (long n = 1; n <= 4; n++) {
        void *j;
        make_job(&j);
        send_work();
        fail_at = n;
        assert_ok(serve(j));
        assert_true(lost[0] && closed);
        assert_int_equal(given, 1);
        assert_ok(app_desk_finish(((job *)j)->rank.desk));
        drop_job(&j);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_desk_fails, make_job, drop_job),
        cmocka_unit_test(test_leader_fails),
    };
    return cmocka_run_group_tests_name("batch_serve", tests, NULL, NULL);
}
