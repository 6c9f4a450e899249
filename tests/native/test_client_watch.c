/*
 * What the client believes about an event, and every way in which that ends: the real watch.c and timing.c, with a worker that
 * is a few functions in this file.
 *
 * Exits with 1 at the first failed check; tests/test_client_local.py compiles and runs it. One thread.
 */
#include "test_client_local.h"
#include "tpc_stream.h"
#include "tpg_ops.h"

struct tp_conn *tpc_conn;
_Atomic int tpc_lost_error = CUDA_ERROR_DEVICE_UNAVAILABLE;
_Thread_local struct tp_thread this_thread;
struct tp_thread *tp_thread_self(void) { return &this_thread; }
_Atomic uint64_t tpc_captures;
static unsigned char frame_body[256];
static uint64_t frames = 100; /* sent so far */

uint64_t tp_frames(const struct tp_conn *conn) { return conn ? 0 : frames; }
bool tpc_may_mark(void) { return true; }
CUresult tpc_posted(void) { return CUDA_SUCCESS; }
CUresult tpc_lost(void) { return TPC_LOST_ERROR; }
bool tp_done_lend(struct tp_conn *conn, struct tp_done *done) {
    *done = (struct tp_done){.word = 3, .value = 9};
    return !conn;
}
bool tp_done_written(const struct tp_conn *conn, const struct tp_done *done) { return !conn && done->value == 0; }
bool tp_done_reached(struct tp_conn *conn, const struct tp_done *done) { return !conn && done->value == 0; }
unsigned char *tpc_reserve(uint16_t op, size_t size) { return op && size <= sizeof frame_body ? frame_body : NULL; }
CUresult tpc_post(const char *name, struct tp_reply *unused) {
    CHECK(name && !unused);
    frames++;
    return CUDA_SUCCESS;
}
bool tpc_handle_alive(uint32_t kind, uint64_t handle) { return kind && handle; }

enum { EVENT = 4711, OTHER = 4712 };
static const CUevent event = (CUevent)(uintptr_t)EVENT;

struct question {
    uint64_t handle;
    struct tpc_date asked;
    struct tpc_sweep sweep;
    struct tp_reply reply;
};

static struct question ask(uint64_t handle) {
    struct question question = {.handle = handle, .asked = tpc_today()};
    tpc_sweep_begin(&question.sweep, handle, question.asked.records);
    question.reply.number = ++frames;
    return question;
}

/* The worker says that everything before the event is over, and before those of `ahead`. */
static void say_complete(const struct question *question, uint64_t ahead) {
    tpc_watch_learned(question->handle, false, CUDA_SUCCESS, &question->reply, &question->asked);
    tpc_sweep_learned(&question->sweep, CUDA_SUCCESS, ahead);
}

static void complete(uint64_t handle) {
    CUresult result = CUDA_ERROR_UNKNOWN;
    const struct question question = ask(handle);
    say_complete(&question, 0);
    CHECK(tpc_watch_answer(handle, false, &result) && result == CUDA_SUCCESS);
}

static bool believed(uint64_t handle) {
    CUresult result;
    return tpc_watch_answer(handle, false, &result);
}

static void test_records(void) {
    CHECK(!believed(EVENT)); /* nobody was asked */
    tpc_event_recorded(event, 0);
    tpc_event_recorded((CUevent)(uintptr_t)OTHER, 0);
    complete(EVENT);
    complete(OTHER);
    frames++;
    tpc_event_recorded(event, 0);
    CHECK(!believed(EVENT) && believed(OTHER));
    complete(EVENT);
    const struct question before = ask(EVENT);
    frames++;
    tpc_event_recorded(event, 0);
    CHECK(!believed(EVENT) && believed(OTHER));
    /* An answer from before the record says nothing of what is after it. */
    say_complete(&before, 0);
    CHECK(!believed(EVENT));
}

