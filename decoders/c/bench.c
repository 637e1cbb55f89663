/* Speed of the decoder on one core:  tqcdec-bench FILE.tqc...
 *
 * For each file, the best of several runs: of decoding the payloads of all transform-coded tensors to coefficients,
 * checksums of their segments included, and of decoding the whole file to elements with every check.
 */
#include "tqcdec.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#if defined(__GNUC__) && defined(__x86_64__)
#define TICKS() __builtin_ia32_rdtsc()
#else
#define TICKS() 0ULL /* no counter of cycles here */
#endif

enum { RUNS = 15 };

typedef struct {
    double seconds;
    unsigned long long ticks;
} timing;

static timing now(void) {
    timing t;
    t.seconds = (double)clock() / CLOCKS_PER_SEC;
    t.ticks = TICKS();
    return t;
}

static void keep_best(timing *best, timing start) {
    timing t = now();
    t.seconds -= start.seconds;
    t.ticks -= start.ticks;
    if (best->seconds == 0 || t.seconds < best->seconds) best->seconds = t.seconds;
    if (best->ticks == 0 || t.ticks < best->ticks) best->ticks = t.ticks;
}

static void fail(const char *path, const char *message) {
    fprintf(stderr, "tqcdec-bench: %s: %s\n", path, message);
    exit(1);
}

static void *read_whole(const char *path, size_t *size) {
    FILE *f = fopen(path, "rb");
    char *bytes = NULL;
    long end = 0;
    if (f == NULL || fseek(f, 0, SEEK_END) != 0 || (end = ftell(f)) < 0) fail(path, "cannot be read");
    rewind(f);
    bytes = malloc((size_t)end + 1);
    if (bytes == NULL || fread(bytes, 1, (size_t)end, f) != (size_t)end) fail(path, "cannot be read");
    fclose(f);
    *size = (size_t)end;
    return bytes;
}

static void print_timing(const char *what, timing t, double weights, unsigned repeats) {
    double each = weights * repeats;
    printf("  %-24s %8.1f million weights/s %6.2f ns", what, each / t.seconds / 1e6, t.seconds / each * 1e9);
    if (t.ticks > 0) printf(" %6.1f cycles of the time-stamp counter a weight", (double)t.ticks / each);
    printf("\n");
}

static void measure(const char *path) {
    size_t size, i;
    unsigned repeats, r, k;
    void *data = read_whole(path, &size), *out;
    tqc_file *file;
    tqc_error error;
    tqc_workspace *workspace = tqc_workspace_open(NULL);
    tqc_coefficients coefficients;
    timing payloads = {0, 0}, whole = {0, 0};
    double weights = 0, elements = 0;
    if (workspace == NULL || tqc_open_memory(data, size, NULL, &file, &error) != TQC_DECODED) fail(path, error.message);
    for (i = 0; i < tqc_tensor_count(file); i++) {
        const tqc_tensor *t = tqc_tensor_at(file, i);
        elements += (double)t->elements;
        if (t->coding == TQC_TRANSFORM) weights += (double)t->elements;
    }
    out = malloc((size_t)tqc_bytes(file) + 1);
    if (out == NULL) fail(path, "out of memory");
    repeats = elements < 4e6 ? 1 + (unsigned)(4e6 / (elements + 1)) : 1;
    for (r = 0; r < RUNS; r++) {
        timing start = now();
        for (k = 0; k < repeats; k++)
            for (i = 0; i < tqc_tensor_count(file); i++)
                if (tqc_tensor_at(file, i)->coding == TQC_TRANSFORM &&
                    tqc_decode_coefficients(file, i, workspace, &coefficients, &error) != TQC_DECODED)
                    fail(path, error.message);
        keep_best(&payloads, start);
        start = now();
        for (k = 0; k < repeats; k++)
            if (tqc_decode_all(file, workspace, out, tqc_bytes(file), &error) != TQC_DECODED) fail(path, error.message);
        keep_best(&whole, start);
    }
    printf("%s: %.0f elements, %.3f bits each\n", path, elements, 8.0 * (double)size / elements);
    if (weights > 0) print_timing("payloads to coefficients", payloads, weights, repeats);
    print_timing("whole file to elements", whole, elements, repeats);
    printf("  workspace %.1f MiB\n", (double)tqc_workspace_peak(workspace) / (1 << 20));
    tqc_workspace_close(workspace);
    tqc_close(file);
    free(out);
    free(data);
}

int main(int argc, char **argv) {
    int i;
    if (argc < 2) {
        fprintf(stderr, "usage: tqcdec-bench FILE.tqc...\n");
        return 2;
    }
    for (i = 1; i < argc; i++) measure(argv[i]);
    return 0;
}
