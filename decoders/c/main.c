/* The command tqcdec: a .tqc file on standard input to a safetensors file on standard output.
 *
 *     tqcdec < model.tqc > model.safetensors
 *     tqcdec --batch        for each (u32 size, .tqc file): u8 verdict, u8 size + rule tag, u32 size + safetensors
 */
#include "tqcdec.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef _WIN32
#include <fcntl.h>
#include <io.h>
#endif

enum { EXIT_INTERNAL = 70 };

typedef struct {
    unsigned char *bytes;
    size_t size, room;
} buffer;

static void die(const char *message) {
    fprintf(stderr, "tqcdec: %s\n", message);
    exit(EXIT_INTERNAL);
}

static unsigned char *grow(buffer *b, size_t more) {
    if (more > b->room - b->size) {
        size_t room = b->room > 0 ? b->room : 4096;
        while (room - b->size < more) {
            if (room > SIZE_MAX / 2) die("out of memory");
            room *= 2;
        }
        b->bytes = realloc(b->bytes, room);
        if (b->bytes == NULL) die("out of memory");
        b->room = room;
    }
    b->size += more;
    return b->bytes + b->size - more;
}

static void append(buffer *b, const char *text) {
    size_t n = strlen(text);
    memcpy(grow(b, n), text, n);
}

static void append_number(buffer *b, uint64_t value) {
    char digits[24];
    sprintf(digits, "%llu", (unsigned long long)value);
    append(b, digits);
}

/* A JSON string of UTF-8 text. */
static void append_string(buffer *b, const char *text, size_t size) {
    size_t i;
    append(b, "\"");
    for (i = 0; i < size; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c == '"' || c == '\\') {
            append(b, "\\");
            *grow(b, 1) = c;
        } else if (c < 0x20) {
            char escape[8];
            sprintf(escape, "\\u%04x", c);
            append(b, escape);
        } else {
            *grow(b, 1) = c;
        }
    }
    append(b, "\"");
}

/* The header of a safetensors file; its length goes before it. */
static void append_header(buffer *b, const tqc_file *file) {
    size_t start = b->size + 8, i, k;
    uint64_t size;
    grow(b, 8);
    append(b, "{");
    for (i = 0; i < tqc_metadata_count(file); i++) {
        tqc_text pair = tqc_metadata_at(file, i);
        append(b, i == 0 ? "\"__metadata__\":{" : ",");
        append_string(b, pair.key, pair.key_size);
        append(b, ":");
        append_string(b, pair.value, pair.value_size);
    }
    if (i > 0) append(b, "}");
    for (i = 0; i < tqc_tensor_count(file); i++) {
        const tqc_tensor *t = tqc_tensor_at(file, i);
        if (b->size > start + 1) append(b, ",");
        append_string(b, t->name, t->name_size);
        append(b, ":{\"dtype\":\"");
        append(b, t->dtype);
        append(b, "\",\"shape\":[");
        for (k = 0; k < t->dimensions; k++) {
            if (k > 0) append(b, ",");
            append_number(b, t->shape[k]);
        }
        append(b, "],\"data_offsets\":[");
        append_number(b, t->position);
        append(b, ",");
        append_number(b, t->position + t->bytes);
        append(b, "]}");
    }
    append(b, "}");
    while ((b->size - start) % 8 != 0) append(b, " ");
    size = b->size - start;
    for (i = 0; i < 8; i++) b->bytes[start - 8 + i] = (unsigned char)(size >> 8 * i);
}

