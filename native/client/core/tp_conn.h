/*
 * The client's connection to its session: one per process, opened by the first call that needs it.
 *
 * Owned by libteleport, whose halves for CUDA and NVML use it through these functions only. Any thread may call; frames take
 * their place in the process's total order at tp_commit. Received bytes are the worker's: they are bounded before use, so
 * that a broken worker cannot make this process write outside the buffers that its own calls named.
 *
 * Sending never blocks an appending thread in a system call while another thread waits for the append lock: frames lie in a
 * ring of this process, a sender thread (or a thread that is about to wait) moves them to the socket.
 */
#ifndef TP_CONN_H
#define TP_CONN_H

#include <tp_base.h>
#include <tp_segment.h>
#include <tp_wire.h>

struct tp_conn;

/* The process's connection, made on first use; NULL with *status set when it cannot be had (the reason is logged once).
 * A child of fork starts without one: whatever still holds the parent's gets TP_ERROR_FORKED from it, and tp_connection makes
 * one of the child's own. A connection that was lost stays lost: TP_ERROR_LOST. */
TP_EXPORT struct tp_conn *tp_connection(enum tp_status *status);
/* The connection if it exists already, without making one. */
TP_EXPORT struct tp_conn *tp_connection_if_any(void);
TP_EXPORT bool tp_alive(const struct tp_conn *conn);

/* Where this process has the worker's segment mapped, and its size; NULL over TCP. */
TP_EXPORT unsigned char *tp_segment_base(const struct tp_conn *conn, uint64_t *size);

/* ---- this thread ---- */
struct tp_thread {
    uint32_t number;  /* from 1; stands in every frame; reused only after the thread has ended */
    uint32_t context; /* put into every frame: id of the thread's current context (kept by libcuda) */
    /* What it sends lets the session go on (host_function_done, late_bytes), or who sends that may need a lock of this thread: it never
     * waits for the session to catch up, nor for the result of what it posts. */
    bool urgent;
};
TP_EXPORT struct tp_thread *tp_thread_self(void);

/* ---- appending ----
 * tp_reserve locks the stream and gives room for one frame of `size` bytes, header included (rounded up to 8, at most
 * TP_FRAME_MAX); header fields size, op, thread and context are filled in, the body is the caller's. Where more than
 * TP_BEHIND_MAX was sent behind what the session has answered it first asks and waits, as the driver does when a stream is full. NULL when the
 * connection is lost (nothing is locked then). Exactly one of the commit functions must follow; between the two the thread
 * must not sleep or call the connection again. Also NULL, with a sentence in the log, where the worker is of another release and has no such
 * operation: then tp_refused says so, to whoever asks next on this thread. */
TP_EXPORT void *tp_reserve(struct tp_conn *conn, uint16_t op, size_t size);
TP_EXPORT bool tp_refused(const struct tp_conn *conn);
/* Name of an operation or a message by the number that it has on this connection, for sentences. */
TP_EXPORT const char *tp_op_name(uint16_t op);
/* Opens the data connections if they are not open yet. Must have succeeded before a transfer larger than TP_INLINE_MAX is
 * reserved. Sleeps. */
TP_EXPORT enum tp_status tp_data_ready(struct tp_conn *conn);
/* Makes the frame part of the stream and returns at once. */
TP_EXPORT void tp_commit(struct tp_conn *conn);
/* The same, and queues `size` bytes at `source` as transfer `number` on the data connections, in the order of commits. The
 * source must stay unchanged until tp_transfer_sent. Returns the transfer's number, which the frame must already carry: ask
 * tp_transfer_next between reserve and commit. */
TP_EXPORT uint64_t tp_transfer_next(struct tp_conn *conn);
TP_EXPORT void tp_commit_upload(struct tp_conn *conn, uint64_t number, const void *source, size_t size);
/* Announces, between reserve and commit, that transfer `number` will arrive and may write exactly [destination,
 * destination+size): as chunks on the data connections or by tp_download_written. */
TP_EXPORT void tp_expect_download(struct tp_conn *conn, uint64_t number, void *destination, size_t size);

/* Waits until the bytes of an upload may be reused (they are in the kernel's hands), or the connection is lost. */
TP_EXPORT enum tp_status tp_upload_wait(struct tp_conn *conn, uint64_t number);
/* [start, start+size) is going to be read for a copy that has no transfer, until the end of `token`. False without memory. */
TP_EXPORT bool tp_source_begin(struct tp_conn *conn, uint64_t token, const void *start, size_t size);
TP_EXPORT void tp_source_end(struct tp_conn *conn, uint64_t token);
/* Waits until every upload that reads from, and (downloads) every transfer that writes to, [start, start+size) is done. */
TP_EXPORT enum tp_status tp_transfers_touching_wait(struct tp_conn *conn, const void *start, size_t size);
/* True if a download that was expected into [start, start+size) has not arrived yet. */
TP_EXPORT bool tp_download_pending(struct tp_conn *conn, const void *start, size_t size);
/* Ends an expected download whose bytes came by another way than the data connections; false when they do not fit it. */
TP_EXPORT bool tp_download_written(struct tp_conn *conn, uint64_t number, const void *data, size_t size);
/* Forgets an expected download that will never arrive (its call failed). */
TP_EXPORT void tp_download_cancel(struct tp_conn *conn, uint64_t number);

