/*
 * The process around a session: command line, control channel, loop. Private to main.c and executor.c.
 */
#ifndef TPW_MAIN_H
#define TPW_MAIN_H

#include "tpw_segment.h"
#include "tpw_session.h"
#include <stdio.h>

enum tpw_control_type { TPW_ADOPT = 1, TPW_DATA = 2, TPW_WARM = 3, TPW_READY = 16, TPW_FAILED = 17, TPW_GONE = 18 };

struct tpw_main {
    int control; /* SEQPACKET socket of the supervisor */
    int events;  /* epoll over the control socket and the callbacks' eventfd */
    const char *driver_path, *nvml_path;
    char *title; /* memory of the command line */
    size_t title_size;
    uint32_t client_pid;
    bool told_ready; /* that there is a context */
    struct tpw_segment segment;
};

/* Runs until the client or the supervisor has gone. */
void tpw_execute(struct tpw_session *s);

#endif
