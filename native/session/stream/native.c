/*
 * From a client's handle to the driver's, streams among them: what generated code calls around every driver function.
 *
 * Executor thread only. Handles come from a hostile client; the tables are those of process/objects.c.
 */
#include "tpg_ops.h"
#include "tpw_stream.h"

uint64_t tpw_native(struct tpw_session *s, const struct tp_frame *frame, uint32_t kind, uint64_t handle, bool optional,
                    int32_t *error) {
    if (kind == TPG_STREAM) {
        return (uint64_t)(uintptr_t)tpw_stream(s, frame, handle, error);
    }
    if (!handle && optional) {
        return 0;
    }
    struct tpw_object *object = tpw_object(s, kind, handle);
    if (!object) {
        tpw_set(error, tpg_bad_handle(kind));
        return 0;
    }
    if (object->error || !object->native) {
        tpw_set(error, object->error ? object->error : tpg_bad_handle(kind));
    }
    return object->native;
}

uint64_t *tpw_natives(struct tpw_session *s, const struct tp_frame *frame, uint32_t kind, const uint64_t *handles,
                      size_t count, int32_t *error) {
    uint64_t *natives = tpw_scratch(s, count, sizeof *natives, error);
    for (size_t i = 0; natives && i < count; i++) {
        natives[i] = tpw_native(s, frame, kind, tp_word_at(handles, i), false, error);
    }
    return natives;
}
