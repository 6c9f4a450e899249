/*
 * Stream-ordered pools: handles of the default and current pools, allocations from any.
 *
 * Any thread. Each device's default pool gets its handle when it is first asked for; which pool is current is known
 * here, so that asking waits for nobody. An allocation asks the worker, because its address must be known when the call
 * returns; a free does not.
 */
#include "tpc_memory.h"
#include "tpc_stream.h"
#include "tpg_client_structs.h"
#include "tpg_cuda_messages.h"
#include "tpg_cuda_send.h"

/* The record of a pool's handle is the place of its device in here: nothing to free while a thread may be reading it. */
static char places[TPC_POOL_KINDS][TPC_DEVICES_MAX];

uint64_t tpc_pool_mint(CUdevice device, enum tpc_pool_kind kind) {
    return device >= 0 && device < TPC_DEVICES_MAX ? tpc_mint_record(TPG_POOL, &places[kind][device]) : 0;
}

bool tpc_pool_is(uint64_t pool, enum tpc_pool_kind kind) {
    const char *place = tpc_record(TPG_POOL, pool);
    return place && (place - places[0]) / TPC_DEVICES_MAX == kind;
}

static struct tp_lock lock; /* for making default pools, and for setting current ones */
static _Atomic uint64_t default_pools[TPC_DEVICES_MAX], current_pools[TPC_DEVICES_MAX];

CUresult tpc_pool_default(CUdevice device, uint64_t *out) {
    if (device < 0 || device >= tpc_device_count || device >= TPC_DEVICES_MAX) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    CUresult result = CUDA_SUCCESS;
    tp_lock_take(&lock);
    uint64_t pool = atomic_load(&default_pools[device]);
    if (!pool) {
        pool = tpc_pool_mint(device, TPC_POOL_DEFAULT);
        result = tpc_call_pool_default("cuDeviceGetDefaultMemPool", pool, tpc_devices[device].remote);
        pool = result == CUDA_SUCCESS ? pool : 0;
        atomic_store(&default_pools[device], pool);
    }
    tp_lock_drop(&lock);
    *out = pool;
    return result;
}

CUresult tpc_pool_current(CUdevice device, uint64_t *out) {
    if (device < 0 || device >= tpc_device_count || device >= TPC_DEVICES_MAX) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    *out = atomic_load(&current_pools[device]);
    return *out ? CUDA_SUCCESS : tpc_pool_default(device, out);
}

