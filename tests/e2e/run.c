// SPDX-License-Identifier: Apache-2.0
// A child and all it starts carry a marker in their environment: that is how
// processes that stay behind are found, whatever group or session they moved to.
#include "tests/e2e/run.h"

#include "runtime/base/clock.h"
#include "runtime/base/file.h"
#include "runtime/base/mem.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PATH_BYTES = 1024, PATH_SLOTS = 8, FILE_MAX = 256 << 20 };
static const double LEAVE = 5.0; // seconds for ranks to go after mpirun went
#define MARKER "LOSA_E2E_RUN"

// ---- places ------------------------------------------------------------------------

static char *next_path(void)
{
    static char slots[PATH_SLOTS][PATH_BYTES];
    static int next;
    next = (next + 1) % PATH_SLOTS;
    return slots[next];
}

static const char *join(const char *folder, const char *fmt, va_list list)
{
    char *path = next_path();
    const int used = snprintf(path, PATH_BYTES, "%s/", folder);
    const int more = vsnprintf(path + used, (size_t)(PATH_BYTES - used), fmt, list);
    assert_in_range(used + more, 1, PATH_BYTES - 1);
    return path;
}

const char *run_source(const char *fmt, ...)
{
    va_list list;
    va_start(list, fmt);
    const char *path = join(getenv("LOSA_SOURCE"), fmt, list);
    va_end(list);
    return path;
}

static char temp_dir[] = "/tmp/losa-e2e-XXXXXX";
static bool temp_made;

static int remove_entry(const char *path, const struct stat *info, int type, struct FTW *walk)
{
    (void)info;
    (void)type;
    (void)walk;
    return remove(path);
}

static void remove_temp(void)
{
    nftw(temp_dir, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

const char *run_temp(const char *fmt, ...)
{
    if (!temp_made) {
        assert_non_null(mkdtemp(temp_dir));
        temp_made = true;
        atexit(remove_temp);
    }
    va_list list;
    va_start(list, fmt);
    const char *path = join(temp_dir, fmt, list);
    va_end(list);
    return path;
}

void run_write(const char *path, const void *bytes, size_t len)
{
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(bytes, 1, len, file) != len || fclose(file) != 0)
        fail_msg("%s: cannot write: %s", path, strerror(errno));
}

char *run_read(const char *path, size_t *len)
{
    char *text;
    if (rt_file_read(path, FILE_MAX, &text, len) != RT_OK)
        fail_msg("%s", rt_last_error());
    char *copy = malloc(*len + 1); // callers use free()
    assert_non_null(copy);
    memcpy(copy, text, *len + 1);
    rt_free(text);
    return copy;
}

// ---- a model -----------------------------------------------------------------------

// The header's entry of a bf16 tensor behind `end` bytes, which moves on; cols 0: a vector.
static size_t put_tensor(char *out, size_t size, const char *name, int rows, int cols, long *end)
{
    const long begin = *end;
    char second[16] = "";
    if (cols)
        snprintf(second, sizeof second, ",%d", cols);
    *end += 2L * rows * (cols ? cols : 1);
    const int used = snprintf(out, size,
                              "%c\"model.%s.weight\":{\"dtype\":\"BF16\",\"shape\":[%d%s],"
                              "\"data_offsets\":[%ld,%ld]}",
                              begin ? ',' : '{', name, rows, second, begin, *end);
    assert_in_range(used, 1, size - 1);
    return (size_t)used;
}

static void write_zeros(const char *path, const run_shape *shape)
{
    enum { WIDTH = 8, PREFIX = 8 };
    const int all = shape->heads * shape->head_dim;
    const struct {
        const char *name;
        int rows, cols;
    } tensors[] = {
        {"embed_tokens", shape->vocab, WIDTH},
        {"layers.0.input_layernorm", WIDTH, 0},
        {"layers.0.self_attn.q_proj", all, WIDTH},
        {"layers.0.self_attn.k_proj", all, WIDTH},
        {"layers.0.self_attn.v_proj", all, WIDTH},
        {"layers.0.self_attn.o_proj", WIDTH, all},
        {"layers.0.self_attn.q_norm", shape->head_dim, 0},
        {"layers.0.self_attn.k_norm", shape->head_dim, 0},
        {"layers.0.post_attention_layernorm", WIDTH, 0},
        {"layers.0.mlp.gate_proj", WIDTH, WIDTH},
        {"layers.0.mlp.up_proj", WIDTH, WIDTH},
        {"layers.0.mlp.down_proj", WIDTH, WIDTH},
        {"norm", WIDTH, 0},
    };
    char file[PREFIX + 4096] = {0};
    uint64_t used = 0;
    long end = 0;
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++)
        used += put_tensor(file + PREFIX + used, sizeof file - PREFIX - used, tensors[i].name,
                           tensors[i].rows, tensors[i].cols, &end);
    file[PREFIX + used++] = '}';
    memcpy(file, &used, PREFIX);
    run_write(path, file, PREFIX + used);
    assert_int_equal(truncate(path, PREFIX + (long)used + end), 0);
}

