/* How the driver API program asks and answers: one line per question, the same text wherever it runs.
 *
 * ASK(label, call) prints "section/label = result" and yields the result; a call that crashes prints "= signal N" and
 * ends its section. GUARDED does the same but goes on after a crash, for calls whose native answer may be one; it
 * belongs to the section's main thread, since the jump buffer is one. VALUE prints a further line with a value;
 * addresses are printed only as null or set, since they differ from run to run. Each section has a fresh process.
 */
#ifndef TENSOR_FUSION_TESTS_DRIVER_API_H
#define TENSOR_FUSION_TESTS_DRIVER_API_H

#include "cu.h"

#include <setjmp.h>

extern sigjmp_buf ask_jump;
extern volatile int ask_guarded;
extern const char *ask_label;

CUresult ask_result(CUresult result);
void ask_crashed(void);
void say_value(const char *label, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define ASK(label, call) (ask_label = (label), ask_result(call))
#define GUARDED(label, call)                                                                                           \
    do {                                                                                                               \
        ask_guarded = 1;                                                                                               \
        if (sigsetjmp(ask_jump, 1) == 0)                                                                               \
            (void)ASK(label, call);                                                                                    \
        else                                                                                                           \
            ask_crashed();                                                                                             \
        ask_guarded = 0;                                                                                               \
    } while (0)
#define VALUE say_value
#define SET(pointer) ((pointer) != NULL ? "set" : "null")

/* cuInit and the primary context of device 0, made current; every section but the first ones starts here. */
CUcontext start_context(void);
/* The test kernels as a module, and one of its functions. */
CUmodule load_kernels(void);
CUfunction kernel(CUmodule module, const char *name);

void section_before_init(void);
void section_names(void);
void section_device(void);
void section_context(void);
void section_primary(void);
void section_stream(void);
void section_event(void);
void section_memory(void);
void section_copy(void);
void section_pointer(void);
void section_pool(void);
void section_vmm(void);
void section_module(void);
void section_library(void);
void section_launch(void);
void section_occupancy(void);
void section_host_function(void);
void section_stream_memory(void);
void section_threads(void);
void section_illegal_address(void);
void section_fork(void);
void section_nulls(void);

#endif
