// Managed memory: device memory that the program may touch at its own address, at any time.
//
// Of the device's file the pages of such an allocation are mapped over its addresses in the arena as well, so both sides have the
// same bytes. Advice is kept for each page. Codes are those of 580.159.04. Any thread enters; everything is under the map lock.
#include "sim_graph.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE 4096u
#define NOWHERE (-2)
#define NOBODY ((CUmemLocation){.type = CU_MEM_LOCATION_TYPE_INVALID, .id = NOWHERE})

struct sim_hint {
    CUmemLocation preferred, prefetched;
    unsigned accessed; // bits of devices; the last bit is the host
    bool read_mostly;
};

// Of whole pages: a variable shares its first and last one with others.
static uint64_t first_page(const sim_range_t *range) { return range->base & ~(uint64_t)(PAGE - 1); }
static uint64_t pages(const sim_range_t *range) {
    return (range->base - first_page(range) + range->size + PAGE - 1) / PAGE;
}

CUresult sim_managed_begin(sim_range_t *range) {
    sim_device_t *device = &sim.devices[range->device];
    void *at = (void *)(uintptr_t)first_page(range);
    size_t bytes = pages(range) * PAGE;
    range->managed = true;
    range->sync_memops = 1;
    range->hints = calloc(pages(range), sizeof *range->hints);
    if (!range->hints || mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, device->backing_fd,
                              (off_t)(first_page(range) - device->arena)) == MAP_FAILED)
        return CUDA_ERROR_OUT_OF_MEMORY;
    madvise(at, bytes, MADV_DONTFORK);
    for (uint64_t i = 0; i < pages(range); i++)
        range->hints[i] = (struct sim_hint){.preferred = NOBODY, .prefetched = NOBODY};
    return CUDA_SUCCESS;
}

