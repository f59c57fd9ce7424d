// SPDX-License-Identifier: Apache-2.0
#include "runtime/io/model_hash.h"

#include "runtime/base/file.h"
#include "runtime/base/hash.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

static int is_weights(const struct dirent *entry)
{
    const char *dot = strrchr(entry->d_name, '.');
    return dot && strcmp(dot, ".safetensors") == 0;
}

static int is_part(const struct dirent *entry)
{
    const char *dot = strrchr(entry->d_name, '.');
    return dot && (strcmp(dot, ".json") == 0 || strcmp(dot, ".jinja") == 0 || is_weights(entry));
}

static uint64_t add_map(uint64_t hash, const rt_map *map)
{
    enum { PIECES = 1024, PIECE = 4096 };
    const size_t step = map->len / PIECES > PIECE ? map->len / PIECES : PIECE;
    hash = rt_hash(hash, &map->len, sizeof map->len);
    for (size_t at = 0; at < map->len; at += step) {
        const size_t left = map->len - at;
        hash = rt_hash(hash, map->data + at, left < PIECE ? left : PIECE);
    }
    return hash;
}

static rt_status add_file(const char *folder, const char *name, uint64_t *hash)
{
    char path[PATH_MAX];
    rt_map map;
    RT_TRY(rt_path_join(folder, name, path, sizeof path));
    RT_TRY(rt_map_open(path, &map));
    *hash = add_map(rt_hash(*hash, name, strlen(name)), &map);
    rt_map_close(&map);
    return RT_OK;
}

static rt_status hash_files(const char *folder, int (*which)(const struct dirent *entry),
                            uint64_t *out)
{
    struct dirent **entries;
    const int count = scandir(folder, &entries, which, alphasort);
    if (count < 0)
        return RT_FAIL(RT_ERR_IO, "%s: cannot read the folder: %s", folder, strerror(errno));
    rt_status status = RT_OK;
    uint64_t hash = RT_HASH_START;
    for (int i = 0; i < count; i++) {
        if (status == RT_OK)
            status = add_file(folder, entries[i]->d_name, &hash);
        free(entries[i]);
    }
    free(entries);
    *out = hash;
    return status;
}

rt_status rt_model_hash(const char *folder, uint64_t *out)
{
    return hash_files(folder, is_part, out);
}

rt_status rt_weights_hash(const char *folder, uint64_t *out)
{
    return hash_files(folder, is_weights, out);
}
