/*
 * Memsets in the form without a stream: checked here, then sent as the asynchronous form on the default stream.
 *
 * Any thread; owns nothing. The driver, too, returns before such a memset is done; what it promises is that a wrong
 * address is refused at once.
 */
#include "tpc_memory.h"

static CUresult check(CUdeviceptr address, uint64_t pitch, uint64_t count, uint64_t height, uint64_t unit) {
    TPC_CONTEXT(context);
    (void)context;
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

#define MEMSET(bits, type)                                                                                             \
    CUresult tpc_cuMemsetD##bits##_v2(CUstream implicit, CUdeviceptr dstDevice, type value, size_t N) {                \
        CUresult result = check(dstDevice, 0, N, 1, bits / 8);                                                         \
        return result || !N ? result : tpc_cuMemsetD##bits##Async(dstDevice, value, N, implicit);                      \
    }                                                                                                                  \
    CUresult tpc_cuMemsetD2D##bits##_v2(CUstream implicit, CUdeviceptr dstDevice, size_t dstPitch, type value,         \
                                        size_t Width, size_t Height) {                                                 \
        CUresult result = check(dstDevice, dstPitch, Width, Height, bits / 8);                                         \
        if (result || !Width || !Height) {                                                                             \
            return result;                                                                                             \
        }                                                                                                              \
        return tpc_cuMemsetD2D##bits##Async(dstDevice, dstPitch, value, Width, Height, implicit);                      \
    }
MEMSET(8, unsigned char)
MEMSET(16, unsigned short)
MEMSET(32, unsigned int)
