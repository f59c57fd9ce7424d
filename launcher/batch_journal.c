// SPDX-License-Identifier: Apache-2.0
#include "launcher/batch_journal.h"

#include "launcher/batch_record.h"
#include "launcher/lines.h"
#include "launcher/options.h"
#include "launcher/result_file.h"
#include "runtime/base/clock.h"
#include "runtime/base/hash.h"
#include "runtime/base/json.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LINE_MAX_BYTES = 16 << 20, HASH_DIGITS = 16, PREFIX_MAX = 48 };

// A line of output in the journal; len 0: not there.
typedef struct place {
    uint64_t offset;
    size_t len;
} place;

struct app_journal {
    char *path;
    int fd;
    place *places; // [lines]
    uint64_t lines;
    uint64_t size;         // bytes written
    rt_str waiting;        // to be written
    double since;          // when the oldest came of what is not on the disk
    uint64_t count, added; // results on the disk; with those that are not yet
    uint64_t errors;       // of `added`
};

static rt_status io_failed(const char *path, const char *what)
{
    return RT_FAIL(RT_ERR_IO, "%s: cannot %s: %s", path, what, strerror(errno));
}

// A name that was made, replaced or removed must outlive a loss of power too.
static rt_status sync_folder(const char *path)
{
    char copy[PATH_MAX];
    snprintf(copy, sizeof copy, "%s", path);
    const int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return io_failed(path, "open its folder");
    const bool done = fsync(fd) == 0 || errno == EINVAL; // some file systems know no such thing
    const rt_status status = done ? RT_OK : io_failed(path, "write its folder");
    close(fd);
    return status;
}

// ---- the first line --------------------------------------------------------------------

static rt_status describe(const app_job *job, rt_str *out)
{
    json_t *head = json_pack("{s:i, s:s, s:I, s:I, s:I}", "losa_batch", 1, "options", job->options,
                             "model", (json_int_t)job->model, "input", (json_int_t)job->input,
                             "lines", (json_int_t)job->lines);
    char *text = head ? json_dumps(head, JSON_COMPACT) : NULL;
    json_decref(head);
    if (!text)
        return RT_FAIL(RT_ERR_NOMEM, "journal: no memory, or options that are not UTF-8");
    const rt_status status = rt_str_puts(out, text);
    free(text);
    return status;
}

static rt_status not_ours(const app_journal *j)
{
    return RT_FAIL(RT_ERR_INVALID, "%s: not a journal of losa batch", j->path);
}

// A loss of power may leave zeros of what was written and not synced.
static bool is_begun_by_us(const app_line *line)
{
    static const char start[] = "{\"losa_batch\":";
    size_t at = 0;
    while (line->text && at < line->len && at < sizeof start - 1 && line->text[at] == start[at])
        at++;
    if (at == sizeof start - 1)
        return true;
    while (line->text && at < line->len && line->text[at] == '\0')
        at++;
    return at == line->len;
}

static rt_status check_head(const app_journal *j, const rt_str *had, const rt_str *want)
{
    static const struct {
        const char *key, *what;
    } parts[] = {{"losa_batch", "of another version of losa batch"},
                 {"input", "of another input: this one is not what its results answer"},
                 {"lines", "of another input: this one is not what its results answer"},
                 {"model", "of another model"},
                 {"options", "made with other options"}};
    json_t *got, *now = NULL;
    RT_TRY(rt_json_parse(had->data, had->len, j->path, &got));
    rt_status status = rt_json_parse(want->data, want->len, j->path, &now);
    for (size_t i = 0; status == RT_OK && i < sizeof parts / sizeof parts[0]; i++) {
        const json_t *a = json_object_get(got, parts[i].key);
        const json_t *b = json_object_get(now, parts[i].key);
        if (json_equal(a, b))
            continue;
        char words[200] = "";
        if (json_is_string(a) && json_is_string(b))
            app_first_difference(json_string_value(a), json_string_value(b), words, sizeof words);
        status = RT_FAIL(RT_ERR_INVALID, "%s: %s%s%s", j->path, parts[i].what, *words ? ": " : "",
                         words);
    }
    json_decref(now);
    json_decref(got);
    return status;
}

// ---- reading ---------------------------------------------------------------------------

static uint64_t hash_of(uint64_t line, const char *text, size_t len)
{
    return rt_hash(rt_hash(RT_HASH_START, &line, sizeof line), text, len);
}

