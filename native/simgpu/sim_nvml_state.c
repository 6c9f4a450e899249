// NVML, second half: clocks, power, temperature, errors, PCIe, modes, versions and the other facts that nvidia-smi
// prints.
//
// All are constants of an H200 at rest, as `nvidia-smi -q` of driver 580.159.04 showed them; what that card answered
// with "N/A" is NVML_ERROR_NOT_SUPPORTED here. Names that are in neither NVML file are refused by name, in generated code. No state.
#include "sim.h"
#include "sim_nvml.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// A function with one out-parameter and a constant answer; with two; without an answer.
#define ANSWERS(function, type, answer)                                                                                \
    nvmlReturn_t function(nvmlDevice_t device, type *out) {                                                            \
        SIM_NVML_DEVICE(device, index, out);                                                                           \
        *out = (type)(answer);                                                                                         \
        return NVML_SUCCESS;                                                                                           \
    }
#define ANSWERS_TWO(function, type, first, second)                                                                     \
    nvmlReturn_t function(nvmlDevice_t device, type *a, type *b) {                                                     \
        SIM_NVML_DEVICE(device, index, a && b);                                                                        \
        *a = (type)(first);                                                                                            \
        *b = (type)(second);                                                                                           \
        return NVML_SUCCESS;                                                                                           \
    }
#define HAS_NOT(function, type)                                                                                        \
    nvmlReturn_t function(nvmlDevice_t device, type *out) {                                                            \
        SIM_NVML_DEVICE(device, index, out);                                                                           \
        return NVML_ERROR_NOT_SUPPORTED;                                                                               \
    }
#define HAS_NOT_TWO(function, type)                                                                                    \
    nvmlReturn_t function(nvmlDevice_t device, type *a, type *b) {                                                     \
        SIM_NVML_DEVICE(device, index, a && b);                                                                        \
        return NVML_ERROR_NOT_SUPPORTED;                                                                               \
    }
#define TEXT(function, text)                                                                                           \
    nvmlReturn_t function(nvmlDevice_t device, char *out, unsigned int length) {                                       \
        SIM_NVML_DEVICE(device, index, out);                                                                           \
        return sim_nvml_text(out, length, text);                                                                       \
    }

