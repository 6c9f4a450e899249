/*
 * Launches: the parameter block goes from the frame to the driver without a copy.
 *
 * Executor thread only. The driver reads the block by the kernel's own layout, so the bytes that came must be exactly that
 * many; attributes with handles inside are translated, those with pointers of the host refused.
 */
#include "tpg_session.h"
#include "tpw_code.h"

#include <stdlib.h>

/* The driver's description of a launch, from the decoded arguments of any of the three operations that have a shape. */
#define CONFIG(in, stream_, list, count)                                                                               \
    {.gridDimX = (in)->grid_x,                                                                                         \
     .gridDimY = (in)->grid_y,                                                                                         \
     .gridDimZ = (in)->grid_z,                                                                                         \
     .blockDimX = (in)->block_x,                                                                                       \
     .blockDimY = (in)->block_y,                                                                                       \
     .blockDimZ = (in)->block_z,                                                                                       \
     .sharedMemBytes = (in)->shared_bytes,                                                                             \
     .hStream = (stream_),                                                                                             \
     .attrs = (list),                                                                                                  \
     .numAttrs = (count)}

struct tpw_object *tpw_launchable(struct tpw_session *s, uint64_t function, size_t bytes, int32_t *error) {
    struct tpw_object *object = *error ? NULL : tpw_object(s, TPG_FUNCTION, function);
    if (!object) {
        *error = *error ? *error : CUDA_ERROR_INVALID_HANDLE;
        return NULL;
    }
    if (object->error) {
        *error = object->error;
        return NULL;
    }
    const struct tpw_kernel *kernel = tpw_kernel_described(s, object, error);
    if (kernel && kernel->parameter_bytes != bytes) {
        *error = CUDA_ERROR_INVALID_VALUE;
    }
    if (*error) {
        return NULL;
    }
    ((struct tpw_kernel *)object->record)->launched = true;
    return object;
}

bool tpw_needs_room(struct tpw_session *s, uint64_t function) {
    const struct tpw_object *object = tpw_object(s, TPG_FUNCTION, function);
    const struct tpw_kernel *kernel = object ? object->record : NULL;
    int local = 0;
    if (!kernel || kernel->launched) {
        return false;
    }
    int32_t error = (int32_t)s->cuda.cuFuncGetAttribute(&local, CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES,
                                                        (CUfunction)(uintptr_t)object->native);
    return error || local; /* with an error the launch says what it is */
}

uint64_t tpw_image_of(struct tpw_session *s, const struct tpw_object *function) {
    const struct tpw_object *module = tpw_object(s, TPG_MODULE, function->owner);
    return module && module->owner ? module->owner : function->owner;
}

/* A launch that is captured becomes a node, which points at the function. */
static int32_t hold(struct tpw_session *s, const struct tpw_stream *stream, const struct tpw_object *function) {
    uint64_t image = tpw_image_of(s, function);
    int32_t error = tpw_capture_keeps(s, stream, tp_handle_type(image), image);
    if (!error && function->kind == TPG_FUNCTION) {
        error = tpw_capture_keeps(s, stream, TPG_CONTEXT, tp_handle_make(TPG_CONTEXT, function->context));
    }
    return error;
}

int32_t tpw_launch(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_launch_in *in,
                   struct tpw_stream *stream) {
    int32_t error = 0;
    struct tpw_object *object = tpw_launchable(s, in->function, in->params_size, &error);
    if (!error && TP_UNLIKELY(s->captures)) {
        error = hold(s, stream, object);
    }
    if (error) {
        return error;
    }
    size_t bytes = in->params_size;
    void *extra[] = {CU_LAUNCH_PARAM_BUFFER_POINTER, (void *)(uintptr_t)in->params, CU_LAUNCH_PARAM_BUFFER_SIZE, &bytes,
                     CU_LAUNCH_PARAM_END};
    CUfunction function = (CUfunction)(uintptr_t)object->native;
    if (TP_LIKELY(!in->cooperative)) {
        return (int32_t)s->cuda.cuLaunchKernel(function, in->grid_x, in->grid_y, in->grid_z, in->block_x, in->block_y,
                                               in->block_z, in->shared_bytes, stream->native, NULL,
                                               bytes ? extra : NULL);
    }
    CUlaunchAttribute cooperative = {.id = CU_LAUNCH_ATTRIBUTE_COOPERATIVE, .value = {.cooperative = 1}};
    CUlaunchConfig config = CONFIG(in, stream->native, &cooperative, 1);
    return (int32_t)s->cuda.cuLaunchKernelEx(&config, function, NULL, bytes ? extra : NULL);
}

int32_t tpw_launch_ex(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_launch_ex_in *in,
                      struct tpw_stream *stream, const CUlaunchAttribute *attributes, size_t count) {
    int32_t error = 0;
    struct tpw_object *object = tpw_launchable(s, in->function, in->params_size, &error);
    if (!error && TP_UNLIKELY(s->captures)) {
        error = hold(s, stream, object);
    }
    if (error) {
        return error;
    }
    size_t bytes = in->params_size;
    void *extra[] = {CU_LAUNCH_PARAM_BUFFER_POINTER, (void *)(uintptr_t)in->params, CU_LAUNCH_PARAM_BUFFER_SIZE, &bytes,
                     CU_LAUNCH_PARAM_END};
    CUlaunchConfig config = CONFIG(in, stream->native, (CUlaunchAttribute *)(uintptr_t)attributes, (unsigned)count);
    return (int32_t)s->cuda.cuLaunchKernelEx(&config, (CUfunction)(uintptr_t)object->native, NULL,
                                             bytes ? extra : NULL);
}
