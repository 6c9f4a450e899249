/*
 * Private tables in the client: shapes, entries, context-local storage, MD2 and the integrity check as the runtime makes it.
 *
 * Part of test_client_local, whose devices and stand-in worker it uses; its cases run after those of devices and contexts.
 */
#include "test_client_local.h"

#include <pthread.h>
#include <unistd.h>

/* ---- private tables ---- */

static const void *const *table_of(const char *uuid) {
    CUuuid id;
    const void *table = (const void *)(uintptr_t)1;
    for (int i = 0; i < 16; i++) {
        unsigned byte = 0;
        CHECK(sscanf(uuid + 2 * i, "%2x", &byte) == 1);
        id.bytes[i] = (char)byte;
    }
    CUresult result = tpc_cuGetExportTable(&table, &id);
    CHECK(result == CUDA_SUCCESS ? table != NULL : result == CUDA_ERROR_INVALID_VALUE && table == NULL);
    return table;
}

#define SLOT_OF(table, index, type, name)                                                                              \
    type;                                                                                                              \
    memcpy(&name, &(table)[index], sizeof name)

static int ended[8], ended_count;
static void destructor(CUcontext ctx, void *key, void *value) {
    CHECK(ctx && key);
    ended[ended_count++] = (int)(intptr_t)value;
    CUcontext got;
    OK(tpc_cuCtxGetCurrent(&got)); /* may call the driver API */
}

/* Lists by `next`: what is looked for is found or taken out wherever it stands, and nothing else is. */
void test_lists(void) {
    struct element {
        struct element *next;
        int number;
    } elements[4] = {{&elements[1], 0}, {&elements[2], 1}, {&elements[3], 2}, {NULL, 1}};
    struct element *list = elements, *const same = list;
    CHECK(TP_FIND(list, it->number == 1) == &elements[1] && TP_FIND(same, it->number == 2) == &elements[2]);
    CHECK(!TP_FIND(list, it->number == 9) && !TP_TAKE(list, it->number == 9) && list == elements);
    CHECK(TP_TAKE(list, it->number == 1) == &elements[1] && elements[0].next == &elements[2]);
    CHECK(TP_TAKE(list, it->number == 1) == &elements[3] && !elements[2].next);
    CHECK(TP_TAKE(list, it->number == 0) == elements && list == &elements[2]);
    TP_PUSH(list, &elements[3]);
    CHECK(list == &elements[3] && list->next == &elements[2]);
    TP_UNLINK(list, &elements[2]);
    TP_UNLINK(list, &elements[3]);
    CHECK(!list && !TP_FIND(list, true) && !TP_TAKE(list, true));
}

