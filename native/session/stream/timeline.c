/*
 * Timelines: how the executor learns that the GPU has come to a point of a stream, without waiting for it.
 *
 * A stream has a timeline: points are numbered from 1, `issued` is the last one, `reached` the last one known to be done. A point
 * is a number that the GPU writes into the stream's one pinned word when it gets there (cuStreamWriteValue64). The executor
 * looks at the words between frames: no driver call, no lock of the driver that launches could meet. Only every millisecond
 * it asks the driver about the oldest waits, because after a sticky error the numbers never come.
 *
 * What waits for a point stands in one list, in the order in which it was asked for. One list for all streams, because
 * completions run in that order across streams, too.
 *
 * Executor thread only. The words are written by the GPU and read with acquire loads; their writer is the stream operation,
 * whose system-wide fence makes earlier copies to host memory visible first. A client's kernel could write there too (it is
 * device-visible memory of its own process): it can only make its own waits end early.
 */
#include "tpw_stream.h"

#include <stdatomic.h>
#include <stdlib.h>

#define WORDS 512u /* of one batch */
#define ASK_EVERY_NS 1000000u
#define ASK_AT_ONCE 8u
/* Waits whose driver is asked, and those in captures, put nothing into a stream that would hold a client back. */
#define ASKED_MAX 16384u
#define WAITS_MAX 262144u

struct wait {
    struct tpw_stream *stream; /* NULL: there is no point in a stream, but the driver is asked about */
    uint64_t event, native;    /* an event by its handle, or (0) a stream */
    CUcontext context;
    uint32_t context_id;
    uint64_t point;
    tpw_done *done;
    void *what;
    bool ready;
    int32_t error;
};

struct tpw_waits {
    struct tpw_word *words;     /* free ones */
    struct wait *pending, *due; /* in the order of their making; due: completed, `done` not yet called */
    struct tpw_stream **active; /* streams that somebody in `pending` waits for */
    size_t count, active_count, due_first, due_count, capacity;
    size_t asked_count; /* of `pending`, without a stream */
    uint32_t running;   /* completions under way: one may poll in turn */
    uint64_t asked;
};

/* ---- words ---- */

static int32_t more_words(struct tpw_session *s) {
    void *memory = NULL;
    CUdeviceptr device = 0;
    struct tpw_word *words = calloc(WORDS, sizeof *words);
    if (!words || !tpw_home_enter(s)) {
        free(words);
        return words ? CUDA_ERROR_INVALID_CONTEXT : CUDA_ERROR_OUT_OF_MEMORY;
    }
    int32_t error = (int32_t)s->cuda.cuMemHostAlloc(&memory, WORDS * sizeof(uint64_t),
                                                    CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP);
    error = error ? error : (int32_t)s->cuda.cuMemHostGetDevicePointer_v2(&device, memory, 0);
    if (error && memory) {
        s->cuda.cuMemFreeHost(memory);
    }
    tpw_home_leave(s);
    if (error) {
        free(words);
        return error;
    }
    for (uint32_t i = WORDS; i-- > 0;) {
        words[i] = (struct tpw_word){
            .next = s->waits->words, .value = (_Atomic uint64_t *)memory + i, .device = device + i * sizeof(uint64_t)};
        s->waits->words = &words[i];
    }
    return CUDA_SUCCESS;
}

static int32_t take_word(struct tpw_session *s, struct tpw_stream *stream) {
    TPW_TRY(s->waits->words ? CUDA_SUCCESS : more_words(s));
    stream->word = s->waits->words;
    s->waits->words = stream->word->next;
    atomic_store_explicit(stream->word->value, 0, memory_order_relaxed);
    tpw_lane_point(stream->word, 0);
    return CUDA_SUCCESS;
}

/* What lies in the word beyond the last point was written by a kernel of the client. */
static bool has_reached(struct tpw_stream *stream, uint64_t point) {
    if (stream->reached < point) {
        uint64_t now = atomic_load_explicit(stream->word->value, memory_order_acquire);
        stream->reached = now <= stream->reached ? stream->reached : now < stream->issued ? now : stream->issued;
    }
    return stream->reached >= point;
}

