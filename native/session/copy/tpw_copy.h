/*
 * Copies: bytes of the client into device memory, out of it and across, and sets of device memory.
 *
 * Executor thread only. Sizes and addresses come from a hostile client and are checked against what it was given.
 */
#ifndef TPW_COPY_H
#define TPW_COPY_H

#include "tpg_ops.h"
#include "tpw_memory.h"

/* ---- copy_in.c ---- */
/* Copies packed bytes [offset, offset+size) into an area or out of it. */
static inline uint64_t tpw_area_size(const struct tpg_area *area) { return area->width * area->height; }
int32_t tpw_area_copy(struct tpw_session *s, const struct tpg_area *area, uint64_t offset, unsigned char *host,
                      uint64_t size, bool in, CUstream stream);
/* Takes an uploaded body out of a transfer; NULL with *error set. For images; the caller frees. */
unsigned char *tpw_take_upload(struct tpw_session *s, uint64_t transfer, size_t size, int32_t *error);

/* ---- copy_pinned.c ---- */
/* Between an area and pinned memory in the segment, at `offset` of it. */
int32_t tpw_arena_copy(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_area *area,
                       uint64_t offset, uint64_t host_pitch, uint64_t handle, bool in);

/* ---- copy_host.c ---- */
/* Whether a copy with host memory on its other side is one that the driver would wait in: `address` is the host's, too. */
bool tpw_between_hosts(struct tpw_session *s, uint64_t address, CUstream stream);
/* Such a copy, which waits for nothing. */
int32_t tpw_copy_host(struct tpw_session *s, const struct tpg_rows *rows, CUstream stream);
/* The rows of an area, and those of a pitch in host memory that are copied into it, or out of it. */
static inline struct tpg_rows tpw_rows(const struct tpg_area *area, unsigned char *host, uint64_t pitch, bool in) {
    const uint64_t other = (uint64_t)(uintptr_t)host;
    return (struct tpg_rows){.to = in ? area->address : other,
                             .to_pitch = in ? area->pitch : pitch,
                             .from = in ? other : area->address,
                             .from_pitch = in ? pitch : area->pitch,
                             .width = area->width,
                             .height = area->height};
}
/* A copy between memory of these types, as the driver makes it. */
int32_t tpw_copy_rows(struct tpw_session *s, const struct tpg_rows *rows, CUmemorytype to, CUmemorytype from,
                      CUstream stream);

#endif
