/*
 * Streams: the client's own, the legacy stream of each context, and one default stream for each client thread.
 *
 * Executor thread only. The driver's per-thread default stream belongs to the executor thread and would mix the client's
 * threads, so each (thread, context) gets a real stream that blocks with the legacy one, as CUDA defines it. A stream that
 * the client destroys lives on until its last wait has completed, so that whatever waits for "all work" still sees it.
 */
#include "tpg_session.h"
#include "tpw_stream.h"

#include <stdlib.h>

/* The driver makes room for more streams of a context now and then, and waits for the GPU in it: seen at about the 32nd, never
 * below this. */
#define ROOMY 28u
struct room {
    struct room *next;
    uint32_t context;
    uint32_t streams, most; /* now, and at once so far */
};
static struct room *rooms;

static struct room *room_of(uint32_t context) { return TP_FIND(rooms, it->context == context); }

static bool is_tight(const struct room *room) { return room && room->streams >= ROOMY && room->streams >= room->most; }

bool tpw_waits_stream_create(struct tpw_session *s, const struct tp_frame *frame,
                             const struct tpg_stream_create_in *in) {
    return is_tight(room_of(frame->context));
}

bool tpw_stream_may_wait(struct tpw_session *s) {
    return tpw_callbacks_outstanding(s) && is_tight(room_of(s->entered));
}

static bool no_room(struct tpw_session *s, void *inside) {
    const struct tp_frame *frame = inside;
    return tpw_callbacks_outstanding(s) && is_tight(room_of(frame->context)) && tpw_streams_stand(s);
}

int32_t tpw_stream_room(struct tpw_session *s) {
    if (TP_LIKELY(!tpw_stream_may_wait(s))) {
        return CUDA_SUCCESS;
    }
    struct tp_frame inside = {.context = s->entered};
    const bool room = tpw_hold_while(s, no_room, &inside);
    int32_t error = tpw_enter(s, &inside); /* streams were asked in their contexts */
    return room ? error : CUDA_ERROR_DEVICE_UNAVAILABLE;
}

static struct room *room_made(uint32_t context) {
    struct room *room = room_of(context);
    if (!room && (room = calloc(1, sizeof *room))) {
        *room = (struct room){.next = rooms, .context = context};
        rooms = room;
    }
    return room;
}

static struct tpw_stream *add(struct tpw_session *s, CUstream native, uint32_t thread) {
    struct room *room = room_made(s->entered);
    struct tpw_stream *stream = room ? calloc(1, sizeof *stream) : NULL;
    if (stream) {
        *stream = (struct tpw_stream){.next = s->streams,
                                      .native = native,
                                      .context = s->entered_native,
                                      .context_id = s->entered,
                                      .home = tpw_home_of(s, s->entered),
                                      .device = tpw_context_device(s, s->entered),
                                      .thread = thread};
        s->streams = stream;
        room->most = ++room->streams > room->most ? room->streams : room->most;
    }
    return stream;
}

struct tpw_stream *tpw_stream_aside(struct tpw_session *s) {
    CUstream native = NULL;
    if (tpw_stream_may_wait(s) || s->cuda.cuStreamCreate(&native, CU_STREAM_NON_BLOCKING)) {
        return NULL;
    }
    struct tpw_stream *stream = add(s, native, 0);
    if (!stream) {
        s->cuda.cuStreamDestroy_v2(native);
    }
    return stream;
}

/* Threads come and go without a word, and a hostile client has as many as there are numbers: those whose work is over give
 * their streams to others. */
#define THREAD_STREAMS 256u

static bool over(struct tpw_session *s, const struct tpw_stream *stream) {
    return stream->thread && stream->context_id == s->entered && !stream->pending && tpw_touchable(s, stream) &&
           s->cuda.cuStreamQuery(stream->native) == CUDA_SUCCESS;
}

