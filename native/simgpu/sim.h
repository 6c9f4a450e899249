// The simulated GPU: a CPU stand-in for libcuda and libnvidia-ml, loaded by the session where there is no GPU.
//
// This header holds every structure that more than one file of the simulator uses. Two locks guard all of them:
// `sim.lock` (objects, contexts, stream queues, events) and `sim.map_lock` (address ranges, physical memory); where
// both are held, `sim.lock` was taken first. Any thread of the program enters through the exported cu* functions, and
// each stream that has work has one thread of its own. Only this process can write the memory that is read here, but
// the arguments of every exported function, module images included, are hostile: they come from a remote client by
// way of the session, which this library must catch out when it passes on something that it should have refused.
//
// Environment: TF_SIM_DEVICES (1 to 8, default 1), of which CUDA_VISIBLE_DEVICES may name some, by number, TF_SIM_PEERS=none (no device reaches another's memory),
// TF_SIM_NVLINKS (of each device, 0 to 18), TF_SIM_MEMORY_MB (of each device; default what an H200 has; a context takes 527 MiB of it),
// TF_SIM_UNKNOWN_KERNELS=skip (see sim_launch.c), TF_SIM_FAULTS (see sim_faults.c), TF_SIM_DEAD_HANDLES=abort (a handle
// of nothing ends the process, as it may in a driver that follows it; for fuzzing), TF_SIM_QUEUES (1 to 32, which the
// streams of a context share, see sim_stream.c; by default each has its own).
#ifndef SIM_H
#define SIM_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Everything that the two API headers declare is exported; all else is hidden.
#pragma GCC visibility push(default)
#include "tpg_cuda.h"
#include "tpg_nvml.h"
#pragma GCC visibility pop

#define SIM_MAX_DEVICES 8
#define SIM_MAX_QUEUES 32
#define SIM_QUEUE_DEPTH 1024 // of a stream; NVIDIA's driver blocks the launching thread at about this depth too
// The driver makes room for streams with the context and in lots, and waits for all work of the context when it makes more: at the
// 36th, 79th, 122nd, 164th, 207th, 250th, 292nd, 335th, 378th of the program (580.159.04, measured): three lots are 128 streams. The
// legacy stream counts here.
#define SIM_STREAM_ROOM 36u
#define SIM_STREAM_LOTS(lots) ((128u * (lots) + 2) / 3)
#define SIM_CONTEXT_BYTES (527ull << 20) // what a context costs on an H200 with driver 580.159.04
#define SIM_GRANULE (2ull << 20)         // granularity of cuMemCreate on data-centre GPUs
#define SIM_MAX_PARAM_BYTES 32764u       // largest parameter block of a kernel
#define SIM_MAX_PARAMS 4096u
#define SIM_MAX_CONTEXT_STACK 256
#define SIM_FUNC_ATTRIBUTES 16 // CU_FUNC_ATTRIBUTE_MAX

#define SIM_EXPECT_FALSE(x) __builtin_expect(!!(x), 0)

// ---- Objects -----------------------------------------------------------------------------------------------------

typedef enum {
    SIM_CONTEXT = 1,
    SIM_STREAM,
    SIM_EVENT,
    SIM_EVENT_GONE, // its context has ended
    SIM_MODULE,
    SIM_LIBRARY,
    SIM_FUNCTION,
    SIM_KERNEL,
    SIM_POOL,
    SIM_PHYS,
    SIM_GRAPH,
    SIM_GRAPH_NODE,
    SIM_GRAPH_EXEC,
    SIM_USER_OBJECT,
    SIM_ARRAY,
    SIM_MIPMAP,
    SIM_TEXREF,
    SIM_SURFREF,
    SIM_DEVDESC,
    SIM_GREEN,
} sim_kind_t;

typedef struct sim_context sim_context_t;
typedef struct sim_stream sim_stream_t;
typedef struct sim_event sim_event_t;
typedef struct sim_module sim_module_t;
typedef struct sim_library sim_library_t;
typedef struct sim_pool sim_pool_t;
typedef struct sim_capture sim_capture_t; // sim_graph.h
typedef struct sim_program sim_program_t; // sim_graph.h

typedef struct {
    sim_stream_t *stream; // holds a reference; NULL: none
    uint64_t seq;
    bool begun; // the operation must have begun, need not be over
} sim_dependency_t;

