// The driver and its devices: cuInit, versions, device queries, error names, cuGetProcAddress.
//
// Stateless apart from what sim_setup made once; any thread enters. The attributes are those of an H200, except for
// what must differ from device to device (PCI location, UUID) and the name, which says that the device is simulated.
#include "sim.h"
#include "tpg_table.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DRIVER_VERSION 13000

CUresult cuInit(unsigned int Flags) {
    SIM_ENTER_ANY();
    if (sim_forked())
        return CUDA_ERROR_NOT_INITIALIZED;
    if (Flags)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = sim_setup();
    if (result == CUDA_SUCCESS)
        atomic_store(&sim.initialised, true);
    return result;
}

CUresult cuDriverGetVersion(int *driverVersion) {
    SIM_ENTER_ANY();
    if (!driverVersion)
        return CUDA_ERROR_INVALID_VALUE;
    *driverVersion = DRIVER_VERSION;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    SIM_ENTER();
    if (!device)
        return CUDA_ERROR_INVALID_VALUE;
    if (!sim_device_ok(ordinal))
        return CUDA_ERROR_INVALID_DEVICE;
    *device = ordinal;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int *count) {
    SIM_ENTER();
    if (!count)
        return CUDA_ERROR_INVALID_VALUE;
    *count = sim.ndevices;
    return CUDA_SUCCESS;
}

// A length below 0 is a large one: the text is written whole (580.159.04, measured).
static size_t room_for(int len) { return len < 0 ? INT_MAX : (size_t)len; }

CUresult cuDeviceGetName(char *name, int len, CUdevice dev) {
    SIM_ENTER();
    if (!name)
        return CUDA_ERROR_INVALID_VALUE;
    if (!sim_device_ok(dev))
        return CUDA_ERROR_INVALID_DEVICE;
    if (!len) // the driver ends the process at no bytes
        return CUDA_ERROR_INVALID_VALUE;
    snprintf(name, room_for(len), "Simulated NVIDIA H200");
    return CUDA_SUCCESS;
}

static CUresult get_uuid(CUuuid *uuid, CUdevice dev) {
    if (!uuid)
        return CUDA_ERROR_INVALID_VALUE;
    if (!sim_device_ok(dev))
        return CUDA_ERROR_INVALID_DEVICE;
    *uuid = sim.devices[dev].uuid;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetUuid(CUuuid *uuid, CUdevice dev) {
    SIM_ENTER();
    return get_uuid(uuid, dev);
}

CUresult cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice dev) {
    SIM_ENTER();
    return get_uuid(uuid, dev);
}

CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice dev) {
    SIM_ENTER();
    if (!bytes)
        return CUDA_ERROR_INVALID_VALUE;
    *bytes = sim_device_ok(dev) ? sim.devices[dev].total : 0; // written in any case (580.159.04, measured)
    return sim_device_ok(dev) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

CUresult cuDeviceTotalMem(unsigned int *bytes, CUdevice dev) {
    SIM_BEGINS(bytes, 0);
    size_t total = 0;
    CUresult result = cuDeviceTotalMem_v2(bytes ? &total : NULL, dev);
    if (result == CUDA_SUCCESS)
        *bytes = total < UINT32_MAX ? (unsigned)total : UINT32_MAX;
    return result;
}

CUresult cuDeviceGetAttribute(int *pi, CUdevice_attribute attrib, CUdevice dev) {
    SIM_ENTER();
    size_t count = sizeof sim_attributes_h200 / sizeof *sim_attributes_h200;
    if (!pi)
        return CUDA_ERROR_INVALID_VALUE;
    if (!sim_device_ok(dev))
        return CUDA_ERROR_INVALID_DEVICE;
    if ((unsigned)attrib < 1 || (size_t)attrib >= count)
        return CUDA_ERROR_INVALID_VALUE;
    switch (attrib) {
    case CU_DEVICE_ATTRIBUTE_PCI_BUS_ID:
        *pi = sim_pci_bus(dev);
        break;
    case CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID:
    case CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID:
        *pi = 0;
        break;
    default:
        *pi = sim_attributes_h200[attrib];
    }
    return CUDA_SUCCESS;
}

CUresult cuDeviceComputeCapability(int *major, int *minor, CUdevice dev) {
    SIM_ENTER();
    if (!major || !minor)
        return CUDA_ERROR_INVALID_VALUE;
    if (!sim_device_ok(dev))
        return CUDA_ERROR_INVALID_DEVICE;
    *major = sim_attributes_h200[CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR];
    *minor = sim_attributes_h200[CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR];
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetProperties(CUdevprop *prop, CUdevice dev) {
    SIM_ENTER();
    if (!prop)
        return CUDA_ERROR_INVALID_VALUE;
    if (!sim_device_ok(dev))
        return CUDA_ERROR_INVALID_DEVICE;
    const int *a = sim_attributes_h200;
    *prop = (CUdevprop){.maxThreadsPerBlock = a[1],
                        .maxThreadsDim = {a[2], a[3], a[4]},
                        .maxGridSize = {a[5], a[6], a[7]},
                        .sharedMemPerBlock = a[8],
                        .totalConstantMemory = a[9],
                        .SIMDWidth = a[10],
                        .memPitch = a[11],
                        .regsPerBlock = a[12],
                        .clockRate = a[13],
                        .textureAlign = a[14]};
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetPCIBusId(char *pciBusId, int len, CUdevice dev) {
    SIM_ENTER();
    if (!pciBusId)
        return CUDA_ERROR_INVALID_VALUE;
    if (!sim_device_ok(dev))
        return CUDA_ERROR_INVALID_DEVICE;
    if (len)
        snprintf(pciBusId, room_for(len), "%s", sim.devices[dev].pci);
    // What does not fit is cut short, and that is an error all the same; a length below 0 is one, too.
    return len > (int)strlen(sim.devices[dev].pci) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuDeviceGetByPCIBusId(CUdevice *dev, const char *pciBusId) {
    SIM_ENTER();
    if (!dev || !pciBusId)
        return CUDA_ERROR_INVALID_VALUE;
    unsigned domain = 0, bus = 0, number = 0, function = 0;
    if (sscanf(pciBusId, "%x:%x:%x.%x", &domain, &bus, &number, &function) != 4) {
        function = 0;
        if (sscanf(pciBusId, "%x:%x:%x", &domain, &bus, &number) != 3) {
            domain = 0;
            if (sscanf(pciBusId, "%x:%x.%x", &bus, &number, &function) != 3)
                return CUDA_ERROR_INVALID_VALUE;
        }
    }
    for (int i = 0; i < sim.ndevices; i++) {
        if (domain || number || function || bus != (unsigned)sim_pci_bus(i))
            continue;
        *dev = i;
        return CUDA_SUCCESS;
    }
    return CUDA_ERROR_INVALID_DEVICE;
}

CUresult cuDeviceGetExecAffinitySupport(int *pi, CUexecAffinityType type, CUdevice dev) {
    SIM_ENTER();
    (void)type; // of none that there is, and none is refused (580.159.04, measured)
    if (!pi)
        return CUDA_ERROR_INVALID_VALUE;
    if (!sim_device_ok(dev))
        return CUDA_ERROR_INVALID_DEVICE;
    *pi = 0;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetTexture1DLinearMaxWidth(size_t *maxWidthInElements, CUarray_format format, unsigned numChannels,
                                            CUdevice dev) {
    SIM_ENTER();
    if (!maxWidthInElements || (int)format < 1 || numChannels < 1 || numChannels > 4 || numChannels == 3)
        return CUDA_ERROR_INVALID_VALUE;
    if (!sim_device_ok(dev))
        return CUDA_ERROR_INVALID_DEVICE;
    // At most 2^30 texels and 2^32 bytes (580.159.04, measured).
    const size_t bytes = numChannels * (format == CU_AD_FORMAT_UNSIGNED_INT8 || format == CU_AD_FORMAT_SIGNED_INT8 ? 1u
                                        : format == CU_AD_FORMAT_UNSIGNED_INT32 ||
                                                format == CU_AD_FORMAT_SIGNED_INT32 || format == CU_AD_FORMAT_FLOAT
                                            ? 4u
                                            : 2u);
    *maxWidthInElements = bytes <= 4 ? 1u << 30 : (size_t)(1ull << 32) / bytes;
    return CUDA_SUCCESS;
}

CUresult cuDeviceCanAccessPeer(int *canAccessPeer, CUdevice dev, CUdevice peerDev) {
    SIM_ENTER();
    if (!canAccessPeer)
        return CUDA_ERROR_INVALID_VALUE;
    if (!sim_device_ok(dev) || !sim_device_ok(peerDev))
        return CUDA_ERROR_INVALID_DEVICE;
    *canAccessPeer = dev != peerDev && sim_device_reaches(dev, peerDev);
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetP2PAttribute(int *value, CUdevice_P2PAttribute attrib, CUdevice srcDevice, CUdevice dstDevice) {
    SIM_ENTER();
    if (!value)
        return CUDA_ERROR_INVALID_VALUE;
    if (!sim_device_ok(srcDevice) || !sim_device_ok(dstDevice) || srcDevice == dstDevice)
        return CUDA_ERROR_INVALID_DEVICE;
    if ((unsigned)attrib < 1 || (unsigned)attrib > 5)
        return CUDA_ERROR_INVALID_VALUE;
    *value =
        attrib == CU_DEVICE_P2P_ATTRIBUTE_ACCESS_SUPPORTED || attrib == CU_DEVICE_P2P_ATTRIBUTE_NATIVE_ATOMIC_SUPPORTED;
    return CUDA_SUCCESS;
}

static CUresult check_operations(const unsigned *capabilities, const CUatomicOperation *operations, unsigned count) {
    return capabilities && operations && count ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

// Through PCIe the host has none of them.
CUresult cuDeviceGetHostAtomicCapabilities(unsigned int *capabilities, const CUatomicOperation *operations,
                                           unsigned int count, CUdevice dev) {
    SIM_ENTER();
    CUresult result = check_operations(capabilities, operations, count);
    if (result == CUDA_SUCCESS && !sim_device_ok(dev))
        result = CUDA_ERROR_INVALID_DEVICE;
    for (unsigned i = 0; result == CUDA_SUCCESS && i < count; i++)
        capabilities[i] = 0;
    return result;
}

CUresult cuDeviceGetP2PAtomicCapabilities(unsigned int *capabilities, const CUatomicOperation *operations,
                                          unsigned int count, CUdevice srcDevice, CUdevice dstDevice) {
    SIM_ENTER();
    static atomic_bool said;
    CUresult result = check_operations(capabilities, operations, count);
    if (result != CUDA_SUCCESS)
        return result;
    if (!sim_device_ok(srcDevice) || !sim_device_ok(dstDevice) || srcDevice == dstDevice)
        return CUDA_ERROR_INVALID_DEVICE;
    sim_refuses("cuDeviceGetP2PAtomicCapabilities", &said); // nobody asked two devices
    return CUDA_ERROR_NOT_SUPPORTED;
}

CUresult cuGetErrorName(CUresult error, const char **pStr) {
    if (!pStr)
        return CUDA_ERROR_INVALID_VALUE;
    *pStr = tpg_cuda_error_name((int)error);
    return *pStr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuGetErrorString(CUresult error, const char **pStr) {
    if (!pStr)
        return CUDA_ERROR_INVALID_VALUE;
    *pStr = tpg_cuda_error_text((int)error);
    return *pStr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

// Which entry point a name means for a version and a kind of default stream, as the real driver answered (api/procaddress.json).
// For a version above its own it writes nothing; it finds everything for -1.
CUresult cuGetProcAddress_v2(const char *symbol, void **pfn, int cudaVersion, cuuint64_t flags,
                             CUdriverProcAddressQueryResult *symbolStatus) {
    SIM_ENTER_ANY();
    if (!symbol || !pfn || flags > 3 || cudaVersion > DRIVER_VERSION)
        return CUDA_ERROR_INVALID_VALUE;
    CUdriverProcAddressQueryResult status = CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    int count = 0, flag = flags & 2 ? 2 : (int)flags;
    const struct tpg_address *rows = tpg_addresses(symbol, flag, &count), *chosen = NULL;
    *pfn = NULL;
    for (int i = 0; i < count; i++) {
        status = CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT; // unless one is old enough
        if ((unsigned)rows[i].version <= (unsigned)cudaVersion)
            chosen = &rows[i];
    }
    if (chosen) {
        *pfn = chosen->function;
        status = (CUdriverProcAddressQueryResult)chosen->status;
    }
    if (symbolStatus)
        *symbolStatus = status;
    return CUDA_SUCCESS;
}

CUresult cuGetProcAddress(const char *symbol, void **pfn, int cudaVersion, cuuint64_t flags) {
    return cuGetProcAddress_v2(symbol, pfn, cudaVersion, flags, NULL);
}

// There are no private tables here, and the driver has this for one that it does not know (580.159.04, measured).
CUresult cuGetExportTable(const void **ppExportTable, const CUuuid *pExportTableId) {
    SIM_ENTER_ANY();
    (void)ppExportTable, (void)pExportTableId;
    return CUDA_ERROR_INVALID_VALUE;
}

// ---- Tools: there are none ---------------------------------------------------------------------------------------

CUresult cuProfilerStart(void) {
    SIM_ENTER_CONTEXT(context);
    (void)context;
    return CUDA_SUCCESS;
}

CUresult cuProfilerStop(void) {
    SIM_ENTER_CONTEXT(context);
    (void)context;
    return CUDA_SUCCESS;
}

CUresult cuCtxGetExecAffinity(CUexecAffinityParam *pExecAffinity, CUexecAffinityType type) {
    SIM_ENTER_CONTEXT(context);
    if (!pExecAffinity)
        return CUDA_ERROR_INVALID_VALUE;
    if (sim_green_handle(context)) // 580.159.04, asked
        return CUDA_ERROR_INVALID_CONTEXT;
    pExecAffinity->type = type;
    pExecAffinity->param.smCount.val = (unsigned)sim_attributes_h200[CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT];
    return type == CU_EXEC_AFFINITY_TYPE_SM_COUNT ? CUDA_SUCCESS : CUDA_ERROR_UNSUPPORTED_EXEC_AFFINITY;
}

CUresult cuFlushGPUDirectRDMAWrites(CUflushGPUDirectRDMAWritesTarget target, CUflushGPUDirectRDMAWritesScope scope) {
    SIM_ENTER_CONTEXT(context);
    (void)context;
    return target == 0 && (scope == 100 || scope == 200) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
