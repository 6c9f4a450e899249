/*
 * Modules and libraries: loading images, the list of their kernels, globals, and their end.
 *
 * Executor thread only. What came out of an image (functions, kernels, the module of a library) ends with it, here as in the
 * client, which then uses their places again. An image is hostile bytes that the driver reads without a length: its container must describe exactly
 * as many bytes as came before the driver sees it. What lies inside the container is the driver's to judge.
 */
#include "tpg_session.h"
#include "tpw_code.h"
#include "tpw_images.h"
#include "tpw_jit.h"
#include "tpw_memory.h"
#include "tpw_module.h"

#include <stdlib.h>
#include <tp_image.h>

struct global {
    struct global *next;
    uint64_t address;
};

/* Every function of a module or kernel of a library, in the driver's order. */
struct image {
    struct global *globals;  /* addresses that the client may copy to and from */
    struct tpw_taken *taken; /* NULL: nothing */
    uint32_t count;
    uint64_t natives[];
};

/* ---- the list of kernels ---- */

/* The driver knows layouts in a context only (201 without one), and ends the list with CUDA_ERROR_INVALID_VALUE: any other answer
 * is a failure. */
int32_t tpw_parameter(struct tpw_session *s, bool library, uint64_t native, size_t index, size_t *offset, size_t *size,
                      bool *more) {
    if (!s->entered_native) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    int32_t error = (int32_t)(library ? s->cuda.cuKernelGetParamInfo((CUkernel)(uintptr_t)native, index, offset, size)
                                      : s->cuda.cuFuncGetParamInfo((CUfunction)(uintptr_t)native, index, offset, size));
    *more = error == CUDA_SUCCESS;
    if (*more && (*offset > UINT16_MAX || *size > UINT16_MAX)) {
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    return error == CUDA_ERROR_INVALID_VALUE ? CUDA_SUCCESS : error;
}

int32_t tpw_kernel_text(struct tpw_session *s, bool library, uint64_t native, const char **name) {
    *name = NULL;
    int32_t error = (int32_t)(library ? s->cuda.cuKernelGetName(name, (CUkernel)(uintptr_t)native)
                                      : s->cuda.cuFuncGetName(name, (CUfunction)(uintptr_t)native));
    return !error && !*name ? CUDA_ERROR_UNKNOWN : error;
}

static int32_t describe(struct tpw_session *s, bool library, uint64_t native, bool layouts, struct tp_cursor *c) {
    const char *name;
    int32_t error = tpw_kernel_text(s, library, native, &name);
    if (error) {
        tp_log(TP_ERROR, "the driver does not name a kernel of an image: error %d", error);
        return error;
    }
    unsigned char *head = tp_take(c, sizeof(struct tp_kernel_entry));
    struct tp_kernel_entry entry = {.name_hash = tp_name_hash(name)};
    size_t offset, size;
    bool more = layouts;
    while (more) {
        error = tpw_parameter(s, library, native, entry.parameters, &offset, &size, &more);
        if (error) {
            tp_log(TP_ERROR, "the driver does not describe parameter %u of kernel %s: error %d", entry.parameters, name,
                   error);
            return error;
        }
        if (more) {
            tp_put_u16(c, (uint16_t)offset);
            tp_put_u16(c, (uint16_t)size);
            entry.parameters++;
            entry.parameter_bytes = tpw_larger(entry.parameter_bytes, offset + size);
        }
    }
    (void)tp_take(c, entry.parameters % 2 ? 4 : 0);
    if (head && !c->bad) {
        memcpy(head, &entry, sizeof entry);
    }
    return CUDA_SUCCESS;
}

/* Writes the list of tp_image.h into scratch memory. Complete, or an error. */
static int32_t describe_all(struct tpw_session *s, bool library, const struct image *image, bool layouts,
                            const void **list, size_t *size) {
    /* Half a frame holds the list of about ten thousand kernels. */
    int32_t error = CUDA_SUCCESS;
    unsigned char *memory = tpw_scratch(s, TP_FRAME_MAX / 2, 1, &error);
    if (!memory) {
        return error;
    }
    struct tp_cursor c = tp_cursor_make(memory, TP_FRAME_MAX / 2);
    tp_put_u32(&c, image->count);
    tp_put_u32(&c, layouts);
    for (unsigned i = 0; i < image->count && !error; i++) {
        error = describe(s, library, image->natives[i], layouts, &c);
    }
    if (!error && c.bad) {
        tp_log(TP_ERROR, "an image with %u kernels has too long a list of parameters", image->count);
        error = CUDA_ERROR_NOT_SUPPORTED;
    }
    *list = memory;
    *size = error ? 0 : (size_t)(c.at - memory);
    return error;
}

/* Every kernel of a library, or function of a module. */
static int32_t enumerate(struct tpw_session *s, bool library, uint64_t owner, struct image **out) {
    unsigned int count = 0;
    int32_t error = (int32_t)(library ? s->cuda.cuLibraryGetKernelCount(&count, (CUlibrary)(uintptr_t)owner)
                                      : s->cuda.cuModuleGetFunctionCount(&count, (CUmodule)(uintptr_t)owner));
    struct image *image = error ? NULL : calloc(1, sizeof *image + count * sizeof(uint64_t));
    if (!image) {
        return error ? error : CUDA_ERROR_OUT_OF_MEMORY;
    }
    image->count = count;
    if (count) {
        error = (int32_t)(library ? s->cuda.cuLibraryEnumerateKernels((CUkernel *)(void *)image->natives, count,
                                                                      (CUlibrary)(uintptr_t)owner)
                                  : s->cuda.cuModuleEnumerateFunctions((CUfunction *)(void *)image->natives, count,
                                                                       (CUmodule)(uintptr_t)owner));
    }
    if (error) {
        free(image);
        return error;
    }
    *out = image;
    return CUDA_SUCCESS;
}

static bool about_the_image(int32_t error) {
    return error == CUDA_ERROR_INVALID_IMAGE || error == CUDA_ERROR_NO_BINARY_FOR_GPU ||
           error == CUDA_ERROR_INVALID_PTX || error == CUDA_ERROR_UNSUPPORTED_PTX_VERSION ||
           error == CUDA_ERROR_INVALID_SOURCE || error == CUDA_ERROR_JIT_COMPILER_NOT_FOUND;
}

/* The driver loads libraries lazily: what is wrong with an image it says when it is asked for a kernel. Asked for one that no image has,
 * it says 500 of a good one. */
static int32_t enumerate_library(struct tpw_session *s, uint64_t library, struct image **out, int32_t *refused) {
    int32_t error = enumerate(s, true, library, out);
    CUkernel none = NULL;
    if (!error && !(*out)->count) {
        error = (int32_t)s->cuda.cuLibraryGetKernel(&none, (CUlibrary)(uintptr_t)library, "?");
        error = error == CUDA_ERROR_NOT_FOUND ? CUDA_SUCCESS : error;
    }
    if (about_the_image(error)) {
        *refused = error;
        *out = *out ? *out : calloc(1, sizeof **out);
        error = *out ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
    }
    return error;
}

/* A library that was loaded without a context, or whose kernels the driver would not describe as it was loaded (its code for this
 * device may come later, or never): now they are described, or the call that needs it fails. */
int32_t tpw_library_describe(struct tpw_session *s, const struct tp_frame *frame,
                             const struct tpg_library_describe_in *in, struct tpg_library_describe_out *out,
                             CUlibrary library) {
    return describe_all(s, true, tpw_object(s, TPG_LIBRARY, in->library)->record, true, &out->kernels,
                        &out->kernels_size);
}

int32_t tpw_image_upload(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_image_upload_in *in) {
    /* The bytes wait on the data connections until image_load takes them. */
    return CUDA_SUCCESS;
}

/* Both logs, in memory that lasts until the answer is written: behind the list of kernels, which has its own room. */
static int32_t put_log(struct tpw_session *s, const struct tpw_jit *jit, struct tpg_image_load_out *out) {
    size_t info = jit->info ? strnlen(jit->info, jit->info_size) : 0;
    size_t errors = jit->errors ? strnlen(jit->errors, jit->errors_size) : 0;
    int32_t error = 0;
    unsigned char *memory = (unsigned char *)(uintptr_t)out->kernels;
    if (!out->kernels_size) {
        memory = tpw_scratch(s, TP_FRAME_MAX / 2, 1, &error);
        TPW_TRY(error);
    }
    size_t room = TP_FRAME_MAX / 2 - out->kernels_size;
    info = info < room ? info : room;
    errors = errors < room - info ? errors : room - info;
    unsigned char *at = memory + out->kernels_size;
    if (info) {
        memcpy(at, jit->info, info);
    }
    if (errors) {
        memcpy(at + info, jit->errors, errors);
    }
    out->info_log = at;
    out->info_log_size = info;
    out->error_log = at + info;
    out->error_log_size = errors;
    return CUDA_SUCCESS;
}

int32_t tpw_image_load(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_image_load_in *in,
                       struct tpg_image_load_out *out) {
    struct tpw_jit jit = {.count = 0};
    struct image *image = NULL;
    struct tpw_taken *taken = NULL;
    unsigned char *body = NULL;
    bool library = in->is_library != 0;
    uint64_t native = 0;
    int32_t error = 0;
    bool judged = false; /* the driver, or its compiler, has looked at it */
    struct tpw_taking taking;
    if (in->hash_size && in->hash_size != TP_SHA256_SIZE) {
        tpw_violation(s, frame, "image_load with a hash that is no SHA-256");
        return TPW_LATER;
    }
    bool asked = in->hash_size && !in->transfer && !in->data_size;
    if (asked) {
        body = tpw_images_find(in->hash, in->size);
        if (!body) {
            out->missing = tpw_images_open() ? TP_IMAGE_MISSING : TP_IMAGE_NO_CACHE;
            return CUDA_SUCCESS;
        }
    } else {
        body = tpw_take_body(s, in->transfer, in->size, in->data, in->data_size, &error);
    }
    if (!error) {
        error = !body || tp_image_size(body, (size_t)in->size) == 0
                    ? CUDA_ERROR_INVALID_IMAGE
                    : tpw_jit_read(&jit, in->options, in->options_count);
    }
    if (!error) {
        judged = true;
        bool takes = tpw_taken_begin(s, &taking);
        error = library ? (int32_t)s->cuda.cuLibraryLoadData((CUlibrary *)(void *)&native, body, jit.options,
                                                             jit.values, jit.count, NULL, NULL, 0)
                        : (int32_t)s->cuda.cuModuleLoadDataEx((CUmodule *)(void *)&native, body, jit.count, jit.options,
                                                              jit.values);
        if (!error && library && takes) {
            tpw_library_load_now(s, native);
        }
        int32_t full = !error && takes ? tpw_taken_end(s, &taking, &taken) : CUDA_SUCCESS;
        if (full) {
            tpw_image_unload(s, library, native);
            error = full;
        }
    }
    if (!error) {
        error = library ? enumerate_library(s, native, &image, &out->refused) : enumerate(s, false, native, &image);
        bool layouts = !error && s->entered_native;
        int32_t undescribed =
            error ? error : describe_all(s, library, image, layouts, &out->kernels, &out->kernels_size);
        if (undescribed && layouts &&
            library) { /* as with the driver, a kernel that cannot be used fails when it is used */
            undescribed = describe_all(s, library, image, false, &out->kernels, &out->kernels_size);
        }
        error = undescribed;
        if (error) {
            tpw_image_unload(s, library, native);
        }
    }
    uint32_t kind = library ? TPG_LIBRARY : TPG_MODULE;
    error = tpw_made(s, frame, kind, in->owner, native, error);
    struct tpw_object *object = tpw_object(s, kind, in->owner);
    if (object && !error) {
        image->taken = taken;
        object->record = image;
        image = NULL;
        taken = NULL;
    }
    tpw_taken_give_back(s, &taken);
    free(image);
    /* Only what the driver accepted is kept: bytes that no other client could load would only take room. */
    if (in->hash_size && !asked && !error) {
        tpw_images_keep(s, body, (size_t)in->size, in->hash);
    } else {
        free(body);
    }
    /* The logs are wanted most of all when the load failed: then they are the answer, with the result beside them. */
    out->result = error;
    int32_t unkept = put_log(s, &jit, out);
    tpw_jit_free(&jit);
    return judged && !unkept ? CUDA_SUCCESS : error;
}

/* Remembers that the client was told of a global; false without memory. */
static bool told(struct image *image, uint64_t address) {
    if (TP_FIND(image->globals, it->address == address)) {
        return true;
    }
    struct global *global = malloc(sizeof *global);
    if (global) {
        *global = (struct global){.next = image->globals, .address = address};
        image->globals = global;
    }
    return global != NULL;
}

/* The addresses of its globals are the client's no longer. Those of an image whose context has ended went with that. */
static void retract(struct tpw_session *s, const struct tpw_object *object) {
    struct image *image = object->record;
    while (image && image->globals) {
        struct global *global = image->globals;
        image->globals = global->next;
        if (!object->error) {
            tpw_memory_retract(s, global->address);
        }
        free(global);
    }
}

/* Ends the handles of everything that came out of a module or library. */
static void end_owned(struct tpw_session *s, uint64_t owner) {
    static const uint32_t kinds[] = {TPG_MODULE, TPG_FUNCTION, TPG_KERNEL};
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        struct tpw_object *object;
        for (uint32_t at = 0; (object = tpw_next_object(s, kinds[k], &at));) {
            if (object->owner != owner) {
                continue;
            }
            uint64_t handle = tp_handle_make(kinds[k], object->id);
            if (kinds[k] == TPG_MODULE) {
                end_owned(s, handle);
                retract(s, object);
            }
            tpw_forget(s, kinds[k], handle);
        }
    }
}

