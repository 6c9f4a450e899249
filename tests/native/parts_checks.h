// Checks of what is older than CUDA 4: launching by parts, and contexts that count their uses. For the simulated GPU itself
// and, remote, through the whole stack.
//
// Every check makes and ends what it uses. Errors are those of driver 580.159 on an H200.
#ifndef PARTS_CHECKS_H
#define PARTS_CHECKS_H

#include "simgpu_check.h"

enum { PARTS_WORDS = 64 };

static inline void parts_expect(CUdeviceptr words, unsigned value, unsigned count) {
    unsigned found[PARTS_WORDS];
    OK(cuMemcpyDtoH_v2(found, words, sizeof found));
    for (unsigned i = 0; i < PARTS_WORDS; i++)
        CHECK(found[i] == (i < count ? value : 0));
    OK(cuMemsetD8_v2(words, 0, sizeof found));
    OK(cuCtxSynchronize());
}

static inline void check_parts_arguments(CUfunction fill) {
    CUcontext before;
    int word = 7;
    OK(cuLaunch(fill)); // one thread, and zeros
    OK(cuCtxSynchronize());
    GIVES(CUDA_ERROR_INVALID_VALUE, cuFuncSetBlockShape(fill, 0, 1, 1));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuFuncSetBlockShape(fill, -1, 1, 1));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuFuncSetBlockShape(fill, 1025, 1, 1));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuFuncSetSharedSize(fill, 1 << 20));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuParamSetv(fill, 0, NULL, 8));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuLaunchGrid(fill, 0, 1));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuLaunchGrid(fill, -1, 1));
    OK(cuParamSetv(fill, 4092, &word, 8)); // behind the parameters
    OK(cuParamSetv(fill, 1, &word, 0));
    OK(cuParamSeti(fill, 4096, 1));
    OK(cuParamSetSize(fill, 5000));
    GIVES(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, cuLaunch(fill));
    GIVES(CUDA_ERROR_INVALID_HANDLE, cuParamSetv(NULL, 0, &word, 4));
    GIVES(CUDA_ERROR_INVALID_HANDLE, cuParamSeti(NULL, 0, 1));
    GIVES(CUDA_ERROR_INVALID_HANDLE, cuParamSetf(NULL, 0, 1));
    GIVES(CUDA_ERROR_INVALID_HANDLE, cuParamSetSize(NULL, 8));
    GIVES(CUDA_ERROR_INVALID_HANDLE, cuFuncSetBlockShape(NULL, 1, 1, 1));
    GIVES(CUDA_ERROR_INVALID_HANDLE, cuFuncSetSharedSize(NULL, 1));
    GIVES(CUDA_ERROR_INVALID_HANDLE, cuLaunch(NULL));
    OK(cuCtxPopCurrent_v2(&before));
    GIVES(CUDA_ERROR_INVALID_CONTEXT, cuFuncSetBlockShape(fill, 4, 1, 1));
    GIVES(CUDA_ERROR_INVALID_CONTEXT, cuParamSetSize(fill, 12));
    GIVES(CUDA_ERROR_INVALID_CONTEXT, cuParamSetSize(NULL, 12));
    GIVES(CUDA_ERROR_INVALID_CONTEXT, cuLaunch(fill));
    OK(cuCtxPushCurrent_v2(before));
}

// fill_u32 takes an address, a word at 8 and a count at 16.
static inline void check_parts_launch(CUmodule module) {
    CUfunction fill = kernel(module, "fill_u32"), saxpy = kernel(module, "saxpy");
    CUdeviceptr words;
    CUstream stream;
    CUgraph graph;
    CUgraphExec exec;
    size_t many = PARTS_WORDS, nodes = 0;
    float two = 2, results[2] = {3, 5};
    OK(cuMemAlloc_v2(&words, PARTS_WORDS * 4));
    OK(cuMemsetD8_v2(words, 0, PARTS_WORDS * 4));
    OK(cuStreamSynchronize(NULL)); // what follows is in other streams
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    check_parts_arguments(fill);

    OK(cuFuncSetBlockShape(fill, 4, 1, 1));
    OK(cuFuncSetSharedSize(fill, 1024));
    OK(cuParamSetSize(fill, 24));
    OK(cuParamSetv(fill, 0, &words, 8));
    OK(cuParamSeti(fill, 8, 77));
    OK(cuParamSetv(fill, 16, &many, 8));
    OK(cuLaunch(fill));
    parts_expect(words, 77, 4);
    OK(cuLaunchGrid(fill, 3, 1));
    parts_expect(words, 77, 12);
    GIVES(CUDA_ERROR_INVALID_VALUE, cuLaunchGrid(fill, 1, 65536));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuFuncSetBlockShape(fill, 0, 1, 1)); // what was there stays
    OK(cuParamSeti(fill, 8, 78));                                        // read at the launch
    OK(cuLaunchGridAsync(fill, 5, 1, stream));
    OK(cuParamSeti(fill, 8, 79));
    OK(cuStreamSynchronize(stream));
    parts_expect(words, 78, 20);
    OK(cuParamSetSize(fill, 8)); // a smaller size runs
    OK(cuLaunch(fill));
    OK(cuCtxSynchronize());
    OK(cuMemsetD8_v2(words, 0, PARTS_WORDS * 4));
    OK(cuStreamSynchronize(NULL)); // what follows is in other streams
    OK(cuParamSetSize(fill, 25));
    GIVES(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, cuLaunch(fill));
    OK(cuParamSetSize(fill, 24));
    OK(cuLaunch(kernel(module, "fill_u32"))); // the same function
    parts_expect(words, 79, 4);

    OK(cuParamSetv(saxpy, 0, (unsigned[]){2}, 4)); // y = a x + y
    OK(cuParamSetf(saxpy, 4, two));
    OK(cuParamSetv(saxpy, 8, &words, 8));
    OK(cuParamSetv(saxpy, 16, &words, 8));
    OK(cuParamSetSize(saxpy, 24));
    OK(cuFuncSetBlockShape(saxpy, 2, 1, 1));
    OK(cuMemcpyHtoD_v2(words, results, sizeof results));
    OK(cuLaunch(saxpy));
    OK(cuMemcpyDtoH_v2(results, words, sizeof results));
    CHECK(results[0] == 9 && results[1] == 15);
    OK(cuMemsetD8_v2(words, 0, PARTS_WORDS * 4));
    OK(cuCtxSynchronize());

    OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_RELAXED));
    OK(cuLaunchGridAsync(fill, 2, 1, stream));
    OK(cuStreamEndCapture(stream, &graph));
    OK(cuParamSeti(fill, 8, 1)); // the node has what was there
    OK(cuGraphGetNodes(graph, NULL, &nodes));
    CHECK(nodes == 1);
    OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
    OK(cuGraphLaunch(exec, stream));
    OK(cuStreamSynchronize(stream));
    parts_expect(words, 79, 8);
    OK(cuGraphExecDestroy(exec));
    OK(cuGraphDestroy(graph));
    OK(cuStreamDestroy_v2(stream));
    OK(cuMemFree_v2(words));
}

