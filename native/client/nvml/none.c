/*
 * Lists of what a device of a worker has none of for this program: sessions of encoders, records of accounting, MIG instances,
 * licences, excluded devices, cards of a chassis. The answers are those of NVML 580 where there is none.
 *
 * Any thread; nothing is asked.
 */
#include "tpn.h"

static nvmlReturn_t none(nvmlDevice_t device, unsigned int *count) {
    if (!count || !tpn_device_index(device, NULL)) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    *count = 0;
    return NVML_SUCCESS;
}

nvmlReturn_t tpn_nvmlDeviceGetEncoderSessions(nvmlDevice_t device, unsigned int *sessionCount,
                                              nvmlEncoderSessionInfo_t *sessionInfos) {
    (void)sessionInfos;
    return none(device, sessionCount);
}

nvmlReturn_t tpn_nvmlDeviceGetFBCSessions(nvmlDevice_t device, unsigned int *sessionCount,
                                          nvmlFBCSessionInfo_t *sessionInfo) {
    (void)sessionInfo;
    return none(device, sessionCount);
}

/* Without an array the driver says that it is too small, whatever there is. */
nvmlReturn_t tpn_nvmlDeviceGetAccountingPids(nvmlDevice_t device, unsigned int *count, unsigned int *pids) {
    nvmlReturn_t result = none(device, count);
    return result == NVML_SUCCESS && !pids ? NVML_ERROR_INSUFFICIENT_SIZE : result;
}

nvmlReturn_t tpn_nvmlDeviceGetGpuInstances(nvmlDevice_t device, unsigned int profileId, nvmlGpuInstance_t *gpuInstances,
                                           unsigned int *count) {
    (void)profileId;
    return gpuInstances ? none(device, count) : NVML_ERROR_INVALID_ARGUMENT;
}

/* Only the first two words: how far the struct of an older form goes is in no header. */
static nvmlReturn_t no_licence(nvmlDevice_t device, nvmlGridLicensableFeatures_t *features) {
    if (!features || !tpn_device_index(device, NULL)) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    features->isGridLicenseSupported = 0;
    features->licensableFeaturesCount = 0;
    return NVML_SUCCESS;
}

nvmlReturn_t tpn_nvmlDeviceGetGridLicensableFeatures(nvmlDevice_t device,
                                                     nvmlGridLicensableFeatures_t *pGridLicensableFeatures) {
    return no_licence(device, pGridLicensableFeatures);
}

nvmlReturn_t tpn_nvmlDeviceGetGridLicensableFeatures_v2(nvmlDevice_t device,
                                                        nvmlGridLicensableFeatures_t *pGridLicensableFeatures) {
    return no_licence(device, pGridLicensableFeatures);
}

nvmlReturn_t tpn_nvmlDeviceGetGridLicensableFeatures_v3(nvmlDevice_t device,
                                                        nvmlGridLicensableFeatures_t *pGridLicensableFeatures) {
    return no_licence(device, pGridLicensableFeatures);
}

static nvmlReturn_t zero(unsigned int *count) {
    if (!count) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    *count = 0;
    return NVML_SUCCESS;
}

nvmlReturn_t tpn_nvmlGetExcludedDeviceCount(unsigned int *deviceCount) { return zero(deviceCount); }

nvmlReturn_t tpn_nvmlSystemGetHicVersion(unsigned int *hwbcCount, nvmlHwbcEntry_t *hwbcEntries) {
    (void)hwbcEntries;
    return zero(hwbcCount);
}
