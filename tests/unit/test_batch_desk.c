// SPDX-License-Identifier: Apache-2.0
// The desk without ranks: what it hands to whom, and what becomes of lines whose group is lost.
#include "tests/unit/testing.h"

#include "comm/comm_int.h"
#include "launcher/batch.h"
#include "launcher/model_options.h"
#include "runtime/base/mem.h"

#include <unistd.h>

enum { GROUPS = 3, LINES = 4, BAD = 1000 }; // groups of one rank

static test_dir dir;
static atomic_bool lost[GROUPS];
static uint64_t given[GROUPS][2 * LINES]; // lines
static int count[GROUPS];
static bool closed[GROUPS];

// ---- time ----------------------------------------------------------------------------------

// In place of rt_clock_now (the linker's --wrap): a millisecond passes between two looks.
double __wrap_rt_clock_now(void);

double __wrap_rt_clock_now(void)
{
    static int looks;
    return 1e-3 * looks++;
}

// ---- ranks ---------------------------------------------------------------------------------

static void read_letter(int to, const void *bytes, size_t n)
{
    Pb__BatchLetter *letter;
    assert_ok(pb_letter_unpack(bytes, n, &letter));
    if (letter->work)
        given[to][count[to]++] = letter->work->line;
    closed[to] |= letter->has_order && letter->order == PB__BATCH_ORDER__CLOSE;
    pb_letter_free(letter);
}

static rt_status post(comm *c, int to, const void *bytes, size_t n)
{
    (void)c;
    read_letter(to, bytes, n);
    return RT_OK;
}

static comm *open_world(void)
{
    static const comm_ctl_ops ops = {.post = post};
    comm *c;
    assert_ok(comm_new(1, &c));
    c->ranks = GROUPS;
    c->ops.ctl = &ops;
    c->lost_ranks = lost;
    return c;
}

// ---- a job ---------------------------------------------------------------------------------

typedef struct job {
    comm *world;
    app_batch_args args;
    app_batch_job of;
    app_desk *desk;
} job;

static void write_line(FILE *file, int i)
{
    fprintf(file,
            "{\"custom_id\": \"id-%d\", \"method\": \"POST\", \"url\": \"/v1/completions\", "
            "\"body\": {\"prompt\": [1], \"max_tokens\": %d}}\n",
            i, i == 1 ? 99 : 10 - i); // the second is the longest
}

// `bad` lines that are wrong go before the others.
static int begin_job(void **state, int bad)
{
    static job j;
    dir = test_dir_new();
    j.world = open_world();
    j.args = (app_batch_args){.request = rt_request_default(), .dummy = 0};
    j.args.engine = rt_engine_options_default();
    j.args.common.quiet = true;
    j.args.output = strdup(test_path(&dir, "out"));
    j.args.input = strdup(test_path(&dir, "in"));
    FILE *file = fopen(j.args.input, "w");
    for (int i = 0; i < bad; i++)
        fprintf(file, "{}\n");
    for (int i = 0; i < LINES; i++)
        write_line(file, i);
    fclose(file);
    memset(given, 0, sizeof given);
    memset(count, 0, sizeof count);
    for (int i = 0; i < GROUPS; i++)
        lost[i] = closed[i] = false;
    assert_ok(app_desk_open(j.world, &j.args, &j.of, &j.desk));
    assert_ok(app_desk_set_groups(j.desk, GROUPS, 1));
    app_desk_begin(j.desk);
    *state = &j;
    return 0;
}

static int make_job(void **state)
{
    return begin_job(state, 0);
}

static int make_bad_job(void **state)
{
    return begin_job(state, BAD);
}

static int drop_job(void **state)
{
    job *j = *state;
    app_desk_close(j->desk);
    comm_drop_letters(j->world);
    rt_free(j->world);
    free((char *)(uintptr_t)j->args.output);
    free((char *)(uintptr_t)j->args.input);
    test_dir_remove(&dir);
    return 0;
}