void run_zero_model(const char *name, const run_shape *shape, const char *more)
{
    char config[1024];
    const int used =
        snprintf(config, sizeof config,
                 "{\"architectures\": [\"SDARForCausalLM\"], \"vocab_size\": %d,"
                 " \"hidden_size\": 8, \"intermediate_size\": 8, \"num_hidden_layers\": 1,"
                 " \"num_attention_heads\": %d, \"num_key_value_heads\": %d, \"head_dim\": %d,"
                 " \"tie_word_embeddings\": true, %s}",
                 shape->vocab, shape->heads, shape->heads, shape->head_dim, more);
    assert_in_range(used, 1, sizeof config - 1);
    assert_int_equal(mkdir(run_temp("%s", name), 0777), 0);
    run_write(run_temp("%s/config.json", name), config, (size_t)used);
    write_zeros(run_temp("%s/model.safetensors", name), shape);
}

int run_ready(void)
{
    const char *binary = getenv("LOSA_BINARY"), *source = getenv("LOSA_SOURCE");
    if (!source || !binary || access(binary, X_OK) != 0) {
        fprintf(stderr, "skipped: LOSA_BINARY (%s) is not a program, or LOSA_SOURCE is not set\n",
                binary && *binary ? binary : "not set");
        return RUN_SKIP;
    }
    // ctest sets these; a test that is started by hand needs them too.
    setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 0);
    setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 0);
    setenv("OMPI_MCA_rmaps_base_oversubscribe", "1", 0);
    setenv("OMPI_MCA_hwloc_base_binding_policy", "none", 0);
    setenv("OMPI_MCA_btl_vader_single_copy_mechanism", "none", 0);
    return 0;
}

// ---- arguments -----------------------------------------------------------------------

void run_arg(run_args *args, const char *fmt, ...)
{
    assert_in_range(args->count, 0, RUN_MAX_ARGS - 1);
    va_list list;
    va_start(list, fmt);
    if (vasprintf(&args->word[args->count], fmt, list) < 0)
        fail_msg("no memory");
    va_end(list);
    args->word[++args->count] = NULL;
}

void run_args_free(run_args *args)
{
    for (int i = 0; i < args->count; i++)
        free(args->word[i]);
    *args = (run_args){0};
}

// ---- processes -----------------------------------------------------------------------

// Whether the environment of a process has the word NAME=VALUE.
static bool is_marked(const char *pid, const char *marker)
{
    char path[64], bytes[32768];
    snprintf(path, sizeof path, "/proc/%.20s/environ", pid);
    FILE *file = fopen(path, "rb");
    if (!file)
        return false;
    const size_t n = fread(bytes, 1, sizeof bytes, file);
    fclose(file);
    return n > 0 && memmem(bytes, n, marker, strlen(marker) + 1) != NULL;
}

// Counts the processes that carry the marker, and kills them when asked.
static int marked(const char *marker, bool end_them)
{
    int count = 0;
    DIR *proc = opendir("/proc");
    assert_non_null(proc);
    for (struct dirent *entry = readdir(proc); entry; entry = readdir(proc)) {
        const pid_t pid = (pid_t)strtol(entry->d_name, NULL, 10);
        if (pid <= 1 || pid == getpid() || !is_marked(entry->d_name, marker))
            continue;
        count++;
        if (end_them)
            kill(pid, SIGKILL);
    }
    closedir(proc);
    return count;
}

