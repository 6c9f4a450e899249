// Contexts: primary ones, created ones, and each thread's stack of current contexts.
//
// Context structures are never freed, so that a stale handle is recognised and not dereferenced into something else.
// The current-context stack belongs to its thread alone; all else is under sim.lock. Stopping a context ends its
// queues, then frees its memory, modules and events. A sticky error breaks every context of the process on that device
// at once, until the process ends: contexts can be ended then, and none be made (580.159.04, measured).
#include "sim_graph.h"

#include <stdlib.h>
#include <string.h>

static _Thread_local sim_context_t *stack[SIM_MAX_CONTEXT_STACK];
static _Thread_local unsigned depth;

sim_context_t *sim_current(void) { return depth ? stack[depth - 1] : NULL; }

bool sim_device_ok(CUdevice device) { return device >= 0 && device < sim.ndevices; }

bool sim_device_reaches(int device, int other) { return device == other || !sim.no_peers; }

void sim_context_fail(sim_context_t *context, CUresult error) {
    int none = 0;
    if (atomic_compare_exchange_strong(&sim.devices[context->device].error, &none, (int)error))
        sim_nvml_broken(context->device, error);
}

CUresult sim_context_error(const sim_context_t *context) {
    return (CUresult)atomic_load_explicit(&sim.devices[context->device].error, memory_order_relaxed);
}

CUresult sim_context_start(sim_context_t *context, int device, unsigned flags, unsigned api_version) {
    sim_device_t *owner = &sim.devices[device];
    int broken = atomic_load(&owner->error);
    if (broken)
        return (CUresult)broken;
    pthread_rwlock_wrlock(&sim.map_lock);
    bool fits = owner->total - owner->used >= SIM_CONTEXT_BYTES;
    if (fits)
        owner->used += SIM_CONTEXT_BYTES;
    pthread_rwlock_unlock(&sim.map_lock);
    if (!fits)
        return CUDA_ERROR_OUT_OF_MEMORY;
    if (!context->primary) // that of a primary context never changes, and other threads may be reading it
        context->device = device;
    context->flags = flags;
    context->api_version = api_version;
    context->id = sim.next_context_id++;
    context->cache_config = CU_FUNC_CACHE_PREFER_NONE;
    context->peers = 0;
    memcpy(context->limits, sim_limits_h200, sizeof context->limits);
    context->lots = 0;
    atomic_store(&context->killed, false);
    CUresult result = sim_stream_new(context, CU_STREAM_DEFAULT, 0, &context->legacy);
    if (result != CUDA_SUCCESS) {
        pthread_rwlock_wrlock(&sim.map_lock);
        owner->used -= SIM_CONTEXT_BYTES;
        pthread_rwlock_unlock(&sim.map_lock);
        return result;
    }
    context->active = true;
    return CUDA_SUCCESS;
}

// A driver waits for what is queued (580.159.04, measured with a host function and a kernel behind it). What never ends is
// cut off here, so that whoever tests with it comes back.
static void let_end(const sim_context_t *context) {
    const uint64_t until = sim_now_ns() + 1000000000ull;
    for (bool busy = true; busy && sim_now_ns() < until;) {
        busy = false;
        for (const sim_stream_t *stream = context->streams; stream; stream = stream->next)
            busy = busy || stream->done != stream->enqueued;
        pthread_mutex_unlock(&sim.lock);
        if (busy)
            nanosleep(&(struct timespec){0, 100000}, NULL);
        pthread_mutex_lock(&sim.lock);
    }
}

void sim_context_stop(sim_context_t *context) {
    for (sim_context_t *other = sim.contexts; other; other = other->next)
        if (other->base == context)
            sim_green_stop(other);
    pthread_mutex_lock(&sim.lock);
    if (!context->active) {
        pthread_mutex_unlock(&sim.lock);
        return;
    }
    context->active = false;
    let_end(context);
    atomic_store(&context->killed, true);
    sim_context_drain(context);
    while (context->events) {
        sim_event_t *event = context->events;
        context->events = event->next;
        if (event->next)
            event->next->link = &context->events;
        event->link = NULL;
        sim_event_orphan(event);
    }
    while (context->streams)
        sim_stream_unlink(context->streams);
    context->legacy = context->aside = NULL;
    sim_queues_end(context);
    while (context->modules)
        sim_module_delete(context->modules);
    pthread_rwlock_wrlock(&sim.map_lock);
    for (size_t i = sim.nranges; i-- > 0;) {
        sim_range_t *range = sim.ranges[i];
        if (range->context == context && range->kind != SIM_RANGE_VMM)
            sim_range_release(range);
    }
    sim.devices[context->device].used -= SIM_CONTEXT_BYTES;
    pthread_rwlock_unlock(&sim.map_lock);
    pthread_mutex_unlock(&sim.lock);
    sim_print_show();
}

