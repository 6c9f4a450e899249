/*
 * Messages about memory from the session to the client: numbers, as those of tp_builtin_op, below the operations of
 * api/.
 *
 * Both come on the control connection, in order with replies: before a reply that means "completed", the client has
 * what kernels wrote into mapped host memory, and knows which of the downloads that it posted will never come. The
 * client bounds what it reads here by its own records; the worker's numbers only choose among them.
 */
#ifndef TP_MESSAGES_H
#define TP_MESSAGES_H

enum tp_memory_message {
    TP_OP_TWIN_WRITE = 4,     /* body as of the operation host_twin_write: device address of the twin, then the bytes */
    TP_OP_DOWNLOAD_ENDED = 5, /* u64 transfer: the copy failed, its bytes never come */
};

#endif