/* ---- completion by the GPU ----
 * Over shared memory each of the first TP_DONE_WORDS / 2 threads has a word that the GPU can write when a stream has come to a
 * point, and TP_LANDING bytes where a small copy lands: such a wait needs no reply. */
struct tp_done {
    uint32_t word;
    uint64_t value; /* that the word will have */
    const unsigned char *landing;
};
/* False where there is none: over TCP, for other threads, and while downloads are outstanding that a wait must cover. */
TP_EXPORT bool tp_done_begin(struct tp_conn *conn, struct tp_done *done);
/* Spins until the word has its value and every message that was sent before has been handled. False when that takes long,
 * or never happens (an error): then a call that waits must follow. */
TP_EXPORT bool tp_done_wait(struct tp_conn *conn, const char *what, const struct tp_done *done);

/* A word of the other half, for somebody who only looks now and then; false where none is free. It is free again when what was
 * promised last has been written. */
TP_EXPORT bool tp_done_lend(struct tp_conn *conn, struct tp_done *done);
/* Whether it has come to that; and whether every message is handled, too, that was sent before: another thread may be at it. */
TP_EXPORT bool tp_done_written(const struct tp_conn *conn, const struct tp_done *done);
TP_EXPORT bool tp_done_reached(struct tp_conn *conn, const struct tp_done *done);

/* ---- calling ---- */
struct tp_reply {
    int32_t result;
    uint32_t size;       /* bytes of body */
    unsigned char *body; /* `inline_body` or heap memory that tp_reply_free frees */
    uint64_t number;     /* of the call among the frames of this connection, from 1 */
    unsigned char inline_body[512];
};
/* Commits the reserved frame as a call, sends everything pending, waits for the reply (spinning briefly first), and, if it
 * says that something is complete, for the downloads that were handed over before it. `what` is the API function, for the round-trip statistics.
 * On TP_OK the reply must be freed. */
TP_EXPORT enum tp_status tp_commit_call(struct tp_conn *conn, const char *what, struct tp_reply *reply);
TP_EXPORT void tp_reply_free(struct tp_reply *reply);
/* For the one call that this thread makes next: if it succeeds, `take` gets the body where it was received, on whichever thread
 * reads, and the reply has none. Large answers are copied once less. */
typedef void tp_reply_taker(void *what, const unsigned char *body, size_t size);
TP_EXPORT void tp_take_reply(tp_reply_taker *take, void *what);
/* Number of frames committed so far, by all threads. */
TP_EXPORT uint64_t tp_frames(const struct tp_conn *conn);
/* Sends what is pending without waiting for anything. */
TP_EXPORT void tp_flush(struct tp_conn *conn);

/* ---- messages from the session that answer no call ----
 * Called on a thread of the connection, or on a waiting caller's thread; must not sleep, and of the connection may call only
 * tp_listen and what ends downloads. A message that says that something is complete comes behind the
 * downloads that were handed over before it, or when the connection is lost. False: it cannot be, which ends the connection. */
typedef bool tp_message_handler(uint16_t op, const unsigned char *body, size_t size);
TP_EXPORT void tp_on_message(tp_message_handler *handler);
/* Tells the connection that messages or downloads may come that nobody waits for, so that its own thread must listen:
 * +1 when such a thing becomes outstanding, -1 when it is done. Expected downloads count by themselves. */
TP_EXPORT void tp_listen(struct tp_conn *conn, int delta);
/* From now on messages may come at any time. */
TP_EXPORT void tp_listen_always(struct tp_conn *conn);

/* ---- loss ----
 * Called once, on any thread, when the connection ends. */
TP_EXPORT void tp_on_loss(void (*handler)(void));
/* Of a lost connection, before the program hears of it and ends: another thread may be about to say why. At most a second. */
TP_EXPORT void tp_await_reason(struct tp_conn *conn);

/* ---- statistics ---- */
struct tp_counters {
    _Atomic uint64_t frames, round_trips, blocked_ns, bytes_sent, bytes_received;
};
TP_EXPORT extern struct tp_counters tp_counters;
/* A call of a function that is not carried to the worker; `name` is a string constant. */
TP_EXPORT void tp_count_unsupported(const char *name);
/* Nanoseconds of the fastest round trip so far, which tells how far away the worker is; UINT64_MAX before the first. */
TP_EXPORT uint64_t tp_fastest_round_trip(void);
/* JSON object of the counters and, by API function, round trips, time blocked and unsupported calls. Returns the length without the NUL, or the
 * length needed if `size` is too small. Written to TF_STATS_PATH ("%p" = process id) at exit when that is set. */
TP_EXPORT size_t tp_stats_json(char *buffer, size_t size);

#endif
