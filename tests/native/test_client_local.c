/*
 * What the client answers itself: devices, contexts, private tables, against a worker that is a few functions in this file.
 *
 * `test_client_local` runs every case in order in one process and exits with 1 at the first failed check. The real device.c,
 * context.c, limits.c, handle.c, error.c, export_table*.c and md2.c are linked; sending is replaced by a record of the
 * frames sent. tests/test_client_local.py compiles it with test_client_tables.c and runs it. One thread, except where a
 * case starts its own.
 */
#include "test_client_local.h"
#include "tpg_ops.h"

#include <pthread.h>
#include <time.h>

/* ---- the worker ---- */

_Atomic int tpc_state = TPC_READY;
_Atomic int tpc_sticky_error;
_Atomic int tpc_lost_error = CUDA_ERROR_DEVICE_UNAVAILABLE;
bool tpc_strict;
struct tp_conn *tpc_conn;
_Thread_local struct tp_thread this_thread = {.number = 7};
static unsigned char frame_body[4096];
static uint16_t sent[1024], frame_op;
static int sent_count, calls;
static CUresult next_result;
static uint64_t limit_given;
static CUresult start_result = CUDA_ERROR_NO_DEVICE;

CUresult tpc_start(void) { return start_result; }
CUresult tpc_not_ready(void) { return tpc_state == TPC_BEFORE_INIT ? CUDA_ERROR_NOT_INITIALIZED : CUDA_SUCCESS; }
CUresult tpc_lost(void) { return TPC_LOST_ERROR; }
CUresult tpc_posted(void) { return CUDA_SUCCESS; }
CUresult tpc_bad_reply(const struct tp_reply *reply) { return reply->size ? CUDA_ERROR_UNKNOWN : CUDA_ERROR_UNKNOWN; }
CUresult tpc_unsupported(const char *name, const char *reason, CUresult code, _Atomic bool *said) {
    return name && reason && said ? code : CUDA_SUCCESS;
}
struct tp_thread *tp_thread_self(void) { return &this_thread; }
void tp_reply_free(struct tp_reply *reply) { reply->size = 0; }
static int gone; /* contexts, as other families hear of it */
static void context_gone(const struct tpc_context *context) { gone += context != NULL; }
TP_REGISTER(tpc_context_gone, context_gone);

unsigned char *tpc_reserve(uint16_t op, size_t size) {
    CHECK(size <= sizeof frame_body && sent_count < 1024);
    frame_op = op;
    return frame_body;
}

static CUresult commit(void) {
    sent[sent_count++] = frame_op;
    CUresult result = next_result;
    next_result = CUDA_SUCCESS;
    return result;
}

CUresult tpc_post(const char *name, struct tp_reply *unused) {
    CHECK(name && !unused);
    return commit();
}

CUresult tpc_call(const char *name, struct tp_reply *reply) {
    CHECK(name != NULL);
    calls++;
    memset(reply, 0, sizeof *reply);
    reply->body = reply->inline_body;
    struct tp_cursor c = tp_cursor_make(reply->inline_body, sizeof reply->inline_body);
    if (frame_op == TPG_OP_context_limit) {
        struct tpg_context_limit_out out = {.value_set = limit_given};
        tpg_put_context_limit_out(&c, &out);
    } else if (frame_op == TPG_OP_context_info) {
        static uint64_t limits[TP_DEVICE_LIMITS];
        static int results[TP_DEVICE_LIMITS];
        for (int i = 0; i < TP_DEVICE_LIMITS; i++) {
            limits[i] = 1000u + (unsigned)i;
            results[i] = i == 3 ? CUDA_ERROR_UNSUPPORTED_LIMIT : CUDA_SUCCESS;
        }
        struct tpg_context_info_out out = {.limits = limits,
                                           .limits_count = TP_DEVICE_LIMITS,
                                           .results = results,
                                           .results_count = TP_DEVICE_LIMITS,
                                           .priority_low = 1,
                                           .priority_high = -3};
        tpg_put_context_info_out(&c, &out);
    }
    reply->size = (uint32_t)(c.at - reply->inline_body);
    return commit();
}

