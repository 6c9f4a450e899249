/*
 * Events in the client. Recording, waiting in a stream and destroying are generated posts; here are creation and queries, in
 * timing.c waits and times.
 *
 * Any thread. Kept about an event is the home of its context, which has a record that is never freed, and in the lowest bits of the same
 * word whether it may have been recorded in a capture last, and whether other processes may have it.
 */
#include "tpc_stream.h"
#include "tpg_client.h"
#include "tpg_cuda_send.h"

#define CAPTURED 1u
#define SHARED 2u /* nothing about it is answered here, and others see at once what is done with it */

static uintptr_t told_of(CUevent event) { return (uintptr_t)tpc_record(TPG_EVENT, (uint64_t)(uintptr_t)event); }

bool tpc_event_in_capture(CUevent event) { return told_of(event) & CAPTURED; }

bool tpc_event_is_shared(CUevent event) { return told_of(event) & SHARED; }

/* Whoever uses an event of a context that is gone is told so at once (580.159.04, measured). */
static bool of_context(const void *told, const void *context) {
    return ((uintptr_t)told & ~(uintptr_t)(CAPTURED | SHARED)) == (uintptr_t)context;
}

static void context_gone(const struct tpc_context *context) { tpc_detach(TPG_EVENT, of_context, context); }
TP_REGISTER(tpc_context_gone, context_gone);

static void *record_of(const struct tpc_context *context, bool shared) {
    return (void *)((uintptr_t)context->home | (shared ? SHARED : 0));
}

CUresult tpc_cuEventCreate(CUevent *phEvent, unsigned int Flags) {
    TPC_CONTEXT(context);
    if ((Flags & CU_EVENT_INTERPROCESS) && !(Flags & CU_EVENT_DISABLE_TIMING)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    TPC_TRY(tpc_sent_cuEventCreate(phEvent, Flags));
    tpc_set_record(TPG_EVENT, (uint64_t)(uintptr_t)*phEvent, record_of(context, Flags & CU_EVENT_INTERPROCESS));
    return CUDA_SUCCESS;
}

/* An event is recorded in streams of its own context only. */
static CUresult check_context(CUevent event, CUstream stream) {
    const struct tpc_context *own = (void *)(told_of(event) & ~(uintptr_t)(CAPTURED | SHARED));
    return TP_UNLIKELY(tpc_several_contexts()) && own && own != tpc_stream_home(stream) ? CUDA_ERROR_INVALID_HANDLE
                                                                                        : CUDA_SUCCESS;
}

/* Once a capture is over, an event that was recorded in it is refused wherever it is used: the event's record says that it
 * may be one, so that the one who waits for it learns that at once. */
static void note(CUevent event) {
    uintptr_t told = told_of(event),
              captured = atomic_load_explicit(&tpc_captures, memory_order_relaxed) ? CAPTURED : 0;
    if (TP_UNLIKELY((told & CAPTURED) != captured)) {
        tpc_set_record(TPG_EVENT, (uint64_t)(uintptr_t)event, (void *)(told ^ CAPTURED));
    }
}

CUresult tpc_event_may_record(CUevent hEvent, CUstream hStream, unsigned int flags) {
    if (flags) {
        TPC_TRY(check_context(hEvent, hStream));
        return tpc_capture_needed(hStream);
    }
    if (TP_UNLIKELY(tpc_event_is_shared(hEvent) && atomic_load_explicit(&tpc_captures, memory_order_relaxed))) {
        CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
        CUresult result = tpc_capture_status(hStream, &status);
        if (result != CUDA_SUCCESS ||
            status != CU_STREAM_CAPTURE_STATUS_NONE) { /* and the capture lives (580.159.04) */
            return result != CUDA_SUCCESS ? result : CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        }
    }
    note(hEvent);
    if (TP_UNLIKELY(tpc_event_is_shared(hEvent))) {
        tpc_wait_for_next_post(); /* whoever hears of it then, in whatever process, waits for this record */
    }
    return check_context(hEvent, hStream);
}

void tpc_event_recorded_of_context(CUevent hEvent) {
    note(hEvent);
    tpc_watch_recorded(hEvent);
}

/* Not while what is current was destroyed, which is most likely the event's own context (580.159.04, measured). */
CUresult tpc_event_may_end(void) {
    struct tpc_context *context;
    return tpc_current_living(&context) == CUDA_ERROR_CONTEXT_IS_DESTROYED ? CUDA_ERROR_CONTEXT_IS_DESTROYED
                                                                           : CUDA_SUCCESS;
}

/* An event that was last recorded in a capture says so before the capture's mode is asked; the worker knows of it. */
CUresult tpc_event_captured(const char *name, CUevent event) {
    struct tpg_event_query_in in = {.event = (uint64_t)(uintptr_t)event};
    uint64_t complete;
    if (TP_LIKELY(!tpc_event_in_capture(event))) {
        return CUDA_SUCCESS;
    }
    struct tp_reply reply TPC_REPLY;
    CUresult result = tpc_call_event_query(name, &in, &complete, &reply);
    return result == CUDA_ERROR_NOT_READY ? CUDA_SUCCESS : result;
}

CUresult tpc_do_cuEventQuery(CUevent hEvent) {
    struct tpg_event_query_in in = {.event = (uint64_t)(uintptr_t)hEvent};
    uint64_t complete;
    struct tpc_sweep sweep;
    struct tp_reply reply;
    CUresult result = tpc_event_captured("cuEventQuery", hEvent);
    TPC_TRY(result);
    TPC_CAPTURE_UNSAFE("cuEventQuery");
    TP_TELL(tpc_before_wait);
    if (!tpc_event_is_shared(hEvent) && tpc_watch_answer(in.event, false, &result)) {
        return result;
    }
    const struct tpc_date asked = tpc_today();
    tpc_sweep_begin(&sweep, in.event, asked.records);
    in.ahead = sweep.events;
    in.ahead_count = sweep.count;
    result = tpc_call_event_query("cuEventQuery", &in, &complete, &reply);
    tpc_waited(&asked, result);
    tpc_watch_learned(in.event, false, result, &reply, &asked);
    tpc_sweep_learned(&sweep, result, complete);
    tp_reply_free(&reply);
    return result;
}

/* ---- other processes ---- */

CUresult tpc_do_cuIpcOpenEventHandle(CUevent *phEvent, CUipcEventHandle handle) {
    struct tpg_ipc_event_open_in in = {.event = tpc_mint_record(TPG_EVENT, record_of(tpc_current(), true)),
                                       .handle = handle};
    struct tpg_ipc_event_open_out out;
    TPC_TRY(tpc_call_ipc_event_open("cuIpcOpenEventHandle", &in, &out));
    *phEvent = (CUevent)(uintptr_t)in.event;
    return CUDA_SUCCESS;
}
