/*
 * Contexts: the driver's primary ones, records of the client's, and what is asked of them. How they end is in
 * stream/context_end.c, because ending waits for their work.
 *
 * Executor thread only. The driver's primary context of a device, once made, stays retained until the process ends: pinned
 * staging memory, words of timelines and the streams of other work of this session live in it, and it has to keep its
 * address.
 */
#include "tpg_session.h"
#include "tpw_session.h"

#include <stdlib.h>

bool tpw_home_enter(struct tpw_session *s) {
    for (int i = 0; i < s->device_count; i++) {
        if (s->primary[i] && !s->broken[i]) {
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
        TPW_TRY(s->cuda.cuDevicePrimaryCtxRetain(&native, s->devices[index]));
        uint64_t made_at = tp_now_ns();
        int32_t error = (int32_t)s->cuda.cuCtxPushCurrent_v2(native);
        if (!error) {
            s->primary[index] = native; /* staging memory, which these may ask for, wants to know it */
            TP_ASK(tpw_primary_made, error, s);
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

int32_t tpw_context_made(struct tpw_session *s, const struct tp_frame *frame, uint64_t handle, CUcontext native,
                         int device, bool primary, int32_t error) {
    struct tpw_context *record = calloc(1, sizeof *record);
    if (!record && !error) {
        error = CUDA_ERROR_OUT_OF_MEMORY;
    }
    error = tpw_made(s, frame, TPG_CONTEXT, handle, (uint64_t)(uintptr_t)native, error);
    struct tpw_object *object = error ? NULL : tpw_object(s, TPG_CONTEXT, handle);
    if (object && record) {
        record->device = device;
        record->primary = primary;
        object->record = record;
        s->contexts_changed = true;
        return CUDA_SUCCESS;
    }
    free(record);
    return error;
}

uint32_t tpw_home_of(struct tpw_session *s, uint32_t context) {
    const struct tpw_context *record = tpw_record(s, TPG_CONTEXT, tp_handle_make(TPG_CONTEXT, context));
    return record && record->home ? record->home : context;
}

uint32_t tpw_context_device(struct tpw_session *s, uint32_t context) {
    const struct tpw_context *record = tpw_record(s, TPG_CONTEXT, tp_handle_make(TPG_CONTEXT, context));
    return record ? (uint32_t)record->device : 0;
}

int32_t tpw_context_flags(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_context_flags_in *in) {
    return s->entered ? (int32_t)s->cuda.cuCtxSetFlags(in->flags & TPW_FLAGS_FORWARDED) : CUDA_ERROR_INVALID_CONTEXT;
}

int32_t tpw_context_info(struct tpw_session *s, const struct tp_frame *frame, struct tpg_context_info_out *out) {
    static uint64_t limits[TP_DEVICE_LIMITS];
    static int results[TP_DEVICE_LIMITS];
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