void tpw_timeline_end(struct tpw_session *s, struct tpw_stream *stream) {
    /* Of a stream that has not come to its end the GPU may still write the word: it is not used again. */
    if (stream->word && has_reached(stream, stream->issued)) {
        TP_PUSH(s->waits->words, stream->word);
    } else if (stream->word) {
        tpw_lane_point(stream->word, 0); /* its work ends with its context */
    }
    stream->word = NULL;
}

static int32_t open(struct tpw_session *s) {
    s->waits = s->waits ? s->waits : calloc(1, sizeof *s->waits);
    return s->waits ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}
TP_REGISTER(tpw_driver_starts, open);

/* There is a word for the next stream. */
static int32_t ready(struct tpw_session *s) { return s->waits->words ? CUDA_SUCCESS : more_words(s); }
TP_REGISTER(tpw_primary_made, ready);

/* ---- the list ---- */

static bool resize(void *list, size_t count, size_t size) {
    void **at = list;
    void *grown = realloc(*at, count * size);
    *at = grown ? grown : *at;
    return grown != NULL;
}

/* Room for one wait more, also among those that are due: that one completes cannot fail. */
static bool have_room(struct tpw_waits *w) {
    if (w->count + w->due_count < w->capacity) {
        return true;
    }
    size_t capacity = w->capacity ? 2 * w->capacity : 64;
    if (!resize(&w->pending, capacity, sizeof *w->pending) || !resize(&w->due, capacity, sizeof *w->due) ||
        !resize(&w->active, capacity, sizeof(struct tpw_stream *))) {
        return false;
    }
    w->capacity = capacity;
    return true;
}

static void activate(struct tpw_waits *w, struct tpw_stream *stream, uint64_t point) {
    if (!stream->awaited) {
        stream->awaited = point;
        w->active[w->active_count++] = stream;
    }
}

/* There is room. */
static void add(struct tpw_waits *w, struct tpw_stream *stream, tpw_done *done, void *what) {
    w->pending[w->count++] = (struct wait){.stream = stream,
                                           .context = stream->context,
                                           .context_id = stream->context_id,
                                           .point = stream->issued,
                                           .done = done,
                                           .what = what};
    stream->pending++;
    activate(w, stream, stream->issued);
}

void tpw_enter_stream(struct tpw_session *s, const struct tpw_stream *stream) {
    tpw_visit(s, stream->context, stream->context_id);
}

static bool gather(struct tpw_session *s);

/* A quarter of a million waits at once: give the GPU time, nothing else can be done in order. Completions are not run here:
 * they may end streams and contexts, which the caller is going through. What is due does not count, so there may be nothing
 * left to wait for. */
static bool have_time(struct tpw_session *s) {
    while (s->waits->count >= WAITS_MAX && tpw_link_status(s->link) == TP_OK) {
        if (!gather(s)) {
            tp_pause();
        }
    }
    return s->waits->count < WAITS_MAX;
}

int32_t tpw_put_point(struct tpw_session *s, struct tpw_stream *stream) {
    int32_t error = stream->word ? CUDA_SUCCESS : take_word(s, stream);
    tpw_enter_stream(s, stream); /* what was done until here may have entered another */
    error = error ? error
                  : (int32_t)s->cuda.cuStreamWriteValue64_v2(stream->native, stream->word->device, stream->issued + 1,
                                                             CU_STREAM_WRITE_VALUE_DEFAULT);
    if (!error) {
        stream->issued++;
        stream->dirty = false;
        stream->mark = NULL;
        tpw_stream_count(s, stream, 2); /* itself, and the piece of a copy that it may be for */
        tpw_lane_point(stream->word, stream->issued);
    }
    return error;
}

