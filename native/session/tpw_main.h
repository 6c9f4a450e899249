/*
 * The process around a session: command line, control channel, loop. Private to main.c.
 */
#ifndef TPW_MAIN_H
#define TPW_MAIN_H

#include "tpw_session.h"
#include <stdio.h>

#define TPW_TOO_MUCH_MEMORY 4 /* the exit code, which the supervisor tells in words */

/* Before there is a second thread. False: the session cannot be as safe as it has to be, and has said why. */
bool tpw_bounds_begin(bool jail);
/* After that, and before there is a second thread: the process reaches only the files that the driver needs. */
bool tpw_confine(const char *driver, const char *nvml);
/* From a client's coming: ends the process when it has more memory than it may. False without a thread for it. */
bool tpw_memory_watch(void);

struct tpw_main {
    char *title; /* memory of the command line */
    size_t title_size;
    bool told_ready; /* that there is a context */
    bool told_spoken;
    bool jail, confine;
    struct tpw_segment segment;
};

#endif
