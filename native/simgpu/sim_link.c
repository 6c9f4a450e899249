// Linking at run time, as far as it makes sense without machine code: one input, checked by the image parser, is the
// linked image. A second input would need a real linker and is refused by name.
//
// A link state is used by one thread at a time, as CUDA asks; it owns a copy of its input until it is destroyed. Input bytes
// are read within the size that the caller gives.
#include "sim.h"

#include <stdlib.h>
#include <string.h>

#define LINK_MAGIC 0x4b4e494cu

typedef struct sim_link {
    uint32_t magic;
    unsigned char *image;
    size_t size;
    char *log;
    size_t log_size;
} sim_link_t;

static sim_link_t *link_of(CUlinkState handle) {
    sim_link_t *link = (sim_link_t *)(void *)handle;
    return link && link->magic == LINK_MAGIC ? link : NULL;
}

CUresult cuLinkCreate_v2(unsigned int numOptions, CUjit_option *options, void **optionValues, CUlinkState *stateOut) {
    SIM_ENTER_CONTEXT(context);
    (void)context;
    if (!stateOut || (numOptions && (!options || !optionValues)))
        return CUDA_ERROR_INVALID_VALUE;
    sim_link_t *link = calloc(1, sizeof *link);
    if (!link)
        return CUDA_ERROR_OUT_OF_MEMORY;
    link->magic = LINK_MAGIC;
    for (unsigned i = 0; i < numOptions; i++) {
        if (options[i] == CU_JIT_ERROR_LOG_BUFFER)
            link->log = optionValues[i];
        if (options[i] == CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES)
            link->log_size = (size_t)(uintptr_t)optionValues[i];
    }
    *stateOut = (CUlinkState)(void *)link;
    return CUDA_SUCCESS;
}

CUresult cuLinkAddData_v2(CUlinkState state, CUjitInputType type, void *data, size_t size, const char *name,
                          unsigned int numOptions, CUjit_option *options, void **optionValues) {
    SIM_ENTER_CONTEXT(context);
    (void)context;
    (void)name;
    (void)numOptions;
    (void)options;
    (void)optionValues;
    sim_link_t *link = link_of(state);
    if (!link)
        return CUDA_ERROR_INVALID_HANDLE;
    if (!data || !size || (unsigned)type >= CU_JIT_NUM_INPUT_TYPES)
        return CUDA_ERROR_INVALID_VALUE;
    if (link->image || type > CU_JIT_INPUT_FATBINARY) {
        sim_complain("linking needs a real GPU for more than one image, for objects and for libraries");
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    unsigned char *copy = malloc(size + 1);
    if (!copy)
        return CUDA_ERROR_OUT_OF_MEMORY;
    memcpy(copy, data, size);
    copy[size] = 0;
    sim_image_t *image;
    CUresult result = sim_image_parse(copy, &image, link->log, link->log_size);
    if (result != CUDA_SUCCESS) {
        free(copy);
        return result;
    }
    sim_image_release(image);
    link->image = copy;
    link->size = size;
    return CUDA_SUCCESS;
}

CUresult cuLinkComplete(CUlinkState state, void **cubinOut, size_t *sizeOut) {
    SIM_ENTER_CONTEXT(context);
    (void)context;
    sim_link_t *link = link_of(state);
    if (!link)
        return CUDA_ERROR_INVALID_HANDLE;
    if (!cubinOut || !link->image)
        return CUDA_ERROR_INVALID_VALUE;
    *cubinOut = link->image;
    if (sizeOut)
        *sizeOut = link->size;
    return CUDA_SUCCESS;
}

CUresult cuLinkDestroy(CUlinkState state) {
    SIM_ENTER_CONTEXT(context);
    (void)context;
    sim_link_t *link = link_of(state);
    if (!link)
        return CUDA_ERROR_INVALID_HANDLE;
    link->magic = 0;
    free(link->image);
    free(link);
    return CUDA_SUCCESS;
}
