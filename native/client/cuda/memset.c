/*
 * Memsets: what the driver refuses at once is refused here; the form without a stream is the asynchronous one on the default
 * stream.
 *
 * Any thread; owns nothing. The driver, too, returns before a memset is done, except of pinned host memory; what it promises
 * is that a wrong address is refused at once.
 */
#include "tpc_memory.h"

static CUresult check(CUdeviceptr address, uint64_t pitch, uint64_t count, uint64_t height, uint64_t unit) {
    struct tpc_area area = {.address = address, .pitch = pitch, .height = height};
    bool fits = true;
    if (!count || !height) {
        return CUDA_SUCCESS;
    }
    if (__builtin_mul_overflow(count, unit, &area.width) || address % unit ||
        (height > 1 && (pitch % unit || pitch < area.width))) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    uint64_t extent = tpc_area_extent(&area, &fits);
    return fits && tpc_range_covers(address, extent) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

/* The program may look at host memory as soon as the form without a stream has returned. */
static CUresult host_done(const char *name, CUdeviceptr address, CUstream stream, CUresult result) {
    return result == CUDA_SUCCESS && tpc_is_mapped_host(address) ? tpc_copy_wait(name, stream) : result;
}

#define MEMSET(bits, type, name)                                                                                       \
    CUresult tpc_check_cuMemsetD##bits##Async(CUdeviceptr dstDevice, type name, size_t N, CUstream hStream) {          \
        (void)name, (void)hStream;                                                                                     \
        return check(dstDevice, 0, N, 1, bits / 8);                                                                    \
    }                                                                                                                  \
    CUresult tpc_check_cuMemsetD2D##bits##Async(CUdeviceptr dstDevice, size_t dstPitch, type name, size_t Width,       \
                                                size_t Height, CUstream hStream) {                                     \
        (void)name, (void)hStream;                                                                                     \
        return check(dstDevice, dstPitch, Width, Height, bits / 8);                                                    \
    }                                                                                                                  \
    CUresult tpc_cuMemsetD##bits##_v2(CUstream implicit, CUdeviceptr dstDevice, type name, size_t N) {                 \
        TPC_CONTEXT(context);                                                                                          \
        (void)context;                                                                                                 \
        return N ? host_done("cuMemsetD" #bits, dstDevice, implicit,                                                   \
                             tpc_cuMemsetD##bits##Async(dstDevice, name, N, implicit))                                 \
                 : CUDA_SUCCESS;                                                                                       \
    }                                                                                                                  \
    CUresult tpc_cuMemsetD2D##bits##_v2(CUstream implicit, CUdeviceptr dstDevice, size_t dstPitch, type name,          \
                                        size_t Width, size_t Height) {                                                 \
        TPC_CONTEXT(context);                                                                                          \
        (void)context;                                                                                                 \
        return Width && Height                                                                                         \
                   ? host_done("cuMemsetD2D" #bits, dstDevice, implicit,                                               \
                               tpc_cuMemsetD2D##bits##Async(dstDevice, dstPitch, name, Width, Height, implicit))       \
                   : CUDA_SUCCESS;                                                                                     \
    }
MEMSET(8, unsigned char, uc)
MEMSET(16, unsigned short, us)
MEMSET(32, unsigned int, ui)
