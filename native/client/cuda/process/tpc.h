/*
 * The driver API in the client: state of the process, helpers that generated stubs expect, records behind handles.
 *
 * Lives in a stranger's process. Any thread may be in any function; nothing here runs before the program's first call.
 */
#ifndef TPC_H
#define TPC_H

#include "tpc_date.h"
#include "tpg_client.h"
#include "tpg_cuda.h"
#include "tpg_schema.h"
#include <string.h>
#include <tp_base.h>
#include <tp_conn.h>
#include <tp_device.h>
#include <tp_trace.h>

/* ---- state of the process ---- */
enum tpc_state {
    TPC_BEFORE_INIT, /* also after fork in the child */
    TPC_READY,
    TPC_WATCHED, /* ready, but calls are looked at first: they are traced, or a thread of ours runs host functions */
    TPC_LOST,    /* the worker is gone */
};
extern _Atomic int tpc_state;
extern _Atomic int tpc_sticky_error; /* of the context that broke last; 0 while none has */
extern bool tpc_strict;              /* TF_STRICT=1: every post waits for its result */
extern struct tp_conn *tpc_conn;
extern _Atomic int
    tpc_captures; /* stream captures under way: every post waits for its result, as the driver gives it */
/* The calling thread's next post waits for its result. */
void tpc_wait_for_next_post(void);

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

/* The worker is lost: this code from every call, documented in docs/errors.md. */
#define TPC_LOST_ERROR CUDA_ERROR_DEVICE_UNAVAILABLE
#define TPC_NULL CUDA_ERROR_INVALID_VALUE
#define TPC_NO_HANDLES CUDA_ERROR_OUT_OF_MEMORY
#define TPC_AFTER_LOSS_OK CUDA_SUCCESS
#define TPC_DONE ((CUresult)0x7fffffff) /* what a tpc_check_<name> answers: the call was made in another way */

/* An exported name that is not remoted: counted, and said once by name, with the reason of its line in api/. */
CUresult tpc_unsupported(const char *name, const char *reason, _Atomic bool *said);

/* ---- handles ---- */
/* A new handle of `kind`, 0 when a million of that kind are alive. The record may be NULL; it is never freed here. */
uint64_t tpc_mint(uint32_t kind);
uint64_t tpc_mint_record(uint32_t kind, void *record);
/* Ends the handle; its slot is used again under a new generation. Returns the record. */
void *tpc_unmint(uint32_t kind, uint64_t handle);
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
CUresult tpc_lost(void);
/* What a post answers when no call is made of it: the error that broke the current context, if one did. */
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
    int remote; /* ordinal on the worker */
    struct tp_device_description what;
};
extern int tpc_device_count; /* after CUDA_VISIBLE_DEVICES */
extern struct tpc_device *tpc_devices;
extern int tpc_driver_version;
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
/* Fills the three above from the answer of the `start` operation and applies CUDA_VISIBLE_DEVICES. Called once, by cuInit. */
CUresult tpc_devices_learn(int driver_version, const unsigned char *descriptions, size_t size);

