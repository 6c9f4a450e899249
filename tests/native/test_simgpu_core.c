// Simulated GPU: start-up, contexts, memory, virtual memory, copies, the kernels, launch limits.
#include "place_checks.h"
#include "simgpu_check.h"

#include <pthread.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static void before_init(void) {
    int n, version;
    CUcontext context;
    CUdeviceptr p;
    GIVES(3, cuDeviceGetCount(&n));
    GIVES(3, cuMemAlloc_v2(&p, 4));
    GIVES(3, cuCtxGetCurrent(&context));
    OK(cuDriverGetVersion(&version));
    CHECK(version == 13000);
    GIVES(1, cuInit(1));
}

static void devices(void) {
    int count, value;
    char name[64], bus[32];
    size_t total;
    CUdevice device;
    OK(cuDeviceGetCount(&count));
    CHECK(count >= 1);
    OK(cuDeviceGetName(name, sizeof name, 0));
    CHECK(!strcmp(name, "Simulated NVIDIA H200"));
    GIVES(101, cuDeviceGet(&device, count));
    OK(cuDeviceGetAttribute(&value, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, 0));
    CHECK(value == 132);
    OK(cuDeviceGetPCIBusId(bus, sizeof bus, 0));
    OK(cuDeviceGetByPCIBusId(&device, bus));
    CHECK(device == 0);
    OK(cuDeviceTotalMem_v2(&total, 0));
    const char *text;
    OK(cuGetErrorName((CUresult)700, &text));
    CHECK(!strcmp(text, "CUDA_ERROR_ILLEGAL_ADDRESS"));
    GIVES(1, cuGetErrorString((CUresult)12345, &text));
    void *pointer;
    CUdriverProcAddressQueryResult status;
    OK(cuGetProcAddress_v2("cuMemAlloc", &pointer, 13000, 0, &status));
    CHECK(pointer == (void *)(uintptr_t)&cuMemAlloc_v2 && status == CU_GET_PROC_ADDRESS_SUCCESS);
    OK(cuGetProcAddress_v2("cuNoSuchThing", &pointer, 13000, 0, &status));
    CHECK(!pointer && status == CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND);
    pointer = &status, status = (CUdriverProcAddressQueryResult)77;
    GIVES(1, cuGetProcAddress_v2("cuInit", &pointer, 13010, 0, &status));
    CHECK(pointer == &status && (int)status == 77); // with nothing written
    OK(cuGetProcAddress_v2("cuMemAlloc", &pointer, -1, 3, NULL));
    CHECK(pointer == (void *)(uintptr_t)&cuMemAlloc_v2);
    OK(cuGetProcAddress("cuGreenCtxCreate", &pointer, 12040, 0));
    CHECK(pointer == (void *)(uintptr_t)&cuGreenCtxCreate);
}

// The forms for programs whose default stream is each thread's own: NULL is that stream, and so is the one that is implied.
static void own_default_streams(CUmodule module) {
    CUdeviceptr p;
    unsigned char byte = 0;
    OK(cuMemAlloc_v2(&p, 4));
    OK(spin(module, 50000000, CU_STREAM_PER_THREAD));
    GIVES(600, cuStreamQuery_ptsz(NULL));
    GIVES(600, cuStreamQuery(CU_STREAM_PER_THREAD));
    OK(cuMemsetD8_v2_ptds(p, 7, 4));
    OK(cuMemcpyDtoH_v2_ptds(&byte, p, 1)); // behind the kernel, in the same stream
    CHECK(byte == 7);
    OK(cuStreamQuery(CU_STREAM_PER_THREAD));
    unsigned long long own, same, legacy;
    OK(cuStreamGetId_ptsz(NULL, &own));
    OK(cuStreamGetId(CU_STREAM_PER_THREAD, &same));
    OK(cuStreamGetId(NULL, &legacy));
    CHECK(own == same && own != legacy);
    OK(cuMemFree_v2(p));
}

