/*
 * Spin model of native/ring/tp_ring.h: one producer, one consumer, a ring of N cells, the two bells beside it.
 *
 * Stores go through a buffer per side that drains in order, one store at a time, whenever it likes (total store order, as on
 * x86): a load can overtake an earlier store, which is all that the fences of the bells are for. Either side may die at any
 * step; what it has stored still drains, and then its life word is marked.
 *
 * Proved, over every interleaving: bytes arrive in order and exactly once; no cell is written that is not read; nobody sleeps
 * for ever while the other lives (a sleep has no limit as long as the other lives, so a lost wake-up is a deadlock); after a
 * death the survivor ends, and a consumer only with everything that was published.
 *
 * The consumer also naps, the producer sends both what it waits for and what it does not wait for. A nap ends by itself, but here never
 * while somebody waits: so whoever waits and has not rung the napper is a deadlock, too.
 *
 * What must fail when it is taken away, each checked by tests/test_ring_model.py: NO_RING_FENCE, NO_ARM_FENCE, NO_LAST_LOOK,
 * EARLY_HEAD, EARLY_TAIL, NO_ROOM_RING, NO_LIFE, NO_NAP_FENCE, NO_NAP_LOOK, NO_CALL_RING, NO_FULL_RING. tp_ring.h and this file must be changed together.
 */
#ifndef N
#define N 2
#endif
/* Cells in all: the stream is longer than the ring, so that it wraps at least twice. */
#ifndef TOTAL
#define TOTAL (2 * N + 1)
#endif

/* Stores that a buffer holds. */
#ifndef BUFFER
#define BUFFER 3
#endif

#define PRODUCER 0
#define CONSUMER 1

/* Shared memory */
#define HEAD 0
#define TAIL 1
#define BELL 2 /* + side: of the one who sleeps by it */
#define CELL 4
byte memory[4 + N];
chan stores[2] = [BUFFER] of { byte, byte };

#define SLEEPS 1
#define NAPS 2

bool asleep[2];    /* in the kernel */
bool waits;        /* the producer, for room or for what comes of its frames: nobody would see a nap end late else */
bool over[2];      /* the life word is marked */
bool struck[2];    /* dies at its next step */
byte read_cells;   /* by the consumer, for good */

#define store(side, address, value) stores[side]!address, value
#define drained(side) empty(stores[side])

/* tp_bell_ring, and tp_bell_ring_sleeper where `naps` is SLEEPS: store before this, then the fence, then the look. A system call drains the
 * stores, too. */
inline ring(me, other, naps) {
#ifndef NO_RING_FENCE
    drained(me);
#endif
    if
    :: memory[BELL + other] == SLEEPS || memory[BELL + other] == naps ->
        store(me, BELL + other, 0);
        drained(me);
        asleep[other] = false
    :: else
    fi
}

inline arm(me) {
    store(me, BELL + me, SLEEPS);
#ifndef NO_ARM_FENCE
    drained(me)
#endif
}

/* tp_bell_wait. Its time limit counts only when nobody is there to ring. The kernel compares the word as it is for everybody;
 * the waiter's own store of 1 is seen by itself before it has drained, and then the comparison holds, too: without the fence the
 * sleep would begin in any case. */
inline sleep(me, other) {
    atomic { drained(me); asleep[me] = (memory[BELL + me] == SLEEPS) }
    (!asleep[me] || over[other]);
    asleep[me] = false;
    store(me, BELL + me, 0)
}

/* tp_bell_nap, armed with its last look. */
inline nap() {
    store(CONSUMER, BELL + CONSUMER, NAPS);
#ifndef NO_NAP_FENCE
    drained(CONSUMER);
#endif
#ifndef NO_NAP_LOOK
    filled = memory[HEAD] - got;
#endif
    if
    :: filled == 0 ->
        atomic { drained(CONSUMER); asleep[CONSUMER] = (memory[BELL + CONSUMER] == NAPS) }
progress_nap: /* time passes */
        (!asleep[CONSUMER] || over[PRODUCER] || !waits);
        asleep[CONSUMER] = false
    :: else
    fi;
    store(CONSUMER, BELL + CONSUMER, 0)
}

