/*
 * The quota page of tp_quota.h.
 *
 * Owns nothing; the page belongs to the supervisor. Entered by the executor of each session, and where images are stored by one more
 * thread of it, in different processes at once. Other sessions write the cells that are read here, and one that was taken over
 * writes into its own what it likes: a sum stops at the largest number, so that it does not come out small.
 *
 * A reservation adds to the own cell, and then looks at all cells. Both are sequentially consistent: of two sessions that do so at
 * once, at least one sees what the other has added. Everything else is a plain count that guards no other memory, and relaxed.
 */
#include "tp_quota.h"

#include <errno.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

enum { FIELD_LIMIT = 1, FIELD_ROWS = 3, FIELD_STORED = 4, FIELD_TABLE = 4096 / 8, FIELD_CELLS = TP_QUOTA_CELLS / 8 };
/* What the supervisor says of a row: its tenant's limit; its tenant's number, from 1; and the worker's number of each of its
 * devices, four bits for each, 0 where they are the same. */
enum { ABOUT_LIMIT, ABOUT_TENANT, ABOUT_DEVICES, ABOUT = 4 };
/* A cell begins with what is reserved on each device. */
enum { CELL_FIGURES = TP_QUOTA_DEVICES, FIGURES = 5, CELL_STORED = CELL_FIGURES + FIGURES, CELL = TP_QUOTA_CELL / 8 };

_Static_assert(FIELD_CELLS == FIELD_TABLE + ABOUT * TP_QUOTA_ROWS && FIELD_CELLS % CELL == 0, "quota page");

#define MSEAL 462 /* of Linux 6.10, for C libraries that are older */
#define TURNS 100 /* of a reservation that meets others at the limit */

static uint64_t load(const struct tp_quota *quota, size_t index) {
    return atomic_load_explicit((const _Atomic uint64_t *)quota->page + index, memory_order_seq_cst);
}

static uint64_t about(const struct tp_quota *quota, uint32_t row, uint32_t what) {
    return load(quota, FIELD_TABLE + (size_t)row * ABOUT + what);
}

static uint64_t in_cell(const struct tp_quota *quota, uint32_t row, uint32_t what) {
    return load(quota, FIELD_CELLS + (size_t)row * CELL + what);
}

static _Atomic uint64_t *own(const struct tp_quota *quota, uint32_t what) {
    return (_Atomic uint64_t *)quota->cell + what;
}

/* Behind the last one, no session has begun. */
static uint32_t rows(const struct tp_quota *quota) {
    const uint64_t begun = load(quota, FIELD_ROWS);
    return begun < TP_QUOTA_ROWS ? (uint32_t)begun : TP_QUOTA_ROWS;
}

/* The worker's number of a device of the session. */
static uint32_t of_worker(const struct tp_quota *quota, uint32_t device) {
    const uint64_t numbers = about(quota, quota->row, ABOUT_DEVICES);
    return numbers ? (uint32_t)(numbers >> (4 * device)) & (TP_QUOTA_DEVICES - 1) : device;
}

static uint64_t sum(uint64_t a, uint64_t b) { return b < UINT64_MAX - a ? a + b : UINT64_MAX; }
static uint64_t rest(uint64_t limit, uint64_t used) { return used < limit ? limit - used : 0; }

/* What is left on a device of the worker, under the worker's limit and the tenant's; may be less than nothing. */
struct left {
    uint64_t used;  /* by all sessions */
    uint64_t bytes; /* left under every limit there is */
    bool passed;    /* more is in use than a limit says */
};

static struct left look(const struct tp_quota *quota, uint32_t device) {
    const uint64_t all = load(quota, FIELD_LIMIT), tenants = about(quota, quota->row, ABOUT_LIMIT);
    const uint64_t tenant = tenants ? about(quota, quota->row, ABOUT_TENANT) : 0;
    struct left left = {.bytes = UINT64_MAX};
    uint64_t used = 0; /* by the tenant */
    for (uint32_t row = 0, count = rows(quota); row < count; row++) {
        const uint64_t held = in_cell(quota, row, device);
        left.used = sum(left.used, held);
        if (tenant && about(quota, row, ABOUT_TENANT) == tenant) {
            used = sum(used, held);
        }
    }
    if (all) {
        left.bytes = rest(all, left.used);
        left.passed = left.used > all;
    }
    if (tenant) {
        left.bytes = rest(tenants, used) < left.bytes ? rest(tenants, used) : left.bytes;
        left.passed = left.passed || used > tenants;
    }
    return left;
}