void tpw_owned_by(struct tpw_session *s, uint32_t kind, uint64_t handle, uint64_t owner) {
    struct tpw_object *object = tpw_object(s, kind, handle);
    if (object) {
        object->owner = owner;
    }
}

/* What is charged for an image goes to whoever ends it: the last node of a graph that points at it, or the caller. */
static struct tpw_taken *hand_over(struct tpw_object *object) {
    struct image *image = object->record;
    struct tpw_taken *taken = image ? image->taken : NULL;
    if (!taken) {
        return NULL;
    }
    image->taken = NULL;
    if (object->kept && object->kept->users) {
        object->kept->taken = taken;
        return NULL;
    }
    return taken;
}

/* Modules end with their context. */
static void context_gone(struct tpw_session *s, const struct tpw_gone *gone) {
    struct tpw_object *object;
    for (uint32_t at = 0; (object = tpw_next_object(s, TPG_MODULE, &at));) {
        struct image *image = object->record;
        if (object->context == gone->id && image) {
            tpw_taken_give_back(s, &image->taken);
        }
    }
}
TP_REGISTER(tpw_context_gone, context_gone);

int32_t tpw_module_unload(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_module_unload_in *in) {
    struct tpw_object *object = tpw_object(s, TPG_MODULE, in->module);
    if (!object) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    if (object->owner) {
        return CUDA_ERROR_NOT_PERMITTED; /* it is its library's */
    }
    struct tp_frame inside = *frame; /* the thread's current context may be another, or none */
    inside.context = object->context;
    uint64_t native = object->native;
    bool there = !object->error && tpw_enter(s, &inside) == CUDA_SUCCESS;
    end_owned(s, in->module);
    retract(s, object);
    struct tpw_taken *taken = hand_over(object);
    there = !tpw_kept_on(object) && there; /* else it is unloaded when nothing points at it any more */
    tpw_forget(s, TPG_MODULE, in->module);
    if (!there) {
        free(taken); /* given back with its context */
        return CUDA_SUCCESS;
    }
    return tpw_image_unload_later(s, native, inside.context, taken);
}

