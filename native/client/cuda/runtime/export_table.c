/*
 * cuGetExportTable: the tables of unpublished functions that the CUDA runtime and the math libraries ask for.
 *
 * Every entry is answered in the client or by public functions; nothing private crosses the connection. A table that is not
 * here is refused, which every program seen takes well; an entry that nobody was seen to call is a function of its own that
 * names its table and index once and refuses, so that a call is never silently taken for done. No entry is NULL, because
 * newer runtimes call some without looking. The tables are constant and their addresses stable: the integrity check signs
 * them. Any thread; the arguments are the program's own memory.
 */
#include "tpc_runtime.h"

#include <stdio.h>
#include <stdlib.h>

#define ADDRESS(function) ((const void *)(function))

/* ---- entries that nobody was seen to call ---- */

static CUresult refuse(const char *table, int index, _Atomic bool *said) {
    if (!atomic_exchange_explicit(said, true, memory_order_relaxed)) {
        tp_log(TP_WARN,
               "Entry %d of the private table %s was called; it is not known, CUDA_ERROR_NOT_SUPPORTED is returned",
               index, table);
    }
    return CUDA_ERROR_NOT_SUPPORTED;
}

/* One function for each table and index, because a call must tell which entry it came through. */
#define UNKNOWN(TABLE, INDEX)                                                                                          \
    static CUresult TABLE##_##INDEX(void) {                                                                            \
        static _Atomic bool said;                                                                                      \
        return refuse(#TABLE, INDEX, &said);                                                                           \
    }
