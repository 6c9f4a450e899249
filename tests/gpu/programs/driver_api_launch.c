/* Sections about modules, libraries, functions, launches, occupancy, faults and fork.
 *
 * Owns no state beyond what a section makes for itself. One thread. The fault sections leave a context that cannot be
 * used again, which is why every section has a process of its own.
 */
#include "driver_api.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static const char bad_ptx[] =
    ".version 7.0\n.target sm_75\n.address_size 64\n.visible .entry broken(\n)\n{\n nonsense;\n}\n";
static const char global_ptx[] =
    ".version 7.0\n.target sm_75\n.address_size 64\n.visible .global .align 4 .u32 counter = 41;\n"
    ".visible .const .align 8 .b8 table[24];\n.visible .entry nothing()\n{\n ret;\n}\n";

void section_module(void) {
    start_context();
    CUmodule module = NULL, other = NULL;
    CUfunction function = NULL;
    CUdeviceptr address = 0;
    size_t size = 0, offset = 0;
    unsigned count = 0, word = 0;
    int mode = -1;
    const char *name = NULL;
    char label[80], log[2048] = "";
    char *text = cu_kernels_ptx();
    static const char *const names[] = {"vector_add", "saxpy", "fill_u32", "iota_u32", "spin_ns"};

    ASK("loading mode", cu.cuModuleGetLoadingMode(&mode));
    VALUE("loading mode", "%d", mode);
    ASK("load PTX", cu.cuModuleLoadData(&module, text));
    ASK("function count", cu.cuModuleGetFunctionCount(&count, module));
    VALUE("function count", "%u", count);
    ASK("missing function", cu.cuModuleGetFunction(&function, module, "no_such_kernel"));
    ASK("function of the empty name", cu.cuModuleGetFunction(&function, module, ""));
    ASK("missing global", cu.cuModuleGetGlobal_v2(&address, &size, module, "no_such_global"));
    for (size_t i = 0; i < 5; i++) {
        snprintf(label, sizeof label, "function %s", names[i]);
        if (ASK(label, cu.cuModuleGetFunction(&function, module, names[i])) != 0)
            continue;
        ASK("its name", cu.cuFuncGetName(&name, function));
        VALUE(label, "%s", name != NULL ? name : "null");
        cu.cuFuncGetModule(&other, function);
        VALUE("its module is the one asked", "%d", other == module);
        for (size_t index = 0; index < 5; index++) {
            snprintf(label, sizeof label, "%s parameter %zu", names[i], index);
            if (ASK(label, cu.cuFuncGetParamInfo(function, index, &offset, &size)) == 0)
                VALUE(label, "offset %zu size %zu", offset, size);
        }
        for (int attribute = 0; attribute <= 16; attribute++) {
            int value = -7;
            snprintf(label, sizeof label, "%s attribute %d", names[i], attribute);
            if (ASK(label, cu.cuFuncGetAttribute(&value, attribute, function)) == 0)
                VALUE(label, "%d", value);
        }
    }
    cu.cuModuleGetFunction(&function, module, "saxpy");
    ASK("set dynamic shared 65536", cu.cuFuncSetAttribute(function, 8, 65536));
    cu.cuFuncGetAttribute(&mode, 8, function);
    VALUE("dynamic shared then", "%d", mode);
    ASK("set dynamic shared too large", cu.cuFuncSetAttribute(function, 8, 10 << 20));
    ASK("set dynamic shared -1", cu.cuFuncSetAttribute(function, 8, -1));
    ASK("set carveout 50", cu.cuFuncSetAttribute(function, 9, 50));
    ASK("set carveout 500", cu.cuFuncSetAttribute(function, 9, 500));
    ASK("set a read-only attribute", cu.cuFuncSetAttribute(function, 0, 1));
    ASK("set a made-up attribute", cu.cuFuncSetAttribute(function, 99, 1));
    ASK("set cache config 2", cu.cuFuncSetCacheConfig(function, 2));
    ASK("set cache config 9", cu.cuFuncSetCacheConfig(function, 9));
    ASK("unload", cu.cuModuleUnload(module));
    ASK("bad PTX", cu.cuModuleLoadData(&module, bad_ptx));
    int options[] = {5, 6};
    void *values[] = {log, (void *)(uintptr_t)sizeof log};
    ASK("bad PTX with an error log", cu.cuModuleLoadDataEx(&module, bad_ptx, 2, options, values));
    VALUE("the log names the line", "%d", strstr(log, "line 7") != NULL);
    ASK("not an image", cu.cuModuleLoadData(&module, "this is not an image"));
    ASK("load a missing file", cu.cuModuleLoad(&module, "/no/such/file.cubin"));
    ASK("load the file", cu.cuModuleLoad(&module, getenv("KERNELS_PTX")));
    ASK("load globals", cu.cuModuleLoadData(&other, global_ptx));
    ASK("global", cu.cuModuleGetGlobal_v2(&address, &size, other, "counter"));
    VALUE("global", "%zu bytes", size);
    ASK("read the global", cu.cuMemcpyDtoH_v2(&word, address, 4));
    VALUE("read the global", "%u", word);
    word = 99;
    ASK("write the global", cu.cuMemcpyHtoD_v2(address, &word, 4));
    word = 0;
    cu.cuMemcpyDtoH_v2(&word, address, 4);
    VALUE("global then", "%u", word);
    ASK("past the global", cu.cuMemcpyDtoH_v2(&word, address, 4));
    ASK("constant", cu.cuModuleGetGlobal_v2(&address, &size, other, "table"));
    VALUE("constant", "%zu bytes", size);
    ASK("size of a global alone", cu.cuModuleGetGlobal_v2(NULL, &size, other, "table"));
    /* Last: what a driver makes of a header without a body is the least certain answer here. */
    ASK("a cut ELF",
        cu.cuModuleLoadData(&module, "\177ELF\2\1\1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
                                     "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"));
    free(text);
}

