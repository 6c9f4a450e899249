/*
 * Kernels and pinned memory that the GPU does not reach at its host address: over TCP all of it, else what is registered.
 *
 * A program may give a kernel the host address of pinned memory. Where such memory exists, launches look at their parameters:
 * one of exactly 8 bytes that lies in it becomes the address of its twin (mapped.c); where the worker has no room for one the launch
 * is refused, because the kernel would break the context. Only whole parameters are changed: a struct may hold addresses for the host, and
 * what lies between its fields is whatever was in memory before.
 *
 * Memory that may have its twin at the same address needs no change in what names it: NCCL keeps such addresses in structs, which it
 * gives to kernels or copies to the device, and a lambda of C++ that has captured one is a struct. There an address only makes the twin:
 * of memory that the program allocated for kernels (CU_MEMHOSTALLOC_DEVICEMAP), and of any that is small, such as a total that a scan
 * writes. For more of it the risk is too great that a word is left over from elsewhere, since each launch looks at what has a twin.
 * An address that reaches a kernel in another way ends in error 700, and then the log names the memory.
 * Any thread. Owns the counts of both kinds of memory and their bounds, which only grow while there is any; changed under `lock`.
 */
#include "tpc_memory.h"

struct bounds {
    _Atomic uint64_t low, high;
};
_Atomic unsigned int tpc_unreached;
static _Atomic unsigned int meant; /* of those: for kernels, where a twin may have the same address */
static struct bounds all, for_kernels;
static struct tp_lock lock;

#define SMALL (64u << 10) /* compared as a whole, in about 2 us */

static bool is_meant(const struct tpc_range *range) {
    return (range->flags & CU_MEMHOSTALLOC_DEVICEMAP || range->size <= SMALL) && tpc_has_place(range);
}

static void add(_Atomic unsigned int *count, struct bounds *bounds, const struct tpc_range *range) {
    const bool first = !atomic_load(count);
    if (first || range->start < atomic_load(&bounds->low)) {
        atomic_store(&bounds->low, range->start);
    }
    if (first || range->start + range->size > atomic_load(&bounds->high)) {
        atomic_store(&bounds->high, range->start + range->size);
    }
    atomic_fetch_add(count, 1); /* last: who sees it finds the bounds */
}

void tpc_unreached_add(const struct tpc_range *range) {
    tp_lock_take(&lock);
    add(&tpc_unreached, &all, range);
    if (is_meant(range)) {
        add(&meant, &for_kernels, range);
    }
    tp_lock_drop(&lock);
}

void tpc_unreached_remove(const struct tpc_range *range) {
    tp_lock_take(&lock);
    atomic_fetch_sub(&tpc_unreached, 1);
    if (is_meant(range)) {
        atomic_fetch_sub(&meant, 1);
    }
    tp_lock_drop(&lock);
}

static bool between(const struct bounds *bounds, uint64_t address) {
    return address >= atomic_load_explicit(&bounds->low, memory_order_relaxed) &&
           address < atomic_load_explicit(&bounds->high, memory_order_relaxed);
}

static bool unreached_at(uint64_t address, struct tpc_range *range) {
    return between(&all, address) && tpc_range_at(address, range) && range->where == TPC_PINNED &&
           range->device_address != range->start;
}

CUresult tpc_reach(const char *name, unsigned int parameter, uint64_t value, CUdeviceptr *there) {
    static _Atomic bool said;
    struct tpc_range range;
    *there = 0;
    if (TP_LIKELY(!unreached_at(value, &range))) {
        return CUDA_SUCCESS;
    }
    CUresult result = tpc_host_device_address(value, there);
    if (result == CUDA_ERROR_OUT_OF_MEMORY) {
        tp_say_once(
            &said,
            "%s: parameter %u of the kernel is the host address 0x%llx, in %llu bytes of pinned memory, and the "
            "worker has no room for as much beside them (its TF_SESSION_MEMORY_LIMIT bounds it); the launch is "
            "refused with error %d",
            name, parameter, (unsigned long long)value, (unsigned long long)range.size, (int)result);
    }
    return result;
}

CUresult tpc_reach_hidden(const void *bytes, size_t size) {
    static _Atomic bool said;
    uint64_t value;
    if (TP_LIKELY(!atomic_load_explicit(&meant, memory_order_relaxed))) {
        return CUDA_SUCCESS;
    }
    for (size_t at = 0; at + sizeof value <= size; at += sizeof value) {
        struct tpc_range range;
        CUdeviceptr there;
        memcpy(&value, (const unsigned char *)bytes + at, sizeof value);
        /* One that has a twin elsewhere is as it was: another would not lie at its address either. */
        if (TP_LIKELY(!between(&for_kernels, value)) || !unreached_at(value, &range) || !is_meant(&range) ||
            range.device_address) {
            continue;
        }
        const CUresult result = tpc_host_device_address(value, &there);
        if (result == CUDA_ERROR_OUT_OF_MEMORY || result == CUDA_ERROR_NOT_SUPPORTED) {
            /* It may be no address at all; if it is one, the kernel that uses it ends with 700, and the memory is named. */
            tp_say_once(&said,
                        "what goes to the device names 0x%llx, in %llu bytes of pinned host memory, which kernels are "
                        "not made to reach: error %d",
                        (unsigned long long)value, (unsigned long long)range.size, (int)result);
        } else if (result != CUDA_SUCCESS && result != CUDA_ERROR_INVALID_VALUE) { /* that one was freed just now */
            return result;
        }
    }
    return CUDA_SUCCESS;
}

/* After a kernel has used an address that is none. */
static void tell(int device, int error) {
    (void)device;
    if (error != CUDA_ERROR_ILLEGAL_ADDRESS) {
        return;
    }
    enum { MOST = 8 };
    static _Atomic bool said[MOST + 1];
    struct tpc_range range;
    unsigned told = 0, count = 0;
    for (uint64_t at = 0; atomic_load(&tpc_unreached) && tpc_range_next(at, &range); at = range.start + 1) {
        if (range.where != TPC_PINNED || range.device_address) {
            continue;
        }
        if (told < MOST) {
            tp_say_once(&said[told++],
                        "after CUDA_ERROR_ILLEGAL_ADDRESS: kernels do not reach the %llu bytes of pinned host memory "
                        "at 0x%llx; if one was given that address in memory or in a struct, this is why it failed",
                        (unsigned long long)range.size, (unsigned long long)range.start);
        }
        count++;
    }
    if (count > told) {
        tp_say_once(&said[MOST], "and %u more pinned allocations that kernels do not reach", count - told);
    }
}
TP_REGISTER(tpc_device_broken, tell);