static int32_t await(struct tpw_session *s, struct tpw_stream *stream, tpw_done *done, void *what) {
    struct tpw_waits *w = s->waits;
    if (!w) {
        return CUDA_ERROR_NOT_INITIALIZED;
    }
    if (TP_UNLIKELY(!tpw_touchable(s, stream))) {
        /* Everything that was queued before the stream began to capture has its point; nothing may be put behind it now. */
        if (!stream->pending) {
            return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        }
        if (w->count >= ASKED_MAX || !have_room(w)) {
            return CUDA_ERROR_OUT_OF_MEMORY;
        }
        add(w, stream, done, what);
        return CUDA_SUCCESS;
    }
    if (!have_time(s) || !have_room(w)) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    TPW_TRY(tpw_put_point(s, stream));
    add(w, stream, done, what);
    return CUDA_SUCCESS;
}

int32_t tpw_when_done(struct tpw_session *s, CUstream native, tpw_done *done, void *what) {
    struct tpw_stream *stream = tpw_stream_native(s, native);
    return stream ? await(s, stream, done, what) : CUDA_ERROR_INVALID_HANDLE;
}

int32_t tpw_when_reached(struct tpw_session *s, struct tpw_stream *stream, tpw_done *done, void *what) {
    struct tpw_waits *w = s->waits;
    if (stream->dirty || !stream->issued || !w) {
        return await(s, stream, done, what);
    }
    if (w->count >= WAITS_MAX || !have_room(w)) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    add(w, stream, done, what);
    return CUDA_SUCCESS;
}

int32_t tpw_when_complete(struct tpw_session *s, uint64_t event, uint64_t native, tpw_done *done, void *what) {
    struct tpw_waits *w = s->waits;
    if (!w || w->count >= ASKED_MAX || !have_room(w)) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    w->pending[w->count++] = (struct wait){.context = s->entered_native,
                                           .context_id = s->entered,
                                           .event = event,
                                           .native = native,
                                           .done = done,
                                           .what = what};
    w->asked_count++;
    return CUDA_SUCCESS;
}

static void nothing(struct tpw_session *s, void *what, int32_t error) { (void)s, (void)what, (void)error; }

uint64_t tpw_point(struct tpw_session *s, struct tpw_stream *stream) {
    return await(s, stream, nothing, NULL) ? 0 : stream->issued;
}

bool tpw_point_reached(struct tpw_stream *stream, uint64_t point) { return has_reached(stream, point); }

bool tpw_timeline_over(struct tpw_stream *stream) {
    if (stream->mark) {
        return atomic_load_explicit(stream->mark, memory_order_acquire) == stream->marked;
    }
    return !stream->dirty && (!stream->word || has_reached(stream, stream->issued));
}

