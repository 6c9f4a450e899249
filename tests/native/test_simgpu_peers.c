// Two simulated devices: memory of cuMemMap is reached by whom it was given to, copies name whose rights they use.
//
// One thread. A fault breaks its device for good: each of them is the last thing that its process does there.
#include "simgpu_check.h"

#define GRANULE (2u << 20)
#define ROWS 8u

static CUcontext contexts[2];

static CUdeviceptr map_on(CUdevice device) {
    CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device}};
    CUmemAccessDesc access = {.location = prop.location, .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    CUmemGenericAllocationHandle memory;
    CUdeviceptr address;
    OK(cuMemAddressReserve(&address, GRANULE, 0, 0, 0));
    OK(cuMemCreate(&memory, GRANULE, &prop, 0));
    OK(cuMemMap(address, GRANULE, 0, memory, 0));
    OK(cuMemSetAccess(address, GRANULE, &access, 1));
    OK(cuMemRelease(memory));
    return address;
}

static void give(CUdeviceptr address, CUdevice device, CUmemAccess_flags flags) {
    CUmemAccessDesc access = {.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device}, .flags = flags};
    OK(cuMemSetAccess(address, GRANULE, &access, 1));
}

static void holds(CUdeviceptr address, unsigned value) {
    unsigned words[64];
    OK(cuMemcpyDtoH_v2(words, address, sizeof words));
    for (unsigned i = 0; i < 64; i++)
        CHECK(words[i] == value);
}

// A fresh context on device 1 that does one thing to memory of device 0, which must fault.
typedef CUresult action_t(CUdeviceptr foreign, CUdeviceptr own);
static void faults(action_t *action, CUdeviceptr foreign, CUdeviceptr own) {
    CUcontext context;
    if (!fault_here())
        return;
    OK(cuCtxCreate_v2(&context, 0, 1));
    CUresult result = action(foreign, own);
    CHECK(result == CUDA_SUCCESS || result == CUDA_ERROR_ILLEGAL_ADDRESS);
    GIVES(700, cuCtxSynchronize());
    OK(cuCtxDestroy_v2(context));
    GIVES(700, cuCtxCreate_v2(&context, 0, 1));
    OK(cuCtxSetCurrent(contexts[1]));
    GIVES(700, cuCtxSynchronize());
    OK(cuCtxSetCurrent(contexts[0])); // the other device's contexts are unharmed
    OK(cuMemsetD8_v2(foreign, 1, 4));
    OK(cuCtxSynchronize());
    exit(FAULTED);
}

static CUresult copies_across(CUdeviceptr foreign, CUdeviceptr own) {
    return cuMemcpyDtoDAsync_v2(own, foreign, 256, NULL);
}
static CUresult copies_up(CUdeviceptr foreign, CUdeviceptr own) {
    static const unsigned char bytes[16];
    (void)own;
    return cuMemcpyHtoDAsync_v2(foreign, bytes, sizeof bytes, NULL);
}
static CUresult sets(CUdeviceptr foreign, CUdeviceptr own) {
    (void)own;
    return cuMemsetD8Async(foreign, 1, 256, NULL);
}
static CUresult launches(CUdeviceptr foreign, CUdeviceptr own) {
    (void)own;
    return fill(load_kernels(), foreign, 1, 64, NULL);
}
static CUresult names_the_wrong_device(CUdeviceptr foreign, CUdeviceptr own) {
    return cuMemcpyPeerAsync(own, contexts[1], foreign, contexts[1], 256, NULL);
}

static void all(void) {
    OK(cuInit(0));
    for (int i = 0; i < 2; i++)
        OK(cuDevicePrimaryCtxRetain(&contexts[i], i));
    CUdeviceptr here = map_on(0), there = map_on(1);

    // A peer copy uses the rights of the contexts that it names, in one dimension and in several.
    OK(cuCtxSetCurrent(contexts[0]));
    OK(cuMemsetD32_v2(here, 5, GRANULE / 4));
    OK(cuCtxSynchronize());
    OK(cuCtxSetCurrent(contexts[1]));
    OK(cuMemcpyPeerAsync(there, contexts[1], here, contexts[0], GRANULE, NULL));
    OK(cuCtxSynchronize());
    holds(there, 5);
    OK(cuMemsetD32_v2(there, 6, GRANULE / 4));
    OK(cuCtxSynchronize());
    CUDA_MEMCPY3D_PEER box = {.srcMemoryType = CU_MEMORYTYPE_DEVICE,
                              .srcDevice = there,
                              .srcContext = contexts[1],
                              .srcPitch = 1024,
                              .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                              .dstDevice = here,
                              .dstContext = contexts[0],
                              .dstPitch = 512,
                              .WidthInBytes = 256,
                              .Height = ROWS,
                              .Depth = 1};
    OK(cuMemcpy3DPeerAsync(&box, NULL));
    OK(cuCtxSynchronize());
    box.srcContext = (CUcontext)(void *)&box; // NULL, which is the current one, may be; what is none may not
    GIVES(201, cuMemcpy3DPeer(&box));
    OK(cuCtxSetCurrent(contexts[0]));
    for (unsigned i = 0; i < ROWS; i++)
        holds(here + 512 * i, 6);
    unsigned word;
    OK(cuMemcpyDtoH_v2(&word, here + 256, sizeof word));
    CHECK(word == 5);

    // Everything else needs access for the device that does it; peer access between contexts gives none to such memory.
    OK(cuCtxSetCurrent(contexts[1]));
    GIVES(217, cuCtxEnablePeerAccess(contexts[1], 0));
    OK(cuCtxEnablePeerAccess(contexts[0], 0));
    GIVES(704, cuCtxEnablePeerAccess(contexts[0], 0));
    static action_t *const actions[] = {copies_across, copies_up, sets, launches, names_the_wrong_device};
    for (size_t i = 0; i < sizeof actions / sizeof *actions; i++)
        faults(actions[i], here, there);
    give(here, 1, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
    OK(cuMemcpyDtoDAsync_v2(there, here, 256, NULL));
    OK(fill(load_kernels(), here, 8, 64, NULL));
    OK(cuCtxSynchronize());
    holds(there, 6);
    holds(here, 8);
    give(here, 1, CU_MEM_ACCESS_FLAGS_PROT_NONE);
    faults(launches, here, there);

    // A pool is the stream's device's, whatever context is current.
    CUstream stream;
    CUdeviceptr pooled;
    int device;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuCtxSetCurrent(contexts[0]));
    OK(cuMemAllocAsync(&pooled, 4096, stream));
    OK(cuPointerGetAttribute(&device, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, pooled));
    CHECK(device == 1);
    OK(cuMemFreeAsync(pooled, stream));
    OK(cuStreamSynchronize(stream));
}

int main(void) {
    each_fault(all);
    puts("ok");
    return 0;
}
