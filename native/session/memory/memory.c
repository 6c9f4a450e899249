/*
 * Everything the client may name as device memory, allocation and freeing, and the memory limit.
 *
 * Owns the set of ranges that every copy, memset and launch of the client is checked against. Executor thread only;
 * addresses and sizes come from a hostile client and are used for look-ups in this set before the driver sees them. A
 * free is visible to the client at once and happens when the work that was queued before it is done; the limit counts
 * requested bytes, a freed byte until its memory can be had again, and much that the granules hold beyond these (arena.c).
 */
#include "tpw_memory.h"
#include "tpg_session.h"
#include <stdlib.h>

struct tpw_memory *tpw_memory_state(struct tpw_session *s) {
    if (!s->memory) {
        s->memory = calloc(1, sizeof *s->memory);
    }
    return s->memory;
}

/* ---- ranges ---- */

struct tpw_range *tpw_range_at(struct tpw_session *s, uint64_t address) {
    return s->memory ? (struct tpw_range *)tp_interval_at(&s->memory->ranges, address) : NULL;
}

struct tpw_range *tpw_range_new(struct tpw_session *s, uint64_t address, uint64_t size, enum tpw_range_kind kind) {
    struct tpw_range *range = calloc(1, sizeof *range);
    if (!range) {
        return NULL;
    }
    range->at.start = address;
    range->at.size = size;
    range->kind = kind;
    if (!tp_interval_add(&s->memory->ranges, &range->at)) {
        tp_log(TP_ERROR, "%llu bytes at 0x%llx overlap memory that the client has already", (unsigned long long)size,
               (unsigned long long)address);
        free(range);
        return NULL;
    }
    return range;
}

struct tpw_range *tpw_range_given(struct tpw_session *s, uint64_t address, uint64_t size, enum tpw_range_kind kind) {
    TP_TELL(tpw_memory_given, s, address, size);
    return tpw_range_new(s, address, size, kind);
}

void tpw_check_range(struct tpw_session *s, uint64_t address, uint64_t size, int32_t *error) {
    if (*error || !size) {
        return;
    }
    const struct tpw_range *range = tpw_range_at(s, address);
    while (range) {
        uint64_t room = range->at.size - (address - range->at.start);
        if (size <= room) {
            return;
        }
        /* Mappings side by side are one memory to the driver; allocations side by side are not. */
        bool mapped = range->kind == TPW_RANGE_MAP;
        address += room;
        size -= room;
        range = tpw_range_at(s, address);
        if (!mapped || !range || range->kind != TPW_RANGE_MAP) {
            break;
        }
    }
    *error = CUDA_ERROR_INVALID_VALUE;
}

uint64_t tpw_area_extent(uint64_t pitch, uint64_t width, uint64_t height, int32_t *error) {
    uint64_t before = 0, total = 0, packed = 0;
    if (*error || !width || !height) {
        return 0;
    }
    if ((height > 1 && pitch < width) || __builtin_mul_overflow(pitch, height - 1, &before) ||
        __builtin_add_overflow(before, width, &total) || __builtin_mul_overflow(width, height, &packed)) {
        *error = CUDA_ERROR_INVALID_VALUE;
        return 0;
    }
    return total;
}

void tpw_check_area(struct tpw_session *s, const struct tpg_area *area, int32_t *error) {
    tpw_check_range(s, area->address, tpw_area_extent(area->pitch, area->width, area->height, error), error);
}

void tpw_check_word(struct tpw_session *s, uint64_t address, uint64_t size, int32_t *error) {
    const struct tpw_range *range = tpw_range_at(s, address);
    if (address % size || (range && (range->kind == TPW_RANGE_POOL || range->kind == TPW_RANGE_GRAPH))) {
        tpw_set(error, CUDA_ERROR_INVALID_VALUE);
    }
    tpw_check_range(s, address, size, error);
}

