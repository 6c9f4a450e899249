/*
 * The sending half of the control connection: a ring of frames in this process's memory, drained into the socket.
 *
 * Owns the ring. Entered by every thread that appends (under append, from tp_reserve to the commit), by whoever holds send
 * (the sender thread, or a caller about to wait), never both by the same step: an appender holds no lock in a system call.
 * The sender thread spins briefly after the last frame and then sleeps; appenders wake it only when it sleeps. While a program
 * sends and sends and waits for nothing it naps between two looks, because each frame by itself would cost a whole processor for
 * system calls; whoever waits for an answer sends what is left itself, and what somebody will wait for ends a nap.
 */
#include "conn_internal.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <tpg_schema.h>
#include <unistd.h>

#ifndef MFD_CLOEXEC
#define MFD_CLOEXEC 1u
#endif

#define SPIN_NS 50000u
/* The listener is started this late because most downloads are soon waited for, and the caller then reads by itself. */
#define NUDGE_NS 200000u
#define STREAMING 64 /* so many frames in a row that nobody waits for; fewer from a program that takes its time */
#define NAP_LEAST_NS 40000u /* 10 to 20 launches of a program that does little else */
#define PACE_NS 50000u
#define NAPPING_NS 1000000u /* without a frame, before the sender sleeps until it is woken */
#define NAP_SLACK_NS 1000ul /* the default would make naps twice as long */

static enum tp_status ring_mapped(struct tp_conn *conn, unsigned char *both, uint64_t size) {
    /* The mapping is shared: a forked child must not be able to write into its parent's stream. */
    madvise(both, 2 * size, MADV_DONTFORK);
    conn->ring = both;
    conn->ring_size = size;
    return TP_OK;
}

enum tp_status tpc_ring_map(struct tp_conn *conn, int fd, uint64_t offset, uint64_t size) {
    unsigned char *both = mmap(NULL, 2 * size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (both == MAP_FAILED) {
        return TP_ERROR_MEMORY;
    }
    for (int half = 0; half < 2; half++) {
        if (mmap(both + (size_t)half * size, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, (off_t)offset) ==
            MAP_FAILED) {
            munmap(both, 2 * size);
            return TP_ERROR_MEMORY;
        }
    }
    return ring_mapped(conn, both, size);
}

/* Without a file, which `ulimit -f` may not let us have: the kernel would end the process. */
static enum tp_status ring_map_anonymous(struct tp_conn *conn, uint64_t size) {
    unsigned char *both = mmap(NULL, 2 * size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (both == MAP_FAILED) {
        return TP_ERROR_MEMORY;
    }
    if (mremap(both, 0, size, MREMAP_MAYMOVE | MREMAP_FIXED, both + size) ==
        MAP_FAILED) { /* the same pages once more */
        munmap(both, 2 * size);
        return TP_ERROR_MEMORY;
    }
    return ring_mapped(conn, both, size);
}

enum tp_status tpc_ring_make(struct tp_conn *conn) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur < TPC_RING_SIZE) { /* no limit is the largest number */
        return ring_map_anonymous(conn, TPC_RING_SIZE);
    }
    int fd = (int)syscall(SYS_memfd_create, "tensor-fusion", MFD_CLOEXEC);
    const bool made = fd >= 0 && ftruncate(fd, TPC_RING_SIZE) == 0;
    enum tp_status status = made ? tpc_ring_map(conn, fd, 0, TPC_RING_SIZE) : TP_ERROR_MEMORY;
    if (fd >= 0) {
        close(fd);
    }
    return status;
}

/* ---- draining ---- */

