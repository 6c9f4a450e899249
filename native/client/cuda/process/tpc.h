/*
 * The driver API in the client: state of the process, helpers that generated stubs expect, records behind handles.
 *
 * Lives in a stranger's process. Any thread may be in any function; nothing here runs before the program's first call.
 */
#ifndef TPC_H
#define TPC_H

struct tpg_start_out;

#include "tpc_date.h"
#include "tpg_client.h"
#include "tpg_cuda.h"
#include "tpg_schema.h"
#include <string.h>
#include <tp_base.h>
#include <tp_conn.h>
#include <tp_device.h>
#include <tp_register.h>
#include <tp_trace.h>

/* ---- state of the process ---- */
enum tpc_state {
    TPC_BEFORE_INIT, /* also after fork in the child */
    TPC_READY,
    TPC_WATCHED, /* ready, but calls are looked at first: they are traced, or a thread of ours runs host functions */
    TPC_LOST,    /* the worker is gone */
};
extern _Atomic int tpc_state;
extern _Atomic int tpc_sticky_error; /* of the device that broke last; 0 while none has */
extern bool tpc_strict;              /* TF_STRICT=1: every post waits for its result */
extern struct tp_conn *tpc_conn;
extern struct tp_lock tpc_turns; /* across the round trip of what one thread asks at a time (api/, "turns") */
/* Stream captures under way (stream/capture.c): every post waits for its result, as the driver gives it. Above them are the threads
 * whose next post waits, so that posts look at one word: 0 is neither, and what is not 0 wants a closer look. */
extern _Atomic uint64_t tpc_captures;
#define TPC_POST_WAITS (1ull << 32) /* one of those threads */
/* The calling thread's next post waits for its result. */
void tpc_wait_for_next_post(void);
/* A stream of the program may stand at a word that is written later, once it has asked for that. */
extern _Atomic bool tpc_words;
#define TPC_STANDS() atomic_store_explicit(&tpc_words, true, memory_order_relaxed)
/* Before a post in which the driver may wait for the GPU: while that stands at a word, the session holds the calling thread in it and lets
 * the others go on, as the driver does. */
#define TPC_WAITS()                                                                                                    \
    do {                                                                                                               \
        if (TP_UNLIKELY(atomic_load_explicit(&tpc_words, memory_order_relaxed))) {                                     \
            tpc_wait_for_next_post();                                                                                  \
        }                                                                                                              \
    } while (0)

/* What a call answers when the state is not TPC_READY: 3 before cuInit, 800 inside a host function, the lost-worker error. 0 when
 * the call may go on. */
CUresult tpc_not_ready(void);
#define TPC_NEED_READY()                                                                                               \
    do {                                                                                                               \
        if (TP_UNLIKELY(atomic_load_explicit(&tpc_state, memory_order_relaxed) != TPC_READY)) {                        \
            CUresult not_ready = tpc_not_ready();                                                                      \
            if (not_ready != CUDA_SUCCESS) {                                                                           \
                return not_ready;                                                                                      \
            }                                                                                                          \
        }                                                                                                              \
    } while (0)
/* What an export does first: it looks at one word, and at nothing else while the state is TPC_READY. `traced` is the same call
 * with the trace around it. */
#define TPC_ENTER(traced)                                                                                              \
    do {                                                                                                               \
        if (TP_UNLIKELY(atomic_load_explicit(&tpc_state, memory_order_relaxed) != TPC_READY)) {                        \
            if (tp_trace_on()) {                                                                                       \
                return traced;                                                                                         \
            }                                                                                                          \
            CUresult not_ready = tpc_not_ready();                                                                      \
            if (not_ready != CUDA_SUCCESS) {                                                                           \
                return not_ready;                                                                                      \
            }                                                                                                          \
        }                                                                                                              \
    } while (0)
/* The same for a function that may be called in any state. */
#define TPC_ANYTIME(traced)                                                                                            \
    do {                                                                                                               \
        if (TP_UNLIKELY(atomic_load_explicit(&tpc_state, memory_order_relaxed) != TPC_READY) && tp_trace_on()) {       \
            return traced;                                                                                             \
        }                                                                                                              \
    } while (0)

