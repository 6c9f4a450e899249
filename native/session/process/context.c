/*
 * Contexts of the client: its primary contexts and those it creates, and how they end.
 *
 * Executor thread only. The driver's primary context of a device, once made, stays retained until the process ends: pinned
 * staging memory, words of timelines and the streams of other work of this session live in it, and it has to keep its address. So what
 * the client's last release or a reset means is done piece by piece, to the client's own objects: when all their work is
 * over they are destroyed, its memory is freed, its limits go back. cuDevicePrimaryCtxReset is never called, as it would take
 * the session's own objects with it; a context that an error broke therefore stays broken until the client's process ends.
 * A created context is the client's alone and is destroyed whole.
 *
 * Ending waits for the GPU aside (struct ending), never on the executor: the work to wait for may itself wait for a host
 * function of the client. A context is forgotten at once, so that frames that still name it answer that it is destroyed.
 */
#include "tpg_session.h"
#include "tpw_keep.h"
#include "tpw_memory.h"
#include "tpw_segment.h"
#include "tpw_session.h"

#include <stdlib.h>

/* A context costs about half a GiB of the GPU that no limit counts; programs were seen to create one or two. */
#define CREATED_MAX 8u
/* The client's flags that mean something here. How its threads wait is its own affair, and core dumps would be written on
 * the worker's disk. */
#define FLAGS_FORWARDED ((unsigned)CU_CTX_LMEM_RESIZE_TO_MAX)

/* Record of a context object: plain memory, freed with the object. */
struct context {
    int device; /* index */
    bool primary;
    bool limits_changed;
    size_t fresh[CU_LIMIT_MAX]; /* before the client changed the first of them */
    bool has[CU_LIMIT_MAX];     /* the driver has such a limit */
    uint64_t charged;           /* bytes of the worker's memory limit that the client's limits hold */
};

struct ending {
    struct ending *next;
    struct context context;
    uint32_t id;
    CUcontext native;
    struct tpw_kept *kept; /* of a created one */
    bool retained;         /* the client wants the context anew: made and answered when the ending is over */
    struct tp_frame frame;
};

/* ---- making ---- */

bool tpw_home_enter(struct tpw_session *s) {
    for (int i = 0; i < s->device_count; i++) {
        if (s->primary[i]) {
            return s->cuda.cuCtxPushCurrent_v2(s->primary[i]) == CUDA_SUCCESS;
        }
    }
    CUcontext native;
    return tpw_primary(s, 0, &native) == CUDA_SUCCESS && s->cuda.cuCtxPushCurrent_v2(native) == CUDA_SUCCESS;
}

void tpw_home_leave(struct tpw_session *s) {
    CUcontext home;
    s->cuda.cuCtxPopCurrent_v2(&home);
}

int32_t tpw_primary(struct tpw_session *s, int index, CUcontext *out) {
    if (index < 0 || index >= s->device_count) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    if (!s->primary[index]) {
        CUcontext native, previous;
        uint64_t begin = tp_now_ns();
        int32_t error = (int32_t)s->cuda.cuDevicePrimaryCtxRetain(&native, s->devices[index]);
        if (error) {
            return error;
        }
        uint64_t made_at = tp_now_ns();
        error = (int32_t)s->cuda.cuCtxPushCurrent_v2(native);
        if (!error) {
            s->primary[index] = native; /* staging memory, which these may ask for, wants to know it */
            error = tpw_waits_ready(s);
            error = error ? error : tpw_memory_open(s);
            error = error ? error : tpw_segment_register(s);
            s->cuda.cuCtxPopCurrent_v2(&previous);
        }
        if (error) {
            s->primary[index] = NULL;
            s->cuda.cuDevicePrimaryCtxRelease_v2(s->devices[index]);
            return error;
        }
        uint64_t end = tp_now_ns();
        tp_log(TP_DEBUG, "device %d has its context after %llu ms, and what the session needs there after %llu ms more",
               index, (unsigned long long)((made_at - begin) / 1000000),
               (unsigned long long)((end - made_at) / 1000000));
    }
    *out = s->primary[index];
    return CUDA_SUCCESS;
}

