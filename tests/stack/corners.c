/*
 * What a driver does at the corners of contexts, streams and events, one check for each word that the role is given.
 *
 * Every check makes and ends what it uses. Results are those that CUDA documents, or that a driver gave (named there).
 */
#include "stack.h"

enum { WORDS = 1 << 18 };

/* Copies and waits are allowed in any stream, whatever context is current. */
static void streams_of_another_context(void) {
    static uint32_t sent[WORDS], got[WORDS];
    CUcontext owner, current;
    CUstream stream;
    CUevent event;
    CUdeviceptr memory;
    uint32_t *pinned;
    OK(cuCtxCreate_v2(&owner, 0, 0));
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuEventCreate(&event, CU_EVENT_DISABLE_TIMING));
    OK(cuMemAlloc_v2(&memory, sizeof sent));
    OK(cuCtxCreate_v2(&current, 0, 0));
    OK(cuMemHostAlloc((void **)&pinned, sizeof sent, CU_MEMHOSTALLOC_PORTABLE));
    for (uint32_t i = 0; i < WORDS; i++) {
        sent[i] = i * 2654435761u;
    }
    OK(cuStreamSynchronize(stream));
    for (size_t bytes = 64; bytes <= sizeof sent; bytes *= 64) {
        OK(cuMemcpyHtoDAsync_v2(memory, sent, bytes, stream));
        OK(cuStreamSynchronize(stream));
        OK(cuMemcpyDtoHAsync_v2(got, memory, bytes, stream));
        CHECK(memcmp(got, sent, bytes) == 0);
        OK(cuMemcpyDtoHAsync_v2(pinned, memory, bytes, stream));
        OK(cuEventRecord(event, stream));
        OK(cuEventSynchronize(event));
        CHECK(memcmp(pinned, sent, bytes) == 0);
    }
    OK(cuMemsetD32Async(memory, 5, WORDS, stream));
    OK(cuEventRecord(event, stream));
    OK(cuStreamWaitEvent(NULL, event, 0));
    OK(cuMemcpyDtoH_v2(got, memory, sizeof got));
    CHECK(got[0] == 5 && got[WORDS - 1] == 5);
    OK(cuStreamQuery(stream));
    OK(cuMemFreeHost(pinned));
    OK(cuCtxDestroy_v2(current));
    OK(cuCtxDestroy_v2(owner));
}

/* A capture ends with its context; what it forbade is allowed again. */
static void capture_ends_with_its_context(void) {
    CUcontext context;
    CUstream stream, capturing;
    CUdeviceptr memory;
    CUstreamCaptureStatus status;
    OK(cuCtxCreate_v2(&context, 0, 0));
    OK(cuStreamCreate(&capturing, CU_STREAM_NON_BLOCKING));
    OK(cuStreamBeginCapture_v2(capturing, CU_STREAM_CAPTURE_MODE_GLOBAL));
    OK(cuCtxDestroy_v2(context));
    OK(cuMemAlloc_v2(&memory, 4096)); /* in the primary context */
    OK(cuMemFree_v2(memory));
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
    OK(cuDevicePrimaryCtxReset_v2(0));
    OK(cuDevicePrimaryCtxRetain(&context, 0));
    OK(cuCtxSetCurrent(context));
    OK(cuMemAlloc_v2(&memory, 4096));
    OK(cuMemFree_v2(memory));
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuStreamIsCapturing(stream, &status));
    CHECK(status == CU_STREAM_CAPTURE_STATUS_NONE);
    OK(cuStreamSynchronize(stream));
}

static CUstream told[3];
static int told_count;

static void note_stream(CUstream stream, CUresult status, void *user) {
    CHECK(status == CUDA_SUCCESS && user == told);
    told[told_count++] = stream;
}

