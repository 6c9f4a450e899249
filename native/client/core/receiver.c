/*
 * The receiving half of the control connection: replies to waiting threads, messages to their handlers.
 *
 * Owns the input buffer, which only the holder of `receive` touches. There is one reader at a time: a waiting caller reads for
 * everybody (the leader) and hands over when its own reply is there; others sleep; the listener thread reads only when
 * something is outstanding that no caller waits for. Bytes come from the worker: every frame is bounded before it is read,
 * a reply goes only to a thread that expects one, and the first violation ends the connection.
 */
#include "conn_internal.h"
#include "tpg_schema.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define SPIN_NS 100000u
/* Over shared memory a waiter then yields for so many times as long before it sleeps, as the driver's own waits do on a machine
 * with cores to spare: waking up costs up to 50 µs, which a program feels that synchronises every millisecond. */
#define LINGER 20u
#define LOOK_NS 1000000u
#define RECEIVE_PIECE (68u << 10) /* a small copy with its header; keeps the touched part of the input buffer small */

static tp_message_handler *_Atomic message_handler;

void tp_on_message(tp_message_handler *handler) {
    atomic_store_explicit(&message_handler, handler, memory_order_release);
}

void tpc_deliver(struct tpc_caller *caller, uint32_t state) {
    if (atomic_exchange_explicit(&caller->state, state, memory_order_seq_cst) == TPC_SLEEPING) {
        tp_futex_wake(&caller->state, 1);
    }
}

void tpc_gated(struct tpc_caller *caller) {
    /* Pairs with follow, which stores SLEEPING and then looks at gated. One that sleeps still counts as a caller that would read,
     * so it has to wake up and stop counting: else neither it nor the listener takes the chunk that it waits for. */
    atomic_store_explicit(&caller->gated, true, memory_order_seq_cst);
    uint32_t sleeping = TPC_SLEEPING;
    if (atomic_compare_exchange_strong(&caller->state, &sleeping, TPC_LEAD)) {
        tp_futex_wake(&caller->state, 1);
    }
}

void tpc_wake_all_callers(struct tp_conn *conn) {
    (void)conn;
    uint32_t count = tpc_caller_count();
    for (uint32_t number = 1; number <= count; number++) {
        struct tpc_caller *caller = tpc_caller_find(number);
        if (atomic_exchange_explicit(&caller->expects, false, memory_order_seq_cst)) {
            tpc_deliver(caller, TPC_LOST);
        }
    }
}

/* ---- frames ---- */

static void take_reply(struct tp_conn *conn, const struct tp_reply_frame *frame, const unsigned char *body,
                       uint32_t size) {
    struct tpc_caller *caller = tpc_caller_find(frame->thread);
    if (!caller || !atomic_exchange_explicit(&caller->expects, false, memory_order_seq_cst)) {
        tpc_lose(conn, TP_ERROR_PROTOCOL, "a reply for thread %u, which awaits none", frame->thread);
        return;
    }
    struct tp_reply *reply = caller->reply;
    reply->result = frame->result;
    reply->body = reply->inline_body;
    if (caller->take && frame->result == 0) {
        caller->take(caller->what, body, size);
        size = 0;
    }
    reply->size = size;
    if (size > sizeof reply->inline_body) {
        reply->body = malloc(size);
        if (!reply->body) {
            reply->body = reply->inline_body;
            reply->size = 0;
            tpc_lose(conn, TP_ERROR_MEMORY, "no memory for a reply of %u bytes", size);
            tpc_deliver(caller, TPC_LOST); /* after the loss, which the thread takes for granted */
            return;
        }
    }
    memcpy(reply->body, body, size);
    if (!(frame->flags & TP_FRAME_COMPLETES) || !tpc_hold_reply(conn, caller, frame->transfers)) {
        tpc_deliver(caller, tpc_is_lost(conn) ? TPC_LOST : TPC_DONE);
    }
}