static int32_t made(struct tpw_session *s, const struct tp_frame *frame, uint64_t handle, CUcontext native, int device,
                    bool primary, int32_t error) {
    struct context *record = calloc(1, sizeof *record);
    if (!record && !error) {
        error = CUDA_ERROR_OUT_OF_MEMORY;
    }
    error = tpw_made(s, frame, TPG_CONTEXT, handle, (uint64_t)(uintptr_t)native, error);
    struct tpw_object *object = error ? NULL : tpw_object(s, TPG_CONTEXT, handle);
    if (object && record) {
        record->device = device;
        record->primary = primary;
        object->record = record;
        return CUDA_SUCCESS;
    }
    free(record);
    return error;
}

uint32_t tpw_context_device(struct tpw_session *s, uint32_t context) {
    const struct tpw_object *object = tpw_object(s, TPG_CONTEXT, tp_handle_make(TPG_CONTEXT, context));
    const struct context *record = object ? object->record : NULL;
    return record ? (uint32_t)record->device : 0;
}

/* The client counts retains; it asks for a device's context once until that is released. */
static bool has_primary(struct tpw_session *s, int device) {
    struct tpw_object *object;
    for (uint32_t at = 0; (object = tpw_next_object(s, TPG_CONTEXT, &at));) {
        const struct context *record = object->record;
        if (record && record->primary && record->device == device) {
            return true;
        }
    }
    return false;
}

int32_t tpw_primary_retain(struct tpw_session *s, const struct tp_frame *frame,
                           const struct tpg_primary_retain_in *in) {
    int32_t error = 0;
    tpw_check_device(s, in->device, &error);
    if (error) {
        return error;
    }
    if (has_primary(s, in->device)) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    /* The driver has one primary context for a device: a new one waits for the end of the old one, whose work it would delay. */
    for (struct ending *ending = s->endings; ending; ending = ending->next) {
        if (ending->context.primary && ending->context.device == in->device) {
            if (ending->retained || tp_handle_make(TPG_CONTEXT, ending->id) != in->context) {
                return CUDA_ERROR_INVALID_CONTEXT;
            }
            ending->retained = true;
            ending->frame = *frame;
            return TPW_LATER;
        }
    }
    CUcontext native = NULL;
    error = tpw_primary(s, in->device, &native);
    return made(s, frame, in->context, native, in->device, true, error);
}

/* Applies to what the client's kernels see of the context; the driver allows it while the context is active since CUDA 11. */
int32_t tpw_primary_flags(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_primary_flags_in *in) {
    int32_t error = 0;
    (void)frame;
    tpw_check_device(s, in->device, &error);
    return error ? error
                 : (int32_t)s->cuda.cuDevicePrimaryCtxSetFlags_v2(s->devices[in->device], in->flags & FLAGS_FORWARDED);
}

int32_t tpw_context_flags(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_context_flags_in *in) {
    (void)frame;
    return s->entered ? (int32_t)s->cuda.cuCtxSetFlags(in->flags & FLAGS_FORWARDED) : CUDA_ERROR_INVALID_CONTEXT;
}

int32_t tpw_context_create(struct tpw_session *s, const struct tp_frame *frame,
                           const struct tpg_context_create_in *in) {
    int32_t error = 0;
    tpw_check_device(s, in->device, &error);
    uint32_t created = 0;
    struct tpw_object *object;
    tpw_callbacks_run(s); /* the last graph that pointed at one of those below may be gone */
    for (uint32_t at = 0; (object = tpw_next_object(s, TPG_CONTEXT, &at));) {
        const struct context *record = object->record;
        created += record && !record->primary;
    }
    for (struct ending *ending = s->endings; ending; ending = ending->next) {
        created += !ending->context.primary;
    }
    if (!error && created >= CREATED_MAX) {
        tp_log(TP_WARN, "the client wants more than %u contexts of its own beside the primary ones", CREATED_MAX);
        error = CUDA_ERROR_OUT_OF_MEMORY;
    }
    CUcontext native = NULL, previous;
    if (!error) { /* the session's own objects live in the primary context */
        error = tpw_primary(s, in->device, &native);
    }
    if (!error) {
        error = (int32_t)s->cuda.cuCtxCreate_v2(&native, in->flags & FLAGS_FORWARDED, s->devices[in->device]);
        if (!error) {
            s->cuda.cuCtxPopCurrent_v2(&previous); /* what the executor is in does not change */
        }
    }
    int32_t result = made(s, frame, in->context, native, in->device, false, error);
    if (result && !error) {
        s->cuda.cuCtxDestroy_v2(native);
    }
    return result;
}

