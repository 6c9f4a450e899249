/*
 * Calls in which the driver waits for the GPU, while a stream stands at a word that another thread has written later: only the caller
 * waits. By another stream, by the host through mapped memory, in a graph, and beside a host function.
 *
 * Two threads at a time. Memory is the test's own.
 */
#include "stack.h"

enum { BY_STREAM, BY_HOST, WAYS };

static CUcontext context;
static CUmodule kernels;
static CUstream standing, other;
static CUfunction not_asked_before;
static CUdeviceptr word, scratch;
static uint32_t *host;
static uint32_t turn;
static int way;
static _Atomic bool written;
static pthread_t writer;

/* It works on meanwhile, and waits for what it does. */
static void *write_later(void *unused) {
    uint32_t back[16] = {0};
    int registers = 0;
    CUdeviceptr memory;
    OK(cuCtxSetCurrent(context));
    usleep(30000); /* the other thread is in its call */
    OK(cuMemAlloc_v2(&memory, 4096));
    OK(cuFuncGetAttribute(&registers, CU_FUNC_ATTRIBUTE_NUM_REGS, not_asked_before));
    for (uint32_t i = 1; i < 4; i++) {
        OK(cuMemsetD32Async(memory, turn + i, 16, other));
        OK(cuMemcpyDtoHAsync_v2(back, memory, sizeof back, other));
        OK(cuStreamSynchronize(other));
        CHECK(back[0] == turn + i && back[15] == turn + i);
    }
    CHECK(cuStreamQuery(standing) == CUDA_ERROR_NOT_READY);
    written = true;
    if (way == BY_HOST) {
        __atomic_store_n(host, turn, __ATOMIC_RELEASE);
        OK(fill(kernels, scratch, 1, 16, other)); /* brings it to the worker where the memory is not the same */
    } else {
        OK(cuStreamWriteValue32_v2(other, word, turn, CU_STREAM_WRITE_VALUE_DEFAULT));
    }
    OK(cuStreamSynchronize(other));
    return unused;
}

static void stand(void) {
    written = false;
    turn++;
    OK(cuStreamWaitValue32_v2(standing, word, turn, CU_STREAM_WAIT_VALUE_GEQ));
    CHECK(pthread_create(&writer, NULL, write_later, NULL) == 0);
}

static void go_on(void) {
    CHECK(written);
    CHECK(pthread_join(writer, NULL) == 0);
    OK(cuStreamSynchronize(standing));
}

#define WAITS(call)                                                                                                    \
    do {                                                                                                               \
        stand();                                                                                                       \
        OK(call);                                                                                                      \
        go_on();                                                                                                       \
    } while (0)

static void calls_that_wait(void) {
    CUmodule module;
    CUlibrary library;
    CUkernel kernel_of;
    CUfunction function;
    CUstream more[80];
    int shared = 0;
    WAITS(cuModuleLoadData(&module, kernels_ptx));
    OK(fill(module, scratch, 2, 16, standing));
    OK(cuModuleUnload(module));
    OK(cuLibraryLoadData(&library, kernels_ptx, NULL, NULL, 0, NULL, NULL, 0));
    WAITS(cuLibraryGetModule(&module, library));
    OK(cuLibraryUnload(library));
    OK(cuLibraryLoadData(&library, kernels_ptx, NULL, NULL, 0, NULL, NULL, 0));
    OK(cuLibraryGetKernel(&kernel_of, library, "fill_u32"));
    WAITS(cuKernelGetFunction(&function, kernel_of));
    OK(cuModuleGetFunction(&not_asked_before, kernels, way == BY_STREAM ? "vector_add" : "spin_ns"));
    OK(cuKernelGetAttribute(&shared, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, kernel_of, 0));
    WAITS(cuKernelSetAttribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared / 2, kernel_of, 0));
    OK(cuLibraryUnload(library));
    WAITS(cuCtxSetLimit(CU_LIMIT_STACK_SIZE, 4096 + 512 * (size_t)way));
    if (way == BY_STREAM) {
        stand();
        for (size_t i = 0; i < sizeof more / sizeof *more; i++) {
            OK(cuStreamCreate(&more[i], CU_STREAM_NON_BLOCKING));
        }
        go_on();
        for (size_t i = 0; i < sizeof more / sizeof *more; i++) {
            OK(cuStreamDestroy_v2(more[i]));
        }
    }
}

