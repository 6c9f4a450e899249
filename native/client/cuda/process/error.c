/*
 * Names and texts of CUDA errors, from the table that was recorded from the driver.
 *
 * Answered before cuInit and after the worker is lost, from any thread; reads constant memory only. For a number that is no
 * error of CUDA both functions give NULL and CUDA_ERROR_INVALID_VALUE, as the driver does.
 */
#include "tpc.h"

CUresult tpc_do_cuGetErrorName(CUresult error, const char **pStr) {
    *pStr = tpg_cuda_error_name((int)error);
    return *pStr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult tpc_do_cuGetErrorString(CUresult error, const char **pStr) {
    *pStr = tpg_cuda_error_text((int)error);
    return *pStr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