/* Sends until the ring is empty; false when the socket takes no more (or the connection is lost). Holds send. */
static bool drain(struct tp_conn *conn) {
    uint64_t tail = atomic_load_explicit(&conn->tail, memory_order_relaxed);
    while (!tpc_is_lost(conn)) {
        uint64_t frames = atomic_load_explicit(&conn->appended_frames, memory_order_relaxed);
        uint64_t head = atomic_load_explicit(&conn->head, memory_order_seq_cst);
        if (head == tail) {
            atomic_store_explicit(&conn->sent_frames, frames, memory_order_relaxed);
            return true;
        }
        ssize_t n =
            tp_stream_send(conn->secure, conn->control, conn->ring + (tail & (conn->ring_size - 1)), head - tail);
        if (n > 0) {
            tail += (uint64_t)n;
            atomic_store_explicit(&conn->tail, tail, memory_order_seq_cst);
            atomic_fetch_add_explicit(&tp_counters.bytes_sent, (uint64_t)n, memory_order_relaxed);
            if (atomic_load_explicit(&conn->space_waiters, memory_order_seq_cst) > 0) {
                atomic_fetch_add_explicit(&conn->space_news, 1, memory_order_release);
                tp_futex_wake(&conn->space_news, INT32_MAX);
            }
        } else if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            return false;
        } else if (n < 0 && errno != EINTR) {
            tpc_hear_end(conn);
            tpc_lose(conn, TP_ERROR_LOST, "sending failed: %s", tp_secure_error(conn->secure, errno));
        }
    }
    return false;
}

static bool is_empty(struct tp_conn *conn) {
    return atomic_load_explicit(&conn->head, memory_order_seq_cst) ==
           atomic_load_explicit(&conn->tail, memory_order_seq_cst);
}

bool tpc_flush_now(struct tp_conn *conn) {
    if (conn->seat) { /* what is committed is where the session reads it */
        tp_bell_ring(&conn->seat->slot->session_bell);
        return true;
    }
    /* After a failed try the holder looks at head again once it has dropped the lock, so our frame is not forgotten. */
    while (!is_empty(conn) && tp_lock_try(&conn->send)) {
        int cancel = tpc_defer_cancel();
        bool all = drain(conn);
        tp_lock_drop(&conn->send);
        tpc_allow_cancel(cancel);
        atomic_thread_fence(memory_order_seq_cst);
        if (!all) {
            return false;
        }
    }
    return true;
}

void tpc_wake_sender(struct tp_conn *conn) {
    const uint32_t sleeps = atomic_load_explicit(&conn->sender_sleeps, memory_order_seq_cst);
    if (TP_UNLIKELY(sleeps != TP_AWAKE) && (sleeps != TP_NAPS || !tpc_streams(conn)) &&
        atomic_exchange_explicit(&conn->sender_sleeps, TP_AWAKE, memory_order_seq_cst) != TP_AWAKE) {
        tp_futex_wake(&conn->sender_sleeps, 1);
    }
}

/* What the sender sees of the program. */
struct pace {
    uint64_t since, frames; /* looked at every PACE_NS */
    uint64_t fills_ns;      /* so long the program takes to fill half of the cache of unsent frames */
    uint64_t waited_frame, streams_since;
};

/* How long to nap, 0: not now. A program that fills the cache within a nap would then have to send itself. */
static uint64_t nap_of(const struct tp_conn *conn, struct pace *pace) {
    const uint64_t frames = atomic_load_explicit(&conn->appended_frames, memory_order_relaxed), now = tp_now_ns();
    const uint64_t waited_frame = atomic_load_explicit(&conn->waited_frame, memory_order_relaxed);
    if (now - pace->since > PACE_NS) {
        pace->fills_ns = (now - pace->since) / (frames - pace->frames + 1) * conn->cache_max / 2;
        pace->since = now;
        pace->frames = frames;
    }
    if (waited_frame != pace->waited_frame) {
        pace->waited_frame = waited_frame;
        pace->streams_since = now;
    }
    const uint64_t ns = tp_nap_ns(now - pace->streams_since, NAP_LEAST_NS);
    if (!tpc_streams(conn) || (tpc_unasked(conn) <= STREAMING && ns == NAP_LEAST_NS) || pace->fills_ns < NAP_LEAST_NS) {
        return 0;
    }
    return ns < pace->fills_ns ? ns : pace->fills_ns;
}