/* A callback is told the stream as it was passed, which may be NULL. */
static void stream_of_a_callback(void) {
    CUstream stream;
    OK(cuStreamCreate(&stream, CU_STREAM_DEFAULT));
    OK(cuStreamAddCallback(NULL, note_stream, told, 0));
    OK(cuStreamSynchronize(NULL));
    OK(cuStreamAddCallback(CU_STREAM_LEGACY, note_stream, told, 0));
    OK(cuStreamSynchronize(NULL));
    OK(cuStreamAddCallback(stream, note_stream, told, 0));
    OK(cuStreamSynchronize(stream));
    CHECK(told_count == 3 && told[0] == NULL && told[1] == CU_STREAM_LEGACY && told[2] == stream);
    OK(cuStreamDestroy_v2(stream));
}

static void wait_a_moment(void *unused) {
    (void)unused;
    usleep(20000);
}

/* What a host function reads has come: the copies before it in its stream, of all sizes, and what a kernel wrote. */
static struct {
    const unsigned char *large[2], *small; /* pinned here and pinned by registering */
    const uint32_t *mapped;
    unsigned round, wrong;
} seen;

static void look_at_copies(void *unused) {
    (void)unused;
    enum { LARGE = 9 << 20, SMALL = 3000 };
    unsigned char expected = (unsigned char)++seen.round;
    const unsigned char *large = seen.large[seen.round & 1];
    for (size_t i = 0; i < LARGE; i += 4093) {
        seen.wrong += large[i] != expected;
    }
    seen.wrong += large[LARGE - 1] != expected;
    seen.wrong += seen.small[0] != expected || seen.small[SMALL - 1] != expected;
    seen.wrong += seen.mapped[0] != seen.round || seen.mapped[99] != seen.round;
}

static void host_functions_see_copies(void) {
    enum { LARGE = 9 << 20, SMALL = 3000, ROUNDS = 60 };
    CUmodule module = load_kernels();
    CUstream stream;
    CUdeviceptr memory, there;
    void *large, *small, *mapped, *registered = NULL;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuMemAlloc_v2(&memory, LARGE));
    OK(cuMemHostAlloc(&large, LARGE, 0));
    OK(cuMemHostAlloc(&small, SMALL, 0));
    OK(cuMemHostAlloc(&mapped, 4096, CU_MEMHOSTALLOC_DEVICEMAP));
    OK(cuMemHostGetDevicePointer_v2(&there, mapped, 0));
    CHECK(posix_memalign(&registered, 4096, LARGE) == 0);
    memset(registered, 0xff, LARGE);
    OK(cuMemHostRegister_v2(registered, LARGE, 0));
    memset(large, 0xff, LARGE);
    seen.large[0] = large;
    seen.large[1] = registered;
    seen.small = small;
    seen.mapped = mapped;
    for (unsigned round = 1; round <= ROUNDS; round++) {
        OK(cuMemsetD8Async(memory, (unsigned char)round, LARGE, stream));
        OK(cuMemcpyDtoHAsync_v2(round & 1 ? registered : large, memory, LARGE, stream));
        OK(cuMemcpyDtoHAsync_v2(small, memory, SMALL, stream));
        OK(fill(module, there, round, 100, stream));
        OK(cuLaunchHostFunc(stream, look_at_copies, NULL));
    }
    OK(cuStreamSynchronize(stream));
    CHECK(seen.round == ROUNDS && seen.wrong == 0);
    OK(cuMemFree_v2(memory));
    OK(cuMemHostUnregister(registered));
    free(registered);
    OK(cuMemFreeHost(large));
    OK(cuMemFreeHost(small));
    OK(cuMemFreeHost(mapped));
    OK(cuStreamDestroy_v2(stream));
    OK(cuModuleUnload(module));
}