void tpw_memory_publish(struct tpw_session *s, uint64_t address, uint64_t size) {
    if (!tpw_memory_state(s)) {
        tp_log(TP_ERROR, "no memory to note %llu bytes at 0x%llx: copies to them will be refused",
               (unsigned long long)size, (unsigned long long)address);
        return;
    }
    const struct tpw_range *known = tpw_range_at(s, address);
    if (size && !(known && known->at.start == address && known->at.size == size)) {
        struct tpw_range *range = tpw_range_given(s, address, size, TPW_RANGE_OTHER);
        if (range) {
            range->context = tpw_home_of(s, s->entered);
            range->device = tpw_context_device(s, s->entered);
        }
    }
}

void tpw_memory_retract(struct tpw_session *s, uint64_t address) {
    struct tpw_range *range = tpw_range_at(s, address);
    if (range && range->at.start == address && range->kind == TPW_RANGE_OTHER) {
        free(tp_interval_remove(&s->memory->ranges, address));
    }
}

/* ---- devices ---- */

int32_t tpw_device_index(const struct tpw_session *s, CUdevice device, uint32_t *index) {
    for (int i = 0; i < s->device_count; i++) {
        if (s->devices[i] == device) {
            *index = (uint32_t)i;
            return CUDA_SUCCESS;
        }
    }
    return CUDA_ERROR_INVALID_DEVICE;
}

int32_t tpw_current_device(struct tpw_session *s, uint32_t *index) {
    CUdevice device = 0;
    int32_t error = s->entered ? (int32_t)s->cuda.cuCtxGetDevice(&device) : CUDA_ERROR_INVALID_CONTEXT;
    return error ? error : tpw_device_index(s, device, index);
}

/* ---- the limit ---- */

bool tpw_wait_for_frees(struct tpw_session *s) {
    while (s->memory->pending_frees) {
        if (!tpw_wait_a_moment(s)) {
            return false;
        }
    }
    return true;
}

int32_t tpw_charge(struct tpw_session *s, uint32_t device, uint64_t bytes) {
    if (tp_quota_reserve(s->quota, device, bytes)) {
        return CUDA_SUCCESS;
    }
    if (s->memory->pending_bytes[device] && tpw_wait_for_frees(s) && tp_quota_reserve(s->quota, device, bytes)) {
        return CUDA_SUCCESS;
    }
    tp_log(TP_INFO, "%llu bytes on device %u would pass the memory limit of %llu bytes (%llu in use)",
           (unsigned long long)bytes, device, (unsigned long long)tp_quota_limit(s->quota),
           (unsigned long long)tp_quota_used(s->quota, device));
    return CUDA_ERROR_OUT_OF_MEMORY;
}

void tpw_uncharge(struct tpw_session *s, uint32_t device, uint64_t bytes) { tp_quota_free(s->quota, device, bytes); }

static bool in_arena(const struct tpw_range *range) {
    return range->kind == TPW_RANGE_SMALL || range->kind == TPW_RANGE_LARGE;
}

/* The range's memory has been given back. */
static void uncharge_range(struct tpw_session *s, struct tpw_range *range) {
    if (range->kind == TPW_RANGE_POOL) {
        tpw_pool_left(s, range);
        return;
    }
    if (tpw_share_freed(s, &range->share, range->charged)) {
        return;
    }
    if (in_arena(range)) {
        tpw_arena_uncount(s, range->device, range->charged);
    } else {
        tpw_uncharge(s, range->device, range->charged);
    }
}

/* ---- operations ---- */

int32_t tpw_memory_alloc(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_memory_alloc_in *in,
                         struct tpg_memory_alloc_out *out) {
    uint32_t device = 0;
    struct tpw_range *range = NULL;
    if (!in->size) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    int32_t error = tpw_current_device(s, &device);
    error = error ? error : tpw_memory_open(s);
    error = error ? error : tpw_charge(s, device, in->size);
    TPW_TRY(error);
    error = tpw_arena_alloc(s, device, in->size, &range);
    if (error) {
        tpw_uncharge(s, device, in->size);
        return error;
    }
    if (in_arena(range)) {
        error = tpw_arena_count(s, device, in->size);
    }
    if (error) {
        tp_interval_remove(&s->memory->ranges, range->at.start);
        tpw_arena_free(s, range);
        tpw_uncharge(s, device, in->size);
        free(range);
        return error;
    }
    range->charged = in->size;
    range->context = tpw_home_of(s, s->entered);
    out->address = range->at.start;
    return CUDA_SUCCESS;
}