void section_library(void) {
    start_context();
    CUlibrary library = NULL;
    CUkernel kernels = NULL;
    CUfunction function = NULL;
    unsigned count = 0;
    int value = -1;
    size_t offset = 0, size = 0;
    const char *name = NULL;
    char *text = cu_kernels_ptx();
    CUdeviceptr address = 0;
    uint32_t back[8] = {0};
    size_t length = 8;

    ASK("load", cu.cuLibraryLoadData(&library, text, NULL, NULL, 0, NULL, NULL, 0));
    memset(text, 'x', strlen(text));
    ASK("kernel count", cu.cuLibraryGetKernelCount(&count, library));
    VALUE("kernel count", "%u", count);
    ASK("missing kernel", cu.cuLibraryGetKernel(&kernels, library, "none"));
    ASK("kernel", cu.cuLibraryGetKernel(&kernels, library, "iota_u32"));
    ASK("name", cu.cuKernelGetName(&name, kernels));
    VALUE("name", "%s", name != NULL ? name : "null");
    ASK("attribute 0", cu.cuKernelGetAttribute(&value, 0, kernels, 0));
    VALUE("attribute 0", "%d", value);
    ASK("parameter 1", cu.cuKernelGetParamInfo(kernels, 1, &offset, &size));
    VALUE("parameter 1", "%zu %zu", offset, size);
    ASK("parameter 2", cu.cuKernelGetParamInfo(kernels, 2, &offset, &size));
    ASK("function", cu.cuKernelGetFunction(&function, kernels));
    cu_must(cu.cuMemAlloc_v2(&address, 32), "cuMemAlloc");
    void *arguments[] = {&address, &length};
    ASK("launch the kernel as a function",
        cu.cuLaunchKernel((CUfunction)(void *)kernels, 1, 1, 1, 32, 1, 1, 0, NULL, arguments, NULL));
    cu.cuMemcpyDtoH_v2(back, address, 32);
    VALUE("result", "%u %u", back[0], back[7]);
    ASK("unload", cu.cuLibraryUnload(library));
    free(text);
}

