/*
 * The interval map of everything that was allocated: whose memory is this address.
 *
 * Owns the map under one lock. Readers come often and from every thread (some frameworks ask for each pointer of each
 * launch), writers rarely: each thread keeps its last answers, memory and gaps alike, which are good as long as the
 * map's generation has not changed.
 */
#include "tpc_memory.h"

#include <stdlib.h>
#include <tp_intervals.h>

struct node {
    struct tp_interval at;
    struct tpc_range range;
};

static struct tp_lock lock;
static struct tp_intervals map;
static _Atomic uint64_t generation = 1; /* stored with release after each change, under the lock */
static unsigned long long last_buffer_id;

#define CACHE 8u
static _Thread_local struct answer {
    uint64_t generation;
    uint64_t start, size; /* of the range or of the gap */
    bool found;
    struct tpc_range range;
} cache[CACHE];

static void look_up(uint64_t address, struct answer *answer) {
    tp_lock_take(&lock);
    answer->generation = atomic_load_explicit(&generation, memory_order_relaxed);
    const struct node *node = (const struct node *)tp_interval_at(&map, address);
    answer->found = node != NULL;
    if (node) {
        answer->start = node->at.start;
        answer->size = node->at.size;
        answer->range = node->range;
    } else {
        const struct tp_interval *before = tp_interval_before(&map, address), *after = tp_interval_from(&map, address);
        answer->start = before ? before->start + before->size : 0;
        answer->size = (after ? after->start : UINT64_MAX) - answer->start;
    }
    tp_lock_drop(&lock);
}

bool tpc_range_at(uint64_t address, struct tpc_range *out) {
    struct answer *answer = &cache[(address >> 21 ^ address >> 27) % CACHE];
    /* acquire: pairs with the release in changed(); an allocation that another thread told us of has bumped it before
     */
    if (answer->generation != atomic_load_explicit(&generation, memory_order_acquire) ||
        address - answer->start >= answer->size) {
        look_up(address, answer);
    }
    if (answer->found) {
        *out = answer->range;
    }
    return answer->found;
}

static void changed(void) {
    atomic_store_explicit(&generation, atomic_load_explicit(&generation, memory_order_relaxed) + 1,
                          memory_order_release);
}

bool tpc_range_insert(const struct tpc_range *range) {
    struct node *node = calloc(1, sizeof *node);
    if (!node) {
        return false;
    }
    node->at.start = range->start;
    node->at.size = range->size;
    node->range = *range;
    node->range.context = range->context ? range->context->home : NULL;
    tp_lock_take(&lock);
    bool added = tp_interval_add(&map, &node->at);
    if (added) {
        if (!node->range.buffer_id) {
            node->range.buffer_id = ++last_buffer_id;
        }
        changed();
    }
    tp_lock_drop(&lock);
    if (!added) {
        free(node);
    }
    return added;
}

void tpc_range_add(const struct tpc_range *range) {
    if (!tpc_range_insert(range)) {
        tp_log(TP_ERROR, "%llu bytes at 0x%llx cannot be noted: copies to them will be refused",
               (unsigned long long)range->size, (unsigned long long)range->start);
    }
}

bool tpc_range_remove(uint64_t start, struct tpc_range *out) {
    tp_lock_take(&lock);
    struct node *node = (struct node *)tp_interval_remove(&map, start);
    if (node) {
        changed();
    }
    tp_lock_drop(&lock);
    if (node && out) {
        *out = node->range;
    }
    free(node);
    return node != NULL;
}

bool tpc_range_change(uint64_t start, void (*change)(struct tpc_range *range, uint64_t value), uint64_t value) {
    tp_lock_take(&lock);
    struct node *node = (struct node *)tp_interval_at(&map, start);
    bool found = node && node->at.start == start;
    if (found) {
        change(&node->range, value);
        changed();
    }
    tp_lock_drop(&lock);
    return found;
}

bool tpc_range_next(uint64_t address, struct tpc_range *out) {
    tp_lock_take(&lock);
    const struct node *node = (const struct node *)tp_interval_from(&map, address);
    if (node) {
        *out = node->range;
    }
    tp_lock_drop(&lock);
    return node != NULL;
}

bool tpc_range_touches(uint64_t start, uint64_t size) {
    tp_lock_take(&lock);
    bool touches = tp_intervals_touch(&map, start, size);
    tp_lock_drop(&lock);
    return touches;
}

/* Pinned memory whose address is good on both sides is the device's memory, too. */
static bool on_device(const struct tpc_range *range) {
    return range->where == TPC_DEVICE_MEMORY || (range->where == TPC_PINNED && range->device_address == range->start);
}

bool tpc_range_covers(uint64_t address, uint64_t size) {
    struct tpc_range range;
    bool mapped = true;
    while (mapped && tpc_range_at(address, &range) && on_device(&range)) {
        uint64_t room = range.size - (address - range.start);
        if (size <= room) {
            return true;
        }
        address += room;
        size -= room;
        mapped = (range.flags & TPC_MADE_MASK) == TPC_MADE_MAP;
        if (mapped && (!tpc_range_at(address, &range) || (range.flags & TPC_MADE_MASK) != TPC_MADE_MAP)) {
            return false;
        }
    }
    return false;
}

CUresult tpc_range_word(uint64_t address, uint64_t size) {
    static _Atomic bool said;
    struct tpc_range range;
    if (address % size || !tpc_range_at(address, &range) || (range.flags & TPC_MADE_MASK) == TPC_MADE_POOL ||
        (range.flags & TPC_MADE_MASK) == TPC_MADE_GRAPH) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (range.where == TPC_PINNED && !on_device(&range) && size <= range.size - (address - range.start)) {
        tp_say_once(&said,
                    "a stream writes or waits for the word at the host address 0x%llx, in %llu bytes of pinned memory "
                    "that the GPU does not reach over this connection; that is refused with CUDA_ERROR_NOT_SUPPORTED. "
                    "Over shared memory it reaches what cuMemHostAlloc gives",
                    (unsigned long long)address, (unsigned long long)range.size);
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    if ((range.flags & TPC_MADE_MASK) == TPC_MADE_MANAGED && size <= range.size - (address - range.start)) {
        return tpc_managed_use(&range);
    }
    return tpc_range_covers(address, size) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

/* Its host memory goes, too. */
static void context_gone(const struct tpc_context *context) {
    struct tpc_range range;
    for (uint64_t at = 0; tpc_range_next(at, &range); at = range.start + 1) {
        unsigned int made = range.flags & TPC_MADE_MASK;
        if (range.context == context && (made == TPC_MADE_ALLOC || made == TPC_MADE_POOL || made == 0)) {
            tpc_range_remove(range.start, NULL);
        }
    }
}
TP_REGISTER(tpc_context_gone, context_gone);
