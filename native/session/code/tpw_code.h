/*
 * What the session remembers of a function or kernel: enough to refuse a launch whose parameters are not the ones it takes.
 */
#ifndef TPW_CODE_H
#define TPW_CODE_H

#include "tpw_memory.h"
#include "tpw_stream.h"

struct tpw_kernel {
    bool
        described; /* the rest is known: the driver tells it in a context only, so not always when the kernel is made */
    bool launched;
    uint32_t parameters, parameter_bytes;
    struct {
        uint32_t offset, size;
    } layout[];
};

/* What is known of a function or kernel, complete; asks the driver at the first use, with a context current. NULL with *error set. */
const struct tpw_kernel *tpw_kernel_described(struct tpw_session *s, struct tpw_object *object, int32_t *error);

/* ---- launch.c ---- */
/* The function or kernel behind a handle, if its parameters take exactly so many bytes. */
struct tpw_object *tpw_launchable(struct tpw_session *s, uint64_t function, size_t bytes, int32_t *error);
/* Whether the driver may wait for room in a launch: in the first one of a kernel with more local memory than those before. */
bool tpw_needs_room(struct tpw_session *s, uint64_t function);
/* The image that a function or kernel is in: its module, or the library of that. */
uint64_t tpw_image_of(struct tpw_session *s, const struct tpw_object *function);

/* ---- images.c ---- */
/* Before the first: the folder may only be read, and not listed; the supervisor writes there, and is told. */
void tpw_images_through_supervisor(struct tpw_session *s);
/* Finishes the images that are being written. The end of the process is bounded by main.c's watch over the client. */
void tpw_images_close(void);

/* ---- taken.c ---- */
/* Around a call that may make the driver load an image on the current device. False, and nothing to end: no context, no loading. */
bool tpw_taken_begin(struct tpw_session *s, struct tpw_taking *taking);
/* Charges what was taken and adds it to the image's record, which it makes; CUDA_ERROR_OUT_OF_MEMORY past the limit. */
int32_t tpw_taken_end(struct tpw_session *s, const struct tpw_taking *taking, struct tpw_taken **taken);
void tpw_taken_give_back(struct tpw_session *s, struct tpw_taken **taken);
void tpw_library_load_now(struct tpw_session *s, uint64_t library);

/* ---- unload.c ---- */
void tpw_image_unload(struct tpw_session *s, bool library, uint64_t native);
/* When queued work is over; a library has no context. The record of what it takes is given back then, or freed. */
int32_t tpw_image_unload_later(struct tpw_session *s, uint64_t native, uint32_t context, struct tpw_taken *taken);

#endif