static void contexts(void) {
    CUcontext primary, again, made, popped, current;
    CUdeviceptr p;
    unsigned flags;
    int active;
    size_t before, after, total;
    GIVES(201, cuMemAlloc_v2(&p, 4));
    OK(cuDevicePrimaryCtxGetState(0, &flags, &active));
    CHECK(!active);
    OK(cuDevicePrimaryCtxRetain(&primary, 0));
    OK(cuDevicePrimaryCtxRetain(&again, 0));
    CHECK(primary == again);
    OK(cuCtxSetCurrent(primary));
    OK(cuMemGetInfo_v2(&before, &total));
    CHECK(total - before == 527ull << 20);
    CUexecAffinityParam share = {.type = CU_EXEC_AFFINITY_TYPE_SM_COUNT, .param.smCount.val = 8};
    GIVES(224, cuCtxCreate_v3(&made, &share, 1, 0, 0));
    OK(cuCtxCreate_v3(&made, NULL, 0, 0, 0));
    OK(cuCtxDestroy_v2(made));
    OK(cuCtxCreate_v4(&made, NULL, 0, 0));
    OK(cuCtxGetCurrent(&current));
    CHECK(current == made);
    OK(cuMemGetInfo_v2(&after, &total));
    CHECK(before - after == 527ull << 20);
    OK(cuMemAlloc_v2(&p, 4096));
    OK(cuCtxPopCurrent_v2(&popped));
    CHECK(popped == made);
    OK(cuCtxDestroy_v2(made));
    OK(cuCtxPushCurrent_v2(made)); // one that is gone can be current
    GIVES(709, cuMemGetInfo_v2(&after, &total));
    OK(cuCtxPopCurrent_v2(&popped));
    CHECK(popped == made);
    GIVES(201, cuCtxSetCurrent((CUcontext)(uintptr_t)0x1234560));
    OK(cuMemGetInfo_v2(&after, &total));
    CHECK(before == after);
    GIVES(1, cuMemFree_v2(p));
    OK(cuDevicePrimaryCtxRelease_v2(0));
    OK(cuDevicePrimaryCtxRelease_v2(0));
    GIVES(201, cuDevicePrimaryCtxRelease_v2(0));
    GIVES(709, cuMemAlloc_v2(&p, 4));
    OK(cuDevicePrimaryCtxRetain(&again, 0));
    CHECK(primary == again);
    size_t limit;
    OK(cuCtxGetLimit(&limit, CU_LIMIT_STACK_SIZE));
    CHECK(limit == 1024);
    unsigned long long id;
    OK(cuCtxGetId(primary, &id));
    GIVES(1, cuCtxGetId(primary, NULL));
}

