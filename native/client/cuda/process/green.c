/*
 * Green contexts in the client: contexts that work on a share of a device's multiprocessors.
 *
 * Any thread. One is a record like that of a created context, and a part of its device's primary one: it holds a retain of
 * that, and memory, modules and events that are made in it are the primary's (`home`).
 */
#include "process_internal.h"

#define NO_CONTEXT ((CUcontext)(uintptr_t)1) /* is told to be none, where NULL would mean the current one */

CUcontext tpc_green_context(CUgreenCtx green) {
    uint64_t value = (uint64_t)(uintptr_t)green;
    return tp_handle_is(value, TPG_GREENCTX) ? (CUcontext)(uintptr_t)tp_handle_make(TPG_CONTEXT, tp_handle_id(value))
                                             : NO_CONTEXT;
}

CUgreenCtx tpc_green_of(const struct tpc_context *context) {
    return context->home == context
               ? NULL
               : (CUgreenCtx)(uintptr_t)tp_handle_make(TPG_GREENCTX, tp_handle_id(context->handle));
}

CUresult tpc_green_living(CUgreenCtx green, struct tpc_context **out) {
    CUresult result = tpc_context_of(tpc_green_context(green), out);
    return result == CUDA_SUCCESS && (*out)->home == *out ? CUDA_ERROR_INVALID_CONTEXT : result;
}

/* NULL for a description: the driver waits for ever (580.159.04, measured). */
CUresult tpc_do_cuGreenCtxCreate(CUgreenCtx *phCtx, CUdevResourceDesc desc, CUdevice dev, unsigned int flags) {
    struct tpc_context *context;
    CUcontext primary;
    (void)flags;
    if (!desc) { /* the whole device (580.159.04, measured); nobody ends a description, so one is kept */
        CUdevResource all;
        static _Atomic(CUdevResourceDesc) whole[TPC_DEVICES_MAX];
        desc = atomic_load(&whole[dev]);
        if (!desc) {
            TPC_TRY(tpc_cuDeviceGetDevResource(dev, &all, CU_DEV_RESOURCE_TYPE_SM));
            TPC_TRY(tpc_cuDevResourceGenerateDesc(&desc, &all, 1));
            atomic_store(&whole[dev], desc);
        }
    }
    TPC_CHECK_HANDLE(DEVDESC, desc, false);
    TPC_TRY(tpc_cuDevicePrimaryCtxRetain(&primary, dev));
    CUresult result = tpc_context_make("cuGreenCtxCreate", dev, CU_CTX_MAP_HOST, desc, &context);
    if (result == CUDA_SUCCESS) {
        *phCtx = tpc_green_of(context);
    } else {
        tpc_cuDevicePrimaryCtxRelease_v2(dev);
    }
    return result;
}

CUresult tpc_cuGreenCtxDestroy(CUgreenCtx hCtx) {
    struct tpc_context *context;
    TPC_TRY(tpc_green_living(hCtx, &context));
    if (!tpc_context_over_now(context)) {
        return CUDA_ERROR_CONTEXT_IS_DESTROYED;
    }
    CUresult result = tpc_context_end("cuGreenCtxDestroy", context);
    TP_TELL(tpc_context_over, context);
    CUresult released = tpc_cuDevicePrimaryCtxRelease_v2(context->device);
    return result == CUDA_SUCCESS ? released : result;
}

bool tpc_greens_live(const struct tpc_context *primary, const struct tpc_context *all) {
    while (all && (all == primary || all->home != primary || !tpc_handle_alive(TPG_CONTEXT, all->handle))) {
        all = all->next;
    }
    return all;
}
