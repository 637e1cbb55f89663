/* Fuzzing with libFuzzer:  make fuzz
 *
 * Built with FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION, in which every checksum counts as right. The first byte of an
 * input says what follows: 0 a whole file; 1 the tables and the segments of one tensor, without the container, so that
 * bytes may come and go: u8 type, u8 coding, u8 dimensions, u8 for each, u8 segments, u16 size of the tables, u16 size
 * of each segment but the last.
 */
#include "tqcdec.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_BYTES = 1 << 22 };

static const char *const types[] = {"BOOL", "U8",  "I8",      "U16",     "I16",  "U32", "I32", "U64",
                                    "I64",  "F16", "F8_E4M3", "F8_E5M2", "BF16", "F32", "F64"};

static void check(int condition) {
    if (!condition) abort();
}

static int read_memory(void *context, uint64_t offset, void *to, size_t size) {
    memcpy(to, (const uint8_t *)context + offset, size);
    return 0;
}

/* All tensors at once and one by one have to agree. */
static void decode_file(const uint8_t *data, size_t size) {
    tqc_options options;
    tqc_file *file;
    tqc_source source;
    tqc_workspace *workspace;
    tqc_coefficients coefficients;
    tqc_verdict all;
    tqc_error error;
    uint8_t *out, *single;
    size_t i;
    int decoded = 1;
    memset(&options, 0, sizeof options);
    options.decoded_limit = MOST_BYTES;
    options.memory_limit = UINT64_C(1) << 28;
    source.read = read_memory;
    source.context = (void *)(uintptr_t)data;
    source.length = size;
    if (tqc_open_source(&source, &options, &file, &error) != TQC_DECODED) {
        check(error.message[0] != '\0');
        return;
    }
    workspace = tqc_workspace_open(&options);
    out = malloc((size_t)tqc_bytes(file) + 1);
    single = malloc((size_t)tqc_bytes(file) + 1);
    check(workspace != NULL && out != NULL && single != NULL);
    all = tqc_decode_all(file, workspace, out, tqc_bytes(file), &error);
    check(all == tqc_decode_all(file, workspace, NULL, 0, &error));
    for (i = 0; i < tqc_tensor_count(file); i++) {
        const tqc_tensor *t = tqc_tensor_at(file, i);
        check(tqc_find(file, t->name, t->name_size) == (int64_t)i);
        if (tqc_decode(file, i, workspace, single, t->bytes, &error) != TQC_DECODED)
            decoded = 0;
        else
            check(all != TQC_DECODED || memcmp(single, out + t->position, (size_t)t->bytes) == 0);
        tqc_decode_coefficients(file, i, workspace, &coefficients, &error);
    }
    check(all == TQC_DECODED ? decoded : 1);
    tqc_workspace_close(workspace);
    tqc_close(file);
    free(out);
    free(single);
}

static void decode_parts(const uint8_t *data, size_t size) {
    enum { MOST_SEGMENTS = 8 };
    uint64_t shape[4], bytes;
    tqc_options options;
    tqc_tensor tensor;
    tqc_segment segments[MOST_SEGMENTS];
    tqc_tables *tables;
    tqc_workspace *workspace;
    const uint8_t *end = data + size;
    size_t tables_size, count, i;
    uint8_t *out;
    static const unsigned item_sizes[] = {1, 1, 1, 2, 2, 4, 4, 8, 8, 2, 1, 1, 2, 4, 8};
    if (size < 3) return;
    memset(&tensor, 0, sizeof tensor);
    memset(&options, 0, sizeof options);
    options.memory_limit = UINT64_C(1) << 28;
    tensor.dtype = types[data[0] % 15];
    bytes = item_sizes[data[0] % 15];
    tensor.coding = data[1] % 3;
    tensor.dimensions = data[2] % 5;
    tensor.shape = shape;
    data += 3;
    if ((size_t)(end - data) < tensor.dimensions + 3) return;
    for (i = 0; i < tensor.dimensions; i++) bytes *= shape[i] = *data++;
    if (bytes > MOST_BYTES) return;
    count = *data++ % (MOST_SEGMENTS + 1);
    tables_size = data[0] | (size_t)data[1] << 8;
    data += 2;
    if ((size_t)(end - data) < 2 * count + tables_size) return;
    for (i = 0; i < count; i++, data += 2) segments[i].size = data[0] | (size_t)data[1] << 8;
    if (tqc_tables_open(data, tables_size, &options, &tables, NULL) != TQC_DECODED) return;
    data += tables_size;
    for (i = 0; i < count; i++) {
        size_t left = (size_t)(end - data);
        if (i + 1 == count || segments[i].size > left) segments[i].size = left;
        segments[i].data = data;
        segments[i].crc = 0;
        segments[i].offset = -1;
        data += segments[i].size;
    }
    workspace = tqc_workspace_open(&options);
    out = malloc((size_t)bytes + 1);
    check(workspace != NULL && out != NULL);
    tqc_decode_segments(tables, &tensor, segments, count, workspace, out, bytes, NULL);
    tqc_workspace_close(workspace);
    tqc_tables_close(tables);
    free(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size == 0) return 0;
    if (data[0] % 2 == 0)
        decode_file(data + 1, size - 1);
    else
        decode_parts(data + 1, size - 1);
    return 0;
}
