/*
 * Device memory that images take: their variables and their code, measured where the worker has a limit.
 *
 * Executor thread only. An image has one record for all devices that it was loaded on; whoever ends it last gives it back.
 */
#include "tpg_session.h"
#include "tpw_code.h"

#include <stdlib.h>

struct tpw_taken {
    uint64_t bytes[TPW_MAX_DEVICES];
};

void tpw_taken_give_back(struct tpw_session *s, struct tpw_taken **taken) {
    for (uint32_t device = 0; *taken && device < TPW_MAX_DEVICES; device++) {
        tpw_uncharge(s, device, (*taken)->bytes[device]);
    }
    free(*taken);
    *taken = NULL;
}

/* Around a call that may make the driver load an image on the current device. Without a context nothing is loaded. */
bool tpw_taken_begin(struct tpw_session *s, struct tpw_taking *taking) {
    uint32_t device = 0;
    bool there = s->entered && tpw_current_device(s, &device) == CUDA_SUCCESS;
    if (there) {
        tpw_taking_begin(s, device, taking);
    }
    return there;
}

int32_t tpw_taken_end(struct tpw_session *s, const struct tpw_taking *taking, struct tpw_taken **taken) {
    uint64_t bytes = 0;
    int32_t error = tpw_taking_end(s, taking, &bytes);
    if (bytes && !*taken && !(*taken = calloc(1, sizeof **taken))) {
        tpw_uncharge(s, taking->device, bytes);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (bytes) {
        (*taken)->bytes[taking->device] += bytes;
    }
    return error;
}

/* The driver loads a library in a context when something of it is wanted there. Under a limit that is now, so that what it takes
 * is known while it can still be refused; what is wrong with its code is told when that is wanted, as without a limit. */
void tpw_library_load_now(struct tpw_session *s, uint64_t library) {
    CUmodule unused;
    if (tp_quota_limit(s->quota)) {
        (void)s->cuda.cuLibraryGetModule(&unused, (CUlibrary)(uintptr_t)library);
    }
}