// A turn; rank 0's letters to itself are read too.
static bool turn(job *j)
{
    bool over;
    rt_str bytes = {0};
    assert_ok(app_desk_turn(j->desk, &over));
    for (int from = 0; from >= 0;) {
        assert_ok(comm_fetch(j->world, &from, &bytes));
        if (from >= 0)
            read_letter(0, bytes.data, bytes.len);
    }
    rt_str_free(&bytes);
    return over;
}

// A leader wants `wanted` lines, all told.
static void want(job *j, int group, uint64_t wanted)
{
    Pb__BatchPulse pulse = PB__BATCH_PULSE__INIT;
    Pb__BatchLetter letter = PB__BATCH_LETTER__INIT;
    pulse.wanted = wanted;
    pulse.had = (uint64_t)count[group];
    pulse.open = 1;
    letter.pulse = &pulse;
    assert_ok(app_desk_take(j->desk, group, &letter));
}

static rt_status answer(job *j, int group, uint64_t line)
{
    char text[64];
    snprintf(text, sizeof text, "{\"answer\":%d}", (int)line);
    Pb__BatchRecord record = PB__BATCH_RECORD__INIT;
    Pb__BatchLetter letter = PB__BATCH_LETTER__INIT;
    record.line = line;
    record.text.data = (uint8_t *)text;
    record.text.len = strlen(text);
    letter.record = &record;
    return app_desk_take(j->desk, group, &letter);
}

static char *output(const job *j)
{
    static char text[4096];
    FILE *file = fopen(j->args.output, "r");
    assert_non_null(file);
    text[fread(text, 1, sizeof text - 1, file)] = '\0';
    fclose(file);
    return text;
}

// ---- tests ---------------------------------------------------------------------------------

// Nobody gets more than it wants; the longest goes first.
static void test_handed_out(void **state)
{
    job *j = *state;
    assert_false(turn(j));
    assert_int_equal(count[0] + count[1] + count[2], 0);
    want(j, 1, 1);
    want(j, 2, 2);
    assert_false(turn(j));
    assert_int_equal(count[1], 1);
    assert_int_equal(count[2], 2);
    assert_int_equal(given[1][0], 1);
    assert_ok(answer(j, 1, 1));
    assert_fails(answer(j, 1, given[2][0]), RT_ERR_INTERNAL, "rank 1", "was not given");
    want(j, 0, 5);
    assert_false(turn(j));
    assert_int_equal(count[0], 1); // there are no more
    assert_ok(answer(j, 0, given[0][0]));
    assert_ok(answer(j, 2, given[2][1]));
    assert_ok(answer(j, 2, given[2][0]));
    assert_true(turn(j));
    assert_true(closed[0] && closed[1] && closed[2]);
    assert_ok(app_desk_finish(j->desk));
    const char *text = output(j);
    for (int i = 0; i < LINES; i++) {
        char one[32];
        snprintf(one, sizeof one, "{\"answer\":%d}\n", i);
        assert_non_null(strstr(text, one));
    }
    assert_int_equal(access(test_path(&dir, "out.journal"), F_OK), -1);
}

// A line of a lost group is handed out again, and not a third time: an error with its name.
static void test_lost(void **state)
{
    job *j = *state;
    want(j, 1, 1);
    assert_false(turn(j));
    assert_int_equal(given[1][0], 1);
    lost[1] = true;
    want(j, 2, 1);
    assert_false(turn(j));
    assert_int_equal(count[2], 1);
    assert_int_equal(given[2][0], 1);
    assert_ok(answer(j, 1, 1)); // too late: nobody reads it
    lost[2] = true;
    want(j, 0, LINES);
    assert_false(turn(j));
    assert_int_equal(count[0], LINES - 1);
    for (int i = 0; i < count[0]; i++)
        assert_ok(answer(j, 0, given[0][i]));
    assert_true(turn(j));
    assert_true(closed[0] && !closed[1] && !closed[2]);
    assert_ok(app_desk_finish(j->desk));
    const char *text = output(j);
    assert_non_null(strstr(text, "\"custom_id\":\"id-1\",\"response\":{\"status_code\":500"));
    assert_non_null(strstr(text, "line 2: the ranks that answered it were lost, twice"));
    assert_null(strstr(text, "{\"answer\":1}"));
}

