// SPDX-License-Identifier: Apache-2.0
// .npy files. The first byte chooses: 'f' and the rest is a file; else the rest is the
// dictionary of a header, a NUL, and the data. A float matrix that was accepted is
// written and read again, with the same bits.
#include "tests/fuzz/scratch.h"

#include "runtime/io/npy.h"

enum { PREFIX = 10, DICT_MAX = 65535, FILE_MAX = 1 << 20 };

static const char *write_dict(const uint8_t *data, size_t size)
{
    static uint8_t file[FILE_MAX];
    const uint8_t *end = memchr(data, '\0', size);
    const size_t dict = end ? (size_t)(end - data) : size;
    const size_t rest = end ? size - dict - 1 : 0;
    memcpy(file, "\x93NUMPY\x01", 8);
    file[8] = (uint8_t)dict;
    file[9] = (uint8_t)(dict >> 8);
    memcpy(file + PREFIX, data, dict);
    if (rest > 0)
        memcpy(file + PREFIX + dict, end + 1, rest);
    return scratch_write("a.npy", file, PREFIX + dict + rest);
}

static void write_again(const rt_npy *array)
{
    rt_npy_writer *w;
    rt_npy back;
    const char *path = scratch_write("b.npy", "", 0);
    must(rt_npy_create(path, array->shape[1], &w) == RT_OK);
    must(rt_npy_append(w, array->f32, array->shape[0]) == RT_OK);
    must(rt_npy_finish(w) == RT_OK);
    must(rt_npy_read(path, &back) == RT_OK && back.count == array->count);
    must(memcmp(back.f32, array->f32, array->count * sizeof *back.f32) == 0);
    rt_npy_free(&back);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0 || size > DICT_MAX)
        return 0;
    rt_npy array = {0};
    const char *path = data[0] == 'f' ? scratch_write("a.npy", data + 1, size - 1)
                                      : write_dict(data + 1, size - 1);
    if (rt_npy_read(path, &array) != RT_OK) {
        must(rt_last_error()[0] != '\0' && array.f32 == NULL);
        return 0;
    }
    must(array.dims <= RT_NPY_MAX_DIMS && array.count * sizeof(float) <= size);
    if (array.type == RT_NPY_F32 && array.dims == 2)
        write_again(&array);
    rt_npy_free(&array);
    return 0;
}
