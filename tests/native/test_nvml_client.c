/*
 * NVML's client without a connection: this file stands in for libteleport and answers every frame itself.
 *
 * Built from native/client/nvml, native/base/{log,time_lock}.c and the generated tpg_nvml_entries.c, tpg_nvml_stubs.c. The
 * stand-in checks that each frame is what the generated decoder takes, and answers as told: well, cut short at every byte,
 * too long, or with junk. Buffers of the caller are exactly as large as announced, so that the address sanitizer sees a byte
 * too many.
 */
#include "tpg_ops.h"
#include "tpn.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <tp_trace.h>
#include <tp_wait.h>
#include <unistd.h>

/* Calls are not traced here. */
_Atomic int tp_trace_state = TP_TRACE_OFF;
bool tp_trace_on(void) { return false; }
uint64_t tp_trace_begin(void) { return 0; }
void tp_trace_end(const struct tp_tables *tables, const struct tp_call *call, const void *const *values,
                  const void *result, bool succeeded, uint64_t begin) {
    (void)tables, (void)call, (void)values, (void)result, (void)succeeded, (void)begin;
}

static int failures;
#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            failures++;                                                                                                \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                                            \
        }                                                                                                              \
    } while (0)

/* ---- the stand-in for libteleport ---- */

struct tp_conn {
    int unused;
};
static struct tp_conn the_conn;
static enum tp_status connect_status = TP_OK;
static bool alive = true;
static _Alignas(16) unsigned char frame_memory[TP_FRAME_MAX];
static size_t frame_size;
static int calls;

static int32_t answer_result;
static unsigned char *answer_body;
static size_t answer_size;

struct tp_conn *tp_connection(enum tp_status *status) {
    *status = alive ? connect_status : TP_ERROR_LOST;
    return *status == TP_OK ? &the_conn : NULL;
}
void tp_count_unsupported(const char *name) { (void)name; }
void tp_wait_begin(void) {}
void tp_wait_end(void) {}
uint32_t tp_interruptions(void) { return 0; }

bool tp_alive(const struct tp_conn *conn) { return conn && alive; }
void tp_await_reason(struct tp_conn *conn) { (void)conn; }

bool tp_refused(const struct tp_conn *conn) {
    (void)conn;
    return false;
}

void *tp_reserve(struct tp_conn *conn, uint16_t op, size_t size) {
    (void)conn;
    if (!alive) {
        return NULL;
    }
    CHECK(size <= TP_FRAME_MAX);
    struct tp_frame head = {.size = (uint32_t)tp_padded(size), .op = op, .flags = TP_FRAME_CALL, .thread = 1};
    memset(frame_memory, 0xee, size);
    memcpy(frame_memory, &head, sizeof head);
    frame_size = size;
    return frame_memory;
}

static void start_answer(void) {
    static nvmlPciInfo_t pci[2];
    static char uuids[2][TP_NVML_UUID], serials[2][TP_NVML_SERIAL],
        version[NVML_SYSTEM_NVML_VERSION_BUFFER_SIZE] = "13.1.2";
    for (unsigned int i = 0; i < 2; i++) {
        pci[i] = (nvmlPciInfo_t){.domain = 0, .bus = 0x1a + i, .device = 6, .pciDeviceId = 0x233510de};
        snprintf(pci[i].busIdLegacy, sizeof pci[i].busIdLegacy, "0000:%02X:06.0", 0x1a + i);
        snprintf(pci[i].busId, sizeof pci[i].busId, "00000000:%02X:06.0", 0x1a + i);
        snprintf(uuids[i], sizeof uuids[i], "GPU-0123456%u-89ab-cdef-0123-456789abcdef", i);
        snprintf(serials[i], sizeof serials[i], "%u", 100 + i);
    }
    struct tpg_nvml_start_out o = {.cuda_version = 13000,
                                   .pci = pci,
                                   .pci_count = 2,
                                   .uuids = uuids,
                                   .uuids_size = sizeof uuids,
                                   .serials = serials,
                                   .serials_size = sizeof serials,
                                   .nvml_version = version,
                                   .nvml_version_size = sizeof version};
    answer_size = tpg_size_nvml_start_out(&o);
    free(answer_body);
    answer_body = malloc(answer_size);
    struct tp_cursor c = tp_cursor_make(answer_body, answer_size);
    tpg_put_nvml_start_out(&c, &o);
    answer_result = 0;
}

