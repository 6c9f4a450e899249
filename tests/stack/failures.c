/*
 * Questions of the session that the driver fails to answer: the call that needs the answer fails with the driver's code, and nothing
 * is taken for an end of a list, an absence or a zero.
 *
 * Each check belongs to the worker whose TF_SIM_FAULTS the test names; 999 is a code that no call gives by itself. One thread.
 */
#include "stack.h"

static const CUresult failed = CUDA_ERROR_UNKNOWN;

/* What limits were before the first change is not told: it cannot be given back, so there is no change. */
static void limit(void) {
    size_t value;
    start();
    GIVES(failed, cuCtxSetLimit(CU_LIMIT_STACK_SIZE, 4096));
    OK(cuCtxGetLimit(&value, CU_LIMIT_STACK_SIZE));
    CHECK(value == 1024);
    OK(cuCtxSetLimit(CU_LIMIT_STACK_SIZE, 4096));
    OK(cuCtxGetLimit(&value, CU_LIMIT_STACK_SIZE));
    CHECK(value == 4096);
    GIVES(CUDA_ERROR_UNSUPPORTED_LIMIT, cuCtxGetLimit(&value, CU_LIMIT_DEV_RUNTIME_SYNC_DEPTH));
}

/* Which of several errors it is, as driver 580.159.04 answers. */
static void order(void) {
    int value;
    start();
    GIVES(CUDA_ERROR_NOT_PERMITTED, cuCtxSetLimit(CU_LIMIT_SHMEM_SIZE, 64));
    GIVES(CUDA_ERROR_NOT_PERMITTED, cuCtxSetLimit(CU_LIMIT_CIG_ENABLED, 64));
    GIVES(CUDA_ERROR_UNSUPPORTED_LIMIT, cuCtxSetLimit(CU_LIMIT_DEV_RUNTIME_SYNC_DEPTH, 64));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuCtxSetLimit(CU_LIMIT_MAX, 64));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuDeviceGetAttribute(NULL, CU_DEVICE_ATTRIBUTE_MAX, 99));
    GIVES(CUDA_ERROR_INVALID_DEVICE, cuDeviceGetAttribute(&value, CU_DEVICE_ATTRIBUTE_MAX, 99));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuDeviceGetAttribute(&value, CU_DEVICE_ATTRIBUTE_MAX, 0));
}

/* The driver fails within the list of parameters. */
static void module(void) {
    CUmodule loaded;
    start();
    GIVES(failed, cuModuleLoadData(&loaded, kernels_ptx));
    loaded = load_kernels();
    OK(spin(loaded, 1, NULL));
    OK(cuCtxSynchronize());
}

static CUkernel library_kernel(void) {
    CUlibrary library;
    CUkernel kernel;
    OK(cuLibraryLoadData(&library, kernels_ptx, NULL, NULL, 0, NULL, NULL, 0));
    OK(cuLibraryGetKernel(&kernel, library, "spin_ns"));
    return kernel;
}

static CUresult spin_kernel(CUkernel kernel) {
    unsigned long long ns = 1;
    void *params[] = {&ns};
    return cuLaunchKernel((CUfunction)(void *)kernel, 1, 1, 1, 1, 1, 1, 0, NULL, params, NULL);
}

/* A library loads, and its kernels fail as long as they cannot be described. */
static void library(void) {
    size_t offset, size;
    CUfunction function;
    start();
    CUkernel kernel = library_kernel(); /* the first failure */
    GIVES(failed, spin_kernel(kernel));
    GIVES(failed, cuKernelGetParamInfo(kernel, 0, &offset, &size));
    GIVES(failed, cuKernelGetFunction(&function, kernel));
    OK(spin_kernel(kernel));
    OK(cuCtxSynchronize());
}

/* A kernel that the session cannot describe when it is launched. */
static void launch_of_a_function(void) {
    CUmodule loaded;
    start();
    loaded = load_kernels();
    CUresult result = spin(loaded, 1, NULL);
    result = result ? result : cuCtxSynchronize();
    CHECK(result == failed);
    OK(spin(loaded, 1, NULL));
    OK(cuCtxSynchronize());
}

static void raise_count(void *count) { ++*(int *)count; }

/* A graph whose nodes are not told may have host functions: it is not instantiated. */
static void graph(void) {
    CUgraph made;
    CUgraphNode node;
    CUgraphExec exec;
    int count = 0;
    CUDA_HOST_NODE_PARAMS params = {.fn = raise_count, .userData = &count};
    start();
    OK(cuGraphCreate(&made, 0));
    OK(cuGraphAddHostNode(&node, made, NULL, 0, &params));
    GIVES(failed, cuGraphInstantiateWithFlags(&exec, made, 0));
    OK(cuGraphInstantiateWithFlags(&exec, made, 0));
    OK(cuGraphLaunch(exec, NULL));
    OK(cuCtxSynchronize());
    CHECK(count == 1);
}

/* A graph whose depth is not told does not become a child. */
static void child(void) {
    CUgraph inner, outer;
    CUgraphNode node;
    start();
    OK(cuGraphCreate(&inner, 0));
    OK(cuGraphCreate(&outer, 0));
    OK(cuGraphAddEmptyNode(&node, inner, NULL, 0));
    CUresult result = cuGraphAddChildGraphNode(&node, outer, NULL, 0, inner);
    result = result ? result : cuCtxSynchronize();
    CHECK(result == failed);
    OK(cuGraphAddChildGraphNode(&node, outer, NULL, 0, inner));
    OK(cuCtxSynchronize());
}

static const struct check checks[] = {
    {"limit", limit}, {"order", order}, {"module", module}, {"library", library}, {"launch", launch_of_a_function},
    {"graph", graph}, {"child", child}};

int role_failures(int count, char **words) { return run_check(checks, sizeof checks / sizeof *checks, count, words); }
