/*
 * Fuzzes what a session does with a hostile client's frames: its real executor, dispatch and families on the simulated GPU.
 *
 * One thread, beside those of the simulated GPU. Each input is one session from beginning to end. Its first byte says how
 * to read the rest: as the bytes of the connection (the frames as they are), as records, from which frames with good
 * headers are made, or as a story (fuzz_story.h); and whether the session begins with nothing, or after the objects of an ordinary program were made.
 * In records, words with a mark in the top byte become handles that may exist and addresses that the session gave out:
 * no fuzzer guesses those. Build with -DTP_FUZZ=ON; the environment is set here, so that a crash needs its file only.
 */
#include "fuzz_link.h"
#include "fuzz_story.h"
#include "simgpu_check.h"
#include "tpg_session.h"
#include "tpw_graph.h"
#include "tpw_memory.h"

#include <sys/mman.h>
#include <tp_segment.h>
#include <unistd.h>

enum { RECORDS = 1, ORDINARY = 2, STORY = 4 };
#define LAST_OP (TPG_OP_LIMIT + 4) /* and a few that are none */
#define MARK_HANDLE 0x7a
#define MARK_ADDRESS 0x7b
#define BODY_ZEROS                                                                                                     \
    256u /* after a record's body: enough for every operation's fixed part, so that few bodies are too short */
#define CHUNK_RECORD 0xff
#define RECORD_MAX 320u
#define CU_STREAM_LEGACY_VALUE 1u

static struct tpw_session session;
/* For pinned memory; the frames come from memory all the same. */
#define SEGMENT_SIZE (24ull << 20)
static struct tpw_segment segment;
/* NVML stays open for the life of a process, with the objects of its devices. */
static struct tpw_table nvml_devices;

/* ---- input ---- */

struct input {
    const unsigned char *at;
    size_t left;
};

static uint64_t take(struct input *in, size_t size) {
    uint64_t value = 0;
    size = size < in->left ? size : in->left;
    memcpy(&value, in->at, size);
    in->at += size;
    in->left -= size;
    return value;
}

static uint32_t id_of(uint32_t index, uint32_t generation) { return generation << TP_INDEX_BITS | index; }

static uint64_t translate(const struct tpw_link *link, uint64_t word) {
    uint32_t a = word & 0xff, b = word >> 8 & 0xff, c = word >> 16 & 0xff;
    switch (word >> 56) {
    case MARK_HANDLE:
        return tp_handle_make(a % TPG_KIND_LIMIT, id_of(b & 3, 1 + (c & 1)));
    case MARK_ADDRESS:
        return fuzz_link_answer(link, a & 7) + (b | c << 8);
    default:
        return word;
    }
}

/* One address for a whole story: that of the newest answer when it begins. */
static uint64_t story_address;
static uint64_t translate_story(const struct tpw_link *link, uint64_t word) {
    if (word >> 56 != MARK_ADDRESS) {
        return word;
    }
    story_address = story_address ? story_address : fuzz_link_answer(link, 0);
    return story_address + (word & 0xffff);
}

static void read_records(struct tpw_link *link, struct input *in) {
    static unsigned char body[4096 + BODY_ZEROS];
    while (in->left) {
        uint8_t what = (uint8_t)take(in, 1);
        if (what == CHUNK_RECORD) {
            uint64_t transfer = take(in, 1) & 7, offset = take(in, 4);
            uint32_t size = (uint32_t)take(in, 3) % (TP_CHUNK_MAX + 1);
            fuzz_link_block(link, transfer, offset, size, (unsigned char)take(in, 1));
            continue;
        }
        uint16_t op = (uint16_t)(take(in, 2) % LAST_OP);
        size_t size = (size_t)take(in, 2) % 4096;
        size = size < in->left ? size : in->left;
        memcpy(body, in->at, size);
        in->at += size;
        in->left -= size;
        memset(body + size, 0, BODY_ZEROS);
        /* Flags: call, whole body without zeros behind it, another context or none. */
        uint32_t context = what & 8 ? (what & 16 ? id_of(1, 1) : 0) : id_of(0, 1);
        fuzz_link_frame(link, op, what & 1, 1 + (what >> 5 & 1), context, body, what & 4 ? size : size + BODY_ZEROS);
    }
}