#define TEN(X, TABLE, TENS)                                                                                            \
    X(TABLE, TENS##0)                                                                                                  \
    X(TABLE, TENS##1)                                                                                                  \
    X(TABLE, TENS##2)                                                                                                  \
    X(TABLE, TENS##3)                                                                                                  \
    X(TABLE, TENS##4)                                                                                                  \
    X(TABLE, TENS##5)                                                                                                  \
    X(TABLE, TENS##6)                                                                                                  \
    X(TABLE, TENS##7)                                                                                                  \
    X(TABLE, TENS##8)                                                                                                  \
    X(TABLE, TENS##9)
#define HUNDRED(X, TABLE)                                                                                              \
    TEN(X, TABLE, )                                                                                                    \
    TEN(X, TABLE, 1)                                                                                                   \
    TEN(X, TABLE, 2)                                                                                                   \
    TEN(X, TABLE, 3)                                                                                                   \
    TEN(X, TABLE, 4)                                                                                                   \
    TEN(X, TABLE, 5)                                                                                                   \
    TEN(X, TABLE, 6)                                                                                                   \
    TEN(X, TABLE, 7)                                                                                                   \
    TEN(X, TABLE, 8)                                                                                                   \
    TEN(X, TABLE, 9)
#define TWENTY(X, TABLE)                                                                                               \
    TEN(X, TABLE, )                                                                                                    \
    TEN(X, TABLE, 1)

TWENTY(UNKNOWN, CudartInterface)
TEN(UNKNOWN, ToolsRuntimeCallbackHooks, )
TEN(UNKNOWN, ToolsTLS, )
TWENTY(UNKNOWN, ContextChecks)
TEN(UNKNOWN, IntegrityCheck, )
HUNDRED(UNKNOWN, ToolsContext)
HUNDRED(UNKNOWN, ToolsModule)
TWENTY(UNKNOWN, Table1734dc26)

#define ENTRY(TABLE, INDEX) [INDEX] = ADDRESS(TABLE##_##INDEX),

/* ---- runtime interface ---- */

static CUresult load_from_wrapper(CUmodule *module, const void *wrapper) { return cuModuleLoadData(module, wrapper); }

/* The further arguments were zero in every call seen; what they ask for is not known. */
static CUresult load_extended(CUmodule *module, const void *image, const void *a, const void *b, uint32_t flags) {
    static _Atomic bool said;
    if (a || b || flags) {
        return refuse("CudartInterface, with arguments that are not known, at", 6, &said);
    }
    return cuModuleLoadData(module, image);
}

static CUresult load_from_wrapper_extended(CUmodule *module, const void *wrapper, const void *a, const void *b,
                                           uint32_t flags) {
    return load_extended(module, wrapper, a, b, flags);
}

static CUresult load_from_container(const void *container, CUmodule *module, const void *a, const void *b,
                                    uint32_t flags) {
    return load_extended(module, container, a, b, flags);
}

/* The handle that cuDevicePrimaryCtxRetain will give, without retaining or making anything. */
static CUresult primary_handle(CUcontext *out, CUdevice device) {
    TPC_NEED_READY();
    if (!out) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (!tpc_device_valid(device)) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    *out = (CUcontext)(uintptr_t)tpc_primary_of(device)->handle;
    return CUDA_SUCCESS;
}

static CUresult module_goes(size_t what) {
    (void)what;
    return CUDA_SUCCESS;
}

static CUresult load_compilers(void) { return CUDA_SUCCESS; }

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Woverride-init" /* a table is all unknown entries, some of which are then replaced */

static const void *const runtime_table[21] = {
    TWENTY(ENTRY, CudartInterface)[0] = (const void *)0x68,
    [1] = ADDRESS(load_from_wrapper),
    [2] = ADDRESS(primary_handle),
    [6] = ADDRESS(load_from_wrapper_extended),
    [7] = ADDRESS(module_goes),
    [8] = ADDRESS(load_from_container),
    [12] = ADDRESS(load_compilers),
};

/* ---- tools ---- */

/* Buffers that a profiler would fill in; the runtime looks for callbacks there and finds none. */
static uint64_t hook_buffer[1024], hook_buffer_small[14];

static CUresult hooks(void **buffer, size_t *words) {
    if (!buffer || !words) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *buffer = hook_buffer;
    *words = sizeof hook_buffer / sizeof *hook_buffer;
    return CUDA_SUCCESS;
}

static CUresult hooks_small(void **buffer, size_t *words) {
    if (!buffer || !words) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *buffer = hook_buffer_small;
    *words = sizeof hook_buffer_small / sizeof *hook_buffer_small;
    return CUDA_SUCCESS;
}

/* Tells a profiler of an event; there is none. */
static CUresult no_profiler(void) { return CUDA_SUCCESS; }

static const void *const hooks_table[10] = {
    TEN(ENTRY, ToolsRuntimeCallbackHooks, )[0] = (const void *)0x38,
    [1] = ADDRESS(no_profiler),
    [2] = ADDRESS(hooks),
    [4] = ADDRESS(no_profiler),
    [6] = ADDRESS(hooks_small),
};

static bool before_init(void) { return atomic_load_explicit(&tpc_state, memory_order_relaxed) == TPC_BEFORE_INIT; }

static CUresult thread_context(CUcontext *out) {
    if (before_init()) {
        return CUDA_ERROR_NOT_INITIALIZED;
    }
    if (!out) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    const struct tpc_context *context = tpc_current();
    *out = context ? (CUcontext)(uintptr_t)context->handle : NULL;
    return context ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}

static const void *const tls_table[10] = {
    TEN(ENTRY, ToolsTLS, )[0] = (const void *)0x18,
    [2] = ADDRESS(thread_context),
};

/* Has no size word and ends with NULL. */
static const void *const storage_table[4] = {ADDRESS(tpc_storage_put), ADDRESS(tpc_storage_delete),
                                             ADDRESS(tpc_storage_get), NULL};

/* No context here wraps another; the third argument must be left alone. */
static CUresult check_context(CUcontext ctx, uint32_t *out, void **untouched) {
    (void)ctx;
    (void)untouched;
    if (!out) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *out = 0;
    return CUDA_SUCCESS;
}

static CUresult check_process(void) { return CUDA_SUCCESS; }

static const void *const checks_table[20] = {
    TWENTY(ENTRY, ContextChecks)[0] = (const void *)0x78,
    [2] = ADDRESS(check_context),
    [3] = ADDRESS(check_process),
};

static CUresult integrity_enable(int enable) {
    (void)enable;
    return CUDA_SUCCESS;
}

static const void *const integrity_table[10] = {
    TEN(ENTRY, IntegrityCheck, )[0] = (const void *)0x18,
    [1] = ADDRESS(tpc_integrity_check),
    [2] = ADDRESS(integrity_enable),
};

static CUresult tools_device(CUcontext ctx, CUdevice *device) { return cuCtxGetDevice_v2(device, ctx); }

static CUresult tools_context_number(CUcontext ctx, unsigned long long *number) { return cuCtxGetId(ctx, number); }

/* What cuBLAS takes as its name of a stream: any that is stable and differs between streams. A per-thread default stream
 * differs between threads, so its name carries the thread; bit 63 keeps it apart from handles. */
static CUresult tools_stream_identity(CUcontext ctx, const void *private_stream, uint64_t *identity) {
    if (before_init()) {
        return CUDA_ERROR_NOT_INITIALIZED;
    }
    struct tpc_context *context;
    TPC_TRY(tpc_context_argument(ctx, &context));
    if (!identity) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    uint64_t stream = (uint64_t)(uintptr_t)private_stream;
    if (stream <= 2) {
        uint64_t thread = stream == 2 ? tp_thread_self()->number : 0;
        stream = 1ull << 63 | (thread & 0x7fffff) << 40 | (context->id & 0xfffffffff) << 4 | (stream ? stream : 1);
    }
    *identity = stream;
    return CUDA_SUCCESS;
}

static CUresult tools_private_stream(CUcontext ctx, CUstream stream, void **private_stream, int per_thread) {
    (void)ctx;
    if (!private_stream) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *private_stream = (void *)(stream ? stream : per_thread ? CU_STREAM_PER_THREAD : CU_STREAM_LEGACY);
    return CUDA_SUCCESS;
}

static const void *const tools_context_table[101] = {
    HUNDRED(ENTRY, ToolsContext)[0] = (const void *)0x2e8,
    [3] = ADDRESS(tools_device),
    [4] = ADDRESS(tools_context_number),
    [39] = ADDRESS(tools_stream_identity),
    [51] = ADDRESS(tools_private_stream),
};

typedef CUresult module_walker(void *user, CUfunction function);

/* cuFFT wants 1 for its modules of a single kernel, and takes what the walker is given for a CUfunction. */
static int tools_walk_functions(CUcontext ctx, CUmodule module, module_walker *walker, void *user) {
    (void)ctx;
    unsigned count = 0;
    if (!walker || cuModuleGetFunctionCount(&count, module) != CUDA_SUCCESS || count == 0) {
        return 0;
    }
    CUfunction *functions = calloc(count, sizeof *functions);
    if (!functions || cuModuleEnumerateFunctions(functions, count, module) != CUDA_SUCCESS) {
        free(functions);
        return 0;
    }
    for (unsigned i = 0; i < count; i++) {
        walker(user, functions[i]);
    }
    free(functions);
    return (int)count;
}

static const void *const tools_module_table[100] = {
    HUNDRED(ENTRY, ToolsModule)[0] = (const void *)0x320,
    [7] = ADDRESS(tools_walk_functions),
};

/* cuBLASLt calls entry 4 (two outputs) for some heuristics, without checking that it got the table. It goes on without the
 * answer when it is refused, and takes anything else than zeros for addresses. Expected, so not worth a warning. */
static CUresult heuristics_hint(uint64_t *a, uint64_t *b) {
    (void)a;
    (void)b;
    return CUDA_ERROR_NOT_SUPPORTED;
}

static const void *const table_1734dc26[20] = {
    TWENTY(ENTRY, Table1734dc26)[0] = (const void *)0x88,
    [4] = ADDRESS(heuristics_hint),
};

#pragma GCC diagnostic pop

const void *tpc_runtime_table(void) { return runtime_table; }
const void *tpc_integrity_table(void) { return integrity_table; }

/* ---- by UUID ---- */

static const struct {
    unsigned char uuid[16];
    const void *table;
} tables[] = {
    {{0x6b, 0xd5, 0xfb, 0x6c, 0x5b, 0xf4, 0xe7, 0x4a, 0x89, 0x87, 0xd9, 0x39, 0x12, 0xfd, 0x9d, 0xf9}, runtime_table},
    {{0xa0, 0x94, 0x79, 0x8c, 0x2e, 0x74, 0x2e, 0x74, 0x93, 0xf2, 0x08, 0x00, 0x20, 0x0c, 0x0a, 0x66}, hooks_table},
    {{0x42, 0xd8, 0x5a, 0x81, 0x23, 0xf6, 0xcb, 0x47, 0x82, 0x98, 0xf6, 0xe7, 0x8a, 0x3a, 0xec, 0xdc}, tls_table},
    {{0xc6, 0x93, 0x33, 0x6e, 0x11, 0x21, 0xdf, 0x11, 0xa8, 0xc3, 0x68, 0xf3, 0x55, 0xd8, 0x95, 0x93}, storage_table},
    {{0x26, 0x3e, 0x88, 0x60, 0x7c, 0xd2, 0x61, 0x43, 0x92, 0xf6, 0xbb, 0xd5, 0x00, 0x6d, 0xfa, 0x7e}, checks_table},
    {{0xd4, 0x08, 0x20, 0x55, 0xbd, 0xe6, 0x70, 0x4b, 0x8d, 0x34, 0xba, 0x12, 0x3c, 0x66, 0xe1, 0xf2}, integrity_table},
    {{0x21, 0x31, 0x8c, 0x60, 0x97, 0x14, 0x32, 0x48, 0x8c, 0xa6, 0x41, 0xff, 0x73, 0x24, 0xc8, 0xf2},
     tools_context_table},
    {{0x6e, 0x16, 0x3f, 0xbe, 0xb9, 0x58, 0x44, 0x4d, 0x83, 0x5c, 0xe1, 0x82, 0xaf, 0xf1, 0x99, 0x1e},
     tools_module_table},
    {{0xda, 0x91, 0x51, 0xd3, 0x3a, 0xe6, 0xcc, 0x41, 0xa5, 0xc0, 0x4f, 0x26, 0xd5, 0x33, 0xe3, 0x28},
     tpc_compile_cache_table},
    {{0x17, 0x34, 0xdc, 0x26, 0x80, 0x0d, 0x47, 0x45, 0x87, 0x26, 0xc0, 0xf1, 0xe7, 0xdd, 0x8b, 0xca}, table_1734dc26},
};

/* Says once that a table was asked for and refused. More than this many different ones are refused without a word. */
#define REFUSED_MAX 32
static struct tp_lock refused_lock;
static unsigned char refused_tables[REFUSED_MAX][16];
static int refused_count;

static void say_refused(const unsigned char *uuid) {
    bool known = false;
    tp_lock_take(&refused_lock);
    for (int i = 0; i < refused_count; i++) {
        known |= memcmp(refused_tables[i], uuid, 16) == 0;
    }
    bool say = !known && refused_count < REFUSED_MAX;
    if (say) {
        memcpy(refused_tables[refused_count++], uuid, 16);
    }
    tp_lock_drop(&refused_lock);
    if (say) {
        char text[37], *at = text;
        for (int i = 0; i < 16; i++) {
            at += snprintf(at, 4, "%s%02x", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", uuid[i]);
        }
        tp_log(TP_INFO, "cuGetExportTable: the private table %s is not known and was refused", text);
    }
}

CUresult tpc_do_cuGetExportTable(const void **ppExportTable, const CUuuid *pExportTableId) {
    const unsigned char *uuid = (const unsigned char *)pExportTableId->bytes;
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++) {
        if (memcmp(tables[i].uuid, uuid, 16) == 0) {
            *ppExportTable = tables[i].table;
            return CUDA_SUCCESS;
        }
    }
    say_refused(uuid);
    *ppExportTable = NULL;
    return CUDA_ERROR_INVALID_VALUE; /* of one that it does not know, as the driver (580.159.04, measured) */
}
