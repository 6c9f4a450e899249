// Questions about addresses: cuPointerGetAttribute(s), cuPointerSetAttribute, cuMemGetAddressRange.
//
// All answers come from the memory map, under its lock for reading. The single form refuses an address that is not
// CUDA's, the multiple form answers zeros for it, as the driver documents. Out-parameters are written with the sizes
// that cuda.h states; whoever passes a smaller buffer gets the overrun that the real driver would give.
#include "sim_graph.h"

#include <string.h>

// Memory of a graph is nobody's while nothing is allocated there (580.159.04, measured).
static sim_range_t *named(uint64_t address) {
    sim_range_t *range = sim_map_find(address);
    return range && range->of_graph && range->free_queued ? NULL : range;
}

CUresult cuMemGetAddressRange_v2(CUdeviceptr *pbase, size_t *psize, CUdeviceptr dptr) {
    SIM_BEGINS(pbase, 0);
    SIM_BEGINS(psize, 0);
    if (!pbase && !psize)
        return CUDA_SUCCESS; // whatever it is asked about, and before everything else
    SIM_ENTER_CONTEXT(context);
    CUresult result = CUDA_ERROR_NOT_FOUND;
    pthread_rwlock_rdlock(&sim.map_lock);
    sim_range_t *range = named(dptr);
    if (range && (range->kind != SIM_RANGE_VMM || range->access[context->device])) { // of a mapping, itself
        if (pbase)
            *pbase = range->base;
        if (psize)
            *psize = range->size;
        result = CUDA_SUCCESS;
    }
    pthread_rwlock_unlock(&sim.map_lock);
    return result;
}

static bool is_host(const sim_range_t *range) {
    return range->kind == SIM_RANGE_HOST || range->kind == SIM_RANGE_REGISTERED;
}

// Memory of cuMemAlloc and managed memory lie in blocks of 2 MiB, side by side with other such memory (580.159.04, measured).
static bool in_block(const sim_range_t *range) { return range && (range->managed || sim_ipc_capable(range)); }

static sim_reservation_t block_of(const sim_range_t *range) {
    uint64_t base = range->base & ~(uint64_t)(SIM_GRANULE - 1), end = range->base + range->size;
    return (sim_reservation_t){base, ((end + SIM_GRANULE - 1) & ~(uint64_t)(SIM_GRANULE - 1)) - base};
}

