/*
 * What the memory files of the client share: kinds of range, host memory and its twins, address arithmetic.
 *
 * Included by range.c, place.c, memory.c, pointer.c, hostmem.c, copy.c, copy2d.c, memset.c, pool.c and vmm.c; other files use
 * tpc.h. Any thread. What is read here was written by this process, or was bounded when it came from the worker.
 */
#ifndef TPC_MEMORY_H
#define TPC_MEMORY_H

#include "tpc.h"

/* In tpc_range.flags, above the flags that CUDA defines: what made the range. A range without any belongs to another
 * family (a module's global) and cannot be freed. */
enum tpc_range_made {
    TPC_MADE_ALLOC = 1 << 16, /* cuMemAlloc */
    TPC_MADE_POOL = 2 << 16, /* cuMemAllocAsync; detail: handle of the pool, 0 = the device's current one at the time */
    TPC_MADE_MAP = 3 << 16,  /* cuMemMap; detail: its struct tpc_mapping */
    TPC_MADE_HOST = 4 << 16, /* cuMemHostAlloc; detail: struct tpc_host */
    TPC_MADE_REGISTER = 5 << 16, /* cuMemHostRegister; detail: struct tpc_host */
    TPC_MADE_TWIN = 6 << 16,     /* device side of mapped host memory; detail: struct tpc_host */
    TPC_MADE_ARENA = 7 << 16,    /* cuMemHostAlloc inside the shared segment; detail: struct tpc_host */
    TPC_MADE_MASK = 7 << 16,
    TPC_SYNC_MEMOPS = 1 << 20,
};
#define TPC_FLAGS_CUDA 0xffffu

/* ---- range.c ---- */
/* False when it overlaps what is there, or without memory. Gives it a buffer id if it has none. */
bool tpc_range_insert(const struct tpc_range *range);
/* Changes a range in place; `change` runs under the lock. False if none begins at `start`. */
bool tpc_range_change(uint64_t start, void (*change)(struct tpc_range *range, uint64_t value), uint64_t value);
/* The first range that begins at `address` or later; false when there is none. */
bool tpc_range_next(uint64_t address, struct tpc_range *out);
bool tpc_range_touches(uint64_t start, uint64_t size);
/* The context that device memory belongs to: of a mapping, its device's primary one. */
const struct tpc_context *tpc_range_context(const struct tpc_range *range);
/* Forgets the device memory that a destroyed context had; its host memory goes too. */
void tpc_memory_context_gone(const struct tpc_context *context);

/* ---- memory.c ---- */
/* True for an address that only device memory can have. */
bool tpc_is_device_address(uint64_t address);

/* ---- hostmem.c ---- */
struct tpc_host {
    struct tpc_host *next;
    unsigned char *memory;
    size_t size, mapped; /* mapped: bytes of our own mapping, 0 for registered memory */
    unsigned int flags;
    uint64_t twin;         /* address on the worker, 0 = none */
    unsigned char *shadow; /* what both sides last agreed on */
};
/* The device address of a byte of pinned memory, making the twin if there is none. */
CUresult tpc_host_device_address(uint64_t address, CUdeviceptr *out);
/* Where [memory, memory+size) begins in the shared segment; 0 unless all of it lies in one pinned allocation there. */
uint64_t tpc_host_offset(const void *memory, uint64_t size);
/* True for an address that the device reaches and whose bytes lie on the host. */
bool tpc_is_mapped_host(uint64_t address);

/* ---- reach.c ---- */
/* Pinned memory whose host address is not the device's was made, or has ended. */
void tpc_unreached_add(uint64_t start, uint64_t size);
void tpc_unreached_remove(void);

/* ---- place.c ---- */
/* Where a copy or a memset finds [address, address+size): at an address of the device, or in host memory of this process. */
struct tpc_place {
    bool device;
    uint64_t address;
};
/* Of an argument that is to be memory of the device, which pinned memory by its host address is, too; CUDA_ERROR_INVALID_VALUE if
 * neither holds all of it. */
CUresult tpc_place_device(uint64_t address, uint64_t size, struct tpc_place *out);
/* Of one that is to be host memory. */
CUresult tpc_place_host(uint64_t address, uint64_t size, struct tpc_place *out);
/* Of one that the address decides about. */
CUresult tpc_place_either(uint64_t address, uint64_t size, struct tpc_place *out);

