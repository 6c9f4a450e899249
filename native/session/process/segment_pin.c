/*
 * What of the shared segment the driver has pinned.
 *
 * Executor thread only. A session that waits for its client has the driver pin all of it; one whose client waits has only the
 * slots and the client's run pinned before it goes on, because pinning takes tens of milliseconds for each GiB, one
 * process after the other. Of the arena the first piece that a client wants is then pinned by itself, and the next with all
 * around it: most programs want little. What lies in two pieces cannot be copied at once, so memory is only handed out inside
 * of one.
 */
#include "tpw_session.h"

#include <tp_segment.h>

#define FIRST_PIECE (64ull << 20)

/* Has the driver pin a piece that meets no other. The device address of all pieces is that of the memory, or none is shared. */
static int32_t pin(struct tpw_session *s, uint64_t offset, uint64_t size) {
    struct tpw_segment *segment = s->segment;
    unsigned char *at = segment->base + offset;
    if (segment->piece_count == TPW_PIECES) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    int32_t error =
        (int32_t)s->cuda.cuMemHostRegister_v2(at, size, CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP);
    if (error) {
        tp_log(TP_ERROR, "the driver cannot pin %llu MiB at %llu MiB of the shared segment: error %d",
               (unsigned long long)(size >> 20), (unsigned long long)(offset >> 20), error);
        return error;
    }
    segment->pieces[segment->piece_count++] = (struct tpw_piece){.offset = offset, .size = size};
    CUdeviceptr device = 0;
    int32_t untold = (int32_t)s->cuda.cuMemHostGetDevicePointer_v2(&device, at, 0);
    if (offset == 0) {
        segment->device = untold ? 0 : device;
        segment->registered = true;
    }
    if (untold || device != (uint64_t)(uintptr_t)at) {
        tp_log(TP_WARN,
               "the shared segment at %p has the device address 0x%llx (error %d): pinned memory is not shared",
               (void *)at, (unsigned long long)device, untold);
        segment->registered = false;
    }
    return CUDA_SUCCESS;
}

int32_t tpw_segment_register(struct tpw_session *s) {
    struct tpw_segment *segment = s->segment;
    if (!segment) {
        return CUDA_SUCCESS;
    }
    bool served = s->link && segment->slot < TP_SLOTS;
    if (!segment->error && !segment->piece_count) {
        segment->error = pin(s, 0, served ? tp_arena_at() : segment->size);
        if (!segment->error && served) {
            segment->error = pin(s, segment->run.commands, segment->run.granules * TP_GRANULE);
        }
    }
    return s->link ? segment->error : CUDA_SUCCESS;
}

/* The first piece that begins at `offset` or behind it, NULL if there is none. */
static const struct tpw_piece *piece_from(const struct tpw_segment *segment, uint64_t offset) {
    const struct tpw_piece *first = NULL;
    for (uint32_t i = 0; i < segment->piece_count; i++) {
        const struct tpw_piece *piece = &segment->pieces[i];
        first = piece->offset >= offset && (!first || piece->offset < first->offset) ? piece : first;
    }
    return first;
}

static uint64_t take(const struct tpw_segment *segment, uint64_t size, uint64_t from, uint64_t to) {
    return tp_arena_take_between(segment->owners, segment->size, segment->slot, size, from, to);
}

uint64_t tpw_segment_take(struct tpw_session *s, uint64_t size) {
    struct tpw_segment *segment = s->segment;
    for (uint32_t i = 0; i < segment->piece_count; i++) {
        uint64_t from = segment->pieces[i].offset, offset = take(segment, size, from, from + segment->pieces[i].size);
        if (offset) {
            return offset;
        }
    }
    for (uint64_t at = tp_arena_at(); at < segment->size;) {
        const struct tpw_piece *next = piece_from(segment, at);
        uint64_t end = next ? next->offset : segment->size, offset = take(segment, size, at, end);
        if (!offset) {
            at = next ? next->offset + next->size : segment->size;
            continue;
        }
        uint64_t least = (size + TP_GRANULE - 1) & ~(TP_GRANULE - 1), first = least > FIRST_PIECE ? least : FIRST_PIECE;
        if (!segment->asked && first < end - offset) {
            at = offset;
            end = offset + first;
        }
        segment->asked = true;
        bool pinned = tpw_home_enter(s); /* it may be the first thing that a client wants: then in no context yet */
        if (pinned) {
            pinned = !pin(s, at, end - at) && segment->registered;
            tpw_home_leave(s);
        }
        if (pinned) {
            return offset;
        }
        tp_arena_give(segment->owners, segment->size, segment->slot, offset, size);
        return 0;
    }
    return 0;
}