// "NUMBER HASH TEXT". The line's text is not NUL-terminated: the numbers are copied out.
static bool parse_result(const app_line *line, uint64_t *number, const char **text, size_t *len)
{
    char prefix[PREFIX_MAX] = "";
    uint64_t hash;
    int used = -1;
    if (!line->text || !line->ended)
        return false;
    memcpy(prefix, line->text, line->len < PREFIX_MAX - 1 ? line->len : PREFIX_MAX - 1);
    if (prefix[0] < '0' || prefix[0] > '9' ||
        sscanf(prefix, "%20" SCNu64 " %16" SCNx64 "%n", number, &hash, &used) != 2 || used < 0 ||
        prefix[used] != ' ')
        return false;
    *text = line->text + used + 1;
    *len = line->len - (size_t)used - 1;
    return *len > 0 && hash_of(*number, *text, *len) == hash;
}

// The head binds as soon as there is a result: one job's are not another one's.
static rt_status take_result(app_journal *j, const app_line *line, const rt_str *had,
                             const rt_str *want)
{
    uint64_t number;
    const char *text;
    size_t len;
    const bool whole = parse_result(line, &number, &text, &len);
    if (whole && j->count == 0)
        RT_TRY(check_head(j, had, want));
    if (!whole || number >= j->lines) {
        rt_log(RT_LOG_WARN, "%s: line %" PRIu64 " is damaged: its request is answered again",
               j->path, line->number + 1);
    } else if (j->places[number].len == 0) {
        j->places[number] = (place){line->offset + (size_t)(text - line->text), len};
        j->errors += app_batch_record_is_error(text, len);
        j->count++;
    }
    return RT_OK;
}

// j->size: where more can follow; 0: there is no result, and the file begins anew.
static rt_status take_results(app_journal *j, app_lines *lines, const rt_str *had,
                              const rt_str *want)
{
    for (;;) {
        app_line line;
        bool more;
        RT_TRY(app_lines_next(lines, &line, &more));
        if (!more || !line.ended)
            return RT_OK;
        RT_TRY(take_result(j, &line, had, want));
        j->size = j->count > 0 ? line.offset + line.len + 1 : 0;
    }
}

static rt_status read_lines(app_journal *j, app_lines *lines, const rt_str *want)
{
    app_line line;
    bool more;
    rt_str had = {0};
    RT_TRY(app_lines_next(lines, &line, &more));
    if (!more)
        return RT_OK;
    if (!is_begun_by_us(&line))
        return not_ours(j);
    if (!line.ended)
        return RT_OK;
    rt_status status = rt_str_append(&had, line.text, line.len);
    if (status == RT_OK)
        status = take_results(j, lines, &had, want);
    rt_str_free(&had);
    return status;
}

// ---- opening ---------------------------------------------------------------------------

// Cuts off half a line, and begins a file that has nothing. What an earlier run wrote and
// could not sync any more counts as done from here on.
static rt_status prepare(app_journal *j, const rt_str *head)
{
    const off_t end = lseek(j->fd, 0, SEEK_END);
    if (end > (off_t)j->size && j->size > 0)
        rt_log(RT_LOG_WARN, "%s: dropped half a line at its end", j->path);
    if (ftruncate(j->fd, (off_t)j->size) != 0)
        return io_failed(j->path, "cut off half a line");
    if (j->size == 0) {
        RT_TRY(app_result_file_add(j->fd, j->path, head->data, head->len));
        RT_TRY(app_result_file_add(j->fd, j->path, "\n", 1));
        j->size = head->len + 1;
    }
    if (fsync(j->fd) != 0)
        return io_failed(j->path, "write");
    return sync_folder(j->path);
}

static rt_status take_over(app_journal *j, const app_job *job, bool resume, const rt_str *head)
{
    app_lines *lines;
    RT_TRY(RT_ALLOC(j->places, job->lines, "journal"));
    j->lines = job->lines;
    RT_TRY(app_lines_open(j->fd, j->path, LINE_MAX_BYTES, &lines));
    const rt_status status = read_lines(j, lines, head);
    app_lines_close(lines);
    RT_TRY(status);
    if (j->count > 0 && !resume)
        return RT_FAIL(RT_ERR_INVALID,
                       "%s: holds %" PRIu64 " results of an earlier run: --resume goes on with "
                       "them; to begin anew, remove the file",
                       j->path, j->count);
    j->added = j->count;
    return prepare(j, head);
}

static rt_status open_file(app_journal *j, const app_job *job, bool resume)
{
    rt_str head = {0};
    RT_TRY(app_result_file_open(j->path, &j->fd));
    rt_status status = describe(job, &head);
    if (status == RT_OK)
        status = take_over(j, job, resume, &head);
    rt_str_free(&head);
    return status;
}

rt_status app_journal_open(const char *path, const app_job *job, bool resume, app_journal **out)
{
    app_journal *j;
    RT_TRY(RT_ALLOC(j, 1, "journal"));
    j->fd = -1;
    j->path = rt_mem_strdup(path, "journal");
    const rt_status status = j->path ? open_file(j, job, resume) : RT_ERR_NOMEM;
    if (status != RT_OK) {
        app_journal_close(j);
        return status;
    }
    *out = j;
    return RT_OK;
}