/* ---- copy.c ---- */
/* The device side of a copy: rows of `width` bytes, `pitch` apart. */
struct tpc_area {
    uint64_t address, pitch, width, height;
};
static inline struct tpc_area tpc_line(uint64_t address, uint64_t size) {
    return (struct tpc_area){.address = address, .pitch = size, .width = size, .height = 1};
}
/* Bytes from the first to the last one; 0 with *fits false when that overflows. */
static inline uint64_t tpc_area_extent(const struct tpc_area *area, bool *fits) {
    uint64_t before = 0, extent = 0;
    *fits = area->height && !__builtin_mul_overflow(area->pitch, area->height - 1, &before) &&
            !__builtin_add_overflow(before, area->width, &extent);
    return *fits ? extent : 0;
}
/* Packed host bytes into an area or out of it. `sync` is the form of the API call: everything the program does next
 * comes after the copy. The range checks have been made. */
CUresult tpc_copy_up(const char *name, const struct tpc_area *area, const void *source, CUstream stream, bool sync);
CUresult tpc_copy_down(const char *name, void *destination, const struct tpc_area *area, CUstream stream, bool sync);
/* A download into any memory that nobody waits for yet: the bytes have come when a wait for the stream returns. */
CUresult tpc_copy_down_later(const char *name, void *destination, const struct tpc_area *area, CUstream stream);
/* Makes the copy a node of the graph that the stream captures, for host memory that the GPU does not reach; rows `host_pitch`
 * apart. */
CUresult tpc_capture_host(const char *name, CUgraph graph, const struct tpc_area *area, const void *host,
                          uint64_t host_pitch, bool up, CUstream stream);
/* The same between pinned memory in the shared segment and an area, rows `host_pitch` apart in host memory. False when the
 * host side does not lie there: nothing was done. */
bool tpc_copy_shared(const char *name, const struct tpc_area *area, const void *host, uint64_t host_pitch, bool up,
                     CUstream stream, bool sync, CUresult *result);
CUresult tpc_copy_across(const char *name, uint64_t destination, uint64_t source, uint64_t size, CUstream stream);
/* The begin of one in the form that is synchronous: between contexts it comes after everything that both of them, and the
 * current one, have to do (cuMemcpyPeer). */
CUresult tpc_copy_settle(uint64_t destination, uint64_t source);
/* And its end: it waits if a side is host memory, which the program may look at or change now, or belongs to another context,
 * which would not wait by itself. Between memory of one context the driver does not wait either. */
CUresult tpc_copy_done(const char *name, uint64_t destination, uint64_t source, CUstream stream, CUresult result);
/* cuMemcpyAsync. */
CUresult tpc_copy_anywhere(const char *name, uint64_t to, uint64_t from, uint64_t size, CUstream stream);
/* Waits until `stream` has done everything that was sent before. */
CUresult tpc_copy_wait(const char *name, CUstream stream);
bool tpc_is_pinned(const void *memory, size_t size);

/* ---- copy_late.c ---- */
/* Why bytes of pinned memory may not be taken when an upload is called: host functions that are outstanding, and graphs that may
 * have some. */
extern _Atomic uint32_t tpc_late_reasons;
struct tpc_host_side; /* tpc_graph.h */
/* Whether something that stands before an upload in its stream may still write the memory. */
static inline bool tpc_late_needed(const void *start, uint64_t size) {
    return TP_UNLIKELY(atomic_load_explicit(&tpc_late_reasons, memory_order_acquire)) ||
           TP_UNLIKELY(tp_download_pending(tpc_conn, start, size));
}
/* Before bytes of pageable memory are taken, which lie within `span`: the synchronous form comes behind what the stream has to do,
 * while that may be a host function. */
CUresult tpc_pageable_settle(const char *name, const void *source, size_t span, CUstream stream, bool sync);
/* Copies the side, packed, into the area, with the bytes that are there when the stream gets to it. Returns at once. */
CUresult tpc_copy_late(const char *name, const struct tpc_area *area, const struct tpc_host_side *side,
                       CUstream stream);

#endif
