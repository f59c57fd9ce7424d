// SPDX-License-Identifier: Apache-2.0
// The finished requests of losa batch, on disk before they count. After a crash, at any
// moment, what is in the journal is done and nothing else is.
//
// A text file. The first line is JSON and says what the results are of; every other one is a
// result: the input line's number from 0, a hash of number and text, and the line of output.
// A line that is not whole, or whose hash is another, counts as not there.
#ifndef LAUNCHER_BATCH_JOURNAL_H
#define LAUNCHER_BATCH_JOURNAL_H

#include "runtime/base/status.h"
#include "runtime/base/str.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// What results depend on.
typedef struct app_job {
    uint64_t model, input; // hashes
    const char *options;   // text
    uint64_t lines;        // of the input
} app_job;

typedef struct app_journal app_journal;

// Makes the file, or takes over what an earlier run left in it: if it finished anything, that
// run must have been of the same job, and `resume` is to be true. One process at a time.
rt_status app_journal_open(const char *path, const app_job *job, bool resume, app_journal **out);
void app_journal_close(app_journal *journal);

bool app_journal_has(const app_journal *journal, uint64_t line);
// Takes a line of output, without its end. A line that is there already is left as it is.
rt_status app_journal_add(app_journal *journal, uint64_t line, const char *text, size_t len);
// Writes what was added, which then outlives this process, and puts it on the disk, where it
// outlives a loss of power, when the oldest of it has waited for `age` seconds.
rt_status app_journal_sync(app_journal *journal, double age);
uint64_t app_journal_count(const app_journal *journal);  // results that are on the disk
bool app_journal_is_empty(const app_journal *journal);   // never had one
uint64_t app_journal_errors(const app_journal *journal); // records of errors, of all runs

// Syncs, then replaces `output` in one step by the results: in the order of the input, or
// that of their completion. No result can be added after it.
rt_status app_journal_deliver(app_journal *journal, const char *output, bool in_order);
// Where nothing is left to resume: after app_journal_deliver, or without a result.
rt_status app_journal_remove(app_journal *journal);

#endif
