/*
 * Managed variables of images: pages of this process where the worker's driver has them.
 *
 * The driver chooses the address when an image is loaded and writes it into the code, so it cannot be moved; where this process has
 * something there, the variable is refused. A block holds variables of several images, and what lies between them is nobody's, so
 * only they are copied. Blocks stay until the process ends: others may be put there again. Any thread; the list only grows, under a
 * lock, and is read without. Addresses are the worker's: nothing that this process has is ever replaced.
 */
#include "tpc_managed.h"

#include <stdlib.h>
#include <unistd.h>

#define BLOCKS 255u /* as many as are watched */
#define BLOCK_MOST (1ull << 40)

static struct tp_lock lock;
static struct tpc_managed *_Atomic blocks[BLOCKS];
static _Atomic uint32_t count;

struct tpc_managed *tpc_variables_at(uint64_t address) {
    const uint32_t known = atomic_load_explicit(&count, memory_order_acquire);
    for (uint32_t i = 0; i < known; i++) {
        struct tpc_managed *block = atomic_load_explicit(&blocks[i], memory_order_relaxed);
        if (address - block->start < block->mapped) {
            return block;
        }
    }
    return NULL;
}

/* Under the lock. */
static struct tpc_managed *make_block(uint64_t begin, uint64_t end) {
    const size_t pieces = (end - begin + TPC_PIECE - 1) / TPC_PIECE;
    const uint32_t known = atomic_load(&count);
    struct tpc_managed *m = known < BLOCKS ? calloc(1, sizeof *m + pieces) : NULL;
    if (!m) {
        return NULL;
    }
    *m = (struct tpc_managed){.start = begin, .mapped = end - begin, .count = pieces};
    m->alias = tpc_window_extra(begin, end - begin);
    if (!m->alias || !tpc_managed_watch(begin, end - begin)) {
        free(m); /* the pages stay, without any rights */
        return NULL;
    }
    atomic_store_explicit(&blocks[known], m, memory_order_relaxed);
    atomic_store_explicit(&count, known + 1, memory_order_release);
    return m;
}

CUresult tpc_managed_variable(struct tpc_range *range, uint64_t block, uint64_t block_size) {
    static _Atomic bool said;
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), begin = block & ~(page - 1);
    if (!range->size || block_size > BLOCK_MOST || block > UINT64_MAX - BLOCK_MOST - page || range->start < block ||
        range->start - block > block_size || range->size > block_size - (range->start - block)) {
        tp_log(TP_ERROR, "the worker tells of a managed variable outside of its block");
        return CUDA_ERROR_UNKNOWN;
    }
    struct tpc_variable *variable = calloc(1, sizeof *variable);
    CUstream beside = NULL;
    CUresult result = variable ? tpc_stream_beside(range->context, &beside) : CUDA_ERROR_OUT_OF_MEMORY;
    if (result != CUDA_SUCCESS) {
        free(variable);
        return result;
    }
    *variable = (struct tpc_variable){.start = range->start, .size = range->size, .context = range->context};
    tp_lock_take(&lock);
    struct tpc_managed *m = tpc_variables_at(range->start);
    m = m ? m : make_block(begin, (block + block_size + page - 1) & ~(page - 1));
    if (m && range->start + range->size <= m->start + m->mapped) {
        struct tpc_request request = {.wish = TPC_VARIABLE, .managed = m, .variable = variable};
        m->context = range->context;
        m->beside = beside;
        result = tpc_managed_ask(&request);
    } else {
        tp_say_once(&said,
                    "a managed variable lies at 0x%llx on the worker, where this process has something else: it is "
                    "refused with CUDA_ERROR_NOT_SUPPORTED. Started again, the program may have nothing there",
                    (unsigned long long)range->start);
        result = CUDA_ERROR_NOT_SUPPORTED;
    }
    tp_lock_drop(&lock);
    if (result != CUDA_SUCCESS) {
        free(variable);
        return result;
    }
    range->flags = TPC_MADE_MANAGED | TPC_SYNC_MEMOPS;
    range->detail = m;
    return CUDA_SUCCESS;
}

void tpc_managed_variable_gone(const struct tpc_range *range) {
    struct tpc_request request = {.wish = TPC_VARIABLE_GONE, .managed = range->detail, .address = range->start};
    tpc_managed_ask(&request);
}
