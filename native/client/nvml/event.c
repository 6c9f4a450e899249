/*
 * Event sets. Tools make one, wait for it and free it; no device offers an event type, so a wait always runs out of time.
 *
 * Any thread. A set is one bit of a table of fixed size and has a generation, so that a freed set is not taken for a new one.
 */
#include "tpn.h"

#include <time.h>

#define SETS 1024u

static struct tp_lock lock;
static struct {
    uint32_t generation; /* 12 bits, from 1 */
    bool alive;
} sets[SETS];

void tpn_events_reset(void) {
    lock = (struct tp_lock){0};
    memset(sets, 0, sizeof sets);
}

static nvmlEventSet_t handle_of(uint32_t index) {
    return (nvmlEventSet_t)(uintptr_t)tp_handle_make(TPG_NVMLEVENTS, sets[index].generation << TP_INDEX_BITS | index);
}

/* The lock is held. */
static bool find(nvmlEventSet_t set, uint32_t *index) {
    uint64_t handle = (uint64_t)(uintptr_t)set;
    *index = tp_id_index(tp_handle_id(handle));
    return tp_handle_is(handle, TPG_NVMLEVENTS) && *index < SETS && sets[*index].alive && handle_of(*index) == set;
}

nvmlReturn_t tpn_nvmlEventSetCreate(nvmlEventSet_t *set) {
    if (!set) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    nvmlReturn_t result = NVML_ERROR_INSUFFICIENT_RESOURCES;
    tp_lock_take(&lock);
    for (uint32_t i = 0; i < SETS && result != NVML_SUCCESS; i++) {
        if (!sets[i].alive) {
            sets[i].alive = true;
            sets[i].generation = sets[i].generation % 0xfff + 1;
            *set = handle_of(i);
            result = NVML_SUCCESS;
        }
    }
    tp_lock_drop(&lock);
    return result;
}

nvmlReturn_t tpn_nvmlEventSetFree(nvmlEventSet_t set) {
    uint32_t index;
    tp_lock_take(&lock);
    bool found = find(set, &index);
    if (found) {
        sets[index].alive = false;
    }
    tp_lock_drop(&lock);
    return found ? NVML_SUCCESS : NVML_ERROR_INVALID_ARGUMENT;
}

nvmlReturn_t tpn_nvmlEventSetWait_v2(nvmlEventSet_t set, nvmlEventData_t *data, unsigned int timeoutms) {
    uint32_t index;
    tp_lock_take(&lock);
    bool found = data && find(set, &index);
    tp_lock_drop(&lock);
    if (!found) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    uint64_t end = tp_now_ns() + timeoutms * 1000000ull;
    for (uint64_t now; (now = tp_now_ns()) < end;) {
        uint64_t left = end - now, slice = left < 100000000 ? left : 100000000;
        nanosleep(&(struct timespec){.tv_nsec = (long)slice}, NULL);
        nvmlReturn_t ready = tpn_ready();
        if (ready != NVML_SUCCESS) {
            return ready;
        }
    }
    return NVML_ERROR_TIMEOUT;
}

nvmlReturn_t tpn_nvmlEventSetWait(nvmlEventSet_t set, nvmlEventData_t *data, unsigned int timeoutms) {
    return tpn_nvmlEventSetWait_v2(set, data, timeoutms);
}

nvmlReturn_t tpn_nvmlDeviceGetSupportedEventTypes(nvmlDevice_t device, unsigned long long *eventTypes) {
    if (!eventTypes || !tpn_device_index(device, NULL)) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    *eventTypes = 0;
    return NVML_SUCCESS;
}

/* For no event, a set is as good as registered; any other is one that the device does not offer. */
nvmlReturn_t tpn_nvmlDeviceRegisterEvents(nvmlDevice_t device, unsigned long long eventTypes, nvmlEventSet_t set) {
    uint32_t index;
    tp_lock_take(&lock);
    bool found = find(set, &index);
    tp_lock_drop(&lock);
    if (!found || !tpn_device_index(device, NULL)) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    return eventTypes ? NVML_ERROR_NOT_SUPPORTED : NVML_SUCCESS;
}