/* Half of all mutations put in a record whose words are what operations take: handles, addresses, sizes, small numbers. */
static uint64_t likely_word(void) {
    static const uint64_t edges[] = {0,       1,          2,          4096,      65536,      2 << 20,
                                     3 << 20, UINT32_MAX, 1ull << 32, INT64_MAX, 1ull << 63, UINT64_MAX};
    static const uint32_t kinds[] = {TPG_CONTEXT, TPG_MODULE,    TPG_FUNCTION,  TPG_LIBRARY,    TPG_KERNEL,
                                     TPG_STREAM,  TPG_EVENT,     TPG_POOL,      TPG_MEMORY,     TPG_NVMLDEVICE,
                                     TPG_GRAPH,   TPG_GRAPHNODE, TPG_GRAPHEXEC, TPG_USEROBJECT, TPG_DEVDESC};
    uint32_t a = (uint32_t)rand(), kind = kinds[(a >> 3) % (sizeof kinds / sizeof *kinds)];
    switch (a % 8) {
    case 0:
    case 1:
        return (uint64_t)MARK_HANDLE << 56 | kind;
    case 2:
        return (uint64_t)MARK_HANDLE << 56 | kind | (a >> 8 & 0x300);
    case 3:
        return (uint64_t)MARK_ADDRESS << 56 | (a >> 3 & 0x3);
    case 4:
        return (uint64_t)MARK_ADDRESS << 56 | (a >> 3 & 0xffff07);
    case 5:
        return edges[(a >> 3) % (sizeof edges / sizeof *edges)];
    case 6:
        return a >> 3 & 0xff;
    default:
        return 8ull << (a >> 3 & 31);
    }
}

static size_t random_record(unsigned char *out) {
    size_t words = (size_t)rand() % 16;
    /* NVML has most of the operations and little that depends on the others. */
    uint16_t op;
    do {
        op = (uint16_t)(TPG_OP_cuCtxGetCacheConfig + rand() % (TPG_OP_LIMIT - TPG_OP_cuCtxGetCacheConfig));
    } while (strncmp(tpg_op_name(op), "nvml", 4) == 0 && rand() % 16);
    uint16_t bytes = (uint16_t)(8 * words);
    out[0] = (unsigned char)(rand() % 4 ? rand() % 2 : rand() % CHUNK_RECORD);
    memcpy(out + 1, &op, sizeof op);
    memcpy(out + 3, &bytes, sizeof bytes);
    for (size_t i = 0; i < words; i++) {
        uint64_t word = likely_word();
        memcpy(out + 5 + 8 * i, &word, sizeof word);
    }
    return 5 + 8 * words;
}

/* Operations as an ordinary program sends them: further mutations begin from their success. */
#define HANDLE(kind, index) ((uint64_t)MARK_HANDLE << 56 | (uint64_t)(index) << 8 | (kind))
/* 0: a small allocation, 1: a large one, 2: a twin, 3: the offset of pinned memory in the segment */
#define ADDRESS(answer) ((uint64_t)MARK_ADDRESS << 56 | (answer))
#define LIKE(name, ...)                                                                                                \
    do {                                                                                                               \
        if (which == __COUNTER__ - FIRST_LIKE - 1) {                                                                   \
            const struct tpg_##name##_in a_ = {__VA_ARGS__};                                                           \
            const uint16_t op_ = TPG_OP_##name, size_ = (uint16_t)tpg_size_##name##_in(&a_);                           \
            struct tp_cursor c_ = tp_cursor_make(out + 5, RECORD_MAX - 5);                                             \
            tpg_put_##name##_in(&c_, &a_);                                                                             \
            CHECK(!c_.bad);                                                                                            \
            out[0] = 1;                                                                                                \
            memcpy(out + 1, &op_, sizeof op_);                                                                         \
            memcpy(out + 3, &size_, sizeof size_);                                                                     \
            return 5 + (size_t)size_;                                                                                  \
        }                                                                                                              \
    } while (0)

enum { FIRST_LIKE = __COUNTER__ };