void tpc_dispatch_message(struct tp_conn *conn, uint16_t op, const unsigned char *body, size_t size) {
    tp_message_handler *handler = atomic_load_explicit(&message_handler, memory_order_acquire);
    const uint16_t ours = tpc_ours(conn, op);
    const bool dropped = conn->skew && ours == TP_DROPPED;
    if (!dropped && (!handler || !handler(ours, body, size))) {
        tpc_lose(conn, TP_ERROR_PROTOCOL, "a message with number %u and %zu bytes that cannot be", op, size);
    }
}

/* All complete frames of the input. */
static void take_frames(struct tp_conn *conn) {
    while (conn->input_end - conn->input_start >= sizeof(struct tp_reply_frame) && !tpc_is_lost(conn)) {
        const unsigned char *at = conn->input + conn->input_start;
        struct tp_reply_frame frame;
        memcpy(&frame, at, sizeof frame);
        if (frame.size < sizeof frame || frame.size > TP_FRAME_MAX || frame.size % 8 != 0) {
            tpc_lose(conn, TP_ERROR_PROTOCOL, "a frame of %u bytes", frame.size);
            return;
        }
        if (conn->input_end - conn->input_start < frame.size) {
            return;
        }
        conn->input_start += frame.size;
        uint32_t body_size = frame.size - (uint32_t)sizeof frame;
        if (TP_UNLIKELY(conn->last_words)) {
            if (tpc_ours(conn, frame.op) == TPG_OP_device_broken && !(frame.flags & TP_FRAME_REPLY)) {
                tpc_dispatch_message(conn, frame.op, at + sizeof frame, body_size);
            }
        } else if (frame.flags & TP_FRAME_REPLY) {
            take_reply(conn, &frame, at + sizeof frame, body_size);
        } else if (!(frame.flags & TP_FRAME_COMPLETES) || !tpc_hold_message(conn, &frame, at + sizeof frame)) {
            tpc_dispatch_message(conn, frame.op, at + sizeof frame, body_size);
        }
    }
}

/* Reads once and takes what is complete; false when nothing came (or the connection is lost). Holds receive. */
static bool pump(struct tp_conn *conn) {
    size_t have = conn->input_end - conn->input_start;
    if (have == 0) {
        conn->input_start = conn->input_end = 0;
    }
    size_t want = RECEIVE_PIECE;
    if (have >= sizeof(uint32_t)) { /* a frame has begun: its size was checked by take_frames or will be */
        uint32_t size;
        memcpy(&size, conn->input + conn->input_start, sizeof size);
        if (size > have && size <= TP_FRAME_MAX) {
            want += size - have;
        }
    }
    if (conn->input_end + want > TPC_INPUT_SIZE) {
        memmove(conn->input, conn->input + conn->input_start, have);
        conn->input_start = 0;
        conn->input_end = have;
    }
    ssize_t n;
    if (conn->seat) {
        n = (ssize_t)tpc_seat_receive(conn, conn->input + conn->input_end, want);
        if (n == 0) {
            return !conn->last_words && tpc_copier_down(conn); /* rather than only wait for those who do it */
        }
    } else {
        n = tp_stream_receive(conn->secure, conn->control, conn->input + conn->input_end, want);
    }
    if (n > 0) {
        conn->input_end += (size_t)n;
        atomic_fetch_add_explicit(&tp_counters.bytes_received, (uint64_t)n, memory_order_relaxed);
        take_frames(conn);
        if (conn->seat) {
            atomic_store_explicit(&conn->seat->handled, conn->seat->replies.at - (conn->input_end - conn->input_start),
                                  memory_order_release);
        }
        return true;
    }
    if (n == 0) {
        tpc_lose(conn, TP_ERROR_LOST, "the worker closed the connection");
    } else if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) {
        tpc_lose(conn, TP_ERROR_LOST, "receiving failed: %s", tp_secure_error(conn->secure, errno));
    }
    return false;
}

bool tpc_hear_last(struct tp_conn *conn) {
    if (!tp_lock_try(&conn->receive)) {
        return false;
    }
    conn->last_words = true;
    while (pump(conn)) {
    }
    tp_lock_drop(&conn->receive);
    return true;
}

