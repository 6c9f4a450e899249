/*
 * The bound for kernels (--kernel-timeout): who has a kernel that runs for longer is ended.
 *
 * With the option the driver's launches are wrapped; without it nothing here runs. The stream's timeline gets a point behind each
 * launch, and one in front of it unless the frame before was a launch in the same stream. So a stream that stands at a point with a
 * launch behind it is in that launch: what waits for the client (a host function, a word, an event) stands behind other points, and
 * a queue of launches goes from point to point. What runs in a graph nobody knows, so a graph is let stand while the client has a host
 * function or a word to see to.
 *
 * The executor wraps, and a thread of its own looks at the words, because the executor may stand in the driver, behind that very kernel.
 * It ends the process itself then. The executor that stands in a launch is stopped there first, so that the client can be told.
 */
#include "tpg_answer.h"
#include "tpg_session.h"
#include "tpw_stream.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#define LOOK_MS 100u
#define GRACE_MS 2000u /* the executor tells the client, unless the driver keeps it */

enum { NOTHING, KERNEL, GRAPH };        /* behind a point */
enum { ELSEWHERE, LAUNCHING, STOPPED }; /* the executor */

static struct tpw_session *session;
static CUresult (*launch_kernel)(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                                 CUstream, void **, void **);
static CUresult (*launch_kernel_ex)(const CUlaunchConfig *, CUfunction, void **, void **);
static CUresult (*launch_graph)(CUgraphExec, CUstream);
static struct tpw_lane *_Atomic lanes;
static _Atomic uint32_t executor;
static struct tpw_lane *_Atomic over; /* its kernel has run for too long */

static bool open_lane(struct tpw_stream *stream) {
    struct tpw_lane *lane = stream->word->lane;
    if (!lane && (lane = calloc(1, sizeof *lane))) {
        lane->value = stream->word->value;
        lane->next = atomic_load(&lanes);
        stream->word->lane = lane;
        tpw_lane_point(stream->word, stream->issued);
        atomic_store(&lanes, lane);
    }
    return lane != NULL;
}

/* A point in the stream; the launch is made in the context that the executor is in. */
static bool put(struct tpw_stream *stream) {
    const CUcontext context = session->entered_native;
    const uint32_t entered = session->entered;
    const bool done = tpw_put_point(session, stream) == CUDA_SUCCESS;
    stream->dirty = true; /* nobody waits for this point: who asks for all work is still to find the stream */
    tpw_visit(session, context, entered);
    return done;
}

/* The stream, if the launch is bounded. What captures gets no point; nor does a stream in which the driver takes none, whose launch
 * then tells why. */
static struct tpw_stream *begin(CUstream native, uint8_t kind) {
    struct tpw_session *s = session;
    atomic_store(&executor, LAUNCHING);
    struct tpw_stream *stream = tpw_stream_native(s, native);
    const bool bounded = stream && tpw_touchable(s, stream) &&
                         ((stream->launched && stream->launched + 1 == s->frames) || put(stream)) && open_lane(stream);
    if (bounded) {
        stream->word->lane->device = stream->device;
        atomic_store(&stream->word->lane->behind[stream->issued % sizeof stream->word->lane->behind], kind);
    }
    return bounded ? stream : NULL;
}

static CUresult end(struct tpw_stream *stream, CUresult result) {
    if (stream && result) {
        tpw_lane_point(stream->word, stream->issued);
    } else if (stream) {
        stream->launched = put(stream) ? session->frames : 0;
    }
    for (uint32_t at = LAUNCHING; !atomic_compare_exchange_strong(&executor, &at, ELSEWHERE); at = LAUNCHING) {
        pause(); /* the process ends */
    }
    return result;
}

static CUresult bounded_kernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                               unsigned bz, unsigned shared, CUstream stream, void **params, void **extra) {
    struct tpw_stream *in = begin(stream, KERNEL);
    return end(in, launch_kernel(f, gx, gy, gz, bx, by, bz, shared, stream, params, extra));
}

static CUresult bounded_kernel_ex(const CUlaunchConfig *config, CUfunction f, void **params, void **extra) {
    struct tpw_stream *in = begin(config->hStream, KERNEL);
    return end(in, launch_kernel_ex(config, f, params, extra));
}

static CUresult bounded_graph(CUgraphExec graph, CUstream stream) {
    struct tpw_stream *in = begin(stream, session->words || session->graph_words ? NOTHING : GRAPH);
    return end(in, launch_graph(graph, stream));
}

