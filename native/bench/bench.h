/*
 * tensor-fusion-bench: what a CUDA driver costs the program that calls it, on whichever libcuda.so.1 it is told to load.
 *
 * The same executable runs on NVIDIA's driver, on the simulated one and on our client libraries, so native and remote differ in
 * nothing but the library. One thread measures; the relay (relay.c) is a program of its own behind the first argument. Whatever a
 * driver returns is checked: a call that fails or a byte that is wrong ends the process with a sentence, because a figure of work
 * that was not done is worth less than none. Nobody else writes the memory read here.
 */
#ifndef TENSOR_FUSION_BENCH_H
#define TENSOR_FUSION_BENCH_H

#include <tpg_cuda.h>
#include <tp_conn.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#define KIB ((size_t)1 << 10)
#define MIB ((size_t)1 << 20)

/* ---- the driver (driver.c) ---- */

#define BENCH_REQUIRED(F)                                                                                              \
    F(cuInit)                                                                                                          \
    F(cuDriverGetVersion)                                                                                              \
    F(cuGetErrorName)                                                                                                  \
    F(cuDeviceGet)                                                                                                     \
    F(cuDeviceGetCount)                                                                                                \
    F(cuDeviceGetName)                                                                                                 \
    F(cuDeviceGetUuid_v2)                                                                                              \
    F(cuDevicePrimaryCtxRetain)                                                                                        \
    F(cuCtxSetCurrent)                                                                                                 \
    F(cuCtxSynchronize)                                                                                                \
    F(cuCtxGetCacheConfig)                                                                                             \
    F(cuModuleLoadData)                                                                                                \
    F(cuModuleGetFunction)                                                                                             \
    F(cuLaunchKernel)                                                                                                  \
    F(cuStreamCreate)                                                                                                  \
    F(cuStreamSynchronize)                                                                                             \
    F(cuStreamQuery)                                                                                                   \
    F(cuEventCreate)                                                                                                   \
    F(cuEventRecord)                                                                                                   \
    F(cuEventQuery)                                                                                                    \
    F(cuEventSynchronize)                                                                                              \
    F(cuMemGetInfo_v2)                                                                                                 \
    F(cuMemAlloc_v2)                                                                                                   \
    F(cuMemFree_v2)                                                                                                    \
    F(cuMemAllocHost_v2)                                                                                               \
    F(cuMemFreeHost)                                                                                                   \
    F(cuMemAllocAsync)                                                                                                 \
    F(cuMemFreeAsync)                                                                                                  \
    F(cuMemcpyHtoD_v2)                                                                                                 \
    F(cuMemcpyDtoH_v2)                                                                                                 \
    F(cuMemcpyHtoDAsync_v2)                                                                                            \
    F(cuMemcpyDtoHAsync_v2)                                                                                            \
    F(cuMemsetD8Async)                                                                                                 \
    F(cuMemsetD32_v2)

/* A driver without these is measured without the group that needs them. */
#define BENCH_OPTIONAL(F)                                                                                              \
    F(cuStreamBeginCapture_v2)                                                                                         \
    F(cuStreamEndCapture)                                                                                              \
    F(cuGraphInstantiateWithFlags)                                                                                     \
    F(cuGraphLaunch)                                                                                                   \
    F(cuGraphExecDestroy)                                                                                              \
    F(cuGraphDestroy)

struct driver {
#define BENCH_MEMBER(name) __typeof__(&name) name;
    BENCH_REQUIRED(BENCH_MEMBER)
    BENCH_OPTIONAL(BENCH_MEMBER)
#undef BENCH_MEMBER
};

extern struct driver driver;
extern CUstream stream;       /* a stream of its own, not the legacy one */
extern CUfunction fill_u32;   /* (address, value, n): words [0, n) = value; with n = 0 a kernel that does nothing */
extern CUfunction accumulate; /* (n, a, x, y): y += a * x, single precision; counts launches exactly up to 2^24 */
extern const char *libcuda;   /* as told: a path, or a name for the loader's search */

/* `call` names a driver function and its arguments; anything but success is the end. */
#define MUST(name, ...) must(driver.name(__VA_ARGS__), #name)
void must(CUresult result, const char *what);

void driver_load(void);
/* cuInit, the primary context of device 0, the kernels, the stream. The times at which each of the four was done, if asked. */
void driver_start(uint64_t done_ns[4]);
/* Path of the file that cuInit came from. */
const char *driver_path(void);
/* The counters of our client library, NULL when the driver is another. */
const struct tp_counters *driver_counters(void);

void launch_fill(CUdeviceptr to, uint32_t value, uint64_t n);
void launch_accumulate(CUdeviceptr x, CUdeviceptr y, int n);

/* ---- measuring (measure.c) ---- */

static inline uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

struct options {
    double budget_s;   /* time for one series, verification included */
    size_t most_bytes; /* of a copy or memset */
    unsigned startups; /* fresh processes */
    bool quick;
};
extern struct options options;

/* Durations of one operation, each call timed by itself. */
struct series {
    const char *name;
    uint64_t bytes;      /* that one operation moves; 0: none */
    uint64_t operations; /* in one sample; above 1 the figure is a rate */
    size_t most, count;
    uint64_t *ns;
    uint64_t deadline;
    uint64_t begun, trips; /* of the sample being taken; round trips of all samples */
};

/* Opens a series of at most `most` samples. It ends sooner when its time is up, but not before three samples. */
void series_open(struct series *s, const char *name, uint64_t bytes, size_t most);
bool series_wants(const struct series *s);
void series_close(struct series *s); /* writes the figures into the group's object */

static inline void sample_begin(struct series *s) {
    const struct tp_counters *counters = driver_counters();
    if (counters)
        s->trips -= atomic_load_explicit(&counters->round_trips, memory_order_relaxed);
    s->begun = now_ns();
}
void sample_end_at(struct series *s, uint64_t now);
static inline void sample_end(struct series *s) { sample_end_at(s, now_ns()); }

/* One JSON object on standard output for each group. Not `counted`: processes with counters of their own do its work. */
void group_open(const char *name, bool counted);
void group_skip(const char *why, const char *function); /* instead of figures */
void group_digest(const void *data, size_t size);       /* results that native and remote must share bit for bit */
void group_close(void);
void json_string(const char *text);
uint64_t timer_overhead_ns(void);

/* Ends the process with exit code 1 and a sentence on standard error. */
void fail(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
void expect_same(const void *got, const void *wanted, size_t size, const char *what);

/* ---- groups ---- */

struct group {
    const char *name, *text;
    void (*run)(void);
    bool needs_driver; /* false: it runs before the driver is initialised in this process */
};
extern const struct group groups[];
extern const size_t groups_count;

void group_startup(void);
void group_launch(void);
void group_null(void);
void group_sync(void);
void group_event(void);
void group_copy(void);
void group_memset(void);
void group_memory(void);
void group_graph(void);

/* The process that group_startup starts: its first kernel, then the times on standard output. */
int first_kernel(void);
int relay_main(int argc, char **argv);

#endif
