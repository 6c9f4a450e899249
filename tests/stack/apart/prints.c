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

/* The same text as a container has it that is compressed (by LZ4, and of literals only): from outside nobody sees that it prints. */
static void *compressed(const char *text) {
    const size_t size = strlen(text) + 1, more = (size - 15) / 255 + 1, body = 1 + more + size;
    unsigned char *image = calloc(1, 16 + 64 + body + 8), *at = image + 16 + 64;
    const struct {
        uint32_t magic;
        uint16_t version, header;
        uint64_t body;
        uint16_t kind, entry_version;
        uint32_t entry_header;
        uint64_t padded;
        uint32_t size, options;
        uint16_t minor, major;
        uint32_t arch, name[2];
        uint64_t flags, zero, plain;
    } head = {.magic = 0xba55ed50u,
              .version = 1,
              .header = 16,
              .body = 64 + (body + 7) / 8 * 8,
              .kind = 1,
              .entry_version = 0x101,
              .entry_header = 64,
              .padded = (body + 7) / 8 * 8,
              .size = (uint32_t)body,
              .minor = 5,
              .major = 9,
              .arch = 75,
              .flags = 0x2011,
              .plain = size};
    if (!image) {
        _exit(2);
    }
    memcpy(image, &head, sizeof head);
    *at++ = 0xf0;
    memset(at, 255, more - 1);
    at[more - 1] = (unsigned char)((size - 15) % 255);
    memcpy(at + more, text, size);
    return image;
}

static void nap(void *milliseconds) { usleep(*(useconds_t *)milliseconds * 1000u); }

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
    char *text = text_of(argv[1]);
    OK(cuModuleLoadData(&module, strcmp(argv[2], "late") ? text : compressed(text)));
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
    } else if (strcmp(argv[2], "late") == 0) { /* behind many waits that come fast, in the last call of all */
        for (int i = 0; i < 300; i++) {
            OK(cuCtxSynchronize());
        }
        print(7, 1);
        OK(cuCtxSynchronize());
    } else if (strcmp(argv[2], "ends") == 0) { /* a context that ends waits for its work */
        useconds_t milliseconds = 150;
        CUcontext own;
        OK(cuLaunchHostFunc(stream, nap, &milliseconds));
        print(8, 1);
        printf("reset\n");
        OK(cuDevicePrimaryCtxReset_v2(device));
        printf("create\n");
        OK(cuCtxCreate_v4(&own, NULL, 0, device));
        OK(cuModuleLoadData(&module, text));
        OK(cuModuleGetFunction(&threads, module, "print_threads"));
        OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
        OK(cuLaunchHostFunc(stream, nap, &milliseconds));
        print(9, 1);
        printf("destroy\n");
        OK(cuCtxDestroy_v2(own));
        printf("end\n");
    } else if (strcmp(argv[2], "green") == 0) { /* a part of the device's processors */
        CUdevResource whole, group;
        CUdevResourceDesc description;
        CUgreenCtx green;
        unsigned int groups = 1;
        OK(cuDeviceGetDevResource(device, &whole, CU_DEV_RESOURCE_TYPE_SM));
        OK(cuDevSmResourceSplitByCount(&group, &groups, &whole, NULL, 0, 16));
        OK(cuDevResourceGenerateDesc(&description, &group, 1));
        OK(cuGreenCtxCreate(&green, description, device, CU_GREEN_CTX_DEFAULT_STREAM));
        OK(cuCtxFromGreenCtx(&context, green));
        OK(cuCtxSetCurrent(context));
        OK(cuGreenCtxStreamCreate(&stream, green, CU_STREAM_NON_BLOCKING, 0));
        print(6, 1);
        printf("wait\n");
        OK(cuStreamSynchronize(stream));
        printf("end\n");
    } else if (strcmp(argv[2], "never") == 0) { /* what nobody waits for is shown at the end (580.159.04, measured) */
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