static size_t likely(unsigned char *out, int which) {
    static const uint64_t params[8] = {ADDRESS(0), ADDRESS(0), ADDRESS(1), 16};
    static const CUmemPoolProps pool = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
                                        .handleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
                                        .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE}};
    static const CUmemAllocationProp memory = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                               .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE}};
    static const CUmemAccessDesc access = {.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE},
                                           .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    static const CUlaunchAttribute attribute = {.id = CU_LAUNCH_ATTRIBUTE_PRIORITY};
    static const CUlaunchConfig cluster = {
        .gridDimX = 1, .gridDimY = 1, .gridDimZ = 1, .blockDimX = 32, .blockDimY = 1, .blockDimZ = 1};
    static const uint64_t options[2] = {CU_JIT_OPTIMIZATION_LEVEL, 3};
    const uint64_t stream = rand() % 2 ? HANDLE(TPG_STREAM, 0) : CU_STREAM_LEGACY_VALUE;
    const uint64_t event = HANDLE(TPG_EVENT, 0), events[] = {event, 0, event}, function = HANDLE(TPG_FUNCTION, 0);
    const uint64_t transfer = 1 + (uint64_t)rand() % 3;
    LIKE(copy_in, .area = {ADDRESS(0), 64, 32, 2}, .stream = stream, .ordered = 1, .data = params,
         .data_size = sizeof params);
    LIKE(copy_in_bulk, .area = {ADDRESS(1), 65536, 65536, 2}, .stream = stream, .ordered = 1, .transfer = transfer);
    LIKE(copy_out_bulk, .area = {ADDRESS(1), 65536, 65536, 16}, .stream = stream, .transfer = transfer);
    LIKE(copy_out_post, .area = {ADDRESS(1), 3 << 20, 3 << 20, 1}, .stream = stream, .transfer = transfer);
    LIKE(copy_out, .area = {ADDRESS(0), 64, 64, 2}, .stream = stream);
    LIKE(copy_device, .rows = {ADDRESS(0), 2048, ADDRESS(1), 2048, 2048, 2}, .stream = stream);
    LIKE(managed_in, .area = {ADDRESS(0), 64, 64, 1}, .stream = stream, .data = params, .data_size = sizeof params);
    LIKE(cuMemsetD32Async, .dstDevice = ADDRESS(0), .N = 64, .hStream = stream, .ui = 7);
    LIKE(launch, .function = function, .stream = stream, .shape = {1, 1, 1, 32, 1, 1, 0}, .params = params,
         .params_size = 28);
    LIKE(launch_ex, .function = function, .stream = stream, .shape = {1, 1, 1, 32, 1, 1, 0}, .attributes = &attribute,
         .attributes_size = sizeof attribute, .params = params, .params_size = 28);
    LIKE(cuOccupancyMaxActiveClusters, .func = function, .config = &cluster, .config_size = sizeof cluster);
    LIKE(cuEventRecord, .hEvent = event, .hStream = stream);
    LIKE(cuStreamWaitEvent, .hStream = stream, .hEvent = event);
    LIKE(event_wait, .event = event, .start = rand() % 2 ? event : 0);
    LIKE(event_elapsed, .starts = events, .starts_count = 3, .ends = events, .ends_count = 3);
    LIKE(event_query, .event = event);
    LIKE(stream_wait, .stream = stream);
    LIKE(stream_destroy, .stream = HANDLE(TPG_STREAM, 0));
    LIKE(stream_create, .stream = HANDLE(TPG_STREAM, rand() % 2));
    LIKE(host_function, .stream = stream, .token = 5);
    LIKE(host_function_done, .token = 5);
    LIKE(trace_tell, .token = 1);
    LIKE(memory_alloc, .size = 1 << 20);
    LIKE(memory_free, .address = ADDRESS(rand() % 2));
    LIKE(host_twin_write, .address = ADDRESS(2), .data = params, .data_size = sizeof params);
    LIKE(host_twin_free, .address = ADDRESS(2));
    LIKE(host_twin_read, .address = ADDRESS(rand() % 3), .size = (uint64_t)rand() % 5000);
    LIKE(host_twin, .size = (uint64_t)rand() % 200000, .alone = 1);
    LIKE(arena_take, .size = 1000);
    LIKE(arena_give, .offset = ADDRESS(3), .size = 100000);
    LIKE(arena_copy_in, .area = {ADDRESS(1), 256, 128, 9}, .stream = stream, .offset = ADDRESS(3), .host_pitch = 200);
    LIKE(arena_copy_out, .area = {ADDRESS(0), 4096, 4096, 2}, .stream = stream, .offset = ADDRESS(3),
         .host_pitch = 4096);
    LIKE(pool_create, .pool = HANDLE(TPG_POOL, 1), .props = &pool, .props_size = sizeof pool);
    LIKE(pool_alloc, .pool = HANDLE(TPG_POOL, rand() % 2), .size = 8192, .stream = stream);
    LIKE(pool_free, .address = ADDRESS(0), .stream = stream);
    LIKE(pool_export, .pool = HANDLE(TPG_POOL, 1));
    LIKE(pool_import, .pool = HANDLE(TPG_POOL, 3));
    LIKE(pool_pointer, .pool = HANDLE(TPG_POOL, 1));
    LIKE(cuMemPoolExportPointer, .ptr = ADDRESS(0));
    LIKE(address_reserve, .size = 4 << 20);
    LIKE(memory_create, .memory = HANDLE(TPG_MEMORY, 0), .size = 2 << 20, .prop = &memory, .prop_size = sizeof memory);
    LIKE(memory_map, .address = ADDRESS(0), .size = 2 << 20, .memory = HANDLE(TPG_MEMORY, 0));
    LIKE(memory_access, .address = ADDRESS(0), .size = 2 << 20, .access = &access, .access_size = sizeof access);
    LIKE(memory_unmap, .address = ADDRESS(0), .size = 2 << 20);
    LIKE(global_get, .owner = HANDLE(rand() % 2 ? TPG_MODULE : TPG_LIBRARY, 0), .name = "counter");
    LIKE(context_create, .context = HANDLE(TPG_CONTEXT, 1), .device = rand() % 2);
    CUdevResource resource = {.type = CU_DEV_RESOURCE_TYPE_SM, .sm = {132, 8, 8}};
    const uint32_t token[2] = {0x6b6f7461, (uint32_t)rand() % 2};
    memcpy(resource._internal_padding, token, sizeof token);
    LIKE(cuDeviceGetDevResource, .device = 0, .type = CU_DEV_RESOURCE_TYPE_SM);
    LIKE(resource_split, .input = (const void *)&resource, .input_size = sizeof resource, .groups = 2, .least = 16,
         .wanted = 1);
    LIKE(cuDevResourceGenerateDesc, .phDesc = HANDLE(TPG_DEVDESC, rand() % 2), .resources = &resource,
         .resources_size = sizeof resource, .nbResources = 1);
    LIKE(context_create, .context = HANDLE(TPG_CONTEXT, 1), .share = HANDLE(TPG_DEVDESC, rand() % 2));
    LIKE(cuCtxRecordEvent, .hCtx = HANDLE(TPG_CONTEXT, rand() % 2), .hEvent = event);
    LIKE(cuCtxWaitEvent, .hCtx = HANDLE(TPG_CONTEXT, rand() % 2), .hEvent = event);
    LIKE(context_destroy, .context = HANDLE(TPG_CONTEXT, rand() % 2));
    LIKE(cuEventCreate, .phEvent = HANDLE(TPG_EVENT, rand() % 2));
    LIKE(cuEventDestroy_v2, .hEvent = event);
    LIKE(watch, .subject = rand() % 2 ? event : stream, .word = 1, .value = 2);
    LIKE(pool_default, .pool = HANDLE(TPG_POOL, 2), .device = 0);
    LIKE(cuDeviceSetMemPool, .pool = HANDLE(TPG_POOL, 1), .dev = 0);
    LIKE(pool_destroy, .pool = HANDLE(TPG_POOL, 1 + rand() % 2));
    LIKE(primary_retain, .device = 0, .context = HANDLE(TPG_CONTEXT, 0));
    LIKE(primary_release, .device = 0);
    LIKE(cuGraphCreate, .phGraph = HANDLE(TPG_GRAPH, rand() % 2));
    LIKE(cuGraphAddEmptyNode, .hGraph = HANDLE(TPG_GRAPH, rand() % 2),
         .phGraphNode = HANDLE(TPG_GRAPHNODE, rand() % 4));
    LIKE(graph_child, .owner = HANDLE(TPG_GRAPH, rand() % 2), .node = HANDLE(TPG_GRAPHNODE, rand() % 4),
         .child = HANDLE(TPG_GRAPH, rand() % 2), .move = (unsigned)rand() % 2);
    const uint64_t inside[] = {HANDLE(TPG_GRAPH, 2), HANDLE(TPG_GRAPH, rand() % 4)};
    LIKE(cuGraphConditionalHandleCreate, .hGraph = HANDLE(TPG_GRAPH, rand() % 3), .ctx = HANDLE(TPG_CONTEXT, 0),
         .flags = (unsigned)rand() % 2);
    LIKE(graph_conditional, .owner = HANDLE(TPG_GRAPH, rand() % 3), .node = HANDLE(TPG_GRAPHNODE, rand() % 4),
         .condition = (uint64_t)rand() % 3, .kind = (unsigned)rand() % 4, .context = HANDLE(TPG_CONTEXT, 0),
         .bodies = inside, .bodies_count = (size_t)rand() % 3);
    CUDA_MEM_ALLOC_NODE_PARAMS allocation = {.bytesize = 1 + (size_t)rand() % 9000};
    allocation.poolProps.allocType = CU_MEM_ALLOCATION_TYPE_PINNED;
    allocation.poolProps.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    LIKE(graph_alloc, .owner = HANDLE(TPG_GRAPH, rand() % 2), .node = HANDLE(TPG_GRAPHNODE, rand() % 4),
         .params = &allocation, .params_size = sizeof allocation);
    LIKE(cuGraphDestroyNode, .hNode = HANDLE(TPG_GRAPHNODE, rand() % 4));
    LIKE(cuGraphDestroy, .hGraph = HANDLE(TPG_GRAPH, rand() % 2));
    const uint64_t pairs[] = {ADDRESS(1), ADDRESS(2), ADDRESS(0), ADDRESS(2)};
    LIKE(graph_host, .owner = HANDLE(TPG_GRAPH, rand() % 2), .node = HANDLE(TPG_GRAPHNODE, rand() % 4), .token = 5);
    LIKE(graph_instantiate, .graph = HANDLE(TPG_GRAPH, rand() % 2), .exec = HANDLE(TPG_GRAPHEXEC, 0), .mixed = pairs,
         .mixed_count = (size_t)rand() % 5);
    LIKE(graph_update, .exec = HANDLE(TPG_GRAPHEXEC, 0), .graph = HANDLE(TPG_GRAPH, rand() % 2), .mixed = pairs,
         .mixed_count = (size_t)rand() % 5);
    const CUDA_MEMCPY3D graph_copy = {.srcMemoryType = CU_MEMORYTYPE_DEVICE,
                                      .srcDevice = ADDRESS(0),
                                      .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                                      .dstDevice = ADDRESS(1),
                                      .WidthInBytes = 100,
                                      .Height = 1 + (size_t)rand() % 2,
                                      .Depth = 1};
    const uint64_t buffers[] = {ADDRESS(1), ADDRESS(0), ADDRESS(1)}, fresh[] = {HANDLE(TPG_GRAPHNODE, 2), 7};
    LIKE(cuGraphAddMemcpyNode, .hGraph = HANDLE(TPG_GRAPH, rand() % 2),
         .phGraphNode = HANDLE(TPG_GRAPHNODE, rand() % 4), .copyParams = &graph_copy,
         .copyParams_size = sizeof graph_copy);
    LIKE(graph_child_set, .node = HANDLE(TPG_GRAPHNODE, rand() % 4), .child = HANDLE(TPG_GRAPH, rand() % 2));
    LIKE(graph_host_set, .exec = rand() % 2 ? HANDLE(TPG_GRAPHEXEC, 0) : 0, .node = HANDLE(TPG_GRAPHNODE, rand() % 4),
         .token = 6);
    LIKE(graph_memcpy_get, .node = HANDLE(TPG_GRAPHNODE, rand() % 4));
    LIKE(graph_copies, .graph = HANDLE(TPG_GRAPH, rand() % 2), .buffers = buffers, .buffers_count = (size_t)rand() % 4,
         .fresh = fresh, .fresh_count = (size_t)rand() % 3);
    LIKE(graph_order, .exec = HANDLE(TPG_GRAPHEXEC, 0), .stream = stream, .end = (unsigned)rand() % 2);
    LIKE(cuGraphNodeSetEnabled, .hGraphExec = HANDLE(TPG_GRAPHEXEC, 0), .hNode = HANDLE(TPG_GRAPHNODE, rand() % 4));
    LIKE(cuGraphLaunch, .hGraph = HANDLE(TPG_GRAPHEXEC, 0), .hStream = stream);
    static const unsigned char hash[33];
    static const char image[] = ".version 8.0\n.target sm_90\n.address_size 64\n.visible .entry k() { ret; }\n";
    LIKE(image_load, .size = sizeof kernels_ptx, .owner = HANDLE(TPG_MODULE, 1), .hash = hash,
         .hash_size = 30 + (size_t)rand() % 4);
    LIKE(image_load, .size = sizeof image, .owner = HANDLE(TPG_MODULE, 1), .data = image, .data_size = sizeof image,
         .hash = hash, .hash_size = 32);
    LIKE(image_load, .size = 16, .transfer = transfer, .owner = HANDLE(TPG_MODULE, 1), .options = options,
         .options_count = 2);
    /* a block for one of the bulk copies above */
    const unsigned char block[10] = {CHUNK_RECORD, (unsigned char)transfer, 0, 0, 0, 0, 0, 0, 2, 'x'};
    memcpy(out, block, sizeof block);
    return sizeof block;
}

