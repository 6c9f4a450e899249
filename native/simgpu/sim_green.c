// Green contexts: shares of a device's multiprocessors, and contexts that work on such a share.
//
// A resource is a struct that the program copies about; what the driver has in its hidden bytes (a pointer among them) is
// checked here as far as it can be: whoever hands on bytes that he did not get from here meets a driver that follows
// them. A green context is a context with streams of its own; memory, modules, events and arrays belong to the primary
// context of its device, which lives as long. All under sim.lock. Numbers are those of an H200 (580.159.04, measured).
#include "sim_graph.h"

#include <stdlib.h>
#include <string.h>

#define SM_COUNT 132u
#define SM_LEAST 8u // multiprocessors in a share, and what its size is a multiple of
#define SM_FINE 2u  // of one whose blocks need not run beside each other in clusters

// Where things lie in the hidden bytes; their places are the driver's, their meaning is this file's.
enum { AT_DEVICE = 4, AT_SUM = 16, AT_FIRST = 20, AT_COUNT = 24, AT_WHOLE = 87 };

typedef struct {
    CUdevice device;
    unsigned first, count;
} desc_t;

typedef struct {
    uint64_t unused; // the handle of a green context is not that of its context
    sim_context_t context;
    unsigned first, count;
} green_t;

// ---- resources ---------------------------------------------------------------------------------------------------

static uint32_t sum_of(const CUdevResource *r) {
    uint32_t sum = 2166136261u ^ r->sm.smCount;
    for (size_t i = 0; i < sizeof r->_internal_padding; i++)
        if (i < AT_SUM || i >= AT_SUM + sizeof sum)
            sum = (sum ^ r->_internal_padding[i]) * 16777619u;
    return sum;
}

static CUdevResource resource_of(const sim_device_t *device, unsigned first, unsigned count, bool whole) {
    CUdevResource r;
    memset(&r, 0, sizeof r);
    r.type = CU_DEV_RESOURCE_TYPE_SM;
    r.sm.smCount = count;
    memcpy(r._internal_padding + AT_DEVICE, &device, sizeof device);
    memcpy(r._internal_padding + AT_FIRST, &first, sizeof first);
    memcpy(r._internal_padding + AT_COUNT, &count, sizeof count);
    r._internal_padding[AT_WHOLE] = whole;
    const uint32_t sum = sum_of(&r);
    memcpy(r._internal_padding + AT_SUM, &sum, sizeof sum);
    return r;
}

// What a resource of the caller stands for.
static CUresult read_resource(const CUdevResource *r, desc_t *out) {
    const sim_device_t *device;
    uint32_t sum;
    if (r->type != CU_DEV_RESOURCE_TYPE_SM)
        return CUDA_ERROR_INVALID_RESOURCE_TYPE;
    memcpy(&device, r->_internal_padding + AT_DEVICE, sizeof device);
    memcpy(&sum, r->_internal_padding + AT_SUM, sizeof sum);
    memcpy(&out->first, r->_internal_padding + AT_FIRST, sizeof out->first);
    memcpy(&out->count, r->_internal_padding + AT_COUNT, sizeof out->count);
    out->device = 0;
    while (out->device < sim.ndevices && device != &sim.devices[out->device])
        out->device++;
    sim_dangles(device && out->device == sim.ndevices, "a resource that the driver did not make");
    const bool made = out->device < sim.ndevices && sum == sum_of(r);
    return made ? CUDA_SUCCESS : CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION;
}

static CUresult question(const CUdevResource *resource, CUdevResourceType type) {
    return !resource ? CUDA_ERROR_INVALID_VALUE
                     : (type == CU_DEV_RESOURCE_TYPE_SM ? CUDA_SUCCESS : CUDA_ERROR_INVALID_RESOURCE_TYPE);
}

static CUdevResource with_steps(CUdevResource r) {
    r.sm.minSmPartitionSize = SM_LEAST;
    r.sm.smCoscheduledAlignment = SM_LEAST;
    const uint32_t sum = sum_of(&r);
    memcpy(r._internal_padding + AT_SUM, &sum, sizeof sum);
    return r;
}

