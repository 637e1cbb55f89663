/* Decoder of the .tqc format, in the order of spec/tqc.md. Chapter numbers in comments are those of that document. */
#include "tqcdec.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- 11.1 constants ---- */

#define HEADER_SIZE 28
#define FLAG_DEFLATED 1
#define MAX_DIRECTORY (UINT32_C(1) << 26)
#define MAX_TABLES_SIZE (UINT32_C(1) << 20)
#define MAX_INFLATION 64
#define FREE_VALUES (UINT64_C(1) << 14)
#define MAX_NESTING 8
#define MAX_NAME 4096
#define MAX_DIMENSIONS 16
#define MAX_ELEMENTS (UINT64_C(1) << 48)
#define MAX_TABLES 128
#define MAX_ALPHABET 4096
#define MAX_WEIGHTS (UINT32_C(1) << 16)
#define MAX_TABLE_LOW (INT32_C(1) << 24)
#define MAX_LOW_BITS 24
#define MAX_VALUE (INT32_C(1) << 30)
#define MAX_CLASSES 64
#define MAX_DEPTH 24
#define MAX_SYMBOLS (UINT32_C(1) << 20)
#define MAX_PART_HEAD 16
#define MAX_OFFSET (1 << 12)
#define MAX_STEPS 256
#define MAX_BASIS (UINT64_C(1) << 24)
#define MAX_BASIS_SHIFT 24
#define MAX_DCT 16
#define MAX_DCT_TAPS 1024
#define MAX_DCT_DIMENSIONS 3
#define MAX_HEAD (UINT64_C(1) << 24)
#define MAX_VECTOR 255
#define MAX_SCALE_MANTISSA (UINT32_C(1) << 24)
#define MAX_SCALE_EXPONENT 900
#define FREE_CHANNELS 64
#define WORK_PER_BYTE (UINT64_C(1) << 14)
#define SUM_BITS 53
#define TABLE_BITS 12
#define TABLE_SUM 4096
#define ROW_SCALE_MANTISSA 5
#define MULTIPLIER_MANTISSA 3

enum { SYMMETRIC = 1, ESCAPE = 2 };           /* flags of a table */
enum { UNSIGNED = 1, CODED_PART = 2 };        /* flags of a part */
enum { UNIFORM = 0, TRELLIS = 1 };            /* quantizers */
enum { RANGE = 0, FIXED = 1 };                /* payload kinds */
enum { OUT = 0, IN = 1, TAPS = 2, AXES = 3 }; /* axes */
enum { BASIS_NONE = 0, BASIS_DCT = 1, BASIS_EXPLICIT = 2 };
enum { VECTOR_CONSTANT = 0, VECTOR_PACKED = 1, VECTOR_CODED = 2 };
enum { PLANE_PACKED = 0, PLANE_DEFLATED = 1 };

/* Limits of this library: the sizes it takes for granted when the caller names none. */
#define DEFAULT_MEMORY_LIMIT (UINT64_C(1) << 30)
#define DEFAULT_DECODED (UINT64_C(32) << 20)
#define DEFAULT_DECODED_PER_BYTE 1000

#define UNKNOWN (-1)
#define TRY(call)                                     \
    do {                                              \
        tqc_verdict verdict_ = (call);                \
        if (verdict_ != TQC_DECODED) return verdict_; \
    } while (0)

static uint64_t smaller(uint64_t a, uint64_t b) { return a < b ? a : b; }

static uint64_t divide_up(uint64_t a, uint64_t b) { return a / b + (a % b != 0); }

static uint64_t add_saturated(uint64_t a, uint64_t b) { return a > UINT64_MAX - b ? UINT64_MAX : a + b; }

/* ---- memory: blocks in a list, counted against a limit, released from the newest back to a mark ---- */

typedef union block {
    struct {
        union block *older;
        size_t size; /* header included */
    } head;
    long double alignment_1;
    void *alignment_2;
    uint64_t alignment_3;
} block;

typedef struct {
    tqc_options options;
    uint64_t used, peak;
    block *newest;
    tqc_error *error; /* of the call in progress, or NULL */
    int64_t tensor;   /* that it concerns, or UNKNOWN */
    const char *name;
    size_t name_size;
} arena;

static void *default_allocate(void *context, size_t size) {
    (void)context;
    return malloc(size);
}

static void default_release(void *context, void *pointer, size_t size) {
    (void)context;
    (void)size;
    free(pointer);
}

static arena new_arena(const tqc_options *options) {
    arena a;
    memset(&a, 0, sizeof a);
    if (options != NULL) a.options = *options;
    if (a.options.allocate == NULL || a.options.release == NULL) {
        a.options.allocate = default_allocate;
        a.options.release = default_release;
    }
    if (a.options.memory_limit == 0) a.options.memory_limit = DEFAULT_MEMORY_LIMIT;
    a.tensor = UNKNOWN;
    return a;
}

static void clear_error(tqc_error *error) {
    if (error == NULL) return;
    memset(error, 0, sizeof *error);
    error->rule = error->message = "";
    error->offset = error->tensor = UNKNOWN;
}

static void tell(const arena *a, tqc_verdict verdict, const char *rule, int64_t offset, const char *message) {
    tqc_error *error = a->error;
    if (error != NULL) {
        clear_error(error);
        error->verdict = verdict;
        error->rule = rule;
        error->message = message;
        error->offset = offset;
        error->tensor = a->tensor;
        if (a->name != NULL) {
            size_t n = (size_t)smaller(a->name_size, sizeof error->name - 1);
            while (n > 0 && n < a->name_size && (a->name[n] & 0xC0) == 0x80) n--;
            memcpy(error->name, a->name, n);
        }
    }
}

/* Like `malformed` below it returns its verdict in a way that compilers see through. */
static inline tqc_verdict fail(const arena *a, tqc_verdict verdict, const char *rule, int64_t offset,
                               const char *message) {
    tell(a, verdict, rule, offset, message);
    return verdict;
}

static inline tqc_verdict malformed(const arena *a, const char *rule, int64_t offset, const char *message) {
    tell(a, TQC_MALFORMED, rule, offset, message);
    return TQC_MALFORMED;
}

static void *link_block(arena *a, block *b, size_t size) {
    b->head.older = a->newest;
    b->head.size = size;
    a->newest = b;
    a->used += size;
    if (a->used > a->peak) a->peak = a->used;
    return b + 1;
}

/* count * size bytes, not set; the address is aligned for any type. */
static tqc_verdict take(arena *a, uint64_t count, size_t size, void *result) {
    uint64_t left = a->options.memory_limit - a->used;
    uint64_t total;
    block *b;
    void *bytes;
    if (left < sizeof(block) || count > (left - sizeof(block)) / size || count > (SIZE_MAX - sizeof(block)) / size)
        return fail(a, TQC_LIMIT, "limit.memory", UNKNOWN, "decoding takes more memory than allowed");
    total = count * size + sizeof(block);
    b = a->options.allocate(a->options.context, (size_t)total);
    if (b == NULL) return fail(a, TQC_NO_MEMORY, "", UNKNOWN, "the allocator has no memory");
    bytes = link_block(a, b, (size_t)total);
    memcpy(result, &bytes, sizeof bytes);
    return TQC_DECODED;
}

static tqc_verdict take_zeros(arena *a, uint64_t count, size_t size, void *result) {
    void *bytes;
    TRY(take(a, count, size, &bytes));
    memset(bytes, 0, (size_t)count * size);
    memcpy(result, &bytes, sizeof bytes);
    return TQC_DECODED;
}

static void release_to(arena *a, block *mark) {
    while (a->newest != mark) {
        block *b = a->newest;
        a->newest = b->head.older;
        a->used -= b->head.size;
        a->options.release(a->options.context, b, b->head.size);
    }
}

/* ---- little-endian bytes ---- */

static uint32_t get_u32(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static uint64_t get_u64(const uint8_t *p) { return (uint64_t)get_u32(p) | (uint64_t)get_u32(p + 4) << 32; }

static void put_bytes(uint8_t *p, uint64_t value, unsigned size) {
    unsigned i;
    for (i = 0; i < size; i++) p[i] = (uint8_t)(value >> 8 * i);
}

/* ---- CRC-32 of ISO 3309, sixteen bytes at a time ---- */

#define CRC_SLICES 16

typedef struct {
    uint32_t slice[CRC_SLICES][256];
} crc_table;

static void make_crc(crc_table *t) {
    uint32_t (*const table)[256] = t->slice;
    uint32_t i, j;
    for (i = 0; i < 256; i++) {
        uint32_t c = i;
        for (j = 0; j < 8; j++) c = c >> 1 ^ (c & 1 ? UINT32_C(0xEDB88320) : 0);
        table[0][i] = c;
    }
    for (i = 0; i < 256; i++)
        for (j = 1; j < CRC_SLICES; j++) table[j][i] = table[j - 1][i] >> 8 ^ table[0][table[j - 1][i] & 255];
}

/* What the four bytes of a word give that `behind` other bytes follow. */
static uint32_t crc_word(const crc_table *t, unsigned behind, uint32_t word) {
    return t->slice[behind + 3][word & 255] ^ t->slice[behind + 2][word >> 8 & 255] ^
           t->slice[behind + 1][word >> 16 & 255] ^ t->slice[behind][word >> 24];
}

/* The CRC of bytes behind others whose CRC is `crc`; 0 to begin with. */
static uint32_t add_crc(const crc_table *t, uint32_t crc, const uint8_t *p, uint64_t size) {
    crc = ~crc;
    for (; size >= 16; size -= 16, p += 16)
        crc = crc_word(t, 12, get_u32(p) ^ crc) ^ crc_word(t, 8, get_u32(p + 4)) ^ crc_word(t, 4, get_u32(p + 8)) ^
              crc_word(t, 0, get_u32(p + 12));
    for (; size > 0; size--, p++) crc = crc >> 8 ^ t->slice[0][(crc ^ *p) & 255];
    return ~crc;
}

static int is_crc(uint32_t crc, uint32_t stated) {
#ifdef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION
    (void)crc;
    (void)stated;
    return 1; /* a fuzzer that has to guess checksums finds nothing */
#else
    return crc == stated;
#endif
}

/* ---- 3.3 descriptors ---- */

/* Bytes from `at` to `end`. `offset` is the place of `start` in the file, UNKNOWN for inflated bytes. */
typedef struct {
    arena *arena;
    const uint8_t *start, *at, *end;
    int64_t offset;
} reader;

static reader new_reader(arena *a, const uint8_t *bytes, uint64_t size, int64_t offset) {
    reader r;
    r.arena = a;
    r.start = r.at = bytes;
    r.end = bytes + size;
    r.offset = offset;
    return r;
}

static uint64_t bytes_left(const reader *r) { return (uint64_t)(r->end - r->at); }

static int64_t place(const reader *r) { return r->offset == UNKNOWN ? UNKNOWN : r->offset + (r->at - r->start); }

static inline tqc_verdict wrong(const reader *r, const char *rule, const char *message) {
    return malformed(r->arena, rule, place(r), message);
}

static tqc_verdict read_bytes(reader *r, uint64_t size, const uint8_t **bytes) {
    *bytes = r->at;
    if (size > bytes_left(r)) return wrong(r, "segment.short", "an element reaches past the end");
    r->at += size;
    return TQC_DECODED;
}

static tqc_verdict read_u8(reader *r, unsigned *value) {
    const uint8_t *p;
    TRY(read_bytes(r, 1, &p));
    *value = *p;
    return TQC_DECODED;
}

static tqc_verdict read_uv(reader *r, uint64_t most, uint64_t *value) {
    uint64_t v = 0;
    unsigned shift;
    for (shift = 0;; shift += 7) {
        unsigned byte;
        TRY(read_u8(r, &byte));
        if (shift == 63 && byte > 1) return wrong(r, "integer.size", "a uv is 2^64 or above, or longer than 10 bytes");
        v |= (uint64_t)(byte & 127) << shift;
        if (byte < 128) {
            if (byte == 0 && shift > 0) return wrong(r, "integer.shortest", "a uv is longer than it has to be");
            break;
        }
    }
    if (v > most) return wrong(r, "integer.range", "an integer is above its limit");
    *value = v;
    return TQC_DECODED;
}

/* A uv whose limit fits in 32 bits. */
static tqc_verdict read_uv32(reader *r, uint32_t most, uint32_t *value) {
    uint64_t v;
    TRY(read_uv(r, most, &v));
    *value = (uint32_t)v;
    return TQC_DECODED;
}

static tqc_verdict read_sv(reader *r, int32_t most, int32_t *value) {
    uint64_t v;
    TRY(read_uv(r, 2 * (uint64_t)most + 1, &v));
    *value = v & 1 ? -(int32_t)(v >> 1) - 1 : (int32_t)(v >> 1);
    return TQC_DECODED;
}

static tqc_verdict end_of(const reader *r) {
    return r->at == r->end ? TQC_DECODED : wrong(r, "segment.surplus", "bytes are left over behind the last element");
}

/* ---- 3.3 deflated(n): RFC 1951 ---- */

#define FAST_BITS 10
#define MAX_CODE_LENGTH 15

/* A Huffman code. Codes of up to FAST_BITS bits are looked up, longer ones counted through. */
typedef struct {
    uint16_t fast[1 << FAST_BITS];       /* symbol << 4 | length; 0 if there is no such code */
    uint16_t count[MAX_CODE_LENGTH + 1]; /* codes of each length */
    uint16_t symbol[288];                /* in the order of their codes */
} huffman;

typedef struct {
    const uint8_t *at, *end;
    uint64_t bits;
    unsigned held; /* bits in `bits` */
    int cut;       /* the input has ended too early */
    uint8_t *out;
    size_t done, size;
    huffman literals, distances;
} inflater;

typedef enum { INFLATED, INFLATE_BAD, INFLATE_SIZE } inflate_result;

static void refill(inflater *f) {
    while (f->held <= 56 && f->at < f->end) {
        f->bits |= (uint64_t)*f->at++ << f->held;
        f->held += 8;
    }
}

/* Up to 16 bits; -1 behind the end. */
static int take_bits(inflater *f, unsigned n) {
    int value;
    refill(f);
    if (f->held < n) {
        f->cut = 1;
        return -1;
    }
    value = (int)(f->bits & ((UINT32_C(1) << n) - 1));
    f->bits >>= n;
    f->held -= n;
    return value;
}

/* A code from its lengths. Incomplete ones are refused but for those that 3.3 allows: with `single` one code of length
 * 1, with `none` no code at all. */
static int make_code(huffman *h, const uint8_t *lengths, unsigned n, int single, int none) {
    uint16_t first[MAX_CODE_LENGTH + 1], next[MAX_CODE_LENGTH + 1];
    unsigned i, length, code = 0, index = 0;
    int32_t left = 1;
    memset(h, 0, sizeof *h);
    for (i = 0; i < n; i++) h->count[lengths[i]]++;
    h->count[0] = 0;
    for (length = 1; length <= MAX_CODE_LENGTH; length++) {
        left = 2 * left - h->count[length];
        if (left < 0) return 0;
        next[length] = (uint16_t)index;
        first[length] = (uint16_t)code;
        index += h->count[length];
        code = (code + h->count[length]) << 1;
    }
    if (left > 0 && !(single && index == 1 && h->count[1] == 1) && !(none && index == 0)) return 0;
    for (i = 0; i < n; i++) {
        unsigned reversed = 0, k;
        length = lengths[i];
        if (length == 0) continue;
        h->symbol[next[length]++] = (uint16_t)i;
        code = first[length]++;
        if (length > FAST_BITS) continue;
        for (k = 0; k < length; k++) reversed |= (code >> k & 1) << (length - 1 - k);
        for (k = reversed; k < 1 << FAST_BITS; k += 1U << length) h->fast[k] = (uint16_t)(i << 4 | length);
    }
    return 1;
}

/* The next symbol; -1 for a missing code or behind the end. At least MAX_CODE_LENGTH bits are held unless the input
 * ends. */
static int take_symbol(inflater *f, const huffman *h) {
    unsigned entry = h->fast[f->bits & ((1 << FAST_BITS) - 1)];
    unsigned length = entry & 15, code = 0, first = 0, index = 0;
    if (length == 0) {
        for (length = 1; length <= MAX_CODE_LENGTH; length++) {
            code |= (unsigned)(f->bits >> (length - 1)) & 1;
            if (code - first < h->count[length]) {
                entry = (unsigned)h->symbol[index + code - first] << 4;
                break;
            }
            index += h->count[length];
            first = (first + h->count[length]) << 1;
            code <<= 1;
        }
    }
    if (length > MAX_CODE_LENGTH) return -1;
    if (length > f->held) {
        f->cut = 1;
        return -1;
    }
    f->bits >>= length;
    f->held -= length;
    return (int)(entry >> 4);
}

static inflate_result inflate_stored(inflater *f) {
    unsigned spare = f->held & 7, length;
    const uint8_t *p;
    f->bits >>= spare;
    f->held -= spare;
    f->at -= f->held / 8; /* give back whole bytes */
    f->bits = 0;
    f->held = 0;
    p = f->at;
    if (f->end - p < 4) return INFLATE_SIZE;
    length = p[0] | (unsigned)p[1] << 8;
    if (length != ((p[2] | (unsigned)p[3] << 8) ^ 0xFFFF)) return INFLATE_BAD;
    if (f->end - p - 4 < (ptrdiff_t)length || length > f->size - f->done) return INFLATE_SIZE;
    if (length > 0) memcpy(f->out + f->done, p + 4, length);
    f->done += length;
    f->at += 4 + length;
    return INFLATED;
}

static int fixed_codes(inflater *f) {
    uint8_t lengths[288];
    memset(lengths, 8, 144);
    memset(lengths + 144, 9, 112);
    memset(lengths + 256, 7, 24);
    memset(lengths + 280, 8, 8);
    if (!make_code(&f->literals, lengths, 288, 0, 0)) return 0;
    memset(lengths, 5, 32);
    return make_code(&f->distances, lengths, 32, 0, 0);
}

static int dynamic_codes(inflater *f) {
    static const uint8_t order[19] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};
    uint8_t lengths[286 + 30];
    unsigned literals, distances, i, n;
    int hlit = take_bits(f, 5), hdist = take_bits(f, 5), hclen = take_bits(f, 4);
    if (hlit < 0 || hlit > 29 || hdist < 0 || hdist > 29 || hclen < 0) return 0;
    literals = 257 + (unsigned)hlit;
    distances = 1 + (unsigned)hdist;
    memset(lengths, 0, 19);
    for (i = 0; i < 4 + (unsigned)hclen; i++) {
        int length = take_bits(f, 3);
        if (length < 0) return 0;
        lengths[order[i]] = (uint8_t)length;
    }
    if (!make_code(&f->literals, lengths, 19, 0, 0)) return 0;
    for (n = 0; n < literals + distances;) {
        int symbol, repeat;
        uint8_t length = 0;
        refill(f);
        symbol = take_symbol(f, &f->literals);
        if (symbol < 0) return 0;
        if (symbol < 16) {
            lengths[n++] = (uint8_t)symbol;
            continue;
        }
        if (symbol == 16) {
            if (n == 0) return 0;
            length = lengths[n - 1];
        }
        repeat = symbol == 18 ? take_bits(f, 7) : take_bits(f, symbol == 16 ? 2 : 3);
        if (repeat < 0) return 0;
        repeat += symbol == 18 ? 11 : 3;
        if ((unsigned)repeat > literals + distances - n) return 0;
        memset(lengths + n, length, (size_t)repeat);
        n += (unsigned)repeat;
    }
    if (lengths[256] == 0) return 0;
    return make_code(&f->literals, lengths, literals, 1, 0) &&
           make_code(&f->distances, lengths + literals, distances, 1, 1);
}

static inflate_result inflate_codes(inflater *f) {
    static const uint16_t length_base[29] = {3,  4,  5,  6,  7,  8,  9,  10, 11,  13,  15,  17,  19,  23, 27,
                                             31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258};
    static const uint8_t length_bits[29] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2,
                                            2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0};
    static const uint16_t distance_base[30] = {1,    2,    3,    4,    5,    7,    9,    13,    17,    25,
                                               33,   49,   65,   97,   129,  193,  257,  385,   513,   769,
                                               1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577};
    static const uint8_t distance_bits[30] = {0, 0, 0, 0, 1, 1, 2, 2,  3,  3,  4,  4,  5,  5,  6,
                                              6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13};
    for (;;) {
        int symbol, extra;
        size_t length, distance, i;
        uint8_t *to;
        const uint8_t *from;
        refill(f);
        symbol = take_symbol(f, &f->literals);
        if (symbol < 0) return INFLATE_BAD;
        if (symbol < 256) {
            if (f->done == f->size) return INFLATE_SIZE;
            f->out[f->done++] = (uint8_t)symbol;
            continue;
        }
        if (symbol == 256) return INFLATED;
        if (symbol > 285) return INFLATE_BAD;
        extra = take_bits(f, length_bits[symbol - 257]);
        if (extra < 0) return INFLATE_BAD;
        length = (size_t)length_base[symbol - 257] + (size_t)extra;
        refill(f);
        symbol = take_symbol(f, &f->distances);
        if (symbol < 0 || symbol > 29) return INFLATE_BAD;
        extra = take_bits(f, distance_bits[symbol]);
        if (extra < 0) return INFLATE_BAD;
        distance = (size_t)distance_base[symbol] + (size_t)extra;
        if (distance > f->done) return INFLATE_BAD;
        if (length > f->size - f->done) return INFLATE_SIZE;
        to = f->out + f->done;
        from = to - distance;
        for (i = 0; i < length; i++) to[i] = from[i]; /* may overlap */
        f->done += length;
    }
}

