/*
 * How contexts of the client begin and end: those it creates, and its primary ones.
 *
 * Executor thread only. The driver's primary context stays until the process ends (process/context.c). So what the client's
 * last release or a reset means is done piece by piece, to the client's own objects: when all their work is over they are
 * destroyed, its memory is freed, its limits go back. cuDevicePrimaryCtxReset is never called, as it would take the session's
 * own objects with it, and mends nothing: a device that an error broke stays so until the process ends, and a context cannot be
 * made there (580.159.04, measured). A created context is the client's alone and is destroyed whole. A green context is a part of
 * the primary one and ends before it: it has streams and nothing else.
 *
 * Ending waits for the GPU aside (struct ending), never on the executor: the work to wait for may itself wait for a host
 * function of the client. A context is forgotten at once, so that frames that still name it answer that it is destroyed.
 */
#include "tpg_session.h"
#include "tpw_stream.h"

#include <stdlib.h>

/* A context costs about half a GiB of the GPU, and host memory; programs were seen to create one or two. */
#define CREATED_MAX 8u
/* Green contexts have little of their own, but channels of the GPU. */
#define GREEN_MAX 64u

struct ending {
    struct ending *next;
    struct tpw_context context;
    uint32_t id;
    CUcontext native;
    struct tpw_kept *kept; /* of a created one */
    bool retained;         /* the client wants the context anew: made and answered when the ending is over */
    struct tp_frame frame;
};

/* ---- beginning ---- */

/* The client counts retains; it asks for a device's context once until that is released. */
static struct tpw_object *primary_of(struct tpw_session *s, int device) {
    struct tpw_object *object;
    for (uint32_t at = 0; (object = tpw_next_object(s, TPG_CONTEXT, &at));) {
        const struct tpw_context *record = object->record;
        if (record && record->primary && record->device == device) {
            return object;
        }
    }
    return NULL;
}

int32_t tpw_primary_retain(struct tpw_session *s, const struct tp_frame *frame,
                           const struct tpg_primary_retain_in *in) {
    if (primary_of(s, in->device)) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    TPW_TRY(tpw_device_broken(s, in->device));
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
    const int32_t error = tpw_primary(s, in->device, &native);
    return tpw_context_made(s, frame, in->context, native, in->device, true, error);
}

static uint32_t created(struct tpw_session *s, bool green) {
    uint32_t count = 0;
    struct tpw_object *object;
    for (uint32_t at = 0; (object = tpw_next_object(s, TPG_CONTEXT, &at));) {
        const struct tpw_context *record = object->record;
        count += record && !record->primary && green == (record->green != NULL);
    }
    for (const struct ending *ending = s->endings; ending; ending = ending->next) {
        count += !ending->context.primary && green == (ending->context.green != NULL);
    }
    return count;
}

/* A part of the client's primary context, with which it ends; or, of home 0, what the client knows as a created one. */
static int32_t green_create(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_context_create_in *in,
                            CUdevResourceDesc share, uint32_t home) {
    CUgreenCtx green;
    CUcontext native;
    TPW_TRY(tpw_device_broken(s, in->device));
    if (created(s, true) >= GREEN_MAX) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    uint64_t bytes = 0;
    int32_t error = CUDA_SUCCESS;
    TP_ASK(tpw_context_takes, error, s, (uint32_t)in->device, false, &bytes);
    error = error
                ? error
                : (int32_t)s->cuda.cuGreenCtxCreate(&green, share, s->devices[in->device], CU_GREEN_CTX_DEFAULT_STREAM);
    TPW_TRY(error);
    error = (int32_t)s->cuda.cuCtxFromGreenCtx(&native, green);
    if (!error) {
        TP_ASK(tpw_context_takes, error, s, (uint32_t)in->device, true, &bytes);
    }
    error = error ? error : tpw_context_made(s, frame, in->context, native, in->device, false, error);
    if (error) {
        s->cuda.cuGreenCtxDestroy(green);
        return error;
    }
    struct tpw_context *record = tpw_object(s, TPG_CONTEXT, in->context)->record;
    record->green = green;
    record->home = home;
    record->charged = bytes;
    return CUDA_SUCCESS;
}

