/*
 * Handles: minting, ending, and from a handle to its record without a lock.
 *
 * Any thread. For each kind a growing list of chunks that never move: a reader needs one atomic load for the chunk and one for
 * the entry. Ended entries wait in a queue, so that a stale handle is told apart for as long as possible.
 */
#include "process_internal.h"
#include "tpg_ops.h"

#include <stdlib.h>

#define CHUNK_BITS 10u
#define CHUNK (1u << CHUNK_BITS)
#define CHUNKS ((TP_INDEX_MAX + 1) >> CHUNK_BITS)
#define REUSE_AFTER 256u /* ended entries of a kind before the oldest is used again */

struct entry {
    _Atomic uint32_t id; /* 0 while the entry is free; released after the record */
    uint32_t generation; /* of the last handle here */
    _Atomic(void *) record;
    uint32_t next_free;
    _Atomic bool detached; /* its handle is one for good, of what has ended by itself */
};

static struct kind {
    struct tp_lock lock;
    _Atomic(struct entry *) chunks[CHUNKS];
    uint32_t used; /* entries ever used */
    uint32_t free_first, free_last, free_count;
} kinds[TPG_KIND_LIMIT];

static struct entry *entry_at(struct kind *kind, uint32_t index) {
    struct entry *chunk = atomic_load_explicit(&kind->chunks[index >> CHUNK_BITS], memory_order_acquire);
    return chunk ? &chunk[index & (CHUNK - 1)] : NULL;
}

static struct entry *live(uint32_t kind, uint64_t handle) {
    if (!tp_handle_is(handle, kind)) {
        return NULL;
    }
    uint32_t id = tp_handle_id(handle);
    struct entry *entry = entry_at(&kinds[kind], tp_id_index(id));
    return entry && id && atomic_load_explicit(&entry->id, memory_order_acquire) == id ? entry : NULL;
}

static bool take_free(struct kind *kind, uint32_t *index) {
    if (kind->free_count && (kind->free_count >= REUSE_AFTER || kind->used > TP_INDEX_MAX)) {
        *index = kind->free_first;
        kind->free_first = entry_at(kind, *index)->next_free;
        kind->free_count--;
        return true;
    }
    if (kind->used > TP_INDEX_MAX) {
        return false;
    }
    *index = kind->used;
    if (!entry_at(kind, *index)) {
        struct entry *chunk = calloc(CHUNK, sizeof *chunk);
        if (!chunk) {
            return false;
        }
        atomic_store_explicit(&kind->chunks[*index >> CHUNK_BITS], chunk, memory_order_release);
    }
    kind->used++;
    return true;
}

uint64_t tpc_mint_record(uint32_t number, void *record) {
    struct kind *kind = &kinds[number];
    uint64_t handle = 0;
    uint32_t index;
    tp_lock_take(&kind->lock);
    if (take_free(kind, &index)) {
        struct entry *entry = entry_at(kind, index);
        entry->generation = (entry->generation + 1) & 0xfff;
        entry->generation += entry->generation == 0;
        uint32_t id = entry->generation << TP_INDEX_BITS | index;
        atomic_store_explicit(&entry->record, record, memory_order_relaxed);
        atomic_store_explicit(&entry->id, id, memory_order_release);
        handle = tp_handle_make(number, id);
    }
    tp_lock_drop(&kind->lock);
    return handle;
}

uint64_t tpc_mint(uint32_t kind) { return tpc_mint_record(kind, NULL); }

bool tpc_unmint_alone(uint32_t number, uint64_t handle, void **record) {
    struct kind *kind = &kinds[number];
    tp_lock_take(&kind->lock);
    struct entry *entry = live(number, handle);
    if (entry) {
        uint32_t index = tp_id_index(tp_handle_id(handle));
        *record = atomic_load_explicit(&entry->record, memory_order_relaxed);
        atomic_store_explicit(&entry->id, 0, memory_order_release);
        if (kind->free_count) {
            entry_at(kind, kind->free_last)->next_free = index;
        } else {
            kind->free_first = index;
        }
        kind->free_last = index;
        kind->free_count++;
    }
    tp_lock_drop(&kind->lock);
    return entry != NULL;
}

