/*
 * Events: making, recording, destroying and waiting.
 *
 * Executor thread only. Waiting for an event is polled from the executor's loop (tpw_when_complete), because an event may have
 * been recorded in any stream and a point would have to know which.
 */
#include "tpg_answer.h"
#include "tpg_session.h"
#include "tpw_stream.h"

#include <stdlib.h>

static int32_t query(struct tpw_session *s, const struct tp_frame *frame, uint64_t event) {
    int32_t error = 0;
    CUevent native = (CUevent)(uintptr_t)tpw_native(s, frame, TPG_EVENT, event, false, &error);
    return error ? error : (int32_t)s->cuda.cuEventQuery(native);
}

/* What is asked ahead stands in the order of records, so it ends where some are not complete: another stream may be behind. A
 * question about an event of a capture would end that (580.159.04), so nothing is asked ahead beside one. */
int32_t tpw_event_query(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_event_query_in *in,
                        struct tpg_event_query_out *out) {
    if (in->ahead_count > TP_AHEAD_MAX) {
        tpw_violation(s, frame, "event_query of too many events");
        return TPW_LATER;
    }
    int32_t error = query(s, frame, in->event);
    for (size_t i = 0, behind = 0; i < in->ahead_count && behind < 4 && !error && !s->captures; i++) {
        bool complete = query(s, frame, tp_word_at(in->ahead, i)) == CUDA_SUCCESS;
        out->complete |= (uint64_t)complete << i;
        behind += !complete;
    }
    return error;
}

static bool unkept(struct tpw_session *s, struct tpw_kept *kept) {
    if (kept->kind != TPG_EVENT) {
        return false;
    }
    tpw_visit(s, kept->context, 0);
    s->cuda.cuEventDestroy_v2((CUevent)(uintptr_t)kept->native);
    tpw_kept_ended(s, kept);
    return true;
}
TP_REGISTER(tpw_unkept, unkept);

/* The place is free afterwards whatever the driver said: the client uses it again. An event whose context has ended is gone. */
int32_t tpw_cuEventDestroy_v2(struct tpw_session *s, const struct tp_frame *frame,
                              const struct tpg_cuEventDestroy_v2_in *in) {
    struct tpw_object *object = tpw_object(s, TPG_EVENT, in->hEvent);
    if (!object) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    struct tp_frame inside = *frame;
    inside.context = object->context;
    CUevent native = (CUevent)(uintptr_t)object->native;
    bool there = !object->error && tpw_enter(s, &inside) == CUDA_SUCCESS;
    there = !tpw_kept_on(object) && there;
    tpw_event_unshare(s, object);
    tpw_forget(s, TPG_EVENT, in->hEvent);
    return there ? (int32_t)s->cuda.cuEventDestroy_v2(native) : CUDA_SUCCESS;
}

/* ---- recording ---- */

/* Whoever waits for the event waits for the record as of the call, and the driver is asked about the last one; one that becomes
 * part of a capture may not even be asked about. So the waits go into a stream of their own, behind the record that they are
 * for. Where there can be none now, they go on asking, and before a capture they end. */
static bool move_waits(struct tpw_session *s, uint64_t handle, CUevent event) {
    struct tpw_stream *aside = tpw_stream_aside(s);
    bool moved = aside && !s->cuda.cuStreamWaitEvent(aside->native, event, 0) && !tpw_waits_move(s, handle, aside);
    tpw_stream_leave(s, aside);
    return moved;
}

static int32_t recorded_anew(struct tpw_session *s, const struct tp_frame *frame, uint64_t handle, CUevent event,
                             const struct tpw_stream *stream) {
    tpw_enter_stream(s, stream);
    if (!move_waits(s, handle, event) && !tpw_touchable(s, stream)) {
        tpw_waits_end_event(s, handle);
    }
    return tpw_enter(s, frame);
}

int32_t tpw_cuEventRecord(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_cuEventRecord_in *in,
                          CUevent hEvent, struct tpw_stream *hStream) {
    int32_t error = CUDA_SUCCESS;
    if (TP_UNLIKELY(tpw_waits_for_event(s, in->hEvent))) {
        error = recorded_anew(s, frame, in->hEvent, hEvent, hStream);
    }
    return error ? error : (int32_t)s->cuda.cuEventRecord(hEvent, hStream->native);
}

int32_t tpw_cuEventRecordWithFlags(struct tpw_session *s, const struct tp_frame *frame,
                                   const struct tpg_cuEventRecordWithFlags_in *in, CUevent hEvent,
                                   struct tpw_stream *hStream) {
    int32_t error = CUDA_SUCCESS;
    if (!(in->flags & CU_EVENT_RECORD_EXTERNAL) && tpw_waits_for_event(s, in->hEvent)) { /* else it stays what it is */
        error = recorded_anew(s, frame, in->hEvent, hEvent, hStream);
    }
    if (!error && in->flags & CU_EVENT_RECORD_EXTERNAL) { /* in a capture, a node of its own */
        error = tpw_capture_keeps(s, hStream, TPG_EVENT, in->hEvent);
    }
    TPW_TRY(error);
    return (int32_t)s->cuda.cuEventRecordWithFlags(hEvent, hStream->native, in->flags);
}

