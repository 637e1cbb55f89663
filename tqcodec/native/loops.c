/* Native loops of tqcodec: encoding of symbol streams and the search for the best quantization.

   An optional copy of what tqcodec/format/stream.py, tqcodec/format/trellis.py (with constriction)
   and tqcodec/encoder/quantizer.py do with numpy: same numbers in, same numbers out, tests hold them
   to each other. Nothing here parses a file: lengths and tables are checked in Python before.

   Buffers are C-contiguous arrays of the types named at each function; the callers guarantee their
   lengths. The loops release the interpreter lock. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { STATES = 8, TABLE_BITS = 12, TABLES = 256 };
enum { DONE = 0, NO_MEMORY, NO_ESCAPE };
#define TOP 0xFFFFFFFFFFFFFFFFull

/* Next state by (state, parity), as in tqcodec/format/trellis.py. */
static const uint8_t NEXT[STATES][2] = {{0, 2}, {5, 7}, {1, 3}, {4, 6}, {2, 0}, {7, 5}, {3, 1}, {6, 4}};

/* All tables of a file. weight and start have one entry for each symbol, escapes included;
   table i owns those from first[i] on. */
typedef struct {
    const int32_t *first, *low, *size, *escape, *low_bits; /* one entry for each table */
    const uint16_t *weight, *start;
} Tables;

/* The positions of one tile in coding order: steps of one row of every segment, in each step by
   table, then by position. steps == 0 is one step of all positions. */
typedef struct {
    Py_ssize_t rows, columns, steps;
    const uint8_t *ids;
    uint8_t *state;   /* of each segment; NULL without a trellis */
    int32_t *order;   /* positions of a step, sorted */
    int32_t *segment; /* segment of each of them */
    Py_ssize_t bounds[TABLES + 1];
} Walk;

static int walk_open(Walk *walk, Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t steps, const uint8_t *ids)
{
    Py_ssize_t groups = steps ? (rows + steps - 1) / steps : 1;
    Py_ssize_t width = steps ? groups * columns : rows * columns;
    walk->rows = rows, walk->columns = columns, walk->steps = steps, walk->ids = ids;
    walk->state = steps ? calloc(width ? width : 1, 1) : NULL;
    walk->order = malloc((width ? width : 1) * sizeof(int32_t));
    walk->segment = malloc((width ? width : 1) * sizeof(int32_t));
    return walk->order && walk->segment && (walk->state || !steps);
}

static void walk_close(Walk *walk)
{
    free(walk->state);
    free(walk->order);
    free(walk->segment);
}

static Py_ssize_t walk_steps(const Walk *walk)
{
    if (!walk->steps) return 1;
    return walk->rows < walk->steps ? walk->rows : walk->steps;
}

static inline int walk_table(const Walk *walk, Py_ssize_t position, Py_ssize_t segment)
{
    return walk->ids[position] + (walk->state ? walk->state[segment] & 1 : 0);
}

/* Counting sort of the positions of step t: order and bounds of the tables' runs. */
static void walk_sort(Walk *walk, Py_ssize_t t)
{
    Py_ssize_t stride = walk->steps ? walk->steps : 1, columns = walk->columns;
    Py_ssize_t *bounds = walk->bounds;
    memset(bounds, 0, sizeof walk->bounds);
    Py_ssize_t segment = 0;
    for (Py_ssize_t row = t; row < walk->rows; row += stride)
        for (Py_ssize_t c = 0; c < columns; c++, segment++) bounds[walk_table(walk, row * columns + c, segment) + 1]++;
    for (int i = 0; i < TABLES; i++) bounds[i + 1] += bounds[i];
    Py_ssize_t next[TABLES];
    memcpy(next, bounds, sizeof next);
    segment = 0;
    for (Py_ssize_t row = t; row < walk->rows; row += stride)
        for (Py_ssize_t c = 0; c < columns; c++, segment++) {
            Py_ssize_t position = row * columns + c;
            Py_ssize_t place = next[walk_table(walk, position, segment)]++;
            walk->order[place] = (int32_t)position;
            walk->segment[place] = (int32_t)segment;
        }
}

/* ---- encoding ---- */

typedef struct {
    uint32_t *words;
    Py_ssize_t count;
    uint64_t lower, range;
    Py_ssize_t held;
    uint32_t first;
} Encoder;

static void encoder_resolve(Encoder *e, int carry)
{
    e->words[e->count++] = e->first + (uint32_t)carry;
    for (; e->held > 1; e->held--) e->words[e->count++] = carry ? 0 : 0xFFFFFFFFu;
    e->held = 0;
}