/* Until then, or until somebody waits. After the store and the look: whoever waits sees the one, or was seen by the other. */
static void nap(struct tp_conn *conn, uint64_t ns) {
    atomic_store_explicit(&conn->sender_sleeps, TP_NAPS, memory_order_seq_cst);
    if (is_empty(conn) && !tpc_is_lost(conn)) {
        tp_futex_wait(&conn->sender_sleeps, TP_NAPS, ns);
    }
    atomic_store_explicit(&conn->sender_sleeps, TP_AWAKE, memory_order_seq_cst);
}

static void *sender_run(void *argument) {
    struct tp_conn *conn = argument;
    uint64_t spin = tp_spin_ns(SPIN_NS);
    prctl(PR_SET_TIMERSLACK, NAP_SLACK_NS, 0, 0, 0);
    uint64_t last_news = tp_now_ns(), last_nudge = last_news;
    struct pace pace = {.since = last_news};
    uint32_t silent_s = 0; /* for so long nothing was taken */
    while (!tpc_is_lost(conn)) {
        if (!is_empty(conn)) {
            if (tpc_flush_now(conn)) {
                last_news = tp_now_ns();
                if (last_news - last_nudge >
                    NUDGE_NS) { /* a program that appends without pause and only polls memory */
                    last_nudge = last_news;
                    tpc_nudge_listener(conn);
                }
                const uint64_t ns = nap_of(conn, &pace);
                if (ns) {
                    nap(conn, ns);
                }
                continue;
            }
            struct pollfd wait = {.fd = conn->control, .events = POLLOUT};
            silent_s = poll(&wait, 1, 1000) == 0 ? silent_s + 1 : 0;
            if (silent_s && tp_net_silent(conn->control)) {
                tpc_lose(conn, TP_ERROR_LOST, "the worker has not answered for 9 s");
            }
            tpc_silence(conn, silent_s);
            last_news = tp_now_ns();
            continue;
        }
        const uint64_t naps = nap_of(conn, &pace);
        if (naps) {
            nap(conn, naps);
        }
        for (int i = 0; !naps && i < 64 && (i % 8 != 0 || is_empty(conn));
             i++) { /* each look takes the line from the appenders */
            tp_pause();
        }
        if (!is_empty(conn) || tp_now_ns() - last_news < (naps ? NAPPING_NS : spin)) {
            continue;
        }
        atomic_store_explicit(&conn->sender_sleeps, TP_SLEEPS, memory_order_seq_cst);
        /* After the store: whoever then sends its frame by itself either wakes this thread or has said what it expects. */
        tpc_nudge_listener(conn);
        if (is_empty(conn) && !tpc_is_lost(conn)) {
            tp_futex_wait(&conn->sender_sleeps, TP_SLEEPS, 0);
        }
        atomic_store_explicit(&conn->sender_sleeps, TP_AWAKE, memory_order_seq_cst);
        last_news = pace.streams_since = tp_now_ns();
    }
    return NULL;
}

enum tp_status tpc_sender_start(struct tp_conn *conn) {
    return tp_thread_start(NULL, "tf-send", 256u << 10, sender_run, conn);
}

/* ---- appending ---- */

/* Waits, holding nothing, until `size` bytes are free. */
static void wait_for_space(struct tp_conn *conn, size_t size) {
    if (conn->seat) {
        tpc_flush_now(conn);
        tpc_seat_wait_space(conn, size);
        return;
    }
    while (!tpc_is_lost(conn)) {
        atomic_fetch_add_explicit(&conn->space_waiters, 1, memory_order_seq_cst);
        uint32_t news = atomic_load_explicit(&conn->space_news, memory_order_acquire);
        uint64_t used = atomic_load_explicit(&conn->head, memory_order_seq_cst) -
                        atomic_load_explicit(&conn->tail, memory_order_seq_cst);
        bool enough = conn->ring_size - used >= size;
        if (!enough) {
            tpc_flush_now(conn);
            tpc_wake_sender(conn);
            used = atomic_load_explicit(&conn->head, memory_order_seq_cst) -
                   atomic_load_explicit(&conn->tail, memory_order_seq_cst);
            enough = conn->ring_size - used >= size;
            if (!enough && !tpc_is_lost(conn)) {
                tp_futex_wait(&conn->space_news, news, TPC_NO_NEWS);
            }
        }
        atomic_fetch_sub_explicit(&conn->space_waiters, 1, memory_order_seq_cst);
        if (enough) {
            return;
        }
    }
}

