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
#include "tpw_session.h"

#include <stdatomic.h>
#include <stdlib.h>

#define SLOTS 4096u
#define ASK_EVERY_NS 1000000u
#define ASK_AT_ONCE 8u

struct marker {
    struct tpw_stream *stream; /* NULL for an event */
    CUcontext context;
    uint32_t context_id;
    uint32_t slot;
    uint64_t value;
    CUevent event;
    uint64_t handle; /* of the event */
    tpw_done *done;
    void *what;
};

struct tpw_markers {
    _Atomic uint64_t *values; /* pinned, written by the GPU */
    CUdeviceptr device;
    uint64_t next_value;
    uint32_t free[SLOTS], free_count;
    struct marker *pending;
    size_t count, capacity;
    uint64_t asked;
};

int32_t tpw_markers_open(struct tpw_session *s) {
    if (s->markers) {
        return CUDA_SUCCESS;
    }
    struct tpw_markers *m = calloc(1, sizeof *m);
    if (!m) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    void *memory = NULL;
    int32_t error = (int32_t)s->cuda.cuMemHostAlloc(&memory, SLOTS * sizeof(uint64_t),
                                                    CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP);
    if (!error) {
        error = (int32_t)s->cuda.cuMemHostGetDevicePointer_v2(&m->device, memory, 0);
    }
    if (error) {
        free(m);
        return error;
    }
    memset(memory, 0, SLOTS * sizeof(uint64_t));
    m->values = memory;
    for (uint32_t i = 0; i < SLOTS; i++) {
        m->free[m->free_count++] = SLOTS - 1 - i;
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

static int32_t mark(struct tpw_session *s, struct tpw_stream *stream, tpw_done *done, void *what) {
    struct tpw_markers *m = s->markers;
    if (!m) {
        return CUDA_ERROR_NOT_INITIALIZED;
    }
    while (!m->free_count) {
        /* Four thousand waits at once: give the GPU time, nothing else can be done in order. */
        if (!tpw_poll(s)) {
            tp_pause();
        }
    }
    struct marker *marker = add(m);
    if (!marker) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    uint32_t slot = m->free[m->free_count - 1];
    uint64_t value = ++m->next_value;
    int32_t error = (int32_t)s->cuda.cuStreamWriteValue64_v2(stream->native, m->device + slot * sizeof(uint64_t), value,
                                                             CU_STREAM_WRITE_VALUE_DEFAULT);
    if (error) {
        return error;
    }
    m->free_count--;
    m->count++;
    *marker = (struct marker){.stream = stream,
                              .context = stream->context,
                              .context_id = stream->context_id,
                              .slot = slot,
                              .value = value,
                              .done = done,
                              .what = what};
    stream->pending++;
    stream->dirty = false;
    return CUDA_SUCCESS;
}

int32_t tpw_when_done(struct tpw_session *s, CUstream native, tpw_done *done, void *what) {
    for (struct tpw_stream *stream = s->streams; stream; stream = stream->next) {
        if (stream->native == native && stream->context_id == s->entered) {
            return mark(s, stream, done, what);
        }
    }
    return CUDA_ERROR_INVALID_HANDLE;
}

int32_t tpw_when_event(struct tpw_session *s, CUevent native, uint64_t handle, tpw_done *done, void *what) {
    struct tpw_markers *m = s->markers;
    struct marker *marker = m ? add(m) : NULL;
    if (!marker) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    m->count++;
    *marker = (struct marker){.context = s->entered_native,
                              .context_id = s->entered,
                              .event = native,
                              .handle = handle,
                              .done = done,
                              .what = what};
    return CUDA_SUCCESS;
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

int32_t tpw_when_all_done(struct tpw_session *s, tpw_done *done, void *what) {
    struct barrier *barrier = malloc(sizeof *barrier);
    if (!barrier) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *barrier = (struct barrier){.remaining = 1, .done = done, .what = what};
    for (struct tpw_stream *stream = s->streams; stream; stream = stream->next) {
        if (stream->context_id != s->entered || (!stream->dirty && !stream->pending)) {
            continue;
        }
        int32_t error = mark(s, stream, barrier_step, barrier);
        if (error) {
            barrier->error = barrier->error ? barrier->error : error;
        } else {
            barrier->remaining++;
        }
    }
    barrier_step(s, barrier, 0);
    return CUDA_SUCCESS;
}

/* ---- completion ---- */

static void complete(struct tpw_session *s, size_t index, int32_t error) {
    struct tpw_markers *m = s->markers;
    struct marker marker = m->pending[index];
    m->pending[index] = m->pending[--m->count];
    if (marker.stream) {
        marker.stream->pending--;
        if (!error) {
            m->free[m->free_count++] = marker.slot;
        }
        /* After an error the GPU may still write the slot: it is not used again, the context is lost anyway. */
    }
    marker.done(s, marker.what, error);
}

static void enter(struct tpw_session *s, const struct marker *marker) {
    if (s->entered_native != marker->context) {
        s->cuda.cuCtxSetCurrent(marker->context);
        s->entered_native = marker->context;
        s->entered = marker->context_id;
    }
}

/* Completes the event markers that are ready. */
static bool poll_events(struct tpw_session *s) {
    struct tpw_markers *m = s->markers;
    bool news = false;
    for (size_t i = 0; i < m->count;) {
        struct marker *marker = &m->pending[i];
        int32_t result = CUDA_ERROR_NOT_READY;
        if (!marker->stream) {
            enter(s, marker);
            result = tpw_object(s, TPG_EVENT, marker->handle) ? (int32_t)s->cuda.cuEventQuery(marker->event) : CUDA_SUCCESS;
        }
        if (result == CUDA_ERROR_NOT_READY) {
            i++;
        } else {
            complete(s, i, result);
            news = true;
        }
    }
    return news;
}

/* Asks the driver about some markers: the only way to hear of a sticky error. */
static bool ask(struct tpw_session *s) {
    struct tpw_markers *m = s->markers;
    bool news = false;
    for (size_t i = 0, asked = 0; i < m->count && asked < ASK_AT_ONCE; asked++) {
        struct marker *marker = &m->pending[i];
        if (!marker->stream) {
            i++;
            continue;
        }
        enter(s, marker);
        int32_t result = (int32_t)s->cuda.cuStreamQuery(marker->stream->native);
        if (result == CUDA_SUCCESS || result == CUDA_ERROR_NOT_READY) {
            i++;
        } else {
            complete(s, i, result);
            news = true;
        }
    }
    return news;
}

bool tpw_poll(struct tpw_session *s) {
    struct tpw_markers *m = s->markers;
    if (!m || !m->count) {
        return false;
    }
    bool news = false, events = false;
    for (size_t i = 0; i < m->count;) {
        struct marker *marker = &m->pending[i];
        events |= !marker->stream;
        if (marker->stream && atomic_load_explicit(&m->values[marker->slot], memory_order_acquire) == marker->value) {
            complete(s, i, CUDA_SUCCESS);
            news = true;
        } else {
            i++;
        }
    }
    if (events) {
        news |= poll_events(s);
    }
    uint64_t now = tp_now_ns();
    if (news) {
        m->asked = now;
    } else if (m->count && now - m->asked > ASK_EVERY_NS) {
        news = ask(s);
        m->asked = now;
    }
    return news;
}

size_t tpw_pending(const struct tpw_session *s) { return s->markers ? s->markers->count : 0; }

void tpw_markers_end(struct tpw_session *s, uint32_t context, int32_t error) {
    struct tpw_markers *m = s->markers;
    for (size_t i = 0; m && i < m->count;) {
        if (!context || m->pending[i].context_id == context) {
            complete(s, i, error);
            i = 0; /* completions may add and remove */
        } else {
            i++;
        }
    }
}
