/*
 * Markers: how the executor learns that the GPU has come to a point of a stream, without waiting for it.
 *
 * A marker is a value that the GPU writes into pinned memory when the stream gets there (cuStreamWriteValue64). The
 * executor looks at that memory between frames: no driver call, no lock of the driver that launches could meet. Only every
 * millisecond it asks the driver about the oldest markers, because after a sticky error the values never come.
 *
 * Executor thread only. The pinned memory is written by the GPU and read with acquire loads; its writer is the stream
 * operation, whose system-wide fence makes earlier copies to host memory visible first. A client's kernel could write there
 * too (it is device-visible memory of its own process): it can only make its own waits end early.
 */
#include "tpw_graph.h"
#include "tpw_session.h"

#include <stdatomic.h>
#include <stdlib.h>

#define SLOTS 4096u /* of one batch; there are more when streams of a program stand for long */
#define BATCHES 64u
#define NO_SLOT UINT32_MAX /* waits for an older marker of its stream, because the stream captures */
#define ASK_EVERY_NS 1000000u
#define ASK_AT_ONCE 8u
/* Waits for events and in captures need no slot, and each costs a look in every turn; programs have one for each thread. */
#define PENDING_MAX (4 * SLOTS)

struct marker {
    struct tpw_stream *stream; /* NULL: there is no marker in a stream, but the driver is asked about */
    uint64_t event, native;    /* an event by its handle, or (0) a stream */
    CUcontext context;
    uint32_t context_id;
    uint32_t slot;
    uint64_t value;
    tpw_done *done;
    void *what;
    bool ready;
    int32_t error;
};

struct tpw_markers {
    _Atomic uint64_t *values[BATCHES]; /* pinned, written by the GPU */
    CUdeviceptr device[BATCHES];
    uint32_t batches;
    uint64_t next_value;
    uint32_t free[BATCHES * SLOTS], free_count;
    struct marker *pending; /* in the order of their making */
    size_t count, capacity;
    struct marker *due; /* completed, `done` not yet called; in the same order */
    size_t due_first, due_count, due_capacity;
    uint32_t running; /* completions under way: one may poll in turn */
    uint64_t asked;
};

static int32_t grow(struct tpw_session *s, struct tpw_markers *m) {
    uint32_t batch = m->batches;
    void *memory = NULL;
    if (batch == BATCHES) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (!tpw_home_enter(s)) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    int32_t error = (int32_t)s->cuda.cuMemHostAlloc(&memory, SLOTS * sizeof(uint64_t),
                                                    CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP);
    if (!error) {
        error = (int32_t)s->cuda.cuMemHostGetDevicePointer_v2(&m->device[batch], memory, 0);
    }
    tpw_home_leave(s);
    if (error) {
        return error;
    }
    memset(memory, 0, SLOTS * sizeof(uint64_t));
    m->values[batch] = memory;
    for (uint32_t i = 0; i < SLOTS; i++) {
        m->free[m->free_count++] = batch * SLOTS + SLOTS - 1 - i;
    }
    m->batches++;
    return CUDA_SUCCESS;
}

int32_t tpw_markers_open(struct tpw_session *s) {
    if (s->markers) {
        return CUDA_SUCCESS;
    }
    struct tpw_markers *m = calloc(1, sizeof *m);
    if (!m) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    int32_t error = grow(s, m);
    if (error) {
        free(m);
        return error;
    }
    s->markers = m;
    return CUDA_SUCCESS;
}

static struct marker *add(struct tpw_markers *m) {
    if (m->count == m->capacity) {
        size_t capacity = m->capacity ? 2 * m->capacity : 64;
        struct marker *pending = realloc(m->pending, capacity * sizeof *pending);
        if (!pending) {
            return NULL;
        }
        m->pending = pending;
        m->capacity = capacity;
    }
    return &m->pending[m->count];
}

static struct marker *add_without_slot(struct tpw_markers *m) { return m->count < PENDING_MAX ? add(m) : NULL; }

void tpw_enter_stream(struct tpw_session *s, const struct tpw_stream *stream) {
    tpw_visit(s, stream->context, stream->context_id);
}