struct sim_context {
    sim_context_t *base; // of a green context: the primary one, which has all but its streams
    int device;
    bool primary;
    atomic_bool active; // false: destroyed, or a primary context that nobody retains
    atomic_bool killed; // set before its streams are stopped: waits and spins end early
    unsigned retains;   // of a primary context; of another, uses beside its creator's (cuCtxAttach)
    atomic_uint flags;  // these are also read without the lock
    atomic_uint api_version;
    atomic_ullong id;
    _Atomic(CUfunc_cache) cache_config;
    size_t limits[CU_LIMIT_MAX];
    atomic_uint peers; // bit d: peer access to device d enabled
    sim_stream_t *legacy;
    sim_stream_t *streams; // all live streams of the context, legacy one included
    unsigned lots;         // of streams there is room for, beside the first ones; making more waits for the GPU
    sim_stream_t *aside;   // for events of the whole context, sim_green.c; NULL until there is one
    uint64_t gate;         // place in it that everything queued from now on waits for
    sim_dependency_t queues[SIM_MAX_QUEUES]; // what was put last into each; TF_SIM_QUEUES
    sim_event_t *events;
    sim_module_t *modules;
    sim_context_t *next; // every context ever made, so that stale handles stay recognisable
};

// Nodes of a graph, none twice.
typedef struct {
    struct sim_node **items;
    size_t count, capacity;
} sim_node_list_t;

struct sim_event {
    sim_context_t *context;
    unsigned flags;
    int refs;             // one for the handle, one per queued record
    sim_stream_t *stream; // of the last record; holds a reference
    uint64_t seq;
    uint64_t recorded_ns; // when the record with `recorded_seq` was reached
    uint64_t recorded_seq;
    sim_capture_t *capture; // recorded last in a stream that captured; holds a reference
    sim_node_list_t front;  // what that stream's next node would have depended on
    sim_event_t *next, **link;
    struct sim_ipc_page *page; // of an interprocess event
    int shared;                // number of its memory, -1: another process has made it
};

typedef struct {
    uint64_t address;
    bool mapped;           // an address of the memory map (device, pinned); else a plain host pointer
    int device, caller;    // whose access rights apply: of the stream, and of the context that was current
    uint64_t pitch, slice; // bytes from row to row, from plane to plane
} sim_side_t;

typedef struct {
    sim_side_t dst, src;
    uint64_t width, height, depth;
    void *staging;     // freed with the operation
    sim_side_t staged; // where the bytes in it came from
} sim_copy_t;

typedef struct {
    sim_side_t dst;
    uint64_t width, height; // bytes, rows
    uint32_t value;
    uint32_t element; // 1, 2 or 4 bytes
} sim_set_t;

typedef struct sim_body sim_body_t;

typedef struct {
    const sim_body_t *body;
    uint64_t threads; // gridDim.x * blockDim.x
    uint32_t bytes;
    CUDA_KERNEL_NODE_PARAMS request; // for graphs: what was asked for, without the parameters
    const struct sim_entry *entry;
    unsigned char inline_params[48];
    unsigned char *params; // inline_params or allocated
} sim_launch_t;

typedef enum {
    SIM_OP_NOP,
    SIM_OP_RECORD,
    SIM_OP_WAIT_IPC,    // a record of an interprocess event, perhaps of another process
    SIM_OP_WAIT_NODE,   // of a graph: each launch waits for the event as it was recorded last
    SIM_OP_BATCH,       // writes and waits of words
    SIM_OP_RECORD_NODE, // of a graph: each launch records the event anew
    SIM_OP_LAUNCH,
    SIM_OP_COPY,
    SIM_OP_SET,
    SIM_OP_HOST_FUNCTION,
    SIM_OP_CALLBACK,
    SIM_OP_WRITE_VALUE,
    SIM_OP_WAIT_VALUE,
    SIM_OP_FREE,
    SIM_OP_GRAPH_ALLOC,
    SIM_OP_GRAPH_FREE,
    SIM_OP_GRAPH,
} sim_op_kind_t;

