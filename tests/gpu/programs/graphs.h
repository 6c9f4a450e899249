/* What graphs.c needs of the driver API beyond cu.h: capture, graphs, and the functions by their own names.
 *
 * Declared by hand like cu.h and resolved from the same library; structures repeat the driver's layouts, sizes are
 * asserted. Included by graphs.c only; graphs_load() is called once, by its main thread.
 */
#ifndef TENSOR_FUSION_TESTS_GRAPHS_H
#define TENSOR_FUSION_TESTS_GRAPHS_H

#include "cu.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct CUgraph_st *CUgraph;
typedef struct CUgraphNode_st *CUgraphNode;
typedef struct CUgraphExec_st *CUgraphExec;
typedef struct CUuserObject_st *CUuserObject;

enum { CUDA_SUCCESS = 0, MODE_GLOBAL = 0, MODE_LOCAL = 1, MODE_RELAXED = 2, MEMORY_HOST = 1, MEMORY_DEVICE = 2 };

typedef struct {
    CUfunction func;
    unsigned gridDimX, gridDimY, gridDimZ, blockDimX, blockDimY, blockDimZ, sharedMemBytes;
    void **kernelParams, **extra;
    CUkernel kern;
    CUcontext ctx;
} CUDA_KERNEL_NODE_PARAMS;
_Static_assert(sizeof(CUDA_KERNEL_NODE_PARAMS) == 72, "layout of CUDA_KERNEL_NODE_PARAMS");

typedef struct {
    CUdeviceptr dst;
    size_t pitch;
    unsigned value, elementSize;
    size_t width, height;
} CUDA_MEMSET_NODE_PARAMS;
_Static_assert(sizeof(CUDA_MEMSET_NODE_PARAMS) == 40, "layout of CUDA_MEMSET_NODE_PARAMS");

typedef struct {
    size_t srcXInBytes, srcY, srcZ, srcLOD;
    int srcMemoryType;
    const void *srcHost;
    CUdeviceptr srcDevice;
    void *srcArray, *reserved0;
    size_t srcPitch, srcHeight, dstXInBytes, dstY, dstZ, dstLOD;
    int dstMemoryType;
    void *dstHost;
    CUdeviceptr dstDevice;
    void *dstArray, *reserved1;
    size_t dstPitch, dstHeight, WidthInBytes, Height, Depth;
} CUDA_MEMCPY3D;
_Static_assert(sizeof(CUDA_MEMCPY3D) == 200, "layout of CUDA_MEMCPY3D");

typedef struct {
    int result;
    CUgraphNode errorNode, errorFromNode;
} CUgraphExecUpdateResultInfo;

typedef struct {
    uint64_t flags;
    CUstream hUploadStream;
    CUgraphNode hErrNode_out;
    int result_out;
} CUDA_GRAPH_INSTANTIATE_PARAMS;
_Static_assert(sizeof(CUDA_GRAPH_INSTANTIATE_PARAMS) == 32, "layout of CUDA_GRAPH_INSTANTIATE_PARAMS");