void tpc_hear_end(struct tp_conn *conn) {
    const uint64_t until = tp_now_ns() + TPC_LAST_WORDS_NS;
    const int saved = errno;
    while (!tpc_is_lost(conn) && !tpc_hear_last(conn) && tp_now_ns() < until) {
        nanosleep(&(struct timespec){.tv_nsec = LOOK_NS}, NULL);
    }
    errno = saved;
}

static void wait_readable(struct tp_conn *conn) {
    if (conn->seat) {
        tpc_seat_sleep(conn);
        return;
    }
    struct pollfd wait = {.fd = conn->control, .events = POLLIN};
    int ms = tpc_waiting() ? (int)(TPC_SLICE_NS / 1000000u) : 1000;
    if (tp_stream_holds(conn->secure) || poll(&wait, 1, ms) != 0) {
        conn->silent_s = 0;
        tpc_say_stopped(conn, false);
    } else if (tp_net_silent(conn->control)) {
        tpc_lose(conn, TP_ERROR_LOST, "the worker has not answered for 9 s");
    } else if (!tpc_waiting() && atomic_load(&conn->callers) > 0) {
        tpc_silence(conn, ++conn->silent_s);
    }
}

/* ---- waiting callers ---- */

static bool is_final(uint32_t state) { return state == TPC_DONE || state == TPC_LOST; }

static uint32_t state_of(const struct tpc_caller *caller) {
    return atomic_load_explicit(&caller->state, memory_order_acquire);
}

static bool nobody_reads(struct tp_conn *conn) {
    return atomic_load_explicit(&conn->receive.state, memory_order_seq_cst) == 0;
}

static void unlist(struct tp_conn *conn, struct tpc_caller *caller) {
    if (!caller->listed) {
        return;
    }
    caller->listed = false;
    *(caller->previous ? &caller->previous->next : &conn->sleepers) = caller->next;
    if (caller->next) {
        caller->next->previous = caller->previous;
    }
    atomic_fetch_sub_explicit(&conn->sleepers_count, 1, memory_order_relaxed);
}

/* Makes sure that somebody reads if somebody has to. Called by everyone who stops reading or waiting. */
static void pass_on(struct tp_conn *conn) {
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load_explicit(&conn->sleepers_count, memory_order_seq_cst) > 0 && nobody_reads(conn)) {
        bool found = false;
        tp_lock_take(&conn->sleepers_lock);
        while (conn->sleepers && !found) {
            struct tpc_caller *caller = conn->sleepers;
            unlist(conn, caller);
            uint32_t sleeping = TPC_SLEEPING;
            found = !atomic_load_explicit(&caller->gated, memory_order_relaxed) &&
                    atomic_compare_exchange_strong(&caller->state, &sleeping, TPC_LEAD);
            if (found) {
                tp_futex_wake(&caller->state, 1);
            }
        }
        tp_lock_drop(&conn->sleepers_lock);
        if (found) {
            return;
        }
    }
    tpc_nudge_listener(conn);
}

/* Whether somebody who waits since `begin` stays awake; yields once the time for spinning is over. */
static bool linger(const struct tp_conn *conn, uint64_t begin) {
    uint64_t waited = tp_now_ns() - begin;
    if (waited < conn->spin_ns) {
        return true;
    }
    if (!conn->seat || waited > LINGER * conn->spin_ns) {
        return false;
    }
    sched_yield();
    return true;
}

/* Reads until the caller's reply is there, or waits for downloads. Holds receive. */
static void lead(struct tp_conn *conn, const struct tpc_caller *caller) {
    uint64_t begin = tp_now_ns();
    while (!is_final(state_of(caller)) && !atomic_load_explicit(&caller->gated, memory_order_relaxed) &&
           !tpc_is_lost(conn)) {
        if (pump(conn)) {
            continue;
        }
        if (linger(conn, begin)) {
            for (int i = 0; conn->seat ? i < 64 && !tpc_seat_ready(conn) : i < 16; i++) {
                tp_pause();
            }
        } else {
            wait_readable(conn);
            if (!tpc_wait_goes_on()) { /* for the session's first reply, which can take as long as its driver does */
                tpc_lose(conn, TP_ERROR_INTERRUPTED, "the program was interrupted while it waited for its session");
            }
        }
    }
}

