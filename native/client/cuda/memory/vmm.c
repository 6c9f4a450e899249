/*
 * The virtual-memory API: reservations, physical memory, mappings, access.
 *
 * Any thread. The map of ranges knows every mapping; a physical allocation's record counts the program's handles and
 * its mappings, and the worker is told to release it when neither is left, so that a handle can be had back from an
 * address. Changes of mappings are ordered by `lock`, which is held across a round trip: these calls are rare and wait
 * anyway.
 */
#include "tpc_memory.h"
#include "tpc_vmm.h"
#include "tpg_client_structs.h"
#include "tpg_cuda_send.h"

#include <poll.h>
#include <stdlib.h>
#include <tp_intervals.h>
#include <unistd.h>

#define GRANULE (2ull << 20)

struct physical {
    uint64_t handle;
    CUmemAllocationProp prop; /* as the program gave it, with its own device number */
    uint64_t size;
    unsigned int handles, mappings, exports;
    bool imported;
    CUipcMemHandle token; /* then: what names it */
};

/* One end of a pair of sockets, whose other end the program was given as a shareable handle: 64 bytes stand there, which name
 * the memory. It reports the end of the last copy of the other, wherever that is. */
struct exported {
    struct exported *next;
    struct physical *physical;
    int fd;
};

struct tpc_mapping {
    struct physical *physical;
    uint8_t access[TPC_VMM_DEVICES];
};

static struct tp_lock lock;
static struct tp_intervals reservations;
static struct exported *all_exported;

/* ---- questions of the other files ---- */

int tpc_mapping_device(const struct tpc_mapping *mapping) { return mapping->physical->prop.location.id; }

int tpc_mapping_access(const struct tpc_mapping *mapping, int device) {
    return device >= 0 && device < TPC_VMM_DEVICES ? mapping->access[device] : 0;
}

/* ---- addresses ---- */

CUresult tpc_cuMemAddressReserve(CUdeviceptr *ptr, size_t size, size_t alignment, CUdeviceptr addr,
                                 unsigned long long flags) {
    if (!ptr || !size || size % GRANULE || flags || (alignment & (alignment - 1))) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    uint64_t address;
    struct tp_interval *reservation = calloc(1, sizeof *reservation);
    if (!reservation) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    CUresult result = tpc_call_address_reserve("cuMemAddressReserve", size, alignment, addr, 0, &address);
    if (result == CUDA_SUCCESS) {
        reservation->start = address;
        reservation->size = size;
        tp_lock_take(&lock);
        bool added = tp_interval_add(&reservations, reservation);
        tp_lock_drop(&lock);
        if (added) {
            *ptr = address;
            return CUDA_SUCCESS;
        }
        result = CUDA_ERROR_UNKNOWN; /* a worker that gives the same addresses twice */
    }
    free(reservation);
    return result;
}

CUresult tpc_cuMemAddressFree(CUdeviceptr ptr, size_t size) {
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    tp_lock_take(&lock);
    const struct tp_interval *at = tp_interval_at(&reservations, ptr);
    if (at && at->start == ptr && at->size == size && !tpc_range_touches(ptr, size)) {
        result = tpc_call_address_free("cuMemAddressFree", ptr, size);
        if (result == CUDA_SUCCESS) {
            free(tp_interval_remove(&reservations, ptr));
        }
    }
    tp_lock_drop(&lock);
    return result;
}

/* ---- physical memory ---- */

