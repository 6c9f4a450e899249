/*
 * Copies from device memory to the client.
 *
 * Small data goes through pinned buffers into the reply or a host write; large data through the link's pinned blocks onto
 * the data connections, many copies in flight, each block sent when its copy is done. Executor thread only. The areas
 * were checked; the bytes are sent exactly as the copy engine wrote them.
 *
 * All copies of one operation are issued before the next frame is looked at, because later work in the same stream may
 * overwrite the source: with more data than blocks the executor stays here until blocks come back, or, when the stream
 * stands still, goes on with spills of its own pinned memory, because the stream may be waiting for a frame that comes
 * after this one.
 *
 * Stream capture: refused as in copy_in.c.
 */
#include "tpg_answer.h"
#include "tpg_session.h"
#include "tpw_copy.h"
#include <stdlib.h>

#define STALL_NS 5000000u /* without a block for so long: the stream may be waiting for the client */
#define SEND_WAIT_NS 1000000u

struct download {
    struct tp_frame frame; /* header only */
    uint64_t transfer, size, sent;
    uint32_t outstanding; /* copies issued and not complete */
    bool issued, posted;  /* posted: nobody waits, the client is told of a failure by a message */
    int32_t error;
    unsigned char *buffer; /* small: the only copy goes here */
};

/* The client waits for these bytes in `transfer`: they will not come. */
static void end_transfer(struct tpw_session *s, uint64_t transfer) {
    struct tpg_download_ended_in message = {.transfer = transfer};
    tpg_send_download_ended(s, &message);
}

static void finish(struct tpw_session *s, struct download *d) {
    if (d->posted && d->error) {
        end_transfer(s, d->transfer);
    }
    tpw_conclude(s, &d->frame, d->error);
    free(d);
}

/* ---- small ---- */

static void send_host_write(struct tpw_session *s, const struct download *d) {
    struct tpg_host_write_in message = {.transfer = d->transfer, .data = d->buffer, .data_size = d->size};
    tpg_send_host_write(s, &message);
}

static void send_reply(struct tpw_session *s, const struct download *d) {
    struct tpg_copy_out_out out = {.data = d->buffer, .data_size = d->size};
    tpg_answer_copy_out(s, &d->frame, CUDA_SUCCESS, &out);
}

static void small_done(struct tpw_session *s, void *what, int32_t error) {
    struct download *d = what;
    d->error = error;
    if (!error && d->posted) {
        send_host_write(s, d);
    }
    if (!error && !d->posted) {
        send_reply(s, d);
        d->frame.flags = 0;
    }
    tpw_buffer_give(s, d->buffer);
    finish(s, d);
}

static int32_t start_small(struct tpw_session *s, struct download *d, const struct tpg_area *area, CUstream stream) {
    int32_t error = CUDA_SUCCESS;
    d->buffer = tpw_buffer_take(s, &error);
    TPW_TRY(error);
    error = tpw_area_copy(s, area, 0, d->buffer, d->size, false, stream);
    if (!error) {
        error = tpw_when_done(s, stream, small_done, d);
        if (!error) {
            return TPW_LATER;
        }
        s->cuda.cuStreamSynchronize(stream);
    }
    tpw_buffer_give(s, d->buffer);
    return error;
}

/* ---- large ---- */

struct piece {
    struct download *download;
    struct tpw_block *block; /* NULL: the bytes are in `spill` */
    unsigned char *spill;
    uint64_t offset;
    uint32_t size;
};

/* A block for bytes that lie in a spill. Blocks come back as fast as the client reads, whatever the GPU does. */
static struct tpw_block *block_for(struct tpw_session *s, const struct piece *piece) {
    struct tpw_block *block = NULL;
    while (!(block = tpw_download_block(s->link)) && tpw_link_status(s->link) == TP_OK) {
        tpw_link_wait(s->link, -1, SEND_WAIT_NS);
    }
    if (block) {
        memcpy(block->memory, piece->spill, piece->size);
    }
    return block;
}

static void piece_done(struct tpw_session *s, void *what, int32_t error) {
    struct piece *piece = what;
    struct download *d = piece->download;
    d->outstanding--;
    d->error = d->error ? d->error : error;
    struct tpw_block *block = piece->block;
    s->memory->downloads_out -= piece->block != NULL;
    if (piece->spill) {
        block = d->error ? NULL : block_for(s, piece);
        tpw_spill_give(s, piece->spill);
    }
    if (d->error && block) {
        tpw_download_drop(s->link, block);
    } else if (block) {
        block->transfer = d->transfer;
        block->offset = piece->offset;
        block->size = piece->size;
        d->sent += piece->size;
        tpw_download_send(s->link, block, d->sent == d->size);
    }
    free(piece);
    if (d->issued && !d->outstanding) {
        finish(s, d);
    }
}

static int32_t issue_piece(struct tpw_session *s, struct download *d, const struct tpg_area *area, uint64_t offset,
                           struct tpw_block *block, unsigned char *spill, CUstream stream) {
    struct piece *piece = malloc(sizeof *piece);
    int32_t error = piece ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
    if (!error) {
        *piece = (struct piece){.download = d,
                                .block = block,
                                .spill = spill,
                                .offset = offset,
                                .size = (uint32_t)(d->size - offset < TP_CHUNK_MAX ? d->size - offset : TP_CHUNK_MAX)};
        error = tpw_area_copy(s, area, offset, spill ? spill : block->memory, piece->size, false, stream);
    }
    if (!error) {
        error = tpw_when_done(s, stream, piece_done, piece);
        if (error) {
            s->cuda.cuStreamSynchronize(stream); /* nothing may write it when it is used again */
        }
    }
    if (!error) {
        d->outstanding++;
        s->memory->downloads_out += block != NULL;
        return CUDA_SUCCESS;
    }
    free(piece);
    if (spill) {
        tpw_spill_give(s, spill);
    } else {
        tpw_download_drop(s->link, block);
    }
    return error;
}

