/*
 * Functions and kernels: what they take, their names and attributes.
 *
 * Executor thread only. They belong to the image that they came out of (module.c) and end with it. How many bytes of parameters
 * one takes is the driver's word, never the client's.
 */
#include "tpg_session.h"
#include "tpw_module.h"

#include <stdlib.h>

static int32_t make_kernel(struct tpw_session *s, const struct tp_frame *frame, uint32_t kind, uint64_t handle,
                           uint64_t native, uint64_t owner, int32_t error) {
    struct tpw_kernel *kernel = error ? NULL : calloc(1, sizeof *kernel);
    if (!error && !kernel) {
        error = CUDA_ERROR_OUT_OF_MEMORY;
    }
    error = tpw_made(s, frame, kind, handle, native, error);
    struct tpw_object *object = tpw_object(s, kind, handle);
    tpw_owned_by(s, kind, handle, owner);
    if (object && !error) {
        object->record = kernel;
    } else {
        free(kernel);
    }
    return error;
}

const struct tpw_kernel *tpw_kernel_described(struct tpw_session *s, struct tpw_object *object, int32_t *error) {
    struct tpw_kernel *kernel = object->record;
    if (*error || !kernel) {
        *error = *error ? *error : (int32_t)CUDA_ERROR_INVALID_HANDLE;
        return NULL;
    }
    if (TP_LIKELY(kernel->described)) {
        return kernel;
    }
    uint32_t count = 0;
    for (bool more = true; more; count++) {
        size_t offset, size;
        *error = tpw_parameter(s, object->kind == TPG_KERNEL, object->native, count, &offset, &size, &more);
        kernel = *error ? NULL : realloc(object->record, sizeof *kernel + (count + 1) * sizeof *kernel->layout);
        if (!kernel) {
            *error = *error ? *error : (int32_t)CUDA_ERROR_OUT_OF_MEMORY;
            tp_log(TP_ERROR, "parameter %u of a kernel is not described: error %d", count, *error);
            return NULL;
        }
        object->record = kernel;
        if (more) {
            kernel->layout[count].offset = (uint32_t)offset;
            kernel->layout[count].size = (uint32_t)size;
            kernel->parameter_bytes = tpw_larger(kernel->parameter_bytes, offset + size);
        }
    }
    kernel->parameters = count - 1;
    kernel->described = true;
    return kernel;
}

int32_t tpw_function_get(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_function_get_in *in,
                         CUmodule module) {
    int32_t error = 0;
    uint64_t listed = tpw_image_at(s, TPG_MODULE, in->module, in->index, &error);
    struct tp_frame inside = tpw_of_owner(s, frame, TPG_MODULE, in->module);
    /* A listed function need not be loaded, and some calls refuse one that is not (error 913, seen on 580.159); asking for it
     * by name gives one that loads itself. */
    const char *name = NULL;
    CUfunction native = NULL;
    error = error ? error : tpw_kernel_text(s, false, listed, &name);
    error = error ? error : (int32_t)s->cuda.cuModuleGetFunction(&native, module, name);
    return make_kernel(s, &inside, TPG_FUNCTION, in->function, (uint64_t)(uintptr_t)native, in->module, error);
}

int32_t tpw_kernel_get(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_kernel_get_in *in) {
    int32_t error = 0;
    uint64_t native = tpw_image_at(s, TPG_LIBRARY, in->library, in->index, &error);
    return make_kernel(s, frame, TPG_KERNEL, in->kernel, native, in->library, error);
}

int32_t tpw_kernel_function(struct tpw_session *s, const struct tp_frame *frame,
                            const struct tpg_kernel_function_in *in, CUkernel kernel) {
    CUfunction native = NULL;
    struct tpw_taking taking;
    const struct tpw_object *object = tpw_object(s, TPG_KERNEL, in->kernel);
    const bool takes = tpw_taken_begin(s, &taking);
    int32_t error = (int32_t)s->cuda.cuKernelGetFunction(&native, kernel);
    if (!error && takes) {
        error = tpw_takes_more(s, &taking, object ? object->owner : 0);
    }
    return make_kernel(s, frame, TPG_FUNCTION, in->function, (uint64_t)(uintptr_t)native, object ? object->owner : 0,
                       error);
}

int32_t tpw_kernel_name(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_kernel_name_in *in,
                        struct tpg_kernel_name_out *out, CUfunction function) {
    const char *name = NULL;
    TPW_TRY(tpw_kernel_text(s, tp_handle_is(in->function, TPG_KERNEL), (uint64_t)(uintptr_t)function, &name));
    out->name = name;
    out->name_size = strlen(name) + 1;
    return CUDA_SUCCESS;
}

int32_t tpw_function_attributes(struct tpw_session *s, const struct tp_frame *frame,
                                const struct tpg_function_attributes_in *in, struct tpg_function_attributes_out *out,
                                CUfunction function) {
    int32_t error = 0;
    int *values = tpw_scratch(s, CU_FUNC_ATTRIBUTE_MAX, sizeof *values, &error);
    for (int i = 0; i < CU_FUNC_ATTRIBUTE_MAX && !error; i++) {
        error = (int32_t)(tp_handle_is(in->function, TPG_KERNEL)
                              ? s->cuda.cuKernelGetAttribute(&values[i], (CUfunction_attribute)i,
                                                             (CUkernel)(void *)function, s->devices[in->device])
                              : s->cuda.cuFuncGetAttribute(&values[i], (CUfunction_attribute)i, function));
    }
    out->values = values;
    out->values_count = CU_FUNC_ATTRIBUTE_MAX;
    return error;
}

int32_t tpw_function_attribute_set(struct tpw_session *s, const struct tp_frame *frame,
                                   const struct tpg_function_attribute_set_in *in, CUfunction function) {
    CUfunction_attribute attribute = (CUfunction_attribute)in->attribute;
    return (int32_t)(tp_handle_is(in->function, TPG_KERNEL)
                         ? s->cuda.cuKernelSetAttribute(attribute, in->value, (CUkernel)(void *)function,
                                                        s->devices[in->device])
                         : s->cuda.cuFuncSetAttribute(function, attribute, in->value));
}

int32_t tpw_function_config(struct tpw_session *s, const struct tp_frame *frame,
                            const struct tpg_function_config_in *in, CUfunction function) {
    if (tp_handle_is(in->function, TPG_KERNEL)) {
        return (int32_t)s->cuda.cuKernelSetCacheConfig((CUkernel)(void *)function, (CUfunc_cache)in->value,
                                                       s->devices[in->device]);
    }
    return (int32_t)(in->what ? s->cuda.cuFuncSetSharedMemConfig(function, (CUsharedconfig)in->value)
                              : s->cuda.cuFuncSetCacheConfig(function, (CUfunc_cache)in->value));
}
