/*
 * Copies: between device memory, pinned memory and the rest of the program's memory; in streams, and as nodes of graphs.
 *
 * Any thread. Nothing here is read from memory that others can write, except the bytes that are copied.
 */
#ifndef TPC_COPY_H
#define TPC_COPY_H

#include "tpc_memory.h"
#include "tpc_stream.h"

/* ---- sides ---- */
/* The program's side of a copy: its first byte, and the box; and how the program put it. */
struct tpc_host_side {
    unsigned char *first;
    uint64_t pitch, slice, width, height, depth;
    CUmemorytype type;
    uint64_t base, x, y, z, told_pitch, told_height;
};
/* Bytes from the first to the last one. */
static inline uint64_t tpc_side_span(const struct tpc_host_side *side) {
    return side->slice * (side->depth - 1) + side->pitch * (side->height - 1) + side->width;
}
static inline struct tpc_host_side tpc_packed_side(const void *first, uint64_t size) {
    return (struct tpc_host_side){.first = (unsigned char *)(uintptr_t)first,
                                  .pitch = size,
                                  .slice = size,
                                  .width = size,
                                  .height = 1,
                                  .depth = 1};
}
/* Bytes from the first to the last one; 0 with *fits false when that overflows. */
static inline uint64_t tpc_area_extent(const struct tpg_area *area, bool *fits) {
    uint64_t before = 0, extent = 0;
    *fits = area->height && !__builtin_mul_overflow(area->pitch, area->height - 1, &before) &&
            !__builtin_add_overflow(before, area->width, &extent);
    return *fits ? extent : 0;
}

/* ---- copy.c ---- */
/* Packed host bytes into an area or out of it. `sync` is the form of the API call: everything the program does next
 * comes after the copy. The range checks have been made. */
CUresult tpc_copy_up(const char *name, const struct tpg_area *area, const void *source, CUstream stream, bool sync);
CUresult tpc_copy_down(const char *name, void *destination, const struct tpg_area *area, CUstream stream, bool sync);
/* A download into any memory that nobody waits for yet: the bytes have come when a wait for the stream returns. */
CUresult tpc_copy_down_later(const char *name, void *destination, const struct tpg_area *area, CUstream stream);
/* A copy between pinned memory in the shared segment and an area, rows `host_pitch` apart in host memory. False when the
 * host side does not lie there: nothing was done. */
bool tpc_copy_shared(const char *name, const struct tpg_area *area, const void *host, uint64_t host_pitch, bool up,
                     CUstream stream, bool sync, CUresult *result);
CUresult tpc_copy_across(const char *name, uint64_t destination, uint64_t source, uint64_t size, CUstream stream);
CUresult tpc_copy_rows(const char *name, const struct tpg_rows *rows, CUstream stream); /* of device memory, too */
/* The begin of one in the form that is synchronous: between contexts it comes after everything that both of them, and the
 * current one, have to do (cuMemcpyPeer). One from host memory that the GPU reaches comes after all that the stream waits for: the driver
 * may read it at the call. */
CUresult tpc_copy_settle(const char *name, uint64_t destination, uint64_t source, CUstream stream);
/* And its end: it waits if a side is host memory, which the program may look at or change now, or belongs to another context,
 * which would not wait by itself. Between memory of one context the driver does not wait either. */
CUresult tpc_copy_done(const char *name, uint64_t destination, uint64_t source, CUstream stream, CUresult result);
/* What the functions that copy plain ranges are made by (api/, "by"); the last finds out by the addresses what is copied where. */
CUresult tpc_memcpy_up(const char *name, CUdeviceptr to, const void *from, size_t size, CUstream stream, bool sync);
CUresult tpc_memcpy_down(const char *name, void *to, CUdeviceptr from, size_t size, CUstream stream, bool sync);
CUresult tpc_memcpy_across(const char *name, CUdeviceptr to, CUdeviceptr from, size_t size, CUstream stream, bool sync);
CUresult tpc_memcpy_anywhere(const char *name, CUdeviceptr to, CUdeviceptr from, size_t size, CUstream stream,
                             bool sync);
/* Waits until `stream` has done everything that was sent before. */
CUresult tpc_copy_wait(const char *name, CUstream stream);
/* Before this thread copies from host memory to host memory, at the stream's place. */
CUresult tpc_copy_here(const char *name, CUstream stream, bool sync);
bool tpc_is_pinned(const void *memory, size_t size);

/* ---- copy_late.c ---- */
/* Whether something that stands before an upload in its stream may still write the memory. */
static inline bool tpc_late_needed(const void *start, uint64_t size) {
    return TP_UNLIKELY(atomic_load_explicit(&tpc_late_reasons, memory_order_acquire)) ||
           TP_UNLIKELY(tp_download_pending(tpc_conn, start, size));
}
/* Before bytes of pageable memory are taken, which lie within `span`: the synchronous form comes behind what the stream has to do,
 * while that may be a host function. */
CUresult tpc_pageable_settle(const char *name, const void *source, size_t span, CUstream stream, bool sync);
/* Copies the side, packed, into the area, with the bytes that are there when the stream gets to it. Returns at once. */
CUresult tpc_copy_late(const char *name, const struct tpg_area *area, const struct tpc_host_side *side,
                       CUstream stream);

/* ---- copy_node.c ---- */
/* For a copy between host memory and the device while captures are under way: refuses it, or lets it pass; *graph, unless
 * it is NULL then, is one that can only have the copy by a buffer (tpc_capture_host). */
