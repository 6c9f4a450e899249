// cuMemAlloc and its kin, pinned and registered host memory, memory information.
//
// Freeing waits for the device's work first, as the driver does in practice, so that nothing queued loses its memory.
// Sizes are kept to the byte: a copy that passes the end of its allocation by one is refused. Any thread enters; the
// map lock is taken for writing by whatever changes the map.
#include "sim_graph.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

CUresult cuMemAlloc_v2(CUdeviceptr *dptr, size_t bytesize) {
    SIM_BEGINS(dptr, 0);
    SIM_ENTER_CONTEXT(context);
    SIM_UNSAFE();
    if (!dptr || !bytesize)
        return CUDA_ERROR_INVALID_VALUE;
    sim_range_t *range;
    pthread_rwlock_wrlock(&sim.map_lock);
    CUresult result = sim_device_allocate(context, bytesize, &range);
    if (result == CUDA_SUCCESS) {
        range->sync_memops = 1; // as a driver tells of such memory
        *dptr = range->base;
    }
    pthread_rwlock_unlock(&sim.map_lock);
    return result;
}

CUresult cuMemAllocPitch_v2(CUdeviceptr *dptr, size_t *pPitch, size_t WidthInBytes, size_t Height,
                            unsigned int ElementSizeBytes) {
    SIM_BEGINS(dptr, 0);
    SIM_BEGINS(pPitch, 0);
    SIM_ENTER_CONTEXT(context);
    if (!dptr || !pPitch || !WidthInBytes || !Height)
        return CUDA_ERROR_INVALID_VALUE;
    if (ElementSizeBytes != 4 && ElementSizeBytes != 8 && ElementSizeBytes != 16)
        return CUDA_ERROR_INVALID_VALUE;
    size_t pitch = (WidthInBytes + 511) & ~(size_t)511, bytes;
    *pPitch = pitch; // also where there is no memory
    SIM_UNSAFE();
    if (WidthInBytes > (size_t)sim_attributes_h200[CU_DEVICE_ATTRIBUTE_MAX_PITCH])
        return CUDA_ERROR_INVALID_VALUE;
    if (__builtin_mul_overflow(pitch, Height, &bytes))
        return CUDA_ERROR_OUT_OF_MEMORY;
    sim_range_t *range;
    pthread_rwlock_wrlock(&sim.map_lock);
    CUresult result = sim_device_allocate(context, bytes, &range);
    if (result == CUDA_SUCCESS) {
        range->sync_memops = 1;
        *dptr = range->base;
    }
    pthread_rwlock_unlock(&sim.map_lock);
    return result;
}

// The context whose work must end before `address` may be freed; NULL with an error when it is not there to be freed.
static CUresult owner_of(uint64_t address, sim_range_kind_t kind, sim_context_t **owner) {
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    pthread_rwlock_rdlock(&sim.map_lock);
    sim_range_t *range = sim_map_find(address);
    if (range && range->base == address && range->kind == kind && !range->internal && !range->free_queued) {
        *owner = range->context ? range->context : &sim.devices[range->device].primary; // of a pool of another process
        result = CUDA_SUCCESS;
    }
    pthread_rwlock_unlock(&sim.map_lock);
    return result;
}

static CUresult release(uint64_t address, sim_range_kind_t kind) {
    sim_context_t *owner;
    CUresult result = owner_of(address, kind, &owner);
    if (result != CUDA_SUCCESS)
        return result;
    pthread_mutex_lock(&sim.lock);
    if (owner->active)
        sim_context_drain(owner);
    pthread_mutex_unlock(&sim.lock);
    sim_op_t of_graph;
    if (sim_graph_memory_free(address, &of_graph)) {
        sim_graph_memory_run(&of_graph);
        sim_op_discard(&of_graph);
        return CUDA_SUCCESS;
    }
    pthread_rwlock_wrlock(&sim.map_lock);
    sim_range_t *range = sim_map_find(address); // looked up again: another thread may have freed it meanwhile
    if (range && range->base == address && range->kind == kind && !range->internal && !range->free_queued)
        sim_range_release(range);
    else
        result = CUDA_ERROR_INVALID_VALUE;
    pthread_rwlock_unlock(&sim.map_lock);
    return result;
}

void sim_memory_release(uint64_t address) {
    (void)release(address, SIM_RANGE_DEVICE); // gone with its context, perhaps
}

