/*
 * The process's connection: made once, lost once, never freed.
 *
 * Owns `the_connection` and the list of loss handlers. Any thread enters tp_connection; `making` lets one of them connect
 * while the others wait. After fork the child lets go of the parent's connection: it marks its copy as unusable and closes its
 * copies of the sockets (no shutdown, which would end the parent's connection; no locks, no freeing), and its next
 * tp_connection makes one of its own. A program may ask NVML for the devices, fork, and use CUDA in the children only.
 */
#include "conn_internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <tp_trace.h>
#include <unistd.h>

#define DATA_CONNECTIONS 4u
#define RETRY_NS 3000000000u /* an unreachable worker is not asked again by each of a program's thousand calls */
#define LOSS_HANDLERS 4u
#define REASON_NS 1000000000u /* for a line on standard error, which nobody may read */

struct tp_counters tp_counters;

static struct tp_conn *_Atomic the_connection;
static _Atomic bool forked; /* a child whose parent had a connection, and that has none of its own yet */
static struct tp_lock making;
static bool registered;             /* under making */
static enum tp_status last_failure; /* under making */
static uint64_t last_failure_at;    /* under making */
static void (*_Atomic loss_handlers[LOSS_HANDLERS])(void);

bool tpc_forked(void) { return atomic_load_explicit(&forked, memory_order_relaxed); }

bool tp_alive(const struct tp_conn *conn) { return !tpc_is_lost(conn); }

struct tp_conn *tp_connection_if_any(void) { return atomic_load_explicit(&the_connection, memory_order_acquire); }

/* ---- loss ---- */

void tp_on_loss(void (*handler)(void)) {
    for (size_t i = 0; i < LOSS_HANDLERS; i++) {
        void (*none)(void) = NULL;
        if (atomic_load(&loss_handlers[i]) == handler ||
            atomic_compare_exchange_strong(&loss_handlers[i], &none, handler)) {
            return;
        }
    }
}

