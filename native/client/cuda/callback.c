/*
 * Host functions: the worker's stream has come to one, this process runs it, the stream goes on.
 *
 * A message arrives on a thread of the connection, which may not run strangers' code: it only queues a token, and one thread
 * of our own, made with the first host function, runs them in the order of arrival. The list is guarded by a lock that is not
 * held while a function runs. CUDA calls from inside a host function are not permitted: the thread has a context that says so.
 */
#include "tpc.h"
#include "tpg_cuda_send.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

struct call {
    struct call *next;
    uint64_t token;
    CUhostFn function;
    CUstreamCallback callback; /* of cuStreamAddCallback, instead */
    CUstream stream;
    void *user;
};

static struct tp_lock lock;
static struct call *waiting; /* sent to the worker, not called back yet */
static struct call *ready, **ready_end = &ready;
static _Atomic uint32_t ready_count; /* futex of the runner */
static uint64_t last_token;
static bool running;

static void run(struct call *call) {
    if (call->callback) {
        call->callback(call->stream, (CUresult)atomic_load(&tpc_sticky_error), call->user);
    } else {
        call->function(call->user);
    }
    struct tpg_host_function_done_in in = {.token = call->token};
    tpc_post_host_function_done("cuLaunchHostFunc", &in);
    tp_flush(tpc_conn);
    tp_listen(tpc_conn, -1);
    free(call);
}

static void *runner(void *unused) {
    (void)unused;
    tpc_forbid_calls();
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

void tpc_on_callback(const struct tp_reply_frame *frame, const unsigned char *body, size_t size) {
    struct tp_cursor c = tp_cursor_make((unsigned char *)(uintptr_t)body, size);
    uint64_t token = tp_get_u64(&c);
    (void)frame;
    tp_lock_take(&lock);
    for (struct call **at = &waiting; *at; at = &(*at)->next) {
        if ((*at)->token == token) {
            struct call *call = *at;
            *at = call->next;
            call->next = NULL;
            *ready_end = call;
            ready_end = &call->next;
            break;
        }
    }
    tp_lock_drop(&lock);
    atomic_fetch_add(&ready_count, 1);
    tp_futex_wake(&ready_count, 1);
}

/* The runner blocks every signal: handlers belong to the program's threads. */
static bool start_runner(void) {
    if (!running) {
        sigset_t all, before;
        pthread_t thread;
        sigfillset(&all);
        pthread_sigmask(SIG_BLOCK, &all, &before);
        running = pthread_create(&thread, NULL, runner, NULL) == 0;
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        if (running) {
            pthread_detach(thread);
        }
    }
    return running;
}

static CUresult add(const char *name, CUstream stream, struct call *call) {
    tp_lock_take(&lock);
    bool able = start_runner();
    call->token = ++last_token;
    call->next = waiting;
    waiting = call;
    tp_lock_drop(&lock);
    tp_listen(tpc_conn, 1);
    struct tpg_host_function_in in = {.stream = (uint64_t)(uintptr_t)stream, .token = call->token};
    return able ? tpc_post_host_function(name, &in) : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult tpc_cuLaunchHostFunc(CUstream hStream, CUhostFn fn, void *userData) {
    TPC_CONTEXT(context);
    (void)context;
    TPC_CHECK_HANDLE(STREAM, hStream, true);
    struct call *call = fn ? calloc(1, sizeof *call) : NULL;
    if (!call) {
        return fn ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_ERROR_INVALID_VALUE;
    }
    call->function = fn;
    call->user = userData;
    return add("cuLaunchHostFunc", hStream, call);
}

CUresult tpc_cuStreamAddCallback(CUstream hStream, CUstreamCallback callback, void *userData, unsigned int flags) {
    TPC_CONTEXT(context);
    (void)context;
    TPC_CHECK_HANDLE(STREAM, hStream, true);
    struct call *call = callback && !flags ? calloc(1, sizeof *call) : NULL;
    if (!call) {
        return callback && !flags ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_ERROR_INVALID_VALUE;
    }
    call->callback = callback;
    call->stream = hStream;
    call->user = userData;
    return add("cuStreamAddCallback", hStream, call);
}
