// SPDX-License-Identifier: Apache-2.0
// Mail: letters to this rank itself are kept here, those to others go by the backend.
#include "comm/comm_int.h"
#include "runtime/base/mem.h"

#include <string.h>

struct comm_letter {
    struct comm_letter *next;
    size_t len;
    char bytes[];
};

static rt_status keep(comm *c, const void *bytes, size_t n)
{
    struct comm_letter *letter = rt_mem_alloc(1, sizeof *letter + n, "letter");
    if (!letter)
        return RT_ERR_NOMEM;
    letter->len = n;
    if (n > 0)
        memcpy(letter->bytes, bytes, n);
    struct comm_letter **end = &c->letters;
    while (*end)
        end = &(*end)->next;
    *end = letter;
    return RT_OK;
}

static rt_status take(comm *c, rt_str *bytes)
{
    struct comm_letter *letter = c->letters;
    RT_TRY(rt_str_append(bytes, letter->bytes, letter->len));
    c->letters = letter->next;
    rt_free(letter);
    return RT_OK;
}

void comm_drop_letters(comm *c)
{
    while (c->letters) {
        struct comm_letter *letter = c->letters;
        c->letters = letter->next;
        rt_free(letter);
    }
}

rt_status comm_post(comm *c, int to, const void *bytes, size_t n)
{
    RT_CHECK_ARG(c && (bytes || n == 0) && to >= 0 && to < c->ranks && n <= COMM_LETTER_MAX);
    if (to == c->rank)
        return keep(c, bytes, n);
    if (!c->ops.ctl->post)
        return RT_FAIL(RT_ERR_UNSUPPORTED, "mail: there is none between these ranks");
    return c->ops.ctl->post(c, to, bytes, n);
}

rt_status comm_fetch(comm *c, int *from, rt_str *bytes)
{
    RT_CHECK_ARG(c && from && bytes);
    bytes->len = 0;
    *from = -1;
    if (c->letters) {
        RT_TRY(take(c, bytes));
        *from = c->rank;
        return RT_OK;
    }
    return c->ops.ctl->fetch ? c->ops.ctl->fetch(c, from, bytes) : RT_OK;
}