static void memory(void) {
    CUdeviceptr p, q, base;
    size_t size, free_before, free_now, total;
    OK(cuMemGetInfo_v2(&free_before, &total));
    GIVES(1, cuMemAlloc_v2(&p, 0));
    GIVES(2, cuMemAlloc_v2(&p, total * 2));
    GIVES(2, cuMemAlloc_v2(&p, SIZE_MAX));
    OK(cuMemAlloc_v2(&p, free_before)); // all there is, untouched
    GIVES(2, cuMemAlloc_v2(&q, 1));
    OK(cuMemFree_v2(p));
    OK(cuMemAlloc_v2(&p, 1000));
    CHECK(p % 256 == 0);
    OK(cuMemGetAddressRange_v2(&base, &size, p + 999));
    CHECK(base == p && size == 1000);
    GIVES(500, cuMemGetAddressRange_v2(&base, &size, p + 1000));
    GIVES(1, cuMemFree_v2(p + 1));
    GIVES(1, cuMemFree_v2(0xdeadbeef000));
    char host[1001];
    memset(host, 7, sizeof host);
    OK(cuMemcpyHtoD_v2(p, host, 1000));
    GIVES(1, cuMemcpyHtoD_v2(p, host, 1001));
    GIVES(1, cuMemcpyHtoD_v2(p + 1, host, 1000));
    GIVES(1, cuMemcpyDtoH_v2(host, p - 1, 1));
    OK(cuMemsetD8_v2(p + 10, 9, 20));
    memset(host, 0, sizeof host);
    OK(cuMemcpyDtoH_v2(host, p, 1000));
    CHECK(host[9] == 7 && host[10] == 9 && host[29] == 9 && host[30] == 7 && host[999] == 7 && host[1000] == 0);
    GIVES(1, cuMemsetD32_v2(p + 2, 1, 1));
    OK(cuMemAlloc_v2(&q, 1000));
    OK(cuMemsetD16_v2(q, 0x1234, 500));
    OK(cuMemcpyDtoD_v2(p, q, 1000));
    OK(cuMemcpy((CUdeviceptr)(uintptr_t)host, p, 1000)); // unified addresses
    CHECK(host[0] == 0x34 && host[999] == 0x12);
    unsigned char seen[1];
    CHECK(mincore((void *)(uintptr_t)(p & ~4095ull), 4096, seen) == 0); // reserved here, and not readable:
    int pipes[2];
    CHECK(pipe(pipes) == 0 && write(pipes[1], (void *)(uintptr_t)p, 1) == -1);
    close(pipes[0]);
    close(pipes[1]);
    OK(cuMemFree_v2(p));
    GIVES(1, cuMemFree_v2(p));
    GIVES(1, cuMemcpyDtoH_v2(host, p, 1));
    OK(cuMemFree_v2(q));
    OK(cuMemFree_v2(0));
    OK(cuMemGetInfo_v2(&free_now, &total));
    CHECK(free_now == free_before);
    // Many of many sizes, freed in another order: the books balance.
    CUdeviceptr many[200];
    for (unsigned i = 0; i < 200; i++)
        OK(cuMemAlloc_v2(&many[i], 1 + i * 7919u * 13u));
    for (unsigned i = 0; i < 200; i++)
        OK(cuMemFree_v2(many[i * 67 % 200]));
    OK(cuMemGetInfo_v2(&free_now, &total));
    CHECK(free_now == free_before);
    size_t pitch;
    OK(cuMemAllocPitch_v2(&p, &pitch, 100, 10, 4));
    CHECK(pitch == 512);
    GIVES(1, cuMemHostRegister_v2((void *)(uintptr_t)p, 512, 0)); // a device address is nobody's host memory
    OK(cuMemFree_v2(p));
}

static void pinned(void) {
    void *p;
    CUdeviceptr device;
    unsigned flags;
    OK(cuMemHostAlloc(&p, 10000, CU_MEMHOSTALLOC_PORTABLE));
    OK(cuMemHostGetDevicePointer_v2(&device, p, 0));
    CHECK(device == (CUdeviceptr)(uintptr_t)p);
    OK(cuMemHostGetFlags(&flags, p));
    CHECK(flags & CU_MEMHOSTALLOC_PORTABLE);
    unsigned type;
    OK(cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, device + 5));
    CHECK(type == CU_MEMORYTYPE_HOST);
    OK(cuMemFreeHost(p));
    GIVES(1, cuMemFreeHost(p));
    char *own = aligned_alloc(4096, 8192);
    GIVES(1, cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, (CUdeviceptr)(uintptr_t)own));
    OK(cuMemHostRegister_v2(own, 8192, 0));
    GIVES(712, cuMemHostRegister_v2(own + 4096, 100, 0));
    OK(cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, (CUdeviceptr)(uintptr_t)own));
    GIVES(1, cuMemHostUnregister(own + 4096)); // inside, and where a second registration was refused
    GIVES(713, cuMemHostUnregister(own + 8192));
    OK(cuMemHostUnregister(own));
    GIVES(713, cuMemHostUnregister(own));
    CUdeviceptr linear;
    OK(cuMemAlloc_v2(&linear, 4096));
    GIVES(1, cuMemHostUnregister((void *)(uintptr_t)(linear + 64)));
    OK(cuMemFree_v2(linear));
    GIVES(1, cuMemHostUnregister(NULL));
    GIVES(1, cuMemHostRegister_v2((void *)0x1000, 4096, 0)); // nothing there
    free(own);
    CUpointer_attribute which[] = {CU_POINTER_ATTRIBUTE_MEMORY_TYPE, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL,
                                   CU_POINTER_ATTRIBUTE_IS_MANAGED};
    int ordinal = 5;
    unsigned managed = 1;
    void *out[] = {&type, &ordinal, &managed};
    OK(cuPointerGetAttributes(3, which, out, (CUdeviceptr)(uintptr_t)&ordinal));
    CHECK(type == 0 && managed == 0);
}

