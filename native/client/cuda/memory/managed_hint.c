/*
 * Advice about managed memory and prefetches of it: checked, remembered, told again.
 *
 * Any thread. What was said of a range of bytes is kept in parts that split where it differs, whole pages each, under one lock. A
 * prefetch to a device sends what the program wrote now instead of at the next launch; one to the host changes nothing, since a
 * touch fetches anyhow. Devices are the program's ordinals; nothing of this is sent.
 */
#include "tpc_managed.h"
#include "tpc_stream.h"
#include "tpg_client.h"

#include <stdlib.h>
#include <unistd.h>

enum { HOST = -1, NOWHERE = -2, DEVICES = 64 }; /* the first two as cuda.h has them */

struct tpc_hint {
    struct tpc_hint *next;
    uint64_t start, end; /* offsets */
    bool read_mostly, host_accesses;
    uint64_t accessed; /* by devices: bits */
    CUmemLocation preferred, prefetched;
};

static struct tp_lock lock;

static const CUmemLocation nowhere = {.type = CU_MEM_LOCATION_TYPE_INVALID, .id = NOWHERE};

void tpc_hints_free(struct tpc_managed *m) {
    while (m->hints) {
        struct tpc_hint *hint = m->hints;
        m->hints = hint->next;
        free(hint);
    }
}

static struct tpc_hint *new_hint(const struct tpc_hint *like, struct tpc_hint *next) {
    struct tpc_hint *hint = malloc(sizeof *hint);
    if (hint) {
        *hint = *like;
        hint->next = next;
    }
    return hint;
}

/* A part begins at `at` afterwards. */
static bool split(struct tpc_managed *m, uint64_t at) {
    if (!m->hints) {
        const struct tpc_hint none = {.end = m->mapped, .preferred = nowhere, .prefetched = nowhere};
        m->hints = new_hint(&none, NULL);
    }
    struct tpc_hint *hint = TP_FIND(m->hints, at < it->end);
    if (!hint || hint->start == at) {
        return m->hints != NULL;
    }
    struct tpc_hint *rest = new_hint(hint, hint->next);
    if (rest) {
        rest->start = at;
        hint->end = at;
        hint->next = rest;
    }
    return rest != NULL;
}

static bool same_place(const CUmemLocation *a, const CUmemLocation *b) { return a->type == b->type && a->id == b->id; }

/* Parts that do not differ become one: programs prefetch again and again. */
static void join(struct tpc_managed *m) {
    for (struct tpc_hint *hint = m->hints; hint && hint->next;) {
        struct tpc_hint *next = hint->next;
        if (hint->read_mostly == next->read_mostly && hint->host_accesses == next->host_accesses &&
            hint->accessed == next->accessed && same_place(&hint->preferred, &next->preferred) &&
            same_place(&hint->prefetched, &next->prefetched)) {
            hint->end = next->end;
            hint->next = next->next;
            free(next);
        } else {
            hint = next;
        }
    }
}

/* The managed memory that [address, address+size) is part of, in offsets of whole pages. */
struct part {
    struct tpc_range range;
    struct tpc_managed *managed;
    uint64_t begin, end;
};

static CUresult part_of(uint64_t address, uint64_t size, struct part *out) {
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    if (!size || !tpc_range_at(address, &out->range) || (out->range.flags & TPC_MADE_MASK) != TPC_MADE_MANAGED) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    out->managed = out->range.detail;
    const uint64_t offset = address - out->range.start;
    if (size > out->managed->mapped - offset) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    out->begin = offset & ~(page - 1);
    out->end = (offset + size + page - 1) & ~(page - 1);
    return CUDA_SUCCESS;
}

/* A place that memory may be moved to: a device, or the host, of which there is one. */
static CUresult place_of(const CUmemLocation *told, CUmemLocation *out) {
    *out = (CUmemLocation){.type = told->type, .id = told->id};
    switch ((int)told->type) {
    case CU_MEM_LOCATION_TYPE_DEVICE:
        return CUDA_SUCCESS;
    case CU_MEM_LOCATION_TYPE_HOST:
    case CU_MEM_LOCATION_TYPE_HOST_NUMA_CURRENT:
        out->id = HOST;
        return CUDA_SUCCESS;
    case CU_MEM_LOCATION_TYPE_HOST_NUMA:
        return told->id >= 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    default:
        return CUDA_ERROR_INVALID_VALUE;
    }
}

typedef void changing(struct tpc_hint *hint, CUmem_advise advice, const CUmemLocation *place);

