/*
 * Copies: bytes of the client into device memory, out of it and across, and sets of device memory.
 *
 * Executor thread only. Sizes and addresses come from a hostile client and are checked against what it was given.
 */
#ifndef TPW_COPY_H
#define TPW_COPY_H

#include "tpw_memory.h"

/* ---- copy_in.c ---- */
/* One area of device memory, and the copy of packed bytes [offset, offset+size) into it or out of it. */
struct tpw_area {
    uint64_t address, pitch, width, height;
};
static inline uint64_t tpw_area_size(const struct tpw_area *area) { return area->width * area->height; }
int32_t tpw_area_copy(struct tpw_session *s, const struct tpw_area *area, uint64_t offset, unsigned char *host,
                      uint64_t size, bool in, CUstream stream);
/* Takes an uploaded body out of a transfer; NULL with *error set. For images; the caller frees. */
unsigned char *tpw_take_upload(struct tpw_session *s, uint64_t transfer, size_t size, int32_t *error);

/* ---- copy_host.c ---- */
struct tpw_rows {
    uint64_t to, to_pitch, from, from_pitch, width, height;
};
/* Whether a copy with host memory on its other side is one that the driver would wait in: `address` is the host's, too. */
bool tpw_between_hosts(struct tpw_session *s, uint64_t address, CUstream stream);
/* Such a copy, which waits for nothing. */
int32_t tpw_copy_host(struct tpw_session *s, const struct tpw_rows *rows, CUstream stream);
/* The same into an area, or out of it, with rows of a pitch on the other side. */
int32_t tpw_copy_host_area(struct tpw_session *s, const struct tpw_area *area, unsigned char *host, uint64_t pitch,
                           bool in, CUstream stream);

#endif
