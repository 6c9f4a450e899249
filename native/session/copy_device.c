/*
 * Copies within device memory.
 *
 * Executor thread only; owns nothing. Both sides are checked against the client's ranges; unified addressing lets one
 * driver call serve copies within a device and between devices that see each other.
 */
#include "tpg_session.h"
#include "tpw_memory.h"

int32_t tpw_copy_device(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_copy_device_in *in) {
    int32_t error = CUDA_SUCCESS;
    tpw_check_range(s, in->destination, in->size, &error);
    tpw_check_range(s, in->source, in->size, &error);
    CUstream stream = tpw_stream(s, frame, in->stream, &error);
    if (error || !in->size) {
        return error;
    }
    const struct tpw_range *to = tpw_range_at(s, in->destination), *from = tpw_range_at(s, in->source);
    bool devices = to->kind != TPW_RANGE_PINNED && from->kind != TPW_RANGE_PINNED; /* pinned memory is every device's */
    if (devices && to->device != from->device && s->primary[to->device] && s->primary[from->device]) {
        return (int32_t)s->cuda.cuMemcpyPeerAsync(in->destination, s->primary[to->device], in->source,
                                                  s->primary[from->device], in->size, stream);
    }
    return (int32_t)s->cuda.cuMemcpyDtoDAsync_v2(in->destination, in->source, in->size, stream);
}

int32_t tpw_copy_device_2d(struct tpw_session *s, const struct tp_frame *frame,
                           const struct tpg_copy_device_2d_in *in) {
    int32_t error = CUDA_SUCCESS;
    tpw_check_area(s, in->destination, in->destination_pitch, in->width, in->height, &error);
    tpw_check_area(s, in->source, in->source_pitch, in->width, in->height, &error);
    CUstream stream = tpw_stream(s, frame, in->stream, &error);
    if (error || !in->width || !in->height) {
        return error;
    }
    CUDA_MEMCPY2D copy = {.srcMemoryType = CU_MEMORYTYPE_DEVICE,
                          .srcDevice = in->source,
                          .srcPitch = in->source_pitch,
                          .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                          .dstDevice = in->destination,
                          .dstPitch = in->destination_pitch,
                          .WidthInBytes = in->width,
                          .Height = in->height};
    return (int32_t)s->cuda.cuMemcpy2DAsync_v2(&copy, stream);
}
