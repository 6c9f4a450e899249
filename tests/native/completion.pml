/*
 * Spin model of completion: what the client is told to be complete, in which order it learns of it, and what it has by then.
 *
 * One stream: a download, a host function, an upload from memory that the function writes, a second download, and a word of
 * shared memory that the GPU writes at the end. Before the word is put into the stream a post fails. One thread of the program
 * asks whether the second download is complete, another polls the word. Control frames come in one order; large downloads come
 * on two data connections, in any order beside them. The session's executor does one thing after the other and waits for
 * nothing. Memory is sequentially consistent here: that the ring and its words are is shown by ring.pml.
 *
 * Proved, over every interleaving: a host function runs when the bytes in front of it are there; an answer "complete" is seen
 * when the bytes it speaks of are there; whoever sees the word has the notice of what failed before it; the upload carries what
 * the function wrote; the executor never waits, so everything ends.
 *
 * What must fail when it is changed, each checked by tests/test_completion_model.py:
 *   NO_HOLD       frames that complete are taken at once             (native/client/core/held.c)
 *   HOLD_NEWS     notices are held behind them                       (the same)
 *   NO_LEAVE      what else is complete is not handed over first     (tpw_leave, native/session/stream/answer.c)
 *   WORD_FIRST    the word is queued before the notice is in the ring (native/session/stream/done.c)
 *   EARLY_UPLOAD  bytes are taken at the call, not behind the function
 *   BLOCKING      the executor waits for the bytes of the upload
 * These files and this one must be changed together.
 */
#define NOTICE 1
#define CALLBACK 2
#define COMPLETE 3
#define NOT_READY 4

#define ASK 1
#define FUNCTION_RAN 2

#define QUESTIONS 2

#define FIRST 1  /* downloads, in the order of the stream */
#define SECOND 2

/* ---- the GPU ---- */
byte issued;        /* commands that the executor has put into the stream */
byte point;         /* and that have finished: 1 download, 2 host function, 3 upload, 4 download, 5 word */
bool raised;        /* the stream stands at the host function */
bool function_done;
bool bytes_there;   /* a word that the executor writes: the stream waits for it in front of the upload */
byte staged;        /* what the upload reads */
bool word;

/* ---- the wires ---- */
chan control = [6] of { byte, byte };  /* kind, downloads handed over before it */
byte sent, handled;                    /* frames put into the ring; looked at by the client */
chan lanes[2] = [2] of { byte, byte }; /* download, its place among those handed over */
chan frames = [3] of { byte };
chan bytes = [1] of { byte };

/* ---- the session ---- */
byte handed;
bool handed_first, handed_second;

/* ---- the client ---- */
bool present[3];    /* the bytes of a download are where the program wants them */
bool place_landed[3];
byte landed;        /* in the order of handing over */
chan held = [4] of { byte, byte };
bool releasing, receiving;
chan ready = [1] of { byte };
byte memory = 1;    /* what the upload is from; the function writes 2 */
bool noticed;
byte answer;

active proctype gpu() {
    (issued >= 1);
    point = 1;
    (issued >= 2);
    raised = true;
    (function_done);
    point = 2;
    (issued >= 3 && bytes_there);
    assert(staged == 2);
    point = 3;
    (issued >= 4);
    point = 4;
    (issued == 5);
    word = true;
    point = 5
}

inline hand_over(which) {
    handed++;
    if
    :: lanes[0]!which, handed
    :: lanes[1]!which, handed
    fi
}

/* Completions run in the order of the stream. */
inline poll() {
    if
    :: point >= 1 && !handed_first -> hand_over(FIRST); handed_first = true
    :: else
    fi;
    if
    :: point >= 4 && !handed_second -> hand_over(SECOND); handed_second = true
    :: else
    fi
}

inline leave() {
#ifndef NO_LEAVE
    poll()
#else
    skip
#endif
}

inline tell(kind, count) { atomic { control!kind, count; sent++ } }

