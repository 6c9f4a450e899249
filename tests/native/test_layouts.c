/*
 * The list of another build, as a hostile one would write it: any bytes, and good lists with some of them changed.
 *
 * Whatever comes of it are numbers that the list has, each for one of ours, and a reason where nothing works. The sanitizers watch.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tp_layouts.h>

#define OWN 40u
#define ROUNDS 30000u
#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "round %u: %s\n", now, #condition);                                                        \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

static uint64_t state = 88172645463325252ull;
static uint32_t below(uint32_t n) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 11) % n;
}

static struct tp_layout ours[OWN];
static unsigned now, good, bad;

static const char *name(uint16_t number) {
    CHECK(number > 0 && number <= OWN);
    return "one of ours";
}

/* Operations, a few messages, a few kinds of handle; of the first two of each something is needed, or may be dropped. */
static void describe(void) {
    for (uint32_t i = 0; i < OWN; i++) {
        const uint16_t kind = i >= OWN - 5 ? TP_HANDLE : i < 6 ? TP_MESSAGE : 0;
        const uint16_t number = (uint16_t)(kind == TP_HANDLE ? i - (OWN - 6) : i + 1);
        ours[i] = (struct tp_layout){.name = 1000 + i, .layout = 77 * i, .number = number, .flags = kind};
    }
    ours[0].flags |= TP_OPTIONAL;
    ours[7].flags |= TP_NEEDED;
}

static void check(struct tp_matched *m, const struct tp_layout *list, size_t size) {
    char why[120] = "";
    /* Exactly so many bytes, so that a read past them is seen, and not aligned. */
    unsigned char *bytes = malloc(size + 1);
    if (size) {
        memcpy(bytes + 1, list, size);
    }
    const bool works = tp_layouts_match(m, ours, OWN, bytes + 1, size, name, why, sizeof why);
    free(bytes);
    CHECK(works ? !why[0] : why[0] && strlen(why) < sizeof why);
    good += works;
    bad += !works;
    uint32_t shared = 0;
    for (uint32_t i = 1; works && i <= UINT16_MAX; i++) {
        const uint16_t theirs = m->theirs[i], back = m->ours[i];
        CHECK(!theirs || (i <= OWN && m->ours[theirs] == i));
        CHECK(back == 0 || back == TP_DROPPED || back <= OWN);
        shared += theirs != 0;
    }
    CHECK(!works || (shared == m->shared && m->theirs[8] != 0));
}

int main(void) {
    describe();
    struct tp_matched *m = tp_matched_make("somewhere", 3004005, 9);
    CHECK(m && m->theirs[9] == 9 && strstr(m->releases, "somewhere is of release 3.4.5, this client of "));
    check(m, ours, sizeof ours);
    CHECK(good == 1 && m->shared == OWN - 5 - 6);
    static struct tp_layout list[3 * OWN];
    for (now = 1; now <= ROUNDS; now++) {
        size_t size = sizeof ours;
        memcpy(list, ours, sizeof ours);
        switch (below(5)) {
        case 0: /* no list at all */
            size = below(sizeof list);
            for (size_t i = 0; i < size; i++) {
                ((unsigned char *)list)[i] = (unsigned char)below(256);
            }
            break;
        case 1: /* cut */
            size = below(sizeof ours);
            break;
        case 2: /* some bytes */
            for (uint32_t n = 1 + below(3); n > 0; n--) {
                ((unsigned char *)list)[below(sizeof ours)] ^= (unsigned char)(1u << below(8));
            }
            break;
        case 3: /* a row of another */
            list[below(OWN)] = ours[below(OWN)];
            break;
        default: /* another release: operations with room between their numbers, some gone, some changed, some new */
            size = 0;
            for (uint32_t i = 0, last = 0; i < OWN; i++) {
                struct tp_layout row = ours[i];
                last = row.flags & TP_HANDLE ? 0 : last + 1 + below(900);
                row.number = row.flags & TP_HANDLE ? row.number : (uint16_t)last;
                if (i >= 8 && below(8) == 0 && !(row.flags & TP_HANDLE)) {
                    row.name += 1000000 * below(2);
                    row.layout += below(2);
                }
                if (i < 8 || below(8)) {
                    list[size++] = row;
                }
            }
            size *= sizeof *list;
        }
        check(m, list, size);
    }
    free(m);
    CHECK(good > ROUNDS / 10 && bad > ROUNDS / 10);
    printf("%u work, %u do not\n", good, bad);
    return 0;
}
