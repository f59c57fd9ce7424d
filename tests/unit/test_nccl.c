// SPDX-License-Identifier: Apache-2.0
// The start and the end of NCCL's data plane, with an NCCL of the test's own and devices
// without memory: what becomes of a rank whose others do not come.
#include "tests/unit/testing.h"

#include "comm/comm_int.h"

#include <nccl.h>
#include <pthread.h>

// The communicator of a rank, and what was done with it.
typedef struct ncclComm {
    int rank, aborted, destroyed;
    ncclResult_t now;
    size_t used_when_aborted; // bytes of the device
} fake;

enum { RANKS = 2 };
static fake made[RANKS];
static comm *world[RANKS];
static kern_dev *dev[RANKS];
static const kern_dev_options gpu = {.kind = KERN_CUDA, .threads = 1, .dry = true};

// How NCCL behaves.
static bool starts, fails, finalizes, loses;

static void behave(bool at_start, bool in_sums, bool at_end)
{
    starts = at_start;
    fails = !in_sums;
    finalizes = at_end;
    loses = false;
}

static size_t used(const kern_dev *d)
{
    size_t sum = 0;
    for (int use = 0; use < KERN_USES; use++)
        sum += kern_used(d, (kern_use)use);
    return sum;
}

// Devices without memory have none.
void *__wrap_kern_dev_stream(const kern_dev *d);
void *__wrap_kern_dev_stream(const kern_dev *d)
{
    (void)d;
    return NULL;
}

// ---- NCCL ------------------------------------------------------------------------------

ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
    memset(id, 0, sizeof *id);
    return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *out, int ranks, ncclUniqueId id, int rank,
                                    ncclConfig_t *config)
{
    (void)id;
    assert_int_equal(ranks, comm_ranks(world[rank]));
    assert_int_equal(config->blocking, 0);
    made[rank] = (fake){.rank = rank, .now = starts ? ncclSuccess : ncclInProgress};
    world[rank]->any_lost = loses;
    *out = &made[rank];
    return ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t c, ncclResult_t *result)
{
    *result = c->now;
    return ncclSuccess;
}

ncclResult_t ncclAllReduce(const void *src, void *dst, size_t n, ncclDataType_t type,
                           ncclRedOp_t op, ncclComm_t c, cudaStream_t stream)
{
    (void)src, (void)dst, (void)n, (void)type, (void)op, (void)stream;
    c->now = fails ? ncclSystemError : ncclSuccess;
    return ncclSuccess;
}

ncclResult_t ncclAllGather(const void *src, void *dst, size_t n, ncclDataType_t type, ncclComm_t c,
                           cudaStream_t stream)
{
    (void)src, (void)dst, (void)n, (void)type, (void)c, (void)stream;
    return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t c)
{
    c->now = finalizes ? ncclSuccess : ncclInProgress;
    return ncclInProgress;
}

ncclResult_t ncclCommDestroy(ncclComm_t c)
{
    c->destroyed++;
    return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t c)
{
    c->aborted++;
    c->used_when_aborted = used(dev[c->rank]);
    return ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t result)
{
    (void)result;
    return "system error";
}

const char *ncclGetLastError(ncclComm_t c)
{
    (void)c;
    return "of the test";
}

// ---- ranks -----------------------------------------------------------------------------

typedef struct outcome {
    int rank;
    rt_status status;
    char message[256];
} outcome;

static void *attach(void *arg)
{
    outcome *o = arg;
    o->status = comm_attach(world[o->rank], dev[o->rank]);
    if (o->status != RT_OK)
        snprintf(o->message, sizeof o->message, "%s", rt_last_error());
    return NULL;
}

static void open_ranks(double deadline)
{
    assert_ok(comm_open_threads(RANKS, deadline, world));
    for (int r = 0; r < RANKS; r++) {
        world[r]->watched = true; // as in an MPI job
        assert_ok(kern_dev_open(&gpu, &dev[r]));
    }
}

