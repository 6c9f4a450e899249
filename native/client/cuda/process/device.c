/*
 * Devices, answered in the client from the description that the worker sent at the start.
 *
 * Owns the device list: written once, under state.c's lock, before the state becomes ready; read by any thread afterwards
 * without a lock. What arrives from the worker is bounded in tpc_devices_learn. CUDA_VISIBLE_DEVICES is read there too, as
 * the driver does, so that a program sees the same devices by the same numbers as on a machine that has them.
 */
#include "process_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <strings.h>

int tpc_device_count;
struct tpc_device *tpc_devices;
int tpc_driver_version;

/* ---- attributes ---- */

/* What api/cuda/attributes.py says. */
static void refuse_attributes(struct tp_device_description *what) {
    for (size_t i = 0; i < tpg_said_count; i++) {
        /* An attribute that the worker's driver does not know stays unknown. */
        if (what->attribute_results[tpg_said[i].attribute] == CUDA_SUCCESS) {
            what->attributes[tpg_said[i].attribute] &= tpg_said[i].bits;
            what->attributes[tpg_said[i].attribute] |= tpg_said[i].value;
        }
    }
}

/* ---- which devices ---- */

#define UUID_TEXT 41 /* "GPU-" and 36 characters */

static void uuid_text(const uint8_t *uuid, char text[UUID_TEXT]) {
    char *at = text + snprintf(text, UUID_TEXT, "GPU-");
    for (int i = 0; i < 16; i++) {
        at += snprintf(at, 4, "%s%02x", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", uuid[i]);
    }
}

/* The number that an entry starts with; -1 if it starts with none. "1gpu" is 1 to the driver, "+1" too. */
static long entry_number(const char *entry, size_t size) {
    size_t at = size && (entry[0] == '+' || entry[0] == '-') ? 1 : 0;
    bool negative = at && entry[0] == '-';
    long number = 0;
    size_t digits = 0;
    for (; at < size && entry[at] >= '0' && entry[at] <= '9'; at++, digits++) {
        number = number < 1000000 ? number * 10 + (entry[at] - '0') : number;
    }
    return !digits || negative ? -1 : number;
}

/* The only device whose UUID starts with the entry; -1 if there is none or more than one. */
static long entry_uuid(const char *entry, size_t size, const struct tp_device_description *devices, int count) {
    long found = -1;
    for (int i = 0; i < count; i++) {
        char text[UUID_TEXT];
        uuid_text(devices[i].uuid, text);
        if (size < UUID_TEXT && strncmp(text, entry, size) == 0) {
            if (found >= 0) {
                return -1;
            }
            found = i;
        }
    }
    return found;
}

/* The driver reads the list up to the first entry that names no device. A device that is named twice empties the list.
 * Whether the list holds UUIDs is decided by its first entry; a MIG name is none of ours, so it ends the list. */
int tpc_visible(const char *variable, const struct tp_device_description *devices, int count, int *order) {
    if (!variable) {
        for (int i = 0; i < count; i++) {
            order[i] = i;
        }
        return count;
    }
    bool by_uuid = strncmp(variable, "GPU-", 4) == 0;
    int visible = 0;
    for (const char *entry = variable; *entry;) {
        size_t size = strcspn(entry, ",");
        const char *next = entry[size] ? entry + size + 1 : entry + size;
        while (size && !by_uuid && (*entry == ' ' || *entry == '\t')) {
            entry++;
            size--;
        }
        long device = -1;
        if (by_uuid) {
            device = size > 4 && strncmp(entry, "GPU-", 4) == 0 ? entry_uuid(entry, size, devices, count) : -1;
        } else {
            device = entry_number(entry, size);
        }
        if (device < 0 || device >= count) {
            break;
        }
        for (int i = 0; i < visible; i++) {
            if (order[i] == device) {
                return 0;
            }
        }
        order[visible++] = (int)device;
        entry = next;
    }
    return visible;
}

static int by_pci(const void *left, const void *right) {
    static const CUdevice_attribute keys[] = {CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID, CU_DEVICE_ATTRIBUTE_PCI_BUS_ID,
                                              CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID};
    const struct tpc_device *a = left, *b = right;
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        int x = a->what.attributes[keys[i]], y = b->what.attributes[keys[i]];
        if (x != y) {
            return x < y ? -1 : 1;
        }
    }
    return a->remote - b->remote;
}

