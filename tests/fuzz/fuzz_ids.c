// SPDX-License-Identifier: Apache-2.0
// A file of token ids: what is accepted lies inside the vocabulary.
#include "tests/fuzz/scratch.h"

#include "runtime/base/mem.h"
#include "runtime/io/ids.h"

enum { VOCAB = 1000 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int32_t *ids = NULL;
    size_t n = 0;
    const char *path = scratch_write("ids.json", data, size);
    if (rt_token_ids_load(path, VOCAB, &ids, &n) != RT_OK) {
        must(rt_last_error()[0] != '\0' && ids == NULL);
        return 0;
    }
    must(2 * n < size + 2); // an id and a comma
    for (size_t i = 0; i < n; i++)
        must(ids[i] >= 0 && ids[i] < VOCAB);
    rt_free(ids);
    return 0;
}
