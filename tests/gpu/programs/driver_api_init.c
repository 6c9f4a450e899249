/* Sections about what is known without a context: calls before cuInit, names, cuGetProcAddress, devices, null pointers.
 *
 * Owns no state. One thread. Everything it reads it asked for itself.
 */
#include "driver_api.h"

#include <stdio.h>
#include <string.h>

void section_before_init(void) {
    int number = 0, other = 0;
    unsigned word = 0;
    size_t size = 0, more = 0;
    char text[64] = "";
    void *pointer = NULL;
    const char *name = NULL;
    CUdeviceptr address = 0;
    CUcontext context = NULL;
    CUstream stream = NULL;
    CUevent event = NULL;
    CUmodule module = NULL;
    CUlibrary library = NULL;
    CUmemoryPool pool = NULL;
    CUuuid uuid;

    if (ASK("cuDriverGetVersion", cu.cuDriverGetVersion(&number)) == 0)
        VALUE("cuDriverGetVersion", "%d", number);
    ASK("cuGetErrorName", cu.cuGetErrorName(2, &name));
    ASK("cuGetErrorString", cu.cuGetErrorString(2, &name));
    ASK("cuGetProcAddress cuMemAlloc", cu.cuGetProcAddress_v2("cuMemAlloc", &pointer, 12000, 0, &number));
    ASK("cuDeviceGetCount", cu.cuDeviceGetCount(&number));
    ASK("cuDeviceGet", cu.cuDeviceGet(&number, 0));
    ASK("cuDeviceGetName", cu.cuDeviceGetName(text, sizeof text, 0));
    ASK("cuDeviceGetUuid", cu.cuDeviceGetUuid_v2(&uuid, 0));
    ASK("cuDeviceTotalMem", cu.cuDeviceTotalMem_v2(&size, 0));
    ASK("cuDeviceGetAttribute", cu.cuDeviceGetAttribute(&number, 1, 0));
    ASK("cuDeviceGetPCIBusId", cu.cuDeviceGetPCIBusId(text, sizeof text, 0));
    ASK("cuDeviceGetDefaultMemPool", cu.cuDeviceGetDefaultMemPool(&pool, 0));
    ASK("cuDeviceCanAccessPeer", cu.cuDeviceCanAccessPeer(&number, 0, 0));
    ASK("cuDevicePrimaryCtxGetState", cu.cuDevicePrimaryCtxGetState(0, &word, &number));
    ASK("cuDevicePrimaryCtxSetFlags", cu.cuDevicePrimaryCtxSetFlags_v2(0, 0));
    ASK("cuDevicePrimaryCtxRetain", cu.cuDevicePrimaryCtxRetain(&context, 0));
    ASK("cuDevicePrimaryCtxRelease", cu.cuDevicePrimaryCtxRelease_v2(0));
    ASK("cuDevicePrimaryCtxReset", cu.cuDevicePrimaryCtxReset_v2(0));
    ASK("cuCtxCreate", cu.cuCtxCreate_v2(&context, 0, 0));
    ASK("cuCtxDestroy", cu.cuCtxDestroy_v2(NULL));
    ASK("cuCtxPushCurrent", cu.cuCtxPushCurrent_v2(NULL));
    ASK("cuCtxPopCurrent", cu.cuCtxPopCurrent_v2(&context));
    ASK("cuCtxSetCurrent", cu.cuCtxSetCurrent(NULL));
    ASK("cuCtxGetCurrent", cu.cuCtxGetCurrent(&context));
    ASK("cuCtxGetDevice", cu.cuCtxGetDevice(&number));
    ASK("cuCtxGetFlags", cu.cuCtxGetFlags(&word));
    ASK("cuCtxSynchronize", cu.cuCtxSynchronize());
    ASK("cuCtxGetLimit", cu.cuCtxGetLimit(&size, 0));
    ASK("cuCtxGetStreamPriorityRange", cu.cuCtxGetStreamPriorityRange(&number, &other));
    ASK("cuStreamCreate", cu.cuStreamCreate(&stream, 0));
    ASK("cuStreamSynchronize", cu.cuStreamSynchronize(NULL));
    ASK("cuStreamQuery", cu.cuStreamQuery(NULL));
    ASK("cuStreamIsCapturing", cu.cuStreamIsCapturing(NULL, &number));
    ASK("cuEventCreate", cu.cuEventCreate(&event, 0));
    ASK("cuMemGetInfo", cu.cuMemGetInfo_v2(&size, &more));
    ASK("cuMemAlloc", cu.cuMemAlloc_v2(&address, 4096));
    ASK("cuMemFree null", cu.cuMemFree_v2(0));
    ASK("cuMemFree", cu.cuMemFree_v2(4096));
    ASK("cuMemAllocHost", cu.cuMemAllocHost_v2(&pointer, 4096));
    ASK("cuMemHostAlloc", cu.cuMemHostAlloc(&pointer, 4096, 0));
    ASK("cuMemFreeHost", cu.cuMemFreeHost(text));
    ASK("cuMemHostRegister", cu.cuMemHostRegister_v2(text, sizeof text, 0));
    ASK("cuMemcpyHtoD", cu.cuMemcpyHtoD_v2(4096, text, 4));
    ASK("cuMemcpyDtoH", cu.cuMemcpyDtoH_v2(text, 4096, 4));
    ASK("cuMemcpyHtoDAsync", cu.cuMemcpyHtoDAsync_v2(4096, text, 4, NULL));
    ASK("cuMemcpy", cu.cuMemcpy(4096, 8192, 4));
    ASK("cuMemsetD8", cu.cuMemsetD8_v2(4096, 1, 4));
    ASK("cuPointerGetAttribute", cu.cuPointerGetAttribute(&number, 2, 4096));
    ASK("cuMemAllocAsync", cu.cuMemAllocAsync(&address, 4096, NULL));
    ASK("cuMemAddressReserve", cu.cuMemAddressReserve(&address, 2u << 20, 0, 0, 0));
    ASK("cuModuleLoadData", cu.cuModuleLoadData(&module, ".version 7.0\n"));
    ASK("cuModuleGetLoadingMode", cu.cuModuleGetLoadingMode(&number));
    ASK("cuLibraryLoadData", cu.cuLibraryLoadData(&library, ".version 7.0\n", NULL, NULL, 0, NULL, NULL, 0));
    ASK("cuLaunchKernel", cu.cuLaunchKernel(NULL, 1, 1, 1, 1, 1, 1, 0, NULL, NULL, NULL));
    ASK("cuProfilerStart", cu.cuProfilerStart());
    ASK("cuInit with flags 1", cu.cuInit(1));
    ASK("cuDeviceGetCount after cuInit(1)", cu.cuDeviceGetCount(&number));
    ASK("cuInit", cu.cuInit(0));
    ASK("cuInit again", cu.cuInit(0));
    /* Initialised, but no context in this thread. */
    ASK("without a context: cuCtxGetDevice", cu.cuCtxGetDevice(&number));
    if (ASK("without a context: cuCtxGetCurrent", cu.cuCtxGetCurrent(&context)) == 0)
        VALUE("without a context: cuCtxGetCurrent", "%s", SET(context));
    ASK("without a context: cuCtxPopCurrent", cu.cuCtxPopCurrent_v2(&context));
    ASK("without a context: cuCtxSynchronize", cu.cuCtxSynchronize());
    ASK("without a context: cuMemAlloc", cu.cuMemAlloc_v2(&address, 4096));
    ASK("without a context: cuMemAlloc of 0", cu.cuMemAlloc_v2(&address, 0));
    ASK("without a context: cuMemGetInfo", cu.cuMemGetInfo_v2(&size, &more));
    ASK("without a context: cuStreamCreate", cu.cuStreamCreate(&stream, 0));
    ASK("without a context: cuStreamSynchronize", cu.cuStreamSynchronize(NULL));
    ASK("without a context: cuEventCreate", cu.cuEventCreate(&event, 0));
    ASK("without a context: cuMemHostAlloc", cu.cuMemHostAlloc(&pointer, 4096, 0));
    ASK("without a context: cuModuleLoadData", cu.cuModuleLoadData(&module, ".version 7.0\n"));
    ASK("without a context: cuMemsetD8", cu.cuMemsetD8_v2(4096, 1, 4));
    ASK("without a context: cuCtxGetLimit", cu.cuCtxGetLimit(&size, 0));
    ASK("without a context: cuPointerGetAttribute", cu.cuPointerGetAttribute(&number, 2, 4096));
}