typedef struct {
    sim_op_kind_t kind;
    unsigned ndependencies;
    sim_dependency_t dependency;    // the first one
    sim_dependency_t *dependencies; // further ones, allocated
    union {
        struct {
            sim_event_t *event;
            uint64_t number; // of the record, or of that which is waited for, of an interprocess event
        };
        CUevent event_handle; // record node: the event may be gone when the graph is launched
        sim_launch_t launch;
        sim_copy_t copy;
        sim_set_t set;
        struct {
            CUhostFn call;
            void *data;
        } host_function;
        struct {
            CUstreamCallback call;
            void *data;
            CUstream stream;
        } callback;
        struct {
            uint64_t address, value;
            uint32_t bytes, flags;
        } value;
        struct {
            unsigned count;
            CUstreamBatchMemOpParams *list; // owned
        } batch;
        uint64_t free;
        struct {
            uint64_t address, size;
            int device;
            bool holds; // of a graph, outside one: the addresses stay until it has run
        } memory;
        sim_program_t *program; // holds a reference
    } u;
} sim_op_t;

struct sim_stream {
    sim_context_t *context;
    unsigned flags;
    int priority;
    unsigned long long id;
    int refs;   // handle, thread, events, dependencies; under sim.lock
    bool dying; // handle destroyed or context gone: the thread drains the queue and ends
    bool started, handle;
    CUstreamAttrValue attributes[CU_LAUNCH_ATTRIBUTE_MAX]; // those that cuStreamSetAttribute takes
    bool sleeping;                                         // the thread waits on `work`
    uint64_t enqueued, begun, done;                        // operations since creation
    uint64_t wanted; // smallest `done` that a waiter waits for; UINT64_MAX when nobody does
    unsigned space_waiters;
    pthread_cond_t work, finished, space;
    sim_capture_t *capture; // NULL: operations are executed; holds a reference
    sim_node_list_t front;  // capturing: what the next node depends on
    sim_op_t *ring;         // SIM_QUEUE_DEPTH, allocated with the thread
    sim_stream_t *next, **link;
};

// ---- Memory ------------------------------------------------------------------------------------------------------

typedef struct sim_phys { // one cuMemCreate, or the backing of one mapping after its handle was released
    int device;
    uint64_t offset, size;
    int refs; // handles and mappings
    int handles;
    CUmemAllocationProp prop;
    bool shared;    // has a file of its own, which other processes may have: `descriptor`
    bool imported;  // another process has made it, and has it in its budget
    int descriptor; // of that file
} sim_phys_t;

typedef enum { SIM_RANGE_DEVICE, SIM_RANGE_VMM, SIM_RANGE_HOST, SIM_RANGE_REGISTERED, SIM_RANGE_IPC } sim_range_kind_t;

typedef struct {
    uint64_t base, size;
    sim_range_kind_t kind;
    int device; // where the memory is; of host memory, the device of the context that made it
    sim_context_t *context;
    unsigned char *host; // where this process can touch it
    uint64_t charged;    // bytes of the device's budget to give back
    unsigned flags;
    unsigned long long buffer_id;
    unsigned char access[SIM_MAX_DEVICES]; // VMM: CUmemAccess_flags of each device
    sim_phys_t *phys;
    sim_pool_t *pool;
    uint64_t extent;  // of a pool that other processes may have: bytes of the device's space, which are whole pages
    bool moved;       // its bytes are in the file of its pool
    bool internal;    // module globals: not freed by cuMemFree
    bool free_queued; // cuMemFreeAsync was called; of a graph's memory: nothing is allocated there
    bool of_graph;    // addresses of allocation nodes, sim_graph_memory.c
    struct {
        unsigned holders; // those nodes, and their copies in programs
        bool present;     // a stream has come to where it is allocated, and not to where it is freed
        bool planned, instantiated, freed_inside, freed_elsewhere;
    } graph;
    struct {
        CUipcMemHandle handle;
        unsigned opened;
    } ipc; // memory of another process
    int sync_memops;
    bool managed;           // the program may touch it
    struct sim_hint *hints; // of each page, then
} sim_range_t;

typedef struct {
    uint64_t base, size;
} sim_reservation_t;

