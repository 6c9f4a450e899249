/*
 * Pools of managed memory and of pinned host memory, which no pool of the worker could serve: their memory has pages here.
 *
 * Any thread. An allocation is one of cuMemAllocManaged or cuMemHostAlloc, known as the pool's; a free of a stream takes its address at
 * once, and gives the pages back behind what the stream has before it. So such a pool keeps nothing, and an allocation waits for the
 * worker. What else there is to a pool (reuse, threshold, access of devices) a pool of the worker's keeps under the same handle; it
 * never has memory. Records stay: somebody may be reading them.
 */
#include "tpc_managed.h"
#include "tpc_stream.h"
#include "tpg_client.h"
#include "tpg_cuda_send.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

struct tpc_local_pool {
    struct tpc_local_pool *next;
    uint64_t handle;
    bool managed;
    CUmemLocation at;
    uint64_t most; /* bytes that may be allocated, 0 = any number */
    _Atomic uint64_t used, high;
    _Atomic uint64_t devices; /* bit d: device d was given access; it is only told, since all of them have it here */
};

static _Atomic(struct tpc_local_pool *) pools;
static struct tp_lock lock; /* for adding one */

struct tpc_local_pool *tpc_pool_local(uint64_t handle) {
    return TP_FIND(atomic_load_explicit(&pools, memory_order_acquire), it->handle == handle);
}

/* Whether this machine has the node; one that says nothing of nodes has the first. */
static bool has_node(int id) {
    char path[64];
    snprintf(path, sizeof path, "/sys/devices/system/node/node%d", id);
    return id == 0 || (id > 0 && access(path, F_OK) == 0);
}

/* Where a pool can be (580.159.04, measured). */
CUresult tpc_pool_local_props(const CUmemPoolProps *props, CUdevice *device) {
    const bool managed = props->allocType == CU_MEM_ALLOCATION_TYPE_MANAGED;
    const int type = (int)props->location.type, id = props->location.id;
    *device = type == CU_MEM_LOCATION_TYPE_DEVICE ? id : 0;
    switch (type) {
    case CU_MEM_LOCATION_TYPE_INVALID: /* managed memory that prefers no place */
    case CU_MEM_LOCATION_TYPE_HOST_NUMA_CURRENT:
        return managed ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    case CU_MEM_LOCATION_TYPE_DEVICE:
        return tpc_device_valid(id) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    case CU_MEM_LOCATION_TYPE_HOST:
        return CUDA_SUCCESS;
    case CU_MEM_LOCATION_TYPE_HOST_NUMA:
        return has_node(id) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    default:
        return managed ? CUDA_ERROR_NOT_SUPPORTED : CUDA_ERROR_INVALID_VALUE;
    }
}

bool tpc_pool_local_add(uint64_t handle, const CUmemPoolProps *props) {
    struct tpc_local_pool *pool = calloc(1, sizeof *pool);
    if (!pool) {
        return false;
    }
    pool->handle = handle;
    pool->managed = props->allocType == CU_MEM_ALLOCATION_TYPE_MANAGED;
    pool->at = props->location;
    pool->most = props->maxSize;
    tp_lock_take(&lock);
    pool->next = atomic_load_explicit(&pools, memory_order_relaxed);
    atomic_store_explicit(&pools, pool, memory_order_release);
    tp_lock_drop(&lock);
    return true;
}

static bool on_host(const CUmemLocation *at) {
    return at->type == CU_MEM_LOCATION_TYPE_HOST || at->type == CU_MEM_LOCATION_TYPE_HOST_NUMA;
}