static int32_t start_large(struct tpw_session *s, struct download *d, const struct tpg_area *area, CUstream stream) {
    uint64_t last_progress = tp_now_ns();
    for (uint64_t offset = 0; offset < d->size && !d->error;) {
        if (!tpw_hold_on(s)) {
            d->error = CUDA_ERROR_OPERATING_SYSTEM;
            break;
        }
        int32_t error = CUDA_SUCCESS;
        unsigned char *spill = NULL;
        bool few = s->memory->downloads_out < tpw_download_blocks(s->link) / 2;
        struct tpw_block *block = few ? tpw_download_block(s->link) : NULL;
        if (block) {
            last_progress = tp_now_ns();
        } else if (tp_now_ns() - last_progress < STALL_NS) {
            error = tpw_wait_a_moment(s) ? CUDA_SUCCESS : CUDA_ERROR_OPERATING_SYSTEM;
        } else {
            spill = tpw_spill_take(s, &error);
        }
        if (block || spill) {
            error = issue_piece(s, d, area, offset, block, spill, stream);
            offset += d->size - offset < TP_CHUNK_MAX ? d->size - offset : TP_CHUNK_MAX;
        }
        d->error = d->error ? d->error : error;
    }
    d->issued = true;
    if (!d->outstanding) {
        finish(s, d);
    }
    return TPW_LATER;
}

/* ---- operations ---- */

static struct download *begin(const struct tp_frame *frame, uint64_t transfer, uint64_t size, bool posted) {
    struct download *d = calloc(1, sizeof *d);
    if (d) {
        *d = (struct download){.frame = *frame, .transfer = transfer, .size = size, .posted = posted};
    }
    return d;
}

static int32_t check(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_area *area, uint64_t handle,
                     CUstream *stream) {
    int32_t error = CUDA_SUCCESS;
    tpw_check_area(s, area, &error);
    *stream = tpw_stream(s, frame, handle, &error);
    tpw_refuse_capturing(s, *stream, &error);
    return error;
}

int32_t tpw_copy_out(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_copy_out_in *in,
                     struct tpg_copy_out_out *out) {
    CUstream stream = NULL;
    (void)out; /* the answer is made when the bytes are there */
    TPW_TRY(check(s, frame, &in->area, in->stream, &stream));
    uint64_t size = tpw_area_size(&in->area);
    if (!size || size > TP_INLINE_MAX || !(frame->flags & TP_FRAME_CALL)) {
        tpw_violation(s, frame, "copy_out that fits no reply");
        return TPW_LATER;
    }
    struct download *d = begin(frame, 0, size, false);
    if (!d) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    int32_t error = start_small(s, d, &in->area, stream);
    if (error != TPW_LATER) {
        free(d);
    }
    return error;
}

/* The supervisor handed the connections over before it welcomed them, but on a channel that is looked at rarely. */
static bool has_data(struct tpw_session *s) {
    if (!tpw_link_has_data(s->link)) {
        TP_TELL(tpw_control, s);
    }
    return tpw_link_has_data(s->link);
}

int32_t tpw_copy_out_bulk(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_copy_out_bulk_in *in) {
    CUstream stream = NULL;
    TPW_TRY(check(s, frame, &in->area, in->stream, &stream));
    if (!tpw_area_size(&in->area) || !has_data(s)) {
        tpw_violation(s, frame, "copy_out_bulk of nothing, or without a data connection");
        return TPW_LATER;
    }
    struct download *d = begin(frame, in->transfer, tpw_area_size(&in->area), false);
    return d ? start_large(s, d, &in->area, stream) : CUDA_ERROR_OUT_OF_MEMORY;
}

int32_t tpw_copy_out_post(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_copy_out_post_in *in) {
    CUstream stream = NULL;
    struct download *d = NULL;
    int32_t error = tpw_enter(s, frame);
    error = error ? error : check(s, frame, &in->area, in->stream, &stream);
    if (!error) {
        d = begin(frame, in->transfer, tpw_area_size(&in->area), true);
        error = d ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (!error && d->size > TP_INLINE_MAX) {
        has_data(s); /* without it the first chunk to be sent ends the link, by name */
        return start_large(s, d, &in->area, stream);
    }
    error = error ? error : start_small(s, d, &in->area, stream);
    if (error != TPW_LATER) {
        end_transfer(s, in->transfer);
        free(d);
    }
    return error;
}

/* Into the landing place of a word of the client's slot, which the GPU writes behind it (stream/done.c). */
int32_t tpw_copy_out_mark(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_copy_out_mark_in *in,
                          struct tpw_stream *stream) {
    int32_t error = CUDA_SUCCESS;
    CUdeviceptr address = tpw_mark_address(s, frame, in->word, &error);
    if (!error && (!in->size || in->size > TP_LANDING)) {
        tpw_violation(s, frame, "copy_out_mark that fits no landing place");
        error = TPW_LATER;
    }
    tpw_check_range(s, in->source, in->size, &error);
    tpw_refuse_capturing(s, stream->native, &error);
    TPW_TRY(error);
    unsigned char *landing = s->segment->base + s->segment->run.landing + (uint64_t)in->word * TP_LANDING;
    struct tpg_area line = {.address = in->source, .pitch = in->size, .width = in->size, .height = 1};
    error = tpw_area_copy(s, &line, 0, landing, in->size, false, stream->native);
    return error ? error : tpw_mark(s, stream->native, address, in->word, in->value);
}
