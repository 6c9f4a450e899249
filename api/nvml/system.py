"""Initialisation, the driver's versions, errors, events: what concerns no device or all of them."""

from tensor_fusion.apigen.describe import alias, call, custom, local, older, pure, refused, struct

FUNCTIONS = [
    older("nvmlInit_v2", "nvmlInitWithFlags", flags="0"),
    custom("nvmlInitWithFlags", ops="nvml_start", anytime=True),
    alias("nvmlInit", "nvmlInit_v2"),
    local("nvmlShutdown", anytime=True),
    local("nvmlErrorString", anytime=True),
    # What nvidia-smi asks for before anything else; no header declares it.
    local("nvmlInternalGetExportTable", anytime=True, params={"table": "const void **", "id": "const void *"}, table="there", id="there"),
    pure("nvmlSystemGetDriverVersion", version="outstring length"),
    # The only version that NVML tells before nvmlInit (observed with 580.159.04).
    custom("nvmlSystemGetNVMLVersion", ops="nvml_start", anytime=True, version="there"),
    local("nvmlSystemGetCudaDriverVersion_v2", cudaDriverVersion="there"),
    alias("nvmlSystemGetCudaDriverVersion", "nvmlSystemGetCudaDriverVersion_v2"),
    pure("nvmlSystemGetDriverBranch", branchInfo="versioned"),
    call("nvmlSystemGetConfComputeCapabilities"),
    call("nvmlSystemGetConfComputeState"),
    call("nvmlSystemGetConfComputeGpusReadyState"),
    call("nvmlSystemGetConfComputeSettings", settings="versioned"),
    call("nvmlSystemGetConfComputeKeyRotationThresholdInfo", pKeyRotationThrInfo="versioned"),
    call("nvmlDeviceGetConfComputeGpuCertificate"),
    call("nvmlSystemGetNvlinkBwMode"),
    # Processes are the client's own, so their names come from the client's /proc.
    local("nvmlSystemGetProcessName", name="there", length="there"),
    # Event sets are the driver's. It is asked from time to time whether there is an event: the client waits.
    call("nvmlEventSetCreate"),
    call("nvmlEventSetFree", set="gone nvmlevents"),
    # The session only looks, and the client waits: the driver's wait would hold up the session's one thread.
    call("nvmlEventSetWait_v2", wrapped=True, data="outstruct", timeoutms="skip"),
    custom("nvmlEventSetWait", ops="nvmlEventSetWait_v2"),
    call("nvmlDeviceGetSupportedEventTypes"),
    call("nvmlDeviceRegisterEvents"),
    refused("NVML_ERROR_NOT_SUPPORTED", "devices of a worker neither come nor go", "nvmlSystemEventSetCreate",
            "nvmlSystemEventSetFree", "nvmlSystemEventSetWait", "nvmlSystemRegisterEvents"),
    call("nvmlUnitGetCount"),
    refused("NVML_ERROR_INVALID_ARGUMENT", "S-class units are not offered through a worker", "nvmlUnitGetDevices",
            "nvmlUnitGetFanSpeedInfo", "nvmlUnitGetHandleByIndex", "nvmlUnitGetLedState", "nvmlUnitGetPsuInfo",
            "nvmlUnitGetTemperature", "nvmlUnitGetUnitInfo", "nvmlUnitSetLedState", unseen=True),
    local("nvmlSystemGetHicVersion", hwbcCount="there", gives={"hwbcCount": "0"}),
    # The worker's other GPUs are not shown, so none is excluded.
    local("nvmlGetExcludedDeviceCount", deviceCount="there", gives={"deviceCount": "0"}),
    alias("nvmlGetBlacklistDeviceCount", "nvmlGetExcludedDeviceCount"),
    refused("NVML_ERROR_INVALID_ARGUMENT", "the worker's other GPUs are not shown", "nvmlGetExcludedDeviceInfoByIndex",
            unseen=True),
    alias("nvmlGetBlacklistDeviceInfoByIndex", "nvmlGetExcludedDeviceInfoByIndex"),
    refused("NVML_ERROR_NO_PERMISSION", "the GPU is set up by the worker's operator", "nvmlDeviceDiscoverGpus"),
    local("nvmlSystemGetTopologyGpuSet"),
    custom("nvmlDeviceGetTopologyNearestGpus", ops="nvmlDeviceGetTopologyCommonAncestor"),
]  # fmt: skip

STRUCTS = [struct("nvmlEventData_t", device="known nvmldevice")]
