// What the copy families share: one-dimensional copies and sets (sim_copy.c), rectangles and boxes (sim_copy_3d.c).
//
// A side of a copy is prepared from what the caller says about the address (device, host, or "find out"), then the
// whole copy is queued. Nothing here keeps state; the memory map is consulted under its own lock.
#ifndef SIM_COPY_H
#define SIM_COPY_H

#include "sim.h"

typedef enum { SIM_PLACE_DEVICE, SIM_PLACE_HOST, SIM_PLACE_UNIFIED } sim_place_t;

CUresult sim_side_prepare(sim_context_t *context, sim_side_t *side, sim_place_t place, uint64_t width, uint64_t height,
                          uint64_t depth, bool write, bool *pinned);
// `peers`: the devices whose rights the two sides of a peer copy have; NULL: those of the stream's device.
typedef struct {
    int dst, src;
} sim_peers_t;
CUresult sim_copy_submit(sim_context_t *context, CUstream stream, sim_copy_t *copy, sim_place_t dst, sim_place_t src,
                         const sim_peers_t *peers, bool async);
CUresult sim_copy_peers(CUcontext dst, CUcontext src, sim_peers_t *peers); // of the contexts that a peer copy names
int sim_copy_device(sim_context_t *context, CUstream stream);              // the device that works for a stream
// The copy that a memcpy node makes.
CUresult sim_copy_box_prepare(sim_context_t *context, const CUDA_MEMCPY3D *p, sim_copy_t *copy);

#endif
