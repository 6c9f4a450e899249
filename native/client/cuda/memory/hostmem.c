/*
 * Pinned host memory: cuMemHostAlloc, cuMemHostRegister, and twins for what kernels reach.
 *
 * Over a shared segment allocations are runs of its arena, which the GPU reaches at the address that the program has, or at
 * TP_SEGMENT_ADDRESS where this process could not map the segment there. The rest (over TCP, registered memory, what the
 * arena has no room for) is memory of this process that copies may use without waiting. Kernels run elsewhere, so
 * memory whose device pointer is asked for gets a twin of the same size on the worker, at most 64 KiB: what the program
 * wrote is sent before each launch, what kernels wrote comes as messages before the reply to a wait. Owns the list of
 * memory with twins under `lock`. Any thread; a connection's thread writes into memory that has a twin, at offsets
 * bounded here.
 */
#include "tpc_memory.h"
#include "tpc_stream.h"
#include "tpg_cuda_messages.h"
#include "tpg_cuda_send.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <tp_memory.h>
#include <tp_segment.h>
#include <unistd.h>

/* Never held across a call: the thread that waits for a reply takes in what kernels wrote. */
static struct tp_lock lock;
/* Held by who sends what the program wrote, until it is in the stream before any launch of another thread; and by who takes
 * memory out of the list, which stays as it is meanwhile but for its beginning. Before `lock`. */
static struct tp_lock pushing;
static struct tpc_host *twins;

/* ---- coherence ---- */

static uint64_t word_size(const struct tpc_host *host, uint64_t offset) {
    return host->size - offset < TP_TWIN_WORD ? host->size - offset : TP_TWIN_WORD;
}

static bool word_changed(const struct tpc_host *host, uint64_t offset) {
    return offset < host->size && memcmp(host->memory + offset, host->shadow + offset, word_size(host, offset)) != 0;
}

/* The next run of words from *offset on that the program has changed, copied for the frame; 0 when there is none. Under `pushing`. */
static uint64_t next_run(struct tpc_host *host, uint64_t *offset, unsigned char *copy) {
    uint64_t at = *offset, begin;
    tp_lock_take(&lock);
    if (memcmp(host->memory + at, host->shadow + at, host->size - at) == 0) {
        at = host->size; /* as before most launches */
    }
    while (at < host->size && !word_changed(host, at)) {
        at += TP_TWIN_WORD;
    }
    for (begin = at; word_changed(host, at); at += TP_TWIN_WORD) {
        memcpy(host->shadow + at, host->memory + at, word_size(host, at));
    }
    uint64_t end = at < host->size ? at : host->size;
    uint64_t size = end > begin ? end - begin : 0;
    if (size) {
        memcpy(copy, host->shadow + begin, size);
    }
    tp_lock_drop(&lock);
    *offset = begin;
    return size;
}

void tpc_twins_push(void) {
    static unsigned char copy[TP_TWIN_MAX];
    const bool urgent = tp_urgent(true); /* who runs host functions waits for `pushing` */
    tp_lock_take(&pushing);
    tp_lock_take(&lock);
    struct tpc_host *host = twins;
    tp_lock_drop(&lock);
    for (; host; host = host->next) {
        uint64_t offset = 0, size;
        while ((size = next_run(host, &offset, copy)) != 0) {
            struct tpg_host_twin_write_in in = {.address = host->twin + offset, .data = copy, .data_size = size};
            tpc_post_host_twin_write("mapped host memory", &in);
            offset += size;
        }
    }
    tp_lock_drop(&pushing);
    tp_urgent(urgent);
}

static void push_if_any(void) {
    if (atomic_load_explicit(&tpc_twins, memory_order_relaxed)) {
        tpc_twins_push();
    }
}
TP_REGISTER(tpc_host_function_over, push_if_any);

/* The session sends what kernels wrote before the reply that ends a wait. */
bool tpc_on_twin_write(const struct tpg_twin_write_in *in) {
    tp_lock_take(&lock);
    for (struct tpc_host *host = twins; host; host = host->next) {
        uint64_t offset = in->address - host->twin;
        if (in->address >= host->twin && offset <= host->size && in->data_size <= host->size - offset) {
            memcpy(host->memory + offset, in->data, in->data_size);
            memcpy(host->shadow + offset, in->data, in->data_size);
            break;
        }
    }
    tp_lock_drop(&lock);
    return true; /* of one that has ended here, what is still on its way says nothing */
}

/* ---- twins ---- */

static void set_device_address(struct tpc_range *range, uint64_t value) { range->device_address = value; }

