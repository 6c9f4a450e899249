/*
 * What kernels print, in the program's own output, before the call returns that makes it visible.
 *
 * Any thread. The driver prints in the session when it is asked to wait for work that is done, which the client does not need:
 * it hears of completion in other ways. So a program whose kernels print pays for a question behind each of its waits. Code that
 * is compressed does not say whether it prints. Such a program asks behind its first waits, then once in a while and at its
 * end; what comes once makes it one that prints.
 */
#include "process_internal.h"
#include "tpg_cuda_send.h"

#include <stdio.h>
#include <stdlib.h>
#include <tp_image.h>
#include <unistd.h>

#define FIRST_WAITS 64u
#define PAUSE_NS 1000000u

_Atomic unsigned tpc_printing;

static _Atomic unsigned waits;
static _Atomic uint64_t last;
static pid_t process;

/* Work of a context that ends prints until it is over, and the driver waits for it, in the thread that ends it. */
static _Thread_local int ended;

static void context_over(const struct tpc_context *context) {
    (void)context;
    ended = atomic_load_explicit(&tpc_printing, memory_order_relaxed) != 0;
}
TP_REGISTER(tpc_context_over, context_over);

static void take(void) {
    struct tpg_print_take_out out = {.left = 1};
    while (out.left) {
        struct tp_reply reply;
        const int over = ended;
        ended = 0;
        CUresult result = tpc_call_print_take("printf", over, &out, &reply);
        if (result != CUDA_SUCCESS) {
            out.left = 0;
            if (tp_alive(tpc_conn)) { /* of a lost connection the log has said */
                tp_log(TP_ERROR, "What kernels have printed could not be fetched: error %d", (int)result);
            }
        } else {
            if (out.output_size || out.errors_size) {
                atomic_store_explicit(&tpc_printing, TP_PRINTS, memory_order_relaxed);
            }
            if (out.output_size) { /* as the driver does it: behind what the program has printed, and out at once */
                fwrite(out.output, 1, out.output_size, stdout);
                fflush(stdout);
            }
            fwrite(out.errors, 1, out.errors_size, stderr);
        }
        tp_reply_free(&reply);
    }
}

static bool due(void) {
    const uint64_t now = tp_now_ns(), before = atomic_load_explicit(&last, memory_order_relaxed);
    const bool first = atomic_load_explicit(&waits, memory_order_relaxed) < FIRST_WAITS &&
                       atomic_fetch_add_explicit(&waits, 1, memory_order_relaxed) < FIRST_WAITS;
    const bool ask = first || now - before > PAUSE_NS;
    if (ask) {
        atomic_store_explicit(&last, now, memory_order_relaxed);
    }
    return ask;
}

void tpc_print(bool broken) {
    if (broken || ended || atomic_load_explicit(&tpc_printing, memory_order_relaxed) != TP_PRINTS_MAYBE || due()) {
        take();
    }
}

/* The driver prints at the end of the program, too. */
static void at_exit(void) {
    if (process == getpid() && tp_alive(tpc_conn)) {
        take();
    }
}

static void ask_at_exit(void) {
    process = getpid();
    if (atexit(at_exit)) {
        tp_log(TP_WARN, "What kernels print just before the program ends may be missing: no memory");
    }
}

void tpc_print_loaded(const void *image, size_t size) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    unsigned before = atomic_load_explicit(&tpc_printing, memory_order_relaxed);
    if (before == TP_PRINTS) {
        return;
    }
    const unsigned prints = tp_image_prints(image, size);
    while (prints > before && !atomic_compare_exchange_weak(&tpc_printing, &before, prints)) {
    }
    if (prints) {
        pthread_once(&once, ask_at_exit);
    }
}
