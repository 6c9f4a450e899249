// The virtual-memory API: address reservations, physical allocations, mappings and access rights.
//
// A reservation really takes the addresses away from this process (without access rights), at the hinted place where
// that is free, so that device and host addresses cannot collide. A mapping is a range of the memory map that holds a
// reference on its physical allocation; memory returns to the budget when neither a handle nor a mapping is left. All
// under sim.lock and the map lock.
#include "sim.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static bool granular(uint64_t value) { return !(value & (SIM_GRANULE - 1)); }

static unsigned char *reserve_at(uint64_t address, size_t size, int flags) {
    void *got =
        mmap((void *)(uintptr_t)address, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | flags, -1, 0);
    return got == MAP_FAILED ? NULL : got;
}

CUresult cuMemAddressReserve(CUdeviceptr *ptr, size_t size, size_t alignment, CUdeviceptr addr,
                             unsigned long long flags) {
    SIM_ENTER();
    if (!ptr || !size || !granular(size) || flags || (addr & 4095))
        return CUDA_ERROR_INVALID_VALUE;
    if (alignment & (alignment - 1))
        return CUDA_ERROR_INVALID_VALUE;
    if (alignment < SIM_GRANULE)
        alignment = SIM_GRANULE;
    if (size > 1ull << 46 || alignment > 1ull << 40)
        return CUDA_ERROR_OUT_OF_MEMORY;
    unsigned char *got = NULL;
    if (addr && !(addr & (alignment - 1)) && addr < 1ull << 47) {
        got = reserve_at(addr, size, MAP_FIXED_NOREPLACE);
        if (got && (uint64_t)(uintptr_t)got != addr) { // a kernel without MAP_FIXED_NOREPLACE takes the hint as a hint
            munmap(got, size);
            got = NULL;
        }
    }
    if (!got) {
        unsigned char *wide = reserve_at(0, size + alignment, 0);
        if (!wide)
            return CUDA_ERROR_OUT_OF_MEMORY;
        uintptr_t start = ((uintptr_t)wide + alignment - 1) & ~(alignment - 1);
        size_t before = start - (uintptr_t)wide;
        if (before)
            munmap(wide, before);
        if (alignment - before)
            munmap((void *)(start + size), alignment - before);
        got = (unsigned char *)start;
    }
    pthread_rwlock_wrlock(&sim.map_lock);
    CUresult result = sim_reservation_add((uint64_t)(uintptr_t)got, size);
    pthread_rwlock_unlock(&sim.map_lock);
    if (result != CUDA_SUCCESS)
        munmap(got, size);
    else
        *ptr = (CUdeviceptr)(uintptr_t)got;
    return result;
}

// True when some mapping touches [base, base + size); under the map lock.
static bool any_mapping(uint64_t base, uint64_t size) {
    size_t index = sim_map_index(base);
    return sim_map_find(base) || (index < sim.nranges && sim.ranges[index]->base - base < size);
}

CUresult cuMemAddressFree(CUdeviceptr ptr, size_t size) {
    SIM_ENTER();
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    pthread_rwlock_wrlock(&sim.map_lock);
    if (size && !any_mapping(ptr, size) && sim_reservation_remove(ptr, size))
        result = CUDA_SUCCESS;
    pthread_rwlock_unlock(&sim.map_lock);
    if (result == CUDA_SUCCESS)
        munmap((void *)(uintptr_t)ptr, size);
    return result;
}