/* Whoever is told that a stream or an event is complete finds the bytes: in memory of all kinds, however it was told. */
static void polls_see_copies(void) {
    enum { LARGE = 5 << 20, SMALL = 700, ROUNDS = 80 };
    CUstream stream;
    CUevent event;
    CUdeviceptr memory;
    void *registered = NULL, *pinned;
    CUdeviceptr there;
    uint32_t *mapped;
    float milliseconds;
    CUmodule module = load_kernels();
    OK(cuMemHostAlloc((void **)&mapped, 4096, CU_MEMHOSTALLOC_DEVICEMAP));
    OK(cuMemHostGetDevicePointer_v2(&there, mapped, 0));
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuEventCreate(&event, CU_EVENT_DEFAULT));
    OK(cuMemAlloc_v2(&memory, LARGE));
    OK(cuMemHostAlloc(&pinned, LARGE, 0));
    CHECK(posix_memalign(&registered, 4096, LARGE) == 0);
    memset(registered, 0xff, LARGE);
    OK(cuMemHostRegister_v2(registered, LARGE, 0));
    for (unsigned round = 0; round < ROUNDS; round++) {
        unsigned char *host = round & 1 ? registered : pinned, value = (unsigned char)(round + 1);
        size_t size = round & 2 ? LARGE : SMALL;
        CUresult result = CUDA_ERROR_NOT_READY;
        OK(cuMemsetD8Async(memory, value, size, stream));
        OK(cuMemcpyDtoHAsync_v2(host, memory, size, stream));
        OK(fill(module, there, round + 1, 100, stream));
        OK(cuEventRecord(event, stream));
        if (round & 8) {
            usleep(5000); /* it is complete before anybody asks */
        }
        while (result == CUDA_ERROR_NOT_READY) {
            switch (round / 4 % 5) {
            case 0:
                result = cuEventQuery(event);
                break;
            case 1:
                result = cuStreamQuery(stream);
                break;
            case 2:
                result = cuEventSynchronize(event);
                break;
            case 3:
                result = cuEventElapsedTime(&milliseconds, event, event);
                break;
            default:
                result = cuStreamSynchronize(stream);
                break;
            }
        }
        OK(result);
        for (size_t i = 0; i < size; i += 97) {
            CHECK(host[i] == value);
        }
        CHECK(host[size - 1] == value && mapped[0] == round + 1 && mapped[99] == round + 1);
    }
    OK(cuMemFreeHost(mapped));
    OK(cuModuleUnload(module));
    OK(cuMemHostUnregister(registered));
    free(registered);
    OK(cuMemFreeHost(pinned));
    OK(cuMemFree_v2(memory));
    OK(cuEventDestroy_v2(event));
    OK(cuStreamDestroy_v2(stream));
}

/* More pieces of copies than a stream takes commands, behind host functions that end only when the session reads on. */
static void large_copies_behind_host_functions(void) {
    enum { LARGE = 270 << 20, ROUNDS = 1 };
    CUstream stream;
    CUdeviceptr memory;
    void *up, *down;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuMemAlloc_v2(&memory, LARGE));
    OK(cuMemHostAlloc(&up, LARGE, 0));
    OK(cuMemHostAlloc(&down, LARGE, 0));
    for (int round = 0; round < ROUNDS; round++) {
        memset(up, round + 1, LARGE);
        OK(cuLaunchHostFunc(stream, wait_a_moment, NULL));
        OK(cuMemcpyHtoDAsync_v2(memory, up, LARGE, stream));
        OK(cuMemcpyDtoHAsync_v2(down, memory, LARGE, stream));
        OK(cuLaunchHostFunc(stream, wait_a_moment, NULL));
        OK(cuMemcpyDtoHAsync_v2(down, memory, LARGE, stream));
        OK(cuStreamSynchronize(stream));
        CHECK(memcmp(up, down, LARGE) == 0);
    }
    OK(cuMemFree_v2(memory));
    OK(cuMemFreeHost(up));
    OK(cuMemFreeHost(down));
    OK(cuStreamDestroy_v2(stream));
}

