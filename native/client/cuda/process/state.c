/*
 * State of the process: before cuInit, ready, broken for good, worker lost; and the ways to send.
 *
 * Any thread. The state is one atomic that every exported function reads; it changes under `start_lock` or in the handlers for
 * loss and fork. A child of fork whose parent had called cuInit goes back to "before cuInit" and stays there: its cuInit fails
 * like the real driver's. A parent that only used NVML takes nothing from its children.
 */
#include "process_internal.h"
#include <tp_wait.h>
#include "tpg_cuda_messages.h"
#include "tpg_cuda_send.h"

#include <pthread.h>
#include <stdlib.h>

_Atomic int tpc_state = TPC_BEFORE_INIT;
_Atomic int tpc_sticky_error;
_Atomic int tpc_lost_error = CUDA_ERROR_DEVICE_UNAVAILABLE;
bool tpc_strict;
struct tp_conn *tpc_conn;
struct tp_lock tpc_turns;
_Atomic uint64_t tpc_captures;
_Atomic bool tpc_words;

static struct tp_lock start_lock;
static bool started, forked;
static CUresult start_error;

CUresult tpc_not_ready(void) {
    switch (atomic_load(&tpc_state)) {
    case TPC_BEFORE_INIT:
        return CUDA_ERROR_NOT_INITIALIZED;
    case TPC_WATCHED:
        return tpc_calls_forbidden() ? CUDA_ERROR_NOT_PERMITTED : CUDA_SUCCESS;
    case TPC_LOST:
        return TPC_LOST_ERROR;
    default:
        return CUDA_SUCCESS;
    }
}

CUresult tpc_unsupported(const char *name, const char *reason, CUresult code, _Atomic bool *said) {
    tp_count_unsupported(name);
    tp_say_once(said, "%s is not supported here and returns %s: %s", name, tpg_cuda_error_name((int)code), reason);
    return code;
}

void tpc_failed(const char *name, CUresult result) {
    const char *text = tpg_cuda_error_name((int)result);
    tp_log(TP_DEBUG, "%s returns %d (%s)", name, (int)result, text ? text : "unknown");
    tpc_happened(&tpc_counts.refusals);
}

/* ---- start ---- */

static void on_loss(void) {
    int ready = TPC_READY, watched = TPC_WATCHED;
    if (atomic_load(&tpc_sticky_error) == CUDA_ERROR_LAUNCH_TIMEOUT) {
        atomic_store(&tpc_lost_error, CUDA_ERROR_LAUNCH_TIMEOUT);
    }
    if (!atomic_compare_exchange_strong(&tpc_state, &ready, TPC_LOST)) {
        atomic_compare_exchange_strong(&tpc_state, &watched, TPC_LOST);
    }
}

/* In the child of a process that called cuInit, or was about to. */
static void after_fork(void) {
    forked = true;
    atomic_store(&tpc_state, TPC_BEFORE_INIT);
}

bool tpc_on_notice(const struct tpg_notice_in *in) {
    const char *name = tpg_cuda_error_name(in->error);
    tp_log(TP_WARN, "%s (frame %llu) failed on the worker with error %d (%s); the next call that may report it will",
           tp_op_name((uint16_t)in->op), (unsigned long long)in->frame, in->error, name ? name : "unknown");
    tpc_happened(&tpc_counts.failures);
    return true;
}

static CUresult status_error(enum tp_status status) {
    switch (status) {
    case TP_ERROR_CONFIG:
        return CUDA_ERROR_NO_DEVICE;
    case TP_ERROR_FORKED:
        return CUDA_ERROR_NOT_INITIALIZED;
    case TP_ERROR_MEMORY:
        return CUDA_ERROR_OUT_OF_MEMORY;
    default:
        return TPC_LOST_ERROR;
    }
}

/* The start operation, on a connection that is there. */
static CUresult ask_worker(void) {
    struct tpg_start_out out;
    struct tp_reply reply TPC_REPLY;
    TPC_TRY(tpc_call_start("cuInit", 0, &out, &reply));
    TPC_TRY(tpc_devices_learn(out.driver_version, out.devices, out.devices_size));
    TP_TELL(tpc_started, &out);
    return CUDA_SUCCESS;
}

CUresult tpc_start(void) {
    if (forked) {
        return CUDA_ERROR_NOT_INITIALIZED;
    }
    uint32_t seen = tp_interruptions();
    tp_lock_take(&start_lock);
    if (!started && tp_interruptions() != seen) {
        start_error = status_error(TP_ERROR_INTERRUPTED); /* as was the thread for which this one waited */
    } else if (!started) {
        static bool prepared;
        enum tp_status status;
        tpc_strict = tp_switch("TF_STRICT");
        if (!prepared) {
            pthread_atfork(NULL, NULL, after_fork);
            prepared = true;
        }
        tp_on_loss(on_loss);
        tp_on_message(tpc_take_message);
        tp_wait_begin();
        tpc_conn = tp_connection(&status);
        if (tpc_conn && tp_worker_recorded()) {
            tpc_trace_worker();
        }
        start_error = tpc_conn ? ask_worker() : status_error(status);
        tp_wait_end();
        started = status != TP_ERROR_INTERRUPTED; /* whoever pressed Ctrl-C at a prompt may try again */
    }
    CUresult result = start_error;
    tp_lock_drop(&start_lock);
    return result;
}

