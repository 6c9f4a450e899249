/*
 * Fuzzes what a session does with a hostile client's frames: its real executor, dispatch and families on the simulated GPU.
 *
 * One thread, beside those of the simulated GPU. Each input is one session from beginning to end. Its first byte says how
 * to read the rest: as the bytes of the connection (the frames as they are), or as records, from which frames with good
 * headers are made; and whether the session begins with nothing, or after the objects of an ordinary program were made.
 * In records, words with a mark in the top byte become handles that may exist and addresses that the session gave out:
 * no fuzzer guesses those. Build with -DTP_FUZZ=ON; the environment is set here, so that a crash needs its file only.
 */
#include "fuzz_link.h"
#include "simgpu_check.h"
#include "tpg_session.h"
#include "tpw_main.h"

#include <dlfcn.h>
#include <unistd.h>

enum { RECORDS = 1, ORDINARY = 2 };
#define LAST_OP (TPG_OP_LIMIT + 4) /* and a few that are none */
#define MARK_HANDLE 0x7a
#define MARK_ADDRESS 0x7b
#define BODY_ZEROS                                                                                                     \
    256u /* after a record's body: enough for every operation's fixed part, so that few bodies are too short */
#define CHUNK_RECORD 0xff

static struct tpw_session session;
static struct tpw_main process;
/* NVML stays open for the life of a process, with the objects of its devices. */
static struct tpw_table nvml_devices;

/* ---- in place of main.c ---- */

void *tpw_open_library(struct tpw_session *s, bool nvml) {
    (void)s, (void)nvml;
    return dlopen("libtf-simgpu.so", RTLD_NOW | RTLD_LOCAL); /* beside this program */
}
uint32_t tpw_client_pid(const struct tpw_session *s) { return s->process->client_pid; }
void tpw_control_run(struct tpw_session *s) { (void)s; }

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
    uint32_t a = (uint32_t)rand();
    switch (a % 8) {
    case 0:
    case 1:
    case 2:
        return (uint64_t)MARK_HANDLE << 56 | (a >> 3) % TPG_KIND_LIMIT | (uint64_t)(a >> 12 & 0x100);
    case 3:
        return (uint64_t)MARK_ADDRESS << 56 | (a >> 3 & 0x7);
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

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t most);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed) {
    unsigned char record[5 + 16 * 8];
    srand(seed);
    size_t words = (size_t)rand() % 16, length = 5 + 8 * words;
    if (rand() % 2 || !size || size + length > most) {
        return LLVMFuzzerMutate(data, size, most);
    }
    uint16_t op = (uint16_t)(TPG_OP_cuCtxGetCacheConfig + rand() % (TPG_OP_LIMIT - TPG_OP_cuCtxGetCacheConfig));
    uint16_t bytes = (uint16_t)(8 * words);
    record[0] = (unsigned char)(rand() % 4 ? rand() % 2 : rand() % CHUNK_RECORD);
    memcpy(record + 1, &op, sizeof op);
    memcpy(record + 3, &bytes, sizeof bytes);
    for (size_t i = 0; i < words; i++) {
        uint64_t word = likely_word();
        memcpy(record + 5 + 8 * i, &word, sizeof word);
    }
    size_t at = rand() % 2 ? size : 1 + (size_t)rand() % size;
    memmove(data + at + length, data + at, size - at);
    memcpy(data + at, record, length);
    data[0] |= RECORDS | ORDINARY;
    return size + length;
}

/* ---- the objects of an ordinary program ---- */

