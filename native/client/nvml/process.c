/*
 * Processes that use a device: the calling process alone, under the number that it has here. Other clients of the worker and
 * processes of its host are not this program's business, and their numbers would mean nothing here.
 *
 * Any thread.
 */
#include "tpn.h"

#include "tpg_nvml_send.h"
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

/* How many bytes this process holds on the device; *present is false while it has no context there. */
static nvmlReturn_t ask(const char *name, nvmlDevice_t device, bool *present, unsigned long long *used) {
    struct tpg_nvml_process_in a = {.device = (uint64_t)(uintptr_t)device};
    struct tpg_nvml_process_out o;
    nvmlReturn_t result = tpn_call_nvml_process(name, &a, &o);
    if (result == NVML_SUCCESS) {
        *present = o.present != 0;
        *used = o.used;
    }
    return result;
}

/* What all forms have in common. `fill` is set when there is one process and room for it. */
static nvmlReturn_t list(const char *name, bool compute, nvmlDevice_t device, unsigned int *count, const void *infos,
                         bool *fill, unsigned long long *used) {
    *fill = false;
    if (!count || !tpn_device_index(device, NULL)) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    bool present = false;
    nvmlReturn_t result = compute ? ask(name, device, &present, used) : NVML_SUCCESS;
    if (result != NVML_SUCCESS) {
        return result;
    }
    if (present && *count && !infos) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    bool room = *count >= present;
    *count = present;
    *fill = present && room;
    return room ? NVML_SUCCESS : NVML_ERROR_INSUFFICIENT_SIZE;
}

#define RUNNING_V1(name, compute)                                                                                      \
    nvmlReturn_t tpn_##name(nvmlDevice_t device, unsigned int *infoCount, nvmlProcessInfo_v1_t *infos) {               \
        bool fill;                                                                                                     \
        unsigned long long used = 0;                                                                                   \
        nvmlReturn_t result = list(#name, compute, device, infoCount, infos, &fill, &used);                            \
        if (fill) {                                                                                                    \
            infos[0] = (nvmlProcessInfo_v1_t){.pid = (unsigned int)getpid(), .usedGpuMemory = used};                   \
        }                                                                                                              \
        return result;                                                                                                 \
    }
/* 0xffffffff: the device is not a MIG instance. */
#define RUNNING(name, compute, type)                                                                                   \
    nvmlReturn_t tpn_##name(nvmlDevice_t device, unsigned int *infoCount, type *infos) {                               \
        bool fill;                                                                                                     \
        unsigned long long used = 0;                                                                                   \
        nvmlReturn_t result = list(#name, compute, device, infoCount, infos, &fill, &used);                            \
        if (fill) {                                                                                                    \
            infos[0] = (type){.pid = (unsigned int)getpid(),                                                           \
                              .usedGpuMemory = used,                                                                   \
                              .gpuInstanceId = 0xffffffff,                                                             \
                              .computeInstanceId = 0xffffffff};                                                        \
        }                                                                                                              \
        return result;                                                                                                 \
    }

RUNNING_V1(nvmlDeviceGetComputeRunningProcesses, true)
RUNNING(nvmlDeviceGetComputeRunningProcesses_v2, true, nvmlProcessInfo_v2_t)
RUNNING(nvmlDeviceGetComputeRunningProcesses_v3, true, nvmlProcessInfo_t)
RUNNING_V1(nvmlDeviceGetGraphicsRunningProcesses, false)
RUNNING(nvmlDeviceGetGraphicsRunningProcesses_v2, false, nvmlProcessInfo_v2_t)
RUNNING(nvmlDeviceGetGraphicsRunningProcesses_v3, false, nvmlProcessInfo_t)
RUNNING_V1(nvmlDeviceGetMPSComputeRunningProcesses, false)
RUNNING(nvmlDeviceGetMPSComputeRunningProcesses_v2, false, nvmlProcessInfo_v2_t)
RUNNING(nvmlDeviceGetMPSComputeRunningProcesses_v3, false, nvmlProcessInfo_t)

nvmlReturn_t tpn_nvmlDeviceGetRunningProcessDetailList(nvmlDevice_t device, nvmlProcessDetailList_t *plist) {
    enum { COMPUTE, GRAPHICS, MPS };
    if (!plist) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    if (plist->version != (sizeof *plist | 1u << 24)) {
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    }
    if (plist->mode > MPS) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    bool fill;
    unsigned long long used = 0;
    nvmlReturn_t result = list("nvmlDeviceGetRunningProcessDetailList", plist->mode == COMPUTE, device,
                               &plist->numProcArrayEntries, plist->procArray, &fill, &used);
    if (fill) {
        plist->procArray[0] = (nvmlProcessDetail_v1_t){.pid = (unsigned int)getpid(),
                                                       .usedGpuMemory = used,
                                                       .gpuInstanceId = 0xffffffff,
                                                       .computeInstanceId = 0xffffffff};
    }
    return result;
}

nvmlReturn_t tpn_nvmlSystemGetProcessName(unsigned int pid, char *name, unsigned int length) {
    if (!name || !length) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    char path[32];
    snprintf(path, sizeof path, "/proc/%u/cmdline", pid);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) {
        return NVML_ERROR_NOT_FOUND;
    }
    /* Arguments are separated by NULs: what comes first is the program. */
    ssize_t got = read(file, name, length);
    close(file);
    name[got > 0 && (size_t)got < length ? (size_t)got : length - 1] = 0;
    return got > 0 ? NVML_SUCCESS : NVML_ERROR_NOT_FOUND;
}
