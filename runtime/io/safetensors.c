// SPDX-License-Identifier: Apache-2.0
// Checkpoint folders. A checkpoint owns its shards (path and mapping) and one
// table of tensors sorted by name, which serves look-ups (binary search) and
// listing.
#include "runtime/io/safetensors_int.h"

#include "runtime/base/json.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"
#include "runtime/base/str.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_INDEX = 256 << 20 };

// ---- the table -------------------------------------------------------------

static int by_name(const void *a, const void *b)
{
    return strcmp(((const rt_st_entry *)a)->name, ((const rt_st_entry *)b)->name);
}

static rt_status sort_entries(rt_checkpoint *ckpt)
{
    if (ckpt->count == 0)
        return RT_FAIL(RT_ERR_FORMAT, "%s: the checkpoint holds no tensors", ckpt->dir);
    qsort(ckpt->entries, ckpt->count, sizeof *ckpt->entries, by_name);
    return RT_OK;
}

static const rt_st_entry *find_entry(const rt_checkpoint *ckpt, const char *name)
{
    // bsearch compares names only; the key is never written.
    rt_st_entry key = {.name = (char *)(uintptr_t)name};
    return bsearch(&key, ckpt->entries, ckpt->count, sizeof key, by_name);
}

// ---- sharded checkpoints ---------------------------------------------------

static bool is_plain_name(const char *name)
{
    return name[0] != '\0' && !strchr(name, '/') && strcmp(name, ".") != 0 &&
           strcmp(name, "..") != 0;
}

// The distinct shards of the index, as the keys of *names in order of appearance.
static rt_status collect_shards(json_t *weight_map, const char *index, json_t *names)
{
    const char *tensor;
    json_t *file;
    json_object_foreach(weight_map, tensor, file)
    {
        const char *name = json_string_value(file);
        if (!name || strlen(name) != json_string_length(file) || !is_plain_name(name))
            return RT_FAIL(RT_ERR_FORMAT,
                           "%s: the shard of tensor '%s' is not a file name inside the folder",
                           index, tensor);
        if (json_object_set_new(names, name, json_true()) != 0)
            return RT_FAIL(RT_ERR_NOMEM, "out of memory: %s", index);
    }
    return RT_OK;
}

static rt_status open_shards(rt_checkpoint *ckpt, json_t *names, const char *index)
{
    const char *name;
    json_t *unused;
    char path[PATH_MAX];
    RT_TRY(RT_ALLOC(ckpt->shards, json_object_size(names), "shards"));
    json_object_foreach(names, name, unused)
    {
        RT_TRY(rt_path_join(ckpt->dir, name, path, sizeof path));
        if (!rt_file_exists(path))
            return RT_FAIL(RT_ERR_IO, "%s: named by %s, is missing", path, index);
        RT_TRY(rt_st_read_file(ckpt, path));
    }
    return RT_OK;
}

static const char *file_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

// Of a tensor that several shards hold, the one counts that the index names.
static void drop_copies(rt_checkpoint *ckpt, const json_t *weight_map)
{
    size_t kept = 0;
    for (size_t i = 0; i < ckpt->count; i++) {
        const rt_st_entry e = ckpt->entries[i];
        const char *named = json_string_value(json_object_get(weight_map, e.name));
        if (!named || strcmp(file_name(e.shard->path), named) == 0)
            ckpt->entries[kept++] = e;
        else
            rt_free(e.name);
    }
    ckpt->count = kept;
}

static rt_status check_unique(const rt_checkpoint *ckpt)
{
    const rt_st_entry *e = ckpt->entries;
    for (size_t i = 1; i < ckpt->count; i++)
        if (strcmp(e[i - 1].name, e[i].name) == 0)
            return RT_FAIL(RT_ERR_FORMAT, "%s: tensor '%s' is also in %s, and the index has none",
                           e[i].shard->path, e[i].name, e[i - 1].shard->path);
    return RT_OK;
}

static rt_status check_index(const rt_checkpoint *ckpt, json_t *weight_map, const char *index)
{
    const char *tensor;
    json_t *file;
    json_object_foreach(weight_map, tensor, file)
    {
        if (!find_entry(ckpt, tensor))
            return RT_FAIL(RT_ERR_FORMAT, "%s: tensor '%s' is not in the shard it names, '%s'",
                           index, tensor, json_string_value(file));
    }
    if (ckpt->count > json_object_size(weight_map)) // harmless, and other readers take it
        rt_log(RT_LOG_DEBUG, "%s: %zu tensors of the shards are not in the index", index,
               ckpt->count - json_object_size(weight_map));
    return RT_OK;
}

static rt_status open_indexed(rt_checkpoint *ckpt, const char *index, json_t *root, json_t *names)
{
    json_t *weight_map = json_object_get(root, "weight_map");
    if (!json_is_object(weight_map) || json_object_size(weight_map) == 0)
        return RT_FAIL(RT_ERR_FORMAT, "%s: 'weight_map' is missing or empty", index);
    RT_TRY(collect_shards(weight_map, index, names));
    RT_TRY(open_shards(ckpt, names, index));
    RT_TRY(sort_entries(ckpt));
    drop_copies(ckpt, weight_map);
    RT_TRY(check_unique(ckpt));
    return check_index(ckpt, weight_map, index);
}

static rt_status open_sharded(rt_checkpoint *ckpt, const char *index)
{
    json_t *root;
    RT_TRY(rt_json_load(index, MAX_INDEX, &root));
    json_t *names = json_object();
    rt_status status = names ? open_indexed(ckpt, index, root, names)
                             : RT_FAIL(RT_ERR_NOMEM, "out of memory: %s", index);
    json_decref(names);
    json_decref(root);
    return status;
}

