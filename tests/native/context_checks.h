// Checks of what belongs to which context, and of calls that are refused at once although nobody waits for them. For the
// simulated GPU itself and through the whole stack.
//
// Every check makes and ends what it uses.
#ifndef CONTEXT_CHECKS_H
#define CONTEXT_CHECKS_H

#include "simgpu_check.h"

#include <pthread.h>
#include <unistd.h>

// What a context has is used in its own streams only; the refusal does not wait for the next call that waits.
static inline void check_streams_of_another_context(CUmodule (*load)(void)) {
    CUcontext home, other;
    CUstream near, far;
    CUevent event, timed;
    CUdeviceptr memory;
    uint32_t value = 7, told = 0;
    size_t n = 1;
    void *params[] = {&memory, &value, &n};
    OK(cuCtxGetCurrent(&home));
    OK(cuStreamCreate(&near, CU_STREAM_NON_BLOCKING));
    OK(cuEventCreate(&event, CU_EVENT_DISABLE_TIMING));
    OK(cuEventCreate(&timed, 0));
    CUmodule module = load();
    CUfunction fill = kernel(module, "fill_u32");
    CUlibrary library;
    CUkernel anywhere;
    OK(cuLibraryLoadData(&library, kernels_ptx, NULL, NULL, 0, NULL, NULL, 0));
    OK(cuLibraryGetKernel(&anywhere, library, "fill_u32"));
    OK(cuMemAlloc_v2(&memory, 4));
    OK(cuEventRecord(event, near));
    OK(cuLaunchKernel(fill, 1, 1, 1, 1, 1, 1, 0, near, params, NULL));

    OK(cuCtxCreate_v2(&other, 0, 0));
    OK(cuStreamCreate(&far, CU_STREAM_NON_BLOCKING));
    for (int stream = 0; stream < 4; stream++) {
        CUstream streams[] = {far, NULL, CU_STREAM_LEGACY, CU_STREAM_PER_THREAD};
        GIVES(CUDA_ERROR_INVALID_HANDLE, cuLaunchKernel(fill, 1, 1, 1, 1, 1, 1, 0, streams[stream], params, NULL));
        GIVES(CUDA_ERROR_INVALID_HANDLE, cuEventRecord(event, streams[stream]));
        GIVES(CUDA_ERROR_INVALID_HANDLE, cuEventRecordWithFlags(timed, streams[stream], 0));
    }
    OK(cuLaunchKernel(fill, 1, 1, 1, 1, 1, 1, 0, near, params, NULL)); // whichever context is current
    OK(cuStreamWaitEvent(far, event, 0));                              // that goes from context to context
    OK(cuEventRecord(event, near));                                    // whichever is current
    OK(cuStreamSynchronize(near));
    OK(cuCtxSynchronize());
    value = 8;
    OK(cuLaunchKernel((CUfunction)anywhere, 1, 1, 1, 1, 1, 1, 0, far, params, NULL)); // a kernel is in both
    OK(cuStreamSynchronize(far));
    OK(cuMemcpyDtoH_v2(&told, memory, sizeof told));
    CHECK(told == 8);

    OK(cuCtxSetCurrent(home));
    GIVES(CUDA_ERROR_INVALID_HANDLE, cuLaunchKernel(fill, 1, 1, 1, 1, 1, 1, 0, far, params, NULL));
    GIVES(CUDA_ERROR_INVALID_HANDLE, cuEventRecord(event, far));
    value = 9;
    OK(cuLaunchKernel(fill, 1, 1, 1, 1, 1, 1, 0, near, params, NULL));
    OK(cuEventRecord(event, near));
    OK(cuEventSynchronize(event));
    OK(cuMemcpyDtoH_v2(&told, memory, sizeof told));
    CHECK(told == 9);
    OK(cuCtxDestroy_v2(other));
    OK(cuLibraryUnload(library));
    OK(cuModuleUnload(module));
    OK(cuMemFree_v2(memory));
    OK(cuEventDestroy_v2(event));
    OK(cuEventDestroy_v2(timed));
    OK(cuStreamDestroy_v2(near));
}

