// Simulated GPU: a fixed row of calls whose results are printed, for tests that inject errors through the environment.
#include "simgpu_check.h"

int main(void) {
    CUcontext context;
    CUdeviceptr p = 0;
    CUmodule module;
    CUfunction function = NULL;
    unsigned long long zero = 0;
    void *params[] = {&zero};
    int device;
    setvbuf(stdout, NULL, _IONBF, 0);
    printf("init %d\n", cuInit(0));
    printf("retain %d\n", cuDevicePrimaryCtxRetain(&context, 0));
    printf("set %d\n", cuCtxSetCurrent(context));
    for (int i = 0; i < 4; i++)
        printf("alloc %d\n", cuMemAlloc_v2(&p, 4096));
    printf("load %d\n", cuModuleLoadData(&module, kernels_ptx));
    printf("function %d\n", cuModuleGetFunction(&function, module, "spin_ns"));
    for (int i = 0; i < 3; i++)
        printf("launch %d\n", cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, NULL, params, NULL));
    printf("function %d\n", cuModuleGetFunction(&function, module, "no_parameters"));
    printf("unknown %d\n", cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, NULL, NULL, NULL));
    printf("sync %d\n", cuStreamSynchronize(NULL));
    printf("device %d\n", cuCtxGetDevice(&device));
    return 0;
}
