/*
 * Kernels and pinned memory that the GPU does not reach at its host address: over TCP all of it, else what is registered.
 *
 * A program may give a kernel the host address of pinned memory. Where such memory exists, launches look at their parameters:
 * one of exactly 8 bytes that lies in it becomes the address of its twin (mapped.c); where the worker has no room for one the launch
 * is refused, because the kernel would break the context. Only whole parameters are looked at: a struct may hold addresses for the host, and
 * what lies between its fields is whatever was in memory before. An address that a kernel finds elsewhere is not seen here; it
 * ends in error 700, and then the log names the memory.
 * Any thread. Owns the count of that memory and its bounds, which only grow while there is any; both are changed under `lock`.
 */
#include "tpc_memory.h"

_Atomic unsigned int tpc_unreached;
static _Atomic uint64_t low = UINT64_MAX, high;
static struct tp_lock lock;

void tpc_unreached_add(uint64_t start, uint64_t size) {
    tp_lock_take(&lock);
    bool first = !atomic_load(&tpc_unreached);
    if (first || start < atomic_load(&low)) {
        atomic_store(&low, start);
    }
    if (first || start + size > atomic_load(&high)) {
        atomic_store(&high, start + size);
    }
    atomic_fetch_add(&tpc_unreached, 1); /* last: who sees it finds the bounds */
    tp_lock_drop(&lock);
}

void tpc_unreached_remove(void) {
    tp_lock_take(&lock);
    atomic_fetch_sub(&tpc_unreached, 1);
    tp_lock_drop(&lock);
}

static bool unreached_at(uint64_t address, struct tpc_range *range) {
    return address >= atomic_load_explicit(&low, memory_order_relaxed) &&
           address < atomic_load_explicit(&high, memory_order_relaxed) && tpc_range_at(address, range) &&
           range->where == TPC_PINNED && range->device_address != range->start;
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
