/* How much memory the driver library adds to a process that uses it.
 *
 * Resident size after cuInit, and after real work (a context, a module, launches, pageable copies of 64 MiB both ways),
 * less the size before the library was loaded. The program's own buffers are touched before the first reading, so they
 * do not count. One thread; reads /proc/self/status.
 */
#include "cu.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BYTES = 64 << 20, LAUNCHES = 2000 };

static double resident_mb(void) {
    char line[256];
    double kib = -1;
    FILE *status = fopen("/proc/self/status", "r");
    while (status != NULL && fgets(line, sizeof line, status) != NULL)
        if (strncmp(line, "VmRSS:", 6) == 0)
            kib = strtod(line + 6, NULL);
    if (status != NULL)
        fclose(status);
    if (kib < 0) {
        fprintf(stderr, "/proc/self/status has no VmRSS\n");
        exit(1);
    }
    return kib * 1024 / 1e6;
}

int main(void) {
    CUdevice device;
    CUcontext context;
    CUmodule module;
    CUfunction fill;
    CUdeviceptr address;
    uint32_t value = 3;
    size_t count = 1000;
    char libraries[8192];
    unsigned char *up = malloc(BYTES), *down = malloc(BYTES);
    char *text = cu_kernels_ptx();

    if (up == NULL || down == NULL)
        return 1;
    for (size_t i = 0; i < BYTES; i++)
        up[i] = (unsigned char)(i * 2654435761u >> 13);
    memset(down, 0, BYTES);
    const double before = resident_mb();
    cu_load();
    cu_must(cu.cuInit(0), "cuInit");
    const double initialised = resident_mb();
    cu_must(cu.cuDeviceGet(&device, 0), "cuDeviceGet");
    cu_must(cu.cuDevicePrimaryCtxRetain(&context, device), "cuDevicePrimaryCtxRetain");
    cu_must(cu.cuCtxSetCurrent(context), "cuCtxSetCurrent");
    cu_must(cu.cuModuleLoadData(&module, text), "cuModuleLoadData");
    cu_must(cu.cuModuleGetFunction(&fill, module, "fill_u32"), "cuModuleGetFunction");
    cu_must(cu.cuMemAlloc_v2(&address, BYTES), "cuMemAlloc");
    void *arguments[] = {&address, &value, &count};
    for (int i = 0; i < LAUNCHES; i++)
        cu_must(cu.cuLaunchKernel(fill, 1, 1, 1, 128, 1, 1, 0, NULL, arguments, NULL), "cuLaunchKernel");
    cu_must(cu.cuMemcpyHtoD_v2(address, up, BYTES), "cuMemcpyHtoD");
    cu_must(cu.cuMemcpyDtoH_v2(down, address, BYTES), "cuMemcpyDtoH");
    const double worked = resident_mb();
    const int equal = memcmp(up, down, BYTES) == 0;
    cu_mapped_libraries(libraries, sizeof libraries);
    printf("{\"digest\": \"copies %s\", \"metrics\": {\"client_init_mb\": %.3f, \"client_memory_mb\": %.3f}, "
           "\"libraries\": %s}\n",
           equal ? "equal" : "DIFFER", initialised - before, worked - before, libraries);
    return equal ? 0 : 1;
}