enum room { THERE, TRANSLATED, RING_FULL, TOO_FAR }; /* TRANSLATED: there, for a number of the worker's */

/* Looks whether a frame may be appended, and how far others may then go without a look. Under append. */
static enum room look_for_room(struct tp_conn *conn, size_t size, bool urgent) {
    const uint64_t tail = conn->seat ? tpc_seat_tail(conn) : atomic_load_explicit(&conn->tail, memory_order_acquire);
    const uint64_t ring_to = tail + conn->ring_size;
    if (atomic_load_explicit(&conn->listening, memory_order_seq_cst) <= 0) {
        /* No host function and no late copy among the frames until here: none of them is held back for long. */
        atomic_store_explicit(&conn->answered, conn->at, memory_order_relaxed);
    }
    const uint64_t far = atomic_load_explicit(&conn->answered, memory_order_relaxed) + TP_BEHIND_MAX;
    /* Where numbers have to be looked up (skew.c), each frame comes here: the others pay not one instruction for it. */
    const bool skewed = TP_UNLIKELY(conn->skew != NULL);
    conn->room_to = skewed ? 0 : ring_to < far ? ring_to : far;
    if (conn->at + size > ring_to) {
        return RING_FULL;
    }
    return !urgent && conn->at + size > far ? TOO_FAR : skewed ? TRANSLATED : THERE;
}

/* There is room. Under append, which stays taken. */
static inline __attribute__((always_inline)) void *begin(struct tp_conn *conn, const struct tpc_caller *caller,
                                                         uint16_t op, size_t size) {
    struct tp_frame *frame = (struct tp_frame *)(void *)(conn->ring + (conn->at & (conn->ring_size - 1)));
    *frame = (struct tp_frame){.size = (uint32_t)size,
                               .op = op,
                               .flags = 0,
                               .thread = caller->thread.number,
                               .context = caller->thread.context};
    conn->reserved = (uint32_t)size;
    return frame;
}

/* For a worker with other numbers; NULL, and append dropped, for an operation that it does not have. */
static TP_COLD void *translate(struct tp_conn *conn, struct tp_frame *frame) {
    const uint16_t op = frame->op;
    frame->op = conn->skew->theirs[op];
    if (frame->op) {
        return frame;
    }
    tp_lock_drop(&conn->append);
    tpc_skew_refuse(conn, op);
    return NULL;
}

static void *reserve(struct tp_conn *conn, const struct tpc_caller *caller, uint16_t op, size_t size, bool urgent);

/* Waits, holding nothing, until the session has executed what was sent so far: until host functions have run that it stands at. */
static void catch_up(struct tp_conn *conn, const struct tpc_caller *caller) {
    struct tp_reply reply;
    if (reserve(conn, caller, TPG_OP_caught_up, sizeof(struct tp_frame), true) &&
        tp_commit_call(conn, "the room behind a host function", &reply) == TP_OK) {
        tp_reply_free(&reply);
    }
}