/* Inflate exactly `size` bytes from all of `data`. */
static inflate_result inflate_raw(inflater *f, const uint8_t *data, size_t stored, uint8_t *out, size_t size) {
    int last = 0;
    f->at = data;
    f->end = data + stored;
    f->bits = 0;
    f->held = 0;
    f->cut = 0;
    f->out = out;
    f->done = 0;
    f->size = size;
    while (!last) {
        inflate_result result;
        int type;
        last = take_bits(f, 1);
        type = take_bits(f, 2);
        if (last < 0 || type < 0 || type == 3) return INFLATE_BAD;
        if (type == 0) {
            result = inflate_stored(f);
        } else {
            if (!(type == 1 ? fixed_codes(f) : dynamic_codes(f))) return INFLATE_BAD;
            result = inflate_codes(f);
        }
        if (result != INFLATED) return result;
    }
    return f->done == size && f->held < 8 && f->at == f->end ? INFLATED : INFLATE_SIZE;
}

static tqc_verdict read_deflated(reader *r, uint64_t stored, uint8_t *out, size_t size) {
    const uint8_t *data;
    inflater *f;
    block *mark = r->arena->newest;
    int64_t at = place(r);
    inflate_result result;
    int cut;
    TRY(read_bytes(r, stored, &data));
    TRY(take(r->arena, 1, sizeof *f, &f));
    result = inflate_raw(f, data, (size_t)stored, out, size);
    cut = f->cut;
    release_to(r->arena, mark);
    if (result == INFLATE_BAD && !cut) return malformed(r->arena, "deflate.stream", at, "not a valid DEFLATE stream");
    if (result != INFLATED)
        return malformed(r->arena, "deflate.size", at, "a DEFLATE stream has another size than stated");
    return TQC_DECODED;
}

/* ---- 6.1 packing ---- */

/* Bits b and up of a packed sequence, `width` of them up to 57. Eight bytes are read where they are there. */
static uint64_t bits_at(const uint8_t *bytes, uint64_t size, uint64_t bit, unsigned width) {
    uint64_t first = bit / 8, v = 0;
    if (first + 8 <= size) {
        v = get_u64(bytes + first);
    } else {
        uint64_t i;
        for (i = first; i < size; i++) v |= (uint64_t)bytes[i] << 8 * (i - first);
    }
    return v >> bit % 8 & ((UINT64_C(1) << width) - 1);
}

/* n values of one width, up to 8 bits. */
static void unpack(const uint8_t *bytes, uint64_t size, uint64_t bit, unsigned width, uint64_t n, uint8_t *values) {
    uint64_t i = 0;
    if (width == 8 && bit % 8 == 0) {
        if (n > 0) memcpy(values, bytes + bit / 8, (size_t)n);
        return;
    }
    for (; i + 7 <= n && bit / 8 + 8 <= size; i += 7) { /* seven values and the bits before them in eight bytes */
        uint64_t v = get_u64(bytes + bit / 8) >> bit % 8;
        unsigned k;
        for (k = 0; k < 7; k++, v >>= width) values[i + k] = (uint8_t)(v & ((1U << width) - 1));
        bit += 7 * width;
    }
    for (; i < n; i++, bit += width) values[i] = (uint8_t)bits_at(bytes, size, bit, width);
}

/* The bytes of n packed bits; their spare bits are checked. */
static tqc_verdict read_packed(reader *r, uint64_t n, const uint8_t **bytes) {
    TRY(read_bytes(r, divide_up(n, 8), bytes));
    if (n % 8 != 0 && r->at[-1] >> n % 8 != 0)
        return wrong(r, "bits.spare", "spare bits of a packed sequence are not 0");
    return TQC_DECODED;
}

/* ---- 5.1 tables ---- */

/* diff < range, so a quotient of the decoder is below 4096 * (1 + 2^-8): slots from TABLE_SUM on are invalid data. */
#define SLOTS (TABLE_SUM + 16)

/* What a decoder needs of a member in one word: bits 0-15 its start, 16-31 its weight, 32 set for what is no symbol,
 * 33-63 the symbol plus SYMBOL_BIAS. */
typedef uint64_t member;

#define SYMBOL_BIAS (INT32_C(1) << 30)
#define ESCAPED (-SYMBOL_BIAS)     /* stands for a symbol until its escape is read */
#define INVALID (-SYMBOL_BIAS + 1) /* stands for a symbol where the words are no data */

typedef struct {
    int32_t low;
    uint32_t size; /* the escape not counted */
    unsigned low_bits;
    int escape;
    int certain; /* just one member: its symbol takes no bits */
    const member *members;
    uint16_t number[SLOTS]; /* of the member that holds the slot */
} table;

struct tqc_tables {
    arena arena;
    unsigned count;
    table *tables;
    crc_table crc;
};

static member make_member(uint32_t start, uint32_t weight, int special, int32_t symbol) {
    return start | (uint64_t)weight << 16 | (uint64_t)special << 32 | (uint64_t)(symbol + SYMBOL_BIAS) << 33;
}

static int32_t member_symbol(member m) { return (int32_t)(m >> 33) - SYMBOL_BIAS; }

static tqc_verdict read_weight(reader *r, uint32_t *weight) {
    uint64_t v;
    TRY(read_uv(r, UINT64_MAX, &v));
    if (v == 0) return wrong(r, "table.weight", "a weight is 0");
    if (v > TABLE_SUM) return wrong(r, "table.sum", "the weights of a table sum to more than 4096");
    *weight = (uint32_t)v;
    return TQC_DECODED;
}

static tqc_verdict read_table(reader *r, table *t, uint32_t *total) {
    uint32_t weight[MAX_ALPHABET], sum = 0, start = 0, n, escape_weight = 0;
    uint64_t magnitude;
    unsigned flags;
    member *members;
    TRY(read_u8(r, &flags));
    if (flags > (SYMMETRIC | ESCAPE)) return wrong(r, "table.flags", "unknown flags of a table");
    TRY(read_u8(r, &t->low_bits));
    if (t->low_bits > MAX_LOW_BITS) return wrong(r, "table.low_bits", "more than 24 low bits");
    t->escape = (flags & ESCAPE) != 0;
    if (flags & SYMMETRIC) {
        uint32_t half, s;
        TRY(read_uv32(r, MAX_ALPHABET, &half));
        t->size = 2 * half + 1;
        t->low = -(int32_t)half;
        if (t->size >= MAX_ALPHABET) return wrong(r, "table.size", "a table has no members, or 4096 and more");
        for (s = 0; s <= half; s++) {
            TRY(read_weight(r, &weight[half + s]));
            weight[half - s] = weight[half + s];
        }
    } else {
        TRY(read_sv(r, MAX_TABLE_LOW, &t->low));
        TRY(read_uv32(r, MAX_ALPHABET, &t->size));
        if (t->size < 1 || t->size >= MAX_ALPHABET)
            return wrong(r, "table.size", "a table has no members, or 4096 and more");
        for (n = 0; n < t->size; n++) TRY(read_weight(r, &weight[n]));
    }
    *total += t->size;
    if (*total > MAX_WEIGHTS) return wrong(r, "table.total", "the tables have more than 2^16 members");
    magnitude = (uint64_t)(t->low < 0 ? -t->low : 0);
    if (t->low + (int32_t)t->size > (int32_t)magnitude) magnitude = (uint64_t)(t->low + (int32_t)t->size);
    if (magnitude << t->low_bits > MAX_VALUE) return wrong(r, "table.range", "a table reaches beyond 2^30");
    if (t->escape) TRY(read_weight(r, &escape_weight));
    for (n = 0; n < t->size; n++) sum += weight[n];
    if (sum + escape_weight != TABLE_SUM) return wrong(r, "table.sum", "the weights of a table do not sum to 4096");
    t->certain = t->size == 1 && !t->escape;
    TRY(take(r->arena, (uint64_t)t->size + 2, sizeof *members, &members));
    t->members = members;
    for (n = 0; n < t->size; n++) {
        members[n] = make_member(start, weight[n], 0, t->low + (int32_t)n);
        for (; weight[n] > 0; weight[n]--) t->number[start++] = (uint16_t)n;
    }
    if (t->escape) {
        members[n] = make_member(start, escape_weight, 1, ESCAPED);
        while (start < TABLE_SUM) t->number[start++] = (uint16_t)n;
        n++;
    }
    /* Behind the last slot diff - 4096 * scale is below 2^24, and a weight of 16 makes a range of 2^24 and above: the
     * decoder goes on in its bounds until the symbols are looked at. */
    members[n] = make_member(TABLE_SUM, SLOTS - TABLE_SUM, 1, INVALID);
    while (start < SLOTS) t->number[start++] = (uint16_t)n;
    return TQC_DECODED;
}

static tqc_verdict read_tables(reader *r, tqc_tables *tables) {
    uint64_t count;
    uint32_t total = 0;
    TRY(read_uv(r, UINT64_MAX, &count));
    if (count > MAX_TABLES) return wrong(r, "table.count", "more than 128 tables");
    TRY(take_zeros(r->arena, count, sizeof *tables->tables, &tables->tables));
    for (tables->count = 0; tables->count < count; tables->count++)
        TRY(read_table(r, &tables->tables[tables->count], &total));
    return end_of(r);
}

static tqc_verdict check_table(const reader *r, const tqc_tables *tables, unsigned index) {
    return index < tables->count ? TQC_DECODED : wrong(r, "table.index", "the file has no such table");
}

/* ---- 5.2 range decoder ---- */

/* Symbols are decoded in chunks of at most CHUNK, behind which it is checked that the words have not ended. A symbol
 * takes at most one word, so CHUNK words of 0 behind the last one keep the decoder in bounds. */
#define CHUNK 256

/* Where a symbol goes and how it is coded: its place among the symbols, and above PLACE_BITS its table. */
typedef uint32_t symbol_order;

#define PLACE_BITS 20 /* a step has at most MAX_SYMBOLS symbols */
#define PLACE_MASK ((UINT32_C(1) << PLACE_BITS) - 1)

/* A range decoder, and the order of the symbols that it decodes next. */
typedef struct {
    uint64_t diff, range;
    const uint32_t *next;
    const symbol_order *order;
    const table *tables;
    int32_t *symbols;
    int special; /* a symbol of the chunk is ESCAPED or INVALID */
} lane;

#define LANE_LOAD(j)                                                             \
    lane *lane##j = lanes[j];                                                    \
    uint64_t diff##j = lane##j->diff, range##j = lane##j->range, special##j = 0; \
    const uint32_t *next##j = lane##j->next;                                     \
    const symbol_order *const order##j = lane##j->order;                         \
    const table *const tables##j = lane##j->tables;                              \
    int32_t *const symbols##j = lane##j->symbols

