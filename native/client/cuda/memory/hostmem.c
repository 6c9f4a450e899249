/*
 * Pinned host memory: cuMemHostAlloc, cuMemHostRegister.
 *
 * Over a shared segment allocations are runs of its arena, which the GPU reaches at the address that the program has, or at
 * TP_SEGMENT_ADDRESS where this process could not map the segment there. The rest (over TCP, registered memory, what the
 * arena has no room for) is memory of this process that copies may use without waiting. Kernels run elsewhere, so
 * memory whose device pointer is asked for gets a twin on the worker (mapped.c). Any thread; owns nothing but what ranges hold.
 */
#include "tpc_memory.h"
#include "tpc_stream.h"
#include "tpg_cuda_send.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <tp_memory.h>
#include <tp_places.h>
#include <tp_segment.h>
#include <unistd.h>

static uint64_t page_end(uint64_t at) {
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    return (at + page - 1) & ~(page - 1);
}

/* ---- the list of what is pinned ---- */

static CUresult add_host(struct tpc_context *context, unsigned char *memory, size_t size, size_t mapped,
                         unsigned int flags, unsigned int made) {
    struct tpc_host *host = calloc(1, sizeof *host);
    if (!host) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *host = (struct tpc_host){.memory = memory, .size = size, .mapped = mapped, .flags = flags};
    struct tpc_range range = {.start = (uint64_t)(uintptr_t)memory,
                              .size = size,
                              .where = TPC_PINNED,
                              .context = context,
                              .flags = flags | made,
                              .detail = host};
    if (!tpc_range_insert(&range)) {
        free(host);
        return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
    }
    tpc_unreached_add(&range);
    return CUDA_SUCCESS;
}

/* Takes the range that begins at `p` out when it was made in that way. Transfers that touch it end first. */
static struct tpc_host *take_out(void *p, unsigned int made) {
    struct tpc_range range;
    uint64_t start = (uint64_t)(uintptr_t)p;
    if (!tpc_range_at(start, &range) || range.start != start || (range.flags & TPC_MADE_MASK) != made ||
        !tpc_range_remove(start, &range)) {
        return NULL;
    }
    if (range.device_address != start) {
        tpc_unreached_remove(&range);
    }
    tp_transfers_touching_wait(tpc_conn, p, range.size); /* a lost connection touches nothing any more */
    return range.detail;
}

/* ---- inside the shared segment ---- */

uint64_t tpc_host_offset(const void *memory, uint64_t size) {
    struct tpc_range range;
    uint64_t address = (uint64_t)(uintptr_t)memory;
    if (!tpc_range_at(address, &range) || (range.flags & TPC_MADE_MASK) != TPC_MADE_ARENA ||
        size > range.size - (address - range.start)) {
        return 0;
    }
    return range.device_address - TP_SEGMENT_ADDRESS + (address - range.start);
}

bool tpc_is_mapped_host(uint64_t address) {
    struct tpc_range range;
    return tpc_range_at(address, &range) &&
           (range.where == TPC_PINNED || (range.flags & TPC_MADE_MASK) == TPC_MADE_TWIN);
}

static void give(uint64_t offset, uint64_t size) { tpc_post_arena_give("cuMemFreeHost", offset, size); }

/* Makes [offset, offset+size) of the segment known as pinned memory. */
static bool add_shared(struct tpc_context *context, unsigned char *base, uint64_t offset, size_t size,
                       unsigned int flags) {
    uint64_t start = (uint64_t)(uintptr_t)base + offset;
    struct tpc_host *host = calloc(1, sizeof *host);
    if (!host) {
        return false;
    }
    *host = (struct tpc_host){.memory = base + offset, .size = size, .flags = flags};
    struct tpc_range range = {.start = start,
                              .size = size,
                              .where = TPC_PINNED,
                              .context = context,
                              .flags = flags | TPC_MADE_ARENA,
                              .device_address = TP_SEGMENT_ADDRESS + offset,
                              .detail = host};
    if (!tpc_range_insert(&range)) {
        free(host);
        return false;
    }
    struct tpc_range device = {
        .start = range.device_address, .size = size, .context = context, .flags = TPC_MADE_TWIN, .detail = host};
    if (range.device_address != start && !tpc_range_insert(&device)) {
        tpc_range_remove(start, NULL);
        free(host);
        return false;
    }
    if (range.device_address != start) {
        tpc_unreached_add(&range);
    }
    return true;
}