// A shared mapping at a fixed address, registered as a whole: one address for the CPU and the device, in pieces.
static void shared_mapping(CUmodule module) {
    enum { SIZE = 512 << 20, AT = 300 << 20, WORDS = 1 << 20 };
    int fd = memfd_create("segment", MFD_CLOEXEC);
    CHECK(fd >= 0 && ftruncate(fd, SIZE) == 0);
    unsigned char *base = mmap((void *)0x350000000000ull, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(base == (void *)0x350000000000ull);
    OK(cuMemHostRegister_v2(base, SIZE, CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP));
    CUdeviceptr device, piece = (CUdeviceptr)(uintptr_t)(base + AT), p;
    OK(cuMemHostGetDevicePointer_v2(&device, base + AT, 0));
    CHECK(device == piece);
    CUstream stream;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    const uint32_t *words = (const uint32_t *)(const void *)(base + AT);
    OK(iota(module, piece, WORDS, stream));
    OK(cuStreamSynchronize(stream));
    CHECK(words[0] == 0 && words[WORDS - 1] == WORDS - 1 && words[WORDS] == 0);
    OK(cuMemAlloc_v2(&p, WORDS * 4));
    // Copies do not wait: the device reads when the stream gets there.
    OK(spin(module, 50000000, stream));
    OK(cuMemcpyHtoDAsync_v2(p, words, WORDS * 4, stream));
    OK(cuMemcpyDtoHAsync_v2(base, p, WORDS * 4, stream));
    CHECK(base[4] == 0);
    ((uint32_t *)(void *)(base + AT))[1] = 77;
    OK(cuStreamSynchronize(stream));
    CHECK(memcmp(base, words, WORDS * 4) == 0 && base[4] == 77);
    OK(cuMemFree_v2(p));
    OK(cuStreamDestroy_v2(stream));
    OK(cuMemHostUnregister(base));
    munmap(base, SIZE);
    close(fd);
}

static void virtual_memory(CUmodule module) {
    CUdeviceptr at, other;
    size_t granularity;
    CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED, .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
    OK(cuMemGetAllocationGranularity(&granularity, &prop, CU_MEM_ALLOC_GRANULARITY_MINIMUM));
    CHECK(granularity == 2 << 20);
    static const CUmemLocation places[] = {{CU_MEM_LOCATION_TYPE_DEVICE, 99}, {CU_MEM_LOCATION_TYPE_HOST, 0}, {7, 0}};
    for (int i = 0; i < 3; i++) { // of the properties nothing is looked at
        CUmemAllocationProp any = {.location = places[i]};
        OK(cuMemGetAllocationGranularity(&granularity, &any, CU_MEM_ALLOC_GRANULARITY_MINIMUM));
        CHECK(granularity == 2 << 20);
    }
    GIVES(CUDA_ERROR_INVALID_VALUE, cuMemGetAllocationGranularity(&granularity, &prop, 9));
    size_t g = granularity, tib = 1ull << 40;
    static const CUdeviceptr hints[] = {0x200000000000, 0x300000000000, 0x700000000000};
    for (int i = 0; i < 3; i++) {
        size_t size = i ? 256ull << 30 : 16 * tib;
        OK(cuMemAddressReserve(&at, size, 0, hints[i], 0));
        CHECK(at == hints[i]);
        OK(cuMemAddressReserve(&other, g, 0, hints[i], 0)); // taken: somewhere else
        CHECK(other != hints[i] && other % g == 0);
        OK(cuMemAddressFree(other, g));
        GIVES(1, cuMemAddressFree(at, g));
        OK(cuMemAddressFree(at, size));
    }
    OK(cuMemAddressReserve(&at, 8 * g, 0, hints[0], 0));
    CUmemGenericAllocationHandle a, b, c;
    size_t free_before, free_now, total;
    OK(cuMemGetInfo_v2(&free_before, &total));
    GIVES(1, cuMemCreate(&a, g / 2, &prop, 0));
    GIVES(2, cuMemCreate(&a, (total / g + 1) * g, &prop, 0));
    OK(cuMemCreate(&a, g, &prop, 0));
    OK(cuMemCreate(&b, 2 * g, &prop, 0));
    OK(cuMemGetInfo_v2(&free_now, &total));
    CHECK(free_before - free_now == 3 * g);
    GIVES(1, cuMemMap(at, g, 0, b, 0));
    GIVES(1, cuMemMap(0x123456200000, g, 0, a, 0));
    OK(cuMemMap(at, g, 0, a, 0));
    GIVES(1, cuMemMap(at, g, 0, a, 0));
    OK(cuMemMap(at + g, 2 * g, 0, b, 0));
    CUmemAccessDesc access = {prop.location, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    GIVES(1, cuMemSetAccess(at, 4 * g, &access, 1));
    OK(cuMemSetAccess(at, 3 * g, &access, 1));
    unsigned long long flags;
    OK(cuMemGetAccess(&flags, &prop.location, at + g));
    CHECK(flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
    OK(cuMemRelease(a)); // the mapping keeps it
    GIVES(1, cuMemRelease(a));
    OK(cuMemGetInfo_v2(&free_now, &total));
    CHECK(free_before - free_now == 3 * g);
    OK(cuMemRetainAllocationHandle(&c, (void *)(uintptr_t)(at + g + 5)));
    CHECK(c == b);
    CUmemAllocationProp read;
    OK(cuMemGetAllocationPropertiesFromHandle(&read, c));
    CHECK(!memcmp(&read, &prop, sizeof read));
    OK(cuMemRelease(b));
    OK(cuMemRelease(c));
    // A kernel and a copy over the seam of two mappings.
    size_t n = 3 * g / 4;
    unsigned *host = malloc(3 * g);
    OK(iota(module, at, n, NULL));
    OK(cuMemcpyDtoH_v2(host, at, 3 * g));
    for (size_t i = 0; i < n; i++)
        CHECK(host[i] == i);
    GIVES(1, cuMemFree_v2(at));
    GIVES(1, cuMemUnmap(at, g / 2));
    OK(cuMemUnmap(at, 3 * g));
    OK(cuMemGetInfo_v2(&free_now, &total));
    CHECK(free_before == free_now);
    OK(cuMemAddressFree(at, 8 * g));
    free(host);
}

static void kernels(CUmodule module) {
    enum { N = 10000 };
    CUdeviceptr a, b, c;
    float *host = malloc(N * sizeof *host);
    OK(cuMemAlloc_v2(&a, N * 4));
    OK(cuMemAlloc_v2(&b, N * 4));
    OK(cuMemAlloc_v2(&c, N * 4));
    for (int i = 0; i < N; i++)
        host[i] = (float)i;
    OK(cuMemcpyHtoD_v2(a, host, N * 4));
    OK(cuMemcpyHtoD_v2(b, host, N * 4));
    OK(cuMemsetD32_v2(c, 0, N));
    int n = N - 1;
    void *params[] = {&a, &b, &c, &n};
    CUfunction add = kernel(module, "vector_add");
    // 39 blocks of 256 are fewer than N: what was not launched is not touched.
    OK(cuLaunchKernel(add, 39, 1, 1, 256, 1, 1, 0, NULL, params, NULL));
    OK(cuMemcpyDtoH_v2(host, c, N * 4));
    for (int i = 0; i < N; i++)
        CHECK(host[i] == (i < 39 * 256 ? 2.0f * (float)i : 0.0f));
    OK(cuLaunchKernel(add, 40, 1, 1, 256, 1, 1, 0, NULL, params, NULL));
    OK(cuMemcpyDtoH_v2(host, c, N * 4));
    CHECK(host[N - 2] == 2.0f * (N - 2) && host[N - 1] == 0.0f); // n is respected

    struct {
        int n;
        float a;
        CUdeviceptr x, y;
    } block = {N, 3.0f, a, b};
    size_t size = sizeof block;
    void *extra[] = {(void *)(uintptr_t)CU_LAUNCH_PARAM_BUFFER_POINTER_AS_INT, &block,
                     (void *)(uintptr_t)CU_LAUNCH_PARAM_BUFFER_SIZE_AS_INT, &size,
                     (void *)(uintptr_t)CU_LAUNCH_PARAM_END_AS_INT};
    CUlaunchAttribute attributes[2] = {{.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION},
                                       {.id = CU_LAUNCH_ATTRIBUTE_COOPERATIVE}};
    CUlaunchConfig config = {.gridDimX = 40,
                             .gridDimY = 1,
                             .gridDimZ = 1,
                             .blockDimX = 256,
                             .blockDimY = 1,
                             .blockDimZ = 1,
                             .attrs = attributes,
                             .numAttrs = 2};
    OK(cuLaunchKernelEx(&config, kernel(module, "saxpy"), NULL, extra));
    OK(cuMemcpyDtoH_v2(host, b, N * 4));
    for (int i = 0; i < N; i++)
        CHECK(host[i] == 4.0f * (float)i);
    size = 4; // what is left out of a short buffer is read by nobody: saxpy of no values
    block.n = 0;
    OK(cuLaunchKernelEx(&config, kernel(module, "saxpy"), NULL, extra));
    OK(cuMemcpyDtoH_v2(host, b, N * 4));
    for (int i = 0; i < N; i++)
        CHECK(host[i] == 4.0f * (float)i);

    unsigned *pinned_words;
    OK(cuMemAllocHost_v2((void **)&pinned_words, 64));
    OK(fill(module, (CUdeviceptr)(uintptr_t)pinned_words, 0xabcd, 16, NULL));
    OK(cuCtxSynchronize());
    CHECK(pinned_words[0] == 0xabcd && pinned_words[15] == 0xabcd);
    OK(cuMemFreeHost(pinned_words));

    // Limits at the call.
    GIVES(1, cuLaunchKernel(add, 0, 1, 1, 256, 1, 1, 0, NULL, params, NULL));
    GIVES(1, cuLaunchKernel(add, 1, 1, 1, 0, 1, 1, 0, NULL, params, NULL));
    GIVES(1, cuLaunchKernel(add, 1, 1, 1, 2048, 1, 1, 0, NULL, params, NULL));
    GIVES(1, cuLaunchKernel(add, 1, 1, 1, 512, 4, 1, 0, NULL, params, NULL));
    GIVES(1, cuLaunchKernel(add, 1, 65536, 1, 1, 1, 1, 0, NULL, params, NULL));
    GIVES(1, cuLaunchKernel(add, 1, 1, 1, 1, 1, 1, 50000, NULL, params, NULL));
    OK(cuFuncSetAttribute(add, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 100000));
    OK(cuLaunchKernel(add, 1, 1, 1, 1, 1, 1, 50000, NULL, params, NULL));
    GIVES(1, cuLaunchKernel(add, 1, 1, 1, 1, 1, 1, 0, NULL, NULL, NULL));
    GIVES(1, cuLaunchKernel(add, 1, 1, 1, 1, 1, 1, 0, NULL, params, extra));
    GIVES(720, cuLaunchCooperativeKernel(add, 100000, 1, 1, 256, 1, 1, 0, NULL, params));
    GIVES(1, cuLaunchKernel(kernel(module, "unknown_kernel"), 1, 1, 1, 256, 1, 1, 0, NULL, params, NULL));
    GIVES(801, cuLaunchKernel(kernel(module, "unknown_kernel"), 1, 1, 1, 128, 1, 1, 0, NULL, params, NULL));
    GIVES(400, cuLaunchKernel((CUfunction)(void *)host, 1, 1, 1, 1, 1, 1, 0, NULL, params, NULL));
    OK(cuCtxSynchronize());
    OK(cuMemFree_v2(a));
    OK(cuMemFree_v2(b));
    OK(cuMemFree_v2(c));
    free(host);
}

static void rectangles(void) {
    unsigned char host[64 * 8], back[16 * 8];
    for (size_t i = 0; i < sizeof host; i++)
        host[i] = (unsigned char)(i * 7);
    CUdeviceptr p;
    size_t pitch;
    OK(cuMemAllocPitch_v2(&p, &pitch, 64, 8, 4));
    CUDA_MEMCPY2D up = {.srcMemoryType = CU_MEMORYTYPE_HOST,
                        .srcHost = host,
                        .srcPitch = 64,
                        .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                        .dstDevice = p,
                        .dstPitch = pitch,
                        .WidthInBytes = 64,
                        .Height = 8};
    OK(cuMemcpy2D_v2(&up));
    CUDA_MEMCPY2D down = {.srcMemoryType = CU_MEMORYTYPE_DEVICE,
                          .srcDevice = p,
                          .srcPitch = pitch,
                          .srcXInBytes = 5,
                          .srcY = 2,
                          .dstMemoryType = CU_MEMORYTYPE_HOST,
                          .dstHost = back,
                          .dstPitch = 16,
                          .WidthInBytes = 16,
                          .Height = 6};
    OK(cuMemcpy2DAsync_v2(&down, NULL));
    for (unsigned y = 0; y < 6; y++)
        CHECK(!memcmp(back + y * 16, host + (y + 2) * 64 + 5, 16));
    down.Height = 7; // one row past the end
    GIVES(1, cuMemcpy2D_v2(&down));
    down.Height = 1;
    down.srcMemoryType = CU_MEMORYTYPE_ARRAY;
    GIVES(1, cuMemcpy2D_v2(&down));
    up.WidthInBytes = SIZE_MAX;
    GIVES(1, cuMemcpy2D_v2(&up));
    OK(cuMemsetD2D8_v2(p, pitch, 3, 10, 8));
    CUDA_MEMCPY3D box = {.srcMemoryType = CU_MEMORYTYPE_UNIFIED,
                         .srcDevice = p,
                         .srcPitch = pitch,
                         .srcHeight = 4,
                         .dstMemoryType = CU_MEMORYTYPE_HOST,
                         .dstHost = back,
                         .dstPitch = 16,
                         .dstHeight = 2,
                         .WidthInBytes = 16,
                         .Height = 2,
                         .Depth = 2};
    OK(cuMemcpy3D_v2(&box));
    CHECK(back[0] == 3 && back[9] == 3 && back[10] == host[10] && !memcmp(back + 2 * 16 + 10, host + 4 * 64 + 10, 6));
    OK(cuMemFree_v2(p));
}

static void pools(void) {
    CUdeviceptr p;
    CUmemoryPool pool;
    CUstream stream;
    uint64_t used;
    size_t before, now, total;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuMemGetInfo_v2(&before, &total));
    OK(cuMemAllocAsync(&p, 1000, stream));
    OK(cuMemsetD8Async(p, 1, 1000, stream));
    OK(cuDeviceGetDefaultMemPool(&pool, 0));
    OK(cuMemPoolGetAttribute(pool, CU_MEMPOOL_ATTR_USED_MEM_CURRENT, &used));
    CHECK(used == 1024);
    OK(cuMemFreeAsync(p, stream));
    GIVES(1, cuMemFreeAsync(p, stream));
    GIVES(1, cuMemsetD8Async(p, 1, 1, stream));
    OK(cuMemAlloc_v2(&p, 1000)); /* may be freed in order, too */
    GIVES(1, cuMemFreeAsync(p + 1, stream));
    OK(cuMemFreeAsync(p, stream));
    GIVES(1, cuMemFree_v2(p));
    OK(cuStreamSynchronize(stream));
    OK(cuMemGetInfo_v2(&now, &total));
    CHECK(now == before);
    CUmemPoolProps props = {
        .allocType = CU_MEM_ALLOCATION_TYPE_PINNED, .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}, .maxSize = 4096};
    OK(cuMemPoolCreate(&pool, &props));
    GIVES(2, cuMemAllocFromPoolAsync(&p, 5000, pool, stream));
    OK(cuMemAllocFromPoolAsync(&p, 4000, pool, stream));
    OK(cuMemPoolDestroy(pool));
    GIVES(1, cuMemPoolDestroy(pool));
    GIVES(1, cuMemPoolTrimTo(pool, 0));
    OK(cuMemFree_v2(p));
    OK(cuStreamDestroy_v2(stream));
}

// Pools of managed memory and of pinned host memory.
static void local_pools(void) {
    for (int managed = 0; managed < 2; managed++) {
        CUmemPoolProps props = {
            .allocType = managed ? CU_MEM_ALLOCATION_TYPE_MANAGED : CU_MEM_ALLOCATION_TYPE_PINNED,
            .location = {.type = managed ? CU_MEM_LOCATION_TYPE_DEVICE : CU_MEM_LOCATION_TYPE_HOST, .id = 0}};
        CUmemoryPool pool, of = NULL;
        CUstream stream;
        CUdeviceptr memory, small;
        uint64_t used;
        unsigned type;
        OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
        OK(cuMemPoolCreate(&pool, &props));
        OK(cuMemAllocFromPoolAsync(&memory, 100000, pool, stream));
        OK(cuMemAllocFromPoolAsync(&small, 64, pool, stream));
        OK(cuPointerGetAttribute(&of, CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE, memory));
        OK(cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, memory));
        CHECK(of == pool && type == (managed ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST));
        memset((void *)(uintptr_t)memory, 6, 100000);
        OK(cuMemcpyAsync(small, memory + 1000, 64, stream));
        OK(cuMemFreeAsync(memory, stream));
        GIVES(1, cuMemFreeAsync(memory, stream));
        OK(cuStreamSynchronize(stream));
        CHECK(((unsigned char *)(uintptr_t)small)[63] == 6);
        GIVES(1, cuMemFreeHost((void *)(uintptr_t)small));
        GIVES(1, cuDeviceSetMemPool(0, pool));
        OK(cuMemFree_v2(small));
        OK(cuMemPoolGetAttribute(pool, CU_MEMPOOL_ATTR_USED_MEM_CURRENT, &used));
        CHECK(used == 0);
        OK(cuMemPoolDestroy(pool));
        OK(cuStreamDestroy_v2(stream));
    }
}

