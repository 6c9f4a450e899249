/*
 * The processes that a client is shown: those of its machine and tenant that use this worker, under their numbers there.
 *
 * Executor thread only. Sessions know nothing of each other: the supervisor is asked who they are, and says of each the session's own
 * number, by which the driver knows it, and the bytes that it has reserved. What the driver says of others never leaves this
 * process.
 */
#include "tpg_answer.h"
#include "tpg_session.h"
#include "tpw_memory.h"
#include "tpw_nvml.h"

#include <stdlib.h>
#include <unistd.h>

#define MOST TP_QUOTA_ROWS

/* A question of the client's, while the supervisor is asked. */
struct asked {
    nvmlDevice_t device;
    uint32_t ordinal;
    void (*then)(struct tpw_session *s, const struct tp_frame *frame, struct asked *asked, int32_t error);
    uint64_t since;
    unsigned int room;
    uint32_t count;
    struct tpw_process list[MOST];
};

static nvmlProcessInfo_t infos[MOST];
static union {
    nvmlProcessUtilizationSample_t old[TP_NVML_LIST_MAX];
    nvmlProcessUtilizationInfo_v1_t fresh[TP_NVML_LIST_MAX];
} samples;

/* ---- what the driver says ---- */

/* The processes that it knows on the device; 0 when it does not tell, which is said once. */
static unsigned int driver_processes(struct tpw_session *s, nvmlDevice_t device) {
    static bool said;
    unsigned int count = MOST;
    nvmlReturn_t untold = s->nvml.nvmlDeviceGetComputeRunningProcesses_v3(device, &count, infos);
    if (untold) {
        if (!said) {
            tp_log(TP_WARN,
                   "NVML does not tell what processes hold (error %d): what the client allocated is shown instead",
                   (int)untold);
        }
        said = true;
        return 0;
    }
    return count < MOST ? count : MOST;
}

/* What the process holds, its context too; false when the driver does not know it under our number (another pid namespace). */
static bool driver_figure(unsigned int count, unsigned int pid, uint64_t *used) {
    for (unsigned int i = 0; i < count; i++) {
        if (infos[i].pid == pid) {
            *used = infos[i].usedGpuMemory;
            return *used != (unsigned long long)NVML_VALUE_NOT_AVAILABLE;
        }
    }
    return false;
}

static int32_t own_memory(struct tpw_session *s, uint32_t device, uint64_t *bytes) {
    static nvmlDevice_t known[TPW_MAX_DEVICES];
    int32_t error = device < TPW_MAX_DEVICES ? tpw_nvml_open(s) : NVML_ERROR_INVALID_ARGUMENT;
    if (!error && !known[device]) {
        error = tpw_nvml_of_ordinal(s, device, &known[device]);
    }
    return error || !driver_figure(driver_processes(s, known[device]), (unsigned int)getpid(), bytes) ? -1 : 0;
}
TP_REGISTER(tpw_own_memory, own_memory);

/* ---- asking the supervisor ---- */

static void listed(struct tpw_session *s, const struct tpw_question *question, const struct tpw_packet *packet, int fd);

/* In ascending order of their numbers, a packet of them at a time: those behind `after`. */
static int32_t ask(struct tpw_session *s, const struct tp_frame *frame, struct asked *asked, uint32_t after) {
    struct tpw_packet packet = {.type = TPW_LIST, .value = (uint64_t)asked->ordinal << 32 | after};
    struct tpw_question question = {.frame = *frame, .answered = listed, .what = asked};
    int32_t error = tpw_ask(s, &question, &packet, -1);
    if (error == TPW_LATER) {
        return error;
    }
    return error == CUDA_ERROR_OUT_OF_MEMORY ? NVML_ERROR_MEMORY : NVML_ERROR_UNKNOWN;
}

static void listed(struct tpw_session *s, const struct tpw_question *question, const struct tpw_packet *packet,
                   int fd) {
    struct asked *asked = question->what;
    const uint32_t came = (uint32_t)packet->value;
    int32_t error = NVML_SUCCESS;
    (void)fd;
    for (uint32_t i = 0; i < came && i < TPW_PROCESSES && asked->count < MOST; i++) {
        asked->list[asked->count++] = packet->body.processes[i];
    }
    if (packet->value >> 32 && came && asked->count < MOST) { /* there are more */
        error = ask(s, &question->frame, asked, asked->list[asked->count - 1].pid);
    }
    if (error != TPW_LATER) {
        asked->then(s, &question->frame, asked, error);
        free(asked);
    }
}

static int32_t begin(struct tpw_session *s, const struct tp_frame *frame, const struct asked *what, uint64_t handle) {
    struct asked *asked = malloc(sizeof *asked);
    if (!asked) {
        return NVML_ERROR_MEMORY;
    }
    *asked = *what;
    asked->ordinal = tpw_nvml_ordinal(handle);
    tpw_figures_tell(s); /* the supervisor reads there what this session is */
    int32_t error = ask(s, frame, asked, 0);
    if (error != TPW_LATER) {
        free(asked);
    }
    return error;
}

/* ---- what they hold ---- */

