/*
 * The connection's place in a worker's shared segment; NULL in conn->seat over TCP.
 *
 * Frames are appended straight into the command ring, so there is no sender thread; replies are copied out of the reply ring
 * before they are looked at. Large transfers go through staging blocks by copier threads, and by callers that would otherwise
 * only wait. What the worker can write (indices, records, block words) is loaded once and bounded.
 */
#ifndef TPC_SEAT_H
#define TPC_SEAT_H

#include <tp_segment.h>

struct tp_conn;
struct tp_endpoint;
struct tp_welcome;

struct tpc_seat {
    unsigned char *base; /* where this process has the segment */
    uint64_t size;
    struct tp_slot *slot;
    uint64_t epoch;
    struct tp_run run;
    uint32_t blocks;
    pthread_t life;
    _Atomic bool alive;          /* the life thread holds the slot's mutex */
    _Atomic bool over;           /* the life thread is to end */
    _Atomic uint64_t over_since; /* that the session has ended was seen then, with something of it not yet read */

    struct tp_ring commands;  /* under append; its `at` is conn->at */
    struct tp_ring replies;   /* the holder of receive */
    struct tp_nap nap;        /* the holder of receive */
    _Atomic uint64_t handled; /* bytes of replies that were looked at; stored by the holder of receive */

    struct tp_lock up_lock;
    struct tp_ring up; /* chunk records */
    unsigned char up_busy[TP_BLOCKS_MAX];
    struct tp_lock down_lock;
    struct tp_ring down;
};

/* attach.c: finds the segment, takes a slot, greets. On failure nothing is left and `why` says what to do. */
enum tp_status tpc_seat_take(struct tp_conn *conn, const struct tp_endpoint *to, struct tp_welcome *welcome, char *why,
                             size_t why_size);
void tpc_seat_leave(struct tp_conn *conn); /* before anybody else uses the connection */

/* seat.c */
bool tpc_seat_gone(struct tp_conn *conn); /* looks at the session's life; loses the connection when it is over */
/* Under append: how far the session has read. */
uint64_t tpc_seat_tail(struct tp_conn *conn);
/* Holding nothing: sleeps a little until about `size` bytes may be free. */
void tpc_seat_wait_space(struct tp_conn *conn, size_t size);
/* Bytes of replies into `to`, 0 when there are none. Holds receive. */
size_t tpc_seat_receive(struct tp_conn *conn, void *to, size_t size);
bool tpc_seat_ready(struct tp_conn *conn); /* replies lie there */
/* Sleeps until replies may lie there. Holds receive. */
void tpc_seat_sleep(struct tp_conn *conn);
/* The same for the listener, which does not hold receive. */
void tpc_seat_sleep_aside(struct tp_conn *conn, struct tp_nap *nap);

/* copier.c */
enum tp_status tpc_copiers_start(struct tp_conn *conn);
/* One chunk of any queued upload through a staging block; false when there is none to be had. */
bool tpc_copier_up(struct tp_conn *conn);
/* One chunk that the session has handed over; false when there is none. */
bool tpc_copier_down(struct tp_conn *conn);

#endif