/* Decode a file into `out`, which is left empty unless the verdict is TQC_DECODED. */
static tqc_verdict convert(const buffer *in, buffer *out, tqc_error *error) {
    tqc_options options;
    tqc_file *file;
    tqc_workspace *workspace;
    tqc_verdict verdict;
    uint64_t bytes;
    int supported = 1;
    size_t i;
    memset(&options, 0, sizeof options);
    verdict = tqc_open_memory(in->bytes, in->size, &options, &file, error);
    if (verdict != TQC_DECODED) return verdict;
    bytes = tqc_bytes(file);
    if (bytes > SIZE_MAX) die("the tensors do not fit in memory");
    /* The limit on decoded bytes is what bounds this program. */
    options.memory_limit = ((uint64_t)1 << 30) + 64 * bytes;
    workspace = tqc_workspace_open(&options);
    if (workspace == NULL) die("out of memory");
    for (i = 0; i < tqc_tensor_count(file); i++) supported &= tqc_tensor_at(file, i)->supported;
    if (supported) {
        append_header(out, file);
        grow(out, (size_t)bytes);
        verdict = tqc_decode_all(file, workspace, out->bytes + out->size - bytes, bytes, error);
    } else {
        verdict = tqc_decode_all(file, workspace, NULL, 0, error);
    }
    if (verdict != TQC_DECODED) out->size = 0;
    tqc_workspace_close(workspace);
    tqc_close(file);
    if (verdict == TQC_NO_MEMORY) die("out of memory");
    return verdict;
}

static void report(const tqc_error *error) {
    static const char *const words[] = {"decoded", "malformed", "misuse", "unsupported", "limit"};
    const char *p;
    fprintf(stderr, "%s: [%s]", words[error->verdict], error->rule);
    if (error->offset >= 0) fprintf(stderr, " at byte %lld", (long long)error->offset);
    if (error->tensor >= 0) {
        fprintf(stderr, "%s tensor '", error->offset >= 0 ? "," : " in");
        for (p = error->name; *p != '\0'; p++) putc((unsigned char)*p < 0x20 || *p == 0x7F ? '?' : *p, stderr);
        putc('\'', stderr);
    }
    fprintf(stderr, ": %s\n", error->message);
}

static void write_out(const void *bytes, size_t size) {
    if (size > 0 && fwrite(bytes, 1, size, stdout) != size) die("cannot write");
}

static void write_u32(size_t value) {
    unsigned char bytes[4];
    int i;
    if (value > 0xFFFFFFFFu) die("a result is longer than 4 GiB");
    for (i = 0; i < 4; i++) bytes[i] = (unsigned char)(value >> 8 * i);
    write_out(bytes, 4);
}

static int run_batch(void) {
    buffer in = {NULL, 0, 0}, out = {NULL, 0, 0};
    unsigned char size[4];
    size_t got;
    while ((got = fread(size, 1, 4, stdin)) == 4) {
        tqc_error error;
        tqc_verdict verdict;
        unsigned char tag[2];
        size_t n = size[0] | (size_t)size[1] << 8 | (size_t)size[2] << 16 | (size_t)size[3] << 24;
        in.size = out.size = 0;
        grow(&in, n);
        if (fread(in.bytes, 1, n, stdin) != n) die("standard input ends within a file");
        verdict = convert(&in, &out, &error);
        tag[0] = (unsigned char)verdict;
        tag[1] = (unsigned char)strlen(error.rule);
        write_out(tag, 2);
        write_out(error.rule, tag[1]);
        write_u32(out.size);
        write_out(out.bytes, out.size);
        if (fflush(stdout) != 0) die("cannot write");
    }
    if (got != 0 || ferror(stdin)) die("standard input ends within a size");
    free(in.bytes);
    free(out.bytes);
    return 0;
}

static int run_once(void) {
    buffer in = {NULL, 0, 0}, out = {NULL, 0, 0};
    tqc_error error;
    tqc_verdict verdict;
    size_t got;
    do {
        unsigned char *to = grow(&in, 65536);
        got = fread(to, 1, 65536, stdin);
        in.size -= 65536 - got;
    } while (got > 0);
    if (ferror(stdin)) die("cannot read");
    verdict = convert(&in, &out, &error);
    if (verdict == TQC_DECODED) {
        write_out(out.bytes, out.size);
        if (fflush(stdout) != 0) die("cannot write");
    } else {
        report(&error);
    }
    free(in.bytes);
    free(out.bytes);
    return verdict;
}

int main(int argc, char **argv) {
#ifdef _WIN32
    _setmode(_fileno(stdin), _O_BINARY);
    _setmode(_fileno(stdout), _O_BINARY);
#endif
    if (argc == 1) return run_once();
    if (argc == 2 && strcmp(argv[1], "--batch") == 0) return run_batch();
    fprintf(stderr, "usage: tqcdec [--batch] < model.tqc > model.safetensors\n");
    return TQC_MISUSE;
}