CUresult tpc_cuDeviceSetMemPool(CUdevice dev, CUmemoryPool pool) {
    TPC_CAPTURE_UNSAFE("cuDeviceSetMemPool");
    TPC_CHECK_HANDLE(POOL, pool, false);
    if (!tpc_device_valid(dev) ||
        dev >= TPC_DEVICES_MAX) { /* the pool is of no such device: the same code (580.159.04, measured) */
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (tpc_pool_local((uint64_t)(uintptr_t)pool) || tpc_pool_is((uint64_t)(uintptr_t)pool, TPC_POOL_IMPORTED)) {
        return CUDA_ERROR_INVALID_VALUE; /* its memory is not the device's, or not to be had */
    }
    tp_lock_take(&lock); /* what is remembered has the worker's order */
    CUresult result = tpc_sent_cuDeviceSetMemPool(dev, pool);
    if (result == CUDA_SUCCESS) {
        atomic_store(&current_pools[dev], (uint64_t)(uintptr_t)pool);
    }
    tp_lock_drop(&lock);
    return result;
}

/* A place, and a kind of memory that there are pools of. */
static bool is_kind(const CUmemLocation *location, CUmemAllocationType type) {
    return location && (type == CU_MEM_ALLOCATION_TYPE_PINNED || type == CU_MEM_ALLOCATION_TYPE_MANAGED);
}

static bool no_place(const CUmemLocation *location) {
    return location->type > CU_MEM_LOCATION_TYPE_HOST_NUMA_CURRENT || location->type < CU_MEM_LOCATION_TYPE_INVALID;
}

static bool of_device(const CUmemLocation *location, CUmemAllocationType type) {
    return location->type == CU_MEM_LOCATION_TYPE_DEVICE && type == CU_MEM_ALLOCATION_TYPE_PINNED;
}

CUresult tpc_pool_by_place(CUmemoryPool *out, const CUmemLocation *location, CUmemAllocationType type, bool current) {
    if (out && location && no_place(location)) {
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    if (!out || !is_kind(location, type)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (!of_device(location, type)) {
        return tpc_pool_of_place(location, type == CU_MEM_ALLOCATION_TYPE_MANAGED, current, out);
    }
    if (!tpc_device_valid(location->id)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    return current ? tpc_cuDeviceGetMemPool(out, location->id) : tpc_cuDeviceGetDefaultMemPool(out, location->id);
}

CUresult tpc_do_cuMemSetMemPool(CUmemLocation *location, CUmemAllocationType type, CUmemoryPool pool) {
    if (location && no_place(location)) {
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    if (!is_kind(location, type)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (!of_device(location, type)) {
        return tpc_pool_for_place(location, type == CU_MEM_ALLOCATION_TYPE_MANAGED, (uint64_t)(uintptr_t)pool);
    }
    const char *place = tpc_record(TPG_POOL, (uint64_t)(uintptr_t)pool);
    if (!place || place >= places[TPC_POOL_IMPORTED] || (place - places[0]) % TPC_DEVICES_MAX != location->id) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    return tpc_cuDeviceSetMemPool(location->id, pool);
}

CUresult tpc_cuMemPoolSetAccess(CUmemoryPool pool, const CUmemAccessDesc *map, size_t count) {
    TPC_CAPTURE_UNSAFE("cuMemPoolSetAccess");
    TPC_CHECK_HANDLE(POOL, pool, false);
    if (!map) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (count > TPC_DEVICES_MAX) { /* how many a driver takes was not asked */
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    if (tpc_pool_local((uint64_t)(uintptr_t)pool)) {
        return tpc_pool_local_set_access((uint64_t)(uintptr_t)pool, map, count);
    }
    for (size_t i = 0; i < count; i++) {
        const CUdevice device = map[i].location.id;
        if (map[i].location.type != CU_MEM_LOCATION_TYPE_DEVICE || map[i].flags == CU_MEM_ACCESS_FLAGS_PROT_READ) {
            return CUDA_ERROR_NOT_SUPPORTED;
        }
        if (!tpc_device_valid(device)) {
            return CUDA_ERROR_INVALID_DEVICE;
        }
        if (map[i].flags != CU_MEM_ACCESS_FLAGS_PROT_NONE && map[i].flags != CU_MEM_ACCESS_FLAGS_PROT_READWRITE) {
            return CUDA_ERROR_INVALID_VALUE;
        }
    }
    return count ? tpc_sent_cuMemPoolSetAccess(pool, map, count) : CUDA_SUCCESS;
}

CUresult tpc_cuMemPoolGetAccess(CUmemAccess_flags *flags, CUmemoryPool memPool, CUmemLocation *location) {
    TPC_CAPTURE_UNSAFE("cuMemPoolGetAccess");
    TPC_CHECK_HANDLE(POOL, memPool, false);
    if (!flags || !location) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    const bool device = location->type == CU_MEM_LOCATION_TYPE_DEVICE;
    const bool host = location->type == CU_MEM_LOCATION_TYPE_HOST || location->type == CU_MEM_LOCATION_TYPE_HOST_NUMA;
    if (!host && !(device && tpc_device_valid(location->id))) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (tpc_pool_local_get_access((uint64_t)(uintptr_t)memPool, location, flags)) {
        return CUDA_SUCCESS;
    }
    if (host) { /* of a device's memory */
        *flags = CU_MEM_ACCESS_FLAGS_PROT_NONE;
        return CUDA_SUCCESS;
    }
    return tpc_sent_cuMemPoolGetAccess(flags, memPool, location);
}

CUresult tpc_do_cuMemPoolCreate(CUmemoryPool *pool, const CUmemPoolProps *poolProps) {
    if (!pool || !poolProps ||
        (poolProps->allocType != CU_MEM_ALLOCATION_TYPE_PINNED &&
         poolProps->allocType != CU_MEM_ALLOCATION_TYPE_MANAGED)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    CUdevice device = poolProps->location.id;
    const bool local = poolProps->allocType == CU_MEM_ALLOCATION_TYPE_MANAGED ||
                       poolProps->location.type != CU_MEM_LOCATION_TYPE_DEVICE;
    const unsigned int handles = poolProps->handleTypes,
                       known = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR | CU_MEM_HANDLE_TYPE_FABRIC;
    CUmemPoolProps beside; /* see pool_local.c */
    const CUmemPoolProps *asked = poolProps;
    TPC_TRY(tpc_pool_local_props(poolProps, &device));
    /* Only a device's own memory goes to other processes, and in no fabric, as the attributes say. */
    if (handles && (local || handles != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)) {
        return local || (handles & ~known) ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_NOT_SUPPORTED;
    }
    if (local) {
        beside = (CUmemPoolProps){.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
                                  .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device}};
        poolProps = &beside;
    }
    struct tpc_flat props TPC_FLAT = {.size = 0};
    TPC_TRY(tpg_flatten_CUmemPoolProps(poolProps, 1, &props));
    struct tpg_pool_create_in in = {.pool = tpc_pool_mint(device, handles ? TPC_POOL_SHAREABLE : TPC_POOL_OWN),
                                    .props = props.bytes,
                                    .props_size = props.size};
    TPC_TRY(tpc_call_pool_create("cuMemPoolCreate", &in));
    *pool = (CUmemoryPool)(uintptr_t)in.pool;
    if (local && !tpc_pool_local_add(in.pool, asked)) {
        tpc_cuMemPoolDestroy(*pool);
        *pool = NULL;
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    return CUDA_SUCCESS;
}

CUresult tpc_do_cuMemPoolDestroy(CUmemoryPool pool) {
    const uint64_t handle = (uint64_t)(uintptr_t)pool;
    const bool imported = tpc_pool_is(handle, TPC_POOL_IMPORTED);
    if (tpc_pool_is(handle, TPC_POOL_DEFAULT) || !tpc_pool_leaves_places(handle)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (imported) { /* the driver refuses while memory of it is open */
        tpc_wait_for_next_post();
    }
    CUresult result = tpc_post_pool_destroy("cuMemPoolDestroy", handle);
    if (imported && result != CUDA_SUCCESS) {
        return result;
    }
    for (int i = 0; i < TPC_DEVICES_MAX; i++) { /* the device goes back to its default pool */
        uint64_t gone = handle;
        atomic_compare_exchange_strong(&current_pools[i], &gone, 0);
    }
    tpc_unmint(TPG_POOL, handle);
    return result;
}

CUresult tpc_check_cuMemPoolTrimTo(CUmemoryPool pool, size_t minBytesToKeep) {
    (void)minBytesToKeep;
    return tpc_pool_is((uint64_t)(uintptr_t)pool, TPC_POOL_IMPORTED) ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

/* What a pool of managed or host memory answers itself. */
CUresult tpc_pool_attribute(CUmemoryPool pool, CUmemPool_attribute attr, void *value, bool store) {
    CUresult result = CUDA_SUCCESS;
    if ((int)attr < CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    bool answered = tpc_pool_local_attribute((uint64_t)(uintptr_t)pool, attr, store, value, &result);
    return answered && result == CUDA_SUCCESS ? TPC_DONE : result;
}

/* ---- addresses of graphs ---- */

static _Atomic unsigned int blocks;

static bool add_block(struct tpc_range range, uint64_t from, uint64_t to) {
    range.start = from;
    range.size = to - from;
    const bool added = from < to && tpc_range_insert(&range);
    atomic_fetch_add(&blocks, added);
    return added;
}

/* What a block has before and behind that stays one. */
static void no_block(uint64_t start, uint64_t size) {
    const uint64_t end = start + size;
    struct tpc_range range;
    for (uint64_t at = start; (tpc_range_at(at, &range) || tpc_range_next(at, &range)) && range.start < end;
         at = range.start + range.size) {
        if ((range.flags & TPC_MADE_MASK) == TPC_MADE_GRAPH && tpc_range_remove(range.start, NULL)) {
            atomic_fetch_sub(&blocks, 1);
            add_block(range, range.start, start);
            add_block(range, end, range.start + range.size);
        }
    }
}

bool tpc_graph_block(uint64_t start, uint64_t size, int device) {
    const struct tpc_range range = {.context = tpc_primary_of(device), .device = device, .flags = TPC_MADE_GRAPH};
    no_block(start, size); /* they are part of this one */
    return add_block(range, start, start + size);
}

bool tpc_on_graph_memory_gone(const struct tpg_graph_memory_gone_in *in) {
    no_block(in->address, in->size);
    return true;
}

CUresult tpc_graph_memory_asks(void) {
    if (TP_UNLIKELY(atomic_load_explicit(&blocks, memory_order_relaxed))) {
        tpc_wait_for_next_post();
    }
    return CUDA_SUCCESS;
}

/* ---- allocations ---- */

/* In a stream that captures it is a node; in another one it is refused where a capture forbids that. */
static CUresult outside_captures(const char *name, CUstream stream) {
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
    if (tpc_capture_status(stream, &status) == CUDA_SUCCESS && status == CU_STREAM_CAPTURE_STATUS_NONE) {
        TPC_CAPTURE_UNSAFE(name);
    }
    return CUDA_SUCCESS;
}

CUresult tpc_pool_take(const char *name, CUdeviceptr *dptr, size_t size, uint64_t pool, bool named, CUstream stream) {
    TPC_CONTEXT(context);
    TPC_CHECK_HANDLE(STREAM, stream, true);
    TPC_TRY(outside_captures(name, stream));
    if (!dptr || (named && tpc_check_handle(TPG_POOL, pool, false))) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (!size) {
        *dptr = 0; /* nothing, and its free is one of nothing */
        return CUDA_SUCCESS;
    }
    /* The stream says for whom, and whose current pool it is; the current context does not. */
    CUcontext owner = NULL;
    uint64_t from = pool;
    CUresult result = tpc_cuStreamGetCtx(stream, &owner);
    context = result == CUDA_SUCCESS ? tpc_record(TPG_CONTEXT, (uint64_t)(uintptr_t)owner) : NULL;
    if (!context) {
        return result == CUDA_SUCCESS ? CUDA_ERROR_CONTEXT_IS_DESTROYED : result;
    }
    struct tpc_local_pool *local = named ? tpc_pool_local(pool) : NULL;
    if (local) {
        return tpc_pool_local_alloc(local, size, owner, stream, dptr);
    }
    result = named ? CUDA_SUCCESS : tpc_pool_current(context->device, &from);
    const char *place = result == CUDA_SUCCESS ? tpc_record(TPG_POOL, from) : NULL;
    if (!place || place >= places[TPC_POOL_IMPORTED]) {
        return result == CUDA_SUCCESS ? CUDA_ERROR_INVALID_VALUE : result;
    }
    const CUdevice device = (int)((place - places[0]) % TPC_DEVICES_MAX);
    struct tpg_pool_alloc_out out = {0};
    result = tpc_call_pool_alloc(name, pool, size, (uint64_t)(uintptr_t)stream, &out);
    if (result == CUDA_SUCCESS && out.block_size) {
        result = tpc_graph_block(out.block, out.block_size, device) ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
        *dptr = result == CUDA_SUCCESS ? out.address : 0;
        return result;
    }
    TPC_TRY(result);
    struct tpc_range range = {.start = out.address,
                              .size = size,
                              .context = context,
                              .device = device,
                              .flags = TPC_MADE_POOL,
                              .detail = (void *)(uintptr_t)from};
    if (!tpc_range_insert(&range)) {
        tpc_post_pool_free(name, out.address, (uint64_t)(uintptr_t)stream);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *dptr = out.address;
    return CUDA_SUCCESS;
}

/* Memory of cuMemAlloc, too: it may be freed in the order of a stream, as that of a pool may be freed by cuMemFree. */
CUresult tpc_do_cuMemFreeAsync(CUdeviceptr dptr, CUstream hStream) {
    struct tpc_range range;
    TPC_TRY(outside_captures("cuMemFreeAsync", hStream));
    if (!dptr) {
        return CUDA_SUCCESS;
    }
    unsigned int made = tpc_range_at(dptr, &range) ? range.flags & TPC_MADE_MASK : 0;
    if (made == TPC_MADE_GRAPH) { /* the driver says whether anything is allocated there */
        tpc_wait_for_next_post();
        return tpc_post_pool_free("cuMemFreeAsync", dptr, (uint64_t)(uintptr_t)hStream);
    }
    if (made == TPC_MADE_MANAGED || made == TPC_MADE_HOST || made == TPC_MADE_ARENA) {
        return tpc_pool_local_free(dptr, hStream);
    }
    if ((made != TPC_MADE_ALLOC && made != TPC_MADE_POOL) || range.start != dptr || !tpc_range_remove(dptr, &range)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    CUresult result = tpc_post_pool_free("cuMemFreeAsync", dptr, (uint64_t)(uintptr_t)hStream);
    if (result != CUDA_SUCCESS) {
        tpc_range_add(&range); /* refused at once, as in a capture: the memory is still there */
    }
    return result;
}
