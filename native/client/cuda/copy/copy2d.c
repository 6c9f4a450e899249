/*
 * Copies of two and three dimensions between linear memory, and of arrays.
 *
 * Any thread; owns nothing but packing buffers for the length of a call. Rows of host memory that are not side by side
 * are packed here, so that the wire and the worker's staging memory carry only what is copied (rows of pinned memory in
 * the shared segment are copied where they lie); the device side keeps
 * its pitch and is copied by the worker's driver. Between host memory and an array the bytes go through a buffer on the device
 * for the length of the copy; in a stream that captures such copies are refused by name.
 */
#include "tpc_copy.h"
#include "tpg_cuda_send.h"

#include <stdlib.h>

#define PACK_MAX                                                                                                       \
    (16u << 20) /* bytes packed at a time: bounds the memory of a call, and is far above the cost of a round trip */

struct side {
    bool device;
    uint64_t address, pitch, slice; /* of the first byte copied; bytes between rows and between slices */
};

struct box {
    uint64_t width, height, depth;
};

static uint64_t extent(const struct side *side, const struct box *box, bool *fits) {
    uint64_t rows = 0, slices = 0, sum = 0;
    *fits = *fits && !__builtin_mul_overflow(side->pitch, box->height - 1, &rows) &&
            !__builtin_mul_overflow(side->slice, box->depth - 1, &slices) &&
            !__builtin_add_overflow(rows, slices, &sum) && !__builtin_add_overflow(sum, box->width, &sum);
    return sum;
}

