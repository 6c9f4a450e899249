// What the two NVML files of the simulator share: the way into a function, and copying a text out.
//
// Any thread enters; the device table is constant once nvmlInit has succeeded, what changes is read under the
// simulator's locks.
#ifndef SIM_NVML_H
#define SIM_NVML_H

#include "sim.h"

nvmlReturn_t sim_nvml_enter(nvmlDevice_t device, int *index);
nvmlReturn_t sim_nvml_started(void);
nvmlReturn_t sim_nvml_text(char *out, unsigned length, const char *text);
// Whether work of this process is under way on the device.
bool sim_nvml_busy(int index);

// Resolves `device` to `index`, after checking that NVML is initialised and that every out-parameter is there.
#define SIM_NVML_DEVICE(device, index, outs_there)                                                                     \
    int index;                                                                                                         \
    nvmlReturn_t entered_ = sim_nvml_enter(device, &index);                                                            \
    if (entered_ != NVML_SUCCESS)                                                                                      \
        return entered_;                                                                                               \
    (void)index;                                                                                                       \
    if (!(outs_there))                                                                                                 \
    return NVML_ERROR_INVALID_ARGUMENT

// The same for a function that has no device.
#define SIM_NVML_STARTED()                                                                                             \
    do {                                                                                                               \
        nvmlReturn_t started_ = sim_nvml_started();                                                                    \
        if (started_ != NVML_SUCCESS)                                                                                  \
            return started_;                                                                                           \
    } while (0)

#endif
