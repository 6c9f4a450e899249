/*
 * Host functions: the stream stops at a stub on the driver's thread, the client runs the function, the stream goes on.
 *
 * The stub runs on a thread of the driver and may not call CUDA: it only tells the executor (through an eventfd) and sleeps
 * until the client has answered, or the session ends. The list is shared between those threads and guarded by a lock; no lock
 * is held while anybody sleeps.
 *
 * A host function in a graph is one lasting thing of the client and any number of calls, one for each launch. A user object
 * of the driver that only the graph and what is made of it hold says when it can no longer be called.
 */
#include "tpg_answer.h"
#include "tpg_session.h"
#include "tpw_stream.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum { QUEUED, RAISED, SENT, DONE, GONE };

struct callback {
    struct callback *next;
    struct tpw_callbacks *owner;
    uint64_t token;
    uint64_t number;                   /* of this call, once the client was told of it */
    const struct tpw_lasting *lasting; /* of a graph: there while the graph stands here */
    uint32_t context;
    int32_t status; /* what the driver tells a callback of its stream */
    _Atomic uint32_t state;
};

struct tpw_lasting {
    struct tpw_lasting *next; /* of those that are gone */
    struct tpw_callbacks *owner;
    uint64_t token, object;
    struct tpw_kept *kept; /* not the client's: what has one user less then */
    struct tpw_mix *mix;   /* of an executable graph whose copies its functions see to; this is that at `place` */
    uint32_t place;
};

struct tpw_callbacks {
    struct tp_lock lock;
    struct callback *list;
    struct tpw_session *session;
    struct tpw_lasting *gone;
    uint64_t calls;    /* that the client was told of */
    uint64_t repeated; /* host functions ever put into graphs */
    int event;
    _Atomic bool rung; /* after something was written to `event` */
    _Atomic uint32_t outstanding;
    _Atomic bool ended;
};

int32_t tpw_callbacks_open(struct tpw_session *s) {
    struct tpw_callbacks *c = calloc(1, sizeof *c);
    if (!c) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    c->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (c->event < 0) {
        free(c);
        return CUDA_ERROR_OPERATING_SYSTEM;
    }
    c->session = s;
    s->callbacks = c;
    return CUDA_SUCCESS;
}

int tpw_callbacks_fd(const struct tpw_session *s) { return s->callbacks ? s->callbacks->event : -1; }

static void ring(struct tpw_callbacks *c) {
    uint64_t one = 1;
    while (write(c->event, &one, sizeof one) < 0 && errno == EINTR) {
    }
    atomic_store(&c->rung, true);
    tpw_link_wake(c->session->link);
}

static void unlist(struct tpw_callbacks *c, struct callback *callback, bool counted) {
    tp_lock_take(&c->lock);
    TP_UNLINK(c->list, callback);
    tp_lock_drop(&c->lock);
    if (counted) {
        atomic_fetch_sub(&c->outstanding, 1);
        ring(c); /* the executor may hold frames back until now */
    }
    free(callback);
}

/* On a thread of the driver. */
static void stub(void *user) {
    struct callback *callback = user;
    uint32_t queued = QUEUED;
    bool counted = atomic_compare_exchange_strong(&callback->state, &queued, RAISED);
    if (counted) {
        ring(callback->owner);
    }
    while (counted) {
        uint32_t state = atomic_load_explicit(&callback->state, memory_order_acquire);
        if (state == DONE || atomic_load(&callback->owner->ended)) {
            break;
        }
        tp_futex_wait(&callback->state, state, 0);
    }
    unlist(callback->owner, callback, counted);
}

/* The driver calls these where a context is broken, too, as the program expects of its own. */
static void told_stub(CUstream stream, CUresult status, void *user) {
    struct callback *callback = user;
    callback->status = (int32_t)status;
    stub(callback);
}

/* ---- host functions in graphs ---- */

struct tpw_lasting *tpw_lasting_new(struct tpw_session *s, uint64_t token, uint64_t object) {
    struct tpw_lasting *lasting = calloc(1, sizeof *lasting);
    if (lasting) {
        *lasting = (struct tpw_lasting){.owner = s->callbacks, .token = token, .object = object};
    }
    return lasting;
}

