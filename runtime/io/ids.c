// SPDX-License-Identifier: Apache-2.0
#include "runtime/io/ids.h"

#include "runtime/base/json.h"
#include "runtime/base/mem.h"

enum { MAX_FILE = 32 << 20 }; // a list of 16 million ids takes 640 MB to parse

static rt_status copy_ids(const json_t *root, const char *path, int vocab, int32_t *ids)
{
    for (size_t i = 0; i < json_array_size(root); i++) {
        const json_t *item = json_array_get(root, i);
        json_int_t id = json_integer_value(item);
        if (!json_is_integer(item))
            return RT_FAIL(RT_ERR_FORMAT, "%s: element %zu is not an integer", path, i);
        if (id < 0 || id >= vocab)
            return RT_FAIL(RT_ERR_FORMAT, "%s: element %zu, token id %lld, is outside [0, %d)",
                           path, i, (long long)id, vocab);
        ids[i] = (int32_t)id;
    }
    return RT_OK;
}

rt_status rt_token_ids_load(const char *path, int vocab, int32_t **out, size_t *count)
{
    json_t *root;
    int32_t *ids = NULL;
    rt_status status;
    RT_TRY(rt_json_load(path, MAX_FILE, &root));
    if (!json_is_array(root)) {
        status = RT_FAIL(RT_ERR_FORMAT, "%s: not a JSON array of token ids", path);
        goto free_root;
    }
    RT_TRY_GOTO(status, RT_ALLOC(ids, json_array_size(root), "token ids"), free_root);
    RT_TRY_GOTO(status, copy_ids(root, path, vocab, ids), free_ids);
    *out = ids;
    *count = json_array_size(root);
    json_decref(root);
    return RT_OK;
free_ids:
    rt_free(ids);
free_root:
    json_decref(root);
    return status;
}