void section_launch(void) {
    start_context();
    enum { N = 10000 };
    CUmodule module = load_kernels();
    CUfunction add = kernel(module, "vector_add"), saxpy = kernel(module, "saxpy"), fill = kernel(module, "fill_u32");
    static float a[N], b[N], c[N];
    static uint32_t words[N];
    CUdeviceptr da = 0, db = 0, dc = 0, dw = 0;
    int n = N, wrong = 0;
    float factor = 2.5f;
    uint32_t value = 77;
    size_t count = N;

    for (int i = 0; i < N; i++) {
        a[i] = (float)i * 0.37f;
        b[i] = 1000.0f / (float)(i + 1);
    }
    cu_must(cu.cuMemAlloc_v2(&da, sizeof a), "cuMemAlloc");
    cu_must(cu.cuMemAlloc_v2(&db, sizeof b), "cuMemAlloc");
    cu_must(cu.cuMemAlloc_v2(&dc, sizeof c), "cuMemAlloc");
    cu_must(cu.cuMemAlloc_v2(&dw, sizeof words), "cuMemAlloc");
    cu_must(cu.cuMemcpyHtoD_v2(da, a, sizeof a), "cuMemcpyHtoD");
    cu_must(cu.cuMemcpyHtoD_v2(db, b, sizeof b), "cuMemcpyHtoD");
    void *add_arguments[] = {&da, &db, &dc, &n};
    void *saxpy_arguments[] = {&n, &factor, &da, &db};
    void *fill_arguments[] = {&dw, &value, &count};
    ASK("kernelParams", cu.cuLaunchKernel(add, 40, 1, 1, 256, 1, 1, 0, NULL, add_arguments, NULL));
    ASK("read", cu.cuMemcpyDtoH_v2(c, dc, sizeof c));
    for (int i = 0; i < N; i++)
        wrong += c[i] != a[i] + b[i];
    VALUE("wrong sums", "%d", wrong);
    /* The values are read at the call: changing them afterwards must not change the launch. */
    cu_must(cu.cuMemsetD8_v2(dw, 0, sizeof words), "cuMemsetD8");
    ASK("values are taken at the call", cu.cuLaunchKernel(fill, 40, 1, 1, 256, 1, 1, 0, NULL, fill_arguments, NULL));
    value = 78;
    cu.cuMemcpyDtoH_v2(words, dw, sizeof words);
    VALUE("filled with", "%u %u", words[0], words[N - 1]);
    struct __attribute__((packed)) {
        CUdeviceptr out;
        uint32_t value;
        uint32_t gap;
        size_t n;
    } block = {dw, 5, 0, N};
    size_t block_size = sizeof block;
    void *extra[] = {(void *)(uintptr_t)1, &block, (void *)(uintptr_t)2, &block_size, NULL};
    ASK("extra, too few threads", cu.cuLaunchKernel(fill, 8, 1, 1, 64, 1, 1, 0, NULL, NULL, extra));
    cu.cuMemcpyDtoH_v2(words, dw, sizeof words);
    VALUE("extra filled with", "%u %u %u %u", words[0], words[511], words[512], words[N - 1]);
    ASK("both forms", cu.cuLaunchKernel(fill, 8, 1, 1, 64, 1, 1, 0, NULL, fill_arguments, extra));
    ASK("neither form", cu.cuLaunchKernel(fill, 8, 1, 1, 64, 1, 1, 0, NULL, NULL, NULL));
    block_size = 8;
    ASK("extra too short", cu.cuLaunchKernel(fill, 8, 1, 1, 64, 1, 1, 0, NULL, NULL, extra));
    ASK("saxpy", cu.cuLaunchKernel(saxpy, 10, 2, 2, 32, 2, 1, 0, NULL, saxpy_arguments, NULL));
    ASK("synchronize", cu.cuCtxSynchronize());
    CUlaunchAttribute attribute = {.id = 2};
    attribute.value.value = 1;
    CUlaunchConfig config = {4, 1, 1, 128, 1, 1, 0, NULL, NULL, 0};
    ASK("Ex", cu.cuLaunchKernelEx(&config, add, add_arguments, NULL));
    config.attrs = &attribute;
    config.numAttrs = 1;
    ASK("Ex cooperative", cu.cuLaunchKernelEx(&config, add, add_arguments, NULL));
    attribute.id = 4;
    attribute.value.dim.x = 2;
    attribute.value.dim.y = 1;
    attribute.value.dim.z = 1;
    ASK("Ex cluster of 2", cu.cuLaunchKernelEx(&config, add, add_arguments, NULL));
    attribute.value.dim.x = 3;
    ASK("Ex cluster of 3 in a grid of 4", cu.cuLaunchKernelEx(&config, add, add_arguments, NULL));
    attribute.id = 6;
    memset(&attribute.value, 0, sizeof attribute.value);
    attribute.value.value = 1;
    ASK("Ex programmatic", cu.cuLaunchKernelEx(&config, add, add_arguments, NULL));
    attribute.id = 99;
    ASK("Ex made-up attribute", cu.cuLaunchKernelEx(&config, add, add_arguments, NULL));
    ASK("cooperative", cu.cuLaunchCooperativeKernel(add, 4, 1, 1, 128, 1, 1, 0, NULL, add_arguments));
    ASK("cooperative, too large", cu.cuLaunchCooperativeKernel(add, 1000000, 1, 1, 1024, 1, 1, 0, NULL, add_arguments));
    ASK("grid 0", cu.cuLaunchKernel(add, 0, 1, 1, 128, 1, 1, 0, NULL, add_arguments, NULL));
    ASK("grid y 0", cu.cuLaunchKernel(add, 1, 0, 1, 128, 1, 1, 0, NULL, add_arguments, NULL));
    ASK("block 0", cu.cuLaunchKernel(add, 1, 1, 1, 0, 1, 1, 0, NULL, add_arguments, NULL));
    ASK("block 1024", cu.cuLaunchKernel(add, 1, 1, 1, 1024, 1, 1, 0, NULL, add_arguments, NULL));
    ASK("block 1025", cu.cuLaunchKernel(add, 1, 1, 1, 1025, 1, 1, 0, NULL, add_arguments, NULL));
    ASK("block 32 x 32 x 2", cu.cuLaunchKernel(add, 1, 1, 1, 32, 32, 2, 0, NULL, add_arguments, NULL));
    ASK("block z 65", cu.cuLaunchKernel(add, 1, 1, 1, 1, 1, 65, 0, NULL, add_arguments, NULL));
    ASK("grid y 65536", cu.cuLaunchKernel(add, 1, 65536, 1, 1, 1, 1, 0, NULL, add_arguments, NULL));
    ASK("grid z 65536", cu.cuLaunchKernel(add, 1, 1, 65536, 1, 1, 1, 0, NULL, add_arguments, NULL));
    ASK("grid x 2^31", cu.cuLaunchKernel(add, 1u << 31, 1, 1, 1, 1, 1, 0, NULL, add_arguments, NULL));
    ASK("shared 48 KiB", cu.cuLaunchKernel(add, 1, 1, 1, 128, 1, 1, 48 * 1024, NULL, add_arguments, NULL));
    ASK("shared 48 KiB + 1", cu.cuLaunchKernel(add, 1, 1, 1, 128, 1, 1, 48 * 1024 + 1, NULL, add_arguments, NULL));
    ASK("allow 100000 shared", cu.cuFuncSetAttribute(add, 8, 100000));
    ASK("shared 100000", cu.cuLaunchKernel(add, 1, 1, 1, 128, 1, 1, 100000, NULL, add_arguments, NULL));
    ASK("shared 100001", cu.cuLaunchKernel(add, 1, 1, 1, 128, 1, 1, 100001, NULL, add_arguments, NULL));
    ASK("legacy stream", cu.cuLaunchKernel(add, 1, 1, 1, 128, 1, 1, 0, (CUstream)(uintptr_t)1, add_arguments, NULL));
    ASK("per-thread stream",
        cu.cuLaunchKernel(add, 1, 1, 1, 128, 1, 1, 0, (CUstream)(uintptr_t)2, add_arguments, NULL));
    ASK("the context is well", cu.cuCtxSynchronize());
    ASK("profiler start", cu.cuProfilerStart());
    ASK("profiler stop", cu.cuProfilerStop());
}

