// Simulated GPU: NVML, alone and together with CUDA in the same process.
#include "simgpu_check.h"

#include <unistd.h>

#define NVML_OK(call) CHECK((call) == NVML_SUCCESS)

// Answers of NVML 580.159.04 on an H200.
static void what_is_off(nvmlDevice_t device) {
    unsigned int value = 9;
    nvmlConfComputeSystemCaps_t can;
    nvmlConfComputeSystemState_t state = {9, 9, 9};
    nvmlSystemConfComputeSettings_t settings = {.version = 1};
    nvmlConfComputeMemSizeInfo_t sizes;
    CHECK(nvmlDeviceGetGpuInstanceId(device, &value) == NVML_ERROR_INVALID_ARGUMENT);
    CHECK(nvmlDeviceGetComputeInstanceId(device, &value) == NVML_ERROR_INVALID_ARGUMENT);
    NVML_OK(nvmlSystemGetConfComputeCapabilities(&can));
    CHECK(can.cpuCaps == 0 && can.gpusCaps == 1);
    NVML_OK(nvmlSystemGetConfComputeState(&state));
    CHECK(!state.environment && !state.ccFeature && !state.devToolsMode);
    NVML_OK(nvmlSystemGetConfComputeGpusReadyState(&value));
    CHECK(value == 0);
    CHECK(nvmlSystemGetConfComputeSettings(&settings) == NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
    settings.version = (unsigned int)sizeof settings | 1u << 24;
    NVML_OK(nvmlSystemGetConfComputeSettings(&settings));
    NVML_OK(nvmlDeviceGetConfComputeMemSizeInfo(device, &sizes));
    CHECK(sizes.protectedMemSizeKib == 0 && sizes.unprotectedMemSizeKib > 0);
    CHECK(nvmlDeviceGetNvLinkCapability(device, 17, NVML_NVLINK_CAP_VALID, &value) == NVML_ERROR_NOT_SUPPORTED);
    CHECK(nvmlDeviceGetNvLinkCapability(device, 18, NVML_NVLINK_CAP_VALID, &value) == NVML_ERROR_INVALID_ARGUMENT);
}

static void metrics_of(nvmlDevice_t device) {
    static nvmlGpmMetricsGet_t get = {.version = NVML_GPM_METRICS_GET_VERSION};
    nvmlGpmSample_t first, second;
    NVML_OK(nvmlGpmSampleAlloc(&first));
    NVML_OK(nvmlGpmSampleAlloc(&second));
    get.sample1 = first;
    get.sample2 = second;
    get.numMetrics = 1;
    get.metrics[0].metricId = 2;
    CHECK(nvmlGpmMetricsGet(&get) == NVML_ERROR_INVALID_ARGUMENT); // neither holds anything
    NVML_OK(nvmlGpmSampleGet(device, first));
    NVML_OK(nvmlGpmSampleGet(device, second));
    for (unsigned int i = 0; i < NVML_GPM_METRIC_MAX; i++)
        get.metrics[i] = (nvmlGpmMetric_t){.metricId = i == 1 ? 300 : i == 2 ? 99 : 2, .value = -5};
    static const struct {
        unsigned int count;
        nvmlReturn_t result;
    } counts[] = {{0, NVML_ERROR_INVALID_ARGUMENT}, {211, NVML_ERROR_INVALID_ARGUMENT}, {210, NVML_SUCCESS}};
    for (int i = 0; i < 3; i++) {
        get.numMetrics = counts[i].count;
        CHECK(nvmlGpmMetricsGet(&get) == counts[i].result);
    }
    CHECK(get.metrics[0].nvmlReturn == NVML_SUCCESS && !strcmp(get.metrics[0].metricInfo.shortName, "smutil"));
    CHECK(get.metrics[1].nvmlReturn == NVML_ERROR_INVALID_ARGUMENT && get.metrics[1].value == -5);
    CHECK(!get.metrics[2].metricInfo.shortName && !strcmp(get.metrics[2].metricInfo.unit, "%"));
    get.sample2 = first;
    CHECK(nvmlGpmMetricsGet(&get) == NVML_ERROR_INVALID_ARGUMENT);
    NVML_OK(nvmlGpmSampleFree(first));
    NVML_OK(nvmlGpmSampleFree(second));
}

int main(void) {
    unsigned count;
    nvmlDevice_t device, other;
    CHECK(nvmlDeviceGetCount_v2(&count) == NVML_ERROR_UNINITIALIZED);
    CHECK(nvmlSystemGetNvlinkBwMode(&count) == NVML_ERROR_UNINITIALIZED); // not simulated, and asked too early
    NVML_OK(nvmlInit_v2());
    NVML_OK(nvmlInitWithFlags(0));
    NVML_OK(nvmlShutdown());
    NVML_OK(nvmlDeviceGetCount_v2(&count));
    CHECK(count == 2); // TF_SIM_DEVICES of this test
    int cuda_count;
    GIVES(3, cuDeviceGetCount(&cuda_count)); // NVML does not initialise CUDA
    NVML_OK(nvmlDeviceGetHandleByIndex_v2(0, &device));
    NVML_OK(nvmlDeviceGetHandleByIndex_v2(1, &other));
    CHECK(nvmlDeviceGetHandleByIndex_v2(2, &other) == NVML_ERROR_INVALID_ARGUMENT);
    CHECK(nvmlDeviceGetName((nvmlDevice_t)(void *)&count, NULL, 0) == NVML_ERROR_INVALID_ARGUMENT);
    char text[96], uuid[96], second[96];
    NVML_OK(nvmlDeviceGetName(device, text, sizeof text));
    CHECK(!strcmp(text, "Simulated NVIDIA H200"));
    CHECK(nvmlDeviceGetName(device, text, 5) == NVML_ERROR_INSUFFICIENT_SIZE);
    NVML_OK(nvmlDeviceGetUUID(device, uuid, sizeof uuid));
    NVML_OK(nvmlDeviceGetUUID(other, second, sizeof second));
    CHECK(strcmp(uuid, second) && !strncmp(uuid, "GPU-", 4) && strlen(uuid) == 40);
    nvmlGpuP2PStatus_t status =
        NVML_P2P_STATUS_UNKNOWN; // a device is asked about itself by NCCL, which ends where that is refused
    NVML_OK(nvmlDeviceGetP2PStatus(device, device, NVML_P2P_CAPS_INDEX_READ, &status));
    CHECK(status == NVML_P2P_STATUS_OK);
    NVML_OK(nvmlDeviceGetP2PStatus(device, other, NVML_P2P_CAPS_INDEX_WRITE, &status));
    nvmlDevice_t found;
    NVML_OK(nvmlDeviceGetHandleByUUID(second, &found));
    CHECK(found == other);
    nvmlPciInfo_t pci;
    NVML_OK(nvmlDeviceGetPciInfo_v3(other, &pci));
    NVML_OK(nvmlDeviceGetHandleByPciBusId_v2(pci.busId, &found));
    CHECK(found == other && strlen(pci.busId) == 16);
    char serial[30];
    NVML_OK(nvmlDeviceGetSerial(device, text, sizeof text));
    NVML_OK(nvmlDeviceGetSerial(other, serial, sizeof serial));
    CHECK(strcmp(text, serial));
    NVML_OK(nvmlDeviceGetHandleBySerial(serial, &found));
    CHECK(found == other);
    CHECK(nvmlDeviceGetHandleBySerial("1", &found) == NVML_ERROR_NOT_FOUND);
    CHECK(nvmlDeviceGetHandleBySerial(NULL, &found) == NVML_ERROR_INVALID_ARGUMENT);
    nvmlUUID_t id = {.version = sizeof id | 1u << 24, .type = NVML_UUID_TYPE_ASCII};
    memcpy(id.value.str, second, strlen(second) + 1);
    NVML_OK(nvmlDeviceGetHandleByUUIDV(&id, &found));
    CHECK(found == other);
    CUuuid bytes;
    id.type = NVML_UUID_TYPE_BINARY;
    sscanf(second, "GPU-%2hhx%2hhx%2hhx%2hhx", &bytes.bytes[0], &bytes.bytes[1], &bytes.bytes[2], &bytes.bytes[3]);
    memset(&id.value, 0, sizeof id.value);
    memcpy(id.value.bytes, bytes.bytes, 4);
    CHECK(nvmlDeviceGetHandleByUUIDV(&id, &found) == NVML_ERROR_NOT_FOUND);
    id.version = 1;
    CHECK(nvmlDeviceGetHandleByUUIDV(&id, &found) == NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
    nvmlPciInfo_t older = pci;
    memset(&older, 0x5a, sizeof older);
    NVML_OK(nvmlDeviceGetPciInfo_v2(other, &older));
    CHECK(!memcmp(&older, &pci, 36) && ((unsigned char *)&older)[36] == 0x5a);
    unsigned long nodes[2] = {9, 9};
    NVML_OK(nvmlDeviceGetMemoryAffinity(device, 2, nodes, NVML_AFFINITY_SCOPE_SOCKET));
    CHECK(nodes[0] == 1 && nodes[1] == 0);
    CHECK(nvmlDeviceGetMemoryAffinity(device, 2, nodes, 2) == NVML_ERROR_INVALID_ARGUMENT);
    // What is not simulated: after init, for a device, and by name.
    unsigned speed;
    CHECK(nvmlDeviceGetPcieLinkMaxSpeed(device, &speed) == NVML_ERROR_NOT_SUPPORTED);
    CHECK(nvmlDeviceGetPcieLinkMaxSpeed((nvmlDevice_t)(void *)&count, &speed) == NVML_ERROR_INVALID_ARGUMENT);
    NVML_OK(nvmlSystemGetDriverVersion(text, sizeof text));
    CHECK(!strcmp(text, "580.159.04"));

    nvmlMemory_v2_t memory = {.version = sizeof memory | 2u << 24}, wrong = {.version = 1};
    CHECK(nvmlDeviceGetMemoryInfo_v2(device, &wrong) == NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
    NVML_OK(nvmlDeviceGetMemoryInfo_v2(device, &memory));
    CHECK(memory.used == 0 && memory.total - memory.reserved == 4096ull << 20); // TF_SIM_MEMORY_MB of this test
    nvmlProcessInfo_t processes[4];
    unsigned processes_count = 4;
    NVML_OK(nvmlDeviceGetComputeRunningProcesses_v3(device, &processes_count, processes));
    CHECK(processes_count == 0);

    start();
    CUmodule module = load_kernels();
    CUdeviceptr p;
    size_t free_bytes, total;
    OK(cuMemAlloc_v2(&p, 1 << 30));
    OK(cuMemGetInfo_v2(&free_bytes, &total));
    CHECK(total == 4096ull << 20);
    NVML_OK(nvmlDeviceGetMemoryInfo_v2(device, &memory));
    CHECK(memory.used == total - free_bytes && memory.free == free_bytes && memory.total == total + memory.reserved);
    processes_count = 0;
    CHECK(nvmlDeviceGetComputeRunningProcesses_v3(device, &processes_count, NULL) == NVML_ERROR_INSUFFICIENT_SIZE);
    CHECK(processes_count == 1);
    NVML_OK(nvmlDeviceGetComputeRunningProcesses_v3(device, &processes_count, processes));
    CHECK(processes[0].pid == (unsigned)getpid() && processes[0].usedGpuMemory == memory.used);
    processes_count = 4;
    NVML_OK(nvmlDeviceGetComputeRunningProcesses_v3(other, &processes_count, processes));
    CHECK(processes_count == 0);
    nvmlUtilization_t utilization;
    NVML_OK(nvmlDeviceGetUtilizationRates(device, &utilization));
    CHECK(utilization.gpu == 0);
    OK(spin(module, 30000000, NULL));
    NVML_OK(nvmlDeviceGetUtilizationRates(device, &utilization));
    CHECK(utilization.gpu == 100);
    OK(cuCtxSynchronize());
    unsigned value;
    CHECK(nvmlDeviceGetFanSpeed(device, &value) == NVML_ERROR_NOT_SUPPORTED);
    nvmlFieldValue_t fields[2] = {{.fieldId = NVML_FI_DEV_MEMORY_TEMP}, {.fieldId = 99999}};
    NVML_OK(nvmlDeviceGetFieldValues(device, 2, fields));
    CHECK(fields[0].nvmlReturn == NVML_SUCCESS && fields[0].value.uiVal == 43 &&
          fields[1].nvmlReturn == NVML_ERROR_NOT_SUPPORTED);

    // Two devices: peers.
    CUcontext first, second_context;
    CUdeviceptr q;
    int can;
    OK(cuCtxGetCurrent(&first));
    OK(cuDeviceCanAccessPeer(&can, 0, 1));
    CHECK(can == 1);
    OK(cuDevicePrimaryCtxRetain(&second_context, 1));
    OK(cuCtxPushCurrent_v2(second_context));
    OK(cuMemAlloc_v2(&q, 4096));
    OK(cuMemsetD8_v2(q, 7, 4096));
    OK(cuCtxSynchronize());
    OK(cuCtxPopCurrent_v2(NULL));
    OK(cuMemcpyPeer(p, first, q, second_context, 4096)); // needs no peer access
    unsigned char back[4096];
    OK(cuMemcpyDtoH_v2(back, p, 4096));
    CHECK(back[0] == 7 && back[4095] == 7);
    OK(cuCtxEnablePeerAccess(second_context, 0));
    GIVES(704, cuCtxEnablePeerAccess(second_context, 0));
    OK(fill(module, q, 9, 1024, NULL)); // a kernel does
    OK(cuCtxSynchronize());
    OK(cuCtxDisablePeerAccess(second_context));
    OK(fill(module, q, 9, 1024, NULL));
    GIVES(700, cuCtxSynchronize());
    OK(cuCtxSetCurrent(second_context)); // the other device's context is unharmed
    OK(cuMemcpyDtoH_v2(back, q, 4096));
    CHECK(back[0] == 9);
    CUuuid a, b;
    OK(cuDeviceGetUuid_v2(&a, 0));
    OK(cuDeviceGetUuid_v2(&b, 1));
    CHECK(memcmp(&a, &b, sizeof a));
    CHECK(!memchr(&a, 0, sizeof a) && !memchr(&b, 0, sizeof b));
    OK(cuDevicePrimaryCtxReset_v2(0));
    GIVES(700, cuDevicePrimaryCtxRetain(&first, 0));
    OK(cuDevicePrimaryCtxReset_v2(1));
    OK(cuDevicePrimaryCtxRetain(&second_context, 1));
    OK(cuDevicePrimaryCtxReset_v2(1));
    what_is_off(other);
    metrics_of(other);
    NVML_OK(nvmlShutdown());
    CHECK(nvmlShutdown() == NVML_ERROR_UNINITIALIZED);
    puts("ok");
    return 0;
}
