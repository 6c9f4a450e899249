"""What the fields of structs are. A field without a role is a plain value."""

from tensor_fusion.apigen.describe import struct, tagged

STRUCTS = [
    struct("CUmemLocation", id="device if type == CU_MEM_LOCATION_TYPE_DEVICE"),
    struct("CUmemAccessDesc", location="struct"),
    # Memory of one element, rows of `width` elements, `pitch` bytes apart.
    struct("CUDA_MEMSET_NODE_PARAMS", dst="dev area(pitch, width * elementSize, height)"),
    struct("CUstreamBatchMemOpParams", pad="none", op=tagged("operation", {
        "CU_STREAM_MEM_OP_WAIT_VALUE_32": {"waitValue.address": "dev 4", "waitValue.alias": "none"},
        "CU_STREAM_MEM_OP_WAIT_VALUE_64": {"waitValue.address": "dev 8", "waitValue.alias": "none"},
        "CU_STREAM_MEM_OP_WRITE_VALUE_32": {"writeValue.address": "dev 4", "writeValue.alias": "none"},
        "CU_STREAM_MEM_OP_WRITE_VALUE_64": {"writeValue.address": "dev 8", "writeValue.alias": "none"},
        "CU_STREAM_MEM_OP_BARRIER": {"memoryBarrier": ""},
        "CU_STREAM_MEM_OP_FLUSH_REMOTE_WRITES": {"flushRemoteWrites": ""}})),
    struct("CUDA_BATCH_MEM_OP_NODE_PARAMS", ctx="handle context", paramArray="structs CUstreamBatchMemOpParams count"),
]  # fmt: skip
