/*
 * Pools between sessions: what is exported of a pool and of a pointer, and what is imported.
 *
 * Executor thread only. The supervisor keeps a pool's descriptor, and what the driver exports of a pointer, as share.c says of
 * memory. Who pays for a shared pool counts all that it ever took: others may hold what was freed, and the driver keeps it for them
 * after the owner has died. A pointer is open once, however often it is imported (580.159.04, measured).
 */
#include "tpg_session.h"
#include "tpw_memory.h"

int32_t tpw_pool_export(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_pool_export_in *in,
                        struct tpg_pool_export_out *out, CUmemoryPool native) {
    struct tpw_pool *pool = tpw_pool_of(s, native);
    int fd = -1;
    if (pool->import) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (pool->share) {
        return tpw_share_handle(pool->share, &out->handle);
    }
    TPW_TRY(s->cuda.cuMemPoolExportToShareableHandle(&fd, native, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
    const uint64_t size = (pool->taken + pool->beyond) / TPW_GRANULE * TPW_GRANULE + TPW_GRANULE;
    const struct tpw_shared what = {.block = size, .size = size, .device = pool->device, .kind = TPW_SHARES_POOL};
    return tpw_share_ask(s, frame, tpg_told_pool_export, &pool->share, &what, fd);
}

int32_t tpw_cuMemPoolExportPointer(struct tpw_session *s, const struct tp_frame *frame,
                                   const struct tpg_cuMemPoolExportPointer_in *in,
                                   struct tpg_cuMemPoolExportPointer_out *out) {
    struct tpw_range *range = tpw_range_at(s, in->ptr);
    const struct tpw_pool *pool = range && range->kind == TPW_RANGE_POOL ? range->detail : NULL;
    struct tpw_shared what = {.kind = TPW_SHARES_POINTER};
    what.block = pool && pool->share ? tpw_share_number(pool->share) : 0;
    if (!what.block || range->at.start != in->ptr) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (range->share) {
        return tpw_share_handle(range->share, &out->shareData_out);
    }
    TPW_TRY(s->cuda.cuMemPoolExportPointer((CUmemPoolPtrExportData *)what.native, in->ptr));
    return tpw_share_ask(s, frame, tpg_told_cuMemPoolExportPointer, &range->share, &what, -1);
}

int32_t tpw_granted_pool_import(struct tpw_session *s, const struct tpw_question *question,
                                const struct tpw_packet *packet, int fd, struct tpg_pool_import_out *out) {
    int32_t error = CUDA_SUCCESS;
    CUmemoryPool native = NULL;
    struct tpw_import *import = tpw_import_take(s, packet, &error);
    error = error ? error
                  : (int32_t)s->cuda.cuMemPoolImportFromShareableHandle(&native, (void *)(intptr_t)fd,
                                                                        CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0);
    struct tpw_pool *pool = /* imported again it keeps its name */
        !error && tpw_pool_of(s, native)
            ? NULL
            : tpw_pool_named(s, &question->frame, question->value, native, packet->body.shared.device, &error);
    if (pool) {
        pool->import = import;
        pool->number = packet->value;
    } else if (import) {
        tpw_import_drop(s, import);
    }
    out->known = error ? 0 : tpw_known(s, TPG_POOL, (uint64_t)(uintptr_t)native);
    return error;
}

/* Its range has the number of its share. */
static bool is_open(struct tpw_session *s, const struct tpw_pool *pool, uint64_t number,
                    struct tpg_pool_pointer_out *out) {
    const struct tpw_range *range = NULL;
    for (uint64_t at = 0; (range = (void *)tp_interval_from(&s->memory->ranges, at)); at = range->at.start + 1) {
        if (range->kind == TPW_RANGE_POOL && range->detail == pool && range->mark == number) {
            *out = (struct tpg_pool_pointer_out){
                .address = range->at.start, .size = range->at.size, .device = pool->device};
            return true;
        }
    }
    return false;
}

/* The driver tells the size, not another session. */
int32_t tpw_granted_pool_pointer(struct tpw_session *s, const struct tpw_question *question,
                                 const struct tpw_packet *packet, int fd, struct tpg_pool_pointer_out *out) {
    const struct tpw_object *object = tpw_object(s, TPG_POOL, question->value);
    struct tpw_pool *pool = object ? tpw_pool_of(s, (CUmemoryPool)(uintptr_t)object->native) : NULL;
    CUmemPoolPtrExportData data;
    CUdeviceptr address = 0;
    size_t size = 0;
    if (!pool || !pool->import || packet->body.shared.block != pool->number) { /* it is of another pool */
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (is_open(s, pool, packet->value, out)) { /* another thread has asked, too */
        return CUDA_SUCCESS;
    }
    memcpy(&data, packet->body.shared.native, sizeof data);
    TPW_TRY(s->cuda.cuMemPoolImportPointer(&address, pool->native, &data));
    int32_t error = (int32_t)s->cuda.cuPointerGetAttribute(&size, CU_POINTER_ATTRIBUTE_RANGE_SIZE, address);
    struct tpw_range *range = error ? NULL : tpw_range_given(s, address, size, TPW_RANGE_POOL);
    if (!range) {
        s->cuda.cuMemFreeAsync(address, CU_STREAM_LEGACY);
        return error ? error : (int32_t)CUDA_ERROR_OUT_OF_MEMORY;
    }
    range->device = pool->device;
    range->detail = pool;
    range->mark = packet->value;
    pool->taken++;
    *out = (struct tpg_pool_pointer_out){.address = address, .size = size, .device = pool->device};
    return CUDA_SUCCESS;
}

int32_t tpw_pool_pointer(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_pool_pointer_in *in,
                         struct tpg_pool_pointer_out *out, CUmemoryPool native) {
    const struct tpw_pool *pool = tpw_pool_of(s, native);
    uint64_t number;
    if (!pool->import) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    memcpy(&number, in->handle.reserved + 24, sizeof number); /* docs/wire-format.md; who forges it gets what it has */
    if (is_open(s, pool, number, out)) {
        return CUDA_SUCCESS;
    }
    const struct tpw_question question = {.frame = *frame, .answered = tpg_told_pool_pointer, .value = in->pool};
    return tpw_import_ask(s, &question, TPW_SHARES_POINTER, &in->handle);
}