void tpw_waits_settle(struct tpw_session *s) {
    struct tpw_stream *next;
    for (struct tpw_stream *stream = s->streams; stream; stream = next) {
        next = stream->next;
        if (stream->dirty && tpw_touchable(s, stream)) {
            tpw_enter_stream(s, stream);
            if (await(s, stream, nothing, NULL)) {
                tp_log(TP_WARN, "work before a capture has no point: what waits for it ends with the capture");
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

/* A stream of a green context, or of any other, may end with that meanwhile, once its work is done. */
static void barrier_elsewhere(struct tpw_session *s, void *what, int32_t error) {
    barrier_step(s, what, error == CUDA_ERROR_CONTEXT_IS_DESTROYED ? CUDA_SUCCESS : error);
}

static int32_t when(struct tpw_session *s, bool every_context, tpw_done *done, void *what) {
    struct barrier *barrier = malloc(sizeof *barrier);
    if (!barrier) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *barrier = (struct barrier){.remaining = 1, .done = done, .what = what};
    struct tpw_stream *idle = NULL;
    const uint32_t context = s->entered; /* a wait may visit another, and find no name for one that is ending */
    for (struct tpw_stream *stream = s->streams; stream; stream = stream->next) {
        if (!every_context && stream->context_id != context && stream->home != context) {
            continue;
        }
        const bool touchable = tpw_touchable(s, stream);
        /* A point of ours would make a stream "not ready" that the program knows to be done. */
        if (stream->dirty && touchable) {
            tpw_enter_stream(s, stream);
            stream->dirty = s->cuda.cuStreamQuery(stream->native) != CUDA_SUCCESS;
        }
        if (!stream->pending && (!stream->dirty || !touchable)) {
            idle = stream->dirty ? idle : stream;
            continue;
        }
        int32_t error = await(s, stream, stream->context_id == context ? barrier_step : barrier_elsewhere, barrier);
        if (error) {
            barrier->error = barrier->error ? barrier->error : error;
        } else {
            barrier->remaining++;
        }
    }
    if (barrier->remaining == 1 && !barrier->error && (!idle || tpw_touchable(s, idle)) && s->entered) {
        /* Nothing to wait for, but a device that failed has to say so, whichever context of it is asked. */
        int32_t error = (int32_t)s->cuda.cuStreamQuery(idle ? idle->native : CU_STREAM_LEGACY);
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
 * Completions run in the order in which the waits were made: what a later one promises the client (a synchronise) includes
 * what an earlier one does (handing over a copy). The GPU writes in an order of its own, and a point can only depend on older
 * waits; so the newest wait is looked at first: whatever it depends on is then seen complete, too.
 */

static void enter(struct tpw_session *s, const struct wait *wait) { tpw_visit(s, wait->context, wait->context_id); }

/* The client may have destroyed the event and given its handle to another; or it went with its context. A stream that captures
 * may not be asked; its watcher is told nothing then. */
static int32_t query(struct tpw_session *s, const struct wait *wait) {
    if (wait->event) {
        const struct tpw_object *event = tpw_object(s, TPG_EVENT, wait->event);
        bool there = event && event->native == wait->native;
        return there ? (int32_t)s->cuda.cuEventQuery((CUevent)(uintptr_t)wait->native) : CUDA_SUCCESS;
    }
    CUstream native = (CUstream)(uintptr_t)wait->native;
    const struct tpw_stream *stream = tpw_stream_native(s, native);
    if (stream && !tpw_touchable(s, stream)) {
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    return stream ? (int32_t)s->cuda.cuStreamQuery(native) : CUDA_SUCCESS;
}

static void look(struct tpw_session *s, struct wait *wait) {
    if (wait->ready) {
        return; /* tpw_waits_end_event, or an error */
    }
    if (wait->stream) {
        wait->ready = has_reached(wait->stream, wait->point);
        return;
    }
    enter(s, wait);
    int32_t result = query(s, wait);
    wait->ready = result != CUDA_ERROR_NOT_READY;
    wait->error = wait->ready ? result : CUDA_SUCCESS;
}

/* Asks the driver about the oldest waits: the only way to hear of a sticky error, after which no number is ever written. */
static bool ask(struct tpw_session *s) {
    struct tpw_waits *w = s->waits;
    bool news = false;
    for (size_t i = 0; i < w->count && i < ASK_AT_ONCE; i++) {
        struct wait *wait = &w->pending[i];
        if (wait->stream && tpw_touchable(s, wait->stream)) {
            enter(s, wait);
            int32_t result = (int32_t)s->cuda.cuStreamQuery(wait->stream->native);
            if (result != CUDA_SUCCESS && result != CUDA_ERROR_NOT_READY) {
                wait->ready = true;
                wait->error = result;
                news = true;
            }
        }
    }
    return news;
}

/* Moves ready waits to the list of due ones, both in order. */
static void collect(struct tpw_waits *w) {
    size_t kept = 0;
    if (w->due_first) {
        memmove(w->due, w->due + w->due_first, w->due_count * sizeof *w->due);
        w->due_first = 0;
    }
    for (size_t i = 0; i < w->active_count; i++) {
        w->active[i]->awaited = 0;
    }
    w->active_count = 0;
    for (size_t i = 0; i < w->count; i++) {
        struct wait wait = w->pending[i];
        if (wait.ready) {
            w->asked_count -= !wait.stream;
            w->due[w->due_count++] = wait;
            continue;
        }
        w->pending[kept++] = wait;
        if (wait.stream) {
            activate(w, wait.stream, wait.point);
        }
    }
    w->count = kept;
}

/* Calls what is due. A completion may poll in turn: it goes on where this one stands. */
static bool run_due(struct tpw_session *s) {
    struct tpw_waits *w = s->waits;
    bool news = false;
    while (w->due_count) {
        struct wait wait = w->due[w->due_first++];
        if (--w->due_count == 0) {
            w->due_first = 0;
        }
        struct tpw_stream *stream = wait.stream;
        /* Before the completion, which may end the stream's context and everything in it. */
        if (stream && --stream->pending == 0 && stream->dying) {
            tpw_stream_end(s, stream, wait.error);
        }
        w->running++;
        wait.done(s, wait.what, wait.error);
        w->running--;
        news = true;
    }
    return news;
}

/* Whether a look at every wait can find anything: each stream's oldest is a word to look at, however many wait behind it. */
static bool worth_looking(const struct tpw_waits *w) {
    bool worth = w->asked_count > 0;
    for (size_t i = 0; i < w->active_count && !worth; i++) {
        worth = has_reached(w->active[i], w->active[i]->awaited);
    }
    return worth;
}

/* Makes due what has completed; true if something has. */
static bool gather(struct tpw_session *s) {
    struct tpw_waits *w = s->waits;
    bool ready = false;
    if (worth_looking(w)) {
        for (size_t i = w->count; i-- > 0;) {
            look(s, &w->pending[i]);
            ready |= w->pending[i].ready;
        }
    }
    uint64_t now = tp_now_ns();
    if (ready) {
        w->asked = now;
    } else if (w->count && now - w->asked > ASK_EVERY_NS) {
        ready = ask(s);
        w->asked = now;
    }
    if (ready) {
        collect(w);
    }
    return ready;
}

bool tpw_poll(struct tpw_session *s) {
    struct tpw_waits *w = s->waits;
    if (!w || (!w->count && !w->due_count)) {
        return false;
    }
    gather(s);
    return run_due(s);
}

static bool is_for(const struct wait *wait, uint64_t event) {
    return !wait->stream && wait->event == event && !wait->ready;
}

bool tpw_waits_for_event(const struct tpw_session *s, uint64_t event) {
    const struct tpw_waits *w = s->waits;
    bool found = false;
    for (size_t i = 0; w && w->asked_count && i < w->count && !found; i++) {
        found = is_for(&w->pending[i], event);
    }
    return found;
}

void tpw_waits_end_event(struct tpw_session *s, uint64_t event) {
    struct tpw_waits *w = s->waits;
    for (size_t i = 0; w && i < w->count; i++) {
        w->pending[i].ready |= is_for(&w->pending[i], event);
    }
}

int32_t tpw_waits_move(struct tpw_session *s, uint64_t event, struct tpw_stream *stream) {
    struct tpw_waits *w = s->waits;
    int32_t error = await(s, stream, nothing, NULL);
    for (size_t i = 0; i < w->count && !error; i++) {
        struct wait *wait = &w->pending[i];
        if (is_for(wait, event)) {
            wait->stream = stream;
            wait->point = stream->issued;
            wait->event = 0;
            stream->pending++;
            w->asked_count--;
        }
    }
    return error;
}

bool tpw_completing(const struct tpw_session *s) { return s->waits && s->waits->running; }

size_t tpw_pending(const struct tpw_session *s) { return s->waits ? s->waits->count : 0; }

void tpw_waits_end(struct tpw_session *s, uint32_t context, int32_t error) {
    struct tpw_waits *w = s->waits;
    if (!w) {
        return;
    }
    for (size_t i = 0; i < w->count; i++) {
        struct wait *wait = &w->pending[i];
        if (!context || wait->context_id == context) {
            wait->ready = true;
            wait->error = error;
        }
    }
    collect(w);
    run_due(s);
}