static CUresult change(const struct part *part, changing *with, CUmem_advise advice, const CUmemLocation *place) {
    struct tpc_managed *m = part->managed;
    tp_lock_take(&lock);
    const bool able = split(m, part->begin) && split(m, part->end);
    for (struct tpc_hint *hint = m->hints; able && hint; hint = hint->next) {
        if (hint->start >= part->begin && hint->end <= part->end) {
            with(hint, advice, place);
        }
    }
    join(m);
    tp_lock_drop(&lock);
    return able ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

/* ---- advice ---- */

static void set_accessed(struct tpc_hint *hint, const CUmemLocation *place, bool accesses) {
    if (place->type != CU_MEM_LOCATION_TYPE_DEVICE) {
        hint->host_accesses = accesses;
    } else if (place->id < DEVICES) {
        const uint64_t bit = 1ull << place->id;
        hint->accessed = accesses ? hint->accessed | bit : hint->accessed & ~bit;
    }
}

static void advised(struct tpc_hint *hint, CUmem_advise advice, const CUmemLocation *place) {
    switch ((int)advice) {
    case CU_MEM_ADVISE_SET_READ_MOSTLY:
    case CU_MEM_ADVISE_UNSET_READ_MOSTLY:
        hint->read_mostly = advice == CU_MEM_ADVISE_SET_READ_MOSTLY;
        break;
    case CU_MEM_ADVISE_SET_PREFERRED_LOCATION:
        hint->preferred = *place;
        break;
    case CU_MEM_ADVISE_UNSET_PREFERRED_LOCATION:
        hint->preferred = nowhere;
        break;
    default:
        set_accessed(hint, place, advice == CU_MEM_ADVISE_SET_ACCESSED_BY);
    }
}

CUresult tpc_cuMemAdvise_v2(CUdeviceptr devPtr, size_t count, CUmem_advise advice, CUmemLocation location) {
    struct part part;
    CUmemLocation place;
    TPC_TRY(place_of(&location, &place)); /* before a context, here and below (580.159.04, asked) */
    TPC_CONTEXT(context);
    TPC_CAPTURE_UNSAFE("cuMemAdvise");
    const bool placed = advice != CU_MEM_ADVISE_SET_READ_MOSTLY && advice != CU_MEM_ADVISE_UNSET_READ_MOSTLY &&
                        advice != CU_MEM_ADVISE_UNSET_PREFERRED_LOCATION;
    if (advice < CU_MEM_ADVISE_SET_READ_MOSTLY || advice > CU_MEM_ADVISE_UNSET_ACCESSED_BY) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    TPC_TRY(part_of(devPtr, count, &part));
    if (placed && place.type == CU_MEM_LOCATION_TYPE_DEVICE && !tpc_device_valid(place.id)) {
        return CUDA_ERROR_INVALID_VALUE; /* advice that needs no place takes any device (580.159.04) */
    }
    return change(&part, advised, advice, &place);
}

/* ---- prefetches ---- */

static void prefetched(struct tpc_hint *hint, CUmem_advise advice, const CUmemLocation *place) {
    (void)advice;
    hint->prefetched = *place;
}

CUresult tpc_cuMemPrefetchAsync_v2(CUdeviceptr devPtr, size_t count, CUmemLocation location, unsigned int flags,
                                   CUstream hStream) {
    struct part part;
    CUmemLocation place;
    TPC_TRY(place_of(&location, &place));
    TPC_CONTEXT(context);
    TPC_CHECK_HANDLE(STREAM, hStream, true);
    TPC_TRY(tpc_capture_refuse("cuMemPrefetchAsync", hStream));
    if (flags) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    TPC_TRY(part_of(devPtr, count, &part));
    if (place.type == CU_MEM_LOCATION_TYPE_DEVICE && !tpc_device_valid(place.id)) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    TPC_TRY(change(&part, prefetched, 0, &place));
    return place.type == CU_MEM_LOCATION_TYPE_DEVICE ? tpc_managed_use(&part.range) : CUDA_SUCCESS;
}

/* All of a batch is checked before any of it is done. */
CUresult tpc_batch_check(const CUdeviceptr *addresses, const size_t *sizes, size_t count, unsigned long long flags,
                         CUstream stream) {
    if (flags || stream == CU_STREAM_LEGACY) { /* before a context and the capture (580.159.04, measured) */
        return CUDA_ERROR_INVALID_VALUE;
    }
    TPC_CONTEXT(context);
    TPC_CHECK_HANDLE(STREAM, stream, true);
    TPC_TRY(tpc_capture_refuse("a batch of prefetches", stream));
    if (!addresses || !sizes || !count) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    for (size_t i = 0; i < count; i++) {
        struct part part;
        TPC_TRY(part_of(addresses[i], sizes[i], &part));
    }
    return CUDA_SUCCESS;
}

CUresult tpc_cuMemPrefetchBatchAsync(CUdeviceptr *dptrs, size_t *sizes, size_t count, CUmemLocation *prefetchLocs,
                                     size_t *prefetchLocIdxs, size_t numPrefetchLocs, unsigned long long flags,
                                     CUstream hStream) {
    TPC_TRY(tpc_batch_check(dptrs, sizes, count, flags, hStream));
    if (!prefetchLocs || !prefetchLocIdxs || !numPrefetchLocs || numPrefetchLocs > count || prefetchLocIdxs[0]) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    for (size_t i = 1; i < numPrefetchLocs; i++) {
        if (prefetchLocIdxs[i] <= prefetchLocIdxs[i - 1] || prefetchLocIdxs[i] >= count) {
            return CUDA_ERROR_INVALID_VALUE;
        }
    }
    for (size_t i = 0, where = 0; i < count; i++) {
        where += where + 1 < numPrefetchLocs && prefetchLocIdxs[where + 1] == i;
        TPC_TRY(tpc_cuMemPrefetchAsync_v2(dptrs[i], sizes[i], prefetchLocs[where], 0, hStream));
    }
    return CUDA_SUCCESS;
}

/* ---- questions ---- */

/* Who accesses all of the range; the rest of the list is no device. */
static void tell_accessed(const struct part *part, int *out, size_t room) {
    uint64_t devices = UINT64_MAX;
    bool host = true, any = false;
    for (const struct tpc_hint *hint = part->managed->hints; hint; hint = hint->next) {
        if (hint->end > part->begin && hint->start < part->end) {
            devices &= hint->accessed;
            host = host && hint->host_accesses;
            any = true;
        }
    }
    size_t count = 0;
    if (any && host && count < room) {
        out[count++] = HOST;
    }
    for (int i = 0; any && i < DEVICES && count < room; i++) {
        if (devices >> i & 1) {
            out[count++] = i;
        }
    }
    while (count < room) {
        out[count++] = NOWHERE;
    }
}

/* One place for all of the range, or none. */
static CUmemLocation place_in_all(const struct part *part, bool preferred) {
    CUmemLocation found = nowhere;
    bool first = true;
    for (const struct tpc_hint *hint = part->managed->hints; hint; hint = hint->next) {
        const CUmemLocation *here = preferred ? &hint->preferred : &hint->prefetched;
        if (hint->end <= part->begin || hint->start >= part->end) {
            continue;
        }
        if (!first && !same_place(&found, here)) {
            return nowhere;
        }
        found = *here;
        first = false;
    }
    return found;
}

static bool read_mostly(const struct part *part) {
    bool all = part->managed->hints != NULL;
    for (const struct tpc_hint *hint = part->managed->hints; hint; hint = hint->next) {
        all = all && (hint->end <= part->begin || hint->start >= part->end || hint->read_mostly);
    }
    return all;
}

static CUresult tell(const struct part *part, void *data, size_t size, CUmem_range_attribute attribute) {
    const bool preferred = attribute == CU_MEM_RANGE_ATTRIBUTE_PREFERRED_LOCATION ||
                           attribute == CU_MEM_RANGE_ATTRIBUTE_PREFERRED_LOCATION_TYPE ||
                           attribute == CU_MEM_RANGE_ATTRIBUTE_PREFERRED_LOCATION_ID;
    const bool list = attribute == CU_MEM_RANGE_ATTRIBUTE_ACCESSED_BY;
    if (!data || !size || size % sizeof(int) || (!list && size != sizeof(int))) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    tp_lock_take(&lock);
    const CUmemLocation place = place_in_all(part, preferred);
    CUresult result = CUDA_SUCCESS;
    int value = 0;
    switch ((int)attribute) {
    case CU_MEM_RANGE_ATTRIBUTE_READ_MOSTLY:
        value = read_mostly(part);
        break;
    case CU_MEM_RANGE_ATTRIBUTE_PREFERRED_LOCATION_TYPE:
    case CU_MEM_RANGE_ATTRIBUTE_LAST_PREFETCH_LOCATION_TYPE:
        value = (int)place.type;
        break;
    case CU_MEM_RANGE_ATTRIBUTE_PREFERRED_LOCATION:
    case CU_MEM_RANGE_ATTRIBUTE_LAST_PREFETCH_LOCATION:
    case CU_MEM_RANGE_ATTRIBUTE_PREFERRED_LOCATION_ID:
    case CU_MEM_RANGE_ATTRIBUTE_LAST_PREFETCH_LOCATION_ID:
        value = place.id; /* of the host: -1 */
        break;
    case CU_MEM_RANGE_ATTRIBUTE_ACCESSED_BY:
        tell_accessed(part, data, size / sizeof(int));
        break;
    default:
        result = CUDA_ERROR_INVALID_VALUE;
    }
    tp_lock_drop(&lock);
    if (result == CUDA_SUCCESS && !list) {
        memcpy(data, &value, sizeof value);
    }
    return result;
}

CUresult tpc_do_cuMemRangeGetAttribute(void *data, size_t dataSize, CUmem_range_attribute attribute, CUdeviceptr devPtr,
                                       size_t count) {
    struct part part;
    TPC_TRY(part_of(devPtr, count, &part));
    return tell(&part, data, dataSize, attribute);
}

CUresult tpc_do_cuMemRangeGetAttributes(void **data, size_t *dataSizes, CUmem_range_attribute *attributes,
                                        size_t numAttributes, CUdeviceptr devPtr, size_t count) {
    struct part part;
    TPC_TRY(part_of(devPtr, count, &part));
    for (size_t i = 0; i < numAttributes; i++) {
        TPC_TRY(tell(&part, data[i], dataSizes[i], attributes[i]));
    }
    return CUDA_SUCCESS;
}