void section_names(void) {
    static const int codes[] = {0,   1,   2,   3,   4,   5,   34,  36,  46,  100, 101, 200, 201,  202, 205,
                                208, 209, 214, 218, 219, 221, 222, 300, 301, 304, 400, 401, 404,  500, 600,
                                700, 701, 702, 709, 710, 714, 715, 716, 717, 718, 719, 720, 800,  801, 802,
                                803, 900, 901, 906, 907, 908, 909, 910, 911, 999, 6,   -1,  12345};
    for (size_t i = 0; i < sizeof codes / sizeof codes[0]; i++) {
        char label[48];
        const char *text = "unset";
        snprintf(label, sizeof label, "cuGetErrorName %d", codes[i]);
        ASK(label, cu.cuGetErrorName(codes[i], &text));
        VALUE(label, "%s", text != NULL ? text : "null");
        text = "unset";
        snprintf(label, sizeof label, "cuGetErrorString %d", codes[i]);
        ASK(label, cu.cuGetErrorString(codes[i], &text));
        VALUE(label, "%s", text != NULL ? text : "null");
    }
    cu_must(cu.cuInit(0), "cuInit");
    static const struct {
        const char *name;
        int version;
        uint64_t flags;
    } lookups[] = {{"", 0, 0},
                   {"", 12000, 0},
                   {"cuNoSuchFunction", 12000, 0},
                   {"cuMemAlloc", 2000, 0},
                   {"cuMemAlloc", 3020, 0},
                   {"cuMemAlloc", 12000, 0},
                   {"cuMemAlloc", 1000, 0},
                   {"cuMemAlloc", 99000, 0},
                   {"cuMemAlloc", -1, 0},
                   {"cuMemAlloc_v2", 12000, 0},
                   {"cuMemAllocAsync", 11010, 0},
                   {"cuMemAllocAsync", 11020, 0},
                   {"cuMemAllocAsync", 11020, 2},
                   {"cuMemcpyHtoD", 12000, 1},
                   {"cuMemcpyHtoD", 12000, 2},
                   {"cuMemcpyHtoD", 12000, 3},
                   {"cuMemcpyHtoD", 12000, 4},
                   {"cuCtxGetDevice", 2000, 0},
                   {"cuCtxGetDevice", 13000, 0},
                   {"cuCtxSynchronize", 13000, 0},
                   {"cuEventElapsedTime", 12080, 0},
                   {"cuStreamGetCaptureInfo", 10010, 0},
                   {"cuStreamGetCaptureInfo", 12030, 0},
                   {"cuStreamGetCaptureInfo", 10000, 0},
                   {"cuGetProcAddress", 11030, 0},
                   {"cuGetProcAddress", 12000, 0},
                   {"cuGetExportTable", 3000, 0},
                   {"cuMemGetLocationInfo", 13000, 0},
                   {"cuKernelGetParamCount", 13000, 0},
                   {"cudaMalloc", 12000, 0},
                   {"nvmlInit", 12000, 0},
                   {"cuGraphicsGLRegisterBuffer", 3000, 0},
                   {"cuGreenCtxCreate", 12040, 0}};
    for (size_t i = 0; i < sizeof lookups / sizeof lookups[0]; i++) {
        char label[96];
        void *pointer = &label;
        int status = -1;
        snprintf(label, sizeof label, "cuGetProcAddress '%s' %d flags %llu", lookups[i].name, lookups[i].version,
                 (unsigned long long)lookups[i].flags);
        ASK(label, cu.cuGetProcAddress_v2(lookups[i].name, &pointer, lookups[i].version, lookups[i].flags, &status));
        VALUE(label, "%s, status %d", pointer == &label ? "unchanged" : SET(pointer), status);
    }
    void *pointer = NULL, *legacy = NULL, *per_thread = NULL;
    ASK("cuGetProcAddress without a status", cu.cuGetProcAddress_v2("cuMemAlloc", &pointer, 12000, 0, NULL));
    cu.cuGetProcAddress_v2("cuMemcpyHtoD", &legacy, 12000, 1, NULL);
    cu.cuGetProcAddress_v2("cuMemcpyHtoD", &per_thread, 12000, 2, NULL);
    VALUE("legacy and per-thread entry points", "%s", legacy == per_thread ? "the same" : "different");
    cu.cuGetProcAddress_v2("cuMemAlloc", &legacy, 12000, 1, NULL);
    cu.cuGetProcAddress_v2("cuMemAlloc", &per_thread, 12000, 2, NULL);
    VALUE("entry points of a call without a stream", "%s", legacy == per_thread ? "the same" : "different");
}

