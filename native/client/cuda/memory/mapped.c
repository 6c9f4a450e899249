/*
 * Pinned memory that kernels reach outside the shared segment: its twin on the worker, and what goes across when.
 *
 * Memory whose device address is asked for, or that a kernel is given, gets a twin of the same size (session/memory/twin.c). What
 * the program wrote is sent before each launch, what kernels wrote comes as messages before the reply to a wait. Both sides keep a
 * shadow, what they last agreed on, and send the words that differ from it, so what both write into one page survives. Large
 * memory is not compared as a whole before each launch: the kernel of this machine tells which pages were written (written.c).
 * Owns the list of memory with twins under `lock`. Any thread; a connection's thread writes into memory that has a twin, at offsets
 * bounded here.
 */
#include "tpc_memory.h"
#include "tpc_stream.h"
#include "tpg_cuda_messages.h"
#include "tpg_cuda_send.h"

#include <stdlib.h>
#include <tp_memory.h>

#define WORDS_MOST 65536u /* bytes of memory that is compared before a wait */
#define STRETCHES 64u     /* of written pages that are asked for at once */

/* Never held across a call: the thread that waits for a reply takes in what kernels wrote. */
static struct tp_lock lock;
/* Held by who sends what the program wrote, until it is in the stream before any launch of another thread; and by who takes
 * memory out of the list, which stays as it is meanwhile but for its beginning. Before `lock`. */
static struct tp_lock pushing;
static struct tpc_host *twins;

/* ---- coherence ---- */

/* Programs unmap registered memory and never end the registration (Legate does). The driver keeps such pages, which only the device
 * reaches then; here they are gone, and what may lie there next is none of ours. */
static bool is_gone(const struct tpc_host *host) { return !host->mapped && !tpc_pages_there(host->memory, host->size); }

static uint64_t least(uint64_t a, uint64_t b) { return a < b ? a : b; }

/* Words in [at, end) from `at` on that the program has changed, or has not; what lies behind the last whole word is one. */
static uint64_t words_that(const struct tpc_host *host, uint64_t at, uint64_t end, bool changed) {
    uint32_t word, known;
    for (; at + TP_TWIN_WORD <= end; at += TP_TWIN_WORD) {
        memcpy(&word, host->memory + at, TP_TWIN_WORD);
        memcpy(&known, host->shadow + at, TP_TWIN_WORD);
        if ((word != known) != changed) {
            return at;
        }
    }
    if (at < end && (memcmp(host->memory + at, host->shadow + at, end - at) != 0) == changed) {
        at = end;
    }
    return at;
}

/* The next run of words in [*offset, end), which is one piece at most, that the program has changed, copied for the frame; 0 when there
 * is none. Under `pushing`. */
static uint64_t next_run(struct tpc_host *host, uint64_t *offset, uint64_t end, unsigned char *copy) {
    tp_lock_take(&lock);
    const uint64_t begin = memcmp(host->memory + *offset, host->shadow + *offset, end - *offset) == 0
                               ? end /* as before most launches */
                               : words_that(host, *offset, end, false);
    /* One word at least: it may have become what it was since it was found. */
    const uint64_t size = words_that(host, least(begin + TP_TWIN_WORD, end), end, true) - begin;
    if (size) {
        memcpy(copy, host->memory + begin, size);
        memcpy(host->shadow + begin, copy, size); /* what is sent, whatever is written meanwhile */
    }
    tp_lock_drop(&lock);
    *offset = begin;
    return size;
}

/* What differs in [offset, end). */
static void push_part(struct tpc_host *host, uint64_t offset, uint64_t end) {
    static unsigned char copy[TP_TWIN_PIECE];
    while (offset < end) {
        const uint64_t stop = least(end, (offset / TP_TWIN_PIECE + 1) * TP_TWIN_PIECE);
        uint64_t size;
        while (offset < stop && (size = next_run(host, &offset, stop, copy)) != 0) {
            struct tpg_host_twin_write_in in = {.address = host->twin + offset, .data = copy, .data_size = size};
            tpc_post_host_twin_write("mapped host memory", &in);
            offset += size;
        }
        offset = stop;
    }
}

/* What differs in the words of [from, end), which are addresses. Words begin where the memory does, not where a page does. */
static void push_words_in(struct tpc_host *host, uint64_t from, uint64_t end) {
    const uint64_t start = (uint64_t)(uintptr_t)host->memory, part = TP_TWIN_WORD - 1;
    push_part(host, (from - start) & ~part, least((end - start + part) & ~part, host->size));
}

static void push_written(struct tpc_host *host) {
    const uint64_t start = (uint64_t)(uintptr_t)host->memory;
    const struct tpc_written pages = tpc_written_pages(start, host->size);
    push_words_in(host, start, pages.start);
    for (uint64_t at = pages.start; at < pages.end;) {
        struct tpc_written written[STRETCHES];
        const size_t count = tpc_written_next(&at, pages.end, written, STRETCHES);
        for (size_t i = 0; i < count; i++) {
            push_words_in(host, written[i].start, written[i].end);
        }
    }
    push_words_in(host, pages.end, start + host->size);
}

