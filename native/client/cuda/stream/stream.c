/*
 * Streams and events in the client: records, what can be answered here, and waiting.
 *
 * Any thread. A stream's record is written when it is made and by `tpc_stream_quiet`. Creating and destroying wait for nobody;
 * a wait that follows a completed call on the same stream, with nothing sent in between, needs no round trip.
 */
#include "tpc_stream.h"
#include "tpg_client.h"
#include "tpg_cuda_send.h"

#include <stdlib.h>

_Atomic int tpc_twins;

struct stream {
    unsigned int flags;
    _Atomic int priority;
    uint64_t context;
    const struct tpc_context *of; /* the same, and which of its lives; NULL for the default streams */
    unsigned int life;
    int device;
    unsigned long long id;
    _Atomic uint64_t quiet; /* quiet_at of the process's last frame when everything in here was known to be complete */
};

static _Atomic unsigned long long next_id = 16; /* small numbers are for the default streams */
/* How many of the failed posts that the worker told of (tpc_counts.failures) have been reported to the program. */
static _Atomic uint64_t reported;
/* The default streams of a process. Any new frame makes them busy again, and so does another context. */
static struct stream legacy = {.id = 1}, per_thread = {.id = 2};

static struct stream *stream_of(CUstream handle) {
    if (handle == CU_STREAM_LEGACY) {
        return &legacy;
    }
    return handle == CU_STREAM_PER_THREAD ? &per_thread : tpc_record(TPG_STREAM, (uint64_t)(uintptr_t)handle);
}

CUresult tpc_stream_here(CUstream handle) {
    const struct stream *stream = tpc_record(TPG_STREAM, (uint64_t)(uintptr_t)handle);
    if ((uintptr_t)handle <= 2) {
        TPC_CONTEXT(context);
    }
    const bool gone = stream && atomic_load_explicit(&stream->of->life, memory_order_relaxed) != stream->life;
    return gone ? CUDA_ERROR_CONTEXT_IS_DESTROYED : CUDA_SUCCESS;
}

/* The streams of a green context keep their handles, and whoever uses one is told at once that its context is gone (580.159.04,
 * measured). */
static bool stream_of_context(const void *record, const void *context) {
    return ((const struct stream *)record)->of == context;
}

static void context_gone(const struct tpc_context *context) {
    if (context->home != context) {
        tpc_detach(TPG_STREAM, stream_of_context, context);
    }
}
TP_REGISTER(tpc_context_gone, context_gone);

const struct tpc_context *tpc_stream_home(CUstream handle) {
    const struct stream *stream = tpc_record(TPG_STREAM, (uint64_t)(uintptr_t)handle);
    const struct tpc_context *context = stream ? stream->of : tpc_current();
    return context ? context->home : NULL;
}

void tpc_waited(const struct tpc_date *asked, CUresult result) {
    if (TP_UNLIKELY(result == CUDA_SUCCESS &&
                    asked->failures != atomic_load_explicit(&reported, memory_order_relaxed))) {
        atomic_store(&reported, asked->failures);
    }
}

/* The worker must be asked: it has an error to report. */
static bool failure_noted(void) {
    return atomic_load_explicit(&tpc_counts.failures, memory_order_relaxed) !=
           atomic_load_explicit(&reported, memory_order_relaxed);
}

/* A frame's number with the context that it was known in: the legacy stream is another one in each. */
static uint64_t quiet_at(uint64_t frame) { return frame << 24 | (tp_thread_self()->context & 0xffffff); }

void tpc_stream_quiet(CUstream handle, const struct tp_reply *reply) {
    struct stream *stream = handle == CU_STREAM_PER_THREAD ? NULL : stream_of(handle);
    if (stream) {
        atomic_store_explicit(&stream->quiet, quiet_at(reply->number), memory_order_relaxed);
    }
}

bool tpc_may_mark(void) {
    return !tpc_strict && !failure_noted() &&
           !atomic_load_explicit(&tpc_captures, memory_order_relaxed) && /* a capturing stream would record the mark */
           !atomic_load_explicit(&tpc_twins, memory_order_relaxed);
}

bool tpc_marked(const char *name, CUstream handle, const struct tp_done *done, uint64_t before) {
    if (!tp_done_wait(tpc_conn, name, done) || failure_noted()) {
        return false;
    }
    tpc_happened(&tpc_counts.told);
    /* If the mark was not the frame that followed `before`, the number is one that never comes back: no harm. */
    struct tp_reply reply = {.number = before + 1};
    tpc_stream_quiet(handle, &reply);
    return true;
}

