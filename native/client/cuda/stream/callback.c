/*
 * Host functions: the worker's stream has come to one, this process runs it, the stream goes on.
 *
 * A message arrives on a thread of the connection, when what stands before the function has come, too. That thread may not run
 * strangers' code: it only queues a token, and one thread of our own, made with the first host function, runs them in the
 * order of arrival. The list is guarded by a lock that is not
 * held while a function runs. Host functions of graphs and destructors of user objects stay until the worker says that they
 * were needed for the last time. CUDA calls from inside a host function are not permitted: the thread has a context that says so.
 */
#include "tpc_stream.h"
#include "tpg_cuda_messages.h"
#include "tpg_cuda_send.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

struct call {
    struct call *next;
    uint64_t token, number; /* the number is that of one call */
    CUhostFn function;
    CUstreamCallback callback; /* of cuStreamAddCallback, instead */
    CUstream stream;
    void *user;
    bool lost;       /* what stands before it may never come: the connection is gone */
    bool lasting;    /* called any number of times, until the worker says that it was the last */
    uint64_t object; /* of a user object: its destructor runs then */
    bool silent;     /* nobody waits for this call */
    CUresult status; /* of a callback: what the driver says of its stream */
    size_t fetch, fill;
    uint64_t buffers[]; /* of a graph's copies: to be fetched before it is called, then those to be filled behind it */
};

static struct tp_lock lock;
static struct call *waiting; /* sent to the worker, not called back yet */
static struct call *ready, **ready_end = &ready;
static _Atomic uint32_t ready_count; /* futex of the runner */
static uint64_t last_token;
static bool running;

/* Host functions of graphs run whenever a graph is launched; the session says when all are through. */
static _Atomic uint32_t of_graphs;
static uint64_t launched; /* frames of the process at the last launch of a graph that may have some */
static bool may_run;      /* one of tpc_late_reasons */

_Atomic uint32_t tpc_late_reasons;

/* ---- which are outstanding: what they may write may not be copied before ---- */

static void one_more(void) { atomic_fetch_add_explicit(&tpc_late_reasons, 1, memory_order_seq_cst); }

static void one_less(void) { atomic_fetch_sub_explicit(&tpc_late_reasons, 1, memory_order_seq_cst); }

void tpc_host_functions_launched(void) {
    if (TP_LIKELY(!atomic_load_explicit(&of_graphs, memory_order_relaxed))) {
        return;
    }
    tp_lock_take(&lock);
    launched = tp_frames(tpc_conn);
    if (!may_run) {
        may_run = true;
        one_more();
    }
    tp_lock_drop(&lock);
}

void tpc_host_functions_through(uint64_t frame) {
    tp_lock_take(&lock);
    if (may_run && frame >= launched) {
        may_run = false;
        one_less();
    }
    tp_lock_drop(&lock);
}

/* ---- running them ---- */

static void run(struct call *call) {
    CUresult result = CUDA_SUCCESS;
    if (call->callback) {
        call->callback(call->stream, call->lost ? tpc_lost() : call->status, call->user);
    } else if (call->function && (!call->lost || call->silent)) {
        /* as where a context is broken: a function is not called, a callback is told */
        TP_ASK(tpc_host_function_mixed, result, call->buffers, call->fetch, false);
        if (result == CUDA_SUCCESS) {
            call->function(call->user);
        }
        TP_ASK(tpc_host_function_mixed, result, call->buffers + call->fetch, call->fill, true);
    }
    if (!call->lasting && !call->silent) {
        one_less(); /* what it wrote may be copied at once from here on */
    }
    if (!call->silent) {
        TP_TELL(tpc_host_function_over); /* for the kernels behind it */
        tpc_post_host_function_done("cuLaunchHostFunc", call->token, call->number, (int)result);
        tp_flush(tpc_conn);
    }
    if (!call->lasting) { /* the listening of a lasting one ends with it */
        tp_listen(tpc_conn, -1);
    }
    free(call);
}

static void *runner(void *unused) {
    (void)unused;
    tpc_forbid_calls();
    tp_thread_self()->urgent = true;
    for (;;) {
        uint32_t seen = atomic_load(&ready_count);
        tp_lock_take(&lock);
        struct call *call = ready;
        if (call) {
            ready = call->next;
            ready_end = ready ? ready_end : &ready;
        }
        tp_lock_drop(&lock);
        if (call) {
            run(call);
        } else {
            tp_futex_wait(&ready_count, seen, 0);
        }
    }
    return NULL;
}

