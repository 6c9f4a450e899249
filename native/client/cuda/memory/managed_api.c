/*
 * Managed memory as a program asks for it: allocations, attachment, advice, prefetches, and questions about ranges.
 *
 * Any thread. What the worker gives is device memory like any other, counted as such; that it has pages here only this process
 * knows. Advice is remembered and answered, and nothing follows from it. Without concurrent access the driver refuses what names
 * a device in advice and prefetches; here both succeed, because programs that do not look at the attribute would stop for nothing.
 */
#include "tpc_managed.h"
#include "tpc_stream.h"
#include "tpg_client.h"
#include "tpg_cuda_send.h"

#include <stdlib.h>
#include <unistd.h>

/* ---- allocation ---- */

/* A stream for each context, made with its first managed memory. Under lock. */
static struct beside {
    struct beside *next;
    const struct tpc_context *context;
    unsigned int life;
    CUstream stream;
} *all;
static struct tp_lock lock;

CUresult tpc_stream_beside(const struct tpc_context *context, CUstream *out) {
    const unsigned int life = atomic_load(&context->life);
    tp_lock_take(&lock);
    const struct beside *known = TP_FIND(all, it->context == context && it->life == life);
    *out = known ? known->stream : NULL;
    tp_lock_drop(&lock);
    if (known) {
        return CUDA_SUCCESS;
    }
    CUresult result = tpc_cuStreamCreateWithPriority(out, CU_STREAM_NON_BLOCKING, 0);
    struct beside *made = result == CUDA_SUCCESS ? malloc(sizeof *made) : NULL;
    if (made) { /* two threads may make one each: both are good */
        *made = (struct beside){.context = context, .life = life, .stream = *out};
        tp_lock_take(&lock);
        TP_PUSH(all, made);
        tp_lock_drop(&lock);
    }
    return result;
}

/* From the worker, whole pages that begin at a page. */
static CUresult take_block(struct tpc_managed *m, uint64_t page) {
    /* What is small begins anywhere: a page more holds it. What is large begins at a page. */
    const uint64_t size = m->mapped >= 2u << 20 ? m->mapped : m->mapped + page;
    CUresult result = tpc_call_memory_alloc("cuMemAllocManaged", size, &m->block);
    m->start = (m->block + page - 1) & ~(page - 1);
    return result;
}

/* Zero on both sides, and the program's. */
static CUresult begin(struct tpc_managed *m, size_t size, unsigned int flags) {
    struct tpc_range range = {.start = m->start,
                              .size = size,
                              .context = m->context,
                              .flags = flags | TPC_MADE_MANAGED | TPC_SYNC_MEMOPS,
                              .detail = m};
    struct tpc_request request = {.wish = TPC_ADD, .managed = m};
    if (!tpc_range_insert(&range)) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    CUresult result = tpc_cuMemsetD8Async(m->start, 0, size, m->beside);
    result = result ? result : tpc_managed_settle(m);
    result = result ? result : tpc_managed_ask(&request);
    if (result != CUDA_SUCCESS) {
        tpc_range_remove(m->start, NULL);
    }
    return result;
}

