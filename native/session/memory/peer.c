/*
 * What one device may do to the memory of another: peer access, and copies for streams whose device does not reach both sides.
 *
 * Executor thread only; owns the pairs of contexts with peer access. The driver knows them, too, and gives access to what it
 * allocated itself; the arena's memory is mapped by us, so a pair gives and takes that access here (tpw_arena_share). Access
 * to such memory belongs to devices, not to contexts: it lasts as long as any pair of the two devices does. A pair ends with
 * either of its contexts; the driver does not see the end of a client's primary context (context_end.c), so it is told.
 *
 * Mapped memory to which a device has no access can be copied for it by a peer copy only, whose call names a context for each
 * side. So that is what copies between devices are; and what goes between a device and the host, or is set, goes into a stream
 * of the memory's own device, which waits for the client's stream and then lets that wait.
 */
#include "tpg_session.h"
#include "tpw_memory.h"
#include <stdlib.h>

/* `reader` may use what lies on the device of `owner`: ids of the client's contexts, and natives that live as long as it does. */
struct tpw_pair {
    struct tpw_pair *next;
    uint32_t reader, owner;
    CUcontext reader_native, owner_native;
    uint32_t reader_device, owner_device;
    bool enabled;   /* false: it ends when the work that may still use it is done */
    uint32_t waits; /* for that */
};

/* ---- pairs ---- */

static struct tpw_pair *find(struct tpw_session *s, uint32_t reader, uint32_t owner) {
    return TP_FIND(s->memory ? s->memory->pairs : NULL, it->reader == reader && it->owner == owner);
}

static int32_t share(struct tpw_session *s, const struct tpw_pair *pair) {
    uint32_t *pairs = &s->memory->readers[pair->owner_device][pair->reader_device];
    int32_t error = *pairs ? CUDA_SUCCESS : tpw_arena_share(s, pair->owner_device, pair->reader_device, true);
    *pairs += !error;
    return error;
}

static void share_no_more(struct tpw_session *s, const struct tpw_pair *pair) {
    if (--s->memory->readers[pair->owner_device][pair->reader_device] == 0) {
        tpw_arena_share(s, pair->owner_device, pair->reader_device, false);
    }
}

static void end_pair(struct tpw_session *s, struct tpw_pair *pair) {
    TP_UNLINK(s->memory->pairs, pair);
    tpw_visit(s, pair->reader_native, pair->reader);
    s->cuda.cuCtxDisablePeerAccess(pair->owner_native);
    share_no_more(s, pair);
    free(pair);
}

/* The peer access that the context had, and that others had to it. */
static void context_ends(struct tpw_session *s, const struct tpw_gone *gone) {
    for (struct tpw_pair *pair = s->memory ? s->memory->pairs : NULL, *next; pair; pair = next) {
        next = pair->next;
        if (pair->reader == gone->id || pair->owner == gone->id) {
            end_pair(s, pair);
        }
    }
}
TP_REGISTER(tpw_context_ends, context_ends);

void tpw_peers_close(struct tpw_memory *m) {
    for (struct tpw_pair *next; m->pairs; m->pairs = next) {
        next = m->pairs->next;
        free(m->pairs);
    }
}

/* ---- operations ---- */

int32_t tpw_cuCtxEnablePeerAccess(struct tpw_session *s, const struct tp_frame *frame,
                                  const struct tpg_cuCtxEnablePeerAccess_in *in, CUcontext peerContext) {
    TPW_TRY(s->entered ? tpw_memory_open(s) : CUDA_ERROR_INVALID_CONTEXT);
    const uint32_t id = tpw_object(s, TPG_CONTEXT, in->peerContext)->id;
    struct tpw_pair *pair = find(s, s->entered, id);
    if (pair && !in->Flags) {
        bool was = pair->enabled; /* if not, it has not come to its end and now does not */
        pair->enabled = true;
        return was ? CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED : CUDA_SUCCESS;
    }
    TPW_TRY(s->cuda.cuCtxEnablePeerAccess(peerContext, in->Flags));
    pair = calloc(1, sizeof *pair);
    if (pair) {
        *pair = (struct tpw_pair){.reader = s->entered,
                                  .owner = id,
                                  .reader_native = s->entered_native,
                                  .owner_native = peerContext,
                                  .reader_device = tpw_context_device(s, s->entered),
                                  .owner_device = tpw_context_device(s, id),
                                  .enabled = true};
    }
    int32_t error = pair ? share(s, pair) : CUDA_ERROR_OUT_OF_MEMORY;
    if (error) {
        s->cuda.cuCtxDisablePeerAccess(peerContext);
        free(pair);
        return error;
    }
    TP_PUSH(s->memory->pairs, pair);
    return CUDA_SUCCESS;
}

struct disabling {
    struct tpw_ticket ticket;
    uint32_t reader, owner;
};

static void disabled(struct tpw_session *s, void *what, int32_t error) {
    struct disabling *disabling = what;
    struct tpw_pair *pair = find(s, disabling->reader, disabling->owner); /* unless it went with a context */
    if (pair && pair->waits && --pair->waits == 0 && !pair->enabled) {
        end_pair(s, pair);
    }
    tpw_answer(s, disabling->ticket, error);
    free(disabling);
}

