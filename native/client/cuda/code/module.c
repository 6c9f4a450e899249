/*
 * Modules and libraries: loading images, unloading them, functions and kernels by name, globals.
 *
 * Any thread. Images are read from the program's memory, which gives no length: their containers say it. See tpc_image.h for
 * the record that each has.
 */
#include "tpc_code.h"
#include "tpc_memory.h"
#include "tpc_stream.h"
#include "tpc_image.h"
#include "tpc_jit.h"
#include "tpg_cuda_send.h"

#include <stdlib.h>
#include <tp_image.h>
#include <tp_sha256.h>

/* ---- loading ---- */

static _Atomic bool no_cache; /* the worker said that it keeps no images */

/* Hashing costs 0.6 ns a byte here, and reading the image 0.4 ns on the worker. Sending it to a near worker costs less (64 MiB over
 * loopback: 85 ms sent, 102 ms found), through a 1 Gbit/s network 8 ns. How near it is, the fastest round trip tells: loopback
 * and shared memory stay well below 100 us, another machine rarely does. Without SHA instructions hashing costs five times as
 * much. What travels inside the call is not worth a question. */
#define FAR_NS 100000u
#define FAR_SLOW_NS 500000u

static bool worth_asking(size_t size, struct tp_sha256 *sha) {
    if (size <= TP_INLINE_MAX || atomic_load_explicit(&no_cache, memory_order_relaxed)) {
        return false;
    }
    tp_sha256_begin(sha);
    uint64_t trip = tp_fastest_round_trip();
    return trip != UINT64_MAX && trip > (sha->instructions ? FAR_NS : FAR_SLOW_NS);
}

/* A far worker is asked by hash first: if it has the image, that call is all. */
static CUresult send_image(const void *bytes, size_t size, struct tpg_image_load_in *in, struct tpg_image_load_out *out,
                           struct tp_reply *reply) {
    struct tp_sha256 sha;
    unsigned char hash[TP_SHA256_SIZE];
    CUresult result;
    memset(reply, 0, offsetof(struct tp_reply, inline_body));
    in->size = size;
    if (worth_asking(size, &sha)) {
        tp_sha256_add(&sha, bytes, size);
        tp_sha256_end(&sha, hash);
        in->hash = hash;
        in->hash_size = sizeof hash;
        result = tpc_call_image_load("cuModuleLoadData", in, out, reply);
        if (result || out->missing == TP_IMAGE_FOUND) {
            return result;
        }
        if (out->missing == TP_IMAGE_NO_CACHE) {
            atomic_store_explicit(&no_cache, true, memory_order_relaxed);
            in->hash_size = 0;
        }
        tp_reply_free(reply);
        memset(reply, 0, offsetof(struct tp_reply, inline_body));
    }
    result = tpc_body_send(bytes, size, &in->data, &in->data_size, &in->transfer);
    return result ? result : tpc_call_image_load("cuModuleLoadData", in, out, reply);
}

/* Follows a wrapper, {magic, version, data, more}, to its container. In version 2 (nvcc -rdc=true) that holds the linked code, one
 * cubin for each architecture of the link; `more` lists the parts, which the driver may link itself for other architectures. */
