/*
 * Resources of a device: how it is split, and descriptions of what a green context gets.
 *
 * Executor thread only. The structs are the driver's, by their tokens (token.c); what the client asks for is bounded here.
 */
#include "tpg_session.h"
#include "tpg_session_structs.h"
#include "tpw_session.h"

#define GROUPS_MAX 1024u /* more than any device has multiprocessors */
#define DESCS_MAX 4096u  /* the driver has no end of one */

int32_t tpw_resource_split(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_resource_split_in *in,
                           struct tpg_resource_split_out *out, const CUdevResource *input) {
    CUdevResource rest;
    unsigned int most = 0;
    memset(&rest, 0, sizeof rest);
    int32_t error = (int32_t)s->cuda.cuDevSmResourceSplitByCount(NULL, &most, input, NULL, in->flags, in->least);
    if (error || !in->wanted) {
        out->count = most;
        return error;
    }
    unsigned int groups = in->groups < most ? in->groups : most;
    if (!groups || groups > GROUPS_MAX) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    CUdevResource *made = tpw_scratch(s, groups, sizeof *made, &error);
    CUdevResource *images = tpw_scratch(s, groups + 1, sizeof *images, &error);
    error =
        error ? error : (int32_t)s->cuda.cuDevSmResourceSplitByCount(made, &groups, input, &rest, in->flags, in->least);
    for (unsigned int i = 0; !error && i < groups; i++) {
        tpg_give_CUdevResource(s, &made[i], &images[i], &error);
    }
    if (!error) {
        tpg_give_CUdevResource(s, &rest, &images[groups], &error);
        *out = (struct tpg_resource_split_out){
            .count = groups, .results = images, .results_size = (groups + 1) * sizeof *images};
    }
    return error;
}

/* No resources at all end the driver's process (580.159.04, measured). */
int32_t tpw_cuDevResourceGenerateDesc(struct tpw_session *s, const struct tp_frame *frame,
                                      const struct tpg_cuDevResourceGenerateDesc_in *in, const CUdevResource *resources,
                                      size_t resources_count) {
    static uint32_t made;
    CUdevResource copies[64];
    CUdevResourceDesc desc = NULL;
    int32_t error = !resources_count || resources_count > sizeof copies / sizeof *copies ? CUDA_ERROR_INVALID_VALUE
                    : made >= DESCS_MAX                                                  ? CUDA_ERROR_OUT_OF_MEMORY
                                                                                         : CUDA_SUCCESS;
    if (!error) {
        memcpy(copies, resources, resources_count * sizeof *copies);
        error = (int32_t)s->cuda.cuDevResourceGenerateDesc(&desc, copies, (unsigned int)resources_count);
        made += !error;
    }
    return tpw_made(s, frame, TPG_DEVDESC, in->phDesc, (uint64_t)(uintptr_t)desc, error);
}