CUresult tpc_do_cuInit(unsigned int Flags) {
    (void)Flags;
    CUresult result = tpc_start();
    if (result == CUDA_SUCCESS && tpc_device_count == 0) {
        return CUDA_ERROR_NO_DEVICE;
    }
    if (result == CUDA_SUCCESS) {
        int before = TPC_BEFORE_INIT;
        int ready = tp_trace_on() ? TPC_WATCHED : TPC_READY;
        atomic_compare_exchange_strong(&tpc_state, &before, tp_alive(tpc_conn) ? ready : TPC_LOST);
    }
    return result;
}

/* ---- sending ---- */

unsigned char *tpc_reserve(uint16_t op, size_t size) {
    unsigned char *frame = tp_reserve(tpc_conn, op, sizeof(struct tp_frame) + size);
    return frame ? frame + sizeof(struct tp_frame) : NULL;
}

/* Who reads the message may hold a lock: the other families hear of it at the next failed call (tell_broken). */
static _Atomic bool untold;

bool tpc_on_device_broken(const struct tpg_device_broken_in *in) {
    const int device = tpc_device_of(in->device);
    int none = 0;
    if (!tpc_device_valid(device) || !in->error ||
        !atomic_compare_exchange_strong(&tpc_devices[device].error, &none, in->error)) {
        return true;
    }
    atomic_store(&tpc_sticky_error, in->error);
    tpc_contexts_break(device);
    tpc_happened(&tpc_counts.failures);
    /* An assertion has a text of its own, which the driver prints (print.c). */
    tp_log(in->error == CUDA_ERROR_ASSERT ? TP_WARN : TP_ERROR,
           "device %d is broken by error %d (%s)%s; the driver gives that error from every call in its contexts, until "
           "the program ends",
           device, in->error, tpg_cuda_error_name(in->error),
           in->error == CUDA_ERROR_LAUNCH_TIMEOUT ? ": a kernel ran for longer than the worker (--kernel-timeout) or "
                                                    "its driver allows"
                                                  : "");
    atomic_store(&untold, true);
    return true;
}

static TP_COLD void tell_broken(void) {
    if (!atomic_load(&untold) || !atomic_exchange(&untold, false)) {
        return;
    }
    for (int i = 0; i < tpc_device_count; i++) {
        const int error = atomic_load(&tpc_devices[i].error);
        if (error) {
            TP_TELL(tpc_device_broken, i, error);
        }
    }
}

CUresult tpc_posted(void) {
    if (TP_LIKELY(!atomic_load_explicit(&tpc_sticky_error, memory_order_relaxed))) {
        return CUDA_SUCCESS;
    }
    const struct tpc_context *context = tpc_current();
    return context ? (CUresult)atomic_load(&tpc_devices[context->device].error) : CUDA_SUCCESS;
}

CUresult tpc_call(const char *name, struct tp_reply *reply) {
    enum tp_status status = tp_commit_call(tpc_conn, name, reply);
    if (TP_UNLIKELY(status != TP_OK)) {
        memset(reply, 0, sizeof *reply);
        return tpc_lost();
    }
    if (TP_UNLIKELY(reply->result)) {
        tell_broken();
    }
    return (CUresult)reply->result;
}

static _Thread_local uint64_t waits_for_next; /* TPC_POST_WAITS, or 0 */

/* The posts of other threads go on: the session may hold this one until a host function has run, and that may wait for them. */
void tpc_wait_for_next_post(void) {
    atomic_fetch_add(&tpc_captures, TPC_POST_WAITS - waits_for_next);
    waits_for_next = TPC_POST_WAITS;
}

/* What is urgent is waited for by nobody: its answer may stand behind what waits for the next host function, and the thread that
 * runs that may be the one that sends it. */
static TP_COLD bool waits(uint64_t captures) {
    return !tp_thread_self()->urgent && (tpc_strict || waits_for_next || captures % TPC_POST_WAITS);
}

CUresult tpc_post(const char *name, struct tp_reply *unused) {
    (void)unused;
    const uint64_t captures = atomic_load_explicit(&tpc_captures, memory_order_relaxed);
    if (TP_UNLIKELY(tpc_strict || captures) && waits(captures)) {
        struct tp_reply reply;
        CUresult result = tpc_call(name, &reply);
        tp_reply_free(&reply);
        atomic_fetch_sub(&tpc_captures, waits_for_next);
        waits_for_next = 0;
        return result;
    }
    tp_commit(tpc_conn);
    return tpc_posted();
}

