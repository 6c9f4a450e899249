/*
 * Memsets: what the driver refuses at once is refused here; the form without a stream is the asynchronous one on the default
 * stream.
 *
 * Any thread; owns nothing. The driver, too, returns before a memset is done, except of pinned host memory; what it promises
 * is that a wrong address is refused at once, but where the stream captures. Pinned memory that the GPU does not reach is set by copies out of a buffer on
 * the worker, which are in stream order and end like all copies to the host.
 */
#include "tpc_copy.h"
#include "tpg_client.h"
#include "tpg_cuda_send.h"

#define BUFFER_MAX (4u << 20) /* of the buffer: larger memory is set piece by piece out of the same one */

static CUresult set(CUdeviceptr address, uint64_t pitch, uint64_t count, uint64_t height, uint64_t unit,
                    unsigned int value, CUstream stream) {
    switch (unit) {
    case 1:
        return tpc_cuMemsetD2D8Async(address, pitch, (unsigned char)value, count, height, stream);
    case 2:
        return tpc_cuMemsetD2D16Async(address, pitch, (unsigned short)value, count, height, stream);
    default:
        return tpc_cuMemsetD2D32Async(address, pitch, value, count, height, stream);
    }
}

/* Device memory with the value in it, for as long as what is queued now needs it. */
static CUresult buffer_of(const char *name, struct tpc_context *context, uint64_t size, uint64_t unit,
                          unsigned int value, CUstream stream, uint64_t *out) {
    TPC_TRY(tpc_call_memory_alloc(name, size, out));
    struct tpc_range range = {.start = *out, .size = size, .context = context};
    CUresult result = tpc_range_insert(&range) ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
    return result ? result : set(*out, 0, size / unit, 1, unit, value, stream);
}

static void buffer_free(const char *name, uint64_t address) {
    tpc_range_remove(address, NULL);
    tpc_post_memory_free(name, address);
}

static CUresult set_host(const char *name, const struct tpg_area *area, uint64_t unit, unsigned int value,
                         CUstream stream) {
    uint64_t width = area->width, height = area->height, buffer = 0;
    TPC_CONTEXT(context);
    TPC_TRY(tpc_capture_unserved(name, stream, "pinned host memory that the GPU does not reach"));
    if (area->pitch == width) {
        width *= height;
        height = 1;
    }
    CUresult result = buffer_of(name, context, width < BUFFER_MAX ? width : BUFFER_MAX, unit, value, stream, &buffer);
    for (uint64_t row = 0; row < height && result == CUDA_SUCCESS; row++) {
        for (uint64_t at = 0; at < width && result == CUDA_SUCCESS; at += BUFFER_MAX) {
            void *to = (void *)(uintptr_t)(area->address + row * area->pitch + at);
            struct tpg_area piece = tpc_line(buffer, width - at < BUFFER_MAX ? width - at : BUFFER_MAX);
            result = tpc_copy_down_later(name, to, &piece, stream);
        }
    }
    if (buffer) {
        buffer_free(name, buffer);
    }
    return result;
}

/* A stream that captures takes any address, which is looked at when the graph runs: cuDNN has its kernels captured with NULL and an
 * offset as workspace, to see what they are, and a refusal stays behind as the last error of its CUDA runtime. So the driver
 * answers there, and anywhere else the address is refused with `result`. */
static CUresult unknown(CUstream stream, CUresult result) {
    CUstreamCaptureStatus status;
    CUresult asked = tpc_capture_status(stream, &status);
    return asked == CUDA_SUCCESS && status == CU_STREAM_CAPTURE_STATUS_ACTIVE ? CUDA_SUCCESS : result;
}

static CUresult check(const char *name, CUdeviceptr address, uint64_t pitch, uint64_t count, uint64_t height,
                      uint64_t unit, unsigned int value, CUstream stream) {
    struct tpg_area area = {.address = address, .pitch = pitch, .height = height};
    struct tpc_place place;
    bool fits = true;
    if (!count || !height) {
        return CUDA_SUCCESS;
    }
    if (__builtin_mul_overflow(count, unit, &area.width) || address % unit ||
        (height > 1 && (pitch % unit || pitch < area.width))) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    uint64_t extent = tpc_area_extent(&area, &fits);
    CUresult result = fits ? tpc_place_device(address, extent, &place) : CUDA_ERROR_INVALID_VALUE;
    if (result != CUDA_SUCCESS) {
        return fits ? unknown(stream, result) : result;
    }
    tpc_twins_push(); /* what the program wrote before comes before */
    if (TP_LIKELY(place.device && place.address == address)) {
        return CUDA_SUCCESS;
    }
    result = place.device ? set(place.address, pitch, count, height, unit, value, stream)
                          : set_host(name, &area, unit, value, stream);
    return result == CUDA_SUCCESS ? TPC_DONE : result;
}

/* The program may look at host memory as soon as the form without a stream has returned. */
static CUresult host_done(const char *name, CUdeviceptr address, CUstream stream, CUresult result) {
    return result == CUDA_SUCCESS && tpc_is_mapped_host(address) ? tpc_copy_wait(name, stream) : result;
}

#define MEMSET(bits, type, name)                                                                                       \
    CUresult tpc_check_cuMemsetD##bits##Async(CUdeviceptr dstDevice, type name, size_t N, CUstream hStream) {          \
        return check("cuMemsetD" #bits "Async", dstDevice, 0, N, 1, bits / 8, name, hStream);                          \
    }                                                                                                                  \
    CUresult tpc_check_cuMemsetD2D##bits##Async(CUdeviceptr dstDevice, size_t dstPitch, type name, size_t Width,       \
                                                size_t Height, CUstream hStream) {                                     \
        return check("cuMemsetD2D" #bits "Async", dstDevice, dstPitch, Width, Height, bits / 8, name, hStream);        \
    }                                                                                                                  \
    CUresult tpc_cuMemsetD##bits##_v2(CUstream implicit, CUdeviceptr dstDevice, type name, size_t N) {                 \
        TPC_CONTEXT(context);                                                                                          \
        return N ? host_done("cuMemsetD" #bits, dstDevice, implicit,                                                   \
                             tpc_cuMemsetD##bits##Async(dstDevice, name, N, implicit))                                 \
                 : CUDA_SUCCESS;                                                                                       \
    }                                                                                                                  \
    CUresult tpc_cuMemsetD2D##bits##_v2(CUstream implicit, CUdeviceptr dstDevice, size_t dstPitch, type name,          \
                                        size_t Width, size_t Height) {                                                 \
        TPC_CONTEXT(context);                                                                                          \
        return Width && Height                                                                                         \
                   ? host_done("cuMemsetD2D" #bits, dstDevice, implicit,                                               \
                               tpc_cuMemsetD2D##bits##Async(dstDevice, dstPitch, name, Width, Height, implicit))       \
                   : CUDA_SUCCESS;                                                                                     \
    }
MEMSET(8, unsigned char, uc)
MEMSET(16, unsigned short, us)
MEMSET(32, unsigned int, ui)