static CUresult make_twin(const struct tpc_range *range, struct tpc_host *host) {
    struct tpg_host_twin_in in = {.size = range->size};
    struct tpg_host_twin_out answer = {0};
    /* What is on its way into the memory belongs to the twin as well. */
    if (tp_transfers_touching_wait(tpc_conn, host->memory, host->size) != TP_OK) {
        return tpc_lost();
    }
    CUresult result = tpc_call_host_twin("cuMemHostGetDevicePointer", &in, &answer);
    if (result != CUDA_SUCCESS) {
        return result;
    }
    unsigned char *shadow = calloc(1, range->size);
    struct tpc_range device = {.start = answer.address,
                               .size = range->size,
                               .where = TPC_DEVICE_MEMORY,
                               .context = range->context,
                               .buffer_id = range->buffer_id,
                               .flags = TPC_MADE_TWIN,
                               .detail = host};
    bool made = false;
    tp_lock_take(&lock);
    if (!host->twin && shadow && tpc_range_insert(&device)) {
        host->shadow = shadow;
        host->twin = answer.address;
        host->next = twins;
        twins = host;
        made = true;
    }
    bool there = host->twin != 0;
    tp_lock_drop(&lock);
    if (made) {
        atomic_fetch_add(&tpc_twins, 1);
        tpc_range_change(range->start, set_device_address, answer.address);
    } else {
        struct tpg_host_twin_free_in undo = {.address = answer.address};
        tpc_post_host_twin_free("cuMemHostGetDevicePointer", &undo);
        free(shadow);
    }
    return there ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult tpc_host_device_address(uint64_t address, CUdeviceptr *out) {
    struct tpc_range range;
    if (!tpc_range_at(address, &range) || range.where != TPC_PINNED) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if ((range.flags & TPC_MADE_MASK) == TPC_MADE_ARENA) {
        *out = range.device_address + (address - range.start);
        return CUDA_SUCCESS;
    }
    struct tpc_host *host = range.detail;
    if (!range.device_address && range.size > TP_TWIN_MAX) {
        tp_log(
            TP_ERROR,
            "the device address of %llu bytes of pinned host memory was asked for: outside the shared segment kernels "
            "reach at most %u bytes of one allocation; over shared memory, what cuMemHostAlloc gives lies inside it "
            "while its arena has room",
            (unsigned long long)range.size, TP_TWIN_MAX);
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    CUresult result = range.device_address ? CUDA_SUCCESS : make_twin(&range, host);
    if (result == CUDA_SUCCESS) {
        tp_lock_take(&lock);
        *out = host->twin + (address - range.start);
        tp_lock_drop(&lock);
    }
    return result;
}

static void end_twin(struct tpc_host *host) {
    tp_lock_take(&pushing);
    tp_lock_take(&lock);
    uint64_t twin = host->twin;
    for (struct tpc_host **at = &twins; twin && *at; at = &(*at)->next) {
        if (*at == host) {
            *at = host->next;
            break;
        }
    }
    tp_lock_drop(&lock);
    tp_lock_drop(&pushing);
    if (twin) {
        struct tpg_host_twin_free_in in = {.address = twin};
        atomic_fetch_sub(&tpc_twins, 1);
        tpc_range_remove(twin, NULL);
        tpc_post_host_twin_free("cuMemFreeHost", &in);
    }
    free(host->shadow);
    free(host);
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
    tpc_unreached_add(range.start, size);
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
        tpc_unreached_remove();
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

static void give(uint64_t offset, uint64_t size) {
    struct tpg_arena_give_in in = {.offset = offset, .size = size};
    tpc_post_arena_give("cuMemFreeHost", &in);
}

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
    struct tpc_range device = {.start = range.device_address,
                               .size = size,
                               .where = TPC_DEVICE_MEMORY,
                               .context = context,
                               .flags = TPC_MADE_TWIN,
                               .detail = host};
    if (range.device_address != start && !tpc_range_insert(&device)) {
        tpc_range_remove(start, NULL);
        free(host);
        return false;
    }
    if (range.device_address != start) {
        tpc_unreached_add(start, size);
    }
    return true;
}

/* CUDA_SUCCESS with *pp NULL: there is no room for it. What another process had there before is not for this one. */
static CUresult allocate_shared(struct tpc_context *context, void **pp, size_t size, unsigned int flags) {
    struct tpg_arena_take_in in = {.size = size};
    struct tpg_arena_take_out answer = {0};
    static _Atomic bool said;
    uint64_t segment_size = 0;
    unsigned char *base = tp_segment_base(tpc_conn, &segment_size);
    *pp = NULL;
    if (!base) {
        return CUDA_SUCCESS;
    }
    CUresult result = tpc_call_arena_take("cuMemHostAlloc", &in, &answer);
    if (result == CUDA_SUCCESS && (answer.offset < tp_arena_at() || answer.offset > segment_size ||
                                   size > segment_size - answer.offset || answer.offset % TP_GRANULE)) {
        result = tpc_bad_reply(&(struct tp_reply){.size = sizeof answer});
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
    if (result != CUDA_SUCCESS) {
        return result;
    }
    memset(base + answer.offset, 0, size);
    if (!add_shared(context, base, answer.offset, size, flags)) {
        give(answer.offset, size);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *pp = base + answer.offset;
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

CUresult tpc_cuMemHostAlloc(void **pp, size_t size, unsigned int flags) {
    TPC_CONTEXT(context);
    TPC_CAPTURE_UNSAFE("cuMemHostAlloc");
    if (!pp || (flags & ~7u)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (!size) {
        *pp = NULL;
        return CUDA_SUCCESS;
    }
    CUresult shared = allocate_shared(context, pp, size, flags);
    if (shared != CUDA_SUCCESS || *pp) {
        return shared;
    }
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    if (size > SIZE_MAX - page) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    size_t mapped = (size + page - 1) & ~(page - 1);
    void *memory = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
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
    TPC_CONTEXT(context);
    TPC_CAPTURE_UNSAFE("cuMemFreeHost");
    struct tpc_range range;
    if (!p) {
        return CUDA_SUCCESS;
    }
    if (tpc_range_at((uint64_t)(uintptr_t)p, &range) && tpc_pool_local_of(&range)) {
        return CUDA_ERROR_INVALID_VALUE; /* it is its pool's */
    }
    struct tpc_host *host = take_out(p, TPC_MADE_HOST);
    if (!host) {
        return free_shared(p);
    }
    void *memory = host->memory;
    size_t mapped = host->mapped;
    end_twin(host);
    munmap(memory, mapped);
    return CUDA_SUCCESS;
}

static void free_own(void *what) {
    struct tpc_host *host = what;
    void *memory = host->memory;
    size_t mapped = host->mapped;
    tpc_pool_local_freed(host->pool, host->size);
    end_twin(host);
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
        tpc_unreached_add(range.start, range.size);
    }
    return result;
}

/* Every page must be mapped: the driver would pin them all. */
static bool pages_there(void *p, size_t size) {
    unsigned char resident[1024];
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), at = (uintptr_t)p & ~(page - 1), end = (uintptr_t)p + size;
    while (at < end) {
        size_t length = end - at < sizeof resident * page ? end - at : sizeof resident * page;
        if (mincore((void *)at, length, resident) != 0) {
            return false;
        }
        at += length;
    }
    return true;
}

CUresult tpc_cuMemHostRegister_v2(void *p, size_t bytesize, unsigned int Flags) {
    TPC_CONTEXT(context);
    TPC_CAPTURE_UNSAFE("cuMemHostRegister");
    uint64_t start = (uint64_t)(uintptr_t)p;
    if (!p || !bytesize || (Flags & ~15u) || bytesize > UINT64_MAX - start) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (Flags & CU_MEMHOSTREGISTER_IOMEMORY) {
        return CUDA_ERROR_NOT_SUPPORTED; /* device registers of the client's machine are out of the GPU's reach */
    }
    if (tpc_is_device_address(start) || !pages_there(p, bytesize)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    return add_host(context, p, bytesize, 0, Flags, TPC_MADE_REGISTER);
}

CUresult tpc_cuMemHostUnregister(void *p) {
    TPC_CONTEXT(context);
    TPC_CAPTURE_UNSAFE("cuMemHostUnregister");
    if (!p) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    struct tpc_host *host = take_out(p, TPC_MADE_REGISTER);
    if (!host) { /* memory of CUDA's that was not registered, or does not begin there, is another error (580.159.04) */
        struct tpc_range range;
        bool known = tpc_range_at((uint64_t)(uintptr_t)p, &range);
        return known ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
    }
    end_twin(host);
    return CUDA_SUCCESS;
}

CUresult tpc_cuMemHostGetDevicePointer_v2(CUdeviceptr *pdptr, void *p, unsigned int Flags) {
    TPC_CONTEXT(context);
    if (!pdptr || Flags) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    return tpc_host_device_address((uint64_t)(uintptr_t)p, pdptr);
}

CUresult tpc_cuMemHostGetFlags(unsigned int *pFlags, void *p) {
    TPC_CONTEXT(context);
    struct tpc_range range;
    if (!pFlags || !tpc_range_at((uint64_t)(uintptr_t)p, &range) || range.where != TPC_PINNED) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *pFlags = (range.flags & TPC_FLAGS_CUDA) | CU_MEMHOSTALLOC_DEVICEMAP; /* unified addressing maps all of it */
    return CUDA_SUCCESS;
}
