/*
 * Images: where they are loaded (which thread, which context or none), and what their kernels say of themselves there.
 *
 * Expected answers without a context are those of driver 580.159.04: libraries load, kernels have names, and parameter layouts and
 * functions give 201. Threads as the checks start them.
 */
#include "stack.h"

#include <stdatomic.h>

static CUlibrary load_library(void) {
    CUlibrary library;
    OK(cuLibraryLoadData(&library, kernels_ptx, NULL, NULL, 0, NULL, NULL, 0));
    return library;
}

static CUkernel kernel_of(CUlibrary library, const char *name) {
    CUkernel kernel;
    OK(cuLibraryGetKernel(&kernel, library, name));
    return kernel;
}

static void check_without_a_context(CUlibrary library, CUkernel kernel) {
    const char *name;
    CUkernel all[7];
    CUfunction function;
    CUmodule module;
    CUcontext context;
    size_t offset, size;
    unsigned count;
    OK(cuCtxGetCurrent(&context));
    CHECK(!context);
    OK(cuLibraryGetKernelCount(&count, library));
    CHECK(count == 7);
    OK(cuLibraryEnumerateKernels(all, count, library));
    OK(cuKernelGetName(&name, kernel));
    CHECK(strcmp(name, "iota_u32") == 0);
    GIVES(CUDA_ERROR_INVALID_CONTEXT, cuKernelGetParamInfo(kernel, 0, &offset, &size));
    GIVES(CUDA_ERROR_INVALID_CONTEXT, cuKernelGetFunction(&function, kernel));
    GIVES(CUDA_ERROR_INVALID_CONTEXT, cuLibraryGetModule(&module, library));
    GIVES(CUDA_ERROR_INVALID_CONTEXT,
          cuLaunchKernel((CUfunction)(void *)kernel, 1, 1, 1, 1, 1, 1, 0, NULL, NULL, NULL));
}

static void check_layout(CUkernel kernel) {
    size_t offset, size;
    OK(cuKernelGetParamInfo(kernel, 0, &offset, &size));
    CHECK(offset == 0 && size == 8);
    OK(cuKernelGetParamInfo(kernel, 1, &offset, &size));
    CHECK(offset == 8 && size == 8);
    GIVES(CUDA_ERROR_INVALID_VALUE, cuKernelGetParamInfo(kernel, 2, &offset, &size));
}

/* Launches iota_u32 under a handle of a kernel or a function, and looks at what it wrote. */
static void check_runs(CUfunction function) {
    enum { COUNT = 100 };
    CUdeviceptr memory;
    uint32_t back[COUNT];
    size_t n = COUNT;
    OK(cuMemAlloc_v2(&memory, sizeof back));
    OK(cuMemsetD32_v2(memory, 0xffffffff, COUNT));
    void *params[] = {&memory, &n};
    OK(launch(function, n, NULL, params));
    OK(cuMemcpyDtoH_v2(back, memory, sizeof back));
    for (uint32_t i = 0; i < COUNT; i++) {
        CHECK(back[i] == i);
    }
    OK(cuMemFree_v2(memory));
}

/* cuLibraryLoadData needs no context; a program may load everything first. */
static void before_any_context(void) {
    CUlibrary first = load_library(), second = load_library(), third = load_library();
    CUkernel launched = kernel_of(first, "iota_u32"), asked = kernel_of(second, "iota_u32");
    CUfunction function;
    CUmodule module;
    check_without_a_context(first, launched);
    start();
    check_runs((CUfunction)(void *)launched);
    check_layout(asked);
    OK(cuKernelGetFunction(&function, kernel_of(third, "iota_u32")));
    check_runs(function);
    check_runs((CUfunction)(void *)kernel_of(third, "iota_u32"));
    OK(cuLibraryUnload(third));
    third = load_library(); /* of the same name and in the same place as before, with a context */
    OK(cuLibraryGetModule(&module, third));
    check_runs(kernel(module, "iota_u32"));
    check_layout(kernel_of(third, "iota_u32"));
    OK(cuLibraryUnload(first));
    OK(cuLibraryUnload(second));
    OK(cuLibraryUnload(third));
}

