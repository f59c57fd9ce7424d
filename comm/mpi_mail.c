// SPDX-License-Identifier: Apache-2.0
// No call waits for another rank: a sender may die in the middle of a letter, and the one it
// writes to has others to hear.
#include "comm/mpi_mail.h"

#include "runtime/base/mem.h"

#include <string.h>

enum { TAG = 2 };

struct comm_parcel {
    struct comm_parcel *next;
    MPI_Request request;
    int rank; // the other one
    size_t len;
    char bytes[];
};

static rt_status failed(const char *call)
{
    return RT_FAIL(RT_ERR_COMM, "mail: %s failed", call);
}

static rt_status make(int rank, size_t n, struct comm_parcel **out)
{
    struct comm_parcel *p = rt_mem_alloc(1, sizeof *p + n, "letter");
    if (!p)
        return RT_ERR_NOMEM;
    p->request = MPI_REQUEST_NULL;
    p->rank = rank;
    p->len = n;
    *out = p;
    return RT_OK;
}

static rt_status is_done(struct comm_parcel *p, bool *done)
{
    int flag = 0;
    if (MPI_Test(&p->request, &flag, MPI_STATUS_IGNORE) != MPI_SUCCESS)
        return failed("MPI_Test");
    *done = flag;
    return RT_OK;
}

// Frees what has been handed over.
static rt_status settle(comm_mpi_mail *mail)
{
    for (struct comm_parcel **link = &mail->sending; *link;) {
        struct comm_parcel *p = *link;
        bool done = false;
        RT_TRY(is_done(p, &done));
        if (done) {
            *link = p->next;
            rt_free(p);
        } else {
            link = &p->next;
        }
    }
    return RT_OK;
}

rt_status comm_mpi_mail_post(comm_mpi_mail *mail, int to, const void *bytes, size_t n)
{
    struct comm_parcel *p;
    RT_TRY(settle(mail));
    RT_TRY(make(to, n, &p));
    if (n > 0)
        memcpy(p->bytes, bytes, n);
    if (MPI_Isend(p->bytes, (int)n, MPI_BYTE, to, TAG, mail->world, &p->request) != MPI_SUCCESS) {
        rt_free(p);
        return failed("MPI_Isend");
    }
    p->next = mail->sending;
    mail->sending = p;
    return RT_OK;
}

// Starts to receive the next letter that is announced.
static rt_status begin_next(comm_mpi_mail *mail)
{
    int there = 0, n = 0;
    MPI_Status status;
    if (MPI_Iprobe(MPI_ANY_SOURCE, TAG, mail->world, &there, &status) != MPI_SUCCESS)
        return failed("MPI_Iprobe");
    if (!there)
        return RT_OK;
    struct comm_parcel *p;
    MPI_Get_count(&status, MPI_BYTE, &n);
    RT_TRY(make(status.MPI_SOURCE, (size_t)n, &p));
    if (MPI_Irecv(p->bytes, n, MPI_BYTE, p->rank, TAG, mail->world, &p->request) != MPI_SUCCESS) {
        rt_free(p);
        return failed("MPI_Irecv");
    }
    mail->arriving = p;
    return RT_OK;
}

rt_status comm_mpi_mail_fetch(comm_mpi_mail *mail, int *from, rt_str *bytes)
{
    bool done = false;
    RT_TRY(settle(mail));
    if (!mail->arriving)
        RT_TRY(begin_next(mail));
    struct comm_parcel *p = mail->arriving;
    if (p)
        RT_TRY(is_done(p, &done));
    if (!done)
        return RT_OK;
    mail->arriving = NULL;
    *from = p->rank;
    const rt_status status = rt_str_append(bytes, p->bytes, p->len);
    rt_free(p);
    return status;
}

// MPI may still write to it.
void comm_mpi_mail_drop_lost(comm_mpi_mail *mail, const atomic_bool *lost_ranks)
{
    if (mail->arriving && lost_ranks[mail->arriving->rank])
        mail->arriving = NULL;
}

void comm_mpi_mail_close(comm_mpi_mail *mail)
{
    bool done = false;
    for (struct comm_parcel *p = mail->sending; p;) {
        struct comm_parcel *next = p->next;
        if (is_done(p, &done) == RT_OK && done)
            rt_free(p);
        p = next;
    }
    mail->sending = NULL;
}