pid_t run_rank(const run_live *live, int rank)
{
    char word[64];
    snprintf(word, sizeof word, "OMPI_COMM_WORLD_RANK=%d", rank);
    pid_t found = -1;
    DIR *proc = opendir("/proc");
    assert_non_null(proc);
    for (struct dirent *entry = readdir(proc); entry; entry = readdir(proc))
        if (strtol(entry->d_name, NULL, 10) > 1 && is_marked(entry->d_name, live->marker) &&
            is_marked(entry->d_name, word))
            found = (pid_t)strtol(entry->d_name, NULL, 10);
    closedir(proc);
    return found;
}

static int capture_file(void)
{
    char path[] = "/tmp/losa-e2e-out-XXXXXX";
    const int fd = mkstemp(path);
    assert_true(fd >= 0);
    unlink(path);
    return fd;
}

static char *captured(int fd, size_t *len)
{
    const off_t size = lseek(fd, 0, SEEK_END);
    assert_true(size >= 0);
    *len = (size_t)size;
    char *text = calloc(*len + 1, 1);
    assert_non_null(text);
    for (size_t at = 0; at < *len;) {
        const ssize_t n = pread(fd, text + at, *len - at, (off_t)at);
        assert_true(n > 0);
        at += (size_t)n;
    }
    close(fd);
    return text;
}

static int open_input(const run_job *job)
{
    int ends[2];
    if (!job->hold_input)
        return open(job->input ? job->input : "/dev/null", O_RDONLY);
    return pipe(ends) == 0 ? ends[0] : -1; // the job holds the other end itself
}

static void become(const run_job *job, const char *marker, int out, int err)
{
    const int in = open_input(job);
    if (in < 0 || dup2(in, 0) < 0 || dup2(out, 1) < 0 || dup2(err, 2) < 0)
        _exit(126);
    char ranks[16], *argv[RUN_MAX_ARGS + 8];
    int n = 0;
    snprintf(ranks, sizeof ranks, "%d", job->ranks);
    if (job->ranks) {
        argv[n++] = (char *)"mpirun";
        argv[n++] = (char *)"-n";
        argv[n++] = ranks;
    }
    argv[n++] = getenv("LOSA_BINARY");
    for (int i = 0; i < job->args->count; i++)
        argv[n++] = job->args->word[i];
    argv[n] = NULL;
    char variable[64];
    snprintf(variable, sizeof variable, "%s", marker);
    putenv(variable);
    setpgid(0, 0);
    execvp(argv[0], argv);
    _exit(127);
}

