/*
 * Managed memory: one address for the program and the device, and bytes that are where they are used.
 *
 * An allocation is device memory of the worker at an address that this process keeps free, with pages of this process at the same
 * address. The contract is that of concurrentManagedAccess = 0: the program touches the memory while the GPU does not use it. So before
 * work of the GPU that may use it, pages that the program could touch are taken away, and what it wrote is sent (take); a touch of
 * a page that is away waits for the GPU, if that works against the contract, and fetches (touch). Pieces of 64 KiB come and go
 * together; touches in a row fetch more and more of them at once. We read and write the pages through a second mapping, so no
 * thread of the program ever sees half of what comes.
 *
 * The server is the one thread that changes pieces and protections. It asks the worker by frames that report no errors of the
 * program's, in a stream of its own that waits for nothing. Before a touch it has been waited for what the GPU does, by another
 * thread: a host function that touches such memory must not wait for that. A failure is never data: a touch that cannot be served
 * is a segmentation fault with a sentence, and work whose data cannot be sent is refused.
 */
#include "tpc_managed.h"
#include "tpc_stream.h"
#include "tpg_cuda_send.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define NAME "managed memory"
#define RUN_MOST (8u << 20) / TPC_PIECE /* pieces that one touch fetches at most */
#define TRIES 3                         /* of a copy beside which some post has failed, ours or another */

_Atomic uint32_t tpc_managed_open;

static struct tpc_managed *opened;             /* the server's: those with pieces that are not away */
static _Atomic bool opened_inside;             /* by host functions, since one was last over */
static _Atomic uint64_t own_frames;            /* counted when they have been sent */
static _Atomic uint64_t quiet_at = UINT64_MAX; /* frames of others when the GPU was last known to do nothing */

/* ---- asking the worker ---- */

static uint64_t frames_of_others(void) { return tp_frames(tpc_conn) - atomic_load(&own_frames); }

/* The calling thread's frames belong to it from here on. */
static void enter(const struct tpc_context *context) { tp_thread_self()->context = tp_handle_id(context->handle); }

/* Waits for the stream, NULL = for everything, as a thread that reports no errors of the program's. */
static CUresult wait_for(const struct tpc_context *context, CUstream stream) {
    struct tp_reply reply;
    enter(context);
    CUresult result = tpc_call_managed_wait(NAME, (uint64_t)(uintptr_t)stream, &reply);
    atomic_fetch_add(&own_frames, 1);
    tp_reply_free(&reply);
    return result;
}

CUresult tpc_managed_settle(const struct tpc_managed *m) {
    struct tp_reply reply;
    enter(m->context);
    CUresult result = tpc_call_managed_settle(NAME, (uint64_t)(uintptr_t)m->beside, &reply);
    atomic_fetch_add(&own_frames, 1);
    tp_reply_free(&reply);
    return result;
}

static CUresult send(struct tpc_managed *m, uint64_t offset, uint64_t size) {
    const uint64_t to = m->start + offset, stream = (uint64_t)(uintptr_t)m->beside;
    CUresult result = CUDA_SUCCESS;
    if (size <= TP_INLINE_MAX) {
        struct tpg_managed_in_in in = {
            .area = tpc_line(to, size), .stream = stream, .data = m->alias + offset, .data_size = size};
        result = tpc_post_managed_in(NAME, &in);
    } else if (tp_data_ready(tpc_conn) != TP_OK) {
        return tpc_lost();
    } else {
        struct tpg_managed_in_bulk_in in = {.area = tpc_line(to, size), .stream = stream};
        result = tpc_post_managed_in_bulk(NAME, &in, m->alias + offset, size);
        if (result == CUDA_SUCCESS && tp_upload_wait(tpc_conn, in.transfer) != TP_OK) {
            result = tpc_lost();
        }
    }
    atomic_fetch_add(&own_frames, 1);
    return result;
}

static CUresult receive(struct tpc_managed *m, uint64_t offset, uint64_t size) {
    struct tpg_managed_out_in in = {.area = tpc_line(m->start + offset, size),
                                    .stream = (uint64_t)(uintptr_t)m->beside};
    if (size > TP_INLINE_MAX && tp_data_ready(tpc_conn) != TP_OK) {
        return tpc_lost();
    }
    CUresult result = tpc_post_managed_out(NAME, &in, m->alias + offset, size);
    atomic_fetch_add(&own_frames, 1);
    return result;
}

