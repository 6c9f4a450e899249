/*
 * What the files about devices and contexts share, and the start.
 *
 * Memory read here is written by this process alone, except for the device descriptions, which device.c bounds when they
 * arrive.
 */
#ifndef TPC_PROCESS_INTERNAL_H
#define TPC_PROCESS_INTERNAL_H

#include "tpc.h"

/* ---- state.c ---- */
/* Connects and runs the `start` operation once, which fills in tpc_driver_version and the devices. */
CUresult tpc_start(void);

/* ---- device.c ---- */
/* Fills the device list from the answer of the `start` operation and applies CUDA_VISIBLE_DEVICES. Called once, by cuInit. */
CUresult tpc_devices_learn(int driver_version, const unsigned char *descriptions, size_t size);
/* Which of `count` devices CUDA_VISIBLE_DEVICES names, in that order; returns how many. */
int tpc_visible(const char *variable, const struct tp_device_description *devices, int count, int *order);

/* ---- context.c ---- */
/* A record behind a handle of ours; never freed, because any thread's stack may still name it after its destruction. */
struct tpc_context_record {
    struct tpc_context base; /* first: tables and the rest of the client see only this */
    _Atomic bool info_known; /* the fields below and base.limits; released after them */
    int32_t limit_results[TP_DEVICE_LIMITS];
    int priority_low, priority_high;
};
/* The device's error is theirs from now on. Any thread, without a lock. */
void tpc_contexts_break(int device);
/* Mints the handles of the primary contexts. Called once, when the devices are known. */
CUresult tpc_contexts_start(void);

/* Makes a context on the worker, with its record: a part of the device's primary one if it has a share of the device. */
CUresult tpc_context_make(const char *name, CUdevice device, unsigned int flags, CUdevResourceDesc share,
                          struct tpc_context **out);
/* Ends a created context, which is not active any more: whoever has seen to that. */
CUresult tpc_context_end(const char *name, struct tpc_context *context);
/* Of two threads that end the same context one wins. */
bool tpc_context_over_now(struct tpc_context *context);
/* A living context, or why it is none. */
CUresult tpc_context_of(CUcontext handle, struct tpc_context **out);

/* ---- green.c ---- */
/* A green context of this primary one lives. */
bool tpc_greens_live(const struct tpc_context *primary, const struct tpc_context *all);

/* ---- limits.c ---- */
/* Limits and priorities as a fresh context of that device has them, if the device description told. */
void tpc_limits_fresh(struct tpc_context_record *record);

/* ---- worker_trace.c ---- */
/* The worker's side goes into the records, too. Before the `start` operation. */
void tpc_trace_worker(void);

#endif
