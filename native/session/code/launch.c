/*
 * Launches: the parameter block goes from the frame to the driver without a copy.
 *
 * Executor thread only. The driver reads the block by the kernel's own layout, so the bytes that came must be exactly that
 * many; attributes with handles inside are translated, those with pointers of the host refused.
 */
#include "tpg_session.h"
#include "tpw_code.h"

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

/* What is launched, and how the driver is told of its parameters. */
struct launching {
    CUfunction function;
    const struct tpw_kernel *kernel;
    const unsigned char *params;
    size_t bytes;
    void *extra[5];
    void **told; /* NULL for a function without parameters */
};

static int32_t begin(struct tpw_session *s, uint64_t function, const void *params, size_t size,
                     const struct tpw_stream *stream, struct launching *l) {
    int32_t error = CUDA_SUCCESS;
    struct tpw_object *object = tpw_launchable(s, function, size, &error);
    if (!error && TP_UNLIKELY(s->captures)) {
        error = hold(s, stream, object);
    }
    TPW_TRY(error);
    *l = (struct launching){.function = (CUfunction)(uintptr_t)object->native,
                            .kernel = object->record,
                            .params = params,
                            .bytes = size,
                            .extra = {CU_LAUNCH_PARAM_BUFFER_POINTER, (void *)(uintptr_t)params,
                                      CU_LAUNCH_PARAM_BUFFER_SIZE, &l->bytes, CU_LAUNCH_PARAM_END}};
    l->told = size ? l->extra : NULL;
    return CUDA_SUCCESS;
}

/* A stream that captures takes no cooperative launch whose parameters are one block (580.159.04, asked): each by itself. */
static void **one_by_one(struct tpw_session *s, const struct launching *l, int32_t *error) {
    void **each = tpw_scratch(s, l->kernel->parameters, sizeof *each, error);
    for (uint32_t i = 0; !*error && i < l->kernel->parameters; i++) {
        each[i] = (void *)(uintptr_t)(l->params + l->kernel->layout[i].offset);
    }
    return each;
}

static int32_t launch_with(struct tpw_session *s, const struct launching *l, const struct tpg_shape *shape,
                           const struct tpw_stream *stream, const CUlaunchAttribute *attributes, size_t count) {
    int32_t error = CUDA_SUCCESS;
    void **each = s->captures && l->told ? one_by_one(s, l, &error) : NULL;
    TPW_TRY(error);
    CUlaunchConfig config = {.gridDimX = shape->grid_x,
                             .gridDimY = shape->grid_y,
                             .gridDimZ = shape->grid_z,
                             .blockDimX = shape->block_x,
                             .blockDimY = shape->block_y,
                             .blockDimZ = shape->block_z,
                             .sharedMemBytes = shape->shared_bytes,
                             .hStream = stream->native,
                             .attrs = (CUlaunchAttribute *)(uintptr_t)attributes,
                             .numAttrs = (unsigned)count};
    return (int32_t)s->cuda.cuLaunchKernelEx(&config, l->function, each, each ? NULL : l->told);
}

int32_t tpw_launch(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_launch_in *in,
                   struct tpw_stream *stream) {
    static const CUlaunchAttribute cooperative = {.id = CU_LAUNCH_ATTRIBUTE_COOPERATIVE, .value = {.cooperative = 1}};
    const struct tpg_shape *shape = &in->shape;
    struct launching l;
    TPW_TRY(begin(s, in->function, in->params, in->params_size, stream, &l));
    if (TP_UNLIKELY(in->cooperative)) {
        return launch_with(s, &l, shape, stream, &cooperative, 1);
    }
    return (int32_t)s->cuda.cuLaunchKernel(l.function, shape->grid_x, shape->grid_y, shape->grid_z, shape->block_x,
                                           shape->block_y, shape->block_z, shape->shared_bytes, stream->native, NULL,
                                           l.told);
}

int32_t tpw_launch_ex(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_launch_ex_in *in,
                      struct tpw_stream *stream, const CUlaunchAttribute *attributes, size_t count) {
    struct launching l;
    TPW_TRY(begin(s, in->function, in->params, in->params_size, stream, &l));
    return launch_with(s, &l, &in->shape, stream, attributes, count);
}
