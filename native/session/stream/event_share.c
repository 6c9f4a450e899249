/*
 * Events of other processes: the driver's own interprocess events, whose handles sessions pass on through the supervisor.
 *
 * Executor thread only. The driver's handle never reaches a client, which gets a name for it (control.c). An event that is
 * shared has a record with its number, and is no longer to be had when it has been destroyed or its context has ended.
 */
#include "tpg_answer.h"
#include "tpg_session.h"
#include "tpw_stream.h"

#include <stdlib.h>

struct event_share {
    uint64_t number; /* 0 until the supervisor has answered */
    CUipcEventHandle handle;
};

void tpw_event_unshare(struct tpw_session *s, const struct tpw_object *object) {
    const struct event_share *share = object->record;
    if (share && share->number) {
        tpw_leave_share(s, share->number, 0);
    }
}

static void context_gone(struct tpw_session *s, const struct tpw_gone *gone) {
    struct tpw_object *object;
    for (uint32_t at = 0; (object = tpw_next_object(s, TPG_EVENT, &at));) {
        if (object->context == gone->id) {
            tpw_event_unshare(s, object);
            free(object->record);
            object->record = NULL;
        }
    }
}
TP_REGISTER(tpw_context_gone, context_gone);

static void shared(struct tpw_session *s, const struct tpw_question *question, const struct tpw_packet *packet,
                   int fd) {
    struct tpw_object *object = tpw_object(s, TPG_EVENT, question->value);
    struct event_share *share = object ? object->record : NULL;
    struct tpg_ipc_event_export_out out = {0};
    int32_t error = packet->value               ? CUDA_SUCCESS
                    : packet->body.shared.error ? packet->body.shared.error
                                                : CUDA_ERROR_UNKNOWN;
    if (share && !error) {
        share->number = packet->value;
        memcpy(&share->handle, packet->body.shared.handle, sizeof share->handle);
        out.handle = share->handle;
    } else if (share) {
        object->record = NULL;
        free(share);
    } else if (!error) {
        tpw_leave_share(s, packet->value, 0); /* destroyed meanwhile */
        error = CUDA_ERROR_INVALID_HANDLE;
    }
    tpg_answer_ipc_event_export(s, &question->frame, error, &out);
}

int32_t tpw_ipc_event_export(struct tpw_session *s, const struct tp_frame *frame,
                             const struct tpg_ipc_event_export_in *in, struct tpg_ipc_event_export_out *out) {
    struct tpw_packet packet = {.type = TPW_SHARE, .body.shared.kind = TPW_SHARES_EVENT};
    CUipcEventHandle handle;
    int32_t error = 0;
    CUevent native = (CUevent)(uintptr_t)tpw_native(s, frame, TPG_EVENT, in->event, false, &error);
    struct tpw_object *object = error ? NULL : tpw_object(s, TPG_EVENT, in->event);
    struct event_share *share = object ? object->record : NULL;
    if (share) { /* until the answer has come nobody asks again: the client's threads wait for each other */
        out->handle = share->handle;
        return share->number ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
    }
    error = error ? error : (int32_t)s->cuda.cuIpcGetEventHandle(&handle, native);
    TPW_TRY(error);
    share = calloc(1, sizeof *share);
    if (!share) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    memcpy(packet.body.shared.native, &handle, sizeof handle);
    error = tpw_ask(s, &(struct tpw_question){.frame = *frame, .answered = shared, .value = in->event}, &packet, -1);
    if (error == TPW_LATER) {
        object->record = share;
    } else {
        free(share);
    }
    return error;
}

/* The event's object is made when the answer comes; the client uses its handle only then. */
int32_t tpw_granted_ipc_event_open(struct tpw_session *s, const struct tpw_question *question,
                                   const struct tpw_packet *packet, int fd, struct tpg_ipc_event_open_out *out) {
    struct tp_frame frame = question->frame;
    CUipcEventHandle handle;
    CUevent native = NULL;
    memcpy(&handle, packet->body.shared.native, sizeof handle);
    int32_t error = tpw_enter(s, &frame);
    error = error ? error : (int32_t)s->cuda.cuIpcOpenEventHandle(&native, handle);
    error = tpw_made(s, &frame, TPG_EVENT, question->value, (uint64_t)(uintptr_t)native, error);
    if (error && native) {
        s->cuda.cuEventDestroy_v2(native);
    }
    return error;
}