static rt_status open_single(rt_checkpoint *ckpt, const char *path)
{
    RT_TRY(RT_ALLOC(ckpt->shards, 1, "shards"));
    RT_TRY(rt_st_read_file(ckpt, path));
    return sort_entries(ckpt);
}

// As transformers: the single file first.
static rt_status open_folder(rt_checkpoint *ckpt)
{
    char path[PATH_MAX];
    RT_TRY(rt_path_join(ckpt->dir, "model.safetensors", path, sizeof path));
    if (rt_file_exists(path))
        return open_single(ckpt, path);
    RT_TRY(rt_path_join(ckpt->dir, "model.safetensors.index.json", path, sizeof path));
    if (rt_file_exists(path))
        return open_sharded(ckpt, path);
    return RT_FAIL(RT_ERR_IO, "%s: holds no model.safetensors and no model.safetensors.index.json",
                   ckpt->dir);
}

static void fill_tensor(const rt_st_entry *e, rt_tensor *out)
{
    *out = (rt_tensor){.name = e->name,
                       .file = e->shard->path,
                       .dtype = e->type->dtype,
                       .dims = e->dims,
                       .elements = e->elements,
                       .data = e->data,
                       .bytes = e->end - e->begin};
    memcpy(out->shape, e->shape, sizeof out->shape);
}

static rt_status shape_text(const int64_t *shape, size_t dims, rt_str *out)
{
    RT_TRY(rt_str_puts(out, "["));
    for (size_t i = 0; i < dims && i < RT_TENSOR_MAX_DIMS; i++)
        RT_TRY(rt_str_printf(out, "%s%lld", i ? ", " : "", (long long)shape[i]));
    return rt_str_puts(out, dims > RT_TENSOR_MAX_DIMS ? ", ...]" : "]");
}

static rt_status wrong_shape(const rt_st_entry *e, const int64_t *wanted, size_t dims)
{
    rt_str has = {0}, wants = {0};
    rt_status status = shape_text(e->shape, e->dims, &has);
    if (status == RT_OK)
        status = shape_text(wanted, dims, &wants);
    if (status == RT_OK)
        status = RT_FAIL(RT_ERR_FORMAT, "%s: tensor '%s' has shape %s, expected %s", e->shard->path,
                         e->name, has.data, wants.data);
    rt_str_free(&has);
    rt_str_free(&wants);
    return status;
}

// ---- public ----------------------------------------------------------------

rt_status rt_checkpoint_open(const char *model_dir, rt_checkpoint **out)
{
    rt_status status;
    rt_checkpoint *ckpt;
    RT_TRY(RT_ALLOC(ckpt, 1, "checkpoint"));
    ckpt->dir = rt_mem_strdup(model_dir, "checkpoint path");
    status = ckpt->dir ? open_folder(ckpt) : RT_ERR_NOMEM;
    if (status != RT_OK) {
        rt_checkpoint_close(ckpt);
        return status;
    }
    *out = ckpt;
    return RT_OK;
}

void rt_checkpoint_close(rt_checkpoint *ckpt)
{
    if (!ckpt)
        return;
    for (size_t i = 0; i < ckpt->count; i++)
        rt_free(ckpt->entries[i].name);
    for (size_t i = 0; i < ckpt->shard_count; i++) {
        rt_map_close(&ckpt->shards[i].map);
        rt_free(ckpt->shards[i].path);
    }
    rt_free(ckpt->entries);
    rt_free(ckpt->shards);
    rt_free(ckpt->dir);
    rt_free(ckpt);
}

size_t rt_checkpoint_count(const rt_checkpoint *ckpt)
{
    return ckpt->count;
}

size_t rt_checkpoint_bytes(const rt_checkpoint *ckpt)
{
    size_t bytes = 0;
    for (size_t i = 0; i < ckpt->count; i++)
        bytes += ckpt->entries[i].end - ckpt->entries[i].begin;
    return bytes;
}

bool rt_checkpoint_has(const rt_checkpoint *ckpt, const char *name)
{
    return find_entry(ckpt, name) != NULL;
}

void rt_checkpoint_at(const rt_checkpoint *ckpt, size_t i, rt_tensor *out, const char **dtype_name)
{
    fill_tensor(&ckpt->entries[i], out);
    *dtype_name = ckpt->entries[i].dtype;
}

rt_status rt_checkpoint_find(const rt_checkpoint *ckpt, const char *name, int64_t rows,
                             int64_t cols, rt_tensor *out)
{
    RT_CHECK_ARG(rows > 0 && cols >= 0);
    const int64_t wanted[2] = {rows, cols};
    const size_t dims = cols == 0 ? 1 : 2;
    const rt_st_entry *e = find_entry(ckpt, name);
    if (!e)
        return RT_FAIL(RT_ERR_FORMAT, "%s: tensor '%s' is missing", ckpt->dir, name);
    if (e->dims != dims || memcmp(e->shape, wanted, dims * sizeof *wanted) != 0)
        return wrong_shape(e, wanted, dims);
    if (!e->type->supported)
        return RT_FAIL(RT_ERR_UNSUPPORTED,
                       "%s: tensor '%s' has type %s; F32, BF16 and F16 are supported",
                       e->shard->path, e->name, e->dtype);
    fill_tensor(e, out);
    return RT_OK;
}
