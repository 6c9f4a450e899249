/*
 * Device memory: cuMemAlloc and its kin, what there is of it, and the addresses it lies at.
 *
 * Any thread. Addresses come from the worker and are never followed here; the range they lie in is kept free in this
 * process, so that no host pointer of the program can equal one.
 */
#include "tpc_memory.h"
#include "tpc_stream.h"
#include "tpg_cuda_send.h"

#include <errno.h>
#include <sys/mman.h>

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

#define PITCH                                                                                                          \
    512u /* CU_DEVICE_ATTRIBUTE_TEXTURE_PITCH_ALIGNMENT is less; cuMemAllocPitch aligns to this on driver 580 */

static bool reserved;                         /* it is ours; like the next two */
static uint64_t reserved_base, reserved_size; /* written once, by cuInit, before the state becomes ready */

/* Keeps the worker's address range free in this process, so that no host pointer is ever a device pointer. */
static void reserve(uint64_t base, uint64_t size) {
    void *wanted = (void *)(uintptr_t)base;
    reserved_base = base;
    reserved_size = size;
    void *got = mmap(wanted, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
    reserved = got == wanted;
    if (!reserved) {
        tp_log(TP_WARN,
               "the device addresses 0x%llx to 0x%llx could not be kept free in this process (%s): host memory that "
               "lies there "
               "would be taken for device memory",
               (unsigned long long)base, (unsigned long long)(base + size),
               got == MAP_FAILED ? strerror(errno) : "they are in use");
        if (got != MAP_FAILED) { /* a kernel before 4.17 takes the address as a hint */
            munmap(got, size);
        }
    }
}

static void begin(const struct tpg_start_out *answer) {
    if (answer->reserved_size) {
        reserve(answer->reserved_base, answer->reserved_size);
    }
}
TP_REGISTER(tpc_started, begin);

bool tpc_reserved(uint64_t *base, uint64_t *size) {
    *base = reserved_base;
    *size = reserved_size;
    return reserved;
}

bool tpc_is_device_address(uint64_t address) { return address - reserved_base < reserved_size; }

CUresult tpc_memory_take(const char *name, struct tpc_context *context, uint64_t size, CUdeviceptr *out) {
    uint64_t address;
    /* The worker gives out what it has mapped already without asking the driver, which would refuse. */
    TPC_CAPTURE_UNSAFE(name);
    TPC_TRY(tpc_call_memory_alloc(name, size, &address));
    struct tpc_range range = {
        .start = address,
        .size = size,
        .context = context,
        .flags =
            TPC_MADE_ALLOC | TPC_SYNC_MEMOPS}; /* what the driver says of such memory until the program changes it */
    if (!tpc_range_insert(&range)) {
        tpc_post_memory_free(name, address);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *out = address;
    return CUDA_SUCCESS;
}

CUresult tpc_cuMemAllocPitch_v2(CUdeviceptr *dptr, size_t *pPitch, size_t WidthInBytes, size_t Height,
                                unsigned int ElementSizeBytes) {
    TPC_CONTEXT(context);
    if (!dptr || !pPitch || !WidthInBytes || !Height ||
        (ElementSizeBytes != 4 && ElementSizeBytes != 8 && ElementSizeBytes != 16)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    int most = tpc_devices[context->device].what.attributes[CU_DEVICE_ATTRIBUTE_MAX_PITCH];
    size_t size = 0;
    *pPitch = (WidthInBytes + PITCH - 1) & ~(size_t)(PITCH - 1); /* also where there is no memory (580.159.04, asked) */
    TPC_CAPTURE_UNSAFE("cuMemAllocPitch");
    if (most > 0 && WidthInBytes > (size_t)most) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (__builtin_mul_overflow(*pPitch, Height, &size)) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    return tpc_memory_take("cuMemAllocPitch", context, size, dptr);
}

CUresult tpc_own_context(uint64_t address) {
    struct tpc_range range;
    if (tpc_current()) {
        TPC_CONTEXT(context);
        return CUDA_SUCCESS;
    }
    return tpc_range_at(address, &range) && range.context ? CUDA_ERROR_INVALID_CONTEXT : CUDA_SUCCESS;
}

bool tpc_lend_memory(uint64_t address) {
    struct tpc_range range;
    return !tpc_current() && tpc_range_at(address, &range) && range.context &&
           tpc_cuCtxPushCurrent_v2((CUcontext)(uintptr_t)range.context->handle) == CUDA_SUCCESS;
}

CUresult tpc_cuMemFree_v2(CUdeviceptr dptr) {
    struct tpc_range range;
    TPC_TRY(tpc_own_context(dptr));
    TPC_CAPTURE_UNSAFE("cuMemFree");
    if (!dptr) {
        return CUDA_SUCCESS;
    }
    unsigned int made = tpc_range_at(dptr, &range) ? range.flags & TPC_MADE_MASK : 0;
    if (made ==
        TPC_MADE_GRAPH) { /* it waits, as the driver's does, and the driver says whether anything is allocated there */
        TPC_TRY(tpc_cuCtxSynchronize());
        tpc_wait_for_next_post();
        return tpc_post_memory_free("cuMemFree", dptr);
    }
    if ((made == TPC_MADE_HOST || made == TPC_MADE_ARENA) && range.start == dptr && tpc_pool_local_of(&range)) {
        TPC_TRY(tpc_cuCtxSynchronize()); /* as the driver's, it waits */
        return tpc_host_free_behind(dptr, CU_STREAM_LEGACY);
    }
    if (made == TPC_MADE_MANAGED && range.start == dptr) {
        return tpc_managed_free(dptr);
    }
    if ((made != TPC_MADE_ALLOC && made != TPC_MADE_POOL) || range.start != dptr || !tpc_range_remove(dptr, NULL)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    return tpc_post_memory_free("cuMemFree", dptr);
}

CUresult tpc_cuMemGetAddressRange_v2(CUdeviceptr *pbase, size_t *psize, CUdeviceptr dptr) {
    struct tpc_range range;
    if (!pbase && !psize) { /* before a context (580.159.04, asked) */
        return CUDA_SUCCESS;
    }
    TPC_CONTEXT(context);
    if (!tpc_range_at(dptr, &range)) {
        return CUDA_ERROR_NOT_FOUND; /* addresses that are only reserved, too (580.159.04, measured) */
    }
    if (pbase) {
        *pbase = range.start;
    }
    if (psize) {
        *psize = range.size;
    }
    return CUDA_SUCCESS;
}