/* Public functions that the private tables lead to. */
const void *loaded_image;
CUresult cuModuleLoadData(CUmodule *module, const void *image) {
    loaded_image = image;
    *module = (CUmodule)(uintptr_t)0x4711;
    return CUDA_SUCCESS;
}
CUresult cuModuleGetFunctionCount(unsigned int *count, CUmodule mod) {
    *count = mod == (CUmodule)(uintptr_t)0x4711 ? 1 : 0;
    return CUDA_SUCCESS;
}
CUresult cuModuleEnumerateFunctions(CUfunction *functions, unsigned int numFunctions, CUmodule mod) {
    CHECK(numFunctions == 1 && mod);
    functions[0] = (CUfunction)(uintptr_t)0x4712;
    return CUDA_SUCCESS;
}
CUresult cuCtxGetDevice_v2(CUdevice *device, CUcontext ctx) { return tpc_cuCtxGetDevice_v2(device, ctx); }
CUresult cuCtxGetId(CUcontext ctx, unsigned long long *ctxId) { return tpc_cuCtxGetId(ctx, ctxId); }

/* ---- devices ---- */

static struct tp_device_description three[3];

static void describe(void) {
    memset(three, 0, sizeof three);
    for (int i = 0; i < 3; i++) {
        struct tp_device_description *d = &three[i];
        snprintf(d->name, sizeof d->name, "Test GPU %d", i);
        snprintf(d->pci_bus_id, sizeof d->pci_bus_id, "0000:%02X:00.0", 0x30 - 0x10 * i);
        for (int b = 0; b < 16; b++) {
            d->uuid[b] = (uint8_t)(b == 0 ? 0xaa + i / 2 : 0x10 * i + b); /* 0 and 1 begin with the same byte */
        }
        d->total_memory = 1000u * (unsigned)(i + 1);
        for (int a = 0; a < TP_DEVICE_ATTRIBUTES; a++) {
            d->attributes[a] = a == CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID ? 0 : a + 1000 * i;
            d->attribute_results[a] = a < 1 || a >= 148 ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
        }
        d->attributes[CU_DEVICE_ATTRIBUTE_PCI_BUS_ID] = 0x30 - 0x10 * i;
        d->attributes[CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID] = 0;
        for (int l = 0; l < TP_DEVICE_LIMITS; l++) {
            d->limits[l] = 64u * (unsigned)l;
            d->limit_results[l] = i == 2 ? TP_LIMIT_UNKNOWN : l == 9 ? CUDA_ERROR_UNSUPPORTED_LIMIT : CUDA_SUCCESS;
        }
        d->priority_high = -5;
    }
}