/* CUDA_SUCCESS with *pp NULL: there is no room for it. What another process had there before is not for this one. */
static CUresult allocate_shared(struct tpc_context *context, void **pp, size_t size, unsigned int flags) {
    static _Atomic bool said;
    uint64_t segment_size = 0, offset;
    unsigned char *base = tp_segment_base(tpc_conn, &segment_size);
    *pp = NULL;
    if (!base) {
        return CUDA_SUCCESS;
    }
    CUresult result = tpc_call_arena_take("cuMemHostAlloc", size, &offset);
    if (result == CUDA_SUCCESS &&
        (offset < tp_arena_at() || offset > segment_size || size > segment_size - offset || offset % TP_GRANULE)) {
        result = tpc_bad_reply(&(struct tp_reply){.size = sizeof offset});
    }
    if (result == CUDA_ERROR_OUT_OF_MEMORY || result == CUDA_ERROR_NOT_SUPPORTED) {
        if (!atomic_exchange(&said, true)) {
            tp_log(
                TP_INFO,
                "%llu bytes of pinned memory find no room in the shared segment of %llu bytes (%s): they lie in this "
                "process, and copies of them go through staging memory, which is slower; a larger segment (-M) helps",
                (unsigned long long)size, (unsigned long long)segment_size,
                result == CUDA_ERROR_OUT_OF_MEMORY ? "its arena is full"
                                                   : "the worker's GPU does not reach it at its address");
        }
        return CUDA_SUCCESS;
    }
    TPC_TRY(result);
    memset(base + offset, 0, size);
    if (!add_shared(context, base, offset, size, flags)) {
        give(offset, size);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *pp = base + offset;
    return CUDA_SUCCESS;
}

/* Returns at once: the worker keeps the run until what is queued now is done. */
static CUresult free_shared(void *p) {
    uint64_t offset = tpc_host_offset(p, 0);
    struct tpc_host *host = take_out(p, TPC_MADE_ARENA);
    if (!host) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (TP_SEGMENT_ADDRESS + offset != (uint64_t)(uintptr_t)p) {
        tpc_range_remove(TP_SEGMENT_ADDRESS + offset, NULL);
    }
    give(offset, host->size);
    free(host);
    return CUDA_SUCCESS;
}

/* ---- allocation ---- */

/* Fresh pages where the worker may have the memory's twin at the same address (tp_memory.h), or where the kernel likes when no
 * such place is found; MAP_FAILED without memory. */
static void *take_pages(size_t size) {
    static struct tp_lock placing;
    static struct tp_places places = {.begin = TP_PINNED_ADDRESS, .end = TP_PINNED_ADDRESS + TP_PINNED_SPACE};
    tp_lock_take(&placing);
    void *got = tp_pages_take(&places, size, page_end(1));
    tp_lock_drop(&placing);
    return got ? got : mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

bool tpc_has_place(const struct tpc_range *range) {
    return (range->flags & TPC_MADE_MASK) == TPC_MADE_HOST && range->start - TP_PINNED_ADDRESS < TP_PINNED_SPACE;
}

CUresult tpc_do_cuMemHostAlloc(void **pp, size_t size, unsigned int flags) {
    struct tpc_context *context = tpc_current();
    if (!size) {
        return CUDA_SUCCESS;
    }
    CUresult shared = allocate_shared(context, pp, size, flags);
    if (shared != CUDA_SUCCESS || *pp) {
        return shared;
    }
    if (size > TP_PINNED_SPACE) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    size_t mapped = page_end(size);
    void *memory = take_pages(mapped);
    if (memory == MAP_FAILED) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    CUresult result = add_host(context, memory, size, mapped, flags, TPC_MADE_HOST);
    if (result != CUDA_SUCCESS) {
        munmap(memory, mapped);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *pp = memory;
    return CUDA_SUCCESS;
}

CUresult tpc_cuMemFreeHost(void *p) {
    TPC_TRY(tpc_own_context((uint64_t)(uintptr_t)p));
    TPC_CAPTURE_UNSAFE("cuMemFreeHost");
    struct tpc_range range;
    if (!p) {
        return CUDA_SUCCESS;
    }
    if (!tpc_range_at((uint64_t)(uintptr_t)p, &range) || tpc_pool_local_of(&range)) {
        return CUDA_ERROR_INVALID_VALUE; /* nobody's, or its pool's */
    }
    /* As the driver's, it waits, for host functions too (580.159.04, seen). What lies in a segment the worker keeps until all is done. */
    if ((range.flags & TPC_MADE_MASK) == TPC_MADE_HOST) {
        TPC_TRY(tpc_contexts_wait());
    }
    struct tpc_host *host = take_out(p, TPC_MADE_HOST);
    if (!host) {
        return free_shared(p);
    }
    void *memory = host->memory;
    size_t mapped = host->mapped;
    tpc_host_end(host);
    munmap(memory, mapped);
    return CUDA_SUCCESS;
}

static void free_own(void *what) {
    struct tpc_host *host = what;
    void *memory = host->memory;
    size_t mapped = host->mapped;
    tpc_pool_local_freed(host->pool, host->size);
    tpc_host_end(host);
    munmap(memory, mapped);
}

CUresult tpc_host_free_behind(uint64_t start, CUstream stream) {
    struct tpc_range range;
    void *p = (void *)(uintptr_t)start;
    if (!tpc_range_at(start, &range)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if ((range.flags & TPC_MADE_MASK) == TPC_MADE_ARENA) { /* the worker keeps it until what is queued is done */
        struct tpc_host *host = range.detail;
        uint64_t pool = host->pool, size = host->size;
        CUresult result = free_shared(p);
        if (result == CUDA_SUCCESS) {
            tpc_pool_local_freed(pool, size);
        }
        return result;
    }
    struct tpc_host *host = take_out(p, TPC_MADE_HOST);
    if (!host) {
        return CUDA_ERROR_INVALID_VALUE; /* another thread has freed it */
    }
    CUresult result = tpc_cuLaunchHostFunc(stream, free_own, host);
    if (result != CUDA_SUCCESS) {
        tpc_range_add(&range);
        if (range.device_address != start) {
            tpc_unreached_add(&range);
        }
    }
    return result;
}

bool tpc_pages_there(const void *p, size_t size) {
    const uintptr_t start = (uintptr_t)p & ~(uintptr_t)(page_end(1) - 1);
    /* Writes nothing. A look at the mappings, not at their pages: less than a microsecond for any size. */
    return msync((void *)start, (uintptr_t)p + size - start, MS_ASYNC) == 0;
}

CUresult tpc_do_cuMemHostRegister_v2(void *p, size_t bytesize, unsigned int Flags) {
    uint64_t start = (uint64_t)(uintptr_t)p;
    if (bytesize > UINT64_MAX - start) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (Flags & CU_MEMHOSTREGISTER_IOMEMORY) {
        return CUDA_ERROR_NOT_SUPPORTED; /* device registers of the client's machine are out of the GPU's reach */
    }
    if (tpc_is_device_address(start) || !tpc_pages_there(p, bytesize)) {
        return CUDA_ERROR_INVALID_VALUE; /* the driver would pin all pages */
    }
    return add_host(tpc_current(), p, bytesize, 0, Flags, TPC_MADE_REGISTER);
}

CUresult tpc_cuMemHostUnregister(void *p) {
    TPC_TRY(tpc_own_context((uint64_t)(uintptr_t)p));
    TPC_CAPTURE_UNSAFE("cuMemHostUnregister");
    if (!p) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    struct tpc_range range;
    bool known = tpc_range_at((uint64_t)(uintptr_t)p, &range);
    if (known && (range.flags & TPC_MADE_MASK) == TPC_MADE_REGISTER) {
        TPC_TRY(tpc_contexts_wait()); /* as the driver's, for host functions too (580.159.04, asked) */
    }
    struct tpc_host *host = take_out(p, TPC_MADE_REGISTER);
    if (!host) { /* memory of CUDA's that was not registered, or does not begin there, is another error (580.159.04) */
        return known ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
    }
    tpc_host_end(host);
    return CUDA_SUCCESS;
}

CUresult tpc_do_cuMemHostGetFlags(unsigned int *pFlags, void *p) {
    struct tpc_range range;
    if (!tpc_range_at((uint64_t)(uintptr_t)p, &range) || range.where != TPC_PINNED) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *pFlags = (range.flags & TPC_FLAGS_CUDA) | CU_MEMHOSTALLOC_DEVICEMAP; /* unified addressing maps all of it */
    return CUDA_SUCCESS;
}
