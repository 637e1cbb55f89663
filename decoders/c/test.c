/* Tests of the library:  tqcdec-test [FILE.tqc...]
 *
 * The file of chapter 13 by itself and, with each further file that decodes: every way to decode gives the same, every
 * allocation may fail, every read may fail, every limit on memory is kept, every prefix and every flipped bit of a
 * small file is refused.
 */
#include "tqcdec.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const uint8_t example[] = {
    0x89, 0x54, 0x51, 0x43, 0x0d, 0x0a, 0x1a, 0x0a, 0x00, 0x09, 0x00, 0x00, 0xe4, 0x00, 0x00, 0x00, 0xe4, 0x00, 0x00,
    0x00, 0xf0, 0x64, 0xad, 0xfb, 0x77, 0x59, 0x91, 0x45, 0x83, 0xa7, 0x62, 0x75, 0x6e, 0x64, 0x6c, 0x65, 0x73, 0x91,
    0x92, 0x10, 0xce, 0x85, 0x35, 0xee, 0x2a, 0xa6, 0x74, 0x61, 0x62, 0x6c, 0x65, 0x73, 0x93, 0x24, 0xce, 0xf1, 0x97,
    0x22, 0x49, 0x00, 0xa7, 0x74, 0x65, 0x6e, 0x73, 0x6f, 0x72, 0x73, 0x94, 0x86, 0xa5, 0x63, 0x68, 0x65, 0x63, 0x6b,
    0xce, 0xe4, 0xca, 0x1a, 0x44, 0xa6, 0x63, 0x6f, 0x64, 0x69, 0x6e, 0x67, 0x02, 0xa5, 0x64, 0x74, 0x79, 0x70, 0x65,
    0xa3, 0x46, 0x33, 0x32, 0xa4, 0x6e, 0x61, 0x6d, 0x65, 0xa1, 0x77, 0xa8, 0x73, 0x65, 0x67, 0x6d, 0x65, 0x6e, 0x74,
    0x73, 0x91, 0x92, 0x34, 0xce, 0xaa, 0x92, 0x4d, 0x9d, 0xa5, 0x73, 0x68, 0x61, 0x70, 0x65, 0x94, 0x05, 0x01, 0x02,
    0x02, 0x86, 0xa6, 0x62, 0x75, 0x6e, 0x64, 0x6c, 0x65, 0x00, 0xa5, 0x63, 0x68, 0x65, 0x63, 0x6b, 0xce, 0xa0, 0xff,
    0x73, 0x6d, 0xa6, 0x63, 0x6f, 0x64, 0x69, 0x6e, 0x67, 0x01, 0xa5, 0x64, 0x74, 0x79, 0x70, 0x65, 0xa3, 0x46, 0x33,
    0x32, 0xa4, 0x6e, 0x61, 0x6d, 0x65, 0xa1, 0x62, 0xa5, 0x73, 0x68, 0x61, 0x70, 0x65, 0x91, 0x03, 0x82, 0xa4, 0x6e,
    0x61, 0x6d, 0x65, 0xa1, 0x74, 0xa7, 0x73, 0x61, 0x6d, 0x65, 0x5f, 0x61, 0x73, 0x00, 0x86, 0xa5, 0x63, 0x68, 0x65,
    0x63, 0x6b, 0x00, 0xa6, 0x63, 0x6f, 0x64, 0x69, 0x6e, 0x67, 0x00, 0xa5, 0x64, 0x74, 0x79, 0x70, 0x65, 0xa3, 0x49,
    0x36, 0x34, 0xa4, 0x6e, 0x61, 0x6d, 0x65, 0xa1, 0x65, 0xa8, 0x73, 0x65, 0x67, 0x6d, 0x65, 0x6e, 0x74, 0x73, 0x90,
    0xa5, 0x73, 0x68, 0x61, 0x70, 0x65, 0x92, 0x00, 0x02, 0x04, 0x03, 0x00, 0x01, 0xd0, 0x0f, 0xe8, 0x07, 0x60, 0x01,
    0x00, 0x01, 0xd0, 0x16, 0xd8, 0x04, 0x00, 0x01, 0x03, 0x04, 0x80, 0x08, 0x80, 0x08, 0x80, 0x08, 0x80, 0x08, 0x00,
    0x00, 0x00, 0x02, 0x80, 0x10, 0x80, 0x10, 0x05, 0x00, 0x02, 0x02, 0x03, 0xfc, 0x01, 0x01, 0x00, 0x00, 0x00, 0x00,
    0xa0, 0x00, 0xa5, 0x00, 0x00, 0x01, 0x02, 0x02, 0x03, 0x09, 0x01, 0x03, 0x00, 0x06, 0x02, 0x00, 0x00, 0x02, 0x02,
    0x02, 0x02, 0x01, 0x02, 0x02, 0x01, 0x02, 0x0b, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, 0x02, 0x55,
    0x02, 0x00, 0x01, 0x01, 0x00, 0x00, 0x00, 0x97, 0xff, 0x59, 0x01, 0x01, 0x01, 0xe9, 0x41, 0xd1, 0xe8, 0xfd,
};