CUresult tpc_cuMemAllocManaged(CUdeviceptr *dptr, size_t bytesize, unsigned int flags) {
    if (flags != CU_MEM_ATTACH_GLOBAL && flags != CU_MEM_ATTACH_HOST) { /* before a context (580.159.04, asked) */
        return CUDA_ERROR_INVALID_VALUE;
    }
    TPC_CONTEXT(context);
    context = context->home;
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    if (!dptr || !bytesize) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    TPC_CAPTURE_UNSAFE("cuMemAllocManaged");
    if (bytesize > 1ull << 46) {
        return CUDA_ERROR_OUT_OF_MEMORY; /* larger than any device */
    }
    if (!tpc_window_open()) {
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    const uint64_t mapped = (bytesize + page - 1) & ~(page - 1);
    const size_t count = (mapped + TPC_PIECE - 1) / TPC_PIECE;
    struct tpc_managed *m = calloc(1, sizeof *m + count);
    if (!m) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    m->mapped = mapped;
    m->count = count;
    m->context = context;
    m->size = bytesize;
    CUresult result = tpc_stream_beside(context, &m->beside);
    result = result ? result : take_block(m, page);
    if (result != CUDA_SUCCESS) {
        free(m);
        return result;
    }
    result = CUDA_ERROR_NOT_SUPPORTED; /* a worker whose driver gives addresses of its own choice */
    if (tpc_is_device_address(m->start) && tpc_is_device_address(m->start + mapped - 1) &&
        (m->start == m->block || mapped < 2u << 20)) {
        m->alias = tpc_window_alias(m->start);
        result = begin(m, bytesize, flags);
    }
    if (result != CUDA_SUCCESS) {
        tpc_post_memory_free("cuMemAllocManaged", m->block);
        free(m);
        return result;
    }
    *dptr = m->start;
    return CUDA_SUCCESS;
}

/* The pages go before the worker may give the addresses to somebody else. */
static void give_pages(struct tpc_managed *m) {
    struct tpc_request request = {.wish = TPC_REMOVE, .managed = m};
    tpc_managed_ask(&request);
    tpc_pool_local_freed(m->pool, m->size);
    tpc_hints_free(m);
}

static void forget(struct tpc_managed *m) {
    give_pages(m);
    free(m);
}

/* Freed, and still used by what a stream has before that: its host functions may touch it. */
static struct tpc_managed *leaving;
static struct tp_lock leaving_lock;

struct tpc_managed *tpc_managed_leaving(uint64_t address) {
    tp_lock_take(&leaving_lock);
    struct tpc_managed *m = leaving;
    while (m && address - m->start >= m->mapped) {
        m = m->leaves;
    }
    tp_lock_drop(&leaving_lock);
    return m;
}

/* False when it is not there any more: its context has gone. */
static bool leave_out(struct tpc_managed *m) {
    tp_lock_take(&leaving_lock);
    struct tpc_managed **at = &leaving;
    while (*at && *at != m) {
        at = &(*at)->leaves;
    }
    const bool there = *at != NULL;
    if (there) {
        *at = m->leaves;
    }
    tp_lock_drop(&leaving_lock);
    return there;
}

/* A host function, which the stream has come to. */
static void free_now(void *what) {
    struct tpc_managed *m = what;
    const uint64_t block = m->block;
    const uint32_t own = tp_thread_self()->context;
    if (!leave_out(m)) {
        return;
    }
    tp_thread_self()->context = tp_handle_id(m->context->handle);
    forget(m);
    tpc_post_memory_free("cuMemFreeAsync", block);
    tp_thread_self()->context = own;
}

CUresult tpc_managed_free_behind(uint64_t start, CUstream stream) {
    struct tpc_range range;
    if (!tpc_range_remove(start, &range)) {
        return CUDA_ERROR_INVALID_VALUE; /* another thread has freed it */
    }
    struct tpc_managed *m = range.detail;
    tp_lock_take(&leaving_lock);
    m->leaves = leaving;
    leaving = m;
    tp_lock_drop(&leaving_lock);
    CUresult result = tpc_cuLaunchHostFunc(stream, free_now, m);
    if (result != CUDA_SUCCESS) {
        leave_out(m);
        tpc_range_add(&range);
    }
    return result;
}

CUresult tpc_managed_free(uint64_t start) {
    struct tpc_range range;
    if (!tpc_range_at(start, &range) || !((struct tpc_managed *)range.detail)->block ||
        !tpc_range_remove(start, &range)) {
        return CUDA_ERROR_INVALID_VALUE; /* a variable is not freed */
    }
    const uint64_t block = ((struct tpc_managed *)range.detail)->block;
    forget(range.detail);
    return tpc_post_memory_free("cuMemFree", block);
}

static struct tpc_managed *leaving_of(const struct tpc_context *context) {
    tp_lock_take(&leaving_lock);
    struct tpc_managed *m = leaving;
    while (m && m->context != context) {
        m = m->leaves;
    }
    tp_lock_drop(&leaving_lock);
    return m;
}

/* The worker frees what the context had. */
static void context_gone(const struct tpc_context *context) {
    struct tpc_range range;
    for (struct tpc_managed *m; (m = leaving_of(context));) {
        if (leave_out(m)) { /* its record stays: a host function has it, which may still be called */
            give_pages(m);
        }
    }
    for (uint64_t at = 0; tpc_range_next(at, &range); at = range.start + 1) {
        if (range.context == context && (range.flags & TPC_MADE_MASK) == TPC_MADE_MANAGED &&
            tpc_range_remove(range.start, &range)) {
            if (((struct tpc_managed *)range.detail)->block) {
                forget(range.detail);
            } else {
                tpc_managed_variable_gone(&range);
            }
        }
    }
    tp_lock_take(&lock);
    for (struct beside *b; (b = TP_TAKE(all, it->context == context));) {
        free(b);
    }
    tp_lock_drop(&lock);
}
TP_REGISTER(tpc_context_gone, context_gone);

/* ---- attachment ---- */

static void wait_of(struct tpc_range *range, uint64_t value) { range->device_address = value; }

/* The managed allocation that holds all of it; a size of 0 is all from there on. */
static CUresult find(uint64_t address, uint64_t size, struct tpc_range *range) {
    bool there = tpc_range_at(address, range) && (range->flags & TPC_MADE_MASK) == TPC_MADE_MANAGED &&
                 size <= range->size - (address - range->start);
    return there ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult tpc_do_cuStreamAttachMemAsync(CUstream hStream, CUdeviceptr dptr, size_t length, unsigned int flags) {
    struct tpc_range range;
    const bool own = hStream != CU_STREAM_LEGACY && hStream != CU_STREAM_PER_THREAD;
    if ((flags != CU_MEM_ATTACH_GLOBAL && flags != CU_MEM_ATTACH_HOST && flags != CU_MEM_ATTACH_SINGLE) ||
        (flags == CU_MEM_ATTACH_SINGLE && hStream == CU_STREAM_LEGACY)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    TPC_TRY(find(dptr, length, &range));
    if (range.start != dptr || (length && length != range.size)) {
        return CUDA_ERROR_INVALID_VALUE; /* parts of it cannot be attached */
    }
    if (!((struct tpc_managed *)range.detail)->block) {
        return CUDA_SUCCESS; /* of a variable nothing follows: every launch takes it, a touch waits for everything */
    }
    /* What a touch waits for: of memory that only this stream uses, this stream. */
    tpc_range_change(range.start, wait_of, flags != CU_MEM_ATTACH_GLOBAL && own ? (uint64_t)(uintptr_t)hStream : 0);
    return CUDA_SUCCESS;
}
