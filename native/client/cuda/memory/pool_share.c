/*
 * Pools of other processes of this worker.
 *
 * Any thread. What the program passes around is a descriptor as of cuMemExportToShareableHandle for a pool, and for a pointer
 * the 64 bytes of a handle.
 */
#include "tpc_memory.h"
#include "tpg_client.h"
#include "tpg_cuda_send.h"

#include <unistd.h>

CUresult tpc_do_cuMemPoolExportToShareableHandle(void *handle_out, CUmemoryPool pool,
                                                 CUmemAllocationHandleType handleType, unsigned long long flags) {
    const uint64_t exported = (uint64_t)(uintptr_t)pool;
    struct tpg_pool_export_out out;
    int fd = -1, end = -1;
    if (flags || handleType != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR || !tpc_pool_is(exported, TPC_POOL_SHAREABLE)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    TPC_TRY(tpc_call_pool_export("cuMemPoolExportToShareableHandle", exported, &out));
    TPC_TRY(tpc_descriptor_give(&out.handle, &fd, &end));
    close(end); /* a pool ends when it is destroyed, and not with its descriptors */
    memcpy(handle_out, &fd, sizeof fd);
    return CUDA_SUCCESS;
}

CUresult tpc_do_cuMemPoolImportFromShareableHandle(CUmemoryPool *pool_out, void *handle,
                                                   CUmemAllocationHandleType handleType, unsigned long long flags) {
    struct tpg_pool_import_in in = {.pool = 0};
    struct tpg_pool_import_out out;
    if (flags || handleType != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) {
        const bool known = handleType & (CU_MEM_HANDLE_TYPE_WIN32 | CU_MEM_HANDLE_TYPE_FABRIC);
        return known && !flags ? CUDA_ERROR_NOT_SUPPORTED : CUDA_ERROR_INVALID_VALUE;
    }
    if (!tpc_descriptor_read((int)(intptr_t)handle, &in.handle)) {
        return CUDA_ERROR_UNKNOWN;
    }
    in.pool = tpc_pool_mint(0, TPC_POOL_IMPORTED);
    TPC_TRY(tpc_call_pool_import("cuMemPoolImportFromShareableHandle", &in, &out));
    if (out.known != in.pool) { /* imported again */
        tpc_unmint(TPG_POOL, in.pool);
    }
    *pool_out = (CUmemoryPool)(uintptr_t)out.known;
    return CUDA_SUCCESS;
}

CUresult tpc_do_cuMemPoolImportPointer(CUdeviceptr *ptr_out, CUmemoryPool pool, CUmemPoolPtrExportData *shareData) {
    struct tpg_pool_pointer_in in = {.pool = (uint64_t)(uintptr_t)pool, .handle = *shareData};
    struct tpg_pool_pointer_out out;
    if (!tpc_pool_is(in.pool, TPC_POOL_IMPORTED)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    TPC_TRY(tpc_call_pool_pointer("cuMemPoolImportPointer", &in, &out));
    const int device = tpc_device_of((int)out.device); /* no context has it (580.159.04, measured) */
    const struct tpc_range range = {
        .start = out.address, .size = out.size, .device = device, .flags = TPC_MADE_POOL, .detail = pool};
    struct tpc_range known;
    if (tpc_device_valid(device) &&
        (tpc_range_insert(&range) || (tpc_range_at(out.address, &known) && known.start == out.address))) {
        *ptr_out = out.address;
        return CUDA_SUCCESS;
    }
    (void)tpc_post_memory_free("cuMemPoolImportPointer", out.address);
    return tpc_device_valid(device) ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_ERROR_INVALID_DEVICE;
}