/* As the autograd threads of PyTorch do it: the library comes while the thread has no context, its launches when it has one. */
static void *library_of_a_thread(void *context) {
    CUlibrary library = load_library(), other = load_library();
    CUkernel kernel = kernel_of(library, "iota_u32");
    CUmodule module;
    check_without_a_context(library, kernel);
    OK(cuCtxSetCurrent(context));
    check_runs((CUfunction)(void *)kernel);
    check_layout(kernel);
    OK(cuLibraryGetModule(&module, other));
    CUfunction function;
    OK(cuModuleGetFunction(&function, module, "iota_u32"));
    check_runs(function);
    OK(cuLibraryUnload(library));
    OK(cuLibraryUnload(other));
    return NULL;
}

static void thread_without_a_context(void) {
    pthread_t thread;
    CUcontext context = start();
    for (int round = 0; round < 2; round++) {
        CHECK(pthread_create(&thread, NULL, library_of_a_thread, context) == 0);
        CHECK(pthread_join(thread, NULL) == 0);
    }
}

/* What a module has is its context's: a thread without one may use all of it but what runs in a context. A kernel is no function but
 * where it is launched (580.159.04, measured). */
struct elsewhere {
    CUmodule module;
    CUfunction function, late; /* late: found by the thread without a context */
    CUkernel kernel;
    CUdeviceptr global;
};

static void *functions_of_a_thread(void *what) {
    struct elsewhere *in = what;
    CUfunction kernel = (CUfunction)(void *)in->kernel, all[7];
    CUfunctionLoadingState state;
    CUmodule module;
    const char *name;
    size_t offset, size;
    unsigned count;
    int value;
    OK(cuFuncGetParamInfo(in->function, 0, &offset, &size));
    CHECK(offset == 0 && size == 8);
    GIVES(CUDA_ERROR_INVALID_VALUE, cuFuncGetParamInfo(in->function, 2, &offset, &size));
    OK(cuFuncGetAttribute(&value, CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, in->function));
    CHECK(value == 1024);
    OK(cuFuncGetName(&name, in->function));
    CHECK(strcmp(name, "iota_u32") == 0);
    OK(cuFuncGetModule(&module, in->function));
    CHECK(module == in->module);
    OK(cuFuncLoad(in->function));
    OK(cuFuncSetAttribute(in->function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 1024));
    OK(cuFuncSetCacheConfig(in->function, CU_FUNC_CACHE_PREFER_L1));
    OK(cuModuleGetFunction(&in->late, in->module, "fill_u32"));
    GIVES(CUDA_ERROR_NOT_FOUND, cuModuleGetFunction(&all[0], in->module, "nope"));
    OK(cuModuleGetGlobal_v2(&in->global, &size, in->module, "counter"));
    CHECK(size == 4);
    OK(cuModuleGetFunctionCount(&count, in->module));
    CHECK(count == 7);
    OK(cuModuleEnumerateFunctions(all, count, in->module));
    GIVES(CUDA_ERROR_INVALID_CONTEXT, cuModuleLoadData(&module, kernels_ptx));
    GIVES(CUDA_ERROR_INVALID_CONTEXT, cuLaunchKernel(in->function, 1, 1, 1, 1, 1, 1, 0, NULL, NULL, NULL));
    GIVES(CUDA_ERROR_INVALID_CONTEXT, cuOccupancyMaxActiveBlocksPerMultiprocessor(&value, in->function, 64, 0));

    GIVES(CUDA_ERROR_INVALID_HANDLE, cuFuncGetAttribute(&value, CU_FUNC_ATTRIBUTE_NUM_REGS, kernel));
    GIVES(CUDA_ERROR_INVALID_HANDLE, cuFuncGetName(&name, kernel));
    GIVES(CUDA_ERROR_INVALID_HANDLE, cuFuncGetModule(&module, kernel));
    GIVES(CUDA_ERROR_INVALID_HANDLE, cuFuncGetParamInfo(kernel, 0, &offset, &size));
    GIVES(CUDA_ERROR_INVALID_HANDLE, cuFuncIsLoaded(&state, kernel));
    GIVES(CUDA_ERROR_INVALID_HANDLE, cuFuncLoad(kernel));
    GIVES(CUDA_ERROR_INVALID_CONTEXT, cuOccupancyMaxActiveBlocksPerMultiprocessor(&value, kernel, 64, 0));
    GIVES(CUDA_ERROR_INVALID_CONTEXT, cuOccupancyMaxPotentialBlockSize(&value, &value, kernel, NULL, 0, 0));
    GIVES(CUDA_ERROR_INVALID_CONTEXT, cuOccupancyMaxActiveBlocksPerMultiprocessor(NULL, NULL, 0, 0));
    GIVES(CUDA_ERROR_INVALID_CONTEXT, cuOccupancyMaxActiveBlocksPerMultiprocessor(&value, NULL, 64, 0));
    GIVES(CUDA_ERROR_INVALID_CONTEXT, cuOccupancyAvailableDynamicSMemPerBlock(&size, NULL, 1, 64));
    GIVES(CUDA_ERROR_INVALID_CONTEXT, cuOccupancyMaxActiveClusters(&value, NULL, NULL));
    OK(cuKernelGetAttribute(&value, CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, in->kernel, 0));
    CHECK(value == 1024);
    OK(cuKernelSetAttribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 1024, in->kernel, 0));
    OK(cuKernelSetCacheConfig(in->kernel, CU_FUNC_CACHE_PREFER_L1, 0));
    return NULL;
}

