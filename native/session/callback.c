/*
 * Host functions: the stream stops at a stub on the driver's thread, the client runs the function, the stream goes on.
 *
 * The stub runs on a thread of the driver and may not call CUDA: it only tells the executor (through an eventfd) and sleeps
 * until the client has answered, or the session ends. The list is shared between those threads and guarded by a lock; no lock
 * is held while anybody sleeps.
 */
#include "tpg_session.h"
#include "tpw_session.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum { QUEUED, RAISED, SENT, DONE };

struct callback {
    struct callback *next;
    struct tpw_callbacks *owner;
    uint64_t token;
    uint32_t thread;
    _Atomic uint32_t state;
};

struct tpw_callbacks {
    struct tp_lock lock;
    struct callback *list;
    struct tpw_session *session;
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

/* On a thread of the driver. */
static void stub(void *user) {
    struct callback *callback = user;
    atomic_store_explicit(&callback->state, RAISED, memory_order_release);
    ring(callback->owner);
    for (;;) {
        uint32_t state = atomic_load_explicit(&callback->state, memory_order_acquire);
        if (state == DONE || atomic_load(&callback->owner->ended)) {
            break;
        }
        tp_futex_wait(&callback->state, state, 0);
    }
    struct tpw_callbacks *c = callback->owner;
    tp_lock_take(&c->lock);
    for (struct callback **at = &c->list; *at; at = &(*at)->next) {
        if (*at == callback) {
            *at = callback->next;
            break;
        }
    }
    tp_lock_drop(&c->lock);
    atomic_fetch_sub(&c->outstanding, 1);
    ring(c); /* the executor may hold frames back until now */
    free(callback);
}

bool tpw_callbacks_outstanding(const struct tpw_session *s) {
    return s->callbacks && atomic_load(&s->callbacks->outstanding);
}

int32_t tpw_host_function(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_host_function_in *in) {
    int32_t error = 0;
    struct tpw_stream *record = tpw_stream_of(s, frame, in->stream, &error);
    if (error) {
        return error;
    }
    CUstream stream = record->native;
    struct callback *callback = calloc(1, sizeof *callback);
    if (!callback) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    struct tpw_callbacks *c = s->callbacks;
    callback->owner = c;
    callback->token = in->token;
    callback->thread = frame->thread;
    tp_lock_take(&c->lock);
    callback->next = c->list;
    c->list = callback;
    tp_lock_drop(&c->lock);
    atomic_fetch_add(&c->outstanding, 1);
    if (record->hosts != s->hosts) {
        record->hosts = s->hosts;
        record->behind = 0;
    }
    error = (int32_t)s->cuda.cuLaunchHostFunc(stream, stub, callback);
    if (error) {
        tp_lock_take(&c->lock);
        for (struct callback **at = &c->list; *at; at = &(*at)->next) {
            if (*at == callback) {
                *at = callback->next;
                break;
            }
        }
        tp_lock_drop(&c->lock);
        atomic_fetch_sub(&c->outstanding, 1);
        free(callback);
    }
    return error;
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
    tp_lock_take(&c->lock);
    for (struct callback *callback = c->list; callback; callback = callback->next) {
        uint32_t raised = RAISED;
        if (atomic_compare_exchange_strong(&callback->state, &raised, SENT)) {
            unsigned char *body = tpw_reply_begin(s->link, TP_OP_CALLBACK, 0, callback->thread, 16);
            if (body) {
                struct tp_cursor cursor = tp_cursor_make(body, 16);
                tp_put_u64(&cursor, callback->token);
                tp_put_u64(&cursor, 0);
                tpw_reply_commit(s->link, 0, 16);
            }
        }
    }
    tp_lock_drop(&c->lock);
    return true;
}

int32_t tpw_host_function_done(struct tpw_session *s, const struct tp_frame *frame,
                               const struct tpg_host_function_done_in *in) {
    struct tpw_callbacks *c = s->callbacks;
    (void)frame;
    tp_lock_take(&c->lock);
    for (struct callback *callback = c->list; callback; callback = callback->next) {
        uint32_t sent = SENT;
        if (callback->token == in->token && atomic_compare_exchange_strong(&callback->state, &sent, DONE)) {
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
