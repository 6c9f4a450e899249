/*
 * SHA-256 (FIPS 180-4): the names of module images in the worker's cache.
 *
 * Any thread; a struct belongs to the one that hashes with it. With the processor's SHA instructions about 2 GB/s, in plain C
 * about a sixth of that; which of them is decided when a struct begins.
 */
#ifndef TP_SHA256_H
#define TP_SHA256_H

#include <tp_base.h>

#define TP_SHA256_SIZE 32u

struct tp_sha256 {
    uint32_t state[8];
    uint64_t size; /* bytes added so far */
    unsigned char rest[64];
    bool instructions; /* true only where the processor has them; false is right everywhere */
};

TP_EXPORT void tp_sha256_begin(struct tp_sha256 *sha);
TP_EXPORT void tp_sha256_add(struct tp_sha256 *sha, const void *bytes, size_t size);
TP_EXPORT void tp_sha256_end(struct tp_sha256 *sha, unsigned char digest[TP_SHA256_SIZE]);
/* All three. */
TP_EXPORT void tp_sha256(const void *bytes, size_t size, unsigned char digest[TP_SHA256_SIZE]);

#endif
