// NVML, third part: lists, which an H200 without MIG, licences and other cards beside it has almost nothing in.
// The answers are those of NVML 580.159.04 to a user without rights. No state.
#include "sim.h"
#include "sim_nvml.h"

static nvmlReturn_t none(nvmlDevice_t device, unsigned int *count) {
    SIM_NVML_DEVICE(device, index, count);
    *count = 0;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetEncoderSessions(nvmlDevice_t device, unsigned int *sessionCount,
                                          nvmlEncoderSessionInfo_t *sessionInfos) {
    (void)sessionInfos;
    return none(device, sessionCount);
}

nvmlReturn_t nvmlDeviceGetFBCSessions(nvmlDevice_t device, unsigned int *sessionCount,
                                      nvmlFBCSessionInfo_t *sessionInfo) {
    (void)sessionInfo;
    return none(device, sessionCount);
}

nvmlReturn_t nvmlDeviceGetAccountingPids(nvmlDevice_t device, unsigned int *count, unsigned int *pids) {
    nvmlReturn_t result = none(device, count);
    return result == NVML_SUCCESS && !pids ? NVML_ERROR_INSUFFICIENT_SIZE : result;
}

// One instance may be the whole device, at its start.
static nvmlReturn_t placements(nvmlDevice_t device, unsigned int profile, nvmlGpuInstancePlacement_t *list,
                               unsigned int *count) {
    SIM_NVML_DEVICE(device, index, count && !profile);
    *count = 1;
    if (list)
        *list = (nvmlGpuInstancePlacement_t){.start = 0, .size = 8};
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetGpuInstancePossiblePlacements_v2(nvmlDevice_t device, unsigned int profileId,
                                                           nvmlGpuInstancePlacement_t *list, unsigned int *count) {
    return placements(device, profileId, list, count);
}

nvmlReturn_t nvmlDeviceGetGpuInstancePossiblePlacements(nvmlDevice_t device, unsigned int profileId,
                                                        nvmlGpuInstancePlacement_t *list, unsigned int *count) {
    SIM_NVML_DEVICE(device, index, list);
    return placements(device, profileId, list, count);
}

nvmlReturn_t nvmlGetVgpuVersion(nvmlVgpuVersion_t *supported, nvmlVgpuVersion_t *current) {
    static const nvmlVgpuVersion_t versions = {.minVersion = 0x120001, .maxVersion = 0x1a0001};
    SIM_NVML_STARTED();
    if (supported)
        *supported = versions;
    if (current)
        *current = versions;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetGpuInstances(nvmlDevice_t device, unsigned int profileId, nvmlGpuInstance_t *gpuInstances,
                                       unsigned int *count) {
    (void)profileId;
    SIM_NVML_DEVICE(device, index, gpuInstances);
    return none(device, count);
}

// The structs of the older forms begin alike: whether there are licences, and how many.
static nvmlReturn_t no_licence(nvmlDevice_t device, nvmlGridLicensableFeatures_t *features) {
    SIM_NVML_DEVICE(device, index, features);
    features->isGridLicenseSupported = 0;
    features->licensableFeaturesCount = 0;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetGridLicensableFeatures(nvmlDevice_t device, nvmlGridLicensableFeatures_t *out) {
    return no_licence(device, out);
}

nvmlReturn_t nvmlDeviceGetGridLicensableFeatures_v2(nvmlDevice_t device, nvmlGridLicensableFeatures_t *out) {
    return no_licence(device, out);
}

nvmlReturn_t nvmlDeviceGetGridLicensableFeatures_v3(nvmlDevice_t device, nvmlGridLicensableFeatures_t *out) {
    return no_licence(device, out);
}

nvmlReturn_t nvmlSystemGetHicVersion(unsigned int *hwbcCount, nvmlHwbcEntry_t *hwbcEntries) {
    SIM_NVML_STARTED();
    (void)hwbcEntries;
    if (!hwbcCount)
        return NVML_ERROR_INVALID_ARGUMENT;
    *hwbcCount = 0;
    return NVML_SUCCESS;
}

// All processors are near all devices.
static nvmlReturn_t bound(nvmlDevice_t device) {
    SIM_NVML_DEVICE(device, index, true);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceSetCpuAffinity(nvmlDevice_t device) { return bound(device); }

nvmlReturn_t nvmlDeviceClearCpuAffinity(nvmlDevice_t device) { return bound(device); }

// ---- What is off: instances, confidential computing --------------------------------------------------------------

nvmlReturn_t nvmlDeviceGetGpuInstanceId(nvmlDevice_t device, unsigned int *id) {
    SIM_NVML_DEVICE(device, index, id);
    return NVML_ERROR_INVALID_ARGUMENT; // of an instance only
}

nvmlReturn_t nvmlDeviceGetComputeInstanceId(nvmlDevice_t device, unsigned int *id) {
    return nvmlDeviceGetGpuInstanceId(device, id);
}

nvmlReturn_t nvmlSystemGetConfComputeCapabilities(nvmlConfComputeSystemCaps_t *capabilities) {
    SIM_NVML_STARTED();
    if (!capabilities)
        return NVML_ERROR_INVALID_ARGUMENT;
    *capabilities = (nvmlConfComputeSystemCaps_t){.cpuCaps = 0, .gpusCaps = 1};
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlSystemGetConfComputeState(nvmlConfComputeSystemState_t *state) {
    SIM_NVML_STARTED();
    if (!state)
        return NVML_ERROR_INVALID_ARGUMENT;
    *state = (nvmlConfComputeSystemState_t){0};
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlSystemGetConfComputeGpusReadyState(unsigned int *isAcceptingWork) {
    SIM_NVML_STARTED();
    if (!isAcceptingWork)
        return NVML_ERROR_INVALID_ARGUMENT;
    *isAcceptingWork = 0;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlSystemGetConfComputeSettings(nvmlSystemConfComputeSettings_t *settings) {
    SIM_NVML_STARTED();
    if (!settings)
        return NVML_ERROR_INVALID_ARGUMENT;
    const unsigned int version = (unsigned int)sizeof *settings | 1u << 24;
    if (settings->version != version)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    *settings = (nvmlSystemConfComputeSettings_t){.version = version};
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetConfComputeMemSizeInfo(nvmlDevice_t device, nvmlConfComputeMemSizeInfo_t *memInfo) {
    SIM_NVML_DEVICE(device, index, memInfo);
    *memInfo = (nvmlConfComputeMemSizeInfo_t){.protectedMemSizeKib = 0, .unprotectedMemSizeKib = 146591680};
    return NVML_SUCCESS;
}
