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
enum { FIELD_FIGURES = FIELD_ROWS + TP_QUOTA_DEVICES * TP_QUOTA_ROWS, FIGURES = 8 };

_Static_assert(TP_QUOTA_SIZE == 8 * (FIELD_FIGURES + FIGURES * TP_QUOTA_ROWS), "quota page");

static _Atomic uint64_t *field(void *page, size_t index) { return (_Atomic uint64_t *)page + index; }

static _Atomic uint64_t *device_total(void *page, uint32_t device) { return field(page, FIELD_DEVICES + device); }

static _Atomic uint64_t *row_cell(void *page, uint32_t row, uint32_t device) {
    return field(page, FIELD_ROWS + (size_t)row * TP_QUOTA_DEVICES + device);
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

bool tp_quota_reserve(void *page, uint32_t row, uint32_t device, uint64_t bytes) {
    if (!valid(row, device)) {
        return false;
    }
    uint64_t limit = tp_quota_limit(page);
    _Atomic uint64_t *total = device_total(page, device);
    uint64_t used = atomic_load_explicit(total, memory_order_relaxed);
    do {
        if (bytes > UINT64_MAX - used || (limit && (used > limit || bytes > limit - used))) {
            return false;
        }
    } while (
        !atomic_compare_exchange_weak_explicit(total, &used, used + bytes, memory_order_relaxed, memory_order_relaxed));
    atomic_fetch_add_explicit(row_cell(page, row, device), bytes, memory_order_relaxed);
    return true;
}

void tp_quota_take_over(void *page, uint32_t row, uint32_t device, uint64_t bytes) {
    if (valid(row, device)) {
        atomic_fetch_add_explicit(device_total(page, device), bytes, memory_order_relaxed);
        atomic_fetch_add_explicit(row_cell(page, row, device), bytes, memory_order_relaxed);
    }
}

void tp_quota_free(void *page, uint32_t row, uint32_t device, uint64_t bytes) {
    if (valid(row, device)) {
        uint64_t held = subtract_at_most(row_cell(page, row, device), bytes);
        subtract_at_most(device_total(page, device), held);
    }
}

void tp_quota_release(void *page, uint32_t row) {
    if (row >= TP_QUOTA_ROWS) {
        return;
    }
    for (uint32_t device = 0; device < TP_QUOTA_DEVICES; device++) {
        uint64_t held = atomic_exchange_explicit(row_cell(page, row, device), 0, memory_order_relaxed);
        subtract_at_most(device_total(page, device), held);
    }
    tp_quota_tell(page, row, &(struct tp_figures){0});
}

void tp_quota_tell(void *page, uint32_t row, const struct tp_figures *figures) {
    const uint64_t values[FIGURES] = {figures->frames, figures->calls, figures->received, figures->sent,
                                      figures->contexts};
    for (uint32_t i = 0; row < TP_QUOTA_ROWS && i < FIGURES; i++) {
        atomic_store_explicit(field(page, FIELD_FIGURES + (size_t)row * FIGURES + i), values[i], memory_order_relaxed);
    }
}

uint64_t tp_quota_used(void *page, uint32_t device) {
    return device < TP_QUOTA_DEVICES ? atomic_load_explicit(device_total(page, device), memory_order_relaxed) : 0;
}

uint64_t tp_quota_limit(void *page) { return atomic_load_explicit(field(page, FIELD_LIMIT), memory_order_relaxed); }

uint64_t tp_quota_images(void *page) { return atomic_load_explicit(field(page, FIELD_IMAGES), memory_order_relaxed); }

void tp_quota_images_are(void *page, uint64_t bytes) {
    atomic_store_explicit(field(page, FIELD_IMAGES), bytes, memory_order_relaxed);
}

void tp_quota_images_grow(void *page, uint64_t bytes) {
    atomic_fetch_add_explicit(field(page, FIELD_IMAGES), bytes, memory_order_relaxed);
}
