/*
 * The driver under test and the objects of the running program, for the files of the interpreter.
 *
 * The table is filled once, by interpreter_start. The objects belong to the thread that the program lets use them; the
 * generator keeps two threads from using one object between two barriers.
 */
#ifndef RANDOM_DRIVER_H
#define RANDOM_DRIVER_H

#include "program.h"

/* The driver's functions by their own names, found in the library that the command line names. */
/* clang-format off */
#define FUNCTIONS(F) \
    F(cuInit) F(cuDeviceGet) F(cuDevicePrimaryCtxRetain) F(cuCtxCreate_v2) F(cuCtxSetCurrent) \
    F(cuCtxSynchronize) F(cuCtxGetCurrent) F(cuModuleLoadData) F(cuModuleGetFunction) F(cuGetErrorName) \
    F(cuMemAlloc_v2) F(cuMemAllocManaged) F(cuMemFree_v2) F(cuMemHostAlloc) F(cuMemFreeHost) F(cuMemHostRegister_v2) \
    F(cuMemHostUnregister) F(cuMemHostGetDevicePointer_v2) F(cuMemAllocAsync) F(cuMemAllocFromPoolAsync) \
    F(cuMemFreeAsync) F(cuMemPoolCreate) F(cuMemPoolDestroy) F(cuMemGetAllocationGranularity) F(cuMemCreate) \
    F(cuMemRelease) F(cuMemAddressReserve) F(cuMemAddressFree) F(cuMemMap) F(cuMemUnmap) F(cuMemSetAccess) \
    F(cuMemcpy) F(cuMemcpyAsync) F(cuMemcpyHtoD_v2) F(cuMemcpyDtoH_v2) F(cuMemcpyDtoD_v2) \
    F(cuMemcpyHtoDAsync_v2) F(cuMemcpyDtoHAsync_v2) F(cuMemcpyDtoDAsync_v2) F(cuMemcpy2D_v2) \
    F(cuMemcpy2DUnaligned_v2) F(cuMemcpy2DAsync_v2) F(cuMemcpy3D_v2) F(cuMemcpy3DAsync_v2) F(cuMemsetD8_v2) \
    F(cuMemsetD16_v2) F(cuMemsetD32_v2) F(cuMemsetD2D8_v2) F(cuMemsetD2D16_v2) F(cuMemsetD2D32_v2) \
    F(cuMemsetD8Async) F(cuMemsetD16Async) F(cuMemsetD32Async) F(cuMemsetD2D8Async) F(cuMemsetD2D16Async) \
    F(cuMemsetD2D32Async) F(cuStreamCreate) F(cuStreamCreateWithPriority) F(cuStreamDestroy_v2) \
    F(cuStreamSynchronize) F(cuStreamQuery) F(cuStreamWaitEvent) F(cuStreamWriteValue32_v2) \
    F(cuStreamWriteValue64_v2) F(cuStreamBeginCapture_v2) F(cuStreamIsCapturing) F(cuStreamEndCapture) F(cuEventCreate) \
    F(cuEventDestroy_v2) F(cuEventRecord) F(cuEventSynchronize) F(cuEventQuery) F(cuEventElapsedTime) \
    F(cuLaunchKernel) F(cuLaunchHostFunc) F(cuGraphCreate) F(cuGraphClone) F(cuGraphDestroy) \
    F(cuGraphAddEmptyNode) F(cuGraphAddKernelNode_v2) F(cuGraphAddMemcpyNode) F(cuGraphAddMemsetNode) \
    F(cuGraphAddHostNode) F(cuGraphAddChildGraphNode) F(cuGraphInstantiateWithFlags) \
    F(cuGraphInstantiateWithParams) F(cuGraphExecDestroy) F(cuGraphLaunch) F(cuGraphUpload) \
    F(cuGraphExecUpdate_v2) F(cuGraphExecKernelNodeSetParams_v2) F(cuGraphExecMemcpyNodeSetParams) \
    F(cuGraphExecMemsetNodeSetParams)
/* clang-format on */

#define FIELD(name) __typeof__(name) *name;
extern struct driver {
    FUNCTIONS(FIELD)
} driver;
#undef FIELD

/* A call that must succeed; `op` is the operation in hand. */
#define CALL(name, ...) call_result(op, #name, driver.name(__VA_ARGS__))
void call_result(const struct operation *op, const char *name, CUresult result);

enum kernel { KERNEL_FILL, KERNEL_IOTA, KERNEL_MIX, KERNEL_SPIN, KERNELS };

struct region {
    enum code kind; /* of the operation that made it; OP_barrier: there is none */
    size_t size, reserved;
    CUdeviceptr device;
    uint8_t *host, *block; /* `block`: where a registered region's own allocation begins */
    uint8_t *by_hand;      /* where the program's threads reach it: host or managed memory */
    bool of_graph;         /* launches allocate it */
    CUcontext context;     /* that was current when it was made */
};

extern struct region regions[MOST_REGIONS];
extern CUgraph graphs[MOST_GRAPHS];
extern CUgraphExec execs[MOST_EXECS];

CUstream stream_of(int stream);
CUcontext current_context(const struct operation *op);
CUfunction kernel_of(const struct operation *op, enum kernel kernel);
/* Where a region lies for the API, and where for kernels. */
CUdeviceptr address_of(int region);
CUdeviceptr device_address(const struct operation *op, int region);

/* What a kernel of an effect gets; the pointers in `pointers` point into it. */
struct arguments {
    CUdeviceptr to, from;
    uint32_t value;
    size_t count;
    uint64_t ns;
    void *pointers[4];
    enum kernel kernel;
    unsigned grid, block;
};
void kernel_arguments(const struct operation *op, const struct effect *e, struct arguments *arguments);
CUDA_MEMCPY3D copy_in_three_dimensions(const struct operation *op, const struct effect *e);
void host_function(void *effect);

/* Puts an effect into its stream. */
void issue(const struct operation *op, const struct effect *e);

/* Operations on graphs; false: not one of those. */
bool graph_operation(const struct operation *op);
void graphs_end(void);

#endif