/* ---- ending ---- */

static void go_into(struct tpw_session *s, CUcontext native) {
    if (s->entered_native != native) {
        tpw_go_into(s, native);
    }
    s->entered = 0; /* the next frame looks its context up */
}

/* What the driver does not destroy because the primary context lives on. */
struct leftovers {
    uint64_t *natives;
    size_t count, capacity;
};

static void keep(struct leftovers *list, uint64_t native) {
    if (!native) {
        return;
    }
    if (list->count == list->capacity) {
        size_t capacity = list->capacity ? 2 * list->capacity : 64;
        uint64_t *natives = realloc(list->natives, capacity * sizeof *natives);
        if (!natives) {
            tp_log(TP_ERROR, "no memory to destroy an object of a context that ended; it stays until the session ends");
            return;
        }
        list->natives = natives;
        list->capacity = capacity;
    }
    list->natives[list->count++] = native;
}

static void collect(struct tpw_session *s, uint32_t id, uint32_t kind, struct leftovers *list) {
    struct tpw_object *object;
    for (uint32_t at = 0; (object = tpw_next_object(s, kind, &at));) {
        if (object->context == id && !tpw_kept_on(object)) {
            keep(list, object->native);
        }
    }
}

/* Ends what the client has in a context that itself stays: a primary one, or one that nodes of graphs point at. */
static void end_inside(struct tpw_session *s, const struct ending *ending) {
    struct leftovers streams = {.count = 0}, events = {.count = 0}, modules = {.count = 0}, links = {.count = 0};
    tpw_poll(s); /* streams that the client has destroyed end by completions that are due: not once more below */
    for (const struct tpw_stream *stream = s->streams; stream; stream = stream->next) {
        if (stream->context_id == ending->id && (uintptr_t)stream->native > 2) {
            keep(&streams, (uint64_t)(uintptr_t)stream->native);
        }
    }
    collect(s, ending->id, TPG_EVENT, &events);
    collect(s, ending->id, TPG_MODULE, &modules);
    collect(s, ending->id, TPG_LINK, &links);
    tpw_context_gone(s, ending->id);
    go_into(s, ending->native);
    tpw_memory_context_gone(s, ending->id);
    for (size_t i = 0; i < events.count; i++) {
        s->cuda.cuEventDestroy_v2((CUevent)(uintptr_t)events.natives[i]);
    }
    for (size_t i = 0; i < streams.count; i++) {
        s->cuda.cuStreamDestroy_v2((CUstream)(uintptr_t)streams.natives[i]);
    }
    for (size_t i = 0; i < modules.count; i++) { /* refused for the module of a library, which outlives contexts */
        s->cuda.cuModuleUnload((CUmodule)(uintptr_t)modules.natives[i]);
    }
    for (size_t i = 0; i < links.count; i++) {
        s->cuda.cuLinkDestroy((CUlinkState)(uintptr_t)links.natives[i]);
    }
    for (int i = 0; i < CU_LIMIT_MAX && ending->context.limits_changed; i++) {
        if (ending->context.has[i]) {
            s->cuda.cuCtxSetLimit((CUlimit)i, ending->context.fresh[i]);
        }
    }
    free(streams.natives);
    free(events.natives);
    free(modules.natives);
    free(links.natives);
}

static void last(struct tpw_session *s, struct ending *ending) {
    for (struct ending **at = &s->endings; *at; at = &(*at)->next) {
        if (*at == ending) {
            *at = ending->next;
            break;
        }
    }
    if (!ending->context.primary) {
        s->cuda.cuCtxDestroy_v2(ending->native);
        s->cuda.cuCtxSetCurrent(NULL);
        s->entered_native = NULL;
        s->entered = 0;
    }
    tpw_uncharge(s, (uint32_t)ending->context.device, ending->context.charged);
}

