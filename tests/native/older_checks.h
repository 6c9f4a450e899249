// Checks of the older forms of functions, which programs built for older headers ask for, and of what is loaded from files. For
// the simulated GPU itself and, remote, through the whole stack.
//
// Every check makes and ends what it uses.
#ifndef OLDER_CHECKS_H
#define OLDER_CHECKS_H

#include "simgpu_check.h"

enum { OLDER_WORDS = 64 };

static inline void older_expect(CUdeviceptr words, unsigned value) {
    unsigned found[OLDER_WORDS];
    OK(cuMemcpyDtoH_v2(found, words, sizeof found));
    for (unsigned i = 0; i < OLDER_WORDS; i++)
        CHECK(found[i] == value);
}

// A graph of one kernel node: made, read, set, instantiated, changed and updated by the first forms of all of these.
static inline void check_older_graphs(CUmodule module) {
    CUdeviceptr words;
    OK(cuMemAlloc_v2(&words, OLDER_WORDS * sizeof(unsigned)));
    unsigned value = 3;
    unsigned long long count = OLDER_WORDS;
    void *arguments[] = {&words, &value, &count};
    CUDA_KERNEL_NODE_PARAMS_v1 found, params = {.func = kernel(module, "fill_u32"),
                                                .gridDimX = 1,
                                                .gridDimY = 1,
                                                .gridDimZ = 1,
                                                .blockDimX = OLDER_WORDS,
                                                .blockDimY = 1,
                                                .blockDimZ = 1,
                                                .kernelParams = arguments};
    CUgraph graph;
    CUgraphNode node, wrong = (CUgraphNode)(void *)&wrong;
    CUgraphExec exec;
    char log[8] = "unread";
    OK(cuGraphCreate(&graph, 0));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphAddKernelNode(&node, graph, NULL, 0, NULL));
    OK(cuGraphAddKernelNode(&node, graph, NULL, 0, &params));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphKernelNodeGetParams(node, NULL));
    OK(cuGraphKernelNodeGetParams(node, &found));
    CHECK(found.func == params.func && found.blockDimX == OLDER_WORDS && *(unsigned *)found.kernelParams[1] == 3);
    value = 4;
    OK(cuGraphKernelNodeSetParams(node, &params));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphInstantiate_v2(NULL, graph, NULL, NULL, 0));
    OK(cuGraphInstantiate_v2(&exec, graph, &wrong, log, sizeof log));
    CHECK(!wrong && !*log);
    OK(cuGraphLaunch(exec, NULL));
    older_expect(words, 4);
    value = 5;
    OK(cuGraphExecKernelNodeSetParams(exec, node, &params));
    OK(cuGraphLaunch(exec, NULL));
    older_expect(words, 5);
    CUgraphExecUpdateResult result = CU_GRAPH_EXEC_UPDATE_ERROR;
    OK(cuGraphExecUpdate(exec, graph, NULL, NULL)); // as a driver does (580.159.04, on an H200)
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphExecUpdate(NULL, graph, &wrong, &result));
    CHECK(result == CU_GRAPH_EXEC_UPDATE_SUCCESS && !wrong);
    result = CU_GRAPH_EXEC_UPDATE_ERROR;
    OK(cuGraphExecUpdate(exec, graph, &wrong, &result));
    CHECK(result == CU_GRAPH_EXEC_UPDATE_SUCCESS && !wrong);
    OK(cuGraphLaunch(exec, NULL));
    older_expect(words, 4);
    OK(cuGraphExecDestroy(exec));
    OK(cuGraphDestroy(graph));
    OK(cuMemFree_v2(words));
}

static inline void check_older_capture(void) {
    CUstream stream;
    CUgraph graph;
    CUstreamCaptureStatus status;
    cuuint64_t id = 0;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuStreamBeginCapture(stream));
    OK(cuStreamGetCaptureInfo(stream, &status, &id));
    CHECK(status == CU_STREAM_CAPTURE_STATUS_ACTIVE && id);
    OK(cuStreamEndCapture(stream, &graph));
    OK(cuGraphDestroy(graph));
    OK(cuStreamDestroy_v2(stream));
}

static inline void check_names(CUmodule module) {
    CUfunction function;
    GIVES(CUDA_ERROR_INVALID_VALUE, cuModuleGetFunction(&function, module, ""));
    GIVES(CUDA_ERROR_NOT_FOUND, cuModuleGetFunction(&function, module, "none"));
}

// What `text` says, from a file of this process.
static inline void check_files(const char *text) {
    char path[] = "/tmp/older_checks.XXXXXX";
    int file = mkstemp(path);
    CHECK(file >= 0 && write(file, text, strlen(text)) == (ssize_t)strlen(text) && close(file) == 0);
    CUmodule module;
    CUlibrary library;
    CUkernel found;
    CUlinkState link;
    void *image;
    size_t size = 0;
    OK(cuModuleLoad(&module, path));
    OK(cuModuleUnload(module));
    OK(cuLibraryLoadFromFile(&library, path, NULL, NULL, 0, NULL, NULL, 0));
    OK(cuLibraryGetKernel(&found, library, "fill_u32"));
    OK(cuLibraryUnload(library));
    OK(cuLinkCreate_v2(0, NULL, NULL, &link));
    OK(cuLinkAddFile_v2(link, CU_JIT_INPUT_PTX, path, 0, NULL, NULL));
    OK(cuLinkComplete(link, &image, &size));
    OK(cuModuleLoadData(&module, image));
    OK(cuModuleUnload(module));
    OK(cuLinkDestroy(link));
    CHECK(unlink(path) == 0);
    GIVES(CUDA_ERROR_FILE_NOT_FOUND, cuModuleLoad(&module, path));
    GIVES(CUDA_ERROR_FILE_NOT_FOUND, cuLibraryLoadFromFile(&library, path, NULL, NULL, 0, NULL, NULL, 0));
}

#endif
