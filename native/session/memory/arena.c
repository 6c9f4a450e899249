/*
 * Device memory in granules of 2 MiB inside one reserved range of addresses.
 *
 * Owns the free addresses of the reserved range, what is mapped there, the shared granules that small allocations are cut
 * from, and a few mapped granules kept for reuse. Large allocations get physical memory of their own. What is mapped can be
 * reached by its own device, and by those whose contexts have peer access (peer.c). One executor thread; nobody else
 * can write what is read here. Contents never cross clients: the range, and all that was ever mapped into it, belongs
 * to this process, and the driver clears physical memory before a process gets it.
 */
#include "tpw_memory.h"
#include <stdlib.h>

#define ARENA_BASE 0x300000000000ull

static uint64_t round_up(uint64_t value, uint64_t unit) { return (value + unit - 1) & ~(unit - 1); }

/* ---- addresses ---- */

uint64_t tpw_span_take(struct tpw_memory *m, uint64_t size, uint64_t alignment, uint64_t hint) {
    if (!size || size > m->size || alignment > m->size) {
        return 0;
    }
    struct tp_interval *at = hint ? tp_interval_at(&m->spans, hint) : NULL;
    uint64_t start = hint;
    if (!at || (hint & (TPW_GRANULE - 1)) || hint % alignment || at->size - (hint - at->start) < size) {
        for (at = tp_interval_from(&m->spans, 0); at; at = tp_interval_from(&m->spans, at->start + 1)) {
            start = round_up(at->start, alignment);
            if (start >= at->start && start - at->start < at->size && at->size - (start - at->start) >= size) {
                break;
            }
        }
    }
    if (!at) {
        return 0;
    }
    uint64_t before = start - at->start, after = at->size - before - size;
    struct tpw_span *rest = NULL;
    if (before && after) {
        rest = calloc(1, sizeof *rest);
        if (!rest) {
            return 0;
        }
    }
    struct tp_interval *span = tp_interval_remove(&m->spans, at->start);
    if (before) {
        span->size = before;
        tp_interval_add(&m->spans, span);
        span = rest ? &rest->at : NULL;
    }
    if (after) {
        span->start = start + size;
        span->size = after;
        tp_interval_add(&m->spans, span);
    } else if (!before) {
        free(span);
    }
    return start;
}

void tpw_span_give(struct tpw_memory *m, uint64_t address, uint64_t size) {
    struct tp_interval *low = tp_interval_before(&m->spans, address);
    struct tp_interval *high = tp_interval_from(&m->spans, address);
    bool joins_low = low && low->start + low->size == address;
    bool joins_high = high && address + size == high->start;
    if (joins_high) {
        size += high->size;
        tp_interval_remove(&m->spans, high->start);
    }
    if (joins_low) {
        low->size += size; /* keys keep their order: nothing lies between */
        if (joins_high) {
            free(high);
        }
        return;
    }
    struct tp_interval *span = joins_high ? high : calloc(1, sizeof(struct tpw_span));
    if (!span) {
        tp_log(TP_WARN, "no memory to note %llu free bytes of addresses at 0x%llx: they stay unused",
               (unsigned long long)size, (unsigned long long)address);
        return;
    }
    span->start = address;
    span->size = size;
    tp_interval_add(&m->spans, span);
}

