/*
 * Contexts in the client: each thread's stack of current contexts, primary contexts, created contexts.
 *
 * Which context is current never leaves the process: every frame carries the id, so pushing, popping and asking cost
 * nanoseconds. Only what makes or ends a context on the worker is sent. The stack belongs to its thread; records are shared by
 * all threads, their flags are atomic and they are never freed (a stack may name a context that another thread destroyed).
 * `contexts` orders what is sent about primary contexts with the counts that decide it. Destructors of context-local storage
 * are the program's code: they run with no lock held, after the context's end is in the stream.
 */
#include "process_internal.h"
#include "tpg_cuda_send.h"

#include <stdlib.h>

/* Deeper nesting than any program was seen to use; one more push is refused by name. */
#define STACK_MAX 128
#define FLAGS_DEFAULT 0u

static _Thread_local struct {
    struct tpc_context *top; /* entries[depth - 1], NULL when empty: the hot answer */
    uint32_t depth;
    struct tpc_context *entries[STACK_MAX];
} stack;

static struct tp_lock contexts;              /* counts and activity of primary contexts, and the frames about them */
static struct tpc_context_record *primaries; /* one for each device, written once */
static _Atomic unsigned long long next_id = 1;
static _Atomic int living; /* contexts that are active */
static struct tpc_context *_Atomic all;

/* On top, with nothing on the stack, in threads that run host functions. Its handle is the NULL that such a thread sees. */
static struct tpc_context forbidden = {.error = CUDA_ERROR_NOT_PERMITTED};

struct tpc_context *tpc_current(void) { return stack.top; }

bool tpc_several_contexts(void) { return atomic_load_explicit(&living, memory_order_relaxed) > 1; }

void tpc_forbid_calls(void) {
    int ready = TPC_READY;
    stack.top = &forbidden;
    atomic_compare_exchange_strong(&tpc_state, &ready, TPC_WATCHED);
}

bool tpc_calls_forbidden(void) { return stack.top == &forbidden; }

CUresult tpc_current_living(struct tpc_context **out) {
    struct tpc_context *context = stack.top;
    if (TP_UNLIKELY(!context)) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    if (TP_UNLIKELY(!atomic_load_explicit(&context->active, memory_order_relaxed))) {
        return CUDA_ERROR_CONTEXT_IS_DESTROYED;
    }
    *out = context;
    return CUDA_SUCCESS;
}

struct tpc_context *tpc_primary_of(int device) { return &primaries[device].base; }

/* The record of a handle that the program passed, which is set for a primary context that has ended, too. One of ours whose
 * context is gone is told apart from a made-up one. */
CUresult tpc_context_of(CUcontext handle, struct tpc_context **out) {
    uint64_t value = (uint64_t)(uintptr_t)handle;
    *out = tpc_record(TPG_CONTEXT, value);
    if (TP_LIKELY(*out && atomic_load_explicit(&(*out)->active, memory_order_relaxed))) {
        return CUDA_SUCCESS;
    }
    return tp_handle_is(value, TPG_CONTEXT) ? CUDA_ERROR_CONTEXT_IS_DESTROYED : CUDA_ERROR_INVALID_CONTEXT;
}

/* The same, but for one that is gone: it can be made current, and tells of its device and its flags (580.159.04, measured). */
static CUresult context_ever(CUcontext handle, struct tpc_context **out) {
    CUresult result = tpc_context_of(handle, out);
    if (result != CUDA_ERROR_CONTEXT_IS_DESTROYED) {
        return result;
    }
    struct tpc_context *context = TP_FIND(atomic_load(&all), it->handle == (uint64_t)(uintptr_t)handle);
    *out = context;
    return context ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}

CUresult tpc_current_ever(CUcontext handle, struct tpc_context **out) {
    if (handle) {
        return context_ever(handle, out);
    }
    *out = stack.top == &forbidden ? NULL : stack.top;
    return *out ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}

CUresult tpc_context_argument(CUcontext handle, struct tpc_context **out) {
    if (!handle) {
        return tpc_current_living(out);
    }
    return tpc_context_of(handle, out);
}