CUresult cuDeviceGetDevResource(CUdevice device, CUdevResource *resource, CUdevResourceType type) {
    SIM_ENTER();
    if (!resource)
        return CUDA_ERROR_INVALID_VALUE;
    if (!sim_device_ok(device))
        return CUDA_ERROR_INVALID_DEVICE;
    const CUresult result = question(resource, type);
    if (result == CUDA_SUCCESS)
        *resource = with_steps(resource_of(&sim.devices[device], 0, SM_COUNT, true));
    return result;
}

// What a device or a green context has can be split, and not what comes of it.
CUresult cuDevSmResourceSplitByCount(CUdevResource *result, unsigned int *nbGroups, const CUdevResource *input,
                                     CUdevResource *remaining, unsigned int useFlags, unsigned int minCount) {
    SIM_ENTER();
    desc_t whole;
    const unsigned fine = CU_DEV_SM_RESOURCE_SPLIT_IGNORE_SM_COSCHEDULING, large = useFlags & ~fine;
    if (!nbGroups || !input || (result && !*nbGroups))
        return CUDA_ERROR_INVALID_VALUE;
    CUresult known = read_resource(input, &whole);
    if (known == CUDA_SUCCESS && (useFlags & fine) && large)
        known = CUDA_ERROR_INVALID_VALUE;
    if (known == CUDA_SUCCESS && (!input->_internal_padding[AT_WHOLE] || minCount > whole.count))
        known = CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION;
    if (known != CUDA_SUCCESS)
        return known;
    const unsigned step = useFlags & fine ? SM_FINE : SM_LEAST;
    const unsigned wanted = minCount ? minCount : step;
    const unsigned size = (wanted + step - 1) / step * step;
    unsigned most = whole.count / size;
    if (whole.count == SM_COUNT && size == SM_LEAST && step == SM_LEAST)
        most--; // an H200 makes 15 of the whole device (580.159.04, asked)
    if (!most)
        return CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION;
    if (!result || *nbGroups > most)
        *nbGroups = most;
    const sim_device_t *device = &sim.devices[whole.device];
    for (unsigned i = 0; result && i < *nbGroups; i++)
        result[i] = resource_of(device, whole.first + i * size, size, false);
    if (result && remaining)
        *remaining = resource_of(device, whole.first + *nbGroups * size, whole.count - *nbGroups * size, false);
    return CUDA_SUCCESS;
}