enum { LIKES = __COUNTER__ - FIRST_LIKE - 1 };

static size_t likely_record(unsigned char *out) { return likely(out, rand() % (LIKES + 1)); }

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t most);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed) {
    unsigned char record[4 * RECORD_MAX];
    srand(seed);
    if (seed % 2 && size &&
        (data[0] & STORY || rand() % 8 == 0)) { /* any bytes are a story, and longer ones go further */
        data[0] = STORY;
        for (unsigned more = 1 + (unsigned)rand() % 64; rand() % 2 && more && size < most; more--) {
            data[size++] = (uint8_t)rand();
        }
        size = LLVMFuzzerMutate(data, size, most);
        data[0] = STORY;
        return size;
    }
    size_t length = 0;
    for (int count = 1 + rand() % 4; count; count--) {
        length += rand() % 4 ? likely_record(record + length) : random_record(record + length);
    }
    if (rand() % 4 == 0 || !size || size + length > most) {
        return LLVMFuzzerMutate(data, size, most);
    }
    size_t at = rand() % 4 ? size : 1 + (size_t)rand() % size;
    memmove(data + at + length, data + at, size - at);
    memcpy(data + at, record, length);
    data[0] = RECORDS | ORDINARY;
    return size + length;
}

/* ---- the objects of an ordinary program ---- */

