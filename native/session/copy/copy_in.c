/*
 * Copies from the client into device memory.
 *
 * Small data comes in the frame and goes through pinned buffers; large data comes as a transfer, in pinned blocks that
 * the data threads have filled and that the copy engine reads. Executor thread only. Data and sizes are the client's:
 * the number of bytes that the driver reads is always a number of bytes that were received, and the area they go to was
 * checked first.
 *
 * Stream capture: nothing here may be issued into a capturing stream, because a graph would read buffers and blocks again
 * when it runs; such copies are refused, and the capture ends as the driver ends it.
 */
#include "tpg_session.h"
#include "tpw_copy.h"
#include <stdlib.h>

/* Up to here the driver takes the bytes of pageable memory into the command itself, at the call: no buffer, no point. */
#define DIRECT_MAX 4096u
#define TAKE_UPLOAD_MAX (2ull << 30) /* images: ELF relocations end there */

static void buffer_done(struct tpw_session *s, void *what, int32_t error) { tpw_buffer_give(s, what); }

/* ---- areas ---- */

static int32_t copy_rows(struct tpw_session *s, uint64_t address, uint64_t pitch, uint64_t width, uint64_t rows,
                         unsigned char *host, bool in, CUstream stream) {
    const struct tpg_area area = {.address = address, .pitch = pitch, .width = width, .height = rows};
    const struct tpg_rows both = tpw_rows(&area, host, width, in);
    if (TP_UNLIKELY(tpw_between_hosts(s, address, stream))) {
        return tpw_copy_host(s, &both, stream);
    }
    if (rows == 1 || pitch == width) {
        return (int32_t)(in ? s->cuda.cuMemcpyHtoDAsync_v2(address, host, width * rows, stream)
                            : s->cuda.cuMemcpyDtoHAsync_v2(host, address, width * rows, stream));
    }
    return tpw_copy_rows(s, &both, in ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST,
                         in ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE, stream);
}

static int32_t copy_part(struct tpw_session *s, const struct tpg_area *area, uint64_t offset, unsigned char *host,
                         uint64_t size, bool in, CUstream stream) {
    if (area->height == 1 || area->pitch == area->width) {
        return copy_rows(s, area->address + offset, size, size, 1, host, in, stream);
    }
    int32_t error = CUDA_SUCCESS;
    while (size && !error) {
        uint64_t row = offset / area->width, column = offset % area->width;
        uint64_t part = area->width - column < size ? area->width - column : size, rows = 1;
        if (part == area->width) {
            rows = size / area->width;
        }
        error = copy_rows(s, area->address + row * area->pitch + column, area->pitch, part, rows, host, in, stream);
        offset += part * rows;
        host += part * rows;
        size -= part * rows;
    }
    return error;
}

int32_t tpw_area_copy(struct tpw_session *s, const struct tpg_area *area, uint64_t offset, unsigned char *host,
                      uint64_t size, bool in, CUstream stream) {
    struct tpw_aside aside;
    int32_t error = tpw_aside_begin(s, stream, area->address, &aside);
    return error ? error : tpw_aside_end(s, &aside, copy_part(s, area, offset, host, size, in, aside.stream));
}

/* A copy in the form that is synchronous for the program has happened for everything that the program does next, also
 * for streams that do not wait for the legacy stream by themselves. What managed memory holds is moved when the client has waited
 * for everything, or was never the GPU's. */
static int32_t order_after(struct tpw_session *s, CUstream stream) {
    CUevent event = NULL;
    int32_t error = CUDA_SUCCESS;
    for (struct tpw_stream *other = s->streams; other && !error; other = other->next) {
        unsigned int flags = 0;
        /* Legacy streams wait by themselves. Flags are told but while a stream captures, when nothing may be put into it anyway. */
        if (other->context_id != s->entered || other->dying || other->beside || other->native == stream ||
            (uintptr_t)other->native <= 2 || !tpw_touchable(s, other)) {
            continue;
        }
        error = (int32_t)s->cuda.cuStreamGetFlags(other->native, &flags);
        if (error || !(flags & CU_STREAM_NON_BLOCKING)) {
            continue;
        }
        if (!event) {
            error = (int32_t)s->cuda.cuEventCreate(&event, CU_EVENT_DISABLE_TIMING);
            error = error ? error : (int32_t)s->cuda.cuEventRecord(event, stream);
        }
        error = error ? error : (int32_t)s->cuda.cuStreamWaitEvent(other->native, event, 0);
    }
    if (event) {
        s->cuda.cuEventDestroy_v2(event);
    }
    return error;
}

/* ---- operations ---- */