/* An event recorded in a capture that is over is refused at once, whichever of the two functions recorded it. */
static void event_of_a_capture_that_is_over(void) {
    CUstream capturing, other;
    CUevent event;
    CUgraph graph;
    OK(cuStreamCreate(&capturing, CU_STREAM_NON_BLOCKING));
    OK(cuStreamCreate(&other, CU_STREAM_NON_BLOCKING));
    OK(cuEventCreate(&event, CU_EVENT_DISABLE_TIMING));
    OK(cuStreamBeginCapture_v2(capturing, CU_STREAM_CAPTURE_MODE_RELAXED));
    OK(cuEventRecordWithFlags(event, capturing, CU_EVENT_RECORD_DEFAULT));
    OK(cuStreamEndCapture(capturing, &graph));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuStreamWaitEvent(other, event, 0));
    OK(cuStreamSynchronize(other));
    OK(cuEventRecordWithFlags(event, other, CU_EVENT_RECORD_DEFAULT));
    OK(cuStreamWaitEvent(capturing, event, 0));
    OK(cuGraphDestroy(graph));
    OK(cuEventDestroy_v2(event));
    OK(cuStreamDestroy_v2(capturing));
    OK(cuStreamDestroy_v2(other));
}

/* A kernel of a library has attributes on each device: what was set for one says nothing of another. */
static void attributes_of_two_devices(void) {
    const CUfunction_attribute dynamic = CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    CUlibrary library;
    CUkernel kernel;
    CUfunction function[2];
    CUcontext context[2];
    int value = 0, most = 0;
    OK(cuDeviceGetAttribute(&most, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, 0));
    OK(cuLibraryLoadData(&library, kernels_ptx, NULL, NULL, 0, NULL, NULL, 0));
    OK(cuLibraryGetKernel(&kernel, library, "no_parameters"));
    for (int i = 0; i < 2; i++) {
        OK(cuDevicePrimaryCtxRetain(&context[i], i));
        OK(cuCtxSetCurrent(context[i]));
        OK(cuKernelGetFunction(&function[i], kernel));
    }
    OK(cuKernelSetAttribute(dynamic, most, kernel, 0));
    OK(cuKernelGetAttribute(&value, dynamic, kernel, 1));
    CHECK(value < most);
    OK(cuKernelGetAttribute(&value, dynamic, kernel, 0));
    CHECK(value == most);
    OK(cuFuncGetAttribute(&value, dynamic, function[0])); /* whatever context is current */
    CHECK(value == most);
    OK(cuFuncGetAttribute(&value, dynamic, function[1]));
    CHECK(value < most);
    GIVES(CUDA_ERROR_INVALID_VALUE,
          cuLaunchKernel((CUfunction)(void *)kernel, 1, 1, 1, 1, 1, 1, (unsigned)most, NULL, NULL, NULL));
    OK(cuKernelSetAttribute(dynamic, most, kernel, 1));
    OK(cuKernelGetAttribute(&value, dynamic, kernel, 1));
    CHECK(value == most);
    for (int i = 0; i < 2; i++) {
        OK(cuCtxSetCurrent(context[i]));
        OK(cuLaunchKernel((CUfunction)(void *)kernel, 1, 1, 1, 1, 1, 1, (unsigned)most, NULL, NULL, NULL));
        OK(cuCtxSynchronize());
    }
    OK(cuLibraryUnload(library));
}

