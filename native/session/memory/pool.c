/*
 * Stream-ordered pools: the driver's own, with every allocation counted and known.
 *
 * Executor thread only; owns the objects of kind pool. An allocation counts, in the units that a pool takes, on the quota page,
 * for the device of its pool, from its call to the moment its stream has freed it. What pools keep after that (the client sets
 * how much) counts for nobody, so under a limit they keep no more than the cache of arena.c may. Of a pool that is shared
 * (pool_share.c) others may hold what was freed: its bytes go on counting, for the pool's next allocations.
 */
#include "tpg_session.h"
#include "tpw_memory.h"
#include <stdlib.h>

struct tpw_pool *tpw_pool_of(struct tpw_session *s, CUmemoryPool native) {
    return TP_FIND(s->memory && native ? s->memory->pools : NULL, it->native == native);
}

/* The client has neither it nor memory of it any more: then others count what they have of it. */
static void ends(struct tpw_session *s, struct tpw_pool *pool) {
    if (pool->native || pool->taken) {
        return;
    }
    if (pool->import) {
        tpw_import_drop(s, pool->import);
    } else if (!tpw_share_freed(s, &pool->share, pool->beyond)) {
        tpw_uncharge(s, pool->device, pool->beyond);
    }
    TP_UNLINK(s->memory->pools, pool);
    free(pool);
}

static uint64_t kept_by(struct tpw_session *s, CUmemoryPool pool) {
    const struct tpw_pool *shared = tpw_pool_of(s, pool);
    cuuint64_t reserved = 0, used = shared ? shared->beyond : 0, own = 0;
    int32_t error = (int32_t)s->cuda.cuMemPoolGetAttribute(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, &reserved);
    error = error ? error : (int32_t)s->cuda.cuMemPoolGetAttribute(pool, CU_MEMPOOL_ATTR_USED_MEM_CURRENT, &own);
    if (error) { /* then it is trimmed */
        tp_log(TP_WARN, "the driver does not tell what a pool keeps: error %d", error);
        return TPW_CACHE_BYTES + 1;
    }
    used += own;
    return reserved > used ? reserved - used : 0;
}

/* The next pool, with *at from 0: those that the client has named, then the default ones, which it need not name. */
static CUmemoryPool next_pool(struct tpw_session *s, uint32_t *at, int *device) {
    struct tpw_object *object;
    CUmemoryPool pool = NULL;
    while ((object = tpw_next_object(s, TPG_POOL, at))) {
        const struct tpw_pool *known = tpw_pool_of(s, (CUmemoryPool)(uintptr_t)object->native);
        if (known && !known->import) {
            return known->native;
        }
    }
    while (*device < s->device_count) {
        int32_t error = (int32_t)s->cuda.cuDeviceGetDefaultMemPool(&pool, s->devices[(*device)++]);
        if (!error) {
            return pool;
        }
        if (error != CUDA_ERROR_NOT_SUPPORTED) { /* a device without pools */
            tp_log(TP_WARN, "the default pool of device %d is not told: error %d", *device - 1, error);
        }
    }
    return NULL;
}

/* The driver gives back what pools keep above their thresholds, and trims them, as far as it has noticed that the frees are over. A
 * session waits by words, which it does not see: on an H200 (580.159.04) a pool kept all it had, and trimming gave back nothing. So
 * the driver is asked to wait where nothing ever is, once after frees; that this is what it takes is assumed. */
static bool notice(struct tpw_session *s) {
    const uint32_t bit = s->entered_native ? 1u << tpw_context_device(s, s->entered) : 0;
    /* The first time in a context it makes a stream, in which the driver may wait. */
    if ((s->pools_freed & bit) && !s->words && !tpw_stream_may_wait(s)) {
        s->pools_freed &= ~bit;
        (void)s->cuda.cuStreamSynchronize(CU_STREAM_PER_THREAD); /* its answer is no news, as in print.c */
        return true;
    }
    return false;
}

/* What could not be noticed when the free was over is trimmed now. */
static void leave(struct tpw_session *s) {
    if (notice(s)) {
        tpw_pools_trim(s);
    }
}
TP_REGISTER(tpw_pools_leave, leave);

