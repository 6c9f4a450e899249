/* Sections about memory: allocation, copies of every kind, pointer attributes, pools, virtual memory, stream values.
 *
 * Owns no state beyond what a section makes for itself. One thread; the GPU writes the pinned buffers that are read
 * after a synchronisation.
 */
#include "driver_api.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { KIB = 1024, MIB = 1024 * 1024 };

static uint32_t sum_words(const uint32_t *words, size_t count) {
    uint32_t sum = 2166136261u;
    for (size_t i = 0; i < count; i++)
        sum = (sum ^ words[i]) * 16777619u;
    return sum;
}

static void fill_random(uint32_t *words, size_t count) {
    uint32_t state = 0x12345678u;
    for (size_t i = 0; i < count; i++) {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        words[i] = state;
    }
}

void section_memory(void) {
    start_context();
    CUdeviceptr address = 0, base = 0, many[64];
    size_t size = 0, free_before = 0, total = 0, device_total = 0, free_after = 0, pitch = 0;
    void *host = NULL, *other = NULL;
    unsigned flags = 99;
    char label[64];

    ASK("cuMemGetInfo", cu.cuMemGetInfo_v2(&free_before, &total));
    cu.cuDeviceTotalMem_v2(&device_total, 0);
    VALUE("total", "%zu", total);
    VALUE("total equals cuDeviceTotalMem", "%d", total == device_total);
    ASK("alloc 0", cu.cuMemAlloc_v2(&address, 0));
    ASK("alloc twice the card", cu.cuMemAlloc_v2(&address, total * 2));
    ASK("alloc of all bits", cu.cuMemAlloc_v2(&address, SIZE_MAX));
    ASK("alloc 1 byte", cu.cuMemAlloc_v2(&address, 1));
    VALUE("alloc 1 byte is aligned to 256", "%d", address % 256 == 0 && address != 0);
    ASK("range of 1 byte", cu.cuMemGetAddressRange_v2(&base, &size, address));
    VALUE("range of 1 byte", "%zu, base %s", size, base == address ? "equal" : "different");
    ASK("memset past 1 byte", cu.cuMemsetD8_v2(address, 1, 1));
    ASK("free 1 byte", cu.cuMemFree_v2(address));
    ASK("free twice", cu.cuMemFree_v2(address));
    ASK("free null", cu.cuMemFree_v2(0));
    ASK("free made-up", cu.cuMemFree_v2(0x123456789000ull));
    ASK("alloc 10 MiB", cu.cuMemAlloc_v2(&address, 10 * MIB));
    ASK("free inside", cu.cuMemFree_v2(address + 4096));
    ASK("range from inside", cu.cuMemGetAddressRange_v2(&base, &size, address + 12345));
    VALUE("range from inside", "%zu, base %s", size, base == address ? "equal" : "different");
    ASK("range of base alone", cu.cuMemGetAddressRange_v2(&base, NULL, address));
    ASK("range of made-up", cu.cuMemGetAddressRange_v2(&base, &size, 0x123456789000ull));
    ASK("memset all", cu.cuMemsetD8_v2(address, 7, 10 * MIB));
    ASK("memset one byte more", cu.cuMemsetD8_v2(address, 7, 10 * MIB + 1));
    ASK("memset 0 bytes", cu.cuMemsetD8_v2(address, 7, 0));
    ASK("memset made-up", cu.cuMemsetD8_v2(0x123456789000ull, 7, 1));
    ASK("memset 16 misaligned", cu.cuMemsetD16_v2(address + 1, 7, 4));
    ASK("memset 32 misaligned", cu.cuMemsetD32_v2(address + 2, 7, 4));
    ASK("free 10 MiB", cu.cuMemFree_v2(address));
    for (int i = 0; i < 64; i++)
        cu_must(cu.cuMemAlloc_v2(&many[i], (size_t)(i * 1000 + 1)), "cuMemAlloc of many");
    int overlapping = 0;
    for (int i = 0; i < 64; i++)
        for (int j = 0; j < 64; j++)
            overlapping += i != j && many[i] <= many[j] && many[j] < many[i] + (CUdeviceptr)(i * 1000 + 1);
    VALUE("many allocations that overlap", "%d", overlapping);
    for (int i = 0; i < 64; i += 2)
        cu_must(cu.cuMemFree_v2(many[i]), "cuMemFree of many");
    for (int i = 1; i < 64; i += 2)
        cu_must(cu.cuMemFree_v2(many[i]), "cuMemFree of many");
    ASK("alloc 1 GiB", cu.cuMemAlloc_v2(&address, 1024ull * MIB));
    cu.cuMemGetInfo_v2(&free_after, &total);
    VALUE("1 GiB was taken", "%d", free_before - free_after >= 1024ull * MIB);
    ASK("free 1 GiB", cu.cuMemFree_v2(address));
    ASK("pitch 1000 x 10", cu.cuMemAllocPitch_v2(&address, &pitch, 1000, 10, 4));
    VALUE("pitch 1000 x 10", "%zu", pitch);
    ASK("free pitched", cu.cuMemFree_v2(address));
    ASK("pitch of element size 3", cu.cuMemAllocPitch_v2(&address, &pitch, 1000, 10, 3));
    ASK("pitch 0 x 10", cu.cuMemAllocPitch_v2(&address, &pitch, 0, 10, 4));
    ASK("host alloc 0", cu.cuMemHostAlloc(&host, 0, 0));
    ASK("host alloc bad flags", cu.cuMemHostAlloc(&host, 4096, 0x1000));
    for (unsigned wanted = 0; wanted < 8; wanted++) {
        snprintf(label, sizeof label, "host alloc flags %u", wanted);
        if (ASK(label, cu.cuMemHostAlloc(&host, 4096, wanted)) == 0) {
            memset(host, 1, 4096);
            cu.cuMemHostGetFlags(&flags, host);
            VALUE(label, "%u", flags);
            cu.cuMemFreeHost(host);
        }
    }
    ASK("alloc host", cu.cuMemAllocHost_v2(&host, 100000));
    ASK("flags inside it", cu.cuMemHostGetFlags(&flags, (char *)host + 5000));
    ASK("device pointer", cu.cuMemHostGetDevicePointer_v2(&address, host, 0));
    VALUE("device pointer equals host pointer", "%d", address == (CUdeviceptr)(uintptr_t)host);
    ASK("device pointer with flags 1", cu.cuMemHostGetDevicePointer_v2(&address, host, 1));
    ASK("free host inside", cu.cuMemFreeHost((char *)host + 4096));
    ASK("free host", cu.cuMemFreeHost(host));
    ASK("free host twice", cu.cuMemFreeHost(host));
    other = malloc(1 * MIB);
    ASK("free host of malloc", cu.cuMemFreeHost(other));
    ASK("flags of malloc", cu.cuMemHostGetFlags(&flags, other));
    ASK("device pointer of malloc", cu.cuMemHostGetDevicePointer_v2(&address, other, 0));
    ASK("unregister never registered", cu.cuMemHostUnregister(other));
    if (ASK("register", cu.cuMemHostRegister_v2(other, 1 * MIB, 0)) == 0) {
        ASK("register again", cu.cuMemHostRegister_v2(other, 1 * MIB, 0));
        ASK("flags of registered", cu.cuMemHostGetFlags(&flags, other));
        VALUE("flags of registered", "%u", flags);
        ASK("unregister", cu.cuMemHostUnregister(other));
    }
    ASK("register 0 bytes", cu.cuMemHostRegister_v2(other, 0, 0));
    ASK("managed", cu.cuMemAllocManaged(&address, 4096, 1));
    free(other);
}