#define SEND(name, call, ...) FUZZ_SEND(link, 1, id_of(0, 1), name, call, __VA_ARGS__)

static uint64_t first(uint32_t kind) { return tp_handle_make(kind, id_of(0, 1)); }

static void ordinary(struct tpw_link *link) {
    SEND(start, TP_FRAME_CALL, .flags = 0);
    SEND(primary_retain, TP_FRAME_CALL, .device = 0, .context = first(TPG_CONTEXT));
    SEND(stream_create, 0, .stream = first(TPG_STREAM), .flags = CU_STREAM_NON_BLOCKING);
    SEND(cuEventCreate, 0, .phEvent = first(TPG_EVENT));
    SEND(image_load, TP_FRAME_CALL, .size = sizeof kernels_ptx, .owner = first(TPG_MODULE), .data = kernels_ptx,
         .data_size = sizeof kernels_ptx);
    SEND(image_load, TP_FRAME_CALL, .size = sizeof kernels_ptx, .owner = first(TPG_LIBRARY), .is_library = 1,
         .data = kernels_ptx, .data_size = sizeof kernels_ptx);
    SEND(function_get, 0, .module = first(TPG_MODULE), .function = first(TPG_FUNCTION), .index = 0);
    SEND(kernel_get, 0, .library = first(TPG_LIBRARY), .kernel = first(TPG_KERNEL), .index = 1);
    SEND(pool_default, TP_FRAME_CALL, .pool = first(TPG_POOL), .device = 0);
    SEND(arena_take, TP_FRAME_CALL, .size = 100000);
    SEND(host_twin, TP_FRAME_CALL, .size = 4096);
    SEND(memory_alloc, TP_FRAME_CALL, .size = 3 << 20);
    SEND(memory_alloc, TP_FRAME_CALL, .size = 65536);
}