CUresult tpc_devices_learn(int driver_version, const unsigned char *descriptions, size_t size) {
    size_t each = sizeof(struct tp_device_description);
    if (size % each || size / each > TPC_DEVICES_MAX || driver_version < 1) {
        tp_log(TP_ERROR,
               "The worker described its devices in %zu bytes, which is no whole number of descriptions of %zu; "
               "client and worker are of different versions",
               size, each);
        return CUDA_ERROR_SYSTEM_DRIVER_MISMATCH;
    }
    tpc_driver_version = driver_version < TPC_TABLE_VERSION ? driver_version : TPC_TABLE_VERSION;
    int count = (int)(size / each);
    struct tpc_device *all = calloc((size_t)count + 1, sizeof *all),
                      *chosen = calloc((size_t)count + 1, sizeof *chosen);
    struct tp_device_description *plain = calloc((size_t)count + 1, sizeof *plain);
    int order[TPC_DEVICES_MAX];
    CUresult result = CUDA_ERROR_OUT_OF_MEMORY;
    if (!all || !chosen || !plain) {
        goto out;
    }
    for (int i = 0; i < count; i++) {
        all[i].remote = i;
        memcpy(&all[i].what, descriptions + (size_t)i * each, each);
        all[i].what.name[sizeof all[i].what.name - 1] = 0;
        all[i].what.pci_bus_id[sizeof all[i].what.pci_bus_id - 1] = 0;
        refuse_attributes(&all[i].what);
    }
    /* The worker counts its devices in the driver's own order, fastest first. */
    const char *device_order = getenv("CUDA_DEVICE_ORDER");
    if (device_order && strcasecmp(device_order, "PCI_BUS_ID") == 0) {
        qsort(all, (size_t)count, sizeof *all, by_pci);
    }
    for (int i = 0; i < count; i++) {
        plain[i] = all[i].what;
    }
    int visible = tpc_visible(getenv("CUDA_VISIBLE_DEVICES"), plain, count, order);
    for (int i = 0; i < visible; i++) {
        chosen[i] = all[order[i]];
    }
    result = CUDA_ERROR_NO_DEVICE;
    if (visible) {
        tpc_devices = chosen;
        tpc_device_count = visible;
        chosen = NULL;
        result = tpc_contexts_start();
    }
out:
    free(all);
    free(chosen);
    free(plain);
    return result;
}

/* ---- the API ---- */

/* The runtime asks for the version before cuInit, so this is where a program usually connects. Without a worker the answer
 * is the version of this library's tables, as a driver on a machine without devices answers its own: the reason for the
 * failure is then given by cuInit, while an error here would be shown as "driver too old". */
CUresult tpc_do_cuDriverGetVersion(int *driverVersion) {
    if (!tpc_driver_version && tpc_start() != CUDA_SUCCESS && !tpc_driver_version) {
        *driverVersion = TPC_TABLE_VERSION;
        return CUDA_SUCCESS;
    }
    *driverVersion = tpc_driver_version;
    return CUDA_SUCCESS;
}

/* As much as fits, ended. A length below 0 is a large one (580.159.04, measured). */
static void put_text(char *to, const char *text, int len) {
    const size_t size = len < 0 ? strlen(text) : strnlen(text, (size_t)len - 1);
    memcpy(to, text, size);
    to[size] = 0;
}

CUresult tpc_do_cuDeviceGetName(char *name, int len, CUdevice dev) {
    if (!len) {
        return CUDA_ERROR_INVALID_VALUE; /* the driver ends the process */
    }
    put_text(name, tpc_devices[dev].what.name, len);
    return CUDA_SUCCESS;
}

CUresult tpc_do_cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice dev) {
    memcpy(uuid->bytes, tpc_devices[dev].what.uuid, sizeof uuid->bytes);
    return CUDA_SUCCESS;
}