static void tell(struct tpw_session *s, const struct tpw_lane *lane) {
    tp_log(TP_ERROR,
           "the client is ended: one of its launches has run on device %u for more than %llu s (--kernel-timeout)",
           lane->device, (unsigned long long)s->kernel_timeout);
    struct tpg_device_broken_in in = {.device = (int)lane->device, .error = CUDA_ERROR_LAUNCH_TIMEOUT};
    tpg_send_device_broken(s, &in);
    (void)tpw_link_flush(s->link);
    s->ended = true;
    s->exit_code = TPW_KERNEL_TIMEOUT;
}

/* Behind a kernel that failed the GPU writes nothing either. */
static bool still_runs(struct tpw_session *s, const struct tpw_lane *lane) {
    const CUcontext context = s->entered_native;
    const uint32_t entered = s->entered;
    struct tpw_stream *stream = TP_FIND(s->streams, it->word && it->word->lane == lane);
    CUresult found = s->broken[lane->device] ? (CUresult)s->broken[lane->device] : CUDA_ERROR_NOT_READY;
    if (stream && !s->broken[lane->device] && tpw_touchable(s, stream)) {
        tpw_enter_stream(s, stream);
        found = s->cuda.cuStreamQuery(stream->native);
        tpw_visit(s, context, entered);
    }
    return found == CUDA_ERROR_NOT_READY;
}

static void hear(struct tpw_session *s) {
    struct tpw_lane *lane = atomic_load(&over);
    if (TP_LIKELY(!lane) || s->ended) {
        return;
    }
    if (still_runs(s, lane)) {
        tell(s, lane);
        return;
    }
    atomic_store(&lane->behind[lane->seen % sizeof lane->behind], NOTHING);
    atomic_store(&over, NULL);
}
TP_REGISTER(tpw_control, hear);

static bool is_over(struct tpw_lane *lane, uint64_t now) {
    const uint64_t issued = atomic_load(&lane->issued), at = atomic_load(lane->value);
    const uint8_t behind = atomic_load(&lane->behind[at % sizeof lane->behind]);
    const bool runs = at < issued && (behind == KERNEL || (behind == GRAPH && !tpw_hosts_outstanding(session)));
    if (!runs || at != lane->seen) {
        lane->seen = at;
        lane->since = now;
    }
    return now - lane->since > session->kernel_timeout * 1000000000u;
}

static struct tpw_lane *find(void) {
    const uint64_t now = tp_now_ns();
    return TP_FIND(atomic_load(&lanes), is_over(it, now));
}

static void *look(void *unused) {
    const uint64_t one = 1;
    uint32_t launching = LAUNCHING, grace = 0;
    while (grace < GRACE_MS) {
        usleep(LOOK_MS * 1000);
        if (atomic_load(&over)) {
            grace += LOOK_MS;
            continue;
        }
        grace = 0;
        atomic_store(&over, find());
        if (atomic_load(&over)) {
            (void)!write(tpw_callbacks_fd(session), &one, sizeof one);
            tpw_link_wake(session->link);
        }
    }
    if (atomic_compare_exchange_strong(&executor, &launching, STOPPED)) {
        tell(session, atomic_load(&over));
    } else {
        tp_log(TP_ERROR, "the client is ended: the driver waits for its kernel (--kernel-timeout)");
    }
    _exit(TPW_KERNEL_TIMEOUT);
}

static int32_t open(struct tpw_session *s) {
    pthread_t thread;
    if (!s->kernel_timeout || session) {
        return CUDA_SUCCESS;
    }
    session = s;
    launch_kernel = s->cuda.cuLaunchKernel;
    launch_kernel_ex = s->cuda.cuLaunchKernelEx;
    launch_graph = s->cuda.cuGraphLaunch;
    s->cuda.cuLaunchKernel = bounded_kernel;
    s->cuda.cuLaunchKernelEx = bounded_kernel_ex;
    s->cuda.cuGraphLaunch = bounded_graph;
    if (pthread_create(&thread, NULL, look, NULL)) {
        tp_log(TP_ERROR, "there is no thread to bound kernels (--kernel-timeout)");
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    pthread_detach(thread);
    return CUDA_SUCCESS;
}
TP_REGISTER(tpw_driver_starts, open);
