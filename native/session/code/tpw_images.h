/*
 * The worker's cache of module images: files named by the SHA-256 of their bytes, shared by all sessions and across restarts.
 *
 * One per process, opened by the first question from TF_IMAGE_CACHE_PATH and TF_IMAGE_CACHE_SIZE. Nothing that goes wrong
 * here is an error to a client: it is said once in the log, and images travel as without a cache.
 */
#ifndef TPW_IMAGES_H
#define TPW_IMAGES_H

#include "tpw_code.h"
#include <tp_sha256.h>

/* Executor only. False when this worker keeps no images. */
bool tpw_images_open(void);
/* The image of that hash, verified, in memory that the caller frees; NULL when it is not there. */
unsigned char *tpw_images_find(const unsigned char hash[TP_SHA256_SIZE], uint64_t size);
/* Smaller ones travel inside the call, and clients do not ask for them: as files they would only be many. */
#define TPW_IMAGE_LEAST (64u << 10)
/* Takes `bytes` and writes them aside, if they have the hash that the client says. */
void tpw_images_keep(struct tpw_session *s, unsigned char *bytes, size_t size,
                     const unsigned char hash[TP_SHA256_SIZE]);

/* ---- between images.c and images_store.c ---- */
#define TPW_IMAGE_NAME (2 * TP_SHA256_SIZE + 1)
struct tpw_image_folder {
    int fd;                       /* of the folder; constant once it is open */
    uint64_t bound;               /* bytes */
    const struct tp_quota *quota; /* the quota page, NULL without one */
};
void tpw_image_name(char name[TPW_IMAGE_NAME], const unsigned char hash[TP_SHA256_SIZE]);
/* Any thread: writes one image, making room first. False when writing is of no use any more, with a line in the log. */
bool tpw_image_store(const struct tpw_image_folder *folder, const unsigned char *bytes, size_t size,
                     const unsigned char hash[TP_SHA256_SIZE]);

#endif
