/*
 * The integrity check that the CUDA runtime makes three times before it trusts a driver.
 *
 * Every input is a fact of this process (its id, the thread, addresses of the tables handed out, the devices as this library
 * reports them), so only the client can compute it; process and thread are asked anew each time, so a forked child answers
 * for itself. Any thread; writes only the caller's result. The key and the layout of the message were found by public
 * projects (ZLUDA); the runtimes of CUDA 11.8, 12.1, 12.4, 12.9, 13.0 and 13.2 were tried and accept the answer.
 */
#include "tpc_runtime.h"

#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

static const unsigned char key[16] = {0x14, 0x6a, 0xdd, 0xae, 0x53, 0xa9, 0xa7, 0x52,
                                      0xaa, 0x08, 0x41, 0x36, 0x0b, 0xf5, 0x5a, 0x9f};

struct message {
    uint32_t driver_version;
    uint32_t version;
    uint32_t process;
    uint32_t thread;
    uint64_t runtime_table;
    uint64_t integrity_table;
    uint64_t integrity_function;
    uint64_t unix_seconds;
    struct message_device {
        uint8_t uuid[16];
        int32_t domain, bus, device;
    } devices[];
};
_Static_assert(sizeof(struct message) == 48 && sizeof(struct message_device) == 28, "as the runtime computes it");

CUresult tpc_integrity_check(uint32_t version, uint64_t unix_seconds, uint64_t result[2]) {
    if (!result) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    /* The last digit is the kind of question: the first two kinds have one answer. */
    if (version % 10 < 2) {
        result[0] = version % 10 == 0 ? 0x3341181c03cb675cull : 0x1841181c03cb675cull;
        result[1] = 0x8ed383aa1f4cd1e8ull;
        return CUDA_SUCCESS;
    }
    int count = tpc_device_count;
    size_t size = sizeof(struct message) + (size_t)count * sizeof(struct message_device);
    struct message *m = calloc(1, size);
    if (!m) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    const void *const *table = tpc_integrity_table();
    m->driver_version = (uint32_t)tpc_driver_version;
    m->version = version;
    m->process = (uint32_t)getpid();
    m->thread = (uint32_t)(uintptr_t)pthread_self();
    m->runtime_table = (uint64_t)(uintptr_t)tpc_runtime_table();
    m->integrity_table = (uint64_t)(uintptr_t)table;
    m->integrity_function = (uint64_t)(uintptr_t)table[1];
    m->unix_seconds = unix_seconds;
    for (int i = 0; i < count; i++) {
        const struct tp_device_description *what = &tpc_devices[i].what;
        memcpy(m->devices[i].uuid, what->uuid, sizeof m->devices[i].uuid);
        m->devices[i].domain = what->attributes[CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID];
        m->devices[i].bus = what->attributes[CU_DEVICE_ATTRIBUTE_PCI_BUS_ID];
        m->devices[i].device = what->attributes[CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID];
    }
    unsigned char digest[16];
    tpc_hmac_md2(key, sizeof key, m, size, digest);
    memcpy(result, digest, sizeof digest);
    free(m);
    return CUDA_SUCCESS;
}