void tpw_context_unkept(struct tpw_session *s, struct tpw_kept *kept) {
    struct ending *ending = s->endings;
    while (ending && ending->kept != kept) {
        ending = ending->next;
    }
    if (ending) {
        go_into(s, ending->native);
        last(s, ending);
        free(ending);
    }
    tpw_kept_ended(s, kept);
}

static void finish(struct tpw_session *s, void *what, int32_t error) {
    struct ending *ending = what;
    (void)error; /* a broken context does no more work either */
    tpw_peers_context_gone(s, ending->id);
    go_into(s, ending->native);
    tpw_execs_end(s, ending->id);
    if (!ending->context.primary && tpw_kept_over(ending->kept)) { /* it stays among those that end */
        struct tpw_kept *kept = ending->kept;
        kept->users++; /* completions in between may be those of its last user */
        end_inside(s, ending);
        tpw_let_go(s, kept);
        return;
    }
    if (ending->context.primary) {
        end_inside(s, ending);
    } else {
        tpw_context_gone(s, ending->id);
        tpw_memory_context_gone(s, ending->id);
    }
    last(s, ending);
    if (ending->retained) {
        int32_t result = made(s, &ending->frame, tp_handle_make(TPG_CONTEXT, ending->id), ending->native,
                              ending->context.device, true, 0);
        tpw_conclude(s, &ending->frame, result);
    }
    free(ending);
}

static int32_t end(struct tpw_session *s, const struct tp_frame *frame, struct tpw_object *object) {
    struct tp_frame inside = *frame;
    struct ending *ending = calloc(1, sizeof *ending);
    if (!ending) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    inside.context = ending->id = object->id;
    ending->native = (CUcontext)(uintptr_t)object->native;
    memcpy(&ending->context, object->record, sizeof ending->context);
    ending->kept = object->kept;
    object->kept = NULL;
    ending->next = s->endings;
    s->endings = ending;
    int32_t error = tpw_enter(s, &inside);
    tpw_forget(s, TPG_CONTEXT, tp_handle_make(TPG_CONTEXT, ending->id));
    if (!error) {
        error = tpw_when_all_done(s, finish, ending);
    }
    if (error) {
        finish(s, ending, error);
    } else {
        s->entered = 0; /* no further frame finds its way in */
    }
    return CUDA_SUCCESS;
}

static int32_t end_primary_of(struct tpw_session *s, const struct tp_frame *frame, int device) {
    int32_t error = 0;
    tpw_check_device(s, device, &error);
    if (error) {
        return error;
    }
    struct tpw_object *object;
    for (uint32_t at = 0; (object = tpw_next_object(s, TPG_CONTEXT, &at));) {
        const struct context *record = object->record;
        if (record && record->primary && record->device == device) {
            return end(s, frame, object);
        }
    }
    return CUDA_ERROR_INVALID_CONTEXT;
}

int32_t tpw_primary_release(struct tpw_session *s, const struct tp_frame *frame,
                            const struct tpg_primary_release_in *in) {
    return end_primary_of(s, frame, in->device);
}

int32_t tpw_primary_reset(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_primary_reset_in *in) {
    return end_primary_of(s, frame, in->device);
}

int32_t tpw_context_destroy(struct tpw_session *s, const struct tp_frame *frame,
                            const struct tpg_context_destroy_in *in) {
    struct tpw_object *object = tpw_object(s, TPG_CONTEXT, in->context);
    const struct context *record = object ? object->record : NULL;
    if (!record || record->primary) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    return end(s, frame, object);
}

/* ---- limits ---- */

/* Device memory that a limit makes the driver take, as far as it can be known: the heap of malloc and the buffer of printf
 * as they are, the stack once for each thread that can run. */
