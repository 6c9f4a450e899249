// cuStream*, cuLaunchHostFunc and the stream memory operations: arguments are checked here, then queued.
//
// Stream handles are looked up before use; 0 and 1 are the legacy default stream of the current context, 2 that of
// the calling thread. Capture is in sim_capture.c.
#include "sim_graph.h"

#include <stdlib.h>
#include <string.h>

// Out of range is no error, neither here nor as an attribute (580.159.04, measured).
static int in_range(int priority) { return priority > 0 ? 0 : priority < -5 ? -5 : priority; }

CUresult sim_stream_create(sim_context_t *context, CUstream *phStream, unsigned flags, int priority) {
    if (!phStream || (flags & ~(unsigned)CU_STREAM_NON_BLOCKING))
        return CUDA_ERROR_INVALID_VALUE;
    sim_stream_t *stream;
    pthread_mutex_lock(&sim.lock);
    CUresult result = CUDA_ERROR_CONTEXT_IS_DESTROYED; // by another thread, since this call began
    unsigned count = 0;
    for (const sim_stream_t *other = context->streams; other; other = other->next)
        count++;
    if (count >= SIM_STREAM_ROOM + SIM_STREAM_LOTS(context->lots) && context->active) {
        context->lots++;
        sim_context_drain(context); // other threads go on meanwhile, and may end the context
    }
    if (context->active)
        result = sim_stream_new(context, flags, in_range(priority), &stream);
    if (result == CUDA_SUCCESS) {
        if (sim_handle_add(stream, SIM_STREAM)) {
            stream->handle = true;
            *phStream = (CUstream)(void *)stream;
        } else {
            sim_stream_unlink(stream);
            result = CUDA_ERROR_OUT_OF_MEMORY;
        }
    }
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult cuStreamCreate(CUstream *phStream, unsigned int Flags) {
    SIM_ENTER_CONTEXT(context);
    return sim_stream_create(context, phStream, Flags, 0);
}

CUresult cuStreamCreateWithPriority(CUstream *phStream, unsigned int flags, int priority) {
    SIM_ENTER_CONTEXT(context);
    return sim_stream_create(context, phStream, flags, priority);
}

CUresult cuStreamDestroy_v2(CUstream hStream) {
    SIM_ENTER_STREAM(context, hStream);
    (void)context;
    CUresult result = CUDA_ERROR_INVALID_HANDLE;
    pthread_mutex_lock(&sim.lock);
    if (sim_handle_is(hStream, SIM_STREAM)) { // work that is queued goes on
        sim_stream_t *stream = (sim_stream_t *)(void *)hStream;
        result = stream->context->active ? CUDA_SUCCESS : CUDA_ERROR_CONTEXT_IS_DESTROYED;
        if (result == CUDA_SUCCESS)
            sim_stream_unlink(stream);
    }
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult cuStreamSynchronize(CUstream hStream) {
    SIM_ENTER_STREAM(context, hStream);
    const CUresult implicit = sim_capture_implicit(context, hStream); // before what modes forbid (580.159.04, asked)
    if (implicit != CUDA_SUCCESS)
        return implicit;
    SIM_UNSAFE();
    sim_stream_t *stream;
    pthread_mutex_lock(&sim.lock);
    CUresult result = sim_stream_resolve(context, hStream, &stream);
    if (result == CUDA_SUCCESS)
        result = sim_capture_touch(stream);
    if (result == CUDA_SUCCESS) {
        sim_context_t *owner = stream->context;
        result = sim_stream_drain(stream);
        CUresult error = sim_context_error(owner);
        result = error != CUDA_SUCCESS ? error : result;
    }
    pthread_mutex_unlock(&sim.lock);
    sim_pools_notice();
    if (result != CUDA_ERROR_INVALID_HANDLE)
        sim_print_show();
    return result;
}

CUresult cuStreamQuery(CUstream hStream) {
    SIM_ENTER_STREAM(context, hStream);
    const CUresult implicit = sim_capture_implicit(context, hStream); // before what modes forbid (580.159.04, asked)
    if (implicit != CUDA_SUCCESS)
        return implicit;
    SIM_UNSAFE();
    sim_stream_t *stream;
    pthread_mutex_lock(&sim.lock);
    CUresult result = sim_stream_resolve(context, hStream, &stream);
    if (result == CUDA_SUCCESS)
        result = sim_capture_touch(stream);
    if (result == CUDA_SUCCESS) {
        result = sim_context_error(stream->context);
        if (result == CUDA_SUCCESS && sim_stream_busy(stream))
            result = CUDA_ERROR_NOT_READY;
    }
    pthread_mutex_unlock(&sim.lock);
    return result;
}

// Reads one thing of a stream under the lock.
typedef enum { STREAM_FLAGS, STREAM_PRIORITY, STREAM_ID, STREAM_CONTEXT, STREAM_DEVICE } stream_question_t;

static CUresult ask(sim_context_t *context, CUstream handle, stream_question_t question, void *answer) {
    if (!answer)
        return CUDA_ERROR_INVALID_VALUE;
    sim_stream_t *stream;
    pthread_mutex_lock(&sim.lock);
    CUresult result = sim_stream_resolve(context, handle, &stream);
    const bool barred = question == STREAM_FLAGS || question == STREAM_ID || question == STREAM_DEVICE;
    if (result == CUDA_SUCCESS && barred && stream->capture) // in whatever mode (580.159.04, asked)
        result = sim_capture_touch(stream);
    if (result == CUDA_SUCCESS) {
        switch (question) {
        case STREAM_FLAGS:
            memcpy(answer, &stream->flags, sizeof stream->flags);
            break;
        case STREAM_PRIORITY:
            memcpy(answer, &stream->priority, sizeof stream->priority);
            break;
        case STREAM_ID:
            memcpy(answer, &stream->id, sizeof stream->id);
            break;
        case STREAM_DEVICE:
            memcpy(answer, &stream->context->device, sizeof(CUdevice));
            break;
        case STREAM_CONTEXT: {
            CUcontext value = (CUcontext)(void *)stream->context;
            memcpy(answer, &value, sizeof value);
        }
        }
    }
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult cuStreamGetFlags(CUstream hStream, unsigned int *flags) {
    SIM_ENTER_STREAM(context, hStream);
    return ask(context, hStream, STREAM_FLAGS, flags);
}

CUresult cuStreamGetPriority(CUstream hStream, int *priority) {
    SIM_ENTER_STREAM(context, hStream);
    return ask(context, hStream, STREAM_PRIORITY, priority);
}

CUresult cuStreamGetId(CUstream hStream, unsigned long long *streamId) {
    SIM_ENTER_STREAM(context, hStream);
    return ask(context, hStream, STREAM_ID, streamId);
}

CUresult cuStreamGetCtx(CUstream hStream, CUcontext *pctx) {
    SIM_ENTER_STREAM(context, hStream);
    return ask(context, hStream, STREAM_CONTEXT, pctx);
}

CUresult cuStreamGetCtx_v2(CUstream hStream, CUcontext *pCtx, CUgreenCtx *pGreenCtx) {
    SIM_ENTER_STREAM(context, hStream);
    CUresult result = ask(context, hStream, STREAM_CONTEXT, pCtx);
    if (result != CUDA_SUCCESS || !pGreenCtx)
        return result;
    sim_context_t *whose = (sim_context_t *)(void *)*pCtx; // that of a green context is told as its primary one
    *pGreenCtx = sim_green_handle(whose);
    *pCtx = (CUcontext)(void *)sim_home(whose);
    return CUDA_SUCCESS;
}

CUresult cuStreamGetDevice(CUstream hStream, CUdevice *device) {
    SIM_ENTER_STREAM(context, hStream);
    return ask(context, hStream, STREAM_DEVICE, device);
}

// Attributes are kept and answered; they change nothing here, since there is no cache and no contention to steer.
static bool stream_attribute_ok(CUstreamAttrID attr) {
    return attr == CU_LAUNCH_ATTRIBUTE_ACCESS_POLICY_WINDOW || attr == CU_LAUNCH_ATTRIBUTE_SYNCHRONIZATION_POLICY ||
           attr == CU_LAUNCH_ATTRIBUTE_PRIORITY || attr == CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN_MAP ||
           attr == CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN;
}

CUresult cuStreamSetAttribute(CUstream hStream, CUstreamAttrID attr, const CUstreamAttrValue *param) {
    SIM_ENTER_STREAM(context, hStream);
    if (!param || !stream_attribute_ok(attr))
        return CUDA_ERROR_INVALID_VALUE;
    sim_stream_t *stream;
    pthread_mutex_lock(&sim.lock);
    CUresult result = sim_stream_resolve(context, hStream, &stream);
    if (result == CUDA_SUCCESS && attr == CU_LAUNCH_ATTRIBUTE_PRIORITY)
        stream->priority = in_range(param->priority);
    if (result == CUDA_SUCCESS)
        stream->attributes[attr] = *param;
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult cuStreamGetAttribute(CUstream hStream, CUstreamAttrID attr, CUstreamAttrValue *value) {
    SIM_ENTER_STREAM(context, hStream);
    if (!value || !stream_attribute_ok(attr))
        return CUDA_ERROR_INVALID_VALUE;
    sim_stream_t *stream;
    pthread_mutex_lock(&sim.lock);
    CUresult result = sim_stream_resolve(context, hStream, &stream);
    if (result == CUDA_SUCCESS) {
        *value = stream->attributes[attr];
        if (attr == CU_LAUNCH_ATTRIBUTE_PRIORITY)
            value->priority = stream->priority;
    }
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult cuStreamCopyAttributes(CUstream dstStream, CUstream srcStream) {
    SIM_ENTER_STREAM(context, dstStream);
    sim_stream_t *dst, *src;
    pthread_mutex_lock(&sim.lock);
    CUresult result = sim_stream_resolve(context, dstStream, &dst);
    if (result == CUDA_SUCCESS)
        result = sim_stream_resolve(context, srcStream, &src);
    if (result == CUDA_SUCCESS && dst != src) {
        memcpy(dst->attributes, src->attributes, sizeof dst->attributes);
        dst->priority = src->priority;
    }
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult cuStreamWaitEvent(CUstream hStream, CUevent hEvent, unsigned int Flags) {
    SIM_ENTER_STREAM(context, hStream);
    sim_stream_t *stream;
    uint64_t seq;
    pthread_mutex_lock(&sim.lock);
    CUresult result = sim_stream_resolve(context, hStream, &stream);
    sim_event_t *event = (sim_event_t *)(void *)hEvent;
    if (result == CUDA_SUCCESS && !sim_handle_is(hEvent, SIM_EVENT))
        result = sim_event_none(hEvent);
    if (result == CUDA_SUCCESS && (Flags & ~(unsigned)CU_EVENT_WAIT_EXTERNAL))
        result = CUDA_ERROR_INVALID_VALUE;
    bool taken = false;
    if (result == CUDA_SUCCESS && Flags) { // in a capture a node of its own, which waits for what is recorded then
        sim_op_t op = {.kind = SIM_OP_WAIT_NODE, .u.event_handle = hEvent};
        result = sim_capture_push(stream, &op, &taken);
        if (result == CUDA_SUCCESS && !taken)
            result = CUDA_ERROR_ILLEGAL_STATE; // there is no graph for the node
    }
    if (result == CUDA_SUCCESS && !taken)
        result = sim_capture_wait(stream, event, &taken);
    if (result == CUDA_SUCCESS && !taken && event->page) {
        if (!sim_ipc_event_over(event)) {
            event->refs++;
            sim_op_t op = {.kind = SIM_OP_WAIT_IPC, .u = {.event = event, .number = sim_ipc_event_last(event)}};
            result = sim_stream_push(stream, &op, &seq);
        }
    } else if (result == CUDA_SUCCESS && !taken && event->stream && event->stream->done < event->seq) {
        sim_op_t op = {.kind = SIM_OP_NOP};
        result = sim_stream_depend(&op, event->stream, event->seq) ? sim_stream_push(stream, &op, &seq)
                                                                   : CUDA_ERROR_OUT_OF_MEMORY;
    }
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult cuLaunchHostFunc(CUstream hStream, CUhostFn fn, void *userData) {
    SIM_ENTER_STREAM(context, hStream);
    if (!fn)
        return CUDA_ERROR_INVALID_VALUE;
    sim_op_t op = {.kind = SIM_OP_HOST_FUNCTION, .u.host_function = {fn, userData}};
    return sim_submit(context, hStream, &op, false, SIM_GO_ON);
}

CUresult cuStreamAddCallback(CUstream hStream, CUstreamCallback callback, void *userData, unsigned int flags) {
    SIM_ENTER_STREAM(context, hStream);
    if (!callback || flags)
        return CUDA_ERROR_INVALID_VALUE;
    sim_op_t op = {.kind = SIM_OP_CALLBACK, .u.callback = {callback, userData, hStream}};
    return sim_submit(context, hStream, &op, false, SIM_GO_ON);
}

// ---- Memory operations in a stream -------------------------------------------------------------------------------

static CUresult value_check(sim_context_t *context, bool wait, uint64_t address, uint32_t bytes, unsigned flags) {
    if (address & (bytes - 1))
        return CUDA_ERROR_INVALID_VALUE;
    if (wait ? (flags & ~(3u | (unsigned)CU_STREAM_WAIT_VALUE_FLUSH)) != 0 : flags > 1)
        return CUDA_ERROR_INVALID_VALUE;
    if (wait && (flags & CU_STREAM_WAIT_VALUE_FLUSH))
        return CUDA_ERROR_NOT_SUPPORTED; // attribute CAN_FLUSH_REMOTE_WRITES is 0
    pthread_rwlock_rdlock(&sim.map_lock);
    CUresult result = sim_map_check(address, bytes, context->device, ~0u, !wait);
    sim_range_t *range = sim_map_find(address);
    if (range && (range->pool || range->of_graph))
        result = CUDA_ERROR_INVALID_VALUE; // the driver takes no memory of pools, nor of graphs
    pthread_rwlock_unlock(&sim.map_lock);
    return result == CUDA_ERROR_INVALID_VALUE ? result : CUDA_SUCCESS;
}

static CUresult value_op(sim_context_t *context, CUstream stream, bool wait, uint64_t address, uint64_t value,
                         uint32_t bytes, unsigned flags) {
    CUresult result = value_check(context, wait, address, bytes, flags);
    if (result != CUDA_SUCCESS)
        return result;
    sim_op_t op = {.kind = wait ? SIM_OP_WAIT_VALUE : SIM_OP_WRITE_VALUE, .u.value = {address, value, bytes, flags}};
    return sim_submit(context, stream, &op, false, SIM_GO_ON);
}

CUresult cuStreamWriteValue32_v2(CUstream stream, CUdeviceptr addr, cuuint32_t value, unsigned int flags) {
    SIM_ENTER_STREAM(context, stream);
    return value_op(context, stream, false, addr, value, 4, flags);
}

CUresult cuStreamWriteValue64_v2(CUstream stream, CUdeviceptr addr, cuuint64_t value, unsigned int flags) {
    SIM_ENTER_STREAM(context, stream);
    return value_op(context, stream, false, addr, value, 8, flags);
}

CUresult cuStreamWaitValue32_v2(CUstream stream, CUdeviceptr addr, cuuint32_t value, unsigned int flags) {
    SIM_ENTER_STREAM(context, stream);
    return value_op(context, stream, true, addr, value, 4, flags);
}

CUresult cuStreamWaitValue64_v2(CUstream stream, CUdeviceptr addr, cuuint64_t value, unsigned int flags) {
    SIM_ENTER_STREAM(context, stream);
    return value_op(context, stream, true, addr, value, 8, flags);
}

bool sim_batch_value(const CUstreamBatchMemOpParams *p, sim_op_t *op, bool *wait) {
    bool small = p->operation == CU_STREAM_MEM_OP_WAIT_VALUE_32 || p->operation == CU_STREAM_MEM_OP_WRITE_VALUE_32;
    *wait = p->operation == CU_STREAM_MEM_OP_WAIT_VALUE_32 || p->operation == CU_STREAM_MEM_OP_WAIT_VALUE_64;
    if (!small && !*wait && p->operation != CU_STREAM_MEM_OP_WRITE_VALUE_64)
        return false;
    op->u.value.address = *wait ? p->waitValue.address : p->writeValue.address;
    op->u.value.value = small ? (*wait ? p->waitValue.value : p->writeValue.value)
                              : (*wait ? p->waitValue.value64 : p->writeValue.value64);
    op->u.value.bytes = small ? 4 : 8;
    op->u.value.flags = *wait ? p->waitValue.flags : p->writeValue.flags;
    return true;
}

CUresult sim_batch_op(sim_context_t *context, unsigned count, const CUstreamBatchMemOpParams *list, sim_op_t *batch) {
    CUresult result = count < 256 && (list || !count) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    for (unsigned i = 0; result == CUDA_SUCCESS && i < count; i++) {
        sim_op_t op = {.kind = SIM_OP_NOP};
        bool wait;
        if (sim_batch_value(&list[i], &op, &wait))
            result = value_check(context, wait, op.u.value.address, op.u.value.bytes, op.u.value.flags);
        else if (list[i].operation == CU_STREAM_MEM_OP_FLUSH_REMOTE_WRITES)
            result = CUDA_ERROR_NOT_SUPPORTED;
        else if (list[i].operation != CU_STREAM_MEM_OP_BARRIER) // for which every operation here is ordered already
            result = CUDA_ERROR_INVALID_VALUE;
    }
    *batch = (sim_op_t){.kind = SIM_OP_BATCH, .u.batch = {count, NULL}};
    if (result == CUDA_SUCCESS) {
        batch->u.batch.list = malloc((count + 1) * sizeof *list);
        if (!batch->u.batch.list)
            return CUDA_ERROR_OUT_OF_MEMORY;
        if (count)
            memcpy(batch->u.batch.list, list, count * sizeof *list);
    }
    return result;
}

CUresult cuStreamBatchMemOp_v2(CUstream stream, unsigned int count, CUstreamBatchMemOpParams *paramArray,
                               unsigned int flags) {
    SIM_ENTER_STREAM(context, stream);
    sim_op_t op;
    CUresult result = flags ? CUDA_ERROR_INVALID_VALUE : sim_batch_op(context, count, paramArray, &op);
    return result == CUDA_SUCCESS ? sim_submit(context, stream, &op, false, SIM_GO_ON) : result;
}

// The first forms: CU_DEVICE_ATTRIBUTE_CAN_USE_STREAM_MEM_OPS_V1 is 0, and nothing but the stream and the count is looked at.
static CUresult first_form(CUstream stream, unsigned count) {
    SIM_ENTER_STREAM(context, stream);
    SIM_UNSAFE();
    CUresult result = sim_capture_bars(context, stream);
    if (result == CUDA_SUCCESS)
        result = count < 256 ? CUDA_ERROR_NOT_SUPPORTED : CUDA_ERROR_INVALID_VALUE;
    return result;
}

#define FIRST_FORM(name, word)                                                                                         \
    CUresult name(CUstream stream, CUdeviceptr addr, word value, unsigned int flags) {                                 \
        (void)addr, (void)value, (void)flags;                                                                          \
        return first_form(stream, 1);                                                                                  \
    }
FIRST_FORM(cuStreamWaitValue32, cuuint32_t)
FIRST_FORM(cuStreamWriteValue32, cuuint32_t)
FIRST_FORM(cuStreamWaitValue64, cuuint64_t)
FIRST_FORM(cuStreamWriteValue64, cuuint64_t)

CUresult cuStreamBatchMemOp(CUstream stream, unsigned int count, CUstreamBatchMemOpParams *paramArray,
                            unsigned int flags) {
    (void)paramArray, (void)flags;
    return first_form(stream, count);
}