static void encoder_put(Encoder *e, uint32_t start, uint32_t weight)
{
    uint64_t scale = e->range >> 24 << TABLE_BITS, fresh = e->lower + scale * start;
    e->range = scale * weight;
    if (e->held && fresh + e->range > fresh) encoder_resolve(e, fresh < e->lower);
    e->lower = fresh;
    if (e->range >> 32) return;
    uint32_t top = (uint32_t)(e->lower >> 32);
    e->range <<= 32, e->lower <<= 32;
    if (e->held)
        e->held++;
    else if (e->lower + e->range > e->lower)
        e->words[e->count++] = top;
    else
        e->held = 1, e->first = top;
}

static void encoder_seal(Encoder *e)
{
    uint64_t point = e->lower + 0xFFFFFFFFull;
    if (e->held) encoder_resolve(e, point < e->lower);
    e->words[e->count++] = (uint32_t)(point >> 32);
    if ((e->lower + e->range) >> 32 == point >> 32) e->words[e->count++] = 0;
}

static int encode_tile(Walk *walk, const Tables *tables, Encoder *e, const int32_t *indices, int32_t *escapes,
                       Py_ssize_t *escape_count)
{
    int any = 0;
    for (Py_ssize_t t = 0; t < walk_steps(walk); t++) {
        walk_sort(walk, t);
        for (int id = 0; id < TABLES; id++) {
            Py_ssize_t stop = walk->bounds[id + 1];
            if (walk->bounds[id] == stop) continue;
            const uint16_t *weight = tables->weight + tables->first[id];
            const uint16_t *start = tables->start + tables->first[id];
            int32_t size = tables->size[id], least = tables->low[id];
            int coded = size + tables->escape[id] > 1;
            any |= coded;
            for (Py_ssize_t i = walk->bounds[id]; i < stop; i++) {
                Py_ssize_t position = walk->order[i];
                int32_t value = indices[position] >> tables->low_bits[id];
                int64_t symbol = (int64_t)value - least;
                if (symbol < 0 || symbol >= size) {
                    if (!tables->escape[id]) return NO_ESCAPE;
                    escapes[(*escape_count)++] = value;
                    symbol = size;
                }
                if (coded) encoder_put(e, start[symbol], weight[symbol]);
                if (!walk->state) continue;
                uint8_t *state = walk->state + walk->segment[i];
                *state = NEXT[*state][indices[position] & 1];
            }
        }
    }
    if (any) encoder_seal(e);
    return DONE;
}

/* ---- quantization ---- */

/* Code lengths, already times lambda: row (class * quantizers + quantizer) of `length` magnitudes. */
typedef struct {
    const float *bits;
    int32_t quantizers, length;
} Rates;

static inline float rate(const Rates *rates, int class_, int quantizer, float index)
{
    float last = (float)(rates->length - 1);
    int32_t i = (int32_t)(index < last ? index : last);
    return rates->bits[((int64_t)class_ * rates->quantizers + quantizer) * rates->length + i];
}

static inline float cost(const Rates *rates, float magnitude, float value, float index, int class_, int quantizer)
{
    float error = magnitude - value;
    error *= error;
    return error + rate(rates, class_, quantizer, index);
}

static void quantize_uniform(Py_ssize_t count, const float *x, const uint8_t *classes, const Rates *rates, int32_t *out)
{
    for (Py_ssize_t i = 0; i < count; i++) {
        float magnitude = fabsf(x[i]), up = floorf(magnitude + 0.5f), best = up;
        float least = cost(rates, magnitude, up, up, classes[i], 0);
        float candidates[2] = {up > 0 ? up - 1 : 0, 0};
        for (int j = 0; j < 2; j++) {
            float other = cost(rates, magnitude, candidates[j], candidates[j], classes[i], 0);
            if (other < least) least = other, best = candidates[j];
        }
        out[i] = x[i] < 0 ? -(int32_t)best : (int32_t)best;
    }
}

/* n of the magnitude 4n + offset nearest to `magnitude`, by (quantizer, parity). */
static const float OFFSET[2][2] = {{0, 2}, {-1, 1}};

static inline float nearest(float magnitude, float offset)
{
    float n = floorf(magnitude * 0.25f + (0.5f - offset * 0.25f));
    return n > 0 ? n : 0;
}