/* Sleeps until delivered, chosen to lead, or (a gated caller is never chosen) only until delivered. */
static void follow(struct tp_conn *conn, struct tpc_caller *caller) {
    bool gated = atomic_load_explicit(&caller->gated, memory_order_relaxed);
    uint32_t expected = TPC_WAITING;
    tp_lock_take(&conn->sleepers_lock);
    bool sleeps = atomic_compare_exchange_strong(&caller->state, &expected, TPC_SLEEPING);
    if (sleeps && !gated) {
        caller->previous = NULL;
        caller->next = conn->sleepers;
        if (caller->next) {
            caller->next->previous = caller;
        }
        conn->sleepers = caller;
        caller->listed = true;
        atomic_fetch_add_explicit(&conn->sleepers_count, 1, memory_order_seq_cst);
    }
    tp_lock_drop(&conn->sleepers_lock);
    atomic_thread_fence(memory_order_seq_cst);
    /* The leader may have left between our last try and the listing: it drops receive and then looks at the list. */
    while (sleeps && state_of(caller) == TPC_SLEEPING && (gated || !nobody_reads(conn)) &&
           gated == atomic_load_explicit(&caller->gated, memory_order_relaxed)) {
        tp_futex_wait(&caller->state, TPC_SLEEPING, 0);
    }
    tp_lock_take(&conn->sleepers_lock);
    unlist(conn, caller);
    expected = TPC_SLEEPING;
    if (!atomic_compare_exchange_strong(&caller->state, &expected, TPC_WAITING)) {
        expected = TPC_LEAD;
        atomic_compare_exchange_strong(&caller->state, &expected, TPC_WAITING);
    }
    tp_lock_drop(&conn->sleepers_lock);
}

static void await(struct tp_conn *conn, struct tpc_caller *caller) {
    atomic_fetch_add_explicit(&conn->callers, 1, memory_order_seq_cst);
    uint64_t spin_until = 0;
    bool counted = true;
    while (!is_final(state_of(caller))) {
        bool gated = atomic_load_explicit(&caller->gated, memory_order_relaxed);
        if (gated && counted) {
            counted = false;
            atomic_fetch_sub_explicit(&conn->callers, 1, memory_order_seq_cst);
            pass_on(conn);
        }
        if (tpc_is_lost(conn) && atomic_exchange_explicit(&caller->expects, false, memory_order_seq_cst)) {
            tpc_deliver(caller, TPC_LOST);
            break;
        }
        if (!gated && !tpc_is_lost(conn) && tp_lock_try(&conn->receive)) {
            lead(conn, caller);
            while (tp_stream_holds(conn->secure) && !tpc_is_lost(conn) && pump(conn)) {
            } /* a listener that polls the socket would not hear of it */
            tp_lock_drop(&conn->receive);
            continue;
        }
        uint64_t now = tp_now_ns();
        spin_until = spin_until ? spin_until : now + conn->spin_ns;
        if (gated && conn->seat && tpc_copier_down(conn)) {
            continue;
        }
        if (now < spin_until) {
            for (int i = 0; i < 16 && !is_final(state_of(caller)); i++) {
                tp_pause();
            }
        } else {
            follow(conn, caller);
        }
    }
    if (counted) {
        atomic_fetch_sub_explicit(&conn->callers, 1, memory_order_seq_cst);
    }
    pass_on(conn);
}

void tp_take_reply(tp_reply_taker *take, void *what) {
    struct tpc_caller *caller = tpc_caller_self();
    caller->take = take;
    caller->what = what;
}