ANSWERS(nvmlDeviceGetPowerUsage, unsigned int, 127540)
ANSWERS(nvmlDeviceGetEnforcedPowerLimit, unsigned int, 700000)
ANSWERS(nvmlDeviceGetPowerManagementLimit, unsigned int, 700000)
ANSWERS(nvmlDeviceGetPowerManagementDefaultLimit, unsigned int, 700000)
ANSWERS_TWO(nvmlDeviceGetPowerManagementLimitConstraints, unsigned int, 200000, 700000)
ANSWERS(nvmlDeviceGetPowerManagementMode, nvmlEnableState_t, NVML_FEATURE_ENABLED)
ANSWERS(nvmlDeviceGetPowerState, nvmlPstates_t, NVML_PSTATE_0)
ANSWERS(nvmlDeviceGetPerformanceState, nvmlPstates_t, NVML_PSTATE_0)
HAS_NOT(nvmlDeviceGetFanSpeed, unsigned int)
ANSWERS(nvmlDeviceGetNumFans, unsigned int, 0)
ANSWERS_TWO(nvmlDeviceGetEccMode, nvmlEnableState_t, NVML_FEATURE_ENABLED, NVML_FEATURE_ENABLED)
ANSWERS(nvmlDeviceGetComputeMode, nvmlComputeMode_t, NVML_COMPUTEMODE_DEFAULT)
ANSWERS(nvmlDeviceGetPersistenceMode, nvmlEnableState_t, NVML_FEATURE_ENABLED)
ANSWERS_TWO(nvmlDeviceGetMigMode, unsigned int, 0, 0)
ANSWERS(nvmlDeviceGetMaxMigDeviceCount, unsigned int, 7)
ANSWERS(nvmlDeviceIsMigDeviceHandle, unsigned int, 0)
ANSWERS(nvmlDeviceGetDisplayActive, nvmlEnableState_t, NVML_FEATURE_DISABLED)
ANSWERS(nvmlDeviceGetDisplayMode, nvmlEnableState_t, NVML_FEATURE_ENABLED)
ANSWERS(nvmlDeviceGetVirtualizationMode, nvmlGpuVirtualizationMode_t, NVML_GPU_VIRTUALIZATION_MODE_PASSTHROUGH)
HAS_NOT(nvmlDeviceGetHostVgpuMode, nvmlHostVgpuMode_t)
HAS_NOT(nvmlDeviceGetVgpuHeterogeneousMode, nvmlVgpuHeterogeneousMode_t)
ANSWERS(nvmlDeviceGetBrand, nvmlBrandType_t, NVML_BRAND_NVIDIA)
ANSWERS(nvmlDeviceGetArchitecture, nvmlDeviceArchitecture_t, NVML_DEVICE_ARCH_HOPPER)
ANSWERS(nvmlDeviceGetNumGpuCores, unsigned int, 132 * 128)
ANSWERS(nvmlDeviceGetMemoryBusWidth, unsigned int, 6016)
ANSWERS_TWO(nvmlDeviceGetCudaComputeCapability, int, 9, 0)
ANSWERS(nvmlDeviceGetAccountingMode, nvmlEnableState_t, NVML_FEATURE_DISABLED)
ANSWERS(nvmlDeviceGetAccountingBufferSize, unsigned int, 4000)
HAS_NOT_TWO(nvmlDeviceGetAutoBoostedClocksEnabled, nvmlEnableState_t)
ANSWERS(nvmlDeviceGetMultiGpuBoard, unsigned int, 0)
ANSWERS(nvmlDeviceGetModuleId, unsigned int, 8)
HAS_NOT_TWO(nvmlDeviceGetGpuOperationMode, nvmlGpuOperationMode_t)
HAS_NOT_TWO(nvmlDeviceGetDriverModel_v2, nvmlDriverModel_t)
HAS_NOT_TWO(nvmlDeviceGetDriverModel, nvmlDriverModel_t)
HAS_NOT_TWO(nvmlDeviceGetDramEncryptionMode, nvmlDramEncryptionInfo_t)
HAS_NOT(nvmlDeviceGetBridgeChipInfo, nvmlBridgeChipHierarchy_t)
HAS_NOT(nvmlDeviceGetGridLicensableFeatures_v4, nvmlGridLicensableFeatures_t)
HAS_NOT(nvmlDeviceGetGpuFabricInfoV, nvmlGpuFabricInfoV_t)
HAS_NOT(nvmlDeviceGetGpuFabricInfo, nvmlGpuFabricInfo_t)
HAS_NOT(nvmlDeviceWorkloadPowerProfileGetCurrentProfiles, nvmlWorkloadPowerProfileCurrentProfiles_t)
ANSWERS(nvmlDeviceGetMaxPcieLinkGeneration, unsigned int, 5)
ANSWERS(nvmlDeviceGetGpuMaxPcieLinkGeneration, unsigned int, 5)
ANSWERS(nvmlDeviceGetMaxPcieLinkWidth, unsigned int, 16)
ANSWERS(nvmlDeviceGetCurrPcieLinkGeneration, unsigned int, 5)
ANSWERS(nvmlDeviceGetCurrPcieLinkWidth, unsigned int, 16)
ANSWERS(nvmlDeviceGetPcieReplayCounter, unsigned int, 0)
ANSWERS(nvmlDeviceGetCurrentClocksThrottleReasons, unsigned long long, 0)
ANSWERS(nvmlDeviceGetCurrentClocksEventReasons, unsigned long long, 0)
ANSWERS(nvmlDeviceGetSupportedClocksThrottleReasons, unsigned long long, 0x1ff)
ANSWERS(nvmlDeviceGetSupportedClocksEventReasons, unsigned long long, 0x1ff)
HAS_NOT(nvmlDeviceGetRetiredPagesPendingStatus, nvmlEnableState_t)

