// NVML, first half: start and end, system answers, device handles and identity, memory, processes, utilisation.
//
// Values are those of an H200 under driver 580.159.04 where they are fixed; memory, processes and utilisation are
// those of the simulated device in this process, the only one that it knows. nvmlInit counts its calls; handles are
// addresses of the device table, checked before use. NVML works without cuInit, as the real library does.
#include "sim.h"
#include "sim_nvml.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

static atomic_int initialised; // nvmlInit calls minus nvmlShutdown calls

static nvmlReturn_t init(void) {
    if (sim_setup() != CUDA_SUCCESS)
        return NVML_ERROR_MEMORY;
    atomic_fetch_add(&initialised, 1);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlInit_v2(void) { return init(); }

nvmlReturn_t nvmlInit(void) { return init(); }

nvmlReturn_t nvmlInitWithFlags(unsigned int flags) { return flags & ~3u ? NVML_ERROR_INVALID_ARGUMENT : init(); }

nvmlReturn_t nvmlShutdown(void) {
    int count = atomic_load(&initialised);
    do {
        if (count == 0)
            return NVML_ERROR_UNINITIALIZED;
    } while (!atomic_compare_exchange_weak(&initialised, &count, count - 1));
    return NVML_SUCCESS;
}

nvmlReturn_t sim_nvml_enter(nvmlDevice_t device, int *index) {
    if (atomic_load(&initialised) == 0)
        return NVML_ERROR_UNINITIALIZED;
    for (int i = 0; i < sim.nboards; i++) {
        if ((void *)device != (void *)&sim.devices[i])
            continue;
        *index = i;
        return NVML_SUCCESS;
    }
    return NVML_ERROR_INVALID_ARGUMENT;
}

nvmlReturn_t sim_nvml_text(char *out, unsigned length, const char *text) {
    if (!out)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (length <= strlen(text))
        return NVML_ERROR_INSUFFICIENT_SIZE;
    memcpy(out, text, strlen(text) + 1);
    return NVML_SUCCESS;
}

nvmlReturn_t sim_nvml_started(void) { return atomic_load(&initialised) ? NVML_SUCCESS : NVML_ERROR_UNINITIALIZED; }

// ---- System ------------------------------------------------------------------------------------------------------

nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned int length) {
    nvmlReturn_t result = sim_nvml_started();
    return result == NVML_SUCCESS ? sim_nvml_text(version, length, "580.159.04") : result;
}

nvmlReturn_t nvmlSystemGetNVMLVersion(char *version, unsigned int length) {
    return sim_nvml_text(version, length, "13.580.159.04");
}

static nvmlReturn_t cuda_version(int *version) {
    if (!version)
        return NVML_ERROR_INVALID_ARGUMENT;
    *version = 13000;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *cudaDriverVersion) { return cuda_version(cudaDriverVersion); }

nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *cudaDriverVersion) { return cuda_version(cudaDriverVersion); }

nvmlReturn_t nvmlSystemGetProcessName(unsigned int pid, char *name, unsigned int length) {
    nvmlReturn_t result = sim_nvml_started();
    if (result != NVML_SUCCESS)
        return result;
    if (!name || !length)
        return NVML_ERROR_INVALID_ARGUMENT;
    char path[64];
    snprintf(path, sizeof path, "/proc/%u/cmdline", pid);
    FILE *file = fopen(path, "re");
    if (!file)
        return NVML_ERROR_NOT_FOUND;
    size_t got = fread(name, 1, length - 1, file);
    fclose(file);
    name[got] = 0; // the first argument ends at its own NUL
    return got ? NVML_SUCCESS : NVML_ERROR_NOT_FOUND;
}

const char *nvmlErrorString(nvmlReturn_t result) {
    const char *text = tpg_nvml_error_text((int)result);
    return text ? text : "Unknown Error";
}

// ---- Handles -----------------------------------------------------------------------------------------------------

static nvmlReturn_t device_count(unsigned *count) {
    nvmlReturn_t result = sim_nvml_started();
    if (result != NVML_SUCCESS)
        return result;
    if (!count)
        return NVML_ERROR_INVALID_ARGUMENT;
    *count = (unsigned)sim.nboards;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetCount(unsigned int *deviceCount) { return device_count(deviceCount); }

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *deviceCount) { return device_count(deviceCount); }

static nvmlReturn_t by_place(int place, nvmlDevice_t *device) {
    *device = (nvmlDevice_t)(void *)&sim.devices[place];
    return NVML_SUCCESS;
}