int32_t tpw_library_unload(struct tpw_session *s, const struct tp_frame *frame,
                           const struct tpg_library_unload_in *in) {
    int32_t error = 0;
    uint64_t native = tpw_native(s, frame, TPG_LIBRARY, in->library, false, &error);
    struct tpw_object *object = tpw_object(s, TPG_LIBRARY, in->library);
    struct tpw_taken *taken = object ? hand_over(object) : NULL;
    bool kept = object && tpw_kept_on(object);
    end_owned(s, in->library);
    if (!error) {
        retract(s, object);
    }
    tpw_forget(s, TPG_LIBRARY, in->library);
    if (error || kept) {
        tpw_taken_give_back(s, &taken);
        return error;
    }
    return tpw_image_unload_later(s, native, 0, taken);
}

/* A library was perhaps loaded in one more context. Where that passes the limit it is unloaded, and every use answers that. */
int32_t tpw_takes_more(struct tpw_session *s, const struct tpw_taking *taking, uint64_t library) {
    struct tpw_object *object = tpw_object(s, TPG_LIBRARY, library);
    struct image *image = object ? object->record : NULL;
    int32_t error = image ? tpw_taken_end(s, taking, &image->taken) : CUDA_SUCCESS;
    if (!error) {
        return CUDA_SUCCESS;
    }
    const uint64_t native = object->native;
    struct tpw_taken *taken = hand_over(object);
    const bool kept = tpw_kept_on(object);
    end_owned(s, library);
    retract(s, object);
    image->count = 0;
    object->native = 0;
    object->error = error;
    if (!kept && tpw_image_unload_later(s, native, 0, taken)) {
        tp_log(TP_ERROR,
               "a library that passed the memory limit could not be unloaded: it stays until the session ends");
    }
    return error;
}