/* clang-format off */
#define GRAPH_FUNCTIONS(F) \
    F(cuInit, (unsigned)) F(cuDeviceGet, (CUdevice *, int)) F(cuDevicePrimaryCtxRetain, (CUcontext *, CUdevice)) \
    F(cuCtxSetCurrent, (CUcontext)) F(cuCtxSynchronize, (void)) \
    F(cuMemHostRegister_v2, (void *, size_t, unsigned)) F(cuMemHostUnregister, (void *)) \
    F(cuMemAllocAsync, (CUdeviceptr *, size_t, CUstream)) F(cuMemFreeAsync, (CUdeviceptr, CUstream)) \
    F(cuStreamGetFlags, (CUstream, unsigned *)) F(cuStreamGetCtx, (CUstream, CUcontext *)) \
    F(cuMemGetInfo_v2, (size_t *, size_t *)) F(cuModuleUnload, (CUmodule)) F(cuStreamDestroy_v2, (CUstream)) \
    F(cuModuleLoadData, (CUmodule *, const void *)) F(cuModuleGetFunction, (CUfunction *, CUmodule, const char *)) \
    F(cuStreamCreate, (CUstream *, unsigned)) F(cuStreamSynchronize, (CUstream)) F(cuStreamQuery, (CUstream)) \
    F(cuStreamWaitEvent, (CUstream, CUevent, unsigned)) F(cuStreamIsCapturing, (CUstream, int *)) \
    F(cuStreamWriteValue32_v2, (CUstream, CUdeviceptr, uint32_t, unsigned)) \
    F(cuEventCreate, (CUevent *, unsigned)) F(cuEventRecord, (CUevent, CUstream)) F(cuEventQuery, (CUevent)) \
    F(cuEventSynchronize, (CUevent)) F(cuEventRecordWithFlags, (CUevent, CUstream, unsigned)) \
    F(cuEventElapsedTime, (float *, CUevent, CUevent)) F(cuEventDestroy_v2, (CUevent)) F(cuMemAlloc_v2, (CUdeviceptr *, size_t)) F(cuMemFree_v2, (CUdeviceptr)) \
    F(cuMemAllocHost_v2, (void **, size_t)) F(cuMemFreeHost, (void *)) \
    F(cuMemcpyHtoD_v2, (CUdeviceptr, const void *, size_t)) F(cuMemcpyDtoH_v2, (void *, CUdeviceptr, size_t)) \
    F(cuMemcpyDtoD_v2, (CUdeviceptr, CUdeviceptr, size_t)) F(cuMemsetD32_v2, (CUdeviceptr, unsigned, size_t)) \
    F(cuMemcpyHtoDAsync_v2, (CUdeviceptr, const void *, size_t, CUstream)) \
    F(cuMemcpyDtoHAsync_v2, (void *, CUdeviceptr, size_t, CUstream)) \
    F(cuMemcpyDtoDAsync_v2, (CUdeviceptr, CUdeviceptr, size_t, CUstream)) \
    F(cuMemsetD32Async, (CUdeviceptr, unsigned, size_t, CUstream)) F(cuLaunchHostFunc, (CUstream, CUhostFn, void *)) \
    F(cuLaunchKernel, (CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream, \
                       void **, void **)) \
    F(cuStreamBeginCapture_v2, (CUstream, int)) F(cuStreamEndCapture, (CUstream, CUgraph *)) \
    F(cuStreamBeginCaptureToGraph, (CUstream, CUgraph, const CUgraphNode *, const void *, size_t, int)) \
    F(cuStreamGetCaptureInfo_v2, (CUstream, int *, uint64_t *, CUgraph *, const CUgraphNode **, size_t *)) \
    F(cuThreadExchangeStreamCaptureMode, (int *)) F(cuGraphCreate, (CUgraph *, unsigned)) F(cuGraphDestroy, (CUgraph)) \
    F(cuGraphClone, (CUgraph *, CUgraph)) F(cuGraphNodeFindInClone, (CUgraphNode *, CUgraphNode, CUgraph)) \
    F(cuGraphGetNodes, (CUgraph, CUgraphNode *, size_t *)) F(cuGraphGetRootNodes, (CUgraph, CUgraphNode *, size_t *)) \
    F(cuGraphGetEdges, (CUgraph, CUgraphNode *, CUgraphNode *, size_t *)) F(cuGraphNodeGetType, (CUgraphNode, int *)) \
    F(cuGraphAddDependencies, (CUgraph, const CUgraphNode *, const CUgraphNode *, size_t)) \
    F(cuGraphRemoveDependencies, (CUgraph, const CUgraphNode *, const CUgraphNode *, size_t)) \
    F(cuGraphDestroyNode, (CUgraphNode)) \
    F(cuGraphAddKernelNode_v2, (CUgraphNode *, CUgraph, const CUgraphNode *, size_t, const CUDA_KERNEL_NODE_PARAMS *)) \
    F(cuGraphKernelNodeGetParams_v2, (CUgraphNode, CUDA_KERNEL_NODE_PARAMS *)) \
    F(cuGraphExecKernelNodeSetParams_v2, (CUgraphExec, CUgraphNode, const CUDA_KERNEL_NODE_PARAMS *)) \
    F(cuGraphAddMemsetNode, (CUgraphNode *, CUgraph, const CUgraphNode *, size_t, const CUDA_MEMSET_NODE_PARAMS *, \
                             CUcontext)) \
    F(cuGraphExecMemsetNodeSetParams, (CUgraphExec, CUgraphNode, const CUDA_MEMSET_NODE_PARAMS *, CUcontext)) \
    F(cuGraphAddMemcpyNode, (CUgraphNode *, CUgraph, const CUgraphNode *, size_t, const CUDA_MEMCPY3D *, CUcontext)) \
    F(cuGraphMemcpyNodeGetParams, (CUgraphNode, CUDA_MEMCPY3D *)) \
    F(cuGraphExecMemcpyNodeSetParams, (CUgraphExec, CUgraphNode, const CUDA_MEMCPY3D *, CUcontext)) \
    F(cuGraphAddEmptyNode, (CUgraphNode *, CUgraph, const CUgraphNode *, size_t)) \
    F(cuGraphAddChildGraphNode, (CUgraphNode *, CUgraph, const CUgraphNode *, size_t, CUgraph)) \
    F(cuGraphChildGraphNodeGetGraph, (CUgraphNode, CUgraph *)) \
    F(cuGraphExecChildGraphNodeSetParams, (CUgraphExec, CUgraphNode, CUgraph)) \
    F(cuGraphInstantiateWithFlags, (CUgraphExec *, CUgraph, unsigned long long)) \
    F(cuGraphInstantiateWithParams, (CUgraphExec *, CUgraph, CUDA_GRAPH_INSTANTIATE_PARAMS *)) \
    F(cuGraphUpload, (CUgraphExec, CUstream)) F(cuGraphLaunch, (CUgraphExec, CUstream)) \
    F(cuGraphExecDestroy, (CUgraphExec)) F(cuGraphExecGetFlags, (CUgraphExec, uint64_t *)) \
    F(cuGraphExecUpdate_v2, (CUgraphExec, CUgraph, CUgraphExecUpdateResultInfo *)) \
    F(cuGraphNodeSetEnabled, (CUgraphExec, CUgraphNode, unsigned)) \
    F(cuGraphNodeGetEnabled, (CUgraphExec, CUgraphNode, unsigned *)) \
    F(cuUserObjectCreate, (CUuserObject *, void *, CUhostFn, unsigned, unsigned)) \
    F(cuGraphRetainUserObject, (CUgraph, CUuserObject, unsigned, unsigned))

/* clang-format on */

#define GRAPH_DECLARE(name, parameters) static CUresult(*name) parameters;
GRAPH_FUNCTIONS(GRAPH_DECLARE)

static void graphs_load(void) {
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL), *symbol;
#define GRAPH_RESOLVE(name, parameters)                                                                                \
    symbol = library ? dlsym(library, #name) : NULL;                                                                   \
    if (symbol == NULL) {                                                                                              \
        fprintf(stderr, "libcuda.so.1 does not export %s\n", #name);                                                   \
        exit(3);                                                                                                       \
    }                                                                                                                  \
    memcpy(&name, &symbol, sizeof symbol);
    GRAPH_FUNCTIONS(GRAPH_RESOLVE)
}

#endif
