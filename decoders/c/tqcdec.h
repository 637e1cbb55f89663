/* Decoder of the .tqc format, version 0.9 (spec/tqc.md).
 *
 * Any bytes whatever end in a verdict; nothing is printed, no global state is kept and no memory is taken but through
 * the caller's allocator, up to the caller's limit. An open file is immutable: threads may decode its tensors at the
 * same time, each with a workspace of its own. Rounding follows IEEE 754 with the floating-point environment at its
 * defaults.
 */
#ifndef TQCDEC_H
#define TQCDEC_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TQC_MAJOR 0
#define TQC_MINOR 9

/* The verdicts of chapter 12.1, and what concerns the caller alone. */
typedef enum {
    TQC_DECODED = 0,
    TQC_MALFORMED = 1,   /* the file breaks a rule */
    TQC_MISUSE = 2,      /* an argument is wrong; the file has nothing to do with it */
    TQC_UNSUPPORTED = 3, /* legal, but beyond version 0.9 */
    TQC_LIMIT = 4,       /* more memory or more decoded bytes than the caller allows */
    TQC_NO_MEMORY = 5,   /* the caller's allocator returned NULL */
    TQC_READ_FAILED = 6  /* the caller's read function failed */
} tqc_verdict;

typedef struct {
    tqc_verdict verdict;
    const char *rule;    /* rule tag without brackets, "" if there is none; a static string */
    const char *message; /* what is wrong; a static string */
    int64_t offset;      /* byte of the file, -1 if unknown */
    int64_t tensor;      /* index of the tensor, -1 if none is concerned */
    char name[256];      /* its name in UTF-8, cut to whole characters; "" if there is none */
} tqc_error;

/* All members may be 0: malloc and free, 1 GiB of memory, the limit of chapter 12.1. */
typedef struct {
    void *(*allocate)(void *context, size_t size); /* aligned for any type, NULL on failure */
    void (*release)(void *context, void *pointer, size_t size);
    void *context;
    uint64_t memory_limit;  /* bytes taken for one file, or for one workspace */
    uint64_t decoded_limit; /* bytes of all tensors together; default 32 MiB + 1000 * length of the file */
} tqc_options;

/* Bytes from somewhere. `read` fills the buffer with bytes offset .. offset + size - 1 and returns 0, or anything else
 * on failure. Threads that decode at the same time call it at the same time. */
typedef struct {
    int (*read)(void *context, uint64_t offset, void *buffer, size_t size);
    void *context;
    uint64_t length;
} tqc_source;

typedef enum { TQC_RAW = 0, TQC_PLANES = 1, TQC_TRANSFORM = 2 } tqc_coding;

typedef struct tqc_file tqc_file;
typedef struct tqc_tables tqc_tables;
typedef struct tqc_workspace tqc_workspace;

/* What the directory says of a tensor (4.3). A tied tensor has what the one it is tied to has, but its name. */
typedef struct {
    const char *name;
    size_t name_size;   /* the name may hold bytes of 0 */
    const char *dtype;  /* name of 4.6; ends in 0. NULL if it is unknown, and then `bytes` is 0 */
    unsigned item_size; /* bytes of an element */
    unsigned dimensions;
    const uint64_t *shape;
    uint64_t elements;
    uint64_t bytes;
    uint64_t position; /* of its bytes when all tensors are laid back to back in order */
    unsigned coding;   /* tqc_coding, or an unknown number */
    int64_t same_as;   /* index of the tensor it is tied to, or -1 */
    int64_t bundle;    /* index of its bundle, or -1 */
    uint32_t check;
    int has_snr;
    int32_t snr;   /* hundredths of a decibel */
    int supported; /* 0: type, coding or bundle is unknown to this version */
} tqc_tensor;

typedef struct {
    const char *key, *value;
    size_t key_size, value_size;
} tqc_text;

/* ---- files ---- */

/* Read header, directory and tables. On success *file is to be closed; memory given to tqc_open_memory has to stay.
 * `options` may be NULL, so may `error` here and everywhere. */
tqc_verdict tqc_open_memory(const void *data, size_t size, const tqc_options *options, tqc_file **file,
                            tqc_error *error);
tqc_verdict tqc_open_source(const tqc_source *source, const tqc_options *options, tqc_file **file, tqc_error *error);
void tqc_close(tqc_file *file);

size_t tqc_tensor_count(const tqc_file *file);
const tqc_tensor *tqc_tensor_at(const tqc_file *file, size_t index);        /* NULL beyond the last */
int64_t tqc_find(const tqc_file *file, const char *name, size_t name_size); /* index or -1 */
uint64_t tqc_bytes(const tqc_file *file); /* of all tensors together, tied ones included */
size_t tqc_metadata_count(const tqc_file *file);
tqc_text tqc_metadata_at(const tqc_file *file, size_t index);
const tqc_tables *tqc_file_tables(const tqc_file *file);