static const float w[] = {2.25f,   1.5f,  1.5f,   2.25f, -2.0625f, -1.875f, -1.6875f, -1.875f, 0.9375f, 1.125f,
                          0.9375f, 0.75f, -6.75f, -4.5f, -4.5f,    -6.75f,  4.875f,   2.25f,   2.625f,  5.25f};
static const float b[] = {-1.5f, 0.75f, 1.25f};

#define CHECK(condition) check(condition, #condition, __LINE__)

static void check(int condition, const char *text, int line) {
    if (condition) return;
    fprintf(stderr, "tqcdec-test: line %d: %s\n", line, text);
    exit(1);
}

/* Elements of a file are little-endian on any machine. */
static int is_f32(const uint8_t *out, const float *expected, size_t n) {
    size_t i;
    for (i = 0; i < n; i++, out += 4) {
        uint32_t bits = out[0] | (uint32_t)out[1] << 8 | (uint32_t)out[2] << 16 | (uint32_t)out[3] << 24, pattern;
        memcpy(&pattern, &expected[i], 4);
        if (bits != pattern) return 0;
    }
    return 1;
}

/* An allocator that counts, and fails at one call. */
typedef struct {
    uint64_t calls, fail_at, held, peak;
} counter;

static void *count_allocate(void *context, size_t size) {
    counter *c = context;
    if (++c->calls == c->fail_at) return NULL;
    c->held += size;
    if (c->held > c->peak) c->peak = c->held;
    return malloc(size);
}

static void count_release(void *context, void *pointer, size_t size) {
    counter *c = context;
    c->held -= size;
    free(pointer);
}

static tqc_options counting(counter *c) {
    tqc_options options;
    memset(&options, 0, sizeof options);
    memset(c, 0, sizeof *c);
    options.allocate = count_allocate;
    options.release = count_release;
    options.context = c;
    return options;
}

typedef struct {
    const uint8_t *data;
    uint64_t calls, fail_at;
} failing_source;

static int read_source(void *context, uint64_t offset, void *to, size_t size) {
    failing_source *s = context;
    if (++s->calls == s->fail_at) return 1;
    memcpy(to, s->data + offset, size);
    return 0;
}

static tqc_verdict open_source(failing_source *s, size_t size, const tqc_options *options, tqc_file **file) {
    tqc_source source;
    source.read = read_source;
    source.context = s;
    source.length = size;
    return tqc_open_source(&source, options, file, NULL);
}

/* Decode all tensors of a file in memory into `out`, which has room for them. */
static tqc_verdict decode(const uint8_t *data, size_t size, const tqc_options *options, uint8_t *out,
                          tqc_error *error) {
    tqc_file *file;
    tqc_workspace *workspace;
    tqc_verdict verdict = tqc_open_memory(data, size, options, &file, error);
    if (verdict != TQC_DECODED) return verdict;
    workspace = tqc_workspace_open(options);
    verdict = workspace == NULL ? TQC_NO_MEMORY : tqc_decode_all(file, workspace, out, tqc_bytes(file), error);
    tqc_workspace_close(workspace);
    tqc_close(file);
    return verdict;
}