/* ---- a session's end, so that the next one finds nothing of it ---- */

static void destroy_objects(struct tpw_session *s, uint32_t kind) {
    struct tpw_object *object;
    for (uint32_t at = 0; (object = tpw_next_object(s, kind, &at));) {
        void *native = (void *)(uintptr_t)object->native;
        if (native && kind == TPG_LIBRARY) {
            s->cuda.cuLibraryUnload(native);
        } else if (native && kind == TPG_POOL) {
            s->cuda.cuMemPoolDestroy(native); /* refused for the default pool */
            struct tpw_object *other;
            for (uint32_t i = at; (other = tpw_next_object(s, kind, &i));) { /* its second name */
                other->native = other->native == object->native ? 0 : other->native;
            }
        } else if (native && kind == TPG_MEMORY) {
            s->cuda.cuMemRelease(object->native);
        } else if (native && kind == TPG_CONTEXT) {
            s->cuda.cuCtxDestroy_v2(native); /* refused for a primary context */
        }
        free(object->record);
    }
    for (uint32_t i = 0; s->tables[kind].pieces && i < 1u << (TP_INDEX_BITS - TPW_PIECE_BITS); i++) {
        free(s->tables[kind].pieces[i]);
    }
    free(s->tables[kind].pieces);
    s->tables[kind] = (struct tpw_table){0};
}