active proctype executor() {
    bool told, failed, up;
    byte value, ended, asked;
    issued = 2;
#ifdef BLOCKING
    bytes?value;
    staged = value;
    bytes_there = true;
    up = true;
#endif
    issued = 4;
    do
    :: point >= 1 && (!handed_first || (point >= 4 && !handed_second)) -> poll()
    :: raised && !told ->
        told = true;
        leave();
        tell(CALLBACK, handed)
    :: !failed ->
        failed = true;
#ifdef WORD_FIRST
        issued = 5;
        tell(NOTICE, 0)
#else
        tell(NOTICE, 0);
        issued = 5
#endif
    :: frames?FUNCTION_RAN -> function_done = true
    :: frames?ASK ->
        asked++;
        if
        :: point >= 4 -> leave(); tell(COMPLETE, handed); asked = QUESTIONS
        :: point < 4 -> tell(NOT_READY, 0)
        fi
    :: !up && bytes?[value] ->
        bytes?value;
        up = true;
        staged = value;
        bytes_there = true
    :: handed_first && handed_second && told && failed && up && function_done && asked == QUESTIONS -> break
    od
}

/* ---- the client ---- */

inline take(kind) {
    if
    :: kind == NOTICE -> noticed = true
    :: kind == CALLBACK -> ready!CALLBACK
    :: kind == COMPLETE || kind == NOT_READY -> answer = kind
    fi
}

/* Whoever lands the last bytes lets go what has waited for them; one thread at a time. */
inline release(kind, need) {
    if
    :: atomic { !releasing -> releasing = true };
        do
        :: atomic {
            kind = 0;
            if
            :: len(held) > 0 ->
                held?<kind, need>;
                if
                :: need <= landed -> held?kind, need
                :: else -> kind = 0
                fi
            :: else
            fi;
            if
            :: kind == 0 -> releasing = false
            :: else
            fi }
            if
            :: kind == 0 -> break
            :: else -> take(kind)
            fi
        od
    :: releasing
    fi
}

active proctype receiver() {
    byte kind, need;
    bool waits;
end:
    do
    :: control?kind, need ->
        atomic {
            waits = false;
#ifndef NO_HOLD
            if
            :: (kind == CALLBACK || kind == COMPLETE) ->
                waits = len(held) > 0 || releasing || need > landed
#ifdef HOLD_NEWS
            :: kind == NOTICE -> waits = len(held) > 0 || releasing
#endif
            :: else
            fi;
#endif
            if
            :: waits -> held!kind, need
            :: else
            fi
        }
        if
        :: !waits -> take(kind)
        :: else -> release(kind, need)
        fi;
        handled++
    od
}

/* One for each data connection. */
active [2] proctype data() {
    byte which, place, kind, need;
end:
    do
    :: lanes[_pid % 2]?which, place ->
        present[which] = true;
        atomic {
            place_landed[place] = true;
            do
            :: landed < 2 && place_landed[landed + 1] -> landed++
            :: else -> break
            od
        }
        release(kind, need)
    od
}

/* Runs host functions, which are no business of the connection's threads. */
active proctype runner() {
    byte kind;
    ready?kind;
    assert(present[FIRST]);
    memory = 2;
#ifndef EARLY_UPLOAD
    bytes!memory;
#endif
    frames!FUNCTION_RAN
}

/* Has made the calls of the stream; asks whether the second download is complete. */
active proctype asker() {
    byte asked;
#ifdef EARLY_UPLOAD
    bytes!memory;
#endif
    do
    :: asked < QUESTIONS && answer != COMPLETE ->
        answer = 0;
        frames!ASK;
        asked++;
        (answer != 0)
    :: else -> break
    od;
    if
    :: answer == COMPLETE -> assert(present[FIRST] && present[SECOND])
    :: else
    fi
}

/* Another thread, which only looks at the word: then it takes what lies in the ring. */
active proctype poller() {
    byte seen;
    (word);
    seen = sent;
    (handled >= seen);
    assert(noticed)
}
