// Events: each remembers a position in the stream that it was last recorded in, and when that was reached.
//
// The structure lives as long as its handle and any queued record. All under sim.lock; waiting releases it. A never
// recorded event counts as complete, as in CUDA.
#include "sim_graph.h"

#include <stdlib.h>

sim_event_t *sim_event_of(CUevent handle) {
    return sim_handle_is(handle, SIM_EVENT) ? (sim_event_t *)(void *)handle : NULL;
}

// Whoever uses an event of a context that is gone is told so (580.159.04, measured), so nothing else gets its handle.
CUresult sim_event_none(CUevent handle) {
    return sim_handle_is(handle, SIM_EVENT_GONE) ? CUDA_ERROR_CONTEXT_IS_DESTROYED : CUDA_ERROR_INVALID_HANDLE;
}

void sim_event_orphan(sim_event_t *event) {
    sim_handle_remove(event);
    if (!sim_handle_add(event, SIM_EVENT_GONE)) {
        sim_event_release(event);
        return;
    }
    if (event->refs > 1) // somebody waits for it
        return;
    if (event->stream)
        sim_stream_release(event->stream);
    event->stream = NULL;
    sim_capture_event_drop(event);
    sim_ipc_event_end(event);
}

void sim_event_place(sim_event_t *event, sim_stream_t *stream, uint64_t seq) {
    if (event->stream)
        sim_stream_release(event->stream);
    event->stream = stream;
    event->seq = seq;
    stream->refs++;
}

CUresult sim_event_add(sim_context_t *context, sim_event_t *event) {
    if (!context->active)
        return CUDA_ERROR_CONTEXT_IS_DESTROYED;
    if (!sim_handle_add(event, SIM_EVENT))
        return CUDA_ERROR_OUT_OF_MEMORY;
    event->context = context;
    event->refs = 1;
    event->next = context->events;
    event->link = &context->events;
    if (event->next)
        event->next->link = &event->next;
    context->events = event;
    return CUDA_SUCCESS;
}

CUresult cuEventCreate(CUevent *phEvent, unsigned int Flags) {
    SIM_ENTER_CONTEXT(context);
    if (!phEvent || (Flags & ~7u))
        return CUDA_ERROR_INVALID_VALUE;
    if ((Flags & CU_EVENT_INTERPROCESS) && !(Flags & CU_EVENT_DISABLE_TIMING))
        return CUDA_ERROR_INVALID_VALUE;
    sim_event_t *event = calloc(1, sizeof *event);
    if (!event)
        return CUDA_ERROR_OUT_OF_MEMORY;
    context = sim_home(context);
    event->flags = Flags;
    CUresult result = Flags & CU_EVENT_INTERPROCESS ? sim_ipc_event_begin(event) : CUDA_SUCCESS;
    if (result == CUDA_SUCCESS) {
        pthread_mutex_lock(&sim.lock);
        result = sim_event_add(context, event);
        pthread_mutex_unlock(&sim.lock);
    }
    if (result != CUDA_SUCCESS) {
        sim_ipc_event_end(event);
        free(event);
        return result;
    }
    *phEvent = (CUevent)(void *)event;
    return CUDA_SUCCESS;
}

CUresult cuEventDestroy_v2(CUevent hEvent) {
    SIM_ENTER_WITHOUT(context);
    (void)context;
    pthread_mutex_lock(&sim.lock);
    CUresult result = sim_event_none(hEvent);
    sim_event_t *event = sim_event_of(hEvent);
    if (event) {
        sim_handle_remove(event);
        *event->link = event->next;
        if (event->next)
            event->next->link = event->link;
        sim_event_release(event);
        result = CUDA_SUCCESS;
    }
    pthread_mutex_unlock(&sim.lock);
    return result;
}