/* Not asked, because the driver itself crashes: cuDeviceGetName of 0 bytes. */
void section_device(void) {
    char label[64], text[256] = "";
    int number = -7, other = -7;
    size_t size = 0;
    CUuuid uuid;
    CUmemoryPool pool = NULL;

    cu_must(cu.cuInit(0), "cuInit");
    if (ASK("cuDeviceGetCount", cu.cuDeviceGetCount(&number)) == 0)
        VALUE("cuDeviceGetCount", "%d", number);
    ASK("cuDeviceGet 0", cu.cuDeviceGet(&number, 0));
    VALUE("cuDeviceGet 0", "%d", number);
    ASK("cuDeviceGet -1", cu.cuDeviceGet(&number, -1));
    ASK("cuDeviceGet 99", cu.cuDeviceGet(&number, 99));
    ASK("cuDeviceGetName", cu.cuDeviceGetName(text, sizeof text, 0));
    VALUE("cuDeviceGetName", "%s", text);
    memset(text, 'x', sizeof text);
    ASK("cuDeviceGetName of 5 bytes", cu.cuDeviceGetName(text, 5, 0));
    VALUE("cuDeviceGetName of 5 bytes", "%.*s, then %d", 4, text, text[4]);
    ASK("cuDeviceGetName of device 9", cu.cuDeviceGetName(text, sizeof text, 9));
    if (ASK("cuDeviceGetUuid", cu.cuDeviceGetUuid_v2(&uuid, 0)) == 0)
        VALUE("cuDeviceGetUuid", "%02x%02x..%02x", uuid.bytes[0], uuid.bytes[1], uuid.bytes[15]);
    if (ASK("cuDeviceTotalMem", cu.cuDeviceTotalMem_v2(&size, 0)) == 0)
        VALUE("cuDeviceTotalMem", "%zu", size);
    ASK("cuDeviceTotalMem of device -1", cu.cuDeviceTotalMem_v2(&size, -1));
    if (ASK("cuDeviceComputeCapability", cu.cuDeviceComputeCapability(&number, &other, 0)) == 0)
        VALUE("cuDeviceComputeCapability", "%d.%d", number, other);
    if (ASK("cuDeviceGetPCIBusId", cu.cuDeviceGetPCIBusId(text, sizeof text, 0)) == 0) {
        VALUE("cuDeviceGetPCIBusId", "%s", text);
        ASK("cuDeviceGetByPCIBusId", cu.cuDeviceGetByPCIBusId(&number, text));
    }
    ASK("cuDeviceGetByPCIBusId of nonsense", cu.cuDeviceGetByPCIBusId(&number, "nonsense"));
    ASK("cuDeviceGetByPCIBusId of no device", cu.cuDeviceGetByPCIBusId(&number, "0000:ff:1f.7"));
    ASK("cuDeviceCanAccessPeer itself", cu.cuDeviceCanAccessPeer(&number, 0, 0));
    if (ASK("cuDeviceGetDefaultMemPool", cu.cuDeviceGetDefaultMemPool(&pool, 0)) == 0)
        VALUE("cuDeviceGetDefaultMemPool", "%s", SET(pool));
    for (int attribute = 0; attribute <= 150; attribute++) {
        number = -7;
        snprintf(label, sizeof label, "cuDeviceGetAttribute %d", attribute);
        ASK(label, cu.cuDeviceGetAttribute(&number, attribute, 0));
        VALUE(label, "%d", number);
    }
    ASK("cuDeviceGetAttribute of device 7", cu.cuDeviceGetAttribute(&number, 1, 7));
    ASK("cuDeviceGetAttribute 100000", cu.cuDeviceGetAttribute(&number, 100000, 0));
}