// Which node of which executable graph is asked at once, also when the same call was right before.
static inline void check_kernel_nodes_of_executable_graphs(CUmodule (*load)(void)) {
    CUgraph graph, another;
    CUgraphNode node, empty, foreign;
    CUgraphExec exec;
    CUstream stream;
    CUdeviceptr memory;
    uint32_t value = 1, told;
    size_t n = 1;
    void *params[] = {&memory, &value, &n};
    CUmodule module = load();
    CUDA_KERNEL_NODE_PARAMS what = {.func = kernel(module, "fill_u32"),
                                    .gridDimX = 1,
                                    .gridDimY = 1,
                                    .gridDimZ = 1,
                                    .blockDimX = 1,
                                    .blockDimY = 1,
                                    .blockDimZ = 1,
                                    .kernelParams = params};
    OK(cuMemAlloc_v2(&memory, 4));
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuGraphCreate(&graph, 0));
    OK(cuGraphCreate(&another, 0));
    OK(cuGraphAddKernelNode_v2(&node, graph, NULL, 0, &what));
    OK(cuGraphAddEmptyNode(&empty, graph, &node, 1));
    OK(cuGraphAddKernelNode_v2(&foreign, another, NULL, 0, &what));
    OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
    for (value = 10; value < 14; value++) {
        OK(cuGraphExecKernelNodeSetParams_v2(exec, node, &what));
        GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphExecKernelNodeSetParams_v2(exec, empty, &what));
        GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphExecKernelNodeSetParams_v2(exec, foreign, &what));
        OK(cuGraphLaunch(exec, stream));
        OK(cuMemcpyDtoHAsync_v2(&told, memory, sizeof told, stream));
        OK(cuStreamSynchronize(stream));
        CHECK(told == value);
    }
    OK(cuGraphExecDestroy(exec));
    OK(cuGraphDestroy(graph));
    OK(cuGraphDestroy(another));
    OK(cuStreamDestroy_v2(stream));
    OK(cuMemFree_v2(memory));
    OK(cuModuleUnload(module));
}

// A reset ends what the primary context has, and nobody's hold on it.
static inline void check_resets(void) {
    CUcontext primary, again, current;
    CUdeviceptr memory;
    unsigned flags;
    int active;
    OK(cuCtxGetCurrent(&current));
    OK(cuDevicePrimaryCtxRetain(&primary, 0));
    OK(cuCtxSetCurrent(primary));
    OK(cuMemAlloc_v2(&memory, 4096));
    OK(cuDevicePrimaryCtxReset_v2(0));
    OK(cuDevicePrimaryCtxGetState(0, &flags, &active));
    CHECK(!active);
    GIVES(CUDA_ERROR_CONTEXT_IS_DESTROYED, cuMemAlloc_v2(&memory, 4096));
    OK(cuDevicePrimaryCtxRetain(&again, 0));
    CHECK(again == primary);
    OK(cuMemAlloc_v2(&memory, 4096));
    OK(cuDevicePrimaryCtxRelease_v2(0));
    OK(cuDevicePrimaryCtxGetState(0, &flags, &active));
    CHECK(active); // of two that hold it one has let go
    OK(cuMemFree_v2(memory));
    OK(cuDevicePrimaryCtxRelease_v2(0));
    OK(cuCtxSetCurrent(current));
}

// No host memory, of either side.
static inline void check_no_host_memory(void) {
    CUdeviceptr memory;
    int sync = 0;
    OK(cuMemAlloc_v2(&memory, 4096));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuMemcpyDtoH_v2(NULL, memory, 4));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuMemcpyHtoD_v2(memory, NULL, 4));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuMemcpyDtoHAsync_v2(NULL, memory, 4, NULL));
    OK(cuMemcpyDtoH_v2(NULL, memory, 0));
    OK(cuPointerGetAttribute(&sync, CU_POINTER_ATTRIBUTE_SYNC_MEMOPS, memory + 7));
    CHECK(sync == 1);
    OK(cuMemFree_v2(memory));
}