static void round_trip(const char *label, CUdeviceptr there, uint32_t *source, uint32_t *back, size_t bytes,
                       CUstream s) {
    memset(back, 0, bytes);
    CUresult up = cu.cuMemcpyHtoDAsync_v2(there, source, bytes, s);
    CUresult down = cu.cuMemcpyDtoHAsync_v2(back, there, bytes, s);
    CUresult wait = cu.cuStreamSynchronize(s);
    VALUE(label, "up %d down %d wait %d, %s", up, down, wait, memcmp(source, back, bytes) == 0 ? "equal" : "DIFFERENT");
}

void section_copy(void) {
    start_context();
    static const size_t sizes[] = {1, 4, 100, 4096, 65535, 65536, 65537, 1 * MIB, 3 * MIB + 5, 17 * MIB + 1};
    enum { LARGEST = 20 * MIB };
    CUdeviceptr a = 0, b = 0;
    CUstream stream = NULL, blocking = NULL;
    uint32_t *pageable = malloc(LARGEST), *back = malloc(LARGEST), *pinned = NULL, *pinned_back = NULL;
    void *pointer = NULL;
    char label[64];

    cu_must(cu.cuMemAlloc_v2(&a, LARGEST), "cuMemAlloc");
    cu_must(cu.cuMemAlloc_v2(&b, LARGEST), "cuMemAlloc");
    cu_must(cu.cuMemHostAlloc(&pointer, LARGEST, 0), "cuMemHostAlloc");
    pinned = pointer;
    cu_must(cu.cuMemHostAlloc(&pointer, LARGEST, 0), "cuMemHostAlloc");
    pinned_back = pointer;
    cu_must(cu.cuStreamCreate(&stream, 1), "cuStreamCreate");
    cu_must(cu.cuStreamCreate(&blocking, 0), "cuStreamCreate");
    fill_random(pageable, LARGEST / 4);
    memcpy(pinned, pageable, LARGEST);
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        snprintf(label, sizeof label, "pageable %zu", sizes[i]);
        round_trip(label, a, pageable, back, sizes[i], stream);
        snprintf(label, sizeof label, "pinned %zu", sizes[i]);
        round_trip(label, a + 256, pinned, pinned_back, sizes[i], stream);
        snprintf(label, sizeof label, "default stream %zu", sizes[i]);
        round_trip(label, a + 3, pageable, back, sizes[i], NULL);
    }
    ASK("HtoD", cu.cuMemcpyHtoD_v2(a, pageable, LARGEST));
    ASK("DtoD", cu.cuMemcpyDtoD_v2(b, a, LARGEST));
    ASK("DtoH", cu.cuMemcpyDtoH_v2(back, b, LARGEST));
    VALUE("there and back", "%08x, %s", sum_words(back, LARGEST / 4),
          memcmp(back, pageable, LARGEST) ? "DIFFERENT" : "equal");
    /* The source may be overwritten as soon as a copy from pageable memory has returned. */
    ASK("HtoDAsync, then overwrite", cu.cuMemcpyHtoDAsync_v2(a, back, 60000, stream));
    memset(back, 0xee, 60000);
    cu.cuStreamSynchronize(stream);
    cu.cuMemcpyDtoH_v2(back, a, 60000);
    VALUE("overwritten source", "%s", memcmp(back, pageable, 60000) == 0 ? "kept its value" : "LEAKED");
    memset(back, 0, LARGEST);
    ASK("cuMemcpy host to device", cu.cuMemcpy(a, (CUdeviceptr)(uintptr_t)pageable, 1 * MIB));
    ASK("cuMemcpy device to device", cu.cuMemcpy(b, a, 1 * MIB));
    ASK("cuMemcpy device to host", cu.cuMemcpy((CUdeviceptr)(uintptr_t)back, b, 1 * MIB));
    VALUE("cuMemcpy by address", "%s", memcmp(back, pageable, 1 * MIB) == 0 ? "equal" : "DIFFERENT");
    ASK("cuMemcpy host to host",
        cu.cuMemcpy((CUdeviceptr)(uintptr_t)back, (CUdeviceptr)(uintptr_t)(pageable + 9), 4096));
    VALUE("cuMemcpy host to host", "%s", memcmp(back, pageable + 9, 4096) == 0 ? "equal" : "DIFFERENT");
    ASK("cuMemcpyAsync", cu.cuMemcpyAsync(b + 8, a, 4096, stream));
    ASK("HtoD 0 bytes", cu.cuMemcpyHtoD_v2(a, pageable, 0));
    ASK("HtoD to a made-up address", cu.cuMemcpyHtoD_v2(0x123456789000ull, pageable, 16));
    ASK("HtoD past the end", cu.cuMemcpyHtoD_v2(a + LARGEST - 4, pageable, 8));
    ASK("DtoH from a made-up address", cu.cuMemcpyDtoH_v2(back, 0x123456789000ull, 16));
    ASK("DtoD overlapping", cu.cuMemcpyDtoD_v2(a + 16, a, 4096));
    ASK("HtoDAsync on a blocking stream", cu.cuMemcpyHtoDAsync_v2(a, pageable, 16, blocking));

    cu_must(cu.cuMemsetD8_v2(a, 0, 1 * MIB), "cuMemsetD8");
    CUDA_MEMCPY2D area = {.srcMemoryType = 1,
                          .srcHost = pageable,
                          .srcPitch = 100,
                          .dstMemoryType = 2,
                          .dstDevice = a,
                          .dstPitch = 512,
                          .WidthInBytes = 64,
                          .Height = 50,
                          .srcXInBytes = 8,
                          .srcY = 1,
                          .dstY = 2};
    ASK("2D up", cu.cuMemcpy2D_v2(&area));
    CUDA_MEMCPY2D down = {.srcMemoryType = 2,
                          .srcDevice = a,
                          .srcPitch = 512,
                          .dstMemoryType = 1,
                          .dstHost = back,
                          .dstPitch = 128,
                          .WidthInBytes = 100,
                          .Height = 52};
    memset(back, 0, 1 * MIB);
    ASK("2D down", cu.cuMemcpy2DAsync_v2(&down, stream));
    cu.cuStreamSynchronize(stream);
    VALUE("2D there and back", "%08x", sum_words(back, 52 * 128 / 4));
    cu_must(cu.cuMemsetD8_v2(b, 0, 1 * MIB), "cuMemsetD8");
    cu_must(cu.cuCtxSynchronize(), "cuCtxSynchronize");
    CUDA_MEMCPY2D across = {.srcMemoryType = 2,
                            .srcDevice = a,
                            .srcPitch = 512,
                            .dstMemoryType = 2,
                            .dstDevice = b,
                            .dstPitch = 300,
                            .WidthInBytes = 77,
                            .Height = 20};
    ASK("2D across, unaligned", cu.cuMemcpy2DUnaligned_v2(&across));
    cu.cuMemcpyDtoH_v2(back, b, 6000);
    VALUE("2D across", "%08x", sum_words(back, 1500));
    area.WidthInBytes = 0;
    ASK("2D of width 0", cu.cuMemcpy2D_v2(&area));
    area.WidthInBytes = 600;
    ASK("2D wider than its pitch", cu.cuMemcpy2D_v2(&area));
    area.WidthInBytes = 64;
    area.srcMemoryType = 9;
    ASK("2D of a made-up memory type", cu.cuMemcpy2D_v2(&area));

    ASK("set 8", cu.cuMemsetD8Async(a, 0x11, 4096, stream));
    ASK("set 32", cu.cuMemsetD32Async(a + 1024, 0xdeadbeef, 256, stream));
    /* The next two go to the default stream, for which a non-blocking stream does not wait. */
    cu_must(cu.cuCtxSynchronize(), "cuCtxSynchronize");
    ASK("set 16", cu.cuMemsetD16_v2(a + 100, 0x7788, 50));
    ASK("set 2D", cu.cuMemsetD2D8_v2(a + 2048, 100, 0x55, 40, 10));
    ASK("synchronize", cu.cuCtxSynchronize());
    cu.cuMemcpyDtoH_v2(back, a, 4096);
    VALUE("sets", "%08x", sum_words(back, 1024));
}

