/*
 * Processes that use a device: those of this machine that use the same worker as the same tenant, under the numbers that they have here.
 * The worker says which (docs/wire-format.md, section 2); other processes of its host are not this program's business.
 *
 * Any thread.
 */
#include "tpn.h"

#include "tpg_nvml_send.h"
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

/* An answer, from `list` until `over`. */
struct listed {
    struct tp_reply reply;
    struct tpg_nvml_processes_out out;
    size_t fill; /* so many of them are to be handed out */
};

/* What all forms have in common. */
static nvmlReturn_t list(const char *name, bool compute, nvmlDevice_t device, unsigned int *count, const void *infos,
                         struct listed *listed) {
    memset(listed, 0, sizeof *listed);
    if (!count || !tpn_device_index(device, NULL)) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    if (compute) {
        nvmlReturn_t result = tpn_call_nvml_processes(name, (uint64_t)(uintptr_t)device, &listed->out, &listed->reply);
        if (result == NVML_SUCCESS && listed->out.pids_count != listed->out.used_count) {
            result = tpn_bad_reply(&listed->reply);
        }
        if (result != NVML_SUCCESS) {
            return result;
        }
    }
    const size_t found = listed->out.pids_count;
    const bool room = *count >= found;
    if (found && *count && !infos) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    *count = (unsigned int)found;
    listed->fill = room ? found : 0;
    return room ? NVML_SUCCESS : NVML_ERROR_INSUFFICIENT_SIZE;
}

static nvmlReturn_t over(struct listed *listed, nvmlReturn_t result) {
    tp_reply_free(&listed->reply);
    return result;
}

#define RUNNING_V1(name, compute)                                                                                      \
    nvmlReturn_t tpn_##name(nvmlDevice_t device, unsigned int *infoCount, nvmlProcessInfo_v1_t *infos) {               \
        struct listed listed;                                                                                          \
        nvmlReturn_t result = list(#name, compute, device, infoCount, infos, &listed);                                 \
        for (size_t i = 0; i < listed.fill; i++) {                                                                     \
            infos[i] = (nvmlProcessInfo_v1_t){.pid = listed.out.pids[i], .usedGpuMemory = listed.out.used[i]};         \
        }                                                                                                              \
        return over(&listed, result);                                                                                  \
    }
/* 0xffffffff: the device is not a MIG instance. */
#define FILL(type, infos)                                                                                              \
    for (size_t i = 0; i < listed.fill; i++) {                                                                         \
        (infos)[i] = (type){.pid = listed.out.pids[i],                                                                 \
                            .usedGpuMemory = listed.out.used[i],                                                       \
                            .gpuInstanceId = 0xffffffff,                                                               \
                            .computeInstanceId = 0xffffffff};                                                          \
    }
#define RUNNING(name, compute, type)                                                                                   \
    nvmlReturn_t tpn_##name(nvmlDevice_t device, unsigned int *infoCount, type *infos) {                               \
        struct listed listed;                                                                                          \
        nvmlReturn_t result = list(#name, compute, device, infoCount, infos, &listed);                                 \
        FILL(type, infos)                                                                                              \
        return over(&listed, result);                                                                                  \
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

nvmlReturn_t tpn_do_nvmlDeviceGetRunningProcessDetailList(nvmlDevice_t device, nvmlProcessDetailList_t *plist) {
    enum { COMPUTE, GRAPHICS, MPS };
    if (plist->mode > MPS) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    struct listed listed;
    nvmlReturn_t result = list("nvmlDeviceGetRunningProcessDetailList", plist->mode == COMPUTE, device,
                               &plist->numProcArrayEntries, plist->procArray, &listed);
    FILL(nvmlProcessDetail_v1_t, plist->procArray)
    return over(&listed, result);
}

/* Without an array the count says nothing: the caller asks how much room there must be. */
nvmlReturn_t tpn_do_nvmlDeviceGetProcessesUtilizationInfo(nvmlDevice_t device, nvmlProcessesUtilizationInfo_t *info) {
    const unsigned int room = info->procUtilArray ? info->processSamplesCount : 0;
    const unsigned int most = room < TP_NVML_LIST_MAX ? room : TP_NVML_LIST_MAX;
    struct tpg_nvml_utilization_out o;
    struct tp_reply reply;
    nvmlReturn_t result =
        tpn_call_nvml_utilization("nvmlDeviceGetProcessesUtilizationInfo", (uint64_t)(uintptr_t)device,
                                  info->lastSeenTimeStamp, most, &o, &reply);
    if (result == NVML_SUCCESS && o.samples_count > most) {
        result = tpn_bad_reply(&reply);
    }
    if (result == NVML_SUCCESS) {
        result = (nvmlReturn_t)o.status;
        if (result == NVML_SUCCESS || result == NVML_ERROR_INSUFFICIENT_SIZE) {
            info->processSamplesCount = o.count;
        }
        if (o.samples_count) {
            memcpy(info->procUtilArray, o.samples, o.samples_count * sizeof *info->procUtilArray);
        }
    }
    tp_reply_free(&reply);
    return result;
}

/* There are no records of accounting. Without an array the driver says that it is too small, whatever there is. */
nvmlReturn_t tpn_do_nvmlDeviceGetAccountingPids(nvmlDevice_t device, unsigned int *count, unsigned int *pids) {
    (void)device;
    *count = 0;
    return pids ? NVML_SUCCESS : NVML_ERROR_INSUFFICIENT_SIZE;
}

nvmlReturn_t tpn_do_nvmlSystemGetProcessName(unsigned int pid, char *name, unsigned int length) {
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