int32_t tpw_arena_reserve(struct tpw_session *s) {
    struct tpw_memory *m = s->memory;
    static const uint64_t sizes[] = {4ull << 40, 1ull << 40, 512ull << 30, 256ull << 30};
    static const uint64_t bases[] = {ARENA_BASE, 0x280000000000ull, 0x380000000000ull, 0x200000000000ull};
    if (m->reserve_tried) {
        return CUDA_SUCCESS;
    }
    for (int i = 0; i < s->device_count; i++) {
        int supported = 0;
        TPW_TRY(s->cuda.cuDeviceGetAttribute(&supported, CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED,
                                             s->devices[i]));
        if (!supported) {
            tp_log(TP_WARN, "device %d has no virtual memory management: its memory comes from cuMemAlloc_v2", i);
            continue;
        }
        m->arenas[i].vmm = true;
        int32_t error = (int32_t)s->cuda.cuDeviceGetAttribute(
            &supported, CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED, s->devices[i]);
        TPW_TRY(error);
        m->arenas[i].shareable = supported;
    }
    m->reserve_tried = true;
    CUdeviceptr got = 0;
    CUresult result = CUDA_ERROR_NOT_SUPPORTED;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        for (size_t k = 0; k < sizeof bases / sizeof *bases; k++) {
            /* Needs no context, and a session may have none yet (asked of 580.159). */
            result = s->cuda.cuMemAddressReserve(&got, sizes[i], 0, bases[k], 0);
            if (result == CUDA_SUCCESS && got == bases[k]) {
                m->base = got;
                m->size = sizes[i];
                tpw_span_give(m, m->base, m->size);
                return CUDA_SUCCESS;
            }
            if (result == CUDA_SUCCESS) {
                s->cuda.cuMemAddressFree(got, sizes[i]);
            }
        }
    }
    tp_log(TP_WARN,
           "the driver reserves no device addresses at a fixed place (error %d): memory comes from cuMemAlloc_v2",
           result);
    for (int i = 0; i < TPW_MAX_DEVICES; i++) {
        m->arenas[i].vmm = false;
    }
    return CUDA_SUCCESS;
}

/* ---- the limit ----
 *
 * The limit counts what was asked for, and what the granules hold beyond that as soon as it passes what the cache may keep. */

static uint64_t beyond(const struct tpw_arena *arena) {
    uint64_t covered = arena->asked + TPW_CACHE_BYTES;
    return arena->mapped > covered ? arena->mapped - covered : 0;
}

int32_t tpw_arena_count(struct tpw_session *s, uint32_t device, uint64_t bytes) {
    struct tpw_arena *arena = &s->memory->arenas[device];
    arena->asked += bytes;
    if (beyond(arena) > arena->beyond) {
        tpw_arena_trim(s, device);
    }
    while (beyond(arena) > arena->beyond) {
        uint64_t more = beyond(arena) - arena->beyond;
        if (tpw_charge(s, device, more)) { /* which may have waited for frees, which uncount */
            arena->asked -= bytes;
            return CUDA_ERROR_OUT_OF_MEMORY;
        }
        arena->beyond += more;
    }
    uint64_t less = arena->beyond - beyond(arena);
    tpw_uncharge(s, device, less);
    arena->beyond -= less;
    return CUDA_SUCCESS;
}

void tpw_arena_uncount(struct tpw_session *s, uint32_t device, uint64_t bytes) {
    struct tpw_arena *arena = &s->memory->arenas[device];
    uint64_t charged = arena->beyond + bytes;
    arena->asked -= bytes;
    uint64_t now = beyond(arena);
    arena->beyond = now < charged ? now : charged;
    tpw_uncharge(s, device, charged - arena->beyond);
}

/* ---- physical memory ---- */

static CUmemAccessDesc access_of(const struct tpw_session *s, uint32_t device, CUmemAccess_flags flags) {
    return (CUmemAccessDesc){.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = s->devices[device]},
                             .flags = flags};
}