/* The reserved addresses are few, and a process has them once: they must be empty before they can be given back. */
static void end_memory(struct tpw_session *s) {
    struct tpw_memory *m = s->memory;
    if (!m) {
        return;
    }
    uint64_t base = m->base, size = m->size;
    if (m->twins) { /* a process has the twins' area once, too */
        void *area = (void *)(uintptr_t)m->twins->address;
        s->cuda.cuMemHostUnregister(area);
        CHECK(munmap(area, TPW_GRANULE) == 0);
    }
    for (struct tp_interval *at = tp_interval_from(&m->ranges, 0), *next; at; at = next) {
        struct tpw_range *range = (struct tpw_range *)at;
        next = tp_interval_from(&m->ranges, at->start + 1);
        if (range->kind == TPW_RANGE_TWIN && at->start >= m->base + m->size + TPW_GRANULE) {
            s->cuda.cuMemHostUnregister((void *)(uintptr_t)at->start);
            CHECK(munmap((void *)(uintptr_t)at->start, range->at.size) == 0);
        } else if (range->kind == TPW_RANGE_MAP) {
            s->cuda.cuMemUnmap(range->at.start, range->at.size);
        } else if (range->kind <= TPW_RANGE_NATIVE) {
            tp_interval_remove(&m->ranges, at->start);
            tpw_arena_free(s, range);
            free(range);
        }
    }
    for (uint32_t i = 0; i < (uint32_t)s->device_count; i++) {
        tpw_arena_trim(s, i);
    }
    tpw_memory_close(s);
    if (base) {
        CHECK(s->cuda.cuMemAddressFree(base, size) == CUDA_SUCCESS);
    }
}

static void end_session(struct tpw_session *s) {
    struct tpw_object *object;
    /* Host functions end first: the GPU waits for them, and everything else for the GPU. */
    tpw_callbacks_close(s);
    for (uint32_t at = 0; (object = tpw_next_object(s, TPG_CONTEXT, &at));) {
        const struct tpw_gone gone = {.id = object->id, .native = (CUcontext)(uintptr_t)object->native};
        TP_TELL(tpw_context_ends, s, &gone);
    }
    for (uint32_t at = 0; (object = tpw_next_object(s, TPG_CONTEXT, &at));) {
        s->cuda.cuCtxDestroy_v2((CUcontext)(uintptr_t)object->native); /* refused for a primary context */
        object->native = 0;
    }
    for (int i = 0; i < s->device_count; i++) { /* whatever it does, be it waiting for ever */
        s->cuda.cuDevicePrimaryCtxReset_v2(s->devices[i]);
    }
    s->entered = 0;
    while (tpw_pending(s)) {
        tpw_waits_end(s, 0, CUDA_ERROR_CONTEXT_IS_DESTROYED);
    }
    tpw_streams_gone(s, 0);
    if (s->primary[0]) {
        s->cuda.cuCtxSetCurrent(s->primary[0]);
    }
    /* Graphs keep images, events and contexts, which end with them. */
    for (uint32_t at = 0; (object = tpw_next_object(s, TPG_GRAPH, &at));) {
        const struct tp_frame nobody = {.size = 0};
        const struct tpg_cuGraphDestroy_in in = {.hGraph = tp_handle_make(TPG_GRAPH, object->id)};
        tpw_cuGraphDestroy(s, &nobody, &in); /* refused for one inside another, which goes with that */
    }
    tpw_callbacks_run(s);
    fuzz_link_free(s->link);
    end_memory(s);
    nvml_devices = s->tables[TPG_NVMLDEVICE];
    s->tables[TPG_NVMLDEVICE] = (struct tpw_table){0};
    for (uint32_t kind = TPG_KIND_LIMIT; kind-- > 0;) {
        destroy_objects(s, kind);
    }
    for (int i = 0; i < s->device_count; i++) {
        s->cuda.cuDevicePrimaryCtxReset_v2(s->devices[i]);
    }
    if (s->cuda_loaded) {
        s->cuda.cuCtxSetCurrent(NULL);
    }
    close(tpw_callbacks_fd(s));
    free(s->callbacks);
    free(s->waits);
    tpw_scratch_free(s);
}

/* A session leaves with _exit and lets the system take what it holds (its lists of waits, for one): not a leak, but it looks so. */
__attribute__((visibility("default"))) const char *__asan_default_options(void);
const char *__asan_default_options(void) { return "detect_leaks=0"; }