void *tpc_unmint(uint32_t number, uint64_t handle) {
    void *record = NULL;
    if (tpc_unmint_alone(number, handle, &record)) {
        tpc_unmint_parts(number, handle);
        if (tpg_is_told(number)) {
            tpc_told_end(handle);
        }
    }
    return record;
}

void tpc_unmint_parts(uint32_t number, uint64_t handle) {
    for (uint64_t parts = tpg_ends_with(number), part; parts; parts &= parts - 1) {
        const uint32_t other = (uint32_t)__builtin_ctzll(parts);
        for (uint32_t at = 0; (part = tpc_next_handle(other, (const void *)(uintptr_t)handle, &at));) {
            tpc_unmint(other, part);
        }
    }
}

void *tpc_record(uint32_t kind, uint64_t handle) {
    struct entry *entry = live(kind, handle);
    return entry ? atomic_load_explicit(&entry->record, memory_order_relaxed) : NULL;
}

void tpc_set_record(uint32_t kind, uint64_t handle, void *record) {
    struct entry *entry = live(kind, handle);
    if (entry) {
        atomic_store_explicit(&entry->record, record, memory_order_relaxed);
    }
}

uint64_t tpc_next_handle(uint32_t number, const void *record, uint32_t *at) {
    struct kind *kind = &kinds[number];
    tp_lock_take(&kind->lock);
    uint32_t used = kind->used;
    tp_lock_drop(&kind->lock);
    for (; *at < used; ++*at) {
        struct entry *entry = entry_at(kind, *at);
        uint32_t id = entry ? atomic_load_explicit(&entry->id, memory_order_acquire) : 0;
        if (id && atomic_load_explicit(&entry->record, memory_order_relaxed) == record) {
            ++*at;
            return tp_handle_make(number, id);
        }
    }
    return 0;
}

void tpc_detach(uint32_t number, bool (*concerned)(const void *record, const void *what), const void *what) {
    struct kind *kind = &kinds[number];
    tp_lock_take(&kind->lock);
    for (uint32_t index = 0; index < kind->used; index++) {
        struct entry *entry = entry_at(kind, index);
        const void *record = atomic_load_explicit(&entry->record, memory_order_relaxed);
        if (atomic_load_explicit(&entry->id, memory_order_relaxed) && record && concerned(record, what)) {
            atomic_store_explicit(&entry->detached, true, memory_order_relaxed);
            atomic_store_explicit(&entry->id, 0, memory_order_release);
        }
    }
    tp_lock_drop(&kind->lock);
}

static bool detached(uint32_t number, uint64_t handle) {
    const uint32_t id = tp_handle_id(handle);
    const struct entry *entry = tp_handle_is(handle, number) && id ? entry_at(&kinds[number], tp_id_index(id)) : NULL;
    return entry && atomic_load_explicit(&entry->detached, memory_order_relaxed) &&
           entry->generation == tp_id_generation(id);
}

bool tpc_handle_alive(uint32_t kind, uint64_t handle) { return live(kind, handle) != NULL; }

CUresult tpc_check_handle(uint32_t kind, uint64_t handle, bool optional) {
    struct tpc_context *named;
    if (kind == TPG_CONTEXT && handle) { /* a primary one that has ended keeps its record */
        return tpc_context_of((CUcontext)(uintptr_t)handle, &named);
    }
    if (TP_LIKELY(live(kind, handle) != NULL)) {
        return CUDA_SUCCESS;
    }
    if (kind == TPG_STREAM && handle <= 2) { /* a green context has no per-thread stream (580.159.04, measured) */
        const struct tpc_context *context = handle == 2 ? tpc_current() : NULL;
        return context && context->home != context ? CUDA_ERROR_INVALID_HANDLE : CUDA_SUCCESS;
    }
    if ((!handle && optional) || (kind == TPG_FUNCTION && live(TPG_KERNEL, handle))) {
        return CUDA_SUCCESS;
    }
    if (detached(kind, handle)) {
        return CUDA_ERROR_CONTEXT_IS_DESTROYED; /* one of ours that is gone */
    }
    return (CUresult)tpg_bad_handle(kind);
}