int32_t tpw_context_create(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_context_create_in *in,
                           CUdevResourceDesc share) {
    int32_t error = 0;
    tpw_callbacks_run(s); /* the last graph that pointed at one of those below may be gone */
    if (share) {
        const struct tpw_object *primary = primary_of(s, in->device);
        return primary ? green_create(s, frame, in, share, primary->id) : CUDA_ERROR_INVALID_CONTEXT;
    }
    if (created(s, false) >= CREATED_MAX) {
        tp_log(TP_WARN, "the client wants more than %u contexts of its own beside the primary ones", CREATED_MAX);
        error = CUDA_ERROR_OUT_OF_MEMORY;
    }
    CUcontext native = NULL, previous;
    if (!error) { /* the session's own objects live in the primary context */
        error = tpw_primary(s, in->device, &native);
    }
    share = error ? NULL : tpw_sm_share(s, in->device);
    if (share) {
        return green_create(s, frame, in, share, 0);
    }
    uint64_t bytes = 0;
    if (!error) {
        TP_ASK(tpw_context_takes, error, s, (uint32_t)in->device, false, &bytes);
    }
    if (!error) {
        error = (int32_t)s->cuda.cuCtxCreate_v2(&native, in->flags & TPW_FLAGS_FORWARDED, s->devices[in->device]);
        if (!error) {
            s->cuda.cuCtxPopCurrent_v2(&previous); /* what the executor is in does not change */
            TP_ASK(tpw_context_takes, error, s, (uint32_t)in->device, true, &bytes);
            if (error) {
                s->cuda.cuCtxDestroy_v2(native);
            }
        }
    }
    int32_t result = tpw_context_made(s, frame, in->context, native, in->device, false, error);
    const struct tpw_object *object = result ? NULL : tpw_object(s, TPG_CONTEXT, in->context);
    if (object) {
        ((struct tpw_context *)object->record)->charged = bytes;
    } else if (!error) { /* what is charged for it stays so: the session has no memory, or is ending */
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

static struct tpw_gone gone_of(const struct ending *ending, bool stays) {
    return (struct tpw_gone){.id = ending->id, .native = ending->native, .context = &ending->context, .stays = stays};
}

/* Ends what the client has in a context that itself stays: a primary one, or one that nodes of graphs point at. */
static void end_inside(struct tpw_session *s, const struct ending *ending) {
    struct leftovers streams = {.count = 0}, events = {.count = 0}, modules = {.count = 0}, links = {.count = 0};
    const struct tpw_gone gone = gone_of(ending, true);
    tpw_poll(s); /* streams that the client has destroyed end by completions that are due: not once more below */
    for (const struct tpw_stream *stream = s->streams; stream; stream = stream->next) {
        if (stream->context_id == ending->id && (uintptr_t)stream->native > 2) {
            keep(&streams, (uint64_t)(uintptr_t)stream->native);
        }
    }
    collect(s, ending->id, TPG_EVENT, &events);
    collect(s, ending->id, TPG_MODULE, &modules);
    collect(s, ending->id, TPG_LINK, &links);
    tpw_objects_gone(s, &gone);
    go_into(s, ending->native);
    TP_TELL(tpw_context_left, s, &gone);
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
    free(streams.natives);
    free(events.natives);
    free(modules.natives);
    free(links.natives);
}

static void last(struct tpw_session *s, struct ending *ending) {
    TP_UNLINK(s->endings, ending);
    if (ending->context.green) { /* which is not taken from the thread */
        tpw_go_into(s, NULL);
        s->cuda.cuGreenCtxDestroy(ending->context.green);
    } else if (!ending->context.primary) {
        s->cuda.cuCtxDestroy_v2(ending->native);
        tpw_go_into(s, NULL);
    }
    s->entered = 0;
    const struct tpw_gone gone = gone_of(ending, ending->context.primary);
    TP_TELL(tpw_context_over, s, &gone);
}

static bool unkept(struct tpw_session *s, struct tpw_kept *kept) {
    if (kept->kind != TPG_CONTEXT) {
        return false;
    }
    struct ending *ending = TP_FIND(s->endings, it->kept == kept);
    if (ending) {
        go_into(s, ending->native);
        last(s, ending);
        free(ending);
    }
    tpw_kept_ended(s, kept);
    return true;
}
TP_REGISTER(tpw_unkept, unkept);

static void finish(struct tpw_session *s, void *what, int32_t error) {
    struct ending *ending = what;
    (void)error; /* a broken context does no more work either */
    const struct tpw_gone gone = gone_of(ending, false);
    TP_TELL(tpw_context_ends, s, &gone);
    go_into(s, ending->native);
    if (!ending->context.green) { /* what one has printed comes out with a wait in its home */
        tpw_print_now(s);
    }
    if (!ending->context.primary && tpw_kept_over(ending->kept)) { /* it stays among those that end */
        struct tpw_kept *kept = ending->kept;
        kept->users++; /* completions in between may be those of its last user */
        end_inside(s, ending);
        tpw_let_go(s, kept);
        return;
    }
    if (ending->context.primary || ending->context.green) { /* the driver would leave the streams of a green one */
        end_inside(s, ending);
    } else {
        tpw_objects_gone(s, &gone);
        go_into(s, ending->native);
        TP_TELL(tpw_context_left, s, &gone);
    }
    last(s, ending);
    if (ending->retained) {
        int32_t broken = tpw_device_broken(s, ending->context.device);
        int32_t result = tpw_context_made(s, &ending->frame, tp_handle_make(TPG_CONTEXT, ending->id), ending->native,
                                          ending->context.device, true, broken);
        tpw_conclude(s, &ending->frame, result);
    }
    free(ending);
}

static void finished(struct tpw_session *s, void *what, int32_t error) {
    finish(s, what, error);
    if (!--s->unfinished) {
        tpw_print_ended(s);
    }
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
    TP_PUSH(s->endings, ending);
    int32_t error = tpw_enter(s, &inside);
    tpw_forget(s, TPG_CONTEXT, tp_handle_make(TPG_CONTEXT, ending->id));
    s->unfinished++;
    error = error ? error : tpw_when_all_done(s, finished, ending);
    if (error) {
        finished(s, ending, error);
    } else {
        s->entered = 0; /* no further frame finds its way in */
    }
    return CUDA_SUCCESS;
}

int32_t tpw_primary_release(struct tpw_session *s, const struct tp_frame *frame,
                            const struct tpg_primary_release_in *in) {
    int32_t error = 0;
    struct tpw_object *primary = primary_of(s, in->device), *object;
    const uint32_t home = primary ? primary->id : 0;
    for (uint32_t at = 0; primary && (object = tpw_next_object(s, TPG_CONTEXT, &at));) {
        const struct tpw_context *record = object->record;
        if (record && record->home == home && !error) { /* its green contexts, which the client has left */
            error = end(s, frame, object);
        }
    }
    primary = primary_of(s, in->device);
    error = error || primary ? error : CUDA_ERROR_INVALID_CONTEXT;
    return error ? error : end(s, frame, primary);
}

int32_t tpw_context_destroy(struct tpw_session *s, const struct tp_frame *frame,
                            const struct tpg_context_destroy_in *in) {
    struct tpw_object *object = tpw_object(s, TPG_CONTEXT, in->context);
    const struct tpw_context *record = object ? object->record : NULL;
    if (!record || record->primary) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    return end(s, frame, object);
}