/* With a context current. */
static void check_kernel_is_no_function(CUfunction kernel) {
    CUfunctionLoadingState state;
    CUmodule module;
    const char *name;
    size_t offset, size;
    int value;
    GIVES(CUDA_ERROR_INVALID_HANDLE, cuFuncGetAttribute(&value, CU_FUNC_ATTRIBUTE_NUM_REGS, kernel));
    GIVES(CUDA_ERROR_INVALID_HANDLE, cuFuncSetAttribute(kernel, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 64));
    GIVES(CUDA_ERROR_INVALID_HANDLE, cuFuncSetCacheConfig(kernel, CU_FUNC_CACHE_PREFER_L1));
    GIVES(CUDA_ERROR_INVALID_HANDLE, cuFuncGetName(&name, kernel));
    GIVES(CUDA_ERROR_INVALID_HANDLE, cuFuncGetModule(&module, kernel));
    GIVES(CUDA_ERROR_INVALID_HANDLE, cuFuncGetParamInfo(kernel, 0, &offset, &size));
    GIVES(CUDA_ERROR_INVALID_HANDLE, cuFuncIsLoaded(&state, kernel));
    GIVES(CUDA_ERROR_INVALID_HANDLE, cuFuncLoad(kernel));
    GIVES(CUDA_ERROR_INVALID_HANDLE, cuFuncGetAttribute(&value, CU_FUNC_ATTRIBUTE_NUM_REGS, NULL));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuFuncGetName(&name, NULL));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuFuncGetModule(&module, NULL));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuFuncGetParamInfo(NULL, 0, &offset, &size));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuKernelGetName(&name, NULL));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuKernelGetParamInfo(NULL, 0, &offset, &size));
    OK(cuOccupancyMaxActiveBlocksPerMultiprocessor(&value, kernel, 64, 0));
}

static void *unload_of_a_thread(void *module) {
    OK(cuModuleUnload(module));
    return NULL;
}

static void functions_without_a_context(void) {
    CUcontext primary = start(), made;
    CUdeviceptr memory;
    uint32_t back = 0;
    pthread_t thread;
    CUlibrary library = load_library();
    for (int other = 0; other < 2; other++) {
        if (other) { /* what the thread finds ends with the module's context */
            OK(cuCtxCreate_v4(&made, NULL, 0, 0));
        }
        struct elsewhere in = {.module = load_kernels(), .kernel = kernel_of(library, "iota_u32")};
        in.function = kernel(in.module, "iota_u32");
        CHECK(pthread_create(&thread, NULL, functions_of_a_thread, &in) == 0);
        CHECK(pthread_join(thread, NULL) == 0);
        OK(cuMemAlloc_v2(&memory, 4));
        uint32_t value = 5;
        size_t n = 1;
        void *params[] = {&memory, &value, &n};
        OK(launch(in.late, 1, NULL, params));
        OK(cuMemcpyDtoH_v2(&back, memory, 4));
        CHECK(back == 5);
        OK(cuMemcpyDtoH_v2(&back, in.global, 4));
        CHECK(back == 7);
        check_runs(in.function);
        check_kernel_is_no_function((CUfunction)(void *)in.kernel);
        if (other) {
            OK(cuCtxDestroy_v2(made));
            OK(cuCtxSetCurrent(primary));
            CHECK(launch(in.late, 1, NULL, params) == CUDA_ERROR_CONTEXT_IS_DESTROYED ||
                  cuCtxSynchronize() == CUDA_ERROR_CONTEXT_IS_DESTROYED);
            CHECK(cuMemcpyDtoH_v2(&back, in.global, 4) != CUDA_SUCCESS);
        } else {
            OK(cuMemFree_v2(memory));
            CHECK(pthread_create(&thread, NULL, unload_of_a_thread, in.module) == 0);
            CHECK(pthread_join(thread, NULL) == 0);
            GIVES(CUDA_ERROR_INVALID_HANDLE, cuFuncGetAttribute((int *)&back, CU_FUNC_ATTRIBUTE_NUM_REGS, in.function));
        }
    }
}