void test_tables(void) {
    static const struct {
        const char *uuid;
        size_t size;
    } sized[] = {{"6bd5fb6c5bf4e74a8987d93912fd9df9", 0x68},  {"a094798c2e742e7493f20800200c0a66", 0x38},
                 {"42d85a8123f6cb478298f6e78a3aecdc", 0x18},  {"263e88607cd2614392f6bbd5006dfa7e", 0x78},
                 {"d4082055bde6704b8d34ba123c66e1f2", 0x18},  {"21318c60971432488ca641ff7324c8f2", 0x2e8},
                 {"6e163fbeb958444d835ce182aff1991e", 0x320}, {"1734dc26800d47458726c0f1e7dd8bca", 0x88}};
    for (size_t t = 0; t < sizeof sized / sizeof *sized; t++) {
        const void *const *table = table_of(sized[t].uuid);
        CHECK((size_t)table[0] == sized[t].size);
        for (size_t i = 1; i < sized[t].size / 8; i++) {
            CHECK((uintptr_t)table[i] > 0x10000);
        }
    }
    CHECK(!table_of("f8cff95121468b4eb9e2fb469e7c0dd9") && !table_of("f8cff95121468b4eb9e2fb469e7c0dd9"));
    CHECK(!table_of("00000000000000000000000000000000"));
    GIVES(CUDA_ERROR_INVALID_VALUE, tpc_cuGetExportTable(NULL, NULL));

    const void *const *runtime = table_of(sized[0].uuid), *const *hooks = table_of(sized[1].uuid);
    CUresult SLOT_OF(runtime, 1, (*load)(CUmodule *, const void *), load);
    CUresult SLOT_OF(runtime, 8, (*load_container)(const void *, CUmodule *, void *, void *, uint32_t), load_container);
    CUresult SLOT_OF(runtime, 3, (*unknown)(void), unknown);
    CUresult SLOT_OF(runtime, 12, (*compilers)(void), compilers);
    CUmodule module = NULL;
    OK(load(&module, "wrapper"));
    CHECK(module && !strcmp(loaded_image, "wrapper"));
    OK(load_container("container", &module, NULL, NULL, 0));
    CHECK(!strcmp(loaded_image, "container"));
    GIVES(CUDA_ERROR_NOT_SUPPORTED, load_container("container", &module, "?", NULL, 0));
    GIVES(CUDA_ERROR_NOT_SUPPORTED, unknown());
    OK(compilers());
    void **buffer = NULL;
    size_t words = 0;
    CUresult SLOT_OF(hooks, 2, (*first)(void ***, size_t *), first);
    CUresult SLOT_OF(hooks, 6, (*second)(void ***, size_t *), second);
    OK(first(&buffer, &words));
    CHECK(words == 1024 && buffer[0] == NULL && buffer[1023] == NULL);
    OK(second(&buffer, &words));
    CHECK(words == 14 && buffer[13] == NULL);

    CUcontext context = NULL, got = (CUcontext)(uintptr_t)1;
    const void *const *tls = table_of(sized[2].uuid), *const *checks = table_of(sized[3].uuid);
    CUresult SLOT_OF(tls, 2, (*thread_context)(CUcontext *), thread_context);
    CUresult SLOT_OF(checks, 2, (*check)(CUcontext, uint32_t *, void **), check);
    GIVES(CUDA_ERROR_INVALID_CONTEXT, thread_context(&got));
    CHECK(got == NULL);
    OK(tpc_cuDevicePrimaryCtxRetain(&context, 0));
    OK(tpc_cuCtxSetCurrent(context));
    OK(thread_context(&got));
    CHECK(got == context);
    uint32_t one = 99;
    void *untouched = &one;
    OK(check(context, &one, &untouched));
    CHECK(one == 0 && untouched == &one);

    const void *const *tools = table_of(sized[5].uuid), *const *modules = table_of(sized[6].uuid);
    const void *const *hints = table_of(sized[7].uuid);
    CUresult SLOT_OF(tools, 4, (*number)(CUcontext, unsigned long long *), number);
    CUresult SLOT_OF(tools, 51, (*private_stream)(CUcontext, CUstream, void **, int), private_stream);
    CUresult SLOT_OF(tools, 39, (*identity)(CUcontext, const void *, uint64_t *), identity);
    CUresult SLOT_OF(tools, 92, (*last)(void), last);
    int SLOT_OF(modules, 7, (*walk)(CUcontext, CUmodule, CUresult (*)(void *, CUfunction), void *), walk);
    CUresult SLOT_OF(hints, 4, (*hint)(uint64_t *, uint64_t *), hint);
    unsigned long long id = 0, same = 0;
    OK(number(NULL, &id));
    OK(tpc_cuCtxGetId(context, &same));
    CHECK(id == same);
    uint64_t names[4] = {0};
    CUstream streams[4] = {NULL, CU_STREAM_LEGACY, CU_STREAM_PER_THREAD,
                           (CUstream)(uintptr_t)tp_handle_make(TPG_STREAM, 0x100005)};
    for (int i = 0; i < 4; i++) {
        void *opaque = NULL;
        OK(private_stream(NULL, streams[i], &opaque, 0));
        OK(identity(NULL, opaque, &names[i]));
    }
    CHECK(names[0] == names[1] && names[1] != names[2] && names[3] != names[1] && names[3] != names[2]);
    this_thread.number++;
    uint64_t of_other_thread = 0;
    OK(identity(NULL, CU_STREAM_PER_THREAD, &of_other_thread));
    CHECK(of_other_thread != names[2]);
    this_thread.number--;
    GIVES(CUDA_ERROR_NOT_SUPPORTED, last());
    uint64_t a = 5, b = 6;
    GIVES(CUDA_ERROR_NOT_SUPPORTED, hint(&a, &b));
    CHECK(a == 5 && b == 6);
    extern CUresult see_function(void *, CUfunction);
    CUfunction seen = NULL;
    GIVES(1, walk(context, module, see_function, &seen));
    CHECK(seen == (CUfunction)(uintptr_t)0x4712);
    GIVES(0, walk(context, NULL, see_function, &seen));
    OK(tpc_cuCtxSetCurrent(NULL));
    OK(tpc_cuDevicePrimaryCtxRelease_v2(0));
}