/* Counted as the device's memory is: by the quota page under a limit, else by the driver, which counts contexts too. */
static void tell_processes(struct tpw_session *s, const struct tp_frame *frame, struct asked *asked, int32_t error) {
    static unsigned int pids[MOST];
    static uint64_t used[MOST];
    const bool limit = tp_quota_limit(s->quota);
    const unsigned int known = limit || error ? 0 : driver_processes(s, asked->device);
    for (uint32_t i = 0; i < asked->count; i++) {
        pids[i] = asked->list[i].pid;
        if (!driver_figure(known, asked->list[i].session, &used[i])) {
            used[i] = asked->list[i].bytes;
        }
    }
    const struct tpg_nvml_processes_out out = {
        .pids = pids, .pids_count = asked->count, .used = used, .used_count = asked->count};
    tpg_answer_nvml_processes(s, frame, error, &out);
}

int32_t tpw_nvml_processes(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_nvml_processes_in *in,
                           struct tpg_nvml_processes_out *out, nvmlDevice_t device) {
    (void)out;
    return begin(s, frame, &(struct asked){.device = device, .then = tell_processes}, in->device);
}

/* ---- how much of the device they use ----
 *
 * The driver wants room for a fixed number of samples, whatever there are, and says so to a caller with less (580.159: 72). Then it is
 * asked for those of all processes, so that those of others take no room from the client's. */

/* The number in the client's machine of a process that the driver knows under `pid`; 0 for one that is not the client's to see. */
static uint32_t number_there(const struct asked *asked, unsigned int pid) {
    for (uint32_t i = 0; i < asked->count; i++) {
        if (asked->list[i].session == pid) {
            return asked->list[i].pid;
        }
    }
    return 0;
}

/* Of samples that were looked at. Without one the count stays as it was. */
static int status_of(int status, unsigned int own, const struct asked *asked, unsigned int *count) {
    status = status || own ? status : NVML_ERROR_NOT_FOUND;
    *count = status ? asked->room : own;
    return own > asked->room ? NVML_ERROR_INSUFFICIENT_SIZE : status;
}

static void tell_utilization(struct tpw_session *s, const struct tp_frame *frame, struct asked *asked, int32_t error) {
    unsigned int count = 0, own = 0;
    int status =
        error ? error : (int)s->nvml.nvmlDeviceGetProcessUtilization(asked->device, NULL, &count, asked->since);
    if (status == NVML_ERROR_INSUFFICIENT_SIZE && asked->room >= count) {
        count = TP_NVML_LIST_MAX;
        status = (int)s->nvml.nvmlDeviceGetProcessUtilization(asked->device, samples.old, &count, asked->since);
        for (unsigned int i = 0; !status && i < count && i < TP_NVML_LIST_MAX; i++) {
            const uint32_t pid = number_there(asked, samples.old[i].pid);
            if (pid) {
                samples.old[own] = samples.old[i];
                samples.old[own++].pid = pid;
            }
        }
        status = status_of(status, own, asked, &count);
    }
    const struct tpg_nvmlDeviceGetProcessUtilization_out out = {.status = status,
                                                                .processSamplesCount = count,
                                                                .utilization = samples.old,
                                                                .utilization_count = status ? 0 : own};
    tpg_answer_nvmlDeviceGetProcessUtilization(s, frame, error, &out);
}

int32_t tpw_nvmlDeviceGetProcessUtilization(struct tpw_session *s, const struct tp_frame *frame,
                                            const struct tpg_nvmlDeviceGetProcessUtilization_in *in,
                                            struct tpg_nvmlDeviceGetProcessUtilization_out *out, nvmlDevice_t device) {
    (void)out;
    return begin(s, frame,
                 &(struct asked){.device = device,
                                 .then = tell_utilization,
                                 .since = in->lastSeenTimeStamp,
                                 .room = in->processSamplesCount},
                 in->device);
}

static void tell_utilizations(struct tpw_session *s, const struct tp_frame *frame, struct asked *asked, int32_t error) {
    nvmlProcessesUtilizationInfo_t all = {.version = sizeof all | 1u << 24, .lastSeenTimeStamp = asked->since};
    unsigned int own = 0;
    int status = error ? error : (int)s->nvml.nvmlDeviceGetProcessesUtilizationInfo(asked->device, &all);
    unsigned int count = all.processSamplesCount;
    if (status == NVML_ERROR_INSUFFICIENT_SIZE && asked->room >= count) {
        all.processSamplesCount = TP_NVML_LIST_MAX;
        all.procUtilArray = samples.fresh;
        status = (int)s->nvml.nvmlDeviceGetProcessesUtilizationInfo(asked->device, &all);
        for (unsigned int i = 0; !status && i < all.processSamplesCount && i < TP_NVML_LIST_MAX; i++) {
            const uint32_t pid = number_there(asked, samples.fresh[i].pid);
            if (pid) {
                samples.fresh[own] = samples.fresh[i];
                samples.fresh[own++].pid = pid;
            }
        }
        status = status_of(status, own, asked, &count);
    }
    const struct tpg_nvml_utilization_out out = {
        .status = status, .count = count, .samples = samples.fresh, .samples_count = status ? 0 : own};
    tpg_answer_nvml_utilization(s, frame, error, &out);
}

int32_t tpw_nvml_utilization(struct tpw_session *s, const struct tp_frame *frame,
                             const struct tpg_nvml_utilization_in *in, struct tpg_nvml_utilization_out *out,
                             nvmlDevice_t device) {
    (void)out;
    return begin(s, frame,
                 &(struct asked){.device = device, .then = tell_utilizations, .since = in->since, .room = in->capacity},
                 in->device);
}
