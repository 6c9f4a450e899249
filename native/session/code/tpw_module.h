/*
 * What function.c uses of module.c: images with their kernels.
 *
 * Executor thread only; handles, places and names in it are the client's and checked here.
 */
#ifndef TPW_MODULE_H
#define TPW_MODULE_H

#include "tpw_code.h"

/* One parameter of a function, or of a kernel of a library; *more is false behind the last. */
int32_t tpw_parameter(struct tpw_session *s, bool library, uint64_t native, size_t index, size_t *offset, size_t *size,
                      bool *more);
int32_t tpw_kernel_text(struct tpw_session *s, bool library, uint64_t native, const char **name);
static inline uint32_t tpw_larger(uint32_t bytes, size_t end) { return end > bytes ? (uint32_t)end : bytes; }
/* The native at a place of an image's list; 0 with *error set. */
uint64_t tpw_image_at(struct tpw_session *s, uint32_t kind, uint64_t owner, uint32_t index, int32_t *error);
struct tp_frame tpw_of_owner(struct tpw_session *s, const struct tp_frame *frame, uint32_t kind, uint64_t owner);
void tpw_owned_by(struct tpw_session *s, uint32_t kind, uint64_t handle, uint64_t owner);
int32_t tpw_takes_more(struct tpw_session *s, const struct tpw_taking *taking, uint64_t library);

#endif