struct memory_of_a_context {
    char pageable[4096];
    CUdeviceptr plain, pooled, managed;
    void *pinned;
};

// Memory lends its context to a thread that has none and gives it back; what nobody has is told apart without one.
static inline void *give_back_without_a_context(void *what) {
    struct memory_of_a_context *m = what;
    CUcontext none;
    CUdeviceptr address = 1;
    size_t one = 1, two = 1;
    OK(cuMemFree_v2(0));
    OK(cuMemFreeHost(NULL));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuMemFree_v2((CUdeviceptr)(uintptr_t)&none));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuMemFree_v2(m->plain + 8));
    GIVES(CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED, cuMemHostUnregister(&none));
    OK(cuMemFree_v2(m->plain));
    OK(cuMemFree_v2(m->pooled));
    OK(cuMemFree_v2(m->managed));
    OK(cuMemFreeHost(m->pinned));
    OK(cuMemHostUnregister(m->pageable));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuMemFree_v2(m->plain));
    OK(cuCtxGetCurrent(&none));
    CHECK(!none);
    GIVES(CUDA_ERROR_INVALID_CONTEXT, cuMemAlloc_v2(&address, 64));
    GIVES(CUDA_ERROR_INVALID_CONTEXT, cuMemGetInfo_v2(&one, &two));
    CHECK(!address && !one && !two);
    OK(cuMemGetAddressRange_v2(NULL, NULL, 64));
    return NULL;
}

static inline void check_memory_without_a_context(void) {
    static struct memory_of_a_context m;
    size_t before, after, total;
    pthread_t thread;
    OK(cuMemGetInfo_v2(&before, &total));
    OK(cuMemAlloc_v2(&m.plain, 32 << 20));
    OK(cuMemAllocAsync(&m.pooled, 4096, NULL));
    OK(cuMemAllocManaged(&m.managed, 4096, CU_MEM_ATTACH_GLOBAL));
    OK(cuMemHostAlloc(&m.pinned, 4096, 0));
    OK(cuMemHostRegister_v2(m.pageable, sizeof m.pageable, 0));
    CHECK(!pthread_create(&thread, NULL, give_back_without_a_context, &m) && !pthread_join(thread, NULL));
    OK(cuCtxSynchronize());
    OK(cuMemGetInfo_v2(&after, &total));
    CHECK(after + (16 << 20) > before);
}

// What outputs hold after an error: the driver sets them before it looks at anything.
static inline void check_outputs_of_errors(CUmodule module) {
    CUdeviceptr address = 1;
    size_t size = 1;
    void *host = &size;
    GIVES(CUDA_ERROR_OUT_OF_MEMORY, cuMemAlloc_v2(&address, SIZE_MAX / 2));
    CHECK(!address);
    address = 1;
    GIVES(CUDA_ERROR_OUT_OF_MEMORY, cuMemAllocPitch_v2(&address, &size, 100, SIZE_MAX / 2, 4));
    CHECK(!address && size == 512);
    GIVES(CUDA_ERROR_INVALID_VALUE, cuMemAllocPitch_v2(&address, &size, 100, 100, 3));
    CHECK(!size);
    address = size = 1;
    GIVES(CUDA_ERROR_NOT_FOUND, cuModuleGetGlobal_v2(&address, &size, module, "nobody"));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuModuleGetGlobal_v2(&address, &size, module, "")); // as a driver, asked
    CHECK(!address && !size);
    address = size = 1;
    GIVES(CUDA_ERROR_NOT_FOUND, cuMemGetAddressRange_v2(&address, &size, 64));
    CHECK(!address && !size);
    GIVES(CUDA_ERROR_INVALID_VALUE, cuMemHostAlloc(&host, 64, 64));
    CHECK(!host);
    address = 1;
    GIVES(CUDA_ERROR_INVALID_VALUE, cuMemHostGetDevicePointer_v2(&address, &size, 0));
    CHECK(!address);
}