struct sim_pool {
    int device;
    bool is_default;
    CUmemPoolProps props;
    uint64_t used, used_high, release_threshold;
    uint64_t kept;  // freed, and held for the pool's next allocations
    uint64_t loose; // freed, and no wait has noticed it
    struct sim_pool *next;
    int reuse[3];
    unsigned char access[SIM_MAX_DEVICES];
    bool shared;   // has a file, which other processes may have: `descriptor`, by the name `number`
    bool imported; // another process has made it
    int descriptor;
    uint64_t number;
};

typedef struct {
    uint64_t offset, size;
} sim_extent_t;

typedef struct {
    atomic_int error; // sticky CUresult: once set, every later call in any context of the device returns it
    int board;        // its number in the machine; that of CUDA is its place in sim.devices
    char pci[32];
    CUuuid uuid;
    uint64_t total, used;
    struct {
        uint64_t used, used_high, reserved, reserved_high;
    } graph; // memory of graphs
    sim_context_t primary;
    unsigned primary_flags; // as cuDevicePrimaryCtxGetState tells them; the context tells one more
    sim_pool_t default_pool;
    sim_pool_t *current_pool;
    uint64_t arena;         // device addresses of cuMemAlloc start here; offset equals the offset in `backing`
    unsigned char *backing; // NULL until the first allocation
    int backing_fd;
    uint64_t space;        // size of both
    sim_extent_t *extents; // free extents, sorted, coalesced
    size_t nextents, extents_capacity;
} sim_device_t;

// ---- Images, modules, libraries ----------------------------------------------------------------------------------

typedef struct {
    uint32_t offset, size;
} sim_param_t;

typedef struct sim_entry {
    const char *name; // the same pointer for the same name, and never freed
    sim_param_t *params;
    unsigned nparams;
    uint32_t param_bytes; // end of the last parameter
    int attributes[SIM_FUNC_ATTRIBUTES];
} sim_entry_t;

typedef struct {
    char *name;
    uint64_t size;
    unsigned char *init; // NULL: zero
    bool managed;
} sim_global_t;

typedef struct {
    char *name;
    bool surface;
} sim_named_t; // a texture or surface reference

typedef struct {
    int refs;
    sim_entry_t *entries;
    unsigned nentries;
    sim_global_t *globals;
    unsigned nglobals;
    sim_named_t *references;
    unsigned nreferences;
} sim_image_t;

typedef struct {
    sim_module_t *module;
    const sim_entry_t *entry;
    int attributes[SIM_FUNC_ATTRIBUTES];
    bool loaded;
    struct sim_parts *parts; // sim_parts.c; NULL until it is launched by parts
} sim_function_t;

typedef struct {
    sim_library_t *library;
    const sim_entry_t *entry;
    unsigned index;
    int attributes[SIM_MAX_DEVICES][SIM_FUNC_ATTRIBUTES];
} sim_kernel_t;

struct sim_module {
    sim_context_t *context;
    sim_library_t *library; // NULL for cuModuleLoad*
    sim_image_t *image;
    sim_function_t *functions;        // image->nentries
    uint64_t *globals;                // device addresses, image->nglobals
    struct sim_reference *references; // sim_texref.c; those that somebody asked for
    sim_module_t *next, **link;
};

struct sim_library {
    sim_image_t *image;
    sim_kernel_t *kernels;
    CUresult refused; // libraries are loaded lazily: what is wrong with an image, its first use tells
};

// ---- Process-wide state ------------------------------------------------------------------------------------------

typedef struct {
    pthread_mutex_t lock;
    pthread_rwlock_t map_lock;
    atomic_bool initialised;
    int ndevices;         // that CUDA shows: the first of the array
    int nboards;          // with those that CUDA_VISIBLE_DEVICES hides, which NVML shows
    bool no_peers;        // TF_SIM_PEERS=none
    unsigned nvlinks;     // TF_SIM_NVLINKS: of each device, to switches
    unsigned long queues; // of each context, TF_SIM_QUEUES; 0: each stream has its own
    sim_device_t devices[SIM_MAX_DEVICES];
    sim_context_t *contexts;
    unsigned long long next_context_id, next_stream_id, next_buffer_id; // next_buffer_id under map_lock
    sim_range_t **ranges;                                               // sorted by base, never overlapping
    size_t nranges, ranges_capacity;
    sim_reservation_t *reservations; // sorted by base
    size_t nreservations, reservations_capacity;
} sim_state_t;

extern sim_state_t sim;

