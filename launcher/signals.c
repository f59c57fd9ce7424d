// SPDX-License-Identifier: Apache-2.0
// The interrupt flag. A handler may only set it; the command's loop looks at it
// between steps. mpirun passes Ctrl-C on to all ranks as SIGTERM: the ranks above 0
// do not look, they end when rank 0 closes the engine. A rank that cannot end in order
// soon is ended by the communicator's heart (comm_watch_signal).
#include "launcher/app.h"

#include <signal.h>

static volatile sig_atomic_t caught;

static void remember(int number)
{
    caught = number;
}

void app_catch_signals(void)
{
    static bool done;
    if (done)
        return;
    done = true;
    struct sigaction action = {.sa_handler = remember};
    sigemptyset(&action.sa_mask);
    sigaction(SIGTERM, &action, NULL); // mpirun may send it twice in a row
    sigaction(SIGUSR1, &action, NULL); // of batch systems, before the time is over
    // The second Ctrl-C finds the default action and ends the process.
    action.sa_flags = (int)SA_RESETHAND;
    sigaction(SIGINT, &action, NULL);
}

int app_signal(void)
{
    return caught;
}

static void mask_signals(int how)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGUSR1);
    pthread_sigmask(how, &set, NULL);
}

void app_hold_signals(void)
{
    mask_signals(SIG_BLOCK);
}

void app_release_signals(void)
{
    mask_signals(SIG_UNBLOCK);
}