static CUresult check_place(const CUmemLocation *location) {
    switch (location->type) {
    case CU_MEM_LOCATION_TYPE_DEVICE:
        break;
    case CU_MEM_LOCATION_TYPE_HOST:
    case CU_MEM_LOCATION_TYPE_HOST_NUMA:
    case CU_MEM_LOCATION_TYPE_HOST_NUMA_CURRENT:
        return CUDA_ERROR_NOT_SUPPORTED;
    default:
        return CUDA_ERROR_INVALID_VALUE;
    }
    return sim_device_ok(location->id) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

static CUresult check_properties(const CUmemAllocationProp *prop) {
    if (!prop || prop->type != CU_MEM_ALLOCATION_TYPE_PINNED)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = check_place(&prop->location);
    if (result != CUDA_SUCCESS)
        return result;
    const unsigned known = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR | CU_MEM_HANDLE_TYPE_FABRIC;
    if (prop->requestedHandleTypes & ~known)
        return CUDA_ERROR_INVALID_VALUE;
    if (prop->requestedHandleTypes & CU_MEM_HANDLE_TYPE_FABRIC) // for want of a channel
        return CUDA_ERROR_NOT_PERMITTED;
    return CUDA_SUCCESS;
}

CUresult cuMemGetAllocationGranularity(size_t *granularity, const CUmemAllocationProp *prop,
                                       CUmemAllocationGranularity_flags option) {
    SIM_ENTER();
    if (!granularity || (unsigned)option > 1 || !prop)
        return CUDA_ERROR_INVALID_VALUE;
    // Whatever the properties are: a device that is not there, too (580.159.04, asked).
    *granularity = SIM_GRANULE;
    return CUDA_SUCCESS;
}

CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t size, const CUmemAllocationProp *prop,
                     unsigned long long flags) {
    SIM_ENTER();
    if (!handle || !size || !granular(size) || flags)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = check_properties(prop);
    if (result != CUDA_SUCCESS)
        return result;
    sim_phys_t *phys = calloc(1, sizeof *phys);
    if (!phys)
        return CUDA_ERROR_OUT_OF_MEMORY;
    phys->device = prop->location.id;
    phys->size = size;
    phys->refs = phys->handles = 1;
    phys->prop = *prop;
    pthread_mutex_lock(&sim.lock);
    pthread_rwlock_wrlock(&sim.map_lock);
    result = sim_device_take(phys->device, size, &phys->offset);
    if (result == CUDA_SUCCESS && !sim_handle_add(phys, SIM_PHYS)) {
        sim_device_give(phys->device, phys->offset, size);
        result = CUDA_ERROR_OUT_OF_MEMORY;
    }
    pthread_rwlock_unlock(&sim.map_lock);
    pthread_mutex_unlock(&sim.lock);
    if (result != CUDA_SUCCESS)
        free(phys);
    else
        *handle = (CUmemGenericAllocationHandle)(uintptr_t)phys;
    return result;
}

sim_phys_t *sim_phys_find(CUmemGenericAllocationHandle handle) { // under sim.lock
    void *object = (void *)(uintptr_t)handle;
    return sim_handle_is(object, SIM_PHYS) ? object : NULL;
}

CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
    SIM_ENTER();
    pthread_mutex_lock(&sim.lock);
    sim_phys_t *phys = sim_phys_find(handle);
    if (phys) {
        if (--phys->handles == 0)
            sim_handle_remove(phys);
        pthread_rwlock_wrlock(&sim.map_lock);
        sim_phys_drop(phys);
        pthread_rwlock_unlock(&sim.map_lock);
    }
    pthread_mutex_unlock(&sim.lock);
    return phys ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemRetainAllocationHandle(CUmemGenericAllocationHandle *handle, void *addr) {
    SIM_ENTER();
    if (!handle)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&sim.lock);
    pthread_rwlock_wrlock(&sim.map_lock);
    sim_range_t *range = sim_map_find((uint64_t)(uintptr_t)addr);
    if (range && range->kind == SIM_RANGE_VMM) {
        if (range->phys->handles || sim_handle_add(range->phys, SIM_PHYS)) {
            range->phys->handles++;
            range->phys->refs++;
            *handle = (CUmemGenericAllocationHandle)(uintptr_t)range->phys;
            result = CUDA_SUCCESS;
        } else {
            result = CUDA_ERROR_OUT_OF_MEMORY;
        }
    }
    pthread_rwlock_unlock(&sim.map_lock);
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult cuMemGetAllocationPropertiesFromHandle(CUmemAllocationProp *prop, CUmemGenericAllocationHandle handle) {
    SIM_ENTER();
    if (!prop)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&sim.lock);
    sim_phys_t *phys = sim_phys_find(handle);
    if (phys)
        *prop = phys->prop;
    pthread_mutex_unlock(&sim.lock);
    return phys ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemMap(CUdeviceptr ptr, size_t size, size_t offset, CUmemGenericAllocationHandle handle,
                  unsigned long long flags) {
    SIM_ENTER();
    if (!ptr || !size || flags || !granular(ptr))
        return CUDA_ERROR_INVALID_VALUE;
    if (!granular(size) || !granular(offset))
        return CUDA_ERROR_NOT_SUPPORTED;
    if (offset)
        return CUDA_ERROR_INVALID_VALUE;
    sim_range_t *range = calloc(1, sizeof *range);
    if (!range)
        return CUDA_ERROR_OUT_OF_MEMORY;
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&sim.lock);
    pthread_rwlock_wrlock(&sim.map_lock);
    sim_phys_t *phys = sim_phys_find(handle);
    sim_reservation_t *reservation = sim_reservation_find(ptr);
    if (phys && size == phys->size && reservation && size <= reservation->size - (ptr - reservation->base) &&
        !any_mapping(ptr, size)) {
        range->base = ptr;
        range->size = size;
        range->kind = SIM_RANGE_VMM;
        range->device = phys->device;
        range->host = sim.devices[phys->device].backing + phys->offset;
        range->phys = phys;
        result = sim_map_add(range) ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
        if (result == CUDA_SUCCESS)
            phys->refs++;
    }
    pthread_rwlock_unlock(&sim.map_lock);
    pthread_mutex_unlock(&sim.lock);
    if (result != CUDA_SUCCESS)
        free(range);
    return result;
}