static void test_example(void) {
    tqc_file *file;
    tqc_error error;
    tqc_coefficients c;
    tqc_workspace *workspace = tqc_workspace_open(NULL);
    const tqc_tensor *t;
    uint8_t out[80];
    static const int32_t coefficients[] = {2, 0, -2, 2, 1, -2, -6, 0, 2, 2};
    CHECK(tqc_open_memory(example, sizeof example, NULL, &file, &error) == TQC_DECODED);
    CHECK(error.verdict == TQC_DECODED && error.offset == -1 && error.rule[0] == '\0');
    CHECK(tqc_tensor_count(file) == 4 && tqc_metadata_count(file) == 0 && tqc_tensor_at(file, 4) == NULL);
    CHECK(tqc_bytes(file) == 4 * (20 + 3 + 20));
    CHECK(tqc_find(file, "w", 1) == 0 && tqc_find(file, "b", 1) == 1 && tqc_find(file, "t", 1) == 2 &&
          tqc_find(file, "e", 1) == 3);
    CHECK(tqc_find(file, "", 0) == -1 && tqc_find(file, "ww", 2) == -1);
    t = tqc_tensor_at(file, 2);
    CHECK(t->same_as == 0 && t->dimensions == 4 && t->elements == 20 && strcmp(t->dtype, "F32") == 0 &&
          t->position == 92);
    CHECK(tqc_tensor_at(file, 1)->bundle == 0 && tqc_tensor_at(file, 3)->elements == 0);
    CHECK(tqc_decode(file, 0, workspace, out, sizeof w, &error) == TQC_DECODED && is_f32(out, w, 20));
    CHECK(tqc_decode(file, 1, workspace, out, sizeof b, NULL) == TQC_DECODED && is_f32(out, b, 3));
    CHECK(tqc_decode(file, 2, workspace, out, sizeof w, &error) == TQC_DECODED && is_f32(out, w, 20));
    CHECK(tqc_decode(file, 3, workspace, out, 0, &error) == TQC_DECODED);
    CHECK(tqc_decode(file, 0, workspace, out, sizeof w - 1, &error) == TQC_MISUSE && strcmp(error.name, "w") == 0);
    CHECK(tqc_decode(file, 9, workspace, out, sizeof w, &error) == TQC_MISUSE);
    CHECK(tqc_decode_coefficients(file, 1, workspace, &c, &error) == TQC_MISUSE);
    CHECK(tqc_decode_coefficients(file, 2, workspace, &c, &error) == TQC_DECODED);
    CHECK(c.channels[0] == 5 && c.channels[1] == 1 && c.channels[2] == 2 && c.length[2] == 4 && c.kept == 2);
    CHECK(c.scale_mantissa == 3 && c.scale_exponent == -5 && c.quantizer == 1 && c.steps == 3);
    CHECK(memcmp(c.coefficients, coefficients, sizeof coefficients) == 0);
    CHECK(c.basis[0] == NULL && c.basis[2] != NULL && c.basis[2][0] == 12 && c.basis[2][5] == -2 && c.depths[1] == 2);
    CHECK(tqc_expand(c.row_scales[4], 5) == 2 && tqc_expand(255, 3) == (uint64_t)15 << 30);
    tqc_workspace_close(workspace);
    tqc_close(file);
}