CUresult see_function(void *user, CUfunction function);
CUresult see_function(void *user, CUfunction function) {
    *(CUfunction *)user = function;
    return CUDA_SUCCESS;
}

void test_storage(void) {
    const void *const *table = table_of("c693336e1121df11a8c368f355d89593");
    CUresult SLOT_OF(table, 0, (*put)(CUcontext, void *, void *, void (*)(CUcontext, void *, void *)), put);
    CUresult SLOT_OF(table, 1, (*delete)(CUcontext, void *), delete);
    CUresult SLOT_OF(table, 2, (*get)(void **, CUcontext, void *), get);
    CHECK(table[3] == NULL);
    char keys[600];
    void *value = NULL;
    CUcontext context = NULL, created = NULL;
    GIVES(CUDA_ERROR_INVALID_CONTEXT, get(&value, NULL, keys));
    OK(tpc_cuDevicePrimaryCtxRetain(&context, 0));
    OK(tpc_cuCtxSetCurrent(context));
    GIVES(CUDA_ERROR_INVALID_HANDLE, get(&value, NULL, keys));
    GIVES(CUDA_ERROR_INVALID_HANDLE, delete(NULL, keys));
    GIVES(CUDA_ERROR_INVALID_CONTEXT, put((CUcontext)(uintptr_t)0x12340, keys, keys, NULL));
    for (intptr_t i = 0; i < 600; i++) { /* more than there are chains */
        OK(put(NULL, keys + i, (void *)i, NULL));
    }
    for (intptr_t i = 0; i < 600; i++) {
        OK(get(&value, (CUcontext)(uintptr_t)UINT64_MAX, keys + i));
        CHECK(value == (void *)i);
        OK(delete(context, keys + i));
        GIVES(CUDA_ERROR_INVALID_HANDLE, get(&value, NULL, keys + i));
    }
    OK(put(NULL, keys, (void *)1, destructor));
    OK(put(NULL, keys + 1, (void *)2, destructor));
    OK(put(NULL, keys + 1, (void *)3, destructor)); /* replaces */
    OK(put(NULL, keys + 2, (void *)4, NULL));
    OK(delete(NULL, keys));
    OK(tpc_cuCtxCreate_v2(&created, 0, 0));
    OK(put(created, keys, (void *)5, destructor));
    OK(get(&value, created, keys));
    CHECK(value == (void *)5 && ended_count == 0);
    OK(tpc_cuDevicePrimaryCtxRelease_v2(0));
    CHECK(ended_count == 1 && ended[0] == 3);
    GIVES(CUDA_ERROR_INVALID_HANDLE, get(&value, context, keys + 2));
    OK(get(&value, created, keys));
    OK(tpc_cuCtxDestroy_v2(created));
    CHECK(ended_count == 2 && ended[1] == 5);
    GIVES(CUDA_ERROR_INVALID_CONTEXT, put(created, keys, keys, NULL));
    atomic_store(&tpc_state, TPC_BEFORE_INIT);
    GIVES(CUDA_ERROR_NOT_INITIALIZED, get(&value, context, keys));
    atomic_store(&tpc_state, TPC_READY);
    OK(tpc_cuCtxSetCurrent(NULL));
}

static void hex(const unsigned char *bytes, char text[33]) {
    for (int i = 0; i < 16; i++) {
        snprintf(text + 2 * i, 3, "%02x", bytes[i]);
    }
}

