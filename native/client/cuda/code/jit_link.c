/*
 * Linking at run time in the client: the program's log buffers, files of its machine, and the image that comes back.
 *
 * A link state belongs to the threads that use it, as in CUDA; its record is written by them. The image stays valid until
 * cuLinkDestroy, so the record keeps the copy.
 */
#include "tpc.h"
#include "tpc_jit.h"
#include "tpg_cuda_send.h"

#include <stdlib.h>

struct link {
    struct tpc_log info, errors;
    void *image;
};

CUresult tpc_do_cuLinkCreate_v2(unsigned int numOptions, CUjit_option *options, void **optionValues,
                                CUlinkState *stateOut) {
    uint64_t pairs[2 * TPC_JIT_OPTIONS];
    size_t used;
    struct link *link = calloc(1, sizeof *link);
    if (!link) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    CUresult result = tpc_jit_gather(numOptions, options, optionValues, pairs, &used, &link->info, &link->errors);
    if (result != CUDA_SUCCESS) {
        free(link);
        return result;
    }
    struct tpg_link_create_in in = {.link = tpc_mint_record(TPG_LINK, link), .options = pairs, .options_count = used};
    result = tpc_call_link_create("cuLinkCreate", &in);
    if (result != CUDA_SUCCESS) {
        free(link);
        return result;
    }
    *stateOut = (CUlinkState)(uintptr_t)in.link;
    return CUDA_SUCCESS;
}

CUresult tpc_do_cuLinkAddData_v2(CUlinkState state, CUjitInputType type, void *data, size_t size, const char *name,
                                 unsigned int numOptions, CUjit_option *options, void **optionValues) {
    struct link *link = tpc_record(TPG_LINK, (uint64_t)(uintptr_t)state);
    if (!link) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    uint64_t pairs[2 * TPC_JIT_OPTIONS];
    size_t used;
    struct tpc_log unused = {0};
    CUresult result = tpc_jit_gather(numOptions, options, optionValues, pairs, &used, &unused, &unused);
    /* Program text need not end with a NUL when its size is given; the worker's linker wants one. */
    char *text = NULL;
    if (result == CUDA_SUCCESS && type == CU_JIT_INPUT_PTX && ((const char *)data)[size - 1] != 0) {
        text = malloc(size + 1);
        if (!text) {
            return CUDA_ERROR_OUT_OF_MEMORY;
        }
        memcpy(text, data, size);
        text[size++] = 0;
    }
    struct tpg_link_add_in in = {.link = (uint64_t)(uintptr_t)state,
                                 .type = type,
                                 .size = size,
                                 .name = name ? name : "",
                                 .options = pairs,
                                 .options_count = used};
    struct tpg_link_add_out out;
    struct tp_reply reply;
    memset(&reply, 0, offsetof(struct tp_reply, inline_body));
    if (result == CUDA_SUCCESS) {
        result = tpc_body_send(text ? text : data, size, &in.data, &in.data_size, &in.transfer);
    }
    result = result ? result : tpc_call_link_add("cuLinkAddData", &in, &out, &reply);
    if (result == CUDA_SUCCESS) {
        tpc_log_fill(&link->info, out.info_log, out.info_log_size);
        tpc_log_fill(&link->errors, out.error_log, out.error_log_size);
        result = (CUresult)out.status;
    }
    tp_reply_free(&reply);
    free(text);
    return result;
}

CUresult tpc_do_cuLinkAddFile_v2(CUlinkState state, CUjitInputType type, const char *path, unsigned int numOptions,
                                 CUjit_option *options, void **optionValues) {
    char *bytes;
    size_t size;
    CUresult result = tpc_read_file(path, &bytes, &size);
    result = result ? result : tpc_cuLinkAddData_v2(state, type, bytes, size, path, numOptions, options, optionValues);
    free(bytes);
    return result;
}

/* The image of `size` bytes, whose first piece has come, into `image`. */
static CUresult fetch(uint64_t handle, unsigned char *image, size_t size, const void *first, size_t first_size) {
    size_t from = first_size;
    if (first_size > size) {
        return CUDA_ERROR_UNKNOWN;
    }
    memcpy(image, first, first_size);
    while (from < size) {
        struct tpg_link_image_out out;
        struct tp_reply reply TPC_REPLY;
        TPC_TRY(tpc_call_link_image("cuLinkComplete", handle, from, &out, &reply));
        if (!out.image_size || out.image_size > size - from) {
            tp_log(TP_ERROR, "the worker sent %zu bytes of a linked image, of which %zu are left", out.image_size,
                   size - from);
            return CUDA_ERROR_UNKNOWN;
        }
        memcpy(image + from, out.image, out.image_size);
        from += out.image_size;
    }
    return CUDA_SUCCESS;
}

CUresult tpc_do_cuLinkComplete(CUlinkState state, void **cubinOut, size_t *sizeOut) {
    const uint64_t handle = (uint64_t)(uintptr_t)state;
    struct link *link = tpc_record(TPG_LINK, handle);
    struct tpg_link_complete_out out;
    struct tp_reply reply TPC_REPLY;
    TPC_TRY(tpc_call_link_complete("cuLinkComplete", handle, &out, &reply));
    tpc_log_fill(&link->info, out.info_log, out.info_log_size);
    tpc_log_fill(&link->errors, out.error_log, out.error_log_size);
    TPC_TRY((CUresult)out.status);
    free(link->image);
    link->image = malloc(out.size ? out.size : 1);
    if (!link->image) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    TPC_TRY(fetch(handle, link->image, out.size, out.image, out.image_size));
    *cubinOut = link->image;
    if (sizeOut) {
        *sizeOut = out.size;
    }
    return CUDA_SUCCESS;
}

CUresult tpc_do_cuLinkDestroy(CUlinkState state) {
    CUresult result = tpc_post_link_destroy("cuLinkDestroy", (uint64_t)(uintptr_t)state);
    struct link *link = tpc_unmint(TPG_LINK, (uint64_t)(uintptr_t)state);
    if (link) {
        free(link->image);
        free(link);
    }
    return result;
}