// The kind of memory that cuMemFree may find there: of a pool of the host, of a pool of another process, or its own.
static sim_range_kind_t kind_of(uint64_t address) {
    pthread_rwlock_rdlock(&sim.map_lock);
    const sim_range_t *range = sim_map_find(address);
    bool of_pool = range && (range->kind == SIM_RANGE_HOST || range->kind == SIM_RANGE_IPC) && range->pool;
    sim_range_kind_t kind = of_pool ? range->kind : SIM_RANGE_DEVICE;
    pthread_rwlock_unlock(&sim.map_lock);
    return kind;
}

CUresult cuMemFree_v2(CUdeviceptr dptr) {
    SIM_ENTER_WITHOUT(context);
    SIM_UNSAFE();
    (void)context;
    if (!dptr)
        return CUDA_SUCCESS;
    return release(dptr, kind_of(dptr));
}

CUresult cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    SIM_BEGINS(free_bytes, 0);
    SIM_BEGINS(total, 0);
    SIM_ENTER_CONTEXT(context);
    sim_device_t *device = &sim.devices[context->device];
    pthread_rwlock_rdlock(&sim.map_lock);
    if (free_bytes)
        *free_bytes = device->total - device->used;
    if (total)
        *total = device->total;
    pthread_rwlock_unlock(&sim.map_lock);
    return CUDA_SUCCESS;
}

// ---- Pinned host memory ------------------------------------------------------------------------------------------

// Under the map lock.
CUresult sim_host_allocate(sim_context_t *context, size_t bytes, unsigned flags, sim_range_t **out) {
    if (bytes > SIZE_MAX / 2)
        return CUDA_ERROR_OUT_OF_MEMORY;
    size_t mapped = (bytes + 4095) & ~(size_t)4095;
    sim_range_t *range = calloc(1, sizeof *range);
    if (!range)
        return CUDA_ERROR_OUT_OF_MEMORY;
    void *memory = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        free(range);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    range->base = (uint64_t)(uintptr_t)memory;
    range->host = memory;
    range->size = bytes;
    range->charged = mapped;
    range->kind = SIM_RANGE_HOST;
    range->device = context->device;
    range->context = sim_home(context);
    range->flags = flags | CU_MEMHOSTALLOC_DEVICEMAP; // unified addressing maps every pinned allocation
    bool active = context->active, added = active && sim_map_add(range);
    if (!added) {
        munmap(memory, mapped);
        free(range);
        return active ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_ERROR_CONTEXT_IS_DESTROYED;
    }
    *out = range;
    return CUDA_SUCCESS;
}

static CUresult host_allocate(sim_context_t *context, void **pp, size_t bytes, unsigned flags) {
    if (!pp)
        return CUDA_ERROR_INVALID_VALUE;
    if (flags & ~7u)
        return CUDA_ERROR_INVALID_VALUE;
    if (!bytes) // no bytes are no memory, and no error (580.159.04, measured)
        return CUDA_SUCCESS;
    sim_range_t *range;
    pthread_rwlock_wrlock(&sim.map_lock);
    CUresult result = sim_host_allocate(context, bytes, flags, &range);
    if (result == CUDA_SUCCESS)
        *pp = range->host;
    pthread_rwlock_unlock(&sim.map_lock);
    return result;
}

CUresult cuMemHostAlloc(void **pp, size_t bytesize, unsigned int Flags) {
    SIM_BEGINS(pp, NULL);
    SIM_ENTER_CONTEXT(context);
    SIM_UNSAFE();
    return host_allocate(context, pp, bytesize, Flags);
}

CUresult cuMemAllocHost_v2(void **pp, size_t bytesize) {
    SIM_BEGINS(pp, NULL);
    SIM_ENTER_CONTEXT(context);
    SIM_UNSAFE();
    return host_allocate(context, pp, bytesize, 0);
}

CUresult cuMemFreeHost(void *p) {
    SIM_ENTER_WITHOUT(context);
    SIM_UNSAFE();
    (void)context;
    if (kind_of((uint64_t)(uintptr_t)p) == SIM_RANGE_HOST)
        return CUDA_ERROR_INVALID_VALUE;
    return p ? release((uint64_t)(uintptr_t)p, SIM_RANGE_HOST) : CUDA_SUCCESS;
}