static struct call *take_out(uint64_t token) {
    tp_lock_take(&lock);
    struct call *call = TP_TAKE(waiting, it->token == token);
    tp_lock_drop(&lock);
    return call;
}

static void make_ready(struct call *call) {
    call->lost = !tp_alive(tpc_conn);
    call->next = NULL;
    tp_lock_take(&lock);
    *ready_end = call;
    ready_end = &call->next;
    tp_lock_drop(&lock);
    atomic_fetch_add(&ready_count, 1);
    tp_futex_wake(&ready_count, 1);
}

bool tpc_on_callback(const struct tpg_callback_in *in) {
    struct call *due = NULL;
    bool lasting = false;
    tpc_happened(&tpc_counts.told); /* what stands before the function in its stream is complete */
    tp_lock_take(&lock);
    struct call *call = TP_FIND(waiting, it->token == in->token);
    if (call && call->lasting) {
        lasting = true;
        due = malloc(sizeof *due + (in->fetch_count + in->fill_count) * sizeof *due->buffers);
        if (due) {
            *due = *call;
            due->fetch = in->fetch_count;
            due->fill = in->fill_count;
            memcpy(due->buffers, in->fetch, due->fetch * sizeof *due->buffers);
            memcpy(due->buffers + due->fetch, in->fill, due->fill * sizeof *due->buffers);
        }
    } else if (call) {
        TP_UNLINK(waiting, call);
        due = call;
    } else { /* not known here: the stream goes on */
        lasting = true;
        due = calloc(1, sizeof *due);
        if (due) {
            *due = (struct call){.token = in->token, .lasting = true};
        }
    }
    tp_lock_drop(&lock);
    if (due) {
        due->status = (CUresult)in->status;
        due->number = in->number;
        make_ready(due);
    } else if (lasting) {
        tp_log(TP_ERROR, "no memory to run a host function: its stream stands still");
    }
    return true;
}

/* Uploads behind it must not be too early. The destructor of a user object stands in no stream. */
static void outstanding(const struct call *call, bool begins) {
    if (call->object) {
        return;
    }
    if (call->lasting) {
        atomic_fetch_add(&of_graphs, begins ? 1u : -1u);
    } else if (begins) {
        one_more();
    } else {
        one_less();
    }
}

/* One that will not be called. */
static void discard(struct call *call) {
    if (call) {
        outstanding(call, false);
        free(call);
        tp_listen(tpc_conn, -1);
    }
}

bool tpc_on_callback_refused(const struct tpg_callback_refused_in *in) {
    struct call *call = take_out(in->token);
    if (call && call->callback) { /* its call is long over: it is told why */
        outstanding(call, false);
        call->status = (CUresult)in->status;
        call->silent = true;
        make_ready(call);
    } else { /* the next call that may report the error does */
        discard(call);
    }
    return true;
}

bool tpc_on_callback_over(const struct tpg_callback_over_in *in) {
    struct call *call = take_out(in->token);
    if (call && call->object) { /* the destructor runs now */
        tpc_unmint(TPG_USEROBJECT, call->object);
        call->lasting = false;
        call->silent = true;
        make_ready(call);
    } else {
        discard(call);
    }
    return true;
}

/* The runner blocks signals: handlers belong to the program's threads. Not those of an instruction that a host function executes,
 * which the kernel does not hold back: it would end the process, and a touch of managed memory is one. */
