/*
 * Copies straight between the client's pinned memory inside the shared segment and the device.
 *
 * Executor thread only. What the client names by offset is looked up among its runs (memory/pinned.c). Their bytes are the
 * client's and are never read here.
 */
#include "tpg_session.h"
#include "tpw_copy.h"

/* Checks both sides; *host is the first byte of the host side. */
static int32_t check(struct tpw_session *s, const struct tpg_area *area, uint64_t offset, uint64_t host_pitch,
                     unsigned char **host) {
    uint64_t before = 0, extent = 0;
    int32_t error = CUDA_SUCCESS;
    tpw_check_area(s, area, &error);
    TPW_TRY(error);
    if ((area->height > 1 && host_pitch < area->width) ||
        __builtin_mul_overflow(host_pitch, area->height - 1, &before) ||
        __builtin_add_overflow(before, area->width, &extent) || !tpw_run_at(s, offset, extent)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *host = s->segment->base + offset;
    return CUDA_SUCCESS;
}

int32_t tpw_arena_copy(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_area *area,
                       uint64_t offset, uint64_t host_pitch, uint64_t handle, bool in) {
    unsigned char *host = NULL;
    if (!area->width || !area->height) {
        return CUDA_SUCCESS;
    }
    int32_t error = check(s, area, offset, host_pitch, &host);
    CUstream stream = tpw_stream(s, frame, handle, &error);
    TPW_TRY(error);
    if (area->height == 1 || (area->pitch == area->width && host_pitch == area->width)) {
        return tpw_area_copy(s, area, 0, host, tpw_area_size(area), in, stream);
    }
    const struct tpg_rows rows = tpw_rows(area, host, host_pitch, in);
    if (TP_UNLIKELY(tpw_between_hosts(s, area->address, stream))) {
        return tpw_copy_host(s, &rows, stream);
    }
    struct tpw_aside aside;
    TPW_TRY(tpw_aside_begin(s, stream, area->address, &aside));
    error = tpw_copy_rows(s, &rows, in ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST,
                          in ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE, aside.stream);
    return tpw_aside_end(s, &aside, error);
}