static CUresult record(sim_context_t *context, CUevent handle, CUstream stream_handle, unsigned flags) {
    sim_stream_t *stream;
    uint64_t seq;
    pthread_mutex_lock(&sim.lock);
    CUresult result = sim_stream_resolve(context, stream_handle, &stream);
    sim_event_t *event = sim_event_of(handle);
    if (result == CUDA_SUCCESS && (!event || event->context != sim_home(stream->context)))
        result = sim_event_none(handle);
    if (result == CUDA_SUCCESS && (flags & ~(unsigned)CU_EVENT_RECORD_EXTERNAL))
        result = CUDA_ERROR_INVALID_VALUE;
    bool taken = false;
    if (result == CUDA_SUCCESS && flags) {
        sim_op_t op = {.kind = SIM_OP_RECORD_NODE, .u.event_handle = handle};
        result = sim_capture_push(stream, &op, &taken);
        if (result == CUDA_SUCCESS && !taken)
            result = CUDA_ERROR_ILLEGAL_STATE; // there is no graph for the node
    } else if (result == CUDA_SUCCESS && event->page && stream->capture) {
        result = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED; // and the capture lives (580.159.04, measured)
    } else if (result == CUDA_SUCCESS) {
        result = sim_capture_record(stream, event, &taken);
    }
    if (result == CUDA_SUCCESS && !taken) {
        event->refs++;
        sim_op_t op = {.kind = SIM_OP_RECORD, .u.event = event};
        result = sim_stream_push(stream, &op, &seq);
    }
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult cuEventRecord(CUevent hEvent, CUstream hStream) {
    SIM_ENTER_STREAM(context, hStream);
    return record(context, hEvent, hStream, 0);
}

CUresult cuEventRecordWithFlags(CUevent hEvent, CUstream hStream, unsigned int flags) {
    SIM_ENTER_STREAM(context, hStream);
    return record(context, hEvent, hStream, flags);
}

CUresult cuEventQuery(CUevent hEvent) {
    SIM_ENTER_WITHOUT(context);
    (void)context;
    pthread_mutex_lock(&sim.lock);
    sim_event_t *event = sim_event_of(hEvent);
    CUresult result = event ? sim_capture_touch_event(event) : sim_event_none(hEvent);
    if (result == CUDA_SUCCESS)
        result = sim_context_error(event->context);
    if (result == CUDA_SUCCESS &&
        (event->page ? !sim_ipc_event_over(event) : event->stream && event->stream->done < event->seq))
        result = CUDA_ERROR_NOT_READY;
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult cuEventSynchronize(CUevent hEvent) {
    SIM_ENTER_WITHOUT(context);
    (void)context;
    pthread_mutex_lock(&sim.lock);
    sim_event_t *event = sim_event_of(hEvent);
    CUresult result = event ? sim_capture_touch_event(event) : sim_event_none(hEvent);
    if (result == CUDA_SUCCESS) {
        sim_context_t *owner = event->context;
        if (event->page) { // nobody wakes anybody: it is looked at without the lock
            const uint64_t last = sim_ipc_event_last(event);
            event->refs++;
            pthread_mutex_unlock(&sim.lock);
            sim_ipc_event_await(NULL, event, last);
            pthread_mutex_lock(&sim.lock);
            sim_event_release(event);
        } else if (event->stream)
            sim_stream_wait(event->stream, event->seq);
        result = sim_context_error(owner);
    }
    pthread_mutex_unlock(&sim.lock);
    sim_pools_notice();
    sim_print_show();
    return result;
}

CUresult cuEventElapsedTime_v2(float *pMilliseconds, CUevent hStart, CUevent hEnd) {
    SIM_ENTER();
    sim_context_t *context = sim_current();
    const bool gone = context && !context->active;
    CUresult result = pMilliseconds ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE; // the code was measured (580.159.04)
    if (result == CUDA_SUCCESS && gone && hStart)
        result = CUDA_ERROR_CONTEXT_IS_DESTROYED;
    if (result == CUDA_SUCCESS && context && !gone)
        result = sim_context_error(context);
    pthread_mutex_lock(&sim.lock);
    sim_event_t *events[2] = {sim_event_of(hStart), sim_event_of(hEnd)};
    for (int i = 0; i < 2 && result == CUDA_SUCCESS; i++) {
        const sim_event_t *event = events[i];
        if (event && event->capture && !event->capture->ended) // which lives on (580.159.04, asked)
            result = CUDA_ERROR_CAPTURED_EVENT;
        else if (!event || !event->stream || (event->flags & CU_EVENT_DISABLE_TIMING))
            result = sim_event_none(i ? hEnd : hStart);
    }
    if (result == CUDA_SUCCESS && events[0]->context != events[1]->context)
        result = CUDA_ERROR_INVALID_HANDLE;
    for (int i = 0; i < 2 && result == CUDA_SUCCESS; i++)
        if (events[i]->stream->done < events[i]->seq)
            result = CUDA_ERROR_NOT_READY;
    if (result == CUDA_SUCCESS)
        *pMilliseconds = (float)((double)((int64_t)events[1]->recorded_ns - (int64_t)events[0]->recorded_ns) / 1e6);
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult cuEventElapsedTime(float *pMilliseconds, CUevent hStart, CUevent hEnd) {
    return cuEventElapsedTime_v2(pMilliseconds, hStart, hEnd);
}
