// SPDX-License-Identifier: Apache-2.0
// A job in which rank 1 does not answer: run by tests/e2e/test_deadline.c as
//   mpirun -n RANKS helper_deadline WHAT OPERATION DEADLINE
// WHAT is what rank 1 does instead of the third collective: sleep, stop (SIGSTOP),
// kill (SIGKILL), exit; or it is only late: a little more than the deadline. With linger
// it is rank 0 that comes late, from the barrier in which all ranks close. Each rank prints
// "pid N"; the others print "waited SECONDS" and "error: TEXT" after the collective,
// "again: TEXT" after a further one, and end the job.
#include "comm/comm.h"
#include "runtime/base/clock.h"

#include <mpi.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { COUNT = 100000, FOREVER = 600 };

// The thread that lingers, once.
static pthread_t lingerer;
static bool lingers;

// Instead of MPI's, which is PMPI_Test too.
int MPI_Test(MPI_Request *request, int *done, MPI_Status *status)
{
    const int code = PMPI_Test(request, done, status);
    if (lingers && pthread_equal(pthread_self(), lingerer) && *done) {
        lingers = false;
        rt_clock_sleep(0.7); // the heart looks meanwhile
    }
    return code;
}

static void vanish(const char *what, double deadline)
{
    if (strcmp(what, "late") == 0) {
        rt_clock_sleep(1.5 * deadline);
        return;
    }
    if (strcmp(what, "stop") == 0)
        raise(SIGSTOP);
    else if (strcmp(what, "kill") == 0)
        raise(SIGKILL);
    else if (strcmp(what, "exit") == 0)
        exit(3);
    rt_clock_sleep(FOREVER);
}

static rt_status collective(comm *c, kern_dev *dev, const char *name)
{
    kern_buf *a = NULL, *b = NULL;
    rt_status status;
    RT_TRY_GOTO(status, kern_buf_new(dev, KERN_F32, COUNT, "a", &a), out);
    RT_TRY_GOTO(status, kern_buf_new(dev, KERN_F32, COUNT * (size_t)comm_ranks(c), "b", &b), out);
    char byte = 0;
    if (strcmp(name, "allreduce") == 0)
        status = comm_allreduce(c, COMM_SCORES, a, COUNT, COMM_SUM);
    else if (strcmp(name, "allgather") == 0)
        status = comm_allgather(c, COMM_VOCAB, a, COUNT, b);
    else if (strcmp(name, "bcast") == 0)
        status = comm_ctl_bcast(c, 1, &byte, 1);
    else if (strcmp(name, "agree") == 0)
        status = comm_agree(c, RT_OK);
    else
        status = comm_ctl_barrier(c);
out:
    kern_buf_free(a);
    kern_buf_free(b);
    return status;
}

static rt_status run(const char *what, const char *name, double deadline)
{
    kern_dev_options options = {.kind = KERN_CPU, .threads = 1};
    kern_dev *dev = NULL;
    comm *c = NULL;
    RT_TRY(kern_dev_open(&options, &dev));
    RT_TRY(comm_open_world(deadline, &c));
    printf("pid %ld\n", (long)getpid());
    fflush(stdout);
    RT_TRY(comm_ctl_barrier(c));
    RT_TRY(comm_ctl_barrier(c));
    lingerer = pthread_self();
    lingers = comm_rank(c) == 0 && strcmp(what, "linger") == 0;
    if (comm_rank(c) == 1 && strcmp(what, "linger") != 0)
        vanish(what, deadline);
    if (strcmp(name, "close") == 0) {
        comm_close(c);
        return RT_OK;
    }
    double start = rt_clock_now();
    rt_status status = collective(c, dev, name);
    printf("waited %.3f s\n", rt_clock_now() - start);
    printf("error: %s\n", status == RT_OK ? "none" : rt_last_error());
    status = comm_ctl_barrier(c);
    printf("again: %s\n", status == RT_OK ? "none" : rt_last_error());
    fflush(stdout);
    rt_clock_sleep(0.3); // let every rank print before the first one ends the job
    comm_abort(c);
    return RT_OK;
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    rt_status status = run(argv[1], argv[2], strtod(argv[3], NULL));
    if (status != RT_OK)
        fprintf(stderr, "helper_deadline: %s\n", rt_last_error());
    return status == RT_OK ? 0 : 1;
}
