// SPDX-License-Identifier: Apache-2.0
// What must hold of a page book and of everything that is taken from it, at any time:
// found by walking over all of it, without the counters and links that the book keeps.
#ifndef TESTS_UNIT_PAGEBOOK_CHECK_H
#define TESTS_UNIT_PAGEBOOK_CHECK_H

#include "runtime/engine/pagebook.h"

// One request that has its pages; `prompt` is as long as its units.
typedef struct pagebook_holder {
    const int32_t *prompt;
    const rt_holding *holding;
} pagebook_holder;

// Fails the cmocka test that finds it broken. `holders` is all that is taken.
void pagebook_check(const rt_pagebook *b, const pagebook_holder *holders, int n);

#endif
