/*
 * The quota page of tp_quota.h.
 *
 * Owns nothing; the page belongs to the supervisor. Entered by the executor of each session and by the supervisor's main
 * thread, in different processes at once. Only those processes can write the page, but row and device are bounded all the
 * same: a wrong one would write outside the mapping. Sums are relaxed atomics: each field is a plain count that guards no
 * other memory.
 */
#include "tp_quota.h"

enum { FIELD_MAGIC = 0, FIELD_LIMIT = 1, FIELD_IMAGES = 3, FIELD_DEVICES = 64 / 8, FIELD_ROWS = 4096 / 8 };
enum { FIELD_FIGURES = FIELD_ROWS + TP_QUOTA_DEVICES * TP_QUOTA_ROWS, FIGURES = 5, CELLS = 8 };
/* Behind the figures, what the supervisor says of a row: its tenant's limit; its tenant's number, from 1; and the worker's number
 * of each of its devices, four bits for each, 0 where they are the same. */
enum { CELL_LIMIT = FIGURES, CELL_TENANT, CELL_DEVICES };
enum { FIELD_TENANTS = FIELD_FIGURES + CELLS * TP_QUOTA_ROWS };

_Static_assert(TP_QUOTA_SIZE == 8 * (FIELD_TENANTS + TP_QUOTA_DEVICES * TP_QUOTA_ROWS), "quota page");

static _Atomic uint64_t *field(void *page, size_t index) { return (_Atomic uint64_t *)page + index; }

static _Atomic uint64_t *device_total(void *page, uint32_t device) { return field(page, FIELD_DEVICES + device); }

static _Atomic uint64_t *row_cell(void *page, uint32_t row, uint32_t device) {
    return field(page, FIELD_ROWS + (size_t)row * TP_QUOTA_DEVICES + device);
}

static _Atomic uint64_t *about(void *page, uint32_t row, uint32_t cell) {
    return field(page, FIELD_FIGURES + (size_t)row * CELLS + cell);
}

/* The worker's number of a device of the row. */
static uint32_t of_worker(void *page, uint32_t row, uint32_t device) {
    const uint64_t numbers = atomic_load_explicit(about(page, row, CELL_DEVICES), memory_order_relaxed);
    return numbers ? (uint32_t)(numbers >> (4 * device)) & (TP_QUOTA_DEVICES - 1) : device;
}

/* What the row's tenant has reserved on a device of the worker; NULL for a row without a tenant. */
static _Atomic uint64_t *tenant_total(void *page, uint32_t row, uint32_t device) {
    const uint64_t tenant = atomic_load_explicit(about(page, row, CELL_TENANT), memory_order_relaxed);
    return tenant - 1 < TP_QUOTA_ROWS ? field(page, FIELD_TENANTS + (tenant - 1) * TP_QUOTA_DEVICES + device) : NULL;
}

static uint64_t tenant_limit(void *page, uint32_t row) {
    return atomic_load_explicit(about(page, row, CELL_LIMIT), memory_order_relaxed);
}

static uint64_t worker_limit(void *page) {
    return atomic_load_explicit(field(page, FIELD_LIMIT), memory_order_relaxed);
}

static bool valid(uint32_t row, uint32_t device) { return row < TP_QUOTA_ROWS && device < TP_QUOTA_DEVICES; }

static uint64_t subtract_at_most(_Atomic uint64_t *count, uint64_t bytes) {
    uint64_t held = atomic_load_explicit(count, memory_order_relaxed);
    uint64_t taken;
    do {
        taken = bytes < held ? bytes : held;
    } while (
        !atomic_compare_exchange_weak_explicit(count, &held, held - taken, memory_order_relaxed, memory_order_relaxed));
    return taken;
}

static bool add_below(_Atomic uint64_t *total, uint64_t bytes, uint64_t limit) {
    uint64_t used = atomic_load_explicit(total, memory_order_relaxed);
    do {
        if (bytes > UINT64_MAX - used || (limit && (used > limit || bytes > limit - used))) {
            return false;
        }
    } while (
        !atomic_compare_exchange_weak_explicit(total, &used, used + bytes, memory_order_relaxed, memory_order_relaxed));
    return true;
}