// Writes one attribute of a known range; `range` NULL: the defaults of an address that is not ours.
static CUresult attribute(void *data, CUpointer_attribute which, const sim_range_t *range, uint64_t address) {
    bool host = range && (is_host(range) || (range->managed && which == CU_POINTER_ATTRIBUTE_HOST_POINTER));
    switch (which) {
    case CU_POINTER_ATTRIBUTE_CONTEXT: {
        CUcontext value = range && range->kind != SIM_RANGE_VMM && !range->pool && !range->of_graph
                              ? (CUcontext)(void *)range->context
                              : NULL;
        memcpy(data, &value, sizeof value);
        return CUDA_SUCCESS;
    }
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE: {
        unsigned value = !range ? 0 : host ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE;
        memcpy(data, &value, sizeof value);
        return CUDA_SUCCESS;
    }
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER: {
        CUdeviceptr value = range ? address : 0;
        memcpy(data, &value, sizeof value);
        return CUDA_SUCCESS;
    }
    case CU_POINTER_ATTRIBUTE_HOST_POINTER: {
        void *value = host ? (void *)(uintptr_t)address : NULL;
        if (range && !host) {
            memcpy(data, &value, sizeof value);
            return CUDA_ERROR_INVALID_VALUE; // the multiple form overlooks this and keeps the NULL
        }
        memcpy(data, &value, sizeof value);
        return CUDA_SUCCESS;
    }
    case CU_POINTER_ATTRIBUTE_SYNC_MEMOPS: {
        int value = range ? range->sync_memops : 0;
        memcpy(data, &value, sizeof value);
        return CUDA_SUCCESS;
    }
    case CU_POINTER_ATTRIBUTE_BUFFER_ID: {
        unsigned long long value = range ? range->buffer_id : 0;
        memcpy(data, &value, sizeof value);
        return CUDA_SUCCESS;
    }
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: {
        int value = range ? range->device : -2; // what the real driver's multiple form leaves for foreign memory
        memcpy(data, &value, sizeof value);
        return CUDA_SUCCESS;
    }
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
    case CU_POINTER_ATTRIBUTE_MAPPING_BASE_ADDR: {
        bool block = in_block(range) && which == CU_POINTER_ATTRIBUTE_MAPPING_BASE_ADDR;
        CUdeviceptr value = block ? block_of(range).base : range ? range->base : 0;
        memcpy(data, &value, sizeof value);
        return CUDA_SUCCESS;
    }
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
    case CU_POINTER_ATTRIBUTE_MAPPING_SIZE: {
        bool block = in_block(range) && which == CU_POINTER_ATTRIBUTE_MAPPING_SIZE;
        size_t value = block ? block_of(range).size : range ? range->size : 0;
        memcpy(data, &value, sizeof value);
        return CUDA_SUCCESS;
    }
    case CU_POINTER_ATTRIBUTE_IS_MANAGED: {
        unsigned value = range && range->managed; // four bytes (580.159.04, measured)
        memcpy(data, &value, sizeof value);
        return CUDA_SUCCESS;
    }
    case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
    case CU_POINTER_ATTRIBUTE_MAPPED:
    case CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE:
    case CU_POINTER_ATTRIBUTE_IS_HW_DECOMPRESS_CAPABLE: {
        // cuda.h: booleans, one byte each
        unsigned char value = which == CU_POINTER_ATTRIBUTE_MAPPED ? range != NULL
                              : which == CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE
                                  ? range && sim_ipc_capable(range)
                                  : false;
        memcpy(data, &value, sizeof value);
        return CUDA_SUCCESS;
    }
    case CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES: { // of what another process made, none (580.159.04, measured)
        bool own = range && range->pool && !range->pool->imported;
        unsigned long long value = own ? (unsigned long long)range->pool->props.handleTypes : 0;
        memcpy(data, &value, sizeof value);
        return CUDA_SUCCESS;
    }
    case CU_POINTER_ATTRIBUTE_ACCESS_FLAGS: {
        int value = !range                         ? 0
                    : range->kind == SIM_RANGE_VMM ? range->access[range->device]
                                                   : CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
        memcpy(data, &value, sizeof value);
        return CUDA_SUCCESS;
    }
    case CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE: {
        CUmemoryPool value = range ? (CUmemoryPool)(void *)range->pool : NULL;
        memcpy(data, &value, sizeof value);
        return CUDA_SUCCESS;
    }
    case CU_POINTER_ATTRIBUTE_MEMORY_BLOCK_ID: {
        unsigned long long value =
            range && range->kind == SIM_RANGE_VMM ? (unsigned long long)(uintptr_t)range->phys : 0;
        if (range && !value)
            value = range->buffer_id;
        memcpy(data, &value, sizeof value);
        return CUDA_SUCCESS;
    }
    case CU_POINTER_ATTRIBUTE_P2P_TOKENS:
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    return CUDA_ERROR_INVALID_VALUE;
}

CUresult cuPointerGetAttribute(void *data, CUpointer_attribute which, CUdeviceptr ptr) {
    SIM_ENTER(); // no context is needed (580.159.04, measured)
    if (!data)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_rwlock_rdlock(&sim.map_lock);
    const sim_range_t *range = named(ptr);
    CUresult result = range ? attribute(data, which, range, ptr) : CUDA_ERROR_INVALID_VALUE;
    pthread_rwlock_unlock(&sim.map_lock);
    return result;
}

CUresult cuPointerGetAttributes(unsigned int numAttributes, CUpointer_attribute *attributes, void **data,
                                CUdeviceptr ptr) {
    SIM_ENTER(); // no context is needed (580.159.04, measured)
    if (!numAttributes || !attributes || !data)
        return CUDA_ERROR_INVALID_VALUE;
    for (unsigned i = 0; i < numAttributes; i++)
        if (!data[i] || (unsigned)attributes[i] < 1 || attributes[i] > CU_POINTER_ATTRIBUTE_IS_HW_DECOMPRESS_CAPABLE)
            return CUDA_ERROR_INVALID_VALUE;
    pthread_rwlock_rdlock(&sim.map_lock);
    const sim_range_t *range = named(ptr);
    for (unsigned i = 0; i < numAttributes; i++)
        (void)attribute(data[i], attributes[i], range, ptr);
    pthread_rwlock_unlock(&sim.map_lock);
    return CUDA_SUCCESS;
}

CUresult cuPointerSetAttribute(const void *value, CUpointer_attribute which, CUdeviceptr ptr) {
    SIM_ENTER_WITHOUT(context);
    (void)context;
    if (!value || which != CU_POINTER_ATTRIBUTE_SYNC_MEMOPS)
        return CUDA_ERROR_INVALID_VALUE;
    int wanted;
    memcpy(&wanted, value, sizeof wanted);
    pthread_rwlock_rdlock(&sim.map_lock);
    const bool found = named(ptr) != NULL;
    pthread_rwlock_unlock(&sim.map_lock);
    if (found)
        SIM_UNSAFE();
    pthread_rwlock_wrlock(&sim.map_lock);
    sim_range_t *range = named(ptr);
    if (range)
        range->sync_memops = wanted != 0;
    pthread_rwlock_unlock(&sim.map_lock);
    return range ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