void section_pointer(void) {
    CUcontext context = start_context(), got = NULL;
    static const int attributes[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 99};
    CUdeviceptr device = 0, cases[5];
    void *pinned = NULL, *plain = malloc(4096);
    char label[96];

    cu_must(cu.cuMemAlloc_v2(&device, 1 * MIB), "cuMemAlloc");
    cu_must(cu.cuMemHostAlloc(&pinned, 1 * MIB, 0), "cuMemHostAlloc");
    static const char *const names[] = {"device", "inside device", "pinned", "malloc", "null"};
    cases[0] = device;
    cases[1] = device + 4096;
    cases[2] = (CUdeviceptr)(uintptr_t)pinned;
    cases[3] = (CUdeviceptr)(uintptr_t)plain;
    cases[4] = 0;
    for (size_t c = 0; c < 5; c++)
        for (size_t i = 0; i < sizeof attributes / sizeof attributes[0]; i++) {
            uint64_t value[8] = {0};
            snprintf(label, sizeof label, "%s attribute %d", names[c], attributes[i]);
            if (ASK(label, cu.cuPointerGetAttribute(value, attributes[i], cases[c])) != 0)
                continue;
            switch (attributes[i]) {
            case 1:
            case 3:
            case 4:
            case 7:
            case 11:
            case 5:
            case 17:
            case 20:
            case 18:
            case 19:
                VALUE(label, "%s", value[0] != 0 ? "set" : "null");
                break;
            case 12:
                VALUE(label, "%zu", (size_t)value[0]);
                break;
            default:
                VALUE(label, "%d", (int)value[0]);
            }
        }
    for (size_t c = 0; c < 5; c++) {
        int wanted[] = {1, 2, 9, 3, 4, 11, 12}, type = -1, ordinal = -9;
        CUdeviceptr as_device = 0, start = 0;
        void *as_host = NULL;
        size_t size = 0;
        void *values[] = {&got, &type, &ordinal, &as_device, &as_host, &start, &size};
        got = NULL;
        snprintf(label, sizeof label, "%s, seven at once", names[c]);
        ASK(label, cu.cuPointerGetAttributes(7, wanted, values, cases[c]));
        VALUE(label, "context %s type %d ordinal %d device %d host %d start %s size %zu",
              got == NULL      ? "null"
              : got == context ? "primary"
                               : "other",
              type, ordinal, as_device == cases[c], (CUdeviceptr)(uintptr_t)as_host == cases[c],
              start != 0 ? "set" : "null", size);
    }
    int bad[] = {2, 99};
    int type = 0, more = 0;
    void *values[] = {&type, &more};
    ASK("a made-up attribute among two", cu.cuPointerGetAttributes(2, bad, values, device));
    ASK("none at once", cu.cuPointerGetAttributes(0, bad, values, device));
    ASK("free", cu.cuMemFree_v2(device));
    ASK("after the free", cu.cuPointerGetAttribute(&type, 2, device));
    free(plain);
}

