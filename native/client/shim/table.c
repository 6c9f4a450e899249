/*
 * libteleport's side of the table: hands it to the libraries of exports, and keeps whose exports cuGetProcAddress names.
 *
 * Any thread, at the first call that a copy of libcuda or libnvidia-ml gets. The tables are constants.
 */
#include "tpl.h"

#include <string.h>

static tpl_addresses *_Atomic rows;

const void *tp_client_table(const char *name, const char *layout, tpl_addresses *addresses) {
    static const struct {
        const char *name, *layout;
        const void *table;
    } tables[] = {{"cuda", TPG_CUDA_LAYOUT, &tpg_cuda_table}, {"nvml", TPG_NVML_LAYOUT, &tpg_nvml_table}};
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++) {
        if (strcmp(name, tables[i].name) == 0 && strcmp(layout, tables[i].layout) == 0) {
            tpl_addresses *none = NULL;
            if (addresses) {
                atomic_compare_exchange_strong(&rows, &none, addresses);
            }
            return tables[i].table;
        }
    }
    return NULL;
}

const struct tpg_address *tpl_address_rows(const char *name, int flag, int *count) {
    tpl_addresses *asked = atomic_load(&rows);
    return asked ? asked(name, flag, count) : NULL;
}
