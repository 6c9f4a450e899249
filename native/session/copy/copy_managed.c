/*
 * What managed memory holds, to and from the client: copies of one row, as operations of their own because they pass frames that are
 * held behind a host function.
 *
 * Executor thread only. They are checked where the copies are that they become.
 */
#include "tpg_session.h"
#include "tpw_copy.h"

int32_t tpw_managed_in(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_managed_in_in *in) {
    const struct tpg_copy_in_in copy = {.destination = in->address,
                                        .pitch = in->data_size,
                                        .width = in->data_size,
                                        .height = 1,
                                        .stream = in->stream,
                                        .data = in->data,
                                        .data_size = in->data_size};
    return tpw_copy_in(s, frame, &copy);
}

int32_t tpw_managed_in_bulk(struct tpw_session *s, const struct tp_frame *frame,
                            const struct tpg_managed_in_bulk_in *in) {
    const struct tpg_copy_in_bulk_in copy = {.destination = in->address,
                                             .pitch = in->size,
                                             .width = in->size,
                                             .height = 1,
                                             .stream = in->stream,
                                             .transfer = in->transfer};
    return tpw_copy_in_bulk(s, frame, &copy);
}

int32_t tpw_managed_out(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_managed_out_in *in) {
    const struct tpg_copy_out_post_in copy = {.source = in->address,
                                              .pitch = in->size,
                                              .width = in->size,
                                              .height = 1,
                                              .stream = in->stream,
                                              .transfer = in->transfer};
    return tpw_copy_out_post(s, frame, &copy);
}
