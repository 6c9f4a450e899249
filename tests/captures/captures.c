/*
 * What captures forbid: makes each call of questions.h, and prints what it gave and what became of the capture.
 *
 * Usage: captures LIBCUDA few|all [NAMES [SECONDS]]; NAMES is a file with the names of questions, else all are asked. After
 * SECONDS it stops, and says on stderr with which name to go on.
 *
 * A question is asked without a capture, and while a stream of the main thread captures: in each mode, by the thread that
 * captures and by another one, each of which has exchanged its mode for each of the three. The stream that captures is
 * non-blocking (`n`), or blocking (`b`, which the legacy stream would wait for). `few` leaves out ways that tell the same of
 * nearly every call. A line is
 *
 *     NAME stream n capture global own thread relaxed = CODE STATUS END
 *
 * with the code of the call, the status that cuStreamIsCapturing gives then (1: active, 2: invalidated; a code behind a `!` if
 * it fails), and the code of cuStreamEndCapture. `then N`: the next synchronisation said so. A child process asks; one that
 * crashes, or stands for 5 seconds, is told and replaced.
 */
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

typedef uint64_t u64;
typedef int any(u64, u64, u64, u64, u64, u64, u64, u64, u64, u64, u64, u64);

enum { MISSING = -1, MIB2 = 2 << 20 };
static void *library;