static CUkernel shared;

static void *launch_of_a_thread(void *context) {
    OK(cuCtxSetCurrent(context));
    check_runs((CUfunction)(void *)shared);
    return NULL;
}

/* Several threads find at once that a kernel has no description yet; a function that a graph's node names comes from such a kernel, too. */
static void kernels_of_another_thread(void) {
    enum { THREADS = 8 };
    pthread_t threads[THREADS];
    CUlibrary library = load_library(), other = load_library();
    CUkernel kernel = kernel_of(other, "iota_u32");
    CUfunction function;
    CUgraph graph;
    CUgraphNode node;
    CUdeviceptr memory;
    size_t n = 1;
    shared = kernel_of(library, "iota_u32");
    CUcontext context = start();
    for (int i = 0; i < THREADS; i++) {
        CHECK(pthread_create(&threads[i], NULL, launch_of_a_thread, context) == 0);
    }
    for (int i = 0; i < THREADS; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
    }
    OK(cuMemAlloc_v2(&memory, 4));
    OK(cuKernelGetFunction(&function, kernel));
    void *params[] = {&memory, &n};
    CUDA_KERNEL_NODE_PARAMS told, asked = {.func = function,
                                           .gridDimX = 1,
                                           .gridDimY = 1,
                                           .gridDimZ = 1,
                                           .blockDimX = 1,
                                           .blockDimY = 1,
                                           .blockDimZ = 1,
                                           .kernelParams = params};
    OK(cuGraphCreate(&graph, 0));
    OK(cuGraphAddKernelNode_v2(&node, graph, NULL, 0, &asked));
    OK(cuGraphKernelNodeGetParams_v2(node, &told));
    CHECK(memcmp(told.kernelParams[0], &memory, sizeof memory) == 0 && *(size_t *)told.kernelParams[1] == 1);
    OK(cuGraphDestroy(graph));
    OK(cuMemFree_v2(memory));
    OK(cuLibraryUnload(library));
    OK(cuLibraryUnload(other));
}

struct wrapper {
    uint32_t magic, version;
    const void *data, *more;
};

/* A container with one entry of PTX, as it lies behind a wrapper. */
static const void *container(void) {
    static struct {
        uint32_t magic;
        uint16_t version, header_size;
        uint64_t body;
        uint16_t kind, entry_version;
        uint32_t entry_header;
        uint64_t padded;
        uint32_t compressed, options;
        uint16_t minor, major;
        uint32_t arch;
        uint64_t name, flags, zero, plain;
        char text[(sizeof kernels_ptx + 7) & ~7u];
    } made = {.magic = 0xba55ed50,
              .version = 1,
              .header_size = 16,
              .body = sizeof made - 16,
              .kind = 1,
              .entry_version = 0x101,
              .entry_header = 64,
              .padded = sizeof made.text,
              .major = 8,
              .arch = 80,
              .flags = 0x11};
    memcpy(made.text, kernels_ptx, sizeof kernels_ptx);
    return &made;
}

