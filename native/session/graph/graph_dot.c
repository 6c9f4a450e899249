/*
 * The text of a graph, which the driver writes into a file: here one in memory, for the client to write where it was asked to.
 *
 * Executor thread only. The client reads it piece by piece; each piece is printed anew, so nothing is kept between them.
 */
#include "tpg_session.h"
#include "tpw_graph.h"

#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

#define CLOSES 1u /* MFD_CLOEXEC */
#define PIECE (512u << 10)
#define TEXT_MAX (64u << 20)

int32_t tpw_graph_dot(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_graph_dot_in *in,
                      struct tpg_graph_dot_out *out, CUgraph graph) {
    char path[64];
    int fd = (int)syscall(SYS_memfd_create, "tensor-fusion-dot", CLOSES); /* glibc 2.17 has no function for it */
    if (fd < 0) {
        return CUDA_ERROR_OPERATING_SYSTEM;
    }
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int32_t error = (int32_t)s->cuda.cuGraphDebugDotPrint(graph, path, in->flags);
    off_t total = error ? 0 : lseek(fd, 0, SEEK_END);
    if (!error && (total < 0 || total > (off_t)TEXT_MAX)) {
        tp_log(TP_WARN, "the text of a graph has %lld bytes, more than is sent", (long long)total);
        error = CUDA_ERROR_NOT_SUPPORTED;
    }
    unsigned char *piece = error ? NULL : tpw_scratch(s, PIECE, 1, &error);
    ssize_t got = 0;
    if (piece && in->first < (uint64_t)total) {
        got = pread(fd, piece, PIECE, (off_t)in->first);
        error = got < 0 ? CUDA_ERROR_OPERATING_SYSTEM : CUDA_SUCCESS;
    }
    close(fd);
    *out = (struct tpg_graph_dot_out){.total = (uint64_t)total, .text = piece, .text_size = got > 0 ? (size_t)got : 0};
    return error;
}