/* One side of linear memory. */
static CUresult resolve(const struct tpc_copy_side *told, const struct box *box, int max_pitch, struct side *out) {
    uint64_t base = told->type == CU_MEMORYTYPE_HOST ? told->host : told->device, pitch = told->pitch;
    uint64_t reach = 0, before = 0;
    bool fits = !__builtin_add_overflow(told->x, box->width, &reach);
    switch (told->type) {
    case CU_MEMORYTYPE_HOST:
        out->device = false;
        break;
    case CU_MEMORYTYPE_DEVICE:
        out->device = true;
        break;
    case CU_MEMORYTYPE_UNIFIED:
        out->device = tpc_at_device(base);
        break;
    default:
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (!pitch) {
        pitch = reach; /* rows side by side; another pitch has to be as wide even for one row (580.159.04, measured) */
    }
    /* In memory of a pool a row may begin behind the pitch, as Dr.Jit's do; of cuMemAlloc's the driver refuses it (1). */
    if (!fits || pitch < (out->device ? box->width : reach) ||
        (max_pitch > 0 && pitch > (uint64_t)max_pitch && box->height > 1)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    out->pitch = pitch;
    /* A slice has as many rows as are told, or as it needs with those in front of the box (580.159.04, asked). */
    uint64_t rows = 0, slices = 0;
    if (__builtin_add_overflow(told->y, box->height, &rows) || (told->height && told->height < rows) ||
        __builtin_mul_overflow(pitch, told->height ? told->height : rows, &out->slice) ||
        __builtin_mul_overflow(pitch, told->y, &before) || __builtin_mul_overflow(out->slice, told->z, &slices) ||
        __builtin_add_overflow(before, slices, &before) || __builtin_add_overflow(before, told->x, &before) ||
        __builtin_add_overflow(base, before, &out->address)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    uint64_t bytes = extent(out, box, &fits);
    if (!base || !fits || bytes > UINT64_MAX - out->address) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    struct tpc_place place;
    CUresult result =
        out->device ? tpc_place_device(out->address, bytes, &place) : tpc_place_host(out->address, bytes, &place);
    out->device = place.device;
    out->address = place.address;
    return result;
}

/* ---- one slice ---- */

static void slice_here(const struct side *to, const struct side *from, uint64_t width, uint64_t height) {
    for (uint64_t row = 0; row < height; row++) {
        memmove((void *)(uintptr_t)(to->address + row * to->pitch),
                (const void *)(uintptr_t)(from->address + row * from->pitch), width);
    }
}

/* Before rows of host memory are packed: pinned memory whose bytes are to be taken later goes that way, and is *done. */
static CUresult settle_source(const char *name, const struct tpg_area *area, const struct tpc_host_side *host,
                              bool pinned, CUstream stream, bool sync, bool *done) {
    const size_t span = tpc_side_span(host);
    *done = pinned && tpc_late_needed(host->first, span);
    if (!*done) {
        return pinned ? CUDA_SUCCESS : tpc_pageable_settle(name, host->first, span, stream, sync);
    }
    tpc_twins_push();
    CUresult result = tpc_copy_late(name, area, host, stream);
    return result == CUDA_SUCCESS && sync ? tpc_copy_wait(name, stream) : result;
}

/* Between host memory and the device: rows that do not lie side by side are packed, some at a time. */
static CUresult slice(const char *name, const struct side *there, const struct side *here, uint64_t width,
                      uint64_t height, CUstream stream, bool sync, bool up) {
    unsigned char *host = (unsigned char *)(uintptr_t)here->address;
    struct tpg_area area = {.address = there->address, .pitch = there->pitch, .width = width, .height = height};
    if (here->pitch == width || height == 1) {
        return up ? tpc_copy_up(name, &area, host, stream, sync) : tpc_copy_down(name, host, &area, stream, sync);
    }
    const struct tpc_host_side side = {.first = host,
                                       .pitch = here->pitch,
                                       .slice = here->pitch * height,
                                       .width = width,
                                       .height = height,
                                       .depth = 1};
    const size_t span = tpc_side_span(&side);
    CUresult result;
    if (TP_UNLIKELY(atomic_load_explicit(&tpc_captures, memory_order_relaxed))) {
        CUgraph graph;
        result = tpc_capture_copy(name, stream, host, span, sync, &graph);
        if (result != CUDA_SUCCESS || graph) {
            return graph ? tpc_capture_host(name, graph, &area, host, here->pitch, up, stream) : result;
        }
    }
    if (tpc_copy_shared(name, &area, host, here->pitch, up, stream, sync, &result)) {
        return result;
    }
    const bool pinned = up && tpc_is_pinned(host, span);
    bool done = false;
    TPC_TRY(up ? settle_source(name, &area, &side, pinned, stream, sync, &done) : CUDA_SUCCESS);
    if (done) {
        return CUDA_SUCCESS;
    }
    uint64_t at_once = width > PACK_MAX ? 1 : PACK_MAX / width;
    at_once = at_once < height ? at_once : height;
    unsigned char *packed = malloc(at_once * width);
    result = packed ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
    for (uint64_t row = 0; row < height && result == CUDA_SUCCESS; row += at_once) {
        const struct side rows = {.address = here->address + row * here->pitch, .pitch = here->pitch};
        const struct side pack = {.address = (uint64_t)(uintptr_t)packed, .pitch = width};
        area.address = there->address + row * there->pitch;
        area.height = height - row < at_once ? height - row : at_once;
        if (up) {
            slice_here(&pack, &rows, width, area.height);
            result = tpc_copy_up(name, &area, packed, stream, sync);
        } else {
            result = tpc_copy_down(name, packed, &area, stream, true);
        }
        if (!up && result == CUDA_SUCCESS) {
            slice_here(&rows, &pack, width, area.height);
        }
    }
    free(packed);
    return result == CUDA_SUCCESS && sync && pinned ? tpc_copy_wait(name, stream) : result;
}

static CUresult slice_across(const char *name, const struct side *to, const struct side *from, uint64_t width,
                             uint64_t height, CUstream stream) {
    if (height == 1 || (to->pitch == width && from->pitch == width)) {
        return tpc_copy_across(name, to->address, from->address, width * height, stream);
    }
    return tpc_copy_rows(name, &(struct tpg_rows){to->address, to->pitch, from->address, from->pitch, width, height},
                         stream);
}

static CUresult copy_box(const char *name, struct side to, struct side from, struct box box, CUstream stream,
                         bool sync) {
    const uint64_t destination = to.address, source = from.address;
    CUresult result = CUDA_SUCCESS;
    if (to.slice == to.pitch * box.height && from.slice == from.pitch * box.height) {
        box.height *= box.depth; /* the slices lie side by side: one area */
        box.depth = 1;
    }
    if (!to.device && !from.device) {
        result = tpc_copy_here(name, stream, sync);
    } else if (sync && to.device && from.device) {
        result = tpc_copy_settle(name, destination, source, stream);
    }
    for (uint64_t z = 0; z < box.depth && result == CUDA_SUCCESS; z++) {
        if (to.device && from.device) {
            result = slice_across(name, &to, &from, box.width, box.height, stream);
        } else if (to.device) {
            result = slice(name, &to, &from, box.width, box.height, stream, sync, true);
        } else if (from.device) {
            result = slice(name, &from, &to, box.width, box.height, stream, sync, false);
        } else {
            slice_here(&to, &from, box.width, box.height);
        }
        to.address += to.slice;
        from.address += from.slice;
    }
    return sync && to.device && from.device ? tpc_copy_done(name, destination, source, stream, result) : result;
}

/* ---- arrays ---- */

static struct tpc_copy_side linear(const struct side *side) {
    return (struct tpc_copy_side){.type = CU_MEMORYTYPE_DEVICE,
                                  .device = side->address,
                                  .pitch = side->pitch,
                                  .height = side->slice / side->pitch};
}

/* A side as the worker's driver takes it; `memory` is where it lies, for one that is no array. */
static CUresult worker_side(const struct tpc_copy_side *told, const struct box *box, int max_pitch, struct side *memory,
                            struct tpc_copy_side *out) {
    *memory = (struct side){.device = true};
    if (told->type == CU_MEMORYTYPE_ARRAY) {
        *out =
            (struct tpc_copy_side){.type = told->type, .array = told->array, .x = told->x, .y = told->y, .z = told->z};
        bool there = tpc_handle_alive(TPG_ARRAY, (uint64_t)(uintptr_t)told->array);
        return there ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    }
    TPC_TRY(resolve(told, box, max_pitch, memory));
    *out = linear(memory);
    return CUDA_SUCCESS;
}

static CUresult send_box(const char *name, const struct tpc_copy_side *to, const struct tpc_copy_side *from,
                         const struct box *box, CUstream stream) {
    CUDA_MEMCPY3D copy = {.WidthInBytes = box->width, .Height = box->height, .Depth = box->depth};
    TPC_PUT_SIDE(&copy, src, *from);
    TPC_PUT_SIDE(&copy, dst, *to);
    struct tpg_copy_box_in in = {.copy = &copy, .copy_size = sizeof copy, .stream = (uint64_t)(uintptr_t)stream};
    return tpc_call_copy_box(name, &in);
}

static CUresult make_buffer(const char *name, const struct box *box, struct side *buffer) {
    uint64_t size = 0;
    if (__builtin_mul_overflow(box->width, box->height, &buffer->slice) ||
        __builtin_mul_overflow(buffer->slice, box->depth, &size)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    return tpc_call_memory_alloc(name, size, &buffer->address);
}

static CUresult copy_arrays(const char *name, const struct tpc_copy_side *told_to,
                            const struct tpc_copy_side *told_from, const struct box *box, int max_pitch,
                            CUstream stream, bool sync) {
    struct tpc_copy_side to, from;
    struct side to_memory, from_memory, buffer = {.device = true, .pitch = box->width};
    TPC_TRY(worker_side(told_to, box, max_pitch, &to_memory, &to));
    TPC_TRY(worker_side(told_from, box, max_pitch, &from_memory, &from));
    TPC_TRY(tpc_capture_refuse(name, stream));
    const bool up = !from_memory.device, down = !to_memory.device;
    if (up || down) {
        TPC_TRY(make_buffer(name, box, &buffer));
        *(up ? &from : &to) = linear(&buffer);
    }
    tpc_twins_push();
    CUresult result = up ? copy_box(name, buffer, from_memory, *box, stream, sync) : CUDA_SUCCESS;
    result = result ? result : send_box(name, &to, &from, box, stream);
    if (down && result == CUDA_SUCCESS) {
        result = copy_box(name, to_memory, buffer, *box, stream, sync);
    }
    if (up || down) { /* behind the copies */
        CUresult freed = tpc_post_memory_free(name, buffer.address);
        result = result ? result : freed;
    }
    return result;
}

/* ---- the API ---- */

static CUresult copy(const char *name, const struct tpc_copy_side *to, const struct tpc_copy_side *from, struct box box,
                     CUstream stream, bool sync) {
    TPC_CONTEXT(context);
    TPC_CHECK_HANDLE(STREAM, stream, true);
    struct side to_memory, from_memory;
    if (!box.width || !box.height || !box.depth) {
        return CUDA_SUCCESS;
    }
    int most = tpc_devices[context->device].what.attributes[CU_DEVICE_ATTRIBUTE_MAX_PITCH];
    if (to->type == CU_MEMORYTYPE_ARRAY || from->type == CU_MEMORYTYPE_ARRAY) {
        return copy_arrays(name, to, from, &box, most, stream, sync);
    }
    TPC_TRY(resolve(to, &box, most, &to_memory));
    TPC_TRY(resolve(from, &box, most, &from_memory));
    return copy_box(name, to_memory, from_memory, box, stream, sync);
}

CUresult tpc_copy_sides_good(const struct tpc_copy_side *to, const struct tpc_copy_side *from, const uint64_t size[3]) {
    TPC_CONTEXT(context);
    const struct box box = {size[0], size[1], size[2]};
    const int most = tpc_devices[context->device].what.attributes[CU_DEVICE_ATTRIBUTE_MAX_PITCH];
    struct tpc_copy_side told;
    struct side memory;
    TPC_TRY(worker_side(to, &box, most, &memory, &told));
    return worker_side(from, &box, most, &memory, &told);
}

CUresult tpc_copy_sides(const char *name, const struct tpc_copy_side *to, const struct tpc_copy_side *from,
                        const uint64_t size[3], CUstream stream) {
    return copy(name, to, from, (struct box){size[0], size[1], size[2]}, stream, false);
}

CUresult tpc_memcpy_2d(const char *name, const CUDA_MEMCPY2D *c, CUstream stream, bool sync) {
    if (!c) {
        TPC_CONTEXT(context);
        return CUDA_ERROR_INVALID_VALUE;
    }
    const struct tpc_copy_side to = TPC_SIDE(c, dst), from = TPC_SIDE(c, src);
    return copy(name, &to, &from, (struct box){c->WidthInBytes, c->Height, 1}, stream, sync);
}

CUresult tpc_memcpy_3d(const char *name, const CUDA_MEMCPY3D *c, CUstream stream, bool sync) {
    if (!c) { /* at the levels of detail nobody looks (580.159.04, measured) */
        TPC_CONTEXT(context);
        return CUDA_ERROR_INVALID_VALUE;
    }
    const struct tpc_copy_side to = TPC_SIDE_3D(c, dst), from = TPC_SIDE_3D(c, src);
    return copy(name, &to, &from, (struct box){c->WidthInBytes, c->Height, c->Depth}, stream, sync);
}

/* Unified addresses say where each side lies; its context, if it is told, has to be one. Levels are not looked at. */
CUresult tpc_memcpy_3d_peer(const char *name, const CUDA_MEMCPY3D_PEER *c, CUstream stream, bool sync) {
    TPC_CONTEXT(context);
    if (!c) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    TPC_CHECK_HANDLE(CONTEXT, c->srcContext, true);
    TPC_CHECK_HANDLE(CONTEXT, c->dstContext, true);
    const struct tpc_copy_side to = TPC_SIDE_3D(c, dst), from = TPC_SIDE_3D(c, src);
    return copy(name, &to, &from, (struct box){c->WidthInBytes, c->Height, c->Depth}, stream, sync);
}

CUresult tpc_memcpy_row(const char *name, struct tpc_copy_side to, struct tpc_copy_side from, size_t bytes,
                        CUstream stream, bool sync) {
    return copy(name, &to, &from, (struct box){bytes, 1, 1}, stream, sync);
}