// An error of the device comes before anything that is wrong with the function. The last that a process does there.
static inline void check_parts_in_a_broken_context(void) {
    CUcontext broken;
    OK(cuCtxCreate_v2(&broken, 0, 0));
    CUfunction fill = kernel(load_kernels(), "fill_u32");
    size_t many = 1;
    OK(cuParamSetv(fill, 16, &many, 8));
    OK(cuParamSetSize(fill, 24));
    OK(cuLaunch(fill)); // to address 0
    GIVES(CUDA_ERROR_ILLEGAL_ADDRESS, cuCtxSynchronize());
    GIVES(CUDA_ERROR_ILLEGAL_ADDRESS, cuFuncSetBlockShape(fill, 4, 1, 1));
    GIVES(CUDA_ERROR_ILLEGAL_ADDRESS, cuFuncSetBlockShape(NULL, 0, 1, 1));
    GIVES(CUDA_ERROR_ILLEGAL_ADDRESS, cuParamSetSize(fill, 12));
    GIVES(CUDA_ERROR_ILLEGAL_ADDRESS, cuLaunch(fill));
    OK(cuCtxDestroy_v2(broken));
    GIVES(CUDA_ERROR_ILLEGAL_ADDRESS, cuCtxCreate_v2(&broken, 0, 0));
}

static inline CUcontext current_context(void) {
    CUcontext context;
    OK(cuCtxGetCurrent(&context));
    return context;
}

static inline void check_uses_of_contexts(CUcontext primary) {
    CUcontext a, b, c;
    unsigned version, flags;
    int active;
    OK(cuCtxSetCurrent(NULL));
    GIVES(CUDA_ERROR_INVALID_CONTEXT, cuCtxAttach(&c, 0));
    OK(cuCtxCreate_v2(&a, 0, 0));
    OK(cuCtxAttach(&c, 0));
    CHECK(c == a);
    GIVES(CUDA_ERROR_INVALID_VALUE, cuCtxAttach(&c, 1));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuCtxAttach(NULL, 0));
    OK(cuCtxDetach(a));
    CHECK(current_context() == a);
    OK(cuCtxDetach(a));
    CHECK(current_context() == NULL);
    GIVES(CUDA_ERROR_INVALID_CONTEXT, cuCtxDetach(a));
    GIVES(CUDA_ERROR_INVALID_CONTEXT, cuCtxDetach(NULL));

    OK(cuCtxCreate_v2(&a, 0, 0)); // not the current one
    OK(cuCtxCreate_v2(&b, 0, 0));
    GIVES(CUDA_ERROR_INVALID_CONTEXT, cuCtxDetach(a));
    GIVES(CUDA_ERROR_INVALID_CONTEXT, cuCtxDetach(NULL));
    GIVES(CUDA_ERROR_INVALID_CONTEXT, cuCtxDetach(primary));
    CHECK(current_context() == b);
    OK(cuCtxGetApiVersion(a, &version));
    OK(cuCtxDetach(b));
    CHECK(current_context() == a);

    OK(cuCtxAttach(&c, 0)); // two uses, and its end all the same
    OK(cuCtxDestroy_v2(a));
    CHECK(current_context() == NULL);
    GIVES(CUDA_ERROR_INVALID_CONTEXT, cuCtxDetach(a));

    OK(cuCtxSetCurrent(primary));
    OK(cuCtxAttach(&c, 0));
    OK(cuCtxDetach(primary));
    OK(cuCtxDetach(primary));
    CHECK(current_context() == primary);
    OK(cuCtxSynchronize());
    OK(cuDevicePrimaryCtxGetState(0, &flags, &active));
    CHECK(active == 1);
}

#endif