/* ---- what comes out of it ---- */

uint64_t tpw_image_at(struct tpw_session *s, uint32_t kind, uint64_t owner, uint32_t index, int32_t *error) {
    struct tpw_object *object = tpw_object(s, kind, owner);
    struct image *image = object ? object->record : NULL;
    if (!image || index >= image->count) {
        *error = object && object->error ? object->error : CUDA_ERROR_INVALID_HANDLE;
        return 0;
    }
    return image->natives[index];
}

/* A module is its context's, and so is all that comes out of it, whichever context the thread has that asks, or none. */
struct tp_frame tpw_of_owner(struct tpw_session *s, const struct tp_frame *frame, uint32_t kind, uint64_t owner) {
    const struct tpw_object *object = tpw_object(s, kind, owner);
    struct tp_frame inside = *frame;
    inside.context = object && kind == TPG_MODULE ? object->context : frame->context;
    return inside;
}

int32_t tpw_library_module(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_library_module_in *in,
                           CUlibrary library) {
    CUmodule native = NULL;
    struct tpw_taking taking;
    const bool takes = tpw_taken_begin(s, &taking);
    int32_t error = (int32_t)s->cuda.cuLibraryGetModule(&native, library);
    if (!error && takes) {
        error = tpw_takes_more(s, &taking, in->library);
    }
    struct image *image =
        error ? NULL : calloc(1, sizeof *image); /* its functions are those of the library's kernels */
    error = error || image ? error : CUDA_ERROR_OUT_OF_MEMORY;
    error = tpw_made(s, frame, TPG_MODULE, in->module, (uint64_t)(uintptr_t)native, error);
    tpw_owned_by(s, TPG_MODULE, in->module, in->library);
    struct tpw_object *object = tpw_object(s, TPG_MODULE, in->module);
    if (object && !error) {
        object->record = image;
    } else {
        free(image);
    }
    return error;
}