// sim_core.c: entering an API function, handles
typedef struct {
    const char *name;
    atomic_ullong calls; // counted only when a fault script is present
} sim_site_t;

// SIM_TAKES_CONTEXT: what it works on has a context of its own, so the thread need not have one (580.159.04, measured); the
// context is NULL then.
// SIM_TAKES_ANY: the same, and one that was destroyed does not matter either; what the call is about tells.
typedef enum { SIM_NEEDS_NOTHING, SIM_NEEDS_INIT, SIM_TAKES_ANY, SIM_TAKES_CONTEXT, SIM_NEEDS_CONTEXT } sim_needs_t;

CUresult sim_enter(sim_site_t *site, sim_needs_t needs, sim_context_t **context);
// An output that the driver sets before it looks at anything (api/cuda/outputs.py).
#define SIM_BEGINS(output, value)                                                                                      \
    do {                                                                                                               \
        if (output)                                                                                                    \
            *(output) = (value);                                                                                       \
    } while (0)
#define SIM_ENTER_AS(needs, context)                                                                                   \
    do {                                                                                                               \
        static sim_site_t site_ = {__func__, 0};                                                                       \
        CUresult entered_ = sim_enter(&site_, needs, context);                                                         \
        if (SIM_EXPECT_FALSE(entered_ != CUDA_SUCCESS))                                                                \
            return entered_;                                                                                           \
    } while (0)
#define SIM_ENTER_ANY() SIM_ENTER_AS(SIM_NEEDS_NOTHING, NULL)
#define SIM_ENTER() SIM_ENTER_AS(SIM_NEEDS_INIT, NULL)
#define SIM_ENTER_WITHOUT(variable)                                                                                    \
    sim_context_t *variable;                                                                                           \
    SIM_ENTER_AS(SIM_TAKES_CONTEXT, &variable)
#define SIM_ENTER_WITH_ANY(variable)                                                                                   \
    sim_context_t *variable;                                                                                           \
    SIM_ENTER_AS(SIM_TAKES_ANY, &variable)
#define SIM_ENTER_CONTEXT(variable)                                                                                    \
    sim_context_t *variable;                                                                                           \
    SIM_ENTER_AS(SIM_NEEDS_CONTEXT, &variable)

// A stream of its own lends its context to a thread that has none (580.159.04, measured); the default streams have none to lend.
CUresult sim_lend(CUstream stream, sim_context_t **context);
#define SIM_ENTER_STREAM(variable, stream)                                                                             \
    SIM_ENTER_WITHOUT(variable);                                                                                       \
    do {                                                                                                               \
        CUresult lent_ = SIM_EXPECT_FALSE(!variable) ? sim_lend(stream, &variable) : CUDA_SUCCESS;                     \
        if (SIM_EXPECT_FALSE(lent_ != CUDA_SUCCESS))                                                                   \
            return lent_;                                                                                              \
    } while (0)

bool sim_forked(void);
CUresult sim_setup(void); // the devices, once; cuInit and nvmlInit both need them
static inline int sim_pci_bus(int device) { return 0x06 + 0x10 * sim.devices[device].board; }
bool sim_handle_add(void *object, sim_kind_t kind);         // under sim.lock; false: out of host memory
void sim_handle_remove(void *object);                       // under sim.lock
bool sim_handle_known(const void *object, sim_kind_t kind); // of modules, which a driver tells and does not follow
bool sim_handle_is(const void *object, sim_kind_t kind);    // under sim.lock
bool sim_is(const void *object, sim_kind_t kind); // the same for a parameter, default streams too; takes the lock
// Ends the process, as a dead handle does (TF_SIM_DEAD_HANDLES), where an object would be left pointing at what has ended.
void sim_dangles(bool dangles, const char *what);
bool sim_strict(void); // whether it does
void sim_in_callback(bool inside);
uint64_t sim_now_ns(void);
void *sim_exported(const char *name); // a cu* function of this library; NULL: there is none
// A function of the real library that is not simulated was called: said once, by name. The generated code calls it.
void sim_refuses(const char *name, atomic_bool *said);
void sim_complain(const char *format, ...) __attribute__((format(printf, 1, 2)));
bool sim_grow(void *array, size_t *capacity, size_t needed, size_t element);