/* The unload is put off until the kernel is over, and another stream stands at the word by then. */
static void unload_meanwhile(void) {
    CUmodule module;
    OK(cuModuleLoadData(&module, kernels_ptx));
    OK(spin(kernels, 50000000, other));
    OK(cuModuleUnload(module));
    stand();
    CHECK(pthread_join(writer, NULL) == 0);
    CHECK(written);
    OK(cuStreamSynchronize(standing));
}

static void wait_in_a_graph(void) {
    CUgraph graph;
    CUgraphNode node;
    CUgraphExec exec;
    CUmodule module;
    CUstreamBatchMemOpParams list[1];
    memset(list, 0, sizeof list);
    list[0].waitValue.operation = CU_STREAM_MEM_OP_WAIT_VALUE_32;
    list[0].waitValue.address = word;
    list[0].waitValue.value = turn + 1;
    list[0].waitValue.flags = CU_STREAM_WAIT_VALUE_GEQ;
    CUDA_BATCH_MEM_OP_NODE_PARAMS params = {.ctx = context, .count = 1, .paramArray = list};
    OK(cuGraphCreate(&graph, 0));
    OK(cuGraphAddBatchMemOpNode(&node, graph, NULL, 0, &params));
    OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
    written = false;
    turn++;
    OK(cuGraphLaunch(exec, standing));
    CHECK(pthread_create(&writer, NULL, write_later, NULL) == 0);
    OK(cuModuleLoadData(&module, kernels_ptx));
    go_on();
    OK(cuModuleUnload(module));
    OK(cuGraphExecDestroy(exec));
    OK(cuGraphDestroy(graph));
}

static _Atomic int functions;

static void take_time(void *unused) {
    (void)unused;
    usleep(60000);
    functions++;
}

/* The word is written first, or the function ends first. */
static void beside_a_function(void) {
    CUmodule module;
    CUstream third;
    OK(cuStreamCreate(&third, CU_STREAM_NON_BLOCKING));
    for (int i = 0; i < 2; i++) {
        functions = 0;
        OK(cuLaunchHostFunc(third, take_time, NULL));
        if (i) {
            OK(cuLaunchHostFunc(standing, take_time, NULL));
        }
        WAITS(cuModuleLoadData(&module, kernels_ptx));
        CHECK(functions == 1 + i);
        OK(cuModuleUnload(module));
    }
    OK(cuStreamDestroy_v2(third));
}

int role_words(int count, char **words) {
    (void)count, (void)words;
    context = start();
    kernels = load_kernels();
    OK(cuStreamCreate(&standing, CU_STREAM_NON_BLOCKING));
    OK(cuStreamCreate(&other, CU_STREAM_NON_BLOCKING));
    OK(cuMemAlloc_v2(&scratch, 4096));
    for (way = 0; way < WAYS; way++) {
        turn = 0;
        if (way == BY_HOST) {
            OK(cuMemHostAlloc((void **)&host, 4096, CU_MEMHOSTALLOC_DEVICEMAP));
            memset(host, 0, 4096);
            OK(cuMemHostGetDevicePointer_v2(&word, host, 0));
        } else {
            OK(cuMemAlloc_v2(&word, 4096));
            OK(cuMemsetD32_v2(word, 0, 1024));
            OK(cuCtxSynchronize());
        }
        OK(fill(kernels, scratch, 1, 16, other));
        OK(cuModuleGetFunction(&not_asked_before, kernels, "fill_u32"));
        calls_that_wait();
        beside_a_function();
        unload_meanwhile();
        wait_in_a_graph();
    }
    say("right");
    return 0;
}