#define SEND(name, call, ...)                                                                                          \
    do {                                                                                                               \
        const struct tpg_##name##_in a_ = {__VA_ARGS__};                                                               \
        size_t size_ = tpg_size_##name##_in(&a_);                                                                      \
        unsigned char *body_ = aligned_alloc(8, tp_padded(size_) + 8);                                                 \
        struct tp_cursor c_ = tp_cursor_make(body_, size_);                                                            \
        tpg_put_##name##_in(&c_, &a_);                                                                                 \
        CHECK(!c_.bad);                                                                                                \
        fuzz_link_frame(link, TPG_OP_##name, call, 1, id_of(0, 1), body_, size_);                                      \
        free(body_);                                                                                                   \
    } while (0)

static uint64_t first(uint32_t kind) { return tp_handle_make(kind, id_of(0, 1)); }

static void ordinary(struct tpw_link *link) {
    SEND(start, TP_FRAME_CALL, .flags = 0);
    SEND(primary_retain, TP_FRAME_CALL, .device = 0, .context = first(TPG_CONTEXT));
    SEND(stream_create, 0, .stream = first(TPG_STREAM), .flags = CU_STREAM_NON_BLOCKING);
    SEND(event_create, 0, .event = first(TPG_EVENT));
    SEND(image_load, TP_FRAME_CALL, .size = sizeof kernels_ptx, .owner = first(TPG_MODULE), .data = kernels_ptx,
         .data_size = sizeof kernels_ptx);
    SEND(image_load, TP_FRAME_CALL, .size = sizeof kernels_ptx, .owner = first(TPG_LIBRARY), .is_library = 1,
         .data = kernels_ptx, .data_size = sizeof kernels_ptx);
    SEND(function_get, 0, .module = first(TPG_MODULE), .function = first(TPG_FUNCTION), .index = 0);
    SEND(kernel_get, 0, .library = first(TPG_LIBRARY), .kernel = first(TPG_KERNEL), .index = 1);
    SEND(pool_default, TP_FRAME_CALL, .pool = first(TPG_POOL), .device = 0);
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
        } else if (native && kind == TPG_MEMORY) {
            s->cuda.cuMemRelease(object->native);
        } else if (native && kind == TPG_CONTEXT) {
            s->cuda.cuCtxDestroy_v2(native); /* refused for a primary context */
        }
        free(object->record);
    }
    free(s->tables[kind].slots);
    s->tables[kind] = (struct tpw_table){0};
}

static void end_session(struct tpw_session *s) {
    struct tpw_object *object;
    /* Host functions end first: the GPU waits for them, and everything else for the GPU. */
    tpw_callbacks_close(s);
    for (uint32_t at = 0; (object = tpw_next_object(s, TPG_CONTEXT, &at));) {
        if (object->native && !s->cuda.cuCtxSetCurrent((CUcontext)(uintptr_t)object->native)) {
            s->cuda.cuCtxSynchronize();
        }
    }
    for (int i = 0; i < s->device_count; i++) {
        if (s->primary[i] && !s->cuda.cuCtxSetCurrent(s->primary[i])) {
            s->cuda.cuCtxSynchronize();
        }
    }
    s->entered = 0;
    while (tpw_pending(s)) {
        tpw_markers_end(s, 0, CUDA_ERROR_CONTEXT_IS_DESTROYED);
    }
    tpw_streams_gone(s, 0);
    if (s->primary[0]) {
        s->cuda.cuCtxSetCurrent(s->primary[0]);
    }
    tpw_memory_close(s);
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
    free(s->markers);
    free(s->scratch.memory);
}

/* A session leaves with _exit and lets the system take what it holds (its markers, for one): not a leak, but it looks so. */
__attribute__((visibility("default"))) const char *__asan_default_options(void);
const char *__asan_default_options(void) { return "detect_leaks=0"; }

static struct tpw_session *begin_session(void) {
    struct tpw_session *s = &session;
    const struct tpg_nvml_driver nvml = s->nvml;
    bool nvml_loaded = s->nvml_loaded;
    memset(s, 0, sizeof *s);
    s->process = &process;
    process.control = process.events = -1;
    s->nvml = nvml;
    s->nvml_loaded = nvml_loaded;
    s->tables[TPG_NVMLDEVICE] = nvml_devices;
    s->simulated = true;
    s->link = fuzz_link_new();
    CHECK(tpw_callbacks_open(s) == 0);
    return s;
}

int LLVMFuzzerInitialize(int *count, char ***words) {
    (void)count, (void)words;
    setenv("TF_SIM_MEMORY_MB", "1280", 1); /* room for two contexts and little else */
    setenv("TF_SIM_DEVICES", "2", 1);
    setenv("TF_SIM_UNKNOWN_KERNELS", "skip", 1);
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
    fuzz_link_free(s->link);
    return 0;
}

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size) {
    struct tpw_session *s = begin_session();
    struct input in = {.at = data, .left = size};
    unsigned mode = (unsigned)take(&in, 1);
    if (mode & ORDINARY) {
        ordinary(s->link);
    }
    if (mode & RECORDS) {
        fuzz_link_translate(s->link, translate);
        read_records(s->link, &in);
    } else {
        fuzz_link_stream(s->link, in.at, in.left);
    }
    tpw_execute(s);
    end_session(s);
    fuzz_link_free(s->link);
    return 0;
}