/* All of a stretch, or of a block of variables those in it. */
static CUresult move(struct tpc_managed *m, uint64_t from, uint64_t to,
                     CUresult (*how)(struct tpc_managed *m, uint64_t offset, uint64_t size)) {
    CUresult result = m->block ? how(m, from, to - from) : CUDA_SUCCESS;
    for (const struct tpc_variable *v = m->variables; v && result == CUDA_SUCCESS; v = v->next) {
        const uint64_t offset = v->start - m->start, end = offset + v->size < to ? offset + v->size : to;
        const uint64_t begin = offset > from ? offset : from;
        result = begin < end ? how(m, begin, end - begin) : CUDA_SUCCESS;
    }
    return result;
}

/* ---- pieces ---- */

static uint64_t offset_of(const struct tpc_managed *m, size_t piece) {
    const uint64_t offset = (uint64_t)piece * TPC_PIECE;
    return offset < m->mapped ? offset : m->mapped;
}

/* The pieces from `first` on, `count` of them. */
static bool protect(struct tpc_managed *m, size_t first, size_t count, int protection) {
    const uint64_t begin = offset_of(m, first), end = offset_of(m, first + count);
    return mprotect((void *)(uintptr_t)(m->start + begin), end - begin, protection) == 0;
}

static void set(struct tpc_managed *m, size_t first, size_t count, enum tpc_piece state) {
    for (size_t i = first; i < first + count; i++) {
        m->open += (state != TPC_AWAY) - (m->pieces[i] != TPC_AWAY);
        m->pieces[i] = (unsigned char)state;
    }
    const bool listed = m->here != NULL;
    if (m->open && !listed) {
        m->after = opened;
        m->here = &opened;
        if (opened) {
            opened->here = &m->after;
        }
        opened = m;
    } else if (!m->open && listed) {
        *m->here = m->after;
        if (m->after) {
            m->after->here = m->here;
        }
        m->here = NULL;
    }
    const bool counts = m->open != 0;
    if (counts != m->counted) {
        m->counted = counts;
        atomic_fetch_add(&tpc_managed_open, counts ? 1u : -1u);
    }
}

/* How many from `first` on, up to `most`, have that state. */
static size_t run_of(const struct tpc_managed *m, size_t first, size_t most, enum tpc_piece state) {
    size_t count = 0;
    while (count < most && first + count < m->count && m->pieces[first + count] == state) {
        count++;
    }
    return count;
}

/* ---- the GPU is to use it ---- */

/* Of fresh memory only what was touched: the rest is 0 on both sides. */
static CUresult send_touched(struct tpc_managed *m, uint64_t from, uint64_t to) {
    CUresult result = CUDA_SUCCESS;
    while (from < to && result == CUDA_SUCCESS) {
        uint64_t begin = from, end = to;
        if (!tpc_window_data(m, &begin, &end)) {
            break;
        }
        result = send(m, begin, end - begin);
        from = end;
    }
    return result;
}

static CUresult send_written(struct tpc_managed *m, bool *any) {
    CUresult result = CUDA_SUCCESS;
    for (size_t i = 0, count; i < m->count && result == CUDA_SUCCESS; i += count) {
        count = run_of(m, i, m->count, TPC_DIRTY);
        if (!count) {
            count = 1;
            continue;
        }
        *any = true;
        const uint64_t from = offset_of(m, i), to = offset_of(m, i + count);
        result = m->fresh ? send_touched(m, from, to) : move(m, from, to, send);
    }
    return result;
}