// However many lines need no rank, a turn is short: 50 looks at the clock, one a line.
static void test_bad_lines(void **state)
{
    job *j = *state;
    int turns = 0;
    want(j, 0, 1);
    for (; count[0] == 0; turns++)
        assert_false(turn(j));
    assert_in_range(turns, BAD / 100, BAD / 10);
    assert_int_equal(given[0][0], BAD + 1);
}

static void test_all_lost(void **state)
{
    job *j = *state;
    bool over;
    for (int i = 0; i < GROUPS; i++)
        lost[i] = true;
    assert_fails(app_desk_turn(j->desk, &over), RT_ERR_COMM, "all groups", "lost");
}

// The desk is closed, and another one opened over its files.
static rt_status reopen(job *j)
{
    app_desk_close(j->desk);
    j->desk = NULL;
    j->args.resume = true;
    return app_desk_open(j->world, &j->args, &j->of, &j->desk);
}

// A line may be refused by the model's name, and records have it.
static void test_other_names(void **state)
{
    job *j = *state;
    want(j, 0, 1);
    assert_false(turn(j));
    assert_ok(answer(j, 0, given[0][0]));
    assert_false(turn(j));
    j->args.model_name = "other";
    assert_fails(reopen(j), RT_ERR_INVALID, "out.journal", "now 'model-name=other'");
    j->args.model_name = app_dummy_choice(0);
    j->args.dummy = 1;
    assert_fails(reopen(j), RT_ERR_INVALID, "out.journal", "'dummy=");
    j->args.dummy = 0;
    assert_ok(reopen(j));
}

static void test_model_name(void **state)
{
    (void)state;
    static const char *const ends[] = {"", "/", "/."};
    char path[PATH_MAX];
    for (int i = 0; i < 3; i++) {
        app_batch_job of;
        snprintf(path, sizeof path, "%s/tests/golden/logits/mha_b4%s", getenv("LOSA_SOURCE"),
                 ends[i]);
        const app_batch_args args = {.model = path, .dummy = APP_NO_DUMMY};
        assert_ok(app_batch_job_make(&args, 1, &of));
        assert_string_equal(of.model, "mha_b4");
    }
}

static void test_input_is_output(void **state)
{
    job *j = *state;
    static const char *const ends[] = {"", ".tmp", ".journal"};
    char name[32], *input = strdup(j->args.input);
    free((char *)(uintptr_t)j->args.input);
    for (int i = 0; i < 3; i++) {
        snprintf(name, sizeof name, "out%s", ends[i]);
        j->args.input = test_path(&dir, name);
        unlink(j->args.input);
        assert_int_equal(link(input, j->args.input), 0); // another name of the file
        assert_fails(reopen(j), RT_ERR_INVALID, name, "is the input");
        unlink(j->args.input);
    }
    j->args.input = input;
}

// Metrics go to none of the files of the job, whether it is there yet or not.
static void test_metrics_apart(void **state)
{
    job *j = *state;
    static const char *const names[] = {"in", "out", "out.tmp", "out.journal"};
    char path[PATH_MAX];
    for (int i = 0; i < 4; i++) {
        snprintf(path, sizeof path, "%s", test_path(&dir, names[i]));
        j->args.metrics_file = path;
        assert_fails(reopen(j), RT_ERR_INVALID, names[i], i ? "--metrics-file" : "is the input");
    }
    snprintf(path, sizeof path, "%s", test_path(&dir, "metrics"));
    assert_ok(reopen(j));
    j->args.metrics_file = NULL;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_handed_out, make_job, drop_job),
        cmocka_unit_test_setup_teardown(test_lost, make_job, drop_job),
        cmocka_unit_test_setup_teardown(test_bad_lines, make_bad_job, drop_job),
        cmocka_unit_test_setup_teardown(test_other_names, make_job, drop_job),
        cmocka_unit_test(test_model_name),
        cmocka_unit_test_setup_teardown(test_input_is_output, make_job, drop_job),
        cmocka_unit_test_setup_teardown(test_metrics_apart, make_job, drop_job),
        cmocka_unit_test_setup_teardown(test_all_lost, make_job, drop_job),
    };
    return cmocka_run_group_tests_name("batch_desk", tests, NULL, NULL);
}