// sim_faults.c
bool sim_faults_present(void);
CUresult sim_faults_check(sim_site_t *site, bool *sticky);

// sim_print.c
void sim_print(bool error, const char *format, ...) __attribute__((format(printf, 2, 3)));
void sim_print_show(void); // in every call that waits for kernels

// sim_context.c
sim_context_t *sim_current(void);
CUresult sim_context_start(sim_context_t *context, int device, unsigned flags, unsigned api_version); // under sim.lock
void sim_context_stop(sim_context_t *context);                 // not under any lock
void sim_context_fail(sim_context_t *context, CUresult error); // and every other one of its device
// Tells NVML of it.
void sim_nvml_broken(int device, CUresult error);
CUresult sim_context_error(const sim_context_t *context);
bool sim_device_ok(CUdevice device);
bool sim_device_reaches(int device, int other); // its own memory, or a peer's

// The context that memory, modules, events and arrays belong to that are made in this one.
static inline sim_context_t *sim_home(sim_context_t *context) { return context->base ? context->base : context; }

// sim_green.c
CUgreenCtx sim_green_handle(sim_context_t *context);           // NULL: it is none
unsigned sim_multiprocessors(sim_context_t *context);          // that its kernels may use
void sim_green_stop(sim_context_t *context);                   // not under any lock
bool sim_green_gate(sim_op_t *op, const sim_stream_t *stream); // under sim.lock: what all work of a context waits for

// sim_map.c: which addresses exist
typedef struct {
    unsigned char *host;
    uint64_t bytes; // contiguous from the address that was asked for
} sim_span_t;
bool sim_map_add(sim_range_t *range);        // under the write lock; false: out of host memory
void sim_map_remove(sim_range_t *range);     // under the write lock
sim_range_t *sim_map_find(uint64_t address); // under either lock; the range that holds the address
size_t sim_map_index(uint64_t address);      // first range whose base is above the address
bool sim_map_reserved(uint64_t address);     // inside a VMM reservation
CUresult sim_map_span(uint64_t address, int device, unsigned peers, bool write, sim_span_t *span);
// For arguments of calls. 0: the whole of [address, address + bytes) may be used; 1: not an address of ours; 700:
// reserved, not accessible.
CUresult sim_map_check(uint64_t address, uint64_t bytes, int device, unsigned peers, bool write);
bool sim_map_pinned(uint64_t address, uint64_t bytes);
CUresult sim_reservation_add(uint64_t base, uint64_t size);
bool sim_reservation_remove(uint64_t base, uint64_t size);
sim_reservation_t *sim_reservation_find(uint64_t address);

// sim_device_memory.c: budget and backing; all under the write lock
bool sim_device_address(uint64_t address); // under either lock: where cuMemAlloc answers, live or not
CUresult sim_device_take(int device, uint64_t bytes, uint64_t *offset);
void sim_device_give(int device, uint64_t offset, uint64_t bytes);
// The same without the budget: for memory that stands in another process's.
CUresult sim_device_space(int device, uint64_t bytes, uint64_t *offset);
uint64_t sim_device_size(int device); // of the space; 0: there is no room for it
void sim_device_space_give(int device, uint64_t offset, uint64_t bytes);
void sim_memory_release(
    uint64_t address); // of an allocation of the simulator's own, when its context has done its work