/* Null out-pointers. Last of all sections: a crash inside the driver may leave a lock held. Not asked, because the driver
 * itself crashes: cuGetErrorName and cuGetErrorString without a pointer, cuGetProcAddress without a name. */
void section_nulls(void) {
    start_context();
    GUARDED("cuDriverGetVersion", cu.cuDriverGetVersion(NULL));
    GUARDED("cuDeviceGetCount", cu.cuDeviceGetCount(NULL));
    GUARDED("cuDeviceGet", cu.cuDeviceGet(NULL, 0));
    GUARDED("cuDeviceGetAttribute", cu.cuDeviceGetAttribute(NULL, 1, 0));
    GUARDED("cuDeviceGetName", cu.cuDeviceGetName(NULL, 10, 0));
    GUARDED("cuDeviceTotalMem", cu.cuDeviceTotalMem_v2(NULL, 0));
    GUARDED("cuCtxGetCurrent", cu.cuCtxGetCurrent(NULL));
    GUARDED("cuCtxGetDevice", cu.cuCtxGetDevice(NULL));
    GUARDED("cuCtxGetLimit", cu.cuCtxGetLimit(NULL, 0));
    GUARDED("cuCtxDestroy", cu.cuCtxDestroy_v2(NULL));
    GUARDED("cuDevicePrimaryCtxRetain", cu.cuDevicePrimaryCtxRetain(NULL, 0));
    GUARDED("cuDevicePrimaryCtxGetState", cu.cuDevicePrimaryCtxGetState(0, NULL, NULL));
    GUARDED("cuMemAlloc", cu.cuMemAlloc_v2(NULL, 100));
    GUARDED("cuMemHostAlloc", cu.cuMemHostAlloc(NULL, 100, 0));
    GUARDED("cuMemFreeHost", cu.cuMemFreeHost(NULL));
    GUARDED("cuMemGetInfo", cu.cuMemGetInfo_v2(NULL, NULL));
    GUARDED("cuMemcpyHtoD of 4 bytes from null", cu.cuMemcpyHtoD_v2(0, NULL, 4));
    GUARDED("cuMemcpyHtoD of 0 bytes from null", cu.cuMemcpyHtoD_v2(0, NULL, 0));
    GUARDED("cuStreamCreate", cu.cuStreamCreate(NULL, 0));
    GUARDED("cuStreamDestroy", cu.cuStreamDestroy_v2(NULL));
    GUARDED("cuStreamIsCapturing", cu.cuStreamIsCapturing(NULL, NULL));
    GUARDED("cuEventCreate", cu.cuEventCreate(NULL, 0));
    GUARDED("cuEventDestroy", cu.cuEventDestroy_v2(NULL));
    GUARDED("cuEventRecord", cu.cuEventRecord(NULL, NULL));
    GUARDED("cuEventSynchronize", cu.cuEventSynchronize(NULL));
    GUARDED("cuStreamWaitEvent", cu.cuStreamWaitEvent(NULL, NULL, 0));
    GUARDED("cuModuleLoadData", cu.cuModuleLoadData(NULL, NULL));
    GUARDED("cuModuleUnload", cu.cuModuleUnload(NULL));
    GUARDED("cuModuleGetFunction", cu.cuModuleGetFunction(NULL, NULL, NULL));
    GUARDED("cuFuncGetAttribute", cu.cuFuncGetAttribute(NULL, 0, NULL));
    GUARDED("cuLaunchKernel", cu.cuLaunchKernel(NULL, 1, 1, 1, 1, 1, 1, 0, NULL, NULL, NULL));
    GUARDED("cuLaunchHostFunc", cu.cuLaunchHostFunc(NULL, NULL, NULL));
    GUARDED("cuPointerGetAttribute", cu.cuPointerGetAttribute(NULL, 2, 4096));
    GUARDED("cuMemcpy2D", cu.cuMemcpy2D_v2(NULL));
    GUARDED("cuLaunchKernelEx", cu.cuLaunchKernelEx(NULL, NULL, NULL, NULL));
    GUARDED("cuInit", cu.cuInit(0));
}