int32_t tpw_copy_in(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_copy_in_in *in) {
    const struct tpg_area *area = &in->area;
    int32_t error = CUDA_SUCCESS;
    tpw_check_area(s, area, &error);
    CUstream stream = tpw_stream(s, frame, in->stream, &error);
    tpw_refuse_capturing(s, stream, &error);
    TPW_TRY(error);
    if (in->data_size != tpw_area_size(area)) {
        tpw_violation(s, frame, "copy_in with data that does not fill its area");
        return TPW_LATER;
    }
    const unsigned char *data = in->data;
    if (in->data_size && in->data_size <= DIRECT_MAX && area->height == 1) {
        error = tpw_area_copy(s, area, 0, (unsigned char *)(uintptr_t)data, in->data_size, true, stream);
    } else {
        for (uint64_t offset = 0; offset < in->data_size && !error;) {
            uint64_t size = in->data_size - offset < TPW_BUFFER_SIZE ? in->data_size - offset : TPW_BUFFER_SIZE;
            unsigned char *buffer = tpw_buffer_take(s, &error);
            if (!buffer) {
                break;
            }
            memcpy(buffer, data + offset, size);
            error = tpw_area_copy(s, area, offset, buffer, size, true, stream);
            int32_t lost = tpw_when_done(s, stream, buffer_done, buffer);
            if (lost) {
                s->cuda.cuStreamSynchronize(stream); /* nothing may read the buffer when it is used again */
                tpw_buffer_give(s, buffer);
                error = error ? error : lost;
            }
            offset += size;
        }
    }
    return error || !in->ordered ? error : order_after(s, stream);
}

static void block_done(struct tpw_session *s, void *what, int32_t error) {
    s->memory->uploads_out--;
    tpw_upload_done(s->link, what);
}

static void spill_done(struct tpw_session *s, void *what, int32_t error) { tpw_spill_give(s, what); }

static bool too_many_out(struct tpw_session *s) { return s->memory->uploads_out >= tpw_upload_blocks(s->link) / 2; }

/* Issues the copy of one block and sees to it that the block comes back. */
static int32_t copy_block(struct tpw_session *s, const struct tpg_area *area, struct tpw_block *block,
                          CUstream stream) {
    int32_t error = CUDA_SUCCESS, lost;
    unsigned char *spill = NULL, *source = block->memory;
    uint64_t offset = block->offset, size = block->size;
    bool only = tpw_upload_blocks(s->link) < 2; /* no queued copy may hold the only one: nothing to wait for */
    if (only || !tpw_wait_briefly(s, too_many_out)) {
        spill = tpw_spill_take(s, &error);
        if (!spill) {
            tpw_upload_done(s->link, block);
            return error;
        }
        memcpy(spill, block->memory, size);
        tpw_upload_done(s->link, block);
        source = spill;
    } else {
        s->memory->uploads_out++;
    }
    error = tpw_area_copy(s, area, offset, source, size, true, stream);
    lost = spill ? tpw_when_done(s, stream, spill_done, spill) : tpw_when_done(s, stream, block_done, block);
    if (lost) {
        s->cuda.cuStreamSynchronize(stream); /* nothing may read it when it is used again */
        if (spill) {
            spill_done(s, spill, lost);
        } else {
            block_done(s, block, lost);
        }
    }
    return error ? error : lost;
}

/* The next block of a transfer of which `left` bytes are missing; NULL when the session is about to end. */
static struct tpw_block *next_block(struct tpw_session *s, uint64_t transfer, uint64_t size, uint64_t left,
                                    const struct tp_frame *frame) {
    struct tpw_block *block;
    while (!(block = tpw_upload_take(s->link, transfer))) {
        if (!tpw_wait_a_moment(s)) {
            return NULL;
        }
    }
    if (block->size > left || block->offset > size || block->size > size - block->offset) {
        tpw_upload_done(s->link, block);
        tpw_violation(s, frame, "transfer with bytes outside its size");
        return NULL;
    }
    return block;
}

int32_t tpw_copy_in_bulk(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_copy_in_bulk_in *in) {
    uint64_t size = 0;
    if (!in->area.width || !in->area.height || __builtin_mul_overflow(in->area.width, in->area.height, &size)) {
        tpw_violation(s, frame, "copy_in_bulk of an empty or endless area");
        return TPW_LATER;
    }
    int32_t error = tpw_enter(s, frame);
    tpw_check_area(s, &in->area, &error);
    CUstream stream = tpw_stream(s, frame, in->stream, &error);
    tpw_refuse_capturing(s, stream, &error);
    uint64_t left = size;
    while (left && !error) {
        struct tpw_block *block = tpw_hold_on(s) ? next_block(s, in->transfer, size, left, frame) : NULL;
        if (!block) {
            return TPW_LATER;
        }
        left -= block->size;
        error = copy_block(s, &in->area, block, stream);
    }
    if (error) {
        tpw_upload_drop(s->link, in->transfer, left);
    }
    return error || !in->ordered ? error : order_after(s, stream);
}

unsigned char *tpw_take_upload(struct tpw_session *s, uint64_t transfer, size_t size, int32_t *error) {
    static const struct tp_frame none;
    if (*error || !size) {
        *error = *error ? *error : CUDA_ERROR_INVALID_VALUE;
        return NULL;
    }
    /* Zeros, because blocks may cover some bytes twice and others not at all: what lay here before is not the client's. */
    unsigned char *body = size <= TAKE_UPLOAD_MAX ? calloc(1, size) : NULL;
    if (!body) {
        tpw_upload_drop(s->link, transfer, size);
        *error = CUDA_ERROR_OUT_OF_MEMORY;
        return NULL;
    }
    for (size_t left = size; left;) {
        struct tpw_block *block = next_block(s, transfer, size, left, &none);
        if (!block) {
            free(body);
            *error = CUDA_ERROR_OPERATING_SYSTEM;
            return NULL;
        }
        left -= block->size;
        memcpy(body + block->offset, block->memory, block->size);
        tpw_upload_done(s->link, block);
    }
    return body;
}
