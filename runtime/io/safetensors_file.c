// SPDX-License-Identifier: Apache-2.0
// One safetensors file: 8 bytes of header length (little endian), a JSON header,
// then the tensors' bytes. Sorting by offset shows gaps and overlaps.
#include "runtime/io/safetensors_int.h"

#include "runtime/base/json.h"
#include "runtime/base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PREFIX = 8, MAX_HEADER = 100000000 };

// Every type of the format; those without a kern_dtype are only listed.
static const rt_st_type types[] = {
    {"F32", 32, true, KERN_F32},    {"BF16", 16, true, KERN_BF16},  {"F16", 16, true, KERN_F16},
    {.name = "F64", .bits = 64},    {.name = "I64", .bits = 64},    {.name = "U64", .bits = 64},
    {.name = "C64", .bits = 64},    {.name = "I32", .bits = 32},    {.name = "U32", .bits = 32},
    {.name = "I16", .bits = 16},    {.name = "U16", .bits = 16},    {.name = "I8", .bits = 8},
    {.name = "U8", .bits = 8},      {.name = "BOOL", .bits = 8},    {.name = "F8_E4M3", .bits = 8},
    {.name = "F8_E5M2", .bits = 8}, {.name = "F8_E8M0", .bits = 8}, {.name = "F6_E2M3", .bits = 6},
    {.name = "F6_E3M2", .bits = 6}, {.name = "F4", .bits = 4},
};

static const rt_st_type *find_type(const char *name)
{
    static const rt_st_type unknown = {.name = "unknown"};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        if (strcmp(types[i].name, name) == 0)
            return &types[i];
    }
    return &unknown;
}

// ---- one header entry ------------------------------------------------------

static rt_status count_elements(const json_t *shape, rt_st_entry *e)
{
    size_t i;
    json_t *extent;
    bool overflow = false, empty = false;
    e->elements = 1;
    json_array_foreach(shape, i, extent) empty |= json_integer_value(extent) == 0;
    if (empty)
        e->elements = 0;
    json_array_foreach(shape, i, extent)
    {
        if (!empty)
            overflow |= __builtin_mul_overflow(e->elements, (size_t)json_integer_value(extent),
                                               &e->elements);
    }
    if (overflow)
        return RT_FAIL(RT_ERR_FORMAT, "%s: tensor '%s': shape overflows", e->shard->path, e->name);
    return RT_OK;
}

static rt_status read_shape(const json_t *info, rt_st_entry *e)
{
    const json_t *shape = json_object_get(info, "shape");
    const char *file = e->shard->path;
    if (!json_is_array(shape))
        return RT_FAIL(RT_ERR_FORMAT, "%s: tensor '%s': 'shape' is not an array", file, e->name);
    e->dims = json_array_size(shape);
    for (size_t i = 0; i < e->dims; i++) {
        const json_t *extent = json_array_get(shape, i);
        if (!json_is_integer(extent) || json_integer_value(extent) < 0)
            return RT_FAIL(RT_ERR_FORMAT,
                           "%s: tensor '%s': 'shape' holds something else than sizes", file,
                           e->name);
        if (i < RT_TENSOR_MAX_DIMS)
            e->shape[i] = json_integer_value(extent);
    }
    return count_elements(shape, e);
}

static rt_status read_offsets(const json_t *info, rt_st_entry *e)
{
    const json_t *offsets = json_object_get(info, "data_offsets");
    const json_t *begin = json_array_get(offsets, 0), *end = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(begin) || !json_is_integer(end) ||
        json_integer_value(begin) < 0 || json_integer_value(end) < json_integer_value(begin))
        return RT_FAIL(RT_ERR_FORMAT,
                       "%s: tensor '%s': 'data_offsets' is not [begin, end] with 0 <= begin <= end",
                       e->shard->path, e->name);
    e->begin = (size_t)json_integer_value(begin);
    e->end = (size_t)json_integer_value(end);
    return RT_OK;
}

static rt_status check_bytes(const rt_st_entry *e)
{
    const char *file = e->shard->path;
    size_t bits;
    if (e->type->bits == 0) // how long it is nobody knows
        return RT_OK;
    if (__builtin_mul_overflow(e->elements, e->type->bits, &bits))
        return RT_FAIL(RT_ERR_FORMAT, "%s: tensor '%s': shape overflows", file, e->name);
    if (bits % 8 != 0 || bits / 8 != e->end - e->begin)
        return RT_FAIL(RT_ERR_FORMAT,
                       "%s: tensor '%s': shape and type %s make %zu bits, data_offsets %zu bytes",
                       file, e->name, e->type->name, bits, e->end - e->begin);
    return RT_OK;
}

static rt_status read_entry(const json_t *info, rt_st_entry *e)
{
    const char *type = NULL;
    const char *file = e->shard->path;
    if (!json_is_object(info))
        return RT_FAIL(RT_ERR_FORMAT, "%s: tensor '%s' is not an object", file, e->name);
    type = json_string_value(json_object_get(info, "dtype"));
    if (!type)
        return RT_FAIL(RT_ERR_FORMAT, "%s: tensor '%s': 'dtype' is not a string", file, e->name);
    e->type = find_type(type);
    snprintf(e->dtype, sizeof e->dtype, "%s", type);
    RT_TRY(read_shape(info, e));
    RT_TRY(read_offsets(info, e));
    return check_bytes(e);
}