// There is no end of one.
CUresult cuDevResourceGenerateDesc(CUdevResourceDesc *phDesc, CUdevResource *resources, unsigned int nbResources) {
    SIM_ENTER();
    desc_t all = {.count = 0}, one;
    if (!phDesc || !resources || !nbResources)
        return CUDA_ERROR_INVALID_VALUE;
    for (unsigned i = 0; i < nbResources; i++) {
        CUresult known = read_resource(&resources[i], &one);
        if (known == CUDA_SUCCESS && i && one.device != all.device)
            known = CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION;
        if (known != CUDA_SUCCESS)
            return known;
        all = (desc_t){one.device, all.first, all.count + one.count};
    }
    desc_t *desc = malloc(sizeof *desc);
    pthread_mutex_lock(&sim.lock);
    const bool added = desc && sim_handle_add(desc, SIM_DEVDESC);
    pthread_mutex_unlock(&sim.lock);
    if (!added) {
        free(desc);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *desc = all;
    *phDesc = (CUdevResourceDesc)(void *)desc;
    return CUDA_SUCCESS;
}

// ---- contexts ----------------------------------------------------------------------------------------------------

// One that was destroyed stays known.
static CUresult green_of(CUgreenCtx handle, green_t **out) {
    if (!handle)
        return CUDA_ERROR_INVALID_CONTEXT;
    pthread_mutex_lock(&sim.lock);
    *out = sim_handle_is(handle, SIM_GREEN) ? (green_t *)(void *)handle : NULL;
    pthread_mutex_unlock(&sim.lock);
    return *out && (*out)->context.active ? CUDA_SUCCESS : CUDA_ERROR_CONTEXT_IS_DESTROYED;
}

CUgreenCtx sim_green_handle(sim_context_t *context) {
    return context->base ? (CUgreenCtx)(void *)((char *)context - offsetof(green_t, context)) : NULL;
}

// What a context handle names, which may be a green context's.
static CUresult context_of(CUcontext handle, sim_context_t **out) {
    if (!handle)
        return CUDA_ERROR_INVALID_CONTEXT;
    pthread_mutex_lock(&sim.lock);
    *out = sim_handle_is(handle, SIM_CONTEXT) ? (sim_context_t *)(void *)handle : NULL;
    pthread_mutex_unlock(&sim.lock);
    if (!*out)
        return CUDA_ERROR_INVALID_CONTEXT;
    return (*out)->active ? CUDA_SUCCESS : CUDA_ERROR_CONTEXT_IS_DESTROYED;
}

static CUresult start(green_t *green, sim_context_t *base) { // under sim.lock
    sim_context_t *context = &green->context;
    context->base = base;
    context->device = base->device;
    context->flags = CU_CTX_MAP_HOST;
    context->api_version = 3020;
    context->id = sim.next_context_id++;
    context->cache_config = CU_FUNC_CACHE_PREFER_NONE;
    memcpy(context->limits, base->limits, sizeof context->limits);
    context->lots = 0;
    CUresult result = sim_stream_new(context, CU_STREAM_DEFAULT, 0, &context->legacy);
    const bool named = result == CUDA_SUCCESS && sim_handle_add(green, SIM_GREEN);
    if (named && sim_handle_add(context, SIM_CONTEXT)) {
        context->active = true;
        context->next = sim.contexts;
        sim.contexts = context;
        return CUDA_SUCCESS;
    }
    if (named)
        sim_handle_remove(green);
    if (context->legacy)
        sim_stream_unlink(context->legacy);
    return result == CUDA_SUCCESS ? CUDA_ERROR_OUT_OF_MEMORY : result;
}

CUresult cuGreenCtxCreate(CUgreenCtx *phCtx, CUdevResourceDesc desc, CUdevice dev, unsigned int flags) {
    SIM_ENTER();
    if (!phCtx || flags != CU_GREEN_CTX_DEFAULT_STREAM)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&sim.lock);
    // Without a description it has the whole device (580.159.04, measured).
    const bool known =
        sim_device_ok(dev) &&
        (!desc || (sim_handle_is(desc, SIM_DEVDESC) && ((const desc_t *)(const void *)desc)->device == dev));
    const desc_t share = known && desc ? *(const desc_t *)(const void *)desc : (desc_t){.count = SM_COUNT};
    pthread_mutex_unlock(&sim.lock);
    if (!known)
        return CUDA_ERROR_INVALID_DEVICE;
    CUcontext primary;
    CUresult result = cuDevicePrimaryCtxRetain(&primary, dev);
    green_t *green = result == CUDA_SUCCESS ? calloc(1, sizeof *green) : NULL;
    if (result != CUDA_SUCCESS)
        return result;
    pthread_mutex_lock(&sim.lock);
    result = green ? start(green, &sim.devices[dev].primary) : CUDA_ERROR_OUT_OF_MEMORY;
    pthread_mutex_unlock(&sim.lock);
    if (result != CUDA_SUCCESS) {
        free(green);
        cuDevicePrimaryCtxRelease_v2(dev);
        return result;
    }
    green->first = share.first;
    green->count = share.count;
    *phCtx = sim_green_handle(&green->context);
    return CUDA_SUCCESS;
}

// Its streams stay known by name: whatever is asked of them answers that their context is gone.
void sim_green_stop(sim_context_t *context) {
    pthread_mutex_lock(&sim.lock);
    if (context->active) {
        context->active = false;
        atomic_store(&context->killed, true);
        sim_context_drain(context);
        context->legacy = context->aside = NULL;
        while (context->streams) {
            sim_stream_t *stream = context->streams;
            const bool named = stream->handle;
            stream->refs += named;
            sim_stream_unlink(stream);
            if (named && !sim_handle_add(stream, SIM_STREAM))
                sim_complain("no memory for the name of a stream that has ended");
        }
        sim_queues_end(context);
    }
    pthread_mutex_unlock(&sim.lock);
}

CUresult cuGreenCtxDestroy(CUgreenCtx hCtx) {
    SIM_ENTER();
    green_t *green;
    CUresult result = green_of(hCtx, &green);
    if (result != CUDA_SUCCESS)
        return result;
    sim_green_stop(&green->context);
    return cuDevicePrimaryCtxRelease_v2(green->context.device);
}