CUresult tpc_cuMemCreate(CUmemGenericAllocationHandle *handle, size_t size, const CUmemAllocationProp *prop,
                         unsigned long long flags) {
    if (!handle || !size || !prop || flags || size % GRANULE || prop->type != CU_MEM_ALLOCATION_TYPE_PINNED) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (prop->location.type != CU_MEM_LOCATION_TYPE_DEVICE) {
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    if (prop->requestedHandleTypes & ~(unsigned int)CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) {
        const unsigned int known = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR | CU_MEM_HANDLE_TYPE_FABRIC;
        return prop->requestedHandleTypes & ~known ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_NOT_PERMITTED;
    }
    struct tpc_flat sent TPC_FLAT = {.size = 0};
    TPC_TRY(tpg_flatten_CUmemAllocationProp(prop, 1, &sent));
    struct physical *physical = calloc(1, sizeof *physical);
    if (!physical) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *physical = (struct physical){.prop = *prop, .size = size, .handles = 1};
    struct tpg_memory_create_in in = {
        .memory = tpc_mint_record(TPG_MEMORY, physical), .size = size, .prop = sent.bytes, .prop_size = sent.size};
    physical->handle = in.memory;
    CUresult result = tpc_call_memory_create("cuMemCreate", &in);
    if (result != CUDA_SUCCESS) {
        free(physical);
        return result;
    }
    *handle = in.memory;
    return CUDA_SUCCESS;
}

/* The record behind a handle that the program still holds. Under lock. */
static struct physical *held(CUmemGenericAllocationHandle handle) {
    struct physical *physical = tpc_record(TPG_MEMORY, handle);
    return physical && physical->handles ? physical : NULL;
}

/* Under lock. */
static CUresult let_go(struct physical *physical) {
    if (physical->handles || physical->mappings || physical->exports) {
        return CUDA_SUCCESS;
    }
    CUresult result = tpc_call_memory_release("cuMemRelease", physical->handle);
    tpc_unmint(TPG_MEMORY, physical->handle);
    free(physical);
    return result;
}

/* Memory whose handles nobody can import any more goes. Under lock. */
static void sweep(void) {
    for (struct exported **at = &all_exported, *exported; (exported = *at) != NULL;) {
        struct pollfd on = {.fd = exported->fd, .events = 0};
        if (poll(&on, 1, 0) <= 0) {
            at = &exported->next;
            continue;
        }
        *at = exported->next;
        close(exported->fd);
        exported->physical->exports--;
        (void)let_go(exported->physical);
        free(exported);
    }
}

CUresult tpc_cuMemRelease(CUmemGenericAllocationHandle handle) {
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    tp_lock_take(&lock);
    sweep();
    struct physical *physical = held(handle);
    if (physical) {
        physical->handles--;
        result = let_go(physical);
    }
    tp_lock_drop(&lock);
    return result;
}

/* A descriptor for the program that means what the token means. Under lock. */
static CUresult give_descriptor(struct physical *physical, const CUipcMemHandle *token, int *out) {
    struct exported *exported = calloc(1, sizeof *exported);
    CUresult result = exported ? tpc_descriptor_give(token, out, &exported->fd) : CUDA_ERROR_OUT_OF_MEMORY;
    if (result != CUDA_SUCCESS) {
        free(exported);
        return result;
    }
    exported->next = all_exported;
    exported->physical = physical;
    all_exported = exported;
    physical->exports++;
    return CUDA_SUCCESS;
}

CUresult tpc_do_cuMemExportToShareableHandle(void *shareableHandle, CUmemGenericAllocationHandle handle,
                                             CUmemAllocationHandleType handleType, unsigned long long flags) {
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    (void)flags;
    tp_lock_take(&lock);
    sweep();
    struct physical *physical = held(handle);
    if (physical && (physical->prop.requestedHandleTypes & (unsigned int)handleType)) {
        struct tpg_memory_export_out out = {.handle = physical->token}; /* passed on, it names the same */
        int fd = -1;
        result =
            physical->imported ? CUDA_SUCCESS : tpc_call_memory_export("cuMemExportToShareableHandle", handle, &out);
        result = result ? result : give_descriptor(physical, &out.handle, &fd);
        if (result == CUDA_SUCCESS) {
            memcpy(shareableHandle, &fd, sizeof fd);
        }
    }
    tp_lock_drop(&lock);
    return result;
}

/* Any descriptor may come here; one that is not the driver's is error 999 (580.159.04, measured). It stays the program's. */
CUresult tpc_do_cuMemImportFromShareableHandle(CUmemGenericAllocationHandle *handle, void *osHandle,
                                               CUmemAllocationHandleType shHandleType) {
    CUipcMemHandle token;
    (void)shHandleType;
    if (!tpc_descriptor_read((int)(intptr_t)osHandle, &token)) {
        return CUDA_ERROR_UNKNOWN;
    }
    struct physical *physical = calloc(1, sizeof *physical);
    if (!physical) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    struct tpg_memory_import_in in = {.memory = tpc_mint_record(TPG_MEMORY, physical), .handle = token};
    struct tpg_memory_import_out out;
    CUresult result = tpc_call_memory_import("cuMemImportFromShareableHandle", &in, &out);
    if (result != CUDA_SUCCESS) {
        free(physical);
        return result;
    }
    tp_lock_take(&lock);
    *physical = (struct physical){
        .handle = in.memory,
        .prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                 .requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
                 .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = tpc_device_of((int)out.device)}},
        .size = out.size,
        .handles = 1,
        .token = token,
        .imported = true};
    tp_lock_drop(&lock);
    *handle = in.memory;
    return CUDA_SUCCESS;
}

