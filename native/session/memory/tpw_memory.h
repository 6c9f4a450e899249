/*
 * The session's memory: what the client was given, where it lies, and the staging memory that copies go through.
 *
 * Everything belongs to the executor thread. Nothing here lies in memory that the client or the GPU's kernels can
 * write, except the contents of twins and staging buffers, which are only ever copied.
 */
#ifndef TPW_MEMORY_H
#define TPW_MEMORY_H

#include "tpw_stream.h"
#include <tp_intervals.h>
#include <tp_memory.h>
#include <tp_places.h>

#define TPW_GRANULE (2ull << 20) /* granularity of cuMemCreate on data-centre GPUs */
#define TPW_UNIT 512ull          /* small allocations are multiples of this, as with cuMemAlloc on driver 580 */
#define TPW_SMALL_MAX (1ull << 20)
#define TPW_GRANULE_UNITS (TPW_GRANULE / TPW_UNIT)

/* Behind the reserved device addresses: a granule for small twins, then addresses for large ones. */
#define TPW_TWIN_SMALL TP_TWIN_PIECE
#define TPW_TWINS_SPACE (512ull << 30)

enum tpw_range_kind {
    TPW_RANGE_SMALL,  /* part of a shared granule */
    TPW_RANGE_LARGE,  /* granules of its own */
    TPW_RANGE_NATIVE, /* cuMemAlloc_v2, where the driver has no virtual-memory API */
    TPW_RANGE_POOL,   /* cuMemAllocAsync */
    TPW_RANGE_MAP,    /* the client's own cuMemMap */
    TPW_RANGE_TWIN,   /* pinned memory of this process */
    TPW_RANGE_PINNED, /* the client's own, a run of the shared segment's arena */
    TPW_RANGE_OTHER,  /* published by another family */
    TPW_RANGE_IMPORT, /* memory of another session */
    TPW_RANGE_GRAPH,  /* addresses of nodes of graphs, whether or not anything is allocated there */
};

/* Something the client may name in a copy, a memset or a launch. */
struct tpw_range {
    struct tp_interval at; /* size as the client asked for it */
    enum tpw_range_kind kind;
    uint32_t device;  /* index into s->devices */
    uint32_t context; /* id of the client's context that made it; 0 = outlives contexts */
    uint32_t access;  /* MAP, IMPORT: a bit for each device that has access; TWIN: whether kernels may write it */
    uint64_t charged; /* bytes it holds on the quota page */
    uint64_t users;   /* GRAPH: nodes, and allocations that outlived theirs */
    uint64_t mark;    /* GRAPH: of the last count; POOL of another session: of the handle */
    void *
        detail; /* SMALL: its granule; MAP: its physical memory; TWIN: its shadow copy, then a byte for each piece; IMPORT: its mapping; POOL: its struct tpw_pool */
    struct tpw_share *share; /* other sessions may have it: share.c */
};

/* 2 MiB of memory handed out in units. `longest` is an upper bound of the longest free run. */
struct tpw_granule {
    struct tpw_granule *next;
    uint64_t address;
    uint32_t used, longest; /* units */
    uint64_t bits[TPW_GRANULE_UNITS / 64];
};

/* A free stretch of reserved addresses. */
struct tpw_span {
    struct tp_interval at;
};

/* Granules that are mapped, in use or not. */
struct tpw_chunk {
    struct tp_interval at;
    uint32_t device;
    bool shareable; /* the driver gives a descriptor of it */
    bool shared;    /* and has: others may see it for as long as they like, so it is not used again after a free */
};

/* Mapped granules kept after a free, so that a loop of allocations and frees need not go to the driver each time. */
#define TPW_CACHE_ENTRIES 16
#define TPW_CACHE_BYTES (64ull << 20)

struct tpw_arena {
    bool vmm;
    bool shareable; /* what is mapped from now on can be given to other sessions */
    struct tpw_granule *granules;
    struct tpw_cached {
        uint64_t address, size;
    } cached[TPW_CACHE_ENTRIES];
    uint64_t cached_bytes;
    /* For the limit: granules that are mapped, bytes of allocations that lie in them, and what is charged beside these. */
    uint64_t mapped, asked, beyond;
};

/* Pinned memory of this process in pieces of one size: buffers for small copies; spills for large ones whose stream
 * stands still, so that the link's blocks stay free for others. */
#define TPW_BUFFER_SIZE (64u << 10)
#define TPW_SPILL_SIZE TP_CHUNK_MAX
struct tpw_pinned {
    unsigned char **pieces, **batches; /* free pieces; what was allocated */
    size_t free, room, batch_count;
};

