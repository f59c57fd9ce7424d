// SPDX-License-Identifier: Apache-2.0
// A journal, and what follows a journal's first line: what is taken over is delivered whole,
// and a result that is added to it is there the next time.
#include "tests/fuzz/scratch.h"

#include "launcher/batch_journal.h"
#include "runtime/base/file.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"

enum { LINES = 8 };
static const app_job job = {.model = 1, .input = 2, .options = "o", .lines = LINES};

static uint64_t count_kept(const app_journal *j)
{
    uint64_t n = 0;
    for (uint64_t i = 0; i < LINES; i++)
        n += app_journal_has(j, i);
    must(n == app_journal_count(j));
    return n;
}

static void check_output(uint64_t count)
{
    char *text;
    size_t len, lines = 0;
    must(rt_file_read(scratch_path("out"), SIZE_MAX / 4, &text, &len) == RT_OK);
    for (size_t i = 0; i < len; i++)
        lines += text[i] == '\n';
    must(lines == count);
    rt_free(text);
}

static void open_twice(const void *bytes, size_t size)
{
    app_journal *j;
    const char *path = scratch_write("journal", bytes, size);
    scratch_note("out");
    if (app_journal_open(path, &job, true, &j) != RT_OK)
        return;
    uint64_t kept = count_kept(j);
    const bool had = app_journal_has(j, 3);
    must(app_journal_add(j, 3, "{}", 2) == RT_OK);
    must(app_journal_sync(j, 0) == RT_OK);
    app_journal_close(j);
    must(app_journal_open(path, &job, true, &j) == RT_OK);
    kept += !had;
    must(app_journal_has(j, 3) && count_kept(j) == kept);
    must(app_journal_deliver(j, scratch_path("out"), size % 2) == RT_OK);
    check_output(kept);
    app_journal_close(j);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    app_journal *j;
    char *head, *file;
    size_t len;
    rt_log_setup(RT_LOG_ERROR, 0, 1);
    open_twice(data, size);
    scratch_delete("journal");
    must(app_journal_open(scratch_path("journal"), &job, false, &j) == RT_OK);
    app_journal_close(j);
    must(rt_file_read(scratch_path("journal"), SIZE_MAX / 4, &head, &len) == RT_OK);
    file = malloc(len + size);
    must(file != NULL);
    memcpy(file, head, len);
    if (size > 0)
        memcpy(file + len, data, size);
    open_twice(file, len + size);
    free(file);
    rt_free(head);
    return 0;
}