/* All that is in the context, or all that will be. What the session has put there itself counts, too; it stands behind work of the
 * client's. */
int32_t tpw_cuCtxRecordEvent(struct tpw_session *s, const struct tp_frame *frame,
                             const struct tpg_cuCtxRecordEvent_in *in, CUcontext hCtx, CUevent hEvent) {
    if (TP_UNLIKELY(tpw_waits_for_event(s, in->hEvent))) {
        tpw_visit(s, hCtx, tp_handle_id(in->hCtx));
        (void)move_waits(s, in->hEvent, hEvent);
    }
    return (int32_t)s->cuda.cuCtxRecordEvent(hCtx, hEvent);
}

/* A stream that waits for a captured event becomes part of the capture: what it has queued must have its point before. */
int32_t tpw_cuStreamWaitEvent(struct tpw_session *s, const struct tp_frame *frame,
                              const struct tpg_cuStreamWaitEvent_in *in, struct tpw_stream *hStream, CUevent hEvent) {
    int32_t error = CUDA_SUCCESS;
    if (TP_UNLIKELY(s->captures)) {
        tpw_waits_settle(s);
        error = tpw_enter(s, frame);
    }
    if (!error && in->Flags & CU_EVENT_WAIT_EXTERNAL) {
        error = tpw_capture_keeps(s, hStream, TPG_EVENT, in->hEvent);
    }
    error = error ? error : (int32_t)s->cuda.cuStreamWaitEvent(hStream->native, hEvent, in->Flags);
    /* Nodes that a stream captures are in its context, and it may have joined a capture just now. */
    return error ? error : tpw_capture_keeps(s, hStream, TPG_CONTEXT, tp_handle_make(TPG_CONTEXT, hStream->context_id));
}

/* ---- waits and times ---- */

/* What the driver says of the time between two events, or that one of them is none. */
static int32_t elapsed(struct tpw_session *s, const struct tp_frame *frame, uint64_t start, uint64_t end, float *out) {
    int32_t error = 0;
    CUevent from = (CUevent)(uintptr_t)tpw_native(s, frame, TPG_EVENT, start, false, &error);
    CUevent to = (CUevent)(uintptr_t)tpw_native(s, frame, TPG_EVENT, end, false, &error);
    *out = 0;
    return error ? error : (int32_t)s->cuda.cuEventElapsedTime_v2(out, from, to);
}

int32_t tpw_event_elapsed(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_event_elapsed_in *in,
                          struct tpg_event_elapsed_out *out) {
    static int results[TP_PAIRS_MAX];
    static float milliseconds[TP_PAIRS_MAX];
    if (!in->starts_count || in->starts_count > TP_PAIRS_MAX || in->starts_count != in->ends_count) {
        tpw_violation(s, frame, "event_elapsed of no pairs, or too many");
        return TPW_LATER;
    }
    for (size_t i = 0; i < in->starts_count; i++) {
        const uint64_t start = tp_word_at(in->starts, i), end = tp_word_at(in->ends, i);
        results[i] = i && s->captures ? CUDA_ERROR_INVALID_HANDLE : elapsed(s, frame, start, end, &milliseconds[i]);
    }
    *out = (struct tpg_event_elapsed_out){.results = results,
                                          .results_count = in->starts_count,
                                          .milliseconds = milliseconds,
                                          .milliseconds_count = in->starts_count};
    return results[0];
}

struct wait {
    struct tp_frame frame; /* header only */
    uint64_t start, event;
};

static struct tpg_event_wait_out timed(struct tpw_session *s, const struct tp_frame *frame, uint64_t start,
                                       uint64_t end) {
    struct tpg_event_wait_out out = {.timed = CUDA_ERROR_INVALID_HANDLE};
    if (start && !s->captures) { /* what the client asks ahead may fail */
        out.timed = elapsed(s, frame, start, end, &out.milliseconds);
    }
    return out;
}

static void answer(struct tpw_session *s, void *what, int32_t error) {
    struct wait *wait = what;
    struct tpg_event_wait_out out = timed(s, &wait->frame, wait->start, wait->event);
    tpg_answer_event_wait(s, &wait->frame, error, &out);
    free(wait);
}

int32_t tpw_event_wait(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_event_wait_in *in,
                       struct tpg_event_wait_out *out) {
    int32_t error = 0;
    CUevent native = (CUevent)(uintptr_t)tpw_native(s, frame, TPG_EVENT, in->event, false, &error);
    TPW_TRY(error);
    error = (int32_t)s->cuda.cuEventQuery(native);
    if (error != CUDA_ERROR_NOT_READY) {
        if (!error) {
            *out = timed(s, frame, in->start, in->event);
        }
        return error;
    }
    struct wait *wait = malloc(sizeof *wait);
    if (!wait) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *wait = (struct wait){.frame = *frame, .start = in->start, .event = in->event};
    error = tpw_when_complete(s, in->event, (uint64_t)(uintptr_t)native, answer, wait);
    if (error) {
        free(wait);
        return error;
    }
    return TPW_LATER;
}