/* All parameters are whole numbers or pointers, which this machine passes alike. */
#define C(name, ...)                                                                                                   \
    __extension__({                                                                                                    \
        static any *f_;                                                                                                \
        u64 v_[13] = {0, ##__VA_ARGS__};                                                                               \
        f_ = f_ ? f_ : (any *)dlsym(library, #name);                                                                   \
        f_ ? f_(v_[1], v_[2], v_[3], v_[4], v_[5], v_[6], v_[7], v_[8], v_[9], v_[10], v_[11], v_[12]) : MISSING;      \
    })
#define P(p) ((u64)(uintptr_t)(p))
#define MUST(...)                                                                                                      \
    do {                                                                                                               \
        int must_ = (__VA_ARGS__);                                                                                     \
        if (must_)                                                                                                     \
            sorry("%s = %d", #__VA_ARGS__, must_);                                                                     \
    } while (0)

static struct {
    int at;      /* the question of the next process */
    int variant; /* and where in it */
    bool asking; /* the call is being made */
    char why[256];
} *shared;

static void sorry(const char *format, ...) {
    va_list list;
    va_start(list, format);
    vsnprintf(shared->why, sizeof shared->why, format, list);
    va_end(list);
    _exit(3);
}

static const char ptx[] = ".version 7.0\n.target sm_75\n.address_size 64\n"
                          ".visible .entry fill_u32(.param .u64 a, .param .u32 b, .param .u64 c)\n{\n"
                          ".reg .pred %p<2>;\n.reg .b32 %r<6>;\n.reg .b64 %rd<8>;\n"
                          "ld.param.u64 %rd1, [a];\nld.param.u32 %r1, [b];\nld.param.u64 %rd2, [c];\n"
                          "mov.u32 %r2, %ctaid.x;\nmov.u32 %r3, %ntid.x;\nmov.u32 %r4, %tid.x;\n"
                          "mad.lo.s32 %r5, %r2, %r3, %r4;\ncvt.u64.u32 %rd3, %r5;\n"
                          "setp.ge.u64 %p1, %rd3, %rd2;\n@%p1 bra DONE;\n"
                          "cvta.to.global.u64 %rd4, %rd1;\nmul.lo.u64 %rd5, %rd3, 4;\nadd.s64 %rd6, %rd4, %rd5;\n"
                          "st.global.u32 [%rd6], %r1;\nDONE:\nret;\n}\n";

/* ---- objects that last ---- */

struct variant {
    bool captures, blocking, stranger;
    int mode, thread_mode;
};

static struct {
    int at;
    const struct variant *v;
} asked;

static u64 ctx, module, function, lib, kernel, dev, host_pinned, dev_pool; /* dev_pool: the device's default pool */
static u64 streams[2];                                                     /* that capture: non-blocking, blocking */
static u64 second, second_stream;
static u64 cs, other, other_event, pair_event, timed[2], graph, exec, kernel_node, pool, array;
static void *pageable, *page;
static u64 fill_count = 16;
static uint32_t fill_value = 5;
static void *fill_params[3];

/* ---- what a question uses ---- */

static u64 a, b, c, x; /* handles and addresses, 0 before each */
static int r;          /* the result of the call */
static u64 block[64];  /* a struct */
static char out[4096];
static u64 captured_event;

static void host_function(void *user) { (void)user; }
static void stream_callback(u64 stream, int result, void *user) { (void)stream, (void)result, (void)user; }

static u64 *words(int count, const u64 *from) {
    memset(block, 0, sizeof block);
    memcpy(block, from, (size_t)count * 8);
    return block;
}
#define B(...) P(words(sizeof((u64[]){__VA_ARGS__}) / 8, (u64[]){__VA_ARGS__}))
#define LH(low, high) ((u64)(uint32_t)(low) | (u64)(uint32_t)(high) << 32)

#define ARRAY_2D B(16, 16, LH(0x20, 1))
#define ARRAY_3D B(16, 16, 0, LH(0x20, 1), 0)
#define PINNED_PROP B(LH(1, 0), LH(1, 0)) /* of memory, and of pools: type pinned, on device 0 */
#define ACCESS B(LH(1, 0), 3)
#define COPY_2D(from, to) B(0, 0, 2, 0, from, 0, 64, 0, 0, 2, 0, to, 0, 64, 64, 4)
#define COPY_3D(from, to) B(0, 0, 0, 0, 2, 0, from, 0, 0, 64, 4, 0, 0, 0, 0, 2, 0, to, 0, 0, 64, 4, 64, 4, 1)
#define COPY_PEER(from, to) B(0, 0, 0, 0, 2, 0, from, 0, ctx, 64, 4, 0, 0, 0, 0, 2, 0, to, 0, ctx, 64, 4, 64, 4, 1)
#define LAUNCH(name, stream) C(name, function, 1, 1, 1, 32, 1, 1, 0, stream, P(fill_params), 0)
#define LEGACY 1
#define PER_THREAD 2
#define N(name, stream) name " " #stream
#define KERNEL_NODE P((&(struct kernel_params){function, {1, 1, 1}, {32, 1, 1}, 0, fill_params, NULL}))
struct kernel_params {
    u64 function;
    unsigned grid[3], blocks[3], shared;
    void **params, **extra;
};

static void map_memory(void) {
    MUST(C(cuMemAddressReserve, P(&a), MIB2, 0, 0, 0));
    MUST(C(cuMemCreate, P(&b), MIB2, PINNED_PROP, 0));
    MUST(C(cuMemMap, a, MIB2, 0, b, 0));
}

static void unmap_memory(void) {
    C(cuMemUnmap, a, MIB2);
    C(cuMemRelease, b);
    C(cuMemAddressFree, a, MIB2);
}

static u64 fresh_graph(void) {
    u64 g = 0;
    MUST(C(cuGraphCreate, P(&g), 0));
    return g;
}

static const char zeros[512];

static void by_parts(void) {
    MUST(C(cuFuncSetBlockShape, function, 32, 1, 1));
    MUST(C(cuParamSetv, function, 0, P(&dev), 8));
    MUST(C(cuParamSeti, function, 8, 5));
    MUST(C(cuParamSetv, function, 16, P(&fill_count), 8));
    MUST(C(cuParamSetSize, function, 24));
}

#define SECOND(...) in_second(C(cuCtxPushCurrent_v2, second) ? MISSING : (__VA_ARGS__))

static int in_second(int result) {
    MUST(C(cuCtxPopCurrent_v2, P(&x)));
    return result;
}

/* A stream that is gone is not asked: a driver would follow it. */
static int destroy_capturing(void) {
    int result = C(cuStreamDestroy_v2, cs);
    cs = result ? cs : 0;
    return result;
}

static void renew(void) {
    bool blocking = asked.v->blocking;
    MUST(C(cuStreamCreate, P(&streams[blocking]), !blocking));
}

static int push_and_pop(void) {
    int result = C(cuCtxPushCurrent_v2, ctx);
    return result ? result : C(cuCtxPopCurrent_v2, P(&a));
}

/* An event that was never recorded. */
static void again(u64 *event) {
    C(cuEventDestroy_v2, *event);
    MUST(C(cuEventCreate, P(event), 0));
}

static void end_other(void) {
    u64 g = 0;
    if (C(cuStreamEndCapture, other, P(&g)) == 908) { /* begun by the other thread: it is over all the same */
        return;
    }
    if (g)
        C(cuGraphDestroy, g);
}

#define RECORDED MUST(C(cuEventRecord, captured_event, cs))
enum part { PREPARE, DURING, CALL, CLEAN };
static bool question(int at, int part, const char **name) {
    int i = 0;
#define Q(name_, prepare_, during_, call_, clean_)                                                                     \
    if (i++ == at) {                                                                                                   \
        *name = name_;                                                                                                 \
        if (part == PREPARE) {                                                                                         \
            prepare_;                                                                                                  \
        } else if (part == DURING) {                                                                                   \
            during_;                                                                                                   \
        } else if (part == CALL) {                                                                                     \
            r = call_;                                                                                                 \
        } else if (part == CLEAN) {                                                                                    \
            clean_;                                                                                                    \
        }                                                                                                              \
        return true;                                                                                                   \
    }
#include "questions.h"
    return false;
}

/* ---- how it is asked ---- */

static const char *const modes[] = {"global", "thread-local", "relaxed"};
enum { WAYS = 1 + 18 + 8 };

/* Without a capture; every way beside a non-blocking stream; the ways that differ for the legacy stream beside a blocking one. */
static struct variant variant_of(int at) {
    if (at == 0)
        return (struct variant){0};
    if (--at < 18)
        return (struct variant){true, false, at / 9, at / 3 % 3, at % 3};
    at -= 18;
    if (at < 6)
        return (struct variant){true, true, at / 3, at % 3, 0};
    return (struct variant){true, true, at - 6, 0, 2};
}

static bool few;

/* Two modes that are not global, and a thread beside a stream of another kind, say what one of them does. */
static bool left_out(const struct variant *v) {
    bool changed = v->thread_mode != 0;
    if (v->blocking)
        return v->stranger != changed || v->mode == 1;
    return changed && (v->mode || v->thread_mode != (v->stranger ? 1 : 2));
}

static void tell(int at, const struct variant *v, const char *format, ...) {
    char line[512];
    const char *name = "";
    va_list list;
    question(at, -1, &name);
    int used = snprintf(line, sizeof line, "%s", name);
    if (v->captures)
        used += snprintf(line + used, sizeof line - used, " stream %s capture %s %s thread %s", v->blocking ? "b" : "n",
                         modes[v->mode], v->stranger ? "other" : "own", modes[v->thread_mode]);
    else
        used += snprintf(line + used, sizeof line - used, " no capture");
    used += snprintf(line + used, sizeof line - used, " = ");
    va_start(list, format);
    used += vsnprintf(line + used, sizeof line - used - 2, format, list);
    va_end(list);
    line[used++] = '\n';
    if (write(1, line, used) != used)
        _exit(4);
}

static void ask_now(void) {
    const char *name;
    int mode = asked.v->thread_mode;
    MUST(C(cuThreadExchangeStreamCaptureMode, P(&mode)));
    shared->asking = true;
    question(asked.at, CALL, &name);
    shared->asking = false;
    mode = 0;
    MUST(C(cuThreadExchangeStreamCaptureMode, P(&mode)));
}

static void *stranger(void *unused) {
    (void)unused;
    MUST(C(cuCtxSetCurrent, ctx));
    ask_now();
    return NULL;
}

static void ask(int at, const struct variant *v) {
    const char *name;
    char later[32] = "";
    int status = -1, result = 0, ended = 0;
    u64 made_graph = 0;
    pthread_t thread;
    a = b = c = x = 0;
    r = MISSING;
    cs = streams[v->blocking];
    asked.at = at;
    asked.v = v;
    MUST(C(cuEventCreate, P(&captured_event), 0));
    question(at, PREPARE, &name);
    if (v->captures)
        MUST(C(cuStreamBeginCapture_v2, cs, v->mode));
    if (v->captures)
        question(at, DURING, &name);
    if (!v->stranger)
        ask_now();
    else if (pthread_create(&thread, NULL, stranger, NULL) || pthread_join(thread, NULL))
        sorry("no thread");
    if (v->captures && cs) {
        result = C(cuStreamIsCapturing, cs, P(&status));
        ended = C(cuStreamEndCapture, cs, P(&made_graph));
        if (!ended && made_graph)
            MUST(C(cuGraphDestroy, made_graph));
    }
    question(at, CLEAN, &name);
    if (captured_event)
        C(cuEventDestroy_v2, captured_event);
    int then = C(cuCtxSynchronize);
    if (then)
        snprintf(later, sizeof later, " then %d", then);
    if (r == MISSING)
        tell(at, v, "missing");
    else if (!v->captures || !cs)
        tell(at, v, "%d%s", r, later);
    else if (result)
        tell(at, v, "%d !%d %d%s", r, result, ended, later);
    else
        tell(at, v, "%d %d %d%s", r, status, ended, later);
    if (then) {
        usleep(20000);
        if (C(cuCtxSynchronize))
            _exit(5); /* the next one needs a new process */
    }
}

static void make_objects(void) {
    MUST(C(cuInit, 0));
    MUST(C(cuDevicePrimaryCtxRetain, P(&ctx), 0));
    MUST(C(cuCtxSetCurrent, ctx));
    MUST(C(cuStreamCreate, P(&streams[0]), 1));
    MUST(C(cuStreamCreate, P(&streams[1]), 0));
    MUST(C(cuStreamCreate, P(&other), 1));
    MUST(C(cuModuleLoadData, P(&module), P(ptx)));
    MUST(C(cuModuleGetFunction, P(&function), module, P("fill_u32")));
    MUST(C(cuLibraryLoadData, P(&lib), P(ptx), 0, 0, 0, 0, 0, 0));
    MUST(C(cuLibraryGetKernel, P(&kernel), lib, P("fill_u32")));
    MUST(C(cuMemAlloc_v2, P(&dev), 65536));
    MUST(C(cuMemHostAlloc, P(&host_pinned), 65536, 0));
    MUST(C(cuMemPoolCreate, P(&pool), PINNED_PROP));
    MUST(C(cuDeviceGetDefaultMemPool, P(&dev_pool), 0));
    MUST(C(cuArrayCreate_v2, P(&array), ARRAY_2D));
    if (posix_memalign(&pageable, 4096, 65536) || posix_memalign(&page, 4096, 4096))
        sorry("no memory");
    memset(pageable, 0, 65536);
    memset(page, 0, 4096);
    fill_params[0] = &dev, fill_params[1] = &fill_value, fill_params[2] = &fill_count;
    MUST(C(cuGraphCreate, P(&graph), 0));
    MUST(C(cuGraphAddKernelNode, P(&kernel_node), graph, 0, 0, KERNEL_NODE));
    MUST(C(cuGraphInstantiateWithFlags, P(&exec), graph, 0));
    MUST(C(cuGraphLaunch, exec, other));
    MUST(LAUNCH(cuLaunchKernel, other));
    MUST(C(cuEventCreate, P(&other_event), 0));
    MUST(C(cuEventRecord, other_event, other));
    MUST(C(cuEventCreate, P(&pair_event), 0));
    for (int i = 0; i < 2; i++) {
        MUST(C(cuEventCreate, P(&timed[i]), 0));
        MUST(C(cuEventRecord, timed[i], other));
    }
    MUST(C(cuCtxCreate_v2, P(&second), 0, 0));
    MUST(C(cuStreamCreate, P(&second_stream), 1));
    MUST(C(cuCtxPopCurrent_v2, P(&x)));
    MUST(C(cuCtxSynchronize));
}

/* Making a context takes long: without modes of the threads. */
static bool dear(const char *name, const struct variant *v) {
    bool context = !strncmp(name, "cuCtxCreate", 11) || !strncmp(name, "cuCtxDestroy", 12);
    return context && (v->blocking || v->thread_mode);
}

static char names[1 << 16]; /* those that are asked, each between ends of lines; none: all */
static time_t end;          /* 0: none */

static bool wanted(const char *name) {
    char line[256];
    snprintf(line, sizeof line, "\n%s\n", name);
    return !names[0] || strstr(names, line);
}

static void run(const char *path) {
    const char *name;
    library = dlopen(path, RTLD_NOW);
    if (!library)
        sorry("%s", dlerror());
    make_objects();
    for (; question(shared->at, -1, &name); shared->at++, shared->variant = 0) {
        if (!wanted(name))
            continue;
        if (end && time(NULL) >= end) {
            fprintf(stderr, "go on with: %s\n", name);
            break;
        }
        while (shared->variant < WAYS) {
            struct variant v = variant_of(shared->variant++);
            if (!dear(name, &v) && !(few && left_out(&v)))
                ask(shared->at, &v);
        }
    }
    _exit(0);
}

static bool read_names(const char *path) {
    FILE *file = fopen(path, "rb");
    names[0] = '\n';
    bool whole = file && fread(names + 1, 1, sizeof names - 2, file) && feof(file);
    if (file)
        fclose(file);
    return whole;
}

int main(int argc, char **argv) {
    enum { STANDS = 5, MOST_DEATHS = 15 };
    few = argc > 2 && !strcmp(argv[2], "few");
    if (argc < 3 || argc > 5 || (!few && strcmp(argv[2], "all") != 0) || (argc > 3 && !read_names(argv[3]))) {
        fprintf(stderr, "usage: captures LIBCUDA few|all [NAMES [SECONDS]]\n");
        return 2;
    }
    end = argc > 4 ? time(NULL) + atoi(argv[4]) : 0;
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED)
        return 2;
    for (int deaths = 0, here = 0, last = -1; deaths < MOST_DEATHS; deaths++) {
        const char *name;
        int status = 0, at = -1, variant = -1, quiet = 0;
        bool stood = false;
        shared->asking = false;
        shared->why[0] = 0;
        pid_t child = fork();
        if (child == 0)
            run(argv[1]);
        while (waitpid(child, &status, WNOHANG) == 0) {
            usleep(20000);
            bool same = at == shared->at && variant == shared->variant;
            quiet = same && shared->asking ? quiet + 1 : 0;
            at = shared->at, variant = shared->variant;
            if (quiet > STANDS * 50) {
                stood = true;
                kill(child, SIGKILL);
            }
        }
        if (WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 4))
            return 0;
        if (WIFEXITED(status) && WEXITSTATUS(status) == 5)
            continue;
        if (shared->variant == 0) {
            fprintf(stderr, "no objects: %s (%d)\n", shared->why, status);
            return 2;
        }
        struct variant v = variant_of(shared->variant - 1);
        here = last == shared->at ? here + 1 : 1;
        last = shared->at;
        if (WIFEXITED(status))
            tell(shared->at, &v, "not asked: %s", shared->why);
        else if (stood)
            tell(shared->at, &v, "stands");
        else
            tell(shared->at, &v, "crashes (signal %d%s)", WTERMSIG(status), shared->asking ? "" : ", not in the call");
        if (shared->variant == 1 || here == 3) { /* nor in any other way */
            shared->at++;
            shared->variant = 0;
        }
        if (!question(shared->at, -1, &name))
            return 0;
    }
    fprintf(stderr, "too many processes ended\n");
    return 1;
}