void tpw_pools_trim(struct tpw_session *s) {
    uint64_t kept = 0;
    CUmemoryPool pool;
    if (!tp_quota_limit(s->quota)) {
        return;
    }
    notice(s);
    uint32_t at = 0;
    for (int device = 0; (pool = next_pool(s, &at, &device));) {
        kept += kept_by(s, pool);
    }
    at = 0;
    for (int device = 0; kept > TPW_CACHE_BYTES && (pool = next_pool(s, &at, &device));) {
        s->cuda.cuMemPoolTrimTo(pool, 0);
    }
}

struct tpw_pool *tpw_pool_named(struct tpw_session *s, const struct tp_frame *frame, uint64_t handle,
                                CUmemoryPool native, uint32_t device, int32_t *error) {
    struct tpw_memory *m = tpw_memory_state(s);
    struct tpw_pool *known = *error ? NULL : tpw_pool_of(s, native);
    struct tpw_pool *fresh = *error || known ? NULL : calloc(1, sizeof *fresh);
    *error = *error || (m && (known || fresh)) ? *error : (int32_t)CUDA_ERROR_OUT_OF_MEMORY;
    *error = tpw_made(s, frame, TPG_POOL, handle, (uint64_t)(uintptr_t)native, *error);
    if (*error) {
        free(fresh);
        return NULL;
    }
    if (fresh) {
        *fresh = (struct tpw_pool){.next = m->pools, .native = native, .device = device};
        m->pools = fresh;
    }
    return known ? known : fresh;
}

int32_t tpw_pool_default(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_pool_default_in *in) {
    CUmemoryPool pool = NULL;
    uint32_t device = 0;
    int32_t error = (int32_t)s->cuda.cuDeviceGetDefaultMemPool(&pool, in->device);
    error = error ? error : tpw_device_index(s, in->device, &device);
    tpw_pool_named(s, frame, in->pool, pool, device, &error);
    return error;
}