/* A pool of the driver's, as long as the client has it or memory of it. */
struct tpw_pool {
    struct tpw_pool *next;
    CUmemoryPool native; /* NULL: the client has destroyed it */
    uint32_t device;
    uint64_t taken;  /* bytes of its allocations, charged with them; of another session's: how many pointers are open */
    uint64_t beyond; /* once it is shared: charged for what was freed */
    struct tpw_share *share;
    struct tpw_import *import; /* it is another session's */
    uint64_t number;           /* then: the supervisor's */
};

struct tpw_memory {
    bool opened;
    bool shareable; /* the client has a pool that can be shared */
    struct tpw_pool *pools;
    struct tp_intervals ranges;
    struct tp_intervals reservations; /* the client's cuMemAddressReserve: struct tpw_reservation */
    struct tp_intervals spans;        /* free addresses of the reserved range: struct tpw_span */
    struct tp_intervals chunks;       /* granules that are mapped: struct tpw_chunk */
    struct tpw_charge *ending;        /* arrays whose handles have ended */
    uint64_t base, size;              /* the reserved range, 0 = none */
    bool reserve_tried;
    CUmemoryPool between[TPW_MAX_DEVICES]; /* of copies from host memory to host memory, copy/copy_host.c */
    struct tpw_arena arenas[TPW_MAX_DEVICES];
    struct tpw_pair *pairs; /* peer access between contexts, peer.c */
    uint32_t readers[TPW_MAX_DEVICES]
                    [TPW_MAX_DEVICES]; /* how many pairs give the second device access to the first's memory */
    struct tpw_pinned buffers, spills;
    size_t uploads_out, downloads_out; /* blocks of the link that queued copies have yet to read, or to fill */
    struct tpw_granule *twins;         /* the twin area in units, NULL until the first twin */
    struct tpw_range **twin_list;
    size_t twin_count, twin_room, twins_alone;
    struct tp_places twin_places; /* of large ones, and what they and their shadows take */
    uint64_t twin_bytes;
    uint64_t pending_bytes[TPW_MAX_DEVICES]; /* freed by the client, but queued work may still use it */
    size_t pending_frees;
    struct tpw_graph_user *graph_users;    /* graph/graph_memory.c */
    uint64_t graph_bytes[TPW_MAX_DEVICES]; /* charged for what graphs take */
    uint64_t graph_trims;                  /* how many times they gave it back */
    struct tpw_share *shares;              /* share.c, like the rest */
    struct tpw_import *imports;
    uint32_t import_count;
    size_t pending_gives; /* runs of the segment's arena that the client gave up, but queued work may still use */
};

/* ---- memory.c ---- */
/* [address, address+size) must lie in memory that this session gave to its client. */
void tpw_check_range(struct tpw_session *s, uint64_t address, uint64_t size, int32_t *error);
/* The same for a word, which has to be aligned to its size. */
void tpw_check_word(struct tpw_session *s, uint64_t address, uint64_t size, int32_t *error);
/* At the first primary context. */
int32_t tpw_memory_open(struct tpw_session *s);
void tpw_memory_close(struct tpw_session *s);
/* Makes [address, address+size) known as memory of the client (module globals, mapped twins), or unknown. */
void tpw_memory_publish(struct tpw_session *s, uint64_t address, uint64_t size);
void tpw_memory_retract(struct tpw_session *s, uint64_t address);
/* The state, made on first use; NULL when this process has no memory for it. */
struct tpw_memory *tpw_memory_state(struct tpw_session *s);
struct tpw_range *tpw_range_at(struct tpw_session *s, uint64_t address);
/* Adds a range of the client; NULL when it overlaps another or there is no memory. */
struct tpw_range *tpw_range_new(struct tpw_session *s, uint64_t address, uint64_t size, enum tpw_range_kind kind);
/* The bytes from the first to the last of an area of rows, 0 for none; wrong when pitch < width or they are too many. */
uint64_t tpw_area_extent(uint64_t pitch, uint64_t width, uint64_t height, int32_t *error);
/* The same where the driver chose the address: what was of a graph there is gone, even where nobody has said so yet. */
struct tpw_range *tpw_range_given(struct tpw_session *s, uint64_t address, uint64_t size, enum tpw_range_kind kind);
/* The same check as tpw_check_range for an area of rows; also that pitch >= width. */
struct tpg_area;
void tpw_check_area(struct tpw_session *s, const struct tpg_area *area, int32_t *error);
/* Index of the current context's device. */
int32_t tpw_current_device(struct tpw_session *s, uint32_t *index);
int32_t tpw_device_index(const struct tpw_session *s, CUdevice device, uint32_t *index);
/* Takes bytes from the limit, waiting for pending frees when they do not fit; CUDA_ERROR_OUT_OF_MEMORY if they never
 * do. */