void section_pool(void) {
    start_context();
    CUmemoryPool pool = NULL, own = NULL;
    CUdeviceptr address = 0, other = 0;
    CUstream stream = NULL;
    uint64_t value = 0;
    uint32_t back[4] = {0};
    char label[48];
    CUmemPoolProps properties = {.allocType = 1, .handleTypes = 0, .location = {1, 0}};

    cu_must(cu.cuStreamCreate(&stream, 1), "cuStreamCreate");
    ASK("default pool", cu.cuDeviceGetDefaultMemPool(&pool, 0));
    ASK("current pool", cu.cuDeviceGetMemPool(&own, 0));
    VALUE("current is the default", "%d", own == pool);
    for (int attribute = 1; attribute <= 4; attribute++) {
        snprintf(label, sizeof label, "pool attribute %d", attribute);
        value = 0;
        if (ASK(label, cu.cuMemPoolGetAttribute(pool, attribute, &value)) == 0)
            VALUE(label, "%llu", (unsigned long long)value);
    }
    value = 1ull << 30;
    ASK("set release threshold", cu.cuMemPoolSetAttribute(pool, 4, &value));
    ASK("alloc async", cu.cuMemAllocAsync(&address, 1 * MIB, stream));
    ASK("alloc async 0", cu.cuMemAllocAsync(&other, 0, stream));
    ASK("alloc async twice the card", cu.cuMemAllocAsync(&other, 300ull * 1024 * MIB, stream));
    ASK("set", cu.cuMemsetD32Async(address, 0x1234, 4, stream));
    ASK("read", cu.cuMemcpyDtoHAsync_v2(back, address, 16, stream));
    ASK("free async", cu.cuMemFreeAsync(address, stream));
    ASK("synchronize", cu.cuStreamSynchronize(stream));
    VALUE("read", "%x %x", back[0], back[3]);
    ASK("free async twice", cu.cuMemFreeAsync(address, stream));
    cu_must(cu.cuMemAlloc_v2(&other, 1 * MIB), "cuMemAlloc");
    ASK("free async inside what cuMemAlloc gave", cu.cuMemFreeAsync(other + 512, stream));
    ASK("free async what cuMemAlloc gave", cu.cuMemFreeAsync(other, stream));
    /* Not asked: a second free of it, in either form. The driver (580.159.04) says 0, and dies at the next wait. */
    ASK("synchronize after that", cu.cuStreamSynchronize(stream));
    ASK("trim", cu.cuMemPoolTrimTo(pool, 0));
    ASK("own pool", cu.cuMemPoolCreate(&own, &properties));
    ASK("alloc from own pool", cu.cuMemAllocFromPoolAsync(&address, 4096, own, stream));
    ASK("free it", cu.cuMemFreeAsync(address, stream));
    ASK("destroy own pool", cu.cuMemPoolDestroy(own));
    ASK("destroy default pool", cu.cuMemPoolDestroy(pool));
}