/* CUDA documents CUDA_ERROR_INVALID_VALUE, and nothing about handles, for graphs and pools. */
static void handles_that_are_values(void) {
    CUgraph graph;
    CUgraphNode node;
    CUgraphExec exec;
    CUmemoryPool pool;
    CUdeviceptr memory;
    cuuint64_t bytes = 0;
    size_t count;
    OK(cuDeviceGetDefaultMemPool(&pool, 0));
    OK(cuGraphCreate(&graph, 0));
    OK(cuGraphAddEmptyNode(&node, graph, NULL, 0));
    OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
    OK(cuGraphExecDestroy(exec));
    OK(cuGraphDestroy(graph));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphDestroy(graph));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphDestroy(NULL));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphGetNodes(graph, NULL, &count));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphAddEmptyNode(&node, NULL, NULL, 0));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphDestroyNode(node));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphInstantiateWithFlags(&exec, graph, 0));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphLaunch(NULL, NULL));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphLaunch(exec, NULL));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphExecDestroy(exec));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuUserObjectRelease(NULL, 1));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuMemPoolDestroy(NULL));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuDeviceSetMemPool(0, NULL));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuMemPoolGetAttribute(NULL, CU_MEMPOOL_ATTR_USED_MEM_CURRENT, &bytes));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuMemAllocFromPoolAsync(&memory, 4, NULL, NULL));
    OK(cuCtxSynchronize());
}

/* A call that returned success leaves nothing behind that another one reports. */
static void nothing_fails_later(void) {
    CUmodule module = load_kernels();
    CUfunction function = kernel(module, "fill_u32");
    CUdeviceptr memory;
    CUstream stream;
    int value = 0;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuMemAlloc_v2(&memory, 4096));
    OK(cuMemsetD32Async(memory + 2, 1, 0, stream)); /* of nothing, at an address that is not aligned */
    OK(cuMemsetD2D16Async(memory + 1, 3, 1, 0, 4, stream));
    OK(cuStreamSynchronize(stream));
    GIVES(CUDA_ERROR_INVALID_VALUE,
          cuFuncSetAttribute(function, CU_FUNC_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE, 9));
    OK(cuFuncSetAttribute(function, CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 5));
    OK(cuFuncGetAttribute(&value, CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, function));
    CHECK(value != 5);
    OK(cuFuncSetAttribute(function, CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1));
    OK(cuCtxSynchronize());
    OK(cuMemFree_v2(memory));
    OK(cuStreamDestroy_v2(stream));
    OK(cuModuleUnload(module));
}

/* Between host memory and the device the copies without a stream are over when they return, also in the form that takes the
 * host memory by its device address. */
static void copies_by_device_address(void) {
    CUmodule module = load_kernels();
    CUdeviceptr memory, there;
    uint32_t *pinned, word = 0;
    OK(cuMemAlloc_v2(&memory, 4096));
    OK(cuMemHostAlloc((void **)&pinned, 4096, CU_MEMHOSTALLOC_DEVICEMAP));
    OK(cuMemHostGetDevicePointer_v2(&there, pinned, 0));
    memset(pinned, 0, 4096);
    CUDA_MEMCPY2D rows = {.srcMemoryType = CU_MEMORYTYPE_DEVICE,
                          .srcDevice = memory,
                          .srcPitch = 64,
                          .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                          .dstDevice = there,
                          .dstPitch = 128,
                          .WidthInBytes = 32,
                          .Height = 8};
    for (uint32_t i = 1; i < 4; i++) {
        OK(spin(module, 20000000, NULL));
        OK(cuMemsetD32Async(memory, i, 1024, NULL));
        OK(i == 1   ? cuMemcpyDtoD_v2(there, memory, 4096)
           : i == 2 ? cuMemcpy(there, memory, 4096)
                    : cuMemcpy2D_v2(&rows));
        CHECK(pinned[0] == i && pinned[224] == i);
    }
    pinned[0] = 77;
    OK(spin(module, 20000000, NULL));
    OK(cuMemcpyDtoD_v2(memory, there, 4096));
    pinned[0] = 78;
    OK(cuMemcpyDtoH_v2(&word, memory, 4));
    CHECK(word == 77);
    OK(cuMemFreeHost(pinned));
    OK(cuMemFree_v2(memory));
    OK(cuModuleUnload(module));
}