static size_t shared_for(int block) { return (size_t)block * 16; }

void section_occupancy(void) {
    start_context();
    CUfunction function = kernel(load_kernels(), "vector_add");
    static const int blocks[] = {0, 1, 32, 128, 256, 1024, 1025};
    int value = -1, grid = -1;
    size_t size = 0;
    char label[64];

    for (size_t i = 0; i < sizeof blocks / sizeof blocks[0]; i++) {
        snprintf(label, sizeof label, "blocks of %d", blocks[i]);
        value = -1;
        ASK(label, cu.cuOccupancyMaxActiveBlocksPerMultiprocessor(&value, function, blocks[i], 0));
        VALUE(label, "%d", value);
        snprintf(label, sizeof label, "blocks of %d with 20000 shared", blocks[i]);
        value = -1;
        ASK(label, cu.cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(&value, function, blocks[i], 20000, 0));
        VALUE(label, "%d", value);
    }
    ASK("too much shared", cu.cuOccupancyMaxActiveBlocksPerMultiprocessor(&value, function, 128, 1 << 20));
    VALUE("too much shared", "%d", value);
    ASK("flags 8", cu.cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(&value, function, 128, 0, 8));
    ASK("potential", cu.cuOccupancyMaxPotentialBlockSize(&grid, &value, function, NULL, 0, 0));
    VALUE("potential", "%d %d", grid, value);
    ASK("potential with shared by block",
        cu.cuOccupancyMaxPotentialBlockSize(&grid, &value, function, shared_for, 0, 512));
    VALUE("potential with shared by block", "%d %d", grid, value);
    ASK("available shared", cu.cuOccupancyAvailableDynamicSMemPerBlock(&size, function, 2, 256));
    VALUE("available shared", "%zu", size);
}

