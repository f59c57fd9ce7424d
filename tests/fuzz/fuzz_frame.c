// SPDX-License-Identifier: Apache-2.0
// Frames of the control plane: whatever unpacks packs again and unpacks the same.
#include "proto/frame.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(int holds)
{
    if (!holds)
        abort();
}

static void try_step(const void *bytes, size_t len)
{
    Pb__Step *step = NULL, *again = NULL;
    if (pb_step_unpack(bytes, len, &step) != RT_OK)
        return;
    rt_str first = {0}, second = {0};
    must(pb_step_pack(step, &first) == RT_OK);
    must(pb_step_unpack(first.data, first.len, &again) == RT_OK);
    must(pb_step_pack(again, &second) == RT_OK);
    must(first.len == second.len && memcmp(first.data, second.data, first.len) == 0);
    rt_str_free(&first);
    rt_str_free(&second);
    pb_step_free(step);
    pb_step_free(again);
}

static void try_result(const void *bytes, size_t len)
{
    Pb__Result *result = NULL;
    if (pb_result_unpack(bytes, len, &result) != RT_OK)
        return;
    rt_str frame = {0};
    must(pb_result_pack(result, &frame) == RT_OK);
    must(frame.len <= PB_RESULT_FRAME_MAX);
    rt_str_free(&frame);
    pb_result_free(result);
}

// The input as it is, and as the payload of a frame whose length agrees.
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    try_step(data, size);
    try_result(data, size);
    uint8_t *frame = malloc(PB_FRAME_HEAD + size);
    if (!frame)
        return 0;
    for (int i = 0; i < PB_FRAME_HEAD; i++)
        frame[i] = (uint8_t)(size >> (8 * i));
    if (size > 0)
        memcpy(frame + PB_FRAME_HEAD, data, size);
    try_step(frame, PB_FRAME_HEAD + size);
    try_result(frame, PB_FRAME_HEAD + size);
    free(frame);
    return 0;
}