CUresult cuCtxFromGreenCtx(CUcontext *pContext, CUgreenCtx hCtx) {
    SIM_ENTER();
    green_t *green;
    CUresult result = pContext ? green_of(hCtx, &green) : CUDA_ERROR_INVALID_VALUE;
    if (result == CUDA_SUCCESS)
        *pContext = (CUcontext)(void *)&green->context;
    return result;
}

CUresult cuGreenCtxGetId(CUgreenCtx greenCtx, unsigned long long *greenCtxId) {
    SIM_ENTER();
    green_t *green;
    CUresult result = greenCtxId ? green_of(greenCtx, &green) : CUDA_ERROR_INVALID_VALUE;
    if (result == CUDA_SUCCESS)
        *greenCtxId = green->context.id;
    return result;
}

static green_t *green_with(sim_context_t *context) { return (green_t *)(void *)sim_green_handle(context); }

unsigned sim_multiprocessors(sim_context_t *context) { return context->base ? green_with(context)->count : SM_COUNT; }

static CUdevResource share_of(sim_context_t *context) {
    const unsigned first = context->base ? green_with(context)->first : 0;
    return with_steps(resource_of(&sim.devices[context->device], first, sim_multiprocessors(context), true));
}

CUresult cuCtxGetDevResource(CUcontext hCtx, CUdevResource *resource, CUdevResourceType type) {
    SIM_ENTER();
    sim_context_t *context;
    CUresult result = question(resource, type);
    if (result == CUDA_SUCCESS)
        result = context_of(hCtx, &context);
    if (result == CUDA_SUCCESS)
        *resource = share_of(context);
    return result;
}

CUresult cuGreenCtxGetDevResource(CUgreenCtx hCtx, CUdevResource *resource, CUdevResourceType type) {
    SIM_ENTER();
    green_t *green;
    CUresult result = question(resource, type);
    if (result == CUDA_SUCCESS)
        result = green_of(hCtx, &green);
    if (result == CUDA_SUCCESS)
        *resource = share_of(&green->context);
    return result;
}

// ---- streams -----------------------------------------------------------------------------------------------------

CUresult cuGreenCtxStreamCreate(CUstream *phStream, CUgreenCtx greenCtx, unsigned int flags, int priority) {
    SIM_ENTER();
    green_t *green;
    CUresult result = phStream ? green_of(greenCtx, &green) : CUDA_ERROR_INVALID_VALUE;
    if (result == CUDA_SUCCESS && flags != CU_STREAM_NON_BLOCKING)
        result = CUDA_ERROR_INVALID_VALUE;
    return result == CUDA_SUCCESS ? sim_stream_create(&green->context, phStream, flags, priority) : result;
}

CUresult cuStreamGetGreenCtx(CUstream hStream, CUgreenCtx *phCtx) {
    SIM_ENTER_STREAM(context, hStream);
    if (!phCtx)
        return CUDA_ERROR_INVALID_VALUE;
    if (!context)
        return CUDA_ERROR_INVALID_CONTEXT;
    sim_stream_t *stream;
    pthread_mutex_lock(&sim.lock);
    CUresult result = sim_stream_resolve(context, hStream, &stream);
    if (result == CUDA_SUCCESS)
        *phCtx = sim_green_handle(stream->context);
    pthread_mutex_unlock(&sim.lock);
    return result;
}

// ---- events of whole contexts ------------------------------------------------------------------------------------

// The context itself, and with a primary one its green contexts.
static bool concerns(const sim_context_t *context, const sim_context_t *other) {
    return other->active && (other == context || other->base == context);
}

// A stream of nobody's: what a whole context waits for, or has done, is a place in it.
static CUresult aside_of(sim_context_t *context, sim_stream_t **out) {
    CUresult result =
        context->aside ? CUDA_SUCCESS : sim_stream_new(context, CU_STREAM_NON_BLOCKING, 0, &context->aside);
    *out = context->aside;
    return result;
}

bool sim_green_gate(sim_op_t *op, const sim_stream_t *stream) {
    bool ok = true;
    for (sim_context_t *context = stream->context; ok && context; context = context->base)
        if (context->aside && context->aside != stream)
            ok = sim_stream_depend(op, context->aside, context->gate);
    return ok;
}