/* Answered when it is done, because kernels that still use the memory would fault, and the executor does not wait for them. */
int32_t tpw_cuCtxDisablePeerAccess(struct tpw_session *s, const struct tp_frame *frame,
                                   const struct tpg_cuCtxDisablePeerAccess_in *in, CUcontext peerContext) {
    TPW_TRY(s->entered ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT);
    struct tpw_pair *pair = find(s, s->entered, tpw_object(s, TPG_CONTEXT, in->peerContext)->id);
    if (!pair) {
        return (int32_t)s->cuda.cuCtxDisablePeerAccess(peerContext); /* says why not */
    }
    struct disabling *disabling = pair->enabled ? malloc(sizeof *disabling) : NULL;
    if (!disabling) {
        return pair->enabled ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_ERROR_PEER_ACCESS_NOT_ENABLED;
    }
    *disabling = (struct disabling){.ticket = tpw_ticket(frame), .reader = pair->reader, .owner = pair->owner};
    pair->enabled = false;
    pair->waits++;
    int32_t error = tpw_when_all_done(s, disabled, disabling);
    if (error) {
        pair->enabled = true;
        pair->waits--;
        free(disabling);
        return error;
    }
    return TPW_LATER;
}

/* ---- who reaches what ---- */

bool tpw_is_host(const struct tpw_range *range) {
    return range->kind == TPW_RANGE_TWIN || range->kind == TPW_RANGE_PINNED;
}

bool tpw_reaches(struct tpw_session *s, uint32_t device, uint64_t address) {
    const struct tpw_range *range = tpw_range_at(s, address);
    if (!range || range->device == device) {
        return true;
    }
    switch (range->kind) {
    case TPW_RANGE_SMALL:
    case TPW_RANGE_LARGE:
        return s->memory->readers[range->device][device] != 0;
    case TPW_RANGE_MAP:
    case TPW_RANGE_IMPORT:
        return range->access >> device & 1;
    case TPW_RANGE_GRAPH:
    case TPW_RANGE_POOL: /* cuCtxEnablePeerAccess does not speak of pools */
        return false;
    default: /* of the host, or allocated by the driver, which finds its own way */
        return true;
    }
}

int32_t tpw_home(struct tpw_session *s, uint64_t address, CUcontext *context) {
    const struct tpw_range *range = tpw_range_at(s, address);
    bool mapped = range->kind == TPW_RANGE_SMALL || range->kind == TPW_RANGE_LARGE || range->kind == TPW_RANGE_MAP ||
                  range->kind == TPW_RANGE_IMPORT;
    const struct tpw_object *maker =
        mapped ? NULL : tpw_object(s, TPG_CONTEXT, tp_handle_make(TPG_CONTEXT, range->context));
    if (maker && maker->native) {
        *context = (CUcontext)(uintptr_t)maker->native;
        return CUDA_SUCCESS;
    }
    return tpw_primary(s, (int)range->device, context);
}

/* ---- beside a client's stream ---- */

/* `after` goes on when what is in `before` now is done. The context of `before` is current. */
static int32_t chain(struct tpw_session *s, CUstream before, CUstream after, CUcontext next, uint32_t next_id) {
    CUevent event = NULL;
    int32_t error = (int32_t)s->cuda.cuEventCreate(&event, CU_EVENT_DISABLE_TIMING);
    error = error ? error : (int32_t)s->cuda.cuEventRecord(event, before);
    tpw_visit(s, next, next_id); /* the legacy stream is that of the current context */
    error = error ? error : (int32_t)s->cuda.cuStreamWaitEvent(after, event, 0);
    if (event) {
        s->cuda.cuEventDestroy_v2(event);
    }
    return error;
}

int32_t tpw_aside_begin(struct tpw_session *s, CUstream stream, uint64_t address, struct tpw_aside *aside) {
    *aside = (struct tpw_aside){.stream = stream};
    struct tpw_stream *client = s->device_count > 1 ? tpw_stream_native(s, stream) : NULL;
    if (!client) {
        return CUDA_SUCCESS;
    }
    tpw_enter_stream(s, client); /* the driver may ask for the rights of the context that is current */
    if (tpw_reaches(s, client->device, address) || !tpw_touchable(s, client)) {
        return CUDA_SUCCESS;
    }
    CUcontext home = NULL;
    CUstream beside = NULL;
    int32_t error = tpw_primary(s, (int)tpw_range_at(s, address)->device, &home);
    error = error ? error : tpw_stream_room(s);
    TPW_TRY(error);
    tpw_visit(s, home, 0);
    error = (int32_t)s->cuda.cuStreamCreate(&beside, CU_STREAM_NON_BLOCKING);
    tpw_enter_stream(s, client);
    error = error ? error : chain(s, client->native, beside, home, 0);
    if (error) {
        if (beside) {
            s->cuda.cuStreamDestroy_v2(beside);
        }
        tpw_enter_stream(s, client);
        return error;
    }
    *aside = (struct tpw_aside){.stream = beside, .waiting = client};
    return CUDA_SUCCESS;
}

int32_t tpw_aside_end(struct tpw_session *s, struct tpw_aside *aside, int32_t error) {
    struct tpw_stream *client = aside->waiting;
    if (!client) {
        return error;
    }
    int32_t lost = chain(s, aside->stream, client->native, client->context, client->context_id);
    if (lost) { /* the client's stream must not go on as if this were done */
        s->cuda.cuStreamSynchronize(aside->stream);
    }
    s->cuda.cuStreamDestroy_v2(aside->stream); /* what is in it is done all the same */
    tpw_stream_count(s, client, 2);
    return error ? error : lost;
}
