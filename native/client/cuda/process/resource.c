/*
 * Resources of a device in the client.
 *
 * Any thread. They are structs that the program copies about; what the driver has in them stays in the session, and travels as a
 * token that is not read here.
 */
#include "tpc.h"
#include "tpg_client_structs.h"
#include "tpg_cuda_send.h"

/* NULL for the results is the question how many there can be. */
CUresult tpc_cuDevSmResourceSplitByCount(CUdevResource *result, unsigned int *nbGroups, const CUdevResource *input,
                                         CUdevResource *remaining, unsigned int useFlags, unsigned int minCount) {
    struct tpc_flat flat TPC_FLAT = {.size = 0};
    struct tpg_resource_split_out out;
    CUdevResource one;
    if (!nbGroups || !input || (result && !*nbGroups)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    TPC_TRY(tpg_flatten_CUdevResource(input, 1, &flat));
    struct tpg_resource_split_in in = {.input = flat.bytes,
                                       .input_size = flat.size,
                                       .groups = *nbGroups,
                                       .flags = useFlags,
                                       .least = minCount,
                                       .wanted = result != NULL};
    struct tp_reply reply TPC_REPLY;
    TPC_TRY(tpc_call_resource_split("cuDevSmResourceSplitByCount", &in, &out, &reply));
    const size_t count = out.count;
    if (result && (count > *nbGroups || out.results_size != (count + 1) * sizeof one)) {
        return tpc_bad_reply(&reply);
    }
    for (size_t i = 0; result && i <= count; i++) { /* the rest is behind the groups */
        memcpy(&one, (const unsigned char *)out.results + i * sizeof one, sizeof one);
        CUdevResource *to = i < count ? &result[i] : remaining;
        if (to) {
            tpg_store_CUdevResource(&one, to);
        }
    }
    *nbGroups = out.count;
    return CUDA_SUCCESS;
}
