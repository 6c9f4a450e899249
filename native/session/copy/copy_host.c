/*
 * Copies from one place of host memory to another, in stream order.
 *
 * The driver makes such a copy by itself, in the call, when the stream has come to it (580.159.04, seen), by whatever name it is
 * asked for. The executor must not stand there: a host function or a word that the stream waits for may need it. So the
 * bytes go through device memory, of a pool of this process's own, which is charged while the stream has it.
 *
 * Executor thread only. Both sides were checked.
 */
#include "tpg_session.h"
#include "tpw_copy.h"

#include <stdlib.h>

#ifndef TPW_BETWEEN_MOST
#define TPW_BETWEEN_MOST (256ull << 20) /* bytes that go at a time, each time in two commands of the stream */
#endif

struct taken { /* until the stream has given it back */
    uint32_t device;
    uint64_t bytes;
};

static int32_t pool_of(struct tpw_session *s, uint32_t device, CUmemoryPool *pool) {
    struct tpw_memory *m = s->memory;
    CUmemPoolProps props = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
                            .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = (int)device}};
    int32_t error = m->between[device] ? CUDA_SUCCESS : (int32_t)s->cuda.cuMemPoolCreate(&m->between[device], &props);
    *pool = m->between[device];
    return error;
}

static void given_back(struct tpw_session *s, void *what, int32_t error) {
    (void)error;
    struct taken *taken = what;
    tpw_uncharge(s, taken->device, taken->bytes);
    free(taken);
}

int32_t tpw_copy_rows(struct tpw_session *s, const struct tpg_rows *rows, CUmemorytype to, CUmemorytype from,
                      CUstream stream) {
    const CUDA_MEMCPY2D copy = {.srcMemoryType = from,
                                .srcHost = (const void *)(uintptr_t)rows->from,
                                .srcDevice = rows->from,
                                .srcPitch = rows->from_pitch,
                                .dstMemoryType = to,
                                .dstHost = (void *)(uintptr_t)rows->to,
                                .dstDevice = rows->to,
                                .dstPitch = rows->to_pitch,
                                .WidthInBytes = rows->width,
                                .Height = rows->height};
    return (int32_t)s->cuda.cuMemcpy2DAsync_v2(&copy, stream);
}

static int32_t copy_part(struct tpw_session *s, const struct tpg_rows *rows, CUdeviceptr between, CUstream stream) {
    struct tpg_rows in = *rows, out = *rows;
    in.to = out.from = between;
    in.to_pitch = out.from_pitch = rows->width;
    TPW_TRY(tpw_copy_rows(s, &in, CU_MEMORYTYPE_DEVICE, CU_MEMORYTYPE_HOST, stream));
    return tpw_copy_rows(s, &out, CU_MEMORYTYPE_HOST, CU_MEMORYTYPE_DEVICE, stream);
}

/* Rows are taken some at a time; one row alone, in pieces. */
static int32_t copy_parts(struct tpw_session *s, struct tpg_rows rows, uint64_t most, CUdeviceptr between,
                          CUstream stream) {
    const bool one = rows.height == 1;
    const uint64_t step = one ? most : most / rows.width;
    int32_t error = CUDA_SUCCESS;
    for (uint64_t at = 0, end = one ? rows.width : rows.height; at < end && !error; at += step) {
        const uint64_t now = end - at < step ? end - at : step;
        struct tpg_rows part = rows;
        *(one ? &part.width : &part.height) = now;
        part.to += at * (one ? 1 : rows.to_pitch);
        part.from += at * (one ? 1 : rows.from_pitch);
        if (one) {
            part.to_pitch = part.from_pitch = now;
        }
        error = copy_part(s, &part, between, stream);
    }
    return error;
}

bool tpw_between_hosts(struct tpw_session *s, uint64_t address, CUstream stream) {
    const struct tpw_range *range = tpw_range_at(s, address);
    if (TP_LIKELY(!range || !tpw_is_host(range))) {
        return false;
    }
    const struct tpw_stream *record = tpw_stream_native(s, stream);
    return record && tpw_touchable(s, record); /* a graph waits for nobody in the call */
}

static uint64_t piece_of(const struct tpg_rows *rows) {
    const uint64_t all = rows->width * rows->height, most = all < TPW_BETWEEN_MOST ? all : TPW_BETWEEN_MOST;
    return rows->height == 1 ? most : (most + rows->width - 1) / rows->width * rows->width;
}

int32_t tpw_copy_host(struct tpw_session *s, const struct tpg_rows *rows, CUstream stream) {
    struct tpw_stream *record = tpw_stream_native(s, stream);
    const uint32_t device = record->device;
    struct tpg_rows flat = *rows;
    if (rows->to_pitch == rows->width && rows->from_pitch == rows->width) {
        flat.width *= flat.height;
        flat.height = 1;
    }
    const uint64_t most = piece_of(&flat);
    CUmemoryPool pool = NULL;
    CUdeviceptr between = 0;
    struct taken *taken = malloc(sizeof *taken);
    if (!taken) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *taken = (struct taken){.device = device, .bytes = (most + TPW_UNIT - 1) / TPW_UNIT * TPW_UNIT};
    int32_t error = tpw_charge(s, device, taken->bytes);
    if (error) {
        free(taken);
        return error;
    }
    error = pool_of(s, device, &pool);
    error = error ? error : (int32_t)s->cuda.cuMemAllocFromPoolAsync(&between, most, pool, stream);
    if (error) {
        given_back(s, taken, error);
        return error;
    }
    tpw_stream_count(s, record,
                     (uint32_t)(2 * ((flat.width * flat.height - 1) / most + 1)) + 2); /* and the piece's own */
    error = copy_parts(s, flat, most, between, stream);
    int32_t lost = (int32_t)s->cuda.cuMemFreeAsync(between, stream);
    if (tpw_when_done(s, stream, given_back, taken)) {
        given_back(s, taken, CUDA_SUCCESS);
    }
    return error ? error : lost;
}