// Every page must be there: the driver pins them all. Reading one byte of each is also how this follows the pointer.
static bool pages_present(const unsigned char *p, size_t bytes) {
    unsigned char residency[1024];
    uintptr_t page = (uintptr_t)p & ~(uintptr_t)4095, end = (uintptr_t)p + bytes;
    while (page < end) {
        size_t length = end - page;
        if (length > sizeof residency * 4096)
            length = sizeof residency * 4096;
        if (mincore((void *)page, length, residency) != 0)
            return false;
        page += length;
    }
    return true;
}

CUresult cuMemHostRegister_v2(void *p, size_t bytesize, unsigned int Flags) {
    SIM_ENTER_CONTEXT(context);
    SIM_UNSAFE();
    uint64_t base = (uint64_t)(uintptr_t)p;
    if (!p || !bytesize || (Flags & ~15u) || bytesize > UINT64_MAX - base)
        return CUDA_ERROR_INVALID_VALUE;
    if (Flags & CU_MEMHOSTREGISTER_IOMEMORY)
        return CUDA_ERROR_NOT_SUPPORTED;
    if (!pages_present(p, bytesize))
        return CUDA_ERROR_INVALID_VALUE;
    pthread_rwlock_rdlock(&sim.map_lock);
    bool device_side = sim_device_address(base) || sim_map_reserved(base);
    pthread_rwlock_unlock(&sim.map_lock);
    if (device_side)
        return CUDA_ERROR_INVALID_VALUE;
    sim_range_t *range = calloc(1, sizeof *range);
    if (!range)
        return CUDA_ERROR_OUT_OF_MEMORY;
    range->base = base;
    range->host = p;
    range->size = bytesize;
    range->kind = SIM_RANGE_REGISTERED;
    range->device = context->device;
    range->context = sim_home(context);
    range->flags = Flags | CU_MEMHOSTREGISTER_DEVICEMAP;
    CUresult result = CUDA_SUCCESS;
    pthread_rwlock_wrlock(&sim.map_lock);
    size_t after = sim_map_index(base);
    if (!context->active)
        result = CUDA_ERROR_CONTEXT_IS_DESTROYED;
    else if (sim_map_find(base) || (after < sim.nranges && sim.ranges[after]->base < base + bytesize))
        result = CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
    else if (!sim_map_add(range))
        result = CUDA_ERROR_OUT_OF_MEMORY;
    pthread_rwlock_unlock(&sim.map_lock);
    if (result != CUDA_SUCCESS)
        free(range);
    return result;
}

CUresult cuMemHostUnregister(void *p) {
    SIM_ENTER_WITHOUT(context);
    (void)context;
    SIM_UNSAFE();
    if (!p)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = release((uint64_t)(uintptr_t)p, SIM_RANGE_REGISTERED);
    if (result != CUDA_ERROR_INVALID_VALUE)
        return result;
    pthread_rwlock_rdlock(&sim.map_lock);
    const sim_range_t *range = sim_map_find((uint64_t)(uintptr_t)p);
    bool known = range && !range->internal;
    pthread_rwlock_unlock(&sim.map_lock);
    return known ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
}

static CUresult host_flags(void *p, unsigned *flags) {
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    pthread_rwlock_rdlock(&sim.map_lock);
    sim_range_t *range = sim_map_find((uint64_t)(uintptr_t)p);
    if (range && (range->kind == SIM_RANGE_HOST || range->kind == SIM_RANGE_REGISTERED)) {
        *flags = range->flags;
        result = CUDA_SUCCESS;
    }
    pthread_rwlock_unlock(&sim.map_lock);
    return result;
}

CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr *pdptr, void *p, unsigned int Flags) {
    SIM_BEGINS(pdptr, 0);
    SIM_ENTER_CONTEXT(context);
    (void)context;
    unsigned flags;
    if (!pdptr || Flags)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = host_flags(p, &flags);
    if (result == CUDA_SUCCESS)
        *pdptr = (CUdeviceptr)(uintptr_t)p;
    return result;
}

CUresult cuMemHostGetFlags(unsigned int *pFlags, void *p) {
    SIM_ENTER_CONTEXT(context);
    (void)context;
    return pFlags ? host_flags(p, pFlags) : CUDA_ERROR_INVALID_VALUE;
}
