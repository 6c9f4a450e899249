// Stream-ordered allocation: memory pools, cuMemAllocAsync and cuMemFreeAsync.
//
// An allocation is usable at once (its address is known at the call, and being early harms nobody); a free takes
// effect when its stream gets there; until then work that was queued earlier may use the address, new calls may not.
// What is freed stays with its pool, as a number: the device has so much less for others. The next call that waits, and none
// that trims, gives back what is above the release threshold (580.159.04: a session that waited by words alone kept it all).
// Pool fields are under the map lock.
#include "sim_graph.h"

#include <stdlib.h>
#include <string.h>

#define UNIT 512u // what a byte of a pool takes

typedef struct sim_place {
    struct sim_place *next;
    CUmemLocation at;
    CUmemAllocationType type;
    sim_pool_t *standard, *current;
} sim_place_t;
static void leave_places(const sim_pool_t *pool);
static sim_pool_t *pools; // all of them
static atomic_bool loose; // one has something that no wait has noticed

CUresult sim_pool_setup(int ordinal) {
    sim_device_t *device = &sim.devices[ordinal];
    device->default_pool = (sim_pool_t){.device = ordinal, .is_default = true, .reuse = {1, 1, 1}};
    device->default_pool.props.allocType = CU_MEM_ALLOCATION_TYPE_PINNED;
    device->default_pool.props.location = (CUmemLocation){.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = ordinal};
    device->default_pool.access[ordinal] = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    device->current_pool = &device->default_pool;
    device->default_pool.next = pools;
    pools = &device->default_pool;
    return sim_handle_add(&device->default_pool, SIM_POOL) ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

static void keep_at_most(sim_pool_t *pool, uint64_t bytes) {
    if (pool->kept > bytes) {
        sim.devices[pool->device].used -= pool->kept - bytes;
        pool->kept = bytes;
    }
}

void sim_pool_forget(sim_range_t *range) {
    sim_pool_t *pool = range->pool;
    pool->used -= range->charged;
    if (range->kind == SIM_RANGE_HOST)
        return; // nothing is kept of it
    pool->loose += range->charged;
    sim.devices[pool->device].used += range->charged;
    atomic_store(&loose, true);
}

void sim_pools_notice(void) {
    if (!atomic_exchange(&loose, false))
        return;
    pthread_rwlock_wrlock(&sim.map_lock);
    for (sim_pool_t *pool = pools; pool; pool = pool->next) {
        if (!pool->loose)
            continue;
        pool->kept += pool->loose;
        pool->loose = 0;
        keep_at_most(pool, pool->release_threshold > pool->used ? pool->release_threshold - pool->used : 0);
    }
    pthread_rwlock_unlock(&sim.map_lock);
}

// An allocation takes what the pool has first.
static void reuse(sim_pool_t *pool, uint64_t bytes) {
    uint64_t kept = pool->kept < bytes ? pool->kept : bytes;
    keep_at_most(pool, pool->kept - kept);
    uint64_t more = pool->loose < bytes - kept ? pool->loose : bytes - kept;
    pool->loose -= more;
    sim.devices[pool->device].used -= more;
}

sim_pool_t *sim_pool_find(CUmemoryPool handle) {
    pthread_mutex_lock(&sim.lock);
    bool live = sim_handle_is(handle, SIM_POOL);
    pthread_mutex_unlock(&sim.lock);
    return live ? (sim_pool_t *)(void *)handle : NULL;
}

// For what a pool of another process cannot do (580.159.04, measured).
static sim_pool_t *own(CUmemoryPool handle) {
    sim_pool_t *pool = sim_pool_find(handle);
    return pool && !pool->imported ? pool : NULL;
}

static bool is_managed(const sim_pool_t *pool) { return pool->props.allocType == CU_MEM_ALLOCATION_TYPE_MANAGED; }

// Managed memory, and pinned memory of the host.
static bool is_local(const sim_pool_t *pool) {
    return is_managed(pool) || pool->props.location.type != CU_MEM_LOCATION_TYPE_DEVICE;
}

static CUresult take(const sim_pool_t *pool, sim_context_t *owner, size_t bytes, sim_range_t **range) {
    if (is_local(pool) && !is_managed(pool))
        return sim_host_allocate(owner, bytes, CU_MEMHOSTALLOC_PORTABLE, range);
    const bool whole = is_managed(pool) || pool->props.handleTypes; // pages that have nothing else in them
    CUresult result = sim_device_allocate(owner, whole && bytes < SIM_GRANULE / 2 ? SIM_GRANULE / 2 : bytes,
                                          range); // as cuMemAllocManaged
    if (result != CUDA_SUCCESS || !whole)
        return result;
    (*range)->size = bytes;
    if (!is_managed(pool)) { // a small one takes more addresses, and no more memory
        const uint64_t charged = (bytes + UNIT - 1) & ~(uint64_t)(UNIT - 1);
        (*range)->extent = (*range)->charged;
        sim.devices[(*range)->device].used -= (*range)->charged - charged;
        (*range)->charged = charged;
        return CUDA_SUCCESS;
    }
    (*range)->flags = CU_MEM_ATTACH_GLOBAL;
    result = sim_managed_begin(*range);
    if (result != CUDA_SUCCESS)
        sim_range_release(*range);
    return result;
}

// `pool` NULL: the current one of the stream's device.
static CUresult allocate(sim_context_t *context, sim_pool_t *pool, CUdeviceptr *dptr, size_t bytes, CUstream handle) {
    sim_stream_t *stream;
    pthread_mutex_lock(&sim.lock);
    CUresult result = sim_stream_resolve(context, handle, &stream);
    bool captured = result == CUDA_SUCCESS && stream->capture;
    if (result == CUDA_SUCCESS && !captured) // the legacy stream, before what the modes forbid (580.159.04, measured)
        result = sim_capture_touch(stream);
    if (result == CUDA_SUCCESS)
        context = stream->context;
    pthread_mutex_unlock(&sim.lock);
    if (result == CUDA_SUCCESS && !captured && sim_capturing())
        result = sim_capture_unsafe();
    if (result == CUDA_SUCCESS && !dptr)
        result = CUDA_ERROR_INVALID_VALUE;
    if (result != CUDA_SUCCESS || !bytes) { // no bytes are no memory, and no error (580.159.04, measured)
        if (result == CUDA_SUCCESS)
            *dptr = 0;
        return result;
    }
    pool = pool ? pool : sim.devices[context->device].current_pool;
    if (captured && (is_local(pool) || pool->props.handleTypes))
        return CUDA_ERROR_NOT_SUPPORTED; // nodes have device memory that no other process has (580.159.04, measured)
    if (captured) {
        sim_op_t op = {.kind = SIM_OP_GRAPH_ALLOC, .u.memory = {.size = bytes, .device = pool->device}};
        result = sim_submit(context, handle, &op, false, SIM_GO_ON);
        if (result == CUDA_SUCCESS)
            *dptr = op.u.memory.address; // the node has it
        return result;
    }
    sim_context_t *owner = pool->device == context->device ? context : &sim.devices[pool->device].primary;
    sim_range_t *range;
    pthread_rwlock_wrlock(&sim.map_lock);
    if (pool->props.maxSize &&
        bytes > pool->props.maxSize - (pool->used < pool->props.maxSize ? pool->used : pool->props.maxSize))
        result = CUDA_ERROR_OUT_OF_MEMORY;
    else {
        reuse(pool, bytes);
        result = take(pool, owner, bytes, &range);
    }
    if (result == CUDA_SUCCESS) {
        range->pool = pool;
        pool->used += range->charged;
        if (pool->used > pool->used_high)
            pool->used_high = pool->used;
        *dptr = range->base;
    }
    pthread_rwlock_unlock(&sim.map_lock);
    return result;
}

CUresult cuMemAllocAsync(CUdeviceptr *dptr, size_t bytesize, CUstream hStream) {
    SIM_BEGINS(dptr, 0);
    SIM_ENTER_STREAM(context, hStream);
    return allocate(context, NULL, dptr, bytesize, hStream);
}

CUresult cuMemAllocFromPoolAsync(CUdeviceptr *dptr, size_t bytesize, CUmemoryPool pool, CUstream hStream) {
    SIM_BEGINS(dptr, 0);
    SIM_ENTER_STREAM(context, hStream);
    sim_pool_t *found = own(pool);
    return allocate(context, found, found ? dptr : NULL, bytesize, hStream); // the stream first
}

CUresult cuMemFreeAsync(CUdeviceptr dptr, CUstream hStream) {
    SIM_ENTER_STREAM(context, hStream);
    sim_stream_t *stream;
    pthread_mutex_lock(&sim.lock);
    CUresult result = sim_stream_resolve(context, hStream, &stream);
    bool captured = result == CUDA_SUCCESS && stream->capture;
    if (result == CUDA_SUCCESS && !captured) // the legacy stream, before what the modes forbid (580.159.04, measured)
        result = sim_capture_touch(stream);
    pthread_mutex_unlock(&sim.lock);
    if (result == CUDA_SUCCESS && !captured && sim_capturing())
        result = sim_capture_unsafe();
    if (result != CUDA_SUCCESS || !dptr) // nothing is freed, as by cuMemFree (580.159.04, measured)
        return result;
    sim_op_t of_graph = {.kind = SIM_OP_GRAPH_FREE, .u.memory.address = dptr};
    if (captured || sim_graph_memory_free(dptr, &of_graph))
        return sim_submit(context, hStream, &of_graph, false, SIM_GO_ON);
    pthread_rwlock_wrlock(&sim.map_lock);
    sim_range_t *range = sim_map_find(dptr);
    bool ours = range && range->base == dptr && !range->internal && !range->free_queued &&
                (range->kind == SIM_RANGE_DEVICE
                     ? !range->managed || range->pool
                     : (range->kind == SIM_RANGE_HOST || range->kind == SIM_RANGE_IPC) && range->pool);
    if (ours)
        range->free_queued = true;
    pthread_rwlock_unlock(&sim.map_lock);
    if (!ours)
        return CUDA_ERROR_INVALID_VALUE;
    sim_op_t op = {.kind = SIM_OP_FREE, .u.free = dptr};
    return sim_submit(context, hStream, &op, false, SIM_GO_ON);
}

// ---- Pools -------------------------------------------------------------------------------------------------------

static CUresult device_pool(CUmemoryPool *pool, CUdevice dev, bool current) {
    if (!pool)
        return CUDA_ERROR_INVALID_VALUE;
    if (!sim_device_ok(dev))
        return CUDA_ERROR_INVALID_DEVICE;
    *pool = (CUmemoryPool)(void *)(current ? sim.devices[dev].current_pool : &sim.devices[dev].default_pool);
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetDefaultMemPool(CUmemoryPool *pool_out, CUdevice dev) {
    SIM_ENTER();
    return device_pool(pool_out, dev, false);
}

CUresult cuDeviceGetMemPool(CUmemoryPool *pool, CUdevice dev) {
    SIM_ENTER();
    // A device that is none has another code here than above (580.159.04, measured).
    return sim_device_ok(dev) ? device_pool(pool, dev, true) : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuDeviceSetMemPool(CUdevice dev, CUmemoryPool pool) {
    SIM_ENTER();
    SIM_UNSAFE();
    sim_pool_t *found = own(pool);
    if (!found || found->device != dev || is_local(found))
        return CUDA_ERROR_INVALID_VALUE;
    pthread_rwlock_wrlock(&sim.map_lock);
    sim.devices[dev].current_pool = found;
    pthread_rwlock_unlock(&sim.map_lock);
    return CUDA_SUCCESS;
}

// Where a pool can be (580.159.04, measured, on a machine with one node).
static CUresult place_ok(const CUmemLocation *where, bool managed) {
    switch ((int)where->type) {
    case CU_MEM_LOCATION_TYPE_INVALID: // managed memory that prefers no place
    case CU_MEM_LOCATION_TYPE_HOST_NUMA_CURRENT:
        return managed ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    case CU_MEM_LOCATION_TYPE_DEVICE:
        return sim_device_ok(where->id) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    case CU_MEM_LOCATION_TYPE_HOST:
        return CUDA_SUCCESS;
    case CU_MEM_LOCATION_TYPE_HOST_NUMA:
        return where->id == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    default:
        return managed ? CUDA_ERROR_NOT_SUPPORTED : CUDA_ERROR_INVALID_VALUE;
    }
}

bool sim_pool_add(sim_pool_t *pool) {
    pthread_mutex_lock(&sim.lock);
    bool added = sim_handle_add(pool, SIM_POOL);
    pthread_mutex_unlock(&sim.lock);
    if (!added)
        return false;
    pthread_rwlock_wrlock(&sim.map_lock);
    pool->next = pools;
    pools = pool;
    pthread_rwlock_unlock(&sim.map_lock);
    return true;
}

sim_pool_t *sim_pool_imported(uint64_t number) {
    pthread_rwlock_rdlock(&sim.map_lock);
    sim_pool_t *pool = pools;
    while (pool && !(pool->imported && pool->number == number))
        pool = pool->next;
    pthread_rwlock_unlock(&sim.map_lock);
    return pool;
}

static CUresult create(CUmemoryPool *pool, const CUmemPoolProps *poolProps) {
    if (!pool || !poolProps ||
        (poolProps->allocType != CU_MEM_ALLOCATION_TYPE_PINNED &&
         poolProps->allocType != CU_MEM_ALLOCATION_TYPE_MANAGED))
        return CUDA_ERROR_INVALID_VALUE;
    const CUmemLocation *where = &poolProps->location;
    const bool managed = poolProps->allocType == CU_MEM_ALLOCATION_TYPE_MANAGED;
    CUresult result = place_ok(where, managed);
    if (result != CUDA_SUCCESS)
        return result;
    // Only a device's own memory goes to other processes, as a descriptor or in a fabric.
    const unsigned handles = poolProps->handleTypes,
                   known = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR | CU_MEM_HANDLE_TYPE_FABRIC;
    if (handles && (managed || where->type != CU_MEM_LOCATION_TYPE_DEVICE || (handles & ~known)))
        return CUDA_ERROR_INVALID_VALUE;
    if (poolProps->maxSize > (uint64_t)INT64_MAX)
        return CUDA_ERROR_OUT_OF_MEMORY;
    sim_pool_t *fresh = calloc(1, sizeof *fresh);
    if (!fresh)
        return CUDA_ERROR_OUT_OF_MEMORY;
    int device = where->type == CU_MEM_LOCATION_TYPE_DEVICE ? where->id : 0;
    *fresh = (sim_pool_t){.device = device, .props = *poolProps, .reuse = {1, 1, 1}};
    if (!is_local(fresh))
        fresh->access[fresh->device] = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    if (!sim_pool_add(fresh)) {
        free(fresh);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *pool = (CUmemoryPool)(void *)fresh;
    return CUDA_SUCCESS;
}

CUresult cuMemPoolCreate(CUmemoryPool *pool, const CUmemPoolProps *poolProps) {
    SIM_ENTER();
    SIM_UNSAFE();
    return create(pool, poolProps);
}

CUresult cuMemPoolDestroy(CUmemoryPool pool) {
    SIM_ENTER();
    SIM_UNSAFE();
    sim_pool_t *found = sim_pool_find(pool);
    if (!found)
        return CUDA_ERROR_INVALID_VALUE;
    if (found->is_default)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&sim.lock);
    pthread_rwlock_wrlock(&sim.map_lock);
    bool open = false;
    for (size_t i = 0; found->imported && i < sim.nranges; i++)
        open |= sim.ranges[i]->pool == found;
    if (open) {
        pthread_rwlock_unlock(&sim.map_lock);
        pthread_mutex_unlock(&sim.lock);
        return CUDA_ERROR_INVALID_VALUE;
    }
    sim_device_t *device = &sim.devices[found->device];
    if (device->current_pool == found)
        device->current_pool = &device->default_pool;
    leave_places(found);
    // What is still allocated stays valid; it moves to the default pool's books.
    for (size_t i = 0; i < sim.nranges; i++) {
        if (sim.ranges[i]->pool != found)
            continue;
        sim.ranges[i]->pool = &device->default_pool;
        device->default_pool.used += sim.ranges[i]->charged;
    }
    reuse(found, UINT64_MAX);
    sim_pool_unshare(found);
    for (sim_pool_t **at = &pools; *at; at = &(*at)->next)
        if (*at == found) {
            *at = found->next;
            break;
        }
    sim_handle_remove(found);
    pthread_rwlock_unlock(&sim.map_lock);
    pthread_mutex_unlock(&sim.lock);
    free(found);
    return CUDA_SUCCESS;
}

CUresult cuMemPoolTrimTo(CUmemoryPool pool, size_t minBytesToKeep) {
    SIM_ENTER();
    SIM_UNSAFE();
    sim_pool_t *found = own(pool);
    if (!found)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_rwlock_wrlock(&sim.map_lock);
    keep_at_most(found, minBytesToKeep > found->used + found->loose ? minBytesToKeep - found->used - found->loose : 0);
    pthread_rwlock_unlock(&sim.map_lock);
    return CUDA_SUCCESS;
}

// The driver takes memory for a pool in lots of 32 MiB (580.159.04, measured). Here a pool takes what it needs, and only tells so.
static uint64_t whole_lots(uint64_t bytes) {
    const uint64_t lot = 32u << 20;
    return (bytes + lot - 1) / lot * lot;
}

CUresult cuMemPoolGetAttribute(CUmemoryPool pool, CUmemPool_attribute attr, void *value) {
    SIM_ENTER();
    SIM_UNSAFE();
    sim_pool_t *found = own(pool);
    if (!found)
        return CUDA_ERROR_INVALID_VALUE;
    if (!value)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = CUDA_SUCCESS;
    uint64_t wide = 0;
    pthread_rwlock_rdlock(&sim.map_lock);
    switch (attr) {
    case CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES:
    case CU_MEMPOOL_ATTR_REUSE_ALLOW_OPPORTUNISTIC:
    case CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES:
        memcpy(value, &found->reuse[attr - 1], sizeof(int));
        break;
    case CU_MEMPOOL_ATTR_RELEASE_THRESHOLD:
        wide = found->release_threshold;
        break;
    case CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT:
        wide = whole_lots(found->used + found->kept + found->loose);
        break;
    case CU_MEMPOOL_ATTR_USED_MEM_CURRENT:
        wide = found->used;
        break;
    case CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH:
        wide = whole_lots(found->used_high);
        break;
    case CU_MEMPOOL_ATTR_USED_MEM_HIGH:
        wide = found->used_high;
        break;
    default:
        result = CUDA_ERROR_INVALID_VALUE;
    }
    pthread_rwlock_unlock(&sim.map_lock);
    if (result == CUDA_SUCCESS && attr >= CU_MEMPOOL_ATTR_RELEASE_THRESHOLD)
        memcpy(value, &wide, sizeof wide);
    return result;
}

CUresult cuMemPoolSetAttribute(CUmemoryPool pool, CUmemPool_attribute attr, void *value) {
    SIM_ENTER();
    SIM_UNSAFE();
    sim_pool_t *found = own(pool);
    if (!found)
        return CUDA_ERROR_INVALID_VALUE;
    if (!value)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = CUDA_SUCCESS;
    uint64_t wide = 0;
    if (attr >= CU_MEMPOOL_ATTR_RELEASE_THRESHOLD)
        memcpy(&wide, value, sizeof wide);
    pthread_rwlock_wrlock(&sim.map_lock);
    switch (attr) {
    case CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES:
    case CU_MEMPOOL_ATTR_REUSE_ALLOW_OPPORTUNISTIC:
    case CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES:
        memcpy(&found->reuse[attr - 1], value, sizeof(int));
        break;
    case CU_MEMPOOL_ATTR_RELEASE_THRESHOLD:
        found->release_threshold = wide;
        break;
    case CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH:
    case CU_MEMPOOL_ATTR_USED_MEM_HIGH: // may only be reset
        if (wide)
            result = CUDA_ERROR_INVALID_VALUE;
        else
            found->used_high = found->used;
        break;
    default:
        result = CUDA_ERROR_INVALID_VALUE;
    }
    pthread_rwlock_unlock(&sim.map_lock);
    return result;
}

static bool on_host(const CUmemLocation *at) {
    return at->type == CU_MEM_LOCATION_TYPE_HOST || at->type == CU_MEM_LOCATION_TYPE_HOST_NUMA;
}

// (580.159.04, measured.)
static CUresult access_ok(const sim_pool_t *pool, const CUmemAccessDesc *map) {
    const bool none = map->flags == CU_MEM_ACCESS_FLAGS_PROT_NONE,
               all = map->flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    if (is_local(pool) && on_host(&map->location) && (all || (none && is_managed(pool))))
        return CUDA_SUCCESS;
    if (is_local(pool) && map->location.type != CU_MEM_LOCATION_TYPE_DEVICE && !on_host(&map->location))
        return CUDA_ERROR_INVALID_VALUE;
    if (map->location.type != CU_MEM_LOCATION_TYPE_DEVICE)
        return CUDA_ERROR_NOT_SUPPORTED;
    if (!sim_device_ok(map->location.id))
        return CUDA_ERROR_INVALID_DEVICE;
    if (map->flags == CU_MEM_ACCESS_FLAGS_PROT_READ)
        return CUDA_ERROR_NOT_SUPPORTED;
    if (!none && !all)
        return CUDA_ERROR_INVALID_VALUE;
    return none && !is_local(pool) && map->location.id == pool->device ? CUDA_ERROR_INVALID_DEVICE : CUDA_SUCCESS;
}

CUresult cuMemPoolSetAccess(CUmemoryPool pool, const CUmemAccessDesc *map, size_t count) {
    SIM_ENTER();
    SIM_UNSAFE();
    sim_pool_t *found = sim_pool_find(pool);
    if (!found)
        return CUDA_ERROR_INVALID_VALUE;
    if (!map)
        return CUDA_ERROR_INVALID_VALUE;
    if (count > SIM_MAX_DEVICES) // how many a driver takes was not asked
        return CUDA_ERROR_NOT_SUPPORTED;
    for (size_t i = 0; i < count; i++) {
        CUresult result = access_ok(found, &map[i]);
        if (result != CUDA_SUCCESS)
            return result;
    }
    pthread_rwlock_wrlock(&sim.map_lock);
    for (size_t i = 0; i < count; i++)
        if (map[i].location.type == CU_MEM_LOCATION_TYPE_DEVICE) // the host's does not change
            found->access[map[i].location.id] = (unsigned char)map[i].flags;
    pthread_rwlock_unlock(&sim.map_lock);
    return CUDA_SUCCESS;
}

CUresult cuMemPoolGetAccess(CUmemAccess_flags *flags, CUmemoryPool memPool, CUmemLocation *location) {
    SIM_ENTER();
    SIM_UNSAFE();
    sim_pool_t *found = sim_pool_find(memPool);
    if (!found)
        return CUDA_ERROR_INVALID_VALUE;
    if (!flags || !location)
        return CUDA_ERROR_INVALID_VALUE;
    if (on_host(location)) { // whatever the number
        const bool open = is_local(found) && !is_managed(found);
        *flags = open ? CU_MEM_ACCESS_FLAGS_PROT_READWRITE : CU_MEM_ACCESS_FLAGS_PROT_NONE;
        return CUDA_SUCCESS;
    }
    if (location->type != CU_MEM_LOCATION_TYPE_DEVICE || !sim_device_ok(location->id))
        return CUDA_ERROR_INVALID_VALUE;
    *flags = (CUmemAccess_flags)found->access[location->id];
    return CUDA_SUCCESS;
}

// ---- Pools by place ----------------------------------------------------------------------------------------------

// Of each place for either kind of memory, but pinned memory of a device, which has its own above.
static sim_place_t *places; // under the map lock

static bool same(const CUmemLocation *a, const CUmemLocation *b) {
    const bool numbered = a->type == CU_MEM_LOCATION_TYPE_DEVICE || a->type == CU_MEM_LOCATION_TYPE_HOST_NUMA;
    return a->type == b->type && (!numbered || a->id == b->id);
}

static bool is_kind(const CUmemLocation *location, CUmemAllocationType type) {
    return location && (type == CU_MEM_ALLOCATION_TYPE_PINNED || type == CU_MEM_ALLOCATION_TYPE_MANAGED);
}

static bool no_place(const CUmemLocation *location) {
    return location->type > CU_MEM_LOCATION_TYPE_HOST_NUMA_CURRENT || location->type < CU_MEM_LOCATION_TYPE_INVALID;
}

static bool of_device(const CUmemLocation *location, CUmemAllocationType type) {
    return location->type == CU_MEM_LOCATION_TYPE_DEVICE && type == CU_MEM_ALLOCATION_TYPE_PINNED;
}

static CUresult place_of(const CUmemLocation *location, CUmemAllocationType type, sim_place_t **out) {
    const CUmemPoolProps props = {.allocType = type, .location = *location};
    CUmemoryPool made = NULL;
    pthread_rwlock_rdlock(&sim.map_lock);
    *out = places;
    while (*out && ((*out)->type != type || !same(&(*out)->at, location)))
        *out = (*out)->next;
    pthread_rwlock_unlock(&sim.map_lock);
    if (*out)
        return CUDA_SUCCESS;
    if (location->type == CU_MEM_LOCATION_TYPE_HOST_NUMA_CURRENT)
        return CUDA_ERROR_NOT_SUPPORTED;
    CUresult result = create(&made, &props);
    sim_place_t *fresh = result == CUDA_SUCCESS ? calloc(1, sizeof *fresh) : NULL;
    if (!fresh)
        return result == CUDA_SUCCESS ? CUDA_ERROR_OUT_OF_MEMORY : result;
    *fresh = (sim_place_t){.at = *location, .type = type, .standard = (sim_pool_t *)(void *)made};
    fresh->standard->is_default = true;
    fresh->current = fresh->standard;
    pthread_rwlock_wrlock(&sim.map_lock);
    fresh->next = places;
    places = fresh;
    pthread_rwlock_unlock(&sim.map_lock);
    *out = fresh;
    return CUDA_SUCCESS;
}

static void leave_places(const sim_pool_t *pool) { // under the map lock
    for (sim_place_t *place = places; place; place = place->next)
        if (place->current == pool)
            place->current = place->standard;
}

static CUresult by_place(CUmemoryPool *out, const CUmemLocation *location, CUmemAllocationType type, bool current) {
    sim_place_t *place;
    if (out && location && no_place(location))
        return CUDA_ERROR_NOT_SUPPORTED;
    if (!out || !is_kind(location, type))
        return CUDA_ERROR_INVALID_VALUE;
    if (of_device(location, type))
        return sim_device_ok(location->id) ? device_pool(out, location->id, current) : CUDA_ERROR_INVALID_VALUE;
    CUresult result = place_of(location, type, &place);
    if (result == CUDA_SUCCESS)
        *out = (CUmemoryPool)(void *)(current ? place->current : place->standard);
    return result;
}

CUresult cuMemGetDefaultMemPool(CUmemoryPool *pool_out, CUmemLocation *location, CUmemAllocationType type) {
    SIM_ENTER();
    return by_place(pool_out, location, type, false);
}

CUresult cuMemGetMemPool(CUmemoryPool *pool, CUmemLocation *location, CUmemAllocationType type) {
    SIM_ENTER();
    return by_place(pool, location, type, true);
}

CUresult cuMemSetMemPool(CUmemLocation *location, CUmemAllocationType type, CUmemoryPool pool) {
    SIM_ENTER();
    SIM_UNSAFE();
    sim_pool_t *found = own(pool);
    sim_place_t *place;
    if (found && location && no_place(location))
        return CUDA_ERROR_NOT_SUPPORTED;
    if (!found || !is_kind(location, type))
        return CUDA_ERROR_INVALID_VALUE;
    if (of_device(location, type))
        return sim_device_ok(location->id) ? cuDeviceSetMemPool(location->id, pool) : CUDA_ERROR_INVALID_VALUE;
    if (found->props.allocType != type || !same(&found->props.location, location))
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = place_of(location, type, &place);
    if (result == CUDA_SUCCESS)
        place->current = found;
    return result;
}
