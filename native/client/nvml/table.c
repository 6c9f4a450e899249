/*
 * The private table that nvidia-smi asks for before it does anything else.
 *
 * nvidia-smi (535 and 580, observed) calls the entries of this table that are not null and does without the others; without
 * the table itself it stops and says that NVML's version differs from its own. So every entry is null: what would come
 * through the table, above all the list of processes, is not shown. Every other table is refused by name.
 */
#include "tpn.h"

#include <stdio.h>

static const unsigned char smi_table[16] = {0xc4, 0xfe, 0x3e, 0x6c, 0xc9, 0x8f, 0x6c, 0x4e,
                                            0xa3, 0x27, 0xee, 0x69, 0x6e, 0x12, 0xf7, 0xc4};
/* 580.65.06 reads the first word only when it is not null, and entries up to 249. */
static const void *const entries[512];

nvmlReturn_t tpn_nvmlInternalGetExportTable(const void **table, const void *id) {
    if (!table || !id) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    if (memcmp(id, smi_table, sizeof smi_table) == 0) {
        *table = entries;
        return NVML_SUCCESS;
    }
    char text[33];
    for (size_t i = 0; i < 16; i++) {
        snprintf(text + 2 * i, 3, "%02x", ((const unsigned char *)id)[i]);
    }
    tp_log(TP_WARN, "nvmlInternalGetExportTable: the private table %s is not carried", text);
    return NVML_ERROR_NOT_FOUND;
}
