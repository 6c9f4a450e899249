/*
 * Handles of event sets and samples: what the session calls them, and which of them are alive.
 *
 * Any thread. Each kind has a table of as many places as a program may hold objects. A place has a generation, so that a freed
 * object is not taken for a new one.
 */
#include "tpn.h"

static struct tp_lock lock;
static struct {
    uint32_t generation; /* 12 bits, from 1 */
    bool alive;
} places[2][TP_NVML_PLACES];

_Static_assert(TPG_NVMLSAMPLE == TPG_NVMLEVENTS + 1, "the kinds of which there are tables");
static uint32_t table_of(uint32_t kind) { return kind - TPG_NVMLEVENTS; }

void tpn_handles_reset(void) {
    lock = (struct tp_lock){0};
    memset(places, 0, sizeof places);
}

static uint64_t handle_of(uint32_t kind, uint32_t index) {
    return tp_handle_make(kind, places[table_of(kind)][index].generation << TP_INDEX_BITS | index);
}

/* The lock is held. */
static bool find(uint32_t kind, uint64_t handle, uint32_t *index) {
    *index = tp_id_index(tp_handle_id(handle));
    return tp_handle_is(handle, kind) && *index < TP_NVML_PLACES && places[table_of(kind)][*index].alive &&
           handle_of(kind, *index) == handle;
}

uint64_t tpn_mint(uint32_t kind) {
    uint64_t handle = 0;
    tp_lock_take(&lock);
    for (uint32_t i = 0; i < TP_NVML_PLACES && !handle; i++) {
        if (!places[table_of(kind)][i].alive) {
            places[table_of(kind)][i].alive = true;
            places[table_of(kind)][i].generation = places[table_of(kind)][i].generation % 0xfff + 1;
            handle = handle_of(kind, i);
        }
    }
    tp_lock_drop(&lock);
    return handle;
}

void tpn_unmint(uint32_t kind, uint64_t handle) {
    uint32_t index;
    tp_lock_take(&lock);
    if (find(kind, handle, &index)) {
        places[table_of(kind)][index].alive = false;
    }
    tp_lock_drop(&lock);
}

bool tpn_handle_alive(uint32_t kind, uint64_t handle) {
    uint32_t index;
    if (kind == TPG_NVMLDEVICE) {
        return tpn_device_index((nvmlDevice_t)(uintptr_t)handle, NULL);
    }
    tp_lock_take(&lock);
    bool found = find(kind, handle, &index);
    tp_lock_drop(&lock);
    return found;
}
