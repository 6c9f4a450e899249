"""Outputs that a driver sets before it looks at anything (580.159.04, asked), so that they hold this after an error, too."""

from tensor_fusion.apigen.describe import begins

BEGINNINGS = [
    begins("cuMemAlloc", "cuMemAlloc_v2", "cuMemAllocAsync", "cuMemAllocFromPoolAsync", "cuMemAllocManaged", dptr="0"),
    begins("cuMemAllocPitch", "cuMemAllocPitch_v2", dptr="0", pPitch="0"),
    begins("cuMemPoolImportFromShareableHandle", pool_out="NULL"),
    begins("cuMemPoolImportPointer", ptr_out="0"),
    begins("cuMemAllocHost", "cuMemAllocHost_v2", "cuMemHostAlloc", pp="NULL"),
    begins("cuMemHostGetDevicePointer", "cuMemHostGetDevicePointer_v2", pdptr="0"),
    begins("cuMemGetAddressRange", "cuMemGetAddressRange_v2", pbase="0", psize="0"),
    begins("cuMemGetInfo", "cuMemGetInfo_v2", free="0", total="0"),
    begins("cuModuleGetGlobal", "cuModuleGetGlobal_v2", dptr="0", bytes="0"),
    begins("cuDeviceTotalMem", bytes="0"),
    begins("cuStreamEndCapture", phGraph="NULL"),
    begins("cuGetErrorName", "cuGetErrorString", pStr="NULL"),  # what is no error has none
    begins("cuMemcpyBatchAsync", "cuMemcpy3DBatchAsync", failIdx="SIZE_MAX if hStream"),
    begins("cuMemcpyBatchAsync_ptsz", "cuMemcpy3DBatchAsync_ptsz", failIdx="SIZE_MAX"),
    begins(
        "cuGLMapBufferObject",
        "cuGLMapBufferObject_v2",
        "cuGLMapBufferObject_v2_ptds",
        "cuGLMapBufferObjectAsync",
        "cuGLMapBufferObjectAsync_v2",
        "cuGLMapBufferObjectAsync_v2_ptsz",
        dptr="0",
        size="0",
    ),
    begins("cuGraphicsResourceGetMappedPointer", "cuGraphicsResourceGetMappedPointer_v2", pDevPtr="0", pSize="0"),
]