static CUresult unwrap(const void **code, bool library, bool *linked) {
    static const char nothing[] = ".version 7.0\n.target sm_70\n.address_size 64\n";
    uint32_t magic, version;
    const void *data;
    memcpy(&magic, *code, sizeof magic);
    if (magic != TP_FATBIN_WRAPPER) {
        return CUDA_SUCCESS;
    }
    memcpy(&version, (const char *)*code + 4, sizeof version);
    memcpy(&data, (const char *)*code + 8, sizeof data);
    if (library && !data) { /* a library without kernels, as natively */
        *code = nothing;
        return CUDA_SUCCESS;
    }
    if ((version != 1 && version != 2) || !data) {
        tp_log(TP_WARN, "a fatbin wrapper of version %u%s cannot be loaded", version,
               data ? "" : " without a container");
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    memcpy(&magic, data, sizeof magic);
    if (magic != TP_FATBIN && !library) { /* a library's may be an image of any kind, or none until it is used */
        return CUDA_ERROR_INVALID_IMAGE;
    }
    *linked = version == 2;
    *code = data;
    return CUDA_SUCCESS;
}

/* What is no image at all is a library, too, until it is used. */
static CUresult load_nothing(uint64_t *handle) {
    struct tpc_image *image = calloc(1, sizeof *image);
    uint64_t made = image ? tpc_mint_record(TPG_LIBRARY, image) : 0;
    if (!made) {
        free(image);
        return TPC_NO_HANDLES;
    }
    *image = (struct tpc_image){
        .handle = made, .library = true, .local = true, .refused = CUDA_ERROR_INVALID_IMAGE, .described = true};
    *handle = made;
    return CUDA_SUCCESS;
}

CUresult tpc_image_load(const void *code, bool library, unsigned int count, const CUjit_option *options, void **values,
                        uint64_t *handle) {
    struct tpc_context *context = tpc_current();
    if (!library && !context) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    context = context ? context->home : NULL;
    bool linked = false;
    CUresult result = unwrap(&code, library, &linked);
    size_t size = result == CUDA_SUCCESS ? tp_image_size(code, SIZE_MAX / 2) : 0;
    TPC_TRY(result);
    if (!size) {
        return library ? load_nothing(handle) : CUDA_ERROR_INVALID_IMAGE;
    }
    uint64_t pairs[2 * TPC_JIT_OPTIONS];
    size_t used;
    struct tpc_log info = {0}, errors = {0};
    TPC_TRY(tpc_jit_gather(count, options, values, pairs, &used, &info, &errors));
    uint32_t kind = library ? TPG_LIBRARY : TPG_MODULE;
    struct tpc_image *image = calloc(1, sizeof *image);
    struct tpg_image_load_in in = {.owner = image ? tpc_mint_record(kind, image) : 0,
                                   .is_library = library,
                                   .options = pairs,
                                   .options_count = used};
    if (!in.owner) {
        free(image);
        return TPC_NO_HANDLES;
    }
    image->handle = in.owner;
    image->library = library;
    image->context = library ? NULL : context;
    image->life = context ? atomic_load(&context->life) : 0;
    struct tpg_image_load_out out;
    struct tp_reply reply;
    result = send_image(code, size, &in, &out, &reply);
    if (result == CUDA_SUCCESS) {
        tpc_log_fill(&info, out.info_log, out.info_log_size);
        tpc_log_fill(&errors, out.error_log, out.error_log_size);
        result = (CUresult)out.result;
    }
    image->refused = result == CUDA_SUCCESS ? (CUresult)out.refused : CUDA_SUCCESS;
    if ((result == CUDA_ERROR_NO_BINARY_FOR_GPU || image->refused == CUDA_ERROR_NO_BINARY_FOR_GPU) && linked) {
        tp_log(TP_WARN,
               "an image of relocatable code has no linked code for this GPU, and its parts are not linked here: "
               "build it for the GPU's architecture");
    }
    if (result == CUDA_SUCCESS && !tpc_image_fill(image, out.kernels, out.kernels_size)) {
        result = tpc_bad_reply(&reply);
    }
    tp_reply_free(&reply);
    if (result) {
        tpc_unmint(kind, in.owner);
        free(image);
        return result;
    }
    tpc_print_loaded(code, size);
    *handle = in.owner;
    return CUDA_SUCCESS;
}

CUresult tpc_cuLibraryLoadData(CUlibrary *library, const void *code, CUjit_option *jitOptions, void **jitOptionsValues,
                               unsigned int numJitOptions, CUlibraryOption *libraryOptions, void **libraryOptionValues,
                               unsigned int numLibraryOptions) {
    uint64_t handle;
    (void)libraryOptionValues; /* may be NULL for an option that is a flag: cuBLASLt passes it so */
    if (!library || !code || (numLibraryOptions && !libraryOptions)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    /* The only option that says more than "the bytes stay" is a table of host functions, which no GPU host could call. */
    for (unsigned int i = 0; i < numLibraryOptions; i++) {
        if (libraryOptions[i] != CU_LIBRARY_BINARY_IS_PRESERVED) {
            return CUDA_ERROR_NOT_SUPPORTED;
        }
    }
    TPC_TRY(tpc_image_load(code, true, numJitOptions, jitOptions, jitOptionsValues, &handle));
    *library = (CUlibrary)(uintptr_t)handle;
    return CUDA_SUCCESS;
}

/* An image in a file of the client's machine; one that is shorter than it says must not be read past its end. */
static CUresult read_image(const char *path, char **bytes) {
    size_t size;
    CUresult result = tpc_read_file(path, bytes, &size);
    return result == CUDA_SUCCESS && !tp_image_size(*bytes, size + 1) ? CUDA_ERROR_INVALID_IMAGE : result;
}

CUresult tpc_do_cuModuleLoad(CUmodule *module, const char *fname) {
    char *bytes;
    CUresult result = read_image(fname, &bytes);
    result = result ? result : tpc_cuModuleLoadDataEx(module, bytes, 0, NULL, NULL);
    free(bytes);
    return result;
}

CUresult tpc_do_cuLibraryLoadFromFile(CUlibrary *library, const char *fileName, CUjit_option *jitOptions,
                                      void **jitOptionsValues, unsigned int numJitOptions,
                                      CUlibraryOption *libraryOptions, void **libraryOptionValues,
                                      unsigned int numLibraryOptions) {
    char *bytes;
    CUresult result = read_image(fileName, &bytes);
    if (result == CUDA_SUCCESS) {
        result = tpc_cuLibraryLoadData(library, bytes, jitOptions, jitOptionsValues, numJitOptions, libraryOptions,
                                       libraryOptionValues, numLibraryOptions);
    }
    free(bytes);
    return result;
}

/* Ends with an image what came out of it: its kernels, their functions, its globals, the modules of a library. The session does the same,
 * so that these places are free on both sides. */
static void unload(struct tpc_image *image) {
    for (uint32_t i = 0; i < image->count && !image->of; i++) {
        struct tpc_kernel *kernel = atomic_load_explicit(&image->entries[i].kernel, memory_order_acquire);
        if (kernel) {
            for (const struct tpc_instance *f = kernel->instances; f; f = f->next) {
                tpc_unmint(TPG_FUNCTION, f->handle);
            }
            tpc_unmint(image->library ? TPG_KERNEL : TPG_FUNCTION, kernel->handle);
        }
    }
    for (const struct tpc_instance *g = image->globals; g; g = g->next) {
        struct tpc_range range;
        if (atomic_load(&g->context->life) ==
                g->life && /* else the address went with the context, and may be another's */
            tpc_range_remove(g->handle, &range) &&
            (range.flags & TPC_MADE_MASK) == TPC_MADE_MANAGED) {
            tpc_managed_variable_gone(&range);
        }
    }
    for (const struct tpc_instance *m = image->modules; m; m = m->next) {
        struct tpc_image *module = tpc_record(TPG_MODULE, m->handle);
        if (module) {
            unload(module);
        }
    }
    tpc_unmint(image->library ? TPG_LIBRARY : TPG_MODULE, image->handle);
}

CUresult tpc_cuModuleUnload(CUmodule hmod) {
    struct tpc_image *image = tpc_record(TPG_MODULE, (uint64_t)(uintptr_t)hmod);
    if (!image) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    if (image->of) {
        return CUDA_ERROR_NOT_PERMITTED;
    }
    TPC_CAPTURE_UNSAFE("cuModuleUnload");
    /* A module has ended with its context; only its place is given back. */
    bool ended = tpc_image_gone(image);
    CUresult result = tpc_post_module_unload("cuModuleUnload", image->handle);
    unload(image);
    return ended && result == CUDA_SUCCESS ? CUDA_ERROR_INVALID_HANDLE : result; /* (580.159.04, measured) */
}

CUresult tpc_cuLibraryUnload(CUlibrary library) {
    struct tpc_image *image = tpc_record(TPG_LIBRARY, (uint64_t)(uintptr_t)library);
    if (!image) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    TPC_CAPTURE_UNSAFE("cuLibraryUnload");
    CUresult result = image->local ? CUDA_SUCCESS : tpc_post_library_unload("cuLibraryUnload", image->handle);
    unload(image);
    return result;
}

/* ---- functions and kernels ---- */

/* NULL: none, or one whose context is gone; that of a library says so itself (580.159.04, measured: 400 and 709). */
static struct tpc_image *living(uint32_t kind, uint64_t handle) {
    struct tpc_image *image = tpc_record(kind, handle);
    return image && !image->of && tpc_image_gone(image) ? NULL : image;
}

CUresult tpc_kernel_by_name(uint32_t kind, uint64_t owner, const char *name, uint64_t *handle) {
    struct tpc_image *image = kind == TPG_MODULE ? living(kind, owner) : tpc_record(kind, owner);
    uint32_t index;
    CUresult result;
    if (!image) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    if (image->refused) {
        return image->refused;
    }
    if (!tpc_image_find(image, name, &index)) {
        return CUDA_ERROR_NOT_FOUND;
    }
    struct tpc_kernel *kernel = tpc_image_kernel(image, index, name, &result);
    if (kernel) {
        *handle = kernel->handle;
    }
    return result;
}

CUresult tpc_cuModuleGetFunction(CUfunction *hfunc, CUmodule hmod, const char *name) {
    uint64_t handle = 0;
    if (!living(TPG_MODULE, (uint64_t)(uintptr_t)hmod)) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    if (!hfunc || !name || !*name) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    TPC_TRY(tpc_kernel_by_name(TPG_MODULE, (uint64_t)(uintptr_t)hmod, name, &handle));
    *hfunc = (CUfunction)(uintptr_t)handle;
    return CUDA_SUCCESS;
}

CUresult tpc_kernel_count(uint32_t kind, uint64_t owner, unsigned int *count) {
    const struct tpc_image *image = living(kind, owner);
    *count = image ? image->count : *count;
    return image ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult tpc_kernel_list(uint32_t kind, uint64_t owner, uint64_t *out, unsigned int room) {
    struct tpc_image *image = living(kind, owner);
    if (!image) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    for (uint32_t i = 0; i < image->count && i < room; i++) {
        CUresult result;
        struct tpc_kernel *kernel = tpc_image_kernel(image, i, NULL, &result);
        if (!kernel) {
            return result;
        }
        out[i] = kernel->handle;
    }
    return CUDA_SUCCESS;
}

/* ---- globals ---- */

/* Under the image's lock: the program may use the address from now on. */
static CUresult note_global(struct tpc_image *image, struct tpc_context *context,
                            const struct tpg_global_get_out *out) {
    struct tpc_range range = {.start = out->address, .size = out->size, .context = context};
    if (tpc_range_at(out->address, &range)) {
        return CUDA_SUCCESS;
    }
    CUresult result = out->is_managed ? tpc_managed_variable(&range, out->block, out->block_size) : CUDA_SUCCESS;
    if (result != CUDA_SUCCESS || !tpc_instance_add(&image->globals, context, out->address)) {
        return result;
    }
    tpc_range_add(&range);
    return CUDA_SUCCESS;
}

CUresult tpc_global(const char *what, uint32_t kind, uint64_t owner, bool managed, const char *name,
                    CUdeviceptr *address, size_t *bytes) {
    struct tpc_image *image = tpc_record(kind, owner);
    if (!image || (kind == TPG_MODULE && tpc_image_gone(image))) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    if (!name || !*name || (!address && !bytes)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (image->refused) {
        return image->refused;
    }
    struct tpg_global_get_in in = {.owner = image->handle, .name = name, .managed = managed};
    struct tpg_global_get_out out;
    CUresult result = tpc_call_global_get(what, &in, &out);
    if (result == CUDA_SUCCESS) {
        tp_lock_take(&image->lock);
        result = note_global(image, kind == TPG_MODULE ? image->context : tpc_current(), &out);
        tp_lock_drop(&image->lock);
    }
    if (result == CUDA_SUCCESS && address) {
        *address = out.address;
    }
    if (result == CUDA_SUCCESS && bytes) {
        *bytes = (size_t)out.size;
    }
    return result;
}

/* cudart asks before it has a context. The driver needs none; here the first device's primary one lends itself, and stays: what the
 * variable holds is copied in it. */
CUresult tpc_cuLibraryGetManaged(CUdeviceptr *dptr, size_t *bytes, CUlibrary library, const char *name) {
    const uint64_t owner = (uint64_t)(uintptr_t)library;
    CUcontext lent;
    if (tpc_current()) {
        return tpc_global("cuLibraryGetManaged", TPG_LIBRARY, owner, true, name, dptr, bytes);
    }
    TPC_TRY(tpc_cuDevicePrimaryCtxRetain(&lent, 0));
    CUresult result = tpc_cuCtxPushCurrent_v2(lent);
    if (result == CUDA_SUCCESS) {
        result = tpc_global("cuLibraryGetManaged", TPG_LIBRARY, owner, true, name, dptr, bytes);
        tpc_cuCtxPopCurrent_v2(NULL);
    }
    return result;
}
