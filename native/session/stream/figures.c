/*
 * What a session counts of its client, for whoever asks the worker how it is: nvidia-smi in the client's machine, tensor-fusion top.
 *
 * Executor thread only. It is written to this session's cell of the quota page between turns of the loop, where the control channel is
 * looked at, and before a sleep, so no call pays for it; the supervisor reads it there.
 */
#include "tpw_stream.h"

#include <tp_quota.h>

/* The session's own primary context does not count. */
static uint64_t contexts(struct tpw_session *s) {
    struct tpw_object *object;
    uint64_t mask = 0;
    for (uint32_t at = 0; (object = tpw_next_object(s, TPG_CONTEXT, &at));) {
        if (object->native) {
            mask |= 1ull << tpw_context_device(s, object->id);
        }
    }
    return mask;
}

void tpw_figures_tell(struct tpw_session *s) {
    static struct tp_figures told;
    if (!s->link || !s->quota) {
        return;
    }
    struct tp_figures now = {.frames = s->frames, .calls = s->waited_for, .contexts = told.contexts};
    tpw_link_bytes(s->link, &now.received, &now.sent);
    if (s->contexts_changed) {
        s->contexts_changed = false;
        now.contexts = contexts(s);
    }
    told = now;
    tp_quota_tell(s->quota, &now);
}
TP_REGISTER(tpw_control, tpw_figures_tell);