#define LANE_DECODE(j)                                                \
    do {                                                              \
        const table *t = &tables##j[order##j[i] >> PLACE_BITS];       \
        uint64_t scale = range##j >> 24 << (24 - TABLE_BITS);         \
        member m = t->members[t->number[diff##j / scale]];            \
        uint64_t small;                                               \
        symbols##j[order##j[i] & PLACE_MASK] = member_symbol(m);      \
        special##j |= m;                                              \
        diff##j -= scale * (m & 0xFFFF);                              \
        range##j = scale * (m >> 16 & 0xFFFF);                        \
        small = range##j >> 32 == 0;                                  \
        diff##j = diff##j << (small << 5) | (*next##j & (0 - small)); \
        range##j <<= small << 5;                                      \
        next##j += small;                                             \
    } while (0)

#define LANE_STORE(j)          \
    lane##j->diff = diff##j;   \
    lane##j->range = range##j; \
    lane##j->next = next##j;   \
    lane##j->special = (int)(special##j >> 32 & 1)

static void decode_1(lane *const *lanes, uint32_t n) {
    uint32_t i;
    LANE_LOAD(0);
    for (i = 0; i < n; i++) LANE_DECODE(0);
    LANE_STORE(0);
}

static void decode_2(lane *const *lanes, uint32_t n) {
    uint32_t i;
    LANE_LOAD(0);
    LANE_LOAD(1);
    for (i = 0; i < n; i++) {
        LANE_DECODE(0);
        LANE_DECODE(1);
    }
    LANE_STORE(0);
    LANE_STORE(1);
}

/* Decoding a symbol is a chain of a division, two loads and a product; several payloads at once fill the waiting time.
 */
static void decode_4(lane *const *lanes, uint32_t n) {
    uint32_t i;
    LANE_LOAD(0);
    LANE_LOAD(1);
    LANE_LOAD(2);
    LANE_LOAD(3);
    for (i = 0; i < n; i++) {
        LANE_DECODE(0);
        LANE_DECODE(1);
        LANE_DECODE(2);
        LANE_DECODE(3);
    }
    LANE_STORE(0);
    LANE_STORE(1);
    LANE_STORE(2);
    LANE_STORE(3);
}

/* ---- 5.4 streams ---- */

/* A stream whose words are decoded by `coder`. */
typedef struct {
    lane coder;
    arena *arena;
    uint32_t *words; /* copies, with CHUNK + 2 zeros behind them */
    uint64_t count;  /* of words */
    int used;
    int64_t offset;
    const uint8_t *escapes;
    uint64_t escapes_left;
    unsigned escape_size;
} stream;

/* What stands before `low`. `words` has room for a copy of the words and CHUNK + 2 more. */
static tqc_verdict read_stream(reader *r, const tqc_tables *tables, uint64_t integers, stream *s, uint32_t *words) {
    const uint8_t *bytes;
    uint64_t i;
    memset(s, 0, sizeof *s);
    s->arena = r->arena;
    s->offset = place(r);
    s->words = words;
    TRY(read_uv(r, UINT64_MAX, &s->count));
    TRY(read_uv(r, integers, &s->escapes_left));
    if (s->escapes_left > 0) {
        TRY(read_u8(r, &s->escape_size));
        if (s->escape_size != 1 && s->escape_size != 2 && s->escape_size != 4)
            return wrong(r, "stream.escape_size", "an escape has a size other than 1, 2 or 4");
    }
    if (s->count > bytes_left(r) / 4) return wrong(r, "segment.short", "the words of a stream reach past the end");
    TRY(read_bytes(r, 4 * s->count, &bytes));
    for (i = 0; i < s->count; i++) words[i] = get_u32(bytes + 4 * i);
    memset(words + s->count, 0, (CHUNK + 2) * sizeof *words);
    if (s->escapes_left > 0) {
        if (s->escapes_left > bytes_left(r) / s->escape_size)
            return wrong(r, "segment.short", "the escapes of a stream reach past the end");
        TRY(read_bytes(r, s->escapes_left * s->escape_size, &s->escapes));
    }
    s->coder.diff = (uint64_t)words[0] << 32 | words[1];
    s->coder.range = UINT64_MAX;
    s->coder.next = words + 2;
    s->coder.tables = tables->tables;
    return TQC_DECODED;
}

static int32_t take_escape(stream *s) {
    uint32_t v = 0, sign = UINT32_C(1) << (8 * s->escape_size - 1);
    unsigned i;
    for (i = 0; i < s->escape_size; i++) v |= (uint32_t)s->escapes[i] << 8 * i;
    s->escapes += s->escape_size;
    s->escapes_left--;
    return (int32_t)((int64_t)(v & ~sign) - (int64_t)(v & sign));
}

/* Look at the n symbols that the coder has just decoded, and go on behind them. */
static tqc_verdict end_chunk(stream *s, uint32_t n) {
    lane *c = &s->coder;
    s->used = 1;
    if (c->special) {
        uint32_t i;
        for (i = 0; i < n; i++) {
            int32_t *symbol = &c->symbols[c->order[i] & PLACE_MASK];
            const table *t = &c->tables[c->order[i] >> PLACE_BITS];
            int64_t value;
            if (*symbol == INVALID) return malformed(s->arena, "payload.invalid", s->offset, "a slot is 4096 or above");
            if (*symbol != ESCAPED) continue;
            if (s->escapes_left == 0)
                return malformed(s->arena, "stream.escapes", s->offset, "more escapes than stated");
            value = take_escape(s);
            if (value >= t->low && value < t->low + (int64_t)t->size)
                return malformed(s->arena, "stream.escape", s->offset, "an escape has a symbol of its own");
            if (value < -(MAX_VALUE >> t->low_bits) || value > MAX_VALUE >> t->low_bits)
                return malformed(s->arena, "stream.range", s->offset, "an integer is beyond 2^30");
            *symbol = (int32_t)value;
        }
    }
    c->order += n;
    if (c->next - s->words > (ptrdiff_t)s->count + 2)
        return malformed(s->arena, "payload.end", s->offset, "the words end before the last symbol");
    return TQC_DECODED;
}

/* 5.2, canonical end; and the number of escapes. */
static tqc_verdict end_stream(const stream *s) {
    uint64_t count = 0;
    int canonical = 1;
    if (s->used) {
        int extra = s->coder.range - s->coder.diff < UINT64_C(1) << 32;
        count = (uint64_t)(s->coder.next - s->words) - 1 + (uint64_t)extra;
        canonical = s->coder.diff < UINT64_C(1) << 32;
        if (count == s->count && extra) canonical = canonical && s->words[count - 1] == 0;
    }
    if (!canonical || count != s->count)
        return malformed(s->arena, "payload.end", s->offset, "the words are not those that an encoder ends with");
    if (s->escapes_left > 0) return malformed(s->arena, "stream.escapes", s->offset, "fewer escapes than stated");
    return TQC_DECODED;
}

/* A run of integers with one table, in a stream of one row. */
typedef struct {
    uint64_t start, count;
    unsigned table;
    uint32_t next; /* index of the next run with this table */
} run;

#define NO_RUN UINT32_MAX

static tqc_verdict decode_run(stream *s, const run *u, int32_t *values) {
    const table *t = &s->coder.tables[u->table];
    symbol_order order[CHUNK], i;
    uint64_t left = u->count;
    lane *const lanes[1] = {&s->coder};
    s->coder.symbols = values + u->start;
    if (t->certain) {
        for (; left > 0; left--) *s->coder.symbols++ = t->low;
        return TQC_DECODED;
    }
    for (i = 0; i < CHUNK; i++) order[i] = i | u->table << PLACE_BITS;
    while (left > 0) {
        uint32_t n = (uint32_t)smaller(left, CHUNK);
        s->coder.order = order;
        decode_1(lanes, n);
        TRY(end_chunk(s, n));
        s->coder.symbols += n;
        left -= n;
    }
    return TQC_DECODED;
}

/* The `low` of runs in order of position. */
static tqc_verdict read_low(reader *r, const tqc_tables *tables, const run *runs, uint32_t n, int32_t *values) {
    const uint8_t *bytes;
    uint64_t bits = 0, size, bit = 0, i;
    uint32_t k;
    for (k = 0; k < n; k++) bits += runs[k].count * tables->tables[runs[k].table].low_bits;
    TRY(read_packed(r, bits, &bytes));
    size = divide_up(bits, 8);
    for (k = 0; bits > 0 && k < n; k++) {
        unsigned low_bits = tables->tables[runs[k].table].low_bits;
        for (i = runs[k].start; low_bits > 0 && i < runs[k].start + runs[k].count; i++, bit += low_bits) {
            int64_t v = (int64_t)values[i] * (INT32_C(1) << low_bits) + (int64_t)bits_at(bytes, size, bit, low_bits);
            if (v < -MAX_VALUE || v > MAX_VALUE) return wrong(r, "stream.range", "an integer is beyond 2^30");
            values[i] = (int32_t)v;
        }
    }
    return TQC_DECODED;
}

/* A stream of one row without a trellis. The runs lie one behind the other from position 0; their tables exist. */
static tqc_verdict read_row_stream(reader *r, const tqc_tables *tables, run *runs, uint32_t n, int32_t *values) {
    uint32_t first[MAX_TABLES], k, t, *words;
    uint64_t integers = n > 0 ? runs[n - 1].start + runs[n - 1].count : 0;
    block *mark = r->arena->newest;
    stream s;
    for (t = 0; t < MAX_TABLES; t++) first[t] = NO_RUN;
    for (k = n; k-- > 0;) {
        runs[k].next = first[runs[k].table];
        first[runs[k].table] = k;
    }
    TRY(take(r->arena, bytes_left(r) / 4 + CHUNK + 2, sizeof *words, &words));
    TRY(read_stream(r, tables, integers, &s, words));
    for (t = 0; t < tables->count; t++)
        for (k = first[t]; k != NO_RUN; k = runs[k].next) TRY(decode_run(&s, &runs[k], values));
    TRY(end_stream(&s));
    TRY(read_low(r, tables, runs, n, values));
    release_to(r->arena, mark);
    return TQC_DECODED;
}

/* ---- 4.6 element types ---- */

typedef struct {
    char name[8];
    unsigned size, exponent_bits, mantissa_bits; /* no exponent bits: not a floating-point type */
    int infinities;
} dtype;

static const dtype dtypes[] = {
    {"BOOL", 1, 0, 0, 0},    {"U8", 1, 0, 0, 0},   {"I8", 1, 0, 0, 0},   {"U16", 2, 0, 0, 0},  {"I16", 2, 0, 0, 0},
    {"U32", 4, 0, 0, 0},     {"I32", 4, 0, 0, 0},  {"U64", 8, 0, 0, 0},  {"I64", 8, 0, 0, 0},  {"F8_E4M3", 1, 4, 3, 0},
    {"F8_E5M2", 1, 5, 2, 1}, {"F16", 2, 5, 10, 1}, {"BF16", 2, 8, 7, 1}, {"F32", 4, 8, 23, 1}, {"F64", 8, 11, 52, 1},
};

static const dtype *find_dtype(const char *name, size_t size) {
    size_t i;
    for (i = 0; i < sizeof dtypes / sizeof *dtypes; i++)
        if (strlen(dtypes[i].name) == size && memcmp(dtypes[i].name, name, size) == 0) return &dtypes[i];
    return NULL;
}

static int is_bool(const dtype *type) { return type == &dtypes[0]; }

/* The bytes of elements that may be BOOL. */
static tqc_verdict check_elements(arena *a, const dtype *type, const uint8_t *out, uint64_t bytes) {
    uint64_t i;
    if (!is_bool(type)) return TQC_DECODED;
    for (i = 0; i < bytes; i++)
        if (out[i] > 1) return malformed(a, "tensor.bool", UNKNOWN, "an element of type BOOL is neither 0 nor 1");
    return TQC_DECODED;
}

/* ---- 4.3 directory: MessagePack ---- */

typedef enum {
    VALUE_NIL,
    VALUE_BOOLEAN,
    VALUE_UNSIGNED,
    VALUE_NEGATIVE,
    VALUE_STRING,
    VALUE_ARRAY,
    VALUE_MAP
} value_type;

/* A value but for what lies in it. */
typedef struct {
    value_type type;
    uint64_t number; /* of an integer: its value, of a negative one in two's complement; else the length */
    const uint8_t *text;
    int64_t offset;
} value;

static tqc_verdict read_number(reader *r, unsigned size, uint64_t shortest, uint64_t *number) {
    const uint8_t *p;
    uint64_t v = 0;
    unsigned i;
    if (size > bytes_left(r)) return wrong(r, "directory.msgpack", "a MessagePack value is cut off");
    TRY(read_bytes(r, size, &p));
    for (i = 0; i < size; i++) v = v << 8 | p[i];
    if (v < shortest) return wrong(r, "directory.canonical", "an integer or a length is not in its shortest form");
    *number = v;
    return TQC_DECODED;
}

static tqc_verdict read_signed(reader *r, unsigned size, uint64_t *number) {
    uint64_t v, sign = UINT64_C(1) << (8 * size - 1);
    uint64_t shorter = size == 1 ? 32 : sign >> 4 * size; /* from minus this on there is a shorter form */
    TRY(read_number(r, size, 0, &v));
    v = (v ^ sign) - sign;
    if (v < sign || v >= 0 - shorter) return wrong(r, "directory.canonical", "an integer is not in its shortest form");
    *number = v;
    return TQC_DECODED;
}

/* The head of the next value, and the whole of a string; canonical as far as it can be seen from that. */
static tqc_verdict read_value(reader *r, value *v) {
    static const uint64_t shortest[4] = {0, UINT64_C(1) << 8, UINT64_C(1) << 16, UINT64_C(1) << 32};
    unsigned byte;
    v->offset = place(r);
    v->number = 0;
    v->text = NULL;
    if (bytes_left(r) == 0) return wrong(r, "directory.msgpack", "a MessagePack value is cut off");
    TRY(read_u8(r, &byte));
    if (byte < 0x80) {
        v->type = VALUE_UNSIGNED;
        v->number = byte;
    } else if (byte < 0x90) {
        v->type = VALUE_MAP;
        v->number = byte & 15;
    } else if (byte < 0xA0) {
        v->type = VALUE_ARRAY;
        v->number = byte & 15;
    } else if (byte < 0xC0) {
        v->type = VALUE_STRING;
        v->number = byte & 31;
    } else if (byte >= 0xE0) {
        v->type = VALUE_NEGATIVE;
        v->number = UINT64_MAX - 255 + byte;
    } else {
        switch (byte) {
        case 0xC0: v->type = VALUE_NIL; break;
        case 0xC1: return wrong(r, "directory.msgpack", "the byte c1 begins no MessagePack value");
        case 0xC2:
        case 0xC3: v->type = VALUE_BOOLEAN; break;
        case 0xCC:
        case 0xCD:
        case 0xCE:
        case 0xCF:
            v->type = VALUE_UNSIGNED;
            TRY(read_number(r, 1U << (byte - 0xCC), byte == 0xCC ? 128 : shortest[byte - 0xCC], &v->number));
            break;
        case 0xD0:
        case 0xD1:
        case 0xD2:
        case 0xD3:
            v->type = VALUE_NEGATIVE;
            TRY(read_signed(r, 1U << (byte - 0xD0), &v->number));
            break;
        case 0xD9:
        case 0xDA:
        case 0xDB:
            v->type = VALUE_STRING;
            TRY(read_number(r, 1U << (byte - 0xD9), byte == 0xD9 ? 32 : shortest[byte - 0xD9], &v->number));
            break;
        case 0xDC:
        case 0xDD:
            v->type = VALUE_ARRAY;
            TRY(read_number(r, 2U << (byte - 0xDC), byte == 0xDC ? 16 : shortest[2], &v->number));
            break;
        case 0xDE:
        case 0xDF:
            v->type = VALUE_MAP;
            TRY(read_number(r, 2U << (byte - 0xDE), byte == 0xDE ? 16 : shortest[2], &v->number));
            break;
        default: return wrong(r, "directory.canonical", "the directory holds a float, a binary string or an extension");
        }
    }
    if (v->type == VALUE_STRING) {
        if (v->number > bytes_left(r)) return wrong(r, "directory.msgpack", "a MessagePack string is cut off");
        TRY(read_bytes(r, v->number, &v->text));
    }
    return TQC_DECODED;
}

static int is_utf8(const uint8_t *p, uint64_t size) {
    const uint8_t *end = p + size;
    while (p < end) {
        uint8_t first = *p++;
        unsigned more, low = 0x80, high = 0xBF;
        if (first < 0x80) continue;
        if (first < 0xC2 || first > 0xF4) return 0;
        more = first < 0xE0 ? 1 : first < 0xF0 ? 2 : 3;
        if ((uint64_t)(end - p) < more) return 0;
        if (first == 0xE0) low = 0xA0;  /* longer than it has to be */
        if (first == 0xED) high = 0x9F; /* surrogates */
        if (first == 0xF0) low = 0x90;
        if (first == 0xF4) high = 0x8F; /* above U+10FFFF */
        if (*p < low || *p > high) return 0;
        for (p++; more > 1; more--, p++)
            if (*p < 0x80 || *p > 0xBF) return 0;
    }
    return 1;
}

static int compare_text(const uint8_t *a, uint64_t a_size, const uint8_t *b, uint64_t b_size) {
    uint64_t n = smaller(a_size, b_size);
    int order = n > 0 ? memcmp(a, b, (size_t)n) : 0;
    return order != 0 ? order : (a_size > b_size) - (a_size < b_size);
}

/* Check a value and all that lies in it; `left` is the number of values that there may still be. */
static tqc_verdict check_value(reader *r, unsigned depth, uint64_t *left) {
    value v, last = {VALUE_NIL, 0, NULL, 0};
    uint64_t i;
    if ((*left)-- == 0) return wrong(r, "directory.values", "the directory has too many values");
    TRY(read_value(r, &v));
    if (v.type == VALUE_STRING && !is_utf8(v.text, v.number))
        return malformed(r->arena, "directory.canonical", v.offset, "a string is not UTF-8");
    if (v.type != VALUE_ARRAY && v.type != VALUE_MAP) return TQC_DECODED;
    if (depth > MAX_NESTING)
        return malformed(r->arena, "directory.nesting", v.offset, "arrays and maps lie deeper than 8 in each other");
    for (i = 0; i < v.number; i++) {
        if (v.type == VALUE_MAP) {
            value key;
            const uint8_t *at = r->at;
            TRY(check_value(r, depth + 1, left));
            r->at = at;
            TRY(read_value(r, &key));
            if (key.type != VALUE_STRING)
                return malformed(r->arena, "directory.canonical", key.offset, "a key is not a string");
            if (i > 0 && compare_text(last.text, last.number, key.text, key.number) >= 0)
                return malformed(r->arena, "directory.canonical", key.offset, "keys are not in ascending order");
            last = key;
        }
        TRY(check_value(r, depth + 1, left));
    }
    return TQC_DECODED;
}

/* From here on the directory is known to be canonical. */

static void skip_value(reader *r) {
    uint64_t left;
    for (left = 1; left > 0; left--) {
        value v;
        if (read_value(r, &v) != TQC_DECODED) return; /* cannot happen */
        if (v.type == VALUE_ARRAY) left += v.number;
        if (v.type == VALUE_MAP) left += 2 * v.number;
    }
}

static tqc_verdict read_typed(reader *r, value_type type, value *v) {
    TRY(read_value(r, v));
    if (v->type == type) return TQC_DECODED;
    return malformed(r->arena, "directory.type", v->offset, "an element of the directory has the wrong type");
}

/* An integer of 0 .. most. */
static tqc_verdict read_integer(reader *r, uint64_t most, uint64_t *number) {
    value v;
    TRY(read_value(r, &v));
    if (v.type != VALUE_UNSIGNED && v.type != VALUE_NEGATIVE)
        return malformed(r->arena, "directory.type", v.offset, "an element of the directory is not an integer");
    if (v.type == VALUE_NEGATIVE || v.number > most)
        return malformed(r->arena, "directory.range", v.offset, "an integer of the directory is out of range");
    *number = v.number;
    return TQC_DECODED;
}

static tqc_verdict read_array(reader *r, uint64_t length) {
    value v;
    TRY(read_typed(r, VALUE_ARRAY, &v));
    if (v.number == length) return TQC_DECODED;
    return malformed(r->arena, "directory.type", v.offset, "an array of the directory has the wrong length");
}

/* Put the wanted values of a map, whose keys are in ascending order in `keys`, into `found`: readers at the values, of
 * which `at` is NULL for keys that are not there. */
static tqc_verdict read_map(reader *r, const char *const *keys, reader *found, unsigned n) {
    value map, key;
    unsigned i;
    TRY(read_typed(r, VALUE_MAP, &map));
    for (i = 0; i < n; i++) {
        found[i] = *r;
        found[i].at = NULL;
    }
    for (; map.number > 0; map.number--) {
        TRY(read_value(r, &key));
        for (i = 0; i < n; i++)
            if (compare_text(key.text, key.number, (const uint8_t *)keys[i], strlen(keys[i])) == 0) found[i].at = r->at;
        skip_value(r);
    }
    return TQC_DECODED;
}

static tqc_verdict need(reader *at, const reader *map, const char *message) {
    return at->at != NULL ? TQC_DECODED : wrong(map, "directory.type", message);
}

/* ---- 4.3 directory: elements ---- */

typedef struct {
    uint64_t offset, length;
    uint32_t crc;
} segment;

typedef struct {
    tqc_tensor told; /* what the caller sees */
    const dtype *type;
    segment *segments;
    uint64_t segment_count;
    uint32_t next_in_bundle;
} entry;

enum { BUNDLE, CHECK, CODING, DTYPE, NAME, SAME_AS, SEGMENTS, SHAPE, SNR, ENTRY_KEYS };

static const char *const entry_keys[ENTRY_KEYS] = {"bundle",  "check",    "coding", "dtype", "name",
                                                   "same_as", "segments", "shape",  "snr"};

enum { BUNDLES, FEATURES, METADATA, TABLES, TENSORS, FILE_KEYS };

static const char *const file_keys[FILE_KEYS] = {"bundles", "features", "metadata", "tables", "tensors"};

typedef struct {
    segment segment;
    uint32_t first; /* entry */
    int supported;
} bundle;

#define NO_ENTRY UINT32_MAX

struct tqc_file {
    arena arena;
    tqc_source source;
    const uint8_t *memory; /* the whole file, or NULL */
    int deflated;
    uint32_t stored, size;
    uint8_t *directory;
    uint64_t values;
    entry *entries;
    uint32_t entry_count;
    uint32_t *by_name;
    bundle *bundles;
    uint32_t bundle_count;
    tqc_text *metadata;
    size_t metadata_count;
    segment *segments; /* of all tensors, as far as they are read */
    uint64_t segment_count;
    uint64_t *dimensions;
    uint64_t dimension_count;
    int has_tables;
    segment tables_segment;
    uint32_t tables_size;
    uint64_t bytes;
    tqc_tables *tables;
};

static tqc_verdict read_segment(reader *r, segment *s) {
    uint64_t crc;
    TRY(read_array(r, 2));
    TRY(read_integer(r, INT64_MAX, &s->length));
    TRY(read_integer(r, UINT32_MAX, &crc));
    s->crc = (uint32_t)crc;
    return TQC_DECODED;
}

static tqc_verdict read_segments(reader *r, segment *segments, uint64_t *count) {
    value v;
    uint64_t i;
    TRY(read_typed(r, VALUE_ARRAY, &v));
    for (i = 0; i < v.number; i++) TRY(read_segment(r, &segments[i]));
    *count = v.number;
    return TQC_DECODED;
}

static tqc_verdict read_shape(tqc_file *f, reader *r, entry *e) {
    uint64_t *shape = f->dimensions + f->dimension_count;
    uint64_t product = 1, i;
    int64_t at = place(r);
    value v;
    TRY(read_typed(r, VALUE_ARRAY, &v));
    e->told.elements = 1;
    for (i = 0; i < v.number; i++) TRY(read_integer(r, MAX_ELEMENTS, &shape[i]));
    if (v.number > MAX_DIMENSIONS) return malformed(r->arena, "directory.shape", at, "more than 16 dimensions");
    for (i = 0; i < v.number; i++) {
        if (shape[i] == 0) {
            e->told.elements = 0;
            continue;
        }
        if (shape[i] > MAX_ELEMENTS / product)
            return malformed(r->arena, "directory.shape", at, "a tensor of more than 2^48 elements");
        product *= shape[i];
    }
    if (e->told.elements > 0) e->told.elements = product;
    e->told.shape = shape;
    e->told.dimensions = (unsigned)v.number;
    f->dimension_count += v.number;
    return TQC_DECODED;
}

static tqc_verdict read_snr(reader *r, entry *e) {
    value v;
    uint64_t magnitude;
    TRY(read_value(r, &v));
    if (v.type != VALUE_UNSIGNED && v.type != VALUE_NEGATIVE)
        return malformed(r->arena, "directory.type", v.offset, "an element of the directory is not an integer");
    magnitude = v.type == VALUE_NEGATIVE ? 0 - v.number : v.number;
    if (magnitude > 1 << 20)
        return malformed(r->arena, "directory.range", v.offset, "an integer of the directory is out of range");
    e->told.has_snr = 1;
    e->told.snr = v.type == VALUE_NEGATIVE ? -(int32_t)magnitude : (int32_t)magnitude;
    return TQC_DECODED;
}

static tqc_verdict read_tied(tqc_file *f, reader *same_as, uint32_t index) {
    entry *e = &f->entries[index];
    const tqc_tensor *target;
    const char *name = e->told.name;
    size_t name_size = e->told.name_size;
    int64_t at = place(same_as);
    uint64_t to;
    TRY(read_integer(same_as, UINT64_MAX, &to));
    if (to >= index) return malformed(same_as->arena, "directory.range", at, "a tensor is not tied to an earlier one");
    target = &f->entries[to].told;
    if (target->same_as >= 0)
        return malformed(same_as->arena, "directory.same_as", at, "a tensor is tied to one that is tied itself");
    e->told = *target;
    e->told.name = name;
    e->told.name_size = name_size;
    e->told.same_as = (int64_t)to;
    e->type = f->entries[to].type;
    return TQC_DECODED;
}

static tqc_verdict read_coded(tqc_file *f, reader *found, const reader *map, uint32_t index) {
    entry *e = &f->entries[index];
    arena *a = &f->arena;
    uint64_t number;
    value v;
    TRY(need(&found[CHECK], map, "an entry without check"));
    TRY(need(&found[CODING], map, "an entry without coding"));
    TRY(need(&found[DTYPE], map, "an entry without dtype"));
    TRY(need(&found[SHAPE], map, "an entry without shape"));
    e->told.bundle = UNKNOWN;
    if (found[BUNDLE].at != NULL) {
        int64_t at = place(&found[BUNDLE]);
        TRY(read_integer(&found[BUNDLE], UINT64_MAX, &number));
        if (number >= f->bundle_count) return malformed(a, "directory.range", at, "the file has no such bundle");
        e->told.bundle = (int64_t)number;
    }
    TRY(read_integer(&found[CHECK], UINT32_MAX, &number));
    e->told.check = (uint32_t)number;
    TRY(read_integer(&found[CODING], 255, &number));
    e->told.coding = (unsigned)number;
    TRY(read_typed(&found[DTYPE], VALUE_STRING, &v));
    e->type = find_dtype((const char *)v.text, (size_t)v.number);
    e->segments = f->segments + f->segment_count;
    if (found[SEGMENTS].at != NULL) TRY(read_segments(&found[SEGMENTS], e->segments, &e->segment_count));
    f->segment_count += e->segment_count;
    TRY(read_shape(f, &found[SHAPE], e));
    if (found[SNR].at != NULL) TRY(read_snr(&found[SNR], e));
    if (e->type != NULL) {
        e->told.dtype = e->type->name;
        e->told.item_size = e->type->size;
        e->told.bytes = e->told.elements * e->type->size;
    }
    e->told.supported = e->type != NULL && e->told.coding <= TQC_TRANSFORM;
    if (!e->told.supported) return TQC_DECODED; /* 12.1: other rules may stand in the place of the ones below */
    if (e->told.bundle >= 0 && (e->told.coding != TQC_PLANES || e->segment_count > 0))
        return wrong(map, "directory.bundle", "a tensor in a bundle is not in planes, or has segments of its own");
    if (e->told.coding == TQC_TRANSFORM && (e->type->exponent_bits == 0 || e->told.elements == 0))
        return wrong(map, "directory.transform", "a transform-coded tensor is empty or not of a floating-point type");
    return TQC_DECODED;
}

static tqc_verdict read_entry(tqc_file *f, reader *r, uint32_t index) {
    entry *e = &f->entries[index];
    reader found[ENTRY_KEYS], map = *r;
    value v;
    e->told.same_as = UNKNOWN;
    e->next_in_bundle = NO_ENTRY;
    f->arena.tensor = index;
    f->arena.name = NULL;
    TRY(read_map(r, entry_keys, found, ENTRY_KEYS));
    TRY(need(&found[NAME], &map, "an entry without name"));
    TRY(read_typed(&found[NAME], VALUE_STRING, &v));
    if (v.number < 1 || v.number > MAX_NAME)
        return malformed(&f->arena, "directory.name", v.offset, "a name is empty or longer than 4096 bytes");
    e->told.name = f->arena.name = (const char *)v.text;
    e->told.name_size = f->arena.name_size = (size_t)v.number;
    return found[SAME_AS].at != NULL ? read_tied(f, &found[SAME_AS], index) : read_coded(f, found, &map, index);
}

static int compare_entries(const tqc_file *f, uint32_t a, uint32_t b) {
    const tqc_tensor *x = &f->entries[a].told, *y = &f->entries[b].told;
    return compare_text((const uint8_t *)x->name, x->name_size, (const uint8_t *)y->name, y->name_size);
}

static void sift_names(const tqc_file *f, uint32_t root, uint32_t n) {
    uint32_t *heap = f->by_name, moved = heap[root], child;
    while ((child = 2 * root + 1) < n) {
        if (child + 1 < n && compare_entries(f, heap[child], heap[child + 1]) < 0) child++;
        if (compare_entries(f, moved, heap[child]) >= 0) break;
        heap[root] = heap[child];
        root = child;
    }
    heap[root] = moved;
}

/* Heap sort: no memory, and n log n steps for any names. */
static void sort_names(const tqc_file *f) {
    uint32_t i;
    for (i = 0; i < f->entry_count; i++) f->by_name[i] = i;
    for (i = f->entry_count / 2; i-- > 0;) sift_names(f, i, f->entry_count);
    for (i = f->entry_count; i-- > 1;) {
        uint32_t last = f->by_name[i];
        f->by_name[i] = f->by_name[0];
        f->by_name[0] = last;
        sift_names(f, 0, i);
    }
}

static tqc_verdict check_names(tqc_file *f) {
    uint32_t i;
    TRY(take(&f->arena, f->entry_count, sizeof *f->by_name, &f->by_name));
    if (f->entry_count > 0) sort_names(f);
    for (i = 1; i < f->entry_count; i++)
        if (compare_entries(f, f->by_name[i - 1], f->by_name[i]) == 0)
            return malformed(&f->arena, "directory.name", UNKNOWN, "two tensors have the same name");
    return TQC_DECODED;
}

static tqc_verdict read_metadata(tqc_file *f, reader *r) {
    value map, key, text;
    TRY(read_typed(r, VALUE_MAP, &map));
    TRY(take(&f->arena, map.number, sizeof *f->metadata, &f->metadata));
    for (; f->metadata_count < map.number; f->metadata_count++) {
        tqc_text *pair = &f->metadata[f->metadata_count];
        TRY(read_value(r, &key));
        TRY(read_typed(r, VALUE_STRING, &text));
        pair->key = (const char *)key.text;
        pair->key_size = (size_t)key.number;
        pair->value = (const char *)text.text;
        pair->value_size = (size_t)text.number;
    }
    return TQC_DECODED;
}

static tqc_verdict read_features(reader *r) {
    value array, name;
    uint64_t i;
    TRY(read_typed(r, VALUE_ARRAY, &array));
    for (i = 0; i < array.number; i++) TRY(read_typed(r, VALUE_STRING, &name));
    if (array.number == 0) return TQC_DECODED;
    return fail(r->arena, TQC_UNSUPPORTED, "directory.features", array.offset, "the file names a feature");
}

static tqc_verdict read_bundles(tqc_file *f, reader *r) {
    value array;
    TRY(read_typed(r, VALUE_ARRAY, &array));
    TRY(take(&f->arena, array.number, sizeof *f->bundles, &f->bundles));
    for (; f->bundle_count < array.number; f->bundle_count++) {
        bundle *b = &f->bundles[f->bundle_count];
        TRY(read_segment(r, &b->segment));
        b->first = NO_ENTRY;
        b->supported = 1;
    }
    return TQC_DECODED;
}

static tqc_verdict read_tables_segment(tqc_file *f, reader *r) {
    uint64_t crc, size;
    f->has_tables = 1;
    TRY(read_array(r, 3));
    TRY(read_integer(r, UINT64_C(1) << 32, &f->tables_segment.length));
    TRY(read_integer(r, UINT32_MAX, &crc));
    TRY(read_integer(r, MAX_TABLES_SIZE, &size));
    f->tables_segment.crc = (uint32_t)crc;
    f->tables_size = (uint32_t)size;
    return TQC_DECODED;
}

static tqc_verdict read_entries(tqc_file *f, reader *r) {
    value array;
    TRY(read_typed(r, VALUE_ARRAY, &array));
    TRY(take_zeros(&f->arena, array.number, sizeof *f->entries, &f->entries));
    TRY(take(&f->arena, f->values / 2 + 1, sizeof *f->segments, &f->segments));
    TRY(take(&f->arena, f->values, sizeof *f->dimensions, &f->dimensions));
    for (; f->entry_count < array.number; f->entry_count++) TRY(read_entry(f, r, f->entry_count));
    f->arena.tensor = UNKNOWN;
    f->arena.name = NULL;
    return check_names(f);
}

/* Make the lists of the tensors in each bundle, lay out the decoded bytes, and say what is supported. */
static tqc_verdict link_entries(tqc_file *f) {
    uint32_t i, b;
    for (i = f->entry_count; i-- > 0;) {
        entry *e = &f->entries[i];
        if (e->told.same_as >= 0 || e->told.bundle < 0) continue;
        e->next_in_bundle = f->bundles[e->told.bundle].first;
        f->bundles[e->told.bundle].first = i;
        if (!e->told.supported) f->bundles[e->told.bundle].supported = 0;
    }
    for (b = 0; b < f->bundle_count; b++)
        if (f->bundles[b].first == NO_ENTRY)
            return malformed(&f->arena, "directory.bundle", UNKNOWN, "a bundle without tensors");
    for (i = 0; i < f->entry_count; i++) {
        tqc_tensor *t = &f->entries[i].told;
        if (t->bundle >= 0 && !f->bundles[t->bundle].supported) t->supported = 0;
        t->position = f->bytes;
        f->bytes = add_saturated(f->bytes, t->bytes);
    }
    return TQC_DECODED;
}

static tqc_verdict read_directory(tqc_file *f) {
    arena *a = &f->arena;
    int64_t at = f->deflated ? UNKNOWN : HEADER_SIZE;
    reader r = new_reader(a, f->directory, f->size, at), found[FILE_KEYS];
    uint64_t most = FREE_VALUES + f->stored, left = most;
    TRY(check_value(&r, 0, &left));
    f->values = most - left;
    if (r.at != r.end) return wrong(&r, "directory.msgpack", "bytes are left over behind the directory");
    r = new_reader(a, f->directory, f->size, at);
    TRY(read_map(&r, file_keys, found, FILE_KEYS));
    if (found[FEATURES].at != NULL) TRY(read_features(&found[FEATURES]));
    if (found[BUNDLES].at != NULL) TRY(read_bundles(f, &found[BUNDLES]));
    if (found[METADATA].at != NULL) TRY(read_metadata(f, &found[METADATA]));
    if (found[TABLES].at != NULL) TRY(read_tables_segment(f, &found[TABLES]));
    if (found[TENSORS].at != NULL) TRY(read_entries(f, &found[TENSORS]));
    return link_entries(f);
}

/* ---- 4.4 segments ---- */

/* Give a segment its place behind all those before it. */
static tqc_verdict place_segment(tqc_file *f, segment *s, uint64_t *end) {
    s->offset = *end;
    if (s->length > f->source.length - *end)
        return malformed(&f->arena, "container.length", (int64_t)*end, "a segment reaches past the end of the file");
    *end += s->length;
    return TQC_DECODED;
}

static tqc_verdict place_segments(tqc_file *f) {
    uint64_t end = HEADER_SIZE + (uint64_t)f->stored, i;
    if (f->has_tables) TRY(place_segment(f, &f->tables_segment, &end));
    for (i = 0; i < f->bundle_count; i++) TRY(place_segment(f, &f->bundles[i].segment, &end));
    for (i = 0; i < f->segment_count; i++) TRY(place_segment(f, &f->segments[i], &end));
    if (end != f->source.length)
        return malformed(&f->arena, "container.length", (int64_t)end, "bytes are left over behind the last segment");
    return TQC_DECODED;
}

/* Bytes of the file, which has them: where they lie, or read into new memory. */
static tqc_verdict load(const tqc_file *f, arena *a, uint64_t offset, uint64_t size, const uint8_t **bytes) {
    uint8_t *copy;
    if (f->memory != NULL) {
        *bytes = f->memory + offset;
        return TQC_DECODED;
    }
    TRY(take(a, size, 1, &copy));
    if (size > 0 && f->source.read(f->source.context, offset, copy, (size_t)size) != 0)
        return fail(a, TQC_READ_FAILED, "", (int64_t)offset, "the file cannot be read");
    *bytes = copy;
    return TQC_DECODED;
}

static tqc_verdict check_crc(arena *a, const tqc_tables *tables, const uint8_t *bytes, uint64_t size, uint32_t crc,
                             int64_t offset) {
    if (is_crc(add_crc(&tables->crc, 0, bytes, size), crc)) return TQC_DECODED;
    return malformed(a, "segment.crc", offset, "the bytes of a segment do not have its CRC-32");
}

/* ---- 4.2 header ---- */

static tqc_verdict read_header(tqc_file *f) {
    static const uint8_t signature[8] = {0x89, 0x54, 0x51, 0x43, 0x0D, 0x0A, 0x1A, 0x0A};
    arena *a = &f->arena;
    const uint8_t *h, *stored;
    unsigned flags;
    block *mark;
    if (f->source.length < HEADER_SIZE)
        return malformed(a, "segment.short", (int64_t)f->source.length, "the file ends within the header");
    TRY(load(f, a, 0, HEADER_SIZE, &h));
    if (memcmp(h, signature, 8) != 0) return malformed(a, "header.signature", 0, "not a .tqc file");
    if (!is_crc(add_crc(&f->tables->crc, 0, h, 24), get_u32(h + 24)))
        return malformed(a, "header.crc", 24, "the header does not have its CRC-32");
    if (h[8] != TQC_MAJOR || h[9] != TQC_MINOR)
        return fail(a, TQC_UNSUPPORTED, "header.version", 8, "the file is not of version 0.9");
    flags = h[10] | (unsigned)h[11] << 8;
    if (flags > FLAG_DEFLATED) return fail(a, TQC_UNSUPPORTED, "header.flags", 10, "the header has unknown flags");
    f->deflated = flags == FLAG_DEFLATED;
    f->stored = get_u32(h + 12);
    f->size = get_u32(h + 16);
    if (f->size > MAX_DIRECTORY) return malformed(a, "directory.size", 16, "the directory has more than 2^26 bytes");
    if (f->deflated ? f->stored >= f->size || f->size > 65536 + MAX_INFLATION * (uint64_t)f->stored
                    : f->stored != f->size)
        return malformed(a, "directory.stored", 12, "the stored size of the directory does not go with its size");
    if (f->stored > f->source.length - HEADER_SIZE)
        return malformed(a, "segment.short", HEADER_SIZE, "the directory reaches past the end of the file");
    TRY(take(a, f->size, 1, &f->directory));
    mark = a->newest;
    TRY(load(f, a, HEADER_SIZE, f->stored, &stored));
    if (!is_crc(add_crc(&f->tables->crc, 0, stored, f->stored), get_u32(h + 20)))
        return malformed(a, "directory.crc", 20, "the directory does not have its CRC-32");
    if (f->deflated) {
        reader r = new_reader(a, stored, f->stored, HEADER_SIZE);
        TRY(read_deflated(&r, f->stored, f->directory, f->size));
    } else if (f->size > 0) {
        memcpy(f->directory, stored, f->size);
    }
    release_to(a, mark);
    return TQC_DECODED;
}

/* The bytes of the tables segment, inflated, into new memory or where they lie. */
static tqc_verdict load_tables(tqc_file *f, reader *plain) {
    arena *a = &f->arena;
    const segment *s = &f->tables_segment;
    const uint8_t *bytes;
    uint8_t *inflated;
    TRY(load(f, a, s->offset, s->length, &bytes));
    TRY(check_crc(a, f->tables, bytes, s->length, s->crc, (int64_t)s->offset));
    *plain = new_reader(a, bytes, s->length, (int64_t)s->offset);
    if (f->tables_size == 0) return TQC_DECODED;
    TRY(take(a, f->tables_size, 1, &inflated));
    TRY(read_deflated(plain, s->length, inflated, f->tables_size));
    *plain = new_reader(a, inflated, f->tables_size, UNKNOWN);
    return TQC_DECODED;
}

/* ---- 6.2 vectors ---- */

typedef struct {
    uint64_t count;
    unsigned most;
    uint8_t *values;
    int coded;
    unsigned table;
} vector;

static tqc_verdict check_vector(const reader *r, const vector *v) {
    uint64_t i;
    for (i = 0; i < v->count; i++)
        if (v->values[i] > v->most) return wrong(r, "vector.range", "a value of a vector is above its limit");
    return TQC_DECODED;
}

/* Coded values are filled in when the stream of the head is decoded. */
static tqc_verdict read_vector(reader *r, const tqc_tables *tables, uint64_t count, unsigned most, vector *v) {
    unsigned kind, width;
    uint32_t constant;
    const uint8_t *bytes;
    memset(v, 0, sizeof *v);
    v->count = count;
    v->most = most;
    TRY(read_u8(r, &kind));
    if (kind == VECTOR_CONSTANT) {
        TRY(read_uv32(r, MAX_VECTOR, &constant));
        TRY(take(r->arena, count, 1, &v->values));
        memset(v->values, (int)constant, (size_t)count);
    } else if (kind == VECTOR_PACKED) {
        TRY(read_u8(r, &width));
        if (width < 1 || width > 8) return wrong(r, "vector.width", "the values of a vector are not 1 to 8 bits wide");
        TRY(read_packed(r, count * width, &bytes));
        TRY(take(r->arena, count, 1, &v->values));
        unpack(bytes, divide_up(count * width, 8), 0, width, count, v->values);
    } else if (kind == VECTOR_CODED) {
        v->coded = 1;
        TRY(read_u8(r, &v->table));
        return check_table(r, tables, v->table);
    } else {
        return wrong(r, "vector.kind", "unknown kind of a vector");
    }
    return check_vector(r, v);
}

/* ---- 9 the transform-coded record ---- */

typedef struct {
    unsigned kind;
    const uint8_t *tables; /* of the rows, explicit */
    vector shifts;
    double *rows; /* synthesis rows, channels x length; NULL without a basis */
    double most;  /* G of 10.1 */
} basis;

typedef struct {
    uint8_t roles[MAX_DIMENSIONS];
    uint64_t length[AXES], channels[AXES], columns;
    uint32_t scale_mantissa;
    int32_t scale_exponent;
    unsigned quantizer, payload_kind;
    uint32_t steps, tile_rows, tile_columns;
    basis bases[AXES];
    vector depths, levels[AXES], row_scales, multipliers;
    uint32_t class_count;
    uint8_t table_map[MAX_CLASSES];
    uint64_t kept;
    uint32_t *column; /* of each kept column, its number */
    uint32_t *half;   /* of each kept column, 2^(depth - 1) */
    uint8_t *level;   /* of each kept column, levels_in + levels_taps */
    uint64_t bands, tiles_across;
} head;

uint64_t tqc_expand(unsigned code, unsigned mantissa) {
    unsigned exponent = code >> mantissa, fraction = code & ((1U << mantissa) - 1);
    return exponent == 0 ? fraction : (uint64_t)((1U << mantissa) + fraction) << (exponent - 1);
}

static tqc_verdict read_roles(reader *r, const tqc_tensor *t, head *h) {
    unsigned i, role;
    for (i = 0; i < AXES; i++) h->length[i] = 1;
    for (i = 0; i < t->dimensions; i++) {
        TRY(read_u8(r, &role));
        if (role >= AXES) return wrong(r, "head.role", "unknown role of a dimension");
        h->roles[i] = (uint8_t)role;
        h->length[role] *= t->shape[i];
    }
    return TQC_DECODED;
}

static tqc_verdict check_dct(const reader *r, const tqc_tensor *t, const head *h, unsigned axis) {
    unsigned i, dimensions = 0;
    int fits = axis == TAPS && h->length[TAPS] <= MAX_DCT_TAPS;
    for (i = 0; i < t->dimensions; i++) {
        if (h->roles[i] != TAPS) continue;
        dimensions++;
        if (t->shape[i] > MAX_DCT) fits = 0;
    }
    if (fits && dimensions <= MAX_DCT_DIMENSIONS) return TQC_DECODED;
    return wrong(r, "basis.dct", "a DCT on an axis that cannot have one");
}

static tqc_verdict read_basis(reader *r, const tqc_tables *tables, const tqc_tensor *t, head *h, unsigned axis) {
    basis *b = &h->bases[axis];
    uint64_t length = h->length[axis], rows, k;
    h->channels[axis] = length;
    TRY(read_u8(r, &b->kind));
    if (b->kind > BASIS_EXPLICIT) return wrong(r, "basis.kind", "unknown kind of a basis");
    if (b->kind == BASIS_DCT) return check_dct(r, t, h, axis);
    if (b->kind == BASIS_NONE) return TQC_DECODED;
    TRY(read_uv(r, length, &rows));
    if (rows > MAX_BASIS / length) return wrong(r, "basis.size", "an explicit basis of more than 2^24 entries");
    TRY(read_bytes(r, rows, &b->tables));
    for (k = 0; k < rows; k++) TRY(check_table(r, tables, b->tables[k]));
    h->channels[axis] = rows;
    return read_vector(r, tables, rows, MAX_BASIS_SHIFT, &b->shifts);
}

static tqc_verdict read_classes(reader *r, const tqc_tables *tables, head *h) {
    const uint8_t *map;
    unsigned i, axis;
    TRY(read_uv32(r, MAX_CLASSES, &h->class_count));
    if (h->class_count == 0) return wrong(r, "class.count", "a range-coded tensor without a class");
    TRY(read_bytes(r, h->class_count, &map));
    for (i = 0; i < h->class_count; i++) {
        unsigned first = map[i], second = first + (h->quantizer == TRELLIS);
        if (second >= tables->count) return wrong(r, "class.table", "the file has no such table, or none after it");
        if (tables->tables[first].low_bits != tables->tables[second].low_bits)
            return wrong(r, "class.low_bits", "the two tables of a class have different low bits");
        h->table_map[i] = map[i];
    }
    for (axis = 0; axis < AXES; axis++) TRY(read_vector(r, tables, h->channels[axis], MAX_CLASSES, &h->levels[axis]));
    return TQC_DECODED;
}

/* 10.1, work: channels of bases beyond the first few are paid for by the bytes of the segments. */
static tqc_verdict check_work(const reader *r, const tqc_tensor *t, const head *h, uint64_t bytes) {
    uint64_t channels = 0, paid = smaller(bytes, UINT64_MAX / WORK_PER_BYTE) * WORK_PER_BYTE / t->elements;
    unsigned axis;
    for (axis = 0; axis < AXES; axis++)
        if (h->bases[axis].kind != BASIS_NONE) channels += h->channels[axis];
    if (channels <= FREE_CHANNELS || channels - FREE_CHANNELS <= paid) return TQC_DECODED;
    return wrong(r, "reconstruct.work", "the bases have too many channels for the bytes of the tensor");
}

/* 6.3: what is coded in the stream of a head, in its order. */
typedef struct {
    run *runs;
    uint32_t count;
    uint64_t integers;
} head_runs;

static void add_run(head_runs *all, uint64_t count, unsigned table) {
    run *u = &all->runs[all->count++];
    u->start = all->integers;
    u->count = count;
    u->table = table;
    all->integers += count;
}

static void add_vector(head_runs *all, const vector *v) {
    if (v->coded) add_run(all, v->count, v->table);
}

static tqc_verdict fill_vector(reader *r, vector *v, const int32_t **values) {
    uint64_t i;
    if (!v->coded) return TQC_DECODED;
    TRY(take(r->arena, v->count, 1, &v->values));
    for (i = 0; i < v->count; i++) {
        int32_t x = *(*values)++;
        if (x < 0 || x > (int32_t)v->most) return wrong(r, "vector.range", "a value of a vector is out of range");
        v->values[i] = (uint8_t)x;
    }
    return TQC_DECODED;
}

static tqc_verdict fill_basis(reader *r, basis *b, uint64_t rows, uint64_t length, const int32_t **values) {
    uint64_t k, n;
    TRY(fill_vector(r, &b->shifts, values));
    if (b->kind != BASIS_EXPLICIT) return TQC_DECODED;
    TRY(take(r->arena, rows * length, sizeof *b->rows, &b->rows));
    for (k = 0; k < rows; k++)
        for (n = 0; n < length; n++) /* exact: below 2^55, with at most 31 significant bits */
            b->rows[k * length + n] = (double)*(*values)++ * (double)(INT32_C(1) << b->shifts.values[k]);
    return TQC_DECODED;
}

static tqc_verdict read_head_stream(reader *r, const tqc_tables *tables, const tqc_tensor *t, head *h) {
    head_runs all = {NULL, 0, 0};
    uint64_t bases = h->bases[OUT].shifts.count + h->bases[IN].shifts.count + h->bases[TAPS].shifts.count, k;
    uint64_t most = smaller(MAX_HEAD, (UINT64_C(1) << 16) + 4 * t->elements);
    int32_t *values;
    const int32_t *rest;
    unsigned axis;
    int anything = 0;
    TRY(take(r->arena, bases + AXES + 6, sizeof *all.runs, &all.runs));
    for (axis = 0; axis < AXES; axis++) {
        basis *b = &h->bases[axis];
        add_vector(&all, &b->shifts);
        if (b->kind != BASIS_EXPLICIT) continue;
        anything = 1;
        for (k = 0; k < h->channels[axis]; k++) add_run(&all, h->length[axis], b->tables[k]);
    }
    add_vector(&all, &h->depths);
    for (axis = 0; axis < AXES; axis++) add_vector(&all, &h->levels[axis]);
    add_vector(&all, &h->row_scales);
    add_vector(&all, &h->multipliers);
    if (!anything && all.count == 0) return TQC_DECODED;
    if (all.integers > most) return wrong(r, "head.size", "too many coded integers in the head");
    TRY(take(r->arena, all.integers, sizeof *values, &values));
    TRY(read_row_stream(r, tables, all.runs, all.count, values));
    rest = values;
    for (axis = 0; axis < AXES; axis++) TRY(fill_basis(r, &h->bases[axis], h->channels[axis], h->length[axis], &rest));
    TRY(fill_vector(r, &h->depths, &rest));
    for (axis = 0; axis < AXES; axis++) TRY(fill_vector(r, &h->levels[axis], &rest));
    TRY(fill_vector(r, &h->row_scales, &rest));
    return fill_vector(r, &h->multipliers, &rest);
}

static tqc_verdict read_head_fields(reader *r, const tqc_tables *tables, const tqc_tensor *t, head *h) {
    unsigned axis;
    memset(h, 0, sizeof *h);
    TRY(read_roles(r, t, h));
    TRY(read_uv32(r, MAX_SCALE_MANTISSA, &h->scale_mantissa));
    if (h->scale_mantissa == 0) return wrong(r, "head.scale", "the scale is 0");
    TRY(read_sv(r, MAX_SCALE_EXPONENT, &h->scale_exponent));
    TRY(read_u8(r, &h->quantizer));
    if (h->quantizer > TRELLIS)
        return fail(r->arena, TQC_UNSUPPORTED, "head.quantizer", place(r) - 1, "unknown quantizer");
    if (h->quantizer == TRELLIS) {
        TRY(read_uv32(r, MAX_STEPS, &h->steps));
        if (h->steps == 0) return wrong(r, "head.steps", "segments of the trellis have no rows");
    }
    TRY(read_u8(r, &h->payload_kind));
    if (h->payload_kind > FIXED) return wrong(r, "head.payload_kind", "unknown kind of payloads");
    TRY(read_uv32(r, MAX_SYMBOLS, &h->tile_rows));
    TRY(read_uv32(r, MAX_SYMBOLS, &h->tile_columns));
    if ((uint64_t)h->tile_rows * h->tile_columns - 1 >= MAX_SYMBOLS)
        return wrong(r, "head.tile", "a tile has no indices, or more than 2^20");
    for (axis = 0; axis < AXES; axis++) TRY(read_basis(r, tables, t, h, axis));
    h->columns = h->channels[IN] * h->channels[TAPS];
    TRY(read_vector(r, tables, h->columns, MAX_DEPTH, &h->depths));
    if (h->payload_kind == RANGE) TRY(read_classes(r, tables, h));
    TRY(read_vector(r, tables, h->length[OUT], MAX_VECTOR, &h->row_scales));
    return read_vector(r, tables, h->columns, MAX_VECTOR, &h->multipliers);
}

/* 10.2 */
static int dct_entry(unsigned length, unsigned k, unsigned n) {
    static const uint16_t cosines[MAX_DCT][MAX_DCT] = {
        {1024},
        {1024, 724},
        {1024, 887, 512},
        {1024, 946, 724, 392},
        {1024, 974, 828, 602, 316},
        {1024, 989, 887, 724, 512, 265},
        {1024, 998, 923, 801, 638, 444, 228},
        {1024, 1004, 946, 851, 724, 569, 392, 200},
        {1024, 1008, 962, 887, 784, 658, 512, 350, 178},
        {1024, 1011, 974, 912, 828, 724, 602, 465, 316, 160},
        {1024, 1014, 983, 931, 861, 774, 671, 554, 425, 288, 146},
        {1024, 1015, 989, 946, 887, 812, 724, 623, 512, 392, 265, 134},
        {1024, 1017, 994, 957, 907, 843, 766, 679, 582, 476, 363, 245, 123},
        {1024, 1018, 998, 967, 923, 867, 801, 724, 638, 545, 444, 338, 228, 115},
        {1024, 1018, 1002, 974, 935, 887, 828, 761, 685, 602, 512, 416, 316, 213, 107},
        {1024, 1019, 1004, 980, 946, 903, 851, 792, 724, 650, 569, 483, 392, 297, 200, 100},
    };
    const uint16_t *row = cosines[length - 1];
    unsigned angle;
    if (k == 0) return 724;
    angle = k * (2 * n + 1) % (4 * length);
    if (angle > 2 * length) angle = 4 * length - angle;
    if (angle == length) return 0;
    return angle < length ? row[angle] : -(int)row[2 * length - angle];
}

/* The products of the DCTs of all dimensions: one after the other, each entry becomes length x length entries. */
static tqc_verdict make_dct(arena *a, const tqc_tensor *t, head *h) {
    size_t size = 1, length, row, column, k, n;
    double *rows;
    unsigned i;
    TRY(take(a, h->length[TAPS] * h->length[TAPS], sizeof *rows, &rows));
    rows[0] = 1;
    for (i = 0; i < t->dimensions; i++, size *= length) {
        double entries[MAX_DCT][MAX_DCT];
        length = 1;
        if (h->roles[i] != TAPS) continue;
        length = (size_t)t->shape[i];
        for (k = 0; k < length; k++)
            for (n = 0; n < length; n++) entries[k][n] = dct_entry((unsigned)length, (unsigned)k, (unsigned)n);
        for (row = size; row-- > 0;) /* from the last on, in place */
            for (column = size; column-- > 0;) {
                double factor = rows[row * size + column];
                for (k = 0; k < length; k++)
                    for (n = 0; n < length; n++)
                        rows[(row * length + k) * size * length + column * length + n] = factor * entries[k][n];
            }
    }
    h->bases[TAPS].rows = rows;
    return TQC_DECODED;
}

/* G of 10.1; sums that are not exact are above 2^53 in any case. */
static tqc_verdict sum_basis(arena *a, basis *b, uint64_t channels, uint64_t length) {
    uint64_t k, n;
    double *sums;
    block *mark = a->newest;
    b->most = 1;
    if (b->rows == NULL) return TQC_DECODED;
    TRY(take_zeros(a, length, sizeof *sums, &sums));
    for (k = 0; k < channels; k++)
        for (n = 0; n < length; n++) sums[n] += fabs(b->rows[k * length + n]);
    for (n = 0; n < length; n++)
        if (sums[n] > b->most) b->most = sums[n];
    release_to(a, mark);
    return TQC_DECODED;
}

/* 10.1, bound. Each factor is an integer, at least 1 and at most 2^79. A product of doubles is inexact only above 2^53,
 * and rounding does not bring it below. */
static tqc_verdict check_bound(arena *a, head *h) {
    double bound = 1;
    unsigned depth = 0, code = 0, axis;
    uint64_t i, most;
    for (i = 0; i < h->columns; i++) {
        if (h->depths.values[i] > depth) depth = h->depths.values[i];
        if (h->multipliers.values[i] > code) code = h->multipliers.values[i];
    }
    if (depth > 0) bound = (double)(UINT32_C(1) << (h->quantizer == TRELLIS ? depth : depth - 1));
    most = tqc_expand(code, MULTIPLIER_MANTISSA);
    if (most > 1) bound *= (double)most;
    for (axis = 0; axis < AXES; axis++) {
        TRY(sum_basis(a, &h->bases[axis], h->channels[axis], h->length[axis]));
        bound *= h->bases[axis].most;
    }
    if (bound < (double)(UINT64_C(1) << SUM_BITS)) return TQC_DECODED;
    return malformed(a, "reconstruct.bound", UNKNOWN, "sums of the reconstruction may reach 2^53");
}

/* Find the kept columns and what decoding needs of each. */
static tqc_verdict keep_columns(arena *a, head *h) {
    uint64_t i, k = 0;
    if (h->columns > UINT32_MAX)
        return fail(a, TQC_LIMIT, "limit.columns", UNKNOWN, "a tensor of more than 2^32 columns");
    for (i = 0; i < h->columns; i++) h->kept += h->depths.values[i] > 0;
    TRY(take(a, h->kept, sizeof *h->column, &h->column));
    TRY(take(a, h->kept, sizeof *h->half, &h->half));
    TRY(take(a, h->kept, sizeof *h->level, &h->level));
    for (i = 0; i < h->columns; i++) {
        if (h->depths.values[i] == 0) continue;
        h->column[k] = (uint32_t)i;
        h->half[k] = UINT32_C(1) << (h->depths.values[i] - 1);
        if (h->payload_kind == RANGE)
            h->level[k] =
                (uint8_t)(h->levels[IN].values[i / h->channels[TAPS]] + h->levels[TAPS].values[i % h->channels[TAPS]]);
        k++;
    }
    return TQC_DECODED;
}

static tqc_verdict read_head(reader *r, const tqc_tables *tables, const tqc_tensor *t, uint64_t segments,
                             uint64_t bytes, head *h) {
    TRY(read_head_fields(r, tables, t, h));
    TRY(check_work(r, t, h, bytes));
    TRY(read_head_stream(r, tables, t, h));
    if (h->bases[TAPS].kind == BASIS_DCT) TRY(make_dct(r->arena, t, h));
    TRY(check_bound(r->arena, h));
    TRY(keep_columns(r->arena, h));
    if (h->channels[OUT] > 0 && h->kept > 0) {
        h->bands = divide_up(h->channels[OUT], h->tile_rows);
        h->tiles_across = divide_up(h->kept, h->tile_columns);
    }
    if (segments != (h->bands * h->tiles_across > 0 ? h->bands * h->tiles_across : 1))
        return wrong(r, "tensor.segments", "the tensor has another number of segments than tiles");
    return TQC_DECODED;
}

/* ---- 7 payloads and the trellis ---- */

/* How the payloads of a tensor are decoded, and where to. Indices are grouped by the table of quantizer 0, groups in
 * ascending order. */
typedef struct {
    const head *head;
    const tqc_tables *tables;
    const tqc_segment *segments;
    uint64_t head_size; /* bytes of the first segment before its payload */
    int64_t tensor;     /* for errors */
    const char *name;
    size_t name_size;
    unsigned groups;
    unsigned table[MAX_CLASSES]; /* of each group */
    uint8_t group[MAX_CLASSES];  /* of each class */
    int overlap;                 /* a table is that of quantizer 1 in one group and that of quantizer 0 in another */
    int low_bits;                /* a table has some */
    int certain;                 /* a table has just one member */
    int32_t *coefficients;
    uint64_t first_row; /* of `coefficients` */
} plan;

/* A tile that is being decoded. The indices of a step are numbered row by row: j * columns + c is that of row step + j
 * * steps. */
typedef struct {
    const plan *plan;
    stream stream;
    const uint8_t *low;
    uint64_t low_bits;
    uint64_t first_row, first_column;
    uint32_t rows, columns;
    uint32_t step, steps;          /* of this tile */
    uint32_t left;                 /* symbols of the step */
    uint8_t *list_of_row;          /* rows of one level share a list: */
    uint32_t *columns_of_list;     /* the columns in the order of their groups, then of position */
    uint32_t (*ends)[MAX_CLASSES]; /* where those of each group end */
    uint64_t *low_of_row;          /* bits of `low` before the row */
    uint32_t *words;
    symbol_order *order, *odd;
    uint8_t *states;
    int32_t *indices;
} tile;

static void plan_groups(plan *p) {
    const head *h = p->head;
    int trellis = h->quantizer == TRELLIS;
    uint8_t group[MAX_TABLES] = {0};
    unsigned i;
    for (i = 0; i < h->class_count; i++) group[h->table_map[i]] = 1;
    for (i = 0; i < p->tables->count; i++) {
        const table *t = &p->tables->tables[i];
        if (!group[i]) continue;
        if (trellis && p->groups > 0 && p->table[p->groups - 1] + 1 == i) p->overlap = 1;
        if (t->low_bits > 0) p->low_bits = 1;
        if (t[0].certain || (trellis && t[1].certain)) p->certain = 1;
        group[i] = (uint8_t)p->groups;
        p->table[p->groups++] = i;
    }
    for (i = 0; i < h->class_count; i++) p->group[i] = group[h->table_map[i]];
}

static unsigned group_of(const plan *p, unsigned row_level, uint64_t column) {
    unsigned level = row_level + p->head->level[column];
    return p->group[smaller(level, p->head->class_count - 1)];
}

/* Sort the columns of the tile by group, for each level that a row of it has. */
static void list_columns(tile *t) {
    const plan *p = t->plan;
    const uint8_t *levels = p->head->levels[OUT].values + t->first_row;
    int16_t list_of_level[MAX_CLASSES + 1];
    unsigned lists = 0, level, g;
    uint32_t row, c;
    for (level = 0; level <= MAX_CLASSES; level++) list_of_level[level] = -1;
    for (row = 0; row < t->rows; row++) {
        level = levels[row];
        if (list_of_level[level] < 0) {
            uint32_t next[MAX_CLASSES] = {0}, start = 0, *columns = t->columns_of_list + (size_t)lists * t->columns;
            list_of_level[level] = (int16_t)lists;
            for (c = 0; c < t->columns; c++) next[group_of(p, level, t->first_column + c)]++;
            for (g = 0; g < p->groups; g++) {
                uint32_t count = next[g];
                next[g] = start;
                start += count;
                t->ends[lists][g] = start;
            }
            for (c = 0; c < t->columns; c++) columns[next[group_of(p, level, t->first_column + c)]++] = c;
            lists++;
        }
        t->list_of_row[row] = (uint8_t)list_of_level[level];
    }
}

/* Take the `low` of the tile from the payload; its widths follow from the tables. */
static tqc_verdict place_low(tile *t, reader *payload) {
    const plan *p = t->plan;
    uint32_t row;
    unsigned g;
    t->low_bits = 0;
    for (row = 0; p->low_bits && row < t->rows; row++) {
        const uint32_t *ends = t->ends[t->list_of_row[row]];
        uint32_t start = 0;
        t->low_of_row[row] = t->low_bits;
        for (g = 0; g < p->groups; start = ends[g++])
            t->low_bits += (uint64_t)(ends[g] - start) * p->tables->tables[p->table[g]].low_bits;
    }
    TRY(read_packed(payload, t->low_bits, &t->low));
    return end_of(payload);
}

/* Rows of the current step. */
static uint32_t step_rows(const tile *t) { return (t->rows - t->step + t->steps - 1) / t->steps; }

/* Positions base + columns[0], base + columns[1], ... to those whose quantizer is 0 and those whose quantizer is 1;
 * returns how many have 0. */
static uint32_t split_columns(const uint32_t *columns, uint32_t n, symbol_order base, const uint8_t *states,
                              symbol_order *even, symbol_order *odd) {
    uint32_t i, evens = 0;
    for (i = 0; i < n; i++) {
        uint32_t quantizer = states[columns[i]] & 1;
        even[evens] = odd[i - evens] = base + columns[i]; /* the one that is not meant is written over by the next */
        evens += quantizer ^ 1;
    }
    return evens;
}

/* Sort the indices of a step by table, where no table is that of two groups: group by group, and in it by quantizer. */
static void sort_groups(tile *t) {
    const plan *p = t->plan;
    symbol_order *order = t->order;
    uint32_t rows = step_rows(t), j, i;
    unsigned g;
    for (g = 0; g < p->groups; g++) {
        symbol_order first_table = p->table[g] << PLACE_BITS;
        uint32_t odds = 0;
        for (j = 0; j < rows; j++) {
            unsigned list = t->list_of_row[t->step + j * t->steps];
            const uint32_t *columns = t->columns_of_list + (size_t)list * t->columns;
            uint32_t start = g > 0 ? t->ends[list][g - 1] : 0, n = t->ends[list][g] - start, base = j * t->columns,
                     evens;
            evens = split_columns(columns + start, n, base | first_table, t->states + base, order, t->odd + odds);
            order += evens;
            odds += n - evens;
        }
        for (i = 0; i < odds; i++) *order++ = t->odd[i] + (UINT32_C(1) << PLACE_BITS);
    }
}

/* The same for any tables, and for few columns: a counting sort. */
static void sort_tables(tile *t) {
    const plan *p = t->plan;
    const uint8_t *levels = p->head->levels[OUT].values + t->first_row;
    uint32_t next[MAX_TABLES] = {0}, rows = step_rows(t), start = 0, j, c;
    unsigned i, pass;
    for (pass = 0; pass < 2; pass++) {
        for (j = 0; j < rows; j++)
            for (c = 0; c < t->columns; c++) {
                uint32_t position = j * t->columns + c;
                unsigned g = group_of(p, levels[t->step + j * t->steps], t->first_column + c);
                unsigned table_index = p->table[g] + (t->states[position] & 1);
                if (pass == 1) t->order[next[table_index]] = position | table_index << PLACE_BITS;
                next[table_index]++;
            }
        for (i = 0; pass == 0 && i < p->tables->count; i++) {
            uint32_t count = next[i];
            next[i] = start;
            start += count;
        }
    }
}

/* Take symbols that cost no bits out of the order. */
static void take_certain(tile *t) {
    const table *tables = t->plan->tables->tables;
    uint32_t i, left = 0;
    for (i = 0; i < t->left; i++) {
        const table *of = &tables[t->order[i] >> PLACE_BITS];
        if (of->certain)
            t->indices[t->order[i] & PLACE_MASK] = of->low;
        else
            t->order[left++] = t->order[i];
    }
    t->left = left;
}

static void start_step(tile *t) {
    t->left = step_rows(t) * t->columns;
    t->stream.coder.order = t->order;
    if (t->plan->overlap || t->columns < t->plan->groups)
        sort_tables(t);
    else
        sort_groups(t);
    if (t->plan->certain) take_certain(t);
}

/* Indices of a row to coefficients, and states to the next ones (7.2). What it returns is not 0 if an index is out of
 * range. */
static uint32_t dequantize(const int32_t *indices, const uint32_t *half, uint32_t n, uint8_t *states,
                           int32_t *coefficients) {
    uint32_t wrong_bits = 0, i;
    if (states == NULL) {
        for (i = 0; i < n; i++) {
            wrong_bits |= ((uint32_t)indices[i] + half[i]) & (0 - 2 * half[i]);
            coefficients[i] = indices[i];
        }
        return wrong_bits;
    }
    for (i = 0; i < n; i++) {
        int32_t k = indices[i], s = states[i];
        int32_t sign = (k > 0) - (k < 0);
        wrong_bits |= ((uint32_t)k + half[i]) & (0 - 2 * half[i]);
        coefficients[i] = (int32_t)(2 * (uint32_t)k) - (sign & -(s & 1));
        states[i] = (uint8_t)(s >> 1 ^ (5 & -(s & 1)) ^ (k & 1) << 1); /* the table of 7.2 */
    }
    return wrong_bits;
}

static tqc_verdict store_row(const tile *t, uint32_t row, const int32_t *indices, uint8_t *states) {
    const plan *p = t->plan;
    const head *h = p->head;
    int32_t *to = p->coefficients + (size_t)(t->first_row + row - p->first_row) * (size_t)h->kept + t->first_column;
    if (h->quantizer != TRELLIS) states = NULL;
    if (dequantize(indices, h->half + t->first_column, t->columns, states, to) == 0) return TQC_DECODED;
    return malformed(t->stream.arena, "payload.depth", t->stream.offset,
                     "an index is out of the range of its column's depth");
}

/* Put the low bits to the symbols of a row. */
static tqc_verdict add_low(const tile *t, uint32_t row, int32_t *indices) {
    const plan *p = t->plan;
    unsigned row_level = p->head->levels[OUT].values[t->first_row + row];
    uint64_t bit = t->low_of_row[row], size = divide_up(t->low_bits, 8);
    uint32_t c;
    for (c = 0; c < t->columns; c++) {
        unsigned low_bits = p->tables->tables[p->table[group_of(p, row_level, t->first_column + c)]].low_bits;
        int64_t v = (int64_t)indices[c] * (INT32_C(1) << low_bits);
        if (low_bits > 0) v += (int64_t)bits_at(t->low, size, bit, low_bits);
        if (v < -MAX_VALUE || v > MAX_VALUE)
            return malformed(t->stream.arena, "stream.range", t->stream.offset, "an integer is beyond 2^30");
        indices[c] = (int32_t)v;
        bit += low_bits;
    }
    return TQC_DECODED;
}

static tqc_verdict end_step(const tile *t) {
    uint32_t rows = step_rows(t), j;
    for (j = 0; j < rows; j++) {
        uint32_t row = t->step + j * t->steps;
        size_t start = (size_t)j * t->columns;
        if (t->plan->low_bits) TRY(add_low(t, row, t->indices + start));
        TRY(store_row(t, row, t->indices + start, t->states + start));
    }
    return TQC_DECODED;
}

/* Go on to the next symbols that the words have to give: `left` is 0 when the tile is done. */
static tqc_verdict advance(tile *t) {
    while (t->left == 0) {
        TRY(end_step(t));
        if (++t->step == t->steps) return end_stream(&t->stream);
        start_step(t);
    }
    return TQC_DECODED;
}

static void place_tile(tile *t, const plan *p, uint64_t index) {
    const head *h = p->head;
    t->plan = p;
    t->first_row = index / h->tiles_across * h->tile_rows;
    t->first_column = index % h->tiles_across * h->tile_columns;
    t->rows = (uint32_t)smaller(h->tile_rows, h->channels[OUT] - t->first_row);
    t->columns = (uint32_t)smaller(h->tile_columns, h->kept - t->first_column);
}

static reader payload_of(arena *a, const plan *p, uint64_t index) {
    const tqc_segment *s = &p->segments[index];
    reader r = new_reader(a, s->data, s->size, s->offset);
    if (index == 0) r.at += p->head_size;
    return r;
}

/* Begin with a range-coded tile, or decode one of fixed length. */
static tqc_verdict start_tile(arena *a, tile *t, const plan *p, uint64_t index) {
    const head *h = p->head;
    reader payload = payload_of(a, p, index);
    place_tile(t, p, index);
    TRY(read_stream(&payload, p->tables, (uint64_t)t->rows * t->columns, &t->stream, t->words));
    t->stream.coder.symbols = t->indices;
    list_columns(t);
    TRY(place_low(t, &payload));
    t->steps = h->quantizer == TRELLIS ? (uint32_t)smaller(h->steps, t->rows) : 1;
    t->step = 0;
    memset(t->states, 0, (size_t)step_rows(t) * t->columns);
    start_step(t);
    return advance(t);
}

static tqc_verdict decode_fixed(arena *a, tile *t, const plan *p, uint64_t index) {
    const head *h = p->head;
    reader payload = payload_of(a, p, index);
    const uint8_t *indices;
    const uint32_t *half;
    uint64_t width = 0, size, bit = 0;
    uint32_t row, c;
    place_tile(t, p, index);
    half = h->half + t->first_column;
    t->stream.arena = a;
    t->stream.offset = place(&payload);
    for (c = 0; c < t->columns; c++) width += h->depths.values[h->column[t->first_column + c]];
    size = divide_up(width * t->rows, 8);
    TRY(read_packed(&payload, width * t->rows, &indices));
    TRY(end_of(&payload));
    for (row = 0; row < t->rows; row++) {
        if (h->quantizer == TRELLIS && row % h->steps == 0) memset(t->states, 0, t->columns);
        for (c = 0; c < t->columns; c++) {
            unsigned depth = h->depths.values[h->column[t->first_column + c]];
            t->indices[c] = (int32_t)((uint32_t)bits_at(indices, size, bit, depth) ^ half[c]) - (int32_t)half[c];
            bit += depth;
        }
        TRY(store_row(t, row, t->indices, t->states));
    }
    return TQC_DECODED;
}

/* ---- several payloads at once ---- */

#define LANES 4

/* Scratch memory for tiles, and the largest sizes that they need. */
typedef struct {
    arena *arena;
    uint64_t step, words, rows, listed, lists;
    tile tiles[LANES];
} lanes_memory;

static void need_lanes(lanes_memory *m, const plan *p) {
    const head *h = p->head;
    uint64_t rows = smaller(h->tile_rows, h->channels[OUT]), columns = smaller(h->tile_columns, h->kept),
             step = rows * columns, i;
    uint64_t lists = smaller(rows, MAX_CLASSES + 1);
    if (rows == 0) return;
    if (h->payload_kind == FIXED)
        step = columns; /* a row after the other */
    else if (h->quantizer == TRELLIS)
        step = divide_up(rows, smaller(h->steps, rows)) * columns;
    if (step > m->step) m->step = step;
    if (h->payload_kind == FIXED) return;
    for (i = 0; i < h->bands * h->tiles_across; i++)
        if (p->segments[i].size / 4 > m->words) m->words = p->segments[i].size / 4;
    if (rows > m->rows) m->rows = rows;
    if (lists > m->lists) m->lists = lists;
    if (lists * columns > m->listed) m->listed = lists * columns;
}

static tqc_verdict take_lanes(lanes_memory *m, uint64_t tiles) {
    arena *a = m->arena;
    unsigned j;
    for (j = 0; j < LANES && j < tiles; j++) {
        tile *t = &m->tiles[j];
        TRY(take(a, m->step, sizeof *t->states, &t->states));
        TRY(take(a, m->step, sizeof *t->indices, &t->indices));
        TRY(take(a, m->step + 1, sizeof *t->order, &t->order));
        TRY(take(a, m->step + 1, sizeof *t->odd, &t->odd));
        TRY(take(a, m->words + CHUNK + 2, sizeof *t->words, &t->words));
        TRY(take(a, m->rows, sizeof *t->list_of_row, &t->list_of_row));
        TRY(take(a, m->rows, sizeof *t->low_of_row, &t->low_of_row));
        TRY(take(a, m->listed, sizeof *t->columns_of_list, &t->columns_of_list));
        TRY(take(a, m->lists, sizeof *t->ends, &t->ends));
    }
    return TQC_DECODED;
}

/* Tiles that wait: those from `next` to `end` of the first plan, and all of each further one. */
typedef struct {
    plan *const *plans;
    unsigned count; /* of plans */
    uint64_t next, end;
} tile_queue;

static uint64_t tile_count(const plan *p) { return p->head->bands * p->head->tiles_across; }

static void concern_plan(arena *a, const plan *p) {
    a->tensor = p->tensor;
    a->name = p->name;
    a->name_size = p->name_size;
}

/* Begin with the next tile of the queue that has symbols to decode; `left` is 0 if there is none. */
static tqc_verdict take_tile(lanes_memory *m, tile *t, tile_queue *queue) {
    t->left = 0;
    while (t->left == 0 && queue->count > 0) {
        const plan *p = queue->plans[0];
        concern_plan(m->arena, p);
        if (queue->next < queue->end) {
            uint64_t index = queue->next++;
            if (p->head->payload_kind == FIXED)
                TRY(decode_fixed(m->arena, t, p, index));
            else
                TRY(start_tile(m->arena, t, p, index));
            continue;
        }
        if (--queue->count == 0) break;
        queue->plans++;
        queue->next = 0;
        queue->end = tile_count(queue->plans[0]);
    }
    return TQC_DECODED;
}

static tqc_verdict decode_tiles(lanes_memory *m, tile_queue queue) {
    tile *busy[LANES];
    lane *lanes[LANES];
    unsigned count = 0, j;
    for (j = 0; j < LANES; j++) {
        TRY(take_tile(m, &m->tiles[j], &queue));
        if (m->tiles[j].left == 0) break;
        busy[count++] = &m->tiles[j];
    }
    while (count > 0) {
        uint32_t n = CHUNK;
        for (j = 0; j < count; j++) {
            n = (uint32_t)smaller(n, busy[j]->left);
            lanes[j] = &busy[j]->stream.coder;
        }
        if (count == 4) decode_4(lanes, n);
        if (count == 2 || count == 3) decode_2(lanes, n);
        if (count == 1 || count == 3) decode_1(lanes + count - 1, n);
        for (j = count; j-- > 0;) {
            tile *t = busy[j];
            concern_plan(m->arena, t->plan);
            TRY(end_chunk(&t->stream, n));
            t->left -= n;
            if (t->left == 0) TRY(advance(t));
            if (t->left == 0) TRY(take_tile(m, t, &queue));
            if (t->left == 0) busy[j] = busy[--count];
        }
    }
    return TQC_DECODED;
}

/* ---- 8 planes ---- */

typedef struct {
    const dtype *type;
    uint64_t start, elements;
    unsigned kept, flags, table, width;
    int32_t offset;
} part;

static tqc_verdict read_part(reader *r, const tqc_tables *tables, part *p) {
    unsigned most = p->type->exponent_bits > 0 ? p->type->mantissa_bits : 8 * p->type->size;
    unsigned flags_known = p->type->exponent_bits > 0 ? UNSIGNED | CODED_PART : 0;
    TRY(read_u8(r, &p->kept));
    if (p->kept > most) return wrong(r, "block.kept", "more bits are kept than the type has");
    TRY(read_u8(r, &p->flags));
    if (p->flags & ~flags_known) return wrong(r, "block.flags", "unknown flags of a part");
    if (p->flags & CODED_PART) {
        TRY(read_u8(r, &p->table));
        TRY(check_table(r, tables, p->table));
    }
    p->width = p->kept;
    if (p->type->exponent_bits == 0) return TQC_DECODED;
    if (!(p->flags & UNSIGNED)) p->width++;
    return read_sv(r, MAX_OFFSET, &p->offset);
}

/* A deflated plane inflates to `count` bytes in new memory; of a packed one *inflated is NULL. */
static tqc_verdict read_plane(reader *r, uint64_t count, uint8_t **inflated) {
    unsigned kind;
    uint64_t size;
    *inflated = NULL;
    TRY(read_u8(r, &kind));
    if (kind > PLANE_DEFLATED) return wrong(r, "plane.kind", "unknown kind of a plane");
    if (kind == PLANE_PACKED) return TQC_DECODED;
    TRY(read_uv(r, UINT64_MAX, &size));
    TRY(take(r->arena, count, 1, inflated));
    return read_deflated(r, size, *inflated, (size_t)count);
}

static tqc_verdict read_part_heads(reader *r, const tqc_tables *tables, part *parts, uint64_t n) {
    uint64_t size, i;
    uint8_t *inflated;
    const uint8_t *bytes;
    int64_t at;
    reader h;
    TRY(read_uv(r, MAX_PART_HEAD * n, &size));
    TRY(read_plane(r, size, &inflated));
    at = inflated == NULL ? place(r) : UNKNOWN;
    bytes = inflated;
    if (inflated == NULL) TRY(read_bytes(r, size, &bytes));
    h = new_reader(r->arena, bytes, size, at);
    for (i = 0; i < n; i++) TRY(read_part(&h, tables, &parts[i]));
    return end_of(&h);
}

/* 8.2: exponents, where elements will be put together. */
static tqc_verdict read_exponents(reader *r, const tqc_tables *tables, const part *parts, uint64_t n,
                                  uint64_t *elements) {
    run *runs;
    uint32_t count = 0;
    uint64_t integers = 0, i, k;
    int32_t *values = NULL;
    TRY(take(r->arena, n, sizeof *runs, &runs));
    for (i = 0; i < n; i++) {
        if (!(parts[i].flags & CODED_PART)) continue;
        runs[count].start = integers;
        runs[count].count = parts[i].elements;
        runs[count].table = parts[i].table;
        integers += parts[i].elements;
        count++;
    }
    if (count > 0) {
        TRY(take(r->arena, integers, sizeof *values, &values));
        TRY(read_row_stream(r, tables, runs, count, values));
    }
    for (i = 0; i < n; i++) {
        const part *p = &parts[i];
        int64_t end = INT64_C(1) << p->type->exponent_bits;
        if (p->type->exponent_bits == 0) {
            memset(elements + p->start, 0, (size_t)p->elements * sizeof *elements);
            continue;
        }
        for (k = p->start; k < p->start + p->elements; k++) {
            int64_t exponent = p->offset;
            if (p->flags & CODED_PART) exponent += *values++;
            if (exponent < 0 || exponent >= end) return wrong(r, "block.exponent", "an exponent is out of range");
            elements[k] = (uint64_t)exponent << p->type->mantissa_bits;
        }
    }
    return TQC_DECODED;
}

/* Put bits 8j and up of an element's rest to it (8.3). */
static void add_rest(const part *p, unsigned j, const uint8_t *values, uint64_t *elements) {
    unsigned is_signed = p->width > p->kept, mantissa = p->type->mantissa_bits - p->kept, top = 8 * p->type->size - 1;
    unsigned up = 8 * j + mantissa - is_signed;
    uint64_t k;
    if (p->type->exponent_bits == 0)
        for (k = 0; k < p->elements; k++) elements[k] |= (uint64_t)values[k] << 8 * j;
    else if (is_signed && j == 0)
        for (k = 0; k < p->elements; k++)
            elements[k] |= (uint64_t)(values[k] & 1) << top | (uint64_t)(values[k] >> 1) << mantissa;
    else
        for (k = 0; k < p->elements; k++) elements[k] |= (uint64_t)values[k] << up;
}

static tqc_verdict read_bit_plane(reader *r, const part *parts, uint64_t n, unsigned j, uint64_t *elements) {
    uint64_t count = 0, bits = 0, bit = 0, size, i, k;
    uint8_t *inflated, *values = NULL;
    const uint8_t *packed = NULL;
    block *mark = r->arena->newest;
    for (i = 0; i < n; i++) {
        if (parts[i].width <= 8 * j) continue;
        count += parts[i].elements;
        bits += parts[i].elements * smaller(8, parts[i].width - 8 * j);
    }
    TRY(read_plane(r, count, &inflated));
    if (inflated == NULL) {
        TRY(read_packed(r, bits, &packed));
        TRY(take(r->arena, count, 1, &values));
    }
    size = divide_up(bits, 8);
    for (i = 0; i < n; i++) {
        unsigned width;
        if (parts[i].width <= 8 * j) continue;
        width = (unsigned)smaller(8, parts[i].width - 8 * j);
        if (inflated == NULL) {
            unpack(packed, size, bit, width, parts[i].elements, values);
            bit += parts[i].elements * width;
        } else {
            values = inflated;
            for (k = 0; k < parts[i].elements; k++)
                if (values[k] >> width != 0)
                    return wrong(r, "plane.range", "a byte of a plane has more bits than its value");
            inflated += parts[i].elements;
        }
        add_rest(&parts[i], j, values, elements + parts[i].start);
    }
    release_to(r->arena, mark);
    return TQC_DECODED;
}

/* A whole segment. Patterns of all elements of all parts go to `elements`. */
static tqc_verdict read_block(reader *r, const tqc_tables *tables, part *parts, uint64_t n, uint64_t *elements) {
    unsigned widest = 0, j;
    uint64_t i;
    block *mark = r->arena->newest;
    TRY(read_part_heads(r, tables, parts, n));
    for (i = 0; i < n; i++)
        if (parts[i].elements > 0 && parts[i].width > widest) widest = parts[i].width;
    TRY(read_exponents(r, tables, parts, n, elements));
    for (j = 0; 8 * j < widest; j++) TRY(read_bit_plane(r, parts, n, j, elements));
    TRY(end_of(r));
    release_to(r->arena, mark);
    return TQC_DECODED;
}

static void put_elements(const uint64_t *elements, uint64_t n, unsigned size, uint8_t *out) {
    uint64_t i;
    switch (size) {
    case 1:
        for (i = 0; i < n; i++) out[i] = (uint8_t)elements[i];
        break;
    case 2:
        for (i = 0; i < n; i++) put_bytes(out + 2 * i, elements[i], 2);
        break;
    case 4:
        for (i = 0; i < n; i++) put_bytes(out + 4 * i, elements[i], 4);
        break;
    default:
        for (i = 0; i < n; i++) put_bytes(out + 8 * i, elements[i], 8);
    }
}

static reader segment_reader(arena *a, const tqc_segment *s) { return new_reader(a, s->data, s->size, s->offset); }

static tqc_verdict wrong_segments(arena *a, const char *message) {
    return malformed(a, "tensor.segments", UNKNOWN, message);
}

static tqc_verdict decode_planes(arena *a, const tqc_tables *tables, const tqc_tensor *t, const dtype *type,
                                 const tqc_segment *segments, uint64_t count, uint8_t *out) {
    uint64_t *elements, done = 0, k;
    if (count != divide_up(t->elements, MAX_SYMBOLS))
        return wrong_segments(a, "not one segment for each 2^20 elements");
    TRY(take(a, smaller(t->elements, MAX_SYMBOLS), sizeof *elements, &elements));
    for (k = 0; k < count; k++) {
        reader r = segment_reader(a, &segments[k]);
        part p;
        memset(&p, 0, sizeof p);
        p.type = type;
        p.elements = smaller(t->elements - done, MAX_SYMBOLS);
        TRY(read_block(&r, tables, &p, 1, elements));
        put_elements(elements, p.elements, type->size, out + done * type->size);
        done += p.elements;
    }
    return TQC_DECODED;
}

static tqc_verdict decode_raw(arena *a, uint64_t bytes, const tqc_segment *segments, uint64_t count, uint8_t *out) {
    uint64_t done = 0, k;
    for (k = 0; k < count; k++) {
        if (segments[k].size > bytes - done) break;
        if (segments[k].size > 0) memcpy(out + done, segments[k].data, segments[k].size);
        done += segments[k].size;
    }
    if (k == count && done == bytes) return TQC_DECODED;
    return malformed(a, "raw.length", UNKNOWN, "the segments have not as many bytes as the tensor");
}

/* 4.5 */
static tqc_verdict check_tensor(arena *a, uint32_t crc, uint32_t check) {
    if (is_crc(crc, check)) return TQC_DECODED;
    return malformed(a, "tensor.check", UNKNOWN, "the elements do not have the CRC-32 that the directory states");
}

/* ---- 10 reconstruction ---- */

/* The pattern of v rounded to a type of e exponent and m < 52 mantissa bits, its magnitude at most the largest finite
 * number (10.1, step 6). v is 0 or a normal number. */
static inline uint64_t round_to(double v, int e, int m, int infinities) {
    int lowest = 2 - (1 << (e - 1)), exponent, drop;
    uint64_t bits, fraction, rounded, rest, half, pattern, largest;
    memcpy(&bits, &v, sizeof bits);
    exponent = (int)(bits >> 52 & 0x7FF) - 1023;
    fraction = (bits & ((UINT64_C(1) << 52) - 1)) | UINT64_C(1) << 52;
    drop = 52 - m + (exponent < lowest ? lowest - exponent : 0);
    if (drop > 53) return bits >> 63 << (e + m); /* 0, or below half of the smallest number */
    rounded = fraction >> drop;
    rest = fraction & ((UINT64_C(1) << drop) - 1);
    half = UINT64_C(1) << (drop - 1);
    rounded += rest > half || (rest == half && (rounded & 1));
    pattern = rounded + ((uint64_t)(exponent < lowest ? 0 : exponent - lowest) << m);
    largest = infinities ? (((UINT64_C(1) << e) - 1) << m) - 1 : (UINT64_C(1) << (e + m)) - 2;
    if (pattern > largest) pattern = largest;
    return pattern | bits >> 63 << (e + m);
}

/* Whether C rounds to F32 by a cast and lays it out as a file does. */
static int has_native_f32(void) {
    const float one = 1;
    static const uint8_t pattern[4] = {0, 0, 0x80, 0x3F};
    return FLT_RADIX == 2 && FLT_MANT_DIG == 24 && FLT_MAX_EXP == 128 && sizeof one == 4 &&
           memcmp(&one, pattern, 4) == 0;
}

/* n values in order, by casts: none may be subnormal or overflow. */
static void put_native_f32(const double *values, double step, uint64_t n, uint8_t *out) {
    float chunk[CHUNK];
    for (; n > 0; values += CHUNK, out += sizeof chunk) {
        uint32_t count = (uint32_t)smaller(n, CHUNK), i;
        for (i = 0; i < count; i++) chunk[i] = (float)(values[i] * step);
        memcpy(out, chunk, count * sizeof *chunk);
        n -= count;
    }
}

/* Steps 5 and 6 for n values in order. */
static void put_values(const dtype *type, const double *values, double step, uint64_t n, uint8_t *out) {
    uint64_t i, bits;
    if (strcmp(type->name, "F32") == 0) {
        if (has_native_f32() && step >= FLT_MIN && step < 1) /* sums are integers below 2^53 */
            put_native_f32(values, step, n, out);
        else
            for (i = 0; i < n; i++) put_bytes(out + 4 * i, round_to(values[i] * step, 8, 23, 1), 4);
    } else if (strcmp(type->name, "BF16") == 0) {
        for (i = 0; i < n; i++) put_bytes(out + 2 * i, round_to(values[i] * step, 8, 7, 1), 2);
    } else if (strcmp(type->name, "F16") == 0) {
        for (i = 0; i < n; i++) put_bytes(out + 2 * i, round_to(values[i] * step, 5, 10, 1), 2);
    } else if (strcmp(type->name, "F64") == 0) {
        for (i = 0; i < n; i++) {
            double v = values[i] * step;
            memcpy(&bits, &v, sizeof bits);
            put_bytes(out + 8 * i, bits, 8);
        }
    } else {
        int e = (int)type->exponent_bits, m = (int)type->mantissa_bits;
        for (i = 0; i < n; i++) out[i] = (uint8_t)round_to(values[i] * step, e, m, type->infinities);
    }
}

/* Where a compiler can choose between versions of a function when the program starts, the products use wider vectors
 * if the machine has them. All sums are exact, so the results are the same. */
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 11 && defined(__x86_64__) && defined(__gnu_linux__) && \
    !defined(__SANITIZE_ADDRESS__)
#define WIDEST __attribute__((target_clones("arch=x86-64-v3", "default")))
#else
#define WIDEST
#endif

/* A product of matrices is added to m rows of n sums, `sums_step` apart: to sums[r][i], the SUM over k < count of
 * factors[r * row_step + k * factor_step] * rows[k][i], the rows being `width` apart. Two rows of sums are taken at
 * once, so that each row that is read serves both. */
WIDEST static void add_products(double *sums, size_t sums_step, size_t m, size_t n, const double *factors,
                                size_t row_step, size_t factor_step, const double *rows, size_t width, size_t count) {
    size_t r, k, i;
    for (r = 0; r < m; r += 2) {
        int both = r + 1 < m;
        double *s0 = sums + r * sums_step, *s1 = both ? s0 + sums_step : s0;
        const double *f0 = factors + r * row_step, *f1 = both ? f0 + row_step : f0;
        for (k = 0; k + 4 <= count; k += 4) {
            const double *r0 = rows + k * width, *r1 = r0 + width, *r2 = r1 + width, *r3 = r2 + width;
            const double a0 = f0[k * factor_step], b0 = f0[(k + 1) * factor_step], c0 = f0[(k + 2) * factor_step],
                         d0 = f0[(k + 3) * factor_step];
            const double a1 = f1[k * factor_step], b1 = f1[(k + 1) * factor_step], c1 = f1[(k + 2) * factor_step],
                         d1 = f1[(k + 3) * factor_step];
            if (both)
                for (i = 0; i < n; i++) {
                    double x0 = r0[i], x1 = r1[i], x2 = r2[i], x3 = r3[i];
                    s0[i] += a0 * x0 + b0 * x1 + (c0 * x2 + d0 * x3);
                    s1[i] += a1 * x0 + b1 * x1 + (c1 * x2 + d1 * x3);
                }
            else
                for (i = 0; i < n; i++) s0[i] += a0 * r0[i] + b0 * r1[i] + (c0 * r2[i] + d0 * r3[i]);
        }
        for (; k < count; k++) {
            const double *row = rows + k * width, a0 = f0[k * factor_step], a1 = f1[k * factor_step];
            for (i = 0; i < n; i++) s0[i] += a0 * row[i];
            for (i = 0; both && i < n; i++) s1[i] += a1 * row[i];
        }
    }
}

/* From coefficients to elements, a block of rows at a time: so much fits in a cache. */
#define BLOCK_VALUES 4096

/* Planes a power of two apart would meet in the same lines of a cache. */
#define PLANE_GAP 8

/* Blocks of rows on their way. With a basis on `in` or `taps`, values lie by taps, rows and inputs; else by rows,
 * inputs and taps. */
typedef struct {
    arena *arena;
    const crc_table *crc_table;
    const head *head;
    const tqc_tensor *tensor;
    const dtype *type;
    const int32_t *coefficients; /* of the rows from first_row on */
    uint64_t first_row;
    uint64_t plane;       /* distance of planes of taps */
    uint64_t input_plane; /* the same behind a basis on `in` */
    uint64_t block;       /* rows of a block */
    int by_taps;          /* there is a basis on `in` or `taps` */
    double *multipliers;  /* of the kept columns */
    uint64_t *at;         /* of each kept column, its place in `cells`; NULL if they lie there one by one */
    double *sums;         /* rows x kept */
    double *operands;     /* four rows of coefficients for a basis on `out` */
    double *cells;        /* of all columns */
    double *taps;
    double *inputs;
    double *row;           /* one row in order */
    uint64_t *place[AXES]; /* of the positions of each axis in the tensor; NULL where elements lie in order */
    uint8_t *pattern;      /* of one row, where they do not */
    uint8_t *out;
    uint32_t crc; /* of the rows put out so far, in order */
} rebuilding;

/* 10.3: the offset of each position of an axis, in bytes. */
static tqc_verdict make_places(rebuilding *b, unsigned axis) {
    const tqc_tensor *t = b->tensor;
    uint64_t n = b->head->length[axis], p;
    TRY(take(b->arena, n, sizeof *b->place[axis], &b->place[axis]));
    for (p = 0; p < n; p++) {
        uint64_t rest = p, stride = b->type->size, offset = 0;
        unsigned i;
        for (i = t->dimensions; i-- > 0; stride *= t->shape[i]) {
            if (b->head->roles[i] != axis) continue;
            offset += rest % t->shape[i] * stride;
            rest /= t->shape[i];
        }
        b->place[axis][p] = offset;
    }
    return TQC_DECODED;
}

static int is_in_order(const head *h, const tqc_tensor *t) {
    unsigned i, last = OUT;
    for (i = 0; i < t->dimensions; i++) {
        if (t->shape[i] == 1) continue;
        if (h->roles[i] < last) return 0;
        last = h->roles[i];
    }
    return 1;
}

/* What happens to each kept column: its multiplier, and its place in `cells`. */
static tqc_verdict place_columns(rebuilding *b) {
    const head *h = b->head;
    uint64_t taps = h->channels[TAPS], k;
    TRY(take(b->arena, h->kept, sizeof *b->multipliers, &b->multipliers));
    for (k = 0; k < h->kept; k++)
        b->multipliers[k] = (double)tqc_expand(h->multipliers.values[h->column[k]], MULTIPLIER_MANTISSA);
    if (h->kept == h->columns && (!b->by_taps || taps == 1)) return TQC_DECODED;
    TRY(take(b->arena, h->kept, sizeof *b->at, &b->at));
    for (k = 0; k < h->kept; k++)
        b->at[k] = b->by_taps ? h->column[k] % taps * b->plane + h->column[k] / taps : h->column[k];
    return TQC_DECODED;
}

static tqc_verdict start_rebuilding(rebuilding *b) {
    const head *h = b->head;
    uint64_t in = h->channels[IN], positions = h->length[TAPS], weights = h->length[IN] * positions;
    uint64_t cells, widest = h->columns > weights ? h->columns : weights;
    unsigned axis;
    b->by_taps = h->bases[TAPS].rows != NULL || h->bases[IN].rows != NULL;
    if (in * positions > widest) widest = in * positions;
    b->block = smaller(1 + BLOCK_VALUES / widest, h->length[OUT]);
    b->plane = b->block * in + PLANE_GAP;
    b->input_plane = b->block * h->length[IN] + PLANE_GAP;
    TRY(place_columns(b));
    TRY(take(b->arena, b->block * h->kept, sizeof *b->sums, &b->sums));
    if (h->bases[OUT].rows != NULL) TRY(take(b->arena, 4 * h->kept, sizeof *b->operands, &b->operands));
    cells = b->by_taps ? h->channels[TAPS] * b->plane : b->block * h->columns;
    TRY(take_zeros(b->arena, cells, sizeof *b->cells, &b->cells)); /* absent columns stay 0 */
    if (h->bases[TAPS].rows != NULL) TRY(take(b->arena, positions * b->plane, sizeof *b->taps, &b->taps));
    if (h->bases[IN].rows != NULL) TRY(take(b->arena, positions * b->input_plane, sizeof *b->inputs, &b->inputs));
    TRY(take(b->arena, weights, sizeof *b->row, &b->row));
    if (is_in_order(h, b->tensor)) return TQC_DECODED;
    TRY(take(b->arena, weights, b->type->size, &b->pattern));
    for (axis = 0; axis < AXES; axis++) TRY(make_places(b, axis));
    return TQC_DECODED;
}

/* Step 4 for n rows from o on, before the others: sums of integers may be taken in any order. */
static void apply_out(rebuilding *b, uint64_t o, size_t n) {
    const head *h = b->head;
    const double *rows = h->bases[OUT].rows;
    size_t kept = (size_t)h->kept, length = (size_t)h->length[OUT], channels = (size_t)h->channels[OUT], first, i;
    memset(b->sums, 0, n * kept * sizeof *b->sums);
    for (first = 0; first < channels; first += 4) {
        size_t count = (size_t)smaller(4, channels - first);
        const int32_t *q = b->coefficients + first * kept;
        for (i = 0; i < count * kept; i++) b->operands[i] = q[i];
        add_products(b->sums, kept, n, kept, rows + first * length + o, 1, length, b->operands, kept, count);
    }
}

/* Step 1 for n rows from o on, and to their places. */
static void multiply(rebuilding *b, uint64_t o, size_t n) {
    const head *h = b->head;
    size_t kept = (size_t)h->kept, row_step = (size_t)(b->by_taps ? h->channels[IN] : h->columns), r, k;
    if (h->bases[OUT].rows != NULL) apply_out(b, o, n);
    for (r = 0; r < n; r++) {
        double *to = b->cells + r * row_step, *sums = b->at != NULL ? b->sums + r * kept : to;
        if (h->bases[OUT].rows != NULL) { /* + 0.0 makes +0 of a negative sum times 0 */
            for (k = 0; k < kept; k++) sums[k] = b->sums[r * kept + k] * b->multipliers[k] + 0.0;
        } else {
            const int32_t *q = b->coefficients + (o + r - b->first_row) * kept;
            for (k = 0; k < kept; k++) sums[k] = q[k] * b->multipliers[k] + 0.0;
        }
        for (k = 0; b->at != NULL && k < kept; k++) to[b->at[k]] = sums[k];
    }
}

/* Steps 2 and 3, for n rows whose values lie by taps, rows and inputs. */
static const double *apply_taps(rebuilding *b, size_t n) {
    const head *h = b->head;
    size_t positions = (size_t)h->length[TAPS], in = (size_t)h->channels[IN], plane = (size_t)b->plane;
    memset(b->taps, 0, positions * plane * sizeof *b->taps);
    add_products(b->taps, plane, positions, n * in, h->bases[TAPS].rows, 1, positions, b->cells, plane,
                 (size_t)h->channels[TAPS]);
    return b->taps;
}

static const double *apply_in(rebuilding *b, size_t n, const double *values) {
    const head *h = b->head;
    size_t length = (size_t)h->length[IN], in = (size_t)h->channels[IN], plane = (size_t)b->input_plane, t;
    memset(b->inputs, 0, (size_t)h->length[TAPS] * plane * sizeof *b->inputs);
    for (t = 0; t < h->length[TAPS]; t++)
        add_products(b->inputs + t * plane, length, n, length, values + t * b->plane, in, 1, h->bases[IN].rows, length,
                     in);
    return b->inputs;
}

/* Steps 5 and 6 for the row o, whose weights lie in order. */
static void put_row(rebuilding *b, uint64_t o, const double *weights) {
    const head *h = b->head;
    uint64_t in = h->length[IN], taps = h->length[TAPS],
             scale = tqc_expand(h->row_scales.values[o], ROW_SCALE_MANTISSA), i, t;
    unsigned size = b->type->size;
    double step = ldexp((double)(h->scale_mantissa * scale), h->scale_exponent);
    const uint8_t *from = b->pattern;
    if (b->place[OUT] == NULL) {
        uint8_t *to = b->out + o * in * taps * size;
        put_values(b->type, weights, step, in * taps, to);
        b->crc = add_crc(b->crc_table, b->crc, to, in * taps * size);
        return;
    }
    put_values(b->type, weights, step, in * taps, b->pattern);
    for (i = 0; i < in; i++)
        for (t = 0; t < taps; t++, from += size)
            memcpy(b->out + b->place[OUT][o] + b->place[IN][i] + b->place[TAPS][t], from, size);
}

/* The rows from o up to `end`. */
static void rebuild_rows(rebuilding *b, uint64_t o, uint64_t end) {
    const head *h = b->head;
    size_t plane = (size_t)(h->bases[IN].rows != NULL ? b->input_plane : b->plane);
    size_t in = (size_t)h->length[IN], taps = (size_t)h->length[TAPS], r, i, t;
    while (o < end) {
        size_t n = (size_t)smaller(b->block, end - o);
        const double *values = b->cells;
        multiply(b, o, n);
        if (h->bases[TAPS].rows != NULL) values = apply_taps(b, n);
        if (h->bases[IN].rows != NULL) values = apply_in(b, n, values);
        for (r = 0; r < n; r++, o++) {
            if (!b->by_taps) {
                put_row(b, o, values + r * in * taps);
                continue;
            }
            for (t = 0; t < taps; t++)
                for (i = 0; i < in; i++) b->row[i * taps + t] = values[t * plane + r * in + i];
            put_row(b, o, b->row);
        }
    }
}

/* ---- transform-coded tensors ---- */

/* A tensor between its head and its elements. */
typedef struct {
    head head;
    plan plan;
    const tqc_tensor *tensor;
    const dtype *type;
    uint8_t *out;
} job;

static tqc_verdict open_job(arena *a, const tqc_tables *tables, const tqc_tensor *t, const dtype *type,
                            const tqc_segment *segments, uint64_t count, job *j) {
    uint64_t bytes = 0, k;
    reader r;
    if (count == 0) return wrong_segments(a, "a transform-coded tensor without segments");
    for (k = 0; k < count; k++) bytes += segments[k].size;
    r = segment_reader(a, &segments[0]);
    TRY(read_head(&r, tables, t, count, bytes, &j->head));
    if (j->head.bands == 0) TRY(end_of(&r));
    j->tensor = t;
    j->type = type;
    memset(&j->plan, 0, sizeof j->plan);
    j->plan.head = &j->head;
    j->plan.tables = tables;
    j->plan.segments = segments;
    j->plan.head_size = (uint64_t)(r.at - r.start);
    j->plan.tensor = a->tensor;
    j->plan.name = a->name;
    j->plan.name_size = a->name_size;
    plan_groups(&j->plan);
    return TQC_DECODED;
}

static tqc_verdict take_coefficients(arena *a, plan *p, uint64_t rows) {
    return take(a, rows * p->head->kept, sizeof *p->coefficients, &p->coefficients);
}

static tqc_verdict start_job(arena *a, const job *j, rebuilding *b) {
    memset(b, 0, sizeof *b);
    b->arena = a;
    b->crc_table = &j->plan.tables->crc;
    b->head = &j->head;
    b->tensor = j->tensor;
    b->type = j->type;
    b->coefficients = j->plan.coefficients;
    b->out = j->out;
    return start_rebuilding(b);
}

static tqc_verdict end_job(const rebuilding *b) {
    const tqc_tensor *t = b->tensor;
    return check_tensor(b->arena, b->place[OUT] == NULL ? b->crc : add_crc(b->crc_table, 0, b->out, t->bytes),
                        t->check);
}

/* As many bands at a time as have this many coefficients and tiles for all lanes. */
#define GROUP_COEFFICIENTS (UINT64_C(1) << 20)

static uint64_t bands_at_a_time(const head *h) {
    uint64_t bands;
    if (h->bases[OUT].rows != NULL || h->bands == 0) return h->bands;
    bands = divide_up(GROUP_COEFFICIENTS, h->tile_rows * h->kept);
    if (bands < divide_up(LANES, h->tiles_across)) bands = divide_up(LANES, h->tiles_across);
    return smaller(bands, h->bands);
}

/* Decode a tensor a few bands at a time; with a basis on `out` all of them. */
static tqc_verdict run_job(arena *a, job *j) {
    const head *h = &j->head;
    plan *const plans[1] = {&j->plan};
    uint64_t group = bands_at_a_time(h), band, o = 0;
    lanes_memory *m;
    rebuilding b;
    TRY(take_zeros(a, 1, sizeof *m, &m));
    m->arena = a;
    need_lanes(m, &j->plan);
    TRY(take_lanes(m, tile_count(&j->plan)));
    TRY(take_coefficients(a, &j->plan, smaller(group * h->tile_rows, h->channels[OUT])));
    TRY(start_job(a, j, &b));
    for (band = 0; band < h->bands; band += group) {
        tile_queue queue = {plans, 1, 0, 0};
        queue.next = band * h->tiles_across;
        queue.end = smaller(band + group, h->bands) * h->tiles_across;
        j->plan.first_row = b.first_row = band * h->tile_rows;
        TRY(decode_tiles(m, queue));
        if (h->bases[OUT].rows != NULL) break;
        rebuild_rows(&b, o, smaller((band + group) * h->tile_rows, h->channels[OUT]));
        o = smaller((band + group) * h->tile_rows, h->channels[OUT]);
    }
    rebuild_rows(&b, o, h->length[OUT]);
    return end_job(&b);
}

/* Decode several tensors, their payloads side by side. */
static tqc_verdict run_jobs(arena *a, job *const *jobs, plan *const *plans, unsigned count) {
    tile_queue queue = {plans, count, 0, 0};
    uint64_t tiles = 0;
    block *mark;
    lanes_memory *m;
    unsigned i;
    if (count == 0) return TQC_DECODED;
    TRY(take_zeros(a, 1, sizeof *m, &m));
    m->arena = a;
    for (i = 0; i < count; i++) {
        need_lanes(m, plans[i]);
        tiles += tile_count(plans[i]);
        TRY(take_coefficients(a, plans[i], jobs[i]->head.channels[OUT]));
    }
    TRY(take_lanes(m, tiles));
    queue.end = tile_count(plans[0]);
    TRY(decode_tiles(m, queue));
    mark = a->newest;
    for (i = 0; i < count; i++) {
        rebuilding b;
        concern_plan(a, plans[i]);
        TRY(start_job(a, jobs[i], &b));
        rebuild_rows(&b, 0, jobs[i]->head.length[OUT]);
        TRY(end_job(&b));
        release_to(a, mark);
    }
    return TQC_DECODED;
}

/* ---- tensors ---- */

struct tqc_workspace {
    arena arena;
};

static tqc_verdict check_segments(arena *a, const tqc_tables *tables, const tqc_segment *segments, uint64_t count) {
    uint64_t k;
    for (k = 0; k < count; k++)
        TRY(check_crc(a, tables, segments[k].data, segments[k].size, segments[k].crc, segments[k].offset));
    return TQC_DECODED;
}

static tqc_verdict unsupported_tensor(arena *a, const tqc_tensor *t) {
    if (t->dtype == NULL) return fail(a, TQC_UNSUPPORTED, "directory.dtype", UNKNOWN, "unknown element type");
    return fail(a, TQC_UNSUPPORTED, "directory.coding", UNKNOWN, "unknown coding");
}

/* A bundle that names a tensor of unknown type or coding. */
static tqc_verdict unsupported_bundle(const tqc_file *f, arena *a, const bundle *of) {
    uint32_t i = of->first;
    while (f->entries[i].type != NULL && f->entries[i].told.coding <= TQC_TRANSFORM) i = f->entries[i].next_in_bundle;
    return unsupported_tensor(a, &f->entries[i].told);
}

/* A tensor of its own segments, whose CRCs are right. */
static tqc_verdict decode_coding(arena *a, const tqc_tables *tables, const tqc_tensor *t, const dtype *type,
                                 const tqc_segment *segments, uint64_t count, uint8_t *out) {
    if (t->coding == TQC_TRANSFORM) {
        job *j;
        TRY(take(a, 1, sizeof *j, &j));
        TRY(open_job(a, tables, t, type, segments, count, j));
        j->out = out;
        return run_job(a, j);
    }
    if (t->coding == TQC_RAW)
        TRY(decode_raw(a, t->bytes, segments, count, out));
    else
        TRY(decode_planes(a, tables, t, type, segments, count, out));
    TRY(check_elements(a, type, out, t->bytes));
    return check_tensor(a, add_crc(&tables->crc, 0, out, t->bytes), t->check);
}

/* The segments of an entry, in new memory, their CRCs checked. */
static tqc_verdict load_segments(const tqc_file *f, arena *a, const entry *e, tqc_segment **segments) {
    tqc_segment *list;
    const uint8_t *bytes = NULL;
    uint64_t size = 0, k;
    TRY(take(a, e->segment_count, sizeof *list, &list));
    for (k = 0; k < e->segment_count; k++) size += e->segments[k].length;
    if (e->segment_count > 0) TRY(load(f, a, e->segments[0].offset, size, &bytes));
    for (k = 0; k < e->segment_count; k++) {
        list[k].data = bytes + (e->segments[k].offset - e->segments[0].offset);
        list[k].size = (size_t)e->segments[k].length;
        list[k].crc = e->segments[k].crc;
        list[k].offset = (int64_t)e->segments[k].offset;
    }
    *segments = list;
    return check_segments(a, f->tables, list, e->segment_count);
}

/* The parts and elements of a bundle, in new memory. */
static tqc_verdict decode_bundle(const tqc_file *f, arena *a, const bundle *of, part **parts, uint64_t **elements) {
    const uint8_t *bytes;
    uint64_t n = 0, total = 0;
    uint32_t i;
    reader r;
    TRY(load(f, a, of->segment.offset, of->segment.length, &bytes));
    TRY(check_crc(a, f->tables, bytes, of->segment.length, of->segment.crc, (int64_t)of->segment.offset));
    *parts = NULL;
    if (!of->supported) return unsupported_bundle(f, a, of);
    for (i = of->first; i != NO_ENTRY; i = f->entries[i].next_in_bundle) n++;
    TRY(take_zeros(a, n, sizeof **parts, parts));
    n = 0;
    for (i = of->first; i != NO_ENTRY; i = f->entries[i].next_in_bundle) {
        part *p = &(*parts)[n++];
        p->type = f->entries[i].type;
        p->start = total;
        p->elements = f->entries[i].told.elements;
        total += p->elements;
        if (total > MAX_SYMBOLS)
            return malformed(a, "bundle.size", (int64_t)of->segment.offset, "a bundle of more than 2^20 elements");
    }
    TRY(take(a, total, sizeof **elements, elements));
    r = new_reader(a, bytes, of->segment.length, (int64_t)of->segment.offset);
    return read_block(&r, f->tables, *parts, n, *elements);
}

/* One tensor of a decoded bundle. */
static tqc_verdict put_bundled(const tqc_file *f, arena *a, const tqc_tensor *t, const part *p,
                               const uint64_t *elements, uint8_t *out) {
    put_elements(elements + p->start, p->elements, p->type->size, out);
    TRY(check_elements(a, p->type, out, t->bytes));
    return check_tensor(a, add_crc(&f->tables->crc, 0, out, t->bytes), t->check);
}

static void concern(arena *a, const tqc_file *f, int64_t index) {
    a->tensor = index;
    a->name = index == UNKNOWN ? NULL : f->entries[index].told.name;
    a->name_size = index == UNKNOWN ? 0 : f->entries[index].told.name_size;
}

static tqc_verdict decode_bundled(const tqc_file *f, arena *a, uint32_t index, uint8_t *out) {
    const tqc_tensor *t = &f->entries[index].told;
    part *parts;
    uint64_t *elements;
    uint32_t i;
    TRY(decode_bundle(f, a, &f->bundles[t->bundle], &parts, &elements));
    for (i = f->bundles[t->bundle].first; i != index; i = f->entries[i].next_in_bundle) parts++;
    return put_bundled(f, a, t, parts, elements, out);
}

static tqc_verdict decode_own(const tqc_file *f, arena *a, uint32_t index, uint8_t *out) {
    const entry *e = &f->entries[index];
    tqc_segment *segments;
    TRY(load_segments(f, a, e, &segments));
    if (!e->told.supported) return unsupported_tensor(a, &e->told);
    return decode_coding(a, f->tables, &e->told, e->type, segments, e->segment_count, out);
}

/* Where decoded bytes go: all tensors back to back, each to a place of its own (or nowhere, if that is NULL), or, with
 * both members NULL, to scratch memory. */
typedef struct {
    uint8_t *all;
    void *const *each;
} places;

static int wanted(const places *to, uint32_t index) { return to->each == NULL || to->each[index] != NULL; }

static tqc_verdict place_of(arena *a, const places *to, const tqc_tensor *t, uint32_t index, uint8_t **out) {
    *out = NULL;
    if (to->each != NULL) *out = to->each[index];
    if (to->all != NULL) *out = to->all + t->position;
    return *out != NULL ? TQC_DECODED : take(a, t->bytes, 1, out);
}

static int bundle_wanted(const tqc_file *f, const bundle *of, const places *to) {
    uint32_t i;
    for (i = of->first; i != NO_ENTRY; i = f->entries[i].next_in_bundle)
        if (wanted(to, i)) return 1;
    return 0;
}

/* Every bundle once, with all its tensors. */
static tqc_verdict decode_bundles(const tqc_file *f, arena *a, const places *to, int *unsupported) {
    block *mark = a->newest;
    uint32_t k, i;
    for (k = 0; k < f->bundle_count; k++) {
        part *parts;
        uint64_t *elements;
        tqc_verdict verdict;
        if (!bundle_wanted(f, &f->bundles[k], to)) continue;
        concern(a, f, UNKNOWN);
        verdict = decode_bundle(f, a, &f->bundles[k], &parts, &elements);
        if (verdict != TQC_DECODED && verdict != TQC_UNSUPPORTED) return verdict;
        if (verdict == TQC_UNSUPPORTED) *unsupported = 1;
        for (i = f->bundles[k].first; verdict == TQC_DECODED && i != NO_ENTRY; i = f->entries[i].next_in_bundle) {
            const tqc_tensor *t = &f->entries[i].told;
            uint8_t *out;
            concern(a, f, i);
            TRY(place_of(a, to, t, i, &out));
            TRY(put_bundled(f, a, t, parts++, elements, out));
        }
        release_to(a, mark);
    }
    return TQC_DECODED;
}

/* Small transform-coded tensors that wait to be decoded side by side. */
#define BATCH 64
#define BATCH_ELEMENTS (UINT64_C(1) << 20) /* of all together */
#define SMALL_TENSOR (UINT64_C(1) << 18)

typedef struct {
    job *jobs[BATCH]; /* the largest first: so the lanes end together */
    plan *plans[BATCH];
    unsigned count;
    uint64_t elements;
    block *mark; /* where their memory begins */
} batch;

static tqc_verdict run_batch(arena *a, batch *b) {
    TRY(run_jobs(a, b->jobs, b->plans, b->count));
    release_to(a, b->mark);
    b->count = 0;
    b->elements = 0;
    return TQC_DECODED;
}

/* Put a tensor to the batch; its memory stays, unless it is unsupported. */
static tqc_verdict add_to_batch(const tqc_file *f, arena *a, uint32_t index, uint8_t *out, batch *b) {
    const entry *e = &f->entries[index];
    tqc_segment *segments;
    unsigned place;
    job *j;
    TRY(load_segments(f, a, e, &segments));
    TRY(take(a, 1, sizeof *j, &j));
    TRY(open_job(a, f->tables, &e->told, e->type, segments, e->segment_count, j));
    j->out = out;
    for (place = b->count++; place > 0 && b->jobs[place - 1]->tensor->elements < e->told.elements; place--) {
        b->jobs[place] = b->jobs[place - 1];
        b->plans[place] = b->plans[place - 1];
    }
    b->jobs[place] = j;
    b->plans[place] = &j->plan;
    b->elements += e->told.elements;
    return TQC_DECODED;
}

/* Every tensor with segments of its own. */
static tqc_verdict decode_tensors(const tqc_file *f, arena *a, const places *to, int *unsupported) {
    batch waiting;
    uint32_t i;
    waiting.count = 0;
    waiting.elements = 0;
    waiting.mark = a->newest;
    for (i = 0; i < f->entry_count; i++) {
        const tqc_tensor *t = &f->entries[i].told;
        int small = t->coding == TQC_TRANSFORM && t->supported && t->elements <= SMALL_TENSOR;
        block *mark = a->newest;
        uint8_t *out;
        tqc_verdict verdict;
        if (t->same_as >= 0 || (t->bundle >= 0 && f->entries[i].segment_count == 0) || !wanted(to, i)) continue;
        concern(a, f, i);
        TRY(place_of(a, to, t, i, &out));
        verdict = small ? add_to_batch(f, a, i, out, &waiting) : decode_own(f, a, i, out);
        if (verdict != TQC_DECODED && verdict != TQC_UNSUPPORTED) return verdict;
        if (verdict == TQC_UNSUPPORTED) *unsupported = 1;
        if (!small || verdict == TQC_UNSUPPORTED) release_to(a, mark);
        if (waiting.count == BATCH || waiting.elements > BATCH_ELEMENTS) TRY(run_batch(a, &waiting));
    }
    return run_batch(a, &waiting);
}

static void copy_tied(const tqc_file *f, uint8_t *out) {
    uint32_t i;
    for (i = 0; i < f->entry_count; i++) {
        const tqc_tensor *t = &f->entries[i].told;
        if (t->same_as >= 0 && t->bytes > 0)
            memcpy(out + t->position, out + f->entries[t->same_as].told.position, (size_t)t->bytes);
    }
}

/* ---- the interface ---- */

static tqc_verdict misuse(arena *a, const char *message) { return fail(a, TQC_MISUSE, "", UNKNOWN, message); }

/* End a call: the scratch memory is released, the error is the caller's again. */
static tqc_verdict leave(arena *a, tqc_verdict verdict) {
    release_to(a, NULL);
    if (verdict == TQC_DECODED) clear_error(a->error);
    a->error = NULL;
    return verdict;
}

static arena *enter(tqc_workspace *workspace, const tqc_file *f, int64_t index, tqc_error *error) {
    arena *a = &workspace->arena;
    clear_error(error);
    release_to(a, NULL);
    a->error = error;
    a->tensor = UNKNOWN;
    a->name = NULL;
    if (f != NULL && index >= 0) concern(a, f, index);
    return a;
}

tqc_verdict tqc_tables_open(const void *data, size_t size, const tqc_options *options, tqc_tables **tables,
                            tqc_error *error) {
    arena a = new_arena(options);
    tqc_tables *t;
    tqc_verdict verdict;
    *tables = NULL;
    clear_error(error);
    a.error = error;
    TRY(take_zeros(&a, 1, sizeof *t, &t));
    t->arena = a;
    make_crc(&t->crc);
    verdict = TQC_DECODED;
    if (size > 0) {
        reader r = new_reader(&t->arena, data, size, UNKNOWN);
        verdict = read_tables(&r, t);
    }
    t->arena.error = NULL;
    if (verdict != TQC_DECODED)
        tqc_tables_close(t);
    else
        *tables = t;
    return verdict;
}

void tqc_tables_close(tqc_tables *tables) {
    arena a;
    if (tables == NULL) return;
    a = tables->arena; /* which lies in the memory that is released */
    release_to(&a, NULL);
}

static tqc_verdict read_file(tqc_file *f) {
    uint64_t limit = f->arena.options.decoded_limit;
    reader plain;
    TRY(read_header(f));
    TRY(read_directory(f));
    TRY(place_segments(f));
    if (limit == 0)
        limit = add_saturated(DEFAULT_DECODED, f->source.length > UINT64_MAX / DEFAULT_DECODED_PER_BYTE
                                                   ? UINT64_MAX
                                                   : f->source.length * DEFAULT_DECODED_PER_BYTE);
    if (f->bytes > limit)
        return fail(&f->arena, TQC_LIMIT, "limit.decoded", UNKNOWN, "the tensors take more bytes than allowed");
    if (f->has_tables) {
        TRY(load_tables(f, &plain));
        TRY(read_tables(&plain, f->tables));
    }
    return TQC_DECODED;
}

static tqc_verdict open_file(const tqc_source *source, const uint8_t *memory, const tqc_options *options,
                             tqc_file **file, tqc_error *error) {
    arena a = new_arena(options);
    tqc_file *f;
    tqc_verdict verdict;
    *file = NULL;
    clear_error(error);
    a.error = error;
    TRY(take_zeros(&a, 1, sizeof *f, &f));
    f->arena = a;
    f->source = *source;
    f->memory = memory;
    verdict = take_zeros(&f->arena, 1, sizeof *f->tables, &f->tables);
    if (verdict == TQC_DECODED) {
        make_crc(&f->tables->crc);
        verdict = read_file(f);
    }
    f->arena.error = NULL;
    if (verdict != TQC_DECODED)
        tqc_close(f);
    else
        *file = f;
    return verdict;
}

tqc_verdict tqc_open_memory(const void *data, size_t size, const tqc_options *options, tqc_file **file,
                            tqc_error *error) {
    tqc_source source = {NULL, NULL, 0};
    source.length = size;
    return open_file(&source, data, options, file, error);
}

tqc_verdict tqc_open_source(const tqc_source *source, const tqc_options *options, tqc_file **file, tqc_error *error) {
    return open_file(source, NULL, options, file, error);
}

void tqc_close(tqc_file *file) {
    arena a;
    if (file == NULL) return;
    a = file->arena; /* which lies in the memory that is released */
    release_to(&a, NULL);
}

size_t tqc_tensor_count(const tqc_file *file) { return file->entry_count; }

const tqc_tensor *tqc_tensor_at(const tqc_file *file, size_t index) {
    return index < file->entry_count ? &file->entries[index].told : NULL;
}

int64_t tqc_find(const tqc_file *file, const char *name, size_t name_size) {
    uint32_t low = 0, high = file->entry_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2, index = file->by_name[middle];
        const tqc_tensor *t = &file->entries[index].told;
        int order = compare_text((const uint8_t *)name, name_size, (const uint8_t *)t->name, t->name_size);
        if (order == 0) return index;
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return UNKNOWN;
}

uint64_t tqc_bytes(const tqc_file *file) { return file->bytes; }

size_t tqc_metadata_count(const tqc_file *file) { return file->metadata_count; }

tqc_text tqc_metadata_at(const tqc_file *file, size_t index) {
    static const tqc_text none = {"", "", 0, 0};
    return index < file->metadata_count ? file->metadata[index] : none;
}

const tqc_tables *tqc_file_tables(const tqc_file *file) { return file->tables; }

tqc_workspace *tqc_workspace_open(const tqc_options *options) {
    arena a = new_arena(options);
    tqc_workspace *w = a.options.allocate(a.options.context, sizeof *w);
    if (w != NULL) w->arena = a;
    return w;
}

void tqc_workspace_close(tqc_workspace *workspace) {
    if (workspace == NULL) return;
    release_to(&workspace->arena, NULL);
    workspace->arena.options.release(workspace->arena.options.context, workspace, sizeof *workspace);
}

uint64_t tqc_workspace_peak(const tqc_workspace *workspace) { return workspace->arena.peak; }

tqc_verdict tqc_decode(const tqc_file *file, size_t index, tqc_workspace *workspace, void *out, uint64_t size,
                       tqc_error *error) {
    arena *a = enter(workspace, NULL, UNKNOWN, error);
    const tqc_tensor *t = tqc_tensor_at(file, index);
    uint32_t target;
    if (t == NULL) return leave(a, misuse(a, "the file has no such tensor"));
    concern(a, file, (int64_t)index);
    if (size != t->bytes) return leave(a, misuse(a, "the buffer has not the size of the tensor"));
    target = (uint32_t)(t->same_as >= 0 ? (size_t)t->same_as : index);
    if (t->bundle >= 0 && file->entries[target].segment_count == 0)
        return leave(a, decode_bundled(file, a, target, out));
    return leave(a, decode_own(file, a, target, out));
}

static tqc_verdict decode_places(const tqc_file *f, arena *a, const places *to) {
    int unsupported = 0;
    TRY(decode_bundles(f, a, to, &unsupported));
    TRY(decode_tensors(f, a, to, &unsupported));
    return unsupported ? TQC_UNSUPPORTED : TQC_DECODED; /* the error tells of the last one */
}

tqc_verdict tqc_decode_all(const tqc_file *file, tqc_workspace *workspace, void *out, uint64_t size, tqc_error *error) {
    arena *a = enter(workspace, NULL, UNKNOWN, error);
    places to;
    tqc_verdict verdict;
    if (out != NULL && size != file->bytes) return leave(a, misuse(a, "the buffer has not the size of all tensors"));
    to.all = out;
    to.each = NULL;
    verdict = decode_places(file, a, &to);
    if (verdict == TQC_DECODED && out != NULL) copy_tied(file, out);
    return leave(a, verdict);
}

tqc_verdict tqc_decode_each(const tqc_file *file, tqc_workspace *workspace, void *const *out, tqc_error *error) {
    arena *a = enter(workspace, NULL, UNKNOWN, error);
    places to;
    to.all = NULL;
    to.each = out;
    return leave(a, decode_places(file, a, &to));
}

static tqc_verdict decode_coefficients(const tqc_file *f, arena *a, uint32_t index, tqc_coefficients *c) {
    const entry *e = &f->entries[index];
    tile_queue queue = {NULL, 1, 0, 0};
    tqc_segment *segments;
    lanes_memory *m;
    const head *h;
    job *j;
    plan **plans;
    unsigned axis;
    TRY(load_segments(f, a, e, &segments));
    if (!e->told.supported) return unsupported_tensor(a, &e->told);
    TRY(take(a, 1, sizeof *j, &j));
    TRY(open_job(a, f->tables, &e->told, e->type, segments, e->segment_count, j));
    h = &j->head;
    TRY(take_coefficients(a, &j->plan, h->channels[OUT]));
    TRY(take_zeros(a, 1, sizeof *m, &m));
    m->arena = a;
    need_lanes(m, &j->plan);
    TRY(take_lanes(m, tile_count(&j->plan)));
    TRY(take(a, 1, sizeof *plans, &plans));
    plans[0] = &j->plan;
    queue.plans = plans;
    queue.end = tile_count(&j->plan);
    TRY(decode_tiles(m, queue));
    for (axis = 0; axis < AXES; axis++) {
        c->length[axis] = h->length[axis];
        c->channels[axis] = h->channels[axis];
        c->basis[axis] = h->bases[axis].rows;
    }
    c->dimensions = e->told.dimensions;
    c->roles = h->roles;
    c->scale_mantissa = h->scale_mantissa;
    c->scale_exponent = h->scale_exponent;
    c->quantizer = h->quantizer;
    c->steps = h->steps;
    c->columns = h->columns;
    c->depths = h->depths.values;
    c->multipliers = h->multipliers.values;
    c->row_scales = h->row_scales.values;
    c->kept = h->kept;
    c->column = h->column;
    c->coefficients = j->plan.coefficients;
    return TQC_DECODED;
}

tqc_verdict tqc_decode_coefficients(const tqc_file *file, size_t index, tqc_workspace *workspace,
                                    tqc_coefficients *coefficients, tqc_error *error) {
    arena *a = enter(workspace, NULL, UNKNOWN, error);
    const tqc_tensor *t = tqc_tensor_at(file, index);
    tqc_verdict verdict;
    if (t == NULL) return leave(a, misuse(a, "the file has no such tensor"));
    concern(a, file, (int64_t)index);
    if (t->supported && t->coding != TQC_TRANSFORM) return leave(a, misuse(a, "the tensor is not transform-coded"));
    verdict = decode_coefficients(file, a, (uint32_t)(t->same_as >= 0 ? (size_t)t->same_as : index), coefficients);
    if (verdict != TQC_DECODED) return leave(a, verdict);
    a->error = NULL; /* the memory stays until the workspace is entered again */
    return TQC_DECODED;
}

/* A copy of `size` bytes at *place, which moves behind it; only the place moves where there is no memory. */
static const void *copied(unsigned char *memory, uint64_t *place, const void *from, uint64_t size) {
    unsigned char *to = memory == NULL ? NULL : memory + *place;
    if (from == NULL) return NULL;
    if (to != NULL && size > 0) memcpy(to, from, (size_t)size);
    *place += size;
    return to;
}

/* Arrays of the largest elements first, so that all are aligned. */
static uint64_t copy_coefficients(const tqc_coefficients *from, unsigned char *memory, tqc_coefficients *to) {
    uint64_t place = 0, positions;
    unsigned axis;
    *to = *from;
    for (axis = 0; axis < AXES; axis++) {
        positions = from->channels[axis] * from->length[axis];
        to->basis[axis] = copied(memory, &place, from->basis[axis], positions * sizeof *from->basis[axis]);
    }
    to->column = copied(memory, &place, from->column, from->kept * sizeof *from->column);
    positions = from->channels[OUT] * from->kept;
    to->coefficients = copied(memory, &place, from->coefficients, positions * sizeof *from->coefficients);
    to->roles = copied(memory, &place, from->roles, from->dimensions);
    to->depths = copied(memory, &place, from->depths, from->columns);
    to->multipliers = copied(memory, &place, from->multipliers, from->columns);
    to->row_scales = copied(memory, &place, from->row_scales, from->length[OUT]);
    return place;
}

uint64_t tqc_coefficients_size(const tqc_coefficients *from) {
    tqc_coefficients unused;
    return copy_coefficients(from, NULL, &unused);
}

void tqc_coefficients_copy(const tqc_coefficients *from, void *memory, tqc_coefficients *to) {
    copy_coefficients(from, memory, to);
}

tqc_verdict tqc_decode_segments(const tqc_tables *tables, const tqc_tensor *tensor, const tqc_segment *segments,
                                size_t count, tqc_workspace *workspace, void *out, uint64_t size, tqc_error *error) {
    arena *a = enter(workspace, NULL, UNKNOWN, error);
    const dtype *type = tensor->dtype != NULL ? find_dtype(tensor->dtype, strlen(tensor->dtype)) : NULL;
    tqc_tensor t = *tensor;
    tqc_verdict verdict;
    unsigned i;
    a->name = tensor->name;
    a->name_size = tensor->name_size;
    if (t.dimensions > MAX_DIMENSIONS) return leave(a, misuse(a, "more than 16 dimensions"));
    t.elements = 1;
    for (i = 0; i < t.dimensions; i++) {
        if (t.shape[i] > 0 && t.elements > MAX_ELEMENTS / t.shape[i])
            return leave(a, misuse(a, "a tensor of more than 2^48 elements"));
        t.elements *= t.shape[i];
    }
    verdict = check_segments(a, tables, segments, count);
    if (verdict != TQC_DECODED) return leave(a, verdict);
    if (type == NULL || t.coding > TQC_TRANSFORM) return leave(a, unsupported_tensor(a, &t));
    t.bytes = t.elements * type->size;
    if (t.bytes != size) return leave(a, misuse(a, "the buffer has not the size of the tensor"));
    if (t.coding == TQC_TRANSFORM && (type->exponent_bits == 0 || t.elements == 0))
        return leave(a, malformed(a, "directory.transform", UNKNOWN,
                                  "a transform-coded tensor is empty or not of a floating-point type"));
    return leave(a, decode_coding(a, tables, &t, type, segments, count, out));
}