// A launch of a shape that there cannot be ends the capture of its stream; other refusals do not.
static inline void check_launches_in_captures(CUmodule module) {
    CUstream stream, other;
    CUstreamCaptureStatus status;
    CUgraph graph;
    CUdeviceptr memory;
    uint32_t value = 7;
    size_t n = 1;
    void *params[] = {&memory, &value, &n};
    CUfunction fill = kernel(module, "fill_u32");
    OK(cuMemAlloc_v2(&memory, 4096));
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuStreamCreate(&other, CU_STREAM_NON_BLOCKING));
    OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
    GIVES(CUDA_ERROR_INVALID_HANDLE, cuLaunchKernel(NULL, 1, 1, 1, 1, 1, 1, 0, stream, params, NULL));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuLaunchKernel(fill, 1, 1, 1, 1, 1, 1, 0, stream, NULL, NULL));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuLaunchKernel(fill, 0, 1, 1, 1, 1, 1, 0, other, params, NULL));
    OK(cuStreamIsCapturing(stream, &status));
    CHECK(status == CU_STREAM_CAPTURE_STATUS_ACTIVE);
    GIVES(CUDA_ERROR_INVALID_VALUE, cuLaunchKernel(fill, 1, 1, 1, 4096, 1, 1, 0, stream, params, NULL));
    OK(cuStreamIsCapturing(stream, &status));
    CHECK(status == CU_STREAM_CAPTURE_STATUS_INVALIDATED);
    GIVES(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, cuStreamEndCapture(stream, &graph));
    CHECK(!graph);
    CUlaunchAttribute all_at_once = {.id = CU_LAUNCH_ATTRIBUTE_COOPERATIVE, .value = {.cooperative = 1}};
    CUlaunchConfig wide = {0x7fffffff, 1, 1, 1, 1, 1, 0, stream, &all_at_once, 1};
    OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
    GIVES(CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE, cuLaunchKernelEx(&wide, fill, params, NULL));
    GIVES(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, cuStreamEndCapture(stream, &graph));
    wide.gridDimX = 1; // one that fits is a node; whether its parameters may come as one block, only the driver says
    OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
    OK(cuLaunchKernelEx(&wide, fill, params, NULL));
    OK(cuLaunchCooperativeKernel(fill, 1, 1, 1, 1, 1, 1, 0, stream, params));
    OK(cuStreamEndCapture(stream, &graph));
    CUgraphExec exec;
    OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
    OK(cuGraphLaunch(exec, stream));
    OK(cuStreamSynchronize(stream));
    OK(cuGraphExecDestroy(exec));
    OK(cuGraphDestroy(graph));
    CUmemoryPool pool = NULL; // pools are made by calls that captures forbid
    const CUmemPoolProps props = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
                                  .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = 0}};
    OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
    GIVES(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, cuMemPoolCreate(&pool, &props));
    GIVES(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, cuStreamEndCapture(stream, &graph));
    OK(cuStreamDestroy_v2(stream));
    OK(cuStreamDestroy_v2(other));
    OK(cuMemFree_v2(memory));
}

static inline void sleep_a_little(void *unused) {
    (void)unused;
    usleep(50000);
}

// A stream that is destroyed has no capture any more, also while work from before it is under way.
static inline void check_capture_of_a_destroyed_stream(void) {
    CUstream stream;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuLaunchHostFunc(stream, sleep_a_little, NULL));
    OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_RELAXED));
    OK(cuStreamDestroy_v2(stream));
    OK(cuCtxSynchronize());
}

// In a primary context of device 0, which has nothing behind it. `load` loads an image with fill_u32.
static inline void check_contexts(CUmodule (*load)(void)) {
    check_streams_of_another_context(load);
    check_kernel_nodes_of_executable_graphs(load);
    check_no_host_memory();
    check_memory_without_a_context();
    CUmodule module = load();
    check_outputs_of_errors(module);
    check_launches_in_captures(module);
    check_capture_of_a_destroyed_stream();
    OK(cuModuleUnload(module));
    check_resets();
}

#endif