bool tp_quota_reserve(void *page, uint32_t row, uint32_t device, uint64_t bytes) {
    if (!valid(row, device)) {
        return false;
    }
    device = of_worker(page, row, device);
    /* The tenant's first: what is added and taken back at once can make another request fail, and then only one of its own. */
    _Atomic uint64_t *tenant = tenant_total(page, row, device);
    if (tenant && !add_below(tenant, bytes, tenant_limit(page, row))) {
        return false;
    }
    if (!add_below(device_total(page, device), bytes, worker_limit(page))) {
        if (tenant) {
            subtract_at_most(tenant, bytes);
        }
        return false;
    }
    atomic_fetch_add_explicit(row_cell(page, row, device), bytes, memory_order_relaxed);
    return true;
}

void tp_quota_take_over(void *page, uint32_t row, uint32_t device, uint64_t bytes) {
    if (valid(row, device)) {
        device = of_worker(page, row, device);
        _Atomic uint64_t *const sums[] = {device_total(page, device), row_cell(page, row, device),
                                          tenant_total(page, row, device)};
        for (size_t i = 0; i < 3 && sums[i]; i++) {
            atomic_fetch_add_explicit(sums[i], bytes, memory_order_relaxed);
        }
    }
}

/* Takes what the row holds of `bytes` off all sums; the device is the worker's. */
static void take_back(void *page, uint32_t row, uint32_t device, uint64_t bytes) {
    _Atomic uint64_t *tenant = tenant_total(page, row, device);
    const uint64_t held = subtract_at_most(row_cell(page, row, device), bytes);
    subtract_at_most(device_total(page, device), held);
    if (tenant) {
        subtract_at_most(tenant, held);
    }
}

void tp_quota_free(void *page, uint32_t row, uint32_t device, uint64_t bytes) {
    if (valid(row, device)) {
        take_back(page, row, of_worker(page, row, device), bytes);
    }
}

void tp_quota_release(void *page, uint32_t row) {
    if (row >= TP_QUOTA_ROWS) {
        return;
    }
    for (uint32_t device = 0; device < TP_QUOTA_DEVICES; device++) {
        take_back(page, row, device, UINT64_MAX);
    }
    for (uint32_t cell = 0; cell < CELLS; cell++) {
        atomic_store_explicit(about(page, row, cell), 0, memory_order_relaxed);
    }
}

void tp_quota_tell(void *page, uint32_t row, const struct tp_figures *figures) {
    if (row >= TP_QUOTA_ROWS) {
        return;
    }
    uint64_t contexts = 0;
    for (uint32_t device = 0; device < TP_QUOTA_DEVICES; device++) {
        contexts |= (figures->contexts >> device & 1) << of_worker(page, row, device);
    }
    const uint64_t values[FIGURES] = {figures->frames, figures->calls, figures->received, figures->sent, contexts};
    for (uint32_t i = 0; i < FIGURES; i++) {
        atomic_store_explicit(about(page, row, i), values[i], memory_order_relaxed);
    }
}

uint64_t tp_quota_limit(void *page, uint32_t row) {
    const uint64_t all = worker_limit(page), own = row < TP_QUOTA_ROWS ? tenant_limit(page, row) : 0;
    return !own || (all && all < own) ? all : own;
}

uint64_t tp_quota_used(void *page, uint32_t row, uint32_t device) {
    if (!valid(row, device)) {
        return 0;
    }
    device = of_worker(page, row, device);
    const uint64_t limit = tp_quota_limit(page, row), all = worker_limit(page), own = tenant_limit(page, row);
    const uint64_t used = atomic_load_explicit(device_total(page, device), memory_order_relaxed);
    _Atomic uint64_t *tenant = tenant_total(page, row, device);
    uint64_t left = !all ? UINT64_MAX : used < all ? all - used : 0;
    if (own && tenant) {
        const uint64_t of_it = atomic_load_explicit(tenant, memory_order_relaxed);
        const uint64_t rest = of_it < own ? own - of_it : 0;
        left = rest < left ? rest : left;
    }
    return !limit ? used : left < limit ? limit - left : 0;
}

uint64_t tp_quota_images(void *page) { return atomic_load_explicit(field(page, FIELD_IMAGES), memory_order_relaxed); }

void tp_quota_images_are(void *page, uint64_t bytes) {
    atomic_store_explicit(field(page, FIELD_IMAGES), bytes, memory_order_relaxed);
}

void tp_quota_images_grow(void *page, uint64_t bytes) {
    atomic_fetch_add_explicit(field(page, FIELD_IMAGES), bytes, memory_order_relaxed);
}
