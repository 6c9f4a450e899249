// What copies and objects have to know of arrays: sim_array.c.
#ifndef SIM_ARRAY_H
#define SIM_ARRAY_H

#include "sim.h"

// The texels of an array: `slices` times `rows` rows of `width` bytes, side by side from `base` on.
typedef struct {
    uint64_t base, width, rows, slices;
} sim_box_t;

// Under sim.lock. Error 1 for one that has no memory, that is none, or whose context is gone.
CUresult sim_array_box(CUarray handle, sim_box_t *box);
// Whether the array, or else the mipmap, is one.
bool sim_array_is(CUarray array, CUmipmappedArray mipmap);

#endif