/* The Viterbi algorithm along one segment. path has one row of STATES bits for each step. */
static void quantize_segment(Py_ssize_t count, Py_ssize_t stride, const float *x, const uint8_t *classes,
                             const Rates *rates, uint8_t *path, uint8_t *zeros, int32_t *out)
{
    static const uint8_t from[STATES][2] = {{0, 4}, {2, 6}, {0, 4}, {2, 6}, {3, 7}, {1, 5}, {3, 7}, {1, 5}};
    static const uint8_t parity_of[STATES][2] = {{0, 1}, {0, 1}, {1, 0}, {1, 0}, {0, 1}, {0, 1}, {1, 0}, {1, 0}};
    float costs[STATES], fresh[STATES];
    for (int s = 0; s < STATES; s++) costs[s] = s ? 1e30f : 0;
    for (Py_ssize_t t = 0; t < count; t++) {
        float magnitude = fabsf(x[t * stride]), square = magnitude * magnitude, branch[2][2];
        int class_ = classes[t * stride];
        zeros[t] = 0;
        for (int q = 0; q < 2; q++) {
            for (int b = 0; b < 2; b++) {
                float n = nearest(magnitude, OFFSET[q][b]), value = 4 * n + OFFSET[q][b];
                if (value < 0) value = 0;
                branch[q][b] = cost(rates, magnitude, value, 2 * n + (float)b, class_, q);
            }
            float nothing = square + rate(rates, class_, q, 0);
            if (nothing <= branch[q][0]) branch[q][0] = nothing, zeros[t] |= 1 << q;
        }
        uint8_t choice = 0;
        for (int s = 0; s < STATES; s++) {
            int s0 = from[s][0], s1 = from[s][1];
            float first = costs[s0] + branch[s0 & 1][parity_of[s][0]];
            float second = costs[s1] + branch[s1 & 1][parity_of[s][1]];
            choice |= (uint8_t)((second < first) << s);
            fresh[s] = second < first ? second : first;
        }
        memcpy(costs, fresh, sizeof costs);
        path[t] = choice;
    }
    int state = 0;
    for (int s = 1; s < STATES; s++)
        if (costs[s] < costs[state]) state = s;
    for (Py_ssize_t t = count - 1; t >= 0; t--) {
        int second = path[t] >> state & 1, b = parity_of[state][second];
        state = from[state][second];
        int q = state & 1;
        float magnitude = fabsf(x[t * stride]);
        float value = 4 * nearest(magnitude, OFFSET[q][b]) + OFFSET[q][b];
        if (value < 0 || (b == 0 && zeros[t] >> q & 1)) value = 0;
        out[t * stride] = x[t * stride] < 0 ? -(int32_t)value : (int32_t)value;
    }
}

/* Indices of coefficients and their quantizers, row by row; 0 where one is not on the trellis. */
static int follow(Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t steps, const int32_t *coefficients, uint8_t *state,
                  int32_t *indices, uint8_t *quantizers)
{
    for (Py_ssize_t row = 0; row < rows; row++) {
        if (row % steps == 0) memset(state, 0, columns);
        for (Py_ssize_t c = 0; c < columns; c++) {
            Py_ssize_t i = row * columns + c;
            int32_t q = coefficients[i], doubled = q + ((q > 0) - (q < 0)) * (state[c] & 1);
            if (doubled & 1) return 0;
            indices[i] = doubled / 2;
            quantizers[i] = state[c] & 1;
            state[c] = NEXT[state[c]][indices[i] & 1];
        }
    }
    return 1;
}

/* ---- interface ---- */

static PyObject *status_error(int status)
{
    if (status == NO_MEMORY) return PyErr_NoMemory();
    return PyErr_Format(PyExc_ValueError, "a symbol outside a table without an escape");
}

static void tables_open(Tables *tables, const Py_buffer *numbers, const Py_buffer *weights, const Py_buffer *starts)
{
    Py_ssize_t count = numbers->len / (Py_ssize_t)(5 * sizeof(int32_t));
    const int32_t *n = numbers->buf;
    tables->first = n, tables->low = n + count, tables->size = n + 2 * count;
    tables->escape = n + 3 * count, tables->low_bits = n + 4 * count;
    tables->weight = weights->buf, tables->start = starts->buf;
}