enum tp_status tp_commit_call(struct tp_conn *conn, const char *what, struct tp_reply *reply) {
    struct tpc_caller *caller = tpc_caller_self();
    struct tp_frame *frame = (struct tp_frame *)(void *)(conn->ring + (conn->at & (conn->ring_size - 1)));
    reply->body = reply->inline_body;
    reply->size = 0;
    reply->number =
        atomic_load_explicit(&conn->appended_frames, memory_order_relaxed) + 1; /* this thread holds `append` */
    frame->flags |= TP_FRAME_CALL;
    const struct tp_frame sent = *frame;
    const uint64_t at = conn->at;
    caller->reply = reply;
    atomic_store_explicit(&caller->gated, false, memory_order_relaxed);
    atomic_store_explicit(&caller->state, TPC_WAITING, memory_order_relaxed);
    atomic_store_explicit(&caller->expects, true, memory_order_seq_cst);
    tpc_expects(conn, reply->number);
    const uint64_t before = tpc_frames_traced(conn) ? tp_now_ns() : 0; /* once published, the session may be faster */
    tpc_publish(conn, true);

    int cancel = tpc_defer_cancel();
    uint64_t begin = tp_now_ns();
    if (!conn->seat && !tpc_flush_now(conn)) {
        tpc_wake_sender(conn);
    }
    await(conn, caller);
    uint64_t took = tp_now_ns() - begin;
    tpc_stats_round_trip(what, took);
    caller->reply = NULL;
    caller->take = NULL;
    bool done = atomic_exchange_explicit(&caller->state, TPC_IDLE, memory_order_acquire) == TPC_DONE;
    if (!done) {
        tpc_quiesce(conn);
    } else if (TP_LIKELY(!caller->thread.urgent)) { /* what is urgent is answered before what is held back */
        atomic_store_explicit(&conn->answered, at, memory_order_relaxed);
    }
    if (tpc_frames_traced(conn)) {
        tpc_trace_frame(&sent, reply->number, done ? reply : NULL, before, begin + took);
    }
    tpc_allow_cancel(cancel);
    if (done) {
        return TP_OK;
    }
    tp_reply_free(reply);
    return tpc_is_lost(conn) ? tpc_lost_status(conn) : TP_ERROR_LOST;
}

/* ---- completion by the GPU ---- */

static _Atomic uint64_t done_values[TP_DONE_WORDS];

static void take_word(struct tp_conn *conn, uint32_t word, struct tp_done *done) {
    done->word = word;
    done->value = atomic_fetch_add_explicit(&done_values[word], 1, memory_order_relaxed) + 1;
    tpc_expects(conn, tp_frames(conn)); /* the frame that asks for it comes next and ends a nap */
    done->landing = conn->seat->base + conn->seat->run.landing + (size_t)word * TP_LANDING;
}

bool tp_done_begin(struct tp_conn *conn, struct tp_done *done) {
    uint32_t word = tpc_caller_self()->thread.number - 1;
    if (!conn->seat || word >= TP_DONE_WORDS / 2 ||
        atomic_load_explicit(&conn->downloads_pending, memory_order_acquire) > 0) {
        return false;
    }
    take_word(conn, word, done);
    return true;
}

bool tp_done_lend(struct tp_conn *conn, struct tp_done *done) {
    if (!conn->seat || atomic_load_explicit(&conn->downloads_pending, memory_order_acquire) > 0) {
        return false;
    }
    for (uint32_t word = TP_DONE_WORDS / 2; word < TP_DONE_WORDS; word++) {
        if (atomic_load_explicit(&conn->seat->slot->done[word], memory_order_acquire) ==
            atomic_load_explicit(&done_values[word], memory_order_relaxed)) {
            take_word(conn, word, done);
            return true;
        }
    }
    return false;
}

static bool is_handled(const struct tp_conn *conn, uint64_t sent) {
    return (int64_t)(atomic_load_explicit(&conn->seat->handled, memory_order_acquire) - sent) >= 0;
}

/* Handles what lies in the reply ring now: a notice that a call failed was put there before the GPU got the work behind it.
 * False while another thread is at it (what it has taken out of the ring it may not have looked at), or half a frame is there. */
static bool take_messages(struct tp_conn *conn) {
    uint64_t sent = atomic_load_explicit(&conn->seat->replies.shared->head, memory_order_acquire);
    bool more = true;
    while (more && !is_handled(conn, sent) && !tpc_is_lost(conn) && tp_lock_try(&conn->receive)) {
        more = pump(conn);
        tp_lock_drop(&conn->receive);
        pass_on(conn);
    }
    return is_handled(conn, sent);
}

