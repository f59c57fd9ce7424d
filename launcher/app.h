// SPDX-License-Identifier: Apache-2.0
// What a subcommand of losa is. One cmd_NAME.c per command defines one app_command.
//
// main() fills the arguments with their defaults, parses, opens the communicator
// (unless the command is local), runs the command on every rank, and prints the
// error, if there is one, once.
#ifndef LAUNCHER_APP_H
#define LAUNCHER_APP_H

#include "comm/comm.h"
#include "launcher/options.h"
#include "runtime/base/status.h"

// First member of every command's argument struct.
typedef struct app_common {
    app_list operands;
    double timeout; // seconds; deadline of a wait between ranks; 0 = comm's default
    bool verbose, quiet;
} app_common;

typedef struct app_command {
    const char *name;
    const char *summary; // one line, for `losa --help`
    const char *usage;   // what follows the name in the usage line
    const char *notes;   // printed below the options; may be NULL
    app_table table;
    size_t args_size;
    bool operands; // takes words that are no options
    bool local;    // needs no other rank: rank 0 runs it without a communicator
    void (*defaults)(void *args);
    // Rules between options; the same verdict on every rank. May be NULL.
    // An error here is a mistake in usage (status 2).
    rt_status (*check)(void *args);
    // `c` is NULL for local commands. Returns the same status on every rank.
    // RT_ERR_CANCELLED: ended by a signal.
    rt_status (*run)(comm *c, void *args);
    int ended_status; // exit status when a signal ended it; 0: 128 + its number
} app_command;

extern const app_command app_cmd_batch, app_cmd_bench, app_cmd_eval, app_cmd_generate, app_cmd_info,
    app_cmd_logits, app_cmd_report, app_cmd_tokenize;

// Signals. After app_catch_signals the first SIGINT, SIGTERM or SIGUSR1 only leaves its
// number in app_signal(); a second SIGINT ends the process. Calling it again
// changes nothing.
void app_catch_signals(void);
int app_signal(void); // 0: none
// Between the two calls these signals wait.
void app_hold_signals(void);
void app_release_signals(void);

// Ends the job after an error in the middle of a collective step, where the other
// ranks may be waiting for this one: reports, then aborts the communicator.
// Returns `status` when there is only one rank.
rt_status app_abandon(comm *c, rt_status status);

// Values of --device, those that this build can open and all that can be planned for, and of
// --precision.
const char *app_device_choice(size_t i);
const char *app_any_device_choice(size_t i);
const char *app_precision_choice(size_t i);

// Rows of the tables that several commands share. A is the argument struct.
#define APP_OPTION_MODEL(A)                                                                        \
    {                                                                                              \
        "model", 'm', APP_TEXT, offsetof(A, model), 0, 0, "DIR", NULL, "folder of the checkpoint", \
            "Model", NULL, NULL                                                                    \
    }
#define APP_OPTION_BLOCK_LENGTH(A)                                                                 \
    {                                                                                              \
        "block-length", 0, APP_INT, offsetof(A, engine.block_length), 1, RT_CONFIG_MAX_BLOCK, "N", \
            "from the checkpoint", "tokens in a block", NULL, NULL, NULL                           \
    }
#define APP_OPTION_MASK_ID(A)                                                                      \
    {                                                                                              \
        "mask-id", 0, APP_INT, offsetof(A, engine.mask_id), 0, INT_MAX, "ID",                      \
            "from the checkpoint", "id of the mask token", NULL, NULL, NULL                        \
    }
#define APP_OPTION_ALLOW_NONFINITE(A)                                                              \
    {                                                                                              \
        "allow-nonfinite", 0, APP_FLAG, offsetof(A, engine.allow_nonfinite), 0, 0, NULL, NULL,     \
            "load weights that hold NaN or infinity", NULL, NULL, NULL                             \
    }
#define APP_OPTION_JSON(A, text)                                                                   \
    {                                                                                              \
        "json", 0, APP_FLAG, offsetof(A, json), 0, 0, NULL, NULL, text, NULL, NULL, NULL           \
    }
#define APP_OPTION_DEVICE(A)                                                                       \
    {                                                                                              \
        "device", 0, APP_CHOICE, offsetof(A, engine.device), 0, 0, "KIND", NULL,                   \
            "where to compute; cuda only in a build with CUDA", "Machine", app_device_choice, NULL \
    }
#define APP_OPTION_PRECISION(A)                                                                    \
    {                                                                                              \
        "precision", 0, APP_CHOICE, offsetof(A, engine.precision), 0, 0, "KIND", NULL,             \
            "of weights and KV pages on a GPU: as stored and bf16, or f32", NULL,                  \
            app_precision_choice, NULL                                                             \
    }
#define APP_OPTION_NO_GRAPH(A)                                                                     \
    {                                                                                              \
        "no-graph", 0, APP_FLAG, offsetof(A, engine.no_graph), 0, 0, NULL, NULL,                   \
            "start every kernel of a step, where a GPU could replay them as one", NULL, NULL, NULL \
    }
#define APP_OPTION_NO_SHARING(A)                                                                   \
    {                                                                                              \
        "no-sharing", 0, APP_FLAG, offsetof(A, engine.no_sharing), 0, 0, NULL, NULL,               \
            "compute every prompt whole, where it could share the pages of one that begins alike", \
            NULL, NULL, NULL                                                                       \
    }
#define APP_OPTION_KV_MEMORY(A, text)                                                              \
    {                                                                                              \
        "kv-memory", 0, APP_PARSE, offsetof(A, engine.kv_memory), 0, 0, "BYTES", "", text, NULL,   \
            NULL, app_parse_bytes                                                                  \
    }
#define APP_OPTION_TIMEOUT(A)                                                                      \
    {                                                                                              \
        "timeout", 0, APP_REAL, offsetof(A, common.timeout), 0, 86400, "SECONDS", NULL,            \
            "deadline of a wait between live ranks; 0: 300 (60 without MPI threads)", NULL, NULL,  \
            NULL                                                                                   \
    }
#define APP_OPTION_VERBOSE(A)                                                                      \
    {                                                                                              \
        "verbose", 'v', APP_FLAG, offsetof(A, common.verbose), 0, 0, NULL, NULL,                   \
            "say more on standard error", NULL, NULL, NULL                                         \
    }
#define APP_OPTION_QUIET(A)                                                                        \
    {                                                                                              \
        "quiet", 'q', APP_FLAG, offsetof(A, common.quiet), 0, 0, NULL, NULL,                       \
            "nothing but errors on standard error", NULL, NULL, NULL                               \
    }

#endif