bool tpc_wait_marked(const char *name, CUstream handle) {
    struct tp_done done;
    if (!tpc_may_mark() || !tp_done_begin(tpc_conn, &done)) {
        return false;
    }
    uint64_t before = tp_frames(tpc_conn);
    return tpc_post_stream_mark(name, (uint64_t)(uintptr_t)handle, done.word, done.value) == CUDA_SUCCESS &&
           tpc_marked(name, handle, &done, before);
}

/* Nothing was sent since everything in the stream was known to be complete. */
static bool quiet(CUstream handle) {
    struct stream *stream = stream_of(handle);
    return stream && !tpc_strict && !failure_noted() &&
           atomic_load_explicit(&stream->quiet, memory_order_relaxed) == quiet_at(tp_frames(tpc_conn));
}

bool tpc_lend(CUstream handle) {
    const struct stream *stream = tpc_current() ? NULL : tpc_record(TPG_STREAM, (uint64_t)(uintptr_t)handle);
    return stream && tpc_cuCtxPushCurrent_v2((CUcontext)(uintptr_t)stream->context) == CUDA_SUCCESS;
}

void tpc_lent(void) { tpc_cuCtxPopCurrent_v2(NULL); }

/* 0 is in every range; which that is, a session that was started for this client knows from a context. Out of range is no error;
 * lower numbers are higher priorities. */
static CUresult clamp(int *priority) {
    int low = 0, high = 0;
    CUresult known = *priority ? tpc_cuCtxGetStreamPriorityRange(&low, &high) : CUDA_SUCCESS;
    *priority = *priority > low ? low : *priority < high ? high : *priority;
    return known;
}

CUresult tpc_do_cuStreamCreateWithPriority(CUstream *out, unsigned int flags, int priority) {
    const struct tpc_context *context = tpc_current();
    TPC_TRY(clamp(&priority));
    struct stream *stream = calloc(1, sizeof *stream);
    if (!stream) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    stream->flags = flags;
    atomic_store_explicit(&stream->priority, priority, memory_order_relaxed);
    stream->context = context->handle;
    stream->of = context;
    stream->life = atomic_load_explicit(&context->life, memory_order_relaxed);
    stream->device = context->device;
    stream->id = atomic_fetch_add(&next_id, 1);
    const uint64_t handle = tpc_mint_record(TPG_STREAM, stream);
    TPC_WAITS();
    CUresult result = tpc_post_stream_create("cuStreamCreate", handle, flags, priority);
    if (result != CUDA_SUCCESS) {
        free(stream);
        return result;
    }
    *out = (CUstream)(uintptr_t)handle;
    return CUDA_SUCCESS;
}

CUresult tpc_cuStreamDestroy_v2(CUstream hStream) {
    if ((uintptr_t)hStream <= 2) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    TPC_CHECK_HANDLE(STREAM, hStream, false);
    /* Sent before the handle may be given out again. The record stays: another thread may be looking at it, and it is small. */
    CUresult result = tpc_post_stream_destroy("cuStreamDestroy", (uint64_t)(uintptr_t)hStream);
    if (TP_UNLIKELY(atomic_load_explicit(&tpc_captures, memory_order_relaxed))) {
        TP_TELL(tpc_stream_gone, hStream);
    }
    tpc_unmint(TPG_STREAM, (uint64_t)(uintptr_t)hStream);
    return result == TPC_LOST_ERROR ? CUDA_SUCCESS : result; /* a lost worker has ended it with everything else */
}

CUresult tpc_do_cuStreamSynchronize(CUstream hStream) {
    TPC_TRY(tpc_capture_implicit("cuStreamSynchronize", hStream));
    TPC_CAPTURE_UNSAFE("cuStreamSynchronize");
    TP_TELL(tpc_before_wait);
    if (quiet(hStream)) {
        return tpc_posted();
    }
    if (tpc_wait_marked("cuStreamSynchronize", hStream)) {
        return CUDA_SUCCESS;
    }
    struct tp_reply reply;
    const struct tpc_date asked = tpc_today();
    CUresult result = tpc_call_stream_wait("cuStreamSynchronize", (uint64_t)(uintptr_t)hStream, &reply);
    tpc_waited(&asked, result);
    if (result == CUDA_SUCCESS) {
        tpc_stream_quiet(hStream, &reply);
    }
    tp_reply_free(&reply);
    return result;
}

