/*
 * Pinned memory that copies go through, in pieces of one size.
 *
 * Owns the pieces; executor thread only. The copy engine reads and writes them between a copy and its point. The
 * amount is bounded: a client that queues more than that behind a stream that never goes on holds up its own session,
 * nobody else's.
 */
#include "tpw_memory.h"
#include <stdlib.h>

#define BATCH_BYTES (4u << 20)
#define BUFFER_BATCHES 16u /* 64 MiB */
#define SPILL_BATCHES 256u /* 1 GiB */

static int32_t grow(struct tpw_session *s, struct tpw_pinned *pool, size_t unit) {
    size_t count = BATCH_BYTES / unit;
    unsigned char **batches = realloc(pool->batches, (pool->batch_count + 1) * sizeof *batches);
    if (batches) {
        pool->batches = batches;
    }
    unsigned char **pieces = realloc(pool->pieces, (pool->room + count) * sizeof *pieces);
    if (pieces) {
        pool->pieces = pieces;
    }
    void *memory = NULL;
    if (!batches || !pieces) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (!tpw_home_enter(s)) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    int32_t error = (int32_t)s->cuda.cuMemHostAlloc(&memory, BATCH_BYTES, CU_MEMHOSTALLOC_PORTABLE);
    tpw_home_leave(s);
    TPW_TRY(error);
    pool->batches[pool->batch_count++] = memory;
    pool->room += count;
    for (size_t i = 0; i < count; i++) {
        pool->pieces[pool->free++] = (unsigned char *)memory + i * unit;
    }
    return CUDA_SUCCESS;
}

static bool no_buffer(struct tpw_session *s) { return s->memory->buffers.free == 0; }
static bool no_spill(struct tpw_session *s) { return s->memory->spills.free == 0; }

static unsigned char *take(struct tpw_session *s, struct tpw_pinned *pool, size_t unit, size_t most,
                           bool (*none)(struct tpw_session *s), int32_t *error) {
    while (!*error && none(s)) {
        if (pool->batch_count && tpw_wait_briefly(s, none)) {
            break;
        }
        if (s->ended || tpw_link_status(s->link) != TP_OK) {
            *error = CUDA_ERROR_OPERATING_SYSTEM;
        } else if (pool->batch_count < most) {
            int32_t grown = grow(s, pool, unit);
            *error = pool->batch_count ? CUDA_SUCCESS : grown; /* with some there is something to wait for */
        }
    }
    return *error ? NULL : pool->pieces[--pool->free];
}

unsigned char *tpw_buffer_take(struct tpw_session *s, int32_t *error) {
    if (!tpw_memory_state(s)) {
        *error = CUDA_ERROR_OUT_OF_MEMORY;
        return NULL;
    }
    return take(s, &s->memory->buffers, TPW_BUFFER_SIZE, BUFFER_BATCHES, no_buffer, error);
}

unsigned char *tpw_spill_take(struct tpw_session *s, int32_t *error) {
    return take(s, &s->memory->spills, TPW_SPILL_SIZE, SPILL_BATCHES, no_spill, error);
}

void tpw_buffer_give(struct tpw_session *s, unsigned char *buffer) {
    s->memory->buffers.pieces[s->memory->buffers.free++] = buffer;
}
void tpw_spill_give(struct tpw_session *s, unsigned char *spill) {
    s->memory->spills.pieces[s->memory->spills.free++] = spill;
}

static void close_pool(struct tpw_session *s, struct tpw_pinned *pool) {
    for (size_t i = 0; i < pool->batch_count; i++) {
        s->cuda.cuMemFreeHost(pool->batches[i]);
    }
    free(pool->batches);
    free(pool->pieces);
    *pool = (struct tpw_pinned){0};
}

void tpw_staging_close(struct tpw_session *s) {
    close_pool(s, &s->memory->buffers);
    close_pool(s, &s->memory->spills);
}
