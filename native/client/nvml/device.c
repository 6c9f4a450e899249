/*
 * The devices of the worker as this process sees them: handles, and the ways to find one.
 *
 * Any thread; the list is written before the first nvmlInit returns (state.c) and never changes. A handle says its index, so
 * nothing here asks the worker.
 */
#include "tpn.h"

#include <stdio.h>

struct tpn_device tpn_devices[TP_NVML_DEVICES];
unsigned int tpn_device_count;

nvmlDevice_t tpn_device_at(unsigned int index) {
    return (nvmlDevice_t)(uintptr_t)tp_nvml_device(TPG_NVMLDEVICE, index);
}

bool tpn_device_index(nvmlDevice_t device, unsigned int *index) {
    uint64_t handle = (uint64_t)(uintptr_t)device;
    uint32_t at = tp_id_index(tp_handle_id(handle));
    if (at >= tpn_device_count || handle != tp_nvml_device(TPG_NVMLDEVICE, at)) {
        return false;
    }
    if (index) {
        *index = at;
    }
    return true;
}

typedef bool being(const struct tpn_device *device, const void *what);

/* The first device that is what was asked for. */
static nvmlReturn_t find(being *is, const void *what, nvmlDevice_t *device) {
    for (unsigned int i = 0; i < tpn_device_count; i++) {
        if (is(&tpn_devices[i], what)) {
            *device = tpn_device_at(i);
            return NVML_SUCCESS;
        }
    }
    return NVML_ERROR_NOT_FOUND;
}

/* cuda.core asks with what cuDeviceGetUuid gives, which has no "GPU-" (580.159.04 finds the device). */
static bool has_uuid(const struct tpn_device *device, const void *asked) {
    const char *told = device->uuid;
    return strcmp(told, asked) == 0 || (strncmp(told, "GPU-", 4) == 0 && strcmp(told + 4, asked) == 0);
}

nvmlReturn_t tpn_do_nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device) {
    return find(has_uuid, uuid, device);
}

/* The 16 bytes behind "GPU-xxxxxxxx-xxxx-…"; false when the text is something else. */
static bool uuid_bytes(const char *text, unsigned char out[16]) {
    size_t digits = 0;
    memset(out, 0, 16);
    for (const char *at = strncmp(text, "GPU-", 4) == 0 ? text + 4 : ""; *at; at++) {
        if (*at == '-') {
            continue;
        }
        int value = *at >= '0' && *at <= '9'                 ? *at - '0'
                    : (*at | 32) >= 'a' && (*at | 32) <= 'f' ? (*at | 32) - 'a' + 10
                                                             : -1;
        if (value < 0 || digits == 32) {
            return false;
        }
        out[digits / 2] = (unsigned char)(out[digits / 2] << 4 | value);
        digits++;
    }
    return digits == 32;
}

static bool has_bytes(const struct tpn_device *device, const void *asked) {
    unsigned char bytes[16];
    return uuid_bytes(device->uuid, bytes) && memcmp(bytes, asked, sizeof bytes) == 0;
}

nvmlReturn_t tpn_do_nvmlDeviceGetHandleByUUIDV(const nvmlUUID_t *uuid, nvmlDevice_t *device) {
    if (uuid->type == NVML_UUID_TYPE_ASCII) {
        char text[sizeof uuid->value.str + 1] = {0};
        memcpy(text, uuid->value.str, sizeof uuid->value.str);
        return tpn_nvmlDeviceGetHandleByUUID(text, device);
    }
    if (uuid->type != NVML_UUID_TYPE_BINARY) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    return find(has_bytes, uuid->value.bytes, device);
}

/* Domain, bus, device and function as hexadecimal. What NVML 580 takes: the domain may be left out, or else the function; the
 * function is 0; what follows it is not looked at. */
static bool parse_bus_id(const char *text, unsigned int out[3]) {
    unsigned int function = 0;
    int end = 0;
    if (sscanf(text, "%x:%x:%x%n", &out[0], &out[1], &out[2], &end) == 3) {
        return !text[end] || (sscanf(text + end, ".%x", &function) == 1 && function == 0);
    }
    out[0] = 0;
    return sscanf(text, "%x:%x.%x", &out[1], &out[2], &function) == 3 && function == 0;
}

static bool is_at(const struct tpn_device *device, const void *asked) {
    const unsigned int *wanted = asked;
    return device->pci.domain == wanted[0] && device->pci.bus == wanted[1] && device->pci.device == wanted[2];
}

nvmlReturn_t tpn_nvmlDeviceGetHandleByPciBusId_v2(const char *pciBusId, nvmlDevice_t *device) {
    unsigned int wanted[3];
    if (!pciBusId || !device || !parse_bus_id(pciBusId, wanted)) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    return find(is_at, wanted, device);
}

static bool has_serial(const struct tpn_device *device, const void *asked) {
    return *device->serial && strcmp(device->serial, asked) == 0;
}

nvmlReturn_t tpn_do_nvmlDeviceGetHandleBySerial(const char *serial, nvmlDevice_t *device) {
    return find(has_serial, serial, device);
}

/* The older structs begin like the one of _v3 and end sooner. NVML writes as far as pciDeviceId and pciSubSystemId. */
nvmlReturn_t tpn_pci_info(nvmlDevice_t device, nvmlPciInfo_t *pci, size_t size) {
    unsigned int index;
    if (!pci || !tpn_device_index(device, &index)) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    memcpy(pci, &tpn_devices[index].pci, size);
    return NVML_SUCCESS;
}

nvmlReturn_t tpn_nvmlDeviceGetNvLinkRemotePciInfo(nvmlDevice_t device, unsigned int link, nvmlPciInfo_t *pci) {
    nvmlPciInfo_t whole;
    nvmlReturn_t result = tpn_nvmlDeviceGetNvLinkRemotePciInfo_v2(device, link, pci ? &whole : NULL);
    if (result == NVML_SUCCESS) {
        memcpy(pci, &whole, 32); /* as far as pciDeviceId (580.159.04, measured) */
    }
    return result;
}