int32_t tpw_pool_create(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_pool_create_in *in,
                        const CUmemPoolProps *props) {
    CUmemoryPool pool = NULL;
    uint32_t device = 0;
    bool served = props->location.type == CU_MEM_LOCATION_TYPE_DEVICE &&
                  !(props->handleTypes & ~(unsigned)CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
    int32_t error = served ? tpw_device_index(s, props->location.id, &device) : CUDA_ERROR_NOT_SUPPORTED;
    error = error ? error : (int32_t)s->cuda.cuMemPoolCreate(&pool, props);
    tpw_pool_named(s, frame, in->pool, pool, device, &error);
    if (error && pool) {
        s->cuda.cuMemPoolDestroy(pool);
    } else if (!error && props->handleTypes) {
        s->memory->shareable = true;
    }
    return error;
}

int32_t tpw_pool_destroy(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_pool_destroy_in *in) {
    int32_t error = CUDA_SUCCESS;
    CUmemoryPool native = (CUmemoryPool)(uintptr_t)tpw_native(s, frame, TPG_POOL, in->pool, false, &error);
    struct tpw_pool *pool = error ? NULL : tpw_pool_of(s, native);
    error = error ? error : (int32_t)s->cuda.cuMemPoolDestroy(native);
    if (error && pool && pool->import) { /* memory of it is open */
        return error;
    }
    if (pool && !error) {
        pool->native = NULL;
        ends(s, pool);
    }
    tpw_forget(s, TPG_POOL, in->pool);
    return error;
}

/* In a capturing stream it is a node, whose memory belongs to the graph. */
static int32_t captured(struct tpw_session *s, CUgraph graph, uint64_t address, uint64_t size, uint32_t device,
                        struct tpg_pool_alloc_out *out) {
    int32_t error = CUDA_SUCCESS;
    TP_ASK(tpw_memory_captured, error, s, graph, address, size, device);
    const struct tpw_range *block = error ? NULL : tpw_range_at(s, address);
    if (block) {
        *out = (struct tpg_pool_alloc_out){.address = address, .block = block->at.start, .block_size = block->at.size};
    }
    return error;
}

int32_t tpw_pool_alloc(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_pool_alloc_in *in,
                       struct tpg_pool_alloc_out *out, CUmemoryPool pool, struct tpw_stream *stream) {
    CUdeviceptr address = 0;
    int32_t error = CUDA_SUCCESS;
    CUmemoryPool current = pool;
    if (!pool && s->memory && s->memory->shareable) {
        error = (int32_t)s->cuda.cuDeviceGetMemPool(&current, s->devices[stream->device]);
    }
    struct tpw_pool *from = tpw_pool_of(s, current);
    const uint32_t device = from ? from->device : stream->device;
    /* What a pool takes for a byte. The largest size stays itself: nothing holds it. */
    const uint64_t charge =
        in->size > UINT64_MAX - TPW_UNIT ? in->size : (in->size + TPW_UNIT - 1) / TPW_UNIT * TPW_UNIT;
    const uint32_t context = stream->home; /* what follows may wait, and the stream may end */
    const CUstream to = stream->native;
    CUgraph graph = TP_UNLIKELY(s->captures) ? tpw_capturing_graph(s, stream, &error) : NULL;
    if (!graph) {
        tpw_refuse_capturing(s, to, &error);
    }
    if (!error && (!in->size || (from && from->import))) {
        error = CUDA_ERROR_INVALID_VALUE;
    }
    error = error ? error : tpw_memory_open(s);
    uint64_t more = charge; /* than counts already */
    if (!error && !graph) {
        tpw_pools_trim(s); /* what ended contexts have left */
        more -= !from ? 0 : from->beyond < charge ? from->beyond : charge;
        error = tpw_charge(s, device, more);
    }
    TPW_TRY(error);
    error = (int32_t)(pool ? s->cuda.cuMemAllocFromPoolAsync(&address, in->size, pool, to)
                           : s->cuda.cuMemAllocAsync(&address, in->size, to));
    if (graph) {
        return error ? error : captured(s, graph, address, in->size, device, out);
    }
    struct tpw_range *range = error ? NULL : tpw_range_given(s, address, in->size, TPW_RANGE_POOL);
    if (!error && !range) {
        s->cuda.cuMemFreeAsync(address, to);
        error = CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (error) {
        tpw_uncharge(s, device, more);
        return error;
    }
    if (from) {
        from->taken += charge;
        from->beyond -= charge - more;
        range->detail = from;
        tpw_share_grown(s, from->share, from->taken + from->beyond);
    }
    range->device = device;
    range->charged = charge;
    range->context = context;
    out->address = address;
    return CUDA_SUCCESS;
}

void tpw_pool_left(struct tpw_session *s, struct tpw_range *range) {
    struct tpw_pool *pool = range->detail;
    (void)tpw_share_freed(s, &range->share, 0);
    if (pool && pool->share) {
        pool->beyond += range->charged;
    } else {
        tpw_uncharge(s, range->device, range->charged);
    }
    if (pool) {
        pool->taken -= pool->import ? 1 : range->charged;
        ends(s, pool);
    }
}

static void freed(struct tpw_session *s, void *what, int32_t error) {
    struct tpw_range *range = what;
    s->memory->pending_bytes[range->device] -= range->charged;
    s->memory->pending_frees--;
    s->pools_freed |= 1u << range->device;
    tpw_pool_left(s, range);
    free(range);
    tpw_pools_trim(s);
}

int32_t tpw_pool_free(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_pool_free_in *in,
                      struct tpw_stream *stream) {
    int32_t error = CUDA_SUCCESS;
    struct tpw_range *range = tpw_range_at(s, in->address);
    CUgraph graph = TP_UNLIKELY(s->captures) ? tpw_capturing_graph(s, stream, &error) : NULL;
    if (!error && range && range->kind == TPW_RANGE_GRAPH) {
        return tpw_graph_memory_free(s, in->address, stream->native);
    }
    if (graph) { /* a capture takes no other memory, and is not disturbed (580.159.04, measured) */
        return error ? error : CUDA_ERROR_INVALID_VALUE;
    }
    tpw_refuse_capturing(s, stream->native, &error);
    if (!error && (!range || range->at.start != in->address || range->kind > TPW_RANGE_POOL)) {
        error = CUDA_ERROR_INVALID_VALUE;
    }
    if (!error && range->kind != TPW_RANGE_POOL) {
        tpw_memory_free_behind(s, range, stream->native);
        return CUDA_SUCCESS;
    }
    error = error ? error : (int32_t)s->cuda.cuMemFreeAsync(in->address, stream->native);
    TPW_TRY(error);
    tpw_range_leave(s, range);
    if (tpw_when_done(s, stream->native, freed, range)) {
        freed(s, range, 0);
    }
    return CUDA_SUCCESS;
}