/* nvcc -rdc=true writes wrappers of version 2: the linked image, and a list of the parts that ends with NULL. */
static void wrapper_of_relocatable_code(void) {
    CUmodule module;
    CUlibrary library;
    start();
    const void *parts[] = {container(), NULL};
    struct wrapper wrapper = {0x466243b1, 2, container(), parts};
    OK(cuLibraryLoadData(&library, &wrapper, NULL, NULL, 0, NULL, NULL, 0));
    check_runs((CUfunction)(void *)kernel_of(library, "iota_u32"));
    OK(cuLibraryUnload(library));
    OK(cuModuleLoadData(&module, &wrapper));
    check_runs(kernel(module, "iota_u32"));
    OK(cuModuleUnload(module));
    OK(cuModuleLoadFatBinary(&module, &wrapper));
    OK(cuModuleUnload(module));
    wrapper.data = kernels_ptx; /* no container */
    GIVES(CUDA_ERROR_INVALID_IMAGE, cuModuleLoadData(&module, &wrapper));
    OK(cuLibraryLoadData(&library, &wrapper, NULL, NULL, 0, NULL, NULL, 0)); /* 580.159.04, measured, as what follows */
    check_runs((CUfunction)(void *)kernel_of(library, "iota_u32"));
    OK(cuLibraryUnload(library));
    CUkernel none;
    wrapper.data = "no image";
    OK(cuLibraryLoadData(&library, &wrapper, NULL, NULL, 0, NULL, NULL, 0));
    GIVES(CUDA_ERROR_INVALID_IMAGE, cuLibraryGetKernel(&none, library, "iota_u32"));
    OK(cuLibraryUnload(library));
    wrapper.data = NULL;
    OK(cuLibraryLoadData(&library, &wrapper, NULL, NULL, 0, NULL, NULL, 0));
    GIVES(CUDA_ERROR_NOT_FOUND, cuLibraryGetKernel(&none, library, "iota_u32"));
    OK(cuLibraryGetModule(&module, library));
    OK(cuLibraryUnload(library));
}

static void check_library_of_nothing(const char *image, CUresult expected) {
    CUlibrary library;
    CUkernel kernel;
    CUkernel all[1];
    CUmodule module;
    CUcontext context;
    CUdeviceptr address;
    size_t size;
    unsigned count;
    OK(cuLibraryLoadData(&library, image, NULL, NULL, 0, NULL, NULL, 0));
    GIVES(expected, cuLibraryGetKernel(&kernel, library, "k"));
    GIVES(expected, cuLibraryGetKernel(&kernel, library, "k"));
    OK(cuLibraryGetKernelCount(&count, library));
    CHECK(count == 0);
    OK(cuLibraryEnumerateKernels(all, 1, library));
    OK(cuCtxGetCurrent(&context));
    GIVES(context ? expected : CUDA_ERROR_INVALID_CONTEXT, cuLibraryGetModule(&module, library));
    GIVES(context ? expected : CUDA_ERROR_INVALID_CONTEXT, cuLibraryGetGlobal(&address, &size, library, "g"));
    GIVES(context ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_INVALID_CONTEXT,
          cuLibraryGetGlobal(&address, &size, library, ""));
    OK(cuLibraryUnload(library));
    GIVES(CUDA_ERROR_INVALID_HANDLE, cuLibraryGetKernel(&kernel, library, "k"));
    if (context) {
        GIVES(expected, cuModuleLoadData(&module, image));
    }
}

/* Libraries are loaded lazily: what is no image for this driver loads, and fails when it is used; a module fails at once (580.159.04,
 * measured). */
static void images_that_are_none(void) {
#define HEAD(version, target) ".version " version "\n.target " target "\n.address_size 64\n"
#define EMPTY ".visible .entry k(){ ret; }\n"
    static const struct {
        const char *text;
        CUresult expected;
    } images[] = {
        {"this is not an image at all, but some text", CUDA_ERROR_INVALID_IMAGE},
        {".target sm_70\n.address_size 64\n" EMPTY, CUDA_ERROR_INVALID_IMAGE},
        {HEAD("7.0", "sm_70") ".visible .entry k( { garbage }\n", CUDA_ERROR_INVALID_PTX},
        {HEAD("7.0", "sm_999") EMPTY, CUDA_ERROR_INVALID_PTX},
        {HEAD("9.0", "sm_120") EMPTY, CUDA_ERROR_INVALID_PTX},
        {HEAD("99.0", "sm_70") EMPTY, CUDA_ERROR_UNSUPPORTED_PTX_VERSION},
    };
    CUmodule module;
    CUlibrary library;
    unsigned count;
    for (int current = 0; current < 2; current++) { /* before any context, and with one */
        for (size_t i = 0; i < sizeof images / sizeof *images; i++) {
            check_library_of_nothing(images[i].text, images[i].expected);
        }
        OK(cuLibraryLoadData(&library, "\n\n// comment\n" HEAD("7.0", "sm_70"), NULL, NULL, 0, NULL, NULL, 0));
        OK(cuLibraryGetKernelCount(&count, library));
        CHECK(count == 0);
        start();
    }
    GIVES(CUDA_ERROR_INVALID_IMAGE, cuModuleLoadData(&module, ""));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuModuleLoadData(&module, NULL));
    OK(cuModuleLoadData(&module, "\n\n// comment\n" HEAD("7.0", "sm_70")));
}

