// SPDX-License-Identifier: Apache-2.0
// Checkpoint folders. The first byte chooses: 'f' and the rest is model.safetensors;
// 'i' and the rest is the index of two good shards; else the rest is the header of
// model.safetensors, a NUL, and the data. Every tensor of what is accepted is found by
// its name and read to its last byte.
#include "tests/fuzz/scratch.h"

#include "runtime/io/safetensors.h"

enum { PREFIX = 8, FILE_MAX = 1 << 20 };

static void write_file(const char *name, const void *header, size_t len, const void *data, size_t n)
{
    static uint8_t file[FILE_MAX];
    for (int i = 0; i < PREFIX; i++)
        file[i] = (uint8_t)((uint64_t)len >> (8 * i));
    memcpy(file + PREFIX, header, len);
    if (n > 0)
        memcpy(file + PREFIX + len, data, n);
    scratch_write(name, file, PREFIX + len + n);
}

static void write_header(const uint8_t *data, size_t size)
{
    const uint8_t *end = memchr(data, '\0', size);
    const size_t len = end ? (size_t)(end - data) : size;
    write_file("model.safetensors", data, len, end ? end + 1 : NULL, end ? size - len - 1 : 0);
}

static void write_index(const uint8_t *data, size_t size)
{
    static const char x[] = "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}";
    static const char y[] = "{\"b\":{\"dtype\":\"BF16\",\"shape\":[2,2],\"data_offsets\":[0,8]}}";
    write_file("x.safetensors", x, sizeof x - 1, "01234567", 8);
    write_file("y.safetensors", y, sizeof y - 1, "01234567", 8);
    scratch_write("model.safetensors.index.json", data, size);
    scratch_delete("model.safetensors");
}

static void check_tensor(const rt_checkpoint *ckpt, const rt_tensor *t)
{
    unsigned sum = 0;
    for (size_t i = 0; i < t->bytes; i++)
        sum += ((const unsigned char *)t->data)[i];
    must(sum <= 255 * t->bytes); // the bytes were read
    must(rt_checkpoint_has(ckpt, t->name));
    if (t->dims < 1 || t->dims > 2 || t->shape[0] == 0)
        return;
    rt_tensor found = *t;
    const int64_t cols = t->dims == 2 ? t->shape[1] : 0;
    const rt_status status = rt_checkpoint_find(ckpt, t->name, t->shape[0], cols, &found);
    must(found.data == t->data && found.bytes == t->bytes);
    must(status == RT_OK || rt_last_error()[0] != '\0');
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0 || size > FILE_MAX - PREFIX)
        return 0;
    if (data[0] == 'f')
        scratch_write("model.safetensors", data + 1, size - 1);
    else if (data[0] == 'i')
        write_index(data + 1, size - 1);
    else
        write_header(data + 1, size - 1);
    rt_checkpoint *ckpt = NULL;
    if (rt_checkpoint_open(scratch_folder, &ckpt) != RT_OK) {
        must(rt_last_error()[0] != '\0' && ckpt == NULL);
        return 0;
    }
    size_t bytes = 0;
    for (size_t i = 0; i < rt_checkpoint_count(ckpt); i++) {
        rt_tensor t;
        const char *type;
        rt_checkpoint_at(ckpt, i, &t, &type);
        check_tensor(ckpt, &t);
        bytes += t.bytes;
    }
    must(bytes == rt_checkpoint_bytes(ckpt));
    rt_checkpoint_close(ckpt);
    return 0;
}