/* ---- contexts (context.c) ---- */
struct tpc_context {
    uint64_t handle;
    int device; /* ordinal of the program */
    unsigned int flags;
    unsigned long long id; /* cuCtxGetId */
    bool primary;
    _Atomic bool active; /* primary: retained; other: not destroyed */
    /* 0 while it can be used; why not: CUDA_ERROR_CONTEXT_IS_DESTROYED, the error that broke it, or, for the context that
     * threads have which run host functions, CUDA_ERROR_NOT_PERMITTED. */
    _Atomic int error;
    _Atomic unsigned int life; /* primary: how many times it has ended */
    _Atomic int references;    /* primary: count of retains */
    uint64_t limits[TP_DEVICE_LIMITS];
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

/* ---- streams (stream.c), host functions (callback.c) ---- */
/* After a post has failed on the worker (tpc_counts.failures) the next wait must ask it, even where the client believes all is done.
 * What a call answered that may report it, and the date before: with success nothing was left to report, so waits are short
 * again. After an error the next call has to say so. */
void tpc_waited(const struct tpc_date *asked, CUresult result);
/* copy_late.c: a host function that runs once begins to be outstanding, or has run; one that runs with graphs comes (1) or goes
 * (-1); a graph was launched. */
void tpc_host_function_begins(void);
void tpc_host_function_ended(void);
void tpc_host_lasts(int change);
void tpc_late_launched(void);
/* Remembers that everything in `stream` up to the call with that reply is complete, so that an immediate synchronise of it
 * needs no round trip. */
void tpc_stream_quiet(CUstream stream, const struct tp_reply *reply);
/* Whether a wait may be ended by the GPU itself (tp_done_begin): nothing is to be reported or carried across with it. */
bool tpc_may_mark(void);
/* watch.c: an answer to a query of an event or a stream that needs no round trip; and what a round trip answered, with the date
 * before it. */
bool tpc_watch_answer(uint64_t handle, bool stream, CUresult *result);
void tpc_watch_learned(uint64_t handle, bool stream, CUresult result, const struct tp_reply *reply,
                       const struct tpc_date *asked);
/* timing.c: an event was recorded; counts in tpc_counts.records. */
void tpc_timing_recorded(uint64_t event);
/* An event was recorded by something else than a call that says so: a kernel's attribute, in a graph if a stream captures. */
void tpc_watch_recorded(CUevent event);
/* From now on launches of graphs may record events. */
void tpc_watch_graphs_record(void);
/* capture.c: the captures of a context, by the number of its handle, have ended with it. */
void tpc_capture_context_gone(uint32_t context);
/* graph_copy.c: what graphs keep on the worker for the program's memory has ended with the context. */
void tpc_host_copies_context_gone(const struct tpc_context *context);
/* After the mark was posted as the frame behind `before`: true when the GPU has come there and nothing failed. */
bool tpc_marked(const char *name, CUstream stream, const struct tp_done *done, uint64_t before);
/* Waits until the GPU itself says that `stream` has come here; false when that cannot be, or takes long: then wait by a call. */
bool tpc_wait_marked(const char *name, CUstream stream);

/* ---- memory (memory.c, pointer.c, hostmem.c) ---- */
/* Kinds of address, by the interval map of everything that was allocated. */
enum tpc_where { TPC_PAGEABLE, TPC_DEVICE_MEMORY, TPC_PINNED };
struct tpc_range {
    uint64_t start, size;
    enum tpc_where where;
    struct tpc_context *context;
    int device; /* of a pool, whose memory may lie elsewhere than the context: ordinal of the program */
    unsigned long long buffer_id;
    unsigned int flags;      /* host memory: flags of the allocation; VMM: 1 */
    uint64_t device_address; /* host memory: where kernels reach it (a twin, or the shared segment), 0 = nowhere */
    void *detail;
};
/* Copies the range that holds `address`; false when none does. */
bool tpc_range_at(uint64_t address, struct tpc_range *out);
void tpc_range_add(const struct tpc_range *range);
/* True when the device reaches [address, address+size): memory of one allocation, or of mappings side by side. */
bool tpc_range_covers(uint64_t address, uint64_t size);
bool tpc_range_remove(uint64_t start, struct tpc_range *out);
/* Keeps the worker's address range free in this process, so that no host pointer is ever a device pointer. */
void tpc_memory_reserve(uint64_t base, uint64_t size);
/* Called before each launch and after each completed wait when mapped host memory exists: carries its contents across. */
extern _Atomic int tpc_twins;
void tpc_twins_push(void);

/* reach.c: how many pieces of pinned memory kernels do not reach at their host address. Where there are any, a launch has its
 * parameters looked at: what can be reached gets its device address, in `block`, the rest is refused. */
extern _Atomic unsigned int tpc_unreached;
struct tpc_kernel;
CUresult tpc_reach_parameters(const char *name, const struct tpc_kernel *kernel, unsigned char *block,
                              const void **source);
/* Names them in the log, after a kernel has used an address that is none. */
void tpc_unreached_tell(void);

/* ---- kernels (module.c) ---- */
struct tpc_parameter {
    uint16_t offset, size;
};
struct tpc_image; /* module.c */
/* On one device; most programs use a kernel on one, whose attributes come first in the list. */
struct tpc_attributes {
    _Atomic(struct tpc_attributes *) next;
    _Atomic int place;  /* the worker's number of the device, plus one; 0 until the first device asks */
    _Atomic bool known; /* released after the values */
    _Atomic int values[CU_FUNC_ATTRIBUTE_MAX];
};
/* What a library or a kernel is in one context, for as long as that context lives: a module, a function. */
struct tpc_instance {
    struct tpc_instance *next;
    const struct tpc_context *context;
    unsigned int life;
    uint64_t handle;
};
struct tpc_kernel {
    uint64_t handle; /* of a function or a kernel */
    struct tpc_image *image;
    uint32_t index; /* in the image's list */
    int device;     /* of a function, the worker's number; -1 for a kernel, which is on all of them */
    /* NULL until the kernel is described, see tpc_kernel_describe; it is stored behind the two numbers. */
    _Atomic(const struct tpc_parameter *) layout;
    uint32_t parameters; /* count */
    uint32_t parameter_bytes;
    _Atomic(char *) name;              /* once it was asked for */
    struct tpc_attributes *attributes; /* shared by a kernel and the functions that are the same code */
    struct tpc_instance *instances;    /* of a kernel: its functions; guarded by its image's lock */
};
/* The kernel behind a CUfunction or CUkernel, NULL if it is neither. */
struct tpc_kernel *tpc_kernel_of(uint64_t handle);
/* Makes sure that parameters, parameter_bytes and layout are known. A library that was loaded without a context has no layouts
 * yet: they are asked for, which needs a current context. */
CUresult tpc_kernel_ask(struct tpc_kernel *kernel);
static inline CUresult tpc_kernel_describe(struct tpc_kernel *kernel) {
    return TP_LIKELY(atomic_load_explicit(&kernel->layout, memory_order_acquire) != NULL) ? CUDA_SUCCESS
                                                                                          : tpc_kernel_ask(kernel);
}
/* The handle for the current context in a list of instances, 0 if it has none yet; adding one: false without memory. */
uint64_t tpc_instance_find(const struct tpc_instance *list, const struct tpc_context *context);
bool tpc_instance_add(struct tpc_instance **list, const struct tpc_context *context, uint64_t handle);
struct tp_lock *tpc_image_lock(struct tpc_image *image);
/* Handle of the module or library that the kernel is in. */
uint64_t tpc_image_handle(const struct tpc_image *image);
/* function.c: the attributes of a function on its device or of a kernel on the current one, as far as they are known; NULL
 * without memory. */
struct tpc_attributes *tpc_attributes_of(struct tpc_kernel *kernel);
/* Their values, asked for once; NULL with *result set on failure. */
const _Atomic int *tpc_attributes(struct tpc_kernel *kernel, const char *name, CUresult *result);

#endif