static void test_segments(void) {
    static const uint64_t shape[] = {5, 1, 2, 2};
    tqc_tables *tables;
    tqc_tensor tensor;
    tqc_segment segment;
    tqc_error error;
    tqc_workspace *workspace = tqc_workspace_open(NULL);
    uint8_t out[80];
    memset(&tensor, 0, sizeof tensor);
    tensor.name = "w";
    tensor.name_size = 1;
    tensor.dtype = "F32";
    tensor.dimensions = 4;
    tensor.shape = shape;
    tensor.coding = TQC_TRANSFORM;
    tensor.check = 0xe4ca1a44;
    segment.data = example + 308;
    segment.size = 52;
    segment.crc = 0xaa924d9d;
    segment.offset = 308;
    CHECK(tqc_tables_open(example + 256, 36, NULL, &tables, &error) == TQC_DECODED);
    CHECK(tqc_decode_segments(tables, &tensor, &segment, 1, workspace, out, sizeof out, &error) == TQC_DECODED);
    CHECK(is_f32(out, w, 20));
    CHECK(tqc_decode_segments(tables, &tensor, &segment, 1, workspace, out, 4, &error) == TQC_MISUSE);
    CHECK(tqc_decode_segments(tables, &tensor, &segment, 0, workspace, out, sizeof out, &error) == TQC_MALFORMED);
    CHECK(strcmp(error.rule, "tensor.segments") == 0 && strcmp(error.name, "w") == 0);
    segment.crc++;
    CHECK(tqc_decode_segments(tables, &tensor, &segment, 1, workspace, out, sizeof out, &error) == TQC_MALFORMED);
    CHECK(strcmp(error.rule, "segment.crc") == 0 && error.offset == 308);
    tensor.dtype = "F4";
    segment.crc--;
    CHECK(tqc_decode_segments(tables, &tensor, &segment, 1, workspace, out, sizeof out, &error) == TQC_UNSUPPORTED);
    tqc_tables_close(tables);
    CHECK(tqc_tables_open(example + 256, 35, NULL, &tables, &error) == TQC_MALFORMED && tables == NULL);
    CHECK(tqc_tables_open(NULL, 0, NULL, &tables, &error) == TQC_DECODED);
    tqc_tables_close(tables);
    tqc_workspace_close(workspace);
}

static void test_limits(void) {
    tqc_options options;
    tqc_file *file;
    tqc_error error;
    memset(&options, 0, sizeof options);
    options.decoded_limit = 171;
    CHECK(tqc_open_memory(example, sizeof example, &options, &file, &error) == TQC_LIMIT && file == NULL);
    CHECK(strcmp(error.rule, "limit.decoded") == 0);
    options.decoded_limit = 172;
    CHECK(tqc_open_memory(example, sizeof example, &options, &file, &error) == TQC_DECODED);
    tqc_close(file);
    options.memory_limit = 1;
    CHECK(tqc_open_memory(example, sizeof example, &options, &file, &error) == TQC_LIMIT);
    CHECK(strcmp(error.rule, "limit.memory") == 0);
}

/* Tensors i of i mod 2 == `part`, each to a place of its own, are those of the whole file; no others are written. */
static void test_each(const tqc_file *file, tqc_workspace *workspace, const uint8_t *expected, size_t part) {
    size_t count = tqc_tensor_count(file), i;
    void **out = calloc(count + 1, sizeof *out);
    CHECK(out != NULL);
    for (i = part; i < count; i += 2) {
        CHECK((out[i] = malloc((size_t)tqc_tensor_at(file, i)->bytes + 1)) != NULL);
    }
    CHECK(tqc_decode_each(file, workspace, out, NULL) == TQC_DECODED);
    for (i = part; i < count; i += 2) {
        const tqc_tensor *t = tqc_tensor_at(file, i);
        CHECK(t->same_as >= 0 || memcmp(out[i], expected + t->position, (size_t)t->bytes) == 0);
        free(out[i]);
    }
    free(out);
}

/* Every tensor by itself, and the file from a source, give what the whole file in memory gives. */
static void test_ways(const uint8_t *data, size_t size, const uint8_t *expected) {
    failing_source from;
    tqc_file *file;
    tqc_workspace *workspace = tqc_workspace_open(NULL);
    size_t i;
    from.data = data;
    from.calls = from.fail_at = 0;
    CHECK(open_source(&from, size, NULL, &file) == TQC_DECODED);
    for (i = 0; i < tqc_tensor_count(file); i++) {
        const tqc_tensor *t = tqc_tensor_at(file, i);
        uint8_t *out = malloc((size_t)t->bytes + 1);
        CHECK(out != NULL && tqc_decode(file, i, workspace, out, t->bytes, NULL) == TQC_DECODED);
        CHECK(memcmp(out, expected + t->position, (size_t)t->bytes) == 0);
        free(out);
    }
    CHECK(tqc_decode_all(file, workspace, NULL, 0, NULL) == TQC_DECODED);
    test_each(file, workspace, expected, 0);
    test_each(file, workspace, expected, 1);
    tqc_workspace_close(workspace);
    tqc_close(file);
}

