/*
 * Events. Recording and destroying are generated; here is what waits.
 *
 * Executor thread only. Waiting for an event is polled with cuEventQuery from the executor's loop, because an event may have
 * been recorded in any stream and a marker would have to know which.
 */
#include "tpg_session.h"
#include "tpw_session.h"

#include <stdlib.h>

int32_t tpw_event_create(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_event_create_in *in) {
    CUevent native = NULL;
    int32_t error = (int32_t)s->cuda.cuEventCreate(&native, in->flags);
    return tpw_made(s, frame, TPG_EVENT, in->event, (uint64_t)(uintptr_t)native, error);
}

int32_t tpw_event_query(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_event_query_in *in) {
    int32_t error = 0;
    CUevent native = (CUevent)(uintptr_t)tpw_native(s, frame, TPG_EVENT, in->event, false, &error);
    error = error ? error : (int32_t)s->cuda.cuEventQuery(native);
    if (!error) {
        tpw_poll(s); /* the data of copies that are complete leaves before the answer */
    }
    return error;
}

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
    tpw_forget(s, TPG_EVENT, in->hEvent);
    return there ? (int32_t)s->cuda.cuEventDestroy_v2(native) : CUDA_SUCCESS;
}

static void answer(struct tpw_session *s, void *what, int32_t error) {
    struct tpw_ticket *ticket = what;
    tpw_answer_ticket(s, *ticket, tpw_report(s, error, true));
    free(ticket);
}

int32_t tpw_event_wait(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_event_wait_in *in) {
    int32_t error = 0;
    CUevent native = (CUevent)(uintptr_t)tpw_native(s, frame, TPG_EVENT, in->event, false, &error);
    if (error) {
        return error;
    }
    error = (int32_t)s->cuda.cuEventQuery(native);
    if (error != CUDA_ERROR_NOT_READY) {
        tpw_poll(s); /* the data of copies that are complete leaves before the answer */
        return error;
    }
    struct tpw_ticket *ticket = malloc(sizeof *ticket);
    if (!ticket) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *ticket = tpw_ticket(frame);
    error = tpw_when_event(s, native, in->event, answer, ticket);
    if (error) {
        free(ticket);
        return error;
    }
    return TPW_LATER;
}

int32_t tpw_event_elapsed(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_event_elapsed_in *in,
                          struct tpg_event_elapsed_out *out) {
    int32_t error = 0;
    CUevent start = (CUevent)(uintptr_t)tpw_native(s, frame, TPG_EVENT, in->start, false, &error);
    CUevent end = (CUevent)(uintptr_t)tpw_native(s, frame, TPG_EVENT, in->end, false, &error);
    return error ? error : (int32_t)s->cuda.cuEventElapsedTime_v2(&out->milliseconds, start, end);
}