/* Whether the client has to have pages at the address, and at which others beside it. */
static int32_t tell_managed(struct tpw_session *s, uint64_t address, struct tpg_global_get_out *out) {
    unsigned int managed = 0;
    CUdeviceptr block = 0;
    size_t size = 0;
    CUresult error = s->cuda.cuPointerGetAttribute(&managed, CU_POINTER_ATTRIBUTE_IS_MANAGED, address);
    if (error == CUDA_SUCCESS && managed) {
        error = s->cuda.cuPointerGetAttribute(&block, CU_POINTER_ATTRIBUTE_MAPPING_BASE_ADDR, address);
        error = error ? error : s->cuda.cuPointerGetAttribute(&size, CU_POINTER_ATTRIBUTE_MAPPING_SIZE, address);
    }
    out->is_managed = managed != 0;
    out->block = block;
    out->block_size = size;
    return (int32_t)error;
}

static CUresult find_global(struct tpw_session *s, uint64_t owner, const struct tpg_global_get_in *in,
                            CUdeviceptr *address, size_t *size) {
    if (!tp_handle_is(in->owner, TPG_LIBRARY)) {
        return s->cuda.cuModuleGetGlobal_v2(address, size, (CUmodule)(uintptr_t)owner, in->name);
    }
    const CUlibrary library = (CUlibrary)(uintptr_t)owner;
    return in->managed ? s->cuda.cuLibraryGetManaged(address, size, library, in->name)
                       : s->cuda.cuLibraryGetGlobal(address, size, library, in->name);
}

int32_t tpw_global_get(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_global_get_in *in,
                       struct tpg_global_get_out *out) {
    bool library = tp_handle_is(in->owner, TPG_LIBRARY);
    int32_t error = 0;
    uint32_t kind = library ? TPG_LIBRARY : TPG_MODULE;
    uint64_t native = tpw_native(s, frame, kind, in->owner, false, &error);
    struct tp_frame inside = tpw_of_owner(s, frame, kind, in->owner);
    CUdeviceptr address = 0;
    size_t size = 0;
    error = error ? error : tpw_enter(s, &inside);
    struct tpw_taking taking;
    const bool takes = !error && library && tpw_taken_begin(s, &taking);
    error = error ? error : (int32_t)find_global(s, native, in, &address, &size);
    if (!error && takes) {
        error = tpw_takes_more(s, &taking, in->owner);
    }
    error = error ? error : tell_managed(s, address, out);
    struct image *image = error ? NULL : tpw_object(s, library ? TPG_LIBRARY : TPG_MODULE, in->owner)->record;
    if (!error && !(image && told(image, address))) {
        error = CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (!error) {
        tpw_memory_publish(s, address, size);
        out->address = address;
        out->size = size;
    }
    return error;
}