/* The sum of 10.2 for one weight, term by term. */
static double weight_sum(const tqc_coefficients *c, uint64_t o, uint64_t i, uint64_t t) {
    double sum = 0;
    uint64_t row, k;
    for (row = 0; row < c->channels[0]; row++) {
        double out = c->basis[0] != NULL ? c->basis[0][row * c->length[0] + o] : row == o;
        for (k = 0; out != 0 && k < c->kept; k++) {
            uint64_t in = c->column[k] / c->channels[2], tap = c->column[k] % c->channels[2];
            double term =
                out * c->coefficients[row * c->kept + k] * (double)tqc_expand(c->multipliers[c->column[k]], 3);
            term *= c->basis[1] != NULL ? c->basis[1][in * c->length[1] + i] : in == i;
            term *= c->basis[2] != NULL ? c->basis[2][tap * c->length[2] + t] : tap == t;
            sum += term;
        }
    }
    return sum;
}

/* The weight of a place of a tensor, by the roles of its dimensions. */
static double weight_at(const tqc_coefficients *c, const tqc_tensor *t, uint64_t place) {
    uint64_t position[3] = {0, 0, 0}, below[3] = {1, 1, 1};
    unsigned d = t->dimensions;
    while (d-- > 0) { /* the last dimension of an axis varies fastest */
        position[c->roles[d]] += place % t->shape[d] * below[c->roles[d]];
        below[c->roles[d]] *= t->shape[d];
        place /= t->shape[d];
    }
    return (weight_sum(c, position[0], position[1], position[2]) + 0.0) *
           (ldexp(c->scale_mantissa, c->scale_exponent) * (double)tqc_expand(c->row_scales[position[0]], 5));
}

/* The weights that follow from a copy of each record, when the workspace has long been used again, are the tensor's. */
static void test_records(const uint8_t *data, size_t size, const uint8_t *expected) {
    tqc_file *file;
    tqc_workspace *workspace = tqc_workspace_open(NULL);
    size_t i;
    uint64_t n;
    CHECK(tqc_open_memory(data, size, NULL, &file, NULL) == TQC_DECODED);
    for (i = 0; i < tqc_tensor_count(file); i++) {
        const tqc_tensor *t = tqc_tensor_at(file, i);
        tqc_coefficients c, copy;
        void *memory;
        if (t->coding != TQC_TRANSFORM || strcmp(t->dtype, "F32") != 0) continue;
        CHECK(tqc_decode_coefficients(file, i, workspace, &c, NULL) == TQC_DECODED && c.dimensions == t->dimensions);
        CHECK((memory = malloc((size_t)tqc_coefficients_size(&c) + 1)) != NULL);
        tqc_coefficients_copy(&c, memory, &copy);
        CHECK(tqc_decode_all(file, workspace, NULL, 0, NULL) == TQC_DECODED);
        for (n = 0; n < t->elements; n += 1 + t->elements / 500) {
            double exact = weight_at(&copy, t, n);
            float weight = (float)(exact > FLT_MAX ? FLT_MAX : exact < -FLT_MAX ? -FLT_MAX : exact);
            CHECK(is_f32(expected + t->position + 4 * n, &weight, 1));
        }
        free(memory);
    }
    tqc_workspace_close(workspace);
    tqc_close(file);
}