/* To its own device, and to the peers of the moment. */
static CUresult give_access(struct tpw_session *s, uint32_t device, uint64_t address, uint64_t size) {
    CUmemAccessDesc access[TPW_MAX_DEVICES];
    size_t count = 0;
    for (uint32_t reader = 0; reader < (uint32_t)s->device_count; reader++) {
        if (reader == device || s->memory->readers[device][reader]) {
            access[count++] = access_of(s, reader, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
        }
    }
    return s->cuda.cuMemSetAccess(address, size, access, count);
}

int32_t tpw_arena_share(struct tpw_session *s, uint32_t owner, uint32_t reader, bool share) {
    struct tp_intervals *chunks = &s->memory->chunks;
    CUmemAccessDesc access =
        access_of(s, reader, share ? CU_MEM_ACCESS_FLAGS_PROT_READWRITE : CU_MEM_ACCESS_FLAGS_PROT_NONE);
    CUresult result = CUDA_SUCCESS;
    uint64_t failed = 0;
    for (struct tp_interval *at = tp_interval_from(chunks, 0); at; at = tp_interval_from(chunks, at->start + 1)) {
        if (((struct tpw_chunk *)at)->device != owner) {
            continue;
        }
        result = s->cuda.cuMemSetAccess(at->start, at->size, &access, 1);
        if (result != CUDA_SUCCESS && share) {
            failed = at->start;
            break;
        }
        if (result != CUDA_SUCCESS) {
            tp_log(TP_WARN, "device %u keeps its access to %llu bytes of device %u at 0x%llx: error %d", reader,
                   (unsigned long long)at->size, owner, (unsigned long long)at->start, result);
        }
    }
    access.flags = CU_MEM_ACCESS_FLAGS_PROT_NONE;
    for (struct tp_interval *at = tp_interval_from(chunks, 0); at && at->start < failed;
         at = tp_interval_from(chunks, at->start + 1)) {
        if (((struct tpw_chunk *)at)->device == owner) {
            s->cuda.cuMemSetAccess(at->start, at->size, &access, 1);
        }
    }
    return share ? (int32_t)result : CUDA_SUCCESS;
}

/* So that other sessions can map it, where the driver can do that. Whether it will be shared is not known when it is made. */
static CUresult create(struct tpw_session *s, uint32_t device, uint64_t size, CUmemGenericAllocationHandle *memory,
                       bool *shareable) {
    struct tpw_arena *arena = &s->memory->arenas[device];
    CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = s->devices[device]}};
    if (arena->shareable) {
        prop.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
        CUresult result = s->cuda.cuMemCreate(memory, size, &prop, 0);
        *shareable = result == CUDA_SUCCESS;
        if (result != CUDA_ERROR_NOT_SUPPORTED && result != CUDA_ERROR_NOT_PERMITTED) {
            return result;
        }
        tp_log(TP_WARN,
               "the driver makes no memory of device %u that could be shared between processes (error %d): "
               "cuIpcGetMemHandle will be refused",
               device, result);
        arena->shareable = false;
    }
    prop.requestedHandleTypes = 0;
    return s->cuda.cuMemCreate(memory, size, &prop, 0);
}