static void close_ranks(void)
{
    for (int r = 0; r < RANKS; r++) {
        comm_close(world[r]);
        kern_dev_close(dev[r]);
    }
}

static void run_all(void *(*run)(void *), outcome o[RANKS])
{
    pthread_t thread[RANKS];
    for (int r = 0; r < RANKS; r++) {
        o[r] = (outcome){.rank = r};
        assert_int_equal(pthread_create(&thread[r], NULL, run, &o[r]), 0);
    }
    for (int r = 0; r < RANKS; r++)
        pthread_join(thread[r], NULL);
}

static void attach_all(outcome o[RANKS])
{
    run_all(attach, o);
}

// The agreement before it waits for as long as the others live; this does not.
static void test_start_has_a_deadline(void **state)
{
    (void)state;
    outcome o[RANKS];
    behave(false, true, true);
    open_ranks(0.2);
    attach_all(o);
    for (int r = 0; r < RANKS; r++) {
        assert_int_equal(o[r].status, RT_ERR_TIMEOUT);
        assert_non_null(strstr(o[r].message, "start of NCCL number "));
        assert_non_null(strstr(o[r].message, ": no answer within 0.2 s"));
        assert_int_equal(made[r].aborted, 1);
    }
    close_ranks();
}

// Of one rank, since others than rank 0 rest then.
static void test_start_of_a_lost_group(void **state)
{
    (void)state;
    behave(false, true, true);
    loses = true;
    assert_ok(comm_open_self(&world[0]));
    world[0]->deadline = 60;
    assert_ok(kern_dev_open(&gpu, &dev[0]));
    assert_fails(comm_nccl_open(world[0], dev[0]), RT_ERR_COMM, "rank 0: ", "a rank is lost");
    assert_int_equal(made[0].aborted, 1);
    kern_dev_close(dev[0]);
    comm_close(world[0]);
}

// To free a buffer waits for the device, whose collectives may never end.
static void test_abort_before_buffers_are_freed(void **state)
{
    (void)state;
    outcome o[RANKS];
    behave(true, false, true);
    open_ranks(60);
    const size_t before = used(dev[0]);
    attach_all(o);
    for (int r = 0; r < RANKS; r++) {
        assert_int_equal(o[r].status, RT_ERR_COMM);
        assert_non_null(strstr(o[r].message, "first collectives number "));
        assert_non_null(strstr(o[r].message, "ncclAllReduce: system error: of the test"));
        assert_int_equal(made[r].aborted, 1);
        assert_true(made[r].used_when_aborted > before);
        assert_int_equal(used(dev[r]), before);
    }
    close_ranks();
    assert_int_equal(made[0].aborted, 1);
}

static void *detach(void *arg)
{
    comm_detach(world[((const outcome *)arg)->rank]);
    return NULL;
}

static void end_all(bool whole)
{
    outcome o[RANKS];
    open_ranks(whole ? 60 : 0.2);
    attach_all(o);
    for (int r = 0; r < RANKS; r++)
        assert_int_equal(o[r].status, RT_OK);
    run_all(detach, o);
    for (int r = 0; r < RANKS; r++) {
        assert_int_equal(made[r].destroyed, whole);
        assert_int_equal(made[r].aborted, !whole);
    }
    close_ranks();
}

static void test_end(void **state)
{
    (void)state;
    behave(true, true, true);
    end_all(true);
    behave(true, true, false); // it does not end: aborted at the deadline
    end_all(false);
}

int main(void)
{
    setenv("LOSA_PEERS", "0", 1); // there is no memory to share
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_start_has_a_deadline),
        cmocka_unit_test(test_start_of_a_lost_group),
        cmocka_unit_test(test_abort_before_buffers_are_freed),
        cmocka_unit_test(test_end),
    };
    return cmocka_run_group_tests_name("nccl", tests, NULL, NULL);
}
