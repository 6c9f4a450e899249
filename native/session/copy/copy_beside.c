/*
 * Copies beside all order, for host functions of graphs: what such a function is to find in the client's memory goes there, and what
 * it leaves comes back, while the graph stands at it.
 *
 * Executor thread only. The frames are executed at once, also in the middle of another one, so nothing here waits for anything.
 * The client has one such copy under way at a time, from the one thread that runs its host functions, so there is one piece of
 * pinned memory for it; a client with two breaks the format. The stream is one that the client made and uses for nothing else:
 * then it stands behind nothing. Addresses are checked as those of all copies.
 */
#include "tpg_answer.h"
#include "tpg_session.h"
#include "tpw_copy.h"

#include <stdlib.h>

struct tpw_beside {
    unsigned char *memory; /* pinned, TP_INLINE_MAX */
    bool busy, out;
    uint64_t size;
    struct tp_frame frame; /* header only */
};

static int32_t room(struct tpw_session *s) {
    void *memory = NULL;
    if (s->beside->memory) {
        return CUDA_SUCCESS;
    }
    if (!tpw_home_enter(s)) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    int32_t error = (int32_t)s->cuda.cuMemHostAlloc(&memory, TP_INLINE_MAX, CU_MEMHOSTALLOC_PORTABLE);
    tpw_home_leave(s);
    s->beside->memory = memory;
    return error;
}

static void done(struct tpw_session *s, void *unused, int32_t error) {
    struct tpw_beside *b = s->beside;
    const struct tp_frame frame = b->frame;
    (void)unused;
    if (!error && b->out) {
        struct tpg_beside_out_out out = {.data = b->memory, .data_size = b->size};
        tpg_answer_beside_out(s, &frame, CUDA_SUCCESS, &out);
    } else {
        tpw_conclude(s, &frame, error);
    }
    b->busy = false;
}

static int32_t start(struct tpw_session *s, const struct tp_frame *frame, uint64_t address, uint64_t size,
                     uint64_t handle, const void *data) {
    struct tpw_area line = {.address = address, .pitch = size, .width = size, .height = 1};
    s->beside = s->beside ? s->beside : calloc(1, sizeof *s->beside);
    struct tpw_beside *b = s->beside;
    if (!b) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (b->busy || !size || size > TP_INLINE_MAX || !(frame->flags & TP_FRAME_CALL)) {
        tpw_violation(s, frame, "a copy beside another one, or that fits no frame");
        return TPW_LATER;
    }
    int32_t error = tpw_enter(s, frame);
    tpw_check_area(s, line.address, line.pitch, line.width, line.height, &error);
    CUstream stream = tpw_stream(s, frame, handle, &error);
    tpw_refuse_capturing(s, stream, &error);
    error = error ? error : room(s);
    if (error) {
        return error;
    }
    if (data) {
        memcpy(b->memory, data, size);
    }
    error = tpw_area_copy(s, &line, 0, b->memory, size, data != NULL, stream);
    if (error) {
        return error;
    }
    b->busy = true;
    b->out = !data;
    b->size = size;
    b->frame = *frame;
    error = tpw_when_done(s, stream, done, NULL);
    if (error) { /* the copy may still use the memory: it is nobody's any more */
        b->memory = NULL;
        b->busy = false;
        return error;
    }
    return TPW_LATER;
}

int32_t tpw_beside_out(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_beside_out_in *in,
                       struct tpg_beside_out_out *out) {
    (void)out; /* the answer is made when the bytes are there */
    return start(s, frame, in->source, in->size, in->stream, NULL);
}

int32_t tpw_beside_in(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_beside_in_in *in) {
    if (!in->data_size) {
        tpw_violation(s, frame, "a copy beside all order without bytes");
        return TPW_LATER;
    }
    return start(s, frame, in->destination, in->data_size, in->stream, in->data);
}