static int32_t end_idle(struct tpw_session *s) {
    size_t count = 0;
    for (const struct tpw_stream *stream = s->streams; stream; stream = stream->next) {
        count += stream->thread != 0;
    }
    for (struct tpw_stream *stream = s->streams, *next; stream && count >= THREAD_STREAMS; stream = next) {
        next = stream->next;
        if (over(s, stream)) {
            tpw_stream_end(s, stream, CUDA_SUCCESS);
            count--;
        }
    }
    return count < 4 * THREAD_STREAMS ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

static struct tpw_stream *default_stream(struct tpw_session *s, uint32_t thread, int32_t *error) {
    CUstream native = CU_STREAM_LEGACY;
    for (struct tpw_stream *stream = s->streams; stream; stream = stream->next) {
        if (stream->context_id == s->entered &&
            (thread ? stream->thread == thread : stream->native == CU_STREAM_LEGACY)) {
            return stream;
        }
    }
    if (thread) {
        int32_t result = end_idle(s);
        result = result ? result : tpw_stream_room(s);
        result = result ? result : (int32_t)s->cuda.cuStreamCreate(&native, CU_STREAM_DEFAULT);
        if (result) {
            *error = result;
            return NULL;
        }
    }
    struct tpw_stream *stream = add(s, native, thread);
    if (!stream) {
        *error = CUDA_ERROR_OUT_OF_MEMORY;
    }
    return stream;
}

struct tpw_stream *tpw_stream_find(struct tpw_session *s, const struct tp_frame *frame, uint64_t handle,
                                   int32_t *error) {
    struct tpw_stream *stream = NULL;
    if (*error) {
        return NULL;
    }
    if (handle <= 2) {
        if (!s->entered) {
            *error = CUDA_ERROR_INVALID_CONTEXT;
            return NULL;
        }
        stream = default_stream(s, handle == 2 ? frame->thread : 0, error);
    } else {
        struct tpw_object *object = tpw_object(s, TPG_STREAM, handle);
        if (object && object->error) {
            *error = object->error;
        } else if (object) {
            stream = object->record;
        } else {
            *error = CUDA_ERROR_INVALID_HANDLE;
        }
        /* The stream of a context that is ending may be gone when this operation has waited for something. */
        if (stream && stream->context_id != s->entered &&
            !tpw_object(s, TPG_CONTEXT, tp_handle_make(TPG_CONTEXT, stream->context_id))) {
            *error = CUDA_ERROR_CONTEXT_IS_DESTROYED;
            return NULL;
        }
    }
    return stream;
}

struct tpw_stream *tpw_stream_of(struct tpw_session *s, const struct tp_frame *frame, uint64_t handle, int32_t *error) {
    struct tpw_stream *stream = tpw_stream_find(s, frame, handle, error);
    if (stream) {
        stream->dirty = true;
        stream->mark = NULL;
        tpw_stream_count(s, stream, 1);
    }
    return stream;
}

/* The driver takes about 1024 commands in a stream and then blocks whoever queues one more; stop short of that. */
#define FULL_AT 970u

void tpw_stream_count(struct tpw_session *s, struct tpw_stream *stream, uint32_t commands) {
    if (TP_UNLIKELY(stream->hosts == s->hosts && s->hosts) && (stream->behind += commands) > FULL_AT) {
        s->full = true;
    }
}

/* What a stream has in front of it, by the driver: nothing but for NOT_READY. One that it must not be asked about may have all.
 * Visits its context. */
static bool not_ready(struct tpw_session *s, struct tpw_stream *stream) {
    bool ready = false;
    if (tpw_touchable(s, stream)) {
        tpw_enter_stream(s, stream);
        ready = s->cuda.cuStreamQuery(stream->native) != CUDA_ERROR_NOT_READY;
    }
    stream->behind = ready ? 0 : stream->behind;
    return !ready;
}

bool tpw_streams_full(struct tpw_session *s) {
    bool full = false;
    for (struct tpw_stream *stream = s->streams; stream; stream = stream->next) {
        full |= stream->hosts == s->hosts && stream->behind > FULL_AT && not_ready(s, stream);
    }
    return full;
}

bool tpw_streams_stand(struct tpw_session *s) {
    bool stand = false;
    for (struct tpw_stream *stream = s->streams; stream && !stand; stream = stream->next) {
        stand = stream->hosts == s->hosts && not_ready(s, stream);
    }
    return stand;
}

/* ---- streams that stand at a word ---- */

static void stand(struct tpw_session *s, struct tpw_stream *stream) {
    stream->stands = s->words = true;
    stream->stands_before = 0;
}

void tpw_stands(struct tpw_session *s, const struct tp_frame *frame, uint64_t handle, int32_t *error) {
    struct tpw_stream *stream = handle == TPW_IN_GRAPHS ? NULL : tpw_stream_find(s, frame, handle, error);
    if (stream) {
        stand(s, stream);
    }
    s->graph_words |= !stream || s->captures;
}

void tpw_launches(struct tpw_session *s, struct tpw_stream *stream) {
    if (TP_UNLIKELY(s->graph_words)) {
        stand(s, stream);
    }
}

/* Others may fill the stream all the time, so what counts is a point behind the words that are there now. A stream that captures has
 * its point already, and executes nothing. */
static bool stands_at_word(struct tpw_session *s, struct tpw_stream *stream) {
    if (stream->stands && tpw_touchable(s, stream)) {
        tpw_enter_stream(s, stream);
        stream->stands = s->cuda.cuStreamQuery(stream->native) == CUDA_ERROR_NOT_READY;
        if (stream->stands && !stream->stands_before) {
            stream->stands_before = tpw_point(s, stream);
            stream->stands = stream->stands_before != 0;
        }
    } else if (stream->stands && !stream->stands_before) {
        stream->stands_before = stream->issued;
    }
    stream->stands = stream->stands && !tpw_point_reached(stream, stream->stands_before);
    return stream->stands;
}

bool tpw_words_stand(struct tpw_session *s) {
    bool stands = false;
    const CUcontext before = s->entered_native;
    const uint32_t entered = s->entered;
    for (struct tpw_stream *stream = s->streams; stream; stream = stream->next) {
        stands |= stands_at_word(s, stream);
    }
    tpw_visit(s, before, entered); /* a point is put into a stream in its own context */
    s->words = stands;
    return stands;
}

bool tpw_stream_has_room(struct tpw_session *s, struct tpw_stream *stream, uint32_t commands) {
    return stream->hosts != s->hosts || stream->behind + commands <= FULL_AT || !not_ready(s, stream);
}

CUstream tpw_stream(struct tpw_session *s, const struct tp_frame *frame, uint64_t handle, int32_t *error) {
    struct tpw_stream *stream = tpw_stream_of(s, frame, handle, error);
    return stream ? stream->native : NULL;
}

struct tpw_stream *tpw_stream_native(struct tpw_session *s, CUstream native) {
    return TP_FIND(s->streams, it->native == native && (native != CU_STREAM_LEGACY || it->context_id == s->entered));
}

int32_t tpw_stream_create(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_stream_create_in *in) {
    CUstream native = NULL;
    int32_t error = (int32_t)s->cuda.cuStreamCreateWithPriority(&native, in->flags, in->priority);
    struct tpw_stream *stream = error ? NULL : add(s, native, 0);
    if (!error && !stream) {
        s->cuda.cuStreamDestroy_v2(native);
        error = CUDA_ERROR_OUT_OF_MEMORY;
    }
    error = tpw_made(s, frame, TPG_STREAM, in->stream, (uint64_t)(uintptr_t)native, error);
    struct tpw_object *object = tpw_object(s, TPG_STREAM, in->stream);
    if (object && !error) {
        object->record = stream;
        stream->name = in->stream;
    }
    return error;
}

static void drop(struct tpw_session *s, struct tpw_stream *stream) {
    if (s->captures) {
        TP_TELL(tpw_stream_gone, s, stream);
    }
    tpw_timeline_end(s, stream);
    TP_UNLINK(s->streams, stream);
    room_of(stream->context_id)->streams--;
    free(stream);
}

void tpw_stream_end(struct tpw_session *s, struct tpw_stream *stream, int32_t error) {
    if (error != CUDA_ERROR_CONTEXT_IS_DESTROYED) { /* else the driver ends it with its context */
        tpw_visit(s, stream->context, stream->context_id);
        s->cuda.cuStreamDestroy_v2(stream->native);
    }
    drop(s, stream);
}

void tpw_stream_leave(struct tpw_session *s, struct tpw_stream *stream) {
    if (stream) {
        stream->dying = true;
    }
    if (stream && !stream->pending) {
        tpw_stream_end(s, stream, CUDA_SUCCESS);
    }
}

static void nothing(struct tpw_session *s, void *what, int32_t error) { (void)s, (void)what, (void)error; }

int32_t tpw_stream_destroy(struct tpw_session *s, const struct tp_frame *frame,
                           const struct tpg_stream_destroy_in *in) {
    struct tpw_object *object = tpw_object(s, TPG_STREAM, in->stream);
    if (!object) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    struct tpw_stream *stream = object->record;
    struct tp_frame inside = *frame; /* the thread's current context may be another, or none */
    inside.context = object->context;
    memset(object, 0, sizeof *object);
    if (!stream) {
        return CUDA_SUCCESS;
    }
    int32_t error = CUDA_SUCCESS;
    if (stream->dirty && tpw_touchable(s, stream)) { /* what a capturing stream had queued before has its point */
        error = tpw_enter(s, &inside);
        error = error ? error : tpw_when_done(s, stream->native, nothing, NULL);
    }
    if (TP_UNLIKELY(s->captures)) {
        TP_TELL(tpw_stream_leaves, s, stream);
    }
    tpw_stream_leave(s, stream);
    return error;
}

void tpw_streams_gone(struct tpw_session *s, uint32_t context) {
    tpw_waits_end(s, context, CUDA_ERROR_CONTEXT_IS_DESTROYED);
    struct tpw_object *object;
    for (uint32_t at = 0; (object = tpw_next_object(s, TPG_STREAM, &at));) {
        if (!context || object->context == context) {
            object->record = NULL;
            object->native = 0;
            object->error = CUDA_ERROR_CONTEXT_IS_DESTROYED;
        }
    }
    for (struct tpw_stream *stream; (stream = TP_FIND(s->streams, !context || it->context_id == context));) {
        drop(s, stream);
    }
    for (struct room *room; (room = TP_TAKE(rooms, !context || it->context == context));) {
        free(room);
    }
}

static void context_gone(struct tpw_session *s, const struct tpw_gone *gone) { tpw_streams_gone(s, gone->id); }
TP_REGISTER(tpw_context_gone, context_gone);

/* ---- waiting ---- */

struct waiting {
    struct tpw_ticket ticket;
};

static void answer(struct tpw_session *s, void *what, int32_t error) {
    struct waiting *waiting = what;
    tpw_answer(s, waiting->ticket, error);
    free(waiting);
}

/* Behind the wait, or what the driver gave in its place. */
static int32_t later(struct waiting *waiting, int32_t error) {
    if (error) {
        free(waiting);
    }
    return error ? error : TPW_LATER;
}

static struct waiting *wait_for(const struct tp_frame *frame) {
    struct waiting *waiting = malloc(sizeof *waiting);
    if (waiting) {
        waiting->ticket = tpw_ticket(frame);
    }
    return waiting;
}

int32_t tpw_stream_wait(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_stream_wait_in *in,
                        struct tpw_stream *stream) {
    TPW_TRY(tpw_refuse_capture(s, stream));
    struct waiting *waiting = wait_for(frame);
    if (!waiting) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    return later(waiting, tpw_when_done(s, stream->native, answer, waiting));
}

/* What the session puts behind the program's work takes a moment, and the program may know that its own is done. */
static bool only_ours(struct tpw_session *s, struct tpw_stream *stream) {
    bool over = tpw_timeline_over(stream);
    for (struct tpw_stream *other = s->streams; other && over && stream->native == CU_STREAM_LEGACY;
         other = other->next) {
        unsigned int flags = CU_STREAM_NON_BLOCKING;
        if (other != stream && other->context_id == stream->context_id && tpw_touchable(s, other) &&
            s->cuda.cuStreamGetFlags(other->native, &flags) == CUDA_SUCCESS && !(flags & CU_STREAM_NON_BLOCKING)) {
            over = tpw_timeline_over(other) || s->cuda.cuStreamQuery(other->native) == CUDA_SUCCESS;
        }
    }
    return over;
}

int32_t tpw_stream_query(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_stream_query_in *in) {
    int32_t error = CUDA_SUCCESS;
    struct tpw_stream *stream = tpw_stream_find(s, frame, in->stream, &error);
    TPW_TRY(error);
    error = (int32_t)s->cuda.cuStreamQuery(stream->native);
    return error == CUDA_ERROR_NOT_READY && only_ours(s, stream) ? CUDA_SUCCESS : error;
}

int32_t tpw_context_synchronize(struct tpw_session *s, const struct tp_frame *frame) {
    if (!s->entered) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    TPW_TRY(tpw_refuse_captures(s));
    struct waiting *waiting = wait_for(frame);
    if (!waiting) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    return later(waiting, tpw_when_all_done(s, answer, waiting));
}

/* A capture stands in no way: nothing is put into its streams. */
int32_t tpw_managed_wait(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_managed_wait_in *in) {
    int32_t error = CUDA_SUCCESS;
    struct tpw_stream *stream = in->stream ? tpw_stream_find(s, frame, in->stream, &error) : NULL;
    if (stream) {
        error = tpw_refuse_capture(s, stream);
    }
    struct waiting *waiting = error ? NULL : wait_for(frame);
    if (!waiting) {
        return error ? error : CUDA_ERROR_OUT_OF_MEMORY;
    }
    return later(waiting, stream ? tpw_when_done(s, stream->native, answer, waiting)
                                 : tpw_when_everything_done(s, answer, waiting));
}

int32_t tpw_managed_settle(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_managed_settle_in *in,
                           struct tpw_stream *stream) {
    const struct tpg_stream_wait_in wait = {.stream = in->stream};
    stream->beside = true;
    return tpw_stream_wait(s, frame, &wait, stream);
}