CUresult tpc_do_cuDeviceGetAttribute(int *pi, CUdevice_attribute attrib, CUdevice dev) {
    unsigned attribute = (unsigned)attrib;
    if (TP_UNLIKELY(attribute < 1 || attribute >= TP_DEVICE_ATTRIBUTES)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    const struct tp_device_description *what = &tpc_devices[dev].what;
    if (TP_UNLIKELY(what->attribute_results[attribute] != CUDA_SUCCESS)) {
        return (CUresult)what->attribute_results[attribute];
    }
    *pi = what->attributes[attribute];
    return CUDA_SUCCESS;
}

CUresult tpc_do_cuDeviceTotalMem_v2(size_t *bytes, CUdevice dev) {
    *bytes = tpc_device_valid(dev) ? tpc_devices[dev].what.total_memory : 0; /* written in any case, as natively */
    return tpc_device_valid(dev) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

CUresult tpc_do_cuDeviceGetPCIBusId(char *pciBusId, int len, CUdevice dev) {
    if (len) {
        put_text(pciBusId, tpc_devices[dev].what.pci_bus_id, len);
    }
    /* What does not fit is cut short, and that is an error all the same; so is a length below 0 (580.159.04, measured). */
    return len > (int)strlen(tpc_devices[dev].what.pci_bus_id) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

/* A hexadecimal field up to `end` (0 = end of the text), at most 8 digits; false if it is none. */
static bool pci_field(const char **at, char end, unsigned *value) {
    *value = 0;
    int digits = 0;
    for (; **at && strchr("0123456789abcdefABCDEF", **at); (*at)++, digits++) {
        unsigned digit = (unsigned)(**at <= '9' ? **at - '0' : (**at | 0x20) - 'a' + 10);
        *value = *value << 4 | digit;
    }
    if (digits < 1 || digits > 8 || **at != end) {
        return false;
    }
    *at += end ? 1 : 0;
    return true;
}

/* domain:bus:device.function, domain:bus:device or bus:device.function, in hexadecimal. */
static bool parse_pci(const char *text, unsigned *domain, unsigned *bus, unsigned *device) {
    unsigned function = 0;
    const char *at = text;
    if (pci_field(&at, ':', domain) && pci_field(&at, ':', bus)) {
        const char *third = at;
        return (pci_field(&at, '.', device) && pci_field(&at, 0, &function)) || (at = third, pci_field(&at, 0, device));
    }
    at = text;
    *domain = 0;
    return pci_field(&at, ':', bus) && pci_field(&at, '.', device) && pci_field(&at, 0, &function);
}

CUresult tpc_cuDeviceGetByPCIBusId(CUdevice *dev, const char *pciBusId) {
    unsigned domain, bus, device;
    if (!dev || !pciBusId || !parse_pci(pciBusId, &domain, &bus, &device)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    for (int i = 0; i < tpc_device_count; i++) {
        const int32_t *a = tpc_devices[i].what.attributes;
        if ((unsigned)a[CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID] == domain &&
            (unsigned)a[CU_DEVICE_ATTRIBUTE_PCI_BUS_ID] == bus &&
            (unsigned)a[CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID] == device) {
            *dev = i;
            return CUDA_SUCCESS;
        }
    }
    return CUDA_ERROR_INVALID_DEVICE;
}

int tpc_device_of(int remote) {
    int ordinal = 0;
    while (ordinal < tpc_device_count && tpc_devices[ordinal].remote != remote) {
        ordinal++;
    }
    return ordinal < tpc_device_count ? ordinal : -2; /* CU_DEVICE_INVALID, a cast in the header */
}

/* Lazy since CUDA 12.2. The mode is a question of the worker's driver in truth; what the program can observe of it is this
 * answer, and lazy is how the worker loads. */
CUresult tpc_do_cuModuleGetLoadingMode(CUmoduleLoadingMode *mode) {
    const char *wanted = getenv("CUDA_MODULE_LOADING");
    *mode = wanted && strcmp(wanted, "EAGER") == 0 ? CU_MODULE_EAGER_LOADING : CU_MODULE_LAZY_LOADING;
    return CUDA_SUCCESS;
}

/* All multiprocessors: a share of them needs MPS. In a green context the driver gives 201 (580.159.04, asked). */
CUresult tpc_do_cuCtxGetExecAffinity(CUexecAffinityParam *pExecAffinity, CUexecAffinityType type) {
    if (tpc_current()->home != tpc_current()) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    pExecAffinity->type = type; /* told with the error, too, as the driver does */
    pExecAffinity->param.smCount.val =
        (unsigned int)tpc_devices[tpc_current()->device].what.attributes[CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT];
    return type == CU_EXEC_AFFINITY_TYPE_SM_COUNT ? CUDA_SUCCESS : CUDA_ERROR_UNSUPPORTED_EXEC_AFFINITY;
}

/* Nothing writes to the GPU from beside it, so nothing is left to wait for. */
CUresult tpc_do_cuFlushGPUDirectRDMAWrites(CUflushGPUDirectRDMAWritesTarget target,
                                           CUflushGPUDirectRDMAWritesScope scope) {
    bool right =
        target == CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TARGET_CURRENT_CTX &&
        (scope == CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TO_OWNER || scope == CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TO_ALL_DEVICES);
    return right ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