/* The parameters that a node tells belong to it until they are changed, however often it is asked. */
static void parameters_of_a_node(void) {
    CUmodule module = load_kernels();
    CUgraph graph;
    CUgraphNode node;
    CUdeviceptr memory;
    unsigned value = 4711;
    size_t n = 16;
    void *values[] = {&memory, &value, &n};
    CUDA_KERNEL_NODE_PARAMS params = {.func = kernel(module, "fill_u32"),
                                      .gridDimX = 1,
                                      .gridDimY = 1,
                                      .gridDimZ = 1,
                                      .blockDimX = 16,
                                      .blockDimY = 1,
                                      .blockDimZ = 1,
                                      .kernelParams = values};
    CUDA_KERNEL_NODE_PARAMS first, second;
    OK(cuMemAlloc_v2(&memory, 4096));
    OK(cuGraphCreate(&graph, 0));
    OK(cuGraphAddKernelNode_v2(&node, graph, NULL, 0, &params));
    OK(cuGraphKernelNodeGetParams_v2(node, &first));
    OK(cuGraphKernelNodeGetParams_v2(node, &second));
    CHECK(first.kernelParams == second.kernelParams);
    CHECK(*(unsigned *)first.kernelParams[1] == 4711);
    value = 4712;
    OK(cuGraphKernelNodeSetParams_v2(node, &params));
    OK(cuGraphKernelNodeGetParams_v2(node, &second));
    CHECK(*(unsigned *)second.kernelParams[1] == 4712);
    OK(cuGraphDestroy(graph));
    OK(cuMemFree_v2(memory));
    OK(cuModuleUnload(module));
}

/* For a worker whose first launch fails: once that was reported, by whatever call, waits are as cheap as before. */
static void waits_after_a_failure(void) {
    CUmodule module = load_kernels();
    CUstream stream;
    CUdeviceptr memory;
    uint32_t word;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuMemAlloc_v2(&memory, 4));
    OK(cuCtxSynchronize());
    OK(spin(module, 1, stream));
    GIVES(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, cuMemcpyDtoH_v2(&word, memory, 4));
    for (int i = 0; i < 100; i++) {
        OK(cuStreamSynchronize(stream));
    }
}

/* What a kernel's own limits refuse has the driver's error, at the launch. */
static void limits_of_a_kernel(void) {
    CUmodule module = load_kernels();
    CUfunction function = kernel(module, "unknown_kernel"); /* at most 128 threads */
    static char big[5000];
    unsigned long long other = 0;
    void *params[] = {big, &other};
    CUlaunchAttribute attribute = {.id = CU_LAUNCH_ATTRIBUTE_PRIORITY};
    CUlaunchConfig config = {.gridDimX = 1,
                             .gridDimY = 1,
                             .gridDimZ = 1,
                             .blockDimX = 512,
                             .blockDimY = 1,
                             .blockDimZ = 1,
                             .attrs = &attribute,
                             .numAttrs = 1};
    GIVES(CUDA_ERROR_INVALID_VALUE, cuLaunchKernel(function, 1, 1, 1, 512, 1, 1, 0, NULL, params, NULL));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuLaunchKernelEx(&config, function, params, NULL));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuLaunchKernel(function, 1, 1, 1, 2048, 1, 1, 0, NULL, params, NULL));
    OK(cuLaunchKernel(function, 1, 1, 1, 128, 1, 1, 0, NULL, params, NULL));
    config.blockDimX = 128;
    OK(cuLaunchKernelEx(&config, function, params, NULL));
    OK(cuCtxSynchronize());
    OK(cuModuleUnload(module));
}