static int32_t map_granules(struct tpw_session *s, uint32_t device, uint64_t size, uint64_t *out) {
    CUmemGenericAllocationHandle memory = 0;
    bool created = false, mapped = false;
    struct tpw_chunk *chunk = calloc(1, sizeof *chunk);
    uint64_t address = chunk ? tpw_span_take(s->memory, size, TPW_GRANULE, 0) : 0;
    if (!address) {
        free(chunk);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    CUresult result = create(s, device, size, &memory, &chunk->shareable);
    if (result == CUDA_SUCCESS) {
        created = true;
        result = s->cuda.cuMemMap(address, size, 0, memory, 0);
    }
    if (result == CUDA_SUCCESS) {
        mapped = true;
        result = give_access(s, device, address, size);
    }
    if (result != CUDA_SUCCESS && mapped) {
        s->cuda.cuMemUnmap(address, size);
    }
    if (created) {
        s->cuda.cuMemRelease(memory); /* the mapping keeps it */
    }
    if (result != CUDA_SUCCESS) {
        tpw_span_give(s->memory, address, size);
        free(chunk);
        return (int32_t)result;
    }
    chunk->at.start = address;
    chunk->at.size = size;
    chunk->device = device;
    tp_interval_add(&s->memory->chunks, &chunk->at);
    s->memory->arenas[device].mapped += size;
    *out = address;
    return CUDA_SUCCESS;
}

static void unmap_granules(struct tpw_session *s, uint32_t device, uint64_t address, uint64_t size) {
    CUresult result = s->cuda.cuMemUnmap(address, size);
    if (result == CUDA_SUCCESS) {
        free(tp_interval_remove(&s->memory->chunks, address));
        tpw_span_give(s->memory, address, size);
        s->memory->arenas[device].mapped -= size;
    } else {
        tp_log(TP_WARN, "cuMemUnmap of %llu bytes at 0x%llx failed with error %d: the addresses stay unused",
               (unsigned long long)size, (unsigned long long)address, result);
    }
}

bool tpw_arena_trim(struct tpw_session *s, uint32_t device) {
    struct tpw_arena *arena = &s->memory->arenas[device];
    bool any = false;
    for (size_t i = 0; i < TPW_CACHE_ENTRIES; i++) {
        if (arena->cached[i].size) {
            unmap_granules(s, device, arena->cached[i].address, arena->cached[i].size);
            arena->cached[i].size = 0;
            any = true;
        }
    }
    arena->cached_bytes = 0;
    return any;
}

/* From the cache, else from the driver; then again with the cache given back and every pending free waited for. */
static int32_t get_granules(struct tpw_session *s, uint32_t device, uint64_t size, uint64_t *out) {
    struct tpw_arena *arena = &s->memory->arenas[device];
    for (size_t i = 0; i < TPW_CACHE_ENTRIES; i++) {
        if (arena->cached[i].size == size) {
            *out = arena->cached[i].address;
            arena->cached[i].size = 0;
            arena->cached_bytes -= size;
            return CUDA_SUCCESS;
        }
    }
    int32_t error = map_granules(s, device, size, out);
    if (error == CUDA_ERROR_OUT_OF_MEMORY && tpw_arena_trim(s, device)) {
        error = map_granules(s, device, size, out);
    }
    if (error == CUDA_ERROR_OUT_OF_MEMORY && s->memory->pending_frees && tpw_wait_for_frees(s)) {
        tpw_arena_trim(s, device);
        error = map_granules(s, device, size, out);
    }
    return error;
}

static void put_granules(struct tpw_session *s, uint32_t device, uint64_t address, uint64_t size) {
    struct tpw_arena *arena = &s->memory->arenas[device];
    const struct tpw_chunk *chunk = (struct tpw_chunk *)tp_interval_at(&s->memory->chunks, address);
    if (!chunk->shared && size <= TPW_CACHE_BYTES && arena->cached_bytes <= TPW_CACHE_BYTES - size) {
        for (size_t i = 0; i < TPW_CACHE_ENTRIES; i++) {
            if (!arena->cached[i].size) {
                arena->cached[i].address = address;
                arena->cached[i].size = size;
                arena->cached_bytes += size;
                return;
            }
        }
    }
    unmap_granules(s, device, address, size);
}

/* ---- units of a granule ---- */

uint64_t tpw_units_take(struct tpw_granule *granule, uint64_t bytes) {
    uint32_t wanted = (uint32_t)(round_up(bytes, TPW_UNIT) / TPW_UNIT), run = 0, longest = 0;
    if (!wanted || wanted > granule->longest) {
        return UINT64_MAX;
    }
    for (uint32_t i = 0; i < TPW_GRANULE_UNITS; i++) {
        uint64_t word = granule->bits[i / 64];
        if (i % 64 == 0 && word == UINT64_MAX) { /* whole words at a time where they are full or free */
            run = 0;
            i += 63;
            continue;
        }
        if (i % 64 == 0 && word == 0 && run + 64 < wanted) {
            run += 64;
            i += 63;
            longest = run > longest ? run : longest;
            continue;
        }
        run = word >> i % 64 & 1 ? 0 : run + 1;
        longest = run > longest ? run : longest;
        if (run == wanted) {
            uint32_t first = i + 1 - wanted;
            for (uint32_t k = first; k <= i; k++) {
                granule->bits[k / 64] |= 1ull << k % 64;
            }
            granule->used += wanted;
            return first * TPW_UNIT;
        }
    }
    granule->longest = longest;
    return UINT64_MAX;
}

void tpw_units_give(struct tpw_granule *granule, uint64_t offset, uint64_t bytes) {
    uint32_t first = (uint32_t)(offset / TPW_UNIT), count = (uint32_t)(round_up(bytes, TPW_UNIT) / TPW_UNIT);
    for (uint32_t k = first; k < first + count; k++) {
        granule->bits[k / 64] &= ~(1ull << k % 64);
    }
    granule->used -= count;
    granule->longest =
        (uint32_t)(TPW_GRANULE_UNITS)-granule->used; /* an upper bound until the next search that fails */
}

static int32_t alloc_small(struct tpw_session *s, uint32_t device, uint64_t size, uint64_t *address,
                           struct tpw_granule **out) {
    struct tpw_arena *arena = &s->memory->arenas[device];
    uint64_t offset = UINT64_MAX;
    struct tpw_granule *granule = arena->granules, **hook = &arena->granules;
    for (; granule; hook = &granule->next, granule = granule->next) {
        offset = tpw_units_take(granule, size);
        if (offset != UINT64_MAX) {
            break;
        }
    }
    if (granule) { /* to the front: the next small allocation will look here first */
        *hook = granule->next;
        TP_PUSH(arena->granules, granule);
    } else {
        granule = calloc(1, sizeof *granule);
        if (!granule) {
            return CUDA_ERROR_OUT_OF_MEMORY;
        }
        int32_t error = get_granules(s, device, TPW_GRANULE, &granule->address);
        if (error) {
            free(granule);
            return error;
        }
        granule->longest = TPW_GRANULE_UNITS;
        TP_PUSH(arena->granules, granule);
        offset = tpw_units_take(granule, size);
    }
    *address = granule->address + offset;
    *out = granule;
    return CUDA_SUCCESS;
}

static void free_small(struct tpw_session *s, uint32_t device, struct tpw_granule *granule, uint64_t address,
                       uint64_t size) {
    tpw_units_give(granule, address - granule->address, size);
    if (granule->used) {
        return;
    }
    TP_UNLINK(s->memory->arenas[device].granules, granule);
    put_granules(s, device, granule->address, TPW_GRANULE);
    free(granule);
}

/* ---- allocations ---- */

int32_t tpw_arena_alloc(struct tpw_session *s, uint32_t device, uint64_t size, struct tpw_range **out) {
    uint64_t address = 0;
    struct tpw_granule *granule = NULL;
    enum tpw_range_kind kind;
    int32_t error;
    if (size > 1ull << 46) {
        return CUDA_ERROR_OUT_OF_MEMORY; /* larger than any card, and safe to round up */
    }
    if (!s->memory->arenas[device].vmm) {
        kind = TPW_RANGE_NATIVE;
        error = (int32_t)s->cuda.cuMemAlloc_v2((CUdeviceptr *)&address, size);
        if (error == CUDA_ERROR_OUT_OF_MEMORY && s->memory->pending_frees && tpw_wait_for_frees(s)) {
            error = (int32_t)s->cuda.cuMemAlloc_v2((CUdeviceptr *)&address, size);
        }
    } else if (size <= TPW_SMALL_MAX) {
        kind = TPW_RANGE_SMALL;
        error = alloc_small(s, device, size, &address, &granule);
    } else {
        kind = TPW_RANGE_LARGE;
        error = get_granules(s, device, round_up(size, TPW_GRANULE), &address);
    }
    TPW_TRY(error);
    struct tpw_range range = {
        .at = {.start = address, .size = size}, .kind = kind, .device = device, .detail = granule};
    *out = tpw_range_new(s, address, size, kind);
    if (!*out) {
        tpw_arena_free(s, &range);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    (*out)->device = device;
    (*out)->detail = granule;
    return CUDA_SUCCESS;
}

void tpw_arena_free(struct tpw_session *s, struct tpw_range *range) {
    switch (range->kind) {
    case TPW_RANGE_SMALL:
        free_small(s, range->device, range->detail, range->at.start, range->at.size);
        break;
    case TPW_RANGE_LARGE:
        put_granules(s, range->device, range->at.start, round_up(range->at.size, TPW_GRANULE));
        break;
    case TPW_RANGE_NATIVE:
        s->cuda.cuMemFree_v2(range->at.start);
        break;
    case TPW_RANGE_IMPORT:
        tpw_import_end(s, range);
        break;
    default:
        break;
    }
}

void tpw_arena_close(struct tpw_session *s) {
    struct tpw_memory *m = s->memory;
    for (uint32_t i = 0; i < TPW_MAX_DEVICES; i++) {
        for (struct tpw_granule *granule = m->arenas[i].granules, *next; granule; granule = next) {
            next = granule->next;
            free(granule);
        }
        m->arenas[i].granules = NULL;
    }
    while (m->chunks.root) {
        free(tp_interval_remove(&m->chunks, m->chunks.root->start));
    }
    while (m->spans.root) {
        free(tp_interval_remove(&m->spans, m->spans.root->start));
    }
}
