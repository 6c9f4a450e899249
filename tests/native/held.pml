/*
 * Spin model of what the session holds back: two threads of a program each put a host function into a stream and more commands
 * behind it than the stream takes. The functions wait for calls of these threads, as many as the driver takes without waiting, and
 * the words that they have run come in the same order as everything else.
 *
 * The ring is the transport, of any kind: who writes waits while it is full. A command also needs a piece of pinned memory, which
 * comes back when the stream has executed it.
 *
 * Proved, over every interleaving: everything ends, and never more is held back than the session allows.
 *
 * What must fail when it is changed, each checked by tests/test_completion_model.py:
 *   NO_ASK       who has sent much goes on without an answer      (look_for_room, native/client/core/sender.c)
 *   URGENT_ASKS  who runs host functions asks, too                (`urgent` of tp_conn.h)
 *   URGENT_WAITS or waits for the answer to something else that it sends between two of them (tpc_post, native/client/cuda/process/state.c)
 *   SOON         a thread asks before it has made as many calls as a function may wait for (TP_BEHIND_MAX)
 *   SHUT         an operation that waits for a piece reads nothing (tpw_go_on, native/session/stream/executor.c)
 * These files and this one must be changed together.
 */
#define WORK 1
#define FUNCTION 2
#define RAN 3
#define ASK 4

#define THREADS 2
#define CALLS 4  /* of each thread, behind its function */
#define NEED 3   /* calls that a function waits for, as many as the driver would take */
#define ROOM 2   /* commands that a stream takes behind a function: the session stops short of the driver */
#define PIECES 1 /* of pinned memory: fewer than a stream takes */
#ifdef SOON
#define BEHIND 2
#else
#define BEHIND 5 /* two functions, and the calls that they wait for */
#endif
#define HELD (BEHIND + 1) /* one question of each thread but the one that waits for this */

chan ring = [2] of { byte, byte };           /* kind, thread */
chan held = [10] of { byte, byte };
chan callbacks = [THREADS] of { byte };
chan stream0 = [10] of { byte };
chan stream1 = [10] of { byte };
chan replies[THREADS] = [1] of { byte };

/* ---- the client ---- */
byte sent, answered, made;

inline append(kind) { atomic { nfull(ring) -> ring!kind, me; sent++ } }

inline ask() {
    byte at, ignored;
    atomic { nfull(ring) -> ring!ASK, me; at = sent; sent++ };
    replies[me]?ignored;
    answered = at
}

/* ---- the session ---- */
bool outstanding[THREADS], ran[THREADS];
byte behind[THREADS];
byte pieces = PIECES;

active [THREADS] proctype caller() {
    byte me = _pid, left = CALLS;
    bool first = true;
    do
    :: atomic {
#ifndef NO_ASK
        sent - answered < BEHIND &&
#endif
        nfull(ring) && (first || left) ->
        if
        :: first -> ring!FUNCTION, me; first = false
        :: else -> ring!WORK, me; left--; made++
        fi;
        sent++ }
#ifndef NO_ASK
    :: sent - answered >= BEHIND && (first || left) -> ask()
#endif
    :: !first && !left -> break
    od
}

active proctype runner() {
    byte me, count;
    do
    :: count < THREADS ->
        callbacks?me;
        (made >= NEED);
#ifdef URGENT_ASKS
        if
        :: sent - answered >= BEHIND -> ask()
        :: else
        fi;
#endif
        append(RAN);
#ifdef URGENT_WAITS
        if
        :: count + 1 < THREADS -> ask()
        :: else
        fi;
#endif
        count++
    :: else -> break
    od
}

/* What lets a stream go on is executed at once, the rest is held. */
inline look() {
    ring?kind, who;
    if
    :: kind == RAN -> ran[who] = true
    :: else ->
        held!kind, who;
        assert(len(held) <= HELD)
    fi
}

inline execute() {
    if
    :: kind == RAN -> ran[who] = true
    :: kind == ASK -> replies[who]!ASK
    :: kind == FUNCTION -> outstanding[who] = true; callbacks!who
    :: kind == WORK ->
        worker = who;
        do
        :: atomic { pieces > 0 -> pieces-- }; break
#ifndef SHUT
        :: pieces == 0 && nempty(ring) && len(held) < HELD -> look()
#endif
        od;
        if
        :: worker == 0 -> stream0!WORK
        :: worker == 1 -> stream1!WORK
        fi;
        behind[worker] = behind[worker] + outstanding[worker]
    fi
}

#define FULL(n) (outstanding[n] && behind[n] >= ROOM)
#define STANDS (FULL(0) || FULL(1))

active proctype executor() {
    byte kind, who, worker;
end:
    do
    :: !STANDS && nempty(held) -> held?kind, who; execute()
    :: !STANDS && empty(held) && nempty(ring) -> ring?kind, who; execute()
    :: STANDS && nempty(ring) && len(held) < HELD -> look()
    od
}

/* ---- the GPU: each stream stands at its function until that has run ---- */
active [THREADS] proctype gpu() {
    byte me = _pid % THREADS, command;
    (ran[me]);
    atomic { outstanding[me] = false; behind[me] = 0 };
end:
    do
    :: me == 0 && nempty(stream0) -> stream0?command; pieces++
    :: me == 1 && nempty(stream1) -> stream1?command; pieces++
    od
}
