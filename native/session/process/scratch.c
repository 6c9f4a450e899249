/*
 * Memory of one operation: zeroed when it is taken, given back all at once when the next operation begins.
 *
 * Executor thread only. Sizes come from a hostile client: one piece is at most half a frame's size, all pieces of an
 * operation are at most four frames.
 */
#include "tpw_session.h"

#include <stdlib.h>

#define BLOCK_SIZE (64u << 10)
#define SCRATCH_MAX (4u * TP_FRAME_MAX)

struct tpw_scratch_block {
    struct tpw_scratch_block *next;
    size_t capacity, used;
    _Alignas(16) unsigned char bytes[];
};

static void *take(struct tpw_scratch_block *block, size_t size) {
    void *memory = block->bytes + block->used;
    block->used += (size + 15) & ~(size_t)15;
    return memset(memory, 0, size);
}

void *tpw_scratch(struct tpw_session *s, uint64_t count, uint64_t unit, int32_t *error) {
    if (unit && count > TP_FRAME_MAX / 2 / unit) {
        tpw_set(error, CUDA_ERROR_INVALID_VALUE);
        return NULL;
    }
    size_t size = (size_t)(count * unit), total = size;
    for (struct tpw_scratch_block *block = s->scratch; block; block = block->next) {
        if (block->capacity - block->used >= size) {
            return take(block, size);
        }
        total += block->capacity;
    }
    size_t capacity = size > BLOCK_SIZE ? (size + 15) & ~(size_t)15 : BLOCK_SIZE;
    struct tpw_scratch_block *block = total <= SCRATCH_MAX ? malloc(sizeof *block + capacity) : NULL;
    if (!block) {
        tpw_set(error, CUDA_ERROR_OUT_OF_MEMORY);
        return NULL;
    }
    *block = (struct tpw_scratch_block){.next = s->scratch, .capacity = capacity};
    s->scratch = block;
    return take(block, size);
}

void tpw_scratch_reset(struct tpw_session *s) {
    while (s->scratch && s->scratch->next) {
        struct tpw_scratch_block *gone = s->scratch;
        s->scratch = gone->next;
        free(gone);
    }
    if (s->scratch) {
        s->scratch->used = 0;
    }
}

void tpw_scratch_free(struct tpw_session *s) {
    tpw_scratch_reset(s);
    free(s->scratch);
    s->scratch = NULL;
}