// True when whole mappings make up exactly [ptr, ptr + size); under the map lock.
static bool covered(uint64_t ptr, uint64_t size) {
    uint64_t at = ptr;
    if (!size || size > UINT64_MAX - ptr)
        return false;
    while (at < ptr + size) {
        sim_range_t *range = sim_map_find(at);
        if (!range || range->kind != SIM_RANGE_VMM || range->base != at || range->size > ptr + size - at)
            return false;
        at += range->size;
    }
    return true;
}

// Unlike cuMemFree, this does not wait: work that still uses the mapping will fault, as on the GPU.
CUresult cuMemUnmap(CUdeviceptr ptr, size_t size) {
    SIM_ENTER();
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&sim.lock);
    pthread_rwlock_wrlock(&sim.map_lock);
    if (covered(ptr, size)) {
        for (uint64_t at = ptr; at < ptr + size;) {
            sim_range_t *range = sim_map_find(at);
            at += range->size;
            sim_range_release(range);
        }
        result = CUDA_SUCCESS;
    } else if (size && sim_reservation_find(ptr) && !any_mapping(ptr, size)) {
        result = CUDA_SUCCESS; // nothing was there
    }
    pthread_rwlock_unlock(&sim.map_lock);
    pthread_mutex_unlock(&sim.lock);
    return result;
}

// Whether every device that is to have access can have it; under the map lock.
static bool reach(uint64_t ptr, uint64_t size, const CUmemAccessDesc *desc, size_t count) {
    for (uint64_t at = ptr; at < ptr + size;) {
        const sim_range_t *range = sim_map_find(at);
        for (size_t i = 0; i < count; i++)
            if (desc[i].flags != CU_MEM_ACCESS_FLAGS_PROT_NONE &&
                !sim_device_reaches(desc[i].location.id, range->device))
                return false;
        at += range->size;
    }
    return true;
}

CUresult cuMemSetAccess(CUdeviceptr ptr, size_t size, const CUmemAccessDesc *desc, size_t count) {
    SIM_ENTER();
    if (!desc || !count || count > (size_t)sim.ndevices)
        return CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < count; i++) {
        if (desc[i].location.type != CU_MEM_LOCATION_TYPE_DEVICE)
            return CUDA_ERROR_NOT_SUPPORTED;
        if (!sim_device_ok(desc[i].location.id))
            return CUDA_ERROR_INVALID_DEVICE;
        if (desc[i].flags != CU_MEM_ACCESS_FLAGS_PROT_NONE && desc[i].flags != CU_MEM_ACCESS_FLAGS_PROT_READ &&
            desc[i].flags != CU_MEM_ACCESS_FLAGS_PROT_READWRITE)
            return CUDA_ERROR_INVALID_VALUE;
    }
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    pthread_rwlock_wrlock(&sim.map_lock);
    if (covered(ptr, size) && !reach(ptr, size, desc, count)) {
        result = CUDA_ERROR_INVALID_DEVICE;
    } else if (covered(ptr, size)) {
        for (uint64_t at = ptr; at < ptr + size;) {
            sim_range_t *range = sim_map_find(at);
            for (size_t i = 0; i < count; i++)
                range->access[desc[i].location.id] = (unsigned char)desc[i].flags;
            at += range->size;
        }
        result = CUDA_SUCCESS;
    }
    pthread_rwlock_unlock(&sim.map_lock);
    return result;
}

CUresult cuMemGetAccess(unsigned long long *flags, const CUmemLocation *location, CUdeviceptr ptr) {
    SIM_ENTER();
    if (!flags || !location || !ptr)
        return CUDA_ERROR_INVALID_VALUE;
    const bool of_host =
        location->type == CU_MEM_LOCATION_TYPE_HOST || location->type == CU_MEM_LOCATION_TYPE_HOST_NUMA;
    if (!of_host && (location->type != CU_MEM_LOCATION_TYPE_DEVICE || !sim_device_ok(location->id)))
        return CUDA_ERROR_INVALID_DEVICE;
    *flags = 0; // also with the error that follows
    if (of_host)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    pthread_rwlock_rdlock(&sim.map_lock);
    sim_range_t *range = sim_map_find(ptr);
    if (range && range->kind == SIM_RANGE_VMM) {
        *flags = range->access[location->id];
        result = CUDA_SUCCESS;
    }
    pthread_rwlock_unlock(&sim.map_lock);
    return result;
}
