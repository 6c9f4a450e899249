/*
 * What the two files of test_client_local share: checks that name the line, and what the stand-in worker remembers.
 */
#ifndef TEST_CLIENT_LOCAL_H
#define TEST_CLIENT_LOCAL_H

#include "process_internal.h"
#include "tpc_runtime.h"

#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);                                    \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)
#define GIVES(expected, call)                                                                                          \
    do {                                                                                                               \
        int gives_ = (int)(call);                                                                                      \
        if (gives_ != (int)(expected)) {                                                                               \
            fprintf(stderr, "%s:%d: %s gave %d, expected %d\n", __FILE__, __LINE__, #call, gives_, (int)(expected));   \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)
#define OK(call) GIVES(CUDA_SUCCESS, call)

extern _Thread_local struct tp_thread this_thread;
extern const void *loaded_image; /* by the last cuModuleLoadData */

void test_lists(void);
void test_tables(void);
void test_storage(void);
void test_md2(void);
void test_integrity(void);

#endif
