/*
 * The process around a session: command line, control channel, loop, and the jail. Private to the files beside this one.
 */
#ifndef TPW_MAIN_H
#define TPW_MAIN_H

#include "tpw_session.h"
#include <limits.h>
#include <stdio.h>

#define TPW_TOO_MUCH_MEMORY 4 /* the exit code, which the supervisor tells in words */

/* The layers of the full jail, in the order in which they are entered: a bit of `layers` for each. */
enum tpw_layer { TPW_USER, TPW_MOUNT, TPW_NET, TPW_IPC, TPW_UTS, TPW_LANDLOCK, TPW_CALLS, TPW_LAYERS };

struct tpw_jail {
    bool basic;         /* privileges are given up */
    unsigned layers;    /* which are to be entered: those that the supervisor has found here */
    const char *driver; /* once the mount namespace has been entered, without links */
    const char *nvml;
    const char *calls; /* numbers of the system calls that are left, with commas between; NULL: see calls.c */
    char why[256];     /* what went wrong */
};

/* Before there is a second thread. False: the session cannot be as safe as it has to be; `why` says it. */
bool tpw_jail_enter(struct tpw_jail *jail);
/* The layers that are named, with commas between; false when one of them is unknown. */
bool tpw_jail_parse(const char *names, unsigned *layers);
/* Tries each layer in a process of its own, and prints a line for each: its name, "on" or "off", and why. */
void tpw_jail_probe(const struct tpw_jail *jail);

/* One layer each. */
bool tpw_user_enter(struct tpw_jail *jail);
bool tpw_root_enter(struct tpw_jail *jail);
bool tpw_net_enter(struct tpw_jail *jail);
bool tpw_ipc_enter(struct tpw_jail *jail);
bool tpw_uts_enter(struct tpw_jail *jail);
bool tpw_landlock_enter(struct tpw_jail *jail);
bool tpw_calls_enter(struct tpw_jail *jail);
/* Only the calls with these numbers are left. */
bool tpw_calls_only(struct tpw_jail *jail);

/* The folder in which the driver keeps what it compiles; NULL where it keeps nothing. It gives what one session has compiled to
 * others, whoever has changed it meanwhile, so it can be told to keep nothing (CUDA_CACHE_DISABLE=1). */
const char *tpw_compiled(char place[PATH_MAX]);

/* Says that `what` failed, and why by errno; false. */
bool tpw_jail_fails(struct tpw_jail *jail, const char *what);
/* Host memory, core files and, in a jail, privileges. */
bool tpw_bounds_begin(struct tpw_jail *jail);
/* From a client's coming: ends the process when it has more memory than it may. False without a thread for it. */
bool tpw_memory_watch(void);

struct tpw_main {
    char *title; /* memory of the command line */
    size_t title_size;
    bool told_ready; /* that there is a context */
    bool told_spoken;
    struct tpw_jail jail;
    struct tpw_segment segment;
    struct tp_quota quota;
};

#endif