/* Every failure of an exported function, at debug level: what a program swallows is what its user needs to see. */
void tpc_failed(const char *name, CUresult result);
static inline CUresult tpc_answer(const char *name, CUresult result) {
    if (TP_UNLIKELY(result != CUDA_SUCCESS)) {
        tpc_failed(name, result);
    }
    return result;
}
#define TPC_ANSWER(name, result) tpc_answer(name, result)

/* After what makes the output of kernels visible (api/, "shows"): brings it here, if any image that was loaded may print. A
 * context that an assertion broke has text whatever its images are. */
extern _Atomic unsigned tpc_printing; /* enum tp_image_prints */
void tpc_print_loaded(const void *image, size_t size);
void tpc_print(bool broken);
static inline CUresult tpc_shown(CUresult result) {
    const bool broken = result == CUDA_ERROR_ASSERT;
    if (TP_UNLIKELY(broken || atomic_load_explicit(&tpc_printing, memory_order_relaxed))) {
        tpc_print(broken);
    }
    return result;
}
#define TPC_SHOWN(result) tpc_shown(result)

/* The worker is lost: this code from every call, documented in docs/errors.md. CUDA_ERROR_DEVICE_UNAVAILABLE, unless the worker
 * said why it would end the session. */
extern _Atomic int tpc_lost_error;
#define TPC_LOST_ERROR ((CUresult)atomic_load_explicit(&tpc_lost_error, memory_order_relaxed))
#define TPC_NULL CUDA_ERROR_INVALID_VALUE
#define TPC_NO_HANDLES CUDA_ERROR_OUT_OF_MEMORY
#define TPC_AFTER_LOSS_OK (tp_refused(tpc_conn) ? CUDA_ERROR_NOT_SUPPORTED : CUDA_SUCCESS)
#define TPC_DONE ((CUresult)0x7fffffff) /* what a tpc_check_<name> answers: the call was made in another way */

/* Of what a driver would tell by callbacks: a registration for a device or the log, NULL without memory, and its end (notices.c). */
#define TPC_THE_LOG (-1)
void *tpc_registered(int device);
CUresult tpc_unregistered(int device, const void *handle);
/* Whether a context has that setting of core dumps; looked at before cuInit is what is wrong with it in any case. */
CUresult tpc_coredump_look(CUcoredumpSettings attribute, const size_t *size);
/* An exported name that is not served: counted, and said once by name, with the reason of its line in api/. Returns `code`. */
CUresult tpc_unsupported(const char *name, const char *reason, CUresult code, _Atomic bool *said);

/* ---- handles ---- */
/* A new handle of `kind`, 0 when a million of that kind are alive. The record may be NULL; it is never freed here. */
uint64_t tpc_mint(uint32_t kind);
uint64_t tpc_mint_record(uint32_t kind, void *record);
/* Ends the handle, and those of what the driver told of its object (api/, "fresh"), and what was told of it by an address; its entry
 * is used again under a new generation. Returns the record. */
void *tpc_unmint(uint32_t kind, uint64_t handle);
void tpc_unmint_parts(uint32_t kind, uint64_t handle); /* only what ends with it */
bool tpc_unmint_alone(uint32_t kind, uint64_t handle,
                      void **record); /* one that nobody was told of; false: it was none */