CUresult tpc_lost(void) {
    if (tp_refused(tpc_conn)) {
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    tp_await_reason(tpc_conn);
    on_loss();
    return TPC_LOST_ERROR;
}

CUresult tpc_unserved(_Atomic bool *said, const char *field, const char *value) {
    tp_say_once(said, "a struct with %s = %s is not supported here and returns CUDA_ERROR_NOT_SUPPORTED", field, value);
    return CUDA_ERROR_NOT_SUPPORTED;
}

bool tpc_flat_make(struct tpc_flat *flat, size_t size) {
    flat->size = size;
    flat->bytes = size <= sizeof flat->near ? flat->near : malloc(size);
    return flat->bytes != NULL;
}

void tpc_flat_end(struct tpc_flat *flat) {
    if (flat->bytes != flat->near) {
        free(flat->bytes);
    }
}

CUresult tpc_bad_reply(const struct tp_reply *reply) {
    tp_log(TP_ERROR, "the worker answered with %u bytes that are no answer; its version differs from this client's",
           reply->size);
    return CUDA_ERROR_UNKNOWN;
}

/* ---- answers that depend on their arguments alone, and on the device: a kernel handle stands for one on each ---- */

struct pure {
    struct pure *next;
    int device; /* of the current context, -1 without one */
    uint16_t op;
    uint32_t key_size, size;
    unsigned char bytes[]; /* key, then body */
};
#define PURE_BUCKETS 1024u
#define PURE_LIMIT 16384u /* entries; a program that asks more different questions asks them again */
static struct pure *pure_table[PURE_BUCKETS];
static unsigned pure_count, pure_forgotten; /* how often: what was asked before is not kept afterwards */
static struct tp_lock pure_lock;

static int pure_device(void) {
    const struct tpc_context *context = tpc_current();
    return context ? context->device : -1;
}

static uint32_t pure_hash(uint16_t op, const unsigned char *key, size_t size) {
    uint64_t hash = 0xcbf29ce484222325ull ^ op;
    for (size_t i = 0; i < size; i++) {
        hash = (hash ^ key[i]) * 0x100000001b3ull;
    }
    return (uint32_t)(hash ^ hash >> 32) % PURE_BUCKETS;
}

static bool pure_find(uint32_t bucket, uint16_t op, const unsigned char *key, size_t size, struct tp_reply *reply,
                      unsigned *forgotten) {
    const int device = pure_device();
    bool found = false;
    tp_lock_take(&pure_lock);
    *forgotten = pure_forgotten;
    for (struct pure *entry = pure_table[bucket]; entry; entry = entry->next) {
        if (entry->op == op && entry->device == device && entry->key_size == size &&
            memcmp(entry->bytes, key, size) == 0) {
            memset(reply, 0, offsetof(struct tp_reply, inline_body));
            reply->size = entry->size;
            reply->body = reply->inline_body;
            memcpy(reply->inline_body, entry->bytes + size, entry->size);
            found = true;
            break;
        }
    }
    tp_lock_drop(&pure_lock);
    return found;
}

static void pure_keep(uint32_t bucket, uint16_t op, const unsigned char *key, size_t size, const struct tp_reply *reply,
                      unsigned forgotten) {
    struct pure *entry = reply->size <= sizeof reply->inline_body ? malloc(sizeof *entry + size + reply->size) : NULL;
    if (!entry) {
        return;
    }
    *entry = (struct pure){.device = pure_device(), .op = op, .key_size = (uint32_t)size, .size = reply->size};
    memcpy(entry->bytes, key, size);
    memcpy(entry->bytes + size, reply->body, reply->size);
    tp_lock_take(&pure_lock);
    if (pure_count < PURE_LIMIT && pure_forgotten == forgotten) {
        TP_PUSH(pure_table[bucket], entry);
        pure_count++;
        entry = NULL;
    }
    tp_lock_drop(&pure_lock);
    free(entry);
}

CUresult tpc_pure(const char *name, uint16_t op, const unsigned char *key, size_t size, struct tp_reply *reply) {
    uint32_t bucket = pure_hash(op, key, size);
    unsigned forgotten;
    if (pure_find(bucket, op, key, size, reply, &forgotten)) {
        return CUDA_SUCCESS;
    }
    unsigned char *body = tpc_reserve(op, size);
    if (!body) {
        memset(reply, 0, sizeof *reply);
        return tpc_lost();
    }
    memcpy(body, key, size);
    TPC_TRY(tpc_call(name, reply));
    pure_keep(bucket, op, key, size, reply, forgotten);
    return CUDA_SUCCESS;
}

void tpc_pure_forget(void) {
    tp_lock_take(&pure_lock);
    for (unsigned i = 0; i < PURE_BUCKETS; i++) {
        while (pure_table[i]) {
            struct pure *entry = pure_table[i];
            pure_table[i] = entry->next;
            free(entry);
        }
    }
    pure_count = 0;
    pure_forgotten++;
    tp_lock_drop(&pure_lock);
}
