/*
 * What kernels print stands in the program's own output where the driver puts it: behind what the program printed before it
 * waited, before what it prints then. Usage: prints KERNELS_PTX WAY. Without a connection it is the same on a driver.
 */
#include "tpg_cuda.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define OK(call)                                                                                                       \
    do {                                                                                                               \
        CUresult result_ = (call);                                                                                     \
        if (result_) {                                                                                                 \
            fprintf(stderr, "%s gave %d\n", #call, (int)result_);                                                      \
            _exit(2);                                                                                                  \
        }                                                                                                              \
    } while (0)

static CUfunction threads, below;
static CUdeviceptr memory;
static CUstream stream;
static CUevent event;

static void *text_of(const char *path) {
    FILE *file = fopen(path, "rb");
    char *text = calloc(1, 1 << 16);
    if (!file || !text || !fread(text, 1, (1 << 16) - 1, file)) {
        _exit(2);
    }
    fclose(file);
    return text;
}

static void print(unsigned value, unsigned count) {
    void *params[] = {&value};
    OK(cuLaunchKernel(threads, 1, 1, 1, count, 1, 1, 0, stream, params, NULL));
}

int main(int argc, char **argv) {
    CUdevice device;
    CUcontext context;
    CUmodule module;
    char bytes[64];
    if (argc != 3) {
        return 2;
    }
    OK(cuInit(0));
    OK(cuDeviceGet(&device, 0));
    OK(cuDevicePrimaryCtxRetain(&context, device));
    OK(cuCtxSetCurrent(context));
    OK(cuModuleLoadData(&module, text_of(argv[1])));
    OK(cuModuleGetFunction(&threads, module, "print_threads"));
    OK(cuModuleGetFunction(&below, module, "assert_below"));
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuEventCreate(&event, 0));
    OK(cuMemAlloc_v2(&memory, 64));
    if (strcmp(argv[2], "waits") == 0) {
        printf("begin\n");
        print(1, 2);
        OK(cuStreamSynchronize(stream));
        printf("stream\n");
        print(2, 1);
        OK(cuEventRecord(event, stream));
        OK(cuEventSynchronize(event));
        printf("event\n");
        print(3, 1);
        OK(cuCtxSynchronize());
        printf("context\n");
        OK(cuStreamDestroy_v2(stream));
        stream = NULL;
        print(4, 1);
        OK(cuMemcpyDtoH_v2(bytes, memory, sizeof bytes));
        printf("copy\n");
        print(5, 1);
        OK(cuStreamSynchronize(NULL));
        OK(cuStreamSynchronize(NULL));
        printf("end\n");
    } else if (strcmp(argv[2], "much") == 0) {
        for (unsigned i = 0; i < 20; i++) {
            print(i, 1000);
            OK(cuCtxSynchronize());
        }
    } else if (strcmp(argv[2], "never") == 0) { /* what nobody waits for is not shown */
        print(1, 1);
        usleep(200000);
    } else if (strcmp(argv[2], "assert") == 0) {
        unsigned value = 5, limit = 3;
        void *params[] = {&value, &limit};
        print(1, 1);
        OK(cuLaunchKernel(below, 1, 1, 1, 1, 1, 1, 0, stream, params, NULL));
        printf("gave %d\n", (int)cuStreamSynchronize(stream));
        printf("gave %d\n", (int)cuCtxSynchronize());
    }
    return 0;
}
