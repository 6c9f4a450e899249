/*
 * Waiting for the events of a set. The driver's own wait would hold up the session's one thread, so the session only looks
 * whether there is an event, and the waiting is done here.
 *
 * Any thread.
 */
#include "tpn.h"

#include "tpg_client.h"
#include <time.h>

/* How long an event may lie before it is seen. */
#define LOOK_NS 100000000ull

static nvmlReturn_t wait_for(nvmlEventSet_t set, nvmlEventData_t *data, unsigned int timeoutms) {
    uint64_t end = tp_now_ns() + timeoutms * 1000000ull;
    for (;;) {
        nvmlReturn_t result = tpn_sent_nvmlEventSetWait_v2(set, data, 0);
        uint64_t now = tp_now_ns();
        if (result != NVML_ERROR_TIMEOUT || now >= end) {
            return result;
        }
        nanosleep(&(struct timespec){.tv_nsec = (long)(end - now < LOOK_NS ? end - now : LOOK_NS)}, NULL);
        result = tpn_ready();
        if (result != NVML_SUCCESS) {
            return result;
        }
    }
}

nvmlReturn_t tpn_nvmlEventSetWait_v2(nvmlEventSet_t set, nvmlEventData_t *data, unsigned int timeoutms) {
    return wait_for(set, data, timeoutms);
}

/* The struct of the first version ends before the instances. */
nvmlReturn_t tpn_nvmlEventSetWait(nvmlEventSet_t set, nvmlEventData_t *data, unsigned int timeoutms) {
    nvmlEventData_t whole;
    nvmlReturn_t result = data ? wait_for(set, &whole, timeoutms) : NVML_ERROR_INVALID_ARGUMENT;
    if (result == NVML_SUCCESS) {
        memcpy(data, &whole, offsetof(nvmlEventData_t, gpuInstanceId));
    }
    return result;
}
