// SPDX-License-Identifier: Apache-2.0
// The policies of docs/ARCHITECTURE.md, written out naively in double precision from their
// description: LoSA (arXiv 2604.12056) steps 1 to 6, QUEST bounds (2406.10774), lists
// from attention mass (MAGE, 2602.14209), and sparse first steps.
//
// A reference follows a story forward by forward. Whom it says to read, and what, must be
// what the ranks did; only where two candidates at a cut lie within `gap` of each other
// may either be chosen, and the reference then goes on with the choice that was made.
#ifndef TESTS_LOSA_REFERENCE_H
#define TESTS_LOSA_REFERENCE_H

#include "tests/losa/story.h"

typedef struct reference reference;

reference *reference_new(const st_story *story);
// Fails the test where the last forward is not what the policy says.
void reference_follow(reference *r, const st_story *story, const st_forward *forward);
// Choices made so far, and how many of them were too close to call.
long reference_choices(const reference *r);
long reference_unclear(const reference *r);
void reference_free(reference *r);

#endif
