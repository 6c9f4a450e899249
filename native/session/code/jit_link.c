/*
 * Linking at run time: the driver's linker, fed with what the client adds.
 *
 * Executor thread only. The linker keeps pointers to its log buffers until it is destroyed, so they live in the object's
 * record. Inputs are hostile bytes: a container must describe exactly as many bytes as came, as for modules.
 */
#include "tpg_session.h"
#include "tpw_jit.h"

#include <stdlib.h>
#include <tp_image.h>

int32_t tpw_link_create(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_link_create_in *in) {
    struct tpw_jit *jit = calloc(1, sizeof *jit);
    CUlinkState native = NULL;
    int32_t error = jit ? tpw_jit_read(jit, in->options, in->options_count) : CUDA_ERROR_OUT_OF_MEMORY;
    error = error ? error : (int32_t)s->cuda.cuLinkCreate_v2(jit->count, jit->options, jit->values, &native);
    error = tpw_made(s, frame, TPG_LINK, in->link, (uint64_t)(uintptr_t)native, error);
    struct tpw_object *object = tpw_object(s, TPG_LINK, in->link);
    if (object && !error) {
        object->record = jit;
    } else if (jit) {
        tpw_jit_free(jit);
        free(jit);
    }
    return error;
}

static bool readable(CUjitInputType type, const unsigned char *data, size_t size) {
    switch (type) {
    case CU_JIT_INPUT_PTX:
        return size && data[size - 1] == 0;
    case CU_JIT_INPUT_CUBIN:
    case CU_JIT_INPUT_FATBINARY:
        return tp_image_size(data, size) != 0;
    case CU_JIT_INPUT_OBJECT:
    case CU_JIT_INPUT_LIBRARY:
        return size != 0;
    default:
        return false;
    }
}

static void tell_logs(const struct tpw_jit *jit, const void **info, size_t *info_size, const void **errors,
                      size_t *errors_size) {
    *info = jit->info;
    *info_size = jit->info ? strnlen(jit->info, jit->info_size) : 0;
    *errors = jit->errors;
    *errors_size = jit->errors ? strnlen(jit->errors, jit->errors_size) : 0;
}

int32_t tpw_link_add(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_link_add_in *in,
                     struct tpg_link_add_out *out) {
    int32_t error = 0;
    struct tpw_jit jit = {.count = 0};
    unsigned char *body = tpw_take_body(s, in->transfer, in->size, in->data, in->data_size, &error);
    CUlinkState native = (CUlinkState)(uintptr_t)tpw_native(s, frame, TPG_LINK, in->link, false, &error);
    struct tpw_jit *linker = tpw_record(s, TPG_LINK, in->link);
    if (!error && (!body || !linker)) {
        error = CUDA_ERROR_INVALID_VALUE;
    }
    error = error ? error : tpw_jit_read(&jit, in->options, in->options_count);
    if (!error) {
        linker->image_size = 0; /* what is linked next may lie elsewhere */
        out->status = readable((CUjitInputType)in->type, body, (size_t)in->size)
                          ? (int)s->cuda.cuLinkAddData_v2(native, (CUjitInputType)in->type, body, (size_t)in->size,
                                                          in->name, jit.count, jit.options, jit.values)
                          : (int)CUDA_ERROR_INVALID_IMAGE;
        tell_logs(linker, &out->info_log, &out->info_log_size, &out->error_log, &out->error_log_size);
    }
    free(body);
    tpw_jit_free(&jit);
    return error;
}

/* As much of the image from `from` on as an answer has room for. */
static size_t piece(const struct tpw_jit *linker, uint64_t from, const void **image) {
    size_t left = linker->image_size - (size_t)from;
    *image = linker->image + from;
    return left < TP_FRAME_MAX / 2 ? left : TP_FRAME_MAX / 2;
}

int32_t tpw_link_complete(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_link_complete_in *in,
                          struct tpg_link_complete_out *out, CUlinkState link) {
    void *image = NULL;
    struct tpw_jit *linker = tpw_object(s, TPG_LINK, in->link)->record;
    if (!linker) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    linker->image_size = 0;
    size_t size = 0;
    out->status = (int)s->cuda.cuLinkComplete(link, &image, &size);
    tell_logs(linker, &out->info_log, &out->info_log_size, &out->error_log, &out->error_log_size);
    if (!out->status) {
        linker->image = image;
        out->size = linker->image_size = size;
        out->image_size = piece(linker, 0, &out->image);
    }
    return CUDA_SUCCESS;
}

int32_t tpw_link_image(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_link_image_in *in,
                       struct tpg_link_image_out *out, CUlinkState link) {
    const struct tpw_jit *linker = tpw_object(s, TPG_LINK, in->link)->record;
    if (!linker || in->from >= linker->image_size) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    out->image_size = piece(linker, in->from, &out->image);
    return CUDA_SUCCESS;
}

/* The place is free afterwards, whatever the driver said. A linker whose context has ended went with that. */
int32_t tpw_link_destroy(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_link_destroy_in *in) {
    struct tpw_object *object = tpw_object(s, TPG_LINK, in->link);
    if (!object) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    int32_t error =
        object->error ? CUDA_SUCCESS : (int32_t)s->cuda.cuLinkDestroy((CUlinkState)(uintptr_t)object->native);
    if (object->record) {
        tpw_jit_free(object->record);
    }
    tpw_forget(s, TPG_LINK, in->link);
    return error;
}
