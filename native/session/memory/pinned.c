/*
 * The client's pinned memory inside the shared segment: runs of its arena. Copies between them and the device
 * are in copy/copy_pinned.c.
 *
 * Executor thread only. What is handed out is registered with the driver at the address that clients map it at, so a run's
 * device address is its address. What the client names by offset is looked up among the runs that this session took for it
 * (ranges in private memory): the client's rings and staging blocks carry its slot in the owners table as well, and no
 * copy may go there. The bytes of a run are the client's and are never read here. Runs that are still out at the
 * session's end are the supervisor's to free.
 */
#include "tpg_session.h"
#include "tpw_memory.h"
#include <stdlib.h>
#include <tp_segment.h>

/* One client's pinned memory leaves so much of the arena to others: an eighth, and room for one more client at least. */
#define KEPT_SHARE 8u

/* ---- runs ---- */

static uint64_t take(struct tpw_session *s, uint64_t size) {
    const struct tpw_segment *segment = s->segment;
    uint64_t share = tp_arena_granules(segment->size) / KEPT_SHARE, one = tp_run_layout(0, 1).granules;
    uint64_t kept = share > one ? share : one, left = tp_arena_left(segment->owners, segment->size);
    if (left < kept || size > (left - kept) * TP_GRANULE) {
        return 0;
    }
    return tpw_segment_take(s, size);
}

static bool gives_pending(struct tpw_session *s) { return s->memory->pending_gives != 0; }

int32_t tpw_arena_take(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_arena_take_in *in,
                       struct tpg_arena_take_out *out) {
    const struct tpw_segment *segment = s->segment;
    if (!in->size) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (!segment || !segment->registered || segment->device != TP_SEGMENT_ADDRESS) {
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    if (!tpw_memory_state(s)) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    uint64_t offset = take(s, in->size);
    if (!offset && gives_pending(s)) {
        tpw_wait_briefly(s, gives_pending); /* a stream that stands still: the client does without */
        offset = take(s, in->size);
    }
    if (!offset) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (!tpw_range_new(s, TP_SEGMENT_ADDRESS + offset, in->size, TPW_RANGE_PINNED)) {
        tp_arena_give(segment->owners, segment->size, segment->slot, offset, in->size);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    out->offset = offset;
    return CUDA_SUCCESS;
}

/* The run that holds `extent` bytes at `offset`, NULL if the client has no such memory. */
struct tpw_range *tpw_run_at(struct tpw_session *s, uint64_t offset, uint64_t extent) {
    if (!s->segment || offset >= s->segment->size) {
        return NULL;
    }
    uint64_t address = TP_SEGMENT_ADDRESS + offset;
    struct tpw_range *range = tpw_range_at(s, address);
    bool holds = range && range->kind == TPW_RANGE_PINNED && extent <= range->at.size - (address - range->at.start);
    return holds ? range : NULL;
}

static void gone(struct tpw_session *s, void *what, int32_t error) {
    struct tpw_range *range = what;
    const struct tpw_segment *segment = s->segment;
    (void)error; /* a context that broke uses the memory no more */
    s->memory->pending_gives--;
    tp_arena_give(segment->owners, segment->size, segment->slot, range->at.start - TP_SEGMENT_ADDRESS, range->at.size);
    free(range);
}

int32_t tpw_arena_give(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_arena_give_in *in) {
    struct tpw_range *range = tpw_run_at(s, in->offset, in->size);
    if (!range || range->at.start != TP_SEGMENT_ADDRESS + in->offset || range->at.size != in->size) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    tp_interval_remove(&s->memory->ranges, range->at.start);
    s->memory->pending_gives++;
    int32_t error = tpw_when_everything_done(s, gone, range);
    if (error) {
        tp_log(TP_WARN, "%llu bytes of pinned memory stay taken until the session ends: their last use cannot be known",
               (unsigned long long)range->at.size);
        s->memory->pending_gives--;
        free(range);
    }
    return CUDA_SUCCESS;
}