static uint64_t cost(struct tpw_session *s, int device, CUlimit limit, uint64_t value, int32_t *error) {
    int processors = 0, threads = 0;
    uint64_t bytes = 0;
    CUdevice on = s->devices[device];
    switch (limit) {
    case CU_LIMIT_MALLOC_HEAP_SIZE:
    case CU_LIMIT_PRINTF_FIFO_SIZE:
        return value;
    case CU_LIMIT_STACK_SIZE:
        if (!*error) {
            *error = (int32_t)s->cuda.cuDeviceGetAttribute(&processors, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, on);
        }
        if (!*error) {
            *error =
                (int32_t)s->cuda.cuDeviceGetAttribute(&threads, CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR, on);
        }
        return __builtin_mul_overflow(value, (uint64_t)processors * (uint64_t)threads, &bytes) ? UINT64_MAX : bytes;
    default:
        return 0;
    }
}

/* What the client's limits hold above those of a fresh context. */
static uint64_t above(struct tpw_session *s, const struct context *context, CUlimit limit, uint64_t value,
                      int32_t *error) {
    uint64_t now = cost(s, context->device, limit, value, error),
             fresh = cost(s, context->device, limit, context->fresh[limit], error);
    return now > fresh ? now - fresh : 0;
}

/* The limits before the client changes the first of them. */
static int32_t remember_limits(struct tpw_session *s, struct context *context) {
    for (int i = 0; i < CU_LIMIT_MAX && !context->limits_changed; i++) {
        int32_t result = (int32_t)s->cuda.cuCtxGetLimit(&context->fresh[i], (CUlimit)i);
        context->has[i] = result == CUDA_SUCCESS;
        if (!tpw_about_the_question(result)) {
            return result;
        }
    }
    context->limits_changed = true;
    return CUDA_SUCCESS;
}

int32_t tpw_context_limit(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_context_limit_in *in,
                          struct tpg_context_limit_out *out) {
    struct tpw_object *object = tpw_object(s, TPG_CONTEXT, tp_handle_make(TPG_CONTEXT, frame->context));
    struct context *context = object ? object->record : NULL;
    CUlimit limit = (CUlimit)in->limit;
    size_t before = 0, after = 0;
    if (!context) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    if (in->limit < 0 || in->limit >= CU_LIMIT_MAX) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    int32_t error = (int32_t)s->cuda.cuCtxGetLimit(&before, limit);
    error = error ? error : remember_limits(s, context);
    uint64_t held = above(s, context, limit, before, &error), wanted = above(s, context, limit, in->value, &error);
    if (error) {
        return error;
    }
    if (wanted > held) {
        error = tpw_charge(s, (uint32_t)context->device, wanted - held);
        if (error) {
            return error;
        }
    }
    error = (int32_t)s->cuda.cuCtxSetLimit(limit, in->value);
    int32_t untold = error ? CUDA_SUCCESS : (int32_t)s->cuda.cuCtxGetLimit(&after, limit);
    after = error ? before : untold ? in->value : after; /* untold: what was asked for is held, and the call fails */
    error = error ? error : untold;
    /* The driver rounds and bounds: what it took counts. Rounding up may pass the worker's limit by less than a page. */
    uint64_t charged = wanted > held ? wanted : held, holds = above(s, context, limit, after, &untold);
    if (holds < charged) {
        tpw_uncharge(s, (uint32_t)context->device, charged - holds);
    } else if (holds > charged && tpw_charge(s, (uint32_t)context->device, holds - charged)) {
        holds = charged;
    }
    context->charged = context->charged + holds - held;
    out->value_set = after;
    return error;
}

int32_t tpw_context_info(struct tpw_session *s, const struct tp_frame *frame, struct tpg_context_info_out *out) {
    static uint64_t limits[TP_DEVICE_LIMITS];
    static int results[TP_DEVICE_LIMITS];
    (void)frame;
    if (!s->entered) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    for (int i = 0; i < TP_DEVICE_LIMITS; i++) {
        size_t value = 0;
        results[i] = i < CU_LIMIT_MAX ? (int)s->cuda.cuCtxGetLimit(&value, (CUlimit)i) : CUDA_ERROR_INVALID_VALUE;
        limits[i] = value;
        if (!tpw_about_the_question(results[i])) {
            return results[i];
        }
    }
    out->limits = limits;
    out->limits_count = TP_DEVICE_LIMITS;
    out->results = results;
    out->results_count = TP_DEVICE_LIMITS;
    return (int32_t)s->cuda.cuCtxGetStreamPriorityRange(&out->priority_low, &out->priority_high);
}
