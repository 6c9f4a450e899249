/*
 * NVML in the session: loading it, the devices that it shows, and the two helpers of generated dispatch.
 *
 * Executor thread only. NVML is loaded when the client first asks. It shows the devices that CUDA shows to this session, and
 * no other device of the host, so that both APIs count the same devices in the client. Sizes are the client's: bounded here
 * before the driver writes by them.
 */
#include "tpw_nvml.h"

#include "tpg_session.h"
#include <stdio.h>

/* Larger than every versioned struct of NVML. */
#define VERSIONED_MAX 65536u
#define VERSIONED_COUNT 4u

static int32_t opened = NVML_ERROR_UNINITIALIZED;
static bool asked_for;
static uint32_t ordinals[TP_NVML_DEVICES]; /* CUDA ordinal of each device that is shown */
static _Alignas(16) unsigned char versioned[VERSIONED_COUNT][VERSIONED_MAX];

int32_t tpw_nvml_open(struct tpw_session *s) {
    if (asked_for) {
        return opened;
    }
    asked_for = true;
    void *library = tpw_open_library(s, true);
    if (!library) {
        opened = NVML_ERROR_LIBRARY_NOT_FOUND;
        return opened;
    }
    tpg_load_nvml(&s->nvml, library);
    opened = (int32_t)s->nvml.nvmlInit_v2();
    s->nvml_loaded = opened == NVML_SUCCESS;
    if (opened) {
        tp_log(TP_ERROR, "nvmlInit_v2 returned %d; clients will see no NVML", opened);
    }
    return opened;
}

int32_t tpw_nvml_enter(struct tpw_session *s) { return s->nvml_loaded ? NVML_SUCCESS : NVML_ERROR_UNINITIALIZED; }

void *tpw_versioned(struct tpw_session *s, const void *bytes, size_t size, size_t known, int32_t *error) {
    static uint32_t next;
    uint32_t word;
    if (*error) {
        return NULL;
    }
    if (size < sizeof word || size > VERSIONED_MAX || known > VERSIONED_MAX) {
        *error = NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
        return NULL;
    }
    memcpy(&word, bytes, sizeof word);
    if ((word & 0xffffff) != size) {
        *error = NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
        return NULL;
    }
    unsigned char *copy = versioned[next++ % VERSIONED_COUNT];
    memcpy(copy, bytes, size);
    memset(copy + size, 0, size < known ? known - size : 0);
    return copy;
}

size_t tpw_text_size(const void *text, size_t size) {
    size_t length = text ? strnlen(text, size) : 0;
    return length < size ? length + 1 : size;
}

uint32_t tpw_nvml_ordinal(uint64_t handle) {
    uint32_t index = tp_id_index(tp_handle_id(handle));
    return index < TP_NVML_DEVICES ? ordinals[index] : 0;
}

/* ---- which devices ---- */

/* CUDA and NVML write the bus id with domains of different width. */
static bool same_bus(struct tpw_session *s, CUdevice device, const nvmlPciInfo_t *pci, int32_t *error) {
    char text[32] = "";
    unsigned int domain, bus, number;
    int32_t untold = (int32_t)s->cuda.cuDeviceGetPCIBusId(text, sizeof text, device);
    if (untold || sscanf(text, "%x:%x:%x", &domain, &bus, &number) != 3) {
        tp_log(TP_ERROR, "NVML shows the devices of CUDA, and CUDA does not tell where one is: error %d, '%s'", untold,
               text);
        *error = NVML_ERROR_UNKNOWN;
        return false;
    }
    return domain == pci->domain && bus == pci->bus && number == pci->device;
}

static bool shown(struct tpw_session *s, const nvmlPciInfo_t *pci, uint32_t *ordinal, int32_t *error) {
    for (int i = 0; i < s->device_count && !*error; i++) {
        if (same_bus(s, s->devices[i], pci, error)) {
            *ordinal = (uint32_t)i;
            return true;
        }
    }
    return false;
}

