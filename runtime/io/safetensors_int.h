// SPDX-License-Identifier: Apache-2.0
// What the two halves of the safetensors reader share: safetensors_file.c reads
// one file into the table, safetensors.c puts files together and answers.
#ifndef RUNTIME_IO_SAFETENSORS_INT_H
#define RUNTIME_IO_SAFETENSORS_INT_H

#include "runtime/base/file.h"
#include "runtime/io/safetensors.h"

typedef struct rt_st_shard {
    char *path;
    rt_map map;
} rt_st_shard;

typedef struct rt_st_type {
    const char *name;
    unsigned bits; // of an element
    bool supported;
    kern_dtype dtype; // if supported
} rt_st_type;

typedef struct rt_st_entry {
    char *name;
    const rt_st_shard *shard;
    const rt_st_type *type; // 0 bits: not one of the format's
    char dtype[16];         // the file's spelling, cut
    size_t dims;
    int64_t shape[RT_TENSOR_MAX_DIMS]; // the first ones
    size_t elements;
    size_t begin, end; // in the shard's data part
    const unsigned char *data;
} rt_st_entry;

// Owns everything it points to.
struct rt_checkpoint {
    char *dir;
    rt_st_shard *shards;
    size_t shard_count;   // opened so far; the array is allocated for all
    rt_st_entry *entries; // sorted by name once complete
    size_t count, capacity;
};

// Maps the file at `path` as the next shard (ckpt->shards has room) and appends
// its tensors, checked against the file, to the table.
rt_status rt_st_read_file(rt_checkpoint *ckpt, const char *path);

#endif
