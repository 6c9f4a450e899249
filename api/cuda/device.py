"""Initialisation, version, devices."""

from tensor_fusion.apigen.describe import custom, local, older, pure, unsupported

FUNCTIONS = [
    custom("cuDriverGetVersion", ops="start", anytime=True),
    local("cuGetErrorName", anytime=True),
    local("cuGetErrorString", anytime=True),
    older("cuGetProcAddress", "cuGetProcAddress_v2", symbolStatus="NULL"),
    local("cuGetProcAddress_v2", anytime=True),
    local("cuGetExportTable", anytime=True),
    custom("cuInit", ops="start", anytime=True),
    local("cuDeviceGet"),
    local("cuDeviceGetCount"),
    local("cuDeviceGetName"),
    local("cuDeviceGetUuid"),
    local("cuDeviceGetUuid_v2"),
    local("cuDeviceGetAttribute"),
    local("cuDeviceTotalMem_v2"),
    local("cuDeviceGetByPCIBusId"),
    local("cuDeviceGetPCIBusId"),
    local("cuDeviceComputeCapability"),
    local("cuDeviceGetProperties"),
    pure("cuDeviceGetTexture1DLinearMaxWidth", contextless=True),
    pure("cuDeviceGetP2PAttribute", contextless=True),
    pure("cuDeviceCanAccessPeer", contextless=True),
    pure("cuDeviceGetExecAffinitySupport", contextless=True),
    pure("cuDeviceGetHostAtomicCapabilities", contextless=True, capabilities="outarray count", operations="array count"),
    pure("cuDeviceGetP2PAtomicCapabilities", contextless=True, capabilities="outarray count", operations="array count"),
    local("cuProfilerStart"),
    local("cuProfilerStop"),
    unsupported(
        "32-bit device addresses of CUDA 2 and 3",
        "cuDeviceTotalMem",
    ),
    unsupported(
        "Windows only",
        "cuDeviceGetLuid",
    ),
    unsupported(
        "not answered by a driver without a profiling tool",
        "cuProfilerInitialize",
    ),
    unsupported(
        "NvSci is not on x86 servers",
        "cuDeviceGetNvSciSyncAttributes",
    ),
    unsupported(
        "notifications of the driver do not cross the connection",
        "cuDeviceRegisterAsyncNotification",
        "cuDeviceUnregisterAsyncNotification",
    ),
    unsupported(
        "log of the driver stays on the GPU host",
        "cuLogsCurrent",
        "cuLogsDumpToFile",
        "cuLogsDumpToMemory",
        "cuLogsRegisterCallback",
        "cuLogsUnregisterCallback",
    ),
    unsupported(
        "undocumented",
        "cuEGLApiInit",
        "cuMemGetAttribute",
        "cuMemGetAttribute_v2",
    ),
]