void tpc_lose(struct tp_conn *conn, enum tp_status status, const char *format, ...) {
    uint32_t alive = TP_OK;
    if (status == TP_ERROR_LOST && !conn->seat && !tpc_is_lost(conn)) {
        (void)tpc_hear_last(conn);
    }
    if (!atomic_compare_exchange_strong_explicit(&conn->lost, &alive, status, memory_order_seq_cst,
                                                 memory_order_seq_cst)) {
        return;
    }
    char reason[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(reason, sizeof reason, format, arguments);
    va_end(arguments);
    tp_log(TP_ERROR,
           "The connection to the GPU worker at %s is lost (%s); every further CUDA call of this process fails",
           conn->peer, reason);
    atomic_store(&conn->told, 1);
    tp_futex_wake(&conn->told, INT32_MAX);

    if (conn->control >= 0) {
        shutdown(conn->control, SHUT_RDWR);
    }
    uint32_t count = atomic_load_explicit(&conn->data_count, memory_order_acquire);
    for (uint32_t i = 0; i < count; i++) {
        shutdown(conn->data[i].socket, SHUT_RDWR);
    }
    for (size_t i = 0; i < LOSS_HANDLERS; i++) {
        void (*handler)(void) = atomic_load(&loss_handlers[i]);
        if (handler) {
            handler();
        }
    }
    tpc_wake_transfers(conn);
    tpc_wake_all_callers(conn);
    tpc_wake_sender(conn);
    tpc_wake_listener(conn);
    atomic_fetch_add_explicit(&conn->space_news, 1, memory_order_seq_cst);
    tp_futex_wake(&conn->space_news, INT32_MAX);
}

void tp_await_reason(struct tp_conn *conn) {
    const uint64_t until = tp_now_ns() + REASON_NS;
    while (tpc_is_lost(conn) && !atomic_load(&conn->told) && tp_now_ns() < until) {
        tp_futex_wait(&conn->told, 0, REASON_NS);
    }
}

/* ---- fork ---- */

/* Taking `making` lets a connection that another thread is making be finished first: the child finds a whole one or none. */
static void fork_prepare(void) {
    tp_lock_take(&making);
    tpc_threads_fork_prepare();
    tpc_wait_fork_prepare();
}

static void fork_parent(void) {
    tpc_wait_fork_parent();
    tpc_threads_fork_done();
    tp_lock_drop(&making);
}

static void fork_child(void) {
    tpc_wait_fork_child();
    tpc_threads_fork_child();
    /* The parent's threads that wait for it are not here: it is simply free. */
    atomic_store_explicit(&making.state, 0, memory_order_relaxed);
    last_failure = TP_OK;
    struct tp_conn *conn = atomic_exchange_explicit(&the_connection, NULL, memory_order_relaxed);
    if (conn) {
        atomic_store_explicit(&forked, true, memory_order_relaxed);
        tpc_stats_forget();
        atomic_store(&conn->told, 1); /* there is nothing to tell */
        atomic_store_explicit(&conn->lost, TP_ERROR_FORKED, memory_order_seq_cst);
        if (conn->control >= 0) {
            close(conn->control);
        }
        uint32_t count = atomic_load_explicit(&conn->data_count, memory_order_relaxed);
        for (uint32_t i = 0; i < count; i++) {
            close(conn->data[i].socket);
        }
    }
}

/* ---- making ---- */

static uint32_t cache_request_count(void) {
    const char *text = getenv("TF_MAX_CACHE_REQUEST_COUNT");
    char *end;
    if (!text || !*text) {
        return 100;
    }
    unsigned long value = strtoul(text, &end, 10);
    if (*end || value < 1 || value > 1000000) {
        tp_log(TP_ERROR, "TF_MAX_CACHE_REQUEST_COUNT=%s is no number from 1 to 1000000; 100 is used", text);
        return 100;
    }
    return (uint32_t)value;
}

static enum tp_status make(struct tp_conn **out) {
    tp_log_setup("client");
    tpc_trace_learn();
    struct tp_conn *conn = aligned_alloc(_Alignof(struct tp_conn), sizeof *conn);
    if (!conn) {
        return TP_ERROR_MEMORY;
    }
    memset(conn, 0, sizeof *conn);
    conn->control = -1;
    conn->cache_max = cache_request_count();
    conn->look_after = tp_trace_on() ? 0 : conn->cache_max;
    enum tp_status status = tpc_connect(conn);
    if (status != TP_OK) {
        goto failed;
    }
    conn->input =
        mmap(NULL, TPC_INPUT_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (conn->input == MAP_FAILED) {
        conn->input = NULL;
        status = TP_ERROR_MEMORY;
        goto failed;
    }
    if (conn->seat) {
        conn->shared_head = &conn->seat->slot->commands.head;
        conn->cache_max = UINT32_MAX; /* nothing waits to be sent */
        conn->look_after = tp_trace_on() ? 0 : conn->cache_max;
        atomic_store(&conn->serving, true);
    } else {
        status = tpc_ring_make(conn);
    }
    if (status != TP_OK) {
        goto failed;
    }
    if (TP_UNLIKELY(conn->skew != NULL)) {
        status = tpc_skew_settle(conn); /* this thread sends and reads alone */
        if (status != TP_OK) {
            goto failed;
        }
    }
    status = tpc_listener_start(conn);
    if (status == TP_OK && !conn->seat) {
        status = tpc_sender_start(conn);
    }
    if (status != TP_OK) {
        /* A thread may run already: the half-made connection ends like any other and stays where the thread looks at it. */
        tpc_lose(conn, status, "a thread could not be started");
        return status;
    }
    *out = conn;
    return TP_OK;

failed:
    if (status == TP_ERROR_MEMORY) {
        tp_log(TP_ERROR, "No memory for the connection to the GPU worker (%s); see ulimit -v", strerror(errno));
    }
    if (conn->control >= 0) {
        close(conn->control);
    }
    if (conn->input) {
        munmap(conn->input, TPC_INPUT_SIZE);
    }
    if (conn->seat) {
        tpc_seat_leave(conn);
    }
    free(conn->skew);
    free(conn);
    return status;
}

static struct tp_conn *alive_or_status(struct tp_conn *conn, enum tp_status *status) {
    *status = tpc_lost_status(conn);
    if (TP_LIKELY(*status == TP_OK)) {
        return conn;
    }
    /* To the caller every loss is the same; the log said which it was. */
    *status = *status == TP_ERROR_FORKED ? TP_ERROR_FORKED : TP_ERROR_LOST;
    return NULL;
}

struct tp_conn *tp_connection(enum tp_status *status) {
    struct tp_conn *conn = tp_connection_if_any();
    if (TP_LIKELY(conn != NULL)) {
        return alive_or_status(conn, status);
    }
    int cancel = tpc_defer_cancel();
    uint32_t seen = tp_interruptions();
    tp_lock_take(&making);
    conn = tp_connection_if_any();
    if (!conn && tp_interruptions() != seen) {
        *status = TP_ERROR_INTERRUPTED; /* this thread waited, too: for the one that made the connection */
    } else if (!conn) {
        if (!registered) {
            pthread_atfork(fork_prepare, fork_parent, fork_child);
            atexit(tpc_stats_at_exit);
            registered = true;
        }
        bool retry = last_failure == TP_OK || last_failure == TP_ERROR_INTERRUPTED ||
                     (last_failure == TP_ERROR_UNREACHABLE && tp_now_ns() - last_failure_at > RETRY_NS);
        tp_wait_begin();
        *status = retry ? make(&conn) : last_failure;
        tp_wait_end();
        last_failure = *status;
        last_failure_at = retry ? tp_now_ns() : last_failure_at;
        atomic_store_explicit(&the_connection, conn, memory_order_release);
        if (conn) {
            atomic_store_explicit(&forked, false, memory_order_relaxed);
        }
    }
    tp_lock_drop(&making);
    tpc_allow_cancel(cancel);
    return conn ? alive_or_status(conn, status) : NULL;
}

/* ---- data connections ---- */

static enum tp_status open_one(struct tp_conn *conn, uint32_t index) {
    struct tpc_data *data = &conn->data[index];
    data->conn = conn;
    data->index = index;
    enum tp_status status = tpc_connect_data(conn, data);
    if (status != TP_OK) {
        return status;
    }
    atomic_store_explicit(&conn->data_count, index + 1, memory_order_seq_cst); /* from here on loss shuts it down */
    atomic_store_explicit(&conn->lanes, index + 1, memory_order_release);
    status = tp_thread_start(NULL, "tf-data-in", 256u << 10, tpc_data_receive, data);
    status = status ? status : tp_thread_start(NULL, "tf-data-out", 256u << 10, tpc_data_send, data);
    if (status != TP_OK) {
        tpc_lose(conn, status, "a thread could not be started");
    } else if (tpc_is_lost(conn)) {
        shutdown(data->socket, SHUT_RDWR);
        return TP_ERROR_LOST;
    }
    return status;
}

static enum tp_status open_all(struct tp_conn *conn) {
    tp_lock_take(&conn->opening);
    enum tp_status status = TP_OK;
    if (conn->seat) {
        status = atomic_load(&conn->data_open) ? TP_OK : tpc_copiers_start(conn);
        atomic_store_explicit(&conn->data_open, status == TP_OK, memory_order_release);
        tp_lock_drop(&conn->opening);
        return status;
    }
    uint32_t wanted = conn->data_max < DATA_CONNECTIONS ? conn->data_max : DATA_CONNECTIONS;
    if (wanted == 0) {
        tp_log(TP_ERROR, "The GPU worker at %s takes no data connections, so no transfer above 64 KiB is possible",
               conn->peer);
        status = TP_ERROR_REFUSED;
    }
    for (uint32_t i = atomic_load_explicit(&conn->data_count, memory_order_acquire); i < wanted && status == TP_OK;
         i++) {
        status = open_one(conn, i);
    }
    if (status == TP_OK) {
        atomic_store_explicit(&conn->data_open, true, memory_order_release);
    }
    tp_lock_drop(&conn->opening);
    return status;
}

enum tp_status tp_data_ready(struct tp_conn *conn) {
    if (tpc_is_lost(conn)) {
        return tpc_lost_status(conn);
    }
    if (TP_LIKELY(atomic_load_explicit(&conn->data_open, memory_order_acquire))) {
        return TP_OK;
    }
    int cancel = tpc_defer_cancel();
    enum tp_status status = open_all(conn);
    tpc_allow_cancel(cancel);
    return status;
}