// ---- one shard -------------------------------------------------------------

static int by_offset(const void *a, const void *b)
{
    const rt_st_entry *x = a, *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    if (x->end != y->end)
        return x->end < y->end ? -1 : 1;
    return strcmp(x->name, y->name);
}

// The tensors of a shard tile its data part.
static rt_status place_entries(const rt_st_shard *s, size_t header_end, rt_st_entry *entries,
                               size_t n)
{
    size_t data_len = s->map.len - header_end, at = 0;
    if (n > 1)
        qsort(entries, n, sizeof *entries, by_offset);
    for (size_t i = 0; i < n; i++) {
        rt_st_entry *e = &entries[i];
        if (e->begin != at)
            return RT_FAIL(RT_ERR_FORMAT,
                           "%s: tensor '%s' begins at %zu, the one before ends at %zu", s->path,
                           e->name, e->begin, at);
        if (e->end > data_len)
            return RT_FAIL(RT_ERR_FORMAT,
                           "%s: tensor '%s' ends at %zu, the file's data at %zu (truncated?)",
                           s->path, e->name, e->end, data_len);
        e->data = s->map.data + header_end + e->begin;
        at = e->end;
    }
    if (at != data_len)
        return RT_FAIL(RT_ERR_FORMAT, "%s: %zu bytes after the last tensor", s->path,
                       data_len - at);
    return RT_OK;
}

static rt_status check_metadata(const json_t *metadata, const char *file)
{
    const char *key;
    json_t *value;
    if (!json_is_object(metadata))
        return RT_FAIL(RT_ERR_FORMAT, "%s: '__metadata__' is not an object", file);
    json_object_foreach((json_t *)(uintptr_t)metadata, key, value)
    {
        if (!json_is_string(value))
            return RT_FAIL(RT_ERR_FORMAT, "%s: '__metadata__': '%s' is not a string", file, key);
    }
    return RT_OK;
}

static rt_status reserve_entries(rt_checkpoint *ckpt, size_t more)
{
    size_t capacity = ckpt->count + more;
    if (capacity <= ckpt->capacity)
        return RT_OK;
    rt_st_entry *grown =
        rt_mem_grow(ckpt->entries, ckpt->count, capacity, sizeof *grown, "tensor table");
    if (!grown)
        return RT_ERR_NOMEM;
    ckpt->entries = grown;
    ckpt->capacity = capacity;
    return RT_OK;
}

static rt_status read_entries(rt_checkpoint *ckpt, const rt_st_shard *s, json_t *header)
{
    const char *name;
    json_t *info;
    RT_TRY(reserve_entries(ckpt, json_object_size(header)));
    json_object_foreach(header, name, info)
    {
        if (strcmp(name, "__metadata__") == 0) {
            RT_TRY(check_metadata(info, s->path));
            continue;
        }
        rt_st_entry *e = &ckpt->entries[ckpt->count];
        *e = (rt_st_entry){.shard = s, .name = rt_mem_strdup(name, "tensor name")};
        if (!e->name)
            return RT_ERR_NOMEM;
        ckpt->count++; // the table owns the name from here
        RT_TRY(read_entry(info, e));
    }
    return RT_OK;
}

static rt_status header_length(const rt_st_shard *s, size_t *out)
{
    uint64_t len = 0;
    if (s->map.len < PREFIX)
        return RT_FAIL(RT_ERR_FORMAT, "%s: %zu bytes are too few for a safetensors file", s->path,
                       s->map.len);
    for (int i = PREFIX - 1; i >= 0; i--)
        len = len << 8 | s->map.data[i];
    if (len > MAX_HEADER)
        return RT_FAIL(
            RT_ERR_FORMAT,
            "%s: header of %llu bytes is over the format's limit of %d (not safetensors?)", s->path,
            (unsigned long long)len, (int)MAX_HEADER);
    if (len > s->map.len - PREFIX)
        return RT_FAIL(RT_ERR_FORMAT, "%s: header of %llu bytes in a file of %zu (truncated?)",
                       s->path, (unsigned long long)len, s->map.len);
    *out = (size_t)len;
    return RT_OK;
}

rt_status rt_st_read_file(rt_checkpoint *ckpt, const char *path)
{
    size_t length = 0, first = ckpt->count;
    json_t *header;
    rt_st_shard *s = &ckpt->shards[ckpt->shard_count];
    RT_TRY(rt_map_open(path, &s->map));
    ckpt->shard_count++;
    s->path = rt_mem_strdup(path, "shard path");
    if (!s->path)
        return RT_ERR_NOMEM;
    RT_TRY(header_length(s, &length));
    RT_TRY(rt_json_parse((const char *)s->map.data + PREFIX, length, path, &header));
    rt_status status = json_is_object(header)
                           ? read_entries(ckpt, s, header)
                           : RT_FAIL(RT_ERR_FORMAT, "%s: the header is not an object", path);
    json_decref(header);
    RT_TRY(status);
    rt_st_entry *entries = ckpt->count > first ? &ckpt->entries[first] : NULL;
    return place_entries(s, PREFIX + length, entries, ckpt->count - first);
}
