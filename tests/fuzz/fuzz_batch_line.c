// SPDX-License-Identifier: Apache-2.0
// The input of a batch: the lines cover the file; of a line that is accepted, the request
// lies within it, and whatever it is there is a record that answers it.
#include "tests/fuzz/scratch.h"

#include "launcher/batch_input.h"
#include "launcher/batch_line.h"
#include "launcher/batch_record.h"

#include <math.h>

enum { LIMIT = 512 };

static void check_request(const app_batch_line *line)
{
    const rt_request defaults = rt_request_default();
    app_batch_request made;
    if (app_batch_request_make(line, &defaults, "m", &made) == RT_OK) {
        const rt_request *r = &made.request;
        must((r->prompt != NULL) + (r->prompt_ids != NULL) + (r->turns != NULL) == 1);
        must(r->max_tokens >= 1 && r->temperature <= 100 && r->top_p <= 1);
        for (size_t i = 0; i < r->stops_len; i++)
            must(r->stops[i] != NULL);
        for (size_t i = 0; i < r->turns_len; i++)
            must(r->turns[i].role && r->turns[i].text);
    }
    app_batch_request_free(&made);
}

static void check_line(const app_line *in)
{
    app_batch_line line;
    rt_str record = {0};
    const rt_status status = app_batch_line_open(in->text, in->len, &line);
    if (status == RT_OK) {
        must(isfinite(app_batch_line_need(&line, 1)) && app_batch_line_need(&line, 1) >= 0);
        (void)app_batch_line_prefix(&line);
        check_request(&line);
    }
    const app_batch_key key = {1, in->number, line.custom_id, "m", false, false};
    must(app_batch_record_error(&key, 400, status == RT_OK ? "" : rt_last_error(), &record) ==
         RT_OK);
    must(!memchr(record.data, '\n', record.len));
    rt_str_free(&record);
    app_batch_line_close(&line);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    app_input *in;
    app_line line;
    bool more;
    uint64_t requests = 0;
    const char *path = scratch_write("in.jsonl", data, size);
    must(app_input_open(path, LIMIT, &in) == RT_OK);
    while (app_input_next(in, &line, &more) == RT_OK && more) {
        requests++;
        must(line.offset + line.len + line.ended <= size && (line.text || line.len > LIMIT));
        must(!line.text || memcmp(line.text, data + line.offset, line.len) == 0);
        if (line.text)
            check_line(&line);
    }
    must(requests == app_input_requests(in));
    app_input_close(in);
    return 0;
}