static sim_context_t *checked(CUcontext handle) { // under sim.lock
    return sim_handle_is(handle, SIM_CONTEXT) ? (sim_context_t *)(void *)handle : NULL;
}

// One that was destroyed, too.
static CUresult lookup_ever(CUcontext handle, sim_context_t **out) {
    pthread_mutex_lock(&sim.lock);
    *out = checked(handle);
    pthread_mutex_unlock(&sim.lock);
    return *out ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}

static CUresult lookup(CUcontext handle, sim_context_t **out) {
    CUresult result = lookup_ever(handle, out);
    return result == CUDA_SUCCESS && !(*out)->active ? CUDA_ERROR_CONTEXT_IS_DESTROYED : result;
}

// NULL means the current context.
static CUresult lookup_or_current(CUcontext handle, sim_context_t **out) {
    if (handle)
        return lookup(handle, out);
    *out = sim_current();
    if (!*out)
        return CUDA_ERROR_INVALID_CONTEXT;
    return (*out)->active ? CUDA_SUCCESS : CUDA_ERROR_CONTEXT_IS_DESTROYED;
}

// The same for what is told of a context that was destroyed, too (580.159.04, measured).
static CUresult lookup_or_current_ever(CUcontext handle, sim_context_t **out) {
    if (handle)
        return lookup_ever(handle, out);
    *out = sim_current();
    return *out ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}

static bool flags_ok(unsigned flags) {
    unsigned schedule = flags & CU_CTX_SCHED_MASK;
    return !(flags & ~(unsigned)CU_CTX_FLAGS_MASK) && (schedule <= 2 || schedule == 4);
}

// ---- Primary contexts --------------------------------------------------------------------------------------------

CUresult cuDevicePrimaryCtxRetain(CUcontext *pctx, CUdevice dev) {
    SIM_ENTER();
    if (!pctx)
        return CUDA_ERROR_INVALID_VALUE;
    if (!sim_device_ok(dev))
        return CUDA_ERROR_INVALID_DEVICE;
    sim_context_t *context = &sim.devices[dev].primary;
    CUresult result = CUDA_SUCCESS;
    pthread_mutex_lock(&sim.lock);
    if (!context->active)
        result = sim_context_start(context, dev, sim.devices[dev].primary_flags | CU_CTX_MAP_HOST, 3020);
    if (result == CUDA_SUCCESS) {
        context->retains++;
        *pctx = (CUcontext)(void *)context;
    }
    pthread_mutex_unlock(&sim.lock);
    return result;
}