void section_vmm(void) {
    start_context();
    CUmemAllocationProp property = {.type = 1, .location = {1, 0}};
    CUmemAccessDesc access = {.location = {1, 0}, .flags = 3};
    CUmemGenericAllocationHandle handle = 0;
    CUdeviceptr address = 0;
    size_t granularity = 0;
    uint32_t word = 0;

    ASK("granularity", cu.cuMemGetAllocationGranularity(&granularity, &property, 0));
    VALUE("granularity", "%zu", granularity);
    ASK("create odd size", cu.cuMemCreate(&handle, 12345, &property, 0));
    if (ASK("create", cu.cuMemCreate(&handle, 2 * MIB, &property, 0)) != 0)
        return;
    ASK("reserve", cu.cuMemAddressReserve(&address, 4 * MIB, 0, 0, 0));
    ASK("set before map", cu.cuMemsetD32_v2(address, 1, 4));
    ASK("map", cu.cuMemMap(address, 2 * MIB, 0, handle, 0));
    ASK("map again", cu.cuMemMap(address, 2 * MIB, 0, handle, 0));
    ASK("set access", cu.cuMemSetAccess(address, 2 * MIB, &access, 1));
    ASK("set", cu.cuMemsetD32_v2(address, 0x77, 4));
    ASK("read", cu.cuMemcpyDtoH_v2(&word, address + 12, 4));
    VALUE("read", "%x", word);
    ASK("release", cu.cuMemRelease(handle));
    ASK("unmap half", cu.cuMemUnmap(address, 1 * MIB));
    ASK("unmap", cu.cuMemUnmap(address, 2 * MIB));
    ASK("free address", cu.cuMemAddressFree(address, 4 * MIB));
    ASK("free address again", cu.cuMemAddressFree(address, 4 * MIB));
}