/* Ends handles whose records are concerned, without an end of their entries: they answer CUDA_ERROR_CONTEXT_IS_DESTROYED for good. */
void tpc_detach(uint32_t kind, bool (*concerned)(const void *record, const void *what), const void *what);
/* The record of a live handle, NULL if the handle is not alive (or has none). Lock-free. */
void *tpc_record(uint32_t kind, uint64_t handle);
void tpc_set_record(uint32_t kind, uint64_t handle, void *record);
/* Live handles of a kind with that record, one after the other: start with *at = 0, ends with 0. */
uint64_t tpc_next_handle(uint32_t kind, const void *record, uint32_t *at);
bool tpc_handle_alive(uint32_t kind, uint64_t handle);
/* CUDA_SUCCESS, or the error that the driver gives for a bad handle of that kind. Special streams pass. */
CUresult tpc_check_handle(uint32_t kind, uint64_t handle, bool optional);
#define TPC_CHECK_HANDLE(KIND, handle, optional)                                                                       \
    do {                                                                                                               \
        CUresult bad_handle = tpc_check_handle(TPG_##KIND, (uint64_t)(uintptr_t)(handle), (optional));                 \
        if (TP_UNLIKELY(bad_handle != CUDA_SUCCESS)) {                                                                 \
            return bad_handle;                                                                                         \
        }                                                                                                              \
    } while (0)

/* ---- sending ---- */
/* Room for one frame with `size` body bytes; returns the body. NULL when the worker is lost. After it exactly one of
 * tpc_post, tpc_call or a commit function of tp_conn.h. */
unsigned char *tpc_reserve(uint16_t op, size_t size);
CUresult tpc_post(const char *name, struct tp_reply *unused); /* returns at once, except under TF_STRICT */
CUresult tpc_call(const char *name, struct tp_reply *reply);  /* the reply must be freed */
/* Like a call, but remembers answers by (device, op, key); the memory is dropped by tpc_pure_forget. */
CUresult tpc_pure(const char *name, uint16_t op, const unsigned char *key, size_t size, struct tp_reply *reply);
void tpc_pure_forget(void);
/* A reply of which nothing is needed when its block ends. It is filled by the call that follows at once. */
#define TPC_REPLY __attribute__((cleanup(tp_reply_free)))
CUresult tpc_lost(void);
/* What a post answers when no call is made of it: the error that broke the current context's device, if one did. */
CUresult tpc_posted(void);
CUresult tpc_bad_reply(const struct tp_reply *reply);
#define TPC_FITS(size)                                                                                                 \
    do {                                                                                                               \
        if (TP_UNLIKELY((size) > TP_FRAME_MAX - sizeof(struct tp_frame))) {                                            \
            return CUDA_ERROR_INVALID_VALUE;                                                                           \
        }                                                                                                              \
    } while (0)

/* A struct with a value that is not served: said once, by name. */
CUresult tpc_unserved(_Atomic bool *said, const char *field, const char *value);

/* Structs of the program, flattened for the wire: in the stub's own memory while they are small. */
struct tpc_flat {
    unsigned char *bytes;
    size_t size;
    unsigned char near[448];
};
bool tpc_flat_make(struct tpc_flat *flat, size_t size);
/* ---- told.c ---- */
/* A copy of what is told of the object `handle`: the one that was told before if it is equal and of the same form, whatever that
 * says. `more` bytes behind it, zero at first, are the caller's. NULL without memory. */
void *tpc_told(uint64_t handle, const void *form, const void *bytes, size_t size, size_t more);
void tpc_told_end(uint64_t handle);

void tpc_flat_end(struct tpc_flat *flat);
#define TPC_FLAT __attribute__((cleanup(tpc_flat_end)))
#define TPC_TRY(call)                                                                                                  \
    do {                                                                                                               \
        CUresult tried = (call);                                                                                       \
        if (TP_UNLIKELY(tried != CUDA_SUCCESS)) {                                                                      \
            return tried;                                                                                              \
        }                                                                                                              \
    } while (0)

/* ---- devices (device.c) ---- */
struct tpc_device {
    int remote;        /* ordinal on the worker */
    _Atomic int error; /* that broke it, until the process ends; 0 while none has */
    struct tp_device_description what;
};
extern int tpc_device_count; /* after CUDA_VISIBLE_DEVICES */
#define TPC_DEVICES_MAX 64
extern struct tpc_device *tpc_devices;
extern int tpc_driver_version;
/* A device ordinal of the program. */
static inline bool tpc_device_valid(int device) { return device >= 0 && device < tpc_device_count; }
/* Replaces an ordinal of the program by the worker's, or returns CUDA_ERROR_INVALID_DEVICE from the caller. */
#define TPC_DEVICE(ordinal)                                                                                            \
    do {                                                                                                               \
        if ((ordinal) < 0 || (ordinal) >= tpc_device_count) {                                                          \
            return CUDA_ERROR_INVALID_DEVICE;                                                                          \
        }                                                                                                              \
        (ordinal) = tpc_devices[(ordinal)].remote;                                                                     \
    } while (0)
/* The program's ordinal of the worker's, CU_DEVICE_INVALID for one that the program does not see. */
int tpc_device_of(int remote);
/* Highest CUDA version that the tables of this library cover (api/procaddress.json). */
#define TPC_TABLE_VERSION 13000

/* ---- contexts (context.c) ---- */
CUresult tpc_primary_drop(const char *name, CUdevice dev,
                          bool reset); /* a release or a reset is made by it (api/, "by") */
struct tpc_context {
    uint64_t handle;
    struct tpc_context *home; /* what is made in it belongs to that: of a green context the primary one, else itself */
    int device;               /* ordinal of the program */
    unsigned int flags; /* as cuCtxGetFlags tells them: a primary one always maps host memory (580.159.04, measured) */
    unsigned int primary_flags; /* as cuDevicePrimaryCtxGetState tells them */
    bool
        first_form; /* cuCtxCreate made it, and so the first forms of other functions work in it (580.159.04, measured) */
    unsigned long long id; /* cuCtxGetId */
    bool primary;
    _Atomic bool active; /* primary: retained; other: not destroyed */
    /* 0 while it can be used; why not: CUDA_ERROR_CONTEXT_IS_DESTROYED, the error that broke its device, or, for the context
     * that threads have which run host functions, CUDA_ERROR_NOT_PERMITTED. */
    _Atomic int error;
    _Atomic unsigned int life; /* primary: how many times it has ended */
    _Atomic int references;    /* primary: count of retains; other: uses beside its creator's (cuCtxAttach) */
    uint64_t limits[TP_DEVICE_LIMITS];
    struct tpc_context *next; /* of all */
};
/* The calling thread's current context, NULL if none. Also kept in tp_thread_self()->context for the frames. */
struct tpc_context *tpc_current(void);
#define TPC_CONTEXT(name)                                                                                              \
    struct tpc_context *name = tpc_current();                                                                          \
    if (TP_UNLIKELY(!name)) {                                                                                          \
        return CUDA_ERROR_INVALID_CONTEXT;                                                                             \
    }                                                                                                                  \
    if (TP_UNLIKELY(atomic_load_explicit(&name->error, memory_order_relaxed))) {                                       \
        return (CUresult)atomic_load_explicit(&name->error, memory_order_relaxed);                                     \
    }
/* The primary context of a device of the program, used or not. */
struct tpc_context *tpc_primary_of(int device);
/* More than one context can be used now: an order in one of them says nothing to the others. */
bool tpc_several_contexts(void);
/* The calling thread runs host functions from now on: no call is permitted in it but those that are answered at any time. */
void tpc_forbid_calls(void);
bool tpc_calls_forbidden(void);
/* The current context; CUDA_ERROR_INVALID_CONTEXT without one, CUDA_ERROR_CONTEXT_IS_DESTROYED when it is gone. */
CUresult tpc_current_living(struct tpc_context **out);
/* The first of all contexts that there ever were, with the others behind it; what has ended is no handle any more. */
const struct tpc_context *tpc_contexts_all(void);
/* Sets a limit of the current context (limits.c). */
CUresult tpc_limit_set(struct tpc_context *context, CUlimit limit, size_t value);
/* The same for a context argument, where NULL means the current one. */
CUresult tpc_context_argument(CUcontext handle, struct tpc_context **out);
/* The same for one that may be gone. */
CUresult tpc_current_ever(CUcontext handle, struct tpc_context **out);
/* ---- green.c ---- */
/* A green context and its context are one: the same id under two kinds. Of what is no green context, a handle of no context. */
CUcontext tpc_green_context(CUgreenCtx green);
CUresult tpc_green_living(CUgreenCtx green, struct tpc_context **out);
CUgreenCtx tpc_green_of(const struct tpc_context *context); /* NULL for others */

/* ---- checkpoint.c ---- */
/* Whether that is this process, with CUDA ready; and what comes behind the lock, without one: of `args` the rest behind `from` is 0. */
CUresult tpc_checkpoint_process(int pid);
CUresult tpc_checkpoint_unlocked(int pid, const void *args, size_t from);

/* ---- what the other families hear of, if they register for it ---- */
/* The worker has answered the first question, before any other call of the program goes on. */
typedef void tpc_started(const struct tpg_start_out *answer);
TP_LIST(tpc_started);
/* An error broke a device, and all contexts there. */
typedef void tpc_device_broken(int device, int error);
TP_LIST(tpc_device_broken);
/* What a context had is gone for the program. Told before the frame about it is sent: the worker may give its addresses to
 * another thread as soon as it has that. */
typedef void tpc_context_gone(const struct tpc_context *context);
TP_LIST(tpc_context_gone);
/* And told after it, without a lock: what registers here may run code of the program. */
typedef void tpc_context_over(const struct tpc_context *context);
TP_LIST(tpc_context_over);

#endif