static void stack_changed(void) {
    stack.top = stack.depth ? stack.entries[stack.depth - 1] : NULL;
    tp_thread_self()->context = stack.top ? tp_handle_id(stack.top->handle) : 0;
}

static CUresult push(struct tpc_context *context) {
    if (stack.depth == STACK_MAX) {
        tp_log(TP_ERROR, "A thread has pushed %d contexts; no more than that fit on its stack", STACK_MAX);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    stack.entries[stack.depth++] = context;
    stack_changed();
    return CUDA_SUCCESS;
}

static void pop(void) {
    stack.depth--;
    stack_changed();
}

/* ---- current context ---- */

CUresult tpc_cuCtxPushCurrent_v2(CUcontext ctx) {
    struct tpc_context *context;
    CUresult result = ctx ? context_ever(ctx, &context) : CUDA_ERROR_INVALID_VALUE;
    return result == CUDA_SUCCESS ? push(context) : result;
}

/* The first form wants a context that is current nowhere; other threads' stacks are not looked at. */
CUresult tpc_cuCtxPushCurrent(CUcontext ctx) {
    for (uint32_t i = 0; i < stack.depth; i++) {
        if (stack.entries[i]->handle == (uint64_t)(uintptr_t)ctx && atomic_load(&stack.entries[i]->active)) {
            return CUDA_ERROR_INVALID_CONTEXT;
        }
    }
    return tpc_cuCtxPushCurrent_v2(ctx);
}

CUresult tpc_cuCtxPopCurrent_v2(CUcontext *pctx) {
    if (!stack.depth) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    if (pctx) {
        *pctx = (CUcontext)(uintptr_t)stack.top->handle;
    }
    pop();
    return CUDA_SUCCESS;
}

CUresult tpc_cuCtxSetCurrent(CUcontext ctx) {
    if (!ctx) {
        if (stack.depth) {
            pop();
        }
        return CUDA_SUCCESS;
    }
    if (stack.top && stack.top->handle == (uint64_t)(uintptr_t)ctx && tpc_record(TPG_CONTEXT, stack.top->handle)) {
        return CUDA_SUCCESS;
    }
    struct tpc_context *context;
    TPC_TRY(context_ever(ctx, &context));
    if (!stack.depth) {
        return push(context);
    }
    stack.entries[stack.depth - 1] = context;
    stack_changed();
    return CUDA_SUCCESS;
}

/* ---- questions about a context ---- */

/* The interface that made the context. */
CUresult tpc_cuCtxGetApiVersion(CUcontext ctx, unsigned int *version) {
    struct tpc_context *context;
    CUresult result = ctx && !version ? CUDA_ERROR_INVALID_VALUE : tpc_context_argument(ctx, &context);
    if (ctx && result == CUDA_ERROR_CONTEXT_IS_DESTROYED) {
        return CUDA_ERROR_INVALID_CONTEXT; /* of one that is gone: another code than of the current one (measured) */
    }
    result = result == CUDA_SUCCESS && !version ? CUDA_ERROR_INVALID_VALUE : result;
    if (result == CUDA_SUCCESS) {
        *version = context->first_form ? 3010 : 3020;
    }
    return result;
}

static bool flags_valid(unsigned flags) {
    unsigned schedule = flags & CU_CTX_SCHED_MASK;
    return !(flags & ~(unsigned)CU_CTX_FLAGS_MASK) &&
           (schedule <= CU_CTX_SCHED_YIELD || schedule == CU_CTX_SCHED_BLOCKING_SYNC);
}

CUresult tpc_cuCtxSetFlags(unsigned int flags) {
    struct tpc_context *context;
    TPC_TRY(tpc_current_living(&context));
    if (!flags_valid(flags)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    TPC_TRY(tpc_post_context_flags("cuCtxSetFlags", flags));
    context->flags = flags | (context->flags & CU_CTX_MAP_HOST); /* which stays (580.159.04, measured) */
    return CUDA_SUCCESS;
}

/* ---- contexts of a device that broke ---- */

static void break_one(struct tpc_context *context) {
    int usable = 0;
    const int error = atomic_load(&tpc_devices[context->device].error);
    if (TP_UNLIKELY(error)) {
        atomic_compare_exchange_strong(&context->error, &usable, error);
    }
}

void tpc_contexts_break(int device) {
    for (struct tpc_context *context = atomic_load(&all); context; context = context->next) {
        if (context->device == device) {
            break_one(context);
        }
    }
}

const struct tpc_context *tpc_contexts_all(void) { return atomic_load(&all); }

/* From here on it breaks with its device, which may just have happened. */
static void enlist(struct tpc_context *context) {
    context->next = atomic_load(&all);
    while (!atomic_compare_exchange_weak(&all, &context->next, context)) {
    }
    break_one(context);
}

/* Ending a context is no work: what broke the current one is not told (580.159.04, measured). */
static CUresult of_an_end(CUresult posted) {
    const CUresult broken = tpc_posted();
    return broken != CUDA_SUCCESS && posted == broken ? CUDA_SUCCESS : posted;
}

/* ---- primary contexts ---- */

static void set_primary_flags(struct tpc_context *context, unsigned flags) {
    context->primary_flags = flags;
    context->flags = flags | CU_CTX_MAP_HOST;
}

CUresult tpc_contexts_start(void) {
    struct tpc_context_record *records = calloc((size_t)tpc_device_count, sizeof *records);
    if (!records) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    for (int i = 0; i < tpc_device_count; i++) {
        struct tpc_context *context = &records[i].base;
        context->device = i;
        context->home = context;
        context->primary = true;
        context->error = CUDA_ERROR_CONTEXT_IS_DESTROYED;
        set_primary_flags(context, FLAGS_DEFAULT);
        context->id = atomic_fetch_add(&next_id, 1);
        context->handle = tpc_mint_record(TPG_CONTEXT, context);
        if (!context->handle) {
            return TPC_NO_HANDLES;
        }
        tpc_limits_fresh(&records[i]);
        enlist(context);
    }
    primaries = records;
    return CUDA_SUCCESS;
}

/* Under `contexts`: a context exists on the worker before any other thread can be told that it is active. */
static CUresult activate(struct tpc_context_record *record) {
    struct tpc_context *context = &record->base;
    TPC_TRY(tpc_call_primary_retain("cuDevicePrimaryCtxRetain", tpc_devices[context->device].remote, context->handle));
    tpc_limits_fresh(record);
    atomic_store(&context->error, 0);
    break_one(context);
    atomic_store_explicit(&context->active, true, memory_order_release);
    atomic_fetch_add_explicit(&living, 1, memory_order_relaxed);
    return CUDA_SUCCESS;
}

CUresult tpc_do_cuDevicePrimaryCtxRetain(CUcontext *pctx, CUdevice dev) {
    struct tpc_context_record *record = &primaries[dev];
    CUresult result = CUDA_SUCCESS;
    tp_lock_take(&contexts);
    if (!atomic_load_explicit(&record->base.active, memory_order_relaxed)) {
        result = activate(record);
    }
    if (result == CUDA_SUCCESS) {
        atomic_fetch_add_explicit(&record->base.references, 1, memory_order_relaxed);
        *pctx = (CUcontext)(uintptr_t)record->base.handle;
    }
    tp_lock_drop(&contexts);
    return result;
}

/* The caller sends the frame about it, and then tells that it is over. */
static void end(struct tpc_context *context) {
    atomic_store_explicit(&context->error, CUDA_ERROR_CONTEXT_IS_DESTROYED, memory_order_relaxed);
    atomic_fetch_sub_explicit(&living, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&context->life, 1, memory_order_relaxed);
    TP_TELL(tpc_context_gone, context);
}

/* Under `contexts`. */
static void deactivate(struct tpc_context *context) {
    atomic_store_explicit(&context->active, false, memory_order_relaxed);
    set_primary_flags(context, FLAGS_DEFAULT);
    end(context);
}

/* The first form has nothing against a context that nobody retains. */
CUresult tpc_cuDevicePrimaryCtxRelease(CUdevice dev) {
    const bool held = tpc_device_valid(dev) && atomic_load(&primaries[dev].base.references);
    const CUresult result = tpc_cuDevicePrimaryCtxRelease_v2(dev);
    return result == CUDA_ERROR_INVALID_CONTEXT && !held ? CUDA_SUCCESS : result;
}

/* Takes a retain, with the last of which the context ends. A reset ends it whatever its count; the retains stay to be released, and the
 * next one makes the context anew. */
CUresult tpc_primary_drop(const char *name, CUdevice dev, bool reset) {
    struct tpc_context *context = &primaries[dev].base;
    if (reset && tpc_greens_live(context, atomic_load(&all))) {
        return CUDA_ERROR_NOT_PERMITTED;
    }
    tp_lock_take(&contexts);
    const int references = atomic_load_explicit(&context->references, memory_order_relaxed);
    const bool ends = (reset || references == 1) && atomic_load_explicit(&context->active, memory_order_relaxed);
    CUresult result = reset || references ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
    if (!reset && references) {
        atomic_store_explicit(&context->references, references - 1, memory_order_relaxed);
    }
    if (ends) {
        deactivate(context);
        result = of_an_end(tpc_post_primary_release(name, tpc_devices[dev].remote));
    }
    tp_lock_drop(&contexts);
    if (ends) {
        TP_TELL(tpc_context_over, context);
    }
    return result;
}

/* Since CUDA 11 also allowed while the context is active, but not by the first form. */
CUresult tpc_cuDevicePrimaryCtxSetFlags(CUdevice dev, unsigned int flags) {
    if (tpc_device_valid(dev) && flags_valid(flags) && atomic_load(&primaries[dev].base.active)) {
        return CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE;
    }
    return tpc_cuDevicePrimaryCtxSetFlags_v2(dev, flags);
}

CUresult tpc_do_cuDevicePrimaryCtxSetFlags_v2(CUdevice dev, unsigned int flags) {
    if (!flags_valid(flags)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    CUresult result = CUDA_SUCCESS;
    tp_lock_take(&contexts);
    if (primaries[dev].base.primary_flags != flags || primaries[dev].base.flags != (flags | CU_CTX_MAP_HOST)) {
        result = tpc_call_primary_flags("cuDevicePrimaryCtxSetFlags_v2", tpc_devices[dev].remote, flags);
    }
    if (result == CUDA_SUCCESS) {
        set_primary_flags(&primaries[dev].base, flags);
    }
    tp_lock_drop(&contexts);
    return result;
}

/* ---- created contexts ---- */

CUresult tpc_context_make(const char *name, CUdevice device, unsigned int flags, CUdevResourceDesc share,
                          struct tpc_context **out) {
    struct tpc_context_record *record = calloc(1, sizeof *record);
    if (!record) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    struct tpc_context *context = *out = &record->base;
    context->home = share ? &primaries[device].base : context;
    context->device = device;
    context->flags = flags;
    context->id = atomic_fetch_add(&next_id, 1);
    tpc_limits_fresh(record);
    context->handle = tpc_mint_record(TPG_CONTEXT, context);
    CUresult result =
        tpc_call_context_create(name, context->handle, tpc_devices[device].remote, flags, (uint64_t)(uintptr_t)share);
    if (result != CUDA_SUCCESS) {
        free(record);
        return result;
    }
    enlist(context);
    atomic_store_explicit(&context->active, true, memory_order_release);
    atomic_fetch_add_explicit(&living, 1, memory_order_relaxed);
    return CUDA_SUCCESS;
}

CUresult tpc_cuCtxCreate_v2(CUcontext *pctx, unsigned int flags, CUdevice dev) {
    struct tpc_context *context;
    if (!pctx || !flags_valid(flags)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (!tpc_device_valid(dev)) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    if (stack.depth == STACK_MAX || stack.top == &forbidden) {
        return push(NULL);
    }
    TPC_TRY(tpc_context_make("cuCtxCreate_v2", dev, flags, NULL, &context));
    *pctx = (CUcontext)(uintptr_t)context->handle;
    return push(context);
}

/* The driver makes it where no other context has taken the addresses of 32 bits; here nothing depends on these. */
CUresult tpc_cuCtxCreate(CUcontext *pctx, unsigned int flags, CUdevice dev) {
    TPC_TRY(tpc_cuCtxCreate_v2(pctx, flags, dev));
    stack.top->first_form = true;
    return CUDA_SUCCESS;
}

/* A share of the multiprocessors is for clients of MPS, which a session is not. A number below 0 is none (580.159.04, measured). */
CUresult tpc_cuCtxCreate_v3(CUcontext *pctx, CUexecAffinityParam *paramsArray, int numParams, unsigned int flags,
                            CUdevice dev) {
    if (numParams > 0) {
        return paramsArray ? CUDA_ERROR_UNSUPPORTED_EXEC_AFFINITY : CUDA_ERROR_INVALID_VALUE;
    }
    return tpc_cuCtxCreate_v2(pctx, flags, dev);
}

CUresult tpc_cuCtxCreate_v4(CUcontext *pctx, CUctxCreateParams *ctxCreateParams, unsigned int flags, CUdevice dev) {
    static _Atomic bool said;
    if (ctxCreateParams && ctxCreateParams->cigParams) {
        tp_say_once(&said, "cuCtxCreate_v4: a context for graphics (cigParams) cannot cross the connection");
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    return ctxCreateParams ? tpc_cuCtxCreate_v3(pctx, ctxCreateParams->execAffinityParams,
                                                ctxCreateParams->numExecAffinityParams, flags, dev)
                           : tpc_cuCtxCreate_v2(pctx, flags, dev);
}

bool tpc_context_over_now(struct tpc_context *context) {
    return atomic_exchange_explicit(&context->active, false, memory_order_relaxed);
}

CUresult tpc_context_end(const char *name, struct tpc_context *context) {
    end(context);
    CUresult result = of_an_end(tpc_post_context_destroy(name, context->handle));
    tpc_unmint(TPG_CONTEXT, context->handle);
    return result;
}

CUresult tpc_cuCtxDestroy_v2(CUcontext ctx) {
    if (!ctx) {
        return CUDA_ERROR_INVALID_VALUE; /* before cuInit, too */
    }
    TPC_NEED_READY();
    struct tpc_context *context;
    CUresult known = tpc_context_of(ctx, &context);
    if (known !=
        CUDA_SUCCESS) { /* of one that is gone the driver remembers only where it is current (580.159.04, asked) */
        return stack.top && stack.top->handle == (uint64_t)(uintptr_t)ctx ? known : CUDA_ERROR_INVALID_CONTEXT;
    }
    if (context->primary || context->home != context) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    if (!tpc_context_over_now(context)) {
        return CUDA_ERROR_CONTEXT_IS_DESTROYED;
    }
    CUresult result = tpc_context_end("cuCtxDestroy_v2", context);
    if (stack.top == context) {
        pop();
    }
    TP_TELL(tpc_context_over, context);
    return result;
}

/* Uses of the current context, which ends with the last; cuCtxDestroy does not ask. A primary one lives by its retains alone. */
CUresult tpc_cuCtxAttach(CUcontext *pctx, unsigned int flags) {
    struct tpc_context *context;
    TPC_TRY(tpc_current_living(&context));
    if (!pctx || flags) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (!context->primary && context->home == context) {
        atomic_fetch_add(&context->references, 1);
    }
    *pctx = (CUcontext)(uintptr_t)context->handle;
    return CUDA_SUCCESS;
}

/* Only of the current one: 201 else, also for one that is gone. */
CUresult tpc_cuCtxDetach(CUcontext ctx) {
    struct tpc_context *context;
    if (!stack.top || stack.top->handle != (uint64_t)(uintptr_t)ctx) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    TPC_TRY(tpc_current_living(&context));
    if (context->primary || context->home != context) {
        return CUDA_SUCCESS;
    }
    return atomic_fetch_sub(&context->references, 1) > 0 ? CUDA_SUCCESS : tpc_cuCtxDestroy_v2(ctx);
}