static bool start_runner(void) {
    if (!running) {
        sigset_t all, before;
        pthread_t thread;
        sigfillset(&all);
        static const int own[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
        for (size_t i = 0; i < sizeof own / sizeof *own; i++) {
            sigdelset(&all, own[i]);
        }
        pthread_sigmask(SIG_BLOCK, &all, &before);
        running = pthread_create(&thread, NULL, runner, NULL) == 0;
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        if (running) {
            pthread_detach(thread);
        }
    }
    return running;
}

/* Makes it known under a new token; false without a thread to run it. */
static bool enlist(struct call *call) {
    tp_lock_take(&lock);
    bool able = start_runner();
    call->token = ++last_token;
    TP_PUSH(waiting, call);
    tp_lock_drop(&lock);
    outstanding(call, true);
    tp_listen(tpc_conn, 1);
    return able;
}

/* Takes back what a call was refused for: the worker will never ask for it. */
void tpc_host_refused(uint64_t token) { discard(take_out(token)); }

static CUresult add(const char *name, CUstream stream, struct call *call) {
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
    if (TP_UNLIKELY(atomic_load_explicit(&tpc_captures, memory_order_relaxed))) {
        /* A callback is told the stream's status, which a graph has not. */
        CUresult result = tpc_capture_status(stream, &status);
        if (call->callback || result == CUDA_ERROR_STREAM_CAPTURE_IMPLICIT) {
            result = tpc_capture_refuse(name, stream);
        }
        if (result != CUDA_SUCCESS) {
            free(call);
            return result;
        }
        call->lasting = status == CU_STREAM_CAPTURE_STATUS_ACTIVE;
    }
    bool able = enlist(call);
    const uint64_t token = call->token;
    CUresult result = CUDA_ERROR_OUT_OF_MEMORY;
    if (able) {
        result = tpc_post_host_function(name, (uint64_t)(uintptr_t)stream, token, call->callback != NULL);
    }
    if (result != CUDA_SUCCESS) {
        tpc_host_refused(token);
    }
    return result;
}

uint64_t tpc_host_lasting(CUhostFn function, void *user) {
    struct call *call = calloc(1, sizeof *call);
    if (!call) {
        return 0;
    }
    *call = (struct call){.function = function, .user = user, .lasting = true};
    bool able = enlist(call);
    uint64_t token = call->token;
    if (!able) {
        tpc_host_refused(token);
    }
    return able ? token : 0;
}

bool tpc_host_of(uint64_t token, CUhostFn *function, void **user) {
    tp_lock_take(&lock);
    const struct call *call = TP_FIND(waiting, it->token == token);
    if (call) {
        *function = call->function;
        *user = call->user;
    }
    tp_lock_drop(&lock);
    return call != NULL;
}

CUresult tpc_cuUserObjectCreate(CUuserObject *object_out, void *ptr, CUhostFn destroy, unsigned int initialRefcount,
                                unsigned int flags) {
    if (!object_out || !destroy || !initialRefcount || initialRefcount > INT32_MAX ||
        flags != CU_USER_OBJECT_NO_DESTRUCTOR_SYNC) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    const uint64_t object = tpc_mint(TPG_USEROBJECT);
    struct call *call = object ? calloc(1, sizeof *call) : NULL;
    if (!call) {
        tpc_unmint(TPG_USEROBJECT, object);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *call = (struct call){.function = destroy, .user = ptr, .lasting = true, .object = object};
    bool able = enlist(call);
    const uint64_t token = call->token;
    CUresult result = able ? tpc_call_user_object_create("cuUserObjectCreate", object, token, initialRefcount)
                           : CUDA_ERROR_OUT_OF_MEMORY;
    if (result != CUDA_SUCCESS) {
        tpc_host_refused(token);
        if (!able) {
            tpc_unmint(TPG_USEROBJECT, object);
        }
        return result;
    }
    *object_out = (CUuserObject)(uintptr_t)object;
    return CUDA_SUCCESS;
}

CUresult tpc_do_cuLaunchHostFunc(CUstream hStream, CUhostFn fn, void *userData) {
    struct call *call = fn ? calloc(1, sizeof *call) : NULL;
    if (!call) {
        return fn ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_ERROR_INVALID_VALUE;
    }
    call->function = fn;
    call->user = userData;
    return add("cuLaunchHostFunc", hStream, call);
}

CUresult tpc_do_cuStreamAddCallback(CUstream implicit, CUstream hStream, CUstreamCallback callback, void *userData,
                                    unsigned int flags) {
    struct call *call = callback && !flags ? calloc(1, sizeof *call) : NULL;
    if (!call) {
        return callback && !flags ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_ERROR_INVALID_VALUE;
    }
    call->callback = callback;
    call->stream = hStream; /* the program sees what it passed */
    call->user = userData;
    return add("cuStreamAddCallback", hStream ? hStream : implicit, call);
}