CUresult tpc_do_cuMemRetainAllocationHandle(CUmemGenericAllocationHandle *handle, void *addr) {
    struct tpc_range range;
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    tp_lock_take(&lock);
    if (tpc_range_at((uint64_t)(uintptr_t)addr, &range) && (range.flags & TPC_MADE_MASK) == TPC_MADE_MAP) {
        struct physical *physical = ((struct tpc_mapping *)range.detail)->physical;
        physical->handles++;
        *handle = physical->handle;
        result = CUDA_SUCCESS;
    }
    tp_lock_drop(&lock);
    return result;
}

CUresult tpc_cuMemGetAllocationPropertiesFromHandle(CUmemAllocationProp *prop, CUmemGenericAllocationHandle handle) {
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    tp_lock_take(&lock);
    const struct physical *physical = prop ? held(handle) : NULL;
    if (physical) {
        *prop = physical->prop;
        result = CUDA_SUCCESS;
    }
    tp_lock_drop(&lock);
    return result;
}

/* ---- mappings ---- */

/* Under lock. */
static CUresult map(uint64_t address, uint64_t size, uint64_t offset, CUmemGenericAllocationHandle handle) {
    struct physical *physical = held(handle);
    const struct tp_interval *at = tp_interval_at(&reservations, address);
    if (!physical || !at || size > at->size - (address - at->start) || offset > physical->size ||
        size > physical->size - offset || tpc_range_touches(address, size)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    struct tpc_mapping *mapping = calloc(1, sizeof *mapping);
    if (!mapping) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    mapping->physical = physical;
    struct tpg_memory_map_in in = {.address = address, .size = size, .offset = offset, .memory = handle};
    CUresult result = tpc_call_memory_map("cuMemMap", &in);
    struct tpc_range range = {.start = address, .size = size, .flags = TPC_MADE_MAP | 1, .detail = mapping};
    if (result == CUDA_SUCCESS && !tpc_range_insert(&range)) {
        tpc_call_memory_unmap("cuMemMap", address, size);
        result = CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (result != CUDA_SUCCESS) {
        free(mapping);
        return result;
    }
    physical->mappings++;
    return CUDA_SUCCESS;
}

CUresult tpc_cuMemMap(CUdeviceptr ptr, size_t size, size_t offset, CUmemGenericAllocationHandle handle,
                      unsigned long long flags) {
    if (!ptr || !size || ptr % GRANULE || flags) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (size % GRANULE || offset % GRANULE) {
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    tp_lock_take(&lock);
    CUresult result = map(ptr, size, offset, handle);
    tp_lock_drop(&lock);
    return result;
}

/* True when [address, address+size) is made up of mappings; `whole`: of whole ones. */
static bool are_mappings(uint64_t address, uint64_t size, bool whole) {
    struct tpc_range range;
    while (size) {
        if (!tpc_range_at(address, &range) || (range.flags & TPC_MADE_MASK) != TPC_MADE_MAP) {
            return false;
        }
        uint64_t room = range.size - (address - range.start);
        if (whole && (range.start != address || room > size)) {
            return false;
        }
        uint64_t step = room < size ? room : size;
        address += step;
        size -= step;
    }
    return true;
}

/* Under lock. */
static CUresult unmap(uint64_t address, uint64_t size) {
    if (!are_mappings(address, size, true)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    CUresult result = tpc_call_memory_unmap("cuMemUnmap", address, size);
    for (uint64_t at = address; result == CUDA_SUCCESS && at - address < size;) {
        struct tpc_range range;
        if (!tpc_range_remove(at, &range)) {
            break;
        }
        struct tpc_mapping *mapping = range.detail;
        mapping->physical->mappings--;
        let_go(mapping->physical);
        mapping->physical = NULL;
        free(mapping);
        at += range.size;
    }
    return result;
}

CUresult tpc_cuMemUnmap(CUdeviceptr ptr, size_t size) {
    if (!size || size > UINT64_MAX - ptr) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    tp_lock_take(&lock);
    CUresult result = unmap(ptr, size);
    tp_lock_drop(&lock);
    return result;
}

/* ---- access ---- */

CUresult tpc_cuMemSetAccess(CUdeviceptr ptr, size_t size, const CUmemAccessDesc *desc, size_t count) {
    if (!size || !desc || !count || count > TPC_VMM_DEVICES || size > UINT64_MAX - ptr) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    for (size_t i = 0; i < count; i++) {
        if (desc[i].location.type != CU_MEM_LOCATION_TYPE_DEVICE) {
            return CUDA_ERROR_NOT_SUPPORTED; /* the host that could have access is the worker's */
        }
        if (desc[i].location.id >= TPC_VMM_DEVICES ||
            (desc[i].flags != CU_MEM_ACCESS_FLAGS_PROT_NONE && desc[i].flags != CU_MEM_ACCESS_FLAGS_PROT_READ &&
             desc[i].flags != CU_MEM_ACCESS_FLAGS_PROT_READWRITE)) {
            return CUDA_ERROR_INVALID_VALUE;
        }
    }
    struct tpc_flat sent TPC_FLAT = {.size = 0};
    TPC_TRY(tpg_flatten_CUmemAccessDesc(desc, count, &sent));
    struct tpg_memory_access_in in = {.address = ptr, .size = size, .access = sent.bytes, .access_size = sent.size};
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    tp_lock_take(&lock);
    if (are_mappings(ptr, size, false)) {
        result = tpc_call_memory_access("cuMemSetAccess", &in);
        for (uint64_t at = ptr; result == CUDA_SUCCESS && at - ptr < size;) {
            struct tpc_range range;
            if (!tpc_range_at(at, &range)) {
                break;
            }
            struct tpc_mapping *mapping = range.detail;
            for (size_t i = 0; i < count; i++) {
                mapping->access[desc[i].location.id] = (uint8_t)desc[i].flags;
            }
            at = range.start + range.size;
        }
    }
    tp_lock_drop(&lock);
    return result;
}

CUresult tpc_do_cuMemGetAccess(unsigned long long *flags, const CUmemLocation *location, CUdeviceptr ptr) {
    struct tpc_range range;
    const bool host = location->type == CU_MEM_LOCATION_TYPE_HOST || location->type == CU_MEM_LOCATION_TYPE_HOST_NUMA;
    if (!host && (location->type != CU_MEM_LOCATION_TYPE_DEVICE || !tpc_device_valid(location->id))) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    *flags = 0; /* also with the error that follows (580.159.04, asked) */
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    tp_lock_take(&lock);
    if (!host && tpc_range_at(ptr, &range) && (range.flags & TPC_MADE_MASK) == TPC_MADE_MAP) {
        *flags = (unsigned long long)tpc_mapping_access(range.detail, location->id);
        result = CUDA_SUCCESS;
    }
    tp_lock_drop(&lock);
    return result;
}