static void forked(void) {
    pid_t child = fork();
    CHECK(child >= 0);
    if (!child) {
        int n;
        bool refused = cuDeviceGetCount(&n) == 3 && cuCtxSynchronize() == 3 && cuInit(0) == 3;
        _exit(refused && cuDriverGetVersion(&n) == 0 && n == 13000 ? 0 : 1); // what needs no device goes on
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

// Of clusters that are too large none fit, which cuTENSOR asks for as it starts; of one that needs leave for its size that is an error.
static void clusters(CUmodule module) {
    CUfunction function;
    CUlaunchAttribute attribute = {.id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, .value.clusterDim = {32, 1, 1}};
    const CUlaunchConfig config = {.gridDimX = 32,
                                   .gridDimY = 1,
                                   .gridDimZ = 1,
                                   .blockDimX = 128,
                                   .blockDimY = 1,
                                   .blockDimZ = 1,
                                   .attrs = &attribute,
                                   .numAttrs = 1};
    int count = 7;
    OK(cuModuleGetFunction(&function, module, "fill_u32"));
    GIVES(912, cuOccupancyMaxActiveClusters(&count, function, &config));
    OK(cuFuncSetAttribute(function, CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1));
    OK(cuOccupancyMaxActiveClusters(&count, function, &config));
    CHECK(count == 0);
    GIVES(912, cuOccupancyMaxPotentialClusterSize(&count, function, &config));
    attribute.value.clusterDim.x = 16;
    OK(cuOccupancyMaxActiveClusters(&count, function, &config));
    CHECK(count > 0);
}

int main(void) {
    before_init();
    OK(cuInit(0));
    devices();
    contexts();
    CUcontext context = start();
    CUmodule module = load_kernels();
    memory();
    pinned();
    shared_mapping(module);
    virtual_memory(module);
    kernels(module);
    own_default_streams(module);
    clusters(module);
    rectangles();
    check_places();
    pools();
    local_pools();
    forked();
    OK(cuModuleUnload(module));
    OK(cuDevicePrimaryCtxReset_v2(0));
    (void)context;
    puts("ok");
    return 0;
}
