#include "tp_config.h"
#include <stdio.h>
enum tp_status tp_fetch_connection(const char *url, char *text, size_t text_size, char *why, size_t why_size) {
    (void)url; (void)text; (void)text_size;
    snprintf(why, why_size, "TENSOR_FUSION_OPERATOR_GET_CONNECTION_URL is not supported yet; set TENSOR_FUSION_OPERATOR_CONNECTION_INFO.");
    return TP_ERROR_CONFIG;
}