/* encode(numbers, weights, starts, ids u8, indices i32, rows, columns, steps) -> (words, escapes) */
static PyObject *native_encode(PyObject *self, PyObject *args)
{
    Py_buffer numbers, weights, starts, ids, indices;
    Py_ssize_t rows, columns, steps, escape_count = 0;
    if (!PyArg_ParseTuple(args, "y*y*y*y*y*nnn", &numbers, &weights, &starts, &ids, &indices, &rows, &columns, &steps))
        return NULL;
    Tables tables;
    Walk walk;
    Py_ssize_t count = rows * columns;
    Encoder encoder = {.range = TOP};
    int32_t *escapes = malloc((count + 1) * sizeof *escapes);
    encoder.words = malloc((count + 3) * sizeof *encoder.words);
    int status = NO_MEMORY;
    tables_open(&tables, &numbers, &weights, &starts);
    Py_BEGIN_ALLOW_THREADS
    if (walk_open(&walk, rows, columns, steps, ids.buf) && escapes && encoder.words)
        status = encode_tile(&walk, &tables, &encoder, indices.buf, escapes, &escape_count);
    walk_close(&walk);
    Py_END_ALLOW_THREADS
    PyObject *result = NULL;
    if (status == DONE)
        result = Py_BuildValue("(y#y#)", (const char *)encoder.words, encoder.count * 4, (const char *)escapes,
                               escape_count * 4);
    else
        status_error(status);
    free(encoder.words);
    free(escapes);
    Py_buffer *all[] = {&numbers, &weights, &starts, &ids, &indices};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) PyBuffer_Release(all[i]);
    return result;
}

/* quantize(x f32, classes u8, bits f32, quantizers, length, rows, columns, steps, out i32) */
static PyObject *native_quantize(PyObject *self, PyObject *args)
{
    Py_buffer x, classes, bits, out;
    Py_ssize_t rows, columns, steps;
    Rates rates;
    if (!PyArg_ParseTuple(args, "y*y*y*iinnnw*", &x, &classes, &bits, &rates.quantizers, &rates.length, &rows, &columns,
                          &steps, &out))
        return NULL;
    rates.bits = bits.buf;
    uint8_t *scratch = malloc(2 * (steps ? steps : 1));
    if (scratch) {
        Py_BEGIN_ALLOW_THREADS
        if (!steps) quantize_uniform(rows * columns, x.buf, classes.buf, &rates, out.buf);
        for (Py_ssize_t top = 0; steps && top < rows; top += steps) {
            Py_ssize_t height = rows - top < steps ? rows - top : steps;
            for (Py_ssize_t i = top * columns; i < (top + 1) * columns; i++)
                quantize_segment(height, columns, (const float *)x.buf + i, (const uint8_t *)classes.buf + i, &rates,
                                 scratch, scratch + steps, (int32_t *)out.buf + i);
        }
        Py_END_ALLOW_THREADS
    }
    free(scratch);
    Py_buffer *all[] = {&x, &classes, &bits, &out};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) PyBuffer_Release(all[i]);
    if (!scratch) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

/* indices(coefficients i32, rows, columns, steps, indices i32 (out), quantizers u8 (out)) -> bool */
static PyObject *native_indices(PyObject *self, PyObject *args)
{
    Py_buffer coefficients, indices, quantizers;
    Py_ssize_t rows, columns, steps;
    if (!PyArg_ParseTuple(args, "y*nnnw*w*", &coefficients, &rows, &columns, &steps, &indices, &quantizers))
        return NULL;
    int good = 0;
    uint8_t *state = malloc(columns ? columns : 1);
    if (state) {
        Py_BEGIN_ALLOW_THREADS
        good = follow(rows, columns, steps, coefficients.buf, state, indices.buf, quantizers.buf);
        Py_END_ALLOW_THREADS
    }
    Py_buffer *all[] = {&coefficients, &indices, &quantizers};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) PyBuffer_Release(all[i]);
    if (!state) return PyErr_NoMemory();
    free(state);
    return PyBool_FromLong(good);
}

static PyMethodDef METHODS[] = {{"encode", native_encode, METH_VARARGS, "Encode the symbols of one stream."},
                                {"indices", native_indices, METH_VARARGS, "Indices of coefficients on the trellis."},
                                {"quantize", native_quantize, METH_VARARGS, "Rate-distortion optimised quantization."},
                                {NULL, NULL, 0, NULL}};

static struct PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, .m_name = "_loops",
                                    .m_doc = "Native loops; see tqcodec/format/native.py.", .m_size = -1,
                                    .m_methods = METHODS};

PyMODINIT_FUNC PyInit__loops(void)
{
    return PyModule_Create(&MODULE);
}