// The first form has nothing against a context that nobody retains.
static CUresult primary_release(CUdevice dev, CUresult unheld) {
    if (!sim_device_ok(dev))
        return CUDA_ERROR_INVALID_DEVICE;
    sim_context_t *context = &sim.devices[dev].primary;
    pthread_mutex_lock(&sim.lock);
    bool held = context->retains > 0;
    bool last = held && --context->retains == 0;
    pthread_mutex_unlock(&sim.lock);
    if (!held)
        return unheld;
    if (last)
        sim_context_stop(context);
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRelease(CUdevice dev) {
    SIM_ENTER();
    return primary_release(dev, CUDA_SUCCESS);
}

CUresult cuDevicePrimaryCtxRelease_v2(CUdevice dev) {
    SIM_ENTER();
    return primary_release(dev, CUDA_ERROR_INVALID_CONTEXT);
}

static CUresult primary_reset(CUdevice dev) {
    if (!sim_device_ok(dev))
        return CUDA_ERROR_INVALID_DEVICE;
    bool green = false; // one lives (580.159.04, measured)
    pthread_mutex_lock(&sim.lock);
    for (const sim_context_t *other = sim.contexts; other; other = other->next)
        green = green || (other->base == &sim.devices[dev].primary && other->active);
    pthread_mutex_unlock(&sim.lock);
    if (green)
        return CUDA_ERROR_NOT_PERMITTED;
    sim_context_stop(&sim.devices[dev].primary); // who retained it has still to release it
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxReset(CUdevice dev) {
    SIM_ENTER();
    return primary_reset(dev);
}

CUresult cuDevicePrimaryCtxReset_v2(CUdevice dev) {
    SIM_ENTER();
    return primary_reset(dev);
}

static CUresult primary_set_flags(CUdevice dev, unsigned flags, bool active_too) {
    if (!sim_device_ok(dev))
        return CUDA_ERROR_INVALID_DEVICE;
    if (!flags_ok(flags))
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&sim.lock);
    const bool may = active_too || !sim.devices[dev].primary.active;
    if (may) {
        sim.devices[dev].primary_flags = flags;
        sim.devices[dev].primary.flags = flags | CU_CTX_MAP_HOST;
    }
    pthread_mutex_unlock(&sim.lock);
    return may ? CUDA_SUCCESS : CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE;
}

CUresult cuDevicePrimaryCtxSetFlags(CUdevice dev, unsigned int flags) {
    SIM_ENTER();
    return primary_set_flags(dev, flags, false);
}

CUresult cuDevicePrimaryCtxSetFlags_v2(CUdevice dev, unsigned int flags) {
    SIM_ENTER();
    return primary_set_flags(dev, flags, true); // since CUDA 11
}

CUresult cuDevicePrimaryCtxGetState(CUdevice dev, unsigned int *flags, int *active) {
    SIM_ENTER();
    if (!flags || !active)
        return CUDA_ERROR_INVALID_VALUE;
    if (!sim_device_ok(dev))
        return CUDA_ERROR_INVALID_DEVICE;
    pthread_mutex_lock(&sim.lock);
    *flags = sim.devices[dev].primary_flags;
    *active = sim.devices[dev].primary.active;
    pthread_mutex_unlock(&sim.lock);
    return CUDA_SUCCESS;
}

// ---- Created contexts --------------------------------------------------------------------------------------------

static CUresult context_create(CUcontext *pctx, unsigned flags, CUdevice dev, unsigned version) {
    if (!pctx || !flags_ok(flags))
        return CUDA_ERROR_INVALID_VALUE;
    if (!sim_device_ok(dev))
        return CUDA_ERROR_INVALID_DEVICE;
    if (depth == SIM_MAX_CONTEXT_STACK)
        return CUDA_ERROR_OUT_OF_MEMORY;
    sim_context_t *context = calloc(1, sizeof *context);
    if (!context)
        return CUDA_ERROR_OUT_OF_MEMORY;
    pthread_mutex_lock(&sim.lock);
    CUresult result = sim_handle_add(context, SIM_CONTEXT) ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
    if (result == CUDA_SUCCESS) {
        result = sim_context_start(context, dev, flags, version);
        if (result != CUDA_SUCCESS)
            sim_handle_remove(context);
    }
    if (result == CUDA_SUCCESS) {
        context->next = sim.contexts;
        sim.contexts = context;
        stack[depth++] = context;
        *pctx = (CUcontext)(void *)context;
    } else {
        free(context);
    }
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult cuCtxCreate_v2(CUcontext *pctx, unsigned int flags, CUdevice dev) {
    SIM_ENTER();
    return context_create(pctx, flags, dev, 3020);
}

// The driver makes it where no other context has taken the addresses of 32 bits, and else finds no memory.
CUresult cuCtxCreate(CUcontext *pctx, unsigned int flags, CUdevice dev) {
    SIM_ENTER();
    return context_create(pctx, flags, dev, 3010);
}

// No MPS here: there are no shares of the multiprocessors. A number below 0 says that there are no parameters (580.159.04, measured).
CUresult cuCtxCreate_v3(CUcontext *pctx, CUexecAffinityParam *paramsArray, int numParams, unsigned int flags,
                        CUdevice dev) {
    SIM_ENTER();
    if (numParams > 0)
        return paramsArray ? CUDA_ERROR_UNSUPPORTED_EXEC_AFFINITY : CUDA_ERROR_INVALID_VALUE;
    return context_create(pctx, flags, dev, 3020);
}

CUresult cuCtxCreate_v4(CUcontext *pctx, CUctxCreateParams *ctxCreateParams, unsigned int flags, CUdevice dev) {
    SIM_ENTER();
    if (!ctxCreateParams)
        return cuCtxCreate_v2(pctx, flags, dev);
    if (ctxCreateParams->cigParams)
        return CUDA_ERROR_NOT_SUPPORTED;
    return cuCtxCreate_v3(pctx, ctxCreateParams->execAffinityParams, ctxCreateParams->numExecAffinityParams, flags,
                          dev);
}

CUresult cuCtxDestroy_v2(CUcontext ctx) {
    SIM_ENTER();
    sim_context_t *context;
    CUresult result = ctx ? lookup(ctx, &context) : CUDA_ERROR_INVALID_VALUE;
    if (result == CUDA_ERROR_CONTEXT_IS_DESTROYED && sim_current() != context) // 580.159.04, asked
        result = CUDA_ERROR_INVALID_CONTEXT;
    if (result != CUDA_SUCCESS)
        return result;
    if (context->primary || context->base)
        return CUDA_ERROR_INVALID_CONTEXT;
    if (sim_current() == context)
        depth--;
    sim_context_stop(context);
    return CUDA_SUCCESS;
}

// Uses of the current context, as before CUDA 4. A primary one lives by its retains alone (580.159.04, measured).
CUresult cuCtxAttach(CUcontext *pctx, unsigned int flags) {
    SIM_ENTER();
    sim_context_t *context;
    CUresult result = lookup_or_current(NULL, &context);
    if (result == CUDA_SUCCESS && (!pctx || flags))
        result = CUDA_ERROR_INVALID_VALUE;
    if (result != CUDA_SUCCESS)
        return result;
    pthread_mutex_lock(&sim.lock);
    context->retains += !context->primary;
    pthread_mutex_unlock(&sim.lock);
    *pctx = (CUcontext)(void *)context;
    return CUDA_SUCCESS;
}

CUresult cuCtxDetach(CUcontext ctx) {
    SIM_ENTER();
    sim_context_t *context;
    if (!ctx || ctx != (CUcontext)(void *)sim_current())
        return CUDA_ERROR_INVALID_CONTEXT;
    CUresult result = lookup(ctx, &context);
    if (result != CUDA_SUCCESS || context->primary)
        return result;
    pthread_mutex_lock(&sim.lock);
    bool last = !context->retains;
    context->retains -= !last;
    pthread_mutex_unlock(&sim.lock);
    return last ? cuCtxDestroy_v2(ctx) : CUDA_SUCCESS;
}

// ---- The current context -----------------------------------------------------------------------------------------

CUresult cuCtxGetCurrent(CUcontext *pctx) {
    SIM_ENTER();
    if (!pctx)
        return CUDA_ERROR_INVALID_VALUE;
    *pctx = (CUcontext)(void *)sim_current();
    return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext ctx) {
    SIM_ENTER();
    if (!ctx) {
        if (depth)
            depth--;
        return CUDA_SUCCESS;
    }
    sim_context_t *context;
    CUresult result = lookup_ever(ctx, &context);
    if (result != CUDA_SUCCESS)
        return result;
    if (!depth)
        depth = 1;
    stack[depth - 1] = context;
    return CUDA_SUCCESS;
}

CUresult cuCtxPushCurrent_v2(CUcontext ctx) {
    SIM_ENTER();
    sim_context_t *context;
    CUresult result = ctx ? lookup_ever(ctx, &context) : CUDA_ERROR_INVALID_VALUE;
    if (result != CUDA_SUCCESS)
        return result;
    if (depth == SIM_MAX_CONTEXT_STACK)
        return CUDA_ERROR_OUT_OF_MEMORY;
    stack[depth++] = context;
    return CUDA_SUCCESS;
}

// The first form wants a context that is current nowhere; what other threads have is not looked at here.
CUresult cuCtxPushCurrent(CUcontext ctx) {
    SIM_ENTER();
    for (unsigned i = 0; i < depth; i++)
        if (stack[i] == (sim_context_t *)(void *)ctx && stack[i]->active)
            return CUDA_ERROR_INVALID_CONTEXT;
    return cuCtxPushCurrent_v2(ctx);
}

CUresult cuCtxPopCurrent_v2(CUcontext *pctx) {
    SIM_ENTER();
    if (!depth)
        return CUDA_ERROR_INVALID_CONTEXT;
    depth--;
    if (pctx)
        *pctx = (CUcontext)(void *)stack[depth];
    return CUDA_SUCCESS;
}

static CUresult get_device(CUdevice *device, CUcontext ctx) {
    sim_context_t *context;
    CUresult result = device ? lookup_or_current_ever(ctx, &context) : CUDA_ERROR_INVALID_VALUE;
    if (result == CUDA_SUCCESS)
        *device = context->device;
    return result;
}

CUresult cuCtxGetDevice(CUdevice *device) {
    SIM_ENTER();
    return get_device(device, NULL);
}

CUresult cuCtxGetDevice_v2(CUdevice *device, CUcontext ctx) {
    SIM_ENTER();
    return get_device(device, ctx);
}

CUresult cuCtxGetFlags(unsigned int *flags) {
    SIM_ENTER();
    sim_context_t *context;
    CUresult result = flags ? lookup_or_current_ever(NULL, &context) : CUDA_ERROR_INVALID_VALUE;
    if (result == CUDA_SUCCESS)
        *flags = context->flags;
    return result;
}

CUresult cuCtxSetFlags(unsigned int flags) {
    SIM_ENTER_CONTEXT(context);
    if (!flags_ok(flags))
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&sim.lock);
    context->flags = flags | (context->flags & CU_CTX_MAP_HOST); // which stays (580.159.04, measured)
    pthread_mutex_unlock(&sim.lock);
    return CUDA_SUCCESS;
}

CUresult cuCtxGetId(CUcontext ctx, unsigned long long *ctxId) {
    SIM_ENTER();
    sim_context_t *context;
    CUresult result = ctxId ? lookup_or_current(ctx, &context) : CUDA_ERROR_INVALID_VALUE;
    if (result == CUDA_SUCCESS)
        *ctxId = context->id;
    return result;
}

CUresult cuCtxGetApiVersion(CUcontext ctx, unsigned int *version) {
    SIM_ENTER();
    sim_context_t *context;
    CUresult result = ctx && !version ? CUDA_ERROR_INVALID_VALUE : lookup_or_current(ctx, &context);
    if (ctx && result == CUDA_ERROR_CONTEXT_IS_DESTROYED)
        result = CUDA_ERROR_INVALID_CONTEXT;
    if (result == CUDA_SUCCESS && !version)
        result = CUDA_ERROR_INVALID_VALUE;
    if (result == CUDA_SUCCESS)
        *version = context->api_version;
    return result;
}

CUresult cuCtxGetLimit(size_t *pvalue, CUlimit limit) {
    SIM_ENTER_CONTEXT(context);
    if (!pvalue || (unsigned)limit >= CU_LIMIT_MAX)
        return CUDA_ERROR_INVALID_VALUE;
    if (sim_limits_h200[limit] == SIZE_MAX)
        return CUDA_ERROR_UNSUPPORTED_LIMIT;
    pthread_mutex_lock(&sim.lock);
    *pvalue = context->limits[limit];
    pthread_mutex_unlock(&sim.lock);
    return CUDA_SUCCESS;
}

CUresult cuCtxSetLimit(CUlimit limit, size_t value) {
    SIM_ENTER_CONTEXT(context);
    SIM_UNSAFE();
    if ((unsigned)limit >= CU_LIMIT_MAX)
        return CUDA_ERROR_INVALID_VALUE;
    if (sim_limits_h200[limit] == SIZE_MAX)
        return CUDA_ERROR_UNSUPPORTED_LIMIT;
    if (limit == CU_LIMIT_SHMEM_SIZE || limit == CU_LIMIT_CIG_ENABLED)
        return CUDA_ERROR_NOT_PERMITTED; // for graphics
    if (limit == CU_LIMIT_STACK_SIZE && value > 512u << 10)
        return CUDA_ERROR_INVALID_VALUE;
    if (limit == CU_LIMIT_MAX_L2_FETCH_GRANULARITY && value > 128)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&sim.lock);
    if (limit == CU_LIMIT_STACK_SIZE)
        sim_context_drain(context);
    context->limits[limit] = limit == CU_LIMIT_STACK_SIZE ? (value + 15) & ~(size_t)15 : value;
    pthread_mutex_unlock(&sim.lock);
    return CUDA_SUCCESS;
}