/* The test suite of RFC 1319, and HMAC against the definition of RFC 2104 written out. */
void test_md2(void) {
    static const char *const suite[][2] = {
        {"", "8350e5a3e24c153df2275c9f80692773"},
        {"a", "32ec01ec4a6dac72c0ab96fb34c0b5d1"},
        {"abc", "da853b0d3f88d99b30283a69e6ded6bb"},
        {"message digest", "ab4f496bfb2a530b219ff33031fe06b0"},
        {"abcdefghijklmnopqrstuvwxyz", "4e8ddff3650292ab5a4108c3aa47940b"},
        {"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789", "da33def2a42df13975352846c30338cd"},
        {"12345678901234567890123456789012345678901234567890123456789012345678901234567890",
         "d5976f79d83d3a0dc9806c3c66f3efd8"},
    };
    unsigned char digest[16], joined[16 + 80];
    char text[33];
    for (size_t i = 0; i < sizeof suite / sizeof *suite; i++) {
        tpc_md2(suite[i][0], strlen(suite[i][0]), digest);
        hex(digest, text);
        CHECK(!strcmp(text, suite[i][1]));
    }
    static const unsigned char key[16] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};
    for (size_t size = 0; size <= 80; size += 16) {
        unsigned char inner[16], expected[16];
        for (int i = 0; i < 16; i++) {
            joined[i] = key[i] ^ 0x36;
        }
        memset(joined + 16, 'm', size);
        tpc_md2(joined, 16 + size, inner);
        tpc_hmac_md2(key, 16, joined + 16, size, digest);
        for (int i = 0; i < 16; i++) {
            joined[i] = key[i] ^ 0x5c;
        }
        memcpy(joined + 16, inner, 16);
        tpc_md2(joined, 32, expected);
        CHECK(!memcmp(digest, expected, 16));
    }
}

void test_integrity(void) {
    const void *const *table = table_of("d4082055bde6704b8d34ba123c66e1f2");
    const void *const *runtime = table_of("6bd5fb6c5bf4e74a8987d93912fd9df9");
    CUresult SLOT_OF(table, 1, (*check)(uint32_t, uint64_t, uint64_t *), check);
    uint64_t result[2], expected[2];
    OK(check(13000, 1, result));
    CHECK(result[0] == 0x3341181c03cb675cull && result[1] == 0x8ed383aa1f4cd1e8ull);
    OK(check(12091, 1, result));
    CHECK(result[0] == 0x1841181c03cb675cull && result[1] == 0x8ed383aa1f4cd1e8ull);
    /* The runtime's own view of the message. */
    unsigned char message[48 + 3 * 28],
        key[16] = {0x14, 0x6a, 0xdd, 0xae, 0x53, 0xa9, 0xa7, 0x52, 0xaa, 0x08, 0x41, 0x36, 0x0b, 0xf5, 0x5a, 0x9f};
    struct tp_cursor c = tp_cursor_make(message, sizeof message);
    int version, number;
    OK(tpc_cuDriverGetVersion(&version));
    tp_put_i32(&c, version);
    tp_put_u32(&c, 13002);
    tp_put_u32(&c, (uint32_t)getpid());
    tp_put_u32(&c, (uint32_t)(uintptr_t)pthread_self());
    tp_put_u64(&c, (uint64_t)(uintptr_t)runtime);
    tp_put_u64(&c, (uint64_t)(uintptr_t)table);
    tp_put_u64(&c, (uint64_t)(uintptr_t)table[1]);
    tp_put_u64(&c, 1234567890);
    for (int device = 0; device < 3; device++) {
        static const int attributes[] = {50, 33, 34};
        CUuuid uuid;
        OK(tpc_cuDeviceGetUuid_v2(&uuid, device));
        tp_put(&c, &uuid, 16);
        for (int i = 0; i < 3; i++) {
            OK(tpc_cuDeviceGetAttribute(&number, (CUdevice_attribute)attributes[i], device));
            tp_put_i32(&c, number);
        }
    }
    CHECK(!c.bad && c.left == 0);
    OK(check(13002, 1234567890, result));
    tpc_hmac_md2(key, 16, message, sizeof message, (unsigned char *)expected);
    CHECK(result[0] == expected[0] && result[1] == expected[1]);
}