ANSWERS(nvmlDeviceGetPowerSource, nvmlPowerSource_t, NVML_POWER_SOURCE_AC)
ANSWERS(nvmlDeviceGetBusType, nvmlBusType_t, NVML_BUS_TYPE_PCIE)
HAS_NOT(nvmlDeviceGetAttributes_v2, nvmlDeviceAttributes_t)

TEXT(nvmlDeviceGetVbiosVersion, "96.00.A5.00.1A")
TEXT(nvmlDeviceGetBoardPartNumber, "692-2G520-0282-000")
TEXT(nvmlDeviceGetInforomImageVersion, "G520.0282.02.02")

nvmlReturn_t nvmlDeviceGetBoardId(nvmlDevice_t device, unsigned int *boardId) {
    SIM_NVML_DEVICE(device, index, boardId);
    *boardId = (unsigned)sim_pci_bus(index);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetGspFirmwareVersion(nvmlDevice_t device, char *version) {
    SIM_NVML_DEVICE(device, index, version);
    return sim_nvml_text(version, NVML_GSP_FIRMWARE_VERSION_BUF_SIZE, "580.159.04");
}

nvmlReturn_t nvmlDeviceGetInforomVersion(nvmlDevice_t device, nvmlInforomObject_t object, char *version,
                                         unsigned int length) {
    SIM_NVML_DEVICE(device, index, version);
    if (object == NVML_INFOROM_OEM)
        return sim_nvml_text(version, length, "2.1");
    if (object == NVML_INFOROM_ECC)
        return sim_nvml_text(version, length, "7.16");
    return (unsigned)object < NVML_INFOROM_COUNT ? NVML_ERROR_NOT_SUPPORTED : NVML_ERROR_INVALID_ARGUMENT;
}

nvmlReturn_t nvmlDeviceValidateInforom(nvmlDevice_t device) {
    SIM_NVML_DEVICE(device, index, true);
    return NVML_SUCCESS;
}

// ---- Clocks ------------------------------------------------------------------------------------------------------

static nvmlReturn_t clock_mhz(nvmlDevice_t device, nvmlClockType_t type, unsigned *mhz) {
    static const unsigned clocks[NVML_CLOCK_COUNT] = {1980, 1980, 3201, 1545};
    SIM_NVML_DEVICE(device, index, mhz);
    if ((unsigned)type >= NVML_CLOCK_COUNT)
        return NVML_ERROR_INVALID_ARGUMENT;
    *mhz = clocks[type];
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t device, nvmlClockType_t type, unsigned int *clock) {
    return clock_mhz(device, type, clock);
}

nvmlReturn_t nvmlDeviceGetMaxClockInfo(nvmlDevice_t device, nvmlClockType_t type, unsigned int *clock) {
    return clock_mhz(device, type, clock);
}

nvmlReturn_t nvmlDeviceGetApplicationsClock(nvmlDevice_t device, nvmlClockType_t type, unsigned int *clock) {
    return clock_mhz(device, type, clock);
}

nvmlReturn_t nvmlDeviceGetDefaultApplicationsClock(nvmlDevice_t device, nvmlClockType_t type, unsigned int *clock) {
    return clock_mhz(device, type, clock);
}

nvmlReturn_t nvmlDeviceGetMaxCustomerBoostClock(nvmlDevice_t device, nvmlClockType_t type, unsigned int *clock) {
    return type == NVML_CLOCK_MEM || type == NVML_CLOCK_VIDEO ? NVML_ERROR_NOT_SUPPORTED
                                                              : clock_mhz(device, type, clock);
}

nvmlReturn_t nvmlDeviceGetClock(nvmlDevice_t device, nvmlClockType_t type, nvmlClockId_t id, unsigned int *clock) {
    if ((unsigned)id >= NVML_CLOCK_ID_COUNT)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (id == NVML_CLOCK_ID_CUSTOMER_BOOST_MAX)
        return nvmlDeviceGetMaxCustomerBoostClock(device, type, clock);
    return clock_mhz(device, type, clock);
}

// A list of one: what is asked with too little room learns the count.
static nvmlReturn_t one_clock(unsigned *count, unsigned *clocks, unsigned mhz) {
    unsigned room = *count;
    *count = 1;
    if (!room || !clocks)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    clocks[0] = mhz;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetSupportedMemoryClocks(nvmlDevice_t device, unsigned int *count, unsigned int *clocksMHz) {
    SIM_NVML_DEVICE(device, index, count);
    return one_clock(count, clocksMHz, 3201);
}

nvmlReturn_t nvmlDeviceGetSupportedGraphicsClocks(nvmlDevice_t device, unsigned int memoryClockMHz, unsigned int *count,
                                                  unsigned int *clocksMHz) {
    SIM_NVML_DEVICE(device, index, count);
    return memoryClockMHz == 3201 ? one_clock(count, clocksMHz, 1980) : NVML_ERROR_NOT_FOUND;
}

nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t device, unsigned long long *energy) {
    SIM_NVML_DEVICE(device, index, energy);
    *energy = sim_now_ns() / 1000000 * 127540 / 1000; // mJ at the constant power, since the machine started
    return NVML_SUCCESS;
}

// ---- Temperature -------------------------------------------------------------------------------------------------

nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, nvmlTemperatureSensors_t sensorType, unsigned int *temp) {
    SIM_NVML_DEVICE(device, index, temp);
    if (sensorType != NVML_TEMPERATURE_GPU)
        return NVML_ERROR_INVALID_ARGUMENT;
    *temp = 46;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTemperatureV(nvmlDevice_t device, nvmlTemperature_t *temperature) {
    SIM_NVML_DEVICE(device, index, temperature);
    if (temperature->version != (sizeof *temperature | 1u << 24))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    if (temperature->sensorType != NVML_TEMPERATURE_GPU)
        return NVML_ERROR_INVALID_ARGUMENT;
    temperature->temperature = 46;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMarginTemperature(nvmlDevice_t device, nvmlMarginTemperature_t *marginTempInfo) {
    SIM_NVML_DEVICE(device, index, marginTempInfo);
    if (marginTempInfo->version != (sizeof *marginTempInfo | 1u << 24))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    marginTempInfo->marginTemperature = 41;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTemperatureThreshold(nvmlDevice_t device, nvmlTemperatureThresholds_t thresholdType,
                                               unsigned int *temp) {
    SIM_NVML_DEVICE(device, index, temp);
    // Shutdown and slowdown are margins below the T.Limit on this generation: -8 and -2, in an unsigned out-parameter.
    switch (thresholdType) {
    case NVML_TEMPERATURE_THRESHOLD_SHUTDOWN:
        *temp = (unsigned)-8;
        return NVML_SUCCESS;
    case NVML_TEMPERATURE_THRESHOLD_SLOWDOWN:
        *temp = (unsigned)-2;
        return NVML_SUCCESS;
    case NVML_TEMPERATURE_THRESHOLD_GPU_MAX:
    case NVML_TEMPERATURE_THRESHOLD_MEM_MAX:
        *temp = 0;
        return NVML_SUCCESS;
    default:
        return (unsigned)thresholdType < NVML_TEMPERATURE_THRESHOLD_COUNT ? NVML_ERROR_NOT_SUPPORTED
                                                                          : NVML_ERROR_INVALID_ARGUMENT;
    }
}

// ---- Errors, repairs ---------------------------------------------------------------------------------------------

nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t device, nvmlMemoryErrorType_t errorType,
                                         nvmlEccCounterType_t counterType, unsigned long long *eccCounts) {
    SIM_NVML_DEVICE(device, index, eccCounts);
    if ((unsigned)errorType > 1 || (unsigned)counterType > 1)
        return NVML_ERROR_INVALID_ARGUMENT;
    *eccCounts = 0;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMemoryErrorCounter(nvmlDevice_t device, nvmlMemoryErrorType_t errorType,
                                             nvmlEccCounterType_t counterType, nvmlMemoryLocation_t locationType,
                                             unsigned long long *count) {
    SIM_NVML_DEVICE(device, index, count);
    if ((unsigned)errorType > 1 || (unsigned)counterType > 1 || (unsigned)locationType >= NVML_MEMORY_LOCATION_COUNT)
        return NVML_ERROR_INVALID_ARGUMENT;
    *count = 0;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetRemappedRows_v2(nvmlDevice_t device, nvmlRemappedRowsInfo_v2_t *info) {
    SIM_NVML_DEVICE(device, index, info);
    *info = (nvmlRemappedRowsInfo_v2_t){0};
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetRemappedRows(nvmlDevice_t device, unsigned int *corrRows, unsigned int *uncRows,
                                       unsigned int *isPending, unsigned int *failureOccurred) {
    SIM_NVML_DEVICE(device, index, corrRows && uncRows && isPending && failureOccurred);
    *corrRows = *uncRows = *isPending = *failureOccurred = 0;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetRowRemapperHistogram(nvmlDevice_t device, nvmlRowRemapperHistogramValues_t *values) {
    SIM_NVML_DEVICE(device, index, values);
    *values = (nvmlRowRemapperHistogramValues_t){.max = 3072};
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetRetiredPages(nvmlDevice_t device, nvmlPageRetirementCause_t cause, unsigned int *pageCount,
                                       unsigned long long *addresses) {
    SIM_NVML_DEVICE(device, index, pageCount);
    (void)cause;
    (void)addresses;
    return NVML_ERROR_NOT_SUPPORTED; // this generation remaps rows instead
}

nvmlReturn_t nvmlDeviceGetRepairStatus(nvmlDevice_t device, nvmlRepairStatus_t *repairStatus) {
    SIM_NVML_DEVICE(device, index, repairStatus);
    if (repairStatus->version != (sizeof *repairStatus | 1u << 24))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    repairStatus->bChannelRepairPending = repairStatus->bTpcRepairPending = 0;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetSramEccErrorStatus(nvmlDevice_t device, nvmlEccSramErrorStatus_t *status) {
    SIM_NVML_DEVICE(device, index, status);
    if (status->version != (sizeof *status | 1u << 24))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    *status = (nvmlEccSramErrorStatus_t){.version = status->version};
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetUnrepairableMemoryFlag_v1(nvmlDevice_t device, nvmlUnrepairableMemoryStatus_v1_t *out) {
    SIM_NVML_DEVICE(device, index, out);
    out->bUnrepairableMemory = 0;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetLastBBXFlushTime(nvmlDevice_t device, unsigned long long *timestamp,
                                           unsigned long *durationUs) {
    SIM_NVML_DEVICE(device, index, timestamp && durationUs);
    return NVML_ERROR_NOT_SUPPORTED;
}

// ---- Small structures --------------------------------------------------------------------------------------------

nvmlReturn_t nvmlDeviceGetAddressingMode(nvmlDevice_t device, nvmlDeviceAddressingMode_t *mode) {
    SIM_NVML_DEVICE(device, index, mode);
    if (mode->version != (sizeof *mode | 1u << 24))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    mode->value = NVML_DEVICE_ADDRESSING_MODE_NONE;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetCapabilities(nvmlDevice_t device, nvmlDeviceCapabilities_t *caps) {
    SIM_NVML_DEVICE(device, index, caps);
    if (caps->version != (sizeof *caps | 1u << 24))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    caps->capMask = 0; // EGM disabled
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetC2cModeInfoV(nvmlDevice_t device, nvmlC2cModeInfo_v1_t *c2cModeInfo) {
    SIM_NVML_DEVICE(device, index, c2cModeInfo);
    c2cModeInfo->isC2cEnabled = 0;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPdi(nvmlDevice_t device, nvmlPdi_t *pdi) {
    SIM_NVML_DEVICE(device, index, pdi);
    if (pdi->version != (sizeof *pdi | 1u << 24))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    pdi->value = 0x53494d0000000000ull + (unsigned)sim.devices[index].board + 1; // made up, distinct per device
    return NVML_SUCCESS;
}

static nvmlReturn_t idle(nvmlDevice_t device, unsigned *utilization, unsigned *period) {
    SIM_NVML_DEVICE(device, index, utilization && period);
    *utilization = 0; // there are no video engines to be busy
    *period = 167000;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetEncoderUtilization(nvmlDevice_t device, unsigned int *u, unsigned int *period) {
    return idle(device, u, period);
}

nvmlReturn_t nvmlDeviceGetDecoderUtilization(nvmlDevice_t device, unsigned int *u, unsigned int *period) {
    return idle(device, u, period);
}

nvmlReturn_t nvmlDeviceGetJpgUtilization(nvmlDevice_t device, unsigned int *u, unsigned int *period) {
    return idle(device, u, period);
}

nvmlReturn_t nvmlDeviceGetOfaUtilization(nvmlDevice_t device, unsigned int *u, unsigned int *period) {
    return idle(device, u, period);
}

nvmlReturn_t nvmlDeviceGetEncoderStats(nvmlDevice_t device, unsigned int *sessions, unsigned int *fps,
                                       unsigned int *latency) {
    SIM_NVML_DEVICE(device, index, sessions && fps && latency);
    *sessions = *fps = *latency = 0;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetFBCStats(nvmlDevice_t device, nvmlFBCStats_t *fbcStats) {
    SIM_NVML_DEVICE(device, index, fbcStats);
    *fbcStats = (nvmlFBCStats_t){0};
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPcieThroughput(nvmlDevice_t device, nvmlPcieUtilCounter_t counter, unsigned int *value) {
    SIM_NVML_DEVICE(device, index, value);
    if ((unsigned)counter > 1)
        return NVML_ERROR_INVALID_ARGUMENT;
    *value = 0; // nothing crosses a bus here
    return NVML_SUCCESS;
}

// All processors and the one node are near, within either scope.
nvmlReturn_t nvmlDeviceGetCpuAffinity(nvmlDevice_t device, unsigned int cpuSetSize, unsigned long *cpuSet) {
    SIM_NVML_DEVICE(device, index, cpuSet && cpuSetSize);
    memset(cpuSet, 0xff, cpuSetSize * sizeof *cpuSet);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetCpuAffinityWithinScope(nvmlDevice_t device, unsigned int cpuSetSize, unsigned long *cpuSet,
                                                 nvmlAffinityScope_t scope) {
    return scope > NVML_AFFINITY_SCOPE_SOCKET ? NVML_ERROR_INVALID_ARGUMENT
                                              : nvmlDeviceGetCpuAffinity(device, cpuSetSize, cpuSet);
}

nvmlReturn_t nvmlDeviceGetMemoryAffinity(nvmlDevice_t device, unsigned int nodeSetSize, unsigned long *nodeSet,
                                         nvmlAffinityScope_t scope) {
    SIM_NVML_DEVICE(device, index, nodeSet && nodeSetSize && scope <= NVML_AFFINITY_SCOPE_SOCKET);
    memset(nodeSet, 0, nodeSetSize * sizeof *nodeSet);
    nodeSet[0] = 1;
    return NVML_SUCCESS;
}

// ---- Several devices -----------------------------------------------------------------------------------------------

// Each on a board of its own below one host bridge, with peer access both ways.
nvmlReturn_t nvmlDeviceOnSameBoard(nvmlDevice_t device1, nvmlDevice_t device2, int *onSameBoard) {
    SIM_NVML_DEVICE(device1, first, onSameBoard);
    int second;
    if (sim_nvml_enter(device2, &second) != NVML_SUCCESS)
        return NVML_ERROR_INVALID_ARGUMENT;
    *onSameBoard = first == second;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTopologyCommonAncestor(nvmlDevice_t device1, nvmlDevice_t device2,
                                                 nvmlGpuTopologyLevel_t *pathInfo) {
    SIM_NVML_DEVICE(device1, first, pathInfo);
    int second;
    if (sim_nvml_enter(device2, &second) != NVML_SUCCESS)
        return NVML_ERROR_INVALID_ARGUMENT;
    *pathInfo = first == second ? NVML_TOPOLOGY_INTERNAL : NVML_TOPOLOGY_HOSTBRIDGE;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetP2PStatus(nvmlDevice_t device1, nvmlDevice_t device2, nvmlGpuP2PCapsIndex_t p2pIndex,
                                    nvmlGpuP2PStatus_t *p2pStatus) {
    SIM_NVML_DEVICE(device1, first, p2pStatus);
    int second; // may be the first, too: NCCL asks for every pair, and ends where one is refused
    if (sim_nvml_enter(device2, &second) != NVML_SUCCESS || (unsigned)p2pIndex >= NVML_P2P_CAPS_INDEX_UNKNOWN)
        return NVML_ERROR_INVALID_ARGUMENT;
    const bool no = p2pIndex == NVML_P2P_CAPS_INDEX_NVLINK ? !sim.nvlinks : !sim_device_reaches(first, second);
    *p2pStatus = no ? NVML_P2P_STATUS_NOT_SUPPORTED : NVML_P2P_STATUS_OK;
    return NVML_SUCCESS;
}

// Links: of a single H200 without a fabric, where the other facts come from, none. With TF_SIM_NVLINKS=18 as many of each GPU lead to
// four switches, as on a board of eight. A number that this driver does not know is refused where that was asked.
enum { LINKS = 18, SWITCHES = 4 };

static bool linked(unsigned link) { return link < sim.nvlinks; }

#define LINK(function, type, answer)                                                                                   \
    nvmlReturn_t function(nvmlDevice_t device, unsigned int link, type *out) {                                         \
        SIM_NVML_DEVICE(device, index, out);                                                                           \
        if (!linked(link))                                                                                             \
            return NVML_ERROR_NOT_SUPPORTED;                                                                           \
        *out = (answer);                                                                                               \
        return NVML_SUCCESS;                                                                                           \
    }
#define NO_LINK_OF(function, what, type)                                                                               \
    nvmlReturn_t function(nvmlDevice_t device, unsigned int link, what which, type *out) {                             \
        SIM_NVML_DEVICE(device, index, out);                                                                           \
        (void)link, (void)which;                                                                                       \
        return NVML_ERROR_NOT_SUPPORTED;                                                                               \
    }
LINK(nvmlDeviceGetNvLinkState, nvmlEnableState_t, NVML_FEATURE_ENABLED)
LINK(nvmlDeviceGetNvLinkVersion, unsigned int, NVML_NVLINK_VERSION_4_0)
LINK(nvmlDeviceGetNvLinkRemoteDeviceType, nvmlIntNvLinkDeviceType_t, NVML_NVLINK_DEVICE_TYPE_SWITCH)
NO_LINK_OF(nvmlDeviceGetNvLinkErrorCounter, nvmlNvLinkErrorCounter_t, unsigned long long)
NO_LINK_OF(nvmlDeviceGetNvLinkUtilizationControl, unsigned int, nvmlNvLinkUtilizationControl_t)

nvmlReturn_t nvmlDeviceGetNvLinkRemotePciInfo_v2(nvmlDevice_t device, unsigned int link, nvmlPciInfo_t *pci) {
    SIM_NVML_DEVICE(device, index, pci);
    if (!linked(link))
        return NVML_ERROR_NOT_SUPPORTED;
    *pci = (nvmlPciInfo_t){.bus = 1 + link % SWITCHES, .pciDeviceId = 0x22A310DE, .pciSubSystemId = 0x173E10DE};
    snprintf(pci->busIdLegacy, sizeof pci->busIdLegacy, "0000:%02X:00.0", pci->bus);
    snprintf(pci->busId, sizeof pci->busId, "00000000:%02X:00.0", pci->bus);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetNvLinkRemotePciInfo(nvmlDevice_t device, unsigned int link, nvmlPciInfo_t *pci) {
    nvmlPciInfo_t whole;
    nvmlReturn_t result = nvmlDeviceGetNvLinkRemotePciInfo_v2(device, link, pci ? &whole : NULL);
    if (result == NVML_SUCCESS)
        memcpy(pci, &whole, 32); // as far as pciDeviceId (580.159.04, measured)
    return result;
}

nvmlReturn_t nvmlDeviceGetNvLinkCapability(nvmlDevice_t device, unsigned int link, nvmlNvLinkCapability_t capability,
                                           unsigned int *result) {
    SIM_NVML_DEVICE(device, index, result && link < LINKS);
    if (!linked(link) || (unsigned)capability > NVML_NVLINK_CAP_VALID)
        return NVML_ERROR_NOT_SUPPORTED;
    *result = capability != NVML_NVLINK_CAP_SLI_BRIDGE;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetNvLinkUtilizationCounter(nvmlDevice_t device, unsigned int link, unsigned int counter,
                                                   unsigned long long *rxcounter, unsigned long long *txcounter) {
    SIM_NVML_DEVICE(device, index, rxcounter && txcounter);
    (void)link, (void)counter;
    return NVML_ERROR_NOT_SUPPORTED;
}

// ---- Field values ------------------------------------------------------------------------------------------------

static const struct {
    unsigned field;
    unsigned value;
} field_values[] = {
    {NVML_FI_DEV_ECC_CURRENT, 1},
    {NVML_FI_DEV_ECC_PENDING, 1},
    {NVML_FI_DEV_MEMORY_TEMP, 43},
    {NVML_FI_DEV_POWER_AVERAGE, 127540},
    {NVML_FI_DEV_POWER_INSTANT, 132290},
    {NVML_FI_DEV_POWER_MIN_LIMIT, 200000},
    {NVML_FI_DEV_POWER_MAX_LIMIT, 700000},
    {NVML_FI_DEV_POWER_DEFAULT_LIMIT, 700000},
    {NVML_FI_DEV_POWER_CURRENT_LIMIT, 700000},
    {NVML_FI_DEV_POWER_REQUESTED_LIMIT, 700000},
};

nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int valuesCount, nvmlFieldValue_t *values) {
    SIM_NVML_DEVICE(device, index, values && valuesCount > 0 && valuesCount <= 1024);
    for (int i = 0; i < valuesCount; i++) {
        values[i].nvmlReturn = NVML_ERROR_NOT_SUPPORTED; // each field has its own result
        values[i].timestamp = (long long)(sim_now_ns() / 1000);
        values[i].latencyUsec = 0;
        if (values[i].fieldId == NVML_FI_DEV_NVLINK_GET_STATE && linked(values[i].scopeId)) {
            values[i].nvmlReturn = NVML_SUCCESS;
            values[i].valueType = NVML_VALUE_TYPE_UNSIGNED_INT;
            values[i].value = (nvmlValue_t){.uiVal = NVML_FEATURE_ENABLED};
        }
        for (size_t k = 0; k < sizeof field_values / sizeof *field_values; k++) {
            bool whole_gpu = values[i].scopeId == 0; // other scopes: the memory, the module
            if (field_values[k].field != values[i].fieldId || !whole_gpu)
                continue;
            values[i].nvmlReturn = NVML_SUCCESS;
            values[i].valueType = NVML_VALUE_TYPE_UNSIGNED_INT;
            values[i].value = (nvmlValue_t){.uiVal = field_values[k].value};
        }
    }
    return NVML_SUCCESS;
}