/* Mapped host memory that both sides write, while posts wait for their results (a capture elsewhere, or TF_STRICT). */
static void mapped_memory_while_posts_wait(void) {
    CUmodule module = load_kernels();
    CUstream capturing, stream;
    CUgraph graph;
    CUdeviceptr there;
    uint32_t *pinned;
    OK(cuStreamCreate(&capturing, CU_STREAM_NON_BLOCKING));
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuMemHostAlloc((void **)&pinned, 4096, CU_MEMHOSTALLOC_DEVICEMAP));
    OK(cuMemHostGetDevicePointer_v2(&there, pinned, 0));
    OK(cuStreamBeginCapture_v2(capturing, CU_STREAM_CAPTURE_MODE_RELAXED));
    for (uint32_t i = 1; i < 200; i++) {
        OK(fill(module, there, i, 100, stream));
        usleep(100); /* the kernel has run */
        pinned[500 + i] = i;
        OK(fill(module, there + 400, i, 100, stream));
    }
    OK(cuStreamEndCapture(capturing, &graph));
    OK(cuStreamSynchronize(stream));
    CHECK(pinned[0] == 199 && pinned[199] == 199 && pinned[501] == 1 && pinned[699] == 199);
    OK(cuGraphDestroy(graph));
    OK(cuMemFreeHost(pinned));
    OK(cuModuleUnload(module));
}

/* For a worker whose first launch breaks its device: every context there is broken, whichever hears of it, and for good. */
static void error_of_another_context(void) {
    CUcontext other, broken, primary, made;
    CUdeviceptr memory, before;
    CUstream stream;
    OK(cuCtxGetCurrent(&primary));
    OK(cuCtxCreate_v2(&other, 0, 0));
    OK(cuMemAlloc_v2(&before, 4096));
    OK(cuCtxCreate_v2(&broken, 0, 0));
    OK(cuCtxSetCurrent(NULL));
    OK(cuCtxSynchronize_v2(broken)); /* needs no current context */
    OK(cuCtxSetCurrent(broken));
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    CUmodule module = load_kernels();
    OK(spin(module, 1, NULL));
    OK(cuCtxSetCurrent(other));
    GIVES(CUDA_ERROR_ILLEGAL_ADDRESS, cuCtxSynchronize()); /* in which nothing was ever done */
    CUcontext all[] = {other, broken, primary};
    for (int i = 0; i < 3; i++) {
        OK(cuCtxSetCurrent(all[i]));
        GIVES(CUDA_ERROR_ILLEGAL_ADDRESS, cuMemAlloc_v2(&memory, 4096));
        GIVES(CUDA_ERROR_ILLEGAL_ADDRESS, cuMemsetD32_v2(before, 1, 1024));
        GIVES(CUDA_ERROR_ILLEGAL_ADDRESS, cuCtxSynchronize());
        GIVES(CUDA_ERROR_ILLEGAL_ADDRESS, cuCtxSynchronize_v2(broken));
        GIVES(CUDA_ERROR_ILLEGAL_ADDRESS, cuStreamQuery(stream));
        GIVES(CUDA_ERROR_ILLEGAL_ADDRESS, cuStreamQuery(NULL));
        GIVES(CUDA_ERROR_ILLEGAL_ADDRESS, cuStreamSynchronize(stream));
    }
    GIVES(CUDA_ERROR_ILLEGAL_ADDRESS, cuStreamDestroy_v2(stream));
    GIVES(CUDA_ERROR_ILLEGAL_ADDRESS, cuCtxCreate_v2(&made, 0, 0));
    OK(cuCtxDestroy_v2(broken)); /* another is current */
    OK(cuCtxSetCurrent(other));
    OK(cuCtxDestroy_v2(other));
    OK(cuCtxSetCurrent(NULL));
    OK(cuDevicePrimaryCtxReset_v2(0));
    GIVES(CUDA_ERROR_ILLEGAL_ADDRESS, cuDevicePrimaryCtxRetain(&made, 0));
    GIVES(CUDA_ERROR_ILLEGAL_ADDRESS, cuCtxCreate_v2(&made, 0, 0));
}