/* What a compiler refuses and what it takes, one by one as driver 580.159.04 answered. */
static void text_of_a_compiler(void) {
    static const char *const refused[] = {
        "nonsense;\n" EMPTY,
        ".nonsense;\n" EMPTY,
        "nonsense\n",
        "/* open\n" EMPTY,
        EMPTY EMPTY,
        ".visible .entry k(){ nonsense; }\n",
        ".visible .entry k(){ frob.u32 %r1, 3; ret; }\n",
        ".visible .entry k(){ ret }\n",
        ".visible .entry k(){ ret; ",
        ".visible .entry k(){ ret; } }\n",
        ".visible .entry k() .frob 4 { ret; }\n",
        ".visible .entry k(){ mov.u32 %r1, 3; ret; }\n",
        ".visible .entry k(){ .reg .b32 %r<2>; mov.u32 %q1, 3; ret; }\n",
        ".visible .entry k(){ @%p1 ret; }\n",
        ".visible .entry k(){ .reg .u32 %r<2>; ld.global.u32 %r1, [x]; ret; }\n",
        ".visible .entry k(){ bra L; ret; }\n",
        ".visible .entry k(){ call foo; ret; }\n",
        ".extern .func foo;\n.visible .entry k(){ call foo; ret; }\n",
        ".extern .func (.param .b32 r) foo (.param .b32 a);\n.visible .entry k(){ { .param .b32 x; st.param.b32 [x], "
        "1; "
        ".param .b32 y; call (y), foo, (x); } ret; }\n",
    };
    static const char *const taken[] = {
        ".visible .entry k(){ }\n",
        ".entry k(){ ret; }\n",
        ".extern .func foo();\n" EMPTY,
        ".extern .global .u32 x;\n.visible .entry k(){ .reg .u32 %r<2>; ld.global.u32 %r1, [x]; ret; }\n",
        ".file 1 \"x\"\n.visible .entry k(){ .loc 1 1 1 ret; }\n",
        ".visible .entry k(){ .pragma \"nounroll\"; ret; }\n",
        ".visible .entry k(){ .reg .pred %p<2>; @%p1 ret; }\n",
        ".visible .func f(){ ret; }\n.visible .entry k(){ call f; ret; }\n",
        ".visible .entry k(){ L: bra.uni L; }\n",
    };
    static const char *const versions[] = {"7.9", "9.1", "99.0"};
    char text[600];
    CUmodule module;
    start();
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        snprintf(text, sizeof text, "%s%s", HEAD("7.0", "sm_70"), refused[i]);
        fprintf(stderr, "%s\n", refused[i]);
        GIVES(CUDA_ERROR_INVALID_PTX, cuModuleLoadData(&module, text));
    }
    for (size_t i = 0; i < sizeof taken / sizeof *taken; i++) {
        snprintf(text, sizeof text, "%s%s", HEAD("7.0", "sm_70"), taken[i]);
        fprintf(stderr, "%s\n", taken[i]);
        OK(cuModuleLoadData(&module, text));
        OK(cuModuleUnload(module));
    }
    for (size_t i = 0; i < sizeof versions / sizeof *versions; i++) {
        snprintf(text, sizeof text, ".version %s\n.target sm_70\n.address_size 64\n" EMPTY, versions[i]);
        GIVES(CUDA_ERROR_UNSUPPORTED_PTX_VERSION, cuModuleLoadData(&module, text));
    }
}

/* ---- two threads ---- */

static struct {
    CUcontext context;
    CUfunction function;
    bool occupancy;
    _Atomic int stage; /* 1: the thread is there, 2: both go */
} race;