static inline __attribute__((always_inline)) void *reserve(struct tp_conn *conn, const struct tpc_caller *caller,
                                                           uint16_t op, size_t size, bool urgent) {
    if (tpc_is_lost(conn)) {
        return NULL;
    }
    size = tp_padded(size);
    if (TP_UNLIKELY(size < sizeof(struct tp_frame) || size > TP_FRAME_MAX || caller->thread.number == 0)) {
        tp_log(TP_ERROR, "Operation %u cannot be sent: its frame would have %zu bytes, from thread %u", op, size,
               caller->thread.number);
        return NULL;
    }
    for (;;) {
        tp_lock_take(&conn->append);
        enum room room = TP_LIKELY(conn->at + size <= conn->room_to) ? THERE : look_for_room(conn, size, urgent);
        if (TP_LIKELY(room == THERE)) {
            break;
        }
        if (room == TRANSLATED) {
            return translate(conn, begin(conn, caller, op, size));
        }
        tp_lock_drop(&conn->append);
        if (room == TOO_FAR) {
            catch_up(conn, caller);
        } else {
            int cancel = tpc_defer_cancel();
            wait_for_space(conn, size);
            tpc_allow_cancel(cancel);
        }
        if (tpc_is_lost(conn)) {
            return NULL;
        }
    }
    return begin(conn, caller, op, size);
}

void *tp_reserve(struct tp_conn *conn, uint16_t op, size_t size) {
    const struct tpc_caller *caller = tpc_caller_self();
    return reserve(conn, caller, op, size, caller->thread.urgent);
}

uint64_t tp_frames(const struct tp_conn *conn) {
    return atomic_load_explicit(&conn->appended_frames, memory_order_relaxed);
}

void tpc_publish(struct tp_conn *conn, bool waits) {
    conn->at += conn->reserved;
    uint64_t frames = atomic_load_explicit(&conn->appended_frames, memory_order_relaxed) + 1;
    atomic_store_explicit(&conn->appended_frames, frames, memory_order_relaxed);
    atomic_store_explicit(&tp_counters.frames, frames, memory_order_relaxed);
    int wake_uploads = conn->wake_uploads;
    conn->wake_uploads = 0;
    /* seq_cst: pairs with the sender, which stores sender_sleeps and then looks at head once more. */
    atomic_store_explicit(&conn->head, conn->at, memory_order_seq_cst);
    if (conn->seat) {
        int wake_listener = conn->wake_listener;
        conn->wake_listener = 0;
        atomic_store_explicit(conn->shared_head, conn->at, memory_order_release); /* tp_bell_ring has the fence */
        tp_lock_drop(&conn->append);
        if (!waits && !wake_uploads && tpc_streams(conn)) {
            tp_bell_ring_sleeper(&conn->seat->slot->session_bell);
        } else {
            tp_bell_ring(&conn->seat->slot->session_bell);
        }
        if (TP_UNLIKELY(wake_listener)) {
            tpc_nudge_listener(conn);
        }
    } else {
        tp_lock_drop(&conn->append);
    }
    if (wake_uploads && atomic_load_explicit(&conn->upload_sleepers, memory_order_seq_cst) > 0) {
        tp_futex_wake(&conn->upload_news, wake_uploads);
    }
}

/* Frames that are not sent yet. */
static uint64_t unsent(const struct tp_conn *conn) {
    return atomic_load_explicit(&conn->appended_frames, memory_order_relaxed) -
           atomic_load_explicit(&conn->sent_frames, memory_order_relaxed);
}

static TP_COLD void commit_and_look(struct tp_conn *conn) {
    struct tp_frame frame; /* the ring may be written over once the lock is dropped */
    memcpy(&frame, conn->ring + (conn->at & (conn->ring_size - 1)), sizeof frame);
    const uint64_t number = tp_frames(conn) + 1, now = tp_now_ns();
    tpc_publish(conn, false);
    tpc_wake_sender(conn);
    if (tpc_frames_traced(conn)) {
        tpc_trace_frame(&frame, number, NULL, now, now);
    }
    if (unsent(conn) >= conn->cache_max) {
        tpc_flush_now(conn);
    }
}

void tp_commit(struct tp_conn *conn) {
    if (TP_UNLIKELY(unsent(conn) + 1 >= conn->look_after)) { /* under the lock, so the count is this frame's */
        commit_and_look(conn);
        return;
    }
    tpc_publish(conn, false);
    tpc_wake_sender(conn);
}

void tp_flush(struct tp_conn *conn) {
    if (!tpc_is_lost(conn) && !tpc_flush_now(conn)) {
        tpc_wake_sender(conn);
    }
}
