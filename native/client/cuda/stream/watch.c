/*
 * Watches: programs that poll an event or a stream get their answer from a word of shared memory, not from the worker.
 *
 * Owns a small table of what is watched, by handle, under one lock; any thread. A watch begins with an answer "not ready": the
 * session then asks the driver again and again and writes the word when it is. Nothing is put into the stream for that: a
 * program that knows by other means that its work there is done must not be told "not ready" because of ours. For the same
 * reason "not ready" is said only as long as the program has learned of no completion from the GPU itself, which may be
 * ahead of the session (tpc_counts.told). Once in a while a poll goes to the worker all the same, because after a sticky
 * error nothing is ever written.
 */
#include "tpc_stream.h"
#include "tpg_cuda_send.h"

#define WATCHES 32u
#define ASK_NS 1000000u

struct watch {
    uint64_t handle; /* 0: free */
    uint64_t owner;  /* of a default stream */
    struct tp_done done;
    bool complete;
    struct tpc_date
        date; /* when the worker was asked last; of a stream's, `frames` is that of the mark: nothing may have
                             been sent since */
    uint64_t asked_ns;
};

static struct tp_lock lock;
static struct watch table[WATCHES];
static _Atomic uint32_t watched;   /* entries in use, for readers that only test for zero */
static _Atomic bool graphs_record; /* a launch of a graph may record events */
static uint32_t next_victim;

/* The default streams: one name for a stream of each context, or of each of its threads. */
static uint64_t owner_of(uint64_t handle) {
    const struct tp_thread *self = tp_thread_self();
    uint64_t thread = handle == (uint64_t)(uintptr_t)CU_STREAM_PER_THREAD ? self->number : 0;
    return handle == 0 || handle > 2 ? 0 : thread << 32 | self->context;
}

static struct watch *find(uint64_t handle) {
    uint64_t owner = owner_of(handle);
    for (uint32_t i = 0; i < WATCHES; i++) {
        if (table[i].handle == handle && table[i].owner == owner) {
            return &table[i];
        }
    }
    return NULL;
}

static void drop(struct watch *watch) {
    if (watch) {
        *watch = (struct watch){0};
        atomic_fetch_sub_explicit(&watched, 1, memory_order_relaxed);
    }
}

static struct watch *add(uint64_t handle) {
    struct watch *watch = find(0);
    if (!watch) {
        watch = &table[next_victim++ % WATCHES];
        drop(watch);
    }
    watch->handle = handle;
    watch->owner = owner_of(handle);
    atomic_fetch_add(&watched, 1);
    return watch;
}

static void forget(uint64_t handle) {
    if (atomic_load_explicit(&watched, memory_order_seq_cst) > 0) {
        tp_lock_take(&lock);
        drop(find(handle));
        tp_lock_drop(&lock);
    }
}

bool tpc_watch_answer(uint64_t handle, bool stream, CUresult *result) {
    bool may = tpc_may_mark(), answered = may && !stream && tpc_sweep_knows(handle);
    if (answered) {
        *result = tpc_posted();
        return tpc_may_mark();
    }
    if (atomic_load_explicit(&watched, memory_order_seq_cst) == 0 || !may) {
        return false;
    }
    tp_lock_take(&lock);
    struct watch *watch = find(handle);
    if (watch && stream && tp_frames(tpc_conn) != watch->date.frames) {
        drop(watch); /* there may be new work in it */
        watch = NULL;
    }
    /* A program that has learned of the completion in another way, from a reply that was sent behind the
     * word, sees it written. Then, while another thread still handles what came with it, the worker is asked. */
    bool written = false;
    if (watch && !watch->complete) {
        written = tp_done_written(tpc_conn, &watch->done);
        watch->complete = written && tp_done_reached(tpc_conn, &watch->done);
    }
    if (watch) {
        answered = watch->complete || (!written && watch->date.told == tpc_count(&tpc_counts.told) &&
                                       tp_now_ns() - watch->asked_ns < ASK_NS);
        *result = watch->complete ? tpc_posted() : CUDA_ERROR_NOT_READY;
    }
    tp_lock_drop(&lock);
    return answered && tpc_may_mark(); /* a failure that was told meanwhile is reported by a call */
}

void tpc_watch_learned(uint64_t handle, bool stream, CUresult result, const struct tp_reply *reply,
                       const struct tpc_date *asked) {
    struct tp_done done = {0};
    if (!tpc_may_mark()) {
        return;
    }
    tp_lock_take(&lock);
    struct watch *watch = find(handle);
    if (result == CUDA_ERROR_NOT_READY && watch && !watch->complete) {
        uint64_t frame = watch->date.frames;
        watch->date = *asked;
        watch->date.frames = frame + (reply->number == frame + 1); /* the question itself is no new work */
        watch->asked_ns = tp_now_ns();
    } else if (result == CUDA_ERROR_NOT_READY && !watch && tp_done_lend(tpc_conn, &done)) {
        watch = add(handle);
        watch->done = done;
        watch->date = *asked;
        watch->date.frames = tp_frames(tpc_conn) + 1; /* if another comes between, the stream's watch is dropped */
        watch->asked_ns = tp_now_ns();
    }
    tp_lock_drop(&lock);
    if (done.value) { /* never 0 where it was lent */
        tpc_post_watch(stream ? "cuStreamQuery" : "cuEventQuery", handle, done.word, done.value);
    }
}

void tpc_event_recorded(CUevent event, unsigned int flags) {
    tpc_timing_recorded((uint64_t)(uintptr_t)event);
    forget((uint64_t)(uintptr_t)event);
    if (flags) {
        tpc_watch_graphs_record();
    }
}

static void forget_all(void) {
    tpc_happened(&tpc_counts.records);
    tpc_sweep_forget();
    tp_lock_take(&lock);
    for (uint32_t i = 0; i < WATCHES; i++) {
        drop(table[i].handle ? &table[i] : NULL);
    }
    tp_lock_drop(&lock);
}

void tpc_watch_recorded(CUevent event) {
    tpc_event_recorded(event, 0);
    if (TP_UNLIKELY(atomic_load_explicit(&tpc_captures, memory_order_relaxed))) {
        tpc_watch_graphs_record();
    }
}

void tpc_watch_graphs_record(void) { atomic_store(&graphs_record, true); }

/* Which events a graph records is not known here; few programs have such graphs. */
void tpc_watch_launched(void) {
    if (TP_UNLIKELY(atomic_load_explicit(&graphs_record, memory_order_relaxed))) {
        forget_all();
    }
}