void app_journal_close(app_journal *j)
{
    if (!j)
        return;
    if (j->fd >= 0)
        close(j->fd);
    rt_str_free(&j->waiting);
    rt_free(j->places);
    rt_free(j->path);
    rt_free(j);
}

// ---- adding ----------------------------------------------------------------------------

bool app_journal_has(const app_journal *j, uint64_t line)
{
    return line < j->lines && j->places[line].len > 0;
}

uint64_t app_journal_count(const app_journal *j)
{
    return j->count;
}

bool app_journal_is_empty(const app_journal *j)
{
    return j->added == 0;
}

uint64_t app_journal_errors(const app_journal *j)
{
    return j->errors;
}

rt_status app_journal_add(app_journal *j, uint64_t line, const char *text, size_t len)
{
    RT_CHECK_ARG(line < j->lines && len > 0 && !memchr(text, '\n', len));
    if (app_journal_has(j, line))
        return RT_OK;
    const size_t before = j->waiting.len;
    if (j->added == j->count)
        j->since = rt_clock_now();
    rt_status status = rt_str_printf(&j->waiting, "%" PRIu64 " %0*" PRIx64 " ", line, HASH_DIGITS,
                                     hash_of(line, text, len));
    const uint64_t offset = j->size + j->waiting.len;
    if (status == RT_OK)
        status = rt_str_append(&j->waiting, text, len);
    if (status == RT_OK)
        status = rt_str_puts(&j->waiting, "\n");
    if (status != RT_OK) {
        j->waiting.len = before;
        return status;
    }
    j->places[line] = (place){offset, len};
    j->errors += app_batch_record_is_error(text, len);
    j->added++;
    return RT_OK;
}

static rt_status write_waiting(app_journal *j)
{
    const rt_status status = app_result_file_add(j->fd, j->path, j->waiting.data, j->waiting.len);
    // The message is out; half a line that stays is dropped by whoever resumes.
    if (status != RT_OK && ftruncate(j->fd, (off_t)j->size) != 0)
        rt_log(RT_LOG_DEBUG, "%s: half a line stays", j->path);
    RT_TRY(status);
    j->size += j->waiting.len;
    j->waiting.len = 0;
    return RT_OK;
}

rt_status app_journal_sync(app_journal *j, double age)
{
    if (j->waiting.len > 0)
        RT_TRY(write_waiting(j));
    if (j->added == j->count || rt_clock_now() - j->since < age)
        return RT_OK;
    if (fdatasync(j->fd) != 0)
        return io_failed(j->path, "write");
    j->count = j->added;
    return RT_OK;
}

// ---- the output ------------------------------------------------------------------------

static int by_offset(const void *a, const void *b)
{
    const uint64_t x = ((const place *)a)->offset, y = ((const place *)b)->offset;
    return (x > y) - (x < y);
}

static rt_status copy_results(const app_journal *j, FILE *to, const char *path)
{
    rt_str text = {0};
    rt_status status = RT_OK;
    for (uint64_t i = 0; status == RT_OK && i < j->lines; i++) {
        const place *p = &j->places[i];
        if (p->len == 0)
            continue;
        status = app_read_at(j->fd, j->path, p->offset, p->len, &text);
        if (status == RT_OK &&
            (fwrite(text.data, 1, text.len, to) != text.len || fputc('\n', to) == EOF))
            status = io_failed(path, "write");
    }
    rt_str_free(&text);
    return status;
}

static rt_status write_output(const app_journal *j, const char *path)
{
    FILE *file = fopen(path, "we");
    if (!file)
        return io_failed(path, "open");
    rt_status status = copy_results(j, file, path);
    if (status == RT_OK && (fflush(file) != 0 || fsync(fileno(file)) != 0))
        status = io_failed(path, "write");
    if (fclose(file) != 0 && status == RT_OK)
        status = io_failed(path, "write");
    return status;
}

rt_status app_journal_deliver(app_journal *j, const char *output, bool in_order)
{
    char path[PATH_MAX];
    RT_TRY(app_journal_sync(j, 0));
    if (snprintf(path, sizeof path, "%s.tmp", output) >= (int)sizeof path)
        return RT_FAIL(RT_ERR_LIMIT, "%s: the name is too long", output);
    if (!in_order)
        qsort(j->places, j->lines, sizeof *j->places, by_offset);
    rt_status status = write_output(j, path);
    if (status == RT_OK && rename(path, output) != 0)
        status = io_failed(output, "replace");
    if (status != RT_OK) {
        unlink(path);
        return status;
    }
    return sync_folder(output);
}

rt_status app_journal_remove(app_journal *j)
{
    return unlink(j->path) == 0 ? sync_folder(j->path) : io_failed(j->path, "remove");
}