CUresult cuCtxGetCacheConfig(CUfunc_cache *pconfig) {
    SIM_ENTER_CONTEXT(context);
    if (!pconfig)
        return CUDA_ERROR_INVALID_VALUE;
    *pconfig = context->cache_config;
    return CUDA_SUCCESS;
}

CUresult cuCtxSetCacheConfig(CUfunc_cache config) {
    SIM_ENTER_CONTEXT(context);
    SIM_UNSAFE();
    if ((unsigned)config > CU_FUNC_CACHE_PREFER_EQUAL)
        return CUDA_ERROR_INVALID_VALUE;
    context->cache_config = config;
    return CUDA_SUCCESS;
}

CUresult cuCtxGetSharedMemConfig(CUsharedconfig *pConfig) {
    SIM_ENTER_CONTEXT(context);
    (void)context;
    if (!pConfig)
        return CUDA_ERROR_INVALID_VALUE;
    *pConfig = CU_SHARED_MEM_CONFIG_FOUR_BYTE_BANK_SIZE;
    return CUDA_SUCCESS;
}

CUresult cuCtxSetSharedMemConfig(CUsharedconfig config) {
    SIM_ENTER_CONTEXT(context);
    SIM_UNSAFE();
    (void)context; // without effect on GPUs of this generation
    return (unsigned)config > 2 ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

CUresult cuCtxGetStreamPriorityRange(int *leastPriority, int *greatestPriority) {
    SIM_ENTER_CONTEXT(context);
    (void)context;
    if (leastPriority)
        *leastPriority = 0;
    if (greatestPriority)
        *greatestPriority = -5;
    return CUDA_SUCCESS;
}

CUresult cuCtxResetPersistingL2Cache(void) {
    SIM_ENTER_CONTEXT(context);
    (void)context;
    return CUDA_SUCCESS;
}

static CUresult synchronize(sim_context_t *context) {
    pthread_mutex_lock(&sim.lock);
    CUresult result = sim_capture_touch_context(context);
    if (result == CUDA_SUCCESS)
        sim_context_drain(context);
    for (sim_context_t *green = sim.contexts; result == CUDA_SUCCESS && green; green = green->next)
        if (green->base == context && green->active)
            sim_context_drain(green);
    pthread_mutex_unlock(&sim.lock);
    sim_pools_notice();
    sim_print_show();
    return result == CUDA_SUCCESS ? sim_context_error(context) : result;
}

CUresult cuCtxSynchronize(void) {
    SIM_ENTER_CONTEXT(context);
    return synchronize(context);
}

CUresult cuCtxSynchronize_v2(CUcontext ctx) {
    SIM_ENTER();
    sim_context_t *context;
    CUresult result = lookup_or_current(ctx, &context);
    return result == CUDA_SUCCESS ? synchronize(context) : result;
}

// ---- Peers -------------------------------------------------------------------------------------------------------

CUresult cuCtxEnablePeerAccess(CUcontext peerContext, unsigned int Flags) {
    SIM_ENTER_CONTEXT(context);
    sim_context_t *peer;
    CUresult result = lookup(peerContext, &peer);
    if (result != CUDA_SUCCESS)
        return result;
    if (Flags)
        return CUDA_ERROR_INVALID_VALUE;
    if (peer->device == context->device || !sim_device_reaches(context->device, peer->device))
        return CUDA_ERROR_PEER_ACCESS_UNSUPPORTED;
    pthread_mutex_lock(&sim.lock);
    unsigned bit = 1u << peer->device;
    if (context->peers & bit)
        result = CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED;
    context->peers |= bit;
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult cuCtxDisablePeerAccess(CUcontext peerContext) {
    SIM_ENTER_CONTEXT(context);
    sim_context_t *peer;
    CUresult result = lookup(peerContext, &peer);
    if (result != CUDA_SUCCESS)
        return result;
    SIM_UNSAFE();
    pthread_mutex_lock(&sim.lock);
    unsigned bit = 1u << peer->device;
    if (!(context->peers & bit))
        result = CUDA_ERROR_PEER_ACCESS_NOT_ENABLED;
    context->peers &= ~bit;
    pthread_mutex_unlock(&sim.lock);
    return result;
}
