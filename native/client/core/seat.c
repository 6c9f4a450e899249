/*
 * Frames and replies over the two rings of a slot, and how this side sleeps beside them.
 *
 * Entered by appenders (under append), by the one thread that reads (under receive) and by the listener. The rings' peer is
 * the session; its indices are bounded by tp_ring.h, and one that cannot be ends the connection.
 */
#include "conn_internal.h"

#include <errno.h>
#include <sched.h>
#include <time.h>

#define SPACE_SPINS 200
#define SPACE_NAP_NS 20000

/* What the session said last is heard before it counts as gone. Whoever reads it now looks at the session again; for long nobody
 * is waited for, who may run the program's own code there. */
static bool says_more(struct tp_conn *conn) {
    const struct tp_ring *replies = &conn->seat->replies;
    if (tpc_is_lost(conn) || atomic_load_explicit(&replies->shared->head, memory_order_acquire) == replies->at ||
        tpc_hear_last(conn)) {
        return false;
    }
    uint64_t none = 0, now = tp_now_ns();
    atomic_compare_exchange_strong(&conn->seat->over_since, &none, now);
    return now - atomic_load(&conn->seat->over_since) < TPC_LAST_WORDS_NS;
}

bool tpc_seat_gone(struct tp_conn *conn) {
    struct tpc_seat *seat = conn->seat;
    const struct tp_segment_header *header = (const struct tp_segment_header *)(const void *)seat->base;
    const bool over = tp_life_over(&seat->slot->session_life), anew = header->epoch != seat->epoch;
    const bool ended = atomic_load_explicit(&seat->slot->state, memory_order_relaxed) != TP_SLOT_ACCEPTED;
    if (TP_UNLIKELY(over || ended) && !anew && says_more(conn)) {
        return tpc_is_lost(conn);
    }
    if (over) {
        tpc_lose(conn, TP_ERROR_LOST, "the session of the worker has ended");
    } else if (anew || ended) {
        tpc_lose(conn, TP_ERROR_LOST, "the worker has ended or was started anew");
    } else if (!tpc_waiting()) { /* then the wait is told */
        tpc_say_stopped(conn, atomic_load_explicit(&seat->slot->stopped, memory_order_relaxed));
    }
    return tpc_is_lost(conn);
}

unsigned char *tp_segment_base(const struct tp_conn *conn, uint64_t *size) {
    *size = conn->seat ? conn->seat->size : 0;
    return conn->seat ? conn->seat->base : NULL;
}

/* ---- commands ---- */

uint64_t tpc_seat_tail(struct tp_conn *conn) {
    struct tp_ring *ring = &conn->seat->commands;
    ring->at = conn->at;
    uint64_t room = tp_ring_room(ring);
    if (TP_UNLIKELY(ring->broken)) {
        tpc_lose(conn, TP_ERROR_PROTOCOL, "the index of the command ring cannot be");
    }
    return conn->at - (ring->size - room);
}

void tpc_seat_wait_space(struct tp_conn *conn, size_t size) {
    struct tpc_seat *seat = conn->seat;
    for (int i = 0; !tpc_is_lost(conn); i++) {
        uint64_t used = atomic_load_explicit(&conn->head, memory_order_seq_cst) -
                        atomic_load_explicit(&seat->slot->commands.tail, memory_order_acquire);
        if (used > seat->commands.size || seat->commands.size - used >= size) {
            return; /* an index that cannot be is told by whoever appends */
        }
        if (i < SPACE_SPINS) {
            tp_pause();
        } else if (i < 2 * SPACE_SPINS) {
            sched_yield();
        } else if (!tpc_seat_gone(conn)) {
            struct timespec nap = {.tv_nsec = SPACE_NAP_NS};
            int saved = errno;
            nanosleep(&nap, NULL);
            errno = saved;
        }
    }
}

/* ---- replies ---- */

bool tpc_seat_ready(struct tp_conn *conn) {
    const struct tp_ring *replies = &conn->seat->replies, *down = &conn->seat->down;
    return atomic_load_explicit(&replies->shared->head, memory_order_acquire) != replies->at ||
           atomic_load_explicit(&down->shared->head, memory_order_relaxed) != down->at;
}

size_t tpc_seat_receive(struct tp_conn *conn, void *to, size_t size) {
    struct tpc_seat *seat = conn->seat;
    uint64_t filled = tp_ring_filled(&seat->replies);
    if (TP_UNLIKELY(seat->replies.broken)) {
        tpc_lose(conn, TP_ERROR_PROTOCOL, "the index of the reply ring cannot be");
        return 0;
    }
    if (filled == 0) {
        return 0;
    }
    size = filled < size ? (size_t)filled : size;
    tp_ring_get(&seat->replies, to, size);
    tp_ring_consume(&seat->replies, size);
    tp_bell_ring(&seat->slot->session_bell); /* it may wait for room */
    seat->nap.since = 0;
    return size;
}

void tpc_seat_sleep(struct tp_conn *conn) {
    struct tpc_seat *seat = conn->seat;
    struct tp_bell *bell = &seat->slot->client_bell;
    tp_bell_arm(bell);
    if (tpc_is_lost(conn) || tpc_seat_gone(conn) || tpc_seat_ready(conn)) {
        tp_bell_disarm(bell);
        return;
    }
    tp_bell_wait(bell, &seat->nap, tpc_waiting() ? TPC_SLICE_NS : TPC_NO_NEWS);
}

void tpc_seat_sleep_aside(struct tp_conn *conn, struct tp_nap *nap) {
    if (tpc_seat_gone(conn) || tpc_seat_ready(conn)) {
        nap->since = 0;
        return;
    }
    /* Not at the client's bell, which has one owner: whoever holds receive. */
    uint64_t now = tp_now_ns();
    nap->since = nap->since ? nap->since : now;
    uint64_t ns = (now - nap->since) / 8;
    struct timespec time = {.tv_nsec = ns < 20000 ? 20000 : ns > 2000000 ? 2000000 : (long)ns};
    nanosleep(&time, NULL);
}