CUresult sim_device_allocate(sim_context_t *context, uint64_t bytes, sim_range_t **range);
CUresult sim_host_allocate(sim_context_t *context, size_t bytes, unsigned flags, sim_range_t **out); // pinned
CUresult sim_managed_begin(sim_range_t *range);   // the program may touch it from now on; under the map lock
void sim_managed_drop(sim_range_t *range);        // before its memory is given back
void sim_graph_range_release(sim_range_t *range); // the same of a graph's, sim_graph_memory.c
void sim_range_release(sim_range_t *range);       // removes, gives back, frees
sim_phys_t *sim_phys_find(CUmemGenericAllocationHandle handle); // under sim.lock; NULL: no such handle
void sim_phys_drop(sim_phys_t *phys);
// Of sim_ipc_event.c: the page of an interprocess event, its records by their numbers, and waiting for them.
CUresult sim_ipc_event_begin(sim_event_t *event);
// The operation holds a reference on its event.
static inline bool sim_op_has_event(const sim_op_t *op) {
    return op->kind == SIM_OP_RECORD || op->kind == SIM_OP_WAIT_IPC;
}
void sim_ipc_event_end(sim_event_t *event);
uint64_t sim_ipc_event_record(sim_event_t *event);
void sim_ipc_event_reach(sim_event_t *event, uint64_t number);
bool sim_ipc_event_over(sim_event_t *event);
uint64_t sim_ipc_event_last(sim_event_t *event);
void sim_ipc_event_await(const sim_stream_t *stream, sim_event_t *event, uint64_t number);
// Of sim_event.c: a context gets the event, and the program its handle. Under sim.lock.
CUresult sim_event_add(sim_context_t *context, sim_event_t *event);
// Of sim_ipc.c: whether a range is what other processes can have, and the end of one that is theirs.
bool sim_ipc_capable(const sim_range_t *range);
void sim_ipc_unmap(const sim_range_t *range);
// Of sim_share.c: nothing has this memory mapped any more. False: its place in the space cannot be used again.
bool sim_share_end(sim_phys_t *phys);
// Also of sim_share.c: a file for memory that other processes map, with a page behind its `size` bytes that says what it is.
enum { SIM_SHARE_PAGE = 4096 };
typedef struct {
    uint64_t magic, size;
    union {
        CUmemAllocationProp prop;
        CUmemPoolProps pool;
    };
    uint64_t number; // of a pool
} sim_share_page_t;
#define SIM_SHARED_MEMORY 0x6572616873666d54ull      // "Tmfshare"
#define SIM_SHARED_POOL 0x6c6f6f7073666d54ull        // "Tmfspool"
int sim_share_file(const sim_share_page_t *page);    // -1, and said why
bool sim_share_look(int fd, sim_share_page_t *page); // false: no file of that kind
// Under the map lock for writing: maps bytes of a file over a place of the device's space, or copies what is there into it.
bool sim_share_place(int device, uint64_t offset, uint64_t size, int fd, uint64_t at);
bool sim_share_copy(int device, uint64_t offset, uint64_t size, int fd, uint64_t at);
// Of sim_pool_share.c: its memory is to go back to the device's space.
void sim_pool_unmove(sim_range_t *range);
void sim_pool_unshare(sim_pool_t *pool); // the pool is destroyed

// sim_stream.c: queues and their threads
CUresult sim_stream_new(sim_context_t *context, unsigned flags, int priority, sim_stream_t **stream); // under sim.lock
CUresult sim_stream_create(sim_context_t *context, CUstream *stream, unsigned flags, int priority); // sim_stream_api.c
void sim_stream_unlink(sim_stream_t *stream);  // under sim.lock: handle gone, the queue is drained
void sim_stream_release(sim_stream_t *stream); // under sim.lock: one reference less
// Whether the calling thread's default stream is its own, as in the functions of that kind; returns what was so before.
bool sim_default_per_thread(bool own);
CUresult sim_stream_resolve(sim_context_t *context, CUstream handle, sim_stream_t **stream); // under sim.lock
CUresult sim_stream_push(sim_stream_t *stream, sim_op_t *op, uint64_t *seq); // under sim.lock; takes over what op owns
void sim_stream_wait(sim_stream_t *stream, uint64_t seq);                    // under sim.lock
bool sim_stream_busy(sim_stream_t *stream);      // under sim.lock; the legacy stream counts blocking ones too
CUresult sim_stream_drain(sim_stream_t *stream); // under sim.lock: waits for all work so far
void sim_context_drain(sim_context_t *context);  // under sim.lock
void sim_queues_end(sim_context_t *context);     // under sim.lock: of a context without streams
bool sim_stream_depend(sim_op_t *op, sim_stream_t *stream, uint64_t seq); // under sim.lock
void sim_event_release(sim_event_t *event);                               // under sim.lock
// The event's last record is this place of the stream from now on. Under sim.lock.
void sim_event_place(sim_event_t *event, sim_stream_t *stream, uint64_t seq);
sim_event_t *sim_event_of(CUevent handle); // under sim.lock; NULL if it is none
CUresult sim_event_none(CUevent handle);   // under sim.lock; why it is none
void sim_event_orphan(sim_event_t *event); // under sim.lock; its context ends
// What the calling thread does behind an operation; one that waits and is not asynchronous has no place in a capture.
typedef enum { SIM_GO_ON, SIM_WAIT, SIM_WAIT_OR_CAPTURE } sim_wait_t;
// The write or wait of a word that an entry of a batch is; false for a barrier.
bool sim_batch_value(const CUstreamBatchMemOpParams *params, sim_op_t *op, bool *wait);
CUresult sim_batch_op(sim_context_t *context, unsigned count, const CUstreamBatchMemOpParams *list, sim_op_t *batch);
// Puts op into the queue of `handle` for the current context.
CUresult sim_submit(sim_context_t *context, CUstream handle, sim_op_t *op, bool own_context, sim_wait_t wait);
CUresult sim_run(sim_stream_t *stream, sim_op_t *op); // sim_run.c: executes one operation, no lock held
void sim_op_discard(sim_op_t *op);                    // frees what an operation owns outside the objects