void section_stream_memory(void) {
    start_context();
    CUdeviceptr address = 0;
    CUstream stream = NULL, other = NULL;
    uint32_t words[4] = {0};

    cu_must(cu.cuMemAlloc_v2(&address, 4096), "cuMemAlloc");
    cu_must(cu.cuMemsetD8_v2(address, 0, 4096), "cuMemsetD8");
    cu_must(cu.cuCtxSynchronize(), "cuCtxSynchronize");
    cu_must(cu.cuStreamCreate(&stream, 1), "cuStreamCreate");
    cu_must(cu.cuStreamCreate(&other, 1), "cuStreamCreate");
    ASK("write 32", cu.cuStreamWriteValue32_v2(stream, address, 0xfeed, 0));
    ASK("write 64", cu.cuStreamWriteValue64_v2(stream, address + 8, 0x1122334455667788ull, 0));
    ASK("write 32 misaligned", cu.cuStreamWriteValue32_v2(stream, address + 1, 1, 0));
    ASK("write to a made-up address", cu.cuStreamWriteValue32_v2(stream, 0x123456789000ull, 1, 0));
    ASK("wait for what is there", cu.cuStreamWaitValue32_v2(stream, address, 0xfeed, 1));
    ASK("synchronize", cu.cuStreamSynchronize(stream));
    cu.cuMemcpyDtoH_v2(words, address, 16);
    VALUE("words", "%x %x %x %x", words[0], words[1], words[2], words[3]);
    if (ASK("wait for what comes", cu.cuStreamWaitValue32_v2(other, address + 16, 5, 0)) == 0) {
        ASK("query the waiting stream", cu.cuStreamQuery(other));
        ASK("write what it waits for", cu.cuStreamWriteValue32_v2(stream, address + 16, 5, 0));
        ASK("synchronize the waiting stream", cu.cuStreamSynchronize(other));
    }
}