/* Who goes through many is told of those behind, each as of the record that stood when it was asked for. */
static void test_many(void) {
    enum { MANY = 40, FIRST = 5000 };
    unsigned questions = 0;
    for (uint64_t i = 0; i < MANY; i++) {
        tpc_event_recorded((CUevent)(uintptr_t)(FIRST + i), 0);
    }
    for (uint64_t i = 0; i < MANY; i++) {
        if (!believed(FIRST + i)) {
            const struct question question = ask(FIRST + i);
            say_complete(&question, UINT64_MAX);
            questions++;
        }
    }
    CHECK(questions < 8);
    tpc_event_recorded((CUevent)(uintptr_t)(FIRST + 7), 0);
    CHECK(!believed(FIRST + 7) && believed(FIRST + 6) && believed(FIRST + 8));
    /* One that is recorded anew between the question and the answer, and one that the answer calls unfinished. */
    tpc_event_recorded((CUevent)(uintptr_t)(FIRST + 8), 0);
    tpc_event_recorded((CUevent)(uintptr_t)(FIRST + 9), 0);
    const struct question question = ask(FIRST + 7);
    CHECK(question.sweep.count == 2 && question.sweep.events[0] == FIRST + 8 && question.sweep.events[1] == FIRST + 9);
    tpc_event_recorded((CUevent)(uintptr_t)(FIRST + 8), 0);
    say_complete(&question, 1);
    CHECK(believed(FIRST + 7) && !believed(FIRST + 8) && !believed(FIRST + 9));
}

/* A kernel whose launch records an event. */
static void test_launch_that_records(void) {
    complete(EVENT);
    frames++;
    tpc_watch_recorded(event);
    CHECK(!believed(EVENT) && believed(OTHER));
}

static void test_graphs(void) {
    complete(EVENT);
    complete(OTHER);
    frames++;
    tpc_watch_launched(); /* no graph of this process records anything yet */
    CHECK(believed(EVENT) && believed(OTHER));
    tpc_event_recorded(event, CU_EVENT_RECORD_EXTERNAL);
    complete(EVENT);
    complete(OTHER);
    const struct question before = ask(EVENT);
    frames++;
    tpc_watch_launched();
    CHECK(!believed(EVENT) && !believed(OTHER));
    say_complete(&before, 0);
    CHECK(!believed(EVENT));
    complete(EVENT); /* asked anew */
    tpc_watch_launched();
    /* One that was watched, too: the word tells of the record before. */
    struct tpc_date asked = tpc_today();
    struct tp_reply reply = {.number = ++frames};
    CUresult result = CUDA_SUCCESS;
    tpc_watch_learned(EVENT, false, CUDA_ERROR_NOT_READY, &reply, &asked);
    CHECK(tpc_watch_answer(EVENT, false, &result) && result == CUDA_ERROR_NOT_READY);
    frames++;
    tpc_watch_launched();
    CHECK(!believed(EVENT));
}

/* "Not ready" is said from memory only until the GPU itself has told of something. */
static void test_doubts(void) {
    struct tp_reply reply = {.number = ++frames};
    CUresult result = CUDA_SUCCESS;
    struct tpc_date before = tpc_today();
    tpc_watch_learned(OTHER, false, CUDA_ERROR_NOT_READY, &reply, &before);
    CHECK(tpc_watch_answer(OTHER, false, &result) && result == CUDA_ERROR_NOT_READY);
    tpc_happened(&tpc_counts.told);
    CHECK(!tpc_watch_answer(OTHER, false, &result));
    tpc_watch_learned(OTHER, false, CUDA_ERROR_NOT_READY, &reply, &before); /* asked before that */
    CHECK(!tpc_watch_answer(OTHER, false, &result));
    before = tpc_today();
    tpc_watch_learned(OTHER, false, CUDA_ERROR_NOT_READY, &reply, &before);
    CHECK(tpc_watch_answer(OTHER, false, &result) && result == CUDA_ERROR_NOT_READY);
}

/* The legacy stream of another context is another stream. */
static void test_default_streams(void) {
    const uint64_t legacy = (uint64_t)(uintptr_t)CU_STREAM_LEGACY;
    CUresult result = CUDA_SUCCESS;
    this_thread.context = 5;
    const struct tpc_date asked = tpc_today();
    struct tp_reply reply = {.number = ++frames};
    tpc_watch_learned(legacy, true, CUDA_ERROR_NOT_READY, &reply, &asked);
    CHECK(tpc_watch_answer(legacy, true, &result) && result == CUDA_ERROR_NOT_READY);
    this_thread.context = 6;
    CHECK(!tpc_watch_answer(legacy, true, &result));
    this_thread.context = 5;
    CHECK(tpc_watch_answer(legacy, true, &result));
    frames++; /* there may be new work in it */
    CHECK(!tpc_watch_answer(legacy, true, &result));
}

int main(void) {
    test_records();
    test_many();
    test_launch_that_records();
    test_graphs();
    test_doubts();
    test_default_streams();
    printf("all cases passed\n");
    return 0;
}
