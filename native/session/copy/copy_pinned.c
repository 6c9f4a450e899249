/*
 * Copies straight between the client's pinned memory inside the shared segment and the device.
 *
 * Executor thread only. What the client names by offset is looked up among its runs (memory/pinned.c). Their bytes are the
 * client's and are never read here.
 */
#include "tpg_session.h"
#include "tpw_copy.h"

struct sides {
    struct tpw_area area;
    uint64_t offset, host_pitch;
};

/* Checks both sides; *host is the first byte of the host side. */
static int32_t check(struct tpw_session *s, const struct sides *sides, unsigned char **host) {
    const struct tpw_area *area = &sides->area;
    uint64_t before = 0, extent = 0;
    int32_t error = CUDA_SUCCESS;
    tpw_check_area(s, area->address, area->pitch, area->width, area->height, &error);
    if (error) {
        return error;
    }
    if ((area->height > 1 && sides->host_pitch < area->width) ||
        __builtin_mul_overflow(sides->host_pitch, area->height - 1, &before) ||
        __builtin_add_overflow(before, area->width, &extent) || !tpw_run_at(s, sides->offset, extent)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *host = s->segment->base + sides->offset;
    return CUDA_SUCCESS;
}

static int32_t copy(struct tpw_session *s, const struct tp_frame *frame, const struct sides *sides, uint64_t handle,
                    bool in) {
    const struct tpw_area *area = &sides->area;
    unsigned char *host = NULL;
    if (!area->width || !area->height) {
        return CUDA_SUCCESS;
    }
    int32_t error = check(s, sides, &host);
    CUstream stream = tpw_stream(s, frame, handle, &error);
    if (error) {
        return error;
    }
    if (area->height == 1 || (area->pitch == area->width && sides->host_pitch == area->width)) {
        return tpw_area_copy(s, area, 0, host, tpw_area_size(area), in, stream);
    }
    if (TP_UNLIKELY(tpw_between_hosts(s, area->address, stream))) {
        return tpw_copy_host_area(s, area, host, sides->host_pitch, in, stream);
    }
    CUDA_MEMCPY2D rows = {.srcMemoryType = in ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE,
                          .srcHost = host,
                          .srcDevice = area->address,
                          .srcPitch = in ? sides->host_pitch : area->pitch,
                          .dstMemoryType = in ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST,
                          .dstHost = host,
                          .dstDevice = area->address,
                          .dstPitch = in ? area->pitch : sides->host_pitch,
                          .WidthInBytes = area->width,
                          .Height = area->height};
    struct tpw_aside aside;
    error = tpw_aside_begin(s, stream, area->address, &aside);
    return error ? error : tpw_aside_end(s, &aside, (int32_t)s->cuda.cuMemcpy2DAsync_v2(&rows, aside.stream));
}

int32_t tpw_arena_copy_in(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_arena_copy_in_in *in) {
    struct sides sides = {
        .area = {.address = in->destination, .pitch = in->pitch, .width = in->width, .height = in->height},
        .offset = in->offset,
        .host_pitch = in->host_pitch};
    return copy(s, frame, &sides, in->stream, true);
}

int32_t tpw_arena_copy_out(struct tpw_session *s, const struct tp_frame *frame,
                           const struct tpg_arena_copy_out_in *in) {
    struct sides sides = {.area = {.address = in->source, .pitch = in->pitch, .width = in->width, .height = in->height},
                          .offset = in->offset,
                          .host_pitch = in->host_pitch};
    return copy(s, frame, &sides, in->stream, false);
}
