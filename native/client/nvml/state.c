/*
 * nvmlInit and nvmlShutdown: a count of references, and the connection that the first of them makes.
 *
 * Any thread. A forked child has no NVML until it calls nvmlInit itself: the owner's process id tells, so that nothing has to
 * be hooked into fork. State is written under `lock`; the count of references is also read without it.
 */
#include "tpn.h"

#include "tpg_nvml_send.h"
#include <sched.h>
#include <tp_wait.h>
#include <unistd.h>

static struct tp_lock lock;
static _Atomic int references;
static _Atomic int owner; /* process id; -1 while a child is clearing what it inherited */
static bool started;
static int cuda_version;
static char nvml_version[NVML_SYSTEM_NVML_VERSION_BUFFER_SIZE];

/* True in the process that owns the state. */
static bool own(void) { return atomic_load_explicit(&owner, memory_order_acquire) == (int)getpid(); }

static void take_ownership(void) {
    int me = (int)getpid(), seen = atomic_load_explicit(&owner, memory_order_acquire);
    while (seen != me) {
        if (seen != -1 && atomic_compare_exchange_strong(&owner, &seen, -1)) {
            lock = (struct tp_lock){0};
            atomic_store(&references, 0);
            atomic_store(&tpn_conn, NULL);
            started = false;
            tpn_pure_forget();
            tpn_handles_reset();
            atomic_store_explicit(&owner, me, memory_order_release);
            return;
        }
        sched_yield();
        seen = atomic_load_explicit(&owner, memory_order_acquire);
    }
}

nvmlReturn_t tpn_ready(void) {
    if (atomic_load_explicit(&references, memory_order_acquire) == 0 || !own()) {
        return NVML_ERROR_UNINITIALIZED;
    }
    return tp_alive(atomic_load_explicit(&tpn_conn, memory_order_acquire)) ? NVML_SUCCESS : tpn_lost();
}

/* No worker is to an NVML program what no driver is. The reason was logged by the connection. */
static nvmlReturn_t of_status(enum tp_status status) {
    switch (status) {
    case TP_OK:
        return NVML_SUCCESS;
    case TP_ERROR_LOST:
    case TP_ERROR_PROTOCOL:
        return NVML_ERROR_GPU_IS_LOST;
    case TP_ERROR_MEMORY:
        return NVML_ERROR_MEMORY;
    default:
        return NVML_ERROR_DRIVER_NOT_LOADED;
    }
}

static nvmlReturn_t learn(void) {
    struct tpg_nvml_start_out o;
    struct tp_reply reply;
    nvmlReturn_t result = tpn_call_nvml_start("nvmlInit", &o, &reply);
    if (result == NVML_SUCCESS) {
        size_t count = o.pci_count;
        if (count > TP_NVML_DEVICES || o.uuids_size != count * TP_NVML_UUID ||
            o.serials_size != count * TP_NVML_SERIAL || o.nvml_version_size != sizeof nvml_version) {
            result = tpn_bad_reply(&reply);
        } else {
            for (size_t i = 0; i < count; i++) {
                struct tpn_device *d = &tpn_devices[i];
                memcpy(&d->pci, (const char *)o.pci + i * sizeof d->pci, sizeof d->pci);
                memcpy(d->uuid, (const char *)o.uuids + i * TP_NVML_UUID, TP_NVML_UUID - 1);
                memcpy(d->serial, (const char *)o.serials + i * TP_NVML_SERIAL, TP_NVML_SERIAL - 1);
                d->pci.busId[sizeof d->pci.busId - 1] = 0;
            }
            memcpy(nvml_version, o.nvml_version, sizeof nvml_version - 1);
            cuda_version = o.cuda_version;
            tpn_device_count = (unsigned int)count;
            started = true;
        }
    }
    tp_reply_free(&reply);
    return result;
}

/* The lock is held; `seen` interruptions had been before it was asked for. */
static nvmlReturn_t start(uint32_t seen) {
    enum tp_status status;
    if (!started && tp_interruptions() != seen) {
        return of_status(TP_ERROR_INTERRUPTED); /* as was the thread that held the lock */
    }
    struct tp_conn *conn = tp_connection(&status);
    if (!conn) {
        return of_status(status);
    }
    atomic_store_explicit(&tpn_conn, conn, memory_order_release);
    if (started) {
        return NVML_SUCCESS;
    }
    tp_wait_begin();
    nvmlReturn_t result = learn();
    tp_wait_end();
    return result;
}

nvmlReturn_t tpn_start(void) {
    take_ownership();
    uint32_t seen = tp_interruptions();
    tp_lock_take(&lock);
    nvmlReturn_t result = start(seen);
    tp_lock_drop(&lock);
    return result;
}

nvmlReturn_t tpn_nvmlInitWithFlags(unsigned int flags) {
    /* NO_GPUS and NO_ATTACH only relax what initialisation insists on, and it insists on nothing that they relax. */
    (void)flags;
    take_ownership();
    uint32_t seen = tp_interruptions();
    tp_lock_take(&lock);
    nvmlReturn_t result = start(seen);
    if (result == NVML_SUCCESS) {
        atomic_fetch_add_explicit(&references, 1, memory_order_release);
    }
    tp_lock_drop(&lock);
    return result;
}

nvmlReturn_t tpn_nvmlShutdown(void) {
    nvmlReturn_t result = NVML_SUCCESS;
    take_ownership();
    tp_lock_take(&lock);
    if (atomic_load(&references) == 0) {
        result = NVML_ERROR_UNINITIALIZED;
    } else {
        atomic_fetch_sub_explicit(&references, 1, memory_order_release);
    }
    tp_lock_drop(&lock);
    return result;
}

nvmlReturn_t tpn_unsupported(const char *name, const char *reason, nvmlReturn_t code, _Atomic bool *said) {
    tp_count_unsupported(name);
    if (!atomic_exchange_explicit(said, true, memory_order_relaxed)) {
        /* Not as loud as for CUDA: monitors ask for everything that a GPU may have, and show a dash. */
        tp_log(TP_WARN, "%s is not carried to the GPU worker and answers \"%s\": %s", name, tpn_nvmlErrorString(code),
               reason);
    }
    return code;
}

/* ---- versions and texts ---- */

nvmlReturn_t tpn_do_nvmlSystemGetCudaDriverVersion_v2(int *cudaDriverVersion) {
    *cudaDriverVersion = cuda_version;
    return NVML_SUCCESS;
}

/* Before nvmlInit, too. */
nvmlReturn_t tpn_do_nvmlSystemGetNVMLVersion(char *version, unsigned int length) {
    nvmlReturn_t result = tpn_start();
    if (result != NVML_SUCCESS) {
        return result;
    }
    size_t size = strlen(nvml_version) + 1;
    if (length < size) {
        return NVML_ERROR_INSUFFICIENT_SIZE;
    }
    memcpy(version, nvml_version, size);
    return NVML_SUCCESS;
}

const char *tpn_nvmlErrorString(nvmlReturn_t result) {
    const char *text = tpg_nvml_error_text((int)result);
    return text ? text : "Unknown Error";
}