enum tp_status tp_commit_call(struct tp_conn *conn, const char *what, struct tp_reply *reply) {
    struct tp_frame head;
    (void)conn;
    CHECK(what && *what);
    calls++;
    if (!alive) {
        return TP_ERROR_LOST;
    }
    memcpy(&head, frame_memory, sizeof head);
    if (head.op == TPG_OP_nvml_start) {
        start_answer();
    }
    *reply = (struct tp_reply){.result = answer_result, .size = (uint32_t)answer_size};
    reply->body = answer_size <= sizeof reply->inline_body ? reply->inline_body : malloc(answer_size);
    if (answer_size) {
        memcpy(reply->body, answer_body, answer_size);
    }
    return TP_OK;
}

void tp_reply_free(struct tp_reply *reply) {
    if (reply->body != reply->inline_body) {
        free(reply->body);
    }
    reply->body = NULL;
}

static void answer(int32_t result, const void *body, size_t size) {
    answer_result = result;
    answer_size = size;
    free(answer_body);
    answer_body = malloc(size ? size : 1);
    if (size) {
        memcpy(answer_body, body, size);
    }
}

/* ---- tests ---- */

static nvmlDevice_t device(unsigned int index) {
    nvmlDevice_t handle = NULL;
    CHECK(nvmlDeviceGetHandleByIndex_v2(index, &handle) == NVML_SUCCESS);
    return handle;
}

static void before_init(void) {
    unsigned int count = 7;
    char text[80];
    CHECK(nvmlDeviceGetCount_v2(&count) == NVML_ERROR_UNINITIALIZED && count == 7);
    CHECK(nvmlSystemGetDriverVersion(text, sizeof text) == NVML_ERROR_UNINITIALIZED);
    CHECK(nvmlShutdown() == NVML_ERROR_UNINITIALIZED);
    CHECK(nvmlDeviceSetPersistenceMode(NULL, NVML_FEATURE_ENABLED) == NVML_ERROR_UNINITIALIZED);
    CHECK(strcmp(nvmlErrorString(NVML_ERROR_NOT_SUPPORTED), "Not Supported") == 0);
    CHECK(strcmp(nvmlErrorString((nvmlReturn_t)500), "Unknown Error") == 0);
    connect_status = TP_ERROR_UNREACHABLE;
    CHECK(nvmlInit_v2() == NVML_ERROR_DRIVER_NOT_LOADED);
    CHECK(nvmlDeviceGetCount_v2(&count) == NVML_ERROR_UNINITIALIZED);
    connect_status = TP_OK;
    CHECK(calls == 0);
    CHECK(nvmlSystemGetNVMLVersion(text, sizeof text) == NVML_SUCCESS && strcmp(text, "13.1.2") == 0);
    CHECK(nvmlSystemGetNVMLVersion(text, 6) == NVML_ERROR_INSUFFICIENT_SIZE);
    CHECK(nvmlDeviceGetCount_v2(&count) == NVML_ERROR_UNINITIALIZED);
}

static void references(void) {
    unsigned int count = 0;
    CHECK(nvmlInit_v2() == NVML_SUCCESS && nvmlInitWithFlags(0) == NVML_SUCCESS);
    CHECK(nvmlShutdown() == NVML_SUCCESS);
    CHECK(nvmlDeviceGetCount_v2(&count) == NVML_SUCCESS && count == 2);
    CHECK(nvmlShutdown() == NVML_SUCCESS && nvmlShutdown() == NVML_ERROR_UNINITIALIZED);
    CHECK(nvmlDeviceGetCount_v2(&count) == NVML_ERROR_UNINITIALIZED);
    CHECK(nvmlInit_v2() == NVML_SUCCESS);
    CHECK(calls == 1); /* the device list is asked for once */
}

