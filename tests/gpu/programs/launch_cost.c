/* What a kernel launch costs the calling thread, measured on the driver API itself.
 *
 * 10,000 launches of a small kernel with a synchronisation every 500: median and mean time inside cuLaunchKernel, the
 * sustained rate, and the time of a synchronisation with nothing to wait for. The kernel counts in memory that is read
 * back at the end, so launches that were lost would show. One thread; nobody else writes what it reads.
 */
#include "cu.h"

#include <stdio.h>
#include <stdlib.h>

enum { LAUNCHES = 10000, BURST = 500, IDLE_SYNCS = 2000, WORDS = 256 };

static int ascending(const void *left, const void *right) {
    const uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
    return (a > b) - (a < b);
}

int main(void) {
    static uint64_t cost[LAUNCHES], idle[IDLE_SYNCS];
    static float zeros[WORDS], ones[WORDS], back[WORDS];
    CUdevice device;
    CUcontext context;
    CUmodule module;
    CUfunction saxpy;
    CUstream stream;
    CUdeviceptr x, y;
    int n = WORDS;
    float factor = 1.0f;
    char libraries[8192];

    cu_load();
    cu_must(cu.cuInit(0), "cuInit");
    cu_must(cu.cuDeviceGet(&device, 0), "cuDeviceGet");
    cu_must(cu.cuDevicePrimaryCtxRetain(&context, device), "cuDevicePrimaryCtxRetain");
    cu_must(cu.cuCtxSetCurrent(context), "cuCtxSetCurrent");
    char *text = cu_kernels_ptx();
    cu_must(cu.cuModuleLoadData(&module, text), "cuModuleLoadData");
    free(text);
    cu_must(cu.cuModuleGetFunction(&saxpy, module, "saxpy"), "cuModuleGetFunction");
    cu_must(cu.cuStreamCreate(&stream, 1), "cuStreamCreate");
    cu_must(cu.cuMemAlloc_v2(&x, sizeof ones), "cuMemAlloc");
    cu_must(cu.cuMemAlloc_v2(&y, sizeof zeros), "cuMemAlloc");
    for (int i = 0; i < WORDS; i++)
        ones[i] = 1.0f;
    cu_must(cu.cuMemcpyHtoD_v2(x, ones, sizeof ones), "cuMemcpyHtoD");
    cu_must(cu.cuMemcpyHtoD_v2(y, zeros, sizeof zeros), "cuMemcpyHtoD");
    void *arguments[] = {&n, &factor, &x, &y};
    for (int i = 0; i < BURST; i++)
        cu_must(cu.cuLaunchKernel(saxpy, 1, 1, 1, WORDS, 1, 1, 0, stream, arguments, NULL), "cuLaunchKernel");
    cu_must(cu.cuStreamSynchronize(stream), "cuStreamSynchronize");

    const uint64_t begun = cu_now_ns();
    for (int i = 0; i < LAUNCHES; i++) {
        const uint64_t before = cu_now_ns();
        const CUresult result = cu.cuLaunchKernel(saxpy, 1, 1, 1, WORDS, 1, 1, 0, stream, arguments, NULL);
        cost[i] = cu_now_ns() - before;
        cu_must(result, "cuLaunchKernel");
        if (i % BURST == BURST - 1)
            cu_must(cu.cuStreamSynchronize(stream), "cuStreamSynchronize");
    }
    const uint64_t spent = cu_now_ns() - begun;
    for (int i = 0; i < IDLE_SYNCS; i++) {
        const uint64_t before = cu_now_ns();
        const CUresult result = cu.cuStreamSynchronize(stream);
        idle[i] = cu_now_ns() - before;
        cu_must(result, "cuStreamSynchronize");
    }
    cu_must(cu.cuMemcpyDtoH_v2(back, y, sizeof back), "cuMemcpyDtoH");
    for (int i = 0; i < WORDS; i++)
        if (back[i] != (float)(LAUNCHES + BURST)) {
            fprintf(stderr, "word %d is %g after %d launches\n", i, (double)back[i], LAUNCHES + BURST);
            return 1;
        }

    double total = 0;
    for (int i = 0; i < LAUNCHES; i++)
        total += (double)cost[i];
    qsort(cost, LAUNCHES, sizeof cost[0], ascending);
    qsort(idle, IDLE_SYNCS, sizeof idle[0], ascending);
    cu_mapped_libraries(libraries, sizeof libraries);
    printf("{\"digest\": \"%d\", \"metrics\": {\"launch_us\": %.4f, \"launch_mean_us\": %.4f, \"launch_p99_us\": %.4f, "
           "\"launches_per_s\": %.0f, \"idle_sync_us\": %.4f}, \"libraries\": %s}\n",
           (int)back[0], (double)cost[LAUNCHES / 2] / 1e3, total / LAUNCHES / 1e3,
           (double)cost[LAUNCHES * 99 / 100] / 1e3, LAUNCHES * 1e9 / (double)spent, (double)idle[IDLE_SYNCS / 2] / 1e3,
           libraries);
    return 0;
}