/* ---- decoding ---- */

/* Scratch memory of one thread; NULL if the allocator fails. A workspace serves any number of files, one call at a
 * time. */
tqc_workspace *tqc_workspace_open(const tqc_options *options);
void tqc_workspace_close(tqc_workspace *workspace);
uint64_t tqc_workspace_peak(const tqc_workspace *workspace); /* largest memory taken so far */

/* Decode one tensor into `out`, which has exactly its `bytes`: row-major order, least significant byte first. What
 * concerns other tensors only is not checked; a tensor in a bundle costs the decoding of the bundle. On any verdict but
 * TQC_DECODED the contents of `out` are undefined. */
tqc_verdict tqc_decode(const tqc_file *file, size_t index, tqc_workspace *workspace, void *out, uint64_t size,
                       tqc_error *error);

/* Decode all tensors back to back into `out`, which has exactly tqc_bytes(file), or check them only if `out` is NULL.
 * The result is the verdict of chapter 12.1 on the whole file: every segment is checked, and malformed wins over
 * unsupported. */
tqc_verdict tqc_decode_all(const tqc_file *file, tqc_workspace *workspace, void *out, uint64_t size, tqc_error *error);

/* Decode the tensors i whose out[i] is not NULL, into buffers of their `bytes`; tied ones are left out. Each bundle is
 * decoded once, and what concerns other tensors only is not checked. Threads may share out the tensors of a file in
 * this way. */
tqc_verdict tqc_decode_each(const tqc_file *file, tqc_workspace *workspace, void *const *out, tqc_error *error);

/* ---- the transform domain ---- */

/* A transform-coded tensor before reconstruction (chapter 10). Pointers are good until the workspace is used again. */
typedef struct {
    uint64_t length[3];     /* O, I, T */
    uint64_t channels[3];   /* O', I', T' */
    const double *basis[3]; /* synthesis rows, channels x length, integers; NULL on an axis without a basis */
    unsigned dimensions;    /* of the tensor */
    const uint8_t *roles;   /* of the dimensions: 0 OUT, 1 IN, 2 TAPS */
    uint32_t scale_mantissa;
    int32_t scale_exponent;
    unsigned quantizer;          /* 0 UNIFORM, 1 TRELLIS */
    unsigned steps;              /* 0 without a trellis */
    uint64_t columns;            /* I' * T' */
    const uint8_t *depths;       /* of all columns */
    const uint8_t *multipliers;  /* codes of 9.4, of all columns */
    const uint8_t *row_scales;   /* codes of 9.4, of the O positions of `out` */
    uint64_t kept;               /* columns of a depth above 0 */
    const uint32_t *column;      /* their numbers i' * T' + t', ascending */
    const int32_t *coefficients; /* O' x kept */
} tqc_coefficients;

tqc_verdict tqc_decode_coefficients(const tqc_file *file, size_t index, tqc_workspace *workspace,
                                    tqc_coefficients *coefficients, tqc_error *error);

/* All of it in the caller's memory, where it stays: `memory` has tqc_coefficients_size(from) bytes and is aligned for
 * doubles; the pointers of `to` lead into it. */
uint64_t tqc_coefficients_size(const tqc_coefficients *from);
void tqc_coefficients_copy(const tqc_coefficients *from, void *memory, tqc_coefficients *to);

uint64_t tqc_expand(unsigned code, unsigned mantissa); /* 9.4: mantissa 5 for row scales, 3 for multipliers */

/* ---- one tensor without a file ---- */

/* The tables of chapter 5.1 from their inflated bytes; size 0 gives the tables of a file without any. */
tqc_verdict tqc_tables_open(const void *data, size_t size, const tqc_options *options, tqc_tables **tables,
                            tqc_error *error);
void tqc_tables_close(tqc_tables *tables);

typedef struct {
    const void *data;
    size_t size;
    uint32_t crc;   /* as the directory states it; checked */
    int64_t offset; /* in the file, for errors; -1 if unknown */
} tqc_segment;

/* Decode a tensor that is neither tied nor in a bundle from its segments. Of `tensor`, dtype, dimensions, shape, coding
 * and check are read. `out` has exactly the tensor's bytes. */
tqc_verdict tqc_decode_segments(const tqc_tables *tables, const tqc_tensor *tensor, const tqc_segment *segments,
                                size_t count, tqc_workspace *workspace, void *out, uint64_t size, tqc_error *error);

#ifdef __cplusplus
}
#endif

#endif