static void handles(void) {
    nvmlDevice_t d = device(1), same;
    unsigned int index = 9;
    CHECK(nvmlDeviceGetHandleByIndex_v2(2, &same) == NVML_ERROR_INVALID_ARGUMENT);
    CHECK(nvmlDeviceGetHandleByIndex_v2(0, NULL) == NVML_ERROR_INVALID_ARGUMENT);
    CHECK(nvmlDeviceGetIndex(d, &index) == NVML_SUCCESS && index == 1);
    CHECK(nvmlDeviceGetIndex((nvmlDevice_t)(uintptr_t)0x1234, &index) == NVML_ERROR_INVALID_ARGUMENT);
    CHECK(nvmlDeviceGetIndex((nvmlDevice_t)((uintptr_t)d + 16), &index) == NVML_ERROR_INVALID_ARGUMENT);
    CHECK(nvmlDeviceGetIndex(NULL, &index) == NVML_ERROR_INVALID_ARGUMENT);
    static const char *const right[] = {"00000000:1B:06.0", "0000:1b:06.0", "1b:06.0", "0:1b:6", "0000:1B:06"};
    for (size_t i = 0; i < sizeof right / sizeof *right; i++) {
        same = NULL;
        CHECK(nvmlDeviceGetHandleByPciBusId_v2(right[i], &same) == NVML_SUCCESS && same == d);
    }
    CHECK(nvmlDeviceGetHandleByPciBusId_v2("0000:77:06.0", &same) == NVML_ERROR_NOT_FOUND);
    static const char *const wrong[] = {"", "x", "1b:06", "0000:1b:06.1", "0000:1b:06:"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        CHECK(nvmlDeviceGetHandleByPciBusId_v2(wrong[i], &same) == NVML_ERROR_INVALID_ARGUMENT);
    }
    same = NULL;
    CHECK(nvmlDeviceGetHandleByUUID("GPU-01234561-89ab-cdef-0123-456789abcdef", &same) == NVML_SUCCESS && same == d);
    CHECK(nvmlDeviceGetHandleByUUID("GPU-01234562-89ab-cdef-0123-456789abcdef", &same) == NVML_ERROR_NOT_FOUND);
    CHECK(nvmlDeviceGetHandleBySerial("101", &same) == NVML_SUCCESS && same == d);
    nvmlUUID_t uuid = {.version = sizeof uuid | 1u << 24, .type = NVML_UUID_TYPE_BINARY};
    static const unsigned char bytes[16] = {1,    0x23, 0x45, 0x61, 0x89, 0xab, 0xcd, 0xef,
                                            0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef};
    memcpy(uuid.value.bytes, bytes, sizeof bytes);
    same = NULL;
    CHECK(nvmlDeviceGetHandleByUUIDV(&uuid, &same) == NVML_SUCCESS && same == d);
    uuid.version = 1;
    CHECK(nvmlDeviceGetHandleByUUIDV(&uuid, &same) == NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
}

/* The structs of the old names end sooner: nothing behind them is written. */
static void old_structs(void) {
    unsigned char *v1 = malloc(32), *v2 = malloc(36);
    CHECK(nvmlDeviceGetPciInfo(device(0), (nvmlPciInfo_t *)(void *)v1) == NVML_SUCCESS);
    CHECK(nvmlDeviceGetPciInfo_v2(device(0), (nvmlPciInfo_t *)(void *)v2) == NVML_SUCCESS);
    CHECK(strcmp((char *)v1, "0000:1A:06.0") == 0 && memcmp(v1, v2, 32) == 0);
    free(v1);
    free(v2);
}

static void versioned(void) {
    nvmlTemperature_t *t = malloc(sizeof *t), back;
    *t = (nvmlTemperature_t){.version = 0x01ffffff};
    int before = calls;
    CHECK(nvmlDeviceGetTemperatureV(device(0), t) == NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
    t->version = 1u << 24;
    CHECK(nvmlDeviceGetTemperatureV(device(0), t) == NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
    CHECK(nvmlDeviceGetTemperatureV(device(0), NULL) == NVML_ERROR_INVALID_ARGUMENT);
    CHECK(calls == before);
    t->version = sizeof *t | 1u << 24;
    back = (nvmlTemperature_t){.version = t->version, .temperature = 46};
    struct tpg_nvmlDeviceGetTemperatureV_out o = {.temperature = &back, .temperature_size = sizeof back};
    unsigned char body[64];
    size_t size = tpg_size_nvmlDeviceGetTemperatureV_out(&o);
    struct tp_cursor c = tp_cursor_make(body, size);
    tpg_put_nvmlDeviceGetTemperatureV_out(&c, &o);
    answer(0, body, size);
    CHECK(nvmlDeviceGetTemperatureV(device(0), t) == NVML_SUCCESS && t->temperature == 46);
    for (size_t cut = 0; cut < size; cut++) {
        t->temperature = 1;
        answer(0, body, cut);
        CHECK(nvmlDeviceGetTemperatureV(device(0), t) == NVML_ERROR_UNKNOWN && t->temperature == 1);
    }
    /* A worker that answers with more than was sent. */
    unsigned char large[256] = {0};
    o = (struct tpg_nvmlDeviceGetTemperatureV_out){.temperature = large, .temperature_size = 200};
    unsigned char *wide = malloc(tpg_size_nvmlDeviceGetTemperatureV_out(&o));
    c = tp_cursor_make(wide, tpg_size_nvmlDeviceGetTemperatureV_out(&o));
    tpg_put_nvmlDeviceGetTemperatureV_out(&c, &o);
    answer(0, wide, tpg_size_nvmlDeviceGetTemperatureV_out(&o));
    CHECK(nvmlDeviceGetTemperatureV(device(0), t) == NVML_SUCCESS);
    free(wide);
    free(t);
}

static void texts(void) {
    char *name = malloc(8);
    unsigned char body[64];
    struct tpg_nvmlDeviceGetName_out o = {.name = "a name longer than 8", .name_size = 21};
    size_t size = tpg_size_nvmlDeviceGetName_out(&o);
    struct tp_cursor c = tp_cursor_make(body, size);
    tpg_put_nvmlDeviceGetName_out(&c, &o);
    answer(0, body, size);
    CHECK(nvmlDeviceGetName(device(0), name, 8) == NVML_SUCCESS && strcmp(name, "a name ") == 0);
    int before = calls;
    CHECK(nvmlDeviceGetName(device(0), name, 8) == NVML_SUCCESS && calls == before); /* remembered */
    CHECK(nvmlDeviceGetName(device(1), name, 8) == NVML_SUCCESS && calls == before + 1);
    CHECK(nvmlDeviceGetName(device(0), NULL, 8) == NVML_ERROR_INVALID_ARGUMENT);
    free(name);
}

static void list_answer(int32_t status, unsigned int count, size_t elements) {
    unsigned int values[64] = {0};
    for (unsigned int i = 0; i < 64; i++) {
        values[i] = 1000 + i;
    }
    struct tpg_nvmlDeviceGetSupportedMemoryClocks_out o = {
        .status = status, .count = count, .clocksMHz = values, .clocksMHz_count = elements};
    unsigned char body[512];
    size_t size = tpg_size_nvmlDeviceGetSupportedMemoryClocks_out(&o);
    struct tp_cursor c = tp_cursor_make(body, size);
    tpg_put_nvmlDeviceGetSupportedMemoryClocks_out(&c, &o);
    answer(0, body, size);
}

static void lists(void) {
    unsigned int *clocks = malloc(4 * sizeof *clocks), count = 0;
    list_answer(NVML_ERROR_INSUFFICIENT_SIZE, 4, 0);
    CHECK(nvmlDeviceGetSupportedMemoryClocks(device(0), &count, NULL) == NVML_ERROR_INSUFFICIENT_SIZE && count == 4);
    list_answer(NVML_SUCCESS, 3, 3);
    CHECK(nvmlDeviceGetSupportedMemoryClocks(device(0), &count, clocks) == NVML_SUCCESS && count == 3 &&
          clocks[2] == 1002);
    count = 4;
    list_answer(NVML_SUCCESS, 5, 5); /* more than there is room for */
    CHECK(nvmlDeviceGetSupportedMemoryClocks(device(0), &count, clocks) == NVML_ERROR_UNKNOWN);
    count = 4;
    CHECK(nvmlDeviceGetSupportedMemoryClocks(device(0), &count, NULL) == NVML_ERROR_INVALID_ARGUMENT);
    CHECK(nvmlDeviceGetSupportedMemoryClocks(device(0), NULL, clocks) == NVML_ERROR_INVALID_ARGUMENT);
    free(clocks);
    unsigned long long *addresses = malloc(8), *times = malloc(8);
    unsigned long long both[2] = {11, 22};
    struct tpg_nvmlDeviceGetRetiredPages_v2_out o = {
        .pageCount = 1, .addresses = both, .addresses_count = 1, .timestamps = both + 1, .timestamps_count = 1};
    unsigned char body[64];
    size_t size = tpg_size_nvmlDeviceGetRetiredPages_v2_out(&o);
    struct tp_cursor c = tp_cursor_make(body, size);
    tpg_put_nvmlDeviceGetRetiredPages_v2_out(&c, &o);
    answer(0, body, size);
    count = 1;
    CHECK(nvmlDeviceGetRetiredPages_v2(device(0), (nvmlPageRetirementCause_t)0, &count, addresses, times) ==
          NVML_SUCCESS);
    CHECK(count == 1 && *addresses == 11 && *times == 22);
    CHECK(nvmlDeviceGetRetiredPages_v2(device(0), (nvmlPageRetirementCause_t)0, &count, addresses, NULL) ==
          NVML_ERROR_INVALID_ARGUMENT);
    free(addresses);
    free(times);
    nvmlFieldValue_t *values = calloc(2, sizeof *values);
    answer(0, body, 8);
    CHECK(nvmlDeviceGetFieldValues(device(0), 2, values) == NVML_ERROR_UNKNOWN);
    CHECK(nvmlDeviceGetFieldValues(device(0), -1, values) == NVML_ERROR_INVALID_ARGUMENT);
    CHECK(nvmlDeviceGetFieldValues(device(0), 0x7fffffff, values) == NVML_ERROR_INVALID_ARGUMENT);
    free(values);
}

static void processes(void) {
    unsigned int count = 0;
    unsigned char body[64];
    const unsigned int pids[2] = {7, 9};
    const uint64_t used[2] = {123, 456};
    struct tpg_nvml_processes_out o = {.pids = pids, .pids_count = 2, .used = used, .used_count = 2};
    struct tp_cursor c = tp_cursor_make(body, tpg_size_nvml_processes_out(&o));
    tpg_put_nvml_processes_out(&c, &o);
    answer(0, body, tpg_size_nvml_processes_out(&o));
    nvmlProcessInfo_t *infos = malloc(2 * sizeof *infos);
    nvmlProcessInfo_v1_t *old = malloc(2 * sizeof *old);
    CHECK(nvmlDeviceGetComputeRunningProcesses_v3(device(0), &count, NULL) == NVML_ERROR_INSUFFICIENT_SIZE &&
          count == 2);
    CHECK(nvmlDeviceGetComputeRunningProcesses_v3(device(0), &count, NULL) == NVML_ERROR_INVALID_ARGUMENT);
    CHECK(nvmlDeviceGetComputeRunningProcesses_v3(device(0), &count, infos) == NVML_SUCCESS && count == 2);
    CHECK(infos[0].pid == 7 && infos[0].usedGpuMemory == 123 && infos[1].pid == 9 && infos[1].usedGpuMemory == 456);
    count = 1;
    CHECK(nvmlDeviceGetComputeRunningProcesses_v3(device(0), &count, infos + 1) == NVML_ERROR_INSUFFICIENT_SIZE &&
          count == 2 && infos[1].pid == 9);
    CHECK(nvmlDeviceGetComputeRunningProcesses(device(0), &count, old) == NVML_SUCCESS && old[1].usedGpuMemory == 456);
    CHECK(nvmlDeviceGetGraphicsRunningProcesses_v3(device(0), &count, infos) == NVML_SUCCESS && count == 0);
    nvmlProcessDetail_v1_t detail[2];
    nvmlProcessDetailList_t details = {
        .version = sizeof details | 1u << 24, .numProcArrayEntries = 2, .procArray = detail};
    CHECK(nvmlDeviceGetRunningProcessDetailList(device(0), &details) == NVML_SUCCESS && detail[1].usedGpuMemory == 456);
    o.used_count = 1; /* a worker that says of one of them nothing */
    c = tp_cursor_make(body, tpg_size_nvml_processes_out(&o));
    tpg_put_nvml_processes_out(&c, &o);
    answer(0, body, tpg_size_nvml_processes_out(&o));
    CHECK(nvmlDeviceGetComputeRunningProcesses_v3(device(0), &count, infos) == NVML_ERROR_UNKNOWN);
    struct tpg_nvml_utilization_out u = {.status = NVML_ERROR_INSUFFICIENT_SIZE, .count = 3};
    c = tp_cursor_make(body, tpg_size_nvml_utilization_out(&u));
    tpg_put_nvml_utilization_out(&c, &u);
    answer(0, body, tpg_size_nvml_utilization_out(&u));
    nvmlProcessesUtilizationInfo_t utilization = {.version = sizeof utilization | 1u << 24};
    CHECK(nvmlDeviceGetProcessesUtilizationInfo(device(0), &utilization) == NVML_ERROR_INSUFFICIENT_SIZE &&
          utilization.processSamplesCount == 3);
    utilization.version = 0;
    CHECK(nvmlDeviceGetProcessesUtilizationInfo(device(0), &utilization) == NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
    CHECK(nvmlDeviceGetProcessesUtilizationInfo(device(0), NULL) == NVML_ERROR_INVALID_ARGUMENT);
    free(infos);
    free(old);
    char name[1024]; /* the path of this program, wherever it was built */
    CHECK(nvmlSystemGetProcessName((unsigned int)getpid(), name, sizeof name) == NVML_SUCCESS && strstr(name, "nvml"));
    CHECK(nvmlSystemGetProcessName(0x7fffffff, name, sizeof name) == NVML_ERROR_NOT_FOUND);
    CHECK(nvmlSystemGetProcessName((unsigned int)getpid(), name, 1) == NVML_SUCCESS && name[0] == 0);
}

static void answer_event(const struct tpg_nvmlEventSetWait_v2_out *o) {
    free(answer_body);
    answer_size = tpg_size_nvmlEventSetWait_v2_out(o);
    answer_body = malloc(answer_size);
    struct tp_cursor c = tp_cursor_make(answer_body, answer_size);
    tpg_put_nvmlEventSetWait_v2_out(&c, o);
}

static void events(void) {
    nvmlEventSet_t a, b;
    nvmlEventData_t data;
    answer_result = 0;
    CHECK(nvmlEventSetCreate(NULL) == NVML_ERROR_INVALID_ARGUMENT);
    CHECK(nvmlEventSetCreate(&a) == NVML_SUCCESS && nvmlEventSetCreate(&b) == NVML_SUCCESS && a != b);
    CHECK(nvmlDeviceRegisterEvents(device(0), 1, NULL) == NVML_ERROR_INVALID_ARGUMENT);
    CHECK(nvmlDeviceRegisterEvents(NULL, 1, a) == NVML_ERROR_INVALID_ARGUMENT);
    answer_result = NVML_ERROR_TIMEOUT;
    uint64_t begin = tp_now_ns();
    CHECK(nvmlEventSetWait_v2(a, &data, 30) == NVML_ERROR_TIMEOUT && tp_now_ns() - begin >= 30000000);
    CHECK(nvmlEventSetWait_v2(a, NULL, 0) == NVML_ERROR_INVALID_ARGUMENT);
    answer_result = 0;
    answer_event(&(struct tpg_nvmlEventSetWait_v2_out){
        .data = {.device = device(1), .eventType = 8, .eventData = 31, .gpuInstanceId = 5, .computeInstanceId = 6}});
    CHECK(nvmlEventSetWait_v2(a, &data, 0) == NVML_SUCCESS && data.device == device(1) && data.eventType == 8 &&
          data.eventData == 31 && data.gpuInstanceId == 5 && data.computeInstanceId == 6);
    /* Of the first version's struct, which ends before the instances, no byte more is written. */
    memset(&data, 0xee, sizeof data);
    CHECK(nvmlEventSetWait(a, &data, 0) == NVML_SUCCESS && data.eventData == 31 && data.gpuInstanceId == 0xeeeeeeee);
    answer_size--;
    CHECK(nvmlEventSetWait_v2(a, &data, 0) == NVML_ERROR_UNKNOWN);
    CHECK(nvmlEventSetFree(a) == NVML_SUCCESS && nvmlEventSetFree(a) == NVML_ERROR_INVALID_ARGUMENT);
    nvmlEventSet_t again;
    CHECK(nvmlEventSetCreate(&again) == NVML_SUCCESS && again != a);
    CHECK(nvmlEventSetWait_v2(a, &data, 0) == NVML_ERROR_INVALID_ARGUMENT);
    CHECK(nvmlEventSetFree(again) == NVML_SUCCESS && nvmlEventSetFree(b) == NVML_SUCCESS);
    CHECK(nvmlEventSetFree(NULL) == NVML_ERROR_INVALID_ARGUMENT);
    nvmlEventSet_t many[TP_NVML_PLACES];
    for (size_t i = 0; i < TP_NVML_PLACES; i++) {
        CHECK(nvmlEventSetCreate(&many[i]) == NVML_SUCCESS);
    }
    CHECK(nvmlEventSetCreate(&a) == NVML_ERROR_INSUFFICIENT_RESOURCES);
    for (size_t i = 0; i < TP_NVML_PLACES; i++) {
        CHECK(nvmlEventSetFree(many[i]) == NVML_SUCCESS);
    }
}

static void answer_metrics(const struct tpg_nvml_gpm_metrics_out *o) {
    free(answer_body);
    answer_size = tpg_size_nvml_gpm_metrics_out(o);
    answer_body = malloc(answer_size);
    struct tp_cursor c = tp_cursor_make(answer_body, answer_size);
    tpg_put_nvml_gpm_metrics_out(&c, o);
}

static void metrics(void) {
    static nvmlGpmMetricsGet_t get;
    nvmlGpmSample_t a, b;
    answer_result = 0;
    CHECK(nvmlGpmSampleAlloc(&a) == NVML_SUCCESS && nvmlGpmSampleAlloc(&b) == NVML_SUCCESS && a != b);
    CHECK(nvmlGpmSampleGet(device(0), NULL) == NVML_ERROR_INVALID_ARGUMENT);
    CHECK(nvmlGpmSampleGet(device(0), (nvmlGpmSample_t)(void *)device(0)) == NVML_ERROR_INVALID_ARGUMENT);
    CHECK(nvmlGpmMetricsGet(NULL) == NVML_ERROR_INVALID_ARGUMENT);
    CHECK(nvmlGpmMetricsGet(&get) == NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
    get = (nvmlGpmMetricsGet_t){.version = 1, .numMetrics = 2, .sample1 = a, .sample2 = b};
    get.metrics[0].metricId = 1;
    get.metrics[1].metricId = 999999;
    get.metrics[1].metricInfo.unit = (char *)&get;
    int results[] = {0, 2};
    double values[] = {8.5, 0};
    struct tpg_nvml_gpm_metrics_out o = {.results = results,
                                         .results_count = 2,
                                         .values = values,
                                         .values_count = 2,
                                         .texts = "one\0LONG\0%\0\0\0",
                                         .texts_size = 14};
    answer_metrics(&o);
    CHECK(nvmlGpmMetricsGet(&get) == NVML_SUCCESS && get.metrics[0].nvmlReturn == 0 && get.metrics[0].value == 8.5 &&
          get.metrics[1].nvmlReturn == 2);
    const char *name = get.metrics[0].metricInfo.shortName;
    CHECK(!strcmp(name, "one") && !strcmp(get.metrics[0].metricInfo.longName, "LONG"));
    CHECK(!strcmp(get.metrics[0].metricInfo.unit, "%") && get.metrics[1].metricInfo.unit == (char *)&get);
    CHECK(nvmlGpmMetricsGet(&get) == NVML_SUCCESS && get.metrics[0].metricInfo.shortName == name);
    for (size_t size = 0; size < 14; size++) { /* a text that does not end, or is not there */
        o.texts_size = size;
        answer_metrics(&o);
        CHECK(nvmlGpmMetricsGet(&get) == NVML_ERROR_UNKNOWN);
    }
    o.texts_size = 14;
    o.results_count = 1;
    answer_metrics(&o);
    CHECK(nvmlGpmMetricsGet(&get) == NVML_ERROR_UNKNOWN);
    get.numMetrics = sizeof get.metrics / sizeof *get.metrics + 1;
    CHECK(nvmlGpmMetricsGet(&get) == NVML_ERROR_INVALID_ARGUMENT);
    CHECK(nvmlGpmSampleFree(a) == NVML_SUCCESS && nvmlGpmSampleFree(a) == NVML_ERROR_INVALID_ARGUMENT);
    CHECK(nvmlGpmSampleFree(b) == NVML_SUCCESS && nvmlGpmSampleFree(NULL) == NVML_SUCCESS);
}

nvmlReturn_t nvmlInternalGetExportTable(const void **table, const void *id);
static void tables(void) {
    static const unsigned char known[16] = {0xc4, 0xfe, 0x3e, 0x6c, 0xc9, 0x8f, 0x6c, 0x4e,
                                            0xa3, 0x27, 0xee, 0x69, 0x6e, 0x12, 0xf7, 0xc4};
    const void *table = NULL;
    CHECK(nvmlInternalGetExportTable(&table, known) == NVML_SUCCESS && table &&
          ((const void *const *)table)[250] == NULL);
    CHECK(nvmlInternalGetExportTable(&table, "0123456789abcde") == NVML_ERROR_INVALID_ARGUMENT);
    CHECK(nvmlInternalGetExportTable(NULL, known) == NVML_ERROR_INVALID_ARGUMENT);
}

static void fork_and_loss(void) {
    unsigned int count = 0;
    pid_t child = fork();
    if (child == 0) {
        failures = 0;
        CHECK(nvmlDeviceGetCount_v2(&count) == NVML_ERROR_UNINITIALIZED);
        CHECK(nvmlInit_v2() == NVML_SUCCESS && nvmlDeviceGetCount_v2(&count) == NVML_SUCCESS && count == 2);
        _exit(failures != 0);
    }
    int status = -1;
    waitpid(child, &status, 0);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    alive = false;
    char name[96];
    CHECK(nvmlDeviceGetCount_v2(&count) == NVML_ERROR_GPU_IS_LOST);
    CHECK(nvmlDeviceGetName(NULL, name, sizeof name) == NVML_ERROR_GPU_IS_LOST);
    CHECK(nvmlInit_v2() == NVML_ERROR_GPU_IS_LOST);
    CHECK(nvmlShutdown() == NVML_SUCCESS); /* leaving works without a worker */
}

int main(void) {
    before_init();
    references();
    handles();
    old_structs();
    versioned();
    texts();
    lists();
    processes();
    events();
    metrics();
    tables();
    fork_and_loss();
    free(answer_body);
    printf("%d failures\n", failures);
    return failures != 0;
}