static int wait_for(const run_live *live, const run_job *job, bool *timed_out)
{
    const pid_t child = live->child;
    const double start = rt_clock_now();
    bool interrupted = false;
    int status;
    while (waitpid(child, &status, WNOHANG) == 0) {
        const double spent = rt_clock_now() - start;
        if (job->interrupt > 0 && spent > job->interrupt && !interrupted) {
            kill(child, SIGINT);
            interrupted = true;
        }
        if (spent > job->limit && !*timed_out) {
            *timed_out = true;
            kill(child, SIGKILL);
            marked(live->marker, true);
        }
        if (job->during)
            job->during(job->ctx, live);
        rt_clock_sleep(0.005);
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static int count_left(const char *marker)
{
    const double end = rt_clock_now() + LEAVE;
    while (marked(marker, false) > 0 && rt_clock_now() < end)
        rt_clock_sleep(0.02);
    return marked(marker, true);
}

// "losa: ..." or a line of the log, "12:34:56.789 ...".
static bool is_ours(const char *line)
{
    return strncmp(line, "losa", 4) == 0 || (strspn(line, "0123456789") == 2 && line[2] == ':');
}

// Removes what mpirun itself says: blank lines, paragraphs between dashed lines (into
// which a line of ours may fall), and lines that begin with [host:pid]. Returns the
// lines that are left.
static int drop_mpirun_words(char *text)
{
    int lines = 0;
    bool inside = false;
    char *to = text;
    for (char *at = text; *at;) {
        const char *end = strchrnul(at, '\n');
        const size_t len = (size_t)(end - at) + (*end ? 1 : 0);
        const bool rule = strncmp(at, "----------", 10) == 0;
        const bool blank = *at == '\n';
        inside = rule ? !inside : inside;
        if (is_ours(at) || (!rule && !inside && !blank && *at != '[')) {
            memmove(to, at, len);
            to += len;
            lines++;
        }
        at += len;
    }
    *to = '\0';
    return lines;
}

run_result run_losa(const run_job *job)
{
    static int serial;
    char marker[64];
    snprintf(marker, sizeof marker, MARKER "=%ld.%d", (long)getpid(), serial++);
    const int out = capture_file(), err = capture_file();
    run_result result = {0};
    const double start = rt_clock_now();
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0)
        become(job, marker, out, err);
    const run_live live = {child, marker, out};
    result.status = wait_for(&live, job, &result.timed_out);
    result.seconds = rt_clock_now() - start;
    result.left = count_left(marker);
    size_t err_len;
    result.out = captured(out, &result.out_len);
    result.err = captured(err, &err_len);
    result.err_lines = drop_mpirun_words(result.err);
    return result;
}

void run_result_free(run_result *result)
{
    free(result->out);
    free(result->err);
    *result = (run_result){0};
}

run_result run_ok(int ranks, const run_args *args, double limit)
{
    const run_job job = {.ranks = ranks, .args = args, .limit = limit};
    run_result result = run_losa(&job);
    if (result.status == 0 && !result.timed_out && result.left == 0)
        return result;
    print_error("on %d ranks: losa", ranks);
    for (int i = 0; i < args->count; i++)
        print_error(" %s", args->word[i]);
    fail_msg("\nstatus %d%s after %.1f s, %d processes left; standard error:\n%s", result.status,
             result.timed_out ? " (timed out)" : "", result.seconds, result.left, result.err);
    return result;
}

json_t *run_json(int ranks, const run_args *args, double limit)
{
    run_result result = run_ok(ranks, args, limit);
    json_error_t error;
    json_t *object = json_loadb(result.out, result.out_len, JSON_REJECT_DUPLICATES, &error);
    if (!json_is_object(object))
        fail_msg("standard output is not one JSON object: %s\n%s", error.text, result.out);
    run_result_free(&result);
    return object;
}

// ---- JSON ----------------------------------------------------------------------------

json_t *run_load(const char *path)
{
    json_error_t error;
    json_t *value = json_load_file(path, 0, &error);
    if (!value)
        fail_msg("%s: line %d: %s", path, error.line, error.text);
    return value;
}

json_t *run_load_lines(const char *path)
{
    size_t len;
    char *text = run_read(path, &len);
    json_t *all = json_array();
    json_error_t error;
    char *rest = NULL;
    for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        json_t *value = json_loads(line, 0, &error);
        if (!value)
            fail_msg("%s: entry %zu: %s", path, json_array_size(all), error.text);
        json_array_append_new(all, value);
    }
    free(text);
    return all;
}

const json_t *run_get(const json_t *object, const char *path)
{
    char key[64];
    const json_t *value = object;
    for (const char *at = path; value && *at;) {
        const size_t len = strcspn(at, ".");
        snprintf(key, sizeof key, "%.*s", (int)len, at);
        value = json_object_get(value, key);
        at += len + (at[len] == '.');
    }
    if (!value)
        fail_msg("no \"%s\" in the object", path);
    return value;
}

double run_number(const json_t *object, const char *path)
{
    const json_t *value = run_get(object, path);
    if (!json_is_number(value))
        fail_msg("\"%s\" is not a number", path);
    return json_number_value(value);
}

const char *run_text(const json_t *object, const char *path)
{
    const json_t *value = run_get(object, path);
    if (!json_is_string(value))
        fail_msg("\"%s\" is not a string", path);
    return json_string_value(value);
}