/* Everything of it goes to the device. What failed stays the program's: its next touch opens it again. */
static CUresult take(struct tpc_managed *m) {
    if (!m->open) {
        return CUDA_SUCCESS;
    }
    tpc_managed_guard();
    if (!protect(m, 0, m->count, PROT_NONE)) {
        tp_log(TP_ERROR, "%llu bytes of managed memory cannot be taken from the program: %s",
               (unsigned long long)m->mapped, strerror(errno));
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    CUresult result = CUDA_SUCCESS;
    for (int i = 0; i < TRIES; i++) {
        const uint64_t failures = tpc_count(&tpc_counts.failures);
        bool any = false;
        enter(m->context);
        result = send_written(m, &any);
        if (any && result == CUDA_SUCCESS) {
            result = tpc_managed_settle(m);
        }
        TPC_TRY(result);
        if (tpc_count(&tpc_counts.failures) == failures) {
            set(m, 0, m->count, TPC_AWAY);
            m->fresh = false;
            return CUDA_SUCCESS;
        }
    }
    return CUDA_ERROR_UNKNOWN;
}

/* All that is open, whatever it is attached to: a kernel that may not use it, and does, natively sees what is there all the same where the
 * device has concurrent access. Attachment only says what a touch waits for.
 * At the end of a host function: what no work that stands behind it may use stays, since it was allocated after all of that. */
static CUresult leave(bool inside) {
    CUresult result = CUDA_SUCCESS;
    for (struct tpc_managed *m = opened, *after; m && result == CUDA_SUCCESS; m = after) {
        after = m->after;
        result = inside && m->fresh ? CUDA_SUCCESS : take(m);
    }
    return result;
}

/* ---- the program touches it ---- */

static CUresult fetch(struct tpc_managed *m, size_t first, size_t count) {
    CUresult result = CUDA_SUCCESS;
    for (int i = 0; i < TRIES; i++) {
        const uint64_t failures = tpc_count(&tpc_counts.failures), from = offset_of(m, first);
        enter(m->context);
        result = move(m, from, offset_of(m, first + count), receive);
        result = result ? result : tpc_managed_settle(m);
        if (result != CUDA_SUCCESS || tpc_count(&tpc_counts.failures) == failures) {
            return result;
        }
    }
    return CUDA_ERROR_UNKNOWN;
}

/* The kernel has no more room for mappings of different rights: all of it becomes one. */
static CUresult open_all(struct tpc_managed *m) {
    for (size_t i = 0, count; i < m->count; i += count) {
        count = run_of(m, i, RUN_MOST, TPC_AWAY);
        TPC_TRY(count ? fetch(m, i, count) : CUDA_SUCCESS);
        set(m, i, count, TPC_CLEAN);
        count += !count;
    }
    set(m, 0, m->count, TPC_DIRTY);
    return protect(m, 0, m->count, PROT_READ | PROT_WRITE) ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

static CUresult open_run(struct tpc_managed *m, size_t first, size_t count, bool write) {
    if (!protect(m, first, count, write ? PROT_READ | PROT_WRITE : PROT_READ)) {
        return open_all(m);
    }
    set(m, first, count, write ? TPC_DIRTY : TPC_CLEAN);
    return CUDA_SUCCESS;
}

static CUresult touch(struct tpc_managed *m, uint64_t offset, bool write) {
    const size_t piece = offset / TPC_PIECE;
    const enum tpc_piece state = m->pieces[piece];
    if (state == TPC_DIRTY) { /* another thread was first, or it could not be taken */
        return open_run(m, piece, 1, true);
    }
    m->run = piece == m->next && m->run ? 2 * m->run : 1;
    m->run = m->run > RUN_MOST ? RUN_MOST : m->run;
    const size_t count = run_of(m, piece, m->run, state);
    m->next = piece + count;
    if (state == TPC_CLEAN) { /* then it was written */
        return open_run(m, piece, count, true);
    }
    CUresult result = fetch(m, piece, count);
    return result == CUDA_SUCCESS ? open_run(m, piece, count, write) : result;
}

/* The allocation whose pages hold the address. */
static struct tpc_managed *managed_at(uint64_t address) {
    struct tpc_range range;
    const uint64_t page = address & ~((uint64_t)sysconf(_SC_PAGESIZE) - 1);
    if (tpc_range_at(page, &range) && (range.flags & TPC_MADE_MASK) == TPC_MADE_MANAGED) {
        return range.detail;
    }
    struct tpc_managed *m = tpc_variables_at(address);
    return m ? m : tpc_managed_leaving(page);
}

static CUresult serve_touch(const struct tpc_request *request) {
    static _Atomic bool said;
    struct tpc_managed *m = managed_at(request->address);
    if (!m) {
        return CUDA_ERROR_INVALID_VALUE; /* a fault of the program's own */
    }
    CUresult result = touch(m, request->address - m->start, request->write);
    if (request->inside) {
        atomic_store(&opened_inside, true);
    }
    if (result != CUDA_SUCCESS) {
        tp_say_once(
            &said,
            "the program touches managed memory at 0x%llx, which the device has, and it cannot be fetched: error "
            "%d (%s). That is a segmentation fault",
            (unsigned long long)request->address, (int)result, tpg_cuda_error_name((int)result));
    }
    return result;
}

/* ---- allocations ---- */

static CUresult add(struct tpc_managed *m) {
    if (!protect(m, 0, m->count, PROT_READ | PROT_WRITE)) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    m->fresh = true;
    set(m, 0, m->count, TPC_DIRTY);
    return CUDA_SUCCESS;
}

static void drop(struct tpc_managed *m) {
    set(m, 0, m->count, TPC_AWAY);
    if (!protect(m, 0, m->count, PROT_NONE) || madvise(m->alias, m->mapped, MADV_REMOVE) != 0) {
        /* The pages are not given to anybody else in this process before they are zeroed. */
        tp_log(TP_WARN, "%llu bytes of managed memory that were freed stay in use here: %s",
               (unsigned long long)m->mapped, strerror(errno));
        memset(m->alias, 0, m->mapped);
    }
}

/* What its pages hold is fetched anew, with it. */
static CUresult add_variable(struct tpc_managed *m, struct tpc_variable *variable) {
    TPC_TRY(take(m));
    TP_PUSH(m->variables, variable);
    return CUDA_SUCCESS;
}

static void drop_variable(struct tpc_managed *m, uint64_t start) { free(TP_TAKE(m->variables, it->start == start)); }

static CUresult serve(struct tpc_request *request) {
    switch (request->wish) {
    case TPC_TOUCH:
        return serve_touch(request);
    case TPC_LEAVE:
        return leave(request->inside);
    case TPC_TAKE:
        return take(request->managed);
    case TPC_ADD:
        return add(request->managed);
    case TPC_REMOVE:
        drop(request->managed);
        return CUDA_SUCCESS;
    case TPC_VARIABLE:
        return add_variable(request->managed, request->variable);
    case TPC_VARIABLE_GONE:
        drop_variable(request->managed, request->address);
        return CUDA_SUCCESS;
    }
    return CUDA_ERROR_INVALID_VALUE;
}

/* ---- the two threads ---- */

void *tpc_managed_serve(void *unused) {
    (void)unused;
    tp_thread_self()->urgent = true; /* host functions wait for this thread */
    for (;;) {
        struct tpc_request *request = tpc_managed_next(false);
        tpc_managed_done(request, serve(request));
    }
    return NULL;
}

/* Until nothing of the GPU's is under way that may use the memory. */
static CUresult wait_for_gpu(uint64_t address) {
    struct tpc_range range;
    const struct tpc_managed *block = tpc_variables_at(address);
    if (block) {
        range = (struct tpc_range){.context = block->context};
    } else if (!tpc_range_at(address & ~((uint64_t)sysconf(_SC_PAGESIZE) - 1), &range) || !range.context ||
               (range.flags & TPC_MADE_MASK) != TPC_MADE_MANAGED) {
        return CUDA_SUCCESS; /* the server will say so */
    }
    /* Of memory that is attached: its stream. When that is gone: everything. */
    if (range.device_address && wait_for(range.context, (CUstream)(uintptr_t)range.device_address) == CUDA_SUCCESS) {
        return CUDA_SUCCESS;
    }
    const uint64_t others = frames_of_others();
    if (others == atomic_load(&quiet_at)) {
        return CUDA_SUCCESS;
    }
    TPC_TRY(wait_for(range.context, NULL));
    atomic_store(&quiet_at, others);
    return CUDA_SUCCESS;
}

void *tpc_managed_idle(void *unused) {
    (void)unused;
    tp_thread_self()->urgent = true;
    for (;;) {
        struct tpc_request *request = tpc_managed_next(true);
        CUresult result = wait_for_gpu(request->address);
        if (result == CUDA_SUCCESS) {
            tpc_managed_hand_on(request);
        } else {
            static _Atomic bool said;
            tp_say_once(&said, "the program touches managed memory at 0x%llx after error %d (%s): a segmentation fault",
                        (unsigned long long)request->address, (int)result, tpg_cuda_error_name((int)result));
            tpc_managed_done(request, result);
        }
    }
    return NULL;
}

/* ---- what other families ask for ---- */

CUresult tpc_managed_leave(void) {
    struct tpc_request request = {.wish = TPC_LEAVE};
    return tpc_managed_ask(&request);
}

CUresult tpc_managed_use(const struct tpc_range *range) {
    struct tpc_managed *m = range->detail;
    struct tpc_request request = {.wish = TPC_TAKE, .managed = m};
    return tpc_managed_ask(&request);
}

static void host_function_over(void) {
    /* What else is open, the work behind the function does not use: it was taken when that was queued. So a function that touched
     * nothing does not wait for the server, which may wait for the device, which may have what it waits for in one queue with
     * what waits for this function. */
    if (atomic_exchange(&opened_inside, false)) {
        struct tpc_request request = {.wish = TPC_LEAVE, .inside = true};
        tpc_managed_ask(&request);
    }
}
TP_REGISTER(tpc_host_function_over, host_function_over);
