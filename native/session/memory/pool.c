/*
 * Stream-ordered pools: the driver's own, with every allocation counted and known.
 *
 * Executor thread only; owns the objects of kind pool, whose record is the number of the device. Properties come from the
 * client: the two fields that could be pointers or name other processes are cleared or refused here. An allocation counts,
 * in the units that a pool takes, on the quota page, for the device of its pool, from its call to the moment its stream has freed it. What pools keep after
 * that (the client sets how much) counts for nobody, so under a limit they keep no more than the cache of arena.c may.
 */
#include "tpg_session.h"
#include "tpw_memory.h"
#include <stdlib.h>

static uint64_t kept_by(struct tpw_session *s, CUmemoryPool pool) {
    cuuint64_t reserved = 0, used = 0;
    int32_t error = (int32_t)s->cuda.cuMemPoolGetAttribute(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, &reserved);
    error = error ? error : (int32_t)s->cuda.cuMemPoolGetAttribute(pool, CU_MEMPOOL_ATTR_USED_MEM_CURRENT, &used);
    if (error) { /* then it is trimmed */
        tp_log(TP_WARN, "the driver does not tell what a pool keeps: error %d", error);
        return TPW_CACHE_BYTES + 1;
    }
    return reserved > used ? reserved - used : 0;
}

/* The next pool, with *at from 0: those that the client has named, then the default ones, which it need not name. */
static CUmemoryPool next_pool(struct tpw_session *s, uint32_t *at, int *device) {
    struct tpw_object *object;
    CUmemoryPool pool = NULL;
    while ((object = tpw_next_object(s, TPG_POOL, at))) {
        if (object->native) {
            return (CUmemoryPool)(uintptr_t)object->native;
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
static void notice(struct tpw_session *s) {
    const uint32_t bit = s->entered_native ? 1u << tpw_context_device(s, s->entered) : 0;
    /* The first time in a context it makes a stream, in which the driver may wait. */
    if ((s->pools_freed & bit) && !s->words && !tpw_stream_may_wait(s)) {
        s->pools_freed &= ~bit;
        (void)s->cuda.cuStreamSynchronize(CU_STREAM_PER_THREAD); /* its answer is no news, as in print.c */
    }
}

TP_REGISTER(tpw_pools_leave, notice);

void tpw_pools_trim(struct tpw_session *s) {
    uint64_t kept = 0;
    CUmemoryPool pool;
    if (!s->quota || !tp_quota_limit(s->quota)) {
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

static int32_t made(struct tpw_session *s, const struct tp_frame *frame, uint64_t handle, CUmemoryPool pool,
                    CUdevice device, int32_t error) {
    uint32_t *record = error ? NULL : malloc(sizeof *record);
    if (!error && (!record || tpw_device_index(s, device, record))) {
        error = CUDA_ERROR_OUT_OF_MEMORY;
    }
    error = tpw_made(s, frame, TPG_POOL, handle, (uint64_t)(uintptr_t)pool, error);
    struct tpw_object *object = error ? NULL : tpw_object(s, TPG_POOL, handle);
    if (object) {
        object->record = record;
    } else {
        free(record);
    }
    return error;
}

int32_t tpw_pool_default(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_pool_default_in *in) {
    CUmemoryPool pool = NULL;
    int32_t error = (int32_t)(in->current ? s->cuda.cuDeviceGetMemPool(&pool, in->device)
                                          : s->cuda.cuDeviceGetDefaultMemPool(&pool, in->device));
    return made(s, frame, in->pool, pool, in->device, error);
}

int32_t tpw_pool_create(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_pool_create_in *in,
                        const CUmemPoolProps *props) {
    CUmemoryPool pool = NULL;
    bool served = props->location.type == CU_MEM_LOCATION_TYPE_DEVICE && props->handleTypes == CU_MEM_HANDLE_TYPE_NONE;
    int32_t error = served ? (int32_t)s->cuda.cuMemPoolCreate(&pool, props) : CUDA_ERROR_NOT_SUPPORTED;
    int32_t result = made(s, frame, in->pool, pool, props->location.id, error);
    if (result && !error) {
        s->cuda.cuMemPoolDestroy(pool);
    }
    return result;
}

int32_t tpw_pool_destroy(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_pool_destroy_in *in) {
    int32_t error = CUDA_SUCCESS;
    CUmemoryPool pool = (CUmemoryPool)(uintptr_t)tpw_native(s, frame, TPG_POOL, in->pool, false, &error);
    if (!error) {
        error = (int32_t)s->cuda.cuMemPoolDestroy(pool);
    }
    /* A pool that was a device's current one has a second name for a client that asked for that. */
    struct tpw_object *object;
    for (uint32_t at = 0; !error && (object = tpw_next_object(s, TPG_POOL, &at));) {
        if (object->native == (uint64_t)(uintptr_t)pool) {
            object->native = 0;
            object->error = CUDA_ERROR_INVALID_VALUE;
        }
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
    const uint32_t *home = pool ? tpw_object(s, TPG_POOL, in->pool)->record : &stream->device;
    const uint32_t device = *home;
    /* What a pool takes for a byte. The largest size stays itself: nothing holds it. */
    const uint64_t charge =
        in->size > UINT64_MAX - TPW_UNIT ? in->size : (in->size + TPW_UNIT - 1) / TPW_UNIT * TPW_UNIT;
    const uint32_t context = stream->home; /* what follows may wait, and the stream may end */
    const CUstream to = stream->native;
    CUgraph graph = TP_UNLIKELY(s->captures) ? tpw_capturing_graph(s, stream, &error) : NULL;
    if (!graph) {
        tpw_refuse_capturing(s, to, &error);
    }
    if (!error && !in->size) {
        error = CUDA_ERROR_INVALID_VALUE;
    }
    if (!error) {
        error = tpw_memory_open(s);
    }
    if (!error && !graph) {
        tpw_pools_trim(s); /* what ended contexts have left */
        error = tpw_charge(s, device, charge);
    }
    if (error) {
        return error;
    }
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
        tpw_uncharge(s, device, charge);
        return error;
    }
    range->device = device;
    range->charged = charge;
    range->context = context;
    out->address = address;
    return CUDA_SUCCESS;
}

static void freed(struct tpw_session *s, void *what, int32_t error) {
    struct tpw_range *range = what;
    s->memory->pending_bytes[range->device] -= range->charged;
    s->memory->pending_frees--;
    s->pools_freed |= 1u << range->device;
    tpw_uncharge(s, range->device, range->charged);
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
    if (!error) {
        error = (int32_t)s->cuda.cuMemFreeAsync(in->address, stream->native);
    }
    if (error) {
        return error;
    }
    tpw_range_leave(s, range);
    if (tpw_when_done(s, stream->native, freed, range)) {
        freed(s, range, 0);
    }
    return CUDA_SUCCESS;
}