// sim_pool.c
CUresult sim_pool_setup(int device);
void sim_pool_forget(sim_range_t *range);       // under the write lock
sim_pool_t *sim_pool_find(CUmemoryPool handle); // NULL: it is none
// False: out of host memory. The pool is in no list of pools before.
bool sim_pool_add(sim_pool_t *pool);
sim_pool_t *sim_pool_imported(uint64_t number); // NULL: nobody has imported it here
void sim_pools_notice(void);                    // a wait is over

// sim_image.c, sim_cubin.c, sim_ptx.c
CUresult sim_image_parse(const void *code, sim_image_t **image, char *log, size_t log_size);
CUresult sim_cubin_parse(const unsigned char *bytes, uint64_t size, sim_image_t *image);
CUresult sim_ptx_parse(const char *text, uint64_t size, sim_image_t *image, char *log, size_t log_size);
CUresult sim_ptx_check(const char *text, uint64_t size, char *log, size_t log_size); // sim_ptx_check.c
int sim_ptx_target(const char *text, uint64_t size); // sm number of .target; -1 when this is not PTX
bool sim_lz4_decode(const unsigned char *in, uint64_t in_size, unsigned char *out, uint64_t out_size);
sim_entry_t *sim_image_add_entry(sim_image_t *image, const char *name, size_t length);
sim_global_t *sim_image_add_global(sim_image_t *image, const char *name, size_t length);
bool sim_image_add_reference(sim_image_t *image, const char *name, size_t length, bool surface);
const sim_entry_t *sim_image_find(const sim_image_t *image, const char *name, unsigned *index);
void sim_image_release(sim_image_t *image); // under sim.lock

// sim_module.c; all under sim.lock
CUresult sim_module_new(sim_context_t *context, sim_image_t *image, sim_library_t *library, sim_module_t **module);
void sim_module_delete(sim_module_t *module);
CUresult sim_library_module(sim_library_t *library, sim_context_t *context, sim_module_t **module);
// A CUfunction, or a CUkernel cast to one, as the function of this context.
CUresult sim_function_resolve(sim_context_t *context, CUfunction handle, sim_function_t **function, int **attributes);
void sim_attributes_default(const sim_entry_t *entry, int *attributes);
CUresult sim_attribute_set(int *attributes, CUfunction_attribute attribute, int value);

void sim_references_delete(sim_module_t *module); // sim_texref.c; under sim.lock

// sim_kernels.c: the kernels that have a C body
const sim_body_t *sim_body_find(const char *name);
bool sim_body_fits(const sim_body_t *body, const sim_entry_t *entry);
CUresult sim_body_run(sim_context_t *context, const sim_launch_t *launch);

// What api/errors.json says that a driver calls its errors (generated); NULL for those that it does not have
const char *tpg_cuda_error_name(int error);
const char *tpg_cuda_error_text(int error);
const char *tpg_nvml_error_name(int error);
const char *tpg_nvml_error_text(int error);

// sim_facts.c: what an H200 answers
extern const int sim_attributes_h200[148];
extern const size_t sim_limits_h200[CU_LIMIT_MAX];
#define SIM_H200_MEMORY 150109880320ull
#define SIM_NVML_RESERVED (150754820096ull - SIM_H200_MEMORY) // NVML's total is larger than cuDeviceTotalMem by this

#endif
