/*
 * What was known when something was learned: each truth that the client keeps carries such a date, or the part of it that its
 * keeper compares.
 *
 * The counts only rise, and any thread may raise them. A truth holds as long as the counts that could change it stand where they
 * stood when its owner was asked; so the date is taken before the question is sent.
 */
#ifndef TPC_DATE_H
#define TPC_DATE_H

#include <stdatomic.h>
#include <stdint.h>

struct tpc_date {
    uint64_t frames;   /* that the process had sent */
    uint64_t told;     /* completions that the program had learned of from the GPU, which may be ahead of the session */
    uint64_t records;  /* events recorded, and whatever else may have changed what events stand for */
    uint64_t failures; /* posts that had failed, as far as the worker had told */
    uint64_t
        refusals; /* calls of the program that had failed: any may have ended a capture. Apart from `failures`, because
                          programs ask what they know to fail (of each host pointer), and wait no longer for that */
};

struct tpc_counts {
    _Atomic uint64_t told, records, failures, refusals;
};
extern struct tpc_counts tpc_counts;

struct tpc_date tpc_today(void);
static inline uint64_t tpc_count(const _Atomic uint64_t *count) {
    return atomic_load_explicit(count, memory_order_seq_cst);
}
/* Returns the count before. */
static inline uint64_t tpc_happened(_Atomic uint64_t *count) {
    return atomic_fetch_add_explicit(count, 1, memory_order_seq_cst);
}

#endif