struct tpw_lasting *tpw_lasting_kept(struct tpw_session *s, struct tpw_kept *kept) {
    struct tpw_lasting *lasting = tpw_lasting_new(s, 0, 0);
    if (lasting) {
        lasting->kept = kept;
    }
    return lasting;
}

/* On a thread of the driver, or on the executor. */
void tpw_lasting_gone(void *what) {
    struct tpw_lasting *lasting = what;
    struct tpw_callbacks *c = lasting->owner;
    tp_lock_take(&c->lock);
    TP_PUSH(c->gone, lasting);
    tp_lock_drop(&c->lock);
    ring(c);
}

int32_t tpw_lasting_give(struct tpw_session *s, CUgraph graph, struct tpw_lasting *lasting, struct tpw_kept *kept,
                         CUuserObject *object) {
    int32_t error = lasting ? (int32_t)s->cuda.cuUserObjectCreate(object, lasting, tpw_lasting_gone, 1,
                                                                  CU_USER_OBJECT_NO_DESTRUCTOR_SYNC)
                            : CUDA_ERROR_OUT_OF_MEMORY;
    if (error) {
        free(lasting);
        return error;
    }
    if (kept) {
        tpw_keep_use(kept);
    }
    error = (int32_t)s->cuda.cuGraphRetainUserObject(graph, *object, 1, CU_GRAPH_USER_OBJECT_MOVE);
    if (error) {
        s->cuda.cuUserObjectRelease(*object, 1); /* lets go, in time */
    }
    return error;
}

/* On a thread of the driver, once for each launch. */
static void repeated(void *user) {
    const struct tpw_lasting *lasting = user;
    struct tpw_callbacks *c = lasting->owner;
    struct callback *callback = calloc(1, sizeof *callback);
    if (!callback) {
        tp_log(TP_ERROR, "no memory to call a host function of a graph: it is left out of this launch");
        atomic_fetch_sub(&c->outstanding, 1);
        return;
    }
    *callback = (struct callback){.owner = c, .token = lasting->token, .lasting = lasting};
    tp_lock_take(&c->lock);
    TP_PUSH(c->list, callback);
    tp_lock_drop(&c->lock);
    stub(callback);
}

int32_t tpw_host_repeated(struct tpw_session *s, CUgraph graph, uint64_t token, CUhostFn *function, void **user) {
    CUuserObject object = NULL;
    struct tpw_lasting *lasting = tpw_lasting_new(s, token, 0);
    TPW_TRY(tpw_lasting_give(s, graph, lasting, NULL, &object));
    s->callbacks->repeated++;
    *function = repeated;
    *user = lasting;
    return CUDA_SUCCESS;
}

