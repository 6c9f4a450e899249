// NVML, fourth part: event sets, and samples of a device (GPM). The answers are those of NVML 580.159.04.
//
// Sets and samples are in lists, so that what is none is refused, where the real library follows the pointer. An error that
// breaks a device is an event of it, as the kernel's driver logs one. A sample holds what the device did at its moment,
// because nothing counts what it does in between. Everything under one lock of its own, inside of which no other is taken.
#include "sim.h"
#include "sim_nvml.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define EVENT_TYPES 0xff9full // what an H200 has
#define XID_EVENT 8ull        // an error that ends work; no header here names it
#define EVENTS_MAX 32         // that a set holds; the newest are lost
#define METRICS_MAX 210       // that it takes at once, and numbers of them; the header of today has more
// Of the whole device: instances exist under MIG only.
#define NO_INSTANCE 0xffffffffu

typedef struct nvmlEventSet_st sim_event_set_t;
struct nvmlEventSet_st {
    sim_event_set_t *next;
    unsigned long long types[SIM_MAX_DEVICES];
    nvmlEventData_t events[EVENTS_MAX];
    int count;
};

typedef struct nvmlGpmSample_st sim_sample_t;
struct nvmlGpmSample_st {
    sim_sample_t *next;
    bool taken, busy;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t happened = PTHREAD_COND_INITIALIZER;
static sim_event_set_t *sets;
static sim_sample_t *samples;

static sim_event_set_t **find_set(nvmlEventSet_t set) { // under the lock
    sim_event_set_t **at = &sets;
    while (*at && *at != set)
        at = &(*at)->next;
    return at;
}

static sim_sample_t **find_sample(nvmlGpmSample_t sample) { // under the lock
    sim_sample_t **at = &samples;
    while (*at && *at != sample)
        at = &(*at)->next;
    return at;
}

// ---- Events ------------------------------------------------------------------------------------------------------

// Error 31 of the kernel's driver is a page fault, 43 what a breakpoint does, 13 what else a kernel can do wrong.
void sim_nvml_broken(int device, CUresult error) {
    pthread_mutex_lock(&lock);
    for (sim_event_set_t *set = sets; set; set = set->next) {
        if (!(set->types[device] & XID_EVENT) || set->count == EVENTS_MAX)
            continue;
        set->events[set->count++] = (nvmlEventData_t){.device = (nvmlDevice_t)(void *)&sim.devices[device],
                                                      .eventType = XID_EVENT,
                                                      .eventData = error == CUDA_ERROR_ILLEGAL_ADDRESS ? 31
                                                                   : error == CUDA_ERROR_LAUNCH_FAILED ? 43
                                                                                                       : 13,
                                                      .gpuInstanceId = NO_INSTANCE,
                                                      .computeInstanceId = NO_INSTANCE};
    }
    pthread_cond_broadcast(&happened);
    pthread_mutex_unlock(&lock);
}

nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *set) {
    SIM_NVML_STARTED();
    if (!set)
        return NVML_ERROR_INVALID_ARGUMENT;
    sim_event_set_t *made = calloc(1, sizeof *made);
    if (!made)
        return NVML_ERROR_MEMORY;
    pthread_mutex_lock(&lock);
    made->next = sets;
    sets = made;
    pthread_mutex_unlock(&lock);
    *set = made;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t set) {
    SIM_NVML_STARTED();
    pthread_mutex_lock(&lock);
    sim_event_set_t **at = find_set(set), *found = *at;
    if (found)
        *at = found->next;
    pthread_mutex_unlock(&lock);
    free(found);
    return found ? NVML_SUCCESS : NVML_ERROR_INVALID_ARGUMENT;
}

nvmlReturn_t nvmlDeviceGetSupportedEventTypes(nvmlDevice_t device, unsigned long long *eventTypes) {
    SIM_NVML_DEVICE(device, index, eventTypes);
    *eventTypes = EVENT_TYPES;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t device, unsigned long long eventTypes, nvmlEventSet_t set) {
    SIM_NVML_DEVICE(device, index, set);
    pthread_mutex_lock(&lock);
    sim_event_set_t *found = *find_set(set);
    nvmlReturn_t result = !found                        ? NVML_ERROR_INVALID_ARGUMENT
                          : (eventTypes & ~EVENT_TYPES) ? NVML_ERROR_NOT_SUPPORTED
                                                        : NVML_SUCCESS;
    if (result == NVML_SUCCESS)
        found->types[index] |= eventTypes;
    pthread_mutex_unlock(&lock);
    return result;
}

static nvmlReturn_t wait_for(nvmlEventSet_t set, nvmlEventData_t *data, unsigned int timeoutms, size_t size) {
    SIM_NVML_STARTED();
    if (!data)
        return NVML_ERROR_INVALID_ARGUMENT;
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += timeoutms / 1000;
    until.tv_nsec += (long)(timeoutms % 1000) * 1000000;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_mutex_lock(&lock);
    sim_event_set_t *found;
    bool over = timeoutms == 0;
    while ((found = *find_set(set)) && !found->count && !over)
        over = pthread_cond_timedwait(&happened, &lock, &until) == ETIMEDOUT;
    nvmlReturn_t result = !found ? NVML_ERROR_INVALID_ARGUMENT : found->count ? NVML_SUCCESS : NVML_ERROR_TIMEOUT;
    if (result == NVML_SUCCESS) {
        memcpy(data, &found->events[0], size);
        memmove(&found->events[0], &found->events[1], (size_t)--found->count * sizeof found->events[0]);
    }
    pthread_mutex_unlock(&lock);
    return result;
}

nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t set, nvmlEventData_t *data, unsigned int timeoutms) {
    return wait_for(set, data, timeoutms, sizeof *data);
}

// The struct of the first version ends before the instances.
nvmlReturn_t nvmlEventSetWait(nvmlEventSet_t set, nvmlEventData_t *data, unsigned int timeoutms) {
    return wait_for(set, data, timeoutms, offsetof(nvmlEventData_t, gpuInstanceId));
}

// ---- Samples -----------------------------------------------------------------------------------------------------

nvmlReturn_t nvmlGpmQueryDeviceSupport(nvmlDevice_t device, nvmlGpmSupport_t *gpmSupport) {
    SIM_NVML_DEVICE(device, index, gpmSupport);
    if (gpmSupport->version != NVML_GPM_SUPPORT_VERSION)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    gpmSupport->isSupportedDevice = 1;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlGpmQueryIfStreamingEnabled(nvmlDevice_t device, unsigned int *state) {
    SIM_NVML_DEVICE(device, index, state);
    *state = 0;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlGpmSampleAlloc(nvmlGpmSample_t *gpmSample) {
    SIM_NVML_STARTED();
    if (!gpmSample)
        return NVML_ERROR_INVALID_ARGUMENT;
    sim_sample_t *made = calloc(1, sizeof *made);
    if (!made)
        return NVML_ERROR_MEMORY;
    pthread_mutex_lock(&lock);
    made->next = samples;
    samples = made;
    pthread_mutex_unlock(&lock);
    *gpmSample = made;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlGpmSampleFree(nvmlGpmSample_t gpmSample) {
    SIM_NVML_STARTED();
    if (!gpmSample)
        return NVML_SUCCESS;
    pthread_mutex_lock(&lock);
    sim_sample_t **at = find_sample(gpmSample), *found = *at;
    if (found)
        *at = found->next;
    pthread_mutex_unlock(&lock);
    free(found);
    return found ? NVML_SUCCESS : NVML_ERROR_INVALID_ARGUMENT;
}

nvmlReturn_t nvmlGpmSampleGet(nvmlDevice_t device, nvmlGpmSample_t gpmSample) {
    SIM_NVML_DEVICE(device, index, gpmSample);
    bool busy = sim_nvml_busy(index);
    pthread_mutex_lock(&lock);
    sim_sample_t *found = *find_sample(gpmSample);
    if (found)
        *found = (sim_sample_t){.next = found->next, .taken = true, .busy = busy};
    pthread_mutex_unlock(&lock);
    return found ? NVML_SUCCESS : NVML_ERROR_INVALID_ARGUMENT;
}

nvmlReturn_t nvmlGpmMigSampleGet(nvmlDevice_t device, unsigned int gpuInstanceId, nvmlGpmSample_t gpmSample) {
    SIM_NVML_DEVICE(device, index, gpmSample);
    (void)gpuInstanceId; // there are no instances
    return NVML_ERROR_INVALID_ARGUMENT;
}

// Those whose texts the real library was asked for. That the others are not offered is the simulator's own.
static const struct {
    unsigned int id;
    const char *short_name, *long_name, *unit;
} metric_names[] = {{1, "gract", "GRAPHICS_UTIL", "%"},
                    {2, "smutil", "SM_UTIL", "%"},
                    {3, "smocc", "SM_OCCUPANCY", "%"},
                    {20, "pcitx", "PCIE_TX_PER_SEC", "MiB/s"},
                    {60, "nvlrx", "NVLINK_TOTAL_RX_PER_SEC", "MiB/s"},
                    {99, NULL, NULL, "%"},
                    {200, "cs6elp", "GR6_CTXSW_CYCLES_ELAPSED", "#"}};

static void compute(nvmlGpmMetric_t *metric, const sim_sample_t *first, const sim_sample_t *second) {
    if (!metric->metricId || metric->metricId > METRICS_MAX) {
        metric->nvmlReturn = NVML_ERROR_INVALID_ARGUMENT; // value and texts stay as they were
        return;
    }
    metric->nvmlReturn = NVML_ERROR_NOT_SUPPORTED;
    for (size_t i = 0; i < sizeof metric_names / sizeof *metric_names; i++) {
        if (metric_names[i].id != metric->metricId)
            continue;
        metric->nvmlReturn = NVML_SUCCESS;
        metric->value = metric->metricId <= 2 ? 50.0 * (first->busy + second->busy) : 0;
        metric->metricInfo.shortName = (char *)(uintptr_t)metric_names[i].short_name;
        metric->metricInfo.longName = (char *)(uintptr_t)metric_names[i].long_name;
        metric->metricInfo.unit = (char *)(uintptr_t)metric_names[i].unit;
    }
}

nvmlReturn_t nvmlGpmMetricsGet(nvmlGpmMetricsGet_t *metricsGet) {
    SIM_NVML_STARTED();
    if (!metricsGet)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (metricsGet->version != NVML_GPM_METRICS_GET_VERSION)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    pthread_mutex_lock(&lock);
    const sim_sample_t *first = *find_sample(metricsGet->sample1), *second = *find_sample(metricsGet->sample2);
    const bool taken = first && second && first != second && first->taken && second->taken;
    nvmlReturn_t result = taken && metricsGet->numMetrics && metricsGet->numMetrics <= METRICS_MAX
                              ? NVML_SUCCESS
                              : NVML_ERROR_INVALID_ARGUMENT;
    for (unsigned int i = 0; i < metricsGet->numMetrics && result == NVML_SUCCESS; i++)
        compute(&metricsGet->metrics[i], first, second);
    pthread_mutex_unlock(&lock);
    return result;
}
