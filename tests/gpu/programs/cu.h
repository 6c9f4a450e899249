/* The part of the CUDA driver API that the C programs of this folder call, declared by hand.
 *
 * No header of NVIDIA's and no link-time dependency: cu_load() opens libcuda.so.1 through the loader, exactly as
 * programs do, so the same binary runs on the machine's driver and on the remote one. A name that the library does
 * not export is a loud end of the program, never a NULL pointer that is called later. The structures repeat the
 * driver's layouts; cu.c asserts their sizes. Single-threaded use of cu_load(); everything else is read-only after.
 */
#ifndef TENSOR_FUSION_TESTS_CU_H
#define TENSOR_FUSION_TESTS_CU_H

#include <stddef.h>
#include <stdint.h>

typedef int CUresult;
typedef int CUdevice;
typedef unsigned long long CUdeviceptr;
typedef struct CUctx_st *CUcontext;
typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;
typedef struct CUlib_st *CUlibrary;
typedef struct CUkern_st *CUkernel;
typedef struct CUstream_st *CUstream;
typedef struct CUevent_st *CUevent;
typedef struct CUmemPoolHandle_st *CUmemoryPool;
typedef unsigned long long CUmemGenericAllocationHandle;
typedef struct {
    unsigned char bytes[16];
} CUuuid;

typedef struct {
    size_t srcXInBytes, srcY;
    int srcMemoryType;
    const void *srcHost;
    CUdeviceptr srcDevice;
    void *srcArray;
    size_t srcPitch;
    size_t dstXInBytes, dstY;
    int dstMemoryType;
    void *dstHost;
    CUdeviceptr dstDevice;
    void *dstArray;
    size_t dstPitch;
    size_t WidthInBytes, Height;
} CUDA_MEMCPY2D;

typedef struct {
    int id;
    char pad[4];
    union {
        char bytes[64];
        int value;
        struct {
            unsigned x, y, z;
        } dim;
    } value;
} CUlaunchAttribute;

typedef struct {
    unsigned gridDimX, gridDimY, gridDimZ, blockDimX, blockDimY, blockDimZ, sharedMemBytes;
    CUstream hStream;
    CUlaunchAttribute *attrs;
    unsigned numAttrs;
} CUlaunchConfig;

typedef struct {
    int type, id;
} CUmemLocation;

typedef struct {
    int allocType, handleTypes;
    CUmemLocation location;
    void *win32SecurityAttributes;
    size_t maxSize;
    unsigned short usage;
    unsigned char reserved[54];
} CUmemPoolProps;

typedef struct {
    int type, requestedHandleTypes;
    CUmemLocation location;
    void *win32HandleMetaData;
    struct {
        unsigned char compressionType, gpuDirectRDMACapable;
        unsigned short usage;
        unsigned char reserved[4];
    } allocFlags;
} CUmemAllocationProp;

typedef struct {
    CUmemLocation location;
    int flags;
} CUmemAccessDesc;

typedef void (*CUhostFn)(void *user);
typedef void (*CUstreamCallback)(CUstream stream, CUresult status, void *user);

