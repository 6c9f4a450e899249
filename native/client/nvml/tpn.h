/*
 * NVML in the client: state of the process, helpers that generated stubs expect, the list of devices.
 *
 * Lives in a stranger's process. Any thread may be in any function; nothing here runs before the program's first call. The
 * device list is written once, under the state's lock, before the first nvmlInit returns, and only read after that. Replies
 * are the worker's: they are bounded by the buffers that the caller named.
 */
#ifndef TPN_H
#define TPN_H

#include "tpg_client.h"
#include "tpg_nvml.h"
#include "tpg_schema.h"
#include <string.h>
#include <tp_base.h>
#include <tp_conn.h>
#include <tp_nvml.h>
#include <tp_trace.h>

/* ---- state (state.c) ---- */
/* NVML_SUCCESS between nvmlInit and the matching nvmlShutdown, in the process that called nvmlInit, while the worker lives. */
nvmlReturn_t tpn_ready(void);
/* What an export does first. `traced` is the same call with the trace around it. */
#define TPN_ANYTIME(traced)                                                                                            \
    do {                                                                                                               \
        if (TP_UNLIKELY(atomic_load_explicit(&tp_trace_state, memory_order_relaxed) != TP_TRACE_OFF) &&                \
            tp_trace_on()) {                                                                                           \
            return traced;                                                                                             \
        }                                                                                                              \
    } while (0)
#define TPN_ENTER(traced)                                                                                              \
    do {                                                                                                               \
        TPN_ANYTIME(traced);                                                                                           \
        nvmlReturn_t ready = tpn_ready();                                                                              \
        if (ready != NVML_SUCCESS) {                                                                                   \
            return ready;                                                                                              \
        }                                                                                                              \
    } while (0)
/* Connects and learns the devices, once; for what NVML answers before nvmlInit. */
nvmlReturn_t tpn_start(void);

#define TPN_ANSWER(name, result) tpn_answer(name, result)
/* Every failure of an exported function, at debug level. */
static inline nvmlReturn_t tpn_answer(const char *name, nvmlReturn_t result) {
    if (TP_UNLIKELY(result != NVML_SUCCESS)) {
        tp_log(TP_DEBUG, "%s returns %d", name, (int)result);
    }
    return result;
}

#define TPN_NULL NVML_ERROR_INVALID_ARGUMENT

/* An exported name that is not served: logged once by name, with the reason of its line in api/. Returns `code`. */
nvmlReturn_t tpn_unsupported(const char *name, const char *reason, nvmlReturn_t code, _Atomic bool *said);

/* ---- devices (device.c) ---- */
struct tpn_device {
    char uuid[TP_NVML_UUID];
    char serial[TP_NVML_SERIAL];
    nvmlPciInfo_t pci;
};
extern struct tpn_device tpn_devices[TP_NVML_DEVICES];
extern unsigned int tpn_device_count;
/* False for every handle that nvmlDeviceGetHandleBy… has not handed out. */
bool tpn_device_index(nvmlDevice_t device, unsigned int *index);
nvmlDevice_t tpn_device_at(unsigned int index);
/* The first `size` bytes, as older structs have them. */
nvmlReturn_t tpn_pci_info(nvmlDevice_t device, nvmlPciInfo_t *pci, size_t size);
/* affinity.c: numbers of what is online, by a list of the kernel, as a set. */
nvmlReturn_t tpn_online(const char *path, nvmlDevice_t device, unsigned int words, unsigned long *set);

/* ---- handles (handle.c) ---- */
/* A new handle of an event set or a sample, 0 when a program has as many as it may. */
uint64_t tpn_mint(uint32_t kind);
/* Nothing happens for one that is not alive. */
void tpn_unmint(uint32_t kind, uint64_t handle);
bool tpn_handle_alive(uint32_t kind, uint64_t handle);
/* Forgets all but the devices, after a fork. */
void tpn_handles_reset(void);
#define TPN_NO_HANDLES NVML_ERROR_INSUFFICIENT_RESOURCES

#define TPN_CHECK_HANDLE(KIND, handle, optional)                                                                       \
    do {                                                                                                               \
        uint64_t checked_handle = (uint64_t)(uintptr_t)(handle);                                                       \
        if (!((optional) && !checked_handle) && !tpn_handle_alive(TPG_##KIND, checked_handle)) {                       \
            return NVML_ERROR_INVALID_ARGUMENT;                                                                        \
        }                                                                                                              \
    } while (0)

/* Bytes of a struct whose first word holds its size. A size that is not at most that of the struct as the headers know it is
 * refused as NVML refuses an unknown version, before memory behind it is read. */
#define TPN_VERSIONED(size, pointer)                                                                                   \
    do {                                                                                                               \
        unsigned int version_word;                                                                                     \
        memcpy(&version_word, (pointer), sizeof version_word);                                                         \
        (size) = version_word & 0xffffff;                                                                              \
        if ((size) < sizeof version_word || (size) > sizeof *(pointer)) {                                              \
            return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;                                                               \
        }                                                                                                              \
    } while (0)

/* ---- sending (send.c) ---- */
/* Room for one frame with `size` body bytes; returns the body. NULL when the worker is lost. tpn_call must follow. */
unsigned char *tpn_reserve(uint16_t op, size_t size);
/* The reply must be freed, whatever the result. */
nvmlReturn_t tpn_call(const char *name, struct tp_reply *reply);
/* Like a call, but remembers answers by (op, key). */
nvmlReturn_t tpn_pure(const char *name, uint16_t op, const unsigned char *key, size_t size, struct tp_reply *reply);
void tpn_pure_forget(void);
nvmlReturn_t tpn_lost(void);
nvmlReturn_t tpn_bad_reply(const struct tp_reply *reply);
#define TPN_FITS(size)                                                                                                 \
    do {                                                                                                               \
        if (TP_UNLIKELY((size) > TP_FRAME_MAX - sizeof(struct tp_frame))) {                                            \
            return NVML_ERROR_INVALID_ARGUMENT;                                                                        \
        }                                                                                                              \
    } while (0)

/* The process's connection, set by tpn_start. */
extern struct tp_conn *_Atomic tpn_conn;

#endif