/* The store buffers drain. */
active proctype drain() {
    byte address, value;
end:
    do
    :: atomic { stores[PRODUCER]?address, value ->
            assert(address < CELL || value < N || value - N < read_cells); /* what lies there was read */
            memory[address] = value; address = 0; value = 0 }
    :: atomic { stores[CONSUMER]?address, value -> memory[address] = value; address = 0; value = 0 }
    od
}

active proctype producer() {
    byte sent, want, i;
    {
        do
        :: sent == TOTAL -> break
        :: else ->
            /* A frame of any size that the ring can hold. */
            if
            :: (N < 4 || sent + N / 2 + 1 > TOTAL) -> want = 1
            :: sent + N / 2 + 1 <= TOTAL && N > 2 -> want = N / 2 + 1
            :: sent + N <= TOTAL -> want = N
            fi;
            do
            :: N - (sent - memory[TAIL]) >= want -> waits = false; break
            :: else ->
                if
#ifndef NO_LIFE
                :: over[CONSUMER] -> goto ended
#endif
                :: else
                fi;
                waits = true;
#ifndef NO_FULL_RING
                ring(PRODUCER, CONSUMER, NAPS);
#endif
                arm(PRODUCER);
                if
                :: N - (sent - memory[TAIL]) >= want -> store(PRODUCER, BELL + PRODUCER, 0); waits = false; break
                :: else
                fi;
                sleep(PRODUCER, CONSUMER)
            od;
#ifdef EARLY_HEAD
            store(PRODUCER, HEAD, sent + want);
#endif
            i = 0;
            do
            :: i < want -> store(PRODUCER, CELL + (sent + i) % N, sent + i); i++
            :: else -> i = 0; break
            od;
            sent = sent + want;
            want = 0;
#ifndef EARLY_HEAD
            store(PRODUCER, HEAD, sent);
#endif
            if
            :: ring(PRODUCER, CONSUMER, SLEEPS)
            :: waits = true;
#ifdef NO_CALL_RING
                ring(PRODUCER, CONSUMER, SLEEPS);
#else
                ring(PRODUCER, CONSUMER, NAPS);
#endif
                (memory[TAIL] == sent || over[CONSUMER]);
                waits = false
            fi
        od;
ended:  skip
    } unless { struck[PRODUCER] };
    if
    :: struck[PRODUCER] -> atomic { drained(PRODUCER); over[PRODUCER] = true }
    :: else
    fi
}

active proctype consumer() {
    byte got, filled, i;
    {
        do
        :: got == TOTAL -> break
        :: else ->
            filled = memory[HEAD] - got;
            if
            :: filled == 0 ->
                if
#ifndef NO_LIFE
                :: over[PRODUCER] ->
#ifndef NO_LAST_LOOK
                    filled = memory[HEAD] - got; /* what it published before it died */
#endif
                    if
                    :: filled == 0 -> assert(got == memory[HEAD]); goto ended
                    :: else
                    fi
#endif
                :: else ->
                    if
                    :: nap()
                    :: arm(CONSUMER);
                        filled = memory[HEAD] - got;
                        if
                        :: filled == 0 -> sleep(CONSUMER, PRODUCER)
                        :: else -> store(CONSUMER, BELL + CONSUMER, 0)
                        fi
                    fi
                fi
            :: else
            fi;
            if
            :: filled > 0 ->
                /* All of it, or as much as there is room for in private memory. */
                if
                :: filled > 1 && N < 4 -> filled = 1
                :: filled > N / 2 && N >= 4 -> filled = N / 2
                :: skip
                fi;
#ifdef EARLY_TAIL
                store(CONSUMER, TAIL, got + filled);
#endif
                i = 0;
                do
                :: i < filled ->
                    assert(memory[CELL + (got + i) % N] == got + i);
                    i++
                :: else -> i = 0; break
                od;
                got = got + filled;
                filled = 0;
                read_cells = got;
#ifndef EARLY_TAIL
                store(CONSUMER, TAIL, got);
#endif
#ifndef NO_ROOM_RING
                ring(CONSUMER, PRODUCER, NAPS)
#endif
            :: else
            fi
        od;
ended:  skip
    } unless { struck[CONSUMER] };
    if
    :: struck[CONSUMER] -> atomic { drained(CONSUMER); over[CONSUMER] = true }
    :: else
    fi
}

#ifndef NO_DEATH
active [2] proctype killer() {
    if
    :: struck[_pid % 2] = true
    :: skip
    fi
}
#endif
