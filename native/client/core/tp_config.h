/*
 * Where the worker is: connection strings and the variables that hold them.
 *
 * Strings come from the environment of the program or from the URL it names. Nothing here is kept but what the caller's
 * structures hold; any thread may enter. The secret never gets into a sentence or a log line.
 */
#ifndef TP_CONFIG_H
#define TP_CONFIG_H

#include <tp_base.h>

enum tp_transport { TP_TRANSPORT_NATIVE = 1, TP_TRANSPORT_SHMEM = 2 };

struct tp_endpoint {
    uint32_t transport; /* enum tp_transport */
    uint32_t port;
    uint64_t megabytes; /* shmem */
    char host[256];     /* native: name or address without brackets */
    char file[1024];    /* shmem: file to map, or name of a POSIX segment */
    char version[64];   /* opaque */
    char secret[64];    /* empty when there is none */
};

/* What is wrong with a connection string, tested in this order; tensor_fusion.config.Fault has the same names. */
enum tp_fault {
    TP_FAULT_NONE = 0,
    TP_FAULT_EMPTY,
    TP_FAULT_LENGTH,
    TP_FAULT_CHARACTERS,
    TP_FAULT_PROTOCOL,
    TP_FAULT_FIELDS,
    TP_FAULT_HOST,
    TP_FAULT_PORT,
    TP_FAULT_FILE,
    TP_FAULT_SIZE,
    TP_FAULT_VERSION,
    TP_FAULT_SECRET,
};

/* Returns an enum tp_fault; with a fault, `why` holds a sentence. */
TP_EXPORT int tp_parse_connection(const char *text, struct tp_endpoint *out, char *why, size_t why_size);
/* Asks `url` for a connection string, for as long as a worker may need to start; see config_url.c. */
TP_EXPORT enum tp_status tp_fetch_connection(const char *url, char *text, size_t text_size, char *why, size_t why_size);
/* The endpoint that this process's environment names. May take minutes when it is a URL. */
enum tp_status tp_config_endpoint(struct tp_endpoint *out, char *why, size_t why_size);

#endif