/* A lent word may have been lent again since it was written: then it has a later value, or will. */
bool tp_done_written(const struct tp_conn *conn, const struct tp_done *done) {
    uint64_t now = atomic_load_explicit(&conn->seat->slot->done[done->word], memory_order_acquire);
    return (int64_t)(now - done->value) >= 0;
}

bool tp_done_reached(struct tp_conn *conn, const struct tp_done *done) {
    return tp_done_written(conn, done) && take_messages(conn) && !tpc_is_lost(conn);
}

bool tp_done_wait(struct tp_conn *conn, const char *what, const struct tp_done *done) {
    const _Atomic uint64_t *word = &conn->seat->slot->done[done->word];
    uint64_t begin = tp_now_ns();
    bool reached = false;
    do {
        bool written = false;
        for (int i = 0; i < 64 && !written; i++) {
            written = atomic_load_explicit(word, memory_order_acquire) == done->value;
            tp_pause();
        }
        reached = take_messages(conn) && written;
    } while (!reached && !tpc_is_lost(conn) && linger(conn, begin));
    if (reached) {
        tpc_stats_round_trip(what, tp_now_ns() - begin);
    }
    return reached && !tpc_is_lost(conn);
}

void tp_reply_free(struct tp_reply *reply) {
    if (reply->body != reply->inline_body) {
        free(reply->body);
    }
    reply->body = reply->inline_body;
    reply->size = 0;
}

/* ---- the listener ---- */

static bool must_listen(struct tp_conn *conn) {
    return (atomic_load_explicit(&conn->listening, memory_order_seq_cst) > 0 ||
            atomic_load_explicit(&conn->downloads_pending, memory_order_seq_cst) > 0 ||
            atomic_load_explicit(&conn->always_listening, memory_order_relaxed)) &&
           atomic_load_explicit(&conn->callers, memory_order_seq_cst) == 0 && nobody_reads(conn);
}

void tpc_wake_listener(struct tp_conn *conn) {
    if (atomic_load_explicit(&conn->listener_parked, memory_order_seq_cst) == 1 &&
        atomic_exchange_explicit(&conn->listener_parked, 0, memory_order_seq_cst) == 1) {
        tp_futex_wake(&conn->listener_parked, 1);
    }
}

void tpc_nudge_listener(struct tp_conn *conn) {
    if (must_listen(conn)) {
        tpc_wake_listener(conn);
    }
}

void tp_listen(struct tp_conn *conn, int delta) {
    atomic_fetch_add_explicit(&conn->listening, delta, memory_order_seq_cst);
    if (delta > 0) {
        tpc_expects(conn, tp_frames(conn));
        tpc_nudge_listener(conn);
    }
}

void tp_listen_always(struct tp_conn *conn) {
    atomic_store(&conn->always_listening, true);
    tpc_nudge_listener(conn);
}

static void *listener_run(void *argument) {
    struct tp_conn *conn = argument;
    struct tp_nap nap = {0};
    while (!tpc_is_lost(conn)) {
        if (must_listen(conn)) { /* without the lock: a caller that comes meanwhile reads for itself at once */
            if (conn->seat) {
                tpc_seat_sleep_aside(conn, &nap);
            } else {
                wait_readable(conn);
            }
            if (must_listen(conn) && tp_lock_try(&conn->receive)) {
                while (pump(conn)) {
                }
                tp_lock_drop(&conn->receive);
                pass_on(conn);
            }
            continue;
        }
        atomic_store_explicit(&conn->listener_parked, 1, memory_order_seq_cst);
        if (!must_listen(conn) && !tpc_is_lost(conn)) {
            tp_futex_wait(&conn->listener_parked, 1, 0);
        }
        atomic_store_explicit(&conn->listener_parked, 0, memory_order_seq_cst);
    }
    return NULL;
}

enum tp_status tpc_listener_start(struct tp_conn *conn) {
    conn->spin_ns = tp_spin_ns(SPIN_NS);
    /* Handlers of messages run here, and with them host functions of the program: a stack like that of a small thread. */
    return tp_thread_start(NULL, "tf-listen", 1u << 20, listener_run, conn);
}
