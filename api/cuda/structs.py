"""What the fields of structs are. A field without a role is a plain value."""

from tensor_fusion.apigen.describe import struct, tagged

STRUCTS = [
    struct("CUmemLocation", id="device if type == CU_MEM_LOCATION_TYPE_DEVICE"),
    struct("CUmemAccessDesc", location="struct"),
    struct("CUmemPoolProps", location="struct", win32SecurityAttributes="none", usage="none", reserved="none"),
    struct("CUmemAllocationProp", location="struct", win32HandleMetaData="none"),
    # Where the memory is, the driver says.
    struct("CUDA_MEM_ALLOC_NODE_PARAMS", poolProps="struct", accessDescs="structs CUmemAccessDesc accessDescCount", dptr="number"),
    # Memory of one element, rows of `width` elements, `pitch` bytes apart.
    struct("CUDA_MEMSET_NODE_PARAMS", dst="dev area(pitch, width * elementSize, height)"),
    # The driver looks at none of the addresses: it answers wild ones, and kernels fault.
    struct("CUDA_RESOURCE_DESC", flags="zero", res=tagged("resType", {
        "CU_RESOURCE_TYPE_ARRAY": {"res.array.hArray": "handle array or CUDA_ERROR_INVALID_VALUE"},
        "CU_RESOURCE_TYPE_MIPMAPPED_ARRAY": {"res.mipmap.hMipmappedArray": "handle mipmap or CUDA_ERROR_INVALID_VALUE"},
        "CU_RESOURCE_TYPE_LINEAR": {"res.linear.devPtr": "number"},
        "CU_RESOURCE_TYPE_PITCH2D": {"res.pitch2D.devPtr": "number"}})),
    # Sides in device memory and in arrays; the client has turned others into those.
    struct("CUDA_MEMCPY3D", reserved0="none", reserved1="none", srcHost="none", dstHost="none",
           src=tagged("srcMemoryType", {
               "CU_MEMORYTYPE_DEVICE": {"srcDevice": "placed box(srcPitch, srcHeight, srcXInBytes + WidthInBytes, srcY + Height, srcZ + Depth)"},
               "CU_MEMORYTYPE_ARRAY": {"srcArray": "handle array"}}, refuse=("CU_MEMORYTYPE_HOST", "CU_MEMORYTYPE_UNIFIED")),
           dst=tagged("dstMemoryType", {
               "CU_MEMORYTYPE_DEVICE": {"dstDevice": "placed box(dstPitch, dstHeight, dstXInBytes + WidthInBytes, dstY + Height, dstZ + Depth)"},
               "CU_MEMORYTYPE_ARRAY": {"dstArray": "handle array"}}, refuse=("CU_MEMORYTYPE_HOST", "CU_MEMORYTYPE_UNIFIED"))),
    struct("CUstreamBatchMemOpParams", pad="none", op=tagged("operation", {
        "CU_STREAM_MEM_OP_WAIT_VALUE_32": {"waitValue.address": "word 4", "waitValue.alias": "none"},
        "CU_STREAM_MEM_OP_WAIT_VALUE_64": {"waitValue.address": "word 8", "waitValue.alias": "none"},
        "CU_STREAM_MEM_OP_WRITE_VALUE_32": {"writeValue.address": "word 4", "writeValue.alias": "none"},
        "CU_STREAM_MEM_OP_WRITE_VALUE_64": {"writeValue.address": "word 8", "writeValue.alias": "none"},
        "CU_STREAM_MEM_OP_BARRIER": {"memoryBarrier": ""},
        "CU_STREAM_MEM_OP_FLUSH_REMOTE_WRITES": {"flushRemoteWrites": ""}})),
    struct("CUDA_BATCH_MEM_OP_NODE_PARAMS", ctx="handle context", paramArray="structs CUstreamBatchMemOpParams count"),
    # Which kernel it is says how its parameters lie: both follow the struct, see graph_node.c on both sides.
    struct("CUDA_KERNEL_NODE_PARAMS", func="hand", kern="none", kernelParams="none", extra="none", ctx="context"),
    struct("CUaccessPolicyWindow", base_ptr="number"),
    struct("CUlaunchAttribute", pad="none", value=tagged("id", {
        "CU_LAUNCH_ATTRIBUTE_IGNORE": {},
        "CU_LAUNCH_ATTRIBUTE_ACCESS_POLICY_WINDOW": {"value.accessPolicyWindow": "struct"},
        "CU_LAUNCH_ATTRIBUTE_COOPERATIVE": {"value.cooperative": ""},
        "CU_LAUNCH_ATTRIBUTE_SYNCHRONIZATION_POLICY": {"value.syncPolicy": ""},
        "CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION": {"value.clusterDim": ""},
        "CU_LAUNCH_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE": {"value.clusterSchedulingPolicyPreference": ""},
        "CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION": {"value.programmaticStreamSerializationAllowed": ""},
        "CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_EVENT": {"value.programmaticEvent.event": "handle event"},
        "CU_LAUNCH_ATTRIBUTE_PRIORITY": {"value.priority": ""},
        "CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN_MAP": {"value.memSyncDomainMap": ""},
        "CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN": {"value.memSyncDomain": ""},
        "CU_LAUNCH_ATTRIBUTE_PREFERRED_CLUSTER_DIMENSION": {"value.preferredClusterDim": ""},
        "CU_LAUNCH_ATTRIBUTE_LAUNCH_COMPLETION_EVENT": {"value.launchCompletionEvent.event": "handle event"},
        "CU_LAUNCH_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT": {"value.sharedMemCarveout": ""},
        "CU_LAUNCH_ATTRIBUTE_NVLINK_UTIL_CENTRIC_SCHEDULING": {"value.nvlinkUtilCentricScheduling": ""}},
        # It would tell the client an address of the driver.
        refuse=("CU_LAUNCH_ATTRIBUTE_DEVICE_UPDATABLE_KERNEL_NODE",))),
    # It holds a pointer of the driver, which the session keeps: the program copies a token about.
    struct("CUdevResource", _internal_padding="token or CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION if type == CU_DEV_RESOURCE_TYPE_SM"),
    # As a question about a kernel, which is asked of no stream.
    struct("CUlaunchConfig", hStream="none", attrs="structs CUlaunchAttribute numAttrs"),
]  # fmt: skip