/* (580.159.04, measured.) */
static CUresult access_ok(const struct tpc_local_pool *pool, const CUmemAccessDesc *map) {
    const bool none = map->flags == CU_MEM_ACCESS_FLAGS_PROT_NONE,
               all = map->flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    const bool device = map->location.type == CU_MEM_LOCATION_TYPE_DEVICE;
    if (!device && !on_host(&map->location)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (!device) {
        return all || (none && pool->managed) ? CUDA_SUCCESS : CUDA_ERROR_NOT_SUPPORTED;
    }
    if (!tpc_device_valid(map->location.id)) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    if (map->flags == CU_MEM_ACCESS_FLAGS_PROT_READ) {
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    return none || all ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult tpc_pool_local_set_access(uint64_t handle, const CUmemAccessDesc *map, size_t count) {
    struct tpc_local_pool *pool = tpc_pool_local(handle);
    for (size_t i = 0; i < count; i++) {
        TPC_TRY(access_ok(pool, &map[i]));
    }
    for (size_t i = 0; i < count; i++) {
        uint64_t bit = map[i].location.type == CU_MEM_LOCATION_TYPE_DEVICE ? 1ull << map[i].location.id : 0;
        if (map[i].flags == CU_MEM_ACCESS_FLAGS_PROT_NONE) {
            atomic_fetch_and(&pool->devices, ~bit);
        } else {
            atomic_fetch_or(&pool->devices, bit);
        }
    }
    return CUDA_SUCCESS;
}

bool tpc_pool_local_get_access(uint64_t handle, const CUmemLocation *at, CUmemAccess_flags *flags) {
    const struct tpc_local_pool *pool = tpc_pool_local(handle);
    if (pool) {
        bool open = on_host(at) ? !pool->managed : atomic_load(&pool->devices) >> at->id & 1;
        *flags = open ? CU_MEM_ACCESS_FLAGS_PROT_READWRITE : CU_MEM_ACCESS_FLAGS_PROT_NONE;
    }
    return pool != NULL;
}

static bool charge(struct tpc_local_pool *pool, uint64_t size) {
    const uint64_t used = atomic_fetch_add(&pool->used, size) + size;
    if (pool->most && (size > pool->most || used > pool->most)) {
        atomic_fetch_sub(&pool->used, size);
        return false;
    }
    uint64_t high = atomic_load(&pool->high);
    while (used > high && !atomic_compare_exchange_weak(&pool->high, &high, used)) {
    }
    return true;
}

void tpc_pool_local_freed(uint64_t handle, uint64_t size) {
    struct tpc_local_pool *pool = handle ? tpc_pool_local(handle) : NULL;
    if (pool) {
        atomic_fetch_sub(&pool->used, size);
    }
}

/* In a stream whose context is current. */
static CUresult take(struct tpc_local_pool *pool, size_t size, CUdeviceptr *out) {
    struct tpc_range range;
    void *memory = NULL;
    TPC_TRY(pool->managed ? tpc_cuMemAllocManaged(out, size, CU_MEM_ATTACH_GLOBAL)
                          : tpc_cuMemHostAlloc(&memory, size, CU_MEMHOSTALLOC_PORTABLE));
    if (!pool->managed) {
        *out = (CUdeviceptr)(uintptr_t)memory;
    }
    tpc_range_at(*out, &range);
    if (pool->managed) {
        ((struct tpc_managed *)range.detail)->pool = pool->handle;
    } else {
        ((struct tpc_host *)range.detail)->pool = pool->handle;
    }
    return CUDA_SUCCESS;
}

static CUresult capturing(CUstream stream, bool *captures) {
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
    CUresult result = tpc_capture_status(stream, &status);
    *captures = status != CU_STREAM_CAPTURE_STATUS_NONE;
    return result;
}

CUresult tpc_pool_local_alloc(struct tpc_local_pool *pool, size_t size, CUcontext owner, CUstream stream,
                              CUdeviceptr *out) {
    static _Atomic bool said;
    CUcontext before = NULL;
    bool captures = false;
    TPC_TRY(capturing(stream, &captures));
    if (captures) {
        return tpc_unserved(&said, "a pool that a capture allocates from", "one of managed or host memory");
    }
    TPC_TRY(tpc_cuCtxGetCurrent(&before));
    if (!charge(pool, size)) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    const bool other = before != owner;
    CUresult result = other ? tpc_cuCtxPushCurrent_v2(owner) : CUDA_SUCCESS;
    if (result == CUDA_SUCCESS) {
        result = take(pool, size, out);
        if (other) {
            tpc_cuCtxPopCurrent_v2(&owner);
        }
    }
    if (result != CUDA_SUCCESS) {
        tpc_pool_local_freed(pool->handle, size);
    }
    return result;
}

uint64_t tpc_pool_local_of(const struct tpc_range *range) {
    switch (range->flags & TPC_MADE_MASK) {
    case TPC_MADE_MANAGED:
        return ((const struct tpc_managed *)range->detail)->pool;
    case TPC_MADE_HOST:
    case TPC_MADE_ARENA:
        return ((const struct tpc_host *)range->detail)->pool;
    default:
        return 0;
    }
}

CUresult tpc_pool_local_free(uint64_t start, CUstream stream) {
    struct tpc_range range;
    bool captures = false;
    if (!tpc_range_at(start, &range) || range.start != start || !tpc_pool_local_of(&range)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    TPC_TRY(capturing(stream, &captures));
    if (captures) { /* it takes no memory that was allocated outside, and is not disturbed */
        return CUDA_ERROR_INVALID_VALUE;
    }
    return (range.flags & TPC_MADE_MASK) == TPC_MADE_MANAGED ? tpc_managed_free_behind(start, stream)
                                                             : tpc_host_free_behind(start, stream);
}

bool tpc_pool_local_attribute(uint64_t handle, CUmemPool_attribute attribute, bool store, void *value,
                              CUresult *result) {
    struct tpc_local_pool *pool = tpc_pool_local(handle);
    if (!pool || attribute < CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT) {
        return false;
    }
    const bool high = attribute == CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH || attribute == CU_MEMPOOL_ATTR_USED_MEM_HIGH;
    uint64_t now = atomic_load(high ? &pool->high : &pool->used); /* nothing is reserved that is not used */
    *result = CUDA_SUCCESS;
    if (!store) {
        memcpy(value, &now, sizeof now);
    } else { /* a high mark may be set back, to 0 */
        uint64_t wanted;
        memcpy(&wanted, value, sizeof wanted);
        if (!high || wanted) {
            *result = CUDA_ERROR_INVALID_VALUE;
        } else {
            atomic_store(&pool->high, atomic_load(&pool->used));
        }
    }
    return true;
}

/* ---- by place ---- */

/* Each place has a pool for either kind of memory, made when it is first asked for, and one that is current. */
struct by_place {
    struct by_place *next;
    CUmemLocation at;
    bool managed;
    uint64_t standard;
    _Atomic uint64_t current; /* 0: that */
};
static _Atomic(struct by_place *) places;
static struct tp_lock places_lock; /* for making one */

static bool same(const CUmemLocation *a, const CUmemLocation *b) {
    const bool numbered = a->type == CU_MEM_LOCATION_TYPE_DEVICE || a->type == CU_MEM_LOCATION_TYPE_HOST_NUMA;
    return a->type == b->type && (!numbered || a->id == b->id);
}

static CUresult place_of(const CUmemLocation *at, bool managed, struct by_place **out) {
    const CUmemPoolProps props = {.allocType = managed ? CU_MEM_ALLOCATION_TYPE_MANAGED : CU_MEM_ALLOCATION_TYPE_PINNED,
                                  .location = *at};
    CUdevice device;
    CUmemoryPool pool = NULL;
    if (at->type == CU_MEM_LOCATION_TYPE_HOST_NUMA_CURRENT) {
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    TPC_TRY(tpc_pool_local_props(&props, &device));
    CUresult result = CUDA_SUCCESS;
    tp_lock_take(&places_lock);
    struct by_place *place = TP_FIND(atomic_load(&places), it->managed == managed && same(&it->at, at));
    if (!place) {
        result = tpc_cuMemPoolCreate(&pool, &props);
        place = result == CUDA_SUCCESS ? calloc(1, sizeof *place) : NULL;
        if (place) {
            *place = (struct by_place){
                .next = atomic_load(&places), .at = *at, .managed = managed, .standard = (uint64_t)(uintptr_t)pool};
            atomic_store(&places, place);
        } else if (result == CUDA_SUCCESS) {
            tpc_cuMemPoolDestroy(pool);
            result = CUDA_ERROR_OUT_OF_MEMORY;
        }
    }
    tp_lock_drop(&places_lock);
    *out = place;
    return result;
}

CUresult tpc_pool_of_place(const CUmemLocation *at, bool managed, bool current, CUmemoryPool *out) {
    struct by_place *place;
    TPC_TRY(place_of(at, managed, &place));
    const uint64_t set = current ? atomic_load(&place->current) : 0;
    *out = (CUmemoryPool)(uintptr_t)(set ? set : place->standard);
    return CUDA_SUCCESS;
}

CUresult tpc_pool_for_place(const CUmemLocation *at, bool managed, uint64_t handle) {
    const struct tpc_local_pool *pool = tpc_pool_local(handle);
    struct by_place *place;
    if (!pool || pool->managed != managed || !same(&pool->at, at)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    TPC_TRY(place_of(at, managed, &place));
    atomic_store(&place->current, handle);
    return CUDA_SUCCESS;
}

bool tpc_pool_leaves_places(uint64_t handle) {
    struct by_place *place = atomic_load(&places);
    for (; place && place->standard != handle; place = place->next) {
        uint64_t gone = handle;
        atomic_compare_exchange_strong(&place->current, &gone, 0);
    }
    return !place;
}