int32_t tpw_host_kept(struct tpw_session *s, uint64_t token, CUhostFn *function, void **user, struct tpw_kept **out) {
    struct tpw_lasting *lasting = tpw_lasting_new(s, token, 0);
    struct tpw_kept *kept = lasting ? calloc(1, sizeof *kept) : NULL;
    if (!kept) {
        free(lasting);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *kept = (struct tpw_kept){.native = (uint64_t)(uintptr_t)lasting, .kind = TPW_KEPT_HOST, .over = true};
    s->callbacks->repeated++;
    *function = repeated;
    *user = lasting;
    *out = kept;
    return CUDA_SUCCESS;
}

static bool unkept(struct tpw_session *s, struct tpw_kept *kept) {
    if (kept->kind != TPW_KEPT_HOST) {
        return false;
    }
    tpw_lasting_gone((void *)(uintptr_t)kept->native);
    tpw_kept_ended(s, kept);
    return true;
}
TP_REGISTER(tpw_unkept, unkept);

uint64_t tpw_host_token(CUhostFn function, void *user) {
    return function == repeated ? ((const struct tpw_lasting *)user)->token : 0;
}

struct tpw_lasting *tpw_host_mixed(struct tpw_session *s, uint64_t token, struct tpw_mix *mix, uint32_t place) {
    struct tpw_lasting *lasting = tpw_lasting_new(s, token, 0);
    if (lasting) {
        lasting->mix = mix;
        lasting->place = place;
    }
    return lasting;
}

bool tpw_host_any(const struct tpw_session *s) { return s->callbacks && s->callbacks->repeated; }

void tpw_host_expect(struct tpw_session *s, struct tpw_stream *stream, uint32_t count) {
    atomic_fetch_add(&s->callbacks->outstanding, count);
    if (stream->hosts != s->hosts) {
        stream->hosts = s->hosts;
        stream->behind = 0;
    }
}

void tpw_host_never(struct tpw_session *s, uint32_t count) { atomic_fetch_sub(&s->callbacks->outstanding, count); }

static void tell_gone(struct tpw_session *s) {
    struct tpw_callbacks *c = s->callbacks;
    tp_lock_take(&c->lock);
    struct tpw_lasting *gone = c->gone;
    c->gone = NULL;
    tp_lock_drop(&c->lock);
    while (gone) {
        struct tpw_lasting *next = gone->next;
        if (gone->object) {
            tpw_forget(s, TPG_USEROBJECT, gone->object);
        }
        if (gone->kept) {
            tpw_let_go(s, gone->kept);
        } else {
            struct tpg_callback_over_in message = {.token = gone->token};
            tpg_send_callback_over(s, &message);
        }
        free(gone);
        gone = next;
    }
}

bool tpw_hosts_outstanding(const struct tpw_session *s) {
    return s->callbacks && atomic_load(&s->callbacks->outstanding);
}

bool tpw_callbacks_outstanding(const struct tpw_session *s) { return s->late || tpw_hosts_outstanding(s); }

static int32_t launch(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_host_function_in *in) {
    int32_t error = tpw_enter(s, frame);
    tpw_check_name(TPG_STREAM, in->stream, false, &error);
    struct tpw_stream *record = error ? NULL : tpw_stream_of(s, frame, in->stream, &error);
    TPW_TRY(error);
    CUstream stream = record->native;
    if (TP_UNLIKELY(s->captures)) {
        CUgraph graph = tpw_capturing_graph(s, record, &error);
        CUhostFn function = NULL;
        void *user = NULL;
        if (graph) {
            error = tpw_host_repeated(s, graph, in->token, &function, &user);
            return error ? error : (int32_t)s->cuda.cuLaunchHostFunc(stream, function, user);
        }
        error = error ? error : tpw_refuse_capture(s, record);
        TPW_TRY(error);
    }
    struct callback *callback = calloc(1, sizeof *callback);
    if (!callback) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    struct tpw_callbacks *c = s->callbacks;
    callback->owner = c;
    callback->token = in->token;
    callback->context = record->context_id;
    tp_lock_take(&c->lock);
    TP_PUSH(c->list, callback);
    tp_lock_drop(&c->lock);
    atomic_fetch_add(&c->outstanding, 1);
    if (record->hosts != s->hosts) {
        record->hosts = s->hosts;
        record->behind = 0;
    }
    error = (int32_t)(in->told ? s->cuda.cuStreamAddCallback(stream, told_stub, callback, 0)
                               : s->cuda.cuLaunchHostFunc(stream, stub, callback));
    if (error) {
        unlist(c, callback, true);
    }
    return error;
}

/* Whatever refuses a function, its caller hears that it will not be called: the call may be long over, and keeps it for that. */
int32_t tpw_host_function(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_host_function_in *in) {
    int32_t error = launch(s, frame, in);
    if (error && !(frame->flags & TP_FRAME_CALL)) {
        struct tpg_callback_refused_in message = {.token = in->token, .status = error};
        tpg_send_callback_refused(s, &message);
    }
    return error;
}

/* The driver waited for what was queued, or will never run it. A stub that it calls all the same finds itself gone. */
static void context_gone(struct tpw_session *s, const struct tpw_gone *gone) {
    const uint32_t context = gone->id;
    struct tpw_callbacks *c = s->callbacks;
    struct tpg_callback_refused_in message = {.status = CUDA_ERROR_CONTEXT_IS_DESTROYED};
    for (bool found = c != NULL; found;) {
        found = false;
        tp_lock_take(&c->lock);
        for (struct callback *callback = c->list; callback && !found; callback = callback->next) {
            uint32_t queued = QUEUED;
            found = callback->context == context && atomic_compare_exchange_strong(&callback->state, &queued, GONE);
            message.token = callback->token;
        }
        tp_lock_drop(&c->lock);
        if (found) {
            atomic_fetch_sub(&c->outstanding, 1);
            tpg_send_callback_refused(s, &message);
        }
    }
}
TP_REGISTER(tpw_context_gone, context_gone);

/* Takes a function that a stream has come to and the client was not told of. What lets other frames go is not to
 * be called under the lock: it may end objects whose destructors take it. */
static bool next_raised(struct tpw_callbacks *c, struct tpg_callback_in *message) {
    const struct tpw_lasting *lasting = NULL;
    bool found = false;
    tp_lock_take(&c->lock);
    for (struct callback *callback = c->list; callback && !found; callback = callback->next) {
        uint32_t raised = RAISED;
        found = atomic_compare_exchange_strong(&callback->state, &raised, SENT);
        if (found) {
            callback->number = ++c->calls;
            lasting = callback->lasting;
        }
        *message =
            (struct tpg_callback_in){.token = callback->token, .status = callback->status, .number = callback->number};
    }
    tp_lock_drop(&c->lock);
    if (lasting && lasting->mix) {
        TP_TELL(tpw_host_told, lasting->mix, lasting->place, message);
    }
    return found;
}

bool tpw_callbacks_tell(struct tpw_session *s) {
    struct tpg_callback_in message;
    bool told = false;
    while (s->callbacks && next_raised(s->callbacks, &message)) {
        tpg_send_callback(s, &message);
        told = true;
    }
    return told;
}

bool tpw_callbacks_run(struct tpw_session *s) {
    struct tpw_callbacks *c = s->callbacks;
    uint64_t count;
    /* The word saves the spinning executor a system call; it comes after the descriptor, so a rung one is never missed. */
    if (!c || !atomic_load_explicit(&c->rung, memory_order_relaxed)) {
        return false;
    }
    atomic_store(&c->rung, false);
    ssize_t n = read(c->event, &count, sizeof count);
    (void)n; /* a ring that came between the two is told twice */
    tpw_callbacks_tell(s);
    tell_gone(s);
    return true;
}

int32_t tpw_host_function_done(struct tpw_session *s, const struct tp_frame *frame,
                               const struct tpg_host_function_done_in *in) {
    struct tpw_callbacks *c = s->callbacks;
    if (in->failed) {
        tp_log(TP_ERROR, "a graph's copies beside a host function failed in the client (%d); its session ends",
               in->failed);
        s->ended = true;
        s->exit_code = 1;
        return CUDA_SUCCESS;
    }
    tp_lock_take(&c->lock);
    for (struct callback *callback = c->list; callback; callback = callback->next) {
        uint32_t sent = SENT;
        /* One function may stand in several streams: it is the call that is over. */
        if (callback->token == in->token && callback->number == in->number &&
            atomic_compare_exchange_strong(&callback->state, &sent, DONE)) {
            tp_futex_wake(&callback->state, 1);
            break;
        }
    }
    tp_lock_drop(&c->lock);
    return CUDA_SUCCESS;
}

void tpw_callbacks_close(struct tpw_session *s) {
    struct tpw_callbacks *c = s->callbacks;
    if (!c) {
        return;
    }
    atomic_store(&c->ended, true);
    tp_lock_take(&c->lock);
    for (struct callback *callback = c->list; callback; callback = callback->next) {
        atomic_store(&callback->state, DONE); /* a stub about to sleep sees the change */
        tp_futex_wake(&callback->state, 1);
    }
    tp_lock_drop(&c->lock);
    /* The stubs may still run on threads of the driver: the list lives until the process ends. */
}

bool tpw_work_stands(struct tpw_session *s) {
    for (const struct tpw_stream *stream = s->streams; stream; stream = stream->next) {
        if (stream->hosts == s->hosts && (stream->pending || (stream->dirty && tpw_touchable(s, stream))) &&
            tpw_callbacks_outstanding(s)) {
            return true;
        }
    }
    return s->words && tpw_words_stand(s);
}