void sim_managed_drop(sim_range_t *range) {
    if (range->managed && !range->internal) // another variable may be in a variable's pages
        (void)!mmap((void *)(uintptr_t)range->base, pages(range) * PAGE, PROT_NONE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    free(range->hints);
}

CUresult cuMemAllocManaged(CUdeviceptr *dptr, size_t bytesize, unsigned int flags) {
    SIM_BEGINS(dptr, 0);
    if (flags != CU_MEM_ATTACH_GLOBAL && flags != CU_MEM_ATTACH_HOST) // before everything else
        return CUDA_ERROR_INVALID_VALUE;
    SIM_ENTER_CONTEXT(context);
    if (!dptr || !bytesize)
        return CUDA_ERROR_INVALID_VALUE;
    SIM_UNSAFE();
    if (bytesize > sim.devices[context->device].total)
        return CUDA_ERROR_OUT_OF_MEMORY;
    sim_range_t *range;
    pthread_rwlock_wrlock(&sim.map_lock);
    // Half a granule at least: it then begins at a granule of its own.
    CUresult result = sim_device_allocate(context, bytesize < SIM_GRANULE / 2 ? SIM_GRANULE / 2 : bytesize, &range);
    if (result == CUDA_SUCCESS) {
        range->size = bytesize;
        range->flags = flags;
        result = sim_managed_begin(range);
        if (result == CUDA_SUCCESS)
            *dptr = range->base;
        else
            sim_range_release(range);
    }
    pthread_rwlock_unlock(&sim.map_lock);
    return result;
}

// The range that holds all of it.
static sim_range_t *find(uint64_t address, uint64_t bytes) {
    sim_range_t *range = sim_map_find(address);
    bool there = range && range->managed && bytes && bytes <= first_page(range) + pages(range) * PAGE - address;
    return there ? range : NULL;
}

CUresult cuStreamAttachMemAsync(CUstream stream, CUdeviceptr dptr, size_t length, unsigned int flags) {
    SIM_ENTER_STREAM(context, stream);
    SIM_UNSAFE();
    const CUresult barred = sim_capture_bars(context, stream);
    if (barred != CUDA_SUCCESS)
        return barred;
    bool legacy = !stream || stream == CU_STREAM_LEGACY;
    if ((flags != CU_MEM_ATTACH_GLOBAL && flags != CU_MEM_ATTACH_HOST && flags != CU_MEM_ATTACH_SINGLE) ||
        (flags == CU_MEM_ATTACH_SINGLE && legacy))
        return CUDA_ERROR_INVALID_VALUE;
    pthread_rwlock_rdlock(&sim.map_lock);
    const sim_range_t *range = sim_map_find(dptr);
    bool whole = range && range->managed && range->base == dptr && (!length || length == range->size);
    pthread_rwlock_unlock(&sim.map_lock);
    return whole ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

// ---- Advice and prefetches ----------------------------------------------------------------------------------------

static bool a_place(CUmemLocation *place) {
    if (place->type == CU_MEM_LOCATION_TYPE_HOST || place->type == CU_MEM_LOCATION_TYPE_HOST_NUMA_CURRENT)
        place->id = -1;
    return place->type >= CU_MEM_LOCATION_TYPE_DEVICE && place->type <= CU_MEM_LOCATION_TYPE_HOST_NUMA_CURRENT;
}

static bool no_device(const CUmemLocation *place) {
    return place->type == CU_MEM_LOCATION_TYPE_DEVICE && (place->id < 0 || place->id >= sim.ndevices);
}

static unsigned bit_of(const CUmemLocation *place) {
    return place->type == CU_MEM_LOCATION_TYPE_DEVICE ? 1u << place->id : 1u << 31;
}

static void advise(struct sim_hint *hint, CUmem_advise advice, const CUmemLocation *place) {
    switch ((int)advice) {
    case CU_MEM_ADVISE_SET_READ_MOSTLY:
    case CU_MEM_ADVISE_UNSET_READ_MOSTLY:
        hint->read_mostly = advice == CU_MEM_ADVISE_SET_READ_MOSTLY;
        break;
    case CU_MEM_ADVISE_SET_PREFERRED_LOCATION:
        hint->preferred = *place;
        break;
    case CU_MEM_ADVISE_UNSET_PREFERRED_LOCATION:
        hint->preferred = NOBODY;
        break;
    case CU_MEM_ADVISE_SET_ACCESSED_BY:
        hint->accessed |= bit_of(place);
        break;
    case CU_MEM_ADVISE_UNSET_ACCESSED_BY:
        hint->accessed &= ~bit_of(place);
        break;
    default:
        hint->prefetched = *place;
    }
}

// `advice` 0 is a prefetch.
static CUresult each_page(uint64_t address, size_t bytes, CUmem_advise advice, const CUmemLocation *place) {
    pthread_rwlock_wrlock(&sim.map_lock);
    sim_range_t *range = find(address, bytes);
    if (range)
        for (uint64_t i = (address - first_page(range)) / PAGE; i <= (address - first_page(range) + bytes - 1) / PAGE;
             i++)
            advise(&range->hints[i], advice, place);
    pthread_rwlock_unlock(&sim.map_lock);
    return range ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemAdvise_v2(CUdeviceptr devPtr, size_t count, CUmem_advise advice, CUmemLocation location) {
    if (!a_place(&location)) // before a context, here and below
        return CUDA_ERROR_INVALID_VALUE;
    SIM_ENTER_CONTEXT(context);
    (void)context;
    SIM_UNSAFE();
    bool placed = advice == CU_MEM_ADVISE_SET_PREFERRED_LOCATION || advice == CU_MEM_ADVISE_SET_ACCESSED_BY ||
                  advice == CU_MEM_ADVISE_UNSET_ACCESSED_BY;
    if (advice < CU_MEM_ADVISE_SET_READ_MOSTLY || advice > CU_MEM_ADVISE_UNSET_ACCESSED_BY ||
        (placed && no_device(&location)))
        return CUDA_ERROR_INVALID_VALUE;
    return each_page(devPtr, count, advice, &location);
}

static CUmemLocation location_of(CUdevice device) {
    return (CUmemLocation){.type = device == -1 ? CU_MEM_LOCATION_TYPE_HOST : CU_MEM_LOCATION_TYPE_DEVICE,
                           .id = device};
}

CUresult cuMemAdvise(CUdeviceptr devPtr, size_t count, CUmem_advise advice, CUdevice device) {
    return cuMemAdvise_v2(devPtr, count, advice, location_of(device));
}

CUresult cuMemPrefetchAsync_v2(CUdeviceptr devPtr, size_t count, CUmemLocation location, unsigned int flags,
                               CUstream stream) {
    if (!a_place(&location))
        return CUDA_ERROR_INVALID_VALUE;
    SIM_ENTER_STREAM(context, stream);
    CUresult result = sim_capture_bars(context, stream);
    if (result != CUDA_SUCCESS)
        return result;
    pthread_rwlock_rdlock(&sim.map_lock);
    bool found = !flags && find(devPtr, count);
    pthread_rwlock_unlock(&sim.map_lock);
    if (!found)
        return CUDA_ERROR_INVALID_VALUE;
    if (no_device(&location))
        return CUDA_ERROR_INVALID_DEVICE;
    return each_page(devPtr, count, (CUmem_advise)0, &location);
}

CUresult cuMemPrefetchAsync(CUdeviceptr devPtr, size_t count, CUdevice device, CUstream stream) {
    return cuMemPrefetchAsync_v2(devPtr, count, location_of(device), 0, stream);
}

// ---- Questions ----------------------------------------------------------------------------------------------------

static CUmemLocation common(const struct sim_hint *first, uint64_t count, bool preferred) {
    CUmemLocation found = preferred ? first->preferred : first->prefetched;
    for (uint64_t i = 0; i < count; i++) {
        CUmemLocation here = preferred ? first[i].preferred : first[i].prefetched;
        if (here.type != found.type || here.id != found.id)
            return NOBODY;
    }
    return found;
}

static CUresult tell(const struct sim_hint *first, uint64_t count, int *data, size_t size,
                     CUmem_range_attribute which) {
    bool list = which == CU_MEM_RANGE_ATTRIBUTE_ACCESSED_BY;
    if (!data || !size || size % sizeof *data || (!list && size != sizeof *data))
        return CUDA_ERROR_INVALID_VALUE;
    unsigned accessed = ~0u;
    bool read_mostly = true;
    for (uint64_t i = 0; i < count; i++) {
        accessed &= first[i].accessed;
        read_mostly = read_mostly && first[i].read_mostly;
    }
    switch ((int)which) {
    case CU_MEM_RANGE_ATTRIBUTE_READ_MOSTLY:
        *data = read_mostly;
        return CUDA_SUCCESS;
    case CU_MEM_RANGE_ATTRIBUTE_PREFERRED_LOCATION:
    case CU_MEM_RANGE_ATTRIBUTE_PREFERRED_LOCATION_ID:
        *data = common(first, count, true).id;
        return CUDA_SUCCESS;
    case CU_MEM_RANGE_ATTRIBUTE_PREFERRED_LOCATION_TYPE:
        *data = (int)common(first, count, true).type;
        return CUDA_SUCCESS;
    case CU_MEM_RANGE_ATTRIBUTE_LAST_PREFETCH_LOCATION:
    case CU_MEM_RANGE_ATTRIBUTE_LAST_PREFETCH_LOCATION_ID:
        *data = common(first, count, false).id;
        return CUDA_SUCCESS;
    case CU_MEM_RANGE_ATTRIBUTE_LAST_PREFETCH_LOCATION_TYPE:
        *data = (int)common(first, count, false).type;
        return CUDA_SUCCESS;
    case CU_MEM_RANGE_ATTRIBUTE_ACCESSED_BY:
        break;
    default:
        return CUDA_ERROR_INVALID_VALUE;
    }
    size_t told = 0, room = size / sizeof *data;
    if (accessed >> 31)
        data[told++] = -1;
    for (int i = 0; i < SIM_MAX_DEVICES && told < room; i++)
        if (accessed >> i & 1)
            data[told++] = i;
    while (told < room)
        data[told++] = NOWHERE;
    return CUDA_SUCCESS;
}

CUresult cuMemRangeGetAttributes(void **data, size_t *sizes, CUmem_range_attribute *attributes, size_t number,
                                 CUdeviceptr devPtr, size_t count) {
    SIM_ENTER_CONTEXT(context);
    (void)context;
    if (!data || !sizes || !attributes || !number)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    pthread_rwlock_rdlock(&sim.map_lock);
    const sim_range_t *range = find(devPtr, count);
    for (size_t i = 0; range && i < number; i++) {
        uint64_t first = (devPtr - first_page(range)) / PAGE, last = (devPtr - first_page(range) + count - 1) / PAGE;
        result = tell(&range->hints[first], last - first + 1, data[i], sizes[i], attributes[i]);
        if (result != CUDA_SUCCESS)
            break;
    }
    pthread_rwlock_unlock(&sim.map_lock);
    return result;
}

CUresult cuMemRangeGetAttribute(void *data, size_t size, CUmem_range_attribute attribute, CUdeviceptr devPtr,
                                size_t count) {
    return cuMemRangeGetAttributes(&data, &size, &attribute, 1, devPtr, count);
}