/* Before anything asked for their range, in a session that had no context to ask: a priority is kept, and clamped to the range. */
static void priorities_of_streams(void) {
    static const struct {
        int wanted, got;
    } streams[] = {{-3, -3}, {-1, -1}, {0, 0}, {5, 0}, {-100, -5}};
    for (size_t i = 0; i < sizeof streams / sizeof *streams; i++) {
        CUstream stream;
        int priority = 77;
        CUstreamAttrValue seen = {.priority = 77}; /* what the GPU's own stream has */
        OK(cuStreamCreateWithPriority(&stream, CU_STREAM_NON_BLOCKING, streams[i].wanted));
        OK(cuStreamGetPriority(stream, &priority));
        CHECK(priority == streams[i].got);
        OK(cuStreamGetAttribute(stream, CU_LAUNCH_ATTRIBUTE_PRIORITY, &seen));
        CHECK(seen.priority == streams[i].got);
        OK(cuStreamDestroy_v2(stream));
    }
}

/* A capture in another thread's default stream is broken as any other by what its mode forbids, and by work in the legacy stream. */
static CUcontext all_share;
static _Atomic int step;
static CUdeviceptr captured;

static void *capture_in_own_default(void *unused) {
    CUgraph graph;
    CUstreamCaptureStatus status;
    OK(cuCtxSetCurrent(all_share));
    for (int turn = 0; turn < 2; turn++) {
        OK(cuStreamBeginCapture_v2(CU_STREAM_PER_THREAD,
                                   turn ? CU_STREAM_CAPTURE_MODE_RELAXED : CU_STREAM_CAPTURE_MODE_GLOBAL));
        step++;
        while (step != 2 * turn + 2) {
            usleep(1000);
        }
        OK(cuStreamIsCapturing(CU_STREAM_PER_THREAD, &status));
        CHECK(status == CU_STREAM_CAPTURE_STATUS_INVALIDATED);
        GIVES(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, cuMemsetD8Async(captured, 1, 4, CU_STREAM_PER_THREAD));
        GIVES(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, cuStreamEndCapture(CU_STREAM_PER_THREAD, &graph));
    }
    return unused;
}

static void capture_in_a_threads_default_stream(void) {
    pthread_t thread;
    CUdeviceptr memory;
    OK(cuCtxGetCurrent(&all_share));
    OK(cuMemAlloc_v2(&captured, 64));
    CHECK(pthread_create(&thread, NULL, capture_in_own_default, NULL) == 0);
    while (step != 1) {
        usleep(1000);
    }
    GIVES(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, cuMemAlloc_v2(&memory, 64));
    step++;
    while (step != 3) {
        usleep(1000);
    }
    GIVES(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, cuMemsetD8Async(captured, 1, 4, CU_STREAM_LEGACY));
    GIVES(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, cuStreamQuery(CU_STREAM_LEGACY));
    step++;
    CHECK(pthread_join(thread, NULL) == 0);
}

static const struct check checks[] = {{"streams-of-another-context", streams_of_another_context},
                                      {"capture-ends-with-its-context", capture_ends_with_its_context},
                                      {"attributes-of-two-devices", attributes_of_two_devices},
                                      {"handles-that-are-values", handles_that_are_values},
                                      {"nothing-fails-later", nothing_fails_later},
                                      {"copies-by-device-address", copies_by_device_address},
                                      {"parameters-of-a-node", parameters_of_a_node},
                                      {"waits-after-a-failure", waits_after_a_failure},
                                      {"limits-of-a-kernel", limits_of_a_kernel},
                                      {"mapped-memory-while-posts-wait", mapped_memory_while_posts_wait},
                                      {"error-of-another-context", error_of_another_context},
                                      {"capture-in-a-threads-default-stream", capture_in_a_threads_default_stream},
                                      {"stream-of-a-callback", stream_of_a_callback},
                                      {"host-functions-see-copies", host_functions_see_copies},
                                      {"polls-see-copies", polls_see_copies},
                                      {"priorities-of-streams", priorities_of_streams},
                                      {"large-copies-behind-host-functions", large_copies_behind_host_functions},
                                      {"event-of-a-capture-that-is-over", event_of_a_capture_that_is_over}};

int role_corners(int count, char **words) {
    start();
    return run_check(checks, sizeof checks / sizeof *checks, count, words);
}
