/*
 * Where the bytes of an address are for a copy or a memset: memory that the device reaches, or memory of this process.
 *
 * Unified addressing lets a program name pinned memory by its host address wherever a device address is wanted. Over shared
 * memory that is mostly the device's address as well; where this process has the segment elsewhere it is translated. Over TCP
 * the GPU reaches pinned memory only where it has a twin (hostmem.c); all other pinned memory takes part as host memory.
 * Any thread; owns nothing.
 */
#include "tpc_memory.h"

bool tpc_at_device(uint64_t address) {
    struct tpc_range range;
    return tpc_is_device_address(address) || (tpc_range_at(address, &range) && range.where == TPC_DEVICE_MEMORY);
}

/* Pinned memory that holds all of [address, address+size). */
static bool pinned_at(uint64_t address, uint64_t size, struct tpc_range *range) {
    return tpc_range_at(address, range) && range->where == TPC_PINNED && size <= range->size - (address - range->start);
}

/* Managed memory is memory of the device for whoever copies it, wherever its bytes are: there they go first. */
static bool managed_at(uint64_t address, uint64_t size, struct tpc_place *out, CUresult *result) {
    struct tpc_range range;
    if (TP_LIKELY(!tpc_range_at(address, &range) || (range.flags & TPC_MADE_MASK) != TPC_MADE_MANAGED)) {
        return false;
    }
    *out = (struct tpc_place){.device = true, .address = address};
    const bool fits = size <= range.size - (address - range.start);
    *result = fits ? tpc_managed_use(&range) : CUDA_ERROR_INVALID_VALUE;
    return true;
}

CUresult tpc_place_device(uint64_t address, uint64_t size, struct tpc_place *out) {
    struct tpc_range range;
    CUresult result;
    if (managed_at(address, size, out, &result)) {
        return result;
    }
    *out = (struct tpc_place){.device = true, .address = address};
    if (TP_LIKELY(tpc_range_covers(address, size))) {
        return CUDA_SUCCESS;
    }
    if (!pinned_at(address, size, &range)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (range.device_address) {
        out->address = range.device_address + (address - range.start);
    } else {
        out->device = false;
    }
    return CUDA_SUCCESS;
}

CUresult tpc_place_host(uint64_t address, uint64_t size, struct tpc_place *out) {
    struct tpc_range range;
    CUresult result;
    if (managed_at(address, size, out, &result)) {
        return result;
    }
    if (!address || tpc_at_device(address)) {
        return tpc_place_device(address, size, out);
    }
    *out = (struct tpc_place){.device = false, .address = address};
    /* What kernels write into a twin comes here at the next wait, and a copy may be queued before that: it must use the twin. Into memory
     * that is read only for them they write nothing, and nothing comes from there. */
    if (pinned_at(address, size, &range) && (range.flags & TPC_MADE_MASK) != TPC_MADE_ARENA) {
        out->read_only = tpc_is_read_only(range.detail);
        if (range.device_address && !out->read_only) {
            *out = (struct tpc_place){.device = true, .address = range.device_address + (address - range.start)};
        }
    }
    return CUDA_SUCCESS;
}

CUresult tpc_place_either(uint64_t address, uint64_t size, struct tpc_place *out) {
    return tpc_at_device(address) ? tpc_place_device(address, size, out) : tpc_place_host(address, size, out);
}
