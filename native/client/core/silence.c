/*
 * A session that says nothing: whether its process is stopped.
 *
 * A call takes as long as the work that it waits for, so silence is no fault. But a session that somebody has stopped looks the
 * same, and whoever waits for it is to know. Over shared memory the supervisor writes it into the slot. Over TCP whoever has waited
 * for some seconds has the worker asked, by a thread and a connection of their own, so that an answer that comes meanwhile is not
 * held up; each time after twice the silence. The call waits on, whatever is found.
 */
#include "conn_internal.h"

#define FIRST_S 4u

void tpc_say_stopped(struct tp_conn *conn, bool stopped) {
    if (TP_UNLIKELY(stopped != atomic_load_explicit(&conn->stopped, memory_order_relaxed)) &&
        !atomic_exchange(&conn->stopped, stopped) && stopped) {
        tp_say(TP_WARN,
               "The session of this program on the GPU worker at %s is stopped there, by SIGSTOP or a debugger; "
               "calls wait until it goes on",
               conn->peer);
    }
}

static void *look(void *argument) {
    struct tp_conn *conn = argument;
    tpc_look(conn);
    atomic_store(&conn->looking, false);
    return NULL;
}

void tpc_silence(struct tp_conn *conn, uint32_t seconds) {
    const bool due = seconds >= FIRST_S && (seconds & (seconds - 1)) == 0;
    if (due && !tpc_is_lost(conn) && !atomic_exchange(&conn->looking, true) &&
        tp_thread_start(NULL, "tf-look", 256u << 10, look, conn) != TP_OK) {
        atomic_store(&conn->looking, false);
    }
}
