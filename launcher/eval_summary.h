// SPDX-License-Identifier: Apache-2.0
// The results of losa eval by length, task and policy. One list of columns drives the
// tables, the JSON and the CSV.
//
// "dense" is the first policy of that name; what compares with it is NaN without one, and
// won, lost and difference are NaN for dense itself.
#ifndef LAUNCHER_EVAL_SUMMARY_H
#define LAUNCHER_EVAL_SUMMARY_H

#include "launcher/eval_documents.h"
#include "launcher/eval_store.h"
#include "launcher/policy_spec.h"

typedef enum app_column {
    APP_DOCUMENTS,
    APP_RIGHT, // documents answered right
    APP_EXACT, // their share, and its 95 % interval
    APP_EXACT_LOW,
    APP_EXACT_HIGH,
    APP_F1,  // mean token F1 where the rule has one
    APP_WON, // right here, wrong with dense
    APP_LOST,
    APP_DIFFERENCE, // (won - lost) / documents, and its paired 95 % interval
    APP_DIFFERENCE_LOW,
    APP_DIFFERENCE_HIGH,
    APP_SAME_TEXT,     // share of documents with dense's text
    APP_SAME_TOKENS,   // mean share of positions with dense's token
    APP_PROBED,        // positions of probed steps
    APP_DIVERGENCE,    // of their logits from dense attention's, mean, nats
    APP_SAME_CHOICE,   // share of them with dense attention's best token
    APP_DENSITY_LATER, // means over documents
    APP_DENSITY_STEPS,
    APP_DENSITY_TOTAL,
    APP_READS, // bytes of the prefix read / dense's, metadata and commits included
    APP_INFLATION,
    APP_ACTIVE,
    APP_STEPS_PER_BLOCK,
    APP_FORWARDS,          // mean per document, after prefill
    APP_FORWARDS_TO_DENSE, // all of them / all of dense's
    APP_TOKENS_PER_FORWARD,
    APP_PREFIX_BYTES,    // mean per document, all ranks
    APP_EXCHANGE_BYTES,  // mean per document, all ranks
    APP_PREFILL_SECONDS, // means; documents that run together share the machine
    APP_DECODE_SECONDS,
    APP_COLUMNS
} app_column;

typedef struct app_column_info {
    const char *key;   // in JSON and CSV
    const char *title; // in tables
    double unit;       // what a table divides by
    int decimals;
} app_column_info;
extern const app_column_info app_columns[APP_COLUMNS];

typedef struct app_cell {
    int length;       // 0: all
    const char *task; // NULL: all; borrowed
    size_t policy;    // index
    double value[APP_COLUMNS];
} app_cell;

// Cells of a length stand together, of a task within it too; all lengths (where there are
// several) and all tasks come first. Cells without a document are left out.
typedef struct app_summary {
    app_cell *cells;
    size_t count;
} app_summary;

// Every document must have a result for every policy. Borrows names from `documents`.
rt_status app_summary_make(const app_documents *documents, const app_policies *policies,
                           const app_store *store, app_summary *out);
void app_summary_free(app_summary *summary);

#endif
