/*
 * The private table that nvidia-smi asks for before it does anything else.
 *
 * nvidia-smi calls the entries of this table that are not null and does without the others; without the table itself it
 * stops and says that NVML's version differs from its own (535 and 580, observed). An entry that is missing where it looks
 * for one prints "Uninitialized" instead of "N/A", so those that 580.159.04 was seen to use, with the arguments it gave
 * them, are filled: they touch nothing unless the first argument is a device of ours. Every other table is refused by name.
 */
#include "tpn.h"

#include <stdio.h>

static const unsigned char smi_table[16] = {0xc4, 0xfe, 0x3e, 0x6c, 0xc9, 0x8f, 0x6c, 0x4e,
                                            0xa3, 0x27, 0xee, 0x69, 0x6e, 0x12, 0xf7, 0xc4};

#define ENTRIES 300u

/* Part number, host's PCIe generation, deferred clocks, sparse mode. */
static nvmlReturn_t not_supported(void) { return NVML_ERROR_NOT_SUPPORTED; }

/* Asked by `dmon` and `pmon` with the device, room for an answer, the device again and 1; what is not 0 lets them go on. */
static nvmlReturn_t can_be_monitored(nvmlDevice_t device, unsigned int *answer) {
    if (!answer || !tpn_device_index(device, NULL)) {
        return NVML_ERROR_NOT_SUPPORTED;
    }
    *answer = 1;
    return NVML_SUCCESS;
}

/* Compute, graphics and MPS processes. Only the caller's own would be shown, and nvidia-smi has no context. */
static nvmlReturn_t processes(nvmlDevice_t device, unsigned int *count) {
    if (!count || !tpn_device_index(device, NULL)) {
        return NVML_ERROR_NOT_SUPPORTED;
    }
    *count = 0;
    return NVML_SUCCESS;
}

static const void *const entries[ENTRIES] = {
    [0] = (const void *)(ENTRIES * sizeof(void *)), /* the table's size in bytes */
    [72] = (const void *)can_be_monitored,
    [213] = (const void *)processes,
    [214] = (const void *)processes,
    [215] = (const void *)processes,
    [230] = (const void *)not_supported,
    [231] = (const void *)not_supported,
    [232] = (const void *)not_supported,
    [237] = (const void *)not_supported,
    [249] = (const void *)not_supported,
};

nvmlReturn_t tpn_do_nvmlInternalGetExportTable(const void **table, const void *id) {
    if (memcmp(id, smi_table, sizeof smi_table) == 0) {
        *table = entries;
        return NVML_SUCCESS;
    }
    char text[33];
    for (size_t i = 0; i < 16; i++) {
        snprintf(text + 2 * i, 3, "%02x", ((const unsigned char *)id)[i]);
    }
    tp_log(TP_WARN, "nvmlInternalGetExportTable: the private table %s is not carried", text);
    return NVML_ERROR_INVALID_ARGUMENT;
}