/* clang-format off */
/* Name and parameters of each function. Both the table below and its loader come from this list. */
#define CU_FUNCTIONS(F) \
    F(cuInit, (unsigned)) F(cuDriverGetVersion, (int *)) F(cuGetErrorName, (CUresult, const char **)) \
    F(cuGetErrorString, (CUresult, const char **)) F(cuGetProcAddress_v2, (const char *, void **, int, uint64_t, int *)) \
    F(cuDeviceGet, (CUdevice *, int)) F(cuDeviceGetCount, (int *)) F(cuDeviceGetName, (char *, int, CUdevice)) \
    F(cuDeviceGetUuid_v2, (CUuuid *, CUdevice)) F(cuDeviceTotalMem_v2, (size_t *, CUdevice)) \
    F(cuDeviceGetAttribute, (int *, int, CUdevice)) F(cuDeviceComputeCapability, (int *, int *, CUdevice)) \
    F(cuDeviceGetPCIBusId, (char *, int, CUdevice)) F(cuDeviceGetByPCIBusId, (CUdevice *, const char *)) \
    F(cuDeviceGetDefaultMemPool, (CUmemoryPool *, CUdevice)) F(cuDeviceGetMemPool, (CUmemoryPool *, CUdevice)) \
    F(cuDeviceCanAccessPeer, (int *, CUdevice, CUdevice)) \
    F(cuDevicePrimaryCtxRetain, (CUcontext *, CUdevice)) F(cuDevicePrimaryCtxRelease_v2, (CUdevice)) \
    F(cuDevicePrimaryCtxReset_v2, (CUdevice)) F(cuDevicePrimaryCtxGetState, (CUdevice, unsigned *, int *)) \
    F(cuDevicePrimaryCtxSetFlags_v2, (CUdevice, unsigned)) \
    F(cuCtxCreate_v2, (CUcontext *, unsigned, CUdevice)) F(cuCtxDestroy_v2, (CUcontext)) \
    F(cuCtxPushCurrent_v2, (CUcontext)) F(cuCtxPopCurrent_v2, (CUcontext *)) F(cuCtxSetCurrent, (CUcontext)) \
    F(cuCtxGetCurrent, (CUcontext *)) F(cuCtxGetDevice, (CUdevice *)) F(cuCtxGetFlags, (unsigned *)) \
    F(cuCtxGetId, (CUcontext, unsigned long long *)) F(cuCtxSynchronize, (void)) \
    F(cuCtxGetLimit, (size_t *, int)) F(cuCtxSetLimit, (int, size_t)) F(cuCtxGetCacheConfig, (int *)) \
    F(cuCtxSetCacheConfig, (int)) F(cuCtxGetApiVersion, (CUcontext, unsigned *)) \
    F(cuCtxGetStreamPriorityRange, (int *, int *)) F(cuCtxResetPersistingL2Cache, (void)) \
    F(cuStreamCreate, (CUstream *, unsigned)) F(cuStreamCreateWithPriority, (CUstream *, unsigned, int)) \
    F(cuStreamDestroy_v2, (CUstream)) F(cuStreamSynchronize, (CUstream)) F(cuStreamQuery, (CUstream)) \
    F(cuStreamGetFlags, (CUstream, unsigned *)) F(cuStreamGetPriority, (CUstream, int *)) \
    F(cuStreamGetCtx, (CUstream, CUcontext *)) F(cuStreamGetId, (CUstream, unsigned long long *)) \
    F(cuStreamGetDevice, (CUstream, CUdevice *)) F(cuStreamWaitEvent, (CUstream, CUevent, unsigned)) \
    F(cuStreamIsCapturing, (CUstream, int *)) F(cuStreamAddCallback, (CUstream, CUstreamCallback, void *, unsigned)) \
    F(cuStreamWriteValue32_v2, (CUstream, CUdeviceptr, uint32_t, unsigned)) \
    F(cuStreamWriteValue64_v2, (CUstream, CUdeviceptr, uint64_t, unsigned)) \
    F(cuStreamWaitValue32_v2, (CUstream, CUdeviceptr, uint32_t, unsigned)) \
    F(cuLaunchHostFunc, (CUstream, CUhostFn, void *)) \
    F(cuEventCreate, (CUevent *, unsigned)) F(cuEventDestroy_v2, (CUevent)) F(cuEventRecord, (CUevent, CUstream)) \
    F(cuEventRecordWithFlags, (CUevent, CUstream, unsigned)) F(cuEventQuery, (CUevent)) \
    F(cuEventSynchronize, (CUevent)) F(cuEventElapsedTime, (float *, CUevent, CUevent)) \
    F(cuMemGetInfo_v2, (size_t *, size_t *)) F(cuMemAlloc_v2, (CUdeviceptr *, size_t)) F(cuMemFree_v2, (CUdeviceptr)) \
    F(cuMemAllocPitch_v2, (CUdeviceptr *, size_t *, size_t, size_t, unsigned)) \
    F(cuMemGetAddressRange_v2, (CUdeviceptr *, size_t *, CUdeviceptr)) \
    F(cuMemAllocHost_v2, (void **, size_t)) F(cuMemHostAlloc, (void **, size_t, unsigned)) F(cuMemFreeHost, (void *)) \
    F(cuMemHostGetFlags, (unsigned *, void *)) F(cuMemHostGetDevicePointer_v2, (CUdeviceptr *, void *, unsigned)) \
    F(cuMemHostRegister_v2, (void *, size_t, unsigned)) F(cuMemHostUnregister, (void *)) \
    F(cuMemAllocManaged, (CUdeviceptr *, size_t, unsigned)) \
    F(cuStreamAttachMemAsync, (CUstream, CUdeviceptr, size_t, unsigned)) \
    F(cuMemAdvise_v2, (CUdeviceptr, size_t, int, CUmemLocation)) \
    F(cuMemPrefetchAsync_v2, (CUdeviceptr, size_t, CUmemLocation, unsigned, CUstream)) \
    F(cuMemRangeGetAttribute, (void *, size_t, int, CUdeviceptr, size_t)) \
    F(cuMemcpy, (CUdeviceptr, CUdeviceptr, size_t)) F(cuMemcpyAsync, (CUdeviceptr, CUdeviceptr, size_t, CUstream)) \
    F(cuMemcpyHtoD_v2, (CUdeviceptr, const void *, size_t)) F(cuMemcpyDtoH_v2, (void *, CUdeviceptr, size_t)) \
    F(cuMemcpyDtoD_v2, (CUdeviceptr, CUdeviceptr, size_t)) \
    F(cuMemcpyHtoDAsync_v2, (CUdeviceptr, const void *, size_t, CUstream)) \
    F(cuMemcpyDtoHAsync_v2, (void *, CUdeviceptr, size_t, CUstream)) \
    F(cuMemcpyDtoDAsync_v2, (CUdeviceptr, CUdeviceptr, size_t, CUstream)) \
    F(cuMemcpy2D_v2, (const CUDA_MEMCPY2D *)) F(cuMemcpy2DUnaligned_v2, (const CUDA_MEMCPY2D *)) \
    F(cuMemcpy2DAsync_v2, (const CUDA_MEMCPY2D *, CUstream)) \
    F(cuMemsetD8_v2, (CUdeviceptr, unsigned char, size_t)) F(cuMemsetD16_v2, (CUdeviceptr, unsigned short, size_t)) \
    F(cuMemsetD32_v2, (CUdeviceptr, unsigned, size_t)) F(cuMemsetD8Async, (CUdeviceptr, unsigned char, size_t, CUstream)) \
    F(cuMemsetD32Async, (CUdeviceptr, unsigned, size_t, CUstream)) \
    F(cuMemsetD2D8_v2, (CUdeviceptr, size_t, unsigned char, size_t, size_t)) \
    F(cuPointerGetAttribute, (void *, int, CUdeviceptr)) \
    F(cuPointerGetAttributes, (unsigned, int *, void **, CUdeviceptr)) \
    F(cuMemAllocAsync, (CUdeviceptr *, size_t, CUstream)) F(cuMemFreeAsync, (CUdeviceptr, CUstream)) \
    F(cuMemPoolCreate, (CUmemoryPool *, const CUmemPoolProps *)) F(cuMemPoolDestroy, (CUmemoryPool)) \
    F(cuMemPoolGetAttribute, (CUmemoryPool, int, void *)) F(cuMemPoolSetAttribute, (CUmemoryPool, int, void *)) \
    F(cuMemPoolTrimTo, (CUmemoryPool, size_t)) F(cuMemAllocFromPoolAsync, (CUdeviceptr *, size_t, CUmemoryPool, CUstream)) \
    F(cuMemGetAllocationGranularity, (size_t *, const CUmemAllocationProp *, int)) \
    F(cuMemCreate, (CUmemGenericAllocationHandle *, size_t, const CUmemAllocationProp *, unsigned long long)) \
    F(cuMemRelease, (CUmemGenericAllocationHandle)) \
    F(cuMemAddressReserve, (CUdeviceptr *, size_t, size_t, CUdeviceptr, unsigned long long)) \
    F(cuMemAddressFree, (CUdeviceptr, size_t)) \
    F(cuMemMap, (CUdeviceptr, size_t, size_t, CUmemGenericAllocationHandle, unsigned long long)) \
    F(cuMemUnmap, (CUdeviceptr, size_t)) F(cuMemSetAccess, (CUdeviceptr, size_t, const CUmemAccessDesc *, size_t)) \
    F(cuModuleLoad, (CUmodule *, const char *)) F(cuModuleLoadData, (CUmodule *, const void *)) \
    F(cuModuleLoadDataEx, (CUmodule *, const void *, unsigned, int *, void **)) F(cuModuleUnload, (CUmodule)) \
    F(cuModuleGetFunction, (CUfunction *, CUmodule, const char *)) F(cuModuleGetLoadingMode, (int *)) \
    F(cuModuleGetGlobal_v2, (CUdeviceptr *, size_t *, CUmodule, const char *)) \
    F(cuModuleGetFunctionCount, (unsigned *, CUmodule)) \
    F(cuLibraryLoadData, (CUlibrary *, const void *, int *, void **, unsigned, int *, void **, unsigned)) \
    F(cuLibraryUnload, (CUlibrary)) F(cuLibraryGetKernel, (CUkernel *, CUlibrary, const char *)) \
    F(cuLibraryGetKernelCount, (unsigned *, CUlibrary)) F(cuKernelGetFunction, (CUfunction *, CUkernel)) \
    F(cuKernelGetAttribute, (int *, int, CUkernel, CUdevice)) F(cuKernelGetName, (const char **, CUkernel)) \
    F(cuKernelGetParamInfo, (CUkernel, size_t, size_t *, size_t *)) \
    F(cuFuncGetAttribute, (int *, int, CUfunction)) F(cuFuncSetAttribute, (CUfunction, int, int)) \
    F(cuFuncSetCacheConfig, (CUfunction, int)) F(cuFuncGetModule, (CUmodule *, CUfunction)) \
    F(cuFuncGetName, (const char **, CUfunction)) F(cuFuncGetParamInfo, (CUfunction, size_t, size_t *, size_t *)) \
    F(cuLaunchKernel, (CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream, \
                       void **, void **)) \
    F(cuLaunchKernelEx, (const CUlaunchConfig *, CUfunction, void **, void **)) \
    F(cuLaunchCooperativeKernel, (CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, \
                                  CUstream, void **)) \
    F(cuOccupancyMaxActiveBlocksPerMultiprocessor, (int *, CUfunction, int, size_t)) \
    F(cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags, (int *, CUfunction, int, size_t, unsigned)) \
    F(cuOccupancyMaxPotentialBlockSize, (int *, int *, CUfunction, size_t (*)(int), size_t, int)) \
    F(cuOccupancyAvailableDynamicSMemPerBlock, (size_t *, CUfunction, int, int)) \
    F(cuProfilerStart, (void)) F(cuProfilerStop, (void))

/* clang-format on */

#define CU_DECLARE(name, parameters) CUresult(*name) parameters;
struct cu_table {
    CU_FUNCTIONS(CU_DECLARE)
};
#undef CU_DECLARE

/* Filled by cu_load(). */
extern struct cu_table cu;

/* Opens libcuda.so.1 and resolves every function; ends the program with a sentence where that fails. */
void cu_load(void);

/* Ends the program with "WHAT failed with N" unless result is 0. */
void cu_must(CUresult result, const char *what);

/* The text of the PTX file in the environment variable KERNELS_PTX; ends the program where it cannot be read. */
char *cu_kernels_ptx(void);

/* Writes the JSON array of mapped libcuda and libteleport paths into text. */
void cu_mapped_libraries(char *text, size_t size);

/* A clock that never goes back, in nanoseconds. */
uint64_t cu_now_ns(void);

#endif
