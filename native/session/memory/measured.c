/*
 * Device memory that cannot be counted before the driver takes it: variables and code of images, contexts. Under a limit it is
 * measured, as the driver's own figure for this process before and after, charged then, and given back where it does not fit.
 *
 * Executor thread only, and nothing else of this process calls the driver meanwhile. Where the driver does not tell (NVML knows
 * this process by another number in some containers) it is not counted, with a word.
 */
#include "tpw_memory.h"

static uint64_t figure(struct tpw_session *s, uint32_t device) {
    static bool said;
    uint64_t bytes = UINT64_MAX;
    int32_t untold = 0;
    TP_ASK(tpw_own_memory, untold, s, device, &bytes);
    if ((untold || bytes == UINT64_MAX) && !said) {
        said = true;
        tp_log(
            TP_WARN,
            "what images and contexts take of device memory does not count for the worker's limit: NVML does not tell "
            "what this process holds");
    }
    return untold ? UINT64_MAX : bytes;
}

void tpw_taking_begin(struct tpw_session *s, uint32_t device, struct tpw_taking *taking) {
    const bool limited = tp_quota_limit(s->quota) && tpw_memory_state(s);
    *taking = (struct tpw_taking){.device = device, .before = limited ? figure(s, device) : UINT64_MAX};
}

/* Less than a granule is put together with what comes next: the limit stays exact to the byte for what programs ask for. */
int32_t tpw_taking_end(struct tpw_session *s, const struct tpw_taking *taking, uint64_t *bytes) {
    static uint64_t small[TPW_MAX_DEVICES];
    const uint64_t after = taking->before == UINT64_MAX ? UINT64_MAX : figure(s, taking->device);
    const uint64_t grown = after != UINT64_MAX && after > taking->before ? after - taking->before : 0;
    const uint64_t all = small[taking->device] + grown;
    *bytes = 0;
    if (all < TPW_GRANULE) {
        small[taking->device] = all;
        return CUDA_SUCCESS;
    }
    const int32_t error = tpw_charge(s, taking->device, all);
    if (!error) {
        small[taking->device] = 0;
        *bytes = all;
    }
    return error;
}

/* Before and after a context is made. */
static int32_t context_takes(struct tpw_session *s, uint32_t device, bool made, uint64_t *bytes) {
    static struct tpw_taking taking;
    if (!made) {
        tpw_taking_begin(s, device, &taking);
        return CUDA_SUCCESS;
    }
    return tpw_taking_end(s, &taking, bytes);
}
TP_REGISTER(tpw_context_takes, context_takes);