CUresult tpc_do_cuStreamQuery(CUstream hStream) {
    TPC_TRY(tpc_capture_implicit("cuStreamQuery", hStream));
    TPC_CAPTURE_UNSAFE("cuStreamQuery");
    TP_TELL(tpc_before_wait);
    const uint64_t handle = (uint64_t)(uintptr_t)hStream;
    struct tp_reply reply;
    CUresult result;
    if (quiet(hStream)) {
        return tpc_posted();
    }
    if (tpc_watch_answer(handle, true, &result)) {
        return result;
    }
    const struct tpc_date asked = tpc_today();
    result = tpc_call_stream_query("cuStreamQuery", handle, &reply);
    tpc_waited(&asked, result);
    tpc_watch_learned(handle, true, result, &reply, &asked);
    if (result == CUDA_SUCCESS) {
        tpc_stream_quiet(hStream, &reply);
    }
    tp_reply_free(&reply);
    return result;
}

CUresult tpc_synchronize(const char *name) {
    struct tp_reply reply;
    TP_TELL(tpc_before_wait);
    const struct tpc_date asked = tpc_today();
    CUresult result = tpc_call_context_synchronize(name, &reply);
    tpc_waited(&asked, result);
    if (result == CUDA_SUCCESS) {
        tpc_stream_quiet(CU_STREAM_LEGACY, &reply);
    }
    tp_reply_free(&reply);
    return result;
}

CUresult tpc_cuCtxSynchronize_v2(CUcontext ctx) {
    const struct tpc_context *current = tpc_current();
    if (!ctx || (current && (!current->handle || (uint64_t)(uintptr_t)ctx == current->handle))) {
        return tpc_cuCtxSynchronize(); /* which refuses it to a host function, whose context has no handle */
    }
    TPC_CHECK_HANDLE(CONTEXT, ctx, false);
    const struct tpc_context *other = tpc_record(TPG_CONTEXT, (uint64_t)(uintptr_t)ctx);
    TPC_TRY(other ? (CUresult)atomic_load(&other->error) : CUDA_ERROR_CONTEXT_IS_DESTROYED);
    struct tp_thread *self = tp_thread_self();
    uint32_t before = self->context;
    self->context = tp_handle_id((uint64_t)(uintptr_t)ctx);
    CUresult result = tpc_synchronize("cuCtxSynchronize");
    self->context = before;
    return result;
}

CUresult tpc_contexts_wait(void) {
    if (atomic_load_explicit(&tpc_captures, memory_order_relaxed) % TPC_POST_WAITS) {
        return CUDA_SUCCESS; /* a wait that is asked for would end them, and the driver's own does not */
    }
    for (const struct tpc_context *context = tpc_contexts_all(); context; context = context->next) {
        const CUcontext handle = (CUcontext)(uintptr_t)context->handle;
        if (!handle || tpc_record(TPG_CONTEXT, context->handle) != context) {
            continue;
        }
        const CUresult result = tpc_cuCtxSynchronize_v2(handle);
        /* Another thread may end it meanwhile. */
        if (result != CUDA_SUCCESS && result != CUDA_ERROR_INVALID_CONTEXT &&
            result != CUDA_ERROR_CONTEXT_IS_DESTROYED) {
            return result;
        }
    }
    return CUDA_SUCCESS;
}

CUresult tpc_cuCtxSetLimit(CUlimit limit, size_t value) {
    struct tpc_context *context;
    TPC_TRY(tpc_current_living(&context));
    TPC_CAPTURE_UNSAFE("cuCtxSetLimit");
    return tpc_limit_set(context, limit, value);
}

/* ---- refused here ---- */

CUresult tpc_check_cuStreamWaitEvent(CUstream hStream, CUevent hEvent, unsigned int Flags) {
    if (Flags) {
        TPC_TRY(tpc_capture_needed(hStream));
    }
    if (TP_UNLIKELY(tpc_event_in_capture(hEvent) || tpc_event_is_shared(hEvent))) {
        tpc_wait_for_next_post();
    }
    return CUDA_SUCCESS;
}