CUresult tpc_capture_copy(const char *name, CUstream stream, const void *host, size_t size, bool sync, CUgraph *graph);
/* Makes the copy a node of the graph that the stream captures, for host memory that the GPU does not reach; rows `host_pitch`
 * apart. */
CUresult tpc_capture_host(const char *name, CUgraph graph, const struct tpg_area *area, const void *host,
                          uint64_t host_pitch, bool up, CUstream stream);
/* Whether a graph may read and write the host memory at every launch, and the device address that it then has. */
bool tpc_host_in_graph(const void *host, size_t size, uint64_t *device);
/* A buffer that stands for the program's memory in the nodes that copy it. */
struct tpc_host_copy {
    struct tpc_host_copy *next;
    uint64_t address; /* of the buffer; 0 once its context is gone */
    uint64_t pinned;  /* what takes its place where host functions see to the copy; 0 until one does */
    struct tpc_host_side side;
    bool up;
    struct tpc_context *context;
    unsigned int life; /* of the context */
    int references;    /* one for each node that was made: graphs with it together have that one */
    unsigned long long
        memory; /* buffer id of what the side lay in when a node was made with it last; 0: pageable memory */
};
/* The caller has it until it gives it to one of the next two. */
CUresult tpc_host_copy_make(const char *name, const struct tpc_host_side *side, bool up, struct tpc_host_copy **out);
/* It ends with the graph and what was made of it, or when the node (0 = not known) needs it no more; or, on failure, now. */
CUresult tpc_host_copy_keep(struct tpc_host_copy *copy, CUgraph graph, uint64_t node);
/* The graph gives up what it has for the node. */
CUresult tpc_host_copy_unkeep(CUgraph graph, uint64_t node);
void tpc_host_copy_drop(struct tpc_host_copy *copy);
/* What the program said of the side of a node that has this buffer; false when it is none. */
bool tpc_host_copy_side(uint64_t address, struct tpc_host_side *side);
/* How many there are; all their addresses, which the caller frees, NULL without memory. */
extern _Atomic size_t tpc_host_copies;
uint64_t *tpc_host_copy_addresses(size_t *count);
/* The one with that address, NULL if none is left, and one that is there: to be dropped. */
struct tpc_host_copy *tpc_host_copy_hold(uint64_t address);
/* Gives it pinned memory of the worker, for as long as it lives. */
CUresult tpc_host_copy_pin(const char *name, struct tpc_host_copy *copy);
void tpc_host_copy_retain(struct tpc_host_copy *copy);

/* One side of the parameters of a copy, whichever it is. */
struct tpc_copy_side {
    CUmemorytype type;
    CUarray array;
    uint64_t host, device, x, y, z, pitch, height;
};
#define TPC_ROW(host_or_device, address)                                                                               \
    (struct tpc_copy_side) {                                                                                           \
        .type = CU_MEMORYTYPE_##host_or_device, .host = (uint64_t)(uintptr_t)(address),                                \
        .device = (uint64_t)(uintptr_t)(address)                                                                       \
    }
#define TPC_IN_ARRAY(which, offset)                                                                                    \
    (struct tpc_copy_side) { .type = CU_MEMORYTYPE_ARRAY, .array = (which), .x = (offset) }
/* What the functions that copy boxes, and rows of arrays, are made by (api/, "by"). */
CUresult tpc_memcpy_2d(const char *name, const CUDA_MEMCPY2D *copy, CUstream stream, bool sync);
CUresult tpc_memcpy_3d(const char *name, const CUDA_MEMCPY3D *copy, CUstream stream, bool sync);
CUresult tpc_memcpy_3d_peer(const char *name, const CUDA_MEMCPY3D_PEER *copy, CUstream stream, bool sync);
CUresult tpc_memcpy_row(const char *name, struct tpc_copy_side to, struct tpc_copy_side from, size_t bytes,
                        CUstream stream, bool sync);
/* Whether both sides of a copy of `size` bytes, rows and slices are what they may be; and the copy, in the stream. */
CUresult tpc_copy_sides_good(const struct tpc_copy_side *to, const struct tpc_copy_side *from, const uint64_t size[3]);
CUresult tpc_copy_sides(const char *name, const struct tpc_copy_side *to, const struct tpc_copy_side *from,
                        const uint64_t size[3], CUstream stream);
#define TPC_SIDE_MEMBERS(p, which)                                                                                     \
    .type = (p)->which##MemoryType, .array = (p)->which##Array, .host = (uint64_t)(uintptr_t)(p)->which##Host,         \
    .device = (p)->which##Device, .x = (p)->which##XInBytes, .y = (p)->which##Y, .pitch = (p)->which##Pitch
#define TPC_SIDE(p, which) {TPC_SIDE_MEMBERS(p, which)}
#define TPC_SIDE_3D(p, which) {TPC_SIDE_MEMBERS(p, which), .z = (p)->which##Z, .height = (p)->which##Height}
#define TPC_PUT_SIDE(p, which, side)                                                                                   \
    do {                                                                                                               \
        (p)->which##MemoryType = (side).type;                                                                          \
        (p)->which##Array = (side).array;                                                                              \
        (p)->which##Host = (void *)(uintptr_t)(side).host;                                                             \
        (p)->which##Device = (side).device;                                                                            \
        (p)->which##XInBytes = (side).x;                                                                               \
        (p)->which##Y = (side).y;                                                                                      \
        (p)->which##Z = (side).z;                                                                                      \
        (p)->which##Pitch = (side).pitch;                                                                              \
        (p)->which##Height = (side).height;                                                                            \
    } while (0)

#endif