static void *asks(void *unused) {
    int value;
    (void)unused;
    OK(cuCtxSetCurrent(race.context));
    atomic_store(&race.stage, 1);
    while (atomic_load(&race.stage) != 2) {
    }
    if (race.occupancy) {
        OK(cuOccupancyMaxActiveBlocksPerMultiprocessor(&value, race.function, 64, 60000));
    } else {
        OK(cuFuncGetAttribute(&value, CU_FUNC_ATTRIBUTE_NUM_REGS, race.function));
    }
    return NULL;
}

/* An answer that is on its way while another thread sets an attribute is not what later calls are told. */
static void attributes_of_two_threads(void) {
    start();
    OK(cuCtxGetCurrent(&race.context));
    for (int i = 0; i < 300; i++) {
        pthread_t thread;
        CUmodule module = load_kernels();
        int value;
        race.occupancy = i % 2;
        race.function = kernel(module, "fill_u32");
        if (race.occupancy) {
            OK(cuFuncGetAttribute(&value, CU_FUNC_ATTRIBUTE_NUM_REGS,
                                  race.function)); /* so that setting asks for nothing */
        }
        atomic_store(&race.stage, 0);
        CHECK(pthread_create(&thread, NULL, asks, NULL) == 0);
        while (atomic_load(&race.stage) != 1) {
        }
        atomic_store(&race.stage, 2);
        for (double end = now_ms() + i % 30 / 1000.0; now_ms() < end;) {
        }
        OK(race.occupancy ? cuFuncSetAttribute(race.function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 65536)
                          : cuFuncSetAttribute(race.function, CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, 50));
        CHECK(pthread_join(thread, NULL) == 0);
        if (race.occupancy) {
            OK(cuOccupancyMaxActiveBlocksPerMultiprocessor(&value, race.function, 64, 60000));
            CHECK(value > 0);
        } else {
            OK(cuFuncGetAttribute(&value, CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, race.function));
            CHECK(value == 50);
        }
        OK(cuModuleUnload(module));
    }
}

static const char *name_in(CUmodule module, const char *wanted) {
    CUfunction all[7], function = kernel(module, wanted);
    const char *name;
    int same = 0;
    OK(cuModuleEnumerateFunctions(all, 7, module));
    for (int i = 0; i < 7; i++) {
        same += all[i] == function;
        OK(cuFuncGetName(&name, all[i]));
        CHECK((strcmp(name, wanted) == 0) == (all[i] == function));
    }
    CHECK(same == 1);
    OK(cuFuncGetName(&name, function));
    CHECK(strcmp(name, wanted) == 0);
    return name;
}

/* Programs compare the pointers of names: one for each name, whether the kernel was asked for by it or by number. */
static void names_of_kernels(void) {
    CUmodule first, second, third;
    CUfunction all[7];
    const char *name, *other;
    CUlibrary library = load_library();
    start();
    OK(cuModuleLoadData(&first, kernels_ptx));
    OK(cuModuleLoadData(&second, kernels_ptx));
    OK(cuModuleEnumerateFunctions(all, 7, second)); /* nobody has said these names yet */
    const char *one = name_in(first, "iota_u32");
    CHECK(one == name_in(second, "iota_u32"));
    CHECK(one != name_in(second, "fill_u32"));
    OK(cuKernelGetName(&name, kernel_of(library, "iota_u32")));
    OK(cuLibraryGetModule(&third, library));
    OK(cuFuncGetName(&other, kernel(third, "iota_u32")));
    CHECK(name == one && other == one);
    OK(cuModuleUnload(first));
    CHECK(name_in(second, "iota_u32") == one && strcmp(one, "iota_u32") == 0);
    OK(cuModuleUnload(second));
    OK(cuLibraryUnload(library));
}

static const struct check checks[] = {{"before-any-context", before_any_context},
                                      {"thread-without-a-context", thread_without_a_context},
                                      {"functions-without-a-context", functions_without_a_context},
                                      {"kernels-of-another-thread", kernels_of_another_thread},
                                      {"wrapper-of-relocatable-code", wrapper_of_relocatable_code},
                                      {"images-that-are-none", images_that_are_none},
                                      {"text-of-a-compiler", text_of_a_compiler},
                                      {"names-of-kernels", names_of_kernels},
                                      {"attributes-of-two-threads", attributes_of_two_threads}};

int role_images(int count, char **words) {
    OK(cuInit(0));
    return run_check(checks, sizeof checks / sizeof *checks, count, words);
}