CUresult tpc_first_form(const char *name) {
    static _Atomic bool said;
    return tpc_unsupported(name, "the device has the second form alone", CUDA_ERROR_NOT_SUPPORTED, &said);
}

/* ---- answered here ---- */

/* The record of a stream that the program made. */
static const struct stream *own_stream(CUstream handle) {
    const struct stream *stream = stream_of(handle);
    return stream == &legacy || stream == &per_thread ? NULL : stream;
}

CUresult tpc_do_cuStreamGetPriority(CUstream hStream, int *priority) {
    const struct stream *own = own_stream(hStream);
    *priority = own ? atomic_load_explicit(&own->priority, memory_order_relaxed) : 0;
    return CUDA_SUCCESS;
}

/* The priority is what was set last, as an attribute too (580.159.04, measured). */
void tpc_noted_cuStreamSetAttribute(CUstream hStream, CUstreamAttrID attr, const CUstreamAttrValue *param) {
    struct stream *stream = stream_of(hStream);
    int priority = attr == CU_LAUNCH_ATTRIBUTE_PRIORITY ? param->priority : 0;
    if (stream && attr == CU_LAUNCH_ATTRIBUTE_PRIORITY && clamp(&priority) == CUDA_SUCCESS) {
        atomic_store_explicit(&stream->priority, priority, memory_order_relaxed);
    }
}

void tpc_noted_cuStreamCopyAttributes(CUstream dst, CUstream src) {
    struct stream *to = stream_of(dst), *from = stream_of(src);
    if (to && from) {
        atomic_store_explicit(&to->priority, atomic_load_explicit(&from->priority, memory_order_relaxed),
                              memory_order_relaxed);
    }
}

/* Some questions are no good ones for a stream that captures, in whatever mode (580.159.04, asked). */
static CUresult unless_capturing(const char *name, CUstream stream) {
    const CUresult result = tpc_capture_needed(stream);
    const bool none = result == CUDA_ERROR_ILLEGAL_STATE || result == CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
    return result == CUDA_SUCCESS ? tpc_capture_refuse(name, stream) : none ? CUDA_SUCCESS : result;
}

CUresult tpc_do_cuStreamGetFlags(CUstream hStream, unsigned int *flags) {
    const struct stream *own = own_stream(hStream);
    TPC_TRY(unless_capturing("cuStreamGetFlags", hStream));
    *flags = own ? own->flags : 0;
    return CUDA_SUCCESS;
}

CUresult tpc_do_cuStreamGetId(CUstream hStream, unsigned long long *streamId) {
    const struct stream *own = own_stream(hStream);
    TPC_TRY(unless_capturing("cuStreamGetId", hStream));
    *streamId = own                               ? own->id
                : hStream == CU_STREAM_PER_THREAD ? ((unsigned long long)tp_thread_self()->number << 32 | 2)
                                                  : 1;
    return CUDA_SUCCESS;
}

/* The second form tells a green context and its primary one, the first, which gives no place for it, that of the green context. */
CUresult tpc_do_cuStreamGetCtx_v2(CUstream hStream, CUcontext *pCtx, CUgreenCtx *pGreenCtx) {
    const struct stream *own = own_stream(hStream);
    const struct tpc_context *whose = own ? own->of : tpc_current();
    *pCtx = (CUcontext)(uintptr_t)(pGreenCtx ? whose->home : whose)->handle;
    if (pGreenCtx) {
        *pGreenCtx = tpc_green_of(whose);
    }
    return CUDA_SUCCESS;
}

CUresult tpc_do_cuGreenCtxStreamCreate(CUstream *phStream, CUgreenCtx greenCtx, unsigned int flags, int priority) {
    CUcontext context;
    TPC_TRY(tpc_cuCtxFromGreenCtx(&context, greenCtx));
    if (flags != CU_STREAM_NON_BLOCKING) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    TPC_TRY(tpc_cuCtxPushCurrent_v2(context));
    CUresult result = tpc_cuStreamCreateWithPriority(phStream, flags, priority);
    tpc_cuCtxPopCurrent_v2(NULL);
    return result;
}

CUresult tpc_do_cuStreamGetDevice(CUstream hStream, CUdevice *device) {
    const struct stream *own = own_stream(hStream);
    TPC_TRY(unless_capturing("cuStreamGetDevice", hStream));
    *device = own ? own->device : tpc_current()->device;
    return CUDA_SUCCESS;
}