void section_illegal_address(void) {
    start_context();
    CUmodule module = load_kernels();
    CUfunction fill = kernel(module, "fill_u32");
    CUdeviceptr good = 0, bad = 0x700000000000ull, other = 0;
    CUstream stream = NULL;
    CUevent event = NULL;
    uint32_t value = 1, word = 0;
    size_t count = 1, size = 0, total = 0;
    void *arguments[] = {&bad, &value, &count};
    int device = -1;

    cu_must(cu.cuMemAlloc_v2(&good, 4096), "cuMemAlloc");
    cu_must(cu.cuEventCreate(&event, 0), "cuEventCreate");
    ASK("launch", cu.cuLaunchKernel(fill, 1, 1, 1, 1, 1, 1, 0, NULL, arguments, NULL));
    ASK("synchronize", cu.cuCtxSynchronize());
    ASK("synchronize again", cu.cuCtxSynchronize());
    ASK("alloc", cu.cuMemAlloc_v2(&other, 4096));
    ASK("free", cu.cuMemFree_v2(good));
    ASK("read", cu.cuMemcpyDtoH_v2(&word, good, 4));
    ASK("launch again", cu.cuLaunchKernel(fill, 1, 1, 1, 1, 1, 1, 0, NULL, arguments, NULL));
    ASK("stream create", cu.cuStreamCreate(&stream, 0));
    ASK("event query", cu.cuEventQuery(event));
    ASK("event record", cu.cuEventRecord(event, NULL));
    ASK("mem info", cu.cuMemGetInfo_v2(&size, &total));
    ASK("get device", cu.cuCtxGetDevice(&device));
    ASK("device count", cu.cuDeviceGetCount(&device));
    ASK("stream query", cu.cuStreamQuery(NULL));
    ASK("reset", cu.cuDevicePrimaryCtxReset_v2(0));
}

void section_fork(void) {
    start_context();
    CUdeviceptr address = 0;
    uint32_t word = 0;

    cu_must(cu.cuMemAlloc_v2(&address, 4096), "cuMemAlloc");
    cu_must(cu.cuMemsetD32_v2(address, 0x31, 4), "cuMemsetD32");
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        int number = 0;
        CUdeviceptr other = 0;
        CUcontext context = NULL;
        alarm(20);
        ASK("child: version", cu.cuDriverGetVersion(&number));
        ASK("child: device count", cu.cuDeviceGetCount(&number));
        ASK("child: synchronize", cu.cuCtxSynchronize());
        ASK("child: get current", cu.cuCtxGetCurrent(&context));
        ASK("child: alloc", cu.cuMemAlloc_v2(&other, 4096));
        ASK("child: read", cu.cuMemcpyDtoH_v2(&word, address, 4));
        ASK("child: retain", cu.cuDevicePrimaryCtxRetain(&context, 0));
        ASK("child: init", cu.cuInit(0));
        fflush(stdout);
        _exit(0);
    }
    int status = -1;
    waitpid(child, &status, 0);
    VALUE("child ended", "%s", WIFEXITED(status) ? "by itself" : "by a signal");
    ASK("parent: read", cu.cuMemcpyDtoH_v2(&word, address, 4));
    VALUE("parent: read", "%x", word);
    ASK("parent: alloc", cu.cuMemAlloc_v2(&address, 4096));
    ASK("parent: synchronize", cu.cuCtxSynchronize());
}