/* In a stream that nothing else uses: during a capture nothing may be put into the legacy stream, and cuMemFree would wait for
 * what came later, too: for a host function, whose end only this thread can hear of. For the same reason nothing waits here: the
 * stream may share a queue with one that stands. NULL where there is no such stream now, or the driver did not take the free. */
static struct tpw_stream *free_beside(struct tpw_session *s, CUdeviceptr address, int32_t *error) {
    struct tpw_stream *beside = tpw_stream_aside(s);
    *error = beside ? (int32_t)s->cuda.cuMemFreeAsync(address, beside->native) : CUDA_ERROR_NOT_READY;
    if (*error) {
        tpw_stream_leave(s, beside);
    }
    return *error ? NULL : beside;
}

static void nothing(struct tpw_session *s, void *what, int32_t error) { (void)s, (void)what, (void)error; }
static bool pending(struct tpw_session *s, void *beside) { return (void)s, ((struct tpw_stream *)beside)->pending; }

/* Without a stream it is cuMemFree's, after which a graph may allocate there again in any stream: so the free must have run. */
int32_t tpw_graph_memory_free(struct tpw_session *s, uint64_t address, CUstream native) {
    int32_t error = native ? (int32_t)s->cuda.cuMemFreeAsync(address, native) : tpw_stream_room(s);
    if (!error && !native) {
        struct tpw_stream *beside = free_beside(s, address, &error);
        error = error ? error : tpw_when_done(s, beside->native, nothing, NULL);
        if (!error) {
            (void)tpw_hold_while(s, pending, beside); /* false where the session ends */
        }
        tpw_stream_leave(s, beside);
    }
    if (!error) {
        TP_TELL(tpw_memory_freed, s);
    }
    return error;
}

static void pool_freed(struct tpw_session *s, void *device, int32_t error) {
    s->pools_freed |= 1u << (uintptr_t)device;
    tpw_pools_trim(s);
}

static void free_in_pool(struct tpw_session *s, const struct tpw_range *range) {
    void *device = (void *)(uintptr_t)range->device;
    int32_t error = 0;
    struct tpw_stream *beside = free_beside(s, range->at.start, &error);
    if (error && !s->captures) {
        error = (int32_t)s->cuda.cuMemFreeAsync(range->at.start, CU_STREAM_LEGACY);
    }
    if (error) {
        tp_log(TP_WARN, "memory of a pool stays in use: error %d", (int)error);
    } else if (!beside || tpw_when_done(s, beside->native, pool_freed, device)) {
        pool_freed(s, device, 0);
    }
    tpw_stream_leave(s, beside);
}

static void freed(struct tpw_session *s, void *what, int32_t error) {
    struct tpw_range *range = what;
    (void)error; /* a context that broke uses the memory no more */
    s->memory->pending_bytes[range->device] -= range->charged;
    s->memory->pending_frees--;
    if (range->kind == TPW_RANGE_POOL) {
        free_in_pool(s, range);
    } else {
        tpw_arena_free(s, range);
    }
    uncharge_range(s, range);
    free(range);
}

void tpw_range_leave(struct tpw_session *s, struct tpw_range *range) {
    tp_interval_remove(&s->memory->ranges, range->at.start);
    s->memory->pending_bytes[range->device] += range->charged;
    s->memory->pending_frees++;
}

/* No way to learn of completion: the context is broken, or this process is out of memory. */
static void freed_now(struct tpw_session *s, struct tpw_range *range, int32_t error) {
    s->cuda.cuCtxSynchronize();
    freed(s, range, error);
}

