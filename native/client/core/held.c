/*
 * Frames that say that something is complete: replies and messages wait here, in their order, until the downloads that the
 * session had handed over before have landed. Everything else is news, which the receiver takes at once: the GPU can tell the
 * program of a completion by itself, and what failed before must not come after that.
 *
 * Owns the list under `transfers`. Frames enter it by the one thread that reads, and leave it by whichever thread lands the
 * last download. One thread at a time lets them go, so that they go in order; handlers run with no lock of this file.
 */
#include "conn_internal.h"

#include <stdlib.h>
#include <string.h>

#define HELD_MAX                                                                                                       \
    (16u << 20) /* bytes of messages: more than a worker ever has to say while downloads are on their way */

/* Whether a frame has to wait. Under transfers. */
static bool must_wait(struct tp_conn *conn, uint64_t transfers, const char **wrong) {
    if (transfers < conn->counted) {
        *wrong = "fewer than one before it";
    } else if (!tpc_can_land(conn, transfers)) {
        *wrong = "more than were asked for";
    } else {
        conn->counted = transfers;
        /* While others wait or are just let go, it stands behind them. */
        return conn->held || conn->releasing || transfers > conn->landed;
    }
    return false;
}

static void enlist(struct tp_conn *conn, struct tpc_held *held) {
    held->next = NULL;
    *(conn->held ? conn->held_end : &conn->held) = held;
    conn->held_end = &held->next;
    tpc_release(conn); /* the connection may just have been lost, when nobody else will */
}

static void complain(struct tp_conn *conn, uint64_t transfers, const char *wrong) {
    if (wrong) {
        tpc_lose(conn, TP_ERROR_PROTOCOL, "a frame counts %llu transfers: %s", (unsigned long long)transfers, wrong);
    }
}

bool tpc_hold_reply(struct tp_conn *conn, struct tpc_caller *caller, uint64_t transfers) {
    const char *wrong = NULL;
    tp_lock_take(&conn->transfers);
    bool waits = must_wait(conn, transfers, &wrong);
    if (waits) {
        caller->held = (struct tpc_held){.transfers = transfers, .caller = caller};
        tpc_gated(caller);
        enlist(conn, &caller->held);
    }
    tp_lock_drop(&conn->transfers);
    complain(conn, transfers, wrong);
    return waits;
}

bool tpc_hold_message(struct tp_conn *conn, const struct tp_reply_frame *frame, const unsigned char *body) {
    const char *wrong = NULL;
    uint32_t size = frame->size - (uint32_t)sizeof *frame;
    struct tpc_held *held = NULL;
    tp_lock_take(&conn->transfers);
    bool waits = must_wait(conn, frame->transfers, &wrong);
    bool room = size <= HELD_MAX - conn->held_bytes;
    if (waits && room) {
        held = malloc(sizeof *held + size);
    }
    if (held) {
        *held = (struct tpc_held){.transfers = frame->transfers, .op = frame->op, .size = size};
        memcpy(held + 1, body, size);
        conn->held_bytes += size;
        enlist(conn, held);
    }
    tp_lock_drop(&conn->transfers);
    if (waits && !held) {
        tpc_lose(conn, room ? TP_ERROR_MEMORY : TP_ERROR_PROTOCOL, "no room for a message that waits for downloads");
    }
    complain(conn, frame->transfers, wrong);
    return waits || wrong; /* one that cannot be is handed to nobody */
}

void tpc_release(struct tp_conn *conn) {
    if (conn->releasing) {
        return; /* that thread looks again */
    }
    conn->releasing = true;
    while (conn->held && (tpc_is_lost(conn) || conn->held->transfers <= conn->landed)) {
        struct tpc_held *held = conn->held;
        conn->held = held->next;
        if (held->caller) {
            tpc_deliver(held->caller, tpc_is_lost(conn) ? TPC_LOST : TPC_DONE); /* from here on it is its thread's */
            continue;
        }
        conn->held_bytes -= held->size;
        tp_lock_drop(&conn->transfers);
        tpc_dispatch_message(conn, held->op, (const unsigned char *)(held + 1), held->size);
        free(held);
        tp_lock_take(&conn->transfers);
    }
    conn->releasing = false;
}