static uint64_t subtract_at_most(_Atomic uint64_t *count, uint64_t bytes) {
    uint64_t held = atomic_load_explicit(count, memory_order_relaxed);
    uint64_t taken;
    do {
        taken = bytes < held ? bytes : held;
    } while (
        !atomic_compare_exchange_weak_explicit(count, &held, held - taken, memory_order_relaxed, memory_order_relaxed));
    return taken;
}

bool tp_quota_map(struct tp_quota *quota, int page, int cells, uint32_t row) {
    if (row >= TP_QUOTA_ROWS) {
        errno = EINVAL;
        return false;
    }
    void *all = mmap(NULL, TP_QUOTA_SIZE, PROT_READ, MAP_SHARED, page, 0);
    void *cell = mmap(NULL, TP_QUOTA_CELL, PROT_READ | PROT_WRITE, MAP_SHARED, cells,
                      (off_t)(TP_QUOTA_CELLS + (size_t)row * TP_QUOTA_CELL));
    *quota = (struct tp_quota){.page = all, .cell = cell, .row = row};
    if (all == MAP_FAILED || cell == MAP_FAILED) {
        return false;
    }
    /* So that it cannot grow into its neighbours; where the kernel is older, only the full jail's filter keeps it from that. */
    (void)syscall(MSEAL, cell, TP_QUOTA_CELL, 0);
    return true;
}

bool tp_quota_reserve(const struct tp_quota *quota, uint32_t device, uint64_t bytes) {
    if (!quota || device >= TP_QUOTA_DEVICES) {
        return !quota;
    }
    device = of_worker(quota, device);
    _Atomic uint64_t *held = own(quota, device);
    if (bytes > UINT64_MAX - atomic_load_explicit(held, memory_order_relaxed)) {
        return false;
    }
    if (!tp_quota_limit(quota)) {
        atomic_fetch_add_explicit(held, bytes, memory_order_seq_cst);
        return true;
    }
    /* Looked at before, too, so that a request that cannot be met is never in the way of others. */
    for (int turn = 0; turn < TURNS; turn++) {
        const struct left before = look(quota, device);
        if (before.passed || bytes > before.bytes) {
            return false;
        }
        atomic_fetch_add_explicit(held, bytes, memory_order_seq_cst);
        if (!look(quota, device).passed) {
            return true;
        }
        atomic_fetch_sub_explicit(held, bytes, memory_order_seq_cst);
        sched_yield(); /* another one has added as well, and takes it back, or keeps it: then the next look says so */
    }
    return false;
}

void tp_quota_take_over(const struct tp_quota *quota, uint32_t device, uint64_t bytes) {
    if (quota && device < TP_QUOTA_DEVICES) {
        atomic_fetch_add_explicit(own(quota, of_worker(quota, device)), bytes, memory_order_seq_cst);
    }
}

void tp_quota_free(const struct tp_quota *quota, uint32_t device, uint64_t bytes) {
    if (quota && device < TP_QUOTA_DEVICES) {
        subtract_at_most(own(quota, of_worker(quota, device)), bytes);
    }
}

void tp_quota_tell(const struct tp_quota *quota, const struct tp_figures *figures) {
    uint64_t contexts = 0;
    for (uint32_t device = 0; device < TP_QUOTA_DEVICES; device++) {
        contexts |= (figures->contexts >> device & 1) << of_worker(quota, device);
    }
    const uint64_t values[FIGURES] = {figures->frames, figures->calls, figures->received, figures->sent, contexts};
    for (uint32_t i = 0; i < FIGURES; i++) {
        atomic_store_explicit(own(quota, CELL_FIGURES + i), values[i], memory_order_relaxed);
    }
}

uint64_t tp_quota_limit(const struct tp_quota *quota) {
    if (!quota) {
        return 0;
    }
    const uint64_t all = load(quota, FIELD_LIMIT), tenants = about(quota, quota->row, ABOUT_LIMIT);
    return !tenants || (all && all < tenants) ? all : tenants;
}

uint64_t tp_quota_used(const struct tp_quota *quota, uint32_t device) {
    if (!quota || device >= TP_QUOTA_DEVICES) {
        return 0;
    }
    const struct left left = look(quota, of_worker(quota, device));
    const uint64_t limit = tp_quota_limit(quota);
    return limit ? rest(limit, left.bytes) : left.used;
}

uint64_t tp_quota_stored(const struct tp_quota *quota) {
    uint64_t stored = load(quota, FIELD_STORED);
    for (uint32_t row = 0, count = rows(quota); row < count; row++) {
        stored += in_cell(quota, row, CELL_STORED);
    }
    return stored;
}

void tp_quota_store(const struct tp_quota *quota, uint64_t bytes) {
    atomic_fetch_add_explicit(own(quota, CELL_STORED), bytes, memory_order_relaxed);
}