int32_t tpw_memory_free(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_memory_free_in *in) {
    struct tpw_range *range = tpw_range_at(s, in->address);
    if (range && range->kind == TPW_RANGE_GRAPH) {
        return tpw_graph_memory_free(s, in->address, NULL);
    }
    if (!range || range->at.start != in->address || (range->kind > TPW_RANGE_POOL && range->kind != TPW_RANGE_IMPORT)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    tpw_range_leave(s, range);
    /* Other devices' streams may copy it, their kernels may use it. */
    int32_t error =
        s->device_count > 1 ? tpw_when_everything_done(s, freed, range) : tpw_when_all_done(s, freed, range);
    if (error) {
        freed_now(s, range, error);
    }
    return CUDA_SUCCESS;
}

void tpw_memory_free_behind(struct tpw_session *s, struct tpw_range *range, CUstream native) {
    tpw_range_leave(s, range);
    int32_t error = tpw_when_done(s, native, freed, range);
    if (error) {
        freed_now(s, range, error);
    }
}

int32_t tpw_cuMemGetInfo_v2(struct tpw_session *s, const struct tp_frame *frame, struct tpg_cuMemGetInfo_v2_out *out) {
    size_t available = 0, total = 0;
    uint32_t device = 0;
    TPW_TRY(tpw_current_device(s, &device));
    TPW_TRY(s->cuda.cuMemGetInfo_v2(&available, &total));
    uint64_t pending = s->memory ? s->memory->pending_bytes[device] : 0;
    uint64_t usable = available + (s->memory ? s->memory->arenas[device].cached_bytes : 0) + pending;
    uint64_t limit = tp_quota_limit(s->quota);
    out->total = total;
    out->free = usable < total ? usable : total;
    if (limit) {
        uint64_t used = tp_quota_used(s->quota, device);
        used -= pending < used ? pending : used;
        uint64_t left = used < limit ? limit - used : 0;
        out->total = limit < total ? limit : total;
        out->free = left < out->free ? left : out->free;
    }
    return CUDA_SUCCESS;
}

/* ---- life ---- */

int32_t tpw_memory_open(struct tpw_session *s) {
    struct tpw_memory *m = tpw_memory_state(s);
    if (!m) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (!m->opened) {
        int32_t error = tpw_arena_reserve(s);
        m->opened = !error;
        return error;
    }
    return CUDA_SUCCESS;
}

int32_t tpw_memory_reserved(struct tpw_session *s, uint64_t *base, uint64_t *size) {
    int32_t error = tpw_memory_open(s);
    *base = *size = 0;
    if (!error && s->memory->base) {
        *base = s->memory->base;
        *size = s->memory->size + TPW_GRANULE + TPW_TWINS_SPACE; /* the twins lie behind it */
    }
    return error;
}

/* Drops what a context allocated; its work is over. */
static void context_left(struct tpw_session *s, const struct tpw_gone *gone) {
    if (!s->memory || !gone->id) {
        return;
    }
    struct tp_intervals *ranges = &s->memory->ranges;
    for (struct tp_interval *at = tp_interval_from(ranges, 0), *next; at; at = next) {
        struct tpw_range *range = (struct tpw_range *)at;
        next = tp_interval_from(ranges, at->start + 1);
        if (range->context != gone->id) {
            continue;
        }
        tp_interval_remove(ranges, at->start);
        if (range->kind == TPW_RANGE_POOL) {
            s->cuda.cuMemFreeAsync(range->at.start, CU_STREAM_LEGACY);
        } else {
            tpw_arena_free(s, range);
        }
        uncharge_range(s, range);
        free(range);
    }
}
TP_REGISTER(tpw_context_left, context_left);
TP_REGISTER(tpw_primary_made, tpw_memory_open);

/* The process ends after this: the driver takes device memory back, the supervisor what is on the quota page. */
void tpw_memory_close(struct tpw_session *s) {
    struct tpw_memory *m = s->memory;
    if (!m) {
        return;
    }
    tpw_twins_close(s);
    tpw_staging_close(s);
    tpw_peers_close(m);
    tpw_shares_close(m);
    for (struct tpw_pool *next; m->pools; m->pools = next) {
        next = m->pools->next;
        free(m->pools);
    }
    while (m->ranges.root) {
        free(tp_interval_remove(&m->ranges, m->ranges.root->start));
    }
    while (m->reservations.root) {
        free(tp_interval_remove(&m->reservations, m->reservations.root->start));
    }
    tpw_arena_close(s);
    free(m);
    s->memory = NULL;
}