static CUresult untouched(sim_context_t *context) {
    CUresult result = CUDA_SUCCESS;
    for (sim_context_t *other = sim.contexts; other; other = other->next)
        if (concerns(context, other) && sim_capture_touch_context(other) != CUDA_SUCCESS)
            result = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    return result;
}

static CUresult record(sim_context_t *context, CUevent handle) {
    sim_stream_t *aside;
    uint64_t seq;
    sim_event_t *event = sim_event_of(handle);
    if (!event || event->context != sim_home(context))
        return CUDA_ERROR_INVALID_HANDLE;
    CUresult result = untouched(context);
    if (result == CUDA_SUCCESS)
        result = aside_of(context, &aside);
    if (result != CUDA_SUCCESS)
        return result;
    sim_op_t op = {.kind = SIM_OP_RECORD, .u.event = event};
    bool ok = true, taken = false;
    for (sim_context_t *other = sim.contexts; other; other = other->next)
        for (sim_stream_t *stream = concerns(context, other) ? other->streams : NULL; ok && stream;
             stream = stream->next)
            ok = stream == aside || sim_stream_depend(&op, stream, stream->enqueued);
    if (!ok)
        return CUDA_ERROR_OUT_OF_MEMORY;
    result = sim_capture_record(aside, event, &taken); // which ends what it had been in a capture
    if (result != CUDA_SUCCESS)
        return result;
    event->refs++;
    return sim_stream_push(aside, &op, &seq);
}

static CUresult wait_for(sim_context_t *context, CUevent handle) {
    sim_stream_t *aside;
    sim_event_t *event = sim_event_of(handle);
    // Captures of the context come before the event, which a record looks at first (580.159.04, measured).
    CUresult result = untouched(context);
    if (result == CUDA_SUCCESS && !event)
        result = CUDA_ERROR_INVALID_HANDLE;
    if (result == CUDA_SUCCESS && event->capture)
        result = sim_capture_touch_event(event);
    if (result == CUDA_ERROR_CAPTURED_EVENT)
        result = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (result == CUDA_SUCCESS)
        result = aside_of(context, &aside);
    if (result != CUDA_SUCCESS || (event->page ? sim_ipc_event_over(event) : !event->stream))
        return result;
    sim_op_t op = {.kind = SIM_OP_NOP};
    uint64_t seq;
    if (event->page) {
        op = (sim_op_t){.kind = SIM_OP_WAIT_IPC, .u = {.event = event, .number = sim_ipc_event_last(event)}};
        event->refs++;
    } else if (!sim_stream_depend(&op, event->stream, event->seq)) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    result = sim_stream_push(aside, &op, &seq);
    if (result == CUDA_SUCCESS)
        context->gate = seq;
    return result;
}

static CUresult with_event(sim_context_t *context, CUevent event, CUresult (*what)(sim_context_t *, CUevent)) {
    pthread_mutex_lock(&sim.lock);
    CUresult result = context->active ? what(context, event) : CUDA_ERROR_CONTEXT_IS_DESTROYED;
    pthread_mutex_unlock(&sim.lock);
    return result;
}

static CUresult of_context(CUcontext handle, CUevent event, CUresult (*what)(sim_context_t *, CUevent)) {
    sim_context_t *context;
    CUresult result = context_of(handle, &context);
    return result == CUDA_SUCCESS ? with_event(context, event, what) : result;
}

static CUresult of_green(CUgreenCtx handle, CUevent event, CUresult (*what)(sim_context_t *, CUevent)) {
    green_t *green;
    CUresult result = green_of(handle, &green);
    return result == CUDA_SUCCESS ? with_event(&green->context, event, what) : result;
}

CUresult cuCtxRecordEvent(CUcontext hCtx, CUevent hEvent) {
    SIM_ENTER();
    return of_context(hCtx, hEvent, record);
}

CUresult cuCtxWaitEvent(CUcontext hCtx, CUevent hEvent) {
    SIM_ENTER();
    return of_context(hCtx, hEvent, wait_for);
}

CUresult cuGreenCtxRecordEvent(CUgreenCtx hCtx, CUevent hEvent) {
    SIM_ENTER();
    return of_green(hCtx, hEvent, record);
}

CUresult cuGreenCtxWaitEvent(CUgreenCtx hCtx, CUevent hEvent) {
    SIM_ENTER();
    return of_green(hCtx, hEvent, wait_for);
}
