/*
 * The worker's side of a trace: asked for before anything else when TF_TRACE_PATH is set, and brought in at the end.
 *
 * The session then tells in messages what it does, and the connection's own thread reads them while nobody waits. Clocks: a
 * question and its answer say that the worker's clock showed a time at some moment between them, so the offset is known to half
 * their distance. It is asked for several times at the start, of which the closest counts, and once at the end, by a word that
 * nobody waits long for: a program may end while its streams stand.
 */
#include "process_internal.h"
#include "tpg_cuda_messages.h"
#include "tpg_cuda_send.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <tp_conn.h>
#include <unistd.h>

#define QUESTIONS 8u
#define END_NS 1000000000u

static _Atomic uint64_t asked, told; /* the token that is to come back, and that it has */
static char boot[40];
static size_t boot_size;
static pid_t process; /* that asked; not its children */

static bool ask(uint64_t *begin, uint64_t *end, uint64_t *worker) {
    struct tpg_trace_begin_out out;
    struct tp_reply reply;
    *begin = tp_now_ns();
    CUresult result = tpc_call_trace_begin("cuInit", &out, &reply);
    *end = tp_now_ns();
    if (result == CUDA_SUCCESS) {
        *worker = out.now;
        boot_size = out.boot_size < sizeof boot ? out.boot_size : sizeof boot;
        memcpy(boot, out.boot, boot_size);
    }
    tp_reply_free(&reply);
    if (result == CUDA_ERROR_OUT_OF_MEMORY) {
        tp_log(TP_ERROR, "The worker has no memory for its side of the trace, which is left out");
    }
    return result == CUDA_SUCCESS; /* of a lost connection the log has said */
}

static void at_exit(void) {
    if (process != getpid() || !tp_alive(tpc_conn)) {
        return;
    }
    const uint64_t token = tp_now_ns();
    atomic_store(&asked, token);
    const bool urgent = tp_thread_self()->urgent;
    tp_thread_self()->urgent = true;
    CUresult sent = tpc_post_trace_tell("exit", token);
    tp_thread_self()->urgent = urgent;
    if (sent != CUDA_SUCCESS) {
        return;
    }
    tp_flush(tpc_conn);
    const struct timespec moment = {.tv_nsec = 50000};
    while (atomic_load(&told) != token && tp_now_ns() - token < END_NS && tp_alive(tpc_conn)) {
        nanosleep(&moment, NULL);
    }
}

void tpc_trace_worker(void) {
    uint64_t best = UINT64_MAX, at[3] = {0};
    for (unsigned i = 0; i < QUESTIONS; i++) {
        uint64_t begin, end, worker;
        if (!ask(&begin, &end, &worker)) {
            return;
        }
        if (end - begin < best) {
            best = end - begin;
            memcpy(at, (uint64_t[]){begin, end, worker}, sizeof at);
        }
    }
    tp_worker_clock(at[0], at[1], at[2], boot, boot_size);
    tp_listen_always(tpc_conn);
    if (!process) {
        atexit(at_exit);
    }
    process = getpid();
}

bool tpc_on_traced(const struct tpg_traced_in *in) {
    const uint64_t now = tp_now_ns();
    tp_worker_records(in->records, in->records_size, in->lost);
    uint64_t token = in->token;
    if (token && atomic_compare_exchange_strong(&asked, &token, 0)) { /* one answer to the one question */
        tp_worker_clock(in->token, now, in->now, boot, boot_size);
        atomic_store(&told, in->token);
    }
    return true;
}