int32_t tpw_charge(struct tpw_session *s, uint32_t device, uint64_t bytes);
void tpw_uncharge(struct tpw_session *s, uint32_t device, uint64_t bytes);
/* ---- measured.c ---- */
/* Device memory of this process as the driver tells it; anything but 0: it does not. */
typedef int32_t tpw_own_memory(struct tpw_session *s, uint32_t device, uint64_t *bytes);
TP_LIST(tpw_own_memory);
/* Around calls of the driver that take device memory of unknown size. */
struct tpw_taking {
    uint32_t device;
    uint64_t before;
};
void tpw_taking_begin(struct tpw_session *s, uint32_t device, struct tpw_taking *taking);
/* How much is charged for them now; CUDA_ERROR_OUT_OF_MEMORY, and nothing, when that would pass the limit. */
int32_t tpw_taking_end(struct tpw_session *s, const struct tpw_taking *taking, uint64_t *bytes);
/* Waits until no free is pending. */
bool tpw_wait_for_frees(struct tpw_session *s);
/* Takes a range from the client; its memory and its bytes are pending until they have been given back. */
void tpw_range_leave(struct tpw_session *s, struct tpw_range *range);
/* Takes memory that is not a pool's from the client, and frees it when the stream gets there. */
void tpw_memory_free_behind(struct tpw_session *s, struct tpw_range *range, CUstream native);
/* The range that the client was told as `reserved` by the start operation: device memory lies there. May be called
 * before the first context; 0, 0 when the driver does not give one. */
int32_t tpw_memory_reserved(struct tpw_session *s, uint64_t *base, uint64_t *size);
/* ---- arena.c ---- */
/* Where it finds no addresses it says so, and memory comes one by one; an error is a question that the driver did not answer. */
int32_t tpw_arena_reserve(struct tpw_session *s);
void tpw_arena_close(struct tpw_session *s);
int32_t tpw_arena_alloc(struct tpw_session *s, uint32_t device, uint64_t size, struct tpw_range **out);
/* Gives the memory of a range that is no longer in the set back. */
void tpw_arena_free(struct tpw_session *s, struct tpw_range *range);
/* Counts an allocation of `bytes`, which are charged already, and charges what its arena holds beyond all that was asked for:
 * a byte takes a unit, and one unit keeps a granule. CUDA_ERROR_OUT_OF_MEMORY when that passes the limit. */
int32_t tpw_arena_count(struct tpw_session *s, uint32_t device, uint64_t bytes);
/* The opposite, when the memory has been given back: takes the bytes off the limit, as far as the arena is rid of them. */
void tpw_arena_uncount(struct tpw_session *s, uint32_t device, uint64_t bytes);
/* Gives a device access to all memory of another's arena, or takes it; what is mapped later follows m->readers. */
int32_t tpw_arena_share(struct tpw_session *s, uint32_t owner, uint32_t reader, bool share);
/* Gives cached granules back to the driver; true if there were any. */
bool tpw_arena_trim(struct tpw_session *s, uint32_t device);
/* Addresses out of the reserved range, both multiples of the granule; 0 = none left. */
uint64_t tpw_span_take(struct tpw_memory *m, uint64_t size, uint64_t alignment, uint64_t hint);
void tpw_span_give(struct tpw_memory *m, uint64_t address, uint64_t size);
/* Units of a granule: offset in bytes, or UINT64_MAX. */
uint64_t tpw_units_take(struct tpw_granule *granule, uint64_t bytes);
void tpw_units_give(struct tpw_granule *granule, uint64_t offset, uint64_t bytes);

/* ---- pool.c ---- */
/* An allocation in a capturing stream has become a node of that graph: its addresses are the client's while that may be there. */
typedef int32_t tpw_memory_captured(struct tpw_session *s, CUgraph graph, uint64_t address, uint64_t size,
                                    uint32_t device);
TP_LIST(tpw_memory_captured);
/* Memory of a graph was freed by a stream. */
typedef void tpw_memory_freed(struct tpw_session *s);
TP_LIST(tpw_memory_freed);
/* The driver has given these addresses to new memory. */
typedef void tpw_memory_given(struct tpw_session *s, uint64_t address, uint64_t size);
TP_LIST(tpw_memory_given);
/* The same by cuMemFree, whose caller has waited. */
int32_t tpw_graph_memory_free(struct tpw_session *s, uint64_t address, CUstream native);
struct tpw_pool *tpw_pool_of(struct tpw_session *s, CUmemoryPool native); /* NULL: of no client */
/* Names it for the client, or keeps the error: `native` may be known already, under another name. NULL with an error. */
struct tpw_pool *tpw_pool_named(struct tpw_session *s, const struct tp_frame *frame, uint64_t handle,
                                CUmemoryPool native, uint32_t device, int32_t *error);