/* Everything that was queued in a stream before it began to capture has a marker; nothing may be put behind it now. */
static int32_t follow(struct tpw_session *s, struct tpw_stream *stream, tpw_done *done, void *what) {
    struct marker *marker = add_without_slot(s->markers);
    if (!marker) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    s->markers->count++;
    stream->pending++;
    *marker = (struct marker){.stream = stream,
                              .context = stream->context,
                              .context_id = stream->context_id,
                              .slot = NO_SLOT,
                              .value = stream->marked,
                              .done = done,
                              .what = what};
    return CUDA_SUCCESS;
}

static bool gather(struct tpw_session *s);

static int32_t mark(struct tpw_session *s, struct tpw_stream *stream, tpw_done *done, void *what) {
    struct tpw_markers *m = s->markers;
    if (!m) {
        return CUDA_ERROR_NOT_INITIALIZED;
    }
    if (TP_UNLIKELY(!tpw_touchable(s, stream))) {
        return stream->pending ? follow(s, stream, done, what) : CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    /* Not by waiting for slots to come back: the streams may stand at host functions, whose ends are told by later frames. */
    while (!m->free_count && grow(s, m) != CUDA_SUCCESS) {
        /* A quarter of a million waits at once: give the GPU time, nothing else can be done in order. Completions are not run
         * here: they may end streams and contexts, which the caller is going through. Slots of waits that ended in an error
         * are not used again, so there may be none left to wait for. */
        if (!m->count || tpw_link_status(s->link) != TP_OK) {
            return CUDA_ERROR_OUT_OF_MEMORY;
        }
        if (!gather(s)) {
            tp_pause();
        }
    }
    tpw_enter_stream(s, stream); /* the look above may have entered another */
    struct marker *marker = add(m);
    uint32_t slot = m->free[m->free_count - 1];
    uint64_t value = ++m->next_value;
    int32_t error = marker ? (int32_t)s->cuda.cuStreamWriteValue64_v2(
                                 stream->native, m->device[slot / SLOTS] + slot % SLOTS * sizeof(uint64_t), value,
                                 CU_STREAM_WRITE_VALUE_DEFAULT)
                           : CUDA_ERROR_OUT_OF_MEMORY;
    if (error) {
        return error;
    }
    stream->pending++;
    m->free_count--;
    m->count++;
    stream->marked = value;
    tpw_stream_count(s, stream, 2); /* itself, and the piece of a copy that it may be for */
    *marker = (struct marker){.stream = stream,
                              .context = stream->context,
                              .context_id = stream->context_id,
                              .slot = slot,
                              .value = value,
                              .done = done,
                              .what = what};
    stream->dirty = false;
    return CUDA_SUCCESS;
}

int32_t tpw_when_done(struct tpw_session *s, CUstream native, tpw_done *done, void *what) {
    struct tpw_stream *stream = tpw_stream_native(s, native);
    return stream ? mark(s, stream, done, what) : CUDA_ERROR_INVALID_HANDLE;
}

int32_t tpw_when_complete(struct tpw_session *s, uint64_t event, uint64_t native, tpw_done *done, void *what) {
    struct tpw_markers *m = s->markers;
    struct marker *marker = m ? add_without_slot(m) : NULL;
    if (!marker) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    m->count++;
    *marker = (struct marker){.context = s->entered_native,
                              .context_id = s->entered,
                              .event = event,
                              .native = native,
                              .done = done,
                              .what = what};
    return CUDA_SUCCESS;
}

static void nothing(struct tpw_session *s, void *what, int32_t error) { (void)s, (void)what, (void)error; }

void tpw_markers_settle(struct tpw_session *s) {
    struct tpw_stream *next;
    for (struct tpw_stream *stream = s->streams; stream; stream = next) {
        next = stream->next;
        if (stream->dirty && tpw_touchable(s, stream)) {
            tpw_enter_stream(s, stream);
            if (mark(s, stream, nothing, NULL)) {
                tp_log(TP_WARN, "work before a capture has no marker: what waits for it ends with the capture");
            }
        }
    }
}

/* ---- several streams at once ---- */

struct barrier {
    uint32_t remaining;
    int32_t error;
    tpw_done *done;
    void *what;
};

static void barrier_step(struct tpw_session *s, void *what, int32_t error) {
    struct barrier *barrier = what;
    if (error && !barrier->error) {
        barrier->error = error;
    }
    if (--barrier->remaining == 0) {
        barrier->done(s, barrier->what, barrier->error);
        free(barrier);
    }
}

static int32_t when(struct tpw_session *s, bool every_context, tpw_done *done, void *what) {
    struct barrier *barrier = malloc(sizeof *barrier);
    if (!barrier) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *barrier = (struct barrier){.remaining = 1, .done = done, .what = what};
    struct tpw_stream *idle = NULL;
    const uint32_t context = s->entered; /* a mark may visit another, and find no name for one that is ending */
    for (struct tpw_stream *stream = s->streams; stream; stream = stream->next) {
        if (!every_context && stream->context_id != context) {
            continue;
        }
        if (!stream->pending && (!stream->dirty || !tpw_touchable(s, stream))) {
            idle = stream->dirty ? idle : stream;
            continue;
        }
        int32_t error = mark(s, stream, barrier_step, barrier);
        if (error) {
            barrier->error = barrier->error ? barrier->error : error;
        } else {
            barrier->remaining++;
        }
    }
    if (barrier->remaining == 1 && !barrier->error && idle && tpw_touchable(s, idle)) {
        /* Nothing to wait for, but a context that failed earlier has to say so again. */
        int32_t error = (int32_t)s->cuda.cuStreamQuery(idle->native);
        barrier->error = error == CUDA_ERROR_NOT_READY ? CUDA_SUCCESS : error;
    }
    barrier_step(s, barrier, 0);
    return CUDA_SUCCESS;
}

int32_t tpw_when_all_done(struct tpw_session *s, tpw_done *done, void *what) { return when(s, false, done, what); }

int32_t tpw_when_everything_done(struct tpw_session *s, tpw_done *done, void *what) {
    return when(s, true, done, what);
}

/* ---- completion ----
 *
 * Completions run in the order in which the markers were made: what a later one promises the client (a synchronise) includes
 * what an earlier one does (handing over a copy). The GPU writes in an order of its own, and a marker can only depend on
 * older ones; so the newest is looked at first: whatever it depends on is then seen complete, too.
 */

static void enter(struct tpw_session *s, const struct marker *marker) {
    tpw_visit(s, marker->context, marker->context_id);
}

/* The client may have destroyed the event and given its handle to another; or it went with its context. A stream that captures
 * may not be asked; its watcher is told nothing then. */
static int32_t query(struct tpw_session *s, const struct marker *marker) {
    if (marker->event) {
        const struct tpw_object *event = tpw_object(s, TPG_EVENT, marker->event);
        bool there = event && event->native == marker->native;
        return there ? (int32_t)s->cuda.cuEventQuery((CUevent)(uintptr_t)marker->native) : CUDA_SUCCESS;
    }
    CUstream native = (CUstream)(uintptr_t)marker->native;
    const struct tpw_stream *stream = tpw_stream_native(s, native);
    if (stream && !tpw_touchable(s, stream)) {
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    return stream ? (int32_t)s->cuda.cuStreamQuery(native) : CUDA_SUCCESS;
}

static void look(struct tpw_session *s, struct marker *marker) {
    if (!marker->stream && marker->ready) {
        return; /* tpw_markers_end_event */
    }
    if (marker->stream && marker->slot == NO_SLOT) {
        marker->ready = marker->ready || marker->stream->reached >= marker->value;
        return;
    }
    if (marker->stream) {
        const _Atomic uint64_t *value = &s->markers->values[marker->slot / SLOTS][marker->slot % SLOTS];
        marker->ready = atomic_load_explicit(value, memory_order_acquire) == marker->value;
        if (marker->ready && marker->stream->reached < marker->value) {
            marker->stream->reached = marker->value;
        }
        return;
    }
    enter(s, marker);
    int32_t result = query(s, marker);
    marker->ready = result != CUDA_ERROR_NOT_READY;
    marker->error = marker->ready ? result : CUDA_SUCCESS;
}

/* Asks the driver about the oldest markers: the only way to hear of a sticky error, after which no value is ever written. */
static bool ask(struct tpw_session *s) {
    struct tpw_markers *m = s->markers;
    bool news = false;
    for (size_t i = 0; i < m->count && i < ASK_AT_ONCE; i++) {
        struct marker *marker = &m->pending[i];
        if (marker->stream && tpw_touchable(s, marker->stream)) {
            enter(s, marker);
            int32_t result = (int32_t)s->cuda.cuStreamQuery(marker->stream->native);
            if (result != CUDA_SUCCESS && result != CUDA_ERROR_NOT_READY) {
                marker->ready = true;
                marker->error = result;
                news = true;
            }
        }
    }
    return news;
}

/* Moves ready markers to the list of due ones, both in order. */
static void collect(struct tpw_markers *m) {
    size_t kept = 0;
    for (size_t i = 0; i < m->count; i++) {
        struct marker marker = m->pending[i];
        if (!marker.ready) {
            m->pending[kept++] = marker;
            continue;
        }
        if (m->due_first + m->due_count == m->due_capacity) {
            if (m->due_first) {
                memmove(m->due, m->due + m->due_first, m->due_count * sizeof *m->due);
                m->due_first = 0;
            } else {
                size_t capacity = m->due_capacity ? 2 * m->due_capacity : 64;
                struct marker *due = realloc(m->due, capacity * sizeof *due);
                if (!due) {
                    m->pending[kept++] = marker; /* no memory now; the next look finds it again */
                    continue;
                }
                m->due = due;
                m->due_capacity = capacity;
            }
        }
        m->due[m->due_first + m->due_count++] = marker;
        if (marker.stream && !marker.error && marker.slot != NO_SLOT) {
            m->free[m->free_count++] = marker.slot;
        }
        /* After an error the GPU may still write the slot: it is not used again, the context is lost anyway. */
    }
    m->count = kept;
}

/* Calls what is due. A completion may poll in turn: it goes on where this one stands. */
static bool run_due(struct tpw_session *s) {
    struct tpw_markers *m = s->markers;
    bool news = false;
    while (m->due_count) {
        struct marker marker = m->due[m->due_first++];
        if (--m->due_count == 0) {
            m->due_first = 0;
        }
        struct tpw_stream *stream = marker.stream;
        /* Before the completion, which may end the stream's context and everything in it. */
        if (stream && --stream->pending == 0 && stream->dying) {
            tpw_stream_end(s, stream, marker.error);
        }
        m->running++;
        marker.done(s, marker.what, marker.error);
        m->running--;
        news = true;
    }
    return news;
}

/* Makes due what has completed; true if something has. */
static bool gather(struct tpw_session *s) {
    struct tpw_markers *m = s->markers;
    bool ready = false;
    for (size_t i = m->count; i-- > 0;) {
        look(s, &m->pending[i]);
        ready |= m->pending[i].ready;
    }
    uint64_t now = tp_now_ns();
    if (ready) {
        m->asked = now;
    } else if (m->count && now - m->asked > ASK_EVERY_NS) {
        ready = ask(s);
        m->asked = now;
    }
    if (ready) {
        collect(m);
    }
    return ready;
}

bool tpw_poll(struct tpw_session *s) {
    struct tpw_markers *m = s->markers;
    if (!m || (!m->count && !m->due_count)) {
        return false;
    }
    gather(s);
    return run_due(s);
}

void tpw_markers_end_event(struct tpw_session *s, uint64_t handle) {
    struct tpw_markers *m = s->markers;
    for (size_t i = 0; m && i < m->count; i++) {
        if (!m->pending[i].stream && m->pending[i].event == handle) {
            m->pending[i].ready = true;
        }
    }
}

bool tpw_completing(const struct tpw_session *s) { return s->markers && s->markers->running; }

size_t tpw_pending(const struct tpw_session *s) { return s->markers ? s->markers->count : 0; }

void tpw_markers_end(struct tpw_session *s, uint32_t context, int32_t error) {
    struct tpw_markers *m = s->markers;
    if (!m) {
        return;
    }
    for (size_t i = 0; i < m->count; i++) {
        struct marker *marker = &m->pending[i];
        if (!context || marker->context_id == context) {
            marker->ready = true;
            marker->error = error;
        }
    }
    collect(m);
    run_due(s);
}
