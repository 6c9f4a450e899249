/* What a call costs that must reach the worker, and a launch that is waited for, call by call.
 *
 * The call is cuCtxGetCacheConfig, as in `tensor-fusion bench`: every call of it goes to the worker, and nothing in it touches the
 * GPU. (Until 44570d6 it was cuEventElapsedTime, which is answered ahead since.) One thread; each call is timed by itself. Prints p50, p99 and p99.9.
 */
#include "cu.h"

#include <stdio.h>
#include <stdlib.h>

enum { CALLS = 100000, LAUNCHES = 5000, WORDS = 256 };

static int ascending(const void *left, const void *right) {
    const uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
    return (a > b) - (a < b);
}

static double percentile(const uint64_t *sorted, size_t count, double part) {
    return (double)sorted[(size_t)((double)(count - 1) * part)] / 1e3;
}

int main(void) {
    static uint64_t cost[CALLS], waited[LAUNCHES];
    static float zeros[WORDS], back[WORDS];
    CUdevice device;
    CUcontext context;
    CUmodule module;
    CUfunction saxpy;
    CUstream stream;
    CUdeviceptr x, y;
    int n = WORDS;
    int config = -1, first = -1;
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
    cu_must(cu.cuMemAlloc_v2(&x, sizeof zeros), "cuMemAlloc");
    cu_must(cu.cuMemAlloc_v2(&y, sizeof zeros), "cuMemAlloc");
    cu_must(cu.cuMemcpyHtoD_v2(x, zeros, sizeof zeros), "cuMemcpyHtoD");
    cu_must(cu.cuMemcpyHtoD_v2(y, zeros, sizeof zeros), "cuMemcpyHtoD");
    void *arguments[] = {&n, &factor, &x, &y};
    cu_must(cu.cuLaunchKernel(saxpy, 1, 1, 1, WORDS, 1, 1, 0, stream, arguments, NULL), "cuLaunchKernel");
    cu_must(cu.cuStreamSynchronize(stream), "cuStreamSynchronize");

    for (int i = 0; i < CALLS; i++) {
        const uint64_t before = cu_now_ns();
        const CUresult result = cu.cuCtxGetCacheConfig(&config);
        cost[i] = cu_now_ns() - before;
        cu_must(result, "cuCtxGetCacheConfig");
        first = first < 0 ? config : first;
        if (config != first) {
            fprintf(stderr, "the cache configuration changed from %d to %d\n", first, config);
            return 1;
        }
    }
    for (int i = 0; i < LAUNCHES; i++) {
        const uint64_t before = cu_now_ns();
        cu_must(cu.cuLaunchKernel(saxpy, 1, 1, 1, WORDS, 1, 1, 0, stream, arguments, NULL), "cuLaunchKernel");
        cu_must(cu.cuStreamSynchronize(stream), "cuStreamSynchronize");
        waited[i] = cu_now_ns() - before;
    }
    cu_must(cu.cuMemcpyDtoH_v2(back, y, sizeof back), "cuMemcpyDtoH");
    qsort(cost, CALLS, sizeof cost[0], ascending);
    qsort(waited, LAUNCHES, sizeof waited[0], ascending);
    cu_mapped_libraries(libraries, sizeof libraries);
    printf("{\"digest\": \"%g\", \"metrics\": {\"null_p50_us\": %.4f, \"null_p99_us\": %.4f, \"null_p999_us\": %.4f, "
           "\"launch_sync_us\": %.4f}, \"libraries\": %s}\n",
           (double)back[0], percentile(cost, CALLS, 0.5), percentile(cost, CALLS, 0.99), percentile(cost, CALLS, 0.999),
           percentile(waited, LAUNCHES, 0.5), libraries);
    return 0;
}