static void *staging_allocate(size_t size) {
    struct tpw_session *s = &session;
    void *memory = NULL;
    CUcontext previous;
    if (!s->primary[0] || s->cuda.cuCtxPushCurrent_v2(s->primary[0])) {
        return NULL;
    }
    if (s->cuda.cuMemHostAlloc(&memory, size, CU_MEMHOSTALLOC_PORTABLE)) {
        memory = NULL;
    }
    s->cuda.cuCtxPopCurrent_v2(&previous);
    return memory;
}

static void staging_release(void *memory) { session.cuda.cuMemFreeHost(memory); }

static bool busy(void) { return tpw_pending(&session) > 0; }

static void begin_segment(void) {
    static unsigned char *base;
    static uint16_t owners[SEGMENT_SIZE / TP_GRANULE];
    uint32_t first, blocks;
    if (!base) {
        base = mmap((void *)TP_SEGMENT_ADDRESS, SEGMENT_SIZE, PROT_READ | PROT_WRITE,
                    MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
        CHECK(base == (void *)TP_SEGMENT_ADDRESS);
    }
    memset(owners, 0, sizeof owners);
    segment = (struct tpw_segment){.base = base, .size = SEGMENT_SIZE, .owners = owners, .slot = 7};
    CHECK(tp_segment_grant(base, SEGMENT_SIZE, owners, 7, &first, &blocks));
    segment.run = tp_run_layout(first, blocks);
}

static struct tpw_session *begin_session(void) {
    struct tpw_session *s = &session;
    const struct tpg_nvml_driver nvml = s->nvml;
    bool nvml_loaded = s->nvml_loaded;
    memset(s, 0, sizeof *s);
    s->driver_path = s->nvml_path = "libtf-simgpu.so"; /* beside this program */
    begin_segment();
    s->segment = &segment;
    s->control = s->events = -1;
    s->nvml = nvml;
    s->nvml_loaded = nvml_loaded;
    s->tables[TPG_NVMLDEVICE] = nvml_devices;
    s->simulated = true;
    s->link = fuzz_link_new();
    fuzz_link_busy(s->link, busy);
    fuzz_link_staging(s->link, staging_allocate, staging_release);
    CHECK(tpw_callbacks_open(s) == 0);
    return s;
}

int LLVMFuzzerInitialize(int *count, char ***words) {
    (void)count, (void)words;
    setenv("TF_SIM_MEMORY_MB", "1280", 1); /* room for two contexts and little else */
    setenv("TF_SIM_DEVICES", "2", 1);
    setenv("TF_SIM_UNKNOWN_KERNELS", "skip", 1);
    setenv("TF_SIM_DEAD_HANDLES", "abort", 1);  /* the session has to know what still lives */
    setenv("TF_SESSION_MEMORY_LIMIT", "64", 1); /* MB: twins that take no time to look through */
    setenv("TF_ENABLE_LOG", "1", 1);
    setenv("TF_LOG_LEVEL", "debug", 1);
    setenv("TF_LOG_PATH", "/dev/null", 0);
    tp_log_setup("fuzz");
    /* What the inputs build on must work, or they would test little. */
    struct tpw_session *s = begin_session();
    ordinary(s->link);
    tpw_execute(s);
    CHECK(!s->exit_code && !s->deferred_error && s->cuda_loaded && fuzz_link_failures(s->link) == 0);
    CHECK(fuzz_link_answer(s->link, 0) && tpw_object(s, TPG_KERNEL, first(TPG_KERNEL)));
    end_session(s);
    return 0;
}

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size) {
    struct tpw_session *s = begin_session();
    struct input in = {.at = data, .left = size};
    unsigned mode = (unsigned)take(&in, 1);
    if (mode & (ORDINARY | STORY)) {
        ordinary(s->link);
    }
    if (mode & STORY) {
        struct tpw_link *link = s->link;
        story_address = 0;
        fuzz_link_translate(link, translate_story);
        SEND(cuMemsetD8Async, 0, .dstDevice = (uint64_t)MARK_ADDRESS << 56, .N = 64, .hStream = 1);
        fuzz_story(s->link, in.at, in.left, MARK_ADDRESS);
    } else if (mode & RECORDS) {
        fuzz_link_translate(s->link, translate);
        read_records(s->link, &in);
    } else {
        fuzz_link_stream(s->link, in.at, in.left);
    }
    tpw_execute(s);
    end_session(s);
    return 0;
}
