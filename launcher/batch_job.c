// SPDX-License-Identifier: Apache-2.0
#include "launcher/batch.h"
#include "launcher/decoding_options.h"
#include "launcher/model_options.h"
#include "launcher/policy_spec.h"

#include "runtime/base/hash.h"
#include "runtime/io/model_hash.h"

#include <libgen.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

static rt_status name_model(const app_batch_args *args, app_batch_job *out)
{
    char path[PATH_MAX];
    const char *name = args->model_name;
    if (!name && args->dummy >= 0)
        name = app_dummy_choice((size_t)args->dummy);
    if (!name) {
        snprintf(path, sizeof path, "%s", args->model);
        name = basename(path);
        if ((strcmp(name, ".") == 0 || strcmp(name, "..") == 0) && realpath(args->model, path))
            name = basename(path);
    }
    if (snprintf(out->model, sizeof out->model, "%s", name) >= (int)sizeof out->model)
        return RT_FAIL(RT_ERR_LIMIT, "--model-name: longer than %zu bytes", sizeof out->model - 1);
    return RT_OK;
}

rt_status app_batch_job_make(const app_batch_args *args, uint64_t input, app_batch_job *out)
{
    *out = (app_batch_job){.model_hash = RT_HASH_START};
    RT_TRY(name_model(args, out));
    if (args->model)
        RT_TRY(rt_model_hash(args->model, &out->model_hash));
    out->hash = rt_hash(rt_hash(RT_HASH_START, &input, sizeof input), &out->model_hash,
                        sizeof out->model_hash);
    return RT_OK;
}

// How the ranks are grouped is left out: another run may have more of them.
rt_status app_batch_describe(const app_batch_args *args, const char *model, rt_str *out)
{
    const rt_request *r = &args->request;
    const rt_engine_options *e = &args->engine;
    RT_TRY(app_policy_describe(&e->attention, out));
    RT_TRY(rt_str_printf(out,
                         " device=%s precision=%s block-length=%d mask-id=%d commit=%d "
                         "max-tokens=%d strategy=%s steps=%d threshold=%.17g sub-block=%d ",
                         app_device_choice(e->device), app_precision_choice(e->precision),
                         e->block_length, e->mask_id, args->commit, r->max_tokens,
                         app_strategy_choice(r->strategy), r->steps, r->threshold, r->sub_block));
    return rt_str_printf(out,
                         "temperature=%.17g top-k=%d top-p=%.17g seed=%llu dummy=%s model-name=%s",
                         r->temperature, r->top_k, r->top_p, (unsigned long long)r->seed,
                         args->dummy >= 0 ? app_dummy_choice((size_t)args->dummy) : "none", model);
}

// As a shell reads it.
static void print_word(FILE *to, const char *word)
{
    static const char plain[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_=+,./:@%";
    if (*word && !word[strspn(word, plain)]) {
        fprintf(to, " %s", word);
        return;
    }
    fputs(" '", to);
    for (; *word; word++) {
        if (*word == '\'')
            fputs("'\\'", to);
        fputc(*word, to);
    }
    fputc('\'', to);
}

void app_batch_say_how_to_resume(FILE *to, bool alone)
{
    static char words[64 << 10];
    bool resumes = false;
    FILE *file = fopen("/proc/self/cmdline", "re");
    const size_t n = file ? fread(words, 1, sizeof words - 1, file) : 0;
    words[n] = '\0';
    // What started the ranks is not known here.
    fprintf(to, "; to go on%s:", alone ? "" : ", with the same mpirun or srun");
    for (size_t at = 0; at < n; at += strlen(words + at) + 1) {
        print_word(to, words + at);
        resumes |= strcmp(words + at, "--resume") == 0;
    }
    fprintf(to, "%s\n", resumes ? "" : " --resume");
    if (file)
        fclose(file);
}
