/*
 * The touch of a page that is away: a signal, a question to a thread of ours, and the program goes on.
 *
 * The handler runs in a stranger's thread at any instruction that touches managed memory. It takes no lock and allocates
 * nothing: it puts a request, which lies on its stack, into a list without locks, and sleeps until a thread of ours has answered.
 * What is not ours goes to the handler that the program had, as the kernel would have called it. A handler that the program sets
 * later replaces ours, so before pages are taken away ours is put in front again. System calls do not come here: the kernel
 * answers EFAULT where it meets a page that is away (docs/memory.md).
 */
#include "tpc_managed.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <tp_net.h>
#include <ucontext.h>

#define STACK (256u << 10)

typedef void information_handler(int, siginfo_t *, void *);

enum { RANGES = 256 };
static struct {
    _Atomic uint64_t start, size;
} watched[RANGES];
static _Atomic uint32_t ranges;               /* of them; 0 in a child of fork, which has none */
static information_handler *_Atomic informed; /* what the program had: one of the two, or neither */
static void (*_Atomic plain)(int);
static _Atomic bool once; /* it was good for one signal */
static struct tp_lock starting;
static bool started;

/* ---- asking ---- */

static struct queue {
    struct tpc_request *_Atomic newest; /* what came last is first */
    struct tpc_request *ready;          /* the thread's alone: in the order in which they came */
    _Atomic uint32_t count;             /* futex */
} queues[2];                            /* of the server, and of who waits for the GPU first */

static void put(struct queue *queue, struct tpc_request *request) {
    request->next = atomic_load(&queue->newest);
    while (!atomic_compare_exchange_weak(&queue->newest, &request->next, request)) {
    }
    atomic_fetch_add(&queue->count, 1);
    tp_futex_wake(&queue->count, 1);
}

struct tpc_request *tpc_managed_next(bool idle) {
    struct queue *queue = &queues[idle];
    while (!queue->ready) {
        const uint32_t seen = atomic_load(&queue->count);
        struct tpc_request *newest = atomic_exchange(&queue->newest, NULL);
        while (newest) {
            struct tpc_request *next = newest->next;
            TP_PUSH(queue->ready, newest);
            newest = next;
        }
        if (!queue->ready) {
            tp_futex_wait(&queue->count, seen, 0);
        }
    }
    struct tpc_request *request = queue->ready;
    queue->ready = request->next;
    return request;
}

void tpc_managed_done(struct tpc_request *request, CUresult result) {
    request->result = result;
    /* The request is gone as soon as its owner sees this; a wake of a word that is none any more wakes nobody wrongly: all who
     * sleep on a futex look again. */
    _Atomic uint32_t *done = &request->done;
    atomic_store_explicit(done, 1, memory_order_release);
    tp_futex_wake(done, 1);
}

CUresult tpc_managed_ask(struct tpc_request *request) {
    atomic_store_explicit(&request->done, 0, memory_order_relaxed);
    put(&queues[request->wish == TPC_TOUCH && !request->inside], request);
    while (!atomic_load_explicit(&request->done, memory_order_acquire)) {
        tp_futex_wait(&request->done, 0, 0);
    }
    return request->result;
}

/* Who has waited hands it on. */
void tpc_managed_hand_on(struct tpc_request *request) { put(&queues[0], request); }

/* ---- the handler ---- */

static bool was_write(const void *context) {
#if defined(__x86_64__)
    return ((const ucontext_t *)context)->uc_mcontext.gregs[REG_ERR] & 2;
#else
    (void)context;
    return false; /* a page that may be read already is touched again, which then can only be a write */
#endif
}

/* As if we were not there. Without a handler the instruction is tried again, which ends the program. */
static void hand_on(int number, siginfo_t *information, void *context) {
    static _Thread_local const siginfo_t *last;
    static _Thread_local const char *frame;
    const char *here = __builtin_frame_address(0);
    information_handler *theirs = atomic_load(&informed);
    void (*simple)(int) = atomic_load(&plain);
    if (information == last && here < frame) { /* a handler that was set after ours, and calls the one before it: us */
        signal(SIGSEGV, SIG_DFL);
        return;
    }
    last = information;
    frame = here;
    if ((!theirs && !simple) || atomic_load(&once)) {
        signal(SIGSEGV, SIG_DFL);
    }
    if (theirs) {
        theirs(number, information, context);
    } else if (simple) {
        simple(number);
    } else if (information->si_code <= 0) { /* sent by somebody: no instruction will send it again */
        raise(number);
    }
}

static bool is_watched(uint64_t address) {
    const uint32_t count = atomic_load_explicit(&ranges, memory_order_acquire);
    for (uint32_t i = 0; i < count; i++) {
        if (address - atomic_load(&watched[i].start) < atomic_load(&watched[i].size)) {
            return true;
        }
    }
    return false;
}

static void on_fault(int number, siginfo_t *information, void *context) {
    const int saved = errno;
    const uint64_t address = (uint64_t)(uintptr_t)information->si_addr;
    bool served = false;
    if (information->si_code == SEGV_ACCERR && is_watched(address)) {
        struct tpc_request request = {
            .wish = TPC_TOUCH, .address = address, .write = was_write(context), .inside = tpc_calls_forbidden()};
        served = tpc_managed_ask(&request) == CUDA_SUCCESS;
    }
    if (!served) {
        hand_on(number, information, context);
    }
    errno = saved;
}

void tpc_managed_guard(void) {
    struct sigaction theirs;
    if (sigaction(SIGSEGV, NULL, &theirs) != 0 || ((theirs.sa_flags & SA_SIGINFO) && theirs.sa_sigaction == on_fault)) {
        return;
    }
    const bool with_information = theirs.sa_flags & SA_SIGINFO;
    const bool none = !with_information && (theirs.sa_handler == SIG_DFL || theirs.sa_handler == SIG_IGN);
    atomic_store(&informed, with_information ? theirs.sa_sigaction : NULL);
    atomic_store(&plain, with_information || none ? NULL : theirs.sa_handler);
    atomic_store(&once, (theirs.sa_flags & SA_RESETHAND) != 0);
    struct sigaction own = theirs;
    own.sa_sigaction = on_fault;
    own.sa_flags = (theirs.sa_flags & ~(SA_RESETHAND | SA_NODEFER)) | SA_SIGINFO | SA_ONSTACK | SA_RESTART;
    if (sigaction(SIGSEGV, &own, NULL) != 0) {
        tp_log(TP_ERROR, "the handler for touches of managed memory could not be set: %s", strerror(errno));
    }
}

/* ---- start ---- */

static void after_fork(void) { atomic_store(&ranges, 0); }

bool tpc_managed_watch(uint64_t start, uint64_t size) {
    tp_lock_take(&starting);
    if (!started) {
        started = pthread_atfork(NULL, NULL, after_fork) == 0 &&
                  tp_thread_start(NULL, "tf-managed", STACK, tpc_managed_serve, NULL) == TP_OK &&
                  tp_thread_start(NULL, "tf-managed-idle", STACK, tpc_managed_idle, NULL) == TP_OK;
    }
    const uint32_t count = atomic_load(&ranges);
    const bool able = started && count < RANGES;
    if (able) {
        atomic_store(&watched[count].start, start);
        atomic_store(&watched[count].size, size);
        atomic_store_explicit(&ranges, count + 1, memory_order_release);
        tpc_managed_guard();
    }
    tp_lock_drop(&starting);
    return able;
}
