/*
 * NVML in the session: what generated dispatch expects of it, and the one function that the rest of the session calls.
 *
 * Executor thread only. Arguments are the client's and hostile: generated code has bounded them by the frame, the helpers
 * below bound what the driver will read and write by them.
 */
#ifndef TPW_NVML_H
#define TPW_NVML_H

#include "tpw_stream.h"
#include <tp_nvml.h>

/* Loads NVML and initialises it, once; returns the driver's result, NVML_ERROR_LIBRARY_NOT_FOUND when there is no library. */
int32_t tpw_nvml_open(struct tpw_session *s);
/* NVML's name of one of CUDA's devices. */
int32_t tpw_nvml_of_ordinal(struct tpw_session *s, uint32_t wanted, nvmlDevice_t *out);
/* NVML_SUCCESS once that has succeeded: before it, the table of driver functions is empty. */
int32_t tpw_nvml_enter(struct tpw_session *s);

/* Scratch copy of a struct whose first word holds its size. NVML writes as many bytes as that word says, or refuses the
 * word; the copy has at least the size of the struct as we know it and exactly as many valid bytes as came. */
void *tpw_versioned(struct tpw_session *s, const void *bytes, size_t size, size_t known, int32_t *error);
/* Bytes of a text with its NUL, at most `size`. */
size_t tpw_text_size(const void *text, size_t size);

/* CUDA ordinal of the device behind a client's handle. */
uint32_t tpw_nvml_ordinal(uint64_t handle);

#endif
