/*
 * Limits of the client's contexts, and the device memory that they make the driver take.
 *
 * Executor thread only. The bytes count on the quota page from the change of a limit to the context's end.
 */
#include "tpg_session.h"
#include "tpw_memory.h"

/* Device memory that a limit makes the driver take, as far as it can be known: the heap of malloc and the buffer of printf
 * as they are, the stack once for each thread that can run. */
static uint64_t cost(struct tpw_session *s, int device, CUlimit limit, uint64_t value, int32_t *error) {
    int processors = 0, threads = 0;
    uint64_t bytes = 0;
    CUdevice on = s->devices[device];
    switch (limit) {
    case CU_LIMIT_MALLOC_HEAP_SIZE:
    case CU_LIMIT_PRINTF_FIFO_SIZE:
        return value;
    case CU_LIMIT_STACK_SIZE:
        if (!*error) {
            *error = (int32_t)s->cuda.cuDeviceGetAttribute(&processors, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, on);
        }
        if (!*error) {
            *error =
                (int32_t)s->cuda.cuDeviceGetAttribute(&threads, CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR, on);
        }
        return __builtin_mul_overflow(value, (uint64_t)processors * (uint64_t)threads, &bytes) ? UINT64_MAX : bytes;
    default:
        return 0;
    }
}

/* What the client's limits hold above those of a fresh context. */
static uint64_t above(struct tpw_session *s, const struct tpw_context *context, CUlimit limit, uint64_t value,
                      int32_t *error) {
    uint64_t now = cost(s, context->device, limit, value, error),
             fresh = cost(s, context->device, limit, context->fresh[limit], error);
    return now > fresh ? now - fresh : 0;
}

/* The limits before the client changes the first of them. */
static int32_t remember_limits(struct tpw_session *s, struct tpw_context *context) {
    for (int i = 0; i < CU_LIMIT_MAX && !context->limits_changed; i++) {
        int32_t result = (int32_t)s->cuda.cuCtxGetLimit(&context->fresh[i], (CUlimit)i);
        context->has[i] = result == CUDA_SUCCESS;
        if (!tpw_about_the_question(result)) {
            return result;
        }
    }
    context->limits_changed = true;
    return CUDA_SUCCESS;
}

int32_t tpw_context_limit(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_context_limit_in *in,
                          struct tpg_context_limit_out *out) {
    struct tpw_context *context = tpw_record(s, TPG_CONTEXT, tp_handle_make(TPG_CONTEXT, frame->context));
    CUlimit limit = (CUlimit)in->limit;
    size_t before = 0, after = 0;
    if (!context) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    if (in->limit < 0 || in->limit >= CU_LIMIT_MAX) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    int32_t error = (int32_t)s->cuda.cuCtxGetLimit(&before, limit);
    error = error ? error : remember_limits(s, context);
    uint64_t held = above(s, context, limit, before, &error), wanted = above(s, context, limit, in->value, &error);
    TPW_TRY(error);
    if (wanted > held) {
        TPW_TRY(tpw_charge(s, (uint32_t)context->device, wanted - held));
    }
    error = (int32_t)s->cuda.cuCtxSetLimit(limit, in->value);
    int32_t untold = error ? CUDA_SUCCESS : (int32_t)s->cuda.cuCtxGetLimit(&after, limit);
    after = error ? before : untold ? in->value : after; /* untold: what was asked for is held, and the call fails */
    error = error ? error : untold;
    /* The driver rounds and bounds: what it took counts. Rounding up may pass the worker's limit by less than a page. */
    uint64_t charged = wanted > held ? wanted : held, holds = above(s, context, limit, after, &untold);
    if (holds < charged) {
        tpw_uncharge(s, (uint32_t)context->device, charged - holds);
    } else if (holds > charged && tpw_charge(s, (uint32_t)context->device, holds - charged)) {
        holds = charged;
    }
    context->charged = context->charged + holds - held;
    out->value_set = after;
    return error;
}

/* A context that stays gets back the limits that it had, when its modules are gone: some can then no more be changed. */
static void over(struct tpw_session *s, const struct tpw_gone *gone) {
    const struct tpw_context *context = gone->context;
    for (int i = 0; i < CU_LIMIT_MAX && gone->stays && context->limits_changed; i++) {
        if (context->has[i]) {
            s->cuda.cuCtxSetLimit((CUlimit)i, context->fresh[i]);
        }
    }
    tpw_uncharge(s, (uint32_t)context->device, context->charged);
}
TP_REGISTER(tpw_context_over, over);
