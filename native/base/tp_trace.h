/*
 * The trace of API calls: TF_LOG_LEVEL=trace, and the tables by which a call's arguments are shown.
 *
 * The tables are generated from the prototypes and are constants of the library that exports the functions. A traced call is an
 * ordinary one with a line behind it; what the program's pointers lead to is read by the kernel (process_vm_readv), never by
 * this process itself, so a pointer to nowhere is shown as such and ends nobody. Any thread, also in a child after fork.
 */
#ifndef TP_TRACE_H
#define TP_TRACE_H

#include <tp_base.h>

/* ---- how values are shown ---- */
enum tp_form { TP_SIGNED, TP_UNSIGNED, TP_REAL, TP_ADDRESS, TP_TEXT, TP_POINTER, TP_STRUCT, TP_UNKNOWN };
/* Names are offsets in one text and types are numbers, so that nothing here is relocated when a process starts. */
struct tp_type {
    uint8_t form;
    uint16_t size;
    /* TP_SIGNED, TP_ADDRESS: values with names; TP_STRUCT: members; TP_TEXT, TP_POINTER: 1 if the call writes there */
    uint16_t count;
    uint16_t to;   /* TP_POINTER: the type */
    uint32_t list; /* the first of `count` in named (by rising value) or members */
};
struct tp_named {
    uint32_t name;
    int64_t value;
};
struct tp_member {
    uint32_t name;
    uint16_t offset, count, type;
    bool text;
};
struct tp_argument {
    uint32_t name;
    uint16_t type;
    uint8_t together; /* so many arguments from here on are shown as one, in parentheses */
};
struct tp_tables {
    const char *names;
    const struct tp_type *types;
    const struct tp_named *named;
    const struct tp_member *members;
    const struct tp_argument *arguments;
};
struct tp_call {
    uint32_t name, arguments;
    uint16_t returns, count;
    bool known; /* what its arguments are */
};

/* ---- whether ---- */
enum tp_trace_state { TP_TRACE_UNKNOWN, TP_TRACE_OFF, TP_TRACE_ON };
TP_EXPORT extern _Atomic int tp_trace_state;
/* Reads the environment when nobody has yet, which is before the connection is made. */
TP_EXPORT bool tp_trace_on(void);

/* ---- one call ---- */
#define TP_TRACE_TEXT 1700u /* with the log's own head below its bound */
struct tp_trace_text {
    const struct tp_tables *tables;
    size_t used;
    char at[TP_TRACE_TEXT];
};
/* "(arguments) = result"; as for tp_trace_end. */
void tp_trace_show(struct tp_trace_text *text, const struct tp_tables *tables, const struct tp_call *call,
                   const void *const *values, const void *result, bool succeeded);
/* The time of its begin. */
TP_EXPORT uint64_t tp_trace_begin(void);
/* Writes the line. `values` are the addresses of the arguments, `result` that of the result; only a call that `succeeded` has
 * written through its pointers. Leaves errno as it was. */
TP_EXPORT void tp_trace_end(const struct tp_tables *tables, const struct tp_call *call, const void *const *values,
                            const void *result, bool succeeded, uint64_t begin);

/* ---- the worker's side, in the file of TF_TRACE_PATH ---- */
TP_EXPORT bool tp_worker_recorded(void); /* whether it is wanted */
/* The worker's clock showed `worker` at some moment from `begin` to `end` of ours; `boot` names its machine. */
TP_EXPORT void tp_worker_clock(uint64_t begin, uint64_t end, uint64_t worker, const char *boot, size_t boot_size);
/* Entries of tp_traced.h; `lost` is how many the session had no room for, since its beginning. */
TP_EXPORT void tp_worker_records(const void *records, size_t size, uint64_t lost);

#endif
