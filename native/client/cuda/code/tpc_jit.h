/*
 * What loading an image and linking at run time share in the client: options, log buffers, bodies, files.
 */
#ifndef TPC_JIT_H
#define TPC_JIT_H

#include "tpc.h"

#define TPC_JIT_OPTIONS 32u

/* A buffer of the program that the compiler's words go to. */
struct tpc_log {
    char *memory;
    size_t size;
    void **filled; /* the option that gave the size says afterwards how much was written */
};
void tpc_log_fill(const struct tpc_log *log, const void *text, size_t size);

/* Scalar options become pairs for the wire (room for 2 * TPC_JIT_OPTIONS); log buffers stay here. */
CUresult tpc_jit_gather(unsigned int count, const CUjit_option *options, void **values, uint64_t *pairs, size_t *used,
                        struct tpc_log *info, struct tpc_log *errors);
/* Small bodies travel in the frame that follows (*data, *data_size), large ones are uploaded as *transfer. */
CUresult tpc_body_send(const void *bytes, size_t size, const void **data, size_t *data_size, uint64_t *transfer);
/* The bytes of a file of the client's machine, with a NUL behind them that *size does not count; the caller frees. */
CUresult tpc_read_file(const char *path, char **bytes, size_t *size);

#endif