/* The memory of a range of kind POOL has been given back. */
void tpw_pool_left(struct tpw_session *s, struct tpw_range *range);
/* Under a limit: gives back what pools keep for later, when it is much. After a free has taken effect. */
void tpw_pools_trim(struct tpw_session *s);

/* ---- peer.c ---- */
/* Whether a device may copy, set and use the memory at the address itself; memory of the host is every device's. */
bool tpw_reaches(struct tpw_session *s, uint32_t device, uint64_t address);
bool tpw_is_host(const struct tpw_range *range);
/* A context of the device that the memory lies on, for copies that name both sides' contexts. */
int32_t tpw_home(struct tpw_session *s, uint64_t address, CUcontext *context);
/* Where memory is to be copied or set for a client's stream: in that stream, if its device reaches the memory, else beside it, in
 * a stream of the memory's own device. Between the two calls `stream` is to be used, in the context that is then current. */
struct tpw_aside {
    CUstream stream;
    struct tpw_stream *waiting; /* the client's, which goes on when the other is done; NULL: they are the same */
};
int32_t tpw_aside_begin(struct tpw_session *s, CUstream stream, uint64_t address, struct tpw_aside *aside);
/* Returns `error`, or what went wrong here. */
int32_t tpw_aside_end(struct tpw_session *s, struct tpw_aside *aside, int32_t error);
void tpw_peers_close(struct tpw_memory *m);

/* ---- pinned.c ---- */
/* The run of the client's that holds `extent` bytes at `offset` of the segment, NULL if it has no such memory. */
struct tpw_range *tpw_run_at(struct tpw_session *s, uint64_t offset, uint64_t extent);

/* ---- twin.c ---- */
void tpw_twins_close(struct tpw_session *s);

/* ---- twin_look.c ---- */
/* Says of each piece whether it differs. */
void tpw_twin_look(const void *now, const void *shadow, uint64_t size, unsigned char *changed);

/* ---- share.c ---- */
/* What has a share, or none, has been given back: true if others may still have it, and its bytes go on being counted until
 * they do not, or count it themselves. */
bool tpw_share_freed(struct tpw_session *s, struct tpw_share **owner, uint64_t charged);
/* Has the supervisor keep a descriptor, which is closed here, or -1. `told` is what api/ generates for it. TPW_LATER or an error. */
typedef void tpw_answered(struct tpw_session *s, const struct tpw_question *question, const struct tpw_packet *packet,
                          int fd);
int32_t tpw_share_ask(struct tpw_session *s, const struct tp_frame *frame, tpw_answered *told, struct tpw_share **owner,
                      const struct tpw_shared *what, int fd);
int32_t tpw_share_settle(struct tpw_session *s, const struct tpw_question *question, const struct tpw_packet *packet,
                         void *handle);
/* CUDA_ERROR_NOT_READY while the supervisor has not answered. */
int32_t tpw_share_handle(const struct tpw_share *share, void *handle);
/* Shows the supervisor a handle. What it grants is taken, also with an error, unless that gives NULL, and dropped. */
int32_t tpw_import_ask(struct tpw_session *s, const struct tpw_question *question, uint32_t kind, const void *handle);
struct tpw_import *tpw_import_take(struct tpw_session *s, const struct tpw_packet *packet, int32_t *error);
uint64_t tpw_share_number(const struct tpw_share *share); /* the supervisor's; 0: it has not answered */
/* A pool takes as much now, if it is shared: whoever comes to pay for it is told. */
void tpw_share_grown(struct tpw_session *s, struct tpw_share *share, uint64_t bytes);
void tpw_import_drop(struct tpw_session *s, struct tpw_import *import);
/* Unmaps what another session shares. */
void tpw_import_end(struct tpw_session *s, struct tpw_range *range);
void tpw_shares_close(struct tpw_memory *m);

/* ---- array.c ---- */
/* Arrays and mipmaps (`levels` of 0: an array) by a descriptor that came in a frame, and their ends. */
int32_t tpw_array_make(struct tpw_session *s, const struct tp_frame *frame, uint32_t kind, uint64_t handle,
                       const void *shape, unsigned levels);
int32_t tpw_array_end(struct tpw_session *s, uint32_t kind, uint64_t handle);

/* ---- staging.c ---- */
/* A pinned piece. When all are in use it waits a little for a completion, then allocates more, because the stream that
 * keeps them may be waiting for a frame that the executor has yet to read. NULL with *error set. */
unsigned char *tpw_buffer_take(struct tpw_session *s, int32_t *error);
void tpw_buffer_give(struct tpw_session *s, unsigned char *buffer);
unsigned char *tpw_spill_take(struct tpw_session *s, int32_t *error);
void tpw_spill_give(struct tpw_session *s, unsigned char *spill);
void tpw_staging_close(struct tpw_session *s);
#endif
