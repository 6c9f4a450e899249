// What the tests of the simulated GPU share: checks that name the line, and the PTX of the kernels that it executes.
//
// Each test program runs its cases in order in one process and exits with 1 at the first failed check;
// tests/test_simgpu.py compiles and runs them against the built library.
#ifndef SIMGPU_CHECK_H
#define SIMGPU_CHECK_H

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "tpg_cuda.h"
#include "tpg_nvml.h"

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);                                    \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

#define GIVES(expected, call)                                                                                          \
    do {                                                                                                               \
        CUresult gives_ = (call);                                                                                      \
        if (gives_ != (CUresult)(expected)) {                                                                          \
            fprintf(stderr, "%s:%d: %s gave %d, expected %d\n", __FILE__, __LINE__, #call, (int)gives_,                \
                    (int)(expected));                                                                                  \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)
#define OK(call) GIVES(CUDA_SUCCESS, call)

static const char kernels_ptx[] =
    "// a comment before the version\n.version 8.0\n.target sm_80\n.address_size 64\n"
    ".visible .global .align 4 .u32 counter = 7;\n"
    ".global .align 4 .b8 table[8] = {1, 2, 3, 4, 5};\n"
    ".visible .global .align 8 .f64 scale[2] = {0d3FF0000000000000, 0d4000000000000000};\n"
    ".extern .func (.param .b32 r) vprintf (.param .b64 a, .param .b64 b);\n"
    ".visible .entry vector_add(.param .u64 a, .param .u64 .ptr .global .align 4 b, .param .u64 c, .param .u32 "
    "n)\n{\nret;\n}\n"
    ".visible .entry saxpy(.param .u32 n, .param .f32 a, .param .u64 x, .param .u64 y) { ret; }\n"
    ".visible .entry fill_u32(.param .u64 p, .param .u32 v, .param .u64 n) { ret; }\n"
    ".visible .entry iota_u32(.param .u64 p, .param .u64 n) { ret; }\n"
    ".visible .entry spin_ns(.param .u64 ns) { ret; }\n"
    ".visible .entry unknown_kernel(.param .align 8 .b8 big[5000], .param .u64 o)\n.maxntid 128, 1, 1\n{\n"
    "  .shared .align 4 .b8 scratch[256]; { .reg .b32 r; } ret;\n}\n"
    ".visible .entry no_parameters() { ret; }\n";

static inline CUmodule load_kernels(void) {
    CUmodule module;
    OK(cuModuleLoadData(&module, kernels_ptx));
    return module;
}

static inline CUfunction kernel(CUmodule module, const char *name) {
    CUfunction function;
    OK(cuModuleGetFunction(&function, module, name));
    return function;
}

static inline CUcontext start(void) {
    CUcontext context;
    OK(cuInit(0));
    OK(cuDevicePrimaryCtxRetain(&context, 0));
    OK(cuCtxSetCurrent(context));
    return context;
}

// A fault breaks its device for the rest of the process, so each has a process of its own: the story runs again and again in
// children, the n-th of which ends at its n-th fault; the last one comes to no fault any more. Before cuInit.
static int faults_before; // those that this process leaves out
enum { FAULTED = 77 };
static inline bool fault_here(void) { return faults_before-- == 0; }
static inline void each_fault(void (*story)(void)) {
    int status = 0;
    for (int n = 0; n == 0 || WEXITSTATUS(status) == FAULTED; n++) {
        fflush(NULL);
        pid_t child = fork();
        CHECK(child >= 0);
        if (!child) {
            faults_before = n;
            story();
            exit(0);
        }
        CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status));
    }
    CHECK(WEXITSTATUS(status) == 0);
}

static inline CUresult spin(CUmodule module, unsigned long long ns, CUstream stream) {
    void *params[] = {&ns};
    return cuLaunchKernel(kernel(module, "spin_ns"), 1, 1, 1, 1, 1, 1, 0, stream, params, NULL);
}

static inline CUresult iota(CUmodule module, CUdeviceptr p, size_t n, CUstream stream) {
    void *params[] = {&p, &n};
    return cuLaunchKernel(kernel(module, "iota_u32"), (unsigned)((n + 255) / 256), 1, 1, 256, 1, 1, 0, stream, params,
                          NULL);
}

static inline CUresult fill(CUmodule module, CUdeviceptr p, unsigned value, size_t n, CUstream stream) {
    void *params[] = {&p, &value, &n};
    return cuLaunchKernel(kernel(module, "fill_u32"), (unsigned)((n + 255) / 256), 1, 1, 256, 1, 1, 0, stream, params,
                          NULL);
}

#endif