static void test_failing_allocations(const uint8_t *data, size_t size, uint8_t *out, const uint8_t *expected,
                                     uint64_t bytes) {
    counter c;
    tqc_options options = counting(&c);
    uint64_t k = 0, needed, limit;
    tqc_verdict verdict;
    do {
        c.calls = 0;
        c.fail_at = ++k;
        verdict = decode(data, size, &options, out, NULL);
        CHECK(c.held == 0);
        CHECK(verdict == TQC_NO_MEMORY || verdict == TQC_DECODED);
    } while (verdict == TQC_NO_MEMORY);
    CHECK(c.calls < k);
    CHECK(memcmp(out, expected, (size_t)bytes) == 0);
    /* The limit is kept, and with what was needed it suffices. */
    needed = c.peak;
    for (limit = 64; limit < 2 * needed; limit += limit / 4) {
        options = counting(&c);
        options.memory_limit = limit;
        verdict = decode(data, size, &options, out, NULL);
        CHECK(verdict == TQC_LIMIT || verdict == TQC_DECODED);
        CHECK(c.held == 0 && c.peak <= 2 * limit + 4096); /* a file and a workspace, which has a few bytes of its own */
    }
    CHECK(verdict == TQC_DECODED && memcmp(out, expected, (size_t)bytes) == 0);
}

static void test_failing_reads(const uint8_t *data, size_t size, uint8_t *out) {
    failing_source from;
    tqc_verdict verdict;
    uint64_t k = 0;
    from.data = data;
    do {
        tqc_file *file;
        from.calls = 0;
        from.fail_at = ++k;
        verdict = open_source(&from, size, NULL, &file);
        if (verdict == TQC_DECODED) {
            tqc_workspace *workspace = tqc_workspace_open(NULL);
            verdict = tqc_decode_all(file, workspace, out, tqc_bytes(file), NULL);
            tqc_workspace_close(workspace);
            tqc_close(file);
        }
        CHECK(verdict == TQC_READ_FAILED || verdict == TQC_DECODED);
    } while (verdict == TQC_READ_FAILED);
}

/* A flipped bit may make a file unsupported only in the version and the flags, and there its checksum stands before. */
static void test_damage(const uint8_t *data, size_t size, uint8_t *out) {
    size_t n;
    tqc_error error;
    for (n = 0; n < 8 * size; n++) {
        uint8_t *copy = malloc(size);
        CHECK(copy != NULL);
        memcpy(copy, data, size);
        copy[n / 8] ^= (uint8_t)(1 << n % 8);
        CHECK(decode(copy, size, NULL, out, &error) == TQC_MALFORMED && error.rule[0] != '\0' &&
              error.message[0] != '\0');
        free(copy);
    }
    for (n = 0; n < size; n++) {
        uint8_t *copy = malloc(n + 1);
        CHECK(copy != NULL);
        memcpy(copy, data, n);
        CHECK(decode(copy, n, NULL, out, NULL) == TQC_MALFORMED);
        free(copy);
    }
}

static void test_file(const uint8_t *data, size_t size) {
    tqc_file *file;
    tqc_verdict verdict = tqc_open_memory(data, size, NULL, &file, NULL);
    uint64_t bytes;
    uint8_t *expected, *out;
    CHECK(verdict == TQC_DECODED);
    bytes = tqc_bytes(file);
    tqc_close(file);
    expected = malloc((size_t)bytes + 1);
    out = malloc((size_t)bytes + 1);
    CHECK(expected != NULL && out != NULL);
    CHECK(decode(data, size, NULL, expected, NULL) == TQC_DECODED);
    test_ways(data, size, expected);
    test_records(data, size, expected);
    test_failing_reads(data, size, out);
    if (size < 4096) {
        test_failing_allocations(data, size, out, expected, bytes);
        test_damage(data, size, out);
    }
    free(expected);
    free(out);
}

static void test_path(const char *path) {
    FILE *f = fopen(path, "rb");
    uint8_t *data;
    long size;
    CHECK(f != NULL);
    CHECK(fseek(f, 0, SEEK_END) == 0);
    size = ftell(f);
    CHECK(size >= 0);
    rewind(f);
    data = malloc((size_t)size + 1);
    CHECK(data != NULL && fread(data, 1, (size_t)size, f) == (size_t)size);
    fclose(f);
    test_file(data, (size_t)size);
    free(data);
}

int main(int argc, char **argv) {
    int i;
    test_example();
    test_segments();
    test_limits();
    test_file(example, sizeof example);
    for (i = 1; i < argc; i++) test_path(argv[i]);
    printf("tqcdec-test: %d files, no failure\n", argc);
    return 0;
}
