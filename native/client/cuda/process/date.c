/*
 * The counts that date what the client keeps; see tpc_date.h. Any thread.
 */
#include "tpc_date.h"

#include "tpc.h"

struct tpc_counts tpc_counts;

struct tpc_date tpc_today(void) {
    return (struct tpc_date){.frames = tp_frames(tpc_conn),
                             .told = tpc_count(&tpc_counts.told),
                             .records = tpc_count(&tpc_counts.records),
                             .failures = tpc_count(&tpc_counts.failures),
                             .refusals = tpc_count(&tpc_counts.refusals)};
}