int32_t tpw_nvml_of_ordinal(struct tpw_session *s, uint32_t wanted, nvmlDevice_t *out) {
    unsigned int devices = 0;
    int32_t error = (int32_t)s->nvml.nvmlDeviceGetCount_v2(&devices);
    for (unsigned int i = 0; i < devices && !error; i++) {
        nvmlDevice_t device;
        nvmlPciInfo_t pci;
        nvmlReturn_t there = s->nvml.nvmlDeviceGetHandleByIndex_v2(i, &device);
        if (there == NVML_ERROR_NO_PERMISSION || there == NVML_ERROR_GPU_IS_LOST) {
            continue; /* counted, and not there for us */
        }
        error = there ? (int32_t)there : (int32_t)s->nvml.nvmlDeviceGetPciInfo_v3(device, &pci);
        if (!error && same_bus(s, s->devices[wanted], &pci, &error)) {
            *out = device;
            return NVML_SUCCESS;
        }
    }
    return error ? error : NVML_ERROR_NOT_FOUND;
}

int32_t tpw_nvml_start(struct tpw_session *s, const struct tp_frame *frame, struct tpg_nvml_start_out *out) {
    static bool made;
    static uint32_t count;
    static nvmlPciInfo_t pci[TP_NVML_DEVICES];
    static char uuids[TP_NVML_DEVICES][TP_NVML_UUID], serials[TP_NVML_DEVICES][TP_NVML_SERIAL];
    static char version[NVML_SYSTEM_NVML_VERSION_BUFFER_SIZE];
    unsigned int devices = 0;
    int32_t error = tpw_nvml_open(s);
    TPW_TRY(error);
    int32_t cuda_error = tpw_start_driver(s);
    if (cuda_error && cuda_error != CUDA_ERROR_NO_DEVICE) {
        tp_log(TP_ERROR, "NVML shows the devices of CUDA, but cuInit returned %d", cuda_error);
        return NVML_ERROR_DRIVER_NOT_LOADED;
    }
    if (!made) {
        error = (int32_t)s->nvml.nvmlDeviceGetCount_v2(&devices);
    }
    /* Devices belong to no context, whichever the calling thread has. */
    struct tp_frame own = *frame;
    own.context = 0;
    for (unsigned int i = 0; i < devices && count < TP_NVML_DEVICES && !error; i++) {
        nvmlDevice_t device;
        nvmlReturn_t there = s->nvml.nvmlDeviceGetHandleByIndex_v2(i, &device);
        if (there == NVML_ERROR_NO_PERMISSION || there == NVML_ERROR_GPU_IS_LOST) {
            continue; /* counted, and not there for us */
        }
        error = there ? (int32_t)there : (int32_t)s->nvml.nvmlDeviceGetPciInfo_v3(device, &pci[count]);
        if (error || !shown(s, &pci[count], &ordinals[count], &error)) {
            continue;
        }
        error = (int32_t)s->nvml.nvmlDeviceGetUUID(device, uuids[count], TP_NVML_UUID);
        nvmlReturn_t serial =
            error ? NVML_SUCCESS : s->nvml.nvmlDeviceGetSerial(device, serials[count], TP_NVML_SERIAL);
        if (serial) { /* many devices have none */
            serials[count][0] = 0;
            error = serial == NVML_ERROR_NOT_SUPPORTED ? CUDA_SUCCESS : (int32_t)serial;
        }
        if (!error) {
            error = tpw_made(s, &own, TPG_NVMLDEVICE, tp_nvml_device(TPG_NVMLDEVICE, count),
                             (uint64_t)(uintptr_t)device, 0);
            count += error == 0;
        }
    }
    error = error ? error : (int32_t)s->nvml.nvmlSystemGetCudaDriverVersion_v2(&out->cuda_version);
    error = error ? error : (int32_t)s->nvml.nvmlSystemGetNVMLVersion(version, sizeof version);
    made = made || !error;
    out->pci = pci;
    out->pci_count = count;
    out->uuids = uuids;
    out->uuids_size = count * sizeof *uuids;
    out->serials = serials;
    out->serials_size = count * sizeof *serials;
    out->nvml_version = version;
    out->nvml_version_size = sizeof version;
    return error;
}
