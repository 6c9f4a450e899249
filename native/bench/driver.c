/*
 * The driver under test: loaded by path or by the loader's search, its functions, the context and kernels of the groups.
 *
 * Filled once by the only thread that measures, read-only afterwards. The PTX text is ours; both kernels have the names and
 * parameters of kernels that the simulated GPU has bodies for. A name that the library does not export ends the process before
 * anything is measured; the optional ones stay NULL and their group says so.
 */
#include "bench.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct driver driver;
CUstream stream;
CUfunction fill_u32, accumulate;
const char *libcuda = "libcuda.so.1";

static const struct tp_counters *counters;

static const char KERNELS[] = ".version 6.4\n"
                              ".target sm_75\n"
                              ".address_size 64\n"
                              ".visible .entry fill_u32(.param .u64 to, .param .u32 value, .param .u64 n)\n"
                              "{\n"
                              "    .reg .pred %p<2>;\n"
                              "    .reg .b32 %r<5>;\n"
                              "    .reg .b64 %rd<8>;\n"
                              "    ld.param.u64 %rd1, [to];\n"
                              "    ld.param.u32 %r1, [value];\n"
                              "    ld.param.u64 %rd2, [n];\n"
                              "    mov.u32 %r2, %ctaid.x;\n"
                              "    mov.u32 %r3, %ntid.x;\n"
                              "    mov.u32 %r4, %tid.x;\n"
                              "    mul.wide.u32 %rd3, %r2, %r3;\n"
                              "    cvt.u64.u32 %rd4, %r4;\n"
                              "    add.s64 %rd5, %rd3, %rd4;\n"
                              "    setp.ge.u64 %p1, %rd5, %rd2;\n"
                              "    @%p1 bra done;\n"
                              "    cvta.to.global.u64 %rd6, %rd1;\n"
                              "    shl.b64 %rd7, %rd5, 2;\n"
                              "    add.s64 %rd6, %rd6, %rd7;\n"
                              "    st.global.u32 [%rd6], %r1;\n"
                              "done:\n"
                              "    ret;\n"
                              "}\n"
                              ".visible .entry saxpy(.param .u32 n, .param .f32 a, .param .u64 x, .param .u64 y)\n"
                              "{\n"
                              "    .reg .pred %p<2>;\n"
                              "    .reg .f32 %f<5>;\n"
                              "    .reg .b32 %r<6>;\n"
                              "    .reg .b64 %rd<8>;\n"
                              "    ld.param.u32 %r1, [n];\n"
                              "    ld.param.f32 %f1, [a];\n"
                              "    ld.param.u64 %rd1, [x];\n"
                              "    ld.param.u64 %rd2, [y];\n"
                              "    mov.u32 %r2, %ctaid.x;\n"
                              "    mov.u32 %r3, %ntid.x;\n"
                              "    mov.u32 %r4, %tid.x;\n"
                              "    mad.lo.s32 %r5, %r2, %r3, %r4;\n"
                              "    setp.ge.s32 %p1, %r5, %r1;\n"
                              "    @%p1 bra done;\n"
                              "    cvta.to.global.u64 %rd3, %rd1;\n"
                              "    cvta.to.global.u64 %rd4, %rd2;\n"
                              "    mul.wide.s32 %rd5, %r5, 4;\n"
                              "    add.s64 %rd6, %rd3, %rd5;\n"
                              "    add.s64 %rd7, %rd4, %rd5;\n"
                              "    ld.global.f32 %f2, [%rd6];\n"
                              "    ld.global.f32 %f3, [%rd7];\n"
                              "    fma.rn.f32 %f4, %f2, %f1, %f3;\n"
                              "    st.global.f32 [%rd7], %f4;\n"
                              "done:\n"
                              "    ret;\n"
                              "}\n";

void must(CUresult result, const char *what) {
    const char *name = NULL;
    if (result == CUDA_SUCCESS)
        return;
    if (!driver.cuGetErrorName || driver.cuGetErrorName(result, &name) != CUDA_SUCCESS || !name)
        name = "unknown error";
    fail("%s failed with %d (%s).", what, (int)result, name);
}

void driver_load(void) {
    void *library = dlopen(libcuda, RTLD_NOW | RTLD_LOCAL);
    if (!library)
        fail("The CUDA driver library cannot be loaded: %s.", dlerror());
#define BENCH_FIND(name) driver.name = (__typeof__(driver.name))dlsym(library, #name);
#define BENCH_NEED(name)                                                                                               \
    if (!driver.name)                                                                                                  \
        fail("%s does not export " #name ", which the benchmark needs.", libcuda);
    BENCH_REQUIRED(BENCH_FIND)
    BENCH_OPTIONAL(BENCH_FIND)
    BENCH_REQUIRED(BENCH_NEED)
}

/* Our client has them, from its first call on: it loads libteleport then. */
static void find_counters(void) {
    void *client = dlopen("libteleport.so.1", RTLD_NOW | RTLD_NOLOAD);
    if (client) {
        counters = dlsym(client, "tp_counters");
        if (!counters)
            fail("libteleport.so.1 has no counters; the client files and this program are of different versions.");
    }
}

const char *driver_path(void) {
    Dl_info info;
    return dladdr((void *)driver.cuInit, &info) && info.dli_fname ? info.dli_fname : libcuda;
}

const struct tp_counters *driver_counters(void) { return counters; }

void driver_start(uint64_t done_ns[4]) {
    uint64_t ignored[4];
    uint64_t *done = done_ns ? done_ns : ignored;
    int count = 0;
    CUdevice device;
    CUcontext context;
    CUmodule module;
    MUST(cuInit, 0);
    find_counters();
    MUST(cuDeviceGetCount, &count);
    if (!count)
        fail("The driver has no device to measure.");
    done[0] = now_ns();
    MUST(cuDeviceGet, &device, 0);
    MUST(cuDevicePrimaryCtxRetain, &context, device);
    MUST(cuCtxSetCurrent, context);
    done[1] = now_ns();
    MUST(cuModuleLoadData, &module, KERNELS);
    MUST(cuModuleGetFunction, &fill_u32, module, "fill_u32");
    MUST(cuModuleGetFunction, &accumulate, module, "saxpy");
    MUST(cuStreamCreate, &stream, CU_STREAM_NON_BLOCKING);
    done[2] = now_ns();
    CUdeviceptr word;
    uint32_t back = 0;
    MUST(cuMemAlloc_v2, &word, sizeof back);
    launch_fill(word, 0xf125u, 1);
    MUST(cuStreamSynchronize, stream);
    done[3] = now_ns();
    MUST(cuMemcpyDtoH_v2, &back, word, sizeof back);
    if (back != 0xf125u)
        fail("The first kernel should have written %#x; %#x came back.", 0xf125u, back);
    MUST(cuMemFree_v2, word);
}

void launch_fill(CUdeviceptr to, uint32_t value, uint64_t n) {
    void *arguments[] = {&to, &value, &n};
    unsigned block = n < 256 ? 32 : 256;
    unsigned blocks = n ? (unsigned)((n + block - 1) / block) : 1;
    MUST(cuLaunchKernel, fill_u32, blocks, 1, 1, block, 1, 1, 0, stream, arguments, NULL);
}

void launch_accumulate(CUdeviceptr x, CUdeviceptr y, int n) {
    float a = 1.0f;
    void *arguments[] = {&n, &a, &x, &y};
    MUST(cuLaunchKernel, accumulate, 1, 1, 1, (unsigned)n, 1, 1, 0, stream, arguments, NULL);
}