static void push_all(bool large) {
    const bool urgent = tp_thread_self()->urgent;
    tp_thread_self()->urgent = true; /* who runs host functions waits for `pushing` */
    tp_lock_take(&pushing);
    tp_lock_take(&lock);
    struct tpc_host *host = twins;
    tp_lock_drop(&lock);
    for (; host; host = host->next) {
        const bool looked_at = host->tracked || large || host->size <= WORDS_MOST;
        if (!looked_at || is_gone(host)) {
            continue;
        }
        if (host->tracked) {
            push_written(host);
        } else {
            push_part(host, 0, host->size);
        }
    }
    tp_lock_drop(&pushing);
    tp_thread_self()->urgent = urgent;
}

void tpc_twins_push_all(void) { push_all(true); }

/* Large memory that would have to be compared is left out. */
static void push_words(void) {
    if (TP_UNLIKELY(atomic_load_explicit(&tpc_twins, memory_order_relaxed))) {
        push_all(false);
    }
}
TP_REGISTER(tpc_before_wait, push_words);

static void function_over(void) { tpc_twins_push(); }
TP_REGISTER(tpc_host_function_over, function_over);

/* The runs of a message, from `offset` of the memory on. False when they are not what they say. */
static bool take_runs(struct tpc_host *host, uint64_t offset, const struct tpg_twin_write_in *in) {
    const unsigned char *data = in->data;
    uint64_t left = in->data_size;
    for (size_t i = 0; i + 1 < in->runs_count; i += 2) {
        const uint64_t at = offset + in->runs[i], size = in->runs[i + 1];
        if (size > left || at > host->size || size > host->size - at) {
            return false;
        }
        memcpy(host->memory + at, data, size);
        memcpy(host->shadow + at, data, size);
        data += size;
        left -= size;
    }
    return !left && in->runs_count % 2 == 0;
}

/* The session sends what kernels wrote before the reply that ends a wait. */
bool tpc_on_twin_write(const struct tpg_twin_write_in *in) {
    bool right = true; /* of one that has ended here, what is still on its way says nothing */
    tp_lock_take(&lock);
    struct tpc_host *host = TP_FIND(twins, in->address >= it->twin && in->address - it->twin < it->size);
    if (host) {
        right = !tpc_is_read_only(host) && (is_gone(host) || take_runs(host, in->address - host->twin, in));
    }
    tp_lock_drop(&lock);
    return right;
}

/* ---- twins ---- */

static void set_device_address(struct tpc_range *range, uint64_t value) { range->device_address = value; }

static CUresult make_twin(const struct tpc_range *range, struct tpc_host *host) {
    uint64_t twin;
    bool refused = false;
    TP_TELL(tpc_twin_wanted, range, &refused);
    if (refused) {
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    /* What is on its way into the memory belongs to the twin as well. */
    if (tp_transfers_touching_wait(tpc_conn, host->memory, host->size) != TP_OK) {
        return tpc_lost();
    }
    TPC_TRY(tpc_call_host_twin("cuMemHostGetDevicePointer", range->size, tpc_is_read_only(host),
                               tpc_has_place(range) ? range->start : 0, 0, &twin));
    unsigned char *shadow = calloc(1, range->size);
    struct tpc_range device = {.start = twin,
                               .size = range->size,
                               .context = range->context,
                               .buffer_id = range->buffer_id,
                               .flags = TPC_MADE_TWIN,
                               .detail = host};
    const bool apart = twin != range->start;
    bool made = false;
    tp_lock_take(&pushing);
    tp_lock_take(&lock);
    if (!host->twin && shadow && (!apart || tpc_range_insert(&device))) {
        host->shadow = shadow;
        host->twin = twin;
        TP_PUSH(twins, host);
        made = true;
        /* Another thread that finds the twin counts on all of this. */
        atomic_fetch_add(&tpc_twins, 1);
        tpc_range_change(range->start, set_device_address, twin);
        if (!apart) {
            tpc_unreached_remove(range);
        }
    }
    bool there = host->twin != 0;
    tp_lock_drop(&lock);
    if (made && host->size > TP_TWIN_PIECE) {
        host->tracked = tpc_written_begin((uint64_t)(uintptr_t)host->memory, host->size, host->mapped != 0);
    }
    tp_lock_drop(&pushing);
    if (!made) {
        tpc_post_host_twin_free("cuMemHostGetDevicePointer", twin);
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
    TPC_TRY(range.device_address ? CUDA_SUCCESS : make_twin(&range, host));
    tp_lock_take(&lock);
    *out = host->twin + (address - range.start);
    tp_lock_drop(&lock);
    return CUDA_SUCCESS;
}

void tpc_host_end(struct tpc_host *host) {
    tp_lock_take(&pushing);
    tp_lock_take(&lock);
    uint64_t twin = host->twin;
    TP_UNLINK(twins, host);
    tp_lock_drop(&lock);
    if (host->tracked) {
        tpc_written_over((uint64_t)(uintptr_t)host->memory, host->size);
    }
    tp_lock_drop(&pushing);
    if (twin) {
        atomic_fetch_sub(&tpc_twins, 1);
        if (twin != (uint64_t)(uintptr_t)host->memory) {
            tpc_range_remove(twin, NULL);
        }
        tpc_post_host_twin_free("cuMemFreeHost", twin);
    }
    free(host->shadow);
    free(host);
}