static void test_visible(void) {
    static const struct {
        const char *variable;
        int count;
        int order[3];
    } cases[] = {
        {NULL, 3, {0, 1, 2}},
        {"", 0, {0}},
        {"0", 1, {0}},
        {"2,0", 2, {2, 0}},
        {" 1 , 2", 2, {1, 2}},
        {"-1", 0, {0}},
        {"1,-1,0", 1, {1}},
        {"0,9,1", 1, {0}},
        {"99999999999999999999", 0, {0}},
        {"0,0", 0, {0}},
        {"1,2,1", 0, {0}},
        {"1gpu2,2ampere", 2, {1, 2}},
        {"+1", 1, {1}},
        {"abc", 0, {0}},
        {"0,abc,1", 1, {0}},
        {"0,,1", 1, {0}},
        {",0", 0, {0}},
        {"GPU-ab", 1, {2}},
        {"GPU-aa", 0, {0}}, /* two devices begin so */
        {"GPU-aa01", 1, {0}},
        {"GPU-aa11,GPU-ab", 2, {1, 2}},
        {"GPU-aa010203-0405-0607-0809-0a0b0c0d0e0f", 1, {0}},
        {"GPU-aa010203-0405-0607-0809-0a0b0c0d0e0f0", 0, {0}},
        {"GPU-ab,GPU-ab21", 0, {0}},
        {"GPU-ab,0", 1, {2}},
        {"0,GPU-ab", 1, {0}},
        {"GPU-", 0, {0}},
        {"MIG-aa010203", 0, {0}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int order[3] = {-1, -1, -1};
        int count = tpc_visible(cases[i].variable, three, 3, order);
        bool right = count == cases[i].count;
        for (int k = 0; k < count && right; k++) {
            right = order[k] == cases[i].order[k];
        }
        if (!right) {
            fprintf(stderr, "CUDA_VISIBLE_DEVICES=\"%s\": %d devices, first %d\n", cases[i].variable, count, order[0]);
            exit(1);
        }
    }
}

static void test_learn(void) {
    const unsigned char *bytes = (const unsigned char *)three;
    int value = -7;
    OK(tpc_cuDriverGetVersion(&value)); /* no worker yet: the tables' version, and the reason comes with cuInit */
    CHECK(value == TPC_TABLE_VERSION);
    GIVES(CUDA_ERROR_INVALID_VALUE, tpc_cuDriverGetVersion(NULL));
    GIVES(CUDA_ERROR_SYSTEM_DRIVER_MISMATCH, tpc_devices_learn(13000, bytes, sizeof three - 1));
    setenv("CUDA_VISIBLE_DEVICES", "-1", 1);
    GIVES(CUDA_ERROR_NO_DEVICE, tpc_devices_learn(13000, bytes, sizeof three));
    unsetenv("CUDA_VISIBLE_DEVICES");
    GIVES(CUDA_ERROR_NO_DEVICE, tpc_devices_learn(13000, bytes, 0));
    setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID", 1);
    OK(tpc_devices_learn(12040, bytes, sizeof three));
    CHECK(tpc_devices[0].remote == 2 && tpc_devices[1].remote == 1 && tpc_devices[2].remote == 0);
    OK(tpc_cuDriverGetVersion(&value));
    CHECK(value == 12040);
    unsetenv("CUDA_DEVICE_ORDER");
    free(tpc_devices); /* the process learns once; only this test does it again */
    OK(tpc_devices_learn(13010, bytes, sizeof three));
    OK(tpc_cuDriverGetVersion(&value));
    CHECK(value == TPC_TABLE_VERSION); /* a newer driver is answered for as far as the tables go */
    OK(tpc_cuDeviceGetCount(&value));
    CHECK(value == 3);
}

static void test_device(void) {
    CUdevice device = -1;
    char text[64];
    int value = -7, minor = -7;
    size_t size = 0;
    CUuuid uuid;
    CUdevprop properties;
    OK(tpc_cuDeviceGet(&device, 2));
    CHECK(device == 2);
    GIVES(CUDA_ERROR_INVALID_DEVICE, tpc_cuDeviceGet(&device, 3));
    GIVES(CUDA_ERROR_INVALID_DEVICE, tpc_cuDeviceGet(&device, -1));
    GIVES(CUDA_ERROR_INVALID_VALUE, tpc_cuDeviceGet(NULL, 0));
    memset(text, 'x', sizeof text);
    OK(tpc_cuDeviceGetName(text, 5, 1));
    CHECK(!strcmp(text, "Test") && text[5] == 'x');
    OK(tpc_cuDeviceGetName(text, sizeof text, 1));
    CHECK(!strcmp(text, "Test GPU 1"));
    GIVES(CUDA_ERROR_INVALID_VALUE, tpc_cuDeviceGetName(text, 0, 1));
    OK(tpc_cuDeviceGetName(text, -1, 1)); /* a large one */
    GIVES(CUDA_ERROR_INVALID_DEVICE, tpc_cuDeviceGetName(text, 9, 3));
    OK(tpc_cuDeviceGetUuid_v2(&uuid, 1));
    CHECK(!memcmp(&uuid, three[1].uuid, 16));
    OK(tpc_cuDeviceTotalMem_v2(&size, 2));
    CHECK(size == 3000);
    OK(tpc_cuDeviceGetAttribute(&value, CU_DEVICE_ATTRIBUTE_WARP_SIZE, 1));
    CHECK(value == 1000 + CU_DEVICE_ATTRIBUTE_WARP_SIZE);
    OK(tpc_cuDeviceGetAttribute(&value, CU_DEVICE_ATTRIBUTE_CONCURRENT_MANAGED_ACCESS, 1));
    CHECK(value == 0);
    OK(tpc_cuDeviceGetAttribute(&value, CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID, 1));
    CHECK(value == -1);
    static const int bad[] = {-1, 0, 148, 191, 192, 100000, INT32_MIN};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        GIVES(CUDA_ERROR_INVALID_VALUE, tpc_cuDeviceGetAttribute(&value, (CUdevice_attribute)bad[i], 0));
    }
    GIVES(CUDA_ERROR_INVALID_DEVICE, tpc_cuDeviceGetAttribute(&value, 1, 3));
    GIVES(CUDA_ERROR_INVALID_VALUE, tpc_cuDeviceGetAttribute(NULL, 1, 0));
    OK(tpc_cuDeviceComputeCapability(&value, &minor, 0));
    CHECK(value == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR &&
          minor == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
    OK(tpc_cuDeviceGetProperties(&properties, 0));
    CHECK(properties.SIMDWidth == 10 && properties.maxGridSize[2] == 7 && properties.textureAlign == 14);
    OK(tpc_cuDeviceGetPCIBusId(text, 13, 0));
    CHECK(!strcmp(text, "0000:30:00.0"));
    GIVES(CUDA_ERROR_INVALID_VALUE, tpc_cuDeviceGetPCIBusId(text, 12, 0));
    CHECK(!strcmp(text, "0000:30:00.")); /* as much as fits */
    GIVES(CUDA_ERROR_INVALID_DEVICE, tpc_cuDeviceTotalMem_v2(&size, 3));
    CHECK(size == 0);
    static const struct {
        const char *text;
        CUresult result;
        int device;
    } ids[] = {
        {"0000:30:00.0", 0, 0},   {"0:20:0", 0, 1},         {"10:00.0", 0, 2},       {"00000000:10:00.0", 0, 2},
        {"0000:ff:1f.7", 101, 0}, {"0001:30:00.0", 101, 0}, {"nonsense", 1, 0},      {"", 1, 0},
        {"0000:30", 1, 0},        {"0000:30:00.", 1, 0},    {"0000:30:00.0x", 1, 0}, {"000000000:30:00.0", 1, 0}};
    for (size_t i = 0; i < sizeof ids / sizeof *ids; i++) {
        device = -1;
        GIVES(ids[i].result, tpc_cuDeviceGetByPCIBusId(&device, ids[i].text));
        CHECK(ids[i].result || device == ids[i].device);
    }
}

/* ---- contexts ---- */

static CUcontext current(void) {
    CUcontext context = (CUcontext)(uintptr_t)1;
    OK(tpc_cuCtxGetCurrent(&context));
    CHECK(this_thread.context == (context ? tp_handle_id((uint64_t)(uintptr_t)context) : 0));
    return context;
}

static void test_primary(void) {
    CUcontext one = NULL, two = NULL;
    unsigned flags = 99;
    int active = 99, before = calls;
    const void *table = NULL;
    CUuuid runtime = {.bytes = {0x6b, (char)0xd5, (char)0xfb, 0x6c, 0x5b, (char)0xf4, (char)0xe7, 0x4a, (char)0x89,
                                (char)0x87, (char)0xd9, 0x39, 0x12, (char)0xfd, (char)0x9d, (char)0xf9}};
    OK(tpc_cuGetExportTable(&table, &runtime));
    CUresult (*primary_handle)(CUcontext *, CUdevice);
    memcpy(&primary_handle, (const char *)table + 2 * sizeof table, sizeof primary_handle);
    OK(primary_handle(&two, 1));
    OK(tpc_cuDevicePrimaryCtxGetState(1, &flags, &active));
    CHECK(two && flags == 0 && active == 0 && calls == before);
    GIVES(CUDA_ERROR_INVALID_CONTEXT, tpc_cuDevicePrimaryCtxRelease_v2(1));
    OK(tpc_cuDevicePrimaryCtxSetFlags_v2(1, 4));
    GIVES(CUDA_ERROR_INVALID_VALUE, tpc_cuDevicePrimaryCtxSetFlags_v2(1, 0x8000));
    GIVES(CUDA_ERROR_INVALID_VALUE, tpc_cuDevicePrimaryCtxSetFlags_v2(1, 3));
    next_result = CUDA_ERROR_OUT_OF_MEMORY;
    GIVES(CUDA_ERROR_OUT_OF_MEMORY, tpc_cuDevicePrimaryCtxRetain(&one, 1));
    OK(tpc_cuDevicePrimaryCtxGetState(1, &flags, &active));
    CHECK(flags == 4 && active == 0);
    before = calls;
    OK(tpc_cuDevicePrimaryCtxRetain(&one, 1));
    CHECK(one == two && calls == before + 1 && sent[sent_count - 1] == TPG_OP_primary_retain);
    OK(tpc_cuDevicePrimaryCtxRetain(&two, 1));
    CHECK(one == two && calls == before + 1 && current() == NULL);
    before = sent_count;
    OK(tpc_cuDevicePrimaryCtxRelease_v2(1));
    CHECK(sent_count == before);
    OK(tpc_cuCtxSetCurrent(one));
    CUdevice device = -1;
    OK(tpc_cuCtxGetDevice(&device));
    CHECK(device == 1);
    OK(tpc_cuDevicePrimaryCtxRelease_v2(1));
    CHECK(sent_count == before + 1 && sent[before] == TPG_OP_primary_release);
    OK(tpc_cuCtxGetDevice(&device));
    GIVES(CUDA_ERROR_CONTEXT_IS_DESTROYED, tpc_cuCtxGetId(NULL, &(unsigned long long){0}));
    GIVES(CUDA_ERROR_INVALID_CONTEXT, tpc_cuDevicePrimaryCtxRelease_v2(1));
    OK(tpc_cuDevicePrimaryCtxRelease(1)); /* the first form has nothing against that */
    CHECK(current() == one);
    OK(tpc_cuDevicePrimaryCtxRetain(&two, 1));
    CHECK(one == two);
    OK(tpc_cuCtxGetDevice(&device));
    OK(tpc_cuDevicePrimaryCtxReset_v2(1));
    CHECK(sent[sent_count - 1] == TPG_OP_primary_release);
    OK(tpc_cuDevicePrimaryCtxGetState(1, &flags, &active));
    CHECK(active == 0);
    before = sent_count;
    OK(tpc_cuDevicePrimaryCtxReset_v2(1));   /* nothing there to end */
    OK(tpc_cuDevicePrimaryCtxRelease_v2(1)); /* of the retain before the reset */
    CHECK(sent_count == before);
    GIVES(CUDA_ERROR_INVALID_CONTEXT, tpc_cuDevicePrimaryCtxRelease_v2(1));
    GIVES(CUDA_ERROR_INVALID_DEVICE, tpc_cuDevicePrimaryCtxRetain(&one, 3));
    GIVES(CUDA_ERROR_INVALID_VALUE, tpc_cuDevicePrimaryCtxRetain(NULL, 0));
    GIVES(CUDA_ERROR_INVALID_VALUE, tpc_cuDevicePrimaryCtxGetState(0, NULL, NULL));
    OK(tpc_cuCtxSetCurrent(NULL));
    CHECK(current() == NULL);
}

static void *other_thread(void *context) {
    CUcontext got = NULL;
    OK(tpc_cuCtxGetCurrent(&got));
    CHECK(got == NULL);
    OK(tpc_cuCtxPushCurrent_v2(context));
    OK(tpc_cuCtxDestroy_v2(context));
    OK(tpc_cuCtxGetCurrent(&got));
    CHECK(got == NULL);
    return NULL;
}

static void test_stack(void) {
    CUcontext first = NULL, second = NULL, got = NULL, primary = NULL;
    CUdevice device = -1;
    unsigned flags = 0, version = 0;
    unsigned long long id = 0, other = 0;
    GIVES(CUDA_ERROR_INVALID_CONTEXT, tpc_cuCtxPopCurrent_v2(&got));
    GIVES(CUDA_ERROR_INVALID_CONTEXT, tpc_cuCtxGetDevice(&device));
    GIVES(CUDA_ERROR_INVALID_CONTEXT, tpc_cuCtxGetDevice_v2(&device, NULL));
    GIVES(CUDA_ERROR_INVALID_CONTEXT, tpc_cuProfilerStart());
    GIVES(CUDA_ERROR_INVALID_VALUE, tpc_cuCtxPushCurrent_v2(NULL));
    GIVES(CUDA_ERROR_INVALID_CONTEXT, tpc_cuCtxPushCurrent_v2((CUcontext)(uintptr_t)0x1234560));
    GIVES(CUDA_ERROR_INVALID_VALUE, tpc_cuCtxDestroy_v2(NULL));
    GIVES(CUDA_ERROR_INVALID_VALUE, tpc_cuCtxCreate_v2(NULL, 0, 0));
    GIVES(CUDA_ERROR_INVALID_VALUE, tpc_cuCtxCreate_v2(&first, 0x8000, 0));
    GIVES(CUDA_ERROR_INVALID_DEVICE, tpc_cuCtxCreate_v2(&first, 0, 9));
    next_result = CUDA_ERROR_OUT_OF_MEMORY;
    GIVES(CUDA_ERROR_OUT_OF_MEMORY, tpc_cuCtxCreate_v2(&first, 0, 0));
    CHECK(!current());
    OK(tpc_cuCtxCreate_v2(&first, 0, 0));
    CHECK(current() == first);
    OK(tpc_cuCtxCreate_v2(&second, 4, 2));
    CHECK(current() == second && first != second);
    OK(tpc_cuCtxGetFlags(&flags));
    OK(tpc_cuCtxGetApiVersion(second, &version));
    OK(tpc_cuCtxGetId(first, &id));
    OK(tpc_cuCtxGetId(NULL, &other));
    CHECK(flags == 4 && version == 3020 && id != other);
    OK(tpc_cuCtxGetDevice_v2(&device, first));
    CHECK(device == 0);
    OK(tpc_cuCtxSetFlags(1));
    OK(tpc_cuCtxGetFlags(&flags));
    CHECK(flags == 1);
    OK(tpc_cuCtxPopCurrent_v2(&got));
    CHECK(got == second && current() == first);
    OK(tpc_cuCtxPushCurrent_v2(second));
    GIVES(CUDA_ERROR_INVALID_CONTEXT, tpc_cuCtxPushCurrent(second)); /* the first form, of one that is current */
    OK(tpc_cuCtxPushCurrent_v2(second));
    OK(tpc_cuCtxSetCurrent(first)); /* replaces the top */
    OK(tpc_cuCtxPopCurrent_v2(&got));
    CHECK(got == first && current() == second);
    OK(tpc_cuCtxSetCurrent(NULL)); /* the same as a pop */
    CHECK(current() == first);
    OK(tpc_cuCtxPushCurrent_v2(second));
    pthread_t thread;
    CHECK(!pthread_create(&thread, NULL, other_thread, second) && !pthread_join(thread, NULL));
    CHECK(current() == second);      /* it stays on this stack, but it is gone */
    OK(tpc_cuCtxGetDevice(&device)); /* of one that is gone, which can be made current, too */
    OK(tpc_cuCtxSetCurrent(second));
    OK(tpc_cuCtxPushCurrent(second));
    OK(tpc_cuCtxPopCurrent_v2(&got));
    GIVES(CUDA_ERROR_INVALID_CONTEXT, tpc_cuCtxGetApiVersion(second, &version));
    GIVES(CUDA_ERROR_CONTEXT_IS_DESTROYED, tpc_cuCtxGetApiVersion(NULL, &version));
    GIVES(CUDA_ERROR_CONTEXT_IS_DESTROYED, tpc_cuCtxDestroy_v2(second));
    GIVES(CUDA_ERROR_CONTEXT_IS_DESTROYED, tpc_cuCtxGetId(second, &id));
    OK(tpc_cuCtxPopCurrent_v2(&got));
    OK(tpc_cuDevicePrimaryCtxRetain(&primary, 0));
    GIVES(CUDA_ERROR_INVALID_CONTEXT, tpc_cuCtxDestroy_v2(primary));
    OK(tpc_cuDevicePrimaryCtxRelease_v2(0));
    OK(tpc_cuCtxDestroy_v2(first)); /* current: popped too */
    CHECK(!current() && sent[sent_count - 1] == TPG_OP_context_destroy);
    GIVES(CUDA_ERROR_INVALID_CONTEXT, tpc_cuCtxPopCurrent_v2(&got));
    OK(tpc_cuCtxSetCurrent(NULL));
    CUexecAffinityParam share = {.type = CU_EXEC_AFFINITY_TYPE_SM_COUNT, .param.smCount.val = 8};
    CUctxCreateParams graphics = {.cigParams = (CUctxCigParam *)(uintptr_t)16},
                      affinity = {.execAffinityParams = &share, .numExecAffinityParams = 1}, empty = {0};
    GIVES(CUDA_ERROR_INVALID_VALUE, tpc_cuCtxCreate_v3(&first, NULL, 1, 0, 0));
    OK(tpc_cuCtxCreate_v3(&first, &share, -1, 0, 0)); /* none */
    OK(tpc_cuCtxDestroy_v2(first));
    GIVES(CUDA_ERROR_INVALID_VALUE, tpc_cuCtxCreate_v3(NULL, NULL, 0, 0, 0));
    GIVES(CUDA_ERROR_UNSUPPORTED_EXEC_AFFINITY, tpc_cuCtxCreate_v3(&first, &share, 1, 0, 0));
    CHECK(!current());
    OK(tpc_cuCtxCreate_v3(&first, NULL, 0, 0, 0));
    CHECK(current() == first);
    OK(tpc_cuCtxDestroy_v2(first));
    OK(tpc_cuCtxCreate_v4(&first, &empty, 0, 0));
    OK(tpc_cuCtxDestroy_v2(first));
    GIVES(CUDA_ERROR_NOT_SUPPORTED, tpc_cuCtxCreate_v4(&first, &graphics, 0, 0));
    GIVES(CUDA_ERROR_UNSUPPORTED_EXEC_AFFINITY, tpc_cuCtxCreate_v4(&first, &affinity, 0, 0));
    OK(tpc_cuCtxCreate_v4(&first, NULL, 0, 0));
    int pushed = 0;
    while (tpc_cuCtxPushCurrent_v2(first) == CUDA_SUCCESS && pushed < 10000) {
        pushed++;
    }
    CHECK(pushed > 60 && pushed < 10000);
    GIVES(CUDA_ERROR_OUT_OF_MEMORY, tpc_cuCtxCreate_v2(&second, 0, 0));
    while (tpc_cuCtxPopCurrent_v2(&got) == CUDA_SUCCESS) {
    }
    int before = gone;
    OK(tpc_cuCtxDestroy_v2(first));
    CHECK(!current() && gone == before + 1);
}

static void test_limits(void) {
    CUcontext context = NULL;
    size_t value = 0;
    int low = 9, high = 9;
    GIVES(CUDA_ERROR_INVALID_CONTEXT, tpc_cuCtxGetLimit(&value, 0));
    OK(tpc_cuDevicePrimaryCtxRetain(&context, 0));
    OK(tpc_cuCtxSetCurrent(context));
    int before = calls;
    OK(tpc_cuCtxGetLimit(&value, CU_LIMIT_MALLOC_HEAP_SIZE));
    OK(tpc_cuCtxGetStreamPriorityRange(&low, &high));
    OK(tpc_cuCtxGetStreamPriorityRange(NULL, NULL));
    CHECK(value == 128 && low == 0 && high == -5 && calls == before);
    GIVES(CUDA_ERROR_INVALID_VALUE, tpc_cuCtxGetLimit(&value, (CUlimit)-1));
    GIVES(CUDA_ERROR_INVALID_VALUE, tpc_cuCtxGetLimit(&value, CU_LIMIT_MAX));
    GIVES(CUDA_ERROR_INVALID_VALUE, tpc_cuCtxGetLimit(NULL, 0));
    GIVES(CUDA_ERROR_UNSUPPORTED_LIMIT, tpc_cuCtxGetLimit(&value, (CUlimit)9));
    limit_given = 4112;
    OK(tpc_limit_set(tpc_current(), CU_LIMIT_STACK_SIZE, 4100));
    OK(tpc_cuCtxGetLimit(&value, CU_LIMIT_STACK_SIZE));
    CHECK(value == 4112);
    next_result = CUDA_ERROR_INVALID_VALUE;
    GIVES(CUDA_ERROR_INVALID_VALUE, tpc_limit_set(tpc_current(), CU_LIMIT_STACK_SIZE, 1ull << 40));
    OK(tpc_cuCtxGetLimit(&value, CU_LIMIT_STACK_SIZE));
    CHECK(value == 4112);
    GIVES(CUDA_ERROR_INVALID_VALUE, tpc_limit_set(tpc_current(), (CUlimit)99, 1));
    OK(tpc_cuDevicePrimaryCtxReset_v2(0));
    GIVES(CUDA_ERROR_CONTEXT_IS_DESTROYED, tpc_cuCtxGetLimit(&value, CU_LIMIT_STACK_SIZE));
    OK(tpc_cuDevicePrimaryCtxRetain(&context, 0));
    OK(tpc_cuCtxGetLimit(&value, CU_LIMIT_STACK_SIZE));
    CHECK(value == 0); /* as in a fresh context */
    OK(tpc_cuDevicePrimaryCtxRelease_v2(0));
    OK(tpc_cuDevicePrimaryCtxRelease_v2(0));
    /* Nothing was known of device 2 at the start: one question fetches all. */
    OK(tpc_cuDevicePrimaryCtxRetain(&context, 2));
    OK(tpc_cuCtxSetCurrent(context));
    before = calls;
    OK(tpc_cuCtxGetLimit(&value, CU_LIMIT_MALLOC_HEAP_SIZE));
    OK(tpc_cuCtxGetStreamPriorityRange(&low, &high));
    GIVES(CUDA_ERROR_UNSUPPORTED_LIMIT, tpc_cuCtxGetLimit(&value, (CUlimit)3));
    CHECK(value == 1002 && low == 1 && high == -3 && calls == before + 1);
    OK(tpc_cuDevicePrimaryCtxRelease_v2(2));
    OK(tpc_cuCtxSetCurrent(NULL));
}

static void test_errors(void) {
    const char *text = "unset";
    OK(tpc_cuGetErrorName(CUDA_ERROR_OUT_OF_MEMORY, &text));
    CHECK(!strcmp(text, "CUDA_ERROR_OUT_OF_MEMORY"));
    OK(tpc_cuGetErrorString(CUDA_SUCCESS, &text));
    CHECK(!strcmp(text, "no error"));
    GIVES(CUDA_ERROR_INVALID_VALUE, tpc_cuGetErrorName((CUresult)12345, &text));
    GIVES(CUDA_ERROR_INVALID_VALUE, tpc_cuGetErrorString((CUresult)-1, &text));
    GIVES(CUDA_ERROR_INVALID_VALUE, tpc_cuGetErrorName(CUDA_SUCCESS, NULL));
    CUmoduleLoadingMode mode = 0;
    setenv("CUDA_MODULE_LOADING", "EAGER", 1);
    OK(tpc_cuModuleGetLoadingMode(&mode));
    CHECK(mode == CU_MODULE_EAGER_LOADING);
    unsetenv("CUDA_MODULE_LOADING");
    OK(tpc_cuModuleGetLoadingMode(&mode));
    CHECK(mode == CU_MODULE_LAZY_LOADING);
    GIVES(CUDA_ERROR_INVALID_VALUE, tpc_cuModuleGetLoadingMode(NULL));
}

/* Nanoseconds a call of the hot questions; printed, and bounded loosely because test machines are busy. */
static void test_speed(void) {
    CUcontext context;
    void *value;
    int key, number, active;
    unsigned flags;
    OK(tpc_cuDevicePrimaryCtxRetain(&context, 0));
    OK(tpc_cuCtxSetCurrent(context));
    OK(tpc_storage_put(NULL, &key, &key, NULL));
#define TIME(what)                                                                                                     \
    do {                                                                                                               \
        double best = 1e9;                                                                                             \
        for (int round = 0; round < 5; round++) {                                                                      \
            struct timespec a, b;                                                                                      \
            clock_gettime(CLOCK_MONOTONIC, &a);                                                                        \
            for (int i = 0; i < 100000; i++) {                                                                         \
                OK(what);                                                                                              \
            }                                                                                                          \
            clock_gettime(CLOCK_MONOTONIC, &b);                                                                        \
            double spent = ((double)(b.tv_sec - a.tv_sec) * 1e9 + (double)(b.tv_nsec - a.tv_nsec)) / 100000;           \
            best = spent < best ? spent : best;                                                                        \
        }                                                                                                              \
        printf("%6.1f ns  %s\n", best, #what);                                                                         \
        CHECK(best < 500);                                                                                             \
    } while (0)
    TIME(tpc_cuCtxGetDevice_v2(&number, NULL));
    TIME(tpc_cuDevicePrimaryCtxGetState(0, &flags, &active));
    TIME(tpc_cuCtxGetCurrent(&context));
    TIME(tpc_cuCtxSetCurrent(context));
    TIME(tpc_storage_get(&value, NULL, &key));
    TIME(tpc_cuDeviceGetAttribute(&number, CU_DEVICE_ATTRIBUTE_WARP_SIZE, 0));
    OK(tpc_cuDevicePrimaryCtxRelease_v2(0));
    OK(tpc_cuCtxSetCurrent(NULL));
}

int main(void) {
    describe();
    test_visible();
    test_learn();
    test_device();
    test_primary();
    test_stack();
    test_limits();
    test_lists();
    test_tables();
    test_storage();
    test_md2();
    test_integrity();
    test_errors();
    test_speed();
    printf("all cases passed\n");
    return 0;
}
