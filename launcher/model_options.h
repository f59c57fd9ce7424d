// SPDX-License-Identifier: Apache-2.0
// A checkpoint, or random weights of a published one's shapes: for the commands that
// need no text.
#ifndef LAUNCHER_MODEL_OPTIONS_H
#define LAUNCHER_MODEL_OPTIONS_H

#include "launcher/options.h"
#include "runtime/io/config.h"

enum { APP_NO_DUMMY = -1 }; // default of --dummy

app_choices app_dummy_choice;

// One of the two must be given. An error is a mistake in usage.
rt_status app_model_check(const char *dir, int dummy);
rt_status app_model_config(const char *dir, int dummy, const rt_config_overrides *overrides,
                           rt_model_config *out);

// Row of the option table; A is the argument struct, its member `dummy` an int.
#define APP_OPTION_DUMMY(A)                                                                        \
    {                                                                                              \
        "dummy", 0, APP_CHOICE, offsetof(A, dummy), 0, 0, "NAME", "",                              \
            "instead of --model: random weights of a published model's shapes", NULL,              \
            app_dummy_choice, NULL                                                                 \
    }

#endif