static nvmlReturn_t by_index(unsigned index, nvmlDevice_t *device) {
    SIM_NVML_STARTED();
    for (int i = 0; device && i < sim.nboards; i++)
        if ((unsigned)sim.devices[i].board == index)
            return by_place(i, device);
    return NVML_ERROR_INVALID_ARGUMENT;
}

nvmlReturn_t nvmlDeviceGetHandleByIndex(unsigned int index, nvmlDevice_t *device) { return by_index(index, device); }

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device) { return by_index(index, device); }

static void uuid_text(int index, char text[48]) {
    const unsigned char *b = (const unsigned char *)sim.devices[index].uuid.bytes;
    snprintf(text, 48, "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", b[0], b[1], b[2],
             b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]);
}

nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device) {
    nvmlReturn_t result = sim_nvml_started();
    if (result != NVML_SUCCESS)
        return result;
    if (!uuid || !device)
        return NVML_ERROR_INVALID_ARGUMENT;
    for (int i = 0; i < sim.nboards; i++) {
        char text[48];
        uuid_text(i, text);
        if (!strcmp(text, uuid) || !strcmp(text + 4, uuid)) // with or without "GPU-" (580.159.04)
            return by_place(i, device);
    }
    return NVML_ERROR_NOT_FOUND;
}

// The number of the board: made up, distinct per device.
static void serial_text(int index, char text[16]) { snprintf(text, 16, "%013llu", 1650000000000ull + (unsigned)index); }

nvmlReturn_t nvmlDeviceGetSerial(nvmlDevice_t device, char *serial, unsigned int length) {
    SIM_NVML_DEVICE(device, index, serial);
    char text[16];
    serial_text(sim.devices[index].board, text);
    return sim_nvml_text(serial, length, text);
}

nvmlReturn_t nvmlDeviceGetHandleBySerial(const char *serial, nvmlDevice_t *device) {
    SIM_NVML_STARTED();
    if (!serial || !device)
        return NVML_ERROR_INVALID_ARGUMENT;
    for (int i = 0; i < sim.nboards; i++) {
        char text[16];
        serial_text(sim.devices[i].board, text);
        if (!strcmp(text, serial))
            return by_place(i, device);
    }
    return NVML_ERROR_NOT_FOUND;
}

nvmlReturn_t nvmlDeviceGetHandleByUUIDV(const nvmlUUID_t *uuid, nvmlDevice_t *device) {
    SIM_NVML_STARTED();
    if (!uuid || !device)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (uuid->version != (sizeof *uuid | 1u << 24))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    if (uuid->type == NVML_UUID_TYPE_ASCII) {
        char text[sizeof uuid->value.str + 1] = {0};
        memcpy(text, uuid->value.str, sizeof uuid->value.str);
        return nvmlDeviceGetHandleByUUID(text, device);
    }
    if (uuid->type != NVML_UUID_TYPE_BINARY)
        return NVML_ERROR_INVALID_ARGUMENT;
    for (int i = 0; i < sim.nboards; i++)
        if (!memcmp(sim.devices[i].uuid.bytes, uuid->value.bytes, sizeof sim.devices[i].uuid.bytes))
            return by_place(i, device);
    return NVML_ERROR_NOT_FOUND;
}

static nvmlReturn_t by_bus_id(const char *id, nvmlDevice_t *device) {
    nvmlReturn_t result = sim_nvml_started();
    if (result != NVML_SUCCESS)
        return result;
    unsigned domain = 0, bus = 0, number = 0;
    if (!id || !device)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (sscanf(id, "%x:%x:%x", &domain, &bus, &number) != 3 && (domain = 0, sscanf(id, "%x:%x", &bus, &number) != 2))
        return NVML_ERROR_INVALID_ARGUMENT;
    for (int i = 0; i < sim.nboards; i++)
        if (!domain && !number && bus == (unsigned)sim_pci_bus(i))
            return by_place(i, device);
    return NVML_ERROR_NOT_FOUND;
}

nvmlReturn_t nvmlDeviceGetHandleByPciBusId(const char *pciBusId, nvmlDevice_t *device) {
    return by_bus_id(pciBusId, device);
}

nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *pciBusId, nvmlDevice_t *device) {
    return by_bus_id(pciBusId, device);
}

// S-class units, and devices that the operator hides: there are none.
static nvmlReturn_t none_of_them(unsigned *count) {
    SIM_NVML_STARTED();
    if (!count)
        return NVML_ERROR_INVALID_ARGUMENT;
    *count = 0;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlUnitGetCount(unsigned int *unitCount) { return none_of_them(unitCount); }

nvmlReturn_t nvmlGetExcludedDeviceCount(unsigned int *deviceCount) { return none_of_them(deviceCount); }

// ---- Identity ----------------------------------------------------------------------------------------------------

nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned int length) {
    SIM_NVML_DEVICE(device, index, name);
    return sim_nvml_text(name, length, "Simulated NVIDIA H200");
}

nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned int length) {
    SIM_NVML_DEVICE(device, index, uuid);
    char text[48];
    uuid_text(index, text);
    return sim_nvml_text(uuid, length, text);
}

nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned int *out) {
    SIM_NVML_DEVICE(device, index, out);
    *out = (unsigned)sim.devices[index].board;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMinorNumber(nvmlDevice_t device, unsigned int *minorNumber) {
    SIM_NVML_DEVICE(device, index, minorNumber);
    *minorNumber = (unsigned)sim.devices[index].board;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *pci) {
    SIM_NVML_DEVICE(device, index, pci);
    *pci =
        (nvmlPciInfo_t){.bus = (unsigned)sim_pci_bus(index), .pciDeviceId = 0x233510DE, .pciSubSystemId = 0x18BF10DE};
    snprintf(pci->busIdLegacy, sizeof pci->busIdLegacy, "%.15s", sim.devices[index].pci);
    snprintf(pci->busId, sizeof pci->busId, "0000%.20s", sim.devices[index].pci);
    return NVML_SUCCESS;
}

// The structs of the earlier versions begin like the third and end after 32 and 36 bytes.
static nvmlReturn_t older_pci(nvmlDevice_t device, nvmlPciInfo_t *pci, size_t size) {
    nvmlPciInfo_t whole;
    nvmlReturn_t result = nvmlDeviceGetPciInfo_v3(device, pci ? &whole : NULL);
    if (result == NVML_SUCCESS)
        memcpy(pci, &whole, size);
    return result;
}

nvmlReturn_t nvmlDeviceGetPciInfo(nvmlDevice_t device, nvmlPciInfo_t *pci) { return older_pci(device, pci, 32); }

nvmlReturn_t nvmlDeviceGetPciInfo_v2(nvmlDevice_t device, nvmlPciInfo_t *pci) { return older_pci(device, pci, 36); }

nvmlReturn_t nvmlDeviceGetPciInfoExt(nvmlDevice_t device, nvmlPciInfoExt_t *pci) {
    SIM_NVML_DEVICE(device, index, pci);
    if (pci->version != (sizeof *pci | 1u << 24))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    pci->domain = pci->device = 0;
    pci->bus = (unsigned)sim_pci_bus(index);
    pci->pciDeviceId = 0x233510DE;
    pci->pciSubSystemId = 0x18BF10DE;
    pci->baseClass = 3;
    pci->subClass = 2;
    snprintf(pci->busId, sizeof pci->busId, "0000%.20s", sim.devices[index].pci);
    return NVML_SUCCESS;
}

// ---- Memory ------------------------------------------------------------------------------------------------------

static uint64_t memory_used(int index) {
    pthread_rwlock_rdlock(&sim.map_lock);
    uint64_t used = sim.devices[index].used;
    pthread_rwlock_unlock(&sim.map_lock);
    return used;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory) {
    SIM_NVML_DEVICE(device, index, memory);
    uint64_t used = memory_used(index);
    memory->total = sim.devices[index].total + SIM_NVML_RESERVED;
    memory->used = used + SIM_NVML_RESERVED; // the first version counts what the driver keeps as used
    memory->free = memory->total - memory->used;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory) {
    SIM_NVML_DEVICE(device, index, memory);
    if (memory->version != (sizeof *memory | 2u << 24))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    memory->total = sim.devices[index].total + SIM_NVML_RESERVED;
    memory->reserved = SIM_NVML_RESERVED;
    memory->used = memory_used(index);
    memory->free = memory->total - memory->reserved - memory->used;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetBAR1MemoryInfo(nvmlDevice_t device, nvmlBAR1Memory_t *bar1Memory) {
    SIM_NVML_DEVICE(device, index, bar1Memory);
    *bar1Memory = (nvmlBAR1Memory_t){.bar1Total = 262144ull << 20, .bar1Free = 262143ull << 20, .bar1Used = 1ull << 20};
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetConfComputeProtectedMemoryUsage(nvmlDevice_t device, nvmlMemory_t *memory) {
    SIM_NVML_DEVICE(device, index, memory);
    *memory = (nvmlMemory_t){0};
    return NVML_SUCCESS;
}

// ---- Processes and utilisation -----------------------------------------------------------------------------------

static bool has_context(int index, bool *busy) {
    bool found = false;
    *busy = false;
    pthread_mutex_lock(&sim.lock);
    for (sim_context_t *context = sim.contexts; context; context = context->next) {
        if (context->device != index || !context->active)
            continue;
        found = true;
        for (sim_stream_t *stream = context->streams; stream; stream = stream->next)
            *busy |= stream->done < stream->enqueued;
    }
    pthread_mutex_unlock(&sim.lock);
    return found;
}

bool sim_nvml_busy(int index) {
    bool busy;
    has_context(index, &busy);
    return busy;
}

static nvmlReturn_t processes(int index, unsigned *count, unsigned char *infos, size_t size) {
    bool busy;
    unsigned found = has_context(index, &busy), room = *count;
    *count = found;
    if (!found)
        return NVML_SUCCESS;
    if (!room)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    if (!infos)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlProcessInfo_v2_t info = {(unsigned)getpid(), memory_used(index), ~0u, ~0u}; // instance ids exist under MIG only
    memcpy(infos, &info, size); // the first version is the beginning of the second
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses(nvmlDevice_t device, unsigned int *infoCount,
                                                  nvmlProcessInfo_v1_t *infos) {
    SIM_NVML_DEVICE(device, index, infoCount);
    return processes(index, infoCount, (unsigned char *)infos, sizeof *infos);
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v2(nvmlDevice_t device, unsigned int *infoCount,
                                                     nvmlProcessInfo_v2_t *infos) {
    SIM_NVML_DEVICE(device, index, infoCount);
    return processes(index, infoCount, (unsigned char *)infos, sizeof *infos);
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned int *infoCount,
                                                     nvmlProcessInfo_t *infos) {
    SIM_NVML_DEVICE(device, index, infoCount);
    return processes(index, infoCount, (unsigned char *)infos, sizeof *infos);
}

static nvmlReturn_t no_processes(nvmlDevice_t device, unsigned *count) {
    SIM_NVML_DEVICE(device, index, count);
    *count = 0;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t device, unsigned int *infoCount,
                                                      nvmlProcessInfo_t *infos) {
    (void)infos;
    return no_processes(device, infoCount);
}

nvmlReturn_t nvmlDeviceGetMPSComputeRunningProcesses_v3(nvmlDevice_t device, unsigned int *infoCount,
                                                        nvmlProcessInfo_t *infos) {
    (void)infos;
    return no_processes(device, infoCount);
}

// Samples over time are not kept: who has the room that the driver wants learns that there are none newer than it has seen.
static nvmlReturn_t no_samples(const void *array, unsigned *count) {
    const unsigned wanted = 72;
    if (array && *count >= wanted)
        return NVML_ERROR_NOT_FOUND;
    *count = wanted;
    return NVML_ERROR_INSUFFICIENT_SIZE;
}

nvmlReturn_t nvmlDeviceGetProcessUtilization(nvmlDevice_t device, nvmlProcessUtilizationSample_t *utilization,
                                             unsigned int *processSamplesCount, unsigned long long lastSeenTimeStamp) {
    SIM_NVML_DEVICE(device, index, processSamplesCount);
    (void)lastSeenTimeStamp;
    return no_samples(utilization, processSamplesCount);
}

nvmlReturn_t nvmlDeviceGetProcessesUtilizationInfo(nvmlDevice_t device, nvmlProcessesUtilizationInfo_t *info) {
    SIM_NVML_DEVICE(device, index, info);
    if (info->version != (sizeof *info | 1u << 24))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    return no_samples(info->procUtilArray, &info->processSamplesCount);
}

nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses(nvmlDevice_t device, unsigned int *infoCount,
                                                   nvmlProcessInfo_v1_t *infos) {
    (void)infos;
    return no_processes(device, infoCount);
}

nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v2(nvmlDevice_t device, unsigned int *infoCount,
                                                      nvmlProcessInfo_v2_t *infos) {
    (void)infos;
    return no_processes(device, infoCount);
}

nvmlReturn_t nvmlDeviceGetMPSComputeRunningProcesses(nvmlDevice_t device, unsigned int *infoCount,
                                                     nvmlProcessInfo_v1_t *infos) {
    (void)infos;
    return no_processes(device, infoCount);
}

nvmlReturn_t nvmlDeviceGetMPSComputeRunningProcesses_v2(nvmlDevice_t device, unsigned int *infoCount,
                                                        nvmlProcessInfo_v2_t *infos) {
    (void)infos;
    return no_processes(device, infoCount);
}

nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *utilization) {
    SIM_NVML_DEVICE(device, index, utilization);
    utilization->gpu = sim_nvml_busy(index) ? 100 : 0; // of this instant: there is no sampling
    utilization->memory = 0;                           // memory traffic is not measured
    return NVML_SUCCESS;
}
